//! TLS to upstreams: their own roots, names and client certificates, and the `Host` that they get.

use std::{fs, path::Path, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsAcceptor;

use crate::support::{Client, Edge, Origin, edge::program, origin};

/// A private CA.
struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a name and its key, as PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

/// A server of TLS for `app.internal`, which asks for a client certificate of `clients` if there is such a CA. It answers
/// with the name that it was asked for, and whether it got a certificate.
async fn server(ca: &Ca, clients: Option<&Ca>) -> Origin {
    let (cert, key) = ca.issue("app.internal");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(clients.pem().as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
    let config = builder.with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Origin::talking(move |stream, seen| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut tls) = acceptor.accept(stream).await else { return };
            let session = tls.get_ref().1;
            let (name, is_known) = (session.server_name().unwrap_or("no name").to_owned(), session.peer_certificates());
            let answer = origin::ok(&format!("{name} {}", if is_known.is_some() { "certified" } else { "anonymous" }));
            while let Some(request) = origin::read_request(&mut tls).await {
                seen.lock().unwrap().push(request);
                if tls.write_all(&answer).await.is_err() || tls.flush().await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// A site with an upstream of TLS and these keys.
fn site(host: &str, server: &Origin, keys: &str) -> String {
    format!("[sites.\"{host}\"]\nupstream = {{ servers = \"https://{}\"{keys} }}\n", server.addr())
}

fn written(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// The answer of a site: its status, and its text if that is 200.
async fn ask(edge: &Edge, host: &str) -> (u16, String) {
    let answer = Client::tls(edge, host).await.get(host, &format!("/{host}")).await;
    (answer.status, if answer.status == 200 { answer.text() } else { String::new() })
}

#[tokio::test]
async fn a_certificate_is_verified_against_the_roots_and_the_name_of_its_upstream() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, other) = (Ca::new("ours"), Ca::new("another"));
    let (server, folder) = (server(&ca, None).await, folder.path());
    let (ours, theirs) = (written(folder, "ca.pem", &ca.pem()), written(folder, "other.pem", &other.pem()));
    let own = format!(", ca_file = \"{ours}\", server_name = \"app.internal\"");
    let cases = [
        ("good.example.org", own.clone(), 200, "app.internal anonymous"),
        ("system.example.org", ", server_name = \"app.internal\"".into(), 502, "unknown authority"),
        ("other.example.org", own.replace(&ours, &theirs), 502, "unknown authority"),
        ("wrong.example.org", own.replace("app.internal", "b.internal"), 502, "for another name"),
        ("address.example.org", format!(", ca_file = \"{ours}\""), 502, "for another name"),
        ("any.example.org", ", insecure_skip_verify = true".into(), 200, "no name anonymous"),
        ("named.example.org", ", insecure_skip_verify = true, server_name = \"x.y\"".into(), 200, "x.y anonymous"),
    ];
    let edge = Edge::start(&cases.iter().map(|(host, keys, ..)| site(host, &server, keys)).collect::<String>());
    for (host, _, status, words) in cases {
        let (found, text) = ask(&edge, host).await;
        assert_eq!(found, status, "{host}: {text}");
        match status {
            200 => assert_eq!(text, words, "{host}"),
            _ => assert!(edge.exchange(&format!("/{host}")).to_string().contains(words), "{host}"),
        }
    }
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_gets_the_one_of_its_upstream() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, clients) = (Ca::new("ours"), Ca::new("of clients"));
    let (server, folder) = (server(&ca, Some(&clients)).await, folder.path());
    let pair = |name: &str, of: &Ca| {
        let (cert, key) = of.issue("edge.internal");
        let (cert, key) =
            (written(folder, &format!("{name}.pem"), &cert), written(folder, &format!("{name}.key"), &key));
        format!(", client_certificate = {{ cert = \"{cert}\", key = \"{key}\" }}")
    };
    let own = format!(", ca_file = \"{}\", server_name = \"app.internal\"", written(folder, "ca.pem", &ca.pem()));
    let edge = Edge::start(
        &[
            site("known.example.org", &server, &format!("{own}{}", pair("known", &clients))),
            site("stranger.example.org", &server, &format!("{own}{}", pair("stranger", &ca))),
            site("nobody.example.org", &server, &own),
        ]
        .concat(),
    );
    assert_eq!(ask(&edge, "known.example.org").await, (200, "app.internal certified".into()));
    for host in ["stranger.example.org", "nobody.example.org"] {
        assert_eq!(ask(&edge, host).await.0, 502, "{host}");
    }
    let event = edge.exchange("/nobody.example.org").to_string();
    assert!(event.contains("requires a client certificate"), "{event}");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn the_files_are_read_again_at_a_reload_and_the_last_good_ones_stay() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, other) = (Ca::new("ours"), Ca::new("another"));
    let (server, folder) = (server(&ca, None).await, folder.path());
    let file = written(folder, "ca.pem", &other.pem());
    let host = "a.example.org";
    let edge = Edge::start(&site(host, &server, &format!(", ca_file = \"{file}\", server_name = \"app.internal\"")));
    assert_eq!(ask(&edge, host).await.0, 502);
    written(folder, "ca.pem", &ca.pem());
    assert_eq!(ask(&edge, host).await.0, 502, "nobody has asked for a reload");
    edge.signal("HUP");
    edge.wait_for_log("reload: the configuration is the same");
    assert_eq!(ask(&edge, host).await.0, 200);
    written(folder, "ca.pem", "no certificate");
    edge.signal("HUP");
    let line = edge.wait_for_log("reload rejected");
    assert!(line.contains("there is no certificate in") && line.contains("ca.pem"), "{line}");
    assert_eq!(ask(&edge, host).await.0, 200);
}

#[test]
fn a_file_that_is_missing_is_a_warning_of_check_and_the_edge_does_not_start_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vestibule.toml");
    let keys = "ca_file = \"ca.pem\", client_certificate = { cert = \"c.pem\", key = \"k.pem\" }";
    let sites = format!("[sites.\"a.example.org\"]\nupstream = {{ servers = \"https://127.0.0.1:1\", {keys} }}\n");
    fs::write(&file, Edge::config(folder.path(), "", &sites)).unwrap();
    let run = |command: &str| program(&["--config", file.to_str().unwrap(), command]);
    let checked = run("check");
    let said = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(0), "{said}");
    for name in ["ca.pem", "c.pem", "k.pem"] {
        assert!(said.contains(&format!("{name}` cannot be read")), "{name} in {said}");
    }
    let started = run("run");
    let said = String::from_utf8(started.stderr).unwrap();
    assert!(!started.status.success() && said.contains("ca.pem cannot be read"), "{said}");
}

#[tokio::test]
async fn the_service_gets_the_host_that_its_upstream_says() {
    let upstream = Origin::echoing_targets().await;
    let with =
        |host: &str, of: &str| format!("[sites.\"{host}\"]\nupstream = {{ servers = \"{}\"{of} }}\n", upstream.url());
    let edge = Edge::start(
        &[
            with("kept.example.org", ""),
            with("fixed.example.org", ", host = \"App.internal:8443\""),
            with("server.example.org", ", host = \"{upstream}\""),
        ]
        .concat(),
    );
    let own = upstream.addr().to_string();
    for (site, host) in [
        ("kept.example.org", "kept.example.org"),
        ("fixed.example.org", "App.internal:8443"),
        ("server.example.org", &own),
    ] {
        assert_eq!(ask(&edge, site).await.0, 200);
        let seen = upstream.seen().pop().unwrap().to_lowercase();
        let hosts: Vec<_> = seen.lines().filter_map(|line| line.strip_prefix("host: ")).collect();
        assert_eq!(hosts, [host.to_lowercase()], "{seen}");
        assert!(seen.contains(&format!("\r\nx-forwarded-host: {site}\r\n")), "{seen}");
    }
    let upgrade = "GET / HTTP/1.1\r\nHost: fixed.example.org\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: x\r\n\r\n";
    Client::tls(&edge, "fixed.example.org").await.ask(upgrade).await;
    assert!(upstream.seen().pop().unwrap().contains("App.internal:8443\r\n"));
}

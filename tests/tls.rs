//! Handshakes: names, versions, certificates from files.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use crate::support::{Client, Edge, client};

const HOST: &str = "a.example.org";

#[tokio::test]
async fn an_unknown_name_gets_its_alert() {
    let edge = Edge::start(&format!("[sites.\"{HOST}\".routes]\n\"/\" = {{ respond = \"hi\" }}\n"));
    let error = client::tls(&edge, "unknown.example.org", &["http/1.1"]).await.unwrap_err();
    assert!(error.to_string().to_lowercase().contains("unrecogni"), "{error}");
    let stream = client::tls(&edge, HOST, &["http/1.1"]).await.unwrap();
    let connection = stream.get_ref().1;
    assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let group = connection.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn the_protocol_is_agreed_on() {
    let edge = Edge::start(&format!("[sites.\"{HOST}\".routes]\n\"/\" = {{ respond = \"hi\" }}\n"));
    for (offered, agreed) in [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)] {
        let stream = client::tls(&edge, HOST, offered).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed.map(str::as_bytes));
    }
    assert!(client::tls(&edge, HOST, &["spdy/1"]).await.is_err());
}

#[tokio::test]
async fn plain_http_on_the_tls_port_is_told() {
    let edge = Edge::start(&format!("[sites.\"{HOST}\".routes]\n\"/\" = {{ respond = \"hi\" }}\n"));
    let answer = Client::plain(edge.https()).await.get(HOST, "/").await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("https"));
}

#[tokio::test]
async fn certificates_from_files_are_followed_and_a_broken_pair_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let write = |made: &rcgen::CertifiedKey<rcgen::KeyPair>| {
        std::fs::write(path("c.pem"), made.cert.pem()).unwrap();
        std::fs::write(path("k.pem"), made.signing_key.serialize_pem()).unwrap();
    };
    let make = || rcgen::generate_simple_self_signed(vec![HOST.to_owned()]).unwrap();
    let (first, second) = (make(), make());
    write(&first);
    let edge = Edge::start(&format!(
        "[sites.\"{HOST}\"]\ntls = {{ cert = \"{}\", key = \"{}\" }}\n[sites.\"{HOST}\".routes]\n\"/\" = {{ respond = \"hi\" }}\n\
         [sites.\"i.example.org\".routes]\n\"/\" = {{ respond = \"hi\" }}\n",
        path("c.pem").display(),
        path("k.pem").display()
    ));
    assert_eq!(served(&edge).await, first.cert.der().to_vec());
    std::fs::write(path("k.pem"), "broken").unwrap();
    edge.wait_for_log("the last good one stays");
    assert_eq!(served(&edge).await, first.cert.der().to_vec());
    write(&second);
    let until = Instant::now() + Duration::from_secs(15);
    while served(&edge).await != second.cert.der().to_vec() {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The certificate that a client is shown which does not verify it.
async fn served(edge: &Edge) -> Vec<u8> {
    let stream = unverified(edge, HOST).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// A connection that verifies no certificate; for an address, without a name in its handshake.
async fn unverified(edge: &Edge, name: &'static str) -> std::io::Result<TlsStream<TcpStream>> {
    use std::sync::Arc;

    use rustls::{
        ClientConfig, DigitallySignedStruct, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        pki_types::{CertificateDer, ServerName, UnixTime},
    };

    #[derive(Debug)]
    struct Anyone;
    impl ServerCertVerifier for Anyone {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    let tcp = TcpStream::connect(edge.https()).await.unwrap();
    let name = ServerName::try_from(name).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

#[tokio::test]
async fn the_site_for_every_other_name_has_its_own_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let own = rcgen::generate_simple_self_signed(vec!["rest.example.org".to_owned()]).unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("c.pem"), own.cert.pem()).unwrap();
    std::fs::write(path("k.pem"), own.signing_key.serialize_pem()).unwrap();
    let edge = Edge::start(&format!(
        "[sites.\"*\"]\ntls = {{ cert = \"{}\", key = \"{}\" }}\n[sites.\"*\".routes]\n\"/\" = {{ respond = \"rest\" }}\n\
         [sites.\"{HOST}\".routes]\n\"/\" = {{ respond = \"named\" }}\n\
         [sites.\"plain.example.org\"]\ntls = \"off\"\n[sites.\"plain.example.org\".routes]\n\"/\" = {{ respond = \"plain\" }}\n",
        path("c.pem").display(),
        path("k.pem").display()
    ));
    assert!(!edge.log().contains("is not for *"), "{}", edge.log());
    // The name in the handshake, the host of the request, and who answers.
    for (name, host, answer) in [
        ("other.example.com", "other.example.com", Some("rest")),
        ("other.example.com", "another.example.com", None),
        ("other.example.com", HOST, None),
        (HOST, HOST, Some("named")),
        (HOST, "other.example.com", None),
        ("192.0.2.1", "192.0.2.1", Some("rest")),
        ("192.0.2.1", "other.example.com", Some("rest")),
        ("192.0.2.1", HOST, None),
        ("192.0.2.1", "plain.example.org", None),
    ] {
        let mut stream = unverified(&edge, name).await.unwrap();
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        assert_eq!(shown == own.cert.der().to_vec(), name != HOST, "{name}");
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        let _ = stream.read_to_end(&mut read).await;
        let read = String::from_utf8_lossy(&read);
        match answer {
            Some(body) => assert!(read.ends_with(body), "{name} {host}: {read}"),
            None => assert!(read.starts_with("HTTP/1.1 421 "), "{name} {host}: {read}"),
        }
    }
    // A site of plain HTTP has a name of its own, and no certificate.
    assert!(unverified(&edge, "plain.example.org").await.is_err());
    let moved = Client::plain(edge.http()).await.get("other.example.com", "/x").await;
    assert_eq!((moved.status, moved.field("location").as_deref()), (308, Some("https://other.example.com/x")));
}

#[tokio::test]
async fn a_handshake_that_takes_its_time_is_ended() {
    let edge = Edge::start(&format!(
        "[timeouts]\nhandshake = \"300ms\"\n[sites.\"{HOST}\".routes]\n\"/\" = {{ respond = \"hi\" }}\n"
    ));
    let mut tcp = TcpStream::connect(edge.https()).await.unwrap();
    tcp.write_all(&[22, 3, 1, 0]).await.unwrap();
    let mut all = Vec::new();
    tokio::time::timeout(Duration::from_secs(5), tcp.read_to_end(&mut all)).await.expect("it ends").unwrap();
}

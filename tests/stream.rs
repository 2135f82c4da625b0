//! Connections that are not HTTP: sites of kind `turn` and `tcp`, with TLS that ends here and TLS that passes through.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::support::{Client, Edge, Origin, client, edge::PATIENCE};

const TURN: &str = "turn.example.org";

/// A STUN binding request (RFC 8489 section 5) with an id of its own.
const BINDING: [u8; 20] = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/// A server that sends back what it gets, and records it.
async fn echo() -> (Origin, Arc<Mutex<Vec<u8>>>) {
    let all = Arc::new(Mutex::new(Vec::new()));
    let record = all.clone();
    let origin = Origin::talking(move |mut stream, _| {
        let record = record.clone();
        async move {
            let mut bytes = vec![0; 64 * 1024];
            while let Ok(n) = stream.read(&mut bytes).await {
                if n == 0 {
                    break;
                }
                record.lock().unwrap().extend_from_slice(&bytes[..n]);
                if stream.write_all(&bytes[..n]).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (origin, all)
}

fn site(host: &str, kind: &str, addr: SocketAddr) -> String {
    format!("[sites.\"{host}\"]\nkind = \"{kind}\"\nupstream = \"tcp://{addr}\"\n")
}

/// The log event of the connection that ended for this reason.
fn event(edge: &Edge, what: &str) -> serde_json::Value {
    serde_json::from_str(&edge.wait_for_log(what)).unwrap()
}

/// The bytes of a ClientHello for a name.
fn client_hello(name: &str, protocol: &[u8]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test]
async fn tls_ends_here_and_the_bytes_go_on_as_they_are() {
    let (origin, _) = echo().await;
    let edge = Edge::start(&site(TURN, "turn", origin.addr()));
    for (offered, agreed) in [
        (&[][..], None),
        (&["stun.turn"], Some("stun.turn")),
        (&["h2", "stun.turn"], Some("stun.turn")),
        (&["x"], None),
    ] {
        let mut stream = client::tls(&edge, TURN, offered).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed.map(str::as_bytes), "{offered:?}");
        stream.write_all(&BINDING).await.unwrap();
        let mut back = [0; 20];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, BINDING);
        // A megabyte both ways, and a half-close: the rest arrives.
        let sent: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        let (mut read, mut write) = tokio::io::split(stream);
        let sending = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let ((), read) = tokio::join!(sending, read.read_to_end(&mut got));
        read.expect("it ends with a close_notify");
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    }
    let line = event(&edge, "\"protocol\":\"turn\"");
    assert_eq!((&line["site"], &line["ended_by"], &line["tls"]), (&TURN.into(), &"client".into(), &"TLSv1.3".into()));
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&(20 + (1 << 20)).into(), &(20 + (1 << 20)).into()));
    assert_eq!(line["upstream"], format!("tcp://{}", origin.addr()));
    let page = edge.page("/metrics").await;
    assert!(page.contains(&format!("vestibule_streams_total{{site=\"{TURN}\",end=\"client\"}} 4")), "{page}");
    assert!(page.contains(&format!("vestibule_streams_open{{site=\"{TURN}\"}} 0")), "{page}");
}

#[tokio::test]
async fn a_passthrough_name_is_forwarded_byte_for_byte() {
    let inner = Edge::start("[sites.\"nas.example.org\".routes]\n\"/\" = { respond = \"inside\" }\n");
    let (origin, recorded) = echo().await;
    let passthrough = "tls = \"passthrough\"\n";
    let edge = Edge::start(&format!(
        "{}{passthrough}{}{passthrough}",
        site("nas.example.org", "tcp", inner.https()),
        site("raw.example.org", "tcp", origin.addr())
    ));
    // The certificate is that of the inner edge, and nothing was ordered for the name here.
    let mut through = Client::tls_at(edge.https(), &inner.root(), "nas.example.org").await;
    assert_eq!(through.get("nas.example.org", "/").await.text(), "inside");
    assert!(!edge.page("/certificates").await.contains("nas.example.org"));
    // A hello in pieces of one byte, in records of one byte, and the one of a CA's validation.
    let whole = client_hello("raw.example.org", b"acme-tls/1");
    let body = &whole[5..];
    let records: Vec<u8> = body.iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]).collect();
    for hello in [whole.clone(), records] {
        recorded.lock().unwrap().clear();
        let mut stream = TcpStream::connect(edge.https()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in &hello {
            stream.write_all(&[*byte]).await.unwrap();
        }
        let mut back = vec![0; hello.len()];
        timeout(PATIENCE, stream.read_exact(&mut back)).await.expect("the echo in time").unwrap();
        assert!(back == hello && *recorded.lock().unwrap() == hello);
    }
    drop(through);
    let line = event(&edge, "\"site\":\"nas.example.org\"");
    assert_eq!((&line["protocol"], line["tls"].is_null()), (&"tls".into(), true));
}

#[tokio::test]
async fn on_plain_http_such_a_name_is_404() {
    let (origin, _) = echo().await;
    let edge = Edge::start(&format!(
        "{}{}tls = \"passthrough\"\n[sites.\"a.example.org\".routes]\n\"/\" = {{ respond = \"hi\" }}\n",
        site(TURN, "turn", origin.addr()),
        site("nas.example.org", "tcp", origin.addr())
    ));
    for host in [TURN, "nas.example.org"] {
        for path in ["/", "/.well-known/acme-challenge/unknown", "/.well-known/matrix/client"] {
            let answer = Client::plain(edge.http()).await.get(host, path).await;
            assert_eq!((answer.status, answer.field("location")), (404, None), "{host}{path}");
        }
        // A connection of another site serves it no more than any other name.
        let answer = Client::tls(&edge, "a.example.org").await.get(host, "/").await;
        assert_eq!(answer.status, 421);
    }
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn a_server_is_told_who_the_client_is() {
    let (origin, recorded) = echo().await;
    let edge = Edge::with(
        "proxy_protocol = [\"127.0.0.0/8\"]",
        &format!(
            "[sites.\"{TURN}\"]\nkind = \"tcp\"\ntls = \"passthrough\"\n\
             upstream = {{ servers = [\"tcp://{}\"], proxy_protocol = \"v2\" }}\n",
            origin.addr()
        ),
    );
    let hello = client_hello(TURN, b"x");
    let mut stream = TcpStream::connect(edge.https()).await.unwrap();
    stream.write_all(b"PROXY TCP4 192.0.2.1 10.0.0.1 4660 443\r\n").await.unwrap();
    stream.write_all(&hello).await.unwrap();
    let mut back = vec![0; 28 + hello.len()];
    timeout(PATIENCE, stream.read_exact(&mut back)).await.expect("the echo in time").unwrap();
    let port = edge.https().port().to_be_bytes();
    let addresses = [192, 0, 2, 1, 127, 0, 0, 1, 0x12, 0x34, port[0], port[1]];
    let header = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &addresses].concat();
    assert_eq!(*recorded.lock().unwrap(), [header, hello].concat());
}

#[tokio::test]
async fn a_server_that_is_down_closes_at_once_and_another_one_is_found() {
    let (origin, _) = echo().await;
    let dead = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let edge = Edge::start(&format!(
        "{}[sites.\"two.example.org\"]\nkind = \"tcp\"\nupstream = [\"tcp://{dead}\", \"tcp://{}\"]\n",
        site(TURN, "turn", dead),
        origin.addr()
    ));
    let began = Instant::now();
    let mut stream = client::tls(&edge, TURN, &[]).await.unwrap();
    let mut got = Vec::new();
    timeout(Duration::from_secs(2), stream.read_to_end(&mut got)).await.expect("it closes at once").unwrap();
    assert!(got.is_empty() && began.elapsed() < Duration::from_secs(2));
    let line = event(&edge, "connect_failed");
    assert_eq!((&line["site"], &line["ended_by"]), (&TURN.into(), &"upstream".into()));
    assert!(line["error"].as_str().unwrap().contains("refused"), "{line}");
    edge.wait_for_log("upstream does not answer");
    assert!(edge.page("/metrics").await.contains(&format!("vestibule_upstream_up{{upstream=\"tcp://{dead}\"")));
    for _ in 0..4 {
        let mut stream = client::tls(&edge, "two.example.org", &[]).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_no_turn_costs_a_bounded_time() {
    let (origin, recorded) = echo().await;
    let edge = Edge::start(&format!("[timeouts]\nhandshake = \"1s\"\n{}", site(TURN, "turn", origin.addr())));
    // Neither the name's port without TLS, nor a connection that says nothing, nor a hello without end, reaches anybody.
    assert_eq!(Client::plain(edge.https()).await.get(TURN, "/").await.status, 400);
    let mut silent = Client::plain(edge.https()).await;
    assert!(silent.ends().await);
    let mut endless = Client::plain(edge.https()).await;
    let record = [&[22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff, 3, 3][..], &vec![7; 0x4000 - 6]].concat();
    let _ = endless.io.write_all(&record.repeat(6)).await;
    assert!(endless.ends().await);
    assert!(client::tls(&edge, "other.example.org", &[]).await.is_err());
    assert_eq!(origin.connections(), 0);
    // HTTP inside TLS ends with a close_notify and goes nowhere.
    let mut http = client::tls(&edge, TURN, &["http/1.1"]).await.unwrap();
    http.write_all(format!("GET / HTTP/1.1\r\nHost: {TURN}\r\n\r\n").as_bytes()).await.unwrap();
    let mut got = Vec::new();
    timeout(PATIENCE, http.read_to_end(&mut got)).await.expect("it ends").unwrap();
    assert_eq!((got.len(), event(&edge, "\"reason\":\"http\"")["bytes_in"].as_u64() > Some(0)), (0, true));
    assert!(recorded.lock().unwrap().is_empty());
    // Bytes that are no TURN may be forwarded, and nothing at all: both end in the time of a handshake.
    for first in [&b"garbage"[..], b""] {
        let mut stream = client::tls(&edge, TURN, &[]).await.unwrap();
        stream.write_all(first).await.unwrap();
        timeout(PATIENCE, stream.read_to_end(&mut got)).await.expect("it ends").unwrap();
        event(&edge, "\"reason\":\"no_stun\"");
    }
    // Garbage in place of a record is told by an alert.
    let stream = client::tls(&edge, TURN, &[]).await.unwrap();
    let mut tcp = stream.into_inner().0;
    tcp.write_all(&[23, 3, 3, 0, 40, 1, 2, 3, 4].repeat(12)).await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, tcp.read_to_end(&mut rest)).await.expect("it ends");
    // A TURN client may be silent for as long as a tunnel.
    let mut turn = client::tls(&edge, TURN, &[]).await.unwrap();
    turn.write_all(&BINDING).await.unwrap();
    let mut back = [0; 20];
    turn.read_exact(&mut back).await.unwrap();
    assert!(timeout(Duration::from_millis(1500), turn.read(&mut back)).await.is_err(), "it is still open");
}

#[tokio::test]
async fn limits_hold_and_a_drain_closes() {
    let (origin, _) = echo().await;
    let mut edge = Edge::start(&format!(
        "[timeouts]\ntunnel_idle = \"1s\"\n[limits]\nconnections_per_ip = 2\n{}",
        site(TURN, "tcp", origin.addr())
    ));
    let mut one = client::tls(&edge, TURN, &[]).await.unwrap();
    let mut two = client::tls(&edge, TURN, &[]).await.unwrap();
    assert!(client::tls(&edge, TURN, &[]).await.is_err(), "a third one is over the bound");
    let mut got = Vec::new();
    timeout(PATIENCE, one.read_to_end(&mut got)).await.expect("idle").unwrap();
    timeout(PATIENCE, two.read_to_end(&mut got)).await.expect("idle").unwrap();
    assert_eq!(event(&edge, "tunnel_idle")["ended_by"], "limit");
    let mut three = client::tls(&edge, TURN, &[]).await.unwrap();
    three.write_all(b"x").await.unwrap();
    three.read_exact(&mut [0]).await.unwrap();
    edge.signal("TERM");
    timeout(PATIENCE, three.read_to_end(&mut got)).await.expect("drained").unwrap();
    assert!(edge.wait().success());
    assert_eq!(event(&edge, "\"reason\":\"drain\"")["site"], TURN);
}

/// A relay that answers every binding request.
async fn relay() -> Origin {
    Origin::talking(|mut stream, _| async move {
        let mut request = [0; 20];
        while stream.read_exact(&mut request).await.is_ok() {
            let answer = [&[1, 1, 0, 0][..], &request[4..]].concat();
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_looks_for_the_relay_inside_tls() {
    let (relay, (other, _)) = (relay().await, echo().await);
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (addr, id, verdict) in
        [(relay.addr(), "rtc.turn", "ok"), (dead, "rtc.turn.down", "fail"), (other.addr(), "rtc.turn.silent", "fail")]
    {
        let edge = Edge::start(&site(TURN, "turn", addr));
        let resolve = format!("*:443:{}", edge.https());
        let plain = format!("*:80:{}", edge.http());
        let output = edge.command(&["doctor", "--json", "--resolve", &resolve, "--resolve", &plain]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["id"].as_str().unwrap().starts_with("rtc.turn")).unwrap();
        assert_eq!((found["id"].as_str(), found["verdict"].as_str()), (Some(id), Some(verdict)), "{report:#}");
    }
}

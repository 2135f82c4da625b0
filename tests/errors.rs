//! Answers that the edge makes itself: the status, and a form that its reader understands.

use std::time::{Duration, Instant};

use crate::support::{Client, Edge, Origin};

const HOST: &str = "a.example.org";

#[tokio::test]
async fn the_form_of_an_error_follows_its_reader() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let upstream = format!("{{ servers = [\"http://{dead}\"], retry_connect = \"100ms\" }}");
    let edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = {upstream}\n"));
    let mut client = Client::tls(&edge, HOST).await;
    for (target, accept, kind) in [
        ("/_matrix/x", "text/html", "application/json"),
        ("/", "text/html,*/*;q=0.8", "text/html; charset=utf-8"),
        ("/", "*/*", "text/plain; charset=utf-8"),
    ] {
        let answer = client.ask(&format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\nAccept: {accept}\r\n\r\n")).await;
        assert_eq!((answer.status, answer.field("content-type").as_deref()), (502, Some(kind)));
        let id = answer.field("x-request-id").unwrap();
        assert!(answer.text().contains(&id), "{}", answer.text());
        assert_eq!(answer.field("access-control-allow-origin").as_deref(), Some("*"));
    }
    let matrix = client.get(HOST, "/_matrix/x").await;
    assert_eq!(matrix.json()["errcode"], "M_UNKNOWN");
    let head = client.ask(&format!("HEAD / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    assert_eq!(head.status, 502);
}

#[tokio::test]
async fn every_failure_of_a_service_has_its_status() {
    for (bytes, status) in [
        (&b""[..], 502),
        (b"nonsense\r\n\r\n", 502),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", 502),
        (b"HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n", 418),
    ] {
        let upstream = Origin::answering(move |_| bytes.to_vec()).await;
        let edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()));
        let answer = Client::tls(&edge, HOST).await.get(HOST, "/").await;
        assert_eq!(answer.status, status, "{}", String::from_utf8_lossy(bytes));
    }
}

#[tokio::test]
async fn a_service_that_says_nothing_is_given_up() {
    let upstream = Origin::talking(|stream, _| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    })
    .await;
    let table = format!("{{ servers = [\"{}\"], response_timeout = \"300ms\" }}", upstream.url());
    let edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = {table}\n"));
    let began = Instant::now();
    assert_eq!(Client::tls(&edge, HOST).await.get(HOST, "/").await.status, 504);
    assert!(began.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_host_that_the_connection_is_not_for_is_misdirected() {
    let upstream = Origin::echoing_targets().await;
    let edge = Edge::start(&format!(
        "[sites.\"{HOST}\"]\nupstream = \"{0}\"\n[sites.\"b.example.org\"]\nupstream = \"{0}\"\n",
        upstream.url()
    ));
    for host in ["b.example.org", "unknown.example.org"] {
        assert_eq!(Client::tls(&edge, HOST).await.get(host, "/").await.status, 421);
    }
    assert_eq!(upstream.seen().len(), 0);
}

#[tokio::test]
async fn methods_that_are_not_for_an_origin_are_refused() {
    let upstream = Origin::echoing_targets().await;
    let edge = Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()));
    for line in ["CONNECT a.example.org:443", "TRACE /"] {
        let answer = Client::tls(&edge, HOST).await.ask(&format!("{line} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        assert_eq!(answer.status, 405, "{line}");
        assert!(answer.field("allow").is_some());
    }
    assert_eq!(upstream.seen().len(), 0);
}

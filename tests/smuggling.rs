//! Nothing ambiguous gets through: what two readers could take differently is a 400, and the connection ends.

use crate::support::{Client, Edge, Origin};

const HOST: &str = "a.example.org";

async fn edge(more: &str) -> (Edge, Origin) {
    let upstream = Origin::echoing_targets().await;
    let edge = Edge::start(&format!("{more}\n[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()));
    (edge, upstream)
}

#[tokio::test]
async fn ambiguous_requests_are_refused_and_nothing_behind_them_is_parsed() {
    let (edge, upstream) = edge("").await;
    let smuggled = format!("GET /smuggled HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    for head in [
        "POST / HTTP/1.1\r\nHost: H\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: H\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: H\r\nContent-Length: +5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: H\r\nContent-Length: 5, 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: H\r\nX: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\nHost: H\n\n",
        "GET / HTTP/1.1\r\nHost: H\r\nX: a\nY: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: H\r\nX: a\rb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: H\r\nX: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: H\r\nHost: H\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: H\r\nHost: other\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET http://other/ HTTP/1.1\r\nHost: H\r\n\r\n",
        "GET a HTTP/1.1\r\nHost: H\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: H\r\n\r\n",
        "GET /#x HTTP/1.1\r\nHost: H\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: H\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: H\r\n\r\n",
        "GET / HTTP/3.0\r\nHost: H\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: H\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let head = head.replace("Host: H", &format!("Host: {HOST}"));
        let mut client = Client::tls(&edge, HOST).await;
        let answer = client.ask(&format!("{head}{smuggled}")).await;
        assert_eq!(answer.status, 400, "{head:?}");
        assert!(client.ends().await, "{head:?}");
    }
    assert_eq!(upstream.seen(), Vec::<String>::new());
}

#[tokio::test]
async fn broken_chunks_never_become_a_request() {
    let (edge, upstream) = edge("").await;
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloGET /smuggled HTTP/1.1\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
    ] {
        let mut client = Client::tls(&edge, HOST).await;
        let request = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        let answer = client.ask(&format!("{request}GET /smuggled HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        assert_eq!(answer.status, 400, "{body:?}");
        assert!(client.ends().await);
    }
    assert!(upstream.seen().iter().all(|seen| !seen.starts_with("GET /smuggled")));
}

#[tokio::test]
async fn limits_have_their_statuses() {
    let (edge, upstream) =
        edge("[limits]\nheader_bytes = \"4KiB\"\nheader_count = 20\nrequest_target = \"2KiB\"").await;
    for (request, status) in [
        (format!("GET /{} HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "a".repeat(2_100)), 414),
        (format!("GET /{} HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "a".repeat(100_000)), 414),
        (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: {}\r\n\r\n", "a".repeat(5_000)), 431),
        (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: {}\r\n\r\n", "a".repeat(500_000)), 431),
        (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{}\r\n", "A: b\r\n".repeat(20)), 431),
    ] {
        let answer = Client::tls(&edge, HOST).await.ask(&request).await;
        assert_eq!(answer.status, status, "{}", &request[..50]);
    }
    assert_eq!(upstream.seen().len(), 0);
}

#[tokio::test]
async fn slow_heads_are_told_and_idle_connections_end() {
    let (edge, _upstream) = edge("[timeouts]\nheader = \"300ms\"\nkeep_alive = \"400ms\"").await;
    let mut slow = Client::tls(&edge, HOST).await;
    slow.send("GET / HTTP/1.1\r\nHost: ").await;
    assert_eq!(slow.answer(false).await.status, 408);
    assert!(slow.ends().await);
    let mut idle = Client::tls(&edge, HOST).await;
    assert_eq!(idle.get(HOST, "/").await.status, 200);
    assert!(idle.ends().await);
    let mut mute = Client::plain(edge.https()).await;
    assert!(mute.read_answer(false).await.is_none(), "a handshake that never comes ends");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (edge, _upstream) = edge("").await;
    let mut client = Client::tls(&edge, HOST).await;
    let requests: String = (0..20).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).collect();
    client.send(requests).await;
    for n in 0..20 {
        assert_eq!(client.answer(false).await.text(), format!("/{n}"));
    }
}

#[tokio::test]
async fn connections_are_bounded_per_address() {
    let (edge, _upstream) = edge("[limits]\nconnections_per_ip = 2").await;
    let mut first = Client::tls(&edge, HOST).await;
    let _second = Client::tls(&edge, HOST).await;
    assert!(crate::support::client::tls(&edge, HOST, &["http/1.1"]).await.is_err());
    assert_eq!(first.get(HOST, "/").await.status, 200, "those who are in stay in");
}

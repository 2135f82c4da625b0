//! Request bodies: responses that come before their end, bodies without a length, and refusals that reach their client.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{Client, Edge, Origin, client, origin};

const HOST: &str = "a.example.org";

fn site(url: &str) -> String {
    format!("[sites.\"{HOST}\"]\nupstream = \"{url}\"\n")
}

/// Reads a head and 10,000 bytes of its body, answers, and counts what comes after that.
async fn early(answer: &'static str, arrived: Arc<AtomicUsize>) -> Origin {
    Origin::talking(move |mut stream: TcpStream, _| {
        let arrived = arrived.clone();
        async move {
            let mut bytes = Vec::new();
            let body = loop {
                if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                    return;
                }
                if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                    break at + 4;
                }
            };
            let mut count = bytes.len() - body;
            let mut buf = vec![0; 16 * 1024];
            while count < 10_000 {
                count += stream.read(&mut buf).await.unwrap();
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            arrived.fetch_add(count, Ordering::SeqCst);
            while let Ok(n @ 1..) = stream.read(&mut buf).await {
                arrived.fetch_add(n, Ordering::SeqCst);
            }
        }
    })
    .await
}

async fn becomes(count: &AtomicUsize, wanted: usize) -> bool {
    let until = Instant::now() + Duration::from_secs(5);
    while count.load(Ordering::SeqCst) != wanted {
        if Instant::now() > until {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

#[tokio::test]
async fn an_early_success_does_not_end_the_upload() {
    for (answer, body) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly", "early"),
        (
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n0\r\n\r\n",
            "early",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""),
        ("HTTP/1.1 204 No Content\r\n\r\n", ""),
    ] {
        let arrived = Arc::new(AtomicUsize::new(0));
        let upstream = early(answer, arrived.clone()).await;
        let edge = Edge::start(&site(&upstream.url()));
        let mut client = Client::tls(&edge, HOST).await;
        client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 200000\r\n\r\n")).await;
        client.send(vec![b'x'; 20_000]).await;
        // All of the response is here before the rest of the request has been written; of one without a length, all but its
        // end.
        if answer.contains("chunked") {
            tokio::time::sleep(Duration::from_millis(300)).await;
            client.send(vec![b'x'; 180_000]).await;
            assert_eq!(client.read_answer(false).await.unwrap().text(), body);
        } else {
            assert_eq!(client.read_answer(false).await.unwrap().text(), body);
            client.send(vec![b'x'; 180_000]).await;
        }
        let all = becomes(&arrived, 200_000).await;
        assert!(all, "{} of 200000 bytes arrived: {answer}", arrived.load(Ordering::SeqCst));
    }
}

#[tokio::test]
async fn an_early_success_does_not_end_the_upload_over_http2() {
    let arrived = Arc::new(AtomicUsize::new(0));
    let upstream = early("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly", arrived.clone()).await;
    let edge = Edge::start(&site(&upstream.url()));
    let io = client::tls(&edge, HOST, &["h2"]).await.unwrap();
    let (send, connection) = h2::client::handshake(io).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    tokio::spawn(connection);
    let request = http::Request::post(format!("https://{HOST}/")).header("content-length", "200000").body(()).unwrap();
    let (answer, mut body) = send.ready().await.unwrap().send_request(request, false).unwrap();
    let mut left = 200_000;
    let mut answer = Some(answer);
    while left > 0 {
        body.reserve_capacity(left.min(20_000));
        let room = std::future::poll_fn(|cx| body.poll_capacity(cx)).await.unwrap().unwrap();
        let now = room.min(left);
        left -= now;
        body.send_data(vec![b'x'; now].into(), left == 0).unwrap();
        if let Some(answer) = answer.take() {
            assert_eq!(answer.await.unwrap().status(), 200);
        }
    }
    assert!(becomes(&arrived, 200_000).await, "{} bytes arrived", arrived.load(Ordering::SeqCst));
}

#[tokio::test]
async fn an_error_and_a_close_end_the_upload() {
    for answer in [
        "HTTP/1.1 413 Payload Too Large\r\nContent-Length: 5\r\n\r\nearly",
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nearly",
    ] {
        let arrived = Arc::new(AtomicUsize::new(0));
        let upstream = early(answer, arrived.clone()).await;
        let edge = Edge::start(&site(&upstream.url()));
        let mut client = Client::tls(&edge, HOST).await;
        client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 200000\r\n\r\n")).await;
        client.send(vec![b'x'; 20_000]).await;
        assert_eq!(client.read_answer(false).await.unwrap().text(), "early");
        client.send(vec![b'x'; 180_000]).await;
        assert!(client.ends().await);
        assert!(arrived.load(Ordering::SeqCst) < 200_000, "{answer}");
    }
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_writes_everything_first() {
    const SIZE: usize = 48 << 20;
    let upstream = Origin::answering(|_| origin::ok("")).await;
    let edge = Edge::start(&format!("{}max_body = \"1KiB\"\n", site(&upstream.url())));
    // More than any buffer on the way holds, and for longer than a farewell.
    let mut client = Client::tls(&edge, HOST).await;
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {SIZE}\r\n\r\n")).await;
    let piece = vec![b'x'; SIZE / 6];
    for _ in 0..6 {
        client.send(&piece).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let answer = client.read_answer(false).await.expect("the refusal is not lost to a reset");
    assert_eq!((answer.status, answer.field("connection").as_deref()), (413, Some("close")));
}

#[tokio::test]
async fn a_client_that_only_drips_after_its_refusal_is_not_kept() {
    let upstream = Origin::answering(|_| origin::ok("")).await;
    let edge = Edge::start(&format!("{}max_body = \"1KiB\"\n", site(&upstream.url())));
    let mut client = Client::tls(&edge, HOST).await;
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000\r\n\r\n")).await;
    let began = Instant::now();
    while client.io.write_all(b"x").await.is_ok() && client.io.flush().await.is_ok() {
        assert!(began.elapsed() < Duration::from_secs(12), "it is still read");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_short_upload_without_a_length_is_given_one_for_synapse() {
    let synapse = Origin::answering(|_| origin::answer("200 OK", &[("content-type", "application/json")], "{}")).await;
    let edge = Edge::start(&format!(
        "[matrix]\nserver_name = \"{HOST}\"\n[sites.\"{HOST}\"]\nkind = \"synapse\"\nupstream = \"{}\"\n",
        synapse.url()
    ));
    let post = "POST /_matrix/client/v3/login HTTP/1.1\r\n";
    let chunk = |len: usize| format!("{len:x}\r\n{}\r\n", "x".repeat(len));
    for (chunks, length) in [(&[][..], 0), (&[5, 7], 12), (&[40_000, 25_536], 65_536)] {
        let body: String = chunks.iter().map(|len| chunk(*len)).collect();
        let mut client = Client::tls(&edge, HOST).await;
        let answer = client
            .ask(&format!(
                "{post}Host: {HOST}\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n{body}0\r\n\r\n"
            ))
            .await;
        assert_eq!(answer.status, 200, "{length}");
        let seen = synapse.seen().pop().unwrap().to_lowercase();
        assert!(seen.contains(&format!("\r\ncontent-length: {length}\r\n")), "{}", &seen[..400.min(seen.len())]);
        assert!(!seen.contains("transfer-encoding") && !seen.contains("expect"));
        assert_eq!(seen.matches('x').count() - seen.split("\r\n\r\n").next().unwrap().matches('x').count(), length);
    }
    let before = synapse.seen().len();
    let long = format!("{post}Host: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n{}{}", chunk(65_536), chunk(1));
    let answer = Client::tls(&edge, HOST).await.ask(&long).await;
    assert_eq!((answer.status, synapse.seen().len()), (411, before));
}

#[tokio::test]
async fn who_is_refused_is_logged_once_with_the_reason() {
    let upstream = Origin::answering(|_| origin::ok("")).await;
    let edge = Edge::with(
        "proxy_protocol = [\"127.0.0.1\"]",
        &format!("[limits]\nconnections_per_ip = 2\n{}tls = \"off\"\n", site(&upstream.url())),
    );
    let connect = async |client: &str| {
        let mut io = Client::plain(edge.http()).await;
        io.send(format!("PROXY TCP4 {client} 10.0.0.1 4660 80\r\n")).await;
        io
    };
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = connect("203.0.113.9").await;
        assert_eq!(client.get(HOST, "/").await.status, 200);
        held.push(client);
    }
    for _ in 0..3 {
        assert!(connect("203.0.113.9").await.ends().await, "the client of the header is counted");
    }
    let mut other = connect("203.0.113.10").await;
    assert_eq!(other.get(HOST, "/").await.status, 200, "and not the balancer");
    let line = edge.wait_for_log("the limit is reached");
    assert!(line.contains("203.0.113.9") && line.contains("limits.connections_per_ip"), "{line}");
    assert_eq!(edge.log().matches("the limit is reached").count(), 1);
    held.clear();
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let mut again = connect("203.0.113.9").await;
        again.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        if again.read_answer(false).await.is_some_and(|answer| answer.status == 200) {
            break;
        }
        assert!(Instant::now() < until, "the places come back");
    }
}

#[tokio::test]
async fn a_refused_handshake_is_logged_with_its_reason_once_a_minute() {
    let upstream = Origin::answering(|_| origin::ok("")).await;
    let edge = Edge::start(&site(&upstream.url()));
    for _ in 0..5 {
        assert!(client::tls(&edge, "unknown.example.org", &["http/1.1"]).await.is_err());
    }
    let line = edge.wait_for_log("TLS handshake refused");
    assert!(line.contains("\"level\":\"INFO\"") && line.contains("unknown.example.org"), "{line}");
    assert!(line.contains("\"client\":\"127.0.0.1\""), "{line}");
    assert_eq!(edge.log().matches("TLS handshake refused").count(), 1);
}

#[tokio::test]
async fn an_endless_redirect_is_explained_once() {
    let upstream = Origin::answering(|_| origin::ok("")).await;
    let edge = Edge::start(&site(&upstream.url()));
    let plain = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    assert_eq!(Client::plain(edge.http()).await.ask(&plain).await.status, 308);
    assert!(!edge.log().contains("trusted_proxies"), "a plain redirect is nothing to explain");
    for proto in ["https", "HTTPS", "wss, http"] {
        let looping = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Forwarded-Proto: {proto}\r\n\r\n");
        assert_eq!(Client::plain(edge.http()).await.ask(&looping).await.status, 308);
    }
    let line = edge.wait_for_log("listen.trusted_proxies");
    assert!(line.contains("\"client\":\"127.0.0.1\"") && line.contains("\"level\":\"WARN\""), "{line}");
    assert_eq!(edge.log().matches("without end").count(), 1);
}

//! Back-pressure: what one side does not take, the other is not asked for, and the edge keeps next to nothing of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::support::{Client, Edge, Origin, client, origin};

const HOST: &str = "a.example.org";

/// What may be on its way through four sockets whose buffers the kernel sizes (up to 6 MiB each here), and our own.
const ON_THE_WAY: usize = 40 << 20;

/// What of it may be in the edge.
const HELD: usize = 12 << 20;

fn edge(upstream: &Origin, more: &str) -> Edge {
    Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n{more}\n", upstream.url()))
}

/// Waits until a count stays what it is.
async fn settled(count: &AtomicUsize) -> usize {
    let mut before = usize::MAX;
    loop {
        sleep(Duration::from_millis(400)).await;
        let now = count.load(Ordering::Relaxed);
        if now == before && now > 0 {
            return now;
        }
        before = now;
    }
}

async fn h2_client(edge: &Edge) -> h2::client::SendRequest<Bytes> {
    let io = client::tls(edge, HOST, &["h2"]).await.unwrap();
    let (send, connection) = h2::client::handshake(io).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "ends with the connection")]
    tokio::spawn(connection);
    send.ready().await.unwrap()
}

#[tokio::test]
async fn a_gigabyte_that_nobody_reads_stays_where_it_is() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let upstream = Origin::talking(move |mut stream: TcpStream, _| {
        let count = count.clone();
        async move {
            origin::read_request(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n").await.unwrap();
            let piece = vec![b'x'; 65_536];
            while stream.write_all(&piece).await.is_ok() {
                count.fetch_add(piece.len(), Ordering::Relaxed);
            }
        }
    })
    .await;
    let edge = edge(&upstream, "");
    let before = edge.resident();
    let mut reader = Client::tls(&edge, HOST).await;
    reader.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    let over_h1 = settled(&sent).await;
    assert!(over_h1 < ON_THE_WAY, "{over_h1} bytes were taken from the service");
    let mut send = h2_client(&edge).await;
    let request = http::Request::get(format!("https://{HOST}/")).body(()).unwrap();
    let answer = send.send_request(request, true).unwrap().0.await.unwrap();
    let over_h2 = settled(&sent).await - over_h1;
    assert!(over_h2 < ON_THE_WAY, "{over_h2} bytes were taken from the service");
    let held = edge.resident().saturating_sub(before);
    assert!(held < HELD, "{held} bytes are held");
    drop(answer);
}

#[tokio::test]
async fn an_upload_that_nobody_takes_waits_at_its_client() {
    let upstream = Origin::talking(|stream: TcpStream, _| async move {
        // Never reads.
        sleep(Duration::from_secs(60)).await;
        drop(stream);
    })
    .await;
    let edge = edge(&upstream, "");
    let before = edge.resident();
    let mut client = Client::tls(&edge, HOST).await;
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1073741824\r\n\r\n")).await;
    let piece = vec![b'x'; 65_536];
    let mut written = 0;
    while let Ok(done) = timeout(Duration::from_secs(1), client.io.write_all(&piece)).await {
        done.unwrap();
        written += piece.len();
        assert!(written < ON_THE_WAY, "{written} bytes were taken from the client");
    }
    let mut send = h2_client(&edge).await;
    let request = http::Request::post(format!("https://{HOST}/")).body(()).unwrap();
    let (_answer, mut stream) = send.send_request(request, false).unwrap();
    let mut written = 0;
    loop {
        stream.reserve_capacity(65_536);
        let room = timeout(Duration::from_secs(1), std::future::poll_fn(|cx| stream.poll_capacity(cx))).await;
        let Ok(room) = room else { break };
        let room = room.unwrap().unwrap().min(piece.len());
        stream.send_data(Bytes::from(vec![b'x'; room]), false).unwrap();
        written += room;
        assert!(written < ON_THE_WAY, "{written} bytes were taken from the client");
    }
    let held = edge.resident().saturating_sub(before);
    assert!(held < HELD, "{held} bytes are held");
}

#[tokio::test]
async fn an_early_refusal_reaches_a_client_of_http2_that_still_writes() {
    let upstream = Origin::talking(|mut stream: TcpStream, _| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let refusal = origin::answer("413 Payload Too Large", &[("connection", "close")], "too large");
        let _ = stream.write_all(&refusal).await;
        let _ = stream.shutdown().await;
    })
    .await;
    let edge = edge(&upstream, "");
    let mut send = h2_client(&edge).await;
    let request = http::Request::post(format!("https://{HOST}/")).body(()).unwrap();
    let (answer, mut stream) = send.send_request(request, false).unwrap();
    stream.send_data(Bytes::from(vec![b'x'; 60_000]), false).unwrap();
    let answer = timeout(Duration::from_secs(10), answer).await.expect("at once").unwrap();
    assert_eq!(answer.status(), 413);
    let mut body = answer.into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "too large");
    // It is told to stop, and not that it did wrong (RFC 9113 section 8.1).
    let reset = timeout(Duration::from_secs(10), std::future::poll_fn(|cx| stream.poll_reset(cx))).await;
    assert_eq!(reset.expect("in time").unwrap(), h2::Reason::NO_ERROR);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_or_cut_where_it_passes_it() {
    let upstream = Origin::answering(|request| origin::ok(&request.len().to_string())).await;
    let edge = edge(&upstream, "max_body = \"1KiB\"");
    let post = |framing: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n\r\n{body}");
    let whole = "x".repeat(1024);
    let mut client = Client::tls(&edge, HOST).await;
    assert_eq!(client.ask(&post("Content-Length: 1024", &whole)).await.status, 200);
    let chunked = |body: &str| format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    assert_eq!(client.ask(&post("Transfer-Encoding: chunked", &chunked(&whole))).await.status, 200);
    for request in [
        post("Content-Length: 1025", ""),
        post("Content-Length: 1025\r\nExpect: 100-continue", ""),
        post("Transfer-Encoding: chunked", &chunked(&format!("{whole}x"))),
    ] {
        let mut client = Client::tls(&edge, HOST).await;
        client.send(request).await;
        let first = client.read_answer(false).await.unwrap();
        assert_eq!((first.status, first.field("connection").as_deref()), (413, Some("close")));
        assert!(client.ends().await);
    }
    assert_eq!(upstream.seen().len(), 2, "no whole request went on that was over the limit");
}

//! Bodies stream both ways, cuts are cuts, and whoever leaves takes the other side along.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
};

use crate::support::{Client, Edge, Origin, origin};

const HOST: &str = "a.example.org";

async fn edge(origin: &Origin) -> Edge {
    Edge::start(&format!("[sites.\"{HOST}\"]\nupstream = \"{}\"\n", origin.url()))
}

#[tokio::test]
async fn a_part_of_an_answer_arrives_when_it_is_there() {
    for (coding, accept) in [(false, "identity"), (true, "gzip")] {
        let next = Arc::new(Notify::new());
        let step = next.clone();
        let upstream = Origin::talking(move |mut stream: TcpStream, _| {
            let step = step.clone();
            async move {
                origin::read_request(&mut stream).await;
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n";
                stream.write_all(head.as_bytes()).await.unwrap();
                loop {
                    step.notified().await;
                    if stream.write_all(b"1a\r\n26 bytes of a slow stream\n\r\n").await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        let edge = edge(&upstream).await;
        let mut client = Client::tls(&edge, HOST).await;
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nAccept-Encoding: {accept}\r\n\r\n")).await;
        let mut slowest = Duration::ZERO;
        let mut buf = vec![0; 4096];
        let head = client.io.read(&mut buf).await.unwrap();
        let head = String::from_utf8_lossy(&buf[..head]).into_owned();
        assert!(head.starts_with("HTTP/1.1 200"), "the head does not wait for the body: {head}");
        assert_eq!(head.contains("content-encoding: gzip"), coding);
        for _ in 0..10 {
            let began = Instant::now();
            next.notify_one();
            assert!(client.io.read(&mut buf).await.unwrap() > 0);
            slowest = slowest.max(began.elapsed());
        }
        assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_upstream_is_cut_downstream() {
    for head in ["Content-Length: 100", "Transfer-Encoding: chunked"] {
        let upstream = Origin::answering(move |request| {
            if request.contains("/next") {
                return Vec::new();
            }
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{head}\r\n\r\n5\r\nhello\r\n").into_bytes()
        })
        .await;
        let closing = Origin::talking({
            let url = upstream.addr();
            move |mut stream, _| async move {
                origin::read_request(&mut stream).await;
                let mut inner = TcpStream::connect(url).await.unwrap();
                inner.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
                let mut buf = vec![0; 4096];
                let n = inner.read(&mut buf).await.unwrap();
                stream.write_all(&buf[..n]).await.unwrap();
            }
        })
        .await;
        let edge = edge(&closing).await;
        for accept in ["identity", "zstd", "gzip", "br"] {
            let mut client = Client::tls(&edge, HOST).await;
            client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nAccept-Encoding: {accept}\r\n\r\n")).await;
            let mut all = Vec::new();
            let ended = client.io.read_to_end(&mut all).await;
            assert!(ended.is_err(), "no close_notify: {head} {accept}");
            assert!(!all.ends_with(b"0\r\n\r\n"), "{head} {accept}");
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_request() {
    let gone = Arc::new(Notify::new());
    let told = gone.clone();
    let upstream = Origin::talking(move |mut stream, _| {
        let told = told.clone();
        async move {
            origin::read_request(&mut stream).await;
            let mut rest = [0; 1];
            let _ = stream.read(&mut rest).await;
            told.notify_one();
        }
    })
    .await;
    let edge = edge(&upstream).await;
    let mut client = Client::tls(&edge, HOST).await;
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(client);
    tokio::time::timeout(Duration::from_secs(1), gone.notified())
        .await
        .expect("the upstream hears of it within a second");
    assert!(edge.wait_for_log("\"status\":499").contains("client_gone"));
}

#[tokio::test]
async fn uploads_keep_their_length_and_every_byte() {
    let body: String = (0..3_000_000).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
    let upstream = Origin::answering(|request| origin::ok(&request.len().to_string())).await;
    let edge = edge(&upstream).await;
    let mut client = Client::tls(&edge, HOST).await;
    let head = format!("POST /up HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n", body.len());
    assert_eq!(client.ask(&format!("{head}{body}")).await.status, 200);
    let seen = upstream.seen().remove(0);
    assert!(seen.ends_with(&body) && seen.to_lowercase().contains("content-length: 3000000"));
    assert!(!seen.to_lowercase().contains("transfer-encoding"));
    let chunked = client
        .ask(&format!(
            "POST /up HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"
        ))
        .await;
    assert_eq!(chunked.status, 200);
    let seen = upstream.seen().remove(1);
    assert!(seen.ends_with("5\r\nhello\r\n0\r\nx-t: 1\r\n\r\n"), "{seen}");
}

#[tokio::test]
async fn a_100_continue_is_asked_of_the_service() {
    let upstream = Origin::talking(|mut stream: TcpStream, seen| async move {
        let mut buf = vec![0; 4096];
        let n = stream.read(&mut buf).await.unwrap();
        seen.lock().unwrap().push(String::from_utf8_lossy(&buf[..n]).into_owned());
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        let n = stream.read(&mut buf).await.unwrap();
        seen.lock().unwrap().push(String::from_utf8_lossy(&buf[..n]).into_owned());
        stream.write_all(&origin::ok("done")).await.unwrap();
    })
    .await;
    let edge = edge(&upstream).await;
    let mut client = Client::tls(&edge, HOST).await;
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")).await;
    assert_eq!(client.read_answer(false).await.unwrap().status, 100);
    client.send("hello").await;
    assert_eq!(client.answer(false).await.text(), "done");
    assert_eq!(upstream.seen()[1], "hello");
}

/// Begins a chunked answer to the first request with `head` before it, notes what arrives meanwhile, and ends the answer
/// when told. Requests after it are answered at once.
async fn answering_early(before: &'static str, end: Arc<Notify>) -> Origin {
    Origin::talking(move |mut stream: TcpStream, seen| {
        let end = end.clone();
        async move {
            let mut buf = vec![0; 4096];
            let n = stream.read(&mut buf).await.unwrap();
            if String::from_utf8_lossy(&buf[..n]).starts_with("GET") {
                stream.write_all(&origin::ok("next")).await.unwrap();
                return;
            }
            let head = format!("{before}HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut ended = false;
            loop {
                tokio::select! {
                    read = stream.read(&mut buf) => match read {
                        Ok(n @ 1..) => seen.lock().unwrap().push(String::from_utf8_lossy(&buf[..n]).into_owned()),
                        _ => return,
                    },
                    () = end.notified(), if !ended => {
                        ended = true;
                        let _ = stream.write_all(b"0\r\n\r\n").await;
                    }
                }
            }
        }
    })
    .await
}

const EXPECTING: &str = "Content-Length: 5\r\nExpect: 100-continue\r\n";

#[tokio::test]
async fn a_body_is_sent_that_was_asked_for_in_one_breath_with_the_answer() {
    let end = Arc::new(Notify::new());
    let upstream = answering_early("HTTP/1.1 100 Continue\r\n\r\n", end.clone()).await;
    let edge = edge(&upstream).await;
    let mut client = Client::tls(&edge, HOST).await;
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{EXPECTING}\r\n")).await;
    // No 100 may stand in the middle of the answer.
    tokio::time::sleep(Duration::from_millis(200)).await;
    client.send("hello").await;
    until(|| upstream.seen().concat() == "hello").await;
    end.notify_one();
    let answer = client.answer(false).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "a"));
}

#[tokio::test]
async fn a_connection_that_owes_a_body_is_not_used_again() {
    let end = Arc::new(Notify::new());
    let upstream = answering_early("", end.clone()).await;
    let edge = edge(&upstream).await;
    let mut client = Client::tls(&edge, HOST).await;
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{EXPECTING}\r\n")).await;
    // Longer than a body is held back for a 100.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    end.notify_one();
    assert_eq!(client.answer(false).await.text(), "a");
    // Each worker has connections of its own: often enough for all of them.
    for _ in 0..8 {
        assert_eq!(Client::tls(&edge, HOST).await.get(HOST, "/next").await.text(), "next");
    }
    assert_eq!(upstream.seen().concat(), "");
}

#[tokio::test]
async fn an_upload_that_is_cut_beside_its_answer_never_ends_cleanly() {
    let end = Arc::new(Notify::new());
    let upstream = answering_early("", end.clone()).await;
    let edge = edge(&upstream).await;
    let mut client = Client::tls(&edge, HOST).await;
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    client.send("5\r\nhello\r\n").await;
    until(|| upstream.seen().concat().contains("hello")).await;
    client.send("nonsense\r\n").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    end.notify_one();
    assert_eq!(client.answer(false).await.text(), "a");
    assert_eq!(upstream.seen().concat(), "5\r\nhello\r\n");
}

/// Waits for something that becomes true.
async fn until(is: impl Fn() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < Duration::from_secs(10), "it never comes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn early_hints_pass() {
    let upstream = Origin::answering(|_| {
        [b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".as_slice(), &origin::ok("end")].concat()
    })
    .await;
    let edge = edge(&upstream).await;
    let mut client = Client::tls(&edge, HOST).await;
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    let hints = client.read_answer(false).await.unwrap();
    assert_eq!((hints.status, hints.field("link").as_deref()), (103, Some("</a>")));
    assert_eq!(client.answer(false).await.text(), "end");
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_still_writes() {
    let read = Arc::new(Mutex::new(0));
    let counted = read.clone();
    let upstream = Origin::talking(move |mut stream: TcpStream, _| {
        let counted = counted.clone();
        async move {
            let mut buf = vec![0; 4096];
            let _ = stream.read(&mut buf).await;
            stream
                .write_all(&origin::answer("413 Payload Too Large", &[("connection", "close")], "too large"))
                .await
                .unwrap();
            stream.shutdown().await.unwrap();
            while let Ok(n @ 1..) = stream.read(&mut buf).await {
                *counted.lock().unwrap() += n;
            }
        }
    })
    .await;
    let edge = edge(&upstream).await;
    let mut client = Client::tls(&edge, HOST).await;
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 50000000\r\n\r\n")).await;
    // Half a megabyte and then a request in disguise, which must never be taken for one.
    client.send(vec![b'x'; 500_000]).await;
    client.send(format!("GET /smuggled HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    let answer = client.answer(false).await;
    assert_eq!(
        (answer.status, answer.text().as_str(), answer.field("connection").as_deref()),
        (413, "too large", Some("close"))
    );
    assert!(client.ends().await);
    assert_eq!(upstream.connections(), 1);
    assert!(*read.lock().unwrap() < 5_000_000, "the upload was cancelled");
}

#[tokio::test]
async fn an_upload_that_stalls_is_told() {
    let upstream = Origin::echoing_targets().await;
    let edge = Edge::start(&format!(
        "[timeouts]\nbody_stall = \"300ms\"\n[sites.\"{HOST}\"]\nupstream = \"{}\"\n",
        upstream.url()
    ));
    let mut client = Client::tls(&edge, HOST).await;
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10\r\n\r\nhello")).await;
    assert_eq!(client.answer(false).await.status, 408);
    assert!(client.ends().await);
}

#[tokio::test]
async fn a_reader_that_stalls_is_cut_and_its_upstream_with_it() {
    let upstream = Origin::talking(|mut stream: TcpStream, seen| async move {
        origin::read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await.unwrap();
        let piece = vec![b'x'; 65_536];
        while stream.write_all(&piece).await.is_ok() {}
        seen.lock().unwrap().push("cut".into());
    })
    .await;
    let edge = Edge::start(&format!(
        "[timeouts]\nbody_stall = \"400ms\"\n[sites.\"{HOST}\"]\nupstream = \"{}\"\n",
        upstream.url()
    ));
    let mut client = Client::tls(&edge, HOST).await;
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    let until = Instant::now() + Duration::from_secs(10);
    while upstream.seen().is_empty() {
        assert!(Instant::now() < until, "the stalled download goes on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// An event, half a second of silence, and another one.
async fn events() -> Origin {
    Origin::talking(|mut stream: TcpStream, _| async move {
        origin::read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(700)).await;
        // Fails where the edge has left.
        let _ = stream.write_all(b"data: 2\n\n").await;
    })
    .await
}

#[tokio::test]
async fn a_route_says_how_long_a_body_may_stand_still() {
    let upstream = events().await;
    let (site, url) = (HOST, upstream.url());
    let edge = Edge::start(&format!(
        "[timeouts]\nbody_stall = \"200ms\"\n[sites.\"{site}\"]\nupstream = \"{url}\"\n\
         [sites.\"{site}\".routes]\n\"/events\" = {{ upstream = \"{url}\", body_stall = \"off\" }}\n\
         \"/patient\" = {{ upstream = \"{url}\", body_stall = \"30s\" }}\n"
    ));
    for (path, events) in [("/events", 2), ("/patient", 2), ("/", 1)] {
        let mut client = Client::tls(&edge, HOST).await;
        let seen = client_reads_all(&mut client, path).await;
        assert_eq!(seen.matches("data:").count(), events, "{path}: {seen}");
    }
    let edge = Edge::start(&format!("[sites.\"{site}\"]\nupstream = \"{url}\"\nbody_stall = \"200ms\"\n"));
    let mut client = Client::tls(&edge, HOST).await;
    assert_eq!(client_reads_all(&mut client, "/").await.matches("data:").count(), 1);
}

async fn client_reads_all(client: &mut Client<impl AsyncRead + AsyncWrite + Unpin>, path: &str) -> String {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
    let mut seen = Vec::new();
    // A cut answer ends without close_notify.
    let _ = client.io.read_to_end(&mut seen).await;
    String::from_utf8(seen).unwrap()
}

#[tokio::test]
async fn a_client_that_leaves_an_unread_upload_is_noticed() {
    let gone = Arc::new(Notify::new());
    let told = gone.clone();
    let upstream = Origin::talking(move |mut stream, _| {
        let told = told.clone();
        async move {
            let mut head = [0; 64];
            stream.read_exact(&mut head).await.unwrap();
            // Takes nothing more, and hears nothing but the end.
            let until = Instant::now() + Duration::from_secs(20);
            while Instant::now() < until && stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            told.notify_one();
        }
    })
    .await;
    let edge = edge(&upstream).await;
    let mut client = Client::tls(&edge, HOST).await;
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 500000000\r\n\r\n")).await;
    // Until everything on the way to the service is full.
    let filling = async {
        loop {
            client.send(vec![b'x'; 65_536]).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(3), filling).await.is_err());
    client.io.get_ref().0.set_zero_linger().unwrap();
    drop(client);
    let began = Instant::now();
    tokio::time::timeout(Duration::from_secs(10), gone.notified()).await.expect("the service hears of it");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

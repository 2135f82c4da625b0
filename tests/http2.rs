//! HTTP/2: the same promises, and connections that cannot be held for nothing.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Client, Edge, Origin, client, origin};

const HOST: &str = "a.example.org";

async fn edge(upstream: &Origin, more: &str) -> Edge {
    Edge::start(&format!("{more}\n[sites.\"{HOST}\"]\nupstream = \"{}\"\n", upstream.url()))
}

async fn connect(edge: &Edge) -> h2::client::SendRequest<Bytes> {
    let io = client::tls(edge, HOST, &["h2", "http/1.1"]).await.unwrap();
    let (send, connection) = h2::client::handshake(io).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "ends with the connection")]
    tokio::spawn(connection);
    send.ready().await.unwrap()
}

fn get(path: &str) -> http::Request<()> {
    http::Request::get(format!("https://{HOST}{path}")).body(()).unwrap()
}

async fn body(mut stream: h2::RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data.unwrap();
        stream.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    all
}

#[tokio::test]
async fn requests_are_served_side_by_side() {
    let upstream = Origin::echoing_targets().await;
    let edge = edge(&upstream, "").await;
    let mut send = connect(&edge).await;
    let mut answers = Vec::new();
    for n in 0..50 {
        send = send.ready().await.unwrap();
        answers.push(send.send_request(get(&format!("/{n}%2F?x")), true).unwrap().0);
    }
    for (n, answer) in answers.into_iter().enumerate() {
        let answer = answer.await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, http::Version::HTTP_2));
        assert_eq!(body(answer.into_body()).await, format!("/{n}%2F?x").into_bytes());
    }
    let seen = upstream.seen().remove(0).to_lowercase();
    assert!(seen.contains(&format!("host: {HOST}\r\n")) && seen.contains("x-forwarded-proto: https"), "{seen}");
}

#[tokio::test]
async fn cookies_are_joined_and_bodies_keep_their_length() {
    let upstream = Origin::answering(|_| origin::ok("fine")).await;
    let edge = edge(&upstream, "").await;
    let mut send = connect(&edge).await;
    let request = http::Request::post(format!("https://{HOST}/up"))
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("content-length", "5")
        .body(())
        .unwrap();
    let (answer, mut stream) = send.send_request(request, false).unwrap();
    stream.send_data("hello".into(), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
    let seen = upstream.seen().remove(0).to_lowercase();
    assert!(
        seen.contains("cookie: a=1; b=2\r\n") && seen.contains("content-length: 5\r\n") && seen.ends_with("hello"),
        "{seen}"
    );
    // Without a length, the body is chunked.
    let mut send = send.ready().await.unwrap();
    let (answer, mut stream) =
        send.send_request(http::Request::post(format!("https://{HOST}/up")).body(()).unwrap(), false).unwrap();
    stream.send_data("hello".into(), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
    assert!(upstream.seen()[1].to_lowercase().contains("transfer-encoding: chunked\r\n"));
}

#[tokio::test]
async fn what_does_not_belong_into_http2_is_refused() {
    let upstream = Origin::echoing_targets().await;
    let edge = edge(&upstream, "").await;
    let mut send = connect(&edge).await;
    let mut request = get("/");
    request.headers_mut().insert("host", "other.example.org".parse().unwrap());
    assert_eq!(send.send_request(request, true).unwrap().0.await.unwrap().status(), 400);
    let other = http::Request::get("https://other.example.org/").body(()).unwrap();
    let mut send = send.ready().await.unwrap();
    assert_eq!(send.send_request(other, true).unwrap().0.await.unwrap().status(), 421);
    assert_eq!(upstream.seen().len(), 0);
}

#[tokio::test]
async fn an_answer_that_is_cut_resets_its_stream_only() {
    let upstream = Origin::talking(|mut stream, _| async move {
        let Some(request) = origin::read_request(&mut stream).await else { return };
        if request.starts_with("GET /cut") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
        } else {
            let _ = stream.write_all(&origin::ok("whole")).await;
        }
    })
    .await;
    let edge = edge(&upstream, "").await;
    let mut send = connect(&edge).await;
    if let Ok(cut) = send.send_request(get("/cut"), true).unwrap().0.await {
        let mut cut = cut.into_body();
        // What came before the cut is there; then it ends badly, and never well.
        loop {
            match cut.data().await {
                Some(Ok(data)) => assert_eq!(data, "half"),
                Some(Err(_)) => break,
                None => panic!("a cut answer ended cleanly"),
            }
        }
    }
    let mut send = send.ready().await.unwrap();
    let whole = send.send_request(get("/whole"), true).unwrap().0.await.unwrap();
    assert_eq!(body(whole.into_body()).await, b"whole");
}

#[tokio::test]
async fn trailers_pass_without_what_a_trailer_may_not_say() {
    let upstream = Origin::answering(|_| {
        let trailers = "grpc-status: 0\r\nconnection: x-hop\r\nx-hop: 1\r\ncontent-length: 9\r\n";
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n{trailers}\r\n").into_bytes()
    })
    .await;
    let edge = edge(&upstream, "").await;
    let mut send = connect(&edge).await;
    let mut answer = send.send_request(get("/"), true).unwrap().0.await.unwrap().into_body();
    assert_eq!(answer.data().await.unwrap().unwrap(), "a");
    assert!(answer.data().await.is_none());
    let trailers = answer.trailers().await.unwrap().unwrap();
    assert_eq!(trailers.keys().map(http::HeaderName::as_str).collect::<Vec<_>>(), ["grpc-status"]);
}

#[tokio::test]
async fn a_stream_that_is_reset_cancels_its_request() {
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let upstream = Origin::talking(move |mut stream, _| {
        let told = told.clone();
        async move {
            origin::read_request(&mut stream).await;
            let _ = stream.read(&mut [0; 1]).await;
            told.send(()).unwrap();
        }
    })
    .await;
    let edge = edge(&upstream, "").await;
    let mut send = connect(&edge).await;
    let (answer, mut stream) = send.send_request(get("/"), false).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    stream.send_reset(h2::Reason::CANCEL);
    drop(answer);
    tokio::time::timeout(Duration::from_secs(1), hears.recv()).await.expect("within a second");
}

#[tokio::test]
async fn an_upload_that_is_reset_never_ends_cleanly() {
    let (tell, mut hears) = tokio::sync::mpsc::channel(1);
    let upstream = Origin::talking(move |mut stream, _| {
        let tell = tell.clone();
        async move {
            let mut all = Vec::new();
            // A connection that is aborted may end in an error; what came before counts.
            while let Ok(1..) = stream.read_buf(&mut all).await {}
            let _ = tell.send(String::from_utf8_lossy(&all).into_owned()).await;
        }
    })
    .await;
    let edge = edge(&upstream, "").await;
    for reason in [h2::Reason::NO_ERROR, h2::Reason::CANCEL] {
        let mut send = connect(&edge).await;
        let post = http::Request::post(format!("https://{HOST}/")).body(()).unwrap();
        let (_answer, mut stream) = send.send_request(post, false).unwrap();
        stream.send_data("half".into(), false).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        stream.send_reset(reason);
        let seen = tokio::time::timeout(Duration::from_secs(5), hears.recv()).await.unwrap().unwrap();
        assert!(seen.ends_with("\r\n\r\n4\r\nhalf\r\n"), "{seen}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_sent_home() {
    let upstream = Origin::echoing_targets().await;
    let edge = edge(&upstream, "[timeouts]\nkeep_alive = \"500ms\"").await;
    let mut io = client::tls(&edge, HOST, &["h2"]).await.unwrap();
    io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let began = Instant::now();
    let mut all = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(15), io.read_to_end(&mut all)).await.expect("it ends");
    assert!(began.elapsed() >= Duration::from_millis(500));
    assert!(all.windows(5).any(|window| window[3] == 7), "a GOAWAY came first");
}

#[tokio::test]
async fn short_requests_now_and_then_keep_a_connection() {
    let upstream = Origin::echoing_targets().await;
    let edge = edge(&upstream, "[timeouts]\nkeep_alive = \"2s\"").await;
    let mut send = connect(&edge).await;
    for _ in 0..10 {
        send = send.ready().await.unwrap();
        assert_eq!(send.send_request(get("/"), true).unwrap().0.await.unwrap().status(), 200);
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
}

#[tokio::test]
async fn a_window_that_never_opens_ends_the_connection() {
    let upstream = Origin::answering(|_| origin::ok(&"x".repeat(1_000))).await;
    let edge = edge(&upstream, "[timeouts]\nbody_stall = \"600ms\"").await;
    for window in [0, 1] {
        let io = client::tls(&edge, HOST, &["h2"]).await.unwrap();
        let (send, connection) =
            h2::client::Builder::new().initial_window_size(window).handshake::<_, Bytes>(io).await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "awaited below")]
        let connection = tokio::spawn(connection);
        let mut send = send.ready().await.unwrap();
        let answer = send.send_request(get("/"), true).unwrap().0.await.unwrap();
        assert_eq!(answer.status(), 200);
        let ended = tokio::time::timeout(Duration::from_secs(10), connection).await;
        ended.expect("the connection ends").unwrap().unwrap_err();
    }
}

#[tokio::test]
async fn floods_end_the_connection_and_nobody_else_notices() {
    let upstream = Origin::echoing_targets().await;
    let edge = edge(&upstream, "").await;
    let ping = b"\0\0\x08\x06\0\0\0\0\0abcdefgh".as_slice();
    let settings = b"\0\0\0\x04\0\0\0\0\0".as_slice();
    // HEADERS on a new stream each, and its RST_STREAM: indexed GET, https, "/", literal authority.
    for (name, frames) in
        [("ping", ping.repeat(20_000)), ("settings", settings.repeat(20_000)), ("reset", resets(2_000))]
    {
        let mut flood = client::tls(&edge, HOST, &["h2"]).await.unwrap();
        flood.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let (mut read, mut write) = tokio::io::split(flood);
        let reading = async { while let Ok(1..) = read.read(&mut [0; 65_536]).await {} };
        let writing = async {
            let _ = write.write_all(&frames).await;
            let _ = write.flush().await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = reading => {}
            () = writing => {}
            () = tokio::time::sleep(Duration::from_secs(15)) => panic!("the {name} flood goes on"),
        }
        let began = Instant::now();
        assert_eq!(Client::tls(&edge, HOST).await.get(HOST, "/").await.status, 200);
        assert!(began.elapsed() < Duration::from_secs(2));
    }
}

fn resets(count: u32) -> Vec<u8> {
    let mut frames = Vec::new();
    for n in 0..count {
        let id = (2 * n + 1).to_be_bytes();
        let mut block = vec![0x82, 0x87, 0x84, 0x41, u8::try_from(HOST.len()).unwrap()];
        block.extend_from_slice(HOST.as_bytes());
        frames.extend_from_slice(&[0, 0, u8::try_from(block.len()).unwrap(), 1, 5]);
        frames.extend_from_slice(&id);
        frames.extend_from_slice(&block);
        frames.extend_from_slice(&[0, 0, 4, 3, 0]);
        frames.extend_from_slice(&id);
        frames.extend_from_slice(&8u32.to_be_bytes());
    }
    frames
}

//! What the edge does to the services behind it: dials, retries, outages, and its own lack of sockets.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::io::AsyncWriteExt as _;

use crate::support::{Client, Edge, Origin, origin};

const HOST: &str = "a.example.org";

fn site(url: &str) -> String {
    format!("[sites.\"{HOST}\"]\nupstream = \"{url}\"\n")
}

/// An address at which nothing listens.
fn nowhere() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn upgrade() -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// Answers one request on each connection, and closes it at the next without a word.
async fn forgetful() -> Origin {
    Origin::talking(|mut stream, seen| async move {
        for n in 0.. {
            let Some(request) = origin::read_request(&mut stream).await else { return };
            seen.lock().unwrap().push(request);
            if n > 0 {
                return;
            }
            stream.write_all(&origin::ok("first")).await.unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn only_what_may_be_done_twice_is_sent_twice() {
    for (method, body, again) in [
        ("GET", "", true),
        ("HEAD", "", true),
        ("OPTIONS", "", true),
        ("DELETE", "", true),
        ("PUT", "", true),
        ("POST", "", false),
        ("PATCH", "", false),
        ("REPORT", "", false),
        ("POST", "x", false),
        ("PUT", "x", false),
    ] {
        let upstream = forgetful().await;
        let edge = Edge::start(&site(&upstream.url()));
        let mut client = Client::tls(&edge, HOST).await;
        assert_eq!(client.get(HOST, "/").await.status, 200);
        let request = format!("{method} /x HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let answer = client.ask(&request).await;
        assert_eq!(answer.status, if again { 200 } else { 502 }, "{method} {body:?}");
        let sent = upstream.seen().iter().filter(|seen| seen.contains(" /x ")).count();
        assert_eq!(sent, if again { 2 } else { 1 }, "{method} {body:?}");
    }
}

#[tokio::test]
async fn an_upgrade_is_not_held_while_its_service_refuses() {
    let edge = Edge::start(&site(&format!("http://{}", nowhere())));
    for _ in 0..3 {
        let began = Instant::now();
        assert_eq!(Client::tls(&edge, HOST).await.ask(&upgrade()).await.status, 502);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_service_that_is_known_to_be_down_is_not_waited_for() {
    let addr = nowhere();
    let edge = Edge::start(&site(&format!("http://{addr}")));
    let mut client = Client::tls(&edge, HOST).await;
    let began = Instant::now();
    assert_eq!(client.get(HOST, "/").await.status, 502);
    assert!(began.elapsed() > Duration::from_secs(4), "the first one waits for a restart: {:?}", began.elapsed());
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(client.get(HOST, "/").await.status, 502);
    }
    assert!(began.elapsed() < Duration::from_secs(2), "the others do not: {:?}", began.elapsed());
    // Its return is seen by the first request, and the next restart is waited for again.
    let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
    let answering = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        origin::read_request(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    };
    assert_eq!(tokio::join!(client.get(HOST, "/"), answering).0.status, 200);
    drop(listener);
    let back = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        origin::read_request(&mut stream).await.unwrap();
        stream.write_all(&origin::ok("back")).await.unwrap();
    };
    assert_eq!(tokio::join!(client.get(HOST, "/"), back).0.text(), "back");
}

#[tokio::test]
async fn with_few_descriptors_the_edge_sheds_and_blames_nobody() {
    // Holds every request.
    let held = Arc::new(AtomicUsize::new(0));
    let count = held.clone();
    let upstream = Origin::talking(move |mut stream, _| {
        let count = count.clone();
        async move {
            while let Some(request) = origin::read_request(&mut stream).await {
                if request.starts_with("GET /hold") {
                    count.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
                let _ = stream.write_all(&origin::ok("ok")).await;
            }
        }
    })
    .await;
    // 40 descriptors beyond the reserve: 20 clients and 20 connections to services.
    let edge = Edge::within(&["prlimit", "--nofile=104:104"], &site(&upstream.url()));
    let (mut send, connection) =
        h2::client::handshake(crate::support::client::tls(&edge, HOST, &["h2"]).await.unwrap()).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    tokio::spawn(connection);
    let mut answers = Vec::new();
    for _ in 0..64 {
        send = send.ready().await.unwrap();
        let request = http::Request::get(format!("https://{HOST}/hold")).body(()).unwrap();
        answers.push(Box::pin(send.send_request(request, true).unwrap().0));
    }
    // Those that find no socket are told so at once, and the rest is held.
    let mut shed = 0;
    for answer in &mut answers {
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(100), answer).await {
            assert_eq!(answer.unwrap().status(), 503);
            shed += 1;
        }
    }
    let held = held.load(Ordering::Relaxed);
    assert!((10..=20).contains(&held) && shed + held == 64, "{held} held, {shed} shed");
    assert!(!edge.log().contains("upstream does not answer"), "{}", edge.log());
    assert!(edge.page("/metrics").await.contains("vestibule_upstream_up{"), "the admin server still answers");
    assert!(
        !edge
            .page("/metrics")
            .await
            .lines()
            .any(|line| line.starts_with("vestibule_upstream_up{") && line.ends_with(" 0"))
    );
    // Once they are free, everything is as before.
    drop((answers, send));
    let mut client = Client::tls(&edge, HOST).await;
    let until = Instant::now() + Duration::from_secs(10);
    while client.get(HOST, "/").await.status != 200 {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_connections_of_health_probes_land_in_no_pool() {
    let upstream = Origin::talking(|mut stream, seen| async move {
        // Keeps the connection although it was asked to close it.
        while let Some(request) = origin::read_request(&mut stream).await {
            seen.lock().unwrap().push(request);
            if stream.write_all(&origin::ok("ok")).await.is_err() {
                return;
            }
        }
    })
    .await;
    let edge = Edge::start(&format!(
        "[sites.\"{HOST}\"]\nupstream = {{ servers = [\"{}\"], health = {{ path = \"/health\", interval = \"1s\" }} }}\n",
        upstream.url()
    ));
    let until = Instant::now() + Duration::from_secs(10);
    while upstream.seen().len() < 2 {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let page = edge.page("/metrics").await;
    let idle = page.lines().find(|line| line.starts_with("vestibule_upstream_idle_connections{")).unwrap_or("none");
    assert!(idle.ends_with(" 0") || idle == "none", "{idle}");
    let before = upstream.connections();
    assert_eq!(Client::tls(&edge, HOST).await.get(HOST, "/").await.status, 200);
    assert!(upstream.connections() > before, "a request has a connection of its own");
}

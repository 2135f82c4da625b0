//! Reloads, drains and restarts while clients are at work: none of them notices.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::client::TlsStream;

use crate::support::{Client, Edge, Origin, client, origin};

const HOST: &str = "a.example.org";

/// Echoes tunnels and the targets of requests; `/long` is answered after 30 seconds.
async fn upstream() -> Origin {
    Origin::talking(|mut stream, _| async move {
        while let Some(request) = origin::read_request(&mut stream).await {
            let target = request.split(' ').nth(1).unwrap_or_default();
            if target == "/long" {
                sleep(Duration::from_secs(30)).await;
            }
            if target != "/ws" {
                if stream.write_all(&origin::ok(target)).await.is_err() {
                    return;
                }
                continue;
            }
            let open = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
            stream.write_all(open.as_bytes()).await.unwrap();
            let mut buf = [0; 1024];
            while let Ok(n @ 1..) = stream.read(&mut buf).await {
                if stream.write_all(&buf[..n]).await.is_err() {
                    return;
                }
            }
            return;
        }
    })
    .await
}

fn sites(upstream: &Origin, n: usize) -> String {
    let url = upstream.url();
    format!("[sites.\"{HOST}\"]\nupstream = \"{url}\"\n[sites.\"n{n}.example.org\"]\nupstream = \"{url}\"\n")
}

async fn tunnel(edge: &Edge) -> Client<TlsStream<TcpStream>> {
    let mut client = Client::tls(edge, HOST).await;
    let open = format!(
        "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
    );
    assert_eq!(client.ask(&open).await.status, 101);
    client
}

/// Clients that work until they are told to stop; each ends in a panic when anything fails.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    clients: JoinSet<()>,
}

impl Load {
    fn new() -> Self {
        Self { stop: Arc::default(), done: Arc::default(), clients: JoinSet::new() }
    }

    /// One request after the other on one connection.
    async fn kept(&mut self, edge: &Edge) {
        let mut client = Client::tls(edge, HOST).await;
        let (stop, done) = (self.stop.clone(), self.done.clone());
        self.clients.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(client.get(HOST, "/kept").await.text(), "/kept");
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// A new connection for every request.
    fn fresh(&mut self, edge: &Edge) {
        let (addr, root) = (edge.https(), edge.root());
        let (stop, done) = (self.stop.clone(), self.done.clone());
        self.clients.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let answer = Client::tls_at(addr, &root, HOST).await.get(HOST, "/fresh").await;
                assert_eq!(answer.text(), "/fresh");
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// One stream after the other on one HTTP/2 connection.
    async fn streams(&mut self, edge: &Edge) {
        let io = client::tls(edge, HOST, &["h2"]).await.unwrap();
        let (mut send, connection) = h2::client::handshake(io).await.unwrap();
        let (stop, done) = (self.stop.clone(), self.done.clone());
        self.clients.spawn(async move { connection.await.unwrap() });
        self.clients.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                send = send.ready().await.unwrap();
                let request = http::Request::get(format!("https://{HOST}/stream")).body(()).unwrap();
                let answer = send.send_request(request, true).unwrap().0.await.unwrap();
                assert_eq!(answer.status(), 200);
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// Waits until the clients have got so many more answers.
    async fn proceeds(&mut self, by: usize) {
        let (wanted, until) = (self.done.load(Ordering::Relaxed) + by, Instant::now() + Duration::from_secs(20));
        while self.done.load(Ordering::Relaxed) < wanted {
            while let Some(ended) = self.clients.try_join_next() {
                ended.unwrap();
            }
            assert!(Instant::now() < until, "the clients are stuck");
            sleep(Duration::from_millis(2)).await;
        }
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
    }
}

#[tokio::test]
async fn twenty_reloads_under_load_are_noticed_by_nobody() {
    let upstream = upstream().await;
    let edge = Edge::start(&sites(&upstream, 0));
    let mut tunnels = Vec::new();
    for _ in 0..100 {
        tunnels.push(tunnel(&edge).await);
    }
    let mut idle = Vec::new();
    for _ in 0..10 {
        let mut client = Client::tls(&edge, HOST).await;
        assert_eq!(client.get(HOST, "/first").await.status, 200);
        idle.push(client);
    }
    let mut load = Load::new();
    for _ in 0..2 {
        load.kept(&edge).await;
        load.fresh(&edge);
        load.streams(&edge).await;
    }
    for n in 1..=20 {
        load.proceeds(20).await;
        if n % 5 == 0 {
            edge.rewrite("", "[sites.\"broken\"]\nupstraem = 1\n");
            assert_eq!(edge.command(&["reload"]).status.code(), Some(78));
        }
        edge.rewrite("", &sites(&upstream, n));
        let said = edge.command(&["reload"]);
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let name = format!("n{n}.example.org");
        assert_eq!(Client::tls(&edge, &name).await.get(&name, "/new").await.status, 200, "it is in effect");
    }
    load.proceeds(20).await;
    load.end().await;
    for tunnel in &mut tunnels {
        tunnel.send("still here").await;
        assert_eq!(tunnel.exactly(10).await, b"still here");
    }
    for client in &mut idle {
        assert_eq!(client.get(HOST, "/later").await.text(), "/later");
    }
}

#[tokio::test]
async fn a_drain_finishes_an_upload_and_serves_meanwhile_then_sends_polls_and_tunnels_away() {
    let upstream = upstream().await;
    let mut edge = Edge::start(&sites(&upstream, 0));
    let mut tunnels = Vec::new();
    for _ in 0..50 {
        tunnels.push(tunnel(&edge).await);
    }
    let mut poll = Client::tls(&edge, HOST).await;
    poll.send(format!("GET /long HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    let mut upload = Client::tls(&edge, HOST).await;
    upload.send(format!("POST /up HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 50\r\n\r\n0123456789")).await;
    let until = Instant::now() + Duration::from_secs(10);
    while upstream.connections() < 52 {
        assert!(Instant::now() < until, "all of them reach the upstream");
        sleep(Duration::from_millis(5)).await;
    }
    let began = Instant::now();
    edge.signal("TERM");
    edge.wait_for_log("\"draining\"");
    let ready = edge.page("/ready").await;
    assert!(ready.contains("503") && ready.contains("1 poll") && ready.contains("50 tunnels"), "{ready}");
    for _ in 0..3 {
        upload.send("0123456789").await;
        sleep(Duration::from_millis(1_200)).await;
        let answer = Client::tls(&edge, HOST).await.get(HOST, "/fresh").await;
        assert_eq!((answer.text().as_str(), answer.field("connection").as_deref()), ("/fresh", Some("close")));
        tunnels[0].send("\x01\x0astill here").await;
        assert_eq!(tunnels[0].exactly(12).await, b"\x01\x0astill here", "tunnels are told last");
    }
    // Later than a poll is waited for: the upload alone has kept it open.
    upload.send("0123456789").await;
    assert_eq!(upload.answer(false).await.text(), "/up");
    let closing = Instant::now();
    assert!(poll.ends().await, "without a byte of an answer");
    for tunnel in &mut tunnels {
        assert_eq!(tunnel.exactly(4).await, [0x88, 2, 0x03, 0xe9]);
    }
    assert_eq!(edge.wait().code(), Some(0));
    assert!(closing.elapsed() < Duration::from_secs(1), "{:?}", closing.elapsed());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let end: serde_json::Value = serde_json::from_str(&edge.wait_for_log("stopped; ")).unwrap();
    assert_eq!((&end["waited_uploads"], &end["waited_polls"]), (&1.into(), &1.into()), "{end}");
    assert_eq!(
        (&end["cut_polls"], &end["cut_tunnels"], &end["cut_uploads"]),
        (&1.into(), &50.into(), &0.into()),
        "{end}"
    );
}

#[tokio::test]
async fn a_new_process_takes_over_and_no_connection_is_refused() {
    let upstream = upstream().await;
    let mut old = Edge::start(&sites(&upstream, 0));
    for round in 1..=5 {
        let mut load = Load::new();
        for _ in 0..4 {
            load.fresh(&old);
        }
        load.proceeds(20).await;
        let new = old.successor(&sites(&upstream, round));
        load.proceeds(50).await;
        assert_eq!(old.wait().code(), Some(0), "the old one has been told to go");
        old.wait_for_log("another process takes over the addresses");
        load.proceeds(50).await;
        assert!(new.page("/ready").await.contains("200 OK"), "the admin address is the new one's");
        load.end().await;
        old = new;
    }
}

#[tokio::test]
async fn strangers_make_no_time_series() {
    let upstream = upstream().await;
    let edge = Edge::start(&sites(&upstream, 0));
    let mut client = Client::plain(edge.http()).await;
    assert_eq!(client.ask("M / HTTP/1.1\r\nHost: stranger.example.org\r\n\r\n").await.status, 404);
    assert_eq!(Client::tls(&edge, HOST).await.get(HOST, "/").await.status, 200);
    let series = |page: &str| page.lines().filter(|line| !line.starts_with('#')).count();
    let before = edge.page("/metrics").await;
    for n in 0..10_000 {
        let (method, host) = (format!("M{n}"), format!("h{n}.example.org"));
        let answer = client.ask(&format!("{method} /p{n} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert!(answer.status >= 400, "{}", answer.head);
        if answer.field("connection").is_some_and(|value| value == "close") {
            client = Client::plain(edge.http()).await;
        }
    }
    let after = edge.page("/metrics").await;
    assert_eq!(series(&after), series(&before), "{after}");
}

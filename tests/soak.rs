//! Many requests of every kind with faults on both sides: afterwards nothing is left over. Run by `tests/run soak`.

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
    task::JoinSet,
    time::sleep,
};

use crate::support::{Client, Edge, Origin, client, origin};

const HOST: &str = "a.example.org";

/// How many requests; the first tenth warms pools, caches and the allocator up.
const REQUESTS: usize = 200_000;

/// What memory may grow by after the warm-up. A leak of a hundred bytes a request would be 18 MB.
const MAY_GROW: usize = 8 << 20;

async fn upstream() -> Origin {
    Origin::talking(|mut stream, _| async move {
        while let Some(request) = origin::read_request(&mut stream).await {
            let path = request.split(' ').nth(1).unwrap_or_default();
            let done = match path {
                "/reset" => return,
                "/cut" => {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nnot all of it").await;
                    return;
                }
                "/big" => stream.write_all(&origin::ok(&"b".repeat(200_000))).await,
                "/ws" => return echo(stream).await,
                _ => stream.write_all(&origin::ok("fine")).await,
            };
            if done.is_err() {
                return;
            }
        }
    })
    .await
}

async fn echo(mut stream: TcpStream) {
    let open = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    let _ = stream.write_all(open.as_bytes()).await;
    let mut buf = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buf).await {
        if stream.write_all(&buf[..n]).await.is_err() {
            return;
        }
    }
}

fn request(method: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{more}\r\n")
}

/// Kept connections: plain requests, uploads, and an upstream that fails in between.
async fn kept(edge: &Edge, count: usize) -> usize {
    let mut client = Client::tls(edge, HOST).await;
    for n in 0..count {
        let answer = match n % 20 {
            7 => {
                let body = "u".repeat(20_000);
                client.ask(&(request("POST", "/up", "Content-Length: 20000\r\n") + &body)).await
            }
            13 => {
                let answer = client.get(HOST, "/reset").await;
                assert_eq!(answer.status, 502);
                continue;
            }
            _ => client.get(HOST, "/plain").await,
        };
        assert_eq!((answer.status, answer.text().as_str()), (200, "fine"));
    }
    count
}

/// Streams side by side; every tenth is reset by us.
async fn streams(edge: &Edge, count: usize) -> usize {
    let io = client::tls(edge, HOST, &["h2"]).await.unwrap();
    let (mut send, connection) = h2::client::handshake(io).await.unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    for batch in 0..count / 50 {
        let mut answers = Vec::new();
        for n in 0..50 {
            send = send.ready().await.unwrap();
            let path = if n == 25 { "/cut" } else { "/stream" };
            let request = http::Request::get(format!("https://{HOST}{path}")).body(()).unwrap();
            let (answer, mut stream) = send.send_request(request, true).unwrap();
            if n % 10 == 9 && batch % 2 == 0 {
                stream.send_reset(h2::Reason::CANCEL);
            } else if n != 25 {
                answers.push(answer);
            }
        }
        for answer in answers {
            assert_eq!(answer.await.unwrap().status(), 200);
        }
    }
    count / 50 * 50
}

/// Those who leave in the middle.
async fn leavers(edge: &Edge, count: usize) -> usize {
    let mut left = 0;
    while left < count {
        left += leave(edge).await;
    }
    left
}

/// Of an answer, of an upload, of a head, of a handshake, of a tunnel.
async fn leave(edge: &Edge) -> usize {
    let mut client = Client::tls(edge, HOST).await;
    client.send(request("GET", "/big", "")).await;
    let _ = client.exactly(1_000).await;
    let mut client = Client::tls(edge, HOST).await;
    client.send(request("POST", "/up", "Content-Length: 100000\r\n") + "some").await;
    Client::tls(edge, HOST).await.send("GET / HT").await;
    drop(TcpStream::connect(edge.https()).await.unwrap());
    for politely in [true, false] {
        let mut tunnel = Client::tls(edge, HOST).await;
        let upgrade = request("GET", "/ws", "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n");
        assert_eq!(tunnel.ask(&upgrade).await.status, 101);
        tunnel.send("hello").await;
        assert_eq!(tunnel.exactly(5).await, b"hello");
        if politely {
            tunnel.io.shutdown().await.unwrap();
            assert!(tunnel.ends().await);
        }
    }
    let cut = Client::tls(edge, HOST).await.ask_badly(&request("GET", "/cut", "")).await;
    assert!(cut.len() < 1_000 && cut.ends_with(b"not all of it"));
    6
}

/// The value of a number without labels.
async fn number(edge: &Edge, name: &str) -> usize {
    let page = edge.page("/metrics").await;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name}: {page}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "wants the machine for itself: run by tests/run soak"]
async fn two_hundred_thousand_requests_with_faults_leave_nothing_behind() {
    let upstream = upstream().await;
    let sites = |n: usize| {
        format!(
            "[log]\naccess = false\n[sites.\"{HOST}\"]\nupstream = \"{}\"\nhsts = {}\n",
            upstream.url(),
            n.is_multiple_of(2)
        )
    };
    let edge = Arc::new(Edge::start(&sites(0)));
    let done = Arc::new(AtomicUsize::new(0));
    let (mut warm, mut reloads) = (None, 0);
    let mut clients = JoinSet::new();
    let mut kinds = (0..4).cycle();
    let began = Instant::now();
    while done.load(Ordering::Relaxed) < REQUESTS {
        while clients.len() < 8 {
            let (edge, done, kind) = (edge.clone(), done.clone(), kinds.next());
            clients.spawn(async move {
                let made = match kind {
                    Some(0) => kept(&edge, 400).await,
                    Some(1 | 2) => streams(&edge, 1_000).await,
                    _ => leavers(&edge, 60).await,
                };
                done.fetch_add(made, Ordering::Relaxed);
            });
        }
        clients.join_next().await.unwrap().unwrap();
        let made = done.load(Ordering::Relaxed);
        if warm.is_none() && made > REQUESTS / 10 {
            warm = Some(edge.resident());
        }
        if made / 10_000 > reloads {
            reloads += 1;
            edge.rewrite("", &sites(reloads));
        }
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let open = (number(&edge, "vestibule_connections_open").await, number(&edge, "vestibule_tunnels_open").await);
        if open == (0, 0) {
            break;
        }
        assert!(Instant::now() < until, "connections and tunnels are left over: {open:?}");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(number(&edge, "vestibule_panics_total").await, 0);
    let (warm, now) = (warm.unwrap(), edge.resident());
    assert!(now < warm + MAY_GROW, "{} KiB after the warm-up, {} KiB now", warm >> 10, now >> 10);
    // Listeners, epoll, the log, and the pooled connections of two workers.
    assert!(edge.descriptors() < 100, "{} descriptors", edge.descriptors());
    eprintln!("{reloads} reloads, {} KiB then, {} KiB now, {:?}", warm >> 10, now >> 10, began.elapsed());
}

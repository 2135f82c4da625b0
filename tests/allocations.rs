//! What one exchange costs in allocations, counted by the allocator itself while requests walk the whole road: TLS,
//! framing, every layer, a pooled upstream, and back.
//!
//! The edge runs inside this process. The client and the upstream live on threads whose allocations are not counted.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so and stops")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use bytes::Bytes;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsConnector, client::TlsStream};
use vestibule::{
    app::{Edge, ListenerKind, Start},
    clock::Clock,
    config,
    telemetry::Metrics,
};

/// Requests before the count begins: pools, tables and buffers of threads are filled.
const WARM_UP: u64 = 64;

/// Requests that are counted.
const COUNTED: u64 = 512;

/// What an exchange of 1 KiB may cost, with the access log off: the number that was measured and two, since on a busy
/// machine an answer may come in two pieces. A change that needs more says why; one that needs less lowers the number.
const HTTP1: f64 = 12.0;
const HTTP2: f64 = 12.0;

/// A document that the edge has ready, over HTTP/1.1.
const WELL_KNOWN: f64 = 9.0;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// By size: up to 32 bytes, 64, 128, and so on.
static SIZES: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];

thread_local!(static IS_EXEMPT: Cell<bool> = const { Cell::new(false) });

impl Counting {
    fn count(size: usize) {
        if !IS_EXEMPT.try_with(Cell::get).unwrap_or(true) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
            let class = usize::BITS - (size.max(1) - 1).leading_zeros();
            SIZES[(class.saturating_sub(5) as usize).min(SIZES.len() - 1)].fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[expect(unsafe_code, reason = "the trait is unsafe; every call goes on to the system's allocator as it came")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        Self::count(new_size);
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of one request, on average, and how they spread over the sizes.
fn per_request(before: (u64, [u64; 16])) -> (f64, String) {
    let now = snapshot();
    let each = |n: u64| n as f64 / COUNTED as f64;
    let sizes = (0..16).map(|at| (32usize << at, each(now.1[at] - before.1[at]))).filter(|(_, n)| *n >= 0.1);
    let spread = sizes.map(|(size, n)| format!(" ≤{size}:{n:.1}")).collect();
    (each(now.0 - before.0), spread)
}

fn snapshot() -> (u64, [u64; 16]) {
    (ALLOCATIONS.load(Ordering::Relaxed), std::array::from_fn(|at| SIZES[at].load(Ordering::Relaxed)))
}

#[test]
fn an_exchange_allocates_no_more_than_it_did() {
    IS_EXEMPT.set(true);
    let folder = tempfile::tempdir().unwrap();
    let root = write_certificate(folder.path());
    let plan = plan(folder.path(), upstream());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let clock = Clock::system();
        let edge = Edge::start(plan, Metrics::new(clock.now()), clock, Start::Alone).await.unwrap();
        let addr = edge.addresses().find(|(kind, _)| *kind == ListenerKind::Tls).unwrap().1;
        for (what, (counted, spread), most) in [
            ("HTTP/1.1", http1(addr, &root, "/json1k").await, HTTP1),
            ("well-known", http1(addr, &root, "/.well-known/matrix/client").await, WELL_KNOWN),
            ("HTTP/2", http2(addr, &root).await, HTTP2),
        ] {
            println!("{what}: {counted:.2} allocations an exchange, at most {most}:{spread}");
            assert!(counted <= most, "{what}: {counted:.2} allocations an exchange, at most {most}:{spread}");
            assert!(counted > 1.0, "{what}: nothing was counted");
        }
        edge.drain().await;
    });
}

async fn http1(addr: SocketAddr, root: &RootCertStore, path: &str) -> (f64, String) {
    let mut io = connect(addr, root, "http/1.1").await;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n");
    let mut answer = vec![0; 8192];
    let mut before = snapshot();
    for turn in 0..WARM_UP + COUNTED {
        if turn == WARM_UP {
            before = snapshot();
        }
        io.write_all(request.as_bytes()).await.unwrap();
        read_answer(&mut io, &mut answer).await;
    }
    per_request(before)
}

async fn read_answer(io: &mut TlsStream<tokio::net::TcpStream>, buf: &mut [u8]) {
    let mut filled = 0;
    loop {
        let n = io.read(&mut buf[filled..]).await.unwrap();
        assert!(n > 0, "the edge hung up");
        filled += n;
        let text = std::str::from_utf8(&buf[..filled]).unwrap();
        let Some(end) = text.find("\r\n\r\n") else { continue };
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        let length = text[..end].lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if filled == end + 4 + length.parse::<usize>().unwrap() {
            return;
        }
    }
}

async fn http2(addr: SocketAddr, root: &RootCertStore) -> (f64, String) {
    let io = connect(addr, root, "h2").await;
    let (mut send, connection) = h2::client::handshake(io).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "ends with the connection")]
    tokio::spawn(connection);
    let mut before = snapshot();
    for turn in 0..WARM_UP + COUNTED {
        if turn == WARM_UP {
            before = snapshot();
        }
        send = send.ready().await.unwrap();
        let request = http::Request::get("https://localhost/json1k").header("user-agent", "test").body(()).unwrap();
        let answer = send.send_request(request, true).unwrap().0.await.unwrap();
        assert_eq!(answer.status(), 200);
        let mut body = answer.into_body();
        let mut len = 0;
        while let Some(data) = body.data().await {
            let data: Bytes = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            len += data.len();
        }
        assert_eq!(len, 1024);
    }
    per_request(before)
}

async fn connect(addr: SocketAddr, root: &RootCertStore, protocol: &str) -> TlsStream<tokio::net::TcpStream> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(root.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let tcp = tokio::net::TcpStream::connect(addr).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap()
}

fn write_certificate(folder: &Path) -> RootCertStore {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let mut root = RootCertStore::empty();
    root.add(made.cert.der().clone()).unwrap();
    root
}

fn plan(folder: &Path, upstream: SocketAddr) -> config::Plan {
    let path = folder.join("vestibule.toml");
    let folder = folder.display();
    let text = format!(
        "[listen]\nhttp = []\nhttps = [\"127.0.0.1:0\"]\nthreads = 1\n[storage]\npath = \"{folder}/state\"\n\
         [admin]\nlisten = \"off\"\n[log]\naccess = false\n\
         [matrix]\nserver_name = \"localhost\"\nhomeserver = \"https://localhost\"\n\
         [sites.localhost]\nupstream = \"http://{upstream}\"\n\
         tls = {{ cert = \"{folder}/cert.pem\", key = \"{folder}/key.pem\" }}\n"
    );
    std::fs::write(&path, text).unwrap();
    config::load(&path).unwrap_or_else(|report| panic!("{}", report.render())).0
}

/// A service that answers every request with 1 KiB.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        IS_EXEMPT.set(true);
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || {
                IS_EXEMPT.set(true);
                serve(stream);
            });
        }
    });
    addr
}

fn serve(mut stream: TcpStream) {
    let body = "x".repeat(1024);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nServer: test\r\nContent-Type: application/octet-stream\r\nContent-Length: 1024\r\n\r\n{body}"
    );
    let mut buf = [0; 4096];
    let mut filled = 0;
    loop {
        match stream.read(&mut buf[filled..]) {
            Ok(n) if n > 0 => filled += n,
            _ => return,
        }
        if buf[..filled].ends_with(b"\r\n\r\n") {
            filled = 0;
            stream.write_all(answer.as_bytes()).unwrap();
        }
    }
}

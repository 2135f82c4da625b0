//! Whoever moves is not cut, however slowly; whoever does not is, and the log says that it was us.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpSocket, TcpStream},
    time::{Interval, interval, sleep, timeout},
};
use tokio_rustls::client::TlsStream;

use crate::support::{
    Edge, Origin, client,
    frames::{self, DATA, END_STREAM, PING, SETTINGS, frame, request},
    origin,
};

const HOST: &str = "a.example.org";

/// How long a body may stand still here.
const STALL: Duration = Duration::from_secs(2);

/// A socket that moves a few bytes every tenth of a second, in each direction.
struct Slow {
    io: TcpStream,
    /// Bytes of a tenth of a second.
    step: usize,
    reads: (Interval, usize),
    writes: (Interval, usize),
}

impl Slow {
    /// A connection of which the kernel keeps next to nothing, as fast as it can be for now.
    async fn connect(edge: &Edge) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(2_304).unwrap();
        let io = socket.connect(edge.https()).await.unwrap();
        io.set_nodelay(true).unwrap();
        let tick = || (interval(Duration::from_millis(100)), 0);
        Self { io, step: 1 << 20, reads: tick(), writes: tick() }
    }

    /// How much may move now.
    fn poll_room(ticks: &mut (Interval, usize), step: usize, cx: &mut Context<'_>) -> Poll<usize> {
        if ticks.1 == 0 {
            ready!(ticks.0.poll_tick(cx));
            ticks.1 = step;
        }
        Poll::Ready(ticks.1)
    }
}

impl AsyncRead for Slow {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let room = ready!(Self::poll_room(&mut this.reads, this.step, cx));
        let mut piece = [0; 4_096];
        let len = room.min(buf.remaining()).min(piece.len());
        let mut piece = ReadBuf::new(&mut piece[..len]);
        ready!(Pin::new(&mut this.io).poll_read(cx, &mut piece))?;
        this.reads.1 -= piece.filled().len();
        buf.put_slice(piece.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Slow {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let room = ready!(Self::poll_room(&mut this.writes, this.step, cx));
        let n = ready!(Pin::new(&mut this.io).poll_write(cx, &bytes[..bytes.len().min(room)]))?;
        this.writes.1 -= n;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A client that is as slow as this from now on.
async fn slow(edge: &Edge, protocol: &str, bytes_a_second: usize) -> TlsStream<Slow> {
    let io = Slow::connect(edge).await;
    let mut io = client::tls_over(io, &edge.root(), HOST, &[protocol]).await.unwrap();
    let slow = io.get_mut().0;
    (slow.step, slow.reads.1, slow.writes.1) = (bytes_a_second / 10, 0, 0);
    io
}

fn edge(upstream: &Origin) -> Edge {
    Edge::start(&format!(
        "[timeouts]\nbody_stall = \"{}s\"\n[sites.\"{HOST}\"]\nupstream = \"{}\"\n",
        STALL.as_secs(),
        upstream.url()
    ))
}

/// Reads for a moment: what has been answered is then logged.
async fn hear(mut io: impl AsyncRead + Unpin) {
    let reading = async { while let Ok(1..) = io.read(&mut [0; 4_096]).await {} };
    // A connection that is kept has no end.
    let _ = timeout(STALL, reading).await;
}

/// A service whose answers do not end.
async fn endless() -> Origin {
    Origin::talking(|mut stream: TcpStream, _| async move {
        origin::read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await.unwrap();
        let piece = vec![b'x'; 65_536];
        while stream.write_all(&piece).await.is_ok() {}
    })
    .await
}

/// Opens both windows.
fn wide() -> Vec<u8> {
    let window = [0, 4, 0x7f, 0xff, 0xff, 0xff];
    [frames::PREFACE, &frame(SETTINGS, 0, 0, &window), &frame(8, 0, 0, &[0x7f, 0, 0, 0])].concat()
}

/// Reads at 2 KB/s for several times as long as a body may stand still, and then no more.
async fn reads_slowly(edge: &Edge, protocol: &str, asks: Vec<u8>) {
    let mut io = slow(edge, protocol, 2_000).await;
    // Slow both ways, which is no hurry for a request.
    io.write_all(&asks).await.unwrap();
    io.flush().await.unwrap();
    // Below TLS, whose records are whole after seconds only.
    let (mut socket, _tls) = io.into_inner();
    let (began, mut all) = (Instant::now(), 0);
    while began.elapsed() < 4 * STALL {
        let n = timeout(STALL, socket.read(&mut [0; 4_096])).await.expect("it moves").expect("it is not cut");
        assert!(n > 0, "{protocol} ended after {:?} and {all} bytes", began.elapsed());
        all += n;
    }
    assert!(all > 8_000, "{all} bytes");
    // Kept open until the edge has had enough of it.
    sleep(2 * STALL + Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_slow_reader_is_not_cut_and_one_that_reads_no_more_is() {
    let upstream = endless().await;
    let edge = edge(&upstream);
    let http1 = format!("GET /http1 HTTP/1.1\r\nHost: {HOST}\r\n\r\n").into_bytes();
    let http2 = [wide(), request(1, END_STREAM, "GET", HOST, "/http2")].concat();
    tokio::join!(reads_slowly(&edge, "http/1.1", http1), reads_slowly(&edge, "h2", http2));
    for target in ["/http1", "/http2"] {
        let event = edge.exchange(target);
        let said = (event["ended_by"].as_str(), event["reason"].as_str(), event["failed"].as_str());
        assert_eq!(said, (Some("limit"), Some("client_stalled"), Some("body")), "{event}");
        assert!(event["total_ms"].as_f64().unwrap() > 4_000.0 * STALL.as_secs_f64(), "{event}");
    }
}

#[tokio::test]
async fn a_slow_upload_in_one_frame_gets_no_408() {
    let upstream = Origin::answering(|request| origin::ok(&request.len().to_string())).await;
    let edge = edge(&upstream);
    let http2 = async {
        let mut io = slow(&edge, "h2", 15_000).await;
        let upload = [wide(), request(1, 0, "POST", HOST, "/http2"), frame(DATA, END_STREAM, 1, &[b'x'; 65_536])];
        io.write_all(&upload.concat()).await.unwrap();
        io.flush().await.unwrap();
        hear(io).await;
    };
    let http1 = async {
        let mut io = slow(&edge, "http/1.1", 15_000).await;
        let head = format!("POST /http1 HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 65536\r\n\r\n");
        io.write_all(&[head.as_bytes(), &[b'x'; 65_536]].concat()).await.unwrap();
        io.flush().await.unwrap();
        hear(io).await;
    };
    tokio::join!(http1, http2);
    for target in ["/http1", "/http2"] {
        let event = edge.exchange(target);
        assert_eq!((event["status"].as_u64(), event["bytes_in"].as_u64()), (Some(200), Some(65_536)), "{event}");
        assert!(event["total_ms"].as_f64().unwrap() > 1_500.0 * STALL.as_secs_f64(), "it was slow: {event}");
    }
}

#[tokio::test]
async fn what_we_end_is_not_logged_as_the_clients() {
    let upstream = endless().await;
    let edge = edge(&upstream);
    for (target, bytes, ended_by, reason) in [
        ("/window", Vec::new(), "limit", "client_stalled"),
        ("/flood", frame(PING, 0, 0, b"12345678").repeat(5_000), "limit", "excessive_load"),
        ("/broken", frame(DATA, 0, 0, b"x"), "client", "protocol_error"),
    ] {
        let mut io = client::tls(&edge, HOST, &["h2"]).await.unwrap();
        io.write_all(&[frames::PREFACE, &request(1, END_STREAM, "GET", HOST, target)].concat()).await.unwrap();
        // As much as the window holds, which is never opened.
        io.read_exact(&mut [0; 65_536]).await.unwrap();
        // Whoever has heard enough may close before it has all.
        let _ = io.write_all(&bytes).await;
        let mut all = Vec::new();
        let _ = timeout(STALL + Duration::from_secs(10), io.read_to_end(&mut all)).await.expect("it ends");
        let event = edge.exchange(target);
        assert_eq!((event["ended_by"].as_str(), event["reason"].as_str()), (Some(ended_by), Some(reason)), "{event}");
    }
}

//! Connections through the whole of `serve`, in time that is simulated too: what the machine alone cannot show, since it
//! is the driver that owns the socket, the tasks and the end.

use std::{
    future::{Future, pending},
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use http::StatusCode;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::TaskTracker;
use vestibule::{
    clock::Clock,
    conn::{Alpn, ClientHandle, ConnInfo, TlsInfo},
    drain::{Drain, Phase},
    error::ProxyError,
    message::{Body, ClientIo, Request, Response, UpgradeHandler},
    serve::{Handler, Settings, serve_connection},
    wire::{
        HeadLimits,
        h2::{Connection, cost},
    },
};

use crate::{
    frames::{self, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame},
    service::Wakers,
    world::LIMITS,
};

pub const HOST: &str = "a.example.org";
const ACK: u8 = 1;

/// A service that notes what reaches it.
#[derive(Clone, Default)]
struct Service {
    seen: Arc<Mutex<Vec<String>>>,
    tunnels: Arc<AtomicUsize>,
}

/// Counts a tunnel for as long as it lives.
struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Service {
    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    fn tunnel(&self) -> Response {
        let tunnels = self.tunnels.clone();
        let mut response = Response::of(StatusCode::SWITCHING_PROTOCOLS);
        response.takeover = Some(UpgradeHandler::new(move |mut io, _| {
            Box::pin(async move {
                tunnels.fetch_add(1, Ordering::Relaxed);
                let _alive = Alive(tunnels);
                let mut buf = [0; 100];
                while let Ok(n @ 1..) = io.read(&mut buf).await {
                    if io.write_all(&buf[..n]).await.is_err() {
                        return;
                    }
                }
            })
        }));
        response
    }
}

impl Handler for Service {
    fn handle(&self, request: Request, _: &Arc<ConnInfo>, _: ClientHandle) -> impl Future<Output = Response> + Send {
        let service = self.clone();
        async move {
            let target = request.target().to_owned();
            let hint = request.body.size_hint().exact();
            service.seen.lock().unwrap().push(format!("{} {target} {hint:?}", request.method));
            match target.as_str() {
                "/hold" => pending().await,
                "/panic" => panic!("as a handler may"),
                "/big" => Response::new(Body::full(vec![b'x'; 1 << 20])),
                // Of twelve frames, eight fill the pipe and the last four the output, to the byte.
                "/long" => Response::new(Body::full(vec![b'x'; 192 << 10])),
                "/ws" => service.tunnel(),
                _ => match request.body.collect().await {
                    Ok(body) => Response::new(Body::full(body.to_bytes().len().to_string())),
                    Err(_) => Response::of(StatusCode::REQUEST_TIMEOUT),
                },
            }
        }
    }

    fn refuse(&self, error: ProxyError, _: Option<&str>, _: &Arc<ConnInfo>) -> Response {
        Response::of(error.kind.status())
    }
}

fn settings() -> Settings {
    Settings {
        head: HeadLimits { bytes: 32_768, fields: 20, target: 8_192 },
        streams: 100,
        header: Some(Duration::from_secs(15)),
        keep_alive: Some(Duration::from_secs(300)),
        body_stall: Some(Duration::from_secs(60)),
        clock: Clock::system(),
        dropped: Arc::default(),
    }
}

/// A client that writes frames by hand, and the connection that serves it.
pub struct Client {
    pub io: DuplexStream,
    service: Service,
    serving: JoinHandle<()>,
    tasks: TaskTracker,
    drain: Drain,
}

/// A frame: its kind, flags, stream and payload.
type Frame = (u8, u8, u32, Vec<u8>);

impl Client {
    /// Connects by a pipe that holds so many bytes, and sends the preface.
    async fn connect(pipe: usize) -> Self {
        let mut client = Self::silent(pipe);
        client.send(frames::PREFACE).await;
        client
    }

    /// Connects, and sends nothing.
    pub fn silent(pipe: usize) -> Self {
        let (io, far) = duplex(pipe);
        Self::served(io, far)
    }

    fn served(io: DuplexStream, far: impl ClientIo) -> Self {
        let (service, tasks, drain) = (Service::default(), TaskTracker::new(), Drain::new(1));
        let address = "127.0.0.1:1".parse().unwrap();
        let tls = TlsInfo { sni: None, alpn: Alpn::Http2, version: "TLSv1.3", resumed: false };
        let conn = Arc::new(ConnInfo { peer: address, client: address, port: 443, tls: Some(tls) });
        let serving = serve_connection(far, conn, service.clone(), Arc::new(settings()), drain.clone(), tasks.clone());
        #[expect(clippy::disallowed_methods, reason = "ends with the test")]
        let serving = tokio::spawn(serving);
        Self { io, service, serving, tasks, drain }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.io.write_all(bytes.as_ref()).await.unwrap();
    }

    /// The next frame; `None` at the end.
    async fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.io.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.io.read_exact(&mut payload).await.ok()?;
        Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }

    /// Frames until one of this kind.
    async fn until(&mut self, kind: u8) -> Frame {
        loop {
            let frame =
                timeout(Duration::from_secs(900), self.frame()).await.expect("in time").expect("before the end");
            if frame.0 == kind && !(kind == SETTINGS && frame.1 == 0) {
                return frame;
            }
        }
    }

    /// How long until the connection ends, and the reason of its GOAWAY.
    async fn end(&mut self) -> (Duration, Option<u32>) {
        let (began, mut reason) = (Instant::now(), None);
        while let Some((kind, .., payload)) =
            timeout(Duration::from_secs(3_600), self.frame()).await.expect("the connection ends")
        {
            if kind == GOAWAY {
                reason = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
        (began.elapsed(), reason)
    }
}

pub fn request(id: u32, flags: u8, path: &str) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "https"), (":path", path), (":authority", HOST)];
    frame(HEADERS, END_HEADERS | flags, id, &frames::block(&fields))
}

fn websocket(id: u32, flags: u8) -> Vec<u8> {
    let fields = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "https"),
        (":path", "/ws"),
        (":authority", HOST),
    ];
    frame(HEADERS, END_HEADERS | flags, id, &frames::block(&fields))
}

pub fn settings_of(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

fn is_about(took: Duration, seconds: u64) {
    let expected = Duration::from_secs(seconds);
    assert!(took >= expected && took <= expected + Duration::from_secs(2), "{took:?}, not {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn tunnels_end_with_their_connection_however_it_ends() {
    for how in ["panic", "abort", "watchdog", "left"] {
        let mut client = Client::connect(1 << 20).await;
        for id in [1, 3, 5] {
            client.send(websocket(id, 0)).await;
            client.send(frame(DATA, 0, id, b"hello")).await;
            while client.until(DATA).await.3.is_empty() {}
        }
        let tunnels = client.service.tunnels.clone();
        assert_eq!(tunnels.load(Ordering::Relaxed), 3);
        match how {
            "panic" => client.send(request(7, END_STREAM, "/panic")).await,
            "abort" => client.serving.abort(),
            // A head that does not come to its end.
            "watchdog" => client.send(&request(7, END_STREAM, "/")[..20]).await,
            _ => drop(client.io),
        }
        sleep(Duration::from_secs(20)).await;
        assert_eq!(tunnels.load(Ordering::Relaxed), 0, "{how}");
        client.tasks.close();
        timeout(Duration::from_secs(1), client.tasks.wait()).await.expect(how);
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_reset_at_once_reach_no_service() {
    let mut client = Client::connect(1 << 20).await;
    let each =
        |n: u32| [request(2 * n + 1, END_STREAM, "/hold"), frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8])].concat();
    client.send((0..3_000).flat_map(each).collect::<Vec<_>>()).await;
    let (_, reason) = client.end().await;
    assert_eq!((reason, client.service.seen().len()), (Some(11), 0));
    // And a few, which are no reason to be told off.
    let mut client = Client::connect(1 << 20).await;
    client.send((0..50).flat_map(each).collect::<Vec<_>>()).await;
    client.send(request(999, END_STREAM, "/")).await;
    client.until(DATA).await;
    assert_eq!(client.service.seen(), ["GET / Some(0)"]);
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_reset_once_they_have_begun_are_few() {
    let mut client = Client::connect(1 << 20).await;
    let mut id = 1;
    for _ in 0..3_000 {
        if client.io.write_all(&request(id, END_STREAM, "/hold")).await.is_err() {
            break;
        }
        sleep(Duration::from_millis(1)).await;
        let _ = client.io.write_all(&frame(RST_STREAM, 0, id, &[0, 0, 0, 8])).await;
        id += 2;
    }
    let (_, reason) = client.end().await;
    assert_eq!(reason, Some(11));
    assert!(client.service.seen().len() < 400, "{} requests", client.service.seen().len());
}

#[tokio::test(start_paused = true)]
async fn a_request_behind_a_full_output_does_not_wait_for_a_tick() {
    // The answer fills the pipe and then the output. A request comes meanwhile; then all of the output leaves in one go,
    // and no stream waits that would be woken for it.
    let mut client = Client::connect(128 << 10).await;
    client.send(frame(SETTINGS, 0, 0, &settings_of(4, 1 << 20))).await;
    client.send(frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes())).await;
    client.send(request(1, END_STREAM, "/long")).await;
    sleep(Duration::from_secs(1)).await;
    client.send(request(3, END_STREAM, "/")).await;
    sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    let mut buf = vec![0; 1 << 20];
    while client.service.seen().len() < 2 {
        // What the client reads wakes the other side; time alone must not be needed.
        let _ = timeout(Duration::from_millis(1), client.io.read(&mut buf)).await;
        assert!(began.elapsed() < Duration::from_millis(50), "the request lies there");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_answer_is_kept_by_no_ping_and_no_other_stream() {
    let mut client = Client::connect(1 << 20).await;
    client.send(frame(SETTINGS, 0, 0, &settings_of(4, 0))).await;
    client.send(request(1, END_STREAM, "/big")).await;
    client.until(HEADERS).await;
    let began = Instant::now();
    let mut id = 3;
    let reset = loop {
        sleep(Duration::from_secs(1)).await;
        client.send(frame(PING, 0, 0, b"12345678")).await;
        // Another stream begins to wait now and then, and gets what it waits for.
        if began.elapsed().as_secs().is_multiple_of(20) {
            client.send(request(id, END_STREAM, "/")).await;
            sleep(Duration::from_millis(10)).await;
            client.send(frame(WINDOW_UPDATE, 0, id, &[0, 0, 1, 0])).await;
            id += 2;
        }
        if let Ok(Some((RST_STREAM, _, 1, _))) = timeout(Duration::from_millis(1), client.until_reset()).await {
            break began.elapsed();
        }
        assert!(began.elapsed() < Duration::from_secs(200), "it is kept");
    };
    assert!(reset < Duration::from_secs(70), "{reset:?}");
}

impl Client {
    async fn until_reset(&mut self) -> Option<Frame> {
        loop {
            let frame = self.frame().await?;
            if frame.0 == RST_STREAM {
                return Some(frame);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_and_a_head_that_drips_have_the_time_of_a_head() {
    let mut silent = Client::silent(1 << 20);
    is_about(silent.end().await.0, 15);
    let mut half = Client::silent(1 << 20);
    half.send(&frames::PREFACE[..24]).await;
    is_about(half.end().await.0, 15);
    let mut client = Client::connect(1 << 20).await;
    // Beside a stream that is open and has nothing to say.
    client.send(request(1, END_STREAM, "/hold")).await;
    let head = request(3, END_STREAM, &format!("/{}", "x".repeat(2_000)));
    let began = Instant::now();
    for byte in head {
        if client.io.write_all(&[byte]).await.is_err() {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(18), "{:?}", began.elapsed());
    assert_eq!(client.end().await.1, Some(11));
    let mut idle = Client::connect(1 << 20).await;
    is_about(idle.end().await.0, 300);
}

#[tokio::test(start_paused = true)]
async fn an_upload_in_one_slow_frame_does_not_stall() {
    let mut client = Client::connect(1 << 20).await;
    client.send(request(1, 0, "/up")).await;
    let body = frame(DATA, END_STREAM, 1, &[7; 60_000]);
    for piece in body.chunks(500) {
        client.send(piece).await;
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(client.until(DATA).await.3, b"60000");
    // And one of which nothing comes does.
    client.send(request(3, 0, "/up")).await;
    client.send(&body[..100]).await;
    let began = Instant::now();
    client.until(HEADERS).await;
    is_about(began.elapsed(), 60);
}

#[tokio::test(start_paused = true)]
async fn an_empty_data_frame_is_no_body() {
    let mut client = Client::connect(1 << 20).await;
    client.send([request(1, 0, "/a"), frame(DATA, END_STREAM, 1, b"")].concat()).await;
    client.until(DATA).await;
    client.send(request(3, 0, "/b")).await;
    sleep(Duration::from_millis(20)).await;
    client.send(frame(DATA, END_STREAM, 3, b"")).await;
    client.until(DATA).await;
    // Whoever sends nothing for longer is not waited for.
    client.send(request(5, 0, "/c")).await;
    sleep(Duration::from_millis(200)).await;
    client.send(frame(DATA, END_STREAM, 5, b"body")).await;
    assert_eq!(client.until(DATA).await.3, b"4");
    assert_eq!(client.service.seen(), ["GET /a Some(0)", "GET /b Some(0)", "GET /c None"]);
}

#[tokio::test(start_paused = true)]
async fn cookie_crumbs_are_one_field() {
    let mut client = Client::connect(1 << 20).await;
    let mut fields = vec![(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", HOST)];
    fields.extend([("cookie", "a=1"); 60]);
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::block(&fields))).await;
    assert_eq!(client.until(HEADERS).await.3[0], 0x88);
    fields.truncate(4);
    fields.extend([("x-other", "1"); 60]);
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, &frames::block(&fields))).await;
    assert_ne!(client.until(HEADERS).await.3[0], 0x88);
}

#[tokio::test(start_paused = true)]
async fn an_extended_connect_that_has_ended_is_refused() {
    let mut client = Client::connect(1 << 20).await;
    client.send(websocket(1, END_STREAM)).await;
    assert_eq!(client.until(RST_STREAM).await.3, [0, 0, 0, 1]);
    assert!(client.service.seen().is_empty());
}

#[tokio::test(start_paused = true)]
async fn settings_with_thousands_of_entries_are_not_followed() {
    let mut client = Client::connect(1 << 20).await;
    client.send((0..100).flat_map(|n| request(2 * n + 1, END_STREAM, "/hold")).collect::<Vec<_>>()).await;
    let entries: Vec<u8> = (0..10_000).flat_map(|n| settings_of(4, n)).collect();
    client.send(frame(SETTINGS, 0, 0, &entries)).await;
    assert_eq!(client.end().await.1, Some(11));
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_keeps_its_answer_for_as_long_as_it_reads() {
    let mut client = Client::connect(4_096).await;
    client.send(frame(SETTINGS, 0, 0, &settings_of(4, 1 << 20))).await;
    client.send(frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes())).await;
    client.send(request(1, END_STREAM, "/big")).await;
    let (mut all, mut buf) = (0, [0; 2_048]);
    while all < 1 << 20 {
        sleep(Duration::from_secs(1)).await;
        all += client.io.read_exact(&mut buf).await.expect("it goes on");
    }
    // And one that reads no more does not.
    client.send(request(3, END_STREAM, "/big")).await;
    sleep(Duration::from_secs(70)).await;
    timeout(Duration::from_secs(1), client.serving).await.expect("it is over").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_drain_costs_no_more_than_the_time_to_write() {
    let mut idle = Client::connect(1 << 20).await;
    idle.send(request(1, END_STREAM, "/")).await;
    idle.until(DATA).await;
    sleep(Duration::from_secs(5)).await;
    idle.drain.enter(Phase::Draining);
    let (took, reason) = idle.end().await;
    assert_eq!(reason, Some(0));
    assert!(took < Duration::from_millis(10), "{took:?}");
    timeout(Duration::from_millis(10), idle.serving).await.expect("at once").unwrap();
    // One that says nothing, and reads nothing.
    let silent = Client::silent(1 << 20);
    sleep(Duration::from_secs(2)).await;
    silent.drain.enter(Phase::Draining);
    timeout(Duration::from_millis(10), silent.serving).await.expect("at once").unwrap();
    // One with a request on its way: it is answered, and the other side of the GOAWAY too.
    let mut busy = Client::connect(1 << 20).await;
    busy.send(request(1, 0, "/up")).await;
    sleep(Duration::from_millis(100)).await;
    busy.drain.enter(Phase::Draining);
    assert_eq!(busy.until(GOAWAY).await.3[..4], [0x7f, 0xff, 0xff, 0xff]);
    busy.send(request(3, END_STREAM, "/late")).await;
    let ping = busy.until(PING).await.3;
    busy.send(frame(PING, ACK, 0, &ping)).await;
    assert_eq!(busy.until(GOAWAY).await.3[..4], [0, 0, 0, 3]);
    busy.send(frame(DATA, END_STREAM, 1, b"up")).await;
    assert_eq!(busy.end().await.1, None);
    assert_eq!(busy.service.seen(), ["GET /up None", "GET /late Some(0)"]);
}

/// Takes all of what a peer sends, turn by turn; the most that a turn took, and how many there were.
fn take(machine: &mut Connection<Wakers>, bytes: &[u8]) -> (usize, usize) {
    let mut input = BytesMut::from(bytes);
    let (now, mut most, mut turns) = (std::time::Instant::now(), 0, 0);
    while !input.is_empty() {
        let before = input.len();
        machine.begin_turn(now);
        machine.receive(&mut input);
        assert!(machine.end().is_none() && input.len() < before, "{:?}", machine.end());
        (most, turns) = (most.max(before - input.len()), turns + 1);
    }
    (most, turns)
}

fn uploading() -> Connection<Wakers> {
    let mut machine = Connection::new(LIMITS, std::time::Instant::now());
    take(&mut machine, &[frames::PREFACE, &request(1, 0, "/up")].concat());
    machine
}

/// A byte in a frame of its own once held 60, and pieces of odd sizes the buffers that they were read into.
#[test]
fn a_body_in_pieces_of_any_size_holds_little_more_than_it_carries() {
    let window = cost::STREAM_WINDOW as usize;
    for size in [1, 100, 4_097, cost::PINNED_LEAST - 1, cost::PINNED_LEAST, cost::PINNED_LEAST + 1, 65_000] {
        let mut machine = uploading();
        take(&mut machine, &frame(DATA, 0, 1, &vec![7; size]).repeat(window / size));
        let (held, most) = (machine.held(), 2 * window + 2 * cost::PINNED * cost::READ);
        assert!(held <= most, "pieces of {size} hold {held} of {most} bytes");
    }
}

/// Three megabytes of them once let every other connection of the thread wait for 1.2 s.
#[test]
fn tiny_frames_take_turns_with_other_connections() {
    let frame = frame(DATA, 0, 1, b"x");
    let (most, turns) = take(&mut uploading(), &frame.repeat(300_000));
    assert!(most <= 1_024 * frame.len() && turns >= 290, "{most} bytes in one turn of {turns}");
}

/// A socket that counts what it is asked to write.
struct Counting {
    io: DuplexStream,
    writes: Arc<AtomicUsize>,
}

impl ClientIo for Counting {}

impl AsyncRead for Counting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_turn_says_leaves_in_one_write() {
    let (io, far) = duplex(1 << 20);
    let writes = Arc::new(AtomicUsize::new(0));
    let mut client = Client::served(io, Counting { io: far, writes: writes.clone() });
    let requests = (0..40).flat_map(|n| request(2 * n + 1, END_STREAM, "/"));
    client.send(frames::PREFACE.iter().copied().chain(requests).collect::<Vec<_>>()).await;
    for _ in 0..40 {
        client.until(DATA).await;
    }
    assert!(writes.load(Ordering::Relaxed) <= 3, "{writes:?} writes");
}

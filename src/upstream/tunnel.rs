//! A WebSocket after its 101: bytes both ways, unread but for the boundaries of frames, which the end has to know so that
//! it can say goodbye (RFC 6455 section 5.2).

use std::{
    cell::RefCell,
    future::{Future as _, poll_fn},
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};

use super::connect::Socket;
use crate::{
    conn::{Phases, TunnelEnd},
    drain::{Drain, Kind as Work, Phase},
    message::BoxIo,
};

/// The thread's buffer: a tunnel in which nothing moves owns none.
const SCRATCH: usize = 64 * 1024;

/// Reads of one poll and direction, after which others of the thread get their turn.
const TURNS: usize = 8;

/// How long the end of the process waits for a tunnel to come to the end of a frame.
const BOUNDARY_WAIT: Duration = Duration::from_millis(300);

/// How long it then waits for the Close frames of both sides. They have been told all there is to tell.
const CLOSE_WAIT: Duration = Duration::from_millis(100);

/// 1001: going away (RFC 6455 section 7.4.1), as a server sends it, and as a client does, masked with zeros (a mask hides
/// nothing from anybody; it keeps caches from being fooled by what a script sends, and no script sends this).
const CLOSE_TO_CLIENT: &[u8] = &[0x88, 2, 0x03, 0xe9];
const CLOSE_TO_SERVICE: &[u8] = &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9];

/// RFC 6455 section 5.2.
const OPCODE_CLOSE: u8 = 8;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// What a tunnel needs to know.
pub struct Settings {
    /// It ends when nothing moves for so long.
    pub idle: Option<Duration>,
    /// The end of the process, when each side is sent a Close frame.
    pub drain: Drain,
    /// How many are open.
    pub open: Arc<AtomicUsize>,
    /// Where bytes are counted, if somebody wants to know.
    pub phases: Option<Arc<Phases>>,
}

/// Runs a tunnel to its end. `from_client` and `from_service` have been read already.
pub async fn run(client: BoxIo, from_client: Bytes, service: Socket, from_service: Bytes, settings: Settings) {
    let _open = Open::new(settings.open.clone());
    let tunnel = Tunnel {
        client,
        service,
        upwards: Direction::new(from_client, CLOSE_TO_SERVICE),
        downwards: Direction::new(from_service, CLOSE_TO_CLIENT),
        idle: Idle::new(settings.idle),
        ended: None,
    };
    // Boxed, so that what a tunnel owns at rest is one allocation of its own size.
    let mut tunnel = Box::pin(tunnel);
    let (work, mut phase) = (settings.drain.begin(Work::Tunnel), settings.drain.watch());
    let closing = poll_fn(|cx| match tunnel.poll(cx) {
        Poll::Ready(_ended) => Poll::Ready(false),
        Poll::Pending if phase.poll(cx) == Phase::Closing => Poll::Ready(true),
        Poll::Pending => Poll::Pending,
    });
    if closing.await {
        Box::pin(tunnel.close()).await;
        work.end();
    }
    if let Some(phases) = &settings.phases {
        phases.tunnelled().ended(tunnel.ended.unwrap_or(TunnelEnd::Idle));
        phases.tunnelled().upwards.store(tunnel.upwards.bytes, Ordering::Relaxed);
        phases.tunnelled().downwards.store(tunnel.downwards.bytes, Ordering::Relaxed);
    }
}

struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(open: Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(open)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Tunnel {
    client: BoxIo,
    service: Socket,
    upwards: Direction,
    downwards: Direction,
    idle: Idle,
    /// Who was the first to end.
    ended: Option<TunnelEnd>,
}

impl Tunnel {
    /// Moves what can be moved. Ready when both sides have ended, when one is broken, or when nothing moves any more.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let up = self.upwards.poll(cx, &mut self.client, &mut self.service);
        self.note(self.upwards.end(&up, TunnelEnd::Client, TunnelEnd::Service));
        let up = up?;
        let down = self.downwards.poll(cx, &mut self.service, &mut self.client);
        self.note(self.downwards.end(&down, TunnelEnd::Service, TunnelEnd::Client));
        let down = down?;
        if up.is_ready() && down.is_ready() {
            return Poll::Ready(Ok(()));
        }
        let moved = self.upwards.has_moved() | self.downwards.has_moved();
        self.idle.poll(cx, moved).map(Ok)
    }

    fn note(&mut self, end: Option<TunnelEnd>) {
        self.ended = self.ended.or(end);
    }

    /// Closes both sides with 1001, each at the end of a frame.
    async fn close(&mut self) {
        self.note(Some(TunnelEnd::Drain));
        self.upwards.stop = true;
        self.downwards.stop = true;
        self.poll_until(BOUNDARY_WAIT, |tunnel| tunnel.upwards.is_told() && tunnel.downwards.is_told()).await;
        self.poll_until(CLOSE_WAIT, |tunnel| tunnel.upwards.frames.closed && tunnel.downwards.frames.closed).await;
        let ends = async { tokio::join!(self.client.shutdown(), self.service.shutdown()) };
        // A side that is gone, or takes nothing, needs no more.
        let _ = timeout(CLOSE_WAIT, ends).await;
    }

    /// Goes on until it is done, for a limited time.
    async fn poll_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) {
        let mut timer = Box::pin(sleep(limit));
        poll_fn(|cx| match self.poll(cx) {
            Poll::Ready(_ended) => Poll::Ready(()),
            Poll::Pending if done(self) => Poll::Ready(()),
            Poll::Pending => timer.as_mut().poll(cx),
        })
        .await;
    }
}

/// One way through the tunnel.
struct Direction {
    /// Read, and not yet taken by the other side.
    pending: BytesMut,
    frames: Frames,
    /// The Close frame that is sent at the next boundary once `stop` is set.
    close: &'static [u8],
    stop: bool,
    state: State,
    moved: bool,
    /// Reading is what failed.
    read_failed: bool,
    /// How many have come in.
    bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The Close frame is written; what still comes is read and dropped.
    Closed,
    /// The sender has ended; the receiver must hear of it.
    Ended,
    Done,
}

impl Direction {
    fn new(early: Bytes, close: &'static [u8]) -> Self {
        let mut frames = Frames::default();
        frames.pass(&early, false);
        let bytes = early.len() as u64;
        Self {
            bytes,
            pending: BytesMut::from(early),
            frames,
            close,
            stop: false,
            state: State::Open,
            moved: false,
            read_failed: false,
        }
    }

    /// Which side has ended, if one has: the one that is read from, or the one that is written to.
    fn end(&self, polled: &Poll<io::Result<()>>, from: TunnelEnd, to: TunnelEnd) -> Option<TunnelEnd> {
        match polled {
            Poll::Ready(Err(_)) if !self.read_failed => Some(to),
            Poll::Ready(Err(_)) => Some(from),
            _ => matches!(self.state, State::Ended | State::Done).then_some(from),
        }
    }

    /// Whether the receiver has all that it will ever get.
    fn is_told(&self) -> bool {
        self.state != State::Open && self.pending.is_empty()
    }

    const fn has_moved(&mut self) -> bool {
        std::mem::replace(&mut self.moved, false)
    }

    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..TURNS {
            while !self.pending.is_empty() {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.pending))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.pending.advance(n);
            }
            self.pending = BytesMut::new();
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                State::Ended => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Done;
                    return Poll::Ready(Ok(()));
                }
                State::Open if self.stop && self.frames.at_boundary() => {
                    self.pending.extend_from_slice(self.close);
                    self.state = State::Closed;
                    continue;
                }
                State::Open | State::Closed => {}
            }
            match self.poll_move(cx, from, to) {
                Poll::Ready(moved) => moved?,
                Poll::Pending => {
                    // What was written may still wait in the TLS layer.
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once and writes what was read, as far as it goes.
    fn poll_move<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        BUFFER.with_borrow_mut(|buffer| {
            let mut buf = ReadBuf::new(buffer);
            match ready!(Pin::new(from).poll_read(cx, &mut buf)) {
                Ok(()) if buf.filled().is_empty() => self.state = State::Ended,
                Ok(()) => {}
                // Many clients leave without a close_notify; the WebSocket has an end of its own.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.state = State::Ended,
                Err(error) => {
                    self.read_failed = true;
                    return Poll::Ready(Err(error));
                }
            }
            self.moved = true;
            self.bytes += buf.filled().len() as u64;
            let passing = self.frames.pass(buf.filled(), self.stop && self.state == State::Open);
            if self.state != State::Open {
                return Poll::Ready(Ok(()));
            }
            let mut bytes = &buf.filled()[..passing];
            while !bytes.is_empty() {
                match Pin::new(&mut *to).poll_write(cx, bytes)? {
                    Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(n) => bytes = &bytes[n..],
                    Poll::Pending => {
                        self.pending.extend_from_slice(bytes);
                        break;
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
    }
}

/// Where in the sequence of frames a direction stands.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; 14],
    have: usize,
    payload: u64,
    /// A Close frame has begun.
    closed: bool,
}

impl Frames {
    /// Whether the next byte begins a frame.
    const fn at_boundary(&self) -> bool {
        self.have == 0 && self.payload == 0
    }

    /// Follows the bytes; how many pass: all, or with `stop` those up to the first boundary.
    fn pass(&mut self, bytes: &[u8], stop: bool) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            if self.payload > 0 {
                let n = self.payload.min((bytes.len() - at) as u64);
                self.payload -= n;
                at += usize::try_from(n).expect("not more than a slice");
            } else {
                self.header[self.have] = bytes[at];
                self.have += 1;
                at += 1;
                if let Some(payload) = self.whole_header() {
                    self.closed |= self.header[0] & 0x0f == OPCODE_CLOSE;
                    self.have = 0;
                    self.payload = payload;
                }
            }
            if stop && self.at_boundary() {
                return at;
            }
        }
        at
    }

    /// The length of the payload, once the header is whole.
    fn whole_header(&self) -> Option<u64> {
        let header = &self.header[..self.have];
        let second = *header.get(1)?;
        let (extended, short) = match second & 0x7f {
            126 => (2, 0),
            127 => (8, 0),
            short => (0, u64::from(short)),
        };
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        if header.len() < 2 + extended + mask {
            return None;
        }
        let length = header[2..2 + extended].iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
        Some(if extended == 0 { short } else { length })
    }
}

/// Ends a tunnel in which nothing moves.
struct Idle {
    limit: Option<Duration>,
    since: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    fn new(limit: Option<Duration>) -> Self {
        let since = Instant::now();
        Self { limit, since, timer: limit.map(|limit| Box::pin(sleep_until(since + limit))) }
    }

    /// The timer is left alone while things move, and set anew only when it fires too early.
    fn poll(&mut self, cx: &mut Context<'_>, moved: bool) -> Poll<()> {
        let (Some(limit), Some(timer)) = (self.limit, &mut self.timer) else { return Poll::Pending };
        if moved {
            self.since = Instant::now();
        }
        while timer.as_mut().poll(cx).is_ready() {
            let end = self.since + limit;
            if Instant::now() >= end {
                return Poll::Ready(());
            }
            timer.as_mut().reset(end);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn tunnel(idle: Option<Duration>) -> (DuplexStream, TcpStream, Drain, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let (near, client) = duplex(1024);
        let drain = Drain::new(1);
        let settings = Settings { idle, drain: drain.clone(), open: Arc::default(), phases: None };
        let early = Bytes::from_static(b"\x82\x03abc");
        let running = run(Box::new(client), Bytes::new(), Socket::Tcp(service), early, settings);
        #[expect(clippy::disallowed_methods, reason = "the test waits for it")]
        let task = tokio::spawn(running);
        (near, far, drain, task)
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_each_side_ends_on_its_own() {
        let (mut near, mut far, _, task) = tunnel(None).await;
        let mut early = [0; 5];
        near.read_exact(&mut early).await.unwrap();
        assert_eq!(&early, b"\x82\x03abc", "what came with the 101 is not lost");
        near.write_all(b"to the service").await.unwrap();
        near.shutdown().await.unwrap();
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"to the service");
        far.write_all(&[7; 100_000]).await.unwrap();
        drop(far);
        let mut got = Vec::new();
        near.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), 100_000);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn the_end_of_the_process_closes_a_tunnel_between_two_frames() {
        let (mut near, mut far, drain, task) = tunnel(None).await;
        far.write_all(b"\x82\x05ab").await.unwrap();
        let mut got = [0; 9];
        near.read_exact(&mut got).await.unwrap();
        drain.enter(Phase::Draining);
        far.write_all(b"cd").await.unwrap();
        near.read_exact(&mut got[..2]).await.unwrap();
        drain.enter(Phase::Closing);
        let mut up = [0; CLOSE_TO_SERVICE.len()];
        far.read_exact(&mut up).await.unwrap();
        assert_eq!(up, CLOSE_TO_SERVICE);
        far.write_all(b"e\x82\x01z").await.unwrap();
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, [b"e".as_slice(), CLOSE_TO_CLIENT].concat());
        task.await.unwrap();
    }

    #[tokio::test]
    async fn silence_ends_a_tunnel() {
        let (mut near, _far, _, task) = tunnel(Some(Duration::from_millis(50))).await;
        near.read_exact(&mut [0; 5]).await.unwrap();
        assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
        task.await.unwrap();
    }

    #[test]
    fn boundaries_are_found_whatever_the_cut() {
        let frames: [&[u8]; 5] =
            [b"\x81\x00", b"\x82\x03abc", b"\x82\x83mask123", b"\x82\x7e\x00\x04wxyz", b"\x88\x7f\0\0\0\0\0\0\0\x02no"];
        let all = frames.concat();
        let ends: Vec<usize> = frames
            .iter()
            .scan(0, |at, frame| {
                *at += frame.len();
                Some(*at)
            })
            .collect();
        for step in 1..=all.len() {
            let mut follow = Frames::default();
            let mut at = 0;
            for piece in all.chunks(step) {
                follow.pass(piece, false);
                at += piece.len();
                assert_eq!(follow.at_boundary(), ends.contains(&at), "{at}");
            }
            assert_eq!(Frames::default().pass(&all[ends[0]..], true), frames[1].len());
        }
    }
}

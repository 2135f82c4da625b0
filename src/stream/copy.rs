//! Bytes in both directions, unread, until both sides have ended, one is broken, or nothing moves.

use std::{
    cell::RefCell,
    future::{Future as _, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};

use super::record::{End, Record};
use crate::{
    clock::IdleTimer,
    drain::{Drain, Phase},
};

/// The thread's buffer: a connection in which nothing moves owns none.
const SCRATCH: usize = 64 * 1024;

/// Reads of one poll and direction, after which the other connections of the thread get their turn.
const TURNS: usize = 8;

/// Over how long a drain spreads its closings, so that the clients do not all come back at once.
const SPREAD_MS: u64 = 200;

/// How long a drain waits until what was read has been written.
const CLOSING: Duration = Duration::from_millis(200);

/// What every STUN message since RFC 5389 has at bytes 4 to 7.
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// How a browser, a scanner or a health check begins that takes the port for HTTP.
const HTTP: [&[u8]; 5] = [b"GET ", b"HEAD ", b"POST ", b"OPTIONS ", b"PRI * HTTP/2"];

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// Bounds on the silence of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until the client's first STUN message, where one is expected.
    pub opening: Option<Duration>,
    /// From then on.
    pub idle: Option<Duration>,
    /// Whether the client has to begin with a STUN message.
    pub expects_stun: bool,
}

/// Copies until the end, which is noted in `record`. `early` has been read from the client already.
pub async fn run<IO: AsyncRead + AsyncWrite + Unpin>(
    client: IO,
    server: TcpStream,
    early: Bytes,
    limits: Limits,
    drain: &Drain,
    record: &mut Record,
) {
    let opening = if limits.expects_stun { Opening::Unknown(Vec::new()) } else { Opening::Known };
    let first = match opening {
        Opening::Unknown(_) => shorter(limits.opening, limits.idle),
        Opening::Known => limits.idle,
    };
    record.received(early.len());
    // Boxed, so that what a connection owns at rest is one allocation of its own size.
    let mut copy = Box::pin(Copy {
        client,
        server,
        upwards: Direction::new(early),
        downwards: Direction::new(Bytes::new()),
        timer: IdleTimer::new(first),
        opening,
        idle: limits.idle,
    });
    let mut draining = Box::pin(drain.reached(Phase::Closing));
    let drained = poll_fn(|cx| match copy.poll(cx, record) {
        Poll::Ready(()) => Poll::Ready(false),
        Poll::Pending => draining.as_mut().poll(cx).map(|()| true),
    });
    if drained.await {
        copy.drain(record).await;
    } else if record.is_ended_here() {
        close(&mut copy.client).await;
    }
}

/// Tells a client that the connection is over, if it takes that in time.
pub async fn close<IO: AsyncWrite + Unpin>(client: &mut IO) {
    // It is closed either way.
    let _ = timeout(CLOSING, client.shutdown()).await;
}

fn shorter(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

/// A client's connection and a server's.
struct Copy<IO> {
    client: IO,
    server: TcpStream,
    upwards: Direction,
    downwards: Direction,
    timer: IdleTimer,
    opening: Opening,
    idle: Option<Duration>,
}

/// Whether the client has shown that it speaks TURN.
enum Opening {
    /// Its first bytes.
    Unknown(Vec<u8>),
    /// It has, or nothing is expected.
    Known,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Copy<IO> {
    /// Moves what can be moved. Ready when the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>, record: &mut Record) -> Poll<()> {
        let Self { client, server, upwards, downwards, opening, .. } = self;
        let up = upwards.poll(cx, client, server, |bytes| {
            record.received(bytes.len());
            opening.accept(bytes)
        });
        note(record, upwards, &up, End::Client, End::Upstream);
        let down = downwards.poll(cx, server, client, |bytes| {
            record.sent(bytes.len());
            true
        });
        note(record, downwards, &down, End::Upstream, End::Client);
        match (up, down) {
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) | (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                return Poll::Ready(());
            }
            _ => {}
        }
        if upwards.has_moved() | downwards.has_moved() {
            self.timer.moved();
            if matches!(self.opening, Opening::Known) {
                self.timer.begin(self.idle);
            }
        }
        ready!(self.timer.poll(cx));
        let silent = matches!(self.opening, Opening::Unknown(_));
        record.end(if silent { End::Silent } else { End::Idle }, None);
        Poll::Ready(())
    }

    /// Closes both sides in order, at a random moment of the next second.
    async fn drain(&mut self, record: &mut Record) {
        let mut timer = Box::pin(sleep_until(Instant::now() + Duration::from_millis(random() % SPREAD_MS)));
        let waited = poll_fn(|cx| match self.poll(cx, record) {
            Poll::Ready(()) => Poll::Ready(false),
            Poll::Pending => timer.as_mut().poll(cx).map(|()| true),
        });
        if !waited.await {
            return;
        }
        record.end(End::Drain, None);
        let Self { client, server, upwards, downwards, .. } = self;
        let closing = async {
            server.write_all(&upwards.pending).await?;
            client.write_all(&downwards.pending).await?;
            client.shutdown().await?;
            server.shutdown().await
        };
        // Whoever does not take it in time is closed all the same.
        let _ = timeout(CLOSING, closing).await;
    }
}

/// Any number will do that differs from connection to connection.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0)
}

/// Notes the end of a direction: the side that is read from has ended or failed, or the one that is written to has.
fn note(record: &mut Record, direction: &Direction, polled: &Poll<io::Result<()>>, from: End, to: End) {
    match polled {
        Poll::Ready(Err(_)) if direction.refused => record.end(End::Http, None),
        Poll::Ready(Err(error)) => record.failed(if direction.read_failed { from } else { to }, error),
        _ if direction.state != State::Open => record.end(from, None),
        _ => {}
    }
}

impl Opening {
    /// Looks at the first bytes of a client; false, if they are HTTP.
    fn accept(&mut self, bytes: &[u8]) -> bool {
        let Self::Unknown(first) = self else { return true };
        if first.is_empty() && HTTP.iter().any(|method| bytes.starts_with(method)) {
            return false;
        }
        let missing = 8_usize.saturating_sub(first.len());
        first.extend_from_slice(&bytes[..bytes.len().min(missing)]);
        // The two highest bits of a STUN message are zero (RFC 8489 section 5).
        if first.len() == 8 && first[0] < 0x40 && first[4..] == MAGIC_COOKIE {
            *self = Self::Known;
        }
        true
    }
}

/// One way through the connection.
struct Direction {
    /// Read, and not yet taken by the other side.
    pending: BytesMut,
    state: State,
    moved: bool,
    /// Reading is what failed.
    read_failed: bool,
    /// What was read must not be forwarded.
    refused: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The sender has ended; the receiver must hear of it.
    Ended,
    Done,
}

impl Direction {
    fn new(early: Bytes) -> Self {
        Self { pending: BytesMut::from(early), state: State::Open, moved: false, read_failed: false, refused: false }
    }

    const fn has_moved(&mut self) -> bool {
        std::mem::replace(&mut self.moved, false)
    }

    /// Copies as far as it goes. `accept` sees all bytes, and says whether the connection may go on.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        mut accept: impl FnMut(&[u8]) -> bool,
    ) -> Poll<io::Result<()>>
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
                self.moved = true;
                self.pending.advance(n);
            }
            if self.pending.capacity() > 0 {
                self.pending = BytesMut::new();
            }
            match self.state {
                State::Open => {}
                State::Ended => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Done;
                    return Poll::Ready(Ok(()));
                }
                State::Done => return Poll::Ready(Ok(())),
            }
            match self.poll_move(cx, from, to, &mut accept) {
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
    fn poll_move<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        accept: &mut impl FnMut(&[u8]) -> bool,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        BUFFER.with_borrow_mut(|buffer| {
            let mut buf = ReadBuf::new(buffer);
            match ready!(Pin::new(from).poll_read(cx, &mut buf)) {
                Ok(()) if buf.filled().is_empty() => self.state = State::Ended,
                Ok(()) => {}
                // Many clients leave without a close_notify.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.state = State::Ended,
                Err(error) => {
                    self.read_failed = true;
                    return Poll::Ready(Err(error));
                }
            }
            self.moved = true;
            let mut bytes = buf.filled();
            if !accept(bytes) {
                self.refused = true;
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
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

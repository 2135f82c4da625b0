//! What one HTTP/2 connection may cost us: memory, work per turn, requests begun, time. Every bound of the protocol is a
//! number in this file with its reason; the bounds that an operator sets are [`Limits`].
//!
//! Two currencies. A [`Turn`] counts what we do before other connections of the thread run: it bounds latency. A
//! [`Budget`] counts what a peer makes us do without completing anything: it bounds floods. A budget is earned by
//! completed work (answers sent whole, bytes that the socket has taken), and refills slowly with time.

use std::time::{Duration, Instant};

use super::FRAME_HEADER;

/// Receive windows. A stream may have so much in flight as fills a fast line at a moderate distance; a connection, four
/// of them. Memory follows only where a client sends and a service does not read.
pub const STREAM_WINDOW: u32 = 1 << 20;
/// See [`STREAM_WINDOW`].
pub const CONNECTION_WINDOW: u32 = 4 << 20;

/// Largest frame that we accept; fewer, larger frames make uploads cheaper.
pub const MAX_FRAME: usize = 64 * 1024;

/// Bytes read at once: a whole frame, so that the payload of a large one is never copied together.
pub const READ: usize = MAX_FRAME + FRAME_HEADER;

/// DATA of at least this size keeps the buffer that it was read into; smaller payloads are copied behind each other, so
/// that a byte in a frame of its own holds one byte.
pub const PINNED_LEAST: usize = 8 * 1024;

/// Payloads of a connection that may keep their read buffers at once; further ones are copied. A payload of 8 KiB can
/// hold 128 KiB, so this is 2 MiB at most; a service that reads holds one or two.
pub const PINNED: usize = 16;

/// Copied payloads are gathered up to this size, and then begin a new buffer.
pub const CHUNK: usize = 64 * 1024;

/// Memory that the request bodies of a connection hold at most: a buffer that grows by doubling is at least half full,
/// every stream may have a small one, and see [`PINNED`].
pub const fn held_at_most(streams: usize) -> usize {
    2 * CONNECTION_WINDOW as usize + streams * 1024 + PINNED * 2 * MAX_FRAME
}

/// Output that is gathered before streams are held back and no more frames are read. Below it nobody waits for the
/// network.
pub const HIGH_WATER: usize = 64 * 1024;

/// What a stream may send before the next one has its turn. The frame that every peer accepts.
pub const QUANTUM: usize = 16 * 1024;

/// Streams reset by us of which frames may still be on their way (RFC 9113 section 5.1, "closed"): as many as are usually
/// open at once.
pub const RESETS_REMEMBERED: usize = 256;

/// How long a stream is held whose body nobody wants. RST_STREAM(NO_ERROR) right behind the answer is what the RFC allows
/// (section 8.1), but clients that still write take it for a failure and forget the answer (curl before 8). So the
/// window of the stream fills first, the client reads why, and most stop by themselves.
pub const ABANDONED: Duration = Duration::from_secs(1);

/// How long a request without a length waits for the first frame behind its head, which tells whether there is a body
/// at all: some clients end a request without a body by an empty DATA frame.
pub const FIRST_DATA: Duration = Duration::from_millis(50);

/// How long the GOAWAY that names the last stream waits for the answer to our PING, which tells that the peer has seen
/// the first GOAWAY.
pub const GOAWAY_GRACE: Duration = Duration::from_millis(500);

/// How long a connection that has just begun may take to its first request when we shut down: a round trip of a phone.
pub const FIRST_REQUEST: Duration = Duration::from_millis(300);

/// How long a peer has to take what is left to write once its connection has failed or is told to close at once.
pub const LAST_WRITE: Duration = Duration::from_millis(500);

/// Bounds that come with the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Streams that may be open at once.
    pub streams: usize,
    /// Bytes of a request head, counted as RFC 9113 section 6.5.2 counts MAX_HEADER_LIST_SIZE.
    pub list: usize,
    /// From the first byte of a head, or of the connection, to its last.
    pub header: Option<Duration>,
    /// A connection without a request.
    pub keep_alive: Option<Duration>,
    /// A body of which no byte moves, in either direction.
    pub body_stall: Option<Duration>,
}

/// Work of one turn, in units of roughly a microsecond: together about a millisecond.
#[derive(Debug)]
pub struct Turn(usize);

impl Turn {
    /// A turn ends when this much is done.
    const WORK: usize = 1_024;
    /// A frame, whatever it says.
    pub const FRAME: usize = 1;
    /// A block of fields, beside its bytes.
    pub const BLOCK: usize = 4;
    /// Polling the handler of a request once: a walk through all layers, and a few system calls.
    pub const POLL: usize = 16;

    /// A whole turn.
    pub(super) const fn new() -> Self {
        Self(Self::WORK)
    }

    /// Notes work; what is begun is finished, whatever it costs.
    pub const fn spend(&mut self, work: usize) {
        self.0 = self.0.saturating_sub(work);
    }

    /// Notes bytes that are copied, compressed or encrypted.
    pub const fn spend_bytes(&mut self, bytes: usize) {
        self.spend(bytes / 1024);
    }

    /// Whether it is the turn of others.
    pub const fn is_spent(&self) -> bool {
        self.0 == 0
    }
}

/// What a connection may still make us do without completing anything.
#[derive(Debug)]
pub struct Budget {
    left: i64,
    bytes: usize,
    refilled: Instant,
}

/// Nothing of a [`Budget`] is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetExhausted;

impl Budget {
    /// Frames without progress that a connection may send at once: far above what a browser does when it opens, or
    /// leaves a page of thumbnails; far below what makes a core busy.
    const BURST: i64 = 2_000;
    /// Of those, how many come back each second: RFC 9113 section 6.7 leaves room for pings, and a client measures its
    /// round-trip time with a few of them.
    const PER_SECOND: i64 = 20;
    /// A window update is earned by this many bytes that the socket has taken.
    const BYTES_PER_FRAME: usize = 1_024;
    /// What an exchange earns that is completed on both sides: its HEADERS, a few updates, and one that is aborted. So a
    /// connection may abort half of its requests for ever.
    const COMPLETED: i64 = 10;
    /// A frame that moves nothing: PING, PRIORITY, WINDOW_UPDATE, empty DATA, and every HEADERS until it is answered.
    /// DATA that carries something costs its window instead.
    pub const FRAME: i64 = 1;
    /// A stream that we have to reset before it was begun: above the limit, or malformed.
    pub const REFUSED: i64 = 2;
    /// A request that a service has begun to work on, and that is aborted: by RST_STREAM (CVE-2023-44487), or by an error that makes us reset it
    /// (CVE-2025-8671). A service worked for nothing. 300 in a row are the streams of a browser that leaves a page.
    pub const ABORTED: i64 = 6;

    /// The budget of a new connection.
    pub const fn new(now: Instant) -> Self {
        Self { left: Self::BURST, bytes: 0, refilled: now }
    }

    /// Takes what something costs.
    ///
    /// # Errors
    /// Nothing is left.
    pub fn spend(&mut self, cost: i64, now: Instant) -> Result<(), BudgetExhausted> {
        self.left -= cost;
        if self.left >= 0 {
            return Ok(());
        }
        let seconds = now.saturating_duration_since(self.refilled).as_secs();
        self.refilled += Duration::from_secs(seconds);
        self.earn(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(Self::PER_SECOND));
        if self.left < 0 { Err(BudgetExhausted) } else { Ok(()) }
    }

    /// The socket has taken so many bytes, which the peer may acknowledge.
    pub fn sent(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.earn(i64::try_from(self.bytes / Self::BYTES_PER_FRAME).unwrap_or(i64::MAX));
        self.bytes %= Self::BYTES_PER_FRAME;
    }

    /// A request was read and answered to its end.
    pub fn completed(&mut self) {
        self.earn(Self::COMPLETED);
    }

    fn earn(&mut self, n: i64) {
        self.left = self.left.saturating_add(n).min(Self::BURST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floods_exhaust_it() {
        for (cost, most) in [(Budget::FRAME, 2_000), (Budget::REFUSED, 1_000), (Budget::ABORTED, 334)] {
            let now = Instant::now();
            let mut budget = Budget::new(now);
            assert_eq!((0..most + 1).position(|_| budget.spend(cost, now).is_err()), Some(2_000 / cost as usize));
        }
    }

    #[test]
    fn honest_work_goes_on_for_ever() {
        let mut now = Instant::now();
        let mut budget = Budget::new(now);
        for _ in 0..10_000 {
            // HEADERS and two updates of one request; HEADERS and RST_STREAM of another.
            (0..4).for_each(|_| budget.spend(Budget::FRAME, now).unwrap());
            budget.spend(Budget::ABORTED, now).unwrap();
            budget.completed();
        }
        for _ in 0..1_000 {
            now += Duration::from_secs(1);
            (0..Budget::PER_SECOND).for_each(|_| budget.spend(Budget::FRAME, now).unwrap());
        }
        for _ in 0..10_000 {
            budget.sent(Budget::BYTES_PER_FRAME);
            budget.spend(Budget::FRAME, now).unwrap();
        }
    }
}

//! What HTTP/2 leaves to whoever serves it: a connection that asks for nothing, one that takes nothing, and one that
//! keeps us busy with frames that move nothing. The h2 crate bounds memory in each of these cases, not time.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Frames without progress that a connection may send at once: far above what a browser does when it opens, or cancels a
/// page of thumbnails; far below what makes a core busy.
const BURST: i64 = 2_000;

/// Of those, how many come back each second: RFC 9113 section 6.7 leaves room for pings, and a client measures its
/// round-trip time with a few of them.
const PER_SECOND: i64 = 20;

/// What a request earns, and what cancelling one costs: a connection may cancel half of what it asks for, for ever, and
/// several hundred requests in a row (rapid reset, CVE-2023-44487).
const REQUEST: i64 = 10;
const CANCEL: i64 = 20;

/// A window update is earned by this many bytes that we sent.
const BYTES_PER_UPDATE: usize = 1024;

const HEADER: usize = 9;
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// Counts the frames of a peer against what they move. Sees only frame headers (RFC 9113 section 4.1).
pub struct FrameBudget {
    left: i64,
    earned: usize,
    since: Instant,
    /// Bytes of the preface or of a payload that are still to be passed over.
    skip: usize,
    header: [u8; HEADER],
    filled: usize,
}

impl FrameBudget {
    /// The budget of a new connection.
    pub fn new() -> Self {
        Self { left: BURST, earned: 0, since: Instant::now(), skip: PREFACE, header: [0; HEADER], filled: 0 }
    }

    /// We sent this many bytes, which the peer may acknowledge.
    pub fn wrote(&mut self, bytes: usize) {
        self.earned += bytes;
        self.earn((self.earned / BYTES_PER_UPDATE).try_into().unwrap_or(i64::MAX));
        self.earned %= BYTES_PER_UPDATE;
    }

    /// The peer sent these bytes.
    ///
    /// # Errors
    /// Its budget is spent.
    pub fn read(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = self.skip.min(bytes.len());
                self.skip -= n;
                bytes = &bytes[n..];
                continue;
            }
            let n = (HEADER - self.filled).min(bytes.len());
            self.header[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
            self.filled += n;
            bytes = &bytes[n..];
            if self.filled == HEADER {
                self.filled = 0;
                self.frame()?;
            }
        }
        Ok(())
    }

    fn frame(&mut self) -> io::Result<()> {
        let [a, b, c, kind, flags, ..] = self.header;
        let len = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.skip = len;
        match kind {
            // DATA that carries something or ends a stream; HEADERS.
            0 if len > 0 || flags & 1 != 0 => self.earn(1),
            1 => self.earn(REQUEST),
            // RST_STREAM.
            3 => self.left -= CANCEL,
            // Empty DATA, PRIORITY, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION, and whatever else.
            _ => self.left -= 1,
        }
        if self.left >= 0 {
            return Ok(());
        }
        let seconds = self.since.elapsed().as_secs();
        self.since += Duration::from_secs(seconds);
        self.earn(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(PER_SECOND));
        if self.left < 0 { Err(io::Error::other("frames that move nothing")) } else { Ok(()) }
    }

    fn earn(&mut self, n: i64) {
        self.left = self.left.saturating_add(n).min(BURST);
    }
}

/// The streams of one connection, as far as the watchdog cares.
#[derive(Debug)]
pub struct Streams {
    open: AtomicUsize,
    /// When the last of them ended (milliseconds of `epoch`).
    idle_since: AtomicU64,
    /// Answers that wait for the peer to take more, and when the last of them began to or moved on (likewise).
    waiting: AtomicUsize,
    waiting_since: AtomicU64,
    epoch: Instant,
}

impl Streams {
    /// No stream yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            open: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            waiting_since: AtomicU64::new(0),
            epoch: Instant::now(),
        })
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Since when none has been open.
    pub fn idle_since(&self) -> Option<Instant> {
        (self.open() == 0).then(|| self.at(&self.idle_since))
    }

    /// Since when answers have been waiting without any of them moving on.
    pub fn waiting_since(&self) -> Option<Instant> {
        (self.waiting.load(Ordering::Relaxed) > 0).then(|| self.at(&self.waiting_since))
    }

    fn at(&self, time: &AtomicU64) -> Instant {
        self.epoch + Duration::from_millis(time.load(Ordering::Relaxed))
    }

    fn note(&self, time: &AtomicU64) {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        time.store(now, Ordering::Relaxed);
    }
}

/// One open stream.
#[derive(Debug)]
pub struct OpenStream {
    streams: Arc<Streams>,
    waits: bool,
}

impl OpenStream {
    /// Opens one.
    pub fn new(streams: &Arc<Streams>) -> Self {
        streams.open.fetch_add(1, Ordering::Relaxed);
        Self { streams: streams.clone(), waits: false }
    }

    /// The answer has something to send and the peer has to take it.
    pub fn waits_for_peer(&mut self) {
        if !std::mem::replace(&mut self.waits, true) {
            self.streams.waiting.fetch_add(1, Ordering::Relaxed);
            self.streams.note(&self.streams.waiting_since);
        }
    }

    /// The peer has taken it.
    pub fn moves(&mut self) {
        if std::mem::replace(&mut self.waits, false) {
            self.streams.waiting.fetch_sub(1, Ordering::Relaxed);
            self.streams.note(&self.streams.waiting_since);
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.moves();
        if self.streams.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.streams.note(&self.streams.idle_since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, len: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, len, kind, flags, 0, 0, 0, 1];
        frame.extend(vec![0; len.into()]);
        frame
    }

    fn opened() -> FrameBudget {
        let mut budget = FrameBudget::new();
        budget.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        budget
    }

    #[tokio::test(start_paused = true)]
    async fn floods_are_seen_whatever_the_cut() {
        for (kind, flags, len) in [(6, 0, 8), (4, 0, 0), (0, 0, 0), (2, 0, 5), (8, 0, 4), (9, 0, 1)] {
            let flood: Vec<u8> = (0..3_000).flat_map(|_| frame(kind, flags, len)).collect();
            for step in [1, 7, 4096] {
                let mut budget = opened();
                assert!(flood.chunks(step).any(|chunk| budget.read(chunk).is_err()), "{kind}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_from_its_last_request_on_however_short() {
        let streams = Streams::new();
        tokio::time::advance(Duration::from_secs(10)).await;
        let stream = OpenStream::new(&streams);
        assert_eq!(streams.idle_since(), None);
        drop(stream);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(streams.idle_since().map(|since| since.elapsed()), Some(Duration::from_secs(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn rapid_reset_is_seen() {
        let pair = [frame(1, 5, 10), frame(3, 0, 4)].concat();
        let mut budget = opened();
        assert!((0..1_000).any(|_| budget.read(&pair).is_err()));
    }

    #[tokio::test(start_paused = true)]
    async fn honest_work_goes_on_for_ever() {
        let mut budget = opened();
        for _ in 0..10_000 {
            budget.read(&[frame(1, 5, 30), frame(8, 0, 4), frame(8, 0, 4)].concat()).unwrap();
            budget.wrote(4096);
        }
        for _ in 0..10_000 {
            budget.read(&[frame(0, 0, 200), frame(6, 0, 8)].concat()).unwrap();
        }
        for _ in 0..1_000 {
            tokio::time::advance(Duration::from_secs(1)).await;
            budget.read(&frame(6, 0, 8).repeat(PER_SECOND as usize)).unwrap();
        }
    }
}

//! What HTTP/2 leaves to whoever serves it: a connection that asks for nothing, one that takes nothing, and one that does
//! not come to the end of a head.

use std::{
    future::Future as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

use super::connection::Connection;
use crate::{message::Io, serve::Settings, wire::h2::Reason};

/// How often the watchdog looks. Limits are met within this much.
const LOOK: Duration = Duration::from_millis(500);

/// After the last GOAWAY of an idle or draining connection, how long the peer has to leave.
const LEAVE: Duration = Duration::from_secs(5);

/// An answer that waits for its peer this many times `body_stall` is given up, even if others of the connection move.
const PATIENCE: u32 = 10;

/// What becomes of a connection.
pub enum WatchdogAction {
    /// It is dropped.
    Drop,
    /// It is told to leave.
    Tell(Reason),
}

/// Judges a connection twice a second.
pub struct Watchdog {
    streams: Arc<Streams>,
    look: Pin<Box<Sleep>>,
    header: Option<Duration>,
    keep_alive: Option<Duration>,
    body_stall: Option<Duration>,
    written: u64,
    written_at: Instant,
    leaving_since: Option<Instant>,
}

impl Watchdog {
    /// Begins now.
    pub fn new(settings: &Settings, streams: Arc<Streams>) -> Self {
        let now = Instant::now();
        Self {
            streams,
            look: Box::pin(sleep(LOOK)),
            header: settings.header,
            keep_alive: settings.keep_alive,
            body_stall: settings.body_stall,
            written: 0,
            written_at: now,
            leaving_since: None,
        }
    }

    /// Whether nobody has asked for anything for too long.
    pub fn is_idle(&self) -> bool {
        let since = self.streams.idle_since();
        since.is_some_and(|since| self.keep_alive.is_some_and(|limit| since.elapsed() >= limit))
    }

    /// The peer has been told to leave, now.
    pub fn leaves(&mut self) {
        self.leaving_since = Some(Instant::now());
    }

    /// Ready when something is to be done about the connection.
    pub fn poll<IO: Io>(&mut self, cx: &mut Context<'_>, connection: &Connection<IO>) -> Poll<WatchdogAction> {
        while self.look.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            self.look.as_mut().reset(now + LOOK);
            let (written, waits) = connection.progress();
            if written != self.written || !(waits || self.streams.waiting_since().is_some()) {
                (self.written, self.written_at) = (written, now);
            }
            let gone_for_good = self.leaving_since.is_some_and(|since| now.duration_since(since) >= LEAVE);
            if self.is_stalled(now) || self.streams.open() == 0 && gone_for_good {
                return Poll::Ready(WatchdogAction::Drop);
            }
            let block = connection.block_since().zip(self.header);
            if block.is_some_and(|(since, limit)| now.duration_since(since) >= limit) {
                return Poll::Ready(WatchdogAction::Tell(Reason::ENHANCE_YOUR_CALM));
            }
            connection.shared().lock().sweep(now);
            if self.leaving_since.is_none() && self.is_idle() || connection.progress().1 {
                // The next turn begins the farewell, or sends what the sweep has said.
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }

    fn is_stalled(&self, now: Instant) -> bool {
        let Some(limit) = self.body_stall else { return false };
        let nothing_moves = now.duration_since(self.written_at) >= limit;
        let oldest = self.streams.waiting_since().map(|since| now.duration_since(since));
        nothing_moves || oldest.is_some_and(|waiting| waiting >= limit * PATIENCE)
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
}

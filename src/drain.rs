//! The graceful end of the process: its phases, and the requests and tunnels in flight that decide when each begins.
//!
//! `app` moves the phases. `serve` and `upstream` register what they work on, and end it when it is not waited for any more.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::Method;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::conn;

/// How long a request of a safe method may wait for its answer once the drain has begun: a slow page comes by then, and a
/// long poll of thirty seconds does not hold up the restart.
pub const POLL_WAIT: Duration = Duration::from_secs(3);

/// What a request has at least, from its beginning, whenever that was.
pub const LEAST: Duration = Duration::from_millis(500);

/// How long a client may take nothing of its answer and still be waited for: a suspended phone reads no more today.
const STALLED: Duration = POLL_WAIT;

/// How far the process is on its way to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Connections and requests are served.
    Serving,
    /// They are served still; each answer tells its client to make a new connection for the next (`Connection: close`, GOAWAY).
    Draining,
    /// The listeners are closed. Idle connections are closed, tunnels and unanswered requests of safe methods are ended.
    Closing,
}

/// What is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request of a safe method and without a body that has no answer yet. Most that take long are long polls, and their
    /// clients repeat them by themselves.
    Poll,
    /// A request with a body or of an unsafe method.
    Upload,
    /// An answer that has begun, to a request that was a [`Kind::Poll`].
    Answer,
    /// A WebSocket.
    Tunnel,
}

impl Kind {
    /// The kind of a request whose answer has not begun.
    #[must_use]
    pub fn of(method: &Method, has_body: bool) -> Self {
        if method.is_safe() && !has_body { Self::Poll } else { Self::Upload }
    }
}

/// Handle on the drain of the process. Cheap to clone.
#[derive(Clone)]
pub struct Drain(Arc<Inner>);

struct Inner {
    phase: AtomicU8,
    /// One for each worker, so that none waits for another: see [`conn::worker`].
    shards: Box<[Mutex<Shard>]>,
    /// What was ended because of the drain.
    ended: Mutex<Summary>,
}

#[derive(Default)]
struct Shard {
    work: Slots<Entry>,
    watchers: Slots<Waker>,
}

struct Entry {
    kind: Kind,
    begun: Instant,
    stalled: Option<Instant>,
    waker: Option<Waker>,
}

impl Drain {
    /// A process that serves, on so many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let shards = (0..workers.max(1)).map(|_| Mutex::default()).collect();
        Self(Arc::new(Inner { phase: AtomicU8::new(Phase::Serving as u8), shards, ended: Mutex::default() }))
    }

    /// The current phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.0.phase.load(Ordering::Acquire) {
            0 => Phase::Serving,
            1 => Phase::Draining,
            _ => Phase::Closing,
        }
    }

    /// Whether clients are to go elsewhere with their next request.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.phase() != Phase::Serving
    }

    /// Moves on to a phase, and wakes everything that has to hear of it. A phase never goes back.
    pub fn enter(&self, phase: Phase) {
        self.0.phase.fetch_max(phase as u8, Ordering::AcqRel);
        for shard in &self.0.shards {
            let wakers: Vec<Waker> = {
                let shard = lock(shard);
                let entries = shard.work.iter().filter_map(|entry| entry.waker.as_ref());
                entries.chain(shard.watchers.iter()).cloned().collect()
            };
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// Tells one task of the phases.
    #[must_use]
    pub const fn watch(&self) -> PhaseWatch<'_> {
        PhaseWatch { drain: self, registered: None }
    }

    /// Waits for a phase.
    pub async fn reached(&self, phase: Phase) {
        let mut watch = self.watch();
        std::future::poll_fn(|cx| if watch.poll(cx) >= phase { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Registers work that begins now, until the guard is dropped.
    #[must_use]
    pub fn begin(&self, kind: Kind) -> InFlight<'_> {
        let (shard, begun) = (self.shard(), Instant::now());
        let slot = lock(&self.0.shards[shard]).work.insert(Entry { kind, begun, stalled: None, waker: None });
        InFlight { drain: self, shard, slot, kind, begun, waker: None, timer: None, is_stalled: false }
    }

    /// Whether something in flight is waited for, in a drain that began at `began`.
    ///
    /// In the first seconds that is every request. After that it is what takes longer than [`LEAST`], so that short requests
    /// which follow each other without a gap never hold up the end.
    #[must_use]
    pub fn is_waited_for(&self, began: Instant) -> bool {
        let now = Instant::now();
        let early = now.duration_since(began) < POLL_WAIT;
        self.0.shards.iter().any(|shard| {
            lock(shard).work.iter().any(|entry| match entry.kind {
                Kind::Tunnel => false,
                Kind::Poll => early,
                Kind::Upload | Kind::Answer => {
                    let stalls = entry.stalled.is_some_and(|since| now.duration_since(since) >= STALLED);
                    early || !stalls && now.duration_since(entry.begun) >= LEAST
                }
            })
        })
    }

    /// What is in flight now.
    #[must_use]
    pub fn in_flight(&self) -> Summary {
        let (mut summary, now) = (Summary::default(), Instant::now());
        for shard in &self.0.shards {
            lock(shard).work.iter().for_each(|entry| summary.add(entry.kind, now.duration_since(entry.begun)));
        }
        summary
    }

    /// What was ended because of the drain so far.
    #[must_use]
    pub fn ended(&self) -> Summary {
        *lock(&self.0.ended)
    }

    fn shard(&self) -> usize {
        conn::worker().unwrap_or_default() % self.0.shards.len()
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Drain").field(&self.phase()).finish()
    }
}

/// Wakes the task that polls it whenever a phase begins.
pub struct PhaseWatch<'a> {
    drain: &'a Drain,
    registered: Option<Registered>,
}

struct Registered {
    shard: usize,
    slot: usize,
    waker: Waker,
}

impl PhaseWatch<'_> {
    /// The current phase; the task is woken when the next one begins.
    pub fn poll(&mut self, cx: &Context<'_>) -> Phase {
        if !self.registered.as_ref().is_some_and(|registered| registered.waker.will_wake(cx.waker())) {
            self.unregister();
            let (shard, waker) = (self.drain.shard(), cx.waker().clone());
            let slot = lock(&self.drain.0.shards[shard]).watchers.insert(waker.clone());
            self.registered = Some(Registered { shard, slot, waker });
        }
        self.drain.phase()
    }

    fn unregister(&mut self) {
        if let Some(Registered { shard, slot, .. }) = self.registered.take() {
            lock(&self.drain.0.shards[shard]).watchers.remove(slot);
        }
    }
}

impl Drop for PhaseWatch<'_> {
    fn drop(&mut self) {
        self.unregister();
    }
}

/// One request or tunnel in flight, until dropped.
pub struct InFlight<'a> {
    drain: &'a Drain,
    shard: usize,
    slot: usize,
    kind: Kind,
    begun: Instant,
    waker: Option<Waker>,
    timer: Option<Pin<Box<Sleep>>>,
    is_stalled: bool,
}

impl InFlight<'_> {
    /// The answer begins.
    pub fn answers(&mut self) {
        if self.kind == Kind::Poll {
            self.kind = Kind::Answer;
            self.entry(|entry| entry.kind = Kind::Answer);
        }
    }

    /// The client takes nothing of its answer at the moment.
    pub fn stalls(&mut self) {
        if !std::mem::replace(&mut self.is_stalled, true) {
            self.entry(|entry| entry.stalled = Some(Instant::now()));
        }
    }

    /// The client takes something again.
    pub fn moves(&mut self) {
        if std::mem::replace(&mut self.is_stalled, false) {
            self.entry(|entry| entry.stalled = None);
        }
    }

    /// Ready when an unanswered request of a safe method is not waited for any more, and is to be ended in such a way that
    /// its client repeats it. Never ready for anything else: that goes on for as long as the process does.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.kind != Kind::Poll {
            return Poll::Pending;
        }
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            let waker = cx.waker().clone();
            self.waker = Some(waker.clone());
            self.entry(|entry| entry.waker = Some(waker));
        }
        if self.drain.phase() < Phase::Closing {
            return Poll::Pending;
        }
        let until = self.begun + LEAST;
        self.timer.get_or_insert_with(|| Box::pin(sleep_until(until))).as_mut().poll(cx)
    }

    /// Notes that it ends because of the drain.
    pub fn end(self) {
        lock(&self.drain.0.ended).add(self.kind, self.begun.elapsed());
    }

    fn entry(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = lock(&self.drain.0.shards[self.shard]).work.get_mut(self.slot) {
            change(entry);
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        lock(&self.drain.0.shards[self.shard]).work.remove(self.slot);
    }
}

/// Work of one kind: how much there is, and how old the oldest is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub count: usize,
    /// The age of the oldest.
    pub oldest: Duration,
}

/// Work by its kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// See [`Kind::Poll`].
    pub polls: Tally,
    /// See [`Kind::Upload`].
    pub uploads: Tally,
    /// See [`Kind::Answer`].
    pub answers: Tally,
    /// See [`Kind::Tunnel`].
    pub tunnels: Tally,
}

impl Summary {
    fn add(&mut self, kind: Kind, age: Duration) {
        let tally = match kind {
            Kind::Poll => &mut self.polls,
            Kind::Upload => &mut self.uploads,
            Kind::Answer => &mut self.answers,
            Kind::Tunnel => &mut self.tunnels,
        };
        tally.count += 1;
        tally.oldest = tally.oldest.max(age);
    }

    /// Both together.
    #[must_use]
    pub fn with(mut self, other: &Self) -> Self {
        let ours = [&mut self.polls, &mut self.uploads, &mut self.answers, &mut self.tunnels];
        for (ours, (_, theirs)) in ours.into_iter().zip(other.tallies()) {
            ours.count += theirs.count;
            ours.oldest = ours.oldest.max(theirs.oldest);
        }
        self
    }

    /// Each kind with its name.
    #[must_use]
    pub const fn tallies(&self) -> [(&'static str, Tally); 4] {
        [("polls", self.polls), ("uploads", self.uploads), ("answers", self.answers), ("tunnels", self.tunnels)]
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tallies().iter().all(|(_, tally)| tally.count == 0)
    }
}

impl fmt::Display for Summary {
    /// `3 uploads (oldest 4 s), 200 polls (oldest 29 s)`; `nothing` for none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, Tally { count, oldest }) in self.tallies().into_iter().filter(|(_, tally)| tally.count > 0) {
            let name = if count == 1 { name.trim_end_matches('s') } else { name };
            write!(f, "{separator}{count} {name} (oldest {} s)", oldest.as_secs())?;
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("nothing") } else { Ok(()) }
    }
}

/// Values that keep their place until they are removed, and places that are used again.
struct Slots<T> {
    values: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { values: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    fn insert(&mut self, value: T) -> usize {
        if let Some(slot) = self.free.pop() {
            self.values[slot] = Some(value);
            return slot;
        }
        self.values.push(Some(value));
        self.values.len() - 1
    }

    fn remove(&mut self, slot: usize) {
        if self.values[slot].take().is_some() {
            self.free.push(slot);
        }
    }

    fn get_mut(&mut self, slot: usize) -> Option<&mut T> {
        self.values.get_mut(slot)?.as_mut()
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.values.iter().flatten()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is done under these locks panics halfway.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn now(poll: impl FnMut(&mut Context<'_>) -> Poll<()>) -> bool {
        let mut poll = poll;
        poll_fn(|cx| Poll::Ready(poll(cx).is_ready())).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_is_waited_for_three_seconds_and_an_upload_longer() {
        let drain = Drain::new(2);
        let poll = drain.begin(Kind::of(&Method::GET, false));
        let upload = drain.begin(Kind::of(&Method::GET, true));
        tokio::time::advance(Duration::from_secs(20)).await;
        drain.enter(Phase::Draining);
        let began = Instant::now();
        assert!(drain.is_waited_for(began));
        drop(upload);
        assert!(drain.is_waited_for(began));
        tokio::time::advance(POLL_WAIT).await;
        assert!(!drain.is_waited_for(began), "a poll only");
        let fresh = drain.begin(Kind::of(&Method::POST, false));
        assert!(!drain.is_waited_for(began), "short requests without a gap hold up nothing");
        tokio::time::advance(LEAST).await;
        assert!(drain.is_waited_for(began), "this one takes its time");
        drop((poll, fresh));
        assert!(drain.in_flight().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_not_waited_for() {
        let drain = Drain::new(1);
        let mut answer = drain.begin(Kind::Poll);
        answer.answers();
        answer.stalls();
        let began = Instant::now();
        tokio::time::advance(POLL_WAIT).await;
        assert!(!drain.is_waited_for(began));
        answer.moves();
        assert!(drain.is_waited_for(began));
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_just_begun_has_half_a_second() {
        let drain = Drain::new(1);
        let mut old = drain.begin(Kind::Poll);
        tokio::time::advance(LEAST).await;
        let mut fresh = drain.begin(Kind::Poll);
        let mut answered = drain.begin(Kind::Poll);
        answered.answers();
        assert!(!now(|cx| old.poll_expired(cx)).await);
        drain.enter(Phase::Closing);
        assert!(now(|cx| old.poll_expired(cx)).await);
        assert!(!now(|cx| fresh.poll_expired(cx)).await && !now(|cx| answered.poll_expired(cx)).await);
        let began = Instant::now();
        poll_fn(|cx| fresh.poll_expired(cx)).await;
        assert_eq!(began.elapsed().as_millis() / 10, LEAST.as_millis() / 10);
        assert!(!now(|cx| answered.poll_expired(cx)).await);
        old.end();
        assert_eq!((drain.ended().polls.count, drain.in_flight().polls.count), (1, 1));
    }

    #[tokio::test]
    async fn every_phase_wakes_who_watches() {
        let drain = Drain::new(1);
        let mut watch = drain.watch();
        assert_eq!(poll_fn(|cx| Poll::Ready(watch.poll(cx))).await, Phase::Serving);
        drain.enter(Phase::Closing);
        drain.enter(Phase::Draining);
        assert_eq!(drain.phase(), Phase::Closing, "there is no way back");
        drain.reached(Phase::Draining).await;
        drop(watch);
        assert_eq!(lock(&drain.0.shards[0]).watchers.iter().count(), 0);
    }

    #[test]
    fn a_summary_is_told_in_words() {
        let mut summary = Summary::default();
        assert_eq!(summary.to_string(), "nothing");
        summary.add(Kind::Upload, Duration::from_millis(4200));
        summary.add(Kind::Poll, Duration::from_secs(29));
        summary.add(Kind::Poll, Duration::from_secs(3));
        assert_eq!(summary.to_string(), "2 polls (oldest 29 s), 1 upload (oldest 4 s)");
    }
}

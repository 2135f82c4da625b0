//! Connections that wait for their next request: one queue per worker, since a socket belongs to the reactor of the
//! thread that opened it.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::connect::UpstreamConnection;
use crate::conn::worker;

/// How long a connection waits at most, give or take the time between two looks at the pool. Synapse keeps one open for more than 200 s (measured), Go's servers for ever;
/// a shorter wait also lets a changed address be followed.
const MAX_IDLE: Duration = Duration::from_secs(90);

/// How many wait at most, per endpoint and worker: as many as the burst of a thousand requests leaves behind. With room
/// for 128, 512 streams at work closed and opened a connection for 38 % of their requests.
const MAX_WAITING: usize = 1024;

/// The idle connections of one endpoint.
pub struct Pool(Box<[Mutex<IdleQueue>]>);

struct IdleQueue {
    /// The longest unused first.
    idle: VecDeque<Idle>,
    /// When somebody tidied up last: exact enough, and nobody has to ask the clock for each request.
    now: Instant,
}

struct Idle {
    link: UpstreamConnection,
    since: Instant,
}

impl Pool {
    /// A pool with a queue for each worker.
    pub fn new(workers: usize) -> Self {
        let queue = || Mutex::new(IdleQueue { idle: VecDeque::new(), now: Instant::now() });
        Self((0..workers.max(1)).map(|_| queue()).collect())
    }

    /// The connection that was used last and is still open.
    pub fn take(&self) -> Option<UpstreamConnection> {
        let mut queue = lock(self.queue()?);
        while let Some(Idle { mut link, .. }) = queue.idle.pop_back() {
            if link.is_quiet() {
                return Some(link);
            }
        }
        None
    }

    /// Keeps a connection on which nothing is in flight, on a worker: any other thread's reactor is not where its next
    /// request will wait.
    pub fn insert(&self, link: UpstreamConnection) {
        let Some(queue) = self.queue() else { return };
        let mut queue = lock(queue);
        if queue.idle.len() >= MAX_WAITING {
            queue.idle.pop_front();
        }
        let since = queue.now;
        queue.idle.push_back(Idle { link, since });
    }

    /// The queue of this thread's worker.
    fn queue(&self) -> Option<&Mutex<IdleQueue>> {
        worker().map(|worker| &self.0[worker % self.0.len()])
    }

    /// Closes what has waited too long. To be called every half a minute or so.
    pub fn purge(&self) {
        for queue in &self.0 {
            let mut queue = lock(queue);
            queue.now = Instant::now();
            let now = queue.now;
            while queue.idle.front().is_some_and(|idle| now.duration_since(idle.since) >= MAX_IDLE) {
                queue.idle.pop_front();
            }
        }
    }

    /// How many wait, on all shelves.
    pub fn len(&self) -> usize {
        self.0.iter().map(|queue| lock(queue).idle.len()).sum()
    }
}

fn lock(queue: &Mutex<IdleQueue>) -> MutexGuard<'_, IdleQueue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

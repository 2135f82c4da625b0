//! Connections that wait for their next request: one shelf per worker, since a socket belongs to the reactor of the
//! thread that opened it.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::connect::Link;
use crate::conn::worker;

/// How long a connection waits at most. Synapse keeps one open for more than 200 s (measured), Go's servers for ever;
/// a shorter wait also lets a changed address be followed.
const MAX_IDLE: Duration = Duration::from_secs(90);

/// How many wait at most, per endpoint and worker: as many as the burst of a thousand requests leaves behind. With room
/// for 128, 512 streams at work closed and opened a connection for 38 % of their requests.
const MAX_WAITING: usize = 1024;

/// The idle connections of one endpoint.
pub struct Pool(Box<[Mutex<VecDeque<Idle>>]>);

struct Idle {
    link: Link,
    since: Instant,
}

impl Pool {
    /// A pool with a shelf for each worker.
    pub fn new(workers: usize) -> Self {
        Self((0..workers.max(1)).map(|_| Mutex::default()).collect())
    }

    /// The connection that was used last and is still open.
    pub fn take(&self) -> Option<Link> {
        let mut shelf = lock(&self.0[worker() % self.0.len()]);
        while let Some(mut idle) = shelf.pop_back() {
            if idle.since.elapsed() < MAX_IDLE && idle.link.is_quiet() {
                return Some(idle.link);
            }
        }
        None
    }

    /// Keeps a connection on which nothing is in flight.
    pub fn put(&self, link: Link) {
        let mut shelf = lock(&self.0[worker() % self.0.len()]);
        if shelf.len() >= MAX_WAITING {
            shelf.pop_front();
        }
        shelf.push_back(Idle { link, since: Instant::now() });
    }

    /// Closes what has waited too long.
    pub fn purge(&self) {
        for shelf in &self.0 {
            let mut shelf = lock(shelf);
            while shelf.front().is_some_and(|idle| idle.since.elapsed() >= MAX_IDLE) {
                shelf.pop_front();
            }
        }
    }

    /// How many wait, on all shelves.
    pub fn len(&self) -> usize {
        self.0.iter().map(|shelf| lock(shelf).len()).sum()
    }
}

fn lock<T>(shelf: &Mutex<T>) -> MutexGuard<'_, T> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

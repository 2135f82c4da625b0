//! A CA account at run time: the queue of its orders, its pool of nonces, and how far its clock is from ours. Shared by
//! all names; the pace of the orders is shared with other processes through the storage.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::{sync::Notify, time::sleep};
use tracing::warn;

use super::{
    Store, lock,
    schedule::MAX_SLEEP,
    scheduler::{Decision, Need, Pace, Scheduler, Ticket, orders_per_window},
};
use crate::{clock::Clock, error::chain};

/// Nonces that are kept. Four orders at once use no more; a CA forgets nonces, and a forgotten one costs a request.
const MAX_NONCES: usize = 8;

/// A smaller difference between the clocks is the time that an answer takes, or harmless.
const TOLERATED_OFFSET: Duration = Duration::from_secs(60);

/// What is shared by everything that asks one CA.
pub struct Authority {
    /// Its directory, for messages.
    url: String,
    /// Where the pace of orders is stored.
    file: String,
    store: Arc<Store>,
    clock: Clock,
    scheduler: Mutex<Scheduler>,
    /// Notified when an order starts or ends.
    changed: Notify,
    nonces: Mutex<Vec<String>>,
    offset: Mutex<Option<ClockOffset>>,
    /// The names by which the CA goes in DNS.
    issuers: Mutex<Vec<String>>,
    issuers_file: String,
}

/// How far the clock of a CA is from ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockOffset {
    /// Less than a minute.
    Small,
    /// Our clock is ahead by so much.
    Ahead(Duration),
    /// Our clock is behind by so much.
    Behind(Duration),
}

impl ClockOffset {
    /// The difference between our time and the CA's `Date`.
    fn new(ours: SystemTime, theirs: SystemTime) -> Self {
        match ours.duration_since(theirs) {
            Ok(ahead) if ahead > TOLERATED_OFFSET => Self::Ahead(ahead),
            Err(error) if error.duration() > TOLERATED_OFFSET => Self::Behind(error.duration()),
            _ => Self::Small,
        }
    }

    /// In words; `None` where there is nothing to tell.
    #[must_use]
    pub fn words(self) -> Option<String> {
        match self {
            Self::Small => None,
            Self::Ahead(by) => Some(format!("this machine's clock is {} ahead of the CA's", words(by))),
            Self::Behind(by) => Some(format!("this machine's clock is {} behind the CA's", words(by))),
        }
    }
}

/// A span in words: its two largest units.
#[must_use]
pub fn words(span: Duration) -> String {
    const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)];
    let seconds = span.as_secs();
    let largest = UNITS.iter().position(|(_, unit)| seconds >= *unit).unwrap_or(UNITS.len() - 1);
    let part = |(name, unit): &(&str, u64), left: u64| format!("{} {name}", left / unit);
    match UNITS.get(largest + 1) {
        Some(next) if seconds % UNITS[largest].1 >= next.1 => {
            format!("{} {}", part(&UNITS[largest], seconds), part(next, seconds % UNITS[largest].1))
        }
        _ => part(&UNITS[largest], seconds),
    }
}

/// The CA wants to be left alone.
#[derive(Debug, Clone)]
pub struct Paused {
    /// Until then.
    pub until: SystemTime,
    /// Why, in words.
    pub reason: String,
}

impl Authority {
    /// A CA that nothing is known of yet. `name` is its directory as a part of a file's name.
    pub fn new(url: &str, name: &str, store: Arc<Store>, clock: Clock) -> Self {
        Self {
            url: url.to_owned(),
            file: format!("accounts/{name}.pace.json"),
            store,
            clock,
            scheduler: Mutex::new(Scheduler::new(orders_per_window(url))),
            changed: Notify::new(),
            nonces: Mutex::default(),
            offset: Mutex::default(),
            issuers: Mutex::default(),
            issuers_file: format!("accounts/{name}.issuers.json"),
        }
    }

    /// Waits for the turn to place an order.
    ///
    /// # Errors
    /// The CA wants to be left alone for a while.
    pub async fn turn(&self, need: Need) -> Result<Turn<'_>, Paused> {
        let mut waiting = Waiting { authority: self, ticket: None };
        self.merge_stored(false).await?;
        let ticket = *waiting.ticket.insert(lock(&self.scheduler).join(need));
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            self.paused()?;
            let decision = lock(&self.scheduler).decide(ticket, self.clock.now());
            match decision {
                Decision::Start => break,
                Decision::Queued => changed.await,
                Decision::Wait(wait) => tokio::select! {
                    () = sleep(wait.min(MAX_SLEEP)) => {}
                    () = changed => {}
                },
            }
        }
        waiting.ticket = None;
        let turn = Turn(self);
        self.changed.notify_waiters();
        self.merge_stored(true).await?;
        Ok(turn)
    }

    /// Leaves the CA alone until then: every name, and every process on this storage.
    pub async fn pause(&self, until: SystemTime, reason: &str) {
        lock(&self.scheduler).pace().pause(until, reason, self.clock.now());
        self.changed.notify_waiters();
        // An error is as good as none: the pause holds for this process.
        let _ = self.merge_stored(true).await;
    }

    /// The pause that holds now.
    pub fn paused(&self) -> Result<(), Paused> {
        let now = self.clock.now();
        match lock(&self.scheduler).pace().paused(now) {
            Some((until, reason)) => Err(Paused { until, reason: reason.to_owned() }),
            None => Ok(()),
        }
    }

    /// Takes over what other processes have noted, and gives them ours if `save`.
    async fn merge_stored(&self, save: bool) -> Result<(), Paused> {
        let (file, ours, now) = (self.file.clone(), lock(&self.scheduler).pace().clone(), self.clock.now());
        let merged = self.store.run(move |store| {
            let _lock = store.lock("pace")?;
            let mut merged = ours;
            if let Some(text) = store.load(&file)? {
                merged.merge(&Pace::from_json(&text), now);
            }
            if save {
                store.save(&file, &merged.to_json())?;
            }
            Ok::<_, super::StoreError>(merged)
        });
        match merged.await {
            Ok(merged) => lock(&self.scheduler).pace().merge(&merged, now),
            Err(error) => warn!(directory = self.url, error = chain(&error), "the pace of orders cannot be shared"),
        }
        self.paused()
    }

    /// A nonce for the next request.
    pub fn take_nonce(&self) -> Option<String> {
        lock(&self.nonces).pop()
    }

    /// Keeps a nonce that the CA gave.
    pub fn keep_nonce(&self, nonce: String) {
        let mut nonces = lock(&self.nonces);
        if nonces.len() < MAX_NONCES {
            nonces.push(nonce);
        }
    }

    /// Drops all nonces: the CA has refused one, and those of the same age will fare no better.
    pub fn drop_nonces(&self) {
        lock(&self.nonces).clear();
    }

    /// The names by which the CA goes in DNS, once it has said so.
    pub fn issuers(&self) -> Vec<String> {
        lock(&self.issuers).clone()
    }

    /// Notes these names, and stores them for `vestibule dns-record`.
    pub async fn note_issuers(&self, names: Vec<String>) {
        if std::mem::replace(&mut *lock(&self.issuers), names.clone()) == names {
            return;
        }
        let (file, text) = (self.issuers_file.clone(), serde_json::json!(names).to_string());
        if let Err(error) = self.store.run(move |store| store.save(&file, &text)).await {
            warn!(directory = self.url, error = chain(&error), "the names of the CA cannot be stored");
        }
    }

    /// Compares the clocks, and tells when the result changes.
    pub fn note_date(&self, theirs: SystemTime) {
        let offset = ClockOffset::new(self.clock.now(), theirs);
        let before = lock(&self.offset).replace(offset);
        let kind = |offset: ClockOffset| std::mem::discriminant(&offset);
        if before.map(kind) != Some(kind(offset))
            && let Some(words) = offset.words()
        {
            warn!(directory = self.url, "{words}: set the clock, or certificates are renewed at the wrong time");
        }
    }

    /// How far the clocks are apart, once the CA has answered.
    pub fn offset(&self) -> Option<ClockOffset> {
        *lock(&self.offset)
    }
}

/// A place in the queue; dropping it leaves the queue.
struct Waiting<'a> {
    authority: &'a Authority,
    ticket: Option<Ticket>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            lock(&self.authority.scheduler).leave(ticket);
            self.authority.changed.notify_waiters();
        }
    }
}

/// The right to place one order; dropping it ends the order.
pub struct Turn<'a>(&'a Authority);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.0.scheduler).finish();
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(folder: &std::path::Path) -> Authority {
        let store = Arc::new(Store::new(folder.to_owned()));
        Authority::new("https://ca/dir", "ca", store, Clock::system())
    }

    #[tokio::test]
    async fn a_pause_of_one_process_holds_in_another() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (authority(folder.path()), authority(folder.path()));
        let until = Clock::system().now() + Duration::from_secs(600);
        one.pause(until, "rateLimited: too many").await;
        let paused = other.turn(Need::new(None)).await.err().unwrap();
        assert_eq!(paused.reason, "rateLimited: too many");
    }

    #[tokio::test]
    async fn a_request_that_is_dropped_leaves_the_queue() {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority(folder.path());
        let mut turns = Vec::new();
        for _ in 0..super::super::scheduler::ORDERS_AT_ONCE {
            turns.push(authority.turn(Need::new(None)).await.unwrap());
        }
        let gone = tokio::time::timeout(Duration::from_millis(300), authority.turn(Need::new(None)));
        assert!(gone.await.is_err(), "all turns are taken");
        turns.pop();
        authority.turn(Need::new(Some(Clock::system().now()))).await.unwrap();
    }

    #[test]
    fn clocks_that_differ_are_told_in_words() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let by = |seconds| Duration::from_secs(seconds);
        assert_eq!(ClockOffset::new(now, now - by(30)).words(), None);
        let ahead = ClockOffset::new(now, now - by(2 * 86_400 + 7200)).words().unwrap();
        assert_eq!(ahead, "this machine's clock is 2 d 2 h ahead of the CA's");
        let behind = ClockOffset::new(now, now + by(61)).words().unwrap();
        assert_eq!(behind, "this machine's clock is 1 min 1 s behind the CA's");
    }
}

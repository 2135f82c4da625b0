//! The task of a name whose certificate is ordered: it serves the newest certificate, and orders the next in its time. It
//! never gives up, never hurries the CA, and serves what it has meanwhile, even if that has expired.

use std::{
    hash::{BuildHasher as _, DefaultHasher, Hash as _, Hasher as _, RandomState},
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::FutureExt as _;
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, sleep},
};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::{
    CertError, Certificate, CertificateTask, Store, authority, check_dns_record,
    issue::{IssueError, Issued, Issuer, Pending, Wanted},
    schedule::{self, Action, ScheduleInput},
    scheduler::Need,
    state::{State, Stored},
};
use crate::{
    config::plan::{Challenge, Directory},
    error::{CertificateCause, chain},
};

/// After this many failures in a row at one CA, the next one of the list is asked first. A CA that is broken or limits
/// our requests is passed over at once.
const TRIES_PER_CA: u32 = 3;

/// A storage that cannot be written is tried again after this.
const STORAGE_RETRY: Duration = Duration::from_secs(60);

/// Starts the task of a name; the receiver is told when what is in the storage is served.
pub fn spawn(
    task: CertificateTask,
    store: Arc<Store>,
    issuers: Issuers,
    renew: Arc<Notify>,
    tasks: &TaskTracker,
) -> oneshot::Receiver<()> {
    let (sender, loaded) = oneshot::channel();
    let spread = spread(&task.host);
    let mut name =
        Name { task, store, issuers, state: State::default(), unsaved: false, rest_until: Instant::now(), spread };
    tasks.spawn(async move {
        let stop = name.task.stop.clone();
        // Boxed: an order is a long story, and a name is rarely in one.
        let run = Box::pin(async {
            name.load().await;
            // Nobody waits for it after a while.
            let _ = sender.send(());
            name.run(renew).await;
        });
        stop.run_until_cancelled(run).await;
    });
    loaded
}

/// The issuer of the newest configuration.
pub type Issuers = watch::Receiver<Arc<Issuer>>;

struct Name {
    task: CertificateTask,
    store: Arc<Store>,
    issuers: Issuers,
    state: State,
    /// The storage could not be written: what we hold is newer than what is stored.
    unsaved: bool,
    /// No order before this, whatever the clock of the day says.
    rest_until: Instant,
    /// See [`ScheduleInput::spread`].
    spread: u16,
}

/// Why an order is placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Schedule,
    /// The operator asked for it, whatever the schedule says.
    Operator,
}

impl Name {
    async fn run(&mut self, renew: Arc<Notify>) {
        let mut ask_at = self.task.clock.now();
        loop {
            // Computed anew from now: the clock may have been set while we slept.
            let now = self.task.clock.now();
            if now >= ask_at || ask_at > now + schedule::LONGEST_WAIT {
                ask_at = now + self.suggestion().await;
            }
            let now = self.task.clock.now();
            let rest = self.rest_until.saturating_duration_since(Instant::now());
            let until = match schedule::next(&self.input(), now) {
                Action::Order if rest.is_zero() => {
                    self.order(Reason::Schedule).await;
                    // A request to renew that came meanwhile has joined this order.
                    let _ = renew.notified().now_or_never();
                    // Another certificate, another window.
                    ask_at = self.task.clock.now();
                    continue;
                }
                Action::Order => now + rest,
                Action::Wait(until) => until,
            };
            self.task.next(until);
            self.task.warn_of(self.lasting_record().await);
            tokio::select! {
                () = sleep(schedule::sleep_for(until.min(ask_at), now, rest)) => {}
                // Another configuration; when the sender is gone, so is everything else.
                Ok(()) = self.issuers.changed() => {}
                () = renew.notified() => {
                    self.order(Reason::Operator).await;
                    let _ = renew.notified().now_or_never();
                    ask_at = self.task.clock.now();
                }
            }
        }
    }

    /// What is wrong with the record of dns-persist-01, where the file permits that challenge: it is told long before the
    /// next order fails for it.
    async fn lasting_record(&self) -> Option<String> {
        let issuer = self.issuer();
        let plan = &issuer.plan;
        if !plan.challenges.contains(&Challenge::DnsPersist01) || self.task.host.parse::<IpAddr>().is_ok() {
            return None;
        }
        let host = &self.task.host;
        let directory =
            plan.directories.iter().find(|one| one.url == self.state.directory).or_else(|| plan.directories.first())?;
        let wrong = check_dns_record(&self.store, plan.dns.as_ref(), &directory.url, host).await.ok().flatten()?;
        Some(format!("{wrong}; `vestibule dns-record {host}` prints the right one"))
    }

    fn issuer(&self) -> Arc<Issuer> {
        self.issuers.borrow().clone()
    }

    fn input(&self) -> ScheduleInput {
        ScheduleInput { moved: self.is_moved(), spread: self.spread, ..self.state.facts.clone() }
    }

    /// Whether the CA of what is held is none of those that are configured. One that is not known is as good as any.
    fn is_moved(&self) -> bool {
        let from = &self.state.directory;
        let directories = &self.issuer().plan.directories;
        !from.is_empty() && !directories.iter().any(|directory| directory.url.eq_ignore_ascii_case(from))
    }

    /// Takes what is in the storage. A damaged file is set aside and counts as none.
    async fn load(&mut self) {
        let host = self.task.host.clone();
        match self.store.run(move |store| State::load(store, &host)).await {
            Ok(Stored::Nothing) => {}
            Ok(Stored::Found(state, certificate)) => self.take(*state, certificate),
            Ok(Stored::Damaged(moved_to)) => {
                warn!(site = &*self.task.host, moved_to, "the stored certificate is damaged; a new one is ordered");
            }
            Err(error) => {
                warn!(site = &*self.task.host, error = chain(&error), "the stored certificate cannot be read");
            }
        }
    }

    /// Works with a stored state from now on, and serves its certificate. What could not be stored is only given up for
    /// what is newer.
    fn take(&mut self, state: State, certificate: Option<Certificate>) {
        let end = |state: &State| state.facts.validity.map(|(_, end)| end);
        if self.unsaved && end(&state) <= end(&self.state) {
            return;
        }
        if state.chain != self.state.chain
            && let Some(certificate) = certificate
        {
            self.task.install(&certificate);
        }
        self.task.note(state.failures, state.last_error.clone(), state.last_fix.clone());
        self.state = state;
    }

    /// Changes what is stored: loads it, changes it and saves it under a lock, since other processes do the same. Where
    /// that fails, the change holds in this process.
    async fn update(&mut self, change: impl Fn(&mut State) + Send + Sync + 'static) -> Result<(), CertError> {
        let (host, ours, unsaved) = (self.task.host.clone(), self.state.clone(), self.unsaved);
        let change = Arc::new(change);
        let stored = change.clone();
        let updated = self.store.run(move |store| {
            let _lock = store.lock(&State::lock_name(&host))?;
            let mut state = match State::load(store, &host)? {
                Stored::Found(state, _) if !unsaved => *state,
                _ => ours,
            };
            stored(&mut state);
            state.save(store, &host)?;
            Ok::<_, CertError>(state)
        });
        let updated = updated.await;
        self.unsaved = updated.is_err();
        let mut state = match &updated {
            Ok(state) => state.clone(),
            Err(_) => {
                let mut state = self.state.clone();
                change(&mut state);
                state
            }
        };
        let certificate = state.certificate().ok();
        state.facts.validity = certificate.as_ref().map(|certificate| (certificate.not_before, certificate.not_after));
        if state.chain != self.state.chain
            && let Some(certificate) = &certificate
        {
            self.task.install(certificate);
        }
        self.state = state;
        updated.map(drop)
    }

    /// Asks the CA when it wants the certificate renewed, and says in how long to ask again. The instant picked from its
    /// window is kept across restarts, so that many restarts do not draw the earliest of many.
    async fn suggestion(&mut self) -> Duration {
        let (Some(validity), Some(leaf)) = (self.state.facts.validity, self.leaf()) else {
            return schedule::ASK_AGAIN;
        };
        let Some((window, again)) = self.issuer().suggestion(&self.state.directory, &leaf).await else {
            return schedule::ASK_AGAIN;
        };
        if self.state.window != Some(window) {
            let now = self.task.clock.now();
            let picked = schedule::pick(window, validity.1, now, random());
            let renew_at = picked.map(|at| schedule::paced(at, validity, self.state.facts.hurried));
            let host = self.task.host.clone();
            info!(site = &*host, makes_sense = renew_at.is_some(), "the CA says when to renew");
            let chain_asked = self.state.chain.clone();
            let saved = self.update(move |state| {
                // The answer is for one certificate; another process may have got a newer one meanwhile.
                if state.chain == chain_asked {
                    state.facts.renew_at = renew_at;
                    state.window = Some(window);
                }
            });
            if let Err(error) = saved.await {
                warn!(site = &*host, error = chain(&error), "the renewal time cannot be stored");
            }
        }
        schedule::ask_again(again)
    }

    fn leaf(&self) -> Option<Vec<u8>> {
        Some(self.state.certificate().ok()?.key.end_entity_cert().ok()?.to_vec())
    }

    async fn order(&mut self, reason: Reason) {
        let before = self.state.chain.clone();
        let _lock = match self.store.lock_patiently(&State::order_lock_name(&self.task.host)).await {
            Ok(lock) => lock,
            Err(error) => return self.storage_fails(error.into()).await,
        };
        // Another process on this storage may have been quicker, or have failed just now.
        self.load().await;
        let by_hand = reason == Reason::Operator && before == self.state.chain;
        if !by_hand && schedule::next(&self.input(), self.task.clock.now()) != Action::Order {
            return self.task.rest();
        }
        // Nothing is ordered that could not be kept.
        if let Err(error) = self.update(|_| {}).await {
            return self.storage_fails(error).await;
        }
        self.rest_until = Instant::now() + schedule::MIN_BETWEEN_ORDERS;
        match self.place().await {
            Ok((issued, directory)) => self.succeeded(issued, directory).await,
            Err(error) => self.failed(error).await,
        }
    }

    /// Asks one CA after the other, from the one whose turn it is; further only where the fault is the CA's.
    async fn place(&self) -> Result<(Issued, String), IssueError> {
        let issuer = self.issuer();
        let directories = &issuer.plan.directories;
        let first = usize::try_from(self.state.failures / TRIES_PER_CA).unwrap_or_default();
        let mut failed: Option<IssueError> = None;
        for directory in (first..first + directories.len()).map(|index| &directories[index % directories.len()]) {
            match self.place_at(&issuer, directory).await {
                Ok(issued) => return Ok((issued, directory.url.clone())),
                Err(error) => {
                    let ends = !error.cause.is_of_ca();
                    failed = Some(match failed {
                        Some(earlier) => earlier.and(error),
                        None => error,
                    });
                    if ends {
                        break;
                    }
                }
            }
        }
        Err(failed.unwrap_or_else(|| IssueError::new(CertificateCause::NotAcme, "there is no CA to ask".into())))
    }

    async fn place_at(&self, issuer: &Issuer, directory: &Directory) -> Result<Issued, IssueError> {
        let host = &self.task.host;
        let need = Need::new(self.state.facts.validity.map(|(_, end)| end));
        let report = |words: &str| self.task.report(words);
        // After a failure the CA's staging side is asked first: what fails there costs nothing.
        if let (Some(staging), 1..) = (&directory.staging, self.state.failures) {
            issuer.rehearse(staging, Wanted { host, need, replaces: None, pending: None, report: &report }).await?;
        }
        let leaf = self.leaf().filter(|_| self.state.directory == directory.url);
        let pending = self.state.pending.clone().filter(|pending| pending.directory == directory.url);
        let mut keep = |pending| self.keep(pending).boxed();
        let wanted = Wanted { host, need, replaces: leaf.as_deref(), pending, report: &report };
        issuer.order(&directory.url, wanted, &mut keep).await
    }

    /// Stores an order that was placed, so that a restart goes on with it.
    fn keep(&self, pending: Pending) -> impl Future<Output = ()> + Send + 'static {
        let (store, host) = (self.store.clone(), self.task.host.clone());
        async move {
            let name = host.clone();
            let saved = store.run(move |store| {
                let _lock = store.lock(&State::lock_name(&name))?;
                let mut state = match State::load(store, &name)? {
                    Stored::Found(state, _) => *state,
                    Stored::Nothing | Stored::Damaged(_) => State::default(),
                };
                state.pending = Some(pending);
                state.save(store, &name)
            });
            if let Err(error) = saved.await {
                warn!(site = &*host, error = chain(&error), "the order cannot be saved; it continues");
            }
        }
    }

    async fn succeeded(&mut self, issued: Issued, directory: String) {
        let now = self.task.clock.now();
        let facts = &self.state.facts;
        let hurried = if schedule::is_hurried(facts, now) { Some(now) } else { facts.hurried };
        let failures = self.state.failures;
        let mut state = State::new(issued.chain, issued.key, directory);
        state.facts.hurried = hurried;
        let certificate = match state.certificate() {
            Ok(certificate) => certificate,
            Err(error) => {
                let text = format!("what the CA issued cannot be used: {}", chain(&error));
                return self.failed(IssueError::new(CertificateCause::Unusable, text)).await;
            }
        };
        info!(site = &*self.task.host, directory = state.directory, "certificate issued");
        let validity = (certificate.not_before, certificate.not_after);
        let stillborn = schedule::is_stillborn(validity, now);
        if let Err(error) = self.update(move |stored| *stored = state.clone()).await {
            return self.storage_fails(error).await;
        }
        if stillborn {
            self.state.failures = failures;
            self.already_due(validity, now).await;
        } else {
            self.task.rest();
        }
    }

    /// A certificate that was issued just now and is due already: ordering again would order without end.
    async fn already_due(&mut self, (begin, end): (SystemTime, SystemTime), now: SystemTime) {
        let clocks = self.issuer().clock_offset().and_then(authority::ClockOffset::words);
        let text = format!(
            "the CA issued a certificate for {} to {}, which is due or over by this machine's clock ({}): {}",
            super::rfc3339(begin),
            super::rfc3339(end),
            super::rfc3339(now),
            clocks.unwrap_or_else(|| "the clock here or at the CA is wrong".into()),
        );
        let wait = schedule::clock_back_off((begin, end));
        self.failed(IssueError { text, cause: CertificateCause::Clock, retry_at: Some(now + wait) }).await;
    }

    async fn failed(&mut self, error: IssueError) {
        let now = self.task.clock.now();
        let failures = self.state.failures + 1;
        let back_off = schedule::back_off(failures, random());
        self.rest_until = Instant::now() + back_off;
        let again = error.retry_at.map_or(now + back_off, |at| at.max(now + back_off));
        let wait = again.duration_since(now).unwrap_or_default();
        let host = self.task.host.clone();
        warn!(
            site = &*host,
            failures,
            next_try_s = wait.as_secs(),
            reason = error.text,
            fix = error.cause.fix(),
            "no certificate; the next attempt is in {}",
            authority::words(wait)
        );
        let (text, cause) = (error.text.clone(), error.cause);
        let saved = self.update(move |state| {
            state.failures = failures;
            state.facts.not_before = Some(again);
            state.last_error = Some(text.clone());
            state.last_fix = Some(cause.fix().to_owned());
            if !cause.is_of_ca() {
                // What the CA has refused is of no further use.
                state.pending = None;
            }
        });
        if let Err(error) = saved.await {
            warn!(site = &*host, error = chain(&error), "the failure cannot be stored");
        }
        self.task.count(error.cause);
        self.task.note(failures, self.state.last_error.clone(), self.state.last_fix.clone());
        self.task.next(again);
        self.task.waits(again, &error.text);
    }

    async fn storage_fails(&self, error: CertError) {
        warn!(
            site = &*self.task.host,
            error = chain(&error),
            fix = error.cause().fix(),
            "nothing is ordered, since it could not be kept"
        );
        self.task.failed(&error);
        self.task.count(error.cause());
        self.task.waits(self.task.clock.now() + STORAGE_RETRY, &chain(&error));
        sleep(STORAGE_RETRY).await;
    }
}

/// A number from 0 to 1000 that is another for every name, and the same after every restart.
fn spread(host: &str) -> u16 {
    let mut hasher = DefaultHasher::new();
    host.hash(&mut hasher);
    u16::try_from(hasher.finish() % 1001).unwrap_or_default()
}

/// Any number from 0 to 1 that others do not draw as well.
fn random() -> f64 {
    f64::from(u32::try_from(RandomState::new().hash_one(0) >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

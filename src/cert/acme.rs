//! A name whose certificate is ordered: holds the newest, and orders the next in its time. Never gives up, never hurries
//! the CA, and serves what it has meanwhile, even if it has expired.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::{
    CertError, Certificate, CertificateTask, Store,
    issue::{Cause, IssueError, Issued, Issuer, Pending},
    schedule::{self, Action, ScheduleInput},
};
use crate::{config::plan::Directory, error::chain};

/// After this many failures in a row at one CA, the next one of the list is asked first. A CA that is broken or has had
/// enough of us is passed over at once.
const TRIES_PER_CA: u32 = 3;

/// A storage that cannot be written is tried again after this.
const STORAGE_RETRY: Duration = Duration::from_secs(60);

/// Keeps a name. What is in the storage is served before this returns.
pub fn spawn(task: CertificateTask, store: Arc<Store>, issuers: Issuers, renew: Arc<Notify>, tasks: &TaskTracker) {
    let file = format!("certificates/{}.json", task.host);
    let mut name = Name { file, task, store, issuers, state: State::default() };
    name.load();
    tasks.spawn(async move {
        let stop = name.task.stop.clone();
        stop.run_until_cancelled(name.run(renew)).await;
    });
}

/// The issuer of the newest configuration.
pub type Issuers = watch::Receiver<Arc<Issuer>>;

struct Name {
    file: String,
    task: CertificateTask,
    store: Arc<Store>,
    issuers: Issuers,
    state: State,
}

/// What is kept of a name, in one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    chain: String,
    key: String,
    /// The directory that issued it.
    directory: String,
    window: Option<(SystemTime, SystemTime)>,
    facts: ScheduleInput,
    failures: u32,
    last_error: Option<String>,
    /// The order that an earlier run did not finish.
    pending: Option<Pending>,
}

impl Name {
    async fn run(&mut self, renew: Arc<Notify>) {
        let mut ask_at = self.task.clock.now();
        loop {
            if self.task.clock.now() >= ask_at {
                ask_at += self.suggestion().await;
            }
            let now = self.task.clock.now();
            self.state.facts.moved = self.is_moved();
            match schedule::next(&self.state.facts, now) {
                Action::Order => {
                    self.order().await;
                    // Another certificate, another window.
                    ask_at = self.task.clock.now();
                }
                Action::Wait(until) => {
                    self.task.next(until);
                    let wait = until.min(ask_at).duration_since(now).unwrap_or_default();
                    tokio::select! {
                        () = sleep(wait) => {}
                        // Another configuration; when the sender is gone, so is everything else.
                        Ok(()) = self.issuers.changed() => {}
                        () = renew.notified() => {
                            self.order().await;
                            ask_at = self.task.clock.now();
                        }
                    }
                }
            }
        }
    }

    fn issuer(&self) -> Arc<Issuer> {
        self.issuers.borrow().clone()
    }

    /// Whether the CA of what is held is none of those that are configured. One that is not known is as good as any.
    fn is_moved(&self) -> bool {
        let from = &self.state.directory;
        let directories = &self.issuer().plan.directories;
        !from.is_empty() && !directories.iter().any(|directory| directory.url.eq_ignore_ascii_case(from))
    }

    /// Takes what is in the storage. A damaged file is set aside, and is as good as none.
    fn load(&mut self) {
        let loaded = match self.store.load(&self.file) {
            Ok(None) => return,
            Ok(Some(text)) => State::from_json(&text),
            Err(error) => {
                warn!(site = &*self.task.host, error = chain(&error), "the stored certificate cannot be read");
                return;
            }
        };
        let usable = loaded.and_then(|state| {
            if state.chain.is_empty() {
                Some((state, None))
            } else {
                state.certificate().ok().map(|certificate| (state, Some(certificate)))
            }
        });
        let Some((mut state, certificate)) = usable else {
            let aside = self
                .store
                .set_aside(&self.file, "damaged")
                .map_or_else(|error| chain(&error), |path| path.display().to_string());
            warn!(site = &*self.task.host, moved_to = aside, "the stored certificate is damaged; a new one is ordered");
            return;
        };
        if let Some(certificate) = certificate {
            state.facts.validity = Some((certificate.not_before, certificate.not_after));
            self.task.install(&certificate);
        }
        self.task.note(state.failures, state.last_error.clone());
        self.state = state;
    }

    /// Asks the CA when it wants the certificate renewed, and says in how long to ask again. The instant picked from its
    /// window is kept across restarts, so that many restarts do not draw the earliest of many.
    async fn suggestion(&mut self) -> Duration {
        let (Some(validity), Ok(certificate)) = (self.state.facts.validity, self.state.certificate()) else {
            return schedule::ASK_AGAIN;
        };
        let Ok(leaf) = certificate.key.end_entity_cert().map(|leaf| leaf.to_vec()) else { return schedule::ASK_AGAIN };
        let Some((window, again)) = self.issuer().suggestion(&self.state.directory, &leaf).await else {
            return schedule::ASK_AGAIN;
        };
        if self.state.window != Some(window) {
            let now = self.task.clock.now();
            let picked = schedule::pick(window, validity.1, now, random());
            self.state.facts.renew_at = picked.map(|at| schedule::paced(at, validity, self.state.facts.hurried));
            self.state.window = Some(window);
            info!(
                site = &*self.task.host,
                makes_sense = self.state.facts.renew_at.is_some(),
                "the CA says when to renew"
            );
            if let Err(error) = self.save() {
                warn!(site = &*self.task.host, error = chain(&error), "the renewal time cannot be stored");
            }
        }
        schedule::ask_again(again)
    }

    async fn order(&mut self) {
        let _lock = match self.store.lock_patiently(&format!("order-{}", self.task.host)).await {
            Ok(lock) => lock,
            Err(error) => return self.storage_fails(error.into()).await,
        };
        // Another process on this storage may have been quicker.
        let before = self.state.chain.clone();
        self.load();
        self.state.facts.moved = self.is_moved();
        let forced = before == self.state.chain;
        if !forced && schedule::next(&self.state.facts, self.task.clock.now()) != Action::Order {
            return;
        }
        // Nothing is ordered that could not be kept.
        if let Err(error) = self.save() {
            return self.storage_fails(error).await;
        }
        match self.place().await {
            Ok((issued, directory)) => self.succeeded(issued, directory).await,
            Err(error) => self.failed(error),
        }
    }

    /// Asks one CA after the other, from the one whose turn it is; further only where the fault is the CA's.
    async fn place(&mut self) -> Result<(Issued, String), IssueError> {
        let issuer = self.issuer();
        let directories = &issuer.plan.directories;
        let first = usize::try_from(self.state.failures / TRIES_PER_CA).unwrap_or_default();
        let mut failed: Option<IssueError> = None;
        for directory in (first..first + directories.len()).map(|index| &directories[index % directories.len()]) {
            match self.place_at(&issuer, directory).await {
                Ok(issued) => return Ok((issued, directory.url.clone())),
                Err(error) => {
                    let ends = !error.cause.is_theirs();
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
        Err(failed.unwrap_or_else(|| IssueError::new(Cause::Ca, "there is no CA to ask".into())))
    }

    async fn place_at(&mut self, issuer: &Issuer, directory: &Directory) -> Result<Issued, IssueError> {
        let host = self.task.host.clone();
        // After a failure the CA's staging side is asked first: what fails there costs nothing.
        if let (Some(staging), 1..) = (&directory.staging, self.state.failures) {
            issuer.order(staging, &host, None, None, &mut |_| {}).await?;
        }
        let leaf =
            self.state.certificate().ok().and_then(|old| old.key.end_entity_cert().ok().map(|leaf| leaf.to_vec()));
        let replaces = leaf.filter(|_| self.state.directory == directory.url);
        let pending = self.state.pending.clone().filter(|pending| pending.directory == directory.url);
        info!(site = &*host, directory = directory.url, "ordering a certificate");
        let mut keep = |pending| {
            self.state.pending = Some(pending);
            if let Err(error) = self.save() {
                warn!(site = &*self.task.host, error = chain(&error), "the order cannot be stored, and goes on");
            }
        };
        issuer.order(&directory.url, &host, replaces.as_deref(), pending, &mut keep).await
    }

    async fn succeeded(&mut self, issued: Issued, directory: String) {
        let now = self.task.clock.now();
        let hurried = if schedule::is_hurried(&self.state.facts, now) { Some(now) } else { self.state.facts.hurried };
        let facts = ScheduleInput { hurried, ..ScheduleInput::default() };
        let state = State { chain: issued.chain, key: issued.key, directory, facts, ..State::default() };
        let certificate = match state.certificate() {
            Ok(certificate) => certificate,
            Err(error) => {
                let text = format!("what the CA issued cannot be used: {}", chain(&error));
                return self.failed(IssueError::new(Cause::Ca, text));
            }
        };
        self.state = state;
        self.state.facts.validity = Some((certificate.not_before, certificate.not_after));
        self.task.install(&certificate);
        info!(site = &*self.task.host, directory = self.state.directory, "certificate issued");
        if let Err(error) = self.save() {
            self.storage_fails(error).await;
        }
    }

    fn failed(&mut self, error: IssueError) {
        let now = self.task.clock.now();
        self.state.failures += 1;
        let back_off = now + schedule::back_off(self.state.failures, random());
        let again = error.retry_at.map_or(back_off, |at| at.max(back_off));
        self.state.facts.not_before = Some(again);
        let wait = again.duration_since(now).unwrap_or_default().as_secs();
        warn!(
            site = &*self.task.host,
            failures = self.state.failures,
            next_try_s = wait,
            reason = error.text,
            "no certificate"
        );
        if !error.cause.is_theirs() {
            // What the CA has refused is of no further use.
            self.state.pending = None;
        }
        self.state.last_error = Some(error.text);
        self.task.count(error.cause);
        self.task.note(self.state.failures, self.state.last_error.clone());
        self.task.next(again);
        if let Err(error) = self.save() {
            warn!(site = &*self.task.host, error = chain(&error), "the failure cannot be stored");
        }
    }

    async fn storage_fails(&self, error: CertError) {
        warn!(site = &*self.task.host, error = chain(&error), "nothing is ordered, since it could not be kept");
        self.task.failed(&error);
        self.task.count(Cause::Storage);
        sleep(STORAGE_RETRY).await;
    }

    fn save(&self) -> Result<(), CertError> {
        Ok(self.store.save(&self.file, &self.state.to_json().to_string())?)
    }
}

impl State {
    /// A certificate and nothing else.
    pub(super) fn new(chain: String, key: String, directory: String) -> Self {
        Self { chain, key, directory, ..Self::default() }
    }

    pub(super) fn certificate(&self) -> Result<Certificate, CertError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(self.chain.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| CertError::X509)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|_| CertError::X509)?;
        Certificate::new(chain, key)
    }

    pub(super) fn to_json(&self) -> Value {
        let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        json!({
            "version": 1,
            "chain": self.chain,
            "key": self.key,
            "directory": self.directory,
            "window": self.window.map(|(from, to)| [seconds(from), seconds(to)]),
            "renew_at": self.facts.renew_at.map(seconds),
            "not_before": self.facts.not_before.map(seconds),
            "hurried": self.facts.hurried.map(seconds),
            "failures": self.failures,
            "last_error": self.last_error,
            "pending": self.pending.as_ref().map(|order| {
                json!({ "directory": order.directory, "url": order.url, "key": order.key })
            }),
        })
    }

    pub(super) fn from_json(text: &str) -> Option<Self> {
        let json: Value = serde_json::from_str(text).ok()?;
        let at =
            |value: &Value| value.as_u64().and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        let text = |key: &str| json[key].as_str().map(str::to_owned);
        Some(Self {
            chain: text("chain")?,
            key: text("key")?,
            directory: text("directory")?,
            window: at(&json["window"][0]).zip(at(&json["window"][1])),
            facts: ScheduleInput {
                renew_at: at(&json["renew_at"]),
                not_before: at(&json["not_before"]),
                hurried: at(&json["hurried"]),
                ..ScheduleInput::default()
            },
            failures: json["failures"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or_default(),
            last_error: text("last_error"),
            pending: Pending::from_json(&json["pending"]),
        })
    }
}

impl Pending {
    fn from_json(json: &Value) -> Option<Self> {
        let text = |key: &str| json[key].as_str().map(str::to_owned);
        Some(Self { directory: text("directory")?, url: text("url")?, key: text("key")? })
    }
}

/// Any number from 0 to 1 that others do not draw as well.
fn random() -> f64 {
    f64::from(u32::try_from(RandomState::new().hash_one(0) >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_survives_the_file() {
        let at = |n| UNIX_EPOCH + Duration::from_secs(n);
        let state = State {
            chain: "c".into(),
            key: "k".into(),
            directory: "https://ca".into(),
            window: Some((at(1), at(2))),
            facts: ScheduleInput {
                renew_at: Some(at(3)),
                not_before: Some(at(4)),
                hurried: Some(at(8)),
                ..ScheduleInput::default()
            },
            failures: 5,
            last_error: Some("six".into()),
            pending: Some(Pending { directory: "https://ca".into(), url: "https://ca/7".into(), key: "k".into() }),
        };
        assert_eq!(State::from_json(&state.to_json().to_string()), Some(state));
        assert_eq!(State::from_json("{\"chain\":1}"), None);
    }
}

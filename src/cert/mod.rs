//! Certificates: where each name's comes from, and that there is always the best one that can be had.
//!
//! One task per name. It puts its certificate into the [`Resolver`], which handshakes read without a lock. Orders of all
//! names go through the scheduler of their CA account.

mod acme;
mod address;
mod authority;
mod challenge;
mod dns;
mod document;
mod files;
mod import;
mod internal;
mod issue;
mod resolver;
pub mod schedule;
pub mod scheduler;
mod state;
mod store;

pub use self::{
    files::inspect,
    import::{ImportError, ImportedCertificate, import, import_account},
    internal::{known_root_pem, root_pem},
    resolver::Resolver,
    store::{Store, StoreError},
};

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::future::{BoxFuture, join_all};
use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::{
    clock::Clock,
    config::plan::{Acme, CATCH_ALL, Directory, Dns, Site, SiteTls},
    conn::Fetch,
    error::{CertificateCause, ORDER_FAILURE_LABELS, chain},
};

use self::{challenge::Challenges, issue::Issuer};

/// How long a start or a reload waits for what is in the storage. A storage that hangs is waited for outside the request path.
const LOAD_TIME: Duration = Duration::from_secs(5);

/// Looks after the certificates of all sites.
pub struct Manager {
    resolver: Arc<Resolver>,
    store: Arc<Store>,
    clock: Clock,
    tasks: TaskTracker,
    stop: CancellationToken,
    challenges: Arc<Challenges>,
    /// Whoever orders asks the issuer of the newest configuration.
    issuers: OnceLock<watch::Sender<Arc<Issuer>>>,
    names: Mutex<HashMap<Arc<str>, Name>>,
}

/// A name that is looked after.
struct Name {
    source: SiteTls,
    stop: CancellationToken,
    status: Arc<Mutex<Status>>,
    renew: Arc<Notify>,
}

/// What is known of a name's certificate.
#[derive(Debug, Clone)]
pub struct Status {
    /// The name.
    pub host: Arc<str>,
    /// Where it comes from: `acme`, `internal`, `file`.
    pub source: &'static str,
    /// When it ends; none is held without it.
    pub not_after: Option<SystemTime>,
    /// When something happens next.
    pub next: Option<SystemTime>,
    /// What goes on now, in words: the step of an order, or why it waits.
    pub progress: Option<String>,
    /// Failures since the last success.
    pub failures: u32,
    /// The last of them, in words.
    pub last_error: Option<String>,
    /// How to fix it.
    pub fix: Option<String>,
    /// What will make the next order fail, in words.
    pub warning: Option<String>,
    /// When this process last failed.
    pub failed_at: Option<SystemTime>,
    /// Failed orders of this process by their cause, in the order of [`ORDER_FAILURE_LABELS`].
    pub causes: [u64; ORDER_FAILURE_LABELS.len()],
}

/// A certificate that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A file cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No PEM, no certificate, no key.
    #[error("{path} has no usable {what}")]
    Pem {
        /// Which.
        path: String,
        /// What is missing.
        what: &'static str,
    },
    /// The key is not the certificate's, or of a kind that TLS does not know.
    #[error("the key does not fit the certificate")]
    Mismatch(#[source] rustls::Error),
    /// None of several certificates is for the name.
    #[error("no certificate of tls.certificates is for {0}")]
    NotCovered(String),
    /// No account is stored.
    #[error("there is no account at {0} yet: `vestibule run` makes one with its first order")]
    NoAccount(String),
    /// The CA's name in DNS is not known.
    #[error(
        "{0} has not said by which name it goes in DNS: it does with the first order, where it offers dns-persist-01"
    )]
    NoIssuer(String),
    /// No name server answers.
    #[error("DNS cannot be asked from here: {0}")]
    NoDns(String),
    /// The certificate is not X.509.
    #[error("the certificate cannot be read")]
    X509,
    /// Signing failed.
    #[error("the internal CA cannot sign")]
    Sign(#[from] rcgen::Error),
    /// The storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CertError {
    /// The cause, which decides about the fix.
    const fn cause(&self) -> CertificateCause {
        match self {
            Self::Read { .. } => CertificateCause::UnreadableFile,
            Self::Pem { .. } | Self::X509 => CertificateCause::BadFile,
            Self::Mismatch(_) => CertificateCause::WrongKey,
            Self::NotCovered(_) => CertificateCause::WrongName,
            Self::NoAccount(_) | Self::NoIssuer(_) | Self::NoDns(_) => CertificateCause::WrongPersistentRecord,
            Self::Sign(_) | Self::Store(_) => CertificateCause::Storage,
        }
    }
}

/// A fault of a certificate that is served nevertheless.
#[derive(Debug)]
pub struct Fault {
    cause: CertificateCause,
    text: String,
}

impl Manager {
    /// A manager without names.
    #[must_use]
    pub fn new(store: Store, clock: Clock, tasks: TaskTracker, stop: CancellationToken) -> Self {
        let resolver = Arc::new(Resolver::default());
        let store = Arc::new(store);
        let challenges = Arc::new(Challenges::new(resolver.clone(), store.clone()));
        Self { resolver, store, clock, tasks, stop, challenges, issuers: OnceLock::new(), names: Mutex::default() }
    }

    /// The answer to a request for the token of an HTTP-01 challenge.
    #[must_use]
    pub fn http01(&self, token: &str, from: IpAddr) -> BoxFuture<'static, Option<String>> {
        self.challenges.http01(token, from)
    }

    /// Makes sure that a handshake of a CA finds the proof that another process has published for a name.
    #[must_use]
    pub fn find_challenge(&self, name: &str) -> BoxFuture<'static, ()> {
        self.challenges.find_tls_alpn01(name)
    }

    /// How far this machine's clock is from the CA's, in words, where the difference matters.
    #[must_use]
    pub fn clock_offset(&self) -> Option<String> {
        self.issuers.get()?.borrow().clock_offset()?.words()
    }

    /// Orders a new certificate for a name now, whatever the schedule says; whether there is such a name.
    #[must_use]
    pub fn renew(&self, host: &str) -> bool {
        match self.names().get(host) {
            Some(name) if name.source == SiteTls::Acme => {
                name.renew.notify_one();
                true
            }
            _ => false,
        }
    }

    /// The certificates, for handshakes.
    #[must_use]
    pub fn resolver(&self) -> Arc<Resolver> {
        self.resolver.clone()
    }

    /// Looks after the names of these sites from now on. What stays is not touched, orders in flight included; what is
    /// gone is given up. What `acme` and `client` say holds for every order that is placed from now on. Returns when what
    /// is in the storage is served.
    pub async fn apply(&self, sites: &[Site], acme: &Acme, client: &(dyn Fn(&Directory) -> Fetch + Sync)) {
        self.load_accounts(acme).await;
        let loading = self.start_tasks(sites, acme, client);
        if timeout(LOAD_TIME, join_all(loading)).await.is_err() {
            warn!("the storage does not answer; certificates are served as soon as it does");
        }
    }

    fn start_tasks(
        &self,
        sites: &[Site],
        acme: &Acme,
        client: &dyn Fn(&Directory) -> Fetch,
    ) -> Vec<oneshot::Receiver<()>> {
        let before = self.issuers.get().map(|issuers| issuers.borrow().clone());
        let (store, challenges) = (&self.store, &self.challenges);
        let issuer = Issuer::new(acme.clone(), store, challenges, &self.clock, client, before.as_deref());
        let issuer = Arc::new(issuer);
        let issuers = self.issuers.get_or_init(|| watch::Sender::new(issuer.clone()));
        issuers.send_replace(issuer);
        let issuers = issuers.subscribe();
        let mut names = self.names();
        names.retain(|host, name| {
            let stays = sites.iter().any(|site| site.host.as_str() == &**host && site.tls == name.source);
            if !stays {
                name.stop.cancel();
            }
            stays
        });
        let mut loading = Vec::new();
        for site in sites.iter().filter(|site| site.tls.has_certificate()) {
            names.entry(site.host.shared()).or_insert_with(|| {
                let (name, loaded) = self.begin(site, &issuers);
                loading.push(loaded);
                name
            });
        }
        self.resolver.retain(|host| names.contains_key(host));
        loading
    }

    /// Learns the thumbprints of our accounts, from which the tokens of other processes are answered.
    async fn load_accounts(&self, acme: &Acme) {
        let urls: Vec<_> = acme.directories.iter().map(|directory| directory.url.clone()).collect();
        let loaded = self.store.run(|store| {
            let thumbprint = |url: String| issue::stored_thumbprint(store, &url).map(|thumbprint| (url, thumbprint));
            urls.into_iter().filter_map(thumbprint).collect::<Vec<_>>()
        });
        for (url, thumbprint) in timeout(LOAD_TIME, loaded).await.unwrap_or_default() {
            self.challenges.know_account(&url, &thumbprint);
        }
    }

    /// What is known of every name.
    #[must_use]
    pub fn status(&self) -> Vec<Status> {
        let mut all: Vec<_> = self.names().values().map(|name| lock(&name.status).clone()).collect();
        all.sort_by(|a, b| a.host.cmp(&b.host));
        all
    }

    fn names(&self) -> MutexGuard<'_, HashMap<Arc<str>, Name>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, site: &Site, issuers: &acme::Issuers) -> (Name, oneshot::Receiver<()>) {
        let stop = self.stop.child_token();
        let source = match site.tls {
            SiteTls::Internal => "internal",
            SiteTls::Files(_) | SiteTls::SharedFiles(_) => "file",
            SiteTls::Acme | SiteTls::Wildcard | SiteTls::Off | SiteTls::Passthrough => "acme",
        };
        let status = Status {
            host: site.host.shared(),
            source,
            not_after: None,
            next: None,
            progress: None,
            failures: 0,
            last_error: None,
            fix: None,
            warning: None,
            failed_at: None,
            causes: [0; ORDER_FAILURE_LABELS.len()],
        };
        let task = CertificateTask {
            host: site.host.shared(),
            resolver: self.resolver.clone(),
            clock: self.clock.clone(),
            status: Arc::new(Mutex::new(status)),
            stop: stop.clone(),
        };
        let renew = Arc::new(Notify::new());
        let name = Name { source: site.tls.clone(), stop, status: task.status.clone(), renew: renew.clone() };
        let loaded = match &site.tls {
            SiteTls::Files(pair) => {
                files::spawn(task, self.store.clone(), vec![pair.clone()], files::Choice::Given, &self.tasks)
            }
            SiteTls::SharedFiles(pairs) => {
                files::spawn(task, self.store.clone(), pairs.to_vec(), files::Choice::Covering, &self.tasks)
            }
            SiteTls::Internal => internal::spawn(task, self.store.clone(), &self.tasks),
            SiteTls::Acme => acme::spawn(task, self.store.clone(), issuers.clone(), renew, &self.tasks),
            SiteTls::Wildcard | SiteTls::Off | SiteTls::Passthrough => oneshot::channel().1,
        };
        (name, loaded)
    }
}

/// An instant for a message, to the second.
fn rfc3339(at: SystemTime) -> String {
    let at = time::OffsetDateTime::from(at).replace_nanosecond(0).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

/// The TXT record of dns-persist-01 for a name: its own name and its value.
///
/// # Errors
/// There is no account yet, the CA has not said its name, or the storage cannot be read.
pub fn dns_record(store: &Store, directory: &str, host: &str) -> Result<(String, String), CertError> {
    let (account, issuers) = persist_parties(store, directory)?;
    let issuer = issuers.first().ok_or_else(|| CertError::NoIssuer(directory.to_owned()))?;
    Ok((dns::persist_name(host), dns::persist_record(host, issuer, &account)))
}

/// Our account at a CA, and the names by which the CA goes in DNS.
fn persist_parties(store: &Store, directory: &str) -> Result<(String, Vec<String>), CertError> {
    let account =
        issue::stored_account_url(store, directory)?.ok_or_else(|| CertError::NoAccount(directory.to_owned()))?;
    let mut issuers = issue::stored_issuers(store, directory);
    if issuers.is_empty() && directory.ends_with(".letsencrypt.org/directory") {
        issuers.push("letsencrypt.org".to_owned());
    }
    Ok((account, issuers))
}

/// What is wrong with the record of dns-persist-01 in DNS, in words; nothing where it is right.
///
/// # Errors
/// It cannot be known: there is no account yet, or DNS cannot be asked.
pub async fn check_dns_record(
    store: &Store,
    dns: Option<&Dns>,
    directory: &str,
    host: &str,
) -> Result<Option<String>, CertError> {
    let url = directory.to_owned();
    let (account, issuers) = store.run(move |store| persist_parties(store, &url)).await?;
    match dns::Persisted::look_up(dns, host, &issuers, &account).await {
        dns::Persisted::Right => Ok(None),
        dns::Persisted::Wrong(words) => Ok(Some(words)),
        dns::Persisted::Unknown(reason) => Err(CertError::NoDns(reason)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the task of a name needs.
struct CertificateTask {
    host: Arc<str>,
    resolver: Arc<Resolver>,
    clock: Clock,
    status: Arc<Mutex<Status>>,
    stop: CancellationToken,
}

impl CertificateTask {
    /// Serves a certificate from now on.
    fn install(&self, certificate: &Certificate) {
        self.resolver.set(&self.host, certificate.key.clone());
        let mut status = lock(&self.status);
        status.not_after = Some(certificate.not_after);
        status.failures = 0;
        (status.last_error, status.fix) = (None, None);
    }

    fn failed(&self, error: &CertError) {
        let mut status = lock(&self.status);
        status.failures += 1;
        status.last_error = Some(chain(error));
        status.fix = Some(error.cause().fix().to_owned());
        status.failed_at = Some(self.clock.now());
    }

    fn count(&self, cause: CertificateCause) {
        let mut status = lock(&self.status);
        if let Some(index) = ORDER_FAILURE_LABELS.iter().position(|label| Some(*label) == cause.order_label()) {
            status.causes[index] += 1;
        }
        status.failed_at = Some(self.clock.now());
    }

    /// Notes what is remembered from before.
    fn note(&self, failures: u32, last_error: Option<String>, fix: Option<String>) {
        let mut status = lock(&self.status);
        status.failures = failures;
        (status.last_error, status.fix) = (last_error, fix);
    }

    /// Tells of a step of an order.
    fn report(&self, words: &str) {
        info!(site = &*self.host, "{words}");
        lock(&self.status).progress = Some(words.to_owned());
    }

    /// Tells why nothing is done before an instant.
    fn waits(&self, until: SystemTime, reason: &str) {
        lock(&self.status).progress = Some(format!("waits until {} to try again: {reason}", rfc3339(until)));
    }

    /// Nothing goes on any more.
    fn rest(&self) {
        lock(&self.status).progress = None;
    }

    /// Notes what will make the next order fail, and tells of it once.
    fn warn_of(&self, warning: Option<String>) {
        let mut status = lock(&self.status);
        if let Some(words) = warning.as_ref().filter(|_| status.warning != warning) {
            warn!(site = &*self.host, "{words}");
        }
        status.warning = warning;
    }

    fn next(&self, at: SystemTime) {
        lock(&self.status).next = Some(at);
    }
}

/// A certificate that can be served.
#[derive(Debug, Clone)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Certificate {
    /// Puts a chain and its key together, and makes sure that they belong together.
    ///
    /// # Errors
    /// They do not, or cannot be read.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, CertError> {
        let leaf = chain.first().ok_or(CertError::X509)?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CertError::X509)?;
        let at = |time: x509_parser::time::ASN1Time| SystemTime::from(time.to_datetime());
        let (not_before, not_after) = (at(parsed.validity().not_before), at(parsed.validity().not_after));
        let key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(CertError::Mismatch)?;
        Ok(Self { key: Arc::new(key), not_before, not_after })
    }

    /// Whether it is for a host: the name itself, a wildcard for its last label, or the address.
    #[must_use]
    pub fn covers(&self, host: &str) -> bool {
        let Some(leaf) = self.leaf() else { return false };
        let Ok(Some(names)) = leaf.subject_alternative_name() else { return false };
        let parent = host.split_once('.').map(|(_, parent)| parent);
        names.value.general_names.iter().any(|name| match name {
            GeneralName::DNSName(name) => {
                name.eq_ignore_ascii_case(host)
                    || name.strip_prefix("*.").is_some_and(|rest| parent.is_some_and(|p| p.eq_ignore_ascii_case(rest)))
            }
            GeneralName::IPAddress(bytes) => match host.parse::<IpAddr>() {
                Ok(IpAddr::V4(ip)) => *bytes == ip.octets(),
                Ok(IpAddr::V6(ip)) => *bytes == ip.octets(),
                Err(_) => false,
            },
            _ => false,
        })
    }

    /// What is wrong with it for a host that it is served for, in words.
    #[must_use]
    pub fn faults(&self, host: &str, now: SystemTime) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut add = |cause, text| faults.push(Fault { cause, text });
        if self.not_after <= now {
            add(CertificateCause::Expired, format!("the certificate has expired at {}", rfc3339(self.not_after)));
        } else if self.not_before > now {
            add(
                CertificateCause::NotYetValid,
                format!("the certificate is not valid before {}", rfc3339(self.not_before)),
            );
        }
        // The names of the clients of `*` are not known.
        if host != CATCH_ALL && !self.covers(host) {
            add(CertificateCause::WrongName, format!("the certificate is not for {host}"));
        }
        if !self.has_chain() {
            let text = "the certificate stands without its chain, so that many clients will not trust it: \
                        use the file with all certificates (`fullchain.pem`)";
            add(CertificateCause::NoChain, text.to_owned());
        }
        faults
    }

    /// Whether the certificate that issued it follows. One that has issued itself needs none.
    fn has_chain(&self) -> bool {
        let Some(leaf) = self.leaf() else { return true };
        if leaf.issuer() == leaf.subject() {
            return true;
        }
        let next = self.key.cert.get(1).and_then(|next| Some(X509Certificate::from_der(next).ok()?.1));
        next.is_some_and(|next| next.subject() == leaf.issuer())
    }

    fn leaf(&self) -> Option<X509Certificate<'_>> {
        Some(X509Certificate::from_der(self.key.cert.first()?).ok()?.1)
    }

    /// When a third of the lifetime is left.
    fn at_a_third(&self) -> SystemTime {
        let lifetime = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_after - lifetime / 3
    }
}

//! Certificates: where each name's comes from, and that there is always the best one that can be had.
//!
//! One task looks after each name. What it finds it puts into the [`Resolver`], which handshakes read without a lock.

mod acme;
mod challenge;
mod files;
mod import;
mod internal;
mod issue;
mod resolver;
pub mod schedule;
mod store;

pub use self::{
    import::{ImportError, ImportedCertificate, import, import_account},
    internal::{known_root_pem, root_pem},
    issue::Cause,
    resolver::Resolver,
    store::{Store, StoreError},
};

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::SystemTime,
};

use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{
    clock::Clock,
    config::plan::{Acme, Site, SiteTls},
    conn::Fetch,
    error::chain,
};

use self::{challenge::Challenges, issue::Issuer};

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
    /// Failures since the last success.
    pub failures: u32,
    /// The last of them, in words.
    pub last_error: Option<String>,
    /// When this process last failed.
    pub failed_at: Option<SystemTime>,
    /// Failures of this process by their cause, in the order of [`Cause::ALL`].
    pub causes: [u64; Cause::ALL.len()],
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

impl Manager {
    /// A manager without names.
    #[must_use]
    pub fn new(store: Store, clock: Clock, tasks: TaskTracker, stop: CancellationToken) -> Self {
        let resolver = Arc::new(Resolver::default());
        let challenges = Arc::new(Challenges::new(resolver.clone()));
        let store = Arc::new(store);
        Self { resolver, store, clock, tasks, stop, challenges, issuers: OnceLock::new(), names: Mutex::default() }
    }

    /// The answer to a request for the token of an HTTP-01 challenge.
    #[must_use]
    pub fn http01(&self, token: &str, from: IpAddr) -> Option<String> {
        self.challenges.http01(token, from)
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
    /// gone is given up. What `acme` and `fetch` say holds for every order that is placed from now on.
    pub fn apply(&self, sites: &[Site], acme: &Acme, fetch: &Fetch) {
        let issuer = Arc::new(Issuer {
            plan: acme.clone(),
            store: self.store.clone(),
            challenges: self.challenges.clone(),
            fetch: fetch.clone(),
            clock: self.clock.clone(),
            refused: Mutex::default(),
        });
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
        for site in sites.iter().filter(|site| site.tls != SiteTls::Off) {
            names.entry(site.host.shared()).or_insert_with(|| self.begin(site, &issuers));
        }
        self.resolver.retain(|host| names.contains_key(host));
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

    fn begin(&self, site: &Site, issuers: &acme::Issuers) -> Name {
        let stop = self.stop.child_token();
        let source = match site.tls {
            SiteTls::Internal => "internal",
            SiteTls::Files { .. } => "file",
            SiteTls::Acme | SiteTls::Off => "acme",
        };
        let status = Status {
            host: site.host.shared(),
            source,
            not_after: None,
            next: None,
            failures: 0,
            last_error: None,
            failed_at: None,
            causes: [0; Cause::ALL.len()],
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
        match &site.tls {
            SiteTls::Files { cert, key } => files::spawn(task, cert.clone(), key.clone(), &self.tasks),
            SiteTls::Internal => internal::spawn(task, self.store.clone(), &self.tasks),
            SiteTls::Acme => acme::spawn(task, self.store.clone(), issuers.clone(), renew, &self.tasks),
            SiteTls::Off => {}
        }
        name
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
        status.last_error = None;
    }

    fn failed(&self, error: &CertError) {
        let mut status = lock(&self.status);
        status.failures += 1;
        status.last_error = Some(chain(error));
        status.failed_at = Some(self.clock.now());
    }

    fn count(&self, cause: Cause) {
        let index = Cause::ALL.iter().position(|one| *one == cause).unwrap_or_default();
        let mut status = lock(&self.status);
        status.causes[index] += 1;
        status.failed_at = Some(self.clock.now());
    }

    /// Notes what is remembered from before.
    fn note(&self, failures: u32, last_error: Option<String>) {
        let mut status = lock(&self.status);
        status.failures = failures;
        status.last_error = last_error;
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

    /// When a third of the lifetime is left.
    fn at_a_third(&self) -> SystemTime {
        let lifetime = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_after - lifetime / 3
    }
}

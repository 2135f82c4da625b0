//! The local CA of `tls.certificates = "internal"`: a root in the storage that devices are told to trust, and short
//! certificates that it signs.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use tokio::{sync::oneshot, time::sleep};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{CertError, Certificate, CertificateTask, Store, document::lenient_list, schedule::MAX_SLEEP};
use crate::{clock::Clock, error::chain};

const FILE: &str = "internal-ca.json";

/// Ten years: a root that devices have to be told of again is a nuisance.
const ROOT_DAYS: i64 = 3650;

/// A week: nobody revokes these, and renewing costs a signature.
const LEAF_DAYS: i64 = 7;

/// Clocks of clients are a little off.
const BACKDATED: Duration = Duration::from_secs(3600);

/// Roots that are kept. More than one exists only where the clock was wrong when one was made.
const MAX_ROOTS: usize = 8;

/// A root that is valid for less than this is replaced: a leaf must not outlive it, and devices need time to be told.
const ROOT_LEFT: Duration = Duration::from_secs(30 * 24 * 3600);

/// A root with its key.
#[derive(Clone, Serialize, Deserialize)]
struct Root {
    certificate: String,
    key: String,
}

/// The root certificate as PEM, for `vestibule ca` and for those who have to trust it.
///
/// # Errors
/// The storage cannot be read, or not be written where there is no root yet.
pub fn root_pem(store: &Store, clock: &Clock) -> Result<String, CertError> {
    root(store, clock).map(|root| root.certificate)
}

/// The same, where there is one already that is valid now: nothing is made, and nothing is told of what is damaged.
#[must_use]
pub fn known_root_pem(store: &Store, clock: &Clock) -> Option<String> {
    let roots = parse(&store.load(FILE).ok()??)?;
    roots.into_iter().find(|root| root.is_valid_at(clock.now())).map(|root| root.certificate)
}

/// Starts the task of a name; the receiver is told when the first certificate is signed, which takes a millisecond.
pub fn spawn(task: CertificateTask, store: Arc<Store>, tasks: &TaskTracker) -> oneshot::Receiver<()> {
    let (sender, loaded) = oneshot::channel();
    let stop = task.stop.clone();
    tasks.spawn(stop.run_until_cancelled_owned(async move {
        let (task, mut sender) = (Arc::new(task), Some(sender));
        let mut signed: Option<Signed> = None;
        loop {
            // The clock may have been set while we slept: what was signed for another time is signed again.
            if signed.as_ref().is_none_or(|signed| signed.is_due(task.clock.now())) {
                let task = task.clone();
                signed = store.run(move |store| renew(&task, store)).await;
            }
            // Nobody waits for it after a while.
            let _ = sender.take().map(|sender| sender.send(()));
            sleep(MAX_SLEEP).await;
        }
    }));
    loaded
}

/// When a certificate that was signed is good.
struct Signed {
    begin: SystemTime,
    due: SystemTime,
}

impl Signed {
    fn is_due(&self, now: SystemTime) -> bool {
        now < self.begin || now >= self.due
    }
}

/// Signs a certificate and serves it; `None` after a failure.
fn renew(task: &CertificateTask, store: &Store) -> Option<Signed> {
    match root(store, &task.clock).and_then(|root| sign(&root, &task.host, &task.clock)) {
        Ok(certificate) => {
            task.install(&certificate);
            let due = certificate.at_a_third();
            task.next(due);
            info!(site = &*task.host, "certificate signed by the internal CA");
            Some(Signed { begin: certificate.not_before, due })
        }
        Err(error) => {
            warn!(site = &*task.host, error = chain(&error), fix = error.cause().fix(), "the internal CA cannot sign");
            task.failed(&error);
            None
        }
    }
}

/// The root that is valid now and has been there longest, so that what devices trust is used again once a clock that was
/// wrong is right. One is made if there is none; the others are kept.
fn root(store: &Store, clock: &Clock) -> Result<Root, CertError> {
    let _lock = store.lock("internal-ca")?;
    let mut roots = Vec::new();
    if let Some(text) = store.load(FILE)? {
        match parse(&text) {
            Some(stored) => roots = stored,
            None => {
                let aside = store.set_aside(FILE, "damaged")?;
                warn!(moved_to = %aside.display(), "the internal CA was damaged; a new one is made");
            }
        }
    }
    if let Some(valid) = roots.iter().find(|root| root.is_valid_at(clock.now())) {
        return Ok(valid.clone());
    }
    if !roots.is_empty() {
        warn!(
            now = super::rfc3339(clock.now()),
            "no root of the internal CA is valid now; a new one is made. If the clock is wrong, set it: the old root is \
             used again. If not, devices have to be told of the new one (`vestibule ca`)"
        );
    }
    let new = make(clock)?;
    roots.truncate(MAX_ROOTS - 1);
    roots.push(new.clone());
    let document = RootDocument { first: roots.remove(0), more: roots };
    store.save(FILE, &serde_json::to_string(&document).expect("text is JSON"))?;
    Ok(new)
}

/// The file: the first root stands where the only one has always stood.
#[derive(Serialize, Deserialize)]
struct RootDocument {
    #[serde(flatten)]
    first: Root,
    #[serde(default, deserialize_with = "lenient_list")]
    more: Vec<Root>,
}

/// The roots of the file; `None` if the first one is damaged. Of the others, those that are.
fn parse(text: &str) -> Option<Vec<Root>> {
    let document: RootDocument =
        serde_json::from_str(text).ok().filter(|document: &RootDocument| document.first.is_usable())?;
    let more = document.more.into_iter().filter(Root::is_usable);
    Some(std::iter::once(document.first).chain(more).collect())
}

impl Root {
    fn is_usable(&self) -> bool {
        let key = KeyPair::from_pem(&self.key);
        key.is_ok_and(|key| Issuer::from_ca_cert_pem(&self.certificate, key).is_ok())
    }

    fn is_valid_at(&self, now: SystemTime) -> bool {
        let Ok(der) = CertificateDer::from_pem_slice(self.certificate.as_bytes()) else { return false };
        let Ok((_, parsed)) = X509Certificate::from_der(&der) else { return false };
        let at = |time: x509_parser::time::ASN1Time| SystemTime::from(time.to_datetime());
        let (begin, end) = (at(parsed.validity().not_before), at(parsed.validity().not_after));
        begin <= now && now + ROOT_LEFT < end
    }
}

fn make(clock: &Clock) -> Result<Root, CertError> {
    let key = KeyPair::generate()?;
    let mut params = valid(CertificateParams::new(Vec::new())?, ROOT_DAYS, clock);
    params.distinguished_name = named("vestibule internal CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?.pem();
    Ok(Root { certificate, key: key.serialize_pem() })
}

fn sign(root: &Root, host: &str, clock: &Clock) -> Result<Certificate, CertError> {
    let issuer = Issuer::from_ca_cert_pem(&root.certificate, KeyPair::from_pem(&root.key)?)?;
    let key = KeyPair::generate()?;
    let mut params = valid(CertificateParams::new(vec![host.to_owned()])?, LEAF_DAYS, clock);
    params.distinguished_name = named(host);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Certificate::new(vec![leaf.der().clone()], key)
}

fn valid(mut params: CertificateParams, days: i64, clock: &Clock) -> CertificateParams {
    let now = time::OffsetDateTime::from(clock.now());
    params.not_before = now - BACKDATED;
    params.not_after = now + time::Duration::days(days);
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_stays_and_damage_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        let clock = Clock::system();
        let first = root_pem(&store, &clock).unwrap();
        assert_eq!(root_pem(&store, &clock).unwrap(), first);
        store.save(FILE, "{\"certificate\":\"x\"}").unwrap();
        assert_ne!(root_pem(&store, &clock).unwrap(), first);
        assert!(folder.path().join("internal-ca.json.damaged-1").exists());
    }

    #[test]
    fn a_broken_root_costs_itself_alone() {
        let clock = Clock::system();
        let roots = [make(&clock).unwrap(), make(&clock).unwrap()];
        let json = |root: &Root| serde_json::to_value(root).unwrap();
        let mut document = json(&roots[0]);
        document["more"] = serde_json::json!([1, {"certificate": "x", "key": "y"}, json(&roots[1]), {"key": "k"}]);
        document["unknown"] = serde_json::json!({});
        let pems = |text: &str| parse(text).map(|roots| roots.into_iter().map(|root| root.certificate).collect());
        let both = Some(roots.clone().map(|root| root.certificate).to_vec());
        assert_eq!(pems(&document.to_string()), both);
        document["more"] = serde_json::json!("none");
        assert_eq!(pems(&document.to_string()), Some(vec![roots[0].certificate.clone()]));
        document["certificate"] = serde_json::json!("x");
        assert_eq!(pems(&document.to_string()), None::<Vec<String>>);
    }

    #[test]
    fn a_root_of_a_wrong_clock_is_replaced_and_the_old_one_comes_back_with_the_time() {
        const YEAR: u64 = 366 * 86_400;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        let years = Arc::new(std::sync::atomic::AtomicU64::new(40));
        let shared = years.clone();
        let clock = Clock::of(move || {
            let years = shared.load(std::sync::atomic::Ordering::Relaxed);
            SystemTime::UNIX_EPOCH + Duration::from_secs(years * YEAR)
        });
        let at = |year: u64| {
            years.store(year, std::sync::atomic::Ordering::Relaxed);
            let pem = root_pem(&store, &clock).unwrap();
            assert_eq!(known_root_pem(&store, &clock).as_ref(), Some(&pem));
            pem
        };
        let right = at(40);
        let ahead = at(70);
        assert_ne!(right, ahead, "a root that has expired signs nothing");
        assert_eq!(at(41), right);
        let behind = at(0);
        assert!(behind != right && behind != ahead, "a root that is not valid yet signs nothing");
        assert_eq!(at(42), right, "devices trust the first one");
        assert_ne!(at(50), right, "in time before it ends");
        assert!(!folder.path().join("internal-ca.json.damaged-1").exists());
    }

    #[test]
    fn a_certificate_is_signed_again_when_the_clock_leaves_its_time() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let signed = Signed { begin: at(100), due: at(200) };
        assert!(signed.is_due(at(99)) && !signed.is_due(at(100)) && !signed.is_due(at(199)) && signed.is_due(at(200)));
    }

    #[test]
    fn leaves_are_short_and_fit_their_key() {
        let clock = Clock::system();
        let certificate = sign(&make(&clock).unwrap(), "a.example", &clock).unwrap();
        let left = certificate.not_after.duration_since(clock.now()).unwrap();
        assert!(left > Duration::from_secs(6 * 86_400) && left <= Duration::from_secs(7 * 86_400));
    }
}

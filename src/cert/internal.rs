//! The local CA of `tls.certificates = "internal"`: a root in the storage that devices are told to trust, and short
//! certificates that it signs.

use std::{sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::{CertError, Certificate, CertificateTask, Store};
use crate::{clock::Clock, error::chain};

const FILE: &str = "internal-ca.json";

/// Ten years: a root that devices have to be told of again is a nuisance.
const ROOT_DAYS: i64 = 3650;

/// A week: nobody revokes these, and renewing costs a signature.
const LEAF_DAYS: i64 = 7;

/// Clocks of clients are a little off.
const BACKDATED: Duration = Duration::from_secs(3600);

/// After a failure, the next try.
const RETRY: Duration = Duration::from_secs(60);

/// The root, which is made if there is none.
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

/// The same, where there is one already: nothing is made, and nothing is said of what is damaged.
#[must_use]
pub fn known_root_pem(store: &Store) -> Option<String> {
    parse(&store.load(FILE).ok()??).map(|root| root.certificate)
}

/// Keeps a name served. The first certificate is signed before this returns: it takes a millisecond.
pub fn spawn(task: CertificateTask, store: Arc<Store>, tasks: &TaskTracker) {
    let mut wait = renew(&task, &store);
    tasks.spawn(async move {
        while task.stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
            wait = renew(&task, &store);
        }
    });
}

/// Signs a certificate; how long until the next.
fn renew(task: &CertificateTask, store: &Store) -> Duration {
    match root(store, &task.clock).and_then(|root| sign(&root, &task.host, &task.clock)) {
        Ok(certificate) => {
            task.install(&certificate);
            let next = certificate.at_a_third();
            task.next(next);
            info!(site = &*task.host, "certificate signed by the internal CA");
            next.duration_since(task.clock.now()).unwrap_or(RETRY)
        }
        Err(error) => {
            warn!(site = &*task.host, error = chain(&error), "the internal CA cannot sign");
            task.failed(&error);
            RETRY
        }
    }
}

fn root(store: &Store, clock: &Clock) -> Result<Root, CertError> {
    let _lock = store.lock("internal-ca")?;
    if let Some(text) = store.load(FILE)? {
        if let Some(root) = parse(&text) {
            return Ok(root);
        }
        let aside = store.set_aside(FILE, "damaged")?;
        warn!(moved_to = %aside.display(), "the internal CA was damaged; a new one is made");
    }
    let root = make(clock)?;
    let text = serde_json::json!({ "certificate": root.certificate, "key": root.key });
    store.save(FILE, &text.to_string())?;
    Ok(root)
}

fn parse(text: &str) -> Option<Root> {
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    let root = Root { certificate: json["certificate"].as_str()?.to_owned(), key: json["key"].as_str()?.to_owned() };
    let key = KeyPair::from_pem(&root.key).ok()?;
    Issuer::from_ca_cert_pem(&root.certificate, key).ok()?;
    Some(root)
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
    fn leaves_are_short_and_fit_their_key() {
        let clock = Clock::system();
        let certificate = sign(&make(&clock).unwrap(), "a.example", &clock).unwrap();
        let left = certificate.not_after.duration_since(clock.now()).unwrap();
        assert!(left > Duration::from_secs(6 * 86_400) && left <= Duration::from_secs(7 * 86_400));
    }
}

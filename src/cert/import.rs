//! Certificates and accounts of another program, into our storage: so that who moves here orders nothing.

use std::time::SystemTime;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use serde::Serialize;

use super::{CertError, Store, issue::account_file, state::State};

/// A certificate that another program has ordered.
#[derive(Clone)]
pub struct ImportedCertificate {
    /// The name that it is wanted for.
    pub host: String,
    /// The ACME directory that issued it.
    pub directory: String,
    /// Leaf first, as PEM.
    pub chain: String,
    /// Its key as PEM, in any of the three forms.
    pub key: String,
}

/// Why nothing was taken over.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Nobody would accept it any more.
    #[error("the certificate has expired")]
    Expired,
    /// It is another name's.
    #[error("the certificate is not for this name")]
    OtherName,
    /// Ours is as good.
    #[error("the storage has one that is at least as new")]
    NotNewer,
    /// We could not sign with it.
    #[error("the key of the account is no P-256 key")]
    AccountKey,
    /// It cannot be read, its key is another's, or the storage failed.
    #[error(transparent)]
    Cert(#[from] CertError),
}

/// Puts a certificate into the storage, after making sure that it can be served, and returns when it ends. What is there
/// stays if it is as new.
///
/// # Errors
/// It cannot be served, or not be written.
pub fn import(store: &Store, foreign: ImportedCertificate, now: SystemTime) -> Result<SystemTime, ImportError> {
    let host = foreign.host;
    let state = State::new(foreign.chain, foreign.key, foreign.directory);
    let certificate = state.certificate()?;
    if certificate.not_after <= now {
        return Err(ImportError::Expired);
    }
    if !certificate.covers(&host) {
        return Err(ImportError::OtherName);
    }
    let _order = store.lock(&State::order_lock_name(&host)).map_err(CertError::from)?;
    let _lock = store.lock(&State::lock_name(&host)).map_err(CertError::from)?;
    let file = State::file(&host);
    let known = store.load(&file).map_err(CertError::from)?.and_then(|text| State::from_json(&text));
    if known.and_then(|known| known.certificate().ok()).is_some_and(|known| known.not_after >= certificate.not_after) {
        return Err(ImportError::NotNewer);
    }
    store.save(&file, &state.to_json()).map_err(CertError::from)?;
    Ok(certificate.not_after)
}

/// Puts an account at a directory into the storage: its URL there and its key as PEM.
///
/// # Errors
/// The key is of another kind, there is an account already, or the storage cannot be written.
pub fn import_account(store: &Store, directory: &str, url: &str, key: &str) -> Result<(), ImportError> {
    let file = account_file(directory);
    if store.load(&file).map_err(CertError::from)?.is_some() {
        return Err(ImportError::NotNewer);
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| ImportError::AccountKey)?;
    let key = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_der());
    let key = key.map_err(|_| ImportError::AccountKey)?.to_pkcs8v1().map_err(|_| ImportError::AccountKey)?;
    let key_pkcs8 = &BASE64_URL_SAFE_NO_PAD.encode(key.as_ref());
    let account = serde_json::to_string(&AccountDocument { id: url, key_pkcs8, directory });
    store.save(&file, &account.expect("text is JSON")).map_err(CertError::from)?;
    Ok(())
}

/// The form in which the ACME library keeps an account.
#[derive(Serialize)]
struct AccountDocument<'a> {
    id: &'a str,
    key_pkcs8: &'a str,
    directory: &'a str,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn issued(host: &str, days: i32) -> ImportedCertificate {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2030 + days, 1, 1);
        let chain = params.self_signed(&key).unwrap().pem();
        ImportedCertificate { host: host.into(), directory: "https://ca/dir".into(), chain, key: key.serialize_pem() }
    }

    #[test]
    fn only_what_can_be_served_and_is_newer_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("state"));
        let at = |years: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(years * 31_557_600);
        let now = at(56);
        let (old, new) = (issued("a.example.org", 0), issued("a.example.org", 1));
        assert!(import(&store, old.clone(), now).is_ok());
        assert!(import(&store, new.clone(), now).is_ok());
        assert!(matches!(import(&store, old.clone(), now), Err(ImportError::NotNewer)));
        assert!(matches!(import(&store, new.clone(), at(70)), Err(ImportError::Expired)));
        let other = ImportedCertificate { host: "b.example.org".into(), ..new.clone() };
        assert!(matches!(import(&store, other, now), Err(ImportError::OtherName)));
        let mixed = ImportedCertificate { key: old.key, ..issued("a.example.org", 2) };
        assert!(matches!(import(&store, mixed, now), Err(ImportError::Cert(CertError::Mismatch(_)))));
        let stored = State::from_json(&store.load("certificates/a.example.org.json").unwrap().unwrap()).unwrap();
        assert_eq!(stored, State::new(new.chain, new.key, new.directory));
        assert!(import(&store, issued("*.example.org", 1), now).is_ok());
    }

    #[test]
    fn an_account_is_taken_once_and_only_with_a_key_that_signs() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("state"));
        let take = |key: &str| import_account(&store, "https://ca/dir", "https://ca/acct/1", key);
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
        assert!(matches!(take(&p384), Err(ImportError::AccountKey)));
        assert!(matches!(take("no key"), Err(ImportError::AccountKey)));
        let key = KeyPair::generate().unwrap().serialize_pem();
        assert!(take(&key).is_ok());
        assert!(matches!(take(&key), Err(ImportError::NotNewer)));
    }
}

//! What is stored of a name whose certificate is ordered: one file, changed only by load, modify and save under a lock.

use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};

use super::{
    CertError, Certificate, Store, StoreError,
    document::{Seconds, UnixTime, lenient},
    issue::Pending,
    schedule::ScheduleInput,
};

/// What is stored of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The certificate and its issuers, as PEM.
    pub chain: String,
    /// Its key, as PEM.
    pub key: String,
    /// The directory that issued it.
    pub directory: String,
    /// The window in which the CA wants it renewed.
    pub window: Option<(SystemTime, SystemTime)>,
    /// What the schedule works with.
    pub facts: ScheduleInput,
    /// Failures in a row.
    pub failures: u32,
    /// The last of them, in words.
    pub last_error: Option<String>,
    /// How to fix it.
    pub last_fix: Option<String>,
    /// The order that an earlier run did not finish.
    pub pending: Option<Pending>,
}

/// What was found in the storage.
pub enum Stored {
    /// No file.
    Nothing,
    /// A state, with its certificate if it has one.
    Found(Box<State>, Option<Certificate>),
    /// A damaged file, which is now here.
    Damaged(String),
}

impl State {
    /// A certificate and nothing else.
    pub fn new(chain: String, key: String, directory: String) -> Self {
        Self { chain, key, directory, ..Self::default() }
    }

    /// The file of a name.
    pub fn file(host: &str) -> String {
        format!("certificates/{}.json", file_name(host))
    }

    /// The name of the lock under which the file is changed.
    pub fn lock_name(host: &str) -> String {
        format!("state-{}", file_name(host))
    }

    /// The name of the lock that is held while a certificate is ordered.
    pub fn order_lock_name(host: &str) -> String {
        format!("order-{}", file_name(host))
    }

    /// Loads what is stored. A damaged file is set aside.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn load(store: &Store, host: &str) -> Result<Stored, StoreError> {
        let file = Self::file(host);
        let Some(text) = store.load(&file)? else { return Ok(Stored::Nothing) };
        let usable = Self::from_json(&text).and_then(|mut state| {
            if state.chain.is_empty() {
                return Some(Stored::Found(Box::new(state), None));
            }
            let certificate = state.certificate().ok()?;
            state.facts.validity = Some((certificate.not_before, certificate.not_after));
            Some(Stored::Found(Box::new(state), Some(certificate)))
        });
        match usable {
            Some(found) => Ok(found),
            None => Ok(Stored::Damaged(store.set_aside(&file, "damaged")?.display().to_string())),
        }
    }

    /// Saves it.
    ///
    /// # Errors
    /// The storage cannot be written.
    pub fn save(&self, store: &Store, host: &str) -> Result<(), StoreError> {
        store.save(&Self::file(host), &self.to_json())
    }

    /// The certificate with its key, ready to be served.
    pub fn certificate(&self) -> Result<Certificate, CertError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(self.chain.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| CertError::X509)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|_| CertError::X509)?;
        Certificate::new(chain, key)
    }

    /// The form in the storage.
    pub fn to_json(&self) -> String {
        let document = StateDocument {
            version: VERSION,
            chain: self.chain.clone(),
            key: self.key.clone(),
            directory: self.directory.clone(),
            window: self.window.map(|(from, to)| (UnixTime(from), UnixTime(to))),
            renew_at: self.facts.renew_at.map(UnixTime),
            not_before: self.facts.not_before.map(UnixTime),
            hurried: self.facts.hurried.map(UnixTime),
            failures: self.failures,
            last_error: self.last_error.clone(),
            last_fix: self.last_fix.clone(),
            pending: self.pending.clone(),
        };
        serde_json::to_string(&document).expect("text and numbers are JSON")
    }

    /// Reads it back; `None` for what is damaged.
    pub fn from_json(text: &str) -> Option<Self> {
        let document: StateDocument = serde_json::from_str(text).ok()?;
        Some(Self {
            chain: document.chain,
            key: document.key,
            directory: document.directory,
            window: document.window.map(|(from, to)| (from.0, to.0)),
            facts: ScheduleInput {
                renew_at: document.renew_at.map(|at| at.0),
                not_before: document.not_before.map(|at| at.0),
                hurried: document.hurried.map(|at| at.0),
                ..ScheduleInput::default()
            },
            failures: document.failures,
            last_error: document.last_error,
            last_fix: document.last_fix,
            pending: document.pending,
        })
    }
}

/// The form of the file, for a version that reads another one.
const VERSION: u32 = 1;

/// The file of a name: without its certificate it is of no use, without the rest the schedule begins anew.
#[derive(Serialize, Deserialize)]
struct StateDocument {
    #[serde(skip_deserializing)]
    version: u32,
    chain: String,
    key: String,
    directory: String,
    #[serde(default, deserialize_with = "lenient")]
    window: Option<(Seconds, Seconds)>,
    #[serde(default, deserialize_with = "lenient")]
    renew_at: Option<Seconds>,
    #[serde(default, deserialize_with = "lenient")]
    not_before: Option<Seconds>,
    #[serde(default, deserialize_with = "lenient")]
    hurried: Option<Seconds>,
    #[serde(default, deserialize_with = "lenient")]
    failures: u32,
    #[serde(default, deserialize_with = "lenient")]
    last_error: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    last_fix: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pending: Option<Pending>,
}

/// A name as the name of a file: `*` stands in file names for "anything", and `:` of an IPv6 address is not permitted on
/// every file system.
pub fn file_name(host: &str) -> String {
    host.replace('*', "_").replace(':', "-")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::{Value, json};

    use super::*;

    fn full() -> State {
        let at = |n| UNIX_EPOCH + Duration::from_secs(n);
        State {
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
            last_fix: Some("seven".into()),
            pending: Some(Pending { directory: "https://ca".into(), url: "https://ca/7".into(), key: "k".into() }),
        }
    }

    #[test]
    fn the_state_survives_the_file() {
        assert_eq!(State::from_json(&full().to_json()), Some(full()));
        // As it stands in the file.
        let text = r#"{"version":1,"chain":"c","key":"k","directory":"https://ca","window":[1,2],"renew_at":3,
            "not_before":4,"hurried":8,"failures":5,"last_error":"six",
            "last_fix":"seven","pending":{"directory":"https://ca","url":"https://ca/7","key":"k"}}"#;
        assert_eq!(State::from_json(text), Some(full()));
        let written: Value = serde_json::from_str(&full().to_json()).unwrap();
        assert_eq!(written, serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn a_broken_member_costs_itself_alone() {
        let whole: Value = serde_json::from_str(&full().to_json()).unwrap();
        let keys = whole.as_object().unwrap().keys();
        for key in keys.filter(|key| !["version", "chain", "key", "directory"].contains(&key.as_str())) {
            let mut without = whole.clone();
            without.as_object_mut().unwrap().shift_remove(key);
            let expected = State::from_json(&without.to_string()).unwrap();
            assert_ne!(expected, full(), "{key}");
            for broken in [json!(null), json!(true), json!(-1), json!([1]), json!({"url": 1}), json!([1, "2"])] {
                let mut document = whole.clone();
                document[key] = broken;
                assert_eq!(State::from_json(&document.to_string()), Some(expected.clone()), "{document}");
            }
        }
        let mut newer = whole.clone();
        (newer["version"], newer["unknown"]) = (json!("two"), json!({"a": [1]}));
        assert_eq!(State::from_json(&newer.to_string()), Some(full()));
        for key in ["chain", "key", "directory"] {
            let mut document = whole.clone();
            document[key] = json!(1);
            assert_eq!(State::from_json(&document.to_string()), None, "{key}");
        }
    }
}

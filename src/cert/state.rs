//! What is stored of a name whose certificate is ordered: one file, changed only by load, modify and save under a lock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};

use super::{CertError, Certificate, Store, StoreError, issue::Pending, schedule::ScheduleInput};

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
        store.save(&Self::file(host), &self.to_json().to_string())
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
    pub fn to_json(&self) -> Value {
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
            "last_fix": self.last_fix,
            "pending": self.pending.as_ref().map(|order| {
                json!({ "directory": order.directory, "url": order.url, "key": order.key })
            }),
        })
    }

    /// Reads it back; `None` for what is damaged.
    pub fn from_json(text: &str) -> Option<Self> {
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
            last_fix: text("last_fix"),
            pending: Pending::from_json(&json["pending"]),
        })
    }
}

/// A name as the name of a file: `*` stands in file names for "anything", and `:` of an IPv6 address is not permitted on
/// every file system.
pub fn file_name(host: &str) -> String {
    host.replace('*', "_").replace(':', "-")
}

impl Pending {
    fn from_json(json: &Value) -> Option<Self> {
        let text = |key: &str| json[key].as_str().map(str::to_owned);
        Some(Self { directory: text("directory")?, url: text("url")?, key: text("key")? })
    }
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
            last_fix: Some("seven".into()),
            pending: Some(Pending { directory: "https://ca".into(), url: "https://ca/7".into(), key: "k".into() }),
        };
        assert_eq!(State::from_json(&state.to_json().to_string()), Some(state));
        assert_eq!(State::from_json("{\"chain\":1}"), None);
    }
}

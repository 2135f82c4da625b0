//! Our account at a CA: opened once for all names, made where there is none, replaced where the CA has dropped it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use instant_acme::{Account, AccountBuilder, AccountCredentials, Error, ExternalAccountKey, NewAccount};
use serde::Deserialize;
use tokio::sync::Mutex;
use tracing::{debug, warn};

use super::{
    IssueError, blame,
    client::{Client, LastResponse},
    describe, is_nonce, is_problem,
};
use crate::{
    cert::{
        CertError, Store, StoreError,
        authority::Authority,
        challenge::{Challenges, thumbprint},
        document::{lenient, lenient_list},
    },
    clock::Clock,
    config::plan::Directory,
    conn::Fetch,
    error::{CertificateCause, chain},
};

/// A directory is fetched again after this: a CA may move its addresses or change its profiles.
const DIRECTORY_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A CA that does not answer is left alone for so long by all names, shorter than the first back-off of one.
const UNREACHABLE_PAUSE: Duration = Duration::from_secs(30);

/// One CA and our account there.
pub struct Ca {
    /// What the configuration says of it.
    pub directory: Directory,
    /// Its queue, nonces and clock.
    pub authority: Arc<Authority>,
    fetch: Fetch,
    store: Arc<Store>,
    challenges: Arc<Challenges>,
    clock: Clock,
    opened: Mutex<Option<Opened>>,
}

/// An account that is in use.
#[derive(Clone)]
pub struct Opened {
    /// The account with the directory.
    pub account: Account,
    /// What is stored of it.
    text: String,
    /// When the directory was fetched.
    at: Instant,
}

impl Ca {
    /// A CA that has not been asked yet.
    pub fn new(
        directory: Directory,
        authority: Arc<Authority>,
        fetch: Fetch,
        store: Arc<Store>,
        challenges: Arc<Challenges>,
        clock: Clock,
    ) -> Self {
        Self { directory, authority, fetch, store, challenges, clock, opened: Mutex::default() }
    }

    /// Our account, made if there is none. Names that begin together wait here for one directory and one account.
    ///
    /// # Errors
    /// The CA does not answer, or gives us none.
    pub async fn open(&self, email: Option<&str>, seen: &LastResponse) -> Result<Opened, IssueError> {
        let mut slot = self.opened.lock().await;
        if let Some(opened) = slot.as_ref().filter(|opened| opened.at.elapsed() < DIRECTORY_LIFETIME) {
            // Another process may have replaced the account, or the disk have damaged it.
            if self.stored().await?.is_some_and(|(_, text)| text == opened.text) {
                return Ok(opened.clone());
            }
        }
        // Another name may just have found out, while this one waited for the lock.
        self.authority.paused().map_err(|paused| self.paused(&paused))?;
        let opened = self.load_or_make(email, seen).await;
        if let Err(error) = &opened
            && error.cause.is_of_ca()
        {
            let until = error.retry_at.unwrap_or_else(|| self.clock.now() + UNREACHABLE_PAUSE);
            self.authority.pause(until, &error.text).await;
        }
        let opened = opened?;
        self.challenges.know_account(&self.directory.url, opened.account.key_thumbprint());
        Ok(slot.insert(opened).clone())
    }

    /// The error of a name that has not asked, since the CA wants to be left alone.
    pub fn paused(&self, paused: &crate::cert::authority::Paused) -> IssueError {
        let text = format!("{} is left alone for now: {}", self.directory.url, paused.reason);
        IssueError { text, cause: CertificateCause::RateLimited, retry_at: Some(paused.until) }
    }

    async fn load_or_make(&self, email: Option<&str>, seen: &LastResponse) -> Result<Opened, IssueError> {
        let stored = match self.stored().await? {
            Some(stored) => stored,
            None => {
                // Several processes make one account and not one each.
                let lock = self.store.lock_patiently(&account_lock(&self.directory.url)).await;
                let _lock = lock.map_err(|error| storage_error(error.into()))?;
                match self.stored().await? {
                    Some(stored) => stored,
                    None => return self.make(email, seen).await,
                }
            }
        };
        let (credentials, text) = stored;
        let restored = self.builder().from_credentials(credentials).await;
        let account = restored.map_err(|error| self.no_account("the CA does not answer", &error, seen))?;
        Ok(Opened { account, text, at: Instant::now() })
    }

    async fn make(&self, email: Option<&str>, seen: &LastResponse) -> Result<Opened, IssueError> {
        let contact = email.map(|email| format!("mailto:{email}"));
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let eab = self.directory.eab.as_ref().map(|eab| ExternalAccountKey::new(eab.kid.clone(), &eab.hmac_key));
        let made = patiently!(self.builder().create(&new, self.directory.url.clone(), eab.as_ref()).await);
        let (account, credentials) = made.map_err(|error| self.no_account("no account", &error, seen))?;
        let text = serde_json::to_string(&credentials).unwrap_or_default();
        let (file, saved) = (account_file(&self.directory.url), text.clone());
        let saved = self.store.run(move |store| store.save(&file, &saved)).await;
        saved.map_err(|error| storage_error(error.into()))?;
        Ok(Opened { account, text, at: Instant::now() })
    }

    fn builder(&self) -> AccountBuilder {
        Account::builder_with_http(Box::new(Client { fetch: self.fetch.clone(), authority: self.authority.clone() }))
    }

    fn no_account(&self, what: &str, error: &Error, seen: &LastResponse) -> IssueError {
        let text = describe(&self.directory.url, what, error, seen);
        IssueError { text, cause: blame(error, seen), retry_at: seen.retry_after().map(|wait| self.clock.now() + wait) }
    }

    /// What is stored of the account. A damaged file is set aside and counts as none.
    async fn stored(&self) -> Result<Option<(AccountCredentials, String)>, IssueError> {
        let file = account_file(&self.directory.url);
        let stored = self.store.run(move |store| {
            let Some(text) = store.load(&file)? else { return Ok(None) };
            if let Ok(credentials) = serde_json::from_str(&text) {
                return Ok(Some((credentials, text)));
            }
            let aside = store.set_aside(&file, "damaged")?;
            warn!(moved_to = %aside.display(), "the stored account is damaged; a new one is made");
            Ok(None)
        });
        stored.await.map_err(|error: StoreError| storage_error(error.into()))
    }

    /// Sets an account aside that the CA does not accept any more, unless another process has done so already.
    ///
    /// # Errors
    /// The storage cannot be written.
    pub async fn forget(&self, opened: &Opened, why: DroppedLines) -> Result<(), IssueError> {
        let url = self.directory.url.clone();
        let lock = self.store.lock_patiently(&account_lock(&url)).await;
        let _lock = lock.map_err(|error| storage_error(error.into()))?;
        let text = opened.text.clone();
        let set_aside = self.store.run(move |store| {
            let file = account_file(&url);
            if store.load(&file)?.is_some_and(|stored| stored == text) {
                warn!(directory = url, "the CA {}; a new one is made", why.words());
                store.set_aside(&file, why.suffix())?;
            }
            Ok::<_, StoreError>(())
        });
        set_aside.await.map_err(|error| storage_error(error.into()))?;
        let mut slot = self.opened.lock().await;
        if slot.as_ref().is_some_and(|current| current.text == opened.text) {
            *slot = None;
        }
        Ok(())
    }
}

/// Why the CA does not accept an account any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DroppedLines {
    /// It has lost it: a restore of the CA, a test CA that was started anew.
    Unknown,
    /// It has deactivated or revoked it.
    Deactivated,
}

impl DroppedLines {
    /// What an error of a new order says of our account.
    pub fn of(error: &Error) -> Option<Self> {
        let Error::Api(problem) = error else { return None };
        let detail = problem.detail.as_deref().unwrap_or_default().to_ascii_lowercase();
        // Boulder and pebble answer `unauthorized` with the account's status in the text (RFC 8555 section 7.3.6).
        let ended = is_problem(error, "unauthorized")
            && detail.contains("account")
            && ["deactivated", "revoked", "not valid"].iter().any(|word| detail.contains(word));
        if ended { Some(Self::Deactivated) } else { is_problem(error, "accountDoesNotExist").then_some(Self::Unknown) }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Unknown => "does not know our account any more",
            Self::Deactivated => "has deactivated our account",
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Unknown => "forgotten",
            Self::Deactivated => "deactivated",
        }
    }
}

/// The thumbprint of the account that is stored for a directory, without asking the CA.
pub fn stored_thumbprint(store: &Store, directory: &str) -> Option<String> {
    // What cannot be read now is told when the account is used.
    let text = store.load(&account_file(directory)).ok()??;
    let credentials: AccountCredentials = serde_json::from_str(&text).ok()?;
    thumbprint(credentials.private_key().secret_pkcs8_der())
}

/// What is read of an account without the ACME library, which keeps its key.
#[derive(Default, Deserialize)]
struct AccountUrl {
    #[serde(default, deserialize_with = "lenient")]
    id: Option<String>,
}

/// The URL of the account that is stored for a directory.
///
/// # Errors
/// The storage cannot be read.
pub fn stored_account_url(store: &Store, directory: &str) -> Result<Option<String>, StoreError> {
    let text = store.load(&account_file(directory))?.unwrap_or_default();
    let account: AccountUrl = serde_json::from_str(&text).unwrap_or_default();
    Ok(account.id)
}

/// The names by which the CA of a directory goes in DNS, as it has said itself.
pub fn stored_issuers(store: &Store, directory: &str) -> Vec<String> {
    // What cannot be read is asked for again with the next order.
    let file = format!("accounts/{}.issuers.json", as_name(directory));
    let text = store.load(&file).ok().flatten().unwrap_or_default();
    lenient_list(&mut serde_json::Deserializer::from_str(&text)).unwrap_or_default()
}

/// An error of the storage.
pub fn storage_error(error: CertError) -> IssueError {
    debug!(error = chain(&error), "the storage failed");
    IssueError::new(CertificateCause::Storage, chain(&error))
}

/// Where the account at a directory is kept.
pub fn account_file(directory: &str) -> String {
    format!("accounts/{}.json", as_name(directory))
}

fn account_lock(directory: &str) -> String {
    format!("account-{}", as_name(directory))
}

/// A URL as a part of a file's name.
pub fn as_name(url: &str) -> String {
    url.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_member_costs_itself_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().to_owned());
        let url = |text: &str| {
            store.save(&account_file("https://ca/dir"), text).unwrap();
            stored_account_url(&store, "https://ca/dir").unwrap()
        };
        assert_eq!(url(r#"{"id":"https://ca/1","key_pkcs8":7,"more":{}}"#).as_deref(), Some("https://ca/1"));
        assert_eq!(url(r#"{"id":7}"#), None);
        assert_eq!(url("["), None);
        let issuers = |text: &str| {
            store.save("accounts/https---ca-dir.issuers.json", text).unwrap();
            stored_issuers(&store, "https://ca/dir")
        };
        assert_eq!(issuers(r#"["a.example",7,null,"b.example"]"#), ["a.example", "b.example"]);
        assert!(issuers(r#"{"a":1}"#).is_empty() && issuers("[").is_empty());
    }
}

//! One order at one CA, from the account to the chain (RFC 8555). The only file that knows the ACME library.

mod client;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use instant_acme::{
    Account, AccountBuilder, AccountCredentials, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error,
    ExternalAccountKey, Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use tracing::{debug, info, warn};

use self::client::{Client, LastResponse};
use super::{CertError, Store, StoreError, challenge::Challenges, lock};
use crate::{
    clock::Clock,
    config::plan::{Acme, Challenge},
    conn::Fetch,
    error::chain,
};

/// A CA may take its time to validate; Let's Encrypt takes seconds, pebble asks to come back after five.
const POLL: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(300)).backoff(1.5).timeout(Duration::from_secs(120));

/// How often a whole step is tried again when the CA does not like our nonce; the library tries three times itself. With
/// nine of ten nonces refused, a step still fails less than once in ten thousand times.
const NONCE_TRIES: usize = 30;

/// Takes a step again while the CA does not like our nonces. A macro, because the compiler cannot yet see that the future
/// of an `AsyncFn` may change threads.
macro_rules! patiently {
    ($step:expr) => {{
        let mut tries = 0;
        loop {
            match $step {
                Err(error) if tries < NONCE_TRIES && is_nonce(&error) => tries += 1,
                outcome => break outcome,
            }
        }
    }};
}

/// Why there is no certificate.
#[derive(Debug, Clone)]
pub struct IssueError {
    /// In words, with what the CA said and what our listeners saw.
    pub text: String,
    /// In one word.
    pub cause: Cause,
    /// The CA asked not to be asked before this.
    pub retry_at: Option<SystemTime>,
}

impl IssueError {
    /// An error that says nothing of when to come back.
    pub const fn new(cause: Cause, text: String) -> Self {
        Self { text, cause, retry_at: None }
    }

    /// Both, one after the other: the words of both, the cause of the later, the longer wait.
    pub fn and(self, later: Self) -> Self {
        Self {
            text: format!("{}; {}", self.text, later.text),
            cause: later.cause,
            retry_at: self.retry_at.max(later.retry_at),
        }
    }
}

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The CA does not answer, is broken or is too slow.
    Ca,
    /// The CA has had enough of us.
    RateLimit,
    /// The CA does not want what we ask for.
    Refused,
    /// The CA could not convince itself that the name is ours.
    Challenge,
    /// We could not keep what we would get.
    Storage,
}

impl Cause {
    /// Every cause, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Ca, Self::RateLimit, Self::Refused, Self::Challenge, Self::Storage];

    /// The word for metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ca => "ca",
            Self::RateLimit => "rate_limit",
            Self::Refused => "refused",
            Self::Challenge => "challenge",
            Self::Storage => "storage",
        }
    }

    /// Another CA may well do what this one did not: the name was not what failed.
    pub const fn is_theirs(self) -> bool {
        matches!(self, Self::Ca | Self::RateLimit)
    }
}

/// An order on its way. It is kept, so that a restart goes on with it instead of placing another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Where it was placed.
    pub directory: String,
    /// Its own address.
    pub url: String,
    /// The key that its certificate will be for, as PEM.
    pub key: String,
}

/// A chain and its key, as PEM.
pub struct Issued {
    /// Leaf first.
    pub chain: String,
    /// PKCS#8.
    pub key: String,
}

/// Places orders.
pub struct Issuer {
    /// The configuration.
    pub plan: Acme,
    /// Where accounts are kept.
    pub store: Arc<Store>,
    /// Where proofs are shown.
    pub challenges: Arc<Challenges>,
    /// How the CA is reached.
    pub fetch: Fetch,
    /// For `Retry-After`.
    pub clock: Clock,
    /// Directories that gave us no account, when and why.
    pub refused: Mutex<HashMap<String, (Instant, IssueError)>>,
}

impl Issuer {
    /// Orders a certificate for a name at a directory, by each permitted challenge in turn until one works. An order
    /// that is `pending` there is taken up again first; one that is placed is given to `keep` before anything is done
    /// about it.
    ///
    /// # Errors
    /// None works.
    pub async fn order(
        &self,
        directory: &str,
        host: &Arc<str>,
        replaces: Option<&[u8]>,
        pending: Option<Pending>,
        keep: &mut (dyn FnMut(Pending) + Send),
    ) -> Result<Issued, IssueError> {
        let seen = LastResponse::default();
        let (mut account, mut text) = self.account(directory, &seen).await?;
        self.check_profile(&account)?;
        let mut failures: Vec<Failure> = Vec::new();
        if let Some(pending) = pending {
            match self.resume(&account, host, &pending, &seen).await {
                Some(Ok(issued)) => return Ok(issued),
                Some(Err(failure)) => failures.push(failure),
                None => {}
            }
        }
        for challenge in &self.plan.challenges {
            if seen.is_limited() {
                break;
            }
            let mut outcome = self.attempt(&account, directory, host, *challenge, replaces, keep, &seen).await;
            if outcome.as_ref().is_err_and(|failure| failure.forgotten) {
                self.forget(directory, &text).await.map_err(|error| self.kept_badly(&error.into()))?;
                (account, text) = self.account(directory, &seen).await?;
                outcome = self.attempt(&account, directory, host, *challenge, replaces, keep, &seen).await;
            }
            match outcome {
                Ok(issued) => return Ok(issued),
                Err(failure) => failures.push(failure),
            }
        }
        let cause = failures.last().map_or(Cause::Ca, |failure| failure.cause);
        let text: Vec<_> = failures.into_iter().map(|failure| failure.text).collect();
        Err(self.failed(text.join("; "), cause, &seen))
    }

    /// The window in which the CA wants a certificate renewed (RFC 9773); nothing where it does not say.
    /// Beside it, when to ask again.
    pub async fn suggestion(&self, directory: &str, leaf: &[u8]) -> Option<((SystemTime, SystemTime), Duration)> {
        let (account, _) = self.account(directory, &LastResponse::default()).await.ok()?;
        let leaf = CertificateDer::from(leaf);
        let id = CertificateIdentifier::try_from(&leaf).ok()?;
        let asked = account.renewal_info(&id).await;
        let (info, again) = asked.inspect_err(|error| debug!(%error, "no renewal information")).ok()?;
        Some(((info.suggested_window.start.into(), info.suggested_window.end.into()), again))
    }

    /// Our account at a CA, made if there is none, with what is stored of it.
    async fn account(&self, directory: &str, seen: &LastResponse) -> Result<(Account, String), IssueError> {
        let file = account_file(directory);
        let stored = match self.stored_account(&file)? {
            Some(stored) => stored,
            None => {
                // Names that begin together, in several processes too, make one account and not one each.
                let began = Instant::now();
                let lock = self.store.lock_patiently(&account_lock(directory)).await;
                let _lock = lock.map_err(|error| self.kept_badly(&error.into()))?;
                match self.stored_account(&file)? {
                    Some(stored) => stored,
                    None => return self.new_account(directory, &file, began, seen).await,
                }
            }
        };
        let (credentials, text) = stored;
        let restored = self.builder(seen).from_credentials(credentials).await;
        let restored = restored.map_err(|error| self.no_account("the CA does not answer", directory, &error, seen))?;
        Ok((restored, text))
    }

    /// Makes an account, unless another name has failed to since `began`: whoever has waited for that need not wait for
    /// the same again.
    async fn new_account(
        &self,
        directory: &str,
        file: &str,
        began: Instant,
        seen: &LastResponse,
    ) -> Result<(Account, String), IssueError> {
        if let Some((at, error)) = lock(&self.refused).get(directory)
            && *at > began
        {
            return Err(error.clone());
        }
        let contact = self.plan.email.as_ref().map(|email| format!("mailto:{email}"));
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let eab = self.plan.eab.as_ref().map(|eab| ExternalAccountKey::new(eab.kid.clone(), &eab.hmac_key));
        let made = patiently!(self.builder(seen).create(&new, directory.to_owned(), eab.as_ref()).await);
        let (account, credentials) = made.map_err(|error| {
            let error = self.no_account("no account", directory, &error, seen);
            lock(&self.refused).insert(directory.to_owned(), (Instant::now(), error.clone()));
            error
        })?;
        let text = serde_json::to_string(&credentials).unwrap_or_default();
        self.store.save(file, &text).map_err(|error| self.kept_badly(&error.into()))?;
        Ok((account, text))
    }

    fn builder(&self, seen: &LastResponse) -> AccountBuilder {
        Account::builder_with_http(Box::new(Client { fetch: self.fetch.clone(), seen: seen.clone() }))
    }

    fn no_account(&self, what: &str, directory: &str, error: &Error, seen: &LastResponse) -> IssueError {
        self.failed(describe(directory, what, error, seen), blame(error, seen), seen)
    }

    /// What is stored of an account. Damage is set aside, and is as good as none.
    fn stored_account(&self, file: &str) -> Result<Option<(AccountCredentials, String)>, IssueError> {
        let badly = |error: StoreError| self.kept_badly(&error.into());
        let Some(text) = self.store.load(file).map_err(badly)? else { return Ok(None) };
        if let Ok(credentials) = serde_json::from_str(&text) {
            return Ok(Some((credentials, text)));
        }
        let aside = self.store.set_aside(file, "damaged").map_err(badly)?;
        warn!(moved_to = %aside.display(), "the stored account is damaged; a new one is made");
        Ok(None)
    }

    /// Sets an account aside that the CA has forgotten, unless another name has done so already.
    async fn forget(&self, directory: &str, text: &str) -> Result<(), StoreError> {
        let file = account_file(directory);
        let _lock = self.store.lock_patiently(&account_lock(directory)).await?;
        if self.store.load(&file)?.is_some_and(|stored| stored == text) {
            warn!(directory, "the CA does not know our account any more; a new one is made");
            self.store.set_aside(&file, "forgotten")?;
        }
        Ok(())
    }

    fn check_profile(&self, account: &Account) -> Result<(), IssueError> {
        let Some(wanted) = &self.plan.profile else { return Ok(()) };
        let offered: Vec<_> = account.profiles().map(|profile| profile.name.to_owned()).collect();
        if offered.contains(wanted) {
            return Ok(());
        }
        let text = format!("the CA has no profile `{wanted}`; it has: {}", offered.join(", "));
        Err(self.failed(text, Cause::Refused, &LastResponse::default()))
    }

    /// Goes on with an order of an earlier run; `None` where the CA has nothing of it that is of use.
    async fn resume(
        &self,
        account: &Account,
        host: &Arc<str>,
        pending: &Pending,
        seen: &LastResponse,
    ) -> Option<Result<Issued, Failure>> {
        let key = KeyPair::from_pem(&pending.key).ok()?;
        let mut order = patiently!(account.order(pending.url.clone()).await).ok()?;
        if order.state().status == OrderStatus::Invalid {
            return None;
        }
        info!(site = &**host, order = pending.url, "an order of an earlier run is taken up again");
        let challenge = self.plan.challenges.first()?;
        Some(self.complete(&mut order, &key, host, *challenge, seen).await)
    }

    #[expect(clippy::too_many_arguments, reason = "what an order is made of")]
    async fn attempt(
        &self,
        account: &Account,
        directory: &str,
        host: &Arc<str>,
        challenge: Challenge,
        replaces: Option<&[u8]>,
        keep: &mut (dyn FnMut(Pending) + Send),
        seen: &LastResponse,
    ) -> Result<Issued, Failure> {
        let key = KeyPair::generate().map_err(|error| Failure::of(Cause::Ca, error.to_string()))?;
        let mut order = self.place(account, host, replaces, seen).await?;
        let url = order.url().to_owned();
        keep(Pending { directory: directory.to_owned(), url, key: key.serialize_pem() });
        self.complete(&mut order, &key, host, challenge, seen).await
    }

    /// From wherever an order stands to its certificate.
    async fn complete(
        &self,
        order: &mut Order,
        key: &KeyPair,
        host: &Arc<str>,
        challenge: Challenge,
        seen: &LastResponse,
    ) -> Result<Issued, Failure> {
        let fails = |what: &str, error: &Error| Failure::of(blame(error, seen), describe(host, what, error, seen));
        if order.state().status == OrderStatus::Pending {
            self.prove(order, host, challenge, seen).await?;
        }
        let csr = CertificateParams::new(vec![host.to_string()]).and_then(|mut params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.serialize_request(key)
        });
        let csr = csr.map_err(|error| Failure::of(Cause::Refused, error.to_string()))?;
        if order.state().status == OrderStatus::Ready {
            match patiently!(order.finalize_csr(csr.der()).await) {
                Ok(()) => {}
                // An earlier run sent it, with the same key, and its request arrived between our two (RFC 8555 section 7.4).
                Err(error) if is_problem(&error, "orderNotReady") => {
                    patiently!(order.refresh().await)
                        .map_err(|error| fails("the CA does not know the order any more", &error))?;
                }
                Err(error) => return Err(fails("the CA did not take the request", &error)),
            }
        }
        let chain =
            patiently!(order.poll_certificate(&POLL).await).map_err(|error| fails("the CA did not issue", &error))?;
        Ok(Issued { chain, key: key.serialize_pem() })
    }

    /// Places the order; once more without `replaces` where the CA does not like that (RFC 9773 section 5).
    async fn place(
        &self,
        account: &Account,
        host: &Arc<str>,
        replaces: Option<&[u8]>,
        seen: &LastResponse,
    ) -> Result<Order, Failure> {
        let names = [Identifier::Dns(host.to_string())];
        let leaf = replaces.map(CertificateDer::from);
        let mut replaced = leaf.as_ref().and_then(|leaf| CertificateIdentifier::try_from(leaf).ok());
        loop {
            let mut new = NewOrder::new(&names);
            if let Some(profile) = &self.plan.profile {
                new = new.profile(profile);
            }
            if let Some(replaced) = &replaced {
                new = new.replaces(replaced.clone());
            }
            match patiently!(account.new_order(&new).await) {
                Ok(order) => return Ok(order),
                Err(error) if is_problem(&error, "accountDoesNotExist") => {
                    let text = describe(host, "the CA does not know our account", &error, seen);
                    return Err(Failure { text, cause: Cause::Refused, forgotten: true });
                }
                Err(_) if replaced.is_some() && !seen.is_limited() => replaced = None,
                Err(error) => {
                    let text = describe(host, "the CA did not take the order", &error, seen);
                    return Err(Failure::of(blame(&error, seen), text));
                }
            }
        }
    }

    /// Shows the proof, and waits until the CA has seen it.
    async fn prove(
        &self,
        order: &mut Order,
        host: &Arc<str>,
        challenge: Challenge,
        seen: &LastResponse,
    ) -> Result<(), Failure> {
        let fail = |what: &str, error: &Error| Failure::of(blame(error, seen), describe(host, what, error, seen));
        patiently!(fetch_authorizations(order).await).map_err(|error| fail("the CA has no authorization", &error))?;
        let mut token = None;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|error| fail("the CA has no authorization", &error))?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let kind = match challenge {
                Challenge::Http01 => ChallengeType::Http01,
                Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
            };
            let Some(mut offered) = authorization.challenge(kind) else {
                return Err(Failure::of(Cause::Challenge, format!("the CA does not offer {}", word(challenge))));
            };
            let proof = offered.key_authorization();
            match challenge {
                Challenge::Http01 => self.challenges.offer_http01(&offered.token, proof.as_str()),
                Challenge::TlsAlpn01 => self
                    .challenges
                    .offer_tls_alpn01(host, proof.digest().as_ref())
                    .map_err(|error| Failure::of(Cause::Challenge, error.to_string()))?,
            }
            token = Some(offered.token.clone());
            if let Err(error) = patiently!(offered.set_ready().await) {
                self.withdraw(challenge, host, token.as_deref());
                return Err(fail("the CA did not start to validate", &error));
            }
        }
        let outcome = patiently!(order.poll_ready(&POLL).await);
        let ours = self.withdraw(challenge, host, token.as_deref());
        let theirs = match outcome {
            Ok(OrderStatus::Ready | OrderStatus::Valid | OrderStatus::Processing) => return Ok(()),
            Ok(status) => format!("the order is {status:?}"),
            Err(Error::Timeout(_)) => "the CA did not come to an end".into(),
            Err(error) => error.to_string(),
        };
        let problem = refusal(order).await.unwrap_or(theirs);
        Err(Failure::of(Cause::Challenge, format!("{}: {problem} ({ours})", word(challenge))))
    }

    fn withdraw(&self, challenge: Challenge, host: &Arc<str>, token: Option<&str>) -> String {
        match challenge {
            Challenge::Http01 => self.challenges.withdraw_http01(token.unwrap_or_default()),
            Challenge::TlsAlpn01 => self.challenges.withdraw_tls_alpn01(host),
        }
    }

    fn failed(&self, text: String, cause: Cause, seen: &LastResponse) -> IssueError {
        IssueError { text, cause, retry_at: seen.retry_after().map(|wait| self.clock.now() + wait) }
    }

    fn kept_badly(&self, error: &CertError) -> IssueError {
        self.failed(chain(error), Cause::Storage, &LastResponse::default())
    }
}

/// Why an attempt came to nothing.
struct Failure {
    text: String,
    cause: Cause,
    /// The CA does not know our account any more.
    forgotten: bool,
}

impl Failure {
    const fn of(cause: Cause, text: String) -> Self {
        Self { text, cause, forgotten: false }
    }
}

/// Whose fault an error is that is not about a proof.
fn blame(error: &Error, seen: &LastResponse) -> Cause {
    match error {
        _ if seen.is_limited() || is_problem(error, "rateLimited") => Cause::RateLimit,
        Error::Api(problem) if problem.status.is_none_or(|status| status < 500) => Cause::Refused,
        _ => Cause::Ca,
    }
}

/// Afterwards the order holds the state of each.
async fn fetch_authorizations(order: &mut Order) -> Result<(), Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        authorization?;
    }
    Ok(())
}

const fn word(challenge: Challenge) -> &'static str {
    match challenge {
        Challenge::Http01 => "http-01",
        Challenge::TlsAlpn01 => "tls-alpn-01",
    }
}

/// Where the account at a directory is kept.
pub fn account_file(directory: &str) -> String {
    format!("accounts/{}.json", as_name(directory))
}

fn account_lock(directory: &str) -> String {
    format!("account-{}", as_name(directory))
}

/// A URL as a part of a file's name.
fn as_name(url: &str) -> String {
    url.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

/// What the CA says of a proof that it did not accept.
async fn refusal(order: &mut Order) -> Option<String> {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else { continue };
        if let Some(problem) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
            return Some(problem.to_string());
        }
    }
    None
}

fn describe(about: &str, what: &str, error: &Error, seen: &LastResponse) -> String {
    let status = seen.last_status().map_or_else(String::new, |status| format!(" (HTTP {status})"));
    match error {
        // The library expects something else where the CA refuses to answer at all, as with a limit on requests.
        Error::Json(_) if let Some(problem) = seen.problem() => format!("{about}: {what}: {problem}{status}"),
        // A page of a proxy in front of the CA, or an outage: its text is no use to anybody.
        Error::Json(_) => format!("{about}: {what}: the answer is no ACME{status}"),
        other => format!("{about}: {what}: {other}{status}"),
    }
}

fn is_problem(error: &Error, kind: &str) -> bool {
    matches!(error, Error::Api(problem) if problem.r#type.as_deref().is_some_and(|found| found.ends_with(kind)))
}

fn is_nonce(error: &Error) -> bool {
    is_problem(error, "badNonce")
}

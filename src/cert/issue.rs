//! One order at one CA, from the account to the chain (RFC 8555). The only file that knows the ACME library.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::Future;
use http::header;
use http_body_util::BodyExt as _;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, BodyWrapper, BytesResponse, CertificateIdentifier, ChallengeType,
    Error, ExternalAccountKey, HttpClient, Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use tracing::debug;

use super::{CertError, Store, challenge::Challenges, lock};
use crate::{
    body::{Body, Request},
    clock::Clock,
    config::plan::{Acme, Challenge},
    conn::Fetch,
};

/// A CA may take its time to validate; Let's Encrypt takes seconds, pebble asks to come back after five.
const POLL: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(300)).backoff(1.5).timeout(Duration::from_secs(120));

/// How often a whole step is tried again when the CA does not like our nonce; the library tries three times itself.
const NONCE_TRIES: usize = 8;

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

/// An answer of a CA longer than this is none.
const MAX_ANSWER: usize = 1 << 20;

/// Why there is no certificate.
#[derive(Debug)]
pub struct IssueError {
    /// In words, with what the CA said and what our listeners saw.
    pub text: String,
    /// The CA asked not to be asked before this.
    pub retry_at: Option<SystemTime>,
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
}

impl Issuer {
    /// Orders a certificate for a name at a directory, by each permitted challenge in turn until one works.
    ///
    /// # Errors
    /// None works.
    pub async fn order(&self, directory: &str, host: &Arc<str>, replaces: Option<&[u8]>) -> Result<Issued, IssueError> {
        let seen = Seen::default();
        let account = self.account(directory, &seen).await?;
        self.check_profile(&account)?;
        let mut failures = Vec::new();
        for challenge in &self.plan.challenges {
            match self.attempt(&account, host, *challenge, replaces, &seen).await {
                Ok(issued) => return Ok(issued),
                Err(Failure::Account) => {
                    // The CA has forgotten us: the next try makes a new account.
                    self.forget(directory).map_err(|error| self.failed(error.to_string(), &seen))?;
                    failures.push("the CA does not know the account any more; a new one will be made".to_owned());
                    break;
                }
                Err(Failure::Other(text)) => failures.push(text),
            }
            if seen.is_limited() {
                break;
            }
        }
        Err(self.failed(failures.join("; "), &seen))
    }

    /// The window in which the CA wants a certificate renewed (RFC 9773); nothing where it does not say.
    pub async fn suggestion(&self, directory: &str, leaf: &[u8]) -> Option<(SystemTime, SystemTime)> {
        let account = self.account(directory, &Seen::default()).await.ok()?;
        let leaf = CertificateDer::from(leaf);
        let id = CertificateIdentifier::try_from(&leaf).ok()?;
        let (info, _again) =
            account.renewal_info(&id).await.inspect_err(|error| debug!(%error, "no renewal info")).ok()?;
        Some((info.suggested_window.start.into(), info.suggested_window.end.into()))
    }

    async fn account(&self, directory: &str, seen: &Seen) -> Result<Account, IssueError> {
        let file = account_file(directory);
        let builder = || Account::builder_with_http(Box::new(Client { fetch: self.fetch.clone(), seen: seen.clone() }));
        let stored = self.store.load(&file).map_err(|error| self.failed(error.to_string(), seen))?;
        if let Some(credentials) = stored.and_then(|text| serde_json::from_str::<AccountCredentials>(&text).ok()) {
            let restored = builder().from_credentials(credentials).await;
            return restored
                .map_err(|error| self.failed(describe(directory, "the CA does not answer", &error, seen), seen));
        }
        let contact = self.plan.email.as_ref().map(|email| format!("mailto:{email}"));
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let eab = self.plan.eab.as_ref().map(|eab| ExternalAccountKey::new(eab.kid.clone(), &eab.hmac_key));
        let made = patiently!(builder().create(&new, directory.to_owned(), eab.as_ref()).await);
        let (account, credentials) =
            made.map_err(|error| self.failed(describe(directory, "no account", &error, seen), seen))?;
        let text = serde_json::to_string(&credentials).map_err(|error| self.failed(error.to_string(), seen))?;
        self.store.save(&file, &text).map_err(|error| self.failed(error.to_string(), seen))?;
        Ok(account)
    }

    fn forget(&self, directory: &str) -> Result<(), CertError> {
        self.store.set_aside(&account_file(directory))?;
        Ok(())
    }

    fn check_profile(&self, account: &Account) -> Result<(), IssueError> {
        let Some(wanted) = &self.plan.profile else { return Ok(()) };
        let offered: Vec<_> = account.profiles().map(|profile| profile.name.to_owned()).collect();
        if offered.contains(wanted) {
            return Ok(());
        }
        let text = format!("the CA has no profile `{wanted}`; it has: {}", offered.join(", "));
        Err(self.failed(text, &Seen::default()))
    }

    async fn attempt(
        &self,
        account: &Account,
        host: &Arc<str>,
        challenge: Challenge,
        replaces: Option<&[u8]>,
        seen: &Seen,
    ) -> Result<Issued, Failure> {
        let mut order = self.place(account, host, replaces, seen).await?;
        if order.state().status == OrderStatus::Pending {
            self.prove(&mut order, host, challenge, seen).await?;
        }
        let fail = |what: &str, error: &Error| Failure::Other(describe(host, what, error, seen));
        let key = KeyPair::generate().map_err(|error| Failure::Other(error.to_string()))?;
        let csr = CertificateParams::new(vec![host.to_string()]).and_then(|mut params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.serialize_request(&key)
        });
        let csr = csr.map_err(|error| Failure::Other(error.to_string()))?;
        if order.state().status == OrderStatus::Ready {
            patiently!(order.finalize_csr(csr.der()).await)
                .map_err(|error| fail("the CA did not take the request", &error))?;
        }
        let chain =
            patiently!(order.poll_certificate(&POLL).await).map_err(|error| fail("the CA did not issue", &error))?;
        Ok(Issued { chain, key: key.serialize_pem() })
    }

    /// Places the order; once more without `replaces` where the CA does not like that (RFC 9773 section 5).
    async fn place(
        &self,
        account: &Account,
        host: &Arc<str>,
        replaces: Option<&[u8]>,
        seen: &Seen,
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
                Err(error) if is_problem(&error, "accountDoesNotExist") => return Err(Failure::Account),
                Err(_) if replaced.is_some() && !seen.is_limited() => replaced = None,
                Err(error) => {
                    return Err(Failure::Other(describe(host, "the CA did not take the order", &error, seen)));
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
        seen: &Seen,
    ) -> Result<(), Failure> {
        let fail = |what: &str, error: &Error| Failure::Other(describe(host, what, error, seen));
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
                return Err(Failure::Other(format!("the CA does not offer {}", word(challenge))));
            };
            let proof = offered.key_authorization();
            match challenge {
                Challenge::Http01 => self.challenges.offer_http01(&offered.token, proof.as_str()),
                Challenge::TlsAlpn01 => self
                    .challenges
                    .offer_tls_alpn01(host, proof.digest().as_ref())
                    .map_err(|error| Failure::Other(error.to_string()))?,
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
            Err(error) => error.to_string(),
        };
        let problem = refusal(order).await.unwrap_or(theirs);
        Err(Failure::Other(format!("{}: {problem} ({ours})", word(challenge))))
    }

    fn withdraw(&self, challenge: Challenge, host: &Arc<str>, token: Option<&str>) -> String {
        match challenge {
            Challenge::Http01 => self.challenges.withdraw_http01(token.unwrap_or_default()),
            Challenge::TlsAlpn01 => self.challenges.withdraw_tls_alpn01(host),
        }
    }

    fn failed(&self, text: String, seen: &Seen) -> IssueError {
        IssueError { text, retry_at: seen.retry_after().map(|wait| self.clock.now() + wait) }
    }
}

enum Failure {
    Account,
    Other(String),
}

const fn word(challenge: Challenge) -> &'static str {
    match challenge {
        Challenge::Http01 => "http-01",
        Challenge::TlsAlpn01 => "tls-alpn-01",
    }
}

fn account_file(directory: &str) -> String {
    let name: String = directory.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("accounts/{name}.json")
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

fn describe(about: &str, what: &str, error: &Error, seen: &Seen) -> String {
    let status = seen.last_status().map_or_else(String::new, |status| format!(" (HTTP {status})"));
    match error {
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

/// What the last answers of the CA said beside their bodies, which the library does not pass on.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Last>>);

#[derive(Default)]
struct Last {
    status: Option<u16>,
    retry_after: Option<Duration>,
}

impl Seen {
    fn last_status(&self) -> Option<u16> {
        lock(&self.0).status
    }

    /// Only a 429 or 503 means it for the whole of us; others send it while an order is pending.
    fn retry_after(&self) -> Option<Duration> {
        let last = lock(&self.0);
        last.retry_after.filter(|_| matches!(last.status, Some(429 | 503)))
    }

    fn is_limited(&self) -> bool {
        self.last_status() == Some(429)
    }
}

struct Client {
    fetch: Fetch,
    seen: Seen,
}

impl HttpClient for Client {
    fn request(
        &self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (fetch, seen) = (self.fetch.clone(), self.seen.clone());
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map_err(|error| Error::Other(error.into()))?.to_bytes();
            let request = Request::from_parts(parts, Body::full(body));
            let response = fetch(request).await.map_err(|error| Error::Other(Box::new(Unreachable(error))))?;
            let (parts, body) = response.into_parts();
            *lock(&seen.0) = Last { status: Some(parts.status.as_u16()), retry_after: retry_after(&parts.headers) };
            let limited = http_body_util::Limited::new(body, MAX_ANSWER);
            let bytes = limited.collect().await.map_err(Error::Other)?.to_bytes();
            Ok(BytesResponse::from(http::Response::from_parts(parts, http_body_util::Full::new(bytes))))
        })
    }
}

/// Seconds, or a date.
fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    let date = || httpdate::parse_http_date(value).ok()?.duration_since(Clock::system().now()).ok();
    value.parse().ok().map(Duration::from_secs).or_else(date)
}

/// An error of the way to the CA, with its cause in the same line.
#[derive(Debug, thiserror::Error)]
#[error("{}", super::chain(.0))]
struct Unreachable(crate::error::ProxyError);

//! One order at one CA, from the account to the chain (RFC 8555). The only folder that knows the ACME library.

/// Takes a step again while the CA refuses our nonces. A macro, because the compiler cannot yet see that the future of an
/// `AsyncFn` may change threads.
macro_rules! patiently {
    ($step:expr) => {{
        let mut tries = 0;
        loop {
            match $step {
                Err(error) if tries < $crate::cert::issue::NONCE_TRIES && is_nonce(&error) => tries += 1,
                outcome => break outcome,
            }
        }
    }};
}

mod account;
mod client;

pub use self::account::{account_file, stored_account_url, stored_issuers, stored_thumbprint};

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error, Identifier, KeyAuthorization, NewOrder,
    Order, OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tracing::{debug, info};

use self::{
    account::{Ca, DroppedLines, as_name},
    client::{LastResponse, Unreachable},
};
use super::{
    Store,
    authority::{Authority, ClockOffset},
    challenge::{Challenges, Proof, Published},
    dns,
    scheduler::Need,
};
use crate::{
    clock::Clock,
    config::plan::{Acme, Challenge, Directory},
    conn::Fetch,
    error::{CertificateCause, FailureCause, chain},
};

/// A CA may take its time to validate; Let's Encrypt takes seconds, pebble asks to come back after five.
const POLL: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(300)).backoff(1.5).timeout(Duration::from_secs(120));

/// How often a whole step is tried again when the CA does not like our nonce; the library tries three times itself. With
/// nine of ten nonces refused, a step still fails less than once in ten thousand times.
pub(in crate::cert) const NONCE_TRIES: usize = 30;

/// Why there is no certificate.
#[derive(Debug, Clone)]
pub struct IssueError {
    /// In words, with what the CA said and what our listeners saw.
    pub text: String,
    /// The cause, which decides about the fix and about other CAs.
    pub cause: CertificateCause,
    /// The CA asked not to be asked before this.
    pub retry_at: Option<SystemTime>,
}

impl IssueError {
    /// An error that says nothing of when to come back.
    pub const fn new(cause: CertificateCause, text: String) -> Self {
        Self { text, cause, retry_at: None }
    }

    /// The errors of two CAs: the words of both, the cause of the later. The wait that one of them asks for is its own;
    /// the name waits only where both do.
    pub fn and(self, later: Self) -> Self {
        Self {
            text: format!("{}; {}", self.text, later.text),
            cause: later.cause,
            retry_at: self.retry_at.zip(later.retry_at).map(|(one, other)| one.min(other)),
        }
    }
}

/// How long the staging side of a CA may take. It only saves failures at the CA itself, and holds nothing up.
const STAGING_TIME: Duration = Duration::from_secs(60);

/// How long a staging side that took longer is not asked: the other names must not wait for it in their turn.
const STAGING_PAUSE: Duration = Duration::from_secs(600);

/// How long the CA is left alone that says 429 or 503 and not for how long.
const UNNAMED_PAUSE: Duration = Duration::from_secs(60);

/// The profile of certificates for a few days, at Let's Encrypt.
const SHORT_LIVED: &str = "shortlived";

/// An order on its way. It is kept, so that a restart goes on with it instead of placing another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    challenges: Arc<Challenges>,
    clock: Clock,
    dns_api: dns::Api,
    /// The CAs by their directories, staging sides included.
    cas: HashMap<String, Ca>,
}

/// Stores an order that was placed.
pub type Keep<'a> = dyn FnMut(Pending) -> BoxFuture<'static, ()> + Send + 'a;

/// What an order is for.
pub struct Wanted<'a> {
    /// The name.
    pub host: &'a Arc<str>,
    /// How urgent it is.
    pub need: Need,
    /// The certificate that it replaces, DER.
    pub replaces: Option<&'a [u8]>,
    /// The order of an earlier run.
    pub pending: Option<Pending>,
    /// Told of every step, in words.
    pub report: &'a (dyn Fn(&str) + Send + Sync),
}

impl Issuer {
    /// An issuer for a configuration. What earlier issuers know of a CA, such as a pause, is taken over.
    pub fn new(
        plan: Acme,
        store: &Arc<Store>,
        challenges: &Arc<Challenges>,
        clock: &Clock,
        client: &dyn Fn(&Directory) -> Fetch,
        before: Option<&Self>,
    ) -> Self {
        let staging = |directory: &Directory| {
            let url = directory.staging.clone()?;
            Some(Directory { url, staging: None, eab: None, ..directory.clone() })
        };
        let all = plan.directories.iter().flat_map(|directory| [Some(directory.clone()), staging(directory)]);
        let mut cas = HashMap::new();
        for directory in all.flatten() {
            let known = before.and_then(|before| before.cas.get(&directory.url)).map(|ca| ca.authority.clone());
            let new = || {
                let name = as_name(&directory.url);
                Arc::new(Authority::new(&directory.url, &name, store.clone(), clock.clone()))
            };
            let authority = known.unwrap_or_else(new);
            let fetch = client(&directory);
            let url = directory.url.clone();
            let ca = || Ca::new(directory, authority, fetch, store.clone(), challenges.clone(), clock.clone());
            cas.entry(url).or_insert_with(ca);
        }
        // A directory without settings is reached with the system's roots, as an API is.
        let dns_api = dns::Api::new(client(&Directory::default()), before.map(|before| &before.dns_api));
        Self { plan, challenges: challenges.clone(), clock: clock.clone(), dns_api, cas }
    }

    /// The first difference between our clock and that of a CA which is worth telling.
    pub fn clock_offset(&self) -> Option<ClockOffset> {
        let offsets =
            self.plan.directories.iter().filter_map(|directory| self.cas.get(&directory.url)?.authority.offset());
        offsets.into_iter().find(|offset| *offset != ClockOffset::Small)
    }

    /// Orders a certificate at a directory, by each permitted challenge in turn until one works. A pending order is taken
    /// up again first; one that is placed is given to `keep` before anything is done about it.
    ///
    /// # Errors
    /// None works.
    pub async fn order(&self, directory: &str, wanted: Wanted<'_>, keep: &mut Keep<'_>) -> Result<Issued, IssueError> {
        let ca = self.ca(directory)?;
        (wanted.report)(&format!("waits for its turn at {directory}"));
        let _turn = ca.authority.turn(wanted.need).await.map_err(|paused| ca.paused(&paused))?;
        (wanted.report)(&format!("orders at {directory}"));
        let seen = LastResponse::default();
        let outcome = seen.scope(self.order_now(ca, &wanted, keep, &seen)).await;
        if let Err(error) = &outcome
            && seen.is_limited()
            && !is_about_one_name(&error.text, wanted.host)
        {
            let until = error.retry_at.unwrap_or_else(|| self.clock.now() + UNNAMED_PAUSE);
            ca.authority.pause(until, &error.text).await;
        }
        outcome
    }

    /// Orders at the staging side of a CA, to see whether the name can be proven. Only a failure that production would
    /// see as well is one: staging that is down, slow or limited says nothing.
    ///
    /// # Errors
    /// The name cannot be proven, or the CA does not want it.
    pub async fn rehearse(&self, staging: &str, wanted: Wanted<'_>) -> Result<(), IssueError> {
        let host = wanted.host.clone();
        let mut forget = |_| async {}.boxed();
        // The DNS of a provider takes as long for either side.
        let limit = STAGING_TIME + self.plan.dns.as_ref().map_or(Duration::ZERO, |dns| dns.propagation);
        match tokio::time::timeout(limit, self.order(staging, wanted, &mut forget)).await {
            Ok(Err(error)) if error.cause.is_of_name() => Err(IssueError { retry_at: None, ..error }),
            Ok(Err(error)) => {
                info!(
                    site = &*host,
                    directory = staging,
                    reason = error.text,
                    "staging says nothing; production is asked"
                );
                Ok(())
            }
            Err(_) => {
                info!(site = &*host, directory = staging, "staging is too slow; production is asked");
                let authority = &self.ca(staging)?.authority;
                authority.pause(self.clock.now() + STAGING_PAUSE, "it was too slow").await;
                Ok(())
            }
            Ok(Ok(_)) => Ok(()),
        }
    }

    fn ca(&self, directory: &str) -> Result<&Ca, IssueError> {
        let none = || IssueError::new(CertificateCause::NotAcme, format!("{directory} is not configured"));
        self.cas.get(directory).ok_or_else(none)
    }

    async fn order_now(
        &self,
        ca: &Ca,
        wanted: &Wanted<'_>,
        keep: &mut Keep<'_>,
        seen: &LastResponse,
    ) -> Result<Issued, IssueError> {
        let email = self.plan.email.as_deref();
        let mut opened = ca.open(email, seen).await?;
        check_profile(&ca.directory, &opened.account)?;
        let mut failures: Vec<Failure> = Vec::new();
        if let Some(pending) = &wanted.pending {
            match self.resume(ca, &opened.account, wanted, pending, seen).await {
                Some(Ok(issued)) => return Ok(issued),
                Some(Err(failure)) => failures.push(failure),
                None => {}
            }
        }
        for challenge in self.plan.challenges.iter().filter(|challenge| can_prove(**challenge, wanted.host)) {
            // What the CA cannot do by one challenge, it cannot do by the next.
            if failures.last().is_some_and(|failure| failure.cause.is_of_ca()) {
                break;
            }
            if let Err(failure) = self.check_persisted(ca, &opened.account, wanted.host, *challenge).await {
                failures.push(failure);
                continue;
            }
            let mut outcome = self.attempt(ca, &opened.account, wanted, *challenge, keep, seen).await;
            if let Err(Failure { dropped: Some(why), .. }) = outcome {
                ca.forget(&opened, why).await?;
                opened = ca.open(email, seen).await?;
                outcome = self.attempt(ca, &opened.account, wanted, *challenge, keep, seen).await;
            }
            match outcome {
                Ok(issued) => return Ok(issued),
                Err(failure) => failures.push(failure),
            }
        }
        let cause = failures.last().map_or(CertificateCause::NoChallenge, |failure| failure.cause);
        let mut text: Vec<_> = failures.into_iter().map(|failure| failure.text).collect();
        if text.is_empty() {
            text.push(format!("no permitted challenge can prove {}", wanted.host));
        }
        Err(self.failed(text.join("; "), cause, seen))
    }

    /// The window in which the CA wants a certificate renewed (RFC 9773); nothing where it does not say.
    /// Beside it, when to ask again.
    pub async fn suggestion(&self, directory: &str, leaf: &[u8]) -> Option<((SystemTime, SystemTime), Duration)> {
        let ca = self.cas.get(directory)?;
        ca.authority.paused().ok()?;
        let seen = LastResponse::default();
        let opened = seen.scope(ca.open(self.plan.email.as_deref(), &seen)).await.ok()?;
        let leaf = CertificateDer::from(leaf);
        let id = CertificateIdentifier::try_from(&leaf).ok()?;
        let asked = seen.scope(opened.account.renewal_info(&id)).await;
        if seen.is_limited() {
            let wait = seen.retry_after().unwrap_or(UNNAMED_PAUSE);
            ca.authority.pause(self.clock.now() + wait, "the CA limits requests for renewal information").await;
        }
        let (info, again) = asked.inspect_err(|error| debug!(%error, "no renewal information")).ok()?;
        Some(((info.suggested_window.start.into(), info.suggested_window.end.into()), again))
    }

    /// Goes on with an order of an earlier run; `None` where the CA has nothing of it that is of use.
    async fn resume(
        &self,
        ca: &Ca,
        account: &Account,
        wanted: &Wanted<'_>,
        pending: &Pending,
        seen: &LastResponse,
    ) -> Option<Result<Issued, Failure>> {
        let host = wanted.host;
        let key = KeyPair::from_pem(&pending.key).ok()?;
        let mut order = patiently!(account.order(pending.url.clone()).await).ok()?;
        if order.state().status == OrderStatus::Invalid {
            return None;
        }
        info!(site = &**host, order = pending.url, "an order of an earlier run is taken up again");
        let challenge = self.plan.challenges.iter().find(|challenge| can_prove(**challenge, host))?;
        let at = (ca, account);
        Some(self.complete(at, &mut order, &key, wanted, *challenge, seen).await)
    }

    async fn attempt(
        &self,
        ca: &Ca,
        account: &Account,
        wanted: &Wanted<'_>,
        challenge: Challenge,
        keep: &mut Keep<'_>,
        seen: &LastResponse,
    ) -> Result<Issued, Failure> {
        let key = KeyPair::generate().map_err(|error| Failure::of(CertificateCause::Unusable, error.to_string()))?;
        let mut order = place(&ca.directory, account, wanted, seen).await?;
        let url = order.url().to_owned();
        keep(Pending { directory: ca.directory.url.clone(), url, key: key.serialize_pem() }).await;
        self.complete((ca, account), &mut order, &key, wanted, challenge, seen).await
    }

    /// From wherever an order stands to its certificate.
    async fn complete(
        &self,
        at: (&Ca, &Account),
        order: &mut Order,
        key: &KeyPair,
        wanted: &Wanted<'_>,
        challenge: Challenge,
        seen: &LastResponse,
    ) -> Result<Issued, Failure> {
        let host = wanted.host;
        let fails = |what: &str, error: &Error| Failure::of(blame(error, seen), describe(host, what, error, seen));
        if order.state().status == OrderStatus::Pending {
            (wanted.report)(&format!("waits for the CA to validate by {}", word(challenge)));
            self.prove(at, order, host, challenge, seen).await?;
        }
        let csr = CertificateParams::new(vec![host.to_string()]).and_then(|mut params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.serialize_request(key)
        });
        let csr = csr.map_err(|error| Failure::of(CertificateCause::RejectedName, error.to_string()))?;
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
        (wanted.report)("waits for the CA to issue");
        let chain =
            patiently!(order.poll_certificate(&POLL).await).map_err(|error| fails("the CA did not issue", &error))?;
        Ok(Issued { chain, key: key.serialize_pem() })
    }

    /// Shows the proof, and waits until the CA has seen it.
    async fn prove(
        &self,
        at: (&Ca, &Account),
        order: &mut Order,
        host: &Arc<str>,
        challenge: Challenge,
        seen: &LastResponse,
    ) -> Result<(), Failure> {
        let fail = |what: &str, error: &Error| Failure::of(blame(error, seen), describe(host, what, error, seen));
        patiently!(fetch_authorizations(order).await).map_err(|error| fail("the CA has no authorization", &error))?;
        let mut shown = None;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|error| fail("the CA has no authorization", &error))?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let Some(mut offered) = authorization.challenge(kind(challenge)) else {
                let text = format!("the CA does not offer {}", word(challenge));
                return Err(Failure::of(CertificateCause::NoChallenge, text));
            };
            self.check_persisted(at.0, at.1, host, challenge).await?;
            let authorization = offered.key_authorization();
            shown = Some(self.show(host, challenge, &offered.token, &authorization).await?);
            if let Err(error) = patiently!(offered.set_ready().await) {
                if let Some(shown) = shown {
                    self.withdraw(shown).await;
                }
                return Err(fail("the CA did not start to validate", &error));
            }
        }
        let outcome = patiently!(order.poll_ready(&POLL).await);
        let ours = match shown {
            Some(shown) => self.withdraw(shown).await,
            None => "nothing had to be shown".to_owned(),
        };
        let (theirs, cause) = match outcome {
            Ok(OrderStatus::Ready | OrderStatus::Valid | OrderStatus::Processing) => return Ok(()),
            Ok(status) => (format!("the order is {status:?}"), CertificateCause::NotValidated),
            Err(Error::Timeout(_)) => ("the CA did not come to an end".into(), CertificateCause::CaTooSlow),
            Err(error) => {
                let cause = match (blame(&error, seen), &error) {
                    (cause, Error::Api(problem)) if cause.is_of_name() => of_validation(challenge, problem),
                    (cause, _) => cause,
                };
                (describe(host, "validation", &error, seen), cause)
            }
        };
        if !cause.is_of_name() {
            return Err(Failure::of(cause, format!("{}: {theirs}", word(challenge))));
        }
        let (problem, cause) = refusal(order, challenge).await.unwrap_or((theirs, cause));
        Err(Failure::of(cause, format!("{}: {problem} ({ours})", word(challenge))))
    }

    /// Shows a proof to the CA.
    async fn show(
        &self,
        host: &Arc<str>,
        challenge: Challenge,
        token: &str,
        authorization: &KeyAuthorization,
    ) -> Result<PresentedProof, Failure> {
        let failed = |cause, text: String| Failure::of(cause, format!("{}: {text}", word(challenge)));
        let proof = match challenge {
            Challenge::Http01 => Proof::http01(token, authorization.as_str()),
            Challenge::TlsAlpn01 => Proof::tls_alpn01(host, authorization.digest().as_ref()),
            Challenge::Dns01 => {
                let Some(dns) = &self.plan.dns else {
                    return Err(failed(CertificateCause::NoChallenge, "acme.dns is not set".into()));
                };
                let record = dns::present(dns, &self.dns_api, host, &authorization.dns_value(), self.clock.now()).await;
                return record.map(PresentedProof::Record).map_err(|error| failed(error.cause(), chain(&error)));
            }
            Challenge::DnsPersist01 => return Ok(PresentedProof::Lasting),
        };
        let published = self.challenges.publish(proof).await;
        published.map(PresentedProof::Published).map_err(|error| failed(error.cause(), chain(&error)))
    }

    /// Takes a proof back; what happened meanwhile, in words.
    async fn withdraw(&self, shown: PresentedProof) -> String {
        match (shown, &self.plan.dns) {
            (PresentedProof::Published(published), _) => published.withdraw().await,
            (PresentedProof::Record(record), Some(dns)) => {
                dns::remove(dns, &self.dns_api, &record, self.clock.now()).await;
                "the record was in DNS".into()
            }
            (PresentedProof::Record(_) | PresentedProof::Lasting, _) => "the record is in DNS".into(),
        }
    }

    /// Makes sure that the lasting record is there and names this account, before the CA looks for it.
    async fn check_persisted(
        &self,
        ca: &Ca,
        account: &Account,
        host: &str,
        challenge: Challenge,
    ) -> Result<(), Failure> {
        let issuers = ca.authority.issuers();
        // Which name the CA goes by is known after the first authorization.
        if challenge != Challenge::DnsPersist01 || issuers.is_empty() {
            return Ok(());
        }
        match dns::Persisted::look_up(self.plan.dns.as_ref(), host, &issuers, account.id()).await {
            dns::Persisted::Right | dns::Persisted::Unknown(_) => Ok(()),
            dns::Persisted::Wrong(words) => {
                let text = format!("dns-persist-01: {words}; `vestibule dns-record {host}` prints the right one");
                Err(Failure::of(CertificateCause::WrongPersistentRecord, text))
            }
        }
    }

    fn failed(&self, text: String, cause: CertificateCause, seen: &LastResponse) -> IssueError {
        IssueError { text, cause, retry_at: seen.retry_after().map(|wait| self.clock.now() + wait) }
    }
}

/// A proof that the CA can see.
enum PresentedProof {
    /// At our own listeners.
    Published(Published),
    /// In DNS, for this order.
    Record(dns::Record),
    /// In DNS, for all orders.
    Lasting,
}

/// Why an attempt came to nothing.
struct Failure {
    text: String,
    cause: CertificateCause,
    /// The CA does not accept our account any more.
    dropped: Option<DroppedLines>,
}

impl Failure {
    const fn of(cause: CertificateCause, text: String) -> Self {
        Self { text, cause, dropped: None }
    }
}

/// The cause of an error that is not about a proof.
fn blame(error: &Error, seen: &LastResponse) -> CertificateCause {
    match error {
        _ if seen.is_limited() || is_problem(error, "rateLimited") => CertificateCause::RateLimited,
        // A problem need not repeat its status (RFC 7807 section 3.1).
        Error::Api(problem) if problem.status.or_else(|| seen.last_status()).is_none_or(|status| status < 500) => {
            CertificateCause::of_rejection(error_type(problem))
        }
        Error::Other(error) if let Some(Unreachable(error)) = error.downcast_ref() => {
            CertificateCause::Unreachable(FailureCause::of(error))
        }
        Error::Json(_) | Error::Str(_) | Error::InvalidUri(_)
            if seen.last_status().is_none_or(|status| status < 500) =>
        {
            CertificateCause::NotAcme
        }
        Error::Timeout(_) => CertificateCause::CaTooSlow,
        _ => CertificateCause::CaError,
    }
}

/// The cause of a validation that a problem of the CA rejects.
fn of_validation(challenge: Challenge, problem: &Problem) -> CertificateCause {
    // `compound` has the causes in its parts (RFC 8555 section 6.7.1).
    let part = problem.subproblems.first().and_then(|part| part.r#type.as_deref());
    let kind = part.unwrap_or_else(|| error_type(problem));
    match challenge {
        Challenge::Http01 | Challenge::TlsAlpn01 => CertificateCause::of_validation(kind),
        Challenge::Dns01 => CertificateCause::of_dns_validation(kind),
        Challenge::DnsPersist01 => CertificateCause::of_persistent_validation(kind),
    }
}

fn error_type(problem: &Problem) -> &str {
    problem.r#type.as_deref().unwrap_or_default()
}

/// Afterwards the order holds the state of each.
async fn fetch_authorizations(order: &mut Order) -> Result<(), Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        authorization?;
    }
    Ok(())
}

fn kind(challenge: Challenge) -> ChallengeType {
    match challenge {
        Challenge::Http01 => ChallengeType::Http01,
        Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
        Challenge::Dns01 => ChallengeType::Dns01,
        Challenge::DnsPersist01 => ChallengeType::Unknown(word(challenge).to_owned()),
    }
}

const fn word(challenge: Challenge) -> &'static str {
    match challenge {
        Challenge::Http01 => "http-01",
        Challenge::TlsAlpn01 => "tls-alpn-01",
        Challenge::Dns01 => "dns-01",
        Challenge::DnsPersist01 => "dns-persist-01",
    }
}

/// Places the order; once more without `replaces` where the CA refuses that (RFC 9773 section 5).
async fn place(
    directory: &Directory,
    account: &Account,
    wanted: &Wanted<'_>,
    seen: &LastResponse,
) -> Result<Order, Failure> {
    let host = wanted.host;
    let names = [identifier(host)];
    // Public CAs sign addresses in this profile only: an address changes hands faster than a name.
    let is_short = host.parse::<IpAddr>().is_ok() && account.profiles().any(|profile| profile.name == SHORT_LIVED);
    let profile = if is_short { Some(SHORT_LIVED) } else { directory.profile.as_deref() };
    let leaf = wanted.replaces.map(CertificateDer::from);
    let mut replaced = leaf.as_ref().and_then(|leaf| CertificateIdentifier::try_from(leaf).ok());
    loop {
        let mut new = NewOrder::new(&names);
        if let Some(profile) = profile {
            new = new.profile(profile);
        }
        if let Some(replaced) = &replaced {
            new = new.replaces(replaced.clone());
        }
        match patiently!(account.new_order(&new).await) {
            Ok(order) => return Ok(order),
            Err(error) if DroppedLines::of(&error).is_some() => {
                let text = describe(host, "the CA does not accept our account", &error, seen);
                return Err(Failure { text, cause: CertificateCause::Rejected, dropped: DroppedLines::of(&error) });
            }
            Err(_) if replaced.is_some() && !seen.is_limited() => replaced = None,
            Err(error) => {
                let text = describe(host, "the CA did not take the order", &error, seen);
                return Err(Failure::of(blame(&error, seen), text));
            }
        }
    }
}

fn identifier(host: &str) -> Identifier {
    host.parse::<IpAddr>().map_or_else(|_| Identifier::Dns(host.to_owned()), Identifier::Ip)
}

/// Whether a challenge can prove a name at all (RFC 8555 section 8, RFC 8738 section 4).
fn can_prove(challenge: Challenge, host: &str) -> bool {
    match challenge {
        Challenge::Http01 | Challenge::TlsAlpn01 => !host.starts_with("*."),
        Challenge::Dns01 | Challenge::DnsPersist01 => host.parse::<IpAddr>().is_err(),
    }
}

/// Whether a limit is on a name and not on the account: Let's Encrypt names it, or speaks of its exact set of names.
fn is_about_one_name(text: &str, host: &str) -> bool {
    let text = text.strip_prefix(host).unwrap_or(text);
    text.contains(host) || text.contains("exact set of")
}

fn check_profile(directory: &Directory, account: &Account) -> Result<(), IssueError> {
    let Some(wanted) = &directory.profile else { return Ok(()) };
    let offered: Vec<_> = account.profiles().map(|profile| profile.name.to_owned()).collect();
    if offered.contains(wanted) {
        return Ok(());
    }
    let text = format!("{} has no profile `{wanted}`; it has: {}", directory.url, offered.join(", "));
    Err(IssueError::new(CertificateCause::NoProfile, text))
}

/// What the CA says of a proof that it did not accept, and whose fault that is.
async fn refusal(order: &mut Order, challenge: Challenge) -> Option<(String, CertificateCause)> {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else { continue };
        if let Some(problem) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
            return Some((problem.to_string(), of_validation(challenge, problem)));
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

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::message::{Body, Request, Response, Value};

    const PRODUCTION: &str = "https://ca.example/dir";
    const STAGING: &str = "https://staging.ca.example/dir";

    fn issuer(folder: &std::path::Path, staging: Fetch) -> Issuer {
        let store = Arc::new(Store::new(folder.to_owned()));
        let challenges = Arc::new(Challenges::new(Arc::default(), store.clone()));
        let directory = Directory { url: PRODUCTION.into(), staging: Some(STAGING.into()), ..Directory::default() };
        let plan = Acme { email: None, directories: vec![directory], challenges: vec![Challenge::Http01], dns: None };
        let client = move |directory: &Directory| {
            assert!(directory.url != STAGING || directory.eab.is_none());
            staging.clone()
        };
        Issuer::new(plan, &store, &challenges, &Clock::system(), &client, None)
    }

    fn always(status: StatusCode, retry_after: Option<&'static str>) -> Fetch {
        Arc::new(move |_: Request| {
            let mut response = Response { status, ..Response::new(Body::full("<html>no ACME</html>")) };
            if let Some(seconds) = retry_after {
                response.fields.append(http::header::RETRY_AFTER, Value::from_static(seconds));
            }
            Box::pin(async move { Ok(response) })
        })
    }

    #[tokio::test(start_paused = true)]
    async fn staging_that_is_down_limited_or_slow_holds_nothing_up_and_waits_alone() {
        let silent: Fetch = Arc::new(|_| Box::pin(std::future::pending()));
        for (staging, seconds) in [
            (always(StatusCode::INTERNAL_SERVER_ERROR, None), 20..=30),
            (always(StatusCode::SERVICE_UNAVAILABLE, None), 20..=60),
            (always(StatusCode::TOO_MANY_REQUESTS, Some("86400")), 86_300..=86_400),
            (silent, 500..=600),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let issuer = issuer(folder.path(), staging);
            let host: Arc<str> = "a.example".into();
            let report = |_: &str| {};
            let wanted =
                || Wanted { host: &host, need: Need::new(None), replaces: None, pending: None, report: &report };
            issuer.rehearse(STAGING, wanted()).await.expect("staging says nothing of the name");
            let paused = issuer.cas[STAGING].authority.paused().expect_err("it is left alone");
            let wait = paused.until.duration_since(issuer.clock.now()).unwrap().as_secs();
            assert!(seconds.contains(&wait), "{wait}");
            assert!(issuer.cas[PRODUCTION].authority.paused().is_ok(), "production may be asked at once");
            // A staging side that is left alone is no reason to wait either.
            let began = tokio::time::Instant::now();
            issuer.rehearse(STAGING, wanted()).await.expect("it still says nothing");
            assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        }
    }
}

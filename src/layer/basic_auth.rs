//! Users with passwords (RFC 7617): verified beside the request path, bounded, and remembered once they are right.
//!
//! A hash is slow to verify on purpose, so that guessing costs time, and that time must be nobody else's: verifications
//! run on the blocking pool, on half of the CPUs at most. An unknown name is verified like a known one, so that time does
//! not tell which names there are.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac, rand};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared, WeakShared},
};
use http::{HeaderValue, header};
use tokio::{sync::Semaphore, task::spawn_blocking, time::Instant};

use crate::{
    config::plan::{self, Argon2id, PasswordHash},
    conn::network,
    error::Kind,
    message::Fields,
};

/// Wrong passwords that an address may send at once: a person with several passwords to try.
const BURST: u32 = 10;

/// How often another one is allowed: 14,400 a day, of which none is right by luck.
const EVERY: Duration = Duration::from_secs(6);

/// The same in seconds, for the `Retry-After` of a 429.
pub const EVERY_SECONDS: &str = "6";

/// Wrong passwords of all addresses together, so that many addresses are not many times the guesses.
const BURST_OF_ALL: u32 = 100;
const EVERY_OF_ALL: Duration = Duration::from_secs(1);

/// Addresses and right passwords that are remembered. Of more addresses the oldest is forgotten; of more passwords all, which
/// costs each of them one verification.
const REMEMBERED: usize = 4096;

/// A site's or route's users.
pub struct BasicAuth {
    plan: Arc<plan::BasicAuth>,
    challenge: HeaderValue,
    passwords: Arc<Passwords>,
}

/// Whether a request may come.
pub enum Admission {
    /// It may.
    Granted,
    /// It may not.
    Refused(Kind),
    /// The password has to be verified.
    Pending(BoxFuture<'static, Result<(), Kind>>),
}

impl BasicAuth {
    /// The users of a plan.
    #[must_use]
    pub fn new(plan: Arc<plan::BasicAuth>, passwords: Arc<Passwords>) -> Self {
        let challenge = format!("Basic realm=\"{}\", charset=\"UTF-8\"", plan.realm);
        let challenge = HeaderValue::from_bytes(challenge.as_bytes()).expect("a realm has no control characters");
        Self { plan, challenge, passwords }
    }

    /// The `WWW-Authenticate` of a 401.
    #[must_use]
    pub const fn challenge(&self) -> &HeaderValue {
        &self.challenge
    }

    /// Whether the service gets the password, too.
    #[must_use]
    pub fn passes_authorization(&self) -> bool {
        self.plan.pass_authorization
    }

    /// Whether a client may come with these fields.
    #[must_use]
    pub fn admit(&self, fields: &Fields, client: IpAddr) -> Admission {
        let Some(credentials) = Credentials::of(fields) else { return Admission::Refused(Kind::Unauthorized) };
        self.passwords.admit(&self.plan.users, credentials, network(client))
    }
}

/// A name and a password as a client sends them.
struct Credentials {
    decoded: Vec<u8>,
    colon: usize,
}

impl Credentials {
    /// Those of the one `Authorization` field: of several, the service might believe another one than we.
    fn of(fields: &Fields) -> Option<Self> {
        let mut all = fields.get_all(header::AUTHORIZATION);
        let (one, None) = (all.next()?, all.next()) else { return None };
        let (scheme, token) = one.as_bytes().split_at_checked("Basic ".len())?;
        if !scheme.eq_ignore_ascii_case(b"Basic ") {
            return None;
        }
        let decoded = STANDARD.decode(token.trim_ascii()).ok()?;
        let colon = decoded.iter().position(|b| *b == b':')?;
        Some(Self { decoded, colon })
    }

    fn name(&self) -> &[u8] {
        &self.decoded[..self.colon]
    }

    fn password(&self) -> &[u8] {
        &self.decoded[self.colon + 1..]
    }
}

/// A name, a hash and a password in one, by a key that no one knows: what is remembered of a right password, and by what
/// two equal attempts are one.
type Digest = [u8; 32];

type Verification = Shared<BoxFuture<'static, bool>>;

/// What is known of passwords and of those who try them, for all users of a configuration: a reload forgets it.
pub struct Passwords {
    key: hmac::Key,
    running: Arc<Semaphore>,
    state: Mutex<State>,
}

struct State {
    verified: HashSet<Digest>,
    pending: HashMap<Digest, WeakShared<BoxFuture<'static, bool>>>,
    attempts: Attempts,
}

impl Passwords {
    /// Nothing is known yet.
    #[must_use]
    pub fn none() -> Self {
        let mut key = [0; 32];
        rand::fill(&mut key).expect("the system has random numbers");
        let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            running: Arc::new(Semaphore::new(cpus.div_ceil(2))),
            state: Mutex::new(State {
                verified: HashSet::new(),
                pending: HashMap::new(),
                attempts: Attempts::default(),
            }),
        }
    }

    fn admit(self: &Arc<Self>, users: &[plan::User], credentials: Credentials, address: IpAddr) -> Admission {
        let user = users.iter().find(|user| user.name.as_bytes() == credentials.name());
        let hash = user.map_or_else(|| self.stand_in(users, credentials.name()), |user| &user.password);
        let digest = self.digest(&credentials, hash, user.is_some());
        let now = Instant::now();
        let mut state = self.state();
        // Before the password is looked at, or the limit would tell which one is right.
        if !state.attempts.may_try(address, now) {
            return Admission::Refused(Kind::TooManyAttempts);
        }
        if state.verified.contains(&digest) {
            state.attempts.succeeded(address, now);
            return Admission::Granted;
        }
        let verification = match state.pending.get(&digest).and_then(WeakShared::upgrade) {
            Some(pending) => pending,
            None => {
                state.attempts.begin(address, now);
                let verification = self.verification(credentials, hash.clone(), user.is_some(), digest, address);
                state.pending.retain(|_, pending| pending.upgrade().is_some());
                state.pending.extend(verification.downgrade().map(|pending| (digest, pending)));
                verification
            }
        };
        drop(state);
        Admission::Pending(Box::pin(async move { verification.await.then_some(()).ok_or(Kind::Unauthorized) }))
    }

    /// The hash of somebody for a name that nobody has, always the same for one name: names with hashes that take longer
    /// than others are no more conspicuous than those that do not exist.
    fn stand_in<'u>(&self, users: &'u [plan::User], name: &[u8]) -> &'u PasswordHash {
        let first = hmac::sign(&self.key, name).as_ref()[0];
        &users[usize::from(first) % users.len()].password
    }

    fn digest(&self, credentials: &Credentials, hash: &PasswordHash, is_known: bool) -> Digest {
        let mut context = hmac::Context::with_key(&self.key);
        match hash {
            PasswordHash::Bcrypt(text) => context.update(text.as_bytes()),
            PasswordHash::Argon2id(argon2id) => context.update(&argon2id.hash),
        }
        context.update(&[u8::from(is_known)]);
        context.update(&credentials.decoded);
        context.sign().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// Verifies a password once, however many requests wait for it.
    fn verification(
        self: &Arc<Self>,
        credentials: Credentials,
        hash: PasswordHash,
        is_known: bool,
        digest: Digest,
        address: IpAddr,
    ) -> Verification {
        let passwords = self.clone();
        let verify = async move {
            let permit = passwords.running.clone().acquire_owned().await;
            let verified = spawn_blocking(move || {
                // Held until it is done, also if nobody waits for it any more.
                let _permit = permit;
                matches(&hash, credentials.password())
            });
            // A panic verifies nothing.
            let is_right = verified.await.unwrap_or(false) && is_known;
            let mut state = passwords.state();
            state.pending.remove(&digest);
            if is_right {
                state.remember(digest);
                state.attempts.forgive(address);
                state.attempts.succeeded(address, Instant::now());
            }
            is_right
        };
        verify.boxed().shared()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remember(&mut self, digest: Digest) {
        if self.verified.len() >= REMEMBERED {
            self.verified.clear();
        }
        self.verified.insert(digest);
    }
}

/// Whether a password is that of a hash. Takes as long as the hash asks for.
fn matches(hash: &PasswordHash, password: &[u8]) -> bool {
    match hash {
        // What the configuration has accepted is a hash.
        PasswordHash::Bcrypt(text) => bcrypt::verify(password, text).unwrap_or(false),
        PasswordHash::Argon2id(hash) => {
            argon2id(hash, password).is_some_and(|computed| verify_slices_are_equal(&computed, &hash.hash).is_ok())
        }
    }
}

fn argon2id(hash: &Argon2id, password: &[u8]) -> Option<Vec<u8>> {
    use argon2::{Algorithm, Argon2, Params, Version};

    let parameters = Params::new(hash.memory, hash.passes, hash.lanes, Some(hash.hash.len())).ok()?;
    let mut computed = vec![0; hash.hash.len()];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters);
    argon2.hash_password_into(password, &hash.salt, &mut computed).ok()?;
    Some(computed)
}

/// Bounds wrong passwords, of each address and of all together. An address from which somebody has logged in is bound by
/// its own only, so that strangers who use up the bound of all lock out nobody who was there before.
#[derive(Default)]
struct Attempts {
    all: Budget,
    addresses: HashMap<IpAddr, Address>,
}

#[derive(Default)]
struct Address {
    own: Budget,
    has_logged_in: bool,
    last: Option<Instant>,
}

impl Attempts {
    fn may_try(&self, address: IpAddr, now: Instant) -> bool {
        match self.addresses.get(&address) {
            Some(known) => {
                known.own.allows(now, BURST, EVERY)
                    && (known.has_logged_in || self.all.allows(now, BURST_OF_ALL, EVERY_OF_ALL))
            }
            None => self.all.allows(now, BURST_OF_ALL, EVERY_OF_ALL),
        }
    }

    /// An attempt counts until its password is known to be right.
    fn begin(&mut self, address: IpAddr, now: Instant) {
        self.all.spend(now, EVERY_OF_ALL);
        self.address(address, now).own.spend(now, EVERY);
    }

    fn forgive(&mut self, address: IpAddr) {
        self.all.refund(EVERY_OF_ALL);
        if let Some(known) = self.addresses.get_mut(&address) {
            known.own.refund(EVERY);
        }
    }

    fn succeeded(&mut self, address: IpAddr, now: Instant) {
        self.address(address, now).has_logged_in = true;
    }

    fn address(&mut self, address: IpAddr, now: Instant) -> &mut Address {
        if self.addresses.len() >= REMEMBERED && !self.addresses.contains_key(&address) {
            let oldest = self.addresses.iter().min_by_key(|(_, known)| (known.has_logged_in, known.last));
            if let Some(oldest) = oldest.map(|(oldest, _)| *oldest) {
                self.addresses.remove(&oldest);
            }
        }
        let known = self.addresses.entry(address).or_default();
        known.last = Some(now);
        known
    }
}

/// A number of attempts at once, and then one in a while: when all of them are there again (GCRA).
#[derive(Default)]
struct Budget {
    full_at: Option<Instant>,
}

impl Budget {
    fn allows(&self, now: Instant, burst: u32, every: Duration) -> bool {
        self.full_at.is_none_or(|full_at| full_at.saturating_duration_since(now) <= every * (burst - 1))
    }

    fn spend(&mut self, now: Instant, every: Duration) {
        self.full_at = Some(self.full_at.map_or(now, |full_at| full_at.max(now)) + every);
    }

    fn refund(&mut self, every: Duration) {
        self.full_at = self.full_at.and_then(|full_at| full_at.checked_sub(every));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Value;

    /// "secret", with the least cost.
    fn users() -> Arc<plan::BasicAuth> {
        let bcrypt = bcrypt::hash_with_salt("secret", 4, [7; 16]).unwrap().to_string();
        let mut argon2id = Argon2id { memory: 8, passes: 1, lanes: 1, salt: b"saltsalt".to_vec(), hash: vec![0; 32] };
        argon2id.hash = super::argon2id(&argon2id, b"pass:word").unwrap();
        let user = |name: &str, password| plan::User { name: name.into(), password };
        let users =
            vec![user("alice", PasswordHash::Bcrypt(bcrypt.into())), user("bob", PasswordHash::Argon2id(argon2id))];
        Arc::new(plan::BasicAuth { realm: "here".into(), users, pass_authorization: false })
    }

    fn auth() -> BasicAuth {
        BasicAuth::new(users(), Arc::new(Passwords::none()))
    }

    fn fields(credentials: &str) -> Fields {
        let value = format!("basic {}", STANDARD.encode(credentials));
        Fields::from_iter([(header::AUTHORIZATION, Value::new(value.as_bytes()).unwrap())])
    }

    async fn try_one(auth: &BasicAuth, credentials: &str, client: &str) -> Result<(), Kind> {
        match auth.admit(&fields(credentials), client.parse().unwrap()) {
            Admission::Granted => Ok(()),
            Admission::Refused(kind) => Err(kind),
            Admission::Pending(verification) => verification.await,
        }
    }

    #[tokio::test]
    async fn a_right_password_is_verified_once() {
        let auth = auth();
        for credentials in ["alice:secret", "bob:pass:word"] {
            assert_eq!(try_one(&auth, credentials, "192.0.2.1").await, Ok(()), "{credentials}");
            let again = auth.admit(&fields(credentials), "192.0.2.1".parse().unwrap());
            assert!(matches!(again, Admission::Granted), "{credentials}");
        }
    }

    #[tokio::test]
    async fn nothing_else_is_a_password() {
        let auth = auth();
        for credentials in
            ["alice:Secret", "alice:", "alice:pass:word", "bob:secret", "eve:secret", ":secret", "Alice:secret"]
        {
            assert_eq!(try_one(&auth, credentials, "192.0.2.1").await, Err(Kind::Unauthorized), "{credentials}");
        }
        let two = Fields::from_iter(["alice:secret", "alice:secret"].map(|credentials| {
            let value = format!("Basic {}", STANDARD.encode(credentials));
            (header::AUTHORIZATION, Value::new(value.into_bytes().leak()).unwrap())
        }));
        for none in [Fields::new(), two] {
            assert!(matches!(auth.admit(&none, IpAddr::from([192, 0, 2, 1])), Admission::Refused(Kind::Unauthorized)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_passwords_are_bounded_for_each_address_and_the_right_one_is_not_told_by_it() {
        let auth = auth();
        assert_eq!(try_one(&auth, "alice:secret", "192.0.2.1").await, Ok(()));
        for n in 0..BURST {
            assert_eq!(try_one(&auth, &format!("alice:{n}"), "192.0.2.2").await, Err(Kind::Unauthorized), "{n}");
        }
        for credentials in ["alice:11", "alice:secret", "eve:x"] {
            assert_eq!(try_one(&auth, credentials, "192.0.2.2").await, Err(Kind::TooManyAttempts), "{credentials}");
        }
        assert_eq!(try_one(&auth, "alice:secret", "192.0.2.1").await, Ok(()), "another address is not concerned");
        tokio::time::advance(EVERY).await;
        assert_eq!(try_one(&auth, "alice:secret", "192.0.2.2").await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_passwords_are_bounded_for_all_but_those_who_were_there_before() {
        let auth = auth();
        assert_eq!(try_one(&auth, "alice:secret", "192.0.2.1").await, Ok(()));
        let mut refused = 0;
        for n in 0..BURST_OF_ALL + 50 {
            let client = IpAddr::from(n.to_be_bytes()).to_string();
            refused += u32::from(try_one(&auth, &format!("alice:{n}"), &client).await == Err(Kind::TooManyAttempts));
        }
        assert_eq!(refused, 50);
        assert_eq!(try_one(&auth, "alice:secret", "192.0.2.3").await, Err(Kind::TooManyAttempts));
        assert_eq!(try_one(&auth, "alice:secret", "192.0.2.1").await, Ok(()));
        assert_eq!(try_one(&auth, "bob:pass:word", "192.0.2.1").await, Ok(()));
    }

    #[tokio::test]
    async fn many_requests_at_once_are_one_attempt() {
        let auth = auth();
        let all = (0..50).map(|_| try_one(&auth, "alice:secret", "192.0.2.1"));
        assert!(futures_util::future::join_all(all).await.iter().all(Result::is_ok));
    }
}

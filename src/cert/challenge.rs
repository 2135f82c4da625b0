//! Proofs that we hold a name, as a CA sees them: tokens for HTTP-01, certificates for TLS-ALPN-01, and a count of the
//! requests for them. They are also in the storage, so that any process on it can answer the CA.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_lc_rs::{
    digest,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use futures_util::{FutureExt as _, future::BoxFuture};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::{
    crypto::aws_lc_rs::sign::any_ecdsa_type,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use tokio::{sync::Semaphore, time::timeout};

use super::{CertError, Resolver, Store, StoreError, address, lock, state::file_name};

/// Where proofs are stored.
const FOLDER: &str = "challenges";

/// A proof this old is of no order any more: a CA validates within minutes.
const LEFT_OVER: Duration = Duration::from_secs(24 * 3600);

/// Lookups in the storage at once. Anybody can ask for tokens, and each lookup takes a thread.
const LOOKUPS: usize = 4;

/// How long a lookup may take: a CA waits for about ten seconds.
const LOOKUP_TIME: Duration = Duration::from_secs(3);

/// Requests for a token that are counted; a few are enough to say that the CA came.
const MAX_COUNTED: usize = 16;

/// Longer than the token of any CA (RFC 8555 section 8.3 wants at least 22 characters).
const MAX_TOKEN: usize = 256;

/// All proofs that wait for a CA.
#[derive(Debug)]
pub struct Challenges {
    resolver: Arc<Resolver>,
    store: Arc<Store>,
    tokens: Mutex<HashMap<String, Token>>,
    /// Names whose TLS-ALPN-01 certificate this process has published itself.
    own_names: Mutex<Vec<Arc<str>>>,
    /// The thumbprints of our accounts by directory, in the order in which they were learned.
    accounts: Mutex<Vec<(String, String)>>,
    lookups: Arc<Semaphore>,
}

#[derive(Debug)]
struct Token {
    authorization: String,
    seen_from: Vec<IpAddr>,
}

/// A proof for a CA.
#[derive(Debug, Clone)]
pub enum Proof {
    /// RFC 8555 section 8.3.
    Http01 {
        /// What the CA asks for.
        token: String,
        /// What it wants to see.
        authorization: String,
    },
    /// RFC 8737 section 3.
    TlsAlpn01 {
        /// The name in the CA's ClientHello.
        name: Arc<str>,
        /// What the certificate's extension holds.
        digest: Vec<u8>,
    },
}

impl Proof {
    /// A token with its key authorization.
    pub fn http01(token: &str, authorization: &str) -> Self {
        Self::Http01 { token: token.to_owned(), authorization: authorization.to_owned() }
    }

    /// The digest of a key authorization for a name.
    pub fn tls_alpn01(name: &Arc<str>, digest: &[u8]) -> Self {
        Self::TlsAlpn01 { name: name.clone(), digest: digest.to_vec() }
    }

    fn file(&self) -> String {
        match self {
            Self::Http01 { token, .. } => http01_file(token),
            Self::TlsAlpn01 { name, .. } => tls_alpn01_file(name),
        }
    }

    fn content(&self) -> String {
        match self {
            Self::Http01 { authorization, .. } => authorization.clone(),
            Self::TlsAlpn01 { digest, .. } => BASE64_URL_SAFE_NO_PAD.encode(digest),
        }
    }
}

fn http01_file(token: &str) -> String {
    format!("{FOLDER}/http-01-{token}")
}

fn tls_alpn01_file(name: &str) -> String {
    format!("{FOLDER}/tls-alpn-01-{}", file_name(name))
}

impl Challenges {
    /// None yet.
    pub fn new(resolver: Arc<Resolver>, store: Arc<Store>) -> Self {
        let lookups = Arc::new(Semaphore::new(LOOKUPS));
        let (tokens, own_names, accounts) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { resolver, store, tokens, own_names, accounts, lookups }
    }

    /// The answer to a request for a token: of this process, of another on the same storage, or else made from the
    /// thumbprint of our account, since that is all the secret there is in it (RFC 8555 section 8.1).
    pub fn http01(&self, token: &str, from: IpAddr) -> BoxFuture<'static, Option<String>> {
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if token.is_empty() || token.len() > MAX_TOKEN || !token.bytes().all(is_token) {
            return async { None }.boxed();
        }
        if let Some(found) = lock(&self.tokens).get_mut(token) {
            if found.seen_from.len() < MAX_COUNTED {
                found.seen_from.push(from);
            }
            let authorization = found.authorization.clone();
            return async { Some(authorization) }.boxed();
        }
        let by_account = lock(&self.accounts).first().map(|(_, thumbprint)| format!("{token}.{thumbprint}"));
        let stored = self.look_up(http01_file(token));
        async move { stored.await.or(by_account) }.boxed()
    }

    /// Makes sure that a handshake for TLS-ALPN-01 finds what another process has published for the name.
    pub fn find_tls_alpn01(&self, name: &str) -> BoxFuture<'static, ()> {
        let name: Arc<str> = address::validated_host(name).into();
        if lock(&self.own_names).contains(&name) {
            return async {}.boxed();
        }
        let (stored, resolver) = (self.look_up(tls_alpn01_file(&name)), self.resolver.clone());
        async move {
            let digest = stored.await.and_then(|text| BASE64_URL_SAFE_NO_PAD.decode(text).ok());
            // A damaged proof is as good as none: the CA finds no certificate, and this is told where it was ordered.
            match digest.and_then(|digest| tls_alpn01_certificate(&name, &digest).ok()) {
                Some(key) => resolver.offer(&name, key),
                None => drop(resolver.withdraw(&name)),
            }
        }
        .boxed()
    }

    fn look_up(&self, file: String) -> BoxFuture<'static, Option<String>> {
        let (store, lookups) = (self.store.clone(), self.lookups.clone());
        async move {
            let found = timeout(LOOKUP_TIME, async {
                let permit = lookups.acquire_owned().await.ok()?;
                // What cannot be read is answered like what is not there. The permit is the thread's: a storage that hangs
                // keeps it beyond the timeout, or requests for tokens would take one thread after the other.
                let load = move |store: &Store| (store.load(&file).ok()?, drop(permit)).0;
                store.run(load).await
            });
            found.await.ok()?
        }
        .boxed()
    }

    /// Notes the thumbprint of our account at a directory.
    pub fn know_account(&self, directory: &str, thumbprint: &str) {
        let mut accounts = lock(&self.accounts);
        match accounts.iter_mut().find(|(known, _)| known == directory) {
            Some((_, known)) => thumbprint.clone_into(known),
            None => accounts.push((directory.to_owned(), thumbprint.to_owned())),
        }
    }

    /// Shows a proof to the CA until the result is dropped.
    ///
    /// # Errors
    /// It cannot be signed or stored.
    pub async fn publish(self: &Arc<Self>, proof: Proof) -> Result<Published, CertError> {
        match &proof {
            Proof::Http01 { token, authorization } => {
                let token_of = Token { authorization: authorization.clone(), seen_from: Vec::new() };
                lock(&self.tokens).insert(token.clone(), token_of);
            }
            Proof::TlsAlpn01 { name, digest } => {
                self.resolver.offer(name, tls_alpn01_certificate(name, digest)?);
                lock(&self.own_names).push(name.clone());
            }
        }
        let (file, content) = (proof.file(), proof.content());
        let published = Published { challenges: self.clone(), proof: Some(proof) };
        let saved = self.store.run(move |store| {
            store.remove_older(FOLDER, LEFT_OVER);
            store.save(&file, &content)
        });
        saved.await?;
        Ok(published)
    }

    /// Takes a proof back; what happened meanwhile, in words.
    fn forget(&self, proof: &Proof) -> String {
        match proof {
            Proof::Http01 { token, .. } => {
                let removed = lock(&self.tokens).remove(token);
                match removed.map_or(0, |token| token.seen_from.len()) {
                    0 => {
                        "no request for the challenge reached us: is port 80 open, and does the name lead here?".into()
                    }
                    n => format!("{n} requests for the challenge reached us and were answered"),
                }
            }
            Proof::TlsAlpn01 { name, .. } => {
                let mut own = lock(&self.own_names);
                if let Some(index) = own.iter().position(|known| known == name) {
                    own.swap_remove(index);
                }
                match self.resolver.withdraw(name) {
                    0 => "no handshake for the challenge reached us: is port 443 open, and does the name lead here?"
                        .into(),
                    n => format!("{n} handshakes for the challenge reached us and were answered"),
                }
            }
        }
    }
}

/// A proof that is shown. Dropping it takes it back.
#[derive(Debug)]
pub struct Published {
    challenges: Arc<Challenges>,
    proof: Option<Proof>,
}

impl Published {
    /// Takes the proof back; what happened meanwhile, in words.
    pub async fn withdraw(mut self) -> String {
        let Some(proof) = self.proof.take() else { return String::new() };
        let file = proof.file();
        // What stays in the storage is removed with the next proof.
        let _: Result<(), StoreError> = self.challenges.store.run(move |store| store.remove(&file)).await;
        self.challenges.forget(&proof)
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        if let Some(proof) = self.proof.take() {
            self.challenges.forget(&proof);
        }
    }
}

fn tls_alpn01_certificate(name: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>, CertError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    // Not by way of `Certificate`: the critical extension, which is the whole point, is unknown to its check.
    let key = any_ecdsa_type(&key).map_err(CertError::Mismatch)?;
    Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key)))
}

/// The thumbprint of a P-256 key in PKCS#8 form (RFC 7638).
#[must_use]
pub fn thumbprint(pkcs8: &[u8]) -> Option<String> {
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).ok()?;
    // The uncompressed form of SEC 1 section 2.3.3: 4, x, y.
    let (x, y) = key.public_key().as_ref().get(1..)?.split_at_checked(32)?;
    let [x, y] = [x, y].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part));
    let jwk = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    Some(BASE64_URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, jwk.as_bytes())))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        net::Ipv4Addr,
    };

    use futures_util::future::join_all;

    use super::*;

    const CA: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn process(folder: &std::path::Path) -> Arc<Challenges> {
        let store = Arc::new(Store::new(folder.to_owned()));
        Arc::new(Challenges::new(Arc::new(Resolver::default()), store))
    }

    #[tokio::test]
    async fn a_token_is_answered_by_every_process_on_the_storage() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (process(folder.path()), process(folder.path()));
        let shown = one.publish(Proof::http01("a-token", "a-token.thumb")).await.unwrap();
        assert_eq!(other.http01("a-token", CA).await.as_deref(), Some("a-token.thumb"));
        assert_eq!(one.http01("a-token", CA).await.as_deref(), Some("a-token.thumb"));
        assert!(shown.withdraw().await.starts_with("1 requests"));
        assert_eq!(other.http01("a-token", CA).await, None);
    }

    #[tokio::test]
    async fn any_token_is_answered_from_the_accounts_thumbprint_alone() {
        let folder = tempfile::tempdir().unwrap();
        let challenges = process(folder.path());
        assert_eq!(challenges.http01("anything", CA).await, None);
        challenges.know_account("https://ca/dir", "thumb");
        assert_eq!(challenges.http01("anything", CA).await.as_deref(), Some("anything.thumb"));
        for no_token in ["", "../internal-ca.json", "a%2e", "<script>", &"x".repeat(MAX_TOKEN + 1)] {
            assert_eq!(challenges.http01(no_token, CA).await, None, "{no_token}");
        }
    }

    #[tokio::test]
    async fn a_storage_that_hangs_takes_a_few_threads_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(FOLDER)).unwrap();
        // Opening a pipe that nobody writes to blocks, as a file on a server that is gone does.
        let pipe = folder.path().join(http01_file("hangs"));
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let challenges = process(folder.path());
        challenges.know_account("https://ca/dir", "thumb");
        let answers = join_all((0..LOOKUPS + 4).map(|_| challenges.http01("hangs", CA))).await;
        assert!(answers.iter().all(|answer| answer.as_deref() == Some("hangs.thumb")), "{answers:?}");
        assert_eq!(challenges.lookups.available_permits(), 0, "no more threads than that wait for the storage");
        File::options().write(true).open(&pipe).unwrap();
        drop(challenges.lookups.acquire_many(u32::try_from(LOOKUPS).unwrap()).await.unwrap());
    }

    #[tokio::test]
    async fn a_tls_alpn_proof_is_found_by_every_process_and_gone_with_its_order() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (process(folder.path()), process(folder.path()));
        let name: Arc<str> = "a.example".into();
        let shown = one.publish(Proof::tls_alpn01(&name, &[7; 32])).await.unwrap();
        other.find_tls_alpn01("a.example").await;
        assert!(other.resolver.offers(&name));
        drop(shown.withdraw().await);
        other.find_tls_alpn01("a.example").await;
        assert!(!other.resolver.offers(&name));
    }

    #[test]
    fn a_thumbprint_is_a_digest_of_a_p256_key_and_of_nothing_else() {
        let key = KeyPair::generate().unwrap();
        let of_key = thumbprint(&key.serialize_der()).unwrap();
        assert_eq!(BASE64_URL_SAFE_NO_PAD.decode(of_key).unwrap().len(), 32);
        assert_eq!(thumbprint(b"no key"), None);
    }
}

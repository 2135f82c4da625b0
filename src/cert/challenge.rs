//! Proofs that we hold a name: tokens for our plain listener, certificates for our TLS one, and a count of who came to
//! look.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::{
    crypto::aws_lc_rs::sign::any_ecdsa_type,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};

use super::{CertError, Resolver, lock};

/// Everything that waits for a CA.
#[derive(Debug)]
pub struct Challenges {
    resolver: Arc<Resolver>,
    tokens: Mutex<HashMap<String, Token>>,
}

#[derive(Debug)]
struct Token {
    authorization: String,
    seen_from: Vec<IpAddr>,
}

impl Challenges {
    /// None yet.
    pub fn new(resolver: Arc<Resolver>) -> Self {
        Self { resolver, tokens: Mutex::default() }
    }

    /// The answer to a request for a token (RFC 8555 section 8.3).
    pub fn http01(&self, token: &str, from: IpAddr) -> Option<String> {
        let mut tokens = lock(&self.tokens);
        let found = tokens.get_mut(token)?;
        if found.seen_from.len() < 16 {
            found.seen_from.push(from);
        }
        Some(found.authorization.clone())
    }

    /// Offers a token.
    pub fn offer_http01(&self, token: &str, authorization: &str) {
        let token_of = Token { authorization: authorization.to_owned(), seen_from: Vec::new() };
        lock(&self.tokens).insert(token.to_owned(), token_of);
    }

    /// Takes a token back; what happened meanwhile, in words.
    pub fn withdraw_http01(&self, token: &str) -> String {
        let removed = lock(&self.tokens).remove(token);
        match removed.map(|token| token.seen_from.len()) {
            Some(0) | None => {
                "no request for the challenge reached us: is port 80 open, and does the name lead here?".into()
            }
            Some(n) => format!("{n} requests for the challenge reached us and were answered"),
        }
    }

    /// Offers a certificate that proves the name (RFC 8737 section 3).
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn offer_tls_alpn01(&self, host: &Arc<str>, digest: &[u8]) -> Result<(), CertError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_string()])?;
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
        let certificate = params.self_signed(&key)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        // Not by way of `Certificate`: the critical extension, which is the whole point, is unknown to its check.
        let key = any_ecdsa_type(&key).map_err(CertError::Mismatch)?;
        self.resolver.offer(host, Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key)));
        Ok(())
    }

    /// Takes it back; what happened meanwhile, in words.
    pub fn withdraw_tls_alpn01(&self, host: &Arc<str>) -> String {
        match self.resolver.withdraw(host) {
            0 => "no handshake for the challenge reached us: is port 443 open, and does the name lead here?".into(),
            n => format!("{n} handshakes for the challenge reached us and were answered"),
        }
    }
}

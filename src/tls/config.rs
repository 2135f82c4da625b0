//! The few configurations that live as long as the process: one for clients, one for validations by the CA. Names and
//! certificates change inside their resolver; a new configuration would forget the tickets it has given out.

use std::sync::Arc;

use rustls::{
    ServerConfig, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    server::{NoServerSessionStorage, ResolvesServerCert},
    version::{TLS12, TLS13},
};

use super::ACME_TLS;
use crate::config::plan::TlsVersion;

const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
const NEWEST: &[&SupportedProtocolVersion] = &[&TLS13];

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up TLS")]
pub struct TlsError(#[from] rustls::Error);

/// The configurations.
pub struct Configs {
    /// For clients: `h2`, `http/1.1` and `http/1.0`.
    pub http: Arc<ServerConfig>,
    /// For the CA: RFC 8737 wants `acme-tls/1` agreed on and nothing else offered.
    pub validation: Arc<ServerConfig>,
}

impl Configs {
    /// Builds them.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn new(resolver: Arc<dyn ResolvesServerCert>, min: TlsVersion) -> Result<Self, TlsError> {
        let mut http = server(resolver.clone(), min)?;
        // `http/1.0` is what `curl --http1.0` offers, and nothing else beside it.
        http.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), b"http/1.0".to_vec()];
        // Tickets whose keys rotate every six hours and live in this process only. Early data stays off: it can be
        // replayed, and nothing behind us could tell.
        http.ticketer = aws_lc_rs::Ticketer::new()?;
        http.session_storage = Arc::new(NoServerSessionStorage {});
        let mut validation = server(resolver, min)?;
        validation.alpn_protocols = vec![ACME_TLS.to_vec()];
        Ok(Self { http: Arc::new(http), validation: Arc::new(validation) })
    }
}

fn server(resolver: Arc<dyn ResolvesServerCert>, min: TlsVersion) -> Result<ServerConfig, TlsError> {
    let versions = match min {
        TlsVersion::V1_2 => BOTH,
        TlsVersion::V1_3 => NEWEST,
    };
    // The provider's default groups begin with X25519MLKEM768 (feature `prefer-post-quantum`).
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions)?;
    Ok(builder.with_no_client_auth().with_cert_resolver(resolver))
}

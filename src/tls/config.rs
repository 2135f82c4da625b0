//! The few configurations that live as long as the process: one for clients, one for validations by the CA. Names and
//! certificates change inside their resolver; a new configuration would forget the tickets it has given out.

use std::sync::Arc;

use rustls::{
    ServerConfig, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};

use super::{ACME_TLS, STUN_TURN};
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
    /// For clients of a site that is not HTTP: whatever they offer, nothing is agreed on.
    pub stream: Arc<ServerConfig>,
    /// For TURN clients that offer `stun.turn` (RFC 7443).
    pub turn: Arc<ServerConfig>,
    /// For the CA: RFC 8737 wants `acme-tls/1` agreed on and nothing else offered.
    pub validation: Arc<ServerConfig>,
}

impl Configs {
    /// Builds them.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn new(resolver: Arc<dyn ResolvesServerCert>, min: TlsVersion) -> Result<Self, TlsError> {
        // `http/1.0` is what `curl --http1.0` offers, and nothing else beside it.
        let http = resuming(resolver.clone(), min, &[b"h2", b"http/1.1", b"http/1.0"])?;
        let stream = resuming(resolver.clone(), min, &[])?;
        let turn = resuming(resolver.clone(), min, &[STUN_TURN])?;
        let mut validation = server(resolver, min)?;
        validation.alpn_protocols = vec![ACME_TLS.to_vec()];
        Ok(Self { http, stream, turn, validation: Arc::new(validation) })
    }
}

/// A configuration whose connections can be resumed by tickets. Their keys rotate every six hours and live in this process
/// only. Early data stays off: it can be replayed, and nothing behind us could tell.
fn resuming(
    resolver: Arc<dyn ResolvesServerCert>,
    min: TlsVersion,
    protocols: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = server(resolver, min)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// The same configuration with one certificate, for a client that names no site or one that nobody has.
pub fn with_certificate(config: &Arc<ServerConfig>, certificate: Arc<CertifiedKey>) -> Arc<ServerConfig> {
    let mut config = ServerConfig::clone(config);
    config.cert_resolver = Arc::new(Only(certificate));
    Arc::new(config)
}

#[derive(Debug)]
struct Only(Arc<CertifiedKey>);

impl ResolvesServerCert for Only {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
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

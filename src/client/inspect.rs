//! Inspects the certificate that an address presents for a name, valid or not. No request is ever sent over the connection,
//! so the result of the verification is recorded instead of enforced.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use rustls::{ClientConfig, Error, client::WebPkiServerVerifier, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::{
    Roots, tls_error,
    verifier::{Presented, Rule, Verifier},
};
use crate::{
    conn::PeerCertificate,
    error::{FailureCause, ServerFailure},
};

/// Performs a handshake with an address for a name, and returns the certificate.
///
/// # Errors
/// The handshake failed.
pub async fn inspect(
    address: SocketAddr,
    host: &str,
    roots: &Roots,
    limit: Duration,
) -> Result<PeerCertificate, ServerFailure> {
    timeout(limit, handshake(address, host, roots)).await.unwrap_or(Err(FailureCause::NoResponse.into()))
}

async fn handshake(address: SocketAddr, host: &str, roots: &Roots) -> Result<PeerCertificate, ServerFailure> {
    let tcp = TcpStream::connect(address).await.map_err(|error| match error.kind() {
        // A firewall that says so, or a router that gave up.
        io::ErrorKind::HostUnreachable => ServerFailure::new(FailureCause::TimedOut, error.to_string()),
        _ => ServerFailure::of(&error),
    })?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| ServerFailure::of(&error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let usual = WebPkiServerVerifier::builder_with_provider(roots.store().clone(), provider.clone())
        .build()
        .map_err(|error| ServerFailure::of(&error))?;
    let rule = Recording { usual, seen: Mutex::default() };
    let verifier = Arc::new(Verifier { rule, provider: provider.clone() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ServerFailure::of(&error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    match TlsConnector::from(Arc::new(config)).connect(name, tcp).await {
        Ok(_) => verifier
            .rule
            .seen()
            .ok_or_else(|| ServerFailure::new(FailureCause::Handshake, "the server presented no certificate")),
        Err(error) => Err(failure(&error)),
    }
}

/// Records the certificate and the result of the usual verifier, and accepts the certificate.
#[derive(Debug)]
struct Recording {
    usual: Arc<WebPkiServerVerifier>,
    seen: Mutex<Option<PeerCertificate>>,
}

impl Recording {
    fn seen(&self) -> Option<PeerCertificate> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Rule for Recording {
    fn accept(&self, presented: &Presented<'_>) -> Result<(), Error> {
        let trust = presented.verified_by(&*self.usual).map_err(|error| tls_failure(&error));
        let seen = PeerCertificate { leaf: Bytes::copy_from_slice(presented.leaf), trust };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        Ok(())
    }
}

/// The failure of a handshake; what is no error of TLS is one of the connection.
fn failure(error: &io::Error) -> ServerFailure {
    match error.get_ref().and_then(|cause| cause.downcast_ref::<Error>()) {
        Some(cause) => tls_failure(cause),
        None => ServerFailure::of(error),
    }
}

fn tls_failure(error: &Error) -> ServerFailure {
    match tls_error::cause(error) {
        cause @ (FailureCause::Handshake | FailureCause::BadCertificate) => {
            ServerFailure::new(cause, error.to_string())
        }
        cause => cause.into(),
    }
}

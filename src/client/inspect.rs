//! Inspects the certificate that an address presents for a name, valid or not. No request is ever sent over the connection,
//! so the result of the verification is recorded instead of enforced.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::{Roots, tls_error};
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
    let inner = WebPkiServerVerifier::builder_with_provider(roots.store().clone(), provider.clone())
        .build()
        .map_err(|error| ServerFailure::of(&error))?;
    let witness = Arc::new(RecordingVerifier { inner, seen: Mutex::default() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ServerFailure::of(&error))?
        .dangerous()
        .with_custom_certificate_verifier(witness.clone())
        .with_no_client_auth();
    match TlsConnector::from(Arc::new(config)).connect(name, tcp).await {
        Ok(_) => witness
            .seen()
            .ok_or_else(|| ServerFailure::new(FailureCause::Handshake, "the server presented no certificate")),
        Err(error) => Err(failure(&error)),
    }
}

/// Records the certificate and the result of the usual verifier, and accepts the certificate.
#[derive(Debug)]
struct RecordingVerifier {
    inner: Arc<WebPkiServerVerifier>,
    seen: Mutex<Option<PeerCertificate>>,
}

impl RecordingVerifier {
    fn seen(&self) -> Option<PeerCertificate> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ServerCertVerifier for RecordingVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let trust =
            self.inner.verify_server_cert(leaf, chain, name, ocsp, now).map(drop).map_err(|error| tls_failure(&error));
        let shown = PeerCertificate { leaf: Bytes::copy_from_slice(leaf), trust };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
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

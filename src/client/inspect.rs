//! A look at the certificate that an address shows for a name, good or bad. Nothing is ever sent over the connection, so
//! the verdict may be taken down instead of being obeyed.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::Roots;
use crate::conn::{PeerCertificate, TlsFailure, VerifyError};

/// Shakes hands with an address for a name.
///
/// # Errors
/// There is no certificate to look at.
pub async fn inspect(
    address: SocketAddr,
    host: &str,
    roots: &Roots,
    limit: Duration,
) -> Result<PeerCertificate, TlsFailure> {
    timeout(limit, handshake(address, host, roots)).await.unwrap_or(Err(TlsFailure::Silent))
}

async fn handshake(address: SocketAddr, host: &str, roots: &Roots) -> Result<PeerCertificate, TlsFailure> {
    let other = |error: &dyn std::error::Error| TlsFailure::Other(error.to_string());
    let tcp = TcpStream::connect(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => TlsFailure::Refused,
        // A firewall that says so, or a router that gave up.
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable => TlsFailure::Silent,
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable => TlsFailure::NoRoute,
        _ => other(&error),
    })?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| other(&error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(roots.store().clone(), provider.clone())
        .build()
        .map_err(|error| other(&error))?;
    let witness = Arc::new(RecordingVerifier { inner, seen: Mutex::default() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| other(&error))?
        .dangerous()
        .with_custom_certificate_verifier(witness.clone())
        .with_no_client_auth();
    match TlsConnector::from(Arc::new(config)).connect(name, tcp).await {
        Ok(_) => witness.seen().ok_or_else(|| TlsFailure::Other("no certificate was shown".into())),
        Err(error) => Err(closed(&error)),
    }
}

/// Takes down what is shown and what the verifier of every other client thinks of it.
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
            self.inner.verify_server_cert(leaf, chain, name, ocsp, now).map(drop).map_err(|error| verify_error(&error));
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

fn verify_error(error: &Error) -> VerifyError {
    match error {
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            VerifyError::Expired
        }
        Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            VerifyError::NotYet
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => VerifyError::WrongName,
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => VerifyError::Unknown,
        other => VerifyError::Other(other.to_string()),
    }
}

fn closed(error: &io::Error) -> TlsFailure {
    match error.get_ref().and_then(|cause| cause.downcast_ref::<Error>()) {
        Some(Error::AlertReceived(AlertDescription::UnrecognisedName)) => TlsFailure::NoSuchName,
        Some(cause) => TlsFailure::Other(cause.to_string()),
        None => TlsFailure::Other(error.to_string()),
    }
}

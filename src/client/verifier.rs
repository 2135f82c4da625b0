//! A certificate verifier with a rule of its own. Signatures are always verified: a server has the key of what it presents.

use std::{fmt::Debug, sync::Arc};

use rustls::{
    DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// What a server presents, and what is known of it.
pub struct Presented<'a> {
    /// Its own certificate.
    pub leaf: &'a CertificateDer<'a>,
    /// Those that it sends with it.
    pub chain: &'a [CertificateDer<'a>],
    /// The name that the connection is for.
    pub name: &'a ServerName<'a>,
    /// An OCSP response, or nothing.
    pub ocsp: &'a [u8],
    /// The time of the handshake.
    pub now: UnixTime,
}

impl Presented<'_> {
    /// The result of another verifier.
    ///
    /// # Errors
    /// It rejects the certificate.
    pub fn verified_by(&self, other: &dyn ServerCertVerifier) -> Result<(), Error> {
        other.verify_server_cert(self.leaf, self.chain, self.name, self.ocsp, self.now).map(drop)
    }
}

/// Which certificates are accepted.
pub trait Rule: Debug + Send + Sync {
    /// Accepts a certificate.
    ///
    /// # Errors
    /// It is rejected.
    fn accept(&self, presented: &Presented<'_>) -> Result<(), Error>;
}

/// A verifier of rustls that accepts what a rule does.
#[derive(Debug)]
pub struct Verifier<R> {
    /// The rule.
    pub rule: R,
    /// Verifies the signatures.
    pub provider: Arc<CryptoProvider>,
}

impl<R: Rule> ServerCertVerifier for Verifier<R> {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.rule.accept(&Presented { leaf, chain, name, ocsp, now })?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

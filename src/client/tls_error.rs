//! The cause of a failed TLS handshake, from the errors of rustls.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use crate::error::FailureCause;

/// Replaces an error of a handshake by its [`FailureCause`], if that says all; another error keeps its text.
#[must_use]
pub fn name_cause(error: io::Error) -> io::Error {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).map(cause);
    match cause {
        None | Some(FailureCause::Handshake | FailureCause::BadCertificate) => error,
        Some(cause) => io::Error::new(error.kind(), cause),
    }
}

/// The cause that an error of rustls stands for.
pub fn cause(error: &Error) -> FailureCause {
    match error {
        Error::InvalidCertificate(error) => match error {
            CertificateError::UnknownIssuer => FailureCause::UnknownAuthority,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => FailureCause::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => FailureCause::NotYetValid,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                FailureCause::WrongName
            }
            _ => FailureCause::BadCertificate,
        },
        Error::AlertReceived(AlertDescription::UnrecognisedName) => FailureCause::NoCertificate,
        Error::AlertReceived(AlertDescription::CertificateRequired) => FailureCause::NoClientCertificate,
        // The first bytes are no TLS record: those of a response to what the server took for a malformed request.
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => FailureCause::NotTls,
        _ => FailureCause::Handshake,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_tls_has_its_cause() {
        for (error, expected) in [
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), FailureCause::UnknownAuthority),
            (Error::InvalidCertificate(CertificateError::Expired), FailureCause::Expired),
            (Error::InvalidCertificate(CertificateError::NotValidYet), FailureCause::NotYetValid),
            (Error::InvalidCertificate(CertificateError::NotValidForName), FailureCause::WrongName),
            (Error::InvalidCertificate(CertificateError::BadEncoding), FailureCause::BadCertificate),
            (Error::AlertReceived(AlertDescription::UnrecognisedName), FailureCause::NoCertificate),
            (Error::AlertReceived(AlertDescription::CertificateRequired), FailureCause::NoClientCertificate),
            (Error::AlertReceived(AlertDescription::ProtocolVersion), FailureCause::Handshake),
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), FailureCause::NotTls),
        ] {
            assert_eq!(cause(&error), expected, "{error}");
        }
    }
}

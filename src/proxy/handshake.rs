//! Handshake: why there is no TLS connection to a backend, as a reason.

use crate::telemetry::Reason;
use crate::transport::tls::{Fault, Rejected};

/// What a handshake that failed so says of the backend.
#[must_use]
pub fn reason(fault: Fault) -> Reason {
    match fault {
        Fault::Certificate(Rejected::Expired | Rejected::NotYetValid) => Reason::BackendTlsExpired,
        Fault::Certificate(Rejected::WrongName) => Reason::BackendTlsNameMismatch,
        Fault::Certificate(_) => Reason::BackendTlsUntrusted,
        Fault::Alert(_) => Reason::BackendTlsAlert,
        Fault::Ours => Reason::Internal,
        _ => Reason::BackendTlsFailed,
    }
}

#[cfg(test)]
mod tests {
    use super::reason;
    use crate::telemetry::Reason;
    use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

    #[test]
    fn a_failed_handshake_is_named_for_what_failed() {
        let certificate = Error::InvalidCertificate;
        for (error, expected) in [
            (certificate(CertificateError::Expired), Reason::BackendTlsExpired),
            (certificate(CertificateError::NotValidYet), Reason::BackendTlsExpired),
            (certificate(CertificateError::NotValidForName), Reason::BackendTlsNameMismatch),
            (certificate(CertificateError::UnknownIssuer), Reason::BackendTlsUntrusted),
            (certificate(CertificateError::BadSignature), Reason::BackendTlsUntrusted),
            (certificate(CertificateError::Revoked), Reason::BackendTlsUntrusted),
            (Error::NoCertificatesPresented, Reason::BackendTlsUntrusted),
            (Error::AlertReceived(AlertDescription::HandshakeFailure), Reason::BackendTlsAlert),
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), Reason::BackendTlsFailed),
            (Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon), Reason::BackendTlsFailed),
            (Error::FailedToGetRandomBytes, Reason::Internal),
        ] {
            assert_eq!(reason(error.clone().into()), expected, "{error}");
        }
    }
}

//! Fault: what went wrong with a TLS connection, by name.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

/// What went wrong with a TLS connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The peer reset the connection.
    #[error("the connection was reset")]
    Reset,
    /// The peer ended the connection within the handshake.
    #[error("the peer ended the handshake")]
    Ended,
    /// The peer ended the connection without notice (`close_notify`): what came before may
    /// not be all.
    #[error("the peer ended without notice")]
    Truncated,
    /// A client spoke HTTP, in clear.
    #[error("plain HTTP where TLS was expected")]
    PlainHttp,
    /// The first bytes are not those of TLS.
    #[error("no TLS")]
    NotTls,
    /// No configuration is meant for this hello, by its server name or its protocols.
    #[error("no certificate for the name that was asked for")]
    UnknownName,
    /// The two sides have no version, cipher, group or protocol in common.
    #[error("nothing in common: {0}")]
    Incompatible(Missing),
    /// The peer's certificate is not accepted.
    #[error("the peer's certificate {0}")]
    Certificate(Rejected),
    /// The peer gave up and said why.
    #[error("the peer gave up: {}", alert(*.0))]
    Alert(AlertDescription),
    /// The peer broke the protocol, or what it sent was changed on the way.
    #[error("the peer broke the protocol")]
    Protocol,
    /// Something of ours is lacking: randomness, the time, a descriptor, a usable key.
    #[error("our own failure")]
    Ours,
}

/// What two sides don't have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// TLS 1.2 or 1.3.
    #[error("no version")]
    Version,
    /// An application protocol (ALPN).
    #[error("no application protocol")]
    Protocol,
    /// Cipher suites, groups, signature schemes, or an extension that is needed.
    #[error("no cipher, group or signature")]
    Parameters,
}

/// Why a certificate is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// There is none.
    #[error("is missing")]
    Missing,
    /// Its time is over.
    #[error("has expired")]
    Expired,
    /// Its time has not come.
    #[error("is not valid yet")]
    NotYetValid,
    /// It is another server's.
    #[error("is for another name")]
    WrongName,
    /// No authority that is trusted has issued it.
    #[error("is not from a trusted authority")]
    Untrusted,
    /// Its authority has revoked it, or does not say that it has not.
    #[error("was revoked")]
    Revoked,
    /// It can't be read, or is not meant for this.
    #[error("is not usable")]
    Unusable,
}

impl Fault {
    /// The fault as one word, for counters and records. It does not change between releases.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Ended => "ended",
            Self::Truncated => "truncated",
            Self::PlainHttp => "plain_http",
            Self::NotTls => "not_tls",
            Self::UnknownName => "unknown_name",
            Self::Incompatible(Missing::Version) => "no_common_version",
            Self::Incompatible(Missing::Protocol) => "no_common_protocol",
            Self::Incompatible(Missing::Parameters) => "no_common_parameters",
            Self::Certificate(Rejected::Missing) => "certificate_missing",
            Self::Certificate(Rejected::Expired) => "certificate_expired",
            Self::Certificate(Rejected::NotYetValid) => "certificate_not_yet_valid",
            Self::Certificate(Rejected::WrongName) => "certificate_wrong_name",
            Self::Certificate(Rejected::Untrusted) => "certificate_untrusted",
            Self::Certificate(Rejected::Revoked) => "certificate_revoked",
            Self::Certificate(Rejected::Unusable) => "certificate_unusable",
            Self::Alert(_) => "alert",
            Self::Protocol => "protocol_error",
            Self::Ours => "internal",
        }
    }

    /// As an error of the stream.
    pub(super) fn into_io(self) -> io::Error {
        let kind = match self {
            Self::Reset => io::ErrorKind::ConnectionReset,
            Self::Ended | Self::Truncated => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, self)
    }
}

/// What an error of a stream says of its TLS; an error of the socket is [`Fault::Reset`].
#[must_use]
pub fn fault(error: &io::Error) -> Fault {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner.copied().unwrap_or(Fault::Reset)
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::AlertReceived(alert) => Self::Alert(alert),
            Error::InvalidCertificate(error) => Self::Certificate(rejected(&error)),
            Error::NoCertificatesPresented => Self::Certificate(Rejected::Missing),
            Error::NoApplicationProtocol => Self::Incompatible(Missing::Protocol),
            Error::PeerIncompatible(error) => Self::Incompatible(match error {
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::Tls13RequiredForQuic => Missing::Version,
                _ => Missing::Parameters,
            }),
            Error::InvalidMessage(InvalidMessage::UnknownProtocolVersion) => Self::NotTls,
            // A resolver that has no certificate for a hello says so in these words only.
            Error::General(ref words) if words == "no server certificate chain resolved" => Self::UnknownName,
            Error::FailedToGetCurrentTime
            | Error::FailedToGetRandomBytes
            | Error::General(_)
            | Error::EncryptError
            | Error::BadMaxFragmentSize
            | Error::InconsistentKeys(_)
            | Error::InvalidCertRevocationList(_)
            | Error::UnsupportedNameType
            | Error::Other(_) => Self::Ours,
            _ => Self::Protocol,
        }
    }
}

fn rejected(error: &CertificateError) -> Rejected {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Rejected::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Rejected::NotYetValid,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Rejected::WrongName,
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Rejected::Untrusted,
        CertificateError::Revoked
        | CertificateError::UnknownRevocationStatus
        | CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => Rejected::Revoked,
        _ => Rejected::Unusable,
    }
}

/// An alert by its name in RFC 8446 §6, or its number.
fn alert(description: AlertDescription) -> String {
    match description.as_str() {
        Some(name) => name.to_owned(),
        None => u8::from(description).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, Missing, Rejected, fault};
    use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};
    use std::io;

    #[test]
    fn what_the_library_says_becomes_a_name() {
        for (error, word) in [
            (Error::AlertReceived(AlertDescription::UnknownCA), "alert"),
            (Error::InvalidCertificate(CertificateError::Expired), "certificate_expired"),
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), "certificate_untrusted"),
            (Error::NoCertificatesPresented, "certificate_missing"),
            (Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled), "no_common_version"),
            (Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon), "no_common_parameters"),
            (Error::DecryptError, "protocol_error"),
            (Error::FailedToGetRandomBytes, "internal"),
        ] {
            assert_eq!(Fault::from(error.clone()).as_str(), word, "{error}");
        }
        assert_eq!(Fault::Incompatible(Missing::Protocol).as_str(), "no_common_protocol");
        assert_eq!(Fault::Certificate(Rejected::WrongName).to_string(), "the peer's certificate is for another name");
    }

    #[test]
    fn a_fault_comes_through_an_error_of_the_stream() {
        for of in [Fault::Truncated, Fault::Protocol, Fault::Alert(AlertDescription::BadRecordMac)] {
            assert_eq!(fault(&of.into_io()), of);
        }
        assert_eq!(fault(&io::ErrorKind::BrokenPipe.into()), Fault::Reset);
    }
}

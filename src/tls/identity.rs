//! Identity: who a client is by its certificate, and how a backend is told.
//!
//! It is worked out once for a connection, into lines that a request only has to copy. All of
//! them are visible ASCII characters, whatever the certificate holds: it can't add a line,
//! and what separates one name from the next stands there unescaped only between names.

use std::fmt::Write as _;

use data_encoding::{BASE64, HEXLOWER, HEXUPPER};
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use super::{crypto, facts};
use crate::config::ClientFields;

/// Longest value that is sent to a backend; whatever would be longer is left out.
const VALUE_MOST: usize = 8192;

/// What is known of the client of a connection by its handshake.
#[derive(Debug)]
pub struct Identity {
    /// The number of the policy that it was asked by.
    policy: u64,
    certificate: Option<Certificate>,
}

/// A certificate that was verified.
#[derive(Debug)]
struct Certificate {
    /// Until when it is valid, in seconds since 1970.
    until: i64,
    x_client_cert: Box<[u8]>,
    rfc9440: Box<[u8]>,
}

impl Identity {
    /// What a client has shown that was asked by the policy of this number: its own
    /// certificate, and then those that lead to its authority.
    pub(super) fn new(policy: u64, chain: &[CertificateDer<'_>]) -> Identity {
        Identity { policy, certificate: chain.split_first().and_then(|(own, rest)| Certificate::new(own, rest)) }
    }

    /// The number of the policy that it was asked by.
    pub(super) fn policy(&self) -> u64 {
        self.policy
    }

    /// Whether there is a certificate that is valid at `now`, in seconds since 1970. A
    /// connection, and a session that is resumed, may outlive it.
    #[must_use]
    pub fn is_certified(&self, now: i64) -> bool {
        self.certificate.as_ref().is_some_and(|certificate| now <= certificate.until)
    }

    /// What a backend is told, as lines of HTTP/1 with their ends, of one kind and the other.
    #[must_use]
    pub fn lines(&self, fields: ClientFields) -> [&[u8]; 2] {
        let Some(Certificate { x_client_cert, rfc9440, .. }) = &self.certificate else { return [&[], &[]] };
        match fields {
            ClientFields::XClientCert => [x_client_cert, &[]],
            ClientFields::Rfc9440 => [&[], rfc9440],
            ClientFields::Both => [x_client_cert, rfc9440],
            ClientFields::Off => [&[], &[]],
        }
    }
}

impl Certificate {
    fn new(own: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Option<Certificate> {
        let parsed = facts::parse(own).ok()?;
        let mut x_client_cert = String::new();
        field(&mut x_client_cert, "X-Client-Cert-Subject", &subject(parsed.subject()));
        field(&mut x_client_cert, "X-Client-Cert-San", &alternative_names(&parsed));
        field(&mut x_client_cert, "X-Client-Cert-Serial", &HEXUPPER.encode(parsed.raw_serial()));
        field(&mut x_client_cert, "X-Client-Cert-Fingerprint", &HEXLOWER.encode(&crypto::sha256(own)?));
        // Byte sequences of structured fields (RFC 9440 §2.1, RFC 8941 §3.3.5).
        let bytes = |der: &CertificateDer<'_>| format!(":{}:", BASE64.encode(der));
        let mut rfc9440 = String::new();
        field(&mut rfc9440, "Client-Cert", &bytes(own));
        field(&mut rfc9440, "Client-Cert-Chain", &rest.iter().map(bytes).collect::<Vec<_>>().join(", "));
        let until = parsed.validity().not_after.timestamp();
        let lines = |text: String| text.into_bytes().into_boxed_slice();
        Some(Certificate { until, x_client_cert: lines(x_client_cert), rfc9440: lines(rfc9440) })
    }
}

fn field(lines: &mut String, name: &str, value: &str) {
    if (1..=VALUE_MOST).contains(&value.len()) {
        // Writing into a string can't fail.
        let _ = write!(lines, "{name}: {value}\r\n");
    }
}

/// A distinguished name as a string: the last part first.
///
/// Source: RFC 4514 §2.
fn subject(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> =
        name.iter_rdn().map(|part| part.iter().map(attribute).collect::<Vec<_>>().join("+")).collect();
    parts.reverse();
    parts.join(",")
}

/// One attribute of a name: by its short name where RFC 4514 §3 has one.
fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let of = attribute.attr_type().to_id_string();
    let short = match of.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.6" => "C",
        "2.5.4.9" => "STREET",
        "0.9.2342.19200300.100.1.25" => "DC",
        "0.9.2342.19200300.100.1.1" => "UID",
        _ => "",
    };
    match attribute.as_str() {
        Ok(text) if !short.is_empty() => format!("{short}={}", escaped(text)),
        _ => {
            let value = attribute.attr_value();
            let of = if short.is_empty() { &of } else { short };
            // The value's encoding as it is, which has a short length or is left out.
            let length = u8::try_from(value.data.len()).ok().filter(|length| *length < 0x80);
            let head = length.map(|length| [u8::try_from(value.tag().0).unwrap_or(0), length]);
            let hex = head.map(|head| format!("{}{}", HEXUPPER.encode(&head), HEXUPPER.encode(value.data)));
            format!("{of}=#{}", hex.unwrap_or_default())
        }
    }
}

/// A value in which nothing can be mistaken.
///
/// Source: RFC 4514 §2.4; what is not visible ASCII is written in hexadecimal, which it allows.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        let edge = (at == 0 && matches!(byte, b' ' | b'#')) || (at == last && byte == b' ');
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => out.extend(['\\', char::from(byte)]),
            _ if edge => out.extend(['\\', char::from(byte)]),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "\\{byte:02X}");
            }
        }
    }
    out
}

/// The alternative names, each with its kind before it.
fn alternative_names(certificate: &X509Certificate<'_>) -> String {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(format!("DNS:{}", escaped(name))),
        GeneralName::RFC822Name(name) => Some(format!("email:{}", escaped(name))),
        GeneralName::URI(name) => Some(format!("URI:{}", escaped(name))),
        GeneralName::IPAddress(bytes) => Some(format!("IP:{}", facts::address(bytes)?)),
        GeneralName::DirectoryName(name) => Some(format!("dirName:{}", escaped(&subject(name)))),
        _ => None,
    });
    names.collect::<Vec<_>>().join(", ")
}

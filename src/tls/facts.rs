//! What a certificate says, in the words that an operator is told.

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

/// A day in seconds.
const DAY: i64 = 86_400;

/// What a certificate says. Times are in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The hosts that it is for, in lower case; `*.` stands for one label.
    pub names: Vec<String>,
    /// The addresses that it is for.
    pub addresses: Vec<IpAddr>,
    /// Whom it is for, as a distinguished name.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// Its serial number, big-endian.
    pub serial: Vec<u8>,
    /// From when on it is valid.
    pub not_before: i64,
    /// Until when.
    pub not_after: i64,
    /// Its key: `P-256`, `RSA 2048`.
    pub key: String,
}

impl Facts {
    /// Reads the certificate, or says in one clause why it can't be read.
    pub(super) fn of(der: &CertificateDer<'_>) -> Result<Facts, String> {
        let certificate = parse(der)?;
        let (mut names, mut addresses) = (Vec::new(), Vec::new());
        let alternative = certificate.subject_alternative_name();
        let alternative = alternative.map_err(|_| "is no sound certificate: its names can't be read".to_owned())?;
        for name in alternative.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => names.push(name.to_ascii_lowercase()),
                GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                _ => {}
            }
        }
        if alternative.is_none() {
            // Clients don't go by it any more, but some who know no better still issue it.
            let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
            names.extend(common.filter(|name| is_host(name)).map(str::to_ascii_lowercase));
        }
        Ok(Facts {
            names,
            addresses,
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            serial: certificate.raw_serial().to_vec(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            key: key(&certificate),
        })
    }

    /// Whether it is valid at `now`.
    #[must_use]
    pub fn is_valid(&self, now: i64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// Whole days that are left at `now`; negative once it has expired.
    #[must_use]
    pub fn days_left(&self, now: i64) -> i64 {
        (self.not_after - now).div_euclid(DAY)
    }

    /// Why it can't be used at `now`, in one clause, if it can't.
    #[must_use]
    pub fn invalid(&self, now: i64) -> Option<String> {
        if now > self.not_after {
            Some(format!("expired on {}", day(self.not_after)))
        } else if now < self.not_before {
            Some(format!("is not valid before {}", day(self.not_before)))
        } else {
            None
        }
    }

    /// All that it is for, for a line of text.
    #[must_use]
    pub fn covers(&self) -> String {
        let addresses = self.addresses.iter().map(ToString::to_string);
        let all: Vec<String> = self.names.iter().cloned().chain(addresses).collect();
        if all.is_empty() { self.subject.clone() } else { all.join(", ") }
    }
}

/// The certificate as such.
pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err("is no sound certificate".to_owned()),
    }
}

/// A day as `2026-11-25`, in UTC.
pub(super) fn day(seconds: i64) -> String {
    let day = std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let text = humantime::format_rfc3339_seconds(day).to_string();
    text.split('T').next().unwrap_or_default().to_owned()
}

/// An address as certificates have it.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

/// Whether a common name could be a host's.
fn is_host(name: &str) -> bool {
    name.contains('.') && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._*".contains(&byte))
}

/// The key of a certificate, in words.
fn key(certificate: &X509Certificate<'_>) -> String {
    let info = certificate.public_key();
    let algorithm = &info.algorithm.algorithm;
    if *algorithm == OID_PKCS1_RSAENCRYPTION {
        return match info.parsed() {
            Ok(PublicKey::RSA(key)) => format!("RSA {}", key.key_size()),
            _ => "RSA".to_owned(),
        };
    }
    // A point is a tag and two coordinates.
    let curve = match info.subject_public_key.data.len() {
        65 => "P-256",
        97 => "P-384",
        133 => "P-521",
        _ => "EC",
    };
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        curve.to_owned()
    } else if *algorithm == OID_SIG_ED25519 {
        "Ed25519".to_owned()
    } else {
        algorithm.to_id_string()
    }
}

//! What a PEM file holds, or why it holds not what it should: one clause for an operator.

use rustls::pki_types::pem::{Error, PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

/// Most certificates in one file: a chain has a handful.
const CHAIN_LIMIT: usize = 32;

/// The certificates of a chain in their order, at least one.
pub(super) fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = bundle(bytes)?;
    match certificates.len() {
        many if many > CHAIN_LIMIT => Err(format!("holds {many} certificates; a chain has {CHAIN_LIMIT} at most")),
        _ => Ok(certificates),
    }
}

/// The certificates of any number of holders, at least one.
pub(super) fn bundle(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = sections(bytes)?;
    let certificates: Vec<_> =
        found.into_iter().filter_map(|(kind, der)| CertificateDer::from_pem(kind, der)).collect();
    if certificates.is_empty() { Err("holds no certificate".to_owned()) } else { Ok(certificates) }
}

/// The revocation lists, at least one.
pub(super) fn revocation_lists(bytes: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let found = sections(bytes)?;
    let lists: Vec<_> =
        found.into_iter().filter_map(|(kind, der)| CertificateRevocationListDer::from_pem(kind, der)).collect();
    if lists.is_empty() { Err("holds no revocation list".to_owned()) } else { Ok(lists) }
}

/// The one private key.
pub(super) fn private_key(bytes: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let has = |text: &[u8]| memchr::memmem::find(bytes, text).is_some();
    if has(b"-----BEGIN ENCRYPTED PRIVATE KEY") || has(b"Proc-Type: 4,ENCRYPTED") {
        return Err("is encrypted, and nobody is there to be asked for a passphrase; \
                    an encrypted credential (`LoadCredentialEncrypted=`) protects a key at rest"
            .to_owned());
    }
    let found = sections(bytes)?;
    let mut keys: Vec<_> = found.into_iter().filter_map(|(kind, der)| PrivateKeyDer::from_pem(kind, der)).collect();
    match (keys.pop(), keys.len()) {
        (Some(key), 0) => Ok(key),
        (Some(_), more) => Err(format!("holds {} private keys", more + 1)),
        (None, _) => Err("holds no private key".to_owned()),
    }
}

fn sections(bytes: &[u8]) -> Result<Vec<(SectionKind, Vec<u8>)>, String> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err("is empty".to_owned());
    }
    if memchr::memmem::find(bytes, b"-----BEGIN ").is_none() {
        // The tag of a SEQUENCE, with which all of them begin.
        let der = bytes.first() == Some(&0x30);
        return Err(if der { "is DER, not PEM".to_owned() } else { "is not PEM".to_owned() });
    }
    <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes).collect::<Result<_, _>>().map_err(|error| match error {
        Error::MissingSectionEnd { .. } => "breaks off: a section of PEM does not end".to_owned(),
        Error::IllegalSectionStart { .. } => "is no sound PEM: a section does not begin as it should".to_owned(),
        Error::Base64Decode(_) => "is no sound PEM: a section is not base64".to_owned(),
        other => format!("is no sound PEM: {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_pem_is_named_for_what_it_is() {
        let section = |kind: &str, text: &str| format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n");
        let certificate = section("CERTIFICATE", "AAAA");
        let key = section("PRIVATE KEY", "AAAA");
        for (text, says) in [
            ("", "is empty"),
            (" \n", "is empty"),
            ("hello", "is not PEM"),
            ("0\u{1}", "is DER, not PEM"),
            (&key, "holds no certificate"),
            (&section("TRUSTED CERTIFICATE", "AAAA"), "holds no certificate"),
            ("-----BEGIN CERTIFICATE-----\nAAAA", "breaks off: a section of PEM does not end"),
            ("-----BEGIN CERTIFICATE--\n", "is no sound PEM: a section does not begin as it should"),
            (&section("CERTIFICATE", "A?=="), "is no sound PEM: a section is not base64"),
            (&certificate.repeat(33), "holds 33 certificates; a chain has 32 at most"),
        ] {
            assert_eq!(certificates(text.as_bytes()).unwrap_err(), says, "{text}");
        }
        assert_eq!(certificates(format!("# mine\n{certificate}{key}{certificate}").as_bytes()).unwrap().len(), 2);
        assert!(private_key(format!("{}{key}", section("EC PARAMETERS", "AAAA")).as_bytes()).is_ok());
        for (text, says) in [
            (certificate, "holds no private key"),
            (key.repeat(2), "holds 2 private keys"),
            (section("ENCRYPTED PRIVATE KEY", "AAAA"), "is encrypted"),
            (section("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\n\nAAAA"), "is encrypted"),
        ] {
            let said = private_key(text.as_bytes()).unwrap_err();
            assert!(said.starts_with(says), "{said}");
        }
    }
}

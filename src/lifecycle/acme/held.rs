//! Held: a certificate that was obtained, with all that is gone by.

use std::hash::{Hash as _, Hasher as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use instant_acme::CertificateIdentifier;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::schedule::Life;
use crate::tls::{self, Pair};

/// A certificate for one name, its key, and when it is valid.
#[derive(Debug, Clone)]
pub struct Held {
    /// As TLS clients are shown it.
    pub pair: Arc<Pair>,
    /// The certificate itself.
    pub certificate: CertificateDer<'static>,
    /// When it is valid.
    pub life: Life,
}

impl Held {
    /// Reads what `file` keeps for `name`: a private key and certificates in PEM.
    ///
    /// # Errors
    /// Why they can't serve: no PEM, a key that is not the certificate's, another name.
    pub fn read(name: &str, pem: &[u8], file: &Path) -> Result<Held, String> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("the certificate is no PEM: {error}"))?;
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| format!("the key is no PEM: {error}"))?;
        let Some(certificate) = chain.first().cloned() else { return Err("there is no certificate".to_owned()) };
        let certified = CertifiedKey::from_der(chain, key, &tls::provider())
            .map_err(|error| format!("certificate and key don't fit: {error}"))?;
        let pair = Pair::obtained(certified, file)?;
        if !pair.facts.names.iter().any(|known| known == name) {
            return Err(format!("the certificate is not for {name}"));
        }
        let life = life(pair.facts.not_before, pair.facts.not_after)?;
        Ok(Held { pair: Arc::new(pair), certificate, life })
    }

    /// What the server knows the certificate by, where it has such a thing.
    ///
    /// Source: RFC 9773 §4.1.
    pub fn identifier(&self) -> Option<CertificateIdentifier<'static>> {
        let identifier = CertificateIdentifier::try_from(&self.certificate).ok()?;
        Some(identifier.into_owned())
    }

    /// A part of one that is this certificate's own, and always the same.
    pub fn spread(&self) -> f64 {
        let mut hasher = rustc_hash::FxHasher::default();
        self.certificate.as_ref().hash(&mut hasher);
        (hasher.finish() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// From the one second to the other, both after 1970.
fn life(not_before: i64, not_after: i64) -> Result<Life, String> {
    // Years that a certificate may have and a clock may not.
    const FARTHEST: u64 = 400 * 366 * 86_400;
    let time = |seconds: i64| match u64::try_from(seconds).unwrap_or(0) {
        seconds if seconds > FARTHEST => Err("the certificate ends in a distant future".to_owned()),
        seconds => Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
    };
    Ok(Life { not_before: time(not_before)?, not_after: time(not_after)? })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    /// A key and a self-signed certificate in PEM, valid from `from` to `to` after 1970.
    pub(in crate::lifecycle::acme) fn pem(name: &str, from: Duration, to: Duration) -> String {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = (SystemTime::UNIX_EPOCH + from).into();
        params.not_after = (SystemTime::UNIX_EPOCH + to).into();
        let certificate = params.self_signed(&key).unwrap();
        format!("{}{}", key.serialize_pem(), certificate.pem())
    }

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_pair_is_read_with_its_life() {
        let held = Held::read("a.test", pem("a.test", DAY * 20_000, DAY * 20_090).as_bytes(), Path::new("/a")).unwrap();
        assert_eq!(held.life.not_after, SystemTime::UNIX_EPOCH + DAY * 20_090);
        assert_eq!(held.life.renewal(0.0), SystemTime::UNIX_EPOCH + DAY * 20_060);
        assert!((0.0..1.0).contains(&held.spread()));
        assert_eq!(held.spread(), held.clone().spread());
    }

    #[test]
    fn what_can_not_serve_is_told_apart() {
        let (one, two) = (pem("a.test", DAY, DAY * 2), pem("a.test", DAY, DAY * 2));
        let certificate = |pem: &str| pem[pem.find("-----BEGIN CERT").unwrap()..].to_owned();
        let key = |pem: &str| pem[..pem.find("-----BEGIN CERT").unwrap()].to_owned();
        for (pem, why) in [
            (certificate(&one), "the key is no PEM"),
            (key(&one), "there is no certificate"),
            (format!("{}{}", key(&one), certificate(&two)), "certificate and key don't fit"),
            (pem("b.test", DAY, DAY * 2), "the certificate is not for a.test"),
            (pem("a.test", DAY, DAY * 500_000), "distant future"),
            (String::new(), "the key is no PEM"),
        ] {
            let error = Held::read("a.test", pem.as_bytes(), Path::new("/a")).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}

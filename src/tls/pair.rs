//! A certificate with its key: read, checked, and ready for use.
//!
//! What is wrong is found here and not by the first client: a pair either fits together or
//! is refused with a clause that names the file. Only time is no fault of a pair: whoever
//! loads it decides what an expired one is good for.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use x509_parser::certificate::X509Certificate;

use super::facts::{self, Facts};
use super::{crypto, ocsp, pem};
use crate::config;

/// Reading and writing by others than owner and group.
const READ_BY_OTHERS: u32 = 0o004;
const WRITTEN_BY_OTHERS: u32 = 0o002;

/// A certificate, those that lead to its root, and its key.
#[derive(Debug)]
pub struct Pair {
    /// The file of the certificate.
    pub certificate: PathBuf,
    /// The file of the key; the same one where it holds both.
    pub key: PathBuf,
    /// What the certificate says.
    pub facts: Facts,
    /// The subjects of the certificates that follow it, in their order.
    pub chain: Vec<String>,
    /// Until when its OCSP response is sent along, in seconds since 1970.
    pub stapled_until: Option<i64>,
    pub(super) certified: Arc<CertifiedKey>,
}

/// Why two files are no pair.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The file at fault.
    pub(super) file: PathBuf,
    /// Why, in one clause.
    pub(super) why: String,
}

impl Pair {
    /// Reads a pair at `now`, in seconds since 1970. What deserves a look goes to `warn`.
    pub(super) fn read(
        certificate: &Path,
        key: &Path,
        now: i64,
        mut warn: impl FnMut(&Path, String),
    ) -> Result<Pair, Fault> {
        let fault = |file: &Path| {
            let file = file.to_path_buf();
            move |why| Fault { file, why }
        };
        let bytes = read(certificate).map_err(fault(certificate))?;
        let chain = pem::certificates(&bytes).map_err(fault(certificate))?;
        let secret = if key == certificate { bytes } else { read(key).map_err(fault(key))? };
        let secret = pem::private_key(&secret).map_err(fault(key))?;
        if let Some(warning) = seen_by_others(key).map_err(fault(key))? {
            warn(key, warning);
        }
        let certified =
            certify(chain, secret).map_err(|(of_key, why)| fault(if of_key { key } else { certificate })(why))?;
        let mut pair = Pair::of(certified).map_err(fault(certificate))?;
        (pair.certificate, pair.key) = (certificate.to_path_buf(), key.to_path_buf());
        pair.staple(now, warn);
        Ok(pair)
    }

    /// A pair that was obtained, and is kept in `file`, key and all.
    ///
    /// # Errors
    /// The certificate can't be read; why, in one clause.
    pub fn obtained(certified: CertifiedKey, file: &Path) -> Result<Pair, String> {
        let pair = Pair::of(certified)?;
        Ok(Pair { certificate: file.to_path_buf(), key: file.to_path_buf(), ..pair })
    }

    fn of(certified: CertifiedKey) -> Result<Pair, String> {
        let (first, rest) = certified.cert.split_first().ok_or("holds no certificate")?;
        let chain =
            rest.iter().map(|one| Ok(facts::parse(one)?.subject().to_string())).collect::<Result<_, String>>()?;
        let facts = Facts::of(first)?;
        let certified = Arc::new(certified);
        Ok(Pair { certificate: PathBuf::new(), key: PathBuf::new(), facts, chain, stapled_until: None, certified })
    }

    /// Sends the OCSP response along that lies beside the certificate, if it is any good.
    fn staple(&mut self, now: i64, mut warn: impl FnMut(&Path, String)) {
        let beside = self.certificate.with_extension("ocsp");
        if !beside.is_file() {
            return;
        }
        let response = match read(&beside) {
            Ok(response) => response,
            Err(why) => return warn(&beside, why),
        };
        match ocsp::good_until(&response, &self.facts.serial, now) {
            Ok(until) => {
                self.stapled_until = Some(until);
                let stapled = CertifiedKey { ocsp: Some(response), ..(*self.certified).clone() };
                self.certified = Arc::new(stapled);
            }
            Err(why) => warn(&beside, format!("{why}, so it is not sent along")),
        }
    }

    /// Whether it is in these files.
    pub(super) fn is_of(&self, certificate: &Path, key: &Path) -> bool {
        self.certificate == certificate && self.key == key
    }

    /// Whether clients see the same of both.
    pub(super) fn same(&self, other: &Pair) -> bool {
        self.certified.cert == other.certified.cert && self.certified.ocsp == other.certified.ocsp
    }

    /// The moments at which time changes what it is good for, in seconds since 1970.
    pub(super) fn turns(&self) -> impl Iterator<Item = i64> {
        let (from, until) = (self.facts.not_before, self.facts.not_after);
        [from, until].into_iter().chain(self.stapled_until).map(|last| last.saturating_add(1))
    }

    /// Whether its signatures cost a hundred times those of elliptic curves.
    pub(super) fn is_rsa(&self) -> bool {
        self.certified.key.algorithm() == SignatureAlgorithm::RSA
    }

    /// Whether a client takes what the key signs.
    pub(super) fn signs_for(&self, offered: &[SignatureScheme]) -> bool {
        self.certified.key.choose_scheme(offered).is_some()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    config::read(path).map_err(|error| format!("can't be read: {}", config::reason(&error)))
}

/// Whether others than owner and group reach a key.
///
/// One that they could write is none: they choose it. One that they can read is told of and
/// used all the same. A refusal would stop a service whose key was exposed before and stays
/// so, and containers mount secrets that everybody inside may read.
fn seen_by_others(path: &Path) -> Result<Option<String>, String> {
    let mode = std::fs::metadata(path).map_err(|error| format!("can't be read: {}", config::reason(&error)))?.mode();
    if mode & WRITTEN_BY_OTHERS != 0 {
        return Err(format!(
            "can be written by everybody (mode {:04o}); `chmod o-rwx` it, and get a new key",
            mode & 0o7777
        ));
    }
    let open = mode & READ_BY_OTHERS != 0;
    Ok(open.then(|| format!("can be read by everybody (mode {:04o}); `chmod o-r` it", mode & 0o7777)))
}

/// Puts a chain and a key together. An error says whether it is one of the key.
fn certify(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<CertifiedKey, (bool, String)> {
    let key: Arc<dyn SigningKey> = crypto::provider().key_provider.load_private_key(key).map_err(|_| {
        let usable = "RSA from 2048 bits on, P-256, P-384, P-521 and Ed25519 can";
        (true, format!("holds a key that can't be used; {usable}"))
    })?;
    let parsed: Vec<_> = chain.iter().map(facts::parse).collect::<Result<_, _>>().map_err(|why| (false, why))?;
    let public = key.public_key();
    let fits = |certificate: &X509Certificate<'_>| {
        public.as_ref().is_none_or(|public| public.as_ref() == certificate.public_key().raw)
    };
    match parsed.iter().position(fits) {
        Some(0) => {}
        Some(place) => {
            let why = format!(
                "is in the wrong order: the certificate of the key comes first, and it is number {}",
                place + 1
            );
            return Err((false, why));
        }
        None => {
            let whose = parsed.first().map_or_else(String::new, |first| first.subject().to_string());
            return Err((true, format!("is not the key of the certificate ({whose})")));
        }
    }
    follow(&parsed).map_err(|why| (false, why))?;
    drop(parsed);
    Ok(CertifiedKey::new(chain, key))
}

/// Each certificate must be signed by the one after it.
fn follow(chain: &[X509Certificate<'_>]) -> Result<(), String> {
    let signs =
        |above: &X509Certificate<'_>, below: &X509Certificate<'_>| above.subject().as_raw() == below.issuer().as_raw();
    for (index, pair) in chain.windows(2).enumerate() {
        let [below, above] = pair else { continue };
        if signs(above, below) {
            continue;
        }
        let (number, subject) = (index + 2, above.subject());
        return Err(match chain.iter().skip(1).position(|other| signs(other, below)) {
            Some(place) if place + 1 != index => format!(
                "is in the wrong order: certificate {} ({}) signed certificate {}, and belongs after it",
                place + 2,
                below.issuer(),
                index + 1
            ),
            _ => format!(
                "holds a certificate that does not belong: number {number} ({subject}) did not sign the one before it, {} did",
                below.issuer()
            ),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Authority, Folder, NOW, Wish};
    use super::super::ocsp;
    use super::*;

    fn read(folder: &Folder, certificate: &str, key: &str) -> Result<(Pair, Vec<String>), String> {
        let mut told = Vec::new();
        let warn = |file: &Path, why: String| told.push(folder.plain(&format!("{} {why}", file.display())));
        let pair = Pair::read(&folder.path(certificate), &folder.path(key), NOW, warn);
        let pair = pair.map_err(|Fault { file, why }| folder.plain(&format!("{} {why}", file.display())))?;
        Ok((pair, told))
    }

    #[test]
    fn what_is_wrong_with_a_pair_is_said_of_the_file_at_fault() {
        let (folder, root) = (Folder::new(), Authority::new("root"));
        let middle = root.below("middle");
        let (leaf, key) = Wish::of(&["a.test"]).by(&middle);
        let (other, other_key) = Wish::of(&["b.test"]).by(&root);
        folder.write("leaf.pem", &leaf);
        folder.write("key.pem", &key);
        folder.write("other.key", &other_key);
        folder.write("empty", "");
        folder.write("chain.pem", [&*leaf, &middle.pem, &root.pem].concat());
        folder.write("upside.pem", [&*middle.pem, &leaf].concat());
        folder.write("mixed.pem", [&*leaf, &root.pem, &middle.pem].concat());
        folder.write("alien.pem", [&*leaf, &middle.pem, &other].concat());
        folder.write("no.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        folder.write("no.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
        folder.write("both.pem", [&*key, &leaf].concat());
        for (certificate, key, says) in [
            ("none.pem", "key.pem", "none.pem can't be read: no such file"),
            ("leaf.pem", "none.pem", "none.pem can't be read: no such file"),
            ("empty", "key.pem", "empty is empty"),
            ("leaf.pem", "empty", "empty is empty"),
            ("key.pem", "key.pem", "key.pem holds no certificate"),
            ("leaf.pem", "leaf.pem", "leaf.pem holds no private key"),
            ("leaf.pem", "other.key", "other.key is not the key of the certificate (CN=leaf of middle)"),
            (
                "upside.pem",
                "key.pem",
                "upside.pem is in the wrong order: the certificate of the key comes first, and it is number 2",
            ),
            (
                "mixed.pem",
                "key.pem",
                "mixed.pem is in the wrong order: certificate 3 (CN=middle) signed certificate 1, and belongs after it",
            ),
            (
                "alien.pem",
                "key.pem",
                "alien.pem holds a certificate that does not belong: number 3 (CN=leaf of root) did not sign the one \
                 before it, CN=root did",
            ),
            ("no.pem", "key.pem", "no.pem is no sound certificate"),
            (
                "leaf.pem",
                "no.key",
                "no.key holds a key that can't be used; RSA from 2048 bits on, P-256, P-384, P-521 and Ed25519 can",
            ),
        ] {
            assert_eq!(read(&folder, certificate, key).map(drop), Err(says.to_owned()));
        }
        for (certificate, key, chain) in
            [("chain.pem", "key.pem", &["CN=middle", "CN=root"][..]), ("both.pem", "both.pem", &[])]
        {
            let (pair, told) = read(&folder, certificate, key).unwrap();
            assert_eq!((&*pair.chain, told), (&*chain.iter().map(ToString::to_string).collect::<Vec<_>>(), vec![]));
            assert_eq!(pair.facts.names, ["a.test"]);
        }
    }

    #[test]
    fn a_key_that_everybody_reads_is_told_of_and_one_that_everybody_writes_is_none() {
        let (folder, root) = (Folder::new(), Authority::new("root"));
        folder.pair("a", &Wish::of(&["a.test"]).by(&root));
        folder.mode("a.crt", 0o644);
        assert_eq!(read(&folder, "a.crt", "a.key").unwrap().1, [""; 0]);
        folder.mode("a.key", 0o644);
        let told = read(&folder, "a.crt", "a.key").unwrap().1;
        assert_eq!(told, ["a.key can be read by everybody (mode 0644); `chmod o-r` it"]);
        folder.mode("a.key", 0o662);
        let refused = read(&folder, "a.crt", "a.key").map(drop);
        let says = "a.key can be written by everybody (mode 0662); `chmod o-rwx` it, and get a new key";
        assert_eq!(refused, Err(says.to_owned()));
    }

    #[test]
    fn keys_are_read_in_each_of_their_encodings() {
        let (folder, root) = (Folder::new(), Authority::new("root"));
        for (name, kind, shown) in [
            ("RSA", &rcgen::PKCS_RSA_SHA256, "RSA 2048"),
            ("EC", &rcgen::PKCS_ECDSA_P256_SHA256, "P-256"),
            ("EC", &rcgen::PKCS_ECDSA_P384_SHA384, "P-384"),
        ] {
            let (leaf, key) = Wish { key: kind, ..Wish::of(&["a.test"]) }.by(&root);
            folder.pair("a", &(leaf.clone(), key.clone()));
            assert_eq!(read(&folder, "a.crt", "a.key").unwrap().0.facts.key, shown);
            // PKCS#8 wraps what PKCS#1 and SEC 1 call a private key.
            let PrivateKeyDer::Pkcs8(whole) = pem::private_key(key.as_bytes()).unwrap() else { panic!() };
            let inner = ocsp::tests::wrapped_key(whole.secret_pkcs8_der());
            let lines: Vec<String> = data_encoding::BASE64
                .encode(&inner)
                .as_bytes()
                .chunks(64)
                .map(|line| String::from_utf8(line.to_vec()).unwrap())
                .collect();
            let pem =
                format!("-----BEGIN {name} PRIVATE KEY-----\n{}\n-----END {name} PRIVATE KEY-----\n", lines.join("\n"));
            folder.pair("b", &(leaf, pem));
            assert_eq!(read(&folder, "b.crt", "b.key").unwrap().0.facts.key, shown);
        }
    }
}

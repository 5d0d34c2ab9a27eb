//! Challenges: what an ACME server has to be shown while an order is under way.
//!
//! Control publishes an answer before it asks to be checked, and takes it back when the
//! order ends, however it ends: dropping [`Published`] is that. Workers look here before
//! they route a request, and before they choose a certificate. Nothing is published for
//! nearly all of the time, and a look then costs one relaxed load.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::crypto;

/// Where a server looks for the answer to a token.
///
/// Source: RFC 8555 §8.3.
const WELL_KNOWN: &[u8] = b"/.well-known/acme-challenge/";

/// The protocol of a handshake that only shows a certificate.
///
/// Source: RFC 8737 §6.2.
pub const ACME_TLS: &[u8] = b"acme-tls/1";

/// Answers that can be published together: one order at a time has one.
const LIMIT: usize = 16;

/// The answers that are published now.
#[derive(Default)]
pub struct Challenges {
    /// How many there are in all.
    count: AtomicUsize,
    answers: RwLock<Answers>,
}

#[derive(Default)]
struct Answers {
    /// By token: the key authorization.
    tokens: HashMap<Box<str>, Arc<str>>,
    /// By name.
    handshakes: HashMap<Box<str>, Arc<ServerConfig>>,
}

impl fmt::Debug for Challenges {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the answers: until they are checked, they are nobody else's business.
        out.debug_struct("Challenges").field("count", &self.count).finish_non_exhaustive()
    }
}

/// Why an answer can't be published.
#[derive(Debug, thiserror::Error)]
pub enum Unpublished {
    /// The certificate that shows it can't be made.
    #[error("the certificate of the challenge can't be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// It can't be served.
    #[error("the certificate of the challenge can't be served: {0}")]
    Tls(#[from] rustls::Error),
    /// There are too many already.
    #[error("more than {LIMIT} challenges at once")]
    TooMany,
}

/// An answer; it is taken back when this is dropped.
#[derive(Debug)]
pub struct Published {
    challenges: Arc<Challenges>,
    what: What,
}

#[derive(Debug)]
enum What {
    Token(Box<str>),
    Handshake(Box<str>),
}

impl Challenges {
    /// Whether there are any.
    #[inline]
    #[must_use]
    pub fn any(&self) -> bool {
        // What it guards is behind a lock of its own. A worker sees the change long before
        // a server that was told of it afterwards, over the network, can have connected.
        self.count.load(Ordering::Relaxed) > 0
    }

    /// The body that a request for `path` is answered with, if it is for a token that is
    /// published.
    #[must_use]
    pub fn response(&self, path: &[u8]) -> Option<Arc<str>> {
        let token = std::str::from_utf8(path.strip_prefix(WELL_KNOWN)?).ok()?;
        let answers = self.answers.read().unwrap_or_else(PoisonError::into_inner);
        answers.tokens.get(token).cloned()
    }

    /// How a handshake for [`ACME_TLS`] and this name is answered, if that is published.
    #[must_use]
    pub fn handshake(&self, name: &str) -> Option<Arc<ServerConfig>> {
        if !self.any() {
            return None;
        }
        let answers = self.answers.read().unwrap_or_else(PoisonError::into_inner);
        answers.handshakes.get(&*name.to_ascii_lowercase()).cloned()
    }

    /// Has requests for `token` answered with its key authorization: the challenge http-01.
    ///
    /// # Errors
    /// [`Unpublished::TooMany`].
    pub fn publish_token(self: &Arc<Self>, token: &str, authorization: &str) -> Result<Published, Unpublished> {
        self.publish(What::Token(token.into()), |answers| {
            answers.tokens.insert(token.into(), authorization.into());
        })
    }

    /// Has handshakes for `name` show the digest of a key authorization: the challenge
    /// tls-alpn-01.
    ///
    /// # Errors
    /// Any [`Unpublished`].
    pub fn publish_handshake(self: &Arc<Self>, name: &str, digest: &[u8; 32]) -> Result<Published, Unpublished> {
        let config = Arc::new(handshake(name, digest)?);
        self.publish(What::Handshake(name.into()), |answers| {
            answers.handshakes.insert(name.into(), config);
        })
    }

    fn publish(self: &Arc<Self>, what: What, insert: impl FnOnce(&mut Answers)) -> Result<Published, Unpublished> {
        let mut answers = self.answers.write().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= LIMIT {
            return Err(Unpublished::TooMany);
        }
        insert(&mut answers);
        self.count.store(answers.len(), Ordering::Relaxed);
        drop(answers);
        Ok(Published { challenges: Arc::clone(self), what })
    }
}

impl Answers {
    fn len(&self) -> usize {
        self.tokens.len() + self.handshakes.len()
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        let mut answers = self.challenges.answers.write().unwrap_or_else(PoisonError::into_inner);
        match &self.what {
            What::Token(token) => drop(answers.tokens.remove(token)),
            What::Handshake(name) => drop(answers.handshakes.remove(name)),
        }
        self.challenges.count.store(answers.len(), Ordering::Relaxed);
    }
}

/// A server that negotiates nothing but [`ACME_TLS`] and shows `digest`.
///
/// Source: RFC 8737 §3.
fn handshake(name: &str, digest: &[u8; 32]) -> Result<ServerConfig, Unpublished> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key)?;
    let provider = crypto::provider();
    let key = provider.key_provider.load_private_key(PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
    // Not checked for being a certificate that clients could take: its extension is one that
    // nobody else knows, and critical.
    let certified = CertifiedKey::new(vec![certificate.der().clone()], key);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    // There is nothing to resume.
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::server::Acceptor;
    use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};

    /// Looks at nothing: the extension is one that only an ACME server knows.
    #[derive(Debug)]
    struct Unmoved;

    impl ServerCertVerifier for Unmoved {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    }

    /// What a client that asks for `name` is shown.
    fn shown(challenges: &Challenges, name: &str) -> Option<Vec<u8>> {
        let config = ClientConfig::builder_with_provider(crypto::provider()).with_safe_default_protocol_versions();
        let config = config.unwrap().dangerous().with_custom_certificate_verifier(Arc::new(Unmoved));
        let mut config = config.with_no_client_auth();
        config.alpn_protocols = vec![ACME_TLS.to_vec()];
        let mut client = ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
        let (mut up, mut down) = (Vec::new(), Vec::new());
        client.write_tls(&mut up).unwrap();
        let mut acceptor = Acceptor::default();
        acceptor.read_tls(&mut up.as_slice()).unwrap();
        let accepted = acceptor.accept().ok().flatten().unwrap();
        let config = challenges.handshake(accepted.client_hello().server_name().unwrap())?;
        let mut server = accepted.into_connection(config).map_err(|(error, _)| error).unwrap();
        server.write_tls(&mut down).unwrap();
        client.read_tls(&mut down.as_slice()).unwrap();
        client.process_new_packets().unwrap();
        assert_eq!(client.alpn_protocol(), Some(ACME_TLS));
        Some(client.peer_certificates().unwrap()[0].to_vec())
    }

    #[test]
    fn a_handshake_shows_the_digest_for_its_name() {
        let challenges = Arc::new(Challenges::default());
        assert_eq!(shown(&challenges, "a.test"), None);
        let published = challenges.publish_handshake("a.test", &[0xa5; 32]).unwrap();
        let certificate = shown(&challenges, "A.test").unwrap();
        // OCTET STRING in the value of id-pe-acmeIdentifier, which is critical (RFC 8737 §3).
        let extension = [&b"\x2b\x06\x01\x05\x05\x07\x01\x1f\x01\x01\xff\x04\x22\x04\x20"[..], &[0xa5; 32]].concat();
        assert!(certificate.windows(extension.len()).any(|window| window == extension));
        assert_eq!(shown(&challenges, "b.test"), None);
        drop(published);
        assert_eq!(shown(&challenges, "a.test"), None);
    }

    #[test]
    fn an_answer_is_there_until_it_is_taken_back() {
        let challenges = Arc::new(Challenges::default());
        assert!(!challenges.any());
        let token = challenges.publish_token("tok", "tok.thumb").unwrap();
        let handshake = challenges.publish_handshake("a.test", &[7; 32]).unwrap();
        assert!(challenges.any());
        let response = |path: &[u8]| challenges.response(path);
        assert_eq!(response(b"/.well-known/acme-challenge/tok").as_deref(), Some("tok.thumb"));
        for path in [&b"/.well-known/acme-challenge/tok/"[..], b"/.well-known/acme-challenge/", b"/tok", b"tok"] {
            assert_eq!(response(path), None);
        }
        drop(token);
        assert!(challenges.any() && response(b"/.well-known/acme-challenge/tok").is_none());
        drop(handshake);
        assert!(!challenges.any());
    }

    #[test]
    fn there_are_never_more_than_so_many() {
        let challenges = Arc::new(Challenges::default());
        let publish = |index: usize| challenges.publish_token(&index.to_string(), "x");
        let mut published: Vec<Published> = (0..LIMIT).map(|index| publish(index).unwrap()).collect();
        assert!(matches!(publish(LIMIT), Err(Unpublished::TooMany)));
        published.pop();
        assert!(publish(LIMIT).is_ok());
    }
}

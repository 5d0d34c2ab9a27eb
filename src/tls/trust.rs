//! Trust: by whom `https://` backends are verified, and the client's side of TLS that does so.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::pair::Pair;
use super::{crypto, pem};
use crate::config;

/// What is spoken inside, where that is HTTP.
///
/// Source: RFC 7301 §6.
pub(super) const HTTP1: &[u8] = b"http/1.1";

/// Who vouches for backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trust {
    /// These certificates' owners.
    Authorities(Authorities),
    /// Nobody.
    Anybody,
}

pub(super) type Authorities = Arc<[CertificateDer<'static>]>;

/// The certificates of a file, or what is wrong with it.
pub(super) fn in_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = config::read(path).map_err(|error| format!("can't be read: {}", config::reason(&error)))?;
    let certificates = pem::bundle(&bytes)?;
    match certificates.iter().position(|certificate| !is_usable(certificate)) {
        Some(place) => Err(format!("holds a certificate that can't be used: number {}", place + 1)),
        None => Ok(certificates),
    }
}

/// Those whom the host trusts.
pub(super) fn of_host() -> Result<Vec<CertificateDer<'static>>, String> {
    let found = rustls_native_certs::load_native_certs();
    // A host may have some that nobody can use; they are nobody's authorities then.
    let certificates: Vec<_> = found.certs.into_iter().filter(is_usable).collect();
    if !certificates.is_empty() {
        return Ok(certificates);
    }
    let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
    Err(format!(
        "this host trusts no authority that could vouch for backends{why}; install the package ca-certificates, or name \
         a file as `BACKEND_TLS_CA`"
    ))
}

fn is_usable(certificate: &CertificateDer<'static>) -> bool {
    RootCertStore::empty().add(certificate.clone()).is_ok()
}

/// A client's side of TLS: by whom backends are verified, who it is, and whether HTTP is spoken.
///
/// # Errors
/// rustls takes no such authorities, or lacks what is asked of it.
pub(super) fn assemble(trust: &Trust, identity: Option<&Pair>, http: bool) -> Result<ClientConfig, Error> {
    let provider = crypto::provider();
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[&TLS13, &TLS12])?;
    let builder = match trust {
        Trust::Authorities(certificates) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates.iter().cloned());
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_webpki_verifier(verifier.map_err(|error| Error::General(error.to_string()))?)
        }
        Trust::Anybody => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
    };
    let mut config = match identity {
        Some(pair) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&pair.certified)))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = http.then(|| HTTP1.to_vec()).into_iter().collect();
    // Each endpoint remembers its own.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Takes any certificate, but not one whose key the server does not have.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

//! Suites and groups: what all of doorward's TLS has in common.

use std::sync::{Arc, LazyLock};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::cipher_suite::{
    TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, TLS13_AES_128_GCM_SHA256,
    TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::version::{TLS12, TLS13};

/// TLS 1.3, and of TLS 1.2 the suites with forward secrecy and authenticated encryption.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    // What is recorded today must withstand the quantum computer of the future, so the
    // hybrid group comes first.
    let kx_groups = vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1];
    // All of them are good for decades, so the cheapest comes first: SHA-384 alone is a tenth
    // of a handshake.
    let cipher_suites = vec![
        TLS13_AES_128_GCM_SHA256,
        TLS13_AES_256_GCM_SHA384,
        TLS13_CHACHA20_POLY1305_SHA256,
        TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(CryptoProvider { kx_groups, cipher_suites, ..default_provider() })
});

/// The cryptography of all TLS, towards clients and backends.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}

/// The digest of a certificate that it is known by.
pub(super) fn sha256(bytes: &[u8]) -> Option<Vec<u8>> {
    let suite = TLS13_AES_128_GCM_SHA256.tls13()?;
    Some(suite.common.hash_provider.hash(bytes).as_ref().to_vec())
}

/// A server's side of TLS.
///
/// # Errors
/// The provider lacks what is asked of it: a fault in doorward.
pub(super) fn server(
    verifier: Arc<dyn ClientCertVerifier>,
    certificates: Arc<dyn ResolvesServerCert>,
    ticketer: Arc<dyn ProducesTickets>,
) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13, &TLS12])?;
    let mut config = builder.with_client_cert_verifier(verifier).with_cert_resolver(certificates);
    config.ticketer = ticketer;
    // Clients put first what is dearest for both, or what they happen to be built with.
    config.ignore_client_order = true;
    // A session is kept by its client alone, in a ticket: no memory, no lock, no limit of ours.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

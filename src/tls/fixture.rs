//! Certificates made for tests, and clients that meet [`Doors`] in memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::Acceptor;
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, ConfigBuilder, DigitallySignedStruct, HandshakeKind,
    ServerConnection, SignatureScheme, SupportedProtocolVersion, WantsVerifier,
};

use super::{Doors, TicketKeys, crypto, tickets};
use crate::config::{Config, Mode, Text};

/// 2026-11-25, on which all tests of certificates take place.
pub(super) const NOW: i64 = 1_795_564_800;

/// Keys of tickets, as a daemon has them that was just started.
pub(super) fn keys() -> Arc<TicketKeys> {
    let keys = TicketKeys::default();
    keys.rotate(tickets::now()).unwrap();
    Arc::new(keys)
}

/// A certificate authority.
pub(super) struct Authority {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(super) pem: String,
    name: String,
}

impl Authority {
    pub(super) fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = Default::default();
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem, name: name.to_owned() }
    }

    /// Another one that this one signs.
    pub(super) fn below(&self, name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = Default::default();
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem, name: name.to_owned() }
    }

    /// A list of certificates that it has revoked.
    pub(super) fn revoke(&self, serials: &[u64]) -> String {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2026, 2, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// A certificate to be.
pub(super) struct Wish<'a> {
    pub(super) names: &'a [&'a str],
    pub(super) key: &'static rcgen::SignatureAlgorithm,
    pub(super) from: i32,
    pub(super) until: i32,
    pub(super) serial: u64,
}

impl<'a> Wish<'a> {
    pub(super) fn of(names: &'a [&'a str]) -> Wish<'a> {
        Wish { names, key: &rcgen::PKCS_ECDSA_P256_SHA256, from: 2026, until: 2028, serial: 7 }
    }

    /// The certificate and its key, both in PEM.
    pub(super) fn by(&self, authority: &Authority) -> (String, String) {
        let key = KeyPair::generate_for(self.key).unwrap();
        let names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = Default::default();
        params.distinguished_name.push(DnType::CommonName, format!("leaf of {}", authority.name));
        params.serial_number = Some(SerialNumber::from(self.serial));
        params.not_before = date_time_ymd(self.from, 1, 1);
        params.not_after = date_time_ymd(self.until, 1, 1);
        (params.signed_by(&key, &authority.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// A folder with files.
pub(super) struct Folder(tempfile::TempDir);

impl Folder {
    pub(super) fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file that owner and group may read, and returns its path.
    pub(super) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        self.mode(name, 0o640);
        path.display().to_string()
    }

    pub(super) fn mode(&self, name: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Writes a pair as `NAME.crt` and `NAME.key`.
    pub(super) fn pair(&self, name: &str, (certificate, key): &(String, String)) {
        self.write(&format!("{name}.crt"), certificate);
        self.write(&format!("{name}.key"), key);
    }

    /// A configuration in which `DIR` stands for this folder.
    pub(super) fn config(&self, main: &str, routes: &[&str]) -> Config {
        let folder = self.0.path().display().to_string();
        let text = |name: &str, text: &str| Text {
            path: Path::new(name).into(),
            bytes: text.replace("DIR", &folder).into_bytes(),
        };
        let routes = routes.iter().enumerate().map(|(at, route)| text(&format!("routes.d/r{at}.env"), route));
        Config::assemble(Some(text("config.env", main)), routes.collect(), &BTreeMap::new()).unwrap()
    }

    /// A text without the path of this folder.
    pub(super) fn plain(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.path().display()), "")
    }
}

/// A client that believes everybody and shows this certificate to whoever asks, if any.
pub(super) fn showing(
    version: &'static SupportedProtocolVersion,
    pair: Option<&(String, String)>,
) -> Arc<ClientConfig> {
    let verifier: Arc<Credulous> = Arc::default();
    let builder = builder(version).dangerous().with_custom_certificate_verifier(verifier);
    Arc::new(match pair {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let certificates = super::pem::certificates(certificate.as_bytes()).unwrap();
            let key = super::pem::private_key(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(certificates, key).unwrap()
        }
    })
}

/// What came of a handshake.
#[derive(Debug)]
pub(super) struct Met {
    pub(super) server: ServerConnection,
    pub(super) client: ClientConnection,
}

impl Met {
    /// The serial number of the certificate that the client saw.
    pub(super) fn serial(&self) -> u8 {
        let seen = self.client.peer_certificates().unwrap().first().unwrap().clone();
        *super::Facts::of(&seen).unwrap().serial.last().unwrap()
    }

    pub(super) fn resumed(&self) -> bool {
        self.server.handshake_kind() == Some(HandshakeKind::Resumed)
    }
}

/// The one day of all tests.
#[derive(Debug)]
struct Day;

impl TimeProvider for Day {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(NOW.unsigned_abs())))
    }
}

/// A client that believes everybody, takes signatures of these schemes, and keeps the OCSP
/// response that it was shown last.
#[derive(Debug, Default)]
pub(super) struct Credulous {
    pub(super) schemes: Vec<SignatureScheme>,
    pub(super) stapled: Mutex<Vec<u8>>,
}

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        stapled: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.stapled.lock().unwrap() = stapled.to_vec();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = crypto::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = crypto::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let all = || crypto::provider().signature_verification_algorithms.supported_schemes();
        if self.schemes.is_empty() { all() } else { self.schemes.clone() }
    }
}

fn builder(version: &'static SupportedProtocolVersion) -> ConfigBuilder<ClientConfig, WantsVerifier> {
    let builder = ClientConfig::builder_with_details(crypto::provider(), Arc::new(Day));
    builder.with_protocol_versions(&[version]).unwrap()
}

/// A client that trusts this authority.
pub(super) fn client(authority: &Authority) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    let certificates = super::pem::certificates(authority.pem.as_bytes()).unwrap();
    roots.add_parsable_certificates(certificates);
    builder(&TLS13).with_root_certificates(roots).with_no_client_auth()
}

/// A client that believes everybody.
pub(super) fn credulous(version: &'static SupportedProtocolVersion, verifier: &Arc<Credulous>) -> ClientConfig {
    let builder = builder(version).dangerous();
    builder.with_custom_certificate_verifier(Arc::clone(verifier) as _).with_no_client_auth()
}

/// Has a client meet the doors. An error is the alert that ends it.
pub(super) fn meet(doors: &Doors, client: &Arc<ClientConfig>, name: &str) -> Result<Met, AlertDescription> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut acceptor = Acceptor::default();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    acceptor.read_tls(&mut &*hello).unwrap();
    let accepted = acceptor.accept().unwrap().unwrap();
    let config = doors.choose(&accepted.client_hello(), Mode::Http);
    let config = config.ok_or(AlertDescription::UnrecognisedName)?;
    let alert = |error: rustls::Error| match error {
        rustls::Error::AlertReceived(alert) => alert,
        other => panic!("{other}"),
    };
    let mut server = match accepted.into_connection(config) {
        Ok(server) => server,
        Err((_, mut refused)) => {
            let mut bytes = Vec::new();
            refused.write_all(&mut bytes).unwrap();
            client.read_tls(&mut &*bytes).unwrap();
            return Err(alert(client.process_new_packets().unwrap_err()));
        }
    };
    while server.wants_write() || client.wants_write() {
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &*bytes;
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().map_err(alert)?;
        }
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &*bytes;
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            if server.process_new_packets().is_err() {
                break; // the alert is on its way
            }
        }
    }
    assert!(!server.is_handshaking() && !client.is_handshaking());
    Ok(Met { server, client })
}

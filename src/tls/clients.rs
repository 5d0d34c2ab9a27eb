//! Clients: with what trust and what identity `https://` backends are spoken to.
//!
//! Routes that say the same share one, and one of which no file has changed is passed on by
//! a reload: endpoints are known by it, so their connections and sessions stay good. One
//! whose files did change is another one, and what was verified by the old one carries no
//! further request.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::load::now;
use super::pair::{Fault, Pair};
use super::{crypto, pem};
use crate::config::{self, BackendTls, Config, FileSource, Origin, Problem, Problems};

/// What is spoken inside, where that is HTTP.
///
/// Source: RFC 7301 §6.
const HTTP1: &[u8] = b"http/1.1";

/// The clients of a configuration.
#[derive(Debug, Default)]
pub struct Clients {
    /// In the order of the routes; none for one without such backends.
    by_route: Box<[Option<Arc<Client>>]>,
    warnings: Vec<String>,
}

/// What one is made of, and what was made of it.
#[derive(Debug)]
struct Client {
    trust: Trust,
    identity: Option<Arc<Pair>>,
    http: bool,
    config: Arc<ClientConfig>,
}

/// Who vouches for backends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trust {
    /// These certificates' owners.
    Authorities(Authorities),
    /// Nobody.
    Anybody,
}

type Authorities = Arc<[CertificateDer<'static>]>;

impl Client {
    fn is(&self, trust: &Trust, identity: Option<&Arc<Pair>>, http: bool) -> bool {
        let same = match (&self.identity, identity) {
            (None, None) => true,
            (Some(mine), Some(other)) => Arc::ptr_eq(mine, other) || mine.same(other),
            _ => false,
        };
        same && self.trust == *trust && self.http == http
    }
}

impl Clients {
    /// Reads what the routes of `config` name; what is as it was in the `past` is passed on.
    ///
    /// # Errors
    /// Everything that is wrong with any of it.
    pub fn load(config: &Config, past: Option<&Clients>) -> Result<Clients, Problems> {
        Clients::load_with(config, past, true)
    }

    /// The same, to see what is wrong: by somebody who may not see the service's credentials.
    ///
    /// # Errors
    /// Everything that is wrong with any of it.
    pub fn examine(config: &Config) -> Result<Clients, Problems> {
        Clients::load_with(config, None, config.credentials.is_some())
    }

    fn load_with(config: &Config, past: Option<&Clients>, serves: bool) -> Result<Clients, Problems> {
        let mut reader = Reader {
            credentials: config.credentials.as_deref(),
            serves,
            authorities: HashMap::new(),
            identities: HashMap::new(),
            known: past.map(Clients::each).unwrap_or_default(),
            problems: Problems::default(),
            warnings: Vec::new(),
        };
        let client = |route| BackendTls::of(config, route).and_then(|tls| reader.client(&tls));
        let by_route = config.routes.iter().map(client).collect();
        let Reader { problems, warnings, .. } = reader;
        if problems.is_empty() { Ok(Clients { by_route, warnings }) } else { Err(problems) }
    }

    /// That of a route, by its place among all.
    #[must_use]
    pub fn of_route(&self, route: usize) -> Option<&Arc<ClientConfig>> {
        self.by_route.get(route)?.as_ref().map(|client| &client.config)
    }

    /// What is allowed and yet deserves a look, each as `path:line: message`.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn each(&self) -> Vec<Arc<Client>> {
        let mut each: Vec<Arc<Client>> = Vec::new();
        for client in self.by_route.iter().flatten() {
            if !each.iter().any(|known| Arc::ptr_eq(known, client)) {
                each.push(Arc::clone(client));
            }
        }
        each
    }
}

/// Reads what one route after another names, each file once. `None` where that is wrong,
/// which is noted, or can't be seen.
struct Reader<'a> {
    credentials: Option<&'a Path>,
    serves: bool,
    authorities: HashMap<&'a [FileSource], Option<Authorities>>,
    identities: HashMap<(&'a FileSource, Option<&'a FileSource>), Option<Arc<Pair>>>,
    known: Vec<Arc<Client>>,
    problems: Problems,
    warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    fn client(&mut self, tls: &BackendTls<'a>) -> Option<Arc<Client>> {
        let identity = tls.certificate.map(|certificate| self.identity(tls, certificate));
        let trust = if tls.verify { Trust::Authorities(self.authorities(tls)?) } else { Trust::Anybody };
        let identity = match identity {
            Some(identity) => Some(identity?),
            None => None,
        };
        let same = |known: &&Arc<Client>| known.is(&trust, identity.as_ref(), tls.http);
        if let Some(known) = self.known.iter().find(same) {
            return Some(Arc::clone(known));
        }
        match assemble(&trust, identity.as_deref(), tls.http) {
            Ok(config) => {
                let client = Arc::new(Client { trust, identity, http: tls.http, config: Arc::new(config) });
                self.known.push(Arc::clone(&client));
                Some(client)
            }
            Err(error) => {
                self.problems.push(Problem::new(Origin::Default, format!("TLS to backends can't be set up: {error}")));
                None
            }
        }
    }

    /// Who vouches for the backends of a route.
    fn authorities(&mut self, tls: &BackendTls<'a>) -> Option<Authorities> {
        if let Some(known) = self.authorities.get(tls.authorities) {
            return known.clone();
        }
        let of_ca = |part: Option<&FileSource>, why| tls.problem("BACKEND_TLS_CA", part, why);
        let authorities = if tls.authorities.is_empty() {
            of_host().map_err(|why| self.problems.push(of_ca(None, why))).ok()
        } else {
            let mut all = Some(Vec::new());
            for file in tls.authorities {
                let of_file = match self.path(file, of_ca) {
                    Some(path) => in_file(&path).map_err(|why| {
                        self.problems.push(of_ca(Some(file), format!("`{}` {why}", path.display())));
                    }),
                    None => Err(()),
                };
                all = all.zip(of_file.ok()).map(|(all, of_file)| [all, of_file].concat());
            }
            all
        };
        let authorities = authorities.map(Authorities::from);
        self.authorities.insert(tls.authorities, authorities.clone());
        authorities
    }

    /// Whom we are to a backend.
    fn identity(&mut self, tls: &BackendTls<'a>, certificate: &'a FileSource) -> Option<Arc<Pair>> {
        let named = (certificate, tls.key);
        if let Some(known) = self.identities.get(&named) {
            return known.clone();
        }
        let of_certificate = |part: Option<&FileSource>, why| tls.problem("BACKEND_TLS_CERTIFICATE", part, why);
        let of_key = |part: Option<&FileSource>, why| tls.problem("BACKEND_TLS_PRIVATE_KEY", part, why);
        let path = self.path(certificate, of_certificate);
        let key_path = match tls.key {
            Some(key) => self.path(key, of_key),
            None => path.clone(),
        };
        let pair = path.zip(key_path).and_then(|(path, key_path)| {
            let mut told = Vec::new();
            let warn =
                |file: &Path, why: String| told.push(of_certificate(None, format!("`{}` {why}", file.display())));
            match Pair::read(&path, &key_path, now(), warn) {
                Ok(pair) => {
                    let late = pair.facts.invalid(now());
                    told.extend(
                        late.map(|why| of_certificate(Some(certificate), format!("`{}` {why}", path.display()))),
                    );
                    told.iter().for_each(|problem| self.warn(problem));
                    Some(Arc::new(pair))
                }
                Err(Fault { file, why }) => {
                    let message = format!("`{}` {why}", file.display());
                    self.problems.push(match tls.key.filter(|_| file == key_path) {
                        Some(key) => of_key(Some(key), message),
                        None => of_certificate(Some(certificate), message),
                    });
                    None
                }
            }
        });
        self.identities.insert(named, pair.clone());
        pair
    }

    /// Where a file is; a credential is seen by the service alone.
    fn path(
        &mut self,
        file: &FileSource,
        problem: impl Fn(Option<&FileSource>, String) -> Problem,
    ) -> Option<std::path::PathBuf> {
        let path = file.path(self.credentials);
        if path.is_none() {
            if self.serves {
                let why = "is no path, and the service manager has passed no such credential (`LoadCredential=`)";
                self.problems.push(problem(Some(file), format!("`{file}` {why}")));
            } else {
                self.warn(&problem(
                    Some(file),
                    format!("credential `{file}` was not examined: only the service sees it"),
                ));
            }
        }
        path
    }

    fn warn(&mut self, problem: &Problem) {
        self.warnings.push(format!("{}: {}", problem.origin, problem.message));
    }
}

/// The certificates of a file, or what is wrong with it.
fn in_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = config::read(path).map_err(|error| format!("can't be read: {}", config::reason(&error)))?;
    let certificates = pem::bundle(&bytes)?;
    match certificates.iter().position(|certificate| !is_usable(certificate)) {
        Some(place) => Err(format!("holds a certificate that can't be used: number {}", place + 1)),
        None => Ok(certificates),
    }
}

/// Those whom the host trusts.
fn of_host() -> Result<Vec<CertificateDer<'static>>, String> {
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

fn assemble(trust: &Trust, identity: Option<&Pair>, http: bool) -> Result<ClientConfig, Error> {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;

    use super::*;
    use crate::config::Text;

    /// A folder with a certificate and its key as `NAME.pem` and `NAME.key` for each name.
    fn folder(names: &[&str]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| make(&folder, name));
        folder
    }

    fn make(folder: &TempDir, name: &str) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        fs::write(folder.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(folder.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// In the text, `@/` stands for the folder.
    fn load(folder: &TempDir, main: &str, routes: &[&str], past: Option<&Clients>) -> Result<Clients, String> {
        let fill = |text: &str| text.replace("@/", &format!("{}/", folder.path().display())).into_bytes();
        let text = |name: String, text: &str| Text { path: Path::new(&name).into(), bytes: fill(text) };
        let routes = routes.iter().enumerate().map(|(index, route)| text(format!("routes.d/r{index}.env"), route));
        let config = Config::assemble(Some(text("config.env".into(), main)), routes.collect(), &BTreeMap::new());
        let config = config.unwrap_or_else(|problems| panic!("{problems}"));
        Clients::load(&config, past).map_err(|problems| problems.to_string())
    }

    fn same(one: &Clients, route: usize, other: &Clients, of: usize) -> bool {
        Arc::ptr_eq(one.of_route(route).unwrap(), other.of_route(of).unwrap())
    }

    const MAIN: &str = "BACKEND_ADDRESS=https://a.test\nBACKEND_TLS_CA=@/a.pem\n";

    #[test]
    fn routes_with_the_same_trust_and_identity_have_one_client() {
        let folder = folder(&["a", "b"]);
        let routes = [
            "MATCH_PATH=/same\nBACKEND_ADDRESS=https://b.test\nBACKEND_TLS_NAME=b\n",
            "MATCH_PATH=/ca\nBACKEND_TLS_CA=@/b.pem\n",
            "MATCH_PATH=/more\nBACKEND_TLS_CA=@/a.pem,@/b.pem\n",
            "MATCH_PATH=/own\nBACKEND_TLS_CERTIFICATE=@/b.pem\nBACKEND_TLS_PRIVATE_KEY=@/b.key\n",
            "MATCH_PATH=/any\nBACKEND_TLS_VERIFY=off\n",
            "MATCH_LISTENER=tcp\nMODE=tcp\n",
            "MATCH_PATH=/clear\nBACKEND_ADDRESS=b.test:80\n",
        ];
        let clients = load(&folder, MAIN, &routes, None).unwrap();
        assert!(same(&clients, 0, &clients, 7) && clients.of_route(6).is_none());
        for other in 1..=5 {
            assert!((0..other).all(|route| !same(&clients, route, &clients, other)), "{other}");
        }
        assert_eq!(clients.of_route(0).unwrap().alpn_protocols, [HTTP1]);
        assert!(clients.of_route(5).unwrap().alpn_protocols.is_empty());
    }

    #[test]
    fn a_reload_passes_on_what_no_file_has_changed() {
        let folder = folder(&["a", "b"]);
        let own = "MATCH_PATH=/own\nBACKEND_TLS_CERTIFICATE=@/b.pem\nBACKEND_TLS_PRIVATE_KEY=@/b.key\n";
        let before = load(&folder, MAIN, &[own], None).unwrap();
        let after = load(&folder, MAIN, &["MATCH_PATH=/x\nBACKEND_ADDRESS=x:80\n", own], Some(&before)).unwrap();
        assert!(same(&before, 0, &after, 1) && same(&before, 1, &after, 2));
        make(&folder, "b");
        let renewed = load(&folder, MAIN, &[own], Some(&after)).unwrap();
        assert!(!same(&renewed, 0, &after, 1) && same(&renewed, 1, &after, 2));
        make(&folder, "a");
        let other = load(&folder, MAIN, &[own], Some(&renewed)).unwrap();
        assert!(!same(&other, 0, &renewed, 0) && !same(&other, 1, &renewed, 1));
    }

    #[test]
    fn all_that_is_wrong_with_the_files_is_told_at_once_and_once() {
        let folder = folder(&["a", "b"]);
        fs::write(folder.path().join("none.pem"), "nothing\n").unwrap();
        let routes = [
            "MATCH_PATH=/1\nBACKEND_TLS_CA=@/none.pem,@/gone.pem\n",
            "MATCH_PATH=/2\nBACKEND_TLS_CERTIFICATE=@/a.pem\nBACKEND_TLS_PRIVATE_KEY=@/b.key\n",
            "MATCH_PATH=/3\nBACKEND_TLS_CERTIFICATE=@/a.pem\n",
            "MATCH_PATH=/4\nBACKEND_TLS_CA=credential\n",
            "MATCH_PATH=/5\n",
        ];
        let main = "BACKEND_ADDRESS=https://a.test\nBACKEND_TLS_CA=@/a.key\n";
        let said = load(&folder, main, &routes, None).unwrap_err();
        for (part, times) in [
            ("none.pem` is not PEM", 1),
            ("gone.pem` can't be read: no such file", 1),
            ("r1.env:3: `BACKEND_TLS_PRIVATE_KEY`: ", 1),
            ("b.key` is not the key of the certificate", 1),
            ("r2.env:2: `BACKEND_TLS_CERTIFICATE`: ", 1),
            ("a.pem` holds no private key", 1),
            ("r3.env:2: `BACKEND_TLS_CA`: `credential` is no path", 1),
            ("config.env:2: `BACKEND_TLS_CA`: ", 1),
            ("a.key` holds no certificate", 1),
            ("6 problems in 5 files", 1),
        ] {
            assert_eq!(said.matches(part).count(), times, "{part} in {said}");
        }
    }

    #[test]
    fn who_only_examines_does_without_credentials() {
        let text = "BACKEND_ADDRESS=https://a.test\nBACKEND_TLS_CA=ca\n".into();
        let text = Text { path: Path::new("config.env").into(), bytes: text };
        let config = Config::assemble(Some(text), Vec::new(), &BTreeMap::new()).unwrap();
        assert!(Clients::load(&config, None).is_err());
        let clients = Clients::examine(&config).unwrap();
        assert_eq!(
            clients.warnings(),
            ["config.env:2: `BACKEND_TLS_CA`: credential `ca` was not examined: only the service sees it"]
        );
    }
}

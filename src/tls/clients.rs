//! Clients: with what trust and what identity `https://` backends are spoken to.
//!
//! Routes that say the same share one, and one of which no file has changed is passed on by
//! a reload: endpoints are known by it, so their connections and sessions stay good. One
//! whose files did change is another one, and what was verified by the old one carries no
//! further request.
//!
//! Files that change while the daemon serves are taken up as those of certificates are that
//! clients are shown ([`super::watch`]): what can't be used leaves what was there before. The
//! authorities of the host are read with the configuration only.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ClientConfig;

use super::facts;
use super::load::now;
use super::pair::{Fault, Pair};
use super::trust::{self, Authorities, Trust};
use crate::config::{BackendTls, Config, FileSource, Origin, Problem, Problems};

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

    /// Reads the files anew from which these were loaded. What can't be used of them is kept
    /// as it is, route by route, and nothing that is valid at `now` makes room for what is not.
    pub(super) fn renew(&self, config: &Config, now: i64) -> Renewed {
        let mut reader = Reader::new(config, Some(self), true);
        (reader.serving, reader.now) = (Some(self), now);
        let clients = reader.each(config);
        let faults = reader.problems.iter().map(|problem| format!("{}: {}", problem.origin, problem.message));
        let clients = Clients { by_route: clients, warnings: self.warnings.clone() };
        let identities = clients.identities().filter(|pair| !self.identities().any(|known| known.same(pair)));
        Renewed {
            faults: faults.collect(),
            identities: identities.cloned().collect(),
            clients: (!clients.same(self)).then_some(clients),
        }
    }

    /// The same, to see what is wrong: by somebody who may not see the service's credentials.
    ///
    /// # Errors
    /// Everything that is wrong with any of it.
    pub fn examine(config: &Config) -> Result<Clients, Problems> {
        Clients::load_with(config, None, config.credentials.is_some())
    }

    fn load_with(config: &Config, past: Option<&Clients>, serves: bool) -> Result<Clients, Problems> {
        let mut reader = Reader::new(config, past, serves);
        let by_route = reader.each(config);
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

    /// Whether no backend is spoken to over TLS.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_route.iter().all(Option::is_none)
    }

    /// The certificates that backends are shown, each once.
    pub fn identities(&self) -> impl Iterator<Item = &Arc<Pair>> {
        let mut seen: Vec<&Arc<Pair>> = Vec::new();
        let each = self.by_route.iter().flatten().filter_map(|client| client.identity.as_ref());
        each.filter(move |pair| {
            let is_new = !seen.iter().any(|known| Arc::ptr_eq(known, pair) || known.same(pair));
            seen.extend(is_new.then_some(*pair));
            is_new
        })
    }

    /// Whether a route, by its place among all, goes by the same as in `other`.
    #[must_use]
    pub fn is_as(&self, other: &Clients, route: usize) -> bool {
        match (self.of_route(route), other.of_route(route)) {
            (Some(mine), Some(other)) => Arc::ptr_eq(mine, other),
            (mine, other) => mine.is_none() && other.is_none(),
        }
    }

    fn same(&self, other: &Clients) -> bool {
        let routes = self.by_route.len();
        routes == other.by_route.len() && (0..routes).all(|route| self.is_as(other, route))
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

/// What a look at changed files has led to.
#[derive(Debug, Default)]
pub(super) struct Renewed {
    /// The clients from now on; none if nothing has changed.
    pub(super) clients: Option<Clients>,
    /// The certificates that are new.
    pub(super) identities: Vec<Arc<Pair>>,
    /// What is wrong with the files, so that what was there before stays.
    pub(super) faults: Vec<String>,
}

/// The files that `config` names for it, each once; not those of the host.
pub(super) fn files(config: &Config) -> BTreeSet<PathBuf> {
    let tls = config.routes.iter().filter_map(|route| BackendTls::of(config, route));
    let sources = tls.flat_map(|tls| {
        let authorities = tls.authorities.iter().filter(move |_| tls.verify);
        authorities.chain(tls.certificate).chain(tls.key)
    });
    sources.filter_map(|source| source.path(config.credentials.as_deref())).collect()
}

/// Reads what one route after another names, each file once. `None` where that is wrong,
/// which is noted, or can't be seen.
struct Reader<'a> {
    credentials: Option<&'a Path>,
    serves: bool,
    /// While it serves, what stays where files can't be used.
    serving: Option<&'a Clients>,
    /// Seconds since 1970.
    now: i64,
    authorities: HashMap<&'a [FileSource], Option<Authorities>>,
    identities: HashMap<(&'a FileSource, Option<&'a FileSource>), Option<Arc<Pair>>>,
    known: Vec<Arc<Client>>,
    problems: Problems,
    warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(config: &'a Config, past: Option<&Clients>, serves: bool) -> Reader<'a> {
        Reader {
            credentials: config.credentials.as_deref(),
            serves,
            serving: None,
            now: now(),
            authorities: HashMap::new(),
            identities: HashMap::new(),
            known: past.map(Clients::each).unwrap_or_default(),
            problems: Problems::default(),
            warnings: Vec::new(),
        }
    }

    /// The client of each route.
    fn each(&mut self, config: &'a Config) -> Box<[Option<Arc<Client>>]> {
        let client = |(route, of)| BackendTls::of(config, of).and_then(|tls| self.client(route, &tls));
        config.routes.iter().enumerate().map(client).collect()
    }

    fn client(&mut self, route: usize, tls: &BackendTls<'a>) -> Option<Arc<Client>> {
        let before = self.serving.and_then(|before| before.by_route.get(route)?.as_ref());
        let identity = match tls.certificate {
            Some(certificate) => {
                let identity = self.identity(tls, certificate);
                Some(identity.or_else(|| before.and_then(|before| before.identity.clone())))
            }
            None => None,
        };
        let trust = match before.map(|before| &before.trust) {
            Some(Trust::Authorities(host)) if tls.authorities.is_empty() => Some(Trust::Authorities(Arc::clone(host))),
            _ if !tls.verify => Some(Trust::Anybody),
            before => self.authorities(tls).map(Trust::Authorities).or(before.cloned()),
        };
        let trust = trust?;
        let identity = match identity {
            Some(identity) => Some(identity?),
            None => None,
        };
        let same = |known: &&Arc<Client>| known.is(&trust, identity.as_ref(), tls.http);
        if let Some(known) = self.known.iter().find(same) {
            return Some(Arc::clone(known));
        }
        match trust::assemble(&trust, identity.as_deref(), tls.http) {
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
            trust::of_host().map_err(|why| self.problems.push(of_ca(None, why))).ok()
        } else {
            let mut all = Some(Vec::new());
            for file in tls.authorities {
                let of_file = match self.path(file, of_ca) {
                    Some(path) => trust::in_file(&path).map_err(|why| {
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
            match Pair::read(&path, &key_path, self.now, warn) {
                Ok(pair) => {
                    told.iter().for_each(|problem| self.warn(problem));
                    let Some(why) = pair.facts.invalid(self.now) else { return Some(Arc::new(pair)) };
                    let why = format!("`{}` {why}", path.display());
                    // One that is not valid never takes the place of one that is.
                    let before = self.known.iter().filter_map(|client| client.identity.as_ref());
                    let mut valid = before.filter(|pair| pair.facts.is_valid(self.now));
                    let Some(before) = valid.find(|pair| pair.is_of(&path, &key_path)).cloned() else {
                        self.warn(&of_certificate(Some(certificate), why));
                        return Some(Arc::new(pair));
                    };
                    let until = facts::day(before.facts.not_after);
                    let why = format!("{why}; the one before it serves on, until {until}");
                    let problem = of_certificate(Some(certificate), why);
                    if self.serving.is_some() {
                        self.problems.push(problem)
                    } else {
                        self.warn(&problem)
                    }
                    Some(before)
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
    fn path(&mut self, file: &FileSource, problem: impl Fn(Option<&FileSource>, String) -> Problem) -> Option<PathBuf> {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;

    use super::super::trust::HTTP1;
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
    fn configured(folder: &TempDir, main: &str, routes: &[&str]) -> Config {
        let fill = |text: &str| text.replace("@/", &format!("{}/", folder.path().display())).into_bytes();
        let text = |name: String, text: &str| Text { path: Path::new(&name).into(), bytes: fill(text) };
        let routes = routes.iter().enumerate().map(|(index, route)| text(format!("routes.d/r{index}.env"), route));
        let config = Config::assemble(Some(text("config.env".into(), main)), routes.collect(), &BTreeMap::new());
        config.unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn load(folder: &TempDir, main: &str, routes: &[&str], past: Option<&Clients>) -> Result<Clients, String> {
        Clients::load(&configured(folder, main, routes), past).map_err(|problems| problems.to_string())
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
    fn files_that_change_are_taken_up_as_far_as_they_can_be_used() {
        let folder = folder(&["a", "b"]);
        let own = "MATCH_PATH=/own\nBACKEND_TLS_CERTIFICATE=@/b.pem\nBACKEND_TLS_PRIVATE_KEY=@/b.key\n";
        let (config, before) = {
            let clients = load(&folder, MAIN, &[own], None).unwrap();
            (configured(&folder, MAIN, &[own]), clients)
        };
        let unchanged = before.renew(&config, now());
        assert!(unchanged.clients.is_none() && unchanged.faults.is_empty() && unchanged.identities.is_empty());
        // Half of a pair.
        make(&folder, "c");
        fs::rename(folder.path().join("c.pem"), folder.path().join("b.pem")).unwrap();
        let half = before.renew(&config, now());
        assert!(half.clients.is_none(), "what was there before stays");
        let [fault] = &half.faults[..] else { panic!("{:?}", half.faults) };
        assert!(
            fault.starts_with("routes.d/r0.env:3: `BACKEND_TLS_PRIVATE_KEY`: ") && fault.contains("b.key"),
            "{fault}"
        );
        // The other half, beside an authority that is none.
        fs::rename(folder.path().join("c.key"), folder.path().join("b.key")).unwrap();
        fs::write(folder.path().join("a.pem"), "nothing").unwrap();
        let renewed = before.renew(&config, now());
        assert!(renewed.faults.len() == 1 && renewed.faults[0].contains("a.pem` is not PEM"), "{:?}", renewed.faults);
        let after = renewed.clients.unwrap();
        assert!(!after.is_as(&before, 0) && after.is_as(&before, 1));
        assert_eq!((renewed.identities.len(), after.identities().count()), (1, 1));
        // And an authority that is one.
        make(&folder, "a");
        let last = after.renew(&config, now()).clients.unwrap();
        assert!(!last.is_as(&after, 0) && !last.is_as(&after, 1));
        // One that has expired takes no valid one's place.
        let after = last.identities().next().unwrap().facts.not_after + 1;
        make(&folder, "b");
        assert!(last.renew(&config, now()).clients.is_some() && last.renew(&config, after).clients.is_some());
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["b".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        fs::write(folder.path().join("b.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(folder.path().join("b.key"), key.serialize_pem()).unwrap();
        let expired = last.renew(&config, now());
        assert!(expired.clients.is_none() && expired.faults[0].contains("the one before it serves on"));
        let reloaded = load(&folder, MAIN, &[own], Some(&last)).unwrap();
        assert!(reloaded.is_as(&last, 0) && reloaded.warnings().concat().contains("the one before it serves on"));
        let started = load(&folder, MAIN, &[own], None).unwrap();
        assert!(started.warnings().iter().any(|told| told.ends_with("b.pem` expired on 2001-01-01")));
        assert_eq!(files(&config).len(), 3, "each once");
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

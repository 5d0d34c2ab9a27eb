//! Certificates as the configuration names them, those of clients as well, and what of that
//! can't hold together.
//!
//! Nothing is read here: what the files hold is looked at when the configuration as a
//! whole is sound.

use std::collections::BTreeMap;

use super::files::FileSource;
use super::load::{Config, RouteConfig};
use super::patterns::HostPattern;
use super::problems::{Origin, Problem, Problems, Setting};
use super::words::Mode;

/// What a client meets that asks for a name which no certificate has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnknownName {
    /// The first certificate.
    Default,
    /// The alert `unrecognized_name`.
    Refuse,
}

/// Which fields tell a backend of a client's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientFields {
    /// Subject, alternative names, serial number and fingerprint, one field for each.
    XClientCert,
    /// The certificates themselves.
    ///
    /// Source: RFC 9440.
    Rfc9440,
    /// Both.
    Both,
    /// None.
    Off,
}

/// The names of all these fields.
pub const CLIENT_FIELDS: &[&str] = &[
    "X-Client-Cert-Subject",
    "X-Client-Cert-San",
    "X-Client-Cert-Serial",
    "X-Client-Cert-Fingerprint",
    "Client-Cert",
    "Client-Cert-Chain",
];

/// Whom one trusts to vouch for clients.
#[derive(Debug, Clone, Copy)]
pub struct ClientTrust<'a> {
    /// The authorities.
    pub authorities: &'a [FileSource],
    /// What they have revoked.
    pub revoked: &'a [FileSource],
    first: &'a FileSource,
    /// Who in the configuration says so first.
    route: &'a RouteConfig,
    authorities_setting: Option<&'a Setting>,
    revoked_setting: Option<&'a Setting>,
}

impl<'a> ClientTrust<'a> {
    fn of(config: &'a Config, route: &'a RouteConfig) -> Option<ClientTrust<'a>> {
        let settings = &route.settings;
        Some(ClientTrust {
            first: settings.tls_client_ca.first()?,
            authorities: &settings.tls_client_ca,
            revoked: &settings.tls_client_crl,
            route,
            authorities_setting: config.setting_of(route, "TLS_CLIENT_CA"),
            revoked_setting: config.setting_of(route, "TLS_CLIENT_CRL"),
        })
    }

    /// The first file of its authorities.
    pub fn first(&self) -> &'a FileSource {
        self.first
    }

    /// Whether both trust the same.
    fn same(&self, other: &ClientTrust<'_>) -> bool {
        self.authorities == other.authorities && self.revoked == other.revoked
    }

    /// A problem with `file`, which is one of these.
    pub fn problem(&self, file: &FileSource, message: String) -> Problem {
        let of_list = self.revoked.contains(file) && !self.authorities.contains(file);
        match if of_list { self.revoked_setting } else { self.authorities_setting } {
            Some(setting) => setting.problem(message, Some(&file.to_string())),
            None => Problem::new(Origin::Default, message),
        }
    }
}

/// Whom one trusts to vouch for clients, by the server name that they ask for. Where several
/// routes may take a request for a name, one of them may ask for no certificate, but two
/// never trust different authorities.
#[derive(Debug, Default)]
pub struct ClientTrusts<'a> {
    /// For the hosts that routes name.
    pub exact: BTreeMap<&'a str, Option<ClientTrust<'a>>>,
    /// For all other hosts below one.
    pub below: BTreeMap<&'a str, Option<ClientTrust<'a>>>,
    /// For all the rest.
    pub anywhere: Option<ClientTrust<'a>>,
    /// Routes that trust others than one before them.
    clashes: Vec<(&'a RouteConfig, String, &'a RouteConfig)>,
}

impl<'a> ClientTrusts<'a> {
    /// What the routes of `config` say.
    pub fn of(config: &'a Config) -> ClientTrusts<'a> {
        let mut trusts = ClientTrusts::default();
        if config.routes.iter().all(|route| route.settings.tls_client_ca.is_empty()) {
            return trusts;
        }
        let hosts = config.routes.iter().flat_map(|route| &route.matcher.match_host);
        for host in hosts {
            let trust = trusts.meet(config, Some(host));
            match host {
                HostPattern::Exact(name) => trusts.exact.insert(name, trust),
                HostPattern::Below(parent) => trusts.below.insert(parent, trust),
            };
        }
        trusts.anywhere = trusts.meet(config, None);
        trusts
    }

    /// What the routes say that may take a request for `host`: the most specific ones, and
    /// the others as long as there are requests that those leave over.
    fn meet(&mut self, config: &'a Config, host: Option<&HostPattern>) -> Option<ClientTrust<'a>> {
        let mut tiers: Vec<(usize, &RouteConfig)> = Vec::new();
        for route in config.routes.iter().filter(|route| route.settings.mode == Mode::Http) {
            let hosts = &route.matcher.match_host;
            let tier = match host {
                _ if hosts.is_empty() => Some(0),
                None => None,
                Some(host) => hosts.iter().filter_map(|pattern| closeness(pattern, host)).max(),
            };
            tiers.extend(tier.map(|tier| (tier, route)));
        }
        tiers.sort_by_key(|(tier, route)| (std::cmp::Reverse(*tier), route.is_default()));
        let mut met: Option<ClientTrust<'a>> = None;
        let mut full = None;
        for (tier, route) in tiers {
            if full.is_some_and(|full| full > tier) {
                break; // nothing is left over for it
            }
            let matcher = &route.matcher;
            if matcher.match_path.is_empty() && matcher.match_listener.is_empty() {
                full = Some(tier);
            }
            let Some(trust) = ClientTrust::of(config, route) else { continue };
            match &met {
                Some(first) if !first.same(&trust) => {
                    let host = host.map_or_else(|| "any host".to_owned(), |host| format!("host `{host}`"));
                    self.clashes.push((route, host, first.route));
                }
                Some(_) => {}
                None => met = Some(trust),
            }
        }
        met
    }
}

/// How close a pattern is to a host, if it takes it: an exact one is closest, then the
/// longest `*.` one.
fn closeness(pattern: &HostPattern, host: &HostPattern) -> Option<usize> {
    let below = |parent: &str, name: &str| name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
    match (pattern, host) {
        (HostPattern::Exact(one), HostPattern::Exact(other)) => (one == other).then_some(usize::MAX),
        (HostPattern::Exact(_), HostPattern::Below(_)) => None,
        (HostPattern::Below(parent), HostPattern::Exact(name)) => below(parent, name).then_some(parent.len()),
        (HostPattern::Below(parent), HostPattern::Below(name)) => {
            (parent == name || below(parent, name)).then_some(parent.len())
        }
    }
}

/// The certificates that one file of the configuration names.
#[derive(Debug, Clone, Copy)]
pub struct Certificates<'a> {
    /// The route that brings them; none for those of `config.env`.
    pub route: Option<&'a RouteConfig>,
    /// Certificates, or folders of them.
    pub certificates: &'a [FileSource],
    /// Their keys, as many; none when each file of a certificate holds its key too.
    pub keys: &'a [FileSource],
    certificate_setting: Option<&'a Setting>,
    key_setting: Option<&'a Setting>,
}

impl<'a> Certificates<'a> {
    /// What every file names that names some, `config.env` first.
    pub fn of(config: &'a Config) -> impl Iterator<Item = Certificates<'a>> {
        let (default, routes) = match config.routes.split_last() {
            Some((default, routes)) => (Some(default), routes),
            None => (None, config.routes.as_slice()),
        };
        let default = default.map(|default| Certificates {
            route: None,
            certificates: &default.settings.tls_certificate,
            keys: &default.settings.tls_private_key,
            certificate_setting: config.setting("TLS_CERTIFICATE"),
            key_setting: config.setting("TLS_PRIVATE_KEY"),
        });
        // The two belong together, so a route that names certificates inherits no keys.
        let own = routes.iter().map(|route| {
            let key_setting = route.setting("TLS_PRIVATE_KEY");
            let certificate_setting = route.setting("TLS_CERTIFICATE");
            Certificates {
                route: Some(route),
                certificates: certificate_setting.map_or(&[], |_| &route.settings.tls_certificate),
                keys: key_setting.map_or(&[], |_| &route.settings.tls_private_key),
                certificate_setting,
                key_setting,
            }
        });
        default.into_iter().chain(own).filter(|one| !one.certificates.is_empty())
    }

    /// A problem with `file`, which is one of these.
    pub fn problem(&self, file: &FileSource, message: String) -> Problem {
        let of_keys = self.keys.contains(file) && !self.certificates.contains(file);
        let setting = if of_keys { self.key_setting } else { self.certificate_setting };
        match setting {
            Some(setting) => setting.problem(message, Some(&file.to_string())),
            None => Problem::new(Origin::Default, message),
        }
    }
}

/// Reports keys and certificates that can't be pairs. Where they stand, they are reported.
pub(super) fn contradictions(config: &Config, route: &RouteConfig, problems: &mut Problems) {
    let own = |key| if route.is_default() { config.setting(key) } else { route.setting(key) };
    let Some(setting) = own("TLS_PRIVATE_KEY").filter(|setting| !setting.text.is_empty()) else { return };
    let certificates = own("TLS_CERTIFICATE").map_or(0, |_| route.settings.tls_certificate.len());
    let keys = route.settings.tls_private_key.len();
    let message = if certificates == 0 {
        "there is no `TLS_CERTIFICATE` beside it".to_owned()
    } else if certificates != keys {
        let many = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
        format!("{} for {}", many(keys, "key"), many(certificates, "certificate"))
    } else {
        return;
    };
    problems.push(setting.problem(message, None));
}

/// Reports what routes say of clients' certificates and can't be held to.
pub(super) fn client_contradictions(config: &Config, problems: &mut Problems) {
    let mut said: Vec<&str> = Vec::new();
    let trusts = ClientTrusts::of(config);
    for (route, host, first) in &trusts.clashes {
        if said.contains(&route.name.as_str()) {
            continue;
        }
        said.push(&route.name);
        let message = format!(
            "{host} is served by route `{}` too, which trusts others to vouch for clients; routes of a host name the \
             same ones, or `off`",
            first.name
        );
        let own = |key| if route.is_default() { config.setting(key) } else { route.setting(key) };
        match own("TLS_CLIENT_CA").or_else(|| own("TLS_CLIENT_CRL")) {
            Some(setting) => problems.push(setting.problem(message, None)),
            None => problems.push(Problem::new(route.origin.clone(), message)),
        }
    }
    let own = |route: &RouteConfig| route.settings.mode == Mode::Tcp && !route.settings.tls_client_ca.is_empty();
    for route in config.routes.iter().filter(|route| own(route)) {
        let message =
            "with `MODE=tcp` no client is asked for a certificate; `TLS_CLIENT_CA=off` says that this is meant";
        match config.setting_of(route, "MODE") {
            Some(setting) => problems.push(setting.problem(message.to_owned(), None)),
            None => problems.push(Problem::new(route.origin.clone(), message)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Text;
    use std::path::Path;

    /// Whom the name `name` of a handshake trusts, or where it is contradicted.
    fn trusted(main: &str, routes: &[&str], name: &str) -> Result<Option<String>, String> {
        let text = |name: String, text: &str| Text { path: Path::new(&name).into(), bytes: text.into() };
        let files = routes.iter().enumerate().map(|(at, route)| text(format!("routes.d/r{at}.env"), route));
        let config = Config::assemble(Some(text("config.env".into(), main)), files.collect(), &BTreeMap::new());
        let config =
            config.map_err(|problems| problems.iter().map(|one| one.origin.to_string()).collect::<String>())?;
        let trusts = ClientTrusts::of(&config);
        let below = name.split_once('.').and_then(|(_, parent)| trusts.below.get(parent));
        let trust = trusts.exact.get(name).or(below).unwrap_or(&trusts.anywhere);
        Ok(trust.map(|trust| trust.first().to_string()))
    }

    #[test]
    fn a_name_trusts_what_the_routes_do_that_may_take_its_requests() {
        let some = |name: &str| Ok(Some(name.to_owned()));
        let (main, a) = ("TLS_CLIENT_CA=/2\n", "MATCH_HOST=a.test\nTLS_CLIENT_CA=/1\n");
        assert_eq!(trusted("", &[], "a.test"), Ok(None));
        assert_eq!(trusted(main, &[], "a.test"), some("/2"));
        // A route that takes all of a host leaves nothing to others, one that takes a part does.
        assert_eq!(trusted(main, &[a], "a.test"), some("/1"));
        assert_eq!(trusted(main, &[a], "b.test"), some("/2"));
        let part = format!("{a}MATCH_PATH=/x\n");
        assert_eq!(trusted(main, &[&part], "a.test"), Err("config.env:1".to_owned()));
        assert_eq!(trusted("", &[&part], "a.test"), some("/1"));
        assert_eq!(trusted("", &[&part], "b.test"), Ok(None));
        let off = "MATCH_HOST=a.test\nTLS_CLIENT_CA=off\n";
        assert_eq!(trusted(main, &[off], "a.test"), Ok(None));
        // What is below a host is closest to the longest pattern.
        let (wide, deep) = ("MATCH_HOST=*.test\nTLS_CLIENT_CA=/1\n", "MATCH_HOST=*.a.test\nMATCH_PATH=/x\n");
        assert_eq!(trusted("", &[wide, deep], "x.a.test"), some("/1"));
        assert_eq!(trusted("", &[wide, off], "a.test"), Ok(None));
        // Another list is another trust.
        let listed = "MATCH_HOST=a.test\nMATCH_PATH=/y\nTLS_CLIENT_CA=/1\nTLS_CLIENT_CRL=/3\n";
        assert_eq!(trusted("", &[&part, listed], "a.test"), Err("routes.d/r1.env:3".to_owned()));
    }
}

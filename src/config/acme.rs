//! Settings of automatic certificates.
//!
//! Which names certificates are had for follows from the whole configuration, so that is
//! worked out here too: those that `ACME_NAMES` lists, else every exact host of a route.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::load::{Config, RouteConfig};
use super::patterns::HostPattern;
use super::problems::{Origin, Problem, Problems};
use super::values::{Form, Wrong};
use super::words::Mode;

/// Longest URL of a directory in bytes: it names a folder, whose name may have 255.
const URL_LIMIT: usize = 200;

/// How a certificate authority is shown that a name leads here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AcmeChallenge {
    /// By a request on port 80 (RFC 8555 §8.3).
    Http01,
    /// By a TLS handshake on port 443 (RFC 8737).
    TlsAlpn01,
}

impl AcmeChallenge {
    /// Its name in the protocol.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        }
    }
}

/// The form of the URL of an ACME server's directory. RFC 8555 §6.1 asks for HTTPS.
pub(super) struct DirectoryUrl;

impl Form for DirectoryUrl {
    type Value = Box<str>;

    fn parse(&self, text: &str) -> Result<Box<str>, Wrong> {
        let wrong = || Wrong::new(format!("expected {}, found `{text}`", self.describe()));
        if text.len() > URL_LIMIT {
            return Err(Wrong::new(format!("the URL has more than {URL_LIMIT} bytes")));
        }
        let uri: http::Uri = text.parse().map_err(|_| wrong())?;
        let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        let host = uri.host().filter(|host| !host.is_empty());
        let user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        if !plain || uri.scheme_str() != Some("https") || host.is_none() || user {
            return Err(wrong());
        }
        Ok(text.into())
    }

    fn describe(&self) -> String {
        "a URL as in `https://acme.example.com/directory`".to_owned()
    }
}

/// The form of an address for mail.
pub(super) struct Email;

impl Form for Email {
    type Value = Box<str>;

    fn parse(&self, text: &str) -> Result<Box<str>, Wrong> {
        // What stands behind `mailto:` is no place for further recipients or fields.
        let plain = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic() && !b"@,;:?&%<>()\"\\".contains(&byte))
        };
        match text.split_once('@') {
            Some((local, domain)) if text.len() <= 254 && plain(local) && plain(domain) => Ok(text.into()),
            _ => Err(Wrong::new(format!("`{text}` is not {}", self.describe()))),
        }
    }

    fn describe(&self) -> String {
        "an address as in `admin@example.com`".to_owned()
    }
}

/// The form of a name that a certificate can be had for.
pub(super) struct CertificateName;

impl Form for CertificateName {
    type Value = Box<str>;

    fn parse(&self, text: &str) -> Result<Box<str>, Wrong> {
        if text.starts_with("*.") {
            return Err(Wrong::new(format!(
                "`{text}`: a certificate for a wildcard takes the challenge dns-01, which doorward does not do; \
                 list the names one by one"
            )));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if is_name(&name) { Ok(name.into()) } else { Err(Wrong::new(format!("`{text}` is not {}", self.describe()))) }
    }

    fn describe(&self) -> String {
        "a name as in `www.example.com`, in ASCII and without a wildcard".to_owned()
    }
}

/// The form of an identifier that somebody else gave out.
pub(super) struct Identifier;

impl Form for Identifier {
    type Value = Box<str>;

    fn parse(&self, text: &str) -> Result<Box<str>, Wrong> {
        if text.is_empty() || text.len() > 255 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Wrong::new(format!("expected {}", self.describe())));
        }
        Ok(text.into())
    }

    fn describe(&self) -> String {
        "up to 255 characters without blanks".to_owned()
    }
}

/// Whether this is a host name in the sense of certificates: letters, digits and hyphens,
/// lower case, and no address.
///
/// Source: RFC 5280 §4.2.1.6, with RFC 1034 §3.5.
fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label) && name.parse::<IpAddr>().is_err()
}

impl Config {
    /// The names that certificates are had for by ACME; none without `ACME=on`.
    #[must_use]
    pub fn acme_names(&self) -> BTreeSet<Box<str>> {
        if !self.daemon.acme {
            return BTreeSet::new();
        }
        if !self.daemon.acme_names.is_empty() {
            return self.daemon.acme_names.iter().cloned().collect();
        }
        let exact = hosts(self).filter_map(|(_, host)| match host {
            HostPattern::Exact(name) if is_name(name) => Some(name.as_str().into()),
            _ => None,
        });
        exact.collect()
    }
}

/// The hosts of all routes that speak HTTP and bring no certificate of their own.
fn hosts(config: &Config) -> impl Iterator<Item = (&RouteConfig, &HostPattern)> {
    let own = |route: &RouteConfig| route.setting("TLS_CERTIFICATE").is_some_and(|setting| !setting.text.is_empty());
    let routes = config.routes.iter().filter(move |route| route.settings.mode == Mode::Http && !own(route));
    routes.flat_map(|route| route.matcher.match_host.iter().map(move |host| (route, host)))
}

/// Reports what can't hold together. `sound` says whether every file is.
pub(super) fn contradictions(config: &Config, sound: bool, problems: &mut Problems) {
    let daemon = &config.daemon;
    let mut at = |key: &str, message: &str| match config.setting(key) {
        Some(setting) => problems.push(setting.problem(message.to_owned(), None)),
        None => problems.push(Problem::new(Origin::Default, format!("`{key}`: {message}"))),
    };
    match (&daemon.acme_eab_key_id, &daemon.acme_eab_key) {
        (Some(_), None) => at("ACME_EAB_KEY_ID", "goes with `ACME_EAB_KEY`, which is not set"),
        (None, Some(_)) => at("ACME_EAB_KEY", "goes with `ACME_EAB_KEY_ID`, which is not set"),
        _ => {}
    }
    if daemon.acme && sound && config.acme_names().is_empty() {
        at(
            "ACME",
            "there is no name to have a certificate for: no route has an exact `MATCH_HOST`; `ACME_NAMES` lists names",
        );
    }
}

/// What is allowed and yet seems unmeant.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    if !config.daemon.acme || !config.daemon.acme_names.is_empty() {
        return warnings;
    }
    for (route, host) in hosts(config) {
        let why = match host {
            HostPattern::Below(_) => "no certificate is had for a wildcard, since that takes the challenge dns-01",
            HostPattern::Exact(name) if !is_name(name) => "no certificate is had for what is no name",
            HostPattern::Exact(_) => continue,
        };
        let place = route.setting("MATCH_HOST").map_or(&route.origin, |setting| &setting.origin);
        warnings.push(format!("{place}: `ACME=on`: {why}: `{host}`; `ACME_NAMES` lists names one by one"));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Text;
    use std::collections::BTreeMap;
    use std::path::Path;

    fn config(main: &str, routes: &[&str]) -> Result<Config, Problems> {
        let text = |name: String, text: &str| Text { path: Path::new(&name).into(), bytes: text.into() };
        let routes = routes.iter().enumerate().map(|(index, route)| text(format!("routes.d/r{index}.env"), route));
        Config::assemble(Some(text("config.env".into(), main)), routes.collect(), &BTreeMap::new())
    }

    #[test]
    fn the_names_are_those_listed_else_every_exact_host_that_is_a_name() {
        let routes = ["MATCH_HOST=b.test,a.test,*.c.test\n", "MATCH_HOST=10.0.0.1,a.test\nMATCH_PATH=/x\n"];
        let auto = config("ACME=on\n", &routes).unwrap();
        assert_eq!(auto.acme_names(), BTreeSet::from(["a.test".into(), "b.test".into()]));
        let warned: Vec<&str> = auto.warnings.iter().filter_map(|warning| warning.split('`').nth(3)).collect();
        assert_eq!(warned, ["*.c.test", "10.0.0.1"]);
        let own = "MATCH_HOST=own.test\nTLS_CERTIFICATE=/own.pem\n";
        assert_eq!(config("ACME=on\n", &[routes[0], own]).unwrap().acme_names(), auto.acme_names());
        let listed = config("ACME=on\nACME_NAMES=Z.test.,y.test\n", &routes).unwrap();
        assert_eq!(listed.acme_names(), BTreeSet::from(["y.test".into(), "z.test".into()]));
        assert!(listed.warnings.is_empty());
        assert!(config("ACME_NAMES=y.test\n", &routes).unwrap().acme_names().is_empty());
    }

    #[test]
    fn what_can_not_hold_together_is_refused() {
        for (main, message) in [
            ("ACME=on\n", "config.env:1: `ACME`: there is no name to have a certificate for"),
            ("ACME_EAB_KEY_ID=kid\n", "config.env:1: `ACME_EAB_KEY_ID`: goes with `ACME_EAB_KEY`"),
            ("ACME_EAB_KEY=/key\n", "config.env:1: `ACME_EAB_KEY`: goes with `ACME_EAB_KEY_ID`"),
            ("ACME_NAMES=a.test,*.a.test\n", "takes the challenge dns-01, which doorward does not do"),
            ("ACME_NAMES=10.0.0.1\n", "`10.0.0.1` is not a name"),
            ("ACME_NAMES=a_b.test\n", "`a_b.test` is not a name"),
            ("ACME_EMAIL=me\n", "`me` is not an address"),
            ("ACME_EMAIL=a@b?cc=c@d\n", "is not an address"),
            ("ACME_DIRECTORY=http://ca.test/dir\n", "expected a URL as in"),
            ("ACME_DIRECTORY=https://u@ca.test/dir\n", "expected a URL as in"),
            ("ACME_CHALLENGE=dns-01\n", "expected `auto`, `http-01` or `tls-alpn-01`"),
        ] {
            let problems = config(main, &[]).unwrap_err().to_string();
            assert!(problems.contains(message), "{main}: {problems}");
        }
    }
}

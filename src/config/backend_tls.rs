//! TLS to backends as the configuration has it, and what of that can't hold together.
//!
//! Nothing is read here: what the files hold is looked at when the configuration as a
//! whole is sound.

use rustls::pki_types::ServerName as TlsName;

use super::addresses::Target;
use super::files::{FileForm, FileSource};
use super::load::{Config, RouteConfig};
use super::problems::{Origin, Problem, Problems, Setting};
use super::values::{Auto, Form, List, Wrong};
use super::words::Mode;

/// The keys that say how `https://` backends are spoken to.
const KEYS: &[&str] =
    &["BACKEND_TLS_CA", "BACKEND_TLS_NAME", "BACKEND_TLS_CERTIFICATE", "BACKEND_TLS_PRIVATE_KEY", "BACKEND_TLS_VERIFY"];

/// How a route speaks to its `https://` backends.
#[derive(Debug, Clone, Copy)]
pub struct BackendTls<'a> {
    config: &'a Config,
    route: &'a RouteConfig,
    /// The files of authorities that vouch for them; empty for those that the host trusts.
    pub authorities: &'a [FileSource],
    /// Whether anybody must.
    pub verify: bool,
    /// The certificate that it shows.
    pub certificate: Option<&'a FileSource>,
    /// The key of that; none when the same file has it too.
    pub key: Option<&'a FileSource>,
    /// Whether HTTP is spoken inside.
    pub http: bool,
}

impl<'a> BackendTls<'a> {
    /// That of a route, if one of its backends is `https://`.
    pub fn of(config: &'a Config, route: &'a RouteConfig) -> Option<BackendTls<'a>> {
        let settings = &route.settings;
        if !secured(route) {
            return None;
        }
        // The two belong together, so a route that names a certificate inherits no key.
        let inherits = route.is_default() || route.setting("BACKEND_TLS_CERTIFICATE").is_none();
        let key = settings.backend_tls_private_key.as_ref();
        Some(BackendTls {
            config,
            route,
            authorities: &settings.backend_tls_ca,
            verify: settings.backend_tls_verify,
            certificate: settings.backend_tls_certificate.as_ref(),
            key: key.filter(|_| inherits || route.setting("BACKEND_TLS_PRIVATE_KEY").is_some()),
            http: settings.mode == Mode::Http,
        })
    }

    /// A problem with `part` of the value of one of these keys, or with the backends that
    /// want what is not there.
    pub fn problem(&self, key: &str, part: Option<&FileSource>, message: String) -> Problem {
        let set = |key| self.config.setting_of(self.route, key);
        if let Some(setting) = set(key) {
            return setting.problem(message, part.map(ToString::to_string).as_deref());
        }
        let backend = self.route.settings.backend_address.iter().find(|backend| backend.target.is_tls());
        match set("BACKEND_ADDRESS") {
            Some(setting) => setting.problem(message, backend.map(|backend| backend.target.to_string()).as_deref()),
            None => Problem::new(Origin::Default, message),
        }
    }
}

fn secured(route: &RouteConfig) -> bool {
    route.settings.redirect.is_none() && route.settings.backend_address.iter().any(|one| one.target.is_tls())
}

/// Reports what can't hold together. Where it stands, it is reported.
pub(super) fn contradictions(config: &Config, route: &RouteConfig, problems: &mut Problems) {
    let own = |key| if route.is_default() { config.setting(key) } else { route.setting(key) };
    let changes = |key| own(key).filter(|setting: &&Setting| !setting.key.is_default(&setting.text));
    // What config.env says holds for routes too, and may be of use there.
    if !route.is_default() && !secured(route) {
        for setting in KEYS.iter().copied().filter_map(changes) {
            problems.push(setting.problem("no backend of this route is `https://`".to_owned(), None));
        }
        return;
    }
    if let Some(key) = changes("BACKEND_TLS_PRIVATE_KEY").filter(|_| changes("BACKEND_TLS_CERTIFICATE").is_none()) {
        problems.push(key.problem("there is no `BACKEND_TLS_CERTIFICATE` beside it".to_owned(), None));
    }
    if let (Some(off), Some(ca)) = (changes("BACKEND_TLS_VERIFY"), changes("BACKEND_TLS_CA")) {
        problems.push(ca.problem(format!("nobody is verified by it: `BACKEND_TLS_VERIFY=off` ({})", off.origin), None));
    }
}

/// What is allowed and yet seems unmeant, or should not be forgotten.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    if !config.routes.iter().any(secured) {
        let useless = KEYS.iter().filter_map(|key| config.setting(key));
        let useless = useless.filter(|setting| !setting.key.is_default(&setting.text));
        warnings.extend(useless.map(|setting| format!("{}: no backend is `https://`", setting.origin)));
        return warnings;
    }
    for route in config.routes.iter().filter(|route| secured(route) && !route.settings.backend_tls_verify) {
        let backends = route.settings.backend_address.iter().filter(|backend| backend.target.is_tls());
        let backends: Vec<String> = backends.map(|backend| format!("`{}`", backend.target)).collect();
        let place = config.setting_of(route, "BACKEND_TLS_VERIFY").map_or(&Origin::Default, |setting| &setting.origin);
        warnings.push(format!(
            "{place}: with `BACKEND_TLS_VERIFY=off` route {} takes anybody for {}: whoever is on the way there can \
             read and change everything",
            route.name,
            backends.join(", ")
        ));
    }
    warnings
}

/// The form of the files of authorities; `system`, an empty list, for those of the host.
pub(super) struct Authorities;

impl Authorities {
    const FILES: List<FileForm> = List { of: FileForm, noun: "files", may_be_empty: false, same: |a, b| a == b };
}

impl Form for Authorities {
    type Value = Vec<FileSource>;

    fn parse(&self, text: &str) -> Result<Vec<FileSource>, Wrong> {
        match text {
            "system" => Ok(Vec::new()),
            "" => Err(Wrong::new(format!("expected {}", self.describe()))),
            _ => Self::FILES.parse(text),
        }
    }

    fn describe(&self) -> String {
        format!("`system`, or {}", Self::FILES.describe())
    }
}

/// The form of a file, or `off` for none.
pub(super) struct FileOrOff;

impl Form for FileOrOff {
    type Value = Option<FileSource>;

    fn parse(&self, text: &str) -> Result<Option<FileSource>, Wrong> {
        if text == "off" { Ok(None) } else { FileForm.parse(text).map(Some) }
    }

    fn describe(&self) -> String {
        format!("`off`, or {}", FileForm.describe())
    }
}

/// The form of a name that certificates are for.
pub(super) struct ServerName;

impl Form for ServerName {
    type Value = TlsName<'static>;

    fn parse(&self, text: &str) -> Result<TlsName<'static>, Wrong> {
        TlsName::try_from(text.to_ascii_lowercase())
            .map_err(|_| Wrong::new(format!("expected {}, found `{text}`", self.describe())))
    }

    fn describe(&self) -> String {
        "a host name or an address, without a port".to_owned()
    }
}

/// By what name a backend proves itself: the one that is set, else its own.
pub fn server_name(set: &Auto<TlsName<'static>>, target: &Target) -> Option<TlsName<'static>> {
    match (target, set) {
        (Target::Tls(_), Auto::Is(name)) => Some(name.clone()),
        (Target::Tls(site), Auto::Auto) => site.server_name(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::config::Text;

    fn assemble(main: &str, routes: &[&str]) -> Result<Config, String> {
        let text = |name: String, text: &str| Text { path: Path::new(&name).into(), bytes: text.into() };
        let routes = routes.iter().enumerate().map(|(index, route)| text(format!("routes.d/r{index}.env"), route));
        Config::assemble(Some(text("config.env".into(), main)), routes.collect(), &BTreeMap::new())
            .map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_route_speaks_to_its_backends_as_it_says_or_inherits() {
        let main = "BACKEND_ADDRESS=https://app.test\nBACKEND_TLS_CERTIFICATE=/a.pem\nBACKEND_TLS_PRIVATE_KEY=/a.key\n";
        let routes = [
            "MATCH_PATH=/own\nBACKEND_TLS_CERTIFICATE=b.pem\nBACKEND_TLS_CA=/ca.pem,ca\n",
            "MATCH_PATH=/clear\nBACKEND_ADDRESS=10.0.0.1:80\n",
            "MATCH_PATH=/none\nBACKEND_TLS_CERTIFICATE=off\nBACKEND_TLS_VERIFY=off\n",
        ];
        let config = assemble(main, &routes).unwrap();
        let of = |route: usize| {
            BackendTls::of(&config, &config.routes[route]).map(|tls| {
                let file = |file: Option<&FileSource>| file.map(ToString::to_string).unwrap_or_default();
                (file(tls.certificate), file(tls.key), tls.authorities.len(), tls.verify)
            })
        };
        assert_eq!(of(0), Some(("b.pem".into(), String::new(), 2, true)));
        assert_eq!(of(1), None);
        assert_eq!(of(2), Some((String::new(), String::new(), 0, false)));
        assert_eq!(of(3), Some(("/a.pem".into(), "/a.key".into(), 0, true)));
    }

    #[test]
    fn what_can_t_hold_together_is_refused_where_it_stands() {
        for (main, route, said) in [
            ("", "BACKEND_TLS_NAME=a.test\n", "r0.env:2: `BACKEND_TLS_NAME`: no backend of this route is `https://`"),
            ("BACKEND_ADDRESS=https://a.test\n", "BACKEND_ADDRESS=b:80\nBACKEND_TLS_CA=/a\n", "r0.env:3: "),
            (
                "BACKEND_ADDRESS=https://a.test\n",
                "BACKEND_TLS_PRIVATE_KEY=/a.key\n",
                "r0.env:2: `BACKEND_TLS_PRIVATE_KEY`: there is no `BACKEND_TLS_CERTIFICATE` beside it",
            ),
            ("BACKEND_TLS_PRIVATE_KEY=/a.key\n", "", "config.env:1: `BACKEND_TLS_PRIVATE_KEY`: there is no"),
            (
                "BACKEND_ADDRESS=https://a.test\nBACKEND_TLS_CA=/ca.pem\nBACKEND_TLS_VERIFY=off\n",
                "",
                "config.env:2: `BACKEND_TLS_CA`: nobody is verified by it: `BACKEND_TLS_VERIFY=off` (config.env:3)",
            ),
            ("BACKEND_TLS_NAME=a:443\n", "", "expected `auto` or a host name or an address, without a port"),
            ("BACKEND_TLS_CA=\n", "", "expected `system`, or files"),
            ("BACKEND_TLS_CERTIFICATE=./a\n", "", "an absolute path"),
        ] {
            let wrong = assemble(main, &[&format!("MATCH_PATH=/a\n{route}")]).expect_err(main);
            assert!(wrong.contains(said), "{wrong}");
        }
    }

    #[test]
    fn a_route_may_verify_nobody_whatever_it_inherits_and_is_warned_of_it() {
        let main = "BACKEND_ADDRESS=https://a.test,https://10.0.0.1\nBACKEND_TLS_CA=/ca.pem\n";
        let config = assemble(main, &["MATCH_PATH=/a\nBACKEND_TLS_VERIFY=off\n"]).unwrap();
        let [warning] = config.warnings.as_slice() else { panic!("{:?}", config.warnings) };
        assert!(warning.starts_with("routes.d/r0.env:2: with `BACKEND_TLS_VERIFY=off` route r0 takes anybody for "));
        assert!(warning.contains("`https://a.test:443`, `https://10.0.0.1:443`"));
        let config = assemble("BACKEND_ADDRESS=a:80\nBACKEND_TLS_CA=/ca.pem\n", &[]).unwrap();
        assert_eq!(config.warnings, ["config.env:2: no backend is `https://`"]);
    }

    #[test]
    fn a_backend_proves_itself_by_its_own_name_unless_another_is_set() {
        let name = |set: &Auto<TlsName<'static>>, target: &str| {
            let backend = super::super::addresses::Backend.parse(target).unwrap();
            server_name(set, &backend.target).map(|name| name.to_str().into_owned())
        };
        assert_eq!(name(&Auto::Auto, "https://App_1.Test:8443").as_deref(), Some("app_1.test"));
        assert_eq!(name(&Auto::Auto, "https://[::1]").as_deref(), Some("::1"));
        let set = Auto::Is(ServerName.parse("Inside.Test").unwrap());
        assert_eq!(name(&set, "https://10.0.0.1").as_deref(), Some("inside.test"));
        assert_eq!(name(&set, "10.0.0.1:80"), None);
    }
}

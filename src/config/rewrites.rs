//! What a route sends on in place of what the client sent, and what of that can't hold
//! together.

use super::headers::same_name;
use super::load::{Config, RouteConfig};
use super::normal::SentPath;
use super::patterns::{Host, HostPattern, PathPattern};
use super::problems::{Problem, Problems};
use super::values::{Form, Wrong};
use super::words::Mode;

/// The keys that are of no use where nothing is read.
const KEYS: &[&str] = &[
    "STRIP_PREFIX",
    "BACKEND_HOST",
    "REDIRECT",
    "HTTPS_REDIRECT",
    "HSTS",
    "SET_REQUEST_HEADERS",
    "REMOVE_REQUEST_HEADERS",
    "SET_RESPONSE_HEADERS",
    "REMOVE_RESPONSE_HEADERS",
];

/// The keys that are of no use where no backend is asked.
const KEYS_OF_BACKENDS: &[&str] = &["BACKEND_ADDRESS", "BACKEND_HOST", "SET_REQUEST_HEADERS", "REMOVE_REQUEST_HEADERS"];

/// Whose name a backend is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendHost {
    /// The one that the client asked for.
    Client,
    /// The backend's own, as `BACKEND_ADDRESS` has it.
    Backend,
    /// This one, with its port if it has one.
    Named(String),
}

/// The form of a [`BackendHost`].
pub(super) struct BackendHostForm;

impl Form for BackendHostForm {
    type Value = BackendHost;

    fn parse(&self, text: &str) -> Result<BackendHost, Wrong> {
        match text {
            "client" => return Ok(BackendHost::Client),
            "backend" => return Ok(BackendHost::Backend),
            _ => {}
        }
        let (host, port) = match text.rfind(':') {
            Some(colon) if !text.ends_with(']') => text.split_at(colon),
            _ => (text, ":1"),
        };
        let digits = port.get(1..).unwrap_or_default();
        let port = digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse().is_ok_and(|port: u16| port > 0);
        match Host.parse(host) {
            Ok(HostPattern::Exact(_)) if port => Ok(BackendHost::Named(text.to_owned())),
            _ => Err(Wrong::new(format!("expected {}, found `{text}`", self.describe()))),
        }
    }

    fn describe(&self) -> String {
        "`client`, `backend` or a host, with a port or not".to_owned()
    }
}

/// The form of a prefix to strip: a path of whole segments, kept in normal form.
pub(super) struct Prefix;

impl Form for Prefix {
    type Value = String;

    fn parse(&self, text: &str) -> Result<String, Wrong> {
        let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
        if !text.starts_with('/') || !printable || text.contains(['?', '#', '*']) {
            return Err(Wrong::new(format!("`{text}` is not {}", self.describe())));
        }
        let normal = String::from_utf8_lossy(&SentPath::of(text.as_bytes()).normal()).into_owned();
        match normal.strip_suffix('/').unwrap_or(&normal) {
            "" => Err(Wrong::new(format!("there is nothing to strip in `{text}`"))),
            prefix => Ok(prefix.to_owned()),
        }
    }

    fn describe(&self) -> String {
        "a path as in `/api`".to_owned()
    }
}

/// Reports what contradicts itself in one route. `inherits` says that what it inherits
/// is known.
pub(super) fn contradictions(config: &Config, route: &RouteConfig, inherits: bool, problems: &mut Problems) {
    let settings = &route.settings;
    let own = |key| if route.is_default() { config.setting(key) } else { route.setting(key) };
    let changes = |key: &&str| route.setting(key).filter(|setting| !setting.key.is_default(&setting.text));
    if settings.mode == Mode::Tcp {
        let useless = KEYS.iter().filter_map(changes);
        let why = "with `MODE=tcp` nothing is read that could be changed or answered";
        useless.for_each(|setting| problems.push(setting.problem(why.to_owned(), None)));
        if let Some(setting) = own("BACKEND_ADDRESS").filter(|_| settings.backend_address.is_empty()) {
            let why = "with `MODE=tcp` nobody can be told that there is no backend";
            problems.push(setting.problem(why.to_owned(), None));
        }
    }
    // The default route's settings are also what other routes inherit.
    if let Some(redirect) = route.setting("REDIRECT").filter(|_| settings.redirect.is_some()) {
        for setting in KEYS_OF_BACKENDS.iter().filter_map(|key| route.setting(key)) {
            problems.push(setting.problem(format!("`REDIRECT` ({}) answers without a backend", redirect.origin), None));
        }
    }
    let inherited =
        config.setting("BACKEND_ADDRESS").filter(|_| inherits && route.setting("BACKEND_ADDRESS").is_none());
    if let Some(off) = inherited.filter(|_| settings.backend_address.is_empty() && settings.redirect.is_none()) {
        if !route.is_default() {
            let message = format!("`BACKEND_ADDRESS` is `off` ({}); this route needs its own", off.origin);
            problems.push(Problem::new(route.origin.clone(), message));
        }
    }
    for (set, remove, headers, names) in [
        (
            "SET_REQUEST_HEADERS",
            "REMOVE_REQUEST_HEADERS",
            &settings.set_request_headers,
            &settings.remove_request_headers,
        ),
        (
            "SET_RESPONSE_HEADERS",
            "REMOVE_RESPONSE_HEADERS",
            &settings.set_response_headers,
            &settings.remove_response_headers,
        ),
    ] {
        // What is inherited may say otherwise: then the field is set.
        let (Some(set), Some(remove)) = (own(set), own(remove)) else { continue };
        for name in names {
            if headers.iter().any(|header| same_name(header.name.as_bytes(), name.as_bytes())) {
                let message = format!("`{name}` is set as well ({})", set.origin);
                problems.push(remove.problem(message, Some(name)));
            }
        }
    }
}

/// Prefixes that no path of their route has, each as `path:line: message`.
pub(super) fn warnings(route: &RouteConfig) -> Vec<String> {
    let (Some(setting), paths) = (route.setting("STRIP_PREFIX"), &route.matcher.match_path) else { return Vec::new() };
    let below =
        |one: &str, other: &str| one.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let meets = |prefix: &String| {
        paths.iter().any(|path| match path {
            PathPattern::Exact(path) => below(path, prefix),
            PathPattern::Prefix(path) => below(path, prefix) || below(prefix, path),
        })
    };
    let lost = route.settings.strip_prefix.iter().filter(|prefix| !paths.is_empty() && !meets(prefix));
    lost.map(|prefix| format!("{}: no path of `MATCH_PATH` begins with `{prefix}`", setting.origin)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_asked_for_by_one_of_three_names() {
        assert_eq!(BackendHostForm.parse("client"), Ok(BackendHost::Client));
        assert_eq!(BackendHostForm.parse("backend"), Ok(BackendHost::Backend));
        for named in ["app.test", "App.test:8080", "10.0.0.1", "[::1]", "[::1]:80", "backend:80", "localhost"] {
            assert_eq!(BackendHostForm.parse(named), Ok(BackendHost::Named(named.to_owned())));
        }
        for wrong in ["", "a b", "a:", "a:x", "a:0", "a:70000", "*.a", "http://a", "a/b", "::1", "[::1", "a\r\nX: b"] {
            assert!(BackendHostForm.parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_prefix_is_a_path_in_normal_form() {
        for (text, prefix) in [("/api", "/api"), ("/api/", "/api"), ("/%61/./b%2f", "/a/b%2F"), ("//a", "//a")] {
            assert_eq!(Prefix.parse(text).as_deref(), Ok(prefix));
        }
        for wrong in ["", "/", "/a/..", "api", "=/api", "/a?b", "/a#", "/a*", "/a b", "/ä"] {
            assert!(Prefix.parse(wrong).is_err(), "{wrong}");
        }
    }
}

//! What a route matches.
//!
//! Patterns are kept in the normal form of [`super::normal`], which requests are
//! brought into before they are compared.

use std::fmt;
use std::net::Ipv6Addr;

use super::normal::{SentPath, normal_host};
use super::values::{Form, Wrong};

/// Listener names that a route can't match: they stand for other services.
pub const RESERVED_LISTENERS: &[&str] = &["admin", "metrics", "status", "ticket-keys"];

/// A host that a route matches, in normal form.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// This host alone.
    Exact(String),
    /// Any host below this one, one label deep or more: `*.example.com`.
    Below(String),
}

impl fmt::Display for HostPattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(host) => out.write_str(host),
            HostPattern::Below(parent) => write!(out, "*.{parent}"),
        }
    }
}

/// A path that a route matches, in normal form.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathPattern {
    /// This path alone: `=/exact`.
    Exact(String),
    /// This path and what is below it, on the borders of segments; without a
    /// final slash, so that every path is below the empty one.
    Prefix(String),
}

impl fmt::Display for PathPattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathPattern::Exact(path) => write!(out, "={path}"),
            PathPattern::Prefix(path) if path.is_empty() => out.write_str("/"),
            PathPattern::Prefix(path) => out.write_str(path),
        }
    }
}

/// The form of a [`HostPattern`].
pub(super) struct Host;

impl Form for Host {
    type Value = HostPattern;

    fn parse(&self, text: &str) -> Result<HostPattern, Wrong> {
        let (below, host) = match text.strip_prefix("*.") {
            Some(parent) => (true, parent),
            None => (false, text),
        };
        if host.contains('*') {
            return Err(Wrong::new(if text == "*" {
                "without `MATCH_HOST` a route matches every host".to_owned()
            } else {
                format!("`{text}`: `*` stands only for whole labels at the front, as in `*.example.com`")
            }));
        }
        if !host.is_ascii() {
            return Err(Wrong::new(format!("`{text}`: write the name in its ASCII form (`xn--…`)")));
        }
        let normal = normal_host(host.as_bytes());
        let normal = String::from_utf8_lossy(&normal);
        if host.starts_with('[') {
            let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            return match inner.and_then(|inner| inner.parse::<Ipv6Addr>().ok()) {
                Some(_) if !below => Ok(HostPattern::Exact(normal.into_owned())),
                _ => Err(Wrong::new(format!("`{text}` is not {}", self.describe()))),
            };
        }
        if host.contains(':') {
            return Err(Wrong::new(format!("`{text}`: a host is matched without its port")));
        }
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        if normal.len() > 253 || !normal.split('.').all(label) {
            return Err(Wrong::new(format!("`{text}` is not {}", self.describe())));
        }
        let normal = normal.into_owned();
        Ok(if below { HostPattern::Below(normal) } else { HostPattern::Exact(normal) })
    }

    fn describe(&self) -> String {
        "a host as in `example.com`, or `*.example.com` for all below it".to_owned()
    }
}

/// The form of a [`PathPattern`].
pub(super) struct Path;

impl Form for Path {
    type Value = PathPattern;

    fn parse(&self, text: &str) -> Result<PathPattern, Wrong> {
        let (exact, path) = match text.strip_prefix('=') {
            Some(path) => (true, path),
            None => (false, text),
        };
        let printable = path.bytes().all(|byte| byte.is_ascii_graphic());
        if !path.starts_with('/') || !printable || path.contains(['?', '#', '*']) {
            return Err(Wrong::new(format!("`{text}` is not {}", self.describe())));
        }
        let normal = String::from_utf8_lossy(&SentPath::of(path.as_bytes()).normal()).into_owned();
        Ok(if exact {
            PathPattern::Exact(normal)
        } else {
            let prefix = normal.strip_suffix('/').unwrap_or(&normal);
            PathPattern::Prefix(prefix.to_owned())
        })
    }

    fn describe(&self) -> String {
        "a path as in `/api` for it and all below it, or `=/api` for it alone".to_owned()
    }
}

/// The form of a listener's name: what `FileDescriptorName=` of a socket unit gives.
///
/// Source: sd_listen_fds(3): at most 255 ASCII characters, neither control
/// characters nor `:`.
pub(super) struct ListenerName;

impl Form for ListenerName {
    type Value = String;

    fn parse(&self, text: &str) -> Result<String, Wrong> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b':';
        if text.is_empty() || text.len() > 255 || !text.bytes().all(allowed) {
            return Err(Wrong::new(format!("`{text}` is not {}", self.describe())));
        }
        if RESERVED_LISTENERS.contains(&text) {
            return Err(Wrong::new(format!("the listener name `{text}` is reserved")));
        }
        Ok(text.to_owned())
    }

    fn describe(&self) -> String {
        "the name of a listener, as `FileDescriptorName=` of its socket unit gives it".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_kept_in_normal_form() {
        for (text, shown) in [
            ("Example.com", "example.com"),
            ("*.Example.com.", "*.example.com"),
            ("[2001:DB8::1]", "[2001:db8::1]"),
            ("10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(Host.parse(text).unwrap().to_string(), shown);
        }
        for (text, shown) in
            [("/", "/"), ("/api", "/api"), ("/api/", "/api"), ("/%61pi", "/api"), ("=/api/", "=/api/"), ("=/", "=/")]
        {
            assert_eq!(Path.parse(text).unwrap().to_string(), shown);
        }
        assert_eq!(ListenerName.parse("app-1").unwrap(), "app-1");
    }

    #[test]
    fn wrong_patterns_are_refused() {
        for text in
            ["*", "*.*.a", "a.*", "*a.com", "a.com:80", "[::1", "*.[::1]", "ä.com", "a..b", "", "*.", "a b", "http://a"]
        {
            assert!(Host.parse(text).is_err(), "{text}");
        }
        for text in ["", "api", "=api", "/a?b", "/a#b", "/a*", "/a b", "/ä", "~/a"] {
            assert!(Path.parse(text).is_err(), "{text}");
        }
        for text in ["", "a:b", "ä", "a b", "admin", "metrics", "ticket-keys"] {
            assert!(ListenerName.parse(text).is_err(), "{text}");
        }
    }
}

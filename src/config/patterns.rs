//! What a route matches, and the normal form in which hosts and paths are compared.
//!
//! Patterns and requests are brought into one normal form, so that two spellings
//! of one thing meet the same route. Only the copy that is compared is changed:
//! what the backend receives stays as the client wrote it.

use std::borrow::Cow;
use std::fmt;

use super::values::{Form, Wrong};

/// Listener names that a route can't match: they stand for other services.
pub const RESERVED_LISTENERS: &[&str] = &["admin", "https", "metrics", "status"];

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
            return match inner.and_then(|inner| inner.parse::<std::net::Ipv6Addr>().ok()) {
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
        let normal = String::from_utf8_lossy(&normal_path(path.as_bytes())).into_owned();
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

/// The normal form of a `Host` field or an authority: lower case, without port and final dot.
///
/// Borrows when there is nothing to change but the ends. Not a validator: what is
/// no host comes back as something that no pattern equals.
pub fn normal_host(host: &[u8]) -> Cow<'_, [u8]> {
    let bare = match host.first() {
        Some(b'[') => match memchr::memchr(b']', host) {
            Some(end) => host.get(..=end).unwrap_or(host),
            None => host,
        },
        _ => match memchr::memrchr(b':', host) {
            Some(colon) => host.get(..colon).unwrap_or(host),
            None => host,
        },
    };
    let bare = bare.strip_suffix(b".").unwrap_or(bare);
    if bare.iter().any(u8::is_ascii_uppercase) { Cow::Owned(bare.to_ascii_lowercase()) } else { Cow::Borrowed(bare) }
}

/// The normal form of a request's path: without query, unreserved characters
/// decoded, other escapes in capitals, dot segments resolved.
///
/// `%2F` stays what it is and `//` stays two slashes, since backends tell them
/// apart. Borrows when there is nothing to change, which is nearly always.
///
/// Source: RFC 3986 §6.2.2.1 to §6.2.2.3 and §5.2.4.
pub fn normal_path(target: &[u8]) -> Cow<'_, [u8]> {
    let end = memchr::memchr2(b'?', b'#', target).unwrap_or(target.len());
    let path = target.get(..end).unwrap_or(target);
    if path.is_empty() {
        return Cow::Borrowed(b"/");
    }
    if memchr::memchr(b'%', path).is_some() {
        let decoded = decode_unreserved(path);
        return Cow::Owned(if has_dot_segment(&decoded) { remove_dot_segments(&decoded) } else { decoded });
    }
    if has_dot_segment(path) {
        return Cow::Owned(remove_dot_segments(path));
    }
    Cow::Borrowed(path)
}

fn decode_unreserved(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let escape = match (byte, after) {
            (b'%', [high, low, tail @ ..]) => {
                hex(*high).zip(hex(*low)).map(|(first, second)| (first * 16 + second, [*high, *low], tail))
            }
            _ => None,
        };
        match escape {
            Some((plain, digits, tail)) => {
                rest = tail;
                if plain.is_ascii_alphanumeric() || b"-._~".contains(&plain) {
                    out.push(plain);
                } else {
                    out.push(b'%');
                    out.extend(digits.map(|digit| digit.to_ascii_uppercase()));
                }
            }
            None => out.push(byte),
        }
    }
    out
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn has_dot_segment(path: &[u8]) -> bool {
    memchr::memchr(b'.', path).is_some()
        && path.split(|byte| *byte == b'/').any(|segment| segment == b"." || segment == b"..")
}

fn remove_dot_segments(path: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut open = false; // whether the path ends with a slash
    for segment in path.strip_prefix(b"/").unwrap_or(path).split(|byte| *byte == b'/') {
        open = segment == b"." || segment == b"..";
        if segment == b".." {
            kept.pop();
        } else if segment != b"." {
            kept.push(segment);
        }
    }
    let mut out = Vec::with_capacity(path.len());
    for segment in kept {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if open || out.is_empty() {
        out.push(b'/');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_one_normal_form() {
        for (host, normal) in [
            ("example.com", "example.com"),
            ("Example.COM:8080", "example.com"),
            ("example.com.", "example.com"),
            ("example.com.:80", "example.com"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("[::1]:80", "[::1]"),
            ("[FE80::1]", "[fe80::1]"),
            ("[::1", "[::1"),
            ("", ""),
            (":80", ""),
        ] {
            assert_eq!(normal_host(host.as_bytes()), normal.as_bytes(), "{host}");
        }
        assert!(matches!(normal_host(b"example.com:80"), Cow::Borrowed(_)));
    }

    #[test]
    fn paths_have_one_normal_form() {
        for (path, normal) in [
            ("/", "/"),
            ("", "/"),
            ("?q", "/"),
            ("*", "*"),
            ("/a/b?c=/../d", "/a/b"),
            ("/a#b", "/a"),
            ("/%61pi/%7euser", "/api/~user"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a%", "/a%"),
            ("/a%4", "/a%4"),
            ("/a%zz%61", "/a%zza"),
            ("/%%41", "/%A"),
            ("/%2541", "/%2541"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/../../a", "/a"),
            ("/..", "/"),
            ("/a//b", "/a//b"),
            ("//a", "//a"),
            ("//a/..", "//"),
            ("/a//../b", "/a/b"),
            ("/a/.well-known/...", "/a/.well-known/..."),
            ("/a%00b", "/a%00b"),
        ] {
            assert_eq!(String::from_utf8_lossy(&normal_path(path.as_bytes())), normal, "{path}");
        }
        for path in ["/", "/a/b.html?x=%41", "/.well-known/x", "//a"] {
            assert!(matches!(normal_path(path.as_bytes()), Cow::Borrowed(_)), "{path}");
        }
    }

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
        for text in ["", "a:b", "ä", "a b", "admin", "https"] {
            assert!(ListenerName.parse(text).is_err(), "{text}");
        }
    }
}

//! What a route changes of what it passes on, and what it answers by itself.
//!
//! All of it is worked out once for a configuration. A route that changes nothing, as
//! most don't, has no [`Rewrites`], and its requests pay for a look at that.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::config::{
    BackendHost, Header, Piece, Redirect, RouteSettings, SentPath, normal_host, same_name, strip_prefix,
};

/// What a route changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrites {
    /// Where those are sent that came without TLS.
    pub https: Option<Redirect>,
    /// Requests are answered without asking a backend.
    pub answer: Option<Answer>,
    /// In normal form, the longest first.
    prefixes: Box<[Box<[u8]>]>,
    /// Whose name a backend is asked for.
    pub host: BackendHost,
    /// What becomes of a request's fields.
    pub request: Option<FieldEdits>,
    /// What becomes of a response's fields.
    pub response: Option<FieldEdits>,
    /// What does where the request came by TLS, if that is anything else.
    pub secure_response: Option<FieldEdits>,
}

/// An answer that needs no backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The client is to go elsewhere.
    Redirect(Redirect),
    /// There is no backend.
    NotFound,
}

impl Rewrites {
    /// What these settings change, if anything.
    #[must_use]
    pub fn of(settings: &RouteSettings) -> Option<Box<Self>> {
        let mut prefixes: Vec<Box<[u8]>> =
            settings.strip_prefix.iter().map(|prefix| prefix.as_bytes().into()).collect();
        prefixes.sort_by_key(|prefix| std::cmp::Reverse(prefix.len()));
        let answer = match &settings.redirect {
            Some(redirect) => Some(Answer::Redirect(redirect.clone())),
            None if settings.backend_address.is_empty() => Some(Answer::NotFound),
            None => None,
        };
        let response = FieldEdits::of(&settings.set_response_headers, &settings.remove_response_headers);
        let rewrites = Self {
            https: settings.https_redirect.map(to_https),
            answer,
            prefixes: prefixes.into(),
            host: settings.backend_host.clone(),
            request: FieldEdits::of(&settings.set_request_headers, &settings.remove_request_headers),
            secure_response: settings.hsts.as_ref().map(|value| {
                let edits = response.clone().unwrap_or_else(|| FieldEdits::new(&[], &[]));
                edits.with_missing("Strict-Transport-Security", value)
            }),
            response,
        };
        let nothing = rewrites.answer.is_none()
            && rewrites.https.is_none()
            && rewrites.prefixes.is_empty()
            && rewrites.host == BackendHost::Client
            && rewrites.request.is_none()
            && rewrites.response.is_none()
            && rewrites.secure_response.is_none();
        (!nothing).then(|| Box::new(rewrites))
    }

    /// The same, and what no client may say beside it: fields of these names don't go on, also
    /// where the route changes nothing else.
    #[must_use]
    pub fn without(settings: &RouteSettings, names: &[&str]) -> Option<Box<Self>> {
        let rewrites = Self::of(settings);
        if names.is_empty() {
            return rewrites;
        }
        let mut rewrites = rewrites.unwrap_or_else(|| {
            let host = settings.backend_host.clone();
            Box::new(Self {
                https: None,
                answer: None,
                prefixes: [].into(),
                host,
                request: None,
                response: None,
                secure_response: None,
            })
        });
        let request = rewrites.request.get_or_insert_with(FieldEdits::default);
        request.dropped = request.dropped.iter().cloned().chain(names.iter().map(|name| (*name).into())).collect();
        Some(rewrites)
    }

    /// The path that is sent on in place of the client's, if another one is: without the
    /// longest prefix that it has. It begins with `/`.
    #[must_use]
    pub fn path<'a>(&self, path: &'a SentPath<'_>) -> Option<&'a [u8]> {
        self.prefixes.iter().find_map(|prefix| strip_prefix(path.bytes(), prefix)).or(path.changed())
    }
}

/// The same URL by TLS, at this port.
fn to_https(port: u16) -> Redirect {
    let mut pieces = vec![Piece::Text("https://".to_owned()), Piece::Host];
    pieces.extend((port != 443).then(|| Piece::Text(format!(":{port}"))));
    pieces.extend([Piece::Path, Piece::Query('?')]);
    let target = if port == 443 { String::new() } else { format!(":{port}") };
    Redirect { status: 308, target: format!("https://{{host}}{target}{{path}}{{query}}"), pieces }
}

/// Fields to set and to remove.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldEdits {
    /// Names of fields that don't go on: those removed, and those set anew.
    dropped: Box<[Box<str>]>,
    set: Box<[Header]>,
    /// The fields set, as lines of HTTP/1.
    lines: Box<[u8]>,
    /// One that is set where there is none of its name.
    missing: Option<Header>,
}

impl FieldEdits {
    fn of(set: &[Header], removed: &[String]) -> Option<Self> {
        (!set.is_empty() || !removed.is_empty()).then(|| Self::new(set, removed))
    }

    fn new(set: &[Header], removed: &[String]) -> Self {
        let mut lines = String::new();
        for Header { name, value } in set {
            // Writing into a string can't fail.
            let _ = write!(lines, "{name}: {value}\r\n");
        }
        let names = removed.iter().chain(set.iter().map(|header| &header.name));
        Self {
            dropped: names.map(|name| name.as_str().into()).collect(),
            set: set.into(),
            lines: lines.into_bytes().into(),
            missing: None,
        }
    }

    /// The same, and a field that is set where there is none of its name. One that is dropped
    /// is set in another way or not at all.
    fn with_missing(mut self, name: &str, value: &str) -> Self {
        let missing = Header { name: name.to_owned(), value: value.to_owned() };
        self.missing = (!self.drops(name.as_bytes())).then_some(missing);
        self
    }

    /// A field that is to be set where there is none of its name.
    #[must_use]
    pub fn missing(&self) -> Option<&Header> {
        self.missing.as_ref()
    }

    /// Whether a field of this name that came does not go on.
    #[must_use]
    pub fn drops(&self, name: &[u8]) -> bool {
        self.dropped.iter().any(|dropped| same_name(dropped.as_bytes(), name))
    }

    /// The names of the fields that don't go on.
    pub fn dropped(&self) -> impl Iterator<Item = &str> {
        self.dropped.iter().map(|name| &**name)
    }

    /// The fields that are set, as lines of HTTP/1, each with its end.
    #[must_use]
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// The fields that are set.
    #[must_use]
    pub fn set(&self) -> &[Header] {
        &self.set
    }
}

/// Where a redirect sends the client of a request: the value of `Location`, of visible
/// ASCII characters.
///
/// `host` is the authority that was asked for, `path` what would be sent on, `query` what
/// stands behind its question mark. `None` when the target names the host and that is none.
///
/// A target without a host stays on the one that was asked: it never begins with two
/// slashes, nor with what browsers take for them, however the path does.
#[must_use]
pub fn location(redirect: &Redirect, host: Option<&[u8]>, path: &[u8], query: Option<&[u8]>) -> Option<String> {
    let mut location = String::new();
    for piece in &redirect.pieces {
        match piece {
            Piece::Text(text) => location.push_str(text),
            Piece::Host => location.push_str(&plain_host(host?)?),
            Piece::Path => {
                let slashes = path.iter().take_while(|byte| matches!(byte, b'/' | b'\\')).count();
                let rest = path.get(slashes..).unwrap_or_default();
                // Behind a host, `*` would be a part of its name.
                if !path.starts_with(b"/") || (location.is_empty() && slashes > 1) {
                    location.push('/');
                    push(&mut location, rest);
                } else {
                    push(&mut location, path);
                }
            }
            Piece::Query(before) => {
                if let Some(query) = query {
                    location.push(*before);
                    push(&mut location, query);
                }
            }
        }
    }
    Some(location)
}

/// A host in normal form, if it is an address or what a name consists of.
fn plain_host(host: &[u8]) -> Option<String> {
    let normal: Cow<'_, [u8]> = normal_host(host);
    let address = normal.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    let sound = match address {
        Some(address) => address.iter().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(byte)),
        None => !normal.is_empty() && normal.iter().all(plain),
    };
    sound.then(|| String::from_utf8_lossy(&normal).into_owned())
}

/// Appends a part of a request's target; what can't stand in a URI is escaped.
fn push(location: &mut String, part: &[u8]) {
    for byte in part {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(byte) {
            location.push(char::from(*byte));
        } else {
            let _ = write!(location, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Text};

    fn rewrites(text: &str) -> Option<Box<Rewrites>> {
        let text = Text { path: Path::new("config.env").into(), bytes: text.as_bytes().to_vec() };
        let config =
            Config::assemble(Some(text), Vec::new(), &BTreeMap::new()).unwrap_or_else(|wrong| panic!("{wrong}"));
        Rewrites::of(&config.routes[0].settings)
    }

    #[test]
    fn a_route_that_changes_nothing_has_none() {
        assert_eq!(rewrites(""), None);
        assert_eq!(rewrites("REDIRECT=off\nSTRIP_PREFIX=\nBACKEND_HOST=client\nSET_REQUEST_HEADERS=\n"), None);
        for one in [
            "REDIRECT=/a",
            "STRIP_PREFIX=/a",
            "BACKEND_HOST=backend",
            "REMOVE_RESPONSE_HEADERS=a",
            "BACKEND_ADDRESS=off",
        ] {
            assert!(rewrites(one).is_some(), "{one}");
        }
    }

    #[test]
    fn the_longest_prefix_is_stripped_of_what_is_sent_on() {
        let rewrites = rewrites("STRIP_PREFIX=/a,/a/b/c,/a/b").unwrap();
        for (path, sent) in [
            ("/a/b/x", Some("/x")),
            ("/%61/b/c", Some("/")),
            ("/a/bc", Some("/bc")),
            ("/x/../a/%7e", Some("/~")),
            ("/a/../b/%7e", Some("/b/~")),
            ("/b", None),
        ] {
            let path = SentPath::of(path.as_bytes());
            assert_eq!(rewrites.path(&path).map(String::from_utf8_lossy).as_deref(), sent);
        }
    }

    #[test]
    fn what_is_set_takes_the_place_of_what_came_however_that_is_spelled() {
        let rewrites = rewrites("SET_REQUEST_HEADERS=\"X-User: a | X-B: c\"\nREMOVE_REQUEST_HEADERS=Cookie\n").unwrap();
        let edits = rewrites.request.unwrap();
        assert_eq!(edits.lines(), b"X-User: a\r\nX-B: c\r\n");
        for (name, drops) in
            [("x-user", true), ("X_User", true), ("X-B", true), ("cookie", true), ("X-Us", false), ("Cookie2", false)]
        {
            assert_eq!(edits.drops(name.as_bytes()), drops, "{name}");
        }
        assert_eq!(rewrites.response, None);
    }

    fn sent_to(target: &str, host: Option<&str>, path: &str, query: Option<&str>) -> Option<String> {
        let rewrites = rewrites(&format!("REDIRECT='{target}'")).unwrap();
        let Some(Answer::Redirect(redirect)) = rewrites.answer else { panic!("{target} is no redirect") };
        location(&redirect, host.map(str::as_bytes), path.as_bytes(), query.map(str::as_bytes))
    }

    #[test]
    fn a_redirect_keeps_what_it_is_asked_to_keep() {
        for (target, host, path, query, location) in [
            ("https://a.test", Some("b"), "/x", Some("y"), "https://a.test"),
            ("308 https://{host}{path}{query}", Some("B.test.:80"), "/x%2f", Some("y=/?"), "https://b.test/x%2f?y=/?"),
            ("https://{host}:8443{path}{query}", Some("[::1]:80"), "/", None, "https://[::1]:8443/"),
            ("/new/{path}?a{query}#f", None, "/x", Some("y"), "/new/x?a&y#f"),
            ("/new{path}?a{query}#f", None, "/x", None, "/new/x?a#f"),
            ("https://a.test{path}", None, "//b.test/x", None, "https://a.test//b.test/x"),
            ("{path}/", None, "/x", None, "/x/"),
            ("https://a.test{query}", None, "/x", Some(""), "https://a.test?"),
        ] {
            assert_eq!(sent_to(target, host, path, query).as_deref(), Some(location), "{target}");
        }
    }

    #[test]
    fn no_path_leads_to_another_host() {
        for path in ["//evil.test/x", "/\\evil.test/x", "\\/evil.test/x", "/\\/\\evil.test/x", "evil.test/x"] {
            assert_eq!(sent_to("{path}", None, path, None).as_deref(), Some("/evil.test/x"), "{path}");
            assert_eq!(sent_to("/{path}", None, path, None).as_deref(), Some("/evil.test/x"), "{path}");
        }
        assert_eq!(sent_to("{path}", None, "*", None).as_deref(), Some("/*"));
        assert_eq!(sent_to("https://{host}{path}", Some("a.test"), "*", None).as_deref(), Some("https://a.test/*"));
    }

    #[test]
    fn nothing_that_a_client_sends_ends_the_field_or_the_url() {
        let odd: String = (0..128).map(char::from).collect();
        let sent = sent_to("/a{path}{query}", None, &format!("/{odd}"), Some(&odd)).unwrap();
        assert!(sent.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte)), "{sent}");
        assert_eq!(sent_to("/a{query}", None, "/", Some("\u{e4}\r\nX: y")).as_deref(), Some("/a?%C3%A4%0D%0AX:%20y"));
        for host in [None, Some(""), Some(":80"), Some("a,b"), Some("a%41"), Some("a'b"), Some("[x]"), Some("[::1")] {
            assert_eq!(sent_to("https://{host}", host, "/", None), None, "{host:?}");
        }
    }
}

//! The normal form in which hosts and paths are compared.
//!
//! Patterns and requests are brought into it, so that two spellings of one thing meet
//! the same route. What goes on stays as the client wrote it, since signatures are made
//! over that: only a path with dot segments goes on in its normal form, since a backend
//! that resolves them for itself would serve what another route was to guard.

use std::borrow::Cow;
use std::net::Ipv6Addr;

/// The normal form of a `Host` field or an authority: lower case, without port and final dot.
///
/// An IPv6 address is in the form of RFC 5952. Borrows when there is nothing to change
/// but the ends. Not a validator: what is no host comes back as something that no
/// pattern equals.
pub fn normal_host(host: &[u8]) -> Cow<'_, [u8]> {
    let bare = match host.first() {
        Some(b'[') => {
            let literal = memchr::memchr(b']', host).and_then(|end| host.get(1..end));
            let address = literal.and_then(|literal| std::str::from_utf8(literal).ok()?.parse::<Ipv6Addr>().ok());
            return match address {
                Some(address) => Cow::Owned(format!("[{address}]").into_bytes()),
                None => Cow::Borrowed(host),
            };
        }
        _ => match memchr::memrchr(b':', host) {
            Some(colon) => host.get(..colon).unwrap_or(host),
            None => host,
        },
    };
    let bare = bare.strip_suffix(b".").unwrap_or(bare);
    if bare.iter().any(u8::is_ascii_uppercase) { Cow::Owned(bare.to_ascii_lowercase()) } else { Cow::Borrowed(bare) }
}

/// A request's path without its query, as it goes on to a backend: as it came, but with
/// its dot segments resolved, however they are written, and in normal form if it has any.
#[derive(Debug, Clone)]
pub struct SentPath<'a>(Cow<'a, [u8]>);

impl<'a> SentPath<'a> {
    /// The path that goes on for `path`, which has no query. Allocates only for one with
    /// dot segments.
    #[must_use]
    pub fn of(path: &'a [u8]) -> Self {
        let resolves = path.len() > 1 && has_dot_segment(path);
        Self(if resolves { remove_dot_segments(&decode_unreserved(path)).into() } else { path.into() })
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its bytes, if they are not those that came.
    #[must_use]
    pub fn changed(&self) -> Option<&[u8]> {
        match &self.0 {
            Cow::Owned(path) => Some(path),
            Cow::Borrowed(_) => None,
        }
    }

    /// Its normal form, to be compared: unreserved characters decoded, other escapes in
    /// capitals, dot segments resolved. Allocates only for a path with escapes.
    ///
    /// `%2F` stays what it is and `//` stays two slashes, since backends tell them
    /// apart. A `%` that begins no escape is written `%25`: left alone it could begin one
    /// with what is decoded behind it.
    ///
    /// Source: RFC 3986 §6.2.2.1 to §6.2.2.3 and §5.2.4.
    #[must_use]
    pub fn normal(&self) -> Cow<'_, [u8]> {
        match memchr::memchr(b'%', &self.0) {
            Some(_) => Cow::Owned(decode_unreserved(&self.0)),
            None => Cow::Borrowed(&self.0),
        }
    }
}

/// What is left of a path behind `prefix`, which is in normal form and ends at the border
/// of a segment; at least `/`. `None`: the path does not begin so.
///
/// The path may be written in another way than the prefix; what is left of it stays as
/// it is.
pub fn strip_prefix<'a>(path: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (mut rest, mut prefix) = (path, prefix);
    while !prefix.is_empty() {
        let (byte, tail) = first_byte(rest)?;
        prefix = match byte {
            Byte::Plain(plain) => prefix.strip_prefix(&[plain])?,
            Byte::Escape([high, low]) => prefix.strip_prefix(&[b'%', high, low])?,
        };
        rest = tail;
    }
    match rest.first() {
        None => Some(b"/"),
        Some(b'/') => Some(rest),
        Some(_) => None,
    }
}

fn decode_unreserved(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((byte, tail)) = first_byte(rest) {
        rest = tail;
        match byte {
            Byte::Plain(plain) => out.push(plain),
            Byte::Escape(digits) => {
                out.push(b'%');
                out.extend(digits);
            }
        }
    }
    out
}

/// A byte of a path in its normal form.
enum Byte {
    Plain(u8),
    /// The digits behind `%`, in capitals.
    Escape([u8; 2]),
}

/// The first byte or escape of a path, in its normal form, and what follows.
fn first_byte(path: &[u8]) -> Option<(Byte, &[u8])> {
    let (&byte, rest) = path.split_first()?;
    if byte != b'%' {
        return Some((Byte::Plain(byte), rest));
    }
    let escape = match rest {
        [high, low, tail @ ..] => hex(*high).zip(hex(*low)).map(|(first, second)| (first * 16 + second, tail)),
        _ => None,
    };
    Some(match (escape, rest) {
        (Some((plain, tail)), _) if plain.is_ascii_alphanumeric() || b"-._~".contains(&plain) => {
            (Byte::Plain(plain), tail)
        }
        (Some((_, tail)), [high, low, ..]) => {
            (Byte::Escape([high.to_ascii_uppercase(), low.to_ascii_uppercase()]), tail)
        }
        _ => (Byte::Escape(*b"25"), rest),
    })
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Whether a segment is `.` or `..`, each dot as it is or as `%2e`.
fn has_dot_segment(path: &[u8]) -> bool {
    fn dot(text: &[u8]) -> Option<&[u8]> {
        match text {
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => Some(rest),
            _ => None,
        }
    }
    /// Where the next dot may be. Too short for vectors, a path is looked through sooner
    /// than they are set up.
    fn next(rest: &[u8]) -> Option<usize> {
        if rest.len() < 16 {
            rest.iter().position(|byte| matches!(byte, b'.' | b'%'))
        } else {
            memchr::memchr2(b'.', b'%', rest)
        }
    }
    let ends = |rest: &[u8]| matches!(rest.first(), None | Some(b'/'));
    let mut before = 0;
    let mut rest = path;
    while let Some(at) = next(rest) {
        let found = rest.get(at..).unwrap_or_default();
        let begins = (before + at).checked_sub(1).and_then(|before| path.get(before)) == Some(&b'/');
        if begins && dot(found).is_some_and(|rest| ends(rest) || dot(rest).is_some_and(ends)) {
            return true;
        }
        before += at + 1;
        rest = found.get(1..).unwrap_or_default();
    }
    false
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
            ("[0:0::0001]", "[::1]"),
            ("[::ffff:192.0.2.1]", "[::ffff:192.0.2.1]"),
            ("[::1", "[::1"),
            ("[x]:80", "[x]:80"),
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
            ("*", "*"),
            ("/%61pi/%7euser", "/api/~user"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a%", "/a%25"),
            ("/a%4", "/a%254"),
            ("/a%zz%61", "/a%25zza"),
            ("/%%41", "/%25A"),
            ("/%%361", "/%2561"),
            ("/a/%%2e", "/a/%25."),
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
            assert_eq!(String::from_utf8_lossy(&SentPath::of(path.as_bytes()).normal()), normal, "{path}");
        }
        for path in ["/", "/a/b.html", "/.well-known/x", "//a"] {
            assert!(matches!(SentPath::of(path.as_bytes()).normal(), Cow::Borrowed(_)), "{path}");
        }
    }

    #[test]
    fn only_a_path_with_dot_segments_goes_on_in_another_form() {
        for (path, sent) in [
            ("/a/../b", "/b"),
            ("/a/.%2E/b", "/b"),
            ("/a/%2e/b", "/a/b"),
            ("/a/%2E%2e", "/"),
            ("/%61%2fb%3ac//./d/", "/a%2Fb%3Ac//d/"),
            ("/a/b/../%%32e/c", "/a/%252e/c"),
            ("/..", "/"),
            ("/.", "/"),
        ] {
            let path = SentPath::of(path.as_bytes());
            assert_eq!(path.changed().map(String::from_utf8_lossy).as_deref(), Some(sent));
        }
        for path in [
            "/",
            "*",
            "/%7Euser/%2fx//y",
            "/a.b/c.",
            "/.a/..b/...",
            "/a%2e",
            "/%252e/x",
            "/%2e%2f",
            "/..%2fa",
            "/.;a",
            "/%%2e/x",
            "/a/%2/.b",
            "/%",
            "/%2",
        ] {
            assert_eq!(SentPath::of(path.as_bytes()).changed(), None, "{path}");
        }
    }

    #[test]
    fn a_prefix_is_stripped_by_whole_segments_however_it_is_written() {
        for (path, prefix, left) in [
            ("/api", "/api", Some("/")),
            ("/api/", "/api", Some("/")),
            ("/api/v1%2f?", "/api", Some("/v1%2f?")),
            ("/%61p%69/%61", "/api", Some("/%61")),
            ("/api//x", "/api", Some("//x")),
            ("/a%2fb/c", "/a%2Fb", Some("/c")),
            ("/a%/c", "/a%25", Some("/c")),
            ("/apis", "/api", None),
            ("/ap", "/api", None),
            ("/api%2Fx", "/api", None),
            ("/a/b", "/a%2Fb", None),
            ("/API/x", "/api", None),
            ("/", "/api", None),
            ("*", "/api", None),
        ] {
            let stripped = strip_prefix(path.as_bytes(), prefix.as_bytes());
            assert_eq!(stripped.map(String::from_utf8_lossy).as_deref(), left, "{path}");
        }
    }

    /// Else a route could be found for one path and a backend serve another.
    #[test]
    fn the_normal_form_of_a_normal_form_is_itself() {
        let parts =
            ["/", "a", ".", "%", "2", "e", "E", "6", "1", "f", "5", ";", "%2e", "%61", "%2F", "%25", "//", "/.."];
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..50_000 {
            let count = random.usize(..12);
            let path: String = (0..count).map(|_| parts[random.usize(..parts.len())]).collect();
            let path = format!("/{path}");
            let sent = SentPath::of(path.as_bytes());
            let normal = sent.normal();
            assert_eq!(SentPath::of(&normal).changed(), None, "{path}");
            assert_eq!(SentPath::of(&normal).normal(), normal, "{path}");
            match sent.changed() {
                Some(changed) => assert_eq!(changed, &*normal, "{path}"),
                None => assert_eq!(decode_unreserved(path.as_bytes()), *normal, "{path}"),
            }
        }
    }
}

//! Head: makes of what opened a stream what a head of HTTP/1 is.
//!
//! Its parts are written into bytes of its own as lines of HTTP/1 would have them, and their
//! meaning is worked out by the same code ([`parse::meaning`]): what is refused in one version is
//! refused in the other, and nothing is sent on to a backend that could be read as more than
//! it is (RFC 9113 §10.3). What makes a request malformed in HTTP/2 alone the `h2` crate has
//! refused by then (§8.1 to §8.3): field names in capitals, fields that concern a connection,
//! pseudo-header fields that are missing, double, unknown or out of place, a body that is not
//! as long as its head says.
//!
//! An extended CONNECT (RFC 8441) becomes what asks for the same in HTTP/1.1: a GET that offers
//! its protocol. What a WebSocket has as proof there that both sides speak of the same thing
//! is ours to bring along, since HTTP/2 has no need of it (§5).
//!
//! The crate takes a fragment off `:path`, so that one is never seen here.

use h2::ext::Protocol;
use http::header::COOKIE;
use http::request::Parts;

use super::websocket::{self, KEY};
use crate::proxy::head::{Field, Fields, Framing, Known, MAX_FIELDS, RequestHead, Span, Version};
use crate::proxy::http1::grammar;
use crate::proxy::http1::lines::{METHOD_MOST, RequestLine};
use crate::proxy::http1::parse;
use crate::telemetry::Reason;
use crate::transport::buffer;

/// What each field counts beside its bytes (RFC 9113 §6.5.2).
pub(super) const EACH: usize = 32;

/// The head of a request; `ended` says that no body follows. It has `limit` bytes at most, by
/// the reckoning of RFC 9113 §6.5.2.
///
/// # Errors
/// The reason to refuse it with.
pub fn request(parts: &Parts, ended: bool, limit: usize) -> Result<RequestHead, Reason> {
    let protocol = parts.extensions.get::<Protocol>().map(|protocol| protocol.as_str().as_bytes());
    let method = if protocol.is_some() { b"GET" } else { parts.method.as_str().as_bytes() };
    if method.len() > METHOD_MOST {
        return Err(Reason::MethodTooLong);
    }
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str()).as_bytes();
    let scheme = parts.uri.scheme_str().unwrap_or("http").as_bytes();
    // The form that HTTP/1 has for this, and no other scheme is served there either.
    if ![&b"http"[..], b"https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err(Reason::BadRequest);
    }
    let mut writer = Writer { bytes: buffer::scratch(), fields: Fields::new(), size: scheme.len() + 7 + EACH, limit };
    writer.size += method.len() + target.len() + 12 + 2 * EACH;
    let line = RequestLine { method: writer.put(method), target: writer.put(target), version: Version::Http2 };
    writer.end_line();
    if grammar::visible(target) != target.len() {
        return Err(Reason::BadRequest);
    }
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    if let Some(authority) = authority {
        writer.size += 6;
        writer.field(Known::Host, b"host", authority)?;
    }
    if let Some(protocol) = protocol {
        writer.field(Known::Upgrade, b"upgrade", protocol)?;
        if protocol.eq_ignore_ascii_case(b"websocket") {
            writer.field(Known::Other, KEY, websocket::key().as_bytes())?;
        }
    }
    let mut cookies = false;
    for (name, value) in &parts.headers {
        let value = value.as_bytes();
        let known = Known::of(name.as_str().as_bytes());
        match (known, authority) {
            // Whom it asks must not be said twice and differently (§8.3.1).
            (Known::Host, Some(authority)) if authority.eq_ignore_ascii_case(value) => {
                writer.count(4 + value.len() + EACH)?;
            }
            (Known::Host, Some(_)) => return Err(Reason::BadRequest),
            _ if protocol.is_some() && name.as_str().as_bytes() == KEY => {}
            // What was split to be compressed becomes one line again (§8.2.3).
            _ if *name == COOKIE => {
                if !std::mem::replace(&mut cookies, true) {
                    writer.cookies(parts)?;
                }
            }
            _ => writer.field(known, name.as_str().as_bytes(), value)?,
        }
    }
    let Writer { bytes, fields, .. } = writer;
    let mut head = parse::meaning(&bytes, line, fields)?;
    head.fields.own(bytes);
    if protocol.is_some() {
        // What follows is the other protocol's, in both directions.
        let offers = head.offers().next().is_some();
        head.upgrade = offers;
        let is_empty = matches!(head.framing, Framing::Empty | Framing::Length(0));
        return if head.upgrade && is_empty { Ok(head) } else { Err(Reason::BadRequest) };
    }
    if head.framing == Framing::Empty && !ended {
        head.framing = Framing::Chunked;
    }
    Ok(head)
}

/// Writes parts of a head, and counts them.
struct Writer {
    bytes: Vec<u8>,
    fields: Fields,
    size: usize,
    limit: usize,
}

impl Writer {
    fn put(&mut self, part: &[u8]) -> Span {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(part);
        Span::new(start, part.len())
    }

    fn end_line(&mut self) {
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// Counts this many bytes more.
    fn count(&mut self, bytes: usize) -> Result<(), Reason> {
        self.size = self.size.saturating_add(bytes);
        // A span has 16 bits; the limit keeps us well below.
        if self.size > self.limit { Err(Reason::HeaderTooLarge) } else { Ok(()) }
    }

    fn field(&mut self, known: Known, name: &[u8], value: &[u8]) -> Result<(), Reason> {
        self.count(name.len() + value.len() + EACH)?;
        let value = [value];
        self.line(known, name, value.into_iter())
    }

    /// Writes the parts of all cookie fields as one.
    fn cookies(&mut self, parts: &Parts) -> Result<(), Reason> {
        let crumbs = || parts.headers.get_all(COOKIE).iter().map(http::HeaderValue::as_bytes);
        for crumb in crumbs() {
            self.count(6 + crumb.len() + EACH)?;
        }
        self.line(Known::Other, b"cookie", crumbs())
    }

    /// Writes one field line, whose value has these parts.
    fn line<'a>(&mut self, known: Known, name: &[u8], values: impl Iterator<Item = &'a [u8]>) -> Result<(), Reason> {
        let index = self.fields.index_mut();
        if index.len() == MAX_FIELDS {
            return Err(Reason::HeaderTooLarge);
        }
        let name = self.put(name);
        self.bytes.extend_from_slice(b": ");
        let start = self.bytes.len();
        for (at, value) in values.enumerate() {
            // Neither may a value begin or end with white space (§8.2.1).
            let white = |end: Option<&u8>| matches!(end, Some(b' ' | b'\t'));
            if white(value.first()) || white(value.last()) || grammar::text(value) != value.len() {
                return Err(Reason::BadRequest);
            }
            if at > 0 {
                self.bytes.extend_from_slice(b"; ");
            }
            self.bytes.extend_from_slice(value);
        }
        let value = Span::new(start, self.bytes.len() - start);
        self.fields.index_mut().push(Field { name, value, known, hop: known.is_hop_by_hop() });
        self.end_line();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::request;
    use crate::proxy::head::{Framing, RequestHead};
    use crate::telemetry::Reason;
    use http::request::Parts;

    fn parts(fields: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().uri("http://a.test/b?c");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn text(head: &RequestHead) -> String {
        String::from_utf8_lossy(head.bytes()).into_owned()
    }

    #[test]
    fn a_head_is_what_the_same_would_be_in_http_1() {
        let head = request(&parts(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")]), true, 4096).unwrap();
        assert_eq!(text(&head), "GET/b?c\r\nhost: a.test\r\ncookie: a=1; b=2\r\nx: y\r\n");
        assert_eq!((head.target(), head.authority()), (&b"/b?c"[..], Some(&b"a.test"[..])));
        assert_eq!((head.version.number(), head.framing), (20, Framing::Empty));
        // Each line stands as we would write it, so that it goes on in one piece with its neighbours.
        assert!(head.fields.iter().all(|field| field.line(head.bytes()).is_some()));
        for (fields, framing) in [
            (&[][..], Framing::Chunked),
            (&[("content-length", "9")], Framing::Length(9)),
            (&[("content-length", "0")], Framing::Length(0)),
        ] {
            assert_eq!(request(&parts(fields), false, 4096).unwrap().framing, framing);
        }
    }

    #[test]
    fn the_size_of_a_head_is_counted_as_the_settings_say() {
        // :method GET, :scheme http, :authority a.test, :path /b?c, x y
        let size = 7 + 3 + 7 + 4 + 10 + 6 + 5 + 4 + 2 + 5 * 32;
        assert!(request(&parts(&[("x", "y")]), true, size).is_ok());
        assert_eq!(request(&parts(&[("x", "y")]), true, size - 1).err(), Some(Reason::HeaderTooLarge));
        // Crumbs count one by one.
        let crumbs = [("cookie", "a"), ("cookie", "b")];
        let size = size - 34 + 2 * (6 + 1 + 32);
        assert!(request(&parts(&crumbs), true, size).is_ok());
        assert_eq!(request(&parts(&crumbs), true, size - 1).err(), Some(Reason::HeaderTooLarge));
    }
}

//! Writing heads: what a backend or a client receives is always serialised anew.
//!
//! Fields go on in the order and case they came in, without those that end here and
//! those that we state ourselves. Ours come last, so that nothing the sender wrote can
//! remove or precede them.

use std::cell::RefCell;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::{Header, same_name};
use crate::proxy::client::Own;
use crate::proxy::forwarded::Forwarded;
use crate::proxy::head::{Field, Fields, Framing, Known, Method, RequestHead, ResponseHead, Version, list};
use crate::proxy::rewrite::Rewrite;
use crate::routing::FieldEdits;

/// Writes a request head for a backend, as HTTP/1.1.
pub fn request(out: &mut Vec<u8>, head: &RequestHead, forwarded: &Forwarded<'_>, rewrite: &Rewrite<'_>) {
    out.extend_from_slice(head.method_name());
    out.push(b' ');
    request_target(out, head, rewrite);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    field(out, b"Host", rewrite.authority(head, forwarded));
    request_fields(out, head, forwarded, rewrite);
    // For those of the answer, which the client takes (RFC 9110 §10.1.4).
    if head.trailers {
        field(out, b"TE", b"trailers");
        field(out, b"Connection", if head.upgrade { b"upgrade, TE" } else { b"TE" });
    } else if head.upgrade {
        field(out, b"Connection", b"upgrade");
    }
    if head.upgrade {
        upgrade(out, head.offers());
    }
    framing(out, head.framing);
    out.extend_from_slice(b"\r\n");
}

/// Writes path and query as they go on.
#[inline]
pub fn request_target(out: &mut Vec<u8>, head: &RequestHead, rewrite: &Rewrite<'_>) {
    let (target, query) = rewrite.target(head);
    match target {
        // About the server as a whole, in absolute form (RFC 9112 §3.2.4).
        [] if head.method == Method::Options => out.push(b'*'),
        target => {
            if !target.starts_with(b"/") && target != b"*" {
                out.push(b'/');
            }
            out.extend_from_slice(target);
            out.extend_from_slice(query);
        }
    }
}

/// Writes the fields that go on to a backend whatever version it speaks: all but `Host` and
/// those about connection and framing.
#[inline]
pub fn request_fields(out: &mut Vec<u8>, head: &RequestHead, forwarded: &Forwarded<'_>, rewrite: &Rewrite<'_>) {
    // The expectation of HTTP/1.0 is ignored (RFC 9110 §10.1.1).
    let expects = head.version != Version::Http10;
    let ours = |field: &Field| match field.known {
        Known::Expect => !expects,
        Known::MaxForwards => head.max_forwards.is_some(),
        // It announces what only a chunked body can bring.
        Known::Trailer => head.framing != Framing::Chunked,
        Known::XForwarded => !forwarded.keeps(field.name.of(head.bytes())),
        known => matches!(
            known,
            Known::Host
                | Known::ContentLength
                | Known::Forwarded
                | Known::XForwardedFor
                | Known::XForwardedHost
                | Known::XForwardedProto
                | Known::XRequestId
        ),
    };
    edited(out, &head.fields, rewrite.fields, ours);
    if forwarded.is_plain() {
        field(out, b"X-Forwarded-For", forwarded.peer);
        field(out, b"X-Forwarded-Proto", forwarded.scheme.as_bytes());
        // Without one, `Host` is the backend's own name, which tells it nothing.
        if let Some(asked) = head.authority() {
            field(out, b"X-Forwarded-Host", asked);
        }
    } else {
        forwarded.write(out, head);
    }
    for lines in rewrite.certificate {
        out.extend_from_slice(lines);
    }
    field(out, b"X-Request-Id", forwarded.request_id);
    field(out, b"Via", via(head.version));
    if let Some(hops) = head.max_forwards {
        // What has none left is answered here, and does not come this far.
        let _ = write!(out, "Max-Forwards: {}\r\n", hops.saturating_sub(1));
    }
}

/// What says that a request came this way, by the version it came in (RFC 9110 §7.6.3).
#[must_use]
pub fn via(version: Version) -> &'static [u8] {
    match version {
        Version::Http10 => b"1.0 doorward",
        Version::Http11 => b"1.1 doorward",
        Version::Http2 => b"2.0 doorward",
    }
}

/// Who a health check says that it is.
pub const CHECKER: &str = concat!("doorward/", env!("CARGO_PKG_VERSION"), " (health check)");

/// Writes the request of a health check, the only one on its connection.
pub fn check(out: &mut Vec<u8>, path: &str, host: &str) {
    out.extend_from_slice(b"GET ");
    out.extend_from_slice(path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    field(out, b"Host", host.as_bytes());
    field(out, b"User-Agent", CHECKER.as_bytes());
    field(out, b"Accept", b"*/*");
    field(out, b"Connection", b"close");
    out.extend_from_slice(b"\r\n");
}

/// How a response goes on to a client.
#[derive(Debug, Clone, Copy)]
pub struct Onward {
    /// The version of the request it answers.
    pub version: Version,
    /// How its body is framed for the client.
    pub framing: Framing,
    /// The connection stays open for another request.
    pub keep_alive: bool,
    /// Fields behind the body go on, and so does what announces them.
    pub trailers: bool,
}

/// Writes a final response head for a client.
pub fn response(out: &mut Vec<u8>, head: &ResponseHead, edits: Option<&FieldEdits>, onward: &Onward) {
    status_line(out, head.status, head.phrase.of(head.fields.bytes()));
    edited(out, &head.fields, edits, |field| match field.known {
        Known::Trailer => !onward.trailers,
        known => known == Known::ContentLength,
    });
    // One that `Connection` named has ended here.
    if !head.fields.iter().any(|field| field.known == Known::Date && !field.hop) {
        date(out);
    }
    match (onward.framing, head.stated_length) {
        // The length of a body that is not sent: an answer to HEAD, a 304.
        (Framing::Empty, Some(length)) => number(out, length),
        (framing, _) => self::framing(out, framing),
    }
    connection(out, onward.version, onward.keep_alive);
    out.extend_from_slice(b"\r\n");
}

/// Writes an interim response head (1xx) for a client. Of the edits, those that keep fields
/// from it count here too; what is set is said once, with the answer itself.
pub fn interim(out: &mut Vec<u8>, head: &ResponseHead, edits: Option<&FieldEdits>) {
    let bytes = head.fields.bytes();
    status_line(out, head.status, head.phrase.of(bytes));
    copy(out, &head.fields, |field| {
        matches!(field.known, Known::ContentLength | Known::Trailer)
            || edits.is_some_and(|edits| edits.drops(field.name.of(bytes)))
    });
    out.extend_from_slice(b"\r\n");
}

/// Writes the 101 that turns a connection into a tunnel.
pub fn switching(out: &mut Vec<u8>, head: &ResponseHead, edits: Option<&FieldEdits>) {
    status_line(out, head.status, head.phrase.of(head.fields.bytes()));
    field(out, b"Connection", b"upgrade");
    upgrade(out, head.fields.values(Known::Upgrade).flat_map(list));
    edited(out, &head.fields, edits, |field| matches!(field.known, Known::ContentLength | Known::Trailer));
    out.extend_from_slice(b"\r\n");
}

/// Adds a cookie of ours to a head that is whole.
pub fn set_cookie(out: &mut Vec<u8>, cookie: &str) {
    out.truncate(out.len().saturating_sub(2));
    field(out, b"Set-Cookie", cookie.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes an answer of our own with its body.
pub fn own(out: &mut Vec<u8>, own: &Own<'_>, onward: &Onward) {
    status_line(out, own.status, phrase(own.status).as_bytes());
    date(out);
    for (name, value) in own.fields {
        write_line(out, name.as_bytes(), value.as_bytes());
    }
    number(out, u64::try_from(own.body.len()).unwrap_or(0));
    connection(out, onward.version, onward.keep_alive);
    out.extend_from_slice(b"\r\n");
    if onward.framing != Framing::Empty {
        out.extend_from_slice(own.body);
    }
}

fn status_line(out: &mut Vec<u8>, status: u16, phrase: &[u8]) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(phrase);
    out.extend_from_slice(b"\r\n");
}

/// The time, which every final response goes on with (RFC 9110 §6.6.1). It is written out
/// once a second.
fn date(out: &mut Vec<u8>) {
    thread_local! {
        static WRITTEN: RefCell<(u64, Vec<u8>)> = const { RefCell::new((u64::MAX, Vec::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    WRITTEN.with_borrow_mut(|(written, line)| {
        if *written != second {
            line.clear();
            // Writing into a vector can't fail.
            let _ = write!(line, "Date: {}\r\n", httpdate::HttpDate::from(now));
            *written = second;
        }
        out.extend_from_slice(line);
    });
}

fn connection(out: &mut Vec<u8>, version: Version, keep_alive: bool) {
    match (version, keep_alive) {
        (_, false) => field(out, b"Connection", b"close"),
        (Version::Http10, true) => field(out, b"Connection", b"keep-alive"),
        (Version::Http11 | Version::Http2, true) => {}
    }
}

fn framing(out: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::Chunked => field(out, b"Transfer-Encoding", b"chunked"),
        Framing::Length(length) => number(out, length),
        Framing::Empty | Framing::UntilClose => {}
    }
}

fn number(out: &mut Vec<u8>, length: u64) {
    field(out, b"Content-Length", itoa::Buffer::new().format(length).as_bytes());
}

fn upgrade<'a>(out: &mut Vec<u8>, protocols: impl Iterator<Item = &'a [u8]>) {
    let mut before: &[u8] = b"Upgrade: ";
    for protocol in protocols {
        out.extend_from_slice(before);
        out.extend_from_slice(protocol);
        before = b", ";
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes a field of ours, whose name is copied as the few words that it is.
fn field<const N: usize>(out: &mut Vec<u8>, name: &[u8; N], value: &[u8]) {
    write_line(out, name, value);
}

#[inline]
fn write_line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Copies the fields that go on as [`copy`] does, and has the route's edits take effect.
fn edited(out: &mut Vec<u8>, fields: &Fields, edits: Option<&FieldEdits>, ours: impl Fn(&Field) -> bool) {
    match edits {
        None => copy(out, fields, ours),
        Some(edits) => {
            copy(out, fields, |field| ours(field) || edits.drops(field.name.of(fields.bytes())));
            out.extend_from_slice(edits.lines());
            if let Some(Header { name, value }) = edits.missing() {
                let same = |field: &Field| !field.hop && same_name(field.name.of(fields.bytes()), name.as_bytes());
                if !fields.iter().any(same) {
                    write_line(out, name.as_bytes(), value.as_bytes());
                }
            }
        }
    }
}

/// Copies the fields that go on, except those that `ours` says we state ourselves. Lines
/// that stand one after the other as we would write them go in one piece.
fn copy(out: &mut Vec<u8>, fields: &Fields, ours: impl Fn(&Field) -> bool) {
    let bytes = fields.bytes();
    let mut run = 0..0;
    for entry in fields.iter().filter(|entry| !entry.hop && !ours(entry)) {
        match entry.line(bytes) {
            Some(line) if line.start == run.end => run.end = line.end,
            line => {
                out.extend_from_slice(bytes.get(run).unwrap_or_default());
                run = line.unwrap_or_else(|| {
                    write_line(out, entry.name.of(bytes), entry.value.of(bytes));
                    0..0
                });
            }
        }
    }
    out.extend_from_slice(bytes.get(run).unwrap_or_default());
}

/// The phrases of the statuses that doorward itself answers with.
#[must_use]
pub fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

//! Heads: what a request or response says before its body, whatever the protocol
//! version that carried it.
//!
//! A head owns a copy of its bytes, no larger than it is, and points into it with 16-bit
//! offsets: order and case are kept, a second attempt can be serialised from the same
//! bytes, and a request that waits for its answer holds no read buffer.

use std::cell::RefCell;
use std::ops::Range;

use super::http1::grammar::is_token;
use crate::transport::buffer;

/// Fields a head may have; more are refused (HAProxy 101, Envoy 100).
pub const MAX_FIELDS: usize = 100;

/// A part of a head's bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    start: u16,
    len: u16,
}

impl Span {
    /// The part of `whole` that `part`, a subslice of it, covers.
    #[must_use]
    pub fn within(whole: &[u8], part: &[u8]) -> Self {
        Self::new((part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize), part.len())
    }

    /// So many bytes from `start` on; both have 16 bits at most.
    #[must_use]
    pub fn new(start: usize, len: usize) -> Self {
        Self { start: u16::try_from(start).unwrap_or(u16::MAX), len: u16::try_from(len).unwrap_or(0) }
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(self) -> usize {
        self.len.into()
    }

    /// Where it ends.
    #[must_use]
    pub fn end(self) -> usize {
        usize::from(self.start) + usize::from(self.len)
    }

    /// The same without its last byte.
    #[must_use]
    pub fn without_last(self) -> Self {
        Self { len: self.len.saturating_sub(1), ..self }
    }

    /// Where it begins and ends.
    #[must_use]
    pub fn range(self) -> Range<usize> {
        usize::from(self.start)..self.end()
    }

    /// The bytes it stands for; empty when it does not fit.
    #[must_use]
    pub fn of(self, whole: &[u8]) -> &[u8] {
        whole.get(self.range()).unwrap_or_default()
    }
}

/// Field names that doorward acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the field of that name")]
pub enum Known {
    Other,
    Connection,
    ContentLength,
    Date,
    Expect,
    Forwarded,
    Host,
    Http2Settings,
    KeepAlive,
    MaxForwards,
    ProxyConnection,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    Via,
    XForwarded,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    XRequestId,
}

impl Known {
    /// Classifies a field name, whatever its case. [`Self::XForwarded`] is any name that
    /// begins with `X-Forwarded-` and has none of its own here, also written with `_`,
    /// which many backends take for `-`.
    #[must_use]
    pub fn of(name: &[u8]) -> Self {
        let forwarded = |start: &[u8]| {
            start
                .iter()
                .zip(b"x-forwarded-")
                .all(|(byte, known)| byte.eq_ignore_ascii_case(known) || (*byte, *known) == (b'_', b'-'))
        };
        match Self::named(name) {
            Self::Other if name.get(..12).is_some_and(forwarded) => Self::XForwarded,
            known => known,
        }
    }

    fn named(name: &[u8]) -> Self {
        match name.len() {
            2 if is(name, b"te") => Self::Te,
            3 if is(name, b"via") => Self::Via,
            4 if is(name, b"host") => Self::Host,
            4 if is(name, b"date") => Self::Date,
            6 if is(name, b"expect") => Self::Expect,
            7 if is(name, b"upgrade") => Self::Upgrade,
            7 if is(name, b"trailer") => Self::Trailer,
            9 if is(name, b"forwarded") => Self::Forwarded,
            10 if is(name, b"connection") => Self::Connection,
            10 if is(name, b"keep-alive") => Self::KeepAlive,
            12 if is(name, b"x-request-id") => Self::XRequestId,
            12 if is(name, b"max-forwards") => Self::MaxForwards,
            14 if is(name, b"content-length") => Self::ContentLength,
            14 if is(name, b"http2-settings") => Self::Http2Settings,
            15 if is(name, b"x-forwarded-for") => Self::XForwardedFor,
            16 if is(name, b"x-forwarded-host") => Self::XForwardedHost,
            16 if is(name, b"proxy-connection") => Self::ProxyConnection,
            17 if is(name, b"transfer-encoding") => Self::TransferEncoding,
            17 if is(name, b"x-forwarded-proto") => Self::XForwardedProto,
            _ => Self::Other,
        }
    }

    /// Whether the field concerns one connection only (RFC 9110 §7.6.1).
    #[must_use]
    pub fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Self::Connection
                | Self::Http2Settings
                | Self::KeepAlive
                | Self::ProxyConnection
                | Self::Te
                | Self::TransferEncoding
                | Self::Upgrade
        )
    }
}

/// Whether `name` is `known`, which is in lower case, whatever its own case. Most names differ in
/// their first letter; the others are compared as a whole, not byte by byte.
#[inline]
fn is<const N: usize>(name: &[u8], known: &[u8; N]) -> bool {
    let Ok(name) = <&[u8; N]>::try_from(name) else { return false };
    if name.first().zip(known.first()).is_none_or(|(byte, known)| byte | 0x20 != *known) {
        return false;
    }
    let differs = name.iter().zip(known).fold(0, |differs, (byte, known)| {
        let case = if known.is_ascii_lowercase() { 0x20 } else { 0 };
        differs | ((byte | case) ^ known)
    });
    differs == 0
}

/// One field line.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name as sent.
    pub name: Span,
    /// Its value without surrounding white space.
    pub value: Span,
    /// What its name means to us.
    pub known: Known,
    /// It ends here: a hop-by-hop field, or one that `Connection` names.
    pub hop: bool,
}

impl Field {
    /// Its whole line, if that stands in `bytes` just as we would write it.
    #[must_use]
    pub fn line(&self, bytes: &[u8]) -> Option<Range<usize>> {
        let (name, value) = (self.name.range(), self.value.range());
        let end = value.end + 2;
        let plain = bytes.get(name.end..value.start) == Some(b": ") && bytes.get(value.end..end) == Some(b"\r\n");
        plain.then_some(name.start..end)
    }
}

thread_local! {
    static INDEXES: RefCell<Vec<Vec<Field>>> = const { RefCell::new(Vec::new()) };
}

/// The field lines of a head, with the bytes they point into.
#[derive(Debug)]
pub struct Fields {
    bytes: Vec<u8>,
    index: Vec<Field>,
}

impl Fields {
    /// No fields yet, over no bytes.
    #[must_use]
    pub fn new() -> Self {
        let index = INDEXES.try_with(|pool| pool.borrow_mut().pop()).ok().flatten().unwrap_or_default();
        Self { bytes: Vec::new(), index }
    }

    /// Takes a copy of the bytes that all spans of this head point into.
    pub fn keep(&mut self, bytes: &[u8]) {
        self.bytes = buffer::scratch();
        self.bytes.extend_from_slice(bytes);
    }

    /// The same without a copy.
    pub fn own(&mut self, bytes: Vec<u8>) {
        self.bytes = bytes;
    }

    /// The bytes that all spans of this head point into.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The index of the fields, to be filled.
    pub fn index_mut(&mut self) -> &mut Vec<Field> {
        &mut self.index
    }

    /// The field lines in the order they came.
    pub fn iter(&self) -> impl Iterator<Item = &Field> {
        self.index.iter()
    }

    /// The values of all fields of this kind.
    pub fn values(&self, known: Known) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.index.iter().filter(move |field| field.known == known).map(|field| field.value.of(self.bytes()))
    }

    /// The value of the first field of this kind.
    #[must_use]
    pub fn first(&self, known: Known) -> Option<&[u8]> {
        self.values(known).next()
    }
}

impl Default for Fields {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Fields {
    fn drop(&mut self) {
        buffer::recycle(std::mem::take(&mut self.bytes));
        let mut index = std::mem::take(&mut self.index);
        index.clear();
        // The pool is gone when the thread ends.
        let _ = INDEXES.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < 512 {
                pool.push(index);
            }
        });
    }
}

/// HTTP versions that a message head can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: no chunks, no 1xx, closes unless asked to keep alive.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2, whose heads are made into such as these.
    Http2,
}

impl Version {
    /// As the log has it: 10, 11, 20.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Http10 => 10,
            Self::Http11 => 11,
            Self::Http2 => 20,
        }
    }
}

/// Request methods, by what they mean to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The response to HEAD has no body, whatever its fields say.
    Head,
    /// Asks about the server itself when its target is `*`.
    Options,
    /// Would make a tunnel to anywhere; refused, as [`Self::Trace`] is.
    Connect,
    /// Would echo the request, with the fields that we and proxies before us have added;
    /// refused, and no key allows it. The method is known and allowed on no resource,
    /// which is 405 with `Allow` (RFC 9110 §15.5.6) rather than 501.
    Trace,
    /// Another idempotent method: GET, PUT, DELETE (RFC 9110 §9.2.2).
    Idempotent,
    /// Anything else: POST, PATCH, extensions.
    Other,
}

impl Method {
    /// Classifies a method name. Methods are case-sensitive.
    #[must_use]
    pub fn of(name: &[u8]) -> Self {
        match name {
            b"GET" | b"PUT" | b"DELETE" => Self::Idempotent,
            b"HEAD" => Self::Head,
            b"OPTIONS" => Self::Options,
            b"CONNECT" => Self::Connect,
            b"TRACE" => Self::Trace,
            _ => Self::Other,
        }
    }

    /// Whether sending it twice has the effect of sending it once.
    #[must_use]
    pub fn is_idempotent(self) -> bool {
        !matches!(self, Self::Other | Self::Connect)
    }
}

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    Empty,
    /// So many bytes.
    Length(u64),
    /// Chunks, or whatever frames another version has: the sender says when it ends.
    Chunked,
    /// The end of the connection.
    UntilClose,
}

/// A request head.
#[derive(Debug)]
pub struct RequestHead {
    /// Its field lines.
    pub fields: Fields,
    /// What its method means.
    pub method: Method,
    /// Its method as sent.
    pub method_name: Span,
    /// Path and query, in origin form, or `*`.
    pub target: Span,
    /// Host and port that the client asked for: the target's authority in absolute
    /// form, else the Host field (RFC 9112 §3.2.2).
    pub authority: Option<Span>,
    /// The version it came in.
    pub version: Version,
    /// How its body ends.
    pub framing: Framing,
    /// The client would send another request on this connection.
    pub keep_alive: bool,
    /// The client offers other protocols in place of HTTP; see [`Self::offers`].
    pub upgrade: bool,
    /// The client takes fields behind the answer's body: `TE: trailers` (RFC 9110 §10.1.4).
    pub trailers: bool,
    /// How often a request that asks about the way itself, OPTIONS or TRACE, may still be
    /// passed on (RFC 9110 §7.6.2).
    pub max_forwards: Option<u64>,
}

impl RequestHead {
    /// The bytes that all spans point into.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.fields.bytes()
    }

    /// The method's name as sent.
    #[must_use]
    pub fn method_name(&self) -> &[u8] {
        self.method_name.of(self.bytes())
    }

    /// Path and query.
    #[must_use]
    pub fn target(&self) -> &[u8] {
        self.target.of(self.bytes())
    }

    /// The path without its query; `/` where an absolute form left it out.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        let target = self.target();
        match memchr::memchr(b'?', target).and_then(|at| target.get(..at)).unwrap_or(target) {
            [] => b"/",
            path => path,
        }
    }

    /// The protocols that the client offers in place of HTTP, as sent; see [`protocols`].
    pub fn offers(&self) -> impl Iterator<Item = &[u8]> {
        protocols(&self.fields)
    }

    /// Whether it asks for another protocol as HTTP/2 does, where success means that it is
    /// spoken (RFC 8441).
    #[must_use]
    pub fn is_connect(&self) -> bool {
        self.upgrade && self.version == Version::Http2
    }

    /// Host and port that the client asked for.
    #[must_use]
    pub fn authority(&self) -> Option<&[u8]> {
        self.authority.map(|span| span.of(self.bytes()))
    }
}

/// A response head.
#[derive(Debug)]
pub struct ResponseHead {
    /// Its field lines.
    pub fields: Fields,
    /// Its status code, 100 to 999.
    pub status: u16,
    /// The reason phrase as sent.
    pub phrase: Span,
    /// How its body ends.
    pub framing: Framing,
    /// The Content-Length it states, also where there is no body (HEAD, 304).
    pub stated_length: Option<u64>,
    /// The backend would take another request on this connection.
    pub keep_alive: bool,
    /// Its Connection field has the option `upgrade`.
    pub upgrade: bool,
}

impl ResponseHead {
    /// Whether it is an interim response, to be followed by another.
    #[must_use]
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }

    /// Whether this 101 agrees to what `request` offers: it must name what it switches to
    /// (RFC 9110 §15.2.2), and nothing that was not offered (§7.8).
    #[must_use]
    pub fn agrees_to(&self, request: &RequestHead) -> bool {
        let offered = |protocol: &[u8]| request.offers().any(|offer| offer.eq_ignore_ascii_case(protocol));
        let mut named = self.fields.values(Known::Upgrade).flat_map(list).peekable();
        request.upgrade && self.upgrade && named.peek().is_some() && named.all(offered)
    }
}

/// The entries of a list, without empty ones (RFC 9110 §5.6.1).
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|entry| !entry.is_empty())
}

/// The protocols of all Upgrade fields (RFC 9110 §7.8), without those that are none, and
/// without `h2c`: HTTP/2 in the clear is no tunnel that we may make (RFC 9113 §3.1), so
/// such an offer goes unheard, wherever it stands.
pub fn protocols(fields: &Fields) -> impl Iterator<Item = &[u8]> {
    fields.values(Known::Upgrade).flat_map(list).filter(|protocol| {
        let mut parts = protocol.split(|byte| *byte == b'/');
        let name = parts.next().unwrap_or_default();
        let is_token = |part: &[u8]| !part.is_empty() && part.iter().copied().all(is_token);
        is_token(name)
            && !name.eq_ignore_ascii_case(b"h2c")
            && parts.next().is_none_or(is_token)
            && parts.next().is_none()
    })
}

#[cfg(test)]
mod tests {
    use super::{Known, Method, Span};

    #[test]
    fn names_are_recognised_in_any_case() {
        for (name, known) in [
            ("HOST", Known::Host),
            ("Date", Known::Date),
            ("upgrade", Known::Upgrade),
            ("Trailer", Known::Trailer),
            ("transfer-Encoding", Known::TransferEncoding),
            ("X-Forwarded-Proto", Known::XForwardedProto),
            ("Proxy-Connection", Known::ProxyConnection),
            ("HTTP2-Settings", Known::Http2Settings),
            ("Content-Length", Known::ContentLength),
            ("Keep-Alive", Known::KeepAlive),
            ("Max-Forwards", Known::MaxForwards),
            ("X-Request-Id", Known::XRequestId),
            ("X-Forwarded-Port", Known::XForwarded),
            ("x_forwarded_for", Known::XForwarded),
            ("X-Forwarded-Prefix", Known::XForwarded),
            ("X-Forwarder", Known::Other),
            ("Accept", Known::Other),
        ] {
            assert_eq!(Known::of(name.as_bytes()), known, "{name}");
        }
    }

    #[test]
    fn a_span_outside_its_bytes_is_empty() {
        let whole = b"GET / HTTP/1.1";
        let span = Span::within(whole, &whole[4..5]);
        assert_eq!(span.of(whole), b"/");
        assert_eq!(span.of(b"GE"), b"");
    }

    #[test]
    fn methods_are_case_sensitive() {
        assert!(Method::of(b"GET").is_idempotent());
        assert_eq!(Method::of(b"get"), Method::Other);
        assert!(!Method::of(b"POST").is_idempotent());
    }
}

//! Parsing of request and response heads (RFC 9112 §2 to §6).
//!
//! `httparse` finds the lines; what it lets pass and a proxy must not (bare LF, several
//! lengths, a Host that is none, framing that two readers could read differently) is
//! refused here. What is ambiguous is refused, never guessed.

use std::mem::MaybeUninit;

use httparse::{Header, Status};

use crate::proxy::head::{
    Field, Fields, Framing, Known, MAX_FIELDS, Method, RequestHead, ResponseHead, Span, Version, list,
};
use crate::telemetry::Reason;
use crate::transport::buffer::Buffer;

/// Whether the end of a head has arrived. Looks only at bytes from `seen` on.
#[must_use]
pub fn has_end(bytes: &[u8], seen: usize) -> bool {
    let from = seen.saturating_sub(3);
    let tail = bytes.get(from..).unwrap_or_default();
    memchr::memchr_iter(b'\n', tail).any(|at| {
        let rest = tail.get(at + 1..).unwrap_or_default();
        matches!(rest, [b'\n', ..] | [b'\r', b'\n', ..])
    })
}

/// Bytes that a method's name may have; the longest registered one has 17. A longer one is
/// nobody's (RFC 9112 §3).
const METHOD_MOST: usize = 32;

/// A head and the number of bytes it took, or `None` when more must be read.
type Parsed<T> = Result<Option<(T, usize)>, Reason>;

/// Parses a request head of at most `limit` bytes from the front of `input` and drops it
/// there. An `input` that is empty then is given back.
///
/// # Errors
/// The reason to refuse the request with.
pub fn request(input: &mut Option<Buffer>, limit: usize) -> Result<Option<RequestHead>, Reason> {
    let parsed = take(input, |bytes, index| request_head(bytes, index, limit))?;
    let Some((parts, fields)) = parsed else { return Ok(None) };
    let RequestParts { method, method_name, target, authority, version, framing, keep_alive, .. } = parts;
    let mut head = RequestHead {
        fields,
        method,
        method_name,
        target,
        authority,
        version,
        framing,
        keep_alive,
        upgrade: false,
        trailers: parts.trailers,
        max_forwards: parts.max_forwards,
    };
    head.upgrade = parts.upgrade && head.offers().next().is_some();
    // Whether these bytes are HTTP's or the other protocol's would be anybody's guess.
    if head.upgrade && !matches!(head.framing, Framing::Empty | Framing::Length(0)) {
        return Err(Reason::BadRequest);
    }
    Ok(Some(head))
}

/// Parses a response head, likewise. `to` is the method of the request it answers.
///
/// # Errors
/// [`Reason::BackendMalformed`], [`Reason::BackendHeaderTooLarge`].
pub fn response(input: &mut Option<Buffer>, to: Method) -> Result<Option<ResponseHead>, Reason> {
    let parsed = take(input, |bytes, index| response_head(bytes, index, to))?;
    Ok(parsed.map(|(parts, fields)| {
        let ResponseParts { status, phrase, framing, stated_length, keep_alive, upgrade } = parts;
        ResponseHead { fields, status, phrase, framing, stated_length, keep_alive, upgrade }
    }))
}

fn take<T>(
    input: &mut Option<Buffer>,
    parse: impl FnOnce(&[u8], &mut Vec<Field>) -> Parsed<T>,
) -> Result<Option<(T, Fields)>, Reason> {
    let Some(buffer) = input.as_mut() else { return Ok(None) };
    let mut fields = Fields::new();
    let Some((head, length)) = parse(buffer.filled(), fields.index_mut())? else { return Ok(None) };
    fields.keep(buffer.filled().get(..length).unwrap_or_default());
    buffer.consume(length);
    if buffer.is_empty() {
        *input = None;
    }
    Ok(Some((head, fields)))
}

struct RequestParts {
    method: Method,
    method_name: Span,
    target: Span,
    authority: Option<Span>,
    version: Version,
    framing: Framing,
    keep_alive: bool,
    upgrade: bool,
    trailers: bool,
    max_forwards: Option<u64>,
}

fn request_head(bytes: &[u8], index: &mut Vec<Field>, limit: usize) -> Parsed<RequestParts> {
    let mut headers = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut request, bytes, &mut headers);
    let length = match parsed {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if method_length(bytes) > METHOD_MOST => return Err(Reason::MethodTooLong),
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Reason::HeaderTooLarge),
        Err(httparse::Error::Version) => return version_refused(bytes).map_or(Ok(None), Err),
        Err(_) => return Err(Reason::BadRequest),
    };
    let (Some(method_name), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(Reason::BadRequest);
    };
    let start = Span::within(bytes, method_name.as_bytes()).range().start;
    refuse_bare_lf(bytes.get(..length).unwrap_or_default(), start, request.headers).ok_or(Reason::BadRequest)?;
    if length > limit {
        return Err(if target.len() >= limit { Reason::TargetTooLong } else { Reason::HeaderTooLarge });
    }
    if method_name.len() > METHOD_MOST {
        return Err(Reason::MethodTooLong);
    }
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let method = Method::of(method_name.as_bytes());
    if method == Method::Connect {
        return Err(Reason::MethodRefused);
    }
    let facts = Facts::gather(bytes, request.headers, index).ok_or(Reason::BadRequest)?;
    if version == Version::Http11 && facts.expects_other {
        return Err(Reason::ExpectationFailed);
    }
    let framing = facts.request_framing(version)?;
    let (target, authority) = target_form(method, target.as_bytes()).ok_or(Reason::BadRequest)?;
    let host = match facts.hosts {
        0 if version == Version::Http10 => None,
        1 => facts.host,
        _ => return Err(Reason::BadRequest),
    };
    // Also a Host that the target's own authority replaces must be one (RFC 9112 §3.2).
    let asked = authority.map(|authority| Span::within(bytes, authority));
    for named in [asked, host].into_iter().flatten() {
        is_authority(named.of(bytes)).ok_or(Reason::BadRequest)?;
    }
    let authority = asked.or(host);
    let max_forwards = match method {
        Method::Options | Method::Trace => max_forwards(bytes, index)?,
        _ => None,
    };
    let parts = RequestParts {
        method,
        method_name: Span::within(bytes, method_name.as_bytes()),
        target: Span::within(bytes, target),
        authority,
        version,
        framing,
        keep_alive: facts.keeps_alive(version),
        upgrade: facts.upgrade && facts.connection_upgrade && version == Version::Http11,
        trailers: facts.trailers && version == Version::Http11,
        max_forwards,
    };
    Ok(Some((parts, length)))
}

struct ResponseParts {
    status: u16,
    phrase: Span,
    framing: Framing,
    stated_length: Option<u64>,
    keep_alive: bool,
    upgrade: bool,
}

fn response_head(bytes: &[u8], index: &mut Vec<Field>, to: Method) -> Parsed<ResponseParts> {
    let mut headers = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let parsed =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, &mut headers);
    let malformed = Reason::BackendMalformed;
    // Empty lines are let pass before a request only (RFC 9112 §2.2).
    if matches!(bytes.first(), Some(b'\r' | b'\n')) {
        return Err(malformed);
    }
    let length = match parsed {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Reason::BackendHeaderTooLarge),
        Err(_) => return Err(malformed),
    };
    let head = bytes.get(..length).filter(|head| head.starts_with(b"HTTP/")).ok_or(malformed)?;
    refuse_bare_lf(head, 0, response.headers).ok_or(malformed)?;
    // Statuses from 600 on are none of HTTP's, yet some servers have them; they go on as they
    // are, and a client takes one for a 5xx (RFC 9110 §15).
    let (Some(status @ 100..=999), Some(phrase), Some(minor)) = (response.code, response.reason, response.version)
    else {
        return Err(malformed);
    };
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let facts = Facts::gather(bytes, response.headers, index).ok_or(malformed)?;
    let (framing, stated_length) = facts.response_framing(version, status, to).ok_or(malformed)?;
    let parts = ResponseParts {
        status,
        phrase: if phrase.is_empty() { Span::default() } else { Span::within(bytes, phrase.as_bytes()) },
        framing,
        stated_length,
        keep_alive: facts.keeps_alive(version) && framing != Framing::UntilClose,
        upgrade: facts.connection_upgrade && version == Version::Http11,
    };
    Ok(Some((parts, length)))
}

/// What the fields say of connection and framing.
#[derive(Default)]
struct Facts {
    host: Option<Span>,
    hosts: usize,
    length: Option<u64>,
    /// Transfer-Encoding stands there; whether it is exactly `chunked`.
    coding: Option<bool>,
    close: bool,
    keep_alive: bool,
    connection_upgrade: bool,
    /// Upgrade stands there.
    upgrade: bool,
    /// TE has `trailers`, whether or not Connection names it as it should: one who merely
    /// passes it on takes them all the same (RFC 9112 §7.1.2).
    trailers: bool,
    /// Expect asks for something else than `100-continue`.
    expects_other: bool,
}

impl Facts {
    /// Fills the index. `None` when the fields contradict each other.
    fn gather(bytes: &[u8], headers: &[Header<'_>], index: &mut Vec<Field>) -> Option<Self> {
        let mut facts = Self::default();
        let mut nominates = false;
        index.reserve(headers.len());
        for header in headers {
            let known = Known::of(header.name.as_bytes());
            let field = Field {
                name: Span::within(bytes, header.name.as_bytes()),
                value: Span::within(bytes, header.value),
                known,
                hop: known.is_hop_by_hop(),
            };
            match known {
                Known::Host => {
                    facts.hosts += 1;
                    facts.host = Some(field.value);
                }
                Known::ContentLength => {
                    let length = decimal(header.value)?;
                    if facts.length.is_some_and(|before| before != length) {
                        return None;
                    }
                    facts.length = Some(length);
                }
                Known::TransferEncoding => {
                    let chunked = header.value.eq_ignore_ascii_case(b"chunked");
                    // A second field makes a list, which is not exactly `chunked`.
                    facts.coding = Some(chunked && facts.coding.is_none());
                }
                Known::Upgrade => facts.upgrade = true,
                Known::Connection => nominates = true,
                Known::Te => {
                    facts.trailers |= list(header.value).any(|coding| coding.eq_ignore_ascii_case(b"trailers"))
                }
                Known::Expect => facts.expects_other |= !header.value.eq_ignore_ascii_case(b"100-continue"),
                _ => {}
            }
            index.push(field);
        }
        let nominating = headers.iter().filter(|header| nominates && header.name.eq_ignore_ascii_case("connection"));
        let mut options = 0;
        for header in nominating {
            for token in header.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                // Each is compared with every field: no more of them than of fields.
                options += usize::from(!token.is_empty());
                if options > MAX_FIELDS {
                    return None;
                }
                facts.nominate(token, bytes, index);
            }
        }
        Some(facts)
    }

    /// Takes in one option of `Connection`: a field of that name ends here too, except
    /// those that no sender may nominate (RFC 9110 §7.6.1).
    fn nominate(&mut self, token: &[u8], bytes: &[u8], index: &mut [Field]) {
        if token.eq_ignore_ascii_case(b"close") {
            self.close = true;
        } else if token.eq_ignore_ascii_case(b"keep-alive") {
            self.keep_alive = true;
        } else if token.eq_ignore_ascii_case(b"upgrade") {
            self.connection_upgrade = true;
        } else if !token.is_empty() {
            for field in index.iter_mut() {
                let essential = matches!(field.known, Known::Host | Known::ContentLength);
                if !essential && field.name.of(bytes).eq_ignore_ascii_case(token) {
                    field.hop = true;
                }
            }
        }
    }

    fn keeps_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }

    /// RFC 9112 §6.3 for requests, refusing what two readers could read differently.
    fn request_framing(&self, version: Version) -> Result<Framing, Reason> {
        match (self.coding, self.length) {
            (Some(_), _) if version == Version::Http10 => Err(Reason::BadRequest),
            (Some(_), Some(_)) => Err(Reason::BadRequest),
            (Some(false), None) => Err(Reason::TransferEncodingUnsupported),
            (Some(true), None) => Ok(Framing::Chunked),
            (None, Some(length)) => Ok(Framing::Length(length)),
            (None, None) => Ok(Framing::Empty),
        }
    }

    /// RFC 9112 §6.3 for responses, with the length that was stated.
    fn response_framing(&self, version: Version, status: u16, to: Method) -> Option<(Framing, Option<u64>)> {
        if version == Version::Http10 && self.coding.is_some() {
            return None;
        }
        if matches!(status, 100..200 | 204) {
            return Some((Framing::Empty, None));
        }
        if to == Method::Head || status == 304 {
            // A length beside a coding says nothing, and must not go on (RFC 9112 §6.3).
            return Some((Framing::Empty, self.length.filter(|_| self.coding.is_none())));
        }
        match (self.coding, self.length) {
            (Some(_), Some(_)) | (Some(false), None) => None,
            (Some(true), None) => Some((Framing::Chunked, None)),
            (None, Some(length)) => Some((Framing::Length(length), Some(length))),
            (None, None) => Some((Framing::UntilClose, None)),
        }
    }
}

/// Bytes at the front of a request line that is not whole, up to its first space.
fn method_length(bytes: &[u8]) -> usize {
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    let line = bytes.get(start..).unwrap_or_default();
    memchr::memchr(b' ', line).unwrap_or(line.len())
}

/// How often a request may still be passed on (RFC 9110 §7.6.2).
fn max_forwards(bytes: &[u8], index: &[Field]) -> Result<Option<u64>, Reason> {
    let mut values = index.iter().filter(|field| field.known == Known::MaxForwards);
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(field), None) => decimal(field.value.of(bytes)).map(Some).ok_or(Reason::BadRequest),
        (Some(_), Some(_)) => Err(Reason::BadRequest),
    }
}

/// `1*DIGIT` and nothing else (RFC 9110 §8.6).
fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// Every line must end in CRLF (RFC 9112 §2.2). httparse takes a bare LF for an end too,
/// so what stands before the first line, which begins at `start`, before each field, and
/// at the end is looked at.
fn refuse_bare_lf(head: &[u8], start: usize, headers: &[Header<'_>]) -> Option<()> {
    let empty_lines = head.get(..start)?.chunks(2).all(|line| line == b"\r\n");
    let ends = |field: &Header<'_>| {
        let at = Span::within(head, field.name.as_bytes()).range().start;
        head.get(at.checked_sub(2)?..at)
    };
    let fields = headers.iter().all(|field| ends(field) == Some(b"\r\n"));
    (empty_lines && fields && head.ends_with(b"\r\n\r\n")).then_some(())
}

/// Tells a version we do not speak from what is no HTTP at all; `None` while more of the
/// line must be read for that.
fn version_refused(bytes: &[u8]) -> Option<Reason> {
    let line = memchr::memchr(b'\n', bytes).and_then(|end| bytes.get(..end));
    let version = line.unwrap_or(bytes).trim_ascii_end().rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    match version {
        // Another word stands where the version was looked for.
        b"HTTP/1.0" | b"HTTP/1.1" => Some(Reason::BadRequest),
        [b'H', b'T', b'T', b'P', b'/', number @ ..] if line.is_none() && number.len() <= 3 => None,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            Some(Reason::VersionUnsupported)
        }
        _ => Some(Reason::BadRequest),
    }
}

/// The target in origin form (or `*`), and the authority of an absolute form (RFC 9112 §3.2).
///
/// An absolute form may say `https`: a proxy before us has taken that off, and what we tell
/// the backend of the scheme is how the request reached us.
///
/// Of the bytes that RFC 3986 does not allow, those in US-ASCII go on: browsers send `|`,
/// `^`, `` ` ``, `{`, `}` and others as they are (WHATWG URL), and nginx and HAProxy pass
/// them. Bytes from 0x80 on are refused, as HAProxy does: which character they stand for is
/// each reader's guess. So is a fragment, which is never sent (RFC 9110 §7.1).
fn target_form(method: Method, target: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    if !target.is_ascii() {
        return None;
    }
    match target {
        // A URI is ASCII (RFC 3986 §2).
        _ if !target.is_ascii() => return None,
        [b'/', ..] => return memchr::memchr(b'#', target).is_none().then_some((target, None)),
        b"*" => return (method == Method::Options).then_some((target, None)),
        _ => {}
    }
    let behind = |scheme: &[u8]| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    let rest = behind(b"http://").or_else(|| behind(b"https://"))?;
    let end = memchr::memchr3(b'/', b'?', b'#', rest).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end)?;
    // An empty path stands for `/` (RFC 9112 §3.2.1); it is written so further on.
    (!authority.is_empty() && !path.contains(&b'#')).then_some((path, Some(authority)))
}

/// `uri-host [ ":" port ]` (RFC 9110 §7.2), without user information; empty is allowed
/// in a Host field, since a URI may have an empty authority. `None` when it is none.
pub fn is_authority(value: &[u8]) -> Option<()> {
    let (host, port) = match value {
        [b'[', ..] => {
            let end = memchr::memchr(b']', value)?;
            let (host, port) = value.split_at_checked(end + 1)?;
            let inner = host.get(1..end).and_then(|inner| std::str::from_utf8(inner).ok())?;
            inner.parse::<std::net::Ipv6Addr>().ok()?;
            (host, port)
        }
        _ => {
            let end = memchr::memchr(b':', value).unwrap_or(value.len());
            let (host, port) = value.split_at_checked(end)?;
            // `reg-name` (RFC 3986 §3.2.2).
            let name = |b: &u8| {
                matches!(b, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' | b'%' | b'!'
                    | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
            };
            let coded = |at| host.get(at + 1..at + 3).is_some_and(|code| code.iter().all(u8::is_ascii_hexdigit));
            let valid = host.iter().all(name) && memchr::memchr_iter(b'%', host).all(coded);
            (valid.then_some(host)?, port)
        }
    };
    let valid = match port {
        [] => true,
        [b':'] => !host.is_empty(),
        [b':', digits @ ..] if digits.len() <= 5 => !host.is_empty() && decimal(digits).is_some_and(|n| n <= 65_535),
        _ => false,
    };
    valid.then_some(())
}

#[cfg(test)]
mod tests {
    use super::request;
    use crate::proxy::head::RequestHead;
    use crate::telemetry::Reason;
    use crate::transport::buffer::Buffer;

    fn parse(head: &str) -> Result<RequestHead, Reason> {
        let mut buffer = Buffer::take();
        buffer.append(head.as_bytes());
        request(&mut Some(buffer), 4096).map(|head| head.expect("a whole head"))
    }

    /// What is left of an offer, and whether there is one.
    fn upgrade(fields: &str) -> (bool, String) {
        let head = parse(&format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n{fields}\r\n")).unwrap();
        let offers: Vec<_> = head.offers().map(String::from_utf8_lossy).collect();
        (head.upgrade, offers.join(","))
    }

    #[test]
    fn an_offer_of_http2_in_the_clear_goes_unheard_wherever_it_stands() {
        for (fields, left) in [
            ("Upgrade: websocket\r\n", "websocket"),
            ("Upgrade: websocket, h2c\r\n", "websocket"),
            ("Upgrade: h2c,websocket\r\n", "websocket"),
            ("Upgrade: h2c\r\nUpgrade: a/1 , ,B\r\n", "a/1,B"),
            ("Upgrade: h2c/1, x,\tH2C \r\n", "x"),
            // What is no protocol is no offer either.
            ("Upgrade: a b, /1, a/, a/b/c, \"q\", ok\r\n", "ok"),
        ] {
            assert_eq!(upgrade(fields), (true, left.to_owned()), "{fields}");
        }
        for fields in ["", "Upgrade: h2c\r\n", "Upgrade: H2C, ,h2c/2\r\n", "Upgrade:\r\n", "Upgrade: a b\r\n"] {
            assert_eq!(upgrade(fields), (false, String::new()), "{fields}");
        }
        // Java's client offers it with every first request, also with a body.
        assert!(!upgrade("Upgrade: h2c\r\nContent-Length: 4\r\n").0);
        let body = "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x, h2c\r\nContent-Length: 4\r\n\r\n";
        assert_eq!(parse(body).err(), Some(Reason::BadRequest));
    }

    #[test]
    fn max_forwards_counts_for_options_and_trace_only() {
        let of = |method: &str, fields: &str| {
            parse(&format!("{method} / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).map(|head| head.max_forwards)
        };
        assert_eq!(of("OPTIONS", ""), Ok(None));
        assert_eq!(of("OPTIONS", "Max-Forwards: 0\r\n"), Ok(Some(0)));
        assert_eq!(of("TRACE", "max-forwards: 007\r\n"), Ok(Some(7)));
        for bad in ["-1", "+1", "", "1 2", "1,1", "x", "0x1", "18446744073709551616", "1\r\nMax-Forwards: 1"] {
            let field = format!("Max-Forwards: {bad}\r\n");
            assert_eq!(of("OPTIONS", &field), Err(Reason::BadRequest), "{bad}");
            assert_eq!(of("GET", &field), Ok(None), "{bad}");
        }
    }
}

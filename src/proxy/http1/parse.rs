//! Parsing of request and response heads: what they mean (RFC 9110, RFC 9112 §3 to §6).
//!
//! [`super::lines`] finds their parts; what a proxy must not pass on although each part is
//! as it should be (several lengths, a Host that is none, framing that two readers could
//! read differently) is refused here. What is ambiguous is refused, never guessed.

use super::lines::{self, RequestLine, StatusLine, Stop};
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

/// Parses a request head of at most `limit` bytes from the front of `input` and drops it
/// there. An `input` that is empty then is given back.
///
/// # Errors
/// The reason to refuse the request with.
#[inline]
pub fn request(input: &mut Option<Buffer>, limit: usize) -> Result<Option<RequestHead>, Reason> {
    let Some(buffer) = input.as_ref() else { return Ok(None) };
    let bytes = buffer.filled();
    let mut fields = Fields::new();
    let (line, length) = match lines::request(bytes, fields.index_mut()) {
        Ok(read) => read,
        Err(Stop::More) => return Ok(None),
        // A TLS handshake's first record (RFC 8446 §5.1).
        Err(Stop::Malformed) if bytes.starts_with(&[22, 3]) => return Err(Reason::TlsOnPlainPort),
        Err(Stop::Malformed) => return Err(Reason::BadRequest),
        Err(Stop::MethodTooLong) => return Err(Reason::MethodTooLong),
        Err(Stop::Version) => return Err(Reason::VersionUnsupported),
        Err(Stop::TooManyFields) => return Err(Reason::HeaderTooLarge),
    };
    if length > limit {
        let target = line.target.len();
        return Err(if target >= limit { Reason::TargetTooLong } else { Reason::HeaderTooLarge });
    }
    let mut head = meaning(bytes, line, fields)?;
    keep(input, &mut head.fields, length);
    head.upgrade = head.upgrade && head.offers().next().is_some();
    // Whether these bytes are HTTP's or the other protocol's would be anybody's guess.
    if head.upgrade && !matches!(head.framing, Framing::Empty | Framing::Length(0)) {
        return Err(Reason::BadRequest);
    }
    Ok(Some(head))
}

/// Parses a response head, likewise, of as many bytes as a [`Span`] can point into. `to` is
/// the method of the request it answers.
///
/// # Errors
/// [`Reason::BackendMalformed`], [`Reason::BackendHeaderTooLarge`].
pub fn response(input: &mut Option<Buffer>, to: Method) -> Result<Option<ResponseHead>, Reason> {
    let Some(buffer) = input.as_ref() else { return Ok(None) };
    let bytes = buffer.filled();
    let mut fields = Fields::new();
    let (line, length) = match lines::response(bytes, fields.index_mut()) {
        Ok(read) => read,
        Err(Stop::More) => return Ok(None),
        Err(Stop::TooManyFields) => return Err(Reason::BackendHeaderTooLarge),
        Err(Stop::Malformed | Stop::MethodTooLong | Stop::Version) => return Err(Reason::BackendMalformed),
    };
    let mut head = response_head(bytes, line, fields, to).ok_or(Reason::BackendMalformed)?;
    keep(input, &mut head.fields, length);
    Ok(Some(head))
}

/// Moves a head of `length` bytes from the input to its fields.
fn keep(input: &mut Option<Buffer>, fields: &mut Fields, length: usize) {
    let Some(buffer) = input.as_mut() else { return };
    fields.keep(buffer.filled().get(..length).unwrap_or_default());
    buffer.consume(length);
    if buffer.is_empty() {
        *input = None;
    }
}

/// What a request means whose parts are in `bytes`, whatever version it came in. HTTP/2 has a
/// field `host` here for the authority, and says elsewhere whether a body follows that has no
/// length.
///
/// # Errors
/// The reason to refuse the request with.
pub fn meaning(bytes: &[u8], line: RequestLine, mut fields: Fields) -> Result<RequestHead, Reason> {
    let RequestLine { method: method_name, target, version } = line;
    let method = Method::of(method_name.of(bytes));
    if method == Method::Connect {
        return Err(Reason::MethodRefused);
    }
    let facts = Facts::gather(bytes, fields.index_mut()).ok_or(Reason::BadRequest)?;
    if version != Version::Http10 && facts.expects_other {
        return Err(Reason::ExpectationFailed);
    }
    let framing = facts.request_framing(version)?;
    let (target, asked) = target_form(method, target, bytes).ok_or(Reason::BadRequest)?;
    let host = match facts.hosts {
        0 if version == Version::Http10 => None,
        1 => facts.host,
        _ => return Err(Reason::BadRequest),
    };
    // Also a Host that the target's own authority replaces must be one (RFC 9112 §3.2).
    for named in [asked, host].into_iter().flatten() {
        is_authority(named.of(bytes)).ok_or(Reason::BadRequest)?;
    }
    let max_forwards = match method {
        Method::Options | Method::Trace => max_forwards(bytes, fields.index_mut())?,
        _ => None,
    };
    Ok(RequestHead {
        fields,
        method,
        method_name,
        target,
        authority: asked.or(host),
        version,
        framing,
        keep_alive: facts.keeps_alive(version),
        upgrade: facts.upgrade && facts.connection_upgrade && version == Version::Http11,
        trailers: facts.trailers && version != Version::Http10,
        max_forwards,
    })
}

fn response_head(bytes: &[u8], line: StatusLine, mut fields: Fields, to: Method) -> Option<ResponseHead> {
    let StatusLine { version, status, phrase } = line;
    // Statuses from 600 on are none of HTTP's, yet some servers have them; they go on as they
    // are, and a client takes one for a 5xx (RFC 9110 §15).
    if status < 100 {
        return None;
    }
    let facts = Facts::gather(bytes, fields.index_mut())?;
    let (framing, stated_length) = facts.response_framing(version, status, to)?;
    Some(ResponseHead {
        fields,
        status,
        phrase,
        framing,
        stated_length,
        keep_alive: facts.keeps_alive(version) && framing != Framing::UntilClose,
        upgrade: facts.connection_upgrade && version == Version::Http11,
    })
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
    /// What the fields say, and which of them end here. `None` when they contradict each other.
    fn gather(bytes: &[u8], index: &mut [Field]) -> Option<Self> {
        let mut facts = Self::default();
        let mut nominates = false;
        for field in index.iter() {
            let value = || field.value.of(bytes);
            match field.known {
                Known::Other => {}
                Known::Host => {
                    facts.hosts += 1;
                    facts.host = Some(field.value);
                }
                Known::ContentLength => {
                    let length = decimal(value())?;
                    if facts.length.is_some_and(|before| before != length) {
                        return None;
                    }
                    facts.length = Some(length);
                }
                Known::TransferEncoding => {
                    let chunked = value().eq_ignore_ascii_case(b"chunked");
                    // A second field makes a list, which is not exactly `chunked`.
                    facts.coding = Some(chunked && facts.coding.is_none());
                }
                Known::Upgrade => facts.upgrade = true,
                Known::Connection => nominates = true,
                Known::Te => facts.trailers |= list(value()).any(|coding| coding.eq_ignore_ascii_case(b"trailers")),
                Known::Expect => facts.expects_other |= !value().eq_ignore_ascii_case(b"100-continue"),
                _ => {}
            }
        }
        if nominates {
            facts.nominated(bytes, index)?;
        }
        Some(facts)
    }

    /// Takes in what `Connection` lists.
    fn nominated(&mut self, bytes: &[u8], index: &mut [Field]) -> Option<()> {
        let mut options = 0;
        for at in 0..index.len() {
            let Some(field) = index.get(at).filter(|field| field.known == Known::Connection) else { continue };
            for token in list(field.value.of(bytes)) {
                // Each is compared with every field: no more of them than of fields.
                options += 1;
                if options > MAX_FIELDS {
                    return None;
                }
                self.nominate(token, bytes, index);
            }
        }
        Some(())
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
        } else {
            for field in index.iter_mut() {
                let essential = matches!(field.known, Known::Host | Known::ContentLength);
                if !essential && field.name.of(bytes).eq_ignore_ascii_case(token) {
                    field.hop = true;
                }
            }
        }
    }

    fn keeps_alive(&self, version: Version) -> bool {
        !self.close && (version != Version::Http10 || self.keep_alive)
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

/// The target in origin form (or `*`), and the authority of an absolute form (RFC 9112 §3.2).
///
/// An absolute form may say `https`: a proxy before us has taken that off, and what we tell
/// the backend of the scheme is how the request reached us.
///
/// Of the bytes that RFC 3986 does not allow, those in US-ASCII go on: browsers send `|`,
/// `^`, `` ` ``, `{`, `}` and others as they are (WHATWG URL), and nginx and HAProxy pass
/// them. Bytes from 0x80 on are refused, as HAProxy does: which character they stand for is
/// each reader's guess. So is a fragment, which is never sent (RFC 9110 §7.1).
fn target_form(method: Method, target: Span, bytes: &[u8]) -> Option<(Span, Option<Span>)> {
    let whole = target.of(bytes);
    match whole {
        [b'/', ..] => return memchr::memchr(b'#', whole).is_none().then_some((target, None)),
        b"*" => return (method == Method::Options).then_some((target, None)),
        _ => {}
    }
    let behind = |scheme: &[u8]| {
        let (start, rest) = whole.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    let rest = behind(b"http://").or_else(|| behind(b"https://"))?;
    let end = memchr::memchr3(b'/', b'?', b'#', rest).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end)?;
    // An empty path stands for `/` (RFC 9112 §3.2.1); it is written so further on.
    let valid = !authority.is_empty() && !path.contains(&b'#');
    valid.then_some((Span::within(bytes, path), Some(Span::within(bytes, authority))))
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

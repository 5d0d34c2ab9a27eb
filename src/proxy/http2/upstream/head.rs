//! Head: a request as a backend is sent it over HTTP/2, and what it answers, as we keep it.
//!
//! What goes on to a backend is written once for all versions
//! ([`encode::request_fields`]), as lines of HTTP/1, and read here into what the `h2` crate
//! sends. What makes a response malformed in HTTP/2 alone the crate has refused by then
//! (RFC 9113 §8.1 to §8.3).

use std::fmt::Write as _;

use http::header::HeaderValue;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, Request, StatusCode};

use crate::proxy::forwarded::Forwarded;
use crate::proxy::head::{Field, Fields, Framing, Known, MAX_FIELDS, Method, RequestHead, ResponseHead, Span};
use crate::proxy::http1::encode;
use crate::proxy::http1::trailers::Trailers;
use crate::proxy::http2::fields;
use crate::proxy::http2::head::EACH;
use crate::proxy::rewrite::Rewrite;
use crate::telemetry::Reason;
use crate::transport::buffer;

/// The request that a backend is sent. `None` if it can't be said in HTTP/2.
#[must_use]
pub fn request(
    head: &RequestHead,
    forwarded: &Forwarded<'_>,
    rewrite: &Rewrite<'_>,
    scheme: &Scheme,
) -> Option<Request<()>> {
    let mut request = Request::new(());
    *request.method_mut() = http::Method::from_bytes(head.method_name()).ok()?;
    let mut lines = buffer::scratch();
    encode::request_fields(&mut lines, head, forwarded, rewrite);
    *request.headers_mut() = of_lines(&lines);
    let fields = request.headers_mut();
    if head.trailers {
        fields.insert(http::header::TE, HeaderValue::from_static("trailers"));
    }
    if let Framing::Length(length) = head.framing {
        fields.insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    lines.clear();
    encode::request_target(&mut lines, head, rewrite);
    let path = path(&lines);
    buffer::recycle(lines);
    let mut asked = rewrite.authority(head, forwarded);
    if asked.is_empty() {
        // An authority may not be empty here (RFC 9113 §8.3.1).
        asked = forwarded.host.as_bytes();
    }
    *request.uri_mut() = match Authority::try_from(asked) {
        Ok(authority) => {
            let uri = Uri::builder().scheme(scheme.clone()).authority(authority).path_and_query(path?);
            uri.build().ok()?
        }
        // One that the crate does not take for such: the backend may judge it by itself.
        Err(_) => {
            request.headers_mut().insert(http::header::HOST, HeaderValue::from_bytes(asked).ok()?);
            Uri::from(path?)
        }
    };
    Some(request)
}

/// What a request's head counts (RFC 9113 §6.5.2).
#[must_use]
pub fn size(request: &Request<()>) -> usize {
    let uri = request.uri();
    let pseudo = [
        (":method", Some(request.method().as_str())),
        // One that the crate adds where there is no authority.
        (":scheme", Some(uri.scheme_str().unwrap_or("http"))),
        (":authority", uri.authority().map(Authority::as_str)),
        (":path", uri.path_and_query().map(PathAndQuery::as_str)),
    ];
    let pseudo = pseudo.iter().filter_map(|(name, value)| value.map(|value| name.len() + value.len() + EACH));
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + EACH);
    pseudo.chain(fields).sum()
}

/// The request of a health check. `None` if it can't be said.
#[must_use]
pub fn check(scheme: &Scheme, path: &str, host: &str) -> Option<Request<()>> {
    let uri = Uri::builder().scheme(scheme.clone()).authority(host).path_and_query(path).build().ok()?;
    let request = Request::get(uri).header(http::header::USER_AGENT, encode::CHECKER);
    request.header(http::header::ACCEPT, "*/*").body(()).ok()
}

/// A path with its query. What no URI may have (RFC 3986 §2) and HTTP/1 lets pass goes on
/// encoded, since the crate does not take it as it is.
fn path(bytes: &[u8]) -> Option<PathAndQuery> {
    PathAndQuery::try_from(bytes).ok().or_else(|| {
        let mut encoded = String::with_capacity(bytes.len() + 16);
        for byte in bytes {
            match byte {
                b'A'..=b'Z'
                | b'a'..=b'z'
                | b'0'..=b'9'
                | b'-'
                | b'.'
                | b'_'
                | b'~'
                | b'%'
                | b'/'
                | b'?'
                | b':'
                | b'@'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'=' => {
                    encoded.push(char::from(*byte));
                }
                // Writing into a string can't fail.
                byte => drop(write!(encoded, "%{byte:02X}")),
            }
        }
        PathAndQuery::try_from(encoded).ok()
    })
}

/// The fields that stand as lines of HTTP/1, each with its end, without those that concern
/// one connection only (RFC 9113 §8.2.2).
#[must_use]
pub fn of_lines(lines: &[u8]) -> HeaderMap {
    let mut map = fields::of_lines(lines);
    for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te"] {
        map.remove(name);
    }
    map
}

/// The head of a response to a request of this method; `ends` says that no body follows.
///
/// # Errors
/// [`Reason::BackendMalformed`], [`Reason::BackendHeaderTooLarge`].
pub fn response(status: StatusCode, map: &HeaderMap, ends: bool, to: Method) -> Result<ResponseHead, Reason> {
    // What HTTP/1 switches protocols with (RFC 9113 §8.6).
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Reason::BackendMalformed);
    }
    if map.len() > MAX_FIELDS {
        return Err(Reason::BackendHeaderTooLarge);
    }
    let mut kept = Fields::new();
    let mut bytes = buffer::scratch();
    bytes.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    let phrase = Span::new(0, bytes.len());
    let mut stated_length = None;
    for (name, value) in map {
        let known = Known::of(name.as_str().as_bytes());
        if known == Known::ContentLength {
            // The crate has seen to it that it is a number, and the same one in all of them.
            stated_length = value.to_str().ok().and_then(|value| value.parse().ok());
        }
        let value = value.as_bytes().trim_ascii();
        let start = bytes.len();
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value);
        bytes.extend_from_slice(b"\r\n");
        let end = name.as_str().len();
        kept.index_mut().push(Field {
            name: Span::new(start, end),
            value: Span::new(start + end + 2, value.len()),
            known,
            hop: known.is_hop_by_hop(),
        });
    }
    if bytes.len() > usize::from(u16::MAX) {
        buffer::recycle(bytes);
        return Err(Reason::BackendHeaderTooLarge);
    }
    kept.own(bytes);
    let status = status.as_u16();
    // RFC 9110 §6.4.1.
    let (framing, stated_length) = match stated_length {
        _ if matches!(status, 100..200 | 204) => (Framing::Empty, None),
        length if to == Method::Head || status == 304 => (Framing::Empty, length),
        length if ends => (Framing::Length(0), length),
        Some(length) => (Framing::Length(length), Some(length)),
        None => (Framing::Chunked, None),
    };
    Ok(ResponseHead { fields: kept, status, phrase, framing, stated_length, keep_alive: true, upgrade: false })
}

/// Takes in the fields behind a body. `None`: there are more than a head may have.
pub fn trailers(trailers: &mut Trailers, map: Option<&HeaderMap>) -> Option<()> {
    map.into_iter()
        .flatten()
        .try_for_each(|(name, value)| trailers.take(name.as_str().as_bytes(), value.as_bytes().trim_ascii()))
}

//! Lines: the shape of a head (RFC 9112 §2 to §5), read in one pass over its bytes.
//!
//! What a head's parts mean is for [`super::parse`] to say; here is only where they begin
//! and end, and which bytes they may have. There is one way to write a line and no leniency:
//! lines end in CRLF, parts of the first line are one space apart, nothing stands between a
//! field's name and its colon, and no line is folded. A peer that reads less strictly than
//! we do is then given nothing to read differently.
//!
//! What has come of a head that is not whole yet is judged as far as it goes, so that what
//! is no HTTP is refused at once.

use super::grammar;
use crate::proxy::head::{Field, Known, MAX_FIELDS, Span, Version};

/// Bytes that a method's name may have; the longest registered one has 17. A longer one is
/// nobody's (RFC 9112 §3).
pub const METHOD_MOST: usize = 32;

/// Bytes of a head that are looked at: as many as a [`Span`] can point into.
const MOST: usize = u16::MAX as usize;

/// Why a head can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It is not whole, and right as far as it goes.
    More,
    /// It is none.
    Malformed,
    /// The method is longer than any.
    MethodTooLong,
    /// It is of an HTTP version that has other heads, or none.
    Version,
    /// It has more than [`MAX_FIELDS`] fields.
    TooManyFields,
}

/// The first line of a request.
#[derive(Debug, Clone, Copy)]
pub struct RequestLine {
    /// The method's name.
    pub method: Span,
    /// What is asked for, in any of the four forms.
    pub target: Span,
    /// The version.
    pub version: Version,
}

/// The first line of a response.
#[derive(Debug, Clone, Copy)]
pub struct StatusLine {
    /// The version.
    pub version: Version,
    /// The status code, 000 to 999.
    pub status: u16,
    /// The reason phrase, which may be empty.
    pub phrase: Span,
}

/// Reads a request's head from the front of `bytes`: its first line, its fields, and how many
/// bytes it has. Empty lines before it are passed over (RFC 9112 §2.2).
///
/// # Errors
/// See [`Stop`].
pub fn request(bytes: &[u8], fields: &mut Vec<Field>) -> Result<(RequestLine, usize), Stop> {
    let mut reader = Reader::new(bytes);
    while reader.rest().starts_with(b"\r") {
        reader.literal(b"\r\n")?;
    }
    let method = reader.run(grammar::token);
    if method.len() > METHOD_MOST {
        return Err(Stop::MethodTooLong);
    }
    reader.behind(method, b" ")?;
    let target = reader.run(grammar::visible);
    reader.behind(target, b" ")?;
    let version = reader.version();
    if matches!(version, Ok(_) | Err(Stop::Version)) {
        reader.literal(b"\r\n")?;
    }
    let line = RequestLine { method, target, version: version? };
    reader.fields(fields)?;
    Ok((line, reader.at))
}

/// Reads a response's head, likewise, but that nothing may stand before it.
///
/// # Errors
/// See [`Stop`].
pub fn response(bytes: &[u8], fields: &mut Vec<Field>) -> Result<(StatusLine, usize), Stop> {
    let mut reader = Reader::new(bytes);
    let version = reader.version()?;
    reader.literal(b" ")?;
    let mut status = 0;
    for _ in 0..3 {
        status = status * 10 + u16::from(reader.digit()?);
    }
    // A server that has no phrase should send the space all the same; not all do.
    if reader.rest().starts_with(b" ") {
        reader.literal(b" ")?;
    } else {
        reader.before(b"\r")?;
    }
    let phrase = reader.run(grammar::text);
    reader.literal(b"\r\n")?;
    reader.fields(fields)?;
    Ok((StatusLine { version, status, phrase }, reader.at))
}

/// A place in a head.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes: bytes.get(..MOST).unwrap_or(bytes), at: 0 }
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// Takes as many bytes as `most` says that fit.
    #[inline(always)]
    fn run(&mut self, most: impl Fn(&[u8]) -> usize) -> Span {
        let length = most(self.rest());
        let span = Span::new(self.at, length);
        self.at += length;
        span
    }

    /// Takes just these bytes.
    #[inline(always)]
    fn literal(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.before(bytes)?;
        self.at += bytes.len();
        Ok(())
    }

    /// Takes just these bytes, and sees that something stands before them.
    #[inline(always)]
    fn behind(&mut self, span: Span, bytes: &[u8]) -> Result<(), Stop> {
        self.literal(bytes)?;
        if span.is_empty() { Err(Stop::Malformed) } else { Ok(()) }
    }

    /// Sees that just these bytes come next.
    #[inline(always)]
    fn before(&self, bytes: &[u8]) -> Result<(), Stop> {
        let rest = self.rest();
        if rest.get(..bytes.len()) == Some(bytes) { Ok(()) } else { Err(missing(rest, bytes)) }
    }

    fn digit(&mut self) -> Result<u8, Stop> {
        let byte = self.rest().first().ok_or(Stop::More)?;
        let digit = byte.is_ascii_digit().then(|| byte - b'0').ok_or(Stop::Malformed)?;
        self.at += 1;
        Ok(digit)
    }

    /// `HTTP-version` (RFC 9112 §2.3).
    fn version(&mut self) -> Result<Version, Stop> {
        self.literal(b"HTTP/")?;
        let major = self.digit()?;
        self.literal(b".")?;
        match (major, self.digit()?) {
            (1, 1) => Ok(Version::Http11),
            (1, 0) => Ok(Version::Http10),
            _ => Err(Stop::Version),
        }
    }

    /// `*( field-line CRLF ) CRLF` (RFC 9112 §5).
    fn fields(&mut self, index: &mut Vec<Field>) -> Result<(), Stop> {
        let bytes = self.bytes;
        let white = |at: usize| matches!(bytes.get(at), Some(b' ' | b'\t'));
        while !matches!(bytes.get(self.at), Some(b'\r') | None) {
            if index.len() == MAX_FIELDS {
                return Err(Stop::TooManyFields);
            }
            let name = self.run(grammar::token);
            self.behind(name, b":")?;
            while white(self.at) {
                self.at += 1;
            }
            let mut value = self.run(grammar::text);
            while !value.is_empty() && white(value.end() - 1) {
                value = value.without_last();
            }
            self.literal(b"\r\n")?;
            let known = Known::of(name.of(bytes));
            index.push(Field { name, value, known, hop: known.is_hop_by_hop() });
        }
        self.literal(b"\r\n")
    }
}

/// Why there are other bytes than `wanted`: none yet, or wrong ones.
#[cold]
fn missing(rest: &[u8], wanted: &[u8]) -> Stop {
    if wanted.starts_with(rest) { Stop::More } else { Stop::Malformed }
}

#[cfg(test)]
mod tests {
    use super::{MAX_FIELDS, MOST, Stop, request, response};
    use crate::proxy::head::Known;

    fn stop(head: &str) -> Stop {
        request(head.as_bytes(), &mut Vec::new()).unwrap_err()
    }

    #[test]
    fn the_parts_of_a_request_are_found() {
        let bytes = b"\r\nGET /a?b HTTP/1.0\r\nHost: \t x y\t \r\nA:\r\n\r\nrest";
        let mut fields = Vec::new();
        let (line, length) = request(bytes, &mut fields).unwrap();
        assert_eq!((line.method.of(bytes), line.target.of(bytes)), (&b"GET"[..], &b"/a?b"[..]));
        assert_eq!((line.version.number(), bytes.len() - length), (10, 4));
        let parts: Vec<_> =
            fields.iter().map(|field| (field.name.of(bytes), field.value.of(bytes), field.known)).collect();
        assert_eq!(parts, [(&b"Host"[..], &b"x y"[..], Known::Host), (b"A", b"", Known::Other)]);
    }

    #[test]
    fn a_head_is_refused_as_soon_as_it_is_none() {
        for head in [
            "\n",
            "\r\r",
            " ",
            "G\t",
            "GET\r",
            "GET  ",
            "GET / \r",
            "GET / X",
            "GET / HTTP/1.1 ",
            "GET / HTTP/1.1\n",
            "GET / HTTP/1.1\r\n ",
            "GET / HTTP/1.1\r\n:",
            "GET / HTTP/1.1\r\nA ",
            "GET / HTTP/1.1\r\nA\r",
            "GET / HTTP/1.1\r\nA: \x00",
            "GET / HTTP/1.1\r\nA: b\n",
            "GET / HTTP/1.1\r\nA: b\rc",
            "GET /\u{e4}",
            "GET / HTTP/1.1\r\nA: b\r\n ",
            "GET / HTTP/1.1\r\n\rx",
            "GET / HTTP/x",
            "GET / HTTP/11",
        ] {
            assert_eq!(stop(head), Stop::Malformed, "{head:?}");
            let before = &head[..head.char_indices().last().unwrap().0];
            assert_eq!(stop(before), Stop::More, "{before:?}");
        }
        for version in ["2.0", "1.2", "0.9", "9.9"] {
            assert_eq!(stop(&format!("GET / HTTP/{version}\r\n")), Stop::Version);
            assert_eq!(stop(&format!("GET / HTTP/{version}\r")), Stop::More);
            assert_eq!(stop(&format!("GET / HTTP/{version} ")), Stop::Malformed);
        }
        assert_eq!((stop(&"M".repeat(32)), stop(&"M".repeat(33))), (Stop::More, Stop::MethodTooLong));
    }

    #[test]
    fn a_status_line_may_lack_its_phrase_and_the_space_before_it_but_nothing_else() {
        let read = |head: &str| {
            let read = response(head.as_bytes(), &mut Vec::new());
            read.map(|(line, _)| (line.status, String::from_utf8_lossy(line.phrase.of(head.as_bytes())).into_owned()))
        };
        assert_eq!(read("HTTP/1.1 200 Fine, \u{fc}\r\n\r\n"), Ok((200, "Fine, \u{fc}".into())));
        assert_eq!(read("HTTP/1.0 404 \r\n\r\n"), Ok((404, String::new())));
        assert_eq!(read("HTTP/1.1 099\r\n\r\n"), Ok((99, String::new())));
        for head in ["\r\n", "http", "HTTP/1.1 20 ", "HTTP/1.1 2000", "HTTP/1.1  200", "HTTP/1.1 200 a\n"] {
            assert_eq!(read(head), Err(Stop::Malformed), "{head}");
        }
        assert_eq!(read("HTTP/1.1 200"), Err(Stop::More));
        assert_eq!(read("HTTP/2.0 200 OK\r\n\r\n"), Err(Stop::Version));
    }

    #[test]
    fn more_fields_or_bytes_than_can_be_pointed_at_are_not_taken() {
        let head = |fields: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "a:\r\n".repeat(fields));
        assert!(request(head(MAX_FIELDS).as_bytes(), &mut Vec::new()).is_ok());
        assert_eq!(stop(&head(MAX_FIELDS + 1)), Stop::TooManyFields);
        let long = |bytes: usize| format!("GET / HTTP/1.1\r\na:{}\r\n\r\n", "x".repeat(bytes - 22));
        assert_eq!(request(long(MOST).as_bytes(), &mut Vec::new()).unwrap().1, MOST);
        assert_eq!(stop(&long(MOST + 1)), Stop::More);
    }
}

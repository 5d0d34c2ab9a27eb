//! A second reader of HTTP/1.1, to judge by what doorward has written.
//!
//! It is written from the grammar of RFC 9110 and RFC 9112 alone and shares nothing
//! with the daemon's own parser: no library, no tables, no order of steps. It is
//! stricter than any recipient has to be, since what a proxy writes anew has no excuse.

/// A message, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The three parts of the first line.
    pub line: [Vec<u8>; 3],
    /// The field lines in order: name as written, value without white space around it.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// How the body's end is told.
    pub framing: Framing,
    /// The body, without framing.
    pub body: Vec<u8>,
    /// The trailer fields.
    pub trailers: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes that it took.
    pub length: usize,
}

/// How the end of a body is told (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// By the fields there is none.
    None,
    /// `Content-Length`.
    Length(usize),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// The end of the connection.
    UntilClose,
}

/// Why there is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// What there is may be the start of one.
    Partial,
    /// There can't be one, for this breach of the grammar.
    Wrong(&'static str),
}

type Read<T> = Result<T, Fault>;

impl Message {
    /// The values of all fields of this name.
    pub fn all(&self, name: &str) -> Vec<&[u8]> {
        let named = self.fields.iter().filter(|(given, _)| given.eq_ignore_ascii_case(name.as_bytes()));
        named.map(|(_, value)| value.as_slice()).collect()
    }

    /// The status code of a response.
    pub fn status(&self) -> u16 {
        self.line[1].iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'))
    }
}

/// A head: what stands before a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The three parts of the first line.
    pub line: [Vec<u8>; 3],
    /// The field lines in order: name as written, value without white space around it.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes that it took.
    pub length: usize,
}

impl Head {
    /// The values of all fields of this name.
    pub fn all(&self, name: &str) -> Vec<&[u8]> {
        let named = self.fields.iter().filter(|(given, _)| given.eq_ignore_ascii_case(name.as_bytes()));
        named.map(|(_, value)| value.as_slice()).collect()
    }
}

/// Reads one request from the front of `bytes`.
pub fn request(bytes: &[u8]) -> Read<Message> {
    let Head { line, fields, length } = request_head(bytes)?;
    let mut text = Text { bytes, at: length };
    let framing = match stated(&fields, &line[2])? {
        Framing::UntilClose => Framing::None,
        framing => framing,
    };
    let (body, trailers) = body(&mut text, framing, false)?;
    Ok(Message { line, fields, framing, body, trailers, length: text.at })
}

/// Reads the head of a request, whatever its fields say of a body.
pub fn request_head(bytes: &[u8]) -> Read<Head> {
    let mut text = Text { bytes, at: 0 };
    let method = text.while_of(tchar);
    text.need(!method.is_empty(), "no method")?;
    text.expect(b" ", "no space behind the method")?;
    let target = text.while_of(|byte| (0x21..0x7f).contains(&byte));
    text.need(!target.is_empty(), "no target")?;
    text.expect(b" ", "no space behind the target")?;
    let version = version(&mut text)?;
    text.expect(b"\r\n", "no CRLF behind the version")?;
    let fields = fields(&mut text)?;
    Ok(Head { line: [method, target, version], fields, length: text.at })
}

/// Reads one response to `method` from the front of `bytes`. `ended`: nothing follows
/// them, which ends a body that is told by the connection's end.
pub fn response(bytes: &[u8], method: &[u8], ended: bool) -> Read<Message> {
    let Head { line, fields, length } = response_head(bytes)?;
    let mut text = Text { bytes, at: length };
    let [version, status, _] = &line;
    let stated = stated(&fields, version)?;
    let bare = status[0] == b'1' || status == b"204";
    if bare && stated != Framing::UntilClose {
        return Err(Fault::Wrong("framing of a body that can't be"));
    }
    let framing = if bare || status == b"304" || method == b"HEAD" { Framing::None } else { stated };
    let (body, trailers) = body(&mut text, framing, ended)?;
    Ok(Message { line, fields, framing, body, trailers, length: text.at })
}

/// Reads the head of a response, whatever its fields say of a body.
pub fn response_head(bytes: &[u8]) -> Read<Head> {
    let mut text = Text { bytes, at: 0 };
    let version = version(&mut text)?;
    text.expect(b" ", "no space behind the version")?;
    let status = text.while_of(|byte| byte.is_ascii_digit());
    let code = status.len() <= 3 && status.first() != Some(&b'0');
    code.then_some(()).ok_or(Fault::Wrong("no status code"))?;
    text.need(status.len() == 3, "no status code")?;
    text.expect(b" ", "no space behind the status code")?;
    let phrase = text.while_of(|byte| byte == b'\t' || byte == b' ' || vchar(byte));
    text.expect(b"\r\n", "no CRLF behind the phrase")?;
    let fields = fields(&mut text)?;
    Ok(Head { line: [version, status, phrase], fields, length: text.at })
}

/// How much a reader of chunks takes of what the grammar has.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Digits in a size.
    pub digits: usize,
    /// Bytes of extensions behind a size.
    pub extension: usize,
    /// Bytes of extensions beyond those of data, in any stretch of the body.
    pub excess: usize,
    /// Trailer fields.
    pub trailers: usize,
    /// Bytes of one trailer field, without its line's end.
    pub trailer: usize,
}

/// No bounds.
pub const GRAMMAR: Rules =
    Rules { digits: usize::MAX, extension: usize::MAX, excess: usize::MAX, trailers: usize::MAX, trailer: usize::MAX };

/// A field line: name and value.
type Line = (Vec<u8>, Vec<u8>);

/// Reads a chunked body from the front of `bytes`: its data, its trailer fields, and how
/// many bytes it took.
pub fn chunked(bytes: &[u8], rules: Rules) -> Read<(Vec<u8>, Vec<Line>, usize)> {
    let mut text = Text { bytes, at: 0 };
    let (body, trailers) = chunks(&mut text, rules)?;
    Ok((body, trailers, text.at))
}

struct Text<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Text<'_> {
    fn while_of(&mut self, belongs: impl Fn(u8) -> bool) -> Vec<u8> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| !belongs(*byte)).unwrap_or(rest.len());
        self.at += end;
        rest[..end].to_vec()
    }

    /// A breach, unless more bytes could mend it.
    fn need(&self, met: bool, breach: &'static str) -> Read<()> {
        match (met, self.at == self.bytes.len()) {
            (true, _) => Ok(()),
            (false, true) => Err(Fault::Partial),
            (false, false) => Err(Fault::Wrong(breach)),
        }
    }

    fn expect(&mut self, mark: &[u8], breach: &'static str) -> Read<()> {
        let rest = &self.bytes[self.at..];
        let n = rest.len().min(mark.len());
        if rest[..n] != mark[..n] {
            return Err(Fault::Wrong(breach));
        }
        if n < mark.len() {
            return Err(Fault::Partial);
        }
        self.at += n;
        Ok(())
    }

    fn sees(&self, byte: u8) -> bool {
        self.bytes.get(self.at) == Some(&byte)
    }
}

/// `tchar` (RFC 9110 §5.6.2).
fn tchar(byte: u8) -> bool {
    matches!(
        byte,
        b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
    ) || byte.is_ascii_digit()
        || byte.is_ascii_alphabetic()
}

/// `VCHAR` or `obs-text` (RFC 9110 §5.5).
fn vchar(byte: u8) -> bool {
    (0x21..0x7f).contains(&byte) || byte >= 0x80
}

fn version(text: &mut Text<'_>) -> Read<Vec<u8>> {
    text.expect(b"HTTP/1.", "no version 1")?;
    let minor = text.bytes.get(text.at).copied().ok_or(Fault::Partial)?;
    text.need(matches!(minor, b'0' | b'1'), "no version 1.0 or 1.1")?;
    text.at += 1;
    Ok([b"HTTP/1.", &[minor][..]].concat())
}

/// `*( field-line CRLF ) CRLF` (RFC 9112 §5), without folded lines.
fn fields(text: &mut Text<'_>) -> Read<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut fields = Vec::new();
    loop {
        if text.sees(b'\r') {
            text.expect(b"\r\n", "a bare CR")?;
            return Ok(fields);
        }
        let name = text.while_of(tchar);
        text.need(!name.is_empty(), "no field name")?;
        text.expect(b":", "no colon behind a field name")?;
        let value = text.while_of(|byte| byte == b' ' || byte == b'\t' || vchar(byte));
        text.expect(b"\r\n", "a field value with a control character")?;
        fields.push((name, value.trim_ascii().to_vec()));
    }
}

/// What the fields say of a body; [`Framing::UntilClose`] when nothing.
pub fn stated(fields: &[(Vec<u8>, Vec<u8>)], version: &[u8]) -> Read<Framing> {
    let all = |name: &str| {
        let named = fields.iter().filter(move |(given, _)| given.eq_ignore_ascii_case(name.as_bytes()));
        named.map(|(_, value)| value.as_slice()).collect::<Vec<_>>()
    };
    match (all("transfer-encoding").as_slice(), all("content-length").as_slice()) {
        ([], []) => Ok(Framing::UntilClose),
        ([], [length]) if !length.is_empty() && length.iter().all(u8::is_ascii_digit) => {
            let length = std::str::from_utf8(length).ok().and_then(|digits| digits.parse().ok());
            length.map(Framing::Length).ok_or(Fault::Wrong("a length beyond all bounds"))
        }
        ([coding], []) if coding.eq_ignore_ascii_case(b"chunked") && version == b"HTTP/1.1" => Ok(Framing::Chunked),
        ([], [_]) => Err(Fault::Wrong("a length that is none")),
        ([], _) => Err(Fault::Wrong("several lengths")),
        ([_], []) => Err(Fault::Wrong("a coding other than chunked")),
        (_, []) => Err(Fault::Wrong("several codings")),
        _ => Err(Fault::Wrong("both coding and length")),
    }
}

type Body = (Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>);

fn body(text: &mut Text<'_>, framing: Framing, ended: bool) -> Read<Body> {
    let rest = &text.bytes[text.at..];
    match framing {
        Framing::None => Ok((Vec::new(), Vec::new())),
        Framing::Length(length) if rest.len() < length => Err(Fault::Partial),
        Framing::Length(length) => {
            text.at += length;
            Ok((rest[..length].to_vec(), Vec::new()))
        }
        Framing::UntilClose if ended => {
            text.at = text.bytes.len();
            Ok((rest.to_vec(), Vec::new()))
        }
        Framing::UntilClose => Err(Fault::Partial),
        Framing::Chunked => chunks(text, GRAMMAR),
    }
}

/// `*chunk last-chunk trailer-section CRLF` (RFC 9112 §7.1).
fn chunks(text: &mut Text<'_>, rules: Rules) -> Read<Body> {
    let mut body = Vec::new();
    // Bytes of extensions so far, and the largest lead that the data had on them.
    let (mut extra, mut lead) = (0, 0);
    loop {
        let digits = text.while_of(|byte| byte.is_ascii_hexdigit());
        text.need(!digits.is_empty(), "no chunk size")?;
        if digits.len() > rules.digits {
            return Err(Fault::Wrong("a chunk size of too many digits"));
        }
        let size = std::str::from_utf8(&digits).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
        let size = size.ok_or(Fault::Wrong("a chunk size beyond all bounds"))?;
        let begin = text.at;
        let extended = extensions(text);
        extra += text.at - begin;
        if text.at - begin > rules.extension || extra + lead > body.len().saturating_add(rules.excess) {
            return Err(Fault::Wrong("chunk extensions that are too long"));
        }
        extended?;
        text.expect(b"\r\n", "no CRLF behind a chunk size")?;
        if size == 0 {
            return Ok((body, trailers(text, rules)?));
        }
        let data = text.bytes[text.at..].get(..size).ok_or(Fault::Partial)?;
        body.extend_from_slice(data);
        lead = lead.max(body.len().saturating_sub(extra));
        text.at += size;
        text.expect(b"\r\n", "no CRLF behind a chunk")?;
    }
}

/// `trailer-section` (RFC 9112 §7.1.2). Too many lines, or a line too long, are a breach
/// also before the section has ended.
fn trailers(text: &mut Text<'_>, rules: Rules) -> Read<Vec<Line>> {
    let begin = text.at;
    let read = fields(text);
    let lines = || text.bytes[begin..text.at].split_inclusive(|byte| *byte == b'\n');
    if lines().filter(|line| *line != b"\r\n" && line.ends_with(b"\n")).count() > rules.trailers {
        return Err(Fault::Wrong("too many trailer fields"));
    }
    if lines().any(|line| line.strip_suffix(b"\r\n").unwrap_or(line).len() > rules.trailer) {
        return Err(Fault::Wrong("a trailer field that is too long"));
    }
    read
}

/// `*( BWS ";" BWS name [ BWS "=" BWS value ] )` (RFC 9112 §7.1.1).
fn extensions(text: &mut Text<'_>) -> Read<()> {
    let blank = |byte| byte == b' ' || byte == b'\t';
    loop {
        let gap = text.while_of(blank);
        if !text.sees(b';') {
            return text.need(gap.is_empty(), "white space behind a chunk size");
        }
        text.expect(b";", "no semicolon")?;
        text.while_of(blank);
        let name = text.while_of(tchar);
        text.need(!name.is_empty(), "no name of a chunk extension")?;
        let before = text.at;
        text.while_of(blank);
        if !text.sees(b'=') {
            text.at = before;
            continue;
        }
        text.expect(b"=", "no equals sign")?;
        text.while_of(blank);
        if !text.sees(b'"') {
            let value = text.while_of(tchar);
            text.need(!value.is_empty(), "no value of a chunk extension")?;
            continue;
        }
        text.expect(b"\"", "no quote")?;
        loop {
            text.while_of(|byte| byte == b'\t' || byte == b' ' || (vchar(byte) && byte != b'"' && byte != b'\\'));
            if text.sees(b'"') {
                text.expect(b"\"", "no quote")?;
                break;
            }
            text.expect(b"\\", "a quoted string with a control character")?;
            let escaped = text.bytes.get(text.at).copied().ok_or(Fault::Partial)?;
            text.need(escaped == b'\t' || escaped == b' ' || vchar(escaped), "an escaped control character")?;
            text.at += 1;
        }
    }
}

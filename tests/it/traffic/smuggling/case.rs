//! The notation of the tables.
//!
//! ```text
//! == what it is about -- RFC 9112 §6.3
//! C> POST / HTTP/1.1             what the client sends
//! C> Host: a
//! C> Content-Length: 2
//! C>
//! C> ok\
//! B< POST / HTTP/1.1             what the backend gets, byte for byte; without such
//! B< Host: a                     lines: nothing, and no connection is made
//! B< {ours a}
//! B< Content-Length: 2
//! B<
//! B< ok\
//! C= 200                         how the client is answered, by status and reason
//! C. open                        what becomes of its connection
//! ```
//!
//! A line stands for its bytes and a CRLF; one that ends in `\` for its bytes alone.
//! `\r`, `\n`, `\t`, `\0`, `\s` (a space, where an editor would drop it), `\xHH`, `\\`
//! and `\{` are what they look like; `{3*ab}` is `ababab`. What differs from run to run
//! is `{date}` and `{id}`; `{ours HOST}` are the fields that doorward adds to a request,
//! `{ours HOST 1.0}` to one of that version.
//!
//! A row with lines that begin with `~` stands for as many rows, with what follows put
//! in the place of `{~}`.
//!
//! Instead of `C=`, `C<` gives what the client gets byte for byte. `B+` parts what the
//! backend gets on different connections. `B>` is what the backend answers with (else a
//! 200 with the body `ok`), to each request in turn where `B+` parts it; `B. closes` and
//! `B. resets` say how it ends after that, `B. early` that it does not wait for the
//! request's body. `B. at most` allows for less of the last part, as where a body breaks
//! off. `C. ends`: the client ends its direction after what it sent.

use std::iter::Peekable;
use std::str::Chars;

/// A row of a table.
#[derive(Debug, Default)]
pub struct Case {
    /// What it is about, with the section of the RFC and the variant.
    pub name: String,
    /// The line on which it begins.
    pub line: usize,
    /// What the client sends.
    pub sends: Vec<u8>,
    /// The client ends its direction then.
    pub half_closes: bool,
    /// How it is answered: statuses, with the reason where the answer is our own.
    pub answers: Vec<(u16, Option<String>)>,
    /// Or what it gets, byte for byte.
    pub gets: Option<Vec<u8>>,
    /// What becomes of its connection.
    pub end: Option<End>,
    /// What the backend gets, by connection.
    pub backend_gets: Vec<Vec<u8>>,
    /// What it answers, in turn; the last one over and over.
    pub backend_sends: Vec<Vec<u8>>,
    /// What it does after that.
    pub backend_then: Then,
    /// It answers when it has the head.
    pub backend_early: bool,
    /// It may also get less, as long as it gets nothing else.
    pub backend_at_most: bool,
}

/// What becomes of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It serves another request.
    Open,
    /// It ends in order.
    Closes,
    /// It is reset.
    Resets,
}

/// What the backend does after its answer.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It waits for another request.
    #[default]
    Waits,
    /// It ends its direction.
    Closes,
    /// It resets the connection.
    Resets,
}

/// Reads a table.
pub fn table(text: &str) -> Vec<Case> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line)) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix("== ") {
            assert!(name.contains(" -- "), "line {number}: no section: {line}");
            rows.push(Row { name, number, ..Row::default() });
            continue;
        }
        let row = rows.last_mut().unwrap_or_else(|| panic!("line {number}: no row begins before {line:?}"));
        match line.strip_prefix("~ ") {
            Some(variant) => row.variants.push(variant),
            None => row.lines.push((number, line)),
        }
    }
    rows.iter().flat_map(Row::cases).collect()
}

/// A row as it is written.
#[derive(Default)]
struct Row<'a> {
    name: &'a str,
    number: usize,
    variants: Vec<&'a str>,
    lines: Vec<(usize, &'a str)>,
}

impl Row<'_> {
    fn cases(&self) -> Vec<Case> {
        if self.variants.is_empty() {
            return vec![self.case(self.name.to_owned(), None)];
        }
        self.variants.iter().map(|variant| self.case(format!("{}: {variant}", self.name), Some(variant))).collect()
    }

    fn case(&self, name: String, variant: Option<&str>) -> Case {
        let mut case = Case { name, line: self.number, ..Case::default() };
        let (mut request_ends, mut answer_ends) = (true, true);
        for (number, line) in &self.lines {
            let (mark, rest) = line.split_at(2.min(line.len()));
            let rest = rest.strip_prefix(' ').unwrap_or(rest);
            let rest = &variant.map_or_else(|| rest.to_owned(), |variant| rest.replace("{~}", variant));
            match mark {
                "C>" => bytes(&mut case.sends, rest, *number),
                "C<" => bytes(case.gets.get_or_insert_default(), rest, *number),
                "C=" => case.answers.push(answer(rest, *number)),
                "C." if rest == "ends" => case.half_closes = true,
                "C." => {
                    let end = match rest.as_str() {
                        "open" => End::Open,
                        "closes" => End::Closes,
                        "resets" => End::Resets,
                        _ => panic!("line {number}: no end of a connection: {rest}"),
                    };
                    assert!(case.end.replace(end).is_none(), "line {number}: a second end");
                }
                "B<" => bytes(part(&mut case.backend_gets, &mut request_ends), rest, *number),
                "B>" => bytes(part(&mut case.backend_sends, &mut answer_ends), rest, *number),
                "B+" => (request_ends, answer_ends) = (true, true),
                "B." => match rest.as_str() {
                    "closes" => case.backend_then = Then::Closes,
                    "resets" => case.backend_then = Then::Resets,
                    "early" => case.backend_early = true,
                    "at most" => case.backend_at_most = true,
                    _ => panic!("line {number}: nothing that a backend does: {rest}"),
                },
                _ => panic!("line {number}: no mark of a table: {line:?}"),
            }
        }
        assert!(case.end.is_some(), "{}: what becomes of the connection?", case.name);
        assert!(case.gets.is_none() || case.answers.is_empty(), "{}: is it `C=` or `C<`?", case.name);
        assert!(!case.sends.is_empty(), "{}: what does the client send?", case.name);
        case
    }
}

fn part<'a>(parts: &'a mut Vec<Vec<u8>>, ended: &mut bool) -> &'a mut Vec<u8> {
    if std::mem::take(ended) {
        parts.push(Vec::new());
    }
    parts.last_mut().unwrap()
}

fn answer(text: &str, number: usize) -> (u16, Option<String>) {
    let (status, reason) =
        text.split_once(' ').map_or((text, None), |(status, reason)| (status, Some(reason.to_owned())));
    (status.parse().unwrap_or_else(|_| panic!("line {number}: no status: {text}")), reason)
}

fn bytes(out: &mut Vec<u8>, text: &str, number: usize) {
    let (text, end) = match text.strip_suffix('\\') {
        Some(text) if !text.ends_with('\\') => (text, ""),
        _ => (text, "\r\n"),
    };
    let mut chars = text.chars().peekable();
    while let Some(character) = chars.next() {
        match character {
            '\\' => escape(out, &mut chars, number),
            '{' => {
                let word: String = chars.by_ref().take_while(|character| *character != '}').collect();
                expand(out, &word, number);
            }
            _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.extend_from_slice(end.as_bytes());
}

fn escape(out: &mut Vec<u8>, chars: &mut Peekable<Chars<'_>>, number: usize) {
    out.push(match chars.next() {
        Some('r') => b'\r',
        Some('n') => b'\n',
        Some('t') => b'\t',
        Some('0') => 0,
        Some('s') => b' ',
        Some('\\') => b'\\',
        Some('{') => b'{',
        Some('x') => {
            let digits: String = chars.by_ref().take(2).collect();
            u8::from_str_radix(&digits, 16).unwrap_or_else(|_| panic!("line {number}: no byte: \\x{digits}"))
        }
        other => panic!("line {number}: no escape: \\{other:?}"),
    });
}

fn expand(out: &mut Vec<u8>, word: &str, number: usize) {
    let words: Vec<&str> = word.split(' ').collect();
    match (words.as_slice(), word.split_once('*')) {
        (["date" | "id"], _) => out.extend_from_slice(format!("{{{word}}}").as_bytes()),
        (["ours", host], _) => out.extend_from_slice(ours(host, "1.1").as_bytes()),
        (["ours", host, version], _) => out.extend_from_slice(ours(host, version).as_bytes()),
        (_, Some((times, text))) => {
            let times = times.parse().unwrap_or_else(|_| panic!("line {number}: no number: {word}"));
            let mut once = Vec::new();
            bytes(&mut once, &format!("{text}\\"), number);
            out.extend_from_slice(&once.repeat(times));
        }
        _ => panic!("line {number}: nothing that stands for more: {word}"),
    }
}

fn ours(host: &str, version: &str) -> String {
    format!(
        "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: {host}\r\n\
         X-Request-Id: {{id}}\r\nVia: {version} doorward"
    )
}

/// Puts `{id}` and `{date}` in the place of what differs from run to run.
pub fn masked(bytes: &[u8]) -> Vec<u8> {
    let made_up =
        |value: &[u8]| value.len() == 32 && value.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let now = |value: &[u8]| std::str::from_utf8(value).is_ok_and(|text| httpdate::parse_http_date(text).is_ok());
    let once = mask(bytes, b"X-Request-Id: ", b"{id}", made_up);
    mask(&once, b"Date: ", b"{date}", now)
}

fn mask(bytes: &[u8], name: &[u8], with: &[u8], differs: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(name.len()).position(|window| window == name) {
        let (before, value) = rest.split_at(at + name.len());
        out.extend_from_slice(before);
        let end = value.windows(2).position(|window| window == b"\r\n").unwrap_or(value.len());
        let line_begins = at == 0 || rest[..at].ends_with(b"\r\n");
        if line_begins && differs(&value[..end]) {
            out.extend_from_slice(with);
        } else {
            out.extend_from_slice(&value[..end]);
        }
        rest = &value[end..];
    }
    out.extend_from_slice(rest);
    out
}

/// Bytes in the notation of a table, each line behind `mark`.
pub fn shown(mark: &str, bytes: &[u8]) -> String {
    let mut out = String::new();
    for line in bytes.split_inclusive(|byte| *byte == b'\n').take(40) {
        let (text, end) = line.strip_suffix(b"\r\n").map_or((line, "\\"), |text| (text, ""));
        let text: String = String::from_utf8_lossy(&text[..text.len().min(200)]).escape_debug().collect();
        out.push_str(&format!("{mark} {}{end}\n", text.replace("\\'", "'").replace("\\\"", "\"")));
    }
    out
}

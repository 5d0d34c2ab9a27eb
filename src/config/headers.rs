//! Header fields that a route sets or removes.
//!
//! Names and values are those of RFC 9110 §5, checked once as they are loaded, so that
//! writing them out needs no care. What belongs to one connection, frames a message or is
//! doorward's own to say can't be touched: a message must mean the same to both sides.

use super::tls::CLIENT_FIELDS;
use super::values::{Form, Wrong};

/// Most fields that one key sets.
const FIELDS_LIMIT: usize = 64;

/// Longest value in bytes.
const VALUE_LIMIT: usize = 4096;

/// A field that a route sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name, a token.
    pub name: String,
    /// Its value, of visible ASCII characters and blanks between them.
    pub value: String,
}

/// Whose fields they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Requests,
    Responses,
}

impl Of {
    /// Why a route can't touch this field, if it can't.
    fn refuses(self, name: &str) -> Option<&'static str> {
        let is = |names: &[&str]| names.iter().any(|other| same_name(name.as_bytes(), other.as_bytes()));
        if is(&["Connection", "HTTP2-Settings", "Keep-Alive", "Proxy-Connection", "TE", "Transfer-Encoding", "Upgrade"])
        {
            return Some("belongs to one connection, not to the message");
        }
        if is(&["Content-Length", "Trailer"]) {
            return Some("says where the message ends");
        }
        match self {
            Of::Requests if is(&["Host"]) => Some("is what `BACKEND_HOST` decides on"),
            Of::Requests if is(&["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"]) => {
                Some("is what `FORWARDED` decides on")
            }
            Of::Requests if is(CLIENT_FIELDS) => Some("is what `TLS_CLIENT_FIELDS` decides on"),
            Of::Requests if is(&["Expect", "Max-Forwards", "Via", "X-Request-Id"]) => {
                Some("is for doorward itself to say")
            }
            Of::Responses if is(&["Date", "Host"]) => Some("is not for a route to say"),
            Of::Requests | Of::Responses => None,
        }
    }

    fn check_name(self, name: &str) -> Result<(), Wrong> {
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(Wrong::new(format!("`{name}` is no name of a header field")));
        }
        match self.refuses(name) {
            Some(why) => Err(Wrong::new(format!("`{name}` {why}"))),
            None => Ok(()),
        }
    }
}

/// `tchar` of RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether two names are one field to some reader: case does not matter, and gateways
/// that make variables of fields take `_` for `-`.
#[must_use]
pub fn same_name(one: &[u8], other: &[u8]) -> bool {
    let plain = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    one.len() == other.len() && one.iter().map(plain).eq(other.iter().map(plain))
}

/// The form of fields to set, each `Name: value`, with `|` between them.
pub(super) struct Headers(pub Of);

impl Form for Headers {
    type Value = Vec<Header>;

    fn parse(&self, text: &str) -> Result<Vec<Header>, Wrong> {
        let mut headers: Vec<Header> = Vec::new();
        if text.is_empty() {
            return Ok(headers);
        }
        for entry in entries(text) {
            let entry = entry.trim();
            let header = self.one(entry).map_err(|wrong| wrong.at(entry))?;
            if headers.iter().any(|known| same_name(known.name.as_bytes(), header.name.as_bytes())) {
                return Err(Wrong::new(format!("`{}` is set twice", header.name)).at(entry));
            }
            if headers.len() == FIELDS_LIMIT {
                return Err(Wrong::new(format!("more than {FIELDS_LIMIT} fields")));
            }
            headers.push(header);
        }
        Ok(headers)
    }

    fn describe(&self) -> String {
        "header fields, each `Name: value`, separated by `|` (a `|` in a value is written `||`)".to_owned()
    }
}

impl Headers {
    fn one(&self, entry: &str) -> Result<Header, Wrong> {
        let Some((name, value)) = entry.split_once(':') else {
            return Err(Wrong::new(format!("`{entry}` is not `Name: value`; `|` separates fields")));
        };
        self.0.check_name(name)?;
        let value = value.trim();
        if value.is_empty() {
            return Err(Wrong::new(format!("`{name}` has no value; a field is removed by the key that says so")));
        }
        if value.len() > VALUE_LIMIT {
            return Err(Wrong::new(format!("the value of `{name}` has more than {VALUE_LIMIT} bytes")));
        }
        if !value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
            return Err(Wrong::new(format!("the value of `{name}` has other characters than ASCII's visible ones")));
        }
        Ok(Header { name: name.to_owned(), value: value.to_owned() })
    }
}

/// What stands between single `|`, with each `||` as one.
fn entries(text: &str) -> Vec<String> {
    let mut entries = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let ends = c == '|' && rest.next_if_eq(&'|').is_none();
        match entries.last_mut() {
            Some(entry) if !ends => entry.push(c),
            _ => entries.push(String::new()),
        }
    }
    entries
}

/// The form of the name of a field to remove.
pub(super) struct HeaderName(pub Of);

impl Form for HeaderName {
    type Value = String;

    fn parse(&self, text: &str) -> Result<String, Wrong> {
        self.0.check_name(text).map(|()| text.to_owned())
    }

    fn describe(&self) -> String {
        "the name of a header field".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> Result<Vec<(String, String)>, String> {
        let read = Headers(Of::Requests).parse(text);
        read.map(|all| all.into_iter().map(|one| (one.name, one.value)).collect()).map_err(|wrong| wrong.message)
    }

    #[test]
    fn fields_are_separated_by_bars_and_a_doubled_bar_is_one() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(set(""), Ok(vec![]));
        assert_eq!(
            set("X-A: 1, 2; q=\"a:b\" |x_b:a||b||||c| Z-: '"),
            Ok(vec![pair("X-A", "1, 2; q=\"a:b\""), pair("x_b", "a|b||c"), pair("Z-", "'")])
        );
    }

    #[test]
    fn what_is_no_field_is_refused() {
        for (text, message) in [
            ("X-A", "`X-A` is not `Name: value`; `|` separates fields"),
            ("X-A: 1 | 2", "`2` is not `Name: value`; `|` separates fields"),
            ("X-A: 1 |", "`` is not `Name: value`; `|` separates fields"),
            ("X A: 1", "`X A` is no name of a header field"),
            ("X-A : 1", "`X-A ` is no name of a header field"),
            (": 1", "`` is no name of a header field"),
            (":path: /", "`` is no name of a header field"),
            ("X-Ä: 1", "`X-Ä` is no name of a header field"),
            ("X-A:", "`X-A` has no value; a field is removed by the key that says so"),
            ("X-A: ä", "the value of `X-A` has other characters than ASCII's visible ones"),
            ("X-A: a\r\nX-B: b", "the value of `X-A` has other characters than ASCII's visible ones"),
            ("X-A: a\tb", "the value of `X-A` has other characters than ASCII's visible ones"),
            ("X-A: 1 | x_a: 2", "`x_a` is set twice"),
        ] {
            assert_eq!(set(text), Err(message.to_owned()), "{text}");
        }
        assert!(set(&format!("X-A: {}", "x".repeat(VALUE_LIMIT))).is_ok());
        assert!(set(&format!("X-A: {}", "x".repeat(VALUE_LIMIT + 1))).is_err());
        let many = |count: usize| (0..count).map(|n| format!("X-{n}: 1")).collect::<Vec<_>>().join("|");
        assert!(set(&many(FIELDS_LIMIT)).is_ok());
        assert_eq!(set(&many(FIELDS_LIMIT + 1)), Err("more than 64 fields".to_owned()));
    }

    #[test]
    fn what_is_not_for_a_route_to_say_is_refused_however_it_is_spelled() {
        for name in [
            "connection",
            "TE",
            "transfer_encoding",
            "Upgrade",
            "Keep-Alive",
            "Proxy-Connection",
            "Content-Length",
            "content_length",
            "Trailer",
            "HOST",
        ] {
            for of in [Of::Requests, Of::Responses] {
                assert!(HeaderName(of).parse(name).is_err(), "{name}");
                assert!(Headers(of).parse(&format!("{name}: x")).is_err(), "{name}");
            }
        }
        for name in ["Via", "X-Request-Id", "X-Forwarded-Proto", "Forwarded", "Expect", "Max-Forwards", "client_cert"] {
            assert!(HeaderName(Of::Requests).parse(name).is_err(), "{name}");
            assert!(HeaderName(Of::Responses).parse(name).is_ok(), "{name}");
        }
        assert!(HeaderName(Of::Responses).parse("Date").is_err());
        for name in ["Server", "Set-Cookie", "X-Forwarded-Prefix", "Authorization", "Content-Type"] {
            for of in [Of::Requests, Of::Responses] {
                assert_eq!(HeaderName(of).parse(name), Ok(name.to_owned()));
            }
        }
    }
}

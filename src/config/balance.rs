//! How a route chooses among its backends.

use std::fmt;

use super::values::{Form, Wrong};

/// Longest name of a field or cookie that is looked at, in bytes.
const NAME_LIMIT: usize = 64;

/// The algorithm that chooses a backend for each request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Balance {
    /// One after the other, by weight.
    RoundRobin,
    /// The one with the fewest requests under way, for its weight.
    LeastRequests,
    /// The better one of two drawn by weight, by latency and requests under way.
    P2c,
    /// By a key of the request, so that what has the same key meets the same backend.
    Hash(HashKey),
    /// By a cookie that names the backend; the first one as with [`Self::P2c`].
    Sticky,
}

/// What of a request is its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HashKey {
    /// The client's address, without the port.
    Client,
    /// The value of the first field of this name.
    Header(Box<str>),
    /// The value of the first cookie of this name.
    Cookie(Box<str>),
}

impl Balance {
    /// Whether it looks into requests of HTTP, so that a connection of `MODE=tcp` has
    /// nothing that it could go by.
    #[must_use]
    pub fn needs_http(&self) -> bool {
        matches!(self, Self::Hash(HashKey::Header(_) | HashKey::Cookie(_)) | Self::Sticky)
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RoundRobin => out.write_str("round-robin"),
            Self::LeastRequests => out.write_str("least-requests"),
            Self::P2c => out.write_str("p2c"),
            Self::Hash(HashKey::Client) => out.write_str("hash:client"),
            Self::Hash(HashKey::Header(name)) => write!(out, "hash:header:{name}"),
            Self::Hash(HashKey::Cookie(name)) => write!(out, "hash:cookie:{name}"),
            Self::Sticky => out.write_str("sticky"),
        }
    }
}

/// The form of a [`Balance`].
pub(super) struct Algorithm;

impl Form for Algorithm {
    type Value = Balance;

    fn parse(&self, text: &str) -> Result<Balance, Wrong> {
        match text {
            "round-robin" => return Ok(Balance::RoundRobin),
            "least-requests" => return Ok(Balance::LeastRequests),
            "p2c" => return Ok(Balance::P2c),
            "sticky" => return Ok(Balance::Sticky),
            "hash:client" => return Ok(Balance::Hash(HashKey::Client)),
            _ => {}
        }
        let Some(key) = text.strip_prefix("hash").filter(|rest| rest.is_empty() || rest.starts_with(':')) else {
            return Err(Wrong::new(match nearest(text) {
                Some(known) => format!("unknown algorithm `{text}`; did you mean `{known}`?"),
                None => format!("unknown algorithm `{text}`; expected {}", self.describe()),
            }));
        };
        let (kind, name) = key.trim_start_matches(':').split_once(':').unwrap_or((key.trim_start_matches(':'), ""));
        let make: fn(Box<str>) -> HashKey = match kind {
            "header" => HashKey::Header,
            "cookie" => HashKey::Cookie,
            "client" => return Err(Wrong::new("`hash:client` takes no name")),
            _ => {
                return Err(Wrong::new(format!(
                    "expected `hash:client`, `hash:header:NAME` or `hash:cookie:NAME`, found `{text}`"
                )));
            }
        };
        if name.is_empty() {
            return Err(Wrong::new(format!("`{text}` lacks the name of a {kind}; write `hash:{kind}:NAME`")));
        }
        token(name, kind).map(|name| Balance::Hash(make(name)))
    }

    fn describe(&self) -> String {
        "`round-robin`, `least-requests`, `p2c`, `hash:client`, `hash:header:NAME`, `hash:cookie:NAME` or `sticky`"
            .to_owned()
    }
}

/// The form of a cookie's name.
pub(super) struct CookieName;

impl Form for CookieName {
    type Value = Box<str>;

    fn parse(&self, text: &str) -> Result<Box<str>, Wrong> {
        token(text, "cookie")
    }

    fn describe(&self) -> String {
        format!("the name of a cookie: a token of 1 to {NAME_LIMIT} characters, such as letters, digits, `-` and `_`")
    }
}

/// A token as RFC 9110 §5.6.2 has it, which the names of fields and cookies are.
fn token(name: &str, kind: &str) -> Result<Box<str>, Wrong> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > NAME_LIMIT || !name.bytes().all(is_token) {
        return Err(Wrong::new(format!("`{name}` is not the name of a {kind}")).at(name));
    }
    Ok(name.into())
}

fn nearest(text: &str) -> Option<&'static str> {
    // What the peers call the same.
    match text {
        "roundrobin" | "rr" | "random" | "static-rr" => return Some("round-robin"),
        "leastconn" | "least_conn" | "least-connections" | "least_request" => return Some("least-requests"),
        "peak-ewma" | "ewma" | "least_time" => return Some("p2c"),
        "source" | "ip_hash" | "ip-hash" => return Some("hash:client"),
        "cookie" => return Some("sticky"),
        _ => {}
    }
    ["round-robin", "least-requests", "p2c", "hash:client", "sticky"]
        .into_iter()
        .map(|known| (strsim::damerau_levenshtein(text, known), known))
        .min()
        .filter(|(distance, known)| *distance <= known.len() / 3)
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_is_read_and_shown_as_it_is_written() {
        for text in
            ["round-robin", "least-requests", "p2c", "hash:client", "hash:header:X-User", "hash:cookie:sid", "sticky"]
        {
            assert_eq!(Algorithm.parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_wrong_algorithm_is_explained() {
        for (text, message) in [
            ("rondrobin", "unknown algorithm `rondrobin`; did you mean `round-robin`?"),
            ("leastconn", "unknown algorithm `leastconn`; did you mean `least-requests`?"),
            ("p2", "unknown algorithm `p2`; did you mean `p2c`?"),
            ("hash", "expected `hash:client`, `hash:header:NAME` or `hash:cookie:NAME`, found `hash`"),
            ("hash:uri", "expected `hash:client`, `hash:header:NAME` or `hash:cookie:NAME`, found `hash:uri`"),
            ("hash:header", "`hash:header` lacks the name of a header; write `hash:header:NAME`"),
            ("hash:cookie:", "`hash:cookie:` lacks the name of a cookie; write `hash:cookie:NAME`"),
            ("hash:client:x", "`hash:client` takes no name"),
            ("hash:header:X User", "`X User` is not the name of a header"),
        ] {
            assert_eq!(Algorithm.parse(text).unwrap_err().message, message, "{text}");
        }
        let wrong = Algorithm.parse("fastest").unwrap_err();
        assert!(wrong.message.starts_with("unknown algorithm `fastest`; expected `round-robin`,"), "{wrong}");
        assert!(Algorithm.parse(&format!("hash:cookie:{}", "x".repeat(65))).is_err());
    }
}

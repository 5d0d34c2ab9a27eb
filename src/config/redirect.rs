//! Where a route redirects to.
//!
//! A target is a URL in which `{host}`, `{path}` and `{query}` stand for those of the
//! request. Where a client is sent to is fixed as it is loaded: a request's path can't
//! reach into the authority, and a target without one stays on the host that was asked.

use super::patterns::{Host, HostPattern};
use super::values::{Form, Wrong};

/// The statuses that send a client elsewhere by `Location`.
///
/// Source: RFC 9110 §15.4.
const STATUSES: [u16; 5] = [301, 302, 303, 307, 308];

/// The status when none is given: it is not remembered, and keeps method and body.
const STATUS: u16 = 307;

/// Longest target in bytes.
const TARGET_LIMIT: usize = 4096;

/// A redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// The target, as written.
    pub target: String,
    /// The target in parts.
    pub pieces: Vec<Piece>,
}

/// A part of a redirect's target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Characters that a URI may have.
    Text(String),
    /// The request's host, without its port.
    Host,
    /// The request's path, as it would be sent on; it begins with `/`.
    Path,
    /// The request's query behind this character, if it has one.
    Query(char),
}

/// The form of a redirect: `off`, or a target, with a status before it or not.
pub(super) struct RedirectForm;

impl Form for RedirectForm {
    type Value = Option<Redirect>;

    fn parse(&self, text: &str) -> Result<Option<Redirect>, Wrong> {
        if text == "off" {
            return Ok(None);
        }
        let (status, target) = match *text.split_whitespace().collect::<Vec<_>>().as_slice() {
            [target] => (STATUS, target),
            [status, target] => match status.parse() {
                Ok(number) if STATUSES.contains(&number) => (number, target),
                _ => return Err(Wrong::new(format!("`{status}` is not 301, 302, 303, 307 or 308")).at(status)),
            },
            _ => return Err(Wrong::new(format!("expected {}, found `{text}`", self.describe()))),
        };
        let pieces = pieces(target).map_err(|wrong| wrong.at(target))?;
        Ok(Some(Redirect { status, target: target.to_owned(), pieces }))
    }

    fn describe(&self) -> String {
        "`off` or a URL, with 301, 302, 303, 307 or 308 and a blank before it for another status than 307; in it \
         `{host}`, `{path}` and `{query}` stand for those of the request"
            .to_owned()
    }
}

/// Takes a target apart, and sees to it that it leads nowhere else.
fn pieces(target: &str) -> Result<Vec<Piece>, Wrong> {
    if target.len() > TARGET_LIMIT {
        return Err(Wrong::new(format!("the target has more than {TARGET_LIMIT} bytes")));
    }
    let mut pieces = Vec::new();
    let rest = match target.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => {
            pieces.push(Piece::Text(format!("{scheme}://")));
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let end = ["{path}", "{query}"].iter().filter_map(|name| rest.find(name)).fold(end, usize::min);
            let (authority, rest) = rest.split_at(end);
            authority_of(authority, &mut pieces)?;
            rest
        }
        _ if target.starts_with("{path}") || (target.starts_with('/') && !target.starts_with("//")) => target,
        _ => {
            return Err(Wrong::new(format!("`{target}` begins with none of `http://`, `https://` and a single `/`")));
        }
    };
    path_of(rest, &mut pieces)?;
    Ok(pieces)
}

/// `{host}` or a host, with a port or not.
fn authority_of(authority: &str, pieces: &mut Vec<Piece>) -> Result<(), Wrong> {
    let wrong = || Wrong::new(format!("`{authority}` is neither a host nor `{{host}}`, with a port or not"));
    let (host, port) = match authority.rfind(':') {
        Some(colon) if !authority.ends_with(']') => authority.split_at(colon),
        _ => (authority, ""),
    };
    let digits = port.strip_prefix(':').unwrap_or("1");
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) || !digits.parse().is_ok_and(|port: u16| port > 0) {
        return Err(wrong());
    }
    if host == "{host}" {
        pieces.push(Piece::Host);
        pieces.extend((!port.is_empty()).then(|| Piece::Text(port.to_owned())));
        return Ok(());
    }
    match Host.parse(host) {
        Ok(HostPattern::Exact(_)) => pieces.push(Piece::Text(authority.to_owned())),
        _ => return Err(wrong()),
    }
    Ok(())
}

/// What follows the authority.
fn path_of(target: &str, pieces: &mut Vec<Piece>) -> Result<(), Wrong> {
    let mut rest = target;
    loop {
        let (text, behind) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
        if let Some(odd) = text.chars().find(|c| !c.is_ascii_graphic() || "\"<>\\^`|}".contains(*c)) {
            return Err(Wrong::new(format!("`{odd}` can't stand in a URL")));
        }
        let all = target.get(..target.len() - behind.len()).unwrap_or_default();
        let (mark, piece) = if behind.starts_with("{path}") {
            ("{path}", Piece::Path)
        } else if behind.starts_with("{query}") {
            ("{query}", Piece::Query(if all.contains('?') { '&' } else { '?' }))
        } else if behind.is_empty() {
            pieces.extend((!text.is_empty()).then(|| Piece::Text(text.to_owned())));
            return Ok(());
        } else if behind.starts_with("{host}") {
            return Err(Wrong::new("`{host}` stands behind `http://` or `https://` only"));
        } else {
            return Err(Wrong::new("only `{host}`, `{path}` and `{query}` stand for something"));
        };
        let late = match piece {
            Piece::Path => all.contains(['?', '#']) || all.contains("{query}") || all.contains("{path}"),
            _ => all.contains('#') || all.contains("{query}"),
        };
        if late {
            return Err(Wrong::new(format!("`{mark}` stands at the wrong place, or twice")));
        }
        // The path brings its own slash; two could name another host.
        let text = if piece == Piece::Path { text.strip_suffix('/').unwrap_or(text) } else { text };
        pieces.extend((!text.is_empty()).then(|| Piece::Text(text.to_owned())));
        pieces.push(piece);
        rest = behind.get(mark.len()..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Redirect> {
        RedirectForm.parse(text).unwrap_or_else(|wrong| panic!("{text}: {wrong}"))
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.to_owned())
    }

    #[test]
    fn a_target_is_taken_apart() {
        use Piece::{Host, Path, Query};
        assert_eq!(read("off"), None);
        for (written, pieces) in [
            ("https://a.test", vec![text("https://"), text("a.test")]),
            ("https://{host}{path}{query}", vec![text("https://"), Host, Path, Query('?')]),
            ("https://{host}:8443/{path}", vec![text("https://"), Host, text(":8443"), Path]),
            ("http://a.test:81/x/{path}/y?z{query}#f", {
                let authority = [text("http://"), text("a.test:81"), text("/x"), Path];
                [&authority[..], &[text("/y?z"), Query('&'), text("#f")]].concat()
            }),
            ("https://[::1]{query}", vec![text("https://"), text("[::1]"), Query('?')]),
            ("/new", vec![text("/new")]),
            ("{path}/", vec![Path, text("/")]),
            ("/{path}", vec![Path]),
            ("/%20?a", vec![text("/%20?a")]),
        ] {
            let redirect = read(written).unwrap();
            assert_eq!((redirect.status, redirect.pieces), (307, pieces), "{written}");
        }
        assert_eq!(read("308 /a").unwrap().status, 308);
    }

    #[test]
    fn a_target_that_could_lead_elsewhere_or_is_none_is_refused() {
        for (text, said) in [
            ("", "expected"),
            ("301", "begins with none"),
            ("300 /a", "`300` is not 301"),
            ("301 /a /b", "expected"),
            ("//evil.test", "begins with none"),
            ("evil.test", "begins with none"),
            ("javascript:alert(1)", "begins with none"),
            ("ftp://a.test", "begins with none"),
            ("https://", "neither a host"),
            ("https:///x", "neither a host"),
            ("https://{path}", "neither a host"),
            ("https://{query}", "neither a host"),
            ("https://a.test@b.test", "neither a host"),
            ("https://a.{host}", "neither a host"),
            ("https://{host}.evil.test", "neither a host"),
            ("https://{host}:x", "neither a host"),
            ("https://a:0", "neither a host"),
            ("https://a:", "neither a host"),
            ("https://a:+1", "neither a host"),
            ("https://*.a", "neither a host"),
            ("/a{host}", "`{host}` stands behind"),
            ("{host}", "begins with none"),
            ("/{uri}", "only `{host}`"),
            ("/{path", "only `{host}`"),
            ("/a}", "`}` can't"),
            ("/a\\b", "`\\` can't"),
            ("/ä", "`ä` can't"),
            ("/a\r\nX: b", "expected"),
            ("/a?{path}", "wrong place"),
            ("{path}{path}", "wrong place"),
            ("/a{query}{path}", "wrong place"),
            ("/a#{query}", "wrong place"),
        ] {
            let wrong = RedirectForm.parse(text).expect_err(text).message;
            assert!(wrong.contains(said), "{text}: {wrong}");
        }
    }
}

//! Forms of the keys of health checks.

use std::ops::RangeInclusive;

use super::addresses::authority;
use super::values::{Form, Wrong};

/// Longest path of a check, in bytes.
const PATH_LIMIT: usize = 1024;

/// What a check does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HealthCheck {
    /// Asks for this path by GET.
    Http(Box<str>),
    /// Connects, and no more.
    Tcp,
}

/// The form of a [`HealthCheck`], or of none.
pub(super) struct Check;

impl Form for Check {
    type Value = Option<HealthCheck>;

    fn parse(&self, text: &str) -> Result<Option<HealthCheck>, Wrong> {
        match text {
            "off" => return Ok(None),
            "tcp" => return Ok(Some(HealthCheck::Tcp)),
            _ => {}
        }
        if !text.starts_with('/') {
            let whole = text.contains("://");
            return Err(Wrong::new(if whole {
                format!("`{text}` is a URL; write only its path, and its host as `HEALTH_HOST`")
            } else {
                format!("expected {}, found `{text}`", self.describe())
            }));
        }
        if let Some(odd) = text.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
            return Err(Wrong::new(format!("a path has no `{}` that is not encoded", odd.escape_default())));
        }
        if text.len() > PATH_LIMIT {
            return Err(Wrong::new(format!("a path of a check has at most {PATH_LIMIT} bytes, found {}", text.len())));
        }
        Ok(Some(HealthCheck::Http(text.into())))
    }

    fn describe(&self) -> String {
        "`off`, `tcp` or a path that begins with `/`".to_owned()
    }
}

/// The form of a range of statuses: `200` or `200-399`.
pub(super) struct Statuses;

impl Form for Statuses {
    type Value = RangeInclusive<u16>;

    fn parse(&self, text: &str) -> Result<RangeInclusive<u16>, Wrong> {
        let status = |text: &str| {
            let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|status| digits && (200..=599).contains(status))
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (status(first.trim()), status(last.trim())) {
            (Some(first), Some(last)) if first <= last => Ok(first..=last),
            (Some(_), Some(_)) => Err(Wrong::new(format!("`{text}` ends before it begins"))),
            _ => Err(Wrong::new(format!("expected {}, found `{text}`", self.describe()))),
        }
    }

    fn describe(&self) -> String {
        "a status from 200 to 599 or a range as in `200-399`".to_owned()
    }
}

/// The form of a `Host` field: a name or an address, and a port where it is needed.
pub(super) struct HostField;

impl Form for HostField {
    type Value = Box<str>;

    fn parse(&self, text: &str) -> Result<Box<str>, Wrong> {
        if authority(text) { Ok(text.into()) } else { Err(Wrong::new(format!("`{text}` is not {}", self.describe()))) }
    }

    fn describe(&self) -> String {
        "`HOST`, `HOST:PORT` or `[V6]:PORT`".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_a_path_or_a_connection() {
        assert_eq!(Check.parse("off"), Ok(None));
        assert_eq!(Check.parse("tcp"), Ok(Some(HealthCheck::Tcp)));
        for path in ["/", "/health", "/health?full=1&x=%20", "/a;b"] {
            assert_eq!(Check.parse(path), Ok(Some(HealthCheck::Http(path.into()))));
        }
        for (text, message) in [
            ("health", "expected `off`, `tcp` or a path that begins with `/`, found `health`"),
            ("", "expected `off`, `tcp` or a path that begins with `/`, found ``"),
            ("on", "expected `off`, `tcp` or a path that begins with `/`, found `on`"),
            ("http://a/health", "`http://a/health` is a URL; write only its path, and its host as `HEALTH_HOST`"),
            ("/a b", "a path has no ` ` that is not encoded"),
            ("/a\r\nX: y", "a path has no `\\r` that is not encoded"),
            ("/a#b", "a path has no `#` that is not encoded"),
            ("/ä", "a path has no `\\u{e4}` that is not encoded"),
        ] {
            assert_eq!(Check.parse(text).unwrap_err().message, message, "{text}");
        }
        assert!(Check.parse(&format!("/{}", "x".repeat(PATH_LIMIT))).is_err());
    }

    #[test]
    fn statuses_are_single_ones_and_ranges() {
        assert_eq!(Statuses.parse("204"), Ok(204..=204));
        assert_eq!(Statuses.parse("200-399"), Ok(200..=399));
        for text in ["", "-", "20", "199", "600", "200-", "-399", "200-600", "100-200", "2xx", "+200", "0200"] {
            let message = format!("expected a status from 200 to 599 or a range as in `200-399`, found `{text}`");
            assert_eq!(Statuses.parse(text).unwrap_err().message, message);
        }
        assert_eq!(Statuses.parse("399-200").unwrap_err().message, "`399-200` ends before it begins");
    }

    #[test]
    fn a_host_field_is_an_authority() {
        for text in ["app.example.com", "app:8080", "10.0.0.2", "10.0.0.2:80", "[::1]", "[::1]:80", "my_app"] {
            assert_eq!(&*HostField.parse(text).unwrap(), text);
        }
        for text in ["", "a b", "a/b", "u@a", "a:", "a:x", "a:70000", "::1", "[::1", "a\r\nb", "http://a"] {
            assert!(HostField.parse(text).is_err(), "{text}");
        }
    }
}

//! Forms of the keys that keep clients on TLS.

use std::time::Duration;

use super::values::{DAY, Form, Span, Wrong};

/// Longest time for which browsers are to remember.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 86_400);

/// What the lists that are built into browsers ask for.
///
/// Source: hstspreload.org, "Submission Requirements".
const PRELOADED: Duration = Duration::from_secs(31_536_000);

/// The port that clients without TLS are sent to, `on` for that of `https`; none for `off`.
pub(super) struct RedirectPort;

impl Form for RedirectPort {
    type Value = Option<u16>;

    fn parse(&self, text: &str) -> Result<Option<u16>, Wrong> {
        match text {
            "off" => return Ok(None),
            "on" => return Ok(Some(443)),
            _ => {}
        }
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(port @ 1..) if digits => Ok(Some(port)),
            _ => Err(Wrong::new(format!("expected {}, found `{text}`", self.describe()))),
        }
    }

    fn describe(&self) -> String {
        "`on`, `off` or a port from 1 to 65535".to_owned()
    }
}

/// The form of the value of `Strict-Transport-Security`, or of none.
///
/// Source: RFC 6797 §6.1.
pub(super) struct Hsts;

impl Form for Hsts {
    type Value = Option<Box<str>>;

    fn parse(&self, text: &str) -> Result<Option<Box<str>>, Wrong> {
        if text == "off" {
            return Ok(None);
        }
        let mut parts = text.split(',').map(str::trim);
        let first = parts.next().unwrap_or_default();
        let age = Span { min: Duration::ZERO, max: LONGEST };
        let age = age.parse(first).map_err(|_| Wrong::new(format!("expected {}, found `{text}`", self.describe())))?;
        let (mut below, mut preload) = (false, false);
        for part in parts {
            let known = match part {
                "includeSubDomains" => &mut below,
                "preload" => &mut preload,
                _ => return Err(Wrong::new("only `includeSubDomains` and `preload` follow the time").at(part)),
            };
            if std::mem::replace(known, true) {
                return Err(Wrong::new(format!("`{part}` is given twice")).at(part));
            }
        }
        if preload && !(below && age >= PRELOADED) {
            let days = PRELOADED.as_secs() / DAY.as_secs();
            let message = format!("browsers take `preload` only with `includeSubDomains` and at least {days}d");
            return Err(Wrong::new(message).at("preload"));
        }
        let mut value = format!("max-age={}", age.as_secs());
        for (said, word) in [(below, "; includeSubDomains"), (preload, "; preload")] {
            value.push_str(if said { word } else { "" });
        }
        Ok(Some(value.into()))
    }

    fn describe(&self) -> String {
        "`off`, or a duration, and after commas `includeSubDomains` and `preload`".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_sent_to_a_port_or_stay() {
        for (text, port) in [("off", None), ("on", Some(443)), ("443", Some(443)), ("8443", Some(8443))] {
            assert_eq!(RedirectPort.parse(text), Ok(port));
        }
        for text in ["", "0", "65536", "+1", "yes", "443,8443"] {
            let message = format!("expected `on`, `off` or a port from 1 to 65535, found `{text}`");
            assert_eq!(RedirectPort.parse(text).unwrap_err().message, message);
        }
    }

    #[test]
    fn what_browsers_are_to_remember_is_stated_as_the_field_has_it() {
        for (text, value) in [
            ("off", None),
            ("0", Some("max-age=0")),
            ("1h", Some("max-age=3600")),
            ("365d", Some("max-age=31536000")),
            ("365d,includeSubDomains", Some("max-age=31536000; includeSubDomains")),
            ("730d, preload, includeSubDomains", Some("max-age=63072000; includeSubDomains; preload")),
        ] {
            assert_eq!(Hsts.parse(text).unwrap().as_deref(), value, "{text}");
        }
        for (text, said) in [
            ("", "expected `off`, or a duration"),
            ("on", "expected `off`, or a duration"),
            ("20y", "expected `off`, or a duration"),
            ("1h,", "only `includeSubDomains`"),
            ("1h,subdomains", "only `includeSubDomains`"),
            ("365d,preload", "browsers take `preload` only with `includeSubDomains` and at least 365d"),
            ("364d,preload,includeSubDomains", "browsers take"),
            ("1h,includeSubDomains,includeSubDomains", "given twice"),
        ] {
            let wrong = Hsts.parse(text).unwrap_err().message;
            assert!(wrong.contains(said), "{text}: {wrong}");
        }
    }
}

//! Forms of values: how the text of a key becomes a typed value.
//!
//! A form parses, states its limits in words, and says what is wrong in one
//! clause. The key table names one form for each key, so that the parser, the
//! manual and `doorward explain` can't differ. Nothing here knows keys or files.

use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;

/// Upper limit of the entries of one list.
pub(super) const LIST_LIMIT: usize = 1024;

/// One day: the longest duration of most keys.
pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// Why a text is not a value of the form it was read as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Wrong {
    /// One clause, lower case, without a final stop.
    pub message: String,
    /// The part of the text that is at fault, when it is not the whole.
    pub part: Option<String>,
}

impl Wrong {
    /// The whole text is at fault.
    pub fn new(message: impl Into<String>) -> Wrong {
        Wrong { message: message.into(), part: None }
    }

    /// Names the part at fault, unless one is named already.
    pub fn at(mut self, part: &str) -> Wrong {
        self.part.get_or_insert_with(|| part.to_owned());
        self
    }
}

/// How a text is read as a value.
pub(super) trait Form {
    /// What the text becomes.
    type Value;

    /// Reads `text`, which has no blanks around it.
    ///
    /// # Errors
    /// [`Wrong`] says what is expected.
    fn parse(&self, text: &str) -> Result<Self::Value, Wrong>;

    /// The form in words, for the manual: "a whole number from 0 to 20".
    fn describe(&self) -> String;
}

/// A value that doorward may work out by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auto<T> {
    /// Worked out at run time.
    Auto,
    /// Given.
    Is(T),
}

impl<T> Auto<T> {
    /// The given value, or the one that `work_out` returns.
    pub fn unwrap_or_else(self, work_out: impl FnOnce() -> T) -> T {
        match self {
            Auto::Auto => work_out(),
            Auto::Is(value) => value,
        }
    }
}

/// `auto`, or what the inner form reads.
pub(super) struct AutoOr<F>(pub F);

impl<F: Form> Form for AutoOr<F> {
    type Value = Auto<F::Value>;

    fn parse(&self, text: &str) -> Result<Auto<F::Value>, Wrong> {
        if text == "auto" {
            return Ok(Auto::Auto);
        }
        self.0
            .parse(text)
            .map(Auto::Is)
            .map_err(|_| Wrong::new(format!("expected `auto` or {}, found `{text}`", self.0.describe())))
    }

    fn describe(&self) -> String {
        format!("`auto` or {}", self.0.describe())
    }
}

/// A whole number from `min` to `max`, both included.
pub(super) struct Int {
    /// Smallest value.
    pub min: usize,
    /// Largest value.
    pub max: usize,
}

impl Form for Int {
    type Value = usize;

    fn parse(&self, text: &str) -> Result<usize, Wrong> {
        // `FromStr` of integers takes a leading `+`, which nobody means.
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<usize>() {
            Ok(value) if digits && (self.min..=self.max).contains(&value) => Ok(value),
            _ => Err(Wrong::new(format!("expected {}, found `{text}`", self.describe()))),
        }
    }

    fn describe(&self) -> String {
        format!("a whole number from {} to {}", self.min, self.max)
    }
}

/// A whole number, or `off` (also `0`) for none.
pub(super) struct IntOrOff(pub Int);

impl Form for IntOrOff {
    type Value = Option<usize>;

    fn parse(&self, text: &str) -> Result<Option<usize>, Wrong> {
        if text == "off" || text == "0" {
            return Ok(None);
        }
        self.0.parse(text).map(Some).map_err(|_| Wrong::new(format!("expected {}, found `{text}`", self.describe())))
    }

    fn describe(&self) -> String {
        format!("`off` or {}", self.0.describe())
    }
}

/// A duration from `min` to `max`: `250ms`, `5s`, `2m`; a bare number is seconds.
pub(super) struct Span {
    /// Shortest duration.
    pub min: Duration,
    /// Longest duration.
    pub max: Duration,
}

impl Span {
    fn read(text: &str) -> Option<Duration> {
        let bare = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if bare { humantime::parse_duration(&format!("{text}s")).ok() } else { humantime::parse_duration(text).ok() }
    }
}

impl Form for Span {
    type Value = Duration;

    fn parse(&self, text: &str) -> Result<Duration, Wrong> {
        match Span::read(text) {
            Some(span) if (self.min..=self.max).contains(&span) => Ok(span),
            _ => Err(Wrong::new(format!("expected {}, found `{text}`", self.describe()))),
        }
    }

    fn describe(&self) -> String {
        format!("a duration from {} to {}", in_words(self.min), in_words(self.max))
    }
}

/// A duration as one would write it: `24h`, `7d`, `250ms`.
pub(super) fn in_words(span: Duration) -> String {
    let hours = span.as_secs() / 3600;
    if span.is_zero() {
        "0".to_owned()
    } else if span != Duration::from_secs(hours * 3600) {
        humantime::format_duration(span).to_string()
    } else if hours > 24 && hours % 24 == 0 {
        format!("{}d", hours / 24)
    } else {
        format!("{hours}h")
    }
}

/// A duration, or `off` (also `0`) for none.
pub(super) struct SpanOrOff(pub Span);

impl Form for SpanOrOff {
    type Value = Option<Duration>;

    fn parse(&self, text: &str) -> Result<Option<Duration>, Wrong> {
        if text == "off" || Span::read(text).is_some_and(|span| span.is_zero()) {
            return Ok(None);
        }
        self.0.parse(text).map(Some).map_err(|_| Wrong::new(format!("expected {}, found `{text}`", self.describe())))
    }

    fn describe(&self) -> String {
        format!("`off` or {}", self.0.describe())
    }
}

/// A size from `min` to `max` bytes: `64KiB`, `8MiB`; a bare number is bytes.
pub(super) struct Size {
    /// Smallest size in bytes.
    pub min: usize,
    /// Largest size in bytes.
    pub max: usize,
}

impl Form for Size {
    type Value = usize;

    fn parse(&self, text: &str) -> Result<usize, Wrong> {
        let size = ByteSize::from_str(text).ok().and_then(|size| usize::try_from(size.as_u64()).ok());
        match size {
            Some(size) if (self.min..=self.max).contains(&size) => Ok(size),
            _ => Err(Wrong::new(format!("expected {}, found `{text}`", self.describe()))),
        }
    }

    fn describe(&self) -> String {
        let words = |bytes: usize| {
            let unit = 1024;
            if bytes >= unit * unit && bytes % (unit * unit) == 0 {
                format!("{}MiB", bytes / unit / unit)
            } else if bytes >= unit && bytes % unit == 0 {
                format!("{}KiB", bytes / unit)
            } else {
                format!("{bytes}")
            }
        };
        format!("a size from {} to {}", words(self.min), words(self.max))
    }
}

/// Bytes a second, or `off` (also `0`) for none: `240`, `1KiB`, `240/s`.
pub(super) struct RateOrOff(pub Size);

impl Form for RateOrOff {
    type Value = Option<usize>;

    fn parse(&self, text: &str) -> Result<Option<usize>, Wrong> {
        let size = text.strip_suffix("/s").unwrap_or(text);
        if text == "off" || size == "0" {
            return Ok(None);
        }
        self.0.parse(size).map(Some).map_err(|_| Wrong::new(format!("expected {}, found `{text}`", self.describe())))
    }

    fn describe(&self) -> String {
        format!("`off` or {} a second", self.0.describe())
    }
}

/// So many a second, from `min` to `max`: `10/s`, or just `10`.
pub(super) struct Rate {
    /// Lowest rate.
    pub min: usize,
    /// Highest rate.
    pub max: usize,
}

impl Form for Rate {
    type Value = usize;

    fn parse(&self, text: &str) -> Result<usize, Wrong> {
        Int { min: self.min, max: self.max }
            .parse(text.strip_suffix("/s").unwrap_or(text))
            .map_err(|_| Wrong::new(format!("expected {}, found `{text}`", self.describe())))
    }

    fn describe(&self) -> String {
        format!("a rate from {}/s to {}/s", self.min, self.max)
    }
}

/// A share up to `max` per cent, `20%`, or `off` for none at all.
pub(super) struct PercentOrOff {
    /// Largest share.
    pub max: usize,
}

impl Form for PercentOrOff {
    type Value = Option<usize>;

    fn parse(&self, text: &str) -> Result<Option<usize>, Wrong> {
        if text == "off" {
            return Ok(None);
        }
        // A bare number could be a share of one just as well.
        text.strip_suffix('%')
            .and_then(|number| Int { min: 0, max: self.max }.parse(number).ok())
            .map(Some)
            .ok_or_else(|| Wrong::new(format!("expected {}, found `{text}`", self.describe())))
    }

    fn describe(&self) -> String {
        format!("`off` or a share from 0% to {}%", self.max)
    }
}

/// One of a few words.
pub(super) struct Choice<T: 'static>(pub &'static [(&'static str, T)]);

impl<T: Copy> Form for Choice<T> {
    type Value = T;

    fn parse(&self, text: &str) -> Result<T, Wrong> {
        self.0
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value)
            .ok_or_else(|| Wrong::new(format!("expected {}, found `{text}`", self.describe())))
    }

    fn describe(&self) -> String {
        let words: Vec<String> = self.0.iter().map(|(word, _)| format!("`{word}`")).collect();
        match words.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            _ => words.concat(),
        }
    }
}

/// What the inner form reads, or nothing.
pub(super) struct OrNothing<F>(pub F);

impl<F: Form> Form for OrNothing<F> {
    type Value = Option<F::Value>;

    fn parse(&self, text: &str) -> Result<Option<F::Value>, Wrong> {
        if text.is_empty() { Ok(None) } else { self.0.parse(text).map(Some) }
    }

    fn describe(&self) -> String {
        self.0.describe()
    }
}

/// One form or several of them, separated by commas; none twice.
pub(super) struct List<F: Form> {
    /// The form of an entry.
    pub of: F,
    /// What the entries are called: "backends".
    pub noun: &'static str,
    /// Whether an empty text is an empty list.
    pub may_be_empty: bool,
    /// Whether two entries are the same one.
    pub same: fn(&F::Value, &F::Value) -> bool,
}

impl<F: Form> Form for List<F> {
    type Value = Vec<F::Value>;

    fn parse(&self, text: &str) -> Result<Vec<F::Value>, Wrong> {
        if text.is_empty() {
            return if self.may_be_empty {
                Ok(Vec::new())
            } else {
                Err(Wrong::new(format!("expected {}", self.describe())))
            };
        }
        let mut values = Vec::new();
        for part in text.split(',') {
            let part = part.trim();
            if part.is_empty() {
                return Err(Wrong::new("a comma with nothing before or after it"));
            }
            let value = self.of.parse(part).map_err(|wrong| wrong.at(part))?;
            if values.iter().any(|known| (self.same)(known, &value)) {
                return Err(Wrong::new(format!("`{part}` is listed twice")).at(part));
            }
            if values.len() == LIST_LIMIT {
                return Err(Wrong::new(format!("more than {LIST_LIMIT} {}", self.noun)));
            }
            values.push(value);
        }
        Ok(values)
    }

    fn describe(&self) -> String {
        format!("{}, separated by commas: {}", self.noun, self.of.describe())
    }
}

/// What a list reads, or `off` for an empty one.
pub(super) struct ListOrOff<F: Form>(pub List<F>);

impl<F: Form> Form for ListOrOff<F> {
    type Value = Vec<F::Value>;

    fn parse(&self, text: &str) -> Result<Vec<F::Value>, Wrong> {
        if text == "off" { Ok(Vec::new()) } else { self.0.parse(text) }
    }

    fn describe(&self) -> String {
        format!("`off`, or {}", self.0.describe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Span = Span { min: Duration::from_millis(1), max: DAY };

    #[test]
    fn durations_take_units_and_bare_seconds() {
        for (text, millis) in [
            ("250ms", 250),
            ("5s", 5_000),
            ("2m", 120_000),
            ("2.5", 2_500),
            ("2.5s", 2_500),
            ("7", 7_000),
            ("1m 30s", 90_000),
            ("24h", 86_400_000),
        ] {
            assert_eq!(SPAN.parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "0", "off", "-1", "5x", "s", "1..5", ".", "25h", "1e3", "0.1ms", "9".repeat(30).as_str()] {
            let wrong = SPAN.parse(text).unwrap_err();
            assert_eq!(wrong.message, format!("expected a duration from 1ms to 24h, found `{text}`"));
        }
    }

    #[test]
    fn a_duration_that_may_be_off_takes_off_and_zero() {
        let form = SpanOrOff(SPAN);
        for text in ["off", "0", "0s", "0.0", "0ms"] {
            assert_eq!(form.parse(text), Ok(None), "{text}");
        }
        assert_eq!(form.parse("3"), Ok(Some(Duration::from_secs(3))));
        assert!(form.parse("never").is_err());
    }

    #[test]
    fn sizes_take_units_and_bare_bytes() {
        let form = Size { min: 1024, max: 60 * 1024 };
        assert_eq!(form.parse("32KiB"), Ok(32 * 1024));
        assert_eq!(form.parse("2048"), Ok(2048));
        assert_eq!(form.parse("32 KB"), Ok(32_000));
        for text in ["", "1023", "61KiB", "KiB", "-5", "1XiB", "99999999EiB"] {
            assert_eq!(
                form.parse(text).unwrap_err().message,
                format!("expected a size from 1KiB to 60KiB, found `{text}`")
            );
        }
    }

    #[test]
    fn rates_are_sizes_a_second_or_off() {
        let form = RateOrOff(Size { min: 1, max: 1024 * 1024 });
        for text in ["240", "240/s", "240B/s"] {
            assert_eq!(form.parse(text), Ok(Some(240)), "{text}");
        }
        assert_eq!(form.parse("1MiB/s"), Ok(Some(1024 * 1024)));
        for text in ["off", "0", "0/s"] {
            assert_eq!(form.parse(text), Ok(None), "{text}");
        }
        for text in ["", "/s", "off/s", "-1", "2MiB", "240/m"] {
            assert_eq!(
                form.parse(text).unwrap_err().message,
                format!("expected `off` or a size from 1 to 1MiB a second, found `{text}`")
            );
        }
    }

    #[test]
    fn counts_a_second_are_whole_and_shares_are_per_cent() {
        let form = Rate { min: 0, max: 500 };
        for text in ["10", "10/s"] {
            assert_eq!(form.parse(text), Ok(10), "{text}");
        }
        for text in ["", "/s", "501", "10/m", "1.5/s", "off"] {
            let wrong = form.parse(text).unwrap_err();
            assert_eq!(wrong.message, format!("expected a rate from 0/s to 500/s, found `{text}`"));
        }
        let form = PercentOrOff { max: 100 };
        assert_eq!(form.parse("20%"), Ok(Some(20)));
        assert_eq!((form.parse("0%"), form.parse("off")), (Ok(Some(0)), Ok(None)));
        for text in ["", "%", "20", "0.2", "101%", "-1%", "20 %"] {
            let wrong = form.parse(text).unwrap_err();
            assert_eq!(wrong.message, format!("expected `off` or a share from 0% to 100%, found `{text}`"));
        }
    }

    #[test]
    fn whole_numbers_keep_their_limits() {
        let form = Int { min: 0, max: 20 };
        assert_eq!(form.parse("20"), Ok(20));
        assert_eq!(form.parse("007"), Ok(7));
        for text in ["", "21", "-1", "+3", "1.5", "0x10", "99999999999999999999999"] {
            assert!(form.parse(text).is_err(), "{text}");
        }
        let form = IntOrOff(Int { min: 1, max: 20 });
        for text in ["off", "0"] {
            assert_eq!(form.parse(text), Ok(None), "{text}");
        }
        assert_eq!(form.parse("5"), Ok(Some(5)));
        assert_eq!(form.parse("21").unwrap_err().message, "expected `off` or a whole number from 1 to 20, found `21`");
        let form = AutoOr(Int { min: 0, max: 20 });
        assert_eq!(form.parse("auto"), Ok(Auto::Auto));
        assert_eq!(form.parse("4"), Ok(Auto::Is(4)));
        assert_eq!(
            form.parse("many").unwrap_err().message,
            "expected `auto` or a whole number from 0 to 20, found `many`"
        );
        assert_eq!(Auto::Auto.unwrap_or_else(|| 3), 3);
        assert_eq!(Auto::Is(2).unwrap_or_else(|| 3), 2);
    }

    #[test]
    fn a_choice_names_its_words() {
        let form = Choice(&[("on", true), ("off", false)]);
        assert_eq!(form.parse("on"), Ok(true));
        assert_eq!(form.parse("yes").unwrap_err().message, "expected `on` or `off`, found `yes`");
        let form = Choice(&[("a", 1), ("b", 2), ("c", 3)]);
        assert_eq!(form.describe(), "`a`, `b` or `c`");
    }

    #[test]
    fn a_list_names_the_entry_at_fault() {
        let form = List { of: Int { min: 1, max: 9 }, noun: "digits", may_be_empty: false, same: |a, b| a == b };
        assert_eq!(form.parse("1, 2,3"), Ok(vec![1, 2, 3]));
        assert_eq!(form.parse("1,22,3").unwrap_err().part.as_deref(), Some("22"));
        assert_eq!(form.parse("1,2,1").unwrap_err().message, "`1` is listed twice");
        assert!(form.parse("1,,2").is_err());
        assert!(form.parse("1,").is_err());
        assert!(form.parse("").is_err());
    }
}

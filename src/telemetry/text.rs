//! Text from the wire, kept inline.
//!
//! A request record holds a method, a host and a path that a client chose. They
//! are copied once, into the record itself: no heap, no lifetime, a fixed size.
//! What a terminal or a line-based reader could take for more than text is
//! escaped here, so nobody behind this type has to think of it.

use std::fmt;

/// What stands at the end of a text that was cut.
const CUT: &[u8] = "…".as_bytes();

/// A string of at most `N` bytes (`N` ≤ 65,535) without a heap allocation.
///
/// Control characters and bytes that are not UTF-8 become `\xNN`. A backslash
/// stays as it is, so the escape shows what came but can't be undone. What does
/// not fit is cut between characters and ends in `…`.
#[derive(Clone, Copy)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: u16,
}

impl<const N: usize> Text<N> {
    /// The empty text.
    pub const EMPTY: Self = Self { bytes: [0; N], len: 0 };

    /// Copies `raw`, escaped and cut as the type says.
    #[must_use]
    pub fn new(raw: impl AsRef<[u8]>) -> Self {
        let raw = raw.as_ref();
        let mut text = Self::EMPTY;
        if raw.len() <= N && raw.iter().all(|byte| matches!(byte, b' '..=b'~')) {
            text.push(raw);
            return text;
        }
        text.escape(raw);
        text
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// The text's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// Whether it holds nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `part` whole, or not at all when it does not fit.
    fn push(&mut self, part: &[u8]) -> bool {
        let start = usize::from(self.len);
        let end = start + part.len();
        let (Some(room), Ok(len)) = (self.bytes.get_mut(start..end), u16::try_from(end)) else {
            return false;
        };
        room.copy_from_slice(part);
        self.len = len;
        true
    }

    fn escape(&mut self, raw: &[u8]) {
        // Where the text may be cut so that the mark still fits.
        let mut cut = 0;
        let mut put = |text: &mut Self, part: &[u8]| -> bool {
            let whole = text.push(part);
            if !whole {
                text.len = cut;
                text.push(CUT);
            } else if usize::from(text.len) + CUT.len() <= N {
                cut = text.len;
            }
            whole
        };
        for chunk in raw.utf8_chunks() {
            for character in chunk.valid().chars() {
                let mut utf8 = [0; 4];
                let part = character.encode_utf8(&mut utf8).as_bytes();
                let whole = if character.is_control() {
                    part.iter().all(|byte| put(self, &hexadecimal(*byte)))
                } else {
                    put(self, part)
                };
                if !whole {
                    return;
                }
            }
            for byte in chunk.invalid() {
                if !put(self, &hexadecimal(*byte)) {
                    return;
                }
            }
        }
    }
}

/// `\xNN`
fn hexadecimal(byte: u8) -> [u8; 4] {
    let digit = |nibble: u8| match nibble {
        0..=9 => b'0' + nibble,
        _ => b'a' + (nibble - 10),
    };
    [b'\\', b'x', digit(byte >> 4), digit(byte & 0xf)]
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl<const N: usize> From<&str> for Text<N> {
    fn from(raw: &str) -> Self {
        Self::new(raw)
    }
}

impl<const N: usize> From<&[u8]> for Text<N> {
    fn from(raw: &[u8]) -> Self {
        Self::new(raw)
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.as_str())
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), out)
    }
}

impl<const N: usize> PartialEq for Text<N> {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl<const N: usize> Eq for Text<N> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays_as_it_is() {
        assert_eq!(Text::<16>::new("GET").as_str(), "GET");
        assert_eq!(Text::<3>::new("GET").as_str(), "GET");
        assert_eq!(Text::<8>::new("grün").as_str(), "grün");
        assert!(Text::<8>::new("").is_empty());
    }

    #[test]
    fn what_is_no_text_is_escaped() {
        for (raw, shown) in [
            (&b"/a\nb"[..], "/a\\x0ab"),
            (b"/a\x1b[31m", "/a\\x1b[31m"),
            (b"/a\x00\x7f", "/a\\x00\\x7f"),
            (b"/\xff\xc3", "/\\xff\\xc3"),
            ("/\u{85}".as_bytes(), "/\\xc2\\x85"),
            (b"/back\\slash", "/back\\slash"),
        ] {
            assert_eq!(Text::<64>::new(raw).as_str(), shown, "{raw:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_cut_between_characters_and_marked() {
        assert_eq!(Text::<8>::new("/abcdefg").as_str(), "/abcdefg");
        assert_eq!(Text::<8>::new("/abcdefgh").as_str(), "/abcd…");
        assert_eq!(Text::<8>::new("üüüüü").as_str(), "üü…");
        assert_eq!(Text::<8>::new(b"ab\n\n").as_str(), "ab…");
        assert_eq!(Text::<2>::new("abc").as_str(), "");
    }

    #[test]
    fn any_bytes_give_text_within_the_limit() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let raw: Vec<u8> = (0..random.usize(..40)).map(|_| random.u8(..)).collect();
            let text = Text::<17>::new(&raw);
            assert_eq!(text.as_str().len(), usize::from(text.len), "{raw:?}");
            assert!(!text.as_str().chars().any(char::is_control), "{raw:?}");
            assert!(raw.is_empty() || !text.is_empty(), "{raw:?}");
        }
    }
}

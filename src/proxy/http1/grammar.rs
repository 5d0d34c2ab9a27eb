//! Grammar: which bytes may stand where in a head, and how far such bytes go.
//!
//! Values and targets are looked at eight bytes at a time: a word in which nothing is out
//! of the ordinary is passed over whole, any other byte by byte. That finds the end of a
//! value and proves it clean in one pass.

/// Each of a word's bytes is 1.
const ONES: u64 = 0x0101_0101_0101_0101;

/// The highest bit of each of a word's bytes.
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// `tchar` of RFC 9110 §5.6.2, by byte.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::cast_possible_truncation, clippy::indexing_slicing, reason = "a byte, and worked out once")]
        let () = table[byte] = matches!(byte as u8, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'!' | b'#' | b'$'
            | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~');
        byte += 1;
    }
    table
};

/// `tchar` of RFC 9110 §5.6.2.
#[inline]
#[must_use]
pub fn is_token(byte: u8) -> bool {
    TOKEN.get(usize::from(byte)).copied().unwrap_or(false)
}

/// What a field's value or a quoted string may have: `VCHAR`, `obs-text`, space and tab
/// (RFC 9110 §5.5, §5.6.4).
#[inline]
#[must_use]
pub fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// What a request's target is made of: `VCHAR` (RFC 5234 B.1). RFC 3986 allows less.
#[inline]
#[must_use]
pub fn is_visible(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e)
}

/// Bytes at the front that a token may have.
#[inline]
#[must_use]
pub fn token(bytes: &[u8]) -> usize {
    run(bytes, is_token, no_letter)
}

/// Bytes at the front that a field's value may have.
#[inline]
#[must_use]
pub fn text(bytes: &[u8]) -> usize {
    run(bytes, is_text, |word| below(word, b' ') | equal(word, 0x7f))
}

/// Bytes at the front that a target may have.
#[inline]
#[must_use]
pub fn visible(bytes: &[u8]) -> usize {
    run(bytes, is_visible, |word| below(word, b'!') | equal(word, 0x7f) | (word & HIGHS))
}

/// Bytes at the front for which `fits`. `odd` marks, by their highest bits, the bytes of a
/// word that may not fit: all that don't, and perhaps some that do.
#[inline]
fn run(bytes: &[u8], fits: impl Fn(u8) -> bool, odd: impl Fn(u64) -> u64) -> usize {
    let mut at = 0;
    for chunk in bytes.chunks_exact(8) {
        let word = chunk.try_into().map_or(0, u64::from_le_bytes);
        let mut marks = odd(word);
        while marks != 0 {
            let place = marks.trailing_zeros() / 8;
            if !fits((word >> (place * 8)).to_le_bytes()[0]) {
                return at + place as usize;
            }
            marks &= marks - 1;
        }
        at += 8;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().position(|byte| !fits(*byte)).unwrap_or(rest.len())
}

/// Marks the bytes of `word` that are no letters.
#[inline]
const fn no_letter(word: u64) -> u64 {
    // With the highest bits set, no byte borrows from the next one.
    let lower = word | (ONES * 0x20);
    let from_a = (lower | HIGHS) - ONES * b'a' as u64;
    let to_z = ONES * (b'z' | 0x80) as u64 - (lower & !HIGHS);
    !(from_a & to_z & !word) & HIGHS
}

/// Marks the bytes of `word` that are less than `least`, which is 0x80 at most; and perhaps
/// some behind one that is.
#[inline]
const fn below(word: u64, least: u8) -> u64 {
    word.wrapping_sub(ONES * least as u64) & !word & HIGHS
}

/// Marks the bytes of `word` that are `byte`, and perhaps some behind one that is.
#[inline]
const fn equal(word: u64, byte: u8) -> u64 {
    below(word ^ (ONES * byte as u64), 1)
}

#[cfg(test)]
mod tests {
    use super::{is_text, is_token, is_visible, text, token, visible};

    /// Each byte, at each place of a word, behind each other byte.
    #[test]
    fn a_run_ends_at_the_first_byte_that_does_not_fit_wherever_that_stands() {
        let runs: [fn(&[u8]) -> usize; 3] = [token, text, visible];
        for (run, fits) in runs.into_iter().zip([is_token, is_text, is_visible]) {
            for place in 0..20 {
                for byte in 0..=255_u8 {
                    for other in [b'a', b' ', b'\t', 0x7e, 0x80, 0xff].into_iter().filter(|other| fits(*other)) {
                        let mut bytes = [other; 21];
                        bytes[place] = byte;
                        let end = if fits(byte) { bytes.len() } else { place };
                        assert_eq!(run(&bytes), end, "{byte:#x} at {place} among {other:#x}");
                    }
                }
            }
            assert_eq!(run(b""), 0);
        }
    }

    #[test]
    fn the_kinds_of_bytes_are_those_of_the_grammar() {
        let all = |fits: fn(u8) -> bool| (0..=255).filter(|byte| fits(*byte)).collect::<Vec<u8>>();
        assert_eq!(all(is_token), b"!#$%&'*+-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ^_`abcdefghijklmnopqrstuvwxyz|~");
        let text: Vec<u8> = (b'\t'..=b'\t').chain(b' '..=b'~').chain(0x80..=0xff).collect();
        assert_eq!(all(is_text), text);
        assert_eq!(all(is_visible), (b'!'..=b'~').collect::<Vec<u8>>());
    }
}

//! SipHash-2-4: a short, keyed digest.
//!
//! What it gives must never change: the same key must lead to the same backend after an
//! upgrade, and on another host. So it is written out here rather than taken from a
//! hasher that promises no particular values.
//!
//! Source: J.-P. Aumasson, D. J. Bernstein, "SipHash: a fast short-input PRF", 2012.

/// A secret, or any other fixed number of 128 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(u128);

impl std::fmt::Debug for Key {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Key(..)")
    }
}

impl Key {
    /// The key of these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }

    /// The digest of `text`: who does not have the key learns nothing of the text from it.
    #[must_use]
    pub fn digest(self, text: &[u8]) -> u64 {
        let [low, high] = halves(self.0);
        let mut state = [
            low ^ 0x736f_6d65_7073_6575,
            high ^ 0x646f_7261_6e64_6f6d,
            low ^ 0x6c79_6765_6e65_7261,
            high ^ 0x7465_6462_7974_6573,
        ];
        let mut blocks = text.chunks_exact(8);
        for block in &mut blocks {
            absorb(&mut state, little_endian(block));
        }
        let length = u64::try_from(text.len() & 0xff).unwrap_or(0);
        absorb(&mut state, little_endian(blocks.remainder()) | length << 56);
        let [a, b, c, d] = state;
        state = [a, b, c ^ 0xff, d];
        for _ in 0..4 {
            round(&mut state);
        }
        state.iter().fold(0, |digest, word| digest ^ word)
    }
}

fn absorb(state: &mut [u64; 4], word: u64) {
    let [a, b, c, d] = *state;
    *state = [a, b, c, d ^ word];
    round(state);
    round(state);
    let [a, b, c, d] = *state;
    *state = [a ^ word, b, c, d];
}

fn round(state: &mut [u64; 4]) {
    let [mut a, mut b, mut c, mut d] = *state;
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    *state = [a, b, c, d];
}

/// Up to eight bytes, the first one the least.
fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

fn halves(number: u128) -> [u64; 2] {
    [number, number >> 64].map(|part| u64::try_from(part & u128::from(u64::MAX)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::Key;

    /// The vectors that the paper's reference code comes with, for inputs 00, 00 01, …
    #[test]
    fn it_gives_what_the_reference_gives() {
        let key = Key::new(std::array::from_fn(|index| u8::try_from(index).unwrap()));
        let text: Vec<u8> = (0..64).collect();
        for (length, digest) in [
            (0, 0x726f_db47_dd0e_0e31),
            (1, 0x74f8_39c5_93dc_67fd),
            (7, 0xab02_00f5_8b01_d137),
            (8, 0x93f5_f579_9a93_2462),
            (15, 0xa129_ca61_49be_45e5),
            (63, 0x958a_324c_eb06_4572),
        ] {
            assert_eq!(key.digest(&text[..length]), digest, "{length} bytes");
        }
        assert_eq!(format!("{key:?}"), "Key(..)");
    }
}

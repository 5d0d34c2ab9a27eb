//! Digests: what names and keys are ranked by, and what a client's token is made of.
//!
//! SipHash-2-4, short and keyed. What it gives must never change, since the same key must
//! lead to the same backend after an upgrade and on another host; the standard library's
//! hasher promises no particular values.
//!
//! Source: J.-P. Aumasson, D. J. Bernstein, "SipHash: a fast short-input PRF", 2012.

use siphasher::sip::SipHasher24;

/// A secret, or any other fixed number of 128 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key([u8; 16]);

impl std::fmt::Debug for Key {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Key(..)")
    }
}

impl Key {
    /// The key of these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The digest of `text`: who does not have the key learns nothing of the text from it.
    #[must_use]
    pub fn digest(self, text: &[u8]) -> u64 {
        SipHasher24::new_with_key(&self.0).hash(text)
    }
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

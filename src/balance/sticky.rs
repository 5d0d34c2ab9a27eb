//! sticky: the backend that a client's cookie names.
//!
//! The name is a token: a keyed digest of what the backend is called. It tells nobody the
//! address, and it is the same after a reload or a restart, so that clients stay where they
//! are. Whoever makes one up gets at most another backend of the same pool.

use super::sip::Key;

/// Letters of a token.
pub const TOKEN_LENGTH: usize = 16;

/// A backend's name in a cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u64);

impl Token {
    /// The token of a backend that is called `identity`. Whatever else the secret digests
    /// must not begin with `backend `.
    #[must_use]
    pub fn of(secret: Key, identity: &str) -> Self {
        Self(secret.digest(&[b"backend ", identity.as_bytes()].concat()))
    }

    /// Reads a token as [`Self::letters`] writes it.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.len() != TOKEN_LENGTH {
            return None;
        }
        text.iter()
            .try_fold(0, |number: u64, letter| match letter {
                b'0'..=b'9' => Some((number << 4) | u64::from(letter - b'0')),
                b'a'..=b'f' => Some((number << 4) | u64::from(letter - b'a' + 10)),
                _ => None,
            })
            .map(Self)
    }

    /// The token as it stands in a cookie: hexadecimal digits.
    #[must_use]
    pub fn letters(self) -> [u8; TOKEN_LENGTH] {
        let mut letters = [b'0'; TOKEN_LENGTH];
        let mut rest = self.0;
        for letter in letters.iter_mut().rev() {
            let digit = u8::try_from(rest & 15).unwrap_or(0);
            *letter = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
            rest >>= 4;
        }
        letters
    }
}

#[cfg(test)]
mod tests {
    use super::{Key, Token};

    #[test]
    fn a_token_is_read_as_it_is_written_and_nothing_else_is() {
        let token = Token::of(Key::new([7; 16]), "10.0.0.2:3000");
        assert_eq!(Token::parse(&token.letters()), Some(token));
        assert_ne!(Token::of(Key::new([8; 16]), "10.0.0.2:3000"), token, "another secret");
        assert_ne!(Token::of(Key::new([7; 16]), "10.0.0.2:3001"), token);
        for text in ["", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF", "0123456789abcdeg"] {
            assert_eq!(Token::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Token::parse(b"00000000000000ff").unwrap().letters(), *b"00000000000000ff");
    }
}

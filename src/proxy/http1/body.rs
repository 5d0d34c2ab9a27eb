//! Body framing: from bytes on the wire to bytes of the body (RFC 9112 §6, §7.1).
//!
//! The decoder works in place: data are moved together over the framing between them,
//! so that however many chunks one read brought, they go on as one slice. It is strict:
//! sizes are hexadecimal digits and nothing else, line ends are CRLF and nothing else,
//! extensions and trailers are bounded, checked and dropped.

use crate::proxy::head::Framing;
use crate::proxy::relay::Fault;
use crate::telemetry::Reason;

/// Bytes of chunk extensions in one line.
const EXTENSION_LIMIT: u32 = 1024;

/// Bytes of trailer fields in all.
const TRAILER_LIMIT: u32 = 8 * 1024;

/// Finds the end of one body.
#[derive(Debug)]
pub struct Decoder {
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Done,
    Length(u64),
    UntilClose,
    /// Reading the digits of a chunk's size.
    Size {
        value: u64,
        digits: u8,
    },
    /// In the extensions of a chunk's first line.
    Extension {
        value: u64,
        bytes: u32,
        quoted: Quoted,
    },
    /// After the CR of a chunk's first line.
    SizeLf {
        value: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// At the start of a trailer line, or of the line that ends them.
    TrailerStart {
        bytes: u32,
    },
    /// In a trailer field's name, then its value.
    TrailerName {
        bytes: u32,
    },
    TrailerValue {
        bytes: u32,
    },
    TrailerLf {
        bytes: u32,
    },
    LastLf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quoted {
    No,
    Yes,
    Escape,
}

/// What became of the bytes given to [`Decoder::decode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// Bytes of data, now at the front of the slice.
    pub data: usize,
    /// Bytes taken from the slice; what lies behind belongs to the next message.
    pub taken: usize,
}

impl Decoder {
    /// A decoder at the start of a body.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { value: 0, digits: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Self { state }
    }

    /// Whether the body is over, and complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes of the body that are still to come, where they stand on the wire without any
    /// framing between them; `u64::MAX` when the body ends with its connection.
    #[must_use]
    pub fn plain(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::UntilClose => Some(u64::MAX),
            _ => None,
        }
    }

    /// Counts `n` bytes as taken past this decoder; at most as many as [`Self::plain`] said.
    pub fn skip(&mut self, n: u64) {
        if let State::Length(left) = self.state {
            self.state = if n < left { State::Length(left - n) } else { State::Done };
        }
    }

    /// The sender has ended its direction: the end of a body that says so, a fault in
    /// any other.
    ///
    /// # Errors
    /// [`Fault::Truncated`] when the body is not complete.
    pub fn end(&mut self) -> Result<(), Fault> {
        match self.state {
            State::Done | State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(Fault::Truncated),
        }
    }

    /// Decodes `bytes` in place.
    ///
    /// # Errors
    /// [`Fault::Malformed`] for anything that RFC 9112 §7.1 does not allow.
    pub fn decode(&mut self, bytes: &mut [u8]) -> Result<Decoded, Fault> {
        match self.state {
            State::Done => Ok(Decoded { data: 0, taken: 0 }),
            State::UntilClose => Ok(Decoded { data: bytes.len(), taken: bytes.len() }),
            State::Length(left) => {
                let n = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let left = left - u64::try_from(n).unwrap_or(left);
                self.state = if left == 0 { State::Done } else { State::Length(left) };
                Ok(Decoded { data: n, taken: n })
            }
            _ => self.chunks(bytes),
        }
    }

    fn chunks(&mut self, bytes: &mut [u8]) -> Result<Decoded, Fault> {
        let (mut data, mut taken) = (0, 0);
        while self.state != State::Done {
            if let State::Data { left } = self.state {
                let n = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - taken);
                if n == 0 {
                    break;
                }
                bytes.copy_within(taken..taken + n, data);
                data += n;
                taken += n;
                let left = left - u64::try_from(n).unwrap_or(left);
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                continue;
            }
            let Some(byte) = bytes.get(taken).copied() else { break };
            taken += 1;
            self.state = self.state.step(byte).ok_or(Fault::Malformed(Reason::BadRequest))?;
        }
        Ok(Decoded { data, taken })
    }
}

impl State {
    /// The state after one byte of framing; `None` when it must not stand there.
    fn step(self, byte: u8) -> Option<Self> {
        let text = byte == b'\t' || (byte >= b' ' && byte != 0x7f);
        Some(match (self, byte) {
            (Self::Size { value, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).map(u64::from)?;
                let value = value.checked_mul(16)?.checked_add(digit)?;
                Self::Size { value, digits: if digits < 16 { digits + 1 } else { return None } }
            }
            (Self::Size { digits: 0, .. }, _) => return None,
            (Self::Size { value, .. }, b'\r') => Self::SizeLf { value },
            (Self::Size { value, .. }, b';' | b' ' | b'\t') => Self::Extension { value, bytes: 1, quoted: Quoted::No },
            (Self::Extension { value, quoted: Quoted::No, .. }, b'\r') => Self::SizeLf { value },
            (Self::Extension { value, bytes, quoted }, _) if text && bytes < EXTENSION_LIMIT => {
                let quoted = match (quoted, byte) {
                    (Quoted::Yes, b'\\') => Quoted::Escape,
                    (Quoted::Yes, b'"') => Quoted::No,
                    (Quoted::No, b'"') | (Quoted::Escape, _) => Quoted::Yes,
                    (quoted, _) => quoted,
                };
                Self::Extension { value, bytes: bytes + 1, quoted }
            }
            (Self::SizeLf { value: 0 }, b'\n') => Self::TrailerStart { bytes: 0 },
            (Self::SizeLf { value }, b'\n') => Self::Data { left: value },
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Size { value: 0, digits: 0 },
            (Self::TrailerStart { .. }, b'\r') => Self::LastLf,
            (Self::LastLf, b'\n') => Self::Done,
            (Self::TrailerStart { bytes }, _) if is_token(byte) => Self::TrailerName { bytes: bytes + 1 },
            (Self::TrailerName { bytes }, b':') => Self::TrailerValue { bytes: bytes + 1 },
            (Self::TrailerName { bytes }, _) if is_token(byte) && bytes < TRAILER_LIMIT => {
                Self::TrailerName { bytes: bytes + 1 }
            }
            (Self::TrailerValue { bytes }, b'\r') => Self::TrailerLf { bytes: bytes + 1 },
            (Self::TrailerValue { bytes }, _) if text && bytes < TRAILER_LIMIT => {
                Self::TrailerValue { bytes: bytes + 1 }
            }
            (Self::TrailerLf { bytes }, b'\n') => Self::TrailerStart { bytes },
            _ => return None,
        })
    }
}

/// `tchar` of RFC 9110 §5.6.2.
#[must_use]
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::{Decoder, Fault};
    use crate::proxy::head::Framing;

    /// Decodes `input` given in reads of at most `read` bytes; returns data and rest.
    fn decode(framing: Framing, input: &[u8], read: usize) -> Result<(Vec<u8>, usize), Fault> {
        let mut decoder = Decoder::new(framing);
        let (mut data, mut at) = (Vec::new(), 0);
        while at < input.len() && !decoder.is_done() {
            let mut bytes = input[at..input.len().min(at + read)].to_vec();
            let decoded = decoder.decode(&mut bytes)?;
            data.extend_from_slice(&bytes[..decoded.data]);
            at += decoded.taken;
        }
        if !decoder.is_done() {
            decoder.end()?;
        }
        Ok((data, input.len() - at))
    }

    #[test]
    fn any_split_over_reads_gives_the_same_body() {
        let input = b"5\r\nhello\r\n6;name=\"a;\\\"b\"\r\n world\r\n0\r\nX-Sum: 7\r\n\r\nGET";
        for read in 1..=input.len() {
            assert_eq!(decode(Framing::Chunked, input, read), Ok((b"hello world".to_vec(), 3)), "reads of {read}");
        }
        for read in 1..=4 {
            assert_eq!(decode(Framing::Length(4), b"bodyGET", read), Ok((b"body".to_vec(), 3)));
        }
    }

    #[test]
    fn what_rfc_9112_does_not_allow_is_refused() {
        for bad in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"5\r\nhelloX\r\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"\r\nhello",
            b"-1\r\n",
            b"5_0\r\n",
            b"10000000000000000\r\n",
            b"00000000000000005\r\nhello\r\n0\r\n\r\n",
            b"5;a=\"\r\nhello\r\n0\r\n\r\n",
            b"5;a=\x00\r\nhello\r\n0\r\n\r\n",
            b"0\r\n X: folded\r\n\r\n",
            b"0\r\nX : space\r\n\r\n",
            b"0\r\nX: bare\n\r\n",
            b"0\r\n\rX",
        ] {
            let outcome = decode(Framing::Chunked, bad, 7);
            assert!(matches!(outcome, Err(Fault::Malformed(_))), "{:?} gave {outcome:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(2_000));
        assert!(decode(Framing::Chunked, long.as_bytes(), 64).is_err());
        let long = format!("0\r\n{}\r\n", "X: y\r\n".repeat(2_000));
        assert!(decode(Framing::Chunked, long.as_bytes(), 64).is_err());
    }

    #[test]
    fn a_body_cut_short_is_never_whole() {
        let input = b"5\r\nhello\r\n0\r\n\r\n";
        for cut in 0..input.len() {
            assert_eq!(decode(Framing::Chunked, &input[..cut], 64), Err(Fault::Truncated), "cut at {cut}");
        }
        assert_eq!(decode(Framing::Length(5), b"hell", 64), Err(Fault::Truncated));
        assert_eq!(decode(Framing::UntilClose, b"hell", 64), Ok((b"hell".to_vec(), 0)));
    }
}

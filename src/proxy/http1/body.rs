//! Body framing: from bytes on the wire to bytes of the body (RFC 9112 §6, §7.1).
//!
//! The decoder works in place: data are moved together over the framing between them,
//! so that however many chunks one read brought, they go on as one slice. It is strict:
//! sizes are hexadecimal digits and nothing else, line ends are CRLF and nothing else.
//! Extensions are checked by their grammar and dropped; white space is taken where that
//! has it (RFC 9112 §7.1.1) and nowhere else, so not at a line's end. Trailer fields are
//! kept for whoever takes them: see [`super::trailers`].

use super::grammar::{is_text, is_token};
use super::trailers::Trailers;
use crate::proxy::head::{Fields, Framing, Known, list};
use crate::proxy::relay::Fault;
use crate::telemetry::Reason;

/// Bytes of chunk extensions in one line.
const EXTENSION_LIMIT: u32 = 1024;

/// Bytes of chunk extensions that any stretch of a body may have beyond as many as it has
/// of data; a long chunk is no credit for later. They are read for nothing, and chunks of
/// a byte with a long extension each would be read for nothing without end
/// (CVE-2023-39326 and its like). Signed uploads have some 90 bytes for each 64 KiB.
const EXTENSIONS_LIMIT: u64 = 16 * 1024;

/// Bytes of trailer fields in all.
const TRAILER_LIMIT: u32 = 8 * 1024;

/// Finds the end of one body.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// Bytes of extensions, less those of data, since the data last made up for them.
    excess: u64,
    /// The trailer fields, once there is something to say of them.
    trailers: Option<Box<Trailers>>,
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
        part: Part,
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
    /// It broke the rules, and whatever follows is no part of a body.
    Broken(Reason),
}

/// Where in `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// In white space ahead of a semicolon.
    Gap,
    /// Behind a semicolon.
    Start,
    Name,
    NameGap,
    /// Behind an equals sign.
    Equals,
    Token,
    Quoted,
    Escape,
    /// Behind a quoted string.
    Closed,
}

impl Part {
    /// The part after one more byte; `None` when it must not stand there.
    fn step(self, byte: u8) -> Option<Self> {
        let space = matches!(byte, b' ' | b'\t');
        Some(match (self, byte) {
            (Self::Quoted, b'\\') => Self::Escape,
            (Self::Quoted, b'"') => Self::Closed,
            (Self::Quoted | Self::Escape, _) if is_text(byte) => Self::Quoted,
            (Self::Quoted | Self::Escape, _) => return None,
            (Self::Start | Self::Name, _) if is_token(byte) => Self::Name,
            (Self::Equals | Self::Token, _) if is_token(byte) => Self::Token,
            (Self::Equals, b'"') => Self::Quoted,
            (Self::Name | Self::NameGap, b'=') => Self::Equals,
            (Self::Gap | Self::Name | Self::NameGap | Self::Token | Self::Closed, b';') => Self::Start,
            (Self::Gap | Self::Start | Self::NameGap | Self::Equals, _) if space => self,
            (Self::Name, _) if space => Self::NameGap,
            (Self::Token | Self::Closed, _) if space => Self::Gap,
            _ => return None,
        })
    }

    /// Whether the extensions may end here.
    fn may_end(self) -> bool {
        matches!(self, Self::Name | Self::Token | Self::Closed)
    }
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
        Self { state, excess: 0, trailers: None }
    }

    /// A decoder at the start of the body that follows a head with these fields.
    #[must_use]
    pub fn behind(framing: Framing, fields: &Fields) -> Self {
        let mut decoder = Self::new(framing);
        if framing == Framing::Chunked {
            // What `Connection` lists ends here, also behind the body. These are no names.
            let known: [&[u8]; 4] = [b"close", b"keep-alive", b"upgrade", b"te"];
            let is_name = |option: &&[u8]| !known.iter().any(|known| known.eq_ignore_ascii_case(option));
            for name in fields.values(Known::Connection).flat_map(list).filter(is_name) {
                decoder.trailers.get_or_insert_default().nominate(name);
            }
        }
        decoder
    }

    /// Trailer fields of this name don't go on. To be called before anything is decoded.
    pub fn withhold(&mut self, name: &[u8]) {
        if matches!(self.state, State::Size { .. }) {
            self.trailers.get_or_insert_default().withhold(name);
        }
    }

    /// The trailer fields that may go on, each a whole line; complete once the body is over.
    #[must_use]
    pub fn trailers(&self) -> &[u8] {
        self.trailers.as_ref().map(|trailers| trailers.lines()).unwrap_or_default()
    }

    /// Gives back what the body left behind.
    pub fn clear(&mut self) {
        self.trailers = None;
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

    /// Bytes that are still to come, where the head said how many; `None` otherwise.
    #[must_use]
    pub fn announced(&self) -> Option<u64> {
        match self.state {
            State::Done => Some(0),
            State::Length(left) => Some(left),
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
            State::Broken(reason) => Err(Fault::Malformed(reason)),
            _ => {
                let decoded = self.chunks(bytes);
                if let Err(Fault::Malformed(reason)) = decoded {
                    self.state = State::Broken(reason);
                }
                decoded
            }
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
                let n = u64::try_from(n).unwrap_or(left);
                let left = left - n;
                self.excess = self.excess.saturating_sub(n);
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                continue;
            }
            let Some(byte) = bytes.get(taken).copied() else { break };
            taken += 1;
            self.framing(byte).ok_or(Fault::Malformed(Reason::BadRequest))?;
        }
        Ok(Decoded { data, taken })
    }

    /// Takes in one byte of framing; `None` when it must not stand there.
    fn framing(&mut self, byte: u8) -> Option<()> {
        let next = self.state.step(byte)?;
        match (self.state, next) {
            (_, State::Extension { .. }) => {
                self.excess += 1;
                (self.excess <= EXTENSIONS_LIMIT).then_some(())?;
            }
            (_, State::TrailerName { .. } | State::TrailerValue { .. }) => {
                self.trailers.get_or_insert_default().push(byte);
            }
            (State::TrailerLf { .. }, _) => self.trailers.get_or_insert_default().end_line()?,
            _ => {}
        }
        self.state = next;
        Some(())
    }
}

impl State {
    /// The state after one byte of framing; `None` when it must not stand there.
    fn step(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Size { value, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).map(u64::from)?;
                let value = value.checked_mul(16)?.checked_add(digit)?;
                Self::Size { value, digits: if digits < 16 { digits + 1 } else { return None } }
            }
            (Self::Size { digits: 0, .. }, _) => return None,
            (Self::Size { value, .. }, b'\r') => Self::SizeLf { value },
            (Self::Size { value, .. }, _) => Self::Extension { value, bytes: 1, part: Part::Gap.step(byte)? },
            (Self::Extension { value, part, .. }, b'\r') if part.may_end() => Self::SizeLf { value },
            (Self::Extension { value, bytes, part }, _) if bytes < EXTENSION_LIMIT => {
                Self::Extension { value, bytes: bytes + 1, part: part.step(byte)? }
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
            (Self::TrailerValue { bytes }, _) if is_text(byte) && bytes < TRAILER_LIMIT => {
                Self::TrailerValue { bytes: bytes + 1 }
            }
            (Self::TrailerLf { bytes }, b'\n') => Self::TrailerStart { bytes },
            _ => return None,
        })
    }
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
            b"5 junk\r\nhello\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"5;\r\nhello\r\n0\r\n\r\n",
            b"5;;a\r\nhello\r\n0\r\n\r\n",
            b"5;a;\r\nhello\r\n0\r\n\r\n",
            b"5;a \r\nhello\r\n0\r\n\r\n",
            b"5;a=\r\nhello\r\n0\r\n\r\n",
            b"5;a=b \r\nhello\r\n0\r\n\r\n",
            b"5;a b\r\nhello\r\n0\r\n\r\n",
            b"5;a=b c\r\nhello\r\n0\r\n\r\n",
            b"5;a=\"b\"c\r\nhello\r\n0\r\n\r\n",
            b"5;a=b\"c\"\r\nhello\r\n0\r\n\r\n",
            b"5;=b\r\nhello\r\n0\r\n\r\n",
            b"5;a@b\r\nhello\r\n0\r\n\r\n",
            b"5,a\r\nhello\r\n0\r\n\r\n",
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
    fn extensions_are_read_by_their_grammar() {
        for extension in [
            ";a",
            ";a;b",
            ";a=b;c=\"d\"",
            ";a=\"\"",
            ";a=\"b;\\\"\\\\\tc\";d",
            " ;a",
            "\t \t; a\t= b ;c",
            ";a=\"b\" ;c",
            ";a=\"\u{e4}\"",
            ";chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        ] {
            let input = format!("5{extension}\r\nhello\r\n0{extension}\r\n\r\n");
            for read in 1..=input.len() {
                let outcome = decode(Framing::Chunked, input.as_bytes(), read);
                assert_eq!(outcome, Ok((b"hello".to_vec(), 0)), "{extension:?} in reads of {read}");
            }
        }
    }

    #[test]
    fn extensions_are_bounded_over_the_whole_body_by_its_data() {
        let body = |data: usize, chunks: usize| {
            let chunk = format!("{data:x};a={}\r\n{}\r\n", "b".repeat(500), "c".repeat(data));
            format!("{}0\r\n\r\n", chunk.repeat(chunks))
        };
        assert!(decode(Framing::Chunked, body(1, 30).as_bytes(), 4096).is_ok());
        assert!(decode(Framing::Chunked, body(1, 40).as_bytes(), 4096).is_err());
        assert!(decode(Framing::Chunked, body(600, 1_000).as_bytes(), 4096).is_ok());
    }

    #[test]
    fn trailers_are_kept_however_they_come() {
        let input = b"1\r\nx\r\n0\r\nSum:7\r\nx-a: \t b c\t\r\nContent-Length: 9\r\nNamed: y\r\nX-Empty:\r\n\r\n";
        for read in 1..=input.len() {
            let mut decoder = Decoder::new(Framing::Chunked);
            decoder.trailers.get_or_insert_default().nominate(b"named");
            for piece in input.chunks(read) {
                let mut bytes = piece.to_vec();
                assert_eq!(decoder.decode(&mut bytes).map(|decoded| decoded.taken), Ok(piece.len()));
            }
            assert!(decoder.is_done());
            assert_eq!(decoder.trailers(), b"Sum: 7\r\nx-a: b c\r\nX-Empty: \r\n");
            decoder.clear();
            assert_eq!(decoder.trailers(), b"");
        }
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

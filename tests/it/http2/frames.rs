//! A client that writes and reads single frames (RFC 9113 §4, §6), with heads that are written
//! out letter by letter (RFC 7541 §6.2.2).

use std::net::SocketAddr;
use std::time::Duration;

use crate::peer::Peer;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 0x1;
pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;
pub const PRIORITISED: u8 = 0x20;

pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const INTERNAL_ERROR: u32 = 2;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// What a client sends first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The number that begins so many bytes into the payload.
    pub fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The status of an answer.
    pub fn status(&self) -> u16 {
        assert_eq!(self.kind, HEADERS, "{self:?}");
        match self.payload[..] {
            [indexed @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
            // A literal, with three digits in the code of RFC 7541 Appendix B.
            [0x48 | 0x08, length, ..] => {
                let bits = self.payload[2..2 + usize::from(length & 0x7f)].iter();
                let bits: String = bits.map(|byte| format!("{byte:08b}")).collect();
                let mut rest = bits.as_str();
                let mut status = 0;
                for _ in 0..3 {
                    let short = matches!(&rest[..5], "00000" | "00001" | "00010");
                    let (digit, behind) = rest.split_at(if short { 5 } else { 6 });
                    let code = u16::from_str_radix(digit, 2).unwrap();
                    status = status * 10 + if short { code } else { code - 22 };
                    rest = behind;
                }
                status
            }
            _ => panic!("no status begins {self:?}"),
        }
    }
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let mut text = |text: &str| {
        // A length below 127 is one byte (RFC 7541 §5.1).
        let mut length = text.len();
        if length < 127 {
            block.push(u8::try_from(length).unwrap());
        } else {
            block.push(127);
            length -= 127;
            while length >= 128 {
                block.push(u8::try_from(length % 128).unwrap() | 0x80);
                length /= 128;
            }
            block.push(u8::try_from(length).unwrap());
        }
        block.extend(text.as_bytes());
    };
    for (name, value) in fields {
        // "Literal without indexing, new name" is a byte of zeros: as an empty text is.
        text("");
        text(name);
        text(value);
    }
    block
}

/// The pseudo-header fields of a GET.
pub const GET: &[(&str, &str)] = &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];

/// The same with further fields.
pub fn get(fields: &[(&str, &str)]) -> Vec<u8> {
    block(&[GET, fields].concat())
}

/// The pseudo-header fields of a POST, with further fields.
pub fn post(fields: &[(&str, &str)]) -> Vec<u8> {
    block(&[&[(":method", "POST")], &GET[1..], fields].concat())
}

/// A whole request without a body.
pub fn ask(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, get(&[]))
}

/// Whole frames.
#[track_caller]
fn parse(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, flags, s @ ..] = bytes {
        let length = (usize::from(*a) << 16) | (usize::from(*b) << 8) | usize::from(*c);
        let stream = u32::from_be_bytes(s[..4].try_into().unwrap());
        frames.push(Frame { kind: *kind, flags: *flags, stream, payload: s[4..4 + length].to_vec() });
        bytes = &s[4 + length..];
    }
    assert!(bytes.is_empty(), "half a frame at the end");
    frames
}

/// A connection.
pub struct Frames {
    /// Its socket.
    pub peer: Peer,
}

impl Frames {
    /// Connects, and sends nothing.
    pub fn raw(address: SocketAddr) -> Self {
        Self { peer: Peer::connect(address) }
    }

    /// Connects and exchanges settings, of which ours are these.
    pub fn with(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut client = Self::raw(address);
        let settings: Vec<u8> =
            settings.iter().flat_map(|(key, value)| [&key.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        client.send([PREFACE, &frame(SETTINGS, 0, 0, settings)].concat());
        let theirs = client.read();
        assert_eq!((theirs.kind, theirs.flags, theirs.stream), (SETTINGS, 0, 0));
        client.send(frame(SETTINGS, ACK, 0, ""));
        client.await_frame("our settings' acknowledgement", |frame| frame.kind == SETTINGS && frame.flags == ACK);
        client
    }

    /// Connects and exchanges settings.
    pub fn connect(address: SocketAddr) -> Self {
        Self::with(address, &[])
    }

    /// Sends bytes.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.peer.send(bytes);
    }

    /// Reads a frame.
    #[track_caller]
    pub fn read(&mut self) -> Frame {
        self.try_read().expect("a frame before the end")
    }

    /// Reads a frame, if one comes before the connection ends.
    pub fn try_read(&mut self) -> Option<Frame> {
        let head = self.peer.try_read(9)?;
        let length = (usize::from(head[0]) << 16) | (usize::from(head[1]) << 8) | usize::from(head[2]);
        let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
        Some(Frame { kind: head[3], flags: head[4], stream, payload: self.peer.try_read(length)? })
    }

    /// Reads up to the end of the connection.
    #[track_caller]
    pub fn until_gone(&mut self) -> Vec<Frame> {
        parse(&self.peer.expect_gone())
    }

    /// Reads frames up to one that is wanted.
    #[track_caller]
    pub fn await_frame(&mut self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Frame {
        let mut seen = Vec::new();
        loop {
            let frame = self.read();
            if wanted(&frame) {
                return frame;
            }
            assert!(frame.kind != GOAWAY, "{what} never came, but {frame:?} after {seen:?}");
            seen.push(frame);
        }
    }

    /// Reads up to the head of the answer on this stream.
    #[track_caller]
    pub fn head(&mut self, stream: u32) -> Frame {
        self.await_frame("an answer", |frame| frame.kind == HEADERS && frame.stream == stream)
    }

    /// Reads up to the frame that ends this stream.
    #[track_caller]
    pub fn end(&mut self, stream: u32) {
        self.await_frame("an end", |frame| {
            matches!(frame.kind, DATA | HEADERS) && frame.stream == stream && frame.flags & END_STREAM != 0
        });
    }

    /// Reads up to the reset of this stream; returns its code.
    #[track_caller]
    pub fn reset(&mut self, stream: u32) -> u32 {
        self.await_frame("a reset", |frame| frame.kind == RST_STREAM && frame.stream == stream).number(0)
    }

    /// Reads up to the end of the connection, before which nothing comes but a GOAWAY; returns
    /// its code.
    #[track_caller]
    pub fn goodbye(&mut self) -> u32 {
        let frames = self.until_gone();
        let last = frames.last().expect("a frame before the end");
        assert_eq!(last.kind, GOAWAY, "the last of {frames:?}");
        last.number(4)
    }

    /// Reads up to so many pongs; `true` when the connection is ended before.
    #[track_caller]
    pub fn reads_goaway(&mut self, mut pongs: u32) -> bool {
        while pongs > 0 {
            match self.read() {
                frame if frame.kind == GOAWAY => return true,
                frame if frame.kind == PING => pongs -= 1,
                _ => {}
            }
        }
        false
    }

    /// Reads until nothing comes for `patience`.
    #[track_caller]
    pub fn until_silent(&mut self, patience: Duration) -> Vec<Frame> {
        parse(&self.peer.read_until_over(patience).0)
    }

    /// Asserts that the connection lives: a ping comes back.
    #[track_caller]
    pub fn expect_alive(&mut self) {
        self.send(frame(PING, 0, 0, b"are-you?"));
        self.await_frame("a pong", |frame| frame.kind == PING && frame.flags == ACK && frame.payload == b"are-you?");
    }
}

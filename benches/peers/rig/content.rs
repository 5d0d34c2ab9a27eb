//! What is asked and answered: fixed bytes, made once.
//!
//! Every body is a piece of one text whose period is a prime, so that a byte that is
//! missing, doubled or out of its place shows. The text lies in the first-level cache
//! when it is compared with.

use std::io;
use std::os::fd::OwnedFd;

use memchr::memmem;
use rustix::fs::{MemfdFlags, memfd_create};

/// Period of the text of all bodies, in bytes; a prime.
const PERIOD: usize = 4093;

/// Longest piece that is compared at once.
const PIECE: usize = 12 * 1024;

/// Largest head of an answer that is put up with.
pub const LARGEST_HEAD: usize = 16 * 1024;

/// An exchange of one request for one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// GET, 120 bytes come back.
    Small,
    /// GET, 16 KiB come back.
    Kib16,
    /// GET, 1 MiB comes back.
    Mib1,
    /// POST of 64 KiB, 120 bytes come back.
    Post,
    /// 64 bytes for 64 bytes, without HTTP.
    Ping,
    /// 64 bytes for 16 MiB, without HTTP.
    Bulk,
}

/// Bytes of a request that is not HTTP.
const PLAIN: usize = 64;

impl Exchange {
    const ALL: [Exchange; 6] =
        [Exchange::Small, Exchange::Kib16, Exchange::Mib1, Exchange::Post, Exchange::Ping, Exchange::Bulk];

    /// What a request for it begins with.
    fn line(self) -> &'static str {
        match self {
            Exchange::Small => "GET /small ",
            Exchange::Kib16 => "GET /16k ",
            Exchange::Mib1 => "GET /1m ",
            Exchange::Post => "POST /post ",
            Exchange::Ping => "PING ",
            Exchange::Bulk => "BULK ",
        }
    }

    /// What is asked for.
    pub fn path(self) -> &'static str {
        self.line().split(' ').nth(1).unwrap_or_default()
    }

    /// Whether its messages are bare bytes, which only a TCP proxy passes.
    pub fn is_plain(self) -> bool {
        matches!(self, Exchange::Ping | Exchange::Bulk)
    }

    /// Bytes of the body that goes up.
    pub fn upload(self) -> usize {
        if self == Exchange::Post { 64 * 1024 } else { 0 }
    }

    /// Bytes of the body that comes down.
    pub fn download(self) -> usize {
        match self {
            Exchange::Small | Exchange::Post => 120,
            Exchange::Kib16 => 16 * 1024,
            Exchange::Mib1 => 1024 * 1024,
            Exchange::Ping => PLAIN,
            Exchange::Bulk => 16 * 1024 * 1024,
        }
    }

    /// Which exchange a request head asks for.
    pub fn of(head: &[u8]) -> Option<Exchange> {
        Exchange::ALL.into_iter().find(|exchange| head.starts_with(exchange.line().as_bytes()))
    }

    /// The bytes of a whole request.
    pub fn request(self, keep: bool, text: &Text) -> Vec<u8> {
        if self.is_plain() {
            // It ends as a head does, so that the backend reads both alike.
            return format!("{:.<width$}\r\n\r\n", self.line(), width = PLAIN - 4).into_bytes();
        }
        let mut request =
            format!("{}HTTP/1.1\r\nHost: bench.example\r\nUser-Agent: compare/1\r\nAccept: */*\r\n", self.line());
        if !keep {
            request.push_str("Connection: close\r\n");
        }
        if self.upload() > 0 {
            request.push_str(&format!("Content-Type: text/plain\r\nContent-Length: {}\r\n", self.upload()));
        }
        request.push_str("\r\n");
        let mut request = request.into_bytes();
        request.extend(text.bytes(self.upload()));
        request
    }
}

/// The text of all bodies.
pub struct Text(Vec<u8>);

impl Text {
    /// Makes it.
    pub fn new() -> Text {
        let mut state: u32 = 1;
        let mut period = Vec::with_capacity(PERIOD);
        for _ in 0..PERIOD {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            period.push(b'a' + u8::try_from((state >> 24) % 26).unwrap_or(0));
        }
        Text(period.into_iter().cycle().take(PERIOD + PIECE).collect())
    }

    /// The first bytes of it.
    pub fn bytes(&self, length: usize) -> impl Iterator<Item = u8> {
        self.0.iter().copied().take(PERIOD).cycle().take(length)
    }

    /// Whether these are the bytes that begin at `offset`.
    pub fn holds(&self, mut offset: usize, bytes: &[u8]) -> bool {
        bytes.chunks(PIECE).all(|piece| {
            let start = offset % PERIOD;
            offset += piece.len();
            self.0.get(start..start + piece.len()) == Some(piece)
        })
    }
}

/// An answer of the backend, ready to be written.
pub struct Answer {
    /// The head, and the body too unless it lies in a file.
    pub bytes: Vec<u8>,
    /// The body, where it is so large that copying it would make the backend the
    /// bottleneck: `sendfile` hands its pages over.
    pub file: Option<OwnedFd>,
    /// Bytes of the file.
    pub length: usize,
}

/// All that the backend answers and the load expects.
pub struct Content {
    /// The text of all bodies.
    pub text: Text,
    answers: Vec<(Exchange, Answer)>,
    wrong: Answer,
}

impl Content {
    /// Makes all answers.
    ///
    /// # Errors
    /// When the kernel gives no memory file.
    pub fn new() -> io::Result<Content> {
        let text = Text::new();
        let mut answers = Vec::new();
        for exchange in Exchange::ALL {
            let length = exchange.download();
            let mut bytes = if exchange.is_plain() { Vec::new() } else { head("200 OK", length) };
            let mut file = None;
            if length > 64 * 1024 {
                let made = std::fs::File::from(memfd_create("body", MemfdFlags::CLOEXEC)?);
                io::Write::write_all(&mut &made, &text.bytes(length).collect::<Vec<u8>>())?;
                file = Some(OwnedFd::from(made));
            } else {
                bytes.extend(text.bytes(length));
            }
            let length = if file.is_some() { length } else { 0 };
            answers.push((exchange, Answer { bytes, file, length }));
        }
        let wrong = Answer { bytes: head("500 Wrong Request", 0), file: None, length: 0 };
        Ok(Content { text, answers, wrong })
    }

    /// The answer to a request for `exchange`; without one, the refusal of a request
    /// that is not as it was sent.
    pub fn answer(&self, exchange: Option<Exchange>) -> &Answer {
        let found = self.answers.iter().find(|(of, _)| Some(*of) == exchange);
        found.map_or(&self.wrong, |(_, answer)| answer)
    }
}

fn head(status: &str, length: usize) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: text/plain\r\n\
         Content-Length: {length}\r\n\r\n"
    )
    .into_bytes()
}

/// Finds a `Content-Length` of a known value, however the name is written: HAProxy
/// writes it in lower case.
pub struct Length([memmem::Finder<'static>; 2]);

impl Length {
    /// Looks for this length.
    pub fn new(length: usize) -> Length {
        let field = |name: &str| memmem::Finder::new(&format!("\r\n{name}: {length}\r\n")).into_owned();
        Length([field("Content-Length"), field("content-length")])
    }

    /// Whether the head announces it.
    pub fn is_in(&self, head: &[u8]) -> bool {
        self.0.iter().any(|finder| finder.find(head).is_some())
    }
}

/// Splits a head off; `None` while it is not whole.
pub fn split_head(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    // Most messages end with their head.
    let end = if bytes.ends_with(b"\r\n\r\n") && memmem::find(bytes, b"\r\n\r\n") == bytes.len().checked_sub(4) {
        bytes.len()
    } else {
        memmem::find(bytes, b"\r\n\r\n")? + 4
    };
    bytes.split_at_checked(end)
}

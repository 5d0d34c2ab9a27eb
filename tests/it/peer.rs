//! A socket with a buffer, for clients and for backends that do as a test says.
//!
//! Nothing here knows more HTTP than it needs to find the end of a message, and it
//! finds it strictly: a length that does not fit fails the test.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use socket2::SockRef;

use crate::daemon::DEADLINE;

/// One end of a connection.
pub struct Peer {
    socket: End,
    /// Bytes read and not yet used.
    input: Vec<u8>,
}

enum End {
    Tcp(TcpStream),
    Unix(UnixStream),
}

macro_rules! on {
    ($end:expr, $socket:ident => $call:expr) => {
        match $end {
            End::Tcp($socket) => $call,
            End::Unix($socket) => $call,
        }
    };
}

/// A message head: the first line and the fields, as sent.
#[derive(Debug, Clone)]
pub struct Head {
    /// The request or status line.
    pub line: String,
    /// The fields, in order.
    pub fields: Vec<(String, String)>,
}

impl Head {
    fn parse(text: &str) -> Self {
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap().to_owned();
        let fields = lines
            .map(|line| {
                let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("a field of {text:?}"));
                (name.to_owned(), value.to_owned())
            })
            .collect();
        Self { line, fields }
    }

    /// The values of all fields of this name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.fields.iter().filter(|(given, _)| given.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The value of the only field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} stands {} times in {self:?}", all.len());
        all.first().copied()
    }

    /// The status code of a response.
    pub fn status(&self) -> u16 {
        let code = self.line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        code.and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{self:?} is no response"))
    }
}

/// A message: head and decoded body.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its head.
    pub head: Head,
    /// Its body, without framing.
    pub body: Vec<u8>,
}

impl Message {
    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The status code of a response.
    pub fn status(&self) -> u16 {
        self.head.status()
    }

    /// Asserts that this is an answer of doorward's own for `reason`.
    #[track_caller]
    pub fn assert_refusal(&self, status: u16, reason: &str) {
        assert_eq!(self.status(), status, "{self:?}");
        let proxy_status = self.head.field("Proxy-Status").unwrap_or_default();
        assert!(proxy_status.starts_with("doorward; error="), "{self:?}");
        assert!(self.head.field("Date").is_some(), "{self:?}");
        assert!(proxy_status.ends_with(&format!("details=\"{reason}\"")), "{reason} in {self:?}");
        assert_eq!(self.head.field("Retry-After").is_some(), status == 503, "{self:?}");
    }
}

impl Peer {
    /// Connects over TCP.
    pub fn connect(address: SocketAddr) -> Self {
        Self::tcp(TcpStream::connect(address).unwrap())
    }

    /// Connects to a Unix socket.
    pub fn connect_unix(path: &Path) -> Self {
        Self::unix(UnixStream::connect(path).unwrap())
    }

    /// On a Unix socket that is connected.
    pub fn unix(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_write_timeout(Some(DEADLINE)).unwrap();
        Self { socket: End::Unix(socket), input: Vec::new() }
    }

    /// On a TCP socket that is connected.
    pub fn tcp(socket: TcpStream) -> Self {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_write_timeout(Some(DEADLINE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket: End::Tcp(socket), input: Vec::new() }
    }

    /// A second handle on the same connection, to write while the first reads.
    pub fn writer(&self) -> Self {
        let socket = match &self.socket {
            End::Tcp(socket) => End::Tcp(socket.try_clone().unwrap()),
            End::Unix(socket) => End::Unix(socket.try_clone().unwrap()),
        };
        Self { socket, input: Vec::new() }
    }

    /// Sends all of `bytes`.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    /// Sends, and says how that went.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        on!(&mut self.socket, socket => socket.write_all(bytes.as_ref()))
    }

    /// Sends one chunk of a chunked body.
    #[track_caller]
    pub fn send_chunk(&mut self, bytes: &[u8]) {
        let mut framed = format!("{:x}\r\n", bytes.len()).into_bytes();
        framed.extend_from_slice(bytes);
        framed.extend_from_slice(b"\r\n");
        self.send(framed);
    }

    /// Sends for as long as the other side takes it within `patience`, with little room on the
    /// way; says how many bytes.
    pub fn send_while_taken(&mut self, bytes: impl AsRef<[u8]>, patience: Duration) -> usize {
        on!(&self.socket, socket => {
            SockRef::from(socket).set_send_buffer_size(16 * 1024).unwrap();
            socket.set_write_timeout(Some(patience)).unwrap();
        });
        let mut rest = bytes.as_ref();
        let whole = rest.len();
        while !rest.is_empty() {
            match on!(&mut self.socket, socket => socket.write(rest)) {
                Ok(n) => rest = &rest[n..],
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(error) => panic!("{error}"),
            }
        }
        whole - rest.len()
    }

    /// Sends for as long as the other side takes it within `patience`; says how many bytes.
    pub fn send_until_full(&mut self, patience: Duration) -> usize {
        on!(&self.socket, socket => socket.set_write_timeout(Some(patience)).unwrap());
        let block = [b'x'; 64 * 1024];
        let mut sent = 0;
        loop {
            match on!(&mut self.socket, socket => socket.write_vectored(&[IoSlice::new(&block)])) {
                Ok(n) => sent += n,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return sent,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Ends this direction together with these bytes: whoever sees one sees both.
    pub fn send_end(&mut self, bytes: impl AsRef<[u8]>) {
        let End::Tcp(socket) = &self.socket else { panic!("only TCP gathers") };
        SockRef::from(socket).set_tcp_cork(true).unwrap();
        self.send(bytes);
        self.half_close();
    }

    /// Ends this direction.
    pub fn half_close(&mut self) {
        on!(&self.socket, socket => socket.shutdown(Shutdown::Write).unwrap());
    }

    /// Leaves with a reset.
    pub fn reset(self) {
        if let End::Tcp(socket) = &self.socket {
            SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }

    /// Keeps the receive buffer small, so that little fits between us and the daemon.
    pub fn shrink(&self) {
        self.shrink_to(4096);
    }

    /// Keeps the receive buffer at this many bytes.
    pub fn shrink_to(&self, bytes: usize) {
        on!(&self.socket, socket => SockRef::from(socket).set_recv_buffer_size(bytes).unwrap());
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut block = [0; 64 * 1024];
        let n = on!(&mut self.socket, socket => socket.read(&mut block))?;
        self.input.extend_from_slice(&block[..n]);
        Ok(n)
    }

    #[track_caller]
    fn fill_some(&mut self) {
        let n = self.fill().unwrap_or_else(|error| panic!("{error} after {:?}", self.shown()));
        assert_ne!(n, 0, "the connection ended after {:?}", self.shown());
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.input[..self.input.len().min(512)]).into_owned()
    }

    /// Reads up to and including `mark`; returns what stood before it.
    #[track_caller]
    pub fn read_to(&mut self, mark: &[u8]) -> Vec<u8> {
        let mut from = 0;
        loop {
            if let Some(at) = self.input[from..].windows(mark.len()).position(|window| window == mark) {
                let before = self.input[..from + at].to_vec();
                self.input.drain(..from + at + mark.len());
                return before;
            }
            from = self.input.len().saturating_sub(mark.len() - 1);
            self.fill_some();
        }
    }

    /// Reads exactly `n` bytes.
    #[track_caller]
    pub fn read(&mut self, n: usize) -> Vec<u8> {
        while self.input.len() < n {
            self.fill_some();
        }
        self.input.drain(..n).collect()
    }

    /// Reads exactly `n` bytes, if so many come in time and before the connection is over.
    pub fn try_read(&mut self, n: usize) -> Option<Vec<u8>> {
        while self.input.len() < n {
            match self.fill() {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::WouldBlock) => {
                    return None;
                }
                Err(error) => panic!("{error} after {:?}", self.shown()),
            }
        }
        Some(self.input.drain(..n).collect())
    }

    /// Reads these very bytes.
    #[track_caller]
    pub fn expect(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        let read = self.read(bytes.len());
        assert_eq!(String::from_utf8_lossy(&read), String::from_utf8_lossy(bytes));
    }

    /// Reads to the end of the stream.
    #[track_caller]
    pub fn read_to_end(&mut self) -> Vec<u8> {
        while self.fill().unwrap_or_else(|error| panic!("{error} after {:?}", self.shown())) > 0 {}
        std::mem::take(&mut self.input)
    }

    /// Asserts that the stream ends here, in order.
    #[track_caller]
    pub fn expect_end(&mut self) {
        let rest = self.read_to_end();
        assert!(rest.is_empty(), "{:?} before the end", String::from_utf8_lossy(&rest));
    }

    /// Asserts that the connection is reset; returns what came before that.
    #[track_caller]
    pub fn expect_reset(&mut self) -> Vec<u8> {
        loop {
            match self.fill() {
                Ok(0) => panic!("an orderly end after {:?}", self.shown()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return std::mem::take(&mut self.input),
                Err(error) => panic!("{error} after {:?}", self.shown()),
            }
        }
    }

    /// Waits until the connection is over, by an end or by a reset; returns what came.
    #[track_caller]
    pub fn expect_gone(&mut self) -> Vec<u8> {
        loop {
            match self.fill() {
                Ok(0) => return std::mem::take(&mut self.input),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    return std::mem::take(&mut self.input);
                }
                Err(error) => panic!("{error} after {:?}", self.shown()),
            }
        }
    }

    /// Waits no longer than this for whatever is read from now on.
    pub fn patience(&self, patience: Duration) {
        on!(&self.socket, socket => socket.set_read_timeout(Some(patience)).unwrap());
    }

    /// Reads until the connection is over, or silent for `patience`; returns what came,
    /// and the kind of error unless it ended in order.
    pub fn read_until_over(&mut self, patience: Duration) -> (Vec<u8>, Option<ErrorKind>) {
        on!(&self.socket, socket => socket.set_read_timeout(Some(patience)).unwrap());
        let error = loop {
            match self.fill() {
                Ok(0) => break None,
                Ok(_) => {}
                Err(error) => break Some(error.kind()),
            }
        };
        on!(&self.socket, socket => socket.set_read_timeout(Some(DEADLINE)).unwrap());
        (std::mem::take(&mut self.input), error)
    }

    /// Asserts that nothing has come that was not read.
    #[track_caller]
    pub fn expect_silence(&mut self) {
        on!(&self.socket, socket => socket.set_nonblocking(true).unwrap());
        let outcome = self.fill();
        on!(&self.socket, socket => socket.set_nonblocking(false).unwrap());
        assert!(matches!(&outcome, Err(error) if error.kind() == ErrorKind::WouldBlock), "{outcome:?}");
        assert!(self.input.is_empty(), "{:?}", self.shown());
    }

    /// Reads a message head.
    #[track_caller]
    pub fn head(&mut self) -> Head {
        let text = self.read_to(b"\r\n\r\n");
        Head::parse(std::str::from_utf8(&text).unwrap())
    }

    /// Reads a message head, if the other side sends one before it leaves.
    pub fn try_head(&mut self) -> Option<Head> {
        while !self.input.windows(4).any(|window| window == b"\r\n\r\n") {
            if self.fill().unwrap_or(0) == 0 {
                return None;
            }
        }
        Some(self.head())
    }

    /// Reads one chunk of a chunked body; empty for the last one.
    #[track_caller]
    pub fn chunk(&mut self) -> Vec<u8> {
        let line = self.read_to(b"\r\n");
        let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap(), 16).unwrap();
        let data = self.read(size);
        self.expect("\r\n");
        data
    }

    /// Reads a whole chunked body.
    #[track_caller]
    pub fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let chunk = self.chunk();
            if chunk.is_empty() {
                return body;
            }
            body.extend_from_slice(&chunk);
        }
    }

    /// Reads bytes of a chunked body until there are `n`, however they are cut.
    #[track_caller]
    pub fn chunked(&mut self, n: usize) -> Vec<u8> {
        let mut body = Vec::new();
        while body.len() < n {
            body.extend_from_slice(&self.chunk());
        }
        assert_eq!(body.len(), n);
        body
    }

    fn stated_body(&mut self, head: &Head) -> Option<Vec<u8>> {
        match (head.field("Transfer-Encoding"), head.field("Content-Length")) {
            (Some("chunked"), None) => Some(self.chunks()),
            (None, Some(length)) => Some(self.read(length.parse().unwrap())),
            (None, None) => None,
            framing => panic!("ambiguous framing {framing:?}"),
        }
    }

    /// Reads a whole request.
    #[track_caller]
    pub fn request(&mut self) -> Message {
        let head = self.head();
        let body = self.stated_body(&head).unwrap_or_default();
        Message { head, body }
    }

    /// Reads a whole response to anything but HEAD.
    #[track_caller]
    pub fn response(&mut self) -> Message {
        let head = self.head();
        let body = match head.status() {
            204 | 304 => Vec::new(),
            _ => self.stated_body(&head).unwrap_or_else(|| self.read_to_end()),
        };
        Message { head, body }
    }

    /// Sends a GET without more than it needs.
    #[track_caller]
    pub fn get(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: door.test\r\n\r\n"));
    }

    /// Sends a request with a body of stated length.
    #[track_caller]
    pub fn send_body(&mut self, method: &str, path: &str, body: &[u8]) {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: door.test\r\nContent-Length: {}\r\n\r\n", body.len());
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.send(bytes);
    }

    /// Answers with a 200 of stated length.
    #[track_caller]
    pub fn answer(&mut self, body: &str) {
        self.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    }

    /// The same, as the last answer on this connection.
    #[track_caller]
    pub fn answer_last(&mut self, body: &str) {
        self.send(format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    }

    /// Lets `pause` go by, in which nothing may come from the other side.
    #[track_caller]
    pub fn pause(&mut self, pause: Duration) {
        assert!(!self.has_come(pause), "{:?}", self.shown());
    }

    /// Takes up to `n` bytes that have come and forgets them; says how many.
    pub fn sip(&mut self, n: usize) -> io::Result<usize> {
        let mut block = vec![0; n];
        on!(&mut self.socket, socket => socket.read(&mut block))
    }

    /// Waits for something to read, for `patience` at most.
    pub fn has_come(&mut self, patience: Duration) -> bool {
        on!(&self.socket, socket => socket.set_read_timeout(Some(patience)).unwrap());
        let outcome = self.fill();
        on!(&self.socket, socket => socket.set_read_timeout(Some(DEADLINE)).unwrap());
        match outcome {
            Ok(_) => true,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Bytes without a pattern that a proxy could get right by accident.
pub fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; n];
    random.fill(&mut bytes);
    bytes
}

/// Both messages' bytes are the same; large ones are not printed.
#[track_caller]
pub fn assert_same(left: &[u8], right: &[u8]) {
    let differ = left.iter().zip(right).position(|(a, b)| a != b);
    let mut found = String::new();
    if left.len() != right.len() || differ.is_some() {
        write!(found, "{} and {} bytes, which differ from {differ:?} on", left.len(), right.len()).unwrap();
    }
    assert!(found.is_empty(), "{found}");
}

//! A plain HTTP/1.1 client that tells apart the ways in which a request can fail.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// How long a client waits for the next byte before it calls the request stalled.
/// A pause of doorward's is judged by whether it ends, so the limit is generous: a test
/// reloads four times while an answer is held.
const PATIENCE: Duration = Duration::from_secs(50);

/// A head longer than this is no answer of doorward's.
const HEAD_LIMIT: usize = 64 * 1024;

/// Where a client connects to.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// An address in the network of the calling thread.
    Tcp(SocketAddr),
    /// A socket's path, as this process sees it.
    Unix(PathBuf),
    /// The same as [`Target::Tcp`], by TLS, for `localhost`.
    Tls(SocketAddr, Arc<ClientConfig>),
}

impl Target {
    /// The loopback address with `port`.
    pub(crate) fn local(port: u16) -> Target {
        Target::Tcp(SocketAddr::from(([127, 0, 0, 1], port)))
    }
}

/// Why a request got no whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nobody listens.
    Refused,
    /// The connection ended before the answer was whole; how, and after how many
    /// bytes of it.
    Reset(String),
    /// Nothing came for [`PATIENCE`].
    Stalled,
    /// Something that is no HTTP answer, or no way to connect.
    Other(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "request failed: {self:?}")
    }
}

impl std::error::Error for Failure {}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        match error.kind() {
            // A Unix socket's path is gone, or nobody listens on it.
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => Failure::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => {
                Failure::Reset(error.kind().to_string())
            }
            // A blocking socket's timeout reads as EAGAIN.
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Failure::Stalled,
            _ => Failure::Other(error.to_string()),
        }
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The status code.
    pub(crate) status: u16,
    /// The header fields, names in lower case.
    fields: Vec<(String, String)>,
    /// The body, after removal of its framing.
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The first value of a field; `name` in lower case.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether the connection may carry another request.
    pub(crate) fn keeps(&self) -> bool {
        !self.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// What a byte stream must do here.
trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One connection.
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    /// Bytes read beyond the last answer.
    rest: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub(crate) fn open(target: &Target) -> Result<Connection, Failure> {
        let stream: Box<dyn Stream> = match target {
            Target::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, PATIENCE)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
            Target::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
            Target::Tls(address, config) => {
                let stream = TcpStream::connect_timeout(address, PATIENCE)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                let name = ServerName::try_from("localhost").map_err(|error| Failure::Other(error.to_string()))?;
                let client = ClientConnection::new(Arc::clone(config), name);
                let client = client.map_err(|error| Failure::Other(error.to_string()))?;
                Box::new(StreamOwned::new(client, stream))
            }
        };
        Ok(Connection { stream, rest: Vec::new() })
    }

    /// Sends a request and reads its answer.
    pub(crate) fn get(&mut self, path: &str) -> Result<Answer, Failure> {
        self.send(path)?;
        self.receive()
    }

    /// Sends a request.
    pub(crate) fn send(&mut self, path: &str) -> Result<(), Failure> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.stream.write_all(request.as_bytes())?;
        Ok(self.stream.flush()?)
    }

    /// Reads an answer.
    pub(crate) fn receive(&mut self) -> Result<Answer, Failure> {
        let (status, fields, length) = loop {
            let mut slots = [httparse::EMPTY_HEADER; 100];
            let mut response = httparse::Response::new(&mut slots);
            let parsed = response.parse(&self.rest).map_err(|error| Failure::Other(format!("no HTTP: {error}")))?;
            if let httparse::Status::Complete(length) = parsed {
                let fields = response
                    .headers
                    .iter()
                    .map(|field| {
                        let value = String::from_utf8_lossy(field.value).into_owned();
                        (field.name.to_ascii_lowercase(), value)
                    })
                    .collect();
                break (response.code.unwrap_or(0), fields, length);
            }
            if self.rest.len() > HEAD_LIMIT {
                return Err(Failure::Other("a head without end".to_owned()));
            }
            self.more()?;
        };
        self.rest.drain(..length);
        let mut answer = Answer { status, fields, body: Vec::new() };
        if let Some(length) = answer.field("content-length") {
            let length = length.parse().map_err(|_| Failure::Other(format!("length {length}")))?;
            answer.body = self.take(length)?;
        } else if answer.field("transfer-encoding").is_some() {
            loop {
                let size = self.line()?;
                let size =
                    usize::from_str_radix(&size, 16).map_err(|_| Failure::Other(format!("chunk size {size}")))?;
                let chunk = self.take(size)?;
                answer.body.extend(chunk);
                self.line()?;
                if size == 0 {
                    break;
                }
            }
        } else {
            return Err(Failure::Other("an answer without a length".to_owned()));
        }
        Ok(answer)
    }

    /// Reads once.
    fn more(&mut self) -> Result<(), Failure> {
        let mut buffer = [0; 8192];
        let count = self.stream.read(&mut buffer).map_err(|error| match Failure::from(error) {
            Failure::Reset(how) => Failure::Reset(format!("{how}, {} read", self.rest.len())),
            other => other,
        })?;
        if count == 0 {
            return Err(Failure::Reset(format!("end, {} read", self.rest.len())));
        }
        self.rest.extend_from_slice(&buffer[..count]);
        Ok(())
    }

    /// Takes `count` bytes.
    fn take(&mut self, count: usize) -> Result<Vec<u8>, Failure> {
        while self.rest.len() < count {
            self.more()?;
        }
        Ok(self.rest.drain(..count).collect())
    }

    /// Takes a line, without its end.
    fn line(&mut self) -> Result<String, Failure> {
        loop {
            if let Some(end) = self.rest.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.take(end)?;
                self.take(2)?;
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            self.more()?;
        }
    }
}

/// One request on a connection of its own.
pub(crate) fn get(target: &Target, path: &str) -> Result<Answer> {
    Connection::open(target)
        .and_then(|mut connection| connection.get(path))
        .map_err(|failure| anyhow!("GET {path} from {target:?}: {failure}"))
}

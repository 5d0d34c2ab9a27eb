//! The daemon with a certificate, and clients that speak TLS.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};

use super::issued::{self, Authority};
use crate::daemon::{connect, listener};
use crate::traffic::door::{Daemon, Setup};

/// The name that the daemon has a certificate for.
pub const NAME: &str = "door.test";

/// A daemon in front of `backends`, with one listener for TLS.
pub struct Secured {
    pub daemon: Daemon,
    /// Where it listens for TLS.
    pub address: SocketAddr,
    pub client: Arc<ClientConfig>,
}

impl Secured {
    pub fn before(backends: &str, change: impl FnOnce(Setup) -> Setup) -> Secured {
        let authority = Authority::new();
        let setup = Setup::new();
        let folder = setup.path("tls");
        issued::write(&folder, "door", &authority.issue(&[NAME], 1, 90));
        let (socket, address) = listener();
        let setup = setup
            .listener("https", socket)
            .set("TLS_CERTIFICATE", folder.join("door.crt").display())
            .set("TLS_PRIVATE_KEY", folder.join("door.key").display())
            .set("BACKEND_ADDRESS", backends);
        Secured { daemon: change(setup).start(), address, client: Arc::new(authority.client()) }
    }

    /// A client that has made its handshake.
    pub fn connect(&self) -> Client {
        Client::over(connect(self.address), &self.client)
    }

    /// A count of its TLS handshakes.
    pub fn counted(&self, what: &str) -> u64 {
        self.daemon.status()["tls"][what].as_u64().unwrap()
    }

    /// Waits until so many handshakes have failed for this reason.
    pub fn wait_failed(&self, reason: &str, count: u64) {
        self.daemon.wait(&format!("{count} {reason}"), |status| status["tls"]["failed"][reason] == count);
    }
}

/// A client that speaks TLS.
pub struct Client(StreamOwned<ClientConnection, TcpStream>);

impl Client {
    /// A client that has made its handshake over this socket.
    pub fn over(socket: TcpStream, config: &Arc<ClientConfig>) -> Client {
        Client::try_over(socket, config).unwrap()
    }

    pub fn try_over(socket: TcpStream, config: &Arc<ClientConfig>) -> io::Result<Client> {
        let name = ServerName::try_from(NAME).unwrap();
        let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        // Who goes on may not be read again before it has written: a reset then shows here.
        Ok(Client(stream))
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).unwrap();
        self.0.flush().unwrap();
    }

    pub fn get(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\n\r\n"));
    }

    pub fn read(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn expect(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        let read = self.read(bytes.len());
        assert_eq!(String::from_utf8_lossy(&read), String::from_utf8_lossy(bytes));
    }

    /// All until the daemon ends its direction, and whether it said so.
    pub fn read_to_end(&mut self) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            Ok(_) => (bytes, true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => (bytes, false),
            Err(error) => panic!("{error}"),
        }
    }

    /// The head of the next message and its body, which has a length.
    pub fn response(&mut self) -> (String, Vec<u8>) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(self.read(1));
        }
        let head = String::from_utf8(head).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let body = self.read(length.unwrap_or("0").parse().unwrap());
        (head, body)
    }

    /// Ends our direction, and says so.
    pub fn end(&mut self) {
        self.0.conn.send_close_notify();
        self.0.flush().unwrap();
        self.0.sock.shutdown(Shutdown::Write).unwrap();
    }

    /// Ends our direction without a word.
    pub fn cut(&mut self) {
        self.0.flush().unwrap();
        self.0.sock.shutdown(Shutdown::Write).unwrap();
    }

    pub fn is_resumed(&self) -> bool {
        self.0.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    pub fn alpn(&self) -> Option<&[u8]> {
        self.0.conn.alpn_protocol()
    }
}

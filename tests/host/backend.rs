//! A backend in the test's own process and the guest's network.
//!
//! `/held` is answered in two halves: the head and half of the body at once, the
//! rest when the test says so. So an exchange is in flight for exactly as long as
//! the test wants, whatever the machine's speed. `/large` is answered with a MiB,
//! any other path with a line, at once.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;

use crate::host::Host;
use crate::wait::{SOON, wait_for};

/// The body of `/held`, sent in two halves.
pub(crate) const HELD: &str = "first half, second half\n";

/// The body of `/large`: a MiB of which no part is like another one of its size.
pub(crate) fn large() -> Vec<u8> {
    (0..1_u32 << 18).flat_map(u32::to_be_bytes).collect()
}

/// A held answer is let go after this at the latest, so that no thread stays.
const HELD_LIMIT: Duration = Duration::from_secs(60);

/// Where the held answers stand.
#[derive(Default)]
struct State {
    /// Answers whose first half has been sent.
    held: usize,
    /// Whether second halves may be sent.
    released: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A running backend.
pub(crate) struct Backend {
    shared: Arc<Shared>,
    listener: OwnedFd,
    acceptor: Option<JoinHandle<()>>,
    /// The port on the guest's loopback; 0 on a Unix socket.
    pub(crate) port: u16,
}

impl Backend {
    /// Listens on a free port of the guest's loopback.
    pub(crate) fn tcp(host: &Host) -> Result<Backend> {
        let listener = host.in_network(|| Ok(TcpListener::bind("127.0.0.1:0")?))?;
        let port = listener.local_addr()?.port();
        let own = OwnedFd::from(listener.try_clone()?);
        Ok(Backend::serve(own, port, move || listener.accept().map(|(stream, _)| Peer::Tcp(stream))))
    }

    /// Listens on a Unix socket at `path`, as this process sees it.
    pub(crate) fn unix(path: &Path) -> Result<Backend> {
        let listener = UnixListener::bind(path)?;
        let own = OwnedFd::from(listener.try_clone()?);
        Ok(Backend::serve(own, 0, move || listener.accept().map(|(stream, _)| Peer::Unix(stream))))
    }

    fn serve(listener: OwnedFd, port: u16, accept: impl Fn() -> std::io::Result<Peer> + Send + 'static) -> Backend {
        let shared = Arc::new(Shared::default());
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            // Ends when the listener is shut down.
            move || {
                while let Ok(peer) = accept() {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || answer(peer, &shared));
                }
            }
        });
        Backend { shared, listener, acceptor: Some(acceptor), port }
    }

    /// Waits until `count` answers are half sent.
    pub(crate) fn holds(&self, count: usize) -> Result<()> {
        wait_for("held answers", SOON, || {
            let state = self.shared.state.lock();
            Ok(state.unwrap_or_else(PoisonError::into_inner).held >= count)
        })
    }

    /// Lets the held answers finish, those to come too.
    pub(crate) fn release(&self) {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner).released = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.release();
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// An accepted connection.
enum Peer {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Read for Peer {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Peer::Tcp(stream) => stream.read(buffer),
            Peer::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Peer {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        match self {
            Peer::Tcp(stream) => stream.write(buffer),
            Peer::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Answers the requests of one connection, which have no body.
fn answer(mut peer: Peer, shared: &Shared) {
    let mut buffer = Vec::new();
    while let Ok(Some(path)) = request(&mut peer, &mut buffer) {
        let sent = match path.as_str() {
            "/held" => held(&mut peer, shared),
            "/large" => whole(&mut peer, &large()),
            path => whole(&mut peer, format!("backend saw {path}\n").as_bytes()),
        };
        if sent.is_err() {
            break;
        }
    }
    let _ = match &peer {
        Peer::Tcp(stream) => stream.shutdown(Shutdown::Both),
        Peer::Unix(stream) => stream.shutdown(Shutdown::Both),
    };
}

/// Reads a request's head and returns its path; `None` at the connection's end.
fn request(peer: &mut Peer, buffer: &mut Vec<u8>) -> std::io::Result<Option<String>> {
    loop {
        let end = buffer.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            let head: Vec<u8> = buffer.drain(..end + 4).collect();
            let head = String::from_utf8_lossy(&head).into_owned();
            return Ok(head.split(' ').nth(1).map(str::to_owned));
        }
        let mut chunk = [0; 4096];
        let count = peer.read(&mut chunk)?;
        if count == 0 {
            return Ok(None);
        }
        buffer.extend_from_slice(&chunk[..count]);
        if buffer.len() > 64 * 1024 {
            return Err(ErrorKind::InvalidData.into());
        }
    }
}

/// Sends a body at once.
fn whole(peer: &mut Peer, body: &[u8]) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    peer.write_all(&[head.as_bytes(), body].concat())
}

/// Sends [`HELD`] in two halves.
fn held(peer: &mut Peer, shared: &Shared) -> std::io::Result<()> {
    let (first, second) = HELD.split_at(HELD.len() / 2);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", HELD.len());
    peer.write_all((head + first).as_bytes())?;
    let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    state.held += 1;
    drop(shared.changed.wait_timeout_while(state, HELD_LIMIT, |state| !state.released));
    peer.write_all(second.as_bytes())
}

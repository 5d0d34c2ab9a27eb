//! Backends that do as a test says, and addresses that take nobody in.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::daemon::DEADLINE;
use crate::peer::{Head, Message, Peer};

/// A backend that takes connections when the test says so.
pub struct Backend {
    socket: Door,
    /// As `BACKEND_ADDRESS` has it.
    pub address: String,
}

enum Door {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Backend {
    /// On 127.0.0.1, at a port of the kernel's choice.
    pub fn new() -> Self {
        Self::at("127.0.0.1:0")
    }

    /// At another address.
    pub fn at(address: &str) -> Self {
        let socket = TcpListener::bind(address).unwrap();
        let address = socket.local_addr().unwrap().to_string();
        // On Linux the limit holds for `accept` too.
        SockRef::from(&socket).set_read_timeout(Some(DEADLINE)).unwrap();
        Self { socket: Door::Tcp(socket), address }
    }

    /// On a Unix socket.
    pub fn unix(path: PathBuf) -> Self {
        let socket = UnixListener::bind(&path).unwrap();
        SockRef::from(&socket).set_read_timeout(Some(DEADLINE)).unwrap();
        Self { socket: Door::Unix(socket), address: format!("unix:{}", path.display()) }
    }

    /// The next connection of the daemon's.
    #[track_caller]
    pub fn accept(&self) -> Peer {
        match &self.socket {
            Door::Tcp(socket) => Peer::tcp(socket.accept().expect("a connection").0),
            Door::Unix(socket) => Peer::unix(socket.accept().expect("a connection").0),
        }
    }

    /// The next connection and the request on it.
    #[track_caller]
    pub fn take(&self) -> (Peer, Message) {
        let mut peer = self.accept();
        let request = peer.request();
        (peer, request)
    }

    /// Asserts that no further connection was made. What the daemon has answered it has
    /// dialled for before, so nothing is on its way.
    #[track_caller]
    pub fn expect_none(&self) {
        let taken = match &self.socket {
            Door::Tcp(socket) => {
                socket.set_nonblocking(true).unwrap();
                let outcome = socket.accept().map(drop);
                socket.set_nonblocking(false).unwrap();
                outcome
            }
            Door::Unix(socket) => {
                socket.set_nonblocking(true).unwrap();
                let outcome = socket.accept().map(drop);
                socket.set_nonblocking(false).unwrap();
                outcome
            }
        };
        assert!(matches!(&taken, Err(error) if error.kind() == ErrorKind::WouldBlock), "one more connection");
    }
}

/// An address where connections are refused for as long as the value lives: bound, so
/// that nobody else gets the port, and not listening.
pub struct Refusing {
    socket: Socket,
    /// As `BACKEND_ADDRESS` has it.
    pub address: String,
}

impl Refusing {
    /// On 127.0.0.1.
    pub fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap().to_string();
        Self { socket, address }
    }

    /// Takes connections from now on.
    pub fn open(self) -> Backend {
        let address = self.address.clone();
        let socket = self.listen();
        SockRef::from(&socket).set_read_timeout(Some(DEADLINE)).unwrap();
        Backend { socket: Door::Tcp(socket), address }
    }

    /// The same, as a socket for whoever serves it.
    pub fn listen(self) -> TcpListener {
        self.socket.listen(128).unwrap();
        self.socket.into()
    }
}

/// An address where connections neither stand nor fail: its backlog is full.
pub struct Silent {
    _socket: Socket,
    _waiting: Vec<TcpStream>,
    /// As `BACKEND_ADDRESS` has it.
    pub address: String,
}

impl Silent {
    /// On 127.0.0.1.
    pub fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let mut waiting = Vec::new();
        while let Ok(one) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            waiting.push(one);
            assert!(waiting.len() < 64, "the backlog never fills");
        }
        Self { _socket: socket, _waiting: waiting, address: address.to_string() }
    }
}

/// How a [`Moody`] backend treats requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// It answers with this status.
    Answers(u16),
    /// It resets the connection.
    Resets,
    /// It says nothing, and keeps the connection.
    Hangs,
    /// It answers with 200 after so many milliseconds.
    Lags(u64),
    /// It answers with 200 and with 500 in turn.
    Flaps,
}

/// A backend that serves by itself, each request by its mood at that moment.
pub struct Moody {
    /// As `BACKEND_ADDRESS` has it.
    pub address: String,
    shared: Arc<Shared>,
}

struct Shared {
    /// For requests, and for those of [`CHECKED`].
    moods: Mutex<(Mood, Mood)>,
    asked: AtomicUsize,
    flaps: AtomicBool,
    checks: Mutex<Vec<Head>>,
    more: Condvar,
}

/// The path that health checks ask for.
pub const CHECKED: &str = "/health";

impl Moody {
    /// One that answers everything with 200.
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            moods: Mutex::new((Mood::Answers(200), Mood::Answers(200))),
            asked: AtomicUsize::new(0),
            flaps: AtomicBool::new(false),
            checks: Mutex::default(),
            more: Condvar::new(),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || serve(Peer::tcp(socket), &shared));
            }
        });
        Self { address, shared }
    }

    /// Treats requests so from now on.
    pub fn set(&self, mood: Mood) {
        self.shared.moods.lock().unwrap().0 = mood;
    }

    /// Treats checks so from now on.
    pub fn set_checks(&self, mood: Mood) {
        self.shared.moods.lock().unwrap().1 = mood;
    }

    /// Requests that have come so far, without checks.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// Waits until `count` checks more have come; the last one.
    pub fn next_checks(&self, count: usize) -> Head {
        let checks = self.shared.checks.lock().unwrap();
        let wanted = checks.len() + count;
        let (checks, late) =
            self.shared.more.wait_timeout_while(checks, DEADLINE, |checks| checks.len() < wanted).unwrap();
        assert!(!late.timed_out(), "{} of {wanted} checks have come", checks.len());
        checks.last().unwrap().clone()
    }

    /// Checks that have come so far.
    pub fn checks(&self) -> usize {
        self.shared.checks.lock().unwrap().len()
    }
}

fn serve(mut peer: Peer, shared: &Shared) {
    while let Some(head) = peer.try_head() {
        let is_check = head.line.starts_with(&format!("GET {CHECKED} "));
        let (mood, check_mood) = *shared.moods.lock().unwrap();
        let mood = if is_check { check_mood } else { mood };
        if is_check {
            shared.checks.lock().unwrap().push(head);
            shared.more.notify_all();
        } else {
            shared.asked.fetch_add(1, Ordering::SeqCst);
        }
        match mood {
            Mood::Resets => return peer.reset(),
            Mood::Hangs => {
                peer.expect_gone();
                return;
            }
            Mood::Answers(status) => answer(&mut peer, status),
            Mood::Lags(millis) => {
                peer.pause(Duration::from_millis(millis));
                answer(&mut peer, 200);
            }
            Mood::Flaps => {
                let even = shared.flaps.fetch_xor(true, Ordering::SeqCst);
                answer(&mut peer, if even { 200 } else { 500 });
            }
        }
    }
}

fn answer(peer: &mut Peer, status: u16) {
    // Whoever asked may have gone meanwhile.
    let _ = peer.try_send(format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nok"));
}

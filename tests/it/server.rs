//! Backends that answer by themselves and count.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use crate::daemon::DEADLINE;

/// A backend that answers every request with its name, on connections that it keeps. It
/// goes on to its end, so that those who know it can still be answered.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    counts: Arc<(Mutex<Counts>, Condvar)>,
}

/// What it has seen.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    /// Connections in all.
    pub connections: usize,
    /// Connections open now.
    pub open: usize,
    /// The most that were open together.
    pub most: usize,
    /// Requests in all.
    pub requests: usize,
}

impl Server {
    /// On 127.0.0.1 at a port of the kernel's choice.
    pub fn new(name: &'static str) -> Server {
        Server::on(TcpListener::bind("127.0.0.1:0").unwrap(), name, "")
    }

    /// On a socket, with further fields in each answer.
    pub fn on(listener: TcpListener, name: &'static str, fields: &'static str) -> Server {
        let address = listener.local_addr().unwrap();
        let server = Server { address, counts: Arc::default() };
        let counts = Arc::clone(&server.counts);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, counts) = (stream.unwrap(), Arc::clone(&counts));
                note(&counts, |counts| {
                    counts.connections += 1;
                    counts.open += 1;
                    counts.most = counts.most.max(counts.open);
                });
                std::thread::spawn(move || {
                    serve(stream, name, fields, &counts);
                    note(&counts, |counts| counts.open -= 1);
                });
            }
        });
        server
    }

    /// Several at one port, each at its own address of 127.0.0.0/8.
    pub fn neighbours<const N: usize>(named: [(&str, &'static str); N]) -> [Server; N] {
        for _ in 0..64 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let bound = named.map(|(ip, name)| Some((TcpListener::bind((ip, port)).ok()?, name)));
            if bound.iter().all(Option::is_some) {
                return bound.map(|bound| {
                    let (listener, name) = bound.unwrap();
                    Server::on(listener, name, "")
                });
            }
        }
        panic!("no port is free at all of these addresses");
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What it has seen so far.
    pub fn counts(&self) -> Counts {
        *self.counts.0.lock().unwrap()
    }

    /// Waits until what it has seen is as wanted.
    #[track_caller]
    pub fn wait(&self, what: &str, wanted: impl Fn(&Counts) -> bool) {
        let (counts, more) = &*self.counts;
        let until = Instant::now() + DEADLINE;
        let mut counts = counts.lock().unwrap();
        while !wanted(&counts) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never came true: {what}: {counts:?}");
            counts = more.wait_timeout(counts, left).unwrap().0;
        }
    }
}

fn note(counts: &(Mutex<Counts>, Condvar), change: impl FnOnce(&mut Counts)) {
    change(&mut counts.0.lock().unwrap());
    counts.1.notify_all();
}

fn serve(stream: TcpStream, name: &str, fields: &str, counts: &(Mutex<Counts>, Condvar)) {
    let mut writer = stream.try_clone().unwrap();
    let mut lines = BufReader::new(stream).lines();
    let mut length = 0;
    // Requests without a body: a head ends with an empty line.
    while let Some(Ok(line)) = lines.next() {
        length += line.len();
        if !line.is_empty() {
            continue;
        }
        assert!(length > 0);
        length = 0;
        note(counts, |counts| counts.requests += 1);
        let answer = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n{name}", name.len());
        if writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

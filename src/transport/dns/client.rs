//! Client: a question to the name servers, over UDP, and over TCP where it does not fit.
//!
//! Each question goes out from a socket of its own, so from a port that the kernel
//! chose at random, with a random number, and only the server that was asked is heard:
//! what somebody else sends blindly is not taken for an answer (RFC 5452).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::message::{Answer, Kind, Record, UDP_MOST, Unreadable, answer, question};

/// Who is asked, and how patiently.
#[derive(Debug, Clone)]
pub struct Client {
    servers: Vec<SocketAddr>,
    /// How long one server is waited for.
    patience: Duration,
    /// How often all are asked before they are given up.
    rounds: u32,
    /// The server that answered last: asked first, so that a dead one costs time once.
    good: Arc<AtomicUsize>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The name does not exist.
    #[error("no such name")]
    NoName,
    /// The server can't or won't tell.
    #[error("name server {server} answered with {}", name_of(*code))]
    Failed {
        /// Who.
        server: SocketAddr,
        /// The code of its answer.
        code: u8,
    },
    /// It said nothing in time.
    #[error("name server {0} does not answer")]
    Silent(SocketAddr),
    /// It can't be reached.
    #[error("name server {0} can't be reached: {1}")]
    Unreachable(SocketAddr, String),
    /// What it said is no answer.
    #[error("name server {0}: {1}")]
    Unreadable(SocketAddr, Unreadable),
    /// There is nobody to ask.
    #[error("no name server is known")]
    Nobody,
}

/// Codes of answers. Source: RFC 1035 §4.1.1.
fn name_of(code: u8) -> String {
    match code {
        1 => String::from("FORMERR"),
        2 => String::from("SERVFAIL"),
        4 => String::from("NOTIMP"),
        5 => String::from("REFUSED"),
        other => format!("code {other}"),
    }
}

impl Client {
    /// A client of these servers, in this order; `good` remembers, from one client to the
    /// next, the place of the one that answered last.
    #[must_use]
    pub fn new(servers: Vec<SocketAddr>, patience: Duration, rounds: u32, good: Arc<AtomicUsize>) -> Self {
        Self { servers, patience, rounds, good }
    }

    /// The records of `name`, perhaps none, and the seconds that they hold.
    ///
    /// # Errors
    /// [`Fault::NoName`] is an answer; everything else says why the last server gave none.
    pub async fn ask(&self, name: &str, kind: Kind) -> Result<(Vec<Record>, u32), Fault> {
        let mut fault = Fault::Nobody;
        let first = self.good.load(Ordering::Relaxed);
        for _ in 0..self.rounds {
            for step in 0..self.servers.len() {
                let place = (first + step) % self.servers.len();
                let Some(&server) = self.servers.get(place) else { continue };
                match self.exchange(server, name, kind).await {
                    Ok(Answer::Records { records, lifetime }) => {
                        self.good.store(place, Ordering::Relaxed);
                        return Ok((records, lifetime));
                    }
                    Ok(Answer::NoName) => {
                        self.good.store(place, Ordering::Relaxed);
                        return Err(Fault::NoName);
                    }
                    Ok(Answer::Failed(code)) => fault = Fault::Failed { server, code },
                    Ok(Answer::Truncated) => fault = Fault::Unreadable(server, Unreadable::Malformed),
                    Err(failed) => fault = failed,
                }
            }
        }
        Err(fault)
    }

    async fn exchange(&self, server: SocketAddr, name: &str, kind: Kind) -> Result<Answer, Fault> {
        let id = random();
        // What can't be a name is none.
        let message = question(id, name, kind).ok_or(Fault::NoName)?;
        let read = |bytes: &[u8]| answer(bytes, id, name, kind);
        match within(self.patience, server, over_udp(server, &message, &read)).await? {
            Answer::Truncated => within(self.patience, server, over_tcp(server, &message, &read)).await,
            answer => Ok(answer),
        }
    }
}

/// Why one way of asking came to nothing.
enum Trouble {
    Io(io::Error),
    Unreadable(Unreadable),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

async fn within(
    patience: Duration,
    server: SocketAddr,
    asking: impl Future<Output = Result<Answer, Trouble>>,
) -> Result<Answer, Fault> {
    match timeout(patience, asking).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(Trouble::Io(error))) => Err(Fault::Unreachable(server, error.to_string())),
        Ok(Err(Trouble::Unreadable(why))) => Err(Fault::Unreadable(server, why)),
        Err(_) => Err(Fault::Silent(server)),
    }
}

async fn over_udp(
    server: SocketAddr,
    message: &[u8],
    read: &impl Fn(&[u8]) -> Result<Answer, Unreadable>,
) -> Result<Answer, Trouble> {
    let any = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    socket.send(message).await?;
    let mut bytes = vec![0; usize::from(UDP_MOST)];
    loop {
        let length = socket.recv(&mut bytes).await?;
        match read(bytes.get(..length).unwrap_or_default()) {
            // An old answer, or somebody's guess: the real one may still come.
            Err(Unreadable::Stray) => {}
            Err(why) => return Err(Trouble::Unreadable(why)),
            Ok(answer) => return Ok(answer),
        }
    }
}

async fn over_tcp(
    server: SocketAddr,
    message: &[u8],
    read: &impl Fn(&[u8]) -> Result<Answer, Unreadable>,
) -> Result<Answer, Trouble> {
    let mut stream = TcpStream::connect(server).await?;
    // A length before each message (RFC 1035 §4.2.2); in one write, since some servers
    // want it so.
    let mut framed = u16::try_from(message.len()).unwrap_or(0).to_be_bytes().to_vec();
    framed.extend(message);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    read(&bytes).map_err(Trouble::Unreadable)
}

fn random() -> u16 {
    let mut bytes = [0; 2];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(2) => u16::from_ne_bytes(bytes),
        // A kernel that has none yet; the port is random all the same.
        _ => fastrand::u16(..),
    }
}

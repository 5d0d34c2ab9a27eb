//! Listening sockets: taken from the service manager by name, or bound here.
//!
//! systemd holds the door: its sockets outlive the daemon, so a restart refuses
//! nobody. Descriptors are told apart by `FileDescriptorName=` alone, since one
//! socket unit gives all its descriptors one name and their order differs between
//! releases of systemd. Without any passed socket the daemon binds for itself.
//!
//! Options are set on the listening socket wherever the kernel lets accepted
//! sockets inherit them (`TCP_NODELAY`, keepalive), which saves a system call or
//! four for each connection. Every fault found is reported, not only the first,
//! and nothing is left half-started: an error gives back all that was opened.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use crate::config::ListenAddress;

mod bind;
mod passed;

pub use bind::{Bound, SocketFile, admin_path, bind, bind_admin, bind_metrics};
pub use passed::{Left, Passed, passed};

/// The name of a listener for plain traffic, and of the sockets of `PROXY_ADDRESS`.
pub const HTTP: &str = "http";

/// The name of a listener for TLS, and of the sockets of `PROXY_TLS_ADDRESS`.
pub const HTTPS: &str = "https";

/// The name of the admin socket's descriptor.
pub const ADMIN: &str = "admin";

/// The name of the descriptors of metrics, and of the sockets of `METRICS_ADDRESS`.
pub const METRICS: &str = "metrics";

/// The name of a descriptor on which nobody listens: what an earlier process has left of the
/// keys of session tickets.
pub const TICKET_KEYS: &str = "ticket-keys";

/// What the names begin with of sockets that the process before this one has bound for itself,
/// in an upgrade.
const BOUND: &str = "doorward-bound-";

/// The name of the line to that process.
pub const HAND_OVER: &str = "doorward-hand-over";

/// A listening socket and the name that routes match on.
#[derive(Debug)]
pub struct Listener {
    /// `FileDescriptorName=` of the socket unit, or [`HTTP`] or [`HTTPS`].
    pub name: Arc<str>,
    /// The socket itself: non-blocking, closed on exec.
    pub socket: Socket,
}

/// The two kinds of socket that traffic may arrive on.
#[derive(Debug)]
pub enum Socket {
    /// TCP over IPv4 or IPv6.
    Tcp(TcpListener),
    /// A Unix stream socket.
    Unix(UnixListener),
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> OwnedFd {
        match socket {
            Socket::Tcp(socket) => socket.into(),
            Socket::Unix(socket) => socket.into(),
        }
    }
}

/// Why the daemon can't listen. Each variant holds one sentence for each fault.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Passed descriptors are not what their names promise.
    #[error("{}", .0.join("\n"))]
    Passed(Vec<String>),
    /// Addresses that can't be bound.
    #[error("{}", .0.join("\n"))]
    Bind(Vec<String>),
}

impl Listener {
    /// A second handle on the same socket, with the same queue of connections.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn try_clone(&self) -> io::Result<Listener> {
        let socket = match &self.socket {
            Socket::Tcp(socket) => Socket::Tcp(socket.try_clone()?),
            Socket::Unix(socket) => Socket::Unix(socket.try_clone()?),
        };
        Ok(Listener { name: Arc::clone(&self.name), socket })
    }

    /// Whether clients speak TLS here.
    pub fn is_tls(&self) -> bool {
        &*self.name == HTTPS
    }

    /// Where it listens, in the notation of `PROXY_ADDRESS`; an abstract Unix
    /// address begins with `@`.
    pub fn local(&self) -> String {
        match &self.socket {
            Socket::Tcp(socket) => match socket.local_addr() {
                Ok(address) => address.to_string(),
                Err(error) => format!("unknown ({error})"),
            },
            Socket::Unix(socket) => match socket.local_addr() {
                Ok(address) => match (address.as_pathname(), address.as_abstract_name()) {
                    (Some(path), _) => format!("unix:{}", path.display()),
                    (None, Some(name)) => format!("unix:@{}", String::from_utf8_lossy(name)),
                    (None, None) => String::from("unix:"),
                },
                Err(error) => format!("unknown ({error})"),
            },
        }
    }

    /// Whether binding `address` by this name would have led to it.
    fn is(&self, name: &str, address: &ListenAddress) -> bool {
        let at = match (self.address(), address) {
            (Some(ListenAddress::Tcp(real)), ListenAddress::Tcp(wanted)) => {
                real.ip() == wanted.ip() && (real.port() == wanted.port() || wanted.port() == 0)
            }
            (real, wanted) => real.as_ref() == Some(wanted),
        };
        at && &*self.name == name
    }

    fn address(&self) -> Option<ListenAddress> {
        match &self.socket {
            Socket::Tcp(socket) => socket.local_addr().ok().map(ListenAddress::Tcp),
            Socket::Unix(socket) => {
                let path = socket.local_addr().ok()?.as_pathname()?.to_path_buf();
                Some(ListenAddress::Unix(path))
            }
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.local(), self.name)
    }
}

/// The name to pass a socket by that was bound here as `name`.
pub fn bound_as(name: &str) -> String {
    format!("{BOUND}{name}")
}

/// True when the passed sockets, for TLS or not, are other ones than `addresses` asks for.
pub fn differ(passed: &[Listener], addresses: &[ListenAddress], tls: bool) -> bool {
    let passed = || passed.iter().filter(|listener| listener.is_tls() == tls);
    let real: Vec<ListenAddress> = passed().filter_map(Listener::address).collect();
    real.len() != passed().count()
        || real.iter().any(|address| !addresses.contains(address))
        || addresses.iter().any(|address| !real.contains(address))
}

/// Options that accepted sockets inherit: no delay for small writes, and the dead
/// found after two minutes (60 s idle, then 6 probes of 10 s).
fn inherit(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10)).with_retries(6);
    socket.set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use super::*;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn passed_sockets_are_compared_with_the_configured_addresses() -> TestResult {
        let bound = bind(&[ListenAddress::Tcp("127.0.0.1:0".parse()?)], &[], &mut Vec::new())?;
        let Socket::Tcp(listener) = &bound.listeners[0].socket else {
            return Err("not TCP".into());
        };
        let same = ListenAddress::Tcp(listener.local_addr()?);
        let other = ListenAddress::Unix("/nowhere".into());
        assert!(!differ(&bound.listeners, std::slice::from_ref(&same), false));
        assert!(differ(&bound.listeners, std::slice::from_ref(&same), true), "they are not for TLS");
        assert!(!differ(&bound.listeners, &[], true));
        assert!(differ(&bound.listeners, &[same, other], false));
        assert!(differ(&bound.listeners, &[], false));
        Ok(())
    }
}

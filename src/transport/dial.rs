//! Dial: a connection to a backend, or whose fault it is that there is none.
//!
//! Never resolves a name: the caller brings an address. Never blocks: `connect(2)` is
//! awaited. What fails is told apart by who must act on it, because our own shortages
//! (descriptors, ports) must never count against a backend.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::stream::{Family, Socket, Stream};

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Nobody listens there, or its backlog is full.
    #[error("refused")]
    Refused,
    /// The kernel gave up waiting.
    #[error("timed out")]
    TimedOut,
    /// There is no way to the address.
    #[error("unreachable")]
    Unreachable,
    /// We have no descriptor or memory left: `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`, or
    /// `ENOSPC`, which is the limit of epoll watches.
    #[error("out of descriptors")]
    OutOfDescriptors,
    /// We have no local port left: `EADDRNOTAVAIL`.
    #[error("out of ports")]
    OutOfPorts,
}

/// Connects over TCP, with `TCP_NODELAY`.
///
/// # Errors
/// See [`DialError`].
pub async fn tcp(address: SocketAddr) -> Result<Stream, DialError> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    connect(family, Family::Tcp, &address.into()).await.map_err(|error| sort(&error))
}

/// Connects to a Unix stream socket.
///
/// # Errors
/// See [`DialError`].
pub async fn unix(path: &Path) -> Result<Stream, DialError> {
    let connected = async { connect(AddressFamily::UNIX, Family::Unix, &SocketAddrUnix::new(path)?.into()).await };
    connected.await.map_err(|error| sort(&error))
}

async fn connect(domain: AddressFamily, family: Family, address: &SocketAddrAny) -> io::Result<Stream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(domain, SocketType::STREAM, flags, None)?;
    if family == Family::Tcp {
        // A socket that can't have it is slower, not wrong.
        let _ = sockopt::set_tcp_nodelay(&socket, true);
    }
    let pending = match rustix::net::connect(&socket, address) {
        Ok(()) => false,
        // A signal does not interrupt the attempt, only the call.
        Err(Errno::INPROGRESS | Errno::INTR) => true,
        Err(error) => return Err(error.into()),
    };
    let stream = Stream::from(Socket::new(socket, family));
    if pending {
        poll_fn(|cx| stream.poll_connected(cx)).await?;
    }
    Ok(stream)
}

/// Whether an error says that this process or host has run out of something.
#[must_use]
pub fn is_shortage(error: &io::Error) -> bool {
    sort(error) == DialError::OutOfDescriptors
}

fn sort(error: &io::Error) -> DialError {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::NOSPC) => DialError::OutOfDescriptors,
        Some(Errno::ADDRNOTAVAIL) => DialError::OutOfPorts,
        Some(Errno::TIMEDOUT) => DialError::TimedOut,
        Some(Errno::CONNREFUSED | Errno::CONNRESET | Errno::NOENT | Errno::AGAIN) => DialError::Refused,
        _ => DialError::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::{DialError, is_shortage, sort, tcp, unix};
    use rustix::io::Errno;
    use socket2::SockRef;
    use std::io;
    use std::path::Path;

    #[tokio::test]
    async fn nobody_listening_is_a_refusal() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(tcp(address).await.is_ok());
        drop(listener);
        assert_eq!(tcp(address).await.unwrap_err(), DialError::Refused);
        assert_eq!(unix(Path::new("/nonexistent/socket")).await.unwrap_err(), DialError::Refused);
    }

    /// Small writes go out at once, and the kernel sizes the receive buffer as it sees fit:
    /// one that was set is never grown (tcp(7)).
    #[tokio::test]
    async fn a_dialled_socket_does_not_gather_and_has_a_buffer_that_grows() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let dialled = tcp(address).await.unwrap();
        let plain = std::net::TcpStream::connect(address).unwrap();
        let plain = SockRef::from(&plain);
        assert!(!plain.tcp_nodelay().unwrap());
        dialled
            .with(|fd| {
                let dialled = SockRef::from(&fd);
                assert!(dialled.tcp_nodelay()?);
                assert_eq!(dialled.recv_buffer_size()?, plain.recv_buffer_size()?);
                assert_eq!(dialled.send_buffer_size()?, plain.send_buffer_size()?);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn our_own_shortages_are_told_from_the_backends_failures() {
        let error = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        assert!(is_shortage(&error(Errno::MFILE)));
        assert_eq!(sort(&error(Errno::ADDRNOTAVAIL)), DialError::OutOfPorts);
        assert_eq!(sort(&error(Errno::HOSTUNREACH)), DialError::Unreachable);
        assert!(!is_shortage(&error(Errno::CONNREFUSED)));
    }
}

//! Dial: a connection to a backend, or whose fault it is that there is none.
//!
//! Never resolves a name: the caller brings an address. Never blocks: `connect(2)` is
//! awaited. What fails is told apart by who must act on it, because our own shortages
//! (descriptors, ports) must never count against a backend.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

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
    /// We have no local port left, or no local address for this family: `EADDRNOTAVAIL`.
    #[error("out of ports")]
    OutOfPorts,
}

impl DialError {
    /// Whether it is our shortage, not the backend's failure.
    #[must_use]
    pub fn is_ours(self) -> bool {
        matches!(self, Self::OutOfDescriptors | Self::OutOfPorts)
    }
}

/// Connects over TCP, with `TCP_NODELAY`.
///
/// # Errors
/// See [`DialError`].
pub async fn tcp(address: SocketAddr) -> Result<Stream, DialError> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    connect(family, Family::Tcp, &address.into()).await.map_err(|error| sort(&error))
}

/// How long the first of two ways is waited for before the second is tried beside it.
///
/// Source: RFC 8305 §5, "Connection Attempt Delay".
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects over TCP by the better of two ways; says which one that was. The second is
/// tried as soon as the first fails, or beside it once that has had its head start.
///
/// # Errors
/// When both fail, the first way's, unless only the second's tells of a shortage or of more
/// than that no address of ours fits; without a descriptor, at once.
pub async fn either(first: SocketAddr, second: SocketAddr) -> Result<(Stream, SocketAddr), DialError> {
    race(first, second, tcp).await
}

async fn race<S, F: Future<Output = Result<S, DialError>>>(
    first: SocketAddr,
    second: SocketAddr,
    dial: impl Fn(SocketAddr) -> F,
) -> Result<(S, SocketAddr), DialError> {
    let mut one = pin!(dial(first));
    tokio::select! {
        biased;
        outcome = &mut one => match outcome {
            Ok(stream) => return Ok((stream, first)),
            Err(DialError::OutOfDescriptors) => return Err(DialError::OutOfDescriptors),
            Err(error) => return dial(second).await.map(|stream| (stream, second)).map_err(|last| both(error, last)),
        },
        () = tokio::time::sleep(HEAD_START) => {}
    }
    let mut other = pin!(dial(second));
    tokio::select! {
        biased;
        outcome = &mut one => match outcome {
            Ok(stream) => Ok((stream, first)),
            Err(error) => other.await.map(|stream| (stream, second)).map_err(|last| both(error, last)),
        },
        outcome = &mut other => match outcome {
            Ok(stream) => Ok((stream, second)),
            Err(last) => one.await.map(|stream| (stream, first)).map_err(|error| both(error, last)),
        },
    }
}

/// The error to report for two: a shortage of ours must not look like the backend's fault.
/// That there is no local address for a way is one only if it holds for both: where a
/// family is switched off, it holds for all ways of that family.
fn both(first: DialError, second: DialError) -> DialError {
    match (first, second) {
        (_, DialError::OutOfDescriptors) | (DialError::OutOfPorts, _) => second,
        _ => first,
    }
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
    use super::{DialError, HEAD_START, either, is_shortage, race, sort, tcp, unix};
    use rustix::io::Errno;
    use socket2::{Domain, SockRef, Socket, Type};
    use std::io;
    use std::net::SocketAddr;
    use std::path::Path;
    use std::time::Duration;

    #[tokio::test]
    async fn nobody_listening_is_a_refusal() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(tcp(address).await.is_ok());
        drop(listener);
        assert_eq!(tcp(address).await.unwrap_err(), DialError::Refused);
        assert_eq!(unix(Path::new("/nonexistent/socket")).await.unwrap_err(), DialError::Refused);
    }

    /// An address where connections neither stand nor fail, while the values live.
    fn silent() -> (SocketAddr, Vec<Socket>) {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut held = vec![listener];
        // More than the backlog takes: one waits in it, the others before it.
        for _ in 0..4 {
            let waiting = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            waiting.set_nonblocking(true).unwrap();
            let _ = waiting.connect(&address.into());
            held.push(waiting);
        }
        (address, held)
    }

    #[tokio::test]
    async fn the_second_way_is_taken_when_the_first_fails_or_is_silent() {
        let there = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let there = (there.local_addr().unwrap(), there);
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (silent, _held) = silent();
        for (first, second) in [(there.0, silent), (gone, there.0), (silent, there.0)] {
            let (_stream, way) = either(first, second).await.unwrap();
            assert_eq!(way, there.0, "{first}, {second}");
        }
        assert_eq!(either(gone, gone).await.unwrap_err(), DialError::Refused);
    }

    #[tokio::test(start_paused = true)]
    async fn a_family_that_is_switched_off_is_only_one_way_that_fails() {
        use DialError::{OutOfDescriptors, OutOfPorts, Refused, Unreachable};
        let (six, four): (SocketAddr, SocketAddr) = ("[::1]:80".parse().unwrap(), "127.0.0.1:80".parse().unwrap());
        // What each way says, the first one late or at once, and what comes of it.
        let cases = [
            (Err(OutOfPorts), Ok(()), Ok(((), four))),
            (Err(OutOfPorts), Err(Refused), Err(Refused)),
            (Err(Refused), Err(OutOfPorts), Err(Refused)),
            (Err(Unreachable), Err(Refused), Err(Unreachable)),
            (Err(OutOfPorts), Err(OutOfPorts), Err(OutOfPorts)),
            (Err(OutOfPorts), Err(OutOfDescriptors), Err(OutOfDescriptors)),
            (Err(Refused), Err(OutOfDescriptors), Err(OutOfDescriptors)),
        ];
        for (one, other, outcome) in cases {
            for late in [Duration::ZERO, HEAD_START * 2] {
                let dial = async |way| {
                    if way == six {
                        tokio::time::sleep(late).await;
                        one
                    } else {
                        other
                    }
                };
                assert_eq!(race(six, four, dial).await, outcome, "{one:?}, {other:?}, {late:?}");
            }
        }
        // There is nothing to try without a descriptor.
        let dial = async |way| if way == six { Err(OutOfDescriptors) } else { Ok(()) };
        assert_eq!(race(six, four, dial).await, Err(OutOfDescriptors));
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

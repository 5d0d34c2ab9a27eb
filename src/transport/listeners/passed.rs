//! Descriptors passed by the service manager, told apart by their names. In an upgrade it is
//! the process before that passes them, in the same way.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::Arc;

use listenfd::ListenFd;
use rustix::net::{AddressFamily, SocketType};
use socket2::SockRef;

use super::{ADMIN, BOUND, HAND_OVER, HTTP, ListenError, Listener, METRICS, Socket, TICKET_KEYS, inherit};

/// Names that a later version gives a meaning to; refused rather than misread.
const RESERVED: [&str; 1] = ["status"];

/// The most descriptors taken from the service manager.
const MAX_PASSED: usize = 1024;

/// The first passed descriptor, `SD_LISTEN_FDS_START` of `sd_listen_fds(3)`.
const FIRST_DESCRIPTOR: usize = 3;

/// What the service manager passed.
#[derive(Debug, Default)]
pub struct Passed {
    /// Sockets for traffic; empty when none was passed.
    pub traffic: Vec<Listener>,
    /// The admin socket.
    pub admin: Option<UnixListener>,
    /// Sockets for metrics.
    pub metrics: Vec<Listener>,
    /// What an earlier process has left by the name [`TICKET_KEYS`].
    pub ticket_keys: Option<Left>,
    /// Sockets that the process before has bound for itself, by the names that it has for them.
    pub bound: Vec<Listener>,
    /// The line to that process, by the name [`HAND_OVER`].
    pub hand_over: Option<UnixStream>,
}

/// A socket that an earlier process has left in the service manager's descriptor store, or
/// what is there instead. Nothing that is found there keeps a daemon from its work.
pub type Left = Result<UnixDatagram, String>;

/// Takes every descriptor that the service manager passed, by its name.
///
/// `environment` is that of the process. Call it before anything else opens a
/// descriptor: the passed ones are known by their numbers alone. The first call
/// takes them; `LISTEN_FDS` and `LISTEN_PID` are gone afterwards.
///
/// A descriptor without a name of its own (`unknown`, `connection`, or the name of
/// its `.socket` unit, which systemd gives by default) counts as [`HTTP`] when all
/// such descriptors share one name and none is called `http`; otherwise it is
/// refused, since a guess could put an admin socket on the web.
///
/// # Errors
/// [`ListenError::Passed`] names each descriptor that is no listening stream
/// socket, has a reserved name, or can't be told apart.
///
/// Source: `sd_listen_fds(3)`, `systemd.socket(5)` on `FileDescriptorName=`.
pub fn passed(environment: &BTreeMap<OsString, OsString>) -> Result<Passed, ListenError> {
    let announced =
        environment.get(OsStr::new("LISTEN_FDS")).and_then(|count| count.to_str()?.parse::<usize>().ok()).unwrap_or(0);
    if announced > MAX_PASSED {
        return Err(ListenError::Passed(vec![format!(
            "LISTEN_FDS={announced} is more than the {MAX_PASSED} descriptors that doorward takes"
        )]));
    }
    let mut descriptors = ListenFd::from_env();
    let names = names(environment.get(OsStr::new("LISTEN_FDNAMES")), descriptors.len())?;
    let implied = implied(&names)?;

    let mut passed = Passed::default();
    let mut faults = Vec::new();
    for (index, given) in names.iter().enumerate() {
        let number = FIRST_DESCRIPTOR + index;
        let name = if implied.as_deref() == Some(given.as_str()) { HTTP } else { given.as_str() };
        if name == TICKET_KEYS {
            let left = descriptors.take_unix_datagram(index).ok().flatten().ok_or("no datagram socket");
            let left = left.and_then(|left| if passed.ticket_keys.is_none() { Ok(left) } else { Err("several") });
            passed.ticket_keys = Some(left.map_err(str::to_owned));
            continue;
        }
        if name == HAND_OVER {
            // The kind alone is looked at: a line that nobody is at has ended.
            let line = descriptors.take_unix_listener(index).ok().flatten();
            passed.hand_over = line.map(|line| UnixStream::from(OwnedFd::from(line)));
            continue;
        }
        if RESERVED.contains(&name) {
            faults.push(format!(
                "descriptor {number}: the name `{name}` is reserved for a later version; \
                 choose another FileDescriptorName="
            ));
            continue;
        }
        let socket = match take(&mut descriptors, index) {
            Ok(socket) => socket,
            Err(what) => {
                faults.push(format!("descriptor {number} (`{given}`) is {what}; a listening stream socket is needed"));
                continue;
            }
        };
        match (name, socket) {
            (ADMIN, Socket::Unix(socket)) if passed.admin.is_none() => passed.admin = Some(socket),
            (ADMIN, Socket::Unix(_)) => {
                faults.push(format!("descriptor {number} (`{ADMIN}`) is a second admin socket"));
            }
            (ADMIN, Socket::Tcp(_)) => faults
                .push(format!("descriptor {number} (`{ADMIN}`) is a TCP socket; the admin socket must be a Unix one")),
            (METRICS, socket) => passed.metrics.push(Listener { name: Arc::from(METRICS), socket }),
            (name, socket) => match name.strip_prefix(BOUND) {
                Some(name) => passed.bound.push(Listener { name: Arc::from(name), socket }),
                None => passed.traffic.push(Listener { name: Arc::from(name), socket }),
            },
        }
    }
    if faults.is_empty() { Ok(passed) } else { Err(ListenError::Passed(faults)) }
}

/// Splits `LISTEN_FDNAMES`; without it every descriptor is `unknown`.
fn names(list: Option<&OsString>, count: usize) -> Result<Vec<String>, ListenError> {
    let Some(list) = list.filter(|list| !list.is_empty()) else {
        return Ok(vec![String::from("unknown"); count]);
    };
    if count == 0 {
        return Ok(Vec::new());
    }
    let names: Vec<String> = list.to_string_lossy().split(':').map(str::to_owned).collect();
    if names.len() == count {
        Ok(names)
    } else {
        Err(ListenError::Passed(vec![format!(
            "LISTEN_FDNAMES={} has {} names for {count} descriptors",
            list.to_string_lossy(),
            names.len()
        )]))
    }
}

/// The one name that stands for [`HTTP`] without saying so, if there is one.
fn implied(names: &[String]) -> Result<Option<String>, ListenError> {
    let nameless: BTreeSet<&String> = names
        .iter()
        .filter(|name| matches!(name.as_str(), "" | "unknown" | "connection") || name.ends_with(".socket"))
        .collect();
    let Some(first) = nameless.first() else {
        return Ok(None);
    };
    if nameless.len() == 1 && !names.iter().any(|name| name == HTTP) {
        return Ok(Some(first.to_string()));
    }
    Err(ListenError::Passed(
        nameless
            .iter()
            .map(|name| format!("`{name}` is no name to go by; set FileDescriptorName= in that socket unit"))
            .collect(),
    ))
}

/// Takes a listening stream socket, or says what the descriptor is instead.
fn take(descriptors: &mut ListenFd, index: usize) -> Result<Socket, String> {
    if let Ok(Some(socket)) = descriptors.take_tcp_listener(index) {
        listening(SockRef::from(&socket))?;
        socket.set_nonblocking(true).map_err(|error| error.to_string())?;
        inherit(SockRef::from(&socket)).map_err(|error| error.to_string())?;
        return Ok(Socket::Tcp(socket));
    }
    if let Ok(Some(socket)) = descriptors.take_unix_listener(index) {
        listening(SockRef::from(&socket))?;
        socket.set_nonblocking(true).map_err(|error| error.to_string())?;
        return Ok(Socket::Unix(socket));
    }
    Err(String::from(other_kind(descriptors, index)))
}

fn listening(socket: SockRef<'_>) -> Result<(), String> {
    match socket.is_listener() {
        Ok(true) => Ok(()),
        Ok(false) if socket.peer_addr().is_ok() => Err(String::from("a connection (Accept=yes is not for doorward)")),
        Ok(false) => Err(String::from("a socket that does not listen")),
        Err(error) => Err(format!("unusable ({error})")),
    }
}

fn other_kind(descriptors: &mut ListenFd, index: usize) -> &'static str {
    let kinds = [
        (AddressFamily::INET, SocketType::DGRAM, "a datagram socket"),
        (AddressFamily::UNIX, SocketType::DGRAM, "a datagram socket"),
        (AddressFamily::UNIX, SocketType::SEQPACKET, "a sequential packet socket"),
    ];
    for (family, kind, what) in kinds {
        let family = i32::from(family.as_raw());
        let Ok(kind) = i32::try_from(kind.as_raw()) else {
            continue;
        };
        if let Ok(Some(_)) = descriptors.take_custom::<OwnedFd>(index, family, kind, what) {
            return what;
        }
    }
    "no stream socket"
}

#[cfg(test)]
mod tests {
    use super::*;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    fn list(names: &str, count: usize) -> Result<Vec<String>, ListenError> {
        super::names(Some(&OsString::from(names)), count)
    }

    #[test]
    fn names_must_be_as_many_as_descriptors() -> TestResult {
        assert_eq!(list("http:admin", 2)?, ["http", "admin"]);
        assert!(list("http:admin", 3).is_err());
        assert_eq!(super::names(None, 2)?, ["unknown", "unknown"]);
        assert!(list("left:over", 0)?.is_empty());
        Ok(())
    }

    #[test]
    fn a_nameless_descriptor_is_http_only_when_nothing_else_can_be_meant() -> TestResult {
        let implied = |names: &[&str]| implied(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(implied(&["http", "admin"])?, None);
        assert_eq!(implied(&["unknown"])?.as_deref(), Some("unknown"));
        assert_eq!(implied(&["web.socket", "web.socket", "admin"])?.as_deref(), Some("web.socket"));
        assert!(implied(&["web.socket", "doorward-admin.socket"]).is_err());
        assert!(implied(&["http", "doorward-admin.socket"]).is_err());
        Ok(())
    }
}

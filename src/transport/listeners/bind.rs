//! Sockets that the daemon binds for itself, when none is passed.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use socket2::{Domain, Protocol, SockAddr, SockRef, Type};

use super::{ADMIN, HTTP, HTTPS, ListenError, Listener, METRICS, Socket, inherit};
use crate::config::ListenAddress;

/// Connections that may wait for `accept`; the kernel caps it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Permissions of a traffic socket bound to a path: its user and group.
const TRAFFIC_MODE: u32 = 0o660;

/// Permissions of an admin socket bound to a path: its user only.
const ADMIN_MODE: u32 = 0o600;

/// Sockets bound by the daemon itself, with the files to remove at the end.
#[derive(Debug, Default)]
pub struct Bound {
    /// One listener for each address, named [`HTTP`], or [`HTTPS`] where it is for TLS.
    pub listeners: Vec<Listener>,
    /// The paths of Unix sockets; dropping one removes the file.
    pub files: Vec<SocketFile>,
}

/// Binds every address, those for plain traffic and those for TLS, or none. One that is among
/// the sockets `inherited` from the process before is taken from there.
///
/// TCP: `SO_REUSEADDR`, IPv6 only for IPv6. Unix: mode 0660; a file that a dead
/// process left behind is replaced, one that somebody listens on is not.
///
/// # Errors
/// [`ListenError::Bind`] with one sentence for each address that can't be bound.
pub fn bind(
    plain: &[ListenAddress],
    tls: &[ListenAddress],
    inherited: &mut Vec<Listener>,
) -> Result<Bound, ListenError> {
    let mut bound = Bound::default();
    let mut faults = Vec::new();
    let plain = plain.iter().map(|address| (HTTP, address));
    for (name, address) in plain.chain(tls.iter().map(|address| (HTTPS, address))) {
        match bind_one(name, address, inherited) {
            Ok((listener, file)) => {
                bound.listeners.push(listener);
                bound.files.extend(file);
            }
            Err(error) => faults.push(explain(address, &error)),
        }
    }
    if faults.is_empty() { Ok(bound) } else { Err(ListenError::Bind(faults)) }
}

/// Binds an address for metrics, in the same way. The listener is named [`METRICS`].
///
/// # Errors
/// [`ListenError::Bind`] as for [`bind`].
pub fn bind_metrics(
    address: &ListenAddress,
    inherited: &mut Vec<Listener>,
) -> Result<(Listener, Option<SocketFile>), ListenError> {
    bind_one(METRICS, address, inherited).map_err(|error| ListenError::Bind(vec![explain(address, &error)]))
}

fn bind_one(
    name: &str,
    address: &ListenAddress,
    inherited: &mut Vec<Listener>,
) -> io::Result<(Listener, Option<SocketFile>)> {
    if let Some((socket, file)) = inherit_one(name, address, inherited)? {
        return Ok((Listener { name: Arc::from(name), socket }, file));
    }
    let (socket, file) = match address {
        ListenAddress::Tcp(address) => (Socket::Tcp(bind_tcp(*address)?), None),
        ListenAddress::Unix(path) => {
            let (socket, file) = bind_path(path, TRAFFIC_MODE)?;
            (Socket::Unix(socket), Some(file))
        }
    };
    Ok((Listener { name: Arc::from(name), socket }, file))
}

/// Binds the admin socket at `path`, for its own user only (mode 0600), in the same way.
///
/// # Errors
/// [`ListenError::Bind`] as for [`bind`].
pub fn bind_admin(path: &Path, inherited: &mut Vec<Listener>) -> Result<(UnixListener, SocketFile), ListenError> {
    let address = ListenAddress::Unix(path.to_path_buf());
    let bound = match inherit_one(ADMIN, &address, inherited) {
        Ok(Some((Socket::Unix(socket), Some(file)))) => Ok((socket, file)),
        Ok(_) => bind_path(path, ADMIN_MODE),
        Err(error) => Err(error),
    };
    bound.map_err(|error| ListenError::Bind(vec![explain(&address, &error)]))
}

/// Takes a socket that the process before has bound to `address`, if there is one.
fn inherit_one(
    name: &str,
    address: &ListenAddress,
    inherited: &mut Vec<Listener>,
) -> io::Result<Option<(Socket, Option<SocketFile>)>> {
    let Some(place) = inherited.iter().position(|listener| listener.is(name, address)) else { return Ok(None) };
    let file = match address {
        ListenAddress::Tcp(_) => None,
        ListenAddress::Unix(path) => {
            let mut file = SocketFile::of(path)?;
            file.own(false);
            Some(file)
        }
    };
    Ok(Some((inherited.swap_remove(place).socket, file)))
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket =
        socket2::Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    inherit(SockRef::from(&socket))?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bind_path(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    clear_stale(path)?;
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::of(path)?;
    // Before `listen` nobody can connect, so no client slips in under the umask's mode.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    socket.listen(BACKLOG)?;
    Ok((UnixListener::from(OwnedFd::from(socket)), file))
}

/// Removes the socket file of a process that is gone; leaves anything else alone.
fn clear_stale(path: &Path) -> io::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file of another kind is there"));
    }
    // Non-blocking: a listener with a full queue would hold a blocking `connect`.
    let probe = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        // Somebody listens, or may: a full queue and a forbidden path are no proof of death.
        _ => Err(io::Error::from(io::ErrorKind::AddrInUse)),
    }
}

fn explain(address: &ListenAddress, error: &io::Error) -> String {
    match (address, error.kind()) {
        (ListenAddress::Tcp(address), io::ErrorKind::AddrInUse) => format!(
            "can't listen on {address}: the address is in use; `ss -ltnp 'sport = :{}'` shows by whom",
            address.port()
        ),
        (ListenAddress::Unix(path), io::ErrorKind::AddrInUse) => format!(
            "can't listen on unix:{path}: somebody listens there; `ss -lxp src {path}` shows who",
            path = path.display()
        ),
        (ListenAddress::Tcp(address), io::ErrorKind::PermissionDenied) if address.port() < 1024 => {
            format!(
                "can't listen on {address}: ports below 1024 need a privilege; \
                 let a systemd socket unit listen there"
            )
        }
        (ListenAddress::Tcp(address), io::ErrorKind::AddrNotAvailable) => {
            format!("can't listen on {address}: no interface of this host has that address")
        }
        (ListenAddress::Tcp(address), _) => format!("can't listen on {address}: {error}"),
        (ListenAddress::Unix(path), _) => {
            format!("can't listen on unix:{}: {error}", path.display())
        }
    }
}

/// The file of a Unix socket bound here; removed on drop while it is still ours. One that was
/// inherited is so only once the process before has left it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Identity,
    owned: bool,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_path_buf(), identity: identity(path)?, owned: true })
    }

    /// Removes it on drop from now on, or leaves it to another process.
    pub fn own(&mut self, owned: bool) {
        self.owned = owned;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may have put its own socket there meanwhile.
        if self.owned && identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Device, inode, and time of creation in seconds and nanoseconds: an inode is soon
/// used again. (`mtime` of a socket file stays, whoever owns or opens it.)
type Identity = (u64, u64, i64, i64);

fn identity(path: &Path) -> io::Result<Identity> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino(), file.mtime(), file.mtime_nsec()))
}

/// Where to bind the admin socket when none was passed.
///
/// `DOORWARD_ADMIN_SOCKET`, else `admin.sock` in the first `RUNTIME_DIRECTORY`,
/// else nowhere. Empty values count as absent.
pub fn admin_path(environment: &BTreeMap<OsString, OsString>) -> Option<PathBuf> {
    let set = |name: &str| environment.get(OsStr::new(name)).filter(|value| !value.is_empty());
    if let Some(path) = set("DOORWARD_ADMIN_SOCKET") {
        return Some(PathBuf::from(path));
    }
    let first = set("RUNTIME_DIRECTORY")?.as_bytes().split(|byte| *byte == b':').next()?;
    Some(Path::new(OsStr::from_bytes(first)).join("admin.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn accepted_sockets_inherit_no_delay_and_keepalive() -> TestResult {
        let bound = bind(&[ListenAddress::Tcp("127.0.0.1:0".parse()?)], &[], &mut Vec::new())?;
        let Socket::Tcp(listener) = &bound.listeners[0].socket else {
            return Err("not TCP".into());
        };
        listener.set_nonblocking(false)?;
        let _client = std::net::TcpStream::connect(listener.local_addr()?)?;
        let (accepted, _) = listener.accept()?;
        assert!(accepted.nodelay()?);
        assert!(SockRef::from(&accepted).keepalive()?);
        Ok(())
    }

    #[test]
    fn all_addresses_that_fail_are_reported_at_once() -> TestResult {
        let taken = TcpListener::bind("127.0.0.1:0")?;
        let folder = tempfile::tempdir()?;
        let plain = folder.path().join("plain");
        fs::write(&plain, "kept")?;
        let addresses = [
            ListenAddress::Tcp(taken.local_addr()?),
            ListenAddress::Tcp("127.0.0.1:0".parse()?),
            ListenAddress::Unix(plain.clone()),
            ListenAddress::Tcp("203.0.113.1:0".parse()?),
        ];
        let Err(ListenError::Bind(faults)) = bind(&addresses, &[], &mut Vec::new()) else {
            return Err("bound".into());
        };
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(faults[0].contains("in use") && faults[0].contains("ss -ltnp"), "{}", faults[0]);
        assert!(faults[1].contains("another kind"), "{}", faults[1]);
        assert!(faults[2].contains("203.0.113.1:0"), "{}", faults[2]);
        assert_eq!(fs::read_to_string(plain)?, "kept");
        Ok(())
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() -> TestResult {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("http.sock");
        drop(UnixListener::bind(&path)?);
        let address = [ListenAddress::Unix(path.clone())];
        let bound = bind(&address, &[], &mut Vec::new())?;
        assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, TRAFFIC_MODE);
        assert_eq!(bound.listeners[0].local(), format!("unix:{}", path.display()));

        let Err(ListenError::Bind(faults)) = bind(&address, &[], &mut Vec::new()) else {
            return Err("stolen".into());
        };
        assert!(faults[0].contains("somebody listens there"), "{}", faults[0]);
        std::os::unix::net::UnixStream::connect(&path)?;

        drop(bound);
        assert!(!path.exists());
        Ok(())
    }

    #[test]
    fn the_file_of_a_successor_is_not_removed() -> TestResult {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("admin.sock");
        let (first, file) = bind_admin(&path, &mut Vec::new())?;
        drop(first);
        // Keeps the inode in use: within one tick of the clock its number alone would tell.
        fs::hard_link(&path, folder.path().join("kept"))?;
        let (_second, successor) = bind_admin(&path, &mut Vec::new())?;
        drop(file);
        assert!(path.exists());
        drop(successor);
        assert!(!path.exists());
        Ok(())
    }

    #[test]
    fn the_admin_socket_lies_where_the_environment_says() {
        let environment =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        assert_eq!(admin_path(&environment(&[])), None);
        assert_eq!(admin_path(&environment(&[("DOORWARD_ADMIN_SOCKET", "")])), None);
        assert_eq!(
            admin_path(&environment(&[("RUNTIME_DIRECTORY", "/run/a:/run/b")])),
            Some(PathBuf::from("/run/a/admin.sock"))
        );
        assert_eq!(
            admin_path(&environment(&[("RUNTIME_DIRECTORY", "/run/a"), ("DOORWARD_ADMIN_SOCKET", "/tmp/x.sock")])),
            Some(PathBuf::from("/tmp/x.sock"))
        );
    }
}

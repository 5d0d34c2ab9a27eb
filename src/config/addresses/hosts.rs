//! The parts of an address: host, port, and the path of a Unix socket.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use crate::config::values::Wrong;

/// Longest path of a Unix socket in bytes.
///
/// Source: `sun_path` of unix(7) holds 108 with the final NUL.
pub const UNIX_PATH_LIMIT: usize = 107;

/// `HOST:PORT` in two.
pub(super) fn host_and_port(text: &str) -> Result<(&str, u16), String> {
    let (host, port) = text.rsplit_once(':').ok_or_else(|| lacks_port(text))?;
    if port.is_empty() {
        return Err(lacks_port(host));
    }
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("`{port}` is not a port"));
    }
    match port.parse() {
        Ok(port) => Ok((host, port)),
        Err(_) => Err(format!("port `{port}` is above 65535")),
    }
}

/// What is said of an address without a port.
pub(super) fn lacks_port(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) => format!("`{host}` lacks a port; write `[{host}]:PORT`"),
        _ => format!("`{host}` lacks a port; write `{host}:PORT`"),
    }
}

/// A host name in lower case without its final dot.
///
/// Labels of letters, digits, `-` and `_`, 63 bytes each, 253 together; the last
/// one not all digits, since that is a mistyped address.
/// Source: RFC 1123 §2.1; `_` is in use between containers.
pub(super) fn name(text: &str) -> Result<String, String> {
    let host = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let numeric = host.rsplit('.').next().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    if host.is_empty() || host.len() > 253 || numeric || !host.split('.').all(label) {
        return Err(format!("`{text}` is neither an address nor a host name"));
    }
    Ok(host.to_ascii_lowercase())
}

/// Whether `text` is a name or an address, with a port or without.
pub(in crate::config) fn authority(text: &str) -> bool {
    let bracketed = |text: &str| {
        let inside = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        inside.is_some_and(|inside| inside.parse::<Ipv6Addr>().is_ok())
    };
    let host = match host_and_port(text) {
        Ok((host, _)) => host,
        Err(_) => text,
    };
    let is_host =
        |host: &str| bracketed(host) || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4()) || name(host).is_ok();
    is_host(host)
}

/// The path of a Unix socket: absolute, and no longer than the kernel takes.
pub(super) fn unix(path: &str) -> Result<PathBuf, Wrong> {
    if path.starts_with('@') {
        return Err(Wrong::new("abstract sockets have no owner and no mode; write `unix:/PATH`"));
    }
    if !path.starts_with('/') || path.ends_with('/') {
        return Err(Wrong::new("a Unix socket needs its absolute path, as in `unix:/run/app.sock`"));
    }
    if path.len() > UNIX_PATH_LIMIT {
        return Err(Wrong::new(format!(
            "the path of a Unix socket has at most {UNIX_PATH_LIMIT} bytes, found {}",
            path.len()
        )));
    }
    Ok(PathBuf::from(path))
}

/// An IPv4 address in IPv6 clothes becomes plain IPv4.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}

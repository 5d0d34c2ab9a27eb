//! Addresses to listen on and addresses of backends.
//!
//! A [`Target`]'s `Display` is its identity: what names it in logs, metrics and
//! the registry that outlives a reload. It holds no options, and two spellings
//! of one address have one identity (`[::ffff:10.0.0.2]:80` is `10.0.0.2:80`).

mod forms;
mod hosts;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use rustls::pki_types::ServerName;

pub(super) use forms::{Backend, Listen, NameServer};
pub use hosts::UNIX_PATH_LIMIT;
pub(super) use hosts::authority;

/// Largest weight of a backend.
pub const WEIGHT_LIMIT: u16 = 256;

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// TCP over IPv4 or IPv6.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Tcp(address) => write!(out, "{address}"),
            ListenAddress::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

impl ListenAddress {
    /// Whether one is the other, or means every address and the other one of them.
    pub fn overlaps(&self, other: &ListenAddress) -> bool {
        let (ListenAddress::Tcp(mine), ListenAddress::Tcp(theirs)) = (self, other) else { return self == other };
        let wide = mine.ip().is_unspecified() || theirs.ip().is_unspecified();
        let same = mine.port() == theirs.port() && mine.is_ipv4() == theirs.is_ipv4();
        mine.port() != 0 && same && (wide || mine.ip() == theirs.ip())
    }

    /// Whether both can't be bound at once; port 0 means a port of the kernel's choice.
    pub fn clashes(&self, other: &ListenAddress) -> bool {
        match self {
            ListenAddress::Tcp(address) if address.port() == 0 => false,
            _ => self == other,
        }
    }
}

/// Where a backend is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// A numeric address.
    Ip(SocketAddr),
    /// A name that the resolver knows; lower case, without a final dot.
    Name {
        /// The name.
        host: String,
        /// The port.
        port: u16,
    },
    /// A service whose SRV records name hosts, ports, weights and preference; lower case,
    /// without a final dot.
    Service(String),
    /// A host that is spoken to over TLS.
    Tls(Site),
    /// A Unix stream socket.
    Unix(PathBuf),
    /// The built-in backend, which shows the request as it received it.
    Echo,
}

/// A host with a port: as an address, or by a name as [`Target::Name`] has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Site {
    /// A numeric address.
    Ip(SocketAddr),
    /// A name.
    Name {
        /// The name.
        host: String,
        /// The port.
        port: u16,
    },
}

impl fmt::Display for Site {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Site::Ip(address) => write!(out, "{address}"),
            Site::Name { host, port } => write!(out, "{host}:{port}"),
        }
    }
}

impl Site {
    /// The name that its certificate is to have, and that it is asked for by SNI unless it
    /// is an address.
    pub fn server_name(&self) -> Option<ServerName<'static>> {
        match self {
            Site::Ip(address) => Some(ServerName::IpAddress(address.ip().into())),
            Site::Name { host, .. } => ServerName::try_from(host.clone()).ok(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Ip(address) => write!(out, "{address}"),
            Target::Name { host, port } => write!(out, "{host}:{port}"),
            Target::Service(name) => write!(out, "srv:{name}"),
            Target::Tls(site) => write!(out, "https://{site}"),
            Target::Unix(path) => write!(out, "unix:{}", path.display()),
            Target::Echo => out.write_str("builtin:echo"),
        }
    }
}

impl Target {
    /// Whether it is spoken to over TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Target::Tls(_))
    }
}

impl From<Site> for Target {
    fn from(site: Site) -> Target {
        match site {
            Site::Ip(address) => Target::Ip(address),
            Site::Name { host, port } => Target::Name { host, port },
        }
    }
}

/// One backend as `BACKEND_ADDRESS` names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BackendAddress {
    /// Where it is.
    pub target: Target,
    /// Its share of the traffic relative to its neighbours, up to [`WEIGHT_LIMIT`]. With 0
    /// it drains: it takes nothing new.
    pub weight: u16,
    /// It is used only when none of those without this mark takes requests.
    pub backup: bool,
}

#[cfg(test)]
mod tests {
    use super::Listen;
    use crate::config::values::Form;

    #[test]
    fn addresses_overlap_where_the_kernel_would_refuse_the_second() {
        let listen = |text| Listen.parse(text).unwrap();
        for (one, other, overlap) in [
            ("127.0.0.1:9", "127.0.0.1:9", true),
            ("127.0.0.1:9", "0.0.0.0:9", true),
            ("0.0.0.0:9", "127.0.0.1:9", true),
            ("[::]:9", "[::1]:9", true),
            ("127.0.0.1:9", "127.0.0.2:9", false),
            ("127.0.0.1:9", "127.0.0.1:10", false),
            ("0.0.0.0:9", "[::]:9", false),
            ("0.0.0.0:0", "127.0.0.1:0", false),
            ("unix:/run/a", "unix:/run/a", true),
            ("unix:/run/a", "unix:/run/b", false),
        ] {
            assert_eq!(listen(one).overlaps(&listen(other)), overlap, "{one} {other}");
        }
    }

    #[test]
    fn two_ports_of_the_kernels_choice_do_not_clash() {
        let any = Listen.parse("127.0.0.1:0").unwrap();
        let one = Listen.parse("127.0.0.1:1").unwrap();
        assert!(!any.clashes(&any));
        assert!(one.clashes(&one));
        assert!(!one.clashes(&any));
    }
}

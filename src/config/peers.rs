//! Peers that an operator trusts: addresses, networks, and Unix sockets.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::values::{Form, Wrong};

/// An entry of a list of peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerPattern {
    /// Every address of a network; of one address when its prefix is whole.
    Net(IpNet),
    /// Whoever came over a Unix socket.
    Unix,
}

impl PeerPattern {
    /// Whether a peer is meant; `None` is one on a Unix socket. An IPv4 address in IPv6
    /// clothes must have been undressed before.
    #[must_use]
    pub fn matches(&self, peer: Option<IpAddr>) -> bool {
        match (self, peer) {
            (PeerPattern::Net(net), Some(address)) => net.contains(&address),
            (PeerPattern::Unix, None) => true,
            _ => false,
        }
    }
}

impl fmt::Display for PeerPattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerPattern::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(out),
            PeerPattern::Net(net) => net.fmt(out),
            PeerPattern::Unix => out.write_str("unix:"),
        }
    }
}

/// The form of a [`PeerPattern`].
pub(super) struct PeerForm;

impl Form for PeerForm {
    type Value = PeerPattern;

    fn parse(&self, text: &str) -> Result<PeerPattern, Wrong> {
        if text == "unix:" {
            return Ok(PeerPattern::Unix);
        }
        if text.starts_with("unix:") {
            return Err(Wrong::new("a peer on a Unix socket has no path; `unix:` means all of them"));
        }
        let net = match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
            (Ok(net), _) => net,
            (_, Ok(address)) => IpNet::from(address),
            _ => return Err(Wrong::new(format!("`{text}` is not {}", self.describe()))),
        };
        let net = undressed(net);
        if net.addr() != net.network() {
            return Err(Wrong::new(format!("`{text}` names a host beyond its prefix; write `{}`", net.trunc())));
        }
        Ok(PeerPattern::Net(net))
    }

    fn describe(&self) -> String {
        "an address, a network as in `10.0.0.0/8` or `fd00::/8`, or `unix:`".to_owned()
    }
}

/// A network of IPv4 addresses in IPv6 clothes becomes one of IPv4.
fn undressed(net: IpNet) -> IpNet {
    let IpNet::V6(six) = net else { return net };
    let address: Option<Ipv4Addr> = six.addr().to_ipv4_mapped();
    let prefix = six.prefix_len().checked_sub(96);
    address.zip(prefix).and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok()).map_or(net, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_addresses_networks_and_unix_sockets() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3"),
            ("10.1.2.3/32", "10.1.2.3"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::/8", "fd00::/8"),
            ("::1", "::1"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.1.2.3", "10.1.2.3"),
            ("unix:", "unix:"),
        ] {
            assert_eq!(PeerForm.parse(text).unwrap().to_string(), shown, "{text}");
        }
        for (text, message) in [
            ("10.0.0.1/8", "`10.0.0.1/8` names a host beyond its prefix; write `10.0.0.0/8`"),
            ("unix:/run/a.sock", "a peer on a Unix socket has no path; `unix:` means all of them"),
            ("localhost", "`localhost` is not an address, a network as in `10.0.0.0/8` or `fd00::/8`, or `unix:`"),
        ] {
            assert_eq!(PeerForm.parse(text).unwrap_err().message, message);
        }
        for text in ["", "10.0.0.0/33", "10.0.0.0/", "/8", "10.0.0.1:80", "[::1]", "*", "unix"] {
            assert!(PeerForm.parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_peer_is_meant_by_the_network_it_is_in() {
        let meant = |text: &str, peer: Option<&str>| {
            PeerForm.parse(text).unwrap().matches(peer.map(|address| address.parse().unwrap()))
        };
        assert!(meant("10.0.0.0/8", Some("10.255.0.1")));
        assert!(!meant("10.0.0.0/8", Some("11.0.0.1")));
        assert!(!meant("10.0.0.0/8", Some("::1")));
        assert!(!meant("0.0.0.0/0", Some("::1")));
        assert!(meant("::/0", Some("fe80::1")));
        assert!(!meant("::/0", None));
        assert!(meant("unix:", None));
        assert!(!meant("unix:", Some("127.0.0.1")));
    }
}

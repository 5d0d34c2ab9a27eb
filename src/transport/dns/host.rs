//! What the host's files say of names: `/etc/hosts` and `/etc/resolv.conf`.
//!
//! Both are read as resolv.conf(5) and hosts(5) describe them, and what is not
//! understood is skipped, as the C library does. Pure parsing; whoever calls reads the
//! files.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Where the C library looks for hosts.
pub const HOSTS: &str = "/etc/hosts";

/// Where it looks for name servers.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The port of DNS.
pub const PORT: u16 = 53;

/// Name servers that are asked; the C library takes as many.
const SERVERS_MOST: usize = 3;

/// Domains that are searched; resolv.conf(5) had this limit for long.
const DOMAINS_MOST: usize = 6;

/// How names are looked up on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name servers, in order.
    pub servers: Vec<SocketAddr>,
    /// Domains to complete names with.
    pub search: Vec<String>,
    /// Dots from which on a name is tried as it is first.
    pub ndots: usize,
    /// How long one server is waited for.
    pub patience: Duration,
    /// How often all are asked.
    pub rounds: u32,
}

impl Default for Settings {
    /// What holds without a file: the name server of this host (resolv.conf(5)). Shorter
    /// patience than the C library's 5 s: nobody waits for us but a start, and that not long.
    fn default() -> Self {
        let servers = vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT)];
        Self { servers, search: Vec::new(), ndots: 1, patience: Duration::from_secs(1), rounds: 2 }
    }
}

impl Settings {
    /// Reads `resolv.conf`.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let mut settings = Self::default();
        let mut servers = Vec::new();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let server = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    servers.extend(server.map(|ip| SocketAddr::new(ip, PORT)));
                }
                Some("search" | "domain") => {
                    let domains = words.map(|word| word.trim_matches('.').to_ascii_lowercase());
                    settings.search = domains.filter(|word| !word.is_empty()).take(DOMAINS_MOST).collect();
                }
                Some("options") => {
                    for option in words {
                        settings.option(option);
                    }
                }
                _ => {}
            }
        }
        servers.truncate(SERVERS_MOST);
        if !servers.is_empty() {
            settings.servers = servers;
        }
        settings
    }

    fn option(&mut self, option: &str) {
        let Some((name, value)) = option.split_once(':') else { return };
        let Ok(value) = value.parse::<u32>() else { return };
        match name {
            "ndots" => self.ndots = usize::try_from(value.min(15)).unwrap_or(1),
            "timeout" => self.patience = Duration::from_secs(u64::from(value.clamp(1, 30))),
            "attempts" => self.rounds = value.clamp(1, 5),
            _ => {}
        }
    }

    /// The names to ask for in turn, for one that an operator wrote.
    #[must_use]
    pub fn candidates(&self, name: &str) -> Vec<String> {
        let dots = name.bytes().filter(|byte| *byte == b'.').count();
        let mut names: Vec<String> = self.search.iter().map(|domain| format!("{name}.{domain}")).collect();
        let place = if dots >= self.ndots { 0 } else { names.len() };
        names.insert(place, name.to_owned());
        names.retain(|name| name.len() <= 253);
        names
    }
}

/// The addresses of a name in the text of `/etc/hosts`. `localhost` and what is below it
/// is loopback even if the file does not say so (RFC 6761 §6.3).
#[must_use]
pub fn in_hosts(text: &str, name: &str) -> BTreeSet<IpAddr> {
    let mut found = BTreeSet::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else { continue };
        if words.any(|word| word.trim_end_matches('.').eq_ignore_ascii_case(name)) {
            found.insert(address.to_canonical());
        }
    }
    if found.is_empty() && (name == "localhost" || name.ends_with(".localhost")) {
        found.extend([IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)]);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_its_manual_says() {
        let settings = Settings::read(
            "# made by hand\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver 2001:db8::53\n\
             domain old.test\nsearch Example.COM. test\noptions edns0 ndots:2 timeout:3 attempts:1 trust-ad\n",
        );
        assert_eq!(settings.servers, ["127.0.0.53:53".parse().unwrap(), "[2001:db8::53]:53".parse().unwrap()]);
        assert_eq!(settings.search, ["example.com", "test"]);
        assert_eq!((settings.ndots, settings.patience, settings.rounds), (2, Duration::from_secs(3), 1));
        assert_eq!(Settings::read("options ndots:x timeout\nnonsense"), Settings::default());
    }

    #[test]
    fn names_with_dots_are_tried_as_they_are_first() {
        let settings = Settings::read("search a.test b.test");
        assert_eq!(settings.candidates("app"), ["app.a.test", "app.b.test", "app"]);
        assert_eq!(settings.candidates("app.x"), ["app.x", "app.x.a.test", "app.x.b.test"]);
    }

    #[test]
    fn hosts_knows_names_and_aliases_of_both_families() {
        let text =
            "127.0.0.1 localhost\n::1\tlocalhost ip6-localhost # me\n10.0.0.1 App.test app\n# 10.0.0.2 app\nx app\n";
        let known = |name| in_hosts(text, name).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(known("app"), ["10.0.0.1"]);
        assert_eq!(known("app.test"), ["10.0.0.1"]);
        assert_eq!(known("localhost"), ["127.0.0.1", "::1"]);
        assert!(known("me").is_empty());
        assert_eq!(in_hosts("", "web.localhost").len(), 2);
    }
}

//! Addresses to listen on and addresses of backends.
//!
//! A [`Target`]'s `Display` is its identity: what names it in logs, metrics and
//! the registry that outlives a reload. It holds no options, and two spellings
//! of one address have one identity (`[::ffff:10.0.0.2]:80` is `10.0.0.2:80`).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use rustls::pki_types::ServerName;

use super::values::{Form, Wrong};

/// Longest path of a Unix socket in bytes.
///
/// Source: `sun_path` of unix(7) holds 108 with the final NUL.
pub const UNIX_PATH_LIMIT: usize = 107;

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

/// The form of a [`ListenAddress`].
pub(super) struct Listen;

impl Form for Listen {
    type Value = ListenAddress;

    fn parse(&self, text: &str) -> Result<ListenAddress, Wrong> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path).map(ListenAddress::Unix);
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(ListenAddress::Tcp(canonical(address)));
        }
        Err(Wrong::new(if text.contains("://") {
            format!("`{text}` is a URL; write `HOST:PORT`")
        } else if text.parse::<u16>().is_ok() {
            format!("`{text}` lacks an address; write `127.0.0.1:{text}` or `0.0.0.0:{text}`")
        } else if text.parse::<IpAddr>().is_ok() {
            lacks_port(text)
        } else {
            match host_and_port(text) {
                Ok((host, port)) if host.is_empty() || host == "*" => {
                    format!("`{text}` lacks an address; write `0.0.0.0:{port}` or `[::]:{port}`")
                }
                Ok((host, _)) if name(host).is_ok() => {
                    format!("`{host}` is a name; an address to listen on is numeric")
                }
                _ => format!("`{text}` is not {}", self.describe()),
            }
        }))
    }

    fn describe(&self) -> String {
        "`HOST:PORT` with a numeric host, `[V6]:PORT` or `unix:/PATH`".to_owned()
    }
}

/// The form of a [`BackendAddress`].
pub(super) struct Backend;

impl Form for Backend {
    type Value = BackendAddress;

    fn parse(&self, text: &str) -> Result<BackendAddress, Wrong> {
        let (address, options) = match text.split_once('?') {
            Some((address, options)) => (address, Some(options)),
            None => (text, None),
        };
        let target = target(address)?;
        let mut weight = None;
        let mut backup = false;
        for option in options.into_iter().flat_map(|options| options.split('&')) {
            match option.split_once('=') {
                Some(("weight", value)) if weight.is_none() => {
                    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
                    let known = value.parse().ok().filter(|n| digits && *n <= WEIGHT_LIMIT);
                    weight = Some(known.ok_or_else(|| {
                        Wrong::new(format!("a weight is a whole number from 0 to {WEIGHT_LIMIT}, found `{value}`"))
                            .at(option)
                    })?);
                }
                Some(("weight", _)) => {
                    return Err(Wrong::new("`weight` is given twice").at(option));
                }
                None if option == "backup" && !backup => backup = true,
                None if option == "backup" => {
                    return Err(Wrong::new("`backup` is given twice").at(option));
                }
                _ => {
                    return Err(Wrong::new(format!(
                        "unknown option `{option}`; there are `weight=0` to `weight={WEIGHT_LIMIT}`, and `backup`"
                    ))
                    .at(option));
                }
            }
        }
        if weight.is_some() && matches!(target, Target::Service(_)) {
            return Err(Wrong::new("SRV records have weights of their own").at(options.unwrap_or_default()));
        }
        Ok(BackendAddress { target, weight: weight.unwrap_or(1), backup })
    }

    fn describe(&self) -> String {
        "`HOST:PORT`, `[V6]:PORT`, `https://HOST`, `https://HOST:PORT`, `srv:_SERVICE._tcp.DOMAIN`, `unix:/PATH` or \
         `builtin:echo`, each with `?backup`, and all but `srv:` with `?weight=0` to `?weight=256`, both joined by `&`"
            .to_owned()
    }
}

/// The form of a name server's address.
pub(super) struct NameServer;

impl Form for NameServer {
    type Value = SocketAddr;

    fn parse(&self, text: &str) -> Result<SocketAddr, Wrong> {
        let address = text.parse::<SocketAddr>().or_else(|_| text.parse::<IpAddr>().map(|ip| (ip, 53).into()));
        match address {
            Ok(address) if address.port() == 0 => Err(Wrong::new("port 0 can't be asked")),
            Ok(address) if address.ip().is_unspecified() => {
                Err(Wrong::new(format!("`{}` is no address of a name server", address.ip())))
            }
            Ok(address) => Ok(canonical(address)),
            Err(_) => Err(Wrong::new(format!("`{text}` is not {}", self.describe()))),
        }
    }

    fn describe(&self) -> String {
        "`IP`, `IP:PORT` or `[V6]:PORT`".to_owned()
    }
}

fn target(text: &str) -> Result<Target, Wrong> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix(path).map(Target::Unix);
    }
    if let Some(service) = text.strip_prefix("srv:") {
        return match service.rsplit_once(':') {
            Some((service, _)) => {
                Err(Wrong::new(format!("SRV records name the port themselves; write `srv:{service}`")))
            }
            None => name(service).map(Target::Service).map_err(Wrong::new),
        };
    }
    if let Some(builtin) = text.strip_prefix("builtin:") {
        return if builtin == "echo" {
            Ok(Target::Echo)
        } else {
            Err(Wrong::new(format!("no built-in backend `{builtin}`; there is `builtin:echo`")))
        };
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let tls = scheme.eq_ignore_ascii_case("https");
        if !tls && !scheme.eq_ignore_ascii_case("http") {
            return Err(Wrong::new(format!("unknown scheme `{scheme}`; write `HOST:PORT` or `https://HOST`")));
        }
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains('/') || authority.contains('@') {
            return Err(Wrong::new(format!(
                "a backend is an address without user or path; write `{}://{}`",
                scheme.to_ascii_lowercase(),
                authority.rsplit('@').next().and_then(|rest| rest.split('/').next()).unwrap_or_default()
            )));
        }
        if authority.is_empty() {
            return Err(Wrong::new(format!("`{text}` lacks a host")));
        }
        let port = if tls { 443 } else { 80 };
        let site = match host_and_port(authority) {
            Err(_) if !authority.ends_with(':') => site(&format!("{authority}:{port}")),
            _ => site(authority),
        }?;
        return match site {
            site if !tls => Ok(site.into()),
            site if site.server_name().is_some() => Ok(Target::Tls(site)),
            site => Err(Wrong::new(format!("`{site}` has no name that a certificate could be for"))),
        };
    }
    if let Some(scheme) = ["https+srv:", "https+unix:"].iter().find(|scheme| text.starts_with(**scheme)) {
        return Err(Wrong::new(format!(
            "there is no `{}`; TLS is spoken to `https://HOST` and `https://HOST:PORT` only",
            scheme.trim_end_matches(':')
        )));
    }
    site(text).map(Target::from)
}

impl From<Site> for Target {
    fn from(site: Site) -> Target {
        match site {
            Site::Ip(address) => Target::Ip(address),
            Site::Name { host, port } => Target::Name { host, port },
        }
    }
}

/// `HOST:PORT`, numeric or a name.
fn site(text: &str) -> Result<Site, Wrong> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        let address = canonical(address);
        return if address.port() == 0 {
            Err(Wrong::new("port 0 can't be connected to"))
        } else {
            Ok(Site::Ip(address))
        };
    }
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Err(Wrong::new(format!("`{text}` lacks brackets and a port; write `[{address}]:PORT`")));
    }
    let (host, port) = host_and_port(text).map_err(Wrong::new)?;
    if host.is_empty() {
        return Err(Wrong::new(format!("`{text}` lacks a host; write `HOST:{port}`")));
    }
    let host = name(host).map_err(Wrong::new)?;
    if port == 0 {
        return Err(Wrong::new("port 0 can't be connected to"));
    }
    Ok(Site::Name { host, port })
}

fn host_and_port(text: &str) -> Result<(&str, u16), String> {
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

fn lacks_port(host: &str) -> String {
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
fn name(text: &str) -> Result<String, String> {
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
pub(super) fn authority(text: &str) -> bool {
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

fn unix(path: &str) -> Result<PathBuf, Wrong> {
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
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_backend_has_one_identity_however_it_is_written() {
        for (text, identity, weight) in [
            ("127.0.0.1:3000", "127.0.0.1:3000", 1),
            ("10.0.0.2:3000?weight=3", "10.0.0.2:3000", 3),
            ("[::1]:80", "[::1]:80", 1),
            ("[::ffff:10.0.0.2]:80", "10.0.0.2:80", 1),
            ("localhost:3000", "localhost:3000", 1),
            ("App.Example.COM.:3000", "app.example.com:3000", 1),
            ("my_app-1:3000", "my_app-1:3000", 1),
            ("http://10.0.0.2:3000", "10.0.0.2:3000", 1),
            ("http://10.0.0.2:3000/", "10.0.0.2:3000", 1),
            ("HTTP://app", "app:80", 1),
            ("http://[::1]", "[::1]:80", 1),
            ("https://App.Test.", "https://app.test:443", 1),
            ("HTTPS://app.test:8443/?weight=2", "https://app.test:8443", 2),
            ("https://10.0.0.2", "https://10.0.0.2:443", 1),
            ("https://[::ffff:10.0.0.2]", "https://10.0.0.2:443", 1),
            ("https://[::1]:8443", "https://[::1]:8443", 1),
            ("unix:/run/app.sock?weight=256", "unix:/run/app.sock", 256),
            ("app:80?weight=0", "app:80", 0),
            ("builtin:echo", "builtin:echo", 1),
            ("srv:_http._tcp.Example.com.", "srv:_http._tcp.example.com", 1),
        ] {
            let backend = Backend.parse(text).unwrap_or_else(|wrong| panic!("{text}: {wrong}"));
            assert_eq!(backend.target.to_string(), identity, "{text}");
            assert_eq!((backend.weight, backend.backup), (weight, false), "{text}");
        }
        let backup = Backend.parse("app:80?weight=2&backup").unwrap();
        assert_eq!((backup.weight, backup.backup), (2, true));
    }

    #[test]
    fn a_wrong_backend_is_explained() {
        for (text, message) in [
            ("app", "`app` lacks a port; write `app:PORT`"),
            ("app:", "`app` lacks a port; write `app:PORT`"),
            ("app:http", "`http` is not a port"),
            ("app:70000", "port `70000` is above 65535"),
            ("app:+80", "`+80` is not a port"),
            ("app:0", "port 0 can't be connected to"),
            ("1.2.3.4:0", "port 0 can't be connected to"),
            (":3000", "`:3000` lacks a host; write `HOST:3000`"),
            ("1.2.3:80", "`1.2.3` is neither an address nor a host name"),
            ("1.2.3.400:80", "`1.2.3.400` is neither an address nor a host name"),
            ("-a:80", "`-a` is neither an address nor a host name"),
            ("a..b:80", "`a..b` is neither an address nor a host name"),
            ("ä:80", "`ä` is neither an address nor a host name"),
            ("::1", "`::1` lacks brackets and a port; write `[::1]:PORT`"),
            ("https://", "`https://` lacks a host"),
            ("https://app:", "`app` lacks a port; write `app:PORT`"),
            ("https://app:0", "port 0 can't be connected to"),
            ("https://app/x", "a backend is an address without user or path; write `https://app`"),
            ("https://-a", "`-a` is neither an address nor a host name"),
            (
                "https+srv:_a._tcp.b",
                "there is no `https+srv`; TLS is spoken to `https://HOST` and `https://HOST:PORT` only",
            ),
            ("https+unix:/a", "there is no `https+unix`; TLS is spoken to `https://HOST` and `https://HOST:PORT` only"),
            ("ftp://app:21", "unknown scheme `ftp`; write `HOST:PORT` or `https://HOST`"),
            ("http://u@app:80/x", "a backend is an address without user or path; write `http://app:80`"),
            ("srv:_http._tcp.app.test:80", "SRV records name the port themselves; write `srv:_http._tcp.app.test`"),
            ("srv:", "`` is neither an address nor a host name"),
            ("srv:_http._tcp.app.test?weight=2", "SRV records have weights of their own"),
            ("builtin:page", "no built-in backend `page`; there is `builtin:echo`"),
            ("unix:run/app", "a Unix socket needs its absolute path, as in `unix:/run/app.sock`"),
            ("unix:@app", "abstract sockets have no owner and no mode; write `unix:/PATH`"),
            ("app:80?weight=-1", "a weight is a whole number from 0 to 256, found `-1`"),
            ("app:80?weight=+1", "a weight is a whole number from 0 to 256, found `+1`"),
            ("app:80?weight=", "a weight is a whole number from 0 to 256, found ``"),
            ("app:80?weight=257", "a weight is a whole number from 0 to 256, found `257`"),
            ("app:80?weight=1&weight=2", "`weight` is given twice"),
            ("app:80?backup&weight=2&backup", "`backup` is given twice"),
            ("app:80?wait=1", "unknown option `wait=1`; there are `weight=0` to `weight=256`, and `backup`"),
            ("app:80?backup=1", "unknown option `backup=1`; there are `weight=0` to `weight=256`, and `backup`"),
        ] {
            match Backend.parse(text) {
                Ok(backend) => panic!("{text} gave {backend:?}"),
                Err(wrong) => assert_eq!(wrong.message, message, "{text}"),
            }
        }
        let long = format!("unix:/{}", "x".repeat(UNIX_PATH_LIMIT));
        assert!(Backend.parse(&long).is_err());
    }

    #[test]
    fn listening_takes_numeric_addresses_and_sockets() {
        for (text, shown) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("[::]:80", "[::]:80"),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("unix:/run/doorward.sock", "unix:/run/doorward.sock"),
        ] {
            assert_eq!(Listen.parse(text).unwrap().to_string(), shown);
        }
        for (text, message) in [
            ("8080", "`8080` lacks an address; write `127.0.0.1:8080` or `0.0.0.0:8080`"),
            (":8080", "`:8080` lacks an address; write `0.0.0.0:8080` or `[::]:8080`"),
            ("*:8080", "`*:8080` lacks an address; write `0.0.0.0:8080` or `[::]:8080`"),
            ("localhost:8080", "`localhost` is a name; an address to listen on is numeric"),
            ("127.0.0.1", "`127.0.0.1` lacks a port; write `127.0.0.1:PORT`"),
            ("::1", "`::1` lacks a port; write `[::1]:PORT`"),
            ("http://127.0.0.1:80", "`http://127.0.0.1:80` is a URL; write `HOST:PORT`"),
            (
                "127.0.0.1:99999",
                "`127.0.0.1:99999` is not `HOST:PORT` with a numeric host, `[V6]:PORT` or `unix:/PATH`",
            ),
        ] {
            assert_eq!(Listen.parse(text).unwrap_err().message, message);
        }
    }

    #[test]
    fn a_name_server_is_numeric_with_or_without_a_port() {
        for (text, shown) in [
            ("127.0.0.53", "127.0.0.53:53"),
            ("127.0.0.1:5353", "127.0.0.1:5353"),
            ("2001:db8::53", "[2001:db8::53]:53"),
            ("[::1]:5353", "[::1]:5353"),
        ] {
            assert_eq!(NameServer.parse(text).unwrap().to_string(), shown);
        }
        for (text, message) in [
            ("dns.test", "`dns.test` is not `IP`, `IP:PORT` or `[V6]:PORT`"),
            ("127.0.0.1:0", "port 0 can't be asked"),
            ("0.0.0.0", "`0.0.0.0` is no address of a name server"),
        ] {
            assert_eq!(NameServer.parse(text).unwrap_err().message, message);
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

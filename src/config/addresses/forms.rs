//! How addresses are written in the configuration, and what is said of a wrong one.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::hosts::{canonical, host_and_port, lacks_port, name, unix};
use super::{BackendAddress, ListenAddress, Site, Target, WEIGHT_LIMIT};
use crate::config::values::{Form, Wrong};

/// The form of a [`ListenAddress`].
pub(in crate::config) struct Listen;

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
pub(in crate::config) struct Backend;

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
pub(in crate::config) struct NameServer;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UNIX_PATH_LIMIT;

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
}

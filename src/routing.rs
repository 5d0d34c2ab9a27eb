//! Which route a request or a connection takes.
//!
//! Of all routes that match, the most specific one wins: an exact host over the
//! longest `*.` one over none; then an exact path over the longest prefix over
//! none; then a named listener over none. A host that has routes falls back to a
//! less specific one when none of its paths fits.
//!
//! A listener that routes name takes the mode of these routes; every other one
//! takes the default route's mode. Pure: a table is built once for a
//! configuration and then only read. What is compared is a normalised copy, made
//! only when there is something to normalise and a route that asks for it.

use std::collections::HashMap;

use crate::config::{HostPattern, Mode, PathPattern, RouteConfig, normal_host, normal_path};

/// The routes of one configuration.
///
/// Routes are named by their index in the slice that the table was built from.
#[derive(Debug, Clone, Default)]
pub struct Table {
    hosts: HashMap<Box<[u8]>, Vec<Rule>>,
    /// By the parent: `example.com` for `*.example.com`.
    below: HashMap<Box<[u8]>, Vec<Rule>>,
    anywhere: Vec<Rule>,
    reads_paths: bool,
    listeners: HashMap<Box<str>, Mode>,
    /// The route of each listener with `MODE=tcp`.
    tcp: HashMap<Box<str>, usize>,
    default: Option<(usize, Mode)>,
}

/// One combination of path and listener, below its host.
#[derive(Debug, Clone)]
struct Rule {
    path: Option<PathPattern>,
    listener: Option<Box<str>>,
    route: usize,
}

impl Rule {
    fn matches(&self, path: &[u8], listener: &str) -> bool {
        let named = match &self.listener {
            Some(name) => **name == *listener,
            None => true,
        };
        named
            && match &self.path {
                None => true,
                Some(PathPattern::Exact(exact)) => path == exact.as_bytes(),
                Some(PathPattern::Prefix(prefix)) => {
                    path.strip_prefix(prefix.as_bytes()).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
                }
            }
    }

    /// Orders the more specific rule first.
    fn rank(&self) -> (u8, std::cmp::Reverse<usize>, bool) {
        let (kind, length) = match &self.path {
            Some(PathPattern::Exact(_)) => (0, 0),
            Some(PathPattern::Prefix(prefix)) => (1, prefix.len()),
            None => (2, 0),
        };
        (kind, std::cmp::Reverse(length), self.listener.is_none())
    }
}

impl Table {
    /// The table of these routes; the last one takes what no other one matches.
    pub fn new(routes: &[RouteConfig]) -> Table {
        let mut table = Table::default();
        let Some((default, rest)) = routes.split_last() else {
            return table;
        };
        table.default = Some((rest.len(), default.settings.mode));
        for (index, route) in rest.iter().enumerate() {
            table.add(index, route);
        }
        let hosts = table.hosts.values_mut().chain(table.below.values_mut());
        for rules in hosts.chain([&mut table.anywhere]) {
            rules.sort_by_key(Rule::rank);
        }
        table
    }

    fn add(&mut self, index: usize, route: &RouteConfig) {
        let matcher = &route.matcher;
        for listener in &matcher.match_listener {
            let name = listener.as_str();
            self.listeners.insert(name.into(), route.settings.mode);
            if route.settings.mode == Mode::Tcp {
                self.tcp.insert(name.into(), index);
            }
        }
        if route.settings.mode == Mode::Tcp {
            return;
        }
        self.reads_paths |= !matcher.match_path.is_empty();
        let mut rules = Vec::new();
        for path in each(&matcher.match_path) {
            for listener in each(&matcher.match_listener) {
                rules.push(Rule {
                    path: path.cloned(),
                    listener: listener.map(|name| name.as_str().into()),
                    route: index,
                });
            }
        }
        for host in &matcher.match_host {
            let (map, key) = match host {
                HostPattern::Exact(host) => (&mut self.hosts, host),
                HostPattern::Below(parent) => (&mut self.below, parent),
            };
            map.entry(key.as_bytes().into()).or_default().extend(rules.iter().cloned());
        }
        if matcher.match_host.is_empty() {
            self.anywhere.append(&mut rules);
        }
    }

    /// The route of a request, or none when nobody serves it (an answer of 404).
    ///
    /// `host` is the `Host` field or the authority as it came, `path` the path
    /// with or without its query, `listener` the name of the listener. Allocates
    /// only for a host or a path that is not in normal form, and nothing at all
    /// when there is but the default route.
    pub fn find(&self, host: Option<&[u8]>, path: &[u8], listener: &str) -> Option<usize> {
        if self.hosts.is_empty() && self.below.is_empty() && self.anywhere.is_empty() {
            return self.fallback();
        }
        let path = if self.reads_paths { normal_path(path) } else { path.into() };
        let among = |rules: &[Rule]| rules.iter().find(|rule| rule.matches(&path, listener)).map(|rule| rule.route);
        if !(self.hosts.is_empty() && self.below.is_empty()) {
            let host = normal_host(host.unwrap_or_default());
            let exact = self.hosts.get(&*host).and_then(|rules| among(rules));
            if exact.is_some() {
                return exact;
            }
            let mut rest: &[u8] = &host;
            while let Some(dot) = memchr::memchr(b'.', rest).filter(|_| !self.below.is_empty()) {
                let empty_label = dot == 0;
                rest = rest.get(dot + 1..).unwrap_or_default();
                if empty_label {
                    continue; // `.example.com` is no host below example.com
                }
                let found = self.below.get(rest).and_then(|rules| among(rules));
                if found.is_some() {
                    return found;
                }
            }
        }
        among(&self.anywhere).or_else(|| self.fallback())
    }

    /// The mode of a listener.
    pub fn mode(&self, listener: &str) -> Mode {
        let named = self.listeners.get(listener).copied();
        let default = self.default.map(|(_, mode)| mode);
        named.or(default).unwrap_or(Mode::Http)
    }

    /// The route of a connection on a listener with [`Mode::Tcp`].
    pub fn find_tcp(&self, listener: &str) -> Option<usize> {
        match (self.tcp.get(listener), self.listeners.get(listener)) {
            (Some(route), _) => Some(*route),
            (None, Some(_)) => None,
            (None, None) => self.default.filter(|(_, mode)| *mode == Mode::Tcp).map(|(route, _)| route),
        }
    }

    /// The default route, when it speaks HTTP.
    fn fallback(&self) -> Option<usize> {
        self.default.filter(|(_, mode)| *mode == Mode::Http).map(|(route, _)| route)
    }
}

/// Each entry, or once nothing at all when there is none.
fn each<T>(list: &[T]) -> impl Iterator<Item = Option<&T>> {
    let nothing = list.is_empty().then_some(None);
    list.iter().map(Some).chain(nothing)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Text};

    /// Routes by name and text, below a `config.env`.
    fn config(main: &str, routes: &[(&str, &str)]) -> Config {
        let text = |path: &str, text: &str| Text { path: Path::new(path).into(), bytes: text.as_bytes().to_vec() };
        let routes = routes.iter().map(|(name, body)| text(&format!("routes.d/{name}.env"), body)).collect();
        Config::assemble(Some(text("config.env", main)), routes, &BTreeMap::new())
            .unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn found<'a>(config: &'a Config, host: &str, path: &str, listener: &str) -> &'a str {
        let host = (host != "-").then_some(host.as_bytes());
        match Table::new(&config.routes).find(host, path.as_bytes(), listener) {
            Some(route) => &config.routes[route].name,
            None => "-",
        }
    }

    #[test]
    fn the_most_specific_route_wins() {
        let config = config(
            "",
            &[
                ("exact-host", "MATCH_HOST=www.example.com"),
                ("exact-host-api", "MATCH_HOST=www.example.com\nMATCH_PATH=/api"),
                ("below", "MATCH_HOST=*.example.com"),
                ("below-deep", "MATCH_HOST=*.eu.example.com"),
                ("below-exact-path", "MATCH_HOST=*.example.com\nMATCH_PATH==/api/v1"),
                ("path", "MATCH_PATH=/static,/assets"),
                ("path-deep", "MATCH_PATH=/static/img"),
                ("path-exact", "MATCH_PATH==/static/img"),
                ("listener", "MATCH_LISTENER=inside"),
                ("path-listener", "MATCH_PATH=/static\nMATCH_LISTENER=inside"),
                ("v6", "MATCH_HOST=[::1]"),
            ],
        );
        for (host, path, listener, route) in [
            ("www.example.com", "/", "http", "exact-host"),
            ("WWW.Example.com.:8080", "/", "http", "exact-host"),
            ("www.example.com", "/api", "http", "exact-host-api"),
            ("www.example.com", "/api/v1", "http", "exact-host-api"),
            ("www.example.com", "/apis", "http", "exact-host"),
            ("www.example.com", "/%61pi?x", "http", "exact-host-api"),
            ("www.example.com", "/x/../api", "http", "exact-host-api"),
            ("www.example.com", "/x%2F..%2Fapi", "http", "exact-host"),
            ("app.example.com", "/", "http", "below"),
            ("a.b.example.com", "/", "http", "below"),
            ("a.eu.example.com", "/", "http", "below-deep"),
            ("a.b.eu.example.com", "/", "http", "below-deep"),
            ("eu.example.com", "/", "http", "below"),
            ("a.eu.example.com", "/api/v1", "http", "below-deep"),
            ("app.example.com", "/api/v1", "http", "below-exact-path"),
            ("app.example.com", "/api/v1/", "http", "below"),
            ("example.com", "/", "http", "default"),
            (".example.com", "/", "http", "default"),
            ("xexample.com", "/", "http", "default"),
            ("example.com", "/static", "http", "path"),
            ("example.com", "/assets/x", "http", "path"),
            ("example.com", "/static/img/a", "http", "path-deep"),
            ("example.com", "/static/img", "http", "path-exact"),
            ("example.com", "/static/imgs", "http", "path"),
            ("example.com", "/", "inside", "listener"),
            ("example.com", "/static/x", "inside", "path-listener"),
            ("example.com", "/static/img/x", "inside", "path-deep"),
            ("-", "/", "http", "default"),
            ("-", "/static", "http", "path"),
            ("", "*", "http", "default"),
            ("[::1]:80", "/", "http", "v6"),
            ("[::2]:80", "/", "http", "default"),
        ] {
            assert_eq!(found(&config, host, path, listener), route, "{host} {path} {listener}");
        }
    }

    #[test]
    fn a_host_falls_back_when_none_of_its_paths_fits() {
        let config = config(
            "",
            &[
                ("a", "MATCH_HOST=a.example.com\nMATCH_PATH=/only"),
                ("b", "MATCH_HOST=*.example.com\nMATCH_PATH=/wild"),
                ("c", "MATCH_PATH=/"),
            ],
        );
        assert_eq!(found(&config, "a.example.com", "/only/x", "http"), "a");
        assert_eq!(found(&config, "a.example.com", "/wild", "http"), "b");
        assert_eq!(found(&config, "a.example.com", "/", "http"), "c");
        assert_eq!(found(&config, "a.example.com", "/%6fnly", "http"), "a");
    }

    #[test]
    fn a_listener_has_the_mode_of_the_routes_that_name_it() {
        let config = config(
            "",
            &[
                ("db", "MODE=tcp\nMATCH_LISTENER=db,db2"),
                ("app", "MATCH_LISTENER=app"),
                ("static", "MATCH_PATH=/static"),
            ],
        );
        let table = Table::new(&config.routes);
        assert_eq!(table.mode("db2"), Mode::Tcp);
        assert_eq!(table.find_tcp("db2"), Some(0));
        for listener in ["app", "http", "other"] {
            assert_eq!(table.mode(listener), Mode::Http);
            assert_eq!(table.find_tcp(listener), None);
        }
        assert_eq!(table.find(None, b"/", "app"), Some(1));
        assert_eq!(table.find(None, b"/static", "http"), Some(2));
        assert_eq!(table.find(None, b"/", "http"), Some(3));
    }

    #[test]
    fn with_a_tcp_default_a_named_http_listener_has_no_fallback() {
        let config = config("MODE=tcp", &[("app", "MODE=http\nMATCH_LISTENER=app\nMATCH_HOST=a.example.com")]);
        let table = Table::new(&config.routes);
        assert_eq!(table.mode("http"), Mode::Tcp);
        assert_eq!(table.find_tcp("http"), Some(1));
        assert_eq!(table.mode("app"), Mode::Http);
        assert_eq!(table.find_tcp("app"), None);
        assert_eq!(table.find(Some(b"a.example.com"), b"/", "app"), Some(0));
        assert_eq!(table.find(Some(b"b.example.com"), b"/", "app"), None);
    }

    #[test]
    fn without_route_files_everything_is_the_default() {
        let config = config("", &[]);
        let table = Table::new(&config.routes);
        assert_eq!(table.find(Some(b"any"), b"/../%61", "http"), Some(0));
        assert_eq!(table.find(None, b"*", "x"), Some(0));
        assert_eq!(table.mode("x"), Mode::Http);
        assert_eq!(Table::default().find(None, b"/", "http"), None);
    }
}

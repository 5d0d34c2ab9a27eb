//! The table: host, path and listener → route.
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

use std::ops::ControlFlow;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::config::{HostPattern, Mode, PathPattern, RouteConfig, SentPath, normal_host};

/// The routes of one configuration.
///
/// Routes are named by their index in the slice that the table was built from. The
/// maps' keys come from the configuration alone, so their hash need not withstand clients.
#[derive(Debug, Clone, Default)]
pub struct Table {
    hosts: FxHashMap<Box<[u8]>, Vec<Rule>>,
    /// By the parent: `example.com` for `*.example.com`.
    below: FxHashMap<Box<[u8]>, Vec<Rule>>,
    anywhere: Vec<Rule>,
    reads_paths: bool,
    listeners: FxHashMap<Box<str>, Mode>,
    /// The route of each listener with `MODE=tcp`.
    tcp: FxHashMap<Box<str>, usize>,
    default: Option<(usize, Mode)>,
}

/// One combination of host, path and listener that leads to a route.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The host, unless any will do.
    pub host: Option<Arc<HostPattern>>,
    /// The path, unless any will do.
    pub path: Option<PathPattern>,
    /// The listener, unless any will do.
    pub listener: Option<Box<str>>,
    /// The route's index.
    pub route: usize,
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

    /// Orders the more specific rule of one host first.
    fn rank(&self) -> (u8, std::cmp::Reverse<usize>, bool) {
        let (kind, length) = match &self.path {
            Some(PathPattern::Exact(_)) => (0, 0),
            Some(PathPattern::Prefix(prefix)) => (1, prefix.len()),
            None => (2, 0),
        };
        (kind, std::cmp::Reverse(length), self.listener.is_none())
    }
}

/// A route that would take a request.
#[derive(Debug, Clone, Copy)]
pub struct Hit<'a> {
    /// The route's index.
    pub route: usize,
    /// What of it matches; none for the default route, which takes the rest.
    pub rule: Option<&'a Rule>,
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
        for host in each(&matcher.match_host) {
            let rules = match host {
                Some(HostPattern::Exact(host)) => self.hosts.entry(host.as_bytes().into()).or_default(),
                Some(HostPattern::Below(parent)) => self.below.entry(parent.as_bytes().into()).or_default(),
                None => &mut self.anywhere,
            };
            let host = host.map(|host| Arc::new(host.clone()));
            for path in each(&matcher.match_path) {
                for listener in each(&matcher.match_listener) {
                    rules.push(Rule {
                        host: host.clone(),
                        path: path.cloned(),
                        listener: listener.map(|name| name.as_str().into()),
                        route: index,
                    });
                }
            }
        }
    }

    /// The route of a request, or none when nobody serves it (an answer of 404).
    ///
    /// `host` is the `Host` field or the authority as it came, `listener` the name of the
    /// listener. Allocates only for a host or a path that is not in normal form, and
    /// nothing at all when there is but the default route.
    pub fn find(&self, host: Option<&[u8]>, path: &SentPath<'_>, listener: &str) -> Option<usize> {
        self.search(host, path, listener, |hit| ControlFlow::Break(hit.route))
    }

    /// Every route that would take a request if the ones before it were not there; the
    /// first one is what [`Table::find`] finds.
    pub fn matching(&self, host: Option<&[u8]>, path: &SentPath<'_>, listener: &str) -> Vec<Hit<'_>> {
        let mut hits = Vec::new();
        let _: Option<()> = self.search(host, path, listener, |hit| {
            hits.push(hit);
            ControlFlow::Continue(())
        });
        hits
    }

    /// Shows the routes that match to `found`, the most specific one first, until that
    /// has had enough.
    #[inline]
    fn search<'a, B>(
        &'a self,
        host: Option<&[u8]>,
        path: &SentPath<'_>,
        listener: &str,
        mut found: impl FnMut(Hit<'a>) -> ControlFlow<B>,
    ) -> Option<B> {
        if !(self.hosts.is_empty() && self.below.is_empty() && self.anywhere.is_empty()) {
            let path = if self.reads_paths { path.normal() } else { path.bytes().into() };
            let mut among = |rules: &'a [Rule]| {
                let mut fit = rules.iter().filter(|rule| rule.matches(&path, listener));
                fit.find_map(|rule| found(Hit { route: rule.route, rule: Some(rule) }).break_value())
            };
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
                    let below = self.below.get(rest).and_then(|rules| among(rules));
                    if below.is_some() {
                        return below;
                    }
                }
            }
            let anywhere = among(&self.anywhere);
            if anywhere.is_some() {
                return anywhere;
            }
        }
        let fallback = self.default.filter(|(_, mode)| *mode == Mode::Http);
        fallback.and_then(|(route, _)| found(Hit { route, rule: None }).break_value())
    }

    /// Every rule in an order in which the first one that matches a request is the one
    /// that counts: exact hosts, then `*.` ones from the deepest on, then any host; for
    /// each host exact paths, then prefixes from the longest on, then any path.
    pub fn rules(&self) -> Vec<&Rule> {
        let mut hosts: Vec<_> = self.hosts.iter().collect();
        hosts.sort_by_key(|(host, _)| *host);
        let mut below: Vec<_> = self.below.iter().collect();
        below.sort_by_key(|(parent, _)| (std::cmp::Reverse(parent.len()), *parent));
        let all = hosts.into_iter().chain(below).flat_map(|(_, rules)| rules);
        all.chain(&self.anywhere).collect()
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
        let (table, path) = (Table::new(&config.routes), SentPath::of(path.as_bytes()));
        let found = table.find(host, &path, listener);
        // A list of all that match begins with it, and the first rule of all that matches is its.
        let all = table.matching(host, &path, listener);
        assert_eq!(all.first().map(|hit| hit.route), found);
        let listed = table
            .rules()
            .into_iter()
            .find(|rule| all.iter().any(|hit| hit.rule.is_some_and(|one| std::ptr::eq(one, *rule))));
        assert_eq!(listed.map(|rule| rule.route), all.first().and_then(|hit| hit.rule).map(|rule| rule.route));
        match found {
            Some(route) => &config.routes[route].name,
            None => "-",
        }
    }

    fn find(table: &Table, host: Option<&[u8]>, path: &str, listener: &str) -> Option<usize> {
        table.find(host, &SentPath::of(path.as_bytes()), listener)
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
                ("v6", "MATCH_HOST=[0:0::1]"),
            ],
        );
        for (host, path, listener, route) in [
            ("www.example.com", "/", "http", "exact-host"),
            ("WWW.Example.com.:8080", "/", "http", "exact-host"),
            ("www.example.com", "/api", "http", "exact-host-api"),
            ("www.example.com", "/api/v1", "http", "exact-host-api"),
            ("www.example.com", "/apis", "http", "exact-host"),
            ("www.example.com", "/%61pi", "http", "exact-host-api"),
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
            ("[0::0001]", "/", "http", "v6"),
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
        assert_eq!(find(&table, None, "/", "app"), Some(1));
        assert_eq!(find(&table, None, "/static", "http"), Some(2));
        assert_eq!(find(&table, None, "/", "http"), Some(3));
    }

    #[test]
    fn with_a_tcp_default_a_named_http_listener_has_no_fallback() {
        let config = config("MODE=tcp", &[("app", "MODE=http\nMATCH_LISTENER=app\nMATCH_HOST=a.example.com")]);
        let table = Table::new(&config.routes);
        assert_eq!(table.mode("http"), Mode::Tcp);
        assert_eq!(table.find_tcp("http"), Some(1));
        assert_eq!(table.mode("app"), Mode::Http);
        assert_eq!(table.find_tcp("app"), None);
        assert_eq!(find(&table, Some(b"a.example.com"), "/", "app"), Some(0));
        assert_eq!(find(&table, Some(b"b.example.com"), "/", "app"), None);
    }

    #[test]
    fn without_route_files_everything_is_the_default() {
        let config = config("", &[]);
        let table = Table::new(&config.routes);
        assert_eq!(find(&table, Some(b"any"), "/../%61", "http"), Some(0));
        assert_eq!(find(&table, None, "*", "x"), Some(0));
        assert_eq!(table.mode("x"), Mode::Http);
        assert_eq!(find(&Table::default(), None, "/", "http"), None);
    }
}

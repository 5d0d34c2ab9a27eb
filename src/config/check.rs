//! Settings that contradict each other, and those that seem unmeant.
//!
//! Only sound layers are compared: a second problem that follows from the first
//! one helps nobody.

use std::collections::HashMap;

use super::acme;
use super::backend_tls;
use super::load::{Config, RouteConfig};
use super::problems::{Origin, Problem, Problems, Setting};
use super::rewrites;
use super::tls;
use super::values::in_words;
use super::words::{BackendProtocol, Mode};
use super::{Auto, HostPattern, PathPattern, RouteSettings, Target};

/// Most combinations of host, path and listener in one route.
const COMBINATION_LIMIT: usize = 65_536;

/// Reports what can't hold together. `sound` says for each route whether its file is.
pub(super) fn contradictions(config: &Config, sound: &[bool], problems: &mut Problems) {
    let routes: Vec<&RouteConfig> =
        config.routes.iter().zip(sound).filter(|(_, sound)| **sound).map(|(route, _)| route).collect();
    let default = routes.last().filter(|route| route.is_default()).copied();
    if default.is_some() {
        listening(config, problems);
    }
    let mut taken = HashMap::new();
    let mut modes: HashMap<&str, &RouteConfig> = HashMap::new();
    for &route in &routes {
        backoff(config, route, problems);
        ejection(config, route, problems);
        attempt(config, route, problems);
        health(config, route, problems);
        backends(config, route, problems);
        balance(config, route, problems);
        protocol(config, route, problems);
        rewrites::contradictions(config, route, default.is_some(), problems);
        tls::contradictions(config, route, problems);
        backend_tls::contradictions(config, route, problems);
        if route.is_default() {
            continue;
        }
        if combinations(route) == 0 {
            problems.push(Problem::new(
                route.origin.clone(),
                "a route needs `MATCH_HOST`, `MATCH_PATH` or `MATCH_LISTENER`; \
                 what no route matches goes where `config.env` says",
            ));
            continue;
        }
        if combinations(route) > COMBINATION_LIMIT {
            problems.push(Problem::new(
                route.origin.clone(),
                format!("more than {COMBINATION_LIMIT} combinations of host, path and listener"),
            ));
            continue;
        }
        // A route inherits its mode, so a broken config.env says nothing of it.
        if default.is_some() || route.setting("MODE").is_some() {
            mode(route, default, &mut modes, problems);
        }
        duplicate(route, &mut taken, problems);
    }
    acme::contradictions(config, sound.iter().all(|sound| *sound), problems);
    if sound.iter().all(|sound| *sound) {
        tls::client_contradictions(config, problems);
    }
}

/// What is spoken on a socket is one thing only.
fn listening(config: &Config, problems: &mut Problems) {
    let daemon = &config.daemon;
    let keys = [
        ("PROXY_ADDRESS", &daemon.proxy_address),
        ("PROXY_TLS_ADDRESS", &daemon.proxy_tls_address),
        ("METRICS_ADDRESS", &daemon.metrics_address),
    ];
    for (place, (key, addresses)) in keys.iter().enumerate() {
        let Some(setting) = config.setting(key) else { continue };
        for address in *addresses {
            let mut before = keys.iter().take(place);
            if let Some((other, _)) = before.find(|(_, taken)| taken.iter().any(|other| other.clashes(address))) {
                problems.push(setting.problem(format!("`{address}` is taken by `{other}={address}`"), None));
            }
        }
    }
}

/// How many combinations a route matches; 0 when it names nothing.
fn combinations(route: &RouteConfig) -> usize {
    let counts = [route.matcher.match_host.len(), route.matcher.match_path.len(), route.matcher.match_listener.len()];
    if counts == [0, 0, 0] {
        return 0;
    }
    counts.iter().fold(1, |product: usize, count| product.saturating_mul((*count).max(1)))
}

/// A pool needs somebody who takes what is new.
fn backends(config: &Config, route: &RouteConfig, problems: &mut Problems) {
    let backends = &route.settings.backend_address;
    let message = if backends.is_empty() {
        return; // `off`
    } else if backends.iter().all(|backend| backend.backup) {
        "every backend is a `backup`; one without the mark is needed"
    } else if backends.iter().all(|backend| backend.weight == 0) {
        "every backend has `weight=0`, so that none takes requests"
    } else {
        return;
    };
    contradicts(config, route, ["BACKEND_ADDRESS"; 2], message.to_owned(), problems);
}

/// A connection of `MODE=tcp` brings no field and no cookie.
fn balance(config: &Config, route: &RouteConfig, problems: &mut Problems) {
    let balance = &route.settings.balance;
    if route.settings.mode != Mode::Tcp || !balance.needs_http() {
        return;
    }
    let message = format!("with `MODE=tcp` nothing is read that `BALANCE={balance}` could go by");
    contradicts(config, route, ["BALANCE", "MODE"], message, problems);
}

/// Bytes that nobody reads are passed on as they come.
fn protocol(config: &Config, route: &RouteConfig, problems: &mut Problems) {
    let RouteSettings { mode, backend_protocol, .. } = &route.settings;
    if *mode == Mode::Tcp && *backend_protocol == BackendProtocol::H2 {
        let message = "with `MODE=tcp` nothing is read that `BACKEND_PROTOCOL=h2` could turn into HTTP/2";
        contradicts(config, route, ["BACKEND_PROTOCOL", "MODE"], message.to_owned(), problems);
    }
}

fn backoff(config: &Config, route: &RouteConfig, problems: &mut Problems) {
    let RouteSettings { retry_backoff: first, retry_backoff_max: most, .. } = &route.settings;
    if first > most {
        let message =
            format!("the first wait ({}) is longer than the longest one ({})", in_words(*first), in_words(*most));
        contradicts(config, route, ["RETRY_BACKOFF", "RETRY_BACKOFF_MAX"], message, problems);
    }
}

fn ejection(config: &Config, route: &RouteConfig, problems: &mut Problems) {
    let RouteSettings { eject_time: first, eject_time_max: most, .. } = &route.settings;
    if first > most {
        let message =
            format!("the first ejection ({}) is longer than the longest one ({})", in_words(*first), in_words(*most));
        contradicts(config, route, ["EJECT_TIME", "EJECT_TIME_MAX"], message, problems);
    }
}

/// A part of the time can't be longer than the whole.
fn attempt(config: &Config, route: &RouteConfig, problems: &mut Problems) {
    let RouteSettings { attempt_timeout: Some(attempt), request_timeout: Some(request), .. } = &route.settings else {
        return;
    };
    if attempt > request {
        let message = format!(
            "an attempt ({}) may take longer than the whole request ({})",
            in_words(*attempt),
            in_words(*request)
        );
        contradicts(config, route, ["ATTEMPT_TIMEOUT", "REQUEST_TIMEOUT"], message, problems);
    }
}

fn health(config: &Config, route: &RouteConfig, problems: &mut Problems) {
    let RouteSettings { health_timeout: timeout, health_interval: interval, .. } = &route.settings;
    if timeout > interval {
        let message = format!(
            "a check may take longer ({}) than it is until the next one ({})",
            in_words(*timeout),
            in_words(*interval)
        );
        contradicts(config, route, ["HEALTH_TIMEOUT", "HEALTH_INTERVAL"], message, problems);
    }
}

/// Reports that two keys contradict each other, where the first of them is set. What a route
/// inherits is reported there.
fn contradicts(config: &Config, route: &RouteConfig, keys: [&str; 2], message: String, problems: &mut Problems) {
    let base = |key| config.setting(key).filter(|_| route.is_default());
    let set = keys.into_iter().find_map(|key| route.setting(key)).or_else(|| keys.into_iter().find_map(base));
    if let Some(setting) = set {
        problems.push(setting.problem(message, None));
    }
}

/// TCP carries neither host nor path, and a listener speaks one of both.
fn mode<'a>(
    route: &'a RouteConfig,
    default: Option<&RouteConfig>,
    modes: &mut HashMap<&'a str, &'a RouteConfig>,
    problems: &mut Problems,
) {
    let mine = route.settings.mode;
    if mine == Mode::Tcp {
        let unmatchable = ["MATCH_HOST", "MATCH_PATH"].into_iter().filter_map(|key| route.setting(key));
        let before = problems.len();
        for setting in unmatchable.filter(|setting| !setting.text.is_empty()) {
            problems.push(
                setting.problem(
                    "with `MODE=tcp` nothing is read that names a host or a path; \
                 `MATCH_LISTENER` is left"
                        .to_owned(),
                    None,
                ),
            );
        }
        if problems.len() > before {
            return;
        }
    }
    let listeners = &route.matcher.match_listener;
    if listeners.is_empty() && default.is_some_and(|default| default.settings.mode == Mode::Tcp) {
        problems.push(Problem::new(
            route.origin.clone(),
            "`config.env` says `MODE=tcp` for every listener that no route names; \
             a route with `MODE=http` needs `MATCH_LISTENER` beside it",
        ));
    }
    for listener in listeners {
        let first = modes.entry(listener).or_insert(route);
        if first.settings.mode != mine {
            let message = format!(
                "listener `{listener}` has `MODE={}` in {} and `MODE={mine}` here",
                first.settings.mode,
                place(first, "MATCH_LISTENER")
            );
            problems.push(at(route, "MATCH_LISTENER", listener, message));
        }
    }
}

type Combination<'a> = (Option<&'a HostPattern>, Option<&'a PathPattern>, Option<&'a str>);

/// Two routes that match the same; which one would win is nobody's guess.
fn duplicate<'a>(
    route: &'a RouteConfig,
    taken: &mut HashMap<Combination<'a>, &'a RouteConfig>,
    problems: &mut Problems,
) {
    fn each<T>(list: &[T]) -> Vec<Option<&T>> {
        if list.is_empty() { vec![None] } else { list.iter().map(Some).collect() }
    }
    let mut said = false;
    for host in each(&route.matcher.match_host) {
        for path in each(&route.matcher.match_path) {
            for listener in each(&route.matcher.match_listener) {
                let combination = (host, path, listener.map(String::as_str));
                let first = *taken.entry(combination).or_insert(route);
                if std::ptr::eq(first, route) || said {
                    continue;
                }
                said = true; // once for a route
                let words: Vec<String> = [
                    host.map(|host| format!("host `{host}`")),
                    path.map(|path| format!("path `{path}`")),
                    listener.map(|listener| format!("listener `{listener}`")),
                ]
                .into_iter()
                .flatten()
                .collect();
                let key = match (host, path) {
                    (Some(_), _) => "MATCH_HOST",
                    (None, Some(_)) => "MATCH_PATH",
                    (None, None) => "MATCH_LISTENER",
                };
                let message = format!("{} is matched by {} too", words.join(", "), place(first, key));
                problems.push(at(route, key, "", message));
            }
        }
    }
}

/// Where a route says `key`.
fn place<'a>(route: &'a RouteConfig, key: &str) -> &'a Origin {
    route.setting(key).map_or(&route.origin, |setting| &setting.origin)
}

/// A problem at the line of `key`, under `part` of its value.
fn at(route: &RouteConfig, key: &str, part: &str, message: String) -> Problem {
    match route.setting(key) {
        Some(setting) => setting.problem(message, Some(part)),
        None => Problem::new(route.origin.clone(), message),
    }
}

/// A path of gRPC on a route whose backends can't speak it, by the form that all of them have:
/// `/package.Service`.
fn grpc(route: &RouteConfig) -> Option<String> {
    let is_service = |segment: &str| {
        let capital = |name: &str| name.starts_with(|first: char| first.is_ascii_uppercase());
        segment.rsplit_once('.').is_some_and(|(package, name)| !package.is_empty() && capital(name))
    };
    let named = |pattern: &&PathPattern| {
        let (PathPattern::Exact(path) | PathPattern::Prefix(path)) = pattern;
        path.split('/').nth(1).is_some_and(is_service)
    };
    let path = route.matcher.match_path.iter().find(named)?;
    let asks = route.settings.mode == Mode::Http && !route.settings.backend_address.is_empty();
    (asks && route.settings.backend_protocol == BackendProtocol::Http1).then(|| {
        format!(
            "{}: `{path}` looks like a service of gRPC, which needs `BACKEND_PROTOCOL=h2`",
            place(route, "MATCH_PATH")
        )
    })
}

/// What is allowed and yet seems unmeant.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let daemon = &config.daemon;
    let place = |setting: Option<&Setting>| match setting {
        Some(setting) => setting.origin.to_string(),
        None => Origin::Default.to_string(),
    };
    if let Auto::Is(connections) = daemon.max_connections {
        if connections < daemon.max_concurrent_requests {
            warnings.push(format!(
                "{}: `MAX_CONNECTIONS` ({connections}) is below `MAX_CONCURRENT_REQUESTS` ({})",
                place(config.setting("MAX_CONNECTIONS")),
                daemon.max_concurrent_requests
            ));
        }
    }
    warnings.extend(acme::warnings(config));
    warnings.extend(backend_tls::warnings(config));
    for route in &config.routes {
        warnings.extend(rewrites::warnings(route));
        warnings.extend(grpc(route));
        let own = route.setting("BACKEND_ADDRESS");
        if own.is_none() && !route.is_default() {
            continue; // inherited, and said there
        }
        let place = place(own.or_else(|| config.setting("BACKEND_ADDRESS")));
        let backends = &route.settings.backend_address;
        if backends.len() > 1 && backends.iter().any(|one| one.target == Target::Echo) {
            warnings.push(format!("{place}: the built-in page takes its turn among the backends"));
        }
        for address in daemon.proxy_address.iter().chain(&daemon.proxy_tls_address) {
            let listen = address.to_string();
            if backends.iter().any(|one| one.target.to_string() == listen) {
                warnings.push(format!("{place}: backend `{listen}` is the address that doorward listens on itself"));
            }
        }
    }
    warnings
}

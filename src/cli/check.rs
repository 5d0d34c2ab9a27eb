//! `doorward check`: what is wrong with the configuration, else what it means.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{CONFIGURATION, access, complain, say, table};
use crate::config::{
    Auto, BackendTls, Config, FileSource, Matcher, Mode, Origin, Problems, Request, RouteConfig, Setting, load,
};
use crate::routing::{Rule, Table};
use crate::telemetry::Reason;
use crate::tls::{Clients, Doors, Pair};
use crate::transport::listeners;

/// Prints the problems of the configuration on standard error, or its meaning on standard output.
///
/// # Errors
/// Standard output can't be written.
pub fn check(request: &Request) -> anyhow::Result<ExitCode> {
    let loaded = load(request)
        .and_then(|config| Problems::join(Doors::examine(&config), Clients::examine(&config)).map(|tls| (config, tls)));
    let (config, (doors, clients)) = match loaded {
        Ok(loaded) => loaded,
        Err(problems) => {
            complain(&problems.to_string());
            return Ok(ExitCode::from(CONFIGURATION));
        }
    };
    say(&meaning(&config, &doors, &clients))?;
    if let Some(user) = access::packaged_user() {
        let unreadable = access::unreadable(&user, &files(&config, &doors))?;
        if !unreadable.is_empty() {
            complain(&format!(
                "\n{}\nthe daemon runs as this user; `chgrp {user} FILE` and `chmod g+r FILE` let it read",
                unreadable.join("\n"),
                user = access::USER
            ));
            return Ok(ExitCode::from(CONFIGURATION));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Every file and folder that the daemon opens for this configuration.
fn files(config: &Config, doors: &Doors) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = config.files().map(PathBuf::from).collect();
    // What is in the folder of credentials is the service's already.
    let kept = |path: &&PathBuf| config.credentials.as_ref().is_none_or(|folder| !path.starts_with(folder));
    let mut pairs: Vec<PathBuf> =
        doors.pairs().flat_map(|pair| [&pair.certificate, &pair.key]).filter(kept).cloned().collect();
    if config.daemon.acme {
        let named = [&config.daemon.acme_ca, &config.daemon.acme_eab_key].into_iter().flatten();
        pairs.extend(named.filter_map(|file| file.path(None)));
    }
    pairs.dedup();
    paths.extend(pairs);
    let of_backends = config.routes.iter().filter_map(|route| BackendTls::of(config, route));
    let mut of_backends: Vec<PathBuf> = of_backends
        .flat_map(|tls| tls.authorities.iter().chain(tls.certificate).chain(tls.key))
        .filter_map(|file| file.path(None))
        .collect();
    of_backends.sort();
    of_backends.dedup();
    paths.extend(of_backends);
    let beside = config.routes.iter().filter_map(|route| match &route.origin {
        Origin::File(path) if route.is_default() => path.parent().map(|folder| folder.join("routes.d")),
        Origin::File(path) => path.parent().map(PathBuf::from),
        _ => None,
    });
    let mut folders: Vec<PathBuf> = beside.filter(|folder| folder.is_dir()).collect();
    folders.sort();
    folders.dedup();
    paths.extend(folders);
    paths
}

/// The configuration in words.
fn meaning(config: &Config, doors: &Doors, clients: &Clients) -> String {
    let mut parts = vec![read(config)];
    let warnings = config.warnings.iter().chain(doors.warnings()).chain(clients.warnings());
    // Certificates that are credentials were not examined, and are not lacking.
    let named = config.routes.iter().any(|route| !route.settings.tls_certificate.is_empty());
    let lack = doors.lack(config).filter(|_| !named && !config.daemon.proxy_tls_address.is_empty());
    let warnings = warnings.map(String::as_str).chain(lack);
    parts.extend(warnings.map(|warning| format!("warning: {warning}")));
    parts.push(format!("\nlistens on\n{}", listening(config)));
    let of_backends: Vec<&Pair> = clients.identities().map(|pair| &**pair).collect();
    for (shown, pairs) in
        [("certificates", doors.pairs().collect()), ("certificates that backends are shown", of_backends)]
    {
        if !pairs.is_empty() {
            parts.push(format!("\n{shown}\n{}", certificates(&pairs)));
        }
    }
    let names: Vec<String> = config.acme_names().into_iter().map(String::from).collect();
    if !names.is_empty() {
        parts.push(format!(
            "\nautomatic certificates, from {}\n  {}",
            config.daemon.acme_directory,
            names.join("\n  ")
        ));
    }
    if !config.settings.is_empty() {
        parts.push(format!("\nsettings\n{}", settings("  ", &config.settings)));
    }
    parts.push(format!("\nroutes; of those that match, the most specific one counts\n{}", routes(config)));
    parts.extend(routing(config).map(|rows| format!("\nrequests take the first line here that matches\n{rows}")));
    parts.join("\n")
}

fn read(config: &Config) -> String {
    let files: Vec<String> = config.files().map(|path| format!("  {}", path.display())).collect();
    if files.is_empty() {
        "configuration is sound; there is no config.env, so the defaults count".to_owned()
    } else {
        format!("configuration is sound; read\n{}", files.join("\n"))
    }
}

fn listening(config: &Config) -> String {
    let daemon = &config.daemon;
    let when = |tls: &str| format!("{tls}when systemd passes no socket");
    let plain = daemon.proxy_address.iter().map(|address| [address.to_string(), when("")]);
    let tls = daemon.proxy_tls_address.iter().map(|address| [address.to_string(), when("for TLS, ")]);
    let mut rows: Vec<[String; 2]> = plain.chain(tls).collect();
    let mut names: Vec<&str> =
        config.routes.iter().flat_map(|route| &route.matcher.match_listener).map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| *name != listeners::HTTPS || daemon.proxy_tls_address.is_empty());
    for name in names {
        rows.push([format!("listener `{name}`"), "which a socket unit must pass".to_owned()]);
    }
    let workers = match config.daemon.workers {
        Auto::Auto => "one worker thread for each core".to_owned(),
        Auto::Is(1) => "1 worker thread".to_owned(),
        Auto::Is(count) => format!("{count} worker threads"),
    };
    rows.push(["by".to_owned(), workers]);
    table("  ", &rows)
}

/// Each certificate with what it is for, its key, its time, and those that follow it.
fn certificates(pairs: &[&Pair]) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let rows: Vec<[String; 4]> = pairs
        .iter()
        .map(|pair| {
            let facts = &pair.facts;
            let left = match facts.days_left(now) {
                ..=-1 => "has expired".to_owned(),
                _ if now < facts.not_before => "is not valid yet".to_owned(),
                1 => "1 day left".to_owned(),
                days => format!("{days} days left"),
            };
            let above = if pair.chain.is_empty() { vec![facts.issuer.clone()] } else { pair.chain.clone() };
            let chain = format!("signed by {}", above.join(" ← "));
            [facts.covers(), format!("{}, {left}", facts.key), chain, pair.certificate.display().to_string()]
        })
        .collect();
    table("  ", &rows)
}

/// What is set, to what, and by whom; what equals the default is marked.
fn settings(indent: &str, settings: &[Setting]) -> String {
    let rows: Vec<[String; 3]> = settings
        .iter()
        .map(|setting| {
            let same = setting.key.is_default(&setting.text);
            let mark = if same { ", the default" } else { "" };
            [setting.key.name.to_owned(), setting.text.clone(), format!("{}{mark}", setting.origin)]
        })
        .collect();
    table(indent, &rows)
}

/// By whom and as whom the backends of a route prove themselves over TLS.
pub(super) fn over_tls(config: &Config, route: &RouteConfig) -> Option<String> {
    let tls = BackendTls::of(config, route)?;
    let list = |files: &[FileSource]| files.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let name = match &route.settings.backend_tls_name {
        Auto::Auto => String::new(),
        Auto::Is(name) => format!(" as `{}`", name.to_str()),
    };
    let mut text = match (tls.verify, tls.authorities) {
        (false, _) => "verified by nobody (BACKEND_TLS_VERIFY=off)".to_owned(),
        (true, []) => format!("verified{name} by the authorities that this host trusts"),
        (true, files) => format!("verified{name} by {}", list(files)),
    };
    if let Some(certificate) = tls.certificate {
        text.push_str(&format!("; shown {certificate}"));
    }
    Some(text)
}

fn routes(config: &Config) -> String {
    let heads: Vec<[String; 4]> = config
        .routes
        .iter()
        .map(|route| {
            [route.name.clone(), route.settings.mode.to_string(), matching(route), format!("→ {}", leads_to(route))]
        })
        .collect();
    let heads = table("  ", &heads);
    let lines = heads.lines().zip(&config.routes).map(|(head, route)| {
        let own: Vec<Setting> = route
            .own
            .iter()
            .filter(|setting| !setting.key.name.starts_with("MATCH_") && setting.key.name != "BACKEND_ADDRESS")
            .cloned()
            .collect();
        let mut lines = vec![head.to_owned()];
        lines.extend(over_tls(config, route).map(|how| format!("      over TLS, {how}")));
        lines.extend((!own.is_empty()).then(|| settings("      ", &own)));
        lines.join("\n")
    });
    lines.collect::<Vec<String>>().join("\n")
}

/// The routing table, if there is more in it than the default route.
fn routing(config: &Config) -> Option<String> {
    let routes = Table::new(&config.routes);
    let name = |route: usize| config.routes.get(route).map_or_else(String::new, |route| format!("→ {}", route.name));
    let any = || "any".to_owned();
    let mut rows: Vec<[String; 4]> = routes
        .rules()
        .into_iter()
        .map(|Rule { host, path, listener, route }| {
            [
                host.as_ref().map_or_else(any, ToString::to_string),
                path.as_ref().map_or_else(any, ToString::to_string),
                listener.as_ref().map_or_else(any, ToString::to_string),
                name(*route),
            ]
        })
        .collect();
    if rows.is_empty() {
        return None;
    }
    rows.insert(0, ["host", "path", "listener", ""].map(ToOwned::to_owned));
    let rest = match config.routes.last() {
        Some(default) if default.settings.mode == Mode::Http => name(config.routes.len() - 1),
        _ => format!("{} {}", Reason::NoRoute.status(), Reason::NoRoute),
    };
    rows.push([any(), any(), any(), rest]);
    Some(table("  ", &rows))
}

/// What a route takes, in words.
fn matching(route: &RouteConfig) -> String {
    let Matcher { match_host, match_path, match_listener } = &route.matcher;
    let list = |words: Vec<String>, name: &str| match words.is_empty() {
        true => None,
        false => Some(format!("{name} {}", words.join(", "))),
    };
    let parts: Vec<String> = [
        list(match_host.iter().map(ToString::to_string).collect(), "host"),
        list(match_path.iter().map(ToString::to_string).collect(), "path"),
        list(match_listener.clone(), "listener"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if parts.is_empty() { "everything else".to_owned() } else { parts.join("; ") }
}

/// Where a route leads: to its backends, elsewhere, or nowhere.
pub(super) fn leads_to(route: &RouteConfig) -> String {
    if let Some(redirect) = &route.settings.redirect {
        return format!("{} {}", redirect.status, redirect.target);
    }
    if route.settings.backend_address.is_empty() {
        return format!("{} {}", Reason::NoRoute.status(), Reason::NoRoute);
    }
    let backends: Vec<String> = route
        .settings
        .backend_address
        .iter()
        .map(|backend| match (backend.weight, backend.backup) {
            (1, false) => backend.target.to_string(),
            (1, true) => format!("{} (backup)", backend.target),
            (0, _) => format!("{} (drains)", backend.target),
            (weight, false) => format!("{} (weight {weight})", backend.target),
            (weight, true) => format!("{} (weight {weight}, backup)", backend.target),
        })
        .collect();
    backends.join(", ")
}

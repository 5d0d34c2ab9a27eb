//! `doorward explain --request`: which route takes a request, why, and what is set for it.
//!
//! The request is read by the parser and routed by the table that the daemon uses, so
//! that what is said here is what happens there.

use std::process::ExitCode;

use super::check::{leads_to, over_tls};
use super::{CONFIGURATION, USAGE, complain, say, table};
use crate::config::{Config, HostPattern, KEYS, Mode, Request, RouteConfig, Scope, SentPath, Setting, load};
use crate::proxy::head::{Method, RequestHead};
use crate::proxy::http1::parse;
use crate::proxy::rewrite::{Rewrite, redirected, unchanged};
use crate::routing::{Answer, Hit, Rewrites, Rule, Table};
use crate::telemetry::Reason;
use crate::transport::buffer::Buffer;

/// The listener that is meant when none is named: what doorward binds itself.
pub const LISTENER: &str = "http";

/// Prints what would become of `text`, as in `GET http://api.example.com/v1/x`, on a listener.
///
/// # Errors
/// Standard output can't be written.
pub fn explain_request(text: &str, listener: &str, request: &Request) -> anyhow::Result<ExitCode> {
    let head = match read(text) {
        Ok(head) => head,
        Err(Some(reason)) => {
            complain(&format!("doorward: such a request is refused: {} {reason}", reason.status()));
            return Ok(ExitCode::from(USAGE));
        }
        Err(None) => {
            complain(&format!("doorward: `{text}` is no request; write it as in 'GET http://api.example.com/v1/x'"));
            return Ok(ExitCode::from(USAGE));
        }
    };
    let config = match load(request) {
        Ok(config) => config,
        Err(problems) => {
            complain(&problems.to_string());
            return Ok(ExitCode::from(CONFIGURATION));
        }
    };
    say(&outcome(text, &head, listener, &config))?;
    Ok(ExitCode::SUCCESS)
}

/// Reads a method, which may be left out, and a target, in whatever form it has.
fn read(text: &str) -> Result<RequestHead, Option<Reason>> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (method, target) = match words.as_slice() {
        [target] if target.starts_with('/') || target.contains("://") => ("GET", *target),
        [method, target] => (*method, *target),
        _ => return Err(None),
    };
    // In HTTP/1.0 a target in origin form needs no Host.
    let line = format!("{method} {target} HTTP/1.0\r\n\r\n");
    let mut buffer = Buffer::take();
    if buffer.append(line.as_bytes()) < line.len() {
        return Err(Some(Reason::TargetTooLong));
    }
    parse::request(&mut Some(buffer), usize::MAX).map_err(Some)?.ok_or(None)
}

fn outcome(text: &str, head: &RequestHead, listener: &str, config: &Config) -> String {
    let routes = Table::new(&config.routes);
    let mut parts = vec![format!("{} on listener `{listener}`", text.trim())];
    if routes.mode(listener) == Mode::Tcp {
        parts.push("  connections there are relayed unread (MODE=tcp)".to_owned());
        match routes.find_tcp(listener).and_then(|route| config.routes.get(route)) {
            Some(route) => {
                parts.extend(taken(config, route, vec![row("route", name(route)), row("leads to", leads_to(route))]))
            }
            None => parts.push("  no route takes them: they are closed".to_owned()),
        }
        return parts.join("\n");
    }
    let path = SentPath::of(head.path());
    let hits = routes.matching(head.authority(), &path, listener);
    let found = hits.first().and_then(|hit| Some((hit, config.routes.get(hit.route)?)));
    let Some((hit, route)) = found else {
        parts.push(format!("  no route takes it: {} {}", Reason::NoRoute.status(), Reason::NoRoute));
        return parts.join("\n");
    };
    let mut rows = vec![row("route", name(route))];
    rows.extend(list("because", why(hit.rule, route)));
    rows.extend(list("ahead of", others(&hits, config)));
    rows.push(row("leads to", leads_to(route)));
    rows.extend(over_tls(config, route).map(|how| row("over TLS", how)));
    rows.extend(to_https(head, route));
    rows.extend(passed_on(head, &path, route));
    parts.extend(taken(config, route, rows));
    parts.join("\n")
}

/// What a backend is sent, where it is not what came, or what is answered instead.
fn passed_on(head: &RequestHead, path: &SentPath<'_>, route: &RouteConfig) -> Option<[String; 2]> {
    if head.method == Method::Trace {
        return Some(row("answer", format!("{} {}", Reason::MethodRefused.status(), Reason::MethodRefused)));
    }
    let rewrites = Rewrites::of(&route.settings);
    if let Some(Answer::Redirect(redirect)) = rewrites.as_ref().and_then(|rewrites| rewrites.answer.as_ref()) {
        let to = redirected(redirect, rewrites.as_deref()?, head, path);
        return Some(row("location", to.unwrap_or_else(|reason| format!("none: {} {reason}", reason.status()))));
    }
    let (sent, query) = Rewrite::of(path, rewrites.as_deref()).target(head);
    let sent = [sent, query].concat();
    let why = match path.changed() {
        _ if sent == head.target() => return None,
        Some(_) => ", with dot segments resolved",
        None => "",
    };
    Some(row("sent on", format!("{}{why}", String::from_utf8_lossy(&sent))))
}

/// Where clients are sent that come without TLS.
fn to_https(head: &RequestHead, route: &RouteConfig) -> Option<[String; 2]> {
    let redirect = Rewrites::of(&route.settings)?.https?;
    let to = unchanged(&redirect, head).unwrap_or_else(|reason| reason.to_string());
    Some(row("without TLS", format!("{} {to}", redirect.status)))
}

/// The facts of a route, and what is set for it.
fn taken(config: &Config, route: &RouteConfig, rows: Vec<[String; 2]>) -> Vec<String> {
    let mut parts = vec![table("  ", &rows)];
    let scopes: [(&str, &[Scope]); 2] = [
        ("set for the route, other than the default", &[Scope::Matcher, Scope::Route]),
        ("set for the daemon, other than the default", &[Scope::Daemon]),
    ];
    for (title, scopes) in scopes {
        let rows = differing(config, route, scopes);
        if !rows.is_empty() {
            parts.push(format!("\n{title}\n{}", table("  ", &rows)));
        }
    }
    parts
}

/// The keys of these scopes whose value is not the default, with who set them.
fn differing(config: &Config, route: &RouteConfig, scopes: &[Scope]) -> Vec<[String; 3]> {
    let keys = KEYS.iter().filter(|key| scopes.contains(&key.scope));
    let settings = keys.filter_map(|key| config.setting_of(route, key.name));
    let differing = settings.filter(|setting| !setting.key.is_default(&setting.text));
    differing.map(|Setting { key, text, origin, .. }| [key.name.to_owned(), text.clone(), origin.to_string()]).collect()
}

fn row(name: &str, text: impl Into<String>) -> [String; 2] {
    [name.to_owned(), text.into()]
}

/// Rows under one name.
fn list(name: &str, texts: Vec<String>) -> Vec<[String; 2]> {
    let names = std::iter::once(name).chain(std::iter::repeat(""));
    names.zip(texts).map(|(name, text)| row(name, text)).collect()
}

fn name(route: &RouteConfig) -> String {
    format!("{} ({})", route.name, route.origin)
}

/// Which patterns of the winner match, each with its line.
fn why(rule: Option<&Rule>, route: &RouteConfig) -> Vec<String> {
    let Some(rule) = rule else {
        return vec!["no other route matches".to_owned()];
    };
    let at = |key| route.setting(key).map_or_else(String::new, |setting| format!(" ({})", setting.origin));
    patterns(rule).into_iter().flatten().map(|(key, pattern)| format!("{key} {pattern} matches{}", at(key))).collect()
}

/// The other routes that match, the next one first, each once.
fn others(hits: &[Hit<'_>], config: &Config) -> Vec<String> {
    let mut seen: Vec<usize> = hits.first().map(|hit| hit.route).into_iter().collect();
    let mut lines = Vec::new();
    for hit in hits {
        if seen.contains(&hit.route) {
            continue;
        }
        seen.push(hit.route);
        let Some(route) = config.routes.get(hit.route) else { continue };
        lines.push(match hit.rule {
            None => format!("{}, which takes the rest", route.name),
            Some(rule) => {
                let words: Vec<String> =
                    patterns(rule).into_iter().flatten().map(|(key, pattern)| format!("{key} {pattern}")).collect();
                format!("{}, by {}", route.name, words.join(", "))
            }
        });
    }
    lines
}

/// The patterns of a rule, each with its key.
fn patterns(rule: &Rule) -> [Option<(&'static str, String)>; 3] {
    [
        rule.host.as_deref().map(|host: &HostPattern| ("MATCH_HOST", host.to_string())),
        rule.path.as_ref().map(|path| ("MATCH_PATH", path.to_string())),
        rule.listener.as_deref().map(|listener| ("MATCH_LISTENER", listener.to_owned())),
    ]
}

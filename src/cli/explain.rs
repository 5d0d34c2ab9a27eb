//! `doorward explain KEY`: what a key means and what it is set to.

use std::process::ExitCode;

use super::{USAGE, complain, say, table, wrap};
use crate::config::{Config, KEYS, Key, Origin, Request, Scope, Setting, load, nearest};

/// Prints the meaning of a key and its present value, or a list of all keys.
///
/// # Errors
/// Standard output can't be written.
pub fn explain(name: Option<&str>, request: &Request) -> anyhow::Result<ExitCode> {
    let Some(name) = name else {
        say(&all())?;
        return Ok(ExitCode::SUCCESS);
    };
    let Some(key) = Key::find(&name.to_ascii_uppercase()) else {
        complain(&match nearest(name) {
            Some(key) => format!("doorward: unknown key `{name}`; did you mean `{}`?", key.name),
            None => format!("doorward: unknown key `{name}`; `doorward explain` lists all keys"),
        });
        return Ok(ExitCode::from(USAGE));
    };
    let now = match load(request) {
        Ok(config) => values(key, &config),
        Err(_) => vec!["unknown, for the configuration has problems; see `doorward check`".to_owned()],
    };
    say(&meaning(key, &now))?;
    Ok(ExitCode::SUCCESS)
}

fn all() -> String {
    let mut lines = Vec::new();
    let mut group = "";
    let width = KEYS.iter().map(|key| key.name.len()).max().unwrap_or_default();
    for key in KEYS {
        if key.group != group {
            group = key.group;
            lines.push(format!("{}{group}", if lines.is_empty() { "" } else { "\n" }));
        }
        lines.push(format!("  {:width$}  {}", key.name, if key.default.is_empty() { "-" } else { key.default }));
    }
    lines.push("\n`doorward explain KEY` explains a key; doorward.env(5) explains all.".to_owned());
    lines.join("\n")
}

fn meaning(key: &Key, now: &[String]) -> String {
    let row = |name: &str, text: &str| (!text.is_empty()).then(|| [name.to_owned(), text.to_owned()]);
    let mut rows: Vec<[String; 2]> = [
        row("takes", &key.form()),
        row("counts", key.unit),
        row("default", key.default),
        row("stands", place(key.scope)),
    ]
    .into_iter()
    .flatten()
    .collect();
    for (index, value) in now.iter().enumerate() {
        rows.push([if index == 0 { "now".to_owned() } else { String::new() }, value.clone()]);
    }
    format!("{}\n{}\n\n{}", key.name, wrap(&key.help(), "    ", 100), table("    ", &rows))
}

/// Where a key of this scope stands, in words.
pub(super) fn place(scope: Scope) -> &'static str {
    match scope {
        Scope::Daemon => "in config.env or the environment",
        Scope::Route => "in config.env or the environment for every route, in a file of routes.d/ for that one",
        Scope::Matcher => "in a file of routes.d/",
    }
}

/// The key's value for the daemon or the default route, then for each route that has its own.
fn values(key: &'static Key, config: &Config) -> Vec<String> {
    let said = |setting: &Setting| format!("{} ({})", setting.text, setting.origin);
    let base = match config.setting(key.name) {
        Some(setting) => Some(said(setting)),
        None if key.scope == Scope::Matcher => None,
        None => Some(format!("{} ({})", key.default, Origin::Default)),
    };
    let own = config.routes.iter().filter_map(|route| {
        let setting = route.setting(key.name)?;
        Some(format!("{} in route {}", said(setting), route.name))
    });
    let values: Vec<String> = base.into_iter().chain(own).collect();
    if values.is_empty() { vec!["set by no route".to_owned()] } else { values }
}

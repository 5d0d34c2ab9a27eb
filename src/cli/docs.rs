//! The documents of the key table: `config.env`, doorward.env(5), the README's table.

use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use super::{explain, wrap};
use crate::config::{KEYS, Key, Scope};

/// Width of `config.env` in characters.
const WIDTH: usize = 100;

/// The keys that `config.env` sets; the others stand there as comments.
const SET: &[&str] = &["PROXY_ADDRESS", "BACKEND_ADDRESS", "MAX_CONCURRENT_REQUESTS", "MAX_RETRIES"];

/// The commented configuration that the package installs and the source tree has on top.
pub(super) fn config_env() -> String {
    let mut text = String::from(
        "# Configuration of doorward.
#
# Each line is KEY=value. What is commented out shows the default; take the `#` away to change it.
# Durations are 250ms, 5s, 2m (a bare number means seconds), sizes 64KiB, 8MiB (a bare number means
# bytes); lists are separated by commas. A value with blanks needs quotes, and outside of single
# quotes `$NAME` is replaced.
#
#   doorward check              examines this file and says what it means
#   doorward explain KEY        explains a key; so does doorward.env(5)
#   systemctl reload doorward   applies it; what is wrong is refused, and the old one serves on
#   journalctl -u doorward      has the log; journalctl -u doorward STATUS=502 what failed
#
# A key in the environment (`Environment=` in a drop-in of the unit) beats this file.
#
# This file sets the daemon and the defaults of every route. A further route is a file in routes.d/
# beside this one, with the same keys for what differs; routes.d/20-api.env might say
#
#   MATCH_HOST=api.example.com
#   BACKEND_ADDRESS=10.0.0.2:3000,10.0.0.3:3000
#
# What no route matches goes to the BACKEND_ADDRESS of this file.
",
    );
    let mut group = "";
    for key in KEYS.iter().filter(|key| key.scope != Scope::Matcher) {
        if key.group != group {
            group = key.group;
            text.push_str(&format!("\n\n# {group}\n# {}\n", "-".repeat(group.len())));
        }
        let mark = if SET.contains(&key.name) { "" } else { "#" };
        let comment = wrap(&format!("{} Takes {}.", key.help(), key.form()), "# ", WIDTH);
        text.push_str(&format!("\n{comment}\n{mark}{}={}\n", key.name, key.default));
    }
    text
}

/// The README's table of keys.
pub(super) fn markdown() -> String {
    let mut text = String::from("| key | default | scope | meaning |\n| --- | --- | --- | --- |\n");
    for key in KEYS {
        let default = match key.default {
            "" => String::new(),
            default => format!("`{default}`"),
        };
        let help = key.help().replace('|', "\\|");
        text.push_str(&format!("| `{}` | {default} | {} | {help} |\n", key.name, key.scope.as_str()));
    }
    text
}

/// doorward.env(5).
pub(super) fn manual() -> String {
    let mut page = Roff::new();
    let version = format!("doorward {}", env!("CARGO_PKG_VERSION"));
    page.control("TH", ["doorward.env", "5", "", version.as_str(), "File Formats"]);
    page.control("SH", ["NAME"]);
    page.text(vec![roman("doorward.env - configuration of doorward")]);
    page.control("SH", ["SYNOPSIS"]);
    for path in [
        "/etc/doorward/config.env",
        "/etc/doorward/routes.d/*.env",
        "/etc/doorward/NAME/config.env",
        "/etc/doorward/NAME/routes.d/*.env",
    ] {
        page.control("PP", []);
        page.text(vec![italic(path)]);
    }
    page.control("SH", ["DESCRIPTION"]);
    for paragraph in DESCRIPTION {
        paragraph_of(&mut page, paragraph);
    }
    let mut group = "";
    for key in KEYS {
        if key.group != group {
            group = key.group;
            page.control("SH", [group.to_uppercase().as_str()]);
        }
        entry(&mut page, key);
    }
    page.control("SH", ["EXAMPLE"]);
    paragraph_of(&mut page, "A route of its own, /etc/doorward/routes.d/20-api.env:");
    page.control("PP", []);
    page.control("RS", ["4"]);
    page.control("nf", []);
    page.text(vec![roman(
        "MATCH_HOST=api.example.com,*.api.example.com\nMATCH_PATH=/v1\n\
         BACKEND_ADDRESS=10.0.0.2:3000,10.0.0.3:3000?weight=2,unix:/run/api.sock\nRESPONSE_TIMEOUT=2m",
    )]);
    page.control("fi", []);
    page.control("RE", []);
    page.control("SH", ["SEE ALSO"]);
    page.text(vec![
        bold("doorward"),
        roman("(8), "),
        bold("systemd.socket"),
        roman("(5), "),
        bold("systemd.exec"),
        roman("(5), "),
        bold("journalctl"),
        roman("(1)"),
    ]);
    page.render()
}

const DESCRIPTION: &[&str] = &[
    "`config.env` sets the daemon and the defaults of every route. Each file of `routes.d/` beside it describes one \
     further route with the same keys: what it matches, and what differs. The route is named as its file is, without \
     `.env`; files whose names begin with `.` or `#`, or do not end with `.env`, are left out.",
    "Each line is `KEY=value`. Lines that begin with `#` are comments. A value with blanks needs quotes around it, and \
     ends on its line. Outside of single quotes `$NAME` and `${NAME}` are replaced by the value that the process \
     environment, else an earlier line of the file, has for that name; `\\$` is a dollar sign.",
    "Durations are written `250ms`, `5s`, `2m`; a bare number, also `2.5`, means seconds. Sizes are written `64KiB`, \
     `8MiB`; a bare number means bytes. The entries of a list are separated by commas.",
    "A key in the environment of the process beats `config.env`, which beats the default; so `Environment=` in a \
     drop-in of the unit works. For a route its own file beats all of these. What a route matches is never read from \
     the environment.",
    "Nothing is guessed. An unknown key, a wrong value, a key that is set twice, or two routes that match the same is \
     a problem; `doorward check` prints all of them, a start ends with exit code 78, and a reload is refused while the \
     old configuration serves on. A file has at most 1 MiB.",
    "Of the routes that match a request the most specific one takes it: an exact host before the longest `*.` one \
     before none; then an exact path before the longest prefix before none; then a named listener before none. Hosts \
     are compared without case, port and final dot; paths without the query, with unreserved characters decoded and \
     dot segments resolved, while `%2F` and `//` stay what they are. The backend receives the path as the client wrote \
     it, so that signatures over it hold; only one that has dot segments, also written `%2e`, goes on in the form that \
     is compared. What no route matches goes to the backends of `config.env`; with `BACKEND_ADDRESS=off` there, it is \
     answered with 404.",
    "What goes on can be changed by `STRIP_PREFIX`, `BACKEND_HOST` and the keys that set or remove header fields. Of \
     fields, neither those that belong to one connection (`Connection`, `TE`, `Upgrade` and the like) nor those that \
     frame a message (`Content-Length`, `Transfer-Encoding`, `Trailer`) can be touched, nor `Host` and what doorward \
     itself tells backends (`Forwarded`, `X-Forwarded-For`, `Via`, `X-Request-Id` and the like).",
    "A listener speaks either HTTP or, with `MODE=tcp`, anything. A listener that routes name takes their mode; every \
     other one takes the mode of `config.env`.",
];

fn entry(page: &mut Roff, key: &Key) {
    page.control("TP", []);
    let mut head = vec![bold(key.name), roman("=")];
    if !key.default.is_empty() {
        head.push(roman(key.default));
    }
    page.text(head);
    page.text(inline(&key.help()));
    page.control("IP", []);
    let mut facts = format!("Takes {}", key.form());
    if !key.unit.is_empty() {
        facts.push_str(&format!("; counts {}", key.unit));
    }
    facts.push_str(&format!(". Stands {}.", explain::place(key.scope)));
    page.text(inline(&facts));
}

/// A paragraph, `so` in bold.
pub(super) fn paragraph_of(page: &mut Roff, text: &str) {
    page.control("PP", []);
    page.text(inline(text));
}

/// What stands between backticks becomes bold.
pub(super) fn inline(text: &str) -> Vec<Inline> {
    text.split('`')
        .enumerate()
        .filter(|(_, part)| !part.is_empty())
        .map(|(index, part)| if index % 2 == 1 { bold(part) } else { roman(part) })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Text};

    fn text(path: &str, bytes: &str) -> Text {
        Text { path: Path::new(path).into(), bytes: bytes.as_bytes().to_vec() }
    }

    #[test]
    fn the_shipped_config_env_is_what_the_table_gives() {
        let shipped = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config.env")).unwrap();
        assert!(shipped == config_env(), "config.env differs; `doorward generate DIR` writes it anew");
    }

    #[test]
    fn config_env_says_the_defaults_with_and_without_its_comments() {
        let shipped = config_env();
        assert!(shipped.lines().all(|line| line.chars().count() <= WIDTH), "{shipped}");
        let load = |bytes: &str| {
            Config::assemble(Some(text("config.env", bytes)), Vec::new(), &BTreeMap::new())
                .unwrap_or_else(|problems| panic!("{problems}"))
        };
        let bare = load("");
        let config = load(&shipped);
        let set: Vec<&str> = config.settings.iter().map(|setting| setting.key.name).collect();
        assert_eq!(set.len(), SET.len());
        assert!(SET.iter().all(|key| set.contains(key)));
        let uncommented: String = shipped
            .lines()
            .map(|line| match line.strip_prefix('#').filter(|rest| !rest.is_empty() && !rest.starts_with(' ')) {
                Some(line) => format!("{line}\n"),
                None => format!("{line}\n"),
            })
            .collect();
        let full = load(&uncommented);
        assert_eq!(full.settings.len(), KEYS.iter().filter(|key| key.scope != Scope::Matcher).count());
        for config in [config, full] {
            assert_eq!(config.daemon, bare.daemon);
            assert_eq!(config.routes[0].settings, bare.routes[0].settings);
        }
    }

    #[test]
    fn every_key_stands_in_every_document() {
        let (manual, table) = (manual(), markdown());
        for key in KEYS {
            assert!(manual.contains(&format!("\\fB{}\\fR=", key.name)), "{}", key.name);
            assert!(table.contains(&format!("| `{}` |", key.name)), "{}", key.name);
        }
        assert!(!table.lines().any(|line| line.matches(" | ").count() != 3), "{table}");
    }

    #[test]
    fn the_examples_of_the_manual_load() {
        let route = "MATCH_HOST=api.example.com,*.api.example.com\nMATCH_PATH=/v1\n\
             BACKEND_ADDRESS=10.0.0.2:3000,10.0.0.3:3000?weight=2,unix:/run/api.sock\nRESPONSE_TIMEOUT=2m";
        let shown = manual().replace("\\-", "-");
        for line in route.lines() {
            assert!(shown.contains(line), "{line}");
        }
        let routes = vec![text("routes.d/20-api.env", route)];
        assert!(Config::assemble(None, routes, &BTreeMap::new()).is_ok());
    }
}

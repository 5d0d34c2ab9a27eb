//! doorward(8): options and commands from the clap tree, the rest written here.

use anyhow::Context;
use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use super::Cli;
use super::docs::{inline, paragraph_of};

/// The page.
///
/// # Errors
/// None in practice: it is written to memory.
pub(super) fn doorward() -> anyhow::Result<String> {
    let mut command = Cli::command();
    command.build();
    let man = Man::new(command.clone()).title("doorward").section("8").manual("System Administration");
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    beginning(&command).to_writer(&mut out)?;
    man.render_options_section(&mut out)?;
    rest(&command).to_writer(&mut out)?;
    String::from_utf8(out).context("the page is not UTF-8")
}

/// The synopsis, which clap_mangen gives without values, and the description.
fn beginning(command: &clap::Command) -> Roff {
    let mut page = Roff::new();
    page.control("SH", ["SYNOPSIS"]);
    page.text(vec![
        bold("doorward"),
        roman(" ["),
        bold("--config"),
        roman(" "),
        italic("PATH"),
        roman("] ["),
        italic("COMMAND"),
        roman("]"),
    ]);
    page.control("SH", ["DESCRIPTION"]);
    page.text(inline(&command.get_long_about().map(ToString::to_string).unwrap_or_default()));
    page
}

fn rest(command: &clap::Command) -> Roff {
    let mut page = Roff::new();
    page.control("SH", ["COMMANDS"]);
    for command in command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help") {
        entry_of_command(&mut page, command);
    }
    for (heading, entries) in LISTS {
        page.control("SH", [*heading]);
        for (term, text) in *entries {
            page.control("TP", []);
            page.text(vec![bold(*term)]);
            page.text(inline(text));
        }
    }
    page.control("SH", ["NOTES"]);
    for note in NOTES {
        paragraph_of(&mut page, note);
    }
    page.control("SH", ["SEE ALSO"]);
    let pages = [
        ("doorward.env", "(5), "),
        ("systemctl", "(1), "),
        ("journalctl", "(1), "),
        ("systemd.socket", "(5), "),
        ("systemd.unit", "(5)"),
    ];
    page.text(pages.iter().flat_map(|(name, section)| [bold(*name), roman(*section)]).collect::<Vec<_>>());
    page
}

fn entry_of_command(page: &mut Roff, command: &clap::Command) {
    page.control("TP", []);
    let mut head = vec![bold(command.get_name())];
    let own = command.get_arguments().filter(|arg| !arg.is_global_set() && arg.get_id() != "help");
    for arg in own {
        let value = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string).unwrap_or_default();
        let (open, close) = if arg.is_required_set() { (" ", "") } else { (" [", "]") };
        head.push(roman(open));
        match arg.get_long() {
            Some(long) if arg.get_action().takes_values() => {
                head.extend([bold(format!("--{long}")), roman(" "), italic(value)]);
            }
            Some(long) => head.push(bold(format!("--{long}"))),
            None => head.push(italic(value)),
        }
        head.push(roman(close));
    }
    page.text(head);
    let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string).unwrap_or_default();
    // A summary line has no final stop; as the first sentence of a paragraph it needs one.
    let text = about.replacen("\n\n", ". ", 1);
    page.text(inline(&format!("{}.", text.trim_end_matches('.'))));
}

type List = (&'static str, &'static [(&'static str, &'static str)]);

const LISTS: &[List] = &[
    (
        "EXIT STATUS",
        &[
            ("0", "Done; of `run`, stopped as it was told to."),
            ("1", "Failed, or refused by the daemon; the reason is on standard error."),
            ("3", "The daemon is not running (`reload`, `upgrade`, `status`)."),
            ("64", "Wrong use of the command line, or a descriptor that can't be served."),
            ("78", "Wrong configuration, or an address that can't be bound."),
        ],
    ),
    (
        "SIGNALS",
        &[
            (
                "SIGHUP",
                "Reads the configuration anew, as `reload` does, but nobody learns of a refusal except the log.",
            ),
            (
                "SIGTERM, SIGINT",
                "Stops accepting and ends once all that is in flight has finished, after `DRAIN_TIMEOUT` at the \
                 latest. A second one cuts what is left at once, unless another process has taken over: then it \
                 finishes in any case.",
            ),
            ("SIGUSR2", "Has another process take over, as `upgrade` does."),
        ],
    ),
    (
        "ENVIRONMENT",
        &[
            ("Keys of doorward.env(5)", "beat `config.env`, except `MATCH_HOST`, `MATCH_PATH` and `MATCH_LISTENER`."),
            ("CONFIGURATION_DIRECTORY", "Folder of `config.env`, as `ConfigurationDirectory=` of a unit sets it."),
            (
                "STATE_DIRECTORY",
                "Folder of what `ACME=on` obtains, as `StateDirectory=` of a unit sets it; else \
                 `$XDG_STATE_HOME/doorward`, else `~/.local/state/doorward`.",
            ),
            ("DOORWARD_ADMIN_SOCKET", "Admin socket that `reload`, `upgrade` and `status` ask."),
            (
                "LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES",
                "Sockets that systemd passes, see sd_listen_fds(3). The one named `admin` takes `reload`, \
                 `upgrade` and `status`; on those named `https` clients speak TLS; those named `metrics` are for \
                 Prometheus; `status` is reserved; \
                 `ticket-keys` is what an earlier process has left, and names that begin with `doorward-` are those of \
                 an upgrade; every other name is a listener.",
            ),
            ("NOTIFY_SOCKET, WATCHDOG_USEC", "As in sd_notify(3) and sd_watchdog_enabled(3)."),
        ],
    ),
    (
        "FILES",
        &[
            ("/etc/doorward/config.env", "The daemon and the defaults of every route, see doorward.env(5)."),
            ("/etc/doorward/routes.d/*.env", "One route each."),
            ("/etc/doorward/NAME/", "The same for the instance doorward@NAME.service."),
            ("/var/lib/doorward/acme/", "Accounts, private keys and certificates that `ACME=on` obtains."),
            ("/var/lib/doorward-NAME/acme/", "The same for an instance."),
            ("/run/doorward/admin.sock", "Admin socket, for root and the group doorward-admin."),
            ("/run/doorward-NAME/admin.sock", "The same for an instance."),
            (
                "/run/doorward-NAME/metrics.sock",
                "Metrics of an instance, once `doorward-metrics@NAME.socket` is enabled.",
            ),
            ("/run/doorward-NAME/http.sock", "Where an instance listens until a drop-in says otherwise."),
        ],
    ),
];

const NOTES: &[&str] = &[
    "When systemd passes sockets, these are served and `PROXY_ADDRESS` is not bound: ports are the business of \
     `doorward.socket`. To listen on port 80 as well, give it a drop-in with `ListenStream=80` in its `[Socket]` part.",
    "For TLS there is `doorward-https.socket` (port 443), which is not enabled: `systemctl enable \
     doorward-https.socket`, then `systemctl restart doorward.service`. Without systemd, `PROXY_TLS_ADDRESS` says where \
     TLS is spoken.",
    "For metrics there is `doorward-metrics.socket` (127.0.0.1, port 9180, path `/metrics`), which is not enabled either; it \
     comes and goes with the service. Without systemd, `METRICS_ADDRESS` says where they are had.",
    "TLS sessions are resumed by tickets, which a restart, a crash or an upgrade does not end: systemd keeps their \
     keys in its descriptor store (`FileDescriptorStoreMax=`, `ticket-keys`), in memory and never in a file. A key seals \
     tickets for six hours and opens them for twelve; who steals one can read what was recorded of sessions of TLS 1.2 \
     meanwhile, not of TLS 1.3. Stopping the service has systemd forget them, so `systemctl stop doorward.service` and \
     then `start` have new ones at once. Without systemd they live as long as the process.",
    "Stopping `doorward.service` alone keeps the socket open, so that the next client starts it again. Stopping \
     `doorward.socket` closes the door and stops the daemon.",
    "The log is in the journal: `journalctl -u doorward` shows it, `journalctl -u doorward STATUS=502` what failed so, \
     and `journalctl -x -u doorward` explains each message.",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_command_and_section() {
        let page = doorward().unwrap().replace("\\-", "-");
        for command in ["run", "check", "explain", "reload", "status", "completions"] {
            assert!(page.contains(&format!("\n\\fB{command}\\fR")), "{command}\n{page}");
        }
        assert!(!page.contains("generate"), "the hidden command stays hidden");
        for heading in ["NAME", "SYNOPSIS", "OPTIONS", "EXIT STATUS", "SIGNALS", "ENVIRONMENT", "FILES", "SEE ALSO"] {
            assert!(
                page.contains(&format!(".SH {heading}\n")) || page.contains(&format!(".SH \"{heading}\"\n")),
                "{heading}\n{page}"
            );
        }
    }
}

//! What doorward is asked to do.
//!
//! The command line is one clap tree; `main` is one match on it. A mistake on it
//! ends with 64 and a wrong configuration with 78, as sysexits(3) has it, so that
//! units and scripts can tell them apart. Everything printed goes through [`say`],
//! since a pager that was closed early is no failure.

mod access;
mod check;
mod client;
mod docs;
mod explain;
mod generate;
mod man;
mod page;
mod route;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{KEYS, Request};

pub use check::check;
pub use client::{reload, status, upgrade};
pub use explain::explain;
pub use generate::{completions, generate};
pub use route::{LISTENER, explain_request};

/// Exit code: the daemon is not running.
pub const NOT_RUNNING: u8 = 3;
/// Exit code: wrong use of the command line. Source: `EX_USAGE` of sysexits(3).
pub const USAGE: u8 = 64;
/// Exit code: wrong configuration. Source: `EX_CONFIG` of sysexits(3).
pub const CONFIGURATION: u8 = 78;

/// Reverse proxy that is native to systemd
#[derive(Debug, Parser)]
#[command(name = "doorward", version, max_term_width = 100)]
#[command(long_about = "doorward is a reverse proxy that is native to systemd. It takes its sockets from systemd, \
    or binds PROXY_ADDRESS when none is passed, and sends what comes in to the backends of BACKEND_ADDRESS. Its \
    configuration is one flat file, /etc/doorward/config.env, and one file for each further route in \
    /etc/doorward/routes.d/; see doorward.env(5). Without a command it serves, as `run` does.")]
pub struct Cli {
    /// Configuration file; routes.d/ is looked for beside it
    ///
    /// Without it: $CONFIGURATION_DIRECTORY/config.env, else /etc/doorward/config.env, else ./config.env, else the
    /// defaults.
    #[arg(long, value_name = "PATH", global = true)]
    pub config: Option<PathBuf>,
    /// What to do; `run` when not given.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve until told to stop (the default)
    Run,
    /// Examine the configuration and say what it means
    ///
    /// Reports every problem of every file, and ends with 78 when there is one. Otherwise prints where doorward
    /// listens, what is set and by whom, and the routes. Run as root it also examines whether the user doorward may
    /// read the files. Changes nothing and needs no running daemon.
    Check,
    /// Explain a key of the configuration, or what becomes of a request; without either, list all keys
    ///
    /// With --request: which route takes it, by which of its patterns, before which other routes, and every key that
    /// is not left at its default, with the file and line that say so. It is routed by the code of the daemon; nothing
    /// is sent anywhere.
    Explain {
        /// The key; case does not matter
        #[arg(value_parser = KeyName, hide_possible_values = true)]
        key: Option<String>,
        /// A request, as in 'GET http://api.example.com/v1/x'
        #[arg(long, value_name = "REQUEST", conflicts_with = "key")]
        request: Option<String>,
        /// The name of the listener that the request comes in by
        #[arg(long, value_name = "NAME", requires = "request", default_value = LISTENER)]
        listener: String,
    },
    /// Make the running daemon read its configuration anew
    ///
    /// Waits until the new configuration serves. When it is refused, prints why, ends with 1, and the old one serves
    /// on; no connection is touched either way.
    Reload {
        /// Where to find the daemon.
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Have a new process take over, of the program that is installed now
    ///
    /// It is given all sockets and begins to serve beside the running one, which finishes what it has and ends. No
    /// client is refused, and none waits; what is still under way after UPGRADE_DRAIN_TIMEOUT, as a WebSocket may be, is
    /// cut. When the new process can't serve, prints why, ends with 1, and the running one serves on. The settings of
    /// the unit, such as its sandbox, stay those of the running process; a restart changes them. While the process of
    /// the upgrade before has not ended, that one has DRAIN_TIMEOUT left at most, and the upgrade waits for it.
    Upgrade {
        /// Where to find the daemon.
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Show the state of the running daemon
    ///
    /// Never starts a stopped one.
    Status {
        /// Print the daemon's answer as JSON
        #[arg(long)]
        json: bool,
        /// Where to find the daemon.
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Start this program anew, as a process of its own; part of an upgrade
    #[command(hide = true)]
    Launch {
        /// The name and the arguments of the new process
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
    /// Write config.env, manual pages and completions for packaging
    #[command(hide = true)]
    Generate {
        /// The folder to write to; it must exist
        dir: PathBuf,
    },
}

/// Which daemon is meant.
#[derive(Debug, Args)]
pub struct Daemon {
    /// Admin socket of the daemon [default: $DOORWARD_ADMIN_SOCKET, else /run/doorward/admin.sock]
    #[arg(long, value_name = "PATH", conflicts_with = "instance")]
    pub socket: Option<PathBuf>,
    /// Instance of doorward@.service, by its name
    #[arg(long, value_name = "NAME", value_parser = instance)]
    pub instance: Option<String>,
}

impl Daemon {
    /// The admin socket.
    pub fn path(&self) -> PathBuf {
        match (&self.socket, &self.instance) {
            (Some(path), _) => path.clone(),
            (None, Some(name)) => PathBuf::from(format!("/run/doorward-{name}/admin.sock")),
            (None, None) => std::env::var_os("DOORWARD_ADMIN_SOCKET")
                .filter(|path| !path.is_empty())
                .map_or_else(|| PathBuf::from("/run/doorward/admin.sock"), PathBuf::from),
        }
    }
}

/// A name that stays inside `/run/`.
fn instance(name: &str) -> Result<String, String> {
    if name.is_empty() || name.contains('/') || name.contains(char::is_control) {
        return Err("the name of an instance, as in doorward@NAME.service".to_owned());
    }
    Ok(name.to_owned())
}

/// A shell with completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU Bash.
    Bash,
    /// Z shell.
    Zsh,
    /// fish.
    Fish,
}

/// Any word; offers the keys to completions.
#[derive(Clone)]
struct KeyName;

impl TypedValueParser for KeyName {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(KEYS.iter().map(|key| PossibleValue::new(key.name))))
    }
}

impl Cli {
    /// Reads the command line of this process.
    ///
    /// # Errors
    /// The exit code, once help, version or the mistake is printed.
    pub fn read() -> Result<Cli, ExitCode> {
        Cli::try_parse().map_err(|error| {
            // A closed terminal is no reason for another exit code.
            let _ = error.print();
            if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
        })
    }

    /// The configuration that is meant, in the environment of this process.
    pub fn request(&self) -> Request {
        Request::here(self.config.clone())
    }
}

/// What `main` ends with: the code, or 1 and the error on standard error.
pub fn end(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        complain(&format!("doorward: {error:#}"));
        ExitCode::FAILURE
    })
}

/// Prints `text` and a line break on standard output.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// Prints `text` and a line break on standard error, where a failure has nowhere to go.
fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Rows with their columns aligned, each behind `indent`; the last column may be of any length.
fn table<const N: usize>(indent: &str, rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            format!("{indent}{}", cells.join("  ")).trim_end().to_owned()
        })
        .collect();
    lines.join("\n")
}

/// `text` in lines of at most `width` characters, each behind `indent`, which counts.
fn wrap(text: &str, indent: &str, width: usize) -> String {
    let mut lines = vec![indent.to_owned()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() == indent.len() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("{indent}{word}")),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_admin_socket_is_found_by_option_instance_and_default() {
        let path = |args: &[&str]| match Cli::try_parse_from(args).unwrap().command {
            Some(Command::Status { daemon, .. } | Command::Reload { daemon }) => daemon.path(),
            other => panic!("{other:?}"),
        };
        assert_eq!(path(&["doorward", "status", "--socket", "/x"]), PathBuf::from("/x"));
        assert_eq!(path(&["doorward", "reload", "--instance", "blue"]), PathBuf::from("/run/doorward-blue/admin.sock"));
        for wrong in [
            &["doorward", "status", "--instance", "../x"][..],
            &["doorward", "status", "--instance", "a", "--socket", "/x"],
            &["doorward", "serve"],
            &["doorward", "completions", "csh"],
        ] {
            assert!(Cli::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn lines_break_before_their_width() {
        assert_eq!(wrap("aa bb cc", "# ", 7), "# aa bb\n# cc");
        assert_eq!(wrap("longer-than-that a", "", 5), "longer-than-that\na");
        let rows = [["a".to_owned(), "b".to_owned()], ["cc".to_owned(), String::new()]];
        assert_eq!(table(" ", &rows), " a   b\n cc");
    }
}

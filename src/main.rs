//! doorward, the binary: one match on what it is asked to do.

use std::process::ExitCode;

use doorward::cli::{self, Cli, Command};
use doorward::lifecycle;

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let request = cli.request();
    match cli.command.unwrap_or(Command::Run) {
        Command::Run => lifecycle::run(lifecycle::Options { config: request }),
        Command::Check => cli::end(cli::check(&request)),
        Command::Explain { request: Some(asked), listener, .. } => {
            cli::end(cli::explain_request(&asked, &listener, &request))
        }
        Command::Explain { key, .. } => cli::end(cli::explain(key.as_deref(), &request)),
        Command::Reload { daemon } => cli::end(cli::reload(&daemon.path())),
        Command::Upgrade { daemon } => cli::end(cli::upgrade(&daemon.path())),
        Command::Launch { words } => lifecycle::launch(&words),
        Command::Status { json, daemon } => cli::end(cli::status(&daemon.path(), json)),
        Command::Completions { shell } => cli::end(cli::completions(shell)),
        Command::Generate { dir } => cli::end(cli::generate(&dir)),
    }
}

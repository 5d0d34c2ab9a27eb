//! `doorward completions` and `doorward generate`: what the package ships beside the binary.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;

use super::{Cli, Shell, docs, man, say};
use crate::config::KEYS;
use crate::lifecycle;

/// Prints the completions of a shell.
///
/// # Errors
/// Standard output can't be written.
pub fn completions(shell: Shell) -> anyhow::Result<ExitCode> {
    let script = String::from_utf8(script(shell)).context("completions are not UTF-8")?;
    say(script.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn script(shell: Shell) -> Vec<u8> {
    let generator = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(generator, &mut visible(), "doorward", &mut script);
    if shell == Shell::Fish {
        // clap_complete leaves the values of positional arguments out for this shell.
        let keys: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        let line = format!(
            "complete -c doorward -n \"__fish_doorward_using_subcommand explain\" -f -a \"{}\"\n",
            keys.join(" ")
        );
        script.extend_from_slice(line.as_bytes());
    }
    script
}

/// The command line without what is hidden; completions would offer that too.
fn visible() -> clap::Command {
    let whole = Cli::command();
    let commands: Vec<clap::Command> =
        whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    clap::Command::new("doorward")
        .version(env!("CARGO_PKG_VERSION"))
        .args(whole.get_arguments().cloned())
        .subcommands(commands)
}

/// Writes the generated files into `dir`.
///
/// # Errors
/// A file can't be written.
pub fn generate(dir: &Path) -> anyhow::Result<ExitCode> {
    let files = [
        ("config.env", docs::config_env().into_bytes()),
        ("keys.md", docs::markdown().into_bytes()),
        ("metrics.md", lifecycle::metrics_table().into_bytes()),
        ("doorward.env.5", docs::manual().into_bytes()),
        ("doorward.8", man::doorward()?.into_bytes()),
        ("doorward.bash", script(Shell::Bash)),
        ("_doorward", script(Shell::Zsh)),
        ("doorward.fish", script(Shell::Fish)),
    ];
    for (name, text) in files {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

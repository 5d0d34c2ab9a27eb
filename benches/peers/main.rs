//! Measures doorward beside its peers; `benches/compare` runs it.
//!
//! | module | job |
//! | --- | --- |
//! | `options` | the command line |
//! | `workloads` | what is measured |
//! | `contenders` | who is measured, and how each is set up |
//! | `process` | a contender as a process on its core |
//! | `rig` | load and backend, in one thread |
//! | `relay` | the floor: a relay that parses nothing |
//! | `usage` | processor time |
//! | `compare` | the rounds |
//! | `table` | what is printed |

mod compare;
mod contenders;
mod options;
mod process;
mod relay;
mod rig;
mod table;
mod usage;
mod workloads;

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser as _};

use options::Options;

fn main() -> ExitCode {
    // cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().filter(|argument| argument != "--bench").collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        // Under `cargo bench` and `cargo test` nobody asked for a measurement of minutes.
        [] | [_] => usage(),
        [_, "relay", address, backend] => floor(address, backend),
        _ => measure(&arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "benches/compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> Result<ExitCode> {
    write!(io::stdout(), "{}", Options::command().render_help())?;
    Ok(ExitCode::SUCCESS)
}

fn floor(address: &str, backend: &str) -> Result<ExitCode> {
    relay::run(address.parse()?, backend.parse()?)?;
    Ok(ExitCode::SUCCESS)
}

fn measure(arguments: &[String]) -> Result<ExitCode> {
    let options = match Options::try_parse_from(arguments) {
        Ok(options) => options,
        Err(error) => {
            error.print()?;
            return Ok(if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS });
        }
    };
    let contenders = compare::contenders(&options)?;
    let mut versions = Vec::new();
    for contender in &contenders {
        versions.push(format!("{}: {}", contender.name, contender.kind.version()?));
    }
    let sections = compare::run(&options, &contenders)?;
    let (tables, failed) = table::render(&sections);
    write!(io::stdout(), "\n{}\n\n{tables}", versions.join("\n"))?;
    if let Some(path) = &options.markdown {
        std::fs::write(path, &tables).with_context(|| path.display().to_string())?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

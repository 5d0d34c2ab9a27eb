//! Measures doorward beside its peers; `benches/compare` and `benches/faults` run it.
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
//! | `probes` | what is no matter of rounds: memory, system calls, connections of each worker |
//! | `faults` | backends that fail under load: what clients see of it |
//! | `about` | versions and machine |
//! | `table` | what is printed |

mod about;
mod compare;
mod contenders;
mod faults;
mod options;
mod probes;
mod process;
mod relay;
mod rig;
mod table;
mod usage;
mod workloads;

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser as _};

use options::Options;

/// Stand before and after the tables in a page.
const MARKS: [&str; 2] = ["<!-- table -->\n", "<!-- /table -->\n"];

fn main() -> ExitCode {
    // cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().filter(|argument| argument != "--bench").collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        // Under `cargo bench` and `cargo test` nobody asked for a measurement of minutes.
        [] | [_] => usage(),
        [_, "relay", address, backend] => floor(address, backend),
        [_, "backend", address] => failing(address),
        [_, "faults", ..] => faults::main(arguments.get(1..).unwrap_or_default(), keep),
        _ => measure(&arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error:#}");
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

fn failing(address: &str) -> Result<ExitCode> {
    faults::backend::serve(address.parse()?)?;
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
    let contenders = compare::contenders(&options);
    let about = about::about("compare", arguments, &contenders)?;
    let place = compare::settle(&options)?;
    let sections = compare::run(&options, &contenders, &place)?;
    let sheets = probes::run(&options, &contenders, &place)?;
    let (tables, failed) = table::render(&sections, &sheets);
    let text = format!("{about}\n{tables}");
    write!(io::stdout(), "\n{text}")?;
    if let Some(path) = &options.markdown {
        keep(path, text.trim_end()).with_context(|| path.display().to_string())?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Writes the tables to a file, or between the marks in it.
fn keep(path: &Path, tables: &str) -> Result<()> {
    let old = std::fs::read_to_string(path).unwrap_or_default();
    let [begin, end] = MARKS;
    let around = old.split_once(begin).and_then(|(before, rest)| Some((before, rest.split_once(end)?.1)));
    let page = match around {
        Some((before, after)) => format!("{before}{begin}\n{tables}\n\n{end}{after}"),
        None => format!("{tables}\n"),
    };
    Ok(std::fs::write(path, page)?)
}

//! Backends that fail under load, and what clients see of it; `benches/faults` runs it.
//!
//! | module | job |
//! | --- | --- |
//! | `backend` | a backend as a process, which can be killed, stopped and told to go wrong |
//! | `load` | requests at a fixed rate, and what became of each |
//! | `setup` | how each contender is set up against faults |

pub mod backend;
mod load;
mod setup;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use rustix::process::Signal;

use crate::about;
use crate::compare;
use crate::process::Running;
use crate::table::{Spread, align};
use backend::{Mode, Process};
use load::Sample;
use setup::Entrant;

/// Backends before each contender.
const BACKENDS: usize = 3;

/// The load begins; what it finds first is not counted.
const WARM: Duration = Duration::from_secs(1);

/// Then one backend fails.
const FAILS: Duration = Duration::from_secs(5);

/// Then it is well again.
const HEALS: Duration = Duration::from_secs(15);

/// Then the load ends.
const ENDS: Duration = Duration::from_secs(22);

/// The time of which one p99 is taken.
const WINDOW: Duration = Duration::from_millis(250);

/// Windows in a row that must be normal for p99 to count as normal again.
const CALM: usize = 2;

/// p99 is normal up to three times what it was before, and in any case up to this: on a
/// machine that does other things too, less than that is noise.
const NORMAL: Duration = Duration::from_millis(25);

/// An answer that takes longer than that is a slow one.
const SLOW: Duration = Duration::from_millis(100);

/// Has one of three backends fail under load, and shows what clients saw of it.
///
/// Every scenario is run against each contender: requests at a fixed rate, and in the middle
/// of them one backend of three is killed, stopped, cut off, made slow or made to reset.
#[derive(Debug, Parser)]
#[command(name = "benches/faults", bin_name = "benches/faults")]
pub struct Options {
    /// Runs of each scenario; the table shows the median, and of failures the most.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,

    /// Requests a second.
    #[arg(long, value_name = "RATE", default_value_t = 600, value_parser = clap::value_parser!(u32).range(100..=5000))]
    rate: u32,

    /// Runs this scenario alone; may be given several times.
    #[arg(long, value_name = "NAME", value_parser = names())]
    scenario: Vec<String>,

    /// Runs this contender alone; may be given several times: doorward, doorward-p2c,
    /// nginx, haproxy.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,

    /// Writes the table to this file, as Markdown; between `<!-- table -->` and
    /// `<!-- /table -->` only, if it has such lines.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,

    /// Lets everything else on the machine wait while this measures.
    #[arg(long)]
    exclusive: bool,

    /// The doorward to measure, instead of the one that was built with this.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
}

/// What goes wrong with a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Killed,
    Frozen,
    Is(Mode),
}

/// The scenarios by name.
const SCENARIOS: [(&str, &str, Fault); 5] = [
    ("killed", "killed; started again", Fault::Killed),
    ("frozen", "stopped (`SIGSTOP`); continued", Fault::Frozen),
    ("resets", "resets each connection on which it is asked; well again", Fault::Is(Mode::Resets)),
    ("slow", "answers after 500 ms; after 2 ms again", Fault::Is(Mode::Slow)),
    ("half-open", "cut off, its connections stay open; back, and knows none of them", Fault::Is(Mode::Gone)),
];

/// What one run of a scenario gave.
#[derive(Clone, Debug)]
struct Outcome {
    /// Requests from the fault on.
    asked: usize,
    /// Those of them that got no right answer.
    failed: usize,
    /// Those that took long.
    slow: usize,
    /// p99 in milliseconds: before the fault, during it, and after it.
    p99: [f64; 3],
    /// Seconds until p99 was normal: after the fault began, and after it ended; `None` when it
    /// was not within that time.
    normal: [Option<f64>; 2],
}

/// Runs what the options ask for, and prints it.
///
/// # Errors
/// When nothing can be measured here.
pub fn main(arguments: &[String], keep: impl Fn(&std::path::Path, &str) -> Result<()>) -> Result<ExitCode> {
    let options = match Options::try_parse_from(arguments) {
        Ok(options) => options,
        Err(error) => {
            error.print()?;
            return Ok(if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS });
        }
    };
    let own = options.binary.clone().unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_doorward")));
    let wanted = |chosen: &[String], name: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name);
    let mut entrants = setup::entrants(&own);
    entrants.retain(|entrant| wanted(&options.only, &entrant.contender.name));
    let contenders: Vec<_> = entrants.iter().map(|entrant| entrant.contender.clone()).collect();
    let about = about::about("faults", arguments, &contenders)?;
    let cores = compare::allowed(options.exclusive)?;
    let mut tables = String::new();
    let mut failed = false;
    for (name, title, fault) in SCENARIOS.iter().filter(|(name, ..)| wanted(&options.scenario, name)) {
        let mut runs: Vec<Vec<Outcome>> = vec![Vec::new(); entrants.len()];
        for round in 0..options.rounds {
            for (entrant, runs) in entrants.iter().zip(&mut runs) {
                let outcome = run(entrant, *fault, options.rate, &cores)
                    .with_context(|| format!("{} with one backend {name}", entrant.contender.name))?;
                writeln!(io::stderr(), "{name} {} {}: {outcome:?}", round + 1, entrant.contender.name)?;
                runs.push(outcome);
            }
        }
        failed |= entrants.iter().zip(&runs).any(|(entrant, runs)| {
            entrant.contender.name.starts_with("doorward") && runs.iter().any(|run| run.failed > 0)
        });
        tables += &format!("### {title} (`{name}`)\n\n{}\n", align(&rows(&entrants, &runs)));
    }
    let text = format!("{about}- Load: {} requests a second\n\n{}", options.rate, tables.trim_end());
    writeln!(io::stdout(), "\n{text}")?;
    if let Some(path) = &options.markdown {
        keep(path, &text).with_context(|| path.display().to_string())?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn names() -> Vec<&'static str> {
    SCENARIOS.iter().map(|(name, ..)| *name).collect()
}

fn run(entrant: &Entrant, fault: Fault, rate: u32, cores: &[usize]) -> Result<Outcome> {
    let mut backends = (0..BACKENDS).map(|_| Process::start()).collect::<Result<Vec<_>>>()?;
    let addresses: Vec<_> = backends.iter().map(Process::address).collect();
    let running = Running::spawn(&|address, folder| entrant.command(address, &addresses, folder), cores, cores)?;
    let target = running.address;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let samples = tokio::task::LocalSet::new().block_on(&runtime, async {
        let load = tokio::task::spawn_local(load::run(target, rate, ENDS));
        let victim = backends.first_mut().context("a backend")?;
        tokio::time::sleep(FAILS).await;
        match fault {
            Fault::Killed => victim.kill()?,
            Fault::Frozen => victim.signal(Signal::STOP),
            Fault::Is(mode) => victim.tell(mode)?,
        }
        tokio::time::sleep(HEALS - FAILS).await;
        match fault {
            Fault::Killed => victim.revive()?,
            Fault::Frozen => victim.signal(Signal::CONT),
            Fault::Is(_) => victim.tell(Mode::Well)?,
        }
        anyhow::Ok(load.await?)
    })?;
    Ok(Outcome::of(&samples))
}

impl Outcome {
    fn of(samples: &[Sample]) -> Outcome {
        let from = |begin: Duration, end: Duration| {
            samples.iter().filter(move |sample| sample.due >= begin && sample.due < end)
        };
        let p99 = |begin, end| p99(from(begin, end));
        let before = p99(WARM, FAILS);
        let normal = NORMAL.max(before * 3);
        let until = |begin: Duration, end: Duration| {
            let windows = u32::try_from((end - begin).as_nanos() / WINDOW.as_nanos()).unwrap_or(0);
            let calm: Vec<bool> =
                (0..windows).map(|n| p99(begin + WINDOW * n, begin + WINDOW * (n + 1)) <= normal).collect();
            let first = calm.windows(CALM).position(|calm| calm.iter().all(|calm| *calm));
            first.map(|first| WINDOW.as_secs_f64() * first as f64)
        };
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        Outcome {
            asked: from(FAILS, ENDS).count(),
            failed: from(WARM, ENDS).filter(|sample| !sample.right).count(),
            slow: from(FAILS, ENDS).filter(|sample| sample.took > SLOW).count(),
            p99: [millis(before), millis(p99(FAILS, HEALS)), millis(p99(HEALS, ENDS))],
            normal: [until(FAILS, HEALS), until(HEALS, ENDS)],
        }
    }
}

/// What 99 of 100 don't exceed; a request that failed took forever.
fn p99<'a>(samples: impl Iterator<Item = &'a Sample>) -> Duration {
    let mut times: Vec<Duration> =
        samples.map(|sample| if sample.right { sample.took } else { load::PATIENCE.max(sample.took) }).collect();
    times.sort();
    let place = (times.len() * 99).div_ceil(100);
    times.get(place.saturating_sub(1)).copied().unwrap_or_default()
}

fn rows(entrants: &[Entrant], runs: &[Vec<Outcome>]) -> Vec<Vec<String>> {
    let head = [
        "",
        "failed requests",
        "over 100 ms",
        "p99 before, ms",
        "during",
        "after",
        "p99 normal after the fault, s",
        "after the return, s",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    for (entrant, runs) in entrants.iter().zip(runs) {
        let middle = |figure: &dyn Fn(&Outcome) -> f64| Spread::of(runs.iter().map(figure)).map_or(0.0, |it| it.median);
        let most = |figure: fn(&Outcome) -> usize| runs.iter().map(figure).max().unwrap_or(0);
        let time = |which: usize| {
            let seconds = |run: &Outcome| run.normal.get(which).copied().flatten().unwrap_or(f64::INFINITY);
            let seconds = middle(&seconds);
            if seconds.is_finite() { format!("{seconds:.2}") } else { "never".to_owned() }
        };
        let millis =
            |which: usize| format!("{:.0}", middle(&|run: &Outcome| run.p99.get(which).copied().unwrap_or_default()));
        rows.push(vec![
            entrant.contender.name.clone(),
            format!("{} of {}", most(|run| run.failed), most(|run| run.asked)),
            format!("{:.0}", middle(&|run: &Outcome| run.slow as f64)),
            millis(0),
            millis(1),
            millis(2),
            time(0),
            time(1),
        ]);
    }
    rows
}

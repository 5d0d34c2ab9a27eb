//! The rounds: every contender in each workload, in short turns whose order changes, so
//! that a drift of the machine meets all of them alike.

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::process::{
    Resource, Signal, getrlimit, set_parent_process_death_signal, setpriority_process, setrlimit, setsid,
};
use rustix::thread::{sched_getaffinity, sched_setaffinity};

use crate::contenders::{Contender, Kind, peers};
use crate::options::Options;
use crate::process::{Running, cores};
use crate::rig::histogram::Histogram;
use crate::rig::{Plan, Rig};
use crate::usage::Usage;
use crate::workloads::{self, Workload};

/// New connections to the backend that a run of kept ones may make once it is warm.
const FEW: u64 = 16;

/// Turns of each contender in a round.
const TURNS: usize = 6;

/// What one contender did in one round of one workload.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Processor time for each answer, in microseconds.
    pub cpu: f64,
    /// The user part of it.
    pub user: f64,
    /// Share of the measured time that the proxy used its core for.
    pub busy: f64,
    /// Share of that time that others used it for, or the core of the load, whichever
    /// is more.
    pub disturbed: f64,
    /// Right answers a second.
    pub rate: f64,
    /// Latencies in microseconds: p50, p99, p99.9.
    pub latency: [f64; 3],
    /// Connections to the backend that were made in the measured time.
    pub dialled: u64,
}

/// All rounds of one contender in one workload.
pub struct Column {
    /// Its name.
    pub name: String,
    /// One for each round; what went wrong instead.
    pub samples: Vec<Result<Sample, String>>,
}

/// All rounds of one workload; doorward's column is the first.
pub struct Section {
    /// What was measured.
    pub workload: Workload,
    /// The contenders.
    pub columns: Vec<Column>,
}

/// Where everything runs.
pub struct Place {
    /// The proxy's core.
    pub proxy: usize,
    /// The core of load and backend.
    pub load: usize,
}

/// Measures what the options ask for.
///
/// # Errors
/// When nothing can be measured here at all; what goes wrong with one contender is in
/// its column instead.
pub fn run(options: &Options, contenders: &[Contender]) -> Result<Vec<Section>> {
    let place = settle()?;
    let chosen = workloads::ALL.iter().filter(|workload| {
        if options.workload.is_empty() {
            !options.quick || workload.quick
        } else {
            options.workload.iter().any(|name| name == workload.name)
        }
    });
    let mut sections: Vec<Section> = chosen
        .map(|workload| {
            let able = contenders.iter().filter(|contender| contender.kind.can(workload.duty()));
            let columns = able.map(|able| Column { name: able.name.clone(), samples: Vec::new() }).collect();
            Section { workload: *workload, columns }
        })
        .collect();
    let mut rig = Rig::new()?;
    for number in 0..usize::try_from(options.rounds())? {
        for section in &mut sections {
            let duty = section.workload.duty();
            let able: Vec<&Contender> = contenders.iter().filter(|contender| contender.kind.can(duty)).collect();
            let samples = round(&mut rig, &able, &section.workload, &place, options, number);
            for (column, sample) in section.columns.iter_mut().zip(samples) {
                report(number, &section.workload, &column.name, &sample);
                column.samples.push(sample.map_err(|error| format!("{error:#}")));
            }
        }
    }
    Ok(sections)
}

/// The contenders that the options name, doorward first.
///
/// # Errors
/// When a name is unknown.
pub fn contenders(options: &Options) -> Result<Vec<Contender>> {
    let own = options.binary.clone().unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_doorward")));
    let mut chosen = vec![Contender { name: "doorward".into(), kind: Kind::Doorward(own) }];
    let peers = peers();
    if options.against.is_empty() {
        chosen.extend(peers);
        return Ok(chosen);
    }
    for name in &options.against {
        if let Some(peer) = peers.iter().find(|peer| peer.name == *name) {
            chosen.push(peer.clone());
        } else if name.contains('/') {
            chosen.push(Contender { name: name.clone(), kind: Kind::Doorward(name.into()) });
        } else {
            bail!("no peer `{name}`; there are nginx, haproxy, haproxy-splice, relay, socket-proxyd and paths");
        }
    }
    Ok(chosen)
}

/// Chooses two cores, moves to one of them, and allows itself as many open files as it
/// may.
fn settle() -> Result<Place> {
    let allowed = sched_getaffinity(None)?;
    let mut able = (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let (Some(proxy), Some(load)) = (able.next(), able.next()) else {
        bail!("needs two cores: one for the proxy, one for load and backend");
    };
    sched_setaffinity(None, &cores(&[load]))?;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    precede();
    Ok(Place { proxy, load })
}

/// Lets whoever else is on the machine wait, as far as that is allowed; how much they
/// got all the same is in the tables. All contenders inherit it.
///
/// The kernel may share the processor between sessions before it looks at niceness, so
/// this takes a session of its own, and ends with its parent as it would have without.
fn precede() {
    let _ = set_parent_process_death_signal(Some(Signal::TERM));
    if setsid().is_ok() {
        let _ = fs::write("/proc/self/autogroup", "-15");
    }
    let _ = setpriority_process(None, -15);
}

/// One round of one workload: all contenders stand ready, and take turns of a fraction
/// of a second, so that whatever else happens on the machine meets all of them alike.
fn round(
    rig: &mut Rig,
    contenders: &[&Contender],
    workload: &Workload,
    place: &Place,
    options: &Options,
    round: usize,
) -> Vec<Result<Sample>> {
    let mut sides: Vec<Result<Side>> = contenders
        .iter()
        .map(|contender| {
            let running = Running::start(contender, workload.duty(), rig.address(), &[place.proxy], &[place.load])?;
            Ok(Side { running, tally: Tally::default() })
        })
        .collect();
    for turn in 0..TURNS {
        let plan = workload.plan(options.quick, turn == 0);
        for index in 0..sides.len() {
            let index = (index + turn + round) % sides.len();
            let Some(side) = sides.get_mut(index) else { continue };
            if let Ok(Side { running, tally }) = side {
                if let Err(error) = take_turn(rig, running, tally, &plan, place) {
                    let said = running.said();
                    *side = Err(error.context(said));
                }
            }
        }
    }
    let parrots = contenders.iter().map(|contender| contender.kind == Kind::Relay);
    sides.into_iter().zip(parrots).map(|(side, parrots)| side?.tally.sample(!parrots)).collect()
}

/// A contender within a round.
struct Side {
    running: Running,
    tally: Tally,
}

/// What the turns of a round sum up to.
#[derive(Default)]
struct Tally {
    used: Usage,
    time: Duration,
    answered: u64,
    latencies: Histogram,
    dialled: u64,
}

fn take_turn(rig: &mut Rig, running: &Running, tally: &mut Tally, plan: &Plan, place: &Place) -> Result<()> {
    let mut watch = || Usage::of(running.pid(), place.proxy, place.load);
    let outcome = rig.run(plan, running.address, &mut watch)?;
    tally.used = tally.used.plus(outcome.usage.1.since(outcome.usage.0));
    tally.time += outcome.time;
    tally.answered += outcome.answered;
    tally.latencies.merge(&outcome.latencies);
    tally.dialled += outcome.accepted.1;
    Ok(())
}

impl Tally {
    fn sample(&self, reuses: bool) -> Result<Sample> {
        let answered = self.answered as f64;
        if reuses && self.dialled > FEW {
            bail!("opened {} connections to the backend for {answered} requests instead of reusing them", self.dialled);
        }
        let used = self.used;
        let others = used.core.saturating_sub(used.cpu).max(used.load_core.saturating_sub(used.load));
        let seconds = self.time.as_secs_f64();
        Ok(Sample {
            cpu: used.cpu.as_secs_f64() * 1e6 / answered,
            user: used.user.as_secs_f64() * 1e6 / answered,
            busy: used.cpu.as_secs_f64() / seconds,
            disturbed: others.as_secs_f64() / seconds,
            rate: answered / seconds,
            latency: [0.5, 0.99, 0.999].map(|share| self.latencies.quantile(share)),
            dialled: self.dialled,
        })
    }
}

/// A line of progress, on standard error.
fn report(round: usize, workload: &Workload, name: &str, sample: &Result<Sample>) {
    let said = match sample {
        Ok(sample) => format!(
            "{:7.2} µs, {:6.0}/s, busy {:3.0} %, others {:2.0} %",
            sample.cpu,
            sample.rate,
            sample.busy * 100.0,
            sample.disturbed * 100.0
        ),
        Err(error) => format!("failed: {error:#}"),
    };
    // Without a standard error nobody watches.
    let _ = writeln!(io::stderr(), "round {} {:8} {name:15} {said}", round + 1, workload.name);
}

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
use crate::rig::Rig;
use crate::rig::histogram::Histogram;
use crate::rig::load::Plan;
use crate::usage::Usage;
use crate::workloads::{self, Unit, Workload};

/// Turns of each contender in a round.
const TURNS: usize = 6;

/// Who uses at least this share of its core sets the pace.
const BUSY: f64 = 0.9;

const MIB: f64 = 1024.0 * 1024.0;
const GIB: f64 = 1024.0 * MIB;

/// What one contender did in one round of one workload.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Processor time for each answer in microseconds, or for each GiB in milliseconds.
    pub cpu: f64,
    /// The user part of it.
    pub user: f64,
    /// Share of the measured time that the proxy used its cores for.
    pub busy: f64,
    /// Whether the load, not the proxy, set the pace, so that the rate says nothing.
    pub is_bound: bool,
    /// Share of that time that others used them for, or the core of the load, whichever
    /// is more.
    pub disturbed: f64,
    /// Right answers a second, or MiB.
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
    /// The proxy's core, when it has one worker.
    pub proxy: usize,
    /// The core of load and backend.
    pub load: usize,
    /// The proxy's cores, when it has two workers.
    pub both: [usize; 2],
}

impl Place {
    /// The cores of a proxy of so many workers, and ours beside it. Where there are but
    /// two cores, two workers and the load share them as the kernel likes.
    pub fn of(&self, workers: usize) -> (&[usize], &[usize]) {
        match workers {
            1 => (std::slice::from_ref(&self.proxy), std::slice::from_ref(&self.load)),
            _ if self.both.contains(&self.load) => (&self.both, &self.both),
            _ => (&self.both, std::slice::from_ref(&self.load)),
        }
    }
}

/// Measures the workloads that the options ask for.
///
/// # Errors
/// When nothing can be measured here at all; what goes wrong with one contender is in
/// its column instead.
pub fn run(options: &Options, contenders: &[Contender], place: &Place) -> Result<Vec<Section>> {
    let chosen = workloads::ALL.iter().filter(|workload| options.wants(workload.name, workload.quick));
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
            let samples = round(&mut rig, &able, &section.workload, place, options, number);
            for (column, sample) in section.columns.iter_mut().zip(samples) {
                report(number, &section.workload, &column.name, &sample);
                column.samples.push(sample.map_err(|error| format!("{error:#}")));
            }
        }
    }
    Ok(sections)
}

/// The contenders that the options name, doorward first.
pub fn contenders(options: &Options) -> Vec<Contender> {
    let own = options.binary.clone().unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_doorward")));
    let mut chosen = vec![Contender { name: "doorward".into(), kind: Kind::Doorward(own) }];
    chosen.extend(if options.against.is_empty() { peers() } else { options.against.clone() });
    chosen
}

/// The peer of this name, or another doorward by its path.
///
/// # Errors
/// When there is none; says which there are.
pub fn peer(name: &str) -> Result<Contender, String> {
    let peers = peers();
    if let Some(peer) = peers.iter().find(|peer| peer.name == name) {
        return Ok(peer.clone());
    }
    if name.contains('/') {
        return Ok(Contender { name: name.to_owned(), kind: Kind::Doorward(name.into()) });
    }
    let names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
    Err(format!("there are {} and paths", names.join(", ")))
}

/// Chooses cores, moves to that of the load, and allows itself as many open files as it
/// may.
///
/// # Errors
/// When there are too few cores.
pub fn settle(options: &Options) -> Result<Place> {
    let able = allowed(options.exclusive)?;
    let (both, load) = match *able.as_slice() {
        [first, second] => ([first, second], second),
        [first, second, third] => ([first, second], third),
        _ => bail!("needs two cores: one for the proxy, one for load and backend"),
    };
    sched_setaffinity(None, &cores(&[load]))?;
    Ok(Place { proxy: both[0], load, both })
}

/// The cores that there are to use, three at most. This process allows itself as many open
/// files as it may, and goes ahead of others if it is to.
///
/// # Errors
/// When the system refuses that.
pub fn allowed(exclusive: bool) -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    set_parent_process_death_signal(Some(Signal::TERM))?;
    if exclusive {
        precede();
    }
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).take(3).collect())
}

/// Lets whoever else is on the machine wait, as far as that is allowed. All contenders
/// inherit it.
///
/// The kernel may share the processor between sessions before it looks at niceness, so
/// this takes a session of its own.
fn precede() {
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
    let duty = workload.duty();
    let (its, ours) = place.of(duty.workers);
    let mut sides: Vec<Result<Side>> = contenders
        .iter()
        .map(|contender| {
            let running = Running::start(contender, duty, rig.address(), its, ours)?;
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
    let reuse = contenders.iter().map(|contender| !duty.tcp && contender.kind != Kind::Relay);
    sides.into_iter().zip(reuse).map(|(side, reuses)| side?.tally.sample(workload, reuses)).collect()
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
    received: u64,
    latencies: Histogram,
    dialled: u64,
}

fn take_turn(rig: &mut Rig, running: &Running, tally: &mut Tally, plan: &Plan, place: &Place) -> Result<()> {
    let mut watch = |helper| Usage::of(running.pid(), place.proxy, place.load, helper);
    let outcome = rig.run(plan, running.address, &mut watch)?;
    tally.used = tally.used.plus(outcome.usage.1.since(outcome.usage.0));
    tally.time += outcome.time;
    tally.answered += outcome.answered;
    tally.received += outcome.received;
    tally.latencies.merge(&outcome.latencies);
    tally.dialled += outcome.accepted.1;
    Ok(())
}

impl Tally {
    fn sample(&self, workload: &Workload, reuses: bool) -> Result<Sample> {
        let answered = self.answered as f64;
        // Each of the clients may once find all others busy; of many streams few need as many
        // connections at once, and what nobody needs for a while is closed.
        if reuses && self.dialled > workload.clients().max(self.answered / 100) {
            bail!("opened {} connections to the backend for {answered} requests instead of reusing them", self.dialled);
        }
        let used = self.used;
        let (here, there) = (used.core, used.load_core);
        let workers = workload.duty().workers as f64;
        let others = if workers > 1.0 {
            (here + there).saturating_sub(used.cpu + used.load).div_f64(workers)
        } else {
            here.saturating_sub(used.cpu).max(there.saturating_sub(used.load))
        };
        let seconds = self.time.as_secs_f64();
        let (share, rate) = match workload.unit {
            Unit::Request => (1e6 / answered, answered),
            Unit::Byte => (1e3 * GIB / self.received as f64, self.received as f64 / MIB),
        };
        let busy = used.cpu.as_secs_f64() / seconds / workers;
        // With a core of its own it shows in the proxy's idle time; where two workers share
        // their cores with the load, in how much of one core the load takes.
        let load = used.load.as_secs_f64() / seconds;
        let is_bound = if workers > 1.0 { load > BUSY && busy < BUSY } else { busy < BUSY };
        Ok(Sample {
            cpu: used.cpu.as_secs_f64() * share,
            user: used.user.as_secs_f64() * share,
            busy,
            is_bound,
            disturbed: others.as_secs_f64() / seconds,
            rate: rate / seconds,
            latency: [0.5, 0.99, 0.999].map(|share| self.latencies.quantile(share)),
            dialled: self.dialled,
        })
    }
}

/// A line of progress, on standard error.
fn report(round: usize, workload: &Workload, name: &str, sample: &Result<Sample>) {
    let (each, speed) = match workload.unit {
        Unit::Request => ("µs", "/s"),
        Unit::Byte => ("ms/GiB", "MiB/s"),
    };
    let said = match sample {
        Ok(sample) => format!(
            "{:7.2} {each}, {:6.0} {speed}, busy {:3.0} %, others {:2.0} %",
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

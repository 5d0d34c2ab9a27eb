//! What a process and a core have used, as `/proc` says.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::param::clock_ticks_per_second;

/// Processor time of a process with all its children, and of cores.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time of the processes.
    pub cpu: Duration,
    /// The user part of it, to a hundredth of a second.
    pub user: Duration,
    /// Time of the proxy's core that was not idle, whoever used it.
    pub core: Duration,
    /// The same of the core of the load.
    pub load_core: Duration,
    /// What of it was the load.
    pub load: Duration,
}

impl Usage {
    /// As it is now; `helper` is a process that is a part of the load, as this one is.
    ///
    /// # Errors
    /// When a process is gone.
    pub fn of(pid: u32, core: usize, load_core: usize, helper: Option<u32>) -> Result<Usage> {
        let mut load = Duration::ZERO;
        for pid in [std::process::id()].into_iter().chain(helper) {
            let (precise, user, system) = process(pid)?;
            load += precise.unwrap_or(user + system);
        }
        let mut usage = Usage { core: busy(core)?, load_core: busy(load_core)?, load, ..Usage::default() };
        for pid in tree(pid) {
            let (precise, user, system) = process(pid)?;
            usage.cpu += precise.unwrap_or(user + system);
            usage.user += user;
        }
        Ok(usage)
    }

    /// Both together.
    pub fn plus(self, other: Usage) -> Usage {
        Usage {
            cpu: self.cpu + other.cpu,
            user: self.user + other.user,
            core: self.core + other.core,
            load_core: self.load_core + other.load_core,
            load: self.load + other.load,
        }
    }

    /// What was used since `earlier`.
    pub fn since(self, earlier: Usage) -> Usage {
        Usage {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            user: self.user.saturating_sub(earlier.user),
            core: self.core.saturating_sub(earlier.core),
            load_core: self.load_core.saturating_sub(earlier.load_core),
            load: self.load.saturating_sub(earlier.load),
        }
    }
}

/// Memory of a process with all its children, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident; what processes share counts for each of them.
    pub resident: f64,
    /// Resident; what processes share counts once.
    pub proportional: f64,
    /// The most that was ever resident.
    pub peak: f64,
}

impl Memory {
    /// As it is now.
    ///
    /// # Errors
    /// When a process is gone.
    pub fn of(pid: u32) -> Result<Memory> {
        let mut memory = Memory::default();
        for pid in tree(pid) {
            memory.resident += kibibytes(&format!("/proc/{pid}/smaps_rollup"), "Rss:")? * 1024.0;
            memory.proportional += kibibytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:")? * 1024.0;
            memory.peak += kibibytes(&format!("/proc/{pid}/status"), "VmHWM:")? * 1024.0;
        }
        Ok(memory)
    }
}

fn kibibytes(path: &str, name: &str) -> Result<f64> {
    let text = fs::read_to_string(path).context("the proxy is gone")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name} in {path}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// A process and all that it begot, it first.
pub fn tree(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        next += 1;
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    found
}

/// The scheduler's own sum in nanoseconds, which is what `stat` rounds to hundredths of
/// a second, if the kernel shows it; user and system time.
fn process(pid: u32) -> Result<(Option<Duration>, Duration, Duration)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the proxy is gone")?;
    let (_, fields) = stat.rsplit_once(')').context("no name in /proc/PID/stat")?;
    // utime and stime are the fields 14 and 15; the name was the second.
    let mut fields = fields.split_whitespace().skip(11).filter_map(|field| field.parse().ok()).map(ticks);
    let (user, system) = (fields.next().context("no utime")?, fields.next().context("no stime")?);
    let mut precise = Some(Duration::ZERO);
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the proxy is gone")? {
        let line = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        let nanos = line.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
        precise = precise.zip(nanos).map(|(sum, nanos)| sum + Duration::from_nanos(nanos));
    }
    Ok((precise, user, system))
}

/// Time of a core in user, nice, system, interrupt, soft interrupt and stolen.
fn busy(core: usize) -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let name = format!("cpu{core} ");
    let line = stat.lines().find(|line| line.starts_with(&name)).context("the core is not in /proc/stat")?;
    let fields: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    let idle: u64 = fields.iter().skip(3).take(2).sum();
    Ok(ticks(fields.iter().take(8).sum::<u64>().saturating_sub(idle)))
}

fn ticks(count: u64) -> Duration {
    Duration::from_secs(count) / u32::try_from(clock_ticks_per_second()).unwrap_or(100)
}

//! System calls for each request, as strace counts them. It slows the proxy down, which
//! stays saturated: what one wake-up serves stays about the same.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::Bench;
use crate::contenders::{Contender, Duty};
use crate::rig::content::Exchange;
use crate::rig::load::{Pace, Plan};
use crate::usage;

/// How long strace may take to begin or to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a proxy has to do what is left to do when the load stands still. strace makes
/// it slow, but 64 requests are a few hundred calls.
const REST: Duration = Duration::from_millis(200);

/// How often something is looked at.
const GLANCE: Duration = Duration::from_millis(2);

/// Calls that are named: those that make up at least so many for a request.
const WORTH: f64 = 0.05;

/// Kept connections, then one connection for each request.
pub fn look(bench: &mut Bench, contender: &Contender) -> Result<Vec<String>> {
    let mut cells = Vec::new();
    for keep in [true, false] {
        let plan = Plan {
            exchange: Exchange::Small,
            connections: 64,
            secure: None,
            streams: None,
            keep,
            pace: Pace::Saturated,
            warm: Duration::from_millis(200),
            time: Duration::from_millis(1500),
        };
        let mut trace = None;
        let mut counts = Vec::new();
        // The load stands still while strace begins and ends, and so does the proxy soon:
        // what was half done at the beginning makes up for what is half done at the end.
        let outcome = bench.with(contender, Duty::http(1, plan.connections), |rig, running| {
            rig.run(&plan, running.address, &mut |_| {
                match trace.take() {
                    None => trace = Some(Trace::start(running.pid())?),
                    Some(trace) => counts = Trace::end(trace)?,
                }
                Ok(())
            })
        })?;
        let answered = outcome.answered as f64;
        let sum: u64 = counts.iter().map(|(_, count)| count).sum();
        cells.push(format!("{:.2}", sum as f64 / answered));
        let mut which = String::new();
        for (name, count) in counts {
            let each = count as f64 / answered;
            if each >= WORTH {
                let comma = if which.is_empty() { "" } else { ", " };
                let _ = write!(which, "{comma}{name} {each:.2}");
            }
        }
        cells.push(which);
    }
    Ok(cells)
}

/// A strace that counts; dropping it ends it.
struct Trace {
    child: Child,
    folder: TempDir,
}

impl Trace {
    /// Counts from now on what a process and its children do.
    fn start(pid: u32) -> Result<Trace> {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-U", "calls,name", "-S", "calls", "-o"]).arg(folder.path().join("counts"));
        let pids = usage::tree(pid);
        for pid in &pids {
            command.arg("-p").arg(pid.to_string());
        }
        let said = File::create(folder.path().join("said"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
        thread::sleep(REST);
        let child = command.spawn().context("strace can't be run; benches/compare installs it")?;
        let mut trace = Trace { child, folder };
        let until = Instant::now() + PATIENCE;
        while !trace.has_all(&pids)? {
            if let Some(status) = trace.child.try_wait()? {
                bail!("strace ended with {status}: {}", trace.said());
            }
            if Instant::now() > until {
                bail!("strace does not begin: {}", trace.said());
            }
            thread::sleep(GLANCE);
        }
        Ok(trace)
    }

    /// Whether every thread of these processes is traced by it.
    fn has_all(&self, pids: &[u32]) -> Result<bool> {
        let tracer = format!("TracerPid:\t{}\n", self.child.id());
        for pid in pids {
            for task in fs::read_dir(format!("/proc/{pid}/task")).context("the proxy is gone")? {
                if !fs::read_to_string(task?.path().join("status"))?.contains(&tracer) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Ends it; each call and how often it was made, the most frequent first.
    fn end(mut self) -> Result<Vec<(String, u64)>> {
        thread::sleep(REST);
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::INT)?;
        }
        let until = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > until {
                bail!("strace does not end: {}", self.said());
            }
            thread::sleep(GLANCE);
        }
        let text = fs::read_to_string(self.folder.path().join("counts"))?;
        let mut counts = Vec::new();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (count, name) = (words.next().and_then(|word| word.parse().ok()), words.next());
            if let (Some(count), Some(name)) = (count, name.filter(|name| *name != "total")) {
                counts.push((name.to_owned(), count));
            }
        }
        if counts.is_empty() {
            bail!("strace counted nothing: {}", self.said());
        }
        Ok(counts)
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("said")).unwrap_or_default()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

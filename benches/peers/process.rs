//! A contender as a process: started on its core, ended by its id.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};
use tempfile::TempDir;

use crate::contenders::{Contender, Duty};
use crate::usage;

/// How long a start or an end may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often what can only be looked at is looked at.
const GLANCE: Duration = Duration::from_millis(2);

/// What is in a line of doorward's that tells nothing bad.
const CALM: &str = "\"level\":\"INFO\"";

/// How often a start is tried, since somebody else may take the port first.
const STARTS: usize = 4;

/// A contender that serves; dropping it ends it.
pub struct Running {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    folder: TempDir,
}

/// The cores of a list, for [`sched_setaffinity`].
pub fn cores(list: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    for &core in list {
        set.set(core);
    }
    set
}

impl Running {
    /// Starts a contender on `its` cores, and waits until it takes connections; this
    /// thread is left on `ours`.
    ///
    /// # Errors
    /// When it does not serve; with what it wrote.
    pub fn start(
        contender: &Contender,
        duty: Duty,
        backend: SocketAddr,
        its: &[usize],
        ours: &[usize],
    ) -> Result<Running> {
        Running::spawn(&|address, folder| contender.kind.command(duty, address, backend, folder), its, ours)
    }

    /// Starts what `command` makes for an address and a folder of its own, likewise.
    ///
    /// # Errors
    /// As above.
    pub fn spawn(
        command: &dyn Fn(SocketAddr, &Path) -> Result<Command>,
        its: &[usize],
        ours: &[usize],
    ) -> Result<Running> {
        let mut problem = None;
        for _ in 0..STARTS {
            match Running::try_start(command, its, ours) {
                Ok(running) => return Ok(running),
                Err(error) => problem = Some(error),
            }
        }
        Err(problem.unwrap_or_else(|| anyhow!("never started")))
    }

    fn try_start(
        command: &dyn Fn(SocketAddr, &Path) -> Result<Command>,
        its: &[usize],
        ours: &[usize],
    ) -> Result<Running> {
        let folder = tempfile::tempdir()?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let command = command(address, folder.path())?;
        // It must not outlive this process, whatever happens to it.
        let mut mortal = Command::new("setpriv");
        mortal.args(["--pdeathsig", "TERM", "--"]).arg(command.get_program()).args(command.get_args());
        // A key of doorward's in our own environment would beat what is set here.
        mortal.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        mortal.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let log = File::create(folder.path().join("log"))?;
        mortal.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A child inherits the cores of the thread that starts it.
        sched_setaffinity(None, &cores(its))?;
        let child = mortal.spawn();
        sched_setaffinity(None, &cores(ours))?;
        let mut running = Running { child: child.context("setpriv can't be run")?, address, folder };
        running.wait_for_it()?;
        Ok(running)
    }

    fn wait_for_it(&mut self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("ended with {status}: {}", self.said());
            }
            if TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_ok() {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("does not listen: {}", self.said());
            }
            thread::sleep(GLANCE);
        }
    }

    /// The process that was started.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of what it wrote.
    pub fn said(&self) -> String {
        let tail = |name: &Path| {
            let text = fs::read_to_string(name).unwrap_or_default();
            let lines: Vec<&str> = text.lines().filter(|line| !line.contains(CALM)).collect();
            lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join("; ")
        };
        format!("{} {}", tail(&self.folder.path().join("log")), tail(&self.folder.path().join("nginx.log")))
    }

    fn end(&mut self) -> Result<()> {
        signal(self.pid(), Signal::TERM);
        let until = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > until {
                // Children first: they are ours only while their parent lives.
                for pid in usage::tree(self.pid()).into_iter().rev() {
                    signal(pid, Signal::KILL);
                }
                self.child.wait()?;
                bail!("did not end within {PATIENCE:?}");
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // What can't be ended can't be helped.
        let _ = self.end();
    }
}

/// Sends a signal to a process, if it is still there.
pub fn signal(raw: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(raw).ok().and_then(Pid::from_raw) {
        // It may be gone by now.
        let _ = kill_process(pid, signal);
    }
}

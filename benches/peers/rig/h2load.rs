//! The load over HTTP/2: nghttp2's `h2load`, a program of its own on the core of the load.
//!
//! It says itself whether all was well. What it was answered is counted where each answer
//! comes from: at the backend.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;

use super::content::Exchange;
use super::load::Plan;
use super::secure::NAME;

/// How much longer than the measured time it asks: it has to start, and nobody may find it
/// gone before the time is over.
const SLACK: Duration = Duration::from_millis(150);

/// How long it may take to end by itself.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// A running `h2load`. Dropping it ends it.
pub struct H2load {
    child: Child,
    output: ChildStdout,
    said: Vec<u8>,
    until: Instant,
}

impl H2load {
    /// Starts one that asks `target` as the plan says, on the cores of this thread.
    ///
    /// # Errors
    /// When the program is missing.
    pub fn start(plan: &Plan, target: SocketAddr, streams: u32) -> Result<H2load> {
        let scheme = if plan.secure.is_some() { "https" } else { "http" };
        let lasts = plan.warm + plan.time + SLACK;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "h2load"]);
        command.arg(format!("--clients={}", plan.connections)).arg(format!("--max-concurrent-streams={streams}"));
        command.arg(format!("--duration={}ms", lasts.as_millis()));
        // The name is asked for, and the address connected to.
        command.arg(format!("--connect-to={target}"));
        command.arg(format!("--header=:authority: {NAME}")).arg("--header=accept: */*");
        command.arg(format!("{scheme}://{NAME}{}", Exchange::Small.path()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("setpriv can't be run")?;
        let output = child.stdout.take().context("a pipe")?;
        fcntl_setfl(&output, OFlags::NONBLOCK)?;
        Ok(H2load { child, output, said: Vec::new(), until: Instant::now() + lasts + LAST_ANSWERS })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended; to be asked while the backend goes on answering.
    ///
    /// # Errors
    /// It does not end, or not everything was answered as it should have been.
    pub fn has_ended(&mut self) -> Result<bool> {
        let mut piece = [0; 4096];
        loop {
            match rustix::io::read(self.output.as_fd(), &mut piece) {
                Ok(0) => break,
                Ok(read) => self.said.extend(piece.iter().take(read)),
                Err(Errno::AGAIN) => {
                    if Instant::now() > self.until {
                        bail!("h2load does not end");
                    }
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        let status = self.child.wait()?;
        let said = String::from_utf8_lossy(&self.said);
        if !status.success() || !is_well(&said) {
            bail!("h2load ended with {status}: {}", said.escape_debug());
        }
        Ok(true)
    }
}

/// Whether all requests succeeded, with a 2xx, over HTTP/2.
fn is_well(said: &str) -> bool {
    let line = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let count = |name: &str, what: &str| -> Option<u64> {
        line(name).split(", ").find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
    };
    // Heads may have come whose bodies had not when the time was over.
    let right = count("requests:", "succeeded").zip(count("status codes:", "2xx"));
    line("Application protocol:").trim().starts_with("h2")
        && right.is_some_and(|(whole, begun)| whole > 0 && begun >= whole)
        && ["failed", "errored", "timeout"].iter().all(|kind| count("requests:", kind) == Some(0))
        && ["3xx", "4xx", "5xx"].iter().all(|class| count("status codes:", class) == Some(0))
}

impl Drop for H2load {
    fn drop(&mut self) {
        // One that has ended can't be killed, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

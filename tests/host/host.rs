//! A throw-away host: a Debian whose PID 1 is a real systemd, in a container.
//!
//! The script `guest` boots it and keeps it for as long as this process holds
//! the other end of its stdin. So a host ends with its [`Host`], and also when a
//! test panics or the whole run is killed: there is no signal handler that could
//! be missed. Nothing talks to the guest but `nsenter`, so that the guest needs
//! no agent and the machine around it no systemd.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::wait::wait_for;

/// The path that commands in a guest see.
const GUEST_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long one command in a guest may take, in seconds, before it is killed.
const COMMAND_LIMIT: &str = "120";

/// The scripts beside this file.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host").join(name)
}

/// A Debian release that doorward supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suite {
    /// Debian 12, systemd 252.
    Bookworm,
    /// Debian 13, systemd 257.
    Trixie,
}

impl Suite {
    /// The name that the Debian archive uses.
    fn name(self) -> &'static str {
        match self {
            Suite::Bookworm => "bookworm",
            Suite::Trixie => "trixie",
        }
    }

    /// The release of systemd that the suite ships.
    pub(crate) fn systemd(self) -> u32 {
        match self {
            Suite::Bookworm => 252,
            Suite::Trixie => 257,
        }
    }
}

/// What a command in a guest printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Output {
    /// The command as it was given.
    command: String,
    /// Exit status; 128 + N after signal N.
    pub(crate) code: i32,
    /// Standard output, trailing newlines removed.
    pub(crate) stdout: String,
    /// Standard error, trailing newlines removed.
    pub(crate) stderr: String,
}

impl Output {
    /// The output of a command that had to succeed.
    pub(crate) fn ok(self) -> Result<Output> {
        ensure!(self.code == 0, "{self} should have succeeded");
        Ok(self)
    }

    /// The output of a command that had to fail.
    pub(crate) fn failed(self) -> Result<Output> {
        ensure!(self.code != 0, "{self} should have failed");
        Ok(self)
    }

    /// Whether the command succeeded.
    pub(crate) fn success(&self) -> bool {
        self.code == 0
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "`{}` exited with {}", self.command, self.code)?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            for line in text.lines() {
                writeln!(f, "    {name}: {line}")?;
            }
        }
        Ok(())
    }
}

/// A running host. Dropping it powers the host off and removes all of it.
pub(crate) struct Host {
    suite: Suite,
    name: String,
    leader: u32,
    keeper: Child,
    /// The keeper ends the host when this pipe closes.
    leash: Option<ChildStdin>,
}

impl Host {
    /// Boots a host of `suite` and waits until systemd says that it runs.
    ///
    /// # Errors
    /// The root can't be built, or the host is not up within 60 s.
    pub(crate) fn boot(suite: Suite) -> Result<Host> {
        static SWEEP: Once = Once::new();
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(|| {
            let _ = Command::new(script("guest")).arg("sweep").status();
        });
        let root = Command::new(script("root"))
            .arg(suite.name())
            .stderr(Stdio::inherit())
            .output()
            .context("tests/host/root can't be run")?;
        ensure!(root.status.success(), "no root for {}", suite.name());
        let root = String::from_utf8(root.stdout)?.trim().to_owned();

        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("dw-{}-{serial}", std::process::id());
        let mut keeper = Command::new(script("guest"))
            .args(["boot", &name, &root])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("tests/host/guest can't be run")?;
        let leash = keeper.stdin.take();
        let mut first = String::new();
        if let Some(stdout) = keeper.stdout.take() {
            BufReader::new(stdout).read_line(&mut first)?;
        }
        let Some(leader) = first.trim().strip_prefix("leader ") else {
            let mut said = String::new();
            if let Some(mut stderr) = keeper.stderr.take() {
                stderr.read_to_string(&mut said)?;
            }
            keeper.wait()?;
            bail!("{said}");
        };
        let host = Host { suite, leader: leader.parse()?, name, keeper, leash };
        wait_for("the host to run", Duration::from_secs(60), || {
            let state = host.run("systemctl is-system-running")?;
            ensure!(state.stdout != "degraded", "{}", host.evidence());
            Ok(state.stdout == "running")
        })?;
        Ok(host)
    }

    /// The suite that the host runs.
    pub(crate) fn suite(&self) -> Suite {
        self.suite
    }

    /// The name of the host, by which its folders are found on the machine.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The process id of the guest's systemd, as the machine counts.
    pub(crate) fn leader(&self) -> u32 {
        self.leader
    }

    /// Runs a shell command in the guest, as root, with a closed stdin.
    ///
    /// # Errors
    /// Only when the command could not be run at all; a failing command is an
    /// [`Output`] like another.
    pub(crate) fn run(&self, command: &str) -> Result<Output> {
        self.run_with(command, &[])
    }

    /// Like [`Host::run`], with `input` on the command's stdin.
    pub(crate) fn run_with(&self, command: &str, input: &[u8]) -> Result<Output> {
        let leader = self.leader.to_string();
        let path = format!("PATH={GUEST_PATH}");
        let mut child = Command::new("timeout")
            .args(["-k", "5", COMMAND_LIMIT, "nsenter", "-t", &leader, "-a"])
            .args(["env", "-i", &path, "HOME=/root", "LC_ALL=C.UTF-8"])
            .args(["SYSTEMD_PAGER=", "DEBIAN_FRONTEND=noninteractive"])
            .args(["bash", "-c", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("nsenter can't be run")?;
        let stdin = child.stdin.take();
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                // A command that doesn't read its input closes the pipe: not an error here.
                stdin.map(|mut stdin| stdin.write_all(input))
            });
            child.wait_with_output()
        })?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        Ok(Output {
            command: command.to_owned(),
            code: exit_code(output.status),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        })
    }

    /// Runs a command that must succeed, and returns its standard output.
    pub(crate) fn say(&self, command: &str) -> Result<String> {
        Ok(self.run(command)?.ok()?.stdout)
    }

    /// Writes a file in the guest, making its folder; an existing file keeps its
    /// owner and mode.
    pub(crate) fn put(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let command = format!("mkdir -p \"$(dirname '{path}')\" && cat >'{path}'");
        self.run_with(&command, content.as_ref())?.ok()?;
        Ok(())
    }

    /// A path of the guest as this process may open it. Only for paths without
    /// symbolic links, since an absolute one would lead to the machine's own files.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.leader))
    }

    /// Runs `work` on a thread that lives in the guest's network, so that its
    /// sockets, and those of the threads it starts, are the guest's.
    pub(crate) fn in_network<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let network = File::open(format!("/proc/{}/ns/net", self.leader))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// The machine's number for a process that has number `pid` in the guest.
    ///
    /// # Errors
    /// No such process.
    pub(crate) fn outer_pid(&self, pid: u32) -> Result<u32> {
        let namespace = fs::read_link(format!("/proc/{}/ns/pid", self.leader))?;
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            let Some(outer) = path.file_name().and_then(OsStr::to_str) else {
                continue;
            };
            let Ok(outer) = outer.parse::<u32>() else {
                continue;
            };
            if fs::read_link(path.join("ns/pid")).ok().as_ref() != Some(&namespace) {
                continue;
            }
            let status = fs::read_to_string(path.join("status")).unwrap_or_default();
            let inner = status
                .lines()
                .find_map(|line| line.strip_prefix("NSpid:"))
                .and_then(|pids| pids.split_whitespace().next_back())
                .and_then(|pid| pid.parse::<u32>().ok());
            if inner == Some(pid) {
                return Ok(outer);
            }
        }
        bail!("no process {pid} in {}", self.name)
    }

    /// Asks the guest's systemd to power off, as an operator's `poweroff` does.
    pub(crate) fn power_off(&self) -> Result<()> {
        self.run("systemctl --no-block poweroff")?.ok()?;
        Ok(())
    }

    /// Waits until the guest has ended by itself.
    pub(crate) fn gone(&self, limit: Duration) -> Result<()> {
        let leader = PathBuf::from(format!("/proc/{}", self.leader));
        wait_for("the host to be gone", limit, || Ok(!leader.exists()))
    }

    /// What a reader of a failed test wants to see of the guest.
    pub(crate) fn evidence(&self) -> String {
        let commands = [
            "systemctl --failed --no-legend --plain",
            "systemctl status --no-pager --full --lines=0 'doorward*'",
            "journalctl --no-pager -b -o short-monotonic -n 60",
            "ss -ltnxp",
        ];
        commands
            .iter()
            .map(|command| match self.run(command) {
                Ok(output) => output.to_string(),
                Err(error) => format!("`{command}`: {error}\n"),
            })
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.leash.take());
        match self.keeper.wait() {
            Ok(status) if status.success() => {}
            other => eprintln!("the keeper of {} ended with {other:?}", self.name),
        }
    }
}

/// A shell's way to put an exit status into one number.
fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

//! The daemon in front of a test's backends, with clients of its own.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, pidfd_open, prlimit};
use serde_json::Value;

use crate::daemon::{self, DEADLINE, Setting, listener};
use crate::peer::Peer;

/// A daemon about to be started.
pub struct Setup {
    setting: Setting,
    config: String,
    address: Option<SocketAddr>,
}

impl Setup {
    /// Two workers, one TCP listener named `http`, records of all requests as JSON.
    pub fn new() -> Self {
        let (socket, address) = listener();
        Self { address: Some(address), ..Self::without_listener() }.listener("http", socket)
    }

    /// The same without any listener.
    pub fn without_listener() -> Self {
        // The environment beats the file, where tests of traffic write all they set.
        let setting = Setting::new("").without("WORKERS");
        // Tests know whose turn it is; those of other ways to choose say so.
        let config = "WORKERS=2\nLOG_FORMAT=json\nACCESS_LOG=on\nBALANCE=round-robin\n".to_owned();
        Self { setting, config, address: None }
    }

    /// Sets a key in `config.env`, once or anew.
    pub fn set(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        let start = format!("{key}=");
        self.config = self.config.lines().filter(|line| !line.starts_with(&start)).map(|l| format!("{l}\n")).collect();
        self.config.push_str(&format!("{key}=\"{value}\"\n"));
        self
    }

    /// Puts a file into `routes.d`.
    pub fn route(self, name: &str, text: &str) -> Self {
        fs::create_dir_all(self.path("routes.d")).unwrap();
        self.setting.write(&format!("routes.d/{name}"), text);
        self
    }

    /// Passes a listening socket under a name.
    pub fn listener(self, name: &str, socket: impl Into<OwnedFd>) -> Self {
        Self { setting: self.setting.pass(name, socket), ..self }
    }

    /// Leaves the daemon no network but the sockets that it is passed; `None` where that
    /// can't be had.
    pub fn without_network(self) -> Option<Self> {
        let unshare = "/usr/bin/unshare";
        let ways: [&[&str]; 2] = [&[unshare, "--net"], &[unshare, "--user", "--map-root-user", "--net"]];
        let way = ways.into_iter().find(|way| {
            let tried = Command::new(way[0]).args(&way[1..]).arg("/bin/true").stderr(Stdio::null()).status();
            tried.is_ok_and(|status| status.success())
        })?;
        Some(self.through(way))
    }

    /// Has the daemon see this file of the test's folder as `/etc/hosts`; `None` where that
    /// can't be had.
    pub fn with_hosts(self, name: &str) -> Option<Self> {
        let hosts = self.path(name).into_os_string().into_string().unwrap();
        let mount = r#"mount --bind "$0" /etc/hosts && exec "$@""#;
        let ways: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
        let way = ways.into_iter().find_map(|flags| {
            let way = [&["/usr/bin/unshare"], flags, &["/bin/sh", "-c", mount, &hosts]].concat();
            let tried = Command::new(way[0]).args(&way[1..]).arg("/bin/true").stderr(Stdio::null()).status();
            tried.is_ok_and(|status| status.success()).then_some(way)
        })?;
        Some(self.through(&way))
    }

    /// Has another program start the daemon and become it.
    pub fn through(self, launcher: &[&str]) -> Self {
        Self { setting: self.setting.through(launcher), ..self }
    }

    /// Sets a variable of the daemon's environment.
    pub fn environment(self, name: &str, value: &str) -> Self {
        Self { setting: self.setting.set(name, value), ..self }
    }

    /// Where the daemon will listen.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The test's own folder.
    pub fn folder(&self) -> &Path {
        self.setting.folder.path()
    }

    /// A path in the test's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.setting.path(name)
    }

    /// Starts the daemon and waits until it is ready.
    pub fn start(self) -> Daemon {
        let admin = self.path("admin.sock");
        self.setting.write("config.env", &self.config);
        let setting = self.setting.pass("admin", UnixListener::bind(&admin).unwrap());
        Daemon { process: setting.start().ready(), admin, address: self.address }
    }
}

/// A running daemon; it ends with the value.
pub struct Daemon {
    process: daemon::Daemon,
    admin: PathBuf,
    address: Option<SocketAddr>,
}

impl Daemon {
    /// A client connected to its listener.
    pub fn connect(&self) -> Peer {
        Peer::connect(self.address())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address.expect("a TCP listener")
    }

    /// The folder with all that it has been given.
    pub fn folder(&self) -> &Path {
        self.process.folder.path()
    }

    fn ask(&self, command: &str) -> Value {
        let mut admin = UnixStream::connect(&self.admin).unwrap();
        admin.set_read_timeout(Some(DEADLINE)).unwrap();
        writeln!(admin, "{{\"command\":\"{command}\"}}").unwrap();
        let mut line = String::new();
        BufReader::new(admin).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Its live state.
    pub fn status(&self) -> Value {
        self.ask("status")["status"].take()
    }

    /// Adds a line to `config.env` and has it take effect.
    pub fn reload(&self, line: &str) {
        let answer = self.ask_reload(line);
        assert_eq!(answer["ok"], true, "{answer}");
    }

    /// Adds a line to `config.env`, which has the whole refused; what is said of that.
    pub fn refused(&self, line: &str) -> String {
        let answer = self.ask_reload(line);
        assert_eq!(answer["ok"], false, "{answer}");
        answer["error"].as_str().unwrap().to_owned()
    }

    fn ask_reload(&self, line: &str) -> Value {
        let file = self.admin.with_file_name("config.env");
        fs::write(&file, fs::read_to_string(&file).unwrap() + line + "\n").unwrap();
        self.ask("reload")
    }

    /// Sets a key in `config.env` anew and has it take effect.
    pub fn replace(&self, key: &str, value: &str) {
        let file = self.admin.with_file_name("config.env");
        let start = format!("{key}=");
        let text = fs::read_to_string(&file).unwrap();
        let kept: String = text.lines().filter(|line| !line.starts_with(&start)).map(|l| format!("{l}\n")).collect();
        fs::write(&file, kept).unwrap();
        self.reload(&format!("{key}=\"{value}\""));
    }

    /// Everything that systemd was told by now.
    pub fn all_heard(&mut self) -> &[String] {
        self.process.all_heard()
    }

    /// Waits until systemd is told something that has this part.
    pub fn hear(&mut self, part: &str) -> String {
        self.process.hear(part)
    }

    /// What systemd has stored by this name by now.
    pub fn stored(&mut self, name: &str) -> Option<OwnedFd> {
        self.process.all_heard();
        self.process.stored.get(name).map(|stored| stored.try_clone().unwrap())
    }

    /// Puts a file into `routes.d`, for the next reload.
    pub fn put_route(&self, name: &str, text: &str) {
        let folder = self.admin.with_file_name("routes.d");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), text).unwrap();
    }

    /// Asks for its state until it is as wanted.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let until = Instant::now() + DEADLINE;
        loop {
            let status = self.status();
            if wanted(&status) {
                return;
            }
            assert!(Instant::now() < until, "never came true: {what}\n{status:#}");
        }
    }

    /// Waits until so many requests stand in the queue.
    pub fn wait_queued(&self, queued: u64) {
        self.wait(&format!("{queued} queued"), |status| status["queued"] == queued);
    }

    /// Waits until so many requests hold a permit.
    pub fn wait_in_flight(&self, in_flight: u64) {
        self.wait(&format!("{in_flight} in flight"), |status| status["in_flight"] == in_flight);
    }

    /// Waits for a line of the log that is as wanted, and returns it.
    pub fn logged(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.process.find(what, wanted)
    }

    /// Waits for the record of the request for `path`.
    pub fn record(&self, path: &str) -> Value {
        self.logged(path, |line| line["path"] == path)
    }

    /// Waits for a record with this reason.
    pub fn record_of(&self, reason: &str) -> Value {
        self.logged(reason, |line| line["reason"] == reason && line["target"] == "doorward::access")
    }

    /// The lines logged so far that are as wanted.
    pub fn lines(&self, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let lines = self.process.log();
        let lines = lines.iter().map(|line| serde_json::from_str(line).expect("a line of JSON"));
        lines.filter(|line| wanted(line)).collect()
    }

    /// Bytes of memory that it has to itself.
    pub fn memory(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
    }

    /// Has it stop, and waits for its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.begin_stop();
        self.await_end()
    }

    /// Has it stop once it is done.
    pub fn begin_stop(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Waits for the end of one that was told to stop.
    pub fn await_end(&mut self) -> ExitStatus {
        let pid = Pid::from_raw(i32::try_from(self.process.pid()).unwrap()).unwrap();
        let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let limit = Timespec { tv_sec: i64::try_from(DEADLINE.as_secs()).unwrap(), tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ended, 1, "still running");
        self.process.end()
    }

    /// Lets it open no descriptor from this number on.
    pub fn limit_descriptors(&self, limit: u64) {
        let limit = Rlimit { current: Some(limit), maximum: getrlimit(Resource::Nofile).maximum };
        let pid = Pid::from_raw(i32::try_from(self.process.pid()).unwrap());
        prlimit(pid, Resource::Nofile, limit).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the daemon:\n{}", self.process.log().join("\n"));
        }
    }
}

//! The daemon as a process: started as systemd would, with descriptors and a notify
//! socket of the test's own, and ended with it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything takes here, even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A daemon to be started.
pub struct Setting {
    pub folder: TempDir,
    passed: Vec<(String, OwnedFd)>,
    environment: BTreeMap<String, String>,
    launcher: Vec<String>,
}

impl Setting {
    /// A folder with this `config.env`; two workers, a quick end.
    pub fn new(config: &str) -> Setting {
        let setting = Setting {
            folder: tempfile::tempdir().unwrap(),
            passed: Vec::new(),
            environment: BTreeMap::from([("WORKERS".into(), "2".into())]),
            launcher: Vec::new(),
        };
        setting.write("config.env", config);
        setting
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Passes a descriptor by this name, as `FileDescriptorName=` does.
    pub fn pass(mut self, name: &str, descriptor: impl Into<OwnedFd>) -> Setting {
        self.passed.push((name.into(), descriptor.into()));
        self
    }

    pub fn set(mut self, key: &str, value: impl Into<String>) -> Setting {
        self.environment.insert(key.into(), value.into());
        self
    }

    pub fn without(mut self, key: &str) -> Setting {
        self.environment.remove(key);
        self
    }

    /// Has another program start the daemon and become it.
    pub fn through(mut self, launcher: &[&str]) -> Setting {
        self.launcher = launcher.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Starts the daemon. `LISTEN_PID` must be the daemon's own, which only a process
    /// that then becomes it can know.
    pub fn start(self) -> Daemon {
        let notify = UnixDatagram::bind(self.path("notify")).unwrap();
        let mut command = Command::new("/bin/sh");
        command.arg("-c");
        if self.passed.is_empty() {
            command.arg(r#"exec "$0" "$@""#);
        } else {
            command.arg(r#"LISTEN_PID=$$ exec "$0" "$@""#);
        }
        command.args(&self.launcher);
        command.arg(env!("CARGO_BIN_EXE_doorward")).arg("--config").arg(self.path("config.env"));
        command.current_dir(self.folder.path()).env_clear().envs(&self.environment);
        command.env("NOTIFY_SOCKET", self.path("notify"));
        if !self.passed.is_empty() {
            let names: Vec<&str> = self.passed.iter().map(|(name, _)| name.as_str()).collect();
            command.env("LISTEN_FDNAMES", names.join(":")).env("LISTEN_FDS", names.len().to_string());
            let mapping = |(index, (_, descriptor)): (usize, (String, OwnedFd))| FdMapping {
                parent_fd: descriptor,
                child_fd: 3 + i32::try_from(index).unwrap(),
            };
            command.fd_mappings(self.passed.into_iter().enumerate().map(mapping).collect()).unwrap();
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let said = Arc::new(Said::default());
        let (stderr, hearer) = (child.stderr.take().unwrap(), Arc::clone(&said));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                hearer.locked().0.push(line);
                hearer.more.notify_all();
            }
            hearer.locked().1 = true;
            hearer.more.notify_all();
        });
        Daemon { child, notify, said, heard: Vec::new(), stored: BTreeMap::new(), folder: self.folder }
    }
}

/// What the daemon wrote on stderr, and whether it has closed it.
#[derive(Default)]
struct Said {
    lines: Mutex<(Vec<String>, bool)>,
    more: Condvar,
}

impl Said {
    /// A test that fails while it looks still shows what there was.
    fn locked(&self) -> MutexGuard<'_, (Vec<String>, bool)> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn with_message(lines: &[String], message: &str) -> Vec<Value> {
    let records = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let detailed = format!("{message}: ");
    let is = |said: &str| said == message || said.starts_with(&detailed);
    records.filter(|record| record["message"].as_str().is_some_and(is)).collect()
}

/// A daemon that runs; dropping it kills it.
pub struct Daemon {
    child: Child,
    notify: UnixDatagram,
    said: Arc<Said>,
    /// Everything that the notify socket has brought so far.
    pub heard: Vec<String>,
    /// What it has had stored, by its name, as systemd would.
    pub stored: BTreeMap<String, OwnedFd>,
    pub folder: TempDir,
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for the process that takes over, as systemd hears of it.
    pub fn successor(&mut self) -> Successor {
        let message = self.hear("MAINPID=");
        let pid = message.lines().find_map(|line| line.strip_prefix("MAINPID=")).unwrap();
        // Hearing it closes what came with it, which is waited for.
        self.hear("BARRIER=1");
        Successor::of(pid.parse().unwrap())
    }

    /// Waits for the next notification that has `part`, and returns it.
    pub fn hear(&mut self, part: &str) -> String {
        let until = Instant::now() + DEADLINE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                panic!("no `{part}` in {:#?}\nlog: {:#?}", self.heard, self.log());
            }
            if let Some(message) = self.next_message(left) {
                if message.contains(part) {
                    return message;
                }
            }
        }
    }

    fn next_message(&mut self, patience: Duration) -> Option<String> {
        self.notify.set_read_timeout(Some(patience)).unwrap();
        self.receive()
    }

    fn receive(&mut self) -> Option<String> {
        let mut bytes = [0; 8192];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut beside = RecvAncillaryBuffer::new(&mut room);
        let text = &mut [IoSliceMut::new(&mut bytes)];
        let length = recvmsg(&self.notify, text, &mut beside, RecvFlags::CMSG_CLOEXEC).ok()?.bytes;
        let descriptor = beside.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let message = String::from_utf8_lossy(&bytes[..length]).into_owned();
        if let Some(name) = message.lines().find_map(|line| line.strip_prefix("FDNAME=")) {
            if message.contains("FDSTOREREMOVE=1\n") {
                self.stored.remove(name);
            }
            if message.contains("FDSTORE=1\n") {
                // One name stands for several where nobody takes the first back.
                assert!(self.stored.insert(name.to_owned(), descriptor.unwrap()).is_none(), "{name} is there twice");
            }
        }
        self.heard.push(message.clone());
        Some(message)
    }

    /// Everything that has been notified by now.
    pub fn all_heard(&mut self) -> &[String] {
        self.notify.set_nonblocking(true).unwrap();
        while self.receive().is_some() {}
        self.notify.set_nonblocking(false).unwrap();
        &self.heard
    }

    pub fn ready(mut self) -> Daemon {
        self.hear("READY=1");
        self
    }

    /// Everything written on stderr by now.
    pub fn log(&self) -> Vec<String> {
        self.said.locked().0.clone()
    }

    /// Waits for a record with this message.
    pub fn record(&self, message: &str) -> Value {
        self.wait_for(message, 1).swap_remove(0)
    }

    /// Waits for `count` records with this message.
    pub fn wait_for(&self, message: &str, count: usize) -> Vec<Value> {
        let lines = self.said.locked();
        let (lines, _) = self
            .said
            .more
            .wait_timeout_while(lines, DEADLINE, |(lines, closed)| {
                with_message(lines, message).len() < count && !*closed
            })
            .unwrap();
        let found = with_message(&lines.0, message);
        assert!(found.len() >= count, "{} of {count} `{message}` in {:#?}", found.len(), lines.0);
        found
    }

    /// Waits for a record that is as `wanted`; `what` names it if it never comes.
    pub fn find(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let find = |lines: &[String]| {
            let mut records = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            records.find(|record| wanted(record))
        };
        let lines = self.said.locked();
        let waiting = |(lines, closed): &mut (Vec<String>, bool)| find(lines).is_none() && !*closed;
        let (lines, _) = self.said.more.wait_timeout_while(lines, DEADLINE, waiting).unwrap();
        find(&lines.0).unwrap_or_else(|| panic!("no record of {what} in {:#?}", lines.0))
    }

    /// How many records have this message by now.
    pub fn records(&self, message: &str) -> usize {
        with_message(&self.log(), message).len()
    }

    /// Waits for the end of the process.
    pub fn end(&mut self) -> ExitStatus {
        let lines = self.said.locked();
        let (lines, late) = self.said.more.wait_timeout_while(lines, DEADLINE, |(_, closed)| !*closed).unwrap();
        assert!(!late.timed_out(), "still running: {:#?}", lines.0);
        drop(lines);
        self.child.wait().unwrap()
    }

    /// Waits for the end of this process alone: one that took over from it may go on.
    pub fn end_alone(&mut self) -> ExitStatus {
        Successor::of(self.pid()).await_end();
        self.child.wait().unwrap()
    }

    /// The first address that it bound itself.
    pub fn address(&self) -> SocketAddr {
        let record = self.record("listening on a socket of its own");
        record["address"].as_str().unwrap().parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that is nobody's child; dropping it kills it.
pub struct Successor {
    pub pid: u32,
    process: OwnedFd,
}

impl Successor {
    pub fn of(pid: u32) -> Successor {
        let raw = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        Successor { pid, process: pidfd_open(raw, PidfdFlags::empty()).unwrap() }
    }

    pub fn signal(&self, signal: Signal) {
        pidfd_send_signal(&self.process, signal).unwrap();
    }

    pub fn await_end(self) {
        let patience = rustix::time::Timespec { tv_sec: i64::try_from(DEADLINE.as_secs()).unwrap(), tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&self.process, PollFlags::IN)], Some(&patience)).unwrap();
        assert_eq!(ended, 1, "process {} still runs", self.pid);
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }
}

/// A listening socket on loopback, and where it is.
pub fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A connection on which nothing waits longer than [`DEADLINE`].
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// The answer to a GET of `/` on a connection of its own, until it is closed.
pub fn get(address: SocketAddr) -> String {
    let mut stream = connect(address);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A backend that answers each request with `body` and closes.
pub fn backend(body: &'static str) -> SocketAddr {
    let (listener, address) = listener();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            read_head(&mut stream);
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            // The daemon under test may be gone by then.
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    address
}

/// Reads the head of a message and nothing beyond it; what there was when the peer
/// closed instead.
pub fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

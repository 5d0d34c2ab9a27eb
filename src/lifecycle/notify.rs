//! What systemd is told: readiness, reloads, the status line, the watchdog.
//!
//! The vocabulary is that of the `sd-notify` crate; the sending is not. Its
//! `notify` blocks while the manager's queue is full, opens a socket for each
//! message and knows no abstract address, and the control thread must not stand
//! still for a busy PID 1. So one non-blocking socket serves all messages; what
//! the queue does not take now is kept, in order, and sent before the next one.
//! A status line is replaced rather than queued, and nothing is ever written into
//! the process environment.
//!
//! Source: `sd_notify(3)`.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr};
use sd_notify::NotifyState;
use tracing::{debug, warn};

/// Messages kept while the manager's queue is full; more lose the oldest one.
const KEPT: usize = 16;

/// The line to the service manager; does nothing when there is none.
#[derive(Debug, Default)]
pub struct Notifier {
    line: Option<Line>,
    kept: VecDeque<Message>,
    status: String,
    /// Another process speaks: what is kept goes out, and nothing more is said.
    resigned: bool,
    /// Why the message before was lost, if it was.
    lost: Option<Errno>,
}

#[derive(Debug)]
struct Line {
    socket: UnixDatagram,
    manager: SocketAddrUnix,
}

/// A message, and the descriptor that goes with it.
#[derive(Debug)]
struct Message {
    text: String,
    descriptor: Option<OwnedFd>,
}

impl Notifier {
    /// Opens the line that `NOTIFY_SOCKET` names: a path, or `@` and an abstract name.
    ///
    /// Absent or empty means that nobody wants to know.
    ///
    /// # Errors
    /// The address is of another kind, or no socket can be opened.
    pub fn open(environment: &BTreeMap<OsString, OsString>) -> io::Result<Notifier> {
        let Some(name) = environment.get(OsStr::new("NOTIFY_SOCKET")).filter(|name| !name.is_empty()) else {
            return Ok(Notifier::default());
        };
        let manager = match name.as_bytes() {
            [b'/', ..] => SocketAddrUnix::new(name.as_bytes())?,
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("NOTIFY_SOCKET={} is neither a path nor an abstract name", name.to_string_lossy()),
                ));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Notifier { line: Some(Line { socket, manager }), ..Notifier::default() })
    }

    /// True when a service manager listens.
    pub fn connected(&self) -> bool {
        self.line.is_some()
    }

    /// The daemon serves: at the start, and after every reload, taken or refused.
    pub fn ready(&mut self, status: &str) {
        status.clone_into(&mut self.status);
        self.send(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// A reload begins. [`Notifier::ready`] must follow, whatever comes of it.
    pub fn reloading(&mut self) {
        match NotifyState::monotonic_usec_now() {
            // One datagram: systemd 253 and newer want both together.
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => warn!(%error, "monotonic clock unreadable"),
        }
    }

    /// The daemon stops; it needs at most `patience` until the next word.
    pub fn stopping(&mut self, status: &str, patience: Duration) {
        status.clone_into(&mut self.status);
        let usec = micros(patience);
        self.send(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(usec), NotifyState::Status(status)]);
    }

    /// Asks for `patience` more, counted from now, before the stop counts as hung.
    pub fn extend(&mut self, patience: Duration) {
        self.send(&[NotifyState::ExtendTimeoutUsec(micros(patience))]);
    }

    /// The line in `systemctl status`; sent only when it differs from the last one.
    pub fn status(&mut self, status: &str) {
        if self.status == status || !self.flush() || self.resigned {
            return;
        }
        status.clone_into(&mut self.status);
        self.send(&[NotifyState::Status(status)]);
    }

    /// Every thread of the daemon turned over.
    pub fn watchdog(&mut self) {
        self.send(&[NotifyState::Watchdog]);
    }

    /// Process `pid` is the main one from now on; whatever this one would say later is not said,
    /// as the manager takes nothing more from it. It closes `barrier` once it knows.
    /// `sd_notify_barrier(3)`.
    ///
    /// # Errors
    /// The manager can't be reached, so that this process is the main one still.
    pub fn resign(&mut self, pid: u32, barrier: OwnedFd) -> io::Result<()> {
        self.send(&[NotifyState::MainPid(pid)]);
        if let Some(error) = self.lost {
            return Err(error.into());
        }
        self.send_with(&[NotifyState::Custom("BARRIER=1")], Some(barrier));
        self.resigned = true;
        Ok(())
    }

    /// Has the manager keep `descriptor` by this name, in place of what it has by it, and
    /// pass it to the next process. It does so only as far as `FileDescriptorStoreMax=` allows.
    pub fn store(&mut self, name: &str, descriptor: OwnedFd) {
        self.forget(name);
        let name = format!("FDNAME={name}");
        let states = ["FDSTORE=1", &name, "FDPOLL=0"].map(NotifyState::Custom);
        self.send_with(&states, Some(descriptor));
    }

    /// Has the manager keep nothing by this name.
    pub fn forget(&mut self, name: &str) {
        let name = format!("FDNAME={name}");
        self.send(&["FDSTOREREMOVE=1", &name].map(NotifyState::Custom));
    }

    fn send(&mut self, states: &[NotifyState<'_>]) {
        self.send_with(states, None);
    }

    fn send_with(&mut self, states: &[NotifyState<'_>], descriptor: Option<OwnedFd>) {
        if self.line.is_none() || self.resigned {
            self.flush();
            return;
        }
        let mut text = String::new();
        for state in states {
            let _ = writeln!(text, "{}", one_line(state));
        }
        if self.kept.len() >= KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(Message { text, descriptor });
        self.flush();
    }

    /// Sends what is kept; false while some of it still waits.
    fn flush(&mut self) -> bool {
        let Some(line) = &self.line else { return true };
        while let Some(message) = self.kept.front() {
            self.lost = match line.send(message) {
                Ok(_) => None,
                Err(Errno::AGAIN) => return false,
                // The manager is gone or restarts: the next message finds it again.
                Err(error) => {
                    debug!(%error, "service manager not reachable");
                    Some(error)
                }
            };
            self.kept.pop_front();
        }
        true
    }
}

impl Line {
    fn send(&self, message: &Message) -> Result<usize, Errno> {
        let descriptor = message.descriptor.as_ref().map(|descriptor| [descriptor.as_fd()]);
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut room);
        if let Some(descriptor) = &descriptor {
            beside.push(SendAncillaryMessage::ScmRights(descriptor));
        }
        let text = [IoSlice::new(message.text.as_bytes())];
        sendmsg_addr(&self.socket, &self.manager, &text, &mut beside, SendFlags::empty())
    }
}

/// A state as one line of the protocol: a newline inside would begin another one.
fn one_line(state: &NotifyState<'_>) -> String {
    state.to_string().replace(['\n', '\r'], " ")
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::IoSliceMut;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::SocketAddr;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use tempfile::TempDir;

    use super::*;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    fn open(name: &OsStr) -> io::Result<Notifier> {
        Notifier::open(&BTreeMap::from([("NOTIFY_SOCKET".into(), name.into())]))
    }

    /// A manager that listens, in a folder of its own, and the line to it.
    pub fn manager() -> io::Result<(TempDir, UnixDatagram, Notifier)> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path)?;
        manager.set_nonblocking(true)?;
        let notifier = open(path.as_os_str())?;
        Ok((folder, manager, notifier))
    }

    /// The next message that a manager has got, which need not wait, and what came with it.
    pub fn heard(manager: &UnixDatagram) -> Option<(String, Option<OwnedFd>)> {
        let mut bytes = [0; 4096];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = RecvAncillaryBuffer::new(&mut room);
        let text = &mut [IoSliceMut::new(&mut bytes)];
        let length = recvmsg(manager, text, &mut beside, RecvFlags::CMSG_CLOEXEC).ok()?.bytes;
        let descriptor = beside.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        Some((String::from_utf8_lossy(&bytes[..length]).into_owned(), descriptor))
    }

    fn text(manager: &UnixDatagram) -> Option<String> {
        heard(manager).map(|(text, _)| text)
    }

    #[test]
    fn without_a_manager_nothing_is_sent() -> TestResult {
        let mut nobody = Notifier::open(&BTreeMap::new())?;
        nobody.ready("serving");
        nobody.watchdog();
        assert!(!nobody.connected());
        assert!(nobody.kept.is_empty());
        Ok(())
    }

    #[test]
    fn an_abstract_address_is_reached() -> TestResult {
        let name = format!("doorward-notify-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        manager.set_nonblocking(true)?;
        let mut notifier = open(OsStr::new(&format!("@{name}")))?;
        notifier.ready("serving");
        assert_eq!(text(&manager).as_deref(), Some("READY=1\nSTATUS=serving\n"));
        Ok(())
    }

    #[test]
    fn other_kinds_of_address_are_refused() {
        assert!(open(OsStr::new("vsock:2:1234")).is_err());
    }

    #[test]
    fn reloading_carries_the_monotonic_time_in_the_same_datagram() -> TestResult {
        let (_folder, manager, mut notifier) = manager()?;
        notifier.reloading();
        let message = text(&manager).ok_or("nothing heard")?;
        let mut lines = message.lines();
        assert_eq!(lines.next(), Some("RELOADING=1"));
        let time = lines.next().and_then(|line| line.strip_prefix("MONOTONIC_USEC="));
        assert!(time.ok_or("no time")?.parse::<u64>()? > 0);
        Ok(())
    }

    #[test]
    fn an_unchanged_status_is_not_repeated() -> TestResult {
        let (_folder, manager, mut notifier) = manager()?;
        notifier.status("one\nREADY=1");
        notifier.status("one\nREADY=1");
        assert_eq!(text(&manager).as_deref(), Some("STATUS=one READY=1\n"));
        assert_eq!(text(&manager), None);
        Ok(())
    }

    #[test]
    fn a_full_queue_keeps_messages_in_order_and_never_blocks() -> TestResult {
        let (_folder, manager, mut notifier) = manager()?;
        let mut queued = 0;
        while notifier.kept.is_empty() {
            notifier.watchdog();
            queued += 1;
            assert!(queued < 1_000_000, "the queue never filled");
        }
        notifier.stopping("draining", Duration::from_secs(1));
        notifier.status("not queued behind the others");
        let mut last = None;
        for _ in 0..queued + 2 {
            let Some(message) = text(&manager) else {
                break;
            };
            last = Some(message);
            notifier.flush();
        }
        assert_eq!(last.as_deref(), Some("STOPPING=1\nEXTEND_TIMEOUT_USEC=1000000\nSTATUS=draining\n"));
        Ok(())
    }

    #[test]
    fn who_has_resigned_says_what_is_kept_and_nothing_more() -> TestResult {
        let (_folder, manager, mut notifier) = manager()?;
        while notifier.kept.is_empty() {
            notifier.watchdog();
        }
        let (ours, theirs) = UnixDatagram::pair()?;
        notifier.resign(4321, theirs.into())?;
        let mut all = Vec::new();
        while let Some(one) = heard(&manager) {
            all.push(one);
            notifier.status("still here");
            notifier.watchdog();
        }
        let last = all.split_off(all.len() - 2);
        assert!(all.iter().all(|(text, _)| text == "WATCHDOG=1\n"));
        assert_eq!(last.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>(), ["MAINPID=4321\n", "BARRIER=1\n"]);
        // With the message goes the only other end.
        drop(last);
        assert!(ours.send(b"?").is_err());
        Ok(())
    }

    #[test]
    fn nobody_resigns_whom_the_manager_does_not_hear() -> TestResult {
        let (folder, manager, mut notifier) = manager()?;
        let path = folder.path().join("notify");
        std::fs::rename(&path, folder.path().join("away"))?;
        let resign = |notifier: &mut Notifier| notifier.resign(4321, UnixDatagram::unbound()?.into());
        assert_eq!(resign(&mut notifier).map_err(|error| error.kind()), Err(io::ErrorKind::NotFound));
        std::fs::rename(folder.path().join("away"), &path)?;
        notifier.watchdog();
        assert_eq!(text(&manager).as_deref(), Some("WATCHDOG=1\n"));
        resign(&mut notifier)?;
        assert_eq!(text(&manager).as_deref(), Some("MAINPID=4321\n"));
        Ok(())
    }

    #[test]
    fn a_descriptor_that_has_to_wait_comes_with_its_message() -> TestResult {
        let (_folder, manager, mut notifier) = manager()?;
        while notifier.kept.is_empty() {
            notifier.watchdog();
        }
        let (ours, theirs) = UnixDatagram::pair()?;
        ours.send(b"kept")?;
        notifier.store("thing", theirs.into());
        notifier.watchdog();
        let mut all = Vec::new();
        while let Some(one) = heard(&manager) {
            all.push(one);
            notifier.flush();
        }
        let with: Vec<_> = all.iter().filter(|(_, descriptor)| descriptor.is_some()).collect();
        let [(message, Some(descriptor))] = &with[..] else { return Err("not one descriptor".into()) };
        assert_eq!(message, "FDSTORE=1\nFDNAME=thing\nFDPOLL=0\n");
        let mut bytes = [0; 8];
        assert_eq!(UnixDatagram::from(descriptor.try_clone()?).recv(&mut bytes)?, 4);
        let before = all.iter().position(|(text, _)| text == "FDSTOREREMOVE=1\nFDNAME=thing\n");
        assert_eq!(before, all.iter().position(|(_, descriptor)| descriptor.is_some()).map(|at| at - 1));
        Ok(())
    }
}

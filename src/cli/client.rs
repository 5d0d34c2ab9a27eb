//! `doorward reload`, `doorward upgrade` and `doorward status`: questions to the running daemon.
//!
//! One question, one answer, one deadline for both. A daemon that is not there is
//! told apart from one that refuses, and is never started: its admin socket goes
//! with it.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use super::page::{page, span, what_is_left};
use super::{NOT_RUNNING, complain, say};
use crate::admin::protocol::{Answer, Command, UpgradeStatus};

/// Longest wait for a reload: names and certificates may take their time.
const RELOAD_PATIENCE: Duration = Duration::from_secs(90);

/// Longest wait for an upgrade: the process before may have to drain first.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(600);

/// How long an upgrade takes before its user is told what it waits for.
const TELL_AFTER: Duration = Duration::from_secs(1);

/// Longest wait for the state.
const STATUS_PATIENCE: Duration = Duration::from_secs(10);

/// Largest answer in bytes (16 MiB).
const ANSWER_LIMIT: usize = 16 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    /// Nobody listens on the admin socket.
    #[error("doorward is not running: nobody listens on {}", .0.display())]
    NotRunning(PathBuf),
    /// The socket's mode forbids it.
    #[error("permission denied on {}; root and members of the group doorward-admin may ask", .0.display())]
    Denied(PathBuf),
    /// The daemon did not answer in time.
    #[error("no answer from {} within {} s", .0.display(), .1.as_secs())]
    Late(PathBuf, Duration),
    /// The daemon is there, but its answer is none.
    #[error("no answer from {}: {}", .0.display(), .1)]
    Broken(PathBuf, String),
}

/// Makes the daemon read its configuration anew; returns when it serves or is refused.
///
/// # Errors
/// The daemon can't be asked; standard output can't be written.
pub fn reload(socket: &Path) -> anyhow::Result<ExitCode> {
    let answer = match ask(socket, Command::Reload, RELOAD_PATIENCE) {
        Ok((answer, _)) => answer,
        Err(error) => return failed(error),
    };
    if !answer.ok {
        complain(answer.error.as_deref().unwrap_or("refused without a reason"));
        return Ok(ExitCode::FAILURE);
    }
    match answer.generation {
        Some(generation) => say(&format!("reloaded; generation {generation} serves"))?,
        None => say("reloaded")?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Has a new process take over from the daemon; returns when it serves or could not. Says on
/// standard error what it waits for when that takes its time.
///
/// # Errors
/// The daemon can't be asked; standard output can't be written.
pub fn upgrade(socket: &Path) -> anyhow::Result<ExitCode> {
    let (send, receive) = mpsc::channel();
    let asked = socket.to_owned();
    thread::spawn(move || {
        // Somebody waits for it as long as this process lives.
        let _ = send.send(ask(&asked, Command::Upgrade, UPGRADE_PATIENCE));
    });
    let answer = receive.recv_timeout(TELL_AFTER).or_else(|_| {
        if let Some(waits) = waits(socket) {
            complain(&waits);
        }
        receive.recv()
    });
    let answer = match answer.context("the daemon was not asked")? {
        Ok((answer, _)) => answer,
        Err(error) => return failed(error),
    };
    match answer.upgraded.filter(|_| answer.ok) {
        Some(UpgradeStatus { pid, version, from_pid, from_version }) => {
            say(&format!("upgraded: process {pid} ({version}) has taken over from {from_pid} ({from_version})"))?;
            Ok(ExitCode::SUCCESS)
        }
        None => {
            complain(answer.error.as_deref().unwrap_or("refused without a reason"));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// What an upgrade waits for, where that is the process before.
fn waits(socket: &Path) -> Option<String> {
    let status = ask(socket, Command::Status, STATUS_PATIENCE).ok()?.0.status?;
    let pid = status.predecessor?;
    let most = status.predecessor_left.map_or_else(String::new, |left| format!(", for {} at most", span(left)));
    let what = what_is_left(&status);
    Some(format!("waiting until process {pid}, of the upgrade before, has finished {what}{most}"))
}

/// Prints the state of the daemon, as a page or, with `json`, as it came.
///
/// # Errors
/// The daemon can't be asked; standard output can't be written.
pub fn status(socket: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let (answer, raw) = match ask(socket, Command::Status, STATUS_PATIENCE) {
        Ok(answer) => answer,
        Err(error) => return failed(error),
    };
    let Some(status) = answer.status.filter(|_| answer.ok) else {
        complain(answer.error.as_deref().unwrap_or("the answer holds no status"));
        return Ok(ExitCode::FAILURE);
    };
    if json {
        let raw: Value = serde_json::from_str(&raw).context("the answer is not JSON")?;
        say(&raw.get("status").unwrap_or(&Value::Null).to_string())?;
    } else {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        say(&page(&status, now.as_secs()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn failed(error: NoAnswer) -> anyhow::Result<ExitCode> {
    match error {
        NoAnswer::NotRunning(_) => {
            complain(&error.to_string());
            Ok(ExitCode::from(NOT_RUNNING))
        }
        error => Err(error.into()),
    }
}

/// Asks the daemon and returns its answer, read and as it came.
fn ask(path: &Path, command: Command, patience: Duration) -> Result<(Answer, String), NoAnswer> {
    let named = |error: io::Error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => NoAnswer::NotRunning(path.into()),
        ErrorKind::PermissionDenied => NoAnswer::Denied(path.into()),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => NoAnswer::Late(path.into(), patience),
        _ => NoAnswer::Broken(path.into(), error.to_string()),
    };
    let raw = exchange(path, command, Instant::now() + patience).map_err(named)?;
    match serde_json::from_str(&raw) {
        Ok(answer) => Ok((answer, raw)),
        Err(error) => Err(NoAnswer::Broken(path.into(), format!("it is not JSON: {error}"))),
    }
}

/// One line each way. No error of kind `NotFound` or `ConnectionRefused` comes after connecting.
fn exchange(path: &Path, command: Command, deadline: Instant) -> io::Result<String> {
    let left = || match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(ErrorKind::TimedOut)),
        left => Ok(left),
    };
    // Connecting to a full backlog waits too, and the send timeout bounds it.
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(left()?))?;
    socket.connect(&SockAddr::unix(path)?)?;
    let mut stream = UnixStream::from(std::os::fd::OwnedFd::from(socket));
    let mut question = serde_json::to_vec(&command)?;
    question.push(b'\n');
    stream.write_all(&question)?;

    let mut answer = Vec::new();
    let mut chunk = [0; 8192];
    while !answer.contains(&b'\n') {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Err(io::Error::other("the daemon closed the connection")),
            Ok(count) => answer.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if answer.len() > ANSWER_LIMIT {
            return Err(io::Error::other("the answer is too long"));
        }
    }
    answer.truncate(memchr::memchr(b'\n', &answer).unwrap_or(answer.len()));
    String::from_utf8(answer).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_is_not_there_is_told_apart_from_one_that_says_nonsense() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let patience = Duration::from_secs(20);
        assert!(matches!(ask(&path, Command::Status, patience), Err(NoAnswer::NotRunning(_))));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let daemon = std::thread::spawn(move || {
            for answer in ["{}\n", "nonsense\n", ""] {
                let (mut client, _) = listener.accept().unwrap();
                let mut question = [0; 64];
                let length = client.read(&mut question).unwrap();
                assert_eq!(&question[..length], b"{\"command\":\"status\"}\n");
                client.write_all(answer.as_bytes()).unwrap();
            }
        });
        for _ in 0..3 {
            assert!(matches!(ask(&path, Command::Status, patience), Err(NoAnswer::Broken(..))));
        }
        daemon.join().unwrap();
        assert!(matches!(ask(&path, Command::Status, patience), Err(NoAnswer::NotRunning(_))));
    }

    #[test]
    fn a_silent_daemon_is_not_waited_for_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let asked = ask(&path, Command::Reload, Duration::from_millis(50));
        assert!(matches!(asked, Err(NoAnswer::Late(..))), "{asked:?}");
    }
}

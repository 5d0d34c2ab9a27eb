//! Where the log goes: journald, or stderr as text or JSON.
//!
//! journald when stderr is a stream to it already (`$JOURNAL_STREAM`, sd-daemon(3)
//! and systemd.exec(5)) or systemd started this very process; else text on a
//! terminal and JSON elsewhere.
//!
//! stderr is written to through a descriptor of its own and not through
//! `std::io::stderr`, whose lock a blocked writer would hold against everybody.

use super::entry::{self, Entry};
use super::events;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;
use tracing::subscriber::Subscriber;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt as _;

/// The form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// journald under systemd, text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// journald's native protocol; JSON on stderr when it can't be reached.
    Journald,
    /// Lines for a human on stderr.
    Text,
    /// One JSON object a line on stderr.
    Json,
}

/// journald's socket, the one that `tracing-journald` sends to.
const JOURNALD: &str = "/run/systemd/journal/socket";

/// What a process can know of where it runs.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// `$JOURNAL_STREAM`.
    journal_stream: Option<String>,
    /// Device and inode of stderr.
    stderr: Option<(u64, u64)>,
    terminal: bool,
    /// systemd started this process as a unit's main process.
    started: bool,
    /// journald's socket exists.
    journald: bool,
}

impl Surroundings {
    pub(super) fn look(stderr: BorrowedFd<'_>) -> Self {
        let variable = |name| std::env::var(name).ok();
        let me = std::process::id().to_string();
        let parent_is_init = rustix::process::getppid().is_some_and(|parent| parent.is_init());
        Self {
            journal_stream: variable("JOURNAL_STREAM"),
            stderr: rustix::fs::fstat(stderr).ok().map(|stat| (stat.st_dev, stat.st_ino)),
            terminal: stderr.is_terminal(),
            // The second is inherited by everything below a unit, a shell included.
            started: variable("SYSTEMD_EXEC_PID").is_some_and(|pid| pid == me)
                || (variable("INVOCATION_ID").is_some() && parent_is_init),
            journald: Path::new(JOURNALD).exists(),
        }
    }

    /// Whether stderr is the stream to journald that `$JOURNAL_STREAM` names.
    fn is_journal_stream(&self) -> bool {
        let named = self.journal_stream.as_deref().and_then(|value| {
            let (device, inode) = value.split_once(':')?;
            Some((device.parse().ok()?, inode.parse().ok()?))
        });
        named.is_some() && named == self.stderr
    }

    /// What `Auto` means here; any other format is itself.
    pub(super) fn resolve(&self, format: LogFormat) -> LogFormat {
        match format {
            LogFormat::Auto if self.is_journal_stream() => LogFormat::Journald,
            LogFormat::Auto if self.terminal => LogFormat::Text,
            LogFormat::Auto if self.started && self.journald => LogFormat::Journald,
            LogFormat::Auto => LogFormat::Json,
            chosen => chosen,
        }
    }
}

/// The end of the log. Made by the writer on its own thread, since already finding
/// out whether journald is there may block.
pub(super) struct Sink {
    subscriber: Box<dyn Subscriber>,
    /// Time of the entry that is being written.
    clock: Rc<Cell<SystemTime>>,
    /// Fields that this form leaves out.
    hidden: &'static [&'static str],
    journald: Option<Probe>,
}

impl Sink {
    /// Opens the sink for `format`, which [`Surroundings`] resolved. What `stderr`
    /// refuses is counted in `lost`.
    pub(super) fn open(format: LogFormat, stderr: File, lost: &Arc<AtomicU64>) -> Self {
        let clock = Rc::new(Cell::new(SystemTime::UNIX_EPOCH));
        let ansi = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
        let output = Rc::new(Output { file: stderr, lost: Arc::clone(lost) });
        match format {
            LogFormat::Journald => match journald() {
                Ok((subscriber, probe)) => Self { subscriber, clock, hidden: &[], journald: Some(probe) },
                Err(error) => {
                    let sink = Self::json(output, clock);
                    sink.clock.set(SystemTime::now());
                    entry::emit_fallback(&error, Some(events::LOG_FALLBACK), &*sink.subscriber);
                    sink
                }
            },
            LogFormat::Text => Self::text(output, clock, ansi),
            LogFormat::Json | LogFormat::Auto => Self::json(output, clock),
        }
    }

    fn text(output: Rc<Output>, clock: Rc<Cell<SystemTime>>, ansi: bool) -> Self {
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || Line(Rc::clone(&output)))
            .with_timer(EntryTime(Rc::clone(&clock)))
            .with_ansi(ansi)
            .with_target(false)
            .log_internal_errors(false);
        Self {
            subscriber: Box::new(tracing_subscriber::registry().with(layer)),
            clock,
            hidden: &["message_id"],
            journald: None,
        }
    }

    fn json(output: Rc<Output>, clock: Rc<Cell<SystemTime>>) -> Self {
        let layer = tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(move || Line(Rc::clone(&output)))
            .with_timer(EntryTime(Rc::clone(&clock)))
            .log_internal_errors(false);
        Self { subscriber: Box::new(tracing_subscriber::registry().with(layer)), clock, hidden: &[], journald: None }
    }

    /// Whether what is written now would arrive; only journald can be absent.
    pub(super) fn ready(&self) -> bool {
        self.journald.as_ref().is_none_or(Probe::ready)
    }

    /// Writes one entry; blocks as long as the reader does.
    pub(super) fn write(&self, entry: &Entry) {
        match entry {
            Entry::Event(event) => {
                self.clock.set(event.at);
                event.replay(&*self.subscriber, self.hidden);
            }
            Entry::Record(stamped) => {
                self.clock.set(stamped.0);
                entry::replay_record(&stamped.1, &*self.subscriber);
            }
            Entry::Wake => {}
        }
    }

    /// Says how many entries were lost.
    pub(super) fn write_dropped(&self, dropped: u64) {
        self.clock.set(SystemTime::now());
        let id = (!self.hidden.contains(&"message_id")).then_some(events::LOG_DROPPED);
        entry::emit_dropped(dropped, id, &*self.subscriber);
    }
}

fn journald() -> io::Result<(Box<dyn Subscriber>, Probe)> {
    let layer = tracing_journald::layer()?
        .with_field_prefix(None)
        .with_syslog_identifier(String::from("doorward"))
        // One step nearer to syslog's own names than the crate's: info is
        // "informational", and `journalctl -p notice` shows warnings and errors only.
        .with_priority_mappings(PriorityMappings {
            info: Priority::Informational,
            debug: Priority::Debug,
            ..PriorityMappings::new()
        });
    let probe = Probe { socket: UnixDatagram::unbound()?, path: Path::new(JOURNALD) };
    Ok((Box::new(tracing_subscriber::registry().with(layer)), probe))
}

/// Sees whether journald's socket is there.
///
/// `tracing-journald` sends each record to the socket's path, so it survives a
/// restart of journald; but it drops, without a word, what it can't send. The
/// writer asks this first and waits instead. (A frozen journald is there: sending
/// blocks, and nothing is lost.)
#[derive(Debug)]
struct Probe {
    socket: UnixDatagram,
    path: &'static Path,
}

impl Probe {
    /// Whether somebody is bound to the path. Never blocks.
    fn ready(&self) -> bool {
        self.socket.connect(self.path).is_ok()
    }
}

/// stderr.
#[derive(Debug)]
struct Output {
    file: File,
    lost: Arc<AtomicU64>,
}

/// One line on its way to stderr.
struct Line(Rc<Output>);

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    /// Whoever shares stderr may have made it non-blocking: waits in that case.
    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match (&self.0.file).write(bytes) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_writable(&self.0.file).map(|()| 0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
                other => other,
            };
            match written {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) => {
                    self.0.lost.fetch_add(1, Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn wait_writable(file: &File) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::new(file, PollFlags::OUT)];
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Shows when an entry was made, not when it was written.
struct EntryTime(Rc<Cell<SystemTime>>);

impl FormatTime for EntryTime {
    fn format_time(&self, out: &mut Writer<'_>) -> std::fmt::Result {
        write!(out, "{}", humantime::format_rfc3339_millis(self.0.get()))
    }
}

/// A second descriptor for stderr.
pub(super) fn stderr() -> io::Result<File> {
    Ok(File::from(io::stderr().as_fd().try_clone_to_owned()?))
}

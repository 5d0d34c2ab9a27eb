//! The end of the log: journald, or stderr as text or JSON.
//!
//! stderr is written to through a descriptor of its own and not through
//! `std::io::stderr`, whose lock a blocked writer would hold against everybody.

use super::entry::Entry;
use super::format::LogFormat;
use super::{events, replay};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::SystemTime;
use tracing::subscriber::Subscriber;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt as _;

/// journald's socket, the one that `tracing-journald` sends to.
pub(super) const JOURNALD: &str = "/run/systemd/journal/socket";

/// The field by which journald knows an event.
const MESSAGE_ID: &str = "message_id";

/// The end of the log. Made by the writer on its own thread, since already finding
/// out whether journald is there may block.
pub(super) struct Sink {
    subscriber: Box<dyn Subscriber>,
    page: Rc<Page>,
    /// Fields that this form leaves out.
    hidden: &'static [&'static str],
    /// Of a sink that can be away.
    probe: Option<Probe>,
}

impl Sink {
    /// Opens the sink for `format`; `Auto` should be resolved and means JSON here.
    ///
    /// When journald can't be reached the log goes to `stderr` as JSON, which it
    /// says in its first line.
    pub(super) fn open(format: LogFormat, stderr: File) -> Self {
        match format {
            LogFormat::Journald => Self::journald().unwrap_or_else(|error| {
                let sink = Self::json(stderr);
                sink.page.turn(SystemTime::now());
                let id = sink.shown(events::LOG_FALLBACK);
                replay::fallback(&error, id, &*sink.subscriber);
                sink
            }),
            LogFormat::Text => Self::text(stderr),
            LogFormat::Json | LogFormat::Auto => Self::json(stderr),
        }
    }

    fn text(stderr: File) -> Self {
        let page = Rc::<Page>::default();
        let wants_color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(wants_color && stderr.is_terminal())
            .with_target(false)
            .with_timer(EntryTime(Rc::clone(&page)))
            .with_writer(lines(stderr, &page))
            .log_internal_errors(false);
        Self {
            subscriber: Box::new(tracing_subscriber::registry().with(layer)),
            page,
            hidden: &[MESSAGE_ID],
            probe: None,
        }
    }

    fn json(stderr: File) -> Self {
        let page = Rc::<Page>::default();
        let layer = tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_timer(EntryTime(Rc::clone(&page)))
            .with_writer(lines(stderr, &page))
            .log_internal_errors(false);
        Self { subscriber: Box::new(tracing_subscriber::registry().with(layer)), page, hidden: &[], probe: None }
    }

    fn journald() -> io::Result<Self> {
        let layer = tracing_journald::layer()?
            .with_field_prefix(None)
            .with_syslog_identifier(String::from("doorward"))
            // syslog's own sense: "info" is informational (6), not a notice (5).
            .with_priority_mappings(PriorityMappings {
                info: Priority::Informational,
                debug: Priority::Debug,
                ..PriorityMappings::new()
            });
        Ok(Self {
            subscriber: Box::new(tracing_subscriber::registry().with(layer)),
            page: Rc::default(),
            hidden: &[],
            probe: Some(Probe { socket: UnixDatagram::unbound()?, path: PathBuf::from(JOURNALD) }),
        })
    }

    /// Whether what is written now would arrive; only journald can be away.
    pub(super) fn ready(&self) -> bool {
        self.probe.as_ref().is_none_or(Probe::ready)
    }

    /// Writes one entry; blocks as long as the reader does. False when stderr
    /// refused it.
    pub(super) fn write(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Event(event) => {
                self.page.turn(event.at);
                event.replay(&*self.subscriber, self.hidden);
            }
            Entry::Record(stamped) => {
                self.page.turn(stamped.0);
                replay::record(&stamped.1, &*self.subscriber);
            }
            Entry::Wake => return true,
        }
        !self.page.failed.get()
    }

    /// Writes how many entries were lost; like [`Sink::write`].
    pub(super) fn write_dropped(&self, dropped: u64) -> bool {
        self.page.turn(SystemTime::now());
        let id = self.shown(events::LOG_DROPPED);
        replay::dropped(dropped, id, &*self.subscriber);
        !self.page.failed.get()
    }

    /// A message id, in the forms that have one.
    fn shown(&self, id: &'static str) -> Option<&'static str> {
        (!self.hidden.contains(&MESSAGE_ID)).then_some(id)
    }
}

/// What the layers need to know of the entry that is being written, and what they
/// have to say about it.
#[derive(Debug)]
struct Page {
    /// When it was made.
    at: Cell<SystemTime>,
    /// stderr refused it.
    failed: Cell<bool>,
}

impl Default for Page {
    fn default() -> Self {
        Self { at: Cell::new(SystemTime::UNIX_EPOCH), failed: Cell::new(false) }
    }
}

impl Page {
    fn turn(&self, at: SystemTime) {
        self.at.set(at);
        self.failed.set(false);
    }
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
    path: PathBuf,
}

impl Probe {
    /// Whether somebody is bound to the path. Never blocks.
    fn ready(&self) -> bool {
        self.socket.connect(&self.path).is_ok()
    }
}

/// Makes a [`Line`] for each entry.
fn lines(stderr: File, page: &Rc<Page>) -> impl Fn() -> Line + use<> {
    let (stderr, page) = (Rc::new(stderr), Rc::clone(page));
    move || Line { stderr: Rc::clone(&stderr), page: Rc::clone(&page) }
}

/// One entry on its way to stderr.
struct Line {
    stderr: Rc<File>,
    page: Rc<Page>,
}

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    /// Whoever shares stderr may have made it non-blocking: waits in that case.
    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match (&*self.stderr).write(bytes) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_writable(&self.stderr).map(|()| 0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
                other => other,
            };
            match written {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) => {
                    self.page.failed.set(true);
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
struct EntryTime(Rc<Page>);

impl FormatTime for EntryTime {
    fn format_time(&self, out: &mut Writer<'_>) -> std::fmt::Result {
        write!(out, "{}", humantime::format_rfc3339_millis(self.0.at.get()))
    }
}

/// A second descriptor for stderr.
pub(super) fn stderr() -> io::Result<File> {
    Ok(File::from(io::stderr().as_fd().try_clone_to_owned()?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A JSON sink that counts as away while nobody is bound to `path`.
    pub(in crate::telemetry) fn absent(output: File, path: PathBuf) -> Sink {
        let socket = UnixDatagram::unbound().unwrap();
        Sink { probe: Some(Probe { socket, path }), ..Sink::json(output) }
    }

    #[test]
    fn a_non_blocking_output_gets_every_byte() {
        use std::io::{Read as _, Write as _};
        let (mut reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        let writing = std::thread::spawn(move || {
            let file = File::from(std::os::fd::OwnedFd::from(writer));
            let page = Rc::<Page>::default();
            let written = lines(file, &page)().write_all(&vec![b'x'; 4 << 20]);
            (written.is_ok(), page.failed.get())
        });
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read.len(), 4 << 20);
        assert_eq!(writing.join().unwrap(), (true, false));
    }
}

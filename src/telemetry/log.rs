//! The log: everybody queues, one thread writes.
//!
//! A log that blocks must not stop a request: journald can be frozen, a pipe can
//! be full, a disk can hang, and whoever writes then waits. So nobody but the
//! thread `doorward-log` ever writes. All others put an [`Entry`] into a queue of
//! [`QUEUE`] places and go on; when it is full the entry is dropped and counted, and
//! the count is logged once the writer gets through again.
//!
//! Two kinds of entry come in: events of the `tracing` macros, from anywhere, and
//! request [`Record`]s, which are pushed as they are, without being formatted.
//!
//! The writer waits for a first entry without a timer. Once it has one it looks for
//! more only every [`PAUSE`], so that a busy worker does not pay for a wake-up with
//! each record. The price is that much delay.
//!
//! What is absent: no lock that a worker could wait for, no span, no formatting of
//! records outside the writer, no wait for the writer that is not bounded.

use super::entry::{Captured, Entry};
use super::events;
use super::record::Record;
use super::sink::{self, LogFormat, Sink, Surroundings};
use super::writer::Writer;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::subscriber::Subscriber;
use tracing::{Event, Level, Metadata};

/// Entries that may wait for the writer.
pub const QUEUE: usize = 8_192;

/// How long the writer lets entries gather.
pub(super) const PAUSE: Duration = Duration::from_millis(5);

/// How long a dropped [`Guard`] waits for the writer.
const PATIENCE: Duration = Duration::from_secs(1);

/// A handle on the log. Cheap to clone; all clones are one log.
#[derive(Clone, Debug)]
pub struct Log {
    shared: Arc<Shared>,
}

/// What the queue's two ends share.
#[derive(Debug)]
pub(super) struct Shared {
    /// None for a log that keeps nothing.
    sender: Option<SyncSender<Entry>>,
    /// As [`rank`] counts.
    level: AtomicU8,
    /// Entries that were put into the queue.
    queued: AtomicU64,
    /// Entries that found the queue full, or that stderr refused.
    pub(super) dropped: Arc<AtomicU64>,
    /// Dropped entries that the log tells of.
    pub(super) reported: AtomicU64,
    /// Entries that were taken from the queue and written.
    pub(super) written: AtomicU64,
    /// The writer shall end once the queue is empty.
    pub(super) closing: AtomicBool,
}

impl Shared {
    fn push(&self, entry: Entry) {
        let Some(sender) = &self.sender else { return };
        // Counted first, so that `written` is never ahead.
        self.queued.fetch_add(1, Ordering::Relaxed);
        if sender.try_send(entry).is_err() {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Dropped entries that no record tells of.
    pub(super) fn unreported(&self) -> u64 {
        let dropped = self.dropped.load(Ordering::Relaxed);
        dropped.saturating_sub(self.reported.load(Ordering::Relaxed))
    }

    /// Queued entries that are not written yet.
    fn unwritten(&self) -> u64 {
        let queued = self.queued.load(Ordering::Relaxed);
        queued.saturating_sub(self.written.load(Ordering::Relaxed))
    }
}

/// 0 (off) to 5 (trace).
const fn rank(level: LevelFilter) -> u8 {
    match level.into_level() {
        None => 0,
        Some(Level::ERROR) => 1,
        Some(Level::WARN) => 2,
        Some(Level::INFO) => 3,
        Some(Level::DEBUG) => 4,
        Some(Level::TRACE) => 5,
    }
}

const fn filter(rank: u8) -> LevelFilter {
    match rank {
        0 => LevelFilter::OFF,
        1 => LevelFilter::ERROR,
        2 => LevelFilter::WARN,
        3 => LevelFilter::INFO,
        4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

impl Log {
    fn new(sender: Option<SyncSender<Entry>>, level: LevelFilter) -> Self {
        Self {
            shared: Arc::new(Shared {
                sender,
                level: AtomicU8::new(rank(level)),
                queued: AtomicU64::new(0),
                dropped: Arc::default(),
                reported: AtomicU64::new(0),
                written: AtomicU64::new(0),
                closing: AtomicBool::new(false),
            }),
        }
    }

    /// A log that keeps nothing, for what runs without a daemon around it.
    #[must_use]
    pub fn silent() -> Self {
        Self::new(None, LevelFilter::OFF)
    }

    /// Queues a request record, whatever the level: `ACCESS_LOG` decides which
    /// records there are. Never blocks; drops and counts when the queue is full.
    pub fn access(&self, record: Record) {
        let stamped = Box::new((SystemTime::now(), record));
        self.shared.push(Entry::Record(stamped));
    }

    /// From now on takes only events of `level` and above.
    pub fn set_level(&self, level: LevelFilter) {
        self.shared.level.store(rank(level), Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    /// Entries lost since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// A subscriber that puts its events into this log.
    fn collector(&self) -> Collector {
        Collector(Arc::clone(&self.shared))
    }
}

/// The subscriber behind the `tracing` macros. Copies events into the queue.
struct Collector(Arc<Shared>);

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let level = filter(self.0.level.load(Ordering::Relaxed));
        metadata.is_event() && *metadata.level() <= level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(filter(self.0.level.load(Ordering::Relaxed)))
    }

    fn event(&self, event: &Event<'_>) {
        self.0.push(Entry::Event(Captured::of(event)));
    }

    // Spans are never enabled; what asks for one all the same gets the same.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Keeps the writer. Dropping it flushes, waiting at most a second.
#[derive(Debug)]
pub struct Guard {
    shared: Arc<Shared>,
    /// Disconnects when the writer has ended. None once that was waited for.
    ended: Option<Receiver<()>>,
    writer: JoinHandle<()>,
}

impl Guard {
    /// Ends the log: writes what is queued, but waits no longer than `patience` for
    /// a writer that its reader blocks.
    ///
    /// Returns how many entries are lost that no record tells of: those still
    /// queued, and those dropped since the count was last logged; 0 when the log is
    /// whole. What is logged afterwards is dropped.
    pub fn finish(mut self, patience: Duration) -> u64 {
        self.close(patience)
    }

    fn close(&mut self, patience: Duration) -> u64 {
        let Some(ended) = self.ended.take() else {
            return 0;
        };
        self.shared.closing.store(true, Ordering::Release);
        if let Some(sender) = &self.shared.sender {
            // Refused when the queue is full; then the writer is awake anyway.
            let _ = sender.try_send(Entry::Wake);
        }
        self.writer.thread().unpark();
        // Either it ended or it is blocked: what it left undone is counted alike.
        let _ = ended.recv_timeout(patience);
        self.shared.unwritten() + self.shared.unreported()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.close(PATIENCE);
    }
}

/// Starts the log and makes it the one of the `tracing` macros, for the whole
/// process and its life; panics are logged too, instead of being printed. The level
/// can be changed later.
///
/// # Errors
/// When stderr is closed, no thread can be started, or the process has a `tracing`
/// subscriber already. A journald that can't be reached is no error: the log then
/// goes to stderr as JSON and says so.
pub fn start(format: LogFormat, level: LevelFilter) -> io::Result<(Log, Guard)> {
    let stderr = sink::stderr()?;
    let format = Surroundings::look(stderr.as_fd()).resolve(format);
    let (log, guard) = launch(format, level, stderr)?;
    tracing::subscriber::set_global_default(log.collector()).map_err(io::Error::other)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok((log, guard))
}

/// Starts a log that writes to `output`, or to journald.
fn launch(format: LogFormat, level: LevelFilter, output: File) -> io::Result<(Log, Guard)> {
    let (sender, queue) = sync_channel(QUEUE);
    let (alive, ended) = sync_channel(0);
    let log = Log::new(Some(sender), level);
    let shared = Arc::clone(&log.shared);
    let writer = thread::Builder::new().name(String::from("doorward-log")).spawn(move || {
        // Dropped at the end, however that comes about.
        let _alive: SyncSender<()> = alive;
        let writer =
            Writer { queue, sink: Sink::open(format, output, &shared.dropped), shared: &shared, reported: None };
        writer.run();
    })?;
    let guard = Guard { shared: Arc::clone(&log.shared), ended: Some(ended), writer };
    Ok((log, guard))
}

/// The panic hook: a panic is an event, and must not block on stderr either.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let payload = panic.payload();
    let cause = match payload.downcast_ref::<&str>() {
        Some(text) => text,
        None => payload.downcast_ref::<String>().map_or("?", String::as_str),
    };
    let location = panic.location().map(tracing::field::display);
    let thread = thread::current();
    let backtrace = std::backtrace::Backtrace::capture();
    let backtrace = match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => Some(tracing::field::display(backtrace)),
        _ => None,
    };
    tracing::error!(message_id = events::PANICKED, cause, location, thread = thread.name(), backtrace, "panicked");
}

//! The log: everybody queues, one thread writes.
//!
//! A log that blocks must not stop a request: journald can be frozen, a pipe can
//! be full, a disk can hang, and whoever writes then waits. So nobody but the
//! thread `doorward-log` ever writes. All others put an entry into a queue of
//! [`QUEUE`] places and go on; when it is full the entry is dropped and counted, and
//! the count is logged once the writer gets through again.
//!
//! Two kinds of entry come in: events of the `tracing` macros, from anywhere, and
//! request [`Record`]s, which are pushed as they are, without being formatted.
//!
//! The writer waits for a first entry without a timer. Once it has one it looks for
//! more only every 5 ms, so that a busy worker does not pay for a wake-up with each
//! record. The price is that much delay.
//!
//! What is absent: no lock that a worker could wait for, no span, no formatting of
//! records outside the writer, no wait for the writer that is not bounded.

use super::collector::{self, Collector};
use super::entry::Entry;
use super::format::{LogFormat, Surroundings};
use super::record::Record;
use super::sink::{self, Sink};
use super::writer::Writer;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};
use tracing::level_filters::LevelFilter;

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
    /// As [`collector::rank`] counts.
    pub(super) level: AtomicU8,
    /// Entries that were put into the queue.
    queued: AtomicU64,
    /// Entries that found the queue full, or that stderr refused.
    pub(super) dropped: AtomicU64,
    /// Dropped entries that the log tells of.
    pub(super) reported: AtomicU64,
    /// Entries that the writer is done with.
    pub(super) done: AtomicU64,
    /// The writer shall end once the queue is empty.
    pub(super) closing: AtomicBool,
}

impl Shared {
    pub(super) fn push(&self, entry: Entry) {
        let Some(sender) = &self.sender else { return };
        // Counted first, so that `done` is never ahead.
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
        queued.saturating_sub(self.done.load(Ordering::Relaxed))
    }
}

impl Log {
    fn new(sender: Option<SyncSender<Entry>>, level: LevelFilter) -> Self {
        Self {
            shared: Arc::new(Shared {
                sender,
                level: AtomicU8::new(collector::rank(level)),
                queued: AtomicU64::new(0),
                dropped: AtomicU64::new(0),
                reported: AtomicU64::new(0),
                done: AtomicU64::new(0),
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
        self.shared.level.store(collector::rank(level), Ordering::Relaxed);
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
    let (log, guard) = launch(level, move || Sink::open(format, stderr))?;
    tracing::subscriber::set_global_default(log.collector()).map_err(io::Error::other)?;
    std::panic::set_hook(Box::new(collector::log_panic));
    Ok((log, guard))
}

/// Starts a log that writes to what `open` returns on the writer's thread.
fn launch(level: LevelFilter, open: impl FnOnce() -> Sink + Send + 'static) -> io::Result<(Log, Guard)> {
    let (sender, queue) = sync_channel(QUEUE);
    let (alive, ended) = sync_channel(0);
    let log = Log::new(Some(sender), level);
    let shared = Arc::clone(&log.shared);
    let writer = thread::Builder::new().name(String::from("doorward-log")).spawn(move || {
        // Dropped at the end, however that comes about.
        let _alive: SyncSender<()> = alive;
        let writer = Writer { queue, sink: open(), shared: &shared, reported: None };
        writer.run();
    })?;
    let guard = Guard { shared: Arc::clone(&log.shared), ended: Some(ended), writer };
    Ok((log, guard))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{events, record};
    use super::*;
    use std::fs::File;
    use std::io::{BufRead as _, BufReader, Read as _};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::sync::mpsc;
    use tracing::{debug, info, subscriber, warn};

    /// Longer than any of this takes on a busy machine.
    const DEADLINE: Duration = Duration::from_secs(60);

    /// A log whose output can be read.
    fn piped(format: LogFormat) -> (Log, Guard, UnixStream) {
        let (reader, writer) = UnixStream::pair().unwrap();
        reader.set_read_timeout(Some(DEADLINE)).unwrap();
        let output = File::from(OwnedFd::from(writer));
        let open = move || Sink::open(format, output);
        let (log, guard) = launch(LevelFilter::INFO, open).unwrap();
        (log, guard, reader)
    }

    /// A log whose sink is away while nobody is bound to `path`.
    pub(in crate::telemetry) fn away(path: &Path) -> (Log, Guard, UnixStream) {
        let (reader, writer) = UnixStream::pair().unwrap();
        reader.set_read_timeout(Some(DEADLINE)).unwrap();
        let output = File::from(OwnedFd::from(writer));
        let path = path.to_owned();
        let open = move || sink::tests::absent(output, path);
        let (log, guard) = launch(LevelFilter::INFO, open).unwrap();
        (log, guard, reader)
    }

    /// Ends a log; returns how many entries were lost.
    pub(in crate::telemetry) fn settled(guard: Guard) -> u64 {
        in_time(move || guard.finish(DEADLINE))
    }

    /// What a log that `act` writes to looks like when it has ended.
    pub(in crate::telemetry) fn written(format: LogFormat, act: impl FnOnce(&Log)) -> String {
        let (log, guard, mut reader) = piped(format);
        subscriber::with_default(log.collector(), || act(&log));
        assert_eq!(guard.finish(DEADLINE), 0);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    }

    /// Runs `act` on another thread and fails when it does not end.
    fn in_time<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
        let (send, receive) = mpsc::channel();
        thread::spawn(move || send.send(act()));
        receive.recv_timeout(DEADLINE).expect("blocked")
    }

    /// Logs more than the queue and the socket hold, from another thread.
    fn flood(log: &Log) {
        let log = log.clone();
        in_time(move || {
            subscriber::with_default(log.collector(), || (0..20_000).for_each(|number| warn!(number, "event")));
            (0..1_000).for_each(|_| log.access(record::tests::sample()));
        });
    }

    #[test]
    fn a_blocked_reader_costs_records_and_nobody_waits() {
        let (log, guard, reader) = piped(LogFormat::Json);
        let mut reader = BufReader::new(reader).lines().map(Result::unwrap);
        flood(&log);
        assert!(log.dropped() > 0);

        // The reader comes back until it is told what was lost, and goes again.
        let mut lines = Vec::new();
        while lines.last().is_none_or(|line: &String| !line.contains("log records dropped")) {
            lines.extend(reader.next());
        }
        let before = log.dropped();
        flood(&log);
        let dropped = log.dropped();
        assert!(dropped > before);

        // What is lost now is told at the end, however soon after the last time.
        let reading = thread::spawn(move || reader.collect::<Vec<_>>());
        assert_eq!(guard.finish(DEADLINE), 0);
        lines.extend(reading.join().unwrap());
        let mut told = 0;
        let mut numbers = Vec::new();
        let mut records = 0;
        for line in &lines {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            match line["message"].as_str().unwrap() {
                "log records dropped" => {
                    assert_eq!(line["message_id"], events::LOG_DROPPED);
                    assert_eq!(line["level"], "WARN");
                    told += line["dropped"].as_u64().unwrap();
                }
                "event" => numbers.push(line["number"].as_u64().unwrap()),
                "request" => records += 1,
                other => panic!("{other}"),
            }
        }
        assert_eq!(told, dropped);
        assert_eq!(numbers.len() as u64 + records + dropped, 42_000);
        // In order, but for the start of the second flood; its first numbers may be lost.
        assert!(numbers.windows(2).filter(|pair| pair[0] >= pair[1]).count() <= 1);
        assert!(numbers.len() >= QUEUE);
    }

    #[test]
    fn the_end_does_not_wait_for_a_blocked_writer() {
        let (log, guard, _reader) = piped(LogFormat::Text);
        (0..QUEUE * 2).for_each(|_| log.access(record::tests::sample()));
        let dropped = log.dropped();
        let lost = in_time(move || guard.finish(Duration::ZERO));
        assert!(dropped > 0 && lost > dropped, "{dropped} dropped, {lost} lost");
        assert!(lost <= (QUEUE * 2) as u64);
    }

    #[test]
    fn a_reader_that_is_gone_is_counted() {
        let (log, guard, reader) = piped(LogFormat::Text);
        drop(reader);
        (0..10).for_each(|_| log.access(record::tests::sample()));
        assert_eq!(settled(guard), 10);
        assert_eq!(log.dropped(), 10);
    }

    #[test]
    fn what_comes_after_the_end_is_dropped() {
        let (log, guard, _reader) = piped(LogFormat::Text);
        assert_eq!(guard.finish(DEADLINE), 0);
        log.access(record::tests::sample());
        assert_eq!(log.dropped(), 1);
    }

    #[test]
    fn a_dropped_guard_flushes() {
        let (log, guard, mut reader) = piped(LogFormat::Text);
        log.access(record::tests::sample());
        drop(guard);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert!(text.contains("request"), "{text}");
    }

    #[test]
    fn the_level_changes_while_the_log_runs() {
        let text = written(LogFormat::Text, |log| {
            for (level, name) in [
                (LevelFilter::INFO, "first"),
                (LevelFilter::DEBUG, "second"),
                (LevelFilter::WARN, "third"),
                (LevelFilter::OFF, "fourth"),
            ] {
                log.set_level(level);
                debug!(name, "detail");
                info!(name, "news");
                warn!(name, "trouble");
            }
        });
        let told: Vec<_> =
            text.lines().map(|line| line.split_whitespace().skip(2).collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            told,
            [
                "news name=\"first\"",
                "trouble name=\"first\"",
                "detail name=\"second\"",
                "news name=\"second\"",
                "trouble name=\"second\"",
                "trouble name=\"third\"",
            ]
        );
    }

    #[test]
    fn a_silent_log_keeps_nothing() {
        let log = Log::silent();
        log.access(record::tests::sample());
        assert_eq!(log.dropped(), 0);
    }

    /// The log of a whole process; `start` can be called once only, so this test runs
    /// itself as a child.
    #[test]
    fn a_process_logs_events_of_all_threads_and_its_panics() {
        const CHILD: &str = "DOORWARD_TEST_CHILD";
        if std::env::var_os(CHILD).is_some() {
            let (log, guard) = start(LogFormat::Auto, LevelFilter::INFO).unwrap();
            assert!(start(LogFormat::Auto, LevelFilter::INFO).is_err());
            info!(number = 1, "from the main thread");
            log.access(record::tests::sample());
            let panicking = || panic!("out of {}", "order");
            assert!(thread::spawn(panicking).join().is_err());
            assert_eq!(guard.finish(DEADLINE), 0);
            return;
        }
        let name = thread::current().name().unwrap().to_owned();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name])
            .env(CHILD, "1")
            .env_remove("JOURNAL_STREAM")
            .env_remove("INVOCATION_ID")
            .env_remove("SYSTEMD_EXEC_PID")
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        let lines: Vec<serde_json::Value> = stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3, "{stderr}");
        assert_eq!(lines[0]["message"], "from the main thread");
        assert_eq!(lines[0]["number"], 1);
        assert_eq!(lines[1]["message"], "request");
        assert_eq!(lines[2]["message"], "panicked");
        assert_eq!(lines[2]["message_id"], events::PANICKED);
        assert_eq!(lines[2]["cause"], "out of order");
        assert!(lines[2]["location"].as_str().unwrap().contains("log.rs"));
    }
}

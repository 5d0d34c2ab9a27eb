//! The one thread that writes the log.
//!
//! It takes entries in passes. Before each it makes sure that the sink is there,
//! after each it reports what was dropped meanwhile, at most once a second. When a
//! pass ends with the queue empty it lets entries gather for [`PAUSE`], and when
//! none came it waits without a timer.

use super::entry::Entry;
use super::log::{PAUSE, Shared};
use super::sink::Sink;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Entries in a pass.
const PASS: usize = 64;

/// Between two reports of dropped entries.
const REPORT: Duration = Duration::from_secs(1);

/// How long a sink that is away is left alone: at first, and at most.
const AWAY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

pub(super) struct Writer<'a> {
    pub(super) queue: Receiver<Entry>,
    pub(super) sink: Sink,
    pub(super) shared: &'a Shared,
    /// When dropped entries were last reported.
    pub(super) reported: Option<Instant>,
}

impl Writer<'_> {
    /// Writes what comes, until it is told to close and has emptied the queue.
    pub(super) fn run(mut self) {
        while let Some(first) = self.first() {
            let mut next = Some(first);
            while let Some(entry) = next {
                if !self.sink_is_there() {
                    return;
                }
                self.pass(entry);
                // In this order: what was queued before closing is seen.
                let closing = self.shared.closing.load(Ordering::Acquire);
                next = self.queue.try_recv().ok();
                let last = closing && next.is_none();
                self.report(last);
                if last {
                    return;
                }
                if next.is_none() {
                    thread::park_timeout(PAUSE);
                    next = self.queue.try_recv().ok();
                }
            }
        }
    }

    /// Waits for an entry, or until a report is due. None when no entry can come.
    fn first(&self) -> Option<Entry> {
        if self.unreported() == 0 {
            return self.queue.recv().ok();
        }
        match self.queue.recv_timeout(self.report_due()) {
            Ok(entry) => Some(entry),
            Err(RecvTimeoutError::Timeout) => Some(Entry::Wake),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    fn pass(&self, first: Entry) {
        let more = self.queue.try_iter().take(PASS - 1);
        for entry in std::iter::once(first).chain(more) {
            if !self.sink.write(&entry) {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            }
            if !matches!(entry, Entry::Wake) {
                self.shared.done.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Waits for a sink that is away; false when it is still away at the end.
    fn sink_is_there(&self) -> bool {
        let (mut wait, longest) = AWAY;
        while !self.sink.ready() {
            if self.shared.closing.load(Ordering::Acquire) {
                return false;
            }
            thread::park_timeout(wait);
            wait = (wait * 2).min(longest);
        }
        true
    }

    /// Dropped entries that no record tells of.
    fn unreported(&self) -> u64 {
        self.shared.unreported()
    }

    /// How long until the next report may come.
    fn report_due(&self) -> Duration {
        let since = self.reported.map_or(REPORT, |then| then.elapsed());
        REPORT.saturating_sub(since)
    }

    fn report(&mut self, last: bool) {
        let dropped = self.unreported();
        if dropped == 0 || !(last || self.report_due().is_zero()) {
            return;
        }
        if self.sink.write_dropped(dropped) {
            self.shared.reported.fetch_add(dropped, Ordering::Relaxed);
        }
        self.reported = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::super::log::tests::{away, settled};
    use super::super::record;
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn entries_wait_for_a_sink_that_is_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (log, guard, reader) = away(&path);
        (0..3).for_each(|_| log.access(record::tests::sample()));
        let _socket = UnixDatagram::bind(&path).unwrap();
        let mut lines = BufReader::new(reader).lines();
        for _ in 0..3 {
            assert!(lines.next().unwrap().unwrap().contains("request"));
        }
        assert_eq!(settled(guard), 0);
    }

    #[test]
    fn the_end_does_not_wait_for_a_sink_that_is_away() {
        let folder = tempfile::tempdir().unwrap();
        let (log, guard, _reader) = away(&folder.path().join("socket"));
        (0..3).for_each(|_| log.access(record::tests::sample()));
        assert_eq!(settled(guard), 3);
    }
}

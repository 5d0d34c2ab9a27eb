//! The end of the log that the `tracing` macros and panics reach.

use super::entry::{Captured, Entry};
use super::events;
use super::log::Shared;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::subscriber::Subscriber;
use tracing::{Event, Level, Metadata};

/// The subscriber behind the `tracing` macros. Copies events into the queue.
pub(super) struct Collector(pub(super) Arc<Shared>);

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let level = filter(self.0.level.load(Ordering::Relaxed));
        // What the HTTP/2 library says is for its own debugging, a client can have it say as much
        // as it likes, and what is of interest is counted and put on record by us.
        metadata.is_event() && *metadata.level() <= level && !metadata.target().starts_with("h2::")
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

/// 0 (off) to 5 (trace).
pub(super) const fn rank(level: LevelFilter) -> u8 {
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

/// The panic hook: a panic is an event, and must not block on stderr either.
pub(super) fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
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

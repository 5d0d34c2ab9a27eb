//! What waits in the log's queue, and how it becomes an event again.
//!
//! An event borrows its values and can't cross threads; an [`Entry`] owns them.
//! Only the values are copied: names, level and code location are static. The
//! writer rebuilds the event from both, so that the layers behind it (journald,
//! text, JSON) see what they would have seen at the call site.

use super::record::Record;
use std::fmt::{self, Write as _};
use std::time::SystemTime;
use tracing::callsite::{Callsite, Identifier};
use tracing::field::{DisplayValue, Field, FieldSet, Value, Visit, display};
use tracing::metadata::Kind;
use tracing::subscriber::{Interest, Subscriber};
use tracing::{Event, Level, Metadata};

/// Bytes of text that one event may bring along; the rest is cut and marked.
pub(super) const TEXT_LIMIT: usize = 16 * 1024;

/// One line of the log, on its way to the writer.
#[derive(Debug)]
pub(super) enum Entry {
    /// An event of the `tracing` macros.
    Event(Captured),
    /// A request record.
    Record(Box<(SystemTime, Record)>),
    /// Nothing: makes the writer look at its orders.
    Wake,
}

/// An event with its values copied.
#[derive(Debug)]
pub(super) struct Captured {
    pub(super) at: SystemTime,
    metadata: &'static Metadata<'static>,
    /// With the place of each in the metadata's fields.
    values: Vec<(usize, Owned)>,
}

/// A copied value, of the kind that it was recorded as.
#[derive(Debug)]
enum Owned {
    Bool(bool),
    I64(i64),
    U64(u64),
    F64(f64),
    Str(Box<str>),
    /// Was formatted when it was copied: stays without quotes.
    Formatted(DisplayValue<Box<str>>),
}

impl Owned {
    fn value(&self) -> &dyn Value {
        match self {
            Self::Bool(value) => value,
            Self::I64(value) => value,
            Self::U64(value) => value,
            Self::F64(value) => value,
            Self::Str(value) => value,
            Self::Formatted(value) => value,
        }
    }
}

impl Captured {
    /// Copies an event's values, at most [`TEXT_LIMIT`] bytes of text.
    pub(super) fn of(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        let mut copy = Copy { values: Vec::with_capacity(metadata.fields().len()), room: TEXT_LIMIT };
        event.record(&mut copy);
        Self { at: SystemTime::now(), metadata, values: copy.values }
    }

    /// Emits the event to `subscriber`, without the fields that `hidden` names.
    pub(super) fn replay(&self, subscriber: &dyn Subscriber, hidden: &[&str]) {
        let mut values: Vec<Option<&dyn Value>> = Vec::new();
        values.resize(self.metadata.fields().len(), None);
        for (place, owned) in &self.values {
            if let Some(slot) = values.get_mut(*place) {
                *slot = Some(owned.value());
            }
        }
        for (slot, field) in values.iter_mut().zip(self.metadata.fields()) {
            if hidden.contains(&field.name()) {
                *slot = None;
            }
        }
        emit(subscriber, self.metadata, &values);
    }
}

/// Emits one event; `values` are those of the metadata's fields, in their order.
fn emit(subscriber: &dyn Subscriber, metadata: &'static Metadata<'static>, values: &[Option<&dyn Value>]) {
    let values = metadata.fields().value_set_all(values);
    subscriber.event(&Event::new_child_of(None, metadata, &values));
}

/// Copies values, as many bytes of text as there is room for.
struct Copy {
    values: Vec<(usize, Owned)>,
    room: usize,
}

impl Copy {
    fn push(&mut self, field: &Field, value: Owned) {
        self.values.push((field.index(), value));
    }
}

impl Visit for Copy {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Owned::Bool(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, Owned::I64(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, Owned::U64(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, Owned::F64(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let mut text = Bounded::within(&mut self.room);
        // Refuses only what exceeds the room, which it has marked by then.
        let _ = text.write_str(value);
        let text = text.finish();
        self.push(field, Owned::Str(text));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = Bounded::within(&mut self.room);
        // As above, or the value's own formatting gave up: what came so far stays.
        let _ = write!(text, "{value:?}");
        let text = text.finish();
        self.push(field, Owned::Formatted(display(text)));
    }
}

/// Text that ends, with a mark, where the room does.
struct Bounded<'a> {
    text: String,
    room: &'a mut usize,
}

impl<'a> Bounded<'a> {
    fn within(room: &'a mut usize) -> Self {
        Self { text: String::new(), room }
    }

    fn finish(self) -> Box<str> {
        self.text.into_boxed_str()
    }
}

impl fmt::Write for Bounded<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if let Some(left) = self.room.checked_sub(part.len()) {
            *self.room = left;
            self.text.push_str(part);
            return Ok(());
        }
        let fits = (0..=*self.room).rev().find_map(|end| part.get(..end));
        self.text.push_str(fits.unwrap_or_default());
        self.text.push('…');
        *self.room = 0;
        Err(fmt::Error)
    }
}

/// A place in the code that emits events of its own, past the macros.
struct Site(Metadata<'static>);

impl Callsite for Site {
    fn set_interest(&self, _: Interest) {}

    fn metadata(&self) -> &Metadata<'_> {
        &self.0
    }
}

macro_rules! site {
    ($name:ident, $level:expr, $target:literal, $fields:expr) => {
        static $name: Site = Site(Metadata::new(
            stringify!($name),
            $target,
            $level,
            Some(file!()),
            Some(line!()),
            Some(module_path!()),
            FieldSet::new($fields, Identifier(&$name)),
            Kind::EVENT,
        ));
    };
}

/// The fields of a request record, in the order that [`replay_record`] gives them.
const RECORD: &[&str] = &[
    "message",
    "client",
    "client_port",
    "listener",
    "method",
    "host",
    "path",
    "status",
    "version",
    "backend",
    "route",
    "attempts",
    "duration_us",
    "queue_us",
    "bytes_in",
    "bytes_out",
    "reason",
    "request_id",
];

site!(RECORD_NOTED, Level::INFO, "doorward::access", RECORD);
site!(RECORD_WARNED, Level::WARN, "doorward::access", RECORD);

/// Emits a request record; what it does not know is left out.
pub(super) fn replay_record(record: &Record, subscriber: &dyn Subscriber) {
    let site = match record.level() {
        Level::WARN => &RECORD_WARNED,
        _ => &RECORD_NOTED,
    };
    let message = record.kind.as_str();
    let client = display(record.client);
    let port = record.client.port();
    let listener = &*record.listener;
    let method = record.method.as_str();
    let host = record.host.as_str();
    let path = record.path.as_str();
    let version = display(Version(record.version));
    let backend = record.backend.as_deref().unwrap_or_default();
    let route = &*record.route;
    let reason = record.reason.map(|reason| reason.as_str());
    let request_id = record.request_id.as_str();
    let values: &[Option<&dyn Value>] = &[
        Some(&message),
        Some(&client),
        port.as_ref().map(|port| port as &dyn Value),
        some_text(&listener),
        some_text(&method),
        some_text(&host),
        some_text(&path),
        (record.status != 0).then_some(&record.status),
        (record.version != 0).then_some(&version),
        some_text(&backend),
        some_text(&route),
        (record.attempts != 0).then_some(&record.attempts),
        Some(&record.duration_us),
        Some(&record.queue_us),
        Some(&record.bytes_in),
        Some(&record.bytes_out),
        reason.as_ref().map(|reason| reason as &dyn Value),
        some_text(&request_id),
    ];
    emit(subscriber, &site.0, values);
}

fn some_text<'a>(text: &'a &'a str) -> Option<&'a dyn Value> {
    (!text.is_empty()).then_some(text)
}

/// `11` as `1.1`, `20` as `2`.
struct Version(u8);

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 10, self.0 % 10) {
            (major, 0) if major > 1 => write!(out, "{major}"),
            (major, minor) => write!(out, "{major}.{minor}"),
        }
    }
}

site!(DROPPED, Level::WARN, "doorward::telemetry", &["message", "message_id", "dropped"]);
site!(FALLBACK, Level::WARN, "doorward::telemetry", &["message", "message_id", "error"]);

/// Emits that `dropped` entries were lost since this was last said.
pub(super) fn emit_dropped(dropped: u64, id: Option<&str>, subscriber: &dyn Subscriber) {
    let id = id.as_ref().map(|id| id as &dyn Value);
    emit(subscriber, &DROPPED.0, &[Some(&"log records dropped"), id, Some(&dropped)]);
}

/// Emits that journald could not be reached and stderr is used.
pub(super) fn emit_fallback(error: &dyn fmt::Display, id: Option<&str>, subscriber: &dyn Subscriber) {
    let id = id.as_ref().map(|id| id as &dyn Value);
    let error = display(error);
    let message = "journald can't be reached, logging to stderr";
    emit(subscriber, &FALLBACK.0, &[Some(&message), id, Some(&error)]);
}

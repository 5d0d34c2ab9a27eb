//! Turns what waited in the queue into events for the layers behind it.
//!
//! The writer's subscriber is called directly. It is not the thread's default and
//! not a `Dispatch`: either would be asked, from every thread, which call sites are
//! enabled, and would slow all of them down. What has no call site of its own, the
//! request records and what the writer itself has to say, gets one here.

use super::record::Record;
use std::fmt;
use tracing::callsite::{Callsite, Identifier};
use tracing::field::{FieldSet, Value, display};
use tracing::metadata::Kind;
use tracing::subscriber::{Interest, Subscriber};
use tracing::{Event, Level, Metadata};

/// Emits one event; `values` are those of the metadata's fields, in their order.
pub(super) fn emit(subscriber: &dyn Subscriber, metadata: &'static Metadata<'static>, values: &[Option<&dyn Value>]) {
    let values = metadata.fields().value_set_all(values);
    subscriber.event(&Event::new_child_of(None, metadata, &values));
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

/// The fields of a request record, in the order that [`record`] gives them.
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
pub(super) fn record(record: &Record, subscriber: &dyn Subscriber) {
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
pub(super) fn dropped(dropped: u64, id: Option<&str>, subscriber: &dyn Subscriber) {
    let id = id.as_ref().map(|id| id as &dyn Value);
    emit(subscriber, &DROPPED.0, &[Some(&"log records dropped"), id, Some(&dropped)]);
}

/// Emits that journald could not be reached and stderr is used.
pub(super) fn fallback(error: &dyn fmt::Display, id: Option<&str>, subscriber: &dyn Subscriber) {
    let id = id.as_ref().map(|id| id as &dyn Value);
    let error = display(error);
    let message = "journald can't be reached, logging to stderr";
    emit(subscriber, &FALLBACK.0, &[Some(&message), id, Some(&error)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::entry::tests::only_line;
    use crate::telemetry::log::tests::written;
    use crate::telemetry::record::tests::sample;
    use crate::telemetry::{LogFormat, Peer, Reason};
    use serde_json::json;

    #[test]
    fn a_record_has_the_fields_that_it_knows() {
        let text = written(LogFormat::Json, |log| log.access(sample()));
        let mut line = only_line(&text);
        let time = line.as_object_mut().unwrap().remove("timestamp");
        assert!(time.is_some());
        assert_eq!(
            line,
            json!({
                "level": "INFO", "message": "request", "target": "doorward::access",
                "client": "192.0.2.7", "client_port": 5000, "listener": "http",
                "method": "GET", "host": "example.org", "path": "/a\\x1bb", "version": "1.1",
                "status": 200, "backend": "127.0.0.1:3000", "route": "default", "attempts": 1,
                "duration_us": 1250, "queue_us": 10, "bytes_in": 80, "bytes_out": 400,
                "request_id": "abc",
            })
        );
    }

    #[test]
    fn a_record_leaves_out_what_it_does_not_know() {
        let record = Record {
            kind: crate::telemetry::Kind::Connection,
            client: Peer::Unix,
            method: Default::default(),
            host: Default::default(),
            path: Default::default(),
            version: 0,
            status: 0,
            backend: None,
            attempts: 0,
            reason: Some(Reason::QueueTimeout),
            request_id: Default::default(),
            ..sample()
        };
        let text = written(LogFormat::Json, |log| log.access(record));
        let mut line = only_line(&text);
        line.as_object_mut().unwrap().remove("timestamp");
        assert_eq!(
            line,
            json!({
                "level": "WARN", "message": "connection", "target": "doorward::access",
                "client": "unix:", "listener": "http", "route": "default",
                "duration_us": 1250, "queue_us": 10, "bytes_in": 80, "bytes_out": 400,
                "reason": "queue_timeout",
            })
        );
    }

    #[test]
    fn versions_read_as_usual() {
        for (version, shown) in [(10, "1.0"), (11, "1.1"), (20, "2"), (30, "3")] {
            assert_eq!(Version(version).to_string(), shown);
        }
    }
}

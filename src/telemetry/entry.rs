//! What waits in the log's queue, and how it becomes an event again.
//!
//! An event borrows its values and can't cross threads; an [`Entry`] owns them.
//! Only the values are copied: names, level and code location are static. The
//! writer rebuilds the event from both, so that the layers behind it (journald,
//! text, JSON) see what they would have seen at the call site.

use super::record::Record;
use super::replay::emit;
use std::fmt::{self, Write as _};
use std::time::SystemTime;
use tracing::field::{DisplayValue, Field, Value, Visit, display};
use tracing::subscriber::Subscriber;
use tracing::{Event, Metadata};

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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::telemetry::log::tests::written;
    use crate::telemetry::{LogFormat, Peer};
    use serde_json::{Value as Json, json};
    use tracing::{error, info, warn};

    pub(in crate::telemetry) fn only_line(text: &str) -> Json {
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn an_event_arrives_as_it_was_given() {
        let failure = std::io::Error::other("no route");
        let text = written(LogFormat::Json, |_| {
            warn!(
                message_id = "0123",
                text = "a \"quoted\" word",
                shown = %Peer::Unix,
                debugged = ?[1, 2],
                error = &failure as &dyn std::error::Error,
                yes = true,
                below = -3,
                above = 3_u8,
                huge = u128::MAX,
                half = 0.5,
                absent = None::<u64>,
                "no {} there",
                "light"
            );
        });
        let line = only_line(&text);
        for (field, value) in [
            ("level", json!("WARN")),
            ("message", json!("no light there")),
            ("message_id", json!("0123")),
            ("text", json!("a \"quoted\" word")),
            ("shown", json!("unix:")),
            ("debugged", json!("[1, 2]")),
            ("error", json!("no route")),
            ("yes", json!(true)),
            ("below", json!(-3)),
            ("above", json!(3)),
            ("huge", json!(u128::MAX.to_string())),
            ("half", json!(0.5)),
            ("target", json!(module_path!())),
        ] {
            assert_eq!(line[field], value, "{field} in {text}");
        }
        assert!(line.get("absent").is_none(), "{text}");
        let time = line["timestamp"].as_str().unwrap();
        let age = humantime::parse_rfc3339(time).unwrap().elapsed().unwrap();
        assert!(age.as_secs() < 3600, "{time}");
    }

    #[test]
    fn text_shows_no_message_ids_and_quotes_only_text_from_outside() {
        let text = written(LogFormat::Text, |_| {
            info!(message_id = "0123", address = %"127.0.0.1:80", path = "/a b", "listening");
        });
        let (_, line) = text.trim_end().split_once(' ').unwrap();
        let expected = "INFO listening address=127.0.0.1:80 path=\"/a b\"";
        assert_eq!(line.trim_start(), expected);
    }

    #[test]
    fn many_fields_arrive() {
        let text = written(LogFormat::Json, |_| {
            error!(
                a1 = 1,
                a2 = 2,
                a3 = 3,
                a4 = 4,
                a5 = 5,
                a6 = 6,
                a7 = 7,
                a8 = 8,
                a9 = 9,
                a10 = 10,
                a11 = 11,
                a12 = 12,
                a13 = 13,
                a14 = 14,
                a15 = 15,
                a16 = 16,
                a17 = 17,
                a18 = 18,
                a19 = 19,
                a20 = 20,
                a21 = 21,
                a22 = 22,
                a23 = 23,
                a24 = 24,
                a25 = 25,
                a26 = 26,
                a27 = 27,
                a28 = 28,
                a29 = 29,
                a30 = 30,
                a31 = 31,
                "full"
            );
        });
        let line = only_line(&text);
        for number in 1..=31 {
            assert_eq!(line[format!("a{number}")], number);
        }
    }

    #[test]
    fn text_beyond_the_limit_is_cut_between_characters() {
        let long = "ü".repeat(TEXT_LIMIT);
        let text = written(LogFormat::Json, |_| info!(long, after = "x", number = 7, "m"));
        let line = only_line(&text);
        // The message is the first field, and one odd byte makes the cut fall within an ü.
        let kept = line["long"].as_str().unwrap();
        assert_eq!(kept.trim_end_matches('…').len(), TEXT_LIMIT - 2);
        assert!(kept.ends_with("ü…"));
        assert_eq!(line["after"], "…");
        assert_eq!(line["number"], 7);
    }
}

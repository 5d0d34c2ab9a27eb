//! Fields: from heads as we keep them to what the `h2` crate takes.
//!
//! A small head's bytes are copied once; each value is a part of the copy. Of a large one each
//! value is copied by itself: the crate remembers values that may come again (RFC 7541 §2.3.2) for
//! as long as the connection lasts, and each would keep all of its head. Names are in lower case
//! then (RFC 9113 §8.2.1), and fields that concern one connection are left out (§8.2.2).
//!
//! Small heads and values lie side by side in one allocation, which is given back with the last
//! of them.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, DATE, HeaderName, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::websocket::ACCEPT;
use crate::proxy::client::Own;
use crate::proxy::head::{Field, Fields, Framing, Known, ResponseHead};
use crate::routing::FieldEdits;

/// Bytes in which small heads lie side by side. One that waits for its client keeps all of them.
const SHARED: usize = 2048;

/// What a head has at most that is put there.
const SMALL: usize = SHARED / 4;

/// What a value of a large head has at most that is put there.
const SMALL_VALUE: usize = 64;

/// A copy of bytes, among others if they are `small` at most.
fn shared(bytes: &[u8], small: usize) -> Bytes {
    thread_local! {
        static ROOM: RefCell<BytesMut> = RefCell::new(BytesMut::with_capacity(SHARED));
    }
    if bytes.len() > small {
        return Bytes::copy_from_slice(bytes);
    }
    ROOM.with_borrow_mut(|room| {
        // Of the same size as before, or the very same where nothing waits any more.
        room.reserve(bytes.len());
        room.extend_from_slice(bytes);
        room.split().freeze()
    })
}

/// Appends the fields that go on, except those that `ours` says we state ourselves.
pub fn copy(map: &mut HeaderMap, fields: &Fields, mut ours: impl FnMut(&Field) -> bool) {
    let bytes = fields.bytes();
    let whole = (bytes.len() <= SMALL).then(|| shared(bytes, SMALL));
    for field in fields.iter().filter(|field| !field.hop && !ours(field)) {
        let range = field.value.range();
        let value = match &whole {
            Some(whole) => whole.get(range.clone()).map(|_| whole.slice(range)),
            None => Some(shared(field.value.of(bytes), SMALL_VALUE)),
        };
        if let Some(Ok(value)) = value.map(HeaderValue::from_maybe_shared) {
            match field.known {
                Known::Date => drop(map.append(DATE, value)),
                Known::ContentLength => drop(map.append(CONTENT_LENGTH, value)),
                _ => append(map, field.name.of(bytes), value),
            }
        }
    }
}

/// Appends a field. What is no name or value, which nothing that was parsed is, is left out.
pub fn append(map: &mut HeaderMap, name: &[u8], value: HeaderValue) {
    if let Ok(name) = HeaderName::from_bytes(name) {
        map.append(name, value);
    }
}

/// The same with the value as it stands.
pub fn state(map: &mut HeaderMap, name: &[u8], value: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(value) {
        append(map, name, value);
    }
}

/// A final response as it goes to a client. Fields behind the body go on if `trailers`, and so
/// does what announces them.
#[must_use]
pub fn response(head: &ResponseHead, edits: Option<&FieldEdits>, cookie: Option<&str>, trailers: bool) -> Response<()> {
    let bytes = head.fields.bytes();
    let length = match head.framing {
        Framing::Length(length) => Some(length),
        Framing::Empty => head.stated_length,
        Framing::Chunked | Framing::UntilClose => None,
    };
    let mut digits = itoa::Buffer::new();
    let digits = length.map(|length| digits.format(length).as_bytes());
    // Where the length stands as we would write it, that goes on.
    let (mut stated, mut dated) = (false, false);
    let mut map = HeaderMap::with_capacity(head.fields.iter().count() + 2);
    copy(&mut map, &head.fields, |field| match field.known {
        Known::ContentLength => {
            let goes_on = !stated && digits == Some(field.value.of(bytes));
            stated |= goes_on;
            !goes_on
        }
        Known::Trailer if !trailers => true,
        known => {
            let goes_on = !edits.is_some_and(|edits| edits.drops(field.name.of(bytes)));
            dated |= goes_on && known == Known::Date;
            !goes_on
        }
    });
    set(&mut map, edits);
    if !dated {
        map.entry(DATE).or_insert_with(date);
    }
    if let Some(length) = length.filter(|_| !stated) {
        map.insert(CONTENT_LENGTH, length.into());
    }
    if let Some(Ok(cookie)) = cookie.map(HeaderValue::from_str) {
        map.append(SET_COOKIE, cookie);
    }
    whole(head.status, map)
}

/// An interim response as it goes to a client; of the edits, those that keep fields from it.
#[must_use]
pub fn interim(head: &ResponseHead, edits: Option<&FieldEdits>) -> Response<()> {
    let bytes = head.fields.bytes();
    let mut map = HeaderMap::new();
    copy(&mut map, &head.fields, |field| {
        matches!(field.known, Known::ContentLength | Known::Trailer)
            || edits.is_some_and(|edits| edits.drops(field.name.of(bytes)))
    });
    whole(head.status, map)
}

/// What tells a client that the protocol it has asked for is spoken from now on, of the 101
/// that says so in HTTP/1.1 (RFC 8441 §5).
#[must_use]
pub fn switching(head: &ResponseHead, edits: Option<&FieldEdits>, cookie: Option<&str>) -> Response<()> {
    let bytes = head.fields.bytes();
    let mut map = HeaderMap::new();
    copy(&mut map, &head.fields, |field| {
        let name = field.name.of(bytes);
        matches!(field.known, Known::ContentLength | Known::Trailer)
            || name.eq_ignore_ascii_case(ACCEPT)
            || edits.is_some_and(|edits| edits.drops(name))
    });
    set(&mut map, edits);
    map.entry(DATE).or_insert_with(date);
    if let Some(Ok(cookie)) = cookie.map(HeaderValue::from_str) {
        map.append(SET_COOKIE, cookie);
    }
    whole(200, map)
}

/// The head of an answer of our own.
#[must_use]
pub fn own(own: &Own<'_>) -> Response<()> {
    let mut map = HeaderMap::with_capacity(own.fields.len() + 2);
    map.insert(DATE, date());
    for (name, value) in own.fields {
        state(&mut map, name.as_bytes(), value.as_bytes());
    }
    map.insert(CONTENT_LENGTH, own.body.len().into());
    whole(own.status, map)
}

/// Appends what a route sets.
pub fn set(map: &mut HeaderMap, edits: Option<&FieldEdits>) {
    for header in edits.map(FieldEdits::set).unwrap_or_default() {
        state(map, header.name.as_bytes(), header.value.as_bytes());
    }
    if let Some(header) = edits.and_then(FieldEdits::missing) {
        if !map.contains_key(header.name.as_str()) {
            state(map, header.name.as_bytes(), header.value.as_bytes());
        }
    }
}

/// Fields that stand as lines of HTTP/1, each with its end.
#[must_use]
pub fn of_lines(lines: &[u8]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some((name, value)) = memchr::memchr(b':', line).and_then(|colon| line.split_at_checked(colon)) {
            state(&mut map, name, value.get(1..).unwrap_or_default().trim_ascii());
        }
    }
    map
}

fn whole(status: u16, map: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    // Every status that is parsed is one, and so are ours.
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    *response.headers_mut() = map;
    response
}

/// The time (RFC 9110 §6.6.1), written out once a second.
fn date() -> HeaderValue {
    thread_local! {
        static WRITTEN: RefCell<(u64, HeaderValue)> = const { RefCell::new((u64::MAX, HeaderValue::from_static(""))) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    WRITTEN.with_borrow_mut(|(written, value)| {
        if *written != second {
            if let Ok(text) = HeaderValue::from_str(&httpdate::HttpDate::from(now).to_string()) {
                (*written, *value) = (second, text);
            }
        }
        value.clone()
    })
}

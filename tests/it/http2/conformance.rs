//! What RFC 9113 has an endpoint do, frame by frame. Each row names its section.

use std::time::Duration;

use crate::http2::frames::*;
use crate::traffic::door::Setup;

/// What becomes of what a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// An answer of this status on stream 1; the connection lives.
    Answer(u16),
    /// A reset of stream 1 by one of these codes; the connection lives.
    Reset(&'static [u32]),
    /// The connection ends by one of these codes.
    Ends(&'static [u32]),
    /// Nothing; the connection lives.
    Ignored,
}

use Outcome::{Answer, Ends, Ignored, Reset};

const PROTOCOL: Outcome = Ends(&[PROTOCOL_ERROR]);
const SIZE: Outcome = Ends(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR]);
/// A malformed request is an error of its stream, which may be taken for one of the
/// connection (§5.4.2), and be answered before (§8.1.1).
const MALFORMED: Outcome = Reset(&[PROTOCOL_ERROR]);

fn whole(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, block(fields))
}

fn with(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, get(fields))
}

fn open(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 1, post(fields))
}

/// A GET with other pseudo-header fields.
fn pseudo(changed: &[(&'static str, &'static str)]) -> Vec<u8> {
    let fields: Vec<_> = GET
        .iter()
        .map(|field| *changed.iter().find(|(name, _)| *name == field.0).unwrap_or(field))
        .filter(|(_, value)| *value != "-")
        .collect();
    whole(&fields)
}

fn rows() -> Vec<(&'static str, Vec<u8>, Outcome)> {
    let reset = |stream: u32| frame(RST_STREAM, 0, stream, CANCEL.to_be_bytes());
    let window = |stream: u32, by: u32| frame(WINDOW_UPDATE, 0, stream, by.to_be_bytes());
    let setting = |key: u16, value: u32| frame(SETTINGS, 0, 0, [&key.to_be_bytes()[..], &value.to_be_bytes()].concat());
    let data = |flags, payload: &[u8]| frame(DATA, flags, 1, payload);
    vec![
        // Frames (§4).
        ("§4.1 frames of unknown types are ignored", frame(0xfb, 0xff, 0, "what?"), Ignored),
        (
            "§4.1 flags without meaning are ignored",
            frame(HEADERS, 0xd5 & !PADDED & !PRIORITISED, 1, get(&[])),
            Answer(200),
        ),
        (
            "§4.1 the reserved bit is ignored",
            frame(HEADERS, END_STREAM | END_HEADERS, 0x8000_0001, get(&[])),
            Answer(200),
        ),
        ("§4.2 a frame larger than allowed", frame(0xfb, 0, 0, [0; 16_385]), Ends(&[FRAME_SIZE_ERROR])),
        ("§4.2 DATA larger than allowed", [open(&[]), data(0, &[0; 16_385])].concat(), Ends(&[FRAME_SIZE_ERROR])),
        (
            "§4.3 a header block that can't be decoded",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, [0xff, 0xff, 0xff, 0xff, 0xff]),
            Ends(&[COMPRESSION_ERROR, PROTOCOL_ERROR]),
        ),
        (
            "§4.3 an index that is in no table",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, [0x82, 0x86, 0xfe]),
            Ends(&[COMPRESSION_ERROR, PROTOCOL_ERROR]),
        ),
        (
            "§4.3 a table larger than allowed",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, [&[0x3f, 0xe2, 0x1f][..], &get(&[])].concat()),
            Ends(&[COMPRESSION_ERROR, PROTOCOL_ERROR]),
        ),
        (
            "§4.3 a header block in two frames",
            [frame(HEADERS, END_STREAM, 1, &get(&[])[..20]), frame(CONTINUATION, END_HEADERS, 1, &get(&[])[20..])]
                .concat(),
            Answer(200),
        ),
        (
            "§4.3 a header block interrupted by another frame",
            [frame(HEADERS, END_STREAM, 1, get(&[])), frame(PING, 0, 0, [0; 8])].concat(),
            PROTOCOL,
        ),
        (
            "§4.3 a header block interrupted by an unknown frame",
            [frame(HEADERS, END_STREAM, 1, get(&[])), frame(0xfb, 0, 0, "")].concat(),
            PROTOCOL,
        ),
        (
            "§4.3 a header block interrupted by another stream's",
            [frame(HEADERS, END_STREAM, 1, get(&[])), frame(CONTINUATION, END_HEADERS, 3, "")].concat(),
            PROTOCOL,
        ),
        // Streams (§5).
        ("§5.1 DATA on an idle stream", data(0, b"x"), PROTOCOL),
        ("§5.1 RST_STREAM on an idle stream", reset(1), PROTOCOL),
        ("§5.1 WINDOW_UPDATE on an idle stream", window(1, 1), PROTOCOL),
        ("§5.1 PRIORITY on an idle stream", frame(PRIORITY, 0, 1, [0, 0, 0, 0, 9]), Ignored),
        (
            "§5.1 DATA after the end of the stream",
            [open(&[]), data(END_STREAM, b""), data(0, b"x")].concat(),
            Ends(&[STREAM_CLOSED, PROTOCOL_ERROR]),
        ),
        ("§5.1 HEADERS after the end of the stream", [ask(1), ask(1)].concat(), Ends(&[STREAM_CLOSED, PROTOCOL_ERROR])),
        ("§5.1 WINDOW_UPDATE after the end of the stream", [ask(1), window(1, 9)].concat(), Answer(200)),
        ("§5.1.1 a stream of the server's", ask(2), PROTOCOL),
        ("§5.1.1 a stream below an earlier one", [ask(5), ask(3)].concat(), PROTOCOL),
        ("§5.1.1 HEADERS on no stream", ask(0), PROTOCOL),
        ("§5.3.1 a stream that depends on itself", frame(PRIORITY, 0, 1, [0, 0, 0, 1, 9]), Reset(&[PROTOCOL_ERROR])),
        (
            "§5.3.2 priorities are ignored",
            frame(
                HEADERS,
                END_STREAM | END_HEADERS | PRIORITISED,
                1,
                [&[0x80, 0, 0, 0, 255][..], &get(&[("priority", "u=0")])].concat(),
            ),
            Answer(200),
        ),
        // DATA (§6.1).
        ("§6.1 DATA on no stream", frame(DATA, 0, 0, "x"), PROTOCOL),
        (
            "§6.1 padding is dropped",
            [open(&[("content-length", "2")]), data(PADDED | END_STREAM, b"\x03ok\0\0\0")].concat(),
            Answer(200),
        ),
        ("§6.1 padding longer than the frame", [open(&[]), data(PADDED, b"\x06ok\0\0\0")].concat(), PROTOCOL),
        // HEADERS (§6.2).
        (
            "§6.2 padding is dropped",
            frame(HEADERS, PADDED | END_STREAM | END_HEADERS, 1, [&[2][..], &get(&[]), &[0, 0]].concat()),
            Answer(200),
        ),
        (
            "§6.2 padding longer than the frame",
            frame(HEADERS, PADDED | END_STREAM | END_HEADERS, 1, [&[255][..], &get(&[])].concat()),
            PROTOCOL,
        ),
        // PRIORITY (§6.3).
        ("§6.3 PRIORITY on no stream", frame(PRIORITY, 0, 0, [0, 0, 0, 0, 9]), PROTOCOL),
        ("§6.3 PRIORITY of another size", frame(PRIORITY, 0, 1, [0; 4]), SIZE),
        // RST_STREAM (§6.4).
        ("§6.4 RST_STREAM on no stream", reset(0), PROTOCOL),
        ("§6.4 RST_STREAM of another size", [open(&[]), frame(RST_STREAM, 0, 1, [0; 5])].concat(), SIZE),
        // SETTINGS (§6.5).
        ("§6.5 an acknowledgement with a payload", frame(SETTINGS, ACK, 0, [0; 6]), SIZE),
        ("§6.5 SETTINGS on a stream", frame(SETTINGS, 0, 1, ""), PROTOCOL),
        ("§6.5 SETTINGS of another size", frame(SETTINGS, 0, 0, [0; 5]), SIZE),
        ("§6.5.2 ENABLE_PUSH that is no switch", setting(2, 2), PROTOCOL),
        ("§6.5.2 a window that is too large", setting(4, 0x8000_0000), Ends(&[FLOW_CONTROL_ERROR, PROTOCOL_ERROR])),
        ("§6.5.2 a frame size that is too small", setting(5, 16_383), PROTOCOL),
        ("§6.5.2 a frame size that is too large", setting(5, 1 << 24), PROTOCOL),
        ("§6.5.2 unknown settings are ignored", setting(0xfafa, 7), Ignored),
        ("§6.5.3 settings nobody sent are acknowledged", frame(SETTINGS, ACK, 0, ""), PROTOCOL),
        // PUSH_PROMISE (§6.6, §8.4).
        (
            "§8.4 a promise of a client's",
            frame(PUSH_PROMISE, END_HEADERS, 1, [&[0, 0, 0, 2][..], &get(&[])].concat()),
            PROTOCOL,
        ),
        // PING (§6.7).
        ("§6.7 PING on a stream", frame(PING, 0, 1, [0; 8]), PROTOCOL),
        ("§6.7 PING of another size", frame(PING, 0, 0, [0; 6]), SIZE),
        // GOAWAY (§6.8).
        ("§6.8 GOAWAY on a stream", frame(GOAWAY, 0, 1, [0; 8]), PROTOCOL),
        // WINDOW_UPDATE (§6.9).
        ("§6.9 a window that opens by nothing", window(0, 0), PROTOCOL),
        ("§6.9 a stream's window that opens by nothing", [open(&[]), window(1, 0)].concat(), Ends(&[PROTOCOL_ERROR])),
        ("§6.9 WINDOW_UPDATE of another size", frame(WINDOW_UPDATE, 0, 0, [0; 3]), SIZE),
        ("§6.9.1 a window beyond its limit", window(0, 0x7fff_ffff), Ends(&[FLOW_CONTROL_ERROR])),
        (
            "§6.9.1 a stream's window beyond its limit",
            [open(&[]), window(1, 0x7fff_ffff)].concat(),
            Reset(&[FLOW_CONTROL_ERROR]),
        ),
        // CONTINUATION (§6.10).
        ("§6.10 CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, get(&[])), PROTOCOL),
        ("§6.10 CONTINUATION of a whole block", [ask(1), frame(CONTINUATION, END_HEADERS, 1, "")].concat(), PROTOCOL),
        // Requests (§8.1, §8.2).
        (
            "§8.1 a second head that does not end the stream",
            [open(&[]), frame(HEADERS, END_HEADERS, 1, block(&[("x", "y")]))].concat(),
            MALFORMED,
        ),
        (
            "§8.1.1 a body longer than its length",
            [open(&[("content-length", "1")]), data(END_STREAM, b"ok")].concat(),
            MALFORMED,
        ),
        (
            "§8.1.1 a body shorter than its length",
            [open(&[("content-length", "3")]), data(END_STREAM, b"ok")].concat(),
            MALFORMED,
        ),
        ("§8.1.1 no body in spite of a length", with(&[("content-length", "3")]), MALFORMED),
        ("§8.1.1 a length that is none", with(&[("content-length", "+0")]), MALFORMED),
        ("§8.1.1 two lengths", with(&[("content-length", "0"), ("content-length", "1")]), MALFORMED),
        ("§8.2.1 a name in capitals", with(&[("X-Big", "1")]), PROTOCOL),
        ("§8.2.1 a name with a space", with(&[("x y", "1")]), PROTOCOL),
        ("§8.2.1 a name with a colon", with(&[("x:y", "1")]), PROTOCOL),
        ("§8.2.1 no name", with(&[("", "1")]), PROTOCOL),
        ("§8.2.1 a line feed in a value", with(&[("x", "1\ny: 2")]), PROTOCOL),
        ("§8.2.1 a carriage return in a value", with(&[("x", "1\ry")]), PROTOCOL),
        ("§8.2.1 a NUL in a value", with(&[("x", "1\0")]), PROTOCOL),
        ("§8.2.1 a space before a value", with(&[("x", " 1")]), Answer(400)),
        ("§8.2.1 a tab behind a value", with(&[("x", "1\t")]), Answer(400)),
        ("§8.2.2 connection", with(&[("connection", "close")]), MALFORMED),
        ("§8.2.2 proxy-connection", with(&[("proxy-connection", "close")]), MALFORMED),
        ("§8.2.2 keep-alive", with(&[("keep-alive", "1")]), MALFORMED),
        ("§8.2.2 transfer-encoding", open(&[("transfer-encoding", "chunked")]), MALFORMED),
        ("§8.2.2 upgrade", with(&[("upgrade", "websocket")]), MALFORMED),
        ("§8.2.2 te with anything but trailers", with(&[("te", "gzip")]), MALFORMED),
        ("§8.2.2 te with trailers", with(&[("te", "trailers")]), Answer(200)),
        // Pseudo-header fields (§8.3).
        (
            "§8.3 one behind a field",
            whole(&[(":method", "GET"), (":scheme", "http"), ("x", "y"), (":authority", "a"), (":path", "/")]),
            MALFORMED,
        ),
        ("§8.3 an unknown one", pseudo_and((":other", "x")), PROTOCOL),
        ("§8.3 one of an answer's", pseudo_and((":status", "200")), MALFORMED),
        ("§8.3 one twice", pseudo_and((":path", "/b")), MALFORMED),
        ("§8.3.1 no method", pseudo(&[(":method", "-")]), MALFORMED),
        ("§8.3.1 no scheme", pseudo(&[(":scheme", "-")]), MALFORMED),
        ("§8.3.1 no path", pseudo(&[(":path", "-")]), MALFORMED),
        ("§8.3.1 an empty path", pseudo(&[(":path", "")]), MALFORMED),
        ("§8.3.1 a path that begins with no slash", pseudo(&[(":path", "a")]), MALFORMED),
        ("§8.3.1 a path that is a query alone", pseudo(&[(":path", "?a")]), Answer(400)),
        ("§8.3.1 a space in a path", pseudo(&[(":path", "/a b")]), MALFORMED),
        ("§8.3.1 a path in absolute form", pseudo(&[(":path", "http://a/")]), MALFORMED),
        ("§8.3.1 a path beyond US-ASCII", pseudo(&[(":path", "/\u{e4}")]), Answer(400)),
        ("§8.3.1 an asterisk", pseudo(&[(":path", "*")]), Answer(400)),
        ("§8.3.1 an asterisk of OPTIONS", pseudo(&[(":path", "*"), (":method", "OPTIONS")]), Answer(200)),
        ("§8.3.1 a scheme that is not served", pseudo(&[(":scheme", "ftp")]), Answer(400)),
        ("§8.3.1 user information", pseudo(&[(":authority", "me@a")]), Answer(400)),
        ("§8.3.1 an authority that is none", pseudo(&[(":authority", "a/b")]), MALFORMED),
        ("§8.3.1 an empty authority", pseudo(&[(":authority", "")]), MALFORMED),
        ("§8.3.1 neither authority nor host", pseudo(&[(":authority", "-")]), Answer(400)),
        (
            "§8.3.1 host in place of the authority",
            whole(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "a")]),
            Answer(200),
        ),
        (
            "§8.3.1 two hosts in place of the authority",
            whole(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "a"), ("host", "a")]),
            Answer(400),
        ),
        ("§8.3.1 host as the authority", with(&[("host", "A")]), Answer(200)),
        ("§8.3.1 another host than the authority", with(&[("host", "b")]), Answer(400)),
        ("§8.3.1 a method that is none", pseudo(&[(":method", "G T")]), PROTOCOL),
        ("§8.5 CONNECT", whole(&[(":method", "CONNECT"), (":authority", "a:443")]), Answer(405)),
        (
            "§8.5 CONNECT with a path",
            whole(&[(":method", "CONNECT"), (":authority", "a:443"), (":scheme", "http"), (":path", "/")]),
            MALFORMED,
        ),
        ("§8.6 an offer of another protocol is ignored", with(&[("http2-settings", "AAMAAABkAAQAAP__")]), Answer(200)),
    ]
}

/// The pseudo-header fields of a GET and one more.
fn pseudo_and(field: (&str, &str)) -> Vec<u8> {
    whole(&[GET, &[field]].concat())
}

#[test]
fn every_rule_is_kept() {
    let daemon = Setup::new().start();
    let mut broken = Vec::new();
    for (name, bytes, wanted) in rows() {
        let mut client = Frames::connect(daemon.address());
        client.peer.patience(Duration::from_secs(5));
        client.send(bytes);
        let got = observe(&mut client, wanted);
        if let Err(got) = got {
            broken.push(format!("{name}: wanted {wanted:?}, got {got}"));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    // Requests that the library has refused are on record like others.
    let refused = |line: &serde_json::Value| line["reason"] == "bad_request" && line["target"] == "doorward::access";
    let malformed = rows().iter().filter(|(_, _, outcome)| matches!(outcome, &MALFORMED | Answer(400))).count();
    daemon.wait("as many records", |_| daemon.lines(refused).len() >= malformed);
}

fn observe(client: &mut Frames, wanted: Outcome) -> Result<(), String> {
    if let Ends(codes) = wanted {
        let frames: Vec<_> = std::iter::from_fn(|| client.try_read()).collect();
        let code = frames.last().filter(|frame| frame.kind == GOAWAY).map(|frame| frame.number(4));
        return if code.is_some_and(|code| codes.contains(&code)) { Ok(()) } else { Err(format!("{frames:?}")) };
    }
    if wanted == Ignored {
        client.send(ask(1));
    }
    let mut seen = Vec::new();
    loop {
        let Some(frame) = client.try_read() else { return Err(format!("the end or nothing after {seen:?}")) };
        match wanted {
            Answer(status) if frame.kind == HEADERS && frame.stream == 1 => {
                return if frame.status() == status { alive(client) } else { Err(format!("{}", frame.status())) };
            }
            Reset(codes) if frame.kind == RST_STREAM && frame.stream == 1 => {
                let code = frame.number(0);
                return if codes.contains(&code) { alive(client) } else { Err(format!("code {code}")) };
            }
            Ignored if frame.kind == HEADERS && frame.stream == 1 => return alive(client),
            _ if frame.kind == GOAWAY => return Err(format!("{frame:?} after {seen:?}")),
            _ => seen.push(frame),
        }
    }
}

fn alive(client: &mut Frames) -> Result<(), String> {
    client.send(frame(PING, 0, 0, b"are-you?"));
    loop {
        match client.try_read() {
            None => return Err("right, and then the end".to_owned()),
            Some(frame) if frame.kind == PING => return Ok(()),
            Some(frame) if frame.kind == GOAWAY => return Err(format!("right, and then {frame:?}")),
            Some(_) => {}
        }
    }
}

#[test]
fn what_follows_the_preface_must_be_settings() {
    let daemon = Setup::new().start();
    for first in [frame(PING, 0, 0, [0; 8]), ask(1)] {
        let mut client = Frames::raw(daemon.address());
        client.send([PREFACE, &first].concat());
        client.until_gone();
    }
    let mut client = Frames::raw(daemon.address());
    client.send([&PREFACE[..18], b"XX\r\n\r\n", &frame(SETTINGS, 0, 0, "")].concat());
    client.until_gone();
}

#[test]
fn the_preface_may_come_in_any_number_of_pieces() {
    let daemon = Setup::new().start();
    let mut client = Frames::raw(daemon.address());
    for byte in [PREFACE, &frame(SETTINGS, 0, 0, ""), &ask(1)].concat() {
        client.send([byte]);
    }
    assert_eq!(client.head(1).status(), 200);
    client.end(1);
}

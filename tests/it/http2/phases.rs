//! Backends that reset a stream, or change their settings, in each phase of it.

use super::backend::{accept, request};
use super::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GET, HEADERS, NO_ERROR, PUSH_PROMISE, REFUSED_STREAM,
    SETTINGS, WINDOW_UPDATE, block, frame,
};
use super::misbehaving::{before, expect_ok, get, head, ok, post, reset};
use crate::backend::Backend;

const HEADER_TABLE_SIZE: u16 = 1;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;

/// Changes settings, and waits until that counts.
#[track_caller]
fn change(connection: &mut Frames, settings: &[(u16, u32)]) {
    let settings: Vec<u8> =
        settings.iter().flat_map(|(key, value)| [&key.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    connection.send(frame(SETTINGS, 0, 0, settings));
    connection.await_frame("their acknowledgement", |frame| frame.kind == SETTINGS && frame.flags == ACK);
}

/// RFC 9113 §7: every code there is, and one that there is not. But for REFUSED_STREAM none says
/// that nothing was done.
#[test]
fn a_reset_is_what_its_phase_makes_it_whatever_its_code() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut first = post(&daemon);
    let mut connection = accept(&backend, &[]);
    let stream = request(&mut connection);
    connection.send(ok(stream));
    expect_ok(&mut first);
    for code in (0..=13).chain([99]).filter(|code| *code != REFUSED_STREAM) {
        // What may have been acted upon is not sent again.
        let mut client = post(&daemon);
        let stream = request(&mut connection);
        connection.send(reset(stream, code));
        client.response().assert_refusal(502, "backend_reset");
        // An answer under way is cut, and seen to be.
        let mut client = get(&daemon);
        let stream = request(&mut connection);
        connection.send([head(stream, &[]), frame(DATA, 0, stream, "part")].concat());
        client.read_to(b"part");
        connection.send(reset(stream, code));
        client.expect_reset();
        // One that is whole is whole.
        let mut client = get(&daemon);
        let stream = request(&mut connection);
        connection.send([head(stream, &[]), frame(DATA, END_STREAM, stream, "all"), reset(stream, code)].concat());
        assert_eq!(client.response().body, b"all", "{code}");
    }
    backend.expect_none();
}

/// RFC 9113 §8.1: so an early answer says that no more of the request is wanted, also one with a
/// body, and with trailers.
#[test]
fn an_early_answer_with_a_body_is_whole_though_the_rest_is_not_wanted() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let trailers = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, block(&[("x-sum", "7")]));
    let mut connection = None;
    for trailed in [false, true] {
        let mut client = daemon.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nContent-Length: 9\r\n\r\npart");
        let connection = connection.get_or_insert_with(|| accept(&backend, &[]));
        let stream = request(connection);
        let end = if trailed { trailers(stream) } else { frame(DATA, END_STREAM, stream, "") };
        let answer = [head(stream, &[]), frame(DATA, 0, stream, "no more"), end, reset(stream, NO_ERROR)];
        connection.send(answer.concat());
        client.read_to(if trailed { b"no more\r\n0\r\nx-sum: 7\r\n\r\n" } else { b"no more\r\n0\r\n\r\n" });
    }
    backend.expect_none();
}

/// What no answer has (RFC 9113 §4 to §8) is the backend's fault, and nobody waits for more of it.
#[test]
fn what_breaks_an_answer_ends_it_in_each_phase() {
    let interim = |stream, flags| frame(HEADERS, flags, stream, block(&[(":status", "103")]));
    let promise = |stream| frame(PUSH_PROMISE, END_HEADERS, stream, [&[0, 0, 0, 2][..], &block(GET)].concat());
    type Breach<'a> = (&'a str, &'a dyn Fn(u32) -> Vec<u8>);
    let ahead: &[Breach<'_>] = &[
        ("an interim response that ends the stream", &|stream| interim(stream, END_HEADERS | END_STREAM)),
        ("a body without a head", &|stream| frame(DATA, END_STREAM, stream, "body")),
    ];
    let ever: &[Breach<'_>] = &[
        ("a promise", &|stream| promise(stream)),
        ("a head of nobody's", &|_| ok(2)),
        ("a head of a stream to come", &|stream| ok(stream + 2)),
        ("fields that can't be decoded", &|stream| frame(HEADERS, END_HEADERS, stream, [0xff; 5])),
        ("a frame larger than allowed", &|stream| frame(DATA, 0, stream, [b'x'; 16_385])),
        ("fields that go on with nothing", &|stream| frame(CONTINUATION, END_HEADERS, stream, block(&[("x", "y")]))),
    ];
    let within: &[Breach<'_>] = &[
        ("a second head", &|stream| head(stream, &[])),
        ("an interim response behind the head", &|stream| interim(stream, END_HEADERS)),
    ];
    for (name, breach) in ahead.iter().chain(ever) {
        let backend = Backend::new();
        let daemon = before(&backend).set("MAX_RETRIES", 0).start();
        let mut client = get(&daemon);
        let mut connection = accept(&backend, &[]);
        let stream = request(&mut connection);
        connection.send(breach(stream));
        client.read_to(b"HTTP/1.1 502 ");
        assert_eq!(daemon.record_of("backend_malformed")["status"], 502, "{name}");
    }
    for (name, breach) in within.iter().chain(ever) {
        let backend = Backend::new();
        let daemon = before(&backend).set("MAX_RETRIES", 0).start();
        let mut client = get(&daemon);
        let mut connection = accept(&backend, &[]);
        let stream = request(&mut connection);
        connection.send([head(stream, &[]), frame(DATA, 0, stream, "part")].concat());
        client.read_to(b"part");
        connection.send(breach(stream));
        client.expect_reset();
        assert_eq!(daemon.record_of("backend_malformed")["status"], 200, "{name}");
    }
}

/// The library keeps each interim response until it is taken, so they are bounded beside it.
#[test]
fn interim_responses_without_end_end_the_connection() {
    let backend = Backend::new();
    let daemon = before(&backend).set("MAX_RETRIES", 0).start();
    let mut client = get(&daemon);
    let mut connection = accept(&backend, &[]);
    let stream = request(&mut connection);
    let interim = frame(HEADERS, END_HEADERS, stream, block(&[(":status", "103")]));
    for _ in 0..100 {
        if connection.peer.try_send(interim.repeat(100)).is_err() {
            break;
        }
    }
    connection.peer.expect_gone();
    client.read_to(b"HTTP/1.1 502 ");
    // It is that connection's fault alone.
    let mut client = get(&daemon);
    let mut connection = accept(&backend, &[]);
    let stream = request(&mut connection);
    connection.send(ok(stream));
    expect_ok(&mut client);
}

/// RFC 9113 §6.9.2: a window may become less than nothing, and has to be made up for first.
#[test]
fn settings_that_change_within_a_body_count_from_then_on() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = daemon.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 40004\r\n\r\nbody");
    let mut connection = accept(&backend, &[(INITIAL_WINDOW_SIZE, 4)]);
    let stream = request(&mut connection);
    assert_eq!(connection.await_frame("what fits", |frame| frame.kind == DATA).payload, b"body");
    change(&mut connection, &[(INITIAL_WINDOW_SIZE, 0), (HEADER_TABLE_SIZE, 0)]);
    client.send("more".repeat(10_000));
    connection.send(frame(WINDOW_UPDATE, 0, stream, 4_u32.to_be_bytes()));
    connection.expect_alive();
    connection.send(frame(WINDOW_UPDATE, 0, stream, 1_u32.to_be_bytes()));
    assert_eq!(connection.await_frame("one byte", |frame| frame.kind == DATA).payload, b"m");
    change(&mut connection, &[(MAX_FRAME_SIZE, 65_536), (INITIAL_WINDOW_SIZE, 60_000)]);
    let mut rest = 0;
    while rest < 39_999 {
        rest += connection.await_frame("the rest", |frame| frame.kind == DATA).payload.len();
    }
    assert_eq!(rest, 39_999);
    connection.send(ok(stream));
    expect_ok(&mut client);
    // And the table of nothing for the next head.
    let mut client = get(&daemon);
    let stream = request(&mut connection);
    connection.send(ok(stream));
    expect_ok(&mut client);
    backend.expect_none();
}

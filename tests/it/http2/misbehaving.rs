//! Backends that break off, refuse, flood, stall, or speak something else than HTTP/2.

use std::time::Duration;

use super::backend::{accept, request};
use super::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, NO_ERROR, PING, PROTOCOL_ERROR,
    REFUSED_STREAM, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame,
};
use crate::backend::Backend;
use crate::peer::Peer;
use crate::traffic::door::{Daemon, Setup};

/// The number of streams that may be open at once.
const MAX_CONCURRENT_STREAMS: u16 = 3;
/// How large a request's head may be.
const MAX_HEADER_LIST_SIZE: u16 = 6;
/// What a stream may be sent at first.
const INITIAL_WINDOW_SIZE: u16 = 4;

/// How long it may take until something is found out by waiting.
const SHORT: &str = "1s";

pub fn before(backend: &Backend) -> Setup {
    Setup::new()
        .set("BACKEND_ADDRESS", &backend.address)
        .set("BACKEND_PROTOCOL", "h2")
        .set("BACKEND_IDLE_TIMEOUT", "1h")
        .set("WORKERS", 1)
        .set("RETRY_BACKOFF", "1ms")
}

pub fn get(daemon: &Daemon) -> Peer {
    let mut client = daemon.connect();
    client.get("/");
    client
}

pub fn post(daemon: &Daemon) -> Peer {
    let mut client = daemon.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody");
    client
}

/// An answer without a body.
pub fn ok(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, block(&[(":status", "200")]))
}

/// The head of an answer with a body.
pub fn head(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, block(&[&[(":status", "200")], fields].concat()))
}

fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, [last.to_be_bytes(), code.to_be_bytes()].concat())
}

pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, code.to_be_bytes())
}

#[track_caller]
pub fn expect_ok(client: &mut Peer) {
    let response = client.response();
    assert_eq!(response.status(), 200, "{response:?}");
}

/// RFC 9113 §6.8: streams above the last one named were not processed, so that even a POST
/// goes to another connection; those up to it go on.
#[test]
fn a_goaway_moves_what_was_not_processed_and_ends_nothing_else() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut first = get(&daemon);
    let mut old = accept(&backend, &[]);
    let one = request(&mut old);
    let mut second = post(&daemon);
    let two = request(&mut old);
    old.send(goaway(one, NO_ERROR));
    let mut new = accept(&backend, &[]);
    let again = request(&mut new);
    new.send(ok(again));
    expect_ok(&mut second);
    assert!(two > one);
    // Nor does anybody else come there.
    let mut third = get(&daemon);
    let third_stream = request(&mut new);
    new.send(ok(third_stream));
    expect_ok(&mut third);
    old.send(ok(one));
    expect_ok(&mut first);
    old.peer.expect_gone();
}

/// RFC 9113 §8.7. It counts as `connect`, since nothing was done.
#[test]
fn a_refused_stream_is_asked_again_whatever_its_method() {
    let backend = Backend::new();
    let daemon = before(&backend).set("RETRY_ON", "connect").start();
    let mut client = post(&daemon);
    let mut connection = accept(&backend, &[]);
    for _ in 0..2 {
        let stream = request(&mut connection);
        connection.send(reset(stream, REFUSED_STREAM));
    }
    let stream = request(&mut connection);
    connection.send(ok(stream));
    expect_ok(&mut client);
    // Until there are no attempts left.
    let mut client = post(&daemon);
    for _ in 0..4 {
        let stream = request(&mut connection);
        connection.send(reset(stream, REFUSED_STREAM));
    }
    client.response().assert_refusal(503, "backend_stream_refused");
    backend.expect_none();
}

/// What has begun to be answered was processed, whatever is said later.
#[test]
fn a_refusal_after_an_interim_response_is_none() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = get(&daemon);
    let mut connection = accept(&backend, &[]);
    let stream = request(&mut connection);
    connection.send(frame(HEADERS, END_HEADERS, stream, block(&[(":status", "103")])));
    assert_eq!(client.head().status(), 103);
    connection.send(reset(stream, REFUSED_STREAM));
    client.response().assert_refusal(503, "backend_stream_refused");
    backend.expect_none();
}

#[test]
fn a_reset_before_the_answer_is_asked_again_only_if_that_is_safe() {
    let backend = Backend::new();
    let daemon = before(&backend).set("MAX_RETRIES", 1).start();
    let mut client = post(&daemon);
    let mut connection = accept(&backend, &[]);
    let stream = request(&mut connection);
    connection.send(reset(stream, PROTOCOL_ERROR));
    client.response().assert_refusal(502, "backend_reset");
    let mut client = get(&daemon);
    let stream = request(&mut connection);
    connection.send(reset(stream, PROTOCOL_ERROR));
    let stream = request(&mut connection);
    connection.send(ok(stream));
    expect_ok(&mut client);
    backend.expect_none();
}

#[test]
fn a_reset_within_the_answer_cuts_it_and_nobody_elses() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = get(&daemon);
    let mut connection = accept(&backend, &[]);
    let stream = request(&mut connection);
    let mut other = get(&daemon);
    let other_stream = request(&mut connection);
    connection.send([head(stream, &[]), frame(DATA, 0, stream, "part")].concat());
    client.read_to(b"part");
    connection.send(reset(stream, PROTOCOL_ERROR));
    client.expect_reset();
    assert_eq!(daemon.record_of("backend_reset")["status"], 200);
    connection.send(ok(other_stream));
    expect_ok(&mut other);
}

/// RFC 9113 §8.1: that is how a server says that it needs no more of the request.
#[test]
fn a_reset_without_error_behind_a_whole_answer_is_none() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = daemon.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\npart");
    let mut connection = accept(&backend, &[]);
    let stream = request(&mut connection);
    connection.send([ok(stream), reset(stream, NO_ERROR)].concat());
    expect_ok(&mut client);
    assert_eq!(daemon.record("/")["reason"], serde_json::Value::Null);
}

#[test]
fn a_body_that_is_not_as_long_as_its_head_says_is_malformed() {
    let backend = Backend::new();
    let daemon = before(&backend).set("MAX_RETRIES", 0).start();
    let mut client = get(&daemon);
    let mut connection = accept(&backend, &[]);
    let stream = request(&mut connection);
    connection.send(head(stream, &[("content-length", "9")]));
    client.head();
    connection.send(frame(DATA, END_STREAM, stream, "short"));
    client.expect_reset();
    assert_eq!(connection.reset(stream), PROTOCOL_ERROR);
    daemon.record_of("backend_malformed");
    // The same where nothing has gone on to the client yet.
    let mut client = get(&daemon);
    let stream = request(&mut connection);
    connection.send([head(stream, &[("content-length", "2")]), frame(DATA, 0, stream, "long")].concat());
    client.response().assert_refusal(502, "backend_malformed");
}

#[test]
fn answers_that_http_2_does_not_know_are_malformed() {
    for fields in [
        &[(":status", "101")][..],
        &[(":status", "200"), ("connection", "close")],
        &[(":status", "200"), ("transfer-encoding", "chunked")],
        &[(":status", "200"), ("Upper", "case")],
        &[("no", "status")],
        &[(":status", "200"), ("content-length", "1x")],
        &[(":status", "200"), ("content-length", "1"), ("content-length", "2")],
    ] {
        let backend = Backend::new();
        let daemon = before(&backend).start();
        let mut client = post(&daemon);
        let mut connection = accept(&backend, &[]);
        let stream = request(&mut connection);
        connection.send(frame(HEADERS, END_HEADERS, stream, block(fields)));
        client.response().assert_refusal(502, "backend_malformed");
        backend.expect_none();
    }
}

#[test]
fn an_answer_with_too_large_a_head_is_refused_and_the_connection_serves_on() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = daemon.connect();
    client.get("/");
    let mut connection = accept(&backend, &[]);
    let stream = request(&mut connection);
    let many: Vec<(String, String)> = (0..101).map(|n| (format!("x-{n}"), "y".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (&**name, &**value)).collect();
    connection.send(head(stream, &many));
    client.response().assert_refusal(502, "backend_header_too_large");
    client.get("/");
    let stream = request(&mut connection);
    let long = "x".repeat(16_000);
    let large = block(&[(":status", "200"), ("a", &long), ("b", &long), ("c", &long), ("d", &long), ("e", &long)]);
    let mut pieces = large.chunks(16_384).peekable();
    let mut kind = HEADERS;
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        connection.send(frame(kind, flags, stream, piece));
        kind = CONTINUATION;
    }
    client.response().assert_refusal(502, "backend_header_too_large");
    backend.expect_none();
}

/// RFC 9113 §6.5.2: it is asked for nothing that it would have to reset.
#[test]
fn a_request_larger_than_the_backend_takes_is_refused_and_the_connection_serves_on() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = daemon.connect();
    let large = format!("POST / HTTP/1.1\r\nHost: a\r\nX: {}\r\nContent-Length: 4\r\n\r\nbody", "x".repeat(900));
    client.send(&large);
    let mut connection = accept(&backend, &[(MAX_HEADER_LIST_SIZE, 1000)]);
    client.response().assert_refusal(431, "backend_header_limit");
    client.get("/");
    let stream = request(&mut connection);
    connection.send(ok(stream));
    expect_ok(&mut client);
    // It may change its mind.
    let setting = [&MAX_HEADER_LIST_SIZE.to_be_bytes()[..], &2000_u32.to_be_bytes()].concat();
    connection.send(frame(SETTINGS, 0, 0, setting));
    connection.expect_alive();
    client.send(&large);
    let stream = request(&mut connection);
    connection.send(ok(stream));
    expect_ok(&mut client);
    assert_eq!(daemon.status()["backends"][0]["state"], "up");
    backend.expect_none();
}

/// Some servers end each connection after so many requests (nginx' `keepalive_requests`), however
/// many have been put on it: what is left out costs no retry, and is held against nobody.
#[test]
fn requests_that_a_connection_leaves_out_are_never_lost() {
    const MANY: usize = 12;
    let backend = Backend::new();
    let daemon = before(&backend).set("MAX_RETRIES", 0).set("EJECT_AFTER", 1).start();
    let mut clients: Vec<Peer> = (0..MANY).map(|n| if n % 2 == 0 { get(&daemon) } else { post(&daemon) }).collect();
    daemon.wait_in_flight(MANY.try_into().unwrap());
    for (given, served) in [(MANY, 6), (6, 3), (3, 2), (1, 1)] {
        let mut connection = accept(&backend, &[]);
        let mut streams: Vec<u32> = (0..given).map(|_| request(&mut connection)).collect();
        streams.truncate(served);
        let answers: Vec<u8> = streams.iter().flat_map(|stream| ok(*stream)).collect();
        connection.send([answers, goaway(*streams.last().unwrap(), NO_ERROR)].concat());
    }
    clients.iter_mut().for_each(expect_ok);
    backend.expect_none();
}

/// What a connection has lasted for is what the next ones are given, until they last for longer.
#[test]
fn a_connection_is_given_no_more_than_the_last_one_has_served() {
    const SERVED: usize = 3;
    let backend = Backend::new();
    let daemon = before(&backend).set("MAX_RETRIES", 0).start();
    let mut clients: Vec<Peer> = (0..5).map(|_| get(&daemon)).collect();
    let mut first = accept(&backend, &[]);
    let streams: Vec<u32> = (0..5).map(|_| request(&mut first)).collect();
    let last = *streams.get(SERVED - 1).unwrap();
    let answers: Vec<u8> = streams.iter().take(SERVED).flat_map(|stream| ok(*stream)).collect();
    first.send([answers, goaway(last, NO_ERROR)].concat());
    let mut second = accept(&backend, &[]);
    let mut open: Vec<u32> = (0..2).map(|_| request(&mut second)).collect();
    // One more, and it has as many as the first has served.
    clients.push(get(&daemon));
    open.push(request(&mut second));
    clients.push(get(&daemon));
    let mut third = accept(&backend, &[]);
    let other = request(&mut third);
    open.drain(..).for_each(|stream| second.send(ok(stream)));
    third.send(ok(other));
    clients.iter_mut().for_each(expect_ok);
    daemon.wait_in_flight(0);
    // The second goes on, and so is given as many again, beside the two that the third has left.
    let mut more: Vec<Peer> = (0..5).map(|_| get(&daemon)).collect();
    for (connection, count) in [(&mut third, 2), (&mut second, 3)] {
        for _ in 0..count {
            let stream = request(connection);
            connection.send(ok(stream));
        }
    }
    more.iter_mut().for_each(expect_ok);
    backend.expect_none();
}

/// A backend that takes no more connections serves on those that it has.
#[test]
fn a_connection_that_cant_be_opened_beside_one_that_serves_fails_nobody() {
    let backend = Backend::new();
    let daemon = before(&backend).set("MAX_RETRIES", 0).start();
    let mut first = get(&daemon);
    let mut connection = accept(&backend, &[(MAX_CONCURRENT_STREAMS, 1)]);
    let one = request(&mut connection);
    let mut others = [get(&daemon), post(&daemon)];
    // It is one place short, so each of the two gets a connection to wait for.
    (0..2).for_each(|_| drop(backend.accept()));
    connection.send(ok(one));
    expect_ok(&mut first);
    for _ in 0..2 {
        let stream = request(&mut connection);
        connection.send(ok(stream));
    }
    others.iter_mut().for_each(expect_ok);
}

#[test]
fn a_backend_that_allows_one_stream_gets_a_connection_for_each() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut clients: Vec<Peer> = (0..3).map(|_| get(&daemon)).collect();
    daemon.wait_in_flight(3);
    let mut connections: Vec<Frames> = (0..3).map(|_| accept(&backend, &[(MAX_CONCURRENT_STREAMS, 1)])).collect();
    for connection in &mut connections {
        let stream = request(connection);
        connection.send(ok(stream));
    }
    clients.iter_mut().for_each(expect_ok);
    backend.expect_none();
}

/// A backend may allow fewer streams later, and more again.
#[test]
fn a_change_of_what_the_backend_allows_counts_at_once() {
    let backend = Backend::new();
    let daemon = before(&backend).set("MAX_BACKEND_CONNECTIONS", 1).set("QUEUE_TIMEOUT", "1h").start();
    let mut first = get(&daemon);
    let mut connection = accept(&backend, &[(MAX_CONCURRENT_STREAMS, 1)]);
    let one = request(&mut connection);
    let mut second = get(&daemon);
    daemon.wait("one waits", |status| status["backends"][0]["waiting"] == 1);
    let setting = [&MAX_CONCURRENT_STREAMS.to_be_bytes()[..], &2_u32.to_be_bytes()].concat();
    connection.send(frame(SETTINGS, 0, 0, setting));
    let two = request(&mut connection);
    connection.send([ok(one), ok(two)].concat());
    expect_ok(&mut first);
    expect_ok(&mut second);
}

/// The request's body waits for the backend's windows, and then goes on.
#[test]
fn a_window_of_nothing_holds_the_body_back_until_it_opens() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = post(&daemon);
    let mut connection = accept(&backend, &[(INITIAL_WINDOW_SIZE, 0)]);
    let stream = request(&mut connection);
    connection.expect_alive();
    connection.send(frame(WINDOW_UPDATE, 0, stream, 3_u32.to_be_bytes()));
    let part = connection.await_frame("a part of the body", |frame| frame.kind == DATA);
    assert_eq!(part.payload, b"bod");
    connection.send(frame(WINDOW_UPDATE, 0, stream, 9_u32.to_be_bytes()));
    let rest = connection.await_frame("the rest", |frame| frame.kind == DATA);
    assert_eq!(rest.payload, b"y");
    connection.send(ok(stream));
    expect_ok(&mut client);
}

#[test]
fn a_window_that_never_opens_ends_with_the_time_for_an_answer() {
    let backend = Backend::new();
    let daemon = before(&backend).set("RESPONSE_TIMEOUT", SHORT).start();
    let mut client = post(&daemon);
    let mut connection = accept(&backend, &[(INITIAL_WINDOW_SIZE, 0)]);
    let stream = request(&mut connection);
    client.response().assert_refusal(504, "backend_response_timeout");
    connection.reset(stream);
}

#[test]
fn a_flood_ends_the_connection_and_no_request_for_ever() {
    for flood in [frame(PING, 0, 0, [0; 8]), frame(SETTINGS, 0, 0, ""), frame(WINDOW_UPDATE, 0, 0, [0, 0, 0, 1])] {
        let backend = Backend::new();
        let daemon = before(&backend).set("MAX_RETRIES", 0).start();
        let mut client = get(&daemon);
        let mut connection = accept(&backend, &[]);
        request(&mut connection);
        while connection.peer.try_send(flood.repeat(100)).is_ok() {}
        let response = client.response();
        assert_eq!(response.status(), 502, "{response:?}");
    }
}

/// One that is found to speak something else was sent no request, so another gets it.
#[test]
fn a_backend_that_speaks_http_1_is_found_out_before_it_is_asked() {
    let (wrong, right) = (Backend::new(), Backend::new());
    let backends = format!("{}, {}", wrong.address, right.address);
    let daemon = before(&wrong).set("BACKEND_ADDRESS", backends).start();
    let mut client = post(&daemon);
    let mut peer = wrong.accept();
    peer.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    client.response().assert_refusal(502, "backend_malformed");
    // One that only closes is another matter.
    let mut client = post(&daemon);
    let mut connection = accept(&right, &[]);
    let stream = request(&mut connection);
    connection.send(ok(stream));
    expect_ok(&mut client);
    let mut client = post(&daemon);
    drop(wrong.accept());
    let stream = request(&mut connection);
    connection.send(ok(stream));
    expect_ok(&mut client);
}

#[test]
fn a_backend_that_says_nothing_has_the_time_of_a_connection() {
    let backend = Backend::new();
    let daemon = before(&backend).set("CONNECT_TIMEOUT", SHORT).set("MAX_RETRIES", 0).start();
    let mut clients: Vec<Peer> = (0..20).map(|_| get(&daemon)).collect();
    for client in &mut clients {
        client.response().assert_refusal(504, "backend_connect_timeout");
    }
    drop(backend.accept());
    backend.expect_none();
}

/// A request that is not answered says nothing of those that are: the connection is asked
/// whether it lives, and serves on.
#[test]
fn a_connection_that_answers_a_ping_is_kept_and_one_that_does_not_is_not() {
    let backend = Backend::new();
    let daemon = before(&backend).set("RESPONSE_TIMEOUT", SHORT).set("MAX_RETRIES", 0).start();
    let mut client = get(&daemon);
    let mut connection = accept(&backend, &[]);
    request(&mut connection);
    client.response().assert_refusal(504, "backend_response_timeout");
    let ping = connection.await_frame("a ping", |frame| frame.kind == PING && frame.flags == 0);
    // Until it is answered, nobody else comes there.
    let mut other = get(&daemon);
    let mut second = accept(&backend, &[]);
    let stream = request(&mut second);
    second.send(ok(stream));
    expect_ok(&mut other);
    second.send(goaway(stream, NO_ERROR));
    second.peer.expect_gone();
    connection.send(frame(PING, ACK, 0, ping.payload));
    connection.expect_alive();
    let mut client = get(&daemon);
    let stream = request(&mut connection);
    connection.send(ok(stream));
    expect_ok(&mut client);
    // And without an answer it is given up.
    let mut client = get(&daemon);
    request(&mut connection);
    client.response().assert_refusal(504, "backend_response_timeout");
    connection.peer.expect_gone();
}

/// The end of one connection is one failure of the backend's, however many requests it takes
/// along; each of them fails or is made again as its rule says.
#[test]
fn a_lost_connection_is_held_against_the_backend_once() {
    let (backend, other) = (Backend::new(), Backend::new());
    // All of this goes to the first one; the other is there so that it could be ejected.
    let backends = format!("{}?weight=200, {}", backend.address, other.address);
    let setup = before(&backend).set("BACKEND_ADDRESS", backends).set("RETRY_BUDGET", "off").set("EJECT_AFTER", 5);
    let daemon = setup.start();
    let mut client = get(&daemon);
    let mut connection = accept(&backend, &[]);
    let stream = request(&mut connection);
    connection.send(ok(stream));
    expect_ok(&mut client);
    // Twenty that have begun to be answered, twenty that may be made again, and twenty that
    // may not.
    let mut begun: Vec<Peer> = (0..20).map(|_| get(&daemon)).collect();
    for _ in 0..20 {
        let stream = request(&mut connection);
        connection.send([head(stream, &[]), frame(DATA, 0, stream, "part")].concat());
    }
    begun.iter_mut().for_each(|client| drop(client.read_to(b"part")));
    let mut safe: Vec<Peer> = (0..20).map(|_| get(&daemon)).collect();
    (0..20).for_each(|_| _ = request(&mut connection));
    let mut lost: Vec<Peer> = (0..20).map(|_| post(&daemon)).collect();
    (0..20).for_each(|_| _ = request(&mut connection));
    connection.peer.half_close();
    begun.iter_mut().for_each(|client| drop(client.expect_reset()));
    for client in &mut lost {
        client.response().assert_refusal(502, "backend_closed");
    }
    daemon.record_of("backend_truncated");
    let mut new = accept(&backend, &[]);
    let streams: Vec<u32> = (0..20).map(|_| request(&mut new)).collect();
    assert_eq!(daemon.status()["backends"][0]["state"], "up");
    streams.iter().for_each(|stream| new.send(ok(*stream)));
    safe.iter_mut().for_each(expect_ok);
    backend.expect_none();
}

/// Nothing was sent, so that also a POST goes elsewhere.
#[test]
fn a_connection_that_ended_unseen_is_replaced_whatever_the_method() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = get(&daemon);
    let mut connection = accept(&backend, &[]);
    let stream = request(&mut connection);
    connection.send([ok(stream), goaway(stream, NO_ERROR)].concat());
    expect_ok(&mut client);
    drop(connection);
    let mut client = post(&daemon);
    let mut connection = accept(&backend, &[]);
    let stream = request(&mut connection);
    connection.send(ok(stream));
    expect_ok(&mut client);
}

/// Silence after the head is bounded where the route says so.
#[test]
fn a_stalled_answer_ends_with_the_time_for_a_stream() {
    let backend = Backend::new();
    let daemon = before(&backend).set("STREAM_TIMEOUT", SHORT).start();
    let mut client = get(&daemon);
    let mut connection = accept(&backend, &[]);
    let stream = request(&mut connection);
    connection.send(head(stream, &[]));
    client.head();
    client.expect_reset();
    connection.reset(stream);
    connection.expect_alive();
    assert!(connection.until_silent(Duration::from_millis(100)).is_empty());
}

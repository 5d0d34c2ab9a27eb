//! How long each side may keep the other waiting.

use std::time::{Duration, Instant};

use crate::backend::{Backend, Refusing};
use crate::daemon::DEADLINE;
use crate::traffic::door::Setup;

fn before(backend: &Backend) -> Setup {
    Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", &backend.address)
}

#[test]
fn a_head_begun_is_408_and_one_not_begun_is_closed_without_a_word() {
    let backend = Backend::new();
    let daemon = before(&backend).set("HEADER_TIMEOUT", "1s").start();
    let mut partial = daemon.connect();
    partial.send("GET / HTTP/1.1\r\nHost: a\r\n");
    let mut none = daemon.connect();
    let response = partial.response();
    response.assert_refusal(408, "client_header_timeout");
    assert_eq!(response.head.field("Connection"), Some("close"));
    partial.expect_end();
    none.expect_end();
    assert_eq!(daemon.record_of("client_header_timeout")["status"], 408);
    backend.expect_none();
    // Between requests it is the idle timeout that counts, until the next one begins.
    let mut kept = daemon.connect();
    kept.get("/");
    let (mut peer, _) = backend.take();
    peer.answer("");
    kept.response();
    kept.send("GET /again");
    kept.response().assert_refusal(408, "client_header_timeout");
}

#[test]
fn a_trickle_does_not_extend_the_time_for_a_head() {
    let backend = Backend::new();
    let daemon = before(&backend).set("HEADER_TIMEOUT", "300ms").start();
    let mut client = daemon.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX: ");
    let until = Instant::now() + DEADLINE;
    // Far more often than the limit, so that one which starts anew would never end.
    while !client.has_come(Duration::from_millis(20)) {
        client.send("x");
        assert!(Instant::now() < until, "the time for a head never ends");
    }
    client.response().assert_refusal(408, "client_header_timeout");
}

#[test]
fn the_time_for_a_head_begins_with_its_first_byte_on_a_kept_connection_too() {
    let backend = Backend::new();
    let daemon = before(&backend).set("HEADER_TIMEOUT", "1s").start();
    let mut client = daemon.connect();
    client.get("/first");
    let (mut peer, _) = backend.take();
    peer.answer("first");
    client.response();
    // Idle for longer than a head may take, and no harm done.
    client.pause(Duration::from_millis(1_300));
    client.get("/second");
    peer.request();
    peer.answer("second");
    assert_eq!(client.response().text(), "second");
    let until = Instant::now() + DEADLINE;
    client.send("GET /third HTTP/1.1\r\nHost: a\r\nX: ");
    while !client.has_come(Duration::from_millis(20)) {
        client.send("x");
        assert!(Instant::now() < until, "the time for a later head never ends");
    }
    client.response().assert_refusal(408, "client_header_timeout");
    client.expect_end();
    peer.expect_silence();
}

#[test]
fn an_empty_line_begins_no_request() {
    let backend = Backend::new();
    let daemon = before(&backend).set("HEADER_TIMEOUT", "1s").start();
    // What old clients send behind a body.
    let mut client = daemon.connect();
    client.send("POST /form HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody\r\n");
    let (mut peer, _) = backend.take();
    peer.answer("taken");
    assert_eq!(client.response().text(), "taken");
    client.pause(Duration::from_millis(1_300));
    client.send("\r\n\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(peer.request().head.line, "GET /next HTTP/1.1");
    peer.answer("next");
    assert_eq!(client.response().text(), "next");
    client.send("\r\n");
    client.half_close();
    client.expect_end();
    // Nor does it where there was none before, and it holds nobody off.
    let mut blank = daemon.connect();
    blank.send("\r\n");
    blank.expect_end();
    let mut endless = daemon.connect();
    let until = Instant::now() + DEADLINE;
    while endless.try_send("\r\n".repeat(1000)).is_ok() {
        assert!(Instant::now() < until, "empty lines are read without an end");
    }
    // So many are a head that is too large.
    daemon.record_of("header_too_large");
    assert_eq!(daemon.lines(|line| line["target"] == "doorward::access").len(), 3);
}

#[test]
fn a_client_that_stops_within_its_body_is_408() {
    let backend = Backend::new();
    let daemon = before(&backend).set("BODY_TIMEOUT", "200ms").start();
    let mut client = daemon.connect();
    client.send("POST /stalled HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf");
    let mut peer = backend.accept();
    peer.head();
    assert_eq!(peer.read(4), b"half");
    let response = client.response();
    response.assert_refusal(408, "client_body_timeout");
    assert_eq!(response.head.field("Connection"), Some("close"));
    client.expect_end();
    peer.expect_gone();
    assert_eq!(daemon.record("/stalled")["reason"], "client_body_timeout");
}

#[test]
fn a_client_that_sends_slowly_is_waited_for_as_long_as_it_sends() {
    let backend = Backend::new();
    let daemon =
        before(&backend).set("BODY_TIMEOUT", "2s").set("MIN_BODY_RATE", 1).set("RESPONSE_TIMEOUT", "500ms").start();
    let mut client = daemon.connect();
    client.send("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n");
    let mut peer = backend.accept();
    peer.head();
    // Each byte comes well after the backend's time to answer would have been over, were it
    // running, and all of them well after the client's, were it not set anew.
    for _ in 0..4 {
        assert!(!client.has_come(Duration::from_millis(700)), "cut off");
        client.send("x");
        assert_eq!(peer.read(1), b"x");
    }
    peer.answer("patience");
    assert_eq!(client.response().text(), "patience");
}

#[test]
fn a_client_that_takes_nothing_is_cut() {
    let backend = Backend::new();
    let daemon = before(&backend).set("BODY_TIMEOUT", "300ms").start();
    let mut client = daemon.connect();
    client.shrink();
    client.get("/unread");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
    let writer = peer.writer();
    let sender = std::thread::spawn(move || {
        let mut writer = writer;
        while writer.try_send([b'x'; 65_536]).is_ok() {}
    });
    let record = daemon.record("/unread");
    assert_eq!((&record["reason"], &record["status"]), (&"client_slow_reader".into(), &200.into()));
    sender.join().unwrap();
    // What had come is not the whole, and the connection says so.
    assert!(client.expect_reset().len() < 1_000_000_000);
    daemon.wait_in_flight(0);
}

#[test]
fn a_backend_that_falls_silent_within_its_answer_is_cut() {
    let backend = Backend::new();
    let daemon = before(&backend).set("STREAM_TIMEOUT", "200ms").start();
    let mut client = daemon.connect();
    client.get("/silent");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
    client.head();
    assert_eq!(client.chunk(), b"half");
    assert!(client.expect_reset().is_empty());
    peer.expect_gone();
    let record = daemon.record("/silent");
    assert_eq!(record["reason"], "backend_stream_timeout");
}

#[test]
fn a_whole_request_has_a_limit_where_one_is_set() {
    let backend = Backend::new();
    let daemon = before(&backend).set("REQUEST_TIMEOUT", "1s").start();
    let mut client = daemon.connect();
    client.get("/unanswered");
    let (mut peer, _) = backend.take();
    client.response().assert_refusal(504, "request_timeout");
    peer.expect_gone();
    backend.expect_none();

    client.get("/unfinished");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.head();
    // Neither side rests, and yet it ends.
    let mut writer = peer.writer();
    let sender = std::thread::spawn(move || while writer.try_send("1\r\nx\r\n").is_ok() {});
    client.expect_reset();
    sender.join().unwrap();
    assert_eq!(daemon.record("/unfinished")["reason"], "request_timeout");
}

#[test]
fn a_wait_between_attempts_is_not_begun_when_it_would_end_too_late() {
    let refusing = Refusing::new();
    let daemon = Setup::new()
        .set("BACKEND_ADDRESS", &refusing.address)
        .set("RETRY_BACKOFF", "24h")
        .set("RETRY_BACKOFF_MAX", "24h")
        .set("REQUEST_TIMEOUT", "5s")
        .start();
    let mut client = daemon.connect();
    client.get("/");
    client.response().assert_refusal(502, "backend_connect_refused");
}

#[test]
fn a_silent_tunnel_ends_where_a_limit_is_set() {
    let backend = Backend::new();
    let daemon = before(&backend).set("STREAM_TIMEOUT", "1s").start();
    let mut client = daemon.connect();
    client.send("GET /t HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    let mut peer = backend.accept();
    peer.head();
    peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    client.head();
    // Either direction keeps it alive.
    for _ in 0..4 {
        assert!(!peer.has_come(Duration::from_millis(300)));
        client.send("x");
        peer.expect("x");
    }
    client.expect_gone();
    peer.expect_gone();
    assert_eq!(daemon.record_of("backend_stream_timeout")["message"], "tunnel");
}

#[test]
fn a_backend_that_sends_interim_responses_is_not_silent() {
    let backend = Backend::new();
    let daemon = before(&backend).set("RESPONSE_TIMEOUT", "2s").start();
    let mut client = daemon.connect();
    client.get("/long");
    let (mut peer, _) = backend.take();
    for _ in 0..4 {
        peer.pause(Duration::from_millis(700));
        peer.send("HTTP/1.1 102 Processing\r\n\r\n");
        assert_eq!(client.head().status(), 102);
    }
    peer.answer("done");
    assert_eq!(client.response().text(), "done");
}

#[test]
fn a_client_that_was_given_leave_to_send_is_waited_for_no_longer_than_another() {
    let backend = Backend::new();
    let daemon = before(&backend).set("RESPONSE_TIMEOUT", "60s").set("BODY_TIMEOUT", "200ms").start();
    let mut client = daemon.connect();
    client.send("PUT /leave HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let mut peer = backend.accept();
    peer.head();
    peer.send("HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(client.head().status(), 100);
    client.response().assert_refusal(408, "client_body_timeout");
}

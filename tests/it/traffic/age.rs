//! When a connection is old, and how it ends then.

use std::time::{Duration, Instant};

use crate::backend::{Backend, Refusing};
use crate::daemon::DEADLINE;
use crate::traffic::door::Setup;

/// Longer than the ages in here, with their jitter.
const LATER: Duration = Duration::from_millis(100);

fn before(address: &str) -> Setup {
    Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", address)
}

#[test]
fn the_first_answer_of_an_old_connection_is_its_last() {
    let backend = Backend::new();
    let daemon = before(&backend.address).set("MAX_CONNECTION_AGE", "50ms").start();
    let mut client = daemon.connect();
    let mut peer = None;
    let until = Instant::now() + DEADLINE;
    // Until then every one promises another.
    loop {
        client.get("/");
        let on = peer.get_or_insert_with(|| backend.accept());
        on.request();
        on.answer("one of many");
        let response = client.response();
        assert_eq!(response.text(), "one of many");
        match response.head.field("Connection") {
            None => assert!(Instant::now() < until, "it is never old"),
            end => break assert_eq!(end, Some("close")),
        }
    }
    client.expect_end();
    // The backend's connection is none of the client's business.
    let mut next = daemon.connect();
    next.get("/next");
    let mut peer = peer.unwrap();
    peer.request();
    peer.answer("next");
    assert_eq!(next.response().text(), "next");
    backend.expect_none();
}

#[test]
fn what_counts_is_the_age_when_the_answer_begins() {
    let backend = Backend::new();
    let daemon = before(&backend.address).set("MAX_CONNECTION_AGE", "50ms").start();
    let mut client = daemon.connect();
    client.get("/long-poll");
    let (mut peer, _) = backend.take();
    peer.pause(LATER);
    peer.answer("at last");
    let response = client.response();
    assert_eq!((response.text(), response.head.field("Connection")), ("at last", Some("close")));
    client.expect_end();
}

#[test]
fn our_own_answers_end_an_old_connection_too() {
    let refusing = Refusing::new();
    let daemon = before(&refusing.address).set("MAX_CONNECTION_AGE", "50ms").set("MAX_RETRIES", 0).start();
    let mut client = daemon.connect();
    client.pause(LATER);
    client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let response = client.response();
    response.assert_refusal(502, "backend_connect_refused");
    assert_eq!(response.head.field("Connection"), Some("close"));
    client.expect_end();
}

#[test]
fn an_old_connection_is_not_cut_within_a_body() {
    let backend = Backend::new();
    let daemon = before(&backend.address).set("MAX_CONNECTION_AGE", "50ms").start();
    let mut client = daemon.connect();
    client.get("/events");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.head();
    for _ in 0..3 {
        peer.pause(LATER);
        peer.send_chunk(b"event");
        assert_eq!(client.chunk(), b"event");
    }
    peer.send("0\r\n\r\n");
    assert_eq!(client.chunk(), b"");
    daemon.wait_in_flight(0);
}

#[test]
fn a_new_age_holds_for_connections_that_are_open() {
    let backend = Backend::new();
    let daemon = before(&backend.address).start();
    let mut client = daemon.connect();
    client.get("/");
    let (mut peer, _) = backend.take();
    peer.answer("young");
    assert_eq!(client.response().head.field("Connection"), None);
    daemon.reload("MAX_CONNECTION_AGE=1ms");
    client.get("/");
    peer.request();
    peer.answer("old");
    assert_eq!(client.response().head.field("Connection"), Some("close"));
    client.expect_end();
}

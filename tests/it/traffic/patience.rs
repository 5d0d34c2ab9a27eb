//! What waits, for whom, and who is blamed when it took too long.

use crate::backend::{Backend, Refusing, Silent};
use crate::traffic::door::Setup;

fn before(backend: &str) -> Setup {
    Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", backend)
}

#[test]
fn a_client_that_connects_and_says_nothing_is_closed_without_a_word() {
    let backend = Backend::new();
    let daemon = before(&backend.address).set("HEADER_TIMEOUT", "500ms").start();
    let mut silent = daemon.connect();
    silent.expect_end();
    // One that began is told.
    let mut slow = daemon.connect();
    slow.send("GET / HTTP/1.1\r\n");
    slow.response().assert_refusal(408, "client_header_timeout");
}

#[test]
fn after_an_upload_that_fills_the_buffer_the_connection_is_idle() {
    let backend = Backend::new();
    let daemon = before(&backend.address).set("HEADER_TIMEOUT", "500ms").set("IDLE_TIMEOUT", "1s").start();
    let mut client = daemon.connect();
    let head = "PUT /full HTTP/1.1\r\nHost: a\r\nContent-Length: 16384\r\n\r\n";
    client.send(head);
    let mut peer = backend.accept();
    peer.head();
    client.send(vec![b'x'; 16 * 1024]);
    peer.read(16 * 1024);
    peer.answer("taken");
    assert_eq!(client.response().text(), "taken");
    client.expect_end();
}

#[test]
fn a_backend_that_is_back_serves_everybody_while_its_first_answer_goes_on() {
    let refusing = Refusing::new();
    let daemon = before(&refusing.address).set("MAX_RETRIES", 0).start();
    let mut client = daemon.connect();
    for _ in 0..5 {
        client.get("/down");
        client.response().assert_refusal(502, "backend_connect_refused");
    }
    daemon.logged("the backend's fall", |line| line["message"] == "backend down");
    let backend = refusing.open();
    let server = std::thread::spawn(move || {
        let (mut peer, _) = backend.take();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        (backend, peer)
    });
    let until = std::time::Instant::now() + crate::daemon::DEADLINE;
    loop {
        client.get("/events");
        if client.head().status() == 200 {
            break;
        }
        assert!(std::time::Instant::now() < until, "it is never probed");
        client = daemon.connect();
    }
    let (backend, mut first) = server.join().unwrap();
    let mut other = daemon.connect();
    other.get("/other");
    let (mut peer, _) = backend.take();
    peer.answer("up");
    assert_eq!(other.response().text(), "up");
    first.send_chunk(b"on it goes");
    assert_eq!(client.chunk(), b"on it goes");
}

#[test]
fn silence_on_a_kept_connection_is_not_taken_for_its_death() {
    let backend = Backend::new();
    let daemon = before(&backend.address).set("RESPONSE_TIMEOUT", "1s").set("MAX_RETRIES", 0).start();
    let mut client = daemon.connect();
    client.get("/first");
    let (mut peer, _) = backend.take();
    peer.answer("first");
    client.response();
    client.get("/silent");
    client.response().assert_refusal(504, "backend_response_timeout");
    backend.expect_none();
}

#[test]
fn a_client_that_waits_for_leave_to_send_is_not_blamed_for_the_backends_silence() {
    let backend = Backend::new();
    let daemon = before(&backend.address).set("RESPONSE_TIMEOUT", "1s").set("BODY_TIMEOUT", "300ms").start();
    let mut client = daemon.connect();
    client.send("POST /p HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    let mut peer = backend.accept();
    peer.head();
    client.response().assert_refusal(504, "backend_response_timeout");
    // Once it has leave, it is the client that is waited for.
    let mut client = daemon.connect();
    client.send("POST /q HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    let mut peer = backend.accept();
    peer.head();
    peer.send("HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(client.head().status(), 100);
    client.response().assert_refusal(408, "client_body_timeout");
}

#[test]
fn a_dial_that_the_requests_own_deadline_ends_is_not_the_backends_fault() {
    let silent = Silent::new();
    let daemon = before(&silent.address).set("REQUEST_TIMEOUT", "50ms").set("MAX_RETRIES", 0).start();
    let mut client = daemon.connect();
    for _ in 0..6 {
        client.get("/late");
        client.response().assert_refusal(504, "request_timeout");
    }
    assert_eq!(daemon.status()["backends"][0]["up"], true);
}

#[test]
fn what_a_backend_says_before_it_takes_no_more_reaches_the_client_of_a_relay() {
    let backend = Backend::new();
    let daemon = before(&backend.address).set("MODE", "tcp").start();
    let mut client = daemon.connect();
    client.send("x");
    let mut peer = backend.accept();
    peer.expect("x");
    // It ends in order; what the client sends after that comes too late, and resets the
    // daemon's connection to it.
    peer.send("quota exceeded");
    drop(peer);
    client.expect("quota exceeded");
    client.expect_end();
    let _ = client.try_send("too late");
    let _ = client.try_send("much too late");
    client.half_close();
    client.expect_end();
    daemon.logged("the connection", |line| line["message"] == "connection" && line["reason"].is_null());
}

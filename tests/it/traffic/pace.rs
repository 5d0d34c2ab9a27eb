//! Slow clients: those that a rule ends, and those that nothing ends.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::backend::Backend;
use crate::daemon::DEADLINE;
use crate::peer::Peer;
use crate::traffic::door::Setup;

/// A moment in which something would have come.
const MOMENT: Duration = Duration::from_millis(20);

/// More than the kernel holds on the way.
const MUCH: usize = 64 << 20;

fn before(backend: &Backend) -> Setup {
    Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", &backend.address)
}

/// Something to wait on that nothing ever comes from.
fn nothing() -> (Peer, Peer) {
    let (one, two) = UnixStream::pair().unwrap();
    (Peer::unix(one), Peer::unix(two))
}

/// Sends without an end, for as long as it is taken.
fn flood(peer: &Peer) -> JoinHandle<()> {
    let mut writer = peer.writer();
    thread::spawn(move || while writer.try_send([b'x'; 65_536]).is_ok() {})
}

#[test]
fn a_body_that_trickles_is_408_however_often_a_byte_comes() {
    let backend = Backend::new();
    let daemon = before(&backend).set("BODY_TIMEOUT", "400ms").set("MIN_BODY_RATE", "1000/s").start();
    let mut client = daemon.connect();
    client.send("POST /trickle HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    let mut peer = backend.accept();
    peer.head();
    let until = Instant::now() + DEADLINE;
    while !client.has_come(MOMENT) {
        client.send("x");
        assert!(Instant::now() < until, "a trickle is waited for without an end");
    }
    client.response().assert_refusal(408, "client_body_timeout");
    peer.expect_gone();
    assert_eq!(daemon.record("/trickle")["reason"], "client_body_timeout");
}

#[test]
fn a_fast_beginning_buys_no_slow_end() {
    let backend = Backend::new();
    let daemon = before(&backend).set("BODY_TIMEOUT", "400ms").set("MIN_BODY_RATE", "1000/s").start();
    let mut client = daemon.connect();
    client.send("POST /burst HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
    client.send(vec![b'x'; 1_000_000]);
    let mut peer = backend.accept();
    peer.head();
    peer.read(1_000_000);
    let until = Instant::now() + DEADLINE;
    while !client.has_come(MOMENT) {
        client.send("x");
        assert!(Instant::now() < until, "what was sent at first is paid back for minutes");
    }
    client.response().assert_refusal(408, "client_body_timeout");
}

#[test]
fn chunks_that_are_all_framing_are_a_trickle() {
    let backend = Backend::new();
    let daemon = before(&backend).set("BODY_TIMEOUT", "400ms").set("MIN_BODY_RATE", "1000/s").start();
    let mut client = daemon.connect();
    client.send("POST /framing HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut peer = backend.accept();
    peer.head();
    let until = Instant::now() + DEADLINE;
    // More than the rate asks for, and less than extensions may have in all.
    let chunk = format!("1;{}\r\nx\r\n", "e".repeat(60));
    while !client.has_come(MOMENT) {
        client.send(&chunk);
        assert!(Instant::now() < until, "extensions count as a body");
    }
    client.response().assert_refusal(408, "client_body_timeout");
}

#[test]
fn time_that_the_backend_takes_is_not_the_clients() {
    let backend = Backend::new();
    let daemon = before(&backend).set("BODY_TIMEOUT", "1s").set("MIN_BODY_RATE", "1MiB/s").start();
    let body = vec![b'x'; MUCH];
    let mut client = daemon.connect();
    client.send(format!("POST /waits HTTP/1.1\r\nHost: a\r\nContent-Length: {MUCH}\r\n\r\n"));
    let mut writer = client.writer();
    let sender = thread::spawn(move || writer.send(body));
    let mut peer = backend.accept();
    peer.head();
    // Nobody reads at the other end: for many times BODY_TIMEOUT the client can't send.
    client.pause(Duration::from_secs(3));
    assert!(!sender.is_finished(), "all of it fits on the way");
    peer.read(MUCH);
    sender.join().unwrap();
    peer.answer_last("taken");
    assert_eq!(client.response().text(), "taken");
    assert_eq!(daemon.record("/waits")["reason"], Value::Null);
}

#[test]
fn a_reader_below_the_rate_is_reset() {
    let backend = Backend::new();
    let daemon = before(&backend).set("BODY_TIMEOUT", "500ms").set("MIN_BODY_RATE", "1MiB/s").start();
    let mut client = daemon.connect();
    client.shrink();
    client.get("/sips");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
    let sender = flood(&peer);
    client.head();
    let until = Instant::now() + DEADLINE;
    let (mut idle, _other) = nothing();
    // It takes something within each twentieth of the time, and not enough; in the end it
    // meets a reset, not an end that what has come could be taken for the whole at.
    let end = loop {
        idle.pause(MOMENT);
        match client.sip(1024) {
            Ok(taken) => assert_ne!(taken, 0, "an orderly end"),
            Err(error) => break error.kind(),
        }
        assert!(Instant::now() < until, "sips are waited for without an end");
    };
    assert_eq!(end, ErrorKind::ConnectionReset);
    sender.join().unwrap();
    let record = daemon.record("/sips");
    assert_eq!((&record["reason"], &record["status"]), (&"client_slow_reader".into(), &200.into()));
    daemon.wait_in_flight(0);
}

#[test]
fn a_steady_reader_lives_on_though_its_socket_is_never_half_empty() {
    let backend = Backend::new();
    let daemon = before(&backend).set("BODY_TIMEOUT", "1500ms").set("MIN_BODY_RATE", "1000/s").start();
    let mut client = daemon.connect();
    client.shrink_to(64 * 1024);
    client.get("/steady");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
    let sender = flood(&peer);
    client.head();
    // What the kernel holds for it is megabytes, of which it takes too little within
    // BODY_TIMEOUT for the socket to turn writable.
    for _ in 0..150 {
        peer.pause(MOMENT);
        assert_ne!(client.sip(16_384).unwrap(), 0, "cut off");
    }
    assert!(daemon.lines(|line| line["path"] == "/steady").is_empty());
    client.reset();
    sender.join().unwrap();
    assert_eq!(daemon.record("/steady")["reason"], "client_left");
}

#[test]
fn a_client_that_stalls_after_an_early_head_is_cut() {
    let backend = Backend::new();
    let daemon = before(&backend).set("BODY_TIMEOUT", "1s").start();
    let mut client = daemon.connect();
    client.send("POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf");
    let mut peer = backend.accept();
    peer.head();
    assert_eq!(peer.read(4), b"half");
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n");
    assert_eq!(client.head().status(), 200);
    assert_eq!(client.chunk(), b"ok");
    assert!(client.expect_reset().is_empty());
    peer.expect_gone();
    let record = daemon.record("/early");
    assert_eq!((&record["reason"], &record["status"]), (&"client_body_timeout".into(), &200.into()));
    daemon.wait_in_flight(0);
}

#[test]
fn while_the_backend_speaks_a_silent_client_keeps_nobody_waiting() {
    let backend = Backend::new();
    let daemon = before(&backend).set("BODY_TIMEOUT", "500ms").start();
    let mut client = daemon.connect();
    client.send("POST /talk HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send_chunk(b"hello");
    let mut peer = backend.accept();
    peer.head();
    assert_eq!(peer.chunk(), b"hello");
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.head();
    for _ in 0..40 {
        peer.pause(MOMENT);
        peer.send_chunk(b"x");
        assert_eq!(client.chunk(), b"x");
    }
    client.send("0\r\n\r\n");
    assert_eq!(peer.chunk(), b"");
    peer.send("0\r\n\r\n");
    assert_eq!(client.chunk(), b"");
    assert_eq!(daemon.record("/talk")["reason"], Value::Null);
}

#[test]
fn long_polls_events_and_tunnels_know_no_rate() {
    let backend = Backend::new();
    let daemon = before(&backend).set("BODY_TIMEOUT", "50ms").set("MIN_BODY_RATE", "1MiB/s").start();
    let long = Duration::from_millis(400);
    let mut client = daemon.connect();
    client.get("/poll");
    let (mut peer, _) = backend.take();
    assert!(!client.has_come(long), "a long poll was cut off");
    peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.head();
    for _ in 0..2 {
        assert!(!client.has_come(long), "an event stream was cut off");
        peer.send_chunk(b"data: x\n\n");
        assert_eq!(client.chunk(), b"data: x\n\n");
    }
    let mut client = daemon.connect();
    client.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    let mut peer = backend.accept();
    peer.head();
    peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    client.head();
    for _ in 0..2 {
        assert!(!client.has_come(long), "a tunnel was cut off");
        client.send("x");
        peer.expect("x");
    }
}

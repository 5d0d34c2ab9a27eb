//! What the daemon holds in memory for whom: never more than is on its way.

use std::thread;
use std::time::Duration;

use crate::backend::Backend;
use crate::peer::Peer;
use crate::traffic::door::{Daemon, Setup};

/// A moment in which more would have gone.
const MOMENT: Duration = Duration::from_millis(300);

const MIB: usize = 1 << 20;

/// A daemon that has served a request of some size each way, and so has in memory what
/// it needs for any.
fn before(backend: &Backend) -> Daemon {
    let daemon = Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", &backend.address).start();
    let mut client = daemon.connect();
    client.send_body("POST", "/warm", &vec![b'x'; MIB]);
    let (mut peer, request) = backend.take();
    assert_eq!(request.body.len(), MIB);
    peer.answer_last(&"x".repeat(MIB));
    assert_eq!(client.response().body.len(), MIB);
    daemon
}

/// Asserts that the daemon holds at most `most` bytes more than `before`.
#[track_caller]
fn assert_holds(daemon: &Daemon, before: usize, most: usize) {
    let held = daemon.memory().saturating_sub(before);
    assert!(held <= most, "{held} bytes are held, of {most} at most");
}

#[test]
fn half_a_gigabyte_for_clients_that_do_not_read_is_left_to_the_backend() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let empty = daemon.memory();
    let mut open = Vec::new();
    for number in 0..4 {
        let mut client = daemon.connect();
        client.get("/much");
        let (mut peer, _) = backend.take();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 500000000\r\n\r\n");
        let sent = peer.send_until_full(MOMENT);
        assert!(sent < 250_000_000, "{sent} bytes went where nobody reads");
        assert_holds(&daemon, empty, MIB);
        daemon.wait_in_flight(number + 1);
        open.push((client, peer));
    }
}

#[test]
fn a_gigabyte_that_a_backend_does_not_take_is_left_to_the_client() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let empty = daemon.memory();
    let mut client = daemon.connect();
    client.send("POST /much HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n");
    let mut peer = backend.accept();
    peer.head();
    let sent = client.send_until_full(MOMENT);
    assert!(sent < 500_000_000, "{sent} bytes went where nobody reads");
    assert_holds(&daemon, empty, MIB);
}

#[test]
fn many_slow_uploads_hold_a_buffer_each_at_most() {
    const MANY: usize = 150;
    let backend = Backend::new();
    let daemon = before(&backend);
    let empty = daemon.memory();
    let open: Vec<(Peer, Peer)> = (0..MANY)
        .map(|_| {
            let mut client = daemon.connect();
            client.send("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
            client.send([b'x'; 40_000]);
            let mut peer = backend.accept();
            peer.head();
            // More than could be sent again: nothing of it need be held.
            peer.read(40_000);
            (client, peer)
        })
        .collect();
    daemon.wait_in_flight(MANY.try_into().unwrap());
    assert_holds(&daemon, empty, MANY * 8 * 1024);
    drop(open);
    daemon.wait_in_flight(0);
}

#[test]
fn connections_that_wait_hold_next_to_nothing() {
    const MANY: usize = 300;
    let backend = Backend::new();
    let daemon = before(&backend);
    let empty = daemon.memory();
    let mut peer = None;
    let _open: Vec<Peer> = (0..MANY)
        .map(|_| {
            let mut client = daemon.connect();
            client.get("/idle");
            let on = peer.get_or_insert_with(|| backend.accept());
            on.request();
            on.answer("");
            client.response();
            client
        })
        .collect();
    assert_holds(&daemon, empty, MANY * 4 * 1024);
}

#[test]
fn requests_sent_ahead_wait_with_the_client_and_are_answered_in_order() {
    const MANY: usize = 2_000;
    let backend = Backend::new();
    let daemon = before(&backend);
    let empty = daemon.memory();
    let mut client = daemon.connect();
    let mut writer = client.writer();
    let sender = thread::spawn(move || {
        for number in 0..MANY {
            writer.send(format!("GET /{number} HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(4_000)));
        }
    });
    let (mut peer, first) = backend.take();
    assert_eq!(first.head.line, "GET /0 HTTP/1.1");
    // Nothing of the others is served or read ahead, however many there are.
    peer.pause(MOMENT);
    daemon.wait_in_flight(1);
    assert_holds(&daemon, empty, 128 * 1024);
    let server = thread::spawn(move || {
        peer.answer("0");
        for number in 1..MANY {
            assert_eq!(peer.request().head.line, format!("GET /{number} HTTP/1.1"));
            peer.answer(&number.to_string());
        }
    });
    for number in 0..MANY {
        assert_eq!(client.response().text(), number.to_string());
    }
    sender.join().unwrap();
    server.join().unwrap();
    backend.expect_none();
    assert_holds(&daemon, empty, 256 * 1024);
}

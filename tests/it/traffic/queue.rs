//! Permits, and the queue before them.

use crate::backend::Backend;
use crate::peer::Peer;
use crate::traffic::door::{Daemon, Setup};

/// A daemon with one permit.
fn narrow(backend: &Backend) -> Setup {
    Setup::new().set("BACKEND_ADDRESS", &backend.address).set("MAX_CONCURRENT_REQUESTS", 1).set("QUEUE_TIMEOUT", "60s")
}

/// A client whose request holds the permit, and the backend's end of it.
fn holder(daemon: &Daemon, backend: &Backend) -> (Peer, Peer) {
    let mut client = daemon.connect();
    client.get("/holder");
    let (peer, request) = backend.take();
    assert_eq!(request.head.line, "GET /holder HTTP/1.1");
    (client, peer)
}

/// The next request that a backend gets, answered with its own path. Each comes on a
/// connection of its own.
#[track_caller]
fn serve_next(backend: &Backend) -> String {
    let (mut peer, request) = backend.take();
    let path = request.head.line.split(' ').nth(1).unwrap().to_owned();
    peer.answer_last(&path);
    path
}

#[test]
fn the_queue_is_served_in_the_order_of_coming_across_workers() {
    let backend = Backend::new();
    let daemon = narrow(&backend).set("WORKERS", 3).start();
    let (mut first, mut held) = holder(&daemon, &backend);
    let mut clients = Vec::new();
    for place in 0..8 {
        let mut client = daemon.connect();
        client.get(&format!("/{place}"));
        daemon.wait_queued(place + 1);
        clients.push(client);
    }
    backend.expect_none();
    held.answer_last("first");
    assert_eq!(first.response().text(), "first");
    for (place, client) in clients.iter_mut().enumerate() {
        assert_eq!(serve_next(&backend), format!("/{place}"));
        assert_eq!(client.response().text(), format!("/{place}"));
        assert!(daemon.record(&format!("/{place}"))["queue_us"].as_u64().unwrap() > 0);
    }
    daemon.wait_in_flight(0);
}

#[test]
fn no_more_requests_reach_backends_than_there_are_permits() {
    let backend = Backend::new();
    let daemon = narrow(&backend).set("MAX_CONCURRENT_REQUESTS", 3).start();
    let mut clients: Vec<Peer> = (0..3).map(|_| daemon.connect()).collect();
    let mut peers = Vec::new();
    for client in &mut clients {
        client.get("/");
        peers.push(backend.take().0);
    }
    let mut fourth = daemon.connect();
    fourth.get("/fourth");
    daemon.wait_queued(1);
    daemon.wait_in_flight(3);
    backend.expect_none();
    peers[1].answer_last("");
    clients[1].response();
    assert_eq!(serve_next(&backend), "/fourth");
    assert_eq!(fourth.response().text(), "/fourth");
}

#[test]
fn a_full_queue_turns_away_at_once() {
    let backend = Backend::new();
    let daemon = narrow(&backend).set("QUEUE_LIMIT", 1).start();
    let (mut first, mut held) = holder(&daemon, &backend);
    let mut second = daemon.connect();
    second.get("/second");
    daemon.wait_queued(1);
    let mut third = daemon.connect();
    third.get("/third");
    let refusal = third.response();
    refusal.assert_refusal(503, "queue_full");
    assert_eq!(refusal.head.field("Retry-After"), Some("1"));
    let record = daemon.record("/third");
    assert_eq!((&record["status"], &record["reason"]), (&503.into(), &"queue_full".into()));
    // The connection is kept, and the queue is as it was.
    third.get("/third-again");
    third.response().assert_refusal(503, "queue_full");
    daemon.wait_queued(1);
    held.answer_last("first");
    first.response();
    assert_eq!(serve_next(&backend), "/second");
    second.response();
    third.get("/third-at-last");
    assert_eq!(serve_next(&backend), "/third-at-last");
    assert_eq!(third.response().status(), 200);
}

#[test]
fn without_a_queue_the_second_request_is_turned_away() {
    let backend = Backend::new();
    let daemon = narrow(&backend).set("QUEUE_LIMIT", 0).start();
    let (_first, _held) = holder(&daemon, &backend);
    let mut second = daemon.connect();
    second.send_body("POST", "/second", b"body");
    second.response().assert_refusal(503, "queue_full");
}

#[test]
fn a_wait_ends_with_queue_timeout() {
    let backend = Backend::new();
    let daemon = narrow(&backend).set("QUEUE_TIMEOUT", "100ms").start();
    let (mut first, mut held) = holder(&daemon, &backend);
    let mut second = daemon.connect();
    second.get("/second");
    second.response().assert_refusal(503, "queue_timeout");
    let record = daemon.record("/second");
    assert_eq!(record["reason"], "queue_timeout");
    // A worker's clock counts whole milliseconds.
    assert!(record["queue_us"].as_u64().unwrap() >= 99_000);
    backend.expect_none();
    // Its place is gone, and the permit comes back as ever.
    held.answer_last("first");
    first.response();
    second.get("/again");
    assert_eq!(serve_next(&backend), "/again");
    assert_eq!(second.response().status(), 200);
}

#[test]
fn who_resets_leaves_the_queue_at_once() {
    let backend = Backend::new();
    let daemon = narrow(&backend).start();
    let (mut first, mut held) = holder(&daemon, &backend);
    let mut leaver = daemon.connect();
    leaver.get("/leaver");
    daemon.wait_queued(1);
    // One that has sent more than one request is noticed all the same.
    let mut busy = daemon.connect();
    busy.get("/busy");
    busy.get("/busy-next");
    daemon.wait_queued(2);
    let mut last = daemon.connect();
    last.get("/last");
    daemon.wait_queued(3);
    leaver.reset();
    daemon.wait_queued(2);
    busy.reset();
    daemon.wait_queued(1);
    assert_eq!(daemon.record("/leaver")["reason"], "client_left");
    held.answer_last("");
    first.response();
    assert_eq!(serve_next(&backend), "/last");
    last.response();
    backend.expect_none();
}

#[test]
fn who_ended_its_direction_keeps_its_place_and_gets_its_answer() {
    let backend = Backend::new();
    let daemon = narrow(&backend).start();
    let (mut first, mut held) = holder(&daemon, &backend);
    let mut half = daemon.connect();
    half.get("/half");
    half.half_close();
    daemon.wait_queued(1);
    let mut other = daemon.connect();
    other.get("/other");
    daemon.wait_queued(2);
    held.answer_last("");
    first.response();
    assert_eq!(serve_next(&backend), "/half");
    assert_eq!(half.response().text(), "/half");
    half.expect_end();
    assert_eq!(serve_next(&backend), "/other");
    other.response();
}

#[test]
fn a_permit_comes_back_however_an_exchange_ends() {
    let backend = Backend::new();
    let daemon = narrow(&backend).set("MAX_RETRIES", 0).set("RESPONSE_TIMEOUT", "1s").start();
    // A reset backend, a silent one, a malformed answer, a cut answer, a client that left.
    for round in 0..5 {
        let mut client = daemon.connect();
        client.get("/round");
        let (mut peer, _) = backend.take();
        match round {
            0 => {
                peer.reset();
                client.response().assert_refusal(502, "backend_reset");
            }
            1 => client.response().assert_refusal(504, "backend_response_timeout"),
            2 => {
                peer.send("nonsense\r\n\r\n");
                client.response().assert_refusal(502, "backend_malformed");
            }
            3 => {
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
                // While nothing went out it would be a 502.
                client.read_to(b"half");
                drop(peer);
                client.expect_reset();
            }
            _ => {
                client.reset();
                peer.expect_gone();
            }
        }
        daemon.wait_in_flight(0);
    }
    let mut client = daemon.connect();
    client.get("/after");
    assert_eq!(serve_next(&backend), "/after");
    assert_eq!(client.response().status(), 200);
}

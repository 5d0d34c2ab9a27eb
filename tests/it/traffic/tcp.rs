//! Connections relayed without being read.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::backend::{Backend, Refusing};
use crate::daemon::{DEADLINE, listener};
use crate::peer::{Peer, assert_same, noise};
use crate::traffic::door::{Daemon, Setup};

fn before(backends: &str) -> Setup {
    Setup::new().set("MODE", "tcp").set("BACKEND_ADDRESS", backends)
}

fn open(daemon: &Daemon, backend: &Backend) -> (Peer, Peer) {
    (daemon.connect(), backend.accept())
}

#[test]
fn either_side_may_speak_first_and_any_bytes_pass() {
    let backend = Backend::new();
    let daemon = before(&backend.address).start();
    let (mut client, mut peer) = open(&daemon, &backend);
    peer.send("220 ready\r\n");
    client.expect("220 ready\r\n");
    let all: Vec<u8> = (0..=255).collect();
    client.send(&all);
    assert_eq!(peer.read(256), all);
    client.send("GET / HTTP/9.9\n\n\0");
    peer.expect("GET / HTTP/9.9\n\n\0");
    peer.send(&all);
    assert_eq!(client.read(256), all);
    drop(client);
    peer.expect_end();
    drop(peer);
    let record = daemon.logged("the connection", |line| line["message"] == "connection");
    assert_eq!((&record["bytes_in"], &record["bytes_out"]), (&273.into(), &267.into()));
    assert_eq!(record["backend"], backend.address);
    assert_eq!(record["reason"], Value::Null);
    assert_eq!(record["status"], Value::Null);
}

#[test]
fn each_direction_ends_by_itself() {
    let backend = Backend::new();
    let daemon = before(&backend.address).start();
    let (mut client, mut peer) = open(&daemon, &backend);
    client.send("question");
    client.half_close();
    peer.expect("question");
    peer.expect_end();
    peer.send("answer");
    client.expect("answer");
    peer.half_close();
    client.expect_end();

    let (mut client, mut peer) = open(&daemon, &backend);
    peer.send("news");
    peer.half_close();
    client.expect("news");
    client.expect_end();
    client.send("thanks");
    peer.expect("thanks");
    client.half_close();
    peer.expect_end();
}

#[test]
fn much_passes_whole_both_ways_at_once() {
    let backend = Backend::new();
    let daemon = before(&backend.address).start();
    let (client, peer) = open(&daemon, &backend);
    let (up, down) = (noise(16 << 20, 21), noise(16 << 20, 22));
    let run = |mut end: Peer, send: Vec<u8>| {
        thread::spawn(move || {
            let mut writer = end.writer();
            let sender = thread::spawn(move || {
                writer.send(send);
                writer.half_close();
            });
            let got = end.read_to_end();
            sender.join().unwrap();
            got
        })
    };
    let (at_client, at_peer) = (run(client, up.clone()), run(peer, down.clone()));
    assert_same(&at_peer.join().unwrap(), &up);
    assert_same(&at_client.join().unwrap(), &down);
}

#[test]
fn a_reset_is_passed_on_as_a_reset() {
    let backend = Backend::new();
    let daemon = before(&backend.address).start();
    let (mut client, mut peer) = open(&daemon, &backend);
    client.send("x");
    peer.expect("x");
    client.reset();
    peer.expect_reset();
    assert_eq!(daemon.record_of("client_left")["message"], "connection");

    let (mut client, mut peer) = open(&daemon, &backend);
    client.send("x");
    peer.expect("x");
    peer.reset();
    client.expect_reset();
    assert_eq!(daemon.record_of("backend_reset")["message"], "connection");
    daemon.wait_in_flight(0);
}

#[test]
fn a_refused_dial_is_tried_elsewhere() {
    let refusing = Refusing::new();
    let backend = Backend::new();
    let daemon = before(&format!("{},{}", refusing.address, backend.address)).set("RETRY_BACKOFF", "1ms").start();
    let (mut client, mut peer) = open(&daemon, &backend);
    client.send("hello");
    peer.expect("hello");
    drop((client, peer));
    let record = daemon.logged("the connection", |line| line["message"] == "connection");
    assert_eq!((&record["attempts"], &record["backend"]), (&2.into(), &backend.address.as_str().into()));
}

#[test]
fn a_client_that_nobody_serves_is_reset() {
    let refusing = Refusing::new();
    let daemon = before(&refusing.address).set("MAX_RETRIES", 1).set("RETRY_BACKOFF", "1ms").start();
    let mut client = daemon.connect();
    assert!(client.expect_reset().is_empty());
    let record = daemon.record_of("backend_connect_refused");
    assert_eq!((&record["attempts"], &record["message"]), (&2.into(), &"connection".into()));
}

#[test]
fn connections_queue_for_permits_and_are_closed_beyond() {
    let backend = Backend::new();
    let daemon = before(&backend.address)
        .set("MAX_CONCURRENT_REQUESTS", 1)
        .set("QUEUE_LIMIT", 1)
        .set("QUEUE_TIMEOUT", "60s")
        .start();
    let (client, mut peer) = open(&daemon, &backend);
    let mut second = daemon.connect();
    second.send("second");
    daemon.wait_queued(1);
    let mut third = daemon.connect();
    assert!(third.expect_gone().is_empty());
    daemon.record_of("queue_full");
    backend.expect_none();
    // One that leaves while it waits frees its place.
    second.reset();
    daemon.wait_queued(0);
    let mut fourth = daemon.connect();
    fourth.send("fourth");
    daemon.wait_queued(1);
    // The permit is kept until both directions are over.
    drop(client);
    peer.expect_end();
    drop(peer);
    let mut peer = backend.accept();
    peer.expect("fourth");
    peer.send("served");
    fourth.expect("served");
}

#[test]
fn a_wait_for_a_permit_ends_in_time() {
    let backend = Backend::new();
    let daemon = before(&backend.address).set("MAX_CONCURRENT_REQUESTS", 1).set("QUEUE_TIMEOUT", "100ms").start();
    let (_client, _peer) = open(&daemon, &backend);
    let mut second = daemon.connect();
    assert!(second.expect_gone().is_empty());
    // A worker's clock counts whole milliseconds.
    assert!(daemon.record_of("queue_timeout")["queue_us"].as_u64().unwrap() >= 99_000);
    backend.expect_none();
}

#[test]
fn a_listener_of_a_route_is_relayed_beside_http() {
    let (web, database) = (Backend::new(), Backend::new());
    let (socket, address) = listener();
    let daemon = Setup::new()
        .set("BACKEND_ADDRESS", &web.address)
        .route("db.env", &format!("MODE=tcp\nMATCH_LISTENER=db\nBACKEND_ADDRESS={}\n", database.address))
        .listener("db", socket)
        .start();
    let mut client = Peer::connect(address);
    client.send("\0\0\0\x08raw");
    database.accept().expect("\0\0\0\x08raw");
    let mut client = daemon.connect();
    client.get("/");
    let (mut peer, _) = web.take();
    peer.answer("web");
    assert_eq!(client.response().text(), "web");
}

#[test]
fn unix_sockets_at_both_ends() {
    let setup = Setup::without_listener();
    let door = setup.path("tcp.sock");
    let backend = Backend::unix(setup.path("app.sock"));
    let socket = std::os::unix::net::UnixListener::bind(&door).unwrap();
    let daemon = setup.set("MODE", "tcp").set("BACKEND_ADDRESS", &backend.address).listener("http", socket).start();
    let mut client = Peer::connect_unix(&door);
    let mut peer = backend.accept();
    client.send("ping");
    client.half_close();
    peer.expect("ping");
    peer.expect_end();
    peer.send("pong");
    drop(peer);
    client.expect("pong");
    client.expect_end();
    daemon.logged("the connection", |line| line["message"] == "connection" && line["client"] == "unix:");
}

#[test]
fn a_client_that_stays_after_its_backend_has_closed_is_cut() {
    let backend = Backend::new();
    let daemon = before(&backend.address).set("MAX_CONCURRENT_REQUESTS", 1).set("BODY_TIMEOUT", "200ms").start();
    let (mut client, peer) = open(&daemon, &backend);
    drop(peer);
    // It is told, and does nothing about it: its permit is free again all the same.
    client.expect_end();
    let record = daemon.record_of("client_body_timeout");
    assert_eq!((&record["message"], &record["backend"]), (&"connection".into(), &backend.address.as_str().into()));
    daemon.wait_in_flight(0);
    open(&daemon, &backend);
}

#[test]
fn a_backend_that_takes_slowly_after_its_own_end_is_not_the_clients_fault() {
    let backend = Backend::new();
    let daemon = before(&backend.address).set("BODY_TIMEOUT", "200ms").start();
    let (mut client, mut peer) = open(&daemon, &backend);
    peer.half_close();
    client.expect_end();
    // All that fits on the way, so that it is the backend that is waited for.
    let sent = client.send_until_full(Duration::from_millis(500));
    // Another connection's end tells that the time has passed.
    let (mut other, gone) = open(&daemon, &backend);
    drop(gone);
    other.expect_end();
    daemon.record_of("client_body_timeout");
    client.half_close();
    assert_same(&peer.read_to_end(), &vec![b'x'; sent]);
}

#[test]
fn a_silent_connection_is_cut_after_stream_timeout() {
    let backend = Backend::new();
    let daemon = before(&backend.address).set("STREAM_TIMEOUT", "200ms").start();
    let (mut client, mut peer) = open(&daemon, &backend);
    client.send("x");
    peer.expect("x");
    client.expect_reset();
    peer.expect_gone();
    assert_eq!(daemon.record_of("backend_stream_timeout")["message"], "connection");
}

#[test]
fn what_a_unix_client_sent_before_it_closed_arrives() {
    let backend = Backend::new();
    let setup = Setup::without_listener().set("MODE", "tcp").set("BACKEND_ADDRESS", &backend.address);
    let door = setup.path("tcp.sock");
    let socket = std::os::unix::net::UnixListener::bind(&door).unwrap();
    let _daemon = setup.listener("http", socket).start();
    let mut client = Peer::connect_unix(&door);
    client.send("short");
    drop(client);
    assert_eq!(backend.accept().read_to_end(), b"short");
    // More than the backend takes for now waits in the socket of the one who has closed.
    let mut client = Peer::connect_unix(&door);
    let mut peer = backend.accept();
    let sent = client.send_until_full(Duration::from_millis(300));
    drop(client);
    assert_eq!(peer.read_to_end().len(), sent);
}

#[test]
fn a_steady_reader_lives_on_in_a_tunnel_too() {
    let backend = Backend::new();
    let daemon = before(&backend.address).set("STREAM_TIMEOUT", "2s").start();
    let (mut client, peer) = open(&daemon, &backend);
    client.shrink_to(64 * 1024);
    let mut flood = peer.writer();
    let sender = thread::spawn(move || while flood.try_send([b'x'; 65_536]).is_ok() {});
    let mut quiet = peer;
    // The kernel holds megabytes for it: within STREAM_TIMEOUT it takes too little of them
    // for the socket to turn writable.
    for _ in 0..90 {
        quiet.pause(Duration::from_millis(50));
        assert_ne!(client.sip(16_384).unwrap(), 0, "cut off");
    }
    client.reset();
    sender.join().unwrap();
}

#[test]
fn urgent_data_does_not_stall_what_is_spliced() {
    let backend = Backend::new();
    let daemon = before(&backend.address).start();
    let mut client = std::net::TcpStream::connect(daemon.address()).unwrap();
    let mut peer = backend.accept();
    let (before, after) = (noise(16 << 20, 1), noise(16 << 20, 2));
    let sender = thread::spawn({
        let (before, after) = (before.clone(), after.clone());
        move || {
            client.write_all(&before).unwrap();
            rustix::net::send(&client, b"!", rustix::net::SendFlags::OOB).unwrap();
            client.write_all(&after).unwrap();
        }
    });
    assert_same(&peer.read(before.len()), &before);
    assert_same(&peer.read(after.len()), &after);
    sender.join().unwrap();
}

/// Else each client would wait for what everybody before has found out.
#[test]
fn a_backend_that_takes_no_connections_is_held_to_be_down() {
    let refusing = Refusing::new();
    let daemon = before(&refusing.address).set("MAX_RETRIES", 0).start();
    let until = Instant::now() + DEADLINE;
    while daemon.status()["backends"][0]["state"] != "down" {
        assert!(Instant::now() < until, "it is never down");
        daemon.connect().expect_gone();
    }
    assert_eq!(daemon.status()["backends"][0]["reason"], "backend_connect_refused");
}

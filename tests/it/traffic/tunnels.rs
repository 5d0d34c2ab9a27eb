//! Protocols that take over a connection.

use std::thread;

use crate::backend::Backend;
use crate::peer::{Peer, assert_same, noise};
use crate::traffic::door::{Daemon, Setup};

const HANDSHAKE: &str = "GET /ws HTTP/1.1\r\nHost: door.test\r\nConnection: keep-alive, Upgrade\r\n\
     Upgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";
const SWITCHING: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: y\r\n\r\n";

fn before(backend: &Backend) -> Setup {
    Setup::new().set("BACKEND_ADDRESS", &backend.address)
}

/// An open tunnel: both ends.
fn open(daemon: &Daemon, backend: &Backend) -> (Peer, Peer) {
    let mut client = daemon.connect();
    client.send(HANDSHAKE);
    let mut peer = backend.accept();
    peer.head();
    peer.send(SWITCHING);
    assert_eq!(client.head().status(), 101);
    (client, peer)
}

#[test]
fn a_handshake_passes_with_what_was_sent_right_behind_it() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = daemon.connect();
    client.send(format!("{HANDSHAKE}early from the client"));
    let mut peer = backend.accept();
    let head = peer.head();
    assert_eq!(head.field("Connection"), Some("upgrade"));
    assert_eq!(head.field("Upgrade"), Some("websocket"));
    assert_eq!(head.field("Sec-WebSocket-Key"), Some("x"));
    // Whether it becomes a tunnel is not known yet.
    peer.expect_silence();
    peer.send(format!("{SWITCHING}early from the backend"));
    let head = client.head();
    assert_eq!(head.line, "HTTP/1.1 101 Switching Protocols");
    assert_eq!(head.field("Connection"), Some("upgrade"));
    assert_eq!(head.field("Upgrade"), Some("websocket"));
    assert_eq!(head.field("Sec-WebSocket-Accept"), Some("y"));
    client.expect("early from the backend");
    peer.expect("early from the client");
    for turn in 0..10 {
        client.send(format!("ping {turn}"));
        peer.expect(format!("ping {turn}"));
        peer.send(format!("pong {turn}"));
        client.expect(format!("pong {turn}"));
    }
    drop(client);
    peer.expect_end();
    drop(peer);
    let record = daemon.logged("the tunnel", |line| line["message"] == "tunnel");
    assert_eq!((&record["status"], &record["path"]), (&101.into(), &"/ws".into()));
}

#[test]
fn each_direction_of_a_tunnel_ends_by_itself() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let (mut client, mut peer) = open(&daemon, &backend);
    client.send("the question");
    client.half_close();
    peer.expect("the question");
    peer.expect_end();
    peer.send("the answer");
    client.expect("the answer");
    drop(peer);
    client.expect_end();

    let (mut client, mut peer) = open(&daemon, &backend);
    peer.send("the news");
    peer.half_close();
    client.expect("the news");
    client.expect_end();
    client.send("thanks");
    peer.expect("thanks");
    drop(client);
    peer.expect_end();
}

#[test]
fn a_tunnel_carries_much_both_ways_at_once() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let (client, peer) = open(&daemon, &backend);
    let (up, down) = (noise(8 << 20, 11), noise(8 << 20, 12));
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
    let record = daemon.logged("the tunnel", |line| line["message"] == "tunnel");
    assert_eq!(record["bytes_in"], up.len());
    assert_eq!(record["reason"], serde_json::Value::Null);
}

#[test]
fn a_reset_passes_through_a_tunnel_and_is_no_orderly_end() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let (client, mut peer) = open(&daemon, &backend);
    client.reset();
    peer.expect_gone();
    assert_eq!(daemon.record_of("client_left")["message"], "tunnel");
    let (mut client, peer) = open(&daemon, &backend);
    peer.reset();
    client.expect_gone();
    assert_eq!(daemon.record_of("backend_reset")["message"], "tunnel");
}

#[test]
fn a_refused_upgrade_stays_http() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = daemon.connect();
    client.send(HANDSHAKE);
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 426 Upgrade Required\r\nUpgrade: other\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nno");
    let response = client.response();
    assert_eq!((response.status(), response.text()), (426, "no"));
    assert_eq!(response.head.field("Connection"), None);
    client.get("/next");
    let request = peer.request();
    assert_eq!(request.head.line, "GET /next HTTP/1.1");
    assert_eq!(request.head.field("Upgrade"), None);
    peer.answer("next");
    assert_eq!(client.response().text(), "next");
    backend.expect_none();
}

#[test]
fn a_101_that_nobody_asked_for_is_malformed() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = daemon.connect();
    client.get("/");
    let (mut peer, _) = backend.take();
    peer.send(SWITCHING);
    client.response().assert_refusal(502, "backend_malformed");
    // Nor can HTTP/1.0 ask for it, nor anybody for HTTP/2 in the clear.
    for ask in [
        HANDSHAKE.replace("HTTP/1.1", "HTTP/1.0"),
        HANDSHAKE.replace("websocket", "h2c"),
        HANDSHAKE.replace("keep-alive, Upgrade", "keep-alive"),
    ] {
        let mut client = daemon.connect();
        client.send(ask);
        let (mut peer, request) = backend.take();
        assert_eq!((request.head.field("Upgrade"), request.head.field("Connection")), (None, None));
        peer.answer_last("");
        assert_eq!(client.response().status(), 200);
    }
}

#[test]
fn a_101_must_agree_to_what_was_offered() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let switch = |fields: &str| format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n");
    for answer in [
        switch(""),
        switch("Connection: upgrade\r\n"),
        switch("Connection: upgrade\r\nUpgrade:\r\n"),
        switch("Upgrade: websocket\r\n"),
        switch("Connection: close\r\nUpgrade: websocket\r\n"),
        switch("Connection: upgrade\r\nUpgrade: other\r\n"),
        switch("Connection: upgrade\r\nUpgrade: websocket/13\r\n"),
        switch("Connection: upgrade\r\nUpgrade: websocket, other\r\n"),
        switch("Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n"),
        switch("Connection: upgrade\r\nUpgrade: websocket\r\n").replace("HTTP/1.1", "HTTP/1.0"),
    ] {
        let mut client = daemon.connect();
        client.send(HANDSHAKE.replace("websocket", "websocket, h2c"));
        let mut peer = backend.accept();
        peer.head();
        peer.send(&answer);
        let response = client.response();
        assert_eq!(response.status(), 502, "{answer}");
        response.assert_refusal(502, "backend_malformed");
        peer.expect_gone();
        // The client's connection goes on as HTTP.
        client.get("/next");
        let (mut peer, _) = backend.take();
        peer.answer_last("next");
        assert_eq!(client.response().text(), "next");
    }
    backend.expect_none();
}

#[test]
fn of_several_offers_only_http2_in_the_clear_is_taken_out() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    for (offer, passed, agreed) in [
        ("websocket, h2c", "websocket", "WebSocket"),
        ("h2c, a/1.2,websocket", "a/1.2, websocket", "a/1.2"),
        ("a\r\nUpgrade: H2C , b\r\nUpgrade: c", "a, b, c", "c, a"),
    ] {
        let mut client = daemon.connect();
        client.send(HANDSHAKE.replace("websocket\r\n", &format!("{offer}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n")));
        let mut peer = backend.accept();
        let head = peer.head();
        assert_eq!(head.field("Upgrade"), Some(passed));
        assert_eq!(head.field("Connection"), Some("upgrade"));
        assert_eq!(head.field("HTTP2-Settings"), None);
        peer.send(format!("HTTP/1.1 101 On\r\nUpgrade: {agreed}\r\nConnection: keep-alive, Upgrade\r\n\r\n"));
        let head = client.head();
        assert_eq!((head.status(), head.field("Upgrade")), (101, Some(agreed)));
        assert_eq!(head.field("Connection"), Some("upgrade"));
        peer.send("on");
        client.expect("on");
    }
    // With nothing else on offer it is a request like any other, also one with a body.
    let mut client = daemon.connect();
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 2\r\n\r\nok",
    );
    let (mut peer, request) = backend.take();
    assert_eq!((request.head.field("Upgrade"), request.head.field("Connection")), (None, None));
    assert_eq!((request.head.field("HTTP2-Settings"), request.text()), (None, "ok"));
    peer.send(SWITCHING);
    client.response().assert_refusal(502, "backend_malformed");
}

#[test]
fn tunnels_have_a_limit_of_their_own() {
    let backend = Backend::new();
    let daemon = before(&backend).set("WORKERS", 1).set("MAX_TUNNELS", 1).start();
    let (mut client, mut peer) = open(&daemon, &backend);
    let mut second = daemon.connect();
    second.send(HANDSHAKE);
    let mut refused = backend.accept();
    refused.head();
    refused.send(SWITCHING);
    second.response().assert_refusal(503, "tunnel_limit");
    refused.expect_gone();
    assert_eq!(daemon.record_of("tunnel_limit")["status"], 503);
    // Requests go on, and so does the tunnel.
    let mut third = daemon.connect();
    third.get("/request");
    let (mut served, _) = backend.take();
    served.answer_last("");
    assert_eq!(third.response().status(), 200);
    client.send("still here");
    peer.expect("still here");
    // Its place is free again once it is over.
    drop((client, peer));
    daemon.logged("the tunnel's end", |line| line["message"] == "tunnel" && line["status"] == 101);
    open(&daemon, &backend);
}

#[test]
fn idle_tunnels_hold_no_permit() {
    let backend = Backend::new();
    let daemon = before(&backend).set("WORKERS", 1).set("MAX_CONCURRENT_REQUESTS", 1).set("QUEUE_LIMIT", 0).start();
    let mut tunnels: Vec<(Peer, Peer)> = (0..4)
        .map(|_| {
            let tunnel = open(&daemon, &backend);
            daemon.wait_in_flight(0);
            tunnel
        })
        .collect();
    let mut client = daemon.connect();
    client.get("/request");
    let (mut peer, _) = backend.take();
    peer.answer("served");
    assert_eq!(client.response().text(), "served");
    for (client, peer) in &mut tunnels {
        client.send("x");
        peer.expect("x");
    }
}

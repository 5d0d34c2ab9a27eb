//! Answers that come before their request is whole, and how connections end after them.

use std::io::ErrorKind;
use std::time::Instant;

use serde_json::Value;

use crate::backend::Backend;
use crate::daemon::DEADLINE;
use crate::peer::{Peer, assert_same, noise};
use crate::traffic::door::{Daemon, Setup};

const LARGE: usize = 6 * 1024 * 1024;

fn before(backend: &Backend) -> Setup {
    Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", &backend.address)
}

/// A client that has sent the first thousand bytes of `body` and read its whole answer.
fn early(daemon: &Daemon, backend: &Backend, path: &str, body: &[u8]) -> (Peer, Peer) {
    let mut client = daemon.connect();
    client.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
    client.send(&body[..1000]);
    let mut peer = backend.accept();
    peer.head();
    assert_same(&peer.read(1000), &body[..1000]);
    peer.answer("early");
    let response = client.response();
    assert_eq!(response.text(), "early");
    assert_eq!(response.head.field("Connection"), Some("close"));
    (client, peer)
}

#[test]
fn after_an_early_answer_the_upload_goes_on_for_a_backend_that_takes_it() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let body = noise(LARGE, 21);
    let (mut client, mut peer) = early(&daemon, &backend, "/upload", &body);
    // It has its answer and the end of it, and may send all the same.
    client.expect_end();
    let mut writer = client.writer();
    let rest = body[1000..].to_vec();
    let sender = std::thread::spawn(move || writer.send(rest));
    assert_same(&peer.read(LARGE - 1000), &body[1000..]);
    sender.join().unwrap();
    let record = daemon.record("/upload");
    assert_eq!((&record["reason"], &record["status"]), (&Value::Null, &200.into()));
    assert_eq!(record["bytes_in"], LARGE);
    // Both messages were whole, so the backend's connection serves the next client.
    let mut next = daemon.connect();
    next.get("/next");
    assert_eq!(peer.request().head.line, "GET /next HTTP/1.1");
    peer.answer("next");
    assert_eq!(next.response().text(), "next");
}

#[test]
fn after_an_early_answer_a_backend_that_ends_ends_the_request() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let body = noise(LARGE, 22);
    for reset in [false, true] {
        let path = format!("/ends-{reset}");
        let (mut client, peer) = early(&daemon, &backend, &path, &body);
        daemon.wait_in_flight(1);
        if reset {
            peer.reset();
        } else {
            drop(peer);
        }
        daemon.wait_in_flight(0);
        assert_eq!(daemon.record(&path)["reason"], Value::Null);
        // What still comes is taken, so that no reset overtakes an answer.
        client.send(&body[1000..]);
        client.expect_end();
    }
}

#[test]
fn after_an_early_answer_a_client_that_leaves_or_stalls_is_no_failure() {
    let backend = Backend::new();
    let daemon = before(&backend).set("BODY_TIMEOUT", "300ms").start();
    let body = noise(LARGE, 23);
    let (client, mut peer) = early(&daemon, &backend, "/leaves", &body);
    drop(client);
    assert!(peer.expect_gone().is_empty());
    assert_eq!(daemon.record("/leaves")["reason"], Value::Null);
    let (mut client, mut peer) = early(&daemon, &backend, "/stalls", &body);
    assert!(peer.expect_gone().is_empty());
    let record = daemon.record("/stalls");
    assert_eq!((&record["reason"], &record["status"]), (&Value::Null, &200.into()));
    client.expect_end();
    daemon.wait_in_flight(0);
}

#[test]
fn after_an_early_answer_a_backend_that_takes_nothing_holds_no_permit_for_long() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let body = vec![b'x'; 4 * LARGE];
    let (client, peer) = early(&daemon, &backend, "/untaken", &body);
    let mut writer = client.writer();
    let rest = body[1000..].to_vec();
    let sender = std::thread::spawn(move || writer.try_send(rest));
    assert_eq!(daemon.record("/untaken")["reason"], Value::Null);
    daemon.wait_in_flight(0);
    // What the backend does not take, we do: the client gets rid of its body.
    sender.join().unwrap().unwrap();
    drop(peer);
}

#[test]
fn what_a_backend_said_before_it_reset_is_the_answer() {
    let backend = Backend::new();
    let daemon = before(&backend).set("MAX_RETRIES", 0).start();
    for round in 0..10 {
        let path = format!("/too-large-{round}");
        let mut client = daemon.connect();
        client.send(format!("PUT {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n"));
        client.send(vec![b'x'; 200_000]);
        let mut peer = backend.accept();
        peer.head();
        peer.send("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 4\r\n\r\nless");
        // Bytes that it has not read make this a reset.
        drop(peer);
        client.send(vec![b'x'; LARGE - 200_000]);
        let response = client.response();
        assert_eq!((response.status(), response.text()), (413, "less"));
        client.expect_end();
        assert_eq!(daemon.record(&path)["status"], 413);
    }
}

#[test]
fn what_follows_a_refusal_is_read_only_so_far() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = daemon.connect();
    client.send("no request\r\n\r\n");
    client.response().assert_refusal(400, "bad_request");
    let until = Instant::now() + DEADLINE;
    let ended = loop {
        match client.try_send([b'x'; 65_536]) {
            Ok(()) => assert!(Instant::now() < until, "an endless request is read without an end"),
            Err(error) => break error.kind(),
        }
    };
    assert!(matches!(ended, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{ended}");
    backend.expect_none();
}

#[test]
fn an_answer_of_which_nothing_went_out_before_it_broke_off_is_502_and_asked_for_once() {
    let (backend, other) = (Backend::new(), Backend::new());
    let daemon = Setup::new()
        .set("WORKERS", 1)
        .set("BACKEND_ADDRESS", format!("{},{}", backend.address, other.address))
        .set("MAX_CONCURRENT_REQUESTS", 1)
        .start();
    let (length, chunks) = ("Content-Length: 10", "Transfer-Encoding: chunked");
    for (path, fields, part, reason) in [
        ("/length", length, "half", "backend_truncated"),
        ("/chunk", chunks, "4\r\nhalf\r\n", "backend_truncated"),
        ("/malformed", chunks, "4\r\nhalf\r\nX\r\n", "backend_malformed"),
    ] {
        let mut client = daemon.connect();
        client.get(path);
        let (mut peer, _) = backend.take();
        peer.send_end(format!("HTTP/1.1 206 Partial Content\r\nX-Seen: no\r\n{fields}\r\n\r\n{part}"));
        let response = client.response();
        response.assert_refusal(502, reason);
        assert_eq!(response.head.field("X-Seen"), None);
        other.expect_none();
        let record = daemon.record(path);
        assert_eq!((&record["reason"], &record["status"]), (&reason.into(), &502.into()));
        assert_eq!(record["attempts"], 1);
        // Nothing was cut, so the connection goes on.
        client.get("/next");
        let (mut peer, _) = other.take();
        peer.answer_last("next");
        assert_eq!(client.response().text(), "next");
    }
    assert!(daemon.lines(|line| line["message_id"] == "01fe3059773e65ccaf502089b4e57ba2").is_empty());
}

#[test]
fn an_answer_without_a_length_that_is_cut_short_ends_in_a_reset() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = daemon.connect();
    client.send("GET /cut HTTP/1.0\r\nHost: a\r\n\r\n");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
    let head = client.head();
    assert_eq!((head.field("Content-Length"), head.field("Transfer-Encoding")), (None, None));
    client.expect("half");
    drop(peer);
    assert!(client.expect_reset().is_empty());
    assert_eq!(daemon.record("/cut")["reason"], "backend_truncated");
}

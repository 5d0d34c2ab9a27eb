//! Attempts after a failed one.
//!
//! The rule (RFC 9110 §9.2.2): no byte of the request written: any method; bytes written
//! and none of a response seen: idempotent methods, if the body is still held; a byte of
//! a response seen: never.

use crate::backend::{Backend, Refusing, Silent};
use crate::peer::{Peer, assert_same, noise};
use crate::traffic::door::{Daemon, Setup};

/// Before these backends, with no time lost between attempts.
pub fn before(backends: &[&str]) -> Setup {
    Setup::new()
        .set("WORKERS", 1)
        .set("BACKEND_ADDRESS", backends.join(","))
        .set("RETRY_BACKOFF", "1ms")
        .set("RETRY_BACKOFF_MAX", "1ms")
}

pub fn attempts(daemon: &Daemon, path: &str) -> u64 {
    daemon.record(path)["attempts"].as_u64().unwrap()
}

#[test]
fn a_refused_backend_is_passed_over_whatever_the_method() {
    let (refusing, backend) = (Refusing::new(), Backend::new());
    let daemon = before(&[&refusing.address, &backend.address]).start();
    let body = noise(1 << 20, 31);
    for method in ["POST", "PATCH", "PUT"] {
        let client = daemon.connect();
        let mut writer = client.writer();
        let (sent, path) = (body.clone(), format!("/{method}"));
        let (name, target) = (method.to_owned(), path.clone());
        let sender = std::thread::spawn(move || writer.send_body(&name, &target, &sent));
        let mut client = client;
        let (mut peer, request) = backend.take();
        sender.join().unwrap();
        assert_eq!(request.head.line, format!("{method} {path} HTTP/1.1"));
        assert_same(&request.body, &body);
        peer.answer_last("taken");
        assert_eq!(client.response().text(), "taken");
        let record = daemon.record(&path);
        assert_eq!((&record["attempts"], &record["status"]), (&2.into(), &200.into()));
        assert_eq!(record["backend"], backend.address);
        assert_eq!(record["reason"], serde_json::Value::Null);
    }
}

#[test]
fn all_refused_is_502_with_its_reason_after_max_retries() {
    let refusing = [Refusing::new(), Refusing::new()];
    let daemon = before(&[&refusing[0].address, &refusing[1].address]).set("MAX_RETRIES", 2).start();
    let mut client = daemon.connect();
    client.send_body("POST", "/none", b"body");
    let response = client.response();
    response.assert_refusal(502, "backend_connect_refused");
    assert_eq!(
        response.head.field("Proxy-Status"),
        Some("doorward; error=connection_refused; details=\"backend_connect_refused\"")
    );
    let record = daemon.record("/none");
    assert_eq!((&record["attempts"], &record["status"]), (&3.into(), &502.into()));
    assert_eq!(record["reason"], "backend_connect_refused");
    assert_eq!(record["level"], "WARN");
}

#[test]
fn a_reset_before_the_response_is_tried_again_only_where_that_is_safe() {
    for method in ["GET", "HEAD", "OPTIONS", "DELETE", "PUT"] {
        let (first, second) = (Backend::new(), Backend::new());
        let daemon = before(&[&first.address, &second.address]).start();
        let mut client = daemon.connect();
        client.send_body(method, "/safe", b"body");
        let (peer, request) = first.take();
        assert_eq!(request.text(), "body");
        peer.reset();
        let (mut peer, request) = second.take();
        assert_eq!((request.head.line.as_str(), request.text()), (format!("{method} /safe HTTP/1.1").as_str(), "body"));
        peer.send("HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(client.head().status(), 204);
        assert_eq!(attempts(&daemon, "/safe"), 2);
    }
    for method in ["POST", "PATCH", "get", "LINK"] {
        let (first, second) = (Backend::new(), Backend::new());
        let daemon = before(&[&first.address, &second.address]).start();
        let mut client = daemon.connect();
        client.send_body(method, "/unsafe", b"body");
        let (peer, _) = first.take();
        peer.reset();
        client.response().assert_refusal(502, "backend_reset");
        second.expect_none();
        first.expect_none();
        assert_eq!(attempts(&daemon, "/unsafe"), 1);
    }
}

#[test]
fn a_backend_that_closes_without_an_answer_is_treated_likewise() {
    let (first, second) = (Backend::new(), Backend::new());
    let daemon = before(&[&first.address, &second.address]).start();
    let mut client = daemon.connect();
    client.get("/closed");
    drop(first.take());
    let (mut peer, _) = second.take();
    peer.answer_last("second");
    assert_eq!(client.response().text(), "second");
    // The turn is the first one's again.
    client.send_body("POST", "/post", b"");
    drop(first.take());
    client.response().assert_refusal(502, "backend_closed");
    second.expect_none();
}

#[test]
fn each_attempt_goes_to_another_backend() {
    let backends = [Backend::new(), Backend::new(), Backend::new()];
    let daemon = before(&backends.each_ref().map(|backend| backend.address.as_str())).start();
    let mut client = daemon.connect();
    client.get("/round");
    for backend in &backends[..2] {
        let (peer, _) = backend.take();
        peer.reset();
    }
    let (mut peer, _) = backends[2].take();
    peer.answer_last("third");
    assert_eq!(client.response().text(), "third");
    for backend in &backends {
        backend.expect_none();
    }
}

#[test]
fn the_only_backend_is_tried_again() {
    let backend = Backend::new();
    let daemon = before(&[&backend.address]).set("MAX_RETRIES", 2).start();
    let mut client = daemon.connect();
    client.get("/again");
    for _ in 0..3 {
        let (peer, _) = backend.take();
        peer.reset();
    }
    client.response().assert_refusal(502, "backend_reset");
    backend.expect_none();
    assert_eq!(attempts(&daemon, "/again"), 3);
}

#[test]
fn no_retries_means_one_attempt() {
    let (first, second) = (Backend::new(), Backend::new());
    let daemon = before(&[&first.address, &second.address]).set("MAX_RETRIES", 0).start();
    let mut client = daemon.connect();
    client.get("/once");
    let (peer, _) = first.take();
    peer.reset();
    client.response().assert_refusal(502, "backend_reset");
    second.expect_none();
}

#[test]
fn once_a_byte_of_a_response_was_seen_nothing_is_tried_again() {
    let (first, second) = (Backend::new(), Backend::new());
    let addresses = [first.address.as_str(), second.address.as_str()];
    for (part, reason) in [
        ("H", "backend_reset"),
        ("HTTP/1.1 200 OK\r\nContent-Le", "backend_reset"),
        ("HTTP/1.1 103 Early Hints\r\n\r\n", "backend_reset"),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP", "backend_reset"),
        ("nonsense\r\n\r\n", "backend_malformed"),
    ] {
        let daemon = before(&addresses).start();
        let mut client = daemon.connect();
        client.send("GET /seen HTTP/1.0\r\nHost: a\r\n\r\n");
        let (mut peer, _) = first.take();
        peer.send(part);
        peer.reset();
        client.response().assert_refusal(502, reason);
        second.expect_none();
        first.expect_none();
        assert_eq!(attempts(&daemon, "/seen"), 1, "{part:?}");
    }
}

#[test]
fn an_answer_cut_short_never_looks_whole() {
    let backend = Backend::new();
    let daemon = before(&[&backend.address]).start();
    let length = "Content-Length: 100\r\n\r\nhalf";
    let chunks = "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf";
    for (path, answer, tail, reset, reason) in [
        ("/length", length, "", false, "backend_truncated"),
        ("/length-reset", length, "", true, "backend_reset"),
        ("/chunks", chunks, "\r\n", false, "backend_truncated"),
        ("/chunks-reset", chunks, "\r\n", true, "backend_reset"),
        ("/no-last-line", chunks, "\r\n0\r\n", false, "backend_truncated"),
        ("/no-chunk", chunks, "X", false, "backend_malformed"),
        ("/until-reset", "\r\nhalf", "", true, "backend_reset"),
    ] {
        for version in ["1.1", "1.0"] {
            let path = format!("{path}-{version}");
            let mut client = daemon.connect();
            client.send(format!("GET {path} HTTP/{version}\r\nHost: a\r\n\r\n"));
            let (mut peer, _) = backend.take();
            peer.send(format!("HTTP/1.1 200 OK\r\n{answer}"));
            // The part that came reaches the client first.
            assert_eq!(client.head().status(), 200);
            client.read_to(b"half");
            peer.send(tail);
            if reset {
                peer.reset();
            } else {
                drop(peer);
            }
            let rest = client.expect_reset();
            assert!(!rest.ends_with(b"0\r\n\r\n"), "{path}: {:?}", String::from_utf8_lossy(&rest));
            let record = daemon.record(&path);
            assert_eq!((&record["reason"], &record["status"]), (&reason.into(), &200.into()), "{path}");
            assert_eq!((&record["attempts"], &record["level"]), (&1.into(), &"WARN".into()));
        }
    }
    let cuts = daemon.lines(|line| line["message_id"] == "01fe3059773e65ccaf502089b4e57ba2");
    assert!(!cuts.is_empty());
    backend.expect_none();
}

/// A connection that has served one request and is kept for the next.
pub fn used(daemon: &Daemon, backend: &Backend) -> (Peer, Peer) {
    let mut client = daemon.connect();
    client.get("/first");
    let (mut peer, _) = backend.take();
    peer.answer("first");
    client.response();
    (client, peer)
}

#[test]
fn a_kept_connection_that_dies_is_replaced_once_without_a_retry() {
    let backend = Backend::new();
    let daemon = before(&[&backend.address]).set("MAX_RETRIES", 0).start();
    for reset in [true, false] {
        let (mut client, mut peer) = used(&daemon, &backend);
        client.get("/stale");
        assert_eq!(peer.request().head.line, "GET /stale HTTP/1.1");
        if reset {
            peer.reset();
        } else {
            drop(peer);
        }
        let (mut peer, request) = backend.take();
        assert_eq!(request.head.line, "GET /stale HTTP/1.1");
        peer.answer_last("fresh");
        assert_eq!(client.response().text(), "fresh");
    }
    // Once only: the new connection's death counts.
    let (mut client, mut peer) = used(&daemon, &backend);
    client.get("/twice");
    peer.request();
    peer.reset();
    let (peer, _) = backend.take();
    peer.reset();
    client.response().assert_refusal(502, "backend_reset");
    backend.expect_none();
}

#[test]
fn a_kept_connection_that_dies_with_a_post_is_not_replaced() {
    let backend = Backend::new();
    let daemon = before(&[&backend.address]).start();
    let (mut client, mut peer) = used(&daemon, &backend);
    client.send_body("POST", "/post", b"body");
    peer.request();
    peer.reset();
    client.response().assert_refusal(502, "backend_reset");
    backend.expect_none();
}

#[test]
fn a_kept_connection_that_the_backend_has_closed_is_not_used() {
    let backend = Backend::new();
    let daemon = before(&[&backend.address]).start();
    let (mut client, mut peer) = used(&daemon, &backend);
    peer.half_close();
    // It closes its end once it has seen the backend's.
    peer.expect_end();
    client.send_body("POST", "/post", b"body");
    let (mut peer, request) = backend.take();
    assert_eq!(request.text(), "body");
    peer.answer_last("ok");
    assert_eq!(client.response().text(), "ok");
    assert_eq!(attempts(&daemon, "/post"), 1);
}

#[test]
fn a_body_held_is_sent_again_whole_and_goes_on_from_there() {
    for chunked in [false, true] {
        let (first, second) = (Backend::new(), Backend::new());
        let daemon = before(&[&first.address, &second.address]).start();
        let mut client = daemon.connect();
        let framing = if chunked { "Transfer-Encoding: chunked" } else { "Content-Length: 8000" };
        client.send(format!("PUT /held HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n"));
        let (one, two) = ([b'1'; 4000], [b'2'; 4000]);
        let send = |client: &mut Peer, part: &[u8]| if chunked { client.send_chunk(part) } else { client.send(part) };
        send(&mut client, &one);
        let mut peer = first.accept();
        peer.head();
        let part = if chunked { peer.chunked(4000) } else { peer.read(4000) };
        assert_same(&part, &one);
        peer.reset();
        let mut peer = second.accept();
        peer.head();
        let part = if chunked { peer.chunked(4000) } else { peer.read(4000) };
        assert_same(&part, &one);
        send(&mut client, &two);
        let part = if chunked { peer.chunked(4000) } else { peer.read(4000) };
        assert_same(&part, &two);
        if chunked {
            client.send("0\r\n\r\n");
            assert_eq!(peer.chunk(), b"");
        }
        peer.answer_last("whole");
        assert_eq!(client.response().text(), "whole");
        assert_eq!(attempts(&daemon, "/held"), 2);
    }
}

#[test]
fn a_body_no_longer_held_is_not_sent_again() {
    let (first, second) = (Backend::new(), Backend::new());
    let daemon = before(&[&first.address, &second.address]).start();
    let mut client = daemon.connect();
    let body = noise(1 << 20, 32);
    client.send(format!("PUT /long HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len() + 1));
    client.send(&body);
    let mut peer = first.accept();
    peer.head();
    assert_same(&peer.read(body.len()), &body);
    peer.reset();
    client.response().assert_refusal(502, "backend_reset");
    second.expect_none();
    assert_eq!(attempts(&daemon, "/long"), 1);
    assert_eq!(daemon.status()["retries_without_body"], 1);
}

#[test]
fn a_backend_that_does_not_take_the_connection_is_passed_over_or_504() {
    let (silent, backend) = (Silent::new(), Backend::new());
    let setup = || before(&[&silent.address]).set("CONNECT_TIMEOUT", "100ms");
    let daemon = setup().set("BACKEND_ADDRESS", format!("{},{}", silent.address, backend.address)).start();
    let mut client = daemon.connect();
    client.send_body("POST", "/elsewhere", b"body");
    let (mut peer, request) = backend.take();
    assert_eq!(request.text(), "body");
    peer.answer("taken");
    assert_eq!(client.response().text(), "taken");
    assert_eq!(attempts(&daemon, "/elsewhere"), 2);

    let daemon = setup().set("MAX_RETRIES", 1).start();
    let mut client = daemon.connect();
    client.get("/nowhere");
    client.response().assert_refusal(504, "backend_connect_timeout");
    assert_eq!(attempts(&daemon, "/nowhere"), 2);
}

#[test]
fn a_backend_that_does_not_answer_is_504_and_left_alone() {
    let (first, second) = (Backend::new(), Backend::new());
    let daemon = before(&[&first.address, &second.address])
        .set("RESPONSE_TIMEOUT", "100ms")
        .set("RETRY_ON", "timeout")
        .set("MAX_RETRIES", 1)
        .start();
    let mut client = daemon.connect();
    client.send_body("POST", "/post", b"body");
    let (mut peer, _) = first.take();
    client.response().assert_refusal(504, "backend_response_timeout");
    peer.expect_gone();
    second.expect_none();
    // A GET is tried on both.
    client.get("/get");
    let (mut one, _) = second.take();
    let (mut two, _) = first.take();
    client.response().assert_refusal(504, "backend_response_timeout");
    one.expect_gone();
    two.expect_gone();
    assert_eq!(attempts(&daemon, "/get"), 2);
}

//! What `RETRY_ON` has tried again, and what becomes of answers that are not wanted.

use std::time::{Duration, Instant};

use crate::backend::{Backend, Refusing, Silent};
use crate::peer::{Peer, assert_same, noise};
use crate::traffic::door::Setup;
use crate::traffic::retries::{attempts, before};

/// Before these backends, with all that can be tried again listed.
fn retrying(backends: &[&Backend]) -> Setup {
    let addresses: Vec<&str> = backends.iter().map(|backend| backend.address.as_str()).collect();
    before(&addresses).set("RETRY_ON", "connect,reset,502,503,504,timeout")
}

/// Answers with a failure of this status, which says who it is of.
fn fail(peer: &mut Peer, status: u16, body: &str) {
    let length = body.len();
    peer.send(format!("HTTP/1.1 {status} Failed\r\nX-Of: {body}\r\nContent-Length: {length}\r\n\r\n{body}"));
}

#[test]
fn an_answer_of_a_listed_status_is_dropped_and_another_backend_asked() {
    let (first, second) = (Backend::new(), Backend::new());
    for status in [502, 503, 504] {
        let daemon = retrying(&[&first, &second]).start();
        let mut client = daemon.connect();
        client.send_body("PUT", "/listed", b"body");
        let (mut peer, request) = first.take();
        assert_eq!(request.text(), "body");
        fail(&mut peer, status, "first");
        let (mut peer, request) = second.take();
        assert_eq!(request.text(), "body");
        peer.answer_last("second");
        let response = client.response();
        assert_eq!((response.text(), response.head.field("X-Of")), ("second", None), "{status}");
        let record = daemon.record("/listed");
        assert_eq!((&record["attempts"], &record["status"]), (&2.into(), &200.into()));
        assert_eq!((&record["backend"], &record["reason"]), (&second.address.as_str().into(), &().into()));
    }
}

#[test]
fn an_answer_goes_on_as_it_is_where_nothing_may_be_tried_again() {
    let (first, second) = (Backend::new(), Backend::new());
    let cases = [
        ("GET", 500, "connect,reset,502,503,504,timeout", 3),
        ("GET", 429, "connect,reset,502,503,504,timeout", 3),
        ("GET", 503, "connect,reset,502,504,timeout", 3),
        ("GET", 503, "503", 0),
        ("POST", 503, "503", 3),
        ("PATCH", 504, "504", 3),
    ];
    for (method, status, on, retries) in cases {
        let daemon = retrying(&[&first, &second]).set("RETRY_ON", on).set("MAX_RETRIES", retries).start();
        let mut client = daemon.connect();
        client.send_body(method, "/as-is", b"body");
        let (mut peer, _) = first.take();
        fail(&mut peer, status, "first");
        let response = client.response();
        assert_eq!((response.status(), response.text()), (status, "first"));
        assert_eq!(response.head.field("Proxy-Status"), None);
        second.expect_none();
        assert_eq!(attempts(&daemon, "/as-is"), 1, "{method} {status} {on}");
    }
}

#[test]
fn nothing_listed_means_nothing_tried_again_but_a_dead_kept_connection_is_replaced() {
    let (refusing, backend) = (Refusing::new(), Backend::new());
    let daemon = before(&[&refusing.address, &backend.address]).set("RETRY_ON", "503").start();
    let mut client = daemon.connect();
    client.get("/refused");
    client.response().assert_refusal(502, "backend_connect_refused");
    client.get("/kept");
    let (mut peer, _) = backend.take();
    peer.answer("kept");
    client.response();

    let daemon = before(&[&backend.address]).set("RETRY_ON", "connect").start();
    let (mut client, mut peer) = crate::traffic::retries::used(&daemon, &backend);
    client.get("/stale");
    peer.request();
    peer.reset();
    let (peer, _) = backend.take();
    peer.reset();
    client.response().assert_refusal(502, "backend_reset");
    backend.expect_none();
}

#[test]
fn when_attempts_end_the_last_answer_goes_to_the_client() {
    let backends = [Backend::new(), Backend::new(), Backend::new()];
    let daemon = retrying(&backends.each_ref()).set("MAX_RETRIES", 2).start();
    let mut client = daemon.connect();
    client.get("/ends");
    for (backend, name) in backends.iter().zip(["first", "second"]) {
        let (mut peer, _) = backend.take();
        fail(&mut peer, 503, name);
    }
    let (mut peer, _) = backends[2].take();
    peer.send("HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nX-Of: third\r\nContent-Length: 5\r\n\r\nthird");
    let response = client.response();
    assert_eq!((response.status(), response.text()), (503, "third"));
    assert_eq!((response.head.field("Retry-After"), response.head.field("X-Of")), (Some("7"), Some("third")));
    assert_eq!(response.head.field("Proxy-Status"), None);
    let record = daemon.record("/ends");
    assert_eq!((&record["attempts"], &record["reason"]), (&3.into(), &().into()));
    // The connection goes on.
    client.get("/next");
    backends[0].take().0.answer_last("next");
    assert_eq!(client.response().text(), "next");
}

#[test]
fn an_answer_is_better_than_a_failure_that_came_after_it() {
    let backend = Backend::new();
    let body = noise(200_000, 41);
    for (failing, refused) in [(Backend::new(), false), (Backend::new(), true)] {
        let address = failing.address.clone();
        let daemon = retrying(&[&backend, &failing]).set("MAX_RETRIES", 1).start();
        let failing = (!refused).then_some(failing);
        let mut client = daemon.connect();
        client.send_body("PUT", "/better", b"body");
        let (mut peer, _) = backend.take();
        peer.send(format!("HTTP/1.1 503 Busy\r\nContent-Length: {}\r\n\r\n", body.len()));
        peer.send(&body[..1000]);
        if let Some(failing) = failing {
            failing.take().0.reset();
        }
        peer.send(&body[1000..]);
        let response = client.response();
        assert_eq!(response.status(), 503);
        assert_same(&response.body, &body);
        let record = daemon.record("/better");
        assert_eq!((&record["attempts"], &record["reason"]), (&2.into(), &().into()), "{address}");
        assert_eq!(record["backend"], backend.address);
    }
}

#[test]
fn a_body_that_was_read_whole_costs_no_client_its_connection_however_attempts_end() {
    let (first, refusing) = (Backend::new(), Refusing::new());
    let daemon =
        before(&[&first.address, &refusing.address]).set("RETRY_ON", "reset,503").set("MAX_RETRIES", 1).start();
    let mut client = daemon.connect();
    // An answer that was kept, and none at all.
    client.send_body("PUT", "/kept", b"body");
    let (mut peer, _) = first.take();
    fail(&mut peer, 503, "kept");
    let response = client.response();
    assert_eq!((response.text(), response.head.field("Connection")), ("kept", None));
    drop(peer);
    client.send_body("PUT", "/none", b"body");
    let (peer, _) = first.take();
    peer.reset();
    let response = client.response();
    assert_eq!((response.status(), response.head.field("Connection")), (502, None));
    client.get("/next");
    let (mut peer, _) = first.take();
    peer.answer("next");
    assert_eq!(client.response().text(), "next");
}

#[test]
fn what_was_spliced_counts_once_though_its_answer_was_held_back() {
    let backend = Backend::new();
    let daemon = before(&[&backend.address]).set("RETRY_ON", "503").start();
    let body = noise(4 << 20, 1);
    let mut client = daemon.connect();
    let sender = std::thread::spawn({
        let (mut writer, body) = (client.writer(), body.clone());
        move || {
            writer.try_send(
                [
                    format!("PUT /large HTTP/1.1\r\nHost: door.test\r\nContent-Length: {}\r\n\r\n", body.len())
                        .as_bytes(),
                    &body,
                ]
                .concat(),
            )
        }
    });
    let (mut peer, request) = backend.take();
    assert_same(&request.body, &body);
    fail(&mut peer, 503, "large");
    assert_eq!(client.response().text(), "large");
    sender.join().unwrap().unwrap();
    daemon.wait_in_flight(0);
    let spliced = daemon.status()["bytes_spliced"].as_u64().unwrap();
    assert!(spliced <= body.len() as u64, "{spliced} of {}", body.len());
}

#[test]
fn a_short_answer_goes_on_whole_while_its_connection_serves_others() {
    let (backend, refusing) = (Backend::new(), Refusing::new());
    let daemon = before(&[&backend.address, &refusing.address])
        .set("RETRY_ON", "503")
        .set("MAX_RETRIES", 1)
        .set("REMOVE_RESPONSE_HEADERS", "X-Secret")
        .start();
    let mut client = daemon.connect();
    client.send("GET /short HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 503 Busy\r\nX-Of: first\r\nTransfer-Encoding: chunked\r\n\r\n");
    peer.send("5\r\nshort\r\n0\r\nX-Sum: 5\r\nX-Secret: 7\r\n\r\n");
    let head = client.head();
    assert_eq!((head.status(), head.field("X-Of")), (503, Some("first")));
    client.expect("5\r\nshort\r\n0\r\nX-Sum: 5\r\n\r\n");
    let record = daemon.record("/short");
    assert_eq!((&record["attempts"], &record["reason"]), (&2.into(), &().into()));
    assert_eq!(record["backend"], backend.address);
    client.get("/next");
    assert_eq!(peer.request().head.line, "GET /next HTTP/1.1");
    peer.answer("next");
    assert_eq!(client.response().text(), "next");
}

#[test]
fn the_connection_of_an_answer_that_was_dropped_serves_on_if_the_answer_was_short() {
    let (first, second) = (Backend::new(), Backend::new());
    let daemon = retrying(&[&first, &second]).start();
    let mut client = daemon.connect();
    for endless in [false, true] {
        client.get("/dropped");
        let (mut peer, _) = first.take();
        if endless {
            peer.send("HTTP/1.1 503 Busy\r\nContent-Length: 1000000\r\n\r\nnot all of it");
        } else {
            fail(&mut peer, 503, "first");
        }
        let (mut other, _) = second.take();
        other.answer_last("second");
        assert_eq!(client.response().text(), "second");
        if endless {
            peer.expect_gone();
            continue;
        }
        // The turn is the first one's again.
        client.get("/kept");
        assert_eq!(peer.request().head.line, "GET /kept HTTP/1.1");
        peer.answer_last("kept");
        assert_eq!(client.response().text(), "kept");
        client.get("/even");
        second.take().0.answer_last("even");
        client.response();
    }
}

#[test]
fn an_answer_that_was_dropped_is_not_kept_beside_a_tunnel() {
    let (first, second) = (Backend::new(), Backend::new());
    let daemon = retrying(&[&first, &second]).start();
    let mut client = daemon.connect();
    client.send("GET /chat HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    let (mut dropped, _) = first.take();
    dropped.send("HTTP/1.1 503 Busy\r\nContent-Length: 1000000\r\n\r\nnot all of it");
    let (mut peer, _) = second.take();
    peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(client.head().status(), 101);
    dropped.expect_gone();
    client.send("ping");
    peer.expect("ping");
}

#[test]
fn after_an_interim_response_the_answer_is_the_last_word() {
    let (first, second) = (Backend::new(), Backend::new());
    let daemon = retrying(&[&first, &second]).start();
    let mut client = daemon.connect();
    client.get("/hints");
    let (mut peer, _) = first.take();
    peer.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    assert_eq!(client.head().status(), 103);
    fail(&mut peer, 503, "first");
    assert_eq!(client.response().text(), "first");
    second.expect_none();
}

#[test]
fn a_client_that_leaves_while_an_answer_is_kept_ends_the_request() {
    let (first, second) = (Backend::new(), Backend::new());
    let daemon = retrying(&[&first, &second]).set("RETRY_BACKOFF", "24h").set("RETRY_BACKOFF_MAX", "24h").start();
    let mut client = daemon.connect();
    client.get("/leaves");
    let (mut peer, _) = first.take();
    fail(&mut peer, 503, "first");
    daemon.wait("a retry is under way", |status| status["retries"] == 1);
    client.expect_silence();
    client.reset();
    let record = daemon.record("/leaves");
    assert_eq!((&record["reason"], &record["attempts"]), (&"client_left".into(), &1.into()));
    second.expect_none();
    daemon.wait_in_flight(0);
}

#[test]
fn what_a_backend_asks_for_is_waited_for_up_to_the_cap() {
    let (first, second) = (Backend::new(), Backend::new());
    let busy = |after: &str| format!("HTTP/1.1 503 Busy\r\nRetry-After: {after}\r\nContent-Length: 0\r\n\r\n");
    let daemon = retrying(&[&first, &second]).set("RETRY_BACKOFF_MAX", "20s").start();
    let mut client = daemon.connect();
    client.get("/asked");
    let (mut peer, _) = first.take();
    let since = Instant::now();
    peer.send(busy("1"));
    let (mut peer, _) = second.take();
    // A worker's clock counts whole milliseconds.
    assert!(since.elapsed() >= Duration::from_millis(999), "{:?}", since.elapsed());
    peer.answer_last("second");
    assert_eq!(client.response().text(), "second");

    // Minutes are not waited for, nor what can't be read.
    let daemon = retrying(&[&first, &second]).start();
    for after in ["3600", "Fri, 31 Dec 9999 23:59:59 GMT", "Sun, 06 Nov 1994 08:49:37 GMT", "soon", "-1", ""] {
        let mut client = daemon.connect();
        client.get("/capped");
        let (mut peer, _) = first.take();
        peer.send(busy(after));
        drop(peer);
        second.take().0.answer_last("second");
        assert_eq!(client.response().text(), "second", "{after}");
    }
}

#[test]
fn an_attempt_that_takes_too_long_is_made_elsewhere_if_that_is_listed() {
    let (first, second) = (Backend::new(), Backend::new());
    let daemon = retrying(&[&first, &second]).set("ATTEMPT_TIMEOUT", "1s").start();
    let mut client = daemon.connect();
    client.send_body("PUT", "/slow", b"body");
    let (mut slow, _) = first.take();
    let (mut peer, request) = second.take();
    assert_eq!(request.text(), "body");
    peer.answer_last("second");
    assert_eq!(client.response().text(), "second");
    slow.expect_gone();
    assert_eq!(attempts(&daemon, "/slow"), 2);
    // Not what a backend may be at work on.
    client.send_body("POST", "/post", b"body");
    let (mut slow, _) = first.take();
    client.response().assert_refusal(504, "backend_attempt_timeout");
    slow.expect_gone();

    let silent = Silent::new();
    let daemon = before(&[&silent.address]).set("ATTEMPT_TIMEOUT", "100ms").set("MAX_RETRIES", 0).start();
    let mut client = daemon.connect();
    client.get("/nowhere");
    client.response().assert_refusal(504, "backend_connect_timeout");
}

#[test]
fn the_time_that_a_client_takes_is_not_the_attempts() {
    let backend = Backend::new();
    let daemon = retrying(&[&backend]).set("ATTEMPT_TIMEOUT", "1s").set("MAX_RETRIES", 0).start();
    let mut client = daemon.connect();
    client.send("POST /uploads HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo");
    let mut peer = backend.accept();
    peer.head();
    assert_eq!(peer.read(2), b"bo");
    peer.pause(Duration::from_millis(1_300));
    client.send("dy");
    assert_eq!(peer.read(2), b"dy");
    peer.answer_last("taken");
    assert_eq!(client.response().text(), "taken");
    // What is left after that is the backend's again.
    client.get("/silent");
    let (mut peer, _) = backend.take();
    client.response().assert_refusal(504, "backend_attempt_timeout");
    peer.expect_gone();
}

#[test]
fn a_post_is_sent_twice_only_where_that_was_asked_for() {
    let (first, second) = (Backend::new(), Backend::new());
    let daemon = retrying(&[&first, &second]).set("RETRY_NON_IDEMPOTENT", "on").start();
    for reset in [false, true] {
        let mut client = daemon.connect();
        client.send_body("POST", "/twice", b"body");
        let (mut peer, _) = first.take();
        if reset {
            peer.reset();
        } else {
            fail(&mut peer, 503, "first");
            drop(peer);
        }
        let (mut peer, request) = second.take();
        assert_eq!((request.head.line.as_str(), request.text()), ("POST /twice HTTP/1.1", "body"));
        peer.answer_last("second");
        assert_eq!(client.response().text(), "second");
    }
}

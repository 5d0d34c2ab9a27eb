//! Requests about the way itself: OPTIONS, TRACE, Max-Forwards (RFC 9110 §7.6.2, §9.3).

use crate::backend::Backend;
use crate::traffic::door::{Daemon, Setup};

const ALLOW: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

fn before(backend: &Backend) -> Daemon {
    Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", &backend.address).start()
}

#[test]
fn an_options_request_that_may_go_no_further_is_answered_here() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    for (turn, target) in ["*", "/x", "http://door.test"].into_iter().enumerate() {
        client.send(format!("OPTIONS {target} HTTP/1.1\r\nHost: door.test\r\nmax-forwards: 0\r\n\r\n"));
        let response = client.response();
        assert_eq!(response.head.line, "HTTP/1.1 200 OK");
        assert_eq!(response.head.field("Allow"), Some(ALLOW));
        assert_eq!(response.head.field("Content-Length"), Some("0"));
        assert!(response.head.field("Date").is_some() && response.head.field("X-Request-Id").is_some());
        // The connection goes on.
        assert_eq!(response.head.field("Connection"), None, "{turn}");
    }
    client.send("OPTIONS /body HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\nContent-Length: 5\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status(), response.head.field("Connection")), (200, Some("close")));
    backend.expect_none();
    let record = daemon.record("/x");
    assert_eq!((&record["status"], &record["backend"]), (&200.into(), &serde_json::Value::Null));
    assert_eq!(record["reason"], serde_json::Value::Null);
}

#[test]
fn what_may_go_further_goes_with_one_less_and_other_methods_do_not_count() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    for (method, given, received) in [
        ("OPTIONS", "1", Some("0")),
        ("OPTIONS", "10", Some("9")),
        ("OPTIONS", "18446744073709551615", Some("18446744073709551614")),
        ("GET", "0", Some("0")),
        ("POST", "7", Some("7")),
        ("GET", "junk", Some("junk")),
    ] {
        client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\nMax-Forwards: {given}\r\n\r\n"));
        let (mut peer, request) = backend.take();
        assert_eq!(request.head.field("Max-Forwards"), received, "{method} {given}");
        peer.answer_last("");
        assert_eq!(client.response().status(), 200);
    }
    // It can't be taken off on the way.
    client.send("OPTIONS / HTTP/1.1\r\nHost: a\r\nConnection: Max-Forwards\r\nMax-Forwards: 3\r\n\r\n");
    let (mut peer, request) = backend.take();
    assert_eq!(request.head.field("Max-Forwards"), Some("2"));
    peer.answer_last("");
    client.response();
    for bad in ["x", "-1", "1, 2", "", "18446744073709551616", "1\r\nMax-Forwards: 1"] {
        let mut client = daemon.connect();
        client.send(format!("OPTIONS / HTTP/1.1\r\nHost: a\r\nMax-Forwards: {bad}\r\n\r\n"));
        client.response().assert_refusal(400, "bad_request");
    }
    backend.expect_none();
}

#[test]
fn trace_is_refused_with_what_is_allowed() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    for fields in ["", "Max-Forwards: 0\r\n", "Max-Forwards: 5\r\n"] {
        client.send(format!("TRACE /t HTTP/1.1\r\nHost: a\r\nCookie: secret\r\n{fields}\r\n"));
        let response = client.response();
        response.assert_refusal(405, "method_refused");
        assert_eq!(response.head.field("Allow"), Some(ALLOW));
        assert!(!response.text().contains("secret"));
        assert_eq!(response.head.field("Connection"), None);
    }
    let mut other = daemon.connect();
    other.send("CONNECT door.test:443 HTTP/1.1\r\nHost: door.test:443\r\n\r\n");
    let response = other.response();
    response.assert_refusal(405, "method_refused");
    assert_eq!(response.head.field("Allow"), Some(ALLOW));
    other.expect_end();
    backend.expect_none();
    assert_eq!(daemon.record("/t")["method"], "TRACE");
}

#[test]
fn an_asterisk_is_for_options_alone_and_an_absolute_form_without_path_means_it() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    for (asked, line) in [
        ("OPTIONS *", "OPTIONS *"),
        ("OPTIONS http://door.test", "OPTIONS *"),
        ("OPTIONS http://door.test:81", "OPTIONS *"),
        ("OPTIONS http://door.test/", "OPTIONS /"),
        ("OPTIONS http://door.test?q", "OPTIONS /?q"),
        ("GET http://door.test", "GET /"),
        ("GET http://door.test?q=/", "GET /?q=/"),
        ("GET http://door.test/*", "GET /*"),
    ] {
        client.send(format!("{asked} HTTP/1.1\r\nHost: door.test\r\n\r\n"));
        let (mut peer, request) = backend.take();
        assert_eq!(request.head.line, format!("{line} HTTP/1.1"));
        peer.answer_last("");
        assert_eq!(client.response().status(), 200);
    }
    for line in ["GET *", "POST *", "TRACE *", "OPTIONS *x", "OPTIONS *?q", "OPTIONS http:*"] {
        let mut client = daemon.connect();
        client.send(format!("{line} HTTP/1.1\r\nHost: door.test\r\n\r\n"));
        client.response().assert_refusal(400, "bad_request");
        client.expect_end();
    }
    backend.expect_none();
}

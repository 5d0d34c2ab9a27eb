//! What neither side may send: refused, and never passed on in a form that another
//! reader could understand differently (RFC 9112 §11.2).

use std::thread;

use crate::backend::Backend;
use crate::peer::Peer;
use crate::traffic::door::{Daemon, Setup};

fn before(backend: &Backend) -> Daemon {
    Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", &backend.address).start()
}

/// Sends `bytes` on a connection of its own and reads the refusal, which ends it.
#[track_caller]
fn refused(daemon: &Daemon, bytes: &[u8], status: u16, reason: &str) {
    let mut client = daemon.connect();
    client.send(bytes);
    let response = client.response();
    assert_eq!(response.status(), status, "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(300)]));
    response.assert_refusal(status, reason);
    assert_eq!(response.head.field("Connection"), Some("close"));
    client.expect_end();
}

/// As [`refused`], and no backend hears of it.
#[track_caller]
fn refused_here(daemon: &Daemon, backend: &Backend, bytes: impl AsRef<[u8]>, status: u16, reason: &str) {
    refused(daemon, bytes.as_ref(), status, reason);
    backend.expect_none();
}

#[test]
fn framing_that_can_be_read_in_two_ways_is_refused() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: chunked\r\nContent-Length: 0",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 5",
        "Content-Length: 5,6",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length: 5;",
        "Content-Length:",
        "Content-Length: \"5\"",
        "Content-Length: 18446744073709551616",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: chunked\x00",
        "Transfer-Encoding\t: chunked",
        "Transfer-Encoding : chunked",
        "Content-Length : 5",
        " Transfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "X: y\r\n\tfolded",
        "X: y\nTransfer-Encoding: chunked",
        "X: y\rTransfer-Encoding: chunked",
        "X: a\x00b",
        "X: a\x7fb",
        "X\x00: a",
        "X y: a",
        ": a",
        "no colon",
        "(x): y",
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n0\r\n\r\n{smuggled}");
        refused_here(&daemon, &backend, request, 400, "bad_request");
    }
    for coding in ["gzip, chunked", "chunked, chunked", "chunked, identity", "identity", "xchunked", "chunked;x", ","] {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {coding}\r\n\r\n0\r\n\r\n{smuggled}");
        refused_here(&daemon, &backend, request, 501, "transfer_encoding_unsupported");
    }
    let two = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    refused_here(&daemon, &backend, two, 501, "transfer_encoding_unsupported");
    let old = "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    refused_here(&daemon, &backend, old, 400, "bad_request");
    let upgrade = "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 3\r\n\r\nabc";
    refused_here(&daemon, &backend, upgrade, 400, "bad_request");
    assert_eq!(daemon.record_of("bad_request")["status"], 400);
}

#[test]
fn lengths_that_agree_go_on_as_one() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 02\r\n\r\nok");
    let (mut peer, request) = backend.take();
    assert_eq!((request.head.field("Content-Length"), request.text()), (Some("2"), "ok"));
    peer.answer("");
    assert_eq!(client.response().status(), 200);
}

#[test]
fn a_host_that_is_none_is_refused() {
    let backend = Backend::new();
    let daemon = before(&backend);
    for fields in [
        "",
        "Host: a\r\nHost: a\r\n",
        "Host: a\r\nHOST: b\r\n",
        "Host: a b\r\n",
        "Host: user@a\r\n",
        "Host: a/b\r\n",
        "Host: a?b\r\n",
        "Host: http://a\r\n",
        "Host: a:port\r\n",
        "Host: a:123456\r\n",
        "Host: a:1:2\r\n",
        "Host: :80\r\n",
        "Host: [::1\r\n",
        "Host: [::1]x\r\n",
        "Host: [x]\r\n",
        "Host: a\tb\r\n",
        "Host: a\"b\r\n",
        "Host: \u{e4}\r\n",
    ] {
        refused_here(&daemon, &backend, format!("GET / HTTP/1.1\r\n{fields}\r\n"), 400, "bad_request");
    }
    for target in ["http://a b/", "http://user@a/", "http:///x", "http://[::1/", "http://a:x/"] {
        refused_here(&daemon, &backend, format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), 400, "bad_request");
    }
}

#[test]
fn a_request_line_that_is_none_is_refused() {
    let backend = Backend::new();
    let daemon = before(&backend);
    for line in [
        "GET",
        "GET /",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET\t/\tHTTP/1.1",
        " GET / HTTP/1.1",
        "G@T / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET / http/1.1",
        "GET / HTTP/1.1x",
        "GET / HTTP/11.1",
        "GET /a b HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET a HTTP/1.1",
        "GET * HTTP/1.1",
        "GET ftp://a/ HTTP/1.1",
        "GET /\x00 HTTP/1.1",
        "GET /\x7f HTTP/1.1",
        "GET /\r HTTP/1.1",
        "GET / HTTP/1.1\rX: y",
    ] {
        refused_here(&daemon, &backend, format!("{line}\r\nHost: a\r\n\r\n"), 400, "bad_request");
    }
    refused_here(&daemon, &backend, "GET / HTTP/1.1\nHost: a\n\n", 400, "bad_request");
    for version in ["HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTTP/3.1"] {
        refused_here(&daemon, &backend, format!("GET / {version}\r\nHost: a\r\n\r\n"), 505, "version_unsupported");
    }
    refused_here(&daemon, &backend, "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 405, "method_refused");
}

#[test]
fn an_expectation_that_nobody_can_meet_is_refused() {
    let backend = Backend::new();
    let daemon = before(&backend);
    for expect in ["200-ok", "100-continue, x"] {
        let request = format!("PUT / HTTP/1.1\r\nHost: a\r\nExpect: {expect}\r\nContent-Length: 2\r\n\r\n");
        refused_here(&daemon, &backend, request, 417, "expectation_failed");
    }
    // HTTP/1.0 knows no expectation: it is not passed on.
    let mut client = daemon.connect();
    client.send("PUT / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok");
    let (mut peer, request) = backend.take();
    assert_eq!((request.head.field("Expect"), request.text()), (None, "ok"));
    peer.answer("");
    assert_eq!(client.response().status(), 200);
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    let backend = Backend::new();
    let daemon = Setup::new().set("BACKEND_ADDRESS", &backend.address).set("MAX_HEADER_SIZE", "4KiB").start();
    let large = |n: usize| "x".repeat(n);
    let with = |field: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", large(field));
    for size in [4_096, 5_000, 20_000, 200_000] {
        refused_here(&daemon, &backend, with(size), 431, "header_too_large");
        let line = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", large(size));
        refused_here(&daemon, &backend, line, 414, "target_too_long");
    }
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X:y\r\n".repeat(100));
    refused_here(&daemon, &backend, many, 431, "header_too_large");
    // To the byte: what has the limit's size passes.
    let mut client = daemon.connect();
    let fits = with(4_096 - with(0).len());
    assert_eq!(fits.len(), 4_096);
    client.send(fits);
    let (mut peer, _) = backend.take();
    peer.answer("");
    assert_eq!(client.response().status(), 200);
}

#[test]
fn an_endless_head_is_refused_while_it_still_comes() {
    let backend = Backend::new();
    let daemon = before(&backend);
    for start in ["GET / HTTP/1.1\r\nX: ", "GET /", "\r\n"] {
        let mut client = daemon.connect();
        let mut writer = client.writer();
        let block = start.repeat(if start == "\r\n" { 40_000 } else { 1 });
        writer.send(block);
        let sender = thread::spawn(move || while writer.try_send([b'x'; 4096]).is_ok() {});
        let status = client.head().status();
        assert!(matches!(status, 400 | 414 | 431), "{status}");
        drop(client);
        sender.join().unwrap();
    }
    backend.expect_none();
}

#[test]
fn a_body_that_breaks_its_framing_never_looks_whole() {
    let backend = Backend::new();
    let daemon = before(&backend);
    for tail in [
        "x\r\n",
        "-1\r\n",
        "0x1\r\na\r\n",
        " 1\r\na\r\n",
        "1\na\r\n",
        "1\r\nab",
        "1\r\na\n0\r\n\r\n",
        "1;a=\"\r\na\r\n",
        "1;a\x00\r\na\r\n",
        "ffffffffffffffff0\r\n",
        "00000000000000000001\r\na\r\n",
        "0\r\nX : y\r\n\r\n",
        "0\r\n folded\r\n\r\n",
        "0\r\nX: y\n\r\n",
        "0\r\nno colon\r\n\r\n",
        "\r\n",
    ] {
        let mut client = daemon.connect();
        client.send("POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nvalid\r\n");
        let mut peer = backend.accept();
        peer.head();
        assert_eq!(peer.chunk(), b"valid");
        client.send(format!("{tail}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.response().assert_refusal(400, "bad_request");
        client.expect_end();
        // Valid data ahead of the break may go on; an end of the body must not.
        let rest = peer.expect_gone();
        let rest = String::from_utf8_lossy(&rest);
        assert!(!rest.contains("0\r\n") && !rest.contains("smuggled"), "{tail:?} became {rest:?}");
        backend.expect_none();
    }
}

#[test]
fn what_follows_a_body_is_a_request_of_its_own() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    // Less than was announced is waited for; more than was announced is the next request.
    client.send("POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: b\r\n\r\n");
    let mut peer = backend.accept();
    let request = peer.request();
    assert_eq!(request.text(), "abc");
    peer.expect_silence();
    peer.answer("1");
    assert_eq!(client.response().text(), "1");
    assert_eq!(peer.request().head.line, "GET /2 HTTP/1.1");
    peer.answer("2");
    assert_eq!(client.response().text(), "2");
    client.send("nonsense\r\n\r\n");
    client.response().assert_refusal(400, "bad_request");
    client.expect_end();
}

#[test]
fn a_malformed_response_is_502_and_asked_for_once() {
    let backend = Backend::new();
    let daemon = before(&backend);
    for answer in [
        "garbage\r\n\r\n",
        "\x16\x03\x01\x02\x00",
        "<html>no head at all</html>",
        "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/0.9 200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 099 Low\r\n\r\n",
        "HTTP/1.1 2x0 OK\r\n\r\n",
        "HTTP/1.1\r\n\r\n",
        "HTTP/1.1 200 O\x00K\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: y\r\n folded\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let mut client = daemon.connect();
        client.get("/malformed");
        let (mut peer, _) = backend.take();
        let mut writer = peer.writer();
        // It may be refused before all of it was taken.
        let _ = writer.try_send(answer);
        let response = client.response();
        assert_eq!(response.status(), 502, "{:?}", &answer[..answer.len().min(200)]);
        response.assert_refusal(502, "backend_malformed");
        peer.expect_gone();
        backend.expect_none();
        // The client's connection is as good as before.
        assert_eq!(response.head.field("Connection"), None);
    }
    let record = daemon.record("/malformed");
    assert_eq!((&record["reason"], &record["attempts"]), (&"backend_malformed".into(), &1.into()));
}

#[test]
fn a_response_head_that_is_too_large_is_502_with_its_reason() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    for start in ["HTTP/1.1 200 OK\r\n", "HTTP/1.1 103 Early Hints\r\n"] {
        for fields in [format!("X: {}\r\n", "x".repeat(70_000)), "X: y\r\n".repeat(101)] {
            client.get("/large");
            let (mut peer, _) = backend.take();
            // It may be refused before all of it was taken.
            let _ = peer.writer().try_send(format!("{start}{fields}\r\n"));
            let response = client.response();
            response.assert_refusal(502, "backend_header_too_large");
            let status = response.head.field("Proxy-Status").unwrap();
            assert!(status.contains("error=http_response_header_section_size"), "{status}");
            peer.expect_gone();
        }
    }
    backend.expect_none();
    assert_eq!(daemon.record("/large")["reason"], "backend_header_too_large");
}

#[test]
fn interim_responses_without_end_are_502() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let interim = "HTTP/1.1 102 Processing\r\n\r\n";
    for version in ["1.1", "1.0"] {
        for (count, ends_well) in [(64, true), (65, false)] {
            let mut client = daemon.connect();
            client.send(format!("GET /interim HTTP/{version}\r\nHost: a\r\n\r\n"));
            let (mut peer, _) = backend.take();
            let last = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
            let _ = peer.writer().try_send(interim.repeat(count) + last);
            for _ in 0..if version == "1.1" { 64 } else { 0 } {
                assert_eq!(client.head().line, "HTTP/1.1 102 Processing");
            }
            let response = client.response();
            if ends_well {
                assert_eq!((response.status(), response.text()), (200, "ok"));
            } else {
                response.assert_refusal(502, "backend_malformed");
            }
            peer.expect_gone();
            backend.expect_none();
        }
    }
}

#[test]
fn bytes_behind_an_answer_are_nobodys_answer() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.get("/first");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nextra");
    assert_eq!(client.response().text(), "1");
    // That connection has said more than it was asked: it is not used again.
    peer.expect_gone();
    client.get("/second");
    let (mut peer, _) = backend.take();
    peer.answer("2");
    assert_eq!(client.response().text(), "2");

    // Likewise when the extra bytes come while nothing is asked.
    peer.send("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n");
    peer.expect_gone();
    client.get("/third");
    let (mut peer, _) = backend.take();
    peer.answer("3");
    assert_eq!(client.response().text(), "3");
}

#[test]
fn an_answer_to_head_with_a_body_is_cut_off_there() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody");
    assert_eq!(client.head().field("Content-Length"), Some("4"));
    client.get("/next");
    let (mut next, _) = backend.take();
    next.answer("next");
    let response: Vec<u8> = client.response().body;
    assert_eq!(response, b"next");
    peer.expect_gone();
}

#[test]
fn a_refusal_reaches_a_client_that_has_sent_more() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client: Peer = daemon.connect();
    let mut bytes = b"BAD REQUEST\r\n\r\n".to_vec();
    bytes.extend_from_slice(&[b'x'; 100_000]);
    client.send(bytes);
    // Closing with bytes unread would reset the connection and take the answer away.
    client.response().assert_refusal(400, "bad_request");
    client.expect_end();
}

#[test]
fn connection_may_list_no_more_options_than_there_may_be_fields() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let request =
        |options: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: x{}\r\n\r\n", ",x".repeat(options - 1));
    refused_here(&daemon, &backend, request(101), 400, "bad_request");
    let mut client = daemon.connect();
    client.send(request(100));
    let (mut peer, _) = backend.take();
    peer.answer("ok");
    assert_eq!(client.response().text(), "ok");
}

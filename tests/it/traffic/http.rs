//! HTTP/1.1 and 1.0: heads, fields, connections and their reuse.

use crate::backend::Backend;
use crate::traffic::door::{Daemon, Setup};

/// A daemon before one backend. Its one worker has one pool of connections to it, so
/// that a test knows which request comes on which.
fn before(backend: &Backend) -> Daemon {
    Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", &backend.address).start()
}

#[test]
fn connections_are_kept_on_both_sides() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.get("/1");
    let (mut peer, request) = backend.take();
    assert_eq!(request.head.line, "GET /1 HTTP/1.1");
    peer.answer("one");
    assert_eq!(client.response().text(), "one");
    for turn in 2..=5 {
        client.get(&format!("/{turn}"));
        assert_eq!(peer.request().head.line, format!("GET /{turn} HTTP/1.1"));
        peer.answer(&turn.to_string());
        let response = client.response();
        assert_eq!(response.text(), turn.to_string());
        assert_eq!(response.head.field("Connection"), None);
    }
    backend.expect_none();
}

#[test]
fn a_backend_that_says_close_is_dialled_anew_and_the_client_stays() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    for close in ["HTTP/1.1 200 OK\r\nConnection: close\r\n", "HTTP/1.0 200 OK\r\n"] {
        client.get("/");
        let (mut peer, _) = backend.take();
        peer.send(format!("{close}Content-Length: 2\r\n\r\nok"));
        let response = client.response();
        assert_eq!(response.head.line, "HTTP/1.1 200 OK");
        assert_eq!(response.head.field("Connection"), None);
        assert_eq!(response.text(), "ok");
        peer.expect_end();
    }
}

#[test]
fn a_backend_of_http_1_0_is_kept_if_it_says_so() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.get("/1");
    let (mut peer, _) = backend.take();
    for body in ["one", "two"] {
        peer.send("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 3\r\n\r\n");
        peer.send(body);
        let response = client.response();
        assert_eq!((response.head.line.as_str(), response.text()), ("HTTP/1.1 200 OK", body));
        assert_eq!(response.head.field("Connection"), None);
        client.get("/next");
        assert_eq!(peer.request().head.line, "GET /next HTTP/1.1");
    }
    // Without a length its end is that of the connection, whatever it says of that.
    peer.send("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nthree");
    drop(peer);
    let response = client.response();
    assert_eq!((response.head.field("Transfer-Encoding"), response.text()), (Some("chunked"), "three"));
    client.get("/last");
    let (mut peer, _) = backend.take();
    peer.answer("last");
    assert_eq!(client.response().text(), "last");
}

#[test]
fn requests_sent_ahead_are_answered_in_order() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.send(
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\ntwo\
         POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nthree\r\n0\r\n\r\n\
         GET /4 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /5 HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    let mut peer = backend.accept();
    for (line, body) in [("GET /1", ""), ("POST /2", "two"), ("POST /3", "three"), ("GET /4", "")] {
        let request = peer.request();
        assert_eq!(request.head.line, format!("{line} HTTP/1.1"));
        assert_eq!(request.text(), body);
        // The next request has not been passed on before this one is answered.
        peer.expect_silence();
        peer.answer(line);
        assert_eq!(client.response().text(), line);
    }
    // What follows the request that was to be the last is not served.
    client.expect_end();
    peer.expect_silence();
    backend.expect_none();
}

#[test]
fn a_request_may_come_in_any_number_of_pieces() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    let whole = "POST /drip HTTP/1.1\r\nHost: door.test\r\nTransfer-Encoding: chunked\r\n\r\n\
                 3\r\nabc\r\n4;x=\"y\"\r\ndefg\r\n0\r\nSum: 1\r\n\r\n";
    for byte in whole.as_bytes() {
        client.send([*byte]);
    }
    let mut peer = backend.accept();
    assert_eq!(peer.head().line, "POST /drip HTTP/1.1");
    assert_eq!(peer.chunked(7), b"abcdefg");
    peer.expect("0\r\nSum: 1\r\n\r\n");
    for byte in b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" {
        peer.send([*byte]);
    }
    assert_eq!(client.response().text(), "ok");
    client.get("/again");
    assert_eq!(peer.request().head.line, "GET /again HTTP/1.1");
    peer.answer("");
    assert_eq!(client.response().status(), 200);
}

#[test]
fn http_1_0_closes_unless_it_asks_to_be_kept() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.send("GET /old HTTP/1.0\r\n\r\n");
    let (mut peer, request) = backend.take();
    assert_eq!(request.head.line, "GET /old HTTP/1.1");
    assert_eq!(request.head.field("Host"), Some(backend.address.as_str()));
    // Its own name is not what was asked for.
    assert_eq!(request.head.field("X-Forwarded-Host"), None);
    assert_eq!(request.head.field("Via"), Some("1.0 doorward"));
    peer.answer("old");
    let response = client.response();
    assert_eq!(response.head.field("Connection"), Some("close"));
    assert_eq!(response.text(), "old");
    client.expect_end();

    // The backend's connection was kept all the same.
    let mut client = daemon.connect();
    for _ in 0..2 {
        client.send("GET /kept HTTP/1.0\r\nHost: door.test\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(peer.request().head.field("Host"), Some("door.test"));
        peer.answer("kept");
        let response = client.response();
        assert_eq!(response.head.field("Connection"), Some("keep-alive"));
        assert_eq!(response.text(), "kept");
    }
    backend.expect_none();
}

#[test]
fn an_answer_to_head_and_204_and_304_have_no_body() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.send("HEAD /size HTTP/1.1\r\nHost: a\r\n\r\n");
    let (mut peer, request) = backend.take();
    assert_eq!(request.head.line, "HEAD /size HTTP/1.1");
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
    let head = client.head();
    assert_eq!(head.field("Content-Length"), Some("1000000"));

    client.send("HEAD /chunks HTTP/1.1\r\nHost: a\r\n\r\n");
    peer.request();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    let head = client.head();
    assert_eq!((head.status(), head.field("Content-Length")), (200, None));

    for (status, fields, length) in [
        ("204 No Content", "", None),
        ("304 Not Modified", "Content-Length: 12\r\nETag: \"x\"\r\n", Some("12")),
        ("304 Not Modified", "", None),
    ] {
        client.get("/bare");
        peer.request();
        peer.send(format!("HTTP/1.1 {status}\r\n{fields}\r\n"));
        let head = client.head();
        assert_eq!(head.line, format!("HTTP/1.1 {status}"));
        assert_eq!(head.field("Content-Length"), length);
        assert_eq!(head.field("Transfer-Encoding"), None);
    }
    // All on one connection: no body was waited for or invented.
    client.get("/end");
    peer.request();
    peer.answer("end");
    assert_eq!(client.response().text(), "end");
    backend.expect_none();
}

#[test]
fn fields_pass_in_order_and_case_without_those_that_end_here() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.send(
        "GET /f?q=1 HTTP/1.1\r\nx-First: 1\r\nHOST: Door.Test:81\r\nConnection: keep-alive, X-Secret , x-other\r\n\
         X-Secret: s\r\nX-Other: o\r\nx-other: p\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
         TE: trailers\r\nTrailer: Sum\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\
         Cookie: a=b\r\nCookie: c=d\r\nx-LAST:\t2 \r\n\r\n",
    );
    let (mut peer, request) = backend.take();
    let head = request.head;
    assert_eq!(head.line, "GET /f?q=1 HTTP/1.1");
    let names: Vec<&str> = head.fields.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "Host",
            "x-First",
            "Cookie",
            "Cookie",
            "x-LAST",
            "X-Forwarded-For",
            "X-Forwarded-Proto",
            "X-Forwarded-Host",
            "X-Request-Id",
            "Via",
            "TE",
            "Connection"
        ]
    );
    assert_eq!(head.field("Host"), Some("Door.Test:81"));
    assert_eq!(head.all("Cookie"), ["a=b", "c=d"]);
    assert_eq!(head.field("X-Last"), Some("2"));

    peer.send(
        "HTTP/1.1 299 Very Fine\r\nx-a: 1\r\nConnection: X-Gone\r\nX-Gone: g\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: x\r\nUpgrade: websocket\r\nTrailer: Sum\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\
         Content-Length: 0\r\n\r\n",
    );
    let response = client.response();
    assert_eq!(response.head.line, "HTTP/1.1 299 Very Fine");
    let names: Vec<&str> = response.head.fields.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["x-a", "Set-Cookie", "Set-Cookie", "Date", "Content-Length"]);
}

#[test]
fn what_a_client_says_of_its_origin_is_replaced() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.send(
        "GET / HTTP/1.1\r\nHost: door.test\r\nX-Forwarded-For: 192.0.2.1\r\nx-forwarded-for: 192.0.2.2\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.test\r\nForwarded: for=192.0.2.3\r\n\
         X-Request-Id: abc-1\r\nConnection: X-Forwarded-For, X-Request-Id\r\n\r\n",
    );
    let (mut peer, request) = backend.take();
    let head = request.head;
    assert_eq!(head.field("X-Forwarded-For"), Some("127.0.0.1"));
    assert_eq!(head.field("X-Forwarded-Proto"), Some("http"));
    assert_eq!(head.field("X-Forwarded-Host"), Some("door.test"));
    assert_eq!(head.field("Forwarded"), None);
    assert_eq!(head.field("X-Request-Id"), Some("abc-1"));
    assert_eq!(head.field("Via"), Some("1.1 doorward"));
    peer.answer("");
    client.response();

    // One that could do harm in a log is not kept; each request gets another of ours.
    let mut made = Vec::new();
    for id in ["X-Request-Id: a\"b\r\n", ""] {
        client.send(format!("GET / HTTP/1.1\r\nHost: door.test\r\n{id}\r\n"));
        let request = peer.request();
        made.push(request.head.field("X-Request-Id").unwrap().to_owned());
        peer.answer("");
        client.response();
    }
    assert!(made.iter().all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())), "{made:?}");
    assert_ne!(made[0], made[1]);
}

#[test]
fn the_authority_of_an_absolute_form_beats_host() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.send("GET http://real.test:8080/a?b HTTP/1.1\r\nHost: other.test\r\n\r\n");
    let (mut peer, request) = backend.take();
    assert_eq!(request.head.line, "GET /a?b HTTP/1.1");
    assert_eq!(request.head.field("Host"), Some("real.test:8080"));
    assert_eq!(request.head.field("X-Forwarded-Host"), Some("real.test:8080"));
    peer.answer("");
    client.response();
    for (target, line) in [("http://real.test", "GET / HTTP/1.1"), ("HTTP://real.test?x", "GET /?x HTTP/1.1")] {
        client.send(format!("GET {target} HTTP/1.1\r\nHost: real.test\r\n\r\n"));
        assert_eq!(peer.request().head.line, line);
        peer.answer("");
        client.response();
    }
    client.send("OPTIONS * HTTP/1.1\r\nHost: real.test\r\n\r\n");
    assert_eq!(peer.request().head.line, "OPTIONS * HTTP/1.1");
    peer.answer("");
    client.response();
}

#[test]
fn interim_responses_reach_http_1_1_and_not_1_0() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.get("/hints");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 103 Early Hints\r\nLink: </s.css>\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n");
    let hints = client.head();
    assert_eq!(hints.line, "HTTP/1.1 103 Early Hints");
    assert_eq!(hints.fields, [("Link".to_owned(), "</s.css>".to_owned())]);
    peer.send("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx");
    assert_eq!(client.head().line, "HTTP/1.1 102 Processing");
    assert_eq!(client.response().text(), "x");

    let mut old = daemon.connect();
    old.send("GET /hints HTTP/1.0\r\nHost: a\r\n\r\n");
    peer.request();
    peer.send("HTTP/1.1 103 Early Hints\r\nLink: </s.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\ny");
    assert_eq!(old.response().text(), "y");
    old.expect_end();
}

#[test]
fn a_head_may_come_with_much_of_what_follows_and_be_large() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    let value = "v".repeat(28 * 1024);
    client.send(format!(
        "POST /large HTTP/1.1\r\nHost: a\r\nX-Large: {value}\r\nContent-Length: 4\r\n\r\nbody\
         GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
    ));
    let (mut peer, request) = backend.take();
    assert_eq!(request.head.field("X-Large"), Some(value.as_str()));
    assert_eq!(request.text(), "body");
    peer.send(format!("HTTP/1.1 200 OK\r\nX-Large: {value}{value}\r\nContent-Length: 4\r\n\r\nbody"));
    let response = client.response();
    assert_eq!(response.head.field("X-Large").unwrap().len(), 2 * value.len());
    assert_eq!(response.text(), "body");
    assert_eq!(peer.request().head.line, "GET /next HTTP/1.1");
    peer.answer("next");
    assert_eq!(client.response().text(), "next");
}

#[test]
fn every_response_goes_on_with_a_date() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.get("/dated");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.response().head.field("Date"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    client.get("/undated");
    peer.request();
    peer.answer("");
    let response = client.response();
    let date = response.head.field("Date").expect("a date");
    assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
}

#[test]
fn an_idle_connection_is_closed_in_time_and_without_a_word() {
    let backend = Backend::new();
    let daemon = Setup::new()
        .set("BACKEND_ADDRESS", &backend.address)
        .set("IDLE_TIMEOUT", "200ms")
        .set("BACKEND_IDLE_TIMEOUT", "200ms")
        .start();
    let mut client = daemon.connect();
    client.get("/");
    let (mut peer, _) = backend.take();
    peer.answer("x");
    assert_eq!(client.response().text(), "x");
    client.expect_end();
    peer.expect_end();
}

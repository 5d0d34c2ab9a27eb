//! What a backend is told of a request that comes over HTTP/2, and what the client is answered.

use crate::backend::Backend;
use crate::http2::client::{Client, request};
use crate::traffic::door::{Daemon, Setup};

fn before(backend: &Backend) -> Daemon {
    Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", &backend.address).start()
}

#[test]
fn a_request_goes_on_as_one_of_http_1_and_its_answer_comes_back() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let client = Client::connect(daemon.address());
    let fields =
        [("accept", "*/*"), ("cookie", "a=1"), ("x-two", "1"), ("cookie", "b=2"), ("x-two", "2"), ("cookie", "c")];
    let exchange = client.send(request("GET", "/a/b?c=d", &fields), true);
    let (mut peer, got) = backend.take();
    assert_eq!(got.head.line, "GET /a/b?c=d HTTP/1.1");
    assert_eq!(got.head.field("Host"), Some("door.test"));
    assert_eq!(got.head.field("cookie"), Some("a=1; b=2; c"));
    assert_eq!(got.head.all("x-two"), ["1", "2"]);
    assert_eq!(got.head.field("accept"), Some("*/*"));
    assert_eq!(got.head.field("Via"), Some("2.0 doorward"));
    assert_eq!(got.head.field("X-Forwarded-Host"), Some("door.test"));
    assert_eq!(got.head.field("X-Forwarded-Proto"), Some("http"));
    assert_eq!((got.head.field("Transfer-Encoding"), got.head.field("Content-Length")), (None, None));
    assert_eq!(got.head.field("Connection"), None);
    peer.send(
        "HTTP/1.1 203 Fine\r\nX-A: 1\r\nKeep-Alive: timeout=9\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\
         Content-Length: 4\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\nbody",
    );
    let answer = exchange.answer();
    assert_eq!((answer.status, answer.text()), (203, "body"));
    assert_eq!((answer.field("x-a"), answer.field("content-length")), (Some("1"), Some("4")));
    assert!(answer.field("date").is_some());
    for hop in ["keep-alive", "connection", "x-hop", "transfer-encoding"] {
        assert_eq!(answer.field(hop), None);
    }
    assert_eq!(answer.fields.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a", "b"]);
    let record = daemon.record("/a/b");
    assert_eq!(
        (&record["version"], &record["status"], &record["host"]),
        (&"2".into(), &203.into(), &"door.test".into())
    );

    // The backend's connection serves on, for whoever comes next.
    let exchange = client.get("/next");
    assert_eq!(peer.request().head.line, "GET /next HTTP/1.1");
    peer.answer("next");
    assert_eq!(exchange.answer().text(), "next");
    backend.expect_none();
}

#[test]
fn many_requests_are_under_way_at_once_and_each_has_its_own_answer() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let client = Client::connect(daemon.address());
    let exchanges: Vec<_> = (0..20).map(|turn| client.get(&format!("/{turn}"))).collect();
    let mut peers: Vec<_> = (0..20).map(|_| backend.take()).collect();
    // Answered the other way round.
    for (peer, got) in peers.iter_mut().rev() {
        let path = got.head.line.split(' ').nth(1).unwrap();
        peer.answer(path);
    }
    for (turn, exchange) in exchanges.into_iter().enumerate() {
        assert_eq!(exchange.answer().text(), format!("/{turn}"));
    }
}

#[test]
fn answers_without_a_body_end_with_their_head() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let client = Client::connect(daemon.address());
    let mut peer = None;
    for (method, answer, length) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n", Some("77")),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        ("GET", "HTTP/1.1 204 No\r\n\r\n", None),
        ("GET", "HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", Some("9")),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Some("0")),
    ] {
        let exchange = client.send(request(method, "/", &[]), true);
        let peer = peer.get_or_insert_with(|| backend.accept());
        peer.request();
        peer.send(answer);
        let answering = exchange.head();
        assert!(answering.body.is_end_stream(), "{method} {answer}");
        let answer = answering.answer();
        assert_eq!((answer.field("content-length"), answer.body.len()), (length, 0), "{method}");
    }
}

#[test]
fn interim_answers_come_before_the_answer() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = crate::http2::frames::Frames::connect(daemon.address());
    client.send(crate::http2::frames::ask(1));
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(client.head(1).status(), 103);
    assert_eq!(client.head(1).status(), 100);
    peer.answer("x");
    assert_eq!(client.head(1).status(), 200);
    client.end(1);
}

#[test]
fn a_client_that_expects_to_be_told_so_is_told_to_go_on() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let client = Client::connect(daemon.address());
    let mut exchange = client.send(request("POST", "/", &[("expect", "100-continue"), ("content-length", "4")]), false);
    let mut peer = backend.accept();
    let head = peer.head();
    assert_eq!((head.field("expect"), head.field("Content-Length")), (Some("100-continue"), Some("4")));
    peer.send("HTTP/1.1 100 Continue\r\n\r\n");
    exchange.body.send_data("body".into(), true).unwrap();
    peer.expect("body");
    peer.answer("went on");
    assert_eq!(exchange.answer().text(), "went on");
    client.send(request("POST", "/", &[("expect", "more")]), true).answer().assert_refusal(417, "expectation_failed");
}

#[test]
fn what_is_refused_in_http_1_is_refused_here() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let client = Client::connect(daemon.address());
    client.send(request("TRACE", "/", &[]), true).answer().assert_refusal(405, "method_refused");
    client.send(request(&"M".repeat(33), "/", &[]), true).answer().assert_refusal(501, "method_too_long");
    client.send(request("OPTIONS", "/", &[("max-forwards", "x")]), true).answer().assert_refusal(400, "bad_request");
    let many: Vec<_> = (0..101).map(|_| ("x", "y")).collect();
    client.send(request("GET", "/", &many), true).answer().assert_refusal(431, "header_too_large");
    assert_eq!(client.send(request("OPTIONS", "/", &[("max-forwards", "0")]), true).answer().status, 200);
    assert_eq!(daemon.record_of("method_too_long")["status"], 501);
    backend.expect_none();
}

#[test]
fn without_leave_to_speak_it_the_preface_is_refused() {
    let daemon = Setup::new().set("HTTP2", "off").start();
    let mut client = daemon.connect();
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    client.response().assert_refusal(505, "version_unsupported");
    client.expect_end();
}

#[test]
fn a_reload_is_heeded_by_the_next_request_on_the_same_connection() {
    let (first, second) = (Backend::new(), Backend::new());
    let daemon = before(&first);
    let client = Client::connect(daemon.address());
    let held = client.get("/held");
    let (mut peer, _) = first.take();
    daemon.replace("BACKEND_ADDRESS", &second.address);
    let exchange = client.get("/new");
    let (mut other, _) = second.take();
    other.answer("second");
    assert_eq!(exchange.answer().text(), "second");
    peer.answer("first");
    assert_eq!(held.answer().text(), "first");
}

#[test]
fn routes_rewrites_and_retries_are_those_of_http_1() {
    let (dead, backend) = (Backend::new(), Backend::new());
    let daemon = Setup::new()
        .set("WORKERS", 1)
        .set("RETRY_BACKOFF", "1ms")
        .set("BACKEND_ADDRESS", format!("{},{}", dead.address, backend.address))
        .set("SET_RESPONSE_HEADERS", "X-Set: 1")
        .set("REMOVE_RESPONSE_HEADERS", "X-Gone")
        .set("SET_REQUEST_HEADERS", "X-Env: test")
        .route("10-old.env", "MATCH_PATH=/old\nREDIRECT=\"301 https://new.test{path}\"\n")
        .start();
    let client = Client::connect(daemon.address());
    let moved = client.get("/old/x").answer();
    assert_eq!((moved.status, moved.field("location")), (301, Some("https://new.test/old/x")));
    // A body that was sent is sent again.
    let mut exchange = client.send(request("PUT", "/again", &[]), false);
    exchange.body.send_data("kept".into(), false).unwrap();
    let mut peer = dead.accept();
    assert_eq!(peer.head().field("X-Env"), Some("test"));
    peer.expect("4\r\nkept\r\n");
    peer.reset();
    let mut peer = backend.accept();
    peer.head();
    peer.expect("4\r\nkept\r\n");
    exchange.body.send_data(" and more".into(), true).unwrap();
    peer.expect("9\r\n and more\r\n0\r\n\r\n");
    peer.send("HTTP/1.1 200 OK\r\nX-Gone: 1\r\nContent-Length: 2\r\n\r\nok");
    let answer = exchange.answer();
    assert_eq!((answer.text(), answer.field("x-set"), answer.field("x-gone")), ("ok", Some("1"), None));
    assert_eq!(daemon.record("/again")["attempts"], 2);
}

#[test]
fn a_backend_that_fails_is_a_502_and_one_that_fails_later_a_reset() {
    let backend = Backend::new();
    let daemon = Setup::new().set("WORKERS", 1).set("MAX_RETRIES", 0).set("BACKEND_ADDRESS", &backend.address).start();
    let client = Client::connect(daemon.address());
    let exchange = client.get("/");
    drop(backend.take());
    exchange.answer().assert_refusal(502, "backend_closed");
    // Together with its head: it was not handed over yet.
    let exchange = client.get("/");
    let (mut peer, _) = backend.take();
    peer.send_end("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf");
    exchange.answer().assert_refusal(502, "backend_truncated");
    let exchange = client.get("/cut");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf");
    let mut answering = exchange.head();
    assert_eq!(answering.piece().unwrap().unwrap(), "half");
    drop(peer);
    let error = answering.piece().unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR));
    assert_eq!(daemon.record("/cut")["reason"], "backend_truncated");
    // The others of the connection are none the worse for it.
    let exchange = client.get("/");
    backend.take().0.answer("on");
    assert_eq!(exchange.answer().text(), "on");
}

#[test]
fn a_client_that_resets_its_stream_has_left() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let client = Client::connect(daemon.address());
    let mut exchange = client.get("/gone");
    let (mut peer, _) = backend.take();
    exchange.body.send_reset(h2::Reason::CANCEL);
    peer.expect_gone();
    assert_eq!(daemon.record("/gone")["reason"], "client_left");
    daemon.wait_in_flight(0);
    let exchange = client.get("/next");
    backend.take().0.answer("on");
    assert_eq!(exchange.answer().text(), "on");
    // Within an answer, too, and when the whole connection goes.
    let exchange = client.get("/body");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf");
    exchange.head().piece().unwrap().unwrap();
    drop(client);
    peer.expect_gone();
    assert_eq!(daemon.record("/body")["reason"], "client_left");
    daemon.wait("no connection", |status| status["connections"] == 0);
}

//! Fields behind a chunked body: passed on where they are taken, and then byte for byte
//! (RFC 9110 §6.5, RFC 9112 §7.1.2). What must not stand there is in the tables of
//! `smuggling`.

use crate::backend::Backend;
use crate::traffic::door::{Daemon, Setup};

fn before(backends: &[&Backend]) -> Daemon {
    let addresses: Vec<&str> = backends.iter().map(|backend| backend.address.as_str()).collect();
    Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", addresses.join(",")).set("RETRY_BACKOFF", "1ms").start()
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n\r\n";

#[test]
fn trailers_of_an_answer_go_to_those_who_take_them_and_the_body_stays_whole() {
    let backend = Backend::new();
    let daemon = before(&[&backend]);
    let mut client = daemon.connect();
    let mut peer = None;
    for (te, told, tail) in [
        ("TE: trailers\r\nConnection: TE\r\n", Some("trailers"), "0\r\nSum: 9\r\n\r\n"),
        ("", None, "0\r\n\r\n"),
        // Connection should name it, and not everybody has that done.
        ("te: x;q=0.5 , TRAILERS\r\n", Some("trailers"), "0\r\nSum: 9\r\n\r\n"),
        ("TE: gzip, trailers;q=1\r\n", None, "0\r\n\r\n"),
    ] {
        client.send(format!("GET /t HTTP/1.1\r\nHost: a\r\n{te}\r\n"));
        let peer = peer.get_or_insert_with(|| backend.accept());
        let head = peer.request().head;
        assert_eq!(head.field("TE"), told, "{te}");
        assert_eq!(head.field("Connection"), told.map(|_| "TE"), "{te}");
        peer.send(format!("HTTP/1.1 200 OK\r\nTrailer: Sum\r\n{CHUNKED}3\r\nabc\r\n0\r\nSum:9\r\nHost: x\r\n\r\n"));
        let head = client.head();
        assert_eq!(head.field("Trailer"), told.map(|_| "Sum"), "{te}");
        client.expect("3\r\nabc\r\n");
        client.expect(tail);
    }
    backend.expect_none();
}

#[test]
fn trailers_of_an_answer_come_however_its_end_is_cut() {
    let backend = Backend::new();
    let daemon = before(&[&backend]);
    let mut client = daemon.connect();
    let mut peer = None;
    let tail = "0\r\nSum: 9\r\nx-b: two words\r\n\r\n";
    for cut in 1..tail.len() {
        client.send("GET /t HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n");
        let peer = peer.get_or_insert_with(|| backend.accept());
        peer.request();
        peer.send(format!("HTTP/1.1 200 OK\r\n{CHUNKED}3\r\nabc\r\n{}", &tail[..cut]));
        client.head();
        client.expect("3\r\nabc\r\n");
        peer.send(&tail[cut..]);
        client.expect(tail);
    }
}

#[test]
fn trailers_of_a_request_go_on_and_what_follows_is_a_request_of_its_own() {
    let backend = Backend::new();
    let daemon = before(&[&backend]);
    let mut client = daemon.connect();
    client.send(format!(
        "POST /t HTTP/1.1\r\nHost: a\r\nTrailer: Sum\r\n{CHUNKED}3\r\nabc\r\n0\r\nSum: 9\r\nX-B:\r\n\r\n\
         GET /next HTTP/1.1\r\nHost: a\r\nTrailer: Sum\r\n\r\n"
    ));
    let mut peer = backend.accept();
    let head = peer.head();
    assert_eq!((head.field("Trailer"), head.field("Transfer-Encoding")), (Some("Sum"), Some("chunked")));
    peer.expect("3\r\nabc\r\n0\r\nSum: 9\r\nX-B: \r\n\r\n");
    peer.answer("1");
    assert_eq!(client.response().text(), "1");
    // Nothing of them is left to the next, which can have none.
    let head = peer.head();
    assert_eq!((head.line.as_str(), head.field("Trailer")), ("GET /next HTTP/1.1", None));
    peer.answer("2");
    assert_eq!(client.response().text(), "2");
    client.send(format!("POST /bare HTTP/1.1\r\nHost: a\r\n{CHUNKED}3\r\nabc\r\n0\r\n\r\n"));
    peer.head();
    peer.expect("3\r\nabc\r\n0\r\n\r\n");
    peer.answer("3");
    assert_eq!(client.response().text(), "3");
    backend.expect_none();
}

#[test]
fn a_request_that_is_sent_again_has_its_trailers_again() {
    let (first, second) = (Backend::new(), Backend::new());
    let daemon = before(&[&first, &second]);
    let mut client = daemon.connect();
    client.send(format!("PUT /again HTTP/1.1\r\nHost: a\r\n{CHUNKED}3\r\nabc\r\n0\r\nSum: 9\r\n\r\n"));
    let body = "3\r\nabc\r\n0\r\nSum: 9\r\n\r\n";
    let mut peer = first.accept();
    peer.head();
    peer.expect(body);
    peer.reset();
    let mut peer = second.accept();
    peer.head();
    peer.expect(body);
    peer.answer("done");
    assert_eq!(client.response().text(), "done");
    assert_eq!(daemon.record("/again")["attempts"], 2);
}

#[test]
fn trailers_that_break_their_grammar_or_bounds_end_no_body() {
    let backend = Backend::new();
    let daemon = before(&[&backend]);
    let many = "X: y\r\n".repeat(101);
    let long = format!("X: {}\r\n", "y".repeat(9_000));
    for trailers in ["X : y\r\n", "no colon\r\n", "X: y\n", "X: y\r\n folded\r\n", "X: a\0b\r\n", &many, &long] {
        let mut client = daemon.connect();
        client.send(format!("POST /t HTTP/1.1\r\nHost: a\r\n{CHUNKED}3\r\nabc\r\n"));
        let mut peer = backend.accept();
        peer.head();
        peer.expect("3\r\nabc\r\n");
        // It may be refused before all of it was taken.
        let _ = client.try_send(format!("0\r\n{trailers}\r\n"));
        client.response().assert_refusal(400, "bad_request");
        assert_eq!(peer.expect_gone(), b"");

        let mut client = daemon.connect();
        client.send("GET /t HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n");
        let (mut peer, _) = backend.take();
        peer.send(format!("HTTP/1.1 200 OK\r\n{CHUNKED}3\r\nabc\r\n"));
        client.head();
        client.expect("3\r\nabc\r\n");
        let _ = peer.try_send(format!("0\r\n{trailers}\r\n"));
        assert_eq!(client.expect_gone(), b"");
        peer.expect_gone();
    }
    backend.expect_none();
}

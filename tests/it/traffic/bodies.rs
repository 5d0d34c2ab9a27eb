//! Bodies: framing, size, both directions at once, what is expected and refused.

use std::thread;

use crate::backend::Backend;
use crate::peer::{Message, Peer, assert_same, noise};
use crate::traffic::door::{Daemon, Setup};

const LARGE: usize = 6 * 1024 * 1024;

fn before(backend: &Backend) -> Daemon {
    Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", &backend.address).start()
}

/// Sends all of `bytes` from another thread, so that this one can read meanwhile.
fn send_beside(peer: &Peer, bytes: Vec<u8>) -> thread::JoinHandle<()> {
    let mut writer = peer.writer();
    thread::spawn(move || writer.send(bytes))
}

#[test]
fn large_bodies_of_stated_length_pass_whole_both_ways() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let (up, down) = (noise(LARGE, 1), noise(LARGE, 2));
    let mut client = daemon.connect();
    let mut bytes = format!("PUT /l HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n").into_bytes();
    bytes.extend_from_slice(&up);
    let sender = send_beside(&client, bytes);
    let (peer, request) = backend.take();
    sender.join().unwrap();
    assert_same(&request.body, &up);
    let mut bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").into_bytes();
    bytes.extend_from_slice(&down);
    let sender = send_beside(&peer, bytes);
    let response = client.response();
    sender.join().unwrap();
    assert_eq!(response.head.field("Content-Length"), Some(LARGE.to_string().as_str()));
    assert_same(&response.body, &down);
    let record = daemon.record("/l");
    assert_eq!(record["bytes_in"], LARGE);
    assert!(record["bytes_out"].as_u64().unwrap() > LARGE as u64);
}

/// A chunked body in chunks of all sizes.
fn chunked(body: &[u8]) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let (mut framed, mut rest) = (Vec::new(), body);
    while !rest.is_empty() {
        let most = if random.bool() { 100 } else { 70_000 };
        let (chunk, behind) = rest.split_at(random.usize(1..=most).min(rest.len()));
        framed.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
        framed.extend_from_slice(chunk);
        framed.extend_from_slice(b"\r\n");
        rest = behind;
    }
    framed.extend_from_slice(b"0\r\n\r\n");
    framed
}

#[test]
fn large_chunked_bodies_pass_whole_both_ways() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let (up, down) = (noise(LARGE, 3), noise(LARGE, 4));
    let mut client = daemon.connect();
    let mut bytes = b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    bytes.extend_from_slice(&chunked(&up));
    let sender = send_beside(&client, bytes);
    let (peer, request) = backend.take();
    sender.join().unwrap();
    assert_eq!(request.head.field("Transfer-Encoding"), Some("chunked"));
    assert_same(&request.body, &up);
    let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    bytes.extend_from_slice(&chunked(&down));
    let sender = send_beside(&peer, bytes);
    let response = client.response();
    sender.join().unwrap();
    assert_same(&response.body, &down);
    client.get("/after");
    let mut peer = peer;
    peer.request();
    peer.answer("after");
    assert_eq!(client.response().text(), "after");
}

#[test]
fn a_body_that_ends_with_its_connection_is_framed_anew() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let down = noise(LARGE, 5);
    for version in ["1.1", "1.0"] {
        let mut client = daemon.connect();
        client.send(format!("GET /u HTTP/{version}\r\nHost: a\r\nConnection: keep-alive\r\n\r\n"));
        let (peer, _) = backend.take();
        let mut bytes = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        bytes.extend_from_slice(&down);
        let sender = send_beside(&peer, bytes);
        drop(peer);
        let response = client.response();
        sender.join().unwrap();
        assert_same(&response.body, &down);
        if version == "1.1" {
            assert_eq!(response.head.field("Transfer-Encoding"), Some("chunked"));
            assert_eq!(response.head.field("Connection"), None);
            client.get("/next");
            let (mut peer, _) = backend.take();
            peer.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            client.response();
        } else {
            assert_eq!(response.head.field("Transfer-Encoding"), None);
            assert_eq!(response.head.field("Connection"), Some("close"));
        }
    }
}

#[test]
fn a_chunked_answer_to_http_1_0_comes_without_chunks() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n");
    let Message { head, body } = client.response();
    assert_eq!(body, b"hello world");
    assert_eq!(head.field("Transfer-Encoding"), None);
    assert_eq!(head.field("Content-Length"), None);
    assert_eq!(head.field("Connection"), Some("close"));
}

#[test]
fn empty_bodies_keep_their_framing() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.send_body("POST", "/zero", b"");
    let (mut peer, request) = backend.take();
    assert_eq!(request.head.field("Content-Length"), Some("0"));
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    assert_eq!(client.response().body, b"");
    client.send("POST /none HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    assert_eq!(peer.request().head.field("Transfer-Encoding"), Some("chunked"));
    peer.answer("");
    assert_eq!(client.response().head.field("Content-Length"), Some("0"));
}

#[test]
fn each_piece_of_an_answer_comes_as_it_was_sent() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.get("/events");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    // The head does not wait for the first event, nor any event for the next one.
    assert_eq!(client.head().field("Content-Type"), Some("text/event-stream"));
    for event in 0..20 {
        let event = format!("data: {event}\n\n");
        peer.send_chunk(event.as_bytes());
        assert_eq!(client.chunk(), event.as_bytes());
    }
    peer.send("0\r\n\r\n");
    assert_eq!(client.chunk(), b"");
}

#[test]
fn each_piece_of_a_request_goes_on_as_it_comes() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.send("POST /feed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut peer = backend.accept();
    assert_eq!(peer.head().line, "POST /feed HTTP/1.1");
    for piece in 0..20 {
        client.send_chunk(format!("piece {piece}").as_bytes());
        assert_eq!(peer.chunk(), format!("piece {piece}").as_bytes());
    }
    client.send("0\r\n\r\n");
    assert_eq!(peer.chunk(), b"");
    peer.answer("fed");
    assert_eq!(client.response().text(), "fed");
}

#[test]
fn an_answer_may_begin_while_its_request_is_still_coming() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.send("POST /both HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut peer = backend.accept();
    peer.head();
    client.send_chunk(b"one");
    assert_eq!(peer.chunk(), b"one");
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    for word in ["two", "three", "four"] {
        client.send_chunk(word.as_bytes());
        assert_eq!(peer.chunk(), word.as_bytes());
        peer.send_chunk(word.to_uppercase().as_bytes());
        assert_eq!(client.chunk(), word.to_uppercase().as_bytes());
    }
    client.send("0\r\n\r\n");
    assert_eq!(peer.chunk(), b"");
    peer.send("0\r\n\r\n");
    assert_eq!(client.chunk(), b"");
}

#[test]
fn both_directions_at_once_never_wait_for_each_other() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let (up, down) = (noise(LARGE, 8), noise(LARGE, 9));
    let mut client = daemon.connect();
    client.send("POST /flood HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut peer = backend.accept();
    peer.head();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.head();
    // The end of the answer would end the exchange: it comes after that of the request.
    let framed = chunked(&down);
    let (most, last) = framed.split_at(framed.len() - b"0\r\n\r\n".len());
    let senders = [send_beside(&client, chunked(&up)), send_beside(&peer, most.to_vec())];
    let last = last.to_vec();
    let reader = thread::spawn(move || {
        let got = peer.chunks();
        (got, peer)
    });
    assert_same(&client.chunked(LARGE), &down);
    let (got, mut peer) = reader.join().unwrap();
    assert_same(&got, &up);
    peer.send(last);
    assert_eq!(client.chunk(), b"");
    for sender in senders {
        sender.join().unwrap();
    }
}

#[test]
fn a_reader_that_stops_stops_the_sender() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.get("/slow");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
    // What the kernel's buffers hold on the way, and no more: nothing is gathered up.
    let sent = peer.send_until_full(std::time::Duration::from_millis(500));
    assert!(sent < 64 << 20, "{sent} bytes were taken with nobody reading");
    client.head();
    assert_eq!(client.read(sent).len(), sent);
}

#[test]
fn continue_is_the_backends_to_say() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.send("PUT /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let mut peer = backend.accept();
    let head = peer.head();
    assert_eq!(head.field("Expect"), Some("100-continue"));
    client.expect_silence();
    peer.send("HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(client.head().line, "HTTP/1.1 100 Continue");
    client.send("hello");
    assert_eq!(peer.read(5), b"hello");
    peer.answer("thanks");
    let response = client.response();
    assert_eq!(response.text(), "thanks");
    // All was said and read: the connection goes on.
    assert_eq!(response.head.field("Connection"), None);
    client.get("/next");
    peer.request();
    peer.answer("next");
    assert_eq!(client.response().text(), "next");
}

#[test]
fn a_refused_expectation_reaches_the_client_before_its_body() {
    let backend = Backend::new();
    let daemon = before(&backend);
    for status in ["417 Expectation Failed", "413 Content Too Large"] {
        let mut client = daemon.connect();
        client.send("PUT /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
        let mut peer = backend.accept();
        peer.head();
        peer.send(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno"));
        let response = client.response();
        assert_eq!(response.head.line, format!("HTTP/1.1 {status}"));
        assert_eq!(response.text(), "no");
        // Whether the body still comes can't be known, so this was the last answer.
        assert_eq!(response.head.field("Connection"), Some("close"));
        client.expect_end();
        assert!(peer.expect_gone().is_empty());
    }
}

#[test]
fn a_client_that_does_not_wait_for_leave_keeps_its_connection() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    // Nor does the backend give it: the body is there (RFC 9110 §10.1.1).
    client.send("PUT /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello");
    let (mut peer, request) = backend.take();
    assert_eq!(request.text(), "hello");
    peer.answer("thanks");
    let response = client.response();
    assert_eq!((response.text(), response.head.field("Connection")), ("thanks", None));
    client.get("/next");
    peer.request();
    peer.answer("next");
    assert_eq!(client.response().text(), "next");
}

#[test]
fn an_early_answer_is_read_by_a_client_that_is_still_sending() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.send(format!("POST /big HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n"));
    client.send([b'x'; 1000]);
    let mut peer = backend.accept();
    peer.head();
    peer.read(1000);
    let why = "y".repeat(100_000);
    peer.send(format!("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n{why}"));
    drop(peer);
    // A client that reads nothing before it has sent all: closing on it would reset the
    // connection, and take the answer away.
    client.send(vec![b'x'; LARGE - 1000]);
    let response = client.response();
    assert_eq!((response.status(), response.text()), (413, why.as_str()));
    assert_eq!(response.head.field("Connection"), Some("close"));
}

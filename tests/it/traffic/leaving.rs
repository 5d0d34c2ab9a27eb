//! Clients that leave, and those that only end their direction.

use crate::backend::{Backend, Refusing};
use crate::traffic::door::{Daemon, Setup};

fn before(backend: &Backend) -> Daemon {
    Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", &backend.address).start()
}

#[test]
fn a_half_close_after_a_whole_request_is_answered() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.send_body("POST", "/half", b"body");
    client.half_close();
    let (mut peer, request) = backend.take();
    assert_eq!(request.text(), "body");
    peer.expect_silence();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    peer.send_chunk(b"answer");
    assert_eq!(client.chunk(), b"answer");
    peer.send("0\r\n\r\n");
    assert_eq!(client.chunk(), b"");
    client.expect_end();
    assert_eq!(daemon.record("/half")["reason"], serde_json::Value::Null);
}

#[test]
fn requests_sent_ahead_of_a_half_close_are_all_answered() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.get("/1");
    client.get("/2");
    client.half_close();
    let mut peer = backend.accept();
    for path in ["/1", "/2"] {
        assert_eq!(peer.request().head.line, format!("GET {path} HTTP/1.1"));
        peer.answer(path);
        assert_eq!(client.response().text(), path);
    }
    client.expect_end();
}

#[test]
fn a_reset_cancels_the_backends_work_before_its_answer() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.get("/reset");
    let (mut peer, _) = backend.take();
    client.reset();
    assert!(peer.expect_gone().is_empty());
    let record = daemon.record("/reset");
    assert_eq!((&record["reason"], &record["status"]), (&"client_left".into(), &499.into()));
    daemon.wait_in_flight(0);
}

#[test]
fn a_reset_within_the_answer_cancels_it() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.get("/middle");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    peer.send_chunk(b"some");
    client.head();
    assert_eq!(client.chunk(), b"some");
    client.reset();
    peer.expect_gone();
    assert_eq!(daemon.record("/middle")["reason"], "client_left");
}

#[test]
fn a_client_that_closes_within_the_answer_cancels_it() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.get("/closes");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    peer.send_chunk(b"some");
    client.head();
    assert_eq!(client.chunk(), b"some");
    // It has read all, so this is an orderly end, which might be a half-close: what is
    // sent after it tells.
    drop(client);
    let until = std::time::Instant::now() + crate::daemon::DEADLINE;
    while peer.try_send("4\r\nmore\r\n").is_ok() {
        assert!(std::time::Instant::now() < until, "the backend works for nobody");
    }
    assert_eq!(daemon.record("/closes")["reason"], "client_left");
    daemon.wait_in_flight(0);
}

#[test]
fn a_client_that_stopped_reading_and_resets_cancels_it_too() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.shrink();
    client.get("/full");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
    peer.send_until_full(std::time::Duration::from_millis(300));
    client.reset();
    peer.expect_gone();
    assert_eq!(daemon.record("/full")["reason"], "client_left");
}

#[test]
fn an_end_within_a_request_cancels_it() {
    let backend = Backend::new();
    let daemon = before(&backend);
    for (path, head, part) in
        [("/length", "Content-Length: 10", "half"), ("/chunks", "Transfer-Encoding: chunked", "4\r\nhalf\r\n")]
    {
        let mut client = daemon.connect();
        client.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n{part}"));
        let mut peer = backend.accept();
        peer.head();
        client.half_close();
        // What the backend gets must not look whole.
        assert_eq!(peer.expect_gone(), part.as_bytes());
        assert!(client.expect_gone().is_empty());
        assert_eq!(daemon.record(path)["reason"], "client_left");
    }
    daemon.wait_in_flight(0);
}

#[test]
fn an_end_within_a_head_is_no_request() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = daemon.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n");
    client.half_close();
    client.expect_end();
    assert_eq!(daemon.record_of("client_left")["status"], 499);
    backend.expect_none();
}

#[test]
fn a_retry_stops_when_the_client_leaves() {
    let refusing = Refusing::new();
    let daemon = Setup::new()
        .set("BACKEND_ADDRESS", &refusing.address)
        .set("RETRY_BACKOFF", "24h")
        .set("RETRY_BACKOFF_MAX", "24h")
        .start();
    let mut client = daemon.connect();
    client.get("/waits");
    daemon.wait_in_flight(1);
    client.reset();
    let record = daemon.record("/waits");
    assert_eq!((&record["reason"], &record["attempts"]), (&"client_left".into(), &1.into()));
    daemon.wait_in_flight(0);
}

#[test]
fn a_client_on_a_unix_socket_that_closes_has_left() {
    let backend = Backend::new();
    let setup = Setup::without_listener();
    let door = setup.path("http.sock");
    let socket = std::os::unix::net::UnixListener::bind(&door).unwrap();
    let daemon = setup.set("BACKEND_ADDRESS", &backend.address).listener("http", socket).start();
    for ahead in [false, true] {
        let mut client = crate::peer::Peer::connect_unix(&door);
        client.get("/gone");
        if ahead {
            client.get("/ahead");
        }
        let (mut peer, _) = backend.take();
        drop(client);
        peer.expect_gone();
        daemon.wait_in_flight(0);
    }
}

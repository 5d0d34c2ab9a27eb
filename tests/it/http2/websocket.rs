//! Other protocols on a stream: extended CONNECT (RFC 8441).

use bytes::Bytes;
use h2::ext::Protocol;
use http::Request;
use tungstenite::handshake::derive_accept_key;

use crate::backend::Backend;
use crate::http2::client::{Client, request};
use crate::peer::Head;
use crate::traffic::door::{Daemon, Setup};

fn before(backend: &Backend) -> Daemon {
    Setup::new().set("WORKERS", 1).set("MAX_RETRIES", 0).set("BACKEND_ADDRESS", &backend.address).start()
}

fn connect(path: &str, protocol: &'static str) -> Request<()> {
    let mut request = request("CONNECT", path, &[("sec-websocket-version", "13"), ("sec-websocket-key", "mine")]);
    request.extensions_mut().insert(Protocol::from_static(protocol));
    request
}

/// What agrees to the WebSocket that this asks for.
fn switch(asked: &Head) -> String {
    let accept = derive_accept_key(asked.field("sec-websocket-key").unwrap().as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    )
}

#[test]
fn a_websocket_is_an_upgrade_to_the_backend_and_bytes_pass_both_ways() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let client = Client::connect(daemon.address());
    let mut exchange = client.send(connect("/chat?x", "websocket"), false);
    let mut peer = backend.accept();
    let head = peer.head();
    assert_eq!(head.line, "GET /chat?x HTTP/1.1");
    assert_eq!((head.field("Connection"), head.field("Upgrade")), (Some("upgrade"), Some("websocket")));
    assert_eq!((head.field("sec-websocket-version"), head.field("Host")), (Some("13"), Some("door.test")));
    // The proof between us and the backend is ours.
    let key = head.field("sec-websocket-key").unwrap();
    assert!(key.len() == 24 && key.ends_with("=="), "{key}");
    assert_eq!((head.field("Content-Length"), head.field("Transfer-Encoding")), (None, None));
    peer.send(switch(&head));
    peer.send("first");
    exchange.body.send_data("hello".into(), false).unwrap();
    peer.expect("hello");
    let (mut stream, mut answering) = exchange.both();
    assert_eq!(answering.status, 200);
    assert_eq!(answering.fields.get("sec-websocket-protocol").unwrap(), "chat");
    for gone in ["sec-websocket-accept", "upgrade", "connection", "content-length"] {
        assert!(answering.fields.get(gone).is_none(), "{gone}");
    }
    assert_eq!(answering.piece().unwrap().unwrap(), "first");
    daemon.wait_in_flight(0);
    // Others share the connection meanwhile.
    let other = client.get("/other");
    backend.take().0.answer("other");
    assert_eq!(other.answer().text(), "other");
    for turn in 0..100 {
        stream.send_data(Bytes::from(format!("ping {turn};")), false).unwrap();
        peer.expect(format!("ping {turn};"));
        peer.send(format!("pong {turn};"));
        let mut got = Vec::new();
        while !got.ends_with(b";") {
            got.extend_from_slice(&answering.piece().unwrap().unwrap());
        }
        assert_eq!(got, format!("pong {turn};").as_bytes());
    }
    // Each direction ends by itself.
    stream.send_data("bye".into(), true).unwrap();
    peer.expect("bye");
    peer.expect_end();
    peer.send("last words");
    drop(peer);
    assert_eq!(answering.piece().unwrap().unwrap(), "last words");
    assert!(answering.piece().is_none());
    let record = daemon.record("/chat");
    assert_eq!((&record["status"], &record["version"]), (&101.into(), &"2".into()));
    assert_eq!(record["reason"], serde_json::Value::Null);
}

#[test]
fn what_is_no_101_is_an_answer_and_never_looks_like_a_websocket() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let client = Client::connect(daemon.address());
    let exchange = client.send(connect("/", "websocket"), false);
    backend.take().0.send("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno");
    let answer = exchange.answer();
    assert_eq!((answer.status, answer.text()), (403, "no"));
    // To whom asks by CONNECT a 200 would say that it is spoken.
    let exchange = client.send(connect("/", "websocket"), false);
    backend.take().0.answer("a page");
    exchange.answer().assert_refusal(502, "backend_not_upgraded");
    // Nor does an agreement to something else.
    let exchange = client.send(connect("/", "websocket"), false);
    let (mut peer, head) = backend.take();
    peer.send(switch(&head.head).replace("websocket", "other"));
    exchange.answer().assert_refusal(502, "backend_malformed");
    // HTTP/2 within HTTP/2 is no tunnel of ours.
    client.send(connect("/", "h2c"), false).answer().assert_refusal(400, "bad_request");
}

#[test]
fn a_websocket_that_breaks_off_is_a_reset_on_the_other_side() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let client = Client::connect(daemon.address());
    let exchange = client.send(connect("/one", "websocket"), false);
    let mut peer = backend.accept();
    let head = peer.head();
    peer.send(switch(&head));
    let mut answering = exchange.head();
    peer.reset();
    let error = answering.piece().unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
    let mut exchange = client.send(connect("/two", "websocket"), false);
    let mut peer = backend.accept();
    let head = peer.head();
    peer.send(switch(&head));
    exchange.body.send_reset(h2::Reason::CANCEL);
    peer.expect_gone();
    assert_eq!(daemon.record("/two")["reason"], "client_left");
    daemon.wait_in_flight(0);
}

#[test]
fn a_backend_that_does_not_answer_the_key_speaks_no_websocket() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let client = Client::connect(daemon.address());
    type Change = fn(&str, &str) -> String;
    let changes: [Change; 4] = [
        |answer, line| answer.replace(line, ""),
        |answer, line| answer.replace(line, &format!("{line}{line}")),
        |answer, line| answer.replace(line, &line.to_uppercase()),
        |answer, line| answer.replace(line, "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
    ];
    for change in changes {
        let exchange = client.send(connect("/", "websocket"), false);
        let (mut peer, head) = backend.take();
        let sound = switch(&head.head);
        let line = sound.split_inclusive("\r\n").find(|line| line.starts_with("Sec-WebSocket-Accept")).unwrap();
        peer.send(change(&sound, line));
        exchange.answer().assert_refusal(502, "backend_websocket_accept");
        peer.expect_gone();
    }
    // Another protocol has no such key.
    let exchange = client.send(connect("/", "other"), false);
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n");
    assert_eq!(exchange.head().status, 200);
}

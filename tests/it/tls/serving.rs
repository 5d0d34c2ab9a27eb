//! Requests and connections that come by TLS.

use std::thread;

use crate::backend::Backend;
use crate::peer::noise;
use crate::tls::secured::{Client, NAME, Secured};
use crate::traffic::door::Setup;

fn plain(setup: Setup) -> Setup {
    setup
}

#[test]
fn requests_pass_and_the_backend_is_told_how_they_came() {
    let backend = Backend::new();
    let secured = Secured::before(&backend.address, plain);
    let mut client = secured.connect();
    for path in ["/one", "/two"] {
        client.get(path);
        let (mut peer, request) = backend.take();
        assert_eq!(request.head.field("X-Forwarded-Proto"), Some("https"));
        peer.answer_last(path);
        let (head, body) = client.response();
        assert!(head.starts_with("HTTP/1.1 200 ") && body == path.as_bytes(), "{head}");
    }
    client.send(format!("GET https://{NAME}/x HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n"));
    let (mut peer, request) = backend.take();
    assert!(request.head.line.starts_with("GET /x "), "{:?}", request.head);
    peer.answer_last("last");
    let (_, told) = client.read_to_end();
    assert!(told, "the end of the connection is announced");
    assert_eq!(secured.daemon.record("/one")["listener"], "https");
    assert_eq!((secured.counted("handshakes"), secured.counted("resumed")), (1, 0));

    let daemon = &secured.daemon;
    daemon.replace("FORWARDED", "rfc7239");
    let mut client = secured.connect();
    client.get("/three");
    let (_peer, request) = backend.take();
    assert!(request.head.field("Forwarded").unwrap().ends_with(";proto=https"), "{:?}", request.head);
}

#[test]
fn bodies_pass_both_ways_at_once_whatever_their_size() {
    let backend = Backend::new();
    let secured = Secured::before(&backend.address, plain);
    for size in [1, 3_000, 16_384, 65_537, 3_000_000] {
        let (up, down) = (noise(size, 1), noise(size, 2));
        let mut client = secured.connect();
        let head = format!("POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {size}\r\n\r\n");
        client.send([head.as_bytes(), &up].concat());
        let mut peer = backend.accept();
        let request = peer.request();
        assert!(request.body == up, "{size}");
        let answer = down.clone();
        let sender = thread::spawn(move || {
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"));
            peer.send(&answer);
            peer
        });
        assert!(client.response().1 == down, "{size}");
        drop(sender.join().unwrap());
    }
}

#[test]
fn an_answer_that_ends_with_the_connection_ends_with_notice_or_is_none() {
    let backend = Backend::new();
    let secured = Secured::before(&backend.address, plain);
    let ask = || {
        let mut client = secured.connect();
        client.send(format!("GET / HTTP/1.0\r\nHost: {NAME}\r\n\r\n"));
        let (peer, _) = backend.take();
        (client, peer)
    };
    let (mut client, mut peer) = ask();
    peer.send_end("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nwhole");
    let (answer, told) = client.read_to_end();
    assert!(answer.ends_with(b"whole") && told);
    // Chunked to us, by the end of the connection to a client of HTTP/1.0; broken off.
    let (mut client, mut peer) = ask();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n");
    let mut seen = Vec::new();
    while !seen.ends_with(b"part") {
        seen.extend(client.read(1));
    }
    drop(peer);
    let cut = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| client.read_to_end()));
    assert!(!matches!(cut, Ok((_, true))), "an end that was announced would look like the whole");
}

#[test]
fn a_body_that_its_client_breaks_off_is_not_taken_for_whole() {
    let backend = Backend::new();
    let secured = Secured::before(&backend.address, plain);
    let mut client = secured.connect();
    client.send(format!("POST /part HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 10\r\n\r\nhalf"));
    let mut peer = backend.accept();
    peer.head();
    client.cut();
    peer.expect_gone();
    assert_eq!(secured.daemon.record("/part")["reason"], "client_left");
    // Whoever has said all may cut.
    let mut client = secured.connect();
    client.send(format!("POST /all HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 4\r\n\r\nbody"));
    let (mut peer, request) = backend.take();
    assert_eq!(request.text(), "body");
    client.cut();
    peer.answer_last("fine");
    assert_eq!(client.response().1, b"fine");
}

#[test]
fn tcp_mode_relays_what_was_inside_of_the_tls() {
    let backend = Backend::new();
    let secured = Secured::before("builtin:echo", |setup| {
        setup.route("tcp.env", &format!("MATCH_LISTENER=https\nMODE=tcp\nBACKEND_ADDRESS={}\n", backend.address))
    });
    let mut client = secured.connect();
    let mut peer = backend.accept();
    peer.send("220 ready\r\n");
    client.expect("220 ready\r\n");
    let much = noise(1_000_000, 7);
    client.send(&much);
    assert!(peer.read(much.len()) == much);
    client.end();
    peer.expect_end();
    peer.send("bye");
    drop(peer);
    assert_eq!(client.read_to_end(), (b"bye".to_vec(), true));
    // An end without notice may be somebody else's doing.
    let mut client = secured.connect();
    let mut peer = backend.accept();
    client.send("part");
    peer.expect("part");
    client.cut();
    peer.expect_gone();
}

#[test]
fn a_drain_lets_a_request_finish_and_ends_with_notice() {
    let backend = Backend::new();
    let mut secured = Secured::before(&backend.address, plain);
    let (mut busy, mut idle) = (secured.connect(), secured.connect());
    idle.get("/idle");
    let (mut peer, _) = backend.take();
    peer.answer_last("answer");
    idle.response();
    busy.get("/busy");
    let (mut peer, _) = backend.take();
    let stopping = thread::spawn(move || secured.daemon.stop());
    assert_eq!(idle.read_to_end(), (Vec::new(), true));
    peer.answer_last("late");
    let (answer, told) = busy.read_to_end();
    assert!(answer.ends_with(b"late") && told);
    assert!(stopping.join().unwrap().success());
}

#[test]
fn clients_resume_over_connections_workers_and_reloads() {
    let secured = Secured::before("builtin:echo", plain);
    let ask = |client: &mut Client| {
        client.get("/");
        assert!(client.response().0.starts_with("HTTP/1.1 200 "));
    };
    let mut first = secured.connect();
    ask(&mut first);
    assert!(!first.is_resumed());
    for _ in 0..4 {
        let mut again = secured.connect();
        ask(&mut again);
        assert!(again.is_resumed());
    }
    secured.daemon.reload("MAX_RETRIES=1");
    let mut again = secured.connect();
    ask(&mut again);
    assert!(again.is_resumed());
    assert_eq!((secured.counted("handshakes"), secured.counted("resumed")), (6, 5));
}

#[test]
fn http_1_1_is_agreed_on_where_it_is_offered() {
    let secured = Secured::before("builtin:echo", plain);
    let mut config = (*secured.client).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let client = Client::over(crate::daemon::connect(secured.address), &config.into());
    assert_eq!(client.alpn(), Some(&b"http/1.1"[..]));
    assert_eq!(secured.connect().alpn(), None);
}

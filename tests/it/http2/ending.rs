//! How connections end that speak HTTP/2: by a drain, by age, by idleness (RFC 9113 §6.8, §9.1).

use std::time::Duration;

use crate::backend::Backend;
use crate::http2::client::Client;
use crate::http2::frames::{self, ACK, END_STREAM, Frame, Frames, GOAWAY, HEADERS, NO_ERROR, PING, frame};
use crate::traffic::door::{Daemon, Setup};

fn before(backend: &Backend) -> Setup {
    Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", &backend.address)
}

/// Reads the first of two GOAWAYs, and the ping that asks whether it has arrived.
fn warned(client: &mut Frames) -> Vec<u8> {
    let first = client.await_frame("a GOAWAY", |frame| frame.kind == GOAWAY);
    assert_eq!((first.kind, first.number(0), first.number(4)), (GOAWAY, 0x7fff_ffff, NO_ERROR));
    let ping = client.read();
    assert_eq!((ping.kind, ping.flags), (PING, 0));
    ping.payload
}

#[test]
fn a_drain_says_goodbye_twice_and_what_is_under_way_or_was_sent_meanwhile_is_answered() {
    let backend = Backend::new();
    let mut daemon = before(&backend).start();
    let mut client = Frames::connect(daemon.address());
    client.send(frames::ask(1));
    let (mut first, _) = backend.take();
    daemon.begin_stop();
    let ping = warned(&mut client);
    // It had not heard of the end yet.
    client.send(frames::ask(3));
    let (mut second, _) = backend.take();
    client.send(frame(PING, ACK, 0, ping));
    let last = client.await_frame("the second GOAWAY", |frame| frame.kind == GOAWAY);
    assert_eq!((last.kind, last.number(0), last.number(4)), (GOAWAY, 3, NO_ERROR));
    // Whoever is not heard any more can ask elsewhere.
    client.send(frames::ask(5));
    first.answer("first");
    second.answer("second");
    let rest = client.until_gone();
    for stream in [1, 3] {
        let of = |frame: &&Frame| frame.stream == stream;
        assert!(rest.iter().filter(of).any(|frame| frame.kind == HEADERS), "{rest:?}");
        assert!(rest.iter().filter(of).any(|frame| frame.flags & END_STREAM != 0), "{rest:?}");
    }
    drop(client);
    backend.expect_none();
    assert!(daemon.await_end().success());
}

#[test]
fn a_client_that_does_not_hear_the_goodbye_holds_up_no_drain() {
    let backend = Backend::new();
    let mut daemon = before(&backend).start();
    let mut client = Frames::connect(daemon.address());
    daemon.begin_stop();
    warned(&mut client);
    assert_eq!(client.goodbye(), NO_ERROR);
    drop(client);
    assert!(daemon.await_end().success());
}

#[test]
fn an_old_connection_ends_once_what_is_under_way_is_answered() {
    let backend = Backend::new();
    let daemon = before(&backend).set("MAX_CONNECTION_AGE", "1s").start();
    let mut client = Frames::connect(daemon.address());
    client.send(frames::ask(1));
    let (mut peer, _) = backend.take();
    let ping = warned(&mut client);
    client.send(frame(PING, ACK, 0, ping));
    let last = client.await_frame("the second GOAWAY", |frame| frame.kind == GOAWAY);
    assert_eq!((last.kind, last.number(0)), (GOAWAY, 1));
    peer.answer("old");
    assert_eq!(client.head(1).status(), 200);
    client.end(1);
    client.peer.expect_end();
}

#[test]
fn a_client_that_goes_on_after_the_goodbye_is_refused_in_the_end() {
    let backend = Backend::new();
    let daemon = before(&backend).set("MAX_CONNECTION_AGE", "1s").start();
    let mut client = Frames::connect(daemon.address());
    client.send(frames::ask(1));
    let (_peer, _) = backend.take();
    warned(&mut client);
    let mut stream = 3;
    let code = loop {
        // Each is served for a while, though its client hears nothing; none is waited for.
        client.send(frames::frame(HEADERS, END_STREAM | frames::END_HEADERS, stream, frames::get(&[("x-off", "1")])));
        let frames = client.until_silent(Duration::from_millis(250));
        if let Some(reset) = frames.iter().find(|frame| frame.kind == frames::RST_STREAM) {
            // It may be late.
            assert!((3..=stream).contains(&reset.stream), "{reset:?}");
            break reset.number(0);
        }
        stream += 2;
        assert!(stream < 99, "no end to what is served");
    };
    assert_eq!(code, frames::REFUSED_STREAM);
}

#[test]
fn an_idle_connection_ends_in_order_and_a_busy_one_does_not() {
    let backend = Backend::new();
    let daemon = before(&backend).set("IDLE_TIMEOUT", "300ms").start();
    let mut idle = Frames::connect(daemon.address());
    let client = Client::connect(daemon.address());
    let exchange = client.get("/slow");
    let (mut peer, _) = backend.take();
    let ping = warned(&mut idle);
    idle.send(frame(PING, ACK, 0, ping));
    assert_eq!(idle.goodbye(), NO_ERROR);
    peer.answer("slow");
    assert_eq!(exchange.answer().text(), "slow");
    client.ended().unwrap();
}

#[test]
fn a_client_that_says_goodbye_has_its_answers() {
    let backend = Backend::new();
    let daemon: Daemon = before(&backend).start();
    let mut client = Frames::connect(daemon.address());
    client.send(frames::ask(1));
    let (mut peer, _) = backend.take();
    client.send(frame(GOAWAY, 0, 0, [0; 8]));
    client.expect_alive();
    peer.answer("all the same");
    assert_eq!(client.head(1).status(), 200);
    client.end(1);
}

#[test]
fn what_does_not_come_in_time_ends_the_connection() {
    let backend = Backend::new();
    let daemon = before(&backend).set("HEADER_TIMEOUT", "500ms").start();
    // The rest of the preface.
    let mut client = Frames::raw(daemon.address());
    client.send(&frames::PREFACE[..18]);
    client.peer.expect_gone();
    // The rest of a header block, which keeps no other from being answered.
    let mut client = Frames::connect(daemon.address());
    client.send(frames::ask(1));
    let (mut peer, _) = backend.take();
    peer.answer("whole");
    assert_eq!(client.head(1).status(), 200);
    client.end(1);
    client.send(frame(HEADERS, frames::END_STREAM, 3, frames::get(&[])));
    assert_eq!(client.goodbye(), frames::ENHANCE_YOUR_CALM);
    let mut client = Frames::connect(daemon.address());
    client.send(&frames::ask(1)[..12]);
    assert_eq!(client.goodbye(), frames::ENHANCE_YOUR_CALM);
    daemon.logged("why", |line| line["reason"] == "client_header_timeout" && line["message_id"].is_string());
    // One that says nothing at all may do so for as long as it is idle.
    let mut client = Frames::connect(daemon.address());
    client.expect_alive();
    assert!(client.until_silent(Duration::from_millis(1000)).is_empty());
    client.expect_alive();
    backend.expect_none();
}

//! What was handed over for a client that takes it late, or not at all.

use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::backend::Backend;
use crate::daemon::DEADLINE;
use crate::http2::frames::{
    self, ACK, DATA, END_STREAM, ENHANCE_YOUR_CALM, Frames, GOAWAY, HEADERS, NO_ERROR, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, frame,
};
use crate::peer::Peer;
use crate::traffic::door::{Daemon, Setup};

/// Bytes of an answer, which the window of a stream takes whole.
const LENGTH: usize = 60_000;

fn before(backend: &Backend) -> Setup {
    Setup::new().set("WORKERS", 1).set("ACCESS_LOG", "errors").set("BACKEND_ADDRESS", &backend.address)
}

/// A client between which and the daemon there is little room.
fn narrow(daemon: &Daemon) -> Frames {
    // Small from the start: what has been promised to the other side can't be taken back.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&daemon.address().into()).unwrap();
    let mut client = Frames { peer: Peer::tcp(socket.into()) };
    client.send([frames::PREFACE, &frame(SETTINGS, 0, 0, ""), &frame(SETTINGS, ACK, 0, "")].concat());
    client.send(frame(WINDOW_UPDATE, 0, 0, 0x7fff_0000_u32.to_be_bytes()));
    client
}

/// A client that is owed so many answers, of which it reads none: their stories are over.
fn owed(daemon: &Daemon, backend: &Backend, answers: u32) -> Frames {
    let mut client = narrow(daemon);
    for turn in 0..answers {
        client.send(frames::ask(1 + 2 * turn));
        let (mut peer, _) = backend.take();
        peer.answer_last(&"x".repeat(LENGTH));
    }
    daemon.wait_in_flight(0);
    client
}

/// Reads all answers to their ends.
fn read(client: &mut Frames, answers: u32) {
    client.peer.shrink_to(1 << 20);
    let (mut ended, mut bytes) = (0, 0);
    while ended < answers {
        let frame = client.read();
        if frame.kind == PING && frame.flags == 0 {
            client.send(self::frame(PING, ACK, 0, frame.payload));
        } else if frame.kind == DATA {
            bytes += frame.payload.len();
            ended += u32::from(frame.flags & END_STREAM);
        }
    }
    assert_eq!(bytes, LENGTH * answers as usize);
}

#[test]
fn answers_that_are_taken_late_are_whole_in_a_drain_and_otherwise() {
    for stops in [true, false] {
        let backend = Backend::new();
        let mut daemon = before(&backend).set("DRAIN_TIMEOUT", "60s").set("IDLE_TIMEOUT", "100ms").start();
        let mut client = owed(&daemon, &backend, 100);
        let mut other = Frames::connect(daemon.address());
        if stops {
            daemon.begin_stop();
        }
        // One that has all of its answers, and says nothing, is left by then.
        assert_eq!(other.goodbye(), NO_ERROR);
        read(&mut client, 100);
        let last = client.until_gone();
        assert!(last.iter().all(|frame| frame.kind != GOAWAY || frame.number(4) == NO_ERROR), "{last:?}");
        drop(client);
        if stops {
            assert!(daemon.await_end().success());
        }
    }
}

/// Whatever else is under way on its connection.
#[test]
fn a_client_that_does_not_take_its_answers_is_let_go() {
    for shuts in [false, true] {
        let backend = Backend::new();
        let daemon = before(&backend).set("BODY_TIMEOUT", "500ms").start();
        let mut client = owed(&daemon, &backend, 99);
        client.send(frames::ask(1001));
        let (_peer, _) = backend.take();
        let reader = if shuts {
            // It reads, but what was to come has no window any more.
            client.send(frame(SETTINGS, 0, 0, [0, 4, 0, 0, 0, 0]));
            client.peer.shrink_to(1 << 20);
            Some(std::thread::spawn(move || while client.try_read().is_some() {}))
        } else {
            std::mem::forget(client);
            None
        };
        daemon.logged("why", |line| line["reason"] == "client_slow_reader" && line["message_id"].is_string());
        daemon.wait_in_flight(0);
        daemon.wait("no connection", |status| status["connections"] == 0);
        if let Some(reader) = reader {
            reader.join().unwrap();
        }
    }
}

#[test]
fn a_client_that_resets_what_it_is_owed_has_an_idle_connection() {
    let backend = Backend::new();
    let daemon = before(&backend).set("IDLE_TIMEOUT", "1s").set("BODY_TIMEOUT", "1h").start();
    let mut client = owed(&daemon, &backend, 100);
    for turn in 0..100 {
        client.send(frame(RST_STREAM, 0, 1 + 2 * turn, [0, 0, 0, 8]));
    }
    client.peer.shrink_to(1 << 20);
    let goodbye = loop {
        let frame = client.read();
        if frame.kind == GOAWAY {
            break frame;
        }
    };
    assert_eq!(goodbye.number(4), NO_ERROR);
}

/// For a late header block as for anything else.
#[test]
fn a_client_that_reads_late_learns_why_its_connection_ended() {
    let backend = Backend::new();
    let daemon = before(&backend).set("HEADER_TIMEOUT", "500ms").start();
    let mut client = owed(&daemon, &backend, 100);
    let mut other = Frames::connect(daemon.address());
    for client in [&mut client, &mut other] {
        client.send(frame(HEADERS, END_STREAM, 1001, frames::get(&[])));
    }
    assert_eq!(other.goodbye(), ENHANCE_YOUR_CALM);
    assert_eq!(client.goodbye(), ENHANCE_YOUR_CALM);
}

/// No window holds them back, so that they are not read from the backend before the client
/// takes those that have come.
#[test]
fn interim_responses_wait_for_a_client_that_does_not_take_them() {
    const MOST: usize = 64;
    let backend = Backend::new();
    let daemon = before(&backend).set("BODY_TIMEOUT", "1h").set("RESPONSE_TIMEOUT", "1h").start();
    let mut client = narrow(&daemon);
    let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: <{}>\r\n\r\n", "x".repeat(24 * 1024));
    let hints = hint.repeat(MOST);
    let mut writers = Vec::new();
    // What the sockets hold is less than half of what all of these send.
    for turn in 0..16 {
        client.send(frames::ask(1 + 2 * turn));
        let (mut peer, _) = backend.take();
        let hints = hints.clone();
        writers.push(std::thread::spawn(move || (peer.send_while_taken(&hints, Duration::from_secs(1)), peer)));
    }
    let sent: Vec<(usize, Peer)> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    let taken: usize = sent.iter().map(|(sent, _)| sent).sum();
    assert!(taken < 8 * hints.len(), "{taken} bytes of {}", 16 * hints.len());
    // And once it takes them they go on.
    client.peer.shrink_to(1 << 20);
    let mut writers = Vec::new();
    for (sent, mut peer) in sent {
        let rest = hints.get(sent..).unwrap_or_default().to_owned();
        writers.push(std::thread::spawn(move || {
            assert_eq!(peer.send_while_taken(&rest, DEADLINE), rest.len());
            peer.answer_last("whole");
        }));
    }
    let (mut heads, mut ended) = (0, 0);
    while ended < 16 {
        let frame = client.read();
        heads += usize::from(frame.kind == HEADERS);
        ended += u32::from(frame.kind == DATA) * u32::from(frame.flags & END_STREAM);
    }
    assert_eq!(heads, 16 * (MOST + 1));
    writers.into_iter().for_each(|writer| writer.join().unwrap());
}

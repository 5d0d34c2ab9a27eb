//! What one connection may ask for, and what becomes of it when it asks for more.

use std::time::Duration;

use crate::backend::Backend;
use crate::http2::client::Client;
use crate::http2::frames::{
    self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Frames, GOAWAY, HEADERS, PING, PRIORITY,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, frame,
};
use crate::traffic::door::{Daemon, Setup};

fn before(backend: &Backend) -> Daemon {
    Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", &backend.address).start()
}

/// Waits for the record of a connection that was ended.
fn assert_recorded(daemon: &Daemon, reason: &str) {
    let record = daemon.logged(reason, |line| line["reason"] == reason && line["message_id"].is_string());
    assert_eq!((&record["client"], record["level"].as_str()), (&"127.0.0.1".into(), Some("WARN")), "{record}");
    assert_eq!(record["code"], "ENHANCE_YOUR_CALM", "{record}");
}

#[test]
fn limits_are_told_beforehand() {
    let daemon = Setup::new().set("HTTP2_MAX_STREAMS", 7).set("MAX_HEADER_SIZE", "20KiB").start();
    let mut client = Frames::raw(daemon.address());
    client.send([frames::PREFACE, &frame(SETTINGS, 0, 0, "")].concat());
    let settings = client.read();
    assert_eq!(settings.kind, SETTINGS);
    let told = |key: u16| {
        let mut pairs = settings.payload.chunks(6);
        pairs.find(|pair| pair[..2] == key.to_be_bytes()).map(|pair| u32::from_be_bytes(pair[2..].try_into().unwrap()))
    };
    assert_eq!((told(3), told(6), told(4), told(5)), (Some(7), Some(20_480), Some(65_536), Some(16_384)));
    let opened = client.await_frame("a window", |frame| frame.kind == WINDOW_UPDATE && frame.stream == 0);
    assert_eq!(opened.number(0), 7 * 65_536 - 65_535);
}

#[test]
fn streams_beyond_the_limit_are_refused_and_may_come_again() {
    let backend = Backend::new();
    let daemon =
        Setup::new().set("WORKERS", 1).set("HTTP2_MAX_STREAMS", 2).set("BACKEND_ADDRESS", &backend.address).start();
    let mut client = Frames::connect(daemon.address());
    client.send([frames::ask(1), frames::ask(3), frames::ask(5)].concat());
    assert_eq!(client.reset(5), frames::REFUSED_STREAM);
    for _ in 0..2 {
        backend.take().0.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
    }
    for _ in 0..2 {
        client.await_frame("an end", |frame| frame.kind == DATA && frame.flags == END_STREAM);
    }
    client.send(frames::ask(7));
    backend.take().0.answer("again");
    client.end(7);
    backend.expect_none();
}

#[test]
fn a_head_that_is_too_large_is_431_counted_with_32_bytes_for_each_field() {
    let backend = Backend::new();
    let daemon =
        Setup::new().set("WORKERS", 1).set("MAX_HEADER_SIZE", 2048).set("BACKEND_ADDRESS", &backend.address).start();
    let mut client = Frames::connect(daemon.address());
    // 4 fields of the start have 42 and 128 bytes.
    let pseudo: usize = frames::GET.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
    let field = ("x", "y");
    let fits = (2047 - pseudo) / 34;
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, frames::get(&vec![field; fits])));
    let (mut peer, got) = backend.take();
    assert_eq!(got.head.all("x").len(), fits);
    peer.answer("fits");
    client.end(1);
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, frames::get(&vec![field; fits + 1])));
    assert_eq!(client.head(3).status(), 431);
    client.expect_alive();
    daemon.record_of("header_too_large");
    // A block that goes on and on is read to its end only within bounds.
    client.send(frame(HEADERS, END_STREAM, 5, frames::get(&[])));
    let mut piece = Vec::new();
    for _ in 0..400 {
        piece.extend(frame(CONTINUATION, 0, 5, frames::block(&[field; 40])));
    }
    let _ = client.peer.try_send(piece);
    assert_eq!(client.goodbye(), ENHANCE_YOUR_CALM);
    assert_recorded(&daemon, "http2_flood");
}

#[test]
fn floods_of_frames_that_bring_nothing_end_the_connection() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let floods: &[(&str, Vec<u8>)] = &[
        ("PING", frame(PING, 0, 0, "pingping")),
        ("PING answers", frame(PING, ACK, 0, "pingping")),
        ("SETTINGS", frame(SETTINGS, 0, 0, "")),
        ("PRIORITY", frame(PRIORITY, 0, 1, [0, 0, 0, 0, 9])),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, 1_u32.to_be_bytes())),
        ("unknown", frame(0xfa, 0, 0, "whatever")),
        ("empty DATA", frame(DATA, 0, 1, "")),
        ("CONTINUATION", frame(CONTINUATION, 0, 1, "")),
    ];
    for (name, flood) in floods {
        let mut client = Frames::connect(daemon.address());
        let mut start = Vec::new();
        match *name {
            "empty DATA" => start = frame(HEADERS, END_HEADERS, 1, frames::post(&[])),
            "CONTINUATION" => start = frame(HEADERS, 0, 1, ""),
            _ => {}
        }
        // 100 at a time are borne.
        if start.is_empty() {
            client.send(flood.repeat(100));
            client.expect_alive();
        }
        let _ = client.peer.try_send([start, flood.repeat(40_000)].concat());
        assert_eq!(client.goodbye(), ENHANCE_YOUR_CALM, "{name}");
    }
    assert_recorded(&daemon, "http2_flood");
    daemon.wait("no connection", |status| status["connections"] == 0);
}

/// An answer to a frame that brings nothing makes up for none.
#[test]
fn frames_that_bring_nothing_are_a_flood_also_one_by_one() {
    const MOST: u32 = 20_000;
    let daemon = Setup::new().start();
    for flood in [frame(PING, 0, 0, "pingping"), frame(SETTINGS, 0, 0, "")] {
        let mut client = Frames::connect(daemon.address());
        let mut answered = 0;
        let last = loop {
            if client.peer.try_send(&flood).is_err() {
                break None;
            }
            match client.try_read() {
                Some(frame) if frame.kind == GOAWAY => break Some(frame),
                Some(frame) => answered += u32::from(frame.flags == ACK),
                None => break None,
            }
            assert!(answered < MOST, "no end to answers");
        };
        assert!(answered >= 900, "only {answered} were borne");
        // With bytes of its own on their way it may see the end alone.
        assert!(last.is_none_or(|last| last.number(4) == ENHANCE_YOUR_CALM));
    }
    assert_recorded(&daemon, "http2_flood");
}

#[test]
fn a_client_that_goes_on_beyond_its_limit_is_let_go() {
    let backend = Backend::new();
    let daemon =
        Setup::new().set("WORKERS", 1).set("HTTP2_MAX_STREAMS", 1).set("BACKEND_ADDRESS", &backend.address).start();
    let mut client = Frames::connect(daemon.address());
    client.send(frames::ask(1));
    let _held = backend.take();
    // One that had not heard of its limit may be a good deal beyond it.
    let beyond = |from: u32, count: u32| (0..count).flat_map(|turn| frames::ask(from + 2 * turn)).collect::<Vec<_>>();
    client.send(beyond(3, 200));
    assert_eq!(client.reset(3 + 2 * 199), frames::REFUSED_STREAM);
    client.expect_alive();
    let _ = client.peer.try_send(beyond(1001, 20_000));
    assert_eq!(client.goodbye(), ENHANCE_YOUR_CALM);
    assert_recorded(&daemon, "http2_flood");
    daemon.wait_in_flight(0);
}

#[test]
fn streams_that_are_opened_to_be_reset_end_the_connection() {
    let backend = Backend::new();
    let daemon = before(&backend);
    // CVE-2023-44487: all at once.
    let mut client = Frames::connect(daemon.address());
    let burst: Vec<u8> = (0..2000)
        .flat_map(|turn| {
            let stream = 1 + 2 * turn;
            [frames::ask(stream), frame(RST_STREAM, 0, stream, [0, 0, 0, 8])].concat()
        })
        .collect();
    let _ = client.peer.try_send(burst);
    assert_eq!(client.goodbye(), ENHANCE_YOUR_CALM);
    // One after the other, each after it was taken up.
    let mut client = Frames::connect(daemon.address());
    let mut resets = 0_u32;
    loop {
        let stream = 1 + 2 * resets;
        let ping = frame(PING, 0, 0, stream.to_be_bytes().repeat(2));
        let ask = [frames::ask(stream), ping, frame(RST_STREAM, 0, stream, [0, 0, 0, 8])].concat();
        if client.peer.try_send(ask).is_err() || client.reads_goaway(1) {
            break;
        }
        resets += 1;
        assert!(resets < 5_000, "no end to resets");
    }
    assert!(resets >= 400, "only {resets} resets were borne");
    daemon.wait_in_flight(0);
    assert_recorded(&daemon, "http2_flood");
}

#[test]
fn streams_that_the_client_has_us_reset_end_the_connection() {
    let backend = Backend::new();
    let daemon = before(&backend);
    // CVE-2025-8671: a window that opens by nothing is a fault of the stream alone (§6.9).
    let mut client = Frames::connect(daemon.address());
    let burst: Vec<u8> = (0..2000)
        .flat_map(|turn| {
            let stream = 1 + 2 * turn;
            [
                frame(HEADERS, END_HEADERS, stream, frames::post(&[])),
                frame(WINDOW_UPDATE, 0, stream, [0x7f, 255, 255, 255]),
            ]
            .concat()
        })
        .collect();
    let _ = client.peer.try_send(burst);
    assert_eq!(client.goodbye(), ENHANCE_YOUR_CALM);
    daemon.wait_in_flight(0);
    assert_recorded(&daemon, "http2_flood");
}

#[test]
fn a_client_that_takes_many_small_frames_may_open_many_windows() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = Frames::connect(daemon.address());
    client.send(frames::ask(1));
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.head(1);
    for _ in 0..1500 {
        peer.send_chunk(b"tick");
        client.await_frame("a tick", |frame| frame.kind == DATA);
        let window = 4_u32.to_be_bytes();
        client.send([frame(WINDOW_UPDATE, 0, 0, window), frame(WINDOW_UPDATE, 0, 1, window)].concat());
    }
    peer.send("0\r\n\r\n");
    client.end(1);
}

#[test]
fn a_client_that_reads_nothing_holds_little() {
    let backend = Backend::new();
    let daemon = Setup::new()
        .set("WORKERS", 1)
        .set("BODY_TIMEOUT", "5s")
        .set("MIN_BODY_RATE", "off")
        .set("BACKEND_ADDRESS", &backend.address)
        .start();
    let before = daemon.memory();
    let mut client = Frames::with(daemon.address(), &[(4, 0x7fff_ffff)]);
    client.peer.shrink();
    client.send(frame(WINDOW_UPDATE, 0, 0, 0x7fff_0000_u32.to_be_bytes()));
    let peers: Vec<_> = (0..50)
        .map(|turn| {
            client.send(frames::ask(1 + 2 * turn));
            let (mut peer, _) = backend.take();
            peer.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5000000\r\n\r\n");
            peer.send_until_full(Duration::from_millis(20));
            peer
        })
        .collect();
    assert!(daemon.memory() < before + (24 << 20), "{} bytes more", daemon.memory() - before);
    daemon.record_of("client_slow_reader");
    daemon.wait_in_flight(0);
    drop(peers);
}

/// A few bytes of a frame would keep all that they were read with.
#[test]
fn bodies_in_small_frames_that_wait_hold_little_more_than_they_are() {
    let backend = Backend::new();
    let setup = Setup::new().set("WORKERS", 1).set("MAX_CONCURRENT_REQUESTS", 1).set("QUEUE_LIMIT", 16);
    let daemon = setup.set("QUEUE_TIMEOUT", "1h").set("BACKEND_ADDRESS", &backend.address).start();
    let mut client = Frames::connect(daemon.address());
    client.send(frame(HEADERS, END_HEADERS, 1, frames::post(&[])));
    let mut peer = backend.accept();
    peer.head();
    // What is taken is between what waits.
    let before = daemon.memory();
    for turn in 0..16 {
        let stream = 3 + 2 * turn;
        client.send(frame(HEADERS, END_HEADERS, stream, frames::post(&[])));
        for _ in 0..64 {
            let pair = [frame(DATA, 0, stream, [b'w'; 256]), frame(DATA, 0, 1, [b't'; 4096])].concat();
            client.send(pair.repeat(4));
            peer.chunked(4 * 4096);
        }
    }
    daemon.wait_queued(16);
    let more = daemon.memory().saturating_sub(before);
    assert!(more < 8 << 20, "{more} bytes more for {} that wait", 16 * 256 * 256);
}

/// Header compression remembers small values for as long as the connection lasts.
#[test]
fn a_connection_keeps_no_heads_of_its_answers() {
    const CLIENTS: u32 = 20;
    const TURNS: u32 = 60;
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut clients: Vec<Frames> = (0..CLIENTS).map(|_| Frames::connect(daemon.address())).collect();
    let mut peer = None;
    let mut turn = |client: &mut Frames, stream: u32, id: u32| {
        client.send(frames::ask(stream));
        let peer = peer.get_or_insert_with(|| backend.accept());
        peer.request();
        let large = "x".repeat(24 * 1024);
        peer.send(format!("HTTP/1.1 200 OK\r\nX-Large: {large}\r\nX-Id: {id}\r\nContent-Length: 1\r\n\r\nx"));
        client.end(stream);
    };
    // What serving takes at all is there then.
    clients.iter_mut().for_each(|client| turn(client, 1, 0));
    let before = daemon.memory();
    for id in 1..TURNS {
        clients.iter_mut().zip(0..).for_each(|(client, number)| turn(client, 1 + 2 * id, number * TURNS + id));
    }
    let more = daemon.memory().saturating_sub(before);
    assert!(more < 8 << 20, "{more} bytes more");
}

#[test]
fn ten_thousand_requests_on_one_connection_are_no_flood() {
    let daemon = Setup::new().set("ACCESS_LOG", "off").start();
    let client = Client::connect(daemon.address());
    for _ in 0..100 {
        let exchanges: Vec<_> = (0..100).map(|_| client.get("/")).collect();
        for exchange in exchanges {
            assert_eq!(exchange.answer().status, 200);
        }
    }
}

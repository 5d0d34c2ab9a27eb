//! Bodies and what stands behind them, in both directions, and the windows they go through.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

use crate::backend::Backend;
use crate::http2::client::{Client, request};
use crate::http2::frames::{self, DATA, END_HEADERS, Frames, HEADERS, NO_ERROR, WINDOW_UPDATE, frame};
use crate::traffic::door::{Daemon, Setup};

fn before(backend: &Backend) -> Daemon {
    Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", &backend.address).start()
}

fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn large_bodies_pass_in_both_directions() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let client = Client::connect(daemon.address());
    let body: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7) as u8).collect();
    for length in [true, false] {
        let stated = body.len().to_string();
        let stated: &[(&str, &str)] = if length { &[("content-length", &stated)] } else { &[] };
        let mut exchange = client.send(request("POST", "/", stated), false);
        exchange.body.send_data(Bytes::from(body.clone()), true).unwrap();
        let mut peer = backend.accept();
        let head = peer.head();
        assert_eq!(head.field("Transfer-Encoding"), (!length).then_some("chunked"));
        let got = if length { peer.read(body.len()) } else { peer.chunked(body.len()) };
        assert!(got == body);
        if length {
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()));
            peer.send(&body);
        } else {
            peer.expect("0\r\n\r\n");
            peer.send(CHUNKED);
            body.chunks(100_000).for_each(|chunk| peer.send_chunk(chunk));
            peer.send("0\r\n\r\n");
        }
        let answer = exchange.answer();
        assert_eq!(answer.field("content-length").is_some(), length);
        assert!(answer.body == body);
    }
}

#[test]
fn trailers_pass_in_both_directions() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let client = Client::connect(daemon.address());
    let mut peer = None;
    for te in [true, false] {
        let asked: &[(&str, &str)] = if te { &[("te", "trailers"), ("trailer", "sum")] } else { &[("trailer", "sum")] };
        let mut exchange = client.send(request("POST", "/", asked), false);
        exchange.body.send_data("abc".into(), false).unwrap();
        exchange.body.send_trailers(fields(&[("sum", "9"), ("host", "x"), ("x-b", "")])).unwrap();
        let peer = peer.get_or_insert_with(|| backend.accept());
        let head = peer.head();
        assert_eq!((head.field("TE"), head.field("trailer")), (te.then_some("trailers"), Some("sum")));
        peer.expect("3\r\nabc\r\n0\r\nsum: 9\r\nx-b: \r\n\r\n");
        peer.send(format!("{CHUNKED}2\r\nok\r\n0\r\nGrpc-Status: 0\r\nContent-Length: 9\r\n\r\n"));
        let answer = exchange.answer();
        assert_eq!(answer.text(), "ok");
        assert_eq!(answer.trailers, te.then(|| fields(&[("grpc-status", "0")])));
    }
    // Without a body before them.
    let exchange = client.send(request("GET", "/", &[("te", "trailers")]), true);
    let peer = peer.as_mut().unwrap();
    peer.request();
    peer.send(format!("{CHUNKED}0\r\nGrpc-Status: 5\r\n\r\n"));
    let answer = exchange.answer();
    assert_eq!((answer.text(), &answer.trailers), ("", &Some(fields(&[("grpc-status", "5")]))));
}

#[test]
fn a_small_answer_is_a_head_and_one_frame() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = Frames::connect(daemon.address());
    let mut peer = None;
    for (stream, answer) in [
        (1, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody".to_owned()),
        (3, format!("{CHUNKED}2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n")),
    ] {
        client.send(frames::ask(stream));
        let peer = peer.get_or_insert_with(|| backend.accept());
        peer.request();
        peer.send(answer);
        client.head(stream);
        let data = client.read();
        assert_eq!((data.kind, data.flags, data.stream), (DATA, frames::END_STREAM, stream));
        assert_eq!(data.payload, b"body");
    }
}

#[test]
fn what_comes_in_pieces_goes_on_in_pieces() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let client = Client::connect(daemon.address());
    let mut exchange = client.send(request("POST", "/", &[]), false);
    let mut peer = backend.accept();
    peer.head();
    for piece in ["one", "two"] {
        exchange.body.send_data(piece.into(), false).unwrap();
        peer.expect(format!("3\r\n{piece}\r\n"));
    }
    peer.send(CHUNKED);
    let mut answering = exchange.head();
    for piece in ["three", "four"] {
        peer.send_chunk(piece.as_bytes());
        assert_eq!(answering.piece().unwrap().unwrap(), piece);
    }
}

#[test]
fn a_body_that_nobody_takes_fills_its_window_and_others_pass() {
    let (stuck, free) = (Backend::new(), Backend::new());
    let daemon = Setup::new()
        .set("WORKERS", 1)
        .set("BACKEND_ADDRESS", &free.address)
        .route("10-stuck.env", &format!("MATCH_PATH=/stuck\nBACKEND_ADDRESS={}\n", stuck.address))
        .start();
    let mut client = Frames::connect(daemon.address());
    client.send(frame(
        HEADERS,
        END_HEADERS,
        1,
        frames::block(&[(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/stuck")]),
    ));
    let mut peer = stuck.accept();
    peer.head();
    // Fill the sockets behind, for as long as the window is opened again.
    let piece = [b'x'; 16_384];
    let mut window = 65_536_i64;
    let mut sent = 0;
    loop {
        while window >= 16_384 {
            client.send(frame(DATA, 0, 1, piece));
            window -= 16_384;
            sent += 16_384;
        }
        assert!(sent < 64 << 20, "no end to what is taken");
        let opened = client.until_silent(Duration::from_millis(300)).into_iter();
        let opened = opened.filter(|frame| (frame.kind, frame.stream) == (WINDOW_UPDATE, 1));
        let opened: u32 = opened.map(|frame| frame.number(0)).sum();
        if opened == 0 {
            break;
        }
        window += i64::from(opened);
    }
    // Others are served meanwhile.
    client.send(frames::ask(3));
    free.take().0.answer("free");
    client.end(3);
    // And it goes on once it is taken.
    let read = peer.chunked(sent);
    assert!(read.iter().all(|byte| *byte == b'x'));
    client.send(frame(DATA, frames::END_STREAM, 1, "end"));
    peer.expect("3\r\nend\r\n0\r\n\r\n");
    peer.answer("taken");
    client.end(1);
}

#[test]
fn bodies_that_nobody_takes_hold_up_no_other_however_many() {
    let (stuck, free) = (Backend::new(), Backend::new());
    let route = format!("MATCH_PATH=/stuck\nBACKEND_ADDRESS={}\nMAX_BACKEND_CONNECTIONS=9\n", stuck.address);
    let setup = Setup::new().set("WORKERS", 1).set("QUEUE_TIMEOUT", "1h").set("BACKEND_ADDRESS", &free.address);
    let daemon = setup.route("10-stuck.env", &route).start();
    let mut client = Frames::connect(daemon.address());
    let pseudo = |path| [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", path)];
    // Nine have a connection, and the others wait for one.
    for turn in 0..99 {
        let stream = 1 + 2 * turn;
        client.send(frame(HEADERS, END_HEADERS, stream, frames::block(&pseudo("/stuck"))));
        client.send(frame(DATA, 0, stream, [b'x'; 16_384]).repeat(4));
    }
    client.send(frame(HEADERS, END_HEADERS, 1001, frames::block(&pseudo("/"))));
    client.send(frame(DATA, frames::END_STREAM, 1001, "free"));
    let (mut other, request) = free.take();
    assert_eq!(request.body, b"free");
    other.answer("free");
    client.end(1001);
    // Nothing is lost of what waits.
    for turn in 0..99 {
        client.send(frame(DATA, frames::END_STREAM, 1 + 2 * turn, ""));
    }
    for _ in 0..99 {
        let (mut peer, request) = stuck.take();
        assert!(request.body == [b'x'; 65_536]);
        peer.answer_last("taken");
    }
    for _ in 0..99 {
        client.await_frame("an end", |frame| frame.kind == DATA && frame.flags & frames::END_STREAM != 0);
    }
}

#[test]
fn an_answer_that_is_not_read_keeps_no_other_waiting() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let client = Client::connect(daemon.address());
    let unread = client.get("/unread");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n");
    peer.send(vec![b'x'; 300_000]);
    // Its window stays shut after the first 64 KiB, of which the connection's is given back.
    let mut unread = unread.head();
    let mut got = 0;
    while got < 65_535 {
        let piece = client.wait(unread.body.data()).unwrap().unwrap();
        got += piece.len();
    }
    let mut raw = Frames::connect(daemon.address());
    raw.expect_alive();
    for turn in 0..10 {
        let exchange = client.send(request("HEAD", &format!("/{turn}"), &[]), true);
        let (mut other, _) = backend.take();
        other.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n");
        assert_eq!(exchange.answer().status, 200);
    }
    let _ = unread.body.flow_control().release_capacity(got);
    while got < 300_000 {
        got += unread.piece().unwrap().unwrap().len();
    }
    assert!(unread.piece().is_none());
}

#[test]
fn an_answer_ahead_of_its_request_ends_the_rest_of_it_without_an_error() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = Frames::connect(daemon.address());
    client.send(frame(HEADERS, END_HEADERS, 1, frames::post(&[])));
    client.send(frame(DATA, 0, 1, "some"));
    let mut peer = backend.accept();
    peer.head();
    peer.send("HTTP/1.1 413 Too much\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno");
    assert_eq!(client.head(1).status(), 413);
    client.end(1);
    assert_eq!(client.reset(1), NO_ERROR);
    // What was on its way is dropped.
    client.send(frame(DATA, 0, 1, "more"));
    client.expect_alive();
}

/// What was on its way when the answer came is no fault of the client's.
#[test]
fn many_answers_ahead_of_their_requests_are_no_misbehaviour() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = Frames::connect(daemon.address());
    for turn in 0..5 {
        let streams: Vec<u32> = (0..90).map(|at| 1 + 2 * (90 * turn + at)).collect();
        for stream in &streams {
            client.send(frame(HEADERS, END_HEADERS, *stream, frames::post(&[])));
            let mut peer = backend.accept();
            peer.head();
            peer.send("HTTP/1.1 413 Too much\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno");
            assert_eq!(client.reset(*stream), NO_ERROR);
        }
        for stream in &streams {
            client.send(frame(DATA, 0, *stream, [b'x'; 1000]).repeat(3));
        }
        client.expect_alive();
    }
}

#[test]
fn a_body_that_is_not_as_long_as_its_head_says_is_refused() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = Frames::connect(daemon.address());
    for (stream, sent) in [(1, "abc"), (3, "abcde")] {
        client.send(frame(HEADERS, END_HEADERS, stream, frames::post(&[("content-length", "4")])));
        let mut peer = backend.accept();
        peer.head();
        client.send(frame(DATA, frames::END_STREAM, stream, sent));
        assert_eq!(client.reset(stream), frames::PROTOCOL_ERROR);
        peer.expect_gone();
    }
    client.expect_alive();
}

#[test]
fn a_client_whose_window_stays_shut_is_given_up_as_a_slow_reader() {
    let backend = Backend::new();
    let daemon =
        Setup::new().set("WORKERS", 1).set("BODY_TIMEOUT", "300ms").set("BACKEND_ADDRESS", &backend.address).start();
    // No window at all: for a small answer as for a large one.
    let mut client = Frames::with(daemon.address(), &[(4, 0)]);
    for (stream, length) in [(1, 10), (3, 1_000_000)] {
        client.send(frames::ask(stream));
        let (mut peer, _) = backend.take();
        peer.send(format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"));
        let _ = peer.try_send(vec![b'x'; length]);
        assert_eq!(client.head(stream).status(), 200);
        assert_eq!(client.reset(stream), frames::INTERNAL_ERROR);
    }
    daemon.record_of("client_slow_reader");
    client.expect_alive();
}

#[test]
fn a_client_whose_window_opens_little_by_little_has_its_answer() {
    let backend = Backend::new();
    let daemon = before(&backend);
    let mut client = Frames::with(daemon.address(), &[(4, 0)]);
    client.send(frames::ask(5));
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody");
    client.head(5);
    for (at, byte) in b"body".iter().enumerate() {
        client.send(frame(WINDOW_UPDATE, 0, 5, 1_u32.to_be_bytes()));
        let data = client.await_frame("a byte", |frame| frame.kind == DATA);
        assert_eq!(data.payload, [*byte]);
        assert_eq!(data.flags & frames::END_STREAM != 0, at == 3);
    }
    client.expect_alive();
}

#[test]
fn a_client_that_keeps_silent_within_its_body_is_told_so() {
    let backend = Backend::new();
    let daemon =
        Setup::new().set("WORKERS", 1).set("BODY_TIMEOUT", "300ms").set("BACKEND_ADDRESS", &backend.address).start();
    let client = Client::connect(daemon.address());
    let exchange = client.send(request("POST", "/", &[]), false);
    exchange.answer().assert_refusal(408, "client_body_timeout");
    let mut quiet = client.get("/");
    assert!(quiet.is_silent(Duration::from_millis(400)), "one that has sent all may wait");
}

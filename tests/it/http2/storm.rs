//! Streams that their clients reset, at any moment of their way.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use fastrand::Rng;

use crate::http2::frames::{self, CANCEL, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, RST_STREAM, frame};
use crate::traffic::door::Setup;

/// As many as may be under way.
const PERMITS: u64 = 8;

/// A backend that answers whole, in part, late, or not at all; `/hold` it never answers.
fn moody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for (turn, socket) in listener.incoming().enumerate() {
            let mut socket = socket.unwrap();
            std::thread::spawn(move || {
                let mut random = Rng::with_seed(turn as u64);
                let mut block = [0; 4096];
                while let Ok(n @ 1..) = socket.read(&mut block) {
                    let is_head = block.starts_with(b"GET") || block.starts_with(b"POST");
                    if !is_head || block[..n].windows(5).any(|part| part == b"/hold") {
                        continue;
                    }
                    let answer: &[u8] = match random.u8(..6) {
                        0 => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole",
                        1 => b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\npart",
                        2 => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n",
                        3 => b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
                        4 => b"",
                        _ => return,
                    };
                    if socket.write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Permits, places in line and connections of the backend's are whole afterwards, whatever a
/// request was at.
#[test]
fn a_reset_at_any_moment_gives_everything_back() {
    let setup = Setup::new().set("MAX_CONCURRENT_REQUESTS", PERMITS).set("ACCESS_LOG", "off");
    let setup = setup.set("MAX_BACKEND_CONNECTIONS", 6).set("QUEUE_TIMEOUT", "1h");
    let daemon = setup.set("BACKEND_ADDRESS", moody()).start();
    let mut random = Rng::with_seed(7);
    for _ in 0..10 {
        let mut client = Frames::connect(daemon.address());
        let mut open = Vec::new();
        for turn in 0..300 {
            let stream = 1 + 2 * turn;
            let mut sent = match random.u8(..3) {
                0 => frames::ask(stream),
                1 => frame(HEADERS, END_HEADERS, stream, frames::post(&[])),
                _ => {
                    let data = frame(DATA, random.u8(..2) * END_STREAM, stream, vec![b'x'; random.usize(1..9000)]);
                    [frame(HEADERS, END_HEADERS, stream, frames::post(&[])), data].concat()
                }
            };
            open.push(stream);
            if open.len() > 90 || random.bool() {
                let stream = open.swap_remove(random.usize(..open.len()));
                sent.extend(frame(RST_STREAM, 0, stream, CANCEL.to_be_bytes()));
            }
            client.send(sent);
            // Few are reset before anybody has looked at them, which is another matter.
            if turn % 8 == 0 {
                client.expect_alive();
            }
        }
        client.expect_alive();
        client.send(
            open.iter().flat_map(|stream| frame(RST_STREAM, 0, *stream, CANCEL.to_be_bytes())).collect::<Vec<u8>>(),
        );
        client.expect_alive();
        daemon.wait_in_flight(0);
        daemon.wait_queued(0);
    }
    daemon.wait("nothing is left", |status| status["connections"] == 0 && status["backends"][0]["waiting"] == 0);
    // None is missing.
    let mut client = Frames::connect(daemon.address());
    for turn in 0..6 {
        client.send(frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            1 + 2 * turn,
            frames::block(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/hold")]),
        ));
    }
    daemon.wait("all are under way", |status| {
        let backend = &status["backends"][0];
        status["in_flight"] == 6 && status["queued"] == 0 && backend["connections"] == 6 && backend["waiting"] == 0
    });
}

//! Messages that two readers could understand differently, as tables.
//!
//! Each row of a table says what a client (or a backend) sends, and what the other side
//! gets of it, byte for byte; [`case`] explains the notation. A row whose connection
//! stays open is followed by a request of the harness's own, whose way is checked as
//! strictly: so it is shown that both sides agree on where the row's messages ended.

/// The notation of the tables.
mod case;
/// A second reader of HTTP/1.1, which shares nothing with the daemon's own.
#[path = "../../../proof/reference.rs"]
#[expect(dead_code, reason = "other proofs use the rest of it")]
mod reference;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use self::case::{Case, End, Then, masked, shown, table};
use self::reference::Fault;
use crate::daemon::listener;
use crate::peer::Peer;
use crate::traffic::door::{Daemon, Setup};

/// Longer than any row takes, and shorter than a table may.
const PATIENCE: Duration = Duration::from_secs(5);

const PROBE: &str = "GET /probe HTTP/1.1\r\nHost: probe\r\nX-Request-Id: probe\r\nConnection: close\r\n\r\n";
const PROBE_PASSED_ON: &str = "GET /probe HTTP/1.1\r\nHost: probe\r\nX-Forwarded-For: 127.0.0.1\r\n\
     X-Forwarded-Proto: http\r\nX-Forwarded-Host: probe\r\nX-Request-Id: probe\r\nVia: 1.1 doorward\r\n\r\n";
const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn framing_of_requests() {
    check("framing", include_str!("framing.cases"));
}

#[test]
fn request_lines_and_hosts() {
    check("lines", include_str!("lines.cases"));
}

#[test]
fn fields_of_requests() {
    check("fields", include_str!("fields.cases"));
}

#[test]
fn chunks_and_trailers() {
    check("chunks", include_str!("chunks.cases"));
}

#[test]
fn several_messages_on_one_connection() {
    check("pipelines", include_str!("pipelines.cases"));
}

#[test]
fn responses_of_backends() {
    check("responses", include_str!("responses.cases"));
}

/// Runs every row, and reports all that came out differently.
fn check(name: &str, text: &str) {
    let (socket, address) = listener();
    let daemon = Setup::new()
        .set("WORKERS", 1)
        .set("MAX_RETRIES", 0)
        .set("RESPONSE_TIMEOUT", "3s")
        .set("BACKEND_ADDRESS", address)
        .start();
    let cases = table(text);
    let wrong: Vec<String> = cases.iter().filter_map(|case| run(&daemon, &socket, case)).collect();
    println!("{name}: {} rows", cases.len());
    let (wrong, all) = (wrong.join("\n"), cases.len());
    assert!(wrong.is_empty(), "{name}.cases, of {all} rows these came out differently:\n{wrong}");
}

/// Runs one row; says what differed.
fn run(daemon: &Daemon, socket: &TcpListener, case: &Case) -> Option<String> {
    let (came, got) = thread::scope(|scope| {
        let backend = scope.spawn(|| backend(socket, case));
        let came = client(daemon.connect(), case);
        // Everything that the daemon dialled stands in the backlog before this one.
        let last = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        last.bind(&SocketAddr::from((MARKER, 0)).into()).unwrap();
        last.connect(&socket.local_addr().unwrap().into()).unwrap();
        (came, backend.join().unwrap())
    });
    let mut wrong = String::new();
    if let Err(difference) = came {
        wrong.push_str(&difference);
    }
    let mut expected = case.backend_gets.clone();
    let got: Vec<_> = got.iter().map(|bytes| masked(bytes)).collect();
    if case.end == Some(End::Open) {
        // On the same connection or another, as the answer before allowed.
        let joined = [expected.last().cloned().unwrap_or_default(), PROBE_PASSED_ON.into()].concat();
        match expected.last_mut() {
            Some(last) if got.last() == Some(&joined) => *last = joined,
            _ => expected.push(PROBE_PASSED_ON.into()),
        }
    }
    if let (true, Some(most), Some(last)) = (case.backend_at_most, expected.last_mut(), got.last()) {
        let less = most.starts_with(last);
        *most = if less { last.clone() } else { most.clone() };
    }
    if got != expected {
        let lines = |parts: &[Vec<u8>]| parts.iter().map(|part| shown("B<", part)).collect::<Vec<_>>().join("B+\n");
        wrong.push_str(&format!("the backend got\n{}instead of\n{}", lines(&got), lines(&expected)));
    }
    (!wrong.is_empty()).then(|| format!("\n{}: {}\n{wrong}", case.line, case.name))
}

/// The source address of the connection that ends a row.
const MARKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Plays the client; says what it got instead of what it should have.
fn client(mut peer: Peer, case: &Case) -> Result<(), String> {
    let mut bytes = case.sends.clone();
    if case.end == Some(End::Open) {
        bytes.extend_from_slice(PROBE.as_bytes());
    }
    // Refused before all of it was taken: the answer tells.
    let _ = peer.try_send(&bytes);
    if case.half_closes {
        peer.half_close();
    }
    let (came, end) = peer.read_until_over(PATIENCE);
    let came = masked(&came);
    let right = match case.end {
        Some(End::Resets) => end == Some(ErrorKind::ConnectionReset),
        _ => end.is_none(),
    };
    let mut wrong = String::new();
    if !right {
        wrong.push_str(&format!("the connection ended by {end:?}\n"));
    }
    match &case.gets {
        Some(gets) => {
            let mut gets = gets.clone();
            let rest = came.strip_prefix(gets.as_slice());
            let probed = rest.is_some_and(is_probe);
            if case.end == Some(End::Open) && probed {
                gets = came.clone();
            }
            if came != gets {
                wrong.push_str(&format!("the client got\n{}instead of\n{}", shown("C<", &came), shown("C<", &gets)));
            }
        }
        None => {
            let mut answers = case.answers.clone();
            if case.end == Some(End::Open) {
                answers.push((200, None));
            }
            let seen = seen(&came);
            if seen.as_ref() != Ok(&answers) {
                wrong.push_str(&format!("the client got {seen:?} instead of {answers:?}\n{}", shown("C<", &came)));
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

fn is_probe(bytes: &[u8]) -> bool {
    reference::response(bytes, b"GET", true).is_ok_and(|answer| {
        answer.length == bytes.len() && answer.status() == 200 && answer.all("connection") == [b"close"]
    })
}

/// The answers in a stream, by status and, where they are our own, reason.
fn seen(mut bytes: &[u8]) -> Result<Vec<(u16, Option<String>)>, Fault> {
    let mut seen = Vec::new();
    while !bytes.is_empty() {
        let answer = reference::response(bytes, b"GET", true)?;
        let reason = answer.all("proxy-status").first().map(|status| {
            let status = String::from_utf8_lossy(status);
            let (_, details) = status.split_once("details=\"").unwrap();
            details.trim_end_matches('"').to_owned()
        });
        seen.push((answer.status(), reason));
        bytes = &bytes[answer.length..];
    }
    Ok(seen)
}

/// Plays the backend until the row is over; returns what it got, by connection.
fn backend(socket: &TcpListener, case: &Case) -> Vec<Vec<u8>> {
    let turn = &AtomicUsize::new(0);
    thread::scope(|scope| {
        let (mut serving, mut ends) = (Vec::new(), Vec::new());
        loop {
            let (stream, peer) = socket.accept().unwrap();
            if peer.ip() == MARKER {
                break;
            }
            let stream = Arc::new(stream);
            ends.push(Arc::downgrade(&stream));
            serving.push(scope.spawn(move || converse(&stream, case, turn)));
        }
        for end in ends.iter().filter_map(Weak::upgrade) {
            // What has come is still read.
            let _ = end.shutdown(Shutdown::Both);
        }
        serving.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Answers the requests on one connection until it ends; returns what came on it.
fn converse(mut stream: &TcpStream, case: &Case, turn: &AtomicUsize) -> Vec<u8> {
    let (mut came, mut dealt) = (Vec::new(), 0);
    let mut block = [0; 64 * 1024];
    loop {
        while wants_answer(&came[dealt..], case.backend_early).is_some_and(|length| {
            dealt += length;
            true
        }) {
            let probed = came[..dealt].ends_with(PROBE_PASSED_ON.as_bytes());
            let turn = turn.fetch_add(1, Ordering::Relaxed);
            let sends = case.backend_sends.get(turn).or(case.backend_sends.last()).filter(|_| !probed);
            let sends = sends.map_or(ANSWER.as_bytes(), Vec::as_slice);
            if case.backend_then == Then::Closes && !probed {
                // The end comes with the bytes, so that no row depends on which is seen first.
                SockRef::from(stream).set_tcp_cork(true).unwrap();
            }
            // It may be refused before all of it was taken.
            let _ = stream.write_all(sends);
            match case.backend_then {
                _ if probed => {}
                Then::Waits => {}
                Then::Closes => drop(stream.shutdown(Shutdown::Write)),
                Then::Resets => {
                    SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
                    return came;
                }
            }
        }
        match stream.read(&mut block) {
            Ok(0) | Err(_) => return came,
            Ok(n) => came.extend_from_slice(&block[..n]),
        }
    }
}

/// The length of the request at the front, if it is time to answer it.
fn wants_answer(bytes: &[u8], early: bool) -> Option<usize> {
    if early {
        return bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
    }
    reference::request(bytes).ok().map(|request| request.length)
}

//! Large bodies and tunnels, which the kernel moves by itself.

use std::fs;
use std::os::unix::net::UnixListener;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::backend::Backend;
use crate::daemon::DEADLINE;
use crate::peer::{Peer, assert_same, noise};
use crate::traffic::door::{Daemon, Setup};

const LARGE: usize = 16 * 1024 * 1024;

fn before(backend: &Backend) -> Setup {
    Setup::new().set("BACKEND_ADDRESS", &backend.address)
}

/// Sends all of `bytes` from another thread, so that this one can read meanwhile. Says
/// whether they were all taken.
fn send_beside(peer: &Peer, bytes: Vec<u8>) -> JoinHandle<bool> {
    let mut writer = peer.writer();
    thread::spawn(move || writer.try_send(bytes).is_ok())
}

fn answer(body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Waits until so many bytes went through pipes: what is spliced depends on how the bytes
/// come in, so only that much is sure.
fn wait_spliced(daemon: &Daemon, least: usize) {
    daemon.wait(&format!("{least} bytes spliced"), |status| status["bytes_spliced"].as_u64() >= Some(least as u64));
}

/// The pipes that the daemon has both ends of; its standard error is one too, and it may
/// have been started with one end of others.
fn pipes(daemon: &Daemon) -> usize {
    let folder = format!("/proc/{}/fd", daemon.status()["pid"]);
    let error = fs::read_link(format!("{folder}/2")).unwrap();
    let targets = fs::read_dir(folder).unwrap().filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let mut ends: Vec<_> = targets.filter(|end| end.to_string_lossy().starts_with("pipe:") && *end != error).collect();
    ends.sort();
    ends.chunk_by(|one, other| one == other).filter(|ends| ends.len() > 1).count()
}

/// Waits until the daemon has let go of all pipes.
fn wait_no_pipes(daemon: &Daemon) {
    let until = Instant::now() + DEADLINE;
    while pipes(daemon) > 0 {
        assert!(Instant::now() < until, "pipes are kept for ever");
        thread::yield_now();
    }
}

#[test]
fn large_bodies_are_spliced_and_the_connections_go_on() {
    let backend = Backend::new();
    let daemon = before(&backend).set("WORKERS", 1).start();
    let (up, down) = (noise(LARGE, 31), noise(LARGE, 32));
    let mut client = daemon.connect();
    // One behind the other: none may be taken for a part of the one before it.
    let paths = ["/first", "/second", "/third"];
    let sender = send_beside(&client, paths.map(|path| request("PUT", path, &up)).concat());
    let mut peer = backend.accept();
    for path in paths {
        let got = peer.request();
        assert_eq!(got.head.line, format!("PUT {path} HTTP/1.1"));
        assert_same(&got.body, &up);
        let answering = send_beside(&peer, answer(&down));
        let response = client.response();
        assert_same(&response.body, &down);
        assert!(answering.join().unwrap());
        let record = daemon.record(path);
        assert_eq!(record["bytes_in"], LARGE);
        let head = record["bytes_out"].as_u64().unwrap().checked_sub(LARGE as u64);
        assert!(head.is_some_and(|head| (40..400).contains(&head)), "{record}");
    }
    assert!(sender.join().unwrap());
    // Both bodies ended with just what was there, which looks like more to come.
    backend.expect_none();
    wait_spliced(&daemon, LARGE);
    wait_no_pipes(&daemon);
}

#[test]
fn what_follows_a_large_answer_at_once_is_not_taken_for_a_part_of_it() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let down = noise(LARGE, 33);
    let mut client = daemon.connect();
    client.get("/large");
    let (peer, _) = backend.take();
    let sender = send_beside(&peer, [answer(&down), b"HTTP/1.1 200 OK\r\n\r\nunasked for".to_vec()].concat());
    assert_same(&client.response().body, &down);
    sender.join().unwrap();
    // A backend that speaks unasked is not to be trusted with another request.
    client.get("/next");
    let (mut peer, _) = backend.take();
    peer.answer("next");
    assert_eq!(client.response().text(), "next");
}

#[test]
fn a_slow_reader_gets_every_byte() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let down = noise(LARGE, 34);
    let mut client = daemon.connect();
    client.get("/slow");
    let (peer, _) = backend.take();
    let sender = send_beside(&peer, answer(&down));
    let head = client.head();
    assert_eq!(head.field("Content-Length"), Some(LARGE.to_string().as_str()));
    let mut at = 0;
    for size in (1..).map(|turn| turn * 7919 % 30_011 + 1) {
        let size = size.min(LARGE - at);
        assert_same(&client.read(size), &down[at..at + size]);
        at += size;
        if at == LARGE {
            break;
        }
    }
    assert!(sender.join().unwrap());
    wait_spliced(&daemon, LARGE / 4);
    client.get("/next");
    let mut peer = peer;
    peer.request();
    peer.answer("next");
    assert_eq!(client.response().text(), "next");
}

#[test]
fn an_answer_that_ends_too_early_is_never_whole() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let down = noise(LARGE, 35);
    let mut client = daemon.connect();
    client.get("/end");
    let (mut peer, _) = backend.take();
    let mut bytes = answer(&down);
    bytes.truncate(bytes.len() - 1);
    let sender = send_beside(&peer, bytes);
    client.head();
    assert_same(&client.read(LARGE - 1), &down[..LARGE - 1]);
    assert!(sender.join().unwrap());
    peer.half_close();
    assert!(client.expect_reset().is_empty());
    let record = daemon.record("/end");
    assert_eq!((&record["status"], &record["reason"]), (&200.into(), &"backend_truncated".into()));
    wait_spliced(&daemon, LARGE / 4);
    wait_no_pipes(&daemon);
}

#[test]
fn a_backend_that_resets_while_the_client_rests_is_blamed_once_all_it_sent_is_out() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = daemon.connect();
    client.get("/reset");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
    // All that fits on the way, the daemon's pipe among it.
    let (mut sent, until) = (0, Instant::now() + DEADLINE);
    while pipes(&daemon) != 1 {
        assert!(Instant::now() < until, "no pipe after {sent} bytes");
        sent += peer.send_until_full(Duration::from_millis(300));
    }
    peer.reset();
    assert_eq!(client.head().status(), 200);
    assert!(client.expect_reset().len() <= sent);
    let record = daemon.record("/reset");
    assert_eq!((&record["status"], &record["reason"]), (&200.into(), &"backend_reset".into()));
    wait_no_pipes(&daemon);
}

#[test]
fn a_client_that_leaves_a_download_ends_it_at_the_backend() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    for leave in [drop, Peer::reset] {
        let mut client = daemon.connect();
        client.get("/left");
        let (mut peer, _) = backend.take();
        let sender = send_beside(&peer, answer(&vec![b'x'; 4 * LARGE]));
        client.head();
        client.read(LARGE / 2);
        leave(client);
        assert!(!sender.join().unwrap(), "nobody took the rest");
        peer.expect_gone();
        assert_eq!(daemon.record_of("client_left")["path"], "/left");
    }
    daemon.wait_in_flight(0);
    wait_no_pipes(&daemon);
}

#[test]
fn an_upload_cut_within_never_reaches_the_backend_as_whole() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let up = noise(LARGE, 36);
    let mut client = daemon.connect();
    let mut bytes = request("PUT", "/cut", &up);
    bytes.truncate(bytes.len() - 1);
    let sender = send_beside(&client, bytes);
    let mut peer = backend.accept();
    assert_eq!(peer.head().field("Content-Length"), Some(LARGE.to_string().as_str()));
    let got = peer.read(LARGE - 1);
    assert_same(&got, &up[..LARGE - 1]);
    assert!(sender.join().unwrap());
    client.half_close();
    assert!(peer.expect_gone().is_empty());
    assert_eq!(daemon.record("/cut")["reason"], "client_left");
    wait_spliced(&daemon, LARGE / 4);
    wait_no_pipes(&daemon);
}

#[test]
fn an_early_answer_to_a_large_upload_is_delivered() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = daemon.connect();
    let sender = send_beside(&client, request("PUT", "/early", &vec![b'x'; LARGE]));
    let mut peer = backend.accept();
    peer.head();
    peer.read(LARGE / 2);
    peer.send("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno");
    let response = client.response();
    assert_eq!((response.status(), response.text()), (413, "no"));
    assert_eq!(response.head.field("Connection"), Some("close"));
    assert!(sender.join().unwrap(), "what still came was read");
    daemon.wait_in_flight(0);
    wait_no_pipes(&daemon);
}

#[test]
fn a_reader_that_stops_within_a_large_answer_is_cut_off() {
    let backend = Backend::new();
    let daemon = before(&backend).set("BODY_TIMEOUT", "1s").start();
    let mut client = daemon.connect();
    client.get("/stops");
    let (peer, _) = backend.take();
    let sender = send_beside(&peer, answer(&vec![b'x'; 8 * LARGE]));
    client.head();
    client.read(LARGE);
    assert_eq!(daemon.record("/stops")["reason"], "client_slow_reader");
    client.expect_reset();
    assert!(!sender.join().unwrap());
    wait_spliced(&daemon, LARGE / 4);
    wait_no_pipes(&daemon);
}

/// Both directions of a tunnel at once, each ending by itself: the backend's first, then,
/// after more has passed, the client's.
fn flood(mut client: Peer, mut peer: Peer) {
    let (up, down) = (noise(LARGE, 37), noise(LARGE, 38));
    let mut talking = peer.writer();
    let sent = down.clone();
    let down_sender = thread::spawn(move || {
        talking.send(sent);
        talking.half_close();
    });
    let up_sender = send_beside(&client, up.clone());
    let reader = thread::spawn(move || {
        let got = peer.read(LARGE);
        (got, peer)
    });
    assert_same(&client.read_to_end(), &down);
    down_sender.join().unwrap();
    assert!(up_sender.join().unwrap());
    let (got, mut peer) = reader.join().unwrap();
    assert_same(&got, &up);
    client.send("and on it goes");
    peer.expect("and on it goes");
    client.half_close();
    peer.expect_end();
}

#[test]
fn relayed_connections_are_spliced_and_each_direction_ends_by_itself() {
    let backend = Backend::new();
    let daemon = before(&backend).set("MODE", "tcp").start();
    let client = daemon.connect();
    flood(client, backend.accept());
    let record = daemon.logged("the connection", |line| line["message"] == "connection");
    assert_eq!((&record["bytes_in"], &record["bytes_out"]), (&(LARGE + 14).into(), &LARGE.into()));
    assert_eq!(record["reason"], serde_json::Value::Null);
    wait_spliced(&daemon, LARGE / 2);
    wait_no_pipes(&daemon);
}

#[test]
fn tunnels_are_spliced_and_each_direction_ends_by_itself() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = daemon.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    let mut peer = backend.accept();
    peer.head();
    peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    assert_eq!(client.head().status(), 101);
    flood(client, peer);
    wait_spliced(&daemon, LARGE / 2);
    wait_no_pipes(&daemon);
}

#[test]
fn unix_sockets_are_spliced_too() {
    let setup = Setup::new();
    let backend = Backend::unix(setup.path("backend.sock"));
    let daemon = setup.set("BACKEND_ADDRESS", &backend.address).start();
    let down = noise(LARGE, 39);
    let mut client = daemon.connect();
    client.get("/");
    let (peer, _) = backend.take();
    let sender = send_beside(&peer, answer(&down));
    assert_same(&client.response().body, &down);
    assert!(sender.join().unwrap());
    wait_spliced(&daemon, LARGE / 4);
}

#[test]
fn small_bodies_and_chunked_ones_are_copied() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = daemon.connect();
    let body = noise(60_000, 40);
    let mut peer = None;
    for _ in 0..4 {
        client.send_body("POST", "/small", &body);
        let peer = peer.get_or_insert_with(|| backend.accept());
        assert_same(&peer.request().body, &body);
        peer.send(answer(&body));
        assert_same(&client.response().body, &body);
    }
    let mut peer = peer.unwrap();
    client.get("/chunked");
    peer.request();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    let down = noise(LARGE, 41);
    let mut writer = peer.writer();
    let sent = down.clone();
    let sender = thread::spawn(move || {
        sent.chunks(1 << 20).for_each(|chunk| writer.send_chunk(chunk));
        writer.send("0\r\n\r\n");
    });
    assert_same(&client.response().body, &down);
    sender.join().unwrap();
    daemon.wait_in_flight(0);
    assert_eq!(daemon.status()["bytes_spliced"], 0);
}

#[test]
fn more_downloads_than_there_are_pipes_run_on_copying() {
    const DOWNLOADS: usize = 120;
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    // Unix sockets, since these hold little: all downloads are under way at once.
    let setup = Setup::without_listener();
    let backend = Backend::unix(setup.path("backend.sock"));
    let door = setup.path("door.sock");
    let daemon = setup
        .listener("http", UnixListener::bind(&door).unwrap())
        .set("BACKEND_ADDRESS", &backend.address)
        .set("ACCESS_LOG", "errors")
        .set("BODY_TIMEOUT", "10m")
        .start();
    let body = noise(1024 * 1024, 42);
    let bytes = answer(&body);
    let downloads: Vec<_> = (0..DOWNLOADS)
        .map(|_| {
            let mut client = Peer::connect_unix(&door);
            client.get("/");
            let (peer, _) = backend.take();
            (client, send_beside(&peer, bytes.clone()))
        })
        .collect();
    daemon.wait_in_flight(DOWNLOADS as u64);
    let seen = pipes(&daemon);
    for (mut client, sender) in downloads {
        assert!(client.response().body == body);
        assert!(sender.join().unwrap());
    }
    let pages = fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").unwrap();
    let pages = pages.trim().parse().ok().filter(|pages| *pages > 0).unwrap_or(16_384);
    let limit = pages * rustix::param::page_size() / 2 / (1024 * 1024);
    assert!((1..=limit).contains(&seen), "{seen} pipes of {limit}");
    daemon.wait_in_flight(0);
    assert!(daemon.status()["bytes_spliced"].as_u64() > Some(0));
    wait_no_pipes(&daemon);
}

#[test]
fn without_descriptors_for_pipes_bodies_are_copied() {
    let backend = Backend::new();
    let daemon = before(&backend).set("WORKERS", 1).start();
    let mut client = daemon.connect();
    client.get("/small");
    let (mut peer, _) = backend.take();
    peer.answer("ok");
    client.response();
    daemon.wait_in_flight(0);
    // From here on nothing can be opened.
    daemon.limit_descriptors(0);
    let down = noise(LARGE, 43);
    client.get("/large");
    peer.request();
    let sender = send_beside(&peer, answer(&down));
    assert_same(&client.response().body, &down);
    assert!(sender.join().unwrap());
    daemon.limit_descriptors(1024);
    daemon.wait_in_flight(0);
    assert_eq!(daemon.status()["bytes_spliced"], 0);
}

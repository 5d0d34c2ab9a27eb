//! Connections to backends: how many, how long they are kept, and who waits for one.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::peer::{Message, Peer, assert_same, noise};
use crate::server::Server;
use crate::traffic::door::{Daemon, Setup};

/// Before one backend; connections to it end by nothing but what the test is about.
fn before(backend: &str) -> Setup {
    Setup::new().set("BACKEND_ADDRESS", backend).set("BACKEND_IDLE_TIMEOUT", "1h").set("MAX_RETRIES", 0)
}

/// The same with a limit, for which requests wait as long as a test does.
fn limited(backend: &str, limit: usize) -> Setup {
    before(backend).set("MAX_BACKEND_CONNECTIONS", limit).set("QUEUE_TIMEOUT", "1h")
}

fn ok(client: &mut Peer) -> Message {
    client.get("/");
    let response = client.response();
    assert_eq!(response.status(), 200, "{response:?}");
    response
}

/// Waits until so many requests wait for a connection to the only backend.
fn wait_waiting(daemon: &Daemon, waiting: u64) {
    daemon.wait(&format!("{waiting} waiting"), |status| status["backends"][0]["waiting"] == waiting);
}

#[test]
fn no_more_idle_connections_are_kept_than_allowed_and_the_newest_stay() {
    let backend = Backend::new();
    let daemon = before(&backend.address).set("WORKERS", 1).set("BACKEND_IDLE_CONNECTIONS", 2).start();
    let mut clients: Vec<Peer> = (0..4).map(|_| daemon.connect()).collect();
    let mut peers: Vec<Peer> = clients
        .iter_mut()
        .map(|client| {
            client.get("/");
            backend.take().0
        })
        .collect();
    for (client, peer) in clients.iter_mut().zip(&mut peers) {
        peer.answer("");
        client.response();
    }
    peers[0].expect_end();
    peers[1].expect_end();
    // The newest is used first, and again.
    for _ in 0..2 {
        clients[0].get("/again");
        assert_eq!(peers[3].request().head.line, "GET /again HTTP/1.1");
        peers[3].answer("");
        clients[0].response();
    }
    peers[2].expect_silence();
    backend.expect_none();
}

#[test]
fn none_are_kept_where_none_may_be() {
    let backend = Backend::new();
    let daemon = before(&backend.address).set("BACKEND_IDLE_CONNECTIONS", 0).start();
    let mut client = daemon.connect();
    for _ in 0..2 {
        client.get("/");
        let (mut peer, _) = backend.take();
        peer.answer("");
        client.response();
        peer.expect_end();
    }
}

#[test]
fn a_backends_word_on_keeping_connections_is_taken() {
    let daemon_before = |fields: &'static str| {
        let server = Server::on(TcpListener::bind("127.0.0.1:0").unwrap(), "it", fields);
        let daemon = before(&server.address.to_string()).set("WORKERS", 1).start();
        (server, daemon)
    };
    // It would close after a second; we do so before.
    let (server, daemon) = daemon_before("Keep-Alive: timeout=1, max=100\r\n");
    let mut client = daemon.connect();
    ok(&mut client);
    let began = Instant::now();
    server.wait("the connection is closed", |counts| counts.open == 0);
    assert!(began.elapsed() < Duration::from_secs(20));
    // Nothing follows on one that has had its last request.
    let (server, daemon) = daemon_before("Keep-Alive: timeout=3600, max=0\r\n");
    let mut client = daemon.connect();
    for count in 1..=3 {
        ok(&mut client);
        assert_eq!(server.counts().connections, count);
    }
    // More patience than ours changes nothing; less than ours would be noticed.
    let (server, daemon) = daemon_before("Keep-Alive: timeout=3600\r\n");
    let mut client = daemon.connect();
    for _ in 0..3 {
        ok(&mut client);
    }
    assert_eq!(server.counts().connections, 1);
}

#[test]
fn a_limit_holds_for_all_workers_together_and_connections_go_from_hand_to_hand() {
    let server = Server::new("it");
    let daemon = limited(&server.address.to_string(), 2).set("WORKERS", 3).start();
    let clients: Vec<_> = (0..12)
        .map(|_| {
            let mut client = daemon.connect();
            std::thread::spawn(move || {
                for _ in 0..50 {
                    ok(&mut client);
                }
            })
        })
        .collect();
    for client in clients {
        client.join().expect("every request is answered");
    }
    let counts = server.counts();
    assert_eq!(counts.requests, 600);
    assert_eq!((counts.most, counts.connections), (2, 2), "{counts:?}");
    daemon.wait("nobody waits", |status| status["backends"][0]["waiting"] == 0);
}

#[test]
fn an_idle_connection_of_another_worker_is_handed_over() {
    let backend = Backend::new();
    let daemon = limited(&backend.address, 1).set("WORKERS", 4).start();
    let mut clients: Vec<Peer> = (0..8).map(|_| daemon.connect()).collect();
    let mut peer: Option<Peer> = None;
    // The clients are on all workers, the connection on one at a time.
    for (turn, client) in clients.iter_mut().enumerate() {
        client.get(&format!("/{turn}"));
        let peer = peer.get_or_insert_with(|| backend.accept());
        assert_eq!(peer.request().head.line, format!("GET /{turn} HTTP/1.1"));
        peer.answer("");
        client.response();
    }
    backend.expect_none();
    let workers = daemon.status()["backends"][0]["connections"].clone();
    assert_eq!(workers, 1);
}

#[test]
fn what_must_not_be_repeated_gets_a_connection_of_its_own_in_place_of_a_stale_one() {
    let backend = Backend::new();
    let daemon = limited(&backend.address, 1).start();
    let mut client = daemon.connect();
    client.get("/");
    let (mut peer, _) = backend.take();
    peer.answer("");
    client.response();
    peer.pause(Duration::from_millis(1_100));
    client.send_body("POST", "/post", b"body");
    peer.expect_end();
    let (mut fresh, request) = backend.take();
    assert_eq!(request.text(), "body");
    fresh.answer("");
    client.response();
}

#[test]
fn who_waits_for_a_connection_is_served_in_turn_and_leavers_give_their_place_up() {
    let backend = Backend::new();
    let daemon = limited(&backend.address, 1).start();
    let mut clients: Vec<Peer> = (0..4).map(|_| daemon.connect()).collect();
    clients[0].get("/0");
    let (mut peer, _) = backend.take();
    for (turn, client) in clients.iter_mut().enumerate().skip(1) {
        client.get(&format!("/{turn}"));
        wait_waiting(&daemon, u64::try_from(turn).unwrap());
    }
    clients.remove(2).reset();
    wait_waiting(&daemon, 2);
    for turn in [0, 1, 3] {
        if turn > 0 {
            assert_eq!(peer.request().head.line, format!("GET /{turn} HTTP/1.1"));
        }
        peer.answer("");
    }
    for client in &mut clients {
        assert_eq!(client.response().status(), 200);
    }
    backend.expect_none();
    assert_eq!(daemon.record("/2")["reason"], "client_left");
    assert!(daemon.record("/3")["queue_us"].as_u64().unwrap() > 0);
}

#[test]
fn a_connection_that_fails_makes_room_for_one_who_waits() {
    let backend = Backend::new();
    let daemon = limited(&backend.address, 1).start();
    let (mut one, mut two) = (daemon.connect(), daemon.connect());
    one.get("/one");
    let (peer, _) = backend.take();
    two.get("/two");
    wait_waiting(&daemon, 1);
    peer.reset();
    one.response().assert_refusal(502, "backend_reset");
    let (mut peer, request) = backend.take();
    assert_eq!(request.head.line, "GET /two HTTP/1.1");
    peer.answer_last("");
    assert_eq!(two.response().status(), 200);
}

#[test]
fn the_line_is_bounded_and_waiting_ends() {
    let backend = Backend::new();
    let daemon = limited(&backend.address, 1).start();
    let mut first = daemon.connect();
    first.get("/first");
    let (mut peer, _) = backend.take();
    let mut line: Vec<Peer> = (0..10).map(|_| daemon.connect()).collect();
    for client in &mut line {
        client.get("/line");
    }
    wait_waiting(&daemon, 10);
    let mut more = daemon.connect();
    more.get("/more");
    more.response().assert_refusal(503, "backend_connection_limit");
    let record = daemon.logged("the limit", |line| line["message_id"] == doorward::telemetry::events::BACKEND_FULL);
    assert_eq!((&record["backend"], &record["connections"]), (&backend.address.as_str().into(), &1.into()));
    peer.answer("");
    first.response();
    for _ in &line {
        peer.request();
        peer.answer("");
    }
    for client in &mut line {
        assert_eq!(client.response().status(), 200);
    }

    let daemon = limited(&backend.address, 1).set("QUEUE_TIMEOUT", "50ms").start();
    let (mut first, mut second) = (daemon.connect(), daemon.connect());
    first.get("/first");
    let (mut peer, _) = backend.take();
    second.get("/second");
    second.response().assert_refusal(503, "backend_connection_limit");
    peer.answer("");
    assert_eq!(first.response().status(), 200);
    assert_eq!(daemon.status()["backends"][0]["up"], true, "it is no fault of the backend's");
}

#[test]
fn a_reload_changes_the_limit_for_those_who_wait_and_for_what_is_idle() {
    let server = Server::new("it");
    let backend = Backend::new();
    let daemon = limited(&backend.address, 1).start();
    let (mut one, mut two) = (daemon.connect(), daemon.connect());
    one.get("/one");
    let (mut first, _) = backend.take();
    two.get("/two");
    wait_waiting(&daemon, 1);
    daemon.replace("MAX_BACKEND_CONNECTIONS", "2");
    let (mut second, _) = backend.take();
    daemon.replace("MAX_BACKEND_CONNECTIONS", "1");
    // One too many: it is closed once it is given back, and the other stays.
    first.answer("");
    assert_eq!(one.response().status(), 200);
    first.expect_end();
    // Its end is seen a moment before it is counted.
    daemon.wait("one is left", |status| status["backends"][0]["connections"] == 1);
    second.answer("");
    assert_eq!(two.response().status(), 200);
    one.get("/again");
    assert_eq!(second.request().head.line, "GET /again HTTP/1.1");
    second.answer("");
    one.response();

    // Idle ones from before there was a limit count too.
    let daemon = before(&server.address.to_string()).set("QUEUE_TIMEOUT", "1h").start();
    let mut clients: Vec<Peer> = (0..6).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        ok(client);
    }
    daemon.reload("MAX_BACKEND_CONNECTIONS=1");
    for client in &mut clients {
        ok(client);
    }
    server.wait("one is left", |counts| counts.open == 1);
}

#[test]
fn requests_go_where_a_connection_is_to_spare_before_they_wait() {
    let (busy, spare) = (Backend::new(), Server::new("spare"));
    let daemon = limited(&format!("{},{}", busy.address, spare.address), 1).start();
    let (mut first, mut client) = (daemon.connect(), daemon.connect());
    first.get("/first");
    let (mut peer, _) = busy.take();
    for _ in 0..4 {
        assert_eq!(ok(&mut client).text(), "spare");
    }
    peer.answer("");
    first.response();
    busy.expect_none();
}

#[test]
fn a_backend_of_weight_zero_finishes_what_it_has_and_keeps_no_connection() {
    let (going, staying) = (Backend::new(), Server::new("staying"));
    let both = |weight: u32| format!("{}?weight={weight},{}", going.address, staying.address);
    let daemon = before(&both(100)).start();
    let (mut client, mut slow) = (daemon.connect(), daemon.connect());
    client.get("/idle");
    let (mut idle, _) = going.take();
    slow.get("/slow");
    let (mut busy, _) = going.take();
    idle.answer("");
    client.response();
    daemon.replace("BACKEND_ADDRESS", &both(0));
    idle.expect_end();
    assert_eq!(daemon.status()["backends"][0]["state"], "draining");
    for _ in 0..3 {
        assert_eq!(ok(&mut client).text(), "staying");
    }
    busy.answer("finished");
    assert_eq!(slow.response().text(), "finished");
    busy.expect_end();
    going.expect_none();
    // And back again.
    daemon.replace("BACKEND_ADDRESS", &both(100));
    client.get("/back");
    let (mut peer, _) = going.take();
    peer.answer("");
    client.response();
    client.get("/kept");
    assert_eq!(peer.request().head.line, "GET /kept HTTP/1.1");
    peer.answer("");
    client.response();
}

#[test]
fn tunnels_and_relayed_connections_count() {
    let backend = Backend::new();
    let daemon = limited(&backend.address, 1).start();
    let (mut upgraded, mut waiting) = (daemon.connect(), daemon.connect());
    upgraded.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n");
    let mut peer = backend.accept();
    peer.head();
    peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n");
    assert_eq!(upgraded.head().status(), 101);
    waiting.get("/");
    wait_waiting(&daemon, 1);
    drop(peer);
    upgraded.expect_end();
    drop(upgraded);
    let (mut peer, _) = backend.take();
    peer.answer_last("");
    assert_eq!(waiting.response().status(), 200);

    let daemon = limited(&backend.address, 1).set("MODE", "tcp").start();
    let mut one = daemon.connect();
    one.send("one");
    let mut first = backend.accept();
    first.expect("one");
    // Not before: each has a connection to the backend from the start, and workers race.
    let mut two = daemon.connect();
    two.send("two");
    wait_waiting(&daemon, 1);
    drop(first);
    one.expect_end();
    drop(one);
    backend.accept().expect("two");
}

#[test]
fn the_time_in_line_is_not_the_attempts() {
    let backend = Backend::new();
    let daemon = limited(&backend.address, 1).set("ATTEMPT_TIMEOUT", "2s").start();
    let (mut first, mut second, mut third) = (daemon.connect(), daemon.connect(), daemon.connect());
    first.get("/first");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\n");
    first.head();
    second.get("/second");
    wait_waiting(&daemon, 1);
    third.get("/third");
    wait_waiting(&daemon, 2);
    peer.pause(Duration::from_millis(2_100));
    // The second gets a slot, and the third the second's connection.
    peer.send("done");
    first.expect("done");
    let (mut peer, request) = backend.take();
    assert_eq!(request.head.line, "GET /second HTTP/1.1");
    peer.answer("second");
    assert_eq!(second.response().text(), "second");
    assert_eq!(peer.request().head.line, "GET /third HTTP/1.1");
    peer.answer("third");
    assert_eq!(third.response().text(), "third");
    // What an attempt may take is counted from there.
    second.get("/silent");
    peer.request();
    second.response().assert_refusal(504, "backend_attempt_timeout");
    assert_eq!(daemon.status()["backends"][0]["up"], true);
}

#[test]
fn a_limit_holds_for_routes_together_that_check_a_backend_differently() {
    let backend = Backend::new();
    let checked = "MATCH_PATH=/checked\nHEALTH_CHECK=tcp\nHEALTH_INTERVAL=24h\n";
    let daemon = limited(&backend.address, 1).set("HEALTH_CHECK", "off").route("checked.env", checked).start();
    // The only check.
    backend.accept().expect_end();
    let (mut first, mut second) = (daemon.connect(), daemon.connect());
    first.get("/first");
    let (mut peer, _) = backend.take();
    second.get("/checked");
    wait_waiting(&daemon, 1);
    assert_eq!(daemon.status()["backends"][1]["connections"], 1);
    peer.answer("first");
    assert_eq!(first.response().text(), "first");
    assert_eq!(peer.request().head.line, "GET /checked HTTP/1.1");
    peer.answer("checked");
    assert_eq!(second.response().text(), "checked");
    backend.expect_none();
}

/// With one connection to one backend, and retries for 503.
fn retrying(backend: &Backend) -> Daemon {
    let setup = limited(&backend.address, 1).set("MAX_RETRIES", 3).set("RETRY_ON", "503");
    setup.set("RETRY_BACKOFF", "1ms").set("RETRY_BACKOFF_MAX", "1ms").start()
}

#[test]
fn the_connection_of_a_short_answer_is_there_for_the_next_attempt() {
    let backend = Backend::new();
    let daemon = retrying(&backend);
    let mut client = daemon.connect();
    client.get("/short");
    let (mut peer, _) = backend.take();
    for body in ["Content-Length: 4\r\n\r\nbusy", "Transfer-Encoding: chunked\r\n\r\n4\r\nbusy\r\n0\r\n\r\n"] {
        peer.send(format!("HTTP/1.1 503 Busy\r\n{body}"));
        assert_eq!(peer.request().head.line, "GET /short HTTP/1.1");
    }
    peer.answer("well");
    assert_eq!(client.response().text(), "well");
    assert_eq!(daemon.record("/short")["attempts"], 3);
    backend.expect_none();
}

#[test]
fn an_answer_kept_for_a_retry_does_not_wait_for_itself() {
    let backend = Backend::new();
    let daemon = retrying(&backend);
    let mut client = daemon.connect();
    client.get("/long");
    let (mut peer, _) = backend.take();
    let body = noise(100_000, 3);
    peer.send(format!("HTTP/1.1 503 Busy\r\nContent-Length: {}\r\n\r\n", body.len()));
    // Were it to wait, it would do so for an hour.
    assert_eq!(client.head().status(), 503);
    peer.send(&body);
    assert_same(&client.read(body.len()), &body);
    assert_eq!(daemon.record("/long")["attempts"], 1);
    assert_eq!(daemon.status()["retries"], 0, "nothing is spent on an attempt that can't be made");
}

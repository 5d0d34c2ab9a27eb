//! Requests asked of backends over HTTP/2, and how many connections that takes.

use super::backend::Server;
use crate::backend::Backend;
use crate::peer::{Peer, noise};
use crate::traffic::door::{Daemon, Setup};

/// Before one backend, with one worker, so that its connections can be counted; they end by
/// nothing but what the test is about.
fn before(address: impl std::fmt::Display) -> Setup {
    Setup::new()
        .set("BACKEND_ADDRESS", address)
        .set("BACKEND_PROTOCOL", "h2")
        .set("BACKEND_IDLE_TIMEOUT", "1h")
        .set("WORKERS", 1)
        .set("MAX_RETRIES", 0)
}

/// Clients whose requests for `path` are under way.
fn asking(daemon: &Daemon, count: usize, path: &str) -> Vec<Peer> {
    let ask = |_| {
        let mut client = daemon.connect();
        client.get(path);
        client
    };
    (0..count).map(ask).collect()
}

#[test]
fn a_request_of_http_1_goes_on_as_one_of_http_2() {
    let server = Server::new();
    let daemon = before(server.address).start();
    let mut client = daemon.connect();
    client.send(
        "GET /fields?a=|b HTTP/1.1\r\nHost: door.test:81\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\
         Keep-Alive: 5\r\nTE: trailers, deflate\r\nX-Own: Kept\r\nCookie: a=1; b=2\r\nX-Request-Id: id\r\n\r\n",
    );
    let response = client.response();
    assert_eq!(response.head.line, "HTTP/1.1 200 OK");
    let mut lines: Vec<&str> = response.text().lines().collect();
    lines[1..].sort_unstable();
    assert_eq!(
        lines,
        [
            "GET http://door.test:81/fields?a=|b",
            "cookie: a=1; b=2",
            "te: trailers",
            "via: 1.1 doorward",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: door.test:81",
            "x-forwarded-proto: http",
            "x-own: Kept",
            "x-request-id: id",
        ]
    );
    // What no URI may have is encoded, and an authority that the library does not know is sent
    // as it is.
    client.send("GET /fields HTTP/1.1\r\nHost: a%20b\r\nX-Request-Id: id\r\n\r\n");
    assert!(client.response().text().contains("host: a%20b\n"));
    client.send("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().text(), "*");
    client.send("GET /`<> HTTP/1.1\r\nHost:\r\n\r\n");
    assert_eq!(client.response().text(), "/%60%3C%3E");
    assert_eq!(server.counts().connections, 1);
}

#[test]
fn bodies_trailers_and_interim_responses_pass_both_ways() {
    let server = Server::new();
    let daemon = before(server.address).start();
    let mut client = daemon.connect();
    let body = noise(3 << 20, 1);
    client.send(format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
    let mut writer = client.writer();
    std::thread::scope(|scope| {
        scope.spawn(|| writer.send(&body));
        crate::peer::assert_same(&client.response().body, &body);
    });
    // Its answer may have begun before it was whole, and is the last on its connection then.
    let mut client = daemon.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send("3\r\nabc\r\n0\r\nX-Sum: 9\r\nHost: b\r\n\r\n");
    assert_eq!(client.head().field("Transfer-Encoding"), Some("chunked"));
    client.expect("3\r\nabc\r\n0\r\nx-sum: 9\r\n\r\n");
    let mut client = daemon.connect();
    client.send("GET /trailers HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n");
    client.head();
    client.expect("4\r\nbody\r\n0\r\nx-sum: 7\r\n\r\n");
    client.send("GET /interim HTTP/1.1\r\nHost: a\r\n\r\n");
    let early = client.head();
    assert_eq!((early.status(), early.field("link")), (103, Some("</a.css>")));
    assert_eq!(client.response().text(), "after");
    // Neither has a body, and both leave the connection to the next request.
    client.send("GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().head.field("Content-Length"), Some("0"));
    client.send("HEAD /head HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.head().field("Content-Length"), Some("5"));
    client.get("/last");
    assert_eq!(client.response().text(), "/last");
    assert_eq!(server.counts().connections, 1);
}

#[test]
fn requests_at_once_share_a_connection_up_to_what_the_backend_allows() {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(3);
    let server = Server::with(builder);
    let daemon = before(server.address).start();
    let mut clients = asking(&daemon, 3, "/hold");
    server.wait("three are held", |counts| counts.held == 3);
    assert_eq!(server.counts().connections, 1);
    clients.extend(asking(&daemon, 4, "/hold"));
    server.wait("seven are held", |counts| counts.held == 7);
    assert_eq!(server.counts().connections, 3);
    (0..7).for_each(|_| server.release());
    for client in &mut clients {
        assert_eq!(client.response().text(), "released");
    }
    // All of them are kept for those that come.
    clients.iter_mut().for_each(|client| client.get("/again"));
    clients.iter_mut().for_each(|client| assert_eq!(client.response().text(), "/again"));
    assert_eq!(server.counts().connections, 3);
}

#[test]
fn those_who_come_at_once_wait_for_one_connection() {
    let backend = Backend::new();
    let daemon = before(&backend.address).start();
    let clients = asking(&daemon, 50, "/");
    daemon.wait_in_flight(50);
    let mut connection = super::backend::accept(&backend, &[]);
    (0..50).for_each(|_| _ = super::backend::request(&mut connection));
    backend.expect_none();
    drop(clients);
}

#[test]
fn a_client_that_leaves_takes_its_stream_along_and_nobody_elses() {
    let server = Server::new();
    let daemon = before(server.address).start();
    let mut stays = asking(&daemon, 1, "/hold").remove(0);
    let leaves = asking(&daemon, 1, "/hold").remove(0);
    server.wait("both are held", |counts| counts.held == 2);
    leaves.reset();
    server.wait("one was given up", |counts| counts.given_up == 1);
    server.release();
    assert_eq!(stays.response().text(), "released");
    assert_eq!(server.counts().connections, 1);
}

#[test]
fn where_connections_are_limited_those_who_wait_get_what_comes_free() {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(2);
    let server = Server::with(builder);
    let setup = before(server.address).set("MAX_BACKEND_CONNECTIONS", 1).set("QUEUE_TIMEOUT", "1h");
    let daemon = setup.start();
    let mut clients = asking(&daemon, 2, "/hold");
    server.wait("two are held", |counts| counts.held == 2);
    clients.extend(asking(&daemon, 3, "/hold"));
    daemon.wait("three wait", |status| status["backends"][0]["waiting"] == 3);
    (0..5).for_each(|_| server.release());
    for client in &mut clients {
        assert_eq!(client.response().text(), "released");
    }
    assert_eq!(server.counts().connections, 1);
}

#[test]
fn a_worker_without_a_connection_gets_one_from_another() {
    let server = Server::new();
    let setup = before(server.address).set("WORKERS", 2).set("MAX_BACKEND_CONNECTIONS", 1).set("QUEUE_TIMEOUT", "1h");
    let daemon = setup.start();
    // Clients are spread over the workers.
    let mut clients: Vec<Peer> = (0..4).map(|_| daemon.connect()).collect();
    for _ in 0..3 {
        for client in &mut clients {
            client.get("/");
            assert_eq!(client.response().text(), "/");
        }
    }
    assert!(server.counts().connections > 1, "both workers served");
    // The same while each is busy.
    clients.iter_mut().for_each(|client| client.get("/hold"));
    (0..4).for_each(|_| server.release());
    clients.iter_mut().for_each(|client| assert_eq!(client.response().text(), "released"));
    server.wait("one connection is open", |counts| counts.open == 1);
}

#[test]
fn a_connection_is_closed_once_it_was_idle_for_too_long() {
    let server = Server::new();
    let daemon = before(server.address).set("BACKEND_IDLE_TIMEOUT", "50ms").start();
    let mut client = daemon.connect();
    client.get("/");
    client.response();
    server.wait("it was closed", |counts| (counts.connections, counts.open) == (1, 0));
    client.get("/");
    client.response();
    // And at once where none is to be kept.
    let server = Server::new();
    let daemon = before(server.address).set("BACKEND_IDLE_CONNECTIONS", 0).start();
    let mut client = daemon.connect();
    client.get("/");
    client.response();
    server.wait("it was closed", |counts| (counts.connections, counts.open) == (1, 0));
}

#[test]
fn a_connection_to_a_backend_that_is_gone_from_the_configuration_is_closed() {
    let (server, other) = (Server::new(), Server::new());
    let daemon = before(server.address).start();
    let mut held = asking(&daemon, 1, "/hold").remove(0);
    server.wait("one is held", |counts| counts.held == 1);
    daemon.replace("BACKEND_ADDRESS", &other.address.to_string());
    let mut client = daemon.connect();
    client.get("/other");
    assert_eq!(client.response().text(), "/other");
    assert_eq!(other.counts().requests, 1);
    assert_eq!(server.counts().open, 1, "what is under way goes on");
    server.release();
    assert_eq!(held.response().text(), "released");
    server.wait("it was closed", |counts| counts.open == 0);
}

/// A backend sends no more than a client takes, also where other clients take all.
#[test]
fn a_slow_client_holds_back_its_own_answer_and_no_other() {
    let server = Server::new();
    let daemon = before(server.address).start();
    let slow: Vec<Peer> = (0..40)
        .map(|_| {
            let mut client = daemon.connect();
            client.shrink();
            client.get("/large");
            client
        })
        .collect();
    server.wait("all were asked", |counts| counts.requests == 40);
    let mut quick = daemon.connect();
    for _ in 0..5 {
        quick.get("/large");
        assert_eq!(quick.response().body.len(), 1 << 20);
    }
    assert_eq!(server.counts().connections, 1);
    let memory = daemon.memory();
    assert!(memory < 64 << 20, "{memory} bytes");
    drop(slow);
}

#[test]
fn an_upgrade_is_refused_where_the_backend_speaks_http_2() {
    let server = Server::new();
    let daemon = before(server.address).start();
    let mut client = daemon.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    client.response().assert_refusal(501, "upgrade_unsupported");
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n");
    assert_eq!(client.response().text(), "/");
}

#[test]
fn health_checks_speak_http_2_too() {
    let server = Server::new();
    let silent = Backend::new();
    let backends = format!("{}, {}", server.address, silent.address);
    let setup = before(backends).set("HEALTH_CHECK", "/health").set("HEALTH_INTERVAL", "500ms");
    let daemon = setup.set("HEALTH_TIMEOUT", "500ms").start();
    daemon.wait("one passes and one fails", |status| {
        status["backends"][0]["state"] == "up" && status["backends"][1]["state"] != "up"
    });
    server.wait("it was asked again", |counts| counts.requests >= 2);
    let mut client = daemon.connect();
    for _ in 0..3 {
        client.get("/");
        assert_eq!(client.response().status(), 200);
    }
}

#[test]
fn a_drain_ends_what_is_under_way_first() {
    let server = Server::new();
    let mut daemon = before(server.address).start();
    let mut client = asking(&daemon, 1, "/hold").remove(0);
    server.wait("one is held", |counts| counts.held == 1);
    std::thread::scope(|scope| {
        let stopped = scope.spawn(|| daemon.stop());
        server.release();
        assert_eq!(client.response().text(), "released");
        assert!(stopped.join().unwrap().success());
    });
    server.wait("it was closed", |counts| counts.open == 0);
}

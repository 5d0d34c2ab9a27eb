//! What is counted of the attempts at a backend.

use std::time::Duration;

use serde_json::{Value, json};

use crate::backend::{Backend, Mood, Moody, Refusing};
use crate::traffic::door::{Daemon, Setup};

/// What is counted of the backend at `address`, but for what is zero.
fn counted(status: &Value, address: &str) -> Value {
    let backends = status["backends"].as_array().unwrap();
    let backend = backends.iter().find(|backend| backend["address"] == address).unwrap();
    let nonzero = |counts: &Value| -> Value {
        counts
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, count)| **count != 0)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    json!({
        "attempts": backend["attempts"], "retries": backend["retries"], "in_flight": backend["in_flight"],
        "responses": nonzero(&backend["responses"]), "failures": nonzero(&backend["failures"]),
    })
}

/// Waits until that is as `wanted`; what is left out there is zero.
#[track_caller]
fn expect(daemon: &Daemon, address: &str, wanted: Value) {
    let mut all = json!({ "attempts": 0, "retries": 0, "in_flight": 0, "responses": {}, "failures": {} });
    all.as_object_mut().unwrap().extend(wanted.as_object().unwrap().clone());
    daemon.wait(&all.to_string(), |status| counted(status, address) == all);
}

fn route(path: &str, backend: &str, more: &str) -> String {
    format!("MATCH_PATH={path}\nBACKEND_ADDRESS={backend}\n{more}")
}

#[test]
fn each_way_to_fail_has_a_cause_and_a_5xx_is_a_response() {
    let (resets, hangs, fails) = (Moody::new(), Moody::new(), Moody::new());
    resets.set(Mood::Resets);
    hangs.set(Mood::Hangs);
    fails.set(Mood::Answers(500));
    let (refusing, garbles) = (Refusing::new(), Backend::new());
    let untrusted = format!("https://{}", fails.address);
    let refused = refusing.address.clone();
    let daemon = Setup::new()
        .set("MAX_RETRIES", 0)
        .set("BACKEND_ADDRESS", &fails.address)
        .route("reset.env", &route("/reset", &resets.address, ""))
        .route("timeout.env", &route("/timeout", &hangs.address, "RESPONSE_TIMEOUT=50ms\n"))
        .route("connect.env", &route("/connect", &refused, ""))
        .route("malformed.env", &route("/malformed", &garbles.address, ""))
        .route("tls.env", &route("/tls", &untrusted, "CONNECT_TIMEOUT=50ms\n"))
        .start();
    let mut client = daemon.connect();
    for (path, status, address, wanted) in [
        ("/fails", 500, &fails.address, json!({ "responses": { "5xx": 1 } })),
        ("/reset", 502, &resets.address, json!({ "failures": { "reset": 1 } })),
        ("/timeout", 504, &hangs.address, json!({ "failures": { "timeout": 1 } })),
        ("/connect", 502, &refused, json!({ "failures": { "connect": 1 } })),
        ("/malformed", 502, &garbles.address, json!({ "failures": { "malformed": 1 } })),
        ("/tls", 504, &untrusted, json!({ "failures": { "tls": 1 } })),
    ] {
        client.get(path);
        if path == "/malformed" {
            garbles.take().0.send("SIP/2.0 200 OK\r\n\r\n");
        }
        assert_eq!(client.response().status(), status, "{path}");
        let mut wanted = wanted;
        wanted["attempts"] = 1.into();
        expect(&daemon, address, wanted);
    }
}

#[test]
fn a_request_counts_with_each_backend_that_it_was_given_to() {
    let (first, second) = (Moody::new(), Moody::new());
    let addresses = [&*first.address, &*second.address].join(",");
    let daemon = Setup::new().set("BACKEND_ADDRESS", addresses).set("RETRY_ON", "reset,503").start();
    let mut client = daemon.connect();
    for (place, mood) in [Mood::Answers(503), Mood::Resets].into_iter().enumerate() {
        first.set(mood);
        client.get("/again");
        assert_eq!(client.response().status(), 200);
        let failures = if place == 0 { json!({}) } else { json!({ "reset": 1 }) };
        let (first_attempts, second_attempts) = (place + 1, place + 1);
        let given = json!({ "attempts": first_attempts, "responses": { "5xx": 1 }, "failures": failures });
        expect(&daemon, &first.address, given);
        let retried = json!({
            "attempts": second_attempts, "retries": second_attempts, "responses": { "2xx": second_attempts },
        });
        expect(&daemon, &second.address, retried);
        // Round robin: the next one is the first one's again.
        if place == 0 {
            first.set(Mood::Answers(200));
        }
    }
    assert_eq!(daemon.status()["retries"], 2);
}

/// Else each reuse that comes too late would look like a fault of the backend's.
#[test]
fn a_connection_that_had_ended_is_neither_a_failure_nor_another_attempt() {
    let backend = Backend::new();
    let daemon = Setup::new().set("BACKEND_ADDRESS", &backend.address).start();
    let mut client = daemon.connect();
    client.get("/first");
    let (mut peer, _) = backend.take();
    peer.answer("");
    client.response();
    client.get("/second");
    assert_eq!(peer.request().head.line, "GET /second HTTP/1.1");
    peer.reset();
    let (mut peer, _) = backend.take();
    peer.answer("");
    client.response();
    assert_eq!(daemon.record("/second")["attempts"], 2);
    expect(&daemon, &backend.address, json!({ "attempts": 2, "responses": { "2xx": 2 } }));
    // One that may not be sent again has failed.
    client.send_body("POST", "/third", b"body");
    assert_eq!(peer.request().text(), "body");
    peer.reset();
    assert_eq!(client.response().status(), 502);
    expect(&daemon, &backend.address, json!({ "attempts": 3, "responses": { "2xx": 2 }, "failures": { "reset": 1 } }));
}

#[test]
fn what_a_backend_has_is_counted_until_it_is_over_also_where_there_is_no_other() {
    let backend = Backend::new();
    let daemon = Setup::new().set("BACKEND_ADDRESS", &backend.address).start();
    let mut client = daemon.connect();
    client.get("/begun");
    let (mut peer, _) = backend.take();
    expect(&daemon, &backend.address, json!({ "attempts": 1, "in_flight": 1 }));
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab");
    client.expect("HTTP/1.1 200 OK\r\n");
    expect(&daemon, &backend.address, json!({ "attempts": 1, "in_flight": 1, "responses": { "2xx": 1 } }));
    // Failing within its answer, it has both answered and failed.
    peer.reset();
    client.expect_gone();
    let cut = json!({ "attempts": 1, "responses": { "2xx": 1 }, "failures": { "reset": 1 } });
    expect(&daemon, &backend.address, cut);

    let mut client = daemon.connect();
    client.send("GET /chat HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\nhello");
    client.read_to(b"hello");
    let failures = json!({ "reset": 1 });
    let open = json!({ "attempts": 2, "in_flight": 1, "responses": { "2xx": 2 }, "failures": failures });
    expect(&daemon, &backend.address, open);
    drop(peer);
    client.expect_end();
    drop(client);
    expect(&daemon, &backend.address, json!({ "attempts": 2, "responses": { "2xx": 2 }, "failures": failures }));

    // A client that leaves is nobody's failure.
    let mut client = daemon.connect();
    client.get("/left");
    let (_peer, _) = backend.take();
    client.reset();
    expect(&daemon, &backend.address, json!({ "attempts": 3, "responses": { "2xx": 2 }, "failures": failures }));
}

#[test]
fn answers_are_timed_from_when_the_request_was_sent() {
    let backend = Backend::new();
    let daemon = Setup::new().set("BACKEND_ADDRESS", &backend.address).start();
    let mut client = daemon.connect();
    client.send("PUT /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab");
    let mut peer = backend.accept();
    peer.read_to(b"\r\n\r\nab");
    // What the client takes for its body is its own.
    client.pause(Duration::from_millis(500));
    client.send("cd");
    peer.expect("cd");
    peer.pause(Duration::from_millis(300));
    peer.answer("");
    assert_eq!(client.response().status(), 200);
    let waited = daemon.status()["backends"][0]["response_ms"].as_u64().unwrap();
    let all = daemon.record("/slow")["duration_us"].as_u64().unwrap() / 1_000;
    assert!((299..=all - 499).contains(&waited), "{waited} of {all}");
}

#[test]
fn counts_outlive_reloads_and_go_by_the_backend_whatever_asks_of_its_health() {
    let backend = Moody::new();
    let checked = "HEALTH_CHECK=/health\nHEALTH_INTERVAL=1h\n";
    let daemon = Setup::new()
        .set("BACKEND_ADDRESS", &backend.address)
        .route("checked.env", &route("/checked", &backend.address, checked))
        .start();
    let mut client = daemon.connect();
    let mut attempts = 0;
    let mut ask = |path: &str| {
        client.get(path);
        assert_eq!(client.response().status(), 200);
        attempts += 1;
        attempts
    };
    ask("/");
    ask("/checked");
    let count = |attempts: u64| json!({ "attempts": attempts, "responses": { "2xx": attempts } });
    expect(&daemon, &backend.address, count(2));
    assert_eq!(daemon.status()["backends"].as_array().unwrap().len(), 2, "an endpoint for each check");
    daemon.put_route("checked.env", &route("/checked", &backend.address, ""));
    daemon.reload("MAX_RETRIES=2");
    assert_eq!(daemon.status()["backends"].as_array().unwrap().len(), 1);
    expect(&daemon, &backend.address, count(2));
    let attempts = ask("/checked");
    daemon.put_route("checked.env", &route("/checked", &backend.address, checked));
    daemon.replace("WORKERS", "5");
    expect(&daemon, &backend.address, count(attempts));
    let attempts = ask("/checked");
    expect(&daemon, &backend.address, count(attempts));
}

#[test]
fn connections_of_tcp_mode_count_as_attempts() {
    let (backend, refusing) = (Backend::new(), Refusing::new());
    let addresses = [&*refusing.address, &*backend.address].join(",");
    let daemon = Setup::new().set("MODE", "tcp").set("BACKEND_ADDRESS", addresses).start();
    let mut client = daemon.connect();
    let mut peer = backend.accept();
    peer.send("hello");
    client.expect("hello");
    expect(&daemon, &refusing.address, json!({ "attempts": 1, "failures": { "connect": 1 } }));
    let open = json!({ "attempts": 1, "retries": 1, "in_flight": 1, "responses": { "other": 1 } });
    expect(&daemon, &backend.address, open);
    drop(peer);
    client.expect_end();
    drop(client);
    let over = json!({ "attempts": 1, "retries": 1, "responses": { "other": 1 } });
    expect(&daemon, &backend.address, over);
}

//! When trying again is pointless, or the fault is ours.

use crate::backend::{Backend, Refusing};
use crate::traffic::retries::{attempts, before, used};

#[test]
fn a_name_that_is_not_resolved_fails_at_once() {
    let setup = before(&["backend.invalid:80"]).set("RETRY_BACKOFF", "24h").set("RETRY_BACKOFF_MAX", "24h");
    // No name server is asked: the daemon has no network but the listener it is passed.
    let Some(setup) = setup.without_network() else {
        eprintln!("skipped: no network namespace can be made here");
        return;
    };
    let daemon = setup.start();
    let mut client = daemon.connect();
    client.get("/unknown");
    client.response().assert_refusal(502, "backend_unresolved");
    assert_eq!(attempts(&daemon, "/unknown"), 1);
    let backend = &daemon.status()["backends"][0];
    assert_eq!(backend["up"], false);
    assert!(!backend["reason"].as_str().unwrap().is_empty());
}

#[test]
fn a_backend_without_a_way_to_it_is_502() {
    let setup = before(&["127.0.0.1:9"]).set("MAX_RETRIES", 1);
    let Some(setup) = setup.without_network() else {
        eprintln!("skipped: no network namespace can be made here");
        return;
    };
    let daemon = setup.start();
    let mut client = daemon.connect();
    client.send_body("POST", "/away", b"body");
    client.response().assert_refusal(502, "backend_unreachable");
    assert_eq!(attempts(&daemon, "/away"), 2);
}

#[test]
fn a_backend_known_to_be_down_is_answered_for_at_once_until_it_is_back() {
    let refusing = Refusing::new();
    let daemon = before(&[&refusing.address])
        .set("RETRY_BACKOFF", "24h")
        .set("RETRY_BACKOFF_MAX", "24h")
        .route("plain.env", "MATCH_PATH=/plain\nMAX_RETRIES=0\n")
        .start();
    let mut client = daemon.connect();
    for _ in 0..5 {
        client.get("/plain");
        client.response().assert_refusal(502, "backend_connect_refused");
    }
    daemon.logged("the backend's fall", |line| {
        line["message"] == "backend down" && line["backend"] == refusing.address.as_str()
    });
    assert_eq!(daemon.status()["backends"][0]["up"], false);
    // Retries would wait for a day: nobody waits for a backend that is down. Either it is
    // not tried at all, or this request is the one that probes it.
    for _ in 0..5 {
        client.send_body("POST", "/known", b"");
        let response = client.response();
        let reason = if response.status() == 503 { "backends_down" } else { "backend_connect_refused" };
        response.assert_refusal(if reason == "backends_down" { 503 } else { 502 }, reason);
    }
    let backend = refusing.open();
    let server = std::thread::spawn(move || {
        let (mut peer, _) = backend.take();
        peer.answer("back");
        (backend, peer)
    });
    let until = std::time::Instant::now() + crate::daemon::DEADLINE;
    loop {
        client.get("/back");
        let response = client.response();
        if response.status() == 200 {
            break;
        }
        response.assert_refusal(503, "backends_down");
        assert!(std::time::Instant::now() < until, "it is never probed");
    }
    drop(server.join().unwrap());
    daemon.logged("the backend's return", |line| line["message"] == "backend up");
}

#[test]
fn at_most_a_tenth_of_the_permits_sleeps_between_attempts() {
    let refusing = Refusing::new();
    let daemon = before(&[&refusing.address])
        .set("MAX_CONCURRENT_REQUESTS", 10)
        .set("RETRY_BACKOFF", "24h")
        .set("RETRY_BACKOFF_MAX", "24h")
        .start();
    let mut sleeper = daemon.connect();
    sleeper.get("/sleeper");
    // Each is answered once the first one sleeps; until then it may be the sleeper.
    let mut client = daemon.connect();
    client.get("/awake");
    let until = std::time::Instant::now() + crate::daemon::DEADLINE;
    let mut ends = [sleeper, client];
    loop {
        let [a, b] = &mut ends;
        let short = std::time::Duration::from_millis(20);
        if a.has_come(short) || b.has_come(short) {
            break;
        }
        assert!(std::time::Instant::now() < until, "both sleep");
    }
    daemon.record_of("backend_connect_refused");
    daemon.wait_in_flight(1);
}

#[test]
fn our_own_shortage_of_descriptors_is_503_and_nobody_elses_fault() {
    let backend = Backend::new();
    let daemon = before(&[&backend.address]).start();
    let (mut client, mut peer) = used(&daemon, &backend);
    peer.half_close();
    peer.expect_end();
    daemon.limit_descriptors(1);
    for _ in 0..6 {
        client.get("/short");
        client.response().assert_refusal(503, "out_of_descriptors");
    }
    assert_eq!(attempts(&daemon, "/short"), 1);
    backend.expect_none();
    // One who comes now waits in the backlog instead of being turned away.
    let mut waiting = daemon.connect();
    waiting.get("/waiting");
    daemon.logged("the shortage", |line| line["message_id"] == "0ef2c88bff86e80aa4c2adc00a133f8c");
    daemon.limit_descriptors(1024);
    let (mut peer, _) = backend.take();
    peer.answer_last("served");
    assert_eq!(waiting.response().text(), "served");
    assert!(daemon.lines(|line| line["message"] == "backend down").is_empty());
}

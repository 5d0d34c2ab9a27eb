//! Backends that fare worse than the others, and what is never held against one.

use std::time::Instant;

use serde_json::Value;

use crate::backend::{Backend, Mood, Moody};
use crate::daemon::DEADLINE;
use crate::peer::Peer;
use crate::traffic::door::{Daemon, Setup};

/// Before these backends; each attempt counts, and three failures in a row eject.
fn before(backends: &[&Moody]) -> Setup {
    let addresses: Vec<&str> = backends.iter().map(|backend| backend.address.as_str()).collect();
    Setup::new()
        .set("BACKEND_ADDRESS", addresses.join(","))
        .set("MAX_RETRIES", 0)
        .set("EJECT_AFTER", 3)
        .set("EJECT_TIME", "1h")
        .set("EJECT_TIME_MAX", "24h")
}

/// Sends a request and reads its answer.
fn ask(client: &mut Peer) -> u16 {
    client.get("/asked");
    client.response().status()
}

/// Sends requests until `done`.
fn ask_until(daemon: &Daemon, what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    let mut client = daemon.connect();
    while !done() {
        ask(&mut client);
        assert!(Instant::now() < until, "never came true: {what}");
    }
}

fn ejections(daemon: &Daemon, backend: &Moody) -> Vec<Value> {
    daemon.lines(|line| line["message"] == "backend ejected" && line["backend"] == backend.address.as_str())
}

fn eject(daemon: &Daemon, backend: &Moody) {
    ask_until(daemon, "an ejection", || !ejections(daemon, backend).is_empty());
}

fn standing(daemon: &Daemon, backend: &Moody) -> Value {
    let mut status = daemon.status();
    let backends = status["backends"].as_array_mut().unwrap();
    backends.iter_mut().find(|one| one["address"] == backend.address.as_str()).unwrap().take()
}

/// The reason ends so, and begins with the failures that there were when control looked.
#[track_caller]
fn assert_reason(record: &Value, end: &str) {
    let reason = record["reason"].as_str().unwrap();
    let count = reason.strip_suffix(end).and_then(|count| count.trim().parse::<u32>().ok());
    assert!(count.is_some_and(|count| count >= 3), "{reason}");
}

#[test]
fn a_backend_that_resets_again_and_again_is_ejected_and_told_of() {
    let (good, bad) = (Moody::new(), Moody::new());
    bad.set(Mood::Resets);
    let daemon = before(&[&good, &bad]).start();
    eject(&daemon, &bad);
    let asked = bad.asked();
    let mut client = daemon.connect();
    for _ in 0..10 {
        assert_eq!(ask(&mut client), 200);
    }
    assert_eq!(bad.asked(), asked, "nobody goes there");
    let [record] = ejections(&daemon, &bad).try_into().unwrap();
    assert_eq!((&record["eject_s"], &record["level"]), (&3600.0.into(), &"WARN".into()));
    assert_reason(&record, "failures in a row, the last one backend_reset");
    let shown = standing(&daemon, &bad);
    assert_eq!((&shown["up"], &shown["state"]), (&false.into(), &"ejected".into()));
    assert_eq!(shown["reason"], record["reason"]);
    assert!(shown["since"].as_u64().unwrap() > 1_600_000_000, "{shown}");
}

#[test]
fn when_its_time_is_over_one_request_probes_it_and_its_answer_brings_it_back() {
    let (good, bad) = (Moody::new(), Moody::new());
    bad.set(Mood::Resets);
    let daemon = before(&[&good, &bad]).set("EJECT_TIME", "200ms").start();
    eject(&daemon, &bad);
    // It fails at the probe: away for twice as long, and no request but the probe is lost.
    let asked = bad.asked();
    ask_until(&daemon, "another ejection", || ejections(&daemon, &bad).len() > 1);
    assert_eq!(bad.asked(), asked + 1);
    let again = &ejections(&daemon, &bad)[1];
    assert_eq!((&again["eject_s"], &again["reason"]), (&0.4.into(), &"the probe failed: backend_reset".into()));
    bad.set(Mood::Answers(200));
    let up = |line: &Value| line["message"] == "backend up" && line["backend"] == bad.address.as_str();
    ask_until(&daemon, "the return", || !daemon.lines(up).is_empty());
    assert_eq!(daemon.lines(up)[0]["was"], "ejected");
    let asked = bad.asked();
    let mut client = daemon.connect();
    for _ in 0..10 {
        assert_eq!(ask(&mut client), 200);
    }
    assert!(bad.asked() >= asked + 4, "it takes its turn again");
}

#[test]
fn a_backend_that_hangs_is_ejected_for_its_timeouts() {
    let (good, bad) = (Moody::new(), Moody::new());
    bad.set(Mood::Hangs);
    let daemon = before(&[&good, &bad]).set("RESPONSE_TIMEOUT", "50ms").start();
    eject(&daemon, &bad);
    assert_reason(&ejections(&daemon, &bad)[0], "failures in a row, the last one backend_response_timeout");
}

#[test]
fn answers_of_a_status_count_only_where_they_are_said_to() {
    let (good, bad) = (Moody::new(), Moody::new());
    bad.set(Mood::Answers(503));
    let daemon = before(&[&good, &bad]).start();
    let mut client = daemon.connect();
    for _ in 0..20 {
        ask(&mut client);
    }
    assert_eq!(standing(&daemon, &bad)["state"], "up");
    daemon.reload("EJECT_ON=reset,503");
    eject(&daemon, &bad);
    assert_reason(&ejections(&daemon, &bad)[0], "failures in a row, the last one 503");
}

#[test]
fn the_only_backend_is_never_ejected_and_of_two_that_fail_at_most_one() {
    let alone = Moody::new();
    alone.set(Mood::Resets);
    let daemon = before(&[&alone]).start();
    let mut client = daemon.connect();
    for _ in 0..20 {
        assert_eq!(ask(&mut client), 502);
    }
    assert_eq!((alone.asked(), &standing(&daemon, &alone)["state"]), (20, &"up".into()));

    let pair = [Moody::new(), Moody::new()];
    let daemon = before(&[&pair[0], &pair[1]]).start();
    for backend in &pair {
        backend.set(Mood::Resets);
    }
    for _ in 0..40 {
        assert_eq!(ask(&mut client), 502);
    }
    daemon.wait("control has looked", |status| {
        let backends = status["backends"].as_array().unwrap();
        backends.iter().filter(|backend| backend["state"] == "ejected").count() <= 1
    });
}

#[test]
fn clients_that_leave_are_not_held_against_a_backend() {
    let (good, slow) = (Moody::new(), Moody::new());
    slow.set(Mood::Hangs);
    let daemon = before(&[&good, &slow]).start();
    let mut left = 0;
    while left < 8 {
        let before = slow.asked();
        let mut client = daemon.connect();
        client.get("/left");
        daemon.wait("it has come somewhere", |status| status["requests"].as_u64() > Some(0) || slow.asked() > before);
        left += slow.asked() - before;
        client.reset();
        daemon.wait_in_flight(0);
    }
    slow.set(Mood::Answers(200));
    assert_eq!(standing(&daemon, &slow)["state"], "up");
    assert!(ejections(&daemon, &slow).is_empty());
}

#[test]
fn a_kept_connection_that_had_ended_is_not_held_against_a_backend() {
    let (closing, other) = (Backend::new(), Moody::new());
    let addresses = format!("{},{}", closing.address, other.address);
    let daemon = before(&[&other]).set("BACKEND_ADDRESS", addresses).set("EJECT_AFTER", 1).set("WORKERS", 1).start();
    let address = closing.address.clone();
    std::thread::spawn(move || {
        let (mut peer, _) = closing.take();
        peer.answer("kept");
        // It ends as the next request arrives, and that one is sent anew.
        peer.request();
        drop(peer);
        let mut peer = closing.accept();
        while peer.try_head().is_some() {
            peer.answer("fresh");
        }
    });
    let mut client = daemon.connect();
    for _ in 0..4 {
        assert_eq!(ask(&mut client), 200);
    }
    // Once control has ejected another one, it has looked at this one too.
    other.set(Mood::Resets);
    eject(&daemon, &other);
    assert!(daemon.lines(|line| line["message"] == "backend ejected" && line["backend"] == address).is_empty());
}

#[test]
fn a_reload_keeps_an_ejection() {
    let (good, bad) = (Moody::new(), Moody::new());
    bad.set(Mood::Resets);
    let daemon = before(&[&good, &bad]).start();
    eject(&daemon, &bad);
    let (asked, shown) = (bad.asked(), standing(&daemon, &bad));
    daemon.reload("HEADER_TIMEOUT=9s");
    let mut client = daemon.connect();
    for _ in 0..10 {
        assert_eq!(ask(&mut client), 200);
    }
    assert_eq!(bad.asked(), asked);
    assert_eq!(standing(&daemon, &bad)["reason"], shown["reason"]);
    assert_eq!(ejections(&daemon, &bad).len(), 1, "and is not told again");
}

#[test]
fn a_reload_without_ejection_brings_back_who_was_ejected() {
    let (good, bad) = (Moody::new(), Moody::new());
    bad.set(Mood::Resets);
    let daemon = before(&[&good, &bad]).start();
    eject(&daemon, &bad);
    daemon.replace("EJECT_AFTER", "off");
    assert_eq!(standing(&daemon, &bad)["state"], "up");
}

#[test]
fn a_backend_far_slower_than_the_others_is_ejected_where_that_is_asked_for() {
    let (good, slow) = (Moody::new(), Moody::new());
    slow.set(Mood::Lags(250));
    let setup = before(&[&good, &slow]).set("BALANCE", "round-robin").set("ACCESS_LOG", "off");
    let daemon = setup.set("EJECT_LATENCY", 2).start();
    // Enough of both each second, until ten seconds in a row have been slow.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| eject(&daemon, &slow));
        }
    });
    let [record] = ejections(&daemon, &slow).try_into().unwrap();
    let reason = record["reason"].as_str().unwrap();
    let mean = reason.strip_prefix("answers take ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    assert!(mean.is_some_and(|mean: u64| mean >= 249), "{reason}");
    assert!(ejections(&daemon, &good).is_empty());
}

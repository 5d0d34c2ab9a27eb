//! Backends that are checked: what is asked, what passes, what follows.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::backend::{Backend, Mood, Moody, Refusing, Silent};
use crate::nameserver::{NameServer, Record, Reply, SRV};
use crate::peer::noise;
use crate::traffic::door::{Daemon, Setup};

/// Between two checks, and the longest for one.
const MOMENT: &str = "500ms";

/// Before these backends, which are checked twice a second and take requests in turn.
fn before(backends: &[&str]) -> Setup {
    Setup::new()
        .set("BACKEND_ADDRESS", backends.join(","))
        .set("HEALTH_CHECK", "/health")
        .set("HEALTH_INTERVAL", MOMENT)
        .set("HEALTH_TIMEOUT", MOMENT)
        .set("BALANCE", "round-robin")
        .set("MAX_RETRIES", 0)
}

/// The same with so much between two checks, and for one: a busy machine takes its time.
fn patient(backends: &[&str], moment: &str) -> Setup {
    before(backends).set("HEALTH_INTERVAL", moment).set("HEALTH_TIMEOUT", moment)
}

fn standing(daemon: &Daemon, backend: &str) -> Value {
    let mut status = daemon.status();
    let backends = status["backends"].as_array_mut().unwrap();
    backends.iter_mut().find(|one| one["address"] == backend).unwrap().take()
}

/// Waits until a backend is in this state.
fn wait(daemon: &Daemon, backend: &str, state: &str) {
    daemon.wait(&format!("{backend} {state}"), |status| {
        let backends = status["backends"].as_array().unwrap();
        backends.iter().any(|one| one["address"] == backend && one["state"] == state)
    });
}

/// Sends so many requests; the statuses of the answers.
fn ask(daemon: &Daemon, count: usize) -> Vec<u16> {
    let mut client = daemon.connect();
    let each = |_| {
        client.get("/asked");
        client.response().status()
    };
    (0..count).map(each).collect()
}

#[test]
fn a_check_is_a_plain_request_that_says_what_it_is() {
    let backend = Backend::new();
    let _daemon = before(&[&backend.address]).set("HEALTH_CHECK", "/up?full=1").start();
    let (mut peer, request) = backend.take();
    assert_eq!(request.head.line, "GET /up?full=1 HTTP/1.1");
    assert_eq!(request.head.field("Host"), Some(backend.address.as_str()));
    assert_eq!(request.head.field("Connection"), Some("close"));
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(request.head.field("User-Agent"), Some(format!("doorward/{version} (health check)").as_str()));
    // The body is read, so that there is no reset. The next check comes on its own connection.
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n");
    for _ in 0..6 {
        peer.send(noise(10_000, 7));
    }
    peer.expect_end();
    backend.take();
}

#[test]
fn a_check_asks_for_its_host_also_on_a_unix_socket() {
    let setup = Setup::new();
    let backend = Backend::unix(setup.path("app.sock"));
    let _daemon = setup
        .set("BACKEND_ADDRESS", &backend.address)
        .set("HEALTH_CHECK", "/health")
        .set("HEALTH_INTERVAL", MOMENT)
        .set("HEALTH_TIMEOUT", MOMENT)
        .set("HEALTH_HOST", "app.example.com:8080")
        .start();
    let (_, request) = backend.take();
    assert_eq!(request.head.field("Host"), Some("app.example.com:8080"));
    // Without one it is what requests have, where that is one and the same.
    let backend = Backend::new();
    let _daemon = before(&[&backend.address]).set("BACKEND_HOST", "app.example.com").start();
    let (_, request) = backend.take();
    assert_eq!(request.head.field("Host"), Some("app.example.com"));
}

#[test]
fn checks_that_fail_take_a_backend_out_and_those_that_pass_bring_it_back() {
    let (good, bad) = (Moody::new(), Moody::new());
    let daemon = before(&[&good.address, &bad.address])
        .set("HEALTH_INTERVAL", "2s")
        .set("HEALTH_TIMEOUT", "2s")
        .set("HEALTH_FALL", 2)
        .set("HEALTH_RISE", 1)
        .start();
    bad.next_checks(1);
    // Requests that fail are another matter.
    bad.set(Mood::Answers(500));
    let asked = ask(&daemon, 4);
    assert_eq!(asked.iter().filter(|status| **status == 500).count(), 2);
    bad.set_checks(Mood::Answers(500));
    wait(&daemon, &bad.address, "failing");
    assert_eq!(ask(&daemon, 6), [200; 6]);
    let shown = standing(&daemon, &bad.address);
    assert_eq!((&shown["up"], &shown["reason"]), (&false.into(), &"status 500".into()));
    let record = daemon.logged("the fall", |line| line["message"] == "backend fails its checks");
    assert_eq!((&record["backend"], &record["reason"]), (&bad.address.as_str().into(), &"status 500".into()));
    bad.set_checks(Mood::Answers(204));
    bad.set(Mood::Answers(200));
    wait(&daemon, &bad.address, "up");
    let record = daemon.logged("the return", |line| line["message"] == "backend up");
    assert_eq!((&record["backend"], &record["was"]), (&bad.address.as_str().into(), &"failing".into()));
    let asked = bad.asked();
    ask(&daemon, 4);
    assert_eq!(bad.asked(), asked + 2, "it takes its turn again");
}

#[test]
fn whatever_goes_wrong_with_a_check_has_its_words() {
    let good = Moody::new();
    let (hanging, resetting, refusing, silent) = (Moody::new(), Moody::new(), Refusing::new(), Silent::new());
    hanging.set_checks(Mood::Hangs);
    resetting.set_checks(Mood::Resets);
    let all = [&good.address, &hanging.address, &resetting.address, &refusing.address, &silent.address];
    // Long enough for a check that fails by itself to have done so.
    let daemon = patient(&all.map(String::as_str), "2s").set("HEALTH_FALL", 1).start();
    for (backend, reason) in [
        (&hanging.address, "no answer within 2s"),
        (&resetting.address, "backend_reset"),
        (&refusing.address, "backend_connect_refused"),
        (&silent.address, "no answer within 2s"),
    ] {
        wait(&daemon, backend, "failing");
        assert_eq!(standing(&daemon, backend)["reason"], reason, "{backend}");
    }
    wait(&daemon, &good.address, "up");
}

#[test]
fn a_body_that_never_ends_does_not_undo_the_status() {
    let backend = Backend::new();
    let daemon = before(&[&backend.address])
        .set("HEALTH_INTERVAL", "1s")
        .set("HEALTH_TIMEOUT", "1s")
        .set("HEALTH_FALL", 1)
        .start();
    let (mut first, _) = backend.take();
    first.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    // The next one comes once that has ended.
    let (mut second, _) = backend.take();
    first.expect_gone();
    assert_eq!(standing(&daemon, &backend.address)["state"], "up");
    second.send("HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    wait(&daemon, &backend.address, "failing");
    assert_eq!(standing(&daemon, &backend.address)["reason"], "status 503");
}

#[test]
fn a_check_by_connection_needs_no_answer_and_works_for_tcp() {
    let (silent, refusing) = (Moody::new(), Refusing::new());
    silent.set_checks(Mood::Resets);
    let daemon = before(&[&silent.address, &refusing.address]).set("HEALTH_CHECK", "tcp").set("MODE", "tcp").start();
    wait(&daemon, &refusing.address, "failing");
    assert_eq!(standing(&daemon, &silent.address)["state"], "up");
    let backend = refusing.open();
    wait(&daemon, &backend.address, "up");
}

#[test]
fn the_statuses_that_pass_can_be_said() {
    let backends = [Moody::new(), Moody::new(), Moody::new()];
    for (backend, status) in backends.iter().zip([204, 401, 200]) {
        backend.set_checks(Mood::Answers(status));
    }
    let addresses = backends.each_ref().map(|backend| backend.address.as_str());
    let daemon = before(&addresses).set("HEALTH_STATUS", "204,400-404").start();
    wait(&daemon, addresses[2], "failing");
    for backend in &backends[..2] {
        backend.next_checks(2);
        wait(&daemon, &backend.address, "up");
    }
}

#[test]
fn where_every_check_fails_requests_go_to_all_and_the_journal_says_so_once() {
    let backends = [Moody::new(), Moody::new()];
    let addresses = backends.each_ref().map(|backend| backend.address.as_str());
    let daemon = before(&addresses).start();
    for backend in &backends {
        backend.set_checks(Mood::Answers(503));
    }
    for address in addresses {
        wait(&daemon, address, "failing");
    }
    let opened = |line: &Value| line["message"] == "no backend is left; requests go to all that take connections";
    assert_eq!(daemon.logged("the opening", opened)["route"], "default");
    assert_eq!(daemon.status()["failing_open"], Value::from(vec!["default"]));
    let asked = backends.each_ref().map(Moody::asked);
    assert_eq!(ask(&daemon, 6), [200; 6]);
    assert_eq!(backends.each_ref().map(Moody::asked), asked.map(|asked| asked + 3));
    backends[0].next_checks(3);
    assert_eq!(daemon.lines(opened).len(), 1);
    for backend in &backends {
        backend.set_checks(Mood::Answers(200));
    }
    daemon.logged("the end of it", |line| line["message"] == "enough backends are up again");
    assert_eq!(daemon.status()["failing_open"], Value::Array(Vec::new()));
}

#[test]
fn a_backup_that_is_sound_again_takes_the_requests_of_primaries_that_all_fail() {
    let backends = [Moody::new(), Moody::new(), Moody::new()];
    let [first, second, spare] = backends.each_ref().map(|backend| backend.address.as_str());
    let daemon = before(&[first, second, &format!("{spare}?backup")]).set("HEALTH_RISE", 1).start();
    for backend in &backends {
        backend.set_checks(Mood::Answers(503));
    }
    daemon.wait("it fails open", |status| status["failing_open"] == Value::from(vec!["default"]));
    backends[2].set_checks(Mood::Answers(200));
    daemon.wait("it does no more", |status| status["failing_open"] == Value::Array(Vec::new()));
    assert_eq!(ask(&daemon, 6), [200; 6]);
    assert_eq!(backends.each_ref().map(Moody::asked), [0, 0, 6]);
}

#[test]
fn where_no_connection_can_be_made_there_is_nothing_to_open() {
    let refusing = [Refusing::new(), Refusing::new()];
    let daemon = before(&refusing.each_ref().map(|one| one.address.as_str())).start();
    for one in &refusing {
        wait(&daemon, &one.address, "failing");
    }
    // Checks alone don't make it so: requests are tried until connections prove it.
    let until = Instant::now() + crate::daemon::DEADLINE;
    while !ask(&daemon, 1).contains(&503) {
        assert!(Instant::now() < until, "it is never known to be down");
    }
    wait(&daemon, &refusing[0].address, "down");
}

#[test]
fn a_reload_keeps_what_checks_have_found_and_stops_those_that_are_not_wanted() {
    let (good, bad) = (Moody::new(), Moody::new());
    bad.set_checks(Mood::Answers(500));
    // The first checks decide; no other comes.
    let daemon = patient(&[&good.address, &bad.address], "1h").start();
    wait(&daemon, &bad.address, "failing");
    let since = standing(&daemon, &bad.address)["since"].clone();
    daemon.reload("HEADER_TIMEOUT=9s");
    let shown = standing(&daemon, &bad.address);
    assert_eq!((&shown["state"], &shown["since"]), (&"failing".into(), &since));
    // Another kind of check of the same backend: it is out until that says otherwise.
    daemon.reload("HEALTH_RISE=3");
    assert_eq!(standing(&daemon, &bad.address)["state"], "failing");
    assert_eq!(daemon.lines(|line| line["message"] == "backend fails its checks").len(), 1);
}

#[test]
fn a_backend_that_comes_and_goes_with_its_name_is_not_held_to_be_sound_each_time() {
    let (good, bad) = (Moody::new(), Moody::new());
    bad.set_checks(Mood::Answers(500));
    let names = NameServer::new();
    names.addresses("host.test", &["127.0.0.1"], 0);
    let offer = |backends: &[&Moody]| {
        let port = |backend: &Moody| backend.address.parse::<SocketAddr>().unwrap().port();
        let records = backends.iter().map(|backend| Record::Service(10, 1, port(backend), "host.test"));
        names.say("_http._tcp.test", SRV, Reply::Records(records.collect(), 0));
    };
    offer(&[&good, &bad]);
    let daemon = patient(&["srv:_http._tcp.test"], "1h").set("RESOLVER", names.address).start();
    let backend = format!("srv:_http._tcp.test@{}", bad.address);
    wait(&daemon, &backend, "failing");
    let listed = |count| move |status: &Value| status["backends"].as_array().unwrap().len() == count;
    let asked = bad.asked();
    for _ in 0..2 {
        offer(&[&good]);
        daemon.wait("it has left", listed(1));
        offer(&[&good, &bad]);
        daemon.wait("it is back", listed(2));
        assert_eq!(standing(&daemon, &backend)["state"], "failing");
        assert_eq!(ask(&daemon, 4), [200; 4]);
    }
    assert_eq!(bad.asked(), asked);
    let falls = |line: &Value| line["message"] == "backend fails its checks" && line["backend"] == backend.as_str();
    assert_eq!(daemon.lines(falls).len(), 1);
}

#[test]
fn without_a_check_a_backend_is_up_again_and_is_not_asked() {
    let (good, bad) = (Moody::new(), Moody::new());
    bad.set_checks(Mood::Answers(500));
    let setup = Setup::new()
        .set("BACKEND_ADDRESS", format!("{},{}", good.address, bad.address))
        .set("HEALTH_INTERVAL", MOMENT)
        .set("HEALTH_TIMEOUT", MOMENT);
    let daemon = setup.start();
    assert_eq!(good.checks(), 0);
    let route = "MATCH_PATH=/checked\nHEALTH_CHECK=/health\n";
    daemon.put_route("checked.env", route);
    daemon.reload("");
    daemon.logged("the fall", |line| line["message"] == "backend fails its checks");
    // The default route shares neither the check nor what it has found.
    assert_eq!(ask(&daemon, 4), [200; 4]);
    assert!(bad.asked() >= 2);
    let mut client = daemon.connect();
    let asked = bad.asked();
    for _ in 0..4 {
        client.get("/checked");
        assert_eq!(client.response().status(), 200);
    }
    assert_eq!(bad.asked(), asked);
    daemon.put_route("checked.env", "MATCH_PATH=/checked\n");
    daemon.reload("");
    let checks = (good.checks(), bad.checks());
    assert_eq!(standing(&daemon, &bad.address)["up"], true);
    client.pause(Duration::from_millis(1500));
    // One may have been on its way.
    assert!(good.checks() <= checks.0 + 1 && bad.checks() <= checks.1 + 1);
}

#[test]
fn what_checks_have_found_is_forgotten_with_them() {
    let (good, bad) = (Moody::new(), Moody::new());
    bad.set_checks(Mood::Answers(500));
    let daemon = before(&[&good.address, &bad.address]).start();
    wait(&daemon, &bad.address, "failing");
    daemon.replace("HEALTH_CHECK", "off");
    assert_eq!(standing(&daemon, &bad.address)["state"], "up");
}

#[test]
fn a_backend_that_flaps_leaves_few_records() {
    let (good, flapping) = (Moody::new(), Moody::new());
    flapping.set_checks(Mood::Flaps);
    let daemon = before(&[&good.address, &flapping.address])
        .set("HEALTH_INTERVAL", "50ms")
        .set("HEALTH_TIMEOUT", "50ms")
        .set("HEALTH_RISE", 1)
        .set("HEALTH_FALL", 1)
        .start();
    let began = Instant::now();
    let told = || {
        let changes = ["backend fails its checks", "backend up"];
        let of_it = |line: &Value| line["backend"] == flapping.address.as_str();
        daemon.lines(|line| of_it(line) && changes.iter().any(|change| line["message"] == *change)).len()
    };
    // Six at once, then one every ten seconds.
    while told() < 6 {
        assert!(began.elapsed() < crate::daemon::DEADLINE, "{} records", told());
        flapping.next_checks(1);
    }
    flapping.next_checks(50);
    let (told, most) = (told(), 7 + began.elapsed().as_secs() / 10);
    assert!(u64::try_from(told).unwrap() <= most, "{told} records, where {most} are the most");
    flapping.set_checks(Mood::Answers(200));
    wait(&daemon, &flapping.address, "up");
}

#[test]
fn our_own_shortage_says_nothing_of_a_backend() {
    let backend = Moody::new();
    let daemon = patient(&[&backend.address], "2s").set("HEALTH_FALL", 1).set("LOG_LEVEL", "debug").start();
    backend.next_checks(1);
    daemon.limit_descriptors(1);
    daemon.logged("a check that can't be made", |line| line["message"] == "backend can't be checked");
    daemon.limit_descriptors(1024);
    backend.next_checks(1);
    assert_eq!(standing(&daemon, &backend.address)["state"], "up");
    assert!(daemon.lines(|line| line["message"] == "backend fails its checks").is_empty());
}

//! Metrics: what a scrape says, who else may ask for it, and where it is to be had.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

use super::daemon::{DEADLINE, Daemon, Setting, backend, connect, get, listener};
use super::tls::issued::{self, Authority};
use super::traffic::door::Setup;

/// Where metrics are when the daemon has chosen a port: the `nth` time that it did.
fn scrapes_at(daemon: &Daemon, nth: usize) -> SocketAddr {
    let record = daemon.wait_for("listening for scrapes on a socket of its own", nth + 1).swap_remove(nth);
    assert_eq!((&record["listener"], &record["passed"]), (&"metrics".into(), &false.into()));
    assert_eq!(record["message_id"], doorward::telemetry::events::LISTENING);
    record["address"].as_str().unwrap().parse().unwrap()
}

/// The answer to a request on a connection that it is read to the end of.
fn answer(mut stream: impl std::io::Read + std::io::Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

const SCRAPE: &str = "GET /metrics HTTP/1.1\r\nHost: door\r\nAccept: application/openmetrics-text\r\n\r\n";

/// The samples of an answer by name and labels, each with its value.
fn samples(answer: &str) -> BTreeMap<String, f64> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        head.contains("\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"),
        "{head}"
    );
    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
    let body = body.strip_suffix("# EOF\n").expect("a whole exposition");
    let mut samples = BTreeMap::new();
    for line in body.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{series} stands twice");
    }
    samples
}

fn scrape(address: SocketAddr) -> BTreeMap<String, f64> {
    samples(&answer(connect(address), SCRAPE))
}

/// Scrapes until it is as `wanted`.
fn scrape_until(
    address: SocketAddr,
    what: &str,
    wanted: impl Fn(&BTreeMap<String, f64>) -> bool,
) -> BTreeMap<String, f64> {
    let until = Instant::now() + DEADLINE;
    loop {
        let found = scrape(address);
        if wanted(&found) {
            return found;
        }
        assert!(Instant::now() < until, "no {what} in {found:#?}");
        std::thread::yield_now();
    }
}

fn sum(samples: &BTreeMap<String, f64>, family: &str) -> f64 {
    samples.iter().filter(|(series, _)| series.split('{').next() == Some(family)).map(|(_, value)| value).sum()
}

#[test]
fn a_scrape_adds_up_to_the_traffic_that_there_was() {
    let (refuses, dead) = listener();
    drop(refuses);
    let (socket, front) = listener();
    let config = format!("METRICS_ADDRESS=127.0.0.1:0\nMAX_RETRIES=1\nBACKEND_ADDRESS={}\n", backend("well"));
    let setting = Setting::new(&config).pass("http", socket);
    std::fs::create_dir(setting.path("routes.d")).unwrap();
    setting.write("routes.d/dead.env", &format!("MATCH_PATH=/dead\nBACKEND_ADDRESS={dead}\n"));
    let daemon = setting.start().ready();
    let address = scrapes_at(&daemon, 0);

    let before = scrape(address);
    assert_eq!(sum(&before, "doorward_requests_total"), 0.0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let (mut scrapes, mut last) = (0, 0.0);
            while !over.load(Ordering::Relaxed) || scrapes == 0 {
                let now = sum(&scrape(address), "doorward_requests_total");
                assert!(now >= last, "a counter went back from {last} to {now}");
                (scrapes, last) = (scrapes + 1, now);
            }
        });
        for _ in 0..20 {
            assert!(get(front).starts_with("HTTP/1.1 200"));
        }
        for _ in 0..3 {
            let gone = answer(connect(front), "GET /dead HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
            assert!(gone.starts_with("HTTP/1.1 502"), "{gone}");
        }
        over.store(true, Ordering::Relaxed);
        watching.join().unwrap();
    });

    let now = scrape_until(address, "23 requests", |now| {
        sum(now, "doorward_requests_total") == 23.0 && now["doorward_client_connections"] == 0.0
    });
    let value = |series: &str| *now.get(series).unwrap_or_else(|| panic!("no {series} in {now:#?}"));
    assert_eq!(value("doorward_requests_total{code=\"2xx\"}"), 20.0);
    assert_eq!(value("doorward_requests_total{code=\"5xx\"}"), 3.0);
    assert_eq!(value("doorward_request_duration_seconds_count"), 23.0);
    assert_eq!(value("doorward_request_duration_seconds_bucket{le=\"+Inf\"}"), 23.0);
    assert_eq!(value("doorward_client_connections_accepted_total"), 23.0);
    assert_eq!(sum(&now, "doorward_refusals_total"), 3.0, "one for each 502: {now:#?}");
    assert_eq!(value("doorward_requests_in_progress"), 0.0);
    assert_eq!(value("doorward_concurrent_requests"), 0.0);
    assert_eq!(value("doorward_concurrent_requests_limit"), 1024.0);
    assert!(value("doorward_client_sent_bytes_total") > 20.0 * "well".len() as f64);
    let state =
        |state: &str| value(&format!("doorward_backend_state{{route=\"dead\",backend=\"{dead}\",state=\"{state}\"}}"));
    assert_eq!((state("up"), state("down")), (0.0, 1.0));
    assert_eq!(value(&format!("doorward_backend_up{{route=\"dead\",backend=\"{dead}\"}}")), 0.0);
    assert_eq!(sum(&now, "doorward_backend_up"), 1.0, "that of the default route: {now:#?}");
    assert_eq!((value("doorward_config_generation"), value("doorward_config_last_reload_successful")), (1.0, 1.0));
}

#[test]
fn whoever_stalls_takes_a_place_and_nothing_else() {
    let (socket, front) = listener();
    let daemon = Setting::new("METRICS_ADDRESS=127.0.0.1:0\nBACKEND_ADDRESS=builtin:echo\n")
        .pass("http", socket)
        .start()
        .ready();
    let address = scrapes_at(&daemon, 0);
    let mut stalled: Vec<TcpStream> = (0..16).map(|_| connect(address)).collect();
    for one in &mut stalled {
        one.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    }
    // They may not all have been taken in yet: the next one is among them then.
    let until = Instant::now() + DEADLINE;
    loop {
        let late = answer(connect(address), SCRAPE);
        if late.starts_with("HTTP/1.1 503 ") {
            assert!(late.ends_with("\r\n\r\ntoo many connections ask for metrics\n"), "{late}");
            break;
        }
        assert!(Instant::now() < until, "nobody was turned away: {late}");
    }
    assert!(get(front).starts_with("HTTP/1.1 200"), "clients notice nothing");
    daemon.write("config.env", "METRICS_ADDRESS=127.0.0.1:0\nBACKEND_ADDRESS=builtin:echo\nMAX_RETRIES=2\n");
    daemon.signal(Signal::HUP);
    daemon.record("reloaded");
    // One that goes on has its answer, and one that leaves makes room.
    let mut last = stalled.pop().unwrap();
    last.write_all(b"Host: door\r\n\r\n").unwrap();
    let mut told = String::new();
    last.read_to_string(&mut told).unwrap();
    assert_eq!(samples(&told)["doorward_config_generation"], 2.0);
    drop(stalled);
    loop {
        if answer(connect(address), SCRAPE).starts_with("HTTP/1.1 200 ") {
            return;
        }
        assert!(Instant::now() < until, "no room");
    }
}

#[test]
fn nothing_else_is_to_be_had_there() {
    let daemon = Setting::new("PROXY_ADDRESS=127.0.0.1:0\nMETRICS_ADDRESS=127.0.0.1:0\n").start().ready();
    let address = scrapes_at(&daemon, 0);
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: door\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\nHost: door\r\nContent-Length: 2\r\n\r\nab", "405 Method Not Allowed"),
        ("GET /metrics HTTP/1.1\r\nHost: door\r\nHost: door\r\n\r\n", "400 Bad Request"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505 HTTP Version Not Supported"),
    ] {
        let refused = answer(connect(address), request);
        assert!(refused.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {refused}");
    }
    let older = answer(connect(address), "GET /metrics HTTP/1.1\r\nHost: door\r\nAccept: text/plain\r\n\r\n");
    assert!(older.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{older}");
    assert!(older.contains("\n# TYPE doorward_retries_total counter\ndoorward_retries_total 0\n"), "{older}");
    let head = answer(connect(address), "HEAD /metrics HTTP/1.1\r\nHost: door\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(get(daemon.address()).starts_with("HTTP/1.1 200"), "clients have no /metrics of ours");
}

#[test]
fn metrics_are_had_by_the_descriptors_that_systemd_passes() {
    let (socket, front) = listener();
    let (metrics, address) = listener();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.sock");
    let daemon = Setting::new("METRICS_ADDRESS=127.0.0.1:9\nBACKEND_ADDRESS=builtin:echo\n")
        .pass("http", socket)
        .pass("metrics", metrics)
        .pass("metrics", UnixListener::bind(&path).unwrap())
        .start()
        .ready();
    let warning =
        daemon.record("METRICS_ADDRESS differs from the passed sockets")["warning"].as_str().unwrap().to_owned();
    assert_eq!(
        warning,
        format!("METRICS_ADDRESS=127.0.0.1:9 does not count: systemd passed {address},unix:{}", path.display())
    );
    assert_eq!(
        daemon.wait_for("listening for scrapes on a socket that systemd passed", 2)[0]["address"],
        address.to_string()
    );
    assert!(get(front).starts_with("HTTP/1.1 200"));
    let until = |now: &BTreeMap<String, f64>| now["doorward_requests_total{code=\"2xx\"}"] == 1.0;
    scrape_until(address, "the request", until);
    assert!(until(&samples(&answer(UnixStream::connect(&path).unwrap(), SCRAPE))));
    // A reload neither closes nor opens anything then.
    daemon.write("config.env", "BACKEND_ADDRESS=builtin:echo\n");
    daemon.signal(Signal::HUP);
    daemon.record("reloaded");
    assert_eq!(scrape(address)["doorward_config_generation"], 2.0);
}

#[test]
fn a_reload_turns_metrics_on_moves_them_and_turns_them_off() {
    let (socket, front) = listener();
    let config = "BACKEND_ADDRESS=builtin:echo\n";
    let daemon = Setting::new(config).pass("http", socket).start().ready();
    let reload = |more: &str, nth: usize| -> Value {
        daemon.write("config.env", &format!("{config}{more}"));
        daemon.signal(Signal::HUP);
        daemon.wait_for("reloaded", nth).swap_remove(nth - 1)
    };
    reload("METRICS_ADDRESS=127.0.0.1:0\n", 1);
    let first = scrapes_at(&daemon, 0);
    assert_eq!(scrape(first)["doorward_config_generation"], 2.0);

    // One that stays stays as it is; another one comes beside it.
    let path = daemon.folder.path().join("metrics.sock");
    let both = format!("METRICS_ADDRESS=unix:{},127.0.0.1:0\n", path.display());
    reload(&both, 2);
    assert_eq!(scrape(first)["doorward_config_generation"], 3.0);
    assert_eq!(samples(&answer(UnixStream::connect(&path).unwrap(), SCRAPE))["doorward_config_generation"], 3.0);

    reload(&format!("METRICS_ADDRESS=unix:{}\n", path.display()), 3);
    daemon.record("not listening any more");
    let until = Instant::now() + DEADLINE;
    while TcpStream::connect(first).is_ok() {
        assert!(Instant::now() < until, "{first} is still open");
    }
    reload("", 4);
    daemon.wait_for("not listening any more", 2);
    while UnixStream::connect(&path).is_ok() {
        assert!(Instant::now() < until, "{} is still open", path.display());
    }
    assert!(!path.exists());
    assert!(get(front).starts_with("HTTP/1.1 200"));
}

#[test]
fn the_status_lists_where_metrics_are() {
    let setup = Setup::new().set("METRICS_ADDRESS", "127.0.0.1:0");
    let path = setup.path("metrics.sock");
    let daemon = setup.start();
    let listed = || -> Vec<String> {
        let mut status = daemon.status();
        let listeners = status["listeners"].take();
        let metrics = listeners.as_array().unwrap().iter().filter(|listener| listener["name"] == "metrics");
        metrics.map(|listener| listener["address"].as_str().unwrap().to_owned()).collect()
    };
    let [address] = listed().try_into().unwrap();
    assert_eq!(scrape(address.parse().unwrap())["doorward_config_generation"], 1.0);
    let moved = format!("unix:{}", path.display());
    daemon.replace("METRICS_ADDRESS", &moved);
    assert_eq!(listed(), [moved]);
}

#[test]
fn an_address_that_is_taken_is_a_problem_of_its_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let (socket, front) = listener();
    let config = format!("BACKEND_ADDRESS=builtin:echo\nMETRICS_ADDRESS=127.0.0.1:0,{at}\n");
    let expected = format!("config.env:2: `METRICS_ADDRESS`: can't listen on {at}: the address is in use; ");
    let mut daemon = Setting::new(&config).pass("http", socket.try_clone().unwrap()).start();
    assert_eq!(daemon.end().code(), Some(78));
    let log = daemon.log().join("\n");
    assert!(log.contains(&expected) && log.contains("1 problem in 1 file; not started"), "{log}");
    assert!(log.contains(&format!("\n    METRICS_ADDRESS=127.0.0.1:0,{at}\n    {}^~~", " ".repeat(28))), "{log}");

    let sound = "BACKEND_ADDRESS=builtin:echo\nMETRICS_ADDRESS=127.0.0.1:0\n";
    let daemon = Setting::new(sound).pass("http", socket).start().ready();
    let address = scrapes_at(&daemon, 0);
    daemon.write("config.env", &config);
    daemon.signal(Signal::HUP);
    let refused = daemon.record("reload refused")["error"].as_str().unwrap().to_owned();
    assert!(refused.contains(&expected) && refused.ends_with("still serving generation 1"), "{refused}");
    let now = scrape(address);
    assert_eq!((now["doorward_config_generation"], now["doorward_config_last_reload_successful"]), (1.0, 0.0));
    assert!(now["doorward_config_last_reload_timestamp_seconds"] >= now["doorward_process_start_time_seconds"]);
    assert_eq!(daemon.records("listening for scrapes on a socket of its own"), 1, "nothing of it was opened");
    assert!(get(front).starts_with("HTTP/1.1 200"));
}

#[test]
fn each_certificate_in_use_tells_when_it_expires_and_a_renewed_one_does_so_later() {
    let authority = Authority::new();
    let setting = Setting::new("");
    let shown = setting.path("shown");
    issued::write(&shown, "door", &authority.issue(&["door.test", "*.door.test"], 1, 10));
    issued::write(&setting.path("proof"), "we", &authority.issue(&["we.test"], 2, 20));
    setting.write(
        "config.env",
        &format!(
            "PROXY_TLS_ADDRESS=127.0.0.1:0\nMETRICS_ADDRESS=127.0.0.1:0\nTLS_CERTIFICATE={}\n\
             BACKEND_ADDRESS=https://127.0.0.1:9\nBACKEND_TLS_CERTIFICATE={}\nBACKEND_TLS_PRIVATE_KEY={}\n\
             BACKEND_TLS_VERIFY=off\n",
            shown.display(),
            setting.path("proof/we.crt").display(),
            setting.path("proof/we.key").display(),
        ),
    );
    let daemon = setting.set("PROXY_ADDRESS", "127.0.0.1:0").start().ready();
    let address = scrapes_at(&daemon, 0);
    let series = |to: &str, names: &str, file: &std::path::Path| {
        format!(
            "doorward_certificate_expiry_timestamp_seconds{{shown_to=\"{to}\",names=\"{names}\",file=\"{}\"}}",
            file.display()
        )
    };
    let ours = series("backends", "we.test", &daemon.folder.path().join("proof/we.crt"));
    let door = series("clients", "door.test, *.door.test", &shown.join("door.crt"));
    let days_left = |now: &BTreeMap<String, f64>, series: &str| {
        let expiry = *now.get(series).unwrap_or_else(|| panic!("no {series} in {now:#?}"));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        ((expiry - now.as_secs_f64()) / 86_400.0).floor()
    };
    let before = scrape(address);
    assert_eq!((days_left(&before, &door), days_left(&before, &ours)), (10.0, 20.0));
    assert_eq!(before.keys().filter(|series| series.contains("certificate_expiry")).count(), 2);

    issued::write(&shown, "door", &authority.issue(&["door.test", "*.door.test"], 3, 90));
    let after = scrape_until(address, "renewal", |now| now[&door] != before[&door]);
    assert_eq!((days_left(&after, &door), days_left(&after, &ours)), (90.0, 20.0));
    issued::write(&daemon.folder.path().join("proof"), "we", &authority.issue(&["we.test"], 4, 80));
    let last = scrape_until(address, "renewal of the other one", |now| now[&ours] != before[&ours]);
    assert_eq!((days_left(&last, &door), days_left(&last, &ours)), (90.0, 80.0));
}

#[test]
fn an_address_for_metrics_is_nobody_elses() {
    let config = "METRICS_ADDRESS=127.0.0.1:8080,127.0.0.1:8443,127.0.0.1:9180\nPROXY_TLS_ADDRESS=127.0.0.1:8443\n";
    assert_eq!(
        crate::config::problems(&[("config.env", config)]),
        [
            "config.env:1: `METRICS_ADDRESS`: `127.0.0.1:8080` is taken by `PROXY_ADDRESS=127.0.0.1:8080`",
            "config.env:1: `METRICS_ADDRESS`: `127.0.0.1:8443` is taken by `PROXY_TLS_ADDRESS=127.0.0.1:8443`",
        ]
    );
}

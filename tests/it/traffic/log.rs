//! The records that requests leave behind.

use std::fs::File;
use std::io::{BufRead, BufReader};

use serde_json::{Value, json};

use crate::backend::{Backend, Refusing};
use crate::daemon::listener;
use crate::peer::Peer;
use crate::traffic::door::Setup;

fn before(backend: &Backend) -> Setup {
    // One worker: records are in the order of the answers.
    Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", &backend.address)
}

fn is_record(line: &Value) -> bool {
    line["target"] == "doorward::access"
}

#[test]
fn a_record_has_every_field() {
    let backend = Backend::new();
    let (socket, address) = listener();
    let daemon = before(&backend)
        .route("50-shop.env", &format!("MATCH_HOST=shop.test\nBACKEND_ADDRESS={}\n", backend.address))
        .listener("inside", socket)
        .start();
    let mut client = Peer::connect(address);
    client.send(
        "POST /cart/add?secret=1 HTTP/1.1\r\nHost: shop.test\r\nX-Request-Id: id-7\r\nContent-Length: 4\r\n\r\nbody",
    );
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok");
    client.response();
    let mut record = daemon.record("/cart/add");
    let fields = record.as_object_mut().unwrap();
    for measured in ["duration_us", "bytes_out", "client_port"] {
        let value = fields.remove(measured).and_then(|value| value.as_u64());
        assert!(value.is_some_and(|value| value > 0), "{measured}");
    }
    assert!(fields.remove("timestamp").is_some_and(|value| value.as_str().unwrap().ends_with('Z')));
    assert_eq!(
        record,
        json!({
            "level": "INFO", "target": "doorward::access", "message": "request", "client": "127.0.0.1",
            "listener": "inside", "method": "POST", "host": "shop.test", "path": "/cart/add", "status": 201,
            "version": "1.1", "backend": backend.address, "route": "50-shop", "attempts": 1, "queue_us": 0,
            "bytes_in": 4, "request_id": "id-7",
        })
    );
}

#[test]
fn by_default_only_what_went_wrong_is_on_record() {
    let backend = Backend::new();
    let refusing = Refusing::new();
    let daemon = before(&backend)
        .set("ACCESS_LOG", "errors")
        .set("MAX_RETRIES", 0)
        .route("refused.env", &format!("MATCH_PATH=/refused\nBACKEND_ADDRESS={}\n", refusing.address))
        .start();
    let mut client = daemon.connect();
    for (path, answer) in [
        ("/fine", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("/missing", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        ("/failed", "HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"),
    ] {
        client.get(path);
        match path {
            "/fine" => {
                let (mut peer, _) = backend.take();
                peer.send(answer.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
            }
            _ => {
                let (mut peer, _) = backend.take();
                peer.send(answer.replace("OK\r\n", "OK\r\nConnection: close\r\n"));
                if path == "/missing" {
                    peer.half_close();
                    client.response();
                    peer.expect_gone();
                    continue;
                }
            }
        }
        client.response();
    }
    client.get("/refused");
    client.response().assert_refusal(502, "backend_connect_refused");
    client.send("nonsense\r\n\r\n");
    client.response();
    let last = daemon.record_of("bad_request");
    assert_eq!((&last["status"], &last["path"], &last["method"]), (&400.into(), &Value::Null, &Value::Null));
    let records = daemon.lines(is_record);
    let seen: Vec<(Option<&str>, Option<u64>, Option<&str>)> = records
        .iter()
        .map(|record| (record["path"].as_str(), record["status"].as_u64(), record["reason"].as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            (Some("/failed"), Some(500), None),
            (Some("/refused"), Some(502), Some("backend_connect_refused")),
            (None, Some(400), Some("bad_request")),
        ]
    );
}

#[test]
fn without_access_log_nothing_is_on_record_but_the_route_may_differ() {
    let backend = Backend::new();
    let daemon = before(&backend)
        .set("ACCESS_LOG", "off")
        .route("loud.env", &format!("MATCH_PATH=/loud\nACCESS_LOG=on\nBACKEND_ADDRESS={}\n", backend.address))
        .start();
    let mut client = daemon.connect();
    client.get("/quiet");
    let (mut peer, _) = backend.take();
    peer.reset();
    let (mut again, _) = backend.take();
    again.send("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n");
    client.response();
    client.get("/loud");
    again.request();
    again.answer("");
    client.response();
    daemon.record("/loud");
    assert_eq!(daemon.lines(is_record).len(), 1);
    peer = again;
    drop(peer);
}

#[test]
fn what_a_client_writes_can_not_forge_a_record() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = daemon.connect();
    client.send(b"GET /\"},{\"status\":999}\xff\xc3 HTTP/1.1\r\nHost: a\r\n\r\n");
    // Whether it is passed on or refused: each line of the log is one object.
    if !client.has_come(std::time::Duration::from_millis(100)) {
        let (mut peer, _) = backend.take();
        peer.answer("");
    }
    client.head();
    let record = daemon.logged("the record", is_record);
    assert_ne!(record["status"], 999);
    daemon.lines(|_| true);
}

#[test]
fn a_request_under_way_is_counted_and_then_no_longer() {
    let backend = Backend::new();
    let daemon = before(&backend).start();
    let mut client = daemon.connect();
    client.get("/");
    let (mut peer, _) = backend.take();
    daemon.wait("one request on one connection", |status| status["in_flight"] == 1 && status["connections"] == 1);
    peer.answer("");
    client.response();
    drop(client);
    daemon.wait("none", |status| {
        status["in_flight"] == 0 && status["connections"] == 0 && status["requests"].as_u64() == Some(1)
    });
}

#[test]
fn no_request_waits_for_a_log_that_nobody_reads() {
    // More than the pipe and the queue before it hold.
    const REQUESTS: usize = 9_600;
    let setup = Setup::new().set("WORKERS", 1);
    let pipe = setup.path("stderr");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    // Open at both ends, so that opening waits for nobody.
    let reader = File::options().read(true).write(true).open(&pipe).unwrap();
    let daemon = setup.through(&["/bin/sh", "-c", r#"exec "$@" 2>"$0""#, pipe.to_str().unwrap()]).start();
    let mut client = daemon.connect();
    let ahead = 100;
    for _ in 0..REQUESTS / ahead {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(ahead));
        for _ in 0..ahead {
            assert_eq!(client.response().status(), 200);
        }
    }
    let dropped = daemon.status()["log_dropped"].as_u64().unwrap();
    assert!(dropped > 0 && dropped < REQUESTS as u64, "{dropped}");
    // Once somebody reads, what was kept comes, and the number of what was not.
    let mut records = 0;
    for line in BufReader::new(reader).lines() {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        records += usize::from(is_record(&line));
        if line["message_id"] == "baaab5ebe9e3fad2da03293a5afa8c5b" {
            // The last answer may have been read a moment before its record was dropped.
            let told = line["dropped"].as_u64().unwrap();
            assert!(told == dropped || told == dropped + 1, "{told} told, {dropped} counted");
            break;
        }
    }
    assert!(records > 0);
}

#[test]
fn an_end_does_not_wait_for_a_log_that_nobody_reads() {
    let setup = Setup::new().set("WORKERS", 1).set("DRAIN_TIMEOUT", "1s");
    let pipe = setup.path("stderr");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let _held = File::options().read(true).write(true).open(&pipe).unwrap();
    let mut daemon = setup.through(&["/bin/sh", "-c", r#"exec "$@" 2>"$0""#, pipe.to_str().unwrap()]).start();
    let mut client = daemon.connect();
    for _ in 0..20 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(50));
        for _ in 0..50 {
            client.response();
        }
    }
    drop(client);
    assert!(daemon.stop().success());
}

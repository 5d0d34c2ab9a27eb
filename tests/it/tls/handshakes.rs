//! Who is let in by TLS, who is not, and what that costs.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::issued::Authority;
use super::secured::{Client, NAME, Secured};
use crate::daemon::{Setting, connect, listener};
use crate::peer::Peer;
use crate::traffic::door::Setup;

/// A hello, as a client sends it.
fn hello(config: &Arc<ClientConfig>, name: &'static str) -> Vec<u8> {
    let mut client = ClientConnection::new(Arc::clone(config), ServerName::try_from(name).unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// A connection on which a handshake has begun and does not go on.
fn half_open(secured: &Secured, hello: &[u8]) -> TcpStream {
    let mut socket = connect(secured.address);
    socket.write_all(hello).unwrap();
    socket
}

#[test]
fn plain_http_on_the_tls_port_is_told_so_in_clear() {
    let secured = Secured::before("builtin:echo", |setup| setup);
    let mut client = Peer::connect(secured.address);
    client.send("GET /secret HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.response();
    answer.assert_refusal(400, "tls_plain_http");
    assert!(answer.text().contains("https://"), "{}", answer.text());
    client.expect_end();
    secured.wait_failed("tls_plain_http", 1);
    let mut client = Peer::connect(secured.address);
    client.send("\0\0\0\0");
    assert_eq!(client.expect_gone(), b"");
    secured.wait_failed("tls_protocol_error", 1);
}

#[test]
fn tls_on_the_plain_port_is_refused_with_an_alert() {
    let secured = Secured::before("builtin:echo", |setup| setup);
    let mut socket = connect(secured.daemon.address());
    socket.write_all(&hello(&secured.client, NAME)).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, [21, 3, 1, 0, 2, 2, 40]);
    assert_eq!(secured.daemon.record_of("tls_on_plain_port")["listener"], "http");
}

#[test]
fn a_client_that_gives_up_is_counted_by_its_reason_and_floods_no_log() {
    let secured = Secured::before("builtin:echo", |setup| setup.set("LOG_LEVEL", "debug"));
    let stranger = Arc::new(Authority::new().client());
    let began = Instant::now();
    for _ in 0..50 {
        assert!(Client::try_over(connect(secured.address), &stranger).is_err());
    }
    secured.wait_failed("tls_alert", 50);
    drop(half_open(&secured, &hello(&secured.client, NAME)[..20]));
    secured.wait_failed("tls_handshake_left", 1);
    let failed = secured.daemon.lines(|line| line["message"] == "TLS handshake failed");
    // Ten at once, and ten a second.
    let most = 10 * (1 + began.elapsed().as_secs_f64().ceil() as usize);
    assert!((1..=most).contains(&failed.len()), "{} of {most}", failed.len());
    assert_eq!(failed[0]["reason"], "tls_alert");
    assert!(failed.iter().all(|line| line["level"] == "DEBUG"));
    assert_eq!(secured.counted("handshakes"), 0);
}

#[test]
fn a_handshake_has_its_time_and_silence_too() {
    let secured = Secured::before("builtin:echo", |setup| setup.set("TLS_HANDSHAKE_TIMEOUT", "300ms"));
    let silent = Peer::connect(secured.address);
    let begun = half_open(&secured, &hello(&secured.client, NAME)[..9]);
    let answered = half_open(&secured, &hello(&secured.client, NAME));
    let mut kept = secured.connect();
    secured.wait_failed("tls_handshake_timeout", 3);
    kept.get("/");
    assert!(kept.response().0.starts_with("HTTP/1.1 200 "), "it has made its handshake");
    for mut socket in [Peer::tcp(begun), Peer::tcp(answered), silent] {
        socket.expect_gone();
    }
}

#[test]
fn those_who_stall_hold_neither_memory_nor_the_others_up() {
    let secured = Secured::before("builtin:echo", |setup| {
        setup.set("MAX_TLS_HANDSHAKES", 100).set("TLS_HANDSHAKE_TIMEOUT", "60s").set("WORKERS", 1)
    });
    secured.connect().get("/");
    let hello = hello(&secured.client, NAME);
    let before = secured.daemon.memory();
    let stalled: Vec<TcpStream> = (0..1_000).map(|_| half_open(&secured, &hello)).collect();
    secured.daemon.wait("all slots are taken and the others wait", |status| {
        status["tls"]["under_way"] == 100 && status["tls"]["waiting"].as_u64() > Some(0)
    });
    let held = secured.daemon.memory().saturating_sub(before);
    assert!(held < 12 << 20, "{held} bytes");
    // Slots come round, in turn: this client waits for a while and is served.
    let mut client = secured.connect();
    client.get("/");
    assert!(client.response().0.starts_with("HTTP/1.1 200 "));
    // Without company they have all their time.
    drop(stalled);
    secured.daemon.wait("they are gone", |status| status["tls"]["under_way"] == 0);
    let _slow = half_open(&secured, &hello);
    secured.daemon.wait("one is under way", |status| status["tls"]["under_way"] == 1);
}

#[test]
fn a_connection_that_is_idle_holds_little() {
    let secured = Secured::before("builtin:echo", |setup| setup.set("WORKERS", 1));
    let idle = |_| {
        let mut client = secured.connect();
        client.get("/");
        assert!(client.response().0.starts_with("HTTP/1.1 200 "));
        client
    };
    let _warm: Vec<Client> = (0..20).map(idle).collect();
    let before = secured.daemon.memory();
    let _idle: Vec<Client> = (0..300).map(idle).collect();
    let each = secured.daemon.memory().saturating_sub(before) / 300;
    assert!(each <= 16 * 1024, "{each} bytes");
}

#[test]
fn beyond_the_line_there_is_no_waiting() {
    let secured = Secured::before("builtin:echo", |setup| setup.set("MAX_TLS_HANDSHAKES", 1).set("WORKERS", 1));
    let hello = hello(&secured.client, NAME);
    let _stalled: Vec<TcpStream> = (0..11).map(|_| half_open(&secured, &hello)).collect();
    secured.daemon.wait("the line is full", |status| status["tls"]["waiting"] == 10);
    let mut late = Peer::tcp(half_open(&secured, &hello));
    assert_eq!(late.expect_gone(), b"", "nothing was computed for it");
    secured.wait_failed("tls_handshake_limit", 1);
}

#[test]
fn half_a_hello_holds_nobody_up_and_little_memory() {
    let secured = Secured::before("builtin:echo", |setup| {
        setup.set("MAX_TLS_HANDSHAKES", 2).set("TLS_HANDSHAKE_TIMEOUT", "60s").set("WORKERS", 1)
    });
    secured.connect().get("/");
    let hello = hello(&secured.client, NAME);
    let before = secured.daemon.memory();
    // All but the last byte, and one byte alone.
    let half = |n| half_open(&secured, &hello[..if n % 2 == 0 { hello.len() - 1 } else { 1 }]);
    let halves: Vec<TcpStream> = (0..200).map(half).collect();
    secured.daemon.wait("all are there", |status| status["connections"].as_u64() >= Some(200));
    for _ in 0..20 {
        let mut client = secured.connect();
        client.get("/");
        assert!(client.response().0.starts_with("HTTP/1.1 200 "));
        let status = secured.daemon.status();
        assert_eq!((&status["tls"]["waiting"], &status["tls"]["under_way"]), (&0.into(), &0.into()));
    }
    let held = secured.daemon.memory().saturating_sub(before);
    assert!(held < 200 * 16 * 1024, "{held} bytes");
    assert_eq!(secured.counted("handshakes"), 21);
    drop(halves);
    secured.wait_failed("tls_handshake_left", 200);
}

#[test]
fn a_hello_may_come_in_pieces_and_in_many_records() {
    let secured = Secured::before("builtin:echo", |setup| setup.set("MAX_TLS_HANDSHAKES", 1));
    let hello = hello(&secured.client, NAME);
    let (header, message) = hello.split_at(5);
    let in_records = |each: usize| -> Vec<u8> {
        let record = |content: &[u8]| {
            let length = u16::try_from(content.len()).unwrap().to_be_bytes();
            [&header[..3], &length, content].concat()
        };
        message.chunks(each).flat_map(record).collect()
    };
    for (bytes, pace) in [(hello.clone(), 1), (in_records(1), 4_000), (in_records(100), 7), (in_records(3), 1)] {
        let mut socket = connect(secured.address);
        socket.set_nodelay(true).unwrap();
        bytes.chunks(pace).for_each(|piece| socket.write_all(piece).unwrap());
        let mut answer = [0; 6];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!((answer[0], answer[5]), (22, 2), "a hello, of records of a handshake");
    }
    // One that is too long is not waited for, nor something else behind the beginning of one.
    for bytes in [
        vec![22, 3, 1, 0, 4, 1, 0, 64, 0],
        vec![22, 3, 1, 0, 4, 2, 0, 2, 0],
        [&in_records(100)[..210], &[21, 3, 1, 0, 2]].concat(),
    ] {
        let mut refused = Peer::tcp(half_open(&secured, &bytes));
        assert_eq!(refused.expect_gone(), [21, 3, 3, 0, 2, 2, 10]);
    }
    secured.wait_failed("tls_protocol_error", 3);
}

#[test]
fn names_that_are_not_known_are_served_or_refused_as_configured() {
    let secured = Secured::before("builtin:echo", |setup| setup);
    let ask = |name| {
        let mut socket = half_open(&secured, &hello(&secured.client, name));
        let mut start = [0; 7];
        socket.read_exact(&mut start).unwrap();
        start
    };
    assert_eq!(ask("other.test")[0], 22, "a hello");
    secured.daemon.reload("TLS_UNKNOWN_NAME=refuse");
    assert_eq!(ask("other.test"), [21, 3, 3, 0, 2, 2, 112]);
    assert_eq!(ask(NAME)[0], 22);
    secured.wait_failed("tls_unknown_name", 1);
}

#[test]
fn without_a_certificate_tls_clients_are_refused_and_the_log_warns() {
    let (socket, address) = listener();
    let daemon = Setup::new().listener("https", socket).start();
    let warned = daemon.logged("the warning", |line| line["message"] == "configuration deserves a look");
    assert!(warned["warning"].as_str().unwrap().contains("TLS_CERTIFICATE"), "{warned}");
    let client = Arc::new(Authority::new().client());
    assert!(Client::try_over(connect(address), &client).is_err());
    daemon.wait("it is counted", |status| status["tls"]["failed"]["tls_unknown_name"] == 1);
}

#[test]
fn addresses_for_tls_are_bound_beside_the_others_and_clash_with_none() {
    let daemon = Setting::new("PROXY_ADDRESS=127.0.0.1:0\nPROXY_TLS_ADDRESS=127.0.0.1:0\n").start().ready();
    let bound = daemon.wait_for("listening on a socket of its own", 2);
    let names: Vec<&str> = bound.iter().map(|record| record["listener"].as_str().unwrap()).collect();
    assert_eq!(names, ["http", "https"]);
    let config = "PROXY_ADDRESS=127.0.0.1:8080\nPROXY_TLS_ADDRESS=127.0.0.1:8080\n";
    assert_eq!(
        crate::config::problems(&[("config.env", config)]),
        ["config.env:2: `PROXY_TLS_ADDRESS`: `127.0.0.1:8080` is taken by `PROXY_ADDRESS=127.0.0.1:8080`"]
    );
    daemon.write("config.env", "PROXY_TLS_ADDRESS=127.0.0.1:1\n");
    daemon.signal(rustix::process::Signal::HUP);
    daemon.wait_for("a reload can't change this", 2);
}

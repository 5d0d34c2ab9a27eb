//! Backends that are `https://`: who is trusted, what becomes of those that are not, and
//! that all else is as with cleartext.

use std::fs;
use std::path::{Path, PathBuf};

use rustls::version::{TLS12, TLS13};
use serde_json::Value;

use super::front::{Front, der, showing, showing_to};
use super::issued::{self, Authority};
use crate::backend::{Backend, CHECKED, Mood, Moody};
use crate::config::{doorward, folder, stderr, stdout};
use crate::peer::{Message, Peer, assert_same, noise};
use crate::server::Server;
use crate::traffic::door::Setup;

/// A daemon that trusts `authority`, with nothing left to chance.
fn trusting(authority: &Authority, backends: &str) -> Setup {
    let setup = Setup::new().set("BACKEND_ADDRESS", backends).set("MAX_RETRIES", 0);
    let ca = write(setup.folder(), "ca.pem", &authority.pem);
    setup.set("BACKEND_TLS_CA", ca.display())
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn issue(authority: &Authority, names: &[&str]) -> (String, String) {
    authority.issue(names, 1, 90)
}

fn local(authority: &Authority) -> (String, String) {
    issue(authority, &["localhost", "127.0.0.1"])
}

fn get(client: &mut Peer) -> Message {
    client.get("/");
    client.response()
}

fn address(backend: &Backend) -> std::net::SocketAddr {
    backend.address.parse().unwrap()
}

#[test]
fn a_verified_backend_is_asked_over_tls_for_all_there_is() {
    let authority = Authority::new();
    let backend = Backend::new();
    let front = Front::before(address(&backend), showing(&local(&authority)));
    let port = front.address.port();
    let daemon = trusting(&authority, &format!("https://localhost:{port}")).set("BACKEND_HOST", "backend").start();
    let mut client = daemon.connect();
    let (up, down) = (noise(1 << 20, 1), noise(1 << 20, 2));
    client.send_body("PUT", "/big", &up);
    let (mut peer, request) = backend.take();
    assert_eq!(request.head.line, "PUT /big HTTP/1.1");
    assert_eq!(request.head.field("Host"), Some(format!("localhost:{port}").as_str()));
    assert_same(&request.body, &up);
    peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", down.len()));
    peer.send(&down);
    assert_same(&client.response().body, &down);
    // The next one finds the connection.
    client.get("/again");
    assert_eq!(peer.request().head.line, "GET /again HTTP/1.1");
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    peer.send_chunk(&down);
    peer.send("0\r\n\r\n");
    assert_same(&client.response().body, &down);
    let seen = front.seen();
    assert_eq!((seen.full, seen.resumed, seen.failed), (1, 0, 0));
    assert_eq!(seen.name.as_deref(), Some("localhost"));
    assert_eq!(seen.protocol.as_deref(), Some(&b"http/1.1"[..]));
    assert_eq!(seen.client, None);
}

/// HTTP/2 is spoken where TLS agrees on it, and nothing is asked where it does not.
#[test]
fn http_2_goes_over_tls_if_that_agrees_on_it() {
    let authority = Authority::new();
    let server = crate::http2::backend::Server::new();
    let mut speaking = showing(&local(&authority));
    speaking.alpn_protocols = vec![b"h2".to_vec()];
    let front = Front::before(server.address, speaking);
    let port = front.address.port();
    let setup = trusting(&authority, &format!("https://localhost:{port}")).set("BACKEND_PROTOCOL", "h2");
    let daemon = setup.set("WORKERS", 1).set("HEALTH_CHECK", "/health").start();
    daemon.wait("it was checked", |status| status["backends"][0]["state"] == "up");
    let mut client = daemon.connect();
    client.get("/fields");
    let told = client.response();
    assert!(
        told.text().starts_with(
            "GET https://door.test/fields
"
        ),
        "{told:?}"
    );
    client.get("/large");
    assert_eq!(client.response().body.len(), 1 << 20);
    assert_eq!(front.seen().protocol.as_deref(), Some(&b"h2"[..]));
    // One that knows HTTP/1.1 alone refuses the handshake.
    let front = Front::before(server.address, showing(&local(&authority)));
    let port = front.address.port();
    let daemon = trusting(&authority, &format!("https://localhost:{port}")).set("BACKEND_PROTOCOL", "h2").start();
    get(&mut daemon.connect()).assert_refusal(502, "backend_tls_alert");
    front.wait("the handshake failed", |seen| seen.failed == 1);
}

#[test]
fn an_address_proves_itself_by_its_own_or_by_the_name_that_is_set() {
    let authority = Authority::new();
    let server = Server::new("it");
    let front = Front::before(server.address, showing(&issue(&authority, &["127.0.0.1"])));
    let daemon = trusting(&authority, &front.url()).start();
    assert_eq!(get(&mut daemon.connect()).text(), "it");
    assert_eq!(front.seen().name, None, "an address is no name to ask for");
    front.set(showing(&issue(&authority, &["inside.test"])));
    daemon.reload("BACKEND_TLS_NAME=Inside.test");
    assert_eq!(get(&mut daemon.connect()).text(), "it");
    assert_eq!(front.seen().name.as_deref(), Some("inside.test"));
}

#[test]
fn who_does_not_prove_to_be_the_backend_is_asked_nothing() {
    let (authority, other) = (Authority::new(), Authority::new());
    for (leaf, reason, error) in [
        (local(&other), "backend_tls_untrusted", "tls_certificate_error"),
        (issue(&authority, &["app.test", "127.0.0.2"]), "backend_tls_name_mismatch", "tls_certificate_error"),
        (authority.issue(&["127.0.0.1"], 1, -1), "backend_tls_expired", "tls_certificate_error"),
    ] {
        let backend = Backend::new();
        let front = Front::before(address(&backend), showing(&leaf));
        let daemon = trusting(&authority, &front.url()).start();
        let response = get(&mut daemon.connect());
        response.assert_refusal(502, reason);
        assert!(response.head.field("Proxy-Status").unwrap().contains(error), "{response:?}");
        front.wait("it is told why", |seen| seen.failed == 1);
        backend.expect_none();
    }
}

#[test]
fn what_is_no_tls_is_named_so_and_what_stalls_in_it_too() {
    let authority = Authority::new();
    let plain = Backend::new();
    let daemon = trusting(&authority, &format!("https://{}", plain.address)).set("CONNECT_TIMEOUT", "500ms").start();
    let mut client = daemon.connect();
    client.get("/");
    let mut peer = plain.accept();
    peer.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    client.response().assert_refusal(502, "backend_tls_failed");
    // This one says nothing.
    client.get("/");
    let mut silent = plain.accept();
    client.response().assert_refusal(504, "backend_tls_timeout");
    silent.expect_gone();
    // And this one leaves.
    client.get("/");
    drop(plain.accept());
    client.response().assert_refusal(502, "backend_tls_failed");
}

#[test]
fn a_handshake_that_fails_is_a_connection_that_was_not_made() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (bad, good) = (Server::new("bad"), Server::new("good"));
    let liar = Front::before(bad.address, showing(&local(&other)));
    let honest = Front::before(good.address, showing(&local(&authority)));
    let backends = format!("{},{}", liar.url(), honest.url());
    let daemon = trusting(&authority, &backends).set("MAX_RETRIES", 3).start();
    let mut client = daemon.connect();
    for _ in 0..20 {
        // Nothing was sent, so a POST may go elsewhere too.
        client.send_body("POST", "/", b"x");
        assert_eq!(client.response().text(), "good");
    }
    let down = |status: &Value| status["backends"][0]["state"] == "down" && status["backends"][1]["state"] == "up";
    daemon.wait("the liar is down", down);
    let record = daemon.logged("a backend that is down", |line| line["reason"] == "backend_tls_untrusted");
    assert_eq!(record["backend"], liar.url().as_str());
    assert!(liar.seen().failed < 20, "it is left alone: {:?}", liar.seen());
    assert_eq!(bad.counts().requests, 0);
}

#[test]
fn a_certificate_of_ours_is_shown_to_those_that_demand_it() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let server = Server::new("it");
    let front = Front::before(server.address, showing_to(&clients, &local(&authority), &TLS13));
    let ours = issue(&clients, &["door.test"]);
    let setup = trusting(&authority, &front.url());
    issued::write(setup.folder(), "own", &ours);
    let (certificate, key) = (setup.path("own.crt"), setup.path("own.key"));
    let daemon = setup
        .set("BACKEND_TLS_CERTIFICATE", certificate.display())
        .set("BACKEND_TLS_PRIVATE_KEY", key.display())
        .start();
    assert_eq!(get(&mut daemon.connect()).text(), "it");
    assert_eq!(front.seen().client, Some(der(&ours.0)));
    // Both in one file.
    let setup = trusting(&authority, &front.url());
    let both = write(setup.folder(), "both.pem", &[ours.0, ours.1].concat());
    let daemon = setup.set("BACKEND_TLS_CERTIFICATE", both.display()).start();
    assert_eq!(get(&mut daemon.connect()).text(), "it");
    for version in [&TLS12, &TLS13] {
        front.set(showing_to(&clients, &local(&authority), version));
        let daemon = trusting(&authority, &front.url()).start();
        get(&mut daemon.connect()).assert_refusal(502, "backend_tls_alert");
    }
}

#[test]
fn anybody_is_taken_for_the_backend_only_where_that_is_said_loudly() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = Server::new("it");
    let front = Front::before(server.address, showing(&issue(&other, &["elsewhere.test"])));
    let setup = Setup::new().set("BACKEND_ADDRESS", front.url()).set("BACKEND_TLS_VERIFY", "off");
    let ca = write(setup.folder(), "host.pem", &authority.pem);
    let daemon = setup.environment("SSL_CERT_FILE", ca.to_str().unwrap()).set("MAX_RETRIES", 0).start();
    assert_eq!(get(&mut daemon.connect()).text(), "it");
    let warning = |line: &Value| line["warning"].as_str().is_some_and(|text| text.contains("BACKEND_TLS_VERIFY=off"));
    daemon.logged("a warning", warning);
    // Verified from now on: no connection and no session of before is good for that.
    daemon.replace("BACKEND_TLS_VERIFY", "on");
    get(&mut daemon.connect()).assert_refusal(502, "backend_tls_untrusted");
}

#[test]
fn sessions_are_resumed_by_every_worker_and_after_a_reload() {
    let authority = Authority::new();
    let server = Server::new("it");
    let front = Front::before(server.address, showing(&local(&authority)));
    let daemon = trusting(&authority, &front.url()).set("BACKEND_IDLE_CONNECTIONS", 0).set("WORKERS", 3).start();
    for count in 0..10 {
        assert_eq!(get(&mut daemon.connect()).text(), "it");
        assert_eq!((front.seen().full, front.seen().resumed), (1, count));
    }
    daemon.reload("RESPONSE_TIMEOUT=59s");
    assert_eq!(get(&mut daemon.connect()).text(), "it");
    assert_eq!((front.seen().full, front.seen().resumed), (1, 10));
}

#[test]
fn files_that_change_are_taken_up_without_a_reload() {
    let (before, after, clients) = (Authority::new(), Authority::new(), Authority::new());
    let server = Server::new("it");
    let front = Front::before(server.address, showing(&local(&before)));
    let old = clients.issue(&["old.test"], 1, 90);
    let new = clients.issue(&["new.test"], 2, 60);
    let setup = trusting(&before, &front.url());
    let pair = [write(setup.folder(), "door.pem", &old.0), write(setup.folder(), "door.key", &old.1)];
    let setup =
        setup.set("BACKEND_TLS_CERTIFICATE", pair[0].display()).set("BACKEND_TLS_PRIVATE_KEY", pair[1].display());
    // A route that is clear of all that.
    let daemon = setup.route("other.env", "MATCH_PATH=/other\nBACKEND_ADDRESS=builtin:echo\n").start();
    let shown = || daemon.status()["backend_certificates"].take();
    assert_eq!(get(&mut daemon.connect()).text(), "it");
    assert_eq!((&shown()[0]["names"][0], &shown()[0]["days_left"]), (&"old.test".into(), &90.into()));
    let generation = daemon.status()["generation"].clone();

    // The backend changes over to another authority, and to clients of one.
    front.set(showing_to(&clients, &local(&after), &TLS13));
    write(daemon.folder(), "ca.pem", &[&*before.pem, &after.pem].concat());
    let told = daemon.logged("new authorities", |line| line["message"] == "files of TLS to backends taken up");
    assert_eq!(told["routes"], "default");
    assert_eq!(get(&mut daemon.connect()).text(), "it");
    assert_eq!(front.seen().client, Some(der(&old.0)));

    // Half a pair, and an authority that is none: told of once, and nothing changes.
    write(daemon.folder(), "door.pem", &new.0);
    write(daemon.folder(), "ca.pem", "nothing");
    let not_renewed = |line: &Value| line["message"] == "certificate not renewed";
    for part in ["door.key` is not the key of the certificate", "ca.pem` is not PEM"] {
        daemon.logged(part, |line| not_renewed(line) && line["error"].as_str().is_some_and(|text| text.contains(part)));
    }
    assert_eq!(get(&mut daemon.connect()).text(), "it");
    // The other half is taken though the authority still is none.
    write(daemon.folder(), "door.key", &new.1);
    let renewed = daemon.logged("a new certificate", |line| line["message"] == "certificate renewed");
    assert_eq!(renewed["names"], "new.test");
    assert_eq!(get(&mut daemon.connect()).text(), "it");
    assert_eq!(front.seen().client, Some(der(&new.0)));
    assert_eq!((&shown()[0]["names"][0], &shown()[0]["days_left"]), (&"new.test".into(), &60.into()));
    assert_eq!(daemon.lines(not_renewed).len(), 2);
    assert_eq!(daemon.status()["generation"], generation, "it is the same configuration");

    // What the authority of before has signed is no more trusted once it is gone.
    write(daemon.folder(), "ca.pem", &before.pem);
    daemon.wait("it is not trusted", |_| get(&mut daemon.connect()).status() == 502);
    assert_eq!(daemon.record_of("backend_tls_untrusted")["status"], 502);
}

#[test]
fn a_reload_takes_up_what_the_files_hold_by_then() {
    let (before, after) = (Authority::new(), Authority::new());
    let server = Server::new("it");
    let front = Front::before(server.address, showing(&local(&before)));
    let daemon = trusting(&before, &front.url()).set("BACKEND_IDLE_TIMEOUT", "1h").start();
    assert_eq!(get(&mut daemon.connect()).text(), "it");
    write(daemon.folder(), "ca.pem", &after.pem);
    daemon.reload("RESPONSE_TIMEOUT=59s");
    // What was verified by the authority of before serves no more.
    get(&mut daemon.connect()).assert_refusal(502, "backend_tls_untrusted");
    front.set(showing(&local(&after)));
    daemon.wait("it is back", |_| get(&mut daemon.connect()).status() == 200);
    // A file that can't be used changes nothing.
    write(daemon.folder(), "ca.pem", "nothing");
    let refused = daemon.refused("STREAM_TIMEOUT=58s");
    assert!(refused.contains("`BACKEND_TLS_CA`: ") && refused.contains("ca.pem"), "{refused}");
    assert_eq!(get(&mut daemon.connect()).text(), "it");
}

#[test]
fn routes_that_trust_others_have_connections_of_their_own() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = Server::new("it");
    let front = Front::before(server.address, showing(&local(&authority)));
    let setup = trusting(&authority, &front.url()).set("BACKEND_IDLE_TIMEOUT", "1h").set("WORKERS", 1);
    let ca = write(setup.folder(), "other.pem", &other.pem);
    let daemon = setup
        .set("MAX_BACKEND_CONNECTIONS", 1)
        .route("other.env", &format!("MATCH_PATH=/other\nBACKEND_TLS_CA={}\n", ca.display()))
        .route("name.env", "MATCH_PATH=/name\nBACKEND_TLS_NAME=localhost\n")
        .start();
    let mut client = daemon.connect();
    for _ in 0..2 {
        assert_eq!(get(&mut client).text(), "it");
        client.get("/other");
        client.response().assert_refusal(502, "backend_tls_untrusted");
        client.get("/name");
        assert_eq!(client.response().text(), "it");
    }
    assert_eq!(front.seen().full, 2);
}

#[test]
fn checks_see_what_requests_would() {
    let (authority, other) = (Authority::new(), Authority::new());
    let moody = Moody::new();
    let front = Front::before(moody.address.parse().unwrap(), showing(&local(&authority)));
    let daemon = trusting(&authority, &front.url())
        .set("HEALTH_CHECK", CHECKED)
        .set("HEALTH_INTERVAL", "50ms")
        .set("HEALTH_TIMEOUT", "50ms")
        .set("HEALTH_FALL", 1)
        .set("HEALTH_RISE", 1)
        .start();
    moody.next_checks(2);
    daemon.wait("it is up", |status| status["backends"][0]["state"] == "up");
    moody.set_checks(Mood::Answers(500));
    daemon.wait("it fails", |status| status["backends"][0]["state"] == "failing");
    moody.set_checks(Mood::Answers(200));
    daemon.wait("it is up again", |status| status["backends"][0]["state"] == "up");
    front.set(showing(&local(&other)));
    daemon.logged("why", |line| line["reason"] == "backend_tls_untrusted" && line["backend"] == front.url().as_str());
}

#[test]
fn a_protocol_that_takes_over_passes_through() {
    let authority = Authority::new();
    let backend = Backend::new();
    let front = Front::before(address(&backend), showing(&local(&authority)));
    let daemon = trusting(&authority, &front.url()).start();
    let mut client = daemon.connect();
    client.send("GET /chat HTTP/1.1\r\nHost: door.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let (mut peer, request) = backend.take();
    assert_eq!(request.head.field("Upgrade"), Some("websocket"));
    peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst");
    assert_eq!(client.head().status(), 101);
    client.expect("first");
    let bulk = noise(1 << 20, 3);
    for _ in 0..3 {
        let mut writer = client.writer();
        std::thread::scope(|scope| {
            scope.spawn(|| writer.send(&bulk));
            assert_same(&peer.read(bulk.len()), &bulk);
        });
        peer.send("ack");
        client.expect("ack");
    }
    client.half_close();
    peer.expect_end();
    peer.send("last");
    drop(peer);
    client.expect("last");
    client.expect_end();
}

#[test]
fn in_tcp_mode_the_bytes_of_any_protocol_go_inside() {
    let authority = Authority::new();
    let backend = Backend::new();
    let front = Front::before(address(&backend), showing(&local(&authority)));
    let daemon = trusting(&authority, &front.url()).set("MODE", "tcp").start();
    let mut client = daemon.connect();
    let mut peer = backend.accept();
    client.send("ping");
    peer.expect("ping");
    let bulk = noise(4 << 20, 4);
    let mut writer = peer.writer();
    std::thread::scope(|scope| {
        scope.spawn(|| writer.send(&bulk));
        assert_same(&client.read(bulk.len()), &bulk);
    });
    drop(writer);
    client.half_close();
    peer.expect_end();
    peer.send("pong");
    drop(peer);
    client.expect("pong");
    client.expect_end();
    assert_eq!(front.seen().protocol, None, "whatever it is, it need not be HTTP");
}

#[test]
fn an_end_without_notice_may_not_be_the_end() {
    let authority = Authority::new();
    let backend = Backend::new();
    let front = Front::abrupt(address(&backend), showing(&local(&authority)));
    let daemon = trusting(&authority, &front.url()).start();
    let mut client = daemon.connect();
    client.get("/cut");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf");
    assert_eq!(client.head().status(), 200);
    client.read_to(b"half");
    drop(peer);
    client.expect_gone();
    assert_eq!(daemon.record("/cut")["reason"], "backend_truncated");
    // Where the length is known nothing can be missing.
    let mut client = daemon.connect();
    client.get("/whole");
    let (mut peer, _) = backend.take();
    peer.answer_last("whole");
    assert_eq!(client.response().text(), "whole");
}

#[test]
fn a_limit_holds_for_connections_with_tls_too_and_they_go_from_hand_to_hand() {
    let authority = Authority::new();
    let server = Server::new("it");
    let front = Front::before(server.address, showing(&local(&authority)));
    let daemon = trusting(&authority, &front.url())
        .set("MAX_BACKEND_CONNECTIONS", 2)
        .set("BACKEND_IDLE_TIMEOUT", "1h")
        .set("QUEUE_TIMEOUT", "1h")
        .set("WORKERS", 3)
        .start();
    let clients: Vec<_> = (0..12)
        .map(|_| {
            let mut client = daemon.connect();
            std::thread::spawn(move || {
                for _ in 0..20 {
                    assert_eq!(get(&mut client).text(), "it");
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    assert_eq!(server.counts().requests, 240);
    let seen = front.seen();
    assert_eq!((seen.full + seen.resumed, seen.failed), (2, 0), "{seen:?}");
}

#[test]
fn the_authorities_of_the_host_are_trusted_unless_others_are_named() {
    let (authority, none) = (Authority::new(), Authority::new());
    let server = Server::new("it");
    let front = Front::before(server.address, showing(&local(&authority)));
    let setup = Setup::new().set("BACKEND_ADDRESS", front.url()).set("MAX_RETRIES", 0);
    let ca = write(setup.folder(), "host.pem", &authority.pem);
    let daemon = setup.environment("SSL_CERT_FILE", ca.to_str().unwrap()).start();
    assert_eq!(get(&mut daemon.connect()).text(), "it");
    let setup = Setup::new().set("BACKEND_ADDRESS", front.url()).set("MAX_RETRIES", 0);
    let ca = write(setup.folder(), "host.pem", &none.pem);
    let daemon = setup.environment("SSL_CERT_FILE", ca.to_str().unwrap()).start();
    get(&mut daemon.connect()).assert_refusal(502, "backend_tls_untrusted");
}

#[test]
fn check_and_explain_say_who_verifies_a_backend_and_name_what_is_wrong() {
    let folder = folder(&[("routes.d/any.env", "MATCH_PATH=/any\nBACKEND_TLS_VERIFY=off\n")]);
    let (path, authority) = (folder.path(), Authority::new());
    let ca = write(path, "ca.pem", &authority.pem);
    let set = |more: &str| {
        let text = format!("BACKEND_ADDRESS=https://app.test\nBACKEND_TLS_CA={}\n{more}", ca.display());
        write(path, "config.env", &text);
    };
    let here = |text: &str| text.replace(&format!("{}/", path.display()), "");
    issued::write(path, "own", &issue(&authority, &["door.test"]));
    set(&format!(
        "BACKEND_TLS_NAME=inside.test\nBACKEND_TLS_CERTIFICATE={0}/own.crt\nBACKEND_TLS_PRIVATE_KEY={0}/own.key\n",
        path.display()
    ));
    let output = doorward(path, &[], &["check", "--config", "config.env"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = here(stdout(&output));
    for part in [
        "→ https://app.test:443\n      over TLS, verified as `inside.test` by ca.pem; shown own.crt\n",
        "      over TLS, verified by nobody (BACKEND_TLS_VERIFY=off); shown own.crt\n",
        "\ncertificates that backends are shown\n  door.test  P-256, 90 days left  signed by CN=authority  own.crt\n",
        "warning: routes.d/any.env:2: with `BACKEND_TLS_VERIFY=off` route any takes anybody for `https://app.test:443`",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    let output = doorward(path, &[], &["explain", "--config", "config.env", "--request", "GET http://a/any"]);
    let said = here(stdout(&output));
    assert!(said.contains("verified by nobody (BACKEND_TLS_VERIFY=off)"), "{said}");
    set("BACKEND_TLS_CERTIFICATE=/nonexistent/own.pem\n");
    write(path, "ca.pem", "nothing");
    let output = doorward(path, &[], &["check", "--config", "config.env"]);
    assert_eq!(output.status.code(), Some(78));
    let said = here(stderr(&output));
    for part in [
        "config.env:2: `BACKEND_TLS_CA`: `ca.pem` is not PEM\n",
        "config.env:3: `BACKEND_TLS_CERTIFICATE`: `/nonexistent/own.pem` can't be read: no such file\n",
        "2 problems in 1 file\n",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
}

#[test]
fn a_host_that_trusts_nobody_is_told_what_to_install() {
    let folder = folder(&[("config.env", "BACKEND_ADDRESS=https://app.test\n"), ("none.pem", "")]);
    let none = folder.path().join("none.pem");
    let environment = [("SSL_CERT_FILE", none.to_str().unwrap())];
    let output = doorward(folder.path(), &environment, &["check", "--config", "config.env"]);
    assert_eq!(output.status.code(), Some(78));
    let said = stderr(&output);
    assert!(said.contains("config.env:1: `BACKEND_ADDRESS`: this host trusts no authority"), "{said}");
    assert!(said.contains("install the package ca-certificates"), "{said}");
}

//! For whom a request is made: what backends are told, and whom the log names.

use serde_json::Value;

use crate::backend::Backend;
use crate::peer::{Head, Peer};
use crate::traffic::door::{Daemon, Setup};

fn before(backend: &Backend) -> Setup {
    Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", &backend.address)
}

/// Sends a GET with these fields; what the backend received.
#[track_caller]
fn received(client: &mut Peer, backend: &Backend, path: &str, fields: &str) -> Head {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: door.test:81\r\n{fields}\r\n"));
    let (mut peer, request) = backend.take();
    peer.answer_last("");
    assert_eq!(client.response().status(), 200);
    request.head
}

/// The forwarding fields of a head, one a line, in order.
fn forwarding(head: &Head) -> Vec<String> {
    let told = |name: &str| {
        let name = name.to_ascii_lowercase().replace('_', "-");
        name == "forwarded" || name.starts_with("x-forwarded-")
    };
    head.fields.iter().filter(|(name, _)| told(name)).map(|(name, value)| format!("{name}: {value}")).collect()
}

const SAID: &str = "X-Forwarded-For: 192.0.2.9, 192.0.2.1\r\nx-forwarded-for: 127.0.0.2\r\nX-Forwarded-Proto: https\r\n\
    X-Forwarded-Host: site.test\r\nX-Forwarded-Port: 443\r\nX_Forwarded_For: 192.0.2.66\r\nX-Forwarded_Prefix: /x\r\n\
    Forwarded: for=192.0.2.8, for=\"[2001:db8::1]:4711\";proto=https\r\nforwarded: for=127.0.0.2\r\n\
    Connection: X-Forwarded-For, Forwarded, X-Forwarded-Proto\r\n";

#[test]
fn forwarded_says_which_fields_are_written_and_all_others_are_removed() {
    let backend = Backend::new();
    let x = ["X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http", "X-Forwarded-Host: door.test:81"];
    let forwarded = "Forwarded: for=127.0.0.1;host=\"door.test:81\";proto=http";
    let both = [x[0], x[1], x[2], forwarded];
    for (kind, expected) in [("x-forwarded", &x[..]), ("rfc7239", &[forwarded]), ("both", &both), ("off", &[])] {
        let daemon = before(&backend).set("FORWARDED", kind).start();
        let mut client = daemon.connect();
        for fields in ["", SAID] {
            assert_eq!(forwarding(&received(&mut client, &backend, "/kind", fields)), expected, "{kind}");
        }
        assert_eq!(daemon.record("/kind")["client"], "127.0.0.1");
    }
}

#[test]
fn a_route_has_its_own_kind_of_forwarding_fields() {
    let backend = Backend::new();
    let daemon = before(&backend)
        .set("FORWARDED", "off")
        .route("new.env", &format!("MATCH_PATH=/new\nFORWARDED=rfc7239\nBACKEND_ADDRESS={}\n", backend.address))
        .start();
    let mut client = daemon.connect();
    assert!(forwarding(&received(&mut client, &backend, "/", "")).is_empty());
    assert_eq!(forwarding(&received(&mut client, &backend, "/new", "")).len(), 1);
}

fn client_of(daemon: &Daemon, path: &str) -> (Value, Value) {
    let mut record = daemon.record(path);
    (record["client"].take(), record["client_port"].take())
}

#[test]
fn what_a_trusted_proxy_says_is_kept_and_appended_to_and_its_client_is_on_record() {
    let backend = Backend::new();
    let x = [
        // Its own fields go on as they came, and what only looks like one does not.
        "X-Forwarded-Port: 443",
        "X-Forwarded-For: 192.0.2.9, 192.0.2.1, 127.0.0.2, 127.0.0.1",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: site.test",
    ];
    let forwarded = "Forwarded: for=192.0.2.8, for=\"[2001:db8::1]:4711\";proto=https, for=127.0.0.2, \
                     for=127.0.0.1;host=\"door.test:81\";proto=http";
    let converted = "Forwarded: for=192.0.2.9, for=192.0.2.1, for=127.0.0.2;host=site.test;proto=https, \
                     for=127.0.0.1;host=\"door.test:81\";proto=http";
    let both = [x[0], x[1], x[2], x[3], converted];
    for (kind, expected, asks, port) in [
        ("x-forwarded", &x[..], "192.0.2.1", Value::Null),
        ("rfc7239", &[forwarded], "2001:db8::1", 4711.into()),
        ("both", &both, "192.0.2.1", Value::Null),
        ("off", &[], "192.0.2.1", Value::Null),
    ] {
        let daemon = before(&backend).set("FORWARDED", kind).set("TRUSTED_PROXIES", "10.0.0.0/8,127.0.0.0/8").start();
        let mut client = daemon.connect();
        assert_eq!(forwarding(&received(&mut client, &backend, "/said", SAID)), expected, "{kind}");
        assert_eq!(client_of(&daemon, "/said"), (asks.into(), port), "{kind}");
        // Without a word of another it is the client itself.
        received(&mut client, &backend, "/silent", "");
        assert_eq!(daemon.record("/silent")["client"], "127.0.0.1");
    }
}

#[test]
fn what_a_peer_says_counts_only_if_it_is_trusted_and_only_as_far_as_it_can_be_read() {
    let backend = Backend::new();
    let daemon = before(&backend).set("TRUSTED_PROXIES", "127.0.0.2,::1,unix:").start();
    let mut client = daemon.connect();
    let head = received(&mut client, &backend, "/spoofed", SAID);
    assert_eq!(head.field("X-Forwarded-For"), Some("127.0.0.1"));
    assert_eq!(head.field("X-Forwarded-Proto"), Some("http"));
    assert_eq!(daemon.record("/spoofed")["client"], "127.0.0.1");

    let daemon = before(&backend).set("TRUSTED_PROXIES", "127.0.0.0/8").start();
    let mut client = daemon.connect();
    received(&mut client, &backend, "/garbage", "X-Forwarded-For: 192.0.2.1, what, 127.0.0.7\r\n");
    assert_eq!(daemon.record("/garbage")["client"], "127.0.0.7");
    // It holds for refusals too.
    let ask = "TRACE /refused HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n";
    client.send(ask);
    client.response().assert_refusal(405, "method_refused");
    assert_eq!(daemon.record("/refused")["client"], "192.0.2.7");
}

#[test]
fn a_proxy_on_a_unix_socket_may_be_trusted() {
    let backend = Backend::new();
    for (trusted, told, asks) in [("unix:", "192.0.2.1, unix:", "192.0.2.1"), ("0.0.0.0/0,::/0", "unix:", "unix:")] {
        let setup = Setup::without_listener();
        let door = setup.path("http.sock");
        let socket = std::os::unix::net::UnixListener::bind(&door).unwrap();
        let daemon = setup
            .set("BACKEND_ADDRESS", &backend.address)
            .set("TRUSTED_PROXIES", trusted)
            .listener("http", socket)
            .start();
        let mut client = Peer::connect_unix(&door);
        let head = received(&mut client, &backend, "/unix", "X-Forwarded-For: 192.0.2.1\r\n");
        assert_eq!(head.field("X-Forwarded-For"), Some(told));
        assert_eq!(daemon.record("/unix")["client"], asks);
    }
}

#[test]
fn a_host_that_nobody_asked_for_is_not_told() {
    let backend = Backend::new();
    let for_proto = ["X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http"];
    let forwarded = "Forwarded: for=127.0.0.1;proto=http";
    for (kind, expected) in [("x-forwarded", &for_proto[..]), ("both", &[for_proto[0], for_proto[1], forwarded])] {
        let daemon = before(&backend).set("FORWARDED", kind).start();
        let mut client = daemon.connect();
        client.send("GET / HTTP/1.0\r\nX-Forwarded-Host: other\r\n\r\n");
        let (mut peer, request) = backend.take();
        assert_eq!(forwarding(&request.head), expected, "{kind}");
        peer.answer_last("");
        client.response();
    }
}

#[test]
fn a_unix_peer_is_unknown_in_forwarded() {
    let backend = Backend::new();
    let setup = Setup::without_listener();
    let door = setup.path("http.sock");
    let socket = std::os::unix::net::UnixListener::bind(&door).unwrap();
    let _daemon =
        setup.set("BACKEND_ADDRESS", &backend.address).set("FORWARDED", "rfc7239").listener("http", socket).start();
    let mut client = Peer::connect_unix(&door);
    let head = received(&mut client, &backend, "/", "");
    assert_eq!(head.field("Forwarded"), Some("for=unknown;host=\"door.test:81\";proto=http"));
    // Nor is there a host to tell of when none was asked for.
    client.send("GET / HTTP/1.0\r\n\r\n");
    let (mut peer, request) = backend.take();
    assert_eq!(request.head.field("Forwarded"), Some("for=unknown;proto=http"));
    peer.answer_last("");
    client.response();
}

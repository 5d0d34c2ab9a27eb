//! Clients that are kept on TLS: `HTTPS_REDIRECT` and `HSTS`.

use crate::backend::Backend;
use crate::peer::Peer;
use crate::tls::secured::Secured;

fn ask(client: &mut Peer, request: &str) -> crate::peer::Message {
    client.send(request.replace('\n', "\r\n"));
    client.response()
}

#[test]
fn clients_without_tls_are_sent_to_the_same_url_by_tls() {
    let backend = Backend::new();
    let secured = Secured::before(&backend.address, |setup| {
        setup
            .set("HTTPS_REDIRECT", "on")
            .set("TRUSTED_PROXIES", "127.0.0.2")
            .route("port.env", "MATCH_PATH=/port\nHTTPS_REDIRECT=8443\nSTRIP_PREFIX=/port\n")
            .route("clear.env", "MATCH_PATH=/clear\nHTTPS_REDIRECT=off\n")
    });
    let mut client = secured.daemon.connect();
    for (request, location) in [
        ("GET /a/../b%2f?x=y HTTP/1.1\nHost: Door.test:8080\n\n", "https://door.test/a/../b%2f?x=y"),
        ("POST / HTTP/1.1\nHost: door.test\nContent-Length: 0\n\n", "https://door.test/"),
        ("GET /port/x HTTP/1.1\nHost: [::1]:8080\n\n", "https://[::1]:8443/port/x"),
        ("GET //evil.test/ HTTP/1.1\nHost: door.test\n\n", "https://door.test//evil.test/"),
        // What anybody says of a scheme counts for nothing.
        ("GET / HTTP/1.1\nHost: door.test\nX-Forwarded-Proto: https\n\n", "https://door.test/"),
    ] {
        let response = ask(&mut client, request);
        assert_eq!((response.status(), response.head.field("Location")), (308, Some(location)), "{request}");
    }
    backend.expect_none();
    client.get("/clear");
    let (mut peer, _) = backend.take();
    peer.answer("");
    assert_eq!(client.response().status(), 200);
    drop((client, peer));
    let mut client = secured.connect();
    client.get("/");
    let (mut peer, _) = backend.take();
    peer.answer_last("by TLS");
    assert!(client.response().0.starts_with("HTTP/1.1 200 "));
    ask(&mut secured.daemon.connect(), "GET / HTTP/1.0\n\n").assert_refusal(400, "bad_request");
}

#[test]
fn clients_that_a_trusted_peer_has_taken_in_by_tls_stay() {
    let backend = Backend::new();
    for (forwarded, yes, no) in [
        ("x-forwarded", "X-Forwarded-Proto: https", "X-Forwarded-Proto: http"),
        ("rfc7239", "Forwarded: for=192.0.2.1;Proto=https", "Forwarded: for=192.0.2.1;proto=http"),
    ] {
        let secured = Secured::before(&backend.address, |setup| {
            setup
                .set("HTTPS_REDIRECT", "on")
                .set("HSTS", "1h")
                .set("TRUSTED_PROXIES", "127.0.0.1")
                .set("FORWARDED", forwarded)
        });
        let mut client = secured.daemon.connect();
        client.send(format!("GET / HTTP/1.1\r\nHost: door.test\r\n{yes}\r\n\r\n"));
        let (mut peer, _) = backend.take();
        peer.answer_last("");
        let response = client.response();
        assert_eq!(response.head.field("Strict-Transport-Security"), Some("max-age=3600"), "{response:?}");
        let response = ask(&mut client, &format!("GET / HTTP/1.1\nHost: door.test\n{no}\n\n"));
        assert_eq!((response.status(), response.head.field("Strict-Transport-Security")), (308, None));
    }
}

#[test]
fn browsers_are_told_to_stay_by_tls_alone_and_once() {
    let backend = Backend::new();
    let secured = Secured::before(&backend.address, |setup| {
        setup
            .set("HSTS", "730d,includeSubDomains,preload")
            .route("none.env", "MATCH_PATH=/none\nHSTS=off\n")
            .route("set.env", "MATCH_PATH=/set\nSET_RESPONSE_HEADERS=\"strict-transport-security: max-age=1\"\n")
            .route("gone.env", "MATCH_PATH=/gone\nREDIRECT=/elsewhere\n")
    });
    let values = |head: &str| -> Vec<String> {
        let named = |line: &&str| line.to_ascii_lowercase().starts_with("strict-transport-security: ");
        head.lines().filter(named).map(|line| line.split_once(": ").unwrap().1.to_owned()).collect()
    };
    const OURS: &str = "max-age=63072000; includeSubDomains; preload";
    let mut client = secured.connect();
    for (path, said, expected) in [
        ("/", "", vec![OURS]),
        ("/", "Strict-Transport-Security: max-age=7\r\n", vec!["max-age=7"]),
        ("/", "Connection: strict-transport-security\r\nStrict-Transport-Security: max-age=7\r\n", vec![OURS]),
        ("/none", "", vec![]),
        ("/set", "Strict-Transport-Security: max-age=7\r\n", vec!["max-age=1"]),
    ] {
        client.get(path);
        let (mut peer, _) = backend.take();
        peer.send(format!("HTTP/1.1 200 OK\r\n{said}Content-Length: 0\r\n\r\n"));
        let (head, _) = client.response();
        assert_eq!(values(&head), expected, "{path}, {said}");
        // Each has a connection of its own.
        drop(peer);
    }
    client.get("/gone");
    assert_eq!(values(&client.response().0), [OURS]);
    let mut plain = secured.daemon.connect();
    plain.get("/");
    let (mut peer, _) = backend.take();
    peer.answer_last("");
    assert_eq!(plain.response().head.field("Strict-Transport-Security"), None);
}

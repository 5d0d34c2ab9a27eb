//! What routes change of requests and responses, and what they answer by themselves.

use crate::backend::{Backend, Refusing};
use crate::traffic::door::{Daemon, Setup};

/// Sends a request and reads what became of it on the backend's side; the answer is read
/// and of no interest.
fn sent_on(daemon: &Daemon, backend: &Backend, request: &str) -> crate::peer::Head {
    let mut client = daemon.connect();
    client.send(request);
    let (mut peer, got) = backend.take();
    peer.answer_last("");
    assert_eq!(client.response().status(), 200, "{request}");
    got.head
}

#[test]
fn whole_leading_segments_are_stripped_of_what_is_sent_on() {
    let backend = Backend::new();
    let daemon = Setup::new().set("BACKEND_ADDRESS", &backend.address).set("STRIP_PREFIX", "/api,/api/v1").start();
    for (target, sent) in [
        ("/api/x", "/x"),
        ("/api", "/"),
        ("/api/", "/"),
        ("/api?q=/api/x", "/?q=/api/x"),
        ("/api/v1/x%2fy/%7Ez?sig=%2B", "/x%2fy/%7Ez?sig=%2B"),
        ("/api/v12", "/v12"),
        // However it is written, and what is left stays as it is.
        ("/%61pi/%61", "/%61"),
        ("/x/../api/%7ey?q", "/~y?q"),
        ("/api/../y", "/y"),
        ("/api//y", "//y"),
        ("http://door.test/api", "/"),
        // Not a whole segment, or not the first one.
        ("/apis/x", "/apis/x"),
        ("/api%2Fx", "/api%2Fx"),
        ("/x/api", "/x/api"),
        ("http://door.test?q", "/?q"),
    ] {
        let head = sent_on(&daemon, &backend, &format!("GET {target} HTTP/1.1\r\nHost: door.test\r\n\r\n"));
        assert_eq!(head.line, format!("GET {sent} HTTP/1.1"), "{target}");
    }
    let head = sent_on(&daemon, &backend, "OPTIONS * HTTP/1.1\r\nHost: door.test\r\n\r\n");
    assert_eq!(head.line, "OPTIONS * HTTP/1.1");
}

#[test]
fn a_backend_is_asked_for_by_the_name_that_the_route_says() {
    let backend = Backend::new();
    let route = |host: &str, says: &str| format!("MATCH_HOST={host}\nBACKEND_HOST={says}\n");
    let daemon = Setup::new()
        .set("BACKEND_ADDRESS", &backend.address)
        .set("BACKEND_HOST", "Fixed.test:8080")
        .route("client.env", &route("client.test", "client"))
        .route("backend.env", &route("backend.test", "backend"))
        .route("rfc.env", &format!("{}FORWARDED=rfc7239\n", route("rfc.test", "backend")))
        .start();
    for (host, asked) in [
        ("client.test:81", "client.test:81"),
        ("backend.test:81", backend.address.as_str()),
        ("other.test:81", "Fixed.test:8080"),
    ] {
        let head = sent_on(&daemon, &backend, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(head.field("Host"), Some(asked));
        assert_eq!(head.field("X-Forwarded-Host"), Some(host), "what the client asked for is still told");
    }
    let head = sent_on(&daemon, &backend, "GET / HTTP/1.1\r\nHost: rfc.test\r\n\r\n");
    assert_eq!(head.field("Host"), Some(backend.address.as_str()));
    assert_eq!(head.field("Forwarded"), Some("for=127.0.0.1;host=rfc.test;proto=http"));
    // The absolute form names its host too, and does not reach past the route.
    let head = sent_on(&daemon, &backend, "GET http://x.test/ HTTP/1.1\r\nHost: y.test\r\n\r\n");
    assert_eq!(head.all("Host"), ["Fixed.test:8080"]);
}

#[test]
fn request_fields_are_set_and_removed_in_every_attempt() {
    let (dead, backend) = (Refusing::new(), Backend::new());
    let daemon = Setup::new()
        .set("BACKEND_ADDRESS", format!("{},{}", dead.address, backend.address))
        .set("SET_REQUEST_HEADERS", "X-User: nobody | X-List: a, b; c=\\\"d\\\" || e")
        .set("REMOVE_REQUEST_HEADERS", "Cookie, x-debug")
        .start();
    let head = sent_on(
        &daemon,
        &backend,
        "GET / HTTP/1.1\r\nHost: a\r\nx-user: root\r\nX_User: root\r\nAccept: a\r\nCOOKIE: a=b\r\nX-Debug: 1\r\n\
         X_Debug: 1\r\nX-Users: c\r\nConnection: X-List\r\nX-List: mine\r\ncookie:c=d\r\nX-Last: 1\r\n\r\n",
    );
    assert_eq!(head.field("X-User"), Some("nobody"));
    assert_eq!(head.field("X-List"), Some("a, b; c=\"d\" | e"));
    for gone in ["X_User", "Cookie", "X-Debug", "X_Debug", "Connection"] {
        assert_eq!(head.field(gone), None, "{gone}");
    }
    for kept in ["Accept", "X-Users", "X-Last", "Host", "Via", "X-Forwarded-For"] {
        assert!(head.field(kept).is_some(), "{kept}");
    }
}

/// What stands behind a body may be taken for what stands before it.
#[test]
fn fields_behind_a_body_are_removed_like_those_before_it() {
    let backend = Backend::new();
    let daemon = Setup::new()
        .set("BACKEND_ADDRESS", &backend.address)
        .set("SET_REQUEST_HEADERS", "X-User: nobody")
        .set("REMOVE_RESPONSE_HEADERS", "X-Secret")
        .start();
    let mut client = daemon.connect();
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n\
         3\r\nabc\r\n0\r\nX-User: root\r\nx_user: root\r\nSum: 1\r\n\r\n",
    );
    let mut peer = backend.accept();
    assert_eq!(peer.head().field("X-User"), Some("nobody"));
    peer.expect("3\r\nabc\r\n0\r\nSum: 1\r\n\r\n");
    peer.send(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Secret: a\r\n\r\n3\r\nabc\r\n0\r\nx-secret: b\r\nSum: 2\r\n\r\n",
    );
    assert_eq!(client.head().field("X-Secret"), None);
    client.expect("3\r\nabc\r\n0\r\nSum: 2\r\n\r\n");
}

#[test]
fn response_fields_are_set_and_removed_whoever_answers() {
    let (backend, dead) = (Backend::new(), Refusing::new());
    let daemon = Setup::new()
        .set("BACKEND_ADDRESS", &backend.address)
        .set("MAX_RETRIES", 0)
        .set("SET_RESPONSE_HEADERS", "X-Frame-Options: DENY | Cache-Control: max-age=60")
        .set("REMOVE_RESPONSE_HEADERS", "Server,X-Powered-By")
        .route("dead.env", &format!("MATCH_PATH=/dead\nBACKEND_ADDRESS={}\n", dead.address))
        .route("plain.env", "MATCH_PATH=/plain\nSET_RESPONSE_HEADERS=\nREMOVE_RESPONSE_HEADERS=\n")
        .start();
    const ANSWER: &str = "HTTP/1.1 200 OK\r\nServer: x\r\nx-powered-by: y\r\nx-frame-options: ALLOW\r\n\
         Cache-Control: no-cache\r\nContent-Length: 0\r\nSet-Cookie: a=b\r\n\r\n";
    let mut client = daemon.connect();
    client.get("/");
    let (mut peer, _) = backend.take();
    peer.send(ANSWER);
    let head = client.response().head;
    assert_eq!((head.field("Server"), head.field("X-Powered-By")), (None, None));
    assert_eq!(head.field("X-Frame-Options"), Some("DENY"));
    assert_eq!(head.field("Cache-Control"), Some("max-age=60"));
    assert_eq!((head.field("Set-Cookie"), head.field("Content-Length")), (Some("a=b"), Some("0")));
    // A route may do without.
    client.get("/plain");
    peer.request();
    peer.send(ANSWER);
    let head = client.response().head;
    assert_eq!((head.field("Server"), head.field("X-Frame-Options")), (Some("x"), Some("ALLOW")));
    // Nobody is to keep a failure, and what says so stays.
    client.get("/dead");
    let failed = client.response();
    failed.assert_refusal(502, "backend_connect_refused");
    assert_eq!(failed.head.field("X-Frame-Options"), Some("DENY"));
    assert_eq!(failed.head.field("Cache-Control"), Some("no-store"));
    // Also where the connection turns into a tunnel.
    client.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n");
    peer.head();
    peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: a\r\nServer: x\r\n\r\n");
    let head = client.head();
    assert_eq!((head.status(), head.field("Server"), head.field("X-Frame-Options")), (101, None, Some("DENY")));
    assert_eq!(head.field("Upgrade"), Some("a"));
}

#[test]
fn what_no_client_gets_is_kept_from_interim_responses_too() {
    let backend = Backend::new();
    let daemon = Setup::new()
        .set("BACKEND_ADDRESS", &backend.address)
        .set("REMOVE_RESPONSE_HEADERS", "X-Secret")
        .set("SET_RESPONSE_HEADERS", "Link: mine")
        .start();
    let mut client = daemon.connect();
    client.get("/hints");
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 103 Early Hints\r\nLink: theirs\r\nX-Secret: 1\r\nX-Hint: a\r\n\r\n");
    let head = client.head();
    assert_eq!((head.status(), head.field("X-Hint")), (103, Some("a")));
    assert_eq!((head.field("X-Secret"), head.field("Link")), (None, None));
    peer.send("HTTP/1.1 200 OK\r\nLink: theirs\r\nX-Secret: 2\r\nContent-Length: 0\r\n\r\n");
    let response = client.response();
    assert_eq!((response.head.field("X-Secret"), response.head.field("Link")), (None, Some("mine")));
}

#[test]
fn a_redirect_is_answered_without_a_backend_and_keeps_the_connection() {
    let backend = Backend::new();
    let daemon = Setup::new()
        .set("BACKEND_ADDRESS", &backend.address)
        .set("REDIRECT", "308 https://{host}{path}{query}")
        .set("SET_RESPONSE_HEADERS", "Strict-Transport-Security: max-age=60 | Location: https://evil.test")
        .route("old.env", "MATCH_PATH=/old\nSTRIP_PREFIX=/old\nREDIRECT=\"301 https://new.test/a{path}?b{query}\"\n")
        .route("here.env", "MATCH_PATH=/here\nSTRIP_PREFIX=/here\nREDIRECT={path}{query}\n")
        .route("found.env", "MATCH_PATH=/found\nREDIRECT='302 /x'\n")
        .route("see.env", "MATCH_PATH=/see\nREDIRECT='303 /x'\n")
        .route("served.env", "MATCH_PATH=/served\nREDIRECT=off\n")
        .start();
    let mut client = daemon.connect();
    for (target, line, location) in [
        ("/x%2f?y=/../z", "308 Permanent Redirect", "https://door.test/x%2f?y=/../z"),
        ("/old/x?c", "301 Moved Permanently", "https://new.test/a/x?b&c"),
        ("/old", "301 Moved Permanently", "https://new.test/a/?b"),
        ("/found?y", "302 Found", "/x"),
        ("/see", "303 See Other", "/x"),
        // Nothing of the path is taken for a host.
        ("/here//evil.test/x?y", "307 Temporary Redirect", "/evil.test/x?y"),
        ("/here/\\evil.test", "307 Temporary Redirect", "/evil.test"),
        ("/x/..//here/%2e%2e//evil.test", "308 Permanent Redirect", "https://door.test///evil.test"),
        ("/@evil.test", "308 Permanent Redirect", "https://door.test/@evil.test"),
        // Nor for another field.
        ("/%0d%0aX:%20y?\"<>%0a", "308 Permanent Redirect", "https://door.test/%0d%0aX:%20y?%22%3C%3E%0a"),
    ] {
        client.send(format!("GET {target} HTTP/1.1\r\nHost: Door.test:8080\r\n\r\n"));
        let head = client.response().head;
        assert_eq!(head.line, format!("HTTP/1.1 {line}"), "{target}");
        assert_eq!(head.field("Location"), Some(location), "{target}");
        assert_eq!((head.field("Content-Length"), head.field("Connection")), (Some("0"), None));
        assert_eq!(head.field("Strict-Transport-Security"), Some("max-age=60"));
        assert!(head.field("Date").is_some() && head.field("X-Request-Id").is_some());
    }
    client.send("HEAD /head HTTP/1.1\r\nHost: door.test\r\n\r\n");
    assert_eq!(client.head().field("Location"), Some("https://door.test/head"));
    // A host that could be none in a URL leads nowhere.
    for host in ["a,b", "a%2eb", "-!"] {
        client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        client.response().assert_refusal(400, "bad_request");
    }
    let record = daemon.record("/head");
    assert_eq!((&record["status"], &record["route"]), (&308.into(), &"default".into()));
    assert_eq!((&record["backend"], &record["reason"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    backend.expect_none();
    // With a body that nobody wants, the connection ends behind the answer.
    client.send("POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n");
    let head = client.response().head;
    assert_eq!((head.field("Location"), head.field("Connection")), (Some("https://a/body"), Some("close")));
    let head = sent_on(&daemon, &backend, "GET /served HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(head.line, "GET /served HTTP/1.1");
}

#[test]
fn without_a_backend_of_the_default_what_no_route_matches_is_answered_with_404() {
    let backend = Backend::new();
    let daemon = Setup::new()
        .set("BACKEND_ADDRESS", "off")
        .set("SET_RESPONSE_HEADERS", "X-Env: test")
        .route("site.env", &format!("MATCH_HOST=a.test\nBACKEND_ADDRESS={}\n", backend.address))
        .route("inner.env", "MATCH_HOST=a.test\nMATCH_PATH=/inner\nBACKEND_ADDRESS=off\n")
        .start();
    let mut client = daemon.connect();
    for request in ["GET /none HTTP/1.1\r\nHost: b.test\r\n\r\n", "GET /inner/x HTTP/1.1\r\nHost: a.test\r\n\r\n"] {
        client.send(request);
        let refused = client.response();
        refused.assert_refusal(404, "no_route");
        assert_eq!(refused.head.field("X-Env"), Some("test"));
    }
    assert_eq!(daemon.record("/none")["reason"], "no_route");
    backend.expect_none();
    let head = sent_on(&daemon, &backend, "GET /some HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert_eq!(head.line, "GET /some HTTP/1.1");
}

#[test]
fn a_reload_changes_what_is_rewritten_from_the_next_request_on() {
    let backend = Backend::new();
    let daemon = Setup::new().set("BACKEND_ADDRESS", &backend.address).start();
    let mut client = daemon.connect();
    client.get("/a/x");
    let (mut peer, request) = backend.take();
    daemon.reload("STRIP_PREFIX=/a\nSET_REQUEST_HEADERS='X-A: 1'\nSET_RESPONSE_HEADERS='X-B: 2'");
    assert_eq!((request.head.line.as_str(), request.head.field("X-A")), ("GET /a/x HTTP/1.1", None));
    peer.answer("");
    assert_eq!(client.response().head.field("X-B"), None, "a request keeps what it began with");
    client.get("/a/x");
    let request = peer.request();
    assert_eq!((request.head.line.as_str(), request.head.field("X-A")), ("GET /x HTTP/1.1", Some("1")));
    peer.answer("");
    assert_eq!(client.response().head.field("X-B"), Some("2"));
}

//! Where requests come in and where they lead: listeners, routes, backends in turn.

use serde_json::Value;

use crate::backend::Backend;
use crate::daemon::listener;
use crate::peer::Peer;
use crate::traffic::door::Setup;

#[test]
fn backends_are_taken_in_turn() {
    let backends = [Backend::new(), Backend::new(), Backend::new()];
    let addresses: Vec<&str> = backends.iter().map(|backend| backend.address.as_str()).collect();
    let daemon = Setup::new().set("BACKEND_ADDRESS", addresses.join(",")).start();
    let mut client = daemon.connect();
    let mut peers = Vec::new();
    for backend in &backends {
        client.get("/first");
        let (mut peer, _) = backend.take();
        peer.answer("");
        client.response();
        peers.push(peer);
    }
    for peer in &mut peers {
        client.get("/second");
        assert_eq!(peer.request().head.line, "GET /second HTTP/1.1");
        peer.answer("");
        client.response();
    }
}

#[test]
fn routes_lead_by_host_path_and_listener() {
    let [default, api, other, private] = [(); 4].map(|()| Backend::new());
    let (inside, address) = listener();
    let daemon = Setup::new()
        .set("BACKEND_ADDRESS", &default.address)
        .route("10-api.env", &format!("MATCH_PATH=/api\nBACKEND_ADDRESS={}\n", api.address))
        .route("20-other.env", &format!("MATCH_HOST=*.other.test\nBACKEND_ADDRESS={}\n", other.address))
        .route("30-inside.env", &format!("MATCH_LISTENER=inside\nBACKEND_ADDRESS={}\n", private.address))
        .listener("inside", inside)
        .start();
    let mut client = daemon.connect();
    for (host, path, backend) in [
        ("door.test", "/", &default),
        ("door.test", "/api/v1?x", &api),
        ("door.test", "/apix", &default),
        ("www.OTHER.test:80", "/", &other),
        ("other.test", "/", &default),
    ] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let (mut peer, request) = backend.take();
        assert_eq!(request.head.line, format!("GET {path} HTTP/1.1"));
        peer.answer_last("");
        client.response();
    }
    let mut inside = Peer::connect(address);
    inside.get("/");
    let (mut peer, _) = private.take();
    peer.answer("private");
    assert_eq!(inside.response().text(), "private");
}

/// Else it would mislead whoever asks.
#[test]
fn what_explain_says_of_a_request_is_what_the_daemon_does() {
    let (inside, address) = listener();
    let setup = Setup::new()
        .route("exact.env", "MATCH_HOST=a.test,[::1]\nMATCH_PATH==/x\n")
        .route("prefix.env", "MATCH_HOST=a.test\nMATCH_PATH=/x\n")
        .route("below.env", "MATCH_HOST=*.test\n")
        .route("inside.env", "MATCH_LISTENER=inside\n")
        .listener("inside", inside);
    let config = setup.path("config.env");
    let daemon = setup.start();
    let mut clients = [("http", daemon.connect()), ("inside", Peer::connect(address))];
    for (number, url) in
        ["http://a.test/x", "http://A.test.:80/%78/y", "http://b.test/x", "http://[0::1]/y/../x", "http://test/"]
            .into_iter()
            .enumerate()
    {
        for (listener, client) in &mut clients {
            let request = format!("GET {url}");
            let said = std::process::Command::new(env!("CARGO_BIN_EXE_doorward"))
                .args(["explain", "--request", &request, "--listener", listener, "--config"])
                .arg(&config)
                .output()
                .unwrap();
            let said = String::from_utf8(said.stdout).unwrap();
            let route = said.split_once("\n  route ").unwrap().1.split_whitespace().next().unwrap();
            let id = format!("{listener}-{number}");
            client.send(format!("{request} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {id}\r\n\r\n"));
            client.response();
            let record = daemon.logged(&id, |line| line["request_id"] == *id);
            assert_eq!(record["route"], route, "{said}");
        }
    }
}

/// What a client has signed is what the backend checks.
#[test]
fn a_path_goes_on_as_it_came_unless_it_has_dot_segments() {
    let [default, api] = [(); 2].map(|()| Backend::new());
    let daemon = Setup::new()
        .set("BACKEND_ADDRESS", &default.address)
        .route("api.env", &format!("MATCH_PATH=/api\nBACKEND_ADDRESS={}\n", api.address))
        .start();
    let mut client = daemon.connect();
    for (target, backend, sent) in [
        ("/%61pi/%7Euser//a%2fb/c%3d?sig=%2B%2f/../x", &api, "/%61pi/%7Euser//a%2fb/c%3d?sig=%2B%2f/../x"),
        ("/x/../api/%7euser//a%2fb?q=/../%2e", &api, "/api/~user//a%2Fb?q=/../%2e"),
        ("/api/%2E%2e/y", &default, "/y"),
        ("/api/.%2e/%2e/api", &api, "/api"),
        ("/api%2f..%2fy", &default, "/api%2f..%2fy"),
        ("http://door.test/z/..", &default, "/"),
        ("/api/...", &api, "/api/..."),
    ] {
        client.send(format!("GET {target} HTTP/1.1\r\nHost: door.test\r\n\r\n"));
        let (mut peer, request) = backend.take();
        assert_eq!(request.head.line, format!("GET {sent} HTTP/1.1"), "{target}");
        peer.answer_last("");
        client.response();
    }
    // The log says what the client did.
    daemon.record("/api/%2E%2e/y");
}

#[test]
fn a_host_without_a_route_is_answered_with_404() {
    let backend = Backend::new();
    let (web, address) = listener();
    let daemon = Setup::without_listener()
        .set("MODE", "tcp")
        .route(
            "web.env",
            &format!("MODE=http\nMATCH_LISTENER=web\nMATCH_HOST=a.test\nBACKEND_ADDRESS={}\n", backend.address),
        )
        .listener("web", web)
        .start();
    let mut client = Peer::connect(address);
    client.send("GET /none HTTP/1.1\r\nHost: b.test\r\n\r\n");
    client.response().assert_refusal(404, "no_route");
    assert_eq!(daemon.record("/none")["reason"], "no_route");
    // The connection is as good as before.
    client.send("GET /some HTTP/1.1\r\nHost: a.test\r\n\r\n");
    let (mut peer, _) = backend.take();
    peer.answer("some");
    assert_eq!(client.response().text(), "some");
}

#[test]
fn clients_and_backends_on_unix_sockets() {
    let setup = Setup::without_listener();
    let door = setup.path("http.sock");
    let backend = Backend::unix(setup.path("app.sock"));
    let socket = std::os::unix::net::UnixListener::bind(&door).unwrap();
    let daemon = setup.set("BACKEND_ADDRESS", &backend.address).listener("http", socket).start();
    let mut client = Peer::connect_unix(&door);
    client.send("GET /u HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let (mut peer, request) = backend.take();
    assert_eq!(request.head.field("Host"), Some("localhost"));
    assert_eq!(request.head.field("X-Forwarded-For"), Some("unix:"));
    peer.answer("unix");
    assert_eq!(client.response().text(), "unix");
    client.get("/again");
    peer.request();
    peer.answer("again");
    assert_eq!(client.response().text(), "again");
    let record = daemon.record("/again");
    assert_eq!(record["client"], "unix:");
    assert_eq!(record["client_port"], Value::Null);
    assert_eq!(record["backend"], backend.address);
}

#[test]
fn clients_and_backends_over_ipv6() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: this machine has no ::1");
        return;
    }
    let backend = Backend::at("[::1]:0");
    let socket = std::net::TcpListener::bind("[::1]:0").unwrap();
    let address = socket.local_addr().unwrap();
    let daemon = Setup::without_listener().set("BACKEND_ADDRESS", &backend.address).listener("http", socket).start();
    let mut client = Peer::connect(address);
    client.send(format!("GET /six HTTP/1.1\r\nHost: {address}\r\n\r\n"));
    let (mut peer, request) = backend.take();
    assert_eq!(request.head.field("Host"), Some(address.to_string().as_str()));
    assert_eq!(request.head.field("X-Forwarded-For"), Some("::1"));
    peer.answer("six");
    assert_eq!(client.response().text(), "six");
    assert_eq!(daemon.record("/six")["client"], "::1");
}

#[test]
fn an_ipv4_client_of_a_dual_listener_has_one_address_form() {
    let Ok(socket) = std::net::TcpListener::bind("[::]:0") else {
        eprintln!("skipped: this machine has no IPv6");
        return;
    };
    let backend = Backend::new();
    let port = socket.local_addr().unwrap().port();
    let _daemon = Setup::without_listener().set("BACKEND_ADDRESS", &backend.address).listener("http", socket).start();
    let mut client = Peer::connect(([127, 0, 0, 1], port).into());
    client.get("/");
    let (mut peer, request) = backend.take();
    assert_eq!(request.head.field("X-Forwarded-For"), Some("127.0.0.1"));
    peer.answer("");
    client.response();
}

#[test]
fn the_built_in_backend_shows_the_request() {
    let daemon = Setup::new().start();
    let mut client = daemon.connect();
    client.send_body("POST", "/shown?x=1", b"hello");
    let page: Value = serde_json::from_slice(&client.response().body).unwrap();
    assert_eq!(page["method"], "POST");
    assert_eq!(page["target"], "/shown?x=1");
    assert_eq!(page["body"], "hello");
    client.send("GET / HTTP/1.1\r\nHost: door.test\r\nAccept: text/html\r\n\r\n");
    let response = client.response();
    assert_eq!(response.head.field("Content-Type"), Some("text/html; charset=utf-8"));
    assert!(response.text().contains("door.test"));
    client.send("HEAD / HTTP/1.1\r\nHost: door.test\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(client.head().status(), 100);
    client.send("ok");
    assert!(client.response().text().contains("\"ok\""));
    assert_eq!(daemon.record("/shown")["backend"], "builtin:echo");
}

//! HTTP/2 as it is agreed on with TLS (RFC 9113 §3.2).

use std::sync::Arc;

use bytes::Bytes;

use crate::backend::Backend;
use crate::http2::client::{Client, request};
use crate::tls::issued::Authority;
use crate::tls::secured::{NAME, Secured};

fn agreeing(secured: &Secured, protocols: &[&[u8]]) -> Arc<rustls::ClientConfig> {
    let mut config = (*secured.client).clone();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

#[test]
fn clients_that_agree_on_it_speak_it_and_the_backend_is_told_how_they_came() {
    let backend = Backend::new();
    let secured = Secured::before(&backend.address, |setup| setup.set("WORKERS", 1));
    let client = Client::secured(secured.address, agreeing(&secured, &[b"h2", b"http/1.1"]), NAME);
    let body: Vec<u8> = (0..500_000_u32).map(|at| (at / 3) as u8).collect();
    let mut exchange = client.send(request("POST", "/up", &[]), false);
    exchange.body.send_data(Bytes::from(body.clone()), true).unwrap();
    let mut peer = backend.accept();
    let head = peer.head();
    assert_eq!((head.field("X-Forwarded-Proto"), head.field("Via")), (Some("https"), Some("2.0 doorward")));
    assert!(peer.chunked(body.len()) == body);
    peer.expect("0\r\n\r\n");
    peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()));
    peer.send(&body);
    assert!(exchange.answer().body == body);
    // All at once, answered the other way round.
    let many: Vec<_> = (0..20).map(|turn| client.get(&format!("/{turn}"))).collect();
    let mut peers = vec![(peer.request(), peer)];
    peers.extend((1..20).map(|_| backend.take()).map(|(peer, request)| (request, peer)));
    for (request, peer) in peers.iter_mut().rev() {
        peer.answer(request.head.line.split(' ').nth(1).unwrap());
    }
    for (turn, exchange) in many.into_iter().enumerate() {
        assert_eq!(exchange.answer().text(), format!("/{turn}"));
    }
    let record = secured.daemon.record("/up");
    assert_eq!((&record["version"], &record["listener"]), (&"2".into(), &"https".into()));
}

/// Browsers use a connection for every host that its certificate names (RFC 9113 §9.1.1).
#[test]
fn a_connection_that_is_used_for_another_host_crosses_no_policy() {
    let backend = Backend::new();
    let secured = Secured::before(&backend.address, |setup| {
        let ca = setup.path("ca.pem");
        std::fs::write(&ca, &Authority::new().pem).unwrap();
        setup.route("10-asks.env", &format!("MATCH_HOST=asks.test\nTLS_CLIENT_CA={}\n", ca.display()))
    });
    let client = Client::secured(secured.address, agreeing(&secured, &[b"h2"]), NAME);
    let asked = http::Request::get("https://asks.test/private").body(()).unwrap();
    client.send(asked, true).answer().assert_refusal(421, "misdirected");
    let exchange = client.get("/here");
    backend.take().0.answer("served");
    assert_eq!(exchange.answer().text(), "served");
    assert_eq!(secured.daemon.record("/private")["reason"], "misdirected");
}

#[test]
fn it_is_not_agreed_on_where_it_is_off_nor_begun_without_agreement() {
    let backend = Backend::new();
    let secured = Secured::before(&backend.address, |setup| setup.set("HTTP2", "off"));
    let client = crate::tls::secured::Client::over(
        crate::daemon::connect(secured.address),
        &agreeing(&secured, &[b"h2", b"http/1.1"]),
    );
    assert_eq!(client.alpn(), Some(&b"http/1.1"[..]));
    let secured = Secured::before(&backend.address, |setup| setup);
    let mut client = secured.connect();
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let (head, _) = client.response();
    assert!(head.starts_with("HTTP/1.1 505 "), "{head}");
}

#[test]
fn browsers_are_told_to_stay_by_tls_over_http_2_too() {
    let backend = Backend::new();
    let secured = Secured::before(&backend.address, |setup| {
        setup
            .set("HSTS", "1h,includeSubDomains")
            .route("none.env", "MATCH_PATH=/none\nHSTS=off\n")
            .route("gone.env", "MATCH_PATH=/gone\nREDIRECT=/elsewhere\n")
    });
    let client = Client::secured(secured.address, agreeing(&secured, &[b"h2"]), NAME);
    const OURS: &str = "max-age=3600; includeSubDomains";
    let told = |answer: &http::HeaderMap| -> Vec<String> {
        answer.get_all("strict-transport-security").iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    };
    for (path, said, expected) in [
        ("/", "", vec![OURS]),
        ("/", "Strict-Transport-Security: max-age=7\r\n", vec!["max-age=7"]),
        ("/none", "", vec![]),
    ] {
        let exchange = client.get(path);
        backend.take().0.send(format!("HTTP/1.1 200 OK\r\n{said}Content-Length: 0\r\n\r\n"));
        assert_eq!(told(&exchange.answer().fields), expected, "{path}, {said}");
    }
    assert_eq!(told(&client.get("/gone").answer().fields), [OURS]);
    let plain = Client::connect(secured.daemon.address());
    let exchange = plain.get("/");
    backend.take().0.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert!(told(&exchange.answer().fields).is_empty(), "nobody stays by TLS who did not come by it");
}

//! Clients that show certificates, and those that should.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::issued::{self, Authority};
use crate::backend::Backend;
use crate::config::problems;
use crate::daemon::{connect, listener};
use crate::traffic::door::{Daemon, Setup};

/// A daemon whose route for `a.test` wants certificates of clients, but not below `/open`.
struct Scene {
    daemon: Daemon,
    address: SocketAddr,
    backend: Backend,
    authority: Authority,
}

impl Scene {
    fn new(more: &str) -> Scene {
        Scene::with(more, None)
    }

    /// With other backends than the test's own.
    fn with(more: &str, backends: Option<&str>) -> Scene {
        let (authority, backend, setup) = (Authority::new(), Backend::new(), Setup::new());
        let (tls, ca, crl) = (setup.path("tls"), setup.path("ca.pem"), setup.path("crl.pem"));
        issued::write(&tls, "door", &authority.issue(&["a.test", "b.test"], 1, 90));
        fs::write(&ca, &authority.pem).unwrap();
        fs::write(&crl, authority.revoke(&[66])).unwrap();
        let (socket, address) = listener();
        let asks = format!("TLS_CLIENT_CA={}\nTLS_CLIENT_CRL={}\n{more}", ca.display(), crl.display());
        let daemon = setup
            .listener("https", socket)
            .set("TLS_CERTIFICATE", tls.display())
            .set("BACKEND_ADDRESS", backends.unwrap_or(&backend.address))
            .route("10-a.env", &format!("MATCH_HOST=a.test\n{asks}"))
            .route("20-open.env", "MATCH_HOST=a.test\nMATCH_PATH=/open\n")
            .start();
        Scene { daemon, address, backend, authority }
    }

    /// A client that shows a certificate with this serial number, or none.
    fn client(&self, serial: Option<u64>) -> Arc<ClientConfig> {
        let pair = serial.map(|serial| self.authority.issue(&["client.test"], serial, 90));
        Arc::new(self.authority.client_showing(pair.as_ref()))
    }

    /// A connection for the server name `name`.
    fn open(&self, client: &Arc<ClientConfig>, name: &str) -> Secure {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        Secure(StreamOwned::new(ClientConnection::new(Arc::clone(client), name).unwrap(), connect(self.address)))
    }
}

struct Secure(StreamOwned<ClientConnection, TcpStream>);

impl Secure {
    fn send(&mut self, host: &str, path: &str, fields: &str) -> io::Result<()> {
        write!(self.0, "GET {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")?;
        self.0.flush()
    }

    /// The head of the answer; its body, which has a length, is read.
    fn answer(&mut self) -> io::Result<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte)?;
            head.extend(byte);
        }
        let head = String::from_utf8(head).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap_or("0");
        self.0.read_exact(&mut vec![0; length.parse().unwrap()])?;
        Ok(head)
    }

    /// The answer to a request that no backend of the test sees.
    fn answered(&mut self, host: &str, path: &str) -> String {
        self.send(host, path, "").unwrap();
        self.answer().unwrap()
    }
}

#[test]
fn a_route_wants_a_certificate_and_another_connection_where_the_policy_is_another() {
    let scene = Scene::new("");
    let (anybody, known) = (scene.client(None), scene.client(Some(5)));
    let mut client = scene.open(&anybody, "a.test");
    let head = client.answered("a.test", "/private");
    assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{head}");
    assert!(head.contains("error=http_request_denied; details=\"client_certificate_required\""), "{head}");
    assert_eq!(scene.daemon.record("/private")["reason"], "client_certificate_required");
    // The other route of this host asks for nothing.
    client.send("a.test", "/open", "").unwrap();
    scene.backend.take().0.answer_last("x");
    assert!(client.answer().unwrap().starts_with("HTTP/1.1 200 "));

    // What was shown for one name, or not, says nothing for another.
    for (config, name, host, path) in [
        (&anybody, "b.test", "a.test", "/1"),
        (&known, "a.test", "b.test", "/2"),
        (&known, "b.test", "A.test:443", "/3"),
    ] {
        let head = scene.open(config, name).answered(host, path);
        assert!(head.starts_with("HTTP/1.1 421 Misdirected Request\r\n"), "{name} {host} {head}");
        assert_eq!(scene.daemon.record(path)["reason"], "misdirected");
    }
    // In clear nobody can show anything.
    let mut plain = scene.daemon.connect();
    plain.send("GET /4 HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert!(plain.response().head.line.starts_with("HTTP/1.1 403 "));
    // But where it could.
    scene.daemon.reload("HTTPS_REDIRECT=on");
    plain.send("GET /6 HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert!(plain.response().head.line.starts_with("HTTP/1.1 308 "));
    // Who has come by TLS to a proxy before us is not sent on, and so is not let in either.
    scene.daemon.reload("TRUSTED_PROXIES=127.0.0.1");
    plain.send("GET /7 HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-Proto: https\r\n\r\n");
    assert!(plain.response().head.line.starts_with("HTTP/1.1 403 "));
    // A certificate that is revoked, or another authority's, ends the handshake.
    let stranger = Authority::new().issue(&["client.test"], 5, 90);
    for config in [scene.client(Some(66)), Arc::new(scene.authority.client_showing(Some(&stranger)))] {
        let mut client = scene.open(&config, "a.test");
        let refused = client.send("a.test", "/5", "").and_then(|()| client.answer());
        assert!(refused.is_err(), "{refused:?}");
    }
}

#[test]
fn a_backend_is_told_of_the_certificate_and_never_by_a_client() {
    let scene = Scene::new("TLS_CLIENT_FIELDS=both\n");
    let forged = "X-Client-Cert-Subject: CN=root\r\nx_client_cert_serial: 01\r\nClient-Cert: :AAAA:\r\n\
                  CLIENT_CERT_CHAIN: :AAAA:\r\nX-Client-Cert-San: DNS:root\r\nX-Client-Cert-Fingerprint: 00\r\n";
    let told = |request: &crate::peer::Head| {
        let name = |line: &str| line.split(':').next().unwrap_or_default().replace('_', "-").to_ascii_lowercase();
        let lines = request.fields.iter().map(|(name, value)| format!("{name}: {value}"));
        lines.filter(|line| name(line).contains("client-cert")).collect::<Vec<_>>()
    };
    let mut client = scene.open(&scene.client(Some(5)), "a.test");
    client.send("a.test", "/", forged).unwrap();
    let (mut peer, request) = scene.backend.take();
    let lines = told(&request.head);
    assert_eq!(
        lines[..3],
        ["X-Client-Cert-Subject: CN=leaf", "X-Client-Cert-San: DNS:client.test", "X-Client-Cert-Serial: 05",]
    );
    assert!(
        lines[3].starts_with("X-Client-Cert-Fingerprint: ") && lines[4].starts_with("Client-Cert: :MII"),
        "{lines:?}"
    );
    assert_eq!(lines.len(), 5);
    peer.answer_last("x");
    client.answer().unwrap();
    // Nor is it on the other routes, whoever comes, and not behind a body.
    let chunked =
        format!("Transfer-Encoding: chunked\r\n{forged}\r\n1\r\nx\r\n0\r\nX-Client-Cert-Serial: 01\r\nX-T: 1\r\n");
    let mut plain = scene.daemon.connect();
    for (host, path) in [("a.test", "/open"), ("c.test", "/")] {
        plain.send(format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n{chunked}\r\n"));
        let mut peer = scene.backend.accept();
        assert_eq!(told(&peer.head()), [""; 0], "{host}");
        peer.expect("1\r\nx\r\n0\r\nX-T: 1\r\n\r\n");
        peer.answer_last("x");
        plain.response();
    }
}

#[test]
fn a_list_that_changes_ends_what_was_known_of_clients() {
    let scene = Scene::with("", Some("builtin:echo"));
    let client = scene.client(Some(5));
    let mut before = scene.open(&client, "a.test");
    assert!(before.answered("a.test", "/1").starts_with("HTTP/1.1 200 "));
    // Without a reload, as certificates are renewed.
    fs::write(scene.daemon.folder().join("crl.pem"), scene.authority.revoke(&[5, 66])).unwrap();
    let until = std::time::Instant::now() + crate::daemon::DEADLINE;
    loop {
        let head = before.answered("a.test", "/2");
        if head.starts_with("HTTP/1.1 421 ") {
            break;
        }
        assert!(head.starts_with("HTTP/1.1 200 ") && std::time::Instant::now() < until, "{head}");
    }
    // The session that the client has is not resumed, and its certificate is not taken any more.
    let mut after = scene.open(&client, "a.test");
    let refused = after.send("a.test", "/3", "").and_then(|()| after.answer());
    assert!(refused.is_err(), "{refused:?}");
}

#[test]
fn routes_of_a_host_trust_the_same_authorities() {
    let a = "MATCH_HOST=a.test\nMATCH_PATH=/x\nTLS_CLIENT_CA=/one.pem\n";
    let other = "MATCH_HOST=*.test\nTLS_CLIENT_CA=/two.pem\n";
    let clash = "routes.d/b.env:2: `TLS_CLIENT_CA`: host `a.test` is served by route `a` too, which trusts others to \
                 vouch for clients; routes of a host name the same ones, or `off`";
    assert_eq!(problems(&[("config.env", ""), ("routes.d/a.env", a), ("routes.d/b.env", other)]), [clash]);
    let tcp = "MATCH_LISTENER=db\nMODE=tcp\n";
    let open = "routes.d/a.env:2: `MODE`: with `MODE=tcp` no client is asked for a certificate; `TLS_CLIENT_CA=off` says \
                that this is meant";
    assert_eq!(problems(&[("config.env", "TLS_CLIENT_CA=/one.pem\n"), ("routes.d/a.env", tcp)]), [open]);
    let field = "config.env:1: `SET_REQUEST_HEADERS`: `x_client_cert_serial` is what `TLS_CLIENT_FIELDS` decides on";
    assert_eq!(problems(&[("config.env", "SET_REQUEST_HEADERS=\"x_client_cert_serial: 1\"\n")]), [field]);
}

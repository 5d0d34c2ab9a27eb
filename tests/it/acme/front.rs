//! A server before Pebble that gives advice on renewals, which Debian's release does not,
//! and refuses what a test wants refused.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::pebble::Pebble;

/// The server; its threads end with the test.
pub struct Front {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    /// What it was asked for advice on.
    advice: Vec<String>,
    orders: Vec<Value>,
    /// The kind and the detail of the problem that orders meet.
    refuses: Option<(&'static str, &'static str)>,
}

struct Message {
    line: String,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Front {
    pub fn of(pebble: &Pebble) -> Front {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let provider = doorward::tls::provider;
        let key = PrivateKeyDer::from_pem_file(pebble.path("own.key")).unwrap();
        let own = vec![CertificateDer::from_pem_file(pebble.path("own.pem")).unwrap()];
        let server = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let server = Arc::new(server.with_no_client_auth().with_single_cert(own, key).unwrap());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pebble.path("ca.pem")).unwrap()).unwrap();
        let client = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let client = Arc::new(client.with_root_certificates(roots).with_no_client_auth());
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (behind, front) = (pebble.address(), Front { address, seen: Arc::clone(&seen) });
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (server, client, seen) = (Arc::clone(&server), Arc::clone(&client), Arc::clone(&seen));
                std::thread::spawn(move || {
                    let connection = ServerConnection::new(server).unwrap();
                    let mut near = BufReader::new(StreamOwned::new(connection, stream.unwrap()));
                    // One that breaks off has its client end as well.
                    while let Some(request) = read(&mut near) {
                        let answer = serve(request, address, behind, &client, &seen);
                        if near.get_mut().write_all(&answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        front
    }

    pub fn directory(&self) -> String {
        format!("https://{}/dir", self.address)
    }

    /// The certificates that it was asked for advice on.
    pub fn asked_for_advice(&self) -> Vec<String> {
        self.seen.lock().unwrap().advice.clone()
    }

    /// The orders that came.
    pub fn orders(&self) -> Vec<Value> {
        self.seen.lock().unwrap().orders.clone()
    }

    /// Refuses orders from now on, and wants to be left alone for 7777 s.
    pub fn refuse_orders(&self, kind: &'static str, detail: &'static str) {
        self.seen.lock().unwrap().refuses = Some((kind, detail));
    }
}

/// Answers a request: by itself, or by what the server behind it says.
fn serve(
    request: Message,
    address: SocketAddr,
    behind: SocketAddr,
    client: &Arc<ClientConfig>,
    seen: &Mutex<Seen>,
) -> Vec<u8> {
    let target = request.line.split(' ').nth(1).unwrap().to_owned();
    if let Some(certificate) = target.strip_prefix("/renewal-info/") {
        seen.lock().unwrap().advice.push(certificate.to_owned());
        let window = json!({ "start": "2020-01-01T00:00:00Z", "end": "2020-01-02T00:00:00Z" });
        let fields = [("Retry-After".to_owned(), "21600".to_owned())];
        return answer("HTTP/1.1 200 OK", &fields, json!({ "suggestedWindow": window }).to_string().as_bytes());
    }
    if target == "/order-plz" {
        let message: Value = serde_json::from_slice(&request.body).unwrap();
        let order = BASE64_URL_SAFE_NO_PAD.decode(message["payload"].as_str().unwrap()).unwrap();
        let mut seen = seen.lock().unwrap();
        seen.orders.push(serde_json::from_slice(&order).unwrap());
        if let Some((kind, detail)) = seen.refuses {
            let problem = json!({ "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail });
            let fields = [("Content-Type", "application/problem+json"), ("Retry-After", "7777")];
            let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
            return answer("HTTP/1.1 403 Forbidden", &fields, problem.to_string().as_bytes());
        }
    }
    let name = ServerName::from(behind.ip());
    let connection = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut far = StreamOwned::new(connection, TcpStream::connect(behind).unwrap());
    far.write_all(&answer(&request.line, &request.fields, &request.body)).unwrap();
    let mut reply = read(&mut BufReader::new(far)).unwrap();
    if target == "/dir" {
        let mut directory: Value = serde_json::from_slice(&reply.body).unwrap();
        directory["renewalInfo"] = format!("https://{address}/renewal-info").into();
        reply.body = directory.to_string().into_bytes();
    }
    answer(&reply.line, &reply.fields, &reply.body)
}

fn answer(line: &str, fields: &[(String, String)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{line}\r\n").into_bytes();
    for (name, value) in fields {
        bytes.extend(format!("{name}: {value}\r\n").into_bytes());
    }
    bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes());
    bytes.extend(body);
    bytes
}

/// Reads a message with its body; the framing of what is sent on is another.
fn read(from: &mut BufReader<impl Read>) -> Option<Message> {
    let mut line = || {
        let mut line = String::new();
        from.read_line(&mut line).ok().filter(|read| *read > 0)?;
        Some(line.trim_end().to_owned())
    };
    let first = line()?;
    let mut fields = Vec::new();
    let (mut length, mut chunked) = (0, false);
    loop {
        let field = line()?;
        let Some((name, value)) = field.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "transfer-encoding" => chunked = true,
            _ => fields.push((name.to_owned(), value.to_owned())),
        }
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            let mut size = String::new();
            from.read_line(&mut size).ok()?;
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            from.read_exact(&mut chunk).ok()?;
            body.extend(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else if !first.contains(" 204 ") {
        body.resize(length, 0);
        from.read_exact(&mut body).ok()?;
    }
    Some(Message { line: first, fields, body })
}

//! TLS before any backend of a test: it takes the TLS off and passes the bytes on.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{HandshakeKind, RootCertStore, ServerConfig, SupportedProtocolVersion, crypto::aws_lc_rs};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::daemon::DEADLINE;
use crate::tls::issued::Authority;

/// Goes on to the end of the test.
pub struct Front {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

/// What it has seen.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// Handshakes that were whole ones.
    pub full: usize,
    /// Handshakes that resumed a session.
    pub resumed: usize,
    /// Handshakes that failed.
    pub failed: usize,
    /// The name that was last asked for.
    pub name: Option<String>,
    /// The protocol that was last agreed on.
    pub protocol: Option<Vec<u8>>,
    /// The certificate that was last shown.
    pub client: Option<CertificateDer<'static>>,
}

struct Shared {
    config: Mutex<Arc<ServerConfig>>,
    abrupt: bool,
    seen: Mutex<Seen>,
    more: Condvar,
}

impl Front {
    /// Before the backend at this address.
    pub fn before(backend: SocketAddr, config: ServerConfig) -> Front {
        Front::make(backend, config, false)
    }

    /// The same, but it ends connections without notice.
    pub fn abrupt(backend: SocketAddr, config: ServerConfig) -> Front {
        Front::make(backend, config, true)
    }

    fn make(backend: SocketAddr, config: ServerConfig, abrupt: bool) -> Front {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared {
            config: Mutex::new(Arc::new(config)),
            abrupt,
            seen: Mutex::default(),
            more: Condvar::new(),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                while let Ok((socket, _)) = listener.accept().await {
                    tokio::spawn(serve(socket, backend, Arc::clone(&serving)));
                }
            });
        });
        Front { address, shared }
    }

    /// As `BACKEND_ADDRESS` has it.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Shows another certificate from now on, and knows no session any more.
    pub fn set(&self, config: ServerConfig) {
        *self.shared.config.lock().unwrap() = Arc::new(config);
    }

    /// What it has seen so far.
    pub fn seen(&self) -> Seen {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Waits until what it has seen is as wanted.
    #[track_caller]
    pub fn wait(&self, what: &str, wanted: impl Fn(&Seen) -> bool) {
        let until = Instant::now() + DEADLINE;
        let mut seen = self.shared.seen.lock().unwrap();
        while !wanted(&seen) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never came true: {what}: {seen:?}");
            seen = self.shared.more.wait_timeout(seen, left).unwrap().0;
        }
    }
}

impl Shared {
    fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap());
        self.more.notify_all();
    }
}

async fn serve(socket: TcpStream, backend: SocketAddr, shared: Arc<Shared>) {
    let config = Arc::clone(&shared.config.lock().unwrap());
    socket.set_nodelay(true).unwrap();
    let Ok(mut secured) = TlsAcceptor::from(config).accept(socket).await else {
        return shared.note(|seen| seen.failed += 1);
    };
    let session = secured.get_ref().1;
    shared.note(|seen| {
        match session.handshake_kind() {
            Some(HandshakeKind::Resumed) => seen.resumed += 1,
            _ => seen.full += 1,
        }
        seen.name = session.server_name().map(str::to_owned);
        seen.protocol = session.alpn_protocol().map(<[u8]>::to_vec);
        seen.client =
            session.peer_certificates().and_then(|chain| chain.first()).map(|first| first.clone().into_owned());
    });
    let mut plain = TcpStream::connect(backend).await.unwrap();
    plain.set_nodelay(true).unwrap();
    if shared.abrupt {
        let mut bytes = vec![0; 64 * 1024];
        let asked = secured.read(&mut bytes).await.unwrap();
        plain.write_all(&bytes[..asked]).await.unwrap();
        while let Ok(answered @ 1..) = plain.read(&mut bytes).await {
            secured.write_all(&bytes[..answered]).await.unwrap();
        }
        // The socket ends in order, TLS does not.
        secured.get_mut().0.shutdown().await.unwrap();
        return;
    }
    let _ = copy_bidirectional(&mut secured, &mut plain).await;
}

/// Shows this certificate, of a pair in PEM, to everybody.
pub fn showing(pair: &(String, String)) -> ServerConfig {
    server(None, pair)
}

/// The same, to those alone for whom an authority vouches. In TLS 1.2 a client learns within
/// the handshake that it is none of them, in TLS 1.3 when it reads.
pub fn showing_to(
    authority: &Authority,
    pair: &(String, String),
    version: &'static SupportedProtocolVersion,
) -> ServerConfig {
    server(Some((authority, version)), pair)
}

/// The only certificate in PEM.
pub fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn server(
    clients: Option<(&Authority, &'static SupportedProtocolVersion)>,
    (certificate, key): &(String, String),
) -> ServerConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let version = clients.map_or(&TLS13, |(_, version)| version);
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[version]).unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some((authority, _)) => {
            let mut roots = RootCertStore::empty();
            roots.add(der(&authority.pem)).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let mut config = builder.with_single_cert(vec![der(certificate)], key).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

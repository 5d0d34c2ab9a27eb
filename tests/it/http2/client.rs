//! A client that speaks HTTP/2 as it should, over a library, for tests that wait.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::daemon::DEADLINE;

/// A connection.
pub struct Client {
    runtime: Runtime,
    send: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
}

/// A request under way.
pub struct Exchange<'a> {
    client: &'a Client,
    response: ResponseFuture,
    /// The send half.
    pub body: SendStream<Bytes>,
}

/// Its two halves.
pub type Halves<'a> = (SendStream<Bytes>, Answering<'a>);

/// The head of an answer, and what follows it.
pub struct Answering<'a> {
    client: &'a Client,
    /// Its status.
    pub status: u16,
    /// Its fields.
    pub fields: HeaderMap,
    /// The receive half.
    pub body: RecvStream,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its fields.
    pub fields: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
    /// The fields behind it.
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The value of the only field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut all = self.fields.get_all(name).iter();
        let first = all.next().map(|value| value.to_str().unwrap());
        assert!(all.next().is_none(), "{name} stands more than once in {self:?}");
        first
    }

    /// Asserts that this is an answer of doorward's own for `reason`.
    #[track_caller]
    pub fn assert_refusal(&self, status: u16, reason: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let proxy_status = self.field("proxy-status").unwrap_or_default();
        assert!(proxy_status.ends_with(&format!("details=\"{reason}\"")), "{reason} in {self:?}");
        assert!(self.field("date").is_some() && self.field("content-length").is_some(), "{self:?}");
    }
}

/// A request of this method and path, for `door.test`.
pub fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().method(method).uri(format!("http://door.test{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

impl Client {
    /// Connects with prior knowledge.
    pub fn connect(address: SocketAddr) -> Self {
        Self::with(address, &h2::client::Builder::new())
    }

    /// The same with settings.
    pub fn with(address: SocketAddr, builder: &h2::client::Builder) -> Self {
        Self::over(builder, TcpStream::connect(address))
    }

    /// Connects by TLS to whom has a certificate for `name`.
    pub fn secured(address: SocketAddr, config: Arc<rustls::ClientConfig>, name: &'static str) -> Self {
        Self::over(&h2::client::Builder::new(), async move {
            let socket = TcpStream::connect(address).await?;
            let stream = TlsConnector::from(config).connect(name.try_into().unwrap(), socket).await?;
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            Ok(stream)
        })
    }

    fn over<T>(builder: &h2::client::Builder, connect: impl Future<Output = io::Result<T>>) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (send, driver) = runtime.block_on(async {
            let (send, connection) = builder.handshake(connect.await.unwrap()).await.unwrap();
            (send, tokio::spawn(connection))
        });
        Self { runtime, send, driver }
    }

    /// Waits for something, but not for ever.
    #[track_caller]
    pub fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { timeout(DEADLINE, what).await.expect("in time") })
    }

    /// Sends a request's head; `ends` says that it has no body.
    #[track_caller]
    pub fn send(&self, request: Request<()>, ends: bool) -> Exchange<'_> {
        self.try_send(request, ends).unwrap()
    }

    /// The same, and says how that went.
    pub fn try_send(&self, request: Request<()>, ends: bool) -> Result<Exchange<'_>, h2::Error> {
        let mut ready = self.wait(self.send.clone().ready())?;
        let (response, body) = ready.send_request(request, ends)?;
        Ok(Exchange { client: self, response, body })
    }

    /// Sends a request without a body.
    #[track_caller]
    pub fn get(&self, path: &str) -> Exchange<'_> {
        self.send(request("GET", path, &[]), true)
    }

    /// How the connection ended.
    #[track_caller]
    pub fn ended(mut self) -> Result<(), h2::Error> {
        let driver = std::mem::replace(&mut self.driver, self.runtime.spawn(async { Ok(()) }));
        self.wait(driver).unwrap()
    }
}

impl<'a> Exchange<'a> {
    /// Waits for the answer's head.
    pub fn try_head(self) -> Result<Answering<'a>, h2::Error> {
        let response = self.client.wait(self.response)?;
        let (parts, body) = response.into_parts();
        Ok(Answering { client: self.client, status: parts.status.as_u16(), fields: parts.headers, body })
    }

    /// The same for one that comes.
    #[track_caller]
    pub fn head(self) -> Answering<'a> {
        self.try_head().unwrap()
    }

    /// The same, with the send half, for what goes on in both directions.
    #[track_caller]
    pub fn both(self) -> Halves<'a> {
        let Exchange { client, response, body } = self;
        let (parts, receive) = client.wait(response).unwrap().into_parts();
        (body, Answering { client, status: parts.status.as_u16(), fields: parts.headers, body: receive })
    }

    /// Waits for the whole answer.
    #[track_caller]
    pub fn answer(self) -> Answer {
        self.head().answer()
    }

    /// Whether no answer comes for a moment.
    pub fn is_silent(&mut self, moment: Duration) -> bool {
        self.client.runtime.block_on(async { timeout(moment, &mut self.response).await.is_err() })
    }
}

impl Answering<'_> {
    /// The next piece of the body, whose window is opened again; `None` at its end, which may
    /// come in a frame of its own.
    pub fn piece(&mut self) -> Option<Result<Bytes, h2::Error>> {
        let mut piece = self.client.wait(self.body.data());
        while matches!(&piece, Some(Ok(piece)) if piece.is_empty()) {
            piece = self.client.wait(self.body.data());
        }
        if let Some(Ok(piece)) = &piece {
            let _ = self.body.flow_control().release_capacity(piece.len());
        }
        piece
    }

    /// Reads to the end.
    pub fn try_answer(mut self) -> Result<Answer, h2::Error> {
        let mut body = Vec::new();
        while let Some(piece) = self.piece() {
            body.extend_from_slice(&piece?);
        }
        let trailers = self.client.wait(self.body.trailers())?;
        Ok(Answer { status: self.status, fields: self.fields, body, trailers })
    }

    /// The same for an answer that is whole.
    #[track_caller]
    pub fn answer(self) -> Answer {
        self.try_answer().unwrap()
    }
}

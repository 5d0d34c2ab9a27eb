//! A service of gRPC and its client, over a library, with messages written by hand.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prost::Message as _;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::tokio_stream::{self, StreamExt as _};
use tonic::codegen::{BoxFuture, BoxStream, Context, Poll, Service};
use tonic::server::{self, NamedService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::daemon::DEADLINE;

/// The one kind of message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Text {
    /// What it says.
    #[prost(string, tag = "1")]
    pub text: String,
}

/// A message.
pub fn text(text: impl Into<String>) -> Text {
    Text { text: text.into() }
}

/// Messages in the encoding of protobuf.
#[derive(Clone, Default)]
pub struct Proto;

impl Codec for Proto {
    type Encode = Text;
    type Decode = Text;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Proto {
    type Item = Text;
    type Error = Status;

    fn encode(&mut self, item: Text, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(into).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Proto {
    type Item = Text;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Text>, Status> {
        Text::decode(from).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// What a service has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Calls that are held, and those that were given up while they were.
    pub held: AtomicUsize,
    pub given_up: AtomicUsize,
}

impl Seen {
    /// Waits until so many calls are held and so many were given up.
    pub async fn wait(&self, held: usize, given_up: usize) {
        let seen = || (self.held.load(Ordering::SeqCst), self.given_up.load(Ordering::SeqCst));
        let until = tokio::time::Instant::now() + DEADLINE;
        while seen() != (held, given_up) {
            assert!(tokio::time::Instant::now() < until, "{:?} in place of {:?}", seen(), (held, given_up));
            tokio::task::yield_now().await;
        }
    }
}

struct Held(Arc<Seen>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::SeqCst);
        self.0.given_up.fetch_add(1, Ordering::SeqCst);
    }
}

/// The service `test.Echo`.
#[derive(Clone)]
struct Echo(Arc<Seen>);

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let most = 64 << 20;
            let mut grpc = server::Grpc::new(Proto).max_decoding_message_size(most);
            Ok(match request.uri().path() {
                "/test.Echo/Say" => grpc.unary(Say(service.0), request).await,
                "/test.Echo/Join" => grpc.client_streaming(Join, request).await,
                "/test.Echo/Count" => grpc.server_streaming(Count, request).await,
                "/test.Echo/Talk" => grpc.streaming(Talk, request).await,
                path => Status::unimplemented(path).into_http(),
            })
        })
    }
}

/// Answers with what it is told; `fail` fails, `hold` is never answered.
struct Say(Arc<Seen>);

impl server::UnaryService<Text> for Say {
    type Response = Text;
    type Future = BoxFuture<Response<Text>, Status>;

    fn call(&mut self, request: Request<Text>) -> Self::Future {
        let seen = Arc::clone(&self.0);
        Box::pin(async move {
            match request.get_ref().text.as_str() {
                "fail" => Err(Status::failed_precondition("not like this")),
                "hold" => {
                    seen.held.fetch_add(1, Ordering::SeqCst);
                    let _held = Held(seen);
                    std::future::pending().await
                }
                _ => {
                    let asked = request.metadata().get("x-asked").cloned();
                    let mut response = Response::new(request.into_inner());
                    asked.map(|asked| response.metadata_mut().insert("x-asked", asked));
                    Ok(response)
                }
            }
        })
    }
}

/// Joins all that it is told.
struct Join;

impl server::ClientStreamingService<Text> for Join {
    type Response = Text;
    type Future = BoxFuture<Response<Text>, Status>;

    fn call(&mut self, request: Request<Streaming<Text>>) -> Self::Future {
        Box::pin(async move {
            let mut joined = String::new();
            let mut parts = request.into_inner();
            while let Some(part) = parts.message().await? {
                joined += &part.text;
            }
            Ok(Response::new(text(joined)))
        })
    }
}

/// Counts up to the number that it is told, and fails then.
struct Count;

impl server::ServerStreamingService<Text> for Count {
    type Response = Text;
    type ResponseStream = BoxStream<Text>;
    type Future = BoxFuture<Response<BoxStream<Text>>, Status>;

    fn call(&mut self, request: Request<Text>) -> Self::Future {
        let most: u32 = request.get_ref().text.parse().unwrap();
        let counted = (0..most).map(|n| Ok(text(n.to_string()))).chain([Err(Status::out_of_range("all counted"))]);
        Box::pin(async move { Ok(Response::new(Box::pin(tokio_stream::iter(counted)) as BoxStream<Text>)) })
    }
}

/// Answers each message with the same, at once.
struct Talk;

impl server::StreamingService<Text> for Talk {
    type Response = Text;
    type ResponseStream = BoxStream<Text>;
    type Future = BoxFuture<Response<BoxStream<Text>>, Status>;

    fn call(&mut self, request: Request<Streaming<Text>>) -> Self::Future {
        Box::pin(async move {
            let echoed = request.into_inner().map(|said| said.map(|said| text(format!("{}!", said.text))));
            Ok(Response::new(Box::pin(echoed) as BoxStream<Text>))
        })
    }
}

/// Serves `test.Echo` for as long as the test lives.
pub fn serve() -> (SocketAddr, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let service = Echo(Arc::clone(&seen));
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            listener.set_nonblocking(true).unwrap();
            let incoming =
                TcpIncoming::from(tokio::net::TcpListener::from_std(listener).unwrap()).with_nodelay(Some(true));
            Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
    });
    (address, seen)
}

/// A client of `test.Echo`.
#[derive(Clone)]
pub struct Client(Grpc<Channel>);

impl Client {
    /// Connects with prior knowledge.
    pub async fn connect(address: SocketAddr) -> Self {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self(Grpc::new(channel).max_decoding_message_size(64 << 20))
    }

    async fn ready(&self) -> Grpc<Channel> {
        let mut grpc = self.0.clone();
        grpc.ready().await.unwrap();
        grpc
    }

    /// Says one thing and hears one.
    pub async fn say(&self, request: Request<Text>) -> Result<Response<Text>, Status> {
        self.ready().await.unary(request, "/test.Echo/Say".parse().unwrap(), Proto).await
    }

    /// Calls what the path names.
    pub async fn call(&self, path: &str) -> Result<Response<Text>, Status> {
        self.ready().await.unary(Request::new(text("")), path.parse().unwrap(), Proto).await
    }

    /// Says many things and hears one.
    pub async fn join(&self, said: Vec<Text>) -> Result<Response<Text>, Status> {
        let said = Request::new(tokio_stream::iter(said));
        self.ready().await.client_streaming(said, "/test.Echo/Join".parse().unwrap(), Proto).await
    }

    /// Says one thing and hears many.
    pub async fn count(&self, most: u32) -> Result<Streaming<Text>, Status> {
        let request = Request::new(text(most.to_string()));
        let counted = self.ready().await.server_streaming(request, "/test.Echo/Count".parse().unwrap(), Proto).await;
        counted.map(Response::into_inner)
    }

    /// Says and hears in turn.
    pub async fn talk(&self) -> (tokio::sync::mpsc::Sender<Text>, Streaming<Text>) {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let request = Request::new(ReceiverStream::new(receiver));
        let heard = self.ready().await.streaming(request, "/test.Echo/Talk".parse().unwrap(), Proto).await;
        (sender, heard.unwrap().into_inner())
    }
}

/// Runs a test's client, but not for ever.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, test).await.expect("in time") })
}

/// A request that its client gives up after a while.
pub fn within(limit: Duration, said: &str) -> Request<Text> {
    let mut request = Request::new(text(said));
    request.set_timeout(limit);
    request
}

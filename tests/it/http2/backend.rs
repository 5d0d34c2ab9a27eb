//! Backends that speak HTTP/2: one that answers by itself, over a library, and connections
//! on which a test writes single frames.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, SendResponse};
use http::{HeaderMap, Request, Response};
use tokio::sync::Semaphore;

use super::frames::{ACK, Frames, HEADERS, PREFACE, SETTINGS, frame};
use crate::backend::Backend;
use crate::daemon::DEADLINE;

/// A backend that answers by what it is asked for:
///
/// | path | answer |
/// | --- | --- |
/// | `/fields` | what it was asked, a line for each field |
/// | `/echo` | the request's body and trailers, as they come |
/// | `/hold` | nothing before [`Server::release`] |
/// | `/large` | a mebibyte |
/// | else | its path |
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    counts: Mutex<Counts>,
    more: Condvar,
    release: Semaphore,
}

/// What it has seen.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    /// Connections in all.
    pub connections: usize,
    /// Connections open now.
    pub open: usize,
    /// Requests in all.
    pub requests: usize,
    /// Requests that are held now.
    pub held: usize,
    /// Requests that were given up while they were held.
    pub given_up: usize,
}

impl Shared {
    fn note(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().unwrap());
        self.more.notify_all();
    }
}

impl Server {
    /// On 127.0.0.1 at a port of the kernel's choice.
    pub fn new() -> Self {
        Self::with(Builder::new())
    }

    /// The same with settings.
    pub fn with(builder: Builder) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), builder)
    }

    /// On a socket.
    pub fn on(listener: TcpListener, builder: Builder) -> Self {
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { counts: Mutex::default(), more: Condvar::new(), release: Semaphore::new(0) });
        let server = Self { address, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (socket, _) = listener.accept().await.unwrap();
                    socket.set_nodelay(true).unwrap();
                    let (builder, shared) = (builder.clone(), Arc::clone(&shared));
                    tokio::spawn(async move {
                        shared.note(|counts| {
                            (counts.connections, counts.open) = (counts.connections + 1, counts.open + 1)
                        });
                        if let Ok(mut connection) = builder.handshake::<_, Bytes>(socket).await {
                            while let Some(Ok((request, respond))) = connection.accept().await {
                                tokio::spawn(answer(Arc::clone(&shared), request, respond));
                            }
                        }
                        shared.note(|counts| counts.open -= 1);
                    });
                }
            });
        });
        server
    }

    /// Has one request that is held be answered.
    pub fn release(&self) {
        self.shared.release.add_permits(1);
    }

    /// What it has seen so far.
    pub fn counts(&self) -> Counts {
        *self.shared.counts.lock().unwrap()
    }

    /// Waits until what it has seen is as wanted.
    #[track_caller]
    pub fn wait(&self, what: &str, wanted: impl Fn(&Counts) -> bool) {
        let until = Instant::now() + DEADLINE;
        let mut counts = self.shared.counts.lock().unwrap();
        while !wanted(&counts) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never came true: {what}: {counts:?}");
            counts = self.shared.more.wait_timeout(counts, left).unwrap().0;
        }
    }
}

/// Counts a request as held for as long as it lives.
struct Held(Arc<Shared>, bool);

impl Drop for Held {
    fn drop(&mut self) {
        let given_up = usize::from(!self.1);
        self.0.note(|counts| (counts.held, counts.given_up) = (counts.held - 1, counts.given_up + given_up));
    }
}

/// What is wrong is what the daemon has to deal with; nothing is reported here.
async fn answer(shared: Arc<Shared>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    shared.note(|counts| counts.requests += 1);
    let (head, mut body) = request.into_parts();
    let ok = || Response::builder().status(200);
    let whole = |respond: &mut SendResponse<Bytes>, text: String| {
        if let Ok(mut stream) = respond.send_response(ok().body(()).unwrap(), false) {
            let _ = stream.send_data(text.into(), true);
        }
    };
    match head.uri.path() {
        "/fields" => {
            let mut text = format!("{} {}\n", head.method, head.uri);
            for (name, value) in &head.headers {
                text += &format!("{name}: {}\n", value.to_str().unwrap());
            }
            whole(&mut respond, text);
        }
        "/echo" => {
            let Ok(mut stream) = respond.send_response(ok().body(()).unwrap(), false) else { return };
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
                if stream.send_data(data, false).is_err() {
                    return;
                }
            }
            let trailers = body.trailers().await.ok().flatten();
            let _ = match trailers {
                Some(trailers) => stream.send_trailers(trailers),
                None => stream.send_data(Bytes::new(), true),
            };
        }
        "/hold" => {
            shared.note(|counts| counts.held += 1);
            let mut held = Held(Arc::clone(&shared), false);
            tokio::select! {
                permit = shared.release.acquire() => {
                    permit.unwrap().forget();
                    held.1 = true;
                    whole(&mut respond, "released".to_owned());
                }
                _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => {}
            }
        }
        "/large" => whole(&mut respond, "x".repeat(1 << 20)),
        "/trailers" => {
            let Ok(mut stream) = respond.send_response(ok().body(()).unwrap(), false) else { return };
            let _ = stream.send_data("body".into(), false);
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "7".parse().unwrap());
            trailers.insert("set-cookie", "not=here".parse().unwrap());
            let _ = stream.send_trailers(trailers);
        }
        "/interim" => {
            let early = Response::builder().status(103).header("link", "</a.css>").body(()).unwrap();
            let _ = respond.send_informational(early);
            whole(&mut respond, "after".to_owned());
        }
        "/nothing" => {
            let _ = respond.send_response(ok().body(()).unwrap(), true);
        }
        "/head" => {
            let _ = respond.send_response(ok().header("content-length", "5").body(()).unwrap(), true);
        }
        path => whole(&mut respond, path.to_owned()),
    }
}

/// Takes the daemon's next connection and exchanges settings, of which ours are these.
#[track_caller]
pub fn accept(backend: &Backend, settings: &[(u16, u32)]) -> Frames {
    let mut frames = Frames { peer: backend.accept() };
    frames.peer.expect(PREFACE);
    let theirs = frames.read();
    assert_eq!((theirs.kind, theirs.flags, theirs.stream), (SETTINGS, 0, 0));
    let settings: Vec<u8> =
        settings.iter().flat_map(|(key, value)| [&key.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frames.send([frame(SETTINGS, 0, 0, settings), frame(SETTINGS, ACK, 0, "")].concat());
    frames.await_frame("our settings' acknowledgement", |frame| frame.kind == SETTINGS && frame.flags == ACK);
    frames
}

/// Reads up to the head of the next request; returns its stream.
#[track_caller]
pub fn request(frames: &mut Frames) -> u32 {
    frames.await_frame("a request", |frame| frame.kind == HEADERS).stream
}

//! Tellers: the tasks that tell the stories of streams.
//!
//! Each stream has a task to itself for as long as its story takes. To make one is an
//! allocation of some five KiB and a way through the runtime's books, a good part of what a
//! small request costs at all; so one whose story is over waits here for another.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;

use super::client::Http2;
use super::head;
use super::server::PARTING;
use super::streams::{Open, Streams};
use crate::proxy::relay::Sink as _;
use crate::proxy::story::{self, Source};
use crate::proxy::worker::Worker;
use crate::proxy::{answer, connection};

/// Tasks of a worker that wait for a story, at most: a browser opens a hundred streams at once.
const IDLE: usize = 128;

/// What there is to tell.
pub struct Story {
    /// Who serves the connection.
    pub worker: Rc<Worker>,
    /// Where it comes from.
    pub source: Rc<Source>,
    /// What opened the stream.
    pub request: Request<RecvStream>,
    /// How to answer.
    pub respond: SendResponse<Bytes>,
    /// Its place in the connection's books.
    pub open: Open,
}

/// A worker's.
#[derive(Debug, Default)]
pub struct Tellers {
    idle: RefCell<Vec<Rc<Desk>>>,
}

/// Where a task finds what to tell.
#[derive(Default)]
struct Desk {
    story: RefCell<Option<Story>>,
    waker: Cell<Option<Waker>>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Tellers {
    /// Has a story told by a task that has nothing to do, or a new one.
    pub fn tell(self: &Rc<Self>, story: Story) {
        let idle = self.idle.borrow_mut().pop();
        let desk = idle.unwrap_or_else(|| self.hire());
        desk.story.replace(Some(story));
        if let Some(waker) = desk.waker.take() {
            waker.wake();
        }
    }

    /// Those that have nothing to do.
    #[cfg(test)]
    fn idle(&self) -> usize {
        self.idle.borrow().len()
    }

    fn hire(self: &Rc<Self>) -> Rc<Desk> {
        let desk = Rc::new(Desk::default());
        let (tellers, own) = (Rc::clone(self), Rc::clone(&desk));
        // In an allocation of its own: a task is moved about before it is begun.
        tokio::task::spawn_local(Box::pin(async move {
            loop {
                own.asked().await;
                // Taken out where it is told: it is some hundred bytes, and not moved for nothing.
                let Some(Story { worker, source, request, respond, open }) = own.story.take() else { continue };
                if tell(&worker, &source, request, respond, open.streams()).await == Told::Reset {
                    open.note_reset(worker.clock().millis());
                }
                drop(open);
                let mut idle = tellers.idle.borrow_mut();
                if idle.len() >= IDLE {
                    break;
                }
                idle.push(Rc::clone(&own));
            }
        }));
        desk
    }
}

impl Desk {
    /// Waits for a story.
    async fn asked(&self) {
        poll_fn(|cx| {
            if self.story.borrow().is_some() {
                return Poll::Ready(());
            }
            self.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

/// What became of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Whole,
    /// The client did not wait for its answer.
    Reset,
}

/// Tells the story of a stream.
async fn tell(
    worker: &Worker,
    source: &Source,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    streams: &Rc<Streams>,
) -> Told {
    let timer = worker.clock().timer();
    let (parts, stream) = request.into_parts();
    let ended = stream.is_end_stream();
    let limit = worker.generation().config.daemon.max_header_size;
    let mut client = match head::request(&parts, ended, limit) {
        Ok(head) => {
            drop(parts);
            let mut client = Http2::new(stream, ended, respond, &head, Rc::clone(streams));
            story::story(worker, source, &mut client, &head, &timer).await;
            client
        }
        Err(reason) => {
            let mut client = Http2::unread(stream, ended, respond, Rc::clone(streams));
            connection::note_refusal(worker, source, reason);
            answer::refusal(&mut client, reason, None, None, true);
            // A few hundred bytes; a client that takes not even these is let go.
            let _ = timer.within(Some(PARTING), poll_fn(|cx| client.poll_finish(cx))).await;
            client
        }
    };
    if client.has_left() { Told::Reset } else { Told::Whole }
}

#[cfg(test)]
mod tests {
    use super::{IDLE, Source, Story, Worker, tell};
    use crate::config::Config;
    use crate::proxy::http2::streams::Open;
    use crate::state::Generation;
    use crate::telemetry::{Peer, Text};
    use bytes::Bytes;
    use std::collections::BTreeMap;
    use std::rc::Rc;
    use tokio::io::DuplexStream;

    fn local(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    fn source() -> Source {
        Source { peer: Peer::Unix, address: Text::new("unix:"), listener: "http".into(), identity: None }
    }

    /// What a stream under way takes on the heap, beside what the crate holds of it, decides
    /// how many of them a host can have.
    #[test]
    fn a_stream_under_way_is_bounded() {
        local(async {
            let (worker, mut send, mut connection) = pair().await;
            let (_answer, _body) = send.send_request(http::Request::new(()), true).unwrap();
            let (request, respond) = connection.accept().await.unwrap().unwrap();
            let open = Open::alone();
            let size = std::mem::size_of_val(&tell(&worker, &source(), request, respond, open.streams()));
            assert!(size <= 5120, "a stream under way takes {size} bytes");
        });
    }

    /// A worker, and a connection whose streams it is to serve.
    async fn pair() -> (Rc<Worker>, h2::client::SendRequest<Bytes>, h2::server::Connection<DuplexStream, Bytes>) {
        let config = Config::assemble(None, Vec::new(), &BTreeMap::new()).unwrap();
        let worker = Worker::alone(Generation::build(1, config, &Default::default(), None));
        let (near, far) = tokio::io::duplex(1 << 20);
        let (client, server) = tokio::join!(h2::client::handshake(near), h2::server::handshake(far));
        let (send, driver) = client.unwrap();
        tokio::task::spawn_local(driver);
        (worker, send, server.unwrap())
    }

    #[test]
    fn a_task_tells_one_story_after_the_other_and_few_wait() {
        local(async {
            let (worker, send, mut connection) = pair().await;
            let source = Rc::new(source());
            for at_once in [1, 1, 20, 10, IDLE + 30] {
                let idle = worker.tellers().idle();
                let (mut answers, mut stories) = (Vec::new(), Vec::new());
                for _ in 0..at_once {
                    // Refused without a backend: nothing is served by this scheme.
                    let request = http::Request::builder().uri("ftp://a.test/").body(()).unwrap();
                    let mut send = send.clone().ready().await.unwrap();
                    answers.push(send.send_request(request, true).unwrap().0);
                    let (request, respond) = connection.accept().await.unwrap().unwrap();
                    let (worker, source, open) = (Rc::clone(&worker), Rc::clone(&source), Open::alone());
                    stories.push(Story { worker, source, request, respond, open });
                }
                for story in stories {
                    worker.tellers().tell(story);
                }
                for answer in answers {
                    tokio::select! {
                        answer = answer => assert_eq!(answer.unwrap().status(), 400),
                        _ = connection.accept() => panic!("the connection ended"),
                    }
                }
                assert_eq!(worker.tellers().idle(), idle.max(at_once).min(IDLE), "after {at_once} at once");
            }
        });
    }
}

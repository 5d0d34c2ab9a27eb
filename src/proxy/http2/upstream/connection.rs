//! Connection: one HTTP/2 connection to a backend, and the places on it.
//!
//! A task of its own drives it, from dialling to its end ([`Driver`]), so that it does not
//! depend on any one request. It takes requests once the backend has said by its SETTINGS
//! how many at once; one that speaks something else is found out before anybody has asked
//! it anything.
//!
//! Whether it is alive is asked, by a PING, when a request was not answered in time and
//! nothing else was heard meanwhile: until there is an answer, no further request is put
//! on it. No PING is sent without such a reason, since servers take regular ones for abuse
//! (gRPC proposal A8); a host that has vanished is found by TCP's keepalive.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, ResponseFuture, SendRequest};
use h2::{Error, Ping, PingPong, SendStream};
use http::Request;
use http::uri::Scheme;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::head;
use super::pool::Group;
use crate::balance::connections::IdleMark;
use crate::proxy::http2::guard::Guard;
use crate::proxy::http2::io::{Io, Watch};
use crate::proxy::http2::limits;
use crate::telemetry::Reason;
use crate::transport::clock::Clock;
use crate::transport::stream::Stream;

/// Requests on one connection at once, of those that the backend allows. More would have to
/// share one window, and all would end with it.
pub const STREAMS: usize = 100;

/// Bytes that each stream may have sent and we have not passed on.
const STREAM_WINDOW: u32 = 64 * 1024;

/// The same for all streams together: so many that clients which read slowly never stall
/// those whose answers come on the same connection.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * 100;

/// Small DATA frames that wait to be passed on, by what they cost beyond their bytes: some
/// hundred thousand. With more than that the connection is given up.
const SMALL_DATA: usize = 64 * 1024 * 1024;

/// Bytes of a head, with 32 for each field: twice what is taken, so that one which is too
/// large is told apart from one that can't be read.
const HEADER_LIST: u32 = 128 * 1024;

/// How long an answer to a PING may take.
const PONG: Duration = Duration::from_secs(3);

/// How long a connection that is not needed any more may take to say so.
const CLOSING: Duration = Duration::from_secs(1);

/// A connection, as its streams and the pool see it.
#[derive(Debug)]
pub struct Connection {
    /// What requests are sent by; none once it takes no more.
    handle: RefCell<Option<SendRequest<Bytes>>>,
    watch: Rc<Watch>,
    scheme: Scheme,
    /// Requests that have a place on it.
    active: Cell<usize>,
    /// Requests that it takes at once; 0 until the backend has said.
    most: Cell<usize>,
    /// Requests that it was given in all, and those of them that it has left out as it ended.
    begun: Cell<usize>,
    left_out: Cell<usize>,
    /// Requests that it is given in all.
    lasts: Cell<usize>,
    /// It has answered a request.
    answered: Cell<bool>,
    /// The backend was blamed for its end.
    blamed: Cell<bool>,
    /// Nobody knows whether it is alive.
    doubtful: Cell<bool>,
    pings: RefCell<Option<PingPong>>,
    /// When it has been idle for too long, if nothing is asked until then.
    until: Cell<u64>,
    /// Tells those who wait for a connection that this one has room, where there is a limit.
    mark: RefCell<Option<IdleMark>>,
    /// It is not worth waiting for.
    cut: Notify,
    /// Nothing is asked on it any more.
    done: Notify,
}

impl Connection {
    /// How many more requests it takes.
    #[must_use]
    pub fn room(&self) -> usize {
        let takes = !self.doubtful.get() && self.handle.borrow().is_some();
        let left = self.lasts.get().saturating_sub(self.begun.get());
        if takes { self.most.get().saturating_sub(self.active.get()).min(left) } else { 0 }
    }

    /// Whether it is one that answers, with room or without.
    #[must_use]
    pub fn serves(&self) -> bool {
        !self.doubtful.get() && self.handle.borrow().is_some() && self.most.get() > 0
    }

    /// Whether it takes another request.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// Whether it is still one: not closed, and not about to be.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let ready = |handle: &mut SendRequest<Bytes>| matches!(handle.poll_ready(&mut cx), Poll::Ready(Ok(())));
        self.handle.borrow_mut().as_mut().is_some_and(ready)
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.active.get() == 0
    }

    /// Whether it has been idle for too long at `now`.
    #[must_use]
    pub fn is_over(&self, now: u64) -> bool {
        self.is_idle() && now >= self.until.get()
    }

    /// Requests that it takes at once.
    #[must_use]
    pub fn most(&self) -> usize {
        self.most.get()
    }

    /// It is given so many requests in all, unless it goes on after the last of them.
    pub fn lasts_for(&self, requests: usize) {
        self.lasts.set(requests);
    }

    /// How many requests a connection lasts for, if this one has left some out, or goes on after
    /// the end of the last that it was to have, this `number`: it is then given twice as many.
    #[must_use]
    pub fn lasted(&self, number: usize) -> Option<usize> {
        let begun = self.begun.get();
        if self.left_out.get() > 0 {
            return Some(begun.saturating_sub(self.left_out.get()).max(1));
        }
        let outlived = number >= self.lasts.get() && self.is_sound();
        outlived.then(|| {
            self.lasts.set(begun.saturating_mul(2));
            self.lasts.get()
        })
    }

    /// It has left a request out.
    pub fn note_left_out(&self) {
        self.left_out.set(self.left_out.get() + 1);
    }

    /// It is idle from now on, and may be until then.
    pub fn rest(&self, until: u64) {
        self.until.set(until);
    }

    /// It takes no more requests, and ends with those that it has.
    pub fn retire(&self) {
        self.handle.take();
        self.mark.take();
        if self.is_idle() {
            self.done.notify_one();
        }
    }

    /// Marks it as one with room, or not; `None` where nobody has to know.
    pub fn mark(&self, mark: Option<impl FnOnce() -> IdleMark>) {
        let mut marked = self.mark.borrow_mut();
        match mark.filter(|_| self.has_room()) {
            Some(make) => drop(marked.get_or_insert_with(make)),
            None => *marked = None,
        }
    }

    /// Sends a request. One that `ended` has no body.
    ///
    /// # Errors
    /// When the connection takes no more.
    pub fn send(&self, request: Request<()>, ended: bool) -> Result<(ResponseFuture, SendStream<Bytes>), Error> {
        match &mut *self.handle.borrow_mut() {
            Some(handle) => handle.clone().send_request(request, ended).inspect(|_| self.watch.asked()),
            None => Err(h2::Reason::REFUSED_STREAM.into()),
        }
    }

    /// Whether the backend takes such a head: it may have said how large one may be.
    #[must_use]
    pub fn takes(&self, request: &Request<()>) -> bool {
        let most = self.watch.header_list().and_then(|most| usize::try_from(most).ok());
        most.is_none_or(|most| head::size(request) <= most)
    }

    /// The scheme of what is asked on it.
    #[must_use]
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// Bytes written on it so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.watch.written()
    }

    /// Bytes read on it so far.
    #[must_use]
    pub fn heard(&self) -> u64 {
        self.watch.heard()
    }

    /// An answer has come.
    pub fn note_answer(&self) {
        self.answered.set(true);
    }

    /// Whether an answer has ever come.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        self.answered.get()
    }

    /// Whether the backend is to be blamed for its end: by the first who asks.
    #[must_use]
    pub fn blame(&self) -> bool {
        !self.blamed.replace(true)
    }
}

/// A place on a connection, for one request.
#[derive(Debug)]
pub struct Place {
    group: Rc<Group>,
    connection: Rc<Connection>,
    /// Which of those that the connection was given.
    number: usize,
}

impl Place {
    /// Takes a place on a connection of the group, which must have room.
    #[must_use]
    pub fn new(group: Rc<Group>, connection: Rc<Connection>) -> Self {
        connection.active.set(connection.active.get() + 1);
        let number = connection.begun.get() + 1;
        connection.begun.set(number);
        Self { group, connection, number }
    }

    /// The connection.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Asks whether the connection is alive; until that is known, it takes no requests.
    pub fn doubt(&self) {
        let connection = &self.connection;
        if connection.doubtful.replace(true) {
            return;
        }
        let Some(mut pings) = connection.pings.take() else { return connection.cut.notify_one() };
        let (group, connection) = (Rc::clone(&self.group), Rc::clone(connection));
        tokio::task::spawn_local(async move {
            match timeout(PONG, pings.ping(Ping::opaque())).await {
                Ok(Ok(_)) => {
                    *connection.pings.borrow_mut() = Some(pings);
                    connection.doubtful.set(false);
                    group.changed();
                }
                Ok(Err(_)) | Err(_) => connection.cut.notify_one(),
            }
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.active.set(connection.active.get().saturating_sub(1));
        if connection.is_idle() && connection.handle.borrow().is_none() {
            connection.done.notify_one();
        }
        self.group.freed(connection, self.number);
    }
}

/// What makes a connection move.
pub struct Driver {
    inner: client::Connection<Io, Bytes>,
    connection: Rc<Connection>,
}

impl Driver {
    /// Begins to speak HTTP/2 over a stream.
    ///
    /// # Errors
    /// When it has failed already.
    pub async fn open(stream: Stream, clock: &Rc<Clock>) -> Result<Self, Error> {
        stream.keep_alive();
        let scheme = if stream.tls().is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let (io, watch) = Io::new(Rc::new(stream), Vec::new(), Rc::clone(clock), Guard::new(false));
        let (handle, mut inner) = client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(limits::FRAME_SIZE)
            .max_header_list_size(HEADER_LIST)
            .header_table_size(limits::HEADER_TABLE)
            .max_send_buffer_size(limits::SEND_BUFFER)
            .max_concurrent_reset_streams(limits::RESETS_REMEMBERED)
            .reset_stream_duration(limits::RESET_MEMORY)
            // Each client that leaves makes one, which is no fault of the connection.
            .max_local_error_reset_streams(None)
            .data_frame_budget(SMALL_DATA)
            // Nothing is asked before the backend's SETTINGS have come.
            .initial_max_send_streams(0)
            .handshake::<_, Bytes>(io)
            .await?;
        let connection = Rc::new(Connection {
            handle: RefCell::new(Some(handle)),
            watch,
            scheme,
            active: Cell::new(0),
            most: Cell::new(0),
            begun: Cell::new(0),
            left_out: Cell::new(0),
            lasts: Cell::new(usize::MAX),
            answered: Cell::new(false),
            blamed: Cell::new(false),
            doubtful: Cell::new(false),
            pings: RefCell::new(inner.ping_pong()),
            until: Cell::new(u64::MAX),
            mark: RefCell::new(None),
            cut: Notify::new(),
            done: Notify::new(),
        });
        Ok(Self { inner, connection })
    }

    /// The connection.
    #[must_use]
    pub fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }

    /// Moves it on. Ready when it has ended. Whether the backend takes more or fewer
    /// requests than before is in [`Connection::most`] afterwards.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let connection = &self.connection;
        connection.watch.turn();
        let ended = Pin::new(&mut self.inner).poll(cx);
        connection.most.set(self.inner.max_concurrent_send_streams().min(STREAMS));
        if connection.watch.breach().is_some() {
            return Poll::Ready(Err(h2::Reason::ENHANCE_YOUR_CALM.into()));
        }
        ended
    }

    /// Resolves when the backend has said how many requests it takes.
    ///
    /// # Errors
    /// Why it never will.
    pub async fn settled(&mut self) -> Result<(), Reason> {
        poll_fn(|cx| match self.poll(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Err(Reason::BackendClosed)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(reason(&error))),
            Poll::Pending if self.connection.most() > 0 => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Runs the connection to its end; `changed` is told when it takes more requests.
    pub async fn run(mut self, changed: impl Fn()) {
        let connection = Rc::clone(&self.connection);
        let mut driven = pin!(poll_fn(|cx| {
            let most = connection.most();
            let ended = self.poll(cx).map(drop);
            if connection.most() > most {
                changed();
            }
            ended
        }));
        tokio::select! {
            () = &mut driven => {}
            () = connection.cut.notified() => {}
            () = connection.done.notified() => drop(timeout(CLOSING, driven).await),
        }
        connection.retire();
    }
}

/// Why a connection failed on which nothing was asked.
#[must_use]
pub fn reason(error: &Error) -> Reason {
    match error.get_io().map(io::Error::kind) {
        Some(io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof) => Reason::BackendClosed,
        Some(_) => Reason::BackendReset,
        None if error.is_remote() => Reason::BackendClosed,
        None => Reason::BackendMalformed,
    }
}

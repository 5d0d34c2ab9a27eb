//! Connection: reads requests off one client connection and has each told as a story.
//!
//! Between requests a connection owns no buffer and its future is small: the exchange's
//! is allocated when a request begins. What happens while it waits (idle, drain) and
//! how it ends (at once, or after the client could read its answer) is decided here.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::http1::Http1;
use super::relay::{Fault, Sink};
use super::story::{self, After, Source};
use super::worker::Worker;
use crate::config::AccessLog;
use crate::telemetry::Reason;
use crate::telemetry::Text;
use crate::telemetry::{Kind, Record};
use crate::transport::clock::Timer;
use crate::transport::stream::Stream;

/// How long what a client still sends after an early answer is read and dropped.
const LINGER: Duration = Duration::from_secs(5);

/// How much of it.
const LINGER_BYTES: usize = 16 * 1024 * 1024;

/// Serves one client connection that speaks HTTP/1, to its end.
pub async fn serve(worker: Rc<Worker>, io: Stream, source: Source) {
    let mut client = Http1::new(io);
    let timer = worker.clock().timer();
    let mut first = true;
    loop {
        if !stirs(&worker, &mut client, &timer, first).await {
            return;
        }
        // From here to the answer: in its own allocation.
        match Box::pin(request(&worker, &source, &mut client, &timer)).await {
            // In a drain, too: the answer may have begun before it, and promised to go on.
            After::GoOn if client.can_go_on() => first = false,
            // Nothing more was sent to us: closing resets nothing.
            After::GoOn if !client.wire().has_input() && !client.wire().io().stirred() => return,
            After::GoOn | After::Linger => return linger(&mut client, &timer).await,
            After::Close => return,
        }
    }
}

/// Waits for the first byte of a request. `false`: nothing came in time, or the worker
/// drains and there was a short silence; the connection is closed without a word.
async fn stirs(worker: &Worker, client: &mut Http1, timer: &Timer, first: bool) -> bool {
    let generation = worker.generation();
    let daemon = &generation.config.daemon;
    timer.set(Some(if first { daemon.header_timeout } else { daemon.idle_timeout }));
    drop(generation);
    let mut silence = None;
    let stirred = poll_fn(|cx| {
        if let Poll::Ready(outcome) = client.wire_mut().poll_stirs(cx) {
            return Poll::Ready(outcome.is_ok());
        }
        // A request may be on the wire already, so a drain leaves a moment for it.
        if silence.is_none() && worker.is_draining() {
            silence = Some(());
            timer.set(Some(worker.silence()));
        }
        timer.poll(cx).map(|()| false)
    })
    .await;
    timer.set(None);
    stirred
}

async fn request(worker: &Worker, source: &Source, client: &mut Http1, timer: &Timer) -> After {
    let generation = worker.generation();
    let daemon = &generation.config.daemon;
    let limit = daemon.max_header_size;
    let head = timer.within(Some(daemon.header_timeout), poll_fn(|cx| client.poll_request(cx, limit))).await;
    let reason = match head {
        Some(Ok(Some(head))) => {
            // The story looks up its own generation; this one need not outlive the head.
            drop(generation);
            return story::story(worker, source, client, &head, timer).await;
        }
        // Ended before the first byte of a request, or within its head: nobody to answer.
        Some(Ok(None) | Err(Fault::Reset)) => return After::Close,
        Some(Err(Fault::Truncated)) => Reason::ClientLeft,
        Some(Err(Fault::Malformed(reason))) => reason,
        None => Reason::ClientHeaderTimeout,
    };
    refuse(worker, source, client, reason, timer).await
}

/// Answers what never became a request, and records it.
async fn refuse(worker: &Worker, source: &Source, client: &mut Http1, reason: Reason, timer: &Timer) -> After {
    worker.counters().rejected(reason);
    let generation = worker.generation();
    let logged = generation.routes().last().map(|route| route.settings.access_log);
    if logged != Some(AccessLog::Off) {
        worker.log().access(Record {
            kind: Kind::Request,
            client: source.peer,
            listener: Arc::clone(&source.listener),
            method: Text::EMPTY,
            host: Text::EMPTY,
            path: Text::EMPTY,
            version: 0,
            status: reason.status(),
            backend: None,
            route: Arc::from(""),
            attempts: 0,
            duration_us: 0,
            queue_us: 0,
            bytes_in: 0,
            bytes_out: 0,
            reason: Some(reason),
            request_id: Text::EMPTY,
        });
    }
    if reason == Reason::ClientLeft {
        return After::Close;
    }
    story::answer(client, None, reason, true, "");
    match timer.within(Some(LINGER), poll_fn(|cx| client.poll_finish(cx))).await {
        Some(Ok(())) => After::Linger,
        Some(Err(_)) | None => After::Close,
    }
}

/// Ends our direction and reads on for a while: closing with bytes unread would send a
/// reset, which can take the answer from the client before it was read (RFC 9112 §9.6).
async fn linger(client: &mut Http1, timer: &Timer) {
    if client.wire().io().shutdown_write().is_err() {
        return;
    }
    let mut read = 0;
    let wire = client.wire_mut();
    timer
        .within(
            Some(LINGER),
            poll_fn(|cx| {
                loop {
                    match std::task::ready!(wire.poll_discard(cx)) {
                        Some(n) if read + n < LINGER_BYTES => read += n,
                        Some(_) | None => return Poll::Ready(()),
                    }
                }
            }),
        )
        .await;
}

#[cfg(test)]
mod tests {
    use super::{Source, Worker, request, serve};
    use crate::config::Config;
    use crate::proxy::http1::Http1;
    use crate::state::Generation;
    use crate::telemetry::{Peer, Text};
    use crate::transport::stream::{Family, Socket, Stream};
    use std::collections::BTreeMap;
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;

    /// What an idle connection and a request under way take on the heap decides how many
    /// of each a host can hold.
    #[tokio::test]
    async fn an_idle_connection_is_small_and_a_request_is_bounded() {
        let config = Config::assemble(None, Vec::new(), &BTreeMap::new()).unwrap();
        let worker = Worker::alone(Generation::build(1, config, None));
        let source = Source { peer: Peer::Unix, address: Text::new("unix:"), listener: "http".into() };
        let (one, two) = UnixStream::pair().unwrap();
        let [one, two] = [one, two].map(|socket| Stream::from(Socket::new(socket.into(), Family::Unix)));

        let mut client = Http1::new(one);
        let timer = worker.clock().timer();
        let busy = request(&worker, &source, &mut client, &timer);
        let busy = std::mem::size_of_val(&busy);
        let idle = std::mem::size_of_val(&serve(Rc::clone(&worker), two, source.clone()));
        assert!(idle <= 768, "an idle connection takes {idle} bytes");
        assert!(busy <= 4096, "a request under way takes {busy} bytes");
    }
}

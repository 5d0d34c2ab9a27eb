//! Accept: takes connections in and spreads them over the workers.
//!
//! All workers wait on the same listening socket, and the kernel wakes them as it
//! likes: often the same one again and again. So a worker that stands above the mean
//! hands a connection on, before its first read, to the least loaded. It takes only a
//! few in a turn, so that the connections it has get their turn too.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::worker::{Arrival, Worker};
use crate::telemetry::Limiter;
use crate::telemetry::Peer;
use crate::telemetry::events;
use crate::transport::dial;
use crate::transport::listeners::{Listener, Socket as ListeningSocket};
use crate::transport::stream::{Family, Socket, Stream};

/// Accepts in a row before the worker turns to its other tasks.
const IN_A_ROW: usize = 8;

/// How long accepting rests when descriptors or connections have run out. The clients
/// wait in the backlog meanwhile.
const REST: Duration = Duration::from_millis(50);

/// A listener on a worker's runtime.
#[derive(Debug)]
pub struct Door {
    name: Arc<str>,
    socket: Stream,
}

impl Door {
    /// Registers a listener with the current runtime.
    ///
    /// # Errors
    /// When it cannot be registered.
    pub fn open(listener: Listener) -> io::Result<Self> {
        let socket = match listener.socket {
            ListeningSocket::Tcp(socket) => Socket::new(socket.into(), Family::Tcp),
            ListeningSocket::Unix(socket) => Socket::new(socket.into(), Family::Unix),
        };
        let socket = Stream::from(socket);
        socket.join()?;
        Ok(Self { name: listener.name, socket })
    }

    async fn accept(&self) -> io::Result<(Socket, Peer)> {
        let (socket, address) = poll_fn(|cx| self.socket.poll_accept(cx)).await?;
        let peer = address
            .map_or(Peer::Unix, |address| Peer::Ip(SocketAddr::new(address.ip().to_canonical(), address.port())));
        Ok((socket, peer))
    }
}

/// Accepts on one door until the worker drains.
pub async fn run(worker: Rc<Worker>, door: Door) {
    let mut in_a_row = 0;
    loop {
        if !worker.shared().has_room() {
            worker.shared().note_full();
            tokio::time::sleep(REST).await;
            continue;
        }
        match door.accept().await {
            Ok((socket, peer)) => {
                worker.counters().connections_accepted.add(1);
                place(&worker, Arrival { socket, peer, listener: Arc::clone(&door.name) });
            }
            // The client gave up while it waited in the backlog.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            // What else there is may last: a socket that was shut down, say.
            Err(error) if !dial::is_shortage(&error) => {
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(REST).await;
            }
            Err(error) => {
                static LIMITER: Limiter = Limiter::new(1);
                if let Some(suppressed) = LIMITER.admit(Instant::now()) {
                    tracing::error!(
                        message_id = events::OUT_OF_DESCRIPTORS,
                        %error,
                        suppressed,
                        "no descriptor left to accept with; raise LimitNOFILE= or lower MAX_CONNECTIONS"
                    );
                }
                tokio::time::sleep(REST).await;
            }
        }
        in_a_row += 1;
        if in_a_row >= IN_A_ROW {
            in_a_row = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// Keeps an arrival, or hands it to the least loaded worker.
fn place(worker: &Rc<Worker>, arrival: Arrival) {
    match worker.shared().better_than(worker.index()) {
        None => worker.take(arrival),
        Some(other) => match worker.hand_to(other, arrival) {
            Ok(()) => worker.counters().connections_handed.add(1),
            Err(arrival) => worker.take(arrival),
        },
    }
}

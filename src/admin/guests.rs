//! Guests: who connects to a socket that is the daemon's own, a few at once.
//!
//! The one loop behind the admin socket and the addresses of metrics. It runs on the
//! control thread, so whoever comes may cost it no more than a task: places are counted,
//! and a guest for whom there is none is told so at once, without waiting for anything.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::warn;

/// Pause after a failed `accept`, such as one without descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How much of what a guest has sent is taken before it is dismissed, in bytes.
const DISMISS_MOST: usize = 4096;

/// A socket that guests come in by.
pub trait Door: Send + Sync + 'static {
    /// A connection.
    type Guest: AsyncRead + AsyncWrite + AsFd + Send + Unpin + 'static;

    /// The next one.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Guest>> + Send;
}

impl Door for UnixListener {
    type Guest = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(UnixListener::accept(self).await?.0)
    }
}

impl Door for TcpListener {
    type Guest = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        Ok(TcpListener::accept(self).await?.0)
    }
}

/// Receives guests for ever, each in a task of its own that holds one of `places`. For
/// whom there is none gets `full` and is closed. `what` names the door in the log.
pub async fn receive<D, F>(
    door: D,
    places: Arc<Semaphore>,
    what: &'static str,
    full: &[u8],
    serve: impl Fn(D::Guest) -> F,
) where
    D: Door,
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let guest = match door.accept().await {
            Ok(guest) => guest,
            Err(error) => {
                warn!(%error, door = what, "can't accept");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            dismiss(&guest, full);
            continue;
        };
        let serving = serve(guest);
        tokio::spawn(async move {
            serving.await;
            drop(place);
        });
    }
}

/// Says a few words to a guest that is closed then. A fresh socket takes them without
/// blocking, or they are lost. What has come is taken first, since closing a socket with
/// unread bytes is a reset that may overtake the words.
fn dismiss(guest: &impl AsFd, words: &[u8]) {
    let mut scrap = [0; DISMISS_MOST];
    let _ = recv(guest, &mut scrap[..], RecvFlags::DONTWAIT);
    let _ = send(guest, words, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

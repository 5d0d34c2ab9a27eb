//! TLS on a stream, in both roles.
//!
//! [`accept`], once there is a [`greeting`], and [`connect`] make the handshake and give back a [`Stream`] that carries TLS:
//! it is read and written like any other, so that what is above it (HTTP, relays, tunnels)
//! does not know. Only splicing needs the socket itself, and does without.
//!
//! The library is rustls, by its *unbuffered* interface: it owns no bytes. The other one keeps
//! 4 KiB for each connection, reads no more than that at once, and moves what is left to
//! the front after each record. Here ciphertext is read into a thread's scratch, 68 KiB at
//! once if there is as much, and a connection that waits holds only what it must
//! ([`session`], [`records`]). Both interfaces allocate for each record, in and out, and give
//! it back at once: that is inside the library.
//!
//! What the unbuffered interface does not have is a look at a client's hello before there is a
//! configuration. So the library's `Acceptor` reads a copy of the hello, its name and offers
//! choose the configuration, and the connection then reads the same bytes again. That takes a
//! few microseconds of some hundred. A resolver of certificates inside of one configuration
//! would take none, but can't choose who must show a certificate, or what is spoken, and it
//! would not tell the name.
//!
//! **What is written is taken at once** as far as it is encrypted, and what the socket has no
//! room for is held: 68 KiB of plain bytes at most, and nothing more is taken until they are
//! gone. The other way, to take nothing and be called with the same bytes again, as OpenSSL
//! has it, would forbid to take an answer back or to put something before the rest. So
//! whoever ends a message must flush ([`Stream::poll_flush`]), and who measures progress
//! counts what is [`Stream::held`].
//!
//! **Ends are told apart.** A peer that closes without notice may have been cut off by
//! somebody on the way (RFC 8446 §6.1): reading then fails instead of ending. Where the
//! framing of a message says that it is whole, nobody reads that far. Our own notice goes
//! out when our direction ends and when the stream is closed, unless a message is left
//! unfinished.
//!
//! What needs no answer waits for company: the tickets of a server go out with its first answer
//! if the request has come with the end of the handshake, and the end of a client's
//! handshake with its first request; otherwise before anything is waited for.

pub mod fault;
mod hello;
mod records;
mod session;

use std::future::poll_fn;
use std::io::IoSlice;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::{Accepted, Acceptor, ClientHello, UnbufferedServerConnection};
use rustls::{AlertDescription, ClientConfig, ServerConfig};

pub use fault::{Fault, Missing, Rejected, fault};
pub use session::Session;

use hello::Outline;
use session::Side;

use super::stream::Stream;

/// A client that no connection was made with.
#[derive(Debug, thiserror::Error)]
#[error("{fault}")]
pub struct Refused {
    /// Why.
    pub fault: Fault,
    /// Its connection, as it is. It was told why.
    pub stream: Stream,
}

/// The hello of a client, as its bytes. Nothing but them is held for it, and of a hello that is
/// not whole no more than has come: 17 KiB at most.
#[derive(Debug)]
pub struct Greeting(Vec<u8>);

/// Waits for a client's whole hello, in however many records and pieces it comes. Takes as long
/// as the client does: the caller has the timer.
///
/// # Errors
/// Why there can't be a handshake. Nothing was said to the client, but to one that had begun a
/// hello.
pub async fn greeting(stream: &Stream) -> Result<Greeting, Fault> {
    let mut came = Vec::new();
    let mut outline = Outline::default();
    loop {
        receive(stream, &mut came).await?;
        match came.first() {
            Some(&HANDSHAKE) => match outline.is_whole(&came) {
                Ok(true) => return Ok(Greeting(came)),
                Ok(false) => {}
                Err(fault) => {
                    tell(stream, &alert(AlertDescription::UnexpectedMessage));
                    return Err(fault);
                }
            },
            Some(b'A'..=b'Z') => return Err(Fault::PlainHttp),
            _ => return Err(Fault::NotTls),
        }
    }
}

/// Makes a handshake with a client whose hello is there, by the configuration that `choose` has
/// for its hello, or refuses it with an alert. Takes as long as the client does.
///
/// # Errors
/// Why there is none, with the stream.
pub async fn accept(
    mut stream: Stream,
    greeting: Greeting,
    choose: impl FnOnce(&ClientHello<'_>) -> Result<Arc<ServerConfig>, AlertDescription>,
) -> Result<Stream, Refused> {
    match serve(&stream, greeting, choose).await {
        Ok(session) => {
            stream.carry(session);
            Ok(stream)
        }
        Err(fault) => Err(Refused { fault, stream }),
    }
}

/// Makes a handshake with a server, which must show a certificate for `name` that `config`
/// trusts. Takes as long as the server does: the caller has the timer.
///
/// # Errors
/// Why there is none; the server was told.
pub async fn connect(
    mut stream: Stream,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<Stream, Fault> {
    let server_name = name.to_str().into();
    let client = UnbufferedClientConnection::new(config, name)?;
    let session = Box::new(Session::new(Side::Client(client), Vec::new(), Some(server_name)));
    poll_fn(|cx| session.poll_handshake(&stream, cx)).await?;
    stream.carry(session);
    Ok(stream)
}

async fn serve(
    io: &Stream,
    Greeting(mut came): Greeting,
    choose: impl FnOnce(&ClientHello<'_>) -> Result<Arc<ServerConfig>, AlertDescription>,
) -> Result<Box<Session>, Fault> {
    let hello = hello(io, &mut came).await?;
    let hello = hello.client_hello();
    let config = choose(&hello).map_err(|alert| {
        tell(io, &self::alert(alert));
        match alert {
            AlertDescription::UnrecognisedName => Fault::UnknownName,
            AlertDescription::NoApplicationProtocol => Fault::Incompatible(Missing::Protocol),
            _ => Fault::Ours,
        }
    })?;
    let name = hello.server_name().map(Box::from);
    let server = UnbufferedServerConnection::new(config)?;
    let session = Box::new(Session::new(Side::Server(server), came, name));
    poll_fn(|cx| session.poll_handshake(io, cx)).await?;
    if !session.has_more() {
        poll_fn(|cx| session.poll_flush(io, cx, &mut false)).await.map_err(|_| Fault::Reset)?;
    }
    Ok(session)
}

/// What a record of a handshake begins with (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;

/// What one of an alert does.
const ALERT: u8 = 21;

/// The level of an alert that ends the connection (RFC 8446 §6).
const FATAL: u8 = 2;

/// The record of an alert that ends a connection, in clear: nothing was agreed on yet.
fn alert(what: AlertDescription) -> [u8; 7] {
    [ALERT, 3, 3, 0, 2, FATAL, what.into()]
}

/// Reads the hello, which is in `came` unless there is something wrong with it.
async fn hello(io: &Stream, came: &mut Vec<u8>) -> Result<Accepted, Fault> {
    let mut acceptor = Acceptor::default();
    let mut seen = 0;
    loop {
        let mut news = came.get(seen..).unwrap_or_default();
        if news.is_empty() {
            receive(io, came).await?;
            continue;
        }
        seen += acceptor.read_tls(&mut news).map_err(|_| Fault::Protocol)?;
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) => {}
            Err((error, mut alert)) => {
                let mut bytes = Vec::new();
                let _ = alert.write_all(&mut bytes);
                tell(io, &bytes);
                return Err(error.into());
            }
        }
    }
}

/// Sends what is the last to be said, if there is room for it.
fn tell(io: &Stream, bytes: &[u8]) {
    let _ = io.write_anyway(&[IoSlice::new(bytes)]);
}

/// Reads more of a hello.
async fn receive(io: &Stream, came: &mut Vec<u8>) -> Result<(), Fault> {
    if came.len() >= hello::MOST {
        return Err(Fault::Protocol);
    }
    poll_fn(|cx| {
        // On the stack, so that a client that is waited for has no room taken.
        let mut bytes = [0; 4096];
        let room = bytes.len().min(hello::MOST - came.len());
        io.poll_recv(cx, bytes.get_mut(..room).unwrap_or_default()).map(|read| match read {
            Ok(0) => Err(Fault::Ended),
            Ok(n) => {
                came.reserve_exact(n);
                came.extend_from_slice(bytes.get(..n).unwrap_or_default());
                Ok(())
            }
            Err(_) => Err(Fault::Reset),
        })
    })
    .await
}

#[cfg(test)]
pub(crate) mod tests;

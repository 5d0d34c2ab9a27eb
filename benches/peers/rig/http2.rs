//! HTTP/2 of the load, where connections matter and not how fast they are: the `h2` crate
//! over TLS, without a runtime. It is asked to go on whenever bytes have come, so nobody has
//! to wake it.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use h2::RecvStream;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use http::Request;
use http::header::{ACCEPT, CONTENT_LENGTH, USER_AGENT};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::content::{Exchange, Text};
use super::secure::{NAME, Tls};

/// One connection.
pub struct Http2 {
    tls: Tls,
    wire: Wire,
    connection: Connection<Wire, Bytes>,
    handle: SendRequest<Bytes>,
    asked: Vec<Asked>,
}

/// A request that is under way.
struct Asked {
    answer: ResponseFuture,
    body: Option<RecvStream>,
    /// Bytes of the body that came so far.
    offset: usize,
}

impl Http2 {
    /// Whose handshakes are to come.
    ///
    /// # Errors
    /// When a library lacks something.
    pub fn new(config: &Arc<ClientConfig>) -> Result<Http2> {
        let wire = Wire::default();
        // What it says first waits for nobody.
        let handshake = pin!(Builder::new().enable_push(false).handshake(wire.clone()));
        let Poll::Ready(made) = handshake.poll(&mut idle()) else { bail!("an HTTP/2 connection that waits") };
        let (handle, connection) = made?;
        Ok(Http2 { tls: Tls::new(config)?, wire, connection, handle, asked: Vec::new() })
    }

    /// Whether an answer is awaited.
    pub fn is_busy(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Asks so many times at once.
    ///
    /// # Errors
    /// When no more can be asked.
    pub fn ask(&mut self, fd: &OwnedFd, exchange: Exchange, streams: u32) -> Result<()> {
        for _ in 0..streams {
            let request = Request::get(format!("https://{NAME}{}", exchange.path()));
            let request = request.header(USER_AGENT, "compare/1").header(ACCEPT, "*/*").body(())?;
            let (answer, _) = self.handle.send_request(request, true)?;
            self.asked.push(Asked { answer, body: None, offset: 0 });
        }
        self.go_on(fd)
    }

    /// Does what can be done without waiting; whether that was the end of the last answer.
    ///
    /// # Errors
    /// What is wrong with an answer, or with the connection.
    pub fn ready(&mut self, fd: &OwnedFd, scratch: &mut [u8], exchange: Exchange, text: &Text) -> Result<bool> {
        loop {
            match self.tls.read(fd, scratch) {
                Ok(0) => bail!("a connection was closed"),
                Ok(read) => self.wire.0.borrow_mut().came.extend(scratch.iter().take(read)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("a connection failed"),
            }
        }
        let busy = self.is_busy();
        self.go_on(fd)?;
        let mut waiting = Vec::new();
        for mut asked in std::mem::take(&mut self.asked) {
            if !asked.is_over(exchange, text)? {
                waiting.push(asked);
            }
        }
        self.asked = waiting;
        // What was read opens windows.
        self.go_on(fd)?;
        Ok(busy && !self.is_busy())
    }

    /// Moves frames.
    fn go_on(&mut self, fd: &OwnedFd) -> Result<()> {
        if let Poll::Ready(ended) = Pin::new(&mut self.connection).poll(&mut idle()) {
            ended?;
            bail!("a kept connection was ended");
        }
        let leaves = std::mem::take(&mut self.wire.0.borrow_mut().leaves);
        match self.tls.send(fd, &leaves) {
            // Before TLS stands, it keeps what is to be sent.
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error).context("a request"),
            _ => Ok(()),
        }
    }
}

impl Asked {
    /// Takes in what has come; whether that is all.
    fn is_over(&mut self, exchange: Exchange, text: &Text) -> Result<bool> {
        if self.body.is_none() {
            let Poll::Ready(answer) = Pin::new(&mut self.answer).poll(&mut idle()) else { return Ok(false) };
            let (head, body) = answer?.into_parts();
            let length = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
            if head.status != 200 || length != Some(exchange.download()) {
                bail!("a wrong answer: {head:?}");
            }
            self.body = Some(body);
        }
        let Some(body) = &mut self.body else { return Ok(false) };
        while let Poll::Ready(piece) = body.poll_data(&mut idle()) {
            let Some(piece) = piece else {
                if self.offset != exchange.download() {
                    bail!("an answer of {} bytes", self.offset);
                }
                return Ok(true);
            };
            let piece = piece?;
            if !text.holds(self.offset, &piece) {
                bail!("wrong bytes in a body, after {} of them", self.offset);
            }
            self.offset += piece.len();
            body.flow_control().release_capacity(piece.len())?;
        }
        Ok(false)
    }
}

fn idle() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// What the crate takes for its socket.
#[derive(Clone, Default)]
struct Wire(Rc<RefCell<Plain>>);

/// Bytes on their way between the crate and TLS.
#[derive(Default)]
struct Plain {
    came: Vec<u8>,
    leaves: Vec<u8>,
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut plain = self.0.borrow_mut();
        if plain.came.is_empty() {
            return Poll::Pending;
        }
        let read = plain.came.len().min(into.remaining());
        into.put_slice(&plain.came.drain(..read).collect::<Vec<u8>>());
        if plain.came.is_empty() {
            plain.came = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().leaves.extend(from);
        Poll::Ready(Ok(from.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

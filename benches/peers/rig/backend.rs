//! One connection of the backend: reads requests, checks them, writes fixed answers.
//! A small exchange costs it one read and one write.

use std::io;
use std::os::fd::OwnedFd;

use memchr::memmem;
use rustix::event::epoll::EventFlags;
use rustix::fs::sendfile;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::content::{Answer, Content, Exchange, LARGEST_HEAD, Length, split_head};

/// The state of a connection.
#[derive(Default)]
pub struct Backend {
    /// Right answers that it has given.
    pub answered: u64,
    /// What there is of a head that is not whole.
    partial: Vec<u8>,
    body: Option<Body>,
    sending: Option<Sending>,
    /// Whether the connection ends with the answer.
    last: bool,
}

/// A request's body that is being read.
struct Body {
    exchange: Exchange,
    offset: usize,
    right: bool,
}

/// An answer that is being written.
struct Sending {
    exchange: Option<Exchange>,
    sent: usize,
}

/// What a request says that goes through the raw relay and is the last one; every
/// proxy removes it.
const CLOSE: &[u8] = b"\r\nConnection: close\r\n";

impl Backend {
    /// Does what can be done without waiting; false when the connection is over.
    ///
    /// # Errors
    /// When the peer reset the connection, or sent what is no request.
    pub fn ready(
        &mut self,
        fd: &OwnedFd,
        flags: EventFlags,
        scratch: &mut [u8],
        content: &Content,
    ) -> io::Result<bool> {
        if flags.contains(EventFlags::OUT) {
            self.send(fd, content)?;
            if self.last && self.sending.is_none() {
                return Ok(false);
            }
        }
        if !flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            return Ok(true);
        }
        loop {
            let read = match rustix::io::read(fd, &mut *scratch) {
                Ok(0) => return Ok(false),
                Ok(read) => read,
                Err(Errno::AGAIN) => return Ok(true),
                Err(error) => return Err(error.into()),
            };
            let bytes = scratch.get(..read).unwrap_or_default();
            self.take(bytes, fd, content)?;
            if self.last && self.sending.is_none() {
                return Ok(false);
            }
            if read < scratch.len() && !flags.contains(EventFlags::RDHUP) {
                return Ok(true);
            }
        }
    }

    fn take(&mut self, bytes: &[u8], fd: &OwnedFd, content: &Content) -> io::Result<()> {
        if self.body.is_some() {
            return self.take_body(bytes, fd, content);
        }
        if self.partial.is_empty() {
            return self.take_head(bytes, fd, content);
        }
        let mut whole = std::mem::take(&mut self.partial);
        whole.extend_from_slice(bytes);
        self.take_head(&whole, fd, content)
    }

    fn take_head(&mut self, bytes: &[u8], fd: &OwnedFd, content: &Content) -> io::Result<()> {
        let Some((head, rest)) = split_head(bytes) else {
            if bytes.len() > LARGEST_HEAD {
                return Err(io::Error::other("the head of a request has no end"));
            }
            self.partial = bytes.to_vec();
            return Ok(());
        };
        let exchange = Exchange::of(head).ok_or_else(|| io::Error::other("an unknown request"))?;
        if exchange.upload() == 0 {
            if !rest.is_empty() {
                return Err(io::Error::other("bytes after a request without a body"));
            }
            self.last = memmem::find(head, CLOSE).is_some();
            self.sending = Some(Sending { exchange: Some(exchange), sent: 0 });
            return self.send(fd, content);
        }
        let right = Length::new(exchange.upload()).is_in(head);
        self.body = Some(Body { exchange, offset: 0, right });
        self.take_body(rest, fd, content)
    }

    fn take_body(&mut self, bytes: &[u8], fd: &OwnedFd, content: &Content) -> io::Result<()> {
        let Some(body) = &mut self.body else { return Ok(()) };
        body.right &= content.text.holds(body.offset, bytes);
        body.offset += bytes.len();
        if body.offset < body.exchange.upload() {
            return Ok(());
        }
        let right = body.right && body.offset == body.exchange.upload();
        self.sending = Some(Sending { exchange: right.then_some(body.exchange), sent: 0 });
        self.body = None;
        self.send(fd, content)
    }

    fn send(&mut self, fd: &OwnedFd, content: &Content) -> io::Result<()> {
        let Some(sending) = &mut self.sending else { return Ok(()) };
        let answer = content.answer(sending.exchange);
        match send_from(fd, answer, &mut sending.sent) {
            Ok(()) => {
                self.answered += u64::from(sending.exchange.is_some());
                self.sending = None;
            }
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// Writes the rest of an answer; `AGAIN` when the socket takes no more for now.
fn send_from(fd: &OwnedFd, answer: &Answer, sent: &mut usize) -> Result<(), Errno> {
    let more = if answer.file.is_some() { SendFlags::MORE } else { SendFlags::empty() };
    while let Some(rest) = answer.bytes.get(*sent..).filter(|rest| !rest.is_empty()) {
        *sent += send(fd, rest, SendFlags::NOSIGNAL | more)?;
    }
    let Some(file) = &answer.file else { return Ok(()) };
    let whole = answer.bytes.len() + answer.length;
    while *sent < whole {
        let mut offset = u64::try_from(*sent - answer.bytes.len()).unwrap_or(u64::MAX);
        *sent += sendfile(fd, file, Some(&mut offset), whole - *sent)?;
    }
    Ok(())
}

//! One connection of the load: writes a request, checks every byte of the answer.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::content::{Exchange, LARGEST_HEAD, Length, Text, split_head};
use super::http2::Http2;
use super::secure::{Secure, Tls};

/// What all connections of a run send and expect.
pub struct Script {
    exchange: Exchange,
    request: Vec<u8>,
    length: Length,
    keep: bool,
    /// Requests at once on a connection of HTTP/2.
    streams: u32,
}

impl Script {
    /// For this exchange; `keep` is false when a connection serves one request, and over
    /// HTTP/2 it has so many `streams` at once.
    pub fn new(exchange: Exchange, keep: bool, streams: u32, text: &Text) -> Script {
        let (request, length) = (exchange.request(keep, text), Length::new(exchange.download()));
        Script { exchange, request, length, keep, streams }
    }

    /// Whether there is more than the load can check.
    pub fn is_bulk(&self) -> bool {
        self.exchange == Exchange::Bulk
    }
}

/// The state of a connection.
pub struct Client {
    /// When the request that is under way was due.
    pub since: Instant,
    /// Bytes of bodies that came so far.
    pub received: u64,
    checks: bool,
    sent: usize,
    partial: Vec<u8>,
    state: State,
    speaks: Speaks,
}

/// What a connection speaks.
pub enum Speaks {
    /// HTTP/1.1 in clear.
    Clear,
    /// HTTP/1.1 over TLS.
    Tls(Box<Tls>),
    /// HTTP/2 over TLS.
    Http2(Box<Http2>),
}

enum State {
    Idle,
    Head,
    Body(usize),
    /// The answer is whole, and the proxy is to close.
    Closing,
}

/// What came of an event.
pub enum Step {
    /// Nothing to tell.
    Wait,
    /// The answer is whole and right.
    Answered,
}

impl Client {
    /// A connection on which nothing has been asked yet. Unless it `checks`, it counts
    /// the bytes of bodies only.
    pub fn new(since: Instant, checks: bool, speaks: Speaks) -> Client {
        Client { since, received: 0, checks, sent: 0, partial: Vec::new(), state: State::Idle, speaks }
    }

    /// Whether it is secured in this way, or not to be.
    pub fn is(&self, secure: Option<Secure>) -> bool {
        match (&self.speaks, secure) {
            (Speaks::Tls(tls), Some(secure)) => tls.is(secure),
            _ => true,
        }
    }

    /// Whether an answer is awaited.
    pub fn is_busy(&self) -> bool {
        match &self.speaks {
            Speaks::Http2(http2) => http2.is_busy(),
            _ => !matches!(self.state, State::Idle),
        }
    }

    /// Asks; `since` is when that was due.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn ask(&mut self, fd: &OwnedFd, since: Instant, script: &Script) -> Result<(), String> {
        self.since = since;
        if let Speaks::Http2(http2) = &mut self.speaks {
            return http2.ask(fd, script.exchange, script.streams).map_err(|error| format!("{error:#}"));
        }
        self.sent = 0;
        self.state = State::Head;
        self.send(fd, script)
    }

    fn send(&mut self, fd: &OwnedFd, script: &Script) -> Result<(), String> {
        if let Speaks::Tls(tls) = &mut self.speaks {
            // Before the connection stands there is nothing to send on.
            let rest = script.request.get(self.sent..).unwrap_or_default();
            self.sent = script.request.len();
            return match tls.send(fd, rest) {
                Err(error) if error.kind() != io::ErrorKind::NotConnected => {
                    Err(format!("a request could not be written: {error}"))
                }
                _ => Ok(()),
            };
        }
        while let Some(rest) = script.request.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match send(fd, rest, SendFlags::NOSIGNAL) {
                Ok(sent) => self.sent += sent,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(format!("a request could not be written: {error}")),
            }
        }
        Ok(())
    }

    /// Does what can be done without waiting.
    ///
    /// # Errors
    /// What was wrong with the answer, in words.
    pub fn ready(
        &mut self,
        fd: &OwnedFd,
        flags: EventFlags,
        scratch: &mut [u8],
        script: &Script,
        text: &Text,
    ) -> Result<Step, String> {
        if let Speaks::Http2(http2) = &mut self.speaks {
            let whole = http2.ready(fd, scratch, script.exchange, text).map_err(|error| format!("{error:#}"))?;
            return Ok(if whole { Step::Answered } else { Step::Wait });
        }
        if flags.contains(EventFlags::OUT) && self.is_busy() {
            self.send(fd, script)?;
        }
        if !flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            return Ok(Step::Wait);
        }
        let closed = flags.intersects(EventFlags::RDHUP | EventFlags::HUP);
        if closed && matches!(self.state, State::Closing) {
            return Ok(Step::Answered);
        }
        // Without a look at them, bytes need not be copied.
        let how = if self.checks { RecvFlags::empty() } else { RecvFlags::TRUNC };
        loop {
            let outcome = match &mut self.speaks {
                Speaks::Clear | Speaks::Http2(_) => recv(fd, &mut *scratch, how).map(|(_, read)| ((), read)),
                Speaks::Tls(tls) => match tls.read(fd, scratch) {
                    Ok(read) => Ok(((), read)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Errno::AGAIN),
                    Err(error) => return Err(format!("a connection failed: {error}")),
                },
            };
            let read = match outcome {
                // TLS says that it ends before the connection does.
                Ok((_, 0)) if self.is_secured() && matches!(self.state, State::Closing) => return Ok(Step::Answered),
                Ok((_, 0)) => return Err(self.cut()),
                Ok((_, read)) => read,
                Err(Errno::AGAIN) => return Ok(Step::Wait),
                Err(error) => return Err(format!("a connection failed: {error}")),
            };
            if self.take(scratch.get(..read).unwrap_or_default(), script, text)? {
                if script.keep || closed {
                    return Ok(Step::Answered);
                }
                self.state = State::Closing;
                return Ok(Step::Wait);
            }
            if read < scratch.len() && !closed && !self.is_secured() {
                return Ok(Step::Wait);
            }
        }
    }

    fn is_secured(&self) -> bool {
        !matches!(self.speaks, Speaks::Clear)
    }

    fn cut(&self) -> String {
        match self.state {
            State::Idle | State::Closing => "a kept connection was closed".into(),
            State::Head => "a connection was closed before the answer".into(),
            State::Body(offset) => format!("an answer was cut after {offset} bytes of its body"),
        }
    }

    /// Whether these bytes end the answer.
    fn take(&mut self, bytes: &[u8], script: &Script, text: &Text) -> Result<bool, String> {
        match self.state {
            State::Head if script.exchange.is_plain() => self.take_body(0, bytes, script, text),
            State::Head if self.partial.is_empty() => self.take_head(bytes, script, text),
            State::Head => {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(bytes);
                self.take_head(&whole, script, text)
            }
            State::Body(offset) => self.take_body(offset, bytes, script, text),
            State::Idle | State::Closing => Err("bytes came that nobody asked for".into()),
        }
    }

    fn take_head(&mut self, bytes: &[u8], script: &Script, text: &Text) -> Result<bool, String> {
        let Some((head, rest)) = split_head(bytes) else {
            if bytes.len() > LARGEST_HEAD {
                return Err("the head of an answer has no end".into());
            }
            self.partial = bytes.to_vec();
            return Ok(false);
        };
        if !head.starts_with(b"HTTP/1.1 200 ") || !script.length.is_in(head) {
            return Err(format!("a wrong answer: {}", String::from_utf8_lossy(head).escape_debug()));
        }
        self.take_body(0, rest, script, text)
    }

    fn take_body(&mut self, offset: usize, bytes: &[u8], script: &Script, text: &Text) -> Result<bool, String> {
        if self.checks && !text.holds(offset, bytes) {
            return Err(format!("wrong bytes in a body, after {offset} of them"));
        }
        self.received += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let offset = offset + bytes.len();
        let whole = script.exchange.download();
        if offset > whole {
            return Err(format!("{} bytes beyond an answer", offset - whole));
        }
        self.state = if offset == whole { State::Idle } else { State::Body(offset) };
        Ok(offset == whole)
    }
}

//! The floor: a relay that parses nothing. One thread, epoll, each connection of a
//! client joined to one of the backend for its life. A proxy can't do with less
//! than its system calls; what it costs more is what it does.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType, accept_with, bind, connect, listen, send, shutdown,
    socket_with, sockopt,
};

/// Bytes read at once.
const SCRATCH: usize = 64 * 1024;

/// Token of the listening socket; a pair has twice its place, plus one on the backend's
/// side.
const DOOR: u64 = u64::MAX;

/// Both connections, the client's first.
struct Pair([Side; 2]);

struct Side {
    fd: OwnedFd,
    /// Bytes for this side that its socket did not take.
    pending: Vec<u8>,
    /// Nothing more comes from it.
    ended: bool,
    /// Nothing more goes to it.
    shut: bool,
}

struct Relay {
    epoll: OwnedFd,
    door: OwnedFd,
    backend: SocketAddr,
    pairs: Vec<Option<Pair>>,
    /// Places that are free; those of a turn only after it, since late events may name
    /// them.
    vacant: Vec<usize>,
    left: Vec<usize>,
    scratch: Vec<u8>,
}

fn tcp() -> rustix::io::Result<OwnedFd> {
    let fd = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    sockopt::set_tcp_nodelay(&fd, true)?;
    Ok(fd)
}

/// Relays until the process is ended.
///
/// # Errors
/// When a socket is refused.
pub fn run(address: SocketAddr, backend: SocketAddr) -> Result<()> {
    let door = tcp()?;
    sockopt::set_socket_reuseaddr(&door, true)?;
    bind(&door, &address)?;
    listen(&door, 4096)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &door, EventData::new_u64(DOOR), EventFlags::IN)?;
    let mut relay = Relay {
        epoll,
        door,
        backend,
        pairs: Vec::new(),
        vacant: Vec::new(),
        left: Vec::new(),
        scratch: vec![0; SCRATCH],
    };
    let mut events: Vec<Event> = Vec::with_capacity(256);
    loop {
        events.clear();
        epoll::wait(&relay.epoll, spare_capacity(&mut events), None)?;
        for event in &events {
            match event.data.u64() {
                DOOR => relay.accept()?,
                token => relay.serve(usize::try_from(token / 2)?, token % 2 == 1, event.flags),
            }
        }
        let left = std::mem::take(&mut relay.left);
        relay.vacant.extend(left);
    }
}

impl Relay {
    fn accept(&mut self) -> Result<()> {
        let client = match accept_with(&self.door, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(client) => client,
            Err(Errno::AGAIN | Errno::CONNABORTED) => return Ok(()),
            Err(error) => return Err(error).context("can't accept"),
        };
        let backend = tcp()?;
        match connect(&backend, &self.backend) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error).context("can't dial"),
        }
        let place = self.vacant.pop().unwrap_or(self.pairs.len());
        if place == self.pairs.len() {
            self.pairs.push(None);
        }
        let token = u64::try_from(place)? * 2;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, &client, EventData::new_u64(token), flags)?;
        epoll::add(&self.epoll, &backend, EventData::new_u64(token + 1), flags)?;
        let side = |fd| Side { fd, pending: Vec::new(), ended: false, shut: false };
        if let Some(pair) = self.pairs.get_mut(place) {
            *pair = Some(Pair([side(client), side(backend)]));
        }
        Ok(())
    }

    fn serve(&mut self, place: usize, from_backend: bool, flags: EventFlags) {
        let Some(slot) = self.pairs.get_mut(place) else { return };
        let Some(Pair([client, backend])) = slot else { return };
        let (here, there) = if from_backend { (backend, client) } else { (client, backend) };
        let mut going = true;
        if flags.contains(EventFlags::OUT) && !here.pending.is_empty() {
            // What was held back makes room for more from the other side.
            going = here.flush() && pass(there, here, &mut self.scratch, true);
        }
        let comes = flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        if going && comes {
            going = pass(here, there, &mut self.scratch, flags.contains(EventFlags::RDHUP));
        }
        if !going || (here.ended && there.ended && here.shut && there.shut) {
            *slot = None;
            self.left.push(place);
        }
    }
}

impl Side {
    /// False when the connection is broken.
    fn flush(&mut self) -> bool {
        let mut sent = 0;
        while let Some(rest) = self.pending.get(sent..).filter(|rest| !rest.is_empty()) {
            match send(&self.fd, rest, SendFlags::NOSIGNAL) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN) => break,
                Err(_) => return false,
            }
        }
        self.pending.drain(..sent);
        true
    }
}

/// Passes on what `from` has, unless `to` still holds something back; `ends` says that
/// an end is among it. False when a connection is broken.
fn pass(from: &mut Side, to: &mut Side, scratch: &mut [u8], ends: bool) -> bool {
    while to.pending.is_empty() && !from.ended {
        let read = match rustix::io::read(&from.fd, &mut *scratch) {
            Ok(0) => {
                from.ended = true;
                break;
            }
            Ok(read) => read,
            Err(Errno::AGAIN) => break,
            Err(_) => return false,
        };
        let bytes = scratch.get(..read).unwrap_or_default();
        match send(&to.fd, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => to.pending.extend_from_slice(bytes.get(sent..).unwrap_or_default()),
            Err(Errno::AGAIN) => to.pending.extend_from_slice(bytes),
            Err(_) => return false,
        }
        if read < scratch.len() && !ends {
            break;
        }
    }
    if from.ended && to.pending.is_empty() && !to.shut {
        to.shut = true;
        // It may be closed already, which is as good.
        let _ = shutdown(&to.fd, Shutdown::Write);
    }
    true
}

//! The load and the backend: one thread, one epoll, so that both fit on one core
//! beside the proxy's and leave it the bottleneck.
//!
//! Edge-triggered: an exchange costs the load one write and one read, the backend one
//! read and one write, and one `epoll_pwait2` serves as many of them as are ready.

pub mod backend;
pub mod client;
pub mod content;
pub mod h2load;
pub mod histogram;
pub mod http2;
pub mod load;
pub mod secure;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with, sockopt};
use rustix::time::Timespec;

use backend::Backend;
use client::{Client, Speaks, Step};
use content::Content;
use h2load::H2load;
use histogram::Histogram;
use http2::Http2;
use load::{Load, Outcome, Pace, Plan};
use rustls::ClientConfig;
use secure::{Secure, Tls};

/// Bytes read at once.
const SCRATCH: usize = 256 * 1024;

/// In bulk, one connection of so many is checked byte for byte, the others by their
/// length: a load that copied and compared everything would be slower than a proxy that
/// splices.
const CHECKED: usize = 4;

/// How long [`Rig::gather`] waits for the last answer: a connection for which the proxy
/// has no room is tried again after 1, 3, 7 and 15 seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long answers that are under way may still take once a run is over.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// The load and the backend.
pub struct Rig {
    epoll: OwnedFd,
    events: Vec<Event>,
    slots: Vec<Slot>,
    vacant: Vec<usize>,
    scratch: Vec<u8>,
    content: Content,
    address: SocketAddr,
    accepted: u64,
    /// Right answers of the backend.
    served: u64,
    now: Instant,
    load: Option<Load>,
    /// A client's side of TLS for each proxy, so that it can resume.
    secured: HashMap<(SocketAddr, Secure), Arc<ClientConfig>>,
}

/// A place for a connection. The number tells late events of an earlier one apart.
#[derive(Default)]
struct Slot {
    number: u32,
    end: Option<End>,
}

struct End {
    fd: OwnedFd,
    role: Role,
}

enum Role {
    Door,
    Backend(Backend),
    Client(Client),
}

impl Rig {
    /// Listens for the proxy.
    ///
    /// # Errors
    /// When a socket or memory is refused.
    pub fn new() -> Result<Rig> {
        // Due times are 100 µs apart; the default slack of timers is half of that.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
        let door =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
        bind(&door, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        sockopt::set_tcp_nodelay(&door, true)?;
        listen(&door, 4096)?;
        let address = SocketAddr::try_from(rustix::net::getsockname(&door)?)?;
        let mut rig = Rig {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(256),
            slots: Vec::new(),
            vacant: Vec::new(),
            scratch: vec![0; SCRATCH],
            content: Content::new()?,
            address,
            accepted: 0,
            served: 0,
            now: Instant::now(),
            load: None,
            secured: HashMap::new(),
        };
        rig.watch(door, Role::Door)?;
        Ok(rig)
    }

    /// Where the backend listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs a plan against a proxy; `watch` is called when the measured time begins
    /// and when it ends, with the process that is a part of the load, if one is.
    ///
    /// # Errors
    /// Whatever makes the run worthless: a wrong answer, a connection that was closed,
    /// a rate that was not held.
    pub fn run<T>(
        &mut self,
        plan: &Plan,
        target: SocketAddr,
        watch: &mut dyn FnMut(Option<u32>) -> Result<T>,
    ) -> Result<Outcome<T>> {
        if let Some(streams) = plan.streams {
            return self.multiplexed(plan, streams, target, watch);
        }
        self.begin(plan, target)?;
        let accepted = self.accepted;
        let outcome = self.stages(plan, accepted, watch);
        self.release();
        outcome
    }

    /// Begins a run that goes as its caller likes, until [`Rig::release`].
    ///
    /// # Errors
    /// When connections of an earlier one don't end.
    pub fn begin(&mut self, plan: &Plan, target: SocketAddr) -> Result<()> {
        self.settle()?;
        self.load = Some(Load::new(plan, target, &self.content));
        Ok(())
    }

    /// Opens so many connections more, of which at most `at_once` are without their
    /// answer at any time; each asks once, with [`Pace::Once`], and stays.
    ///
    /// # Errors
    /// When an answer is wrong or missing, or a connection is closed.
    pub fn gather(&mut self, count: usize, at_once: usize) -> Result<()> {
        let load = self.load()?;
        let whole = load.gathered + count;
        let first = count.min(at_once);
        load.unopened = count - first;
        for _ in 0..first {
            self.open()?;
        }
        let until = Instant::now() + PATIENCE;
        while self.load()?.gathered < whole {
            if Instant::now() > until {
                bail!("{} of {whole} connections got their answer within {PATIENCE:?}", self.load()?.gathered);
            }
            self.turn(Duration::from_millis(10))?;
        }
        Ok(())
    }

    /// Lets time pass, and serves what comes.
    ///
    /// # Errors
    /// When a connection is closed.
    pub fn rest(&mut self, time: Duration) -> Result<()> {
        self.turn_until(Instant::now() + time)
    }

    /// Ends a run, and closes its connections.
    pub fn release(&mut self) {
        self.load = None;
        for index in 0..self.slots.len() {
            let is_client = |end: &End| matches!(end.role, Role::Client(_));
            if self.slots.get(index).and_then(|slot| slot.end.as_ref()).is_some_and(is_client) {
                self.close(index);
            }
        }
    }

    /// Serves what `h2load` makes a proxy ask. When each request was asked nobody knows here,
    /// so there are no latencies.
    fn multiplexed<T>(
        &mut self,
        plan: &Plan,
        streams: u32,
        target: SocketAddr,
        watch: &mut dyn FnMut(Option<u32>) -> Result<T>,
    ) -> Result<Outcome<T>> {
        self.settle()?;
        let (earlier, idle) = (self.accepted, self.served);
        let mut h2load = H2load::start(plan, target, streams)?;
        let begun = Instant::now();
        while self.served == idle {
            if begun.elapsed() > LAST_ANSWERS {
                bail!("h2load asked nothing within {LAST_ANSWERS:?}");
            }
            self.turn(Duration::from_millis(1))?;
        }
        self.turn_until(Instant::now() + plan.warm)?;
        let before = (watch(Some(h2load.pid()))?, self.accepted, self.served, Instant::now());
        self.turn_until(before.3 + plan.time)?;
        let time = before.3.elapsed();
        let after = (watch(Some(h2load.pid()))?, self.accepted, self.served);
        if h2load.has_ended()? {
            bail!("h2load ended before the measured time did");
        }
        while !h2load.has_ended()? {
            self.turn(Duration::from_millis(10))?;
        }
        let answered = after.2 - before.2;
        if answered == 0 {
            bail!("no answer in {time:?}");
        }
        Ok(Outcome {
            usage: (before.0, after.0),
            time,
            answered,
            received: answered * u64::try_from(plan.exchange.download())?,
            latencies: Histogram::default(),
            accepted: (before.1 - earlier, after.1 - before.1),
        })
    }

    fn stages<T>(
        &mut self,
        plan: &Plan,
        earlier: u64,
        watch: &mut dyn FnMut(Option<u32>) -> Result<T>,
    ) -> Result<Outcome<T>> {
        for _ in 0..plan.connections {
            self.open()?;
        }
        self.turn_until(Instant::now() + plan.warm)?;
        let before = (watch(None)?, self.accepted, Instant::now());
        self.load()?.measuring = true;
        self.turn_until(before.2 + plan.time)?;
        let time = before.2.elapsed();
        let after = (watch(None)?, self.accepted);
        let load = self.load()?;
        load.measuring = false;
        load.asking = false;
        let (answered, received, otherwise) = (load.answered, load.received, load.otherwise);
        let latencies = std::mem::take(&mut load.latencies);
        self.last_answers()?;
        if answered == 0 && received == 0 {
            bail!("no answer in {time:?}");
        }
        // A connection that is kept made its handshake long before.
        if !plan.keep && otherwise * 20 > answered {
            bail!("{otherwise} of {answered} handshakes were not {:?}", plan.secure);
        }
        if let Pace::Rate(rate) = plan.pace {
            let held = answered as f64 / time.as_secs_f64();
            if held < 0.98 * f64::from(rate) {
                bail!("{held:.0} answers a second instead of {rate}");
            }
        }
        Ok(Outcome {
            usage: (before.0, after.0),
            time,
            answered,
            received,
            latencies,
            accepted: (before.1 - earlier, after.1 - before.1),
        })
    }

    /// Waits for the answers that are under way.
    fn last_answers(&mut self) -> Result<()> {
        let until = Instant::now() + LAST_ANSWERS;
        loop {
            let busy =
                |slot: &&Slot| matches!(&slot.end, Some(End { role: Role::Client(client), .. }) if client.is_busy());
            let left = self.slots.iter().filter(busy).count();
            if left == 0 {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("{left} requests got no answer within {LAST_ANSWERS:?}");
            }
            self.turn(Duration::from_millis(10))?;
        }
    }

    /// Takes what came since the last run: connections of a proxy that is gone.
    pub fn settle(&mut self) -> Result<()> {
        for _ in 0..1000 {
            if !self.turn(Duration::ZERO)? {
                return Ok(());
            }
        }
        bail!("connections that no run has made are busy")
    }

    fn load(&mut self) -> Result<&mut Load> {
        self.load.as_mut().context("no run is under way")
    }

    fn turn_until(&mut self, until: Instant) -> Result<()> {
        loop {
            let mut wait = until.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Ok(());
            }
            if let Some(due) = self.due()? {
                wait = wait.min(due);
            }
            self.turn(wait)?;
        }
    }

    /// Asks what is due; how long it is until the next request is.
    fn due(&mut self) -> Result<Option<Duration>> {
        let Some(load) = &mut self.load else { return Ok(None) };
        let Pace::Rate(rate) = load.pace else { return Ok(None) };
        let now = Instant::now();
        let step = Duration::from_secs(1) / rate;
        while load.due <= now {
            load.late.push_back(load.due);
            load.due += step;
        }
        let next = load.due - now;
        while let Some(load) = &mut self.load {
            let Some(&since) = load.late.front() else { break };
            let Some(index) = load.idle.pop_front() else { break };
            load.late.pop_front();
            self.ask(index, since)?;
        }
        Ok(Some(next))
    }

    /// Serves what is ready; false when nothing was.
    fn turn(&mut self, wait: Duration) -> Result<bool> {
        let timeout = Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout))?;
        self.now = Instant::now();
        for event in &events {
            self.serve(event.data.u64(), event.flags)?;
        }
        let some = !events.is_empty();
        self.events = events;
        match self.load.as_mut().and_then(|load| load.failure.take()) {
            Some(failure) => bail!(failure),
            None => Ok(some),
        }
    }

    fn serve(&mut self, token: u64, flags: EventFlags) -> Result<()> {
        let index = usize::try_from(token & 0xffff_ffff).unwrap_or(usize::MAX);
        let Some(slot) = self.slots.get_mut(index) else { return Ok(()) };
        if u64::from(slot.number) != token >> 32 {
            return Ok(());
        }
        let Some(end) = &mut slot.end else { return Ok(()) };
        match &mut end.role {
            Role::Door => self.accept(index),
            Role::Backend(backend) => {
                // A proxy that resets or misuses a connection shows in its own answers.
                let answered = backend.answered;
                let goes_on = backend.ready(&end.fd, flags, &mut self.scratch, &self.content).unwrap_or(false);
                self.served += backend.answered - answered;
                if !goes_on {
                    self.close(index);
                }
                Ok(())
            }
            Role::Client(client) => {
                let Some(load) = &mut self.load else { return Ok(()) };
                let received = client.received;
                let step = client.ready(&end.fd, flags, &mut self.scratch, &load.script, &self.content.text);
                if load.measuring {
                    load.received += client.received - received;
                }
                match step {
                    Ok(Step::Wait) => Ok(()),
                    Ok(Step::Answered) => {
                        if load.measuring {
                            load.otherwise += u64::from(!client.is(load.secure));
                            load.answered += 1;
                            load.latencies.record(self.now.saturating_duration_since(client.since));
                        }
                        self.answered(index)
                    }
                    Err(failure) => {
                        load.failure = Some(failure);
                        Ok(())
                    }
                }
            }
        }
    }

    /// Lets the connection ask again, or takes a new one for it.
    fn answered(&mut self, index: usize) -> Result<()> {
        let load = self.load()?;
        let (asking, keep, pace) = (load.asking, load.keep, load.pace);
        if !keep {
            self.close(index);
            return if asking { self.open() } else { Ok(()) };
        }
        match pace {
            Pace::Saturated if asking => self.ask(index, self.now),
            Pace::Saturated => Ok(()),
            Pace::Rate(_) => {
                self.load()?.idle.push_back(index);
                Ok(())
            }
            Pace::Once => {
                let load = self.load()?;
                load.gathered += 1;
                match load.unopened.checked_sub(1) {
                    Some(left) => {
                        load.unopened = left;
                        self.open()
                    }
                    None => Ok(()),
                }
            }
        }
    }

    fn ask(&mut self, index: usize, since: Instant) -> Result<()> {
        let Some(load) = &mut self.load else { return Ok(()) };
        let end = self.slots.get_mut(index).and_then(|slot| slot.end.as_mut());
        if let Some(End { fd, role: Role::Client(client) }) = end {
            client.ask(fd, since, &load.script).map_err(anyhow::Error::msg)?;
        }
        Ok(())
    }

    /// Opens a connection to the proxy and, when saturated, asks.
    fn open(&mut self) -> Result<()> {
        let since = Instant::now();
        let load = self.load()?;
        let (target, pace) = (load.target, load.pace);
        let checks = !load.script.is_bulk() || load.opened % CHECKED == 0;
        let (secure, http2) = (load.secure, load.http2);
        load.opened += 1;
        let speaks = match secure {
            None => Speaks::Clear,
            Some(secure) => {
                let config = match self.secured.entry((target, secure)) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(vacant) => vacant.insert(secure.config(http2)?),
                };
                if http2 {
                    Speaks::Http2(Box::new(Http2::new(config)?))
                } else {
                    Speaks::Tls(Box::new(Tls::new(config)?))
                }
            }
        };
        let client = Client::new(since, checks, speaks);
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        if secure.is_some() {
            // The end of the handshake and the request are two writes: the second would wait
            // for the kernel's late acknowledgement of the first.
            sockopt::set_tcp_nodelay(&fd, true)?;
        }
        match connect(&fd, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => bail!("the proxy took no connection: {error}"),
        }
        let index = self.watch(fd, Role::Client(client))?;
        match pace {
            Pace::Saturated | Pace::Once => self.ask(index, since),
            Pace::Rate(_) => {
                self.load()?.idle.push_back(index);
                Ok(())
            }
        }
    }

    fn accept(&mut self, door: usize) -> Result<()> {
        loop {
            let Some(End { fd, .. }) = self.slots.get(door).and_then(|slot| slot.end.as_ref()) else { return Ok(()) };
            match accept_with(fd, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(fd) => {
                    self.accepted += 1;
                    self.watch(fd, Role::Backend(Backend::default()))?;
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::CONNABORTED) => {}
                Err(error) => return Err(io::Error::from(error)).context("the backend can't accept"),
            }
        }
    }

    fn watch(&mut self, fd: OwnedFd, role: Role) -> Result<usize> {
        let index = self.vacant.pop().unwrap_or(self.slots.len());
        if index == self.slots.len() {
            self.slots.push(Slot::default());
        }
        let slot = self.slots.get_mut(index).context("a slot")?;
        let token = (u64::from(slot.number) << 32) | u64::try_from(index)?;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, &fd, EventData::new_u64(token), flags)?;
        slot.end = Some(End { fd, role });
        Ok(index)
    }

    fn close(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index) {
            slot.end = None;
            slot.number = slot.number.wrapping_add(1);
            self.vacant.push(index);
        }
    }
}

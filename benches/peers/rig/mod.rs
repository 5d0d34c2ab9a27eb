//! The load and the backend: one thread, one epoll, so that both fit on one core
//! beside the proxy's and leave it the bottleneck.
//!
//! Edge-triggered: an exchange costs the load one write and one read, the backend one
//! read and one write, and one `epoll_pwait2` serves as many of them as are ready.

pub mod backend;
pub mod client;
pub mod content;
pub mod histogram;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with, sockopt};
use rustix::time::Timespec;

use backend::Backend;
use client::{Client, Script, Step};
use content::{Content, Exchange};
use histogram::Histogram;

/// Bytes read at once.
const SCRATCH: usize = 256 * 1024;

/// How long answers that are under way may still take once a run is over.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// How the load asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Each connection asks again as soon as it has its answer.
    Saturated,
    /// So many requests a second, whether answers come or not; latency counts from
    /// when a request was due, so that a stall is not hidden by the requests that it
    /// kept from being sent.
    Rate(u32),
}

/// A run of load.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What is asked.
    pub exchange: Exchange,
    /// Connections open at once.
    pub connections: usize,
    /// Whether a connection is kept for the next request.
    pub keep: bool,
    /// How the load asks.
    pub pace: Pace,
    /// Time before the measured one.
    pub warm: Duration,
    /// Measured time.
    pub time: Duration,
}

/// What a run of load gave.
pub struct Outcome<T> {
    /// What the caller read when the measured time began and when it ended.
    pub usage: (T, T),
    /// Measured time, as it really was.
    pub time: Duration,
    /// Right answers in that time.
    pub answered: u64,
    /// Their latencies.
    pub latencies: Histogram,
    /// Connections that the backend accepted: before the measured time, and in it.
    pub accepted: (u64, u64),
}

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
    now: Instant,
    load: Option<Load>,
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

/// A run that is under way.
struct Load {
    script: Script,
    target: SocketAddr,
    keep: bool,
    pace: Pace,
    /// When the next request is due, at a fixed rate.
    due: Instant,
    /// Due times that wait for a connection.
    late: VecDeque<Instant>,
    idle: VecDeque<usize>,
    asking: bool,
    measuring: bool,
    answered: u64,
    latencies: Histogram,
    failure: Option<String>,
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
            now: Instant::now(),
            load: None,
        };
        rig.watch(door, Role::Door)?;
        Ok(rig)
    }

    /// Where the backend listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs a plan against a proxy; `watch` is called when the measured time begins
    /// and when it ends.
    ///
    /// # Errors
    /// Whatever makes the run worthless: a wrong answer, a connection that was closed,
    /// a rate that was not held.
    pub fn run<T>(
        &mut self,
        plan: &Plan,
        target: SocketAddr,
        watch: &mut dyn FnMut() -> Result<T>,
    ) -> Result<Outcome<T>> {
        self.settle()?;
        let accepted = self.accepted;
        self.load = Some(Load::new(plan, target, &self.content));
        let outcome = self.stages(plan, accepted, watch);
        self.load = None;
        for index in 0..self.slots.len() {
            let is_client = |end: &End| matches!(end.role, Role::Client(_));
            if self.slots.get(index).and_then(|slot| slot.end.as_ref()).is_some_and(is_client) {
                self.close(index);
            }
        }
        outcome
    }

    fn stages<T>(&mut self, plan: &Plan, earlier: u64, watch: &mut dyn FnMut() -> Result<T>) -> Result<Outcome<T>> {
        for _ in 0..plan.connections {
            self.open()?;
        }
        self.turn_until(Instant::now() + plan.warm)?;
        let before = (watch()?, self.accepted, Instant::now());
        self.load()?.measuring = true;
        self.turn_until(before.2 + plan.time)?;
        let time = before.2.elapsed();
        let after = (watch()?, self.accepted);
        let load = self.load()?;
        load.measuring = false;
        load.asking = false;
        let answered = load.answered;
        let latencies = std::mem::take(&mut load.latencies);
        self.last_answers()?;
        if answered == 0 {
            bail!("no answer in {time:?}");
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
                if !backend.ready(&end.fd, flags, &mut self.scratch, &self.content).unwrap_or(false) {
                    self.close(index);
                }
                Ok(())
            }
            Role::Client(client) => {
                let Some(load) = &mut self.load else { return Ok(()) };
                match client.ready(&end.fd, flags, &mut self.scratch, &load.script, &self.content.text) {
                    Ok(Step::Wait) => Ok(()),
                    Ok(Step::Answered) => {
                        if load.measuring {
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
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        match connect(&fd, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => bail!("the proxy took no connection: {error}"),
        }
        let index = self.watch(fd, Role::Client(Client::new(since)))?;
        match pace {
            Pace::Saturated => self.ask(index, since),
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
        let token = u64::from(slot.number) << 32 | u64::try_from(index)?;
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

impl Load {
    fn new(plan: &Plan, target: SocketAddr, content: &Content) -> Load {
        Load {
            script: Script::new(plan.exchange, plan.keep, &content.text),
            target,
            keep: plan.keep,
            pace: plan.pace,
            due: Instant::now(),
            late: VecDeque::new(),
            idle: VecDeque::new(),
            asking: true,
            measuring: false,
            answered: 0,
            latencies: Histogram::default(),
            failure: None,
        }
    }
}

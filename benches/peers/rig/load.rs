//! What a run of load is to do, how far it is, and what it gave.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::client::Script;
use super::content::{Content, Exchange};
use super::histogram::Histogram;
use super::secure::Secure;

/// How the load asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Each connection asks again as soon as it has its answer.
    Saturated,
    /// So many requests a second, whether answers come or not; latency counts from
    /// when a request was due, so that a stall is not hidden by the requests that it
    /// kept from being sent.
    Rate(u32),
    /// Each connection asks once and stays; see [`super::Rig::gather`].
    Once,
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
    /// How connections are secured, if they are.
    pub secure: Option<Secure>,
    /// Requests at once on each connection, over HTTP/2; else it is HTTP/1.1, and one.
    pub streams: Option<u32>,
    /// How the load asks.
    pub pace: Pace,
    /// Time before the measured one.
    pub warm: Duration,
    /// Measured time.
    pub time: Duration,
}

impl Plan {
    /// A small GET on each connection, or so many on each of HTTP/2, that [`super::Rig::gather`] opens.
    pub fn once(secure: Option<Secure>, streams: Option<u32>) -> Plan {
        Plan {
            secure,
            exchange: Exchange::Small,
            connections: 0,
            keep: true,
            streams,
            pace: Pace::Once,
            warm: Duration::ZERO,
            time: Duration::ZERO,
        }
    }
}

/// What a run of load gave.
pub struct Outcome<T> {
    /// What the caller read when the measured time began and when it ended.
    pub usage: (T, T),
    /// Measured time, as it really was.
    pub time: Duration,
    /// Right answers in that time.
    pub answered: u64,
    /// Bytes of bodies in that time, those of answers under way too.
    pub received: u64,
    /// Their latencies.
    pub latencies: Histogram,
    /// Connections that the backend accepted: before the measured time, and in it.
    pub accepted: (u64, u64),
}

/// A run that is under way.
pub struct Load {
    /// What is sent and expected.
    pub script: Script,
    /// The proxy.
    pub target: SocketAddr,
    /// As in the plan.
    pub keep: bool,
    /// As in the plan.
    pub pace: Pace,
    /// As in the plan.
    pub secure: Option<Secure>,
    /// Whether connections speak HTTP/2.
    pub http2: bool,
    /// Answers on connections that were secured in another way.
    pub otherwise: u64,
    /// When the next request is due, at a fixed rate.
    pub due: Instant,
    /// Due times that wait for a connection.
    pub late: VecDeque<Instant>,
    /// Connections that wait for a due time.
    pub idle: VecDeque<usize>,
    /// Whether answers are followed by requests.
    pub asking: bool,
    /// Whether answers are counted.
    pub measuring: bool,
    /// Right answers.
    pub answered: u64,
    /// Bytes of bodies.
    pub received: u64,
    /// Connections opened so far.
    pub opened: usize,
    /// With [`Pace::Once`], connections that are still to be opened.
    pub unopened: usize,
    /// With [`Pace::Once`], connections that have had their answer.
    pub gathered: usize,
    /// Their latencies.
    pub latencies: Histogram,
    /// What ended the run.
    pub failure: Option<String>,
}

impl Load {
    /// Nothing is open yet.
    pub fn new(plan: &Plan, target: SocketAddr, content: &Content) -> Load {
        Load {
            script: Script::new(plan.exchange, plan.keep, plan.streams.unwrap_or(1), &content.text),
            target,
            keep: plan.keep,
            pace: plan.pace,
            secure: plan.secure,
            http2: plan.streams.is_some(),
            otherwise: 0,
            due: Instant::now(),
            late: VecDeque::new(),
            idle: VecDeque::new(),
            asking: true,
            measuring: false,
            answered: 0,
            received: 0,
            opened: 0,
            unopened: 0,
            gathered: 0,
            latencies: Histogram::default(),
            failure: None,
        }
    }
}

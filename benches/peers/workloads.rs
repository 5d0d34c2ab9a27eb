//! What is measured.

use std::time::Duration;

use crate::contenders::Duty;
use crate::rig::content::Exchange;
use crate::rig::load::{Pace, Plan};
use crate::rig::secure::Secure;

/// A workload.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// For `--workload` and the log.
    pub name: &'static str,
    /// For the tables.
    pub title: &'static str,
    /// Whether `--quick` runs it.
    pub quick: bool,
    exchange: Exchange,
    keep: bool,
    secure: Option<Secure>,
    pace: Pace,
    connections: usize,
    /// Requests at once on a connection of HTTP/2; without, it is one of HTTP/1.1.
    streams: Option<u32>,
    workers: usize,
    /// What the figures are for.
    pub unit: Unit,
}

/// What processor time and speed are counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Requests that were answered: microseconds for each, and so many a second.
    Request,
    /// Bytes: milliseconds for each GiB, and so many MiB a second.
    Byte,
}

const SATURATED: Workload = Workload {
    name: "get",
    title: "small GET, keep-alive, saturated",
    quick: true,
    exchange: Exchange::Small,
    keep: true,
    secure: None,
    pace: Pace::Saturated,
    connections: 64,
    streams: None,
    workers: 1,
    unit: Unit::Request,
};

/// All of them, in the order of the tables.
pub const ALL: &[Workload] = &[
    SATURATED,
    Workload {
        name: "get-10k",
        title: "small GET, keep-alive, 10,000 a second",
        quick: false,
        pace: Pace::Rate(10_000),
        ..SATURATED
    },
    Workload { name: "new", title: "new connection for each small GET", keep: false, ..SATURATED },
    Workload {
        name: "16k",
        title: "16 KiB answer, keep-alive",
        quick: false,
        exchange: Exchange::Kib16,
        connections: 32,
        ..SATURATED
    },
    Workload { name: "1m", title: "1 MiB answer, keep-alive", exchange: Exchange::Mib1, connections: 16, ..SATURATED },
    Workload {
        name: "post",
        title: "POST of 64 KiB, keep-alive",
        quick: false,
        exchange: Exchange::Post,
        connections: 32,
        ..SATURATED
    },
    Workload {
        name: "two",
        title: "small GET, keep-alive, saturated, two workers on two cores",
        quick: false,
        workers: 2,
        connections: 128,
        ..SATURATED
    },
    Workload {
        name: "tls-full",
        title: "TLS: full handshake (P-256, X25519) and small GET on each connection",
        quick: false,
        keep: false,
        secure: Some(Secure::Full),
        connections: 16,
        ..SATURATED
    },
    Workload {
        name: "tls-resumed",
        title: "TLS: resumed handshake and small GET on each connection",
        quick: false,
        keep: false,
        secure: Some(Secure::Resumed),
        // As many tickets of one server are kept at once.
        connections: 8,
        ..SATURATED
    },
    Workload {
        name: "tls-get",
        title: "TLS: small GET, keep-alive, saturated",
        quick: false,
        secure: Some(Secure::Full),
        ..SATURATED
    },
    Workload {
        name: "tls-1m",
        title: "TLS: 1 MiB answer, keep-alive",
        quick: false,
        secure: Some(Secure::Full),
        exchange: Exchange::Mib1,
        connections: 16,
        ..SATURATED
    },
    Workload {
        name: "h2-get",
        title: "HTTP/2 over TLS: small GET, 8 connections of 32 streams, saturated",
        quick: false,
        secure: Some(Secure::Full),
        connections: 8,
        streams: Some(32),
        ..SATURATED
    },
    Workload {
        name: "h2c-get",
        title: "HTTP/2 in clear: small GET, 8 connections of 32 streams, saturated",
        quick: false,
        connections: 8,
        streams: Some(32),
        ..SATURATED
    },
    Workload {
        name: "tcp-bulk",
        title: "TCP: bulk, four connections",
        quick: false,
        exchange: Exchange::Bulk,
        connections: 4,
        unit: Unit::Byte,
        ..SATURATED
    },
    Workload {
        name: "tcp-ping",
        title: "TCP: 64 bytes to and fro, saturated",
        quick: false,
        exchange: Exchange::Ping,
        ..SATURATED
    },
];

impl Workload {
    /// How many requests there are at once.
    pub fn clients(&self) -> u64 {
        self.connections as u64 * self.streams.map_or(1, u64::from)
    }

    /// A turn of load for it; the first one of a proxy warms it up.
    pub fn plan(&self, quick: bool, first: bool) -> Plan {
        let warm = if first { 150 } else { 25 };
        let time = if quick { 100 } else { 250 };
        Plan {
            exchange: self.exchange,
            connections: self.connections,
            keep: self.keep,
            secure: self.secure,
            streams: self.streams,
            pace: self.pace,
            warm: Duration::from_millis(warm),
            time: Duration::from_millis(time),
        }
    }

    /// What the contender must be set up for.
    pub fn duty(&self) -> Duty {
        Duty {
            tcp: self.exchange.is_plain(),
            tls: self.secure.is_some(),
            http2: self.streams.is_some(),
            workers: self.workers,
            bodies: self.exchange.upload() + self.exchange.download() > 8192,
            clients: self.connections,
        }
    }

    /// Whether the proxy is given as much as it can take, so that requests a second say
    /// something.
    pub fn is_saturated(&self) -> bool {
        self.pace == Pace::Saturated
    }
}

//! How many connections each worker has, from what its epoll waits for: no contender
//! has to tell.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail};

use super::Bench;
use crate::contenders::{Contender, Duty};
use crate::rig::load::Plan;
use crate::table::Spread;
use crate::usage;

/// Connections.
const CLIENTS: usize = 800;

/// Connections in a burst.
const BURST: usize = 100;

/// How often each way is tried.
const TRIES: usize = 3;

/// Two and eight workers, one by one and in bursts.
pub fn look(bench: &mut Bench, contender: &Contender) -> Result<Vec<String>> {
    let mut cells = Vec::new();
    for workers in [2, 8] {
        for at_once in [1, BURST] {
            let mut tries = Vec::new();
            for _ in 0..TRIES {
                tries.push(uneven(bench, contender, workers, at_once)?);
            }
            cells.push(Spread::of(tries).context("no try")?.show(0));
        }
    }
    Ok(cells)
}

/// The largest distance of a worker's share from the even one, in percent of that.
fn uneven(bench: &mut Bench, contender: &Contender, workers: usize, at_once: usize) -> Result<f64> {
    let counts = bench.with(contender, Duty::http(workers, CLIENTS), |rig, running| {
        rig.begin(&Plan::once(None, None), running.address)?;
        for _ in 0..CLIENTS / at_once {
            rig.gather(at_once, at_once)?;
        }
        counts(running.pid(), running.address, workers)
    })?;
    let even = CLIENTS as f64 / workers as f64;
    Ok(counts.into_iter().map(|count| (count as f64 - even).abs() / even * 100.0).fold(0.0, f64::max))
}

/// How many connections of clients each epoll of these processes watches.
fn counts(pid: u32, address: SocketAddr, workers: usize) -> Result<Vec<usize>> {
    let clients = accepted(address)?;
    // An epoll that was duplicated is found twice, with the same connections.
    let mut epolls = BTreeSet::new();
    for pid in usage::tree(pid) {
        for info in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("the proxy is gone")? {
            // A descriptor may be closed meanwhile.
            let info = fs::read_to_string(info?.path()).unwrap_or_default();
            let watched: BTreeSet<u64> =
                info.lines().filter_map(watched).filter(|inode| clients.contains(inode)).collect();
            epolls.insert(watched);
        }
    }
    let mut counts: Vec<usize> = epolls.iter().map(BTreeSet::len).filter(|count| *count > 0).collect();
    counts.resize(workers.max(counts.len()), 0);
    let sum: usize = counts.iter().sum();
    if sum != CLIENTS || counts.len() != workers {
        bail!("{sum} of {CLIENTS} connections found, with {} of {workers} workers", counts.len());
    }
    Ok(counts)
}

/// The inode in a line about what an epoll watches.
fn watched(line: &str) -> Option<u64> {
    let words: BTreeMap<&str, &str> =
        line.strip_prefix("tfd:").and(Some(line))?.split_whitespace().filter_map(|word| word.split_once(':')).collect();
    u64::from_str_radix(words.get("ino")?, 16).ok()
}

/// The inodes of the connections that a listening socket at this address has taken.
fn accepted(address: SocketAddr) -> Result<BTreeSet<u64>> {
    let SocketAddr::V4(address) = address else { bail!("not an IPv4 address") };
    // As the kernel writes it: the bytes in memory order, as one number.
    let local = format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port());
    let mut inodes = BTreeSet::new();
    for line in fs::read_to_string("/proc/net/tcp")?.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // 1 is an established connection.
        if let [_, at, _, "01", _, _, _, _, _, inode, ..] = fields.as_slice() {
            if *at == local {
                inodes.insert(inode.parse()?);
            }
        }
    }
    Ok(inodes)
}

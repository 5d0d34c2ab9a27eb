//! Memory of idle connections. Each has made one request, so that a proxy that keeps
//! what it once needed shows it.

use std::time::Duration;

use anyhow::Result;

use super::Bench;
use crate::contenders::{Contender, Duty};
use crate::process::Running;
use crate::rig::Rig;
use crate::rig::load::Plan;
use crate::rig::secure::Secure;
use crate::usage::Memory;

/// Connections.
const CLIENTS: usize = 9000;

/// Requests at once when they are opened gently.
const GENTLE: usize = 64;

/// Memory that stays the same for this long is what it will be.
const QUIET: Duration = Duration::from_millis(500);

/// How often that is waited for.
const LOOKS: usize = 20;

/// Requests at once on a connection of HTTP/2, as of a client that loads a page.
const PAGE: u32 = 32;

/// Connections with as many that are under way at once.
const GENTLE_PAGES: usize = 8;

/// How the connections came about.
struct Case {
    /// Requests at once on each, over HTTP/2.
    streams: Option<u32>,
    /// Connections at once that are without their answers.
    at_once: usize,
}

/// Both ways to open them, each with a fresh process.
pub fn look(bench: &mut Bench, contender: &Contender) -> Result<Vec<String>> {
    each(bench, contender, Duty::http(1, CLIENTS), &opened(None))
}

/// The same over TLS.
pub fn look_secured(bench: &mut Bench, contender: &Contender) -> Result<Vec<String>> {
    each(bench, contender, Duty { tls: true, ..Duty::http(1, CLIENTS) }, &opened(None))
}

/// The same over HTTP/2; and after many requests at once.
pub fn look_http2(bench: &mut Bench, contender: &Contender) -> Result<Vec<String>> {
    let mut cases = Vec::from(opened(Some(1)));
    cases.push(Case { streams: Some(PAGE), at_once: GENTLE_PAGES });
    each(bench, contender, Duty { tls: true, http2: true, ..Duty::http(1, CLIENTS) }, &cases)
}

fn opened(streams: Option<u32>) -> [Case; 2] {
    [GENTLE, CLIENTS].map(|at_once| Case { streams, at_once })
}

fn each(bench: &mut Bench, contender: &Contender, duty: Duty, cases: &[Case]) -> Result<Vec<String>> {
    let mut cells = Vec::new();
    let mut whole = 0.0;
    for case in cases {
        let plan = Plan::once(duty.tls.then_some(Secure::Full), case.streams);
        let (before, after) = bench.with(contender, duty, |rig, running| hold(rig, running, &plan, case.at_once))?;
        let each = |after: f64, before: f64| format!("{:.2}", (after - before) / CLIENTS as f64 / 1024.0);
        cells.push(each(after.resident, before.resident));
        cells.push(each(after.proportional, before.proportional));
        cells.push(each(after.peak, before.resident));
        whole = after.resident / 1024.0 / 1024.0;
    }
    cells.push(format!("{whole:.1}"));
    Ok(cells)
}

/// Memory with one connection, and with all of them once it no longer changes.
fn hold(rig: &mut Rig, running: &Running, plan: &Plan, at_once: usize) -> Result<(Memory, Memory)> {
    rig.begin(plan, running.address)?;
    // What the first connection alone needs is there for all.
    rig.gather(1, 1)?;
    let before = Memory::of(running.pid())?;
    rig.gather(CLIENTS, at_once)?;
    let mut after = Memory::of(running.pid())?;
    for _ in 0..LOOKS {
        rig.rest(QUIET)?;
        let now = Memory::of(running.pid())?;
        let same = now.resident == after.resident;
        after = now;
        if same {
            break;
        }
    }
    Ok((before, after))
}

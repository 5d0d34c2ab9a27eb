//! What is not a matter of rounds: counts that come out alike each time.
//!
//! | module | what |
//! | --- | --- |
//! | `memory` | memory of idle connections |
//! | `calls` | system calls for each request |
//! | `spread` | connections of each worker |

mod calls;
mod memory;
mod spread;

use std::io::{self, Write as _};

use anyhow::Result;

use crate::compare::Place;
use crate::contenders::{Contender, Duty};
use crate::options::Options;
use crate::process::Running;
use crate::rig::Rig;

/// Something to find out about each contender.
pub struct Probe {
    /// For `--workload`.
    pub name: &'static str,
    title: &'static str,
    /// What its columns say.
    head: &'static [&'static str],
    look: fn(&mut Bench, &Contender) -> Result<Vec<String>>,
}

/// What is said of memory over HTTP/1.1.
const MEMORY: &[&str] =
    &["", "RSS, opened gently", "PSS", "at the peak", "RSS, opened in one burst", "PSS", "at the peak", "MiB in all"];

/// All of them, in the order of the tables.
pub const ALL: &[Probe] = &[
    Probe {
        name: "memory",
        title: "9,000 idle keep-alive connections, each after one request: KiB for each",
        head: MEMORY,
        look: memory::look,
    },
    Probe {
        name: "tls-memory",
        title: "9,000 idle TLS connections, each after one request: KiB for each",
        head: MEMORY,
        look: memory::look_secured,
    },
    Probe {
        name: "h2-memory",
        title: "9,000 idle HTTP/2 connections over TLS, each after one request, or after 32 at once: KiB for each",
        head: &[
            "",
            "RSS, opened gently",
            "PSS",
            "at the peak",
            "RSS, opened in one burst",
            "PSS",
            "at the peak",
            "RSS, after 32 requests at once",
            "PSS",
            "at the peak",
            "MiB in all",
        ],
        look: memory::look_http2,
    },
    Probe {
        name: "calls",
        title: "system calls, saturated",
        head: &["", "for a small GET, keep-alive", "which", "for a one-request connection", "which"],
        look: calls::look,
    },
    Probe {
        name: "spread",
        title: "800 connections over the workers: largest distance from even, in %",
        head: &["", "2 workers, one by one", "in bursts of 100", "8 workers, one by one", "in bursts of 100"],
        look: spread::look,
    },
];

/// What came out.
pub struct Sheet {
    /// Which probe.
    pub name: &'static str,
    /// What it was about.
    pub title: &'static str,
    /// The head, and a row for each contender.
    pub rows: Vec<Vec<String>>,
    /// What went wrong.
    pub problems: Vec<String>,
}

/// What a probe works with.
pub struct Bench<'a> {
    rig: Rig,
    place: &'a Place,
}

impl Bench<'_> {
    /// Has a contender do its duty for as long as `work` takes; what it wrote is in the error.
    fn with<T>(
        &mut self,
        contender: &Contender,
        duty: Duty,
        work: impl FnOnce(&mut Rig, &Running) -> Result<T>,
    ) -> Result<T> {
        let (its, ours) = self.place.of(duty.workers);
        let running = Running::start(contender, duty, self.rig.address(), its, ours)?;
        let result = work(&mut self.rig, &running);
        self.rig.release();
        result.map_err(|error| error.context(running.said()))
    }
}

/// Looks into what the options ask for.
///
/// # Errors
/// When nothing can be found out here at all; what goes wrong with one contender is in
/// the sheet instead.
pub fn run(options: &Options, contenders: &[Contender], place: &Place) -> Result<Vec<Sheet>> {
    let mut sheets = Vec::new();
    for probe in ALL.iter().filter(|probe| options.wants(probe.name, false)) {
        let mut rows = vec![probe.head.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>()];
        let mut problems = Vec::new();
        for contender in contenders {
            if !contender.kind.can(probe.duty()) {
                continue;
            }
            let mut bench = Bench { rig: Rig::new()?, place };
            let mut row = vec![contender.name.clone()];
            match (probe.look)(&mut bench, contender) {
                Ok(cells) => row.extend(cells),
                Err(error) => {
                    row.resize(probe.head.len(), "failed".into());
                    problems.push(format!("{} failed: {error:#}", contender.name));
                }
            }
            // Without a standard error nobody watches.
            let _ = writeln!(io::stderr(), "{:8} {}", probe.name, row.join(" | "));
            rows.push(row);
        }
        sheets.push(Sheet { name: probe.name, title: probe.title, rows, problems });
    }
    Ok(sheets)
}

impl Probe {
    /// The most that it wants of a contender.
    fn duty(&self) -> Duty {
        match self.name {
            "spread" => Duty::http(8, 1),
            "tls-memory" => Duty { tls: true, ..Duty::http(1, 1) },
            "h2-memory" => Duty { tls: true, http2: true, ..Duty::http(1, 1) },
            _ => Duty::http(1, 1),
        }
    }
}

//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Compares doorward with its peers in one interleaved run, on this machine.
///
/// Each round runs every contender once for each workload, on one core, with the load
/// and the backend on another. Printed are the medians over the rounds; a ratio is
/// doorward's processor time for a request divided by the peer's in the same round.
#[derive(Debug, Parser)]
#[command(name = "benches/compare")]
pub struct Options {
    /// Three workloads in short runs: under three minutes.
    #[arg(long)]
    pub quick: bool,

    /// Rounds; 7 unless said otherwise.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,

    /// Runs this workload alone; may be given several times.
    #[arg(long, value_name = "NAME", value_parser = crate::workloads::names())]
    pub workload: Vec<String>,

    /// Compares with this peer alone; may be given several times: nginx, haproxy,
    /// haproxy-splice, relay, socket-proxyd, or the path of another doorward.
    #[arg(long, value_name = "NAME")]
    pub against: Vec<String>,

    /// Writes the tables to this file, as Markdown.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,

    /// The doorward to measure, instead of the one that was built with this.
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
}

impl Options {
    /// How many rounds there are.
    pub fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(7)
    }
}

//! What was run, where and when: a figure without that says nothing.

use std::fs;
use std::process::Command;
use std::time::SystemTime;

use anyhow::Result;

use crate::contenders::Contender;

/// Command, versions, machine and date, as a Markdown list.
///
/// # Errors
/// When a contender's program is missing.
pub fn about(script: &str, arguments: &[String], contenders: &[Contender]) -> Result<String> {
    // Paths come whole, but only what is in this tree means the same elsewhere.
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let words: Vec<&str> = arguments.iter().skip(1).map(|word| word.strip_prefix(here).unwrap_or(word)).collect();
    let mut lines = vec![format!("Command: `{}`", format!("benches/{script} {}", words.join(" ")).trim_end())];
    lines.push(format!("Date: {}", httpdate::fmt_http_date(SystemTime::now())));
    for contender in contenders {
        lines.push(format!("{}: {}", contender.name, contender.kind.version()?));
    }
    lines.push(format!("This tree: {}", commit()));
    lines.push(format!("Compiler: {}", said("rustc", &["-V"])));
    let system = rustix::system::uname();
    lines.push(format!("Kernel: {}", system.release().to_string_lossy()));
    lines.push(format!("Machine: {}", machine()));
    Ok(lines.iter().map(|line| format!("- {line}\n")).collect())
}

fn commit() -> String {
    let tree = env!("CARGO_MANIFEST_DIR");
    let commit = said("git", &["-C", tree, "rev-parse", "--short=12", "HEAD"]);
    // The table itself may be written into a file of the tree.
    let changed =
        said("git", &["-C", tree, "status", "--porcelain", "--untracked-files=no", "--", "src", "Cargo.lock"]);
    if changed.is_empty() { commit } else { format!("{commit}, changed since") }
}

fn machine() -> String {
    let first = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("unknown".into(), |(_, value)| value.trim().to_owned())
    };
    let cores = fs::read_to_string("/proc/cpuinfo").unwrap_or_default().matches("processor\t").count();
    let memory: u64 = first("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    let memory = memory / 1024;
    let model = first("/proc/cpuinfo", "model name");
    let congestion = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    format!("{cores} cores ({model}), {memory} MiB of memory, TCP congestion control {}", congestion.trim())
}

/// What a command says; nothing when it can't be run.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

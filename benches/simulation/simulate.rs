//! Simulates how requests are balanced, and prints tables: `simulate [--seed N]
//! [--markdown FILE]`. `benches/simulate` runs it.

#![expect(clippy::indexing_slicing, clippy::expect_used, reason = "a simulation stops at a fault of its own")]

mod keys;
mod scenes;
mod world;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use scenes::{sizes, troubles, workers};
use world::{Chooser, Outcome, run};

const CHOOSERS: [(&str, Chooser); 6] = [
    ("round-robin", Chooser::Pool("round-robin")),
    ("leastconn (HAProxy)", Chooser::Leastconn),
    ("least-requests", Chooser::Pool("least-requests")),
    ("p2c", Chooser::Pool("p2c")),
    ("hash:client", Chooser::Pool("hash:client")),
    ("sticky", Chooser::Pool("sticky")),
];

/// The lines in a document between which the tables stand.
const MARKS: [&str; 2] = ["<!-- tables -->\n", "<!-- /tables -->"];

fn main() -> Result<ExitCode> {
    let (mut seed, mut markdown, mut cost) = (1, None, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seed" => seed = arguments.next().context("--seed needs a number")?.parse().context("no number")?,
            "--markdown" => markdown = Some(PathBuf::from(arguments.next().context("--markdown needs a file")?)),
            "--cost" => cost = true,
            _ => bail!("usage: simulate [--seed N] [--markdown FILE] | simulate --cost"),
        }
    }
    if cost {
        writeln!(io::stdout(), "{}", costs())?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = tables(seed);
    match markdown {
        None => write!(io::stdout(), "{text}")?,
        Some(path) => {
            let old = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
            let [begin, end] = MARKS;
            let parts = old.split_once(begin).and_then(|(before, rest)| Some((before, rest.split_once(end)?.1)));
            let (before, after) = parts.context("the document has no place for the tables")?;
            std::fs::write(&path, format!("{before}{begin}\n{text}\n{end}{after}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn tables(seed: u64) -> String {
    let mut text = format!("Seed {seed}.\n");
    heading(&mut text, "All alike", "Backends that are alike, at 70 % of what they can do.");
    let mut rows = vec![columns(&["backends", "workers", "algorithm", "imbalance", "p50 ms", "p99 ms"])];
    for (backends, scene) in sizes() {
        for (name, chooser) in CHOOSERS {
            let outcome = run(&scene, chooser, seed);
            rows.push(vec![
                backends.to_string(),
                scene.workers.to_string(),
                name.into(),
                format!("{:.2}", outcome.imbalance),
                format!("{:.0}", outcome.p50),
                format!("{:.0}", outcome.p99),
            ]);
        }
    }
    table(&mut text, &rows);

    heading(
        &mut text,
        "Shared or apart",
        "Ten backends that are alike, at 70 %, before 1 to 64 workers: what workers have under way is shared, and what \
         it would be if each counted for itself.",
    );
    let mut rows = vec![columns(&["workers", "algorithm", "imbalance", "p99 ms", "imbalance apart", "p99 ms apart"])];
    for (workers, scene) in workers() {
        for balance in ["least-requests", "p2c"] {
            let (shared, apart) =
                (run(&scene, Chooser::Pool(balance), seed), run(&scene, Chooser::Apart(balance), seed));
            rows.push(vec![
                workers.to_string(),
                balance.into(),
                format!("{:.2}", shared.imbalance),
                format!("{:.0}", shared.p99),
                format!("{:.2}", apart.imbalance),
                format!("{:.0}", apart.p99),
            ]);
        }
    }
    table(&mut text, &rows);

    for trouble in troubles() {
        heading(&mut text, trouble.name, &trouble.about);
        let mut rows = vec![columns(&["algorithm", "p50 ms", "p99 ms", "imbalance", "attempts", "failed"])];
        let mut row = |name: &str, outcome: &Outcome| {
            rows.push(vec![
                name.into(),
                format!("{:.0}", outcome.p50),
                format!("{:.0}", outcome.p99),
                if trouble.spread { format!("{:.2}", outcome.imbalance) } else { "–".into() },
                format!("{:.3}", outcome.amplification),
                format!("{:.2} %", outcome.failed * 100.0),
            ]);
        };
        for (name, chooser) in CHOOSERS {
            row(name, &run(&trouble.scene, chooser, seed));
        }
        if matches!(trouble.name, "return" | "newcomer") {
            let slow = world::Scene { settings: "SLOW_START=10s\n", ..trouble.scene.clone() };
            for balance in ["round-robin", "least-requests", "p2c"] {
                row(&format!("{balance}, SLOW_START=10s"), &run(&slow, Chooser::Pool(balance), seed));
            }
        }
        if trouble.name.starts_with("outage") {
            let unbounded =
                world::Scene { settings: "RETRY_ON=connect,reset,503\nRETRY_BUDGET=off\n", ..trouble.scene.clone() };
            row("p2c, RETRY_BUDGET=off", &run(&unbounded, Chooser::Pool("p2c"), seed));
        }
        table(&mut text, &rows);
    }

    heading(
        &mut text,
        "Placing keys",
        "400,000 keys; the fullest backend by the mean, and how many keys move when one backend goes, for each key that \
         was there.",
    );
    let mut rows = vec![columns(&["backends", "placement", "imbalance", "moved"])];
    let ways: [(&str, keys::Way); 3] = [
        ("rendezvous (`hash:`)", keys::rendezvous),
        ("ring, 160 points", keys::ring),
        ("Maglev, 65,537", keys::maglev),
    ];
    for count in [3, 10, 100, 1_000] {
        for (name, place) in ways {
            let figures = keys::measure(place, count, 400_000);
            rows.push(vec![
                count.to_string(),
                name.into(),
                format!("{:.3}", figures.imbalance),
                format!("{:.3}", figures.moved),
            ]);
        }
    }
    table(&mut text, &rows);
    text
}

/// What a choice costs on this machine; the only figures here that differ from run to run.
fn costs() -> String {
    let mut rows = vec![columns(&["nanoseconds", "2 backends", "10", "100", "1,000"])];
    for (name, balance) in [
        ("round-robin", "round-robin"),
        ("least-requests", "least-requests"),
        ("p2c", "p2c"),
        ("hash:client", "hash:client"),
    ] {
        let mut row = vec![name.to_owned()];
        row.extend([2, 10, 100, 1_000].map(|count| format!("{:.0}", world::cost(count, balance))));
        rows.push(row);
    }
    let ways: [(&str, keys::Way); 2] = [("ring", keys::ring), ("Maglev", keys::maglev)];
    for (name, place) in ways {
        let mut row = vec![format!("({name})")];
        row.extend([2, 10, 100, 1_000].map(|count: usize| {
            let place = place(&(0..count).collect::<Vec<_>>());
            let begun = Instant::now();
            let sum = (0..200_000).fold(0, |sum: usize, key| sum.wrapping_add(place(key)));
            std::hint::black_box(sum);
            format!("{:.0}", begun.elapsed().as_nanos() as f64 / 200_000.0)
        }));
        rows.push(row);
    }
    let mut text = String::new();
    table(&mut text, &rows);
    text
}

fn heading(text: &mut String, name: &str, about: &str) {
    let _ = write!(text, "\n### {name}\n\n{about}\n\n");
}

fn columns(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn table(text: &mut String, rows: &[Vec<String>]) {
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len))
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
        if index == 0 {
            let lines: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            let _ = writeln!(text, "| {} |", lines.join(" | "));
        }
    }
}

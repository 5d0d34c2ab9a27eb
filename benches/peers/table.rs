//! The tables, as Markdown that reads well on a terminal too.

use std::fmt::Write as _;

use crate::compare::{Column, Sample, Section};

/// Below this share of its core the load, not the proxy, sets the pace.
const BUSY: f64 = 0.9;

/// Middle, least and most of some figures.
#[derive(Clone, Copy, Debug)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(figures: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let upper = *figures.get(middle)?;
        let median = if figures.len() % 2 == 1 { upper } else { (figures.get(middle - 1)? + upper) / 2.0 };
        Some(Spread { median, least: *figures.first()?, most: *figures.last()? })
    }

    fn show(&self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$} to {:.digits$})", self.median, self.least, self.most)
    }
}

/// All sections; whether something failed.
pub fn render(sections: &[Section]) -> (String, bool) {
    let mut text = String::new();
    let mut failed = false;
    for section in sections {
        let _ = writeln!(text, "### {} (`{}`)\n", section.workload.title, section.workload.name);
        let mut rows = vec![
            [
                "",
                "ratio of doorward",
                "CPU µs/request",
                "user",
                "requests/s",
                "busy %",
                "others %",
                "p50 µs",
                "p99",
                "p99.9",
                "dialled",
            ]
            .map(String::from)
            .to_vec(),
        ];
        let mut notes = Vec::new();
        for column in &section.columns {
            rows.push(row(section, column));
            let problems: Vec<&String> = column.samples.iter().filter_map(|sample| sample.as_ref().err()).collect();
            if let Some(problem) = problems.first() {
                failed = true;
                notes.push(format!(
                    "{} failed in {} of {} rounds: {problem}",
                    column.name,
                    problems.len(),
                    column.samples.len()
                ));
            }
        }
        text.push_str(&align(&rows));
        for note in notes {
            let _ = writeln!(text, "\n{note}");
        }
        text.push('\n');
    }
    (text, failed)
}

fn row(section: &Section, column: &Column) -> Vec<String> {
    let own = section.columns.first().map(|own| own.samples.as_slice()).unwrap_or_default();
    let ratios = own.iter().zip(&column.samples).filter_map(|(own, peer)| match (own, peer) {
        (Ok(own), Ok(peer)) => Some(own.cpu / peer.cpu),
        _ => None,
    });
    let spread = |figure: fn(&Sample) -> f64| Spread::of(column.samples.iter().flatten().map(figure));
    let show =
        |figure: fn(&Sample) -> f64, digits| spread(figure).map_or("failed".into(), |spread| spread.show(digits));
    let median = |figure: fn(&Sample) -> f64, digits: usize| {
        spread(figure).map_or("failed".into(), |spread| format!("{:.digits$}", spread.median))
    };
    let is_bound = spread(|sample| sample.busy).is_some_and(|busy| busy.median < BUSY);
    let mut rate = median(|sample| sample.rate, 0);
    if section.workload.is_saturated() && is_bound {
        rate.push_str(" (load-bound)");
    }
    let is_own = section.columns.first().is_some_and(|own| own.name == column.name);
    let ratio = if is_own { "1".into() } else { Spread::of(ratios).map_or("failed".into(), |spread| spread.show(2)) };
    vec![
        column.name.clone(),
        ratio,
        show(|sample| sample.cpu, 2),
        median(|sample| sample.user, 2),
        rate,
        median(|sample| sample.busy * 100.0, 0),
        median(|sample| sample.disturbed * 100.0, 0),
        median(|sample| sample.latency[0], 0),
        median(|sample| sample.latency[1], 0),
        median(|sample| sample.latency[2], 0),
        median(|sample| sample.dialled as f64, 0),
    ]
}

/// Rows as a Markdown table; the first is its head.
pub fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
        if number == 0 {
            for width in &widths {
                let _ = write!(text, "| {} ", "-".repeat(*width));
            }
            text.push_str("|\n");
        }
    }
    text
}

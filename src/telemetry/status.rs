//! The one live line that `systemctl status` shows.

use super::counters::{Rates, Snapshot};
use std::fmt::Write as _;
use std::time::Duration;

/// What the counters don't know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Exchanges that hold a permit.
    pub in_flight: u64,
    /// Exchanges that wait for one.
    pub queued: u64,
    /// Backends that are not known to be down.
    pub backends_up: usize,
    /// All backends.
    pub backends: usize,
    /// Whether a route has none that is up and uses them all.
    pub fails_open: bool,
}

/// The line for `STATUS=`, such as
/// `12 in flight, 0 queued, backends 2/2 up, 1,204 requests/s, p99 3.1 ms`.
///
/// Open tunnels are named when there are some, the latency when there were
/// requests.
#[must_use]
pub fn status_line(snapshot: &Snapshot, rates: &Rates, standing: &Standing) -> String {
    let mut line = format!("{} in flight, {} queued", grouped(standing.in_flight), grouped(standing.queued));
    // Writing to a string does not fail.
    let _ = match snapshot.tunnels_open {
        0 => Ok(()),
        1 => write!(line, ", 1 tunnel"),
        many => write!(line, ", {} tunnels", grouped(many)),
    };
    let _ = write!(
        line,
        ", backends {}/{} up{}, {} requests/s",
        standing.backends_up,
        standing.backends,
        if standing.fails_open { " (failing open)" } else { "" },
        rate(rates.requests_per_second)
    );
    if let Some(p99) = rates.p99 {
        let _ = write!(line, ", p99 {}", short(p99));
    }
    line
}

/// A number with its thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Whole from 10 on, with one digit below, `0` when there is nothing.
fn rate(per_second: f64) -> String {
    if per_second >= 10.0 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative, and the cast saturates"
        )]
        return grouped(per_second.round() as u64);
    }
    if per_second > 0.0 {
        return format!("{:.1}", per_second.max(0.1));
    }
    String::from("0")
}

/// Two or three digits and a unit.
fn short(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1e3;
    match ms {
        ms if ms < 1.0 => format!("{ms:.2} ms"),
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1e3 => format!("{ms:.0} ms"),
        ms if ms < 1e4 => format!("{:.1} s", ms / 1e3),
        ms => format!("{:.0} s", ms / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::counters::WorkerCounters;
    use std::time::Instant;

    #[test]
    fn the_line_reads_as_its_example() {
        let worker = WorkerCounters::default();
        let snapshot = || Snapshot::of([&worker], Instant::now());
        let rates = Rates {
            requests_per_second: 1203.6,
            p50: Some(Duration::from_micros(400)),
            p99: Some(Duration::from_micros(3_120)),
        };
        let standing = Standing { in_flight: 12, queued: 0, backends_up: 2, backends: 2, fails_open: false };
        assert_eq!(
            status_line(&snapshot(), &rates, &standing),
            "12 in flight, 0 queued, backends 2/2 up, 1,204 requests/s, p99 3.1 ms"
        );
        worker.tunnels_open.add(1);
        let quiet = Rates { requests_per_second: 0.0, p50: None, p99: None };
        assert_eq!(
            status_line(&snapshot(), &quiet, &standing),
            "12 in flight, 0 queued, 1 tunnel, backends 2/2 up, 0 requests/s"
        );
        let standing = Standing { backends_up: 0, fails_open: true, ..standing };
        let line = status_line(&snapshot(), &quiet, &standing);
        assert!(line.contains(", backends 0/2 up (failing open), "), "{line}");
    }

    #[test]
    fn numbers_are_short() {
        for (us, shown) in [
            (90, "0.09 ms"),
            (999, "1.00 ms"),
            (3_120, "3.1 ms"),
            (47_300, "47 ms"),
            (2_340_000, "2.3 s"),
            (61_000_000, "61 s"),
        ] {
            assert_eq!(short(Duration::from_micros(us)), shown);
        }
        for (number, shown) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), shown);
        }
        for (per_second, shown) in [(0.0, "0"), (0.01, "0.1"), (9.94, "9.9"), (1_000.4, "1,000")] {
            assert_eq!(rate(per_second), shown);
        }
    }
}

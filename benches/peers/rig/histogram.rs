//! Latencies in buckets whose width is at most 1/64 of their value.

use std::time::Duration;

/// Buckets for each doubling.
const STEPS: u64 = 64;

/// What is longer, 18 minutes, counts as that; in nanoseconds.
const LONGEST: u64 = 1 << 40;

/// Counts of latencies, in nanoseconds.
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: vec![0; bucket(LONGEST) + 1], total: 0 }
    }
}

impl Histogram {
    /// Counts what the other one has counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
    }

    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        let last = self.counts.len() - 1;
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket(nanos).min(last)) {
            *count += 1;
            self.total += 1;
        }
    }

    /// The latency, in microseconds, that this share of all stays below or at; 0 when
    /// nothing was counted.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut left = share * self.total as f64;
        for (index, count) in self.counts.iter().enumerate() {
            left -= *count as f64;
            if left <= 0.0 && *count > 0 {
                return upper(index) as f64 / 1e3;
            }
        }
        0.0
    }
}

fn bucket(nanos: u64) -> usize {
    let shift = u64::from((nanos / STEPS).checked_ilog2().unwrap_or(0));
    let index = shift * STEPS + (nanos >> shift);
    usize::try_from(index).unwrap_or(usize::MAX)
}

fn upper(index: usize) -> u64 {
    let index = index as u64;
    let shift = (index / STEPS).saturating_sub(1);
    ((index - shift * STEPS + 1) << shift) - 1
}

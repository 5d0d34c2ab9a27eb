//! Latencies in log-linear buckets.
//!
//! Each power of two is divided into 16 buckets of one width, so a bucket is at
//! most a sixteenth of its value wide, and its middle is at most 3.2 % off. The
//! table has a fixed size whatever is recorded, recording is a shift and an add,
//! and two tables add up or subtract bucket by bucket. (The scheme of HdrHistogram
//! with four significant bits.)

use super::counters::Count;

/// Buckets in a power of two, as a power of two.
const BITS: u32 = 4;
/// Values from here on (2^36 µs, 19 hours) share the last bucket.
const TOP: u32 = 36;
/// Values below 16 have a bucket each; 32 powers of two follow.
pub(super) const BUCKETS: usize = ((TOP - BITS + 1) << BITS) as usize;

/// The bucket of a value in µs.
fn bucket(us: u64) -> usize {
    let us = us.min((1 << TOP) - 1);
    let Some(power) = us.checked_ilog2().filter(|power| *power >= BITS) else {
        return usize::try_from(us).unwrap_or_default();
    };
    let shift = power - BITS;
    let row = u64::from(shift) << BITS;
    usize::try_from(row + (us >> shift)).unwrap_or(BUCKETS - 1)
}

/// The middle of a bucket, in µs.
fn middle(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let row = bucket >> BITS;
    if row <= 1 {
        return bucket;
    }
    let shift = row - 1;
    let low = (bucket - (shift << BITS)) << shift;
    low + (1 << shift) / 2
}

/// A worker's latencies. One thread records, any reads.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[Count]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| Count::default()).collect() }
    }
}

impl Histogram {
    /// Counts one value in µs. Only the thread that owns the table may call it.
    pub fn record(&self, us: u64) {
        if let Some(count) = self.buckets.get(bucket(us)) {
            count.add(1);
        }
    }
}

/// The sum of some tables at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latencies {
    buckets: Box<[u64]>,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS].into() }
    }
}

impl Latencies {
    /// Adds what a table holds now.
    pub fn add(&mut self, table: &Histogram) {
        for (sum, count) in self.buckets.iter_mut().zip(&table.buckets) {
            *sum += count.get();
        }
    }

    /// What came since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let pairs = self.buckets.iter().zip(&earlier.buckets);
        Self { buckets: pairs.map(|(now, then)| now.saturating_sub(*then)).collect() }
    }

    /// How many values there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How many values each of `bounds` (µs, ascending) has that are above the one before,
    /// and how many are above all: so many numbers, and one more. A value counts as the
    /// middle of its bucket, so within 3.2 %.
    #[must_use]
    pub fn between(&self, bounds: &[u64]) -> Vec<u64> {
        let mut counts = vec![0; bounds.len() + 1];
        for (bucket, count) in self.buckets.iter().enumerate() {
            let place = bounds.partition_point(|bound| *bound < middle(bucket));
            if let Some(sum) = counts.get_mut(place) {
                *sum += count;
            }
        }
        counts
    }

    /// The sum of all values in µs, within 3.2 %.
    #[must_use]
    pub fn sum(&self) -> u64 {
        let each = self.buckets.iter().enumerate().map(|(bucket, count)| middle(bucket).saturating_mul(*count));
        each.fold(0, u64::saturating_add)
    }

    /// The value in µs that `share` (0 to 1) of all values do not exceed, within
    /// 3.2 %; `None` when there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<u64> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of a count is a count; f64 is exact up to 2^53"
        )]
        let rank = (share.clamp(0.0, 1.0) * self.count() as f64).ceil() as u64;
        let mut seen = 0;
        self.buckets.iter().enumerate().find_map(|(bucket, count)| {
            seen += count;
            (*count > 0 && seen >= rank).then(|| middle(bucket))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Latencies {
        let table = Histogram::default();
        values.into_iter().for_each(|us| table.record(us));
        let mut sum = Latencies::default();
        sum.add(&table);
        sum
    }

    #[test]
    fn every_value_has_a_bucket_whose_middle_is_near() {
        let mut random = fastrand::Rng::with_seed(3);
        let powers = (0..36).flat_map(|power| [(1u64 << power) - 1, 1 << power, (1 << power) + 1]);
        let any = std::iter::repeat_with(|| random.u64(..1 << 36) >> random.u32(..36)).take(50_000);
        for us in (0..5_000).chain(powers).chain(any) {
            let near = middle(bucket(us));
            assert!(near.abs_diff(us) as f64 <= us as f64 * 0.032, "{us} became {near}");
        }
    }

    #[test]
    fn buckets_ascend_and_the_last_takes_the_rest() {
        let mut last = 0;
        for us in 0..100_000 {
            let place = bucket(us);
            assert!(place == last || place == last + 1, "{us}");
            last = place;
        }
        assert_eq!(bucket((1 << 36) - 1), BUCKETS - 1);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_where_they_should_be() {
        let sum = of(1..=10_000);
        assert_eq!(sum.count(), 10_000);
        for (share, exact) in [(0.5, 5_000.0), (0.99, 9_900.0), (1.0, 10_000.0)] {
            let found = sum.quantile(share).unwrap() as f64;
            assert!((found - exact).abs() / exact < 0.06, "{share}: {found}");
        }
        assert_eq!(sum.quantile(0.0), Some(1));
        assert_eq!(of([7]).quantile(0.99), Some(7));
        assert_eq!(of([]).quantile(0.99), None);
    }

    #[test]
    fn values_fall_between_bounds_and_add_up() {
        let table = of([1, 900, 1_000_000, 40_000_000]);
        assert_eq!(table.between(&[10, 1_000, 2_000_000]), [1, 1, 1, 1]);
        assert_eq!(table.between(&[1]), [1, 3]);
        assert!((table.sum() as f64 - 41_000_901.0).abs() <= 41_000_901.0 * 0.032, "{}", table.sum());
        assert_eq!((of([]).between(&[1]), of([]).sum()), (vec![0, 0], 0));
    }

    #[test]
    fn a_difference_holds_only_what_came_since() {
        let table = Histogram::default();
        let sum = || {
            let mut sum = Latencies::default();
            sum.add(&table);
            sum
        };
        (0..1_000).for_each(|_| table.record(9));
        let earlier = sum();
        table.record(15);
        let since = sum().since(&earlier);
        assert_eq!((since.count(), since.quantile(0.5)), (1, Some(15)));
    }
}

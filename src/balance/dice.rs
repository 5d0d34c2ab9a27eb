//! Dice: as many random numbers as a choice needs, out of the one that it is given.
//!
//! The policies draw nothing themselves: whoever asks brings a random number, and a
//! simulation brings the same ones every time.
//!
//! Source: splitmix64, G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number
//! generators", OOPSLA 2014.

/// Random numbers that follow from one.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The numbers that follow from `draw`.
    #[must_use]
    pub fn new(draw: u64) -> Self {
        Self(draw)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// One of `0..sides`; 0 when there are none.
    pub fn below(&mut self, sides: usize) -> usize {
        // The upper half of a product: even enough for numbers that are far below 2^64.
        let sides = u64::try_from(sides).unwrap_or(u64::MAX);
        let upper = (u128::from(self.roll()) * u128::from(sides)) >> 64;
        usize::try_from(upper).unwrap_or(0)
    }

    /// A number from 0 up to, and without, 1.
    pub fn unit(&mut self) -> f64 {
        unit(self.roll())
    }
}

/// Spreads what is in any bits of a number over all of them.
#[must_use]
pub(super) fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A number of 64 random bits as one from 0 up to, and without, 1.
#[must_use]
pub(super) fn unit(number: u64) -> f64 {
    // 53 bits are what a double holds exactly; half a step keeps it off 0.
    let steps = f64::from(u32::try_from(number >> 43).unwrap_or(0)) * 4_294_967_296.0
        + f64::from(u32::try_from((number >> 11) & 0xffff_ffff).unwrap_or(0));
    (steps + 0.5) / 9_007_199_254_740_992.0
}

#[cfg(test)]
mod tests {
    use super::Dice;

    #[test]
    fn the_same_number_gives_the_same_rolls_and_all_sides_come_alike() {
        let rolls = |draw| {
            let mut dice = Dice::new(draw);
            [dice.roll(), dice.roll(), dice.roll()]
        };
        assert_eq!(rolls(7), rolls(7));
        assert_ne!(rolls(7), rolls(8));
        let mut dice = Dice::new(1);
        let mut seen = [0_u32; 6];
        for _ in 0..60_000 {
            seen[dice.below(6)] += 1;
        }
        assert!(seen.iter().all(|count| (9_500..10_500).contains(count)), "{seen:?}");
        assert_eq!(dice.below(0), 0);
        assert!((0..10_000).all(|_| (0.0..1.0).contains(&dice.unit())));
    }
}

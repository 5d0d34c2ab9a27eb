//! Schedule: when a certificate is renewed, and how long a failure is waited out.
//!
//! Pure rules over the wall clock, since that is what certificates go by; callers pass the
//! time and what is random.

use std::time::{Duration, SystemTime};

/// The wait after the first failure of a name; each further one trebles it. With it a name
/// fails four times in its first hour, where Let's Encrypt takes five before it refuses.
const NAME_FIRST: Duration = Duration::from_secs(2 * 60);

/// The longest wait after a failure of a name.
const NAME_LONGEST: Duration = Duration::from_secs(12 * 3600);

/// The wait after the first time that a server could not be used at all; each further one
/// doubles it. It costs the server one request.
const SERVER_FIRST: Duration = Duration::from_secs(5);

/// The longest of these waits.
const SERVER_LONGEST: Duration = Duration::from_secs(3600);

/// The longest wait that a server may ask for; the windows of rate limits are a week.
pub const LONGEST: Duration = Duration::from_secs(8 * 86_400);

/// How soon, at the least and at the most, a server is asked anew when it wants a
/// certificate to be renewed.
///
/// Source: RFC 9773 §4.3.2, which gives a day as an example, and a minute.
const ADVICE_SOONEST: Duration = Duration::from_secs(60);
const ADVICE_LATEST: Duration = Duration::from_secs(86_400);

/// The same when it did not say, or has no advice to give.
pub const ADVICE_PAUSE: Duration = Duration::from_secs(6 * 3600);

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Its first moment.
    pub not_before: SystemTime,
    /// Its last one.
    pub not_after: SystemTime,
}

impl Life {
    /// How long it is in all.
    fn span(self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// When a certificate is renewed: when two thirds of its life are over, or up to a
    /// twentieth of it earlier, so that those had together are not renewed together.
    /// `spread` is that part, from 0 to 1, and does not change for a certificate.
    pub fn renewal(self, spread: f64) -> SystemTime {
        self.not_before + self.span().mul_f64(2.0 / 3.0 - spread.clamp(0.0, 1.0) / 20.0)
    }

    /// From when on a certificate that is not renewed yet is a reason to warn: a sixth of
    /// its life, at most 14 days, before its end.
    pub fn warning(self) -> SystemTime {
        self.not_after - (self.span() / 6).min(Duration::from_secs(14 * 86_400))
    }

    /// How often that is said: daily, or for a short life ten times over the rest of it, but
    /// once a minute at most.
    pub fn warning_pause(self) -> Duration {
        (self.span() / 60).clamp(Duration::from_secs(60), Duration::from_secs(86_400))
    }

    /// A moment in the window that a server has advised, at `part` of it; before the warning
    /// in any case, since a certificate that has expired helps nobody, and not while it is new,
    /// so that a server which is mistaken is not asked for one after the other.
    ///
    /// Source: RFC 9773 §4.2.
    pub fn advised(self, window: (SystemTime, SystemTime), part: f64) -> SystemTime {
        let (start, end) = window;
        let length = end.duration_since(start).unwrap_or_default();
        let soonest = self.not_before + self.span() / 60;
        (start + length.mul_f64(part.clamp(0.0, 1.0))).min(self.warning()).max(soonest)
    }
}

/// How long a name is left alone after `failures` in a row. `random`, from 0 to 1, spreads
/// it by a tenth either way; `asked` is what the server wants at the least.
pub fn name_pause(failures: u32, random: f64, asked: Option<Duration>) -> Duration {
    pause(NAME_FIRST, 3.0, NAME_LONGEST, failures, random, asked)
}

/// How long a server is left alone after it could not be used `failures` times in a row.
pub fn server_pause(failures: u32, random: f64, asked: Option<Duration>) -> Duration {
    pause(SERVER_FIRST, 2.0, SERVER_LONGEST, failures, random, asked)
}

fn pause(
    first: Duration,
    factor: f64,
    longest: Duration,
    failures: u32,
    random: f64,
    asked: Option<Duration>,
) -> Duration {
    let exponent = i32::try_from(failures.saturating_sub(1).min(40)).unwrap_or(40);
    let seconds = (first.as_secs_f64() * factor.powi(exponent)).min(longest.as_secs_f64());
    let own = Duration::from_secs_f64(seconds * (0.9 + 0.2 * random.clamp(0.0, 1.0)));
    own.max(asked.unwrap_or_default().min(LONGEST))
}

/// When a server that said so is asked anew for advice.
pub fn advice_pause(asked: Duration) -> Duration {
    asked.clamp(ADVICE_SOONEST, ADVICE_LATEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn life(days: u32) -> Life {
        let not_before = SystemTime::UNIX_EPOCH + DAY * 20_000;
        Life { not_before, not_after: not_before + DAY * days }
    }

    fn days(life: Life, at: SystemTime) -> f64 {
        at.duration_since(life.not_before).unwrap().as_secs_f64() / DAY.as_secs_f64()
    }

    #[test]
    fn a_certificate_is_renewed_when_two_thirds_of_its_life_are_over_or_a_little_earlier() {
        let ninety = life(90);
        assert!((days(ninety, ninety.renewal(0.0)) - 60.0).abs() < 0.01);
        assert!((days(ninety, ninety.renewal(1.0)) - 55.5).abs() < 0.01);
        assert!((days(ninety, ninety.warning()) - 76.0).abs() < 0.01);
        let six = life(6);
        assert!((days(six, six.renewal(0.0)) - 4.0).abs() < 0.01);
        assert!((days(six, six.warning()) - 5.0).abs() < 0.01);
        // One whose end is before its beginning is due at once and breaks nothing.
        let none = Life { not_before: ninety.not_after, not_after: ninety.not_before };
        assert_eq!(none.renewal(0.5), none.not_before);
    }

    #[test]
    fn advice_counts_but_never_lets_a_certificate_expire() {
        let ninety = life(90);
        let at = |day: u32| ninety.not_before + DAY * day;
        assert_eq!(ninety.advised((at(10), at(12)), 0.5), at(11));
        assert_eq!(ninety.advised((at(88), at(99)), 0.5), ninety.warning());
        assert_eq!(ninety.advised((at(12), at(10)), 0.5), at(12));
        assert!((days(ninety, ninety.advised((at(0), at(0)), 0.5)) - 1.5).abs() < 0.01);
    }

    #[test]
    fn names_and_servers_are_left_alone_longer_each_time() {
        let seconds = |pause: Duration| pause.as_secs();
        let names: Vec<u64> = (1..=8).map(|failures| seconds(name_pause(failures, 0.5, None))).collect();
        assert_eq!(names, [120, 360, 1080, 3240, 9720, 29_160, 43_200, 43_200]);
        let servers: Vec<u64> = (1..=12).map(|failures| seconds(server_pause(failures, 0.5, None))).collect();
        assert_eq!(servers, [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]);
        assert_eq!(seconds(name_pause(u32::MAX, 0.0, None)), 38_880);
        assert_eq!(seconds(name_pause(1, 1.0, None)), 132);
        // What a server asks for counts where it is more, and sensible.
        assert_eq!(name_pause(1, 0.5, Some(DAY)), DAY);
        assert_eq!(seconds(name_pause(1, 0.5, Some(Duration::from_secs(3)))), 120);
        assert_eq!(name_pause(1, 0.5, Some(DAY * 400)), LONGEST);
    }

    #[test]
    fn a_server_is_asked_for_advice_neither_every_moment_nor_never_again() {
        assert_eq!(advice_pause(Duration::ZERO), Duration::from_secs(60));
        assert_eq!(advice_pause(DAY / 4), DAY / 4);
        assert_eq!(advice_pause(DAY * 30), DAY);
    }
}

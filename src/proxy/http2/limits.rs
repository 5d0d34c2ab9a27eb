//! Limits: what one HTTP/2 connection may ask for.
//!
//! Whatever the `h2` crate bounds is stated here too, so that it does not change with the
//! crate. What it does not bound are frames that cost us something and bring nothing, and
//! streams that are opened only to be reset: these have an [`Allowance`].

use std::time::Duration;

/// Bytes that a stream may have sent and we have not passed on.
pub const STREAM_WINDOW: u32 = 64 * 1024;

/// The same for all streams of a connection that may have so many: as much as they have
/// together, so that those that nobody takes from hold up no other.
#[must_use]
pub fn connection_window(streams: u32) -> u32 {
    /// The largest that there is (RFC 9113 §6.9.1).
    const MOST: u32 = 0x7fff_ffff;
    STREAM_WINDOW.saturating_mul(streams).min(MOST)
}

/// Bytes in a frame that we take: what everybody must take (RFC 9113 §4.2).
pub const FRAME_SIZE: u32 = 16 * 1024;

/// Bytes of header fields that the decoder remembers for each connection (RFC 7541 §4.2).
pub const HEADER_TABLE: u32 = 4096;

/// Bytes of an answer that wait in a stream for their turn.
pub const SEND_BUFFER: usize = 64 * 1024;

/// Streams that we have reset and whose frames, which may be on their way, are dropped
/// without a word, each for [`RESET_MEMORY`]. With one that is forgotten each such frame is one
/// of [`FAULTS`], though the client may be uploading what was answered ahead of its end.
pub const RESETS_REMEMBERED: usize = 512;

/// How long: a slow link may have that much before the client hears of it.
pub const RESET_MEMORY: Duration = Duration::from_secs(10);

/// Streams of a connection that were reset before anybody looked at them.
pub const RESETS_UNSEEN: usize = 20;

/// Streams of a connection that end by a fault of the client: it is told to go away then
/// (CVE-2025-8671, MadeYouReset).
pub const FAULTS: usize = 256;

/// Small DATA frames that wait, by what they cost beyond their bytes.
pub const SMALL_DATA: usize = 256 * 1024;

/// Frames that bring nothing: at once, and a second. PING, SETTINGS, PRIORITY, RST_STREAM,
/// WINDOW_UPDATE, CONTINUATION, empty DATA, and those of unknown types.
pub const IDLE_FRAMES: (u32, u32) = (1000, 100);

/// Heads that a backend may owe us, two for each request. What it sends beyond these, which
/// are interim responses, counts among [`IDLE_FRAMES`].
pub const HEADS_OWED: usize = 256;

/// Streams that the client resets before their answer is whole, likewise (CVE-2023-44487,
/// Rapid Reset). Somebody who leaves a page resets what is under way, which is as many as it
/// may have at once; each costs a connection to a backend.
pub const RESETS: (u32, u32) = (400, 20);

/// What is spent on a peer faster than it is earned ends.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    most: u32,
    per_second: u32,
    /// What is left, in thousandths.
    left: u64,
    /// When that was reckoned, in milliseconds of the caller's clock.
    at: u64,
}

impl Allowance {
    /// A whole one: so much at once, and so much a second.
    #[must_use]
    pub fn new((most, per_second): (u32, u32)) -> Self {
        Self { most, per_second, left: u64::from(most) * 1000, at: 0 }
    }

    /// Spends one at `now`. `false`: there is none left.
    #[must_use]
    pub fn spend(&mut self, now: u64) -> bool {
        let earned = now.saturating_sub(self.at).saturating_mul(self.per_second.into());
        self.at = now;
        self.left = self.left.saturating_add(earned).min(u64::from(self.most) * 1000);
        let enough = self.left >= 1000;
        self.left = self.left.saturating_sub(1000);
        enough
    }

    /// Gives back as many.
    pub fn earn(&mut self, n: usize) {
        let n = u64::try_from(n).unwrap_or(u64::MAX).saturating_mul(1000);
        self.left = self.left.saturating_add(n).min(u64::from(self.most) * 1000);
    }
}

#[cfg(test)]
mod tests {
    use super::Allowance;

    #[test]
    fn an_allowance_bears_a_burst_and_a_rate_and_no_more() {
        let mut allowance = Allowance::new((10, 2));
        assert!((0..10).all(|_| allowance.spend(5_000)));
        assert!(!allowance.spend(5_000));
        // Two a second, however long nobody looked: never more than a burst.
        assert!(allowance.spend(6_000) && allowance.spend(6_000) && !allowance.spend(6_000));
        let spent = (0..100).filter(|_| allowance.spend(9_000_000)).count();
        assert_eq!(spent, 10);
        allowance.earn(3);
        assert_eq!((0..100).filter(|_| allowance.spend(9_000_000)).count(), 3);
        allowance.earn(usize::MAX);
        assert_eq!((0..100).filter(|_| allowance.spend(9_000_000)).count(), 10);
        // A clock that goes back gains nothing.
        assert!(!allowance.spend(0));
    }
}

//! Stance: how a pool chooses, by what has become of its backends.

/// How a pool chooses.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stance {
    /// Among those that are up, backups last.
    #[default]
    Sound,
    /// It fails open: among all that are not down.
    Open,
    /// It failed open, and half of the backups are up again but less than half of the
    /// primaries: backups come first.
    Backups,
}

const OPEN: u8 = Stance::Open as u8;
const BACKUPS: u8 = Stance::Backups as u8;

/// The backends of a tier that take requests, counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tally {
    pub(super) all: usize,
    /// Those that are not down.
    pub(super) reachable: usize,
    pub(super) up: usize,
}

impl Tally {
    /// Whether they can take what the whole tier should.
    fn enough(self) -> bool {
        self.up > 0 && self.up * 2 >= self.reachable
    }
}

impl Stance {
    /// The one of this number; `Sound` for none.
    pub(super) fn of(number: u8) -> Self {
        match number {
            OPEN => Self::Open,
            BACKUPS => Self::Backups,
            _ => Self::Sound,
        }
    }

    /// The one that follows when primaries and backups are so.
    pub(super) fn next(self, [primaries, backups]: [Tally; 2]) -> Self {
        let any_up = primaries.up + backups.up > 0;
        match self {
            Self::Sound if any_up || primaries.reachable + backups.reachable == 0 => Self::Sound,
            Self::Sound => Self::Open,
            _ if primaries.all + backups.all == 0 || primaries.enough() => Self::Sound,
            _ if backups.enough() => Self::Backups,
            _ => Self::Open,
        }
    }
}

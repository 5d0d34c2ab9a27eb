//! Attempt: what one attempt is bounded by, and how it ends, as those who make attempts and
//! the exchange that carries one out tell each other.

use super::head::ResponseHead;
use crate::balance::retry::{Failed, Progress};
use crate::telemetry::Reason;

/// How an exchange ended that did not fail. Heads are few here, and boxed, since this is
/// moved about.
#[derive(Debug)]
pub enum Finish {
    /// The answer went out whole.
    Complete,
    /// The backend agreed to another protocol.
    Switch(Box<ResponseHead>),
    /// The head of the answer has come and is held back; [`Exchange::pass`](super::exchange::Exchange::pass) has it go on.
    Held(Box<ResponseHead>),
}

/// Which answers are held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// None: there will be no other attempt.
    None,
    /// Those that another attempt might make good.
    Failures,
    /// Every one: there is an earlier answer to be let go of first.
    All,
}

/// What bounds an attempt, in times of the timer's clock.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// When the whole request must be over.
    pub deadline: u64,
    /// When the response must have begun. While the client is waited for, this time stands
    /// still.
    pub attempt: u64,
    /// Which answers are held back.
    pub hold: Hold,
}

/// How an exchange failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// The stable reason.
    pub reason: Reason,
    /// How far it got, and on what connection.
    pub failed: Failed,
    /// It is held against the backend.
    pub blamed: bool,
}

impl Failure {
    /// One for this reason, before anything was sent.
    #[must_use]
    pub fn unsent(reason: Reason) -> Self {
        Self { reason, failed: Failed::of(reason, Progress::Unsent, false), blamed: true }
    }
}

//! What there is to tell of certificates, and how each stands.

use std::time::{Duration, SystemTime};

use super::Held;

/// What there is to tell.
#[derive(Debug)]
pub(in crate::lifecycle) enum News {
    /// Certificates were found in the store, or another process has renewed some.
    Loaded(Vec<String>),
    /// A name has a certificate, its first one or a new one.
    Obtained {
        /// The name.
        name: Box<str>,
        /// The certificate.
        held: Held,
        /// Whether there was one before.
        renewed: bool,
        /// When it will be renewed.
        renewal: SystemTime,
    },
    /// An attempt came to nothing.
    Failed {
        /// For whom; none when it concerns all names.
        name: Option<Box<str>>,
        /// Why.
        error: String,
        /// How long until the next one.
        wait: Duration,
    },
    /// A certificate ends soon, or has ended, and there is no other.
    Expiring {
        /// The name.
        name: Box<str>,
        /// When it ends.
        not_after: SystemTime,
        /// Why it was not renewed.
        error: String,
    },
}

/// How one name stands.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::lifecycle) struct Report<'a> {
    /// The name.
    pub(in crate::lifecycle) name: &'a str,
    /// `valid`, `expired`, `missing`, or what goes on: `ordering`.
    pub(in crate::lifecycle) state: &'static str,
    /// When its certificate ends.
    pub(in crate::lifecycle) not_after: Option<SystemTime>,
    /// When one is ordered.
    pub(in crate::lifecycle) next: Option<SystemTime>,
    /// Why the last attempt failed.
    pub(in crate::lifecycle) error: Option<&'a str>,
}

//! Waiting: for a condition, with a deadline, and with a name for the report.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const TURN: Duration = Duration::from_millis(20);

/// Waits until `condition` holds.
///
/// # Errors
/// The condition's own error at once, or, after `limit`, that `what` never came.
pub(crate) fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        if condition()? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} for {what}");
        }
        thread::park_timeout(TURN);
    }
}

/// The usual limit: far above what a busy machine needs, far below a hung run.
pub(crate) const SOON: Duration = Duration::from_secs(30);

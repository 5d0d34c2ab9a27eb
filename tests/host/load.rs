//! Load: clients that ask all the time and count what became of each request.
//!
//! Every second client keeps its connection, the others take a new one for each
//! request. They never try a request again, so what a reload, a restart or an
//! upgrade costs its users is what they count.

use std::fmt::{Display, Formatter};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::host::Host;
use crate::http::{Connection, Failure, Target};
use crate::wait::{SOON, wait_for};

/// The pause of a client between two requests.
const PAUSE: Duration = Duration::from_millis(2);

/// A client's last request, whatever the test does.
const REQUESTS: u64 = 100_000;

/// What became of the requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Answered with a status below 500.
    pub(crate) answered: u64,
    /// Answered with 500 or above.
    pub(crate) failed: u64,
    /// Refused connections.
    pub(crate) refused: u64,
    /// Connections that ended before the answer was whole.
    pub(crate) reset: u64,
    /// Requests that got nothing for too long.
    pub(crate) stalled: u64,
    /// How each client's first loss came about.
    pub(crate) first: Vec<String>,
    /// Anything else, as text; at most one for each client.
    pub(crate) other: Vec<String>,
    /// The longest that a request took: for the report, not for judgement.
    pub(crate) slowest: Duration,
}

impl Tally {
    /// Checks that each request was answered.
    pub(crate) fn lost_nothing(&self) -> Result<()> {
        let lost = self.failed + self.refused + self.reset + self.stalled;
        ensure!(lost == 0 && self.other.is_empty(), "requests lost: {self}");
        Ok(())
    }

    fn add(&mut self, other: Tally) {
        self.answered += other.answered;
        self.failed += other.failed;
        self.refused += other.refused;
        self.reset += other.reset;
        self.stalled += other.stalled;
        self.first.extend(other.first);
        self.other.extend(other.other);
        self.slowest = self.slowest.max(other.slowest);
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} answered, {} with 5xx, {} refused, {} reset, {} stalled, slowest {:?}",
            self.answered, self.failed, self.refused, self.reset, self.stalled, self.slowest
        )?;
        if !self.first.is_empty() {
            write!(f, "; first losses {:?}", self.first)?;
        }
        if !self.other.is_empty() {
            write!(f, ", besides {:?}", self.other)?;
        }
        Ok(())
    }
}

/// What the clients share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
}

/// Clients at work.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Tally>>,
}

impl Load {
    /// Starts `clients` clients in the network of `host` and waits for answers.
    pub(crate) fn start(host: &Host, target: &Target, clients: usize) -> Result<Load> {
        let shared = Arc::new(Shared::default());
        let clients = host.in_network(|| {
            let spawn = |number: usize| {
                let (shared, target) = (Arc::clone(&shared), target.clone());
                thread::spawn(move || client(&shared, &target, number % 2 == 0))
            };
            Ok((0..clients).map(spawn).collect())
        })?;
        let load = Load { shared, clients };
        load.goes_on()?;
        Ok(load)
    }

    /// Waits until many more requests have been answered.
    ///
    /// # Errors
    /// Fewer than 200 new answers within 30 s.
    pub(crate) fn goes_on(&self) -> Result<()> {
        let before = self.shared.answered.load(Ordering::Relaxed);
        wait_for("200 more answers", SOON, || Ok(self.shared.answered.load(Ordering::Relaxed) >= before + 200))
    }

    /// Lets each client finish its request, and adds up what they counted.
    pub(crate) fn stop(mut self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut total = Tally::default();
        for client in self.clients.drain(..) {
            match client.join() {
                Ok(tally) => total.add(tally),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        total
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// One client's life.
fn client(shared: &Shared, target: &Target, keeps: bool) -> Tally {
    let mut tally = Tally::default();
    let mut kept: Option<Connection> = None;
    for _ in 0..REQUESTS {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let begin = Instant::now();
        let reused = kept.is_some();
        let result = match kept.take() {
            Some(connection) => Ok(connection),
            None => Connection::open(target),
        }
        .and_then(|mut connection| {
            let answer = connection.get("/load")?;
            if keeps && answer.keeps() {
                kept = Some(connection);
            }
            Ok(answer)
        });
        tally.slowest = tally.slowest.max(begin.elapsed());
        if let Err(failure) = &result {
            if tally.first.is_empty() {
                let which = if reused { "kept" } else { "new" };
                let after = begin.elapsed();
                let text = format!("{failure:?} on a {which} connection after {after:?}");
                tally.first.push(text);
            }
        }
        match result {
            Ok(answer) if answer.status < 500 => {
                tally.answered += 1;
                shared.answered.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => tally.failed += 1,
            Err(Failure::Refused) => tally.refused += 1,
            Err(Failure::Reset(_)) => tally.reset += 1,
            Err(Failure::Stalled) => tally.stalled += 1,
            Err(Failure::Other(text)) => {
                tally.other.push(text);
                break;
            }
        }
        thread::park_timeout(PAUSE);
    }
    tally
}

//! Backends: judged by control, and what becomes of them put on record.
//!
//! Workers count what backends do and say when something has changed; here is looked
//! what that comes to: who is to be ejected, which routes have nobody left, and what of it
//! the journal has not been told. A record says how a backend stands now, compared with
//! what the last one said. So one that changes faster than records may be written leaves
//! fewer of them, each with the number of changes that went by, and the last word is
//! always true.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::checker::Checked;
use super::control::Daemon;
use crate::balance::endpoint::Endpoint;
use crate::balance::outlier::{self, Group, Terms};
use crate::balance::slowness::Slowness;
use crate::balance::stance::Stance;
use crate::balance::standing::{Report, State};
use crate::proxy::probe::Miss;
use crate::state::{Departed, Generation};
use crate::telemetry::events;

/// The shortest pause between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Records that one backend may leave at once.
const BURST: u64 = 6;

/// How often it may leave another one after that, in milliseconds.
const EACH: u64 = 10_000;

/// What the journal was told of backends and routes.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Workers say here that there is something to see.
    stirred: Arc<Notify>,
    /// By the endpoint's number.
    told: HashMap<u64, Told>,
    /// Those routes that do not choose as they should, or of which that was said lately.
    routes: HashMap<Arc<str>, Opened>,
    looked: Option<Instant>,
    slowness: Slowness,
}

/// What was said of one backend, and how often one may speak of it.
#[derive(Debug, Clone, Copy)]
struct Told {
    state: State,
    changes: u64,
    rest: Rest,
}

/// Limits the records of one thing to a burst and then one now and then.
#[derive(Debug, Default, Clone, Copy)]
struct Rest {
    /// When it may leave a whole burst again, in milliseconds.
    full: u64,
}

impl Rest {
    /// Whether there may be another record at `now`.
    fn admits(&mut self, now: u64) -> bool {
        if self.full > now.saturating_add((BURST - 1) * EACH) {
            return false;
        }
        self.full = self.full.max(now).saturating_add(EACH);
        true
    }
}

/// How a route chooses, and what was said of it.
#[derive(Debug, Default)]
struct Opened {
    stance: Stance,
    told: bool,
    /// Changes since that was told.
    changes: u64,
    rest: Rest,
}

impl Opened {
    /// What is new at `now` milliseconds, if it may be told: whether it fails open, and the
    /// changes that went by without a record.
    fn news(&mut self, stance: Stance, now: u64) -> Option<(bool, u64)> {
        let (was, open) = (self.stance == Stance::Open, stance == Stance::Open);
        self.stance = stance;
        self.changes += u64::from(was != open);
        if open == self.told || !self.rest.admits(now) {
            return None;
        }
        self.told = open;
        Some((open, std::mem::take(&mut self.changes).saturating_sub(1)))
    }

    /// Whether there is nothing to remember of it.
    fn is_over(&self, now: u64) -> bool {
        self.stance == Stance::Sound && !self.told && self.rest.full <= now
    }
}

impl Told {
    const UP: Told = Told { state: State::Up, changes: 0, rest: Rest { full: 0 } };

    /// What is new in a report, if it may be told at `now`: the changes that went by
    /// without a record.
    fn news(&mut self, report: &Report, now: u64) -> Option<u64> {
        // An ejection that was prolonged is a new one.
        let again = report.state == State::Ejected && report.changes != self.changes;
        if report.state == self.state && !again {
            return None;
        }
        if !self.rest.admits(now) {
            return None;
        }
        let missed = report.changes.saturating_sub(self.changes).saturating_sub(1);
        *self = Told { state: report.state, changes: report.changes, ..*self };
        Some(missed)
    }
}

impl Ledger {
    /// Nothing was told yet.
    pub(super) fn new(stirred: Arc<Notify>) -> Ledger {
        Ledger { stirred, told: HashMap::new(), routes: HashMap::new(), looked: None, slowness: Slowness::default() }
    }

    /// Resolves when a worker has seen something of a backend, but not too often. Nothing
    /// is lost when the future is dropped.
    pub(super) async fn stirred(&self) {
        if let Some(looked) = self.looked {
            sleep_until(looked + PAUSE).await;
        }
        self.stirred.notified().await;
    }

    /// Judges by how long answers took, once a second.
    pub(super) fn second(&mut self, generation: &Generation, now: u64) {
        self.slowness.judge(&groups(generation), now);
    }

    /// Judges the backends of a generation at `now` milliseconds and tells what is new.
    pub(super) fn look(&mut self, generation: &Generation, now: u64) {
        self.looked = Some(Instant::now());
        outlier::judge(&groups(generation), now);
        for endpoint in generation.endpoints() {
            self.tell(endpoint, now);
        }
        for route in generation.routes() {
            let before = self.routes.get(&route.name).map_or(Stance::Sound, |opened| opened.stance);
            let stance = route.pool.weigh(before);
            if stance != Stance::Sound || self.routes.contains_key(&route.name) {
                self.tell_route(&route.name, stance, now);
            }
        }
    }

    fn tell_route(&mut self, name: &Arc<str>, stance: Stance, now: u64) {
        let opened = self.routes.entry(Arc::clone(name)).or_default();
        let route = &**name;
        match opened.news(stance, now) {
            Some((true, missed)) => warn!(
                message_id = events::FAILING_OPEN,
                route, missed, "no backend is left; requests go to all that take connections"
            ),
            Some((false, missed)) => {
                info!(message_id = events::FAILING_OPEN_ENDED, route, missed, "enough backends are up again");
            }
            None if opened.is_over(now) => drop(self.routes.remove(name)),
            None => {}
        }
    }

    /// Forgets backends and routes that a generation does not have, but not those backends
    /// that may return.
    pub(super) fn forget(&mut self, generation: &Generation, departed: &Departed) {
        let known = generation.endpoints().chain(departed.endpoints());
        let numbers: HashSet<u64> = known.map(|endpoint| endpoint.number()).collect();
        self.told.retain(|number, _| numbers.contains(number));
        self.routes.retain(|name, _| generation.routes().iter().any(|route| route.name == *name));
    }

    fn tell(&mut self, endpoint: &Endpoint, now: u64) {
        let known = self.told.get(&endpoint.number());
        if known.is_none() && endpoint.state() == State::Up {
            return;
        }
        let report = endpoint.report();
        let told = self.told.entry(endpoint.number()).or_insert(Told::UP);
        let was = told.state;
        let Some(missed) = told.news(&report, now) else { return };
        let backend = &**endpoint.identity();
        let reason = report.why.as_deref().unwrap_or_default();
        match report.state {
            State::Down => warn!(message_id = events::BACKEND_DOWN, backend, reason, missed, "backend down"),
            State::Failing => {
                warn!(message_id = events::BACKEND_FAILING, backend, reason, missed, "backend fails its checks");
            }
            State::Ejected => {
                let eject_s = report.eject_time.unwrap_or_default().as_secs_f64();
                warn!(message_id = events::BACKEND_EJECTED, backend, reason, eject_s, missed, "backend ejected");
            }
            State::Up => info!(message_id = events::BACKEND_UP, backend, was = was.as_str(), missed, "backend up"),
        }
    }
}

/// The backends of each route.
fn groups(generation: &Generation) -> Vec<Group<'_>> {
    generation.routes().iter().map(|route| Group::new(Terms::of(&route.settings), route.pool.taking())).collect()
}

impl Daemon {
    /// Checks the backends of the generation that serves, and no others.
    pub(super) fn watch_backends(&mut self) {
        let now = self.workers.millis();
        // Of one that has left, what its checks have found holds should it return.
        let here: HashSet<u64> = self.generation.endpoints().map(|endpoint| endpoint.number()).collect();
        for endpoint in self.checker.watch(self.generation.checks()) {
            if here.contains(&endpoint.number()) {
                endpoint.unchecked(now);
            }
        }
        outlier::pardon(&groups(&self.generation), now);
        self.ledger.forget(&self.generation, &self.departed);
        self.look_at_backends();
    }

    /// Takes note of what a check has found.
    pub(super) fn backend_checked(&mut self, checked: Checked) {
        let Checked { endpoint, check, outcome } = checked;
        let outcome = match outcome {
            Ok(()) => Ok(()),
            Err(Miss::Theirs(why)) => Err(why),
            Err(Miss::Ours(reason)) => {
                debug!(backend = &**endpoint.identity(), reason = reason.as_str(), "backend can't be checked");
                return;
            }
        };
        if endpoint.checked(outcome, check.rise, check.fall, self.workers.millis()) {
            self.look_at_backends();
        }
    }

    /// Looks what has become of the backends.
    pub(super) fn look_at_backends(&mut self) {
        self.ledger.look(&self.generation, self.workers.millis());
    }
}

#[cfg(test)]
mod tests {
    use super::{BURST, EACH, Opened, Told, groups};
    use crate::balance::stance::Stance;
    use crate::balance::standing::{Report, State};
    use crate::config::{Config, Text};
    use crate::state::Generation;
    use std::collections::BTreeMap;
    use std::path::Path;

    fn report(state: State, changes: u64) -> Report {
        Report { state, since: 0, why: None, eject_time: None, changes }
    }

    #[test]
    fn a_backend_that_flaps_leaves_few_records_and_the_last_one_is_true() {
        let mut told = Told::UP;
        let (mut records, mut missed, mut changes) = (0, 0, 0);
        // Ten changes a second for a minute.
        for now in (0..60_000).step_by(100) {
            changes += 1;
            let state = if changes % 2 == 1 { State::Down } else { State::Up };
            if let Some(more) = told.news(&report(state, changes), now) {
                records += 1;
                missed += more;
            }
        }
        assert_eq!(records, BURST + 60_000 / EACH - 1);
        assert_eq!(told.changes, records + missed, "each change is told or counted");
        // It rests: what was not told yet is.
        let last = report(if told.state == State::Up { State::Down } else { State::Up }, changes + 1);
        assert!(told.news(&last, 60_000 + EACH).is_some());
        assert!(told.news(&last, 60_000 + 2 * EACH).is_none());
    }

    #[test]
    fn an_ejection_that_is_prolonged_is_news_and_the_same_one_is_not() {
        let mut told = Told::UP;
        assert_eq!(told.news(&report(State::Ejected, 1), 0), Some(0));
        assert_eq!(told.news(&report(State::Ejected, 1), 1), None);
        assert_eq!(told.news(&report(State::Ejected, 2), 30_000), Some(0));
    }

    #[test]
    fn a_route_that_opens_and_closes_leaves_few_records_and_the_last_one_is_true() {
        let mut opened = Opened::default();
        let (mut records, mut missed, mut changes) = (0, 0, 0);
        for now in (0..60_000).step_by(100) {
            let stance = if changes % 2 == 0 { Stance::Open } else { Stance::Backups };
            changes += 1;
            if let Some((open, more)) = opened.news(stance, now) {
                assert_eq!(open, stance == Stance::Open);
                records += 1;
                missed += more;
            }
            assert!(!opened.is_over(now));
        }
        assert_eq!(records, BURST + 60_000 / EACH - 1);
        assert_eq!(changes, records + missed + opened.changes, "each change is told or counted");
        opened.news(Stance::Sound, 60_000 + EACH);
        assert!(!opened.told && !opened.is_over(60_000 + EACH) && opened.is_over(60_000 + 10 * EACH));
    }

    #[test]
    fn those_that_take_no_requests_are_not_judged_by() {
        let text = "BACKEND_ADDRESS=10.0.0.1:80?weight=0,10.0.0.2:80\n";
        let text = Text { path: Path::new("config.env").into(), bytes: text.into() };
        let config = Config::assemble(Some(text), Vec::new(), &BTreeMap::new()).unwrap();
        let generation = Generation::build(1, config, &Default::default(), None);
        let [group] = groups(&generation).try_into().unwrap();
        assert_eq!(group.endpoints.iter().map(|one| &**one.identity()).collect::<Vec<_>>(), ["10.0.0.2:80"]);
        assert!(!group.ejects(), "the only one is never ejected");
    }
}

//! Names of backends: looked up here, never on a worker.
//!
//! Each name is looked up at most once at a time, and at most [`AT_ONCE`] names
//! together, the one that has been due longest first: a name that hangs delays others by no
//! more than the place it takes. Nothing is ever awaited but the next outcome, so the
//! control loop, and with it the watchdog, never waits for a name.
//!
//! A name is looked up again when its answer's lifetime is over, which counts as no less
//! than [`SHORTEST`] and no more than [`LONGEST`], or after [`REFRESH`] where nobody told
//! one; after a failure in [`RETRY`], doubled up to [`REFRESH`]. What was found stays
//! known through any failure, also that the name is gone: an outage of a name server is
//! not the backend's, and one that is really gone is noticed by whoever connects.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, pending};
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::balance::discovery::{Directory, Found, Query};

/// How long addresses without a lifetime are used before the name is looked up again.
pub(super) const REFRESH: Duration = Duration::from_secs(10);

/// The shortest lifetime of an answer: zero is in use and must not keep us busy.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);

/// The longest one: container networks say 600 s and move names at once.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// The first pause after a failed lookup.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// Lookups that run together.
pub(super) const AT_ONCE: usize = 8;

/// Where addresses come from.
pub(super) trait Lookup {
    /// Finds what a name is; `known` is what it was before.
    ///
    /// # Errors
    /// Why not, in words.
    fn lookup(
        &self,
        query: Query,
        known: Option<Found>,
    ) -> impl Future<Output = Result<Answered, String>> + Send + 'static;
}

/// What a lookup found, never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answered {
    /// Where the name leads.
    pub(super) found: Found,
    /// How long it holds, where anybody says.
    pub(super) lifetime: Option<Duration>,
}

/// What became of one lookup, if that is another thing than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolution {
    /// The name.
    pub(super) query: Query,
    /// How it differs from before.
    pub(super) news: News,
}

/// How an outcome differs from the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// It failed and had not before; what was found earlier is still known.
    Failed(String),
    /// It leads somewhere, and was not known before.
    Found {
        /// The lookup before this one had failed.
        recovered: bool,
    },
    /// It leads somewhere else than before.
    Moved {
        /// The lookup before this one had failed.
        recovered: bool,
    },
    /// It leads where it led before a lookup failed.
    Recovered,
}

/// The schedule of all lookups.
#[derive(Debug)]
pub(super) struct Resolver<L> {
    lookup: L,
    names: BTreeMap<Query, Name>,
    /// Those that wait for their time.
    due: BTreeSet<(Instant, Query)>,
    running: JoinSet<Ended>,
}

type Ended = (Query, Result<Answered, String>);

#[derive(Debug)]
struct Name {
    /// False once no backend has it any more but its lookup still runs.
    wanted: bool,
    step: Step,
    failures: u32,
    error: Option<String>,
    found: Option<Found>,
}

#[derive(Debug)]
enum Step {
    Due(Instant),
    Running(Id),
}

impl<L: Lookup> Resolver<L> {
    /// A resolver with no names yet.
    pub(super) fn new(lookup: L) -> Resolver<L> {
        Resolver { lookup, names: BTreeMap::new(), due: BTreeSet::new(), running: JoinSet::new() }
    }

    /// From now on asks elsewhere, and at once; what is known stays known meanwhile.
    pub(super) fn ask(&mut self, lookup: L) {
        self.lookup = lookup;
        self.running.abort_all();
        let now = Instant::now();
        for name in self.names.values_mut() {
            name.step = Step::Due(now);
        }
        self.names.retain(|_, name| name.wanted);
        self.line_up();
    }

    /// From now on looks up exactly these names; what is known of them stays known.
    pub(super) fn watch(&mut self, queries: &BTreeSet<Query>) {
        self.names.retain(|query, name| {
            name.wanted = queries.contains(query);
            name.wanted || matches!(name.step, Step::Running(_))
        });
        for query in queries {
            self.names.entry(query.clone()).or_insert_with(|| Name {
                wanted: true,
                step: Step::Due(Instant::now()),
                failures: 0,
                error: None,
                found: None,
            });
        }
        self.line_up();
    }

    fn line_up(&mut self) {
        let due = |(query, name): (&Query, &Name)| match name.step {
            Step::Due(due) => Some((due, query.clone())),
            Step::Running(_) => None,
        };
        self.due = self.names.iter().filter_map(due).collect();
    }

    /// Where the names lead, as far as that is known.
    pub(super) fn directory(&self) -> Directory {
        let known = self.names.iter().filter_map(|(query, name)| Some((query.clone(), name.found.clone()?)));
        known.collect()
    }

    /// Why the last lookup of a name failed, if it did.
    pub(super) fn error(&self, query: &Query) -> Option<&str> {
        self.names.get(query)?.error.as_deref()
    }

    /// True once every name was looked up at least once, whatever came of it.
    pub(super) fn settled(&self) -> bool {
        self.names.values().all(|name| !name.wanted || name.error.is_some() || name.found.is_some())
    }

    /// Starts what is due and waits for the next news; for ever when there are no names.
    /// Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Resolution {
        loop {
            let due = self.start_due();
            tokio::select! {
                Some(ended) = self.running.join_next_with_id() => {
                    if let Some(resolution) = self.ended(ended) {
                        return resolution;
                    }
                }
                () = until(due) => {}
            }
        }
    }

    /// Starts every lookup that is due and has a place; returns when the next one is, unless
    /// one must end first.
    fn start_due(&mut self) -> Option<Instant> {
        let now = Instant::now();
        while self.running.len() < AT_ONCE {
            let (due, query) = self.due.pop_first()?;
            if due > now {
                self.due.insert((due, query));
                return Some(due);
            }
            let Some(name) = self.names.get_mut(&query) else { continue };
            let lookup = self.lookup.lookup(query.clone(), name.found.clone());
            let task = self.running.spawn(async move { (query, lookup.await) });
            name.step = Step::Running(task.id());
        }
        None
    }

    fn ended(&mut self, ended: Result<(Id, Ended), JoinError>) -> Option<Resolution> {
        let (id, query, outcome) = match ended {
            Ok((id, (query, outcome))) => (id, query, outcome),
            Err(error) => {
                let ended = |name: &Name| matches!(name.step, Step::Running(id) if id == error.id());
                let query = self.names.iter().find(|(_, name)| ended(name))?.0.clone();
                (error.id(), query, Err(error.to_string()))
            }
        };
        let name = self.names.get_mut(&query)?;
        if !matches!(name.step, Step::Running(running) if running == id) {
            return None; // Asked of somebody who is not asked any more.
        }
        if !name.wanted {
            self.names.remove(&query);
            return None;
        }
        let (news, pause) = name.take(outcome);
        let due = Instant::now() + pause;
        name.step = Step::Due(due);
        self.due.insert((due, query.clone()));
        news.map(|news| Resolution { query, news })
    }
}

impl Name {
    /// Takes note of an outcome: what is new about it, and when to look again.
    fn take(&mut self, outcome: Result<Answered, String>) -> (Option<News>, Duration) {
        match outcome {
            Ok(Answered { found, lifetime }) => {
                self.failures = 0;
                let recovered = self.error.take().is_some();
                let news = match &self.found {
                    None => Some(News::Found { recovered }),
                    Some(before) if *before != found => Some(News::Moved { recovered }),
                    Some(_) => recovered.then_some(News::Recovered),
                };
                self.found = Some(found);
                (news, lifetime.map_or(REFRESH, |lifetime| lifetime.clamp(SHORTEST, LONGEST)))
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                // Another wording of a failure is no news.
                let news = self.error.is_none().then(|| News::Failed(error.clone()));
                self.error = Some(error);
                (news, pause(self.failures))
            }
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

/// How long to wait after so many failures in a row.
fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1);
    RETRY.saturating_mul(2_u32.saturating_pow(doublings)).min(REFRESH)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use tokio::sync::Semaphore;
    use tokio::time::sleep;

    use super::*;

    type TestResult = Result<(), Box<dyn std::error::Error>>;
    type Outcome = Result<Answered, String>;

    /// Answers from a list; the name `slow` waits for a permit.
    #[derive(Clone)]
    struct Script {
        answers: Arc<Mutex<VecDeque<Outcome>>>,
        asked: Arc<Mutex<Vec<(String, Instant)>>>,
        gate: Arc<Semaphore>,
        takes: Duration,
    }

    impl Script {
        fn new(answers: impl IntoIterator<Item = Outcome>) -> Script {
            Script {
                answers: Arc::new(Mutex::new(answers.into_iter().collect())),
                asked: Arc::default(),
                gate: Arc::new(Semaphore::new(0)),
                takes: Duration::ZERO,
            }
        }

        fn asked(&self) -> Vec<String> {
            let asked = self.asked.lock().unwrap();
            asked.iter().map(|(host, _)| host.clone()).collect()
        }

        /// Seconds between the questions.
        fn pauses(&self) -> Vec<u64> {
            let asked = self.asked.lock().unwrap();
            asked.windows(2).map(|pair| (pair[1].1 - pair[0].1).as_secs()).collect()
        }
    }

    impl Lookup for Script {
        fn lookup(&self, query: Query, _: Option<Found>) -> impl Future<Output = Outcome> + Send + 'static {
            let script = self.clone();
            let host = query.name().to_owned();
            script.asked.lock().unwrap().push((host.clone(), Instant::now()));
            async move {
                if host.starts_with("slow") {
                    let _ = script.gate.acquire().await;
                }
                if !script.takes.is_zero() {
                    sleep(script.takes).await;
                }
                let answer = script.answers.lock().unwrap().pop_front();
                answer.unwrap_or_else(|| found(&["192.0.2.1"], None))
            }
        }
    }

    fn host(name: &str) -> Query {
        Query::Host(name.into())
    }

    fn hosts(names: &[&str]) -> BTreeSet<Query> {
        names.iter().map(|name| host(name)).collect()
    }

    fn found(addresses: &[&str], lifetime: Option<u64>) -> Outcome {
        let found = Found::Addresses(addresses.iter().map(|ip| ip.parse().unwrap()).collect());
        Ok(Answered { found, lifetime: lifetime.map(Duration::from_secs) })
    }

    /// Lets the resolver go on for so long; what was new.
    async fn news(resolver: &mut Resolver<Script>, seconds: u64) -> Vec<News> {
        let (mut news, until) = (Vec::new(), Instant::now() + Duration::from_secs(seconds));
        while let Ok(resolution) = tokio::time::timeout_at(until, resolver.next()).await {
            news.push(resolution.news);
        }
        news
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_lookup_is_reported_once_and_repeated_after_a_growing_pause() -> TestResult {
        let fail = || Err(String::from("no such name"));
        let script = Script::new([fail(), fail(), fail(), fail(), fail(), fail()]);
        let mut resolver = Resolver::new(script.clone());
        resolver.watch(&hosts(&["app"]));
        assert!(!resolver.settled());
        assert_eq!(resolver.next().await.news, News::Failed("no such name".into()));
        assert!(resolver.settled());
        assert_eq!(resolver.error(&host("app")), Some("no such name"));
        assert_eq!(resolver.next().await.news, News::Found { recovered: true });
        assert_eq!(resolver.error(&host("app")), None);
        assert_eq!(script.pauses(), [1, 2, 4, 8, 10, 10]);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_lifetime_is_kept_between_its_bounds() {
        let ip = &["192.0.2.1"];
        let lifetimes = [Some(0), Some(5), Some(60), Some(86_400), None, Some(0)];
        let script = Script::new(lifetimes.map(|lifetime| found(ip, lifetime)));
        let mut resolver = Resolver::new(script.clone());
        resolver.watch(&hosts(&["app"]));
        assert_eq!(news(&mut resolver, 137).await, [News::Found { recovered: false }]);
        assert_eq!(script.pauses(), [1, 5, 60, 60, 10, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_stays_known_through_a_failure() {
        let script = Script::new([
            found(&["192.0.2.1", "192.0.2.2"], Some(1)),
            Err("name server failure".into()),
            found(&["192.0.2.2", "192.0.2.1"], Some(1)),
            found(&["192.0.2.3"], Some(1)),
            Err("no such name".into()),
            Err("name server failure".into()),
        ]);
        let mut resolver = Resolver::new(script);
        resolver.watch(&hosts(&["app"]));
        assert_eq!(resolver.next().await.news, News::Found { recovered: false });
        assert_eq!(resolver.next().await.news, News::Failed("name server failure".into()));
        assert_eq!(resolver.directory()[&host("app")].addresses().len(), 2);
        // The order alone is no change.
        assert_eq!(resolver.next().await.news, News::Recovered);
        assert_eq!(resolver.next().await.news, News::Moved { recovered: false });
        assert_eq!(resolver.next().await.news, News::Failed("no such name".into()));
        assert_eq!(resolver.directory()[&host("app")].addresses().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_name_delays_no_other_and_runs_only_once() {
        let script = Script::new([]);
        let mut resolver = Resolver::new(script.clone());
        resolver.watch(&hosts(&["app", "slow"]));
        assert_eq!(news(&mut resolver, 45).await.len(), 1);
        let count = |name: &str| script.asked().iter().filter(|host| *host == name).count();
        assert_eq!((count("app"), count("slow")), (5, 1));
        assert!(!resolver.settled());
        script.gate.add_permits(1);
        assert_eq!(resolver.next().await.query, host("slow"));
        assert!(resolver.settled());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_lookups_run_together_than_allowed() {
        let script = Script::new([]);
        let mut resolver = Resolver::new(script.clone());
        let names: Vec<String> = (0..=AT_ONCE).map(|n| format!("slow{n}")).collect();
        resolver.watch(&names.iter().map(|name| host(name)).collect());
        assert!(news(&mut resolver, 60).await.is_empty(), "all hang");
        assert_eq!(script.asked().len(), AT_ONCE);
        script.gate.add_permits(AT_ONCE + 1);
        while !resolver.settled() {
            resolver.next().await;
        }
        assert_eq!(resolver.directory().len(), AT_ONCE + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_names_are_due_each_has_its_turn() {
        // Quick ones that are due again at once, by the time the others were asked.
        let script = Script { takes: Duration::from_secs(1), ..Script::new([]) };
        let names: Vec<String> = (0..AT_ONCE * 20).map(|n| format!("n{n:03}")).collect();
        script.answers.lock().unwrap().extend((0..AT_ONCE * 60).map(|_| found(&["192.0.2.1"], Some(0))));
        let mut resolver = Resolver::new(script.clone());
        resolver.watch(&names.iter().map(|name| host(name)).collect());
        news(&mut resolver, 41).await;
        let asked = script.asked();
        for name in &names {
            let times = asked.iter().filter(|asked| *asked == name).count();
            assert!((2..=3).contains(&times), "{name} was asked for {times} times");
        }
        // One that is new waits for no more than those that were due before it.
        resolver.watch(&names.iter().map(String::as_str).chain(["z"]).map(host).collect());
        news(&mut resolver, 21).await;
        assert!(script.asked().iter().any(|asked| asked == "z"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_nobody_wants_any_more_is_forgotten() {
        let script = Script::new([]);
        let mut resolver = Resolver::new(script.clone());
        resolver.watch(&hosts(&["app", "slow"]));
        assert_eq!(resolver.next().await.query, host("app"));
        // Gone and back while its lookup runs: still only one.
        resolver.watch(&hosts(&[]));
        assert!(resolver.settled() && resolver.directory().is_empty());
        resolver.watch(&hosts(&["slow"]));
        script.gate.add_permits(1);
        assert_eq!(resolver.next().await.query, host("slow"));
        assert_eq!(script.asked(), ["app", "slow"]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_asked_instead_is_asked_at_once() {
        let (hanging, other) = (Script::new([]), Script::new([]));
        let mut resolver = Resolver::new(hanging.clone());
        resolver.watch(&hosts(&["app", "slow"]));
        assert_eq!(resolver.next().await.query, host("app"));
        other.gate.add_permits(1);
        resolver.ask(other.clone());
        assert_eq!(resolver.next().await.query, host("slow"));
        assert_eq!((hanging.asked().len(), other.asked().len()), (2, 2));
        hanging.gate.add_permits(1);
        assert!(news(&mut resolver, 5).await.is_empty(), "the one asked before has no say");
    }
}

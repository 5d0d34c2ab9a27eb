//! Checker: when which backend is checked. One for the daemon, on control's thread.
//!
//! A backend is checked every `HEALTH_INTERVAL`, give or take a tenth, so that several
//! daemons in front of one backend fall out of step. New backends are first checked within
//! [`SOON`], since nobody knows yet whether they are sound, but not all at once; from there
//! on they are spread over their interval. Of those that are due at most [`AT_ONCE`] are checked
//! together, the one that has waited longest first; the others are late then, which
//! stretches their interval.
//!
//! The checks run inside [`Checker::next`], so that nothing of them goes on when nobody
//! wants to know.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::balance::endpoint::Endpoint;
use crate::balance::health::Check;
use crate::proxy::probe::{Miss, probe};

/// Checks that run together. Each takes a descriptor.
pub const AT_ONCE: usize = 64;

/// Until when a backend that is new, or checked in a new way, is asked first.
pub const SOON: Duration = Duration::from_secs(1);

/// How a backend is asked how it is.
pub trait Asking {
    /// Asks once, and not for much longer than the check may take.
    ///
    /// # Errors
    /// Why the check did not pass.
    fn ask(&self, endpoint: Arc<Endpoint>, check: Arc<Check>) -> impl Future<Output = Result<(), Miss>> + 'static;
}

/// Over the network.
#[derive(Debug, Clone, Copy, Default)]
pub struct Network;

impl Asking for Network {
    fn ask(&self, endpoint: Arc<Endpoint>, check: Arc<Check>) -> impl Future<Output = Result<(), Miss>> + 'static {
        ask(endpoint, check)
    }
}

async fn ask(endpoint: Arc<Endpoint>, check: Arc<Check>) -> Result<(), Miss> {
    probe(&endpoint, &check).await
}

/// What came of a check.
#[derive(Debug)]
pub struct Checked {
    /// Of this backend.
    pub endpoint: Arc<Endpoint>,
    /// By this check.
    pub check: Arc<Check>,
    /// What it found.
    pub outcome: Result<(), Miss>,
}

/// The schedule of all checks.
#[derive(Debug)]
pub struct Checker<A> {
    asking: A,
    /// By the endpoint's number.
    jobs: BTreeMap<u64, Job>,
    /// Those that wait for their time.
    due: BTreeSet<(Instant, u64)>,
    /// Those that run.
    running: Vec<u64>,
}

struct Job {
    endpoint: Arc<Endpoint>,
    check: Arc<Check>,
    /// When it is due, or has begun.
    at: Instant,
    /// Of one that was not asked yet: how long after the first time it is asked again.
    first: Option<Duration>,
    asked: Option<Asked>,
}

type Asked = Pin<Box<dyn Future<Output = Result<(), Miss>>>>;

impl fmt::Debug for Job {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Job").field("endpoint", &self.endpoint).field("at", &self.at).finish_non_exhaustive()
    }
}

impl<A: Asking> Checker<A> {
    /// A checker with nobody to check.
    pub fn new(asking: A) -> Checker<A> {
        Checker { asking, jobs: BTreeMap::new(), due: BTreeSet::new(), running: Vec::new() }
    }

    /// From now on checks exactly these. A backend that was checked before keeps its turn
    /// unless its check has changed. Returns those that are checked no more.
    pub fn watch(&mut self, wanted: impl IntoIterator<Item = (Arc<Endpoint>, Arc<Check>)>) -> Vec<Arc<Endpoint>> {
        let mut before = std::mem::take(&mut self.jobs);
        let mut fresh = Vec::new();
        for (endpoint, check) in wanted {
            let number = endpoint.number();
            match before.remove(&number) {
                Some(job) if job.check == check => drop(self.jobs.insert(number, job)),
                _ => fresh.push((endpoint, check)),
            }
        }
        let now = Instant::now();
        let count = fresh.len().max(1) as f64;
        for (place, (endpoint, check)) in fresh.into_iter().enumerate() {
            let part = ((place as f64 + fastrand::f64()) / count).min(1.0);
            let at = now + check.interval.min(SOON).mul_f64(part);
            let first = Some(check.interval.mul_f64(part));
            self.jobs.insert(endpoint.number(), Job { endpoint, check, at, first, asked: None });
        }
        let waits = |(number, job): (&u64, &Job)| job.asked.is_none().then_some((job.at, *number));
        self.due = self.jobs.iter().filter_map(waits).collect();
        self.running = self.jobs.iter().filter(|(_, job)| job.asked.is_some()).map(|(number, _)| *number).collect();
        before.into_values().map(|job| job.endpoint).collect()
    }

    /// Runs what is due and waits for the next outcome; for ever when there is nobody to
    /// check. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Checked {
        loop {
            let next = self.start_due();
            let ended = tokio::select! {
                ended = poll_fn(|cx| self.poll_ended(cx)) => ended,
                () = until(next) => continue,
            };
            if let Some(checked) = self.ended(ended) {
                return checked;
            }
        }
    }

    /// Starts every check that is due and has a place; returns when the next one is, unless
    /// one must end first.
    fn start_due(&mut self) -> Option<Instant> {
        let now = Instant::now();
        while let Some((at, number)) = self.due.first().copied() {
            if self.running.len() >= AT_ONCE {
                return None;
            }
            if at > now {
                return Some(at);
            }
            self.due.pop_first();
            let Some(job) = self.jobs.get_mut(&number) else { continue };
            // One that is late does not make up for what it has missed.
            job.at = now;
            let asking = self.asking.ask(Arc::clone(&job.endpoint), Arc::clone(&job.check));
            job.asked = Some(Box::pin(asking));
            self.running.push(number);
        }
        None
    }

    /// Ready with one of the checks that have ended.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<(u64, Result<(), Miss>)> {
        for (place, number) in self.running.iter().enumerate() {
            let asked = self.jobs.get_mut(number).and_then(|job| job.asked.as_mut());
            let Some(Poll::Ready(outcome)) = asked.map(|asked| asked.as_mut().poll(cx)) else { continue };
            return Poll::Ready((self.running.swap_remove(place), outcome));
        }
        Poll::Pending
    }

    fn ended(&mut self, (number, outcome): (u64, Result<(), Miss>)) -> Option<Checked> {
        let job = self.jobs.get_mut(&number)?;
        job.asked = None;
        let pause = job.first.take().unwrap_or_else(|| job.check.interval.mul_f64(0.9 + 0.2 * fastrand::f64()));
        job.at = (job.at + pause).max(Instant::now());
        self.due.insert((job.at, number));
        Some(Checked { endpoint: Arc::clone(&job.endpoint), check: Arc::clone(&job.check), outcome })
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::config::{BackendAddress, BackendProtocol, HealthCheck, Target};

    /// Notes when who is asked; each takes as long as it is told.
    #[derive(Clone, Default)]
    struct Script {
        takes: Duration,
        asked: Rc<RefCell<Vec<(u64, Instant)>>>,
        together: Rc<RefCell<(usize, usize)>>,
    }

    impl Asking for Script {
        fn ask(&self, endpoint: Arc<Endpoint>, check: Arc<Check>) -> impl Future<Output = Result<(), Miss>> + 'static {
            let script = self.clone();
            async move {
                script.asked.borrow_mut().push((endpoint.number(), Instant::now()));
                {
                    let (now, most) = &mut *script.together.borrow_mut();
                    *now += 1;
                    *most = (*most).max(*now);
                }
                let _ends = Ends(Rc::clone(&script.together));
                tokio::time::sleep(script.takes.min(check.timeout)).await;
                Ok(())
            }
        }
    }

    struct Ends(Rc<RefCell<(usize, usize)>>);

    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.borrow_mut().0 -= 1;
        }
    }

    fn check(interval: u64) -> Arc<Check> {
        Arc::new(Check {
            kind: HealthCheck::Tcp,
            protocol: BackendProtocol::Http1,
            interval: Duration::from_secs(interval),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            statuses: vec![200..=399],
            host: None,
        })
    }

    fn endpoints(count: u16) -> Vec<Arc<Endpoint>> {
        let at = |index| Target::Ip(format!("127.0.0.1:{}", 4000 + index).parse().unwrap());
        (0..count)
            .map(|index| Arc::new(Endpoint::new(&BackendAddress { target: at(index), weight: 1, backup: false })))
            .collect()
    }

    fn each(endpoints: &[Arc<Endpoint>], check: &Arc<Check>) -> Vec<(Arc<Endpoint>, Arc<Check>)> {
        endpoints.iter().map(|endpoint| (Arc::clone(endpoint), Arc::clone(check))).collect()
    }

    async fn run(checker: &mut Checker<Script>, span: Duration) -> usize {
        let (ends, mut count) = (Instant::now() + span, 0);
        while tokio::time::timeout_at(ends, checker.next()).await.is_ok() {
            count += 1;
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_backends_are_never_asked_in_a_burst() {
        let script = Script::default();
        let mut checker = Checker::new(script.clone());
        checker.watch(each(&endpoints(100), &check(2)));
        let start = Instant::now();
        run(&mut checker, Duration::from_secs(60)).await;
        let mut slots = vec![0; 600];
        for (_, at) in &*script.asked.borrow() {
            slots[((*at - start).as_millis() as usize / 100).min(599)] += 1;
        }
        // Five in a tenth of a second on the average.
        assert!(slots.iter().all(|asked| *asked <= 20), "{slots:?}");
        let all: usize = slots.iter().sum();
        assert!((2_900..3_150).contains(&all), "{all}");
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_asked_once_in_an_interval_give_or_take_a_tenth() {
        let script = Script { takes: Duration::from_millis(300), ..Script::default() };
        let mut checker = Checker::new(script.clone());
        checker.watch(each(&endpoints(1), &check(10)));
        run(&mut checker, Duration::from_secs(1_000)).await;
        let asked: Vec<Instant> = script.asked.borrow().iter().map(|(_, at)| *at).collect();
        let mut pauses: Vec<u128> = asked.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
        assert!(pauses.remove(0) <= 10_000, "the first one is for the spread");
        assert!(pauses.iter().all(|pause| (8_999..=11_001).contains(pause)), "{pauses:?}");
        assert!(pauses.iter().max() > pauses.iter().min(), "no jitter");
    }

    #[tokio::test(start_paused = true)]
    async fn backends_that_are_new_are_asked_within_a_second_and_then_over_their_interval() {
        let script = Script::default();
        let mut checker = Checker::new(script.clone());
        let endpoints = endpoints(100);
        checker.watch(each(&endpoints, &check(100)));
        let start = Instant::now();
        run(&mut checker, Duration::from_millis(1001)).await;
        let first = script.asked.take();
        assert!(endpoints.iter().all(|one| first.iter().any(|(number, _)| *number == one.number())));
        assert!(first.len() <= 102, "{}", first.len());
        let mut slots = vec![0; 10];
        first.iter().for_each(|(_, at)| slots[((*at - start).as_millis() as usize / 100).min(9)] += 1);
        assert!(slots.iter().all(|asked| (8..=13).contains(asked)), "{slots:?}");
        for tenth in 1..=9 {
            run(&mut checker, Duration::from_secs(10)).await;
            let asked = script.asked.take().len();
            assert!((8..=13).contains(&asked), "{asked} in tenth {tenth}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_run_together_and_none_is_left_out() {
        let script = Script { takes: Duration::from_secs(60), ..Script::default() };
        let mut checker = Checker::new(script.clone());
        let endpoints = endpoints(300);
        checker.watch(each(&endpoints, &check(2)));
        run(&mut checker, Duration::from_secs(12)).await;
        assert_eq!(script.together.borrow().1, AT_ONCE);
        let asked = script.asked.borrow();
        let counts: Vec<usize> = endpoints
            .iter()
            .map(|endpoint| asked.iter().filter(|(number, _)| *number == endpoint.number()).count())
            .collect();
        // 64 a second for 300: each every five seconds.
        assert!(counts.iter().all(|count| (2..=4).contains(count)), "{counts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_starts_and_stops_only_what_has_changed() {
        let script = Script { takes: Duration::from_millis(500), ..Script::default() };
        let mut checker = Checker::new(script.clone());
        let endpoints = endpoints(3);
        assert!(checker.watch(each(&endpoints[..2], &check(100))).is_empty());
        run(&mut checker, Duration::from_secs(100)).await;
        let turns: Vec<Instant> = checker.jobs.values().map(|job| job.at).collect();
        let gone = checker.watch([(Arc::clone(&endpoints[0]), check(100)), (Arc::clone(&endpoints[2]), check(100))]);
        assert_eq!(gone.iter().map(|endpoint| endpoint.number()).collect::<Vec<_>>(), [endpoints[1].number()]);
        assert_eq!(checker.jobs[&endpoints[0].number()].at, turns[0], "it keeps its turn");
        checker.watch([(Arc::clone(&endpoints[0]), check(5))]);
        script.asked.borrow_mut().clear();
        run(&mut checker, Duration::from_secs(50)).await;
        let asked = script.asked.borrow();
        assert!(asked.iter().all(|(number, _)| *number == endpoints[0].number()));
        // A tenth of jitter: pauses of 4.5 to 5.5 seconds, after a first one of at most 5.
        assert!((9..=12).contains(&asked.len()), "{}", asked.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_runs_is_given_up_with_its_backend() {
        let script = Script { takes: Duration::from_secs(60), ..Script::default() };
        let mut checker = Checker::new(script.clone());
        checker.watch(each(&endpoints(2), &check(1)));
        tokio::select! {
            biased;
            _ = checker.next() => unreachable!("none has ended"),
            () = async { while script.together.borrow().0 < 2 { tokio::time::advance(Duration::from_millis(10)).await } } => {}
        }
        assert_eq!(checker.watch([]).len(), 2);
        assert_eq!((script.together.borrow().0, checker.running.len(), checker.due.len()), (0, 0, 0));
    }
}

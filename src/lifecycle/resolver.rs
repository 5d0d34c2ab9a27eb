//! Names of backends: looked up here, never on a worker.
//!
//! `getaddrinfo` blocks for as long as a name server pleases, so every lookup runs
//! in the runtime's blocking pool. Each name is looked up at most once at a time,
//! and at most [`AT_ONCE`] names together: that leaves a thread of the pool for
//! reading the configuration, and a name that hangs delays others by no more than
//! the place it takes. Nothing is ever awaited but the next outcome, so the control
//! loop, and with it the watchdog, never waits for a name.
//!
//! A name that resolves is refreshed every [`REFRESH`]; one that does not is tried
//! again after [`RETRY`], doubled up to [`REFRESH`]. Lifetimes of DNS records are
//! not known here, since `getaddrinfo` does not tell them; it does read
//! `/etc/hosts` and every other source that the host is set up for.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, pending};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

/// How long addresses are used before the name is looked up again.
pub const REFRESH: Duration = Duration::from_secs(10);

/// The first pause after a failed lookup.
pub const RETRY: Duration = Duration::from_secs(1);

/// Lookups that run together.
pub const AT_ONCE: usize = 3;

/// Where addresses come from.
pub trait Lookup {
    /// Finds the addresses of a host.
    ///
    /// # Errors
    /// Whatever the host's resolver reports.
    fn lookup(&self, host: String) -> impl Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static;
}

/// The host's own resolver, `getaddrinfo(3)`.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Lookup for System {
    fn lookup(&self, host: String) -> impl Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static {
        ask_the_host(host)
    }
}

async fn ask_the_host(host: String) -> io::Result<Vec<IpAddr>> {
    let found = tokio::net::lookup_host((host, 0)).await?;
    Ok(found.map(|address| address.ip()).collect())
}

/// What became of one lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// The name.
    pub host: String,
    /// Its addresses, never empty, or why there is none.
    pub outcome: Outcome,
    /// Whether the outcome is another one than before; the first one always is.
    pub changed: bool,
    /// Whether the lookup before this one failed.
    pub failed_before: bool,
}

/// Addresses of a name in the order of the host's resolver, each once; or the reason.
pub type Outcome = Result<Vec<IpAddr>, String>;

/// The schedule of all lookups.
#[derive(Debug)]
pub struct Resolver<L> {
    lookup: L,
    names: BTreeMap<String, Name>,
    running: JoinSet<Found>,
}

type Found = (String, io::Result<Vec<IpAddr>>);

#[derive(Debug)]
struct Name {
    /// False once no backend has it any more but its lookup still runs.
    wanted: bool,
    step: Step,
    failures: u32,
    last: Option<Outcome>,
}

#[derive(Debug)]
enum Step {
    Due(Instant),
    Running(Id),
}

impl<L: Lookup> Resolver<L> {
    /// A resolver with no names yet.
    pub fn new(lookup: L) -> Resolver<L> {
        Resolver { lookup, names: BTreeMap::new(), running: JoinSet::new() }
    }

    /// From now on looks up exactly `hosts`; what is known of them stays known.
    pub fn watch(&mut self, hosts: &BTreeSet<String>) {
        self.names.retain(|host, name| {
            name.wanted = hosts.contains(host);
            name.wanted || matches!(name.step, Step::Running(_))
        });
        for host in hosts {
            self.names.entry(host.clone()).or_insert_with(|| Name {
                wanted: true,
                step: Step::Due(Instant::now()),
                failures: 0,
                last: None,
            });
        }
    }

    /// The last outcome for a name; none before its first lookup ends.
    pub fn known(&self, host: &str) -> Option<&Outcome> {
        self.names.get(host)?.last.as_ref()
    }

    /// True once every name was looked up at least once, whatever came of it.
    pub fn settled(&self) -> bool {
        self.names.values().all(|name| !name.wanted || name.last.is_some())
    }

    /// Starts what is due and waits for the next outcome; for ever when there are no
    /// names. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Resolution {
        loop {
            let due = self.start_due();
            tokio::select! {
                Some(found) = self.running.join_next_with_id() => {
                    if let Some(resolution) = self.ended(found) {
                        return resolution;
                    }
                }
                () = until(due) => {}
            }
        }
    }

    /// Starts every lookup that is due and has a place; returns when the next one is.
    fn start_due(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for (host, name) in &mut self.names {
            let Step::Due(due) = name.step else { continue };
            if self.running.len() >= AT_ONCE {
                return None; // A lookup that ends comes round again.
            }
            if due > now {
                next = Some(next.map_or(due, |next| next.min(due)));
                continue;
            }
            let lookup = self.lookup.lookup(host.clone());
            let host = host.clone();
            let task = self.running.spawn(async move { (host, lookup.await) });
            name.step = Step::Running(task.id());
        }
        next
    }

    fn ended(&mut self, found: Result<(Id, Found), JoinError>) -> Option<Resolution> {
        let (host, outcome) = match found {
            Ok((_, (host, outcome))) => (host, outcome),
            Err(error) => {
                let ended = |name: &Name| matches!(name.step, Step::Running(id) if id == error.id());
                let host = self.names.iter().find(|(_, name)| ended(name))?.0.clone();
                (host, Err(io::Error::other(error)))
            }
        };
        let name = self.names.get_mut(&host)?;
        if !name.wanted {
            self.names.remove(&host);
            return None;
        }
        let outcome = distinct(outcome);
        name.failures = match outcome {
            Ok(_) => 0,
            Err(_) => name.failures.saturating_add(1),
        };
        name.step = Step::Due(Instant::now() + pause(name.failures));
        let changed = !name.last.as_ref().is_some_and(|last| same(last, &outcome));
        let failed_before = matches!(name.last, Some(Err(_)));
        name.last = Some(outcome.clone());
        Some(Resolution { host, outcome, changed, failed_before })
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
    match failures.checked_sub(1) {
        None => REFRESH,
        Some(doublings) => RETRY.saturating_mul(2_u32.saturating_pow(doublings)).min(REFRESH),
    }
}

/// `getaddrinfo` may name an address once for each kind of socket.
fn distinct(found: io::Result<Vec<IpAddr>>) -> Outcome {
    let found = found.map_err(|error| error.to_string())?;
    let mut seen = BTreeSet::new();
    let addresses: Vec<IpAddr> = found.into_iter().filter(|ip| seen.insert(*ip)).collect();
    if addresses.is_empty() { Err(String::from("the name has no address")) } else { Ok(addresses) }
}

/// Name servers rotate their answers: the order alone is no change, nor is another
/// wording of a failure.
fn same(one: &Outcome, other: &Outcome) -> bool {
    match (one, other) {
        (Ok(one), Ok(other)) => one.iter().collect::<BTreeSet<_>>() == other.iter().collect::<BTreeSet<_>>(),
        (Err(_), Err(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use tokio::sync::Semaphore;

    use super::*;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    /// Answers from a list; the name `slow` waits for a permit.
    #[derive(Clone)]
    struct Script {
        answers: Arc<Mutex<VecDeque<io::Result<Vec<IpAddr>>>>>,
        asked: Arc<Mutex<Vec<(String, Instant)>>>,
        gate: Arc<Semaphore>,
    }

    impl Script {
        fn new(answers: impl IntoIterator<Item = io::Result<Vec<IpAddr>>>) -> Script {
            Script {
                answers: Arc::new(Mutex::new(answers.into_iter().collect())),
                asked: Arc::default(),
                gate: Arc::new(Semaphore::new(0)),
            }
        }

        fn asked(&self) -> Vec<String> {
            let asked = self.asked.lock().unwrap();
            asked.iter().map(|(host, _)| host.clone()).collect()
        }
    }

    impl Lookup for Script {
        fn lookup(&self, host: String) -> impl Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static {
            let script = self.clone();
            let asked = (host.clone(), Instant::now());
            script.asked.lock().unwrap().push(asked);
            async move {
                if host.starts_with("slow") {
                    let _ = script.gate.acquire().await;
                }
                let answer = script.answers.lock().unwrap().pop_front();
                answer.unwrap_or_else(|| Ok(vec!["192.0.2.1".parse().unwrap()]))
            }
        }
    }

    fn hosts(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_lookup_is_repeated_after_a_growing_pause() -> TestResult {
        let fail = || Err(io::Error::other("no such name"));
        let script = Script::new([fail(), fail(), fail(), fail(), fail(), fail()]);
        let mut resolver = Resolver::new(script.clone());
        resolver.watch(&hosts(&["app"]));
        assert!(!resolver.settled());
        let first = resolver.next().await;
        assert_eq!(first.outcome, Err("no such name".into()));
        assert!(first.changed && !first.failed_before && resolver.settled());
        for _ in 0..5 {
            assert!(!resolver.next().await.changed);
        }
        let found = resolver.next().await;
        assert!(found.outcome.is_ok() && found.changed && found.failed_before);
        assert!(!resolver.next().await.changed);

        let asked = script.asked.lock().unwrap();
        let pauses: Vec<u64> = asked.windows(2).map(|pair| (pair[1].1 - pair[0].1).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10, 10]);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn another_order_of_addresses_is_no_change() {
        let script = Script::new([
            Ok(ips(&["192.0.2.1", "192.0.2.2", "192.0.2.1"])),
            Ok(ips(&["192.0.2.2", "192.0.2.1"])),
            Ok(ips(&["192.0.2.3"])),
            Ok(Vec::new()),
        ]);
        let mut resolver = Resolver::new(script);
        resolver.watch(&hosts(&["app"]));
        let first = resolver.next().await;
        assert_eq!(first.outcome, Ok(ips(&["192.0.2.1", "192.0.2.2"])));
        assert!(!resolver.next().await.changed);
        assert!(resolver.next().await.changed);
        let none = resolver.next().await;
        assert!(none.changed && none.outcome.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_name_delays_no_other_and_runs_only_once() {
        let script = Script::new([]);
        let mut resolver = Resolver::new(script.clone());
        resolver.watch(&hosts(&["app", "slow"]));
        for _ in 0..5 {
            assert_eq!(resolver.next().await.host, "app");
        }
        let slow = |asked: &[String]| asked.iter().filter(|host| *host == "slow").count();
        assert_eq!(slow(&script.asked()), 1);
        assert!(!resolver.settled());
        script.gate.add_permits(1);
        assert_eq!(resolver.next().await.host, "slow");
        assert!(resolver.settled());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_lookups_run_together_than_allowed() {
        let script = Script::new([]);
        let mut resolver = Resolver::new(script.clone());
        resolver.watch(&hosts(&["slow1", "slow2", "slow3", "slow4"]));
        tokio::select! {
            biased;
            _ = resolver.next() => unreachable!("all hang"),
            () = tokio::time::sleep(REFRESH) => {}
        }
        assert_eq!(script.asked().len(), AT_ONCE);
        script.gate.add_permits(AT_ONCE + 1);
        while !resolver.settled() {
            resolver.next().await;
        }
        assert_eq!(resolver.known("slow4"), Some(&Ok(ips(&["192.0.2.1"]))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_nobody_wants_any_more_is_forgotten() {
        let script = Script::new([]);
        let mut resolver = Resolver::new(script.clone());
        resolver.watch(&hosts(&["app", "slow"]));
        assert_eq!(resolver.next().await.host, "app");
        // Gone and back while its lookup runs: still only one.
        resolver.watch(&hosts(&[]));
        assert!(resolver.settled() && resolver.known("app").is_none());
        resolver.watch(&hosts(&["slow"]));
        script.gate.add_permits(1);
        assert_eq!(resolver.next().await.host, "slow");
        assert_eq!(script.asked(), ["app", "slow"]);
    }

    #[tokio::test]
    async fn the_hosts_own_resolver_knows_localhost() -> TestResult {
        let found = System.lookup(String::from("localhost")).await?;
        assert!(found.iter().all(IpAddr::is_loopback) && !found.is_empty());
        Ok(())
    }
}

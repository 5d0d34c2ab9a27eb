//! Automatic certificates: which name is ordered, renewed or tried again when.
//!
//! ```text
//! watch → Load (what the store has) ─→ for each name: due → Order → held → due …
//!                                                      └ failed → wait, longer each time
//! ```
//!
//! One task for the daemon, on control's thread, and one thing at a time: the store is
//! read, a certificate ordered, or a server asked for advice. It runs inside
//! [`Acme::next`], as checks do in the checker, so that nothing of it goes on when nobody
//! wants to know. Each name has a certificate of its own, so that one that leads elsewhere
//! keeps no other from its certificate.
//!
//! What is due when follows from the wall clock, which may jump: it is read anew once a
//! minute at least. A certificate serves until there is another, also beyond its end.
//!
//! An attempt is put on record in the store before it begins, so that a daemon that dies
//! of it, again and again, asks no server more often than one that lives. What concerns all
//! names, such as a server that can't be reached, is waited out by all of them together and
//! counts against none.

mod agent;
mod daemon;
mod entry;
mod held;
mod network;
mod news;
mod order;
mod schedule;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, sleep};

pub(super) use held::Held;
pub(super) use network::{Network, kept};
pub(super) use news::{News, Report};
pub(super) use order::{Failure, Scope, Terms};
pub(super) use store::{Lock, Trouble};

use crate::tls::Pair;
use entry::{Advised, Entry};

/// How often the clock is looked at when nothing is due.
const LOOK: Duration = Duration::from_secs(60);

/// How soon an operator's reload tries a name again that has just failed.
const RELOAD_PAUSE: Duration = Duration::from_secs(5);

/// How long the next name waits when a server wants to be left alone with one: its limit may
/// be one for all of them, which it does not say.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// What is done with a server and its files.
pub(super) trait Authority {
    /// Reads what the store has for these names, and takes its lock unless that is `locked`
    /// already.
    fn load(&self, terms: Arc<Terms>, names: Vec<Box<str>>, locked: bool) -> Job<Loaded>;

    /// Notes the attempt, orders a certificate, and saves it. A note is left if that fails.
    fn order(&self, terms: Arc<Terms>, order: Order) -> Job<Held>;

    /// Asks the server when a certificate is best renewed.
    fn advise(&self, terms: Arc<Terms>, held: Held) -> Job<Advice>;

    /// Notes what became of an attempt, sooner or later.
    fn note(&self, terms: &Arc<Terms>, name: &str, trouble: Option<Trouble>);
}

/// Something that takes its time.
pub(super) type Job<T> = Pin<Box<dyn Future<Output = Result<T, Failure>>>>;

/// What the store had.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// Names with what there was for each.
    pub(super) found: Vec<(Box<str>, Option<Held>, Option<Trouble>)>,
    /// What could not be read, in words.
    pub(super) unreadable: Vec<String>,
    /// The lock; none while another process has it, or it is had already.
    pub(super) lock: Option<Lock>,
}

/// A certificate to be ordered.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) name: Box<str>,
    /// The one that it is to replace.
    pub(super) replaces: Option<Held>,
    /// What is noted before it begins; its count of failures chooses the challenge.
    pub(super) note: Trouble,
}

/// What a server says of a certificate's renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Advice {
    /// From when to when it is best renewed; none where the server has no advice to give.
    pub(super) window: Option<(SystemTime, SystemTime)>,
    /// When to ask again.
    pub(super) again: Duration,
}

/// All names that certificates are had for.
pub(super) struct Acme<A> {
    authority: A,
    clock: fn() -> SystemTime,
    terms: Option<Arc<Terms>>,
    names: BTreeMap<Box<str>, Entry>,
    lock: Option<Lock>,
    /// When the store is to be read next; none while there is no need.
    load: Option<Instant>,
    server: ServerPause,
    running: Option<Running>,
}

/// How long the server is left alone.
#[derive(Debug, Default)]
struct ServerPause {
    failures: u32,
    until: Option<Instant>,
    error: Option<String>,
}

enum Running {
    Load(Job<Loaded>),
    Order(Box<str>, Option<Trouble>, Job<Held>),
    Advise(Box<str>, Job<Advice>),
}

enum Ended {
    Load(Result<Loaded, Failure>),
    Order(Box<str>, Option<Trouble>, Result<Held, Failure>),
    Advise(Box<str>, Result<Advice, Failure>),
}

impl<A: fmt::Debug> fmt::Debug for Acme<A> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Acme").field("authority", &self.authority).field("names", &self.names).finish_non_exhaustive()
    }
}

impl<A: Authority> Acme<A> {
    /// Nobody's certificates yet. `clock` tells the time.
    pub(super) fn new(authority: A, clock: fn() -> SystemTime) -> Acme<A> {
        Acme {
            authority,
            clock,
            terms: None,
            names: BTreeMap::new(),
            lock: None,
            load: None,
            server: ServerPause::default(),
            running: None,
        }
    }

    /// From now on has certificates for exactly these names, on these terms. What was tried
    /// in vain is tried again soon, unless the server wants to be left alone: whoever reloads
    /// may have mended it.
    pub(super) fn watch(&mut self, terms: Option<Terms>, names: BTreeSet<Box<str>>) {
        let Some(terms) = terms.filter(|_| !names.is_empty()) else {
            self.stop();
            self.terms = None;
            self.names.clear();
            return;
        };
        let now = Instant::now();
        self.names.retain(|name, _| names.contains(name));
        if self.terms.as_deref() != Some(&terms) {
            self.stop();
            let same = |known: &Terms| known.directory == terms.directory && known.state == terms.state;
            if !self.terms.as_deref().is_some_and(same) {
                for entry in self.names.values_mut() {
                    *entry = Entry { held: entry.held.take(), elsewhere: true, ..Entry::default() };
                }
            }
            self.terms = Some(Arc::new(terms));
        } else {
            let under_way = |running: &Running| match running {
                Running::Order(name, ..) | Running::Advise(name, _) => names.contains(name),
                Running::Load(_) => false,
            };
            if !self.running.as_ref().is_some_and(under_way) {
                self.abandon();
            }
        }
        let soon = self.seconds() + RELOAD_PAUSE.as_secs();
        for name in names {
            let entry = self.names.entry(name).or_default();
            if let Some(trouble) = entry.trouble.as_mut().filter(|trouble| !trouble.asked) {
                trouble.retry_at = trouble.retry_at.min(soon);
            }
        }
        self.server.until = self.server.until.map(|until| until.min(now + RELOAD_PAUSE));
        self.load = Some(now);
    }

    /// Takes what was read of the store before, for names that have nothing yet.
    pub(super) fn know(&mut self, kept: Vec<(Box<str>, Held)>) {
        for (name, held) in kept {
            if let Some(entry) = self.names.get_mut(&name) {
                entry.held.get_or_insert(held);
            }
        }
    }

    /// Stops what goes on, and lets another process order.
    pub(super) fn stop(&mut self) {
        self.abandon();
        self.lock = None;
        self.load = None;
        self.server = ServerPause::default();
    }

    /// Drops what runs. An order that did not fail leaves no note.
    fn abandon(&mut self) {
        if let (Some(Running::Order(name, before, _)), Some(terms)) = (self.running.take(), &self.terms) {
            self.authority.note(terms, &name, before);
        }
    }

    /// The certificates that are to serve.
    pub(super) fn certificates(&self) -> impl Iterator<Item = &Arc<Pair>> {
        self.names.values().filter_map(|entry| Some(&entry.held.as_ref()?.pair))
    }

    /// How each name stands.
    pub(super) fn report(&self) -> impl Iterator<Item = Report<'_>> {
        let now = (self.clock)();
        let paused = self.server.until.map_or(now, |until| now + until.saturating_duration_since(Instant::now()));
        self.names.iter().map(move |(name, entry)| {
            let ordering = matches!(&self.running, Some(Running::Order(under_way, ..)) if under_way == name);
            let state = match &entry.held {
                _ if ordering => "ordering",
                Some(held) if held.life.not_after <= now => "expired",
                Some(_) => "valid",
                None => "missing",
            };
            let error = entry.trouble.as_ref().map(|trouble| trouble.error.as_str());
            Report {
                name,
                state,
                not_after: entry.held.as_ref().map(|held| held.life.not_after),
                next: (!ordering).then(|| entry.due(now).max(paused)),
                error: error.or(self.server.error.as_deref()).or(self.standing_by()),
            }
        })
    }

    /// Why nothing is ordered, if another process has the lock.
    fn standing_by(&self) -> Option<&'static str> {
        let waits = self.lock.is_none() && self.load.is_some() && !matches!(self.running, Some(Running::Load(_)));
        waits.then_some("another process orders the certificates of this folder")
    }

    /// Does what is due and waits for news; for ever when there are no names. Nothing is lost
    /// when the future is dropped.
    pub(super) async fn next(&mut self) -> News {
        loop {
            if self.terms.is_none() {
                pending::<()>().await;
            }
            if let Some(news) = self.expiring() {
                return news;
            }
            let wait = self.start_due();
            tokio::select! {
                ended = poll_fn(|cx| match &mut self.running {
                    Some(running) => running.poll(cx),
                    None => Poll::Pending,
                }) => {
                    self.running = None;
                    if let Some(news) = self.ended(ended) {
                        return news;
                    }
                }
                () = sleep(wait) => {}
            }
        }
    }

    /// Starts what is due, if nothing runs; returns how long until there is something to see.
    fn start_due(&mut self) -> Duration {
        let (Some(terms), None) = (&self.terms, &self.running) else { return LOOK };
        let (now, instant) = ((self.clock)(), Instant::now());
        if let Some(at) = self.load {
            if at > instant {
                return (at - instant).min(LOOK);
            }
            self.load = None;
            let names = self.names.keys().cloned().collect();
            self.running = Some(Running::Load(self.authority.load(Arc::clone(terms), names, self.lock.is_some())));
            return LOOK;
        }
        if self.lock.is_none() {
            return LOOK;
        }
        let paused = self.server.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(instant));
        if !paused.is_zero() {
            return paused.min(LOOK);
        }
        let until = |at: SystemTime| at.duration_since(now).unwrap_or_default();
        let Some((name, entry)) = self.names.iter().min_by_key(|(_, entry)| entry.due(now)) else { return LOOK };
        let wait = until(entry.due(now));
        if wait.is_zero() {
            let (note, _) = self.trouble(entry.trouble.clone(), "the attempt was cut short".to_owned(), None);
            let replaces = entry.held.clone().filter(|_| !entry.elsewhere);
            let order = Order { name: name.clone(), replaces, note };
            let job = self.authority.order(Arc::clone(terms), order);
            self.running = Some(Running::Order(name.clone(), entry.trouble.clone(), job));
            return LOOK;
        }
        let advice = self.names.iter().find_map(|(name, entry)| {
            let held = entry.held.as_ref().filter(|_| !entry.elsewhere)?;
            let asked = entry.advised.as_ref().is_some_and(|advised| advised.again > instant);
            (!asked).then_some((name, held))
        });
        if let Some((name, held)) = advice {
            let job = self.authority.advise(Arc::clone(terms), held.clone());
            self.running = Some(Running::Advise(name.clone(), job));
            return LOOK;
        }
        wait.min(LOOK)
    }

    fn ended(&mut self, ended: Ended) -> Option<News> {
        match ended {
            Ended::Load(Ok(loaded)) => self.loaded(loaded),
            Ended::Load(Err(failure)) => {
                let news = self.server_failed(failure);
                self.load = self.server.until;
                Some(news)
            }
            Ended::Order(name, before, Ok(held)) => self.obtained(name, before, held),
            Ended::Order(name, before, Err(failure)) => Some(self.order_failed(name, before, failure)),
            Ended::Advise(name, advice) => {
                let entry = self.names.get_mut(&name)?;
                let (known, held) = (entry.advised.take(), entry.held.as_ref()?);
                // One that can't be had changes nothing that is known.
                let kept = known.as_ref().and_then(|known| known.window);
                let advice = advice.unwrap_or(Advice { window: kept, again: schedule::ADVICE_PAUSE });
                let same = known.filter(|known| known.window == advice.window);
                let renewal = match same {
                    Some(known) => known.renewal,
                    None => advice.window.map(|window| held.life.advised(window, fastrand::f64())),
                };
                let again = Instant::now() + schedule::advice_pause(advice.again);
                entry.advised = Some(Advised { window: advice.window, renewal, again });
                None
            }
        }
    }

    fn loaded(&mut self, loaded: Loaded) -> Option<News> {
        self.server = ServerPause::default();
        if self.lock.is_none() {
            self.lock = loaded.lock;
        }
        // Without it, what another process obtains is looked for.
        self.load = self.lock.is_none().then(|| Instant::now() + LOOK);
        let now = (self.clock)();
        let mut changed = false;
        for (name, held, trouble) in loaded.found {
            let Some(entry) = self.names.get_mut(&name) else { continue };
            if let Some(held) = held {
                if entry.held.as_ref().is_some_and(|known| known.certificate == held.certificate) {
                    entry.elsewhere = false;
                } else {
                    changed = true;
                    *entry = Entry { held: Some(held), trouble: entry.trouble.take(), ..Entry::default() };
                }
            }
            // What is known here is newer, if there is anything.
            entry.trouble = entry.trouble.take().or(trouble).filter(|trouble| trouble.is_sensible(now));
        }
        (changed || !loaded.unreadable.is_empty()).then_some(News::Loaded(loaded.unreadable))
    }

    fn obtained(&mut self, name: Box<str>, before: Option<Trouble>, held: Held) -> Option<News> {
        self.server = ServerPause::default();
        let now = (self.clock)();
        let mut trouble = None;
        // The next one would be due as well, and so on.
        if held.life.renewal(held.spread()) <= now {
            let error = "the new certificate is to be renewed already: is the clock of this host right?".to_owned();
            let (noted, _) = self.trouble(before, error, None);
            if let Some(terms) = &self.terms {
                self.authority.note(terms, &name, Some(noted.clone()));
            }
            trouble = Some(noted);
        }
        let entry = self.names.get_mut(&name)?;
        let renewed = entry.held.is_some();
        *entry = Entry { held: Some(held.clone()), trouble, ..Entry::default() };
        let renewal = entry.due(now);
        Some(News::Obtained { name, held, renewed, renewal })
    }

    /// What is noted of an attempt that failed after those `before`, and how long the name is
    /// left alone.
    fn trouble(&self, before: Option<Trouble>, error: String, retry_after: Option<Duration>) -> (Trouble, Duration) {
        let failures = before.map_or(0, |before| before.failures).saturating_add(1);
        let wait = schedule::name_pause(failures, fastrand::f64(), retry_after);
        let retry_at = self.seconds().saturating_add(wait.as_secs());
        (Trouble { failures, retry_at, asked: retry_after.is_some(), error }, wait)
    }

    fn order_failed(&mut self, name: Box<str>, before: Option<Trouble>, failure: Failure) -> News {
        if failure.scope == Scope::Server {
            if let Some(terms) = &self.terms {
                self.authority.note(terms, &name, before);
            }
            return self.server_failed(failure);
        }
        let until = failure.retry_after.map(|_| Instant::now() + REFUSED_PAUSE);
        self.server = ServerPause { until, ..ServerPause::default() };
        let (trouble, wait) = self.trouble(before, failure.error.clone(), failure.retry_after);
        if let Some(terms) = &self.terms {
            self.authority.note(terms, &name, Some(trouble.clone()));
        }
        if let Some(entry) = self.names.get_mut(&name) {
            entry.trouble = Some(trouble);
        }
        News::Failed { name: Some(name), error: failure.error, wait }
    }

    fn server_failed(&mut self, failure: Failure) -> News {
        let failures = self.server.failures.saturating_add(1);
        let wait = schedule::server_pause(failures, fastrand::f64(), failure.retry_after);
        let until = Some(Instant::now() + wait);
        self.server = ServerPause { failures, until, error: Some(failure.error.clone()) };
        News::Failed { name: None, error: failure.error, wait }
    }

    /// A certificate that ends soon and was not renewed, unless that was said lately.
    fn expiring(&mut self) -> Option<News> {
        let now = (self.clock)();
        let server = self.server.error.as_deref();
        self.names.iter_mut().find_map(|(name, entry)| {
            let life = entry.held.as_ref()?.life;
            let pause = life.warning_pause();
            let lately = |warned: SystemTime| now.duration_since(warned).is_ok_and(|since| since < pause);
            if now < life.warning() || entry.warned.is_some_and(lately) {
                return None;
            }
            entry.warned = Some(now);
            let error = entry.trouble.as_ref().map(|trouble| trouble.error.as_str()).or(server);
            let error = error.unwrap_or("its renewal has not been tried yet").to_owned();
            Some(News::Expiring { name: name.clone(), not_after: life.not_after, error })
        })
    }

    /// The time in seconds since 1970.
    fn seconds(&self) -> u64 {
        (self.clock)().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }
}

impl Running {
    fn poll(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Ended> {
        match self {
            Running::Load(job) => job.as_mut().poll(cx).map(Ended::Load),
            Running::Order(name, before, job) => {
                job.as_mut().poll(cx).map(|result| Ended::Order(name.clone(), before.clone(), result))
            }
            Running::Advise(name, job) => job.as_mut().poll(cx).map(|result| Ended::Advise(name.clone(), result)),
        }
    }
}

#[cfg(test)]
mod tests;

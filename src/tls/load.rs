//! From a configuration, and the files that it names, to its doors.
//!
//! When a configuration is loaded a pair that is wrong refuses it, like any wrong setting.
//! When files change while it serves, nobody is there to be refused anything: what was there
//! before stays, pair by pair, and the fault is told of.
//!
//! Only time is different, since nobody can restart into a valid certificate that has not been
//! issued: one that is not valid is used where there is no better, and never takes the place
//! of one that is valid.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::acme;
use super::clients::Clients;
use super::doors::Doors;
use super::facts;
use super::names::{Offer, covers};
use super::pair::{Fault, Pair};
use super::policies::{Lists, Policies, Policy};
use super::sources::{self, Files};
use super::tickets::TicketKeys;
use crate::config::{
    Certificates, ClientTrust, ClientTrusts, Config, FileSource, HostPattern, Origin, Problem, Problems,
};

/// How certificates are loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load<'a> {
    /// What seals tickets.
    pub(super) keys: &'a Arc<TicketKeys>,
    /// The doors that there were before.
    pub(super) past: Option<&'a Doors>,
    /// Seconds since 1970.
    pub(super) now: i64,
    pub(super) manner: Manner,
}

/// What certificates are loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// To serve with them, or not at all.
    Serve,
    /// To see what is wrong, by somebody who may not see the service's credentials.
    Examine,
    /// To serve on with what can be used of them.
    Renew,
}

/// What a look at changed files has led to.
#[derive(Debug)]
pub struct Renewal {
    /// The doors from now on.
    pub doors: Doors,
    /// Whether clients are shown anything else than before.
    pub changed: bool,
    /// With what backends are spoken to from now on, where that has changed.
    pub clients: Option<Clients>,
    /// The certificates that are new.
    pub renewed: Vec<Arc<Pair>>,
    /// What is wrong with the files, so that what was there before stays.
    pub faults: Vec<String>,
}

impl Doors {
    /// Reads all that `config` names. What the files of the `past` held is kept where it is
    /// better than what they hold now. Tickets that were sealed by these `keys` before are
    /// good.
    ///
    /// # Errors
    /// Everything that is wrong with any of them.
    pub fn load(config: &Config, keys: &Arc<TicketKeys>, past: Option<&Doors>) -> Result<Doors, Problems> {
        Doors::load_with(config, Load { keys, past, now: now(), manner: Manner::Serve })
    }

    /// The same, to see what is wrong, by somebody who may not see the service's credentials.
    ///
    /// # Errors
    /// Everything that is wrong with any of them.
    pub fn examine(config: &Config) -> Result<Doors, Problems> {
        let keys = &Arc::default();
        Doors::load_with(config, Load { keys, past: None, now: now(), manner: Manner::Examine })
    }

    pub(super) fn load_with(config: &Config, load: Load<'_>) -> Result<Doors, Problems> {
        let mut loader = Loader::new(config, load);
        Certificates::of(config).for_each(|certificates| loader.read(&certificates));
        loader.carry_over();
        let policies = loader.policies();
        let Loader { offers, warnings, mut problems, .. } = loader;
        acme::look(config, load.manner, &mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        match Doors::new(config, offers, policies, load.keys, load.now) {
            Ok(mut doors) => {
                doors.warnings = warnings;
                Ok(doors)
            }
            Err(error) => {
                problems.push(Problem::new(Origin::Default, format!("TLS can't be set up: {error}")));
                Err(problems)
            }
        }
    }

    /// Reads the files anew from which these were loaded, and what there is besides by now.
    ///
    /// # Errors
    /// rustls lacks what is asked of it.
    pub(super) fn renew(&self, config: &Config, now: i64) -> Result<Renewal, rustls::Error> {
        let mut loader = Loader::new(config, Load { keys: &self.keys, past: Some(self), now, manner: Manner::Renew });
        Certificates::of(config).for_each(|certificates| loader.read(&certificates));
        loader.carry_over();
        let policies = loader.policies();
        let Loader { offers, faults, .. } = loader;
        let before = || self.offers.iter().map(|offer| &offer.pair);
        let mut fresh: Vec<Arc<Pair>> = offers.iter().map(|offer| Arc::clone(&offer.pair)).collect();
        fresh.retain(|pair| !before().any(|before| Arc::ptr_eq(before, pair)));
        let known = |policy: &Arc<Policy>| self.policies.all().any(|known| Arc::ptr_eq(known, policy));
        let changed = !fresh.is_empty()
            || offers.len() != self.offers.len()
            || !policies.all().all(known)
            || self.is_outdated(now);
        // One with another OCSP response is the same certificate.
        let mut renewed = fresh;
        renewed.retain(|pair| !before().any(|before| before.certified.cert == pair.certified.cert));
        let doors = Doors::new(config, offers, policies, &self.keys, now)?;
        Ok(Renewal { doors, changed, clients: None, renewed, faults })
    }
}

/// What has been read so far.
struct Loader<'a> {
    config: &'a Config,
    load: Load<'a>,
    offers: Vec<Offer>,
    warnings: Vec<String>,
    problems: Problems,
    faults: Vec<String>,
}

impl<'a> Loader<'a> {
    fn new(config: &'a Config, load: Load<'a>) -> Loader<'a> {
        let (offers, warnings, problems, faults) = Default::default();
        Loader { config, load, offers, warnings, problems, faults }
    }

    /// Reads what one file of the configuration names.
    fn read(&mut self, of: &Certificates<'_>) {
        let first = self.offers.len();
        let found = sources::of(of, self.config.credentials.as_deref());
        for source in found.unseen {
            if self.load.manner == Manner::Examine {
                self.warn(of, source, format!("credential `{source}` was not examined: only the service sees it"));
            } else {
                let why = "is no path, and the service manager has passed no such credential (`LoadCredential=`)";
                self.refuse(of, source, format!("`{source}` {why}"));
            }
        }
        for (source, why) in found.faults {
            self.refuse(of, source, why);
        }
        for files in found.files {
            match self.pair(&files, of) {
                Ok(pair) => self.offer(of, files.source, pair),
                Err(Fault { file, why }) => {
                    let source = if file == files.certificate { files.source } else { files.key_source };
                    self.refuse(of, source, format!("`{}` {why}", file.display()));
                    if let Some(before) = self.before(&files.certificate, &files.key).cloned() {
                        self.offer(of, files.source, before);
                    }
                }
            }
        }
        if self.load.manner == Manner::Renew {
            self.keep_what_is_gone(of, first);
        }
        self.compare_hosts(of, first);
    }

    fn offer(&mut self, of: &Certificates<'_>, source: &FileSource, pair: Arc<Pair>) {
        let route = of.route.map(|route| route.name.clone());
        self.offers.push(Offer { pair, hosts: hosts(of), route, source: Some(source.clone()) });
    }

    /// What clients are asked for, by server name.
    fn policies(&mut self) -> Policies {
        let trusts = ClientTrusts::of(self.config);
        let mut made: Vec<Arc<Policy>> = Vec::new();
        let mut policy = |trust: &Option<ClientTrust<'_>>| {
            let trust = trust.as_ref()?;
            if let Some(known) = made.iter().find(|policy| policy.is_of(trust)) {
                return Some(Arc::clone(known));
            }
            let policy = self.policy(trust)?;
            made.push(Arc::clone(&policy));
            Some(policy)
        };
        Policies {
            exact: trusts.exact.iter().map(|(name, trust)| ((*name).into(), policy(trust))).collect(),
            below: trusts.below.iter().map(|(parent, trust)| ((*parent).into(), policy(trust))).collect(),
            anywhere: policy(&trusts.anywhere),
        }
    }

    /// The policy of one trust: the one before where its files hold the same, or, while it
    /// serves, where they can't be used.
    fn policy(&mut self, trust: &ClientTrust<'_>) -> Option<Arc<Policy>> {
        let past: Vec<&Arc<Policy>> = self.load.past.map_or_else(Vec::new, |past| past.policies.all().collect());
        let mut warnings = Vec::new();
        let credentials = self.config.credentials.as_deref();
        let read = Lists::read(trust, credentials, self.load.now, |wrong| warnings.push(wrong));
        for (source, why) in warnings {
            let problem = trust.problem(source, why);
            self.warnings.push(format!("{}: {}", problem.origin, problem.message));
        }
        let made =
            read.and_then(|lists| match past.iter().find(|policy| policy.is_of(trust) && policy.wants(&lists)) {
                Some(same) => Ok(Arc::clone(same)),
                None => Policy::new(trust, lists, self.load.keys).map(Arc::new),
            });
        match made {
            Ok(policy) => Some(policy),
            Err((source, why)) => {
                self.problems.push(trust.problem(source, why.clone()));
                self.faults.push(why);
                past.into_iter().find(|policy| policy.is_of(trust)).cloned()
            }
        }
    }

    /// What was obtained stays until whoever obtains it says otherwise.
    fn carry_over(&mut self) {
        let past = self.load.past.map_or(&[][..], |past| &past.offers);
        self.offers.extend(past.iter().filter(|offer| offer.source.is_none()).cloned());
    }

    /// What is not found any more stays until a reload says that it is meant.
    fn keep_what_is_gone(&mut self, of: &Certificates<'_>, first: usize) {
        let past = self.load.past.map_or(&[][..], |past| &past.offers);
        let route = of.route.map(|route| &route.name);
        for offer in past.iter().filter(|offer| offer.source.is_some() && offer.route.as_ref() == route) {
            let mine = self.offers.get(first..).unwrap_or_default();
            if mine.iter().any(|other| other.pair.is_of(&offer.pair.certificate, &offer.pair.key)) {
                continue;
            }
            let path = offer.pair.certificate.display();
            self.faults.push(format!("`{path}` or its key is gone"));
            self.offers.push(offer.clone());
        }
    }

    /// Says so where what a route brings is for other hosts than the route.
    fn compare_hosts(&mut self, of: &Certificates<'_>, first: usize) {
        let mine = self.offers.get(first..).unwrap_or_default();
        let names: Vec<&String> = mine.iter().flat_map(|offer| &offer.pair.facts.names).collect();
        let mut lacking = hosts(of);
        lacking.retain(|host| !names.iter().any(|name| covers(name, host)));
        if let (Some(source), false, false) = (of.certificates.first(), mine.is_empty(), lacking.is_empty()) {
            self.warn(of, source, format!("no certificate of this route is for {}", lacking.join(", ")));
        }
    }

    /// The pair in two files, or the one that was there before where that is better.
    fn pair(&mut self, files: &Files<'_>, of: &Certificates<'_>) -> Result<Arc<Pair>, Fault> {
        let now = self.load.now;
        let mut told = Vec::new();
        let warn = |file: &Path, why: String| told.push(format!("`{}` {why}", file.display()));
        let pair = Pair::read(&files.certificate, &files.key, now, warn)?;
        told.into_iter().for_each(|why| self.warn(of, files.source, why));
        let before = self.before(&files.certificate, &files.key).cloned();
        if let Some(same) = before.as_ref().filter(|before| before.same(&pair)) {
            return Ok(Arc::clone(same));
        }
        let Some(why) = pair.facts.invalid(now) else { return Ok(Arc::new(pair)) };
        let why = format!("`{}` ({}) {why}", files.certificate.display(), pair.facts.covers());
        if let Some(before) = before.filter(|before| before.facts.is_valid(now)) {
            let until = facts::day(before.facts.not_after);
            let why = format!("{why}; the one before it serves on, until {until}");
            self.faults.push(why.clone());
            self.warn(of, files.source, why);
            return Ok(before);
        }
        if self.load.manner == Manner::Examine {
            self.warn(of, files.source, why);
        }
        Ok(Arc::new(pair))
    }

    /// The pair that these files held before.
    fn before(&self, certificate: &Path, key: &Path) -> Option<&'a Arc<Pair>> {
        let past = self.load.past.map_or(&[][..], |past| &past.offers);
        past.iter().map(|offer| &offer.pair).find(|pair| pair.is_of(certificate, key))
    }

    /// Takes note of what keeps a file from being used.
    fn refuse(&mut self, of: &Certificates<'_>, source: &FileSource, why: String) {
        self.problems.push(of.problem(source, why.clone()));
        self.faults.push(why);
    }

    fn warn(&mut self, of: &Certificates<'_>, source: &FileSource, why: String) {
        let problem = of.problem(source, why);
        self.warnings.push(format!("{}: {}", problem.origin, problem.message));
    }
}

/// The hosts of the route that brings certificates.
fn hosts(of: &Certificates<'_>) -> Vec<String> {
    of.route.iter().flat_map(|route| &route.matcher.match_host).map(HostPattern::to_string).collect()
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}

//! Server name → certificates.
//!
//! An exact name beats a `*.` one, whose star is one label (RFC 9525 §6.3). Of several
//! certificates for a name the first one counts whose key the client takes; in their order
//! what is valid comes before what has expired, what a route brings before what `config.env`
//! does, what really has the name before what is only used for it, and RSA, which costs most,
//! last.

use std::borrow::Cow;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::pair::Pair;
use crate::config::FileSource;

/// The place of a certificate among those for one name: the least comes first.
type Rank = (bool, bool, bool, bool, usize);

/// Certificates for one name, the one to prefer first.
type Choice = Vec<(Rank, Arc<Pair>)>;

/// A certificate and what it is used for.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) pair: Arc<Pair>,
    /// The names that the route which brings it matches; `*.` stands for all below.
    pub(super) hosts: Vec<String>,
    /// The route that brings it; none if `config.env` does.
    pub(super) route: Option<String>,
    /// What names it there; none if it was obtained otherwise.
    pub(super) source: Option<FileSource>,
}

impl Offer {
    /// One that no file of the configuration names.
    pub(super) fn obtained(pair: Arc<Pair>) -> Offer {
        Offer { pair, hosts: Vec::new(), route: None, source: None }
    }
}

/// Which certificates a server name has. The maps' keys come from certificates and
/// configuration, so their hash need not withstand clients.
#[derive(Debug, Default)]
pub(super) struct Names {
    exact: FxHashMap<Box<str>, Choice>,
    /// By what follows `*.`.
    below: FxHashMap<Box<str>, Choice>,
    default: Choice,
}

impl Names {
    /// The names of these certificates at `now`, in seconds since 1970. The first one, and
    /// those beside it for the same name, are for everybody else.
    pub(super) fn new(offers: &[Offer], now: i64) -> Names {
        let mut names = Names::default();
        for (index, Offer { pair, hosts, route, .. }) in offers.iter().enumerate() {
            let has = |name: &str| pair.facts.names.iter().any(|pattern| covers(pattern, name));
            for name in pair.facts.names.iter().chain(hosts.iter().filter(|host| !pair.facts.names.contains(host))) {
                let map = if name.starts_with("*.") { &mut names.below } else { &mut names.exact };
                let rank = (!pair.facts.is_valid(now), route.is_none(), !has(name), pair.is_rsa(), index);
                let key = name.strip_prefix("*.").unwrap_or(name);
                map.entry(key.into()).or_default().push((rank, Arc::clone(pair)));
            }
        }
        for choice in names.exact.values_mut().chain(names.below.values_mut()) {
            choice.sort_by_key(|(rank, _)| *rank);
        }
        let first = offers.iter().find(|offer| offer.pair.facts.is_valid(now)).or(offers.first());
        if let Some(first) = first {
            let name = first.pair.facts.names.first();
            let same = |offer: &&Offer| {
                offer.route == first.route && name.is_some_and(|name| offer.pair.facts.names.contains(name))
            };
            let beside = offers.iter().filter(|offer| Arc::ptr_eq(&offer.pair, &first.pair) || same(offer));
            let rank = |pair: &Pair, index| (!pair.facts.is_valid(now), false, false, pair.is_rsa(), index);
            let beside = beside.enumerate().map(|(index, offer)| (rank(&offer.pair, index), Arc::clone(&offer.pair)));
            names.default = beside.collect();
            names.default.sort_by_key(|(rank, _)| *rank);
        }
        names
    }

    /// Those for a server name, if it has any.
    fn find(&self, name: &str) -> Option<&Choice> {
        let name = lower(name);
        self.exact.get(&*name).or_else(|| name.split_once('.').and_then(|(_, parent)| self.below.get(parent)))
    }

    /// Whether a server name has certificates.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let choice = hello.server_name().and_then(|name| self.find(name)).unwrap_or(&self.default);
        let fits = choice.iter().find(|(_, pair)| pair.signs_for(hello.signature_schemes()));
        // Where none fits, the handshake fails for that reason and not for want of any.
        fits.or(choice.first()).map(|(_, pair)| Arc::clone(&pair.certified))
    }
}

/// Whether `pattern` stands for `name`, which may be a pattern itself.
pub(super) fn covers(pattern: &str, name: &str) -> bool {
    pattern == name
        || match (pattern.strip_prefix("*."), name.split_once('.')) {
            (Some(parent), Some((label, rest))) => parent == rest && label != "*",
            _ => false,
        }
}

/// A name in lower case.
pub(super) fn lower(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) { name.to_ascii_lowercase().into() } else { name.into() }
}

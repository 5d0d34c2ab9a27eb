//! Discovery: from what a backend's name resolved to, to the places where it is.
//!
//! Each address is a place of its own, so that balancing, health and limits see every
//! server behind a name. Addresses of two families are another matter: a name that has
//! both nearly always names the same servers twice. They are paired, in the order of the
//! addresses, into places with two ways in; else `localhost` would be two backends of
//! which one is down for ever, and a dual-stack server would get twice its share and
//! twice its limit. Which way is taken is decided when it is dialled.
//!
//! What a name server says is bounded: [`PLACES_MOST`] places for a backend, the same
//! ones however the answer is rotated.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::config::{Site, Target, WEIGHT_LIMIT};

/// Places of one backend that are used; more are ignored.
pub const PLACES_MOST: usize = 64;

/// What is looked up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Query {
    /// The addresses of a host.
    Host(String),
    /// The hosts that offer a service, with their addresses.
    Service(String),
}

impl Query {
    /// What has to be looked up for a backend; `None` where it is known.
    #[must_use]
    pub fn of(target: &Target) -> Option<Self> {
        match target {
            Target::Name { host, .. } | Target::Tls(Site::Name { host, .. }) => Some(Self::Host(host.clone())),
            Target::Service(name) => Some(Self::Service(name.clone())),
            Target::Ip(_) | Target::Tls(Site::Ip(_)) | Target::Unix(_) | Target::Echo => None,
        }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Host(name) | Self::Service(name) => name,
        }
    }
}

/// What a name was found to be. Two that are equal lead to the same places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A host's addresses.
    Addresses(BTreeSet<IpAddr>),
    /// The hosts of a service.
    Services(BTreeSet<Service>),
}

impl Found {
    /// Whether it leads nowhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Addresses(addresses) => addresses.is_empty(),
            Self::Services(services) => services.iter().all(|service| service.addresses.is_empty()),
        }
    }

    /// Every address, each once.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        match self {
            Self::Addresses(addresses) => addresses.clone(),
            Self::Services(services) => services.iter().flat_map(|service| service.addresses.clone()).collect(),
        }
    }
}

/// One SRV record with the addresses of its host.
///
/// Source: RFC 2782.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    /// Lower is used first.
    pub priority: u16,
    /// Share among those of the same priority.
    pub weight: u16,
    /// The host that offers the service.
    pub host: String,
    /// Its port there.
    pub port: u16,
    /// The host's addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// What is known of names at a moment.
pub type Directory = BTreeMap<Query, Found>;

/// One place where a backend is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// How to get there.
    pub ways: Ways,
    /// The authority that it goes by.
    pub authority: String,
    /// Its share, 1 to [`WEIGHT_LIMIT`], where the answer tells.
    pub weight: Option<u16>,
    /// Only for when the others are down.
    pub backup: bool,
}

/// The way to a place, or one for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ways {
    /// The one to try first: IPv6 where there are both (RFC 8305 §4).
    pub first: SocketAddr,
    /// The other family's.
    pub second: Option<SocketAddr>,
}

/// The places of a backend that goes by name; none while it is not resolved.
#[must_use]
pub fn places(target: &Target, directory: &Directory) -> Vec<Place> {
    let found = Query::of(target).and_then(|query| directory.get(&query));
    let mut places = match (target, found) {
        (Target::Name { host, port } | Target::Tls(Site::Name { host, port }), Some(Found::Addresses(addresses))) => {
            let place = |ways| Place { ways, authority: format!("{host}:{port}"), weight: None, backup: false };
            pairs(addresses, *port).map(place).collect()
        }
        (Target::Service(_), Some(Found::Services(services))) => of_services(services),
        _ => Vec::new(),
    };
    places.truncate(PLACES_MOST);
    places
}

fn of_services(services: &BTreeSet<Service>) -> Vec<Place> {
    let leads = |service: &&Service| !service.addresses.is_empty();
    let Some(first) = services.iter().filter(leads).map(|service| service.priority).min() else { return Vec::new() };
    // Weights are compared within a priority only.
    let mut heaviest: BTreeMap<u16, u16> = BTreeMap::new();
    for service in services {
        let most = heaviest.entry(service.priority).or_default();
        *most = service.weight.max(*most);
    }
    let mut taken = BTreeSet::new();
    // By priority, then the heavy ones: what is cut off at the end matters least.
    let mut sorted: Vec<&Service> = services.iter().filter(leads).collect();
    sorted.sort_by_key(|service| (service.priority, Reverse(service.weight)));
    let each = |service: &Service| {
        let weight = Some(share(service.weight, heaviest.get(&service.priority).copied().unwrap_or(0)));
        let (backup, authority) = (service.priority > first, format!("{}:{}", service.host, service.port));
        pairs(&service.addresses, service.port)
            .map(|ways| Place { ways, authority: authority.clone(), weight, backup })
            .collect::<Vec<_>>()
    };
    sorted.into_iter().flat_map(each).filter(|place| taken.insert(place.ways.first)).collect()
}

/// A weight of SRV records, up to 65535, as one of ours. Zero is "a very small chance".
fn share(weight: u16, heaviest: u16) -> u16 {
    if heaviest <= WEIGHT_LIMIT {
        return weight.max(1);
    }
    let scaled = u32::from(weight) * u32::from(WEIGHT_LIMIT) / u32::from(heaviest);
    u16::try_from(scaled).unwrap_or(WEIGHT_LIMIT).max(1)
}

/// Addresses in pairs of both families, as long as there are both.
fn pairs(addresses: &BTreeSet<IpAddr>, port: u16) -> impl Iterator<Item = Ways> {
    let family = |v6: bool| {
        let addresses: Vec<SocketAddr> =
            addresses.iter().filter(|ip| ip.is_ipv6() == v6).map(|ip| SocketAddr::new(*ip, port)).collect();
        addresses.into_iter()
    };
    let (mut six, mut four) = (family(true), family(false));
    std::iter::from_fn(move || {
        let (six, four) = (six.next(), four.next());
        let first = six.or(four)?;
        Some(Ways { first, second: four.filter(|_| six.is_some()) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Target {
        Target::Name { host: "app.test".into(), port: 80 }
    }

    fn ips(list: &[&str]) -> BTreeSet<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn ways(addresses: &[&str]) -> Vec<(String, Option<String>)> {
        let directory = Directory::from([(Query::Host("app.test".into()), Found::Addresses(ips(addresses)))]);
        let places = places(&name(), &directory);
        places.iter().map(|place| (place.ways.first.to_string(), place.ways.second.map(|to| to.to_string()))).collect()
    }

    fn service(priority: u16, weight: u16, host: &str, addresses: &[&str]) -> Service {
        Service { priority, weight, host: host.into(), port: 8080, addresses: ips(addresses) }
    }

    fn served(services: &[Service]) -> Vec<Place> {
        let found = Found::Services(services.iter().cloned().collect());
        places(
            &Target::Service("_a._tcp.test".into()),
            &Directory::from([(Query::Service("_a._tcp.test".into()), found)]),
        )
    }

    #[test]
    fn each_address_of_one_family_is_a_place() {
        assert_eq!(ways(&["10.0.0.2", "10.0.0.1"]), [("10.0.0.1:80".into(), None), ("10.0.0.2:80".into(), None)]);
        assert_eq!(ways(&["::2"]), [("[::2]:80".into(), None)]);
        assert!(places(&name(), &Directory::new()).is_empty());
    }

    #[test]
    fn addresses_of_two_families_are_ways_to_the_same_places() {
        assert_eq!(ways(&["127.0.0.1", "::1"]), [("[::1]:80".into(), Some("127.0.0.1:80".into()))]);
        assert_eq!(
            ways(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"]),
            [
                ("[fd00::1]:80".into(), Some("10.0.0.1:80".into())),
                ("10.0.0.2:80".into(), None),
                ("10.0.0.3:80".into(), None)
            ]
        );
    }

    #[test]
    fn a_huge_answer_is_cut_to_the_same_places_each_time() {
        let many: Vec<String> = (0..200).map(|n| format!("10.0.0.{n}")).collect();
        let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
        let all = ways(&many);
        assert_eq!(all.len(), PLACES_MOST);
        many.reverse();
        assert_eq!(ways(&many), all);
    }

    #[test]
    fn a_service_is_where_its_records_say_with_their_weights_and_backups() {
        let places = served(&[
            service(10, 60, "a.test", &["10.0.0.1"]),
            service(10, 0, "b.test", &["10.0.0.2", "fd00::2"]),
            service(20, 5, "c.test", &["10.0.0.3"]),
            service(5, 1, "gone.test", &[]),
        ]);
        let told: Vec<_> =
            places.iter().map(|place| (place.authority.as_str(), place.weight.unwrap(), place.backup)).collect();
        assert_eq!(told, [("a.test:8080", 60, false), ("b.test:8080", 1, false), ("c.test:8080", 5, true)]);
        assert_eq!(places[1].ways.second, Some("10.0.0.2:8080".parse().unwrap()));
    }

    #[test]
    fn large_weights_keep_their_proportion() {
        let places =
            served(&[service(1, 60_000, "a.test", &["10.0.0.1"]), service(1, 30_000, "b.test", &["10.0.0.2"])]);
        assert_eq!(places.iter().map(|place| place.weight).collect::<Vec<_>>(), [Some(256), Some(128)]);
    }

    #[test]
    fn weights_of_one_priority_say_nothing_of_those_of_another() {
        let places = served(&[
            service(1, 10, "a.test", &["10.0.0.1"]),
            service(1, 90, "b.test", &["10.0.0.2"]),
            service(2, 60_000, "c.test", &["10.0.0.3"]),
        ]);
        assert_eq!(places.iter().map(|place| place.weight).collect::<Vec<_>>(), [Some(90), Some(10), Some(256)]);
    }
}

//! Lookup: one name, asked of everybody who may know it.
//!
//! ```text
//! /etc/hosts → DNS, with its lifetimes → the host's own resolver, unless RESOLVER is set
//! ```
//!
//! The host's own resolver, `getaddrinfo(3)`, knows what only `nsswitch.conf` leads to
//! (machines of systemd, mDNS, a directory), but tells no lifetimes and no services, and
//! blocks. So DNS is asked first, and it for what DNS does not know.
//!
//! IPv4 and IPv6 addresses are asked for at once. Where one of the two questions fails and
//! the other is answered, the addresses known before stand in for those it would have
//! brought: half an outage must not look like half of the servers were gone.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::resolver::{AT_ONCE, Answered, Lookup};
use crate::balance::discovery::{Found, PLACES_MOST, Query, Service};
use crate::transport::dns::client::{Client, Fault};
use crate::transport::dns::host::{self, Settings};
use crate::transport::dns::message::{Kind, Record};

/// How long the one family is waited for once the other has brought addresses.
const OTHER_FAMILY: Duration = Duration::from_secs(1);

/// The longest that one lookup may take.
const LONGEST: Duration = Duration::from_secs(30);

/// Calls of the host's own resolver that are under way together, those included that nobody
/// waits for any more. All lookups find a place, unless calls outlast them.
pub(super) const HOST_AT_ONCE: usize = AT_ONCE;
static HOST_PLACES: Semaphore = Semaphore::const_new(HOST_AT_ONCE);

/// Looks names up as this host does, or at the servers that `RESOLVER` names.
#[derive(Debug, Clone, Default)]
pub(super) struct Lookups {
    /// Empty: as the host does.
    servers: Vec<SocketAddr>,
    /// The server that answered last.
    good: Arc<AtomicUsize>,
}

impl Lookups {
    pub(super) fn at(servers: &[SocketAddr]) -> Lookups {
        Lookups { servers: servers.to_vec(), good: Arc::default() }
    }
}

impl Lookup for Lookups {
    fn lookup(
        &self,
        query: Query,
        known: Option<Found>,
    ) -> impl Future<Output = Result<Answered, String>> + Send + 'static {
        let lookups = self.clone();
        async move {
            let looking = lookups.look(&query, known);
            timeout(LONGEST, looking).await.unwrap_or_else(|_| Err(String::from("the lookup takes too long")))
        }
    }
}

impl Lookups {
    async fn look(&self, query: &Query, known: Option<Found>) -> Result<Answered, String> {
        let from_host = self.servers.is_empty();
        let asking = Asking::prepare(self).await;
        match query {
            Query::Service(name) => asking.services(name, known.as_ref()).await,
            Query::Host(name) => {
                let known = known.map(|found| found.addresses()).unwrap_or_default();
                let failed = match asking.host(name, &known).await {
                    Ok(answered) => return Ok(answered),
                    Err(failed) => failed,
                };
                if from_host { of_the_host(name).await?.ok_or(failed) } else { Err(failed) }
            }
        }
    }
}

/// What one lookup is made with; the files are read anew for each, as they may change.
struct Asking {
    hosts: String,
    settings: Settings,
    client: Client,
}

/// Addresses and how long they hold; `None` where nobody says.
type Addresses = (BTreeSet<IpAddr>, Option<u32>);

impl Asking {
    async fn prepare(lookups: &Lookups) -> Asking {
        let servers = lookups.servers.clone();
        let read = move || {
            // A file that is missing or no text says nothing.
            let text = |path| std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let hosts = text(host::HOSTS).unwrap_or_default();
            let settings = if servers.is_empty() {
                Settings::read(&text(host::RESOLV_CONF).unwrap_or_default())
            } else {
                Settings { servers, ..Settings::default() }
            };
            (hosts, settings)
        };
        let (hosts, settings) = spawn_blocking(read).await.unwrap_or_default();
        let client =
            Client::new(settings.servers.clone(), settings.patience, settings.rounds, Arc::clone(&lookups.good));
        Asking { hosts, settings, client }
    }

    /// The addresses of a name as an operator wrote it.
    async fn host(&self, name: &str, known: &BTreeSet<IpAddr>) -> Result<Answered, String> {
        let mut failed = Fault::NoName;
        for name in self.settings.candidates(name) {
            match self.addresses(&name, known).await {
                Ok((addresses, lifetime)) if !addresses.is_empty() => {
                    return Ok(Answered { found: Found::Addresses(addresses), lifetime: lifetime.map(seconds) });
                }
                Ok(_) => {}
                Err(Fault::NoName) => {}
                Err(fault) => {
                    failed = fault;
                    break;
                }
            }
        }
        Err(match failed {
            Fault::NoName => String::from("the name has no address"),
            failed => failed.to_string(),
        })
    }

    async fn addresses(&self, name: &str, known: &BTreeSet<IpAddr>) -> Result<Addresses, Fault> {
        let listed = host::in_hosts(&self.hosts, name);
        if !listed.is_empty() {
            return Ok((usable(listed), None));
        }
        let (four, six) = self.both(name).await;
        let mut lifetime = u32::MAX;
        let mut addresses = BTreeSet::new();
        for (answer, v6) in [(&four, false), (&six, true)] {
            match answer {
                Ok((found, holds)) if !found.is_empty() => {
                    lifetime = lifetime.min(*holds);
                    addresses.extend(found);
                }
                Ok(_) | Err(Fault::NoName) => {}
                Err(_) => addresses.extend(known.iter().filter(|ip| ip.is_ipv6() == v6)),
            }
        }
        match (four, six) {
            // Nothing new was learnt.
            (Err(fault), Err(Fault::NoName)) | (Err(fault), Err(_)) => Err(fault),
            (Err(fault), Ok((none, _))) | (Ok((none, _)), Err(fault)) if none.is_empty() => Err(fault),
            _ => Ok((usable(addresses), Some(lifetime))),
        }
    }

    /// The addresses of both families. Once one has brought some, the other is not waited
    /// for much longer: there are name servers that never answer for IPv6.
    async fn both(&self, name: &str) -> (Family, Family) {
        let mut four = pin!(self.family(name, Kind::A));
        let mut six = pin!(self.family(name, Kind::Aaaa));
        let late = || Err(Fault::Nobody);
        let brought = |family: &Family| family.as_ref().is_ok_and(|(found, _)| !found.is_empty());
        tokio::select! {
            family = &mut four => {
                let patience = if brought(&family) { OTHER_FAMILY } else { LONGEST };
                let other = timeout(patience, six).await.unwrap_or_else(|_| late());
                (family, other)
            }
            family = &mut six => {
                let patience = if brought(&family) { OTHER_FAMILY } else { LONGEST };
                let other = timeout(patience, four).await.unwrap_or_else(|_| late());
                (other, family)
            }
        }
    }

    async fn family(&self, name: &str, kind: Kind) -> Family {
        let (records, lifetime) = self.client.ask(name, kind).await?;
        let addresses = records.into_iter().filter_map(|record| match record {
            Record::Address(address) => Some(address),
            Record::Service { .. } => None,
        });
        Ok((addresses.collect(), lifetime))
    }

    /// The hosts that offer a service, each with its addresses.
    async fn services(&self, name: &str, known: Option<&Found>) -> Result<Answered, String> {
        let (mut records, mut lifetime) = self.client.ask(name, Kind::Srv).await.map_err(|fault| fault.to_string())?;
        records.truncate(PLACES_MOST);
        let mut services = BTreeSet::new();
        let mut failed = None;
        for record in records {
            let Record::Service { priority, weight, port, host } = record else { continue };
            // A root as host says that there is no such service (RFC 2782).
            if host.is_empty() || port == 0 {
                continue;
            }
            let before = match known {
                Some(Found::Services(known)) => known.iter().find(|service| service.host == host),
                _ => None,
            };
            let before = before.map(|service| service.addresses.clone()).unwrap_or_default();
            let addresses = match self.addresses(&host, &before).await {
                Ok((addresses, holds)) => {
                    lifetime = lifetime.min(holds.unwrap_or(u32::MAX));
                    addresses
                }
                Err(fault) => {
                    failed = Some(format!("{host}: {fault}"));
                    before
                }
            };
            services.insert(Service { priority, weight, host, port, addresses });
        }
        let found = Found::Services(services);
        if found.is_empty() {
            return Err(failed.unwrap_or_else(|| String::from("nobody offers the service")));
        }
        // What failed is asked for again soon.
        let lifetime = if failed.is_some() { 0 } else { lifetime };
        Ok(Answered { found, lifetime: Some(seconds(lifetime)) })
    }
}

type Family = Result<(BTreeSet<IpAddr>, u32), Fault>;

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

/// Addresses that can be those of a backend. Filtering name servers say 0.0.0.0 for names
/// that they block, and connecting there would reach this very host.
fn usable(addresses: BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let broadcast = |ip: &IpAddr| matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    addresses.into_iter().filter(|ip| !ip.is_unspecified() && !ip.is_multicast() && !broadcast(ip)).collect()
}

/// What `getaddrinfo(3)` finds, if anything.
///
/// # Errors
/// When too many calls hang already.
async fn of_the_host(name: &str) -> Result<Option<Answered>, String> {
    let name = name.to_owned();
    let call = move || (name.as_str(), 0).to_socket_addrs().map(|found| found.collect::<Vec<_>>());
    let Some(call) = begin(&HOST_PLACES, call) else {
        return Err(String::from("the host's own resolver does not answer"));
    };
    let Ok(Ok(found)) = call.await else { return Ok(None) };
    let addresses = usable(found.into_iter().map(|address| address.ip().to_canonical()).collect());
    Ok((!addresses.is_empty()).then_some(Answered { found: Found::Addresses(addresses), lifetime: None }))
}

/// Begins a call that blocks, if there is a place. It is given back by the call itself: one
/// that is not waited for any more takes up its thread all the same.
fn begin<T: Send + 'static>(
    places: &'static Semaphore,
    call: impl FnOnce() -> T + Send + 'static,
) -> Option<JoinHandle<T>> {
    let place = places.try_acquire().ok()?;
    Some(spawn_blocking(move || {
        let _place = place;
        call()
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::runtime::Builder;

    use super::*;

    #[tokio::test]
    async fn localhost_is_known_without_a_name_server() {
        let nobody = ["127.0.0.1:9".parse().unwrap()];
        for lookups in [Lookups::default(), Lookups::at(&nobody)] {
            let answered = lookups.lookup(Query::Host(String::from("localhost")), None).await.unwrap();
            assert!(answered.found.addresses().iter().all(IpAddr::is_loopback) && !answered.found.is_empty());
            assert_eq!(answered.lifetime, None);
        }
    }

    /// Without places of their own, calls that are given up would take every thread.
    #[test]
    fn calls_that_hang_and_are_given_up_leave_threads_for_files() {
        static PLACES: Semaphore = Semaphore::const_new(HOST_AT_ONCE);
        const SOON: Duration = Duration::from_secs(20);
        let threads = super::super::BLOCKING_THREADS;
        let runtime = Builder::new_current_thread().enable_time().max_blocking_threads(threads).build().unwrap();
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        runtime.block_on(async {
            let mut hanging = 0;
            for _ in 0..threads {
                let (gate, (begins, begun)) = (Arc::clone(&gate), tokio::sync::oneshot::channel());
                let call = move || begins.send(()).is_ok() && gate.lock().is_ok_and(|gate| gate.recv().is_ok());
                if begin(&PLACES, call).is_some() {
                    timeout(SOON, begun).await.unwrap().unwrap();
                    hanging += 1;
                }
            }
            assert_eq!(hanging, HOST_AT_ONCE);
            assert_eq!(timeout(SOON, spawn_blocking(|| "read")).await.unwrap().unwrap(), "read");
            drop(release);
            let all = PLACES.acquire_many(u32::try_from(HOST_AT_ONCE).unwrap());
            drop(timeout(SOON, all).await.unwrap().unwrap());
            assert!(begin(&PLACES, || ()).is_some());
        });
        runtime.shutdown_background();
    }

    #[test]
    fn addresses_that_no_backend_can_have_are_left_out() {
        let all = ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "10.0.0.1"];
        let left = usable(all.iter().map(|ip| ip.parse().unwrap()).collect());
        assert_eq!(left, BTreeSet::from(["10.0.0.1".parse().unwrap()]));
    }
}

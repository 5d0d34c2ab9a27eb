//! What a ClientHello is answered with, for one configuration.
//!
//! Everything that takes time is done when it is built (`load`); workers only look things up.
//!
//! A session that a client resumes must not lead it past what a full handshake would have
//! asked of it. So tickets are sealed apart for each policy on client certificates
//! ([`super::tickets`]), and rustls resumes only for the server name that the session was made for.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::ClientHello;

use super::crypto;
use super::identity::Identity;
use super::load::now;
use super::names::{Names, Offer};
use super::pair::Pair;
use super::policies::{Policies, Policy};
use super::tickets::TicketKeys;
use crate::config::{Config, Mode, UnknownName, normal_host};

/// What is offered by ALPN where requests of HTTP are spoken.
const PROTOCOLS: &[&[u8]] = &[b"h2", b"http/1.1"];

/// The certificates of one configuration, and what goes with them.
#[derive(Debug, Default)]
pub struct Doors {
    /// Certificates that the configuration names, and then those that were obtained.
    pub(super) offers: Vec<Offer>,
    names: Arc<Names>,
    /// By the number of the policy; empty without certificates.
    serving: FxHashMap<u64, Serving>,
    pub(super) policies: Policies,
    /// What seals tickets, in all processes and generations.
    pub(super) keys: Arc<TicketKeys>,
    /// Whether there is any policy that asks.
    asks: bool,
    refuses_unknown: bool,
    pub(super) warnings: Vec<String>,
    /// When time alone changes which certificates count, in seconds since 1970.
    turns: Option<i64>,
}

/// A server's side of TLS for a policy, once for each thing that is spoken behind it.
#[derive(Debug)]
struct Serving {
    http: Arc<ServerConfig>,
    tcp: Arc<ServerConfig>,
}

impl Serving {
    fn new(policy: &Arc<Policy>, names: &Arc<Names>, http2: bool) -> Result<Serving, rustls::Error> {
        let Policy { verifier, ticketer, .. } = &**policy;
        let tcp = crypto::server(Arc::clone(verifier), Arc::clone(names) as _, Arc::clone(ticketer))?;
        let mut http = tcp.clone();
        let offered = PROTOCOLS.iter().filter(|protocol| http2 || **protocol != b"h2");
        http.alpn_protocols = offered.map(|protocol| protocol.to_vec()).collect();
        Ok(Serving { http: Arc::new(http), tcp: Arc::new(tcp) })
    }
}

impl Doors {
    /// The doors with these certificates at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// rustls lacks what is asked of it.
    pub(super) fn new(
        config: &Config,
        offers: Vec<Offer>,
        policies: Policies,
        keys: &Arc<TicketKeys>,
        now: i64,
    ) -> Result<Doors, rustls::Error> {
        let names = Arc::new(Names::new(&offers, now));
        let mut serving = FxHashMap::default();
        if !offers.is_empty() {
            for policy in policies.all().chain([&Arc::new(Policy::nothing(keys))]) {
                serving.insert(policy.number, Serving::new(policy, &names, config.daemon.http2)?);
            }
        }
        let turns = offers.iter().flat_map(|offer| offer.pair.turns()).filter(|turn| *turn > now).min();
        let asks = policies.all().next().is_some();
        Ok(Doors {
            offers,
            names,
            serving,
            policies,
            keys: Arc::clone(keys),
            asks,
            refuses_unknown: config.daemon.tls_unknown_name == UnknownName::Refuse,
            warnings: Vec::new(),
            turns,
        })
    }

    /// The same doors with these certificates in place of all that were obtained before, as
    /// an ACME server issues them. Those that the configuration names come before them.
    ///
    /// # Errors
    /// rustls lacks what is asked of it.
    pub fn with_obtained(&self, config: &Config, pairs: Vec<Arc<Pair>>) -> Result<Doors, rustls::Error> {
        let mut offers = self.offers.clone();
        offers.retain(|offer| offer.source.is_some());
        offers.extend(pairs.into_iter().map(Offer::obtained));
        let doors = Doors::new(config, offers, self.policies.clone(), &self.keys, now())?;
        Ok(Doors { warnings: self.warnings.clone(), ..doors })
    }

    /// Whether at `now` other certificates count than when these were built.
    pub(super) fn is_outdated(&self, now: i64) -> bool {
        self.turns.is_some_and(|turn| turn <= now)
    }

    /// What a client is answered with that begins by `hello`, where `mode` is spoken; none if
    /// it is to be refused, since it asks for a name that is unknown.
    #[must_use]
    pub fn choose(&self, hello: &ClientHello<'_>, mode: Mode) -> Option<Arc<ServerConfig>> {
        let name = hello.server_name();
        if self.refuses_unknown && name.is_some_and(|name| !self.names.has(name)) {
            return None;
        }
        let policy = match mode {
            Mode::Http => self.policy(name),
            Mode::Tcp => 0,
        };
        self.serving(policy, mode)
    }

    /// What every client is answered with, whatever it says, if there is one such thing.
    #[must_use]
    pub fn only(&self, mode: Mode) -> Option<Arc<ServerConfig>> {
        if self.refuses_unknown || (mode == Mode::Http && self.asks()) { None } else { self.serving(0, mode) }
    }

    fn serving(&self, policy: u64, mode: Mode) -> Option<Arc<ServerConfig>> {
        let Serving { http, tcp, .. } = self.serving.get(&policy)?;
        Some(Arc::clone(match mode {
            Mode::Http => http,
            Mode::Tcp => tcp,
        }))
    }

    /// Whether any client is asked for a certificate.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.asks
    }

    /// The number of the policy on client certificates of a server name; 0 asks for none.
    fn policy(&self, name: Option<&str>) -> u64 {
        let policy = match name {
            Some(name) => self.policies.find(name),
            None => self.policies.anywhere.as_ref(),
        };
        policy.map_or(0, |policy| policy.number)
    }

    /// Who a client is that has asked for `name` and shown these certificates in a handshake
    /// that these doors have answered. None where no client is asked for any.
    #[must_use]
    pub fn identify(&self, name: Option<&str>, shown: Option<&[CertificateDer<'_>]>) -> Option<Arc<Identity>> {
        self.asks().then(|| Arc::new(Identity::new(self.policy(name), shown.unwrap_or_default())))
    }

    /// Whether a request for this host can be served on the connection of such a client, as
    /// far as certificates are concerned: not where it needs another handshake.
    ///
    /// `host` is the authority that the request is for, in any form.
    #[must_use]
    pub fn meets(&self, host: Option<&[u8]>, identity: Option<&Identity>) -> bool {
        let host = host.map(normal_host);
        let host = host.as_ref().and_then(|host| std::str::from_utf8(host).ok());
        self.policy(host) == identity.map_or(0, Identity::policy)
    }

    /// What seals tickets here.
    #[must_use]
    pub fn keys(&self) -> &Arc<TicketKeys> {
        &self.keys
    }

    /// Whether there is no certificate.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.offers.is_empty()
    }

    /// What an operator who has TLS spoken is to be told: that there is no certificate. Where
    /// they are to be obtained they are on their way.
    #[must_use]
    pub fn lack(&self, config: &Config) -> Option<&'static str> {
        (self.is_empty() && !config.daemon.acme).then_some(
            "there is no certificate, so TLS clients are refused; set TLS_CERTIFICATE and TLS_PRIVATE_KEY, or ACME=on",
        )
    }

    /// The certificates, those of `config.env` first.
    pub fn pairs(&self) -> impl Iterator<Item = &Pair> {
        self.offers.iter().map(|offer| &*offer.pair)
    }

    /// Those that the configuration names, without those that were obtained.
    pub fn named(&self) -> impl Iterator<Item = &Pair> {
        self.offers.iter().filter(|offer| offer.source.is_some()).map(|offer| &*offer.pair)
    }

    /// What is allowed and yet deserves a look, each as `path:line: message`.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Authority, Credulous, Folder, NOW, Wish, client, credulous, keys, meet};
    use super::super::load::{Load, Manner};
    use super::*;
    use crate::config::Problems;
    use rustls::version::{TLS12, TLS13};
    use rustls::{AlertDescription, SignatureScheme};

    const REFUSED: AlertDescription = AlertDescription::UnrecognisedName;

    fn load(folder: &Folder, main: &str, routes: &[&str], past: Option<&Doors>) -> Result<Doors, Problems> {
        let keys = past.map_or_else(keys, |past| Arc::clone(&past.keys));
        Doors::load_with(&folder.config(main, routes), Load { keys: &keys, past, now: NOW, manner: Manner::Serve })
    }

    fn warnings(folder: &Folder, doors: &Doors) -> Vec<String> {
        doors.warnings().iter().map(|warning| folder.plain(warning)).collect()
    }

    #[test]
    fn an_exact_name_beats_a_wildcard_which_is_one_label() {
        let (folder, authority) = (Folder::new(), Authority::new("ca"));
        for (serial, file, name) in [(1, "c", "c.test"), (2, "a", "*.a.test"), (3, "b", "b.a.test")] {
            folder.pair(&format!("certs/{file}"), &Wish { serial, ..Wish::of(&[name]) }.by(&authority));
        }
        let main = "TLS_CERTIFICATE=DIR/certs/c.crt,DIR/certs/a.crt,DIR/certs/b.crt\n\
                    TLS_PRIVATE_KEY=DIR/certs/c.key,DIR/certs/a.key,DIR/certs/b.key\n";
        let anybody = Arc::new(credulous(&TLS13, &Default::default()));
        let seen = |doors: &Doors, name: &str| meet(doors, &anybody, name).map(|met| met.serial());
        let doors = load(&folder, main, &[], None).unwrap();
        for (name, serial) in [
            ("c.test", 1),
            ("B.a.Test", 3),
            ("x.a.test", 2),
            ("x.b.a.test", 1),
            ("a.test", 1),
            ("unknown.test", 1),
            ("127.0.0.1", 1), // no name is sent
        ] {
            assert_eq!(seen(&doors, name), Ok(serial), "{name}");
        }
        let strict = load(&folder, &format!("{main}TLS_UNKNOWN_NAME=refuse\n"), &[], None).unwrap();
        for (name, seen_there) in [
            ("c.test", Ok(1)),
            ("x.a.test", Ok(2)),
            ("127.0.0.1", Ok(1)),
            ("x.b.a.test", Err(REFUSED)),
            ("a.test", Err(REFUSED)),
            ("unknown.test", Err(REFUSED)),
        ] {
            assert_eq!(seen(&strict, name), seen_there, "{name}");
        }
        assert!(meet(&doors, &Arc::new(client(&authority)), "b.a.test").is_ok(), "a client verifies it");
        assert_eq!(seen(&Doors::default(), "c.test"), Err(REFUSED), "there is no certificate at all");
    }

    #[test]
    fn a_key_is_chosen_by_what_the_client_takes() {
        let (folder, authority) = (Folder::new(), Authority::new("ca"));
        let kinds = [
            (1, &rcgen::PKCS_RSA_SHA256, SignatureScheme::RSA_PSS_SHA256),
            (2, &rcgen::PKCS_ECDSA_P256_SHA256, SignatureScheme::ECDSA_NISTP256_SHA256),
            (3, &rcgen::PKCS_ECDSA_P384_SHA384, SignatureScheme::ECDSA_NISTP384_SHA384),
            (4, &rcgen::PKCS_ED25519, SignatureScheme::ED25519),
        ];
        for (serial, key, _) in kinds {
            folder.pair(&serial.to_string(), &Wish { serial, key, ..Wish::of(&["a.test"]) }.by(&authority));
        }
        let doors = load(&folder, "TLS_CERTIFICATE=DIR\n", &[], None).unwrap();
        let words: Vec<&str> = doors.pairs().map(|pair| pair.facts.key.as_str()).collect();
        assert_eq!(words, ["RSA 2048", "P-256", "P-384", "Ed25519"]);
        for version in [&TLS13, &TLS12] {
            for (serial, _, scheme) in kinds {
                let verifier = Arc::new(Credulous { schemes: vec![scheme], ..Default::default() });
                let client = Arc::new(credulous(version, &verifier));
                for name in ["a.test", "unknown.test"] {
                    let met = meet(&doors, &client, name).unwrap();
                    assert_eq!(u64::from(met.serial()), serial, "{scheme:?} {name}");
                }
            }
        }
        let all = Arc::new(credulous(&TLS13, &Default::default()));
        assert_eq!(meet(&doors, &all, "a.test").unwrap().serial(), 2, "RSA comes last");
        let other = Credulous { schemes: vec![SignatureScheme::ECDSA_NISTP521_SHA512], ..Default::default() };
        let other = Arc::new(credulous(&TLS13, &Arc::new(other)));
        assert_eq!(meet(&doors, &other, "a.test").unwrap_err(), AlertDescription::HandshakeFailure);
    }

    #[test]
    fn the_hybrid_group_comes_first_and_http_is_spoken() {
        let (folder, authority) = (Folder::new(), Authority::new("ca"));
        folder.pair("a", &Wish::of(&["a.test"]).by(&authority));
        let doors = load(&folder, "TLS_CERTIFICATE=DIR\n", &[], None).unwrap();
        let mut client = client(&authority);
        client.alpn_protocols = vec![b"spdy/1".to_vec(), b"http/1.1".to_vec()];
        let met = meet(&doors, &Arc::new(client.clone()), "a.test").unwrap();
        assert_eq!(met.server.alpn_protocol(), Some(&b"http/1.1"[..]));
        let group = met.server.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);
        // Of what both speak, ours comes first.
        client.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
        for (http2, spoken) in [("on", &b"h2"[..]), ("off", b"http/1.1")] {
            let main = format!("TLS_CERTIFICATE=DIR\nHTTP2={http2}\n");
            let doors = load(&folder, &main, &[], None).unwrap();
            let met = meet(&doors, &Arc::new(client.clone()), "a.test").unwrap();
            assert_eq!(met.server.alpn_protocol(), Some(spoken));
        }
        client.alpn_protocols = vec![b"spdy/1".to_vec()];
        let refused = meet(&doors, &Arc::new(client), "a.test").unwrap_err();
        assert_eq!(refused, AlertDescription::NoApplicationProtocol);
    }

    #[test]
    fn a_route_brings_its_own_which_serves_its_hosts() {
        let (folder, authority) = (Folder::new(), Authority::new("ca"));
        for (serial, file, names) in
            [(1, "main", &["a.test", "b.test"][..]), (2, "mine", &["b.test"]), (3, "odd", &["other.test"])]
        {
            folder.pair(file, &Wish { serial, ..Wish::of(names) }.by(&authority));
        }
        let main = "TLS_CERTIFICATE=DIR/main.crt\nTLS_PRIVATE_KEY=DIR/main.key\n";
        let mine = "MATCH_HOST=b.test\nTLS_CERTIFICATE=DIR/mine.crt\nTLS_PRIVATE_KEY=DIR/mine.key\n";
        let odd = "MATCH_HOST=d.test,*.e.test\nTLS_CERTIFICATE=DIR/odd.crt\nTLS_PRIVATE_KEY=DIR/odd.key\n";
        let doors = load(&folder, main, &[mine, odd], None).unwrap();
        let anybody = Arc::new(credulous(&TLS13, &Default::default()));
        for (name, serial) in
            [("a.test", 1), ("b.test", 2), ("other.test", 3), ("d.test", 3), ("x.e.test", 3), ("unknown.test", 1)]
        {
            assert_eq!(meet(&doors, &anybody, name).unwrap().serial(), serial, "{name}");
        }
        assert_eq!(
            warnings(&folder, &doors),
            ["routes.d/r1.env:2: `TLS_CERTIFICATE`: no certificate of this route is for d.test, *.e.test"]
        );
    }

    #[test]
    fn what_has_expired_is_used_only_where_there_is_no_better() {
        let (folder, authority) = (Folder::new(), Authority::new("ca"));
        let wish = |serial, from, until| Wish { serial, from, until, ..Wish::of(&["a.test"]) }.by(&authority);
        let anybody = || Arc::new(credulous(&TLS13, &Default::default()));
        let seen = |doors: &Doors| meet(doors, &anybody(), "a.test").unwrap().serial();
        let main = "TLS_CERTIFICATE=DIR\n";
        folder.pair("a", &wish(1, 2024, 2026));
        let expired = load(&folder, main, &[], None).unwrap();
        assert_eq!(seen(&expired), 1);
        let load_to = Load { keys: &keys(), past: None, now: NOW, manner: Manner::Examine };
        let examined = Doors::load_with(&folder.config(main, &[]), load_to).unwrap();
        let told = "config.env:1: `TLS_CERTIFICATE`: `a.crt` (a.test) expired on 2026-01-01";
        assert_eq!(warnings(&folder, &examined), [told]);
        folder.pair("a", &wish(2, 2026, 2027));
        let valid = load(&folder, main, &[], Some(&expired)).unwrap();
        assert_eq!((seen(&valid), valid.warnings()), (2, &[][..]));
        for (serial, from, until, why) in
            [(3, 2024, 2025, "expired on 2025-01-01"), (4, 2027, 2028, "is not valid before 2027-01-01")]
        {
            folder.pair("a", &wish(serial, from, until));
            let kept = load(&folder, main, &[], Some(&valid)).unwrap();
            assert_eq!(seen(&kept), 2);
            let told = format!(
                "config.env:1: `TLS_CERTIFICATE`: `a.crt` (a.test) {why}; the one before it serves on, until 2027-01-01"
            );
            assert_eq!(warnings(&folder, &kept), [told]);
        }
        // Beside a valid one it is not shown, whichever comes first.
        folder.pair("b", &wish(5, 2026, 2027));
        assert_eq!(seen(&load(&folder, main, &[], None).unwrap()), 5);
    }

    #[test]
    fn a_session_survives_a_reload_and_stays_with_its_name() {
        let (folder, authority) = (Folder::new(), Authority::new("ca"));
        folder.pair("a", &Wish { serial: 1, ..Wish::of(&["a.test", "b.test"]) }.by(&authority));
        let main = "TLS_CERTIFICATE=DIR\n";
        for version in [&TLS13, &TLS12] {
            let client = Arc::new(credulous(version, &Default::default()));
            let first = load(&folder, main, &[], None).unwrap();
            assert!(!meet(&first, &client, "a.test").unwrap().resumed());
            assert!(meet(&first, &client, "a.test").unwrap().resumed());
            folder.pair("a", &Wish { serial: 2, ..Wish::of(&["a.test", "b.test"]) }.by(&authority));
            let second = load(&folder, main, &[], Some(&first)).unwrap();
            assert!(meet(&second, &client, "a.test").unwrap().resumed());
            assert!(!meet(&second, &client, "b.test").unwrap().resumed());
            let stranger = load(&folder, main, &[], None).unwrap();
            assert!(!meet(&stranger, &client, "a.test").unwrap().resumed());
        }
    }

    #[test]
    fn what_was_obtained_stays_over_reloads_and_comes_after_what_is_named() {
        let (folder, authority) = (Folder::new(), Authority::new("ca"));
        folder.pair("a", &Wish { serial: 1, ..Wish::of(&["a.test"]) }.by(&authority));
        let obtained = |serial, name| {
            let (certificate, key) = Wish { serial, ..Wish::of(&[name]) }.by(&authority);
            folder.pair("store/x", &(certificate, key));
            let file = folder.path("store/x.crt");
            let read = Pair::read(&file, &folder.path("store/x.key"), NOW, |_, _| {}).unwrap();
            Arc::new(Pair::obtained((*read.certified).clone(), &file).unwrap())
        };
        let main = "TLS_CERTIFICATE=DIR/a.crt\nTLS_PRIVATE_KEY=DIR/a.key\n";
        let config = folder.config(main, &[]);
        let named = load(&folder, main, &[], None).unwrap();
        let seen = |doors: &Doors, name| {
            meet(doors, &Arc::new(credulous(&TLS13, &Default::default())), name).unwrap().serial()
        };
        let all = named.with_obtained(&config, vec![obtained(8, "a.test"), obtained(9, "b.test")]).unwrap();
        let all = load(&folder, main, &[], Some(&all)).unwrap();
        assert_eq!(["a.test", "b.test", "unknown.test"].map(|name| seen(&all, name)), [1, 9, 1]);
        let less = all.with_obtained(&config, vec![obtained(7, "b.test")]).unwrap();
        assert_eq!((seen(&less, "b.test"), less.pairs().count()), (7, 2));
        let alone = Doors::default().with_obtained(&config, vec![obtained(9, "b.test")]).unwrap();
        assert_eq!(seen(&alone, "unknown.test"), 9);
    }

    #[test]
    fn a_good_ocsp_response_is_sent_along_and_another_is_told_of() {
        use super::super::ocsp::tests::response;
        let (folder, authority) = (Folder::new(), Authority::new("ca"));
        folder.pair("a", &Wish { serial: 7, ..Wish::of(&["a.test"]) }.by(&authority));
        let verifier = Arc::new(Credulous::default());
        let stapled = |doors: &Doors| {
            meet(doors, &Arc::new(credulous(&TLS13, &verifier)), "a.test").unwrap();
            verifier.stapled.lock().unwrap().clone()
        };
        let good = response(&[7], 0x80, "20261120000000Z", "20261130000000Z");
        folder.write("a.ocsp", &good);
        let doors = load(&folder, "TLS_CERTIFICATE=DIR\n", &[], None).unwrap();
        assert_eq!((stapled(&doors), doors.warnings()), (good, &[][..]));
        folder.write("a.ocsp", response(&[7], 0x80, "20261110000000Z", "20261120000000Z"));
        let doors = load(&folder, "TLS_CERTIFICATE=DIR\n", &[], None).unwrap();
        assert!(stapled(&doors).is_empty());
        let told = "config.env:1: `TLS_CERTIFICATE`: `a.ocsp` is out of date, so it is not sent along";
        assert_eq!(warnings(&folder, &doors), [told]);
    }
}

//! Policies: whether a client is asked for a certificate, and who must have signed it.
//!
//! A policy belongs to a server name, since that is all that a handshake tells before the
//! client is asked. It only asks: a client without a certificate gets its connection, and an
//! answer to each request by the route that takes it. A certificate that is not valid ends
//! the handshake.
//!
//! What a client has shown counts for the policy that it was shown under. So policies have
//! numbers, which a reload keeps as long as authorities and lists are the same ones; a
//! session is resumed only where authorities and lists are the same, also by another process,
//! since tickets are sealed for these. An authority that is no longer trusted, or a longer
//! list, so ends what was known of clients before.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::digest::{Context, SHA256};
use rustc_hash::FxHashMap;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, ProducesTickets, WebPkiClientVerifier};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::X509Version;

use super::names::lower;
use super::tickets::{TicketKeys, Tickets, Trusted};
use super::{crypto, facts, pem};
use crate::config::{self, ClientTrust, FileSource};

/// What a client is asked for.
#[derive(Debug)]
pub(super) struct Policy {
    /// Its number; 0 asks for nothing.
    pub(super) number: u64,
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    pub(super) ticketer: Arc<dyn ProducesTickets>,
    /// The files that it was read from.
    sources: (Vec<FileSource>, Vec<FileSource>),
    lists: Lists,
}

/// What the files of a policy hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lists {
    authorities: Vec<CertificateDer<'static>>,
    revoked: Vec<CertificateRevocationListDer<'static>>,
}

/// A file that is at fault, and why, in one clause.
pub(super) type Wrong<'a> = (&'a FileSource, String);

impl Lists {
    /// Reads the files of a policy at `now`, in seconds since 1970.
    pub(super) fn read<'a>(
        trust: &ClientTrust<'a>,
        credentials: Option<&Path>,
        now: i64,
        mut warn: impl FnMut(Wrong<'a>),
    ) -> Result<Lists, Wrong<'a>> {
        let bytes = |source: &FileSource| {
            let path = source.path(credentials).ok_or("is no path, and no credential that was passed")?;
            config::read(&path).map_err(|error| format!("can't be read: {}", config::reason(&error)))
        };
        let mut lists = Lists::default();
        for source in trust.authorities {
            let found = bytes(source).and_then(|bytes| pem::bundle(&bytes));
            let found = found.and_then(|found| found.iter().try_for_each(|one| trusted(one)).map(|()| found));
            lists.authorities.extend(found.map_err(|why| (source, format!("`{source}` {why}")))?);
        }
        for source in trust.revoked {
            let found = bytes(source).and_then(|bytes| pem::revocation_lists(&bytes));
            let found = found.map_err(|why| (source, format!("`{source}` {why}")))?;
            for list in &found {
                match next_update(list) {
                    Ok(Some(next)) if next < now => {
                        let day = facts::day(next);
                        warn((source, format!("`{source}` is out of date since {day}, and counts all the same")));
                    }
                    Ok(_) => {}
                    Err(why) => return Err((source, format!("`{source}` {why}"))),
                }
            }
            lists.revoked.extend(found);
        }
        Ok(lists)
    }

    /// A digest that no other lists have.
    fn digest(&self) -> Trusted {
        let mut digest = Context::new(&SHA256);
        let mut add = |kind: u8, der: &[u8]| {
            digest.update(&[kind]);
            digest.update(&der.len().to_be_bytes());
            digest.update(der);
        };
        self.authorities.iter().for_each(|authority| add(b'a', authority));
        self.revoked.iter().for_each(|list| add(b'r', list));
        let mut trusted = Trusted::default();
        // It has as many bytes.
        trusted.iter_mut().zip(digest.finish().as_ref()).for_each(|(to, from)| *to = *from);
        trusted
    }
}

impl Policy {
    /// The one that asks for nothing.
    pub(super) fn nothing(keys: &Arc<TicketKeys>) -> Policy {
        let (sources, lists): (_, Lists) = Default::default();
        let ticketer = Tickets::sealed_by(keys, lists.digest());
        Policy { number: 0, verifier: Arc::new(NoClientAuth), ticketer, sources, lists }
    }

    /// One that asks for what these lists want.
    pub(super) fn new<'a>(trust: &ClientTrust<'a>, lists: Lists, keys: &Arc<TicketKeys>) -> Result<Policy, Wrong<'a>> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let cant =
            |error: &dyn std::fmt::Display| (trust.first(), format!("`{}` can't be used: {error}", trust.first()));
        let mut roots = RootCertStore::empty();
        for authority in &lists.authorities {
            roots.add(authority.clone()).map_err(|error| cant(&error))?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto::provider());
        let builder = builder.allow_unauthenticated().with_crls(lists.revoked.iter().cloned());
        let verifier = builder.build().map_err(|error| cant(&error))?;
        let ticketer = Tickets::sealed_by(keys, lists.digest());
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let sources = (trust.authorities.to_vec(), trust.revoked.to_vec());
        Ok(Policy { number, verifier, ticketer, sources, lists })
    }

    /// Whether it was read from the files of `trust`.
    pub(super) fn is_of(&self, trust: &ClientTrust<'_>) -> bool {
        self.sources.0 == trust.authorities && self.sources.1 == trust.revoked
    }

    /// Whether it wants what these lists do.
    pub(super) fn wants(&self, lists: &Lists) -> bool {
        self.lists == *lists
    }
}

/// Which server name has which policy; none asks for nothing. The maps' keys come from the
/// configuration, so their hash need not withstand clients.
#[derive(Debug, Default, Clone)]
pub(super) struct Policies {
    pub(super) exact: FxHashMap<Box<str>, Option<Arc<Policy>>>,
    /// By what follows `*.`.
    pub(super) below: FxHashMap<Box<str>, Option<Arc<Policy>>>,
    pub(super) anywhere: Option<Arc<Policy>>,
}

impl Policies {
    /// The policy of a server name, in normal form.
    pub(super) fn find(&self, name: &str) -> Option<&Arc<Policy>> {
        let name = lower(name);
        if let Some(policy) = self.exact.get(&*name) {
            return policy.as_ref();
        }
        let mut rest: &str = &name;
        while let Some((_, parent)) = rest.split_once('.').filter(|_| !self.below.is_empty()) {
            if let Some(policy) = self.below.get(parent) {
                return policy.as_ref();
            }
            rest = parent;
        }
        self.anywhere.as_ref()
    }

    /// All policies, some perhaps more than once.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.exact.values().chain(self.below.values()).chain([&self.anywhere]).flatten()
    }
}

/// Whether a certificate can be one of an authority.
fn trusted(certificate: &CertificateDer<'_>) -> Result<(), String> {
    let parsed = facts::parse(certificate)?;
    // Certificates of the first version say nothing of it.
    if parsed.version() != X509Version::V1 && !parsed.is_ca() {
        return Err(format!("holds a certificate that is no authority's ({})", parsed.subject()));
    }
    Ok(())
}

/// When a newer list is due, in seconds since 1970.
fn next_update(list: &CertificateRevocationListDer<'_>) -> Result<Option<i64>, String> {
    match CertificateRevocationList::from_der(list) {
        Ok((_, list)) => Ok(list.next_update().map(|time| time.timestamp())),
        Err(_) => Err("is no sound revocation list".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Authority, Folder, Met, NOW, Wish, keys, meet, showing};
    use super::super::load::{Load, Manner};
    use super::super::{Doors, Identity, tickets};
    use super::*;
    use crate::config::{ClientFields, Mode, Problems};
    use rustls::AlertDescription;
    use rustls::version::{TLS12, TLS13};

    fn load(folder: &Folder, main: &str, routes: &[&str], past: Option<&Doors>) -> Result<Doors, Problems> {
        let keys = past.map_or_else(keys, |past| Arc::clone(&past.keys));
        load_by(&keys, folder, main, routes, past)
    }

    fn load_by(
        keys: &Arc<TicketKeys>,
        folder: &Folder,
        main: &str,
        routes: &[&str],
        past: Option<&Doors>,
    ) -> Result<Doors, Problems> {
        Doors::load_with(&folder.config(main, routes), Load { keys, past, now: NOW, manner: Manner::Serve })
    }

    /// The certificate of a client, good for as long as tests may be run.
    fn of_client(serial: u64, authority: &Authority) -> (String, String) {
        Wish { serial, from: 2001, until: 3000, ..Wish::of(&["client.test"]) }.by(authority)
    }

    fn identity(doors: &Doors, met: &Met) -> Option<Arc<Identity>> {
        doors.identify(met.server.server_name(), met.server.peer_certificates())
    }

    const MAIN: &str = "TLS_CERTIFICATE=DIR/site\n";
    const ASKING: &str =
        "MATCH_HOST=a.test\nMATCH_PATH=/private\nTLS_CLIENT_CA=DIR/ca.pem\nTLS_CLIENT_CRL=DIR/crl.pem\n";

    fn scene() -> (Folder, Authority, Authority) {
        let (folder, authority, other) = (Folder::new(), Authority::new("clients"), Authority::new("others"));
        folder.pair("site/a", &Wish::of(&["*.test"]).by(&authority));
        folder.write("ca.pem", &authority.pem);
        folder.write("other.pem", &other.pem);
        folder.write("crl.pem", authority.revoke(&[66]));
        (folder, authority, other)
    }

    #[test]
    fn a_client_is_asked_by_the_name_it_asks_for_and_verified_at_once() {
        let (folder, authority, other) = scene();
        let doors = load(&folder, MAIN, &[ASKING], None).unwrap();
        assert!(doors.asks() && doors.only(Mode::Http).is_none() && doors.only(Mode::Tcp).is_some());
        for version in [&TLS13, &TLS12] {
            let good = showing(version, Some(&of_client(5, &authority)));
            for (client, name, shown) in
                [(&good, "a.test", true), (&good, "b.test", false), (&showing(version, None), "a.test", false)]
            {
                let met = meet(&doors, client, name).unwrap();
                let identity = identity(&doors, &met).unwrap();
                assert_eq!(identity.is_certified(NOW), shown, "{name}");
                assert_eq!(met.server.peer_certificates().is_some(), shown);
                for (host, meets) in
                    [("a.test", name == "a.test"), ("A.test.:443", name == "a.test"), ("c.test", name != "a.test")]
                {
                    assert_eq!(doors.meets(Some(host.as_bytes()), Some(&identity)), meets, "{name} {host}");
                }
                assert_eq!(doors.meets(None, Some(&identity)), name != "a.test");
            }
            for (pair, alert) in [
                (of_client(5, &other), AlertDescription::UnknownCA),
                (of_client(66, &authority), AlertDescription::CertificateRevoked),
                (
                    Wish { from: 2001, until: 2002, ..Wish::of(&["x.test"]) }.by(&authority),
                    AlertDescription::CertificateExpired,
                ),
            ] {
                assert_eq!(meet(&doors, &showing(version, Some(&pair)), "a.test").unwrap_err(), alert);
            }
        }
        let nobody = load(&folder, MAIN, &[], None).unwrap();
        assert!(!nobody.asks() && nobody.identify(Some("a.test"), None).is_none());
        assert!(nobody.meets(Some(b"a.test"), None) && !doors.meets(Some(b"a.test"), None));
    }

    #[test]
    fn no_session_leads_from_one_policy_to_another() {
        let (folder, authority, _) = scene();
        for version in [&TLS13, &TLS12] {
            let asking = load(&folder, MAIN, &[ASKING], None).unwrap();
            let client = showing(version, Some(&of_client(5, &authority)));
            let resumed = |doors: &Doors, name: &str| {
                let met = meet(doors, &client, name).unwrap();
                let certified = identity(doors, &met).is_some_and(|identity| identity.is_certified(NOW));
                (met.resumed(), certified)
            };
            assert_eq!(resumed(&asking, "a.test"), (false, true));
            assert_eq!(resumed(&asking, "a.test"), (true, true), "what was shown is part of the session");
            // Another name has a session of its own.
            assert_eq!(resumed(&asking, "b.test"), (false, false));
            // A reload that changes nothing keeps it, one that changes the policy does not.
            let same = load(&folder, MAIN, &[ASKING], Some(&asking)).unwrap();
            assert_eq!(resumed(&same, "a.test"), (true, true));
            let met = meet(&asking, &client, "a.test").unwrap();
            let before = identity(&asking, &met).unwrap();
            assert!(same.meets(Some(b"a.test"), Some(&before)));
            let off = load(&folder, MAIN, &[], Some(&same)).unwrap();
            assert_eq!(resumed(&off, "a.test"), (false, false));
            assert!(!off.meets(Some(b"a.test"), Some(&before)));
            let on = load(&folder, MAIN, &[ASKING], Some(&off)).unwrap();
            assert_eq!(resumed(&on, "a.test"), (false, true), "made without being asked");
            folder.write("crl.pem", authority.revoke(&[5, 66]));
            let stricter = load(&folder, MAIN, &[ASKING], Some(&on)).unwrap();
            assert!(!stricter.meets(Some(b"a.test"), Some(&before)));
            assert_eq!(meet(&stricter, &client, "a.test").unwrap_err(), AlertDescription::CertificateRevoked);
            folder.write("crl.pem", authority.revoke(&[66]));
        }
    }

    #[test]
    fn a_session_leads_to_the_same_trust_in_another_process_and_to_no_other() {
        let (folder, authority, other) = scene();
        let route = |host, ca| format!("MATCH_HOST={host}\nTLS_CLIENT_CA=DIR/{ca}.pem\nTLS_CLIENT_CRL=DIR/crl.pem\n");
        let ours = &route("a.test", "ca")[..];
        let lists = [authority.revoke(&[66]), authority.revoke(&[66, 67])];
        for version in [&TLS13, &TLS12] {
            let client = showing(version, Some(&of_client(5, &authority)));
            let keys = keys();
            // Nothing is known of the process before but its keys.
            let resumed = |routes: &[&str]| {
                let keys = TicketKeys::from_bytes(&keys.to_bytes(), tickets::now()).unwrap();
                let doors = load_by(&Arc::new(keys), &folder, MAIN, routes, None).unwrap();
                meet(&doors, &client, "a.test").map(|met| met.resumed())
            };
            folder.write("crl.pem", &lists[0]);
            assert_eq!(resumed(&[ours]), Ok(false));
            assert_eq!(resumed(&[ours]), Ok(true));
            assert_eq!(resumed(&[&route("z.test", "other"), ours]), Ok(true), "whichever number it has");
            folder.write("moved.pem", &authority.pem);
            assert_eq!(resumed(&[&route("a.test", "moved")]), Ok(true), "wherever its files are");
            folder.write("crl.pem", &lists[1]);
            assert_eq!(resumed(&[ours]), Ok(false), "another list");
            folder.write("crl.pem", &lists[0]);
            assert_eq!(resumed(&[ours]), Ok(false));
            folder.write("both.pem", format!("{}{}", authority.pem, other.pem));
            assert_eq!(resumed(&[&route("a.test", "both")]), Ok(false), "another authority");
            assert_eq!(resumed(&[]), Ok(false), "nobody is asked");
            assert_eq!(resumed(&[]), Ok(true));
            assert_eq!(resumed(&[ours]), Ok(false), "everybody is asked");
            let foreign = resumed(&[&route("a.test", "other")]);
            assert_eq!(foreign, Err(AlertDescription::UnknownCA));
        }
    }

    #[test]
    fn files_of_a_policy_that_are_wrong_are_refused_or_kept_as_they_were() {
        let (folder, authority, _) = scene();
        let doors = load(&folder, MAIN, &[ASKING], None).unwrap();
        let told: Vec<String> = doors.warnings().iter().map(|warning| folder.plain(warning)).collect();
        let stale =
            "routes.d/r0.env:4: `TLS_CLIENT_CRL`: `crl.pem` is out of date since 2026-02-01, and counts all the same";
        assert_eq!(told, [stale]);
        let leaf = of_client(1, &authority).0;
        for (file, text, says) in [
            ("ca.pem", "nonsense", "routes.d/r0.env: `TLS_CLIENT_CA`: `ca.pem` is not PEM"),
            (
                "ca.pem",
                &leaf,
                "routes.d/r0.env: `TLS_CLIENT_CA`: `ca.pem` holds a certificate that is no authority's (CN=leaf of clients)",
            ),
            ("crl.pem", &authority.pem, "routes.d/r0.env: `TLS_CLIENT_CRL`: `crl.pem` holds no revocation list"),
            (
                "crl.pem",
                "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
                "routes.d/r0.env: `TLS_CLIENT_CRL`: `crl.pem` is no sound revocation list",
            ),
        ] {
            let before = std::fs::read(folder.path(file)).unwrap();
            folder.write(file, text);
            let problems = load(&folder, MAIN, &[ASKING], Some(&doors)).err().unwrap();
            let said: Vec<String> = problems
                .iter()
                .map(|one| {
                    folder.plain(&format!("{}: {}", one.origin, one.message)).replace(":3", "").replace(":4", "")
                })
                .collect();
            assert_eq!(said, [says]);
            let renewal = doors.renew(&folder.config(MAIN, &[ASKING]), NOW).unwrap();
            assert_eq!((renewal.changed, renewal.faults.len()), (false, 1));
            assert!(renewal.doors.asks());
            folder.write(file, before);
        }
        folder.write("crl.pem", authority.revoke(&[1, 2, 3]));
        assert!(doors.renew(&folder.config(MAIN, &[ASKING]), NOW).unwrap().changed);
    }

    #[test]
    fn what_a_backend_is_told_can_not_be_mistaken() {
        use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType, SerialNumber};
        let authority = Authority::new("ca");
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["a.test".to_owned(), "10.0.0.1".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI("spiffe://a/b,DNS:evil.test".to_owned().try_into().unwrap()));
        params.serial_number = Some(SerialNumber::from(0x0a_0b_u64));
        params.distinguished_name = Default::default();
        params.distinguished_name.push(DnType::CountryName, "DE");
        params.distinguished_name.push(DnType::OrganizationName, "A, B+C\r\nX-Evil: \"1\"");
        params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), DnValue::Utf8String("7".to_owned()));
        params.distinguished_name.push(DnType::CommonName, " #Jörg ");
        let own = params.signed_by(&key, &authority.issuer).unwrap();
        let chain = [own.der().clone(), super::pem::certificates(authority.pem.as_bytes()).unwrap().remove(0)];
        let identity = Identity::new(1, &chain);
        let lines = |fields| {
            let lines = identity.lines(fields).concat();
            String::from_utf8(lines).unwrap().split_terminator("\r\n").map(str::to_owned).collect::<Vec<_>>()
        };
        let x = lines(ClientFields::XClientCert);
        assert_eq!(
            x[..3],
            [
                "X-Client-Cert-Subject: CN=\\ #J\\C3\\B6rg\\ ,2.5.4.5=#0C0137,\
                 O=A\\, B\\+C\\0D\\0AX-Evil: \\\"1\\\",C=DE",
                "X-Client-Cert-San: DNS:a.test, IP:10.0.0.1, URI:spiffe://a/b\\,DNS:evil.test",
                "X-Client-Cert-Serial: 0A0B",
            ]
        );
        let fingerprint = x[3].strip_prefix("X-Client-Cert-Fingerprint: ").unwrap();
        assert_eq!((x.len(), fingerprint.len()), (4, 64));
        let rfc9440 = lines(ClientFields::Rfc9440);
        let decoded = |line: &str, name: &str| {
            let value = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(": :")?.strip_suffix(':')).unwrap();
            data_encoding::BASE64.decode(value.as_bytes()).unwrap()
        };
        assert_eq!(decoded(&rfc9440[0], "Client-Cert"), &*chain[0]);
        assert_eq!(decoded(&rfc9440[1], "Client-Cert-Chain"), &*chain[1]);
        assert_eq!(lines(ClientFields::Both), [x, rfc9440].concat());
        assert!(lines(ClientFields::Off).is_empty());
        assert!(!Identity::new(1, &[]).is_certified(NOW) && !identity.is_certified(i64::MAX));
    }
}

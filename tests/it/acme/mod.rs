//! Certificates from an ACME server: had, renewed, and what stands in the way.

mod front;
mod pebble;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use doorward::telemetry::events;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use crate::daemon::{connect, listener};
use crate::nameserver::NameServer;
use crate::server::Server;
use crate::tls::issued::Authority;
use crate::tls::secured::{Client, NAME};
use crate::traffic::door::{Daemon, Setup};
use front::Front;
use pebble::Pebble;

/// Half a year: nothing is renewed while a test runs.
const LONG: u32 = 180 * 86_400;

/// A name server, an ACME server, and the setup of a daemon that they know as `names`.
struct Scene {
    pebble: Pebble,
    setup: Setup,
    /// Where it listens for TLS.
    https: SocketAddr,
    names: NameServer,
}

/// What the server finds the daemon by.
enum Checks {
    Both,
    Requests,
    Handshakes,
}

/// What differs from one scene to the next.
struct Terms<'a> {
    validity: u32,
    nonces_refused: u8,
    binding: Option<(&'a str, &'a str)>,
    runs: bool,
    checks: Checks,
}

const USUAL: Terms<'static> =
    Terms { validity: LONG, nonces_refused: 0, binding: None, runs: true, checks: Checks::Both };

const REQUESTS: Terms<'static> = Terms { checks: Checks::Requests, ..USUAL };

/// `None` where there is no ACME server to be had.
fn scene(names: &[&str], terms: &Terms<'_>) -> Option<Scene> {
    let resolver = NameServer::new();
    for name in names {
        resolver.addresses(name, &["127.0.0.1"], 60);
    }
    let (socket, address) = listener();
    let setup = Setup::new().listener("https", socket);
    let (http, https) = (setup.address().unwrap().port(), address.port());
    // A port of nobody's.
    let closed = listener().1.port();
    let pebble = pebble::Setup {
        ports: match terms.checks {
            Checks::Both => (http, https),
            Checks::Requests => (http, closed),
            Checks::Handshakes => (closed, https),
        },
        names: &resolver,
        validity: terms.validity,
        nonces_refused: terms.nonces_refused,
        binding: terms.binding,
    };
    let pebble = if terms.runs { Pebble::start(&pebble) } else { Pebble::new(&pebble) }?;
    let state = setup.path("state");
    let setup = certified(setup, names, &pebble).environment("STATE_DIRECTORY", state.to_str().unwrap());
    Some(Scene { pebble, setup, https: address, names: resolver })
}

fn certified(setup: Setup, names: &[&str], pebble: &Pebble) -> Setup {
    setup
        .set("ACME", "on")
        .set("ACME_NAMES", names.join(","))
        .set("ACME_DIRECTORY", pebble.directory())
        .set("ACME_CA", pebble.path("ca.pem").display())
}

/// Where what is had lies, below the folder for state.
fn kept_in(state: &Path, pebble: &Pebble, file: &str) -> PathBuf {
    let folder = pebble.directory().strip_prefix("https://").unwrap().replace([':', '/'], "_");
    state.join("acme").join(folder).join(file)
}

fn kept(daemon: &Daemon, pebble: &Pebble, file: &str) -> PathBuf {
    kept_in(&daemon.folder().join("state"), pebble, file)
}

fn with_id(id: &'static str, name: &'static str) -> impl Fn(&Value) -> bool {
    move |line| line["message_id"] == id && line["name"] == name
}

fn obtained(daemon: &Daemon, name: &'static str) -> Value {
    daemon.logged(&format!("a certificate for {name}"), with_id(events::ACME_OBTAINED, name))
}

fn failed(daemon: &Daemon, name: &'static str) -> Value {
    daemon.logged(&format!("no certificate for {name}"), with_id(events::ACME_FAILED, name))
}

/// A client that trusts whoever signed what is kept.
fn trusting(state: impl AsRef<Path>, pebble: &Pebble) -> Arc<ClientConfig> {
    let pem = fs::read(kept_in(state.as_ref(), pebble, &format!("{NAME}.pem"))).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::pem_slice_iter(&pem).last().unwrap().unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(doorward::tls::provider()).with_safe_default_protocol_versions();
    Arc::new(config.unwrap().with_root_certificates(roots).with_no_client_auth())
}

fn states(daemon: &Daemon) -> Vec<(String, String)> {
    let status = daemon.status();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    status["automatic"].as_array().unwrap().iter().map(|one| (text(&one["name"]), text(&one["state"]))).collect()
}

#[test]
fn names_are_shown_to_lead_here_by_requests_and_get_certificates() {
    let Some(Scene { pebble, setup, names: _names, .. }) = scene(&["a.test", "b.test"], &REQUESTS) else {
        return;
    };
    let backend = Server::new("app");
    // Whatever a route says, it is not asked.
    let setup = setup
        .set("ACME_CHALLENGE", "http-01")
        .set("BACKEND_ADDRESS", backend.address)
        .set("REDIRECT", "308 https://{host}{path}{query}");
    let daemon = setup.start();
    for name in ["a.test", "b.test"] {
        let record = obtained(&daemon, name);
        assert_eq!(record["message"], "certificate obtained");
        assert!(record["not_after"].as_str().unwrap() > record["renewal"].as_str().unwrap());
        let file = kept(&daemon, &pebble, &format!("{name}.pem"));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let pem = fs::read_to_string(&file).unwrap();
        assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----") && pem.matches("BEGIN CERTIFICATE").count() >= 2);
    }
    assert_eq!(states(&daemon), [("a.test".into(), "valid".into()), ("b.test".into(), "valid".into())]);
    let status = daemon.status();
    let shown: Vec<&str> =
        status["certificates"].as_array().unwrap().iter().flat_map(|one| one["names"][0].as_str()).collect();
    assert_eq!(shown, ["a.test", "b.test"], "they serve: {status:#}");
    assert_eq!(backend.counts().requests, 0);
    assert!(daemon.lines(|line| line["message_id"] == events::ACME_FAILED).is_empty());
}

#[test]
fn names_are_shown_to_lead_here_by_handshakes_and_what_is_obtained_serves_at_once() {
    let terms = Terms { checks: Checks::Handshakes, runs: false, ..USUAL };
    let Some(Scene { mut pebble, setup, https, names: _names }) = scene(&[NAME], &terms) else { return };
    let backend = Server::new("app");
    let daemon = setup.set("BACKEND_ADDRESS", backend.address).start();
    failed(&daemon, "all");
    // There is no certificate at all yet; whoever comes in clear is served.
    let refused = Client::try_over(connect(https), &Arc::new(Authority::new().client())).err().unwrap();
    assert!(refused.to_string().contains("UnrecognisedName"), "{refused}");
    let mut client = daemon.connect();
    client.get("/");
    assert_eq!(client.response().text(), "app");
    assert!(pebble.run());
    obtained(&daemon, NAME);
    let mut client = Client::over(connect(https), &trusting(daemon.folder().join("state"), &pebble));
    client.get("/");
    assert_eq!(client.response().1, b"app");
    assert!(daemon.lines(|line| line["message_id"] == events::RELOADED).is_empty());
}

#[test]
fn a_renewed_certificate_is_shown_to_who_comes_next_and_nobody_else_is_disturbed() {
    let terms = Terms { validity: 6, checks: Checks::Handshakes, ..USUAL };
    let Some(Scene { pebble, setup, https, names: _names }) = scene(&[NAME], &terms) else { return };
    let backend = Server::new("app");
    let daemon = setup.set("BACKEND_ADDRESS", backend.address).start();
    obtained(&daemon, NAME);
    let ends = |daemon: &Daemon| daemon.status()["certificates"][0]["not_after"].as_u64().unwrap();
    let (first, mut before) =
        (ends(&daemon), Client::over(connect(https), &trusting(daemon.folder().join("state"), &pebble)));
    daemon.logged("a renewal", |line| line["message"] == "certificate renewed");
    assert!(ends(&daemon) > first);
    before.get("/");
    assert_eq!(before.response().1, b"app");
    Client::over(connect(https), &trusting(daemon.folder().join("state"), &pebble)).get("/");
}

#[test]
fn a_challenge_that_fails_makes_room_for_the_other() {
    let Some(Scene { pebble: _pebble, setup, names: _names, .. }) = scene(&["a.test"], &REQUESTS) else { return };
    let daemon = setup.start();
    let record = failed(&daemon, "a.test");
    assert!(record["error"].as_str().unwrap().starts_with("tls-alpn-01: "), "{record}");
    daemon.reload("");
    obtained(&daemon, "a.test");
}

#[test]
fn paths_of_challenges_are_ordinary_ones_while_nothing_is_asked() {
    let Some(Scene { pebble: _pebble, setup, names: _names, .. }) = scene(&["a.test"], &USUAL) else { return };
    let backend = Server::new("app");
    let daemon = setup.set("BACKEND_ADDRESS", backend.address).start();
    obtained(&daemon, "a.test");
    let mut client = daemon.connect();
    client.get("/.well-known/acme-challenge/token");
    assert_eq!(client.response().text(), "app");
}

#[test]
fn a_certificate_is_renewed_when_it_is_time_and_again() {
    let Some(Scene { pebble: _pebble, setup, names: _names, .. }) = scene(&["a.test"], &Terms { validity: 6, ..USUAL })
    else {
        return;
    };
    let daemon = setup.start();
    obtained(&daemon, "a.test");
    let ends = |line: &Value| line["not_after"].as_str().unwrap_or_default().to_owned();
    let mut last = String::new();
    for _ in 0..2 {
        let renewed = daemon.logged("a renewal", |line| {
            line["message"] == "certificate renewed" && line["name"] == "a.test" && ends(line) > last
        });
        last = ends(&renewed);
    }
}

#[test]
fn a_server_that_is_away_is_waited_for_and_one_that_has_forgotten_all_is_told_anew() {
    let terms = Terms { validity: 6, runs: false, ..USUAL };
    let Some(Scene { mut pebble, setup, names: _names, .. }) = scene(&["a.test"], &terms) else { return };
    let daemon = setup.start();
    let record = failed(&daemon, "all");
    assert!(record["error"].as_str().unwrap().contains("onnection refused"), "{record}");
    assert_eq!(states(&daemon), [("a.test".into(), "missing".into())]);
    assert!(pebble.run());
    obtained(&daemon, "a.test");
    // It knows neither the account nor the certificate.
    pebble.kill();
    assert!(pebble.run());
    daemon.logged("a renewal", |line| line["message"] == "certificate renewed");
}

#[test]
fn nonces_that_are_refused_are_replaced() {
    let Some(Scene { pebble: _pebble, setup, names: _names, .. }) =
        scene(&["a.test"], &Terms { nonces_refused: 20, ..USUAL })
    else {
        return;
    };
    obtained(&setup.start(), "a.test");
}

#[test]
fn a_name_that_leads_elsewhere_has_its_reason_told_and_is_tried_again_after_a_reload() {
    let Some(Scene { pebble: _pebble, setup, names, .. }) = scene(&["a.test", "lost.test"], &USUAL) else { return };
    names.addresses("lost.test", &["127.0.0.9"], 60);
    let daemon = setup.start();
    let record = failed(&daemon, "lost.test");
    let error = record["error"].as_str().unwrap();
    assert!(error.starts_with("tls-alpn-01: ") && error.contains("127.0.0.9"), "{error}");
    assert!(record["retry_s"].as_u64().unwrap() >= 100, "{record}");
    obtained(&daemon, "a.test");
    let status = daemon.status();
    let lost = status["automatic"].as_array().unwrap().iter().find(|one| one["name"] == "lost.test").unwrap();
    assert_eq!((&lost["state"], lost["error"].as_str().unwrap()), (&"missing".into(), error));
    names.addresses("lost.test", &["127.0.0.1"], 60);
    daemon.reload("");
    obtained(&daemon, "lost.test");
}

#[test]
fn what_was_had_is_there_after_a_restart_without_the_server() {
    let Some(Scene { mut pebble, setup, names: _names, .. }) = scene(&[NAME], &USUAL) else { return };
    let state = tempfile::tempdir().unwrap();
    let state = state.path().to_str().unwrap();
    let mut daemon = setup.environment("STATE_DIRECTORY", state).start();
    obtained(&daemon, NAME);
    let config = trusting(state, &pebble);
    assert!(daemon.stop().success());
    pebble.kill();
    let (socket, https) = listener();
    let setup = certified(Setup::new().listener("https", socket), &[NAME], &pebble);
    let daemon = setup.environment("STATE_DIRECTORY", state).start();
    // Whoever comes first, as soon as anybody is served.
    Client::over(connect(https), &config).get("/");
    daemon.wait("a certificate from the store", |status| status["automatic"][0]["state"] == "valid");
}

#[test]
fn accounts_are_bound_to_those_elsewhere_where_the_server_wants_that() {
    let key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let terms = Terms { binding: Some(("kid-1", key)), ..USUAL };
    let Some(Scene { pebble: _pebble, setup, names: _names, .. }) = scene(&["a.test"], &terms) else { return };
    let file = setup.path("eab.key");
    fs::write(&file, format!("{key}\n")).unwrap();
    let daemon = setup.start();
    let record = failed(&daemon, "all");
    assert!(record["error"].as_str().unwrap().contains("externalAccount"), "{record}");
    daemon.reload(&format!("ACME_EAB_KEY_ID=kid-1\nACME_EAB_KEY={}", file.display()));
    obtained(&daemon, "a.test");
}

#[test]
fn names_come_and_go_with_reloads() {
    let Some(Scene { pebble, setup, names, .. }) = scene(&["a.test"], &USUAL) else { return };
    names.addresses("b.test", &["127.0.0.1"], 60);
    let daemon = setup.start();
    obtained(&daemon, "a.test");
    daemon.replace("ACME_NAMES", "b.test");
    obtained(&daemon, "b.test");
    assert_eq!(states(&daemon), [("b.test".into(), "valid".into())]);
    // Its files stay, for when it comes back.
    assert!(kept(&daemon, &pebble, "a.test.pem").exists());
    daemon.replace("ACME", "off");
    assert_eq!(states(&daemon), []);
    assert_eq!(daemon.lines(with_id(events::ACME_OBTAINED, "a.test")).len(), 1);
}

#[test]
fn a_certificate_is_renewed_when_the_server_says_so() {
    // Much longer than a test waits for anything.
    let Some(Scene { pebble, setup, names: _names, .. }) = scene(&["a.test"], &Terms { validity: 300, ..USUAL }) else {
        return;
    };
    let front = Front::of(&pebble);
    let daemon = setup.set("ACME_DIRECTORY", front.directory()).start();
    obtained(&daemon, "a.test");
    daemon.logged("a renewal", |line| line["message"] == "certificate renewed");
    let asked = front.asked_for_advice();
    let (authority, serial) = asked[0].split_once('.').expect("two parts");
    assert!(!authority.is_empty() && !serial.is_empty(), "{asked:?}");
    assert!(front.orders().iter().any(|order| order["replaces"] == asked[0]), "it says what it replaces");
}

#[test]
fn an_account_that_the_server_has_closed_is_not_got_round() {
    let Some(Scene { pebble, setup, names: _names, .. }) = scene(&["a.test"], &USUAL) else { return };
    let front = Front::of(&pebble);
    front.refuse_orders("unauthorized", "the account was deactivated");
    let daemon = setup.set("ACME_DIRECTORY", front.directory()).start();
    let record = failed(&daemon, "all");
    let error = record["error"].as_str().unwrap();
    assert!(error.contains("the account was deactivated (unauthorized); without "), "{error}");
    assert!(error.contains("account.json another one is registered"), "{error}");
}

#[test]
fn a_server_that_wants_to_be_left_alone_is() {
    let Some(Scene { pebble, setup, names: _names, .. }) = scene(&["a.test"], &USUAL) else { return };
    let front = Front::of(&pebble);
    front.refuse_orders("rateLimited", "too many certificates");
    let daemon = setup.set("ACME_DIRECTORY", front.directory()).start();
    let record = failed(&daemon, "a.test");
    assert_eq!((&record["error"], &record["retry_s"]), (&"too many certificates (rateLimited)".into(), &7777.into()));
    // Also a reload leaves it alone.
    daemon.reload("");
    let next = daemon.status()["automatic"][0]["next"].as_u64().unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(next > now + 7000, "{next} {now}");
    assert_eq!(front.orders().len(), 1);
}

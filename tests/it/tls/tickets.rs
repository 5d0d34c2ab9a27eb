//! Sessions that are resumed in another process, by what the one before has left.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use rustls::ClientConfig;
use serde_json::Value;
use tempfile::TempDir;

use super::issued::{self, Authority};
use super::secured::{Client, NAME};
use crate::daemon::{connect, listener};
use crate::traffic::door::{Daemon, Setup};

/// By this name it is left to systemd.
const KEYS: &str = "ticket-keys";

/// What stays while one daemon follows another.
struct Scene {
    folder: TempDir,
    authority: Authority,
}

/// A daemon, and where it listens for TLS.
struct Process(Daemon, SocketAddr);

impl Scene {
    fn new() -> Scene {
        let scene = Scene { folder: tempfile::tempdir().unwrap(), authority: Authority::new() };
        issued::write(&scene.folder.path().join("tls"), "door", &scene.authority.issue(&[NAME], 1, 90));
        scene
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn start(&self, left: Option<OwnedFd>, change: impl FnOnce(Setup) -> Setup) -> Process {
        let (socket, address) = listener();
        let setup = Setup::new().listener("https", socket).set("TLS_CERTIFICATE", self.path("tls"));
        let setup = setup.set("BACKEND_ADDRESS", "builtin:echo").set("LOG_LEVEL", "debug");
        let setup = left.into_iter().fold(change(setup), |setup, left| setup.listener(KEYS, left));
        Process(setup.start(), address)
    }

    /// One whose clients are asked for certificates.
    fn start_asking(&self, left: Option<OwnedFd>) -> Process {
        let route = format!(
            "MATCH_HOST={NAME}\nTLS_CLIENT_CA={}\nTLS_CLIENT_CRL={}\n",
            self.path("ca.pem"),
            self.path("crl.pem")
        );
        self.start(left, |setup| setup.route("10-asking.env", &route))
    }
}

impl Process {
    /// Whether a client's session is resumed, which then has had an answer.
    fn resumes(&self, client: &Arc<ClientConfig>) -> bool {
        let mut client = Client::over(connect(self.1), client);
        client.get("/");
        assert!(client.response().0.starts_with("HTTP/1.1 200 "));
        client.is_resumed()
    }

    fn resumed(&self) -> u64 {
        self.0.status()["tls"]["resumed"].as_u64().unwrap()
    }

    /// Ends it at once, as a crash does; what it has left.
    fn kill(mut self) -> Option<OwnedFd> {
        self.0.stored(KEYS)
    }
}

#[test]
fn a_session_goes_on_in_the_next_process_and_in_the_one_after() {
    let scene = Scene::new();
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let client = Arc::new(scene.authority.client_of(version));
        let first = scene.start(None, |setup| setup);
        assert!(!first.resumes(&client) && first.resumes(&client));
        let left = first.kill().expect("keys");
        for _ in 0..2 {
            let mut next = scene.start(Some(left.try_clone().unwrap()), |setup| setup);
            assert!(next.resumes(&client));
            assert_eq!(next.resumed(), 1);
            // They are there already, and stay.
            assert!(next.0.stored(KEYS).is_none());
            assert!(!next.0.all_heard().iter().any(|message| message.contains("FDSTORE")));
            assert!(next.0.lines(|line| line["message"] == "stored ticket keys can't be used").is_empty());
        }
        assert!(!scene.start(None, |setup| setup).resumes(&client), "without them nobody can");
    }
}

#[test]
fn a_session_with_a_certificate_goes_on_only_where_the_same_is_trusted() {
    let scene = Scene::new();
    let write = |name: &str, text: &str| fs::write(scene.path(name), text).unwrap();
    write("ca.pem", &scene.authority.pem);
    write("crl.pem", &scene.authority.revoke(&[66]));
    let pair = scene.authority.issue(&["client.test"], 5, 90);
    let client = Arc::new(scene.authority.client_showing(Some(&pair)));
    let first = scene.start_asking(None);
    assert!(!first.resumes(&client) && first.resumes(&client));
    let left = first.kill().expect("keys");
    let next = || Some(left.try_clone().unwrap());
    assert!(scene.start_asking(next()).resumes(&client));
    // Each of these may have been written while nobody ran.
    write("crl.pem", &scene.authority.revoke(&[66, 67]));
    assert!(!scene.start_asking(next()).resumes(&client));
    write("ca.pem", &(Authority::new().pem + &scene.authority.pem));
    assert!(!scene.start_asking(next()).resumes(&client));
    write("crl.pem", &scene.authority.revoke(&[5]));
    let strict = scene.start_asking(next());
    // Whether a client hears of it before it thinks that it is done depends on the version.
    let _ = Client::try_over(connect(strict.1), &client);
    strict.0.wait("a refused certificate", |status| status["tls"]["failed"]["tls_client_certificate"] == 1);
    assert_eq!(strict.resumed(), 0);
    // Nor does a session that was made without being asked.
    let unasked = scene.start(next(), |setup| setup);
    assert!(!unasked.resumes(&client) && unasked.resumes(&client));
    write("crl.pem", &scene.authority.revoke(&[66]));
    assert!(!scene.start_asking(next()).resumes(&client));
}

#[test]
fn what_holds_no_keys_is_told_of_once_and_replaced() {
    let scene = Scene::new();
    let filled = |bytes: &[u8]| {
        let (from, to) = UnixDatagram::pair().unwrap();
        from.send(bytes).unwrap();
        OwnedFd::from(to)
    };
    let client = Arc::new(scene.authority.client());
    for (left, why) in [
        (filled(b"doorward tickets 0"), "no keys of tickets in a form that is known here"),
        (filled(&[0; 100_000]), "more than"),
        (UnixDatagram::pair().unwrap().0.into(), "nothing is in it"),
        (listener().0.into(), "no datagram socket"),
        (UdpSocket::bind("127.0.0.1:0").unwrap().into(), "no datagram socket"),
        (fs::File::open("/dev/null").unwrap().into(), "no datagram socket"),
    ] {
        let mut process = scene.start(Some(left), |setup| setup);
        assert!(!process.resumes(&client) && process.resumes(&client), "{why}");
        let is_told = |line: &Value| line["message"] == "stored ticket keys can't be used";
        process.0.logged(why, is_told);
        let told = process.0.lines(is_told);
        assert!(told.len() == 1 && told[0]["error"].as_str().unwrap().contains(why), "{why}: {told:?}");
        // It is no listener, whatever it is.
        assert_eq!(process.0.status()["listeners"].as_array().unwrap().len(), 2);
        let left = process.0.stored(KEYS).expect("new keys");
        assert!(scene.start(Some(left), |setup| setup).resumes(&client), "{why}");
    }
}

#[test]
fn keys_are_left_only_while_there_is_tls() {
    let scene = Scene::new();
    let Process(mut daemon, _) = scene.start(None, |setup| setup.set("TLS_CERTIFICATE", ""));
    assert!(daemon.stored(KEYS).is_none() && !daemon.all_heard().iter().any(|message| message.contains("FDSTORE")));
    daemon.replace("TLS_CERTIFICATE", &scene.path("tls"));
    assert_eq!(daemon.hear("FDSTORE=1"), format!("FDSTORE=1\nFDNAME={KEYS}\nFDPOLL=0\n"));
    assert!(daemon.stored(KEYS).is_some());
    daemon.replace("TLS_CERTIFICATE", "");
    daemon.hear("FDSTOREREMOVE=1");
    assert!(daemon.stored(KEYS).is_none());
}

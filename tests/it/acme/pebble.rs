//! Pebble, the ACME server that is made for tests: Debian's package of that name.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::daemon::DEADLINE;
use crate::nameserver::NameServer;

const PROGRAM: &str = "/usr/bin/pebble";

/// How a server is set up.
pub struct Setup<'a> {
    /// The ports on which it looks for the answers to http-01 and tls-alpn-01.
    pub ports: (u16, u16),
    /// Who says where names lead.
    pub names: &'a NameServer,
    /// How long certificates are valid, in seconds.
    pub validity: u32,
    /// Of a hundred nonces, how many it refuses.
    pub nonces_refused: u8,
    /// The account elsewhere that accounts must be bound to: its identifier and key.
    pub binding: Option<(&'a str, &'a str)>,
}

/// A server; it ends with the value.
pub struct Pebble {
    folder: TempDir,
    address: SocketAddr,
    environment: Vec<(&'static str, String)>,
    resolver: SocketAddr,
    process: Option<Child>,
}

impl Pebble {
    /// A server that runs, if the program is there. It must be where nothing may be skipped.
    pub fn start(setup: &Setup<'_>) -> Option<Pebble> {
        let mut pebble = Pebble::new(setup)?;
        // Somebody may take the ports before it does.
        for _ in 0..16 {
            pebble.configure(setup);
            if pebble.run() {
                return Some(pebble);
            }
        }
        panic!("{PROGRAM} does not start: {}", pebble.log());
    }

    /// A server that does not run yet.
    pub fn new(setup: &Setup<'_>) -> Option<Pebble> {
        if !Path::new(PROGRAM).exists() {
            let needed = std::env::var_os("CI").is_some_and(|ci| ci == "true");
            assert!(!needed, "{PROGRAM} is not there; Debian's package pebble has it");
            eprintln!("skipped: {PROGRAM} is not there; Debian's package pebble has it");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(folder.path().join("ca.pem"), ca.self_signed(&key).unwrap().pem()).unwrap();
        let own = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let certificate = certificate.signed_by(&own, &Issuer::new(ca, key)).unwrap();
        fs::write(folder.path().join("own.pem"), certificate.pem()).unwrap();
        fs::write(folder.path().join("own.key"), own.serialize_pem()).unwrap();
        let environment = vec![
            ("PEBBLE_VA_NOSLEEP", "1".to_owned()),
            ("PEBBLE_AUTHZREUSE", "0".to_owned()),
            ("PEBBLE_WFE_NONCEREJECT", setup.nonces_refused.to_string()),
        ];
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut pebble = Pebble { folder, address, environment, resolver: setup.names.address, process: None };
        pebble.configure(setup);
        Some(pebble)
    }

    fn configure(&mut self, setup: &Setup<'_>) {
        let [own, management] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        self.address = own.local_addr().unwrap();
        let mut config = json!({
            "listenAddress": self.address.to_string(),
            "managementListenAddress": management.local_addr().unwrap().to_string(),
            "certificate": self.path("own.pem"),
            "privateKey": self.path("own.key"),
            "httpPort": setup.ports.0,
            "tlsPort": setup.ports.1,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": setup.binding.is_some(),
            // Releases up to 2.6 and later ones.
            "certificateValidityPeriod": setup.validity,
            "profiles": { "default": { "description": "the only one", "validityPeriod": setup.validity } },
        });
        if let Some((id, key)) = setup.binding {
            config["externalAccountMACKeys"] = Value::from_iter([(id, key)]);
        }
        fs::write(self.path("config.json"), json!({ "pebble": config }).to_string()).unwrap();
    }

    /// Has it run, with nothing that it knew before; whether it does.
    pub fn run(&mut self) -> bool {
        let log = fs::File::create(self.path("log")).unwrap();
        let process = Command::new(PROGRAM)
            .arg("-config")
            .arg(self.path("config.json"))
            .args(["-dnsserver", &self.resolver.to_string()])
            .env_clear()
            .envs(self.environment.iter().cloned())
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
        let until = Instant::now() + DEADLINE;
        while Instant::now() < until {
            if self.process.as_mut().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect(self.address).is_ok() {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    /// Ends it.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// A file of its own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of its directory.
    pub fn directory(&self) -> String {
        format!("https://{}/dir", self.address)
    }

    /// What it has said by now.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("log of the ACME server:\n{}", self.log());
        }
    }
}

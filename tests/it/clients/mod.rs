//! Clients that others made, in front of the real daemon: a scanner of TLS servers, and a
//! browser. They are large and take their time, so the tests that need them are run by
//! `tests/run` alone, which installs them.

mod browser; // a page over HTTP/2, and a WebSocket
mod scanner; // what testssl.sh has to say

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::daemon::{Daemon, Setting};

/// The name that all of them ask for.
const NAME: &str = "site.test";

/// A daemon with a certificate for [`NAME`], and where it speaks TLS. Its folder has the
/// authority's certificate as `ca.pem`.
fn daemon(config: &str) -> (Daemon, SocketAddr) {
    let setting = Setting::new("");
    let [certificate, key] = ["site.crt", "site.key"].map(|file| setting.path(file).display().to_string());
    let tls = format!("PROXY_TLS_ADDRESS=127.0.0.1:0\nTLS_CERTIFICATE={certificate}\nTLS_PRIVATE_KEY={key}\n");
    setting.write("config.env", &format!("PROXY_ADDRESS=127.0.0.1:0\n{tls}{config}"));
    let authority = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "Authority of the test");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    setting.write("ca.pem", &params.self_signed(&authority).unwrap().pem());
    let key = KeyPair::generate().unwrap();
    let mut site = CertificateParams::new([NAME.to_owned()]).unwrap();
    site.use_authority_key_identifier_extension = true;
    let begins = SystemTime::now() - Duration::from_secs(3600);
    site.not_before = begins.into();
    site.not_after = (begins + Duration::from_secs(90 * 86_400)).into();
    let issuer = Issuer::from_params(&params, &authority);
    setting.write("site.crt", &site.signed_by(&key, &issuer).unwrap().pem());
    setting.write("site.key", &key.serialize_pem());
    private(&setting);
    let daemon = setting.start().ready();
    let listening = daemon.wait_for("listening on a socket of its own", 2);
    let https = listening.iter().find(|record| record["listener"] == "https").unwrap();
    let address = https["address"].as_str().unwrap().parse().unwrap();
    (daemon, address)
}

fn private(setting: &Setting) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(setting.path("site.key"), fs::Permissions::from_mode(0o600)).unwrap();
}

/// A process of somebody else's; dropping it ends it.
struct Foreign(Child);

impl Foreign {
    fn start(command: &mut Command) -> Foreign {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        Foreign(child.unwrap_or_else(|error| panic!("{:?}: {error}; tests/run installs it", command.get_program())))
    }

    /// What it writes until it ends, which it must before `patience` is over.
    fn finish(mut self, patience: Duration) -> String {
        let (sender, receiver) = std::sync::mpsc::channel();
        let stdout = BufReader::new(self.0.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // Nobody listens any more once the test has failed.
                let _ = sender.send(line);
            }
        });
        let until = Instant::now() + patience;
        let mut said = String::new();
        loop {
            match receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => said = said + &line + "\n",
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return said,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("not over in {patience:?}: {said}"),
            }
        }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

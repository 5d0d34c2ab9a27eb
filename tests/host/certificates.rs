//! Certificates: keys that only the service sees, and renewal while clients are served.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SerialNumber};
use rustls::{ClientConfig, RootCertStore};

use crate::doorward::{PACKAGE, ask_at, configure, drop_in, log, main_pid, restart_with, show};
use crate::host::Host;
use crate::http::Target;
use crate::load::Load;
use crate::wait::{SOON, wait_for};

crate::stories!(install:
    a_certificate_is_renewed_under_load_without_a_reload_and_by_the_hook_of_certbot,
    an_encrypted_credential_is_a_key,
    a_session_survives_restarts_crashes_and_upgrades_and_no_stop,
);

/// An authority that the clients of a test trust.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    client: Arc<ClientConfig>,
}

impl Authority {
    pub(crate) fn new() -> Result<Authority> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let mut roots = RootCertStore::empty();
        roots.add(params.self_signed(&key)?.der().clone())?;
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(Authority { issuer: Issuer::new(params, key), client: Arc::new(client) })
    }

    /// A certificate for `localhost` that is good for so many days, and its key, in PEM.
    pub(crate) fn issue(&self, serial: u64, days: u64) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(["localhost".to_owned()])?;
        params.serial_number = Some(SerialNumber::from(serial));
        params.not_after = (SystemTime::now() + Duration::from_secs(days * 86_400 + 3_600)).into();
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    /// Where these clients find the daemon.
    fn target(&self) -> Target {
        Target::Tls(([127, 0, 0, 1], 8443).into(), Arc::clone(&self.client))
    }
}

/// Has doorward-https.socket listen on a port of its own, and the daemon know it.
pub(crate) fn listen(host: &Host) -> Result<()> {
    drop_in(host, "doorward-https.socket", "[Socket]\nListenStream=\nListenStream=127.0.0.1:8443\n")?;
    host.say("systemctl stop doorward.service && systemctl enable --now doorward-https.socket")?;
    host.say("systemctl start doorward.service")?;
    Ok(())
}

/// Waits until `doorward status` knows a certificate with so many days left.
fn has_days_left(host: &Host, days: u64) -> Result<()> {
    wait_for("the certificate to be taken up", SOON, || {
        Ok(host.say("doorward status")?.contains(&format!("{days} days left")))
    })
}

fn a_certificate_is_renewed_under_load_without_a_reload_and_by_the_hook_of_certbot(host: &Host) -> Result<()> {
    let authority = Authority::new()?;
    let live = "/etc/letsencrypt/live/localhost";
    let renew = |serial, days| {
        let (certificate, key) = authority.issue(serial, days)?;
        host.put(&format!("{live}/fullchain.pem"), certificate)?;
        host.put(&format!("{live}/privkey.pem"), key)?;
        host.say(&format!("chmod 0600 {live}/privkey.pem && chmod 0700 /etc/letsencrypt/live"))?;
        anyhow::Ok(())
    };
    let hook = format!("RENEWED_LINEAGE={live} /usr/share/doorward/certbot-deploy-hook");
    renew(1, 30)?;
    host.say(&hook)?;
    configure(host, "TLS_CERTIFICATE=/etc/doorward/tls\nBACKEND_ADDRESS=builtin:echo\n")?;
    listen(host)?;
    ensure!(ask_at(host, &authority.target(), "/")?.status == 200);
    has_days_left(host, 30)?;
    let check = host.say("doorward check")?;
    ensure!(check.contains("localhost  P-256, 30 days left"), "{check}");
    let pid = main_pid(host)?;

    let load = Load::start(host, &authority.target(), 8)?;
    renew(2, 60)?;
    host.say(&hook)?;
    has_days_left(host, 60)?;
    load.goes_on()?;
    // Files alone do as well.
    let (certificate, key) = authority.issue(3, 90)?;
    host.put("/etc/doorward/tls/localhost/fullchain.pem", certificate)?;
    host.put("/etc/doorward/tls/localhost/privkey.pem", key)?;
    has_days_left(host, 90)?;
    load.goes_on()?;
    // Half a pair leaves the old one in use.
    host.put("/etc/doorward/tls/localhost/privkey.pem", authority.issue(4, 90)?.1)?;
    wait_for("the fault to be told of", SOON, || Ok(log(host)?.contains("certificate not renewed")))?;
    host.run("systemctl reload doorward")?.failed()?;
    load.goes_on()?;
    let tally = load.stop();
    println!("renewal: {tally}");
    tally.lost_nothing()?;
    ensure!(main_pid(host)? == pid, "a renewal must not restart the daemon");
    Ok(())
}

fn an_encrypted_credential_is_a_key(host: &Host) -> Result<()> {
    let authority = Authority::new()?;
    let (certificate, key) = authority.issue(1, 30)?;
    host.put("/etc/doorward/site.pem", certificate)?;
    host.put("/root/site.key", key)?;
    host.say(
        "install -d -m 0700 /etc/credstore.encrypted && \
         systemd-creds encrypt --with-key=host --name=site.key /root/site.key /etc/credstore.encrypted/site.key && \
         rm /root/site.key",
    )?;
    let example = host.say("cat /usr/share/doc/doorward/examples/encrypted-key.conf")?;
    drop_in(host, "doorward.service", &example)?;
    configure(
        host,
        "TLS_CERTIFICATE=/etc/doorward/site.pem\nTLS_PRIVATE_KEY=site.key\nBACKEND_ADDRESS=builtin:echo\n",
    )?;
    listen(host)?;
    ensure!(ask_at(host, &authority.target(), "/")?.status == 200);
    // root sees no credential, and check says so.
    let check = host.say("doorward check")?;
    ensure!(check.contains("credential `site.key` was not examined"), "{check}");
    host.say("systemctl reload doorward")?;
    let told = log(host)?;
    ensure!(told.contains("only a restart changes them"), "{told}");
    restart_with(host, "TLS_CERTIFICATE=/etc/doorward/site.pem\nTLS_PRIVATE_KEY=site.key\n")?;
    ensure!(ask_at(host, &authority.target(), "/")?.status == 200);
    Ok(())
}

/// Makes a handshake; then checks how many the daemon counts since its start, and of resumed
/// ones.
fn meet(host: &Host, authority: &Authority, handshakes: u32, resumed: u32) -> Result<()> {
    ensure!(ask_at(host, &authority.target(), "/")?.status == 200);
    let status = host.say("doorward status")?;
    let wanted = format!("{handshakes} handshakes, {resumed} resumed");
    ensure!(status.contains(&wanted), "should be {wanted}:\n{status}");
    Ok(())
}

fn a_session_survives_restarts_crashes_and_upgrades_and_no_stop(host: &Host) -> Result<()> {
    let authority = Authority::new()?;
    let (certificate, key) = authority.issue(1, 30)?;
    host.put("/etc/doorward/tls/site.crt", certificate)?;
    host.put("/etc/doorward/tls/site.key", key)?;
    host.say("chgrp -R doorward /etc/doorward/tls && chmod 0640 /etc/doorward/tls/site.key")?;
    configure(host, "TLS_CERTIFICATE=/etc/doorward/tls\nBACKEND_ADDRESS=builtin:echo\n")?;
    listen(host)?;
    meet(host, &authority, 1, 0)?;
    meet(host, &authority, 2, 1)?;
    // More than once, since what was stored for the first has to be there for the next.
    for _ in 0..2 {
        host.say("systemctl restart doorward.service")?;
        meet(host, &authority, 1, 1)?;
        let pid = main_pid(host)?;
        host.say("systemctl kill -s KILL doorward.service")?;
        wait_for("the daemon to be started again", SOON, || Ok(![0, pid].contains(&main_pid(host)?)))?;
        meet(host, &authority, 1, 1)?;
    }
    // Nor is it lost to an upgrade, of the process or of the package.
    for command in ["doorward upgrade", &format!("dpkg -i {PACKAGE}")] {
        let pid = main_pid(host)?;
        host.say(command)?;
        ensure!(main_pid(host)? != pid, "the process before serves on");
        meet(host, &authority, 1, 1)?;
    }
    host.say("systemctl restart doorward.service")?;
    meet(host, &authority, 1, 1)?;
    ensure!(show(host, "doorward.service", "NFileDescriptorStore")? == "1");
    // An operator who wants new keys has them so.
    host.say("systemctl stop doorward.service && systemctl start doorward.service")?;
    meet(host, &authority, 1, 0)?;
    meet(host, &authority, 2, 1)?;
    // Where there is no TLS any more, nothing is kept for it.
    configure(host, "BACKEND_ADDRESS=builtin:echo\n")?;
    host.say("systemctl reload doorward.service")?;
    wait_for("the keys to be forgotten", SOON, || Ok(show(host, "doorward.service", "NFileDescriptorStore")? == "0"))?;
    let told = log(host)?;
    ensure!(!told.contains("stored ticket keys can't be used"), "{told}");
    Ok(())
}

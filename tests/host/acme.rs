//! Automatic certificates: the packaged daemon, in its sandbox, and Debian's ACME server.

use std::fs;

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::certificates::listen;
use crate::doorward::{configure, log};
use crate::host::Host;
use crate::wait::{SOON, wait_for};

crate::stories!(install: a_certificate_is_had_kept_and_shown_after_a_restart);

const NAME: &str = "site.test";

/// Has Pebble, of the machine's package, run in the host; it finds names as the host does.
fn pebble(host: &Host) -> Result<()> {
    let program = fs::read("/usr/bin/pebble").context("Debian's package pebble is needed; tests/run installs it")?;
    host.put("/opt/pebble/pebble", program)?;
    let key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    host.put("/etc/doorward/acme-ca.pem", ca.self_signed(&key)?.pem())?;
    let own = KeyPair::generate()?;
    let certificate = CertificateParams::new(["127.0.0.1".to_owned()])?.signed_by(&own, &Issuer::new(ca, key))?;
    host.put("/opt/pebble/own.pem", certificate.pem())?;
    host.put("/opt/pebble/own.key", own.serialize_pem())?;
    host.put(
        "/opt/pebble/config.json",
        r#"{ "pebble": {
            "listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000",
            "certificate": "/opt/pebble/own.pem", "privateKey": "/opt/pebble/own.key",
            "httpPort": 8080, "tlsPort": 8443, "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "certificateValidityPeriod": 15552000,
            "profiles": { "default": { "description": "the only one", "validityPeriod": 15552000 } }
        } }"#,
    )?;
    host.say(&format!("echo 127.0.0.1 {NAME} >>/etc/hosts && chmod 0755 /opt/pebble/pebble"))?;
    host.say(
        "systemd-run --unit=pebble --setenv=PEBBLE_VA_NOSLEEP=1 --setenv=PEBBLE_WFE_NONCEREJECT=0 \
         /opt/pebble/pebble -config /opt/pebble/config.json",
    )?;
    wait_for("the ACME server to listen", SOON, || Ok(host.run("curl -sk https://127.0.0.1:14000/dir")?.success()))
}

/// The certificates that the daemon shows, in PEM, to somebody who trusts the server's root.
fn shown(host: &Host) -> Result<String> {
    let curl = format!(
        "curl -sS -m 20 --cacert /opt/pebble/root.pem --resolve {NAME}:8443:127.0.0.1 -o /dev/null \
         -w '%{{http_code}}\\n%{{certs}}' https://{NAME}:8443/"
    );
    let said = host.say(&curl)?;
    let (status, certificates) = said.split_once('\n').context("no certificates")?;
    ensure!(status == "200" && certificates.contains("BEGIN CERTIFICATE"), "{said}");
    Ok(certificates.to_owned())
}

fn a_certificate_is_had_kept_and_shown_after_a_restart(host: &Host) -> Result<()> {
    pebble(host)?;
    configure(
        host,
        &format!(
            "ACME=on\nACME_NAMES={NAME}\nACME_DIRECTORY=https://127.0.0.1:14000/dir\n\
             ACME_CA=/etc/doorward/acme-ca.pem\nBACKEND_ADDRESS=builtin:echo\n"
        ),
    )?;
    host.say("chgrp doorward /etc/doorward/acme-ca.pem && chmod 0640 /etc/doorward/acme-ca.pem")?;
    listen(host)?;
    wait_for("a certificate", SOON, || Ok(log(host)?.contains("certificate obtained")))?;
    host.say("curl -sSk https://127.0.0.1:15000/roots/0 >/opt/pebble/root.pem")?;
    let first = shown(host)?;

    // It lies where the unit says, for the daemon alone.
    let folder = host.say("stat -c %U:%G:%a /var/lib/doorward")?;
    ensure!(folder == "doorward:doorward:700", "{folder}");
    let kept = host.say("find /var/lib/doorward/acme -type f -printf '%f %u:%g:%m\\n' | sort")?;
    ensure!(kept.lines().any(|file| file.starts_with(NAME)), "{kept}");
    ensure!(kept.lines().all(|file| file.ends_with(" doorward:doorward:600")), "{kept}");
    let status = host.say("doorward status")?;
    ensure!(status.contains(NAME) && status.contains("days left"), "{status}");

    // A restart needs nothing but that folder.
    host.say("systemctl stop pebble.service && systemctl restart doorward.service")?;
    ensure!(shown(host)? == first, "another certificate after a restart");
    let told = log(host)?;
    ensure!(told.matches("certificate obtained").count() == 1, "{told}");
    ensure!(!told.contains("no certificate for now"), "nothing was to be ordered: {told}");
    Ok(())
}

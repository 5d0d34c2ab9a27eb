//! Metrics: had by the socket that the package ships, which comes and goes with the service.

use anyhow::{Context, Result, ensure};

use crate::certificates::{Authority, listen};
use crate::doorward::{all_are, ask, ask_at, configure};
use crate::host::Host;
use crate::http::{Connection, Failure, Target};
use crate::wait::{SOON, wait_for};

crate::stories!(install:
    the_packaged_daemon_is_scraped_and_a_renewal_is_seen,
    a_scrape_never_starts_a_daemon_that_was_stopped,
);

fn open(host: &Host) -> Result<()> {
    host.say("systemctl enable doorward-metrics.socket && systemctl restart doorward.service")?;
    Ok(())
}

fn scrape(host: &Host) -> Result<String> {
    let answer = ask_at(host, &Target::local(9180), "/metrics")?;
    ensure!(
        answer.status == 200
            && answer.field("content-type").is_some_and(|kind| kind.starts_with("application/openmetrics-text"))
    );
    let text = String::from_utf8(answer.body)?;
    ensure!(text.ends_with("\n# EOF\n"), "{text}");
    Ok(text)
}

/// The value of the one sample whose name and labels begin so.
fn value(metrics: &str, series: &str) -> Result<f64> {
    let line =
        metrics.lines().find(|line| line.starts_with(series)).with_context(|| format!("no {series} in {metrics}"))?;
    Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
}

const EXPIRY: &str = "doorward_certificate_expiry_timestamp_seconds{shown_to=\"clients\",names=\"localhost\"";

fn the_packaged_daemon_is_scraped_and_a_renewal_is_seen(host: &Host) -> Result<()> {
    let authority = Authority::new()?;
    let renew = |serial, days| {
        let (certificate, key) = authority.issue(serial, days)?;
        host.put("/etc/doorward/tls/site.crt", certificate)?;
        host.put("/etc/doorward/tls/site.key", key)?;
        host.say("chown -R root:doorward /etc/doorward/tls && chmod 0640 /etc/doorward/tls/* && chmod 0750 /etc/doorward/tls")?;
        anyhow::Ok(())
    };
    renew(1, 10)?;
    configure(host, "TLS_CERTIFICATE=/etc/doorward/tls\nBACKEND_ADDRESS=builtin:echo\n")?;
    listen(host)?;
    let closed = host.in_network(|| Ok(Connection::open(&Target::local(9180)).err()))?;
    ensure!(closed == Some(Failure::Refused), "nobody has asked for metrics: {closed:?}");
    open(host)?;
    ensure!(host.say("ss -ltnpH 'sport = :9180'")?.contains("\"systemd\",pid=1,"), "systemd holds it");

    let before = scrape(host)?;
    ensure!(ask(host, "/counted")?.status == 200);
    wait_for("the request to be counted", SOON, || {
        Ok(value(&scrape(host)?, "doorward_requests_total{code=\"2xx\"}")? == 1.0)
    })?;
    ensure!(value(&before, "doorward_requests_total{code=\"2xx\"}")? == 0.0);
    ensure!(value(&before, "doorward_backend_up{route=\"default\",backend=\"builtin:echo\"}")? == 1.0);

    let expiry = value(&before, EXPIRY)?;
    let now: f64 = host.say("date +%s")?.parse()?;
    ensure!(((expiry - now) / 86_400.0).floor() == 10.0, "{expiry} at {now}");
    renew(2, 90)?;
    wait_for("the renewal to be seen", SOON, || Ok(value(&scrape(host)?, EXPIRY)? > expiry + 79.0 * 86_400.0))?;
    ensure!(value(&scrape(host)?, "doorward_config_generation")? == 1.0, "nobody has reloaded");
    Ok(())
}

fn a_scrape_never_starts_a_daemon_that_was_stopped(host: &Host) -> Result<()> {
    open(host)?;
    scrape(host)?;
    let sockets = ["doorward-metrics.socket", "doorward-admin.socket"];
    // It survives what the service does.
    host.say("systemctl restart doorward.service")?;
    all_are(host, &sockets, "active")?;
    scrape(host)?;
    host.say("systemctl stop doorward.service")?;
    all_are(host, &sockets, "inactive")?;
    all_are(host, &["doorward.socket"], "active")?;
    let refused = host.in_network(|| Ok(Connection::open(&Target::local(9180)).err()))?;
    ensure!(refused == Some(Failure::Refused), "{refused:?}");
    all_are(host, &["doorward.service"], "inactive")?;
    // A client does start it, and the metrics come along.
    ensure!(ask(host, "/wake")?.status == 200);
    all_are(host, &sockets, "active")?;
    scrape(host)?;
    host.say("systemctl disable --now doorward-metrics.socket && systemctl restart doorward.service")?;
    let gone = host.in_network(|| Ok(Connection::open(&Target::local(9180)).err()))?;
    ensure!(gone == Some(Failure::Refused), "{gone:?}");
    Ok(())
}

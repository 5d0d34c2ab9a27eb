//! What doorward says: records, events, their explanations, and its status.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::doorward::{ask, configure, records, restart_with, show};
use crate::host::Host;
use crate::wait::{SOON, wait_for};

crate::stories!(install:
    a_failed_request_is_found_by_its_status,
    each_event_is_explained_by_the_catalog,
    the_status_line_lives,
);

fn a_failed_request_is_found_by_its_status(host: &Host) -> Result<()> {
    restart_with(host, "BACKEND_ADDRESS=127.0.0.1:1\nMAX_RETRIES=1\n")?;
    ensure!(ask(host, "/lost?secret=1")?.status == 502);
    let mut found = Vec::new();
    wait_for("the record", SOON, || {
        found = records(host, "STATUS=502")?;
        Ok(!found.is_empty())
    })?;
    ensure!(found.len() == 1, "{found:?}");
    let record = &found[0];
    let field = |name: &str| {
        let value = record.get(name).and_then(Value::as_str);
        value.with_context(|| format!("no {name} in {record:#}"))
    };
    ensure!(field("METHOD")? == "GET");
    ensure!(field("PATH")?.starts_with("/lost"), "{record:#}");
    ensure!(field("BACKEND")?.contains("127.0.0.1:1"), "{record:#}");
    ensure!(field("ATTEMPTS")? == "2", "{record:#}");
    ensure!(field("REASON")? == "backend_connect_refused", "{record:#}");
    ensure!(field("CLIENT")?.starts_with("127.0.0.1"), "{record:#}");
    field("DURATION_US")?.parse::<u64>()?;
    field("BYTES_OUT")?.parse::<u64>()?;
    ensure!(!field("REQUEST_ID")?.is_empty());
    ensure!(field("_SYSTEMD_UNIT")? == "doorward.service");
    ensure!(field("SYSLOG_IDENTIFIER")? == "doorward");

    // Only errors by default; every request when asked.
    restart_with(host, "BACKEND_ADDRESS=builtin:echo\n")?;
    ask(host, "/quiet")?;
    configure(host, "BACKEND_ADDRESS=builtin:echo\nACCESS_LOG=on\n")?;
    host.say("systemctl reload doorward")?;
    ask(host, "/loud")?;
    wait_for("the record of a success", SOON, || Ok(records(host, "STATUS=200 PATH=/loud")?.len() == 1))?;
    ensure!(records(host, "PATH=/quiet")?.is_empty());
    Ok(())
}

fn each_event_is_explained_by_the_catalog(host: &Host) -> Result<()> {
    // Some events of a daemon's life: start, reload, refused reload, stop.
    host.say("systemctl reload doorward")?;
    configure(host, "NO_KEY=1\n")?;
    host.run("systemctl reload doorward")?.failed()?;
    configure(host, "BACKEND_ADDRESS=builtin:echo\n")?;
    host.say("systemctl restart doorward")?;
    let events: Vec<Value> = records(host, "_UID=$(id -u doorward)")?
        .into_iter()
        .filter(|record| record.get("MESSAGE_ID").is_some())
        .collect();
    ensure!(events.len() >= 4, "{events:#?}");
    for event in &events {
        let id = event["MESSAGE_ID"].as_str().unwrap_or_default();
        let known = host.run(&format!("journalctl --dump-catalog {id}"))?;
        ensure!(known.success() && known.stdout.contains("Subject:"), "{event:#}\n{known}");
    }
    // Every id that the package explains is explained to an operator.
    let explained = host.say("journalctl -x -u doorward --no-pager")?;
    ensure!(explained.contains("░░ Subject:"), "{explained}");
    ensure!(explained.contains("░░ Documentation: man:doorward(8)"), "{explained}");
    Ok(())
}

fn the_status_line_lives(host: &Host) -> Result<()> {
    let first = show(host, "doorward.service", "StatusText")?;
    ensure!(first.contains("in flight"), "{first}");
    let status = host.say("systemctl status doorward --no-pager")?;
    ensure!(status.contains(&format!("Status: \"{first}\"")), "{status}");
    // It tells of traffic, within its second.
    wait_for("the status line to change", SOON, || {
        ask(host, "/")?;
        Ok(show(host, "doorward.service", "StatusText")? != first)
    })
}

//! The units' quality: no complaint of systemd's, the figures, and a daemon that
//! works inside both sandboxes.

use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::backend::{Backend, HELD, large};
use crate::doorward::{
    PROGRAM, answer_of, ask, ask_slowly, configure, front, main_pid, next_version, records, restart_with,
};
use crate::host::Host;
use crate::http::Connection;
use crate::load::Load;
use crate::wait::{SOON, wait_for};

crate::stories!(install:
    systemd_finds_no_fault_with_the_units,
    the_sandbox_executes_doorward_alone_also_one_that_dpkg_has_put_in_its_place,
    the_sandbox_without_a_network_serves_unix_backends,
    five_hundred_downloads_at_once_run_well_inside_the_sandbox,
);

/// Downloads at once: many more than there are pipes to splice them through.
const DOWNLOADS: usize = 500;

/// The exposure that `systemd-analyze security` works out, in tenths.
fn exposure(host: &Host, unit: &str) -> Result<u32> {
    let report = host.say(&format!("systemd-analyze security --no-pager {unit}"))?;
    let last = report.lines().last().unwrap_or_default().to_owned();
    println!("systemd {}: {last}", host.suite().systemd());
    let figure = last
        .rsplit_once(&format!("{unit}: "))
        .and_then(|(_, rest)| rest.split(' ').next())
        .with_context(|| format!("no figure in `{last}`"))?;
    figure.replace('.', "").parse().context(last)
}

fn systemd_finds_no_fault_with_the_units(host: &Host) -> Result<()> {
    host.put("/etc/doorward/blue/config.env", "BACKEND_ADDRESS=builtin:echo\n")?;
    let units = "doorward.service doorward.socket doorward-admin.socket \
                 doorward@blue.service doorward@blue.socket doorward-admin@blue.socket";
    let verify = host.run(&format!("systemd-analyze verify --man=no {units}"))?.ok()?;
    let complaints: Vec<&str> =
        verify.stderr.lines().chain(verify.stdout.lines()).filter(|line| line.contains("doorward")).collect();
    ensure!(complaints.is_empty(), "{complaints:#?}");
    let shipped = host.say("dpkg -L doorward | grep -c '^/usr/lib/systemd/system/\\|^/lib/systemd/system/'")?;
    ensure!(shipped.parse::<u32>()? >= 6, "{shipped} unit files");
    for unit in ["doorward.service", "doorward@blue.service"] {
        let tenths = exposure(host, unit)?;
        ensure!(tenths <= 11, "{unit}: {tenths} tenths");
    }
    Ok(())
}

fn the_sandbox_executes_doorward_alone_also_one_that_dpkg_has_put_in_its_place(host: &Host) -> Result<()> {
    let pid = main_pid(host)?;
    let inside = |command: &str| host.run(&format!("nsenter -t {pid} -m {command}"));
    let file = format!("stat -c %i {PROGRAM}");
    for program in ["/usr/bin/doorward", PROGRAM] {
        inside(&format!("{program} --version"))?.ok()?;
    }
    let first = inside(&file)?;
    ensure!(first.code == 126 && first.stderr.contains("Permission denied"), "it executes others: {first}");

    let old = host.say(&file)?;
    let next = next_version(host)?;
    host.say(&format!("dpkg --unpack {next}"))?;
    ensure!(host.say(&file)? != old, "dpkg has written into the file that runs");
    ensure!(main_pid(host)? == pid, "it was restarted");
    for program in ["/usr/bin/doorward", PROGRAM] {
        inside(&format!("{program} --version"))?.ok()?;
    }
    Ok(())
}

fn the_sandbox_without_a_network_serves_unix_backends(host: &Host) -> Result<()> {
    let example = host.say("dpkg -L doorward | grep unix-backends-only.conf")?;
    host.say(&format!(
        "mkdir -p /etc/systemd/system/doorward.service.d && \
         cp {example} /etc/systemd/system/doorward.service.d/ && systemctl daemon-reload"
    ))?;
    let backend = Backend::unix(&host.path("/run/backend.sock"))?;
    host.say("chmod 666 /run/backend.sock")?;
    let unix = "BACKEND_ADDRESS=unix:/run/backend.sock\nACCESS_LOG=on\n";
    restart_with(host, unix)?;
    let tenths = exposure(host, "doorward.service")?;
    ensure!(tenths <= 3, "{tenths} tenths");

    let pid = main_pid(host)?;
    let own = host.say(&format!("readlink /proc/{pid}/ns/net"))?;
    ensure!(own != host.say("readlink /proc/1/ns/net")?, "it has the host's network");
    ensure!(ask(host, "/in-a-box")?.body == b"backend saw /in-a-box\n");
    wait_for("the record", SOON, || Ok(records(host, "STATUS=200 PATH=/in-a-box")?.len() == 1))?;
    host.say("doorward status")?;

    // All that life with systemd asks: reload good and bad, upgrade, restart under load, drain.
    let slow = ask_slowly(host, "/held")?;
    backend.holds(1)?;
    let load = Load::start(host, &front(), 4)?;
    host.say("systemctl reload doorward")?;
    configure(host, "NO_KEY=1\n")?;
    host.run("systemctl reload doorward")?.failed()?;
    configure(host, unix)?;
    host.say("doorward upgrade")?;
    load.goes_on()?;
    backend.release();
    host.say("systemctl restart doorward")?;
    load.goes_on()?;
    let tally = load.stop();
    println!("restart without a network: {tally}");
    tally.lost_nothing()?;
    ensure!(answer_of(slow)?.body == HELD.as_bytes());

    // What it cannot reach is answered, not hung.
    configure(host, "BACKEND_ADDRESS=127.0.0.1:1\nMAX_RETRIES=0\n")?;
    host.say("systemctl reload doorward")?;
    let status = ask(host, "/tcp")?.status;
    ensure!(status == 502 || status == 503, "{status}");
    Ok(())
}

fn five_hundred_downloads_at_once_run_well_inside_the_sandbox(host: &Host) -> Result<()> {
    let backend = Backend::tcp(host)?;
    // More than the backend's backlog takes come at once: some have to knock again.
    restart_with(host, &format!("BACKEND_ADDRESS=127.0.0.1:{}\nCONNECT_TIMEOUT=30s\n", backend.port))?;
    let mut clients = host.in_network(|| {
        let open = |_| Ok(Connection::open(&front())?);
        (0..DOWNLOADS).map(open).collect::<Result<Vec<_>>>()
    })?;
    // All have asked before the first one reads.
    for client in &mut clients {
        client.send("/large")?;
    }
    let body = large();
    let read = |clients: &mut [Connection]| {
        clients.iter_mut().try_for_each(|client| {
            let answer = client.receive()?;
            ensure!(answer.status == 200 && answer.body == body, "{} with {} bytes", answer.status, answer.body.len());
            Ok(())
        })
    };
    thread::scope(|scope| {
        let readers: Vec<_> = clients.chunks_mut(DOWNLOADS / 10).map(|part| scope.spawn(|| read(part))).collect();
        readers.into_iter().try_for_each(|reader| reader.join().map_err(|_| anyhow!("a reader panicked"))?)
    })?;
    let status: Value = serde_json::from_str(&host.say("doorward status --json")?)?;
    let spliced = status["bytes_spliced"].as_u64().context("no count of spliced bytes")?;
    println!("{DOWNLOADS} downloads of {} bytes at once: {spliced} bytes spliced", body.len());
    ensure!(spliced > 0, "none was spliced");
    Ok(())
}

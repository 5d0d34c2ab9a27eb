//! What goes wrong: a bad file at start, crashes, a stuck worker, a frozen log.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use ::doorward::telemetry::{events::LOG_DROPPED, log::QUEUE};

use crate::backend::Backend;
use crate::doorward::{
    all_are, answer_of, ask, ask_slowly, configure, drop_in, front, log, main_pid, records, restart_with, show, shows,
};
use crate::host::Host;
use crate::load::Load;
use crate::wait::{SOON, wait_for};

crate::stories!(install:
    a_bad_file_at_start_keeps_clients_waiting_until_it_is_mended,
    killing_the_daemon_under_load_refuses_nobody,
    the_watchdog_restarts_a_daemon_with_one_stuck_worker,
    a_frozen_journald_slows_no_request,
);

fn a_bad_file_at_start_keeps_clients_waiting_until_it_is_mended(host: &Host) -> Result<()> {
    host.say("systemctl stop doorward.service")?;
    configure(host, "BACKEND_ADDRESS=builtin:echo\nMAX_RETRIES=many\n")?;
    let client = ask_slowly(host, "/patient")?;
    // More failures than systemd's usual limits allow (five in ten seconds).
    wait_for("eight failed starts", SOON, || {
        let restarts: u32 = show(host, "doorward.service", "NRestarts")?.parse()?;
        Ok(restarts >= 8)
    })?;
    all_are(host, &["doorward.socket"], "active")?;
    // Systemd forgets the last exit code while the next attempt runs.
    shows(host, "doorward.service", "ExecMainStatus", "78")?;
    let log = log(host)?;
    ensure!(log.contains("/etc/doorward/config.env:2"), "{log}");
    ensure!(log.contains("MAX_RETRIES"), "{log}");
    ensure!(!client.is_finished(), "nobody could have answered");

    configure(host, "BACKEND_ADDRESS=builtin:echo\nMAX_RETRIES=2\n")?;
    ensure!(answer_of(client)?.status == 200);
    all_are(host, &["doorward.service"], "active")
}

fn killing_the_daemon_under_load_refuses_nobody(host: &Host) -> Result<()> {
    let load = Load::start(host, &front(), 8)?;
    for _ in 0..4 {
        let pid = main_pid(host)?;
        host.say("systemctl kill -s KILL doorward.service")?;
        load.goes_on()?;
        ensure!(main_pid(host)? != pid, "it was not killed");
    }
    let tally = load.stop();
    println!("kill -9: {tally}");
    // What was in flight is cut; whoever came later waited.
    ensure!(tally.refused == 0 && tally.stalled == 0 && tally.failed == 0, "{tally}");
    ensure!(tally.other.is_empty(), "{tally}");
    all_are(host, &["doorward.socket", "doorward.service"], "active")
}

/// The threads of a process whose names begin with `name`: number and name.
fn threads(pid: u32, name: &str) -> Result<Vec<(i32, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        let comm = fs::read_to_string(entry.path().join("comm"))?;
        if comm.starts_with(name) {
            let tid = entry.file_name().to_string_lossy().parse()?;
            found.push((tid, comm.trim().to_owned()));
        }
    }
    found.sort_by(|one, other| one.1.cmp(&other.1));
    Ok(found)
}

fn the_watchdog_restarts_a_daemon_with_one_stuck_worker(host: &Host) -> Result<()> {
    drop_in(host, "doorward.service", "[Service]\nWatchdogSec=2s\n")?;
    restart_with(host, "WORKERS=3\n")?;
    let inner = main_pid(host)?;
    let outer = host.outer_pid(inner)?;
    let workers = threads(outer, "doorward-w")?;
    ensure!(workers.len() == 3, "{workers:?}");

    // One of three stops; the others, and the control thread, go on.
    let stuck = Pid::from_raw(workers[1].0);
    ptrace::seize(stuck, ptrace::Options::empty()).context("ptrace is not possible here")?;
    ptrace::interrupt(stuck)?;
    wait_for("systemd to replace the daemon", SOON, || {
        // The tracer must fetch the thread's end, or the process never ends.
        let state = waitpid(stuck, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
        ensure!(!matches!(state, Ok(WaitStatus::Continued(_))), "it ran on");
        let now = main_pid(host)?;
        Ok(now != 0 && now != inner && show(host, "doorward.service", "SubState")? == "running")
    })?;
    let said = log(host)?;
    ensure!(said.contains("Watchdog timeout"), "{said}");
    ensure!(said.contains("Failed with result 'watchdog'"), "{said}");
    all_are(host, &["doorward.socket", "doorward.service"], "active")?;
    for _ in 0..20 {
        ensure!(ask(host, "/after")?.status == 200);
    }
    ensure!(show(host, "doorward.service", "NRestarts")? == "1", "once is enough");
    Ok(())
}

fn a_frozen_journald_slows_no_request(host: &Host) -> Result<()> {
    let backend = Backend::tcp(host)?;
    restart_with(host, &format!("BACKEND_ADDRESS=127.0.0.1:{}\nACCESS_LOG=on\n", backend.port))?;
    let journald = show(host, "systemd-journald.service", "MainPID")?;
    let load = Load::start(host, &front(), 8)?;
    host.say(&format!("kill -STOP {journald}"))?;
    // Far more records than the journal's socket (about 280) and the daemon's queue
    // take: a request that waited for the log would never be answered.
    let enough = QUEUE / 200 + 10;
    let answered = (0..enough).try_for_each(|_| load.goes_on());
    host.say(&format!("kill -CONT {journald}"))?;
    answered?;
    let tally = load.stop();
    println!("frozen journald: {tally}");
    tally.lost_nothing()?;

    // The log goes on afterwards, and says what it lost.
    wait_for("the log to go on", SOON, || {
        ask(host, "/after-the-thaw")?;
        Ok(!records(host, "PATH=/after-the-thaw")?.is_empty())
    })?;
    wait_for(
        "the count of what was lost",
        SOON,
        || Ok(!records(host, &format!("MESSAGE_ID={LOG_DROPPED}"))?.is_empty()),
    )
}

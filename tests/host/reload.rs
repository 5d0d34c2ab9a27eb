//! Reload: all or nothing, and the command tells which.

use anyhow::{Result, ensure};

use crate::backend::{Backend, HELD};
use crate::doorward::{answer_of, ask, ask_slowly, configure, front, log, main_pid, restart_with, show, shows};
use crate::host::Host;
use crate::load::Load;
use crate::wait::{SOON, wait_for};

crate::stories!(install:
    a_reload_serves_the_new_configuration_when_the_command_returns,
    a_refused_reload_fails_says_why_and_keeps_the_old_configuration,
    a_reload_under_load_loses_nothing,
);

fn a_reload_serves_the_new_configuration_when_the_command_returns(host: &Host) -> Result<()> {
    let backend = Backend::tcp(host)?;
    let pid = main_pid(host)?;
    // Again and again: an early return would be a race.
    for turn in 0..10 {
        configure(host, &format!("BACKEND_ADDRESS=127.0.0.1:{}\n", backend.port))?;
        host.say("systemctl reload doorward")?;
        let body = ask(host, "/turn")?.body;
        ensure!(body == b"backend saw /turn\n", "turn {turn}: still the old backend");
        configure(host, "BACKEND_ADDRESS=builtin:echo\n")?;
        host.say("systemctl reload doorward")?;
        let body = ask(host, "/turn")?.body;
        ensure!(!body.starts_with(b"backend saw"), "turn {turn}: still the old backend");
    }
    ensure!(main_pid(host)? == pid, "a reload must not restart the daemon");
    // The daemon's own command does the same, and says what serves.
    configure(host, &format!("BACKEND_ADDRESS=127.0.0.1:{}\n", backend.port))?;
    host.say("doorward reload")?;
    ensure!(ask(host, "/own")?.body == b"backend saw /own\n");
    // So does the bare signal, without an answer.
    configure(host, "BACKEND_ADDRESS=builtin:echo\n")?;
    host.say("systemctl kill -s HUP --kill-whom=main doorward")?;
    wait_for("the signal to reload", SOON, || Ok(!ask(host, "/signal")?.body.starts_with(b"backend saw")))
}

fn a_refused_reload_fails_says_why_and_keeps_the_old_configuration(host: &Host) -> Result<()> {
    let backend = Backend::tcp(host)?;
    let good = format!("BACKEND_ADDRESS=127.0.0.1:{}\n", backend.port);
    restart_with(host, &good)?;
    let pid = main_pid(host)?;

    configure(host, "BACKEND_ADDRESS=builtin:echo\nCONECT_TIMEOUT=3s\n")?;
    let reload = host.run("systemctl reload doorward")?.failed()?;
    ensure!(reload.stderr.contains("doorward.service"), "{reload}");
    for problem in ["/etc/doorward/config.env:2", "CONECT_TIMEOUT", "CONNECT_TIMEOUT"] {
        let log = log(host)?;
        ensure!(log.contains(problem), "no {problem} in:\n{log}");
    }
    let own = host.run("doorward reload")?.failed()?;
    ensure!(own.stderr.contains("/etc/doorward/config.env:2"), "{own}");
    ensure!(ask(host, "/old")?.body == b"backend saw /old\n");
    ensure!(main_pid(host)? == pid);
    shows(host, "doorward.service", "ActiveState", "active")?;
    shows(host, "doorward.service", "SubState", "running")?;
    wait_for("the status to tell of the refusal", SOON, || {
        let status = show(host, "doorward.service", "StatusText")?;
        Ok(status.contains("refused") || status.contains("rejected"))
    })?;

    configure(host, &good)?;
    host.say("systemctl reload doorward")?;
    wait_for("the status to forget the refusal", SOON, || {
        let status = show(host, "doorward.service", "StatusText")?;
        Ok(!status.contains("refused") && !status.contains("rejected"))
    })
}

fn a_reload_under_load_loses_nothing(host: &Host) -> Result<()> {
    let backend = Backend::tcp(host)?;
    let text = format!("BACKEND_ADDRESS=127.0.0.1:{}\n", backend.port);
    restart_with(host, &text)?;
    let slow = ask_slowly(host, "/held")?;
    backend.holds(1)?;
    let load = Load::start(host, &front(), 8)?;
    for limit in [100, 2000, 50] {
        configure(host, &format!("{text}MAX_CONCURRENT_REQUESTS={limit}\n"))?;
        host.say("systemctl reload doorward")?;
        load.goes_on()?;
    }
    configure(host, "NO_KEY=1\n")?;
    host.run("systemctl reload doorward")?.failed()?;
    load.goes_on()?;
    let tally = load.stop();
    println!("reload: {tally}");
    tally.lost_nothing()?;
    backend.release();
    ensure!(answer_of(slow)?.body == HELD.as_bytes());
    Ok(())
}

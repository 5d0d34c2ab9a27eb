//! The ways to stop, each under load and with a slow answer in flight.

use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

use crate::backend::{Backend, HELD};
use crate::doorward::{all_are, answer_of, ask, ask_slowly, front, restart_with, show, shows};
use crate::host::Host;
use crate::http::{Connection, Failure};
use crate::load::Load;
use crate::wait::SOON;

crate::stories!(install:
    stopping_the_service_lets_clients_wait_and_answers_all,
    stopping_the_socket_closes_the_door_after_the_last_answer,
    a_restart_under_load_loses_nothing,
    a_host_that_shuts_down_drains_before_its_network_goes,
);

/// A backend, and the daemon in front of it.
fn with_backend(host: &Host) -> Result<Backend> {
    let backend = Backend::tcp(host)?;
    restart_with(host, &format!("BACKEND_ADDRESS=127.0.0.1:{}\n", backend.port))?;
    Ok(backend)
}

/// Runs a command that stops the daemon while an answer is half sent, and lets
/// that answer finish once systemd says that the stop is under way.
fn stop_with_a_slow_answer(host: &Host, backend: &Backend, command: &str) -> Result<()> {
    let slow = ask_slowly(host, "/held")?;
    backend.holds(1)?;
    thread::scope(|scope| {
        let stop = scope.spawn(|| host.run(command));
        shows(host, "doorward.service", "ActiveState", "deactivating")?;
        let waits = show(host, "doorward.service", "SubState")?;
        backend.release();
        let stop = stop.join().map_err(|_| anyhow!("the stop panicked"))??;
        stop.ok()?;
        ensure!(waits == "stop-sigterm", "while it drained: {waits}");
        Ok(())
    })?;
    let answer = answer_of(slow).context("the slow answer was cut")?;
    ensure!(answer.body == HELD.as_bytes(), "{:?}", answer.body);
    Ok(())
}

fn stopping_the_service_lets_clients_wait_and_answers_all(host: &Host) -> Result<()> {
    let backend = with_backend(host)?;
    let load = Load::start(host, &front(), 8)?;
    stop_with_a_slow_answer(host, &backend, "systemctl stop doorward.service")?;
    // The clients that waited started it again.
    load.goes_on()?;
    let tally = load.stop();
    println!("stop of the service: {tally}");
    tally.lost_nothing()?;

    // Without clients it stays stopped, and ended well.
    host.say("systemctl stop doorward.service")?;
    all_are(host, &["doorward.service"], "inactive")?;
    all_are(host, &["doorward.socket"], "active")?;
    ensure!(show(host, "doorward.service", "Result")? == "success");
    ensure!(show(host, "doorward.service", "ExecMainStatus")? == "0");
    Ok(())
}

fn stopping_the_socket_closes_the_door_after_the_last_answer(host: &Host) -> Result<()> {
    let backend = with_backend(host)?;
    stop_with_a_slow_answer(host, &backend, "systemctl stop doorward.socket")?;
    let units = ["doorward.socket", "doorward.service", "doorward-admin.socket"];
    all_are(host, &units, "inactive")?;
    let knock = || host.in_network(|| Ok(Connection::open(&front()).err()));
    ensure!(knock()? == Some(Failure::Refused));

    // Under load it stays closed too: no client starts the daemon again.
    host.say("systemctl start doorward.socket doorward.service")?;
    let load = Load::start(host, &front(), 8)?;
    host.say("systemctl stop doorward.socket")?;
    all_are(host, &units, "inactive")?;
    let tally = load.stop();
    println!("stop of the socket: {tally}");
    ensure!(tally.stalled == 0 && tally.failed == 0, "{tally}");
    all_are(host, &units, "inactive")?;
    ensure!(knock()? == Some(Failure::Refused));

    host.say("systemctl start doorward.socket")?;
    ensure!(ask(host, "/again")?.status == 200);
    Ok(())
}

fn a_restart_under_load_loses_nothing(host: &Host) -> Result<()> {
    let backend = with_backend(host)?;
    let load = Load::start(host, &front(), 8)?;
    stop_with_a_slow_answer(host, &backend, "systemctl restart doorward.service")?;
    for _ in 0..2 {
        load.goes_on()?;
        host.say("systemctl restart doorward.service")?;
    }
    load.goes_on()?;
    let tally = load.stop();
    println!("restart: {tally}");
    tally.lost_nothing()
}

fn a_host_that_shuts_down_drains_before_its_network_goes(host: &Host) -> Result<()> {
    let backend = with_backend(host)?;
    // A network that really goes: this unit is ordered like any that brings one up.
    host.put(
        "/etc/systemd/system/network-goes.service",
        "[Unit]\nBefore=network.target\nWants=network.target\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n\
         ExecStop=/usr/bin/ip link set lo down\n",
    )?;
    host.say("systemctl daemon-reload && systemctl start network-goes.service")?;
    let slow = ask_slowly(host, "/held")?;
    backend.holds(1)?;
    host.power_off()?;
    shows(host, "doorward.service", "ActiveState", "deactivating")?;
    // The door is closed only behind the last answer, and the network after that.
    let links = host.say("ip -o link show lo")?;
    ensure!(links.contains(",UP"), "{links}");
    all_are(host, &["network-goes.service", "doorward.socket"], "active")?;
    backend.release();
    let answer = answer_of(slow).context("the shutdown cut an answer")?;
    ensure!(answer.body == HELD.as_bytes(), "{:?}", answer.body);
    host.gone(SOON)
}

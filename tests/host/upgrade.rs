//! Upgrades: another process takes over, on demand and when apt brings a new version, and
//! what becomes of clients when that goes wrong.

use std::thread::{self, JoinHandle};
use std::time::Instant;

use ::doorward::telemetry::events::{DRAIN_CUT, HANDED_OVER, SUCCESSOR_DIED, TOOK_OVER};
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::backend::{Backend, HELD};
use crate::doorward::{
    PACKAGE, PROGRAM, all_are, answer_of, apt_install, ask, ask_at, ask_slowly, configure, drop_in, front, log,
    main_pid, next_version, other_settings, records, restart_with, show, shows, socket_identity,
};
use crate::host::Host;
use crate::http::{Answer, Connection, Failure, Target};
use crate::load::Load;
use crate::wait::{SOON, wait_for};

crate::stories!(install:
    another_process_serves_while_the_one_before_finishes_what_it_has,
    a_new_version_takes_over_instances_too_and_no_socket_is_restarted,
    what_is_started_otherwise_now_is_restarted_by_a_new_version,
    an_upgrade_that_can_not_serve_changes_nothing,
    the_death_of_the_new_process_refuses_nobody,
    a_stop_waits_for_the_process_before_too,
    what_is_under_way_lives_on_until_somebody_waits_for_its_end,
    metrics_are_had_from_the_new_process,
);

/// The service's processes: one, or two while one drains.
fn processes(host: &Host) -> Result<Vec<u32>> {
    let pids = host.say("cat /sys/fs/cgroup/system.slice/doorward.service/cgroup.procs")?;
    pids.lines().map(|pid| Ok(pid.parse()?)).collect()
}

/// Waits until only the main process is left.
fn alone(host: &Host) -> Result<()> {
    let pid = main_pid(host)?;
    wait_for("the process before to end", SOON, || Ok(processes(host)? == [pid]))
}

/// `doorward upgrade`; the process that took over.
fn upgrade(host: &Host) -> Result<u32> {
    let before = main_pid(host)?;
    let said = host.say("doorward upgrade")?;
    let now = main_pid(host)?;
    let wanted = format!("upgraded: process {now} (");
    ensure!(said.starts_with(&wanted) && said.contains(&format!(" has taken over from {before} (")), "{said}");
    ensure!(now != before, "the old process is still the main one");
    Ok(now)
}

/// The daemon's own word on its state.
fn status(host: &Host) -> Result<Value> {
    Ok(serde_json::from_str(&host.say("doorward status --json")?)?)
}

/// What tells one run of a unit from the next: it stays the same in an upgrade.
fn run_of(host: &Host, unit: &str) -> Result<String> {
    Ok(format!("{} since {}", show(host, unit, "InvocationID")?, show(host, unit, "ActiveEnterTimestampMonotonic")?))
}

/// A backend that the daemon is in front of, and an answer of its that is half sent.
fn with_a_slow_answer(host: &Host) -> Result<(Backend, JoinHandle<Result<Answer>>)> {
    let backend = Backend::tcp(host)?;
    restart_with(host, &format!("BACKEND_ADDRESS=127.0.0.1:{}\n", backend.port))?;
    let slow = ask_slowly(host, "/held")?;
    backend.holds(1)?;
    Ok((backend, slow))
}

/// Lets the slow answer end, which must be whole.
fn finish(backend: &Backend, slow: JoinHandle<Result<Answer>>) -> Result<()> {
    backend.release();
    let answer = answer_of(slow).context("the slow answer was cut")?;
    ensure!(answer.body == HELD.as_bytes(), "{:?}", answer.body);
    Ok(())
}

fn another_process_serves_while_the_one_before_finishes_what_it_has(host: &Host) -> Result<()> {
    drop_in(host, "doorward.service", "[Service]\nWatchdogSec=4s\n")?;
    let (backend, slow) = with_a_slow_answer(host)?;
    let (before, run, socket) = (main_pid(host)?, run_of(host, "doorward.service")?, socket_identity(host)?);
    let load = Load::start(host, &front(), 8)?;
    let now = upgrade(host)?;
    // The slow answer is held still, so none of these has waited for it.
    load.goes_on()?;
    ensure!(processes(host)?.contains(&before) && !slow.is_finished(), "the process before is gone");
    for _ in 0..10 {
        let status = status(host)?;
        ensure!(status["pid"] == now && status["predecessor"] == before, "{status:#}");
    }
    ensure!(host.say(&format!("ps -o ppid= -p {now}"))?.trim() == "1", "systemd would not see its end");
    ensure!(host.say(&format!("readlink /proc/{now}/exe"))? == PROGRAM);
    finish(&backend, slow)?;
    alone(host)?;

    // To systemd it is the same run of the same service, and all of its life goes on.
    ensure!(run_of(host, "doorward.service")? == run, "it was restarted");
    let page = host.say("systemctl status doorward --no-pager")?;
    ensure!(page.contains(&format!("Main PID: {now} (doorward)")), "{page}");
    let tells = |id: &str, pid| Ok::<_, anyhow::Error>(records(host, &format!("MESSAGE_ID={id} _PID={pid}"))?.len());
    ensure!(tells(HANDED_OVER, before)? == 1 && tells(TOOK_OVER, now)? == 1, "{}", log(host)?);
    let fed = show(host, "doorward.service", "WatchdogTimestampMonotonic")?;
    wait_for("the watchdog to be fed", SOON, || {
        Ok(show(host, "doorward.service", "WatchdogTimestampMonotonic")? != fed)
    })?;
    let line = show(host, "doorward.service", "StatusText")?;
    wait_for("the status line to go on", SOON, || Ok(show(host, "doorward.service", "StatusText")? != line))?;
    let other = Backend::tcp(host)?;
    configure(host, &format!("BACKEND_ADDRESS=127.0.0.1:{}\nACCESS_LOG=on\n", other.port))?;
    host.say("systemctl reload doorward")?;
    ensure!(ask(host, "/recorded")?.body == b"backend saw /recorded\n");
    wait_for("its record", SOON, || Ok(records(host, &format!("PATH=/recorded _PID={now}"))?.len() == 1))?;

    // Once more, by the signal.
    host.say("systemctl kill -s USR2 --kill-whom=main doorward")?;
    wait_for("the next process", SOON, || Ok(main_pid(host)? != now))?;
    load.goes_on()?;
    alone(host)?;
    let tally = load.stop();
    println!("upgrade: {tally}");
    tally.lost_nothing()?;
    ensure!(run_of(host, "doorward.service")? == run, "it was restarted");
    ensure!(show(host, "doorward.service", "NRestarts")? == "0");
    ensure!(socket_identity(host)? == socket, "the socket was restarted");
    Ok(())
}

fn a_new_version_takes_over_instances_too_and_no_socket_is_restarted(host: &Host) -> Result<()> {
    host.put("/etc/doorward/blue/config.env", "BACKEND_ADDRESS=builtin:echo\n")?;
    host.say("systemctl enable --now doorward@blue.socket doorward@blue.service")?;
    let blue = Target::Unix(host.path("/run/doorward-blue/http.sock"));
    let (backend, slow) = with_a_slow_answer(host)?;
    let units = ["doorward.service", "doorward@blue.service"];
    let state = || {
        let mut state = vec![socket_identity(host)?];
        for unit in units {
            state.push(run_of(host, unit)?);
        }
        anyhow::Ok(state)
    };
    let pids = || units.iter().map(|unit| show(host, unit, "MainPID")).collect::<Result<Vec<_>>>();
    let (before, old) = (state()?, pids()?);
    let loads = [Load::start(host, &front(), 8)?, Load::start(host, &blue, 4)?];
    apt_install(host, next_version(host)?)?;
    ensure!(!slow.is_finished(), "apt has waited for the slow answer");
    loads.iter().try_for_each(Load::goes_on)?;
    let new = pids()?;
    ensure!(new.iter().zip(&old).all(|(new, old)| new != old), "{old:?} serve on: {new:?}");
    ensure!(state()? == before, "restarted: {before:?}, now {:?}", state()?);
    finish(&backend, slow)?;
    alone(host)?;

    // The new files are at work, and systemd has read the new units.
    ensure!(host.say("dpkg-query -Wf '${Version}' doorward")?.ends_with("+next"));
    ensure!(show(host, units[0], "NeedDaemonReload")? == "no");
    ensure!(show(host, units[0], "Description")?.ends_with("(next)"));
    let running = host.say(&format!("stat -Lc %i /proc/{}/exe {PROGRAM}", new[0]))?;
    let inodes: Vec<&str> = running.lines().collect();
    ensure!(inodes.len() == 2 && inodes[0] == inodes[1], "it runs another file than the installed one: {running}");

    // The same version once more.
    host.say("apt-get install --reinstall -y /root/next.deb")?;
    loads.iter().try_for_each(Load::goes_on)?;
    ensure!(pids()?.iter().zip(&new).all(|(now, new)| now != new));
    ensure!(state()? == before, "restarted: {before:?}, now {:?}", state()?);
    for load in loads {
        let tally = load.stop();
        println!("new version: {tally}");
        tally.lost_nothing()?;
    }
    Ok(())
}

fn what_is_started_otherwise_now_is_restarted_by_a_new_version(host: &Host) -> Result<()> {
    let (backend, slow) = with_a_slow_answer(host)?;
    let socket = socket_identity(host)?;
    let next = other_settings(host)?;
    let load = Load::start(host, &front(), 8)?;
    let run = run_of(host, "doorward.service")?;
    thread::scope(|scope| {
        let install = scope.spawn(|| apt_install(host, next));
        shows(host, "doorward.service", "ActiveState", "deactivating")?;
        backend.release();
        install.join().map_err(|_| anyhow!("apt panicked"))?
    })?;
    let answer = answer_of(slow).context("the slow answer was cut")?;
    ensure!(answer.body == HELD.as_bytes(), "{:?}", answer.body);
    load.goes_on()?;
    let second = run_of(host, "doorward.service")?;
    ensure!(second != run, "it has kept the settings of its start");

    // Nothing is different now.
    let again = format!("apt-get install --reinstall -y {next}");
    host.say(&again)?;
    ensure!(run_of(host, "doorward.service")? == second, "it was restarted without need");
    // What an admin has changed takes effect with a start, as it always did after an upgrade.
    drop_in(host, "doorward.service", "[Service]\nNice=1\n")?;
    host.say(&again)?;
    let third = run_of(host, "doorward.service")?;
    ensure!(third != second, "the drop-in has had no effect");
    host.put("/etc/systemd/system/doorward.service.d/test.conf", "[Service]\nNice=2\n")?;
    host.say(&again)?;
    let fourth = run_of(host, "doorward.service")?;
    ensure!(fourth != third, "the drop-in that systemd had not read has had no effect");
    host.say(&again)?;
    ensure!(run_of(host, "doorward.service")? == fourth, "it was restarted without need");

    // What was not restarted when its settings changed is at the next opportunity.
    host.put("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n")?;
    host.say("chmod 755 /usr/sbin/policy-rc.d")?;
    let pid = main_pid(host)?;
    host.say(&format!("dpkg -i {PACKAGE}"))?;
    ensure!(main_pid(host)? == pid, "the policy forbids it");
    host.say("rm /usr/sbin/policy-rc.d")?;
    host.say(&format!("apt-get install --reinstall -y {PACKAGE}"))?;
    ensure!(run_of(host, "doorward.service")? != fourth, "it has kept the settings of its start");

    load.goes_on()?;
    let tally = load.stop();
    println!("new version with other settings: {tally}");
    tally.lost_nothing()?;
    ensure!(socket_identity(host)? == socket, "the socket was restarted");
    Ok(())
}

fn an_upgrade_that_can_not_serve_changes_nothing(host: &Host) -> Result<()> {
    let good = "BACKEND_ADDRESS=builtin:echo\n";
    restart_with(host, good)?;
    let (pid, run) = (main_pid(host)?, run_of(host, "doorward.service")?);
    let load = Load::start(host, &front(), 8)?;
    let serves_on = || {
        load.goes_on()?;
        wait_for("the new process to be gone", SOON, || Ok(processes(host)? == [pid]))?;
        ensure!(main_pid(host)? == pid && run_of(host, "doorward.service")? == run);
        ensure!(show(host, "doorward.service", "SubState")? == "running");
        host.say("systemctl reload doorward")?;
        anyhow::Ok(())
    };
    configure(host, "BACKEND_ADDRESS=builtin:echo\nCONECT_TIMEOUT=3s\n")?;
    let refused = host.run("doorward upgrade")?.failed()?;
    ensure!(refused.code == 1 && refused.stderr.contains("/etc/doorward/config.env:2"), "{refused}");
    ensure!(refused.stderr.contains("CONNECT_TIMEOUT"), "{refused}");
    ensure!(log(host)?.contains("CONECT_TIMEOUT"));
    // A new version that refuses it leaves those clients in peace too, and apt goes on.
    let next = next_version(host)?;
    let install = host.run(&format!("apt-get install -y {next}"))?.ok()?;
    for said in ["/etc/doorward/config.env:2", "the old one serves on as doorward.service"] {
        ensure!(install.to_string().contains(said), "no `{said}`: {install}");
    }
    configure(host, good)?;
    serves_on()?;

    // Programs that are cut short, or do something else.
    host.say(&format!("cp {PROGRAM} /root/good"))?;
    let replaced = [("head -c 100000 /root/good", "can't be started"), ("cat /bin/false", "ended with exit status: 1")];
    for (program, why) in replaced {
        host.say(&format!("{program} >/root/bad; install /root/bad {PROGRAM}.new && mv {PROGRAM}.new {PROGRAM}"))?;
        let refused = host.run("/root/good upgrade")?.failed()?;
        ensure!(refused.code == 1 && refused.stderr.contains(why), "{refused}");
        let reload = host.run("/root/good reload")?;
        ensure!(reload.success(), "{reload}");
        load.goes_on()?;
    }
    host.say(&format!("install /root/good {PROGRAM}.new && mv {PROGRAM}.new {PROGRAM}"))?;
    serves_on()?;
    upgrade(host)?;
    alone(host)?;
    load.goes_on()?;
    let tally = load.stop();
    println!("upgrades that failed: {tally}");
    tally.lost_nothing()?;
    ensure!(show(host, "doorward.service", "NRestarts")? == "0");
    Ok(())
}

fn the_death_of_the_new_process_refuses_nobody(host: &Host) -> Result<()> {
    let (backend, slow) = with_a_slow_answer(host)?;
    let before = main_pid(host)?;
    let load = Load::start(host, &front(), 8)?;
    let now = upgrade(host)?;
    load.goes_on()?;
    ensure!(processes(host)?.contains(&before), "the process before is gone");
    host.say(&format!("kill -9 {now}"))?;
    wait_for("systemd to start it again", SOON, || Ok(![0, before, now].contains(&main_pid(host)?)))?;
    load.goes_on()?;
    let tally = load.stop();
    println!("kill -9 of the new process: {tally}");
    // What it had in flight is cut; whoever came later waited.
    ensure!(tally.refused == 0 && tally.stalled == 0 && tally.failed == 0, "{tally}");
    ensure!(tally.other.is_empty(), "{tally}");
    ensure!(show(host, "doorward.service", "NRestarts")? == "1");
    alone(host)?;
    // The process before could not finish what it had, or systemd would have waited for it.
    ensure!(!records(host, &format!("MESSAGE_ID={SUCCESSOR_DIED} _PID={before}"))?.is_empty(), "{}", log(host)?);
    drop(backend);
    ensure!(answer_of(slow).is_err(), "the slow answer could not have been whole");
    all_are(host, &["doorward.socket", "doorward.service", "doorward-admin.socket"], "active")
}

fn a_stop_waits_for_the_process_before_too(host: &Host) -> Result<()> {
    let (backend, slow) = with_a_slow_answer(host)?;
    let before = main_pid(host)?;
    upgrade(host)?;
    thread::scope(|scope| {
        let stop = scope.spawn(|| host.run("systemctl stop doorward.service"));
        shows(host, "doorward.service", "ActiveState", "deactivating")?;
        ensure!(processes(host)?.contains(&before) && !slow.is_finished(), "the process before is gone");
        finish(&backend, slow)?;
        stop.join().map_err(|_| anyhow!("the stop panicked"))??.ok()
    })?;
    all_are(host, &["doorward.service"], "inactive")?;
    all_are(host, &["doorward.socket"], "active")?;
    ensure!(show(host, "doorward.service", "Result")? == "success");
    ensure!(!host.run("pgrep -x doorward")?.success(), "a process is left");
    // The next client starts it again.
    ensure!(ask(host, "/again")?.status == 200);
    Ok(())
}

fn what_is_under_way_lives_on_until_somebody_waits_for_its_end(host: &Host) -> Result<()> {
    // A stop would wait for a second.
    let slow_answer = || {
        let backend = Backend::tcp(host)?;
        restart_with(host, &format!("BACKEND_ADDRESS=127.0.0.1:{}\nDRAIN_TIMEOUT=1s\n", backend.port))?;
        let slow = ask_slowly(host, "/held")?;
        backend.holds(1)?;
        anyhow::Ok((backend, slow, main_pid(host)?))
    };
    let outlives = |before: u32| {
        wait_for("three seconds to pass", SOON, || {
            let status = status(host)?;
            ensure!(status["predecessor"] == before, "the process before is gone: {status:#}");
            Ok(status["predecessor_left"].as_u64().is_some_and(|left| left <= 15 * 60 - 4))
        })
    };
    let cut = |slow: JoinHandle<Result<Answer>>, before: u32| {
        ensure!(answer_of(slow).is_err(), "the slow answer could not have been whole");
        let cut = records(host, &format!("MESSAGE_ID={DRAIN_CUT} _PID={before}"))?;
        ensure!(cut.len() == 1, "{}", log(host)?);
        ensure!(records(host, &format!("MESSAGE_ID={SUCCESSOR_DIED}"))?.is_empty(), "{}", log(host)?);
        anyhow::Ok(())
    };

    let (backend, slow, before) = slow_answer()?;
    let next = next_version(host)?;
    apt_install(host, next)?;
    outlives(before)?;
    finish(&backend, slow)?;
    alone(host)?;

    // The next version waits for the process before, and that for no longer than a stop would.
    let (backend, slow, before) = slow_answer()?;
    upgrade(host)?;
    outlives(before)?;
    host.say(&format!("apt-get install --reinstall -y {next}"))?;
    ensure!(!processes(host)?.contains(&before), "there are more than two processes");
    cut(slow, before)?;
    drop(backend);
    alone(host)?;

    // And so does a stop.
    let (backend, slow, before) = slow_answer()?;
    upgrade(host)?;
    let began = Instant::now();
    host.say("systemctl stop doorward.service")?;
    // Far from TimeoutStopSec=, after which systemd would have killed it.
    ensure!(began.elapsed() < SOON, "the stop took {:?}", began.elapsed());
    ensure!(show(host, "doorward.service", "Result")? == "success");
    cut(slow, before)?;
    drop(backend);
    Ok(())
}

fn metrics_are_had_from_the_new_process(host: &Host) -> Result<()> {
    let scrape = |port| {
        let answer = ask_at(host, &Target::local(port), "/metrics")?;
        ensure!(answer.status == 200);
        let text = String::from_utf8(answer.body)?;
        let value = text.lines().find_map(|line| line.strip_prefix("doorward_requests_total{code=\"2xx\"} "));
        Ok(value.context("no count of requests")?.parse::<f64>()?)
    };
    // A socket of its own, then systemd's.
    restart_with(host, "BACKEND_ADDRESS=builtin:echo\nMETRICS_ADDRESS=127.0.0.1:9181\n")?;
    for port in [9181, 9180] {
        ensure!(ask(host, "/counted")?.status == 200);
        wait_for("the request to be counted", SOON, || Ok(scrape(port)? > 0.0))?;
        upgrade(host)?;
        ensure!(scrape(port)? == 0.0, "the process before has answered on {port}");
        alone(host)?;
        ensure!(scrape(port)? == 0.0);
        host.say("systemctl enable doorward-metrics.socket")?;
        restart_with(host, "BACKEND_ADDRESS=builtin:echo\n")?;
    }
    let closed = host.in_network(|| Ok(Connection::open(&Target::local(9181)).err()))?;
    ensure!(closed == Some(Failure::Refused), "{closed:?}");
    Ok(())
}

//! What systemd hears of the watchdog: while every thread turns over, and while one
//! does not.

use std::fs;
use std::io::Write as _;

use nix::sys::ptrace;
use nix::unistd::Pid;
use rustix::process::Signal;

use super::daemon::{Daemon, Setting, listener};
use super::lifecycle_drain::busy_with;

/// The id of a daemon's thread with this name.
fn thread(daemon: &Daemon, name: &str) -> Pid {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let mut tasks = tasks.map(|task| task.unwrap().path());
    let found = tasks.find(|task| fs::read_to_string(task.join("comm")).unwrap().trim_end() == name);
    Pid::from_raw(found.unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap())
}

#[test]
fn the_watchdog_is_fed_while_serving_and_while_draining() {
    let mut busy = busy_with("DRAIN_TIMEOUT=1h\n", |setting| setting.set("WATCHDOG_USEC", "2000000"));
    for _ in 0..3 {
        busy.daemon.hear("WATCHDOG=1");
    }
    busy.daemon.signal(Signal::TERM);
    busy.daemon.hear("STOPPING=1");
    // The worker without a connection has ended by then: it is not taken for stuck.
    for _ in 0..3 {
        busy.daemon.hear("WATCHDOG=1");
    }
    busy.exchange.write_all(b"whole").unwrap();
    assert_eq!(busy.daemon.end().code(), Some(0));
    assert_eq!(busy.daemon.records("a worker does not turn over"), 0);
}

#[test]
fn the_watchdog_is_not_fed_while_one_worker_stands_still() {
    let (door, _address) = listener();
    let setting = Setting::new("LOG_LEVEL=debug\n").set("WATCHDOG_USEC", "2000000");
    let mut daemon = setting.pass("http", door).start().ready();
    daemon.hear("WATCHDOG=1");
    let stuck = thread(&daemon, "doorward-w1");
    // Stops this one thread and no other.
    ptrace::seize(stuck, ptrace::Options::empty()).unwrap();
    ptrace::interrupt(stuck).unwrap();
    daemon.all_heard();
    let before = daemon.heard.len();
    // The rounds go on: the control thread turns, and still systemd hears nothing.
    daemon.wait_for("waiting for a worker to turn over", 4);
    let record = daemon.record("a worker does not turn over");
    assert_eq!(record["message_id"], doorward::telemetry::events::WORKER_STUCK);
    assert_eq!((&record["worker"], daemon.records("a worker does not turn over")), (&"1".into(), 1));
    daemon.all_heard();
    let fed = daemon.heard[before..].iter().filter(|message| message.contains("WATCHDOG=1")).count();
    assert!(fed <= 1, "fed {fed} times; one round may have been answered before the stop");

    ptrace::detach(stuck, None).unwrap();
    daemon.record("every worker turns over again");
    daemon.hear("WATCHDOG=1");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end().code(), Some(0));
}

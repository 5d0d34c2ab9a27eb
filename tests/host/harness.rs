//! The harness itself: it boots what it says, and it leaves nothing behind.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::backend::{Backend, HELD};
use crate::host::{Host, Suite};
use crate::http::{self, Target};
use crate::load::Load;
use crate::wait::{SOON, wait_for};

crate::stories!(boot:
    a_host_runs_the_systemd_of_its_suite,
    clients_and_backends_live_in_the_network_of_the_host,
    a_command_keeps_its_input_its_outputs_and_its_exit_code,
);

fn a_host_runs_the_systemd_of_its_suite(host: &Host) -> Result<()> {
    let version = host.say("systemctl --version")?;
    let expected = format!("systemd {} ", host.suite().systemd());
    ensure!(version.starts_with(&expected), "{version}");
    let first = host.say("readlink /proc/1/exe")?;
    ensure!(first == "/usr/lib/systemd/systemd", "{first}");
    Ok(())
}

fn clients_and_backends_live_in_the_network_of_the_host(host: &Host) -> Result<()> {
    let backend = Backend::tcp(host)?;
    let target = Target::local(backend.port);
    let seen = host.say("ss -ltnH")?;
    ensure!(seen.contains(&format!(":{}", backend.port)), "{seen}");
    let load = Load::start(host, &target, 4)?;
    load.goes_on()?;
    load.stop().lost_nothing()?;

    let held = host.in_network(|| {
        std::thread::scope(|scope| {
            let client = scope.spawn(|| http::get(&target, "/held"));
            backend.holds(1)?;
            backend.release();
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?
        })
    })?;
    ensure!(held.body == HELD.as_bytes());

    drop(backend);
    let refused = host.in_network(|| Ok(http::Connection::open(&target).err()))?;
    ensure!(refused == Some(http::Failure::Refused), "{refused:?}");
    Ok(())
}

fn a_command_keeps_its_input_its_outputs_and_its_exit_code(host: &Host) -> Result<()> {
    let output = host.run_with("cat; echo no >&2; exit 3", b"yes")?;
    ensure!((output.code, output.stdout.as_str()) == (3, "yes"), "{output}");
    ensure!(output.stderr == "no", "{output}");
    ensure!(host.run("kill -9 $$")?.code == 137);
    host.put("/etc/some/file", "content\n")?;
    ensure!(host.say("cat /etc/some/file")? == "content");
    ensure!(fs::read(host.path("/etc/some/file"))? == b"content\n");
    Ok(())
}

/// What a host leaves on the machine while it runs.
fn traces(name: &str, leader: u32) -> Vec<String> {
    let folders = ["/run/doorward-tests", "/sys/fs/cgroup"];
    let mut found: Vec<String> = folders
        .iter()
        .chain(&["/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"])
        .map(|folder| format!("{folder}/{name}"))
        .filter(|path| Path::new(path).exists())
        .collect();
    if Path::new(&format!("/proc/{leader}")).exists() {
        found.push(format!("process {leader}"));
    }
    found
}

#[test]
#[ignore = "needs root and a built package: tests/run"]
fn a_host_leaves_nothing_behind_when_its_test_panics() -> Result<()> {
    let mut seen = None;
    let panic = catch_unwind(AssertUnwindSafe(|| -> Result<()> {
        let host = Host::boot(Suite::Trixie).unwrap_or_else(|error| panic!("{error:?}"));
        seen = Some((host.name().to_owned(), host.leader()));
        ensure!(traces(host.name(), host.leader()).len() >= 3);
        panic!("a test went wrong");
    }));
    let Some((name, leader)) = seen else {
        bail!("no host: {panic:?}");
    };
    ensure!(panic.is_err(), "{panic:?}");
    let traces = traces(&name, leader);
    ensure!(traces.is_empty(), "{traces:?}");
    Ok(())
}

#[test]
#[ignore = "needs root and a built package: tests/run"]
fn a_host_whose_keeper_was_killed_is_swept() -> Result<()> {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host");
    let root = Command::new(scripts.join("root")).arg("trixie").output()?;
    let root = String::from_utf8(root.stdout)?;
    let name = format!("dw-{}-killed", std::process::id());
    let mut keeper = Command::new(scripts.join("guest"))
        .args(["boot", &name, root.trim()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let note = format!("/run/doorward-tests/{name}/leader");
    let mut leader = None;
    wait_for("the host's leader", SOON, || {
        let text = fs::read_to_string(&note).unwrap_or_default();
        leader = text.split(' ').next().and_then(|pid| pid.parse::<u32>().ok());
        Ok(leader.is_some())
    })?;
    let leader = leader.unwrap_or_default();
    keeper.kill()?;
    keeper.wait()?;
    ensure!(traces(&name, leader).len() >= 3, "the host should live on");

    let sweep = Command::new(scripts.join("guest")).arg("sweep").status()?;
    ensure!(sweep.success());
    // The process table lets go a moment later than the kill returns.
    wait_for("the host to be swept", Duration::from_secs(10), || Ok(traces(&name, leader).is_empty()))
}

//! The package under test, and what tests ask of an installed one.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::host::{Host, Suite};
use crate::http::{self, Answer, Target};
use crate::wait::{SOON, wait_for};

/// Where a test finds the package in its host.
pub(crate) const PACKAGE: &str = "/root/doorward.deb";

/// The installed program; `/usr/bin/doorward` is a link to it.
pub(crate) const PROGRAM: &str = "/usr/libexec/doorward/doorward";

/// Runs a story on a bare host.
pub(crate) fn boot(suite: Suite, story: fn(&Host) -> Result<()>) -> Result<()> {
    tell(suite, story)
}

/// Runs a story on a host that has the package installed.
pub(crate) fn install(suite: Suite, story: fn(&Host) -> Result<()>) -> Result<()> {
    tell(suite, |host| {
        copy_package(host)?;
        apt_install(host, PACKAGE)?;
        story(host)
    })
}

/// Runs a story; when it goes wrong, says what the host looked like.
fn tell(suite: Suite, story: impl Fn(&Host) -> Result<()>) -> Result<()> {
    let host = Host::boot(suite)?;
    match catch_unwind(AssertUnwindSafe(|| story(&host))) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(anyhow!("{error:#}\n\n{}", host.evidence())),
        Err(panic) => {
            eprintln!("{}", host.evidence());
            resume_unwind(panic)
        }
    }
}

/// The package's file on the machine.
///
/// # Errors
/// `DOORWARD_DEB` names no file.
pub(crate) fn package() -> Result<PathBuf> {
    let path =
        std::env::var_os("DOORWARD_DEB").context("DOORWARD_DEB must name the package to test; tests/run sets it")?;
    let path = PathBuf::from(path);
    fs::metadata(&path).with_context(|| format!("no package at {}", path.display()))?;
    Ok(path)
}

/// Puts the package into the host.
pub(crate) fn copy_package(host: &Host) -> Result<()> {
    host.put(PACKAGE, fs::read(package()?)?)
}

/// Installs a package file of the host, offline, as a user does with apt.
pub(crate) fn apt_install(host: &Host, path: &str) -> Result<()> {
    host.run(&format!("apt-get install -y {path}"))?.ok()?;
    Ok(())
}

/// Where the package listens.
pub(crate) fn front() -> Target {
    Target::local(8080)
}

/// One request to the installed daemon, on a connection of its own.
pub(crate) fn ask(host: &Host, path: &str) -> Result<Answer> {
    ask_at(host, &front(), path)
}

/// One request to another listener in the host.
pub(crate) fn ask_at(host: &Host, target: &Target, path: &str) -> Result<Answer> {
    host.in_network(|| http::get(target, path))
}

/// A request that may wait for long, on a thread of its own.
pub(crate) fn ask_slowly(host: &Host, path: &'static str) -> Result<JoinHandle<Result<Answer>>> {
    host.in_network(move || Ok(thread::spawn(move || http::get(&front(), path))))
}

/// What became of [`ask_slowly`].
pub(crate) fn answer_of(client: JoinHandle<Result<Answer>>) -> Result<Answer> {
    client.join().map_err(|_| anyhow!("a client panicked"))?
}

/// Replaces `config.env`, as an editor does that keeps owner and mode.
pub(crate) fn configure(host: &Host, text: &str) -> Result<()> {
    host.put("/etc/doorward/config.env", text)
}

/// Replaces `config.env` and restarts the daemon with it.
pub(crate) fn restart_with(host: &Host, text: &str) -> Result<()> {
    configure(host, text)?;
    host.say("systemctl restart doorward.service")?;
    Ok(())
}

/// Writes a drop-in for a unit and has systemd read it.
pub(crate) fn drop_in(host: &Host, unit: &str, text: &str) -> Result<()> {
    host.put(&format!("/etc/systemd/system/{unit}.d/test.conf"), text)?;
    host.say("systemctl daemon-reload")?;
    Ok(())
}

/// One property of a unit.
pub(crate) fn show(host: &Host, unit: &str, property: &str) -> Result<String> {
    host.say(&format!("systemctl show -p {property} --value {unit}"))
}

/// Waits until a property of a unit is `value`.
pub(crate) fn shows(host: &Host, unit: &str, property: &str, value: &str) -> Result<()> {
    let mut last = String::new();
    wait_for(&format!("{unit} {property}={value}"), SOON, || {
        last = show(host, unit, property)?;
        Ok(last == value)
    })
    .with_context(|| format!("it is `{last}`"))
}

/// Checks that units are in a state, by systemd's own word.
pub(crate) fn all_are(host: &Host, units: &[&str], state: &str) -> Result<()> {
    for unit in units {
        let is = host.run(&format!("systemctl is-active {unit}"))?.stdout;
        ensure!(is == state, "{unit} is {is} and should be {state}");
    }
    Ok(())
}

/// The daemon's process, as the guest counts.
pub(crate) fn main_pid(host: &Host) -> Result<u32> {
    Ok(show(host, "doorward.service", "MainPID")?.parse()?)
}

/// The service's records, newest last, one JSON object each.
pub(crate) fn records(host: &Host, filter: &str) -> Result<Vec<Value>> {
    host.say("journalctl --sync")?;
    let lines = host.say(&format!("journalctl -u doorward {filter} -o json --no-pager"))?;
    lines.lines().filter(|line| line.starts_with('{')).map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// The service's log as an operator reads it.
pub(crate) fn log(host: &Host) -> Result<String> {
    host.say("journalctl --sync")?;
    host.say("journalctl -u doorward -o cat --no-pager")
}

/// What tells one listening socket from its successor.
pub(crate) fn socket_identity(host: &Host) -> Result<String> {
    let inode = host.say("ss -ltneH 'sport = :8080' | grep -o 'ino:[0-9]*'")?;
    let since = show(host, "doorward.socket", "ActiveEnterTimestampMonotonic")?;
    Ok(format!("{inode} since {since}"))
}

/// Makes a package of the next version in the host, from the one under test. Its units
/// differ from the first one's, but not in what is set for processes.
pub(crate) fn next_version(host: &Host) -> Result<&'static str> {
    make(host, "next", "s/^Description=.*/& (next)/")?;
    Ok("/root/next.deb")
}

/// Like [`next_version`], with other settings for the processes of its services.
pub(crate) fn other_settings(host: &Host) -> Result<&'static str> {
    make(host, "other", "s/^TimeoutAbortSec=.*/TimeoutAbortSec=11s/")?;
    Ok("/root/other.deb")
}

/// Makes `/root/NAME.deb` from the package under test, whose services an edit of sed changes.
fn make(host: &Host, name: &str, edit: &str) -> Result<()> {
    host.say(&format!(
        "set -e; rm -rf /root/{name}; dpkg-deb -R {PACKAGE} /root/{name}
        sed -i 's/^Version: .*/&+{name}/' /root/{name}/DEBIAN/control
        find /root/{name} -name 'doorward*.service' -exec sed -i '{edit}' {{}} +
        rm -f /root/{name}/DEBIAN/md5sums
        dpkg-deb -Znone -b /root/{name} /root/{name}.deb"
    ))?;
    Ok(())
}

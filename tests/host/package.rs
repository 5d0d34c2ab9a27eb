//! The package's life: what apt does on installation, upgrade, removal and purge,
//! and what it leaves alone.

use std::net::TcpListener;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

use crate::backend::{Backend, HELD};
use crate::doorward::{
    PACKAGE, PROGRAM, all_are, answer_of, apt_install, ask, ask_at, ask_slowly, configure, copy_package, drop_in,
    front, main_pid, next_version, restart_with, show,
};
use crate::host::Host;
use crate::http::{Connection, Failure, Target};
use crate::load::Load;
use crate::wait::{SOON, wait_for};

crate::stories!(install:
    an_upgrade_under_load_loses_nothing_and_restarts_no_socket,
    an_upgrade_and_a_removal_reach_instances_too,
    a_removal_keeps_the_configuration_and_a_purge_only_the_locked_user,
    units_that_the_admin_disabled_or_masked_stay_so,
    a_changed_conffile_and_its_mode_survive_an_upgrade,
    a_package_that_ships_a_route_has_it_served,
);

mod bare {
    crate::stories!(boot:
        masked_units_are_not_started_by_an_installation,
        a_policy_that_forbids_starts_is_obeyed,
        a_taken_port_does_not_fail_the_installation,
        an_installation_in_a_chroot_starts_nothing,
    );
    use super::{
        a_policy_that_forbids_starts_is_obeyed, a_taken_port_does_not_fail_the_installation,
        an_installation_in_a_chroot_starts_nothing, masked_units_are_not_started_by_an_installation,
    };
}

/// Checks that nobody listens at `target`.
fn refused(host: &Host, target: &Target) -> Result<()> {
    let failure = host.in_network(|| Ok(Connection::open(target).err()))?;
    ensure!(failure == Some(Failure::Refused), "{target:?}: {failure:?}");
    Ok(())
}

/// What tells one listening socket from its successor.
fn socket_identity(host: &Host) -> Result<String> {
    let inode = host.say("ss -ltneH 'sport = :8080' | grep -o 'ino:[0-9]*'")?;
    let since = show(host, "doorward.socket", "ActiveEnterTimestampMonotonic")?;
    Ok(format!("{inode} since {since}"))
}

fn an_upgrade_under_load_loses_nothing_and_restarts_no_socket(host: &Host) -> Result<()> {
    let backend = Backend::tcp(host)?;
    restart_with(host, &format!("BACKEND_ADDRESS=127.0.0.1:{}\n", backend.port))?;
    let next = next_version(host)?;
    let (pid, socket) = (main_pid(host)?, socket_identity(host)?);
    let slow = ask_slowly(host, "/held")?;
    backend.holds(1)?;
    let load = Load::start(host, &front(), 8)?;
    thread::scope(|scope| {
        let upgrade = scope.spawn(|| apt_install(host, next));
        wait_for("the upgrade to reach the daemon", SOON, || {
            let state = show(host, "doorward.service", "ActiveState")?;
            Ok(state == "deactivating" || main_pid(host)? != pid)
        })?;
        backend.release();
        upgrade.join().map_err(|_| anyhow!("apt panicked"))?
    })?;
    let answer = answer_of(slow).context("the upgrade cut an answer")?;
    ensure!(answer.body == HELD.as_bytes(), "{:?}", answer.body);
    load.goes_on()?;

    // The new files are at work, and systemd has read the new units.
    ensure!(host.say("dpkg-query -Wf '${Version}' doorward")?.ends_with("+next"));
    let new = main_pid(host)?;
    ensure!(new != pid, "the old process still serves");
    let exe = host.say(&format!("readlink /proc/{new}/exe"))?;
    ensure!(exe == PROGRAM, "{exe}");
    ensure!(show(host, "doorward.service", "NeedDaemonReload")? == "no");
    ensure!(show(host, "doorward.service", "Description")?.ends_with("(next)"));

    // The same version once more.
    host.say(&format!("apt-get install --reinstall -y {next}"))?;
    load.goes_on()?;
    let tally = load.stop();
    println!("upgrade and reinstall: {tally}");
    tally.lost_nothing()?;
    ensure!(socket_identity(host)? == socket, "the socket was restarted");
    Ok(())
}

fn an_upgrade_and_a_removal_reach_instances_too(host: &Host) -> Result<()> {
    host.put("/etc/doorward/blue/config.env", "BACKEND_ADDRESS=builtin:echo\n")?;
    host.say("systemctl enable --now doorward@blue.socket doorward@blue.service")?;
    let blue = Target::Unix(host.path("/run/doorward-blue/http.sock"));
    ensure!(ask_at(host, &blue, "/")?.status == 200);
    let pid = show(host, "doorward@blue.service", "MainPID")?;
    let load = Load::start(host, &blue, 4)?;
    apt_install(host, next_version(host)?)?;
    load.goes_on()?;
    let tally = load.stop();
    println!("upgrade of an instance: {tally}");
    tally.lost_nothing()?;
    ensure!(show(host, "doorward@blue.service", "MainPID")? != pid, "the old process serves");

    host.say("apt-get purge -y doorward")?;
    let left = host.say("systemctl list-units --all --plain --no-legend 'doorward*'")?;
    ensure!(left.is_empty(), "{left}");
    ensure!(!host.run("pgrep -x doorward")?.success(), "a process is left");
    ensure!(!host.run("ls /run | grep doorward")?.success(), "/run has traces");
    Ok(())
}

/// All files that a package could leave, but for the records of apt and dpkg and
/// the backups that the user database keeps of itself.
fn files(host: &Host) -> Result<String> {
    host.say(
        "find / -xdev -path /root -prune -o -path /tmp -prune -o -path '/var/log/*' -prune \
         -o -path '/var/cache/*' -prune -o -path '/var/lib/apt/*' -prune \
         -o -path '/var/lib/dpkg/*' -prune -o -path /var/lib/systemd/catalog/database -prune \
         -o ! -name '*-' -print | grep -vE '^/etc/(\\.pwd\\.lock|sub[ug]id|ld.so.cache)$' | sort; \
         find /run -xdev -name '*doorward*' | sort",
    )
}

fn a_removal_keeps_the_configuration_and_a_purge_only_the_locked_user(host: &Host) -> Result<()> {
    host.say("apt-get purge -y doorward")?;
    // The user exists from here on, so this is what a purge may leave.
    let clean = files(host)?;
    ensure!(!clean.contains("doorward"), "{clean}");

    apt_install(host, PACKAGE)?;
    configure(host, "BACKEND_ADDRESS=builtin:echo\nMAX_RETRIES=1\n")?;
    host.put("/etc/doorward/routes.d/10-own.env", "MATCH_HOST=own.example\n")?;
    host.put("/etc/doorward/blue/config.env", "MAX_RETRIES=1\n")?;
    host.say("systemctl enable --now doorward@blue.socket")?;
    drop_in(host, "doorward.service", "[Service]\nNice=1\n")?;
    ensure!(ask(host, "/")?.status == 200);

    host.say("apt-get remove -y doorward")?;
    refused(host, &front())?;
    ensure!(!host.run("pgrep -x doorward")?.success(), "a process is left");
    ensure!(host.say("cat /etc/doorward/config.env")?.contains("MAX_RETRIES=1"));
    let left = host.say("systemctl list-units --plain --no-legend 'doorward*'")?;
    ensure!(left.is_empty(), "{left}");
    apt_install(host, PACKAGE)?;
    ensure!(ask(host, "/back")?.status == 200);
    ensure!(host.say("cat /etc/doorward/config.env")?.contains("MAX_RETRIES=1"));

    host.say("apt-get purge -y doorward")?;
    refused(host, &front())?;
    let after = files(host)?;
    for line in after.lines() {
        ensure!(clean.lines().any(|known| known == line), "purge left {line}");
    }
    let dpkg = host.say("dpkg-query -Wf '${Package}\\n' | grep -c doorward; true")?;
    ensure!(dpkg == "0", "{dpkg}");
    let user = host.say("getent passwd doorward")?;
    ensure!(user.ends_with("/nologin"), "{user}");
    let lock = host.say("passwd -S doorward")?;
    ensure!(lock.starts_with("doorward L"), "{lock}");
    host.say("getent group doorward doorward-admin")?;
    Ok(())
}

fn units_that_the_admin_disabled_or_masked_stay_so(host: &Host) -> Result<()> {
    host.say("systemctl disable --now doorward.socket doorward.service")?;
    let next = next_version(host)?;
    apt_install(host, next)?;
    for unit in ["doorward.socket", "doorward.service"] {
        let enabled = host.run(&format!("systemctl is-enabled {unit}"))?.stdout;
        ensure!(enabled == "disabled", "{unit} is {enabled}");
    }
    host.say("systemctl stop doorward.socket doorward.service")?;
    host.say("systemctl mask doorward.socket doorward.service")?;
    host.say(&format!("apt-get install --reinstall -y {next}"))?;
    for unit in ["doorward.socket", "doorward.service"] {
        let enabled = host.run(&format!("systemctl is-enabled {unit}"))?.stdout;
        ensure!(enabled == "masked", "{unit} is {enabled}");
    }
    all_are(host, &["doorward.socket", "doorward.service"], "inactive")?;
    refused(host, &front())?;
    host.say("apt-get purge -y doorward")?;
    Ok(())
}

fn a_changed_conffile_and_its_mode_survive_an_upgrade(host: &Host) -> Result<()> {
    let stat = "stat -c %U:%G:%a /etc/doorward/config.env";
    ensure!(host.say(stat)? == "root:doorward:640", "{}", host.say(stat)?);
    let shipped = host.say("cat /etc/doorward/config.env")?;
    ensure!(shipped.contains("BACKEND_ADDRESS"), "{shipped}");
    ensure!(host.say("dpkg --verify doorward")?.is_empty());

    // An unchanged conffile: no question, and the admin's text stays.
    configure(host, "BACKEND_ADDRESS=builtin:echo # mine\n")?;
    host.say("dpkg-statoverride --update --add root adm 0644 /etc/doorward/config.env")?;
    let next = next_version(host)?;
    apt_install(host, next)?;
    ensure!(host.say("cat /etc/doorward/config.env")?.ends_with("# mine"));
    ensure!(host.say(stat)? == "root:adm:644", "{}", host.say(stat)?);

    // A conffile that changed in the package too, and an admin who keeps his own.
    host.say(
        "set -e; echo '# a new line' >>/root/next/etc/doorward/config.env
        sed -i 's/^Version: .*/&2/' /root/next/DEBIAN/control
        dpkg-deb -Znone -b /root/next /root/next2.deb
        apt-get install -y -o Dpkg::Options::=--force-confold /root/next2.deb",
    )?;
    ensure!(host.say("cat /etc/doorward/config.env")?.ends_with("# mine"));
    ensure!(host.say(stat)? == "root:adm:644", "{}", host.say(stat)?);
    ensure!(ask(host, "/")?.status == 200);
    Ok(())
}

fn a_package_that_ships_a_route_has_it_served(host: &Host) -> Result<()> {
    let backend = Backend::tcp(host)?;
    host.put(
        "/root/route/DEBIAN/control",
        "Package: some-route\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\n\
         Description: a route\n",
    )?;
    let route = format!("MATCH_PATH=/shipped\nBACKEND_ADDRESS=127.0.0.1:{}\n", backend.port);
    host.put("/root/route/etc/doorward/routes.d/50-some.env", route)?;
    host.say("chmod 755 /root/route/DEBIAN && dpkg-deb -b /root/route /root/route.deb")?;
    let pid = main_pid(host)?;
    apt_install(host, "/root/route.deb")?;
    let served = || Ok(ask(host, "/shipped")?.body == b"backend saw /shipped\n");
    wait_for("the route to be served", SOON, served)?;
    host.say("apt-get purge -y some-route")?;
    wait_for("the route to be gone", SOON, || Ok(!served()?))?;
    ensure!(main_pid(host)? == pid, "routes need no restart");
    Ok(())
}

fn masked_units_are_not_started_by_an_installation(host: &Host) -> Result<()> {
    host.say("systemctl mask doorward.socket doorward.service")?;
    copy_package(host)?;
    apt_install(host, PACKAGE)?;
    all_are(host, &["doorward.socket", "doorward.service"], "inactive")?;
    refused(host, &front())
}

fn a_policy_that_forbids_starts_is_obeyed(host: &Host) -> Result<()> {
    host.put("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n")?;
    host.say("chmod +x /usr/sbin/policy-rc.d")?;
    copy_package(host)?;
    apt_install(host, PACKAGE)?;
    all_are(host, &["doorward.socket", "doorward.service"], "inactive")?;
    refused(host, &front())?;
    for unit in ["doorward.socket", "doorward.service"] {
        let enabled = host.say(&format!("systemctl is-enabled {unit}"))?;
        ensure!(enabled == "enabled", "{unit} is {enabled}");
    }
    // Nor does an upgrade restart what the admin started.
    host.say("systemctl start doorward.socket doorward.service")?;
    let pid = main_pid(host)?;
    apt_install(host, next_version(host)?)?;
    ensure!(main_pid(host)? == pid, "the policy forbids restarts");
    ensure!(ask(host, "/")?.status == 200);
    Ok(())
}

fn a_taken_port_does_not_fail_the_installation(host: &Host) -> Result<()> {
    let taken = host.in_network(|| Ok(TcpListener::bind("127.0.0.1:8080")?))?;
    copy_package(host)?;
    let install = host.run(&format!("apt-get install -y {PACKAGE}"))?.ok()?;
    let said = format!("{}\n{}", install.stdout, install.stderr);
    ensure!(said.contains("127.0.0.1:8080"), "it should say what is taken: {install}");
    let state = host.run("systemctl is-active doorward.socket")?.stdout;
    ensure!(state == "failed", "{state}");
    ensure!(host.say("dpkg-query -Wf '${Status}' doorward")? == "install ok installed");
    all_are(host, &["doorward.service"], "inactive")?;

    drop(taken);
    host.say("systemctl start doorward.socket doorward.service")?;
    ensure!(ask(host, "/free-again")?.status == 200);
    Ok(())
}

fn an_installation_in_a_chroot_starts_nothing(host: &Host) -> Result<()> {
    copy_package(host)?;
    host.say(&format!(
        "set -e; mkdir /chroot
        tar -C / --one-file-system --exclude=./chroot --exclude=./var/cache -c . | tar -C /chroot -x
        mkdir -p /chroot/proc /chroot/dev /chroot/var/cache/apt/archives/partial
        mount --bind /dev /chroot/dev; mount -t proc proc /chroot/proc
        cp {PACKAGE} /chroot/root/"
    ))?;
    ensure!(!host.run("test -e /chroot/run/systemd/system")?.success());
    host.say(&format!("chroot /chroot apt-get install -y {PACKAGE}"))?;
    ensure!(!host.run("pgrep -x doorward")?.success(), "a daemon was started");
    refused(host, &front())?;
    let links = host.say("find /chroot/etc/systemd/system -name 'doorward*' | sort")?;
    ensure!(
        links.contains("sockets.target.wants/doorward.socket")
            && links.contains("multi-user.target.wants/doorward.service"),
        "{links}"
    );
    let stat = host.say("chroot /chroot stat -c %U:%G:%a /etc/doorward/config.env")?;
    ensure!(stat == "root:doorward:640", "{stat}");
    host.say("chroot /chroot doorward check")?;
    host.say(&format!("chroot /chroot apt-get install --reinstall -y {PACKAGE}"))?;
    host.say("chroot /chroot apt-get purge -y doorward")?;
    let left = host.say("find /chroot/etc /chroot/usr /chroot/run -name '*doorward*'")?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

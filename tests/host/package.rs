//! The package's life: what apt does on installation, upgrade, removal and purge,
//! and what it leaves alone.

use std::net::TcpListener;

use anyhow::{Result, ensure};

use crate::backend::Backend;
use crate::doorward::{
    PACKAGE, all_are, apt_install, ask, ask_at, configure, copy_package, drop_in, front, main_pid, next_version,
    restart_with,
};
use crate::host::Host;
use crate::http::{Connection, Failure, Target};
use crate::wait::{SOON, wait_for};

crate::stories!(install:
    a_removal_reaches_instances_too,
    a_removal_keeps_the_configuration_and_a_purge_only_the_locked_user,
    units_that_the_admin_disabled_or_masked_stay_so,
    a_changed_conffile_and_its_mode_survive_an_upgrade,
    a_package_that_ships_a_route_has_it_served,
    an_instance_that_fails_keeps_no_other_service_from_a_new_version,
    notes_that_can_not_be_taken_keep_no_new_version_out,
    what_the_service_alone_refuses_leaves_the_old_version_serving,
);

mod bare {
    crate::stories!(boot:
        masked_units_are_not_started_by_an_installation,
        a_policy_that_forbids_starts_is_obeyed,
        a_taken_port_does_not_fail_the_installation,
        an_installation_in_a_chroot_starts_nothing,
        what_was_only_unpacked_can_be_purged,
    );
    use super::{
        a_policy_that_forbids_starts_is_obeyed, a_taken_port_does_not_fail_the_installation,
        an_installation_in_a_chroot_starts_nothing, masked_units_are_not_started_by_an_installation,
        what_was_only_unpacked_can_be_purged,
    };
}

/// Checks that nobody listens at `target`.
fn refused(host: &Host, target: &Target) -> Result<()> {
    let failure = host.in_network(|| Ok(Connection::open(target).err()))?;
    ensure!(failure == Some(Failure::Refused), "{target:?}: {failure:?}");
    Ok(())
}

fn a_removal_reaches_instances_too(host: &Host) -> Result<()> {
    host.put("/etc/doorward/blue/config.env", "BACKEND_ADDRESS=builtin:echo\n")?;
    host.say("systemctl enable --now doorward@blue.socket doorward@blue.service")?;
    let blue = Target::Unix(host.path("/run/doorward-blue/http.sock"));
    ensure!(ask_at(host, &blue, "/")?.status == 200);
    // An upgrade leaves traces that a removal has to take away.
    apt_install(host, next_version(host)?)?;

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

fn an_instance_that_fails_keeps_no_other_service_from_a_new_version(host: &Host) -> Result<()> {
    host.put("/etc/doorward/blue/config.env", "BACKEND_ADDRESS=builtin:echo\n")?;
    drop_in(host, "doorward@blue.socket", "[Socket]\nListenStream=127.0.0.1:8080\n")?;
    ensure!(!host.run("systemctl enable --now doorward@blue.socket")?.success(), "the port is free");
    let pid = main_pid(host)?;
    let install = host.run(&format!("apt-get install -y {}", next_version(host)?))?.ok()?;
    ensure!(install.to_string().contains("doorward@blue.socket cannot listen on"), "{install}");
    ensure!(main_pid(host)? != pid, "the old version serves on: {install}");
    ensure!(ask(host, "/")?.status == 200);
    Ok(())
}

fn notes_that_can_not_be_taken_keep_no_new_version_out(host: &Host) -> Result<()> {
    host.say("touch /run/doorward/started")?;
    let pid = main_pid(host)?;
    apt_install(host, next_version(host)?)?;
    ensure!(main_pid(host)? != pid, "the old version serves on");
    ensure!(ask(host, "/")?.status == 200);
    Ok(())
}

fn what_the_service_alone_refuses_leaves_the_old_version_serving(host: &Host) -> Result<()> {
    drop_in(host, "doorward.service", "[Service]\nEnvironment=RETRY_BACKOFF=2s\n")?;
    restart_with(host, "RETRY_BACKOFF_MAX=5s\n")?;
    let pid = main_pid(host)?;
    // Only who has the environment of the service finds fault with it.
    configure(host, "RETRY_BACKOFF_MAX=1s\n")?;
    host.say("doorward check")?;
    let install = host.run(&format!("apt-get install -y {}", next_version(host)?))?.ok()?;
    ensure!(main_pid(host)? == pid, "it was restarted: {install}");
    ensure!(ask(host, "/")?.status == 200);
    for said in ["RETRY_BACKOFF", "the old one serves on as doorward.service"] {
        ensure!(install.to_string().contains(said), "no `{said}`: {install}");
    }
    configure(host, "RETRY_BACKOFF_MAX=5s\n")?;
    host.say("doorward upgrade")?;
    ensure!(main_pid(host)? != pid);
    Ok(())
}

fn what_was_only_unpacked_can_be_purged(host: &Host) -> Result<()> {
    copy_package(host)?;
    host.say(&format!("dpkg --unpack {PACKAGE}"))?;
    host.say("dpkg --purge doorward")?;
    let left = host.say("find /etc /usr /run /var/lib -name '*doorward*'")?;
    ensure!(left.is_empty(), "{left}");
    apt_install(host, PACKAGE)?;
    ensure!(ask(host, "/")?.status == 200);
    Ok(())
}

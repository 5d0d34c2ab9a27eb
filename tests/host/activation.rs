//! Sockets from systemd: who listens, where, and who wakes whom.

use anyhow::{Result, ensure};

use crate::doorward::{all_are, ask, ask_at, drop_in, front, main_pid, show};
use crate::host::Host;
use crate::http::{Connection, Failure, Target};

crate::stories!(install:
    the_installed_door_is_open_and_the_daemon_answers,
    a_client_wakes_a_stopped_daemon,
    drop_ins_add_ipv6_a_unix_socket_and_port_80,
    an_instance_has_a_door_and_a_configuration_of_its_own,
    check_as_root_names_files_that_the_daemon_could_not_read,
);

fn the_installed_door_is_open_and_the_daemon_answers(host: &Host) -> Result<()> {
    let units = ["doorward.socket", "doorward.service", "doorward-admin.socket"];
    all_are(host, &units, "active")?;
    for unit in ["doorward.socket", "doorward.service"] {
        let enabled = host.say(&format!("systemctl is-enabled {unit}"))?;
        ensure!(enabled == "enabled", "{unit}: {enabled}");
    }
    // systemd holds the listener, not only the daemon.
    let listeners = host.say("ss -ltnpH 'sport = :8080'")?;
    ensure!(listeners.contains("\"systemd\",pid=1,"), "{listeners}");
    ensure!(listeners.starts_with("LISTEN"), "{listeners}");
    ensure!(listeners.contains("127.0.0.1:8080"), "{listeners}");

    let answer = ask(host, "/hello?who=me")?;
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    ensure!(answer.status == 200 && body.contains("/hello?who=me"), "{body}");
    let curl = host.say("curl -sS -m 20 -w '\\n%{http_code}' http://127.0.0.1:8080/from-curl")?;
    ensure!(curl.contains("/from-curl") && curl.ends_with("\n200"), "{curl}");

    // No root, no capability, no core file, and room for the default semaphore.
    let pid = main_pid(host)?;
    let status = host.say(&format!("cat /proc/{pid}/status"))?;
    let uid = host.say("id -u doorward")?;
    ensure!(status.contains(&format!("\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")), "{status}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        ensure!(status.contains(&format!("\n{set}:\t0000000000000000\n")), "{status}");
    }
    ensure!(status.contains("\nNoNewPrivs:\t1\n"), "{status}");
    let limits = host.say(&format!("cat /proc/{pid}/limits"))?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size"));
    ensure!(core.is_some_and(|line| line.split_whitespace().nth(4) == Some("0")), "{limits}");
    ensure!(show(host, "doorward.service", "LimitNOFILE")? == "524288");

    // The admin socket is for its group alone.
    let admin = host.say("stat -c %U:%G:%a /run/doorward/admin.sock")?;
    ensure!(admin == "doorward:doorward-admin:660", "{admin}");
    let status = host.say("doorward status --json")?;
    let parsed: serde_json::Value = serde_json::from_str(&status)?;
    ensure!(parsed.is_object(), "{status}");
    ensure!(!host.say("doorward status")?.is_empty());
    Ok(())
}

fn a_client_wakes_a_stopped_daemon(host: &Host) -> Result<()> {
    host.say("systemctl stop doorward.service")?;
    all_are(host, &["doorward.service", "doorward-admin.socket"], "inactive")?;
    all_are(host, &["doorward.socket"], "active")?;
    // Asking a stopped daemon how it is does not start it.
    host.run("doorward status")?.failed()?;
    host.run("doorward reload")?.failed()?;
    all_are(host, &["doorward.service"], "inactive")?;

    ensure!(ask(host, "/wake")?.status == 200);
    all_are(host, &["doorward.service", "doorward-admin.socket"], "active")?;
    host.say("doorward status")?;
    Ok(())
}

fn drop_ins_add_ipv6_a_unix_socket_and_port_80(host: &Host) -> Result<()> {
    drop_in(
        host,
        "doorward.socket",
        "[Socket]\nListenStream=\nListenStream=80\nListenStream=[::1]:8081\nListenStream=/run/door.sock\n",
    )?;
    host.say("systemctl restart doorward.socket doorward.service")?;
    let targets = [
        Target::local(80),
        Target::Tcp("[::1]:80".parse()?),
        Target::Tcp("[::1]:8081".parse()?),
        Target::Unix(host.path("/run/door.sock")),
    ];
    for target in &targets {
        let answer = ask_at(host, target, "/where")?;
        ensure!(answer.status == 200, "{target:?}: {}", answer.status);
    }
    let old = host.in_network(|| Ok(Connection::open(&front()).err()))?;
    ensure!(old == Some(Failure::Refused), "8080: {old:?}");
    Ok(())
}

fn an_instance_has_a_door_and_a_configuration_of_its_own(host: &Host) -> Result<()> {
    host.say("install -d /etc/doorward/blue")?;
    host.put("/etc/doorward/blue/config.env", "BACKEND_ADDRESS=127.0.0.1:1\nMAX_RETRIES=0\n")?;
    host.say("systemctl enable --now doorward@blue.socket doorward@blue.service")?;
    let blue = Target::Unix(host.path("/run/doorward-blue/http.sock"));
    ensure!(ask_at(host, &blue, "/")?.status == 502, "blue has another backend");
    ensure!(ask(host, "/")?.status == 200, "the first daemon keeps its own");

    host.put("/etc/doorward/blue/config.env", "BACKEND_ADDRESS=builtin:echo\n")?;
    host.say("systemctl reload doorward@blue.service")?;
    ensure!(ask_at(host, &blue, "/")?.status == 200, "blue was reloaded");
    host.say("doorward status --instance blue")?;

    host.say("systemctl stop doorward@blue.socket")?;
    all_are(host, &["doorward@blue.service", "doorward-admin@blue.socket"], "inactive")?;
    all_are(host, &["doorward.socket", "doorward.service"], "active")?;
    Ok(())
}

fn check_as_root_names_files_that_the_daemon_could_not_read(host: &Host) -> Result<()> {
    host.say("doorward check")?;
    host.put("/etc/doorward/routes.d/10-mine.env", "MATCH_HOST=mine.example\n")?;
    host.say("chown root:root /etc/doorward/routes.d/10-mine.env; chmod 600 /etc/doorward/routes.d/10-mine.env")?;
    let check = host.run("doorward check 2>&1")?;
    ensure!(check.stdout.contains("/etc/doorward/routes.d/10-mine.env"), "{check}");
    ensure!(check.stdout.contains("could not read") || check.stdout.contains("cannot read"), "{check}");
    host.say("chgrp doorward /etc/doorward/routes.d/10-mine.env; chmod 640 /etc/doorward/routes.d/10-mine.env")?;
    let check = host.run("doorward check 2>&1")?.ok()?;
    ensure!(!check.stdout.contains("not read"), "{check}");
    Ok(())
}

//! How each contender is set up for faults: with what its own documentation recommends
//! against them, the same limits of time, and one worker.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::contenders::{Contender, Kind};

/// Connecting, and waiting for an answer, may take so long in one attempt, in seconds.
pub const ATTEMPT: u32 = 1;

/// From one active check to the next, in seconds, where there are any.
pub const CHECKS: u32 = 1;

/// Who stands up to faults.
#[derive(Clone, Debug)]
pub struct Entrant {
    /// In the table and for `--against`.
    pub contender: Contender,
    /// doorward with what suits this best, beyond its defaults.
    tuned: bool,
}

/// All of them; doorward is this binary.
pub fn entrants(own: &Path) -> Vec<Entrant> {
    let doorward = Kind::Doorward(PathBuf::from(own));
    [
        ("doorward", doorward.clone(), false),
        ("doorward-p2c", doorward, true),
        ("nginx", Kind::Nginx, false),
        ("haproxy", Kind::Haproxy, false),
    ]
    .into_iter()
    .map(|(name, kind, tuned)| Entrant { contender: Contender { name: name.to_owned(), kind }, tuned })
    .collect()
}

impl Entrant {
    /// The command that serves `address` with what these backends have.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn command(&self, address: SocketAddr, backends: &[SocketAddr], folder: &Path) -> Result<Command> {
        let file = folder.join("configuration");
        let (text, mut command) = match &self.contender.kind {
            Kind::Doorward(binary) => {
                let mut command = Command::new(binary);
                command.arg("--config").arg(&file);
                (doorward(address, backends, self.tuned), command)
            }
            Kind::Nginx | Kind::NginxBuffered => {
                let mut command = Command::new("/usr/sbin/nginx");
                command.arg("-e").arg(folder.join("nginx.log")).arg("-c").arg(&file);
                (nginx(address, backends, folder), command)
            }
            _ => {
                let mut command = Command::new("/usr/sbin/haproxy");
                command.arg("-db").arg("-f").arg(&file);
                (haproxy(address, backends), command)
            }
        };
        fs::write(&file, text)?;
        command.env("LC_ALL", "C");
        Ok(command)
    }
}

fn doorward(address: SocketAddr, backends: &[SocketAddr], tuned: bool) -> String {
    let backends: Vec<String> = backends.iter().map(SocketAddr::to_string).collect();
    let tuned = if tuned {
        format!("BALANCE=p2c\nHEALTH_CHECK=/\nHEALTH_INTERVAL={CHECKS}s\nHEALTH_FALL=2\n")
    } else {
        "BALANCE=round-robin\n".to_owned()
    };
    format!(
        "PROXY_ADDRESS={address}\nBACKEND_ADDRESS={}\nWORKERS=1\nCONNECT_TIMEOUT={ATTEMPT}s\n\
         ATTEMPT_TIMEOUT={ATTEMPT}s\nRETRY_ON=connect,reset,timeout\n{tuned}",
        backends.join(",")
    )
}

fn nginx(address: SocketAddr, backends: &[SocketAddr], folder: &Path) -> String {
    let folder = folder.display();
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let servers: String =
        backends.iter().map(|backend| format!("server {backend} max_fails=1 fail_timeout=10s; ")).collect();
    format!(
        "daemon off; {user} worker_processes 1; worker_rlimit_nofile 20000;\n\
         pid {folder}/pid; error_log {folder}/nginx.log error;\nevents {{ worker_connections 8192; }}\n\
         http {{\naccess_log off; keepalive_requests 1000000000; keepalive_timeout 75s;\n\
         client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;\n\
         uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n\
         upstream backend {{ least_conn; {servers} keepalive 512; keepalive_requests 1000000000; }}\n\
         server {{ listen {address} backlog=4096; location / {{\n\
         proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         proxy_connect_timeout {ATTEMPT}s; proxy_read_timeout {ATTEMPT}s; proxy_send_timeout {ATTEMPT}s;\n\
         proxy_next_upstream error timeout; }} }} }}\n"
    )
}

fn haproxy(address: SocketAddr, backends: &[SocketAddr]) -> String {
    let servers: String =
        backends.iter().enumerate().map(|(place, backend)| format!(" server s{place} {backend}\n")).collect();
    format!(
        "global\n nbthread 1\n maxconn 4096\n\
         defaults\n mode http\n http-reuse always\n retries 3\n option redispatch 1\n\
         retry-on conn-failure empty-response response-timeout\n\
         timeout connect {ATTEMPT}s\n timeout server {ATTEMPT}s\n timeout client 75s\n timeout check {ATTEMPT}s\n\
         frontend front\n bind {address} backlog 4096\n default_backend back\n\
         backend back\n balance leastconn\n option httpchk GET /\n\
         default-server check inter {CHECKS}s fall 2 rise 2 observe layer7 error-limit 5 on-error mark-down\n{servers}"
    )
}

//! Who is compared, and how each is set up: as fast as its own documentation lets it
//! be for the work at hand, with one worker unless said otherwise, and no log.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Who.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// doorward, with this binary.
    Doorward(PathBuf),
    /// nginx, or its stream module.
    Nginx,
    /// HAProxy as it comes.
    Haproxy,
    /// HAProxy that splices everything, through pipes of 1 MiB.
    HaproxySplice,
    /// The raw relay.
    Relay,
    /// systemd-socket-proxyd.
    SocketProxyd,
}

/// A contender and the name that it has in the tables.
#[derive(Clone, Debug)]
pub struct Contender {
    /// In the tables and for `--against`.
    pub name: String,
    /// Who it is.
    pub kind: Kind,
}

/// What a contender is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duty {
    /// Relaying bytes unread, instead of HTTP.
    pub tcp: bool,
    /// Threads or processes.
    pub workers: usize,
    /// Bodies are large.
    pub bodies: bool,
    /// Clients at once, at most.
    pub clients: usize,
}

/// The peers, by the names that `--against` takes.
pub fn peers() -> Vec<Contender> {
    [
        ("nginx", Kind::Nginx),
        ("haproxy", Kind::Haproxy),
        ("haproxy-splice", Kind::HaproxySplice),
        ("relay", Kind::Relay),
        ("socket-proxyd", Kind::SocketProxyd),
    ]
    .into_iter()
    .map(|(name, kind)| Contender { name: name.to_owned(), kind })
    .collect()
}

/// Where systemd keeps what is not in the path.
const SOCKET_PROXYD: &str = "/usr/lib/systemd/systemd-socket-proxyd";

impl Kind {
    /// Whether it can do this at all.
    pub fn can(&self, duty: Duty) -> bool {
        match self {
            Kind::SocketProxyd => duty.tcp && duty.workers == 1,
            Kind::Relay => duty.workers == 1,
            _ => true,
        }
    }

    /// The command that serves `address` with what `backend` has; files go to `folder`.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn command(&self, duty: Duty, address: SocketAddr, backend: SocketAddr, folder: &Path) -> Result<Command> {
        let file = folder.join("configuration");
        Ok(match self {
            Kind::Doorward(binary) => {
                fs::write(&file, "")?;
                let mut command = Command::new(binary);
                command.arg("--config").arg(&file);
                command.env("PROXY_ADDRESS", address.to_string()).env("BACKEND_ADDRESS", backend.to_string());
                command.env("WORKERS", duty.workers.to_string());
                command.env("MODE", if duty.tcp { "tcp" } else { "http" });
                command
            }
            Kind::Nginx => {
                fs::write(&file, nginx(duty, address, backend, folder))?;
                let mut command = Command::new("/usr/sbin/nginx");
                command.arg("-e").arg(folder.join("nginx.log")).arg("-c").arg(&file);
                command
            }
            Kind::Haproxy | Kind::HaproxySplice => {
                fs::write(&file, haproxy(duty, address, backend, *self == Kind::HaproxySplice))?;
                let mut command = Command::new("/usr/sbin/haproxy");
                command.arg("-db").arg("-f").arg(&file);
                command
            }
            Kind::Relay => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["relay".into(), address.to_string(), backend.to_string()]);
                command
            }
            Kind::SocketProxyd => {
                let mut command = Command::new("systemd-socket-activate");
                command.arg("-l").arg(address.to_string()).arg(SOCKET_PROXYD);
                command.arg("--connections-max=4096").arg(backend.to_string());
                command
            }
        })
    }

    /// Name and version.
    ///
    /// # Errors
    /// When the program is missing.
    pub fn version(&self) -> Result<String> {
        let (program, argument): (&Path, _) = match self {
            Kind::Doorward(binary) => (binary, "-V"),
            Kind::Nginx => (Path::new("/usr/sbin/nginx"), "-v"),
            Kind::Haproxy | Kind::HaproxySplice => (Path::new("/usr/sbin/haproxy"), "-v"),
            Kind::Relay => return Ok("raw relay of this tree".into()),
            Kind::SocketProxyd => (Path::new(SOCKET_PROXYD), "--version"),
        };
        let output = Command::new(program)
            .arg(argument)
            .output()
            .with_context(|| format!("{} can't be run; benches/compare installs it", program.display()))?;
        if !output.status.success() {
            bail!("{} {argument}: {}", program.display(), output.status);
        }
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        Ok(said.lines().next().unwrap_or_default().trim_start_matches("nginx version: ").to_owned())
    }
}

fn nginx(duty: Duty, address: SocketAddr, backend: SocketAddr, folder: &Path) -> String {
    let folder = folder.display();
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let workers = duty.workers;
    let main = format!(
        "daemon off; {user} worker_processes {workers}; worker_rlimit_nofile 20000;\n\
         pid {folder}/pid; error_log {folder}/nginx.log error;\n"
    );
    let events = "events { worker_connections 19500; }\n";
    if duty.tcp {
        return format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n{main}{events}\
             stream {{ proxy_buffer_size 64k; server {{ listen {address} backlog=4096; proxy_pass {backend}; }} }}\n"
        );
    }
    // The defaults suit small answers; large ones go to a file when the client is slow.
    let buffers = if duty.bodies {
        "proxy_buffer_size 64k; proxy_buffers 16 64k; proxy_busy_buffers_size 128k; proxy_max_temp_file_size 0;\n\
         client_body_buffer_size 128k;\n"
    } else {
        ""
    };
    format!(
        "{main}{events}http {{\n\
         access_log off; keepalive_requests 1000000000; keepalive_timeout 75s;\n\
         client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;\n\
         uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n{buffers}\
         upstream backend {{ server {backend}; keepalive 512; keepalive_requests 1000000000; }}\n\
         server {{ listen {address} backlog=4096; location / {{\n\
         proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         proxy_set_header Host $host; }} }} }}\n"
    )
}

fn haproxy(duty: Duty, address: SocketAddr, backend: SocketAddr, splice: bool) -> String {
    let workers = duty.workers;
    let mode = if duty.tcp { "tcp" } else { "http\n http-reuse always" };
    // It wants as many descriptors as it might ever need at once, or does not start; but
    // when over a quarter of them are in use, it stops keeping connections to backends.
    let clients = (duty.clients + 64).max(4096);
    let (pipes, splice) = if splice {
        (" tune.pipesize 1048576\n maxpipes 256\n", " option splice-request\n option splice-response\n")
    } else {
        ("", "")
    };
    format!(
        "global\n nbthread {workers}\n maxconn {clients}\n{pipes}\
         defaults\n mode {mode}\n{splice} timeout connect 5s\n timeout client 75s\n timeout server 75s\n\
         frontend front\n bind {address} backlog 4096\n default_backend back\n\
         backend back\n server one {backend}\n"
    )
}

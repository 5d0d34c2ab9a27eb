//! Who is compared, and how each is set up: as fast as its own documentation lets it
//! be for the work at hand, with one worker unless said otherwise, and no log.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::rig::secure::NAME;

/// Who.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// doorward, with this binary.
    Doorward(PathBuf),
    /// nginx, or its stream module, with the settings that suit the work best.
    Nginx,
    /// nginx with the buffers that it has when nothing is said.
    NginxBuffered,
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
    /// Clients come by TLS.
    pub tls: bool,
    /// Clients speak HTTP/2.
    pub http2: bool,
    /// Threads or processes.
    pub workers: usize,
    /// Bodies are large.
    pub bodies: bool,
    /// Clients at once, at most.
    pub clients: usize,
}

impl Duty {
    /// Small requests of HTTP/1.1 in clear.
    pub const fn http(workers: usize, clients: usize) -> Duty {
        Duty { tcp: false, tls: false, http2: false, workers, bodies: false, clients }
    }
}

/// The peers, by the names that `--against` takes.
pub fn peers() -> Vec<Contender> {
    [
        ("nginx", Kind::Nginx),
        ("nginx-buffered", Kind::NginxBuffered),
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
            // Nobody else has TLS, and nothing is spliced behind it; likewise HTTP/2.
            Kind::Relay | Kind::SocketProxyd | Kind::HaproxySplice if duty.tls || duty.http2 => false,
            Kind::SocketProxyd => duty.tcp && duty.workers == 1,
            Kind::Relay => duty.workers == 1,
            // For small answers these are its best.
            Kind::NginxBuffered => !duty.tcp && duty.bodies,
            // Splicing changes nothing in what has no large bodies.
            Kind::HaproxySplice => duty.tcp || duty.bodies,
            _ => true,
        }
    }

    /// The command that serves `address` with what `backend` has; files go to `folder`.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn command(&self, duty: Duty, address: SocketAddr, backend: SocketAddr, folder: &Path) -> Result<Command> {
        let file = folder.join("configuration");
        let secured = if duty.tls { Some(certify(folder)?) } else { None };
        Ok(match self {
            Kind::Doorward(binary) => {
                fs::write(&file, "")?;
                let mut command = Command::new(binary);
                command.arg("--config").arg(&file);
                command.env("PROXY_ADDRESS", address.to_string()).env("BACKEND_ADDRESS", backend.to_string());
                if let Some(pair) = &secured {
                    command.env("PROXY_ADDRESS", "127.0.0.1:0").env("PROXY_TLS_ADDRESS", address.to_string());
                    command.env("TLS_CERTIFICATE", pair).env("TLS_PRIVATE_KEY", pair);
                }
                command.env("WORKERS", duty.workers.to_string());
                command.env("MODE", if duty.tcp { "tcp" } else { "http" });
                command
            }
            Kind::Nginx | Kind::NginxBuffered => {
                fs::write(&file, nginx(duty, address, backend, folder, *self == Kind::NginxBuffered))?;
                let mut command = Command::new("/usr/sbin/nginx");
                command.arg("-e").arg(folder.join("nginx.log")).arg("-c").arg(&file);
                command
            }
            Kind::Haproxy | Kind::HaproxySplice => {
                fs::write(&file, haproxy(duty, address, backend, folder, *self == Kind::HaproxySplice))?;
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
            Kind::Nginx | Kind::NginxBuffered => (Path::new("/usr/sbin/nginx"), "-v"),
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

/// A certificate with a P-256 key, and that key, in one file; the same for all.
fn certify(folder: &Path) -> Result<PathBuf> {
    let issued = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    let path = folder.join("pair.pem");
    fs::write(&path, format!("{}{}", issued.cert.pem(), issued.signing_key.serialize_pem()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(path)
}

fn nginx(duty: Duty, address: SocketAddr, backend: SocketAddr, folder: &Path, buffered: bool) -> String {
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
    // The defaults suit small answers. Of 1 MiB, unbuffered ones cost it half, and the more
    // it reads at once the less; beyond 256 KiB that hardly grows. A request's body must
    // fit into memory, or it goes through a file.
    let buffers = match (duty.bodies, buffered) {
        (false, _) => "",
        (true, true) => "proxy_max_temp_file_size 0; client_body_buffer_size 128k;\n",
        (true, false) => {
            "proxy_buffering off; proxy_buffer_size 256k; proxy_buffers 8 256k; proxy_busy_buffers_size 256k;\n\
             client_body_buffer_size 128k;\n"
        }
    };
    // Tickets are on when nothing is said.
    let tls = match duty.tls {
        false => String::new(),
        true => format!(
            " ssl; ssl_certificate {folder}/pair.pem; ssl_certificate_key {folder}/pair.pem; ssl_protocols TLSv1.2 TLSv1.3"
        ),
    };
    // In clear it speaks this or HTTP/1.1, not both.
    let http2 = if duty.http2 { " http2" } else { "" };
    format!(
        "{main}{events}http {{\n\
         access_log off; keepalive_requests 1000000000; keepalive_timeout 75s;\n\
         client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;\n\
         uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n{buffers}\
         upstream backend {{ server {backend}; keepalive 512; keepalive_requests 1000000000; }}\n\
         server {{ listen {address} backlog=4096{http2}{tls}; location / {{\n\
         proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         proxy_set_header Host $host; }} }} }}\n"
    )
}

fn haproxy(duty: Duty, address: SocketAddr, backend: SocketAddr, folder: &Path, splice: bool) -> String {
    let tls = match (duty.tls, duty.http2) {
        (false, false) => String::new(),
        (false, true) => " proto h2".into(),
        (true, false) => format!(" ssl crt {}/pair.pem", folder.display()),
        (true, true) => format!(" ssl crt {}/pair.pem alpn h2,http/1.1", folder.display()),
    };
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
         frontend front\n bind {address} backlog 4096{tls}\n default_backend back\n\
         backend back\n server one {backend}\n"
    )
}

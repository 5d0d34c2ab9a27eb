//! Another process takes over: with a notify socket of the test's own, no systemd. What of it
//! can't be seen here, such as who adopts the new process, is in tests/host.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Instant;

use doorward::telemetry::events;
use rustix::process::Signal;
use serde_json::Value;

use super::daemon::{DEADLINE, Daemon, Setting, Successor, backend as answers, connect, get, listener, read_head};

/// A daemon with one exchange under way, and an admin socket that was passed.
struct Scene {
    daemon: Daemon,
    address: SocketAddr,
    client: TcpStream,
    backend: TcpListener,
    exchange: TcpStream,
}

impl Scene {
    fn new(settings: &str) -> Scene {
        let (backend, slow) = listener();
        let (daemon, address) = before(slow, settings);
        let mut client = connect(address);
        client.write_all(b"GET /slow HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        let (mut exchange, _) = backend.accept().unwrap();
        assert!(read_head(&mut exchange).starts_with("GET /slow"));
        exchange.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf ").unwrap();
        daemon.write("config.env", &format!("BACKEND_ADDRESS={}\n{settings}", answers("new")));
        Scene { daemon, address, client, backend, exchange }
    }

    /// Has another process take over.
    fn upgrade(&mut self) -> Successor {
        upgrade(&mut self.daemon)
    }

    /// Lets the slow answer end, which has to be whole.
    fn finish(&mut self) {
        self.exchange.write_all(b"whole").unwrap();
        let mut answer = String::new();
        self.client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("half whole"), "{answer}");
    }
}

/// A daemon with this backend, whose door and admin socket were passed, and where the door is.
pub fn before(backend: SocketAddr, settings: &str) -> (Daemon, SocketAddr) {
    let (door, address) = listener();
    let setting = Setting::new(&format!("BACKEND_ADDRESS={backend}\n{settings}"));
    let admin = UnixListener::bind(setting.path("admin.sock")).unwrap();
    (setting.pass("http", door).pass("admin", admin).start().ready(), address)
}

/// Has another process take over, with systemd's part played here.
pub fn upgrade(daemon: &mut Daemon) -> Successor {
    let socket = admin(daemon);
    let asked = thread::spawn(move || ask_at(&socket, "upgrade"));
    let successor = daemon.successor();
    let said = asked.join().unwrap();
    let line = String::from_utf8(said.stdout).unwrap();
    assert!(said.status.success() && line.contains(&format!("process {} (", successor.pid)), "{line}");
    assert!(line.contains(&format!("taken over from {} (", daemon.pid())), "{line}");
    successor
}

pub fn admin(daemon: &Daemon) -> PathBuf {
    daemon.folder.path().join("admin.sock")
}

/// Runs a command of the binary that asks the daemon.
pub fn ask(daemon: &Daemon, command: &str) -> Output {
    ask_at(&admin(daemon), command)
}

fn ask_at(socket: &Path, command: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_doorward")).arg(command).arg("--socket").arg(socket).output().unwrap()
}

/// A command that is with the daemon; its answer is read by [`said`].
fn told(daemon: &Daemon, command: &str) -> UnixStream {
    let mut client = UnixStream::connect(admin(daemon)).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    writeln!(client, "{{\"command\":\"{command}\"}}").unwrap();
    client
}

fn said(mut client: UnixStream) -> Value {
    let mut answer = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        assert_eq!(client.read(&mut byte).unwrap(), 1, "closed");
        answer.extend(byte);
    }
    serde_json::from_slice(&answer).unwrap()
}

pub fn status(daemon: &Daemon) -> Value {
    said(told(daemon, "status"))["status"].take()
}

/// What an upgrade was refused for; the process before serves on.
fn refused(daemon: &Daemon) -> String {
    let said = ask(daemon, "upgrade");
    assert_eq!(said.status.code(), Some(1));
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.ends_with("the process before serves on\n"), "{said}");
    said
}

/// A copy of the binary, which can be replaced, and a setting that starts it.
fn replaceable(config: &str) -> (Setting, PathBuf) {
    let setting = Setting::new(config);
    let program = setting.path("doorward");
    copy(&program);
    let start = format!("exec '{}' \"$@\"", program.display());
    let admin = UnixListener::bind(setting.path("admin.sock")).unwrap();
    (setting.pass("admin", admin).through(&["/bin/sh", "-c", &start]), program)
}

fn copy(program: &Path) {
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_doorward")).arg(program).status().unwrap().success());
}

/// Puts another file in the place of the program, as dpkg does. A process of its own writes it:
/// nothing that other tests start meanwhile has it open, which would keep it from being executed.
fn replace(program: &Path, content: &[u8]) {
    let script = r#"cat > "$0.new" && chmod 755 "$0.new" && mv "$0.new" "$0""#;
    let mut shell = Command::new("/bin/sh").arg("-c").arg(script).arg(program).stdin(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(content).unwrap();
    assert!(shell.wait().unwrap().success());
}

#[test]
fn another_process_serves_while_the_one_before_finishes_what_it_has() {
    let mut scene = Scene::new("DRAIN_TIMEOUT=1h\n");
    let mut idle = connect(scene.address);
    let before = scene.daemon.pid();
    let successor = scene.upgrade();
    // Systemd has to know of it before it says anything itself.
    scene.daemon.hear("READY=1");
    let told: Vec<&str> = scene.daemon.heard.iter().filter_map(|message| message.lines().next()).collect();
    let main = format!("MAINPID={}", successor.pid);
    assert!(told.ends_with(&[&main, "BARRIER=1", "READY=1"]), "{told:?}");

    assert!(get(scene.address).ends_with("new"));
    let now = status(&scene.daemon);
    assert_eq!((&now["pid"], &now["predecessor"]), (&successor.pid.into(), &before.into()));
    assert_eq!((&now["phase"], &now["listeners"][0]["passed"]), (&"serving".into(), &true.into()));
    // One who was connected to the process before may still ask it.
    idle.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let (mut exchange, _) = scene.backend.accept().unwrap();
    read_head(&mut exchange);
    exchange.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold").unwrap();
    let mut answer = String::new();
    idle.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("onnection: close"), "{answer}");

    let record = scene.daemon.record("another process has taken over");
    assert_eq!((&record["message_id"], &record["successor"]), (&events::HANDED_OVER.into(), &successor.pid.into()));
    // Whose stop takes an hour has no less in an upgrade.
    assert_eq!(record["timeout_s"], 3600.0);
    let record = scene.daemon.record("taken over from another process");
    assert_eq!((&record["message_id"], &record["predecessor"]), (&events::TOOK_OVER.into(), &before.into()));
    scene.finish();
    assert!(scene.daemon.end_alone().success());
    scene.daemon.record("the process before has ended");
    assert!(status(&scene.daemon)["predecessor"].is_null());
    assert!(get(scene.address).ends_with("new"));
    // What the one before had to say to systemd was for nobody.
    assert!(!scene.daemon.all_heard().iter().any(|message| message.contains("STOPPING")), "{:?}", scene.daemon.heard);

    // The new one is what the one before was, also in this.
    scene.daemon.heard.clear();
    successor.signal(Signal::USR2);
    let next = scene.daemon.successor();
    successor.await_end();
    assert_eq!(status(&scene.daemon)["pid"], next.pid);
    assert!(get(scene.address).ends_with("new"));
    next.signal(Signal::TERM);
    scene.daemon.hear("STOPPING=1");
    next.await_end();
    assert_eq!(scene.daemon.records("connections cut at the end of the drain"), 0);
}

#[test]
fn what_a_daemon_bound_itself_goes_on_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let [http, metrics] = ["http.sock", "metrics.sock"].map(path);
    let config = format!(
        "BACKEND_ADDRESS=builtin:echo\nPROXY_ADDRESS=127.0.0.1:0,unix:{}\nMETRICS_ADDRESS=unix:{},127.0.0.1:0\n",
        http.display(),
        metrics.display()
    );
    let setting = Setting::new(&config);
    let socket = setting.path("admin.sock");
    let mut daemon = setting.set("DOORWARD_ADMIN_SOCKET", socket.display().to_string()).start().ready();
    let address = daemon.address();
    let scraped = daemon.find("a TCP address of metrics", |record| {
        record["message"] == "listening for scrapes on a socket of its own"
            && record["address"].as_str().unwrap().starts_with("127.")
    });
    let scraped: SocketAddr = scraped["address"].as_str().unwrap().parse().unwrap();
    let successor = upgrade(&mut daemon);
    assert!(daemon.end_alone().success());

    let asked = |mut client: UnixStream| {
        client.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(get(address).starts_with("HTTP/1.1 200"));
    assert!(asked(UnixStream::connect(&http).unwrap()).starts_with("HTTP/1.1 200"));
    assert!(asked(UnixStream::connect(&metrics).unwrap()).contains("doorward_"));
    let mut scraper = connect(scraped);
    scraper.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    assert!(read_head(&mut scraper).starts_with("HTTP/1.1 200"));
    assert_eq!(status(&daemon)["pid"], successor.pid);

    // They are its own from then on.
    successor.signal(Signal::TERM);
    successor.await_end();
    for file in [&http, &metrics, &socket] {
        assert!(!file.exists(), "{}", file.display());
    }
}

#[test]
fn a_configuration_that_is_refused_changes_nothing() {
    let mut scene = Scene::new("");
    scene.daemon.write("config.env", "BACKEND_ADDRESS=builtin:echo\nMAX_RETRIES=many\n");
    let said = refused(&scene.daemon);
    assert!(said.contains("config.env:2: ") && said.contains("MAX_RETRIES"), "{said}");
    let record = scene.daemon.record("upgrade failed");
    assert_eq!(record["message_id"], events::UPGRADE_FAILED);
    assert!(record["error"].as_str().unwrap().contains("config.env:2: "), "{record}");
    let now = status(&scene.daemon);
    assert_eq!((&now["pid"], &now["phase"]), (&scene.daemon.pid().into(), &"serving".into()));
    // Systemd has heard nothing of it.
    assert!(!scene.daemon.all_heard().iter().any(|message| message.contains("not started")));

    scene.daemon.write("config.env", "BACKEND_ADDRESS=builtin:echo\n");
    assert!(ask(&scene.daemon, "reload").status.success());
    let _successor = scene.upgrade();
    assert_eq!(scene.daemon.record("another process has taken over")["timeout_s"], 900.0);
    assert!(get(scene.address).starts_with("HTTP/1.1 200"));
    scene.finish();
    assert!(scene.daemon.end_alone().success());
}

#[test]
fn a_program_that_can_not_serve_changes_nothing() {
    let (setting, program) = replaceable("BACKEND_ADDRESS=builtin:echo\n");
    let (door, address) = listener();
    let mut daemon = setting.pass("http", door).start().ready();
    for (content, why) in [
        (&b"\x7fELF, or not"[..], "can't be started: "),
        (b"#!/bin/sh\nexit 64\n", "it ended with exit status: 64"),
        // It starts another process, and that one ends.
        (b"#!/bin/sh\nexit 0\n", "the new process ended before it was ready"),
    ] {
        replace(&program, content);
        let said = refused(&daemon);
        assert!(said.contains(why), "{said}");
        assert_eq!(status(&daemon)["pid"], daemon.pid());
        assert!(get(address).starts_with("HTTP/1.1 200"));
    }
    fs::remove_file(&program).unwrap();
    let said = refused(&daemon);
    assert!(said.contains("can't be started: No such file"), "{said}");

    // The file that is there now counts, whatever became of the one that runs.
    copy(&program);
    let successor = upgrade(&mut daemon);
    let runs = fs::read_link(format!("/proc/{}/exe", successor.pid)).unwrap();
    assert_eq!(runs, program);
    assert!(daemon.end_alone().success());
}

/// A daemon whose program waits, once replaced, until it is let go on by the pipe.
fn waiting() -> (Daemon, SocketAddr, PathBuf) {
    let (setting, program) = replaceable("BACKEND_ADDRESS=builtin:echo\n");
    let (door, address) = listener();
    let daemon = setting.pass("http", door).start().ready();
    let pipe = daemon.folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let real = env!("CARGO_BIN_EXE_doorward");
    let script = format!("#!/bin/sh\nread -r go < '{}'\nexec '{real}' \"$@\"\n", pipe.display());
    replace(&program, script.as_bytes());
    (daemon, address, pipe)
}

#[test]
fn a_reload_is_refused_while_another_process_starts() {
    let (mut daemon, address, pipe) = waiting();
    // Both ask before the new process goes on: one that came later would ask for another.
    let both = [(); 2].map(|()| told(&daemon, "upgrade"));
    // It is under way when somebody reads the pipe.
    let mut pipe = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    assert_eq!(status(&daemon)["phase"], "upgrading");
    let refused = ask(&daemon, "reload");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("another process is taking over"));
    assert!(get(address).starts_with("HTTP/1.1 200"));
    pipe.write_all(b"go\n").unwrap();
    let successor = daemon.successor();
    for asked in both {
        let answer = said(asked);
        assert_eq!((&answer["ok"], &answer["upgraded"]["pid"]), (&true.into(), &successor.pid.into()), "{answer}");
    }
    assert!(daemon.end_alone().success());
    assert_eq!(daemon.records("upgrade begins"), 1);
}

#[test]
fn a_stop_ends_an_upgrade_that_has_not_come_far() {
    let (mut daemon, _, pipe) = waiting();
    thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&daemon, "upgrade"));
        let mut pipe = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
        daemon.signal(Signal::TERM);
        let said = asked.join().unwrap();
        assert_eq!(said.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&said.stderr).contains("doorward is stopping"));
        // What it started has nobody to take over from: with no main process of its own systemd
        // would end it.
        pipe.write_all(b"go\n").unwrap();
    });
    daemon.hear("STOPPING=1");
    assert!(daemon.end_alone().success());
    let record = daemon.find("the new process", |record| record["message"] == "taken over from another process");
    assert_eq!(record["predecessor"], daemon.pid());
    let left = status(&daemon)["pid"].as_u64().unwrap();
    Successor::of(u32::try_from(left).unwrap()).signal(Signal::TERM);
}

#[test]
fn the_end_of_the_new_process_is_the_end_of_the_one_before() {
    let mut scene = Scene::new("DRAIN_TIMEOUT=1h\n");
    let successor = scene.upgrade();
    successor.signal(Signal::KILL);
    successor.await_end();
    assert_eq!(scene.daemon.end_alone().code(), Some(1));
    let record = scene.daemon.record("the process that took over has ended");
    assert_eq!(record["message_id"], events::SUCCESSOR_DIED);
    assert_eq!(scene.daemon.record("connections cut at the end of the drain")["cause"], "successor");
}

#[test]
fn a_new_process_that_ends_before_systemd_knows_of_it_leaves_a_failed_service() {
    let (door, _) = listener();
    let mut daemon = Setting::new("BACKEND_ADDRESS=builtin:echo\n").pass("http", door).start().ready();
    daemon.signal(Signal::USR2);
    let message = daemon.hear("MAINPID=");
    let pid = message.lines().find_map(|line| line.strip_prefix("MAINPID=")).unwrap();
    let successor = Successor::of(pid.parse().unwrap());
    // Systemd refuses a main process that is no more, and starts a service again that failed.
    successor.signal(Signal::KILL);
    assert_eq!(daemon.end_alone().code(), Some(1));
    assert_eq!(daemon.record("the process that took over has ended")["message_id"], events::SUCCESSOR_DIED);
}

#[test]
fn what_systemd_can_not_be_told_of_changes_nothing() {
    let (door, address) = listener();
    let setting = Setting::new("BACKEND_ADDRESS=builtin:echo\n");
    let admin = UnixListener::bind(setting.path("admin.sock")).unwrap();
    let mut daemon = setting.pass("http", door).pass("admin", admin).start().ready();
    let [there, away] = ["notify", "away"].map(|name| daemon.folder.path().join(name));
    fs::rename(&there, &away).unwrap();
    let said = refused(&daemon);
    assert!(said.contains("systemd can't be told: "), "{said}");
    daemon.record("the process before goes on without this one");
    assert_eq!(status(&daemon)["pid"], daemon.pid());
    assert!(get(address).starts_with("HTTP/1.1 200"));
    fs::rename(&away, &there).unwrap();
    let _successor = upgrade(&mut daemon);
    assert!(daemon.end_alone().success());
}

/// How many descriptors a process has open.
fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn a_chain_of_upgrades_leaves_no_descriptor_open() {
    let (door, address) = listener();
    let setting = Setting::new("BACKEND_ADDRESS=builtin:echo\nMETRICS_ADDRESS=127.0.0.1:0\n");
    let admin = UnixListener::bind(setting.path("admin.sock")).unwrap();
    let mut daemon = setting.pass("http", door).pass("admin", admin).start().ready();
    let first = descriptors(daemon.pid());
    daemon.signal(Signal::USR2);
    let mut last = daemon.successor();
    assert!(daemon.end_alone().success());
    for _ in 0..9 {
        last.signal(Signal::USR2);
        let next = daemon.successor();
        last.await_end();
        last = next;
    }
    // The line to the process before is closed once its end is noticed.
    let deadline = Instant::now() + DEADLINE;
    while descriptors(last.pid) != first {
        assert!(Instant::now() < deadline, "{first} at first, {} now", descriptors(last.pid));
        thread::yield_now();
    }
    assert!(get(address).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_stop_waits_for_the_process_before() {
    let mut scene = Scene::new("DRAIN_TIMEOUT=1h\n");
    let successor = scene.upgrade();
    // Systemd tells all processes of the service, and those that are left once more.
    successor.signal(Signal::TERM);
    scene.daemon.signal(Signal::TERM);
    scene.daemon.hear("STOPPING=1");
    scene.daemon.signal(Signal::TERM);
    // The new one has nothing left, and asks for time all the same.
    scene.daemon.hear("EXTEND_TIMEOUT_USEC=");
    scene.daemon.hear("EXTEND_TIMEOUT_USEC=");
    scene.finish();
    assert!(scene.daemon.end_alone().success());
    successor.await_end();
    assert_eq!(scene.daemon.records("connections cut at the end of the drain"), 0);
}

#[test]
fn without_a_service_manager_there_is_no_upgrade() {
    let setting = Setting::new("BACKEND_ADDRESS=builtin:echo\n").through(&["/usr/bin/env", "-u", "NOTIFY_SOCKET"]);
    let admin = UnixListener::bind(setting.path("admin.sock")).unwrap();
    let daemon = setting.pass("admin", admin).set("PROXY_ADDRESS", "127.0.0.1:0").start();
    daemon.record("ready");
    let said = refused(&daemon);
    assert!(said.contains("an upgrade needs systemd"), "{said}");
}

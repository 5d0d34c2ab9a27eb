//! Another process takes over: with a notify socket of the test's own, no systemd. What of it
//! can't be seen here, such as who adopts the new process, is in tests/host.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
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
        let (door, address) = listener();
        let setting = Setting::new(&format!("BACKEND_ADDRESS={slow}\n{settings}"));
        let admin = UnixListener::bind(setting.path("admin.sock")).unwrap();
        let daemon = setting.pass("http", door).pass("admin", admin).start().ready();
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

/// Has another process take over, with systemd's part played here.
fn upgrade(daemon: &mut Daemon) -> Successor {
    let socket = admin(daemon);
    let asked = thread::spawn(move || ask_at(&socket, "upgrade"));
    let successor = daemon.successor();
    let said = asked.join().unwrap();
    let line = String::from_utf8(said.stdout).unwrap();
    assert!(said.status.success() && line.contains(&format!("process {} (", successor.pid)), "{line}");
    assert!(line.contains(&format!("taken over from {} (", daemon.pid())), "{line}");
    successor
}

/// A daemon with a WebSocket open, and what of it is asked.
struct Open {
    daemon: Daemon,
    address: SocketAddr,
    client: TcpStream,
    backend: TcpStream,
}

impl Open {
    fn new(settings: &str) -> Open {
        let (backend, slow) = listener();
        let (door, address) = listener();
        let setting = Setting::new(&format!("BACKEND_ADDRESS={slow}\n{settings}"));
        let admin = UnixListener::bind(setting.path("admin.sock")).unwrap();
        let daemon = setting.pass("http", door).pass("admin", admin).start().ready();
        let mut client = connect(address);
        client
            .write_all(b"GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .unwrap();
        let (mut backend, _) = backend.accept().unwrap();
        read_head(&mut backend);
        backend
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .unwrap();
        assert!(read_head(&mut client).starts_with("HTTP/1.1 101"));
        daemon.write("config.env", &format!("BACKEND_ADDRESS={}\n{settings}", answers("new")));
        let open = Open { daemon, address, client, backend };
        open.talks();
        open
    }

    /// What one end says is heard at the other.
    fn talks(&self) {
        let mut heard = [0; 4];
        for (mut from, mut to) in [(&self.client, &self.backend), (&self.backend, &self.client)] {
            from.write_all(b"word").unwrap();
            to.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"word");
        }
    }

    /// The client sees the end.
    fn is_cut(&mut self) {
        // Reset or closed.
        assert_eq!(self.client.read(&mut [0]).unwrap_or(0), 0);
    }

    /// Waits for what the new process knows of the time that the one before has; seconds.
    fn left(&self, wanted: impl Fn(u64) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = status(&self.daemon)["predecessor_left"].as_u64();
            if left.is_some_and(&wanted) {
                return;
            }
            assert!(Instant::now() < deadline, "it has {left:?} s left");
        }
    }
}

fn admin(daemon: &Daemon) -> PathBuf {
    daemon.folder.path().join("admin.sock")
}

/// Runs a command of the binary that asks the daemon.
fn ask(daemon: &Daemon, command: &str) -> Output {
    ask_at(&admin(daemon), command)
}

fn ask_at(socket: &Path, command: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_doorward")).arg(command).arg("--socket").arg(socket).output().unwrap()
}

fn status(daemon: &Daemon) -> Value {
    let mut client = UnixStream::connect(admin(daemon)).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"{\"command\":\"status\"}\n").unwrap();
    let mut answer = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        assert_eq!(client.read(&mut byte).unwrap(), 1, "closed");
        answer.extend(byte);
    }
    serde_json::from_slice::<Value>(&answer).unwrap()["status"].take()
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
    let socket = admin(&daemon);
    let _successor = thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| ask_at(&socket, "upgrade")));
        // It is under way when somebody reads the pipe.
        let mut pipe = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
        assert_eq!(status(&daemon)["phase"], "upgrading");
        let said = ask(&daemon, "reload");
        assert_eq!(said.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&said.stderr).contains("another process is taking over"));
        assert!(get(address).starts_with("HTTP/1.1 200"));
        pipe.write_all(b"go\n").unwrap();
        let successor = daemon.successor();
        // Whoever asks meanwhile asks for the same one.
        for asked in both {
            assert!(asked.join().unwrap().status.success());
        }
        successor
    });
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
    assert!(scene.daemon.end_alone().success());
    let record = scene.daemon.record("the process that took over has ended");
    assert_eq!(record["message_id"], events::SUCCESSOR_DIED);
    assert_eq!(scene.daemon.record("connections cut at the end of the drain")["cause"], "successor");
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

/// Long enough that no test sees the end of it.
const LONG: &str = "DRAIN_TIMEOUT=100ms\nUPGRADE_DRAIN_TIMEOUT=1h\n";

#[test]
fn a_websocket_outlives_what_a_stop_would_give_it() {
    let mut open = Open::new(LONG);
    let before = open.daemon.pid();
    let successor = upgrade(&mut open.daemon);
    // A second later at least.
    open.left(|left| left <= 3598);
    open.talks();
    assert!(get(open.address).ends_with("new"));
    assert_eq!(status(&open.daemon)["predecessor"], before);
    let page = String::from_utf8(ask(&open.daemon, "status").stdout).unwrap();
    let wanted = format!("taken over from pid {before}, which finishes what it has within 59 min ");
    assert!(page.contains(&wanted), "{page}");
    // What the new process is told later is not for this one.
    open.daemon.write("config.env", "BACKEND_ADDRESS=builtin:echo\nUPGRADE_DRAIN_TIMEOUT=0\n");
    assert!(ask(&open.daemon, "reload").status.success());
    open.talks();
    let Open { mut daemon, client, backend, .. } = open;
    drop((client, backend));
    assert!(daemon.end_alone().success());
    assert_eq!(daemon.records("connections cut at the end of the drain"), 0);
    assert_eq!(status(&daemon)["pid"], successor.pid);
}

#[test]
fn what_outlasts_the_time_of_an_upgrade_is_cut() {
    // It may be shorter than that of a stop.
    let mut open = Open::new("DRAIN_TIMEOUT=1h\nUPGRADE_DRAIN_TIMEOUT=300ms\n");
    let successor = upgrade(&mut open.daemon);
    open.is_cut();
    assert!(open.daemon.end_alone().success());
    let record = open.daemon.record("connections cut at the end of the drain");
    assert_eq!((&record["cause"], &record["tunnels"]), (&"timeout".into(), &1.into()), "{record}");
    open.daemon.record("the process before has ended");
    assert_eq!(status(&open.daemon)["pid"], successor.pid);
    assert!(get(open.address).ends_with("new"));
}

#[test]
fn who_asked_for_an_upgrade_that_leaves_no_time_has_an_answer() {
    let mut open = Open::new("UPGRADE_DRAIN_TIMEOUT=0\n");
    let _successor = upgrade(&mut open.daemon);
    open.is_cut();
    assert!(open.daemon.end_alone().success());
    assert!(get(open.address).ends_with("new"));
}

#[test]
fn a_stop_gives_the_process_before_no_more_than_any_other() {
    // Systemd tells both; whoever stops the main process by hand tells one.
    for both in [false, true] {
        let mut open = Open::new(LONG);
        let successor = upgrade(&mut open.daemon);
        open.left(|left| left > 0);
        if both {
            open.daemon.signal(Signal::TERM);
        }
        successor.signal(Signal::TERM);
        open.is_cut();
        assert!(open.daemon.end_alone().success());
        successor.await_end();
        let record = open.daemon.record("connections cut at the end of the drain");
        assert_eq!(record["tunnels"], 1, "{record}");
        assert_eq!(open.daemon.records("the process that took over has ended"), 0);
    }
}

#[test]
fn the_next_upgrade_hurries_the_process_before() {
    let mut open = Open::new(LONG);
    let successor = upgrade(&mut open.daemon);
    open.left(|left| left > 0);
    successor.signal(Signal::USR2);
    open.is_cut();
    assert!(open.daemon.end_alone().success());
    let record = open.daemon.record("what is left has to end sooner");
    assert_eq!(record["cause"], "upgrade");
    assert_eq!(open.daemon.record("connections cut at the end of the drain")["cause"], "timeout");
    let next = open.daemon.successor();
    successor.await_end();
    assert_eq!(status(&open.daemon)["pid"], next.pid);
}

#[test]
fn an_upgrade_waits_for_the_process_before_and_says_so() {
    let mut open = Open::new("DRAIN_TIMEOUT=1h\nUPGRADE_DRAIN_TIMEOUT=5h\n");
    let before = open.daemon.pid();
    let successor = upgrade(&mut open.daemon);
    open.left(|left| left > 3600);
    let mut asked = Command::new(env!("CARGO_BIN_EXE_doorward"));
    asked.arg("upgrade").arg("--socket").arg(admin(&open.daemon)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut asked = asked.spawn().unwrap();
    let mut told = String::new();
    BufReader::new(asked.stderr.take().unwrap()).read_line(&mut told).unwrap();
    let wanted = format!("waiting until process {before}, of the upgrade before, has finished what it has, for ");
    assert!(told.starts_with(&wanted) && told.contains("for 59 min "), "{told}");
    let record = open.daemon.record("the upgrade waits for the process before");
    assert_eq!((&record["message_id"], &record["predecessor"]), (&events::UPGRADE_WAITS.into(), &before.into()));
    let line = open.daemon.hear(&format!("STATUS=upgrade waits for process {before}, 35"));
    assert!(line.contains(" s at most: "), "{line}");
    let now = status(&open.daemon);
    assert_eq!((&now["pid"], &now["phase"]), (&successor.pid.into(), &"upgrading".into()));
    assert!(get(open.address).ends_with("new"));
    open.talks();

    let Open { mut daemon, client, backend, .. } = open;
    drop((client, backend));
    assert!(daemon.end_alone().success());
    let next = daemon.successor();
    assert!(asked.wait().unwrap().success());
    successor.await_end();
    assert_eq!(status(&daemon)["pid"], next.pid);
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

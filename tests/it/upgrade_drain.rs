//! How long a process that was taken over from has: on its own, and once somebody waits for it.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Instant;

use doorward::telemetry::events;
use rustix::process::Signal;

use super::daemon::{DEADLINE, Daemon, backend as answers, connect, get, listener, read_head};
use super::upgrade::{admin, ask, before, status, upgrade};

/// A daemon with a WebSocket open, and what of it is asked.
struct Open {
    daemon: Daemon,
    address: SocketAddr,
    client: TcpStream,
    backend: TcpStream,
    /// Where that backend is connected to.
    behind: TcpListener,
}

impl Open {
    fn new(settings: &str) -> Open {
        let (behind, slow) = listener();
        let (daemon, address) = before(slow, settings);
        let mut client = connect(address);
        client
            .write_all(b"GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .unwrap();
        let (mut backend, _) = behind.accept().unwrap();
        read_head(&mut backend);
        backend
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .unwrap();
        assert!(read_head(&mut client).starts_with("HTTP/1.1 101"));
        daemon.write("config.env", &format!("BACKEND_ADDRESS={}\n{settings}", answers("new")));
        let open = Open { daemon, address, client, backend, behind };
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
    let wanted = format!("taken over from pid {before}, which finishes 1 connection within 59 min ");
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
fn the_end_of_a_stop_is_no_death() {
    let mut open = Open::new("DRAIN_TIMEOUT=1h\nUPGRADE_DRAIN_TIMEOUT=2h\n");
    open.daemon.write("config.env", "BACKEND_ADDRESS=builtin:echo\nDRAIN_TIMEOUT=100ms\n");
    let successor = upgrade(&mut open.daemon);
    successor.signal(Signal::TERM);
    successor.await_end();
    open.is_cut();
    assert!(open.daemon.end_alone().success());
    assert_eq!(open.daemon.record("connections cut at the end of the drain")["cause"], "stop");
    assert_eq!(open.daemon.records("the process that took over has ended"), 0);
}

#[test]
fn a_signal_gives_the_process_before_no_more_than_a_stop() {
    let mut open = Open::new(LONG);
    let successor = upgrade(&mut open.daemon);
    open.daemon.record("another process has taken over");
    open.daemon.signal(Signal::TERM);
    open.is_cut();
    assert!(open.daemon.end_alone().success());
    assert_eq!(open.daemon.record("what is left has to end sooner")["cause"], "SIGTERM");
    assert_eq!(open.daemon.record("connections cut at the end of the drain")["cause"], "timeout");
    assert_eq!(status(&open.daemon)["pid"], successor.pid);
    assert!(get(open.address).ends_with("new"));
}

#[test]
fn who_was_taken_over_from_checks_no_backends() {
    let mut open =
        Open::new("HEALTH_CHECK=tcp\nHEALTH_INTERVAL=100ms\nHEALTH_TIMEOUT=100ms\nUPGRADE_DRAIN_TIMEOUT=1h\n");
    let _successor = upgrade(&mut open.daemon);
    // It says this when it has begun to leave. The new process has another backend.
    open.left(|left| left > 0);
    open.behind.set_nonblocking(true).unwrap();
    while open.behind.accept().is_ok() {}
    open.left(|left| left <= 3598);
    assert_eq!(open.behind.accept().err().map(|error| error.kind()), Some(ErrorKind::WouldBlock));
    open.talks();
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
    let wanted = format!("waiting until process {before}, of the upgrade before, has finished 1 connection, for ");
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

//! Leaving: the drain, its end by itself, by a second signal, by the clock.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

use rustix::process::Signal;

use super::daemon::{Daemon, Setting, connect, listener, read_head};
use super::nameserver::NameServer;

/// A daemon with one exchange under way: its client, the backend's side of it, and
/// the listener that both the test and the daemon hold.
pub struct Busy {
    pub daemon: Daemon,
    client: TcpStream,
    pub exchange: TcpStream,
    door: TcpListener,
    address: SocketAddr,
}

fn busy(settings: &str) -> Busy {
    busy_with(settings, |setting| setting)
}

pub fn busy_with(settings: &str, more: impl FnOnce(Setting) -> Setting) -> Busy {
    let (backend, slow) = listener();
    let (door, address) = listener();
    let setting = Setting::new(&format!("BACKEND_ADDRESS={slow}\n{settings}"));
    let daemon = more(setting.pass("http", door.try_clone().unwrap())).start().ready();
    let mut client = connect(address);
    client.write_all(b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let (mut exchange, _) = backend.accept().unwrap();
    assert!(read_head(&mut exchange).starts_with("GET /slow"));
    exchange.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf ").unwrap();
    let mut begun = [0; 15];
    client.read_exact(&mut begun).unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200 OK");
    Busy { daemon, client, exchange, door, address }
}

#[test]
fn a_slow_exchange_finishes_and_new_clients_wait_in_the_backlog() {
    let Busy { mut daemon, mut client, mut exchange, door, address } = busy("DRAIN_TIMEOUT=1h\n");
    daemon.signal(Signal::TERM);
    let stopping = daemon.hear("STOPPING=1");
    assert!(stopping.contains("EXTEND_TIMEOUT_USEC=") && stopping.contains("STATUS=draining: "), "{stopping}");
    // systemd hears again while the drain lasts, so that it does not lose patience.
    daemon.hear("EXTEND_TIMEOUT_USEC=");
    let mut late = connect(address);
    late.write_all(b"GET /late HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();

    exchange.write_all(b"whole").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("half whole"), "{answer}");
    assert_eq!(daemon.end().code(), Some(0));
    assert_eq!(daemon.record("stopping")["signal"], "SIGTERM");
    daemon.record("stopped");
    assert_eq!(daemon.records("connections cut at the end of the drain"), 0);

    // The next daemon would find it like this.
    let (mut accepted, _) = door.accept().unwrap();
    assert!(read_head(&mut accepted).starts_with("GET /late"));
}

#[test]
fn a_second_signal_cuts_and_says_what() {
    for second in [Signal::TERM, Signal::INT] {
        let Busy { mut daemon, mut client, exchange: _exchange, .. } = busy("DRAIN_TIMEOUT=1h\n");
        daemon.signal(Signal::TERM);
        daemon.hear("STOPPING=1");
        daemon.signal(second);
        assert_eq!(daemon.end().code(), Some(0));
        let record = daemon.record("connections cut at the end of the drain");
        assert_eq!(record["message_id"], doorward::telemetry::events::DRAIN_CUT);
        assert_eq!((&record["cut"], &record["requests"]), (&1.into(), &1.into()), "{record}");
        let mut rest = Vec::new();
        // Reset or closed: either way the answer is not whole.
        let _ = client.read_to_end(&mut rest);
        assert!(!rest.ends_with(b"whole"));
    }
}

#[test]
fn what_outlasts_the_drain_timeout_is_cut() {
    let Busy { mut daemon, client: _client, exchange: _exchange, .. } = busy("DRAIN_TIMEOUT=100ms\n");
    daemon.signal(Signal::INT);
    assert_eq!(daemon.end().code(), Some(0));
    assert_eq!(daemon.record("connections cut at the end of the drain")["cause"], "timeout");
    assert_eq!(daemon.record("stopping")["signal"], "SIGINT");
}

#[test]
fn an_idle_connection_does_not_hold_up_the_end() {
    let (door, address) = listener();
    let mut daemon = Setting::new("DRAIN_TIMEOUT=1h\n").pass("http", door).start().ready();
    let mut idle = connect(address);
    idle.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    assert!(read_head(&mut idle).starts_with("HTTP/1.1 200"));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end().code(), Some(0));
    assert_eq!(daemon.records("connections cut at the end of the drain"), 0);
}

#[test]
fn a_connection_gets_one_more_answer_after_an_exchange_that_outlived_the_signal() {
    let Busy { mut daemon, mut client, mut exchange, .. } = busy("DRAIN_TIMEOUT=1h\n");
    daemon.signal(Signal::TERM);
    daemon.hear("STOPPING=1");
    // On the wire before the first answer ends, which had no `Connection: close`.
    client.write_all(b"GET /more HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    exchange.write_all(b"whole").unwrap();
    assert!(read_head(&mut exchange).starts_with("GET /more"));
    exchange.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmore").unwrap();
    let mut answers = String::new();
    client.read_to_string(&mut answers).unwrap();
    let (_, last) = answers.split_once("half whole").unwrap();
    assert!(last.starts_with("HTTP/1.1 200") && last.ends_with("more"), "{answers}");
    assert!(last.to_lowercase().contains("connection: close"), "{answers}");
    assert_eq!(daemon.end().code(), Some(0));
}

#[test]
fn addresses_that_change_while_draining_cut_nothing() {
    let names = NameServer::new();
    names.addresses("app.test", &["127.0.0.1"], 0);
    let (backend, slow) = listener();
    let (door, address) = listener();
    let config = format!(
        "RESOLVER={}\nBACKEND_ADDRESS=app.test:{}\nDRAIN_TIMEOUT=1h\nACCESS_LOG=off\n",
        names.address,
        slow.port()
    );
    let mut daemon = Setting::new(&config).pass("http", door).start().ready();
    let mut client = connect(address);
    client.write_all(b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let (mut exchange, _) = backend.accept().unwrap();
    read_head(&mut exchange);
    daemon.signal(Signal::TERM);
    daemon.hear("STOPPING=1");
    names.addresses("app.test", &["127.0.0.2"], 0);
    // A word each second, and the name's lifetime is one.
    for _ in 0..3 {
        daemon.hear("EXTEND_TIMEOUT_USEC=");
    }
    exchange.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("whole"), "{answer}");
    assert_eq!(daemon.end().code(), Some(0));
    assert_eq!(daemon.records("a worker died"), 0);
}

#[test]
fn no_reload_begins_while_draining() {
    let mut busy = busy_with("DRAIN_TIMEOUT=1h\n", |setting| {
        let path = setting.path("admin.sock").display().to_string();
        setting.set("DOORWARD_ADMIN_SOCKET", path)
    });
    let path = busy.daemon.folder.path().join("admin.sock");
    let mut admin = UnixStream::connect(path).unwrap();
    let mut ask = |words: &[u8]| {
        admin.write_all(words).unwrap();
        let mut answer = Vec::new();
        let mut byte = [0];
        while admin.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            answer.push(byte[0]);
        }
        String::from_utf8(answer).unwrap()
    };
    assert!(ask(b"{\"command\":\"status\"}\n").contains("\"phase\":\"serving\""));
    busy.daemon.signal(Signal::TERM);
    busy.daemon.hear("STOPPING=1");
    assert!(ask(b"{\"command\":\"reload\"}\n").contains("doorward is stopping"));
    assert!(ask(b"{\"command\":\"status\"}\n").contains("\"phase\":\"draining\""));
    busy.daemon.signal(Signal::HUP);
    busy.exchange.write_all(b"whole").unwrap();
    assert_eq!(busy.daemon.end().code(), Some(0));
    assert!(!busy.daemon.all_heard().join("").contains("RELOADING=1"));
}

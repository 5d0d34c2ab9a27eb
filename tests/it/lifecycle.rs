//! Start, readiness, reload, status line, watchdog: with descriptors and a notify
//! socket of the test's own, no systemd.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::Command;

use rustix::process::Signal;

use super::daemon::{DEADLINE, Daemon, Setting, backend, connect, get, listener, read_head};

const ECHO: &str = "BACKEND_ADDRESS=builtin:echo\n";

fn to(address: std::net::SocketAddr) -> String {
    format!("BACKEND_ADDRESS={address}\n")
}

/// Runs a command of the binary that asks the daemon behind `socket`.
fn ask(daemon: &Daemon, command: &[&str]) -> std::process::Output {
    let socket = daemon.folder.path().join("admin.sock");
    Command::new(env!("CARGO_BIN_EXE_doorward")).args(command).arg("--socket").arg(socket).output().unwrap()
}

/// A daemon with an admin socket of its own, behind a passed listener.
fn with_admin(config: &str, listener: TcpListener) -> Daemon {
    let setting = Setting::new(config).pass("http", listener);
    let socket = setting.path("admin.sock").display().to_string();
    setting.set("DOORWARD_ADMIN_SOCKET", socket).start().ready()
}

#[test]
fn a_client_that_waits_in_the_backlog_is_answered_after_ready() {
    let (listener, address) = listener();
    let mut early = connect(address);
    early.write_all(b"GET /early HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut daemon = Setting::new(ECHO).pass("http", listener).start();
    let first = daemon.hear("");
    assert!(first.starts_with("READY=1\nSTATUS=") && first.contains("backends 1/1 up"), "{first}");
    let mut answer = String::new();
    early.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("/early"), "{answer}");
    let record = daemon.record("listening on a socket that systemd passed");
    assert_eq!(record["address"], address.to_string());
    assert_eq!(record["message_id"], doorward::telemetry::events::LISTENING);
}

#[test]
fn a_refused_configuration_ends_with_78_and_is_never_ready() {
    let (listener, _) = listener();
    let mut daemon = Setting::new("BACKEND_ADRESS=127.0.0.1:1\nMAX_RETRIES=many\n").pass("http", listener).start();
    assert_eq!(daemon.end().code(), Some(78));
    let log = daemon.log().join("\n");
    assert!(log.contains("config.env:1: unknown key `BACKEND_ADRESS`; did you mean `BACKEND_ADDRESS`?"), "{log}");
    assert!(log.contains("config.env:2: ") && log.contains("2 problems in 1 file; not started"), "{log}");
    assert_eq!(daemon.record("not started")["message_id"], doorward::telemetry::events::START_REFUSED);
    let heard = daemon.all_heard().join("");
    assert!(heard.contains("STATUS=not started: ") && !heard.contains("READY=1"), "{heard}");
}

#[test]
fn a_usage_error_ends_with_64() {
    let status = Command::new(env!("CARGO_BIN_EXE_doorward")).arg("--nonsense").output().unwrap().status;
    assert_eq!(status.code(), Some(64));
}

#[test]
fn descriptors_of_a_wrong_kind_are_named_all_at_once() {
    let (http, _) = listener();
    let (_peer, stream) = UnixStream::pair().unwrap();
    let (other, _) = listener();
    let folder = tempfile::tempdir().unwrap();
    let sound = UnixListener::bind(folder.path().join("sound")).unwrap();
    let second = UnixListener::bind(folder.path().join("second")).unwrap();
    let idle = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let mut daemon = Setting::new(ECHO)
        .pass("http", http)
        .pass("http", UdpSocket::bind("127.0.0.1:0").unwrap())
        .pass("http", stream)
        .pass("http", fs::File::open("/dev/null").unwrap())
        .pass("http", idle)
        .pass("http", UnixDatagram::unbound().unwrap())
        .pass("status", other.try_clone().unwrap())
        .pass("admin", other)
        .pass("admin", sound)
        .pass("admin", second)
        .start();
    assert_eq!(daemon.end().code(), Some(78));
    let log = daemon.log();
    let said = |line: &str| assert!(log.iter().any(|said| said.contains(line)), "no `{line}` in {log:#?}");
    said("descriptor 4 (`http`) is a datagram socket; a listening stream socket is needed");
    said("descriptor 5 (`http`) is a connection");
    said("descriptor 6 (`http`) is no stream socket");
    said("descriptor 7 (`http`) is a socket that does not listen");
    said("descriptor 8 (`http`) is a datagram socket");
    said("descriptor 9: the name `status` is reserved");
    said("descriptor 10 (`admin`) is a TCP socket; the admin socket must be a Unix one");
    said("descriptor 12 (`admin`) is a second admin socket");
    assert!(!log.iter().any(|line| line.contains("descriptor 3") || line.contains("descriptor 11")), "{log:#?}");
    assert!(!daemon.all_heard().join("").contains("READY=1"));
}

#[test]
fn a_port_in_use_is_named_with_a_way_to_find_out_who() {
    let (_holder, address) = listener();
    let mut daemon = Setting::new(&format!("PROXY_ADDRESS={address}\n")).start();
    assert_eq!(daemon.end().code(), Some(78));
    let log = daemon.log().join("\n");
    assert!(log.contains(&format!("can't listen on {address}: the address is in use; `ss -ltnp")), "{log}");
}

#[test]
fn every_passed_listener_is_served_whatever_its_family_and_order() {
    let (first, v4) = listener();
    let (second, also_v4) = listener();
    let third = TcpListener::bind("[::1]:0").unwrap();
    let v6 = third.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("http.sock");
    let admin = folder.path().join("admin.sock");
    let _daemon = Setting::new(ECHO)
        .pass("admin", UnixListener::bind(&admin).unwrap())
        .pass("http", UnixListener::bind(&path).unwrap())
        .pass("http", first)
        .pass("web", third)
        .pass("http", second)
        .start()
        .ready();
    for address in [v4, also_v4, v6] {
        assert!(get(address).starts_with("HTTP/1.1 200"), "{address}");
    }
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let mut client = UnixStream::connect(&admin).unwrap();
    client.write_all(b"{\"command\":\"status\"}\n").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["status"]["listeners"].as_array().unwrap().len(), 4, "{answer}");
    assert_eq!(answer["status"]["listeners"][0]["passed"], true, "{answer}");
}

#[test]
fn sockets_other_than_the_configured_ones_are_remarked_once() {
    let (passed, address) = listener();
    let daemon = Setting::new("PROXY_ADDRESS=127.0.0.1:1\n").pass("http", passed).start().ready();
    let warning = daemon.record("PROXY_ADDRESS differs from the passed sockets");
    let text = format!("PROXY_ADDRESS=127.0.0.1:1 does not count: systemd passed {address}");
    assert_eq!(warning["warning"], text);

    let (passed, address) = listener();
    let daemon = Setting::new(&format!("PROXY_ADDRESS={address}\n")).pass("http", passed).start().ready();
    daemon.record("ready");
    assert_eq!(daemon.records("PROXY_ADDRESS differs from the passed sockets"), 0);
}

#[test]
fn sockets_bound_by_the_daemon_go_with_it() {
    let setting = Setting::new(ECHO);
    let path = setting.path("http.sock");
    drop(UnixListener::bind(&path).unwrap()); // Left behind by an earlier life.
    let addresses = format!("127.0.0.1:0,unix:{}", path.display());
    let mut daemon = setting.set("PROXY_ADDRESS", addresses).start().ready();
    let address = daemon.address();
    assert!(get(address).starts_with("HTTP/1.1 200"));
    UnixStream::connect(&path).unwrap();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end().code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn an_unresolvable_backend_does_not_hold_up_the_start() {
    let (listener, address) = listener();
    let daemon = Setting::new("BACKEND_ADDRESS=no-such-host.invalid:80\n").pass("http", listener).start().ready();
    assert!(daemon.heard.iter().any(|message| message.contains("backends 0/1 up")), "{:?}", daemon.heard);
    let record = daemon.record("backend's name not resolved");
    assert_eq!(record["backend"], "no-such-host.invalid:80");
    assert_eq!(record["message_id"], doorward::telemetry::events::BACKEND_UNRESOLVED);
    let answer = get(address);
    assert!(answer.starts_with("HTTP/1.1 50"), "{answer}");
}

#[test]
fn a_reload_swaps_the_configuration_under_an_open_connection() {
    let (listener, address) = listener();
    let mut daemon = Setting::new(&to(backend("old"))).pass("http", listener).start().ready();
    let mut kept = connect(address);
    kept.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    assert!(read_head(&mut kept).starts_with("HTTP/1.1 200"));
    let mut body = [0; 3];
    kept.read_exact(&mut body).unwrap();
    assert_eq!(&body, b"old");

    daemon.write("config.env", &to(backend("new")));
    daemon.signal(Signal::HUP);
    let reloading = daemon.hear("RELOADING=1");
    assert!(reloading.contains("\nMONOTONIC_USEC="), "{reloading}");
    // The periodic status line may come in between.
    let ready = daemon.hear("READY=1\n");
    assert!(ready.starts_with("READY=1\n"), "{ready}");
    assert_eq!(daemon.record("reloaded")["generation"], 2);
    assert!(get(address).ends_with("new"));

    kept.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut rest = String::new();
    kept.read_to_string(&mut rest).unwrap();
    assert!(rest.starts_with("HTTP/1.1 200") && rest.ends_with("new"), "{rest}");
}

#[test]
fn a_refused_reload_changes_nothing_and_fails_the_command() {
    let (listener, address) = listener();
    let mut daemon = with_admin(&to(backend("old")), listener);
    daemon.write("config.env", "BACKEND_ADDRESS=127.0.0.1:1\nCONECT_TIMEOUT=3s\n");
    let output = ask(&daemon, &["reload"]);
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("config.env:2: unknown key `CONECT_TIMEOUT`; did you mean `CONNECT_TIMEOUT`?"), "{stderr}");
    assert!(stderr.contains("1 problem in 1 file; still serving generation 1"), "{stderr}");

    daemon.hear("RELOADING=1");
    let ready = daemon.hear("READY=1");
    assert!(ready.contains("STATUS=reload refused: ") && ready.contains("still serving generation 1"), "{ready}");
    let record = daemon.record("reload refused");
    assert_eq!(record["message_id"], doorward::telemetry::events::RELOAD_REFUSED);
    assert!(record["message"].as_str().unwrap().contains("config.env:2: unknown key"), "{record}");
    assert!(record["error"].as_str().unwrap().contains("config.env:2: "), "{record}");
    assert!(get(address).ends_with("old"));
    // It stays visible beside the live figures.
    let line = daemon.hear("STATUS=");
    assert!(line.contains("reload refused: "), "{line}");
    let status = String::from_utf8(ask(&daemon, &["status", "--json"]).stdout).unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status["generation"], &status["reload"]["ok"]), (&1.into(), &false.into()), "{status}");

    daemon.write("config.env", &to(backend("mended")));
    let output = ask(&daemon, &["reload"]);
    assert!(output.status.success(), "{output:?}");
    assert!(get(address).ends_with("mended"));
    let ready = daemon.hear("READY=1");
    assert!(!ready.contains("refused"), "{ready}");
}

#[test]
fn the_last_of_many_hangups_is_never_lost() {
    let (listener, address) = listener();
    let mut daemon = Setting::new(ECHO).pass("http", listener).start().ready();
    let bodies = ["a", "b", "c", "d", "e", "f", "g", "last"];
    for body in bodies {
        daemon.write("config.env", &to(backend(body)));
        daemon.signal(Signal::HUP);
    }
    let until = std::time::Instant::now() + DEADLINE;
    while !get(address).ends_with("last") {
        assert!(std::time::Instant::now() < until, "the last configuration never served");
    }
    // A reload begun earlier may have read the last file: let the rest end, too.
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end().code(), Some(0));
    let heard = daemon.all_heard().join("");
    let count = |word: &str| heard.matches(word).count();
    let (begun, ended) = (count("RELOADING=1"), count("READY=1") - 1);
    assert!(begun >= 1 && begun <= bodies.len(), "{begun} reloads");
    assert!(ended == begun || ended + 1 == begun, "{begun} begun, {ended} ended");
}

#[test]
fn what_a_reload_cannot_change_is_said() {
    let daemon = Setting::new("PROXY_ADDRESS=127.0.0.1:0\n").start().ready();
    daemon.write("config.env", "PROXY_ADDRESS=127.0.0.1:1\n");
    daemon.signal(Signal::HUP);
    let warning = daemon.record("a reload can't change this");
    assert_eq!(warning["warning"], "PROXY_ADDRESS=127.0.0.1:1 takes effect with the next restart");
    assert!(get(daemon.address()).starts_with("HTTP/1.1 200"));
}

#[test]
fn signals_without_a_meaning_do_no_harm() {
    let (listener, address) = listener();
    let daemon = Setting::new(ECHO).set("LOG_LEVEL", "debug").pass("http", listener).start().ready();
    daemon.signal(Signal::USR1);
    daemon.record("signal without a meaning ignored");
    assert!(get(address).starts_with("HTTP/1.1 200"));
}

#[test]
fn on_a_terminal_it_says_where_it_listens_where_it_sends_and_how_to_change_it() {
    let terminal = nix::pty::openpty(None, None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_doorward"))
        .current_dir(folder.path())
        .env_clear()
        .envs([("PROXY_ADDRESS", "127.0.0.1:0"), ("BACKEND_ADDRESS", "127.0.0.1:3000")])
        .stderr(terminal.slave)
        .spawn()
        .unwrap();
    let mut screen = fs::File::from(terminal.master);
    let mut text = String::new();
    let mut bytes = [0; 1024];
    // Ends at the last line, or, should it never come, when the killed child hangs up.
    let (done, late) = std::sync::mpsc::channel::<()>();
    let pid = rustix::process::Pid::from_child(&child);
    let guard = std::thread::spawn(move || {
        if late.recv_timeout(DEADLINE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    });
    while !text.contains("Ctrl-C stops") {
        let Ok(length) = screen.read(&mut bytes) else { break };
        text.push_str(&String::from_utf8_lossy(&bytes[..length]));
    }
    drop(done);
    guard.join().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    for line in
        ["  listens on  http://127.0.0.1:", "  sends to    127.0.0.1:3000", "  change it   write BACKEND_ADDRESS"]
    {
        assert!(text.contains(line), "no `{line}` in {text}");
    }
}

#[test]
fn the_status_line_lives() {
    let (waiting, slow) = listener();
    let (listener, address) = listener();
    let mut daemon = Setting::new(&to(slow)).pass("http", listener).start().ready();
    let mut client = connect(address);
    client.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let (mut exchange, _) = waiting.accept().unwrap();
    daemon.hear("STATUS=1 in flight, 0 queued");
    read_head(&mut exchange);
    exchange.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    daemon.hear("STATUS=0 in flight, 0 queued");
    let lines: Vec<&String> = daemon.heard.iter().filter(|line| line.starts_with("STATUS=")).collect();
    assert!(lines.windows(2).all(|pair| pair[0] != pair[1]), "repeated without a change: {lines:?}");
}

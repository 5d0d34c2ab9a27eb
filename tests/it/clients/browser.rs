//! A real browser: Chromium, without a screen.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::{Foreign, NAME, daemon};
use crate::daemon::{listener, read_head};

/// Longer than a browser takes to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A page that asks for more over the same connection, talks over a WebSocket, and tells its
/// server how that went.
const PAGE: &str = "<!doctype html><title>page</title><script>\
    const protocol = performance.getEntriesByType('navigation')[0].nextHopProtocol;\
    const tell = text => fetch('/report/' + encodeURIComponent(protocol + ' ' + text));\
    const socket = new WebSocket(`wss://${location.host}/socket`);\
    socket.onopen = () => socket.send('from the page');\
    socket.onmessage = event => tell(event.data);\
    socket.onerror = () => tell('no socket');\
    </script>";

/// The backend of the page, and what it is told.
fn site() -> (SocketAddr, Receiver<String>) {
    let (listener, address) = listener();
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let sender: Sender<String> = sender.clone();
            std::thread::spawn(move || {
                let mut stream = stream;
                let head = read_head(&mut stream);
                let path = head.split(' ').nth(1).unwrap_or_default();
                let body = match path.strip_prefix("/report/") {
                    Some(report) => {
                        // The test may have seen enough.
                        let _ = sender.send(report.replace("%20", " "));
                        ""
                    }
                    None => PAGE,
                };
                let length = body.len();
                let fields = "Content-Type: text/html; charset=utf-8\r\nConnection: close\r\n";
                let _ = write!(stream, "HTTP/1.1 200 OK\r\n{fields}Content-Length: {length}\r\n\r\n{body}");
            });
        }
    });
    (address, receiver)
}

/// A backend that sends each message of a WebSocket back.
fn echo() -> SocketAddr {
    let (listener, address) = listener();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut socket = tungstenite::accept(stream).unwrap();
                while let Ok(message) = socket.read() {
                    if message.is_text() && socket.send(format!("echo {message}").into()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[test]
#[ignore = "needs chromium: run by tests/run"]
fn a_browser_loads_a_page_over_http_2_and_talks_over_a_websocket() {
    let (site, told) = site();
    let socket = echo();
    let (daemon, address) = daemon(&format!("BACKEND_ADDRESS={site}\nACCESS_LOG=on\n"));
    std::fs::create_dir(daemon.folder.path().join("routes.d")).unwrap();
    daemon.write("routes.d/socket.env", &format!("MATCH_PATH=/socket\nBACKEND_ADDRESS={socket}\n"));
    daemon.signal(rustix::process::Signal::HUP);
    daemon.record("reloaded");
    let profile = tempfile::tempdir().unwrap();
    let _browser = Foreign::start(
        Command::new("chromium")
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            // Nothing but the site exists for it, and its certificate is the test's own.
            .arg(format!("--host-resolver-rules=MAP {NAME} 127.0.0.1, MAP * ~NOTFOUND"))
            .args(["--ignore-certificate-errors", "--disable-background-networking", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("https://{NAME}:{}/", address.port())),
    );
    let report =
        told.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no report in {PATIENCE:?}: {:#?}", daemon.log()));
    assert_eq!(report, "h2 echo from the page");
    // The WebSocket took the same way: it is a stream of HTTP/2, too.
    daemon.find("the page", |record| record["path"] == "/" && record["version"] == "2");
}

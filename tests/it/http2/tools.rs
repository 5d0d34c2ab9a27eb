//! What others make of it: curl, nghttp and h2load, where they are installed.

use std::path::Path;
use std::process::{Command, Output};

use crate::backend::Backend;
use crate::tls::secured::Secured;
use crate::traffic::door::Setup;

/// Runs a tool to its end; `None` where it is not installed, which `tests/run` sees to.
fn run(tool: &str, arguments: &[&str]) -> Option<Output> {
    if !Path::new("/usr/bin").join(tool).exists() {
        assert!(std::env::var_os("CI").is_none(), "{tool} is not installed");
        eprintln!("skipped: {tool} is not installed");
        return None;
    }
    let output = Command::new(tool).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {arguments:?}: {error}");
    Some(output)
}

#[test]
fn curl_sends_and_gets_with_prior_knowledge() {
    let daemon = Setup::new().start();
    let url = format!("http://{}/there?x", daemon.address());
    let written = "\n%{http_version} %{response_code}";
    let get = ["-sS", "--http2-prior-knowledge", "-w", written, &url];
    let Some(output) = run("curl", &get) else { return };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with("\n2 200") && text.contains("\"target\": \"/there?x\""), "{text}");
    let body = "b".repeat(300_000);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &body).unwrap();
    let data = format!("@{}", file.path().display());
    let post = [&get[..4], &["--data-binary", &data, "-H", "Expect: 100-continue", &url]].concat();
    let text = String::from_utf8(run("curl", &post).unwrap().stdout).unwrap();
    assert!(text.contains("\"body_bytes\": 300000") && text.ends_with("\n2 200"), "{text}");
}

#[test]
fn curl_and_h2load_agree_on_it_with_tls() {
    let secured = Secured::before("builtin:echo", |setup| setup.set("ACCESS_LOG", "off"));
    let url = format!("https://{}/", secured.address);
    let Some(output) = run("curl", &["-sSk", "-w", "\n%{http_version} %{response_code}", &url]) else { return };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with("\n2 200"), "{text}");
    let Some(output) = run("h2load", &["-n", "2000", "-c", "4", "-m", "20", &url]) else { return };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("Application protocol: h2") && text.contains("status codes: 2000 2xx"), "{text}");
}

#[test]
fn nghttp_hears_all_of_an_answer() {
    let backend = Backend::new();
    let daemon = Setup::new().set("WORKERS", 1).set("BACKEND_ADDRESS", &backend.address).start();
    let url = format!("http://{}/", daemon.address());
    let tool = std::thread::spawn(move || run("nghttp", &["-v", "-H", "te: trailers", &url]));
    if !Path::new("/usr/bin/nghttp").exists() {
        tool.join().unwrap();
        return;
    }
    let (mut peer, _) = backend.take();
    peer.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nSum: 9\r\n\r\n");
    let text = String::from_utf8(tool.join().unwrap().unwrap().stdout).unwrap();
    for part in [":status: 103", "link: </a>", ":status: 200", "body", "sum: 9"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn h2load_has_all_of_its_requests_answered() {
    let daemon = Setup::new().set("ACCESS_LOG", "off").start();
    let url = format!("http://{}/", daemon.address());
    let Some(output) = run("h2load", &["-n", "20000", "-c", "8", "-m", "32", &url]) else { return };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("20000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
    assert!(text.contains("status codes: 20000 2xx"), "{text}");
}

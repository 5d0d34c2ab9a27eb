//! Certificates and keys: what check, start and reload say of them.

use std::fs;

use super::issued::{self, Authority};
use crate::config::{doorward, folder, problems, stderr, stdout};
use crate::daemon::Setting;

#[test]
fn keys_without_certificates_and_unequal_lists_are_refused() {
    assert_eq!(
        problems(&[
            ("config.env", "TLS_PRIVATE_KEY=/a.key\nTLS_UNKNOWN_NAME=drop\n"),
            ("routes.d/10-a.env", "MATCH_HOST=a.example\nTLS_CERTIFICATE=/a.pem,b.pem\nTLS_PRIVATE_KEY=/a.key\n"),
            ("routes.d/20-b.env", "MATCH_HOST=b.example\nTLS_CERTIFICATE=certs/b.pem\n"),
            ("routes.d/30-c.env", "MATCH_HOST=c.example\nTLS_UNKNOWN_NAME=refuse\n"),
        ]),
        [
            "config.env:2: `TLS_UNKNOWN_NAME`: expected `default` or `refuse`, found `drop`",
            "routes.d/20-b.env:2: `TLS_CERTIFICATE`: expected an absolute path, or the bare name of a systemd \
             credential, found `certs/b.pem`",
            "routes.d/30-c.env:2: `TLS_UNKNOWN_NAME` is a setting of the whole daemon; it belongs in `config.env`",
            "routes.d/10-a.env:3: `TLS_PRIVATE_KEY`: 1 key for 2 certificates",
        ]
    );
    let lonely = problems(&[("config.env", "TLS_PRIVATE_KEY=/a.key\n")]);
    assert_eq!(lonely, ["config.env:1: `TLS_PRIVATE_KEY`: there is no `TLS_CERTIFICATE` beside it"]);
}

#[test]
fn check_says_what_is_wrong_with_certificates_or_what_they_are_for() {
    let folder = folder(&[("routes.d/20-b.env", "MATCH_HOST=b.example\n")]);
    let (path, authority) = (folder.path(), Authority::new());
    let here = path.display().to_string();
    let set = |text: &str| fs::write(path.join("config.env"), text.replace("DIR", &here)).unwrap();
    let plain = |text: &str| text.replace(&format!("{here}/"), "");
    issued::write(path, "a", &authority.issue(&["a.example", "*.a.example", "127.0.0.1"], 1, false));
    issued::write(path, "b", &authority.issue(&["b.example"], 2, true));
    set("TLS_CERTIFICATE=DIR/a.crt,DIR/none.pem\nTLS_PRIVATE_KEY=DIR/b.key,DIR/a.key\n");
    let output = doorward(path, &[], &["check", "--config", "config.env"]);
    assert_eq!(output.status.code(), Some(78));
    let said = plain(stderr(&output));
    for part in [
        "config.env:1: `TLS_CERTIFICATE`: `none.pem` can't be read: no such file\n",
        "config.env:2: `TLS_PRIVATE_KEY`: `b.key` is not the key of the certificate (CN=leaf)\n",
        "2 problems in 1 file\n",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    // The caret stands under the file of the list.
    assert!(said.contains("a.crt,none.pem\n") && said.lines().any(|line| line.trim().starts_with("^~~")), "{said}");

    set("TLS_CERTIFICATE=DIR/a.crt,DIR/b.crt,seen.pem\nTLS_PRIVATE_KEY=DIR/a.key,DIR/b.key,seen.key\n");
    let output = doorward(path, &[], &["check", "--config", "config.env"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = plain(stdout(&output));
    for part in [
        "warning: config.env:1: `TLS_CERTIFICATE`: credential `seen.pem` was not examined: only the service sees it\n",
        "warning: config.env:2: `TLS_PRIVATE_KEY`: credential `seen.key` was not examined: only the service sees it\n",
        "warning: config.env:1: `TLS_CERTIFICATE`: `b.crt` (b.example) expired on 2001-01-01\n",
        "\ncertificates\n  a.example, *.a.example, 127.0.0.1  P-256, ",
        " days left  signed by CN=authority  a.crt\n",
        "  b.example                          P-256, has expired",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    // The service sees its credentials, or is told that there are none.
    issued::write(&path.join("credentials"), "x", &authority.issue(&["c.example"], 3, false));
    set("TLS_CERTIFICATE=x.crt\nTLS_PRIVATE_KEY=x.key\n");
    let credentials = format!("{here}/credentials");
    let output = doorward(path, &[("CREDENTIALS_DIRECTORY", &credentials)], &["check", "--config", "config.env"]);
    assert!(stdout(&output).contains("c.example  P-256, "), "{output:?}");
    let output = doorward(path, &[], &["run", "--config", "config.env"]);
    assert_eq!(output.status.code(), Some(78));
    let missing = "`x.crt` is no path, and the service manager has passed no such credential (`LoadCredential=`)";
    assert!(stderr(&output).contains(missing), "{output:?}");
}

#[test]
fn a_reload_with_a_broken_pair_changes_nothing() {
    let authority = Authority::new();
    let setting = Setting::new("");
    let folder = setting.folder.path().to_path_buf();
    let pair = authority.issue(&["a.example"], 1, false);
    issued::write(&folder.join("tls"), "a", &pair);
    let text = format!("PROXY_ADDRESS=127.0.0.1:0\nTLS_CERTIFICATE={}\n", folder.join("tls").display());
    setting.write("config.env", &text);
    let daemon = setting.start().ready();
    issued::write(&folder.join("tls"), "a", &(pair.0, authority.issue(&["a.example"], 2, false).1));
    daemon.signal(rustix::process::Signal::HUP);
    let refused = daemon.record("reload refused");
    let error = refused["error"].as_str().unwrap_or_default().to_owned();
    assert!(error.contains("a.key` is not the key of the certificate (CN=leaf)"), "{error}");
    assert!(error.ends_with("still serving generation 1"), "{error}");
    issued::write(&folder.join("tls"), "a", &authority.issue(&["a.example"], 3, false));
    daemon.signal(rustix::process::Signal::HUP);
    daemon.record("reloaded");
}

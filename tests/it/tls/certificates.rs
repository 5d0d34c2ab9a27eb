//! Certificates and keys: what check, start and reload say of them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

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
    issued::write(path, "a", &authority.issue(&["a.example", "*.a.example", "127.0.0.1"], 1, 90));
    issued::write(path, "b", &authority.issue(&["b.example"], 2, -2));
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
        "warning: config.env:1: `TLS_CERTIFICATE`: `b.crt` (b.example) expired on ",
        "\ncertificates\n  a.example, *.a.example, 127.0.0.1  P-256, 90 days left  signed by CN=authority  a.crt\n",
        "  b.example                          P-256, has expired",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    // TLS without a certificate is not what anybody means.
    for (more, told) in [("", true), ("ACME=on\nACME_NAMES=a.example\n", false), ("TLS_CERTIFICATE=seen.pem\n", false)]
    {
        set(&format!("PROXY_TLS_ADDRESS=127.0.0.1:0\n{more}"));
        let output = doorward(path, &[], &["check", "--config", "config.env"]);
        let said = stdout(&output);
        assert_eq!(said.contains("warning: there is no certificate, so TLS clients are refused"), told, "{said}");
        assert_eq!(output.status.code(), Some(0), "{more}");
    }
    // The service sees its credentials, or is told that there are none.
    issued::write(&path.join("credentials"), "x", &authority.issue(&["c.example"], 3, 90));
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
fn check_names_chains_in_disorder_keys_for_everybody_and_hosts_without_a_certificate() {
    let folder = folder(&[("routes.d/10-a.env", "")]);
    let (path, authority) = (folder.path(), Authority::new());
    let here = path.display().to_string();
    let pair = authority.issue(&["a.example"], 1, 1);
    let mode = |name: &str, mode| fs::set_permissions(path.join(name), fs::Permissions::from_mode(mode)).unwrap();
    let check = |status| {
        let output = doorward(path, &[], &["check", "--config", "config.env"]);
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        let said = if status == 0 { stdout(&output) } else { stderr(&output) };
        said.replace(&format!("{here}/"), "")
    };
    issued::write(path, "a", &pair);
    mode("a.key", 0o640);
    fs::write(path.join("config.env"), "").unwrap();
    let route = format!("MATCH_HOST=a.example,b.example\nTLS_CERTIFICATE={here}/a.crt\nTLS_PRIVATE_KEY={here}/a.key\n");
    fs::write(path.join("routes.d/10-a.env"), route).unwrap();
    let said = check(0);
    assert!(said.contains("\ncertificates\n  a.example  P-256, 1 day left  signed by CN=authority  a.crt\n"), "{said}");
    let warnings: Vec<&str> = said.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert_eq!(
        warnings,
        ["warning: routes.d/10-a.env:2: `TLS_CERTIFICATE`: no certificate of this route is for b.example"]
    );
    // What leads to the root is told in its order.
    fs::write(path.join("a.crt"), [&*pair.0, &authority.pem].concat()).unwrap();
    assert!(check(0).contains("signed by CN=authority  a.crt"));
    mode("a.key", 0o644);
    assert!(check(0).contains("`a.key` can be read by everybody (mode 0644); `chmod o-r` it\n"));
    mode("a.key", 0o662);
    assert!(check(78).contains("`TLS_PRIVATE_KEY`: `a.key` can be written by everybody (mode 0662); `chmod o-rwx` it"));
    mode("a.key", 0o640);
    fs::write(path.join("a.crt"), [&*authority.pem, &pair.0].concat()).unwrap();
    let disorder = "`a.crt` is in the wrong order: the certificate of the key comes first, and it is number 2";
    assert!(check(78).contains(disorder));
    fs::write(path.join("a.crt"), [&*pair.0, &Authority::new().issue(&["other"], 2, 1).0].concat()).unwrap();
    let stray = "`a.crt` holds a certificate that does not belong: number 2 (CN=leaf) did not sign the one before it";
    assert!(check(78).contains(stray));
}

#[test]
fn a_reload_with_a_broken_pair_changes_nothing() {
    let authority = Authority::new();
    let setting = Setting::new("");
    let folder = setting.folder.path().to_path_buf();
    let pair = authority.issue(&["a.example"], 1, 90);
    issued::write(&folder.join("tls"), "a", &pair);
    let text = format!("PROXY_ADDRESS=127.0.0.1:0\nTLS_CERTIFICATE={}\n", folder.join("tls").display());
    setting.write("config.env", &text);
    let daemon = setting.start().ready();
    issued::write(&folder.join("tls"), "a", &(pair.0, authority.issue(&["a.example"], 2, 90).1));
    daemon.signal(rustix::process::Signal::HUP);
    let refused = daemon.record("reload refused");
    let error = refused["error"].as_str().unwrap_or_default().to_owned();
    assert!(error.contains("a.key` is not the key of the certificate (CN=leaf)"), "{error}");
    assert!(error.ends_with("still serving generation 1"), "{error}");
    issued::write(&folder.join("tls"), "a", &authority.issue(&["a.example"], 3, 90));
    daemon.signal(rustix::process::Signal::HUP);
    daemon.record("reloaded");
}

#[test]
fn changed_files_are_taken_up_without_a_reload_and_a_bad_pair_keeps_the_old_one() {
    let authority = Authority::new();
    let (admin, socket) = {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        (std::os::unix::net::UnixListener::bind(&path).unwrap(), (folder, path))
    };
    let setting = Setting::new("").pass("admin", admin);
    let tls = setting.folder.path().join("tls");
    issued::write(&tls, "a", &authority.issue(&["a.example"], 1, 10));
    issued::write(&tls, "b", &authority.issue(&["b.example"], 2, -1));
    let text = format!("PROXY_ADDRESS=127.0.0.1:0\nTLS_CERTIFICATE={}\n", tls.display());
    setting.write("config.env", &text);
    let daemon = setting.start().ready();
    let soon = daemon.record("certificate expires soon");
    assert_eq!((soon["names"].as_str(), soon["days"].as_i64()), (Some("a.example"), Some(10)), "{soon}");
    assert_eq!(daemon.record("certificate expired")["names"], "b.example");
    let status = |expected: &str| {
        let output = doorward(tls.as_path(), &[], &["status", "--socket", socket.1.to_str().unwrap()]);
        let page = stdout(&output).replace(&format!("{}/", tls.display()), "");
        assert!(page.contains(expected), "{page}");
    };
    status(
        "certificates\n  a.example  P-256, 10 days left  signed by CN=authority  a.crt\n  b.example  P-256, has expired ",
    );

    issued::write(&tls, "a", &authority.issue(&["a.example"], 3, 90));
    let renewed = daemon.record("certificate renewed");
    assert_eq!((renewed["names"].as_str(), renewed["days"].as_i64()), (Some("a.example"), Some(90)), "{renewed}");
    status("  a.example  P-256, 90 days left  signed");
    assert_eq!(daemon.records("reloaded"), 0);

    // A certificate without its key stays out, and is told of once.
    fs::write(tls.join("a.crt"), authority.issue(&["a.example"], 4, 95).0).unwrap();
    let error = daemon.record("certificate not renewed")["error"].as_str().unwrap().to_owned();
    assert!(error.ends_with("a.key` is not the key of the certificate (CN=leaf)"), "{error}");
    status("  a.example  P-256, 90 days left  signed");
    issued::write(&tls, "a", &authority.issue(&["a.example"], 5, 80));
    assert_eq!(daemon.wait_for("certificate renewed", 2)[1]["days"], 80);
    issued::write(&tls, "b", &authority.issue(&["b.example"], 6, 70));
    assert_eq!(daemon.wait_for("certificate renewed", 3)[2]["names"], "b.example");
    assert_eq!(daemon.records("certificate not renewed"), 1);
    assert_eq!(daemon.records("certificate expired"), 1);
}

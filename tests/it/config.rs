//! The configuration: what is refused and how, who beats whom, what check and explain say.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use doorward::config::{Auto, Config, KEYS, Mode, Origin, Problems, Request, load};
use tempfile::TempDir;

/// A folder with these files; `routes.d/` is made when a name asks for it.
pub fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

/// Runs doorward in `folder` with nothing but these variables.
pub fn doorward(folder: &Path, environment: &[(&str, &str)], args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_doorward"))
        .args(args)
        .current_dir(folder)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

pub fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

pub fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Loads `config.env` of a folder with these files.
fn loaded(files: &[(&str, &str)], environment: &[(&str, &str)]) -> Result<Config, Problems> {
    let folder = folder(files);
    load(&Request {
        path: Some(folder.path().join("config.env")),
        environment: environment.iter().map(|(key, value)| (key.into(), value.into())).collect(),
    })
}

/// The problems of these files, without their folder and excerpts.
pub fn problems(files: &[(&str, &str)]) -> Vec<String> {
    let folder = folder(files);
    let request = Request { path: Some(folder.path().join("config.env")), ..Request::default() };
    let prefix = format!("{}/", folder.path().display());
    match load(&request) {
        Ok(config) => panic!("{config:?}"),
        Err(problems) => {
            problems.iter().map(|one| format!("{}: {}", one.origin, one.message).replace(&prefix, "")).collect()
        }
    }
}

#[test]
fn names_and_name_servers_are_checked_before_anybody_is_asked() {
    assert_eq!(
        problems(&[
            ("config.env", "RESOLVER=dns.test,127.0.0.1:0\nBACKEND_ADDRESS=srv:_http._tcp.app.test:80\n"),
            ("routes.d/10-a.env", "MATCH_HOST=a.example\nRESOLVER=127.0.0.53\n"),
            ("routes.d/20-b.env", "MATCH_HOST=b.example\nBACKEND_ADDRESS=srv:_a._tcp.app.test?weight=2,-app:80\n"),
        ]),
        [
            "config.env:1: `RESOLVER`: `dns.test` is not `IP`, `IP:PORT` or `[V6]:PORT`",
            "config.env:2: `BACKEND_ADDRESS`: SRV records name the port themselves; write `srv:_http._tcp.app.test`",
            "routes.d/10-a.env:2: `RESOLVER` is a setting of the whole daemon; it belongs in `config.env`",
            "routes.d/20-b.env:2: `BACKEND_ADDRESS`: SRV records have weights of their own",
        ]
    );
}

#[test]
fn wrong_keys_of_health_are_refused_with_their_line() {
    let text = "HEALTH_CHECK=health\nHEALTH_STATUS=200-399,600\nHEALTH_RISE=0\nHEALTH_HOST=a/b\nEJECT_ON=reset,500\n\
                EJECT_AFTER=-1\nHEALTH_INTERVAL=0\n";
    assert_eq!(
        problems(&[("config.env", text)]),
        [
            "config.env:1: `HEALTH_CHECK`: expected `off`, `tcp` or a path that begins with `/`, found `health`",
            "config.env:2: `HEALTH_STATUS`: expected a status from 200 to 599 or a range as in `200-399`, found `600`",
            "config.env:3: `HEALTH_RISE`: expected a whole number from 1 to 100, found `0`",
            "config.env:4: `HEALTH_HOST`: expected `auto` or `HOST`, `HOST:PORT` or `[V6]:PORT`, found `a/b`",
            "config.env:5: `EJECT_ON`: expected `reset`, `timeout`, `502`, `503` or `504`, found `500`",
            "config.env:6: `EJECT_AFTER`: expected `off` or a whole number from 1 to 1000, found `-1`",
            "config.env:7: `HEALTH_INTERVAL`: expected a duration from 10ms to 24h, found `0`",
        ]
    );
}

#[test]
fn check_reports_every_problem_of_every_file_at_once() {
    let folder = folder(&[
        ("config.env", "# mine\nWORKER=2\nMAX_RETRIES=many # none\n\nMATCH_HOST=a\nBACKEND_ADDRESS=a:1,b:0\n"),
        ("routes.d/10-a.env", "MATCH_HOST=a.example\nCONECT_TIMEOUT=3s\n"),
        ("routes.d/20-b.env", "MATCH_HOST=\"b.example\nWORKERS=3\nMODE=tcp\nMODE=http\n"),
        ("routes.d/.30-c.env", "nonsense"),
        ("routes.d/40-d.env~", "nonsense"),
        ("routes.d/50-e.env.dpkg-new", "nonsense"),
        ("routes.d/README", "nonsense"),
    ]);
    let output = doorward(folder.path(), &[("QUEUE_TIMEOUT", "soon")], &["check"]);
    assert_eq!(
        stderr(&output),
        "\
environment: `QUEUE_TIMEOUT`: expected a duration from 1ms to 24h, found `soon`
    QUEUE_TIMEOUT=soon
                  ^~~~
config.env:2: unknown key `WORKER`; did you mean `WORKERS`?
    WORKER=2
    ^~~~~~
config.env:3: `MAX_RETRIES`: expected a whole number from 0 to 20, found `many`
    MAX_RETRIES=many # none
                ^~~~
config.env:5: `MATCH_HOST` says what a route matches; it belongs in a file of `routes.d/`
    MATCH_HOST=a
    ^~~~~~~~~~
config.env:6: `BACKEND_ADDRESS`: port 0 can't be connected to
    BACKEND_ADDRESS=a:1,b:0
                        ^~~
routes.d/10-a.env:2: unknown key `CONECT_TIMEOUT`; did you mean `CONNECT_TIMEOUT`?
    CONECT_TIMEOUT=3s
    ^~~~~~~~~~~~~~
routes.d/20-b.env:1: a quote is opened here and not closed
    MATCH_HOST=\"b.example
               ^
routes.d/20-b.env:2: `WORKERS` is a setting of the whole daemon; it belongs in `config.env`
    WORKERS=3
    ^~~~~~~
routes.d/20-b.env:4: `MODE` is set twice; the first is in line 3
    MODE=http
    ^~~~
9 problems in 3 files and the environment
"
    );
    assert_eq!(output.status.code(), Some(78));
    assert_eq!(stdout(&output), "");
}

#[test]
fn a_start_with_a_wrong_configuration_ends_with_78() {
    let folder = folder(&[("config.env", "WORKERS=none\n")]);
    for args in [&["run"][..], &[]] {
        let output = doorward(folder.path(), &[], args);
        assert_eq!(output.status.code(), Some(78), "{output:?}");
    }
    let output = doorward(folder.path(), &[], &["--config", "missing.env"]);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
}

#[test]
fn a_file_that_is_no_readable_file_is_named() {
    let said = |path: &Path| {
        let output = doorward(Path::new("/"), &[], &["check", "--config", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(78));
        stderr(&output).replace(path.to_str().unwrap(), "PATH")
    };
    let folder = folder(&[("large.env", &"#".repeat((1 << 20) + 1))]);
    assert_eq!(said(&folder.path().join("none.env")), "PATH: can't be read: no such file\n1 problem in 1 file\n");
    assert_eq!(said(folder.path()), "PATH: can't be read: is a directory, not a file\n1 problem in 1 file\n");
    assert_eq!(
        said(&folder.path().join("large.env")),
        "PATH: can't be read: is larger than 1024 KiB\n1 problem in 1 file\n"
    );
    let pipe = folder.path().join("pipe.env");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert_eq!(said(&pipe), "PATH: can't be read: is not a regular file\n1 problem in 1 file\n");
}

#[test]
fn routes_that_contradict_each_other_are_refused() {
    const TCP: &str = "MODE=tcp\nMATCH_LISTENER=db\n";
    const HOST: &str = "MATCH_HOST=a.example,b.example\nMATCH_PATH=/x,/y\n";
    const SAME: &str = "MATCH_PATH=/%78/,/z\nMATCH_HOST=B.Example.\n";
    type Files = &'static [(&'static str, &'static str)];
    let cases: &[(Files, &[&str])] = &[
        (
            &[("routes.d/a.env", "MAX_RETRIES=1\n"), ("config.env", "")],
            &["routes.d/a.env: a route needs `MATCH_HOST`, `MATCH_PATH` or `MATCH_LISTENER`; \
               what no route matches goes where `config.env` says"],
        ),
        (
            &[("routes.d/a.env", HOST), ("routes.d/b.env", SAME), ("config.env", "")],
            &["routes.d/b.env:2: `MATCH_HOST`: host `b.example`, path `/x` is matched by routes.d/a.env:1 too"],
        ),
        (
            &[("routes.d/a.env", TCP), ("routes.d/b.env", TCP), ("config.env", "")],
            &["routes.d/b.env:2: `MATCH_LISTENER`: listener `db` is matched by routes.d/a.env:2 too"],
        ),
        (
            &[("routes.d/a.env", TCP), ("routes.d/b.env", "MATCH_LISTENER=db\nMATCH_PATH=/\n"), ("config.env", "")],
            &[
                "routes.d/b.env:1: `MATCH_LISTENER`: listener `db` has `MODE=tcp` in routes.d/a.env:2 and `MODE=http` here",
            ],
        ),
        (
            &[("routes.d/a.env", "MODE=tcp\nMATCH_HOST=a\nMATCH_PATH=/\nMATCH_LISTENER=x\n"), ("config.env", "")],
            &[
                "routes.d/a.env:2: `MATCH_HOST`: with `MODE=tcp` nothing is read that names a host or a path; `MATCH_LISTENER` is left",
                "routes.d/a.env:3: `MATCH_PATH`: with `MODE=tcp` nothing is read that names a host or a path; `MATCH_LISTENER` is left",
            ],
        ),
        (
            &[("routes.d/a.env", "MODE=http\nMATCH_HOST=a\n"), ("config.env", "MODE=tcp\n")],
            &["routes.d/a.env: `config.env` says `MODE=tcp` for every listener that no route names; \
               a route with `MODE=http` needs `MATCH_LISTENER` beside it"],
        ),
        (
            &[("config.env", "RETRY_BACKOFF=2s\n"), ("routes.d/a.env", "MATCH_HOST=a\n")],
            &["config.env:1: `RETRY_BACKOFF`: the first wait (2s) is longer than the longest one (1s)"],
        ),
        (
            &[("config.env", "RETRY_BACKOFF=500ms\n"), ("routes.d/a.env", "MATCH_HOST=a\nRETRY_BACKOFF_MAX=100ms\n")],
            &["routes.d/a.env:2: `RETRY_BACKOFF_MAX`: the first wait (500ms) is longer than the longest one (100ms)"],
        ),
        (
            &[("config.env", "EJECT_TIME=10m\n"), ("routes.d/a.env", "MATCH_HOST=a\nEJECT_TIME=2h\n")],
            &[
                "routes.d/a.env:2: `EJECT_TIME`: the first ejection (2h) is longer than the longest one (5m)",
                "config.env:1: `EJECT_TIME`: the first ejection (10m) is longer than the longest one (5m)",
            ],
        ),
        (
            &[("config.env", "REQUEST_TIMEOUT=2s\n"), ("routes.d/a.env", "MATCH_HOST=a\nATTEMPT_TIMEOUT=2500ms\n")],
            &["routes.d/a.env:2: `ATTEMPT_TIMEOUT`: an attempt (2s 500ms) may take longer than the whole request (2s)"],
        ),
        (
            &[(
                "config.env",
                "RETRY_ON=connect,500\nRETRY_BUDGET=120%\nRETRY_BUDGET_MIN=5/m\nRETRY_NON_IDEMPOTENT=yes\n",
            )],
            &[
                "config.env:1: `RETRY_ON`: expected `connect`, `reset`, `502`, `503`, `504` or `timeout`, found `500`",
                "config.env:2: `RETRY_BUDGET`: expected `off` or a share from 0% to 100%, found `120%`",
                "config.env:3: `RETRY_BUDGET_MIN`: expected a rate from 0/s to 1000000/s, found `5/m`",
                "config.env:4: `RETRY_NON_IDEMPOTENT`: expected `on` or `off`, found `yes`",
            ],
        ),
        (
            &[("config.env", "HEALTH_TIMEOUT=5s\n"), ("routes.d/a.env", "MATCH_HOST=a\nHEALTH_INTERVAL=500ms\n")],
            &[
                "routes.d/a.env:2: `HEALTH_INTERVAL`: a check may take longer (5s) than it is until the next one (500ms)",
                "config.env:1: `HEALTH_TIMEOUT`: a check may take longer (5s) than it is until the next one (2s)",
            ],
        ),
        (
            &[("config.env", ""), ("routes.d/default.env", "MATCH_HOST=a\n"), ("routes.d/a b.env", "MATCH_HOST=b\n")],
            &[
                "routes.d/a b.env: the file's name names the route: 1 to 64 letters, digits and `.`, `_`, `-`, `@`, `+`, then `.env`",
                "routes.d/default.env: `default` is the route that `config.env` describes",
            ],
        ),
        (
            &[("config.env", ""), ("routes.d/a.env", "MATCH_LISTENER=metrics\n")],
            &["routes.d/a.env:1: `MATCH_LISTENER`: the listener name `metrics` is reserved"],
        ),
        (
            &[("config.env", "BACKEND_ADDRESS=https+unix:/a\nBACKEND_TLS_NAME=a:443\n")],
            &[
                "config.env:1: `BACKEND_ADDRESS`: there is no `https+unix`; TLS is spoken to `https://HOST` and \
                 `https://HOST:PORT` only",
                "config.env:2: `BACKEND_TLS_NAME`: expected `auto` or a host name or an address, without a port, \
                 found `a:443`",
            ],
        ),
        (
            &[("config.env", "BALANCE=leastconn\nBACKEND_ADDRESS=a:1?weight=300\nSTICKY_COOKIE=a;b\nSLOW_START=-1\n")],
            &[
                "config.env:1: `BALANCE`: unknown algorithm `leastconn`; did you mean `least-requests`?",
                "config.env:2: `BACKEND_ADDRESS`: a weight is a whole number from 0 to 256, found `300`",
                "config.env:3: `STICKY_COOKIE`: expected `auto` or the name of a cookie: a token of 1 to 64 characters, \
                 such as letters, digits, `-` and `_`, found `a;b`",
                "config.env:4: `SLOW_START`: expected `off` or a duration from 1ms to 24h, found `-1`",
            ],
        ),
        (
            &[
                ("config.env", "BACKEND_ADDRESS=a:1?backup,b:1?backup\n"),
                ("routes.d/a.env", "MATCH_HOST=a\n"),
                ("routes.d/b.env", "MATCH_HOST=b\nBACKEND_ADDRESS=a:1?weight=0,b:1?weight=0&backup\n"),
                ("routes.d/c.env", "MATCH_HOST=c\nBACKEND_ADDRESS=a:1?weight=0,b:1?backup\nBALANCE=hash:header\n"),
            ],
            &[
                "routes.d/c.env:3: `BALANCE`: `hash:header` lacks the name of a header; write `hash:header:NAME`",
                "routes.d/b.env:2: `BACKEND_ADDRESS`: every backend has `weight=0`, so that none takes requests",
                "config.env:1: `BACKEND_ADDRESS`: every backend is a `backup`; one without the mark is needed",
            ],
        ),
        (
            &[
                ("config.env", "BALANCE=sticky\n"),
                ("routes.d/a.env", "MATCH_LISTENER=a\nMODE=tcp\n"),
                ("routes.d/b.env", "MATCH_LISTENER=b\nMODE=tcp\nBALANCE=hash:cookie:sid\n"),
                ("routes.d/c.env", "MATCH_LISTENER=c\nMODE=tcp\nBALANCE=hash:client\n"),
            ],
            &[
                "routes.d/a.env:2: `MODE`: with `MODE=tcp` nothing is read that `BALANCE=sticky` could go by",
                "routes.d/b.env:3: `BALANCE`: with `MODE=tcp` nothing is read that `BALANCE=hash:cookie:sid` could go by",
            ],
        ),
        (
            &[
                ("config.env", "BACKEND_PROTOCOL=h2\n"),
                ("routes.d/a.env", "MATCH_LISTENER=a\nMODE=tcp\n"),
                ("routes.d/b.env", "MATCH_LISTENER=b\nMODE=tcp\nBACKEND_PROTOCOL=http1\n"),
                ("routes.d/c.env", "MATCH_LISTENER=c\nBACKEND_PROTOCOL=http2\n"),
            ],
            &[
                "routes.d/c.env:2: `BACKEND_PROTOCOL`: expected `http1` or `h2`, found `http2`",
                "routes.d/a.env:2: `MODE`: with `MODE=tcp` nothing is read that `BACKEND_PROTOCOL=h2` could turn into HTTP/2",
            ],
        ),
    ];
    for (files, expected) in cases {
        assert_eq!(&problems(files), expected, "{files:?}");
    }
}

#[test]
fn a_problem_is_not_followed_by_those_that_it_causes() {
    // The mode is unknown, so nothing is said of matchers; a wrong matcher is still a matcher.
    assert_eq!(problems(&[("config.env", "MODE=tcpp\n"), ("routes.d/a.env", "MATCH_HOST=a\n")]).len(), 1);
    assert_eq!(problems(&[("config.env", ""), ("routes.d/a.env", "MATCH_HOST=a:80\n")]).len(), 1);
    // A wrong default is reported once, not for every route that inherits it.
    let routes =
        [("config.env", "MAX_RETRIES=x\n"), ("routes.d/a.env", "MATCH_HOST=a\n"), ("routes.d/b.env", "MATCH_HOST=b\n")];
    assert_eq!(problems(&routes).len(), 1);
}

#[test]
fn the_environment_beats_config_env_and_a_route_file_beats_both() {
    let files = [
        ("config.env", "WORKERS=2\nMAX_RETRIES=4\nBACKEND_ADDRESS=file:1\nCONNECT_TIMEOUT=5s\n"),
        ("routes.d/10-a.env", "MATCH_HOST=a.example\nBACKEND_ADDRESS=own:1\nMAX_RETRIES=7\n"),
        ("routes.d/20-b.env", "MATCH_HOST=b.example\n"),
    ];
    let environment =
        [("WORKERS", "3"), ("BACKEND_ADDRESS", "environment:1"), ("MATCH_HOST", "ignored"), ("UNKNOWN_KEY", "x")];
    let config = loaded(&files, &environment).unwrap();
    assert_eq!(config.daemon.workers, Auto::Is(3));
    assert_eq!(config.setting("WORKERS").unwrap().origin, Origin::Environment);
    assert!(matches!(&config.setting("MAX_RETRIES").unwrap().origin, Origin::Line(_, 2)));
    let route = |index: usize| {
        let route = &config.routes[index];
        let settings = &route.settings;
        let seconds = settings.connect_timeout.as_secs();
        (route.name.as_str(), settings.backend_address[0].target.to_string(), settings.max_retries, seconds)
    };
    assert_eq!(route(0), ("10-a", "own:1".to_owned(), 7, 5));
    assert_eq!(route(1), ("20-b", "environment:1".to_owned(), 4, 5));
    assert_eq!(route(2), ("default", "environment:1".to_owned(), 4, 5));
    assert!(config.routes[2].is_default() && config.routes[2].matcher.match_host.is_empty());
}

#[test]
fn a_variable_that_is_no_text_is_a_problem_of_the_environment() {
    let request = Request {
        path: Some("/dev/null".into()),
        environment: [(OsString::from("LOG_LEVEL"), OsString::from_vec(vec![0xff]))].into(),
    };
    let report = load(&request).unwrap_err().to_string();
    assert!(report.starts_with("environment: `LOG_LEVEL`: is no plain text\n"), "{report}");
}

#[test]
fn loading_writes_nothing_into_the_environment_of_the_process() {
    let before: Vec<_> = std::env::vars_os().collect();
    loaded(&[("config.env", "WORKERS=2\nMODE=tcp\n")], &[]).unwrap();
    assert_eq!(before, std::env::vars_os().collect::<Vec<_>>());
}

#[test]
fn the_file_is_looked_for_in_one_order() {
    let by_variable = folder(&[("config.env", "WORKERS=2\n")]);
    let here = folder(&[("config.env", "WORKERS=3\n"), ("other.env", "WORKERS=4\n")]);
    let nowhere = folder(&[]);
    let routes_alone = folder(&[("routes.d/a.env", "MATCH_HOST=a\nMODE=http\n")]);
    let directory = ("CONFIGURATION_DIRECTORY", by_variable.path().to_str().unwrap());
    let now = |folder: &TempDir, environment: &[(&str, &str)], args: &[&str]| {
        let output = doorward(folder.path(), environment, &[&["explain", "workers"], args].concat());
        stdout(&output).lines().last().unwrap().trim().to_owned()
    };
    assert!(now(&here, &[directory], &[]).starts_with("now      2 ("));
    assert_eq!(now(&here, &[directory], &["--config", "other.env"]), "now      4 (other.env:1)");
    // Holds where no packaged configuration is installed.
    if !Path::new("/etc/doorward").exists() {
        assert_eq!(now(&here, &[], &[]), "now      3 (config.env:1)");
        assert_eq!(now(&nowhere, &[], &[]), "now      auto (default)");
    }
    let directory = ("CONFIGURATION_DIRECTORY", routes_alone.path().to_str().unwrap());
    let output = doorward(here.path(), &[directory], &["check"]);
    assert!(stdout(&output).contains("host a"), "a missing config.env does not hide the routes: {output:?}");
}

#[test]
fn check_says_what_it_understood() {
    let folder = folder(&[
        ("config.env", "PROXY_ADDRESS=127.0.0.1:8081,unix:/run/d.sock\nBACKEND_ADDRESS=127.0.0.1:8081,builtin:echo\n"),
        ("routes.d/10-api.env", "MATCH_HOST=*.example.com\nBACKEND_ADDRESS=10.0.0.1:80?weight=3\nMAX_RETRIES=1\n"),
        ("routes.d/20-db.env", "MODE=tcp\nMATCH_LISTENER=db\n"),
    ]);
    let output =
        doorward(folder.path(), &[("WORKERS", "2"), ("LOG_LEVEL", "info")], &["check", "--config", "config.env"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(
        stdout(&output),
        "\
configuration is sound; read
  config.env
  routes.d/10-api.env
  routes.d/20-db.env
warning: config.env:2: the built-in page takes its turn among the backends
warning: config.env:2: backend `127.0.0.1:8081` is the address that doorward listens on itself

listens on
  127.0.0.1:8081    when systemd passes no socket
  unix:/run/d.sock  when systemd passes no socket
  listener `db`     which a socket unit must pass
  by                2 worker threads

settings
  PROXY_ADDRESS    127.0.0.1:8081,unix:/run/d.sock  config.env:1
  WORKERS          2                                environment
  LOG_LEVEL        info                             environment, the default
  BACKEND_ADDRESS  127.0.0.1:8081,builtin:echo      config.env:2

routes; of those that match, the most specific one counts
  10-api   http  host *.example.com  → 10.0.0.1:80 (weight 3)
      MAX_RETRIES  1  routes.d/10-api.env:3
  20-db    tcp   listener db         → 127.0.0.1:8081, builtin:echo
      MODE  tcp  routes.d/20-db.env:1
  default  http  everything else     → 127.0.0.1:8081, builtin:echo

requests take the first line here that matches
  host           path  listener
  *.example.com  any   any       → 10-api
  any            any   any       → default
"
    );
}

#[test]
fn explain_tells_meaning_default_and_present_value() {
    let folder = folder(&[
        ("config.env", "CONNECT_TIMEOUT=5s\n"),
        ("routes.d/10-api.env", "MATCH_HOST=api.example\nCONNECT_TIMEOUT=7s\n"),
    ]);
    let run = |args: &[&str]| doorward(folder.path(), &[], &[&["explain", "--config", "config.env"], args].concat());
    let output = run(&["connect_timeout"]);
    let text = stdout(&output);
    assert!(output.status.success());
    for part in [
        "CONNECT_TIMEOUT\n    Time for a connection",
        "takes    a duration from 1ms to 24h",
        "counts   seconds",
        "default  3s",
        "now      5s (config.env:1)",
        "7s (routes.d/10-api.env:2) in route 10-api",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let output = run(&["CONECT_TIMEOUT"]);
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(stderr(&output), "doorward: unknown key `CONECT_TIMEOUT`; did you mean `CONNECT_TIMEOUT`?\n");
    let list = run(&[]);
    for key in KEYS {
        assert!(stdout(&list).contains(key.name), "{}", key.name);
        assert!(run(&[key.name]).status.success(), "{}", key.name);
    }
    fs::write(folder.path().join("config.env"), "nonsense").unwrap();
    assert!(stdout(&run(&["WORKERS"])).contains("now      unknown, for the configuration has problems"));
}

#[test]
fn wrong_use_of_the_command_line_ends_with_64_and_help_with_0() {
    let run = |args: &[&str]| doorward(Path::new("/"), &[], args);
    for args in
        [&["serve"][..], &["--nonsense"], &["status", "--instance", "a/b"], &["completions", "csh"], &["generate"]]
    {
        let output = run(args);
        assert_eq!(output.status.code(), Some(64), "{args:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
    for args in [&["--help"][..], &["-V"], &["help", "check"], &["status", "--help"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        assert!(!output.stdout.is_empty());
    }
    assert_eq!(stdout(&run(&["-V"])), format!("doorward {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_pager_that_was_closed_early_is_no_failure() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(reader);
    let status = Command::new(env!("CARGO_BIN_EXE_doorward")).arg("explain").stdout(writer).status().unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn generate_writes_what_the_package_ships() {
    let folder = folder(&[]);
    let output = doorward(folder.path(), &[], &["generate", "."]);
    assert!(output.status.success(), "{output:?}");
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(read("config.env"), fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config.env")).unwrap());
    assert!(read("doorward.8").contains(".TH doorward 8"));
    assert!(read("doorward.env.5").contains(".TH doorward.env 5"));
    for (shell, file) in [("bash", "doorward.bash"), ("zsh", "_doorward"), ("fish", "doorward.fish")] {
        let printed = doorward(folder.path(), &[], &["completions", shell]);
        assert_eq!(stdout(&printed).trim_end(), read(file).trim_end());
        assert!(read(file).contains("MAX_CONCURRENT_REQUESTS"), "{shell} completes keys");
        assert!(!read(file).contains("generate"), "{shell} hides what is hidden");
    }
    assert!(read("keys.md").lines().count() == KEYS.len() + 2);
    let output = doorward(folder.path(), &[], &["generate", "missing"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

/// A daemon that gives these answers, each to its own client; returns the questions.
fn answering(path: &Path, answers: &'static [&'static str]) -> std::thread::JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let mut questions = Vec::new();
        for answer in answers {
            let (mut client, _) = listener.accept().unwrap();
            client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut question = String::new();
            BufReader::new(&client).read_line(&mut question).unwrap();
            questions.push(question);
            client.write_all(answer.as_bytes()).unwrap();
        }
        questions
    })
}

#[test]
fn reload_waits_for_the_answer_and_fails_with_the_reason() {
    let folder = folder(&[]);
    let socket = folder.path().join("admin.sock");
    let ask = |args: &[&str]| doorward(folder.path(), &[("DOORWARD_ADMIN_SOCKET", socket.to_str().unwrap())], args);
    let output = ask(&["reload"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(stderr(&output), format!("doorward is not running: nobody listens on {}\n", socket.display()));
    let daemon = answering(
        &socket,
        &[
            "{\"ok\":true,\"generation\":7}\n",
            "{\"ok\":false,\"error\":\"a.env:1: bad\\n1 problem in 1 file; still serving generation 7\"}\n",
            "",
        ],
    );
    let output = ask(&["reload"]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), "reloaded; generation 7 serves\n"));
    let output = ask(&["reload", "--socket", socket.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "a.env:1: bad\n1 problem in 1 file; still serving generation 7\n");
    let output = ask(&["reload"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("closed the connection"), "{output:?}");
    assert_eq!(daemon.join().unwrap(), ["{\"command\":\"reload\"}\n"; 3]);
}

#[test]
fn status_prints_a_page_or_the_answer_as_it_came() {
    let folder = folder(&[]);
    let socket = folder.path().join("admin.sock");
    let status =
        "{\"ok\":true,\"status\":{\"version\":\"9.9\",\"pid\":1,\"phase\":\"serving\",\"uptime\":61,\"later\":[1]}}\n";
    let daemon = answering(&socket, Box::leak(Box::new([status, status])));
    let ask = |args: &[&str]| doorward(folder.path(), &[], &[&["status", "--socket", "admin.sock"], args].concat());
    let page = ask(&[]);
    assert!(stdout(&page).starts_with("doorward 9.9\n  phase    serving for 1 min 1 s, pid 1\n"), "{page:?}");
    let raw: serde_json::Value = serde_json::from_slice(&ask(&["--json"]).stdout).unwrap();
    assert_eq!((raw["version"].as_str(), raw["later"][0].as_u64()), (Some("9.9"), Some(1)));
    assert_eq!(daemon.join().unwrap(), ["{\"command\":\"status\"}\n"; 2]);
}

#[test]
fn config_env_of_the_tree_loads_and_says_the_defaults() {
    let shipped =
        Request { path: Some(concat!(env!("CARGO_MANIFEST_DIR"), "/config.env").into()), ..Request::default() };
    let config = load(&shipped).unwrap();
    assert_eq!(config.routes[0].settings.mode, Mode::Http);
    assert_eq!(config.settings.len(), 4);
    assert!(config.settings.iter().all(|setting| setting.key.is_default(&setting.text)));
    assert!(config.warnings.is_empty());
}

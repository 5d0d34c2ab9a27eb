//! What routes say of requests, as the configuration is examined and explained.

use std::fs;

use crate::config::{doorward, folder, problems, stderr, stdout};

#[test]
fn check_prints_the_routing_table_in_the_order_that_counts() {
    let folder = folder(&[
        ("config.env", "MODE=tcp\n"),
        ("routes.d/a.env", "MODE=http\nMATCH_HOST=b.test,*.b.test,a.test\nMATCH_LISTENER=web\n"),
        ("routes.d/b.env", "MODE=http\nMATCH_HOST=*.a.b.test\nMATCH_PATH=/x/,=/x,/x/y\nMATCH_LISTENER=web\n"),
        ("routes.d/c.env", "MODE=http\nMATCH_PATH=/\nMATCH_LISTENER=web,side\n"),
    ]);
    let output = doorward(folder.path(), &[], &["check", "--config", "config.env"]);
    let (_, table) = stdout(&output).split_once("the first line here that matches\n").unwrap();
    assert_eq!(
        table,
        "  host        path  listener
  a.test      any   web       → a
  b.test      any   web       → a
  *.a.b.test  =/x   web       → b
  *.a.b.test  /x/y  web       → b
  *.a.b.test  /x    web       → b
  *.b.test    any   web       → a
  any         /     web       → c
  any         /     side      → c
  any         any   any       404 no_route
"
    );
}

#[test]
fn explain_says_which_route_takes_a_request_and_what_is_set_for_it() {
    let folder = folder(&[
        ("config.env", "CONNECT_TIMEOUT=5s\nQUEUE_TIMEOUT=2s\nMAX_RETRIES=3\nRESPONSE_TIMEOUT=9s\n"),
        ("routes.d/10-api.env", "MATCH_HOST=*.example\nMATCH_PATH=/v1,/v2\nBACKEND_ADDRESS=a:1\nCONNECT_TIMEOUT=3s\n"),
        ("routes.d/20-all.env", "MATCH_PATH=/\n"),
        ("routes.d/30-db.env", "MODE=tcp\nMATCH_LISTENER=db\n"),
    ]);
    let run = |args: &[&str]| {
        let args = [&["explain", "--config", "config.env", "--request"], args].concat();
        doorward(folder.path(), &[("BODY_TIMEOUT", "1m")], &args)
    };
    let output = run(&["GET http://api.example/x/%2e./v1/x?y"]);
    assert_eq!(
        stdout(&output),
        "\
GET http://api.example/x/%2e./v1/x?y on listener `http`
  route     10-api (routes.d/10-api.env)
  because   MATCH_HOST *.example matches (routes.d/10-api.env:1)
            MATCH_PATH /v1 matches (routes.d/10-api.env:2)
  ahead of  20-all, by MATCH_PATH /
            default, which takes the rest
  leads to  a:1
  sent on   /v1/x?y, with dot segments resolved

set for the route, other than the default
  BACKEND_ADDRESS   a:1        routes.d/10-api.env:3
  BODY_TIMEOUT      1m         environment
  RESPONSE_TIMEOUT  9s         config.env:4
  MATCH_HOST        *.example  routes.d/10-api.env:1
  MATCH_PATH        /v1,/v2    routes.d/10-api.env:2

set for the daemon, other than the default
  QUEUE_TIMEOUT  2s  config.env:2
"
    );
    assert!(stdout(&run(&["HEAD /", "--listener", "db"])).contains("relayed unread (MODE=tcp)\n  route     30-db ("));
    assert!(stdout(&run(&["/v1"])).contains("route     20-all ("), "without a host none matches");
    for (wrong, said) in [
        ("GET", "`GET` is no request"),
        ("GET http://a/ HTTP/1.1", "`GET http://a/ HTTP/1.1` is no request"),
        ("CONNECT a:1", "refused: 405 method_refused"),
        ("GET http://a b/", "is no request"),
        ("GET ftp://a/", "refused: 400 bad_request"),
        ("GET http://ä/", "refused: 400 bad_request"),
    ] {
        let output = run(&[wrong]);
        assert_eq!(output.status.code(), Some(64), "{wrong}");
        assert!(stderr(&output).contains(said), "{wrong}: {output:?}");
    }
    assert_eq!(doorward(folder.path(), &[], &["explain", "WORKERS", "--request", "/"]).status.code(), Some(64));
    fs::write(folder.path().join("config.env"), "nonsense").unwrap();
    let output = run(&["/"]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(78), ""));
    assert!(stderr(&output).contains("config.env:1: expected `KEY=value`"), "{output:?}");
}

#[test]
fn rewrites_that_are_none_are_refused_all_at_once_with_file_line_and_caret() {
    let folder = folder(&[
        ("config.env", "STRIP_PREFIX=api\nSET_RESPONSE_HEADERS=\"X-A: 1 | Connection: close\"\n"),
        (
            "routes.d/a.env",
            "MATCH_HOST=a\nREDIRECT=\"300 https://b\"\nBACKEND_HOST=b:0\n\
             SET_REQUEST_HEADERS=\"Host: b | X B: 1\"\nREMOVE_REQUEST_HEADERS=X-A,Via\n",
        ),
        ("routes.d/b.env", "MATCH_HOST=b\nREDIRECT=//evil.test\nSET_REQUEST_HEADERS=X-A:\\n\n"),
    ]);
    let output = doorward(folder.path(), &[("BACKEND_HOST", "a/b")], &["check", "--config", "config.env"]);
    assert_eq!(output.status.code(), Some(78));
    assert_eq!(
        stderr(&output),
        "\
environment: `BACKEND_HOST`: expected `client`, `backend` or a host, with a port or not, found `a/b`
    BACKEND_HOST=a/b
                 ^~~
config.env:1: `STRIP_PREFIX`: `api` is not a path as in `/api`
    STRIP_PREFIX=api
                 ^~~
config.env:2: `SET_RESPONSE_HEADERS`: `Connection` belongs to one connection, not to the message
    SET_RESPONSE_HEADERS=\"X-A: 1 | Connection: close\"
                                   ^~~~~~~~~~~~~~~~~
routes.d/a.env:2: `REDIRECT`: `300` is not 301, 302, 303, 307 or 308
    REDIRECT=\"300 https://b\"
              ^~~
routes.d/a.env:3: `BACKEND_HOST`: expected `client`, `backend` or a host, with a port or not, found `b:0`
    BACKEND_HOST=b:0
                 ^~~
routes.d/a.env:4: `SET_REQUEST_HEADERS`: `Host` is what `BACKEND_HOST` decides on
    SET_REQUEST_HEADERS=\"Host: b | X B: 1\"
                         ^~~~~~~
routes.d/a.env:5: `REMOVE_REQUEST_HEADERS`: `Via` is for doorward itself to say
    REMOVE_REQUEST_HEADERS=X-A,Via
                               ^~~
routes.d/b.env:2: `REDIRECT`: `//evil.test` begins with none of `http://`, `https://` and a single `/`
    REDIRECT=//evil.test
             ^~~~~~~~~~~
routes.d/b.env:3: control character in the value of `SET_REQUEST_HEADERS`
    SET_REQUEST_HEADERS=X-A:\\n
    ^~~~~~~~~~~~~~~~~~~~~~~~~~
9 problems in 3 files and the environment
"
    );
}

#[test]
fn rewrites_that_contradict_each_other_are_refused() {
    type Files = &'static [(&'static str, &'static str)];
    let cases: &[(Files, &[&str])] = &[
        (
            &[
                ("config.env", "REMOVE_REQUEST_HEADERS=X-A\nSET_REQUEST_HEADERS='X-A: 1'\n"),
                ("routes.d/a.env", "MATCH_HOST=a\nSET_RESPONSE_HEADERS='X-B: 1'\nREMOVE_RESPONSE_HEADERS=x_b\n"),
                // What is set for the route beats what it inherits.
                ("routes.d/b.env", "MATCH_HOST=b\nSET_REQUEST_HEADERS='X-A: 2'\n"),
            ],
            &[
                "routes.d/a.env:3: `REMOVE_RESPONSE_HEADERS`: `x_b` is set as well (routes.d/a.env:2)",
                "config.env:1: `REMOVE_REQUEST_HEADERS`: `X-A` is set as well (config.env:2)",
            ],
        ),
        (
            &[
                // What it says beside a redirect is also for others.
                ("config.env", "REDIRECT=/x\nBACKEND_ADDRESS=a:1\n"),
                ("routes.d/a.env", "MATCH_HOST=a\nBACKEND_ADDRESS=b:1\nREDIRECT=/a\nBACKEND_HOST=client\n"),
                ("routes.d/b.env", "MATCH_HOST=b\nREDIRECT=off\nBACKEND_ADDRESS=b:1\n"),
            ],
            &[
                "routes.d/a.env:2: `BACKEND_ADDRESS`: `REDIRECT` (routes.d/a.env:3) answers without a backend",
                "routes.d/a.env:4: `BACKEND_HOST`: `REDIRECT` (routes.d/a.env:3) answers without a backend",
            ],
        ),
        (
            &[
                ("config.env", "BACKEND_ADDRESS=off\n"),
                ("routes.d/a.env", "MATCH_HOST=a\n"),
                ("routes.d/b.env", "MATCH_HOST=b\nREDIRECT=/a\n"),
                ("routes.d/c.env", "MATCH_HOST=c\nBACKEND_ADDRESS=off\n"),
            ],
            &["routes.d/a.env: `BACKEND_ADDRESS` is `off` (config.env:1); this route needs its own"],
        ),
        (
            &[
                ("config.env", "REDIRECT=/x\n"),
                (
                    "routes.d/a.env",
                    "MODE=tcp\nMATCH_LISTENER=a\nSTRIP_PREFIX=/a\nBACKEND_ADDRESS=off\nBACKEND_HOST=client\n",
                ),
            ],
            &[
                "routes.d/a.env:3: `STRIP_PREFIX`: with `MODE=tcp` nothing is read that could be changed or answered",
                "routes.d/a.env:4: `BACKEND_ADDRESS`: with `MODE=tcp` nobody can be told that there is no backend",
            ],
        ),
        (
            &[("config.env", "MODE=tcp\nBACKEND_ADDRESS=off\n")],
            &["config.env:2: `BACKEND_ADDRESS`: with `MODE=tcp` nobody can be told that there is no backend"],
        ),
    ];
    for (files, expected) in cases {
        assert_eq!(&problems(files), expected, "{files:?}");
    }
}

#[test]
fn check_and_explain_say_what_is_rewritten() {
    let folder = folder(&[
        ("config.env", "BACKEND_ADDRESS=off\n"),
        ("routes.d/a.env", "MATCH_PATH=/api,=/b\nBACKEND_ADDRESS=a:1\nSTRIP_PREFIX=/api/v1,/b,/c,/apis\n"),
        ("routes.d/b.env", "MATCH_HOST=old.test\nREDIRECT=\"308 https://{host}{path}{query}\"\n"),
    ]);
    let run = |args: &[&str]| {
        let output = doorward(folder.path(), &[], &[args, &["--config", "config.env"]].concat());
        assert!(output.status.success(), "{output:?}");
        stdout(&output).to_owned()
    };
    let check = run(&["check"]);
    for said in [
        "warning: routes.d/a.env:3: no path of `MATCH_PATH` begins with `/c`\n",
        "warning: routes.d/a.env:3: no path of `MATCH_PATH` begins with `/apis`\n",
        "host old.test    → 308 https://{host}{path}{query}\n",
        "everything else  → 404 no_route\n",
    ] {
        assert!(check.contains(said), "{said}\n{check}");
    }
    assert_eq!(check.matches("warning: ").count(), 2, "{check}");
    for (request, said) in [
        ("http://new.test/api/v1/x/%2e?y", "  leads to  a:1\n  sent on   /x/?y, with dot segments resolved\n"),
        ("http://new.test/api/v1/x?y", "  leads to  a:1\n  sent on   /x?y\n"),
        ("http://new.test/api/x", "  leads to  a:1\n\n"),
        ("http://OLD.test:8080/x?y", "  location  https://old.test/x?y\n"),
        ("http://new.test/x", "  leads to  404 no_route\n"),
        ("TRACE /api", "  answer    405 method_refused\n"),
    ] {
        let text = run(&["explain", "--request", request]);
        assert!(text.contains(said), "{request}\n{text}");
    }
}

#[test]
fn check_warns_of_grpc_on_a_route_whose_backends_cannot_speak_it() {
    let folder = folder(&[
        ("config.env", "BACKEND_ADDRESS=a:1\n"),
        ("routes.d/a.env", "MATCH_PATH=/web,/helloworld.Greeter\n"),
        ("routes.d/b.env", "MATCH_PATH=/grpc.health.v1.Health\nBACKEND_PROTOCOL=h2\n"),
        ("routes.d/c.env", "MATCH_PATH=/a.b/C,=/logo.png,/Plain\n"),
    ]);
    let output = doorward(folder.path(), &[], &["check", "--config", "config.env"]);
    let text = "warning: routes.d/a.env:1: `/helloworld.Greeter` looks like a service of gRPC, which needs \
                `BACKEND_PROTOCOL=h2`\n";
    assert!(stdout(&output).contains(text), "{}", stdout(&output));
    assert_eq!(stdout(&output).matches("warning: ").count(), 1, "{}", stdout(&output));
}

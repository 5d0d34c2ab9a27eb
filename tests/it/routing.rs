//! What routes say of requests, as the configuration is examined and explained.

use std::fs;

use crate::config::{doorward, folder, stderr, stdout};

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
  path      /v1/x, for it has dot segments
  leads to  a:1

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

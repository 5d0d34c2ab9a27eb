//! gRPC through the daemon: a real client and a real service.

use std::net::SocketAddr;
use std::time::Duration;

use tonic::{Code, Request};

use super::client::{Client as Http2, request};
use super::grpc_calls::{Client, run, serve, text, within};
use crate::backend::{Backend, Refusing};
use crate::traffic::door::{Daemon, Setup};

fn before(address: impl std::fmt::Display) -> Setup {
    Setup::new().set("BACKEND_ADDRESS", address).set("BACKEND_PROTOCOL", "h2").set("MAX_RETRIES", 0)
}

fn daemon() -> (Daemon, SocketAddr, std::sync::Arc<super::grpc_calls::Seen>) {
    let (address, seen) = serve();
    let daemon = before(address).start();
    let door = daemon.address();
    (daemon, door, seen)
}

/// The head of an answer to a call, as it is on the wire.
fn refused(daemon: &Daemon, path: &str, fields: &[(&str, &str)]) -> super::client::Answer {
    let client = Http2::connect(daemon.address());
    let fields = [&[("content-type", "application/grpc"), ("te", "trailers")], fields].concat();
    client.send(request("POST", path, &fields), true).answer()
}

#[test]
fn one_message_each_way_passes_with_its_metadata() {
    let (_daemon, door, _) = daemon();
    run(async {
        let client = Client::connect(door).await;
        let mut request = Request::new(text("hello"));
        request.metadata_mut().insert("x-asked", "yes".parse().unwrap());
        let response = client.say(request).await.unwrap();
        assert_eq!(response.metadata().get("x-asked").unwrap(), "yes");
        assert_eq!(response.into_inner(), text("hello"));
    });
}

#[test]
fn a_failure_that_is_all_trailers_passes_with_code_and_message() {
    let (_daemon, door, _) = daemon();
    run(async {
        let client = Client::connect(door).await;
        let status = client.say(Request::new(text("fail"))).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "not like this"));
        let status = client.call("/test.Echo/Unknown").await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unimplemented, "/test.Echo/Unknown"));
    });
}

#[test]
fn streams_pass_in_either_direction_and_in_both_at_once() {
    let (_daemon, door, _) = daemon();
    run(async {
        let client = Client::connect(door).await;
        let parts: Vec<_> = (0..1000).map(|n| text(format!("{n},"))).collect();
        let joined: String = parts.iter().map(|part| part.text.as_str()).collect();
        assert_eq!(client.join(parts).await.unwrap().into_inner().text, joined);

        let mut counted = client.count(1000).await.unwrap();
        for n in 0..1000 {
            assert_eq!(counted.message().await.unwrap().unwrap().text, n.to_string());
        }
        // What stands behind the last message ends the call.
        let status = counted.message().await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::OutOfRange, "all counted"));

        // Each waits for the other.
        let (said, mut heard) = client.talk().await;
        for n in 0..100 {
            said.send(text(n.to_string())).await.unwrap();
            assert_eq!(heard.message().await.unwrap().unwrap().text, format!("{n}!"));
        }
        drop(said);
        assert_eq!(heard.message().await.unwrap(), None);
    });
}

#[test]
fn messages_of_many_mebibytes_pass() {
    let (_daemon, door, _) = daemon();
    run(async {
        let client = Client::connect(door).await;
        let large = text("x".repeat(20 << 20));
        assert!(client.say(Request::new(large.clone())).await.unwrap().into_inner() == large);
    });
}

/// Its backend is told that it is over, and nobody else's call is.
#[test]
fn a_call_that_is_cancelled_is_cancelled_at_the_backend() {
    let (_daemon, door, seen) = daemon();
    run(async {
        let client = Client::connect(door).await;
        let calls: Vec<_> = (0..2)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.say(Request::new(text("hold"))).await })
            })
            .collect();
        seen.wait(2, 0).await;
        calls[0].abort();
        seen.wait(1, 1).await;
        assert_eq!(client.say(Request::new(text("still"))).await.unwrap().into_inner().text, "still");
        calls[1].abort();
        seen.wait(0, 2).await;
    });
}

/// What its client allows bounds a call here too, also where the client does not say that it
/// has given up.
#[test]
fn the_deadline_of_a_call_is_kept() {
    let (daemon, door, seen) = daemon();
    run(async {
        let client = Client::connect(door).await;
        let status = client.say(within(Duration::from_secs(1), "hold")).await.unwrap_err();
        assert!(matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded), "{status:?}");
        seen.wait(0, 1).await;
        let response = client.say(within(Duration::from_secs(60), "quick")).await.unwrap();
        assert_eq!(response.into_inner().text, "quick");
    });
    let silent = Backend::new();
    let other = before(&silent.address).set("CONNECT_TIMEOUT", "1h").start();
    let answer = refused(&other, "/test.Echo/Say", &[("grpc-timeout", "150m")]);
    assert_eq!(answer.field("grpc-status"), Some("4"), "{answer:?}");
    assert_eq!(answer.field("grpc-message"), Some("request_timeout"), "{answer:?}");
    drop(daemon);
}

/// A head that ends its stream, with status 200, whatever went wrong.
#[test]
fn an_answer_of_our_own_to_a_call_is_all_trailers() {
    let refusing = Refusing::new();
    let daemon = before(&refusing.address)
        .route("a.env", "MATCH_PATH=/test.None\nBACKEND_ADDRESS=off\n")
        .route("b.env", "MATCH_PATH=/test.Old\nBACKEND_PROTOCOL=http1\n")
        .start();
    for (path, code, reason, status) in [
        ("/test.Echo/Say", "14", "backend_connect_refused", 502),
        ("/test.None/Say", "12", "no_route", 404),
        ("/test.Old/Say", "12", "grpc_unsupported", 501),
    ] {
        let answer = refused(&daemon, path, &[]);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.field("content-type"), Some("application/grpc"));
        assert_eq!(answer.field("grpc-status"), Some(code), "{answer:?}");
        assert_eq!(answer.field("grpc-message"), Some(reason), "{answer:?}");
        assert!(answer.field("proxy-status").unwrap().ends_with(&format!("details=\"{reason}\"")), "{answer:?}");
        assert!(answer.body.is_empty() && answer.trailers.is_none(), "{answer:?}");
        // The log has it under the status that it would have been.
        let record = daemon.record(path);
        assert_eq!((&record["status"], &record["reason"]), (&status.into(), &reason.into()));
    }
    run(async {
        let client = Client::connect(daemon.address()).await;
        let status = client.say(Request::new(text("hello"))).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "backend_connect_refused"));
    });
    // gRPC-Web is read by what is no client of gRPC.
    let client = Http2::connect(daemon.address());
    let fields = [("content-type", "application/grpc-web+proto")];
    client
        .send(request("POST", "/test.Echo/Say", &fields), true)
        .answer()
        .assert_refusal(502, "backend_connect_refused");
}

/// A call is a POST: what may have been acted upon is not made again.
#[test]
fn a_call_is_made_again_only_if_nothing_was_done() {
    let refusing = Refusing::new();
    let (address, _) = serve();
    let daemon = before(format!("{}, {address}", refusing.address)).set("MAX_RETRIES", 1).start();
    run(async {
        let client = Client::connect(daemon.address()).await;
        for n in 0..4 {
            let said = text(n.to_string());
            assert_eq!(client.say(Request::new(said.clone())).await.unwrap().into_inner(), said);
        }
    });
}

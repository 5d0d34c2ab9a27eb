//! What an outage makes of retries.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use socket2::SockRef;

use crate::backend::{Backend, Refusing};
use crate::peer::Peer;
use crate::traffic::door::Setup;
use crate::traffic::retries::{attempts, before};

/// How a backend fails.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Failing {
    Busy,
    Resets,
}

/// A backend that fails every request; it ends with the process.
struct Outage {
    address: String,
    /// Requests that it was asked.
    asked: Arc<AtomicU64>,
}

impl Outage {
    fn new(how: Failing) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let asked = Arc::clone(&counted);
                std::thread::spawn(move || Self::serve(stream, how, &asked));
            }
        });
        Self { address, asked }
    }

    fn serve(stream: TcpStream, how: Failing, asked: &AtomicU64) {
        let ends = |stream: &TcpStream| stream.peek(&mut [0]).is_ok_and(|n| n == 0);
        let mut peer = Peer::tcp(stream.try_clone().unwrap());
        while !ends(&stream) {
            peer.request();
            asked.fetch_add(1, Ordering::Relaxed);
            match how {
                Failing::Busy => peer.send("HTTP/1.1 503 Busy\r\nX-Busy: yes\r\nContent-Length: 4\r\n\r\nbusy"),
                Failing::Resets => {
                    SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
                    return;
                }
            }
        }
    }
}

#[test]
fn a_full_outage_is_made_worse_by_a_fifth_at_most() {
    const CLIENTS: usize = 8;
    const EACH: usize = 250;
    for how in [Failing::Busy, Failing::Resets] {
        let backends = [Outage::new(how), Outage::new(how), Outage::new(how)];
        let addresses = backends.each_ref().map(|backend| backend.address.as_str());
        let daemon = before(&addresses).set("WORKERS", 2).set("RETRY_ON", "connect,reset,503").start();
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    let mut client = daemon.connect();
                    for _ in 0..EACH {
                        client.get("/outage");
                        let response = client.response();
                        match how {
                            // The backend's own answer, as it is.
                            Failing::Busy => assert_eq!(response.head.field("X-Busy"), Some("yes"), "{response:?}"),
                            Failing::Resets => response.assert_refusal(502, "backend_reset"),
                        }
                    }
                });
            }
        });
        let requests = u64::try_from(CLIENTS * EACH).unwrap();
        let asked: u64 = backends.iter().map(|backend| backend.asked.load(Ordering::Relaxed)).sum();
        assert!(asked * 10 <= requests * 12, "{asked} for {requests}");
        let status = daemon.status();
        assert_eq!(status["retries"], asked - requests);
        assert!(status["retries"].as_u64() >= Some(100), "what is allowed in any case is there to be used");
        assert!(status["retries_over_budget"].as_u64() > Some(0));
        let spent = daemon.logged("the spent budget", |line| line["message_id"] == "98a366e208694458a1b300fa0f993dea");
        assert_eq!((&spent["level"], &spent["route"]), (&"WARN".into(), &"default".into()));
    }
}

#[test]
fn answers_pay_for_retries_and_failures_do_not() {
    let backend = Backend::new();
    let daemon = before(&[&backend.address])
        .set("MAX_RETRIES", 20)
        .set("RETRY_BUDGET_MIN", "0/s")
        .set("EJECT_AFTER", "off")
        .set("BACKEND_IDLE_CONNECTIONS", 0)
        .start();
    let mut client = daemon.connect();
    let mut fail = |path: &str, times: usize| {
        client.get(path);
        for _ in 0..times {
            backend.take().0.reset();
        }
        client.response().assert_refusal(502, "backend_reset");
        assert_eq!(attempts(&daemon, path), u64::try_from(times).unwrap());
    };
    (0..20).for_each(|n| fail(&format!("/unpaid-{n}"), 1));
    let mut well = daemon.connect();
    for _ in 0..15 {
        well.get("/");
        backend.take().0.answer("");
        assert_eq!(well.response().status(), 200);
    }
    fail("/paid", 4);
    fail("/spent", 1);
}

#[test]
fn a_spent_budget_is_the_routes_own_and_outlives_a_reload() {
    let refusing = Refusing::new();
    let backend = Backend::new();
    let daemon = before(&[&backend.address])
        .set("MAX_RETRIES", 20)
        .set("RETRY_BUDGET", "0%")
        .set("RETRY_BUDGET_MIN", "1/s")
        .route("other.env", &format!("MATCH_PATH=/other\nBACKEND_ADDRESS={}\n", refusing.address))
        .start();
    let fail = |path: &str, times: usize| {
        let mut client = daemon.connect();
        client.get(path);
        for _ in 0..times {
            backend.take().0.reset();
        }
        client.response().assert_refusal(502, "backend_reset");
        assert_eq!(attempts(&daemon, path), u64::try_from(times).unwrap());
    };
    fail("/spends", 11);
    fail("/spent", 1);
    daemon.reload("LOG_LEVEL=info");
    fail("/still-spent", 1);
    // Five failures in a row take it down, and then nobody waits for it.
    let mut client = daemon.connect();
    client.get("/other");
    client.response().assert_refusal(502, "backend_connect_refused");
    assert_eq!(attempts(&daemon, "/other"), 5);
}

#[test]
fn without_a_budget_every_attempt_is_made() {
    let backend = Backend::new();
    let daemon = before(&[&backend.address])
        .set("MAX_RETRIES", 3)
        .set("RETRY_BUDGET", "off")
        .set("RETRY_BUDGET_MIN", "0/s")
        .start();
    let mut client = daemon.connect();
    client.get("/all");
    for _ in 0..4 {
        backend.take().0.reset();
    }
    client.response().assert_refusal(502, "backend_reset");
    assert_eq!(daemon.status()["retries_over_budget"], 0);
}

#[test]
fn connections_of_tcp_mode_have_the_budget_too() {
    let refusing = Refusing::new();
    let daemon = Setup::new()
        .set("MODE", "tcp")
        .set("BACKEND_ADDRESS", &refusing.address)
        .set("RETRY_BACKOFF", "1ms")
        .set("RETRY_BUDGET", "0%")
        .set("RETRY_BUDGET_MIN", "0/s")
        .start();
    daemon.connect().expect_gone();
    let record = daemon.record_of("backend_connect_refused");
    assert_eq!(record["attempts"], 1);
    assert_eq!(daemon.status()["retries_over_budget"], 1);
}

//! Where names of backends lead, and what becomes of that when they lead elsewhere.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use doorward::telemetry::events;
use socket2::{Domain, Socket, Type};

use crate::backend::{Backend, Refusing};
use crate::nameserver::{A, AAAA, NameServer, Record, Reply, SRV};
use crate::peer::Peer;
use crate::server::Server;
use crate::traffic::door::{Daemon, Setup};

/// Before one backend that goes by name. Connections to it end by nothing but what the
/// test is about.
fn before(backend: &str, names: &NameServer) -> Setup {
    Setup::new().set("BACKEND_ADDRESS", backend).set("RESOLVER", names.address).set("BACKEND_IDLE_TIMEOUT", "1h")
}

/// The backends in the daemon's status.
fn backends(daemon: &Daemon) -> BTreeSet<String> {
    let status = daemon.status();
    let backends = status["backends"].as_array().unwrap().iter();
    backends.map(|backend| backend["address"].as_str().unwrap().to_owned()).collect()
}

fn wait_for_backends(daemon: &Daemon, wanted: &[String]) {
    let wanted: BTreeSet<String> = wanted.iter().cloned().collect();
    daemon.wait(&format!("{wanted:?}"), |_| backends(daemon) == wanted);
}

/// Who answers one client's next requests.
fn answers(client: &mut Peer, count: usize) -> Vec<String> {
    let mut answers = Vec::new();
    for _ in 0..count {
        client.get("/");
        let response = client.response();
        assert_eq!(response.status(), 200, "{response:?}");
        answers.push(response.text().to_owned());
    }
    answers
}

fn all(answers: &[String]) -> BTreeSet<&str> {
    answers.iter().map(String::as_str).collect()
}

#[test]
fn a_name_is_a_backend_at_each_of_its_addresses() {
    let [one, _two] = Server::neighbours([("127.0.0.1", "one"), ("127.0.0.2", "two")]);
    let names = NameServer::new();
    names.addresses("app.test", &["127.0.0.2", "127.0.0.1"], 60);
    let port = one.port();
    let daemon = before(&format!("app.test:{port}"), &names).start();
    let mut client = daemon.connect();
    assert_eq!(all(&answers(&mut client, 16)), BTreeSet::from(["one", "two"]));
    assert_eq!(
        backends(&daemon),
        BTreeSet::from([format!("app.test@127.0.0.1:{port}"), format!("app.test@127.0.0.2:{port}")])
    );
    let record = daemon.record("/");
    assert!(record["backend"].as_str().unwrap().starts_with("app.test@127.0.0."), "{record}");
}

#[test]
fn an_alias_leads_on_and_hosts_are_told_their_name() {
    let backend = Backend::new();
    let port = backend.address.parse::<SocketAddr>().unwrap().port();
    let names = NameServer::new();
    let address = Record::Address("127.0.0.1".parse().unwrap());
    names.say("www.test", A, Reply::Records(vec![Record::Alias("real.test"), address], 60));
    names.say("www.test", AAAA, Reply::Records(vec![Record::Alias("real.test")], 60));
    let daemon = before(&format!("www.test:{port}"), &names).start();
    let mut client = daemon.connect();
    client.send("GET / HTTP/1.0\r\n\r\n");
    let (mut peer, request) = backend.take();
    assert_eq!(request.head.field("Host"), Some(format!("www.test:{port}").as_str()));
    peer.answer_last("");
    client.response();
}

#[test]
fn a_lifetime_is_kept_and_asking_waits_for_its_end() {
    let names = NameServer::new();
    names.addresses("short.test", &["127.0.0.1"], 0);
    names.addresses("long.test", &["127.0.0.1"], 3600);
    let _daemon = before("short.test:9,long.test:9", &names).start();
    let began = Instant::now();
    names.wait_asked_again("short.test", A, 3);
    assert!(began.elapsed() >= Duration::from_secs(2), "no more than once a second");
    assert_eq!((names.asked("long.test", A), names.asked("long.test", AAAA)), (1, 1));
}

/// Clients that ask without a pause, each on one connection, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn on(daemon: &Daemon, clients: usize) -> Load {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = || {
            let (mut client, stop, done) = (daemon.connect(), Arc::clone(&stop), Arc::clone(&done));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    answers(&mut client, 1);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let threads = (0..clients).map(|_| client()).collect();
        Load { stop, done, threads }
    }

    /// Ends it; every request was answered with 200.
    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no request failed");
        }
        self.done.load(Ordering::Relaxed)
    }
}

#[test]
fn addresses_change_under_load_without_a_failed_request() {
    let ips = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
    let servers = Server::neighbours([(ips[0], "one"), (ips[1], "two"), (ips[2], "three")]);
    let port = servers[0].port();
    let names = NameServer::new();
    names.addresses("app.test", &ips[..2], 0);
    let daemon = before(&format!("app.test:{port}"), &names).set("ACCESS_LOG", "errors").set("MAX_RETRIES", 0).start();
    let load = Load::on(&daemon, 4);
    let identity = |ip: &str| format!("app.test@{ip}:{port}");
    for pair in [[1, 2], [0, 2], [0, 1]] {
        let pair = pair.map(|index| ips[index]);
        names.addresses("app.test", &pair, 0);
        wait_for_backends(&daemon, &pair.map(identity));
        for ip in pair {
            let server = servers.iter().find(|server| server.address.ip().to_string() == ip).unwrap();
            let before = server.counts().requests;
            server.wait("it gets requests", |counts| counts.requests > before);
        }
        // Who has gone gets no more, and no connection to it is left.
        let gone = servers.iter().find(|server| !pair.contains(&server.address.ip().to_string().as_str())).unwrap();
        gone.wait("its connections are closed", |counts| counts.open == 0);
    }
    assert!(load.end() > 0);
    let kept = servers[0].counts();
    assert!(kept.requests > kept.connections, "who stays keeps its connections: {kept:?}");
    assert!(daemon.lines(|line| line["reason"].is_string()).is_empty());
    let moves = daemon.lines(|line| line["message_id"] == events::BACKEND_MOVED);
    assert_eq!(moves.len(), 3, "{moves:?}");
    assert_eq!(moves[2]["addresses"], "127.0.0.1,127.0.0.2");
}

#[test]
fn a_change_of_addresses_is_no_reload() {
    let [one, _two] = Server::neighbours([("127.0.0.1", "one"), ("127.0.0.2", "two")]);
    let names = NameServer::new();
    let port = one.port();
    names.addresses("app.test", &["127.0.0.1"], 0);
    let mut daemon = before(&format!("app.test:{port}"), &names).start();
    names.addresses("app.test", &["127.0.0.2"], 0);
    wait_for_backends(&daemon, &[format!("app.test@127.0.0.2:{port}")]);
    let status = daemon.status();
    assert_eq!((&status["generation"], &status["reload"]), (&1.into(), &serde_json::Value::Null));
    let heard = daemon.all_heard();
    assert!(!heard.iter().any(|message| message.contains("RELOADING")), "{heard:?}");
    assert!(daemon.lines(|line| line["message"] == "reloaded").is_empty());
    // And a reload keeps what is known.
    names.say("app.test", A, Reply::Code(2));
    daemon.reload("MAX_RETRIES=0");
    assert_eq!(answers(&mut daemon.connect(), 1), ["two"]);
    assert_eq!(daemon.status()["generation"], 2);
}

#[test]
fn what_is_under_way_at_an_address_that_goes_is_finished() {
    let backend = Backend::new();
    let port = backend.address.parse::<SocketAddr>().unwrap().port();
    let names = NameServer::new();
    names.addresses("app.test", &["127.0.0.1"], 0);
    let daemon = before(&format!("app.test:{port}"), &names).start();
    let mut client = daemon.connect();
    client.get("/slow");
    let (mut peer, _) = backend.take();
    names.addresses("app.test", &["127.0.0.2"], 0);
    wait_for_backends(&daemon, &[format!("app.test@127.0.0.2:{port}")]);
    peer.answer("finished");
    assert_eq!(client.response().text(), "finished");
    // It would take another request; nobody will send one.
    peer.expect_end();
}

#[test]
fn a_failing_name_server_changes_nothing() {
    let server = Server::new("one");
    let names = NameServer::new();
    names.addresses("app.test", &["127.0.0.1"], 0);
    let daemon = before(&format!("app.test:{}", server.port()), &names).start();
    let mut client = daemon.connect();
    assert_eq!(answers(&mut client, 1), ["one"]);
    let replies = [Reply::Code(2), Reply::Code(3), Reply::Records(Vec::new(), 0), Reply::Silence];
    let records = |message: &str| daemon.lines(|line| line["message"] == message);
    for (round, reply) in replies.into_iter().enumerate() {
        for kind in [A, AAAA] {
            names.say("app.test", kind, reply.clone());
        }
        // Two lookups fail, and the first one is reported.
        names.wait_asked_again("app.test", A, 3);
        assert_eq!(answers(&mut client, 1), ["one"]);
        names.addresses("app.test", &["127.0.0.1"], 0);
        daemon.wait("it is back", |_| records("backend's name resolved again").len() == round + 1);
        let failed = records("backend's name not resolved");
        assert_eq!((failed.len(), &failed[round]["in_use"]), (round + 1, &true.into()), "{failed:?}");
    }
    assert_eq!(server.counts().connections, 1, "and no connection was lost");
}

#[test]
fn half_an_answer_takes_no_address_away() {
    let names = NameServer::new();
    names.addresses("app.test", &["127.0.0.1", "::1"], 0);
    let daemon = before("app.test:9", &names).start();
    let both = [String::from("app.test@[::1]:9+127.0.0.1:9")];
    wait_for_backends(&daemon, &both);
    names.say("app.test", AAAA, Reply::Code(2));
    names.wait_asked_again("app.test", AAAA, 3);
    wait_for_backends(&daemon, &both);
    // That there are none is another thing.
    names.say("app.test", AAAA, Reply::Records(Vec::new(), 0));
    wait_for_backends(&daemon, &[String::from("app.test@127.0.0.1:9")]);
}

#[test]
fn a_name_that_comes_to_exist_is_used_from_then_on() {
    let server = Server::new("late");
    let names = NameServer::new();
    let daemon = before(&format!("late.test:{}", server.port()), &names).start();
    let mut client = daemon.connect();
    client.get("/early");
    client.response().assert_refusal(502, "backend_unresolved");
    let status = daemon.status();
    assert_eq!(status["backends"][0]["address"], format!("late.test:{}", server.port()));
    assert_eq!(status["backends"][0]["reason"], "the name has no address");
    names.addresses("late.test", &["127.0.0.1"], 0);
    wait_for_backends(&daemon, &[format!("late.test@127.0.0.1:{}", server.port())]);
    assert_eq!(answers(&mut client, 1), ["late"]);
    assert_eq!(daemon.lines(|line| line["message"] == "backend's name not resolved").len(), 1);
}

#[test]
fn a_name_server_that_is_silent_or_gone_holds_up_neither_start_nor_others() {
    let server = Server::new("numeric");
    let names = NameServer::new();
    names.say("app.test", A, Reply::Silence);
    names.say("app.test", AAAA, Reply::Silence);
    let daemon = before(&format!("app.test:9,{}", server.address), &names).start();
    assert_eq!(all(&answers(&mut daemon.connect(), 4)), BTreeSet::from(["numeric"]));
    let record = daemon.logged("the failure", |line| line["message"] == "backend's name not resolved");
    assert!(record["error"].as_str().unwrap().ends_with("does not answer"), "{record}");

    let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // The first one refuses; the second one knows.
    names.addresses("app.test", &["127.0.0.1"], 60);
    let daemon = before(&format!("app.test:{}", server.port()), &names)
        .set("RESOLVER", format!("{gone},{}", names.address))
        .start();
    assert_eq!(answers(&mut daemon.connect(), 1), ["numeric"]);
}

#[test]
fn a_huge_answer_comes_over_tcp_and_is_cut() {
    let names = NameServer::new();
    let many: Vec<String> = (1..=200).map(|n| format!("127.0.1.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    names.addresses("many.test", &many, 0);
    let everywhere = Server::on(TcpListener::bind("0.0.0.0:0").unwrap(), "any", "");
    let daemon = before(&format!("many.test:{}", everywhere.port()), &names).start();
    let first = backends(&daemon);
    assert_eq!(first.len(), 64);
    assert_eq!(answers(&mut daemon.connect(), 1), ["any"]);
    let record =
        daemon.logged("the rest", |line| line["message"] == "a backend's name has more addresses than are used");
    assert_eq!((&record["addresses"], &record["limit"]), (&200.into(), &64.into()));
    // Another order is no change.
    let rotated: Vec<&str> = many.iter().rev().copied().collect();
    names.addresses("many.test", &rotated, 0);
    names.wait_asked_again("many.test", A, 4);
    assert_eq!(backends(&daemon), first);
}

#[test]
fn a_service_is_spread_as_its_records_say() {
    let (heavy, light) = (Server::new("heavy"), Server::new("light"));
    let names = NameServer::new();
    let record = |weight, server: &Server, host| Record::Service(10, weight, server.port(), host);
    let records = vec![record(30, &heavy, "a.test"), record(10, &light, "b.test")];
    names.say("_http._tcp.app.test", SRV, Reply::Records(records, 0));
    names.addresses("a.test", &["127.0.0.1"], 60);
    names.addresses("b.test", &["127.0.0.1"], 60);
    let daemon = before("srv:_http._tcp.app.test", &names).start();
    let answers = answers(&mut daemon.connect(), 400);
    let share = answers.iter().filter(|answer| *answer == "heavy").count();
    assert!((240..=360).contains(&share), "{share} of 400 where 300 are due");
    assert_eq!(
        backends(&daemon),
        BTreeSet::from([&heavy, &light].map(|server| format!("srv:_http._tcp.app.test@{}", server.address)))
    );
    // Nobody offers it any more: what was known stays.
    names.say("_http._tcp.app.test", SRV, Reply::Records(vec![Record::Service(0, 0, 1, "")], 0));
    daemon.logged("the failure", |line| line["error"] == "nobody offers the service");
    assert_eq!(backends(&daemon).len(), 2);
}

#[test]
fn a_service_of_lower_preference_is_a_backup() {
    let (gone, first, last) = (Refusing::new(), Server::new("first"), Server::new("last"));
    let names = NameServer::new();
    names.addresses("a.test", &["127.0.0.1"], 60);
    let port = |address: &str| address.parse::<SocketAddr>().unwrap().port();
    for (preferred, answered) in [(first.port(), "first"), (port(&gone.address), "last")] {
        let record = |priority, port| Record::Service(priority, 1, port, "a.test");
        let records = vec![record(20, last.port()), record(10, preferred)];
        names.say("_http._tcp.app.test", SRV, Reply::Records(records, 60));
        let daemon = before("srv:_http._tcp.app.test", &names).start();
        assert_eq!(all(&answers(&mut daemon.connect(), 8)), BTreeSet::from([answered]));
    }
}

/// A port on which 127.0.0.1 answers, and [::1] neither answers nor refuses.
fn half_open(server: &'static str) -> (Server, Vec<Socket>) {
    for _ in 0..64 {
        let server = Server::new(server);
        let six = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        let address: SocketAddr = format!("[::1]:{}", server.port()).parse().unwrap();
        if six.bind(&address.into()).is_err() {
            continue;
        }
        six.listen(0).unwrap();
        let mut held = vec![six];
        // More than its backlog takes.
        for _ in 0..4 {
            let waiting = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
            waiting.set_nonblocking(true).unwrap();
            let _ = waiting.connect(&address.into());
            held.push(waiting);
        }
        return (server, held);
    }
    panic!("no port is free in both families");
}

#[test]
fn a_family_that_does_not_answer_does_not_cost_the_connect_timeout() {
    let (server, _held) = half_open("four");
    let names = NameServer::new();
    names.addresses("app.test", &["127.0.0.1", "::1"], 60);
    // Were it waited for, no request would be answered before the test gives up.
    let daemon = before(&format!("app.test:{}", server.port()), &names)
        .set("CONNECT_TIMEOUT", "1h")
        .set("MAX_RETRIES", 0)
        .start();
    for _ in 0..3 {
        let mut client = daemon.connect();
        assert_eq!(answers(&mut client, 1), ["four"]);
    }
    let status = daemon.status();
    assert_eq!(status["backends"].as_array().unwrap().len(), 1, "{status}");
    assert_eq!(status["backends"][0]["up"], true);
}

#[test]
fn localhost_works_without_a_name_server_and_whichever_family_serves() {
    let server = Server::new("local");
    let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let daemon = Setup::new()
        .set("BACKEND_ADDRESS", format!("localhost:{}", server.port()))
        .set("RESOLVER", gone)
        .set("MAX_RETRIES", 0)
        .start();
    assert_eq!(answers(&mut daemon.connect(), 8), ["local"; 8]);
    let status = daemon.status();
    assert_eq!(status["backends"].as_array().unwrap().len(), 1, "one backend, by two ways: {status}");
    assert_eq!(status["backends"][0]["up"], true);
    assert!(daemon.lines(|line| line["message"] == "backend down").is_empty());
}

#[test]
fn the_hosts_file_counts_before_name_servers_and_is_read_again() {
    let [one, _two] = Server::neighbours([("127.0.0.1", "one"), ("127.0.0.2", "two")]);
    let names = NameServer::new();
    names.addresses("app.test", &["127.0.0.3"], 3600);
    let setup = before(&format!("app.test:{}", one.port()), &names);
    let hosts = setup.path("hosts");
    std::fs::write(&hosts, "127.0.0.1 other.test app.test # the first\n").unwrap();
    let Some(setup) = setup.with_hosts("hosts") else {
        eprintln!("skipped: no mount namespace can be made here");
        return;
    };
    let daemon = setup.start();
    assert_eq!(answers(&mut daemon.connect(), 1), ["one"]);
    std::fs::write(&hosts, "127.0.0.2 app.test\n").unwrap();
    wait_for_backends(&daemon, &[format!("app.test@127.0.0.2:{}", one.port())]);
    assert_eq!(answers(&mut daemon.connect(), 1), ["two"]);
    assert_eq!(names.asked("app.test", A), 0);
}

#[test]
fn a_reload_may_name_another_name_server() {
    let [one, _two] = Server::neighbours([("127.0.0.1", "one"), ("127.0.0.2", "two")]);
    let (first, second) = (NameServer::new(), NameServer::new());
    first.addresses("app.test", &["127.0.0.1"], 3600);
    second.addresses("app.test", &["127.0.0.2"], 3600);
    let daemon = before(&format!("app.test:{}", one.port()), &first).start();
    assert_eq!(answers(&mut daemon.connect(), 1), ["one"]);
    daemon.replace("RESOLVER", &second.address.to_string());
    wait_for_backends(&daemon, &[format!("app.test@127.0.0.2:{}", one.port())]);
    assert_eq!(answers(&mut daemon.connect(), 1), ["two"]);
}

#[test]
fn a_reload_asks_its_own_name_server_for_the_names_that_it_brings() {
    let [one, _two] = Server::neighbours([("127.0.0.1", "one"), ("127.0.0.2", "two")]);
    let (old, new) = (NameServer::new(), NameServer::new());
    old.addresses("app.test", &["127.0.0.1"], 3600);
    new.addresses("app.test", &["127.0.0.2"], 3600);
    let daemon = Setup::new().set("RESOLVER", old.address).start();
    daemon.put_route("app.env", &format!("MATCH_PATH=/app\nBACKEND_ADDRESS=app.test:{}\n", one.port()));
    daemon.replace("RESOLVER", &new.address.to_string());
    let mut client = daemon.connect();
    client.get("/app");
    assert_eq!(client.response().text(), "two");
    assert_eq!(old.asked("app.test", A), 0);
}

#[test]
fn what_is_wrong_with_names_that_a_reload_brings_is_told() {
    let names = NameServer::new();
    let many: Vec<String> = (1..=200).map(|n| format!("127.0.1.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    names.addresses("many.test", &many, 60);
    let daemon = before("127.0.0.1:9", &names).start();
    daemon.replace("BACKEND_ADDRESS", "nope.test:9,many.test:9");
    let unresolved = |backend: &str| {
        daemon.lines(|line| line["message_id"] == events::BACKEND_UNRESOLVED && line["backend"] == backend)
    };
    daemon.logged("the failure", |line| line["message_id"] == events::BACKEND_UNRESOLVED);
    daemon.logged("the rest", |line| line["message_id"] == events::BACKEND_ADDRESSES_IGNORED);
    // Another backend by the same name, which is known to fail.
    daemon.replace("BACKEND_ADDRESS", "nope.test:9,nope.test:10");
    daemon.logged("the other", |line| line["backend"] == "nope.test:10");
    assert_eq!((unresolved("nope.test:9").len(), unresolved("nope.test:10").len()), (1, 1));
}

//! Which backend takes a request.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use serde_json::Value;

use crate::backend::{Backend, Refusing};
use crate::daemon::{DEADLINE, listener, read_head};
use crate::peer::{Message, Peer};
use crate::traffic::door::{Daemon, Setup};

/// A backend that answers each request with its own address, at once or when it may.
struct Server {
    address: String,
    hold: Arc<Hold>,
}

/// Keeps requests waiting while it is shut.
#[derive(Default)]
struct Hold {
    /// Whether it is shut, and how many wait.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Hold {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        let (mut state, late) = self.changed.wait_timeout_while(state, DEADLINE, |(shut, _)| *shut).unwrap();
        assert!(!late.timed_out(), "held for ever");
        state.1 -= 1;
    }

    /// Keeps what comes from now on.
    fn shut(&self) {
        self.state.lock().unwrap().0 = true;
    }

    /// Lets everything go on.
    fn open(&self) {
        self.state.lock().unwrap().0 = false;
        self.changed.notify_all();
    }

    /// How many are kept now.
    fn held(&self) -> usize {
        self.state.lock().unwrap().1
    }
}

impl Server {
    fn new() -> Self {
        let (socket, address) = listener();
        Self::on(socket, address.to_string())
    }

    /// Where connections were refused until now.
    fn at(refusing: Refusing) -> Self {
        let address = refusing.address.clone();
        Self::on(refusing.listen(), address)
    }

    fn on(socket: TcpListener, address: String) -> Self {
        let hold = Arc::new(Hold::default());
        let (name, held) = (address.clone(), Arc::clone(&hold));
        std::thread::spawn(move || {
            for stream in socket.incoming() {
                let (mut stream, name, held) = (stream.unwrap(), name.clone(), Arc::clone(&held));
                std::thread::spawn(move || {
                    while read_head(&mut stream).ends_with("\r\n\r\n") {
                        held.pass();
                        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
                        if stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, hold }
    }
}

fn servers<const N: usize>() -> [Server; N] {
    std::array::from_fn(|_| Server::new())
}

fn list<'a>(servers: impl IntoIterator<Item = &'a Server>) -> String {
    let addresses: Vec<&str> = servers.into_iter().map(|server| server.address.as_str()).collect();
    addresses.join(",")
}

fn before(balance: &str, backends: &str) -> Setup {
    Setup::new().set("BALANCE", balance).set("BACKEND_ADDRESS", backends)
}

/// The answer to a GET with these field lines.
fn ask(client: &mut Peer, fields: &str) -> Message {
    client.send(format!("GET / HTTP/1.1\r\nHost: door.test\r\n{fields}\r\n"));
    let answer = client.response();
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer
}

/// Who answers how many of so many requests, from several clients one after the other, so
/// that all workers have their part.
fn shares(daemon: &Daemon, requests: usize, fields: impl Fn(usize) -> String) -> BTreeMap<String, usize> {
    let mut clients: Vec<Peer> = (0..8).map(|_| daemon.connect()).collect();
    let mut shares = BTreeMap::new();
    for n in 0..requests {
        let client = &mut clients[n % 8];
        *shares.entry(ask(client, &fields(n)).text().to_owned()).or_insert(0) += 1;
    }
    shares
}

fn plain(_: usize) -> String {
    String::new()
}

#[test]
fn a_slow_backend_gets_less() {
    for balance in ["p2c", "least-requests"] {
        let [fast, slow] = servers();
        let daemon = before(balance, &list([&fast, &slow])).start();
        fast.hold.shut();
        slow.hold.shut();
        let mut held: Vec<Peer> = (1..=8)
            .map(|count| {
                let mut client = daemon.connect();
                client.get("/held");
                daemon.wait("one more at a backend", |_| fast.hold.held() + slow.hold.held() == count);
                client
            })
            .collect();
        assert_eq!((fast.hold.held(), slow.hold.held()), (4, 4), "{balance}");
        fast.hold.open();
        daemon.wait_in_flight(4);
        assert_eq!(shares(&daemon, 300, plain), BTreeMap::from([(fast.address.clone(), 300)]), "{balance}");
        slow.hold.open();
        held.iter_mut().for_each(|client| assert_eq!(client.response().status(), 200));
        if balance == "p2c" {
            // It answers at once from now on, and yet it is remembered how long it took.
            let after = shares(&daemon, 200, plain);
            assert!(after.get(&slow.address).copied().unwrap_or(0) <= 20, "{after:?}");
        }
    }
}

#[test]
fn a_backend_that_drains_takes_nothing_new_and_finishes_what_it_has() {
    let servers: [Server; 3] = servers();
    let daemon = before("least-requests", &list(&servers)).start();
    servers[1].hold.shut();
    let mut clients = Vec::new();
    while servers[1].hold.held() == 0 {
        let mut client = daemon.connect();
        client.get("/held");
        daemon.wait("one request more", |status| requests(status) > clients.len() as u64);
        clients.push(client);
    }
    let drained = list(&servers).replace(&servers[1].address, &format!("{}?weight=0", servers[1].address));
    daemon.replace("BACKEND_ADDRESS", &drained);
    let shares = shares(&daemon, 200, plain);
    assert!(shares.len() == 2 && !shares.contains_key(&servers[1].address), "{shares:?}");
    servers[1].hold.open();
    let answers: Vec<Message> = clients.iter_mut().map(Peer::response).collect();
    assert!(answers.iter().any(|answer| answer.text() == servers[1].address));
}

/// Requests that came so far.
fn requests(status: &Value) -> u64 {
    status["requests"].as_u64().unwrap() + status["in_flight"].as_u64().unwrap()
}

#[test]
fn a_backup_is_used_only_while_nobody_else_takes_requests() {
    let (first, second) = (Refusing::new(), Refusing::new());
    let backup = Server::new();
    let backends = format!("{}?backup,{},{}", backup.address, first.address, second.address);
    let daemon = before("p2c", &backends).set("RETRY_BACKOFF", "1ms").set("RETRY_BACKOFF_MAX", "1ms").start();
    assert_eq!(shares(&daemon, 20, plain), BTreeMap::from([(backup.address.clone(), 20)]));
    let back = Server::at(first);
    // Once it has been found out that it is back, nothing goes to the backup any more.
    let mut client = daemon.connect();
    let until = Instant::now() + DEADLINE;
    while ask(&mut client, "").text() != back.address {
        assert!(Instant::now() < until, "never found out");
    }
    daemon.wait("up again", |status| {
        let backends = status["backends"].as_array().unwrap();
        backends.iter().any(|one| one["address"] == back.address && one["up"] == true)
    });
    assert_eq!(shares(&daemon, 50, plain), BTreeMap::from([(back.address.clone(), 50)]));
}

#[test]
fn clients_stick_to_their_backend_over_a_reload_and_go_elsewhere_when_it_is_gone() {
    let servers: [Server; 3] = servers();
    let daemon = before("sticky", &list(&servers)).start();
    let mut client = daemon.connect();
    let first = ask(&mut client, "");
    let home = first.text().to_owned();
    let set = first.head.field("Set-Cookie").expect("a cookie").to_owned();
    let (cookie, attributes) = set.split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
    let (name, token) = cookie.split_once('=').unwrap();
    assert!(name.starts_with("doorward-"), "{name}");
    assert!(token.len() == 16 && token.bytes().all(|byte| byte.is_ascii_hexdigit()), "{token}");
    let port = home.rsplit(':').next().unwrap();
    assert!(!token.contains(port), "{token} tells of {home}");

    let cookies = format!("Cookie: theme=dark; {cookie}\r\nCookie: a=b\r\n");
    let stay = |daemon: &Daemon| {
        for n in 0..40 {
            let answer = ask(&mut daemon.connect(), if n % 2 == 0 { &cookies } else { &cookies[..cookies.len() - 13] });
            assert_eq!(answer.text(), home);
            assert_eq!(answer.head.field("Set-Cookie"), None, "it has one");
        }
    };
    stay(&daemon);
    let more = Server::new();
    daemon.replace("BACKEND_ADDRESS", &format!("{},{}", more.address, list(&servers)));
    stay(&daemon);
    let drained = list(&servers).replace(&home, &format!("{home}?weight=0"));
    daemon.replace("BACKEND_ADDRESS", &drained);
    stay(&daemon);

    let left: Vec<&Server> = servers.iter().filter(|server| server.address != home).collect();
    daemon.replace("BACKEND_ADDRESS", &list(left.iter().copied()));
    let answer = ask(&mut client, &cookies);
    assert_ne!(answer.text(), home);
    let other = answer.head.field("Set-Cookie").expect("another cookie").split_once("; ").unwrap().0.to_owned();
    assert!(other.starts_with(name) && other != cookie, "{other}");
    // Whoever has lost his way has a new one now.
    let again = ask(&mut client, &format!("Cookie: {other}\r\n"));
    assert_eq!((again.text(), again.head.field("Set-Cookie")), (answer.text(), None));
}

#[test]
fn a_client_whose_backend_is_down_is_served_by_another_and_told_so() {
    let (home, other) = (Backend::new(), Server::new());
    let daemon = before("sticky", &format!("{},{}?weight=0", home.address, other.address))
        .set("RETRY_BACKOFF", "1ms")
        .set("STICKY_COOKIE", "sid")
        .start();
    let mut client = daemon.connect();
    client.get("/");
    let (mut peer, _) = home.take();
    peer.answer_last("");
    let set = client.response().head.field("Set-Cookie").unwrap().to_owned();
    let cookie = set.split(';').next().unwrap();
    assert!(cookie.starts_with("sid="), "{cookie}");
    daemon.replace("BACKEND_ADDRESS", &format!("{},{}", home.address, other.address));
    // Its port is nobody else's for as long as the connection is in TIME_WAIT.
    drop(home);
    let answer = ask(&mut client, &format!("Cookie: {cookie}\r\n"));
    assert_eq!(answer.text(), other.address);
    assert_ne!(answer.head.field("Set-Cookie").unwrap().split(';').next(), Some(cookie));
}

#[test]
fn a_websocket_sticks_too() {
    let backends = [Backend::new(), Backend::new()];
    let daemon = before("sticky", &format!("{},{}?backup", backends[0].address, backends[1].address)).start();
    let mut client = daemon.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    let (mut peer, _) = backends[0].take();
    peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello");
    let head = client.head();
    assert_eq!(head.status(), 101);
    assert!(head.field("Set-Cookie").unwrap().starts_with("doorward-"));
    client.expect("hello");
}

#[test]
fn what_has_the_same_key_meets_the_same_backend_on_every_worker_and_keys_spread() {
    for (balance, field) in [("hash:header:X-User", "X-User: "), ("hash:cookie:sid", "Cookie: a=b; sid=")] {
        let servers: [Server; 4] = servers();
        let daemon = before(balance, &list(&servers)).set("WORKERS", 4).start();
        let homes = |turn: usize| -> Vec<String> {
            // Another client, and so another worker, for each key in each turn.
            let mut clients: Vec<Peer> = (0..8).map(|_| daemon.connect()).collect();
            let mut home = |key: usize| {
                ask(&mut clients[(key * 3 + turn) % 8], &format!("{field}user{key}\r\n")).text().to_owned()
            };
            (0..400).map(&mut home).collect()
        };
        let first = homes(0);
        assert_eq!(homes(1), first, "{balance}");
        let mut counts = BTreeMap::new();
        first.iter().for_each(|home| *counts.entry(home).or_insert(0) += 1);
        assert!(counts.len() == 4 && counts.values().all(|count| (50..150).contains(count)), "{counts:?}");
    }
}

#[test]
fn clients_of_one_address_meet_one_backend_also_with_tcp() {
    let servers: [Server; 4] = servers();
    let daemon = before("hash:client", &list(&servers)).start();
    assert_eq!(shares(&daemon, 50, plain).len(), 1);
    let trusted = before("hash:client", &list(&servers)).set("TRUSTED_PROXIES", "127.0.0.0/8").start();
    let counts = shares(&trusted, 100, |n| format!("X-Forwarded-For: 192.0.2.{n}\r\n"));
    assert_eq!(counts.len(), 4, "they are told apart by what a trusted peer says: {counts:?}");
    let tcp = before("hash:client", &list(&servers)).set("MODE", "tcp").start();
    let mut clients = [(); 3].map(|()| tcp.connect());
    let homes = clients.each_mut().map(|client| ask(client, "").text().to_owned());
    assert!(homes.iter().all(|home| *home == homes[0]), "{homes:?}");
}

#[test]
fn every_worker_sees_what_the_others_have_under_way() {
    for balance in ["least-requests", "p2c"] {
        let servers: [Server; 5] = servers();
        let daemon = before(balance, &list(&servers)).set("WORKERS", 4).start();
        servers.iter().for_each(|server| server.hold.shut());
        let held = || servers.iter().map(|server| server.hold.held()).sum::<usize>();
        let mut clients: Vec<Peer> = (1..=40)
            .map(|count| {
                let mut client = daemon.connect();
                client.get("/");
                daemon.wait("one more at a backend", |_| held() == count);
                client
            })
            .collect();
        let counts: Vec<usize> = servers.iter().map(|server| server.hold.held()).collect();
        // Eight each; the better one of two may be off by a few.
        let most = if balance == "p2c" { 11 } else { 8 };
        assert!(counts.iter().all(|count| *count <= most), "{balance}: {counts:?}");
        servers.iter().for_each(|server| server.hold.open());
        clients.iter_mut().for_each(|client| assert_eq!(client.response().status(), 200));
    }
}

//! A name server on loopback that says what a test wants.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::daemon::DEADLINE;

/// The name server; it ends with the value.
pub struct NameServer {
    /// As `RESOLVER` has it.
    pub address: SocketAddr,
    state: Arc<(Mutex<State>, Condvar)>,
    over: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    zone: HashMap<(String, u16), Reply>,
    asked: HashMap<(String, u16), usize>,
}

/// What it says to a question.
#[derive(Clone)]
pub enum Reply {
    /// These records, for so many seconds.
    Records(Vec<Record>, u32),
    /// The code of an error; 3: there is no such name.
    Code(u8),
    /// Nothing.
    Silence,
}

/// A record.
#[derive(Clone)]
pub enum Record {
    /// An address.
    Address(IpAddr),
    /// Another name.
    Alias(&'static str),
    /// Priority, weight, port and host.
    Service(u16, u16, u16, &'static str),
}

pub const A: u16 = 1;
pub const AAAA: u16 = 28;
pub const SRV: u16 = 33;

impl NameServer {
    pub fn new() -> NameServer {
        // The same port for both; somebody may have taken the one of TCP.
        let (udp, tcp) = (0..64)
            .find_map(|_| {
                let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
                TcpListener::bind(udp.local_addr().unwrap()).ok().map(|tcp| (udp, tcp))
            })
            .unwrap();
        let address = udp.local_addr().unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let server = NameServer { address, state: Arc::default(), over: Arc::default() };
        let (state, over) = (Arc::clone(&server.state), Arc::clone(&server.over));
        std::thread::spawn(move || {
            let mut bytes = [0; 2048];
            while !over.load(Ordering::Relaxed) {
                match udp.recv_from(&mut bytes) {
                    Ok((length, from)) => {
                        if let Some(answer) = answer(&state, &bytes[..length], Some(1232)) {
                            udp.send_to(&answer, from).unwrap();
                        }
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let (state, over) = (Arc::clone(&server.state), Arc::clone(&server.over));
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let mut stream = stream.unwrap();
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut bytes).unwrap();
                if let Some(answer) = answer(&state, &bytes, None) {
                    let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
                    stream.write_all(&[&length[..], &answer].concat()).unwrap();
                }
            }
        });
        server
    }

    /// From now on says this; what it was never told about does not exist.
    pub fn say(&self, name: &str, kind: u16, reply: Reply) {
        self.state.0.lock().unwrap().zone.insert((name.into(), kind), reply);
    }

    /// From now on a name has these addresses of both families, for so many seconds.
    pub fn addresses(&self, name: &str, addresses: &[&str], lifetime: u32) {
        let addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        for (kind, v6) in [(A, false), (AAAA, true)] {
            let mine = addresses.iter().filter(|ip| ip.is_ipv6() == v6).map(|ip| Record::Address(*ip));
            self.say(name, kind, Reply::Records(mine.collect(), lifetime));
        }
    }

    /// How often it was asked.
    pub fn asked(&self, name: &str, kind: u16) -> usize {
        self.state.0.lock().unwrap().asked.get(&(name.into(), kind)).copied().unwrap_or(0)
    }

    /// Waits until it was asked so often.
    pub fn wait_asked(&self, name: &str, kind: u16, count: usize) {
        let (state, more) = &*self.state;
        let few = |state: &mut State| state.asked.get(&(name.into(), kind)).copied().unwrap_or(0) < count;
        let (_state, late) = more.wait_timeout_while(state.lock().unwrap(), DEADLINE, few).unwrap();
        assert!(!late.timed_out(), "`{name}` was not asked for {count} times");
    }

    /// Waits until it was asked so often from now on.
    pub fn wait_asked_again(&self, name: &str, kind: u16, times: usize) {
        self.wait_asked(name, kind, self.asked(name, kind) + times);
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = std::net::TcpStream::connect(self.address);
    }
}

fn answer(state: &(Mutex<State>, Condvar), question: &[u8], most: Option<usize>) -> Option<Vec<u8>> {
    let (name, ends) = name_at(question, 12);
    let kind = u16::from_be_bytes([question[ends], question[ends + 1]]);
    let reply = {
        let mut locked = state.0.lock().unwrap();
        *locked.asked.entry((name.clone(), kind)).or_default() += 1;
        state.1.notify_all();
        locked.zone.get(&(name, kind)).cloned().unwrap_or(Reply::Code(3))
    };
    let (code, records, lifetime) = match reply {
        Reply::Silence => return None,
        Reply::Code(code) => (code, Vec::new(), 0),
        Reply::Records(records, lifetime) => (0, records, lifetime),
    };
    let mut bytes = question[..ends + 4].to_vec();
    bytes[2] = 0x81;
    bytes[3] = 0x80 | code;
    bytes[6..8].copy_from_slice(&u16::try_from(records.len()).unwrap().to_be_bytes());
    bytes[10..12].fill(0);
    // Every record belongs to what the one before it is an alias of.
    let mut owner = vec![0xc0, 12];
    for record in records {
        let (kind, data) = match &record {
            Record::Address(IpAddr::V4(ip)) => (A, ip.octets().to_vec()),
            Record::Address(IpAddr::V6(ip)) => (AAAA, ip.octets().to_vec()),
            Record::Alias(to) => (5, name_of(to)),
            Record::Service(priority, weight, port, host) => {
                let numbers = [priority, weight, port].map(|number| number.to_be_bytes());
                (SRV, [numbers.concat(), name_of(host)].concat())
            }
        };
        bytes.extend(&owner);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1]);
        bytes.extend(lifetime.to_be_bytes());
        bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(&data);
        if let Record::Alias(to) = record {
            owner = name_of(to);
        }
    }
    if most.is_some_and(|most| bytes.len() > most) {
        bytes.truncate(ends + 4);
        bytes[2] |= 0x02;
        bytes[6..8].fill(0);
    }
    Some(bytes)
}

fn name_at(bytes: &[u8], mut at: usize) -> (String, usize) {
    let mut labels = Vec::new();
    while bytes[at] > 0 {
        let length = usize::from(bytes[at]);
        labels.push(String::from_utf8(bytes[at + 1..at + 1 + length].to_vec()).unwrap());
        at += 1 + length;
    }
    (labels.join("."), at + 1)
}

fn name_of(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}

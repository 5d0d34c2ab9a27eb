//! Messages of DNS: a question, and the records that answer it.
//!
//! `simple-dns` reads and writes the bytes; which answers count, and which of their records
//! belong to the question, is decided here. Source: RFC 1035 §4, RFC 2782, RFC 6891.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use simple_dns::rdata::{OPT, RData};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE, header_buffer};

/// Bytes of an answer over UDP that we take, as told to the server; what is larger comes
/// over TCP. Source: DNS Flag Day 2020.
pub const UDP_MOST: u16 = 1232;

/// Aliases that are followed from the name that was asked for.
const ALIASES_MOST: usize = 16;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Hosts of a service.
    Srv,
}

impl Kind {
    const fn code(self) -> TYPE {
        match self {
            Self::A => TYPE::A,
            Self::Aaaa => TYPE::AAAA,
            Self::Srv => TYPE::SRV,
        }
    }
}

/// A record that answers the question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An address.
    Address(IpAddr),
    /// A host of a service.
    Service {
        /// Lower is used first.
        priority: u16,
        /// Share among those of the same priority.
        weight: u16,
        /// Port.
        port: u16,
        /// The host, lower case, without a final dot; empty: the service is not offered.
        host: String,
    },
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The name exists; there may be no such records of it.
    Records {
        /// Records of the kind that was asked for.
        records: Vec<Record>,
        /// Seconds that all of them hold, aliases included.
        lifetime: u32,
    },
    /// There is no such name.
    NoName,
    /// It does not fit: to be asked again over TCP.
    Truncated,
    /// The server can't or won't answer; the code says why.
    Failed(u8),
}

/// Why bytes are no answer to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// They answer another question, or none.
    #[error("not an answer to the question")]
    Stray,
    /// They are no message.
    #[error("the answer is malformed")]
    Malformed,
}

/// The message that asks for records of `name`; the answer can be as large as [`UDP_MOST`].
/// `None` when that can't be a name: it has labels of 1 to 63 bytes and 253 bytes in all.
#[must_use]
pub fn question(id: u16, name: &str, kind: Kind) -> Option<Vec<u8>> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name).ok()?;
    packet.questions.push(Question::new(name, QTYPE::TYPE(kind.code()), QCLASS::CLASS(CLASS::IN), false));
    *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: UDP_MOST, version: 0 });
    packet.build_bytes_vec().ok()
}

/// Reads the answer to a question.
///
/// # Errors
/// [`Unreadable`]: keep waiting for the real one, or give the server up.
pub fn answer(bytes: &[u8], id: u16, name: &str, kind: Kind) -> Result<Answer, Unreadable> {
    let flag = |flag| header_buffer::has_flags(bytes, flag).unwrap_or(false);
    if header_buffer::id(bytes) != Ok(id) || !flag(PacketFlag::RESPONSE) {
        return Err(Unreadable::Stray);
    }
    let packet = match Packet::parse(bytes) {
        Ok(packet) => packet,
        // What was cut off may not be readable to its end.
        Err(_) if flag(PacketFlag::TRUNCATION) => return Ok(Answer::Truncated),
        Err(_) => return Err(Unreadable::Malformed),
    };
    let code = packet.rcode() as u8;
    let failed = packet.rcode() != RCODE::NoError;
    match packet.questions.as_slice() {
        // A server that could not read the question need not repeat it.
        [] if failed => return Ok(Answer::Failed(code)),
        [asked]
            if packet.opcode() == OPCODE::StandardQuery
                && plain(&asked.qname).as_deref() == Some(name)
                && asked.qtype == QTYPE::TYPE(kind.code())
                && asked.qclass == QCLASS::CLASS(CLASS::IN) => {}
        _ => return Err(Unreadable::Stray),
    }
    match packet.rcode() {
        RCODE::NoError if flag(PacketFlag::TRUNCATION) => Ok(Answer::Truncated),
        RCODE::NoError => Ok(select(&packet, name, kind)),
        RCODE::NameError => Ok(Answer::NoName),
        _ => Ok(Answer::Failed(code)),
    }
}

/// The records of the kind that belong to the name, or to what it is an alias of.
fn select(packet: &Packet<'_>, asked: &str, kind: Kind) -> Answer {
    let mut owner = asked.to_owned();
    let mut lifetime = u32::MAX;
    for _ in 0..=ALIASES_MOST {
        let (mut records, mut held, mut alias) = (Vec::new(), lifetime, None);
        for resource in packet.answers.iter().filter(|resource| resource.class == CLASS::IN) {
            if plain(&resource.name).as_deref() != Some(&owner) {
                continue;
            }
            // RFC 2181 §8: the topmost bit set means that nothing lives.
            let lives = if resource.ttl > 0x7fff_ffff { 0 } else { resource.ttl };
            if let RData::CNAME(to) = &resource.rdata {
                alias = alias.or_else(|| Some((plain(&to.0)?, lives)));
            } else if let Some(record) = record(&resource.rdata, kind) {
                records.push(record);
                held = held.min(lives);
            }
        }
        match alias {
            Some((to, lives)) if records.is_empty() => {
                owner = to;
                lifetime = lifetime.min(lives);
            }
            _ => return Answer::Records { lifetime: if records.is_empty() { 0 } else { held }, records },
        }
    }
    Answer::Records { records: Vec::new(), lifetime: 0 }
}

/// What a record of this kind says; `None` for another one.
fn record(data: &RData<'_>, kind: Kind) -> Option<Record> {
    match (data, kind) {
        (RData::A(record), Kind::A) => Some(Record::Address(Ipv4Addr::from(record.address).into())),
        (RData::AAAA(record), Kind::Aaaa) => Some(Record::Address(Ipv6Addr::from(record.address).to_canonical())),
        (RData::SRV(record), Kind::Srv) => Some(Record::Service {
            priority: record.priority,
            weight: record.weight,
            port: record.port,
            host: plain(&record.target)?,
        }),
        _ => None,
    }
}

/// A name in lower case, without a final dot. `None` for one that no host has: it could not
/// be told from others once it is text.
fn plain(name: &Name<'_>) -> Option<String> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let mut text = String::new();
    for label in name.as_bytes() {
        if !label.iter().all(is_plain) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer to a question of ours, of `count` records.
    fn reply(name: &str, kind: Kind, flags: u16, count: u16, records: &[u8]) -> Vec<u8> {
        let mut bytes = question(7, name, kind).unwrap();
        let question_ends = bytes.len() - 11;
        bytes.truncate(question_ends);
        bytes[2..4].copy_from_slice(&flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&count.to_be_bytes());
        bytes[11] = 0;
        bytes.extend(records);
        bytes
    }

    /// A record owned by the name in the question.
    fn record(code: u16, lifetime: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xc0, 12];
        bytes.extend(code.to_be_bytes());
        bytes.extend([0, 1]);
        bytes.extend(lifetime.to_be_bytes());
        bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(data);
        bytes
    }

    fn read(bytes: &[u8], kind: Kind) -> Result<Answer, Unreadable> {
        answer(bytes, 7, "app.test", kind)
    }

    #[test]
    fn a_question_is_what_rfc_1035_says() {
        let bytes = question(0x1234, "app.test", Kind::A).unwrap();
        assert_eq!(bytes[..12], [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
        assert_eq!(&bytes[12..26], b"\x03app\x04test\0\0\x01\0\x01");
        assert_eq!(bytes[26..], [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0][..11]);
    }

    #[test]
    fn addresses_come_with_the_shortest_lifetime_among_them() {
        let records = [record(1, 300, &[10, 0, 0, 1]), record(1, 20, &[10, 0, 0, 2])].concat();
        let expected = Answer::Records {
            records: vec![Record::Address("10.0.0.1".parse().unwrap()), Record::Address("10.0.0.2".parse().unwrap())],
            lifetime: 20,
        };
        assert_eq!(read(&reply("app.test", Kind::A, 0x8180, 2, &records), Kind::A), Ok(expected));
    }

    #[test]
    fn an_alias_is_followed_and_its_lifetime_counts() {
        // app.test is real.test, which follows at the offset of the alias's data.
        let mut bytes = reply("app.test", Kind::A, 0x8180, 2, &record(5, 5, b"\x04real\xc0\x10"));
        let at = u8::try_from(bytes.len() - 7).unwrap();
        let mut address = record(1, 300, &[10, 0, 0, 1]);
        address[1] = at;
        bytes.extend(address);
        let expected = Answer::Records { records: vec![Record::Address("10.0.0.1".parse().unwrap())], lifetime: 5 };
        assert_eq!(read(&bytes, Kind::A), Ok(expected));
    }

    #[test]
    fn a_loop_of_aliases_and_strangers_records_lead_nowhere() {
        let nothing = Ok(Answer::Records { records: Vec::new(), lifetime: 0 });
        assert_eq!(read(&reply("app.test", Kind::A, 0x8180, 1, &record(5, 5, &[0xc0, 12])), Kind::A), nothing);
        let mut stranger = b"\x05other\x04test\0".to_vec();
        stranger.extend(&record(1, 5, &[10, 6, 6, 6])[2..]);
        assert_eq!(read(&reply("app.test", Kind::A, 0x8180, 1, &stranger), Kind::A), nothing);
    }

    #[test]
    fn services_name_priority_weight_port_and_host() {
        let records = record(33, 9, b"\0\x0a\0\x3c\x1f\x90\x03Web\x04test\0");
        let host = "web.test".into();
        let expected = Answer::Records {
            records: vec![Record::Service { priority: 10, weight: 60, port: 8080, host }],
            lifetime: 9,
        };
        assert_eq!(read(&reply("app.test", Kind::Srv, 0x8180, 1, &records), Kind::Srv), Ok(expected));
    }

    #[test]
    fn codes_and_flags_are_told_apart() {
        let with = |flags| read(&reply("app.test", Kind::A, flags, 0, &[]), Kind::A);
        assert_eq!(with(0x8183), Ok(Answer::NoName));
        assert_eq!(with(0x8182), Ok(Answer::Failed(2)));
        assert_eq!(with(0x8380), Ok(Answer::Truncated));
        assert_eq!(with(0x0180), Err(Unreadable::Stray), "a question");
        let bytes = reply("app.test", Kind::A, 0x8180, 0, &[]);
        assert_eq!(answer(&bytes, 8, "app.test", Kind::A), Err(Unreadable::Stray));
        assert_eq!(answer(&bytes, 7, "app.test", Kind::Aaaa), Err(Unreadable::Stray));
        assert_eq!(answer(&bytes, 7, "bpp.test", Kind::A), Err(Unreadable::Stray));
        assert_eq!(answer(&bytes, 7, "APP.test".to_lowercase().as_str(), Kind::A).map(drop), Ok(()));
    }

    #[test]
    fn no_bytes_are_too_strange() {
        let whole = reply("app.test", Kind::A, 0x8180, 1, &record(1, 300, &[10, 0, 0, 1]));
        for end in 0..whole.len() {
            assert!(read(&whole[..end], Kind::A).is_err(), "cut at {end}");
        }
        // A name that points forward, at itself, or has a length of a kind that does not exist.
        for name in [[0xc0, 40], [0xc0, 26], [0x80, 12]] {
            let mut bytes = whole.clone();
            let at = whole.len() - 16;
            bytes[at..at + 2].copy_from_slice(&name);
            assert_eq!(read(&bytes, Kind::A), Err(Unreadable::Malformed));
        }
        let short = reply("app.test", Kind::A, 0x8180, 1, &record(1, 300, &[10, 0, 0]));
        assert_eq!(read(&short, Kind::A), Err(Unreadable::Malformed));
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(12..bytes.len());
                bytes[at] = random.u8(..);
            }
            // Only that it ends and does not panic.
            let _ = read(&bytes, Kind::A);
        }
    }
}

//! Messages of DNS: a question, and the records that answer it.
//!
//! An answer comes from a socket and is trusted with nothing: every length is checked,
//! names are followed backwards only and for a bounded number of steps, and records that
//! don't belong to the question are left out. Source: RFC 1035 §4, RFC 2782, RFC 6891.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an answer over UDP that we take, as told to the server; what is larger comes
/// over TCP. Source: DNS Flag Day 2020.
pub const UDP_MOST: u16 = 1232;

/// Records of one answer that are read.
const RECORDS_MOST: u16 = 1024;

/// Aliases that are followed from the name that was asked for.
const ALIASES_MOST: usize = 16;

/// Bytes of a name on the wire, its lengths and its end included (RFC 1035 §3.1).
const NAME_MOST: usize = 255;

/// Jumps within one name.
const JUMPS_MOST: usize = 16;

const CLASS_IN: u16 = 1;
const TYPE_CNAME: u16 = 5;

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
    const fn code(self) -> u16 {
        match self {
            Self::A => 1,
            Self::Aaaa => 28,
            Self::Srv => 33,
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

/// The message that asks for records of `name`, which has labels of 1 to 63 bytes and
/// 253 bytes in all. The answer can be as large as [`UDP_MOST`].
#[must_use]
pub fn question(id: u16, name: &str, kind: Kind) -> Vec<u8> {
    let mut message = Vec::with_capacity(name.len() + 40);
    message.extend(id.to_be_bytes());
    // A standard query, recursion desired; one question, one additional record.
    message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 1]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or(0));
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend(kind.code().to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
    // EDNS(0): the root, type OPT, our size, no flags, no options.
    message.extend([0, 0, 41]);
    message.extend(UDP_MOST.to_be_bytes());
    message.extend([0; 6]);
    message
}

/// Reads the answer to a question.
///
/// # Errors
/// [`Unreadable`]: keep waiting for the real one, or give the server up.
pub fn answer(bytes: &[u8], id: u16, name: &str, kind: Kind) -> Result<Answer, Unreadable> {
    let mut reader = Reader { bytes, at: 0 };
    let read = reader.u16().ok_or(Unreadable::Stray)?;
    let flags = reader.u16().ok_or(Unreadable::Stray)?;
    let questions = reader.u16().ok_or(Unreadable::Stray)?;
    if read != id || flags & 0x8000 == 0 || flags & 0x7800 != 0 {
        return Err(Unreadable::Stray);
    }
    let count = reader.u16().ok_or(Unreadable::Malformed)?;
    reader.skip(4).ok_or(Unreadable::Malformed)?;
    let code = u8::try_from(flags & 0x000f).unwrap_or(0);
    if questions == 0 && code != 0 {
        // A server that could not read the question need not repeat it.
        return Ok(Answer::Failed(code));
    }
    let asked = reader.name().ok_or(Unreadable::Malformed)?;
    let (asked_kind, class) = (reader.u16(), reader.u16());
    if questions != 1 || asked != name || asked_kind != Some(kind.code()) || class != Some(CLASS_IN) {
        return Err(Unreadable::Stray);
    }
    match code {
        0 if flags & 0x0200 != 0 => return Ok(Answer::Truncated),
        0 => {}
        3 => return Ok(Answer::NoName),
        code => return Ok(Answer::Failed(code)),
    }
    let resources = (0..count.min(RECORDS_MOST)).map(|_| reader.resource()).collect::<Option<Vec<_>>>();
    let resources = resources.ok_or(Unreadable::Malformed)?;
    Ok(select(&resources, asked, kind))
}

/// The records of the kind that belong to the name, or to what it is an alias of.
fn select(resources: &[Resource], asked: String, kind: Kind) -> Answer {
    let mut owner = asked;
    let mut lifetime = u32::MAX;
    for _ in 0..=ALIASES_MOST {
        let of_owner = || resources.iter().filter(|resource| resource.owner == owner);
        let (mut records, mut held) = (Vec::new(), lifetime);
        for resource in of_owner() {
            match &resource.data {
                Data::Record(record, of) if *of == kind => {
                    records.push(record.clone());
                    held = held.min(resource.lifetime);
                }
                _ => {}
            }
        }
        let alias = of_owner().find_map(|resource| match &resource.data {
            Data::Alias(to) => Some((to.clone(), resource.lifetime)),
            _ => None,
        });
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

/// A resource record, as far as it matters here.
struct Resource {
    owner: String,
    lifetime: u32,
    data: Data,
}

enum Data {
    Record(Record, Kind),
    Alias(String),
    Other,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn skip(&mut self, n: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(n)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.skip(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.skip(4)?.try_into().ok()?))
    }

    /// A name in lower case, without a final dot.
    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        // Where reading goes on behind the name, once a jump has been made.
        let mut behind = None;
        let mut jumps = 0;
        loop {
            let from = self.at;
            let length = usize::from(*self.skip(1)?.first()?);
            match length >> 6 {
                0 if length == 0 => {
                    self.at = behind.unwrap_or(self.at);
                    return Some(name);
                }
                0 => {
                    let label = self.skip(length)?;
                    // What no host name has can't be told from dots and the like.
                    if name.len() + length + 2 > NAME_MOST || !label.iter().all(|byte| is_plain(*byte)) {
                        return None;
                    }
                    if !name.is_empty() {
                        name.push('.');
                    }
                    name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
                }
                3 => {
                    let low = usize::from(*self.skip(1)?.first()?);
                    let to = (length & 0x3f) << 8 | low;
                    jumps += 1;
                    if to >= from || jumps > JUMPS_MOST {
                        return None;
                    }
                    behind.get_or_insert(self.at);
                    self.at = to;
                }
                _ => return None,
            }
        }
    }

    fn resource(&mut self) -> Option<Resource> {
        let owner = self.name()?;
        let (code, class) = (self.u16()?, self.u16()?);
        let lifetime = match self.u32()? {
            // RFC 2181 §8: the topmost bit set means nothing lives.
            seconds if seconds > 0x7fff_ffff => 0,
            seconds => seconds,
        };
        let length = usize::from(self.u16()?);
        let begins = self.at;
        self.skip(length)?;
        let ends = self.at;
        let data = if class == CLASS_IN { self.data(code, begins, length)? } else { Data::Other };
        self.at = ends;
        Some(Resource { owner, lifetime, data })
    }

    fn data(&mut self, code: u16, begins: usize, length: usize) -> Option<Data> {
        self.at = begins;
        let data = match code {
            1 => {
                let octets: [u8; 4] = self.skip(length)?.try_into().ok()?;
                Data::Record(Record::Address(Ipv4Addr::from(octets).into()), Kind::A)
            }
            28 => {
                let octets: [u8; 16] = self.skip(length)?.try_into().ok()?;
                Data::Record(Record::Address(Ipv6Addr::from(octets).to_canonical()), Kind::Aaaa)
            }
            33 => {
                let (priority, weight, port) = (self.u16()?, self.u16()?, self.u16()?);
                Data::Record(Record::Service { priority, weight, port, host: self.name()? }, Kind::Srv)
            }
            TYPE_CNAME => Data::Alias(self.name()?),
            _ => return Some(Data::Other),
        };
        // A name may be written elsewhere, but it ends where the data does.
        (self.at == begins + length).then_some(data)
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer to a question of ours, of `count` records.
    fn reply(name: &str, kind: Kind, flags: u16, count: u16, records: &[u8]) -> Vec<u8> {
        let mut bytes = question(7, name, kind);
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
        let bytes = question(0x1234, "app.test", Kind::A);
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

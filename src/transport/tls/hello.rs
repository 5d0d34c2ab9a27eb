//! A client's hello, before anything is computed for it: whether it is whole.
//!
//! Who sends half of it has done nothing yet, and must not have us do more. So nothing is
//! taken up for a client, neither a slot nor the library's, until its hello is there. Nothing
//! is copied for that: the headers of records, and that of the message in them, are looked at
//! once each. What is no hello by these is refused here, since the library would wait for
//! the rest of it; whatever else is wrong is for the library to find.

use super::HANDSHAKE;
use super::fault::Fault;

/// Bytes of a hello, at most: BoringSSL takes none that is longer either. Those of browsers with
/// hybrid keys and a ticket have 2 to 3 KiB; a ticket that holds a client's certificates may
/// double that.
const MESSAGE_MOST: usize = 16 * 1024;

/// Bytes of the records that it comes in, at most: as many as would fill one, and the headers
/// of two hundred.
pub(super) const MOST: usize = MESSAGE_MOST + 1024;

/// Bytes of a record's header (RFC 8446 §5.1).
const RECORD: usize = 5;

/// Plain bytes in a record, at most.
const CONTENT_MOST: usize = 16 * 1024;

/// Bytes of a message's header (RFC 8446 §4): its type, and its length in three.
const HEADER: usize = 4;

/// The type of a hello.
const CLIENT_HELLO: u8 = 1;

/// What was seen of a hello.
#[derive(Debug, Default)]
pub(super) struct Outline {
    /// Where the first record begins that is not whole.
    record: usize,
    /// Bytes of the message in those before it.
    message: usize,
    header: [u8; HEADER],
}

impl Outline {
    /// Whether the hello is whole that `came` begins with; what was there at the last call
    /// must still be there. The library needs no more bytes then to judge it.
    ///
    /// # Errors
    /// It is too long, or no hello.
    pub(super) fn is_whole(&mut self, came: &[u8]) -> Result<bool, Fault> {
        while let Some(&[kind, _, _, high, low]) = came.get(self.record..).and_then(<[u8]>::first_chunk::<RECORD>) {
            let length = usize::from(u16::from_be_bytes([high, low]));
            // A handshake is not mixed with other records, and none is empty (RFC 8446 §5.1).
            if kind != HANDSHAKE || !(1..=CONTENT_MOST).contains(&length) {
                return Err(Fault::Protocol);
            }
            let begin = self.record + RECORD;
            let Some(content) = came.get(begin..begin + length) else { break };
            self.header.iter_mut().skip(self.message).zip(content).for_each(|(to, from)| *to = *from);
            self.record = begin + length;
            self.message += length;
            let [kind, length @ ..] = self.header;
            if kind != CLIENT_HELLO {
                return Err(Fault::Protocol);
            }
            if self.message < HEADER {
                continue;
            }
            let [high, middle, low] = length.map(usize::from);
            match HEADER + ((high << 16) | (middle << 8) | low) {
                whole if whole > MESSAGE_MOST => return Err(Fault::Protocol),
                whole if whole <= self.message => return Ok(true),
                _ => {}
            }
        }
        if came.len() < MOST { Ok(false) } else { Err(Fault::Protocol) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::ClientConnection;
    use rustls::server::Acceptor;

    use super::*;

    /// A message of this type with so many bytes behind its header.
    fn message(kind: u8, length: usize) -> Vec<u8> {
        let [.., high, middle, low] = length.to_be_bytes();
        [&[kind, high, middle, low][..], &vec![7; length]].concat()
    }

    /// It in records of so many bytes.
    fn records(message: &[u8], each: usize) -> Vec<u8> {
        let record = |content: &[u8]| {
            let [.., high, low] = content.len().to_be_bytes();
            [&[HANDSHAKE, 3, 1, high, low], content].concat()
        };
        message.chunks(each).flat_map(record).collect()
    }

    /// How many bytes are there when it is said to be whole, if they come by so many.
    fn whole_at(bytes: &[u8], pace: usize) -> Result<usize, Fault> {
        let mut outline = Outline::default();
        for end in (0..bytes.len()).step_by(pace).skip(1).chain([bytes.len()]) {
            if outline.is_whole(&bytes[..end])? {
                return Ok(end);
            }
        }
        panic!("{} bytes are not whole: {outline:?}", bytes.len());
    }

    #[test]
    fn a_hello_is_whole_with_its_last_byte_however_it_is_cut() {
        for length in [0, 1, 300, 5_000] {
            for each in [1, 2, 3, 4, 5, 7, 100, 16_384] {
                let bytes = records(&message(CLIENT_HELLO, length), each);
                if bytes.len() < MOST {
                    assert_eq!(whole_at(&bytes, 1), Ok(bytes.len()), "{length} in {each}");
                    assert_eq!(whole_at(&bytes, 4_096), Ok(bytes.len()), "{length} in {each}");
                }
            }
        }
        let more = [&records(&message(CLIENT_HELLO, 300), 100)[..], b"more"].concat();
        assert_eq!(whole_at(&more, 1), Ok(more.len() - 4));
    }

    #[test]
    fn what_is_no_hello_is_not_waited_for() {
        for strange in [
            records(&message(2, 5_000), 100),
            vec![HANDSHAKE, 3, 1, 0, 0],
            vec![HANDSHAKE, 3, 1, 0xff, 0xff],
            [&records(&message(CLIENT_HELLO, 300), 100)[..210], &[21, 3, 1, 0, 2]].concat(),
        ] {
            assert_eq!(whole_at(&strange, 1), Err(Fault::Protocol));
        }
    }

    /// Else a slot would be held by a hello that is not whole.
    #[test]
    fn of_what_is_whole_the_library_needs_no_more() {
        let config = Arc::new(crate::transport::tls::tests::Authority::new().client());
        let mut client = ClientConnection::new(config, "door.test".try_into().unwrap()).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let in_pieces = records(&hello[RECORD..], 50);
        let (mut whole, mut refused) = (0, 0);
        for bytes in [hello, in_pieces] {
            for at in (0..80).chain((80..bytes.len()).step_by(17)) {
                for value in [0, 1, 3, 21, 0x7f, 0xff] {
                    let mut bytes = bytes.clone();
                    bytes[at] = value;
                    let mut outline = Outline::default();
                    let looked = (1..=bytes.len()).map(|end| (end, outline.is_whole(&bytes[..end])));
                    match looked.into_iter().find(|(_, looked)| *looked != Ok(false)) {
                        Some((end, Ok(_))) => {
                            let mut acceptor = Acceptor::default();
                            let mut rest = &bytes[..end];
                            while !rest.is_empty() {
                                acceptor.read_tls(&mut rest).unwrap();
                                if !matches!(acceptor.accept(), Ok(None)) {
                                    whole += 1;
                                    break;
                                }
                                assert!(!rest.is_empty(), "{value} at {at}: more is waited for");
                            }
                        }
                        Some(_) => refused += 1,
                        None => {}
                    }
                }
            }
        }
        assert!(whole > 500 && refused > 20, "{whole} {refused}");
    }

    #[test]
    fn no_more_is_held_than_a_hello_may_have() {
        let fits = message(CLIENT_HELLO, MESSAGE_MOST - HEADER);
        assert!(whole_at(&records(&fits, 16_384), 1).is_ok());
        let exceeds = records(&message(CLIENT_HELLO, MESSAGE_MOST - HEADER + 1), 100);
        assert_eq!(whole_at(&exceeds, 1), Err(Fault::Protocol));
        // Its length is all that has to be known.
        assert_eq!(whole_at(&exceeds[..105], 1), Err(Fault::Protocol));
        let mut outline = Outline::default();
        let headers = records(&fits, 2);
        assert_eq!(outline.is_whole(&headers[..MOST - 1]), Ok(false));
        assert_eq!(outline.is_whole(&headers[..MOST]), Err(Fault::Protocol));
    }
}

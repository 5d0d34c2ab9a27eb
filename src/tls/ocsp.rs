//! OCSP responses that lie beside certificates, to be sent along with them.
//!
//! Another program fetches them. A response is used while it is fresh and says that the
//! certificate is good; any other would only keep clients away.
//!
//! Source: RFC 6960 §4.2.1.

use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

/// Tags of ASN.1's basic encoding.
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const ENUMERATED: u8 = 0x0a;
const SEQUENCE: u8 = 0x30;
const FIRST: u8 = 0xa0;
const GOOD: u8 = 0x80;

/// Whether this response speaks well of the certificate with this serial number at `now`, in
/// seconds since 1970. If so, until when; if not, why not.
pub(super) fn good_until(response: &[u8], serial: &[u8], now: i64) -> Result<i64, &'static str> {
    let (of_serial, status, from, until) = single(response).ok_or("is no OCSP response for one certificate")?;
    if of_serial != serial {
        Err("is the OCSP response for another certificate")
    } else if status != GOOD {
        Err("does not say that the certificate is good")
    } else if now < from || now > until {
        Err("is out of date")
    } else {
        Ok(until)
    }
}

/// Serial number, status, and the time it is good for, of the first single response.
fn single(response: &[u8]) -> Option<(&[u8], u8, i64, i64)> {
    let mut outer = Reader(Reader(response).take(SEQUENCE)?);
    if outer.take(ENUMERATED)? != [0] {
        return None; // `successful`
    }
    let mut bytes = Reader(Reader(outer.take(FIRST)?).take(SEQUENCE)?);
    bytes.any()?; // the response's type
    let mut basic = Reader(Reader(bytes.take(OCTETS)?).take(SEQUENCE)?);
    let mut data = Reader(basic.take(SEQUENCE)?);
    if data.0.first() == Some(&FIRST) {
        data.any()?; // the version
    }
    data.any()?; // who responds
    data.any()?; // when it was made
    let mut responses = Reader(data.take(SEQUENCE)?);
    let mut one = Reader(responses.take(SEQUENCE)?);
    let mut id = Reader(one.take(SEQUENCE)?);
    id.any()?; // the hash
    id.any()?; // of the issuer's name
    id.any()?; // and key
    let serial = id.take(INTEGER)?;
    let (status, _) = one.any()?;
    let (from, rest) = time(one.0)?;
    // Without an end there is always something newer.
    let (until, _) = time(Reader(rest).take(FIRST)?)?;
    Some((serial, status, from, until))
}

fn time(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (rest, time) = ASN1Time::from_der(bytes).ok()?;
    Some((time.timestamp(), rest))
}

/// Reads values one after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next value's tag and content.
    fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, rest) = self.0.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            short @ 0..=0x7f => (usize::from(*short), rest),
            0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
            0x82 => (usize::from(u16::from_be_bytes(rest.get(..2)?.try_into().ok()?)), rest.get(2..)?),
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, content))
    }

    /// The next value's content, if this is its tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.any().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn value(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len();
        let mut bytes = vec![tag];
        match u8::try_from(length) {
            Ok(short @ 0..0x80) => bytes.push(short),
            _ => bytes.extend([0x82, u8::try_from(length >> 8).unwrap(), (length & 0xff) as u8]),
        }
        [bytes, content.to_vec()].concat()
    }

    /// A response as a responder makes it, for a certificate with this serial number.
    pub(in crate::tls) fn response(serial: &[u8], status: u8, from: &str, until: &str) -> Vec<u8> {
        let time = |text: &str| value(0x18, text.as_bytes());
        let hash = || [value(SEQUENCE, &[]), value(OCTETS, &[1; 20]), value(OCTETS, &[2; 20])].concat();
        let id = value(SEQUENCE, &[hash(), value(INTEGER, serial)].concat());
        let one = [id, value(status, &[]), time(from), value(FIRST, &time(until))].concat();
        let responses = value(SEQUENCE, &value(SEQUENCE, &one));
        let data = [value(0xa2, &value(OCTETS, &[3; 20])), time(from), responses].concat();
        let signature = [value(SEQUENCE, &[]), value(0x03, &[0; 257])].concat();
        let basic = value(SEQUENCE, &[value(SEQUENCE, &data), signature].concat());
        let bytes = value(SEQUENCE, &[value(0x06, &[1, 2, 3]), value(OCTETS, &basic)].concat());
        value(SEQUENCE, &[value(ENUMERATED, &[0]), value(FIRST, &bytes)].concat())
    }

    /// The key that a PKCS#8 structure holds.
    pub(in crate::tls) fn wrapped_key(pkcs8: &[u8]) -> Vec<u8> {
        let mut outer = Reader(Reader(pkcs8).take(SEQUENCE).unwrap());
        outer.take(INTEGER).unwrap();
        outer.take(SEQUENCE).unwrap();
        outer.take(OCTETS).unwrap().to_vec()
    }

    #[test]
    fn only_what_is_fresh_and_good_is_sent_along() {
        let now = 1_798_761_600; // 2027-01-01
        let fresh = ("20261230000000Z", "20270106000000Z");
        assert_eq!(good_until(&response(&[7], GOOD, fresh.0, fresh.1), &[7], now), Ok(now + 5 * 86_400));
        for (response, says) in [
            (response(&[8], GOOD, fresh.0, fresh.1), "is the OCSP response for another certificate"),
            (response(&[7], 0xa1, fresh.0, fresh.1), "does not say that the certificate is good"),
            (response(&[7], 0x82, fresh.0, fresh.1), "does not say that the certificate is good"),
            (response(&[7], GOOD, fresh.0, "20261231000000Z"), "is out of date"),
            (response(&[7], GOOD, "20270102000000Z", fresh.1), "is out of date"),
            (value(SEQUENCE, &value(ENUMERATED, &[6])), "is no OCSP response for one certificate"),
            (Vec::new(), "is no OCSP response for one certificate"),
        ] {
            assert_eq!(good_until(&response, &[7], now), Err(says));
        }
        let whole = response(&[7], GOOD, fresh.0, fresh.1);
        for length in 0..whole.len() {
            assert!(good_until(&whole[..length], &[7], now).is_err(), "{length}");
        }
    }
}

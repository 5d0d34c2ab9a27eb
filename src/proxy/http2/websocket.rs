//! WebSocket: the proof between us and a backend of HTTP/1.1 that both speak of the same thing.
//!
//! HTTP/2 has no need of it (RFC 8441 §5), so where a client asks by a CONNECT the key is ours,
//! and so is the look at what comes back. A client of HTTP/1.1 brings its own and looks itself.

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::proxy::head::{Fields, RequestHead, ResponseHead};
use crate::telemetry::Reason;

/// The proof of a WebSocket's client (RFC 6455 §11.3.1).
pub const KEY: &[u8] = b"sec-websocket-key";

/// That of its server (§11.3.3).
pub const ACCEPT: &[u8] = b"sec-websocket-accept";

/// What a key is followed by to be digested (§1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A new key: a nonce in base 64 (§4.1).
pub fn key() -> String {
    BASE64_STANDARD.encode(fastrand::u128(..).to_be_bytes())
}

/// Whether this 101 switches to what was asked for, and proves it where the key is ours.
///
/// # Errors
/// [`Reason::BackendMalformed`], [`Reason::BackendWebsocketAccept`] (§4.1, item 4 on the
/// server's response).
pub fn verify(request: &RequestHead, answer: &ResponseHead) -> Result<(), Reason> {
    if !answer.agrees_to(request) {
        return Err(Reason::BackendMalformed);
    }
    match only(&request.fields, KEY).filter(|_| request.is_connect()) {
        Some(key) if only(&answer.fields, ACCEPT) != Some(accept(key).as_bytes()) => {
            Err(Reason::BackendWebsocketAccept)
        }
        // Another protocol has no key.
        _ => Ok(()),
    }
}

/// What answers a key.
fn accept(key: &[u8]) -> String {
    let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key);
    digest.update(GUID);
    BASE64_STANDARD.encode(digest.finish())
}

/// The value of the field of this name, if there is one and no other.
fn only<'a>(fields: &'a Fields, name: &[u8]) -> Option<&'a [u8]> {
    let mut named = fields.iter().filter(|field| field.name.of(fields.bytes()).eq_ignore_ascii_case(name));
    let value = named.next()?.value.of(fields.bytes());
    named.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_answered_as_in_the_example_of_the_rfc() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(BASE64_STANDARD.decode(key()).unwrap().len(), 16);
    }
}

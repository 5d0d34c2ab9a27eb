//! gRPC: what a proxy has to know of it.
//!
//! A call of gRPC is a request of HTTP/2 like others; its messages, its streams both ways and
//! its trailers need nothing from us. But its client reads the outcome from `grpc-status`, so
//! that an answer of our own has to say there what its status says elsewhere, and what the
//! client allows for the call stands in `grpc-timeout`.
//!
//! Source: gRPC over HTTP2, and its mapping of HTTP statuses to codes
//! (`PROTOCOL-HTTP2.md` and `http-grpc-status-mapping.md` of the gRPC project).

use std::time::Duration;

use super::head::{RequestHead, Version};
use crate::telemetry::Reason;

/// The content type of an answer.
pub const CONTENT_TYPE: &str = "application/grpc";

/// Whether a request is a call of gRPC, which is so only in HTTP/2. Not of gRPC-Web, which is
/// made for what is not.
#[must_use]
pub fn is_call(head: &RequestHead) -> bool {
    head.version == Version::Http2 && field(head, b"content-type").is_some_and(is_content_type)
}

fn is_content_type(value: &[u8]) -> bool {
    let behind = value.split_at_checked(CONTENT_TYPE.len());
    behind.is_some_and(|(start, rest)| {
        start.eq_ignore_ascii_case(CONTENT_TYPE.as_bytes()) && matches!(rest, [] | [b'+' | b';' | b' ', ..])
    })
}

/// How long its client allows for a call, in all; `None` for one that says nothing, or nothing
/// that can be read.
#[must_use]
pub fn timeout(head: &RequestHead) -> Option<Duration> {
    let (digits, unit) = field(head, b"grpc-timeout")?.split_last_chunk::<1>()?;
    // At most eight digits.
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b"H" => Duration::from_secs(number * 3600),
        b"M" => Duration::from_secs(number * 60),
        b"S" => Duration::from_secs(number),
        b"m" => Duration::from_millis(number),
        b"u" => Duration::from_micros(number),
        b"n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// The code that stands for a reason: as gRPC has its clients take the status that goes
/// with it, and closer to the cause where we know that and a status does not say it. What a
/// backend may have acted upon is never UNAVAILABLE for having taken too long, since clients
/// try again what is.
#[must_use]
pub fn code(reason: Reason) -> &'static str {
    match (reason, reason.status()) {
        // Nothing was sent there, whatever the status says.
        (Reason::BackendConnectTimeout | Reason::BackendTlsTimeout, _) => UNAVAILABLE,
        (_, 400) => INTERNAL,
        (_, 401) => UNAUTHENTICATED,
        (_, 403) => PERMISSION_DENIED,
        (_, 404 | 405 | 501) => UNIMPLEMENTED,
        (_, 408 | 504) => DEADLINE_EXCEEDED,
        (_, 413 | 431) => RESOURCE_EXHAUSTED,
        (_, 429 | 502 | 503) => UNAVAILABLE,
        (_, 499) => CANCELLED,
        (_, 500) => INTERNAL,
        _ => UNKNOWN,
    }
}

const CANCELLED: &str = "1";
const UNKNOWN: &str = "2";
const DEADLINE_EXCEEDED: &str = "4";
const PERMISSION_DENIED: &str = "7";
const RESOURCE_EXHAUSTED: &str = "8";
const UNIMPLEMENTED: &str = "12";
const INTERNAL: &str = "13";
const UNAVAILABLE: &str = "14";
const UNAUTHENTICATED: &str = "16";

fn field<'a>(head: &'a RequestHead, name: &[u8]) -> Option<&'a [u8]> {
    let bytes = head.bytes();
    let mut fields = head.fields.iter();
    fields.find(|field| field.name.of(bytes).eq_ignore_ascii_case(name)).map(|field| field.value.of(bytes))
}

#[cfg(test)]
mod tests {
    use super::{code, is_call, timeout};
    use crate::proxy::forwarded::tests::head;
    use crate::proxy::head::{RequestHead, Version};
    use crate::telemetry::Reason;
    use std::time::Duration;

    fn call(fields: &str) -> RequestHead {
        RequestHead { version: Version::Http2, ..head(fields) }
    }

    #[test]
    fn a_call_is_known_by_its_content_type_in_http_2_alone() {
        for (content_type, is) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC; x=y", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grpcx", false),
            ("application/json", false),
        ] {
            let field = format!("Content-Type: {content_type}\r\n");
            assert_eq!(is_call(&call(&field)), is, "{content_type}");
            assert!(!is_call(&head(&field)));
        }
        assert!(!is_call(&call("")));
    }

    #[test]
    fn a_timeout_is_read_by_its_unit() {
        for (text, millis) in [
            ("1H", Some(3_600_000)),
            ("2M", Some(120_000)),
            ("30S", Some(30_000)),
            ("250m", Some(250)),
            ("99999999u", Some(99_999)),
            ("5000000n", Some(5)),
            ("99999999H", Some(359_999_996_400_000)),
            ("", None),
            ("S", None),
            ("1", None),
            ("123456789S", None),
            ("-1S", None),
            ("1 S", None),
            ("1s", None),
        ] {
            let read = timeout(&call(&format!("grpc-timeout: {text}\r\n")));
            assert_eq!(read.map(|time| time.as_millis()), millis, "{text}");
        }
        assert_eq!(timeout(&call("")), None);
        assert_eq!(timeout(&call("grpc-timeout: 0S\r\n")), Some(Duration::ZERO));
    }

    #[test]
    fn every_reason_has_a_code_and_what_may_be_tried_again_is_unavailable() {
        for (reason, expected) in [
            (Reason::BackendConnectRefused, "14"),
            (Reason::BackendConnectTimeout, "14"),
            (Reason::BackendsDown, "14"),
            (Reason::BackendStreamRefused, "14"),
            (Reason::QueueFull, "14"),
            (Reason::QueueTimeout, "14"),
            (Reason::BackendResponseTimeout, "4"),
            (Reason::RequestTimeout, "4"),
            (Reason::GrpcUnsupported, "12"),
            (Reason::NoRoute, "12"),
            (Reason::MethodRefused, "12"),
            (Reason::HeaderTooLarge, "8"),
            (Reason::BadRequest, "13"),
            (Reason::Internal, "13"),
            (Reason::ClientLeft, "1"),
        ] {
            assert_eq!(code(reason), expected, "{reason}");
        }
        assert!(Reason::ALL.iter().all(|reason| code(*reason) != "0"));
    }
}

//! Why a request, tunnel or connection did not end well: one name for each cause.
//!
//! The names are an interface. They stand in the journal (`REASON=`), in the
//! counters and, as a token of RFC 9209, in the `Proxy-Status` field of the
//! answer; so they are listed once, here, and are never renamed. A reason says
//! what happened and whose side it was on, since only a failure on the backend's
//! side may count against a backend's health.

use std::fmt;

/// Whose side a failure was on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The client broke the protocol, a limit, or off.
    Client,
    /// The backend refused, failed or kept silent.
    Backend,
    /// doorward itself: a limit of its configuration or a shortage of its host.
    Ours,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $status:literal, $token:literal, $side:ident;)+) => {
        /// A stable reason; see the [module](self).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// All reasons, in the order of [`Reason::index`].
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in journal and counters, in snake case.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The status that a client is answered with when no response has begun;
            /// 499 (nginx's number) where nobody is left to read one.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)+ }
            }

            /// The error type for the `Proxy-Status` field.
            ///
            /// Source: RFC 9209 §2.3.
            #[must_use]
            pub const fn proxy_status(self) -> &'static str {
                match self { $(Self::$variant => $token,)+ }
            }

            /// Whose side it was on.
            #[must_use]
            pub const fn side(self) -> Side {
                match self { $(Self::$variant => Side::$side,)+ }
            }
        }
    };
}

reasons! {
    /// The backend refused the connection.
    BackendConnectRefused = "backend_connect_refused", 502, "connection_refused", Backend;
    /// The backend did not take the connection within `CONNECT_TIMEOUT`, or `ATTEMPT_TIMEOUT`.
    BackendConnectTimeout = "backend_connect_timeout", 504, "connection_timeout", Backend;
    /// No route leads to the backend, or a firewall says so.
    BackendUnreachable = "backend_unreachable", 502, "destination_ip_unroutable", Backend;
    /// The backend's name has no address at the moment.
    BackendUnresolved = "backend_unresolved", 502, "dns_error", Backend;
    /// No authority that is trusted vouches for the backend's certificate.
    BackendTlsUntrusted = "backend_tls_untrusted", 502, "tls_certificate_error", Backend;
    /// The backend's certificate is not valid any more, or not yet.
    BackendTlsExpired = "backend_tls_expired", 502, "tls_certificate_error", Backend;
    /// The backend's certificate is for other names than the one that it was to prove.
    BackendTlsNameMismatch = "backend_tls_name_mismatch", 502, "tls_certificate_error", Backend;
    /// The backend ended TLS with an alert: it wants another certificate of ours, say.
    BackendTlsAlert = "backend_tls_alert", 502, "tls_alert_received", Backend;
    /// The backend speaks no TLS, or none that can be understood, or broke off within the handshake.
    BackendTlsFailed = "backend_tls_failed", 502, "tls_protocol_error", Backend;
    /// The backend took the connection, and the handshake was not over within `CONNECT_TIMEOUT`, or
    /// `ATTEMPT_TIMEOUT`.
    BackendTlsTimeout = "backend_tls_timeout", 504, "connection_timeout", Backend;
    /// Every backend of the route is known to be down.
    BackendsDown = "backends_down", 503, "destination_unavailable", Backend;
    /// The backend reset the connection, or the stream, before its response was whole.
    BackendReset = "backend_reset", 502, "connection_terminated", Backend;
    /// The backend closed the connection before its response began.
    BackendClosed = "backend_closed", 502, "connection_terminated", Backend;
    /// The backend refused the request's stream, and says that it has done nothing about it
    /// (HTTP/2, REFUSED_STREAM).
    BackendStreamRefused = "backend_stream_refused", 503, "destination_unavailable", Backend;
    /// The backend's response breaks RFC 9112 or RFC 9113.
    BackendMalformed = "backend_malformed", 502, "http_protocol_error", Backend;
    /// The backend's response head exceeds 64 KiB or the number of fields.
    BackendHeaderTooLarge = "backend_header_too_large", 502, "http_response_header_section_size", Backend;
    /// The backend sent no response head within `RESPONSE_TIMEOUT`.
    BackendResponseTimeout = "backend_response_timeout", 504, "connection_read_timeout", Backend;
    /// The backend sent no response head within `ATTEMPT_TIMEOUT`.
    BackendAttemptTimeout = "backend_attempt_timeout", 504, "http_response_timeout", Backend;
    /// The backend kept silent for `STREAM_TIMEOUT` after its response head.
    BackendStreamTimeout = "backend_stream_timeout", 504, "connection_read_timeout", Backend;
    /// The backend's body ended before its announced end.
    BackendTruncated = "backend_truncated", 502, "http_response_incomplete", Backend;
    /// The backend answered as if nothing else than HTTP had been asked for, to a client of
    /// HTTP/2 that asked for a WebSocket.
    BackendNotUpgraded = "backend_not_upgraded", 502, "http_upgrade_failed", Backend;
    /// The backend agreed to a WebSocket and did not prove that it had understood
    /// (`Sec-WebSocket-Accept`, RFC 6455 §4.1), to a client of HTTP/2.
    BackendWebsocketAccept = "backend_websocket_accept", 502, "http_upgrade_failed", Backend;
    /// All permits were taken and the queue was full.
    QueueFull = "queue_full", 503, "connection_limit_reached", Ours;
    /// No permit came free within `QUEUE_TIMEOUT`.
    QueueTimeout = "queue_timeout", 503, "connection_limit_reached", Ours;
    /// The backend had all the connections that it may have, and none came free within
    /// `QUEUE_TIMEOUT`, or too many requests waited for one.
    BackendConnectionLimit = "backend_connection_limit", 503, "connection_limit_reached", Ours;
    /// All `MAX_TUNNELS` permits were taken.
    TunnelLimit = "tunnel_limit", 503, "connection_limit_reached", Ours;
    /// The client left before its answer was whole.
    ClientLeft = "client_left", 499, "http_request_error", Client;
    /// The client did not finish its request head within `HEADER_TIMEOUT`.
    ClientHeaderTimeout = "client_header_timeout", 408, "http_request_error", Client;
    /// The client sent nothing of its body for `BODY_TIMEOUT`, or less than `MIN_BODY_RATE`.
    ClientBodyTimeout = "client_body_timeout", 408, "http_request_error", Client;
    /// The client took nothing of its answer for `BODY_TIMEOUT`, or less than `MIN_BODY_RATE`.
    ClientSlowReader = "client_slow_reader", 499, "http_request_error", Client;
    /// The client did not finish its TLS handshake within `TLS_HANDSHAKE_TIMEOUT`, or not within
    /// a second while others waited for their turn.
    TlsHandshakeTimeout = "tls_handshake_timeout", 408, "http_request_error", Client;
    /// All `MAX_TLS_HANDSHAKES` were under way and too many clients waited, or waited too long.
    TlsHandshakeLimit = "tls_handshake_limit", 503, "connection_limit_reached", Ours;
    /// The client left before its TLS handshake was over.
    TlsHandshakeLeft = "tls_handshake_left", 499, "http_request_error", Client;
    /// The client asked by TLS for a name that there is no certificate for.
    TlsUnknownName = "tls_unknown_name", 400, "http_request_error", Client;
    /// The client and doorward have no version, cipher or protocol of TLS in common.
    TlsIncompatible = "tls_incompatible", 400, "http_request_error", Client;
    /// The client's certificate is missing or is not accepted.
    TlsClientCertificate = "tls_client_certificate", 400, "http_request_error", Client;
    /// The client gave its TLS handshake up with an alert: it does not trust the certificate, say.
    TlsAlert = "tls_alert", 400, "http_request_error", Client;
    /// The client's TLS breaks RFC 8446 or RFC 5246, or is none.
    TlsProtocolError = "tls_protocol_error", 400, "http_request_error", Client;
    /// The client speaks HTTP in clear where TLS is served.
    TlsPlainHttp = "tls_plain_http", 400, "http_request_error", Client;
    /// The client speaks TLS where HTTP is served in clear.
    TlsOnPlainPort = "tls_on_plain_port", 400, "http_request_error", Client;
    /// The request breaks RFC 9112.
    BadRequest = "bad_request", 400, "http_request_error", Client;
    /// The request line alone exceeds the limit.
    TargetTooLong = "target_too_long", 414, "http_request_error", Client;
    /// The request head exceeds `MAX_HEADER_SIZE` or the number of fields.
    HeaderTooLarge = "header_too_large", 431, "http_request_error", Client;
    /// The request head, with what doorward adds to it, exceeds what the backend says that it takes
    /// (HTTP/2, `SETTINGS_MAX_HEADER_LIST_SIZE`).
    BackendHeaderLimit = "backend_header_limit", 431, "http_request_error", Client;
    /// The request expects something other than `100-continue`.
    ExpectationFailed = "expectation_failed", 417, "http_request_error", Client;
    /// The request is of an HTTP version that is not served here.
    VersionUnsupported = "version_unsupported", 505, "http_request_error", Client;
    /// The request's method is longer than any.
    MethodTooLong = "method_too_long", 501, "http_request_error", Client;
    /// CONNECT or TRACE, which no resource allows here.
    MethodRefused = "method_refused", 405, "http_request_denied", Client;
    /// The route wants a certificate of the client, and there is none that is valid.
    ClientCertificateRequired = "client_certificate_required", 403, "http_request_denied", Client;
    /// The request's host has another policy on client certificates than the name that the
    /// connection was made for.
    Misdirected = "misdirected", 421, "http_request_error", Client;
    /// The request's transfer coding is not `chunked`.
    TransferEncodingUnsupported = "transfer_encoding_unsupported", 501, "http_request_error", Client;
    /// The client broke RFC 9113 in a way that concerns its whole connection, which was ended.
    Http2Malformed = "http2_malformed", 400, "http_request_error", Client;
    /// The client had `HTTP2_MAX_STREAMS` requests under way on its connection; it may try again.
    Http2StreamLimit = "http2_stream_limit", 503, "connection_limit_reached", Ours;
    /// The client's connection was ended for frames that cost much and bring nothing: resets,
    /// pings, settings, headers without end.
    Http2Flood = "http2_flood", 400, "http_request_denied", Client;
    /// The request asks for another protocol in place of HTTP/1.1, and its backend speaks HTTP/2.
    UpgradeUnsupported = "upgrade_unsupported", 501, "http_request_error", Client;
    /// The request is of gRPC, which needs HTTP/2, and its backend speaks HTTP/1.1.
    GrpcUnsupported = "grpc_unsupported", 501, "http_request_error", Client;
    /// No route with a backend takes the request.
    NoRoute = "no_route", 404, "destination_not_found", Client;
    /// The process has no file descriptor left (EMFILE, ENFILE).
    OutOfDescriptors = "out_of_descriptors", 503, "proxy_internal_error", Ours;
    /// The host has no local port left towards the backend (EADDRNOTAVAIL).
    OutOfPorts = "out_of_ports", 503, "proxy_internal_error", Ours;
    /// The exchange took longer than `REQUEST_TIMEOUT`.
    RequestTimeout = "request_timeout", 504, "http_response_timeout", Ours;
    /// `DRAIN_TIMEOUT` or `UPGRADE_DRAIN_TIMEOUT` ended, or a second signal came, before the exchange did.
    DrainCut = "drain_cut", 503, "proxy_internal_response", Ours;
    /// A fault in doorward.
    Internal = "internal", 500, "proxy_internal_error", Ours;
}

impl Reason {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Whether it says why a TLS handshake with a client failed.
    #[must_use]
    pub const fn is_of_handshakes(self) -> bool {
        matches!(
            self,
            Self::TlsHandshakeTimeout
                | Self::TlsHandshakeLimit
                | Self::TlsHandshakeLeft
                | Self::TlsUnknownName
                | Self::TlsIncompatible
                | Self::TlsClientCertificate
                | Self::TlsAlert
                | Self::TlsProtocolError
                | Self::TlsPlainHttp
        )
    }

    /// Its place in [`Reason::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// The error types that RFC 9209 §2.3 registers, with the status that it recommends.
    const REGISTERED: &[(&str, Option<u16>)] = &[
        ("dns_timeout", Some(504)),
        ("dns_error", Some(502)),
        ("destination_not_found", Some(500)),
        ("destination_unavailable", Some(503)),
        ("destination_ip_prohibited", Some(502)),
        ("destination_ip_unroutable", Some(502)),
        ("connection_refused", Some(502)),
        ("connection_terminated", Some(502)),
        ("connection_timeout", Some(504)),
        ("connection_read_timeout", Some(504)),
        ("connection_write_timeout", Some(504)),
        ("connection_limit_reached", Some(503)),
        ("tls_protocol_error", Some(502)),
        ("tls_certificate_error", Some(502)),
        ("tls_alert_received", Some(502)),
        ("http_request_error", None),
        ("http_request_denied", Some(403)),
        ("http_response_incomplete", Some(502)),
        ("http_response_header_section_size", Some(502)),
        ("http_protocol_error", Some(502)),
        ("http_response_timeout", Some(504)),
        ("http_upgrade_failed", Some(502)),
        ("proxy_internal_response", None),
        ("proxy_internal_error", Some(500)),
    ];

    #[test]
    fn every_name_is_its_variant_in_snake_case_and_stands_once() {
        let mut seen = HashSet::new();
        for (place, reason) in Reason::ALL.iter().enumerate() {
            let mut snake = String::new();
            for character in format!("{reason:?}").chars() {
                if character.is_uppercase() && !snake.is_empty() {
                    snake.push('_');
                }
                snake.extend(character.to_lowercase());
            }
            assert_eq!(reason.as_str(), snake);
            assert!(seen.insert(reason.as_str()));
            assert_eq!(reason.index(), place);
        }
    }

    #[test]
    fn every_error_type_is_registered_and_backends_get_its_recommended_status() {
        for reason in Reason::ALL {
            let (_, status) = REGISTERED
                .iter()
                .find(|(token, _)| *token == reason.proxy_status())
                .unwrap_or_else(|| panic!("{reason}: {} is not registered", reason.proxy_status()));
            if reason.side() == Side::Backend {
                assert_eq!(Some(reason.status()), *status, "{reason}");
            }
        }
    }

    #[test]
    fn the_status_fits_the_side() {
        for reason in Reason::ALL {
            let status = reason.status();
            match reason.side() {
                // 501 and 505 blame what the client asked for.
                Side::Client => assert!((400..500).contains(&status) || matches!(status, 501 | 505), "{reason}"),
                Side::Backend => assert!(matches!(status, 502..=504), "{reason}"),
                Side::Ours => assert!(matches!(status, 500 | 503 | 504), "{reason}"),
            }
            let timeout = reason.as_str().ends_with("_timeout");
            if timeout && reason.side() != Side::Client && *reason != Reason::QueueTimeout {
                assert_eq!(status, 504, "{reason}");
            }
        }
    }
}

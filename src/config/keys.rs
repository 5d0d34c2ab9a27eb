//! The key table: every key that doorward knows, once.
//!
//! A row holds the key's name, its field, its type, its form, its default, its
//! unit and one sentence of help, which is also the field's doc comment. From the
//! rows come the settings' structs, the parser, `doorward explain`, `config.env`,
//! doorward.env(5) and the README's table; `key` says how.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use rustls::pki_types::ServerName as TlsName;

use super::acme::{AcmeChallenge, CertificateName, DirectoryUrl, Email, Identifier};
use super::addresses::{Backend, BackendAddress, Listen, ListenAddress, NameServer};
use super::backend_tls::{Authorities, FileOrOff, ServerName};
use super::balance::{Algorithm, Balance, CookieName};
use super::files::{FileForm, FileSource};
use super::headers::{Header, HeaderName, Headers, Of, same_name};
use super::health::{Check, HealthCheck, HostField, Statuses};
use super::https::{Hsts, RedirectPort};
use super::key::{Key, Scope, keys};
use super::patterns::{Host, HostPattern, ListenerName, Path, PathPattern};
use super::peers::{PeerForm, PeerPattern};
use super::redirect::{Redirect, RedirectForm};
use super::rewrites::{BackendHost, BackendHostForm, Prefix};
use super::tls::{ClientFields, UnknownName};
use super::values::{
    Auto, AutoOr, Choice, DAY, Form, Int, IntOrOff, List, ListOrOff, OrNothing, PercentOrOff, Rate, RateOrOff, Size,
    Span, SpanOrOff, Wrong,
};
use super::words::{AccessLog, BackendProtocol, EjectOn, Forwarding, LogFormat, LogLevel, Mode, RetryOn};

const fn span(min: u64, max: Duration) -> Span {
    Span { min: Duration::from_millis(min), max }
}

const fn listeners(may_be_empty: bool) -> List<Listen> {
    List { of: Listen, noun: "addresses", may_be_empty, same: ListenAddress::clashes }
}

const fn backends() -> ListOrOff<Backend> {
    ListOrOff(List { of: Backend, noun: "backends", may_be_empty: false, same: |a, b| a.target == b.target })
}

const fn names(of: Of) -> List<HeaderName> {
    List { of: HeaderName(of), noun: "names", may_be_empty: true, same: |a, b| same_name(a.as_bytes(), b.as_bytes()) }
}

const fn statuses() -> List<Statuses> {
    List { of: Statuses, noun: "statuses", may_be_empty: false, same: |a, b| a == b }
}

const fn eject_on() -> List<Choice<EjectOn>> {
    List { of: Choice(EjectOn::WORDS), noun: "conditions", may_be_empty: false, same: |a, b| a == b }
}

const fn retry_on() -> List<Choice<RetryOn>> {
    List { of: Choice(RetryOn::WORDS), noun: "conditions", may_be_empty: false, same: |a, b| a == b }
}

const fn switch() -> Choice<bool> {
    Choice(&[("on", true), ("off", false)])
}

const fn matches<F: Form>(of: F, noun: &'static str) -> List<F>
where
    F::Value: PartialEq,
{
    List { of, noun, may_be_empty: true, same: |a, b| a == b }
}

const WEEK: Duration = Duration::from_secs(7 * 86_400);

keys! {
    /// The settings of the whole daemon.
    Daemon Daemon {
        "Listening" {
            /// Addresses to listen on when systemd passes no socket; when it passes some, those
            /// count and this key does not.
            "PROXY_ADDRESS", proxy_address: Vec<ListenAddress> = "127.0.0.1:8080", "", listeners(false);
            /// Addresses to listen on for TLS, in the same way. Routes know these listeners, and
            /// those that systemd passes for TLS, as `https`.
            "PROXY_TLS_ADDRESS", proxy_tls_address: Vec<ListenAddress> = "", "", listeners(true);
            /// Connections of clients open at once; above it new ones wait in the kernel's
            /// backlog. `auto` works it out from the limit of open files.
            "MAX_CONNECTIONS", max_connections: Auto<usize> = "auto", "connections",
                AutoOr(Int { min: 1, max: 10_000_000 });
            /// TLS handshakes under way at once, from a client's whole hello on. Further clients wait
            /// for their turn with nothing but that read, ten times as many at most and within
            /// `TLS_HANDSHAKE_TIMEOUT`; while some do, a client that keeps its handshake waiting
            /// has a second for it.
            "MAX_TLS_HANDSHAKES", max_tls_handshakes: usize = "1024", "handshakes",
                Int { min: 1, max: 1_000_000 };
            /// What a client gets that asks by TLS for a name which no certificate has: the first
            /// certificate, which it may take or not, or the alert `unrecognized_name`. One that
            /// names nobody gets the first certificate in any case.
            "TLS_UNKNOWN_NAME", tls_unknown_name: UnknownName = "default", "", Choice(&[
                ("default", UnknownName::Default),
                ("refuse", UnknownName::Refuse),
            ]);
        }
        "Threads" {
            /// Threads that serve. `auto` means one for each core that the process may use.
            "WORKERS", workers: Auto<usize> = "auto", "threads", AutoOr(Int { min: 1, max: 1024 });
        }
        "Names" {
            /// Name servers that are asked for the names of backends, as `IP` or `IP:PORT`, in this
            /// order. Without any, those of `/etc/resolv.conf` are, and for what they don't know the
            /// host's own resolver is (`nsswitch.conf`). `/etc/hosts` counts before either.
            "RESOLVER", resolver: Vec<SocketAddr> = "", "", matches(NameServer, "name servers");
        }
        "Admission" {
            /// Requests (with `MODE=tcp`, connections) served at once; further ones queue.
            "MAX_CONCURRENT_REQUESTS", max_concurrent_requests: usize = "1024", "requests",
                Int { min: 1, max: 1_000_000 };
            /// Requests that may wait for a permit; those beyond are answered with 503 at once.
            /// `auto` means ten times `MAX_CONCURRENT_REQUESTS`, 0 means no queue.
            "QUEUE_LIMIT", queue_limit: Auto<usize> = "auto", "requests",
                AutoOr(Int { min: 0, max: 10_000_000 });
            /// Longest wait in the queue; then the answer is 503 with `Retry-After`.
            "QUEUE_TIMEOUT", queue_timeout: Duration = "1s", "seconds", span(1, DAY);
            /// WebSockets and other tunnels open at once; a tunnel holds no permit of
            /// `MAX_CONCURRENT_REQUESTS`. `auto` works it out from the limit of open files.
            "MAX_TUNNELS", max_tunnels: Auto<usize> = "auto", "tunnels",
                AutoOr(Int { min: 0, max: 10_000_000 });
        }
        "Clients" {
            /// Time for a TLS handshake, from the connection on; then it is closed.
            "TLS_HANDSHAKE_TIMEOUT", tls_handshake_timeout: Duration = "10s", "seconds", span(1, DAY);
            /// Time for a whole request head, from its first byte; then 408 and the connection
            /// is closed.
            "HEADER_TIMEOUT", header_timeout: Duration = "10s", "seconds", span(1, DAY);
            /// How long a connection may idle between two requests before it is closed.
            "IDLE_TIMEOUT", idle_timeout: Duration = "75s", "seconds", span(1, DAY);
            /// How long a connection may serve requests, give or take a tenth, so that clients
            /// which came together don't come back together. The next answer after that is its last.
            "MAX_CONNECTION_AGE", max_connection_age: Option<Duration> = "off", "seconds",
                SpanOrOff(span(1, WEEK));
            /// Largest request head; above it the answer is 431.
            "MAX_HEADER_SIZE", max_header_size: usize = "32KiB", "bytes",
                Size { min: 1024, max: 60 * 1024 };
            /// Whether clients may speak HTTP/2: on a listener without TLS those that begin with its
            /// preface, with TLS those that agree on `h2` by ALPN.
            "HTTP2", http2: bool = "on", "", switch();
            /// Requests that a client may have under way on one connection of HTTP/2.
            "HTTP2_MAX_STREAMS", http2_max_streams: usize = "100", "streams",
                Int { min: 1, max: 1000 };
            /// Peers that may say for whom they ask: addresses, networks, or `unix:` for Unix
            /// sockets. From them the forwarding fields that `FORWARDED` names are kept and
            /// appended to, and the client is the rightmost address there that is none of these;
            /// from all others the fields are replaced.
            "TRUSTED_PROXIES", trusted_proxies: Vec<PeerPattern> = "", "", matches(PeerForm, "peers");
        }
        "Automatic certificates" {
            /// Whether certificates are had, and renewed, from an ACME server such as Let's Encrypt;
            /// with `on` you agree to its terms of service. Each name has a certificate of its own,
            /// which `TLS_CERTIFICATE` need not name.
            "ACME", acme: bool = "off", "", switch();
            /// The names. Without any, those are had that routes name whole in `MATCH_HOST`, but for
            /// routes with a `TLS_CERTIFICATE` of their own. Each must lead here, from where the
            /// server stands.
            "ACME_NAMES", acme_names: Vec<Box<str>> = "", "", matches(CertificateName, "names");
            /// Addresses that the server may write to.
            "ACME_EMAIL", acme_email: Vec<Box<str>> = "", "", matches(Email, "addresses");
            /// The URL of the server's directory: Let's Encrypt's, unless set.
            "ACME_DIRECTORY", acme_directory: Box<str> = "https://acme-v02.api.letsencrypt.org/directory", "",
                DirectoryUrl;
            /// Certificates in PEM that the server's own is verified by, instead of those of the host:
            /// for a private authority.
            "ACME_CA", acme_ca: Option<FileSource> = "", "", OrNothing(FileForm);
            /// How the server is shown that a name leads here: by a request on port 80 (`http-01`), or a
            /// handshake on port 443 (`tls-alpn-01`); either port has to lead to doorward. `auto`
            /// means the latter where there is a listener for TLS, and the one and the other by turns
            /// where it fails.
            "ACME_CHALLENGE", acme_challenge: Auto<AcmeChallenge> = "auto", "", Choice(&[
                ("auto", Auto::Auto),
                ("http-01", Auto::Is(AcmeChallenge::Http01)),
                ("tls-alpn-01", Auto::Is(AcmeChallenge::TlsAlpn01)),
            ]);
            /// The identifier of an account elsewhere that the server wants the one here to be bound
            /// to.
            "ACME_EAB_KEY_ID", acme_eab_key_id: Option<Box<str>> = "", "", OrNothing(Identifier);
            /// The file of the key that goes with it, in base64url as servers give it out.
            "ACME_EAB_KEY", acme_eab_key: Option<FileSource> = "", "", OrNothing(FileForm);
        }
        "Metrics" {
            /// Addresses where Prometheus finds metrics, at `/metrics`, as when systemd passes a socket
            /// named `metrics`, with which this key does not count. Whoever reaches one may read
            /// them: they tell of routes, backends and certificates.
            "METRICS_ADDRESS", metrics_address: Vec<ListenAddress> = "", "", listeners(true);
        }
        "Leaving" {
            /// How long a stop waits for what is in flight; what remains then is cut and
            /// counted. A unit's `TimeoutStopSec=` is extended as needed.
            "DRAIN_TIMEOUT", drain_timeout: Duration = "30s", "seconds", span(0, DAY);
            /// How long a process that was taken over from in an upgrade finishes what it has. As
            /// another one serves meanwhile this may be long; when that one is stopped or upgraded
            /// itself, `DRAIN_TIMEOUT` is left of it. `auto` means 15 minutes, or `DRAIN_TIMEOUT`
            /// where that is longer.
            "UPGRADE_DRAIN_TIMEOUT", upgrade_drain_timeout: Auto<Duration> = "auto", "seconds",
                AutoOr(span(0, DAY));
        }
        "Log" {
            /// Least severity of what is logged. A released program has nothing below `debug`.
            "LOG_LEVEL", log_level: LogLevel = "info", "", Choice(&[
                ("error", LogLevel::Error),
                ("warn", LogLevel::Warn),
                ("info", LogLevel::Info),
                ("debug", LogLevel::Debug),
                ("trace", LogLevel::Trace),
            ]);
            /// Where the log goes. `auto` means journald under systemd, text on a terminal, and
            /// JSON on standard error otherwise.
            "LOG_FORMAT", log_format: LogFormat = "auto", "", Choice(&[
                ("auto", LogFormat::Auto),
                ("journald", LogFormat::Journald),
                ("text", LogFormat::Text),
                ("json", LogFormat::Json),
            ]);
        }
    }

    /// The settings of one route.
    Route RouteSettings {
        "Certificates" {
            /// Certificates in PEM, each file with its own first and then those that lead to its
            /// root; by the name that a client asks for one is chosen, and by what keys it takes.
            /// A folder stands for the pairs in it and in its folders: `NAME.key` with `NAME.crt` or
            /// `NAME.pem`, `privkey.pem` with `fullchain.pem`. What a route brings serves its
            /// `MATCH_HOST` too. Beside a certificate, `NAME.ocsp` is its OCSP response.
            "TLS_CERTIFICATE", tls_certificate: Vec<FileSource> = "", "", matches(FileForm, "files");
            /// Their private keys in PEM, not encrypted, in the same order; not set where each file
            /// of a certificate holds its key too, and for folders.
            "TLS_PRIVATE_KEY", tls_private_key: Vec<FileSource> = "", "", matches(FileForm, "files");
            /// Authorities in PEM, one of which must have signed a client's certificate; requests
            /// without one get 403. It is asked for in the handshake for a name of `MATCH_HOST`,
            /// so that routes which share a host name the same authorities or `off`, and a
            /// request for another host than that of the handshake gets 421 where the two differ.
            "TLS_CLIENT_CA", tls_client_ca: Vec<FileSource> = "off", "", ListOrOff(matches(FileForm, "files"));
            /// Revocation lists in PEM, one of each authority that has signed a certificate in the
            /// client's chain: whatever they list, or have no list for, is refused in the
            /// handshake. One that is out of date counts all the same.
            "TLS_CLIENT_CRL", tls_client_crl: Vec<FileSource> = "", "", matches(FileForm, "files");
            /// Fields that tell a backend of the client's certificate. `x-client-cert` means
            /// `X-Client-Cert-Subject` (RFC 4514), `-San`, `-Serial` and `-Fingerprint` (SHA-256),
            /// `rfc9440` means `Client-Cert` and `Client-Cert-Chain`. As soon as any route has a
            /// `TLS_CLIENT_CA`, no route passes these on from clients.
            "TLS_CLIENT_FIELDS", tls_client_fields: ClientFields = "x-client-cert", "", Choice(&[
                ("x-client-cert", ClientFields::XClientCert),
                ("rfc9440", ClientFields::Rfc9440),
                ("both", ClientFields::Both),
                ("off", ClientFields::Off),
            ]);
        }
        "Backends" {
            /// Whether bytes are read as HTTP requests, or relayed both ways unread, so that any
            /// protocol passes.
            "MODE", mode: Mode = "http", "", Choice(&[("http", Mode::Http), ("tcp", Mode::Tcp)]);
            /// One backend or several; `BALANCE` says which one takes a request. A name stands for
            /// every address that it leads to, `srv:` and a service for what its SRV records say. To
            /// `https://` TLS is spoken, as the keys of the next group say; with `MODE=tcp` too.
            /// `builtin:echo` is a page that shows the request as a backend receives it. `?weight=2`
            /// gives a backend twice the share of one without; with `?weight=0` it drains: it takes
            /// nothing new, but from clients whose cookie names it. One with `?backup` is used only
            /// while none of the others takes requests. With `off` there is none, and requests are
            /// answered with 404.
            "BACKEND_ADDRESS", backend_address: Vec<BackendAddress> = "builtin:echo", "",
                backends();
            /// What backends are spoken to in: HTTP/1.1, or with `h2` HTTP/2, to `https://` as TLS
            /// agrees on it (ALPN), else in the clear and known beforehand. Requests share a few
            /// connections then, a hundred on each at most. gRPC needs `h2`; WebSockets and other upgrades need `http1`. `builtin:echo` speaks
            /// HTTP/1.1 in any case.
            "BACKEND_PROTOCOL", backend_protocol: BackendProtocol = "http1", "", Choice(&[
                ("http1", BackendProtocol::Http1),
                ("h2", BackendProtocol::H2),
            ]);
            /// Which backend takes a request: each in turn (`round-robin`); the one with the fewest
            /// requests under way (`least-requests`); of two drawn at random, the one with the lower
            /// product of latency and requests under way (`p2c`); always the same one for a client's
            /// address, a field or a cookie (`hash:`), as long as that has no more than its share and
            /// a quarter; the one that a cookie of ours names (`sticky`).
            "BALANCE", balance: Balance = "p2c", "", Algorithm;
            /// The cookie of `BALANCE=sticky`. `auto` means `doorward-` and a code for the route, so
            /// that routes of one host don't take each other's.
            "STICKY_COOKIE", sticky_cookie: Auto<Box<str>> = "auto", "", AutoOr(CookieName);
            /// How long a backend that is new or came back takes less than its share: a tenth of it
            /// at first, all of it at the end.
            "SLOW_START", slow_start: Option<Duration> = "off", "seconds", SpanOrOff(span(1, DAY));
            /// How long an idle connection to a backend is kept for the next request, unless the
            /// backend itself says less (`Keep-Alive: timeout`).
            "BACKEND_IDLE_TIMEOUT", backend_idle_timeout: Duration = "4s", "seconds",
                span(1, DAY);
            /// Idle connections that each worker keeps to one backend; beyond it the oldest is
            /// closed. Fewer than there are requests at once means dialling all the time, however
            /// short they are idle. 0 keeps none.
            "BACKEND_IDLE_CONNECTIONS", backend_idle_connections: usize = "1024", "connections",
                Int { min: 0, max: 100_000 };
            /// Connections to one backend, idle ones included, of all workers together. Requests
            /// for which there is none wait for up to `QUEUE_TIMEOUT`, ten times as many as the
            /// limit at most; then the answer is 503. Where routes share a backend the least limit
            /// holds.
            "MAX_BACKEND_CONNECTIONS", max_backend_connections: Option<usize> = "off", "connections",
                IntOrOff(Int { min: 1, max: 1_000_000 });
            /// Fields that tell a backend where a request came from: `X-Forwarded-For`, `-Proto`
            /// and `-Host`, or `Forwarded` of RFC 7239. All that are not named here are removed.
            /// What a peer in `TRUSTED_PROXIES` says is read from `Forwarded` with `rfc7239`, else
            /// from `X-Forwarded-For`; with `both`, `Forwarded` is written anew from that.
            "FORWARDED", forwarded: Forwarding = "x-forwarded", "", Choice(&[
                ("x-forwarded", Forwarding::XForwarded),
                ("rfc7239", Forwarding::Rfc7239),
                ("both", Forwarding::Both),
                ("off", Forwarding::Off),
            ]);
        }
        "TLS to backends" {
            /// Who vouches for `https://` backends: files of certificates in PEM, or `system` for the
            /// authorities that the host trusts (package ca-certificates).
            "BACKEND_TLS_CA", backend_tls_ca: Vec<FileSource> = "system", "", Authorities;
            /// The name that the certificate of a backend must have, and that it is asked for by (SNI).
            /// `auto` means the host of its address.
            "BACKEND_TLS_NAME", backend_tls_name: Auto<TlsName<'static>> = "auto", "", AutoOr(ServerName);
            /// The certificate that backends are shown when they demand one, with those that lead to
            /// its root. Files that change are taken up by themselves, as those of `BACKEND_TLS_CA`
            /// are.
            "BACKEND_TLS_CERTIFICATE", backend_tls_certificate: Option<FileSource> = "off", "", FileOrOff;
            /// Its private key in PEM, not encrypted; `off` where the same file holds both.
            "BACKEND_TLS_PRIVATE_KEY", backend_tls_private_key: Option<FileSource> = "off", "", FileOrOff;
            /// Whether backends must prove who they are. With `off` whoever is on the way there can
            /// read and change everything.
            "BACKEND_TLS_VERIFY", backend_tls_verify: bool = "on", "", switch();
        }
        "Health" {
            /// How backends are checked: by a GET of this path, or with `tcp` by a connection. A
            /// backend whose checks fail gets no requests, unless no other is left: then all
            /// that take connections do. `builtin:echo` is not checked.
            "HEALTH_CHECK", health_check: Option<HealthCheck> = "off", "", Check;
            /// From one check of a backend to the next, give or take a tenth.
            "HEALTH_INTERVAL", health_interval: Duration = "2s", "seconds", span(10, DAY);
            /// How long a check may take, connecting included; no longer than `HEALTH_INTERVAL`.
            "HEALTH_TIMEOUT", health_timeout: Duration = "1s", "seconds", span(1, DAY);
            /// Checks in a row that must pass to bring a backend back.
            "HEALTH_RISE", health_rise: usize = "2", "checks", Int { min: 1, max: 100 };
            /// Checks in a row that must fail to take a backend out; its very first check
            /// decides alone.
            "HEALTH_FALL", health_fall: usize = "3", "checks", Int { min: 1, max: 100 };
            /// Statuses with which a check passes.
            "HEALTH_STATUS", health_status: Vec<RangeInclusive<u16>> = "200-399", "", statuses();
            /// The `Host` of a check. `auto` means the one that `BACKEND_HOST` names, else the
            /// backend's own address.
            "HEALTH_HOST", health_host: Auto<Box<str>> = "auto", "", AutoOr(HostField);
            /// Failures in a row after which a backend is ejected: requests keep away from it for
            /// `EJECT_TIME`. Only while at least half of the others fare well, and never more than
            /// half of a route's backends, so never the only one. `off` ejects none.
            "EJECT_AFTER", eject_after: Option<usize> = "5", "failures",
                IntOrOff(Int { min: 1, max: 1000 });
            /// Which failures count: `reset` when a connection ends before the answer is whole or
            /// carries no HTTP, `timeout` when it is not made or nothing comes in time, and
            /// answers of a status. A refused connection never ejects: a backend that takes none
            /// is passed over anyway, and tried again every second.
            "EJECT_ON", eject_on: Vec<EjectOn> = "reset,timeout", "", eject_on();
            /// How many times longer than those of the others a backend's answers may take: one that
            /// is slower for ten seconds, and by more than 100 ms, is ejected too. Not for routes
            /// where backends are asked for different things. `off` ejects for no latency.
            "EJECT_LATENCY", eject_latency: Option<usize> = "off", "times",
                IntOrOff(Int { min: 2, max: 1000 });
            /// How long a backend is first ejected; doubled each time it is ejected again. Then
            /// one request probes it: its answer brings the backend back.
            "EJECT_TIME", eject_time: Duration = "30s", "seconds", span(1, DAY);
            /// Longest ejection. For each time that a backend was well so long, one is forgiven.
            "EJECT_TIME_MAX", eject_time_max: Duration = "5m", "seconds", span(1, DAY);
        }
        "Retries" {
            /// Further attempts after the first one fails, on another backend where there is one.
            "MAX_RETRIES", max_retries: usize = "3", "attempts", Int { min: 0, max: 20 };
            /// Wait before the first further attempt; doubled for each one after it. The real
            /// wait is a random part of it.
            "RETRY_BACKOFF", retry_backoff: Duration = "25ms", "seconds", span(0, DAY);
            /// Longest wait between two attempts; also of that which a backend asks for by
            /// `Retry-After`.
            "RETRY_BACKOFF_MAX", retry_backoff_max: Duration = "1s", "seconds", span(0, DAY);
            /// What is tried again: `connect` when no connection was made or the backend refused the
            /// request's stream (HTTP/2), so that nothing was done; `reset` when it ended
            /// before an answer, `timeout` when no answer came within `RESPONSE_TIMEOUT` or
            /// `ATTEMPT_TIMEOUT`, and answers of a status. Whatever was sent to a backend is tried
            /// again only if the method is idempotent. The default asks nothing of backends that
            /// are merely slow or overloaded; when attempts end, the last answer goes to the client.
            "RETRY_ON", retry_on: Vec<RetryOn> = "connect,reset", "", retry_on();
            /// Whether POST, PATCH and other methods that are not idempotent are tried again too
            /// after a backend may have acted on them.
            "RETRY_NON_IDEMPOTENT", retry_non_idempotent: bool = "off", "", switch();
            /// Most retries, as a share of the requests of the last ten seconds that were answered by
            /// anything but what `RETRY_ON` names, so that an outage is not made worse. Above it the
            /// backend's own failure is the answer.
            "RETRY_BUDGET", retry_budget: Option<usize> = "20%", "", PercentOrOff { max: 100 };
            /// Retries that `RETRY_BUDGET` allows in any case, over ten seconds, since a share of
            /// little traffic is nothing.
            "RETRY_BUDGET_MIN", retry_budget_min: usize = "10/s", "retries a second",
                Rate { min: 0, max: 1_000_000 };
            /// Largest request body that is kept until it is answered, so that it can be sent
            /// again; requests with a larger one, and those that find no memory left in the 64 MiB
            /// which all together may take, are tried again only if nothing was sent.
            "RETRY_BODY_LIMIT", retry_body_limit: usize = "64KiB", "bytes",
                Size { min: 0, max: 16 * 1024 * 1024 };
        }
        "Timeouts" {
            /// Time for a connection to a backend to stand; then another attempt follows.
            "CONNECT_TIMEOUT", connect_timeout: Duration = "3s", "seconds", span(1, DAY);
            /// How long a client may neither send nor take a byte while we wait for it alone.
            "BODY_TIMEOUT", body_timeout: Duration = "30s", "seconds", span(1, DAY);
            /// Least rate at which a client must send its body or take its answer, counted only
            /// while we wait for it alone. One that falls behind by `BODY_TIMEOUT` in all is cut;
            /// one that keeps up may take as long as it likes.
            "MIN_BODY_RATE", min_body_rate: Option<usize> = "240", "bytes a second",
                RateOrOff(Size { min: 1, max: 1024 * 1024 });
            /// How long a backend may be silent before the head of its response; then 504.
            "RESPONSE_TIMEOUT", response_timeout: Duration = "60s", "seconds", span(1, DAY);
            /// How long a backend may be silent after the head of its response, and either side
            /// of a tunnel or of a connection with `MODE=tcp`.
            "STREAM_TIMEOUT", stream_timeout: Option<Duration> = "off", "seconds",
                SpanOrOff(span(1, WEEK));
            /// Longest time for one attempt, from dialling to the head of the response, less what
            /// the client takes to send its body; then 504, or another attempt if `RETRY_ON` has
            /// `timeout`.
            "ATTEMPT_TIMEOUT", attempt_timeout: Option<Duration> = "off", "seconds",
                SpanOrOff(span(1, WEEK));
            /// Longest time for a request from its first byte to the last one of its response.
            "REQUEST_TIMEOUT", request_timeout: Option<Duration> = "off", "seconds",
                SpanOrOff(span(1, WEEK));
        }
        "Rewrites" {
            /// Leading segments that are taken off the path before it is sent on, the longest
            /// of these that it has. What is left begins with `/`, and stays as it was written.
            "STRIP_PREFIX", strip_prefix: Vec<String> = "", "", matches(Prefix, "prefixes");
            /// The `Host` that a backend is asked for: the client's, the backend's own name, or
            /// this one (a host that is named as one of the words is written with its port). What
            /// the client asked for stands in `X-Forwarded-Host` or `Forwarded`.
            "BACKEND_HOST", backend_host: BackendHost = "client", "", BackendHostForm;
            /// Answers with a redirect instead of asking a backend. The status is 307 unless
            /// another one stands before the URL, as in `"301 https://{host}{path}{query}"`.
            /// `{host}` is without its port, `{path}` is what would be sent on, and `{query}`
            /// brings its question mark. A URL without a host stays on the one that was asked.
            "REDIRECT", redirect: Option<Redirect> = "off", "", RedirectForm;
            /// Sends clients that come without TLS to `https://`, by a redirect with status 308: to its own
            /// port with `on`, else to this one. Not those for whom a peer in `TRUSTED_PROXIES` says that
            /// they came by TLS, and never the requests of an ACME server.
            "HTTPS_REDIRECT", https_redirect: Option<u16> = "off", "", RedirectPort;
            /// How long a browser that came by TLS is to come by nothing else, as in `365d` or
            /// `365d,includeSubDomains`: `Strict-Transport-Security` in answers by TLS that have none
            /// from the backend. Begin with `1h`, since nothing takes it back; `0` has browsers forget it.
            "HSTS", hsts: Option<Box<str>> = "off", "seconds", Hsts;
            /// Fields that a backend gets in place of those of the same name that the client
            /// sent, as in `"X-Env: test | X-Via: door"`. Names are compared without case, and
            /// `_` counts as `-`.
            "SET_REQUEST_HEADERS", set_request_headers: Vec<Header> = "", "", Headers(Of::Requests);
            /// Fields of a client that no backend gets, also behind a body.
            "REMOVE_REQUEST_HEADERS", remove_request_headers: Vec<String> = "", "", names(Of::Requests);
            /// Fields that a client gets in place of those of the same name that the backend
            /// sent, as in `"X-Frame-Options: DENY"`. Answers of doorward's own get those that
            /// they have not by themselves.
            "SET_RESPONSE_HEADERS", set_response_headers: Vec<Header> = "", "", Headers(Of::Responses);
            /// Fields of a backend that no client gets, also behind a body.
            "REMOVE_RESPONSE_HEADERS", remove_response_headers: Vec<String> = "", "", names(Of::Responses);
        }
        "Records" {
            /// Which requests leave a record in the log: all, none, or those that failed or were
            /// refused.
            "ACCESS_LOG", access_log: AccessLog = "errors", "", Choice(&[
                ("on", AccessLog::On),
                ("off", AccessLog::Off),
                ("errors", AccessLog::Errors),
            ]);
        }
    }

    /// What a route matches: every list that is not empty must have an entry that matches.
    Matcher Matcher {
        "Matching" {
            /// Hosts that the route serves; `*.example.com` means every host below it, however
            /// deep. An exact host beats the longest `*.` one.
            "MATCH_HOST", match_host: Vec<HostPattern> = "", "", matches(Host, "hosts");
            /// Paths that the route serves: `/api` means it and all below it, `=/api` means it
            /// alone. An exact path beats the longest prefix.
            "MATCH_PATH", match_path: Vec<PathPattern> = "", "", matches(Path, "paths");
            /// Listeners that the route serves, by the name that `FileDescriptorName=` of the
            /// socket unit gives them; what doorward binds itself is `http`.
            "MATCH_LISTENER", match_listener: Vec<String> = "", "",
                matches(ListenerName, "listeners");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::nearest;

    #[test]
    fn every_row_of_the_table_is_whole() {
        for key in KEYS {
            key.check(key.default).unwrap_or_else(|wrong| panic!("default of {}: {wrong}", key.name));
            assert!(key.is_default(key.default), "{}", key.name);
            assert!(key.help().ends_with('.'), "{}", key.name);
            assert!(!key.form().is_empty(), "{}", key.name);
            assert!(
                key.name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_'),
                "{}",
                key.name
            );
            assert_eq!(KEYS.iter().filter(|other| other.name == key.name).count(), 1);
            assert_eq!(key.name.starts_with("MATCH_"), key.scope == Scope::Matcher);
        }
    }

    #[test]
    fn a_field_is_named_as_its_key() {
        let daemon = format!("{:?}", Daemon::read(|_| None).unwrap());
        let route = format!("{:?}", RouteSettings::read(|_| None).unwrap());
        let matcher = format!("{:?}", Matcher::read(|_| None).unwrap());
        for key in KEYS {
            let field = format!(" {}: ", key.name.to_ascii_lowercase());
            let settings = match key.scope {
                Scope::Daemon => &daemon,
                Scope::Route => &route,
                Scope::Matcher => &matcher,
            };
            assert!(settings.contains(&field), "{field} in {settings}");
        }
    }

    #[test]
    fn a_default_is_recognised_in_another_spelling() {
        let key = Key::find("RETRY_BACKOFF_MAX").unwrap();
        assert!(key.is_default("1000ms"));
        assert!(!key.is_default("2s"));
        assert!(!key.is_default("nonsense"));
    }

    #[test]
    fn the_nearest_key_is_offered_only_when_it_is_near() {
        let name = |text| nearest(text).map(|key| key.name);
        assert_eq!(name("CONECT_TIMEOUT"), Some("CONNECT_TIMEOUT"));
        assert_eq!(name("backend_adress"), Some("BACKEND_ADDRESS"));
        assert_eq!(name("WORKER"), Some("WORKERS"));
        assert_eq!(name("LISTEN"), None);
        assert_eq!(name(""), None);
    }
}

//! Values that are one of a few words.

use std::fmt;

/// What a route makes of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Requests of HTTP.
    Http,
    /// Bytes, both ways, unread.
    Tcp,
}

impl fmt::Display for Mode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Mode::Http => "http",
            Mode::Tcp => "tcp",
        })
    }
}

/// What backends are spoken to in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackendProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, known beforehand.
    H2,
}

/// What makes an attempt one that failed, so that another may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RetryOn {
    /// No connection was made, or the backend says that it did nothing about the request.
    Connect,
    /// The connection ended before anything of an answer had come.
    Reset,
    /// The answer is a 502.
    BadGateway,
    /// The answer is a 503.
    ServiceUnavailable,
    /// The answer is a 504.
    GatewayTimeout,
    /// No answer had begun in time.
    Timeout,
}

impl RetryOn {
    /// All of them, by the word for each.
    pub(super) const WORDS: &'static [(&'static str, Self)] = &[
        ("connect", Self::Connect),
        ("reset", Self::Reset),
        ("502", Self::BadGateway),
        ("503", Self::ServiceUnavailable),
        ("504", Self::GatewayTimeout),
        ("timeout", Self::Timeout),
    ];

    /// The one that an answer of this status is.
    #[must_use]
    pub fn of_status(status: u16) -> Option<Self> {
        match status {
            502 => Some(Self::BadGateway),
            503 => Some(Self::ServiceUnavailable),
            504 => Some(Self::GatewayTimeout),
            _ => None,
        }
    }
}

/// What counts as a failure of a backend that may be ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EjectOn {
    /// The connection ended, or could not be made sense of, before the answer was whole.
    Reset,
    /// Nothing came in time.
    Timeout,
    /// The answer is a 502.
    BadGateway,
    /// The answer is a 503.
    ServiceUnavailable,
    /// The answer is a 504.
    GatewayTimeout,
}

impl EjectOn {
    /// All of them, by the word for each.
    pub(super) const WORDS: &'static [(&'static str, Self)] = &[
        ("reset", Self::Reset),
        ("timeout", Self::Timeout),
        ("502", Self::BadGateway),
        ("503", Self::ServiceUnavailable),
        ("504", Self::GatewayTimeout),
    ];

    /// The one that an answer of this status is.
    #[must_use]
    pub fn of_status(status: u16) -> Option<Self> {
        match status {
            502 => Some(Self::BadGateway),
            503 => Some(Self::ServiceUnavailable),
            504 => Some(Self::GatewayTimeout),
            _ => None,
        }
    }

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::BadGateway => "502",
            Self::ServiceUnavailable => "503",
            Self::GatewayTimeout => "504",
        }
    }
}

/// Which fields tell a backend where a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Forwarding {
    /// `X-Forwarded-For`, `X-Forwarded-Proto` and `X-Forwarded-Host`.
    XForwarded,
    /// `Forwarded` of RFC 7239.
    Rfc7239,
    /// All four.
    Both,
    /// None.
    Off,
}

/// Which requests leave a record in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AccessLog {
    /// All of them.
    On,
    /// None.
    Off,
    /// Those that failed or were refused.
    Errors,
}

/// Where the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogFormat {
    /// journald under systemd, text on a terminal, JSON otherwise.
    Auto,
    /// The journal's native socket.
    Journald,
    /// Text on standard error.
    Text,
    /// One JSON object a line on standard error.
    Json,
}

/// Which records are kept: those of this severity and worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// Failures that need somebody.
    Error,
    /// Also what may become one.
    Warn,
    /// Also what an operator wants to know.
    Info,
    /// Also what helps to find a fault.
    Debug,
    /// Everything.
    Trace,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> tracing::Level {
        match level {
            LogLevel::Error => tracing::Level::ERROR,
            LogLevel::Warn => tracing::Level::WARN,
            LogLevel::Info => tracing::Level::INFO,
            LogLevel::Debug => tracing::Level::DEBUG,
            LogLevel::Trace => tracing::Level::TRACE,
        }
    }
}

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

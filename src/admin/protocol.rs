//! The words of the admin socket: one JSON object a line, each way.
//!
//! ```text
//! → {"command":"status"}      ← {"ok":true,"status":{…}}
//! → {"command":"reload"}      ← {"ok":true,"generation":7}
//!                             ← {"ok":false,"error":"…the whole report…"}
//! → {"command":"upgrade"}     ← {"ok":true,"upgraded":{"pid":4321,…}}
//! ```
//!
//! A line from the client has at most [`MAX_LINE`] bytes; an answer has no limit.
//! Fields may be added to an answer; a client ignores those that it does not know.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The longest line that a client may send, in bytes, its end included.
pub const MAX_LINE: usize = 4096;

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Command {
    /// The present state.
    Status,
    /// Read the configuration anew; answered when it serves or is refused.
    Reload,
    /// Have another process take over; answered when it serves or could not.
    Upgrade,
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Whether the command did what it says.
    pub ok: bool,
    /// Of a reload: the generation that serves now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Of an upgrade: who serves now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgraded: Option<UpgradeStatus>,
    /// Of a status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Box<Status>>,
    /// Why not; may have several lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Answer {
    /// The state that was asked for.
    pub fn status(status: Status) -> Answer {
        Answer { ok: true, status: Some(Box::new(status)), ..Answer::default() }
    }

    /// The reload is done: `generation` serves.
    pub fn reloaded(generation: u64) -> Answer {
        Answer { ok: true, generation: Some(generation), ..Answer::default() }
    }

    /// The upgrade is done.
    pub fn upgraded(status: UpgradeStatus) -> Answer {
        Answer { ok: true, upgraded: Some(status), ..Answer::default() }
    }

    /// The command was refused, for the reason in `error`.
    pub fn refused(error: impl Into<String>) -> Answer {
        Answer { error: Some(error.into()), ..Answer::default() }
    }
}

/// The state of the daemon at one moment.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the running binary.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// `serving`, `reloading`, `upgrading` or `draining`.
    pub phase: String,
    /// The process that this one took over from, while that one drains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<u32>,
    /// Seconds that it has for that at most; none when it is of an older version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predecessor_left: Option<u64>,
    /// Connections of clients that it has still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predecessor_connections: Option<u64>,
    /// Number of the configuration that serves; the first one is 1.
    pub generation: u64,
    /// The file that it was read from; none when only defaults serve.
    pub config: Option<PathBuf>,
    /// Seconds since the start.
    pub uptime: u64,
    /// Worker threads.
    pub workers: usize,
    /// Where clients come in, and scrapes of the metrics.
    pub listeners: Vec<ListenerStatus>,
    /// Requests (in TCP mode, connections) being served.
    pub in_flight: u64,
    /// Requests waiting for a permit.
    pub queued: u64,
    /// Open client connections.
    pub connections: u64,
    /// TLS with clients; none where nobody listens for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsStatus>,
    /// Requests answered since the start.
    pub requests: u64,
    /// Attempts after the first one, since the start.
    pub retries: u64,
    /// Attempts that were not made because `RETRY_BUDGET` was spent, since the start.
    pub retries_over_budget: u64,
    /// Attempts that were not made because the request's body was larger than
    /// `RETRY_BODY_LIMIT` or found no memory, since the start.
    pub retries_without_body: u64,
    /// Bytes that were spliced since the start, in both directions; counted when the
    /// request, tunnel or connection that they were of has ended.
    pub bytes_spliced: u64,
    /// Requests a second, over the last second.
    pub requests_per_second: f64,
    /// Median time of an answer over the last second, in microseconds; 0 without any.
    pub p50_us: u64,
    /// The same for the slowest hundredth.
    pub p99_us: u64,
    /// Backends, each once.
    pub backends: Vec<BackendStatus>,
    /// Routes that have no backend left and use all that take connections.
    pub failing_open: Vec<String>,
    /// The certificates that TLS clients are shown.
    pub certificates: Vec<CertificateStatus>,
    /// Those that backends are shown.
    pub backend_certificates: Vec<CertificateStatus>,
    /// Names that certificates are had for by ACME.
    pub automatic: Vec<AutomaticStatus>,
    /// Log records dropped since the start, for want of room or of a reader.
    pub log_dropped: u64,
    /// The last reload, if there was one.
    pub reload: Option<ReloadStatus>,
}

/// One listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ListenerStatus {
    /// Its name, as routes match it.
    pub name: String,
    /// Its address, as in `PROXY_ADDRESS`.
    pub address: String,
    /// Whether the service manager passed it.
    pub passed: bool,
}

/// TLS handshakes with clients.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TlsStatus {
    /// Those that succeeded since the start.
    pub handshakes: u64,
    /// Those of them that resumed an earlier session.
    pub resumed: u64,
    /// Those under way.
    pub under_way: u64,
    /// Clients in line for one.
    pub waiting: usize,
    /// Those that failed since the start, by reason.
    pub failed: BTreeMap<String, u64>,
}

/// One backend.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendStatus {
    /// Its address, as in `BACKEND_ADDRESS`, without options.
    pub address: String,
    /// Whether requests may be sent to it now.
    pub up: bool,
    /// `up`, or why not: `down`, `failing`, `ejected`, `draining`.
    pub state: String,
    /// Since when it is so, in seconds since 1970; none when it always was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Why not, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Connections to it, idle ones included.
    pub connections: usize,
    /// Requests that wait for one, where `MAX_BACKEND_CONNECTIONS` is reached.
    pub waiting: usize,
    /// Requests that it has now, tunnels and connections of `MODE=tcp` included.
    pub in_flight: u64,
    /// Times that it was chosen since the start, or since it is known.
    pub attempts: u64,
    /// Those of them that were retries.
    pub retries: u64,
    /// Its responses, by class of their status.
    pub responses: BTreeMap<String, u64>,
    /// Milliseconds that all of them together took to begin, from when the request was sent whole.
    pub response_ms: u64,
    /// Attempts that failed, by cause; a 5xx is a response.
    pub failures: BTreeMap<String, u64>,
}

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CertificateStatus {
    /// Whose it is, as a distinguished name.
    pub subject: String,
    /// The hosts and addresses that it is for.
    pub names: Vec<String>,
    /// Who signed it, as a distinguished name.
    pub issuer: String,
    /// Its key: `P-256`, `RSA 2048`.
    pub key: String,
    /// Until when it is valid, in seconds since 1970.
    pub not_after: i64,
    /// Whole days until then; negative once it has expired.
    pub days_left: i64,
    /// Its file.
    pub file: PathBuf,
}

/// One name that a certificate is had for by ACME.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AutomaticStatus {
    /// The name.
    pub name: String,
    /// `valid`, `expired`, `missing`, or `ordering`.
    pub state: String,
    /// When its certificate ends, in seconds since 1970; none without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<u64>,
    /// When a certificate is ordered, in seconds since 1970; none while one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    /// Why there is none, or no new one, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Who has taken over from whom.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UpgradeStatus {
    /// The process that serves now.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The process that drains.
    pub from_pid: u32,
    /// Its version.
    pub from_version: String,
}

/// How the last reload ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReloadStatus {
    /// Whether the new configuration serves.
    pub ok: bool,
    /// When it ended, in seconds since 1970.
    pub at: u64,
    /// Why it was refused: the whole report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_on_the_wire_are_as_documented() -> serde_json::Result<()> {
        assert_eq!(serde_json::from_str::<Command>(r#"{"command":"reload"}"#)?, Command::Reload);
        assert!(serde_json::from_str::<Command>(r#"{"command":"halt"}"#).is_err());
        assert_eq!(serde_json::to_string(&Answer::reloaded(7))?, r#"{"ok":true,"generation":7}"#);
        assert_eq!(serde_json::to_string(&Answer::refused("no"))?, r#"{"ok":false,"error":"no"}"#);
        Ok(())
    }

    #[test]
    fn a_client_accepts_fields_that_it_does_not_know() -> serde_json::Result<()> {
        let line = r#"{"ok":true,"later":1,"status":{"version":"9","moon":"full"}}"#;
        let status = serde_json::from_str::<Answer>(line)?.status.unwrap_or_default();
        assert_eq!(status.version, "9");
        Ok(())
    }
}

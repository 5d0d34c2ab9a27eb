//! The page that `doorward status` prints.

use super::table;
use crate::admin::protocol::{AutomaticStatus, BackendStatus, CertificateStatus, Status, TlsStatus};

/// The state as a page; `now` is in seconds since 1970.
pub(super) fn page(status: &Status, now: u64) -> String {
    let row = |name: &str, text: String| [name.to_owned(), text];
    let mut rows = vec![
        row("phase", format!("{} for {}, pid {}", status.phase, span(status.uptime), status.pid)),
        row(
            "config",
            match &status.config {
                Some(path) => format!("{}, generation {}", path.display(), status.generation),
                None => format!("defaults, generation {}", status.generation),
            },
        ),
    ];
    if let Some(pid) = status.predecessor {
        let what = what_is_left(status);
        let most = status.predecessor_left.map_or_else(String::new, |left| format!(" within {}", span(left)));
        rows.push(row("upgrade", format!("taken over from pid {pid}, which finishes {what}{most}")));
    }
    if let Some(reload) = &status.reload {
        let ago = span(now.saturating_sub(reload.at));
        rows.push(row(
            "reload",
            match &reload.error {
                None if reload.ok => format!("done {ago} ago"),
                None => format!("refused {ago} ago"),
                Some(_) => format!("refused {ago} ago, for this reason:"),
            },
        ));
        for line in reload.error.iter().flat_map(|error| error.lines()) {
            rows.push(row("", line.to_owned()));
        }
    }
    rows.extend([
        row("now", format!("{} in flight, {} queued", count(status.in_flight), count(status.queued))),
        row(
            "rate",
            format!(
                "{} requests/s, p50 {}, p99 {}",
                count(status.requests_per_second.round() as u64),
                micros(status.p50_us),
                micros(status.p99_us)
            ),
        ),
        row("total", format!("{} requests, {} connections open", count(status.requests), count(status.connections))),
        row(
            "retries",
            format!("{} made, {} beyond the budget", count(status.retries), count(status.retries_over_budget)),
        ),
        row("workers", status.workers.to_string()),
        row("log", format!("{} records dropped", count(status.log_dropped))),
    ]);
    rows.extend(status.tls.as_ref().map(|tls| row("tls", handshakes(tls))));
    let listeners: Vec<[String; 3]> = status
        .listeners
        .iter()
        .map(|listener| {
            let by = if listener.passed { "passed by systemd" } else { "bound by doorward" };
            [listener.name.clone(), listener.address.clone(), by.to_owned()]
        })
        .collect();
    let mut parts = vec![
        format!("doorward {}", status.version),
        table("  ", &rows),
        format!("\nlisteners\n{}", table("  ", &listeners)),
        format!("\nbackends\n{}", backends(&status.backends, now)),
    ];
    for (shown, certificates) in
        [("certificates", &status.certificates), ("certificates that backends are shown", &status.backend_certificates)]
    {
        if !certificates.is_empty() {
            let rows: Vec<[String; 4]> = certificates.iter().map(certificate).collect();
            parts.push(format!("\n{shown}\n{}", table("  ", &rows)));
        }
    }
    if !status.automatic.is_empty() {
        let rows: Vec<[String; 2]> =
            status.automatic.iter().map(|one| [one.name.clone(), automatic(one, now)]).collect();
        parts.push(format!("\nautomatic certificates\n{}", table("  ", &rows)));
    }
    if !status.failing_open.is_empty() {
        let routes = status.failing_open.join(", ");
        parts.push(format!("\nno backend is left; all that take connections are used on: {routes}"));
    }
    parts.join("\n")
}

/// What the process before has still.
pub(super) fn what_is_left(status: &Status) -> String {
    match status.predecessor_connections {
        None => "what it has".to_owned(),
        Some(1) => "1 connection".to_owned(),
        Some(many) => format!("{} connections", count(many)),
    }
}

/// How TLS handshakes went: `1,204 handshakes, 800 resumed, 3 failed (tls_alert 3)`.
fn handshakes(tls: &TlsStatus) -> String {
    let mut text = format!("{} handshakes, {} resumed", count(tls.handshakes), count(tls.resumed));
    if tls.under_way > 0 || tls.waiting > 0 {
        let waiting = u64::try_from(tls.waiting).unwrap_or(u64::MAX);
        text.push_str(&format!(", {} under way, {} waiting", count(tls.under_way), count(waiting)));
    }
    text.push_str(&format!(", {} failed", count(tls.failed.values().sum())));
    if !tls.failed.is_empty() {
        let causes = tls.failed.iter().map(|(reason, failed)| format!("{reason} {}", count(*failed)));
        text.push_str(&format!(" ({})", causes.collect::<Vec<_>>().join(", ")));
    }
    text
}

/// Backends in a line each: state, figures since the start, and a remark.
fn backends(backends: &[BackendStatus], now: u64) -> String {
    let head = ["", "", "now", "attempts", "retries", "4xx", "5xx", "failed", "time", ""].map(str::to_owned);
    let class = |backend: &BackendStatus, class| backend.responses.get(class).copied().unwrap_or_default();
    let figures = backends.iter().map(|backend| {
        let failed = backend.failures.values().sum();
        let mean = backend.response_ms.saturating_mul(1_000).checked_div(backend.responses.values().sum());
        [
            backend.address.clone(),
            state(backend).to_owned(),
            count(backend.in_flight),
            count(backend.attempts),
            count(backend.retries),
            count(class(backend, "4xx")),
            count(class(backend, "5xx")),
            count(failed),
            micros(mean.unwrap_or_default()),
            remark(backend, now),
        ]
    });
    let mut rows: Vec<[String; 10]> = std::iter::once(head).chain(figures).collect();
    // Numbers stand below one another by their last digits.
    for column in 2..9 {
        let width = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        let width = width.unwrap_or_default();
        for cell in rows.iter_mut().filter_map(|row| row.get_mut(column)) {
            *cell = format!("{cell:>width$}");
        }
    }
    table("  ", &rows)
}

/// Whether a backend is up, or what it is instead.
fn state(backend: &BackendStatus) -> &str {
    match backend.state.as_str() {
        // An older daemon tells none.
        "" if backend.up => "up",
        "" => "down",
        state => state,
    }
}

/// What there is to say of a backend beside that: `for 12 s: 5 failures in a row; failed by reset 7`.
fn remark(backend: &BackendStatus, now: u64) -> String {
    let since = backend.since.map(|since| format!("for {}", span(now.saturating_sub(since))));
    let why: Vec<String> = since.into_iter().chain(backend.reason.clone()).collect();
    let waiting = match backend.waiting {
        0 => None,
        1 => Some("1 request waits for a connection".to_owned()),
        many => Some(format!("{} requests wait for a connection", count(u64::try_from(many).unwrap_or(u64::MAX)))),
    };
    let causes = backend.failures.iter().filter(|(_, failed)| **failed > 0);
    let causes: Vec<String> = causes.map(|(cause, failed)| format!("{cause} {}", count(*failed))).collect();
    let failed = (!causes.is_empty()).then(|| format!("failed by {}", causes.join(", ")));
    let why = Some(why.join(": ")).filter(|why| !why.is_empty());
    [why, waiting, failed].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// A certificate: what it is for, how long it lasts, who signed it, and its file.
fn certificate(certificate: &CertificateStatus) -> [String; 4] {
    let left = match certificate.days_left {
        ..=-1 => "has expired".to_owned(),
        1 => "1 day left".to_owned(),
        days => format!("{days} days left"),
    };
    let names = if certificate.names.is_empty() { certificate.subject.clone() } else { certificate.names.join(", ") };
    let (issuer, file) = (&certificate.issuer, certificate.file.display());
    [names, format!("{}, {left}", certificate.key), format!("signed by {issuer}"), file.to_string()]
}

/// How a certificate stands: `valid for 61 d, next one in 31 d`.
fn automatic(one: &AutomaticStatus, now: u64) -> String {
    let mut parts = Vec::new();
    match (one.state.as_str(), one.not_after) {
        ("expired", Some(end)) => parts.push(format!("expired {} ago", span(now.saturating_sub(end)))),
        ("ordering", Some(end)) if end > now => {
            parts.push(format!("valid for {}, another one is being ordered", span(end - now)));
        }
        ("ordering", _) => parts.push("being ordered".to_owned()),
        (state, Some(end)) => parts.push(format!("{state} for {}", span(end.saturating_sub(now)))),
        (state, None) => parts.push(state.to_owned()),
    }
    match one.next {
        Some(next) if next > now => parts.push(format!("next one in {}", span(next - now))),
        Some(_) => parts.push("next one as soon as can be".to_owned()),
        None => {}
    }
    let error = one.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
    format!("{}{error}", parts.join(", "))
}

/// A count with its thousands apart: 1,204.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// Seconds in their two largest units.
pub(super) fn span(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let mut rest = seconds;
    let parts: Vec<String> = units
        .iter()
        .map(|(size, unit)| {
            let many = rest / size;
            rest %= size;
            (many, unit)
        })
        .skip_while(|(many, _)| *many == 0)
        .take(2)
        .filter(|(many, _)| *many > 0)
        .map(|(many, unit)| format!("{many} {unit}"))
        .collect();
    if parts.is_empty() { "0 s".to_owned() } else { parts.join(" ") }
}

/// Microseconds as milliseconds or seconds; `-` for none.
fn micros(micros: u64) -> String {
    match micros {
        0 => "-".to_owned(),
        1..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::protocol::{ListenerStatus, ReloadStatus};

    fn backend(address: &str, state: &str, since: Option<u64>, reason: Option<&str>) -> BackendStatus {
        let (address, state, reason) = (address.to_owned(), state.to_owned(), reason.map(str::to_owned));
        BackendStatus { address, up: state == "up", state, since, reason, ..BackendStatus::default() }
    }

    #[test]
    fn the_page_tells_the_state_in_aligned_lines() {
        let status = Status {
            version: "1.2.3".to_owned(),
            pid: 42,
            phase: "serving".to_owned(),
            predecessor: Some(41),
            predecessor_left: Some(843),
            predecessor_connections: Some(1_012),
            generation: 7,
            config: Some("/etc/doorward/config.env".into()),
            uptime: 11_530,
            workers: 2,
            listeners: vec![ListenerStatus {
                name: "http".to_owned(),
                address: "127.0.0.1:8080".to_owned(),
                passed: true,
            }],
            in_flight: 12,
            requests: 1_234_567,
            retries: 1_007,
            retries_over_budget: 3,
            requests_per_second: 1203.6,
            p99_us: 3_140,
            backends: vec![
                BackendStatus {
                    waiting: 3,
                    in_flight: 12,
                    attempts: 1_204_001,
                    retries: 3,
                    responses: [("2xx".to_owned(), 1_204_000)].into(),
                    response_ms: 9_632_000,
                    ..backend("10.0.0.2:3000", "up", None, None)
                },
                BackendStatus {
                    attempts: 9,
                    responses: [("4xx".to_owned(), 1), ("5xx".to_owned(), 2)].into(),
                    failures: [("connect".to_owned(), 5), ("reset".to_owned(), 1), ("tls".to_owned(), 0)].into(),
                    ..backend("10.0.0.3:3000", "ejected", Some(940), Some("5 failures in a row"))
                },
                backend("app:80", "down", None, Some("no such name")),
                BackendStatus { address: "of an older daemon".to_owned(), up: true, ..BackendStatus::default() },
            ],
            tls: Some(TlsStatus {
                handshakes: 2_000,
                resumed: 1_500,
                waiting: 1,
                failed: [("tls_alert".to_owned(), 3)].into(),
                ..TlsStatus::default()
            }),
            failing_open: vec!["api".to_owned()],
            certificates: vec![CertificateStatus {
                subject: "CN=a".to_owned(),
                names: vec!["a.test".to_owned(), "*.a.test".to_owned()],
                issuer: "CN=ca".to_owned(),
                key: "P-256".to_owned(),
                not_after: 90_000,
                days_left: 1,
                file: "/tls/a.crt".into(),
            }],
            backend_certificates: vec![CertificateStatus {
                subject: "CN=door".to_owned(),
                issuer: "CN=ca".to_owned(),
                key: "P-256".to_owned(),
                days_left: 30,
                file: "/tls/door.crt".into(),
                ..CertificateStatus::default()
            }],
            reload: Some(ReloadStatus {
                ok: false,
                at: 940,
                error: Some("a.env:1: bad\n1 problem in 1 file".to_owned()),
            }),
            ..Status::default()
        };
        assert_eq!(
            page(&status, 1000),
            "doorward 1.2.3\n\
             \x20 phase    serving for 3 h 12 min, pid 42\n\
             \x20 config   /etc/doorward/config.env, generation 7\n\
             \x20 upgrade  taken over from pid 41, which finishes 1,012 connections within 14 min 3 s\n\
             \x20 reload   refused 1 min ago, for this reason:\n\
             \x20          a.env:1: bad\n\
             \x20          1 problem in 1 file\n\
             \x20 now      12 in flight, 0 queued\n\
             \x20 rate     1,204 requests/s, p50 -, p99 3.1 ms\n\
             \x20 total    1,234,567 requests, 0 connections open\n\
             \x20 retries  1,007 made, 3 beyond the budget\n\
             \x20 workers  2\n\
             \x20 log      0 records dropped\n\
             \x20 tls      2,000 handshakes, 1,500 resumed, 0 under way, 1 waiting, 3 failed (tls_alert 3)\n\
             \nlisteners\n\
             \x20 http  127.0.0.1:8080  passed by systemd\n\
             \nbackends\n\
             \x20                              now   attempts  retries  4xx  5xx  failed    time\n\
             \x20 10.0.0.2:3000       up        12  1,204,001        3    0    0       0  8.0 ms  3 requests wait for a connection\n\
             \x20 10.0.0.3:3000       ejected    0          9        0    1    2       6       -  for 1 min: 5 failures in a row; failed by connect 5, reset 1\n\
             \x20 app:80              down       0          0        0    0    0       0       -  no such name\n\
             \x20 of an older daemon  up         0          0        0    0    0       0       -\n\
             \ncertificates\n\
             \x20 a.test, *.a.test  P-256, 1 day left  signed by CN=ca  /tls/a.crt\n\
             \ncertificates that backends are shown\n\
             \x20 CN=door  P-256, 30 days left  signed by CN=ca  /tls/door.crt\n\
             \nno backend is left; all that take connections are used on: api"
        );
    }

    #[test]
    fn spans_and_counts_read_well() {
        for (seconds, shown) in [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3_601, "1 h"), (90_061, "1 d 1 h")] {
            assert_eq!(span(seconds), shown);
        }
        for (number, shown) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), shown);
        }
        assert_eq!(micros(2_500_000), "2.5 s");
    }
}

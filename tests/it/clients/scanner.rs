//! testssl.sh, which tries the faults that TLS servers are known for.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{Foreign, NAME, daemon};

/// Longer than it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// What it finds of the certificate that the test made and of itself, not of the server. Its look at tickets races: it
/// hangs up as soon as the handshake is done, often before TLS 1.3 brings the first ticket (RFC 8446, section 4.6.1),
/// and then takes the empty file that it kept for a failed connection. Resumption has tests of its own.
const ELSEWHERE: &[&str] = &[
    "cert_revocation",
    "DNS_CAArecord",
    "cert_validityPeriod",
    "certificate_transparency",
    "engine_problem",
    "sessionresumption_ticket",
];

#[test]
#[ignore = "needs testssl.sh, and minutes: run by tests/run"]
fn the_scanner_finds_nothing_that_costs_the_best_grade() {
    let (daemon, address) = daemon("HSTS=365d\n");
    let report = daemon.folder.path().join("report.json");
    let said = Foreign::start(
        Command::new("testssl")
            .args(["--quiet", "--color", "0", "--warnings", "off", "--nodns", "none", "--ip", "127.0.0.1"])
            .arg("--add-ca")
            .arg(daemon.folder.path().join("ca.pem"))
            .arg("--jsonfile")
            .arg(&report)
            .arg(format!("{NAME}:{}", address.port())),
    )
    .finish(PATIENCE);
    let report: Value = serde_json::from_str(&fs::read_to_string(report).unwrap()).unwrap();
    let findings = report.as_array().unwrap();
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let bad: Vec<String> = findings
        .iter()
        .filter(|finding| !["OK", "INFO"].contains(&text(finding, "severity").as_str()))
        .filter(|finding| !ELSEWHERE.iter().any(|id| text(finding, "id").starts_with(id)))
        .map(|finding| format!("{} {}: {}", text(finding, "severity"), text(finding, "id"), text(finding, "finding")))
        .collect();
    assert!(bad.is_empty(), "{bad:#?}\n{said}");
    // That it looked at all, and at the right server.
    let found =
        |id: &str, part: &str| findings.iter().any(|f| text(f, "id") == id && text(f, "finding").contains(part));
    assert!(found("TLS1_3", "offered") && found("TLS1_2", "offered"), "{findings:#?}");
    assert!(found("TLS1", "not offered") && found("TLS1_1", "not offered") && found("SSLv3", "not offered"), "{said}");
    assert!(found("ALPN_HTTP2", "h2") && found("heartbleed", "not vulnerable"), "{findings:#?}");
    // Newer ones of it also sum up.
    let grade = findings.iter().find(|finding| text(finding, "id") == "overall_grade");
    assert!(grade.is_none_or(|grade| text(grade, "finding").starts_with('A')), "{grade:?}");
}

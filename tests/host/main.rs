//! doorward on real systemd hosts: the package, installed by apt, at work.
//!
//! Each test is one story on a host of its own and runs on every Debian that we
//! support. The tests need root and a built package, so a plain `cargo test`
//! shows them as ignored; `tests/run` runs them.

#![allow(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that goes wrong may stop, and may say so"
)]

mod acme; // Certificates from an ACME server, in the sandbox.
mod activation; // Sockets: who listens, where, and who wakes whom.
mod backend; // A backend whose slow answers end when the test says so.
mod certificates; // Keys from credentials, certbot's hook, renewal under load.
mod crash; // A bad file at start, crashes, a stuck worker, a frozen log.
mod doorward; // The package under test, and what tests ask of an installed one.
mod harness; // The harness itself: it boots, and it leaves nothing behind.
mod host; // A throw-away host.
mod http; // A client that tells failures apart.
mod journal; // Records, events, their explanations, the status line.
mod load; // Clients that count what became of each request.
mod metrics; // A scrape of the installed daemon, and of a stopped one.
mod package; // What apt does, and what it leaves alone.
mod reload; // All or nothing, and the command tells which.
mod sandbox; // What systemd says of the units, and life inside both sandboxes.
mod stop; // The ways to stop, under load.
mod upgrade; // Another process takes over, on demand and with a new version.
mod wait; // Waiting for a condition.

/// Makes a test on each suite of every named function.
///
/// `stories!(boot: fn1, fn2)` boots a bare host for each; `stories!(install: …)`
/// one with the package installed. The function gets the host.
macro_rules! stories {
    ($how:ident: $($name:ident),+ $(,)?) => {
        mod debian12 {
            $(#[test]
            #[ignore = "needs root and a built package: tests/run"]
            fn $name() -> anyhow::Result<()> {
                crate::doorward::$how(crate::host::Suite::Bookworm, super::$name)
            })+
        }
        mod debian13 {
            $(#[test]
            #[ignore = "needs root and a built package: tests/run"]
            fn $name() -> anyhow::Result<()> {
                crate::doorward::$how(crate::host::Suite::Trixie, super::$name)
            })+
        }
    };
}
use stories;

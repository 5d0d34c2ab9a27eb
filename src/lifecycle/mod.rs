//! The daemon's life: start, serve, reload, drain, end.
//!
//! Everything that happens to the daemon as a whole comes in as one `Control`
//! value and is dealt with in one loop (`control`), on one thread. The workers
//! never stop for it: a reload hands them a new generation, a drain asks them to
//! finish. What systemd is told lives in `notify`, and only there.
//!
//! | event | module |
//! | --- | --- |
//! | start until READY=1 | `start`, `doors` |
//! | SIGHUP, `doorward reload` | `reload` |
//! | SIGTERM, SIGINT | `drain` |
//! | SIGUSR2, `doorward upgrade` | `upgrade` |
//! | a name to look up, and what it led to | `resolver`, `lookup`, `names` |
//! | a certificate that is renewed, or expires | `certificates` |
//! | a backend to check | `checker` |
//! | a backend that falls or returns | `backends` |
//! | a certificate that is due | `acme` |
//! | keys of session tickets that are due | `tickets` |
//! | a scrape of metrics | `metrics` |
//! | a thread that stands still | `watchdog` |
//! | `systemctl status`, `doorward status` | `status` |

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook_tokio::Signals;

use crate::config;
use crate::transport::listeners;
use upgrade::Program;

mod acme;
mod backends;
mod certificates;
mod checker;
mod control;
mod doors;
mod drain;
mod lookup;
mod metrics;
mod names;
mod notify;
mod reload;
mod resolver;
mod start;
mod status;
mod tickets;
mod upgrade;
mod watchdog;

pub use metrics::markdown as metrics_table;
pub use upgrade::launch;

/// How long the end of the process waits for the log to be written.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// Threads for what blocks: the host's own resolver, and beside that, so that neither waits
/// for it, reading the configuration, the files of lookups and those of certificates, and what
/// ACME keeps and looks up. They begin as they are needed.
const BLOCKING_THREADS: usize = lookup::HOST_AT_ONCE + 5;

/// What `doorward run` needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the configuration is, with the environment of the process.
    pub config: config::Request,
}

/// Runs the daemon until it is told to stop.
///
/// Call it before the process has opened descriptors or started threads: those
/// that systemd passed are known by their numbers alone. Exit codes: 0 after a
/// drain (also one that was cut short), 78 when the configuration or a listening
/// socket was refused, 1 when the system lacks something, a worker died, or the process that
/// took over ended while this one still finished what it had.
pub fn run(options: Options) -> ExitCode {
    let passed = listeners::passed(&options.config.environment);
    let program = match Program::here() {
        Ok(program) => program,
        Err(error) => return complain(&format!("can't find out how it was started: {error}")),
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("can't start: {error}")),
    };
    let code = runtime.block_on(live(options.config, program, passed));
    // A lookup that hangs must not hold up the end.
    runtime.shutdown_background();
    code
}

async fn live(
    request: config::Request,
    program: Program,
    passed: Result<listeners::Passed, listeners::ListenError>,
) -> ExitCode {
    // First of all, so that an early SIGHUP does not kill.
    let signals = match Signals::new([SIGHUP, SIGTERM, SIGINT, SIGUSR1, SIGUSR2]) {
        Ok(signals) => signals,
        Err(error) => return complain(&format!("can't handle signals: {error}")),
    };
    let config = config::load(&request);
    let (log, guard) = match start::log(config.as_ref().ok()) {
        Ok(log) => log,
        Err(error) => return complain(&format!("can't start the log: {error}")),
    };
    let parts = start::Parts { request, program, config, signals, log };
    let code = match start::start(parts, passed).await {
        Ok((daemon, notifier)) => daemon.serve(notifier).await,
        Err(code) => code,
    };
    // Lets the answers go out that were given last.
    tokio::task::yield_now().await;
    // What is lost then can't be told: whoever reads the log does not read.
    guard.finish(LOG_PATIENCE);
    code
}

/// Says on stderr what there is no log for.
fn complain(what: &str) -> ExitCode {
    // A closed stderr leaves nobody to tell.
    let _ = writeln!(std::io::stderr(), "doorward: {what}");
    ExitCode::FAILURE
}

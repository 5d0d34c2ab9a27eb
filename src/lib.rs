//! doorward: a reverse proxy that is native to systemd.
//!
//! The floors, from the top; a file uses lower floors and its own folder only:
//!
//! | module | job |
//! | --- | --- |
//! | `cli` | what to do: run, check, explain, status, reload, … |
//! | `lifecycle` | one select loop: start, ready, reload, drain, watchdog |
//! | `proxy` | the way of a request or connection; workers |
//! | `admin` | the admin socket |
//! | `state` | `Generation`: the immutable routes and settings a reload swaps |
//! | `tls` | certificates, and who may use them |
//! | `transport` | listeners from systemd, streams, connections to backends |
//! | `admission` | permits and the queue |
//! | `balance` | endpoints, pools of them, retry policy |
//! | `routing` | host + path + listener → route |
//! | `config` | the key table, files, values |
//! | `telemetry` | the log, events, records, counters |

pub mod admin;
pub mod admission;
pub mod balance;
pub mod cli;
pub mod config;
pub mod lifecycle;
pub mod proxy;
pub mod routing;
pub mod state;
pub mod telemetry;
pub mod tls;
pub mod transport;

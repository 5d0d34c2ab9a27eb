//! What doorward tells: the log, its events, request records, counters.
//!
//! Nothing in here blocks whoever tells something. The log is queued and written
//! by a thread of its own ([`log`]); counters have one writer each ([`counters`]).
//! Names that leave the process and must not change live in two tables: operator
//! events with their message ids ([`events`]) and the reasons for which requests
//! fail ([`reason`]).

mod collector;
pub mod counters;
mod entry;
pub mod events;
mod format;
pub mod histogram;
mod limiter;
pub mod log;
pub mod reason;
mod record;
mod replay;
mod sink;
mod status;
mod text;
mod writer;

pub use counters::{Class, Count, Rates, Snapshot, WorkerCounters};
pub use format::LogFormat;
pub use limiter::Limiter;
pub use log::{Guard, Log, start};
pub use reason::{Reason, Side};
pub use record::{Kind, Peer, Record, path_only};
pub use status::{Standing, status_line};
pub use text::Text;

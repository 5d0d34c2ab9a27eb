//! What bytes travel on: listeners, streams, the buffers they fill, TLS, deadlines, dialling, and
//! splicing.

pub mod buffer;
pub mod clock;
pub mod dial;
pub mod dns;
pub mod listeners;
pub mod splice;
pub mod stream;
pub mod tls;
mod watch;

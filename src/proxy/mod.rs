//! The way of a request or connection, from accepting it to its record.
//!
//! ```text
//! accept → (TLS handshake) → connection → head → story (route → admit → attempts → exchange) → record
//!                               └ tcp (MODE=tcp) → tunnel → record
//! ```
//!
//! [`worker`] is a thread that owns its connections, [`accept`] takes them in, [`accept_tls`]
//! makes TLS of them where it is spoken, [`connection`] reads requests off one, [`story`] tells what becomes of each, and
//! `attempts` has backends asked until one answers, and [`verdict`] says what that tells
//! of them; [`probe`] is a health check. Connections to backends are [`upstream`]s, and
//! [`idle`] between requests. What is HTTP/1 on the wire is in [`http1`] alone, and what is
//! HTTP/2 in [`http2`].

pub mod accept;
pub mod accept_tls;
pub mod admit;
mod affinity;
mod answer;
mod attempt;
mod attempts;
pub mod client;
pub mod connection;
mod echo;
pub mod exchange;
pub mod forwarded;
pub mod grpc;
mod handshake;
pub mod head;
pub mod http1;
pub mod http2;
pub mod idle;
mod kept;
mod mutual;
pub mod origin;
pub mod pace;
pub mod probe;
pub mod relay;
pub mod rewrite;
mod slot;
pub mod story;
pub mod tcp;
pub mod tunnel;
pub mod upstream;
pub mod verdict;
pub mod worker;
pub mod workers;

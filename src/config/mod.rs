//! Configuration: the key table, the files, and the values they give.
//!
//! One vocabulary on two levels. `config.env` sets the daemon and the defaults of
//! every route; a file of `routes.d/` describes one route with the same keys.
//! For a key of the daemon or of the default route the process environment beats
//! `config.env`, which beats the default. For a route its own file beats all of
//! them: the environment stands in for `config.env`, it does not reach past it.
//!
//! The daemon never meets an unchecked value: [`load`] gives either a whole
//! [`Config`] or every problem of every file at once. Nothing is written into the
//! process environment, and nothing here opens a socket or resolves a name.

mod acme;
mod addresses;
mod backend_tls;
mod balance;
mod check;
mod files;
mod headers;
mod health;
mod https;
mod key;
mod keys;
mod load;
mod normal;
mod patterns;
mod peers;
mod problems;
mod redirect;
mod rewrites;
mod source;
mod tls;
mod values;
mod words;

pub use acme::AcmeChallenge;
pub use addresses::{BackendAddress, ListenAddress, Site, Target, UNIX_PATH_LIMIT, WEIGHT_LIMIT};
pub use backend_tls::{BackendTls, server_name};
pub use balance::{Balance, HashKey};
pub use files::FileSource;
pub use headers::{Header, same_name};
pub use health::HealthCheck;
pub use key::{Key, Scope, nearest};
pub use keys::{Daemon, KEYS, Matcher, RouteSettings};
pub use load::{Config, DEFAULT_ROUTE, Request, RouteConfig, Text, load};
pub use normal::{SentPath, normal_host, strip_prefix};
pub use patterns::{HostPattern, PathPattern, RESERVED_LISTENERS};
pub use peers::PeerPattern;
pub use problems::{Origin, Problem, Problems, Setting};
pub use redirect::{Piece, Redirect};
pub use rewrites::BackendHost;
pub use source::{FILE_LIMIT, read, reason};
pub use tls::{CLIENT_FIELDS, Certificates, ClientFields, ClientTrust, ClientTrusts, UnknownName};
pub use values::{Auto, Wrong};
pub use words::{AccessLog, BackendProtocol, EjectOn, Forwarding, LogFormat, LogLevel, Mode, RetryOn};

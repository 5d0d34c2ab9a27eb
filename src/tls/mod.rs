//! TLS: the certificates that clients are shown, and who may use them.
//!
//! What a configuration says of certificates is read, checked and made a [`Doors`] of when
//! it is loaded, away from the workers' threads; they only look up what fits a ClientHello.
//! Nothing here knows connections: the TLS protocol is rustls', and what carries it is
//! `transport`'s.
//!
//! | what | module |
//! | --- | --- |
//! | what a ClientHello is answered with | `doors` |
//! | from a configuration to doors, and to them anew | `load` |
//! | server name → certificates | `names` |
//! | from the keys of a configuration to files | `sources` |
//! | a certificate with its key, and whether they are fit for use | `pair` |
//! | what a certificate says | `facts` |
//! | what a PEM file holds | `pem` |
//! | whether files have changed | `watch` |
//! | whether clients are asked for certificates | `policies` |
//! | who a client is by its certificate | `identity` |
//! | OCSP responses | `ocsp` |
//! | what an ACME server is shown | `challenges` |
//! | what obtaining certificates takes | `acme` |
//! | with what trust and identity backends are spoken to | `clients` |
//! | by whom these are verified | `trust` |
//! | what sessions are resumed by | `tickets` |
//! | suites and groups | `crypto` |

pub mod acme;
pub mod challenges;
mod clients;
mod crypto;
mod doors;
mod facts;
#[cfg(test)]
mod fixture;
mod identity;
mod load;
mod names;
mod ocsp;
mod pair;
mod pem;
mod policies;
mod sources;
pub mod tickets;
mod trust;
mod watch;

pub use clients::Clients;
pub use crypto::provider;
pub use doors::Doors;
pub use facts::Facts;
pub use identity::Identity;
pub use load::Renewal;
pub use pair::Pair;
pub use tickets::TicketKeys;
pub use watch::Watch;

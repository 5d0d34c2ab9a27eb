//! What must hold for any bytes: the fuzzer's targets on its committed corpus, and
//! properties of how bytes fall into reads.

#[cfg(test)]
#[path = "../it/traffic/smuggling/case.rs"]
#[expect(dead_code, reason = "only what is sent is used here")]
mod case; // the notation of the tables, whose rows are inputs too
#[cfg(test)]
mod corpus; // every target on every file, on parts of it, and with bits of it turned over
#[cfg(test)]
mod inputs; // where the inputs come from
#[cfg(test)]
mod model; // what a proxy must make of a head
#[cfg(test)]
#[expect(dead_code, reason = "other proofs use the rest of it")]
mod reference; // a second reader of HTTP/1.1, which shares nothing with the daemon's own
#[cfg(test)]
mod splits; // any split of the bytes over reads gives the same result
#[cfg(test)]
mod targets; // what must hold, shared with the fuzzer

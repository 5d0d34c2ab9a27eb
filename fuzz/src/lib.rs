//! The targets of the fuzzer: the same code that the daemon's tests run on the corpus.

#[path = "../../tests/proof/model.rs"]
pub mod model;
#[path = "../../tests/proof/reference.rs"]
pub mod reference;
#[path = "../../tests/proof/targets.rs"]
pub mod targets;

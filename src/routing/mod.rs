//! Which route a request or a connection takes, and what that changes of it.

mod rewrites;
mod table;

pub use rewrites::{Answer, FieldEdits, Rewrites, location};
pub use table::{Hit, Rule, Table};

//! Which route a request or a connection takes.

mod table;

pub use table::{Hit, Rule, Table};

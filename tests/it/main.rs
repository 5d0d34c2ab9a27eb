//! The binary as its users meet it, one module for each side of it.

#[cfg(test)]
mod config; // check, explain, generated documents, precedence of settings
#[cfg(test)]
mod tidy; // floors, lengths, documents that must stay true

//! Rewrite: what a backend is sent in place of what the client sent.
//!
//! Nearly always nothing, which costs a look at a few empty options. The encoder of each
//! protocol version asks here, so that all of them send the same on.

use super::head::RequestHead;

/// What goes on in place of what came, for one request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rewrite<'a> {
    /// The path, without the query, which is always the client's.
    pub path: Option<&'a [u8]>,
}

impl<'a> Rewrite<'a> {
    /// Path and query as they go on, in this order; an empty path stands for what each
    /// protocol writes in its place.
    #[must_use]
    pub fn target(&self, head: &'a RequestHead) -> (&'a [u8], &'a [u8]) {
        let target = head.target();
        match self.path {
            None => (target, b""),
            Some(path) => {
                let query = memchr::memchr(b'?', target).and_then(|at| target.get(at..));
                (path, query.unwrap_or_default())
            }
        }
    }
}

//! Rewrite: what a backend is sent in place of what the client sent.
//!
//! Nearly always nothing, which costs a look at a few empty options. The encoder of each
//! protocol version asks here, so that all of them send the same on.

use super::forwarded::Forwarded;
use super::head::RequestHead;
use crate::config::{BackendHost, Redirect, SentPath};
use crate::routing::{FieldEdits, Rewrites, location};
use crate::telemetry::Reason;

/// What goes on in place of what came, for one request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rewrite<'a> {
    /// The path, without the query, which is always the client's.
    path: Option<&'a [u8]>,
    /// Whom the backend is asked for, unless it is whom the client asks for.
    host: Option<&'a BackendHost>,
    /// Fields that are set or removed.
    pub fields: Option<&'a FieldEdits>,
    /// Fields that tell of the client's certificate, as lines of HTTP/1 with their ends.
    pub certificate: [&'a [u8]; 2],
}

impl<'a> Rewrite<'a> {
    /// What goes on of a request with this path on a route with these rewrites.
    #[must_use]
    pub fn of(path: &'a SentPath<'_>, rewrites: Option<&'a Rewrites>) -> Self {
        match rewrites {
            None => Self { path: path.changed(), ..Self::default() },
            Some(rewrites) => Self {
                path: rewrites.path(path),
                host: Some(&rewrites.host).filter(|host| **host != BackendHost::Client),
                fields: rewrites.request.as_ref(),
                certificate: [&[], &[]],
            },
        }
    }

    /// The same with these fields of the client's certificate.
    #[must_use]
    pub fn certified(self, certificate: [&'a [u8]; 2]) -> Self {
        Self { certificate, ..self }
    }

    /// Path and query as they go on, in this order; an empty path stands for what each
    /// protocol writes in its place.
    #[must_use]
    pub fn target(&self, head: &'a RequestHead) -> (&'a [u8], &'a [u8]) {
        match self.path {
            None => (head.target(), b""),
            Some(path) => {
                let target = head.target();
                let query = memchr::memchr(b'?', target).and_then(|at| target.get(at..));
                (path, query.unwrap_or_default())
            }
        }
    }

    /// The authority that the backend is asked for.
    #[must_use]
    pub fn authority(&self, head: &'a RequestHead, forwarded: &Forwarded<'a>) -> &'a [u8] {
        match self.host {
            None | Some(BackendHost::Client) => head.authority().unwrap_or(forwarded.host.as_bytes()),
            Some(BackendHost::Backend) => forwarded.host.as_bytes(),
            Some(BackendHost::Named(host)) => host.as_bytes(),
        }
    }
}

/// Where a request is redirected to.
///
/// # Errors
/// [`Reason::BadRequest`] when the target wants the host that was asked for, and that is
/// none which a URL could have.
pub fn redirected(
    redirect: &Redirect,
    rewrites: &Rewrites,
    head: &RequestHead,
    path: &SentPath<'_>,
) -> Result<String, Reason> {
    let target = head.target();
    let query = memchr::memchr(b'?', target).and_then(|at| target.get(at + 1..));
    let path = rewrites.path(path).unwrap_or(path.bytes());
    location(redirect, head.authority(), path, query).ok_or(Reason::BadRequest)
}

/// Where a request is redirected to with the path that the client sent, as it is.
///
/// # Errors
/// [`Reason::BadRequest`] when no host was asked for, or none which a URL could have.
pub fn unchanged(redirect: &Redirect, head: &RequestHead) -> Result<String, Reason> {
    let target = head.target();
    let query = memchr::memchr(b'?', target).and_then(|at| target.get(at + 1..));
    location(redirect, head.authority(), head.path(), query).ok_or(Reason::BadRequest)
}

#[cfg(test)]
mod tests {
    use super::super::forwarded::tests::head;
    use super::{Forwarded, Rewrite};
    use crate::config::{BackendHost, Forwarding};

    #[test]
    fn a_backend_is_asked_for_by_its_own_name_where_the_route_says_so() {
        let head = head("");
        let (kind, host) = (Forwarding::XForwarded, "app.test:8080");
        let forwarded = Forwarded { peer: b"unix:", scheme: "http", host, request_id: b"x", kind, trusted: false };
        for (host, asked) in [
            (BackendHost::Backend, "app.test:8080"),
            (BackendHost::Client, "door.test:81"),
            (BackendHost::Named("other.test".into()), "other.test"),
        ] {
            let rewrite = Rewrite { host: Some(&host), ..Rewrite::default() };
            assert_eq!(rewrite.authority(&head, &forwarded), asked.as_bytes());
        }
        assert_eq!(Rewrite::default().authority(&head, &forwarded), b"door.test:81");
    }
}

//! Answer: what doorward answers by itself, and how a request that failed ends.
//!
//! What a route sets of response fields comes beside those that such an answer has by
//! itself, and never in their place: they are about this answer, and nobody is to keep a
//! 502 for a day because a route lets its pages be kept.

use std::future::poll_fn;
use std::time::Duration;

use super::client::{Client, Own};
use super::grpc;
use super::head::RequestHead;
use super::http1::encode::phrase;
use super::rewrite::{redirected, unchanged};
use super::story::{After, Course};
use super::worker::{Worker, response_cut};
use crate::config::{Header, SentPath, same_name};
use crate::routing::{self, FieldEdits, Rewrites};
use crate::telemetry::{Reason, Side, Text};
use crate::transport::clock::Timer;

/// Seconds after which a client that was turned away may come again.
const RETRY_AFTER: &str = "1";

/// The methods that doorward passes on, as `Allow` states them where it answers itself. It
/// also passes on methods that it has never heard of.
const ALLOW: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// What answers of our own to one request need to know.
pub(super) struct Ours<'a> {
    pub worker: &'a Worker,
    pub head: &'a RequestHead,
    pub timer: &'a Timer,
    /// What the route changes of responses.
    pub edits: Option<&'a FieldEdits>,
    pub request_id: &'a Text<64>,
}

impl Ours<'_> {
    /// Tells a client that asked no further than to us what may be asked.
    pub async fn allow<C: Client>(&self, client: &mut C, course: &mut Course<'_>) -> After {
        course.status = 200;
        let last = self.is_last(client);
        let fields = vec![("Allow", ALLOW), ("X-Request-Id", self.request_id.as_str())];
        queue(client, 200, fields, "", self.edits, last);
        sent(client, last, self.timer).await
    }

    /// Shows an ACME server that the name leads here.
    ///
    /// Source: RFC 8555 §8.3.
    pub async fn prove<C: Client>(&self, client: &mut C, proof: Option<&str>, course: &mut Course<'_>) -> After {
        course.status = 200;
        let last = self.is_last(client);
        let fields = vec![
            ("Content-Type", "application/octet-stream"),
            ("Cache-Control", "no-store"),
            ("X-Request-Id", self.request_id.as_str()),
        ];
        queue(client, 200, fields, proof.unwrap_or_default(), None, last);
        sent(client, last, self.timer).await
    }

    /// Answers a request on a route that asks no backend.
    pub async fn alone<C: Client>(
        &self,
        client: &mut C,
        rewrites: &Rewrites,
        path: &SentPath<'_>,
        course: &mut Course<'_>,
    ) -> Result<After, Reason> {
        let Some(routing::Answer::Redirect(redirect)) = &rewrites.answer else { return Err(Reason::NoRoute) };
        let location = redirected(redirect, rewrites, self.head, path)?;
        course.status = redirect.status;
        let last = self.is_last(client);
        let fields = vec![("Location", location.as_str()), ("X-Request-Id", self.request_id.as_str())];
        queue(client, redirect.status, fields, "", self.edits, last);
        Ok(sent(client, last, self.timer).await)
    }

    /// Sends a client that came without TLS to the same URL by TLS.
    pub async fn to_https<C: Client>(
        &self,
        client: &mut C,
        rewrites: &Rewrites,
        course: &mut Course<'_>,
    ) -> Result<After, Reason> {
        let redirect = rewrites.https.as_ref().ok_or(Reason::Internal)?;
        let location = unchanged(redirect, self.head)?;
        course.status = redirect.status;
        let last = self.is_last(client);
        let fields = vec![("Location", location.as_str()), ("X-Request-Id", self.request_id.as_str())];
        queue(client, redirect.status, fields, "", self.edits, last);
        Ok(sent(client, last, self.timer).await)
    }

    /// Ends a request that failed: with an answer of our own, or, where an answer has begun
    /// or nobody reads it, by cutting the connection.
    pub async fn refuse<C: Client>(&self, client: &mut C, reason: Reason, course: &mut Course<'_>) -> After {
        // A head that came together with the failure of its body was only queued.
        let begun = course.status != 0 && !(reason.side() == Side::Backend && client.retract());
        if begun {
            // The answer had begun and is not whole: it must not be taken for whole.
            self.worker.counters().cut.add(1);
            client.abort();
            if reason.side() == Side::Backend {
                response_cut(course.backend.map_or("", |backend| backend), reason);
            }
            return After::Close;
        }
        course.status = reason.status();
        if reason == Reason::ClientLeft {
            return After::Close;
        }
        client.forgo();
        let last = self.is_last(client);
        if grpc::is_call(self.head) {
            self.refuse_call(client, reason, last);
        } else {
            refusal(client, reason, Some(self.request_id.as_str()), self.edits, last);
        }
        sent(client, last, self.timer).await
    }

    /// Queues what a reason is to a client of gRPC: an answer that is all trailers, which in
    /// HTTP/2 is a head that ends its stream.
    fn refuse_call<C: Client>(&self, client: &mut C, reason: Reason, last: bool) {
        let proxy_status = proxy_status(reason);
        let fields = vec![
            ("Content-Type", grpc::CONTENT_TYPE),
            ("Grpc-Status", grpc::code(reason)),
            ("Grpc-Message", reason.as_str()),
            ("Proxy-Status", proxy_status.as_str()),
            ("X-Request-Id", self.request_id.as_str()),
        ];
        queue(client, 200, fields, "", self.edits, last);
    }

    /// Whether an answer that is given now must be the last on its connection.
    fn is_last<C: Client>(&self, client: &C) -> bool {
        self.worker.is_draining() || !client.is_read() || client.is_old(self.timer.clock().millis())
    }
}

/// Queues the answer that a reason stands for. What never became a request has no id.
pub(super) fn refusal<C: Client>(
    client: &mut C,
    reason: Reason,
    request_id: Option<&str>,
    edits: Option<&FieldEdits>,
    last: bool,
) {
    let status = reason.status();
    let proxy_status = proxy_status(reason);
    let mut fields = vec![
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Cache-Control", "no-store"),
        ("Proxy-Status", proxy_status.as_str()),
    ];
    if status == 503 {
        fields.push(("Retry-After", RETRY_AFTER));
    }
    if status == 405 {
        fields.push(("Allow", ALLOW));
    }
    if let Some(request_id) = request_id {
        fields.push(("X-Request-Id", request_id));
    }
    let hint = match reason {
        Reason::TlsPlainHttp => "This port takes HTTPS only: ask for https:// instead of http://.\n",
        _ => "",
    };
    let body = format!("{status} {}\n{}\n{hint}", phrase(status), reason.as_str());
    queue(client, status, fields, &body, edits, last);
}

/// The value of `Proxy-Status` (RFC 9209).
fn proxy_status(reason: Reason) -> String {
    format!("doorward; error={}; details=\"{}\"", reason.proxy_status(), reason.as_str())
}

/// Queues an answer, with what the route sets.
fn queue<'a, C: Client>(
    client: &mut C,
    status: u16,
    mut fields: Vec<(&'a str, &'a str)>,
    body: &str,
    edits: Option<&'a FieldEdits>,
    last: bool,
) {
    let set = edits.map(FieldEdits::set).unwrap_or_default();
    for Header { name, value } in set.iter().chain(edits.and_then(FieldEdits::missing)) {
        if !fields.iter().any(|(known, _)| same_name(known.as_bytes(), name.as_bytes())) {
            fields.push((name, value));
        }
    }
    client.answer_own(&Own { status, fields: &fields, body: body.as_bytes() }, last);
}

/// Sends an answer that is queued.
async fn sent<C: Client>(client: &mut C, last: bool, timer: &Timer) -> After {
    // The answer is a few hundred bytes; a client that takes not even these is let go.
    let sent = timer.within(Some(Duration::from_secs(5)), poll_fn(|cx| client.poll_finish(cx))).await;
    match sent {
        Some(Ok(())) if last => After::Linger,
        Some(Ok(())) => After::GoOn,
        Some(Err(_)) | None => After::Close,
    }
}

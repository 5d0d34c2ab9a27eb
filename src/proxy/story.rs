//! The story of a request, from its head to its record.
//!
//! ```text
//! route → admit → attempt (pick, connect, exchange) → again? → answer → record
//! ```
//!
//! What few requests come to (a line, a dial, a tunnel, an answer of our own) has an
//! allocation of its own, so that the rest is small.
//!
//! It is told once for every protocol: the client is any [`Client`], the backend any
//! [`Upstream`]. What a station decides is in that station's module; here is only the
//! order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admit::admit;
use super::affinity;
use super::answer::Ours;
use super::attempts::{Asked, Connected, left};
use super::client::Client;
use super::grpc;
use super::head::{Method, RequestHead, Version};
use super::mutual;
use super::origin::Origin;
use super::rewrite::Rewrite;
use super::tunnel::{self, Patience};
use super::worker::Worker;
use crate::config::{AccessLog, BackendProtocol, Forwarding, SentPath};
use crate::routing::FieldEdits;
use crate::state::Route;
use crate::telemetry::Reason;
use crate::telemetry::Text;
use crate::telemetry::{Kind, Peer, Record};
use crate::tls::Identity;
use crate::transport::clock::Timer;
use crate::transport::listeners;

/// Where a request came from.
#[derive(Debug, Clone)]
pub struct Source {
    /// The client's address.
    pub peer: Peer,
    /// The same as text, as it goes to backends.
    pub address: Text<48>,
    /// The listener's name.
    pub listener: Arc<str>,
    /// Who the client is by its certificate, where clients are asked for one.
    pub identity: Option<Arc<Identity>>,
}

impl Source {
    /// How the client reached us, as a URI says it.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.is_secure() { "https" } else { "http" }
    }

    /// Whether it came by TLS.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        &*self.listener == listeners::HTTPS
    }
}

/// What is to become of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It may serve another request, if the protocol agrees.
    GoOn,
    /// It is over; what the client still sends is read for a while, so that it can read
    /// its answer.
    Linger,
    /// It is over, and there is nothing left to say.
    Close,
}

/// What a request has come to so far; it becomes the record.
#[derive(Debug, Default)]
pub(super) struct Course<'a> {
    pub status: u16,
    pub attempts: u8,
    pub backend: Option<&'a Arc<str>>,
    pub queue: Duration,
    pub bytes_in: u64,
    pub tunnel: bool,
    pub reason: Option<Reason>,
}

/// Serves one request. The connection's `timer` is free for its deadlines.
pub async fn story<C: Client>(
    worker: &Worker,
    source: &Source,
    client: &mut C,
    head: &RequestHead,
    timer: &Timer,
) -> After {
    let started = Instant::now();
    let generation = worker.generation();
    let request_id = request_id(head);
    let path = SentPath::of(head.path());
    let mut course = Course::default();
    let counters = worker.counters();
    counters.in_flight.add(1);

    let route = generation.route(head.authority(), &path, &source.listener);
    let whose = route.or(generation.routes().last().map(|last| &**last));
    let kind = whose.map_or(Forwarding::Off, |route| route.settings.forwarded);
    let origin = Origin::of(source.peer, &generation.config.daemon.trusted_proxies, kind, &head.fields);
    let secure = route.is_some_and(|route| route.rewrites.is_some())
        && (source.is_secure() || origin.came_by_tls(kind, &head.fields));
    let edits = route.and_then(|route| route.response_edits(secure));
    let ours = Ours { worker, head, timer, edits, request_id: &request_id };
    let proof = proof(worker, head);
    let to_https =
        route.and_then(|route| route.rewrites.as_deref()).filter(|rewrites| rewrites.https.is_some() && !secure);
    let admitted = mutual::admit(&generation, source, head, route, to_https.is_some());
    let outcome = match route {
        _ if proof.is_some() => Ok(Box::pin(ours.prove(client, proof.as_deref(), &mut course)).await),
        _ if admitted.is_err() => admitted.map(|()| After::GoOn),
        None => Err(Reason::NoRoute),
        Some(_) if head.method == Method::Trace => Err(Reason::MethodRefused),
        Some(_) if head.max_forwards == Some(0) => Ok(Box::pin(ours.allow(client, &mut course)).await),
        Some(Route { rewrites: Some(rewrites), .. }) if to_https.is_some() => {
            Box::pin(ours.to_https(client, rewrites, &mut course)).await
        }
        Some(Route { rewrites: Some(rewrites), .. }) if rewrites.answer.is_some() => {
            Box::pin(ours.alone(client, rewrites, &path, &mut course)).await
        }
        Some(route) => {
            let trusted = origin.trusted;
            let rewrite = Rewrite::of(&path, route.rewrites.as_deref()).certified(mutual::lines(source, route));
            let affinity = affinity::of(route, &origin.client, head);
            let request = Asked {
                worker,
                source,
                head,
                timer,
                route,
                rewrite,
                edits,
                request_id: &request_id,
                trusted,
                affinity,
            };
            request.serve(client, &mut course).await
        }
    };
    let after = match outcome {
        Ok(after) => after,
        Err(reason) => {
            course.reason = Some(reason);
            Box::pin(ours.refuse(client, reason, &mut course)).await
        }
    };

    let duration = started.elapsed();
    counters.in_flight.sub(1);
    counters.bytes_in.add(course.bytes_in);
    counters.bytes_out.add(client.bytes_out());
    counters.ended(course.status, micros(duration), course.reason);
    let wanted = match route.map_or(AccessLog::Errors, |route| route.settings.access_log) {
        AccessLog::On => true,
        AccessLog::Off => false,
        AccessLog::Errors => course.reason.is_some() || course.status >= 500,
    };
    if wanted {
        worker.log().access(Record {
            kind: if course.tunnel { Kind::Tunnel } else { Kind::Request },
            client: origin.client,
            listener: Arc::clone(&source.listener),
            method: Text::new(head.method_name()),
            host: Text::new(head.authority().unwrap_or_default()),
            path: Text::new(head.path()),
            version: head.version.number(),
            status: course.status,
            backend: course.backend.map(Arc::clone),
            route: route.map_or_else(|| Arc::from(""), |route| Arc::clone(&route.name)),
            attempts: course.attempts,
            duration_us: micros(duration),
            queue_us: micros(course.queue),
            bytes_in: course.bytes_in,
            bytes_out: client.bytes_out(),
            reason: course.reason,
            request_id,
        });
    }
    after
}

impl<'a> Asked<'a> {
    async fn serve<C: Client>(&self, client: &mut C, course: &mut Course<'a>) -> Result<After, Reason> {
        // What is asked for in place of HTTP/1.1 there is none of in HTTP/2 (RFC 9113 §8.6).
        if self.head.upgrade && self.route.settings.backend_protocol == BackendProtocol::H2 {
            return Err(Reason::UpgradeUnsupported);
        }
        let mut deadline = self.until(self.route.settings.request_timeout);
        if self.head.version == Version::Http2 && grpc::is_call(self.head) {
            if self.route.settings.backend_protocol == BackendProtocol::Http1 {
                return Err(Reason::GrpcUnsupported);
            }
            // Its client gives up then, and so does the backend; nobody else need wait longer.
            deadline = deadline.min(self.until(grpc::timeout(self.head)));
        }
        for name in self.rewrite.fields.into_iter().flat_map(FieldEdits::dropped) {
            client.withhold(name.as_bytes());
        }
        let permit = admit(self.worker, self.timer, left(client), &mut course.queue).await?;
        client.hold(self.route.settings.retry_body_limit);
        let mut kept = None;
        let (upstream, switched) = match self.attempts(client, course, deadline, &mut kept).await {
            Ok(answered) => answered,
            Err(reason) => return Box::pin(self.hand_on(kept, reason, client, course, deadline)).await,
        };
        match switched {
            None => {
                let now = self.timer.clock().millis();
                self.worker.idle().put(upstream.lease.endpoint(), upstream.connection, &self.route.settings, now);
                Ok(if client.is_read() { After::GoOn } else { After::Linger })
            }
            Some(head) => {
                // The tunnel lives on its own allowance, so that idle tunnels never close
                // the site for requests.
                let _share = self.worker.shared().tunnels.take().ok_or(Reason::TunnelLimit)?;
                drop(permit);
                Box::pin(self.tunnel(client, upstream, &head, course)).await;
                Ok(After::Close)
            }
        }
    }

    /// Carries another protocol after a 101.
    async fn tunnel<C: Client>(
        &self,
        client: &mut C,
        mut upstream: Connected<'_>,
        head: &super::head::ResponseHead,
        course: &mut Course<'a>,
    ) {
        let counters = self.worker.counters();
        course.tunnel = true;
        course.status = 101;
        client.switch(head, self.edits);
        upstream.connection.become_tunnel();
        counters.tunnels.add(1);
        counters.tunnels_open.add(1);
        let patience = Patience::of(&self.route.settings);
        let passed = tunnel::run(client, &mut upstream.connection, C::poll_left, self.timer, patience).await;
        counters.tunnels_open.sub(1);
        counters.bytes_spliced.add(passed.spliced);
        course.bytes_in = passed.up;
        course.reason = passed.cut;
        if passed.cut.is_some() {
            counters.cut.add(1);
            client.abort();
        }
    }
}

/// What an ACME server that asks is shown, before any route; the path is an ordinary one
/// but for a token that is published now.
fn proof(worker: &Worker, head: &RequestHead) -> Option<Arc<str>> {
    let challenges = &worker.shared().challenges;
    if !challenges.any() || !matches!(head.method_name(), b"GET" | b"HEAD") {
        return None;
    }
    challenges.response(head.path())
}

/// The id under which the request is found in every log: the client's if it brought a
/// plain one, else a random one.
fn request_id(head: &RequestHead) -> Text<64> {
    use super::head::Known;
    let plain = |id: &&[u8]| {
        (1..=64).contains(&id.len()) && id.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:+/=@".contains(b))
    };
    match head.fields.first(Known::XRequestId).filter(plain) {
        Some(id) => Text::new(id),
        None => {
            let mut digits = [0; 32];
            let random = fastrand::u128(..).to_ne_bytes();
            for (pair, byte) in digits.chunks_exact_mut(2).zip(random) {
                let digit = |nibble: u8| nibble + if nibble < 10 { b'0' } else { b'a' - 10 };
                pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
            }
            Text::new(digits)
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

//! Probe: one health check of one backend.
//!
//! A connection of its own each time, since a kept one would say nothing of whether new
//! ones are taken. What is asked and answered is HTTP as requests have it: the same wire and
//! parser, or the same HTTP/2. The status decides; the body is read to its end, so that the
//! backend does not see a reset, but not for long: one that never ends changes nothing. A
//! stream can be given up without that.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use h2::Error;
use tokio::time::{Instant, timeout};

use super::head::{Framing, Method};
use super::http1::encode;
use super::http1::wire::Wire;
use super::http2::upstream::connection::{Driver, reason};
use super::http2::upstream::head;
use super::relay::{Fault, Piece, Sink as _, Source as _};
use super::upstream::Dial;
use crate::balance::endpoint::Endpoint;
use crate::balance::health::Check;
use crate::config::{BackendProtocol, HealthCheck};
use crate::telemetry::{Reason, Side};
use crate::transport::clock::Clock;
use crate::transport::stream::Stream;

/// Bytes of a body that are read.
const BODY_MOST: usize = 64 * 1024;

/// How long a body is read.
const BODY_TIME: Duration = Duration::from_millis(500);

/// Interim responses that may precede the final one.
const INTERIMS: u32 = 8;

/// Why a check did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Miss {
    /// The backend is at fault, in these words.
    Theirs(Arc<str>),
    /// This process or its host lacks something, or the name has no address: the check
    /// says nothing of the backend.
    Ours(Reason),
}

/// Checks a backend, once. It takes no longer than the check may, and [`BODY_TIME`] more.
///
/// # Errors
/// Why the check did not pass.
pub async fn probe(endpoint: &Endpoint, check: &Check) -> Result<(), Miss> {
    let late = |_| {
        let limit = humantime::format_duration(check.timeout);
        Err(Miss::Theirs(format!("no answer within {limit}").into()))
    };
    let Some((rest, status)) = timeout(check.timeout, answer(endpoint, check)).await.unwrap_or_else(late)? else {
        return Ok(());
    };
    // What takes longer is none of the check's business.
    let _ = timeout(BODY_TIME, rest.end()).await;
    if check.passes(status) { Ok(()) } else { Err(Miss::Theirs(format!("status {status}").into())) }
}

/// What is left of a check once its status is known.
enum Rest {
    /// A body to read.
    Http1(Box<Wire>),
    /// A connection to close.
    Http2(Box<Driver>),
}

impl Rest {
    async fn end(self) {
        match self {
            Self::Http1(mut wire) => discard(&mut wire).await,
            Self::Http2(driver) => {
                driver.connection().retire();
                driver.run(|| {}).await;
            }
        }
    }
}

/// Connects and, where a check asks for one, gets a response, of which the body is left.
async fn answer(endpoint: &Endpoint, check: &Check) -> Result<Option<(Rest, u16)>, Miss> {
    let dial = match (&check.kind, check.protocol) {
        (HealthCheck::Http(_), BackendProtocol::H2) => Dial::http2(endpoint),
        _ => Dial::new(endpoint),
    };
    let stream = dial.run().await.map_err(|reason| match reason.side() {
        Side::Backend if reason != Reason::BackendUnresolved => Miss::Theirs(reason.as_str().into()),
        _ => Miss::Ours(reason),
    })?;
    let HealthCheck::Http(path) = &check.kind else { return Ok(None) };
    let host = check.host.as_deref().unwrap_or(endpoint.host());
    let answered = match check.protocol {
        BackendProtocol::Http1 => ask_http1(stream, path, host).await,
        BackendProtocol::H2 => ask_http2(stream, path, host).await,
    };
    answered.map(Some).map_err(|reason| Miss::Theirs(reason.as_str().into()))
}

async fn ask_http1(stream: Stream, path: &str, host: &str) -> Result<(Rest, u16), Reason> {
    let mut wire = Box::new(Wire::new(stream));
    encode::check(wire.output_mut().begin(Framing::Empty), path, host);
    let status = ask(&mut wire).await.map_err(words)?;
    Ok((Rest::Http1(wire), status))
}

async fn ask_http2(stream: Stream, path: &str, host: &str) -> Result<(Rest, u16), Reason> {
    let failed = |error: Error| reason(&error);
    let clock = Clock::since(Instant::now());
    let mut driver = Box::new(Driver::open(stream, &clock).await.map_err(failed)?);
    driver.settled().await?;
    let request = head::check(driver.connection().scheme(), path, host).ok_or(Reason::Internal)?;
    let (mut response, _) = driver.connection().send(request, true).map_err(failed)?;
    let answer = poll_fn(|cx| {
        // Also one that has ended may have brought the answer.
        let ended = driver.poll(cx);
        match (Pin::new(&mut response).poll(cx), ended) {
            (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(failed(error))),
            (Poll::Pending, Poll::Ready(Ok(()))) => Poll::Ready(Err(Reason::BackendClosed)),
            (answer, _) => answer.map_ok(|answer| answer.status().as_u16()).map_err(failed),
        }
    });
    let status = answer.await?;
    Ok((Rest::Http2(driver), status))
}

/// Sends what is queued and reads the final response's status.
async fn ask(wire: &mut Wire) -> Result<u16, Fault> {
    poll_fn(|cx| wire.poll_finish(cx)).await?;
    for _ in 0..=INTERIMS {
        let head = poll_fn(|cx| wire.poll_response(cx, Method::Idempotent)).await?;
        if !head.is_interim() || head.status == 101 {
            return Ok(head.status);
        }
    }
    Err(Fault::Malformed(Reason::BackendMalformed))
}

/// Reads a body to its end, or for as long as it has a reasonable size.
async fn discard(wire: &mut Wire) {
    let mut read = 0;
    while read < BODY_MOST {
        let more = poll_fn(|cx| {
            wire.poll_piece(cx).map(|piece| match piece {
                Ok(Piece::Data(data)) => data.len(),
                // The status has come all the same.
                Ok(Piece::End) | Err(_) => 0,
            })
        })
        .await;
        if more == 0 {
            return;
        }
        wire.consume(more);
        read += more;
    }
}

fn words(fault: Fault) -> Reason {
    match fault {
        Fault::Malformed(reason) if reason.side() == Side::Backend => reason,
        Fault::Malformed(_) => Reason::BackendMalformed,
        Fault::Truncated => Reason::BackendClosed,
        Fault::Reset => Reason::BackendReset,
        Fault::Refused => Reason::BackendStreamRefused,
        Fault::Alert => Reason::BackendTlsAlert,
    }
}

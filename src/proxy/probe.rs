//! Probe: one health check of one backend.
//!
//! A connection of its own each time, since a kept one would say nothing of whether new
//! ones are taken. What is asked and answered is HTTP/1.1 as requests have it: the same
//! wire, the same parser. The status decides; the body is read to its end, so that the
//! backend does not see a reset, but not for long: one that never ends changes nothing.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::head::{Framing, Method};
use super::http1::encode;
use super::http1::wire::Wire;
use super::relay::{Fault, Piece, Sink as _, Source as _};
use super::upstream::Dial;
use crate::balance::endpoint::Endpoint;
use crate::balance::health::Check;
use crate::config::HealthCheck;
use crate::telemetry::{Reason, Side};

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
    let Some((mut wire, status)) = timeout(check.timeout, answer(endpoint, check)).await.unwrap_or_else(late)? else {
        return Ok(());
    };
    // A body that takes longer is none of the check's business.
    let _ = timeout(BODY_TIME, discard(&mut wire)).await;
    if check.passes(status) { Ok(()) } else { Err(Miss::Theirs(format!("status {status}").into())) }
}

/// Connects and, where a check asks for one, gets a response, of which the body is left.
async fn answer(endpoint: &Endpoint, check: &Check) -> Result<Option<(Wire, u16)>, Miss> {
    let stream = Dial::new(endpoint).run().await.map_err(|reason| match reason.side() {
        Side::Backend if reason != Reason::BackendUnresolved => Miss::Theirs(reason.as_str().into()),
        _ => Miss::Ours(reason),
    })?;
    let HealthCheck::Http(path) = &check.kind else { return Ok(None) };
    let mut wire = Wire::new(stream);
    let host = check.host.as_deref().unwrap_or(endpoint.host());
    encode::check(wire.output_mut().begin(Framing::Empty), path, host);
    let status = ask(&mut wire).await.map_err(|fault| Miss::Theirs(words(fault).as_str().into()))?;
    Ok(Some((wire, status)))
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
    }
}

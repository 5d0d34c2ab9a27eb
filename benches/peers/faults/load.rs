//! Requests at a fixed rate, whether answers come or not, and what became of each.
//!
//! Latency counts from when a request was due. A connection is kept for the next request;
//! each request that finds none opens one, so that those which wait hold up nobody.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

/// How long a client waits for its answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: faults.test\r\nUser-Agent: faults\r\nAccept: */*\r\n\r\n";

/// The body of the right answer.
const BODY: &[u8] = b"still there\n";

/// What became of a request.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it was due, from the start.
    pub due: Duration,
    /// How long that was before its end.
    pub took: Duration,
    /// It got the right answer.
    pub right: bool,
}

/// Asks `rate` times a second for so long.
pub async fn run(target: SocketAddr, rate: u32, time: Duration) -> Vec<Sample> {
    let idle = Rc::new(RefCell::new(Vec::new()));
    let start = Instant::now();
    let mut asked = JoinSet::new();
    let mut samples = Vec::new();
    for number in 0.. {
        let due = Duration::from_secs(1) * number / rate;
        if due >= time {
            break;
        }
        sleep_until(start + due).await;
        let idle = Rc::clone(&idle);
        asked.spawn_local(async move {
            let outcome = timeout(PATIENCE, ask(target, &idle)).await;
            let right = matches!(outcome, Ok(Ok(())));
            Sample { due, took: start.elapsed().saturating_sub(due), right }
        });
        while let Some(done) = asked.try_join_next() {
            samples.extend(done);
        }
    }
    while let Some(done) = asked.join_next().await {
        samples.extend(done);
    }
    samples.sort_by_key(|sample| sample.due);
    samples
}

async fn ask(target: SocketAddr, idle: &RefCell<Vec<TcpStream>>) -> Result<()> {
    let kept = idle.borrow_mut().pop();
    let mut stream = match kept {
        Some(stream) => stream,
        None => TcpStream::connect(target).await?,
    };
    stream.set_nodelay(true)?;
    stream.write_all(REQUEST).await?;
    let mut answer = Vec::with_capacity(1024);
    while !answer.ends_with(BODY) {
        if stream.read_buf(&mut answer).await? == 0 {
            bail!("an end");
        }
        if answer.len() >= 12 && !answer.starts_with(b"HTTP/1.1 200") {
            bail!("another answer");
        }
    }
    idle.borrow_mut().push(stream);
    Ok(())
}

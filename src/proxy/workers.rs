//! Workers: control's handle on all worker threads.
//!
//! Control starts them, hands them generations, has them drain, and learns when one
//! ends. It never waits for a worker without being able to do something else: what
//! takes time is a future.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, mpsc, oneshot};

use super::worker::{HANDED_MOST, Order, Shared, Start, Worker};
use crate::state::Generation;
use crate::telemetry::Log;
use crate::telemetry::Snapshot;
use crate::tls::challenges::Challenges;
use crate::transport::clock;
use crate::transport::listeners::Listener;
use crate::transport::splice;

/// A worker's thread ended unasked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("worker {worker} ended: {why}")]
pub struct WorkerDied {
    /// Its place among the workers.
    pub worker: usize,
    /// What it said.
    pub why: String,
}

/// What was cut at the end of a drain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Remains {
    /// Client connections.
    pub connections: u64,
    /// Requests under way on them, tunnels included.
    pub requests: u64,
    /// Tunnels.
    pub tunnels: u64,
}

/// How busy the daemon is now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests that hold a permit.
    pub in_flight: u64,
    /// Requests that wait for one.
    pub queued: u64,
    /// TLS handshakes under way.
    pub handshakes: u64,
    /// Clients that wait for one.
    pub handshakes_waiting: usize,
}

/// All worker threads.
#[derive(Debug)]
pub struct Workers {
    shared: Arc<Shared>,
    members: Vec<Member>,
    /// Beats seen when [`Workers::turned`] was last asked.
    beats: Vec<u64>,
}

#[derive(Debug)]
struct Member {
    orders: mpsc::UnboundedSender<Order>,
    accepting: Option<oneshot::Receiver<()>>,
    ended: oneshot::Receiver<io::Result<()>>,
    outcome: Option<Result<(), String>>,
    thread: Option<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads, `doorward-w0` and so on, that accept on `listeners`.
    ///
    /// # Errors
    /// When a descriptor can't be copied or a thread can't be started.
    pub fn start(count: usize, listeners: &[Listener], generation: Arc<Generation>, log: Log) -> io::Result<Self> {
        let count = count.max(1);
        splice::provide();
        let shared = Arc::new(Shared::new(count, &generation.limits()));
        let (ways, arrivals): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::channel(HANDED_MOST)).unzip();
        let mut members = Vec::with_capacity(count);
        for (index, handed) in arrivals.into_iter().enumerate() {
            let (orders, received) = mpsc::unbounded_channel();
            let (accepting, accepts) = oneshot::channel();
            let (ending, ended) = oneshot::channel();
            let start = Start {
                index,
                shared: Arc::clone(&shared),
                log: log.clone(),
                generation: Arc::clone(&generation),
                listeners: listeners.iter().map(Listener::try_clone).collect::<io::Result<_>>()?,
                others: ways.clone().into(),
                handed,
                orders: received,
                accepting,
            };
            let thread = std::thread::Builder::new().name(format!("doorward-w{index}")).spawn(move || {
                // Control has gone when nobody listens any more.
                let _ = ending.send(run(start));
            })?;
            members.push(Member { orders, accepting: Some(accepts), ended, outcome: None, thread: Some(thread) });
        }
        Ok(Self { shared, members, beats: vec![0; count] })
    }

    /// Resolves when every worker accepts.
    ///
    /// # Errors
    /// The worker that ended instead.
    pub async fn accepting(&mut self) -> Result<(), WorkerDied> {
        for index in 0..self.members.len() {
            let accepting = self.members.get_mut(index).and_then(|member| member.accepting.take());
            if let Some(accepting) = accepting {
                if accepting.await.is_err() {
                    return Err(self.died().await);
                }
            }
        }
        Ok(())
    }

    /// Hands every worker a new generation; resolves when all new requests use it. A worker
    /// that has ended regularly has no new requests.
    ///
    /// # Errors
    /// The worker that failed instead.
    pub async fn adopt(&mut self, generation: Arc<Generation>) -> Result<(), WorkerDied> {
        self.shared.resize(&generation.limits());
        let acknowledged: Vec<_> = self
            .members
            .iter()
            .map(|member| {
                let (done, acknowledged) = oneshot::channel();
                // One that has ended is found below.
                let _ = member.orders.send(Order::Adopt(Arc::clone(&generation), done));
                acknowledged
            })
            .collect();
        for (worker, (acknowledged, member)) in acknowledged.into_iter().zip(&mut self.members).enumerate() {
            if acknowledged.await.is_err() {
                poll_fn(|cx| member.poll_ended(cx)).await.map_err(|why| WorkerDied { worker, why })?;
            }
        }
        Ok(())
    }

    /// Has every worker accept no more, finish what is under way, and close connections
    /// that stay idle for `silence`.
    pub fn drain(&mut self, silence: Duration) {
        self.tell(|| Order::Drain(silence));
    }

    /// Resolves when every worker has ended by itself after [`Self::drain`].
    ///
    /// # Errors
    /// The worker that failed instead.
    pub async fn drained(&mut self) -> Result<(), WorkerDied> {
        poll_fn(|cx| {
            let mut pending = false;
            for (index, member) in self.members.iter_mut().enumerate() {
                match member.poll_ended(cx) {
                    Poll::Pending => pending = true,
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(why)) => return Poll::Ready(Err(WorkerDied { worker: index, why })),
                }
            }
            if pending { Poll::Pending } else { Poll::Ready(Ok(())) }
        })
        .await?;
        self.join();
        Ok(())
    }

    /// Ends what is left; says what that was. A worker that does not turn over is
    /// abandoned: it ends with the process.
    pub fn cut(&mut self) -> Remains {
        let snapshot = self.snapshot();
        self.tell(|| Order::Cut);
        Remains { connections: snapshot.connections_open, requests: snapshot.in_flight, tunnels: snapshot.tunnels_open }
    }

    /// Whether every worker has turned over since this was last asked. Asks them to turn
    /// over again.
    pub fn turned(&mut self) -> bool {
        let turned = self.stuck().is_empty();
        for (seen, lane) in self.beats.iter_mut().zip(&self.shared.lanes) {
            *seen = lane.beat.load(Ordering::Relaxed);
        }
        self.tell(|| Order::Beat);
        turned
    }

    /// The workers that have not turned over since [`Self::turned`] was last asked; not
    /// those that have ended, as they do one by one in a drain.
    #[must_use]
    pub fn stuck(&self) -> Vec<usize> {
        let beats = self.beats.iter().zip(&self.shared.lanes).zip(&self.members).enumerate();
        beats
            .filter(|(_, ((seen, lane), member))| {
                member.outcome.is_none() && lane.beat.load(Ordering::Relaxed) == **seen
            })
            .map(|(index, _)| index)
            .collect()
    }

    /// Resolves when a worker's thread ends unasked.
    pub async fn died(&mut self) -> WorkerDied {
        poll_fn(|cx| {
            for (index, member) in self.members.iter_mut().enumerate() {
                if let Poll::Ready(outcome) = member.poll_ended(cx) {
                    let why = outcome.err().unwrap_or_else(|| "it was not told to".into());
                    return Poll::Ready(WorkerDied { worker: index, why });
                }
            }
            Poll::Pending
        })
        .await
    }

    /// The sum of all counters.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(self.shared.lanes.iter().map(|lane| &lane.counters), Instant::now())
    }

    /// How busy the daemon is now.
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            in_flight: self.shared.gate.in_flight(),
            queued: u64::try_from(self.shared.gate.queued()).unwrap_or(u64::MAX),
            handshakes: self.shared.handshakes.in_flight(),
            handshakes_waiting: self.shared.handshakes.queued(),
        }
    }

    /// The time on the workers' clocks, in milliseconds.
    #[must_use]
    pub fn millis(&self) -> u64 {
        u64::try_from(self.shared.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Notified when a worker has seen something of a backend that control should look at.
    #[must_use]
    pub fn stirred(&self) -> Arc<Notify> {
        Arc::clone(&self.shared.stirred)
    }

    /// What an ACME server is shown by every worker.
    #[must_use]
    pub fn challenges(&self) -> Arc<Challenges> {
        Arc::clone(&self.shared.challenges)
    }

    fn tell(&self, order: impl Fn() -> Order) {
        for member in &self.members {
            // One that has ended is found by `died` and `drained`.
            let _ = member.orders.send(order());
        }
    }

    fn join(&mut self) {
        for member in &mut self.members {
            if let Some(thread) = member.thread.take() {
                // It has sent its outcome as its last act; a panic was reported there.
                let _ = thread.join();
            }
        }
    }
}

impl Member {
    fn poll_ended(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), String>> {
        if let Some(outcome) = &self.outcome {
            return Poll::Ready(outcome.clone());
        }
        let ended = std::task::ready!(std::pin::Pin::new(&mut self.ended).poll(cx));
        let outcome = match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it panicked".to_owned()),
        };
        self.outcome = Some(outcome.clone());
        Poll::Ready(outcome)
    }
}

fn run(start: Start) -> io::Result<()> {
    // Nothing on a worker may block, so it needs no blocking threads.
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .on_thread_unpark(clock::turn)
        .build_local(LocalOptions::default())?;
    runtime.block_on(Worker::run(start))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::balance::discovery::Directory;
    use crate::config::Config;

    /// A worker that has ended so.
    fn ended(outcome: io::Result<()>) -> Member {
        let (orders, _) = mpsc::unbounded_channel();
        let (ending, ended) = oneshot::channel();
        ending.send(outcome).unwrap();
        Member { orders, accepting: None, ended, outcome: None, thread: None }
    }

    fn workers(members: Vec<Member>, generation: &Generation) -> Workers {
        let shared = Arc::new(Shared::new(members.len(), &generation.limits()));
        Workers { shared, beats: vec![0; members.len()], members }
    }

    #[tokio::test]
    async fn a_worker_that_has_ended_as_it_was_told_to_is_not_taken_for_dead() {
        let config = Config::assemble(None, Vec::new(), &BTreeMap::new()).unwrap();
        let generation = Arc::new(Generation::build(1, config, &Directory::new(), None));
        let mut drained = workers(vec![ended(Ok(())), ended(Ok(()))], &generation);
        assert_eq!(drained.adopt(Arc::clone(&generation)).await, Ok(()));
        let mut failed = workers(vec![ended(Ok(())), ended(Err(io::Error::other("broken")))], &generation);
        let died = WorkerDied { worker: 1, why: "broken".into() };
        assert_eq!(failed.adopt(generation).await, Err(died));
    }
}

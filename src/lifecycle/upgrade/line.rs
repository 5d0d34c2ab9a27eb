//! The line between a process and the one that takes over: a few words each way.
//!
//! ```text
//! ← {"ready":{"pid":4321,"version":"0.2.0"}}     or {"refused":"…the whole report…"}
//! → go                                           or stay
//! ```
//!
//! The two may be of different versions, so the words stay as they are, and fields may be added.
//! The line stays open as long as both live: its end tells each that the other one has gone.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::warn;

use super::launch::{Passing, Program};
use crate::transport::listeners;

/// The longest line taken, in bytes: a report of many problems fits.
const LINE_MOST: u64 = 1 << 20;

/// How long a process that is told something may leave it unread.
const SEND_PATIENCE: Duration = Duration::from_secs(5);

const GO: &[u8] = b"go\n";
const STAY: &[u8] = b"stay\n";

/// What the new process says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    Ready { pid: u32, version: String },
    Refused(String),
}

/// What it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::lifecycle) enum Word {
    /// It is the main process: serve, also what only one of the two can.
    Go,
    /// It is not, and has to end.
    Stay,
}

/// The process that takes over, seen from the one before.
#[derive(Debug)]
pub(in crate::lifecycle) struct Successor {
    pid: u32,
    version: String,
    line: UnixStream,
}

impl Successor {
    /// Starts `program`, which is given `passing`, and waits until it is ready.
    ///
    /// # Errors
    /// Why it is not, as it said, or as far as that is known; it ends by itself then.
    pub(super) async fn start(
        program: Program,
        mut passing: Vec<Passing>,
        patience: Duration,
    ) -> Result<Successor, String> {
        let (ours, theirs) = UnixStream::pair().map_err(|error| error.to_string())?;
        // It takes over an ordinary descriptor: its runtime is another one.
        let theirs = theirs.into_std().map_err(|error| error.to_string())?;
        passing.push(Passing::new(listeners::HAND_OVER, theirs));
        let launched = tokio::task::spawn_blocking(move || program.launch(passing)).await;
        launched.map_err(|fault| fault.to_string())??;
        let mut line = BufReader::new(ours);
        match timeout(patience, hear(&mut line)).await {
            Ok(said) => match said? {
                Said::Ready { pid, version } => Ok(Successor { pid, version, line: line.into_inner() }),
                Said::Refused(report) => Err(report),
            },
            Err(_) => {
                // It hears this when it gets so far.
                say(&mut line.into_inner(), STAY).await;
                Err(format!("the new process was not ready within {} s", patience.as_secs()))
            }
        }
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Its version.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Lets it be the one that serves.
    pub(super) fn go(&mut self) {
        // A line that has been silent takes a few bytes at once, or is broken, which is found out.
        if let Err(error) = self.line.try_write(GO) {
            warn!(%error, "the new process can't be told that it serves");
        }
    }

    /// Has it end.
    pub(super) fn dismiss(self) {
        if let Err(error) = self.line.try_write(STAY) {
            warn!(%error, "the new process can't be told that it does not serve");
        }
    }

    /// Resolves when it has ended.
    pub(super) async fn gone(&mut self) {
        ended(&mut self.line).await;
    }
}

/// What the new process says, in one line.
async fn hear(line: &mut BufReader<UnixStream>) -> Result<Said, String> {
    let mut words = Vec::new();
    match line.take(LINE_MOST).read_until(b'\n', &mut words).await {
        Ok(0) => Err("the new process ended before it was ready; the journal may say why".to_owned()),
        Ok(_) => {
            serde_json::from_slice(&words).map_err(|error| format!("the new process says something else: {error}"))
        }
        Err(error) => Err(format!("the new process can't be heard: {error}")),
    }
}

/// The process before, seen from the one that takes over.
#[derive(Debug)]
pub(in crate::lifecycle) struct Predecessor {
    pid: Option<u32>,
    line: UnixStream,
}

impl Predecessor {
    /// The one at the other end of `line`.
    ///
    /// # Errors
    /// The line can't be registered with the runtime.
    pub(in crate::lifecycle) fn new(line: StdUnixStream) -> io::Result<Predecessor> {
        line.set_nonblocking(true)?;
        let line = UnixStream::from_std(line)?;
        let peer = line.peer_cred().ok().and_then(|peer| peer.pid());
        Ok(Predecessor { pid: peer.and_then(|pid| u32::try_from(pid).ok()), line })
    }

    /// Its process id, where that is known.
    pub(in crate::lifecycle) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Tells it that this process can't serve.
    pub(in crate::lifecycle) async fn refuse(mut self, report: String) {
        self.tell(&Said::Refused(report)).await;
    }

    /// Tells it that this process is ready, and waits for what it says to that. One that has
    /// gone meanwhile says nothing more: then systemd decides who serves, and this one may.
    pub(in crate::lifecycle) async fn ready(&mut self) -> Word {
        self.tell(&Said::Ready { pid: std::process::id(), version: env!("CARGO_PKG_VERSION").to_owned() }).await;
        let mut word = Vec::new();
        let mut line = BufReader::new(&mut self.line);
        let heard = (&mut line).take(LINE_MOST).read_until(b'\n', &mut word).await;
        if heard.is_ok() && word == STAY { Word::Stay } else { Word::Go }
    }

    /// Resolves when it has ended.
    pub(in crate::lifecycle) async fn gone(&mut self) {
        ended(&mut self.line).await;
    }

    async fn tell(&mut self, said: &Said) {
        let mut words = serde_json::to_vec(said).unwrap_or_default();
        words.push(b'\n');
        say(&mut self.line, &words).await;
    }
}

/// Says something to whoever may have gone: that is found out by who waits for it.
async fn say(line: &mut UnixStream, words: &[u8]) {
    let _ = timeout(SEND_PATIENCE, line.write_all(words)).await;
}

/// Resolves when the line is broken; what comes on it meanwhile has no meaning.
async fn ended(line: &mut UnixStream) {
    let mut scrap = [0; 64];
    while line.read(&mut scrap).await.is_ok_and(|length| length > 0) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    /// Both ends; the one before has not heard anything yet.
    fn pair() -> io::Result<(BufReader<UnixStream>, Predecessor)> {
        let (before, after) = UnixStream::pair()?;
        Ok((BufReader::new(before), Predecessor::new(after.into_std()?)?))
    }

    #[tokio::test]
    async fn the_words_on_the_line_are_as_documented() -> TestResult {
        let (mut before, after) = pair()?;
        after.refuse("line 1\nline 2".into()).await;
        let mut line = String::new();
        before.read_line(&mut line).await?;
        assert_eq!(line, "{\"refused\":\"line 1\\nline 2\"}\n");
        let ready = serde_json::from_str(r#"{"ready":{"pid":7,"version":"9","later":true}}"#)?;
        assert_eq!(Said::Ready { pid: 7, version: "9".into() }, ready);
        Ok(())
    }

    #[tokio::test]
    async fn who_is_ready_goes_unless_told_to_stay() -> TestResult {
        for (words, expected) in [(GO, Word::Go), (STAY, Word::Stay), (b"", Word::Go)] {
            let (before, mut after) = pair()?;
            let told = tokio::spawn(async move {
                let mut before = before;
                let said = hear(&mut before).await;
                let _ = before.into_inner().try_write(words);
                said
            });
            assert_eq!(after.ready().await, expected);
            let expected = Said::Ready { pid: std::process::id(), version: env!("CARGO_PKG_VERSION").into() };
            assert_eq!(told.await??, expected);
            after.gone().await;
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_process_that_ends_or_babbles_is_not_ready() -> TestResult {
        let (mut before, after) = pair()?;
        drop(after);
        assert!(hear(&mut before).await.is_err_and(|error| error.contains("ended before it was ready")));
        let (mut before, mut after) = pair()?;
        say(&mut after.line, b"HTTP/1.1 400 Bad Request\r\n").await;
        assert!(hear(&mut before).await.is_err_and(|error| error.contains("something else")));
        Ok(())
    }
}

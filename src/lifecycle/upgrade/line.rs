//! The line between a process and the one that takes over: a few words each way.
//!
//! ```text
//! ← {"ready":{"pid":4321,"version":"0.2.0"}}     or {"refused":"…the whole report…"}
//! → go                                           or stay
//! → left 900000 12                               what it has: milliseconds, for 12 connections
//! ← "hurry"                                      the next upgrade waits for its end
//! ← "stopping"                                   the new process stops, and ends after it
//! → left 30000 11
//! ```
//!
//! The two may be of different versions, so the words stay as they are, fields may be added, and
//! a word that is not known is passed over. The line stays open as long as both live: its end
//! tells each that the other one has gone.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::launch::{Passing, Program};
use crate::transport::listeners;

/// The longest line taken, in bytes: a report of many problems fits.
const LINE_MOST: u64 = 1 << 20;

/// How long a process that is told something may leave it unread.
const SEND_PATIENCE: Duration = Duration::from_secs(5);

const GO: &[u8] = b"go\n";
const STAY: &[u8] = b"stay\n";
const LEFT: &str = "left ";

/// What the new process says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    Ready { pid: u32, version: String },
    Refused(String),
    Hurry,
    Stopping,
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
    line: Line,
    /// What it was told last that is left.
    told: Option<Left>,
}

/// What a process that was taken over from has still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::lifecycle) struct Left {
    /// When it ends at the latest.
    pub(in crate::lifecycle) ends: Instant,
    /// Connections of clients.
    pub(in crate::lifecycle) connections: u64,
}

impl Left {
    /// How long it has, at most.
    pub(in crate::lifecycle) fn time(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    /// Of a line that says so.
    fn heard(words: &[u8]) -> Option<Left> {
        let mut words = std::str::from_utf8(words).ok()?.strip_prefix(LEFT)?.split_ascii_whitespace();
        let time = Duration::from_millis(words.next()?.parse().ok()?);
        Some(Left { ends: Instant::now().checked_add(time)?, connections: words.next()?.parse().ok()? })
    }
}

/// What the process before hears of the one that took over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::lifecycle) enum Heard {
    /// It is asked for an upgrade, which this process holds up.
    Hurry,
    /// It stops, and waits for this one meanwhile.
    Stopping,
    /// It has ended.
    Gone,
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
        let mut line = Line::new(ours);
        match timeout(patience, hear(&mut line)).await {
            Ok(said) => match said? {
                Said::Ready { pid, version } => Ok(Successor { pid, version, line, told: None }),
                Said::Refused(report) => Err(report),
                said => Err(format!("the new process says something else: {said:?}")),
            },
            Err(_) => {
                // It hears this when it gets so far.
                line.say(STAY).await;
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
    pub(super) fn go(&self) {
        if let Err(error) = self.line.put(GO) {
            warn!(%error, "the new process can't be told that it serves");
        }
    }

    /// Tells it what this process has still, unless it knows.
    pub(super) fn left(&mut self, left: Left) {
        if self.told.replace(left) == Some(left) {
            return;
        }
        let words = format!("{LEFT}{} {}\n", left.time().as_millis(), left.connections);
        if let Err(error) = self.line.put(words.as_bytes()) {
            debug!(%error, "the new process can't be told what this one has");
        }
    }

    /// Has it end.
    pub(super) fn dismiss(self) {
        if let Err(error) = self.line.put(STAY) {
            warn!(%error, "the new process can't be told that it does not serve");
        }
    }

    /// What it says next. Nothing is lost when the future is dropped.
    pub(super) async fn heard(&mut self) -> Heard {
        while let Some(words) = self.line.hear().await {
            match serde_json::from_slice(&words) {
                Ok(Said::Hurry) => return Heard::Hurry,
                Ok(Said::Stopping) => return Heard::Stopping,
                _ => debug!("the process that took over says something else"),
            }
        }
        Heard::Gone
    }

    /// Resolves when it has ended, whatever it says meanwhile.
    pub(super) async fn gone(&mut self) {
        while self.heard().await != Heard::Gone {}
    }
}

/// What the new process says, in one line.
async fn hear(line: &mut Line) -> Result<Said, String> {
    let words =
        line.hear().await.ok_or("the new process ended before it was ready; the journal may say why".to_owned())?;
    serde_json::from_slice(&words).map_err(|error| format!("the new process says something else: {error}"))
}

/// The process before, seen from the one that takes over.
#[derive(Debug)]
pub(in crate::lifecycle) struct Predecessor {
    pid: Option<u32>,
    line: Line,
    /// As far as it has said so.
    left: Option<Left>,
    hurried: bool,
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
        let pid = peer.and_then(|pid| u32::try_from(pid).ok());
        Ok(Predecessor { pid, line: Line::new(line), left: None, hurried: false })
    }

    /// Its process id, where that is known.
    pub(in crate::lifecycle) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// What it has still; none of an older version, which does not say.
    pub(in crate::lifecycle) fn left(&self) -> Option<Left> {
        self.left
    }

    /// Tells it that this process can't serve.
    pub(in crate::lifecycle) async fn refuse(mut self, report: String) {
        self.tell(&Said::Refused(report)).await;
    }

    /// Tells it that this process is ready, and waits for what it says to that. One that has
    /// gone meanwhile says nothing more: then systemd decides who serves, and this one may.
    pub(in crate::lifecycle) async fn ready(&mut self) -> Word {
        self.tell(&Said::Ready { pid: std::process::id(), version: env!("CARGO_PKG_VERSION").to_owned() }).await;
        if self.line.hear().await.is_some_and(|word| word == STAY) { Word::Stay } else { Word::Go }
    }

    /// Has it end within its `DRAIN_TIMEOUT`: an upgrade waits for it. False when it was told
    /// before. An older version passes it over, and takes the time that it has.
    pub(in crate::lifecycle) fn hurry(&mut self) -> bool {
        if std::mem::replace(&mut self.hurried, true) {
            return false;
        }
        self.remark(&Said::Hurry);
        true
    }

    /// Tells it that this process stops, so that it ends within its `DRAIN_TIMEOUT`, too.
    pub(in crate::lifecycle) fn stopping(&self) {
        self.remark(&Said::Stopping);
    }

    /// Resolves when it has ended; takes note meanwhile of what it has. Nothing is lost when
    /// the future is dropped.
    pub(in crate::lifecycle) async fn gone(&mut self) {
        while let Some(words) = self.line.hear().await {
            match Left::heard(&words) {
                Some(left) => self.left = Some(left),
                None => debug!("the process before says something else"),
            }
        }
    }

    async fn tell(&mut self, said: &Said) {
        self.line.say(&words(said)).await;
    }

    fn remark(&self, said: &Said) {
        if let Err(error) = self.line.put(&words(said)) {
            debug!(%error, "the process before can't be told");
        }
    }
}

fn words(said: &Said) -> Vec<u8> {
    let mut words = serde_json::to_vec(said).unwrap_or_default();
    words.push(b'\n');
    words
}

/// One end of it.
#[derive(Debug)]
struct Line {
    stream: BufReader<UnixStream>,
    /// What has come of the next line.
    begun: Vec<u8>,
}

impl Line {
    fn new(stream: UnixStream) -> Line {
        Line { stream: BufReader::new(stream), begun: Vec::new() }
    }

    /// The next line, its end included; none when the other process has gone, or sends a line
    /// that is too long. Nothing is lost when the future is dropped.
    async fn hear(&mut self) -> Option<Vec<u8>> {
        let room = LINE_MOST.saturating_sub(u64::try_from(self.begun.len()).unwrap_or(LINE_MOST));
        // What was read before the future is dropped is in there already.
        (&mut self.stream).take(room).read_until(b'\n', &mut self.begun).await.ok()?;
        self.begun.ends_with(b"\n").then(|| std::mem::take(&mut self.begun))
    }

    /// Says something to whoever may have gone: that is found out by who waits for it.
    async fn say(&mut self, words: &[u8]) {
        let _ = timeout(SEND_PATIENCE, self.stream.get_mut().write_all(words)).await;
    }

    /// Says a few bytes without waiting: a line that has been silent takes them at once, or is
    /// broken, which is found out.
    fn put(&self, words: &[u8]) -> io::Result<()> {
        self.stream.get_ref().try_write(words).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    /// Both ends; the one before has not heard anything yet.
    fn pair() -> io::Result<(Line, Predecessor)> {
        let (before, after) = UnixStream::pair()?;
        Ok((Line::new(before), Predecessor::new(after.into_std()?)?))
    }

    /// Both ends after the new process was ready.
    async fn ready() -> Result<(Successor, Predecessor), Box<dyn std::error::Error>> {
        let (mut line, mut after) = pair()?;
        let before = tokio::spawn(async move {
            let said = hear(&mut line).await;
            let before = Successor { pid: 7, version: "9".into(), line, told: None };
            before.go();
            (said, before)
        });
        assert_eq!(after.ready().await, Word::Go);
        Ok((before.await?.1, after))
    }

    #[tokio::test]
    async fn the_words_on_the_line_are_as_documented() -> TestResult {
        let (mut before, after) = pair()?;
        after.refuse("line 1\nline 2".into()).await;
        assert_eq!(before.hear().await.ok_or("nothing")?, b"{\"refused\":\"line 1\\nline 2\"}\n");
        let ready = serde_json::from_str(r#"{"ready":{"pid":7,"version":"9","later":true}}"#)?;
        assert_eq!(Said::Ready { pid: 7, version: "9".into() }, ready);
        assert_eq!(words(&Said::Hurry), b"\"hurry\"\n");
        assert_eq!(words(&Said::Stopping), b"\"stopping\"\n");
        let left = Left::heard(b"left 900000 12\n").ok_or("not heard")?;
        assert_eq!(left.connections, 12);
        assert!((800..=900).contains(&left.time().as_secs()), "{left:?}");
        Ok(())
    }

    #[tokio::test]
    async fn who_is_ready_goes_unless_told_to_stay() -> TestResult {
        for (words, expected) in [(GO, Word::Go), (STAY, Word::Stay), (b"", Word::Go)] {
            let (before, mut after) = pair()?;
            let told = tokio::spawn(async move {
                let mut before = before;
                let said = hear(&mut before).await;
                before.say(words).await;
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
        after.line.say(b"HTTP/1.1 400 Bad Request\r\n").await;
        assert!(hear(&mut before).await.is_err_and(|error| error.contains("something else")));
        Ok(())
    }

    #[tokio::test]
    async fn who_was_taken_over_from_is_hurried_once() -> TestResult {
        let (mut before, mut after) = ready().await?;
        assert!(after.hurry());
        assert!(!after.hurry());
        after.stopping();
        assert_eq!(before.heard().await, Heard::Hurry);
        assert_eq!(before.heard().await, Heard::Stopping);
        drop(after);
        assert_eq!(before.heard().await, Heard::Gone);
        Ok(())
    }

    #[tokio::test]
    async fn what_is_left_is_known_as_it_was_told_last() -> TestResult {
        let (mut before, mut after) = ready().await?;
        assert_eq!(after.left(), None);
        let ends = Instant::now() + Duration::from_secs(900);
        for left in [Left { ends, connections: 2 }, Left { ends: ends - Duration::from_secs(870), connections: 1 }] {
            // Once is enough.
            before.left(left);
            before.left(left);
            // It is heard also by one who hears to the end of nothing.
            while after.left().is_none_or(|known| known.connections != left.connections) {
                let _ = timeout(Duration::from_millis(1), after.gone()).await;
            }
            let late = after.left().ok_or("nothing")?.ends - left.ends;
            assert!(late < Duration::from_secs(20), "{late:?}");
        }
        drop(before);
        assert!(after.line.hear().await.is_none(), "it was told twice");
        Ok(())
    }

    #[tokio::test]
    async fn words_of_a_later_version_are_passed_over() -> TestResult {
        let (mut before, mut after) = ready().await?;
        after.line.say(b"{\"later\":1}\nlater\n\"hurry\"\n").await;
        assert_eq!(before.heard().await, Heard::Hurry);
        before.line.say(b"later 1\nleft soon\nleft 18446744073709551615 1\nleft 5000 1 and more\n").await;
        drop(before);
        after.gone().await;
        assert!(after.left().is_some_and(|left| left.time() <= Duration::from_secs(5)));
        Ok(())
    }
}

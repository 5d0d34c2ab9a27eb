//! Which form the log has: journald, or stderr as text or JSON.
//!
//! journald when stderr is a stream to it already (`$JOURNAL_STREAM`, see
//! systemd.exec(5)) or systemd started this very process; else text on a
//! terminal and JSON elsewhere.

use super::sink::JOURNALD;
use std::io::IsTerminal as _;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// The form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// journald under systemd, text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// journald's native protocol; JSON on stderr when it can't be reached.
    Journald,
    /// Lines for a human on stderr.
    Text,
    /// One JSON object a line on stderr.
    Json,
}

/// What a process can know of where it runs.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// `$JOURNAL_STREAM`.
    journal_stream: Option<String>,
    /// Device and inode of stderr.
    stderr: Option<(u64, u64)>,
    terminal: bool,
    /// systemd started this process as a unit's main process.
    started: bool,
    /// journald's socket exists.
    journald: bool,
}

impl Surroundings {
    pub(super) fn look(stderr: BorrowedFd<'_>) -> Self {
        let variable = |name| std::env::var(name).ok();
        let me = std::process::id().to_string();
        let parent_is_init = rustix::process::getppid().is_some_and(|parent| parent.is_init());
        Self {
            journal_stream: variable("JOURNAL_STREAM"),
            stderr: rustix::fs::fstat(stderr).ok().map(|stat| (stat.st_dev, stat.st_ino)),
            terminal: stderr.is_terminal(),
            // The second is inherited by everything below a unit, a shell included.
            started: variable("SYSTEMD_EXEC_PID").is_some_and(|pid| pid == me)
                || (variable("INVOCATION_ID").is_some() && parent_is_init),
            journald: Path::new(JOURNALD).exists(),
        }
    }

    /// Whether stderr is the stream to journald that `$JOURNAL_STREAM` names.
    fn is_journal_stream(&self) -> bool {
        let named = self.journal_stream.as_deref().and_then(|value| {
            let (device, inode) = value.split_once(':')?;
            Some((device.parse().ok()?, inode.parse().ok()?))
        });
        named.is_some() && named == self.stderr
    }

    /// What `Auto` means here; any other format is itself.
    pub(super) fn resolve(&self, format: LogFormat) -> LogFormat {
        match format {
            LogFormat::Auto if self.is_journal_stream() => LogFormat::Journald,
            LogFormat::Auto if self.terminal => LogFormat::Text,
            LogFormat::Auto if self.started && self.journald => LogFormat::Journald,
            LogFormat::Auto => LogFormat::Json,
            chosen => chosen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn auto_means_what_the_surroundings_say() {
        let nowhere = Surroundings::default;
        let stream =
            |value: &str| Surroundings { journal_stream: Some(value.into()), stderr: Some((8, 4711)), ..nowhere() };
        let cases = [
            (nowhere(), LogFormat::Json, "a pipe or a file"),
            (stream("8:4711"), LogFormat::Journald, "its own stream"),
            (stream("8:4712"), LogFormat::Json, "somebody else's stream"),
            (stream("8"), LogFormat::Json, "nonsense"),
            (Surroundings { stderr: None, ..stream("8:4711") }, LogFormat::Json, "closed"),
            (Surroundings { terminal: true, ..nowhere() }, LogFormat::Text, "a terminal"),
            (
                Surroundings { terminal: true, started: true, journald: true, ..nowhere() },
                LogFormat::Text,
                "a terminal of systemd-run",
            ),
            (
                Surroundings { started: true, journald: true, ..nowhere() },
                LogFormat::Journald,
                "a unit whose stderr is a file",
            ),
            (Surroundings { started: true, ..nowhere() }, LogFormat::Json, "a unit without journald"),
        ];
        for (surroundings, format, case) in cases {
            assert_eq!(surroundings.resolve(LogFormat::Auto), format, "{case}");
            for chosen in [LogFormat::Journald, LogFormat::Text, LogFormat::Json] {
                assert_eq!(surroundings.resolve(chosen), chosen, "{case}");
            }
        }
    }

    #[test]
    fn stderr_is_recognised_by_device_and_inode() {
        let file = tempfile::tempfile().unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        let mut seen = Surroundings::look(file.as_fd());
        assert!(!seen.terminal);
        seen.journal_stream = Some(format!("{}:{}", stat.st_dev, stat.st_ino));
        assert!(seen.is_journal_stream());
    }
}

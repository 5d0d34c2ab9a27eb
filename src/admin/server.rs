//! The server of the admin socket, on the control thread.
//!
//! Bounded throughout: [`MAX_CLIENTS`] connections, [`MAX_LINE`] bytes a line,
//! [`IDLE`] between lines and for taking an answer. A client beyond the limit is
//! told so and closed. An answer itself may take as long as the daemon needs; a
//! reload is not cancelled because its client left.

use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tracing::debug;

use super::guests::receive;
use super::protocol::{Answer, Command, MAX_LINE};

/// Connections served at once.
const MAX_CLIENTS: usize = 8;

/// How long a client may be silent, or leave an answer unread.
const IDLE: Duration = Duration::from_secs(10);

/// A command on its way to the control loop, and where its answer goes.
#[derive(Debug)]
pub struct Question {
    /// What is asked.
    pub command: Command,
    /// Takes the answer; the client may be gone by then.
    pub answer: oneshot::Sender<Answer>,
}

/// Serves the admin socket until `questions` has no receiver any more.
///
/// # Errors
/// The socket can't be registered with the runtime.
pub async fn serve(socket: StdUnixListener, questions: mpsc::Sender<Question>) -> io::Result<()> {
    let listener = UnixListener::from_std(socket)?;
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let full = line(&Answer::refused("too many admin connections"));
    let serve = |mut client| {
        let questions = questions.clone();
        async move {
            if let Err(error) = converse(&mut client, &questions).await {
                debug!(%error, "admin connection ended");
            }
        }
    };
    tokio::select! {
        () = receive(listener, places, "admin socket", &full, serve) => {}
        () = questions.closed() => {}
    }
    Ok(())
}

/// Answers the lines of one client, one after the other.
async fn converse(client: &mut UnixStream, questions: &mpsc::Sender<Question>) -> io::Result<()> {
    let (reader, mut writer) = client.split();
    let mut reader = BufReader::with_capacity(MAX_LINE, reader);
    let mut words = Vec::new();
    loop {
        words.clear();
        // One byte above the limit tells a line of full length from one too long.
        let mut bounded = (&mut reader).take(MAX_LINE as u64 + 1);
        let length = timeout(IDLE, bounded.read_until(b'\n', &mut words)).await??;
        if length == 0 {
            return Ok(());
        }
        let (answer, last) = if length > MAX_LINE {
            let limit = format!("a line may have at most {MAX_LINE} bytes");
            (Answer::refused(limit), true)
        } else {
            (ask(&words, questions).await, false)
        };
        timeout(IDLE, writer.write_all(&line(&answer))).await??;
        if last {
            return Ok(());
        }
    }
}

async fn ask(words: &[u8], questions: &mpsc::Sender<Question>) -> Answer {
    let command = match serde_json::from_slice(words) {
        Ok(command) => command,
        Err(error) => return Answer::refused(format!("not a command: {error}")),
    };
    let (answer, answered) = oneshot::channel();
    let asked = questions.send(Question { command, answer }).await.is_ok();
    match answered.await {
        Ok(answer) if asked => answer,
        _ => Answer::refused("doorward is stopping"),
    }
}

fn line(answer: &Answer) -> Vec<u8> {
    // An answer has only strings, numbers and lists: it always has a JSON form.
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    /// A server on a socket of its own, and the questions that reach its daemon.
    fn served() -> io::Result<(tempfile::TempDir, std::path::PathBuf, mpsc::Receiver<Question>)> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("admin.sock");
        let socket = StdUnixListener::bind(&path)?;
        socket.set_nonblocking(true)?;
        let (sender, receiver) = mpsc::channel(8);
        tokio::spawn(serve(socket, sender));
        Ok((folder, path, receiver))
    }

    async fn read_line(client: &mut UnixStream) -> io::Result<String> {
        let mut answer = String::new();
        BufReader::new(client).read_line(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn a_reload_is_answered_once_the_daemon_has_decided() -> TestResult {
        let (_folder, path, mut questions) = served()?;
        let mut client = UnixStream::connect(path).await?;
        for generation in [2, 3] {
            client.write_all(b"{\"command\":\"reload\"}\n").await?;
            let question = questions.recv().await.ok_or("server gone")?;
            assert_eq!(question.command, Command::Reload);
            question.answer.send(Answer::reloaded(generation)).map_err(|_| "client gone")?;
            let expected = format!("{{\"ok\":true,\"generation\":{generation}}}\n");
            assert_eq!(read_line(&mut client).await?, expected);
        }
        Ok(())
    }

    #[tokio::test]
    async fn nonsense_is_answered_and_an_endless_line_closed() -> TestResult {
        let (_folder, path, _questions) = served()?;
        let mut client = UnixStream::connect(path).await?;
        client.write_all(b"hello\n").await?;
        assert!(read_line(&mut client).await?.contains("not a command"));
        client.write_all(&[b'x'; MAX_LINE + 1]).await?;
        assert!(read_line(&mut client).await?.contains("at most 4096 bytes"));
        assert_eq!(client.read(&mut [0; 8]).await?, 0);
        Ok(())
    }

    #[tokio::test]
    async fn a_question_that_nobody_will_answer_is_refused() -> TestResult {
        let (_folder, path, mut questions) = served()?;
        let mut client = UnixStream::connect(path).await?;
        client.write_all(b"{\"command\":\"status\"}\n").await?;
        drop(questions.recv().await.ok_or("server gone")?);
        assert!(read_line(&mut client).await?.contains("stopping"));
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_closed() -> TestResult {
        let (_folder, path, _questions) = served()?;
        let mut client = UnixStream::connect(path).await?;
        assert_eq!(client.read(&mut [0; 8]).await?, 0);
        Ok(())
    }

    #[tokio::test]
    async fn a_client_beyond_the_limit_is_told_so() -> TestResult {
        let (_folder, path, _questions) = served()?;
        let mut clients = Vec::new();
        for _ in 0..MAX_CLIENTS {
            let mut client = UnixStream::connect(&path).await?;
            client.write_all(b"?\n").await?;
            assert!(read_line(&mut client).await?.contains("not a command"));
            clients.push(client);
        }
        let mut late = UnixStream::connect(&path).await?;
        assert!(read_line(&mut late).await?.contains("too many admin connections"));
        Ok(())
    }
}

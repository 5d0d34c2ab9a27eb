//! Server: `GET /metrics` on the control thread, and nothing else.
//!
//! One request a connection, which is closed after its answer. Bounded throughout:
//! [`PLACES`] connections over all addresses, [`HEAD_MOST`] bytes of a request, and
//! [`PATIENCE`] for all of it, so that whoever stalls holds up nothing but a place.
//! Requests are read by the parser that those of clients are read by.

use std::io;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::debug;

use crate::proxy::head::{RequestHead, list};
use crate::proxy::http1::encode::phrase;
use crate::proxy::http1::parse;
use crate::telemetry::Reason;
use crate::transport::buffer::Buffer;

/// Connections at once.
pub(super) const PLACES: usize = 16;

/// How long one may take, from the connection to its end: as long as a scrape of Prometheus
/// does, unless it is told otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest request head in bytes.
const HEAD_MOST: usize = 8 * 1024;

/// How much is read of what follows a request, so that closing is no reset, in bytes.
const REST_MOST: u64 = 64 * 1024;

/// Where the metrics are.
const PATH: &[u8] = b"/metrics";

const TEXT: &str = "text/plain; charset=utf-8";

/// Wants the metrics as they are now. Nothing comes of it when the daemon ends.
#[derive(Debug)]
pub struct Scrape {
    /// How they are to be written.
    pub(super) format: Format,
    /// Takes them; who asked may be gone by then.
    pub(super) answer: oneshot::Sender<String>,
}

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The older text format of Prometheus, which others read too.
    Prometheus,
}

impl Format {
    /// What a scraper takes: OpenMetrics, unless it says that it takes text and does not name
    /// that. No regard is had for weights, since who names it reads it.
    fn of(head: &RequestHead) -> Self {
        let named = |kind: &[u8]| {
            let accepted =
                head.fields.iter().filter(|field| field.name.of(head.bytes()).eq_ignore_ascii_case(b"accept"));
            accepted.flat_map(|field| list(field.value.of(head.bytes()))).any(|entry| {
                let named = entry.split(|byte| *byte == b';').next().unwrap_or_default();
                named.trim_ascii().eq_ignore_ascii_case(kind)
            })
        };
        if named(b"text/plain") && !named(b"application/openmetrics-text") {
            Self::Prometheus
        } else {
            Self::OpenMetrics
        }
    }

    /// Source: OpenMetrics 1.0, "Overall Structure"; Prometheus, "Exposition formats".
    fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// What a request is answered with, but for the metrics themselves.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// With the metrics, or only the head of that.
    Metrics { format: Format, head_only: bool },
    /// With this status and these words.
    Refused(u16, String),
}

/// What somebody gets for whom there is no place.
pub(super) fn full() -> Vec<u8> {
    answer(503, TEXT, "too many connections ask for metrics\n", false)
}

/// Serves one connection.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut scraper: S, scrapes: mpsc::Sender<Scrape>) {
    match timeout(PATIENCE, converse(&mut scraper, &scrapes)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a scrape ended early"),
        Err(_) => debug!("a scrape took too long"),
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    scraper: &mut S,
    scrapes: &mpsc::Sender<Scrape>,
) -> io::Result<()> {
    let Some(asked) = request(scraper).await? else { return Ok(()) };
    let words = match asked {
        Asked::Metrics { format, head_only } => match scrape(scrapes, format).await {
            Some(metrics) => answer(200, format.content_type(), &metrics, head_only),
            None => answer(503, TEXT, "doorward is stopping\n", head_only),
        },
        Asked::Refused(status, why) => answer(status, TEXT, &why, false),
    };
    scraper.write_all(&words).await?;
    scraper.shutdown().await?;
    tokio::io::copy(&mut scraper.take(REST_MOST), &mut tokio::io::sink()).await?;
    Ok(())
}

/// Reads a request; none from who left before.
async fn request<S: AsyncRead + Unpin>(scraper: &mut S) -> io::Result<Option<Asked>> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        let seen = bytes.len();
        let room = HEAD_MOST.saturating_sub(seen);
        if room == 0 {
            return Ok(Some(refused(Reason::HeaderTooLarge)));
        }
        if (&mut *scraper).take(room as u64).read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
        if let Some(asked) = parse::has_end(&bytes, seen).then(|| understand(&bytes)).flatten() {
            return Ok(Some(asked));
        }
    }
}

/// What a request asks for, once it is whole.
fn understand(bytes: &[u8]) -> Option<Asked> {
    let mut buffer = Buffer::take();
    buffer.append(bytes);
    let head = match parse::request(&mut Some(buffer), HEAD_MOST) {
        Ok(head) => head?,
        Err(reason) => return Some(refused(reason)),
    };
    Some(match head.method_name() {
        _ if head.path() != PATH => Asked::Refused(404, "metrics are at /metrics\n".to_owned()),
        method @ (b"GET" | b"HEAD") => Asked::Metrics { format: Format::of(&head), head_only: method == b"HEAD" },
        _ => Asked::Refused(405, "metrics are read by GET\n".to_owned()),
    })
}

fn refused(reason: Reason) -> Asked {
    Asked::Refused(reason.status(), format!("{}\n", reason.as_str()))
}

async fn scrape(scrapes: &mpsc::Sender<Scrape>, format: Format) -> Option<String> {
    let (answer, metrics) = oneshot::channel();
    scrapes.send(Scrape { format, answer }).await.ok()?;
    metrics.await.ok()
}

/// An answer, the last one of its connection.
fn answer(status: u16, kind: &str, body: &str, head_only: bool) -> Vec<u8> {
    let allow = if status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {status} {}\r\nDate: {}\r\n{allow}Content-Type: {kind}\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
        phrase(status),
        httpdate::fmt_http_date(SystemTime::now()),
        body.len(),
    );
    if head_only { head.into_bytes() } else { (head + body).into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(scraper: tokio::io::DuplexStream) -> tokio::task::JoinHandle<()> {
        let (ask, mut scrapes) = mpsc::channel::<Scrape>(1);
        tokio::spawn(async move {
            while let Some(scrape) = scrapes.recv().await {
                let _ = scrape.answer.send("# EOF\n".to_owned());
            }
        });
        tokio::spawn(serve(scraper, ask))
    }

    /// What comes of a request that arrives in pieces of so many bytes.
    async fn asked(request: &str, piece: usize) -> String {
        let (mut near, far) = tokio::io::duplex(64);
        let serving = served(far);
        let mut answer = String::new();
        let (mut reader, mut writer) = tokio::io::split(&mut near);
        let sending = async {
            for part in request.as_bytes().chunks(piece) {
                if writer.write_all(part).await.is_err() {
                    return; // refused before its end
                }
            }
        };
        let (_, read) = tokio::join!(sending, reader.read_to_string(&mut answer));
        read.unwrap();
        drop(near);
        serving.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn metrics_are_had_by_get_and_head_and_nothing_else_is() {
        for (request, status) in [
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", "200 OK"),
            ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", "200 OK"),
            ("GET http://a/metrics HTTP/1.1\r\nHost: a\r\n\r\n", "200 OK"),
            ("\r\nHEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n", "200 OK"),
            ("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", "405 Method Not Allowed"),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "404 Not Found"),
            ("POST /metrics/ HTTP/1.1\r\nHost: a\r\n\r\n", "404 Not Found"),
            ("GET /metrics HTTP/1.1\r\n\r\n", "400 Bad Request"),
            ("GET /metrics HTTP/2.0\r\n\r\n", "505 HTTP Version Not Supported"),
            ("\u{16}\u{3}\u{1}\n\n", "400 Bad Request"),
        ] {
            for piece in [1, usize::MAX] {
                let answer = asked(request, piece).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request:?}: {answer}");
                let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                assert!(head.contains("\r\nConnection: close"), "{head}");
                assert_eq!(head.contains("openmetrics-text"), status == "200 OK", "{head}");
                assert_eq!(head.contains("\r\nAllow: GET, HEAD\r\n"), status.starts_with("405"), "{head}");
                let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
                let expected = if request.contains("HEAD") { 0 } else { length.parse().unwrap() };
                assert_eq!(body.len(), expected, "{answer}");
            }
        }
    }

    #[tokio::test]
    async fn who_takes_text_alone_gets_text() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, format) in [
            ("", Format::OpenMetrics),
            ("Accept: */*\r\n", Format::OpenMetrics),
            (&*format!("Accept: {prometheus}\r\n"), Format::OpenMetrics),
            ("accept: Text/Plain;version=0.0.4;q=1, */*;q=0.1\r\n", Format::Prometheus),
            ("Accept: text/plain\r\nAccept: application/openmetrics-text\r\n", Format::OpenMetrics),
            ("Accept: text/html\r\nAccept: text/plain ;q=0\r\n", Format::Prometheus),
        ] {
            let answer = asked(&format!("GET /metrics HTTP/1.1\r\nHost: a\r\n{accept}\r\n"), usize::MAX).await;
            assert!(answer.contains(&format!("\r\nContent-Type: {}\r\n", format.content_type())), "{accept}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_head_without_end_is_refused() {
        let endless = format!("GET /metrics HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(2 * HEAD_MOST));
        let answer = asked(&endless, 1000).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_stalls_is_given_up_whether_it_owes_a_request_or_takes_no_answer() {
        for words in ["", "GET /metr", "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"] {
            let (mut near, far) = tokio::io::duplex(64);
            let serving = served(far);
            near.write_all(words.as_bytes()).await.unwrap();
            let began = tokio::time::Instant::now();
            serving.await.unwrap();
            assert!((PATIENCE..PATIENCE * 2).contains(&began.elapsed()), "{words:?}: {:?}", began.elapsed());
        }
    }
}

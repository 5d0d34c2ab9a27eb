//! Echo: the built-in backend, `builtin:echo`.
//!
//! It answers every request with a page that shows the request exactly as a backend
//! receives it: JSON, or HTML for a client that prefers it. It sits behind a socket
//! pair, so that a request to it takes the same way as any other, and what it shows
//! is what was written on that socket.

use std::io;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::head::{Framing, Known, Span, Version};
use super::http1::body::Decoder;
use super::http1::lines::{self, Stop};
use crate::transport::stream::{Family, Socket, Stream};

/// Bytes of a request head that it reads.
const HEAD_LIMIT: usize = 64 * 1024;

/// Bytes of a body that the page shows; the rest is counted.
const SHOWN: usize = 4 * 1024;

/// A connection to the built-in backend, served on this thread.
///
/// # Errors
/// When no descriptors are left.
pub fn connect() -> io::Result<Stream> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let theirs = UnixStream::from_std(theirs)?;
    tokio::task::spawn_local(async move {
        // It ends when the proxy closes its side, or by a fault that the proxy sees too.
        let _ = serve(theirs).await;
    });
    Ok(Socket::new(ours.into(), Family::Unix).into())
}

/// The request as the page shows it.
#[derive(Debug, Serialize)]
struct Page {
    method: String,
    target: String,
    version: &'static str,
    /// In the order they came; one line each reads better than pairs.
    #[serde(serialize_with = "lines")]
    headers: Vec<(String, String)>,
    body_bytes: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    body: String,
}

async fn serve(mut socket: UnixStream) -> io::Result<()> {
    let mut input = Vec::new();
    loop {
        let Some((mut page, framing, html, length)) = head(&mut socket, &mut input).await? else { return Ok(()) };
        input.drain(..length.min(input.len()));
        if page.headers.iter().any(|(name, value)| name.eq_ignore_ascii_case("expect") && value == "100-continue") {
            socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        body(&mut socket, &mut input, framing, &mut page).await?;
        let (kind, text) =
            if html { ("text/html; charset=utf-8", page.html()) } else { ("application/json", page.json()) };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nCache-Control: no-store\r\nContent-Length: {}\r\n\r\n",
            text.len()
        );
        socket.write_all(head.as_bytes()).await?;
        if page.method != "HEAD" {
            socket.write_all(text.as_bytes()).await?;
        }
    }
}

/// Reads a request head: the page, the framing of the body, whether HTML is preferred,
/// and the head's length.
async fn head(socket: &mut UnixStream, input: &mut Vec<u8>) -> io::Result<Option<(Page, Framing, bool, usize)>> {
    loop {
        let mut fields = Vec::new();
        match lines::request(input, &mut fields) {
            Ok((line, length)) => {
                let text = |span: Span| String::from_utf8_lossy(span.of(input)).into_owned();
                let mut framing = Framing::Empty;
                let mut html = false;
                for field in &fields {
                    match field.known {
                        Known::TransferEncoding => framing = Framing::Chunked,
                        Known::ContentLength => {
                            framing = text(field.value).parse().map(Framing::Length).map_err(io::Error::other)?;
                        }
                        _ if field.name.of(input).eq_ignore_ascii_case(b"accept") => {
                            html = text(field.value).contains("text/html");
                        }
                        _ => {}
                    }
                }
                let page = Page {
                    method: text(line.method),
                    target: text(line.target),
                    version: if line.version == Version::Http10 { "HTTP/1.0" } else { "HTTP/1.1" },
                    headers: fields.iter().map(|field| (text(field.name), text(field.value))).collect(),
                    body_bytes: 0,
                    body: String::new(),
                };
                return Ok(Some((page, framing, html, length)));
            }
            Err(Stop::More) => {}
            Err(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
        if input.len() > HEAD_LIMIT || socket.read_buf(input).await? == 0 {
            return Ok(None);
        }
    }
}

async fn body(socket: &mut UnixStream, input: &mut Vec<u8>, framing: Framing, page: &mut Page) -> io::Result<()> {
    let mut decoder = Decoder::new(framing);
    let mut shown = Vec::new();
    loop {
        let decoded = decoder.decode(input).map_err(io::Error::other)?;
        page.body_bytes += u64::try_from(decoded.data).unwrap_or(0);
        let room = SHOWN - shown.len();
        shown.extend(input.iter().take(decoded.data.min(room)));
        input.drain(..decoded.taken.min(input.len()));
        if decoder.is_done() {
            page.body = String::from_utf8_lossy(&shown).into_owned();
            return Ok(());
        }
        if socket.read_buf(input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn lines<S: serde::Serializer>(headers: &[(String, String)], out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(headers.iter().map(|(name, value)| format!("{name}: {value}")))
}

impl Page {
    fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    fn html(&self) -> String {
        let row = |(name, value): &(String, String)| format!("<tr><th scope=row>{}<td>{}", escape(name), escape(value));
        let rows: String = self.headers.iter().map(row).collect();
        let body = match self.body_bytes {
            0 => String::new(),
            bytes => format!("<h2>Body, {bytes} bytes</h2><pre>{}</pre>", escape(&self.body)),
        };
        format!(
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
             <title>doorward: the request as a backend receives it</title>\
             <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}\
             th{{text-align:left;vertical-align:top;padding-right:1.5rem;font-weight:600}}td{{overflow-wrap:anywhere}}\
             td,pre,code{{font-family:ui-monospace,monospace;font-size:14px}}\
             @media(prefers-color-scheme:dark){{body{{background:#161616;color:#e8e8e8}}}}</style>\
             <h1>doorward is serving</h1><p>No backend is set yet, so the built-in one answers and shows the request \
             as a backend receives it. Set <code>BACKEND_ADDRESS</code> in <code>config.env</code> and reload.</p>\
             <h2>{} {} {}</h2><table>{rows}</table>{body}</html>\n",
            escape(&self.method),
            escape(&self.target),
            self.version
        )
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            character => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Page, escape};

    #[test]
    fn the_page_shows_markup_as_text() {
        let page = Page {
            method: "POST".into(),
            target: "/<script>".into(),
            version: "HTTP/1.1",
            headers: vec![("X-A".into(), "\"<b>\"".into())],
            body_bytes: 3,
            body: "<i>".into(),
        };
        let html = page.html();
        assert!(!html.contains("<script>") && !html.contains("<b>") && !html.contains("<i>"));
        assert!(page.json().contains("\"/<script>\""));
        assert_eq!(escape("a&b"), "a&amp;b");
    }
}

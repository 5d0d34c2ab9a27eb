//! Takes fixed messages the way of a request as often as asked, for callgrind to count:
//! `instructions CASE TIMES`. Without arguments it names the cases. `benches/instructions`
//! runs it.
//!
//! Of the way, it has what is computed: parse, route, whom to trust, rewrite; of HTTP/2, what is
//! ours and not the `h2` crate's. There is no socket and no clock, so that the same program does the same in every run.

mod cases;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use doorward::config::{Config, SentPath, Text};
use doorward::proxy::forwarded::Forwarded;
use doorward::proxy::head::{Fields, Framing, Method, RequestHead, ResponseHead, Version};
use doorward::proxy::http1::body::Decoder;
use doorward::proxy::http1::encode::{self, Onward};
use doorward::proxy::http1::parse;
use doorward::proxy::http2;
use doorward::proxy::origin::Origin;
use doorward::proxy::rewrite::Rewrite;
use doorward::state::Generation;
use doorward::telemetry::Peer;
use doorward::transport::buffer::{self, Buffer};

use cases::{CASES, CONFIG, Case, ROUTES};

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => {
            for (name, _) in CASES {
                writeln!(io::stdout(), "{name}")?;
            }
        }
        [name, times] => {
            let times = times.parse().context("TIMES is no number")?;
            let (_, case) = CASES.iter().find(|(known, _)| known == name).context("no such case")?;
            take(*case, times)?;
        }
        _ => bail!("usage: instructions [CASE TIMES]"),
    }
    Ok(ExitCode::SUCCESS)
}

fn take(case: Case, times: u32) -> Result<()> {
    match case {
        Case::Request { head, route } => {
            let generation = generation()?;
            for _ in 0..times {
                request(black_box(head), route, &generation)?;
            }
        }
        Case::Stream { uri, fields, route } => {
            let generation = generation()?;
            let opening =
                fields.iter().fold(http::Request::get(uri), |opening, (name, value)| opening.header(*name, *value));
            let (parts, ()) = opening.body(())?.into_parts();
            for _ in 0..times {
                let head = http2::head::request(black_box(&parts), true, 16 * 1024).ok();
                onward(&head.context("the request is refused")?, route, &generation)?;
            }
        }
        Case::Http2Response { head } => {
            for _ in 0..times {
                let head = response_head(black_box(head))?;
                let response = http2::fields::response(&head, None, None, false);
                ensure!(black_box(response).status() == 200, "another answer came out");
            }
        }
        Case::Response { head } => {
            for _ in 0..times {
                response(black_box(head))?;
            }
        }
        Case::Chunks { each, count } => {
            let chunk = [format!("{each:x}\r\n").as_bytes(), &vec![b'x'; each], b"\r\n"].concat();
            let body = [chunk.repeat(count), b"0\r\n\r\n".to_vec()].concat();
            for _ in 0..times {
                let data = chunks(black_box(&body))?;
                ensure!(data == each * count, "{data} bytes of data");
            }
        }
    }
    Ok(())
}

fn generation() -> Result<Generation> {
    let text = |path: String, text: &str| Text { path: Path::new(&path).into(), bytes: text.as_bytes().to_vec() };
    let routes = ROUTES.iter().map(|(name, body)| text(format!("routes.d/{name}.env"), body)).collect();
    let config = Config::assemble(Some(text("config.env".to_owned(), CONFIG)), routes, &BTreeMap::new());
    Ok(Generation::build(1, config.map_err(|problems| anyhow::anyhow!("{problems}"))?, &Default::default(), None))
}

fn request(bytes: &[u8], name: &str, generation: &Generation) -> Result<()> {
    let mut input = Buffer::take();
    input.append(bytes);
    let parsed = parse::request(&mut Some(input), 16 * 1024).ok().flatten();
    onward(&parsed.context("the request is refused")?, name, generation)
}

/// Has a request go on to the route of this name.
fn onward(head: &RequestHead, name: &str, generation: &Generation) -> Result<()> {
    let path = SentPath::of(head.path());
    let route = generation.route(head.authority(), &path, "http").context("no route")?;
    ensure!(&*route.name == name, "taken by {}", route.name);
    let peer = Peer::Ip(([192, 0, 2, 1], 4711).into());
    let kind = route.settings.forwarded;
    let origin = Origin::of(peer, &generation.config.daemon.trusted_proxies, kind, &head.fields);
    let forwarded = Forwarded {
        peer: b"192.0.2.1",
        scheme: "http",
        host: "127.0.0.1:8080",
        request_id: b"0123456789abcdef0123456789abcdef",
        kind,
        trusted: origin.trusted,
    };
    let mut out = buffer::scratch();
    let rewrite = Rewrite::of(&path, route.rewrites.as_deref());
    encode::request(&mut out, head, &forwarded, &rewrite);
    ensure!(black_box(&out).ends_with(b"\r\n\r\n"), "no head came out");
    buffer::recycle(out);
    Ok(())
}

fn response_head(bytes: &[u8]) -> Result<ResponseHead> {
    let mut input = Buffer::take();
    input.append(bytes);
    let parsed = parse::response(&mut Some(input), Method::Idempotent).ok().flatten();
    parsed.context("the response is refused")
}

fn response(bytes: &[u8]) -> Result<()> {
    let head = response_head(bytes)?;
    let onward = Onward { version: Version::Http11, framing: head.framing, keep_alive: true, trailers: false };
    let mut out = buffer::scratch();
    encode::response(&mut out, &head, None, &onward);
    ensure!(black_box(&out).ends_with(b"\r\n\r\n"), "no head came out");
    buffer::recycle(out);
    Ok(())
}

/// Decodes the body as it would be read, a buffer at a time; how much data it had.
fn chunks(body: &[u8]) -> Result<usize> {
    let mut decoder = Decoder::behind(Framing::Chunked, &Fields::new());
    let (mut data, mut rest) = (0, body);
    while !decoder.is_done() {
        let mut input = Buffer::take();
        let taken = input.append(rest);
        ensure!(taken > 0, "the body goes on");
        rest = rest.get(taken..).unwrap_or_default();
        while !input.is_empty() {
            let decoded = decoder.decode(input.filled_mut()).ok().context("the body is refused")?;
            ensure!(decoded.taken > 0, "the decoder stands still");
            data += black_box(decoded.data);
            input.consume(decoded.taken);
        }
    }
    Ok(data)
}

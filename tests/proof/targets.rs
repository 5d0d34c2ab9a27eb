//! What must hold for any bytes at all: one function for each target of the fuzzer. Each
//! panics when it does not.
//!
//! `cargo fuzz` runs them on what it finds, the tests beside them on the committed corpus.

use std::sync::LazyLock;

use doorward::config::{Config, Forwarding, SentPath, Text};
use doorward::proxy::forwarded::Forwarded;
use doorward::proxy::head::{self, Fields, Method, RequestHead, ResponseHead, Version};
use doorward::proxy::http1::body::Decoder;
use doorward::proxy::http1::encode::{self, Onward};
use doorward::proxy::http1::parse;
use doorward::proxy::relay::Fault as Broken;
use doorward::proxy::rewrite::Rewrite;
use doorward::routing::Rewrites;
use doorward::telemetry::Reason;
use doorward::transport::buffer::Buffer;

use super::model;
use super::reference::{self, Fault, Framing, Head, Rules};

/// Bytes that a request's head may have here.
const LIMIT: usize = 4096;

/// The bounds of a chunked body.
const RULES: Rules =
    Rules { digits: 16, extension: 1024, excess: 16 * 1024, trailers: model::MOST_FIELDS, trailer: 8 * 1024 };

/// Bytes that one input may have.
const LONGEST: usize = 8000;

/// A target by its name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 4] = [
    ("request_head", request_head),
    ("chunked_body", chunked_body),
    ("response_head", response_head),
    ("header_rewriting", header_rewriting),
];

/// A request's head is taken exactly when the model takes it, and read the same way.
pub fn request_head(data: &[u8]) {
    if data.len() > LONGEST {
        return;
    }
    let (came, left) = parsed(data, |input| parse::request(input, LIMIT));
    let empty = data.chunks(2).take_while(|line| *line == b"\r\n").count() * 2;
    let read = reference::request_head(&data[empty..]);
    match (came, read) {
        (Ok(Some(ours)), Ok(theirs)) => {
            let meant = model::request(&theirs).unwrap_or_else(|why| panic!("taken in spite of {why}"));
            let length = empty + theirs.length;
            assert!(length <= LIMIT, "longer than allowed");
            assert_eq!(data.len() - left, length, "the head's end");
            whole_only_at_its_end(&data[..length], |input| parse::request(input, LIMIT).map(|head| head.is_some()));
            assert_eq!(ours.method_name(), theirs.line[0]);
            assert_eq!(ours.method, Method::of(&theirs.line[0]));
            assert_eq!(ours.target(), meant.target);
            assert_eq!(ours.authority(), meant.authority.as_deref());
            assert_eq!(ours.version, version(&theirs.line[2]));
            assert_eq!(framing(ours.framing), meant.framing);
            assert_eq!(ours.keep_alive, meant.keep_alive);
            assert_eq!(ours.upgrade, !meant.offers.is_empty());
            assert!(!ours.upgrade || ours.offers().eq(meant.offers.iter().map(Vec::as_slice)), "offers");
            assert_eq!(ours.trailers, meant.trailers);
            assert_eq!(ours.max_forwards, meant.hops);
            same_fields(&ours.fields, &theirs, true);
            if meant.framing == Framing::Chunked {
                trailers_go_on(Decoder::behind(ours.framing, &ours.fields), &data[length..], &theirs);
            }
        }
        (Ok(Some(_)), Err(fault)) => panic!("taken in spite of {fault:?}"),
        (Ok(None), Ok(theirs)) => panic!("waits for more of a head of {} bytes", theirs.length),
        (Err(reason), Ok(theirs)) if empty + theirs.length <= LIMIT => {
            assert!(model::request(&theirs).is_err(), "refused for {reason:?} for nothing");
            let many = theirs.fields.len() > model::MOST_FIELDS;
            assert_eq!(reason == Reason::HeaderTooLarge, many, "{reason:?}");
            assert_eq!(reason == Reason::MethodTooLong, !many && theirs.line[0].len() > model::LONGEST_METHOD);
        }
        // A method is too long as soon as it is, whatever follows.
        (came, Err(Fault::Partial)) => {
            let end = data[empty..].iter().position(|byte| *byte == b' ').unwrap_or(data.len() - empty);
            let long = end > model::LONGEST_METHOD;
            assert!(!long || came.is_err(), "waits for more of a method of {end} bytes");
            assert!(long || !matches!(came, Err(Reason::MethodTooLong)), "a method of {end} bytes is too long");
        }
        (Ok(None) | Err(_), _) => {}
    }
}

/// A response's head, likewise. The first byte says to which method.
pub fn response_head(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    if data.len() > LONGEST {
        return;
    }
    let method: &[u8] = if first & 1 == 0 { b"GET" } else { b"HEAD" };
    let to = Method::of(method);
    let (came, left) = parsed(data, |input| parse::response(input, to));
    match (came, lenient_response(data)) {
        (Ok(Some(ours)), Ok(theirs)) => {
            let meant = model::response(&theirs, method).unwrap_or_else(|why| panic!("taken in spite of {why}"));
            assert_eq!(data.len() - left, theirs.length, "the head's end");
            let length = theirs.length;
            whole_only_at_its_end(&data[..length], |input| parse::response(input, to).map(|head| head.is_some()));
            assert_eq!(ours.status.to_string().as_bytes(), theirs.line[1]);
            assert_eq!(ours.phrase.of(ours.fields.bytes()), theirs.line[2]);
            assert_eq!(framing(ours.framing), meant.framing);
            assert_eq!(ours.stated_length.map(|length| length as usize), meant.length);
            assert_eq!(ours.keep_alive, meant.keep_alive);
            same_fields(&ours.fields, &theirs, true);
            if meant.framing == Framing::Chunked {
                trailers_go_on(Decoder::behind(ours.framing, &ours.fields), &data[length..], &theirs);
            }
        }
        (Ok(Some(_)), Err(fault)) => panic!("taken in spite of {fault:?}"),
        (Ok(None), Ok(theirs)) => panic!("waits for more of a head of {} bytes", theirs.length),
        (Err(reason), Ok(theirs)) => {
            assert!(model::response(&theirs, method).is_err(), "refused for {reason:?} for nothing");
            let many = theirs.fields.len() > model::MOST_FIELDS;
            assert_eq!(reason, if many { Reason::BackendHeaderTooLarge } else { Reason::BackendMalformed });
        }
        (Ok(None) | Err(_), Err(_)) => {}
    }
}

/// A chunked body is taken exactly when the reference takes it, to the same bytes,
/// however the reads fall. The first byte says how they do.
pub fn chunked_body(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    if data.len() > LONGEST {
        // Beyond this many small trailers may reach their bound in all, which the reference
        // has not.
        return;
    }
    let whole = chunks(data);
    let mut state = u32::from(*first) | 0x100;
    let mut some = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        1 + (state >> 24) as usize % (1 + usize::from(*first >> 2))
    };
    assert_eq!(decoded(Decoder::new(head::Framing::Chunked), data, &mut some), whole, "split over reads");
}

/// Decodes chunks in one piece, as the reference does; of any length, with one trailer
/// field at most when longer than [`LONGEST`].
pub fn chunks(data: &[u8]) -> Result<Chunks, Broken> {
    let ours = decoded(Decoder::new(head::Framing::Chunked), data, &mut || usize::MAX);
    match (&ours, reference::chunked(data, RULES)) {
        (Ok(ours), Ok((body, trailers, length))) => {
            assert!(ours.body == body && ours.length == length, "another body, or another end");
            assert_eq!(text(&ours.trailers), text(&lines(&model::trailing(&trailers, None))));
        }
        (Err(Broken::Truncated), Err(Fault::Partial)) | (Err(Broken::Malformed(_)), Err(Fault::Wrong(_))) => {}
        (ours, theirs) => panic!("{ours:?} is not {theirs:?}"),
    }
    ours
}

/// Behind a head, those trailer fields go on that it lets pass, and as they came.
fn trailers_go_on(decoder: Decoder, body: &[u8], head: &Head) {
    let ours = decoded(decoder, body, &mut || usize::MAX);
    if let (Ok(ours), Ok((_, trailers, _))) = (ours, reference::chunked(body, RULES)) {
        assert_eq!(text(&ours.trailers), text(&lines(&model::trailing(&trailers, Some(head)))));
    }
}

/// Field lines as doorward writes them.
fn lines(fields: &[model::Line]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| [name, &b": "[..], value, b"\r\n"].concat()).collect()
}

/// What goes on says the same as what came, by the reference, with only those fields
/// that go on, and ours. The first byte says which head it is and whom it is for.
pub fn header_rewriting(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    if data.len() > LONGEST {
        return;
    }
    if first & 1 == 0 {
        let empty = data.chunks(2).take_while(|line| *line == b"\r\n").count() * 2;
        if let (Ok(Some(ours)), _) = parsed(data, |input| parse::request(input, LIMIT)) {
            let theirs = reference::request_head(&data[empty..]);
            rewritten_request(*first, &ours, &theirs.unwrap());
        }
    } else {
        let method = if first & 8 == 0 { Method::Other } else { Method::Head };
        if let (Ok(Some(ours)), _) = parsed(data, |input| parse::response(input, method)) {
            rewritten_response(*first, method, &ours, &lenient_response(data).unwrap());
        }
    }
}

/// A route that changes all it can but the path.
static REWRITES: LazyLock<Box<Rewrites>> = LazyLock::new(|| {
    let text = "BACKEND_HOST=fixed:81\nSET_REQUEST_HEADERS='X-Set: a | Accept: b'\nREMOVE_REQUEST_HEADERS=Cookie,X-A\n\
         SET_RESPONSE_HEADERS='X-Set: a | ETag: b'\nREMOVE_RESPONSE_HEADERS=Server,X-A\n";
    let text = Text { path: std::path::Path::new("config.env").into(), bytes: text.into() };
    let config = Config::assemble(Some(text), Vec::new(), &std::collections::BTreeMap::new()).unwrap();
    Rewrites::of(&config.routes[0].settings).unwrap()
});

/// What [`REWRITES`] make of fields.
fn edited<const N: usize>(fields: &mut Vec<model::Line>, names: [&str; 4], set: [model::Line; N]) {
    let spelled = |name: &[u8]| String::from_utf8_lossy(name).replace('_', "-").to_lowercase();
    fields.retain(|(name, _)| !names.contains(&spelled(name).as_str()));
    fields.extend(set);
}

fn rewritten_request(options: u8, ours: &RequestHead, came: &Head) {
    let meant = model::request(came).unwrap();
    let kinds = [Forwarding::XForwarded, Forwarding::Rfc7239, Forwarding::Both, Forwarding::Off];
    let kind = kinds[usize::from((options >> 2) & 3)];
    let trusted = options & 2 != 0;
    let (peer, node) = match (options >> 4) & 3 {
        0 => ("192.0.2.1", "for=192.0.2.1"),
        1 => ("2001:db8::1", "for=\"[2001:db8::1]\""),
        _ => ("unix:", "for=unknown"),
    };
    let forwarded =
        Forwarded { peer: peer.as_bytes(), scheme: "http", host: "backend:8080", request_id: b"0a1b", kind, trusted };
    let mut out = Vec::new();
    let path = SentPath::of(ours.path());
    let rewrites = (options & 64 != 0).then(|| &**REWRITES);
    encode::request(&mut out, ours, &forwarded, &Rewrite::of(&path, rewrites));
    let went = reference::request_head(&out).unwrap_or_else(|fault| panic!("{fault:?}: {}", text(&out)));
    assert_eq!(went.length, out.len(), "one head and nothing else: {}", text(&out));

    // The line.
    let target = match (meant.target.as_slice(), ours.method) {
        (b"", Method::Options) => b"*".to_vec(),
        (b"", _) => b"/".to_vec(),
        ([b'?', ..], _) => [b"/", meant.target.as_slice()].concat(),
        (target, _) => model::sent_target(target),
    };
    assert_eq!(went.line, [came.line[0].clone(), target, b"HTTP/1.1".to_vec()]);

    // The fields.
    let mut authority = meant.authority.as_deref().unwrap_or(b"backend:8080");
    if rewrites.is_some() {
        authority = b"fixed:81";
    }
    let old = came.line[2] == b"HTTP/1.0";
    let chunked = meant.framing == Framing::Chunked;
    let mut wanted = vec![line("Host", authority)];
    wanted.extend(model::passed_on(came).into_iter().filter(|(name, _)| {
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        let named = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "forwarded"];
        let kept = trusted && matches!(kind, Forwarding::XForwarded | Forwarding::Both) && !name.contains(&b'_');
        let forwarding = model::is_forwarding(name) && (!kept || named.iter().any(|other| is(other)));
        let ours = is("host") || is("content-length") || is("x-request-id");
        // It announces what can stand only behind chunks (RFC 9110 §6.6.2).
        let announces = is("trailer") && !chunked;
        !(forwarding || ours || announces || (is("expect") && old) || (is("max-forwards") && meant.hops.is_some()))
    }));
    if rewrites.is_some() {
        edited(&mut wanted, ["x-set", "accept", "cookie", "x-a"], [line("X-Set", b"a"), line("Accept", b"b")]);
    }
    let own = Own { peer, node, authority: meant.authority.as_deref(), trusted, kind };
    let mut told = 0;
    if matches!(kind, Forwarding::XForwarded | Forwarding::Both) {
        told += if own.asked(came).is_some() { 3 } else { 2 };
    }
    if matches!(kind, Forwarding::Rfc7239 | Forwarding::Both) {
        told += 1;
    }
    let (before, rest) = went.fields.split_at(wanted.len().min(went.fields.len()));
    assert_eq!(before, wanted, "fields that go on: {}", text(&out));
    let (forwarding, last) = rest.split_at(told);
    own.told(forwarding, came);
    let mut wanted = vec![line("X-Request-Id", b"0a1b")];
    wanted.push(line("Via", if old { b"1.0 doorward" } else { b"1.1 doorward" }));
    wanted.extend(meant.hops.map(|hops| line("Max-Forwards", hops.saturating_sub(1).to_string().as_bytes())));
    // Both are of this connection, so that `Connection` names them (RFC 9110 §7.8, §10.1.4).
    let options = match (meant.offers.is_empty(), meant.trailers) {
        (true, false) => None,
        (true, true) => Some("TE"),
        (false, true) => Some("upgrade, TE"),
        (false, false) => Some("upgrade"),
    };
    wanted.extend(meant.trailers.then(|| line("TE", b"trailers")));
    wanted.extend(options.map(|options| line("Connection", options.as_bytes())));
    if !meant.offers.is_empty() {
        wanted.push(line("Upgrade", &meant.offers.join(&b", "[..])));
    }
    wanted.extend(frame(meant.framing));
    assert_eq!(last, wanted, "fields of ours: {}", text(&out));
    let said = reference::stated(&went.fields, b"HTTP/1.1").unwrap();
    assert_eq!(said, if meant.framing == Framing::None { Framing::UntilClose } else { meant.framing });
}

/// What a backend is told of whom a request is made for.
struct Own<'a> {
    peer: &'a str,
    node: &'a str,
    authority: Option<&'a [u8]>,
    trusted: bool,
    kind: Forwarding,
}

impl Own<'_> {
    /// Whom was asked for: what a trusted peer says of that, if it says one thing, else what
    /// the request says. An HTTP/1.0 request may say nothing.
    fn asked(&self, came: &Head) -> Option<Vec<u8>> {
        let told = match came.all("x-forwarded-host").as_slice() {
            [host] if self.trusted && !host.is_empty() && model::authority(host) => Some(*host),
            _ => None,
        };
        told.or(self.authority).map(<[u8]>::to_vec)
    }

    fn told(&self, lines: &[model::Line], came: &Head) {
        let mut lines = lines.iter();
        let proto = came.all("x-forwarded-proto");
        if matches!(self.kind, Forwarding::XForwarded | Forwarding::Both) {
            let mut chain = Vec::new();
            if self.trusted {
                chain = came.all("x-forwarded-for").into_iter().flat_map(model::entries).collect();
            }
            chain.push(self.peer.as_bytes().to_vec());
            assert_eq!(lines.next(), Some(&line("X-Forwarded-For", &chain.join(&b", "[..]))));
            let (name, value) = lines.next().unwrap();
            assert_eq!(name, b"X-Forwarded-Proto");
            assert!(value == b"http" || (self.trusted && proto == [value.as_slice()]), "{}", text(value));
            if let Some(host) = self.asked(came) {
                assert_eq!(lines.next(), Some(&line("X-Forwarded-Host", &host)));
            }
        }
        if matches!(self.kind, Forwarding::Rfc7239 | Forwarding::Both) {
            let (name, value) = lines.next().unwrap();
            assert_eq!(name, b"Forwarded");
            let elements = model::elements(value);
            let mut last = self.node.as_bytes().to_vec();
            if let Some(host) = self.authority.filter(|host| !host.is_empty()) {
                let token = host.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b));
                let quote: &[u8] = if token { b"" } else { b"\"" };
                last.extend([b";host=", quote, host, quote].concat());
            }
            last.extend(b";proto=http");
            assert_eq!(elements.last().map(Vec::as_slice), Some(&last[..]), "{}", text(value));
            assert!(self.trusted || elements.len() == 1, "{}", text(value));
        }
        assert_eq!(lines.next(), None, "told twice");
    }
}

fn rewritten_response(options: u8, method: Method, ours: &ResponseHead, came: &Head) {
    let to: &[u8] = if method == Method::Head { b"HEAD" } else { b"POST" };
    let meant = model::response(came, to).unwrap();
    let mut wanted = model::passed_on(came);
    wanted.retain(|(name, _)| !name.eq_ignore_ascii_case(b"content-length"));
    let rewrites = (options & 64 != 0).then(|| &**REWRITES);
    let edits = rewrites.and_then(|rewrites| rewrites.response.as_ref());
    let dated = wanted.iter().any(|(name, _)| name.eq_ignore_ascii_case(b"date"));
    let mut out = Vec::new();
    if ours.status == 101 {
        let offer = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket, a/1, b\r\n\r\n";
        let (request, _) = parsed(offer, |input| parse::request(input, LIMIT));
        let agreed = came.all("upgrade").into_iter().flat_map(model::entries).collect::<Vec<_>>();
        if !ours.agrees_to(&request.unwrap().unwrap()) {
            return;
        }
        assert!(agreed.iter().all(|one| [&b"websocket"[..], b"a/1", b"b"].contains(&&one.to_ascii_lowercase()[..])));
        wanted.retain(|(name, _)| !name.eq_ignore_ascii_case(b"trailer"));
        encode::switching(&mut out, ours, edits);
        if edits.is_some() {
            edited(&mut wanted, ["x-set", "etag", "server", "x-a"], [line("X-Set", b"a"), line("ETag", b"b")]);
        }
        let agreed = agreed.join(&b", "[..]);
        wanted.splice(0..0, [line("Connection", b"upgrade"), line("Upgrade", &agreed)]);
    } else if ours.is_interim() {
        // It has no body, and nothing behind it.
        wanted.retain(|(name, _)| !name.eq_ignore_ascii_case(b"trailer"));
        encode::interim(&mut out, ours, edits);
        if edits.is_some() {
            edited(&mut wanted, ["x-set", "etag", "server", "x-a"], []);
        }
    } else {
        let version = if options & 2 == 0 { Version::Http11 } else { Version::Http10 };
        let body = match (ours.framing, version) {
            (head::Framing::Chunked | head::Framing::UntilClose, Version::Http11) => head::Framing::Chunked,
            (head::Framing::Chunked | head::Framing::UntilClose, Version::Http10) => head::Framing::UntilClose,
            (framing, _) => framing,
        };
        let keep_alive = options & 4 == 0 && body != head::Framing::UntilClose;
        let trailers = options & 16 != 0 && body == head::Framing::Chunked;
        wanted.retain(|(name, _)| trailers || !name.eq_ignore_ascii_case(b"trailer"));
        encode::response(&mut out, ours, edits, &Onward { version, framing: body, keep_alive, trailers });
        if edits.is_some() {
            edited(&mut wanted, ["x-set", "etag", "server", "x-a"], [line("X-Set", b"a"), line("ETag", b"b")]);
        }
        if !dated {
            wanted.push(line("Date", b""));
        }
        match (framing(body), meant.length) {
            (Framing::None, Some(length)) => wanted.extend(frame(Framing::Length(length))),
            (framing, _) => wanted.extend(frame(framing)),
        }
        match (version, keep_alive) {
            (_, false) => wanted.push(line("Connection", b"close")),
            (Version::Http10, true) => wanted.push(line("Connection", b"keep-alive")),
            (Version::Http11 | Version::Http2, true) => {}
        }
    }
    let mut went = reference::response_head(&out).unwrap_or_else(|fault| panic!("{fault:?}: {}", text(&out)));
    assert_eq!(went.length, out.len(), "one head and nothing else: {}", text(&out));
    assert_eq!(went.line, [b"HTTP/1.1".to_vec(), came.line[1].clone(), came.line[2].clone()]);
    if !ours.is_interim() && ours.status != 101 && !dated {
        for (_, value) in went.fields.iter_mut().filter(|(name, _)| name == b"Date") {
            let date = std::str::from_utf8(value).ok().and_then(|date| httpdate::parse_http_date(date).ok());
            assert!(date.is_some(), "no date: {}", text(value));
            value.clear();
        }
    }
    assert_eq!(went.fields, wanted, "{}", text(&out));
    // Where there is no body, a length may still be stated, and a 1xx or 204 states none.
    let body = [out.as_slice(), b"0\r\n\r\n"].concat();
    match reference::response(&body, to, true) {
        Ok(_) | Err(Fault::Partial) => {}
        Err(Fault::Wrong(breach)) => assert!(matches!(meant.framing, Framing::Length(_)), "{breach}: {}", text(&out)),
    }
}

/// Gives bytes to a parser; also says how many it left.
fn parsed<T>(data: &[u8], parse: impl Fn(&mut Option<Buffer>) -> Result<T, Reason>) -> (Result<T, Reason>, usize) {
    let mut buffer = Buffer::take();
    assert_eq!(buffer.append(data), data.len());
    let mut input = Some(buffer);
    let parsed = parse(&mut input);
    (parsed, input.map_or(0, |input| input.len()))
}

/// No part of a head is a whole one, or refused, and its end is seen when it is there.
fn whole_only_at_its_end(bytes: &[u8], parse: impl Fn(&mut Option<Buffer>) -> Result<bool, Reason>) {
    let length = bytes.len();
    for cut in [length - 1, length - 2, length - 3, length / 2, length / 3, 1] {
        assert_eq!(parsed(&bytes[..cut], &parse).0, Ok(false), "cut at {cut}");
    }
    for seen in [0, length / 2, length - 2, length - 1] {
        assert!(parse::has_end(bytes, seen), "its end is not seen after {seen} bytes");
    }
}

/// What a chunked body has.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunks {
    /// Its data.
    pub body: Vec<u8>,
    /// The lines behind it that go on.
    pub trailers: Vec<u8>,
    /// Bytes that it took.
    pub length: usize,
}

/// Decodes a body given in reads of the sizes that `next` says.
fn decoded(mut decoder: Decoder, data: &[u8], next: &mut impl FnMut() -> usize) -> Result<Chunks, Broken> {
    let (mut body, mut at) = (Vec::new(), 0);
    while at < data.len() && !decoder.is_done() {
        let end = data.len().min(at.saturating_add(next()));
        let mut bytes = data[at..end].to_vec();
        let decoded = decoder.decode(&mut bytes)?;
        body.extend_from_slice(&bytes[..decoded.data]);
        assert!(decoder.is_done() || decoded.taken == end - at, "bytes are left in the middle");
        at += decoded.taken;
    }
    decoder.end()?;
    Ok(Chunks { body, trailers: decoder.trailers().to_vec(), length: at })
}

/// Reads a response's head, also one whose line ends behind the status: many backends
/// leave out the space before a phrase of none.
fn lenient_response(data: &[u8]) -> Result<Head, Fault> {
    if !data.get(12..).is_some_and(|rest| rest.starts_with(b"\r\n")) {
        return reference::response_head(data);
    }
    let mended = [&data[..12], b" ", &data[12..]].concat();
    reference::response_head(&mended).map(|head| Head { length: head.length - 1, ..head })
}

fn same_fields(ours: &Fields, theirs: &Head, with_hops: bool) {
    let bytes = ours.bytes();
    let lines: Vec<_> =
        ours.iter().map(|field| (field.name.of(bytes).to_vec(), field.value.of(bytes).to_vec())).collect();
    assert_eq!(lines, theirs.fields);
    if with_hops {
        let stay = ours.iter().zip(lines).filter(|(field, _)| !field.hop).map(|(_, line)| line);
        assert!(stay.eq(model::passed_on(theirs)), "what ends here");
    }
}

fn framing(framing: head::Framing) -> Framing {
    match framing {
        head::Framing::Empty => Framing::None,
        head::Framing::Length(length) => Framing::Length(length as usize),
        head::Framing::Chunked => Framing::Chunked,
        head::Framing::UntilClose => Framing::UntilClose,
    }
}

fn frame(framing: Framing) -> Option<model::Line> {
    match framing {
        Framing::None | Framing::UntilClose => None,
        Framing::Length(length) => Some(line("Content-Length", length.to_string().as_bytes())),
        Framing::Chunked => Some(line("Transfer-Encoding", b"chunked")),
    }
}

fn version(text: &[u8]) -> Version {
    if text == b"HTTP/1.0" { Version::Http10 } else { Version::Http11 }
}

fn line(name: &str, value: &[u8]) -> model::Line {
    (name.as_bytes().to_vec(), value.to_vec())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

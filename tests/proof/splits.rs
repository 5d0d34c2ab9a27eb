//! Any split of the bytes over reads gives the same result.
//!
//! A connection of the daemon's reads from a socket pair what the test writes piece by
//! piece, each when the one before has been taken, and passes messages on to another
//! pair. What goes out there is read by the reference.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll};
use std::time::Duration;

use doorward::config::Forwarding;
use doorward::proxy::client::Client as _;
use doorward::proxy::forwarded::Forwarded;
use doorward::proxy::head;
use doorward::proxy::http1::body::Decoder;
use doorward::proxy::http1::wire::Wire;
use doorward::proxy::http1::{Http1, encode, parse};
use doorward::proxy::relay::{End, Fault, Relay, Sink, Source, Turn};
use doorward::proxy::rewrite::Rewrite;
use doorward::transport::stream::{Family, Socket, Stream};

use super::inputs::{Input, backends, blame, clients, corpus};
use super::reference::{self, GRAMMAR, Message};

/// Bytes that a request's head may have here.
const LIMIT: usize = 4096;

/// What became of all that was sent.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// The messages that went on.
    messages: Vec<Message>,
    /// How the last one broke off, if it did.
    fault: Option<Fault>,
}

/// Our end of a socket pair: writes piece by piece, and keeps what it reads.
struct Peer<'a> {
    stream: UnixStream,
    pieces: VecDeque<&'a [u8]>,
    ended: bool,
    came: Vec<u8>,
}

impl<'a> Peer<'a> {
    fn new(data: &'a [u8], cuts: &[usize]) -> (Self, Stream) {
        let (stream, other) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        other.set_nonblocking(true).unwrap();
        let mut pieces = VecDeque::new();
        let mut begin = 0;
        for cut in cuts.iter().copied().chain([data.len()]) {
            pieces.push_back(&data[begin..cut]);
            begin = cut;
        }
        pieces.retain(|piece| !piece.is_empty());
        (Self { stream, pieces, ended: false, came: Vec::new() }, Socket::new(other.into(), Family::Unix).into())
    }

    /// Sends the next piece, and in the end that it is the end.
    fn feed(&mut self) {
        match self.pieces.pop_front() {
            // Far less than the kernel holds for a socket.
            Some(piece) => drop(self.stream.write_all(piece)),
            None if !std::mem::replace(&mut self.ended, true) => drop(self.stream.shutdown(Shutdown::Write)),
            None => {}
        }
    }

    /// Takes what has come, `most` bytes at once.
    fn take(&mut self, most: usize) {
        let mut block = vec![0; most];
        loop {
            match self.stream.read(&mut block) {
                Ok(0) => return,
                Ok(n) => self.came.extend_from_slice(&block[..n]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionReset) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Polls until ready; feeds `from` whenever nothing more can be done without.
async fn drive<T>(from: &mut Peer<'_>, to: &mut Peer<'_>, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    let done = poll_fn(|cx| {
        to.take(4096);
        let polled = poll(cx);
        if polled.is_pending() {
            from.feed();
        }
        polled
    });
    tokio::time::timeout(Duration::from_secs(20), done).await.expect("it goes on when there is more")
}

/// Moves a body; says how it broke off.
async fn relay(
    from: &mut Peer<'_>,
    to: &mut Peer<'_>,
    source: &mut impl Source,
    sink: &mut impl Sink,
) -> Option<Fault> {
    let mut relay = Relay::default();
    let turn = |cx: &mut Context<'_>| match relay.turn(cx, source, sink) {
        Turn::Waits(_) => Poll::Pending,
        Turn::Done => Poll::Ready(None),
        Turn::Failed(End::Source, fault) => Poll::Ready(Some(fault)),
        Turn::Failed(End::Sink, fault) => panic!("the reader failed: {fault}"),
    };
    drive(from, to, turn).await
}

/// Reads all requests that `data` has and passes them on.
async fn requests(data: &[u8], cuts: &[usize]) -> Seen {
    let (mut client, stream) = Peer::new(data, cuts);
    let mut wire = Wire::new(stream);
    let (mut backend, stream) = Peer::new(b"", &[]);
    let mut onward = Wire::new(stream);
    let fault = loop {
        let head = match drive(&mut client, &mut backend, |cx| wire.poll_request(cx, LIMIT)).await {
            Ok(Some(head)) => head,
            Ok(None) => break None,
            Err(fault) => break Some(fault),
        };
        let kind = Forwarding::XForwarded;
        let forwarded =
            Forwarded { peer: b"192.0.2.1", scheme: "http", host: "b", request_id: b"0", kind, trusted: false };
        encode::request(onward.output_mut().begin(head.framing), &head, &forwarded, &Rewrite::default());
        if let Some(fault) = relay(&mut client, &mut backend, &mut wire, &mut onward).await {
            break Some(fault);
        }
    };
    drop(onward);
    backend.take(4096);
    let mut messages = Vec::new();
    let mut rest = backend.came.as_slice();
    while let Ok(message) = reference::request(rest) {
        rest = &rest[message.length..];
        messages.push(Message { length: 0, ..message });
    }
    // What did not come whole does not go on whole, and nothing else goes on.
    let whole = rest.is_empty();
    assert!(whole || reference::request(rest) == Err(reference::Fault::Partial), "{}", String::from_utf8_lossy(rest));
    assert!(whole || fault.is_some(), "broken off for nothing: {}", String::from_utf8_lossy(rest));
    Seen { messages, fault }
}

/// Reads a response, with what goes before it, and passes it on to the client.
async fn responses(data: &[u8], cuts: &[usize], method: &[u8]) -> Seen {
    let asked = [method, b" / HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
    let (mut reader, stream) = Peer::new(&asked, &[]);
    let mut client = Http1::new(stream);
    let (mut backend, stream) = Peer::new(data, cuts);
    let mut wire = Wire::new(stream);
    let (mut nobody, _unused) = Peer::new(b"", &[]);
    let request = drive(&mut reader, &mut nobody, |cx| client.poll_request(cx, LIMIT)).await.unwrap().unwrap();
    let fault = loop {
        match drive(&mut backend, &mut reader, |cx| wire.poll_response(cx, request.method)).await {
            Ok(head) if head.is_interim() => client.inform(&head, None),
            // Nothing is offered here.
            Ok(head) if head.status == 101 => break Some(Fault::Reset),
            Ok(head) => {
                client.answer(&head, None, false);
                break relay(&mut backend, &mut reader, &mut wire, &mut client).await;
            }
            Err(fault) => break Some(fault),
        }
    };
    if fault.is_some() {
        client.abort();
    }
    drop(client);
    reader.take(4096);
    let (mut messages, mut rest) = (Vec::new(), reader.came.as_slice());
    while let Ok(mut message) = reference::response(rest, method, false) {
        rest = &rest[message.length..];
        message.fields.retain(|(name, _)| name != b"Date");
        messages.push(Message { length: 0, ..message });
    }
    assert!(rest.is_empty() || fault.is_some(), "broken off for nothing: {}", String::from_utf8_lossy(rest));
    Seen { messages, fault }
}

/// Checks every way in which one input is cut: once at each place that `places` allows,
/// at every byte, and at several random places.
fn check(input: &Input, places: usize, see: impl Fn(&[usize]) -> Seen) {
    let length = input.bytes.len();
    let mut random = fastrand::Rng::with_seed(9112);
    let whole = blame(input, "whole", || see(&[]));
    let mut ways = vec![(0..length).collect::<Vec<_>>()];
    if length <= places {
        ways.extend((1..length).map(|at| vec![at]));
    } else {
        ways.extend((0..places).map(|_| vec![random.usize(1..length)]));
    }
    for _ in 0..4 {
        let mut cuts: Vec<_> = (0..random.usize(2..8)).map(|_| random.usize(..length)).collect();
        cuts.sort_unstable();
        ways.push(cuts);
    }
    for cuts in ways {
        blame(input, &format!("cut at {cuts:?}"), || {
            let seen = see(&cuts);
            assert_eq!(seen.messages, whole.messages);
            // What is no head yet is refused at once when that is plain from its first
            // bytes, and else when it ends.
            let same =
                seen.fault == whole.fault || (is_open(&input.bytes) && seen.fault.is_some() && whole.fault.is_some());
            assert!(same, "{:?} is not {:?}", seen.fault, whole.fault);
        });
    }
}

/// Whether the last head never ends.
fn is_open(bytes: &[u8]) -> bool {
    let line = bytes.windows(2).rposition(|window| window == b"\r\n").map_or(0, |at| at + 2);
    !parse::has_end(&bytes[line.saturating_sub(4)..], 0)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn any_split_of_requests_over_reads_gives_the_same_requests() {
    let runtime = runtime();
    for (places, inputs) in [(400, corpus("request_head")), (4, clients())] {
        for input in inputs.iter().filter(|input| !input.bytes.is_empty()) {
            check(input, places, |cuts| runtime.block_on(requests(&input.bytes, cuts)));
        }
    }
}

#[test]
fn any_split_of_a_response_over_reads_gives_the_same_response() {
    let runtime = runtime();
    let mut heads = corpus("response_head");
    heads.iter_mut().filter(|input| !input.bytes.is_empty()).for_each(|input| input.bytes = input.bytes.split_off(1));
    for (places, inputs) in [(400, heads), (4, backends())] {
        for input in inputs.iter().filter(|input| !input.bytes.is_empty()) {
            // A head is read the same way after HEAD; what follows it is not.
            for (method, places) in [(&b"GET"[..], places), (b"HEAD", 4)] {
                check(input, places, |cuts| runtime.block_on(responses(&input.bytes, cuts, method)));
            }
        }
    }
}

#[test]
fn any_split_of_chunks_over_reads_gives_the_same_body() {
    let decode = |bytes: &[u8], cuts: &[usize]| {
        let mut decoder = Decoder::new(head::Framing::Chunked);
        let (mut body, mut taken, mut begin) = (Vec::new(), 0, 0);
        for end in cuts.iter().copied().chain([bytes.len()]) {
            let mut piece = bytes[begin..end].to_vec();
            let decoded = decoder.decode(&mut piece)?;
            body.extend_from_slice(&piece[..decoded.data]);
            taken += decoded.taken;
            begin = end;
        }
        decoder.end().map(|()| (body, taken))
    };
    for input in corpus("chunked_body") {
        let bytes = input.bytes.get(1..).unwrap_or_default();
        let whole = decode(bytes, &[]);
        let every: Vec<_> = (0..bytes.len()).collect();
        blame(&input, "byte by byte", || assert_eq!(decode(bytes, &every), whole));
        for first in 0..bytes.len() {
            blame(&input, &format!("cut at {first}"), || assert_eq!(decode(bytes, &[first]), whole));
            let second = first + (bytes.len() - first) / 2;
            blame(&input, &format!("cut at {first} and {second}"), || {
                assert_eq!(decode(bytes, &[first, second]), whole);
            });
        }
    }
}

/// Writes a body in these pieces, to a reader that takes `most` bytes at once.
async fn written(body: &[u8], framing: head::Framing, sizes: &mut impl FnMut() -> usize, most: usize) -> Vec<u8> {
    let (mut reader, stream) = Peer::new(b"", &[]);
    let mut wire = Wire::new(stream);
    let (mut nobody, _unused) = Peer::new(b"", &[]);
    // The kernel's least, so that writes are cut short.
    rustix::net::sockopt::set_socket_send_buffer_size(&reader.stream, 1).unwrap();
    wire.output_mut().begin(framing);
    let mut rest = body;
    while !rest.is_empty() {
        let (piece, _) = rest.split_at(sizes().clamp(1, rest.len()));
        let taken = drive(&mut nobody, &mut reader, |cx| wire.poll_push(cx, piece)).await.unwrap();
        rest = &rest[taken..];
        reader.take(most);
    }
    drive(&mut nobody, &mut reader, |cx| wire.poll_finish(cx)).await.unwrap();
    reader.take(most);
    reader.came
}

#[test]
fn what_is_written_in_any_pieces_is_read_back_as_one_body() {
    let runtime = runtime();
    for seed in 0..24 {
        let mut random = fastrand::Rng::with_seed(seed);
        let body: Vec<u8> = (0..random.usize(..400_000)).map(|at| (at % 251) as u8).collect();
        let largest = [1 << 18, 20_000, 3_000][random.usize(..3)];
        let mut sizes = || random.usize(1..=largest);
        let length = u64::try_from(body.len()).unwrap();
        let plain = runtime.block_on(written(&body, head::Framing::Length(length), &mut sizes, 999));
        assert!(plain == body, "seed {seed}: a body of stated length differs");
        let chunks = runtime.block_on(written(&body, head::Framing::Chunked, &mut sizes, 999));
        let read = reference::chunked(&chunks, GRAMMAR).unwrap_or_else(|fault| panic!("seed {seed}: {fault:?}"));
        assert!(read == (body.clone(), Vec::new(), chunks.len()), "seed {seed}: chunks differ");
        let mut bytes = chunks;
        let decoded = Decoder::new(head::Framing::Chunked).decode(&mut bytes).unwrap();
        assert!(bytes[..decoded.data] == body, "seed {seed}: the decoder differs");
    }
}

//! Request bodies that are kept, to be sent again.

use crate::backend::Backend;
use crate::peer::{Peer, assert_same, noise};
use crate::traffic::door::Daemon;
use crate::traffic::retries::before;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Sends a PUT with this body, in chunks of so many bytes if it says so.
fn put(client: &mut Peer, body: &[u8], chunks: Option<usize>) {
    let Some(size) = chunks else { return client.send_body("PUT", "/kept", body) };
    let mut bytes = b"PUT /kept HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for part in body.chunks(size) {
        bytes.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    client.send(bytes);
}

/// A backend takes a whole PUT and resets, and another one is sent all of it too, or nothing
/// at all.
#[track_caller]
fn assert_replayed(
    daemon: &Daemon,
    [first, second]: [&Backend; 2],
    body: &[u8],
    chunks: Option<usize>,
    replayed: bool,
) {
    let mut client = daemon.connect();
    let mut writer = client.writer();
    std::thread::scope(|scope| {
        scope.spawn(move || put(&mut writer, body, chunks));
        let (peer, request) = first.take();
        assert_same(&request.body, body);
        peer.reset();
        if replayed {
            let (mut peer, request) = second.take();
            assert_same(&request.body, body);
            peer.answer_last("second");
            assert_eq!(client.response().text(), "second");
        } else {
            client.response().assert_refusal(502, "backend_reset");
            second.expect_none();
            // Its turn, so that the next one is the first one's again.
            client.get("/turn");
            second.take().0.answer_last("turn");
            client.response();
        }
    });
}

#[test]
fn a_body_is_sent_again_up_to_the_limit() {
    let backends = [&Backend::new(), &Backend::new()];
    for (limit, fits, too_much) in [
        (None, 64 * KIB, 64 * KIB + 1),
        (Some("1KiB"), KIB, KIB + 1),
        (Some("100000"), 100_000, 100_001),
        (Some("2MiB"), 2 * MIB, 3 * MIB),
        (Some("0"), 0, 1),
    ] {
        let addresses = backends.map(|backend| backend.address.as_str());
        let setup = before(&addresses).set("EJECT_AFTER", "off");
        let daemon = match limit {
            Some(limit) => setup.set("RETRY_BODY_LIMIT", limit).start(),
            None => setup.start(),
        };
        let body = noise(too_much, 51);
        for chunks in [None, Some(5_000)] {
            assert_replayed(&daemon, backends, &body[..fits], chunks, true);
            assert_replayed(&daemon, backends, &body[..fits / 2], chunks, true);
            assert_replayed(&daemon, backends, &body, chunks, false);
        }
        // What stands between the chunks is not the body.
        assert_replayed(&daemon, backends, &body[..fits.min(64 * KIB)], Some(1), true);
    }
}

#[test]
fn kept_bodies_are_bounded_over_all_requests() {
    const MANY: usize = 120;
    let backend = Backend::new();
    let daemon = before(&[&backend.address]).set("RETRY_BODY_LIMIT", "2MiB").set("MAX_RETRIES", 1).start();
    let empty = daemon.memory();
    let body = noise(MIB, 52);
    let mut open: Vec<(Peer, Peer)> = (0..MANY)
        .map(|_| {
            let client = daemon.connect();
            let mut writer = client.writer();
            let peer = std::thread::scope(|scope| {
                scope.spawn(|| put(&mut writer, &body, None));
                backend.take().0
            });
            (client, peer)
        })
        .collect();
    let held = daemon.memory().saturating_sub(empty);
    assert!(held > 40 * MIB, "the first ones are kept: {held}");
    // And a buffer for each, though not each needs one.
    assert!(held < 66 * MIB + MANY * 128 * KIB, "{held}");
    // The first is made again, the last is not.
    let (mut client, peer) = open.remove(0);
    peer.reset();
    let (mut peer, request) = backend.take();
    assert_same(&request.body, &body);
    peer.answer_last("again");
    assert_eq!(client.response().text(), "again");
    let (mut client, peer) = open.pop().unwrap();
    peer.reset();
    client.response().assert_refusal(502, "backend_reset");
    assert_eq!(daemon.status()["retries_without_body"], 1);
    // What they took comes back.
    let hang_up = |(client, peer): (Peer, Peer)| {
        client.reset();
        peer
    };
    let peers: Vec<Peer> = open.into_iter().map(hang_up).collect();
    daemon.wait_in_flight(0);
    drop(peers);
    let mut client = daemon.connect();
    let mut writer = client.writer();
    std::thread::scope(|scope| {
        scope.spawn(|| put(&mut writer, &body, Some(70_000)));
        backend.take().0.reset();
        let (mut peer, request) = backend.take();
        assert_same(&request.body, &body);
        peer.answer_last("again");
    });
    assert_eq!(client.response().text(), "again");
}

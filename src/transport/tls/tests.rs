//! Handshakes and bytes over socket pairs, both sides being ours.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use socket2::SockRef;

use super::{Fault, Missing, Refused, Rejected, connect, fault, greeting};
use crate::transport::stream::{Family, Socket, Stream};

/// An authority and what it has issued.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate for this name, and its key.
    pub fn issue(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.into(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    pub fn server(&self, name: &str, versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
        let (certificate, key) = self.issue(name, |_| {});
        let config = ServerConfig::builder_with_protocol_versions(versions);
        config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap()
    }

    pub fn client(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
    }
}

fn tcp() -> (Stream, Stream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (two, _) = listener.accept().unwrap();
    for socket in [&one, &two] {
        socket.set_nonblocking(true).unwrap();
        socket.set_nodelay(true).unwrap();
    }
    (Socket::new(one.into(), Family::Tcp).into(), Socket::new(two.into(), Family::Tcp).into())
}

fn name(name: &str) -> ServerName<'static> {
    ServerName::try_from(name.to_owned()).unwrap()
}

async fn accept(
    stream: Stream,
    choose: impl FnOnce(&ClientHello<'_>) -> Result<Arc<ServerConfig>, AlertDescription>,
) -> Result<Stream, Refused> {
    match greeting(&stream).await {
        Ok(greeting) => super::accept(stream, greeting, choose).await,
        Err(fault) => Err(Refused { fault, stream }),
    }
}

/// Answers every hello so.
fn always(config: ServerConfig) -> impl FnOnce(&ClientHello<'_>) -> Result<Arc<ServerConfig>, AlertDescription> {
    move |_| Ok(Arc::new(config))
}

/// Connects and lets go of the end of the handshake, which else goes out with a request.
async fn greet(near: Stream, client: Arc<ClientConfig>) -> Result<Stream, Fault> {
    let near = connect(near, client, name("door.test")).await?;
    poll_fn(|cx| near.poll_flush(cx, &mut false)).await.unwrap();
    Ok(near)
}

/// A client and a server that have made their handshake.
async fn pair(client: Arc<ClientConfig>, server: ServerConfig) -> (Stream, Stream) {
    let (near, far) = tcp();
    let (near, far) = tokio::join!(greet(near, client), accept(far, always(server)));
    (near.unwrap(), far.unwrap())
}

async fn usual() -> (Stream, Stream) {
    let authority = Authority::new();
    pair(authority.client().into(), authority.server("door.test", &[&TLS13])).await
}

async fn write(stream: &Stream, bytes: &[u8]) {
    let n = poll_fn(|cx| stream.poll_write(cx, &[IoSlice::new(bytes)])).await.unwrap();
    assert_eq!(n, bytes.len());
    poll_fn(|cx| stream.poll_flush(cx, &mut false)).await.unwrap();
}

async fn read(stream: &Stream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 64];
    let n = poll_fn(|cx| stream.poll_read(cx, &mut bytes)).await?;
    bytes.truncate(n);
    Ok(bytes)
}

/// Until something has come in, whatever it is.
async fn arrived(stream: &Stream) {
    stream.join().unwrap();
    poll_fn(|cx| stream.poll_stirred(cx)).await.unwrap();
}

fn polled<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn both_versions_carry_bytes_and_tell_what_was_agreed_on() {
    for (version, number) in [(&TLS12, "TLSv1_2"), (&TLS13, "TLSv1_3")] {
        let authority = Authority::new();
        let mut server = authority.server("door.test", &[version]);
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let server = Arc::new(server);
        let mut client = authority.client();
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        let (near, far) = tcp();
        let by_hello = |hello: &ClientHello<'_>| {
            assert_eq!(hello.server_name(), Some("door.test"));
            assert!(hello.alpn().is_some_and(|mut offers| offers.any(|offer| offer == b"http/1.1")));
            Ok(Arc::clone(&server))
        };
        let (near, far) = tokio::join!(greet(near, client.into()), accept(far, by_hello));
        let (near, far) = (near.unwrap(), far.unwrap());
        write(&near, b"ping").await;
        assert_eq!(read(&far).await.unwrap(), b"ping");
        write(&far, b"pong").await;
        assert_eq!(read(&near).await.unwrap(), b"pong");
        for side in [&near, &far] {
            let session = side.tls().unwrap();
            assert_eq!(session.server_name(), Some("door.test"));
            assert!(session.speaks(b"http/1.1") && !session.speaks(b"h2"));
            assert_eq!(session.version().unwrap().as_str(), Some(number));
            assert!(session.cipher().is_some() && !session.is_resumed());
        }
        assert_eq!(near.tls().unwrap().peer_certificates().unwrap().len(), 1);
        assert!(far.tls().unwrap().peer_certificates().is_none());
    }
}

#[tokio::test]
async fn a_client_that_comes_again_resumes() {
    let authority = Authority::new();
    for version in [&TLS12, &TLS13] {
        let mut server = authority.server("door.test", &[version]);
        server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        let client = Arc::new(authority.client());
        for resumed in [false, true, true] {
            let (near, far) = pair(Arc::clone(&client), server.clone()).await;
            write(&near, b"ping").await;
            assert_eq!(read(&far).await.unwrap(), b"ping");
            write(&far, b"pong").await;
            assert_eq!(read(&near).await.unwrap(), b"pong");
            assert_eq!(near.tls().unwrap().is_resumed(), resumed);
            assert_eq!(far.tls().unwrap().is_resumed(), resumed);
        }
    }
}

/// Passes on what `from` receives, `most` bytes at a time.
async fn trickle(from: &Stream, to: &Stream, most: usize) {
    loop {
        let mut bytes = vec![0; most];
        let n = poll_fn(|cx| from.poll_read(cx, &mut bytes)).await.unwrap();
        if n == 0 {
            return to.shutdown_write().unwrap();
        }
        write(to, &bytes[..n]).await;
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn records_may_come_in_pieces_of_any_size() {
    let authority = Authority::new();
    for version in [&TLS12, &TLS13] {
        for most in [1, 2, 5, 6, 7, 23, 100, 1400, 16_407, 50_000] {
            let server = authority.server("door.test", &[version]);
            let ((near, one), (other, far)) = (tcp(), tcp());
            let between = async { tokio::join!(trickle(&one, &other, most), trickle(&other, &one, most)) };
            let ends = async {
                let (near, far) = tokio::join!(greet(near, authority.client().into()), accept(far, always(server)));
                let (near, far) = (near.unwrap(), far.unwrap());
                let sent: Vec<u8> = (0..40_000_u32).map(|i| i.to_le_bytes()[0]).collect();
                let mut got = Vec::new();
                let send = async {
                    let mut left = &sent[..];
                    while !left.is_empty() {
                        let n = poll_fn(|cx| near.poll_write(cx, &[IoSlice::new(left)])).await.unwrap();
                        left = &left[n..];
                    }
                    poll_fn(|cx| near.poll_flush(cx, &mut false)).await.unwrap();
                    near.shutdown_write().unwrap();
                };
                let receive = async {
                    loop {
                        match read(&far).await.unwrap() {
                            bytes if bytes.is_empty() => return far.shutdown_write().unwrap(),
                            bytes => got.extend(bytes),
                        }
                    }
                };
                tokio::join!(send, receive);
                assert!(got == sent, "pieces of {most}");
                assert_eq!(read(&near).await.unwrap(), b"");
            };
            tokio::join!(between, ends);
        }
    }
}

/// Sends `slices` again and again, all at once each time, until `total` bytes have gone.
async fn pour(stream: &Stream, total: usize, sizes: [usize; 3]) {
    let mut sent = 0;
    while sent < total {
        let bytes: Vec<u8> = (sent..sent + sizes.iter().sum::<usize>()).map(|i| i.to_le_bytes()[0]).collect();
        let (first, rest) = bytes.split_at(sizes[0]);
        let (second, third) = rest.split_at(sizes[1]);
        let slices = [IoSlice::new(first), IoSlice::new(second), IoSlice::new(third)];
        sent += poll_fn(|cx| stream.poll_write(cx, &slices)).await.unwrap();
    }
    poll_fn(|cx| stream.poll_flush(cx, &mut false)).await.unwrap();
    stream.shutdown_write().unwrap();
    poll_fn(|cx| stream.poll_flush(cx, &mut false)).await.unwrap();
}

async fn drain(stream: &Stream, room: usize) -> usize {
    let mut bytes = vec![0; room];
    let mut got = 0;
    loop {
        match poll_fn(|cx| stream.poll_read(cx, &mut bytes)).await.unwrap() {
            0 => return got,
            n => {
                assert!(bytes[..n].iter().enumerate().all(|(i, byte)| *byte == (got + i).to_le_bytes()[0]));
                got += n;
            }
        }
    }
}

#[tokio::test]
async fn much_passes_both_ways_through_tiny_buffers() {
    for (sizes, room) in
        [([200, 65_536, 2], 69_632), ([0, 70_000, 0], 100), ([16_384, 1, 16_383], 16_384), ([9, 9, 9], 7)]
    {
        let (near, far) = usual().await;
        for side in [&near, &far] {
            side.with(|fd| {
                // The receiver's is left alone: with a small window each round waits for an
                // acknowledgement that the kernel delays.
                SockRef::from(&fd).set_send_buffer_size(4096)
            })
            .unwrap();
        }
        let total = if room < 1000 { 200_000 } else { 3_000_000 };
        let (_, _, up, down) =
            tokio::join!(pour(&near, total, sizes), pour(&far, total, sizes), drain(&far, room), drain(&near, room));
        assert!(up >= total && down >= total);
    }
}

#[tokio::test]
async fn what_the_socket_has_no_room_for_is_held_and_no_more_is_taken() {
    let (near, far) = usual().await;
    let bytes = vec![7; 68 * 1024];
    let mut taken = 0;
    let push = || polled(|cx| near.poll_write(cx, &[IoSlice::new(&bytes)]));
    while let Poll::Ready(n) = push() {
        taken += n.unwrap();
    }
    let held = near.held();
    assert!(held > 0 && held < 70 * 1024, "{held}");
    assert!(push().is_pending() && near.held() == held);
    assert!(polled(|cx| near.poll_flush(cx, &mut false)).is_pending());
    let mut got = 0;
    while got < taken {
        let mut room = vec![0; 16 * 1024];
        got += poll_fn(|cx| {
            // Whoever waits for the peer sends, too.
            let _ = near.poll_flush(cx, &mut true);
            far.poll_read(cx, &mut room)
        })
        .await
        .unwrap();
    }
    assert_eq!((got, near.held()), (taken, 0));
    assert!(push().is_ready());
}

#[tokio::test]
async fn each_direction_ends_by_itself_and_with_notice() {
    for version in [&TLS12, &TLS13] {
        let authority = Authority::new();
        let (near, far) = pair(authority.client().into(), authority.server("door.test", &[version])).await;
        write(&near, b"ask").await;
        near.shutdown_write().unwrap();
        assert_eq!(read(&far).await.unwrap(), b"ask");
        assert_eq!(read(&far).await.unwrap(), b"");
        assert_eq!(read(&far).await.unwrap(), b"", "and stays so");
        write(&far, b"answer").await;
        // Closing says it too.
        drop(far);
        assert_eq!(read(&near).await.unwrap(), b"answer");
        assert_eq!(read(&near).await.unwrap(), b"");
    }
}

#[tokio::test]
async fn an_end_without_notice_is_none() {
    let (near, far) = usual().await;
    write(&near, b"part").await;
    near.end().unwrap();
    assert_eq!(read(&far).await.unwrap(), b"part");
    for _ in 0..2 {
        assert_eq!(fault(&read(&far).await.unwrap_err()), Fault::Truncated);
    }
    write(&far, b"still").await;
    assert_eq!(read(&near).await.unwrap(), b"still");
    let (near, far) = usual().await;
    near.reset_on_close();
    drop(near);
    arrived(&far).await;
    assert_eq!(fault(&read(&far).await.unwrap_err()), Fault::Reset);
}

#[tokio::test]
async fn a_stream_that_must_not_end_well_does_not() {
    let (near, far) = usual().await;
    write(&near, b"part").await;
    assert_eq!(read(&far).await.unwrap(), b"part");
    near.tls().unwrap().abort();
    drop(near);
    // Or a reset, since the tickets were not read.
    assert!(matches!(fault(&read(&far).await.unwrap_err()), Fault::Truncated | Fault::Reset));
}

#[tokio::test]
async fn tickets_are_nothing_that_stirs_and_all_else_does() {
    let authority = Authority::new();
    let (near, far) = pair(authority.client().into(), authority.server("door.test", &[&TLS13])).await;
    // The tickets came with the end of the handshake, since no request did.
    arrived(&near).await;
    assert!(!near.stirred() && !near.has_input());
    write(&far, b"early").await;
    arrived(&near).await;
    assert!(near.stirred() && near.has_input(), "data does");
    assert!(polled(|cx| near.poll_readable(cx)).is_ready(), "though it is on the socket no more");
    assert!(!near.has_unread() && polled(|cx| near.poll_stirred(cx)).is_ready());
    assert_eq!(read(&near).await.unwrap(), b"early");
    assert!(!near.stirred());
    drop(far);
    arrived(&near).await;
    assert!(near.stirred() && near.has_input(), "and so does the end");
    assert_eq!(read(&near).await.unwrap(), b"");
}

#[tokio::test]
async fn what_a_reader_has_no_room_for_is_kept_for_it() {
    let (near, far) = usual().await;
    write(&near, &[b'x'; 30_000]).await;
    let mut got = 0;
    while got < 30_000 {
        got += read(&far).await.unwrap().len();
        assert!(got == 30_000 || polled(|cx| far.poll_readable(cx)).is_ready());
    }
    assert!(!far.stirred());
}

#[tokio::test]
async fn a_certificate_that_is_not_accepted_is_named_on_both_sides() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let dated = |from: i32, to: i32| {
        authority.issue("door.test", move |params| {
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(to, 1, 1);
        })
    };
    for (issued, rejected) in [
        (authority.issue("other.test", |_| {}), Rejected::WrongName),
        (dated(2001, 2002), Rejected::Expired),
        (dated(2099, 2100), Rejected::NotYetValid),
        (stranger.issue("door.test", |_| {}), Rejected::Untrusted),
    ] {
        let (near, far) = tcp();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![issued.0], issued.1).unwrap();
        let (near, far) = tokio::join!(greet(near, authority.client().into()), accept(far, always(config)));
        assert_eq!(near.unwrap_err(), Fault::Certificate(rejected));
        assert!(matches!(far.unwrap_err().fault, Fault::Alert(_)), "{rejected:?}");
    }
}

#[tokio::test]
async fn what_is_no_hello_or_finds_nothing_is_refused_by_name() {
    let authority = Authority::new();
    let server = authority.server("door.test", &[&TLS13]);
    for (bytes, fault) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], Fault::PlainHttp),
        (b"\x00\x01", Fault::NotTls),
        (b"SSH-2.0", Fault::PlainHttp),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", Fault::Protocol),
        (b"\x16\x02\x00\x00\x04\x01\x00\x00\x00", Fault::NotTls),
        (b"\x16\x03\x01", Fault::Ended),
        (b"", Fault::Ended),
    ] {
        let (near, far) = tcp();
        if !bytes.is_empty() {
            write(&near, bytes).await;
        }
        near.shutdown_write().unwrap();
        let refused = accept(far, always(server.clone())).await.unwrap_err();
        assert_eq!(refused.fault, fault, "{bytes:?}");
        assert!(refused.stream.tls().is_none(), "it can be answered in clear");
    }
    // A name that nobody has, by either way of choosing.
    #[derive(Debug)]
    struct Nobody;
    impl ResolvesServerCert for Nobody {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
            None
        }
    }
    let nobody = Arc::new(ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(Nobody)));
    for (answer, alert) in [
        (Err(AlertDescription::UnrecognisedName), AlertDescription::UnrecognisedName),
        (Ok(nobody), AlertDescription::AccessDenied),
    ] {
        let (near, far) = tcp();
        let (near, far) = tokio::join!(greet(near, authority.client().into()), accept(far, |_| answer));
        assert_eq!(near.unwrap_err(), Fault::Alert(alert));
        assert_eq!(far.unwrap_err().fault, Fault::UnknownName);
    }
    // No protocol in common.
    let mut config = authority.server("door.test", &[&TLS13]);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut client = authority.client();
    client.alpn_protocols = vec![b"x".to_vec()];
    let (near, far) = tcp();
    let (near, far) = tokio::join!(greet(near, client.into()), accept(far, always(config)));
    assert_eq!(near.unwrap_err(), Fault::Alert(AlertDescription::NoApplicationProtocol));
    assert_eq!(far.unwrap_err().fault, Fault::Incompatible(Missing::Protocol));
}

#[tokio::test]
async fn a_changed_record_is_a_fault_and_the_peer_is_told() {
    let (near, far) = usual().await;
    poll_fn(|cx| near.poll_send(cx, &[IoSlice::new(b"\x17\x03\x03\x00\x14twenty bytes of junk")], &mut false))
        .await
        .unwrap();
    assert_eq!(fault(&read(&far).await.unwrap_err()), Fault::Protocol);
    assert_eq!(fault(&read(&near).await.unwrap_err()), Fault::Alert(AlertDescription::BadRecordMac));
}

#[tokio::test]
async fn a_connection_that_waits_holds_no_bytes() {
    let (near, far) = usual().await;
    write(&near, &[1; 5000]).await;
    while read(&far).await.unwrap().len() == 64 {}
    write(&far, b"answer").await;
    assert_eq!(read(&near).await.unwrap(), b"answer");
    for side in [&near, &far] {
        assert!(polled(|cx| side.poll_read(cx, &mut [0; 64])).is_pending());
        assert_eq!(side.tls().unwrap().footprint(), 0);
    }
    // Half a record takes as much as it has.
    poll_fn(|cx| near.poll_send(cx, &[IoSlice::new(b"\x17\x03\x03\x40\x00half")], &mut false)).await.unwrap();
    arrived(&far).await;
    assert!(polled(|cx| far.poll_read(cx, &mut [0; 64])).is_pending());
    assert_eq!(far.tls().unwrap().footprint(), 9);
}

#[tokio::test]
async fn no_bytes_of_a_client_are_too_strange() {
    let authority = Authority::new();
    let server = Arc::new(authority.server("door.test", &[&TLS12, &TLS13]));
    // A hello, and then a record of a connection that stands, each changed at one place or cut.
    let (near, far) = tcp();
    let hello = async {
        let mut hello = vec![0; 4096];
        let n = poll_fn(|cx| far.poll_read(cx, &mut hello)).await.unwrap();
        hello.truncate(n);
        hello
    };
    let client = authority.client().into();
    let hello = tokio::select! {
        _ = connect(near, client, name("door.test")) => panic!("nobody has answered"),
        hello = hello => hello,
    };
    for at in (0..hello.len()).step_by(13).chain(0..12) {
        let mut strange = hello.clone();
        strange[at] ^= 0x55;
        for bytes in [&strange[..], &hello[..at]] {
            let (near, far) = tcp();
            if !bytes.is_empty() {
                write(&near, bytes).await;
            }
            near.shutdown_write().unwrap();
            let server = Arc::clone(&server);
            // A byte of the client's random number changes nothing, but it never goes on.
            assert!(accept(far, |_| Ok(server)).await.is_err(), "at {at}");
        }
    }
    let (near, far) = usual().await;
    write(&near, b"sound").await;
    assert_eq!(read(&far).await.unwrap(), b"sound");
    for kind in [0, 19, 20, 21, 22, 23, 24, 25, 128, 255] {
        let (near, far) = usual().await;
        let record = [kind, 3, 3, 0, 3, kind, 0, kind];
        poll_fn(|cx| near.poll_send(cx, &[IoSlice::new(&record)], &mut false)).await.unwrap();
        near.end().unwrap();
        assert!(read(&far).await.is_err(), "kind {kind}");
    }
}

#[tokio::test]
async fn key_updates_without_end_are_a_fault() {
    let (near, far) = usual().await;
    for _ in 0..40 {
        let session = near.tls().unwrap();
        session.refresh().unwrap();
        poll_fn(|cx| near.poll_flush(cx, &mut false)).await.unwrap();
    }
    assert_eq!(fault(&read(&far).await.unwrap_err()), Fault::Protocol);
    // A few are nothing: what comes after them is read.
    let (near, far) = usual().await;
    near.tls().unwrap().refresh().unwrap();
    write(&near, b"anew").await;
    assert_eq!(read(&far).await.unwrap(), b"anew");
    write(&far, b"answer").await;
    assert_eq!(read(&near).await.unwrap(), b"answer");
}

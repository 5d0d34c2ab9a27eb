use super::{Family, Socket, Stream};
use std::future::poll_fn;
use std::io::IoSlice;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

fn tcp() -> (Stream, Stream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (two, _) = listener.accept().unwrap();
    one.set_nonblocking(true).unwrap();
    two.set_nonblocking(true).unwrap();
    (Socket::new(one.into(), Family::Tcp).into(), Socket::new(two.into(), Family::Tcp).into())
}

fn unix() -> (Stream, Stream) {
    let (one, two) = UnixStream::pair().unwrap();
    one.set_nonblocking(true).unwrap();
    two.set_nonblocking(true).unwrap();
    (Socket::new(one.into(), Family::Unix).into(), Socket::new(two.into(), Family::Unix).into())
}

/// Until the runtime has seen that something arrived.
async fn arrived(stream: &Stream) {
    stream.watch().unwrap();
    poll_fn(|cx| stream.poll_readable(cx)).await.unwrap();
}

async fn write(stream: &Stream, bytes: &[u8]) {
    let n = poll_fn(|cx| stream.poll_write(cx, &[IoSlice::new(bytes)])).await.unwrap();
    assert_eq!(n, bytes.len());
}

async fn read(stream: &Stream) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    let n = poll_fn(|cx| stream.poll_read(cx, &mut bytes)).await.unwrap();
    bytes.truncate(n);
    bytes
}

#[tokio::test]
async fn bytes_the_half_close_and_the_answer_pass() {
    for (one, two) in [tcp(), unix()] {
        write(&one, b"ping").await;
        one.shutdown_write().unwrap();
        assert_eq!(read(&two).await, b"ping");
        assert_eq!(read(&two).await, b"");
        write(&two, b"pong").await;
        assert_eq!(read(&one).await, b"pong");
    }
}

#[tokio::test]
async fn a_half_close_and_early_bytes_are_not_leaving() {
    for (one, two) in [tcp(), unix()] {
        write(&one, b"more").await;
        one.shutdown_write().unwrap();
        let mut left = pin!(two.left());
        // The end of the stream arrives; the watch must go on waiting.
        arrived(&two).await;
        let polled = left.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Pending));
    }
}

#[tokio::test]
async fn a_reset_after_a_half_close_is_leaving() {
    let (one, two) = tcp();
    one.shutdown_write().unwrap();
    assert_eq!(read(&two).await, b"");
    one.reset_on_close();
    drop(one);
    two.left().await;
}

#[tokio::test]
async fn a_closed_unix_peer_has_left() {
    let (one, two) = unix();
    drop(one);
    two.left().await;
}

#[tokio::test]
async fn a_unix_peer_that_closes_after_early_bytes_has_left() {
    let (one, two) = unix();
    write(&one, b"more").await;
    let mut left = pin!(two.left());
    arrived(&two).await;
    assert!(left.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(one);
    left.await;
}

#[tokio::test]
async fn a_read_of_just_what_was_there_leaves_no_input_behind() {
    for (one, two) in [tcp(), unix()] {
        two.join().unwrap();
        write(&one, b"just this").await;
        poll_fn(|cx| two.poll_stirred(cx)).await.unwrap();
        let mut bytes = [0; 9];
        assert_eq!(poll_fn(|cx| two.poll_read(cx, &mut bytes)).await.unwrap(), 9);
        assert!(two.stirred(), "the runtime can't know");
        assert!(!two.has_input() && !two.stirred());
        write(&one, b"more").await;
        poll_fn(|cx| two.poll_stirred(cx)).await.unwrap();
        assert!(two.has_input() && two.has_input(), "nothing is taken");
        assert_eq!(read(&two).await, b"more");
        drop(one);
        poll_fn(|cx| two.poll_stirred(cx)).await.unwrap();
        assert!(two.has_input(), "the end");
    }
}

#[tokio::test]
async fn what_need_not_be_waited_for_is_not_watched() {
    for (one, two) in [tcp(), unix()] {
        write(&one, b"ping").await;
        assert_eq!(read(&two).await, b"ping");
        assert!(!one.is_watched() && !two.is_watched());
        let polled = two.poll_read(&mut Context::from_waker(Waker::noop()), &mut [0; 9]);
        assert!(polled.is_pending() && two.is_watched());
        write(&one, b"pong").await;
        assert_eq!(read(&two).await, b"pong");
    }
}

#[tokio::test]
async fn an_idle_stream_stirs_only_when_something_arrives() {
    let (one, two) = tcp();
    assert!(!one.stirred() && !one.has_unread(), "nor before it is watched");
    write(&two, b"x").await;
    assert!(one.has_unread());
    arrived(&one).await;
    assert!(one.stirred());
    while tokio::task::coop::has_budget_remaining() {
        tokio::task::coop::consume_budget().await;
    }
    assert!(one.stirred(), "a spent budget hides nothing");
    assert_eq!(read(&one).await, b"x");
    two.shutdown_write().unwrap();
    arrived(&one).await;
    assert!(one.stirred() && !one.has_unread(), "the end is nothing to read");
}

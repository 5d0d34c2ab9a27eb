//! The fuzzer's targets on its corpus, without a fuzzer: each file, each file cut off at
//! every byte, and some hundred neighbours of it that differ in one bit.

use super::inputs::{Input, backends, behind_a_choice, blame, clients, corpus};
use super::reference::{self, Fault};
use super::targets::{TARGETS, chunks};

/// Bits turned over in each file, one after the other.
const TURNED: usize = 200;

fn pass(target: &str, tables: Vec<Input>) {
    let (_, check) = TARGETS.into_iter().find(|(name, _)| *name == target).unwrap();
    for input in corpus(target) {
        blame(&input, "whole", || check(&input.bytes));
        for cut in 0..input.bytes.len() {
            blame(&input, &format!("cut at {cut}"), || check(&input.bytes[..cut]));
        }
        let mut random = fastrand::Rng::with_seed(9112);
        for _ in 0..if input.bytes.is_empty() { 0 } else { TURNED } {
            let (at, bit) = (random.usize(..input.bytes.len()), random.u32(..8));
            let mut bytes = input.bytes.clone();
            bytes[at] ^= 1 << bit;
            blame(&input, &format!("bit {bit} of byte {at} turned over"), || check(&bytes));
        }
    }
    for input in tables {
        blame(&input, "whole", || check(&input.bytes));
    }
}

#[test]
fn request_heads_are_read_as_the_model_reads_them() {
    pass("request_head", clients());
}

#[test]
fn response_heads_are_read_as_the_model_reads_them() {
    pass("response_head", behind_a_choice(backends()));
}

#[test]
fn chunked_bodies_are_read_as_the_reference_reads_them() {
    let mut bodies = Vec::new();
    for mut input in clients().into_iter().chain(backends()) {
        if let Some(at) = input.bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            input.bytes.drain(..at + 4);
            bodies.push(input);
        }
    }
    pass("chunked_body", behind_a_choice(bodies));
}

#[test]
fn the_bounds_of_a_chunked_body_are_where_they_are_said_to_be() {
    let chunk = |size: usize, extension: usize| {
        let name = if extension == 0 { String::new() } else { format!(";{}", "x".repeat(extension - 1)) };
        format!("{size:x}{name}\r\n{}\r\n", "d".repeat(size))
    };
    let ended = |chunks: String| format!("{chunks}0\r\n\r\n");
    let trailers = |lines: String| format!("0\r\n{lines}\r\n");
    let long = |size, times| chunk(size, 1024).repeat(times);
    for (taken, refused) in [
        (ended(chunk(1, 1024)), ended(chunk(1, 1025))),
        // 16 bytes of data pay for as many of extensions.
        (ended(long(1, 16) + &chunk(1, 16)), ended(long(1, 16) + &chunk(1, 17))),
        (ended(long(1024, 40)), ended(long(512, 40))),
        // What came before is no credit for what comes then.
        (ended(chunk(30_000, 0) + &long(1, 16)), ended(chunk(30_000, 0) + &long(1, 17))),
        (trailers(format!("A:{}\r\n", "v".repeat(8190))), trailers(format!("A:{}\r\n", "v".repeat(8191)))),
        (trailers("A:v\r\n".repeat(100)), trailers("A:v\r\n".repeat(101))),
        (ended(format!("{:0>16}\r\nd\r\n", 1)), ended(format!("{:0>17}\r\nd\r\n", 1))),
    ] {
        assert!(chunks(taken.as_bytes()).is_ok(), "{taken}");
        assert!(chunks(refused.as_bytes()).is_err(), "{refused}");
    }
}

#[test]
fn heads_that_go_on_mean_what_came() {
    let odd = |inputs, bit| {
        let mut inputs = behind_a_choice(inputs);
        inputs.iter_mut().for_each(|input| input.bytes[0] = input.bytes[0] & !1 | bit);
        inputs
    };
    let (clients, backends) = (odd(clients(), 0), odd(backends(), 1));
    pass("header_rewriting", clients.into_iter().chain(backends).collect());
}

#[test]
fn the_reference_refuses_what_must_not_be_written() {
    let wrong = |head: &str| matches!(reference::request(head.as_bytes()), Err(Fault::Wrong(_)));
    assert!(reference::request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").is_ok());
    for head in [
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\0\r\n\r\n",
        "GET / HTTP/1.1\r\n: a\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        "GET /\u{e4} HTTP/1.1\r\nHost: a\r\n\r\n",
        "P / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        "P / HTTP/1.1\r\nContent-Length: +1\r\n\r\na",
        "P / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "P / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "P / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        "P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    ] {
        assert!(wrong(head), "{head:?}");
    }
    let whole = b"P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;a=\"\\\"\"\r\na\r\n0\r\nX: y\r\n\r\n";
    for cut in 0..whole.len() {
        assert_eq!(reference::request(&whole[..cut]), Err(Fault::Partial), "cut at {cut}");
    }
}

//! Guard: looks at the heads of frames as they come in, for what the `h2` crate does not
//! tell: how many bring nothing, since when a header block is not whole, and whether settings
//! come first. Of a backend's heads, those count as nothing that are more than a response and
//! its trailers need: the crate keeps every interim response until it is taken. Of its settings,
//! one is read that the crate passes over: how large a request's head may be.
//!
//! Of the frames that go out, those are noted that end a stream ([`Endings`]): the crate refuses a
//! request that is malformed, too large, or one too many, without a word to us.
//!
//! Else a frame's meaning is the crate's business; here only its length, type and flags count
//! (RFC 9113 §4.1). What was passed on to the client makes up for frames that bring nothing:
//! a window has to be opened for all that is sent.

use super::PREFACE;
use super::limits::{Allowance, HEADS_OWED, IDLE_FRAMES};

/// Bytes of a frame's head.
const HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;

const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// What of a stream's number counts; the bit before it is reserved.
const STREAM: u32 = 0x7fff_ffff;

/// Bytes sent that make up for one frame, besides those that each write makes up for: a
/// client may open two windows for each small frame of ours.
const EARNED_BY: usize = 256;

/// Frames that one write makes up for.
const EARNED_EACH: usize = 4;

/// `SETTINGS_MAX_HEADER_LIST_SIZE` (RFC 9113 §6.5.2).
const MAX_HEADER_LIST_SIZE: u16 = 6;

/// Bytes of a setting (§6.5.1).
const SETTING: usize = 6;

/// Heads that answer a request: the response's and, behind its body, the trailers'.
const HEADS_EACH: usize = 2;

/// Walks along the frames of one connection.
#[derive(Debug)]
pub struct Guard {
    /// Bytes of the preface that are still to come.
    preface: usize,
    head: [u8; HEAD],
    /// Bytes of the head that have come.
    have: usize,
    /// Bytes of the payload that are still to come.
    left: usize,
    /// The frame is of a header block, and it is not the last one of it.
    goes_on: bool,
    /// Since when a header block is under way.
    block: Option<u64>,
    idle_frames: Allowance,
    /// Streams that the client has reset.
    resets: Vec<u32>,
    /// Heads that a backend owes for what it was asked.
    owed: usize,
    of_client: bool,
    /// The frame is of a backend's settings.
    sets: bool,
    /// What has come of one of them, and how much that is.
    setting: [u8; SETTING],
    set: usize,
    /// Bytes of a head that the backend takes at most, as it counts them.
    header_list: Option<u32>,
    /// No frame has come yet, and a preface was to come before.
    first: bool,
    breach: Option<Breach>,
}

/// What ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    /// The peer has sent more that brings nothing than is borne.
    Flood,
    /// Its preface does not end with settings (RFC 9113 §3.4).
    Preface,
}

impl Guard {
    /// A connection of which nothing was read, or, without a preface, a backend's.
    #[must_use]
    pub fn new(preface: bool) -> Self {
        Self {
            preface: if preface { PREFACE.len() } else { 0 },
            head: [0; HEAD],
            have: 0,
            left: 0,
            goes_on: false,
            block: None,
            idle_frames: Allowance::new(IDLE_FRAMES),
            resets: Vec::new(),
            owed: 0,
            of_client: preface,
            sets: false,
            setting: [0; SETTING],
            set: 0,
            header_list: None,
            first: preface,
            breach: None,
        }
    }

    /// Whether it is a client's connection.
    #[must_use]
    pub fn is_of_client(&self) -> bool {
        self.of_client
    }

    /// Why the connection must end, if it must.
    #[must_use]
    pub fn breach(&self) -> Option<Breach> {
        self.breach
    }

    /// Since when a header block is under way, in times of the caller's clock.
    #[must_use]
    pub fn block_since(&self) -> Option<u64> {
        self.block
    }

    /// The streams that the client has reset since this was last asked.
    pub fn take_resets(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.resets)
    }

    /// How large a head the backend takes, if it has said so: bytes of all names and values, and
    /// 32 for each field (RFC 9113 §6.5.2).
    #[must_use]
    pub fn header_list(&self) -> Option<u32> {
        self.header_list
    }

    /// Counts `n` bytes as sent that have something of an answer.
    pub fn sent(&mut self, n: usize) {
        self.idle_frames.earn(EARNED_EACH + n / EARNED_BY);
    }

    /// Counts a request that a backend is asked.
    pub fn asked(&mut self) {
        self.owed = (self.owed + HEADS_EACH).min(HEADS_OWED);
    }

    /// Looks at what was read at `now`.
    pub fn read(&mut self, bytes: &[u8], now: u64) {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        let mut rest = bytes.get(skipped..).unwrap_or_default();
        while !rest.is_empty() {
            if self.left > 0 {
                let passed = self.left.min(rest.len());
                self.left -= passed;
                let (payload, behind) = rest.split_at_checked(passed).unwrap_or((rest, &[]));
                if self.sets {
                    self.take_settings(payload);
                }
                rest = behind;
                self.end_block();
                continue;
            }
            let taken = (HEAD - self.have).min(rest.len());
            let (now_taken, behind) = rest.split_at_checked(taken).unwrap_or((rest, &[]));
            if let Some(place) = self.head.get_mut(self.have..self.have + taken) {
                place.copy_from_slice(now_taken);
            }
            self.have += taken;
            rest = behind;
            if self.have == HEAD {
                self.have = 0;
                self.begin(now);
            }
        }
    }

    /// Looks at a part of a backend's settings.
    fn take_settings(&mut self, payload: &[u8]) {
        for byte in payload {
            if let Some(place) = self.setting.get_mut(self.set) {
                *place = *byte;
            }
            self.set += 1;
            if self.set == SETTING {
                self.set = 0;
                let [a, b, value @ ..] = self.setting;
                if u16::from_be_bytes([a, b]) == MAX_HEADER_LIST_SIZE {
                    self.header_list = Some(u32::from_be_bytes(value));
                }
            }
        }
    }

    /// Takes in a frame's head that is whole.
    fn begin(&mut self, now: u64) {
        let [a, b, c, kind, flags, stream @ ..] = self.head;
        self.left = (usize::from(a) << 16) | (usize::from(b) << 8) | usize::from(c);
        let brings = match kind {
            DATA => self.left > 0 || flags & END_STREAM != 0,
            HEADERS if self.of_client => true,
            HEADERS => {
                let owed = self.owed > 0;
                self.owed = self.owed.saturating_sub(1);
                owed
            }
            _ => false,
        };
        if std::mem::take(&mut self.first) && (kind != SETTINGS || flags & ACK != 0) {
            self.breach = Some(Breach::Preface);
        }
        // At most as many as are borne at once, since more are not read.
        if kind == RST_STREAM && self.of_client && self.breach.is_none() {
            self.resets.push(u32::from_be_bytes(stream) & STREAM);
        }
        if !brings && !self.idle_frames.spend(now) {
            self.breach.get_or_insert(Breach::Flood);
        }
        (self.sets, self.set) = (kind == SETTINGS && !self.of_client, 0);
        if matches!(kind, HEADERS | CONTINUATION) {
            self.goes_on = flags & END_HEADERS == 0;
            self.block.get_or_insert(now);
        }
        self.end_block();
    }

    fn end_block(&mut self) {
        if self.left == 0 && !self.goes_on {
            self.block = None;
        }
    }
}

/// Notes which streams end by the frames that go out, and how much goes out on streams at all.
#[derive(Debug, Default)]
pub struct Endings {
    /// A frame's head, and the payload of a reset behind it.
    head: [u8; HEAD + 4],
    have: usize,
    left: usize,
    /// What is left is of a head or a body.
    carries: bool,
    /// Bytes of heads and bodies so far.
    carried: u64,
    seen: Vec<(u32, Ending)>,
}

/// How a stream ended, as far as it is ours to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By a head.
    Head,
    /// By a body.
    Body,
    /// By a reset with this code.
    Reset(u32),
}

impl Endings {
    /// Looks at what was sent.
    pub fn sent(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.left > 0 {
                let passed = self.left.min(rest.len());
                self.left -= passed;
                if self.carries {
                    self.carried += u64::try_from(passed).unwrap_or(0);
                }
                rest = rest.get(passed..).unwrap_or_default();
                continue;
            }
            let wanted = if self.have >= HEAD { self.head.len() } else { HEAD };
            let taken = (wanted - self.have).min(rest.len());
            let (now, behind) = rest.split_at_checked(taken).unwrap_or((rest, &[]));
            if let Some(place) = self.head.get_mut(self.have..self.have + taken) {
                place.copy_from_slice(now);
            }
            self.have += taken;
            rest = behind;
            if self.have >= HEAD {
                self.look();
            }
        }
    }

    /// Bytes of heads and bodies that were sent.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.carried
    }

    /// The streams that have ended since this was last asked.
    pub fn take(&mut self) -> Vec<(u32, Ending)> {
        std::mem::take(&mut self.seen)
    }

    fn look(&mut self) {
        let [a, b, c, kind, flags, stream @ .., e, f, g, h] = self.head;
        let ending = match kind {
            RST_STREAM if self.have < self.head.len() => return,
            RST_STREAM => Some(Ending::Reset(u32::from_be_bytes([e, f, g, h]))),
            HEADERS if flags & END_STREAM != 0 => Some(Ending::Head),
            DATA if flags & END_STREAM != 0 => Some(Ending::Body),
            _ => None,
        };
        self.seen.extend(ending.map(|ending| (u32::from_be_bytes(stream), ending)));
        self.left = (usize::from(a) << 16) | (usize::from(b) << 8) | usize::from(c);
        self.left = self.left.saturating_sub(self.have - HEAD);
        self.carries = matches!(kind, DATA | HEADERS | CONTINUATION);
        self.have = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::{Breach, Ending, Endings, Guard, HEADS_OWED, IDLE_FRAMES};

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![0, (length >> 8) as u8, length as u8, kind, flags, 0, 0, 0, 1];
        frame.resize(9 + length, 0xff);
        frame
    }

    /// Whether it trips over `bytes` that come in pieces of this size.
    fn trips(bytes: &[u8], piece: usize) -> bool {
        let mut guard = Guard::new(false);
        bytes.chunks(piece).for_each(|piece| guard.read(piece, 1));
        guard.breach() == Some(Breach::Flood)
    }

    #[test]
    fn frames_that_bring_nothing_are_counted_however_they_are_cut() {
        let most = IDLE_FRAMES.0 as usize;
        for (kind, flags, length) in
            [(6, 0, 8), (6, 1, 8), (4, 0, 0), (2, 0, 5), (8, 0, 4), (3, 0, 4), (0, 0, 0), (77, 0, 3)]
        {
            for piece in [1, 7, 9, 4096] {
                let one = frame(kind, flags, length);
                assert!(!trips(&one.repeat(most), piece), "{kind} in pieces of {piece}");
                assert!(trips(&one.repeat(most + 1), piece), "{kind} in pieces of {piece}");
            }
        }
        for (kind, flags, length) in [(0, 0, 1), (0, 1, 0)] {
            assert!(!trips(&frame(kind, flags, length).repeat(5 * most), 100), "{kind}");
        }
    }

    #[test]
    fn heads_that_nobody_asked_for_bring_nothing() {
        let (most, head) = (IDLE_FRAMES.0 as usize, frame(1, 4, 20));
        let mut guard = Guard::new(false);
        for _ in 0..10 * most {
            guard.asked();
            guard.read(&head.repeat(2), 1);
        }
        assert_eq!(guard.breach(), None);
        // What others were content without is not saved up for ever.
        (0..10 * most).for_each(|_| guard.asked());
        guard.read(&head.repeat(HEADS_OWED + most), 1);
        assert_eq!(guard.breach(), None);
        guard.read(&head, 1);
        assert_eq!(guard.breach(), Some(Breach::Flood));
        // A client's are requests, which have limits of their own.
        let mut guard = Guard::new(true);
        guard.read(&[super::PREFACE, &frame(4, 0, 6), &head.repeat(10 * most)].concat(), 1);
        assert_eq!(guard.breach(), None);
    }

    #[test]
    fn how_large_a_head_a_backend_takes_is_read_however_its_settings_are_cut() {
        let of = |settings: &[(u16, u32)]| {
            let mut bytes = frame(4, 0, 6 * settings.len());
            bytes.truncate(9);
            for (key, value) in settings {
                bytes.extend([&key.to_be_bytes()[..], &value.to_be_bytes()].concat());
            }
            bytes
        };
        let first = [frame(6, 0, 8), of(&[(3, 9), (6, 70_000), (4, 9)]), frame(4, 1, 0)].concat();
        let second = [frame(0, 0, 40), of(&[(5, 20_000)]), of(&[(6, 7), (6, 8)])].concat();
        for piece in 1..first.len() {
            let mut guard = Guard::new(false);
            for (bytes, size) in [(&first, 70_000), (&second, 8)] {
                bytes.chunks(piece).for_each(|piece| guard.read(piece, 1));
                assert_eq!(guard.header_list(), Some(size), "{piece}");
            }
        }
        let mut guard = Guard::new(true);
        guard.read(&[super::PREFACE, &first].concat(), 1);
        assert_eq!(guard.header_list(), None);
    }

    #[test]
    fn what_is_sent_makes_up_for_frames() {
        let mut guard = Guard::new(false);
        for _ in 0..100_000 {
            guard.read(&frame(8, 0, 4).repeat(4), 1);
            guard.sent(20);
        }
        assert_eq!(guard.breach(), None);
    }

    #[test]
    fn streams_that_end_are_noted_however_their_frames_are_cut() {
        let of = |stream: u8, mut frame: Vec<u8>| {
            frame[8] = stream;
            frame
        };
        let reset = |stream: u8, code: u8| [0, 0, 4, 3, 0, 0, 0, 0, stream, 0, 0, 0, code].to_vec();
        let bytes = [
            of(3, frame(0, 0, 300)),
            of(3, frame(0, 1, 20)),
            of(5, frame(1, 4, 7)),
            reset(5, 7),
            of(7, frame(1, 5, 3)),
            reset(9, 1),
            of(0, frame(4, 1, 0)),
        ];
        let all = vec![(3, Ending::Body), (5, Ending::Reset(7)), (7, Ending::Head), (9, Ending::Reset(1))];
        let bytes = bytes.concat();
        for piece in 1..bytes.len() {
            let mut endings = Endings::default();
            bytes.chunks(piece).for_each(|piece| endings.sent(piece));
            assert_eq!((endings.take(), endings.take()), (all.clone(), vec![]), "{piece}");
        }
    }

    #[test]
    fn a_header_block_is_under_way_until_its_last_frame_is_whole() {
        let mut guard = Guard::new(true);
        guard.read(super::PREFACE, 1);
        guard.read(&frame(4, 0, 6), 2);
        assert_eq!(guard.block_since(), None);
        let head = frame(1, 0, 5);
        guard.read(&head[..9], 3);
        assert_eq!(guard.block_since(), Some(3));
        guard.read(&head[9..], 4);
        guard.read(&frame(9, 0, 0), 5);
        assert_eq!(guard.block_since(), Some(3));
        let last = frame(9, 4, 2);
        guard.read(&last[..10], 6);
        assert_eq!(guard.block_since(), Some(3));
        guard.read(&last[10..], 7);
        assert_eq!(guard.block_since(), None);
        guard.read(&frame(1, 4, 0), 8);
        assert_eq!(guard.block_since(), None);
    }
}

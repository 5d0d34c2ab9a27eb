//! Buffers: fixed-size, reused, and held only while there are bytes in them.
//!
//! A connection that waits owns no buffer: it takes one from its thread's pool when
//! its socket turns readable and gives it back once all bytes are dealt with. So
//! memory follows the number of messages under way, not of connections.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes in a buffer from the pool. 16 KiB holds nearly every head together with the
/// start of its body.
pub const SIZE: usize = 16 * 1024;

/// Buffers a thread keeps for reuse (8 MiB); more are returned to the allocator.
const KEPT: usize = 512;

/// Bytes in a wide buffer: one read takes what a bulk sender has put into the socket. That is
/// often a round 64 KiB, with a head or a chunk's framing: so there is room for that too, or
/// each message would take two reads and two writes.
pub const WIDE: usize = 68 * 1024;

/// Wide buffers that a thread has at once (4 MiB); who gets none has to do with [`SIZE`].
const WIDE_MOST: usize = 64;

thread_local! {
    static POOL: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static WIDE_POOL: RefCell<Wide> = const { RefCell::new(Wide { kept: Vec::new(), made: 0 }) };
}

/// This thread's wide buffers.
struct Wide {
    /// Those that nobody has.
    kept: Vec<Vec<u8>>,
    /// How many there are in all.
    made: usize,
}

/// Bytes that a scratch vector may keep allocated between uses.
const SCRATCH_KEPT: usize = 8 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty vector to write a head into, from this thread's pool if it has one.
#[must_use]
pub fn scratch() -> Vec<u8> {
    SCRATCH.try_with(|pool| pool.borrow_mut().pop()).ok().flatten().unwrap_or_default()
}

/// Gives a scratch vector back.
pub fn recycle(mut vector: Vec<u8>) {
    if vector.capacity() == 0 || vector.capacity() > SCRATCH_KEPT {
        return;
    }
    vector.clear();
    let _ = SCRATCH.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.len() < KEPT {
            pool.push(vector);
        }
    });
}

/// Bytes that may still be given to buffers which hold more than others: 64 MiB in all,
/// over all threads.
static EXTRA: AtomicUsize = AtomicUsize::new(64 * 1024 * 1024);

/// A buffer whose filled part is `start..end`.
///
/// Every accessor is total: a position outside the buffer yields an empty slice.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes of it that are of [`EXTRA`].
    extra: usize,
}

impl Buffer {
    /// An empty buffer of [`SIZE`] bytes, from this thread's pool if it has one.
    #[must_use]
    pub fn take() -> Self {
        let bytes = POOL.try_with(|pool| pool.borrow_mut().pop()).ok().flatten().unwrap_or_else(|| vec![0; SIZE]);
        Self { bytes, start: 0, end: 0, extra: 0 }
    }

    /// An empty buffer of [`WIDE`] bytes, or of [`SIZE`] when this thread has too many wide
    /// ones in use.
    #[must_use]
    pub fn take_wide() -> Self {
        let bytes = WIDE_POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            pool.kept.pop().or_else(|| {
                let room = pool.made < WIDE_MOST;
                pool.made += usize::from(room);
                room.then(|| vec![0; WIDE])
            })
        });
        match bytes.ok().flatten() {
            Some(bytes) => Self { bytes, start: 0, end: 0, extra: 0 },
            None => Self::take(),
        }
    }

    /// The filled part.
    #[must_use]
    pub fn filled(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// The filled part, to be changed in place.
    pub fn filled_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.end).unwrap_or_default()
    }

    /// The room behind the filled part.
    pub fn spare(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// Counts `n` bytes written into [`Self::spare`] as filled.
    pub fn fill(&mut self, n: usize) {
        self.end = self.end.saturating_add(n).min(self.bytes.len());
    }

    /// Drops `n` bytes from the front.
    pub fn consume(&mut self, n: usize) {
        self.start = self.start.saturating_add(n).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Keeps only the first `n` filled bytes.
    pub fn truncate(&mut self, n: usize) {
        self.end = self.start.saturating_add(n).min(self.end);
    }

    /// Moves the filled part to the front, so that all room is behind it.
    pub fn compact(&mut self) {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// Moves a few filled bytes to where they take no more room than they need, for a long
    /// wait; [`Self::widen`] before more are read.
    pub fn rest(&mut self) {
        if self.bytes.len() >= SIZE && self.len() <= SIZE / 8 {
            let bytes = self.filled().to_vec();
            *self = Self { start: 0, end: bytes.len(), bytes, extra: 0 };
        }
    }

    /// Makes the buffer at least [`SIZE`] bytes long.
    pub fn widen(&mut self) {
        if self.bytes.len() < SIZE {
            let mut wide = Self::take();
            wide.append(self.filled());
            *self = wide;
        }
    }

    /// Makes the buffer `size` bytes long, if it is shorter. Such a buffer is not
    /// pooled afterwards.
    pub fn grow(&mut self, size: usize) {
        if self.bytes.len() < size {
            if self.is_wide() {
                let _ = WIDE_POOL.try_with(|pool| pool.borrow_mut().made -= 1);
            }
            self.bytes.resize(size, 0);
        }
    }

    /// The same for bytes that are held though they were dealt with, for which there is
    /// little memory in all: `false` when that is used up.
    pub fn extend(&mut self, size: usize) -> bool {
        if size <= self.bytes.len() {
            return true;
        }
        // A wide buffer that grows is no longer one of those that a thread may have, so all of
        // it counts from then on but what any buffer has.
        let before = if self.is_wide() { SIZE } else { self.bytes.len() };
        let more = size.saturating_sub(before);
        let taken = EXTRA.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(more));
        if taken.is_ok() {
            self.grow(size);
            self.extra += more;
        }
        taken.is_ok()
    }

    /// Whether it is one of the wide buffers that a thread may have.
    fn is_wide(&self) -> bool {
        self.bytes.len() == WIDE && self.extra == 0
    }

    /// Copies as many of `bytes` behind the filled part as fit; says how many.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let spare = self.spare();
        let n = spare.len().min(bytes.len());
        if let (Some(to), Some(from)) = (spare.get_mut(..n), bytes.get(..n)) {
            to.copy_from_slice(from);
        }
        self.fill(n);
        n
    }

    /// Bytes filled.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether nothing is filled.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Bytes the buffer can hold in all.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.extra > 0 {
            EXTRA.fetch_add(self.extra, Ordering::Relaxed);
        }
        if self.bytes.len() == SIZE {
            let bytes = std::mem::take(&mut self.bytes);
            // The pool is gone when the thread ends: the bytes then go the usual way.
            let _ = POOL.try_with(|pool| {
                let mut pool = pool.borrow_mut();
                if pool.len() < KEPT {
                    pool.push(bytes);
                }
            });
        } else if self.is_wide() {
            let bytes = std::mem::take(&mut self.bytes);
            let _ = WIDE_POOL.try_with(|pool| {
                let mut pool = pool.borrow_mut();
                if pool.kept.len() < pool.made {
                    pool.kept.push(bytes);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffer, SIZE, WIDE, WIDE_MOST};

    #[test]
    fn bytes_go_in_behind_and_out_in_front() {
        let mut buffer = Buffer::take();
        assert_eq!(buffer.append(b"hello world"), 11);
        buffer.consume(6);
        assert_eq!(buffer.filled(), b"world");
        buffer.compact();
        assert_eq!(buffer.spare().len(), SIZE - 5);
        buffer.consume(99);
        assert!(buffer.is_empty());
    }

    #[test]
    fn what_rests_takes_no_more_room_than_it_needs_and_can_go_on() {
        let mut buffer = Buffer::take();
        buffer.append(b"GET / HT");
        buffer.rest();
        assert_eq!((buffer.capacity(), buffer.filled()), (8, &b"GET / HT"[..]));
        buffer.widen();
        buffer.append(b"TP/1.1");
        assert_eq!((buffer.capacity(), buffer.filled()), (SIZE, &b"GET / HTTP/1.1"[..]));
    }

    #[test]
    fn a_full_buffer_takes_no_more_and_a_grown_one_does() {
        let mut buffer = Buffer::take();
        assert_eq!(buffer.append(&[b'x'; SIZE + 9]), SIZE);
        assert_eq!(buffer.append(b"y"), 0);
        buffer.grow(SIZE + 1);
        assert_eq!(buffer.append(b"yz"), 1);
    }

    #[test]
    fn what_is_held_beyond_a_buffer_is_bounded_over_all_of_them() {
        let mut buffer = Buffer::take();
        assert!(!buffer.extend(SIZE + 64 * 1024 * 1024 + 1));
        assert_eq!(buffer.capacity(), SIZE);
        // What was given comes back, or there would be an end to this.
        for _ in 0..200 {
            let mut buffer = Buffer::take();
            assert!(buffer.extend(1024 * 1024));
            assert_eq!(buffer.spare().len(), 1024 * 1024);
        }
    }

    #[test]
    fn a_wide_buffer_that_is_held_counts_whole_beyond_what_any_has() {
        let left = || super::EXTRA.load(std::sync::atomic::Ordering::Relaxed);
        // Others may hold some at the same time, for a moment.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while std::time::Instant::now() < deadline {
            let before = left();
            let mut buffer = Buffer::take_wide();
            assert!(buffer.extend(WIDE) && buffer.extend(WIDE + 1) && buffer.extend(2 * WIDE));
            if before - left() == 2 * WIDE - SIZE {
                return;
            }
        }
        panic!("it does not count");
    }

    #[test]
    fn wide_buffers_are_bounded_and_used_again() {
        let taken: Vec<_> = (0..WIDE_MOST).map(|_| Buffer::take_wide()).collect();
        assert!(taken.iter().all(|buffer| buffer.capacity() == WIDE));
        assert_eq!(Buffer::take_wide().capacity(), SIZE);
        drop(taken);
        let mut grown = Buffer::take_wide();
        grown.grow(WIDE + 1);
        drop(grown);
        let again: Vec<_> = (0..WIDE_MOST).map(|_| Buffer::take_wide()).collect();
        assert!(again.iter().all(|buffer| buffer.capacity() == WIDE), "one that grew leaves room for another");
    }
}

//! Records: one step of the library at a time, over bytes that lie where they are needed.
//!
//! Ciphertext is read into a thread's scratch, decrypted there, and copied once, to where its
//! reader wants it; what is written is encrypted into the scratch and sent from there. A
//! record is filled up over several slices, so that a head and the body behind it go out as
//! one, and what does not have to be gathered up for that is encrypted from where it lies.

use std::cell::RefCell;
use std::io::IoSlice;

use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic};

use super::fault::Fault;
use crate::transport::buffer;

/// Plain bytes in a record (RFC 8446 §5.1).
const PLAIN: usize = 16 * 1024;

/// Bytes of a whole record: header, content, and what protection may add to it, as §5.2 of
/// RFC 8446 bounds it.
pub(super) const WHOLE: usize = 5 + PLAIN + 256;

/// What a record's header takes.
const HEADER: usize = 5;

/// Plain bytes that are encrypted at once: what a relay has at most.
const MOST: usize = buffer::WIDE;

/// Bytes in front of what is encrypted, for what is to go out before it.
pub(super) const FRONT: usize = 8 * 1024;

/// A thread's scratch. Behind what goes first there is room for [`MOST`] plain bytes in
/// records, and for a key update.
const SIZE: usize = FRONT + MOST + 1024;

thread_local! {
    /// Where ciphertext lies for a moment, on its way in or out.
    pub(super) static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SIZE]);
    /// Where a record is gathered up from several slices.
    static GATHERED: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(PLAIN));
}

/// What a step is to do.
pub(super) struct Work<'w, 'f> {
    /// Where plain bytes go.
    pub into: &'w mut [u8],
    /// Where those go that it has no room for.
    pub spill: &'w mut Vec<u8>,
    /// Where what is to be sent besides goes: the handshake, tickets, alerts.
    pub out: &'w mut Vec<u8>,
    /// What is to be encrypted once that is possible.
    pub seal: Option<&'w mut Seal<'f>>,
}

/// What is to be encrypted.
pub(super) struct Seal<'f> {
    /// The plain bytes.
    pub from: &'f [IoSlice<'f>],
    /// Where the records go.
    pub to: &'f mut [u8],
    /// They are the last, and notice of that goes with them.
    pub close: bool,
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// So many plain bytes; there may be more to do.
    Again(usize),
    /// So many plain bytes were encrypted into so many.
    Sealed(usize, usize),
    /// Nothing can be done until more comes in.
    Waits,
    /// The peer has ended its direction, and said so.
    Ended,
    /// The connection has failed.
    Failed(Fault),
}

/// Does what the library's state asks for; says how many bytes that came in are done with.
pub(super) fn step<D>(status: UnbufferedStatus<'_, '_, D>, work: Work<'_, '_>) -> (usize, Step) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = match state {
        Ok(ConnectionState::ReadTraffic(mut traffic)) => {
            let mut copied = 0;
            loop {
                match traffic.next_record() {
                    Some(Ok(record)) => {
                        discard += record.discard;
                        let n = copy(record.payload, work.into.get_mut(copied..).unwrap_or_default());
                        copied += n;
                        work.spill.extend_from_slice(record.payload.get(n..).unwrap_or_default());
                    }
                    Some(Err(error)) => break Step::Failed(error.into()),
                    None => break Step::Again(copied),
                }
            }
        }
        Ok(ConnectionState::EncodeTlsData(mut data)) => match data.encode(&mut []) {
            Err(EncodeError::InsufficientSize(size)) => {
                let before = work.out.len();
                work.out.resize(before + size.required_size, 0);
                match data.encode(work.out.get_mut(before..).unwrap_or_default()) {
                    Ok(_) => Step::Again(0),
                    Err(_) => Step::Failed(Fault::Ours),
                }
            }
            Ok(_) => Step::Again(0),
            Err(_) => Step::Failed(Fault::Ours),
        },
        Ok(ConnectionState::TransmitTlsData(data)) => {
            // It lies in `out`, and goes out in its turn.
            data.done();
            Step::Again(0)
        }
        Ok(ConnectionState::WriteTraffic(mut traffic)) => match work.seal {
            None => Step::Waits,
            Some(seal) => match seal.apply(&mut traffic) {
                Ok((taken, sealed)) => Step::Sealed(taken, sealed),
                Err(_) => Step::Failed(Fault::Ours),
            },
        },
        Ok(ConnectionState::BlockedHandshake) => Step::Waits,
        Ok(ConnectionState::PeerClosed) => Step::Ended,
        // Both have: nothing more is to be done with it.
        Ok(ConnectionState::Closed) => Step::Failed(Fault::Ended),
        // Early data is never allowed, and there is nothing else yet.
        Ok(_) => Step::Failed(Fault::Ours),
        Err(error) => Step::Failed(error.into()),
    };
    (discard, step)
}

impl Seal<'_> {
    fn apply<D>(&mut self, traffic: &mut WriteTraffic<'_, D>) -> Result<(usize, usize), EncryptError> {
        let (taken, mut sealed) = match self.from {
            [only] => {
                let data = only.get(..only.len().min(MOST)).unwrap_or_default();
                (data.len(), traffic.encrypt(data, self.to)?)
            }
            _ => GATHERED.with_borrow_mut(|gathered| self.gather(traffic, gathered))?,
        };
        if self.close {
            sealed += traffic.queue_close_notify(self.to.get_mut(sealed..).unwrap_or_default())?;
        }
        Ok((taken, sealed))
    }

    /// Fills records up over several slices.
    fn gather<D>(
        &mut self,
        traffic: &mut WriteTraffic<'_, D>,
        gathered: &mut Vec<u8>,
    ) -> Result<(usize, usize), EncryptError> {
        gathered.clear();
        let (mut taken, mut sealed) = (0, 0);
        let mut encrypt = |data: &[u8]| {
            let n = traffic.encrypt(data, self.to.get_mut(sealed..).unwrap_or_default())?;
            sealed += n;
            Ok::<(), EncryptError>(())
        };
        for slice in self.from {
            let mut data = slice.get(..slice.len().min(MOST - taken)).unwrap_or_default();
            taken += data.len();
            if !gathered.is_empty() {
                let (first, others) = data.split_at(data.len().min(PLAIN - gathered.len()));
                gathered.extend_from_slice(first);
                data = others;
                if gathered.len() == PLAIN {
                    encrypt(gathered)?;
                    gathered.clear();
                }
            }
            let (whole, others) = data.split_at(data.len() - data.len() % PLAIN);
            if !whole.is_empty() {
                encrypt(whole)?;
            }
            gathered.extend_from_slice(others);
        }
        if !gathered.is_empty() {
            encrypt(gathered)?;
        }
        Ok((taken, sealed))
    }
}

/// Copies as much as there is room for; says how much.
pub(super) fn copy(from: &[u8], into: &mut [u8]) -> usize {
    let n = from.len().min(into.len());
    if let (Some(into), Some(from)) = (into.get_mut(..n), from.get(..n)) {
        into.copy_from_slice(from);
    }
    n
}

/// The content's length in the record that `bytes` begin with, if it is there whole.
fn content(bytes: &[u8]) -> Option<usize> {
    let header = bytes.first_chunk::<HEADER>()?;
    let [_, _, _, high, low] = *header;
    let content = usize::from(u16::from_be_bytes([high, low]));
    (bytes.len() >= HEADER + content).then_some(content)
}

/// Whether `bytes` begin with a whole record.
pub(super) fn is_whole(bytes: &[u8]) -> bool {
    content(bytes).is_some()
}

/// Whether they begin with one whose plain bytes take no more than `room`.
pub(super) fn fits(bytes: &[u8], room: usize) -> bool {
    // Each suite adds 16 bytes at least.
    content(bytes).is_some_and(|content| content.saturating_sub(16) <= room)
}

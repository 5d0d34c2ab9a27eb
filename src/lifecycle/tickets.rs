//! Ticket keys: made anew as time goes by, and left for the next process.
//!
//! systemd keeps descriptors of a service in its *descriptor store* and passes them to the
//! process that comes next, be it after a restart or a crash; it forgets them when the service
//! stops. What is left there is one end of a pair of datagram sockets, in whose queue the keys
//! wait. The other end is closed, so nobody can add anything, and whoever looks without taking
//! leaves the keys to the one after. Unlike the pages of a memfd, a queue is never swapped to
//! disk. It is replaced when the keys change, so that what is forgotten here is so there.
//!
//! Nobody needs keys where there is no certificate, so none are left then. Without systemd, or
//! without `FileDescriptorStoreMax=`, they live as long as the process.
//!
//! Source: `sd_pid_notify_with_fds(3)`, `systemd.service(5)`.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use rustix::net::{RecvFlags, recv};
use tracing::{debug, warn};
use zeroize::Zeroizing;

use super::notify::Notifier;
use crate::telemetry::events;
use crate::tls::TicketKeys;
use crate::tls::tickets::BYTES_MOST;
use crate::transport::listeners::{Left, TICKET_KEYS};

/// The keys of tickets, and what the service manager has of them.
#[derive(Debug)]
pub(super) struct Tickets {
    keys: Arc<TicketKeys>,
    stored: Stored,
}

/// What is in the descriptor store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    Nothing,
    /// Keys that were, or something that is none.
    Other,
    These,
}

impl Tickets {
    /// Goes on at `now` with the keys that an earlier process has left, or makes new ones.
    pub(super) fn recover(left: Option<Left>, now: u64) -> Tickets {
        let keys = left.map(|left| {
            let bytes = look(&left?)?;
            TicketKeys::from_bytes(&bytes, now).map_err(|error| error.to_string())
        });
        let (keys, stored) = match keys {
            None => (TicketKeys::default(), Stored::Nothing),
            Some(Ok(keys)) => (keys, Stored::These),
            Some(Err(error)) => {
                warn!(message_id = events::TICKET_KEYS_UNUSABLE, error, "stored ticket keys can't be used");
                (TicketKeys::default(), Stored::Other)
            }
        };
        debug!(recovered = stored == Stored::These, "ticket keys are there");
        let mut tickets = Tickets { keys: Arc::new(keys), stored };
        tickets.rotate(now);
        tickets
    }

    /// They were had from a process that runs, not from the service manager: what that has is
    /// not known.
    pub(super) fn doubt(&mut self) {
        if self.stored == Stored::These {
            self.stored = Stored::Other;
        }
    }

    pub(super) fn keys(&self) -> &Arc<TicketKeys> {
        &self.keys
    }

    /// Makes new keys when they are due at `now`, and leaves to the service manager what a next
    /// process is to have: nothing unless they are `needed`.
    pub(super) fn keep(&mut self, needed: bool, now: u64, notifier: &mut Notifier) {
        self.rotate(now);
        match self.stored {
            Stored::Nothing | Stored::Other if needed => match parcel(&self.keys.to_bytes()) {
                Ok(parcel) => {
                    notifier.store(TICKET_KEYS, parcel.into());
                    self.stored = Stored::These;
                }
                // Out of descriptors, or of memory: perhaps not in a second.
                Err(error) => debug!(%error, "ticket keys can't be stored"),
            },
            Stored::Other | Stored::These if !needed => {
                notifier.forget(TICKET_KEYS);
                self.stored = Stored::Nothing;
            }
            _ => {}
        }
    }

    fn rotate(&mut self, now: u64) {
        match self.keys.rotate(now) {
            Ok(true) => {
                debug!("ticket keys are new");
                if self.stored == Stored::These {
                    self.stored = Stored::Other;
                }
            }
            Ok(false) => {}
            Err(error) => debug!(%error, "ticket keys can't be made"),
        }
    }
}

/// A socket in whose queue these bytes wait.
pub(super) fn parcel(bytes: &[u8]) -> io::Result<UnixDatagram> {
    let (from, to) = UnixDatagram::pair()?;
    from.set_nonblocking(true)?;
    from.send(bytes)?;
    Ok(to)
}

/// What waits in the queue of a [`parcel`], which stays there.
fn look(parcel: &UnixDatagram) -> Result<Zeroizing<Vec<u8>>, String> {
    // One that has a name was sent to by whoever knows it.
    if !parcel.local_addr().is_ok_and(|address| address.is_unnamed()) {
        return Err("a socket that others can send to".to_owned());
    }
    let mut bytes = Zeroizing::new(vec![0; BYTES_MOST]);
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    let (_, length) =
        recv(parcel, bytes.as_mut_slice(), flags).map_err(|error| format!("nothing is in it: {error}"))?;
    if length > BYTES_MOST {
        return Err(format!("more than {BYTES_MOST} bytes"));
    }
    bytes.truncate(length);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::notify::tests::{heard, manager};
    use crate::tls::tickets::SEALS;

    /// What a process has that finds `parcel`, and what it leaves.
    fn recovered(parcel: &UnixDatagram) -> (Zeroizing<Vec<u8>>, Stored) {
        let tickets = Tickets::recover(Some(Ok(parcel.try_clone().unwrap())), 100);
        (tickets.keys.to_bytes(), tickets.stored)
    }

    #[test]
    fn what_is_left_is_there_for_each_process_that_comes() {
        let first = Tickets::recover(None, 100);
        assert_eq!(first.stored, Stored::Nothing);
        let left = parcel(&first.keys.to_bytes()).unwrap();
        for _ in 0..3 {
            assert_eq!(recovered(&left), (first.keys.to_bytes(), Stored::These));
        }
    }

    #[test]
    fn what_can_not_be_used_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("named");
        let named = UnixDatagram::bind(&path).unwrap();
        let keys = Tickets::recover(None, 100).keys.to_bytes();
        UnixDatagram::unbound().unwrap().send_to(&keys, &path).unwrap();
        let empty = UnixDatagram::pair().unwrap().0;
        for parcel in [parcel(&keys[..keys.len() - 1]).unwrap(), parcel(&[b'x'; 100_000]).unwrap(), named, empty] {
            let (other, stored) = recovered(&parcel);
            assert!(!other.is_empty() && other != keys);
            assert_eq!(stored, Stored::Other);
        }
        assert_eq!(Tickets::recover(Some(Err("no such socket".into())), 100).stored, Stored::Other);
    }

    #[test]
    fn new_keys_take_the_place_of_old_ones_and_all_go_when_nobody_needs_them() {
        const FORGET: &str = "FDSTOREREMOVE=1\nFDNAME=ticket-keys\n";
        const STORE: &str = "FDSTORE=1\nFDNAME=ticket-keys\nFDPOLL=0\n";
        let (_folder, manager, mut notifier) = manager().unwrap();
        let mut tickets = Tickets::recover(None, 100);
        let mut keep = |needed, now| {
            tickets.keep(needed, now, &mut notifier);
            let heard: Vec<_> = std::iter::from_fn(|| heard(&manager)).collect();
            let stored = heard.iter().find_map(|(_, descriptor)| descriptor.as_ref());
            let bytes = stored.map(|stored| look(&stored.try_clone().unwrap().into()).unwrap());
            (heard.into_iter().map(|(text, _)| text).collect::<Vec<_>>(), bytes, tickets.keys.to_bytes())
        };
        assert_eq!(keep(false, 100).0, [""; 0]);
        let (heard, stored, first) = keep(true, 200);
        assert_eq!((&heard[..], stored.as_ref()), (&[FORGET.to_owned(), STORE.to_owned()][..], Some(&first)));
        assert_eq!(keep(true, 99 + SEALS).0, [""; 0]);
        let (heard, stored, second) = keep(true, 100 + SEALS);
        assert_eq!((heard.len(), stored.as_ref()), (2, Some(&second)));
        assert!(second.len() > first.len(), "the one before still opens");
        assert_eq!(keep(false, 101 + SEALS).0, [FORGET]);
        assert_eq!(keep(false, 102 + SEALS).0, [""; 0]);
    }
}

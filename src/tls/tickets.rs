//! Session tickets: what clients keep of a session, sealed so that only we can open it.
//!
//! A ticket holds a secret of its session. Whoever has the key of tickets can read all that
//! was recorded of a session of TLS 1.2, and can pass for the server where a client resumes
//! one of TLS 1.3 (which makes a new key exchange each time, so what was recorded stays
//! secret). So keys don't live long: one seals for [`SEALS`] and opens for [`OPENS`], then it
//! is overwritten. That is what rustls' own tickets do; RFC 9325 §3.4 asks for keys that change
//! regularly, once a week say, and tickets that live half as long, and RFC 8446 §4.6.1 allows a
//! ticket seven days.
//!
//! Unlike those, the keys can be taken out ([`TicketKeys::to_bytes`]) and given to the next
//! process. Age is counted by the clock that runs since the host has booted: it can't be set,
//! it does not stop while the host sleeps, and all processes have the same.
//!
//! ```text
//! ticket = name of the key (16) ‖ salt (16) ‖ AES-256-GCM(session) ‖ tag (16)
//! key of the ticket = HKDF-Expand(secret, label ‖ what the policy trusts (32) ‖ salt)
//! ```
//!
//! Names and places are those of RFC 5077 §4. Each ticket has a key of its own, so a nonce
//! need not be unique: 2^48 tickets of one secret lead to the same one twice with a chance of
//! 2^-33, and there is no number of tickets to keep count of. What the policy trusts is what
//! its files hold, and not where they are or which number it has: a session leads to the same
//! policy in another process, and to no other one, whatever has happened to the files
//! meanwhile. Who can't be helped by a ticket makes a full handshake.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk};
use aws_lc_rs::rand;
use rustix::time::{ClockId, clock_gettime};
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

/// How long a key seals new tickets, in seconds: six hours.
pub const SEALS: u64 = 6 * 3_600;

/// How long it opens them: twelve hours from when it was made, in seconds.
pub const OPENS: u64 = 2 * SEALS;

/// Bytes of a session that a ticket is given out for, at most. The certificates that a client has
/// shown are a part of it, and a hello with too large a ticket would be refused: so a client
/// with that many makes full handshakes.
const SESSION_MOST: usize = 8 * 1024;

/// The keys that this allows at a time.
const KEYS: usize = 2;

const NAME: usize = 16;
const SALT: usize = 16;
const TAG: usize = 16;
const SECRET: usize = 32;

/// What keys are used for, so that nothing else can be had by them.
const LABEL: &[u8] = b"doorward ticket";

/// What keys begin with that are given to another process. The last character is the version
/// of what follows: for each key, the newest first, when it was made, its name, its secret.
const FORMAT: &[u8] = b"doorward tickets 1";

/// Bytes of a key in that form.
const KEY: usize = 8 + NAME + SECRET;

/// Bytes that keys have at most in that form.
pub const BYTES_MOST: usize = FORMAT.len() + KEYS * KEY;

/// What a policy on client certificates trusts, as a digest.
pub(super) type Trusted = [u8; 32];

struct Key {
    /// When it was made, in seconds since the host has booted.
    made: u64,
    name: [u8; NAME],
    secret: Zeroizing<[u8; SECRET]>,
    derive: Prk,
}

impl Key {
    fn new(made: u64, name: [u8; NAME], secret: Zeroizing<[u8; SECRET]>) -> Key {
        let derive = Prk::new_less_safe(HKDF_SHA256, &*secret);
        Key { made, name, secret, derive }
    }

    fn random(made: u64) -> Result<Key, Unspecified> {
        let (mut name, mut secret) = ([0; NAME], Zeroizing::new([0; SECRET]));
        rand::fill(&mut name)?;
        rand::fill(&mut *secret)?;
        Ok(Key::new(made, name, secret))
    }

    fn opens(&self, now: u64) -> bool {
        (self.made..self.made.saturating_add(OPENS)).contains(&now)
    }

    fn seals(&self, now: u64) -> bool {
        (self.made..self.made.saturating_add(SEALS)).contains(&now)
    }

    /// The key of the ticket that has this salt.
    fn of_ticket(&self, trusted: &Trusted, salt: &[u8]) -> Result<LessSafeKey, Unspecified> {
        let info = [LABEL, trusted, salt];
        let key = self.derive.expand(&info, &AES_256_GCM)?;
        Ok(LessSafeKey::new(UnboundKey::from(key)))
    }

    fn seal(&self, trusted: &Trusted, plain: &[u8]) -> Result<Vec<u8>, Unspecified> {
        let mut salt = [0; SALT];
        rand::fill(&mut salt)?;
        let key = self.of_ticket(trusted, &salt)?;
        let mut ticket = Vec::with_capacity(NAME + SALT + plain.len() + TAG);
        ticket.extend(self.name);
        ticket.extend(salt);
        ticket.extend(plain);
        let (head, body) = ticket.split_at_mut(NAME + SALT);
        let tag = key.seal_in_place_separate_tag(nonce(), Aad::from(head), body)?;
        ticket.extend(tag.as_ref());
        Ok(ticket)
    }

    fn open(&self, trusted: &Trusted, ticket: &[u8]) -> Option<Vec<u8>> {
        let (head, sealed) = ticket.split_at_checked(NAME + SALT)?;
        let key = self.of_ticket(trusted, head.get(NAME..)?).ok()?;
        let mut plain = sealed.to_vec();
        let length = key.open_in_place(nonce(), Aad::from(head), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

/// The nonce of a key that seals once.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

/// The keys of all tickets, the newest first. Without any, no ticket is given out.
///
/// A handshake takes the lock for reading; it is taken for writing every [`SEALS`].
#[derive(Default)]
pub struct TicketKeys(RwLock<Vec<Key>>);

/// Keys of another process can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// They are none, or those of another version.
    #[error("no keys of tickets in a form that is known here")]
    Form,
    /// They were made after this moment.
    #[error("keys of tickets that were not made since this host was booted")]
    Time,
}

impl TicketKeys {
    /// Keys of another process, as [`TicketKeys::to_bytes`] has given them.
    ///
    /// # Errors
    /// They can't be used.
    pub fn from_bytes(bytes: &[u8], now: u64) -> Result<TicketKeys, Unusable> {
        let keys = bytes.strip_prefix(FORMAT).map(|keys| keys.chunks_exact(KEY)).ok_or(Unusable::Form)?;
        if !(1..=KEYS).contains(&keys.len()) || !keys.remainder().is_empty() {
            return Err(Unusable::Form);
        }
        let mut keys: Vec<Key> = keys.filter_map(key).collect();
        if keys.iter().any(|key| key.made > now) {
            return Err(Unusable::Time);
        }
        keys.sort_by_key(|key| std::cmp::Reverse(key.made));
        Ok(TicketKeys(RwLock::new(keys)))
    }

    /// The keys as another process can take them; nothing where there are none.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        // Never moved while it grows: what is left behind would not be overwritten.
        let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES_MOST));
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        for (index, key) in keys.iter().take(KEYS).enumerate() {
            bytes.extend(if index == 0 { FORMAT } else { &[] });
            bytes.extend(key.made.to_be_bytes());
            bytes.extend(key.name);
            bytes.extend(key.secret.iter());
        }
        bytes
    }

    /// Forgets what has lived long enough at `now`, and has a new key where the newest is no
    /// more to be used for new tickets. Says whether anything has changed.
    ///
    /// # Errors
    /// The system has no randomness; what there is stays.
    pub fn rotate(&self, now: u64) -> Result<bool, rustls::Error> {
        let is_due =
            |keys: &[Key]| !keys.first().is_some_and(|key| key.seals(now)) || !keys.iter().all(|key| key.opens(now));
        if !is_due(&self.0.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(false);
        }
        let fresh = Key::random(now).map_err(|_| rustls::Error::FailedToGetRandomBytes)?;
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|key| key.opens(now));
        if !keys.first().is_some_and(|key| key.seals(now)) {
            keys.insert(0, fresh);
        }
        keys.truncate(KEYS);
        Ok(true)
    }

    fn seal(&self, trusted: &Trusted, plain: &[u8]) -> Option<Vec<u8>> {
        if plain.len() > SESSION_MOST {
            return None;
        }
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        keys.first()?.seal(trusted, plain).ok()
    }

    fn open(&self, trusted: &Trusted, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // One that should have been forgotten opens nothing: nobody may have had the time.
        let key = keys.iter().find(|key| ticket.starts_with(&key.name) && key.opens(now))?;
        key.open(trusted, ticket)
    }
}

/// Nothing of the keys is shown.
impl fmt::Debug for TicketKeys {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TicketKeys").finish_non_exhaustive()
    }
}

/// A key from its bytes.
fn key(bytes: &[u8]) -> Option<Key> {
    let (made, rest) = bytes.split_first_chunk()?;
    let (name, rest) = rest.split_first_chunk()?;
    let secret = Zeroizing::new(*rest.first_chunk()?);
    Some(Key::new(u64::from_be_bytes(*made), *name, secret))
}

/// Now, for keys: seconds since the host has booted.
#[must_use]
pub fn now() -> u64 {
    clock_gettime(ClockId::Boottime).tv_sec.unsigned_abs()
}

/// The tickets of a policy on client certificates.
#[derive(Debug)]
pub(super) struct Tickets {
    keys: Arc<TicketKeys>,
    trusted: Trusted,
}

impl Tickets {
    pub(super) fn sealed_by(keys: &Arc<TicketKeys>, trusted: Trusted) -> Arc<dyn ProducesTickets> {
        Arc::new(Tickets { keys: Arc::clone(keys), trusted })
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        !self.keys.0.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn lifetime(&self) -> u32 {
        // What the longest-lived has: one that was sealed as soon as there was its key.
        u32::try_from(OPENS).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys.seal(&self.trusted, plain)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.keys.open(&self.trusted, ticket, now())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const NOBODY: Trusted = [0; 32];
    const SOMEBODY: Trusted = [1; 32];

    fn keys(now: u64) -> TicketKeys {
        let keys = TicketKeys::default();
        assert_eq!(keys.rotate(now), Ok(true));
        keys
    }

    fn plain() -> Vec<u8> {
        (0..=255).collect()
    }

    fn opens(keys: &TicketKeys, ticket: &[u8], now: u64) -> bool {
        keys.open(&NOBODY, ticket, now).map(|opened| assert_eq!(opened, plain())).is_some()
    }

    #[test]
    fn a_key_seals_for_six_hours_and_opens_for_twelve() {
        let keys = keys(1_000);
        let early = keys.seal(&NOBODY, &plain()).unwrap();
        let mut late = early.clone();
        let mut rotations = Vec::new();
        for now in (1_000..1_000 + 3 * OPENS).step_by(60) {
            if keys.rotate(now).unwrap() {
                rotations.push(now - 1_000);
            }
            if now < 1_000 + SEALS {
                late = keys.seal(&NOBODY, &plain()).unwrap();
            }
            assert_eq!(opens(&keys, &early, now), now < 1_000 + OPENS, "{now}");
            assert_eq!(opens(&keys, &late, now), now < 1_000 + OPENS, "{now}");
            assert!(opens(&keys, &keys.seal(&NOBODY, &plain()).unwrap(), now));
            assert!(keys.to_bytes().len() <= BYTES_MOST);
        }
        assert_eq!(rotations, (1..6).map(|turn| turn * SEALS).collect::<Vec<_>>());
    }

    #[test]
    fn what_has_lived_long_enough_opens_nothing_though_nobody_has_forgotten_it() {
        let keys = keys(0);
        let ticket = keys.seal(&NOBODY, &plain()).unwrap();
        assert!(opens(&keys, &ticket, OPENS - 1) && !opens(&keys, &ticket, OPENS));
        // A host that has slept for days begins anew.
        assert_eq!(keys.rotate(10 * OPENS), Ok(true));
        assert_eq!(keys.to_bytes().len(), FORMAT.len() + KEY);
    }

    #[test]
    fn only_what_was_sealed_for_the_same_trust_is_opened_and_only_whole() {
        let keys = keys(0);
        let ticket = keys.seal(&NOBODY, &plain()).unwrap();
        assert_eq!(ticket.len(), NAME + SALT + plain().len() + TAG);
        assert!(opens(&keys, &ticket, 0) && keys.open(&SOMEBODY, &ticket, 0).is_none());
        for length in 0..ticket.len() {
            assert!(!opens(&keys, &ticket[..length], 0), "{length}");
        }
        for at in 0..ticket.len() {
            let mut forged = ticket.clone();
            forged[at] ^= 1;
            assert!(!opens(&keys, &forged, 0), "{at}");
        }
        assert!(!opens(&keys, &[&ticket[..], &[0]].concat(), 0));
        assert!(!opens(&self::keys(0), &ticket, 0), "a key that is unknown");
        let empty = keys.seal(&NOBODY, &[]).unwrap();
        assert_eq!(keys.open(&NOBODY, &empty, 0), Some(Vec::new()));
        assert!(keys.seal(&NOBODY, &[0; SESSION_MOST]).is_some());
        assert!(keys.seal(&NOBODY, &[0; SESSION_MOST + 1]).is_none());
    }

    #[test]
    fn no_two_tickets_are_the_same_and_each_has_a_key_of_its_own() {
        let keys = keys(0);
        let tickets: BTreeSet<Vec<u8>> = (0..100).map(|_| keys.seal(&NOBODY, &plain()).unwrap()).collect();
        let bodies: BTreeSet<&[u8]> = tickets.iter().map(|ticket| &ticket[NAME + SALT..]).collect();
        assert_eq!((tickets.len(), bodies.len()), (100, 100));
    }

    #[test]
    fn another_process_goes_on_with_the_same_keys() {
        let first = keys(100);
        let early = first.seal(&NOBODY, &plain()).unwrap();
        first.rotate(100 + SEALS).unwrap();
        let late = first.seal(&NOBODY, &plain()).unwrap();
        let now = 200 + SEALS;
        let second = TicketKeys::from_bytes(&first.to_bytes(), now).unwrap();
        assert_eq!(second.rotate(now), Ok(false));
        assert!(opens(&second, &early, now) && opens(&second, &late, now));
        assert!(opens(&first, &second.seal(&NOBODY, &plain()).unwrap(), now));
        assert_eq!(second.to_bytes(), first.to_bytes());
        // What has lived long enough meanwhile is forgotten.
        let third = TicketKeys::from_bytes(&first.to_bytes(), 100 + OPENS).unwrap();
        assert_eq!(third.rotate(100 + OPENS), Ok(true));
        assert!(!opens(&third, &early, 100 + OPENS) && opens(&third, &late, 100 + OPENS));
    }

    #[test]
    fn what_are_no_keys_is_refused() {
        let keys = keys(100);
        let good = keys.to_bytes();
        let refused = |bytes: &[u8]| TicketKeys::from_bytes(bytes, 100).unwrap_err();
        for length in 0..good.len() {
            assert_eq!(refused(&good[..length]), Unusable::Form, "{length}");
        }
        let many = [&good[..], &good[FORMAT.len()..], &good[FORMAT.len()..]].concat();
        let other = [b"doorward tickets 2", &good[FORMAT.len()..]].concat();
        for bytes in [&many[..], &other, &[0; BYTES_MOST], &[b'x'; 100_000]] {
            assert_eq!(refused(bytes), Unusable::Form);
        }
        assert_eq!(TicketKeys::from_bytes(&good, 99).unwrap_err(), Unusable::Time);
    }

    #[test]
    fn without_keys_there_are_no_tickets_and_none_are_shown() {
        let keys = Arc::new(TicketKeys::default());
        let tickets = Tickets::sealed_by(&keys, NOBODY);
        assert!(!tickets.enabled() && tickets.encrypt(b"x").is_none() && tickets.decrypt(&[0; 100]).is_none());
        assert!(keys.to_bytes().is_empty());
        keys.rotate(now()).unwrap();
        let ticket = tickets.encrypt(b"x").unwrap();
        assert_eq!((tickets.enabled(), tickets.decrypt(&ticket)), (true, Some(b"x".to_vec())));
        assert!(format!("{tickets:?}").contains("keys: TicketKeys { .. }"));
    }
}

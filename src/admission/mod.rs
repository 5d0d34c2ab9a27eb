//! Who comes in, and how many at once.
//!
//! [`gate`] is the semaphore with its queue, [`quota`] a plain bounded count for
//! what never queues. Both are policy: no I/O, no clock.

pub mod gate;
pub mod quota;

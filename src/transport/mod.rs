//! What bytes travel on: listeners, streams, the buffers they fill, deadlines, and dialling.

pub mod buffer;
pub mod clock;
pub mod dial;
pub mod listeners;
pub mod stream;

//! stub
pub mod notify;

//! stub
pub mod notify;
pub mod resolver;
pub mod watchdog;

//! The order service.
#![warn(missing_docs)]
pub mod clock;
pub mod order;
pub mod server;

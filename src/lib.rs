//! The order service.
#![warn(missing_docs)]
pub mod clock;
pub mod decide;
pub mod order;
pub mod pace;
pub mod server;
pub mod store;
pub mod upstream;

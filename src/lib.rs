//! The order service.
pub mod api;
pub mod clock;
pub mod config;
pub mod decide;
pub mod health;
pub mod order;
pub mod pace;
pub mod program;
pub mod reconciler;
pub mod server;
pub mod simulator;
pub mod store;
pub mod upstream;

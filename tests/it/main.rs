//! The built programs and the library, from outside. Each test is named by the promise it keeps.
//!
//! - `world`: builds what a test needs: a folder, programs, requests.
//! - `wire`: a connection without a client library.
//! - `life`: orders from creation to the end, through real programs, against the simulator's record.
//! - `create`: creating orders: what is taken, and what is refused.
//! - `http`: the API's paths, methods and parameters, single orders, and its health.
//! - `lists`: lists of orders: filters, pages, forms, and readers that are slow.
//! - `clients`: clients that misbehave, and the shutdown with clients in every situation.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod clients;
mod create;
mod http;
mod life;
mod lists;
mod wire;
mod world;

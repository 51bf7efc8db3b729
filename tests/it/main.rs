//! The built programs and the library, from outside. Each test is named by the promise it keeps.
//!
//! - `world`: builds what a test needs: a folder, programs, requests.
//! - `life`: orders from creation to the end, through real programs, against the simulator's record.
//! - `programs`: flags, variables, defaults, exit codes, signals, and what is printed.
//! - `upstreams`: the client and the reconciler against upstreams that answer as scripted.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod life;
mod programs;
mod upstreams;
mod world;

//! The built programs and the library, from outside. Each test is named by the promise it keeps.
//!
//! - `world`: builds what a test needs: a folder, programs, requests.
//! - `store`: the database: its schema, its journal, its indexes.
//! - `tidy`: what the documentation claims, read off the code.
//! - `pass`: the reconciler on one thread, with everything around it in memory.
//! - `life`: orders from creation to the end, through real programs, against the simulator's record.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod life;
mod pass;
mod store;
mod tidy;
mod world;

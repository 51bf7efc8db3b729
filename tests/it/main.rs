//! The built programs and the library, from outside. Each test is named by the promise it keeps.
//!
//! - `world`: builds what a test needs: a folder, programs, requests.
//! - `life`: orders from creation to the end, through real programs, against the simulator's record.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod life;
mod world;

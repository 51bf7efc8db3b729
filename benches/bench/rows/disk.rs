//! Disk space of a settled order with its journal. The reference is its minimal content: the id,
//! and the words and times of its statuses.

use std::fs;

use crate::Bench;
use crate::databases::MILLION;
use crate::table::{Goal, Line, Unit};

/// Number of times in an order and its journal: created, started, settled.
const TIMES: u64 = 3;

/// Bytes of a time as a number of milliseconds.
const TIME_BYTES: u64 = 8;

/// Average size of the status words, in bytes: CREATED, PROCESSING, and FULFILLED or FAILED, which
/// are equally frequent.
const WORDS_BYTES: f64 = 7.0 + 10.0 + (9.0 + 6.0) / 2.0;

/// Size of an id, in bytes: a UUID as text.
const ID_BYTES: f64 = 36.0;

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let bytes = fs::metadata(MILLION.database(bench)?)?.len();
    let ours = bytes as f64 / MILLION.orders as f64;
    let reference = ID_BYTES + WORDS_BYTES + (TIMES * TIME_BYTES) as f64;
    Ok(vec![
        Line::new("bytes on disk per settled order", Unit::Bytes, vec![ours])
            .against(vec![reference])
            .goal(Goal::RatioAtMost(4.0)),
    ])
}

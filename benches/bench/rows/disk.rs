//! What a settled order with its journal takes on disk, beside the bytes that nobody could do
//! without: its id, the words and moments of its statuses.

use std::fs;

use crate::Bench;
use crate::databases::MILLION;
use crate::table::{Goal, Line, Unit};

/// Times that an order and its journal have: created, started, settled.
const TIMES: u64 = 3;

/// Bytes of a time as a number of milliseconds.
const TIME_BYTES: u64 = 8;

/// The same words in the journal and in the order: CREATED, PROCESSING, and FULFILLED or FAILED,
/// which are equally many.
const WORDS_BYTES: f64 = 7.0 + 10.0 + (9.0 + 6.0) / 2.0;

/// Bytes of an id: a UUID as text.
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

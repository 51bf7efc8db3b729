//! The rows of the table, in the order in which they are measured and told.
//!
//! Each says in its own file what is measured against what, and why that is a fair reference.

mod disk;

use crate::Bench;
use crate::table::Line;

/// Something that is measured: one line of the table or several.
pub struct Row {
    /// What it is asked for by.
    pub name: &'static str,
    /// What it measures, in a few words.
    pub what: &'static str,
    /// Measures it. An error means that something was wrong, not slow.
    pub run: fn(&Bench) -> anyhow::Result<Vec<Line>>,
}

/// All there are.
pub const ROWS: &[Row] = &[Row {
    name: "disk",
    what: "bytes on disk per settled order with its journal",
    run: disk::run,
}];

//! The rows of the table, in the order of measurement. `scripts/bench --list` reads their names and
//! descriptions from here.
//!
//! Each row's file describes the measurement, its reference, and why the reference is fair.

mod create;
mod disk;
mod idle;
mod list;
mod passes;
#[cfg(feature = "postgres")]
mod postgres;
mod read;
mod sustained;
mod wait;

#[cfg(feature = "postgres")]
pub use self::postgres::Server;
use crate::Bench;
use crate::table::Line;

/// A benchmark: one line of the table or several.
pub struct Row {
    /// Name on the command line.
    pub name: &'static str,
    /// Short description of the measurement.
    pub what: &'static str,
    /// Runs the benchmark. An error means a wrong result, not a slow one.
    pub run: fn(&Bench) -> anyhow::Result<Vec<Line>>,
}

/// All rows.
pub const ROWS: &[Row] = &[
    Row {
        name: "caller",
        what: "latency of one caller's creations",
        run: wait::caller,
    },
    Row {
        name: "processing",
        what: "from POST /order to PROCESSING, one program and two, idle",
        run: wait::processing,
    },
    Row {
        name: "sustained",
        what: "1,000 creations/s for three minutes, while a million orders settle",
        run: sustained::run,
    },
    Row {
        name: "create",
        what: "durable creations, a million orders in place",
        run: create::run,
    },
    Row {
        name: "get",
        what: "one order, at random among a million",
        run: read::get,
    },
    Row {
        name: "list",
        what: "all of a million orders",
        run: list::run,
    },
    Row {
        name: "page",
        what: "a page of a million orders, against one of ten thousand",
        run: read::page,
    },
    Row {
        name: "starts",
        what: "starts at a learned rate, 100,000 due",
        run: passes::starts,
    },
    Row {
        name: "settle",
        what: "a pass that settles a million orders through the list",
        run: passes::settle,
    },
    Row {
        name: "idle_pass",
        what: "a pass with nothing changed, 100,000 open",
        run: passes::idle_pass,
    },
    Row {
        name: "few",
        what: "a pass with 1,000 open, a million settled",
        run: passes::few,
    },
    Row {
        name: "growth",
        what: "a pass with a million settled, against one with a thousand",
        run: passes::growth,
    },
    Row {
        name: "idle",
        what: "both programs at rest, and how soon they are ready",
        run: idle::run,
    },
    Row {
        name: "disk",
        what: "bytes on disk per settled order with its journal",
        run: disk::run,
    },
    #[cfg(feature = "postgres")]
    Row {
        name: "postgres-settle",
        what: "a million orders settled by one list",
        run: postgres::settle,
    },
    #[cfg(feature = "postgres")]
    Row {
        name: "postgres-disk",
        what: "bytes on disk per settled order with its journal",
        run: postgres::disk,
    },
    #[cfg(feature = "postgres")]
    Row {
        name: "postgres-idle",
        what: "statements of both programs at rest",
        run: postgres::idle,
    },
    #[cfg(feature = "postgres")]
    Row {
        name: "postgres-create",
        what: "durable creations through one API and three",
        run: postgres::create,
    },
    #[cfg(feature = "postgres")]
    Row {
        name: "postgres-caller",
        what: "latency of one caller's creations",
        run: postgres::caller,
    },
    #[cfg(feature = "postgres")]
    Row {
        name: "postgres-get",
        what: "one order, at random among a million",
        run: postgres::get,
    },
    #[cfg(feature = "postgres")]
    Row {
        name: "postgres-list",
        what: "all of a million orders",
        run: postgres::list,
    },
    #[cfg(feature = "postgres")]
    Row {
        name: "postgres-processing",
        what: "from POST /order to PROCESSING, two programs, idle",
        run: postgres::processing,
    },
    #[cfg(feature = "postgres")]
    Row {
        name: "postgres-sustained",
        what: "1,000 creations/s while 100,000 orders settle",
        run: postgres::sustained,
    },
];

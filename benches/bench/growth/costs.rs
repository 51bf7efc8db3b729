//! The costs whose growth is told, and how each is measured among so many settled orders.
//!
//! Single requests are made one after the other through one connection: what grows with the number
//! of orders is seen best where nothing queues.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::still;
use crate::Bench;
use crate::databases::{MILLION, Template};
use crate::http::Connection;
use crate::machine::flushes;
use crate::programs::{Program, order_service};
use crate::table::{median, percentile};

/// What a cost is compared with in the chart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One request or pass.
    Single,
    /// Something that goes over all orders.
    Whole,
    /// It is only in the table.
    Told,
}

/// Something that may cost more, the more orders there are.
pub struct Cost {
    /// Its name, short enough for a chart.
    pub what: &'static str,
    /// What its figures count.
    pub unit: &'static str,
    /// Where it is drawn.
    pub kind: Kind,
}

const fn cost(what: &'static str, unit: &'static str, kind: Kind) -> Cost {
    Cost { what, unit, kind }
}

/// All there are, in the order of [`Figures`].
pub const COSTS: [Cost; 13] = [
    cost("create an order", "ms", Kind::Single),
    cost("GET an order", "ms", Kind::Single),
    cost("first page of 100", "ms", Kind::Single),
    cost("last page of 100 FAILED", "ms", Kind::Single),
    cost("pass over 1,000 open orders", "ms", Kind::Single),
    cost("start of the API", "ms", Kind::Single),
    cost("one fdatasync, beside", "ms", Kind::Single),
    cost("list of all orders", "s", Kind::Whole),
    cost("check", "s", Kind::Whole),
    cost("backup, with its check", "s", Kind::Whole),
    cost("list, for each order", "µs", Kind::Told),
    cost("disk, for each order with its journal", "bytes", Kind::Told),
    cost("memory of the API, after all this", "MiB", Kind::Told),
];

/// One figure for each cost.
pub type Figures = [f64; COSTS.len()];

/// How often a single request is made.
const REQUESTS: usize = 1_000;

/// How long the disk is measured.
const FLUSHES_DURING: Duration = Duration::from_millis(500);

/// How often the API is started.
const STARTS: usize = 5;

/// Measures every cost on a copy of a database with so many settled orders.
pub fn measure(bench: &Bench, orders: u64) -> anyhow::Result<Figures> {
    let template = Template { orders, ..MILLION };
    let scratch = bench.scratch()?;
    let database = scratch.path().join("orders.db");
    template.copy(bench, &database)?;
    let each = orders as f64;
    let bytes = fs::metadata(&database)?.len() as f64 / each;
    let check = seconds(|| order_service(&["check", "--database-url", text(&database)?]))?;
    let copy = scratch.path().join("backup.db");
    let backup =
        seconds(|| order_service(&["backup", text(&copy)?, "--database-url", text(&database)?]))?;
    let start = repeated(STARTS, |_| ready(&database).map(drop))?;
    let api = ready(&database)?;
    let mut caller = Connection::open(&api.url)?;
    let list = seconds(|| {
        caller.ask("/order")?;
        caller.drain(|| ())
    })?;
    let ids = File::open(template.ids(bench)?)?;
    let mut draws = fastrand::Rng::with_seed(orders);
    let get = repeated(REQUESTS, |_| {
        let id = id_at(&ids, draws.u64(..orders))?;
        found(&mut caller, &format!("/order/{id}"))
    })?;
    let first_page = repeated(REQUESTS, |_| found(&mut caller, "/order?limit=100"))?;
    let last = last_page(&mut caller)?;
    let last_page = repeated(REQUESTS, |_| found(&mut caller, &last))?;
    // The disk's mood, which a creation and a pass share.
    let flush = percentile(&flushes(scratch.path(), FLUSHES_DURING)?, 0.5);
    let create = repeated(REQUESTS, |n| {
        let id = format!("{:08x}-{n}", draws.u32(..));
        caller.create(&id)
    })?;
    let memory = api.anonymous_mib()?;
    drop(api);
    // Without the orders that were created meanwhile.
    let again = scratch.path().join("again.db");
    template.copy(bench, &again)?;
    let pass = still::pass(&again)?;
    Ok([
        create,
        get,
        first_page,
        last_page,
        pass,
        start,
        flush,
        list,
        check,
        backup,
        list / each * 1e6,
        bytes,
        memory,
    ])
}

fn seconds<T>(run: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<f64> {
    let begun = Instant::now();
    run()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// The median of so many turns, in milliseconds.
pub fn repeated(
    turns: usize,
    mut turn: impl FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let taken: anyhow::Result<Vec<f64>> =
        (0..turns).map(|n| Ok(seconds(|| turn(n))? * 1e3)).collect();
    Ok(median(&taken?))
}

/// An API that has answered that it is ready.
fn ready(database: &Path) -> anyhow::Result<Program> {
    let api = Program::api(database)?;
    found(&mut Connection::open(&api.url)?, "/readyz")?;
    Ok(api)
}

fn found(caller: &mut Connection, path: &str) -> anyhow::Result<()> {
    let answer = caller.get(path)?;
    ensure!(answer.status == 200, "{path} was answered with {answer:?}");
    Ok(())
}

/// The path of the last page that is full.
fn last_page(caller: &mut Connection) -> anyhow::Result<String> {
    let longest = "/order?status=FAILED&limit=1000".to_owned();
    let mut last = longest.replace("=1000", "=100");
    let mut next = Some(longest);
    while let Some(path) = next {
        let answer = caller.get(&path)?;
        ensure!(answer.status == 200, "{path} was answered with {answer:?}");
        if answer.next.is_some() {
            last = path.replace("limit=1000", "limit=100");
        }
        next = answer.next;
    }
    Ok(last)
}

/// The id in this line of a file of ids.
fn id_at(ids: &File, line: u64) -> anyhow::Result<String> {
    let mut id = [0; 36];
    ids.read_exact_at(&mut id, line * 37)?;
    Ok(String::from_utf8(id.to_vec())?)
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("an odd path")
}

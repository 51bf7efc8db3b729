//! The costs whose growth is told, and how each is measured among so many settled orders.
//!
//! Single requests are made one after the other through one connection: what grows with the number
//! of orders is seen best where nothing queues.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tempfile::TempDir;

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

/// Measures every cost among so many settled orders. Each copy of the database is removed as soon as
/// it was measured: of ten million orders it takes three gigabytes.
pub fn measure(bench: &Bench, orders: u64) -> anyhow::Result<Figures> {
    let template = Template { orders, ..MILLION };
    let [check, backup] = commands(bench, template)?;
    let pass = {
        let scratch = bench.scratch()?;
        still::pass(&copied(bench, template, &scratch)?)?
    };
    let bytes = fs::metadata(template.database(bench)?)?.len();
    let served = served(bench, template)?;
    Ok([
        served.create,
        served.get,
        served.first_page,
        served.last_page,
        pass,
        served.start,
        served.flush,
        served.list,
        check,
        backup,
        served.list / orders as f64 * 1e6,
        bytes as f64 / orders as f64,
        served.memory,
    ])
}

fn copied(bench: &Bench, template: Template, scratch: &TempDir) -> anyhow::Result<PathBuf> {
    let database = scratch.path().join("orders.db");
    template.copy(bench, &database)?;
    Ok(database)
}

/// How long the commands take that go over all orders: `check`, `backup`.
fn commands(bench: &Bench, template: Template) -> anyhow::Result<[f64; 2]> {
    let scratch = bench.scratch()?;
    let database = copied(bench, template, &scratch)?;
    let (database, to) = (text(&database)?, scratch.path().join("backup.db"));
    let check = seconds(|| order_service(&["check", "--database-url", database]))?;
    let backup = ["backup", text(&to)?, "--database-url", database];
    let backup = seconds(|| order_service(&backup))?;
    Ok([check, backup])
}

/// What the API was measured to take.
struct Served {
    create: f64,
    get: f64,
    first_page: f64,
    last_page: f64,
    start: f64,
    /// The disk's mood, which a creation and a pass share.
    flush: f64,
    list: f64,
    memory: f64,
}

fn served(bench: &Bench, template: Template) -> anyhow::Result<Served> {
    let scratch = bench.scratch()?;
    let database = copied(bench, template, &scratch)?;
    let start = repeated(STARTS, |_| ready(&database).map(drop))?;
    let api = ready(&database)?;
    let mut caller = Connection::open(&api.url)?;
    let list = seconds(|| {
        caller.ask("/order")?;
        caller.drain(|| ())
    })?;
    let ids = File::open(template.ids(bench)?)?;
    let mut draws = fastrand::Rng::with_seed(template.orders);
    let get = repeated(REQUESTS, |_| {
        let id = id_at(&ids, draws.u64(..template.orders))?;
        found(&mut caller, &format!("/order/{id}"))
    })?;
    let first_page = repeated(REQUESTS, |_| found(&mut caller, "/order?limit=100"))?;
    let last = last_page(&mut caller)?;
    let last_page = repeated(REQUESTS, |_| found(&mut caller, &last))?;
    let flush = percentile(&flushes(scratch.path(), FLUSHES_DURING)?, 0.5);
    let create = repeated(REQUESTS, |n| {
        let id = format!("{:08x}-{n}", draws.u32(..));
        caller.create(&id)
    })?;
    Ok(Served {
        create,
        get,
        first_page,
        last_page,
        start,
        flush,
        list,
        memory: api.anonymous_mib()?,
    })
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

//! Reads with a million orders stored.
//!
//! `get`: one random order, against `GET /livez` of the same program. `page`: a hundred FAILED
//! orders at the beginning, in the middle and at the end, against the same with ten thousand
//! orders.

use std::time::Instant;

use anyhow::{Context, ensure};

use super::create::{MEASURED, WARM_UP};
use crate::Bench;
use crate::databases::{MILLION, Template};
use crate::http::Connection;
use crate::load::{Script, wrk};
use crate::programs::Program;
use crate::table::{Goal, Line, Unit, alternately, median};

pub fn get(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let scratch = bench.scratch()?;
    let database = scratch.path().join("orders.db");
    MILLION.copy(bench, &database)?;
    let api = Program::api(&database)?;
    let ids = MILLION.ids(bench)?;
    let rate = |script, during| Ok(wrk(&api.url, script, during)?.per_second);
    for script in [Script::Get(&ids), Script::Live] {
        rate(script, WARM_UP)?;
    }
    let (ours, reference) = alternately(
        ROUNDS,
        |_| rate(Script::Get(&ids), MEASURED),
        |_| rate(Script::Live, MEASURED),
    )?;
    Ok(vec![
        Line::new("GET /order/{id}; GET /livez", Unit::PerSecond, ours)
            .against(reference)
            .goal(Goal::RatioAtLeast(0.4)),
    ])
}

/// Number of pages of each kind per round.
const PAGES: usize = 200;

const ROUNDS: usize = 3;

pub fn page(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let mut many = Pages::begin(bench, MILLION)?;
    let few = Template {
        orders: 10_000,
        ..MILLION
    };
    let mut few = Pages::begin(bench, few)?;
    let mut lines = Vec::new();
    for (index, word) in ["first", "middle", "last"].iter().enumerate() {
        let (ours, reference) = alternately(ROUNDS, |_| many.time(index), |_| few.time(index))?;
        let what = format!("{word} page of FAILED, of a million; of ten thousand");
        lines.push(
            Line::new(what, Unit::Millis, ours)
                .against(reference)
                .goal(Goal::RatioAtMost(1.5)),
        );
    }
    Ok(lines)
}

/// A server, and the paths of three of its pages.
struct Pages {
    _folder: tempfile::TempDir,
    _program: Program,
    connection: Connection,
    paths: [String; 3],
}

impl Pages {
    fn begin(bench: &Bench, template: Template) -> anyhow::Result<Self> {
        let folder = bench.scratch()?;
        let database = folder.path().join("orders.db");
        template.copy(bench, &database)?;
        let program = Program::api(&database)?;
        let mut connection = Connection::open(&program.url)?;
        let mut paths = vec!["/order?status=FAILED&limit=1000".to_owned()];
        while let Some(path) = paths.last() {
            match connection.get(path)?.next {
                Some(next) => paths.push(next),
                None => break,
            }
        }
        // The last page may have fewer than a hundred orders.
        paths.pop();
        let path = |index: usize| -> anyhow::Result<String> {
            let path = paths.get(index).context("there are too few pages")?;
            Ok(path.replace("limit=1000", "limit=100"))
        };
        Ok(Self {
            paths: [path(0)?, path(paths.len() / 2)?, path(paths.len() - 1)?],
            _folder: folder,
            _program: program,
            connection,
        })
    }

    /// Returns the median time of many reads of one page, in milliseconds.
    fn time(&mut self, page: usize) -> anyhow::Result<f64> {
        let mut taken = Vec::with_capacity(PAGES);
        for _ in 0..PAGES {
            let sent_at = Instant::now();
            let answer = self.connection.get(&self.paths[page])?;
            taken.push(sent_at.elapsed().as_secs_f64() * 1e3);
            ensure!(answer.status == 200, "{answer:?}");
        }
        Ok(median(&taken))
    }
}

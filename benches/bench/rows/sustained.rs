//! A thousand creations per second for three minutes, while a million orders settle, checkpoints
//! run and two backups are taken.
//!
//! The million orders are PROCESSING at first, and their processes end one after the other during
//! the first two minutes. API and reconciler are two programs. No order may be lost, no request
//! rejected.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::create::count;
use crate::Bench;
use crate::databases::{CommonStatus, MILLION, Template};
use crate::load::SustainedLoad;
use crate::programs::{Program, order_service};
use crate::table::{Goal, Line, Unit, percentile};
use crate::upstream::Upstream;

const LOAD: SustainedLoad = SustainedLoad {
    rate: 1_000,
    during: Duration::from_secs(180),
    connections: 64,
};

/// Time at which the last of the million processes ends, from the start of the upstream.
const ENDED_AFTER: Duration = Duration::from_secs(120);

/// Times at which the backups begin.
const BACKUPS_AT: [Duration; 2] = [Duration::from_secs(40), Duration::from_secs(100)];

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let scratch = bench.scratch()?;
    let database = scratch.path().join("orders.db");
    let template = Template {
        reached: CommonStatus::Processing,
        ..MILLION
    };
    template.copy(bench, &database)?;
    let upstream = Upstream::begin(template.names(bench)?, ENDED_AFTER)?;
    let api = Program::api(&database)?;
    let _reconciler = Program::reconciler(&database, &upstream.url, &[])?;
    let is_over = AtomicBool::new(false);
    let (waits, longest_log) = std::thread::scope(|scope| {
        let backups = scope.spawn(|| take_backups(&database, scratch.path(), &is_over));
        let waits = LOAD.create(&api.url);
        is_over.store(true, Ordering::Relaxed);
        let backups = backups
            .join()
            .unwrap_or_else(|_| anyhow::bail!("a backup panicked"));
        anyhow::Ok((waits?, backups?))
    })?;
    let acknowledged = waits.len() as u64;
    let found = count(&database)? - template.orders;
    ensure!(
        found == acknowledged,
        "{acknowledged} were acknowledged, {found} are there"
    );
    let settled = settled(&database)?;
    let line = |what: &str, unit, value| Line::new(what, unit, vec![value]);
    Ok(vec![
        line(
            "1,000 creations/s sustained, p50",
            Unit::Millis,
            percentile(&waits, 0.5),
        ),
        line("the same, p99", Unit::Millis, percentile(&waits, 0.99)),
        line("the same, worst", Unit::Millis, percentile(&waits, 1.0)).goal(Goal::Below(250.0)),
        line(
            "the same, orders settled meanwhile",
            Unit::Count,
            settled as f64,
        ),
        line("the same, longest log", Unit::MiB, longest_log),
    ])
}

/// Takes the backups until `is_over` is set, and returns the peak size of the log, in MiB.
fn take_backups(database: &Path, folder: &Path, is_over: &AtomicBool) -> anyhow::Result<f64> {
    let log = database.with_extension("db-wal");
    let url = database.to_str().context("the path is not UTF-8")?;
    let mut longest = 0;
    let began_at = Instant::now();
    std::thread::scope(|scope| {
        let backups = BACKUPS_AT.map(|at| {
            let file = folder.join(format!("backup-{}.db", at.as_secs()));
            scope.spawn(move || {
                std::thread::sleep(at.saturating_sub(began_at.elapsed()));
                let file = file.to_str().context("the path is not UTF-8")?;
                order_service(&["backup", file, "--database-url", url])
            })
        });
        while !is_over.load(Ordering::Relaxed) {
            longest = longest.max(std::fs::metadata(&log).map_or(0, |log| log.len()));
            std::thread::sleep(Duration::from_millis(5));
        }
        for backup in backups {
            backup
                .join()
                .unwrap_or_else(|_| anyhow::bail!("a backup panicked"))?;
        }
        Ok(longest as f64 / (1024.0 * 1024.0))
    })
}

fn settled(database: &Path) -> anyhow::Result<i64> {
    let db = rusqlite::Connection::open(database)?;
    let sql = "SELECT count(*) FROM orders WHERE status IN ('FULFILLED', 'FAILED')";
    Ok(db.query_row(sql, [], |row| row.get(0))?)
}

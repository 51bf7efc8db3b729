//! Databases full of orders: filled once through the store, as the programs would fill them, checked,
//! and copied for each row that needs one.
//!
//! They are kept in `target/bench` for the next run. Their names state their contents and the version of
//! the database format.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::try_join_all;
use order_service::order::{OrderId, Outcome, Timestamp};
use order_service::store::{Creation, DatabaseUrl, Mode, OrderChange, Store, Transition};

use crate::Bench;
use crate::programs::order_service;

/// Number of orders that are created, started or settled concurrently: as many as the write queue
/// holds, and as the twelve bits after a UUID's time can distinguish.
const WAVE: u64 = 4_000;

/// Creation time of the first order: 2026-01-01T00:00:00Z.
const FIRST_AT: i64 = 1_767_225_600_000;

/// Kind of the ids of orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    /// UUIDs of version 4.
    Random,
    /// UUIDs of version 7, in ascending order.
    Ordered,
}

impl Ids {
    /// Returns the name of the kind.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Ordered => "ordered",
        }
    }

    /// Returns the id of the order with this number, created at `at`.
    fn id(self, number: u64, at: Timestamp, rng: &mut fastrand::Rng) -> String {
        let variant = 0x8000 | rng.u64(..0x4000);
        let tail = rng.u64(..1 << 48);
        match self {
            Self::Random => {
                let (head, middle) = (rng.u64(..1 << 48), rng.u64(..0x1000));
                uuid(head, 0x4000 | middle, variant, tail)
            }
            Self::Ordered => uuid(at.0.unsigned_abs(), 0x7000 | (number % WAVE), variant, tail),
        }
    }
}

fn uuid(head: u64, version: u64, variant: u64, tail: u64) -> String {
    format!(
        "{:08x}-{:04x}-{version:04x}-{variant:04x}-{tail:012x}",
        head >> 16,
        head & 0xffff
    )
}

/// The status of all orders of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommonStatus {
    /// None was started.
    Created,
    /// All were started.
    Processing,
    /// All are settled, half of them FAILED.
    Settled,
}

/// A database full of orders.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// Number of orders.
    pub orders: u64,
    /// Kind of their ids.
    pub ids: Ids,
    /// Status of the orders.
    pub reached: CommonStatus,
}

/// A million settled orders with random ids.
pub const MILLION: Template = Template {
    orders: 1_000_000,
    ids: Ids::Random,
    reached: CommonStatus::Settled,
};

impl Template {
    /// Returns the path of the database, which is created if absent and never written again.
    pub fn database(&self, bench: &Bench) -> anyhow::Result<PathBuf> {
        let path = bench.folder.join(format!("{}.db", self.name(bench)?));
        if !path.exists() {
            eprintln!("          making {}", path.display());
            self.make(bench, &path)
                .with_context(|| format!("cannot make {}", path.display()))?;
        }
        Ok(path)
    }

    /// Returns the path of the file of ids, in the order of creation: 36 characters a line.
    pub fn ids(&self, bench: &Bench) -> anyhow::Result<PathBuf> {
        Ok(self.database(bench)?.with_extension("ids"))
    }

    /// Reads the ids, in the order of creation.
    pub fn names(&self, bench: &Bench) -> anyhow::Result<Vec<String>> {
        let text = fs::read_to_string(self.ids(bench)?)?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Copies the database and flushes the copy, so that the measurement has no flushing left to do.
    pub fn copy(&self, bench: &Bench, to: &Path) -> anyhow::Result<()> {
        fs::copy(self.database(bench)?, to)?;
        Ok(File::open(to)?.sync_all()?)
    }

    fn name(&self, bench: &Bench) -> anyhow::Result<String> {
        let reached = match self.reached {
            CommonStatus::Created => "created",
            CommonStatus::Processing => "processing",
            CommonStatus::Settled => "settled",
        };
        let (orders, ids) = (self.orders, self.ids.name());
        let format = format_version(bench)?;
        Ok(format!("{orders}-{reached}-{ids}-v{format}"))
    }

    fn make(&self, bench: &Bench, path: &Path) -> anyhow::Result<()> {
        let scratch = in_memory(bench)?;
        let made = scratch.path().join("orders.db");
        let ids = scratch.path().join("orders.ids");
        {
            let store = Store::open(&DatabaseUrl::from(made.clone()), Mode::Threaded)?;
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(self.fill(&store, &ids))?;
        }
        until_checkpointed(&made)?;
        let url = made.to_str().context("the path is not UTF-8")?;
        order_service(&["check", "--database-url", url])?;
        fs::copy(&ids, path.with_extension("ids"))?;
        let part = path.with_extension("part");
        fs::copy(&made, &part)?;
        Ok(fs::rename(&part, path)?)
    }

    /// Fills a database in waves: while one is created, the one before it is started and the one before
    /// that is settled, so that pages and indexes are filled as in production.
    pub async fn fill(&self, store: &Store, ids: &Path) -> anyhow::Result<()> {
        let mut rng = fastrand::Rng::with_seed(self.orders);
        let mut ids = BufWriter::new(File::create(ids)?);
        let (mut created, mut started) = (Vec::new(), Vec::new());
        let mut now = Timestamp(FIRST_AT);
        let mut number = 0;
        while number < self.orders || !created.is_empty() || !started.is_empty() {
            if self.reached == CommonStatus::Settled {
                settle(store, &started, now, &mut rng).await?;
            }
            started = std::mem::take(&mut created);
            if self.reached != CommonStatus::Created {
                start(store, &started, now).await?;
            }
            let wave = number..self.orders.min(number + WAVE);
            let names: Vec<String> = wave
                .clone()
                .map(|number| self.ids.id(number, now, &mut rng))
                .collect();
            for name in &names {
                writeln!(ids, "{name}")?;
            }
            created = create(store, names, now).await?;
            number = wave.end;
            now = now.after(Duration::from_secs(1));
        }
        store.checkpoint().await;
        Ok(ids.flush()?)
    }
}

/// Creates orders concurrently, and returns their sequence numbers.
pub async fn create(store: &Store, ids: Vec<String>, now: Timestamp) -> anyhow::Result<Vec<i64>> {
    let creations = ids.into_iter().map(|id| async move {
        match store.create(OrderId::new(id)?, now).await? {
            Creation::Created(order) => anyhow::Ok(order.seq),
            Creation::Exists(order) => anyhow::bail!("{} exists", order.id),
        }
    });
    try_join_all(creations).await
}

/// Records that CREATED orders were started.
pub async fn start(store: &Store, seqs: &[i64], now: Timestamp) -> anyhow::Result<()> {
    let steps = [
        Transition::Intended { previous: None },
        Transition::Started { is_observed: false },
    ];
    let changes = seqs.iter().flat_map(|seq| {
        steps.clone().map(|transition| OrderChange {
            seq: *seq,
            transition,
        })
    });
    record(store, changes.collect(), now).await
}

/// Records that PROCESSING orders settled, half of them as FAILED.
pub async fn settle(
    store: &Store,
    seqs: &[i64],
    now: Timestamp,
    rng: &mut fastrand::Rng,
) -> anyhow::Result<()> {
    let mut outcome = || match rng.bool() {
        true => Outcome::Succeeded,
        false => Outcome::Failed,
    };
    let changes = seqs.iter().map(|seq| OrderChange {
        seq: *seq,
        transition: Transition::Settled(outcome()),
    });
    record(store, changes.collect(), now).await
}

async fn record(store: &Store, changes: Vec<OrderChange>, now: Timestamp) -> anyhow::Result<()> {
    let lead = loop {
        // A server notices a moment later that the connection of the last leader has ended.
        match store.try_lead().await? {
            Some(lead) => break lead,
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    let recorded = lead.record(changes, now).await?;
    anyhow::ensure!(
        recorded.conflicts.is_empty(),
        "an order has another status than the last change gave it"
    );
    Ok(())
}

/// Returns a folder in memory if possible: flushing takes no time there.
fn in_memory(bench: &Bench) -> anyhow::Result<tempfile::TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| bench.scratch())
}

/// Returns the version of the database format, which is part of the names of databases.
fn format_version(bench: &Bench) -> anyhow::Result<i64> {
    let scratch = bench.scratch()?;
    let path = scratch.path().join("orders.db");
    drop(Store::open(
        &DatabaseUrl::from(path.clone()),
        Mode::Threaded,
    )?);
    let db = rusqlite::Connection::open(path)?;
    Ok(db.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// Waits until the last connection has checkpointed the write-ahead log.
fn until_checkpointed(path: &Path) -> anyhow::Result<()> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let deadline = Instant::now() + Duration::from_secs(30);
    while fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
        anyhow::ensure!(Instant::now() < deadline, "the database stays open");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

//! The service on PostgreSQL, in a cluster of its own on the measured disk. The reference of each line
//! is `pgbench`, `COPY` or bare statements on the same cluster, over the same socket, in the same
//! rounds; those of creations are one statement and one commit for an order and its entry.
//!
//! A million orders are created and started through the store, and settled by the reconciler. Rows
//! that write have a copy each.

use std::cell::OnceCell;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::TryStreamExt;
use order_service::store::{Mode, Store};
use tokio_postgres::NoTls;

use super::create::{MEASURED, WARM};
use super::list::listed;
use super::passes::list_alone;
use super::wait::{creations, followed};
use crate::Bench;
use crate::cluster::Cluster;
use crate::databases::{CommonStatus, Ids, MILLION, Template};
use crate::http::Connection;
use crate::load::{CONNECTIONS, Script, SustainedLoad, wrk};
use crate::programs::Program;
use crate::table::{Goal, Line, Unit, alternately, percentile};
use crate::upstream::Upstream;

const ROUNDS: usize = 3;

/// Number of APIs that share the database.
const APIS: usize = 3;

/// Number of changes per transaction of the bare statements, as of the reconciler.
const CHUNK: i64 = 2_000;

/// Number of orders that settle while others are created.
const BESIDE: Template = Template {
    orders: 100_000,
    reached: CommonStatus::Processing,
    ..MILLION
};

/// Creations beside them.
const LOAD: SustainedLoad = SustainedLoad {
    rate: 1_000,
    during: Duration::from_secs(60),
    connections: 64,
};

/// Time at which the last of the processes ends that settle beside.
const ENDED_AFTER: Duration = Duration::from_secs(15);

/// Duration of a round of pgbench, which connects within it.
const REFERENCE: Duration = Duration::from_secs(8);

/// Duration for which statements are counted at rest.
const AT_REST: Duration = Duration::from_secs(20);

/// Settings of the cluster other than PostgreSQL's own: room in memory, and few checkpoints.
const SETTINGS: [&str; 2] = ["shared_buffers=1GB", "max_wal_size=8GB"];

/// Creates an order and its entry, as an application does that needs no order of its entries.
const INSERT: &str = "\
    WITH created AS (INSERT INTO order_service.orders (seq, id, status, created_at, updated_at, batch) \
        VALUES (nextval('order_seq'), gen_random_uuid()::text, 'CREATED', 1, 1, 1) RETURNING seq) \
    INSERT INTO order_service.journal (seq, order_seq, at, reason) \
    SELECT nextval('entry_seq'), seq, 1, 'created' FROM created;";

/// Reads an order by its key.
const SELECT: &str = "\
    \\set seq random(1, 1000000)\n\
    SELECT seq, id, status, created_at, updated_at, starts, attention, attention_since, \
           attention_detail, next_attempt_at FROM order_service.orders WHERE seq = :seq;";

/// A cluster, and the databases that the rows share.
pub struct Server {
    cluster: Cluster,
    folder: tempfile::TempDir,
    processing: OnceCell<()>,
    settled: OnceCell<()>,
}

/// Names of the databases that the rows share: a million orders in PROCESSING, and settled.
const PROCESSING: &str = "processing";
const SETTLED: &str = "settled";

impl Server {
    /// Returns the server of the run, started at its first use.
    fn of(bench: &Bench) -> anyhow::Result<&Self> {
        if bench.server.get().is_none() {
            let cluster = Cluster::start(&bench.folder, &SETTINGS);
            let folder = bench.scratch()?;
            let _ = bench.server.set(Self {
                cluster,
                folder,
                processing: OnceCell::new(),
                settled: OnceCell::new(),
            });
        }
        bench.server.get().context("there is no server")
    }

    /// Creates the database of a million orders in PROCESSING, if there is none yet.
    fn make_processing(&self) -> anyhow::Result<()> {
        if self.processing.get().is_none() {
            let reached = CommonStatus::Processing;
            self.fill(Template { reached, ..MILLION }, PROCESSING)?;
            let _ = self.processing.set(());
        }
        Ok(())
    }

    /// Creates the database of a million settled orders, if there is none yet.
    fn make_settled(&self) -> anyhow::Result<()> {
        match self.settled.get() {
            None => self.settle_by_list().map(drop),
            Some(()) => Ok(()),
        }
    }

    /// Settles a copy of the orders in PROCESSING by one list, and returns the duration and the list.
    fn settle_by_list(&self) -> anyhow::Result<(Duration, Upstream)> {
        self.make_processing()?;
        let mut ids = self.names(PROCESSING)?;
        fastrand::Rng::with_seed(1).shuffle(&mut ids);
        let upstream = Upstream::begin(ids, Duration::ZERO)?;
        self.copy(PROCESSING, SETTLED)?;
        let began_at = Instant::now();
        let mut program = self.reconciler(SETTLED, &upstream.url, &["--once"])?;
        while !program.has_ended()? {
            std::thread::sleep(Duration::from_millis(10));
        }
        let took = began_at.elapsed();
        self.ensure_settled(SETTLED)?;
        // Otherwise autovacuum would come in the middle of another row.
        self.sql(SETTLED, "VACUUM ANALYZE")?;
        let _ = self.settled.set(());
        Ok((took, upstream))
    }

    fn ensure_settled(&self, database: &str) -> anyhow::Result<()> {
        let open = "SELECT count(*) FROM order_service.orders WHERE status = 'PROCESSING'";
        let open = self.number(database, open)?;
        ensure!(open == 0.0, "{open} orders are not settled");
        Ok(())
    }

    /// Creates a database through the store, and returns its name.
    fn fill(&self, template: Template, name: &'static str) -> anyhow::Result<&'static str> {
        let created = self
            .cluster
            .psql("postgres", &format!("CREATE DATABASE {name}"));
        ensure!(created.status.success(), "{created:?}");
        let store = Store::open(&self.cluster.database_url(name), Mode::Threaded)?;
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(template.fill(&store, &self.ids(name)))?;
        Ok(name)
    }

    /// Returns the path of the file of a database's ids, in the order of creation.
    fn ids(&self, name: &str) -> PathBuf {
        self.folder.path().join(name).with_extension("ids")
    }

    fn names(&self, name: &str) -> anyhow::Result<Vec<String>> {
        let text = fs::read_to_string(self.ids(name))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Copies a database, and returns the name of the copy.
    fn copy(&self, template: &str, name: &str) -> anyhow::Result<String> {
        let wait = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname";
        self.sql("postgres", &format!("{wait} = '{template}'"))?;
        self.sql(
            "postgres",
            &format!("CREATE DATABASE {name} TEMPLATE {template}"),
        )?;
        self.sql("postgres", "CHECKPOINT")?;
        Ok(name.to_owned())
    }

    /// Runs statements, and returns what they print.
    fn sql(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        let output = self.cluster.psql(database, sql);
        ensure!(output.status.success(), "{sql}: {output:?}");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn number(&self, database: &str, sql: &str) -> anyhow::Result<f64> {
        Ok(self.sql(database, sql)?.parse()?)
    }

    fn api(&self, database: &str) -> anyhow::Result<Program> {
        let log = self.folder.path().join(format!("{database}-api.log"));
        Program::api_on(self.cluster.url(database), &log)
    }

    fn reconciler(
        &self,
        database: &str,
        upstream: &str,
        arguments: &[&str],
    ) -> anyhow::Result<Program> {
        let log = self
            .folder
            .path()
            .join(format!("{database}-reconciler.log"));
        Program::reconciler_on(self.cluster.url(database), &log, upstream, arguments)
    }

    /// Runs pgbench with one script, and returns its transactions per second and the times of each
    /// in milliseconds, sorted.
    fn pgbench(
        &self,
        database: &str,
        sql: &str,
        clients: u64,
        during: Duration,
    ) -> anyhow::Result<(f64, Vec<f64>)> {
        let script = self.folder.path().join("script.sql");
        fs::write(&script, sql)?;
        let logs = tempfile::tempdir_in(&self.folder)?;
        let mut command = self.cluster.client("pgbench", database);
        command.args(["--no-vacuum", "--protocol=prepared", "--log", "--jobs=1"]);
        command.args([
            format!("--client={clients}"),
            format!("--time={}", during.as_secs()),
        ]);
        command.arg("--log-prefix").arg(logs.path().join("times"));
        command.arg("--file").arg(&script);
        let output = command.output()?;
        let printed = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "pgbench: {output:?}");
        let rate = printed.lines().find_map(|line| line.strip_prefix("tps = "));
        let rate = rate.and_then(|line| line.split(' ').next());
        let rate = rate.with_context(|| format!("pgbench printed: {output:?}"))?;
        let mut times = Vec::new();
        for log in fs::read_dir(logs.path())? {
            for line in fs::read_to_string(log?.path())?.lines() {
                let micros: f64 = line.split(' ').nth(2).context("an odd log")?.parse()?;
                times.push(micros / 1e3);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok((rate.parse()?, times))
    }

    /// Prepares a database for [`INSERT`], which numbers far above all orders.
    fn number_by_sequence(&self, database: &str) -> anyhow::Result<()> {
        for sequence in ["order_seq", "entry_seq"] {
            self.sql(
                database,
                &format!("CREATE SEQUENCE {sequence} START 1000000000"),
            )?;
        }
        Ok(())
    }
}

/// Measures creations by 64 callers of one API, and by 192 of three.
pub fn create(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let server = Server::of(bench)?;
    server.make_settled()?;
    let ours = server.copy(SETTLED, "created")?;
    let plain = server.copy(SETTLED, "plain")?;
    server.number_by_sequence(&plain)?;
    let apis = (0..APIS).map(|_| server.api(&ours));
    let apis: Vec<_> = apis.collect::<Result<_, _>>()?;
    let load = |apis: &[Program], during| -> anyhow::Result<f64> {
        let count = "SELECT max(seq) FROM order_service.orders";
        let before = server.number(&ours, count)?;
        let loads = std::thread::scope(|scope| {
            let loads: Vec<_> = apis
                .iter()
                .map(|api| scope.spawn(|| wrk(&api.url, Script::Create(Ids::Random), during)))
                .collect();
            let loads = loads.into_iter().map(|load| load.join());
            loads
                .map(|load| load.unwrap_or_else(|_| anyhow::bail!("wrk panicked")))
                .collect::<anyhow::Result<Vec<_>>>()
        })?;
        std::thread::sleep(Duration::from_millis(200));
        let acknowledged: u64 = loads.iter().map(|load| load.requests).sum();
        let created = (server.number(&ours, count)? - before) as u64;
        // Requests in flight at the end of wrk may or may not have created their orders.
        let in_flight = CONNECTIONS * apis.len() as u64;
        ensure!(
            (acknowledged..=acknowledged + in_flight).contains(&created),
            "{acknowledged} creations were acknowledged and {created} are there"
        );
        Ok(loads.iter().map(|load| load.per_second).sum())
    };
    let reference = || Ok(server.pgbench(&plain, INSERT, CONNECTIONS, REFERENCE)?.0);
    load(&apis, WARM)?;
    let mut lines = Vec::new();
    for (count, goal) in [(1, 1.5), (APIS, 2.0)] {
        let callers = CONNECTIONS * count as u64;
        let (ours, reference) =
            alternately(ROUNDS, |_| load(&apis[..count], MEASURED), |_| reference())?;
        let what = format!("POST /order, {callers} callers, {count} API; pgbench -c 64");
        lines.push(
            Line::new(what, Unit::PerSecond, ours)
                .against(reference)
                .goal(Goal::RatioAtLeast(goal)),
        );
    }
    Ok(lines)
}

/// Measures creations of one caller.
pub fn caller(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let server = Server::of(bench)?;
    server.make_settled()?;
    let ours = server.copy(SETTLED, "caller")?;
    let plain = server.copy(SETTLED, "caller_plain")?;
    server.number_by_sequence(&plain)?;
    let api = server.api(&ours)?;
    let mut connection = Connection::open(&api.url)?;
    let mut rng = fastrand::Rng::new();
    let (ours, reference) = alternately(
        ROUNDS,
        |_| Ok(percentile(&creations(&mut connection, &mut rng)?, 0.5)),
        |_| {
            Ok(percentile(
                &server.pgbench(&plain, INSERT, 1, REFERENCE)?.1,
                0.5,
            ))
        },
    )?;
    Ok(vec![
        Line::new("one caller creates, p50; pgbench -c 1", Unit::Millis, ours)
            .against(reference)
            .goal(Goal::RatioAtMost(3.0)),
    ])
}

/// Measures reads of one order by its id, against a row by its key.
pub fn get(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let server = Server::of(bench)?;
    server.make_settled()?;
    let api = server.api(SETTLED)?;
    let ids = server.ids(PROCESSING);
    let ours = |during| Ok(wrk(&api.url, Script::Get(&ids), during)?.per_second);
    let reference = || Ok(server.pgbench(SETTLED, SELECT, CONNECTIONS, REFERENCE)?.0);
    ours(WARM)?;
    let (ours, reference) = alternately(ROUNDS, |_| ours(MEASURED), |_| reference())?;
    let what = "GET /order/{id}, 64 callers; pgbench SELECT by key -c 64";
    Ok(vec![
        Line::new(what, Unit::PerSecond, ours)
            .against(reference)
            .goal(Goal::RatioAtLeast(0.7)),
    ])
}

/// Measures the list of all orders, against `COPY` of the same columns into this process.
pub fn list(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let server = Server::of(bench)?;
    server.make_settled()?;
    let api = server.api(SETTLED)?;
    let (ours, reference) = alternately(
        ROUNDS,
        |_| Ok(MILLION.orders as f64 / listed(&api)?.whole.as_secs_f64()),
        |_| {
            let began_at = Instant::now();
            let rows = server.on_connection(SETTLED, async |client| {
                const COPY: &str = "COPY (SELECT seq, id, status, created_at, updated_at, starts, \
                    attention, attention_since, attention_detail, next_attempt_at \
                    FROM order_service.orders ORDER BY seq) TO STDOUT";
                let mut pieces = std::pin::pin!(client.copy_out(COPY).await?);
                let mut rows = 0;
                while let Some(piece) = pieces.try_next().await? {
                    rows += piece.iter().filter(|byte| **byte == b'\n').count();
                }
                Ok(rows)
            })?;
            ensure!(rows as u64 == MILLION.orders, "{rows} orders were copied");
            Ok(rows as f64 / began_at.elapsed().as_secs_f64())
        },
    )?;
    let what = "GET /order, a million; COPY TO STDOUT";
    Ok(vec![
        Line::new(what, Unit::PerSecond, ours)
            .against(reference)
            .goal(Goal::RatioAtLeast(0.5)),
    ])
}

/// Measures the settling of a million orders by one list, against the list and the bare statements.
pub fn settle(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let server = Server::of(bench)?;
    let (ours, upstream) = server.settle_by_list()?;
    let plain = server.copy(PROCESSING, "settled_plain")?;
    let alone = list_alone(&upstream.url)? + server.settle_alone(&plain)?;
    server.ensure_settled(&plain)?;
    let what = "a million settled by a list; bare statements";
    Ok(vec![
        Line::new(what, Unit::Seconds, vec![ours.as_secs_f64()])
            .against(vec![alone.as_secs_f64()])
            .goal(Goal::RatioAtMost(1.5)),
    ])
}

/// Measures creations at a constant rate while many orders settle.
pub fn sustained(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let server = Server::of(bench)?;
    let database = server.fill(BESIDE, "beside")?;
    let upstream = Upstream::begin(server.names(database)?, ENDED_AFTER)?;
    let api = server.api(database)?;
    let _reconciler = server.reconciler(database, &upstream.url, &[])?;
    let waits = LOAD.create(&api.url)?;
    let settled =
        "SELECT count(*) FROM order_service.orders WHERE status IN ('FULFILLED', 'FAILED')";
    let line = |what: &str, unit, value| Line::new(what, unit, vec![value]);
    Ok(vec![
        line(
            "1,000 creations/s beside, p50",
            Unit::Millis,
            percentile(&waits, 0.5),
        ),
        line("the same, p99", Unit::Millis, percentile(&waits, 0.99)).goal(Goal::Below(50.0)),
        line("the same, worst", Unit::Millis, percentile(&waits, 1.0)),
        line(
            "the same, orders settled beside",
            Unit::Count,
            server.number(database, settled)?,
        ),
    ])
}

/// Measures the time from POST to PROCESSING, with two programs.
pub fn processing(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let server = Server::of(bench)?;
    let arguments = ["--max-order-process-duration", "1"];
    let simulator = Program::simulator(server.folder.path(), &arguments)?;
    server.sql("postgres", "CREATE DATABASE followed")?;
    let api = server.api("followed")?;
    let _reconciler = server.reconciler("followed", &simulator.url, &[])?;
    followed(&api, "two programs on PostgreSQL")
}

/// Measures the bytes of a settled order with its entries, after a vacuum.
pub fn disk(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let server = Server::of(bench)?;
    // Wave by wave, a million orders settle within minutes: autovacuum comes each second instead of each minute.
    server.cluster.set("autovacuum_naptime", "1");
    let database = server.fill(MILLION, "waves")?;
    server.cluster.set("autovacuum_naptime", "60");
    server.sql(database, "VACUUM ANALYZE")?;
    let size = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class \
                WHERE relnamespace = 'order_service'::regnamespace AND relkind = 'r'";
    let bytes = server.number(database, size)? / MILLION.orders as f64;
    let what = "bytes of a settled order, after a vacuum";
    Ok(vec![
        Line::new(what, Unit::Bytes, vec![bytes]).goal(Goal::Below(700.0)),
    ])
}

/// Counts the statements of both programs at rest, as the server's log counts them.
pub fn idle(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let server = Server::of(bench)?;
    server.sql("postgres", "CREATE DATABASE rest")?;
    server.sql("postgres", "ALTER DATABASE rest SET log_statement = 'all'")?;
    let simulator = Program::simulator(server.folder.path(), &[])?;
    let api = server.api("rest")?;
    let _reconciler = server.reconciler("rest", &simulator.url, &[])?;
    Connection::open(&api.url)?.get("/readyz")?;
    std::thread::sleep(Duration::from_secs(3));
    let before = server.cluster.logged("rest").len();
    std::thread::sleep(AT_REST);
    let count = server.cluster.logged("rest").len() - before;
    let per_second = count as f64 / AT_REST.as_secs_f64();
    let what = "statements of both programs at rest";
    Ok(vec![
        Line::new(what, Unit::PerSecond, vec![per_second]).goal(Goal::Below(2.0)),
    ])
}

impl Server {
    /// Settles all orders by bare statements on one connection, and returns the duration.
    fn settle_alone(&self, database: &str) -> anyhow::Result<Duration> {
        const SETTLE: &str = "\
            WITH settled AS (UPDATE order_service.orders AS o \
                SET status = u.outcome, updated_at = updated_at + 1, confirmed_at = NULL, process_seen = false \
                FROM unnest($1::bigint[], $2::text[]) AS u (seq, outcome) \
                WHERE o.seq = ANY ($1) AND o.seq = u.seq AND status = 'PROCESSING' RETURNING o.seq) \
            INSERT INTO order_service.journal (seq, order_seq, at, reason) \
            SELECT $3 + row_number() OVER (), seq, 2, 'succeeded' FROM settled";
        let began_at = Instant::now();
        self.on_connection(database, async |client| {
            let plain = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; \
                         SET enable_nestloop = off";
            client.batch_execute(plain).await?;
            let settle = client.prepare(SETTLE).await?;
            let newest = "SELECT max(seq) FROM order_service.journal";
            let mut newest: i64 = client.query_one(newest, &[]).await?.get(0);
            for first in (1..=MILLION.orders as i64).step_by(CHUNK as usize) {
                let seqs: Vec<i64> = (first..first + CHUNK).collect();
                let outcomes = vec!["FULFILLED"; seqs.len()];
                newest += client
                    .execute(&settle, &[&seqs, &outcomes, &newest])
                    .await? as i64;
            }
            Ok(())
        })?;
        Ok(began_at.elapsed())
    }

    /// Runs work on a connection of this process.
    fn on_connection<T>(
        &self,
        database: &str,
        work: impl AsyncFnOnce(&tokio_postgres::Client) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build()?;
        runtime.block_on(async {
            let url = self.cluster.url(database);
            let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
            tokio::spawn(connection);
            work(&client).await
        })
    }
}

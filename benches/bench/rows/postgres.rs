//! The service on PostgreSQL, in a cluster of its own on the measured disk. The reference of each line
//! is `pgbench`, `COPY` or bare statements on the same cluster, over the same socket, in the same
//! rounds; those of creations are one statement and one commit for an order and its entry.
//!
//! A million orders are created and started through the store, and settled by the reconciler. Rows
//! that write have a copy each.

mod server;

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::TryStreamExt;

pub use self::server::Server;
use self::server::{PROCESSING, SETTLED};
use super::create::{MEASURED, WARM_UP};
use super::list::read_list;
use super::passes::time_of_list;
use super::wait::{creations, measure_processing};
use crate::Bench;
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
const SETTLING: Template = Template {
    orders: 100_000,
    reached: CommonStatus::Processing,
    ..MILLION
};

/// Creations meanwhile.
const LOAD: SustainedLoad = SustainedLoad {
    rate: 1_000,
    during: Duration::from_secs(60),
    connections: 64,
};

/// Time at which the last of the processes ends, from the start of the upstream.
const ENDED_AFTER: Duration = Duration::from_secs(15);

/// Duration of a round of pgbench, which connects within it.
const REFERENCE: Duration = Duration::from_secs(8);

/// Duration for which statements of idle programs are counted.
const IDLE: Duration = Duration::from_secs(20);

/// Creates an order and its entry, like an application that does not need ordered entries.
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

/// Measures creations by 64 callers of one API, and by 192 of three.
pub fn create(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let server = Server::of(bench)?;
    server.make_settled()?;
    let ours = server.copy(SETTLED, "created")?;
    let plain = server.copy(SETTLED, "plain")?;
    server.create_sequences(&plain)?;
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
    load(&apis, WARM_UP)?;
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
    server.create_sequences(&plain)?;
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
    ours(WARM_UP)?;
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
        |_| Ok(MILLION.orders as f64 / read_list(&api)?.whole.as_secs_f64()),
        |_| {
            let began_at = Instant::now();
            let rows = server.with_connection(SETTLED, async |client| {
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
    let alone = time_of_list(&upstream.url)? + server.settle_by_statements(&plain)?;
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
    let database = server.fill(SETTLING, "settling")?;
    let upstream = Upstream::begin(server.names(database)?, ENDED_AFTER)?;
    let api = server.api(database)?;
    let _reconciler = server.reconciler(database, &upstream.url, &[])?;
    let waits = LOAD.create(&api.url)?;
    let settled =
        "SELECT count(*) FROM order_service.orders WHERE status IN ('FULFILLED', 'FAILED')";
    let line = |what: &str, unit, value| Line::new(what, unit, vec![value]);
    Ok(vec![
        line(
            "1,000 creations/s while orders settle, p50",
            Unit::Millis,
            percentile(&waits, 0.5),
        ),
        line("the same, p99", Unit::Millis, percentile(&waits, 0.99)).goal(Goal::Below(50.0)),
        line("the same, worst", Unit::Millis, percentile(&waits, 1.0)),
        line(
            "the same, orders settled meanwhile",
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
    server.sql("postgres", "CREATE DATABASE processing_time")?;
    let api = server.api("processing_time")?;
    let _reconciler = server.reconciler("processing_time", &simulator.url, &[])?;
    measure_processing(&api, "two programs on PostgreSQL")
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

/// Counts the statements of both idle programs in the server's log.
pub fn idle(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let server = Server::of(bench)?;
    server.sql("postgres", "CREATE DATABASE idle")?;
    server.sql("postgres", "ALTER DATABASE idle SET log_statement = 'all'")?;
    let simulator = Program::simulator(server.folder.path(), &[])?;
    let api = server.api("idle")?;
    let _reconciler = server.reconciler("idle", &simulator.url, &[])?;
    Connection::open(&api.url)?.get("/readyz")?;
    std::thread::sleep(Duration::from_secs(3));
    let before = server.cluster.logged("idle").len();
    std::thread::sleep(IDLE);
    let count = server.cluster.logged("idle").len() - before;
    let per_second = count as f64 / IDLE.as_secs_f64();
    let what = "statements of both programs at rest";
    Ok(vec![
        Line::new(what, Unit::PerSecond, vec![per_second]).goal(Goal::Below(2.0)),
    ])
}

impl Server {
    /// Settles all orders by bare statements on one connection, and returns the duration.
    fn settle_by_statements(&self, database: &str) -> anyhow::Result<Duration> {
        const SETTLE: &str = "\
            WITH settled AS (UPDATE order_service.orders AS o \
                SET status = u.outcome, updated_at = updated_at + 1, confirmed_at = NULL, process_seen = false \
                FROM unnest($1::bigint[], $2::text[]) AS u (seq, outcome) \
                WHERE o.seq = ANY ($1) AND o.seq = u.seq AND status = 'PROCESSING' RETURNING o.seq) \
            INSERT INTO order_service.journal (seq, order_seq, at, reason) \
            SELECT $3 + row_number() OVER (), seq, 2, 'succeeded' FROM settled";
        let began_at = Instant::now();
        self.with_connection(database, async |client| {
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
}

//! The cluster that the rows on PostgreSQL share, and its databases.

use std::cell::OnceCell;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use order_service::store::{Mode, Store};
use tokio_postgres::NoTls;

use crate::Bench;
use crate::cluster::Cluster;
use crate::databases::{CommonStatus, MILLION, Template};
use crate::programs::Program;
use crate::upstream::Upstream;

/// Settings of the cluster other than PostgreSQL's own: room in memory, and few checkpoints.
const SETTINGS: [&str; 2] = ["shared_buffers=1GB", "max_wal_size=8GB"];

/// A cluster, and the databases that the rows share.
pub struct Server {
    pub cluster: Cluster,
    pub folder: tempfile::TempDir,
    processing: OnceCell<()>,
    settled: OnceCell<()>,
}

/// Names of the databases that the rows share: a million orders in PROCESSING, and settled.
pub const PROCESSING: &str = "processing";
pub const SETTLED: &str = "settled";

impl Server {
    /// Returns the server of the run, started at its first use.
    pub fn of(bench: &Bench) -> anyhow::Result<&Self> {
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
    pub fn make_processing(&self) -> anyhow::Result<()> {
        if self.processing.get().is_none() {
            let reached = CommonStatus::Processing;
            self.fill(Template { reached, ..MILLION }, PROCESSING)?;
            let _ = self.processing.set(());
        }
        Ok(())
    }

    /// Creates the database of a million settled orders, if there is none yet.
    pub fn make_settled(&self) -> anyhow::Result<()> {
        match self.settled.get() {
            None => self.settle_by_list().map(drop),
            Some(()) => Ok(()),
        }
    }

    /// Settles a copy of the orders in PROCESSING by one list, and returns the duration and the list.
    pub fn settle_by_list(&self) -> anyhow::Result<(Duration, Upstream)> {
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
        // Otherwise autovacuum would run during another row.
        self.sql(SETTLED, "VACUUM ANALYZE")?;
        let _ = self.settled.set(());
        Ok((took, upstream))
    }

    pub fn ensure_settled(&self, database: &str) -> anyhow::Result<()> {
        let open = "SELECT count(*) FROM order_service.orders WHERE status = 'PROCESSING'";
        let open = self.number(database, open)?;
        ensure!(open == 0.0, "{open} orders are not settled");
        Ok(())
    }

    /// Creates a database through the store, and returns its name.
    pub fn fill(&self, template: Template, name: &'static str) -> anyhow::Result<&'static str> {
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
    pub fn ids(&self, name: &str) -> PathBuf {
        self.folder.path().join(name).with_extension("ids")
    }

    pub fn names(&self, name: &str) -> anyhow::Result<Vec<String>> {
        let text = fs::read_to_string(self.ids(name))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Copies a database, and returns the name of the copy.
    pub fn copy(&self, template: &str, name: &str) -> anyhow::Result<String> {
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
    pub fn sql(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        let output = self.cluster.psql(database, sql);
        ensure!(output.status.success(), "{sql}: {output:?}");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    pub fn number(&self, database: &str, sql: &str) -> anyhow::Result<f64> {
        Ok(self.sql(database, sql)?.parse()?)
    }

    pub fn api(&self, database: &str) -> anyhow::Result<Program> {
        let log = self.folder.path().join(format!("{database}-api.log"));
        Program::api_on(self.cluster.url(database), &log)
    }

    pub fn reconciler(
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
    pub fn pgbench(
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
                let micros: f64 = line
                    .split(' ')
                    .nth(2)
                    .context("a line of the log has no time")?
                    .parse()?;
                times.push(micros / 1e3);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok((rate.parse()?, times))
    }

    /// Creates the sequences of `INSERT`, which start far above the numbers of all orders.
    pub fn create_sequences(&self, database: &str) -> anyhow::Result<()> {
        for sequence in ["order_seq", "entry_seq"] {
            self.sql(
                database,
                &format!("CREATE SEQUENCE {sequence} START 1000000000"),
            )?;
        }
        Ok(())
    }

    /// Runs `work` on a connection of this process.
    pub fn with_connection<T>(
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

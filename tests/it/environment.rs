//! The environment of a test: a folder of its own, the built programs on free ports, and an HTTP client.

// Named by path, because the torture has this file as a module too.
#[path = "environment/client.rs"]
mod client;
#[path = "environment/program.rs"]
mod program;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{FutureExt, TryStreamExt};
use order_service::clock::{Clock, SystemClock};
use order_service::order::{Order, OrderId, Timestamp};
use order_service::reconciler_state::ReconcilerState;
use order_service::simulator::model::{Effect, Status as ProcessStatus};
use order_service::simulator::record::{Entry, read_record};
use order_service::store::{
    Creation, Cursor, DatabaseUrl, Filter, Leadership, Mode, OrderChange, Store, Transition,
};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::Value;

pub use self::client::{Answer, Client, assert_problem, is_settled};
pub use self::program::{Program, Ran};

/// Timeout of every wait in tests. Much longer than any takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Reads until `done` returns true for what is read, and returns that.
pub async fn until<T: std::fmt::Debug>(read: impl AsyncFn() -> T, done: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = read().await;
        if done(&found) {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "the condition was not met in time: {found:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Raises the limit of open files to `wanted`, if possible. Returns the limit.
pub fn file_limit(wanted: u64) -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    let max = limit.maximum.unwrap_or(u64::MAX);
    let now = limit.current.unwrap_or(u64::MAX);
    limit.current = Some(now.max(wanted.min(max)));
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.current.unwrap_or(now),
        Err(_) => now,
    }
}

/// Raises the limit of open files to 4,096. Returns false and prints a notice if it is below 2,000.
pub fn has_many_files() -> bool {
    let files = file_limit(4_096);
    if files < 2_000 {
        println!("skipped: only {files} files may be open at once");
    }
    files >= 2_000
}

/// A folder with a database and the logs of the programs that use it.
pub struct TestEnvironment {
    folder: tempfile::TempDir,
}

impl TestEnvironment {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("there is room for a temporary folder"),
        }
    }

    /// Like `new`, but in memory where possible, because disk flushes take no time there.
    pub fn in_memory() -> Self {
        match tempfile::tempdir_in("/dev/shm") {
            Ok(folder) => Self { folder },
            Err(_) => Self::new(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn database(&self) -> PathBuf {
        self.path("orders.db")
    }

    /// Returns the database as an argument of a program.
    pub fn database_url(&self) -> String {
        let path = self.database().into_os_string().into_string();
        path.expect("temporary folders have plain names")
    }

    pub fn simulator_log(&self) -> PathBuf {
        self.path("simulator.log")
    }

    /// Starts the simulator, with a record, on a free port.
    pub fn simulator(&self, arguments: &[&str]) -> Program {
        self.simulator_at("127.0.0.1:0", arguments)
    }

    /// Starts the simulator, with a record, at this address.
    pub fn simulator_at(&self, address: &str, arguments: &[&str]) -> Program {
        let log = self.simulator_log();
        let mut all = vec!["simulator", "--listen", address, "--log"];
        all.push(log.to_str().expect("temporary folders have plain names"));
        all.extend(arguments);
        self.start("order-service", &all, true)
    }

    /// Starts the API on a free port.
    pub fn api(&self, arguments: &[&str]) -> Program {
        let database = self.database_url();
        let mut all = vec!["api", "--listen", "127.0.0.1:0"];
        all.extend(["--database-url", &database]);
        all.extend(arguments);
        self.start("order-service", &all, true)
    }

    /// Starts API and reconciler in one program on a free port.
    pub fn serve(&self, upstream: &str, arguments: &[&str]) -> Program {
        self.serve_with(upstream, arguments, &[])
    }

    /// Like `serve`, with these environment variables.
    pub fn serve_with(
        &self,
        upstream: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Program {
        let database = self.database_url();
        let mut all = vec!["serve", "--listen", "127.0.0.1:0"];
        all.extend(["--database-url", &database, "--order-process-url", upstream]);
        all.extend(arguments);
        self.start_with("order-service", &all, variables, true)
    }

    /// Starts the reconciler.
    pub fn reconciler(&self, upstream: &str, arguments: &[&str]) -> Program {
        let database = self.database_url();
        let all = ["--database-url", &database, "--order-process-url", upstream];
        self.start("order-reconciler", &[&all, arguments].concat(), false)
    }

    /// Returns the command of a program, without the environment's variables that it reads.
    pub fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let path = match name {
            "order-service" => env!("CARGO_BIN_EXE_order-service"),
            "order-reconciler" => env!("CARGO_BIN_EXE_order-reconciler"),
            other => panic!("unknown program {other}"),
        };
        let mut command = Command::new(path);
        command
            .args(arguments)
            .env_clear()
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
    }

    /// Starts the API on a free port, with this limit of open files.
    pub fn api_with_files(&self, files: u32) -> Program {
        let arguments = ["api", "--listen", "127.0.0.1:0"];
        self.start_after(&format!("ulimit -n {files}"), "order-service", &arguments)
    }

    /// Starts a program in a shell after this command.
    pub fn start_after(&self, before: &str, name: &str, arguments: &[&str]) -> Program {
        let whole = self.command(name, arguments);
        let mut limited = Command::new("sh");
        limited
            .args(["-c", &format!("{before} && exec \"$0\" \"$@\"")])
            .arg(whole.get_program())
            .args(whole.get_args())
            .env_clear()
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        self.spawn(name, limited, arguments.contains(&"--listen"))
    }

    /// Starts a program; if it `listens`, waits until it prints its address.
    pub fn start(&self, name: &str, arguments: &[&str], listens: bool) -> Program {
        self.start_with(name, arguments, &[], listens)
    }

    /// Like `start`, with these environment variables.
    pub fn start_with(
        &self,
        name: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
        listens: bool,
    ) -> Program {
        let mut command = self.command(name, arguments);
        command.envs(variables.iter().copied());
        self.spawn(name, command, listens)
    }

    /// Like `start`, with any command.
    pub fn spawn(&self, name: &str, command: Command, listens: bool) -> Program {
        let log = self.path(&format!("{name}-{}.log", fastrand::u32(..)));
        Program::spawn(command, log, listens)
    }

    /// Runs a program that ends by itself.
    pub fn run(&self, name: &str, arguments: &[&str]) -> Ran {
        self.run_with(name, arguments, &[])
    }

    /// Like `run`, with these environment variables.
    pub fn run_with(&self, name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
        let mut program = self.start_with(name, arguments, variables, false);
        let stdout = program.rest_of_stdout();
        Ran {
            code: program.wait().code(),
            stdout,
            stderr: program.logged(),
        }
    }

    /// Opens the database, beside the programs that use it.
    pub fn store(&self) -> Store {
        let path = DatabaseUrl::from(self.database());
        Store::open(&path, Mode::Threaded).expect("the database can be opened")
    }

    /// Returns the simulator's record.
    pub fn simulator_record(&self) -> Vec<Entry> {
        read_record(&self.simulator_log()).expect("the record can be read")
    }

    /// Returns the outcome of each process by the simulator's record, and checks that none was started
    /// twice in one incarnation.
    pub fn outcomes(&self) -> HashMap<String, ProcessStatus> {
        let mut outcomes = HashMap::new();
        for entry in self.simulator_record() {
            match entry.effect {
                Effect::BeganIncarnation { .. } => outcomes.clear(),
                Effect::Started {
                    order_id, outcome, ..
                } => {
                    let earlier = outcomes.insert(order_id.clone(), outcome);
                    assert_eq!(
                        earlier, None,
                        "{order_id} was started twice in one incarnation"
                    );
                }
                _ => {}
            }
        }
        outcomes
    }
}

/// Returns a new environment, an API in it, and a client.
pub fn with_api() -> (TestEnvironment, Program, Client) {
    let env = TestEnvironment::new();
    let api = env.api(&[]);
    (env, api, Client::new())
}

/// Creates an order without a program. Returns its sequence number.
pub async fn create(store: &Store, id: &str, at: Timestamp) -> i64 {
    let id = OrderId::new(id).expect("an id");
    match store.create(id, at).await {
        Ok(Creation::Created(order)) => order.seq,
        other => panic!("not created: {other:?}"),
    }
}

/// Creates orders, `width` at a time. Returns their ids in the order of creation.
pub async fn fill(store: &Store, ids: &[String], width: usize) -> Vec<String> {
    let mut created = Vec::new();
    for ids in ids.chunks(width) {
        let creations = ids.iter().map(|id| create(store, id, SystemClock.now()));
        let seqs = futures_util::future::join_all(creations).await;
        created.extend(seqs.into_iter().zip(ids));
    }
    created.sort();
    created.into_iter().map(|(_, id)| id.clone()).collect()
}

/// Records changes of orders as a leader.
pub async fn record(
    store: &Store,
    changes: impl IntoIterator<Item = (i64, Transition)>,
    at: Timestamp,
) {
    let changes = changes.into_iter();
    let changes: Vec<_> = changes
        .map(|(seq, transition)| OrderChange { seq, transition })
        .collect();
    let count = changes.len();
    let recorded = lead(store).await.record(changes, at).await.unwrap();
    assert_eq!(recorded.changed, count, "{recorded:?}");
}

/// Returns the final status of an order whose process has this outcome.
pub fn status_after(outcome: ProcessStatus) -> &'static str {
    match outcome {
        ProcessStatus::Succeeded => "FULFILLED",
        ProcessStatus::Failed => "FAILED",
        ProcessStatus::Running => "PROCESSING",
    }
}

/// Compares every order with the simulator's record, and checks that each was started once.
pub fn assert_agree(env: &TestEnvironment, orders: &[Value]) {
    assert_statuses_agree(env, orders);
    for order in orders {
        assert_eq!(order["starts"], 1, "{order}");
    }
}

/// Compares every order's status with the simulator's record.
pub fn assert_statuses_agree(env: &TestEnvironment, orders: &[Value]) {
    let outcomes = env.outcomes();
    assert_eq!(outcomes.len(), orders.len(), "processes and orders");
    for order in orders {
        let id = order["id"].as_str().expect("an order has an id");
        assert_eq!(order["status"], status_after(outcomes[id]), "{order}");
        assert_eq!(order["attention"], Value::Null, "{order}");
    }
}

/// Returns the result of a read from SQLite, which is ready at once.
pub fn ready<T>(read: impl Future<Output = T>) -> T {
    read.now_or_never()
        .expect("SQLite's reads are ready at once")
}

/// Returns the orders that match a filter, in the order of creation.
pub fn orders(store: &Store, filter: Filter) -> Vec<Order> {
    let pages = store.pages(filter, Cursor::default(), 1_000);
    let pages: Vec<_> = ready(pages.try_collect()).unwrap();
    pages.into_iter().flat_map(|(orders, _)| orders).collect()
}

/// Writes a heartbeat as a leader.
pub async fn write_heartbeat(store: &Store, heartbeat: ReconcilerState) {
    let lead = lead(store).await;
    lead.write_heartbeat(heartbeat).await.unwrap();
}

/// Takes leadership of a database, as after a crash of the last leader.
pub async fn lead(store: &Store) -> Leadership {
    let _ = fs::remove_file(format!("{}-leader", store.info().address));
    // A server notices a little later that the connection of the last one has ended.
    for _ in 0..500 {
        let lead = store.try_lead().await.expect("the database can be written");
        if let Some(lead) = lead {
            return lead;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("leadership was not gained in time");
}

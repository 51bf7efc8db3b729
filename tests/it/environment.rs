//! The environment of a test: a folder of its own, the built programs on free ports, and an HTTP client.
//!
//! Programs end with the test, whatever its outcome. Their logs are shown when it fails.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
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
        let database = self.database_url();
        let arguments = [
            "api",
            "--listen",
            "127.0.0.1:0",
            "--database-url",
            &database,
        ];
        let whole = self.command("order-service", &arguments);
        let mut limited = Command::new("sh");
        limited
            .args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\"")])
            .arg(whole.get_program())
            .args(whole.get_args())
            .env_clear()
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        self.spawn("order-service", limited, true)
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
    pub fn spawn(&self, name: &str, mut command: Command, listens: bool) -> Program {
        let log = self.path(&format!("{name}-{}.log", fastrand::u32(..)));
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("a log can be written"))
            .spawn()
            .expect("the built program can be started");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut url = String::new();
        if listens {
            lines.read_line(&mut url).expect("stdout can be read");
            url = url
                .trim()
                .strip_prefix("listening on ")
                .unwrap_or_else(|| panic!("no address: {}", show(&log)))
                .to_owned();
        }
        Program {
            child,
            url,
            log,
            stdout: lines,
        }
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

/// A running program.
pub struct Program {
    child: Child,
    pub url: String,
    log: PathBuf,
    /// Kept open: a program may write to it.
    stdout: BufReader<std::process::ChildStdout>,
}

/// A program that has ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    #[track_caller]
    pub fn assert_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }
}

impl Program {
    pub fn address(&self) -> &str {
        self.url
            .strip_prefix("http://")
            .expect("a program that listens has a URL")
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: &str) {
        // Every shell has it; a program of that name is not everywhere.
        let kill = format!("kill -{signal} {}", self.child.id());
        let status = Command::new("sh")
            .args(["-c", &kill])
            .status()
            .expect("there is a shell");
        assert!(status.success(), "{signal} could not be sent");
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(mut self) {
        self.child.kill().expect("the program can be killed");
        self.child.wait().expect("it can be waited for");
    }

    /// Sends SIGTERM. Returns the exit code once the program has ended.
    pub fn stop(mut self) -> Option<i32> {
        self.signal("TERM");
        self.wait().code()
    }

    /// Returns the exit status if the program has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it can be waited for")
    }

    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the program does not end: {}",
                self.logged()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn logged(&self) -> String {
        show(&self.log)
    }

    /// Waits until the log contains this text.
    pub fn logs(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.logged().contains(text) {
            assert!(
                Instant::now() < deadline,
                "{text:?} was not logged in time: {}",
                self.logged()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns the output up to a line that contains `last`.
    pub fn stdout_until(&mut self, last: &str) -> String {
        let mut printed = String::new();
        loop {
            let from = printed.len();
            let read = self.stdout.read_line(&mut printed);
            assert!(
                read.expect("stdout can be read") > 0,
                "the program ended before it printed {last:?}: {printed}{}",
                self.logged()
            );
            if printed[from..].contains(last) {
                return printed;
            }
        }
    }

    /// Returns the next line of the output, empty at its end.
    pub fn line_of_stdout(&mut self) -> String {
        let mut line = String::new();
        self.stdout
            .read_line(&mut line)
            .expect("stdout can be read");
        line
    }

    /// Returns the output until the program ends.
    pub fn rest_of_stdout(&mut self) -> String {
        let mut printed = String::new();
        self.stdout
            .read_to_string(&mut printed)
            .expect("stdout can be read");
        printed
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.logged());
        }
    }
}

fn show(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default()
}

/// A response, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap_or("(not text)"))
    }
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
        .map(|(seq, step)| OrderChange { seq, step })
        .collect();
    let count = changes.len();
    let recorded = store.record(&lead(store).await, changes, at).await.unwrap();
    assert_eq!(recorded.changed, count, "{recorded:?}");
}

/// Checks that a response is a problem with this status.
#[track_caller]
pub fn assert_problem(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let problem = answer.json();
    assert_eq!(problem["status"], status, "{answer:?}");
    for member in ["type", "title", "detail"] {
        let text = problem[member].as_str().unwrap_or_default();
        assert!(!text.is_empty(), "{member}: {answer:?}");
    }
    let kind = problem["type"].as_str().unwrap_or_default();
    assert!(kind.starts_with("/problems#"), "{answer:?}");
    for internal in ["sqlite", "orders.db", "src/", "panicked", "Error("] {
        assert!(!answer.body.contains(internal), "{answer:?}");
    }
}

/// An HTTP client with persistent connections that follows no redirects.
#[derive(Clone)]
pub struct Client(reqwest::Client);

impl Client {
    pub fn new() -> Self {
        // Fails only if a provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .build();
        Self(client.expect("a client can be made"))
    }

    pub async fn get(&self, url: impl AsRef<str>) -> Answer {
        self.send(self.0.get(url.as_ref())).await
    }

    /// Sends `POST /order` with this id.
    pub async fn create(&self, api: &str, id: &str) -> Answer {
        let body = serde_json::json!({ "id": id }).to_string();
        let request = self
            .0
            .post(format!("{api}/order"))
            .header("content-type", "application/json")
            .body(body);
        self.send(request).await
    }

    pub fn request(&self, method: &str, url: impl AsRef<str>) -> reqwest::RequestBuilder {
        let method = method.parse().expect("a method");
        self.0.request(method, url.as_ref())
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.expect("the request is answered");
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.text().await.expect("the response is complete"),
        }
    }

    /// Returns all orders, in the order of creation.
    pub async fn orders(&self, api: &str) -> Vec<Value> {
        let answer = self.get(format!("{api}/order")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let Value::Array(orders) = answer.json() else {
            panic!("not an array: {answer:?}");
        };
        orders
    }

    /// Returns all ids, in the order of creation.
    pub async fn ids(&self, api: &str) -> Vec<String> {
        let id = |order: &Value| order["id"].as_str().expect("an id is a text").to_owned();
        self.orders(api).await.iter().map(id).collect()
    }

    /// Returns all orders once `done` returns true for them.
    pub async fn orders_when(&self, api: &str, done: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        until(async || self.orders(api).await, |orders| done(orders)).await
    }

    /// Returns all orders once there are `count` of them and each is settled.
    pub async fn settled(&self, api: &str, count: usize) -> Vec<Value> {
        self.orders_when(api, |orders| {
            orders.len() == count && orders.iter().all(is_settled)
        })
        .await
    }
}

pub fn is_settled(order: &Value) -> bool {
    matches!(order["status"].as_str(), Some("FULFILLED" | "FAILED"))
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
    store.write_heartbeat(&lead, heartbeat).await.unwrap();
}

/// Takes leadership of a database, as after a crash of the last leader.
pub async fn lead(store: &Store) -> Leadership {
    let _ = fs::remove_file(format!("{}-leader", store.address()));
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

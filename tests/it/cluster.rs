//! PostgreSQL servers that the tests start: a cluster with a database for each test, and others, with
//! standbys, that are killed, stopped and promoted.
//!
//! They are created for each run, in memory or below the target folder, from the binaries of `pg_config`
//! or Debian, and end with the process of the tests, however that ends.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use order_service::store::DatabaseUrl;
use rustix::fs::statvfs;

/// The user that runs the server where the tests run as root, which the server refuses.
const UNPRIVILEGED: u32 = 65534;

/// Memory that a cluster may need, in bytes.
const MEMORY_MIN: u64 = 4 << 30;

/// Timeout of the start, the promotion and the end of a server.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the server once for each line of its standard input, and ends it when that is closed.
const SHELL: &str = "through=$0 program=$1 data=$2 sockets=$3 port=$4 folder=$5; shift 5; server=; \
    while read -r _; do \
        $through \"$program\" -D \"$data\" -k \"$sockets\" -p \"$port\" -c listen_addresses=127.0.0.1 \
            -c max_connections=400 -c log_line_prefix='%d ' \"$@\" </dev/null >>\"$folder/log\" 2>&1 & server=$!; \
    done; \
    kill -CONT $server; kill -QUIT $server; wait $server; rm -rf \"$sockets\" \"$folder\"";

/// Removes everything from a database that a store has been opened on. Not by TRUNCATE, after which each
/// session would plan its statements again.
pub const EMPTY: &str = "SET search_path = order_service; DELETE FROM orders; DELETE FROM journal; \
    DELETE FROM writers; DELETE FROM write_probe; DELETE FROM heartbeat; DELETE FROM pruned; \
    INSERT INTO heartbeat (id) VALUES (1); INSERT INTO pruned (id) VALUES (1)";

/// A server, and the shell that ends it when its standard input is closed.
pub struct Cluster {
    folder: PathBuf,
    sockets: PathBuf,
    port: u16,
    shell: Child,
}

/// Returns the cluster of this run.
pub fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::own(&[]))
}

/// Returns the folder of all servers: in memory if there is room, because flushing takes no time there. The
/// memory keeps its contents whichever server is killed.
fn parent() -> &'static Path {
    Path::new(match statvfs("/dev/shm") {
        Ok(memory) if memory.f_bavail * memory.f_frsize >= MEMORY_MIN => "/dev/shm",
        _ => env!("CARGO_TARGET_TMPDIR"),
    })
}

impl Cluster {
    /// Starts a server in a new folder below `parent`, with settings besides those of all tests.
    pub fn start(parent: &Path, settings: &[&str]) -> Self {
        Self::new(parent, settings, &[])
    }

    /// Starts a server for the caller alone.
    pub fn own(settings: &[&str]) -> Self {
        Self::new(parent(), settings, &[])
    }

    /// Starts a server through a wrapper program, such as one that fakes its time.
    pub fn start_through(through: &[&str]) -> Self {
        Self::new(parent(), &[], through)
    }

    fn new(parent: &Path, settings: &[&str], through: &[&str]) -> Self {
        Self::start_from(parent, settings, through, |data| {
            unprivileged("initdb")
                .args(["--username=tests", "--auth=trust", "--encoding=UTF8"])
                .args(["--locale=C", "--no-sync", "--pgdata"])
                .arg(data)
                .output()
                .unwrap()
        })
    }

    /// Starts a standby of this server, which names itself `name`.
    pub fn standby(&self, name: &str) -> Self {
        let name = format!("cluster_name={name}");
        Self::start_from(parent(), &[&name], &[], |data| self.copy_to(data))
    }

    /// Copies all data, for a server that is a standby of this one.
    fn copy_to(&self, data: &Path) -> Output {
        unprivileged("pg_basebackup")
            .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
            .args(["--username=tests", "--host=127.0.0.1"])
            .args(["--port", &self.port.to_string(), "--pgdata"])
            .arg(data)
            .output()
            .unwrap()
    }

    /// Makes this server, which was killed, a standby of another one.
    pub fn rebuild(&mut self, primary: &Self) {
        let data = self.folder.join("data");
        fs::remove_dir_all(&data).unwrap();
        let made = primary.copy_to(&data);
        assert!(made.status.success(), "{made:?}");
        self.start_again();
    }

    /// Makes this standby follow another primary.
    pub fn follow(&self, primary: &Self) {
        let primary = format!("host=127.0.0.1 port={} user=tests", primary.port);
        self.set("primary_conninfo", &primary);
    }

    /// Makes this standby follow no primary.
    pub fn leave(&self) {
        self.set("primary_conninfo", "");
        self.wait_for("SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM pg_stat_wal_receiver)");
    }

    /// Returns the position in the log up to which this standby has received or replayed it, in bytes.
    pub fn received(&self) -> i64 {
        let sql = "SELECT pg_wal_lsn_diff(greatest(pg_last_wal_receive_lsn(), \
                          pg_last_wal_replay_lsn()), '0/0')";
        self.run("postgres", sql).parse().unwrap()
    }

    fn start_from(
        parent: &Path,
        settings: &[&str],
        through: &[&str],
        make: impl FnOnce(&Path) -> Output,
    ) -> Self {
        let folder = tempfile::tempdir_in(parent).unwrap().keep();
        // The path of a socket may have 107 bytes, fewer than that of many a target folder.
        let sockets = tempfile::tempdir().unwrap().keep();
        if is_root() {
            for folder in [&folder, &sockets] {
                std::os::unix::fs::chown(folder, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
            }
        }
        let data = folder.join("data");
        let made = make(&data);
        assert!(made.status.success(), "{made:?}");
        let port = free_port();
        let shell = unprivileged("sh")
            .args(["-c", SHELL, &through.join(" ")])
            .arg(binaries().join("postgres"))
            .args([&data, &sockets])
            .arg(port.to_string())
            .arg(&folder)
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut cluster = Self {
            folder,
            sockets,
            port,
            shell,
        };
        cluster.start_again();
        cluster
    }

    /// Starts the server, after it was killed.
    pub fn start_again(&mut self) {
        let stdin = self.shell.stdin.as_mut().unwrap();
        stdin.write_all(b"\n").unwrap();
        self.wait_for("SELECT 1");
    }

    /// Waits until a query returns a row.
    pub fn wait_for(&self, sql: &str) {
        let begun = Instant::now();
        while self.psql("postgres", sql).stdout.is_empty() {
            let log = fs::read_to_string(self.folder.join("log"));
            assert!(begun.elapsed() < TIMEOUT, "{sql}: {log:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Changes a setting, without a restart.
    pub fn set(&self, setting: &str, value: &str) {
        self.run(
            "postgres",
            &format!("ALTER SYSTEM SET {setting} = '{value}'"),
        );
        self.run("postgres", "SELECT pg_reload_conf()");
        self.wait_for(&format!(
            "SELECT 1 FROM pg_settings WHERE name = '{setting}' AND setting = '{value}'"
        ));
    }

    /// Allows every connection from a network.
    pub fn trust(&self, network: &str) {
        let path = self.folder.join("data/pg_hba.conf");
        let rules = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{rules}host all all {network} trust\n")).unwrap();
        self.run("postgres", "SELECT pg_reload_conf()");
    }

    /// Makes each commit wait for a standby of this name.
    pub fn replicate_to(&self, standby: &str) {
        self.set("synchronous_standby_names", standby);
        self.wait_for("SELECT 1 FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')");
    }

    /// Makes a standby the primary.
    pub fn promote(&self) {
        self.run("postgres", "SELECT pg_promote(true, 30)");
    }

    /// Kills the server with SIGKILL, as if its machine had lost power.
    pub fn kill(&self) {
        // A stopped server starts no process that the kill would miss.
        send("STOP", &[self.pid()]);
        let pids = self.pids();
        send("KILL", &pids);
        let begun = Instant::now();
        // Another server cannot start on the same files before the last process has ended.
        while pids.iter().any(|pid| is_running(*pid)) {
            assert!(begun.elapsed() < TIMEOUT, "{pids:?} do not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops every process of the server, as if its machine hung.
    pub fn stop(&self) {
        send("STOP", &self.pids());
    }

    /// Resumes a stopped server.
    pub fn resume(&self) {
        send("CONT", &self.pids());
    }

    /// Returns the processes of the server, the main one first: running, it would replace the others.
    fn pids(&self) -> Vec<u32> {
        let main = self.pid();
        [vec![main], processes_of(main)].concat()
    }

    fn pid(&self) -> u32 {
        let text = fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }

    /// Creates a database, and returns its name.
    pub fn database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.run("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the address of a database, over the socket.
    pub fn url(&self, database: &str) -> String {
        let sockets = self.sockets.to_str().unwrap().replace('/', "%2F");
        format!("postgres://tests@{sockets}:{}/{database}", self.port)
    }

    /// Returns the address of a database, as the store takes it.
    pub fn database_url(&self, database: &str) -> DatabaseUrl {
        self.url(database).parse().unwrap()
    }

    /// Returns the messages of the server's log about a database: with `log_statement = 'all'` each statement, as
    /// `statement: SQL` or, if it was prepared, `execute NAME: SQL`.
    pub fn logged(&self, database: &str) -> Vec<String> {
        let log = fs::read_to_string(self.folder.join("log")).unwrap();
        let prefix = format!("{database} LOG:  ");
        let lines = log.lines().filter_map(|line| line.strip_prefix(&prefix));
        lines.map(str::to_owned).collect()
    }

    /// Runs statements in a database, and returns what they print.
    pub fn run(&self, database: &str, sql: &str) -> String {
        let output = self.psql(database, sql);
        assert!(output.status.success(), "{sql}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Runs statements in a database.
    pub fn psql(&self, database: &str, sql: &str) -> Output {
        self.client("psql", database)
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .output()
            .unwrap()
    }

    /// Returns the command of a client program of the server's version, on a database.
    pub fn client(&self, program: &str, database: &str) -> Command {
        let mut command = Command::new(binaries().join(program));
        command
            .env("PGHOST", &self.sockets)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "tests")
            .env("PGDATABASE", database);
        command
    }
}

/// Waits for the shell, except that of the cluster of the run, which ends by itself.
impl Drop for Cluster {
    fn drop(&mut self) {
        if fs::exists(self.folder.join("data/postmaster.pid")).unwrap_or(false) {
            self.resume();
        }
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
        // The unprivileged shell cannot remove it from a folder of another user.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Sends a signal to processes, of which some may have ended.
pub fn send(signal: &str, pids: &[u32]) {
    let pids: Vec<_> = pids.iter().map(ToString::to_string).collect();
    let kill = format!("kill -{signal} {}", pids.join(" "));
    Command::new("sh").args(["-c", &kill]).output().unwrap();
}

/// Returns a port that is free.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Returns the child processes of a process.
fn processes_of(parent: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let pid = path.file_name()?.to_str()?.parse().ok()?;
        let stat = fs::read_to_string(path.join("stat")).ok()?;
        // The name, which may contain any character, precedes the state and the parent.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let is_dead = fields.next()? == "Z";
        (!is_dead && fields.next()?.parse() == Ok(parent)).then_some(pid)
    });
    all.collect()
}

/// Returns whether a process exists and has not ended.
fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Returns the folder of the server's binaries: of the newest version that Debian has installed, or that of
/// `pg_config`.
fn binaries() -> &'static Path {
    static BINARIES: OnceLock<PathBuf> = OnceLock::new();
    BINARIES.get_or_init(|| {
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
        let versions = versions.filter_map(|version| {
            let path = version.ok()?.path();
            let number: u32 = path.file_name()?.to_str()?.parse().ok()?;
            let binaries = path.join("bin");
            binaries
                .join("postgres")
                .exists()
                .then_some((number, binaries))
        });
        if let Some((_, newest)) = versions.max() {
            return newest;
        }
        let output = Command::new("pg_config").arg("--bindir").output();
        let output = output.expect("PostgreSQL's server is installed: apt-get install postgresql");
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns a command that does not run as root: one of PostgreSQL's, or the system's.
pub fn unprivileged(program: &str) -> Command {
    let own = binaries().join(program);
    let program = if own.exists() { own } else { program.into() };
    if !is_root() {
        return Command::new(program);
    }
    let user = UNPRIVILEGED.to_string();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", &user, "--regid", &user, "--clear-groups"])
        .arg(program)
        .current_dir("/");
    command
}

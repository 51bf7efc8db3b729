//! A PostgreSQL cluster of the tests' own, with a database for each test.
//!
//! It is made anew for each run, in memory or below the target folder, from the binaries that `pg_config`
//! or Debian names, and ends with the process of the tests, however that ends.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use order_service::store::DatabaseUrl;
use rustix::fs::statvfs;

/// The user that runs the server where the tests run as root, which the server refuses.
const UNPRIVILEGED: u32 = 65534;

/// Bytes in memory that a cluster may need.
const MEMORY_MIN: u64 = 4 << 30;

/// A cluster, and the shell that ends it when its standard input is closed.
pub struct Cluster {
    binaries: PathBuf,
    log: PathBuf,
    sockets: PathBuf,
    port: u16,
    _shell: Child,
}

/// The cluster of this run.
pub fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        // In memory, where there is room for it: flushing takes no time there.
        let parent = match statvfs("/dev/shm") {
            Ok(memory) if memory.f_bavail * memory.f_frsize >= MEMORY_MIN => "/dev/shm",
            _ => env!("CARGO_TARGET_TMPDIR"),
        };
        Cluster::start(Path::new(parent), &[])
    })
}

impl Cluster {
    /// Starts a cluster in a new folder below `parent`, with settings besides those of all tests.
    pub fn start(parent: &Path, settings: &[&str]) -> Self {
        let binaries = binaries();
        let folder = tempfile::tempdir_in(parent).unwrap().keep();
        // The path of a socket may have 107 bytes, fewer than that of many a target folder.
        let sockets = tempfile::tempdir().unwrap().keep();
        if is_root() {
            for folder in [&folder, &sockets] {
                std::os::unix::fs::chown(folder, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
            }
        }
        let made = unprivileged(&binaries.join("initdb"))
            .args(["--username=tests", "--auth=trust", "--encoding=UTF8"])
            .args(["--locale=C", "--no-sync", "--pgdata"])
            .arg(folder.join("data"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let port = free_port();
        let script = "folder=$1; shift; \"$0\" -D \"$folder/data\" \"$@\" </dev/null >\"$folder/log\" 2>&1 & \
                      server=$!; read -r _; kill -QUIT $server; wait $server; rm -rf \"$2\" \"$folder\"";
        let all = [
            "listen_addresses=127.0.0.1",
            "max_connections=400",
            "log_line_prefix=%d ",
        ];
        let shell = unprivileged(Path::new("sh"))
            .args(["-c", script])
            .arg(binaries.join("postgres"))
            .args([&folder, Path::new("-k"), &sockets])
            .args(["-p", &port.to_string()])
            .args(
                all.iter()
                    .chain(settings)
                    .flat_map(|setting| ["-c", setting]),
            )
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let cluster = Self {
            binaries,
            log: folder.join("log"),
            sockets,
            port,
            _shell: shell,
        };
        let started = Instant::now();
        while !cluster.psql("postgres", "SELECT 1").status.success() {
            let log = fs::read_to_string(&cluster.log);
            assert!(started.elapsed() < Duration::from_secs(20), "{log:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        cluster
    }

    /// Makes a database, and returns its name.
    pub fn database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let made = self.psql("postgres", &format!("CREATE DATABASE {name}"));
        assert!(made.status.success(), "{made:?}");
        name
    }

    /// Removes everything from a database that a store has been opened on. Not by TRUNCATE, after which
    /// each session would plan its statements anew.
    pub fn empty(&self, database: &str) {
        let tables = [
            "orders",
            "journal",
            "writers",
            "write_probe",
            "heartbeat",
            "pruned",
        ];
        let mut sql = "SET search_path = order_service".to_owned();
        for table in tables {
            sql.push_str(&format!("; DELETE FROM {table}"));
        }
        for table in ["heartbeat", "pruned"] {
            sql.push_str(&format!("; INSERT INTO {table} (id) VALUES (1)"));
        }
        let emptied = self.psql(database, &sql);
        assert!(emptied.status.success(), "{emptied:?}");
    }

    /// The address of a database, over the socket.
    pub fn url(&self, database: &str) -> String {
        let sockets = self.sockets.to_str().unwrap().replace('/', "%2F");
        format!("postgres://tests@{sockets}:{}/{database}", self.port)
    }

    /// The address of a database, as the store takes it.
    pub fn database_url(&self, database: &str) -> DatabaseUrl {
        self.url(database).parse().unwrap()
    }

    /// Messages of the server's log about a database: with `log_statement = 'all'` each statement, as
    /// `statement: SQL` or, if it was prepared, `execute NAME: SQL`.
    pub fn logged(&self, database: &str) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap();
        let prefix = format!("{database} LOG:  ");
        let lines = log.lines().filter_map(|line| line.strip_prefix(&prefix));
        lines.map(str::to_owned).collect()
    }

    /// Runs statements in a database.
    pub fn psql(&self, database: &str, sql: &str) -> std::process::Output {
        self.client("psql", database)
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .output()
            .unwrap()
    }

    /// A client program of the server's version, on a database.
    pub fn client(&self, program: &str, database: &str) -> Command {
        let mut command = Command::new(self.binaries.join(program));
        command
            .env("PGHOST", &self.sockets)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "tests")
            .env("PGDATABASE", database);
        command
    }
}

/// A port that no one uses.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The folder of the server's binaries: of the newest version that Debian has installed, or as
/// `pg_config` says.
fn binaries() -> PathBuf {
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
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command that does not run as root.
fn unprivileged(program: &Path) -> Command {
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

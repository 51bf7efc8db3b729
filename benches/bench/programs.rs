//! The built programs as child processes, killed at the end of their row, and their use of memory
//! and processor.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, bail, ensure};

/// Clock ticks per second in `/proc`.
const TICKS: f64 = 100.0;

/// A running program, killed on drop.
pub struct Program {
    child: Child,
    /// Its URL, if it listens.
    pub url: String,
    log: PathBuf,
    /// Kept open, so that the program can write to it.
    _stdout: BufReader<ChildStdout>,
}

impl Program {
    /// Starts the API alone, on a free port.
    pub fn api(database: &Path) -> anyhow::Result<Self> {
        Self::api_on(database, &database.with_extension("api.log"))
    }

    /// Like [`Self::api`], with a log at this path.
    pub fn api_on(database: impl AsRef<OsStr>, log: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_order-service"));
        command.args(["api", "--listen", "127.0.0.1:0", "--database-url"]);
        command.arg(database);
        Self::listening(command, log)
    }

    /// Starts API and reconciler in one program, on a free port.
    pub fn serve(database: &Path, upstream: &str) -> anyhow::Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_order-service"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--database-url"]);
        command.arg(database);
        command.args(["--order-process-url", upstream]);
        Self::listening(command, &database.with_extension("serve.log"))
    }

    /// Starts the reconciler alone.
    pub fn reconciler(database: &Path, upstream: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let log = database.with_extension("reconciler.log");
        Self::reconciler_on(database, &log, upstream, arguments)
    }

    /// Like [`Self::reconciler`], with a log at this path.
    pub fn reconciler_on(
        database: impl AsRef<OsStr>,
        log: &Path,
        upstream: &str,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_order-reconciler"));
        command.arg("--database-url").arg(database);
        command.args(["--order-process-url", upstream]);
        command.args(arguments);
        Self::spawn(command, log)
    }

    /// Starts the simulator, on a free port.
    pub fn simulator(folder: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_order-service"));
        command.args(["simulator", "--listen", "127.0.0.1:0"]);
        command.args(arguments);
        Self::listening(command, &folder.join("simulator.log"))
    }

    fn listening(command: Command, log: &Path) -> anyhow::Result<Self> {
        let mut program = Self::spawn(command, log)?;
        let mut line = String::new();
        program._stdout.read_line(&mut line)?;
        match line.trim().strip_prefix("listening on ") {
            Some(url) => program.url = url.to_owned(),
            None => bail!("a program did not listen: {}", program.logged()),
        }
        Ok(program)
    }

    fn spawn(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let mut child = command
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(log)?)
            .spawn()?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        Ok(Self {
            child,
            url: String::new(),
            log: log.to_owned(),
            _stdout: BufReader::new(stdout),
        })
    }

    /// Returns whether the program has ended. Fails if it ended with an error.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        match self.child.try_wait()? {
            None => Ok(false),
            Some(status) => {
                ensure!(status.success(), "{status}: {}", self.logged());
                Ok(true)
            }
        }
    }

    /// Returns the log of the program.
    pub fn logged(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns the anonymous memory of the program, in MiB.
    pub fn anonymous_mib(&self) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .context("/proc has no such field")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    /// Returns the processor time of the program, in seconds.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name of the program, which comes first, may contain any character.
        let (_, fields) = stat.rsplit_once(')').context("/proc has no such field")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |index: usize| -> anyhow::Result<f64> {
            Ok(fields.get(index).context("a field is missing")?.parse()?)
        };
        Ok((ticks(11)? + ticks(12)?) / TICKS)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // The program may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command of `order-service` to its end, and returns its output.
pub fn order_service(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_order-service"))
        .args(arguments)
        .env_clear()
        .output()?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "order-service {}: {stdout}{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(stdout)
}

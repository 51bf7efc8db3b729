//! The programs of a test. They end with it, whatever its outcome. Their logs are shown when it fails.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::PATIENCE;

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
    /// Starts a program that logs to this file, and waits for its address if it `listens`.
    pub fn spawn(mut command: Command, log: PathBuf, listens: bool) -> Self {
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
        Self {
            child,
            url,
            log,
            stdout: lines,
        }
    }

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

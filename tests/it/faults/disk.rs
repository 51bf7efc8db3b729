//! A disk that can be filled.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::environment::{Program, TestEnvironment};

/// A small disk that only the programs started on it see. It is removed with this value, or with the
/// process of the tests.
pub(super) struct Disk {
    holder: Child,
    folder: PathBuf,
    /// Command prefix that enters the mount namespace.
    enter: Vec<String>,
}

impl Disk {
    /// Mounts the disk, or returns the reason why that is not possible here.
    pub(super) fn mount(env: &TestEnvironment, size: &str) -> Result<Self, String> {
        let folder = env.path("disk");
        fs::create_dir(&folder).unwrap();
        let mut why = String::new();
        for (namespaces, enter) in [
            (&["--mount"][..], &["--mount"][..]),
            (
                &["--map-root-user", "--mount"],
                &["--user", "--preserve-credentials", "--mount"],
            ),
        ] {
            let script = r#"mount -t tmpfs -o "size=$1" tmpfs "$0" && echo mounted && exec cat"#;
            let mut holder = Command::new("unshare")
                .args(namespaces)
                .args(["sh", "-c", script])
                .arg(&folder)
                .arg(size)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .map_err(|error| format!("unshare: {error}"))?;
            let mut line = String::new();
            let mut stdout = BufReader::new(holder.stdout.take().unwrap());
            stdout.read_line(&mut line).unwrap();
            if line.trim() == "mounted" {
                let target = format!("--target={}", holder.id());
                let enter = std::iter::once(target)
                    .chain(enter.iter().map(|&flag| flag.to_owned()))
                    .collect();
                return Ok(Self {
                    holder,
                    folder,
                    enter,
                });
            }
            let mut stderr = holder.stderr.take().unwrap();
            let _ = stderr.read_to_string(&mut why);
            let _ = holder.wait();
        }
        Err(why)
    }

    /// Starts API and reconciler with their database on the disk.
    pub(super) fn serve(&self, env: &TestEnvironment, upstream: &str) -> Program {
        let database = self.folder.join("orders.db");
        let plain = env.command(
            "order-service",
            &[
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--database-url",
                database.to_str().unwrap(),
                "--order-process-url",
                upstream,
                "--start-rate",
                "0",
            ],
        );
        let mut command = Command::new("nsenter");
        command
            .env_clear()
            .args(&self.enter)
            .arg("--")
            .arg(plain.get_program())
            .args(plain.get_args())
            .stdin(Stdio::null());
        env.spawn("order-service", command, true)
    }

    /// Returns the path of the file that fills the disk, seen from outside.
    fn ballast(&self) -> PathBuf {
        let folder = self.folder.strip_prefix("/").unwrap();
        Path::new("/proc")
            .join(self.holder.id().to_string())
            .join("root")
            .join(folder)
            .join("ballast")
    }

    pub(super) fn fill(&self) {
        let path = self.ballast();
        let mut ballast = File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        let block = [0; 4096];
        while ballast.write_all(&block).is_ok() {}
    }

    pub(super) fn empty(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

//! From a clean clone to the first settled order, by the one command that README names. Nearly all
//! of it is the compiler. What Cargo has to download is there already.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};

use crate::Bench;
use crate::http::Connection;
use crate::table::{Goal, Line, Unit};

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let scratch = bench.scratch()?;
    let begun = Instant::now();
    let clone = scratch.path().join("clone");
    let cloned = Command::new("git")
        .args(["clone", "--quiet", "--no-hardlinks", "."])
        .arg(&clone)
        .status()?;
    ensure!(cloned.success(), "it cannot be cloned");
    let mut dev = Dev(Command::new("cargo")
        .args(["run", "--", "dev", "--listen", "127.0.0.1:0"])
        .current_dir(&clone)
        .env("CARGO_TARGET_DIR", clone.join("target"))
        // Whoever measures builds in this way; whoever clones does not.
        .env_remove("CARGO_INCREMENTAL")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(scratch.path().join("dev.log"))?)
        .spawn()?);
    let url = dev.url(&scratch.path().join("dev.log"))?;
    let answer =
        Connection::open(&url)?.post("/order", "Prefer: wait=60\r\n", "{\"id\":\"a1\"}")?;
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    ensure!(
        body.contains("\"FULFILLED\"") || body.contains("\"FAILED\""),
        "the order did not settle: {body}"
    );
    let taken = begun.elapsed().as_secs_f64();
    Ok(vec![
        Line::new(
            "clean clone to first settled order",
            Unit::Seconds,
            vec![taken],
        )
        .goal(Goal::Below(150.0)),
    ])
}

/// `cargo run`, which becomes the program that it has built. It is killed when dropped.
struct Dev(Child);

impl Dev {
    /// Waits for the banner; where the API listens.
    fn url(&mut self, log: &Path) -> anyhow::Result<String> {
        let stdout = self.0.stdout.as_mut().context("stdout is piped")?;
        for line in BufReader::new(stdout).lines() {
            if let Some(url) = line?.trim().strip_prefix("API ") {
                return Ok(url.trim().to_owned());
            }
        }
        anyhow::bail!("it did not begin: {}", std::fs::read_to_string(log)?)
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

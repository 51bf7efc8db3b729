//! What was measured on: the machine, its disk, the database engine.
//!
//! The disk is asked the question that a commit asks it: how long until a small write is durable.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Bench;
use crate::table::percentile;

/// What one flush writes, in bytes: a page of a file system.
const BLOCK: usize = 4096;

/// How long the disk is measured for the head of the table.
const MEASURED: Duration = Duration::from_secs(1);

/// Some lines about the machine.
pub fn describe(bench: &Bench) -> anyhow::Result<String> {
    let mut told = String::new();
    let cores = std::thread::available_parallelism()?;
    let _ = writeln!(told, "cores       {cores}, {}", processor());
    let _ = writeln!(told, "file system {}", file_system(&bench.folder)?);
    let scratch = bench.scratch()?;
    let flushes = flushes(scratch.path(), MEASURED)?;
    let _ = writeln!(
        told,
        "fdatasync   p50 {:.2} ms, p99 {:.2} ms, of {BLOCK} bytes appended",
        percentile(&flushes, 0.5),
        percentile(&flushes, 0.99)
    );
    let _ = writeln!(told, "SQLite      {}", rusqlite::version());
    Ok(told)
}

fn processor() -> String {
    let all = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = all.lines().find_map(|line| line.strip_prefix("model name"));
    name.map_or("unknown", |name| name.trim_start_matches([' ', '\t', ':']))
        .to_owned()
}

/// The type of the file system that a folder is on, and the device below it.
fn file_system(folder: &Path) -> anyhow::Result<String> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut found = ("", "unknown", "");
    for mount in mounts.lines() {
        let mut fields = mount.split(' ');
        if let (Some(device), Some(at), Some(kind)) = (fields.next(), fields.next(), fields.next())
            && folder.starts_with(at)
            && at.len() >= found.0.len()
        {
            found = (at, kind, device);
        }
    }
    Ok(format!("{} on {}", found.1, found.2))
}

/// How long each of many small writes takes until it is durable: milliseconds, sorted. Each makes its
/// file longer, as a commit does with a write-ahead log that was emptied by the last fold.
pub fn flushes(folder: &Path, during: Duration) -> anyhow::Result<Vec<f64>> {
    let path = folder.join("flushes");
    let mut file = File::create(&path)?;
    let mut taken = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < during {
        let written_at = Instant::now();
        file.write_all(&[0x5a; BLOCK])?;
        file.sync_data()?;
        taken.push(written_at.elapsed().as_secs_f64() * 1e3);
    }
    fs::remove_file(&path)?;
    taken.sort_by(f64::total_cmp);
    Ok(taken)
}

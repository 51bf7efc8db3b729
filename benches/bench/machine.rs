//! A description of the machine, its disk and the database engine.
//!
//! The disk is measured by what a commit waits for: the time until a small write is durable.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Bench;
use crate::table::percentile;

/// Size of a flushed write, in bytes: a page of a file system.
const BLOCK: usize = 4096;

/// Duration of the disk measurement for the table's header.
const MEASURED: Duration = Duration::from_secs(1);

/// Returns a description of the machine, as lines of text.
pub fn describe(bench: &Bench) -> anyhow::Result<String> {
    let mut description = String::new();
    let cores = std::thread::available_parallelism()?;
    let _ = writeln!(description, "cores       {cores}, {}", processor());
    let _ = writeln!(description, "file system {}", file_system(&bench.folder)?);
    let scratch = bench.scratch()?;
    let flushes = flushes(scratch.path(), MEASURED)?;
    let _ = writeln!(
        description,
        "fdatasync   p50 {:.2} ms, p99 {:.2} ms, of {BLOCK} bytes appended",
        percentile(&flushes, 0.5),
        percentile(&flushes, 0.99)
    );
    let _ = writeln!(description, "SQLite      {}", rusqlite::version());
    Ok(description)
}

fn processor() -> String {
    let all = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = all.lines().find_map(|line| line.strip_prefix("model name"));
    name.map_or("unknown", |name| name.trim_start_matches([' ', '\t', ':']))
        .to_owned()
}

/// Returns the type and the device of the file system of a folder.
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

/// Returns the times until each of many small writes is durable, in milliseconds, sorted. Each write
/// extends its file, as a commit does with a write-ahead log after a checkpoint.
pub fn flushes(folder: &Path, during: Duration) -> anyhow::Result<Vec<f64>> {
    let path = folder.join("flushes");
    let mut file = File::create(&path)?;
    let mut taken = Vec::new();
    let began_at = Instant::now();
    while began_at.elapsed() < during {
        let written_at = Instant::now();
        file.write_all(&[0x5a; BLOCK])?;
        file.sync_data()?;
        taken.push(written_at.elapsed().as_secs_f64() * 1e3);
    }
    fs::remove_file(&path)?;
    taken.sort_by(f64::total_cmp);
    Ok(taken)
}

//! What this service costs and how fast it is, each figure beside a reference that was measured in
//! the same run, and beside its goal.
//!
//! - `rows`: what is measured, one line or several each.
//! - `table`: samples, goals, and how both are printed.
//! - `machine`: what it was measured on.
//! - `databases`: databases full of orders, made once and copied.
//! - `programs`: the built programs, and what they take of the machine.
//! - `upstream`: the order process service that passes are measured with.
//! - `load`, `http`: how they are asked.
//!
//! `scripts/bench` runs all of it, `scripts/bench NAME…` some rows.

mod databases;
mod http;
mod load;
mod machine;
mod programs;
mod rows;
mod table;
mod upstream;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;

use rows::{ROWS, Row};
use table::Line;

/// Where databases and all else are kept that is made once.
const FOLDER: &str = "target/bench";

/// What the rows share.
pub struct Bench {
    folder: PathBuf,
}

impl Bench {
    fn new() -> anyhow::Result<Self> {
        std::fs::create_dir_all(FOLDER)?;
        let folder = PathBuf::from(FOLDER).canonicalize()?;
        Ok(Self { folder })
    }

    /// An empty folder on the disk that is measured, removed when dropped.
    pub fn scratch(&self) -> anyhow::Result<tempfile::TempDir> {
        tempfile::Builder::new()
            .prefix("run-")
            .tempdir_in(&self.folder)
            .context("no folder can be made")
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        // Cargo adds this to what it was given.
        .filter(|argument| argument != "--bench")
        .collect();
    match named(&arguments).and_then(|rows| run(&rows)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The rows of these names, or all of them.
fn named(names: &[String]) -> anyhow::Result<Vec<&'static Row>> {
    if names.is_empty() {
        return Ok(ROWS.iter().collect());
    }
    let named = names.iter().map(|name| {
        let row = ROWS.iter().find(|row| row.name == name);
        row.with_context(|| format!("there is no row {name:?}; scripts/bench --list prints them"))
    });
    named.collect()
}

/// Measures these rows and prints the table. A missed goal is told and is no failure; an answer
/// that is wrong is one, after all other rows.
fn run(rows: &[&Row]) -> anyhow::Result<()> {
    let bench = Bench::new()?;
    let begun = Instant::now();
    println!("{}", machine::describe(&bench)?);
    let mut lines: Vec<Line> = Vec::new();
    let mut wrong = 0;
    for row in rows {
        let seconds = begun.elapsed().as_secs_f64();
        eprintln!("{seconds:>6.0} s  {}: {}", row.name, row.what);
        let measured = (row.run)(&bench).unwrap_or_else(|error| {
            eprintln!("          WRONG: {error:#}");
            wrong += 1;
            Vec::new()
        });
        for line in &measured {
            eprintln!("          {}", line.text());
        }
        lines.extend(measured);
    }
    println!("{}", table::print(&lines));
    println!("measured in {:.0} s", begun.elapsed().as_secs_f64());
    anyhow::ensure!(wrong == 0, "{wrong} rows were wrong; see above");
    Ok(())
}

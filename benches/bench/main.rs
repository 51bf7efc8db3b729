//! Benchmarks of cost and speed. Each figure is printed beside its goal and a reference measured in
//! the same run.
//!
//! - `rows`: the benchmarks, each with one line of the table or several.
//! - `table`: samples, goals, and their output.
//! - `machine`: a description of the machine.
//! - `cluster`: a PostgreSQL server, in builds with the feature `postgres`.
//! - `databases`: databases full of orders, created once and copied.
//! - `programs`: the built programs, and their use of memory and processor.
//! - `upstream`: the order process service for the measurement of passes.
//! - `load`, `http`: load generators and an HTTP client.
//!
//! `scripts/bench` runs all rows, `scripts/bench NAME…` only those named.

#[cfg(feature = "postgres")]
#[path = "../../tests/it/cluster.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "the tests use more of it")]
mod cluster;
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

/// Folder of databases and other files that are created once.
const FOLDER: &str = "target/bench";

/// Beginning of the names of the rows on PostgreSQL.
const ON_POSTGRES: &str = "postgres";

/// State that the rows share.
pub struct Bench {
    folder: PathBuf,
    #[cfg(feature = "postgres")]
    server: std::cell::OnceCell<rows::Server>,
}

impl Bench {
    fn new() -> anyhow::Result<Self> {
        std::fs::create_dir_all(FOLDER)?;
        let folder = PathBuf::from(FOLDER).canonicalize()?;
        Ok(Self {
            folder,
            #[cfg(feature = "postgres")]
            server: std::cell::OnceCell::new(),
        })
    }

    /// Returns an empty folder on the measured disk, removed on drop.
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
        // Cargo adds this argument.
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

/// Returns the rows with these names, or all rows on SQLite if there are none. `postgres` stands for all
/// whose names begin with it.
fn named(names: &[String]) -> anyhow::Result<Vec<&'static Row>> {
    let mut rows = Vec::new();
    for name in names {
        let named = ROWS.iter().filter(|row| match name.as_str() {
            ON_POSTGRES => row.name.starts_with(ON_POSTGRES),
            name => row.name == name,
        });
        let before = rows.len();
        rows.extend(named);
        anyhow::ensure!(
            rows.len() > before,
            "there is no row {name:?}; scripts/bench --list prints them"
        );
    }
    if names.is_empty() {
        rows.extend(ROWS.iter().filter(|row| !row.name.starts_with(ON_POSTGRES)));
    }
    Ok(rows)
}

/// Measures these rows and prints the table. A missed goal is only reported; a wrong answer makes
/// the run fail after all other rows.
fn run(rows: &[&Row]) -> anyhow::Result<()> {
    let bench = Bench::new()?;
    let began_at = Instant::now();
    println!("{}", machine::describe(&bench)?);
    let mut lines: Vec<Line> = Vec::new();
    let mut wrong = 0;
    for row in rows {
        let seconds = began_at.elapsed().as_secs_f64();
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
    println!("measured in {:.0} s", began_at.elapsed().as_secs_f64());
    anyhow::ensure!(wrong == 0, "{wrong} rows were wrong; see above");
    Ok(())
}

//! What this service costs and how fast it is, each figure beside a reference that was measured in
//! the same run, and beside its goal.
//!
//! - `rows`: what is measured, one line or several each.
//! - `table`: samples, goals, and how both are printed.
//! - `machine`: what it was measured on.
//! - `databases`: databases full of orders, made once and copied.
//! - `programs`: the built programs, and what they take of the machine.
//! - `servers`: the servers that they are held against.
//! - `load`, `http`: how they are asked.
//! - `growth`: the same costs among more and more orders.
//!
//! `scripts/bench` runs all of it, `scripts/bench NAME…` some rows, `scripts/bench --list` names them.

mod databases;
mod growth;
mod http;
mod load;
mod machine;
mod programs;
mod rows;
mod servers;
mod table;

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
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["--list"] => {
            list();
            Ok(())
        }
        ["growth"] => Bench::new().and_then(|bench| growth::run(&bench, false)),
        ["growth", "--ten-million"] => Bench::new().and_then(|bench| growth::run(&bench, true)),
        ["serve", ref server @ ..] => return servers::serve(server),
        _ => named(&words).map_or_else(usage, |rows| run(&rows)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn list() {
    for row in ROWS {
        println!("{:<12} {}", row.name, row.what);
    }
}

/// The rows of these names, or all of them; nothing if there is no such row.
fn named(names: &[&str]) -> Option<Vec<&'static Row>> {
    if names.is_empty() {
        return Some(ROWS.iter().collect());
    }
    names
        .iter()
        .map(|name| ROWS.iter().find(|row| row.name == *name))
        .collect()
}

fn usage() -> anyhow::Result<()> {
    list();
    anyhow::bail!("usage: scripts/bench [NAME…] | --list | check [--keep] | growth [--ten-million]")
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
        eprintln!("{:>6.0} s  {}", begun.elapsed().as_secs_f64(), row.name);
        let measured = (row.run)(&bench).unwrap_or_else(|error| {
            eprintln!("          WRONG: {error:#}");
            wrong += 1;
            Vec::new()
        });
        for line in &measured {
            eprintln!("          {}", line.told());
        }
        lines.extend(measured);
    }
    println!("{}", table::print(&lines));
    println!("measured in {:.0} s", begun.elapsed().as_secs_f64());
    anyhow::ensure!(wrong == 0, "{wrong} rows were wrong; see above");
    Ok(())
}

//! A benchmark that counts the instructions of the hot paths and compares them with saved counts: unlike
//! times on a busy machine, counts show a change of a few percent.
//!
//! `scripts/bench check` fails if a count has changed by more than [`TOLERATED`]; with `--keep` it
//! rewrites the saved counts, `benches/counts.txt`. Each path runs under callgrind, in a process of its
//! own: this program calls itself. `paths` defines the paths.

mod paths;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail, ensure};

use self::paths::{Iteration, Path};

/// Path of the saved counts.
const COUNTS_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/counts.txt");

/// Maximum change of a count, as a share, that passes the check.
const TOLERATED: f64 = 0.03;

/// Iterations before the measured ones: caches fill, statements are prepared.
const WARM_UP: usize = 10;

/// Number of measured iterations. All cost the same, so more would only take longer.
const COUNTED: usize = 20;

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        // Cargo adds this argument.
        .filter(|argument| argument != "--bench")
        .collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [] => check(),
        ["--keep"] => keep(),
        ["run", name] => {
            let path = paths::ALL.iter().find(|path| path.name == name);
            run(path.with_context(|| format!("unknown path {name:?}"))?);
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("usage: scripts/bench check [--keep]"),
    }
}

/// Runs the iterations of one path, under callgrind.
fn run(path: &Path) {
    let mut iteration = (path.prepare)(WARM_UP + COUNTED);
    for _ in 0..WARM_UP {
        iteration();
    }
    measured(&mut iteration);
}

/// Runs the measured iterations: callgrind collects inside this function, by its name.
#[inline(never)]
fn measured(iteration: &mut Iteration) {
    for _ in 0..COUNTED {
        iteration();
    }
}

/// Names of the paths, with the instructions of one operation each.
type Counts = Vec<(String, u64)>;

fn keep() -> anyhow::Result<ExitCode> {
    let mut file = format!("{HEAD}#\n# made by {}\n", toolchain()?);
    for (name, count) in count_all()? {
        let _ = writeln!(file, "{count:>9}  {name}");
    }
    fs::write(COUNTS_FILE, &file).with_context(|| format!("cannot write {COUNTS_FILE}"))?;
    print!("{file}");
    Ok(ExitCode::SUCCESS)
}

/// The header of the file of counts.
const HEAD: &str = "\
# Instructions of the hot paths for one operation each, as callgrind counts them.
# `scripts/bench check` compares them with the present code; `scripts/bench check --keep` rewrites them.
# Counts depend on compiler and machine: on another one, run --keep first and compare from then on.
";

fn check() -> anyhow::Result<ExitCode> {
    let file =
        fs::read_to_string(COUNTS_FILE).with_context(|| format!("cannot read {COUNTS_FILE}"))?;
    let kept_by = file
        .lines()
        .find_map(|line| line.strip_prefix("# made by "));
    let made_by = toolchain()?;
    if kept_by != Some(&*made_by) {
        println!("kept by {}", kept_by.unwrap_or("unknown"));
        println!("now by  {made_by}");
        println!("The environments differ, so the code may not be the cause of a change below.\n");
    }
    let kept = counts_of(&file)?;
    let now = count_all()?;
    println!(
        "{:<30} {:>9} {:>9} {:>8}",
        "instructions", "kept", "now", "change"
    );
    let mut differs = kept.len() != now.len();
    for (name, now) in &now {
        let kept = kept.iter().find(|(kept, _)| kept == name);
        let Some((_, kept)) = kept else {
            println!("{name:<30} {:>9} {now:>9}", "none");
            differs = true;
            continue;
        };
        let change = *now as f64 / *kept as f64 - 1.0;
        let is_outside = change.abs() > TOLERATED;
        let mark = if is_outside { "  outside" } else { "" };
        println!(
            "{name:<30} {kept:>9} {now:>9} {:>+7.2}%{mark}",
            change * 100.0
        );
        differs |= is_outside;
    }
    if !differs {
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "\nA count changed by more than {:.0} %. If that is intended: scripts/bench check --keep",
        TOLERATED * 100.0
    );
    Ok(ExitCode::FAILURE)
}

/// Parses a file of counts.
fn counts_of(file: &str) -> anyhow::Result<Counts> {
    let lines = file.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (count, name) = line.trim_start().split_once("  ").context("no count")?;
            anyhow::Ok((name.to_owned(), count.parse()?))
        })
        .collect::<anyhow::Result<_>>()
        .with_context(|| format!("{COUNTS_FILE} is malformed"))
}

fn count_all() -> anyhow::Result<Counts> {
    let counted = paths::ALL.iter().map(|path| {
        let all = count(path).with_context(|| path.name)?;
        let operations = COUNTED as u64 * path.operations;
        Ok((path.name.to_owned(), (all + operations / 2) / operations))
    });
    counted.collect()
}

/// Counts the instructions of all measured iterations of a path.
fn count(path: &Path) -> anyhow::Result<u64> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("callgrind.out");
    let mut option = OsString::from("--callgrind-out-file=");
    option.push(&out);
    let output = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--toggle-collect=instructions::measured",
        ])
        .arg(option)
        .arg(std::env::current_exe()?)
        .args(["run", path.name])
        // The size of the environment moves the stack.
        .env_clear()
        // Large blocks get pages of their own: whether one can grow in place depends on its neighbours
        // in memory, and those on the timing of threads.
        .env("MALLOC_MMAP_THRESHOLD_", "65536")
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .output()
        .context("cannot run valgrind")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "the path failed under callgrind: {stderr}"
    );
    let profile = fs::read_to_string(out)?;
    let total = profile
        .lines()
        .find_map(|line| line.strip_prefix("totals: "));
    let total = total.context("the profile has no total")?.parse()?;
    ensure!(total > 0, "callgrind did not find the measured function");
    Ok(total)
}

/// Returns the environment that counts depend on: the compiler, the C library, callgrind, and whether
/// the processor has AVX2, which the C library's fastest routines use.
fn toolchain() -> anyhow::Result<String> {
    let first_line = |program: &str, argument: &str| -> anyhow::Result<String> {
        let output = Command::new(program).arg(argument).output();
        let output = output.with_context(|| format!("cannot run {program}"))?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        Ok(stdout.lines().next().unwrap_or_default().to_owned())
    };
    let rustc = first_line("rustc", "--version")?;
    let library = first_line("getconf", "GNU_LIBC_VERSION")?;
    let valgrind = first_line("valgrind", "--version")?;
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has_avx2 = processor.split_whitespace().any(|flag| flag == "avx2");
    let avx2 = if has_avx2 { "with" } else { "without" };
    Ok(format!("{rustc}; {library}; {valgrind}; {avx2} AVX2"))
}

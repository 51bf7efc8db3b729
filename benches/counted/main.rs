//! Counts the instructions of the hot paths, and compares them with those that are kept: what time
//! measured on a busy machine cannot tell, a few percent, is told by counts.
//!
//! `scripts/bench check` fails if a count has changed by more than [`TOLERATED`]; with `--keep` it
//! writes the file of counts, `benches/counts.txt`, anew. Each path runs under callgrind, in a
//! process of its own: this program calls itself. What is counted is in `paths`.

mod paths;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail, ensure};

use self::paths::{Path, Turn};

/// The file of counts.
const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/counts.txt");

/// How much a count may change before it has to be looked at.
const TOLERATED: f64 = 0.03;

/// Turns that are made before any are counted: caches fill, statements are prepared.
const WARM_UP: usize = 10;

/// Turns that are counted. More would only take longer: each costs the same.
const COUNTED: usize = 20;

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        // Cargo adds this to what it was given.
        .filter(|argument| argument != "--bench")
        .collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [] => check(),
        ["--keep"] => keep(),
        ["run", name] => {
            let path = paths::ALL.iter().find(|path| path.name == name);
            run(path.context("there is no such path")?);
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("usage: scripts/bench check [--keep]"),
    }
}

/// Makes the turns of one path, under callgrind.
fn run(path: &Path) {
    let mut turn = (path.prepare)(WARM_UP + COUNTED);
    for _ in 0..WARM_UP {
        turn();
    }
    counted(&mut turn);
}

/// What callgrind counts, and finds by this name.
#[inline(never)]
fn counted(turn: &mut Turn) {
    for _ in 0..COUNTED {
        turn();
    }
}

/// Instructions of one path, for each time that its thing is done.
type Counts = Vec<(String, u64)>;

fn keep() -> anyhow::Result<ExitCode> {
    let mut file = format!("{HEAD}#\n# made by {}\n", made_by()?);
    for (name, count) in count_all()? {
        let _ = writeln!(file, "{count:>9}  {name}");
    }
    fs::write(KEPT, &file).with_context(|| format!("{KEPT} cannot be written"))?;
    print!("{file}");
    Ok(ExitCode::SUCCESS)
}

/// What stands at the head of the file of counts.
const HEAD: &str = "\
# Instructions of the hot paths, as callgrind counts them, for each time that the thing is done.
# `scripts/bench check` compares them with what is so; `scripts/bench check --keep` writes them anew.
# Compilers and machines differ: where others made them, keep first and compare from then on.
";

fn check() -> anyhow::Result<ExitCode> {
    let file = fs::read_to_string(KEPT).with_context(|| format!("{KEPT} cannot be read"))?;
    let kept_by = file
        .lines()
        .find_map(|line| line.strip_prefix("# made by "));
    let made_by = made_by()?;
    if kept_by != Some(&*made_by) {
        println!("kept by {}", kept_by.unwrap_or("no one knows"));
        println!("now by  {made_by}");
        println!("These count differently: what differs below may not be our code's doing.\n");
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
        "\nMore than {:.0} % away from what is kept. If that is meant: scripts/bench check --keep",
        TOLERATED * 100.0
    );
    Ok(ExitCode::FAILURE)
}

/// The counts in a file of counts.
fn counts_of(file: &str) -> anyhow::Result<Counts> {
    let lines = file.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (count, name) = line.trim_start().split_once("  ").context("no count")?;
            anyhow::Ok((name.to_owned(), count.parse()?))
        })
        .collect::<anyhow::Result<_>>()
        .with_context(|| format!("{KEPT} is not as it was written"))
}

fn count_all() -> anyhow::Result<Counts> {
    let counted = paths::ALL.iter().map(|path| {
        let all = count(path).with_context(|| path.name)?;
        let times = COUNTED as u64 * path.times;
        Ok((path.name.to_owned(), (all + times / 2) / times))
    });
    counted.collect()
}

/// The instructions of all counted turns of a path.
fn count(path: &Path) -> anyhow::Result<u64> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("callgrind.out");
    let mut option = OsString::from("--callgrind-out-file=");
    option.push(&out);
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=counted::counted"])
        .arg(option)
        .arg(std::env::current_exe()?)
        .args(["run", path.name])
        // What is in the environment moves the stack, and what is on it.
        .env_clear()
        // Whether a large block can grow where it is, or has to be copied, depends on what lies
        // beside it, and that on threads: each gets pages of its own.
        .env("MALLOC_MMAP_THRESHOLD_", "65536")
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .output()
        .context("valgrind cannot be run")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "it failed under callgrind: {told}");
    let told = fs::read_to_string(out)?;
    let total = told.lines().find_map(|line| line.strip_prefix("totals: "));
    let total = total.context("callgrind told no total")?.parse()?;
    ensure!(total > 0, "callgrind did not find what to count");
    Ok(total)
}

/// What the counts depend on beside our code: the compiler, the C library, callgrind, and whether
/// the processor has what the C library's fastest routines use.
fn made_by() -> anyhow::Result<String> {
    let first_line = |program: &str, argument: &str| -> anyhow::Result<String> {
        let output = Command::new(program).arg(argument).output();
        let output = output.with_context(|| format!("{program} cannot be run"))?;
        let told = String::from_utf8_lossy(&output.stdout);
        Ok(told.lines().next().unwrap_or_default().to_owned())
    };
    let rustc = first_line("rustc", "--version")?;
    let library = first_line("getconf", "GNU_LIBC_VERSION")?;
    let valgrind = first_line("valgrind", "--version")?;
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has_avx2 = processor.split_whitespace().any(|flag| flag == "avx2");
    let avx2 = if has_avx2 { "with" } else { "without" };
    Ok(format!("{rustc}; {library}; {valgrind}; {avx2} AVX2"))
}

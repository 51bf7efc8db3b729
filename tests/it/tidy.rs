//! What the documentation of the code claims about it, read off the code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use order_service::program::LOG_PARTS;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every Rust file of the library and the programs, with its path from the root.
fn sources() -> Vec<(String, String)> {
    files("src")
}

/// Every Rust file in this folder, with its path from the root.
fn files(folder: &str) -> Vec<(String, String)> {
    let mut folders: Vec<PathBuf> = vec![root().join(folder)];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                sources.push((name.clone(), read(&name)));
            }
        }
    }
    assert!(sources.len() > 15, "the sources were found");
    sources
}

/// The code of a file without its tests and comments.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn what_logs_can_be_named_in_rust_log() {
    let mut parts = BTreeSet::new();
    for (name, text) in sources() {
        let code = code(&text);
        let module = name["src/".len()..].split(['/', '.']).next().unwrap();
        let logs = ["error", "warn", "info", "debug", "trace"]
            .iter()
            .any(|level| code.contains(&format!("log::{level}!(")));
        if logs && !["main", "bin"].contains(&module) {
            parts.insert(module.to_owned());
        }
        for target in code.split("\"order_service::").skip(1) {
            parts.insert(target.split('"').next().unwrap().to_owned());
        }
    }
    parts.remove("");
    assert_eq!(parts, LOG_PARTS.map(str::to_owned).into());
}

#[test]
fn the_pure_modules_use_nothing_that_acts() {
    let pure = [
        "src/order.rs",
        "src/order/event.rs",
        "src/order/rfc3339.rs",
        "src/order_details.rs",
        "src/decide.rs",
        "src/pace.rs",
        "src/explain.rs",
        "src/explain/words.rs",
        "src/journal_stats.rs",
        "src/histogram.rs",
        "src/reconciler_metrics.rs",
        "src/simulator/model.rs",
        "src/simulator/crash.rs",
        "src/simulator/faults.rs",
    ];
    let acts = [
        "std::time::Instant",
        "SystemTime",
        "std::fs",
        "std::net",
        "std::thread",
        "std::env",
        "fastrand",
        "tokio",
        "rusqlite",
        "reqwest",
        "warp",
        "hyper",
        "log::",
        "chrono",
    ];
    for path in pure {
        let code = code(&read(path));
        for word in acts {
            assert!(!code.contains(word), "{path} names {word}");
        }
    }
}

#[test]
fn each_large_library_is_named_in_its_own_module_only() {
    let owners: [(&str, &[&str]); 3] = [
        ("rusqlite", &["src/store/sqlite"]),
        ("reqwest", &["src/upstream"]),
        ("warp::", &["src/api", "src/simulator", "src/dev.rs"]),
    ];
    for (path, text) in sources() {
        let code = code(&text);
        for (library, owners) in owners {
            let is_owner = owners.iter().any(|owner| path.starts_with(owner));
            assert!(
                is_owner || !code.contains(library),
                "{path} names {library}"
            );
        }
    }
}

#[test]
fn the_api_knows_neither_upstream_nor_simulator_and_the_reconciler_does_not_know_the_api() {
    for (path, text) in sources() {
        let code = code(&text);
        if path.starts_with("src/api") {
            assert!(!code.contains("crate::upstream"), "{path}");
            assert!(!code.contains("crate::simulator"), "{path}");
        }
        if path.starts_with("src/reconciler") {
            assert!(!code.contains("crate::api"), "{path}");
            assert!(!code.contains("crate::server"), "{path}");
        }
    }
}

#[test]
fn the_map_in_lib_rs_names_every_module() {
    let lib = read("src/lib.rs");
    for line in lib.lines().filter_map(|line| line.strip_prefix("pub mod ")) {
        let module = line.trim_end_matches(';');
        assert!(
            lib.contains(&format!("[`{module}`]")),
            "{module} is not on the map"
        );
    }
}

#[test]
fn every_file_opens_with_what_it_owns() {
    for (path, text) in sources() {
        let opening = text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .count();
        assert!(opening >= 1, "{path} opens without a word about itself");
    }
}

#[test]
fn all_printing_goes_through_one_place_that_a_closed_output_does_not_end() {
    for (path, text) in sources() {
        let code = code(&text);
        for word in ["print!(", "println!(", "dbg!("] {
            assert!(!code.contains(word), "{path} has {word}");
        }
        let is_owner = path == "src/program.rs";
        assert!(is_owner || !code.contains("stdout()"), "{path}");
    }
}

#[test]
fn every_migration_is_run_and_every_query_is_used() {
    let open = read("src/store/sqlite/open.rs");
    let sources = sources();
    for entry in fs::read_dir(root().join("sql")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with(|first: char| first.is_ascii_digit()) {
            assert!(open.contains(&name), "sql/{name} is not run");
        } else {
            let is_used = sources.iter().any(|(_, text)| code(text).contains(&name));
            assert!(is_used, "sql/{name} is not used");
        }
    }
}

#[test]
fn the_performance_page_names_every_row_of_the_bench_as_its_list_does() {
    let output = std::process::Command::new(root().join("scripts/bench"))
        .arg("--list")
        .output()
        .unwrap();
    let list = String::from_utf8(output.stdout).unwrap();
    let listed: Vec<_> = list
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    // One function measures one row.
    let functions = read("benches/bench/rows.rs")
        .matches("        run: ")
        .count();
    assert_eq!(listed.len(), functions);
    let page = read("docs/performance.md");
    let table = page.split("| row | ours | beside |").nth(1).unwrap();
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let named: BTreeSet<_> = rows.filter_map(|row| row.split('`').nth(1)).collect();
    assert_eq!(named, listed.into_iter().collect());
}

#[test]
fn the_tables_of_slow_tests_name_those_that_are_left_out_and_none_that_is_not_there() {
    let named: BTreeSet<String> = read("tests/it/main.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! | `")?.split_once('`'))
        .map(|(test, _)| test.to_owned())
        .collect();
    let (mut left_out, mut there) = (BTreeSet::new(), BTreeSet::new());
    for (path, text) in files("tests/it") {
        let module = path.strip_prefix("tests/it/").unwrap();
        let module = module.strip_suffix(".rs").unwrap().replace('/', "::");
        let name_after = |after: &str| {
            let (_, name) = after.split_once("fn ")?;
            Some(format!("{module}::{}", name.split_once('(')?.0))
        };
        let slow = text.split("#[ignore = \"slow;").skip(1);
        left_out.extend(slow.filter_map(name_after));
        there.extend(text.lines().filter_map(name_after));
    }
    assert!(!left_out.is_empty());
    assert_eq!(left_out.difference(&named).next(), None, "not in the table");
    assert_eq!(named.difference(&there).next(), None, "not there");
}

//! Compares claims of the documentation about the code with the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use order_service::process::LOG_PARTS;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns every Rust file of the library and the programs, with its path from the root.
fn sources() -> Vec<(String, String)> {
    files("src")
}

/// Returns every Rust file in this folder, with its path from the root.
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

/// Returns the code of a file without its tests and comments.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Returns whether a file holds tests alone.
fn is_tests(path: &str) -> bool {
    path.ends_with("/tests.rs")
}

/// Returns a file's module: the first segment of its path in `src`.
fn module_of(path: &str) -> &str {
    path["src/".len()..].split(['/', '.']).next().unwrap()
}

/// Returns the bullets of the map in lib.rs, in order: the modules that each names, and its text.
fn map() -> Vec<(Vec<String>, String)> {
    let lib = read("src/lib.rs");
    let docs: Vec<_> = lib
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .collect();
    let docs = docs.join("\n");
    let bullets = docs.split("\n - [").skip(1);
    bullets
        .map(|bullet| {
            let bullet = format!("[{}", bullet.split("\n\n").next().unwrap());
            let (names, text) = bullet.split_once("]:").unwrap();
            let names = names.split('`').skip(1).step_by(2).map(str::to_owned);
            (names.collect(), text.to_owned())
        })
        .collect()
}

/// Returns the names that follow `prefix` in the code, one level deep: `a` and `b` for `prefix::{a::X, b}`.
fn imported(code: &str, prefix: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        // The end of a longer path, as in `super::super::x`.
        if code[..at].ends_with(|c: char| is_word(c) || c == ':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let mut depth = 0;
        let mut is_first = true;
        for (at, c) in rest.char_indices() {
            if is_first && is_word(c) {
                let name: String = rest[at..].chars().take_while(|c| is_word(*c)).collect();
                names.insert(name);
            }
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            is_first = depth == 1 && matches!(c, '{' | ',') || is_first && c.is_whitespace();
            if depth == 0 {
                break;
            }
        }
    }
    names
}

#[test]
fn every_module_that_logs_is_a_target_of_rust_log() {
    let mut parts = BTreeSet::new();
    for (path, text) in sources() {
        let code = code(&text);
        let module = module_of(&path);
        let logs = ["error", "warn", "info", "debug", "trace"]
            .iter()
            .flat_map(|level| {
                code.split(&format!("log::{level}!("))
                    .skip(1)
                    .collect::<Vec<_>>()
            })
            .any(|arguments| !arguments.trim_start().starts_with("target: "));
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
fn the_map_in_lib_rs_names_every_module_once() {
    let lib = read("src/lib.rs");
    let modules = lib.lines().filter_map(|line| line.strip_prefix("pub mod "));
    let mut modules: Vec<_> = modules.map(|line| line.trim_end_matches(';')).collect();
    let map = map();
    let mut named: Vec<_> = map.iter().flat_map(|(names, _)| names).collect();
    modules.sort_unstable();
    named.sort_unstable();
    assert_eq!(modules, named);
}

#[test]
fn no_module_imports_one_that_comes_after_it_on_the_map() {
    let map = map();
    let order: Vec<_> = map.iter().flat_map(|(names, _)| names).collect();
    let rank = |module: &str| order.iter().position(|name| *name == module);
    for (path, text) in sources().iter().filter(|(path, _)| !is_tests(path)) {
        let own = rank(module_of(path)).unwrap_or(usize::MAX);
        for name in imported(&code(text), "crate::") {
            if let Some(rank) = rank(&name) {
                assert!(rank <= own, "{path} imports {name}, which comes after it");
            }
        }
    }
}

#[test]
fn the_files_of_a_folder_import_each_other_in_no_circle() {
    let sources = sources();
    let mut imports: BTreeMap<(&str, &str), BTreeSet<String>> = BTreeMap::new();
    for (path, text) in sources.iter().filter(|(path, _)| !is_tests(path)) {
        let (folder, file) = path.rsplit_once('/').unwrap();
        let absolute = folder.replacen("src/", "crate::", 1).replace('/', "::") + "::";
        let mut names = imported(&code(text), "super::");
        names.extend(imported(&code(text), &absolute));
        imports.insert((folder, file.strip_suffix(".rs").unwrap()), names);
    }
    // Remove files that import no remaining file, until only circles remain.
    loop {
        let is_there = |folder: &str, name: &str| imports.contains_key(&(folder, name));
        let free = imports.iter().find(|((folder, file), names)| {
            *folder == "src"
                || !names
                    .iter()
                    .any(|name| name != file && is_there(folder, name))
        });
        let Some(free) = free.map(|(file, _)| *file) else {
            break;
        };
        imports.remove(&free);
    }
    let circles: Vec<_> = imports.keys().collect();
    assert!(circles.is_empty(), "{circles:?} import each other");
}

#[test]
fn pure_modules_use_no_io_and_import_only_pure_modules() {
    let acts = [
        "Instant",
        "SystemTime",
        "std::fs",
        "std::net",
        "std::thread",
        "std::env",
        "std::io",
        "RandomState",
        "hashbrown",
        "fastrand",
        "tokio",
        "rusqlite",
        "reqwest",
        "warp",
        "hyper",
        "log::",
        "chrono",
    ];
    let map = map();
    let pure = map.iter().filter(|(_, text)| text.contains("Pure"));
    let mut pure: Vec<_> = pure.flat_map(|(names, _)| names.clone()).collect();
    pure.extend(["model", "crash", "faults"].map(|file| format!("simulator/{file}")));
    let is_pure = |path: &str| {
        !["src/upstream/http.rs", "src/upstream/proxy.rs"].contains(&path)
            && pure.iter().any(|module| {
                let rest = path["src/".len()..].strip_prefix(module.as_str());
                rest.is_some_and(|rest| rest.starts_with(['/', '.']))
            })
    };
    let mut checked = 0;
    for (path, text) in sources().iter().filter(|(path, _)| !is_tests(path)) {
        let header = text.lines().take_while(|line| line.starts_with("//!"));
        if !is_pure(path) {
            let says_so = header.into_iter().any(|line| line.starts_with("//! Pure"));
            assert!(!says_so, "{path} claims to be pure; the map does not");
            continue;
        }
        checked += 1;
        let code = code(text);
        for word in acts {
            assert!(!code.contains(word), "{path} names {word}");
        }
        for name in imported(&code, "crate::") {
            let is_own = name == "simulator" && path.starts_with("src/simulator/");
            assert!(is_own || pure.contains(&name), "{path} imports {name}");
        }
    }
    assert!(checked > 20, "the pure files were found");
}

#[test]
fn only_the_store_names_the_files_beside_a_database() {
    for (path, text) in sources() {
        for suffix in [
            "\"-wal",
            "\"-shm",
            "\"-journal",
            "\"-turn",
            "\"-write",
            "\"-leader",
        ] {
            let is_owner = path.starts_with("src/store");
            assert!(
                is_owner || !code(&text).contains(suffix),
                "{path} names {suffix}"
            );
        }
    }
}

#[test]
fn each_large_library_is_named_in_its_own_module_only() {
    let owners: [(&str, &[&str]); 4] = [
        ("rusqlite", &["src/store/sqlite"]),
        ("tokio_postgres", &["src/store/postgres"]),
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
fn every_file_begins_with_a_description() {
    for (path, text) in sources() {
        let opening = text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .count();
        assert!(opening >= 1, "{path} opens without a word about itself");
    }
}

#[test]
fn all_printing_goes_through_one_function_that_survives_a_closed_output() {
    for (path, text) in sources() {
        let code = code(&text);
        for word in ["print!(", "println!(", "dbg!("] {
            assert!(!code.contains(word), "{path} has {word}");
        }
        let is_owner = path == "src/process.rs";
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
fn the_list_of_the_bench_names_every_row() {
    let output = std::process::Command::new(root().join("scripts/bench"))
        .arg("--list")
        .output()
        .unwrap();
    let list = String::from_utf8(output.stdout).unwrap();
    // One function measures one row.
    let functions = read("benches/bench/rows.rs")
        .matches("        run: ")
        .count();
    assert_eq!(list.lines().count(), functions);
}

#[test]
fn an_unknown_option_of_a_script_is_refused_before_anything_is_built() {
    for script in ["bench", "simulate", "test", "torture"] {
        let output = std::process::Command::new(root().join("scripts").join(script))
            .arg("--frobnicate")
            // Without cargo.
            .env("PATH", "/usr/bin:/bin")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let printed = String::from_utf8(output.stderr).unwrap();
        assert!(printed.contains(&format!("scripts/{script}")), "{printed}");
    }
}

#[test]
fn the_tables_of_slow_tests_name_existing_tests_and_all_ignored_ones() {
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
    assert_eq!(named.difference(&there).next(), None, "not a test");
}

//! Compares README and the pages under `docs` with the programs and with each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use order_service::api;
use order_service::decide::LostProcess;
use order_service::order::Reason;
use order_service::process::Exit;

use crate::environment::{Client, TestEnvironment};
use crate::tidy::{read, root};

/// Maximum number of lines of README.
const README_LINES_MAX: usize = 150;

/// Number of the files that carry an order, and of their lines at most.
const WAY_FILES: usize = 8;
const WAY_LINES_MAX: usize = 1_500;

/// Returns all pages with their paths from the root.
fn pages() -> Vec<(String, String)> {
    let folders = ["", "docs/"].map(|folder| (folder, fs::read_dir(root().join(folder)).unwrap()));
    let mut pages = Vec::new();
    for (folder, entries) in folders {
        for entry in entries {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                let path = format!("{folder}{name}");
                pages.push((path.clone(), read(&path)));
            }
        }
    }
    assert!(pages.len() > 6, "the pages were found");
    pages
}

/// Returns the part of a page from a heading to the next one.
fn section<'t>(page: &'t str, heading: &str) -> &'t str {
    let (_, rest) = page
        .split_once(&format!("\n{heading}\n"))
        .unwrap_or_else(|| panic!("no heading {heading}"));
    rest.split("\n#").next().unwrap()
}

/// Returns the cells of all table rows in a text, without heads and rules.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines: Vec<_> = text.lines().collect();
    let is_body = |index: &usize| {
        let next = lines.get(index + 1).copied().unwrap_or_default();
        lines[*index].starts_with("| ") && !next.starts_with("|---")
    };
    let bodies = (0..lines.len()).filter(is_body);
    bodies
        .map(|index| {
            lines[index]
                .trim_matches('|')
                .split(" | ")
                .map(str::trim)
                .collect()
        })
        .collect()
}

/// Returns the parts of a text between backticks.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Returns the fenced blocks in this language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("\n```{language}\n");
    let blocks = page.split(&fence).skip(1);
    blocks
        .map(|rest| rest.split("\n```").next().unwrap().to_owned())
        .collect()
}

/// Returns the anchors that GitHub derives from a page's headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let of_heading = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().replace(' ', "-")
    };
    headings.map(of_heading).collect()
}

#[test]
fn readme_is_read_in_one_sitting() {
    let lines = read("README.md").lines().count();
    assert!(lines <= README_LINES_MAX, "README has {lines} lines");
}

#[test]
fn the_way_of_an_order_is_read_in_one_sitting_too() {
    let page = read("docs/architecture.md");
    let way = section(&page, "## One order, from POST to FULFILLED");
    let files: BTreeSet<_> = code_spans(way)
        .filter(|span| span.starts_with("src/"))
        .collect();
    let lines: usize = files.iter().map(|path| read(path).lines().count()).sum();
    assert_eq!(files.len(), WAY_FILES, "{files:?}");
    assert!(lines <= WAY_LINES_MAX, "{lines} lines in {files:?}");
}

#[test]
fn links_between_pages_lead_to_files_and_headings_that_are_there() {
    let mut checked = 0;
    for (path, text) in pages() {
        let folder = Path::new(&path).parent().unwrap();
        for target in text.split("](").skip(1) {
            let target = target.split(')').next().unwrap();
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let led_to = match file {
                "" => path.clone(),
                file => folder.join(file).to_str().unwrap().to_owned(),
            };
            assert!(root().join(&led_to).exists(), "{path}: {target}");
            let is_there = anchor.is_empty() || anchors(&read(&led_to)).contains(anchor);
            assert!(is_there, "{path}: {target}");
            checked += 1;
        }
    }
    assert!(checked > 20, "{checked} links were found");
}

/// Returns the help of a command.
fn help(program: &str, command: &[&str]) -> String {
    let env = TestEnvironment::new();
    let arguments: Vec<_> = command.iter().chain(&["--help"]).copied().collect();
    let output = env.command(program, &arguments).output().unwrap();
    assert!(output.status.success(), "{program} {command:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the part of a help text about each flag, by its name with the dashes.
fn flags(help: &str) -> BTreeMap<String, &str> {
    let (_, options) = help.split_once("Options:").unwrap();
    let entries = options.split("\n      --").skip(1);
    entries
        .map(|entry| {
            let name = entry.split([' ', '\n']).next().unwrap();
            (format!("--{name}"), entry)
        })
        .collect()
}

#[test]
fn the_settings_of_the_operations_page_are_those_of_the_programs() {
    let page = read("docs/operations.md");
    let helps =
        [&["serve"], &["dev"], &["simulator"]].map(|command| help("order-service", command));
    let flags = helps.each_ref().map(|help| flags(help));
    let mut named = BTreeSet::new();
    for row in rows(section(&page, "## Settings")) {
        let [flag, variable, default, _] = row[..] else {
            continue;
        };
        let Some(flag) = code_spans(flag).next() else {
            continue;
        };
        let variable = code_spans(variable).next().unwrap();
        let of_programs = flags.iter().filter_map(|flags| flags.get(flag));
        let entries: Vec<_> = of_programs.collect();
        assert!(!entries.is_empty(), "no program has {flag}");
        assert!(
            entries
                .iter()
                .all(|entry| entry.contains(&format!("[env: {variable}]"))),
            "{flag} {variable}"
        );
        for default in code_spans(default).filter(|text| *text != "simulator") {
            let marks = [
                format!("[default: {default}]"),
                format!("[default: \"{default}\"]"),
            ];
            // Without the colon of a command before it.
            let is_default = |entry: &&&str| marks.iter().any(|mark| entry.contains(mark));
            let is_default = default.ends_with(':') || entries.iter().any(is_default);
            assert!(is_default, "{flag}: {default}");
        }
        named.insert(flag.to_owned());
    }
    let theirs: BTreeSet<_> = flags.iter().flat_map(BTreeMap::keys).cloned().collect();
    assert_eq!(named, theirs, "each flag has a row");
}

#[test]
fn the_exit_codes_of_the_operations_page_are_those_of_the_programs() {
    let page = read("docs/operations.md");
    let rows = rows(section(&page, "## Settings"));
    let codes = rows.iter().filter_map(|row| row[0].parse::<u8>().ok());
    let exits = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::Database,
        Exit::Upstream,
        Exit::NotLeading,
        Exit::Unclean,
    ];
    assert_eq!(codes.collect::<Vec<_>>(), exits.map(|exit| exit as u8));
}

#[test]
fn commands_that_the_pages_show_are_those_of_the_programs() {
    let mut checked = 0;
    let mut helps: BTreeMap<String, String> = BTreeMap::new();
    for (path, page) in pages() {
        let (scripts, sessions) = (blocks(&page, "sh"), blocks(&page, "console"));
        let typed = sessions.iter().flat_map(|session| session.lines());
        let typed = typed.filter_map(|line| line.strip_prefix("$ "));
        for line in scripts
            .iter()
            .flat_map(|script| script.lines())
            .chain(typed)
        {
            let line = line.split(" #").next().unwrap();
            let line = line.replace("cargo run -- ", "order-service ");
            let mut words = line.split_whitespace().skip_while(|word| {
                !["order-service", "order-reconciler"].contains(word)
                    && !word.starts_with("scripts/")
            });
            let Some(program) = words.next() else {
                continue;
            };
            checked += 1;
            if program.starts_with("scripts/") {
                assert!(root().join(program).exists(), "{path}: {line}");
                continue;
            }
            let words: Vec<_> = words.collect();
            let command = words
                .first()
                .filter(|word| !word.starts_with('-') && **word != ".");
            let command: Vec<_> = command.copied().into_iter().collect();
            let help = helps
                .entry(format!("{program} {command:?}"))
                .or_insert_with(|| help(program, &command));
            let flags = flags(help);
            for flag in words.iter().filter(|word| word.starts_with("--")) {
                assert!(flags.contains_key(*flag), "{path}: {line}");
            }
        }
    }
    assert!(checked > 10, "{checked} commands were found");
}

#[test]
fn the_api_page_names_every_path_and_no_other() {
    let page = read("docs/api.md");
    let rows = rows(section(&page, "## Requests"));
    let requests = rows.iter().flat_map(|row| code_spans(row[0]));
    let named = requests.filter_map(|request| Some(request.split_once(" /")?.1));
    let named: BTreeSet<_> = named.map(|path| format!("/{path}")).collect();
    // The files of the pages are internal.
    let of_pages = ["/dashboard/{file}", "/docs/docs.js", "/docs/style.css"];
    let paths = api::paths().filter(|path| !of_pages.contains(path));
    assert_eq!(named, paths.map(str::to_owned).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_page_names_every_kind_of_problem_with_its_status() {
    let env = TestEnvironment::new();
    let api = env.api(&[]);
    let served = Client::new()
        .get(format!("{}/problems", api.url))
        .await
        .body;
    let kinds: BTreeSet<_> = served
        .split("<dt>Status, type</dt>\n<dd>")
        .skip(1)
        .map(|kind| {
            let (status, rest) = kind.split_once(", <code>/problems#").unwrap();
            let name = rest.split("</code>").next().unwrap();
            (status.to_owned(), name.to_owned())
        })
        .collect();
    assert!(kinds.len() > 20);
    let page = read("docs/api.md");
    let rows = rows(section(&page, "## Errors"));
    let named = rows.iter().flat_map(|row| {
        let (status, kinds) = (row[0], code_spans(row[1]));
        kinds.map(move |kind| (status.to_owned(), kind.to_owned()))
    });
    assert_eq!(named.collect::<BTreeSet<_>>(), kinds);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operations_page_names_every_metric_that_can_be_bad() {
    let env = TestEnvironment::new();
    let api = env.api(&[]);
    let served = Client::new()
        .get(format!("{}/docs/metrics", api.url))
        .await
        .body;
    let sections = served.split("<section id=\"").skip(1);
    let (mut all, mut alarms) = (BTreeSet::new(), BTreeSet::new());
    for section in sections {
        let name = section.split('"').next().unwrap();
        all.insert(name);
        if section.contains("<dt>Bad when</dt>") {
            alarms.insert(name);
        }
    }
    let page = read("docs/operations.md");
    let rows = rows(section(&page, "## Metrics"));
    let named = rows.iter().flat_map(|row| code_spans(row[0]));
    assert_eq!(named.collect::<BTreeSet<_>>(), alarms);
    let mentioned = rows.iter().flat_map(|row| code_spans(row[1]));
    for name in mentioned.filter(|name| name.contains('_')) {
        assert!(all.contains(name), "{name} is no metric");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operations_page_names_every_file_beside_the_database() {
    let env = TestEnvironment::new();
    let upstream = env.simulator(&["--max-order-process-duration", "1"]);
    let client = Client::new();
    let program = env.serve(&upstream.url, &[]);
    // By now every part of the program has opened its files.
    client.create(&program.url, "a1").await;
    client.settled(&program.url, 1).await;
    let database = env.database();
    let name = database.file_name().unwrap().to_str().unwrap();
    let entries = fs::read_dir(database.parent().unwrap()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let beside = names.filter_map(|entry| Some(entry.strip_prefix(name)?.to_owned()));
    let beside: BTreeSet<_> = beside.filter(|suffix| !suffix.is_empty()).collect();
    let page = read("docs/operations.md");
    let named = code_spans(section(&page, "## Files"));
    let named = named
        .filter(|word| word.starts_with('-'))
        .map(str::to_owned);
    assert_eq!(named.collect::<BTreeSet<_>>(), beside);
    drop(program);
}

#[test]
fn the_guarantees_page_names_every_policy_and_every_reason_for_attention() {
    let page = read("docs/guarantees.md");
    let named = |heading| -> BTreeSet<String> {
        let rows = rows(section(&page, heading));
        let names = rows.iter().flat_map(|row| code_spans(row[0]));
        names.map(str::to_owned).collect()
    };
    let policies = LostProcess::ALL.map(|policy| policy.as_str().to_owned());
    assert_eq!(named("## When the upstream forgets"), policies.into());
    let reasons = Reason::ALL.map(|reason| reason.as_str().to_owned());
    assert_eq!(named("## Attention"), reasons.into());
}

/// Returns the list items, rows and paragraphs of a page, each on one line.
fn items(page: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    for line in page.lines() {
        let is_continued = line.starts_with("  ") || line.starts_with(char::is_alphanumeric);
        let is_numbered = line
            .split_once(". ")
            .is_some_and(|(number, _)| number.parse::<u8>().is_ok());
        if !is_continued || is_numbered {
            items.push(String::new());
        }
        let item = items.last_mut().unwrap();
        item.push_str(line);
        item.push(' ');
    }
    items
}

#[test]
fn every_file_and_function_that_a_page_names_is_there() {
    let folders = [
        "src/", "sql/", "tests/", "benches/", "scripts/", "deploy/", "docs/",
    ];
    let (mut files, mut functions) = (0, 0);
    for page in ["docs/architecture.md", "CONTRIBUTING.md"] {
        for item in items(&read(page)) {
            let mut code = String::new();
            for path in code_spans(&item) {
                let Some(folder) = folders.iter().find(|folder| path.starts_with(**folder)) else {
                    continue;
                };
                let path = path.split(' ').next().unwrap();
                assert!(root().join(path).exists(), "{page}: {path}");
                files += 1;
                if *folder == "src/" && path.ends_with(".rs") {
                    code.push_str(&read(path));
                }
            }
            for name in code_spans(&item).filter_map(|span| span.strip_suffix("()")) {
                let (of, name) = name.rsplit_once("::").unwrap_or(("", name));
                let is_there = [format!("fn {name}("), format!("fn {name}<")];
                let is_there = is_there.iter().any(|text| code.contains(text));
                assert!(
                    is_there && code.contains(of),
                    "{page}: {of} {name} in: {item}"
                );
                functions += 1;
            }
        }
    }
    assert!(files > 40, "{files} files were found");
    assert!(functions > 10, "{functions} functions were found");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_account_in_readme_is_printed_as_it_is_shown() {
    let env = TestEnvironment::new();
    let upstream = env.simulator(&["--max-order-process-duration", "1"]);
    let client = Client::new();
    let program = env.serve(&upstream.url, &[]);
    client.create(&program.url, "a1").await;
    client.settled(&program.url, 1).await;
    let url = ["--order-process-url", &upstream.url, "--record"];
    let log = env.simulator_log();
    let arguments: Vec<_> = ["account"].into_iter().chain(url).collect();
    let mut command = env.command("order-service", &arguments);
    let output = command.arg(log).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let readme = read("README.md");
    let accounts = blocks(&readme, "text");
    let account = accounts.iter().find(|block| block.contains("acknowledged"));
    let shown: Vec<_> = account.unwrap().lines().collect();
    assert_eq!(shown.len(), 10);
    for line in shown {
        assert!(
            printed.lines().any(|other| other == line),
            "{line}\n{printed}"
        );
    }
}

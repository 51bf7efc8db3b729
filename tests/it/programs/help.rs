//! The help of the programs.

use std::collections::BTreeMap;

use super::*;

/// Returns the flags in a help text, each with its variable and default.
fn documented(help: &str) -> BTreeMap<String, (String, String)> {
    let options = help.split_once("Options:").expect("there are options").1;
    let mut entries: Vec<String> = Vec::new();
    for line in options.lines().map(str::trim) {
        if line.starts_with('-') && !line.starts_with("- ") {
            entries.push(String::new());
        }
        if let Some(entry) = entries.last_mut() {
            entry.push_str(line);
            entry.push(' ');
        }
    }
    let between = |entry: &str, opening: &str| {
        let found = entry
            .split_once(opening)
            .and_then(|(_, rest)| rest.split_once(']'));
        found.map_or("", |(value, _)| value).trim().to_owned()
    };
    entries
        .into_iter()
        .filter(|entry| !entry.contains("--help") && !entry.contains("--version"))
        .map(|entry| {
            let flag = entry.split([' ', '=']).next().unwrap_or_default();
            let variable = between(&entry, "[env:");
            let default = match between(&entry, "[default:") {
                words if words == "none" || words.contains("drawn") => String::new(),
                value => value,
            };
            let variable = variable.trim_end_matches('=').to_owned();
            (flag.to_owned(), (variable, default))
        })
        .collect()
}

#[test]
fn the_help_of_every_command_names_each_setting_with_its_variable_and_default_and_no_other() {
    let env = TestEnvironment::new();
    for (command, settings) in commands() {
        let ran = run(&env, &command, &["--help"], &[]);
        assert_eq!(ran.code, Some(0), "{command:?}");
        let expected: BTreeMap<_, _> = settings
            .into_iter()
            .map(|(flag, variable, default)| {
                (flag.to_owned(), (variable.to_owned(), default.to_owned()))
            })
            .collect();
        assert_eq!(documented(&ran.stdout), expected, "{command:?}");
        assert_eq!(ran.stderr, "");
    }
}

#[test]
fn the_help_of_the_reconciler_is_the_same_for_its_unnamed_command() {
    let env = TestEnvironment::new();
    let help = |arguments: &[&str]| env.run("order-reconciler", arguments).stdout;
    assert_eq!(help(&["--help"]), help(&["run", "--help"]));
    let help = env.run("order-service", &["--help"]).stdout;
    for command in [
        "serve",
        "dev",
        "api",
        "simulator",
        "backup",
        "check",
        "health",
    ] {
        assert!(help.contains(&format!("\n  {command} ")), "{command}");
    }
    for program in ["order-service", "order-reconciler"] {
        let help = env.run(program, &["--help"]).stdout;
        let (_, usage) = help.split_once("Usage: ").unwrap();
        let (usage, _) = usage.split_once("\n\n").unwrap();
        for arguments in [&["unknown"][..], &["unknown", "--once"]] {
            let ran = env.run(program, arguments);
            assert!(
                ran.stderr.contains(&format!("Usage: {usage}\n\n")),
                "{ran:?}"
            );
        }
    }
}

#[test]
fn the_help_of_every_command_that_asks_the_upstream_names_the_token_and_the_log_levels() {
    let env = TestEnvironment::new();
    let mut silent = Vec::new();
    for (command, settings) in commands() {
        let help = run(&env, &command, &["--help"], &[]).stdout;
        for (setting, variable) in [(URL, "ORDER_PROCESS_TOKEN"), (LOG, "RUST_LOG")] {
            if settings.iter().any(|(flag, ..)| *flag == setting.0) && !help.contains(variable) {
                silent.push((command.clone(), variable));
            }
        }
    }
    assert_eq!(silent, []);
}

#[test]
fn the_help_promises_postgresql_only_in_builds_with_it() {
    let env = TestEnvironment::new();
    let mut arguments: Vec<_> = commands().into_iter().map(|(command, _)| command).collect();
    arguments.push(vec!["order-service", "copy"]);
    let mut checked = 0;
    for command in arguments {
        let help = run(&env, &command, &["--help"], &[]).stdout;
        let words: Vec<_> = help.split_whitespace().collect();
        let help = words.join(" ");
        for (promise, _) in help.match_indices("postgres://") {
            let condition = "in builds with PostgreSQL, ";
            assert!(help[..promise].ends_with(condition), "{command:?}: {help}");
            checked += 1;
        }
    }
    assert!(checked > 5, "{checked} promises were found");
}

#[test]
fn the_help_shows_no_value_of_the_environment() {
    let env = TestEnvironment::new();
    for (command, settings) in commands() {
        let ran = run(&env, &command, &["--help"], &[]);
        let variables = settings.into_iter().map(|(_, variable, _)| variable);
        let secrets: Vec<_> = variables
            .filter(|variable| !variable.is_empty())
            .map(|variable| (variable, "s3cr3t"))
            .collect();
        let with_secrets = run(&env, &command, &["--help"], &secrets);
        assert_eq!(with_secrets.stdout, ran.stdout);
    }
}

#[test]
fn commands_that_create_no_database_do_not_claim_to() {
    let env = TestEnvironment::new();
    for (command, more) in [
        (vec!["order-service", "account"], vec![]),
        (vec!["order-service", "restart"], vec!["a1"]),
        (vec!["order-service", "fail"], vec!["a1"]),
        (
            vec!["order-service", "prune"],
            vec!["--settled-before", "1d"],
        ),
        (vec!["order-service", "explain"], vec!["a1"]),
        (vec!["order-service", "check"], vec![]),
        (vec!["order-service", "backup"], vec!["copy.db"]),
        (vec!["order-reconciler", "health"], vec![]),
    ] {
        let help = run(&env, &command, &["--help"], &[]).stdout;
        assert!(!help.contains("created if it is not there"), "{command:?}");
        assert!(help.contains("it has to be there"), "{command:?}");
        let ran = run(&env, &command, &more, &[]);
        assert!(matches!(ran.code, Some(1 | 3)), "{ran:?}");
        let line = ran.stderr.strip_suffix('\n').unwrap();
        assert!(
            line.starts_with("error: ") && !line.contains('\n'),
            "{ran:?}"
        );
        assert!(
            line.contains("there is no such database; name the one"),
            "{ran:?}"
        );
    }
    assert!(!env.database().exists());
    let help = run(&env, &["order-service", "account"], &["--help"], &[]).stdout;
    let codes = help.split_once("Exit codes:").unwrap().1;
    for code in ["0", "1", "2", "3", "4", "6"] {
        assert!(codes.contains(code), "{code}: {help}");
    }
}

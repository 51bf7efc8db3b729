//! Flags, variables and defaults, and the messages about invalid values.

use std::collections::BTreeSet;

use super::*;

/// A setting, an invalid value, and a part of the message about it.
const WRONG: &[(Setting, &str, &str)] = &[
    (DATABASE, ":memory:", "write the path of a file"),
    (DATABASE, "sqlite::memory:", "write the path of a file"),
    (DATABASE, "sqlite:", "sqlite:FILE"),
    #[cfg(not(feature = "postgres"))]
    (DATABASE, "postgres://db/orders", "--features postgres"),
    #[cfg(feature = "postgres")]
    (DATABASE, "postgres://db", "names no database"),
    (DATABASE, "mysql://db/orders", "sqlite:FILE"),
    (DATABASE, "sqlite:o.db?mode=ro", "sqlite:FILE"),
    (URL, "127.0.0.1:8000", "http://"),
    (URL, "ftp://a.example", "http://"),
    (URL, "http://user:pw@a.example", "ORDER_PROCESS_TOKEN"),
    (URL, "http://a.example?x=1", "up to /order_process"),
    (RECONCILE[0], "* * * * *", "*/5 * * * * *"),
    (RECONCILE[0], "61 * * * * *", "*/5 * * * * *"),
    (RECONCILE[0], "0 0 0 30 2 *", "*/5 * * * * *"),
    (
        RECONCILE[0],
        "@every 5s",
        "'@every 5s' for '--schedule <CRON>': Invalid",
    ),
    (RECONCILE[0], "me@db:5", "(not shown, as it may hold a"),
    (
        URL,
        "me@corp:secret@db/orders",
        "(not shown, as it may hold a",
    ),
    (
        URL,
        "http://a.example?token=secret",
        "(not shown, as it may hold a",
    ),
    (
        RECONCILE[0],
        "* * * * * * 2020",
        "its last occurrence has passed",
    ),
    (RECONCILE[1], "fast", "0 for no ceiling"),
    (RECONCILE[1], "inf", "0 for no ceiling"),
    (RECONCILE[2], "0", "from 1 to 1024"),
    (RECONCILE[2], "1025", "from 1 to 1024"),
    (RECONCILE[3], "5", "5s"),
    (RECONCILE[3], "0s", "1ms to 10m"),
    (RECONCILE[3], "11m", "1ms to 10m"),
    (RECONCILE[4], "pray", "hold"),
    (RECONCILE[5], "0", "from 1 to"),
    (LOG, "xml", "json"),
];

/// Checks that a command refuses a value, by its flag and by its variable.
fn check_refused(command: &[&str], setting: Setting, value: &str, hint: &str) -> Vec<String> {
    let env = TestEnvironment::new();
    let mut wrong = Vec::new();
    let by_flag = run(&env, command, &[setting.0, value], &[]);
    let by_variable = run(&env, command, &[], &[(setting.1, value)]);
    for (by, ran) in [(setting.0, by_flag), (setting.1, by_variable)] {
        let message: Vec<_> = ran
            .stderr
            .lines()
            .filter(|line| !line.is_empty() && !line.contains("--help"))
            .collect();
        // The possible values and the variable are on lines of their own.
        let is_short = matches!(message.len(), 1..=3);
        let is_secret = [":secret", "=secret"]
            .iter()
            .any(|part| ran.stderr.contains(part));
        if ran.code != Some(2) || !ran.stderr.contains(hint) || !is_short || is_secret {
            wrong.push(format!(
                "{command:?}, {by} {value:?} without {hint:?}: {ran:?}"
            ));
        }
    }
    let left = fs::read_dir(env.path(".")).unwrap().count();
    // Only the logs of the two runs.
    if left != 2 {
        wrong.push(format!("{command:?}, {value:?}: something was begun"));
    }
    wrong
}

#[test]
fn a_wrong_value_ends_with_2_and_says_what_would_be_right() {
    let mut wrong = Vec::new();
    for (setting, value, hint) in WRONG {
        wrong.extend(check_refused(&["order-reconciler"], *setting, value, hint));
    }
    for (command, value) in [
        ("serve", "8080"),
        ("serve", "localhost:8080"),
        ("serve", "127.0.0.1"),
        ("serve", "127.0.0.1:99999"),
        ("api", "8080"),
        ("dev", "8080"),
        ("simulator", "8080"),
        ("health", "8080"),
    ] {
        let command = ["order-service", command];
        wrong.extend(check_refused(&command, LISTEN, value, "127.0.0.1:8080"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_word_instead_of_a_whole_number_is_answered_with_what_would_be_right() {
    let mut wrong = Vec::new();
    let simulated = commands()
        .into_iter()
        .find(|(command, _)| command.contains(&"simulator"));
    let (simulator, settings) = simulated.unwrap();
    for (command, setting) in [
        (&["order-reconciler"][..], RECONCILE[2]),
        (&["order-reconciler"], RECONCILE[5]),
        (&simulator, settings[0]),
        (&simulator, settings[1]),
    ] {
        // "invalid digit found in string" alone would not help an operator.
        let env = TestEnvironment::new();
        let ran = run(&env, command, &[setting.0, "many"], &[]).assert_code(2);
        if ran.stderr.contains("invalid digit") {
            wrong.push(ran.stderr);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_flag_of_the_simulator_is_refused_by_commands_without_one() {
    const URL: (&str, &str) = ("ORDER_PROCESS_URL", "http://127.0.0.1:9");
    let env = TestEnvironment::new();
    let url = ["--order-process-url", URL.1];
    for flag in [
        ["--preset", "crashing"],
        ["--preset", "calm"],
        ["--seed", "1"],
        ["--control", "127.0.0.1:0"],
        ["--simulator-listen", "127.0.0.1:0"],
        ["--max-order-process-duration", "1"],
    ] {
        let by_flag = env.run("order-service", &[&["dev"][..], &url, &flag].concat());
        let by_variable = env.run_with("order-service", &[&["dev"][..], &flag].concat(), &[URL]);
        for ran in [by_flag, by_variable] {
            assert_eq!(ran.code, Some(2), "{ran:?}");
            let message = ran.stderr.lines().next().unwrap();
            assert!(message.contains(flag[0]), "{ran:?}");
            assert!(message.contains("--order-process-url"), "{ran:?}");
            assert!(message.contains("leave one of the two out"), "{ran:?}");
        }
    }
    // Variables are refused too; the message then names both.
    let preset = ("SIMULATOR_PRESET", "flaky");
    let ran = env
        .run_with("order-service", &["dev"], &[URL, preset])
        .assert_code(2);
    assert!(ran.stderr.contains(URL.0), "{ran:?}");
    assert!(ran.stderr.contains(preset.0), "{ran:?}");
    // Variables of the simulator program are ignored.
    let variables = [
        URL,
        ("SIMULATOR_SEED", "1"),
        ("SIMULATOR_CONTROL", "127.0.0.1:0"),
        ("SIMULATOR_LISTEN_ADDR", "127.0.0.1:0"),
        ("MAX_ORDER_PROCESS_DURATION", "1"),
    ];
    let arguments = ["dev", "--listen", "127.0.0.1:0"];
    let mut program = env.start_with("order-service", &arguments, &variables, false);
    program.stdout_until("Ctrl-C");
}

#[test]
fn a_negative_number_is_answered_with_what_would_be_right() {
    let env = TestEnvironment::new();
    let simulator = &["order-service", "simulator"][..];
    for (command, flag, value, hint) in [
        (
            &["order-reconciler"][..],
            RECONCILE[1].0,
            "-1",
            "0 for no ceiling",
        ),
        (
            &["order-reconciler"],
            RECONCILE[2].0,
            "-1",
            "from 1 to 1024",
        ),
        (&["order-reconciler"], RECONCILE[3].0, "-1s", "with a unit"),
        (&["order-reconciler"], RECONCILE[5].0, "-1", "from 1 to"),
        (
            &["order-service", "prune"],
            "--settled-before",
            "-90d",
            "with a unit",
        ),
        (simulator, "--max-order-process-duration", "-1", "from 0 to"),
        (simulator, "--seed", "-1", "from 0 to"),
        (
            &["order-service", "dev"],
            "--max-order-process-duration",
            "-1",
            "from 0 to",
        ),
        (&["order-service", "dev"], "--seed", "-1", "from 0 to"),
    ] {
        let joined = format!("{flag}={value}");
        for arguments in [&[&*joined][..], &[flag, value]] {
            let ran = run(&env, command, arguments, &[]).assert_code(2);
            assert!(ran.stderr.contains(hint), "{ran:?}");
        }
    }
}

#[test]
fn a_flag_without_a_value_does_not_take_the_next_flag_for_it() {
    let env = TestEnvironment::new();
    for arguments in [
        &[
            "order-reconciler",
            "--request-timeout",
            "--database-url",
            "x",
        ][..],
        &["order-reconciler", "--start-rate", "--database-url", "x"],
        &["order-service", "prune", "--settled-before", "--dry-run"],
    ] {
        let ran = env.run(arguments[0], &arguments[1..]).assert_code(2);
        assert!(ran.stderr.contains("a value is required"), "{ran:?}");
    }
    // What follows `--` is no flag.
    let ids = ["restart", "--database-url", "o.db", "--", "--a", "-1"];
    let ran = env.run("order-service", &ids);
    assert!(!ran.stderr.contains("--a=-1"), "{ran:?}");
}

#[test]
fn a_wrong_variable_is_named_in_the_message() {
    let env = TestEnvironment::new();
    let ran = env.run_with("order-reconciler", &[], &[("START_RATE", "fast")]);
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.stderr.contains("START_RATE"),
        "the variable is not named: {}",
        ran.stderr
    );
}

#[test]
fn every_setting_can_be_given_by_its_variable_and_a_flag_wins() {
    let env = TestEnvironment::new();
    let variables = [
        ("DATABASE_URL", "sqlite:by-variable.db"),
        ("LISTEN_ADDR", "127.0.0.1:0"),
        ("ORDER_PROCESS_URL", "http://127.0.0.1:9/by-variable"),
        ("RECONCILE_SCHEDULE", "*/2 * * * * *"),
        ("START_RATE", "0.5"),
        ("MAX_IN_FLIGHT", "1"),
        ("REQUEST_TIMEOUT", "500ms"),
        ("LOST_PROCESS", "hold"),
        ("MAX_STARTS", "1"),
        ("LOG_FORMAT", "json"),
    ];
    let program = env.start_with("order-service", &["serve"], &variables, true);
    program.logs("became leader");
    let log = program.logged();
    assert!(env.path("by-variable.db").exists());
    assert!(log.contains("http://127.0.0.1:9/by-variable/order_process"));
    assert!(log.starts_with('{'), "{log}");
    assert_eq!(program.stop(), Some(0));
    let arguments = ["--database-url", "by-flag.db", "--log-format", "text"];
    let ran = env
        .run_with(
            "order-reconciler",
            &[&["--once"], &arguments[..]].concat(),
            &variables,
        )
        .assert_code(0);
    assert!(env.path("by-flag.db").exists());
    assert!(!ran.stderr.starts_with('{'), "{ran:?}");
    let variables = [
        ("LISTEN_ADDR", "127.0.0.1:0"),
        ("MAX_ORDER_PROCESS_DURATION", "7"),
        ("SIMULATOR_SEED", "77"),
        ("SIMULATOR_LOG", "record.log"),
        ("SIMULATOR_PRESET", "outage"),
        ("SIMULATOR_CONTROL", "127.0.0.1:0"),
        ("SIMULATOR_LISTEN_ADDR", "127.0.0.1:0"),
    ];
    let mut program = env.start_with("order-service", &["simulator"], &variables, true);
    program.logs("seed=77 max_duration_secs=7");
    assert!(env.path("record.log").exists());
    program.signal("TERM");
    let stdout = program.rest_of_stdout();
    assert!(
        stdout.starts_with("control on http://127.0.0.1:"),
        "{stdout}"
    );
}

#[test]
fn the_log_format_is_accepted_before_or_after_every_command() {
    let env = TestEnvironment::new();
    let missing = ["--database-url", "no/such.db"];
    let served = [&["--listen", "127.0.0.1:0"][..], &missing].concat();
    for (name, command, rest) in [
        ("order-service", "serve", &served[..]),
        ("order-service", "check", &missing),
        ("order-service", "health", &["--listen", "127.0.0.1:0"]),
        ("order-reconciler", "health", &missing),
    ] {
        let json = ["--log-format", "json"];
        for arguments in [
            [&json[..], &[command], rest].concat(),
            [&["--log-format=json", command], rest].concat(),
            [&[command], rest, &json].concat(),
        ] {
            let ran = env.run(name, &arguments);
            assert!(ran.code.is_some_and(|code| code > 0), "{ran:?}");
            let line: Value = serde_json::from_str(&ran.stderr)
                .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {ran:?}"));
            assert_eq!(line["level"], "error");
        }
    }
    // Without a command it is a flag of the default command.
    let arguments = [&["--log-format", "json"], &served[..]].concat();
    env.run("order-service", &arguments).assert_code(3);
    let ran = env
        .run_with("order-service", &["health"], &[("LOG_FORMAT", "xml")])
        .assert_code(2);
    assert!(ran.stderr.contains("variable LOG_FORMAT"), "{ran:?}");
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let env = TestEnvironment::new();
    let settings = commands().into_iter().flat_map(|(_, settings)| settings);
    let variables: BTreeSet<_> = settings.map(|(_, variable, _)| variable).collect();
    for variable in variables
        .into_iter()
        .filter(|variable| !variable.is_empty())
    {
        let ran = env.run_with("order-reconciler", &["--once"], &[(variable, "")]);
        assert_eq!(ran.code, Some(0), "{variable}: {ran:?}");
    }
    assert!(env.database().exists());
    for variable in ["ORDER_PROCESS_TOKEN", "RUST_LOG"] {
        let ran = env.run_with("order-reconciler", &["--once"], &[(variable, "")]);
        assert_eq!(ran.code, Some(0), "{variable}: {ran:?}");
        assert!(ran.stderr.contains("INFO"), "{ran:?}");
    }
    let variables = [
        ("MAX_ORDER_PROCESS_DURATION", ""),
        ("SIMULATOR_SEED", ""),
        ("SIMULATOR_LOG", ""),
        ("SIMULATOR_PRESET", ""),
        ("SIMULATOR_CONTROL", ""),
        ("LOG_FORMAT", ""),
    ];
    let arguments = ["simulator", "--listen", "127.0.0.1:0"];
    let program = env.start_with("order-service", &arguments, &variables, true);
    program.logs("max_duration_secs=600");
    assert_eq!(program.stop(), Some(0));
    // The default port is tried, whether or not it is free.
    for (command, port) in [("api", "8080"), ("simulator", "8000")] {
        let mut program =
            env.start_with("order-service", &[command], &[("LISTEN_ADDR", "")], false);
        let address = format!("127.0.0.1:{port}");
        let line = program.line_of_stdout();
        program.signal("TERM");
        let output = line + &program.rest_of_stdout() + &program.logged();
        assert!(output.contains(&address), "{output}");
    }
}

#[test]
fn a_control_character_in_a_setting_is_named_and_the_setting_too() {
    let env = TestEnvironment::new();
    let mut commands = commands();
    let database = ["restart", "fail", "prune", "account"];
    commands.extend(database.map(|name| (vec!["order-service", name], vec![DATABASE])));
    let mut variables = Vec::new();
    for (command, mut settings) in commands {
        settings.retain(|(_, variable, _)| !variable.is_empty());
        let wrong: Vec<_> = settings
            .iter()
            .map(|(_, variable, _)| (*variable, "\r"))
            .collect();
        run(&env, &command, &["--help"], &wrong).assert_code(0);
        variables.extend(
            settings
                .into_iter()
                .map(|setting| (command.clone(), setting)),
        );
    }
    for (command, (flag, variable, default)) in variables {
        let value = format!("{}\r", default.trim_matches('"'));
        let by_variable = run(&env, &command, &[], &[(variable, &value)]);
        let by_flag = run(&env, &command, &[flag, &value], &[]);
        let joined = format!("{flag}={value}");
        let by_one_word = run(&env, &command, &[&joined], &[]);
        for (name, ran) in [
            (variable, by_variable),
            (flag, by_flag),
            (flag, by_one_word),
        ] {
            assert_eq!(ran.code, Some(2), "{command:?}: {ran:?}");
            assert_eq!(ran.stdout, "", "{ran:?}");
            let message = ran.stderr.lines().next().unwrap_or_default();
            let says = format!("{name} has the control character '\\r', a carriage return");
            assert!(
                message.starts_with("error: ") && message.contains(&says),
                "{ran:?}"
            );
            assert!(!ran.stderr.contains('\r'), "{ran:?}");
        }
    }
    let left = fs::read_dir(env.path(".")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        left.iter()
            .all(|name| name.to_string_lossy().ends_with(".log")),
        "no file was created: {left:?}"
    );
    let token = [("ORDER_PROCESS_TOKEN", "s3cr3t\r")];
    let ran = env
        .run_with("order-reconciler", &["--once"], &token)
        .assert_code(2);
    assert!(ran.stderr.contains("carriage return"), "{ran:?}");
    assert!(!ran.stderr.contains("s3cr3t"), "{ran:?}");
}

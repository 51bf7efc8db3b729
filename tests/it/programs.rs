//! The programs as an operator meets them: flags, variables, defaults, exit codes, signals, and
//! what is printed where. What becomes of orders is in `life`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::world::{Client, PATIENCE, Program, Ran, World, is_settled};

/// A flag, its environment variable, its default; "" stands for none.
type Setting = (&'static str, &'static str, &'static str);

const DATABASE: Setting = ("--database-url", "DATABASE_URL", "sqlite:orders.db");
const LISTEN: Setting = ("--listen", "LISTEN_ADDR", "127.0.0.1:8080");
const URL: Setting = (
    "--order-process-url",
    "ORDER_PROCESS_URL",
    "http://127.0.0.1:8000",
);
const LOG: Setting = ("--log-format", "LOG_FORMAT", "text");
const RECONCILE: [Setting; 6] = [
    ("--schedule", "RECONCILE_SCHEDULE", "\"* * * * * *\""),
    ("--start-rate", "START_RATE", "50"),
    ("--max-in-flight", "MAX_IN_FLIGHT", "8"),
    ("--request-timeout", "REQUEST_TIMEOUT", "5s"),
    ("--lost-process", "LOST_PROCESS", "restart"),
    ("--max-starts", "MAX_STARTS", "5"),
];

/// Each command and all its settings.
fn commands() -> Vec<(Vec<&'static str>, Vec<Setting>)> {
    let simulated = |longest| {
        [
            (
                "--max-order-process-duration",
                "MAX_ORDER_PROCESS_DURATION",
                longest,
            ),
            // Not a value but words: it is drawn.
            ("--seed", "SIMULATOR_SEED", ""),
            ("--preset", "SIMULATOR_PRESET", "calm"),
            ("--control", "SIMULATOR_CONTROL", ""),
        ]
    };
    let with = |settings: &[Setting]| [settings, &RECONCILE].concat();
    vec![
        (
            vec!["order-service", "serve"],
            with(&[DATABASE, LISTEN, URL, LOG]),
        ),
        (
            vec!["order-service", "dev"],
            [
                with(&[LISTEN, (URL.0, URL.1, ""), LOG]),
                simulated("10").to_vec(),
            ]
            .concat(),
        ),
        (vec!["order-service", "api"], vec![DATABASE, LISTEN, LOG]),
        (
            vec!["order-service", "simulator"],
            [
                simulated("600").to_vec(),
                vec![
                    (LISTEN.0, LISTEN.1, "127.0.0.1:8000"),
                    ("--log", "SIMULATOR_LOG", ""),
                    LOG,
                ],
            ]
            .concat(),
        ),
        (
            vec!["order-service", "backup"],
            vec![DATABASE, LOG, ("--replace", "", "")],
        ),
        (vec!["order-service", "check"], vec![DATABASE, LOG]),
        (vec!["order-service", "explain"], vec![DATABASE, LOG]),
        (vec!["order-service", "health"], vec![LISTEN]),
        (
            vec!["order-reconciler"],
            with(&[DATABASE, URL, LOG, ("--once", "", "")]),
        ),
        (vec!["order-reconciler", "health"], vec![DATABASE]),
    ]
}

/// The flags in a help text, each with its variable and default.
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

fn run(world: &World, command: &[&str], more: &[&str], variables: &[(&str, &str)]) -> Ran {
    world.run(command[0], &[&command[1..], more].concat(), variables)
}

#[test]
fn the_help_of_every_command_names_each_setting_with_its_variable_and_default_and_no_other() {
    let world = World::new();
    for (command, settings) in commands() {
        let ran = run(&world, &command, &["--help"], &[]);
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
    let world = World::new();
    let help = |arguments: &[&str]| world.run("order-reconciler", arguments, &[]).stdout;
    assert_eq!(help(&["--help"]), help(&["run", "--help"]));
    let help = world.run("order-service", &["--help"], &[]).stdout;
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
}

#[test]
fn the_help_of_every_command_that_asks_the_upstream_names_the_token_and_the_log_levels() {
    let world = World::new();
    let mut silent = Vec::new();
    for (command, settings) in commands() {
        let help = run(&world, &command, &["--help"], &[]).stdout;
        for (setting, variable) in [(URL, "ORDER_PROCESS_TOKEN"), (LOG, "RUST_LOG")] {
            if settings.iter().any(|(flag, ..)| *flag == setting.0) && !help.contains(variable) {
                silent.push((command.clone(), variable));
            }
        }
    }
    assert_eq!(silent, []);
}

/// A setting's flag and variable, a wrong value, and what the message must say instead.
const WRONG: &[(Setting, &str, &str)] = &[
    (DATABASE, ":memory:", "write the path of a file"),
    (DATABASE, "sqlite::memory:", "write the path of a file"),
    (DATABASE, "sqlite:", "sqlite:FILE"),
    (DATABASE, "postgres://db/orders", "sqlite:FILE"),
    (DATABASE, "mysql://db/orders", "sqlite:FILE"),
    (DATABASE, "sqlite:o.db?mode=ro", "sqlite:FILE"),
    (URL, "127.0.0.1:8000", "http://"),
    (URL, "ftp://a.example", "http://"),
    (URL, "http://user:pw@a.example", "ORDER_PROCESS_TOKEN"),
    (URL, "http://a.example?x=1", "/order_process is appended"),
    (RECONCILE[0], "* * * * *", "*/5 * * * * *"),
    (RECONCILE[0], "61 * * * * *", "*/5 * * * * *"),
    (RECONCILE[0], "0 0 0 30 2 *", "*/5 * * * * *"),
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
    let world = World::new();
    let mut wrong = Vec::new();
    let by_flag = run(&world, command, &[setting.0, value], &[]);
    let by_variable = run(&world, command, &[], &[(setting.1, value)]);
    for (by, ran) in [(setting.0, by_flag), (setting.1, by_variable)] {
        let said: Vec<_> = ran
            .stderr
            .lines()
            .filter(|line| !line.is_empty() && !line.contains("--help"))
            .collect();
        // The values that are possible and the variable stand on lines of their own.
        let is_short = matches!(said.len(), 1..=3);
        if ran.code != Some(2) || !ran.stderr.contains(hint) || !is_short {
            wrong.push(format!(
                "{command:?}, {by} {value:?} without {hint:?}: {ran:?}"
            ));
        }
    }
    let left = fs::read_dir(world.path(".")).unwrap().count();
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
    for value in ["8080", "localhost:8080", "127.0.0.1", "127.0.0.1:99999"] {
        for command in ["serve", "api", "dev", "simulator", "health"] {
            let command = ["order-service", command];
            wrong.extend(check_refused(&command, LISTEN, value, "127.0.0.1:8080"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_word_where_a_whole_number_belongs_is_answered_with_what_would_be_right() {
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
        // A message that only says "invalid digit found in string" helps a programmer.
        let world = World::new();
        let ran = run(&world, command, &[setting.0, "many"], &[]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        if ran.stderr.contains("invalid digit") {
            wrong.push(ran.stderr);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_negative_rate_is_answered_with_what_would_be_right() {
    let world = World::new();
    for arguments in [&["--start-rate=-1"][..], &["--start-rate", "-1"]] {
        let ran = world.run("order-reconciler", arguments, &[]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.stderr.contains("0 for no ceiling"), "{ran:?}");
    }
}

#[test]
fn a_wrong_variable_is_named_in_the_message() {
    let world = World::new();
    let ran = world.run("order-reconciler", &[], &[("START_RATE", "fast")]);
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.stderr.contains("START_RATE"),
        "whoever set the variable does not find it here: {}",
        ran.stderr
    );
}

#[test]
fn an_unknown_command_or_flag_ends_with_2() {
    let world = World::new();
    for (command, _) in commands() {
        let ran = run(&world, &command, &["--frobnicate"], &[]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.stderr.contains("--frobnicate"), "{ran:?}");
    }
    for name in ["order-service", "order-reconciler"] {
        for word in ["frobnicate", "orders.db", ""] {
            let ran = world.run(name, &[word], &[]);
            assert_eq!(ran.code, Some(2), "{word:?}: {ran:?}");
        }
    }
    assert_eq!(
        world.run("order-service", &["serve", "extra"], &[]).code,
        Some(2)
    );
}

#[test]
fn without_a_command_the_service_serves() {
    for command in [&[][..], &["serve"]] {
        let world = World::new();
        let arguments = [command, &["--listen", "127.0.0.1:0"]].concat();
        let program = world.start("order-service", &arguments, true);
        assert!(world.database().exists(), "the default, where it runs");
        program.logs("this reconciler leads");
        program.logs("http://127.0.0.1:8000/order_process");
        assert_eq!(program.stop(), Some(0));
    }
    // Variables alone are enough as well.
    let world = World::new();
    let variables = [("LISTEN_ADDR", "127.0.0.1:0")];
    let program = world.start_with("order-service", &[], &variables, true);
    assert_eq!(program.stop(), Some(0));
}

#[test]
fn every_setting_can_be_given_by_its_variable_and_a_flag_wins() {
    let world = World::new();
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
    let program = world.start_with("order-service", &["serve"], &variables, true);
    program.logs("this reconciler leads");
    let log = program.logged();
    assert!(world.path("by-variable.db").exists());
    assert!(log.contains("http://127.0.0.1:9/by-variable/order_process"));
    assert!(log.starts_with('{'), "{log}");
    assert_eq!(program.stop(), Some(0));
    let arguments = ["--database-url", "by-flag.db", "--log-format", "text"];
    let ran = world.run(
        "order-reconciler",
        &[&["--once"], &arguments[..]].concat(),
        &variables,
    );
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(world.path("by-flag.db").exists());
    assert!(!ran.stderr.starts_with('{'), "{ran:?}");
    let variables = [
        ("LISTEN_ADDR", "127.0.0.1:0"),
        ("MAX_ORDER_PROCESS_DURATION", "7"),
        ("SIMULATOR_SEED", "77"),
        ("SIMULATOR_LOG", "record.log"),
        ("SIMULATOR_PRESET", "outage"),
        ("SIMULATOR_CONTROL", "127.0.0.1:0"),
    ];
    let mut program = world.start_with("order-service", &["simulator"], &variables, true);
    program.logs("seed 77, processes of less than 7 s");
    assert!(world.path("record.log").exists());
    program.signal("TERM");
    let said = program.rest_of_stdout();
    assert!(said.starts_with("control on http://127.0.0.1:"), "{said}");
}

#[test]
fn a_variable_that_is_set_to_nothing_counts_as_unset() {
    let world = World::new();
    for (flag, variable, _) in commands().into_iter().flat_map(|(_, settings)| settings) {
        let ran = world.run(
            "order-reconciler",
            &["--once"],
            &[(variable_or(variable), "")],
        );
        assert_eq!(ran.code, Some(0), "{flag}: {ran:?}");
    }
    assert!(world.database().exists());
    for variable in ["ORDER_PROCESS_TOKEN", "RUST_LOG"] {
        let ran = world.run("order-reconciler", &["--once"], &[(variable, "")]);
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
    let program = world.start_with("order-service", &arguments, &variables, true);
    program.logs("processes of less than 600 s");
    assert_eq!(program.stop(), Some(0));
    // Whether the default port is free or not, it is the one that is tried.
    for (command, port) in [("api", "8080"), ("simulator", "8000")] {
        let mut program =
            world.start_with("order-service", &[command], &[("LISTEN_ADDR", "")], false);
        let deadline = Instant::now() + PATIENCE;
        let address = format!("127.0.0.1:{port}");
        while !program.logged().contains(&address)
            && TcpStream::connect(&address).is_err()
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        program.signal("TERM");
        let said = program.rest_of_stdout() + &program.logged();
        assert!(said.contains(&address), "{said}");
    }
}

/// A name for a flag that has no variable.
fn variable_or(variable: &str) -> &str {
    if variable.is_empty() {
        "NO_VARIABLE"
    } else {
        variable
    }
}

#[test]
fn a_port_in_use_ends_with_1_and_one_line_that_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let world = World::new();
    for command in ["serve", "api", "dev", "simulator"] {
        let folder = world.path(command);
        fs::create_dir(&folder).unwrap();
        let variables = [("TMPDIR", folder.to_str().unwrap()), ("RUST_LOG", "warn")];
        let database = folder.join("o.db");
        let mut arguments = vec![command, "--listen", &address];
        if matches!(command, "serve" | "api") {
            arguments.extend(["--database-url", database.to_str().unwrap()]);
        }
        let ran = world.run("order-service", &arguments, &variables);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        let errors: Vec<_> = ran
            .stderr
            .lines()
            .filter(|line| line.contains("ERROR"))
            .collect();
        assert_eq!(errors.len(), 1, "{ran:?}");
        assert!(errors[0].contains(&address), "{ran:?}");
        assert!(errors[0].contains("in use"), "{ran:?}");
        assert!(errors[0].contains("--listen"), "{ran:?}");
        assert_eq!(ran.stdout, "", "nothing was served");
        if command == "dev" {
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "nothing is left");
        }
    }
}

#[test]
fn a_token_that_cannot_be_sent_ends_with_2_and_is_not_shown() {
    let world = World::new();
    for token in [
        "sentinel-7f3a token",
        "sentinel-7f3a\n",
        "sentinel-7f3aé",
        "\tsentinel-7f3a",
    ] {
        for command in [
            &["order-service", "serve", "--listen", "127.0.0.1:0"][..],
            &["order-service", "dev", "--listen", "127.0.0.1:0"],
            &["order-reconciler"],
            &["order-reconciler", "--once"],
        ] {
            let variables = [("ORDER_PROCESS_TOKEN", token), ("RUST_LOG", "trace")];
            let ran = run(&world, command, &[], &variables);
            assert_eq!(ran.code, Some(2), "{ran:?}");
            assert!(
                ran.stderr.contains("ORDER_PROCESS_TOKEN may hold"),
                "{ran:?}"
            );
            assert!(!ran.stderr.contains("sentinel"), "{ran:?}");
            assert!(!ran.stdout.contains("sentinel"), "{ran:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_in_no_log_at_any_level() {
    let world = World::new();
    let simulator = world.simulator(&["--max-order-process-duration", "1"]);
    let database = world.database();
    let arguments = [
        "--listen",
        "127.0.0.1:0",
        "--database-url",
        database.to_str().unwrap(),
        "--order-process-url",
        &simulator.url,
    ];
    let variables = [
        ("ORDER_PROCESS_TOKEN", "sentinel-7f3a"),
        ("RUST_LOG", "trace"),
    ];
    let mut service = world.start_with("order-service", &arguments, &variables, true);
    let client = Client::new();
    client.create(&service.url, "a1").await;
    client.settled(&service.url, 1).await;
    // Neither when the upstream is gone.
    simulator.kill();
    client.create(&service.url, "a2").await;
    service.logs("the upstream is down");
    service.signal("TERM");
    assert_eq!(service.wait().code(), Some(0));
    let log = service.logged();
    assert!(log.contains("TRACE"), "the levels are as asked");
    assert!(!log.contains("sentinel"), "the token is in the log");
    for name in ["order-service", "order-reconciler"] {
        let ran = world.run(name, &["--help"], &variables);
        assert!(!ran.stdout.contains("sentinel"));
    }
}

/// Expects that a database is refused, by every program that opens one, with one clear line.
fn check_unusable(world: &World, database: &str, says: &str) {
    let commands = [
        &["order-service", "api", "--listen", "127.0.0.1:0"][..],
        &["order-service", "serve", "--listen", "127.0.0.1:0"],
        &["order-reconciler"],
        &["order-reconciler", "--once"],
    ];
    std::thread::scope(|scope| {
        for command in commands {
            scope.spawn(move || {
                let ran = run(world, command, &["--database-url", database], &[]);
                assert_eq!(ran.code, Some(3), "{command:?} {database}: {ran:?}");
                assert_eq!(ran.stderr.lines().count(), 1, "one line: {ran:?}");
                assert!(ran.stderr.contains(says), "{says:?}: {ran:?}");
                let path = database.trim_start_matches("sqlite:");
                assert!(ran.stderr.contains(path), "{path}: {ran:?}");
                assert_eq!(ran.stdout, "", "nothing was served");
            });
        }
    });
}

#[test]
fn a_database_that_cannot_be_used_ends_with_3_and_one_line_that_says_why() {
    let world = World::new();
    let path = |name: &str| world.path(name).to_str().unwrap().to_owned();
    check_unusable(&world, &path("missing/orders.db"), "the folder");
    check_unusable(
        &world,
        &format!("sqlite:{}", path("missing/o.db")),
        "folder",
    );
    fs::create_dir(world.path("folder")).unwrap();
    check_unusable(&world, &path("folder"), "is not a file");
    fs::write(world.path("plain"), "hello").unwrap();
    check_unusable(&world, &path("plain/orders.db"), "not a directory");
    check_unusable(&world, &path("plain"), "is not an SQLite database");
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
        .take(9_000)
        .collect();
    fs::write(world.path("noise"), &noise).unwrap();
    check_unusable(&world, &path("noise"), "is not an SQLite database");
    assert_eq!(
        fs::read(world.path("noise")).unwrap(),
        noise,
        "left as it was"
    );
    let foreign = Connection::open(world.path("foreign.db")).unwrap();
    foreign
        .execute_batch(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY); INSERT INTO orders VALUES (1)",
        )
        .unwrap();
    drop(foreign);
    let before = fs::read(world.path("foreign.db")).unwrap();
    check_unusable(&world, &path("foreign.db"), "of another program");
    assert_eq!(fs::read(world.path("foreign.db")).unwrap(), before);
    let newer = world.path("newer.db");
    create(&world, &newer);
    let db = Connection::open(&newer).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    check_unusable(&world, &path("newer.db"), "newer version");
    // Nobody may write there, not even root.
    check_unusable(&world, "/proc/orders.db", "cannot be written");
}

#[test]
fn a_file_where_the_folder_should_be_is_told_as_a_wrong_folder() {
    let world = World::new();
    fs::write(world.path("plain"), "hello").unwrap();
    let database = world.path("plain/orders.db");
    let arguments = ["--database-url", database.to_str().unwrap()];
    let ran = world.run("order-reconciler", &arguments, &[]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(
        !ran.stderr.contains("-write"),
        "a lock file is not it: {ran:?}"
    );
    assert!(ran.stderr.contains("the folder"), "{ran:?}");
}

#[test]
fn a_cause_is_told_once() {
    let world = World::new();
    let missing = world.path("missing/orders.db");
    for database in [missing.to_str().unwrap(), "/proc/orders.db"] {
        let ran = world.run("order-reconciler", &["--database-url", database], &[]);
        let told = ran.stderr.matches("No such file or directory").count();
        assert_eq!(told, 1, "{}", ran.stderr);
    }
}

/// Has a program make a database.
fn create(world: &World, path: &Path) {
    let arguments = ["--once", "--database-url", path.to_str().unwrap()];
    let ran = world.run("order-reconciler", &arguments, &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[test]
fn a_database_that_is_locked_for_five_seconds_ends_with_3() {
    let world = World::new();
    let path = |name: &str| world.path(name).to_str().unwrap().to_owned();
    // By someone who knows nothing of our locks: on a new database, and on one of ours.
    let new = Connection::open(world.path("new.db")).unwrap();
    new.execute_batch("BEGIN EXCLUSIVE").unwrap();
    create(&world, &world.path("ours.db"));
    let ours = Connection::open(world.path("ours.db")).unwrap();
    ours.execute_batch("BEGIN EXCLUSIVE").unwrap();
    // By one of ours that hangs.
    create(&world, &world.path("beside.db"));
    let lock = fs::File::create(world.path("beside.db-write")).unwrap();
    lock.lock().unwrap();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for name in ["new.db", "ours.db", "beside.db"] {
            let (world, path) = (&world, path(name));
            scope.spawn(move || {
                let ran = world.run("order-reconciler", &["--database-url", &path], &[]);
                assert_eq!(ran.code, Some(3), "{name}: {ran:?}");
                assert_eq!(ran.stderr.lines().count(), 1, "one line: {ran:?}");
                assert!(
                    ran.stderr.contains("is locked by another program"),
                    "{ran:?}"
                );
                assert!(ran.stderr.contains(&path), "{ran:?}");
                let took = begun.elapsed();
                assert!(took >= Duration::from_secs(5), "{name}: it waits: {took:?}");
                assert!(took < Duration::from_secs(9), "{name}: {took:?}");
            });
        }
        // A lock that is let go in time is waited for.
        let waits = world.path("waits.db");
        let world = &world;
        scope.spawn(move || {
            let db = Connection::open(&waits).unwrap();
            db.execute_batch("BEGIN EXCLUSIVE").unwrap();
            let mut program = world.start(
                "order-reconciler",
                &["--once", "--database-url", waits.to_str().unwrap()],
                false,
            );
            std::thread::sleep(Duration::from_millis(1_500));
            db.execute_batch("ROLLBACK").unwrap();
            assert_eq!(program.wait().code(), Some(0), "{}", program.logged());
        });
    });
}

#[test]
fn a_created_database_is_told_with_a_warning_and_an_existing_one_as_information() {
    for (name, arguments) in [
        ("order-reconciler", &["--once", "--database-url"][..]),
        (
            "order-service",
            &["api", "--listen", "127.0.0.1:0", "--database-url"],
        ),
        (
            "order-service",
            &["serve", "--listen", "127.0.0.1:0", "--database-url"],
        ),
    ] {
        let world = World::new();
        let absolute = fs::canonicalize(world.path(".")).unwrap().join("o.db");
        for (level, url) in [
            ("WARN", "sqlite:o.db"),
            ("INFO", "o.db"),
            ("INFO", "./o.db"),
        ] {
            let program = world.start(name, &[arguments, &[url]].concat(), false);
            program.logs("o.db");
            program.signal("TERM");
            let log = program.logged();
            let line = log.lines().find(|line| line.contains("o.db")).unwrap();
            assert!(line.contains(absolute.to_str().unwrap()), "{line}");
            assert!(line.contains(level), "{url}: {line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_json_is_one_object_a_line() {
    let world = World::new();
    let simulator = world.simulator(&["--max-order-process-duration", "1"]);
    let service = world.serve(&simulator.url, &["--log-format", "json"]);
    let client = Client::new();
    client.create(&service.url, "a\n1\"").await;
    client.create(&service.url, "a1").await;
    client.settled(&service.url, 1).await;
    simulator.kill();
    client.create(&service.url, "a2").await;
    service.logs("the upstream is down");
    service.signal("TERM");
    service.logs("a second signal");
    let log = service.logged();
    assert!(log.lines().count() >= 4, "{log}");
    for line in log.lines() {
        let value: Value = serde_json::from_str(line).expect(line);
        for member in ["at", "level", "origin", "message"] {
            assert!(value[member].is_string(), "{member}: {line}");
        }
    }
    // So is the one line of a failure.
    let arguments = ["--log-format", "json", "--database-url", "no/such.db"];
    let ran = world.run("order-reconciler", &arguments, &[]);
    let value: Value = serde_json::from_str(&ran.stderr).expect("one object");
    assert_eq!(value["level"], "error");
}

#[test]
fn the_levels_of_the_log_are_as_asked() {
    let world = World::new();
    for (levels, has, has_not) in [
        ("error", None, Some("created the database")),
        (
            "order_service=warn",
            Some("created the database"),
            Some("INFO"),
        ),
        ("info", Some("INFO"), Some("DEBUG")),
        ("off", None, Some("database")),
    ] {
        let database = format!("{levels}.db");
        let arguments = ["--once", "--database-url", &database];
        let ran = world.run("order-reconciler", &arguments, &[("RUST_LOG", levels)]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(
            has.is_none_or(|text| ran.stderr.contains(text)),
            "{levels}: {ran:?}"
        );
        assert!(
            has_not.is_none_or(|text| !ran.stderr.contains(text)),
            "{levels}: {ran:?}"
        );
    }
}

#[test]
fn a_free_port_is_taken_and_printed() {
    let world = World::new();
    for program in [
        world.simulator(&[]),
        world.api(&[]),
        world.serve("http://127.0.0.1:9", &[]),
    ] {
        let port = program.address().strip_prefix("127.0.0.1:").unwrap();
        assert_ne!(port.parse::<u16>().unwrap(), 0);
        TcpStream::connect(program.address()).unwrap();
    }
}

/// What `order-service health` says of an address.
fn api_health(world: &World, address: &str) -> Ran {
    world.run("order-service", &["health", "--listen", address], &[])
}

#[test]
fn the_health_of_the_service_is_0_when_it_serves_and_1_when_nothing_useful_answers() {
    let world = World::new();
    let api = world.api(&[]);
    let port = api.address().rsplit(':').next().unwrap();
    for address in [api.address(), &format!("0.0.0.0:{port}")] {
        let ran = api_health(&world, address);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let ran = world.run("order-service", &["health"], &[("LISTEN_ADDR", address)]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    // The upstream is down, and that does not make the service unhealthy.
    let service = world.serve("http://127.0.0.1:9", &[]);
    assert_eq!(api_health(&world, service.address()).code, Some(0));
    let address = service.address().to_owned();
    assert_eq!(service.stop(), Some(0));
    let ran = api_health(&world, &address);
    assert_eq!(ran.code, Some(1), "nothing listens: {ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    // The database has gone.
    fs::rename(world.database(), world.path("elsewhere.db")).unwrap();
    // What was found is believed for a moment.
    let deadline = Instant::now() + Duration::from_secs(5);
    while api_health(&world, api.address()).code == Some(0) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
    let ran = api_health(&world, api.address());
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    fs::rename(world.path("elsewhere.db"), world.database()).unwrap();
    // Something listens that is not the service, or hangs.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let begun = Instant::now();
    let ran = api_health(&world, &silent.local_addr().unwrap().to_string());
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(begun.elapsed() < Duration::from_secs(8));
    let simulator = world.simulator(&[]);
    let ran = api_health(&world, simulator.address());
    assert_eq!(ran.code, Some(1), "{ran:?}");
}

fn reconciler_health(world: &World) -> Ran {
    let database = world.database();
    let arguments = ["health", "--database-url", database.to_str().unwrap()];
    world.run("order-reconciler", &arguments, &[])
}

#[test]
fn the_health_of_the_reconciler_is_0_after_a_pass_and_1_before_one_or_long_after_it_was_killed() {
    let world = World::new();
    let api = world.api(&[]);
    let ran = reconciler_health(&world);
    assert_eq!(ran.code, Some(1), "no pass yet: {ran:?}");
    let reconciler = world.reconciler("http://127.0.0.1:9", &[]);
    let deadline = Instant::now() + PATIENCE;
    while reconciler_health(&world).code != Some(0) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let ran = reconciler_health(&world);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let variables = [(
        "DATABASE_URL",
        world.database().to_str().unwrap().to_owned(),
    )];
    let ran = world.run(
        "order-reconciler",
        &["health"],
        &[(variables[0].0, &variables[0].1)],
    );
    assert_eq!(ran.code, Some(0), "{ran:?}");
    drop(reconciler);
    let ran = reconciler_health(&world);
    assert_eq!(ran.code, Some(0), "it may be slow: {ran:?}");
    let db = Connection::open(world.database()).unwrap();
    db.execute_batch(
        "UPDATE heartbeat SET last_pass_at = last_pass_at - 3600000, \
         next_pass_at = next_pass_at - 3600000",
    )
    .unwrap();
    let ran = reconciler_health(&world);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    // The service's own health tells it, and stays what its API is.
    assert_eq!(api_health(&world, api.address()).code, Some(0));
}

#[test]
fn the_health_of_the_reconciler_is_1_as_soon_as_it_was_ended() {
    let world = World::new();
    let reconciler = world.reconciler("http://127.0.0.1:9", &[]);
    let deadline = Instant::now() + PATIENCE;
    while reconciler_health(&world).code != Some(0) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(reconciler.stop(), Some(0));
    let ran = reconciler_health(&world);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("no reconciler runs"), "{ran:?}");
}

#[test]
fn the_health_of_the_reconciler_is_1_when_there_is_no_database_and_none_is_made() {
    let world = World::new();
    let ran = reconciler_health(&world);
    assert!(!world.database().exists());
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    assert_eq!(ran.code, Some(1), "healthy or not, nothing else: {ran:?}");
}

/// A `dev` with its banner.
fn dev(world: &World, arguments: &[&str]) -> (Program, String) {
    let temporary = world.path("tmp");
    fs::create_dir_all(&temporary).unwrap();
    let variables = [("TMPDIR", temporary.to_str().unwrap())];
    let all = [&["dev", "--listen", "127.0.0.1:0"], arguments].concat();
    let mut program = world.start_with("order-service", &all, &variables, false);
    let banner = program.stdout_until("Ctrl-C");
    (program, banner)
}

/// What stands behind a name in the banner.
fn told<'a>(banner: &'a str, name: &str) -> &'a str {
    banner
        .lines()
        .find_map(|line| line.trim().strip_prefix(name))
        .unwrap_or_else(|| panic!("no {name} in {banner}"))
        .trim()
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_is_ready_at_once_and_its_commands_work_when_pasted() {
    let world = World::new();
    let begun = Instant::now();
    let (mut program, banner) = dev(&world, &["--max-order-process-duration", "2"]);
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(told(&banner, "pace"), "50 starts/s at most");
    let api = told(&banner, "API").to_owned();
    let (data, _) = told(&banner, "data").split_once(',').unwrap();
    assert!(Path::new(data).starts_with(fs::canonicalize(world.path("tmp")).unwrap()));
    assert!(Path::new(data).exists());
    let simulator = told(&banner, "simulator");
    let (simulator, _) = simulator.split_once("/order_process").unwrap();
    let client = Client::new();
    let listed = client.get(format!("{simulator}/order_process")).await;
    assert_eq!(
        (listed.status, &*listed.body.trim().to_owned()),
        (200, "[]")
    );
    let commands: Vec<&str> = banner
        .lines()
        .filter_map(|line| line.find("curl ").map(|at| &line[at..]))
        .collect();
    assert_eq!(commands.len(), 3, "{banner}");
    let columns: Vec<usize> = banner
        .lines()
        .filter_map(|line| line.find("curl ").or_else(|| line.find("http://")))
        .collect();
    assert!(
        columns.iter().all(|at| *at == columns[0]),
        "aligned: {banner}"
    );
    let answers: Vec<Value> = commands
        .iter()
        .map(|command| {
            let ran = Command::new("sh").args(["-c", command]).output().unwrap();
            assert!(ran.status.success(), "{command}: {ran:?}");
            assert_eq!(String::from_utf8_lossy(&ran.stderr), "");
            serde_json::from_slice(&ran.stdout).unwrap()
        })
        .collect();
    let id = &answers[0]["id"];
    assert_eq!(answers[0]["status"], "CREATED");
    assert_eq!(answers[1]["id"], *id);
    assert_eq!(answers[2].as_array().map(Vec::len), Some(1));
    assert_eq!(answers[2][0]["id"], *id);
    let orders = client.settled(&api, 1).await;
    assert!(orders.iter().all(is_settled));
    program.signal("INT");
    let account = program.rest_of_stdout();
    assert_eq!(program.wait().code(), Some(0), "{}", program.logged());
    for status in ["CREATED", "PROCESSING", "FULFILLED", "FAILED"] {
        assert!(account.contains(status), "{account}");
    }
    assert_eq!(
        fs::read_dir(world.path("tmp")).unwrap().count(),
        0,
        "{data}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_simulator_of_dev_is_broken_and_mended_from_its_own_pages() {
    let world = World::new();
    let (program, banner) = dev(&world, &[]);
    let api = told(&banner, "API").to_owned();
    assert_eq!(told(&banner, "dashboard"), format!("{api}/"));
    let client = Client::new();
    let page = client.get(format!("{api}/")).await;
    assert!(
        page.body
            .contains(r#"<meta name="dev" content="simulator">"#)
    );
    let url = format!("{api}/dev/simulator");
    let state = client.get(&url).await.json();
    assert_eq!(
        (&state["now"], &state["is_alive"]),
        (&json!("calm"), &json!(true))
    );
    for choice in state["choices"].as_array().unwrap() {
        let name = choice.as_str().unwrap();
        let chosen = client.request("POST", format!("{url}/{name}"));
        let chosen = client.send(chosen).await;
        assert_eq!((chosen.status, &chosen.json()["now"]), (200, choice));
        assert_eq!(client.get(&url).await.json()["now"], *choice);
    }
    for (method, path, site, status) in [
        ("POST", "/calm", "cross-site", 403),
        ("POST", "/crash", "cross-site", 403),
        ("POST", "/none", "same-origin", 404),
        ("PUT", "/calm", "same-origin", 405),
        ("POST", "", "same-origin", 405),
    ] {
        let request = client.request(method, format!("{url}{path}"));
        let refused = client.send(request.header("sec-fetch-site", site)).await;
        assert_eq!(refused.status, status, "{method} {path}");
        assert_eq!(refused.header("content-type"), "application/problem+json");
    }
    let state = client.get(&url).await.json();
    assert_eq!(
        (&state["now"], &state["is_alive"]),
        (&json!("down"), &json!(true))
    );
    let crash = client.request("POST", format!("{url}/crash"));
    assert_eq!(client.send(crash).await.json()["is_alive"], false);
    assert_eq!(program.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_be_broken_where_there_is_no_simulator() {
    let world = World::new();
    let simulator = world.simulator(&[]);
    let api = world.api(&[]);
    let (tried, banner) = dev(&world, &["--order-process-url", &simulator.url]);
    let client = Client::new();
    for (url, dev) in [
        (api.url.as_str(), "none"),
        (told(&banner, "API"), "upstream"),
    ] {
        let page = client.get(format!("{url}/")).await.body;
        assert!(page.contains(&format!(r#"<meta name="dev" content="{dev}">"#)));
        for (method, path) in [
            ("GET", ""),
            ("POST", "/calm"),
            ("POST", "/crash"),
            ("PUT", "/calm"),
        ] {
            let request = client.request(method, format!("{url}/dev/simulator{path}"));
            assert_eq!(client.send(request).await.status, 404, "{method} {path}");
        }
    }
    assert_eq!(tried.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_uses_the_upstream_that_it_is_given() {
    let world = World::new();
    let simulator = world.simulator(&["--max-order-process-duration", "1"]);
    let arguments = ["--order-process-url", &simulator.url, "--start-rate", "0"];
    let (program, banner) = dev(&world, &arguments);
    assert!(told(&banner, "upstream").starts_with(&simulator.url));
    assert_eq!(told(&banner, "pace"), "no ceiling");
    let api = told(&banner, "API").to_owned();
    let client = Client::new();
    client.create(&api, "a1").await;
    client.settled(&api, 1).await;
    assert_eq!(world.outcomes().len(), 1);
    assert_eq!(program.stop(), Some(0));
}

#[test]
fn a_stop_signal_ends_every_program_with_0() {
    for signal in ["TERM", "INT"] {
        let world = World::new();
        let simulator = world.simulator(&[]);
        let api = world.api(&[]);
        let service = world.serve(&simulator.url, &[]);
        service.logs("this reconciler leads");
        let standby = world.reconciler(&simulator.url, &[]);
        standby.logs("stands by");
        let alone = World::new();
        let reconciler = alone.reconciler(&simulator.url, &[]);
        reconciler.logs("this reconciler leads");
        let (dev, _) = dev(&world, &[]);
        for mut program in [standby, reconciler, service, api, dev, simulator] {
            let begun = Instant::now();
            program.signal(signal);
            assert_eq!(program.wait().code(), Some(0), "{}", program.logged());
            let took = begun.elapsed();
            assert!(
                took < Duration::from_secs(2),
                "{took:?}: {}",
                program.logged()
            );
        }
    }
}

#[test]
fn a_stop_signal_before_all_is_set_up_still_ends_in_order() {
    // Whatever it has just come to, it ends with 0, or was not listening to signals yet.
    let world = World::new();
    for wait in [10, 20, 40, 80, 160] {
        let mut program = world.reconciler("http://127.0.0.1:9", &[]);
        std::thread::sleep(Duration::from_millis(wait));
        let is_listening = program.logged().contains("database");
        program.signal("TERM");
        let code = program.wait().code();
        assert!(
            code == Some(0) || !is_listening,
            "{code:?}: {}",
            program.logged()
        );
    }
}

#[test]
fn a_second_signal_ends_a_program_at_once() {
    let world = World::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = format!("http://{}", silent.local_addr().unwrap());
    let mut service = world.serve(&upstream, &["--request-timeout", "30s"]);
    // A start without an answer, and a request that never gets whole: both are waited for.
    let mut client = TcpStream::connect(service.address()).unwrap();
    let body = r#"{"id":"a1"}"#;
    write!(
        client,
        "POST /order HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 201");
    let (mut start, _) = silent.accept().unwrap();
    let mut begun = [0; 4];
    start.read_exact(&mut begun).unwrap();
    assert_eq!(&begun, b"POST");
    service.signal("TERM");
    service.logs("a second signal ends at once");
    std::thread::sleep(Duration::from_millis(300));
    let health = api_health(&world, service.address());
    assert_ne!(health.code, Some(0), "it drains: {health:?}");
    let begun = Instant::now();
    service.signal("INT");
    let code = service.wait().code();
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
}

#[test]
fn a_password_in_a_url_is_refused_and_never_shown() {
    let world = World::new();
    for (flag, value) in [
        ("--order-process-url", "http://user:hunter2@127.0.0.1:8000"),
        ("--database-url", "postgres://user:hunter2@127.0.0.1/orders"),
    ] {
        let ran = run(&world, &["order-reconciler"], &[flag, value], &[]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
        assert!(ran.stderr.contains(flag), "{ran:?}");
    }
}

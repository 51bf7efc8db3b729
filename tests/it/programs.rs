//! The programs as an operator uses them: flags, variables, defaults, exit codes, signals, and
//! output. Orders are followed in `lifecycle`.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::environment::{Client, PATIENCE, Program, Ran, TestEnvironment};

mod databases;
mod dev;
mod health;
mod help;
mod logs;
mod settings;
mod signals;

/// A flag, its environment variable, its default; "" stands for none.
type Setting = (&'static str, &'static str, &'static str);

const DATABASE: Setting = ("--database-url", "DATABASE_URL", "sqlite:orders.db");
const LISTEN: Setting = ("--listen", "LISTEN_ADDR", "127.0.0.1:8080");
const HOSTS: Setting = ("--allowed-host", "ALLOWED_HOSTS", "");
const URL: Setting = (
    "--order-process-url",
    "ORDER_PROCESS_URL",
    "http://127.0.0.1:8000",
);
const LOG: Setting = ("--log-format", "LOG_FORMAT", "text");
const RECONCILE: [Setting; 6] = [
    ("--schedule", "RECONCILE_SCHEDULE", "\"* * * * * *\""),
    // A description instead of a value, because the default depends on other settings.
    ("--start-rate", "START_RATE", ""),
    ("--max-in-flight", "MAX_IN_FLIGHT", "8"),
    ("--request-timeout", "REQUEST_TIMEOUT", "5s"),
    ("--lost-process", "LOST_PROCESS", "restart"),
    ("--max-starts", "MAX_STARTS", "5"),
];

/// Returns each command with all its settings.
fn commands() -> Vec<(Vec<&'static str>, Vec<Setting>)> {
    let simulated = |longest| {
        [
            (
                "--max-order-process-duration",
                "MAX_ORDER_PROCESS_DURATION",
                longest,
            ),
            // A description instead of a value, because the default is random.
            ("--seed", "SIMULATOR_SEED", ""),
            ("--preset", "SIMULATOR_PRESET", "calm"),
            ("--control", "SIMULATOR_CONTROL", ""),
        ]
    };
    let with = |settings: &[Setting]| [settings, &RECONCILE].concat();
    vec![
        (
            vec!["order-service", "serve"],
            with(&[DATABASE, LISTEN, HOSTS, URL, LOG]),
        ),
        (
            vec!["order-service", "dev"],
            [
                with(&[LISTEN, HOSTS, (URL.0, URL.1, ""), LOG]),
                vec![("--simulator-listen", "SIMULATOR_LISTEN_ADDR", "127.0.0.1:0")],
                simulated("10").to_vec(),
            ]
            .concat(),
        ),
        (
            vec!["order-service", "api"],
            vec![DATABASE, LISTEN, HOSTS, LOG],
        ),
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
        (vec!["order-service", "health"], vec![LISTEN, LOG]),
        (
            vec!["order-reconciler"],
            with(&[DATABASE, URL, LOG, ("--once", "", "")]),
        ),
        (vec!["order-reconciler", "health"], vec![DATABASE, LOG]),
    ]
}

fn run(env: &TestEnvironment, command: &[&str], more: &[&str], variables: &[(&str, &str)]) -> Ran {
    env.run_with(command[0], &[&command[1..], more].concat(), variables)
}

/// Starts `dev`. Returns it with its banner.
fn dev(env: &TestEnvironment, arguments: &[&str]) -> (Program, String) {
    let temporary = env.path("tmp");
    fs::create_dir_all(&temporary).unwrap();
    let variables = [("TMPDIR", temporary.to_str().unwrap())];
    let all = [&["dev", "--listen", "127.0.0.1:0"], arguments].concat();
    let mut program = env.start_with("order-service", &all, &variables, false);
    let banner = program.stdout_until("Ctrl-C");
    (program, banner)
}

/// Runs `order-service health` on an address.
fn api_health(env: &TestEnvironment, address: &str) -> Ran {
    env.run("order-service", &["health", "--listen", address])
}

#[test]
fn an_unknown_command_or_flag_ends_with_2() {
    let env = TestEnvironment::new();
    for (command, _) in commands() {
        let ran = run(&env, &command, &["--frobnicate"], &[]).assert_code(2);
        assert!(ran.stderr.contains("--frobnicate"), "{ran:?}");
    }
    for name in ["order-service", "order-reconciler"] {
        for word in ["frobnicate", "orders.db", ""] {
            let ran = env.run(name, &[word]);
            assert_eq!(ran.code, Some(2), "{word:?}: {ran:?}");
        }
    }
    // A command of the other program is named together with it.
    for (name, word, tip) in [
        (
            "order-service",
            "reconciler",
            "the program order-reconciler",
        ),
        ("order-reconciler", "api", "order-service api"),
    ] {
        let ran = env.run(name, &[word]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.stderr.contains(tip), "{ran:?}");
    }
    assert_eq!(env.run("order-service", &["serve", "extra"]).code, Some(2));
}

#[test]
fn without_a_command_the_service_serves() {
    for command in [&[][..], &["serve"]] {
        let env = TestEnvironment::new();
        let arguments = [command, &["--listen", "127.0.0.1:0"]].concat();
        let program = env.start("order-service", &arguments, true);
        assert!(
            env.database().exists(),
            "the default, in the working folder"
        );
        program.logs("became leader");
        program.logs("http://127.0.0.1:8000/order_process");
        assert_eq!(program.stop(), Some(0));
    }
    // Variables alone are enough as well.
    let env = TestEnvironment::new();
    let variables = [("LISTEN_ADDR", "127.0.0.1:0")];
    let program = env.start_with("order-service", &[], &variables, true);
    assert_eq!(program.stop(), Some(0));
}

#[test]
fn a_port_in_use_ends_with_1_and_one_line_that_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let env = TestEnvironment::new();
    for command in ["serve", "api", "dev", "simulator"] {
        let folder = env.path(command);
        fs::create_dir(&folder).unwrap();
        let variables = [("TMPDIR", folder.to_str().unwrap()), ("RUST_LOG", "warn")];
        let database = folder.join("o.db");
        let mut arguments = vec![command, "--listen", &address];
        if matches!(command, "serve" | "api") {
            arguments.extend(["--database-url", database.to_str().unwrap()]);
        }
        let ran = env
            .run_with("order-service", &arguments, &variables)
            .assert_code(1);
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
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "nothing is left");
    }
}

#[test]
fn a_token_that_cannot_be_sent_ends_with_2_and_is_not_shown() {
    let env = TestEnvironment::new();
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
            let ran = run(&env, command, &[], &variables).assert_code(2);
            assert!(
                ran.stderr.contains("ORDER_PROCESS_TOKEN may hold"),
                "{ran:?}"
            );
            assert!(!ran.stderr.contains("sentinel"), "{ran:?}");
            assert!(!ran.stdout.contains("sentinel"), "{ran:?}");
        }
    }
}

#[test]
fn a_free_port_is_taken_and_printed() {
    let env = TestEnvironment::new();
    for program in [
        env.simulator(&[]),
        env.api(&[]),
        env.serve("http://127.0.0.1:9", &[]),
    ] {
        let port = program.address().strip_prefix("127.0.0.1:").unwrap();
        assert_ne!(port.parse::<u16>().unwrap(), 0);
        TcpStream::connect(program.address()).unwrap();
    }
}

#[test]
fn an_output_that_is_closed_or_full_changes_no_exit_code_and_is_no_panic() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&[]);
    env.store();
    let database = env.database();
    let database = database.to_str().unwrap();
    let url = ["--order-process-url", &simulator.url];
    for (arguments, code) in [
        (&["check"][..], 0),
        (&[&["account"], &url[..]].concat(), 0),
        (&["backup", "--replace", "copy.db"], 0),
        (&["prune", "--settled-before", "1d"], 0),
        (&["explain", "a1"], 1),
    ] {
        let arguments = [arguments, &["--database-url", database]].concat();
        for output in ["/dev/full", "closed"] {
            let mut command = env.command("order-service", &arguments);
            if output == "closed" {
                // The reading end is closed.
                let (_, closed) = std::io::pipe().unwrap();
                command.stdout(closed);
            } else {
                command.stdout(fs::File::create(output).unwrap());
            }
            let ran = command.output().unwrap();
            let stderr = String::from_utf8_lossy(&ran.stderr);
            assert_eq!(ran.status.code(), Some(code), "{arguments:?}: {stderr}");
            assert!(!stderr.contains("panicked"), "{stderr}");
        }
    }
    // The same holds for a log that cannot be written.
    let mut command = env.command("order-service", &["check", "--database-url", "none.db"]);
    let full = || fs::File::create("/dev/full").unwrap();
    let status = command.stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_path_of_the_upstream_is_named_wherever_its_state_is_reported() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&[]);
    let api = env.api(&[]);
    Client::new().create(&api.url, "a1").await;
    let wrong = format!("{}/v2", simulator.url);
    let asked = format!("{wrong}/order_process");
    let database = env.database();
    let database = database.to_str().unwrap();
    let arguments = ["--database-url", database, "--order-process-url", &wrong];
    let ran = env
        .run("order-reconciler", &[&["--once"], &arguments[..]].concat())
        .assert_code(4);
    assert!(ran.stderr.contains(&asked), "{ran:?}");
    let ran = env
        .run("order-service", &[&["account"], &arguments[..]].concat())
        .assert_code(4);
    assert!(ran.stderr.contains(&asked), "{ran:?}");
    let order = Client::new().get(format!("{}/order/a1", api.url)).await;
    let detail = order.json()["attention"]["detail"].to_string();
    assert!(detail.contains(&asked), "{detail}");
}

#[test]
fn a_password_in_a_url_is_refused_and_never_shown() {
    let env = TestEnvironment::new();
    for (flag, value) in [
        ("--order-process-url", "http://user:hunter2@127.0.0.1:8000"),
        ("--database-url", "postgres://user:hunter2@127.0.0.1/orders"),
    ] {
        let ran = run(&env, &["order-reconciler"], &[flag, value], &[]).assert_code(2);
        assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
        assert!(ran.stderr.contains(flag), "{ran:?}");
    }
    for value in [
        "postgres://user:s3c?hunter2@127.0.0.1:9/orders",
        "postgres://user:s3c@hunter2@127.0.0.1:9/orders",
        " postgres://user:hunter2@127.0.0.1:9/orders",
        "\"postgres://user:hunter2@127.0.0.1:9/orders\"",
        "Postgres://127.0.0.1:9/orders?password=hunter2",
        "host=127.0.0.1 port=9 user=user password=hunter2",
    ] {
        for command in [
            &["order-service", "api"][..],
            &["order-reconciler"],
            &["order-service", "check"],
            &["order-service", "copy", value, "o.db"],
            &["order-service", "copy", "o.db", value],
            &["order-service", "backup", value],
            &["order-service", value],
            &["order-service", "api", value],
        ] {
            let ran = run(&env, command, &[], &[("DATABASE_URL", value)]).assert_code(2);
            assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
        }
    }
    let files = fs::read_dir(env.path(".")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| !name.ends_with(".log")).count(), 0);
}

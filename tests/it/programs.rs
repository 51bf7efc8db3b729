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
mod settings;

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

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_in_no_log_at_any_level() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let variables = [
        ("ORDER_PROCESS_TOKEN", "sentinel-7f3a"),
        ("RUST_LOG", "trace"),
    ];
    let mut service = env.serve_with(&simulator.url, &[], &variables);
    let client = Client::new();
    client.create(&service.url, "a1").await;
    client.settled(&service.url, 1).await;
    // This holds without an upstream too.
    simulator.kill();
    client.create(&service.url, "a2").await;
    service.logs("the upstream is down");
    service.signal("TERM");
    assert_eq!(service.wait().code(), Some(0));
    let log = service.logged();
    assert!(log.contains("TRACE"), "the log has the requested level");
    assert!(!log.contains("sentinel"), "the token is in the log");
    for name in ["order-service", "order-reconciler"] {
        let ran = env.run_with(name, &["--help"], &variables);
        assert!(!ran.stdout.contains("sentinel"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_json_is_one_object_a_line() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let service = env.serve(&simulator.url, &["--log-format", "json"]);
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
    let mut counts = 0;
    for line in log.lines() {
        let value: Value = serde_json::from_str(line).expect(line);
        for member in ["at", "level", "origin", "message"] {
            assert!(value[member].is_string(), "{member}: {line}");
        }
        // A pass logs all counts as fields, and in its text those that are not 0.
        for (name, count) in value.as_object().unwrap() {
            if let Some(count) = count.as_u64() {
                let message = value["message"].as_str().unwrap();
                let says = message.contains(&format!("{name}={count}"));
                assert_eq!(says, count > 0 || name == "observed", "{line}");
                counts += 1;
            }
        }
    }
    assert!(counts >= 11, "{log}");
    // The error at exit is one object too.
    let arguments = ["--log-format", "json", "--database-url", "no/such.db"];
    let ran = env.run("order-reconciler", &arguments);
    let value: Value = serde_json::from_str(&ran.stderr).expect("one object");
    assert_eq!(value["level"], "error");
}

#[test]
fn the_log_has_the_requested_levels() {
    let env = TestEnvironment::new();
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
        let ran = env
            .run_with("order-reconciler", &arguments, &[("RUST_LOG", levels)])
            .assert_code(0);
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
fn a_mistake_in_rust_log_is_refused_or_warned_about_with_what_would_be_right() {
    let env = TestEnvironment::new();
    let arguments = ["--once", "--database-url", "a.db"];
    for (levels, says) in [
        (
            "order_service=debgu",
            "unknown level \"debgu\"; expected off, error",
        ),
        ("hyper=fine", "unknown level \"fine\""),
        ("order_service=", ""),
        (
            "info,order-service=debug",
            "nothing logs as \"order-service\"; expected order_service, or",
        ),
        ("order_service::ordres=debug", "and one of account, api"),
        ("order_service::pass=info,", ""),
        ("info/a/b", "more than one \"/\""),
    ] {
        let ran = env.run_with("order-reconciler", &arguments, &[("RUST_LOG", levels)]);
        if says.is_empty() {
            assert_eq!(ran.code, Some(0), "{levels}: {ran:?}");
            assert!(!ran.stderr.contains("RUST_LOG"), "{levels}: {ran:?}");
        } else {
            assert_eq!(ran.code, Some(2), "{levels}: {ran:?}");
            let line = ran.stderr.strip_suffix('\n').unwrap();
            assert!(
                !line.contains('\n') && line.contains("RUST_LOG: "),
                "{ran:?}"
            );
            assert!(line.contains(says), "{levels}: {ran:?}");
        }
    }
    // Targets of other crates are not checked, and silence nothing.
    for levels in ["debgu", "hyper=info"] {
        let database = format!("{levels}.db");
        let arguments = ["--once", "--database-url", &database];
        let ran = env
            .run_with("order-reconciler", &arguments, &[("RUST_LOG", levels)])
            .assert_code(0);
        assert!(
            ran.stderr.contains("WARN  program: RUST_LOG sets no level"),
            "{ran:?}"
        );
        assert!(ran.stderr.contains("created the database"), "{ran:?}");
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
fn a_stop_signal_ends_every_program_with_0() {
    for signal in ["TERM", "INT", "HUP"] {
        let env = TestEnvironment::new();
        let simulator = env.simulator(&[]);
        let api = env.api(&[]);
        let service = env.serve(&simulator.url, &[]);
        service.logs("became leader");
        let standby = env.reconciler(&simulator.url, &[]);
        standby.logs("standing by");
        let alone = TestEnvironment::new();
        let reconciler = alone.reconciler(&simulator.url, &[]);
        reconciler.logs("became leader");
        let (dev, _) = dev(&env, &[]);
        for mut program in [standby, reconciler, service, api, dev, simulator] {
            program.signal(signal);
            assert_eq!(program.wait().code(), Some(0), "{}", program.logged());
        }
    }
}

#[test]
fn a_stop_signal_during_setup_still_ends_cleanly() {
    // At every point of its setup it exits with 0, or does not handle signals yet.
    let env = TestEnvironment::new();
    for wait in [10, 20, 40, 80, 160] {
        let mut program = env.reconciler("http://127.0.0.1:9", &[]);
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
    let env = TestEnvironment::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = format!("http://{}", silent.local_addr().unwrap());
    let mut service = env.serve(&upstream, &["--request-timeout", "30s"]);
    // A start without an answer, and an incomplete request: the program waits for both.
    let mut client = TcpStream::connect(service.address()).unwrap();
    let body = r#"{"id":"a1"}"#;
    write!(
        client,
        "POST /order HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 201");
    let (mut start, _) = silent.accept().unwrap();
    let mut method = [0; 4];
    start.read_exact(&mut method).unwrap();
    assert_eq!(&method, b"POST");
    service.signal("TERM");
    service.logs("a second signal exits immediately");
    let deadline = Instant::now() + PATIENCE;
    while api_health(&env, service.address()).code == Some(0) {
        assert!(Instant::now() < deadline, "the program does not drain");
    }
    assert_eq!(service.ended(), None);
    service.signal("INT");
    // Had it waited for the start, it would exit with 0.
    let code = service.wait().code();
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
}

#[test]
fn a_closing_terminal_does_not_end_a_program_that_ignores_the_signal() {
    let env = TestEnvironment::new();
    let mut command = Command::new("nohup");
    let api = env.command("order-service", &[]);
    command
        .arg(api.get_program())
        .args(["api", "--listen", "127.0.0.1:0"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .current_dir(env.path("."));
    let mut program = env.spawn("order-service", command, true);
    program.signal("HUP");
    program.signal("HUP");
    api_health(&env, program.address()).assert_code(0);
    assert_eq!(program.ended(), None);
    assert_eq!(program.stop(), Some(0));
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
}

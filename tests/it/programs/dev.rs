//! `order-service dev`: everything in one program, to try it out.

use std::path::Path;

use super::*;
use crate::environment::Answer;

/// Returns the value after a name in the banner.
fn value_of<'a>(banner: &'a str, name: &str) -> &'a str {
    banner
        .lines()
        .find_map(|line| line.trim().strip_prefix(name))
        .unwrap_or_else(|| panic!("no {name} in {banner}"))
        .trim()
}

/// Sends the request of a curl command, parsed as by a shell. Needs no curl.
async fn paste(client: &Client, command: &str) -> Answer {
    let script = format!("curl() {{ printf '%s\\n' \"$@\"; }}; {command}");
    let ran = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(ran.status.success(), "{command}: {ran:?}");
    assert_eq!(String::from_utf8_lossy(&ran.stderr), "");
    let words = String::from_utf8(ran.stdout).unwrap();
    let mut words = words.lines();
    let (mut url, mut headers, mut body) = (None, Vec::new(), None);
    while let Some(word) = words.next() {
        match word {
            "-sS" => {}
            "-H" => headers.push(words.next().unwrap().split_once(": ").unwrap()),
            "-d" => body = words.next(),
            _ => assert_eq!(url.replace(word), None, "{command}"),
        }
    }
    let method = if body.is_some() { "POST" } else { "GET" };
    let mut request = client.request(method, url.unwrap());
    for (name, value) in headers {
        request = request.header(name, value);
    }
    client
        .send(request.body(body.unwrap_or_default().to_owned()))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_dev_work_when_pasted() {
    let env = TestEnvironment::new();
    let (mut program, banner) = dev(&env, &["--max-order-process-duration", "2"]);
    assert_eq!(value_of(&banner, "pace"), "no ceiling");
    let api = value_of(&banner, "API").to_owned();
    let (data, _) = value_of(&banner, "data").split_once(',').unwrap();
    assert!(Path::new(data).starts_with(fs::canonicalize(env.path("tmp")).unwrap()));
    assert!(Path::new(data).exists());
    let simulator = value_of(&banner, "simulator");
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
    let mut answers = Vec::new();
    for command in commands {
        answers.push(paste(&client, command).await.json());
    }
    let id = &answers[0]["id"];
    assert_eq!(answers[0]["status"], "CREATED");
    assert_eq!(answers[1]["id"], *id);
    assert_eq!(answers[2].as_array().map(Vec::len), Some(1));
    assert_eq!(answers[2][0]["id"], *id);
    let orders = client.settled(&api, 1).await;
    assert_eq!(
        orders[0]["status"], "FULFILLED",
        "the first process always succeeds"
    );
    program.signal("INT");
    let account = program.rest_of_stdout();
    assert_eq!(program.wait().code(), Some(0), "{}", program.logged());
    let log = program.logged();
    let id = id.as_str().unwrap();
    for step in ["started", "FULFILLED after"] {
        assert!(log.contains(&format!("orders: {id} {step}")), "{log}");
    }
    assert!(!log.contains("observed="), "{log}");
    assert!(!log.contains('\u{1b}'), "no colours in a file: {log}");
    for status in ["CREATED", "PROCESSING", "FULFILLED", "FAILED"] {
        assert!(account.contains(status), "{account}");
    }
    assert_eq!(fs::read_dir(env.path("tmp")).unwrap().count(), 0, "{data}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_leaves_nothing_behind_however_it_is_ended() {
    let env = TestEnvironment::new();
    let is_left = || fs::read_dir(env.path("tmp")).unwrap().count() > 0;
    for signal in ["TERM", "INT", "HUP"] {
        let (mut program, _) = dev(&env, &[]);
        assert!(is_left());
        program.signal(signal);
        assert_eq!(program.wait().code(), Some(0), "{}", program.logged());
        assert!(!is_left(), "{signal}");
    }
    // A second signal ends it while it waits for an answer.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = format!("http://{}", silent.local_addr().unwrap());
    let (mut program, banner) = dev(&env, &["--order-process-url", &upstream]);
    let create = banner
        .lines()
        .find_map(|line| line.find("curl ").map(|at| &line[at..]));
    let created = paste(&Client::new(), create.unwrap()).await;
    assert_eq!(created.status, 201, "{created:?}");
    let (_start, _) = silent.accept().unwrap();
    program.signal("TERM");
    program.logs("a second SIGTERM or Ctrl-C");
    assert_eq!(program.ended(), None);
    assert!(is_left());
    program.signal("INT");
    assert_eq!(program.wait().code(), Some(1), "{}", program.logged());
    assert!(!is_left(), "after a second signal");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_account_of_dev_is_taken_after_the_simulator_is_repaired() {
    let env = TestEnvironment::new();
    let client = Client::new();
    // Both at once, because an order settles after a second.
    let mut programs = Vec::new();
    for fault in ["down", "crash"] {
        let (program, banner) = dev(&env, &["--max-order-process-duration", "1"]);
        let api = value_of(&banner, "API").to_owned();
        client.create(&api, "a1").await;
        programs.push((fault, program, api));
    }
    for (fault, mut program, api) in programs {
        client.settled(&api, 1).await;
        let break_it = client.request("POST", format!("{api}/dev/simulator/{fault}"));
        assert_eq!(client.send(break_it).await.status, 200);
        program.signal("INT");
        let account = program.rest_of_stdout();
        assert_eq!(program.wait().code(), Some(0), "{account}");
        for name in ["lost", "unknown", "disagreeing"] {
            let count = value_of(&account, name).split(' ').next();
            assert_eq!(count, Some("0"), "{fault}: {account}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_ends_with_4_when_the_upstream_cannot_be_listed_for_the_account() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let (mut program, banner) = dev(&env, &["--order-process-url", &simulator.url]);
    assert!(
        banner.contains("all but the upstream on this machine"),
        "{banner}"
    );
    let api = value_of(&banner, "API").to_owned();
    let client = Client::new();
    client.create(&api, "a1").await;
    client.settled(&api, 1).await;
    simulator.kill();
    program.signal("INT");
    let account = program.rest_of_stdout();
    assert_eq!(program.wait().code(), Some(4), "{account}");
    assert!(value_of(&account, "unknown").starts_with("1 "), "{account}");
}

#[test]
fn the_banner_says_what_a_preset_does_and_how_to_break_the_simulator() {
    let env = TestEnvironment::new();
    for (arguments, preset, effect) in [
        (&[][..], "calm", "nothing goes wrong"),
        (&["--preset", "crashing"], "crashing", "forgets all"),
        (&["--preset", "flaky"], "flaky", "fails"),
        (&["--preset", "outage"], "outage", "20 s of each minute"),
    ] {
        let (program, banner) = dev(&env, arguments);
        let effects = value_of(&banner, "preset");
        assert!(
            effects.starts_with(preset) && effects.contains(effect),
            "{effects}"
        );
        assert!(banner.contains("\"crash now\""), "{banner}");
        assert_eq!(program.stop(), Some(0));
    }
    let dashboard = include_str!("../../../src/api/pages/dashboard/dev.js");
    assert!(dashboard.contains(">crash now</button>"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_banner_names_urls_of_this_machine_where_every_address_is_listened_on() {
    let env = TestEnvironment::new();
    let variables = [
        ("LISTEN_ADDR", "0.0.0.0:0"),
        ("SIMULATOR_LISTEN_ADDR", "0.0.0.0:0"),
        ("SIMULATOR_CONTROL", "[::]:0"),
    ];
    let mut program = env.start_with("order-service", &["dev"], &variables, false);
    let banner = program.stdout_until("Ctrl-C");
    let client = Client::new();
    for (name, loopback, path) in [
        ("API", "http://127.0.0.1:", "/order"),
        ("simulator", "http://127.0.0.1:", ""),
        ("control", "http://[::1]:", "/faults"),
    ] {
        let url = value_of(&banner, name).split(',').next().unwrap();
        assert!(url.starts_with(loopback), "{banner}");
        assert_eq!(client.get(format!("{url}{path}")).await.status, 200);
    }
    assert_eq!(program.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_single_orders_are_logged_elsewhere_only_on_request() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&[]);
    let client = Client::new();
    let more = "order_service=info,order_service::orders=debug";
    for (id, levels, is_logged) in [("a1", "", false), ("a2", more, true)] {
        let variables = [("RUST_LOG", levels)];
        let program = env.serve_with(&simulator.url, &[], &variables);
        client.create(&program.url, id).await;
        // The pass logs this after the changes of its orders.
        program.logs("started=1");
        let is_there = program.logged().contains(&format!("orders: {id} started"));
        assert_eq!(is_there, is_logged, "{}", program.logged());
        assert_eq!(program.stop(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_simulator_of_dev_is_broken_and_repaired_from_its_own_pages() {
    let env = TestEnvironment::new();
    let (program, banner) = dev(&env, &[]);
    let api = value_of(&banner, "API").to_owned();
    assert_eq!(value_of(&banner, "dashboard"), format!("{api}/"));
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
        ("POST", "/crash", "same-site", 403),
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
    let env = TestEnvironment::new();
    let simulator = env.simulator(&[]);
    let api = env.api(&[]);
    let (tried, banner) = dev(&env, &["--order-process-url", &simulator.url]);
    let client = Client::new();
    for (url, dev) in [
        (api.url.as_str(), "none"),
        (value_of(&banner, "API"), "upstream"),
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
async fn dev_uses_the_given_upstream() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let arguments = ["--order-process-url", &simulator.url, "--start-rate", "0"];
    let (program, banner) = dev(&env, &arguments);
    assert!(value_of(&banner, "upstream").starts_with(&simulator.url));
    assert_eq!(value_of(&banner, "pace"), "no ceiling");
    let api = value_of(&banner, "API").to_owned();
    let client = Client::new();
    client.create(&api, "a1").await;
    client.settled(&api, 1).await;
    assert_eq!(env.outcomes().len(), 1);
    assert_eq!(program.stop(), Some(0));
}

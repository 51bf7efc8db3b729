//! The health commands and their exit codes.

use rusqlite::Connection;

use super::*;

#[test]
#[ignore = "slow; scripts/test all"]
fn the_health_of_the_service_is_0_when_it_serves_and_1_when_nothing_useful_answers() {
    let env = TestEnvironment::new();
    let api = env.api(&[]);
    let port = api.address().rsplit(':').next().unwrap();
    for address in [api.address(), &format!("0.0.0.0:{port}")] {
        api_health(&env, address).assert_code(0);
        env.run_with("order-service", &["health"], &[("LISTEN_ADDR", address)])
            .assert_code(0);
    }
    // An upstream that is down does not make the service unhealthy.
    let service = env.serve("http://127.0.0.1:9", &[]);
    assert_eq!(api_health(&env, service.address()).code, Some(0));
    let address = service.address().to_owned();
    assert_eq!(service.stop(), Some(0));
    let ran = api_health(&env, &address);
    assert_eq!(ran.code, Some(1), "nothing listens: {ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    // The database is moved away.
    fs::rename(env.database(), env.path("elsewhere.db")).unwrap();
    // The last result is reused for a second.
    let deadline = Instant::now() + PATIENCE;
    while api_health(&env, api.address()).code == Some(0) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
    let ran = api_health(&env, api.address()).assert_code(1);
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    fs::rename(env.path("elsewhere.db"), env.database()).unwrap();
    // Something else listens, or hangs.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    api_health(&env, &silent.local_addr().unwrap().to_string()).assert_code(1);
    let simulator = env.simulator(&[]);
    api_health(&env, simulator.address()).assert_code(1);
}

#[test]
fn another_service_that_answers_200_is_told_apart() {
    let env = TestEnvironment::new();
    for body in [r#"{"status":"ok"}"#, "fine", "[1]"] {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap().to_string();
        let answered = std::thread::spawn(move || {
            let (mut stream, _) = other.accept().unwrap();
            let _ = stream.read(&mut [0; 4_096]).unwrap();
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"
            )
            .unwrap();
        });
        let ran = api_health(&env, &address).assert_code(1);
        assert!(ran.stderr.contains("another service"), "{ran:?}");
        assert!(ran.stderr.contains(body), "{ran:?}");
        answered.join().unwrap();
    }
}

fn reconciler_health(env: &TestEnvironment) -> Ran {
    let database = env.database();
    let arguments = ["health", "--database-url", database.to_str().unwrap()];
    env.run("order-reconciler", &arguments)
}

#[test]
fn the_health_of_the_reconciler_is_0_after_a_pass_and_1_before_one_or_long_after_it_was_killed() {
    let env = TestEnvironment::new();
    let api = env.api(&[]);
    let ran = reconciler_health(&env);
    assert_eq!(ran.code, Some(1), "no pass yet: {ran:?}");
    let reconciler = env.reconciler("http://127.0.0.1:9", &[]);
    let deadline = Instant::now() + PATIENCE;
    while reconciler_health(&env).code != Some(0) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    reconciler_health(&env).assert_code(0);
    let variables = [("DATABASE_URL", env.database().to_str().unwrap().to_owned())];
    env.run_with(
        "order-reconciler",
        &["health"],
        &[(variables[0].0, &variables[0].1)],
    )
    .assert_code(0);
    drop(reconciler);
    let ran = reconciler_health(&env);
    assert_eq!(ran.code, Some(0), "it may be slow: {ran:?}");
    let db = Connection::open(env.database()).unwrap();
    db.execute_batch(
        "UPDATE heartbeat SET last_pass_at = last_pass_at - 3600000, \
         next_pass_at = next_pass_at - 3600000",
    )
    .unwrap();
    let ran = reconciler_health(&env).assert_code(1);
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    // The service's health reports it, but depends on its API alone.
    assert_eq!(api_health(&env, api.address()).code, Some(0));
}

/// Checks the health of the reconciler in all places where it is reported.
fn check_reported(env: &TestEnvironment, api: &Program, status: &str) {
    let ran = api_health(env, api.address()).assert_code(0);
    let health: Value = serde_json::from_str(&ran.stdout).unwrap();
    let reconciler = &health["checks"][3];
    assert_eq!(reconciler["name"], "reconciler");
    assert_eq!(reconciler["status"], status, "{health}");
    let detail = reconciler["detail"].as_str().unwrap();
    assert_eq!(detail.contains("ended"), status == "ok", "{health}");
    let is_degraded = health["status"] == "degraded";
    assert_eq!(is_degraded, status == "failing", "{health}");
    let client = Client::new();
    let metrics = tokio::runtime::Runtime::new()
        .unwrap()
        .block_on(client.get(format!("{}/metrics", api.url)));
    let overdue = format!("reconciler_overdue {}.0\n", u8::from(is_degraded));
    assert!(
        metrics.body.contains(&overdue),
        "{status}: {}",
        metrics.body
    );
    let ran = reconciler_health(env);
    assert_eq!(ran.code == Some(0), status == "ok", "{status}: {ran:?}");
}

#[test]
fn a_missing_reconciler_is_degraded_health_once_an_order_has_waited_for_a_minute() {
    for (age_secs, status) in [(5, "unknown"), (3_600, "failing")] {
        let env = TestEnvironment::new();
        let api = env.api(&[]);
        check_reported(&env, &api, "unknown");
        let sql = format!(
            "INSERT INTO orders (id, status, created_at, updated_at) \
             SELECT 'a1', 'CREATED', at, at FROM (SELECT 1000 * (unixepoch() - {age_secs}) AS at); \
             INSERT INTO journal (order_seq, at, reason) \
             SELECT seq, created_at, 'created' FROM orders"
        );
        let db = Connection::open(env.database()).unwrap();
        db.execute_batch(&sql).unwrap();
        check_reported(&env, &api, status);
    }
}

#[test]
fn a_stopped_reconciler_is_degraded_health_at_once_whatever_its_schedule() {
    let env = TestEnvironment::new();
    let yearly = ["--schedule", "0 0 0 1 1 *"];
    let reconciler = env.reconciler("http://127.0.0.1:9", &yearly);
    let deadline = Instant::now() + PATIENCE;
    while reconciler_health(&env).code != Some(0) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let api = env.api(&[]);
    check_reported(&env, &api, "ok");
    assert_eq!(reconciler.stop(), Some(0));
    check_reported(&env, &api, "failing");
    let ran = reconciler_health(&env).assert_code(1);
    assert!(ran.stderr.contains("no reconciler runs"), "{ran:?}");
}

#[test]
fn a_single_run_is_healthy_until_the_next_one_is_a_minute_late() {
    let env = TestEnvironment::new();
    let database = env.database();
    let arguments = ["--once", "--database-url", database.to_str().unwrap()];
    env.run("order-reconciler", &arguments).assert_code(0);
    let api = env.api(&[]);
    check_reported(&env, &api, "ok");
    let db = Connection::open(&database).unwrap();
    let later = |seconds| {
        let sql = format!(
            "UPDATE heartbeat SET last_pass_at = last_pass_at - {seconds}000, \
             led_until = led_until - {seconds}000, next_pass_at = next_pass_at - {seconds}000"
        );
        db.execute_batch(&sql).unwrap();
    };
    later(30);
    check_reported(&env, &api, "ok");
    later(600);
    check_reported(&env, &api, "failing");
    // The schedule says when the next run is due.
    let hourly = [&arguments[..], &["--schedule", "0 0 0 1 1 *"]].concat();
    env.run("order-reconciler", &hourly).assert_code(0);
    later(600);
    check_reported(&env, &api, "ok");
}

#[test]
fn the_health_of_the_reconciler_is_1_when_there_is_no_database_and_none_is_made() {
    let env = TestEnvironment::new();
    let ran = reconciler_health(&env);
    assert!(!env.database().exists());
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    assert_eq!(ran.code, Some(1), "no other exit code: {ran:?}");
}

#[test]
fn the_health_of_a_service_that_cannot_be_reached_is_1_with_the_cause() {
    let env = TestEnvironment::new();
    // No connection can be made to a broadcast address.
    let ran = api_health(&env, "255.255.255.255:1").assert_code(1);
    assert!(
        ran.stderr.contains("cannot connect to 255.255.255.255:1: "),
        "{ran:?}"
    );
}

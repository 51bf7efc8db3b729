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

#[test]
fn the_health_of_the_reconciler_is_1_as_soon_as_it_has_ended() {
    let env = TestEnvironment::new();
    let reconciler = env.reconciler("http://127.0.0.1:9", &[]);
    let deadline = Instant::now() + PATIENCE;
    while reconciler_health(&env).code != Some(0) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(reconciler.stop(), Some(0));
    let ran = reconciler_health(&env).assert_code(1);
    assert!(ran.stderr.contains("no reconciler runs"), "{ran:?}");
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

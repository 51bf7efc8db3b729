//! Programs that have a database open when its orders move, or when a later version migrates it.

use std::time::{Duration, Instant};

use order_service::clock::Clock;

use super::*;
use crate::environment::Program;

/// Starts all programs of a database, of which one reconciler leads and another stands by.
fn start_all(env: &TestEnvironment, database: &str) -> [Program; 3] {
    let database = ["--database-url", database];
    // No upstream: no log line depends on it after the first pass.
    let upstream = ["--order-process-url", "http://127.0.0.1:9"];
    let listen = ["--listen", "127.0.0.1:0"];
    let serve = [&["serve"], &listen[..], &database, &upstream].concat();
    let serve = env.start("order-service", &serve, true);
    serve.logs("became leader");
    let reconciler = env.start("order-reconciler", &[database, upstream].concat(), false);
    reconciler.logs("standing by");
    let api = [&["api"], &listen[..], &database].concat();
    [serve, reconciler, env.start("order-service", &api, true)]
}

/// Checks that all programs exit with this reason, and that the writer and the reconciler log it once.
fn assert_end(programs: [Program; 3], reason: &str) {
    for program in programs {
        let log = ended(program);
        let errors: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
        assert!(errors.last().unwrap().contains(reason), "{log}");
        // The writer may log that a write was refused before it finds the reason.
        assert!(errors.len() <= 2, "{log}");
        assert!(!log.contains("can be written again"), "{log}");
    }
}

/// Waits until a program has ended with exit code 3. Returns its log.
fn ended(mut program: Program) -> String {
    let code = program.wait().code();
    let log = program.logged();
    assert_eq!(code, Some(3), "{log}");
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn running_programs_exit_once_the_orders_have_moved_there_and_back() {
    for engines in PAIRS {
        let (env, [from, to]) = filled(engines).await;
        let programs = start_all(&env, &from);
        copied(&env, &from, &to);
        assert_end(programs, &format!("has moved to {to}; "));
        // One API does not change the copy.
        let arguments = ["api", "--listen", "127.0.0.1:0", "--database-url", &to];
        let api = env.start("order-service", &arguments, true);
        copy(&env, &["--take-back", &from, &to]).assert_code(0);
        let log = ended(api);
        assert!(log.contains(&format!("has moved to {from}; ")), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn running_programs_exit_once_a_later_version_has_migrated_the_database() {
    for [engine, _] in PAIRS {
        let env = TestEnvironment::new();
        let url = new_url(&env, engine);
        let programs = start_all(&env, &url);
        let migration = match engine {
            Engine::Sqlite => "PRAGMA user_version = 99",
            #[cfg(feature = "postgres")]
            Engine::Postgres => "UPDATE meta SET format = 99",
        };
        execute(&url, migration);
        assert_end(programs, "version of this program");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_takes_the_lead_of_a_moved_database_logs_the_reason_once() {
    for engines in PAIRS {
        let (env, [from, to]) = filled(engines).await;
        let arguments = [
            "--database-url",
            &from,
            "--order-process-url",
            "http://127.0.0.1:9",
        ];
        let leader = env.start("order-reconciler", &arguments, false);
        leader.logs("became leader");
        let standby = env.start("order-reconciler", &arguments, false);
        standby.logs("standing by");
        copied(&env, &from, &to);
        leader.kill();
        let log = ended(standby);
        let errors: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
        assert!(errors.last().unwrap().contains("has moved"), "{log}");
        // The writer of a server logs that a write was refused before it finds the reason.
        assert!(errors.len() <= 2, "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_run_exits_once_the_orders_have_moved() {
    for engines in PAIRS {
        let env = TestEnvironment::new();
        let [from, to] = engines.map(|engine| new_url(&env, engine));
        let store = open(&from);
        let now = store.clock().now();
        let seq = create(&store, "a1", now).await;
        let transition = Transition::Intended { previous: None };
        let lead = lead(&store).await;
        let changes = vec![OrderChange { seq, transition }];
        lead.record(changes, now).await.unwrap();
        drop((lead, store));
        let arguments = ["--once", "--database-url", &from];
        let settings = ["--request-timeout", "60s", "--order-process-url"];
        let arguments = [&arguments[..], &settings, &["http://127.0.0.1:9"]].concat();
        let run = env.start("order-reconciler", &arguments, false);
        run.logs("waiting for=60s");
        copied(&env, &from, &to);
        let begun = Instant::now();
        let log = ended(run);
        assert!(log.contains(&format!("has moved to {to}; ")), "{log}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{log}");
    }
}

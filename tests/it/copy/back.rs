//! Copies back to where orders had moved from: what the target had must be in the source, or it would be lost.

use std::time::Duration;

use rusqlite::Connection;

use super::*;
use crate::environment::Program;

/// Starts a copy whose target's lead this test has, and returns it once it waits for that.
fn waiting(env: &TestEnvironment, from: &str, to: &str) -> Program {
    let log = [("RUST_LOG", "info")];
    let program = env.start_with("order-service", &["copy", from, to], &log, false);
    let place = to.trim_start_matches("sqlite:");
    program.logs(&format!("using the database {place}"));
    program
}

/// Checks that a copy has ended with this code and reason.
fn assert_refused(mut program: Program, code: i32, reason: &str) {
    let ended = program.wait().code();
    let log = program.logged();
    assert_eq!(ended, Some(code), "{log}");
    assert!(log.contains(reason), "{log}");
}

/// Marks a target as if a copy into it had been killed.
fn interrupt(from: &str, to: &str) {
    execute(
        to,
        &format!("INSERT INTO relocation VALUES (1, 'incomplete', '{from}')"),
    );
}

/// Has the next program find a database in another place than before.
fn relocate(url: &str) {
    let place = if url.starts_with("sqlite:") {
        "file"
    } else {
        "origin"
    };
    execute(url, &format!("UPDATE histories SET {place} = 'elsewhere'"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_from_before_the_move_is_not_copied_over_the_orders_that_it_lacks() {
    for engines in PAIRS {
        let (env, [from, to]) = filled(engines).await;
        env.run(
            "order-service",
            &["backup", "b.db", "--database-url", &from],
        )
        .assert_code(0);
        create(&open(&from), "later", Timestamp(9)).await;
        let before = contents(&from).await;
        copied(&env, &from, &to);
        remove(&to);
        copied(&env, "sqlite:b.db", &to);
        let lacks = format!("{to}: lacks what {from} had when its orders moved there, ");
        let refused = |expected: &str| {
            let back = copy(&env, &[&to, &from]).assert_code(2);
            assert!(back.stderr.contains(&lacks), "{back:?}");
            assert!(back.stderr.contains(expected), "{back:?}");
            let back = copy(&env, &["--take-back", &from, &to]).assert_code(1);
            assert!(back.stderr.contains(expected), "{back:?}");
            assert!(!back.stderr.contains("brings everything back"), "{back:?}");
            check(&env, &from).assert_code(3);
        };
        refused("its orders are the same up to number 40 instead of 41");
        // The numbers are given out again, to other orders.
        for id in ["other", "later", "last"] {
            create(&open(&to), id, Timestamp(10)).await;
        }
        refused("its orders are the same up to number 40 instead of 41");
        // As if a server had been restored in place, which begins no history.
        let newest = "(SELECT number FROM histories ORDER BY number DESC LIMIT 1)";
        execute(
            &to,
            &format!("DELETE FROM histories WHERE number = {newest}"),
        );
        refused("order 41 has id = \"other\" instead of \"later\"");
        remove(&to);
        let back = copy(&env, &["--take-back", &from, &to]).assert_code(3);
        assert_eq!(follow(&env, &back.stderr).code, Some(0), "{back:?}");
        assert_eq!(contents(&to).await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_were_pruned_after_the_move_do_not_prevent_the_way_back() {
    for engines in PAIRS {
        let (env, [mut from, mut to]) = filled(engines).await;
        for round in 0..3 {
            copied(&env, &from, &to);
            let store = open(&to);
            let now = Timestamp(2_000_000_000_000);
            let pruned = store.prune(now, 0, 4 + round, now).await.unwrap();
            assert!(pruned.is_some(), "{to}");
            create(&store, &format!("new-{round}"), Timestamp(9)).await;
            store.checkpoint().await;
            drop(store);
            relocate(&to);
            let before = contents(&to).await;
            std::mem::swap(&mut from, &mut to);
            copied(&env, &from, &to);
            assert_eq!(contents(&to).await, before);
            copy(&env, &["--take-back", &from, &to]).assert_code(0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_copy_back_does_not_go_on_from_a_backup_from_before() {
    for engines in PAIRS {
        let (env, [from, to]) = filled(engines).await;
        let backup = ["backup", "b.db", "--database-url", &from];
        env.run("order-service", &backup).assert_code(0);
        create(&open(&from), "later", Timestamp(9)).await;
        copied(&env, &from, &to);
        execute(&from, "DELETE FROM relocation");
        interrupt(&to, &from);
        remove(&to);
        copied(&env, "sqlite:b.db", &to);
        let back = copy(&env, &[&to, &from]).assert_code(2);
        let expected = format!("{to}: lacks what its unfinished copy {from} has: ");
        assert!(back.stderr.contains(&expected), "{back:?}");
        execute(&from, "DELETE FROM relocation");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_waited_for_another_one_finds_that_the_orders_have_moved() {
    for engines in PAIRS {
        let (env, [from, to]) = filled(engines).await;
        copied(&env, &from, &to);
        let store = open(&to);
        let held = lead(&store).await;
        interrupt(&from, &to);
        let second = waiting(&env, &from, &to);
        // The first copy ends, and the service begins.
        execute(&to, "DELETE FROM relocation");
        create(&open(&to), "new", Timestamp(9)).await;
        drop((held, store));
        assert_refused(second, 3, &format!("{from}: has moved to {to}; "));
        let orders = all(&open(&to)).await;
        assert!(orders.iter().any(|order| order.id.as_str() == "new"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_copies_into_different_databases_one_moves_the_orders() {
    for engines in PAIRS {
        let (env, [from, to]) = filled(engines).await;
        let third = new_url(&env, engines[1]);
        let store = open(&third);
        let held = lead(&store).await;
        execute(&third, "DELETE FROM histories");
        interrupt(&from, &third);
        let second = waiting(&env, &from, &third);
        copied(&env, &from, &to);
        drop((held, store));
        assert_refused(second, 3, &format!("{from}: has moved to {to}; "));
        check(&env, &third).assert_code(3);
        check(&env, &to).assert_code(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_ends_if_the_orders_move_elsewhere_before_it_has_the_locks() {
    let (env, [from, to]) = filled([Engine::Sqlite; 2]).await;
    let [source, target] = [&from, &to].map(|url| url.strip_prefix("sqlite:").unwrap());
    let lock = fs::File::open(format!("{source}-turn")).unwrap();
    lock.lock().unwrap();
    let second = env.start("order-service", &["copy", &from, &to], false);
    // The first pass ends with the histories.
    let histories = || -> rusqlite::Result<i64> {
        let db = Connection::open(target)?;
        db.query_row("SELECT count(*) FROM histories", [], |row| row.get(0))
    };
    while !histories().is_ok_and(|count| count > 0) {
        std::thread::sleep(Duration::from_millis(5));
    }
    execute(
        &from,
        "INSERT INTO relocation VALUES (1, 'moved', 'sqlite:/third')",
    );
    drop(lock);
    assert_refused(second, 3, "has moved to sqlite:/third; ");
    check(&env, &to).assert_code(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_is_under_way_is_not_taken_back() {
    let (env, [from, to]) = filled([Engine::Sqlite; 2]).await;
    copied(&env, &from, &to);
    let log = [("RUST_LOG", "info")];
    let take_back = || {
        let arguments = ["copy", "--take-back", &from, &to];
        env.start_with("order-service", &arguments, &log, false)
    };
    let path = |url: &str| url.trim_start_matches("sqlite:").to_owned();
    let lock = |url: &str| {
        let lock = fs::File::create(format!("{}-leader", path(url))).unwrap();
        lock.lock().unwrap();
        lock
    };
    // The target is being copied into.
    interrupt(&from, &to);
    let held = lock(&to);
    let program = take_back();
    program.logs(&format!("using the database {}", path(&to)));
    execute(&to, "DELETE FROM relocation");
    create(&open(&to), "new", Timestamp(9)).await;
    drop(held);
    assert_refused(program, 1, "order \"new\" is not in the source");
    // The orders are on their way back.
    let held = lock(&from);
    let program = take_back();
    program.logs(&format!("using the database {}", path(&from)));
    execute(&from, "DELETE FROM relocation");
    interrupt(&to, &from);
    drop(held);
    assert_refused(program, 2, "has not moved to");
    check(&env, &from).assert_code(3);
}

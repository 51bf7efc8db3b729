//! Copies of whole databases: moves to another engine and back, refusals, and backups of servers.

mod back;
mod damages;
mod interrupted;
mod running;

use std::fs;

use order_service::journal_stats::JournalStats;
use order_service::order::{OrderId, Outcome, Reason, Timestamp};
use order_service::pace::UpstreamState;
use order_service::reconciler_state::ReconcilerState;
use order_service::store::{
    AttentionUpdate, Cursor, DatabaseUrl, Mode, OrderChange, Store, Transition,
};

#[cfg(feature = "postgres")]
use crate::cluster::cluster;
use crate::environment::{Ran, TestEnvironment, create, fill, lead};
use crate::store::{all, execute};

/// Engines of a source and a target.
#[derive(Clone, Copy, Debug)]
enum Engine {
    Sqlite,
    #[cfg(feature = "postgres")]
    Postgres,
}

#[cfg(not(feature = "postgres"))]
const PAIRS: [[Engine; 2]; 1] = [[Engine::Sqlite, Engine::Sqlite]];
#[cfg(feature = "postgres")]
const PAIRS: [[Engine; 2]; 4] = [
    [Engine::Sqlite, Engine::Sqlite],
    [Engine::Sqlite, Engine::Postgres],
    [Engine::Postgres, Engine::Sqlite],
    [Engine::Postgres, Engine::Postgres],
];

/// Returns the URL of a database that does not exist yet.
fn new_url(env: &TestEnvironment, engine: Engine) -> String {
    match engine {
        Engine::Sqlite => format!(
            "sqlite:{}",
            env.path(&format!("{}.db", fastrand::u32(..))).display()
        ),
        #[cfg(feature = "postgres")]
        Engine::Postgres => cluster().url(&cluster().database()),
    }
}

fn open(url: &str) -> Store {
    let url: DatabaseUrl = url.parse().unwrap();
    Store::open(&url, Mode::Threaded).unwrap()
}

fn copy(env: &TestEnvironment, arguments: &[&str]) -> Ran {
    env.run("order-service", &[&["copy"], arguments].concat())
}

fn copied(env: &TestEnvironment, from: &str, to: &str) -> Ran {
    let ran = copy(env, &[from, to]).assert_code(0);
    assert!(ran.stdout.contains("equal, and sound"), "{ran:?}");
    assert!(
        !ran.stderr.contains("created"),
        "it warns of a new database: {ran:?}"
    );
    ran
}

/// Creates a database with orders in every state, some of them pruned, and a heartbeat with learned values.
/// Returns its URL, and that of a database that does not exist yet.
async fn filled(engines: [Engine; 2]) -> (TestEnvironment, [String; 2]) {
    let env = TestEnvironment::new();
    let urls = engines.map(|engine| new_url(&env, engine));
    let store = open(&urls[0]);
    let ids: Vec<_> = (0..40).map(|n| format!("\\o{n}é\u{65e5}")).collect();
    fill(&store, &ids, 40).await;
    let lead = lead(&store).await;
    let attention = |reason| AttentionUpdate {
        reason,
        detail: "tab\\t and \\N".to_owned(),
        next_attempt_at: Timestamp(2_000_000_000_000),
    };
    for seq in 1..=30 {
        let steps = match seq {
            ..=20 => vec![
                Transition::Intended { previous: None },
                Transition::Started { is_observed: false },
                Transition::Settled([Outcome::Succeeded, Outcome::Failed][seq as usize % 2]),
            ],
            21..=23 => vec![Transition::Intended { previous: None }],
            24 => vec![
                Transition::Intended { previous: None },
                Transition::GivenUp {
                    answer_status: Some(503),
                    is_counted: true,
                    attention: attention(Reason::UpstreamUnreachable),
                },
            ],
            25 => vec![Transition::Flagged(attention(Reason::StartRefused))],
            26 => vec![Transition::Adopted, Transition::ProcessObserved],
            27 => vec![
                Transition::Adopted,
                Transition::Missed {
                    began_at: Timestamp(5),
                },
            ],
            _ => vec![
                Transition::Adopted,
                Transition::Flagged(attention(Reason::ProcessLost)),
            ],
        };
        let changes = steps
            .into_iter()
            .map(|transition| OrderChange { seq, transition });
        let now = Timestamp(1_999_999_999_000 + seq);
        lead.record(changes.collect(), now).await.unwrap();
    }
    let before = Timestamp(1_999_999_999_006);
    let pruned = store
        .prune(before, 0, 10, Timestamp(2_000_000_000_000))
        .await;
    assert_eq!(pruned.unwrap().unwrap().0.orders(), 5);
    let mut heartbeat = ReconcilerState {
        leader_since: Some(Timestamp(7)),
        next_pass_at: Some(Timestamp(8)),
        upstream: UpstreamState::Down {
            since: Timestamp(6),
            detail: "no answer \\ \"here\"".to_owned(),
        },
        ..ReconcilerState::default()
    };
    heartbeat.metrics =
        serde_json::from_value(serde_json::to_value(&heartbeat.metrics).unwrap()).unwrap();
    lead.write_heartbeat(heartbeat).await.unwrap();
    store.checkpoint().await;
    (env, urls)
}

/// Returns everything that the programs read, with the cursors of readers.
async fn contents(url: &str) -> Vec<String> {
    let store = open(url);
    let now = Timestamp(2_000_000_000_000);
    let mut lines = Vec::new();
    for order in all(&store).await {
        lines.push(format!(
            "{:?}",
            store.details(&order.id, now).await.unwrap()
        ));
    }
    let events = store.events(None, Cursor::default(), 1_000).await.unwrap();
    lines.push(format!("{events:?}"));
    let mut stats = JournalStats::default();
    let snapshot = store.update_stats(&mut stats, now).await.unwrap();
    lines.push(format!("{snapshot:?} {stats:?}"));
    lines.push(format!("{:?}", store.heartbeat().await.unwrap()));
    store.checkpoint().await;
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_equal_after_a_move_to_each_engine_and_back() {
    for engines in PAIRS {
        let (env, [from, to]) = filled(engines).await;
        let before = contents(&from).await;
        copied(&env, &from, &to);
        let compared = copy(&env, &["--verify-only", &from, &to]).assert_code(0);
        assert_eq!(compared.stdout, "equal\n");
        assert_eq!(contents(&to).await, before, "{from} {to}");
        // Back, with a new order.
        create(&open(&to), "new", Timestamp(9)).await;
        let later = contents(&to).await;
        assert_ne!(later, before);
        copied(&env, &to, &from);
        assert_eq!(contents(&from).await, later, "{to} {from}");
        env.run("order-service", &["check", "--database-url", &from])
            .assert_code(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_or_incomplete_database_is_refused_with_one_line() {
    for engines in PAIRS {
        let (env, [from, to]) = filled(engines).await;
        let before = contents(&from).await;
        let refused = |url: &str, expected: &str| {
            for arguments in [
                &["order-service", "api", "--listen", "127.0.0.1:0"][..],
                &["order-reconciler", "--once"],
                &["order-service", "check"],
                &["order-service", "prune", "--settled-before", "1d"],
            ] {
                let arguments_all = [&arguments[1..], &["--database-url", url]].concat();
                let ran = env.run(arguments[0], &arguments_all);
                assert_eq!(ran.code, Some(3), "{arguments:?} {ran:?}");
                assert!(ran.stderr.contains(expected), "{arguments:?} {ran:?}");
                assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
            }
        };
        // Writes of running programs are refused.
        let running = open(&from);
        copied(&env, &from, &to);
        let late = running
            .create(OrderId::new("late").unwrap(), Timestamp(9))
            .await;
        assert!(late.is_err(), "{late:?}");
        assert!(running.check_writable(Timestamp(9)).await.is_err());
        drop(running);
        let moved = format!("has moved to {to}; ");
        refused(&from, &moved);
        let again = copy(&env, &[&from, &to]).assert_code(3);
        assert!(
            again.stderr.contains(&format!("{from}: {moved}")),
            "{again:?}"
        );
        // As if the copy had been killed between its last two transactions.
        let marker = format!("INSERT INTO relocation VALUES (1, 'incomplete', '{from}')");
        execute(&to, &marker);
        copied(&env, &from, &to);
        // The target has not been written to since.
        let back = copy(&env, &["--take-back", &from, &to]).assert_code(0);
        let [orders, entries] = ["orders   35\n", "entries\n  checked  equal\n"];
        assert!(back.stdout.contains(orders), "{back:?}");
        assert!(back.stdout.contains(entries), "{back:?}");
        assert_eq!(contents(&from).await, before);
        refused(&to, &format!("has moved to {from}; "));
        let back = copy(&env, &["--take-back", &from, &to]).assert_code(2);
        assert!(back.stderr.contains("has not moved"), "{back:?}");
        // The target's orders, which are equal, are kept.
        copied(&env, &from, &to);
        create(&open(&to), "new", Timestamp(9)).await;
        let back = copy(&env, &["--take-back", &from, &to]).assert_code(1);
        // Its entry of the journal differs too: the first difference is enough.
        let differs = format!("{to} differs from the source: order \"new\" is not in the source; ");
        assert!(back.stderr.contains(&differs), "{back:?}");
        assert!(back.stderr.contains("brings everything back"), "{back:?}");
        refused(&from, &moved);
        assert_eq!(follow(&env, &back.stderr).code, Some(0), "{back:?}");
        refused(&to, &format!("has moved to {from}; "));
    }
}

/// Removes a database as its operator would do it.
fn remove(url: &str) {
    match url.strip_prefix("sqlite:") {
        Some(file) => fs::remove_file(file).unwrap(),
        None => execute(url, "DROP SCHEMA order_service CASCADE"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_whose_target_was_lost_is_repeated_and_never_undone_from_an_empty_one() {
    for engines in PAIRS {
        let (env, [from, to]) = filled(engines).await;
        let before = contents(&from).await;
        copied(&env, &from, &to);
        remove(&to);
        let lost = copy(&env, &["--take-back", &from, &to]).assert_code(3);
        assert!(
            lost.stderr.contains("there is no order database; "),
            "{lost:?}"
        );
        // As if a program of the service had been started again before the advice is followed.
        drop(open(&to));
        for arguments in [&["--take-back", &from, &to][..], &[&to, &from]] {
            let anew = copy(&env, arguments);
            assert_ne!(anew.code, Some(0), "{anew:?}");
            assert!(anew.stderr.contains("was created anew"), "{anew:?}");
            let to_do = "to give up the orders that it holds, ";
            assert!(anew.stderr.contains(to_do), "{anew:?}");
        }
        remove(&to);
        assert_eq!(follow(&env, &lost.stderr).code, Some(0), "{lost:?}");
        assert_eq!(contents(&to).await, before);
    }
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_cannot_be_reached_is_reported_with_what_can_be_done() {
    let (env, [from, _]) = filled([Engine::Sqlite, Engine::Postgres]).await;
    let to = "postgres://me@127.0.0.1:1/orders";
    execute(
        &from,
        &format!("INSERT INTO relocation VALUES (1, 'moved', '{to}')"),
    );
    let lost = copy(&env, &["--take-back", &from, to]).assert_code(3);
    let expected =
        format!("if it is lost, with all that was written to it, `order-service copy {from} ");
    assert!(lost.stderr.contains(&expected), "{lost:?}");
    check(&env, &from).assert_code(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_refused_leaves_no_target_behind() {
    for engines in PAIRS {
        let (env, [from, to]) = filled(engines).await;
        copied(&env, &from, &to);
        let third = new_url(&env, engines[1]);
        let refused = copy(&env, &[&from, &third]).assert_code(3);
        let expected = format!("{from}: has moved to {to}; ");
        assert!(refused.stderr.contains(&expected), "{refused:?}");
        execute(
            &to,
            &format!("INSERT INTO relocation VALUES (1, 'incomplete', '{from}')"),
        );
        let refused = copy(&env, &[&to, &third]).assert_code(3);
        let expected = format!("{to}: is an incomplete copy of {from}; ");
        assert!(refused.stderr.contains(&expected), "{refused:?}");
        execute(&to, "DELETE FROM relocation");
        assert_eq!(check(&env, &third).code, Some(3), "nothing is there");
        copied(&env, &to, &third);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_advice_of_a_refusal_can_be_followed_as_it_is() {
    for engines in PAIRS {
        let (env, [from, to]) = filled(engines).await;
        copied(&env, &from, &to);
        execute(
            &to,
            &format!("INSERT INTO relocation VALUES (1, 'incomplete', '{from}')"),
        );
        let incomplete = check(&env, &to).assert_code(3).stderr;
        let removal = match engines[1] {
            Engine::Sqlite => " again, or delete the file\n",
            #[cfg(feature = "postgres")]
            Engine::Postgres => "`DROP SCHEMA order_service CASCADE`",
        };
        assert!(incomplete.contains(removal), "{incomplete}");
        assert_eq!(follow(&env, &incomplete).code, Some(0), "{incomplete}");
        let moved = check(&env, &from).assert_code(3).stderr;
        let back = follow(&env, &moved).assert_code(0);
        let address = |url: &str| url.trim_start_matches("sqlite:").to_owned();
        assert!(back.stdout.contains(&address(&from)), "{back:?}");
        check(&env, &from).assert_code(0);
        check(&env, &to).assert_code(3);
    }
}

fn check(env: &TestEnvironment, url: &str) -> Ran {
    env.run("order-service", &["check", "--database-url", url])
}

/// Runs the command that a message advises.
fn follow(env: &TestEnvironment, message: &str) -> Ran {
    let (_, command) = message.split_once("`order-service ").expect(message);
    let (command, _) = command.split_once('`').expect(message);
    let arguments: Vec<_> = command
        .split(' ')
        .map(|word| word.trim_matches('\''))
        .collect();
    env.run("order-service", &arguments)
}

#[test]
fn a_password_in_an_argument_is_refused_and_not_repeated() {
    let env = TestEnvironment::new();
    for arguments in [
        ["postgres://me:hunter2@localhost/o", "sqlite:o.db"],
        ["sqlite:o.db", "postgres://me:hunter2@localhost/o"],
    ] {
        let ran = copy(&env, &arguments).assert_code(2);
        assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
        if cfg!(feature = "postgres") {
            assert!(ran.stderr.contains("may hold no password"), "{ran:?}");
            // A copy reads no other address than its arguments.
            assert!(!ran.stderr.contains("DATABASE_URL"), "{ran:?}");
        }
    }
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_server_is_a_file_that_can_be_restored_repeatedly() {
    let (env, [from, _]) = filled([Engine::Postgres, Engine::Sqlite]).await;
    let events = |lines: &[String]| lines[..lines.len() - 3].to_vec();
    let before = contents(&from).await;
    let taken = env
        .run(
            "order-service",
            &["backup", "b.db", "--database-url", &from],
        )
        .assert_code(0);
    assert!(taken.stdout.contains("checked  ok"), "{taken:?}");
    let backup = fs::read(env.path("b.db")).unwrap();
    for engine in [Engine::Postgres, Engine::Sqlite] {
        let to = new_url(&env, engine);
        let ran = copied(&env, "sqlite:b.db", &to);
        assert!(ran.stdout.contains("restored"), "{ran:?}");
        let after = contents(&to).await;
        assert_eq!(events(&after), events(&before));
        // The restored database continues with a history of its own.
        assert_ne!(after, before);
    }
    assert_eq!(fs::read(env.path("b.db")).unwrap(), backup);
    assert_eq!(
        contents(&from).await,
        before,
        "the server's database is unchanged"
    );
}

//! Copies that are killed, and copies of databases that programs write, read and reconcile meanwhile.

use std::time::Duration;

use order_service::order::{OrderId, Timestamp};
use order_service::store::{self, Cursor};

use super::{Engine, PAIRS, contents, copied, copy, filled, new_url, open};
use crate::environment::{Client, TestEnvironment, assert_agree, fill};
use crate::events::Events;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_copy_resumes_and_ends_equal() {
    for engines in PAIRS {
        check_kills(engines, 6, 400).await;
    }
}

/// Kills copies at random times. Each is run again, and the databases are equal then.
async fn check_kills(engines: [Engine; 2], kills: usize, orders: usize) {
    let (env, [mut from, mut to]) = filled(engines).await;
    let ids: Vec<_> = (0..orders).map(|n| format!("more-{n}")).collect();
    fill(&open(&from), &ids, 200).await;
    let mut before = contents(&from).await;
    let mut took = Duration::from_millis(1_500);
    let mut done = 0;
    while done < kills {
        let mut program = env.start("order-service", &["copy", &from, &to], false);
        std::thread::sleep(took.mul_f64(fastrand::f64()));
        if program.ended().is_none() {
            program.signal("KILL");
            done += 1;
        }
        program.wait();
        if fastrand::bool() {
            continue;
        }
        let began = std::time::Instant::now();
        let ran = copy(&env, &[&from, &to]);
        took = began.elapsed();
        match ran.code {
            Some(0) => {}
            // The copy before completed before it could be killed.
            Some(3) if ran.stderr.contains("has moved to") => {}
            _ => panic!("{ran:?}"),
        }
        let compared = copy(&env, &["--verify-only", &from, &to]);
        assert_eq!(compared.stdout, "equal\n", "{compared:?}");
        assert_eq!(contents(&to).await, before);
        // Back, with a new order.
        let id = OrderId::new(format!("after-{done}")).unwrap();
        open(&to).create(id, Timestamp(9)).await.unwrap();
        before = contents(&to).await;
        std::mem::swap(&mut from, &mut to);
    }
}

#[cfg(feature = "postgres")]
#[test]
fn an_interrupted_command_says_what_it_leaves_and_whether_to_run_it_again() {
    for (flag, expected) in [
        (None, "copy interrupted; run it again to go on"),
        (
            Some("--take-back"),
            "take-back interrupted; run it again, and it begins anew",
        ),
        (
            Some("--verify-only"),
            "comparison interrupted; nothing was changed",
        ),
    ] {
        let env = TestEnvironment::new();
        // A server that never answers.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("postgres://me@{}/orders", silent.local_addr().unwrap());
        let urls = [url.as_str(), url.as_str()];
        let arguments: Vec<_> = ["copy"].into_iter().chain(flag).chain(urls).collect();
        let mut program = env.start("order-service", &arguments, false);
        let connection = silent.accept().unwrap();
        program.signal("TERM");
        assert_eq!(program.wait().code(), Some(1));
        assert_eq!(program.logged(), format!("error: {expected}\n"));
        drop(connection);
    }
}

/// Kills copies of 20,000 orders; `ORDER_TEST_KILLS` is the number of kills.
#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; with --features postgres, by hand"]
async fn killed_copies_of_twenty_thousand_orders_end_equal() {
    let kills = std::env::var("ORDER_TEST_KILLS").ok();
    let kills = kills.map_or(5, |kills| kills.parse().unwrap());
    check_kills([Engine::Sqlite, Engine::Postgres], kills, 20_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_progress_of_a_copy_counts_each_order_once() {
    let (_env, [from, to]) = filled([Engine::Sqlite; 2]).await;
    let [from, to] = [&from, &to].map(|url| url.parse().unwrap());
    let mut counts = Vec::new();
    let moved = store::move_database(&from, &to, |count| counts.push(count)).unwrap();
    assert_eq!((moved.rows[0], moved.open), (35, 20));
    // The last pass copies the open ones again.
    assert!(counts.len() > 1, "{counts:?}");
    assert!(counts.iter().all(|count| *count == 35), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_are_created_during_a_copy_are_all_in_it() {
    for engines in PAIRS {
        let (env, [from, to]) = filled(engines).await;
        let store = open(&from);
        let writer = tokio::spawn(async move {
            let mut created = Vec::new();
            for number in 0.. {
                let id = OrderId::new(format!("w{number}")).unwrap();
                // Until the orders have moved.
                match store.create(id.clone(), Timestamp(9)).await {
                    Ok(_) => created.push(id),
                    Err(_) => break,
                }
            }
            created
        });
        tokio::task::block_in_place(|| copied(&env, &from, &to));
        let created = writer.await.unwrap();
        let store = open(&to);
        for id in &created {
            assert!(
                store.find(id).await.unwrap().is_some(),
                "{id} was acknowledged"
            );
        }
        assert!(!created.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_reconnects_after_a_move_misses_and_repeats_nothing() {
    for engines in PAIRS {
        let (env, [from, to]) = filled(engines).await;
        let client = Client::new();
        let api = |url: &str| {
            let arguments = ["api", "--listen", "127.0.0.1:0", "--database-url", url];
            env.start("order-service", &arguments, true)
        };
        let mut numbers = Vec::new();
        let mut last = None;
        for url in [&from, &to, &from] {
            let program = api(url);
            let mut events = Events::open(&client, &program, "", last.as_deref()).await;
            for n in 0..3 {
                let id = format!("e{}-{n}", numbers.len());
                assert_eq!(client.create(&program.url, &id).await.status, 201);
            }
            // All entries of the first program, and the new ones of each later program.
            let newest = open(url).newest_event().await.unwrap().seq;
            while numbers.last().is_none_or(|last| *last < newest) {
                let (id, _) = events.next_block().await.expect("the stream continues");
                numbers.push(id.split('-').next().unwrap().parse::<i64>().unwrap());
                last = Some(id);
            }
            program.stop();
            let other = if *url == from { &to } else { &from };
            copied(&env, url, other);
        }
        let all = open(&to).events(None, Cursor::default(), 1_000).await;
        let all: Vec<_> = all.unwrap().0.iter().map(|event| event.seq).collect();
        assert_eq!(numbers, all);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_moves_under_load_settles_every_order_and_starts_none_twice() {
    for [from, to] in PAIRS {
        let env = TestEnvironment::new();
        let simulator = env.simulator(&["--max-order-process-duration", "2"]);
        let (from, to) = (new_url(&env, from), new_url(&env, to));
        let client = Client::new();
        let serve = |url: &str| {
            let listen = ["serve", "--listen", "127.0.0.1:0", "--database-url", url];
            let upstream = ["--order-process-url", &simulator.url];
            env.start("order-service", &[&listen[..], &upstream].concat(), true)
        };
        let before = serve(&from);
        for n in 0..60 {
            let created = client.create(&before.url, &format!("o{n}")).await;
            assert_eq!(created.status, 201);
        }
        copied(&env, &from, &to);
        let late = client.request("POST", format!("{}/order", before.url));
        let late = late.header("content-type", "application/json");
        let late = late.body(r#"{"id":"late"}"#).send().await;
        // Soon after the move the program has ended.
        let is_refused = late.map_or_else(|error| error.is_connect(), |late| late.status() == 503);
        assert!(is_refused);
        let after = serve(&to);
        let orders = client.settled(&after.url, 60).await;
        before.kill();
        assert_agree(&env, &orders);
    }
}

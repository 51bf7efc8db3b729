//! Failovers of PostgreSQL: servers that are killed, stopped and promoted, connections that end at a
//! commit, and an asynchronous standby that lacks the last commits. Callers see a delay and no error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use order_service::clock::{Clock, SystemClock};
use order_service::journal_stats::JournalStats;
use order_service::order::{OrderId, Status, Timestamp};
use order_service::store::{
    Creation, Cursor, Durability, OperatorResult, OrderChange, Resolution, Store, StoreError,
    Transition,
};

use super::postgres::open;
use super::{all, create, journal};
use crate::cluster::{Cluster, send};
use crate::environment::{Client, TestEnvironment, assert_problem};
use crate::proxy::{Fault, Proxy};

/// Callers that create orders without a pause.
struct Load {
    is_over: Arc<AtomicBool>,
    callers: Vec<tokio::task::JoinHandle<Answers>>,
}

/// Answers to the callers, and their longest wait.
#[derive(Default)]
struct Answers {
    created: Vec<(String, i64)>,
    failed: Vec<String>,
    longest: Duration,
}

impl Answers {
    fn add(&mut self, other: Self) {
        self.created.extend(other.created);
        self.failed.extend(other.failed);
        self.longest = self.longest.max(other.longest);
    }
}

impl Load {
    fn begin(store: &Store, name: &'static str, callers: usize) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let call = |caller| {
            let (store, is_over) = (store.clone(), is_over.clone());
            tokio::spawn(async move {
                let mut answers = Answers::default();
                let mut count = 0;
                while !is_over.load(Ordering::Relaxed) {
                    count += 1;
                    let id = format!("{name}{caller}-{count}");
                    let begun = Instant::now();
                    let order = OrderId::new(id.as_str()).unwrap();
                    match store.create(order, SystemClock.now()).await {
                        Ok(Creation::Created(order)) => answers.created.push((id, order.seq)),
                        other => answers.failed.push(format!("{id}: {other:?}")),
                    }
                    answers.longest = answers.longest.max(begun.elapsed());
                }
                answers
            })
        };
        let callers = (0..callers).map(call).collect();
        Self { is_over, callers }
    }

    async fn end(self) -> Answers {
        self.is_over.store(true, Ordering::Relaxed);
        let mut all = Answers::default();
        for caller in self.callers {
            all.add(caller.await.unwrap());
        }
        all
    }
}

/// Returns the ids and numbers of all orders.
async fn orders(store: &Store) -> Vec<(String, i64)> {
    let orders = all(store).await.into_iter();
    orders
        .map(|order| (order.id.to_string(), order.seq))
        .collect()
}

/// Checks that no creation failed, that exactly the acknowledged orders exist, and that their numbers have
/// no gaps.
async fn assert_complete(store: &Store, answers: &Answers) {
    assert_eq!(answers.failed, Vec::<String>::new());
    let mut acknowledged = answers.created.clone();
    acknowledged.sort_by_key(|(_, seq)| *seq);
    let found = orders(store).await;
    assert_eq!(found, acknowledged);
    assert!(found.iter().map(|(_, seq)| *seq).eq(1..=found.len() as i64));
    assert_eq!(journal(store).await.len(), found.len().min(1_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_a_killed_server_delays_requests_and_fails_none() {
    let mut primary = Cluster::own(&[]);
    let store = open(&[primary.port()]);
    let load = Load::begin(&store, "a", 16);
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        primary.kill();
        primary.start_again();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_complete(&store, &load.end().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_synchronous_standby_has_every_order_and_takes_over_soon() {
    let primary = Cluster::own(&[]);
    let standby = primary.standby("second");
    primary.replicate_to("second");
    let ports = [primary.port(), standby.port()];
    let (one, two) = (open(&ports), open(&ports));
    let (load, other) = (Load::begin(&one, "a", 8), Load::begin(&two, "b", 8));
    tokio::time::sleep(Duration::from_millis(500)).await;
    primary.kill();
    let begun = Instant::now();
    standby.promote();
    let promotion = begun.elapsed();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let mut answers = load.end().await;
    answers.add(other.end().await);
    println!(
        "promotion {promotion:?}, longest wait {:?}",
        answers.longest
    );
    // One second, and a margin for a busy machine.
    assert!(answers.longest < promotion + Duration::from_secs(3));
    assert_complete(&one, &answers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_wait_for_the_standby_is_not_reported_as_success() {
    let primary = Cluster::own(&[]);
    let standby = primary.standby("second");
    let store = open(&[primary.port()]);
    create(&store, "a1", 1).await;
    primary.replicate_to("second");
    standby.stop();
    let creation = tokio::spawn({
        let store = store.clone();
        async move { create(&store, "a2", 2).await }
    });
    for _ in 0..2 {
        let cancel =
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        primary.wait_for(cancel);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!creation.is_finished(), "the standby may lack the order");
    }
    let visible = primary.run("postgres", "SELECT count(*) FROM order_service.orders");
    assert_eq!(visible, "2", "it is visible although it is not replicated");
    standby.resume();
    assert_eq!(creation.await.unwrap(), 2);
    let replicated = standby.run("postgres", "SELECT count(*) FROM order_service.orders");
    assert_eq!(replicated, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_a_standby_has_not_flushed_is_not_called_replicated() {
    for (setting, durability) in [
        ("on", Durability::Replicated),
        ("remote_apply", Durability::Replicated),
        ("remote_write", Durability::Disk),
    ] {
        let primary = Cluster::own(&[&format!("synchronous_commit={setting}")]);
        let _standby = primary.standby("second");
        primary.replicate_to("second");
        assert_eq!(open(&[primary.port()]).info().durability, durability);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_only_the_primary_has_is_not_reported_as_existing() {
    let primary = Cluster::own(&[]);
    let standby = primary.standby("second");
    let store = open(&[primary.port()]);
    primary.replicate_to("second");
    standby.stop();
    // As if the primary had crashed while the commit waited.
    primary.run(
        "postgres",
        "SET synchronous_commit = local; SET search_path = order_service; \
         INSERT INTO orders (seq, id, status, created_at, updated_at, batch) \
         VALUES (1, 'a1', 'CREATED', 1, 1, 1); \
         INSERT INTO journal (seq, order_seq, at, reason) VALUES (1, 1, 1, 'created')",
    );
    let creation = tokio::spawn(async move {
        let id = OrderId::new("a1").unwrap();
        store.create(id, Timestamp(2)).await
    });
    primary.wait_for("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
    assert!(!creation.is_finished());
    standby.resume();
    let found = creation.await.unwrap();
    assert!(matches!(found, Ok(Creation::Exists(_))), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ends_at_a_commit_fails_no_creation_and_repeats_none() {
    let primary = Cluster::own(&[]);
    let proxy = Proxy::start(primary.port()).await;
    let store = open(&[proxy.port]);
    let load = Load::begin(&store, "a", 8);
    let until = async |is_reached: &dyn Fn() -> bool| {
        while !is_reached() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    for _ in 0..10 {
        for fault in [Fault::CutBeforeCommit, Fault::CutAfterCommit] {
            let (cut, answered) = (proxy.cut(), proxy.answered());
            proxy.set(fault);
            until(&|| proxy.cut() > cut).await;
            proxy.set(Fault::Open);
            until(&|| proxy.answered() > answered + 3).await;
        }
    }
    assert_complete(&store, &load.end().await).await;
}

/// Makes a write whose first commit has this fault.
async fn through<T>(proxy: &Proxy, fault: Fault, write: impl Future<Output = T>) -> T {
    let cut = proxy.cut();
    proxy.set(fault);
    let heal = async {
        while fault != Fault::Open && proxy.cut() == cut {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        proxy.set(Fault::Open);
    };
    tokio::join!(write, heal).0
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_and_decisions_whose_commit_is_cut_are_made_once_and_conflicts_are_reported() {
    let primary = Cluster::own(&[]);
    let proxy = Proxy::start(primary.port()).await;
    let store = open(&[proxy.port]);
    let lead = store.try_lead().await.unwrap().unwrap();
    let intended = Transition::Intended { previous: None };
    for (number, fault) in (1..).zip([
        Fault::Open,
        Fault::CutBeforeCommit,
        Fault::CutAfterCommit,
        Fault::CutBeforeCommit,
        Fault::CutAfterCommit,
    ]) {
        let one = create(&store, &format!("a{number}"), number).await;
        let other = create(&store, &format!("b{number}"), number).await;
        let changes = [(one, intended.clone()), (other, Transition::Adopted)];
        for expected in [(2, vec![]), (0, vec![one, other])] {
            let changes = changes.iter().cloned();
            let changes = changes.map(|(seq, transition)| OrderChange { seq, transition });
            let recorded = lead.record(changes.collect(), Timestamp(number));
            let recorded = through(&proxy, fault, recorded).await.unwrap();
            assert_eq!(
                (recorded.changed, recorded.conflicts),
                expected,
                "{fault:?}"
            );
        }
        let transition = Transition::Missed {
            began_at: Timestamp(number),
        };
        let lost = OrderChange {
            seq: other,
            transition,
        };
        lead.record(vec![lost], Timestamp(number)).await.unwrap();
        for expected in [
            OperatorResult::Done,
            OperatorResult::Settled(Status::Failed),
        ] {
            let id = OrderId::new(format!("b{number}")).unwrap();
            let resolved = store.resolve(id, Resolution::Fail, Timestamp(number));
            let resolved = through(&proxy, fault, resolved).await.unwrap();
            assert_eq!(resolved, expected, "{fault:?}");
        }
        let (events, _) = store.events(None, Cursor::default(), 1_000).await.unwrap();
        assert!(events.iter().map(|event| event.seq).eq(1..=4 * number));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn changes_that_reach_the_server_after_their_repetition_have_no_effect() {
    let primary = Cluster::own(&[]);
    let store = open(&[primary.port()]);
    let seq = create(&store, "a1", 1).await;
    let lead = store.try_lead().await.unwrap().unwrap();
    let record = async |transition| {
        let changes = vec![OrderChange { seq, transition }];
        let recorded = lead.record(changes, Timestamp(2)).await.unwrap();
        assert_eq!(recorded.changed, 1);
    };
    let counted = |is_counted| Transition::Counted {
        written_at: Timestamp(2),
        is_counted,
    };
    record(Transition::Intended { previous: None }).await;
    // Their statement is prepared, which takes an answer.
    record(counted(true)).await;
    record(counted(false)).await;
    let pid = "SELECT pid FROM pg_stat_activity WHERE query = 'COMMIT'";
    let pid = primary.run("postgres", pid).parse().unwrap();
    send("STOP", &[pid]);
    record(counted(true)).await;
    record(counted(false)).await;
    record(counted(true)).await;
    send("CONT", &[pid]);
    let ended =
        format!("SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = {pid})");
    primary.wait_for(&ended);
    let starts = primary.run("postgres", "SELECT starts FROM order_service.orders");
    assert_eq!(starts, "2");
    // As on a server that was promoted and lacks the last batch.
    primary.run("postgres", "UPDATE order_service.writers SET batch = 1");
    record(counted(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_delays_nothing_once_another_accepts_writes() {
    let primary = Cluster::own(&[]);
    let standby = primary.standby("second");
    primary.replicate_to("second");
    let store = open(&[primary.port(), standby.port()]);
    create(&store, "a1", 1).await;
    let mut stats = JournalStats::default();
    store.update_stats(&mut stats, Timestamp(1)).await.unwrap();
    primary.stop();
    standby.leave();
    standby.promote();
    let begun = Instant::now();
    let (stats, created) = tokio::join!(
        store.update_stats(&mut stats, Timestamp(2)),
        create(&store, "a2", 2),
    );
    assert!(stats.is_ok(), "{stats:?}");
    assert_eq!(created, 2);
    assert_eq!(orders(&store).await.len(), 2);
    println!(
        "a server that hangs is given up after {:?}",
        begun.elapsed()
    );
    assert!(begun.elapsed() < Duration::from_secs(15));
    // Resumed, it is a former primary, which must not be used.
    primary.resume();
    let other = open(&[primary.port(), standby.port()]);
    assert_eq!(orders(&other).await.len(), 2);
    for number in 3..6 {
        assert_eq!(create(&store, &format!("a{number}"), number).await, number);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_primary_that_still_answers_is_left_soon() {
    let primary = Cluster::own(&[]);
    let standby = primary.standby("second");
    primary.replicate_to("second");
    let reader = open(&[primary.port(), standby.port()]);
    assert!(orders(&reader).await.is_empty());
    standby.leave();
    standby.promote();
    // It has not heard of the former primary.
    let writer = open(&[standby.port()]);
    create(&writer, "a1", 1).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    let id = OrderId::new("a1").unwrap();
    while reader.find(&id).await.unwrap().is_none() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(orders(&reader).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_asynchronous_standby_reuses_numbers_and_readers_are_refused() {
    let primary = Cluster::own(&[]);
    let standby = primary.standby("second");
    let store = open(&[primary.port(), standby.port()]);
    create(&store, "a1", 1).await;
    primary.wait_for("SELECT 1 FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()");
    standby.leave();
    for number in 2..=5 {
        create(&store, &format!("a{number}"), number).await;
    }
    let (_, there) = store.events(None, Cursor::default(), 1_000).await.unwrap();
    assert_eq!((there.seq, store.info().lost_entries), (5, 0));
    primary.kill();
    standby.promote();
    assert_eq!(create(&store, "b2", 6).await, 2, "the number is reused");
    assert_eq!(store.info().lost_entries, 4);
    for cursor in [there, Cursor::bare(5)] {
        let gone = store.events(None, cursor, 10).await;
        assert!(matches!(gone, Err(StoreError::Gone(_))), "{gone:?}");
    }
    let (events, _) = store.events(None, Cursor::default(), 10).await.unwrap();
    assert_eq!(events.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_no_standby_confirms_is_answered_within_a_time_limit() {
    let primary = Cluster::own(&[]);
    let store = open(&[primary.port()]);
    create(&store, "a1", 1).await;
    primary.set("synchronous_standby_names", "nobody");
    let begun = Instant::now();
    let id = OrderId::new("a2").unwrap();
    let answer = store.create(id, Timestamp(2)).await;
    assert!(
        matches!(answer, Err(StoreError::OutcomeUnknown)),
        "{answer:?}"
    );
    assert!(begun.elapsed() < Duration::from_secs(15));
    assert_eq!(store.info().durability, Durability::Replicated);
    primary.set("synchronous_standby_names", "");
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match store
            .create(OrderId::new("a2").unwrap(), Timestamp(3))
            .await
        {
            Ok(Creation::Exists(order)) => break assert_eq!(order.seq, 2),
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_start_while_no_standby_confirms_commits() {
    let primary = Cluster::own(&[]);
    let store = open(&[primary.port()]);
    let _lead = store.try_lead().await.unwrap().unwrap();
    let age = "UPDATE order_service.writers SET used_at = now() - interval '2 days' RETURNING 1";
    assert_eq!(primary.run("postgres", age), "1");
    primary.set("synchronous_standby_names", "nobody");
    let port = primary.port();
    let opened = tokio::task::spawn_blocking(move || open(&[port]));
    let opened = tokio::time::timeout(Duration::from_secs(10), opened).await;
    assert!(opened.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_a_promoted_server_do_not_wait_for_its_standbys() {
    let primary = Cluster::own(&[]);
    let standby = primary.standby("second");
    primary.replicate_to("second");
    let store = open(&[primary.port(), standby.port()]);
    create(&store, "a1", 1).await;
    standby.set("synchronous_standby_names", "nobody");
    primary.kill();
    standby.promote();
    let found = store.find(&OrderId::new("a1").unwrap()).await;
    assert!(matches!(found, Ok(Some(_))), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_answer_in_time_while_a_server_is_down_and_the_log_has_the_cause() {
    let env = TestEnvironment::new();
    let client = Client::new();
    let server = Cluster::own(&[]);
    let url = server.url("postgres");
    let arguments = ["api", "--listen", "127.0.0.1:0", "--database-url", &url];
    let api = env.start("order-service", &arguments, true);
    assert_eq!(client.create(&api.url, "a1").await.status, 201);
    // A failed statement is not retried.
    server.run("postgres", "DROP TABLE order_service.orders CASCADE");
    let lost = client.get(format!("{}/order/a1", api.url)).await;
    assert_problem(&lost, 503);
    api.logs("relation \"orders\" does not exist");
    server.kill();
    let check_health = || env.run("order-service", &["health", "--listen", api.address()]);
    // Reads time out concurrently, not one after the other.
    let lists = (0..40).map(|_| client.get(format!("{}/order?limit=1", api.url)));
    let (health, metrics, lists) = tokio::join!(
        async { tokio::task::block_in_place(check_health) },
        client.get(format!("{}/metrics", api.url)),
        futures_util::future::join_all(lists),
    );
    lists.iter().for_each(|answer| assert_problem(answer, 503));
    let logged = api.logged().matches("request failed").count();
    assert!(logged < lists.len(), "{logged} lines");
    assert_eq!(health.code, Some(1), "{health:?}");
    let found = "orders cannot be written";
    assert!(health.stderr.contains(found), "{health:?}");
    let found = "order_service_database_writable 0";
    assert!(metrics.body.contains(found), "{metrics:?}");
    api.logs("Connection refused");
}

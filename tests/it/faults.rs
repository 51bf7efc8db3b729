//! Faults outside of requests: a full disk, a lock that is never released, overload, programs killed at
//! any moment, and too many connections. Acknowledged orders stay, refused ones are never created, and
//! service resumes once the cause is gone.

mod connections;
mod disk;
mod load;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use self::disk::Disk;
use self::load::{Load, Outcomes, assert_refused};
use crate::environment::{
    Client, PATIENCE, Program, TestEnvironment, assert_statuses_agree, file_limit, until, with_api,
};

/// Number of open files that these tests need together.
const FILES: u64 = 8192;

/// Waits until a path answers with this status.
async fn answers(client: &Client, program: &Program, path: &str, status: u16) {
    let read = async || client.get(format!("{}{path}", program.url)).await;
    until(read, |answer| answer.status == status).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs unshare and nsenter; scripts/test all"]
async fn a_full_disk_loses_no_acknowledged_order_and_service_resumes_when_there_is_room() {
    let env = TestEnvironment::new();
    let disk = Disk::mount(&env, "48m").expect("a disk can be mounted");
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let client = Client::new();
    let mut outcomes = Outcomes::default();
    for round in 0..3 {
        // Each round has a new program, or one that was killed while the disk was full.
        let service = disk.serve(&env, &simulator.url);
        answers(&client, &service, "/readyz", 200).await;
        let first = format!("first-{round}");
        outcomes.note(first.clone(), &client.create(&service.url, &first).await);
        let load = Load::begin(&service, &format!("a{round}"), 4, Duration::from_millis(10));
        tokio::time::sleep(Duration::from_millis(200)).await;
        let deadline = Instant::now() + PATIENCE;
        for n in 0.. {
            disk.fill();
            let id = format!("full-{round}-{n}");
            let answer = client.create(&service.url, &id).await;
            outcomes.note(id, &answer);
            if answer.status == 503 {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "the disk did not fill up in time"
            );
        }
        answers(&client, &service, "/readyz", 503).await;
        answers(&client, &service, "/livez", 200).await;
        answers(&client, &service, &format!("/order/{first}"), 200).await;
        assert!(client.ids(&service.url).await.contains(&first));
        if round == 1 {
            outcomes.add(load.end().await);
            service.kill();
            disk.empty();
            continue;
        }
        disk.empty();
        answers(&client, &service, "/readyz", 200).await;
        let id = format!("after-{round}");
        let answer = client.create(&service.url, &id).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        outcomes.note(id, &answer);
        outcomes.add(load.end().await);
        outcomes.check(&client.ids(&service.url).await);
        let log = service.logged();
        assert!(log.contains("the database cannot be written: "), "{log}");
        assert!(log.contains("the database can be written again"), "{log}");
        assert!(!log.contains("panicked"), "{log}");
        if round == 2 {
            let count = client.ids(&service.url).await.len();
            let orders = client.settled(&service.url, count).await;
            // No order was started twice. An intent whose start a kill prevented counts too.
            assert_statuses_agree(&env, &orders);
            assert_eq!(service.stop(), Some(0));
        }
    }
}

/// A lock held by another writer.
enum Held {
    /// The lock that our own programs take.
    Ours(File),
    /// SQLite's lock, held by a program that does not take ours.
    Sqlites(Connection),
}

impl Held {
    fn ours(env: &TestEnvironment, name: &str) -> Self {
        let lock = File::options().write(true).open(env.path(name)).unwrap();
        lock.lock().unwrap();
        Self::Ours(lock)
    }

    fn sqlites(env: &TestEnvironment) -> Self {
        let db = Connection::open(env.database()).unwrap();
        db.busy_timeout(PATIENCE).unwrap();
        db.execute_batch("BEGIN IMMEDIATE").unwrap();
        Self::Sqlites(db)
    }

    fn let_go(self) {
        match self {
            Self::Ours(lock) => lock.unlock().unwrap(),
            Self::Sqlites(db) => db.execute_batch("ROLLBACK").unwrap(),
        }
    }
}

/// Checks the service while nothing can be written.
async fn assert_only_reads(client: &Client, api: &Program, outcomes: &mut Outcomes) {
    let is_refused = Cell::new(false);
    let late = async {
        let creations = (0..20).map(|n| async move {
            let id = format!("late-{n}");
            let answer = client.create(&api.url, &id).await;
            assert_refused(&answer);
            (id, answer)
        });
        let late = futures_util::future::join_all(creations).await;
        is_refused.set(true);
        late
    };
    let meanwhile = async {
        for id in &outcomes.created {
            let order = client.get(format!("{}/order/{id}", api.url)).await;
            assert_eq!(order.status, 200, "{order:?}");
        }
        let live = client.get(format!("{}/livez", api.url)).await;
        assert_eq!(live.status, 200, "{live:?}");
        let listed = client.ids(&api.url).await;
        assert!(!is_refused.get(), "reads waited for the writer");
        answers(client, api, "/readyz", 503).await;
        listed
    };
    let (late, listed) = tokio::join!(late, meanwhile);
    outcomes.check(&listed);
    for (id, answer) in late {
        outcomes.note(id, &answer);
    }
}

/// Checks the service once it can write again.
async fn assert_recovered(client: &Client, api: &Program, outcomes: &mut Outcomes) {
    answers(client, api, "/readyz", 200).await;
    let next = client.create(&api.url, "next").await;
    assert_eq!(next.status, 201, "{next:?}");
    outcomes.note("next".to_owned(), &next);
    outcomes.check(&client.ids(&api.url).await);
    let log = api.logged();
    assert!(!log.contains("panicked"), "{log}");
}

async fn check_held(hold: impl Fn(&TestEnvironment) -> Held) {
    let (env, api, client) = with_api();
    let mut outcomes = Outcomes::default();
    for n in 0..20 {
        let id = format!("a{n}");
        outcomes.note(id.clone(), &client.create(&api.url, &id).await);
    }
    assert_eq!(outcomes.created.len(), 20, "{outcomes:?}");
    let held = hold(&env);
    assert_only_reads(&client, &api, &mut outcomes).await;
    held.let_go();
    assert_recovered(&client, &api, &mut outcomes).await;
    assert_eq!(api.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn a_write_lock_that_is_never_released_stops_only_writes_and_refused_ones_have_no_effect() {
    tokio::join!(
        check_held(|env| Held::ours(env, "orders.db-write")),
        check_held(|env| Held::ours(env, "orders.db-turn")),
        check_held(Held::sqlites),
    );
}

/// The end of the stop of a process.
#[derive(PartialEq)]
enum StopEnd {
    Resumed,
    Killed,
}

async fn check_stopped(ending: StopEnd) {
    let env = TestEnvironment::new();
    let api = env.api(&[]);
    let other = env.api(&[]);
    let client = Client::new();
    let mut outcomes = Outcomes::default();
    let load = Load::begin(&other, "b", 4, Duration::ZERO);
    let lock = env.path("orders.db-write");
    let lock = File::options().write(true).open(lock).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(1..30))).await;
        other.signal("STOP");
        tokio::time::sleep(Duration::from_millis(50)).await;
        if lock.try_lock().is_err() {
            break;
        }
        lock.unlock().unwrap();
        other.signal("CONT");
        assert!(
            Instant::now() < deadline,
            "the process was never stopped within a write"
        );
    }
    let before = client.ids(&api.url).await;
    // The responses to the other client are not known yet.
    let mut here = Outcomes {
        unknown: before.into_iter().collect(),
        ..Outcomes::default()
    };
    assert_only_reads(&client, &api, &mut here).await;
    if ending == StopEnd::Resumed {
        other.signal("CONT");
        outcomes.add(load.end().await);
        assert!(!outcomes.created.is_empty());
    } else {
        other.kill();
        outcomes.add(load.end().await);
    }
    outcomes.add(Outcomes {
        unknown: BTreeSet::new(),
        ..here
    });
    assert_recovered(&client, &api, &mut outcomes).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn a_process_that_is_stopped_while_it_writes_stops_only_writes_until_it_continues_or_dies() {
    tokio::join!(
        check_stopped(StopEnd::Resumed),
        check_stopped(StopEnd::Killed)
    );
}

/// Returns the resident memory of a program, in KiB.
fn resident(program: &Program) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", program.id())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn overload_is_refused_at_once_in_bounded_memory() {
    const WIDTH: usize = 1_800;
    const REFUSALS: usize = 3_000;
    /// A write that has waited in the queue is refused after this time.
    const WAIT: Duration = Duration::from_secs(5);
    let files = file_limit(FILES);
    assert!(files >= FILES / 2, "only {files} files may be open at once");
    let env = TestEnvironment::in_memory();
    let api = env.api(&[]);
    let client = Client::new();
    assert_eq!(client.create(&api.url, "first").await.status, 201);
    let held = Held::ours(&env, "orders.db-write");
    // Each client retries until the end; withdrawn writes keep their slots in the queue.
    let at_once = Arc::new(AtomicUsize::new(0));
    let end = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..WIDTH)
        .map(|n| {
            let (client, url) = (client.clone(), api.url.clone());
            let (at_once, end) = (at_once.clone(), end.clone());
            tokio::spawn(async move {
                let mut outcomes = Outcomes::default();
                for m in 0.. {
                    let id = format!("a{n}-{m}");
                    let began = Instant::now();
                    let answer = client.create(&url, &id).await;
                    if answer.status == 503 && began.elapsed() < WAIT {
                        at_once.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    outcomes.note(id, &answer);
                    if end.load(Ordering::Relaxed) {
                        break;
                    }
                }
                let id = format!("z{n}");
                let answer = client.create(&url, &id).await;
                outcomes.note(id, &answer);
                outcomes
            })
        })
        .collect();
    let deadline = Instant::now() + PATIENCE;
    let reach = async |count| {
        while at_once.load(Ordering::Relaxed) < count {
            assert!(Instant::now() < deadline, "the queue never fills up");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    reach(1).await;
    let mut outcomes = Outcomes::default();
    for n in 0..5 {
        let id = format!("beyond{n}");
        let began = Instant::now();
        let answer = client.create(&api.url, &id).await;
        assert_refused(&answer);
        assert!(began.elapsed() < WAIT, "{answer:?}");
        outcomes.note(id, &answer);
    }
    let order = client.get(format!("{}/order/first", api.url)).await;
    assert_eq!(order.status, 200, "{order:?}");
    let before = resident(&api);
    reach(REFUSALS).await;
    let after = resident(&api);
    println!("{before} KiB when the queue was full, {after} KiB after {REFUSALS} refusals");
    assert!(after < 256 * 1024, "{after} KiB");
    assert!(after < before + 32 * 1024, "{before} KiB, then {after} KiB");
    end.store(true, Ordering::Relaxed);
    held.let_go();
    for client in clients {
        outcomes.add(client.await.unwrap());
    }
    assert!(
        !outcomes.created.is_empty(),
        "{} were refused",
        outcomes.refused.len()
    );
    outcomes.created.insert("first".to_owned());
    assert!(outcomes.unknown.is_empty(), "{:?}", outcomes.unknown);
    outcomes.check(&client.ids(&api.url).await);
    answers(&client, &api, "/readyz", 200).await;
    assert_eq!(client.create(&api.url, "last").await.status, 201);
    let log = api.logged();
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(log.matches("ERROR").count(), 1, "logged once: {log}");
    assert!(
        log.contains("another program holds the write lock"),
        "{log}"
    );
    assert_eq!(api.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn an_api_that_is_killed_under_load_keeps_acknowledged_orders_and_disturbs_no_other() {
    let env = TestEnvironment::new();
    let client = Client::new();
    let mut outcomes = Outcomes::default();
    let mut steady = env.api(&[]);
    for round in 0..12 {
        let doomed = env.api(&[]);
        let pause = Duration::from_millis(1);
        let here = Load::begin(&steady, &format!("s{round}"), 4, pause);
        let there = Load::begin(&doomed, &format!("d{round}"), 8, pause);
        tokio::time::sleep(Duration::from_millis(fastrand::u64(20..300))).await;
        doomed.kill();
        outcomes.add(there.end().await);
        let undisturbed = here.end().await;
        assert!(!undisturbed.created.is_empty());
        assert!(undisturbed.refused.is_empty(), "{undisturbed:?}");
        assert!(undisturbed.unknown.is_empty(), "{undisturbed:?}");
        outcomes.add(undisturbed);
        outcomes.check(&client.ids(&steady.url).await);
        if round % 4 == 3 {
            // No program is left that could have kept anything in memory.
            steady.kill();
            steady = env.api(&[]);
            outcomes.check(&client.ids(&steady.url).await);
        }
    }
    assert!(outcomes.refused.is_empty(), "{:?}", outcomes.refused);
    assert!(!steady.logged().contains("ERROR"), "{}", steady.logged());
}

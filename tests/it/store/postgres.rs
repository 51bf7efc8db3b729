//! Tests of PostgreSQL alone: its leaders, sessions and settings.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use order_service::journal_stats::JournalStats;
use order_service::order::{OrderId, Timestamp};
use order_service::store::{
    Creation, DatabaseUrl, Mode, OrderChange, Store, StoreError, Transition,
};

use super::{TestDatabase, assert_deposed, create};
use crate::cluster::cluster;
use crate::environment::TestEnvironment;
use crate::prune::{created, days_ago, names, settled};

/// Creates an empty database.
pub fn new_database() -> TestDatabase {
    new_database_in(&cluster().database())
}

/// Opens an empty database.
pub fn new_database_in(database: &str) -> TestDatabase {
    let url = cluster().database_url(database);
    let open = || Store::open(&url, Mode::Threaded).unwrap();
    TestDatabase {
        store: open(),
        other: open(),
        env: TestEnvironment::new(),
    }
}

/// Opens the database of a server on these ports of this machine.
pub fn open(ports: &[u16]) -> Store {
    let hosts: Vec<_> = ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    let url = format!("postgres://tests@{}/postgres", hosts.join(","));
    let url: DatabaseUrl = url.parse().unwrap();
    Store::open(&url, Mode::Threaded).unwrap()
}

/// Ends the connection that holds the leader's lock.
pub fn break_lock(database: &str) {
    let end = "SELECT pg_terminate_backend(pid) FROM pg_locks \
               WHERE locktype = 'advisory' AND objid = 2 AND granted AND database = \
                   (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert!(cluster().psql(database, end).status.success());
}

#[test]
fn concurrent_processes_may_create_and_migrate_the_same_database() {
    let url = cluster().database_url(&cluster().database());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| Store::open(&url, Mode::Threaded).unwrap());
        }
    });
}

#[test]
fn a_database_of_the_first_version_gets_the_storage_parameters_of_this_one() {
    let database = cluster().database();
    let fill = || {
        let sql = "SELECT string_agg(relname || ' ' || (reloptions)[1], ', ' ORDER BY relname) \
                   FROM pg_class WHERE relname IN ('orders', 'orders_pkey', 'journal_by_order')";
        cluster().run(&database, sql)
    };
    new_database_in(&database);
    let set = fill();
    let first = "ALTER TABLE order_service.orders SET (fillfactor = 85); \
                 ALTER INDEX order_service.orders_pkey RESET (fillfactor)";
    cluster().run(&database, first);
    new_database_in(&database);
    assert_eq!(fill(), set);
    assert!(set.contains("orders_pkey fillfactor=45"), "{set}");
}

/// Makes a database of the first format, whose migration to the second creates a function.
fn database_of_the_first_format() -> String {
    let database = cluster().database();
    let first = include_str!("../../../sql/postgres/001_schema.sql");
    cluster().run(&database, first);
    let rows = "INSERT INTO order_service.meta VALUES (1, 'order-service', 1, 1); \
                INSERT INTO order_service.histories VALUES (1, 1, 'another server', 0, 0, 0)";
    cluster().run(&database, rows);
    database
}

#[test]
fn commands_that_only_read_leave_the_database_as_it_is() {
    let database = database_of_the_first_format();
    let (env, url) = (TestEnvironment::new(), cluster().url(&database));
    for (arguments, code) in [
        (&["backup", "one.db"][..], 0),
        (&["check"], 0),
        (&["prune", "--settled-before", "1d", "--dry-run"], 0),
        (&["explain", "a1"], 1),
        // There is no upstream.
        (&["account", "--order-process-url", "http://127.0.0.1:9"], 4),
    ] {
        let arguments = [arguments, &["--database-url", &url]].concat();
        env.run("order-service", &arguments).assert_code(code);
        let sql = "SELECT format, (SELECT count(*) FROM order_service.histories) \
                   FROM order_service.meta";
        assert_eq!(cluster().run(&database, sql), "1|1", "{arguments:?}");
    }
}

/// Takes a lock in a transaction that lasts a minute, and returns its client once it has the lock.
fn hold(database: &str, lock: &str) -> Child {
    let sql = format!("BEGIN; {lock}; SELECT pg_sleep(60)");
    let mut holder = cluster().client("psql", database);
    let holder = holder
        .args(["-c", &sql])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let holder = holder.spawn().unwrap();
    let sleeping = "SELECT count(*) FROM pg_stat_activity \
                    WHERE datname = current_database() AND wait_event = 'PgSleep'";
    while cluster().run(database, sleeping) == "0" {
        std::thread::sleep(Duration::from_millis(5));
    }
    holder
}

/// Ends the transaction of [`hold`], which has not ended by itself.
fn release(database: &str, mut holder: Child) {
    assert_eq!(holder.try_wait().unwrap(), None);
    holder.kill().unwrap();
    holder.wait().unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE datname = current_database() AND wait_event = 'PgSleep'";
    cluster().run(database, end);
}

#[test]
fn the_first_signal_ends_a_program_that_waits_for_a_migration() {
    let database = cluster().database();
    let schema_lock = "SELECT pg_advisory_xact_lock(x'4f72645300000003'::bigint)";
    let holder = hold(&database, schema_lock);
    let (env, url) = (TestEnvironment::new(), cluster().url(&database));
    let database_url = ["--database-url", &url];
    let listen = ["--listen", "127.0.0.1:0"];
    let start = |program, arguments: &[&[&str]]| env.start(program, &arguments.concat(), false);
    let programs = [
        start("order-service", &[&listen, &database_url]),
        start("order-service", &[&["api"], &listen, &database_url]),
        start("order-reconciler", &[&database_url]),
    ];
    for program in programs {
        program.logs("waiting for another program that migrates the database");
        assert_eq!(program.stop(), Some(0));
    }
    release(&database, holder);
}

#[tokio::test]
async fn orders_that_two_programs_prune_at_once_are_counted_once() {
    let database = cluster().database();
    let TestDatabase { store, other, .. } = new_database_in(&database);
    settled(&store, &names("old", 5), 100).await;
    created(&store, &names("new", 1), days_ago(1)).await;
    let holder = hold(&database, "SELECT FROM order_service.pruned FOR UPDATE");
    let release_once_both_wait = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity \
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        while cluster().run(&database, waiting) != "2" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        release(&database, holder);
    };
    let (before, now) = (days_ago(90), days_ago(0));
    let prune = async |store: &Store| {
        let (counts, last) = store.prune(before, 0, 10, now).await.unwrap().unwrap();
        assert_eq!(last, 5);
        (counts.orders(), counts.entries)
    };
    let (one, two, ()) = tokio::join!(prune(&store), prune(&other), release_once_both_wait);
    let mut counts = [one, two];
    counts.sort_unstable();
    assert_eq!(counts, [(0, 0), (5, 15)]);
    let stats = store.update_stats(&mut JournalStats::default(), now).await;
    let pruned = stats.unwrap().pruned;
    assert_eq!((pruned.orders(), pruned.entries), (5, 15));
}

#[test]
fn the_part_of_a_killed_backup_is_removed_by_the_next() {
    let database = cluster().database();
    let TestDatabase { store, env, .. } = new_database_in(&database);
    drop(store);
    let url = cluster().url(&database);
    let parts = || {
        let files = std::fs::read_dir(env.path(".")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".part")).count()
    };
    let arguments = |name| ["backup", name, "--database-url", &url];
    let holder = hold(&database, "LOCK TABLE order_service.orders");
    let killed = env.start("order-service", &arguments("one.db"), false);
    while parts() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    killed.kill();
    release(&database, holder);
    assert_eq!(parts(), 1);
    env.run("order-service", &arguments("two.db"))
        .assert_code(0);
    assert_eq!(parts(), 0);
}

#[test]
#[ignore = "slow; scripts/test all"]
fn a_migration_has_no_time_limit_and_other_programs_wait_for_it() {
    let database = database_of_the_first_format();
    let slow = format!(
        "CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_sleep(10); END $$; \
         CREATE EVENT TRIGGER slow ON ddl_command_start WHEN TAG IN ('CREATE FUNCTION') \
             EXECUTE FUNCTION slow(); \
         ALTER DATABASE {database} SET statement_timeout = '2s'"
    );
    cluster().run(&database, &slow);
    let (env, url) = (TestEnvironment::new(), cluster().url(&database));
    let arguments = ["api", "--listen", "127.0.0.1:0", "--database-url", &url];
    let one = env.start("order-service", &arguments, false);
    one.logs("migrating the database, which may take minutes format=2");
    let other = env.start("order-service", &arguments, false);
    other.logs("waiting for another program that migrates the database");
    for program in [one, other] {
        program.logs("using the database");
        assert_eq!(program.stop(), Some(0));
    }
}

#[tokio::test]
async fn a_leader_whose_connection_has_ended_records_nothing_once_another_leads() {
    let database = cluster().database();
    let TestDatabase { store, other, .. } = new_database_in(&database);
    let seq = create(&store, "a1", 1).await;
    let deposed = store.try_lead().await.unwrap().unwrap();
    assert!(other.try_lead().await.unwrap().is_none());
    break_lock(&database);
    let lead = loop {
        if let Some(lead) = other.try_lead().await.unwrap() {
            break lead;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_deposed(&store, [&deposed, &lead], seq).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_of_the_last_epoch_is_refused_beside_the_begin_of_the_next() {
    let database = cluster().database();
    let TestDatabase { store, .. } = new_database_in(&database);
    let seq = create(&store, "a1", 1).await;
    let deposed = store.try_lead().await.unwrap().unwrap();
    // The writes that wait for this creation share a transaction.
    let holder = hold(
        &database,
        "SELECT pg_advisory_xact_lock(x'4f72645300000001'::bigint)",
    );
    let short = || tokio::time::sleep(Duration::from_millis(300));
    let creation = tokio::spawn({
        let store = store.clone();
        async move { create(&store, "a2", 2).await }
    });
    short().await;
    break_lock(&database);
    short().await;
    let lead = tokio::spawn({
        let store = store.clone();
        async move { store.try_lead().await }
    });
    let transition = Transition::Intended { previous: None };
    let changes = vec![OrderChange { seq, transition }];
    let recorded = tokio::spawn(async move { deposed.record(changes, Timestamp(3)).await });
    short().await;
    release(&database, holder);
    let begun = Instant::now();
    assert_eq!(creation.await.unwrap(), 2);
    let recorded = recorded.await.unwrap();
    assert!(matches!(recorded, Err(StoreError::Deposed)), "{recorded:?}");
    assert!(lead.await.unwrap().unwrap().is_some());
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn another_process_is_notified_of_a_new_order_at_once() {
    let TestDatabase { store, other, .. } = new_database();
    let mut new_orders = other.new_orders().await.unwrap();
    create(&store, "a1", 1).await;
    let notified = tokio::time::timeout(Duration::from_secs(10), new_orders.next()).await;
    assert!(notified.is_ok());
}

#[tokio::test]
async fn queued_lookups_share_a_statement_and_each_returns_its_order() {
    let database = cluster().database();
    let log_all = format!("ALTER DATABASE {database} SET log_statement = 'all'");
    cluster().run(&database, &log_all);
    let TestDatabase { store, .. } = new_database_in(&database);
    for number in 1..=5 {
        create(&store, &format!("a{number}"), number).await;
    }
    let ids = (0..200).map(|number| OrderId::new(format!("a{}", number % 7)).unwrap());
    let ids: Vec<_> = ids.collect();
    let found = join_all(ids.iter().map(|id| store.find(id))).await;
    for (id, found) in ids.iter().zip(found) {
        let found = found.unwrap().map(|found| found.order.id);
        let is_there = !["a0", "a6"].contains(&id.as_str());
        assert_eq!(found, is_there.then(|| id.clone()));
    }
    let log = cluster().logged(&database);
    let lookups = log.iter().filter(|line| line.contains("orders.id = ANY"));
    let count = lookups.count();
    // Each creation reads its order too.
    assert!((6..100).contains(&count), "{count}: {log:#?}");
}

#[tokio::test]
async fn an_order_is_explained_by_a_session_that_writes_nothing() {
    let database = cluster().database();
    let TestDatabase { store, env, .. } = new_database_in(&database);
    let url = cluster().url(&database);
    assert_eq!(store.info().address, url);
    let explain = |id: &str| {
        let arguments = ["explain", id, "--database-url", &url];
        env.run("order-service", &arguments)
    };
    create(&store, "a1", 10).await;
    let explained = explain("a1").assert_code(0);
    assert!(
        explained
            .stdout
            .starts_with("Order \"a1\" has been CREATED"),
        "{explained:?}"
    );
    let unknown = explain("A1").assert_code(1);
    assert!(unknown.stderr.contains("similar ids: a1\n"), "{unknown:?}");
    // On a database without orders nothing is created.
    let url = cluster().url(&cluster().database());
    let arguments = ["explain", "a1", "--database-url", &url];
    let missing = env.run("order-service", &arguments).assert_code(3);
    assert!(missing.stderr.contains("no order database"), "{missing:?}");
}

#[tokio::test]
async fn terminated_sessions_delay_requests_and_fail_none() {
    let database = cluster().database();
    let TestDatabase { store, .. } = new_database_in(&database);
    for number in 1..=20 {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        assert!(cluster().psql(&database, end).status.success());
        assert_eq!(create(&store, &format!("a{number}"), number).await, number);
        assert_eq!(store.newest_event().await.unwrap().seq, number);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_programs_create_orders_whatever_the_isolation_by_default() {
    let database = cluster().database();
    let isolation = "default_transaction_isolation = 'repeatable read'";
    cluster().run(
        &database,
        &format!("ALTER DATABASE {database} SET {isolation}"),
    );
    let stores = [
        new_database_in(&database).store,
        new_database_in(&database).store,
    ];
    for round in 0..30 {
        let creations = stores.iter().enumerate().map(|(number, store)| {
            let id = OrderId::new(format!("a{round}-{number}")).unwrap();
            store.create(id, Timestamp(1))
        });
        for creation in join_all(creations).await {
            assert!(matches!(creation, Ok(Creation::Created(_))), "{creation:?}");
        }
    }
}

#[test]
fn settings_that_would_lose_orders_are_refused() {
    for setting in ["synchronous_commit = off", "synchronous_commit = local"] {
        let database = cluster().database();
        let alter = format!("ALTER DATABASE {database} SET {setting}");
        assert!(cluster().psql(&database, &alter).status.success());
        let refused = Store::open(&cluster().database_url(&database), Mode::Threaded);
        let error = refused.err().unwrap().to_string();
        assert!(error.contains(setting), "{error}");
        assert!(error.contains("the role sets that"), "{error}");
    }
}

#[test]
fn a_missing_database_and_that_of_another_program_are_refused() {
    let database = cluster().database();
    let url = cluster().database_url(&database);
    let missing = Store::open(&url, Mode::Existing).err().unwrap().to_string();
    assert!(missing.contains("no order database"), "{missing}");
    let taken = cluster().psql(&database, "CREATE SCHEMA order_service");
    assert!(taken.status.success());
    let foreign = Store::open(&url, Mode::Threaded).err().unwrap().to_string();
    assert!(foreign.contains("another program"), "{foreign}");
}

#[test]
fn the_error_about_a_missing_password_names_the_variables_that_set_it() {
    let env = TestEnvironment::new();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1_024]);
            // A clear-text password.
            let _ = stream.write_all(b"R\0\0\0\x08\0\0\0\x03");
        }
    });
    let url = format!("postgres://me@{address}/orders");
    let ran = env.run("order-reconciler", &["--database-url", &url]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.stderr.contains("PGPASSWORD"), "{ran:?}");
    assert!(ran.stderr.contains("PGPASSFILE"), "{ran:?}");
}

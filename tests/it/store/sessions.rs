//! Sessions with a server: failed statements, missing notifications, poolers, clocks.

use std::fs::Permissions;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use order_service::clock::{Clock, SystemClock};
use order_service::order::{OrderId, Reason, Timestamp};
use order_service::store::{AttentionUpdate, Creation, OrderChange, StoreError, Transition};

use tempfile::TempDir;

use super::postgres::{new_database_in, open};
use super::{TestDatabase, all, create};
use crate::cluster::{Cluster, cluster, free_port, unprivileged};
use crate::environment::{Client, TestEnvironment};
use crate::proxy::{Fault, Proxy};

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_polled_for_often_if_notifications_do_not_arrive() {
    let primary = Cluster::own(&[]);
    let proxy = Proxy::start(primary.port()).await;
    let (store, other) = (open(&[proxy.port]), open(&[primary.port()]));
    proxy.set(Fault::Deaf);
    let mut new_orders = store.new_orders().await.unwrap();
    // The store detects missing notifications after a second.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let mut waits = Duration::ZERO;
    for number in 1..=20 {
        create(&other, &format!("a{number}"), number).await;
        let begun = Instant::now();
        new_orders.next().await;
        waits += begun.elapsed();
    }
    // Polls each second would take half a second each on average.
    assert!(waits < Duration::from_secs(10), "{waits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_waits_for_a_standby_is_not_taken_for_a_server_without_notifications() {
    let primary = Cluster::own(&[]);
    let standby = primary.standby("second");
    let (store, other) = (open(&[primary.port()]), open(&[primary.port()]));
    primary.replicate_to("second");
    standby.stop();
    // Until it is replicated, its commit blocks all other notifications.
    let creation = tokio::spawn(async move { create(&other, "a1", 1).await });
    primary.wait_for("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
    let mut new_orders = store.new_orders().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    standby.resume();
    creation.await.unwrap();
    new_orders.next().await;
    primary.set("log_statement", "all");
    let waiting = tokio::spawn(async move { new_orders.next().await });
    tokio::time::sleep(Duration::from_secs(3)).await;
    waiting.abort();
    let polls = primary.logged("postgres");
    let polls = polls.iter().filter(|sql| sql.contains("max(seq)"));
    // A poll each 25 ms would be 120.
    assert!(polls.count() < 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_no_standby_confirms_is_logged_with_what_it_may_wait_for() {
    let primary = Cluster::own(&[]);
    let (env, url) = (TestEnvironment::new(), primary.url("postgres"));
    drop(open(&[primary.port()]));
    primary.set("synchronous_standby_names", "nobody");
    let arguments = ["api", "--listen", "127.0.0.1:0", "--database-url", &url];
    let api = env.start("order-service", &arguments, true);
    let url = api.url.clone();
    let created = tokio::spawn(async move { Client::new().create(&url, "a1").await });
    api.logs("pg_stat_replication");
    created.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_transaction_is_not_reported_as_success() {
    let primary = Cluster::own(&[]);
    let store = open(&[primary.port()]);
    create(&store, "a1", 1).await;
    let refuse = "ALTER TABLE order_service.orders ADD CHECK (id <> 'x')";
    primary.run("postgres", refuse);
    let creations = (0..40).map(|number| {
        let id = match number {
            20 => "x".to_owned(),
            number => format!("b{number}"),
        };
        store.create(OrderId::new(id).unwrap(), Timestamp(2))
    });
    let answers = futures_util::future::join_all(creations).await;
    for (number, answer) in answers.iter().enumerate() {
        match number {
            20 => assert!(
                matches!(answer, Err(StoreError::Unwritable(_))),
                "{answer:?}"
            ),
            _ => assert!(matches!(answer, Ok(Creation::Created(_))), "{answer:?}"),
        }
    }
    let found = all(&store).await;
    assert!(found.iter().map(|order| order.seq).eq(1..=40));
    assert!(found.iter().all(|order| order.id.as_str() != "x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_decoded_is_an_error_at_once() {
    let primary = Cluster::own(&[]);
    let store = open(&[primary.port()]);
    let change = "ALTER TABLE order_service.heartbeat ALTER leader_since TYPE text";
    primary.run("postgres", change);
    let begun = Instant::now();
    let read = store.heartbeat().await;
    assert!(matches!(read, Err(StoreError::Unreadable(_))), "{read:?}");
    // A read is repeated for 10 s if its connection was lost.
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_callers_share_a_commit() {
    let primary = Cluster::own(&[]);
    let store = open(&[primary.port()]);
    for round in 0..10 {
        let creations = (0..64).map(|number| {
            let id = OrderId::new(format!("a{round}-{number}")).unwrap();
            store.create(id, Timestamp(1))
        });
        futures_util::future::join_all(creations).await;
    }
    let commits = "SELECT count(DISTINCT batch) FROM order_service.orders";
    let commits: usize = primary.run("postgres", commits).parse().unwrap();
    assert!(commits <= 40, "{commits} commits of 640 orders");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nul_in_a_text_fails_only_its_own_write() {
    let primary = Cluster::own(&[]);
    let store = open(&[primary.port()]);
    assert!(OrderId::new("a\0").is_err());
    let seq = create(&store, "a1", 1).await;
    let lead = store.try_lead().await.unwrap().unwrap();
    let flagged = OrderChange {
        seq,
        transition: Transition::Flagged(AttentionUpdate {
            reason: Reason::StartRefused,
            detail: "a\0b".to_owned(),
            next_attempt_at: Timestamp(9),
        }),
    };
    let (refused, created) = tokio::join!(
        lead.record(vec![flagged], Timestamp(2)),
        create(&store, "a2", 2)
    );
    assert!(
        matches!(refused, Err(StoreError::Unwritable(_))),
        "{refused:?}"
    );
    assert_eq!(created, 2);
    assert_eq!(lead.loss(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_lost_connection_counts_once_however_often_a_reconnect_fails() {
    let primary = Cluster::own(&[]);
    let proxy = Proxy::start(primary.port()).await;
    let store = open(&[proxy.port]);
    let _new_orders = store.new_orders().await.unwrap();
    let listening = "SELECT 1 FROM pg_stat_activity WHERE query = 'NOTIFY order_service'";
    primary.wait_for(listening);
    let lead = store.try_lead().await.unwrap().unwrap();
    // Reads alternate between two connections.
    for _ in 0..2 {
        assert_ne!(store.size().await.database, 0);
    }
    assert_eq!(store.info().reconnects, Some(0));
    proxy.set(Fault::Down);
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    assert!(lead.loss().is_some());
    assert!(store.try_lead().await.is_err());
    proxy.set(Fault::Open);
    primary.wait_for(listening);
    while store.try_lead().await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Of the listener, the leader, the writer, and both readers.
    assert_eq!(store.info().reconnects, Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_primary_is_left_once_a_newer_one_answers() {
    let primary = Cluster::own(&[]);
    let standby = primary.standby("second");
    create(&open(&[primary.port()]), "a1", 1).await;
    primary.wait_for("SELECT 1 FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()");
    standby.leave();
    standby.promote();
    create(&open(&[standby.port()]), "a2", 2).await;
    let proxy = Proxy::start(standby.port()).await;
    proxy.set(Fault::Stall);
    let reader = open(&[primary.port(), proxy.port]);
    assert_eq!(all(&reader).await.len(), 1);
    proxy.set(Fault::Open);
    let begun = Instant::now();
    while all(&reader).await.len() == 1 {
        // Without a session that is opened, it is looked for every five seconds.
        assert!(begun.elapsed() < Duration::from_secs(3));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_orders_are_sent_with_their_commit() {
    let primary = Cluster::own(&[]);
    let proxy = Proxy::start(primary.port()).await;
    let store = open(&[proxy.port]);
    let seq = create(&store, "a1", 1).await;
    let lead = store.try_lead().await.unwrap().unwrap();
    let lock = "BEGIN; SELECT FROM order_service.orders FOR UPDATE; SELECT pg_sleep(60)";
    let mut holder = primary.client("psql", "postgres");
    let holder = holder
        .args(["-c", lock])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut holder = holder.spawn().unwrap();
    primary.wait_for("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
    let recorded = tokio::spawn(async move {
        let transition = Transition::Intended { previous: None };
        let changes = vec![OrderChange { seq, transition }];
        lead.record(changes, Timestamp(2)).await
    });
    primary.wait_for("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'transactionid'");
    // From here on the server receives nothing more.
    proxy.set(Fault::Stall);
    primary.run(
        "postgres",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'",
    );
    primary.wait_for("SELECT 1 FROM order_service.orders WHERE intent_at = 2");
    proxy.set(Fault::Open);
    let recorded = recorded.await.unwrap().unwrap();
    assert_eq!((recorded.changed, recorded.conflicts), (1, vec![]));
    holder.wait().unwrap();
}

#[test]
fn an_error_of_tls_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let path = |name| folder.path().join(name).to_str().unwrap().to_owned();
    let (key, certificate, empty) = (path("key"), path("certificate"), path("empty"));
    std::fs::write(&empty, "").unwrap();
    let made = unprivileged("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args(["-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-keyout", &key, "-out", &certificate])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let (key, file) = (
        format!("ssl_key_file={key}"),
        format!("ssl_cert_file={certificate}"),
    );
    let server = Cluster::own(&["ssl=on", &key, &file]);
    let rules = server.run("postgres", "SHOW hba_file");
    let only_tls = "local all all trust\nhostssl all all 127.0.0.1/32 trust\n";
    std::fs::write(rules, only_tls).unwrap();
    server.run("postgres", "SELECT pg_reload_conf()");
    let env = TestEnvironment::new();
    let url = format!("postgres://tests@127.0.0.1:{}/postgres", server.port());
    for (parameters, says) in [
        (String::new(), "set sslmode=verify-full"),
        (
            format!("?sslmode=verify-full&sslrootcert={certificate}"),
            "certificate cannot be verified",
        ),
        (
            format!("?sslmode=verify-full&sslrootcert={empty}"),
            "has no certificate",
        ),
    ] {
        let url = format!("{url}{parameters}");
        let arguments = ["check", "--database-url", &url];
        let ran = env.run("order-service", &arguments).assert_code(3);
        assert!(ran.stderr.contains(says), "{says}: {ran:?}");
    }
}

/// A PgBouncer in transaction mode, which ends when it is dropped.
struct Pooler {
    process: Child,
    port: u16,
    _folder: TempDir,
}

impl Pooler {
    /// Starts one in front of a server; `None` if there is no PgBouncer.
    fn start(server: &Cluster, settings: &str) -> Option<Self> {
        if Command::new("pgbouncer").arg("--version").output().is_err() {
            assert!(
                std::env::var_os("CI").is_none(),
                "apt-get install pgbouncer"
            );
            println!("skipped: there is no pgbouncer");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let (file, users) = (folder.path().join("settings"), folder.path().join("users"));
        let port = free_port();
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             pool_mode = transaction\nauth_type = trust\nauth_file = {}\n{settings}\n",
            server.port(),
            users.display()
        );
        std::fs::write(&file, text).unwrap();
        std::fs::write(&users, "\"tests\" \"\"\n").unwrap();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let mut process = unprivileged("pgbouncer");
        let process = process.arg("--quiet").arg(&file).spawn().unwrap();
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self {
            process,
            port,
            _folder: folder,
        })
    }

    fn url(&self) -> String {
        format!("postgres://tests@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_pooler_that_gives_each_transaction_another_session_is_refused_by_every_command() {
    let primary = Cluster::own(&[]);
    drop(open(&[primary.port()]));
    let env = TestEnvironment::new();
    for settings in [
        "",
        "default_pool_size = 1",
        "min_pool_size = 2",
        "min_pool_size = 2\nserver_round_robin = 1",
        "min_pool_size = 5\nserver_round_robin = 1",
    ] {
        let Some(pooler) = Pooler::start(&primary, settings) else {
            return;
        };
        let url = pooler.url();
        // The sessions that the pooler lends.
        let clients: Vec<_> = (0..4)
            .map(|_| spawn_psql(&url, "SELECT pg_sleep(0.2)"))
            .collect();
        for mut client in clients {
            client.wait().unwrap();
        }
        for (command, code) in [
            (&["order-service", "explain", "a1"][..], 3),
            (&["order-service", "check"], 3),
            (&["order-service", "backup", "b.db"], 3),
            (&["order-service", "restart", "a1"], 3),
            (&["order-reconciler", "--once"], 3),
            (&["order-reconciler", "health"], 1),
            (&["order-service", "api", "--listen", "127.0.0.1:0"], 3),
        ] {
            let arguments = [&command[1..], &["--database-url", &url]].concat();
            let ran = env.run(command[0], &arguments).assert_code(code);
            assert!(ran.stderr.contains("pooler"), "{settings:?} {ran:?}");
        }
        let state = "SHOW search_path; SHOW default_transaction_read_only; SHOW enable_seqscan; \
                     SELECT count(*) FROM pg_prepared_statements; \
                     SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
        for _ in 0..5 {
            let client = spawn_psql(&url, state).wait_with_output().unwrap();
            let state = String::from_utf8(client.stdout).unwrap();
            assert_eq!(state, "\"$user\", public\noff\non\n0\n0\n", "{settings:?}");
        }
    }
}

#[test]
fn a_pooler_in_session_mode_is_used() {
    let primary = Cluster::own(&[]);
    let env = TestEnvironment::new();
    let Some(pooler) = Pooler::start(&primary, "pool_mode = session") else {
        return;
    };
    let url = pooler.url();
    for (command, code) in [
        (&["order-reconciler", "--once"][..], 0),
        (&["order-service", "check"], 0),
        (&["order-service", "explain", "a1"], 1),
    ] {
        let arguments = [&command[1..], &["--database-url", &url]].concat();
        env.run(command[0], &arguments).assert_code(code);
    }
}

fn spawn_psql(url: &str, sql: &str) -> Child {
    unprivileged("psql")
        .args(["-X", "-A", "-t", "-q", url, "-c", sql])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Returns the path of the library that fakes the time of a program, from Debian's package `faketime`.
fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?;
    let libraries = folders.filter_map(|folder| {
        let folder = folder.ok()?.path();
        Some(folder.join("faketime/libfaketime.so.1"))
    });
    libraries.into_iter().find(|library| library.exists())
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_dated_by_the_clock_of_the_server() {
    let Some(library) = faketime() else {
        assert!(std::env::var_os("CI").is_none(), "apt-get install faketime");
        println!("skipped: there is no libfaketime");
        return;
    };
    let preload = format!("LD_PRELOAD={}", library.display());
    let primary = Cluster::start_through(&["env", &preload, "FAKETIME=+60s"]);
    let store = open(&[primary.port()]);
    let ahead = store.clock().now().0 - SystemClock.now().0;
    assert!((59_000..61_000).contains(&ahead), "{ahead} ms");
    create(&store, "a1", store.clock().now().0).await;
    let there = primary.run(
        "postgres",
        "SELECT abs(created_at - extract(epoch FROM clock_timestamp()) * 1000) < 1000 \
         FROM order_service.orders",
    );
    assert_eq!(there, "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_go_by_the_clock_of_the_server() {
    let Some(library) = faketime() else {
        assert!(std::env::var_os("CI").is_none(), "apt-get install faketime");
        println!("skipped: there is no libfaketime");
        return;
    };
    let database = cluster().database();
    let TestDatabase { store, env, .. } = new_database_in(&database);
    create(&store, "a1", store.clock().now().0).await;
    let url = cluster().url(&database);
    let variables = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME", "@2100-06-01 00:00:00"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    for command in [
        &["explain", "a1"][..],
        &["prune", "--settled-before", "1d", "--dry-run"],
        &["prune", "--settled-before", "1d"],
    ] {
        let arguments = [command, &["--database-url", &url]].concat();
        let ran = env
            .run_with("order-service", &arguments, &variables)
            .assert_code(0);
        assert!(!ran.stdout.contains("2100"), "{ran:?}");
    }
}

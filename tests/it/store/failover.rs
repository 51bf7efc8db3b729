//! A failover is a pause: servers that are killed, stopped and promoted, connections that end at the worst
//! moment, and what an asynchronous standby has lost.

use std::fs::Permissions;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use order_service::clock::{Clock, SystemClock};
use order_service::order::{OrderId, Reason, Status, Timestamp};
use order_service::simulator::model::Effect;
use order_service::store::{
    AttentionUpdate, Creation, Cursor, DatabaseUrl, Durability, Filter, Mode, OrderChange, Store,
    StoreError, Transition,
};

use super::{create, journal};
use crate::cluster::{Cluster, free_port, unprivileged};
use crate::environment::{Client, Program, TestEnvironment};
use crate::proxy::{Fault, Proxy};

/// Opens a database on one of these ports of this machine.
fn open(ports: &[u16]) -> Store {
    let hosts: Vec<_> = ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    let url = format!("postgres://tests@{}/postgres", hosts.join(","));
    let url: DatabaseUrl = url.parse().unwrap();
    Store::open(&url, Mode::Threaded).unwrap()
}

/// Callers that create orders without a pause.
struct Load {
    is_over: Arc<AtomicBool>,
    callers: Vec<tokio::task::JoinHandle<Answers>>,
}

/// What callers were told.
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

/// All orders: ids and numbers.
async fn orders(store: &Store) -> Vec<(String, i64)> {
    let pages = store.pages(Filter::default(), Cursor::default(), 1_000);
    let pages: Vec<_> = pages.try_collect().await.unwrap();
    let orders = pages.iter().flat_map(|(orders, _)| orders);
    let orders = orders.map(|order| (order.id.to_string(), order.seq));
    orders.collect()
}

/// Checks that everything that was acknowledged is there, once, and nothing else, and that numbers have
/// no gaps.
async fn assert_whole(store: &Store, answers: &Answers) {
    assert_eq!(answers.failed, Vec::<String>::new());
    let mut acknowledged = answers.created.clone();
    acknowledged.sort_by_key(|(_, seq)| *seq);
    let found = orders(store).await;
    assert_eq!(found, acknowledged);
    assert!(found.iter().map(|(_, seq)| *seq).eq(1..=found.len() as i64));
    assert_eq!(journal(store).await.len(), found.len().min(1_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_and_started_again_is_a_pause() {
    let mut primary = Cluster::own(&[]);
    let store = open(&[primary.port()]);
    let load = Load::begin(&store, "a", 16);
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        primary.kill();
        primary.start_again();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_whole(&store, &load.end().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_synchronous_standby_that_is_promoted_has_everything_and_takes_over_soon() {
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
    // A second, and room for a busy machine.
    assert!(answers.longest < promotion + Duration::from_secs(3));
    assert_whole(&one, &answers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_wait_for_the_standby_is_no_success() {
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
        assert!(!creation.is_finished(), "it may be on the primary alone");
    }
    let visible = primary.run("postgres", "SELECT count(*) FROM order_service.orders");
    assert_eq!(visible, "2", "though everybody can see it");
    standby.resume();
    assert_eq!(creation.await.unwrap(), 2);
    let replicated = standby.run("postgres", "SELECT count(*) FROM order_service.orders");
    assert_eq!(replicated, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_only_the_primary_has_is_not_reported_as_existing() {
    let primary = Cluster::own(&[]);
    let standby = primary.standby("second");
    let store = open(&[primary.port()]);
    primary.replicate_to("second");
    standby.stop();
    // As after a crash of the primary while the commit waited.
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
async fn a_connection_that_ends_at_a_commit_is_no_error_and_doubles_nothing() {
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
    assert_whole(&store, &load.end().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_holds_up_nothing_once_another_can_be_written() {
    let primary = Cluster::own(&[]);
    let standby = primary.standby("second");
    primary.replicate_to("second");
    let store = open(&[primary.port(), standby.port()]);
    create(&store, "a1", 1).await;
    primary.stop();
    standby.leave();
    standby.promote();
    let begun = Instant::now();
    assert_eq!(create(&store, "a2", 2).await, 2);
    assert_eq!(orders(&store).await.len(), 2);
    println!(
        "a server that hangs is given up after {:?}",
        begun.elapsed()
    );
    assert!(begun.elapsed() < Duration::from_secs(15));
    // Awake again, it is a former primary.
    primary.resume();
    let other = open(&[primary.port(), standby.port()]);
    assert_eq!(orders(&other).await.len(), 2);
    for number in 3..6 {
        assert_eq!(create(&store, &format!("a{number}"), number).await, number);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_asynchronous_standby_gives_numbers_out_again_and_that_is_told() {
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
    assert_eq!((there.seq, store.info().await.lost_entries), (5, 0));
    primary.kill();
    standby.promote();
    assert_eq!(create(&store, "b2", 6).await, 2, "given out again");
    assert_eq!(store.info().await.lost_entries, 4);
    for cursor in [there, Cursor::bare(5)] {
        let gone = store.events(None, cursor, 10).await;
        assert!(matches!(gone, Err(StoreError::Gone(_))), "{gone:?}");
    }
    let (events, _) = store.events(None, Cursor::default(), 10).await.unwrap();
    assert_eq!(events.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_notifications_do_not_arrive_changes_are_looked_for_often() {
    let primary = Cluster::own(&[]);
    let proxy = Proxy::start(primary.port()).await;
    let (store, other) = (open(&[proxy.port]), open(&[primary.port()]));
    proxy.set(Fault::Deaf);
    let mut new_orders = store.new_orders().await.unwrap();
    // That it hears nothing is known after a second.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let mut waits = Duration::ZERO;
    for number in 1..=20 {
        create(&other, &format!("a{number}"), number).await;
        let begun = Instant::now();
        new_orders.next().await;
        waits += begun.elapsed();
    }
    // A look each second would take that long for each.
    assert!(waits < Duration::from_secs(10), "{waits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_a_failed_statement_has_aborted_is_no_success() {
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
    let found = orders(&store).await;
    assert!(found.iter().map(|(_, seq)| *seq).eq(1..=40));
    assert!(found.iter().all(|(id, _)| id != "x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_of_one_moment_share_a_commit() {
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
async fn a_reconciler_that_stands_by_keeps_nothing_from_vacuum() {
    let primary = Cluster::own(&[]);
    let (leader, other) = (open(&[primary.port()]), open(&[primary.port()]));
    let _lead = leader.try_lead().await.unwrap().unwrap();
    for _ in 0..10 {
        assert!(other.try_lead().await.unwrap().is_none());
        let held = primary.run(
            "postgres",
            "SELECT count(*) FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() \
             AND (backend_xmin IS NOT NULL OR state <> 'idle')",
        );
        assert_eq!(held, "0", "sessions that wait, or hold a snapshot");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nul_in_a_text_fails_its_own_write_alone() {
    let primary = Cluster::own(&[]);
    let store = open(&[primary.port()]);
    assert!(OrderId::new("a\0").is_err());
    let seq = create(&store, "a1", 1).await;
    let lead = store.try_lead().await.unwrap().unwrap();
    let flagged = OrderChange {
        seq,
        step: Transition::Flagged(AttentionUpdate {
            reason: Reason::StartRefused,
            detail: "a\0b".to_owned(),
            next_attempt_at: Timestamp(9),
        }),
    };
    let (refused, created) = tokio::join!(
        store.record(&lead, vec![flagged], Timestamp(2)),
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
async fn a_commit_that_no_standby_confirms_is_answered_after_a_time_limit_of_ours() {
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
    assert_eq!(store.durability(), Durability::Replicated);
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
async fn a_program_leaves_when_a_later_version_has_changed_the_schema() {
    let primary = Cluster::own(&[]);
    let (env, client) = (TestEnvironment::new(), Client::new());
    let url = primary.url("postgres");
    let api = ["api", "--listen", "127.0.0.1:0", "--database-url", &url];
    let mut api = env.start("order-service", &api, true);
    let mut reconciler = reconciler(&env, &primary, "http://127.0.0.1:1");
    reconciler.logs("became leader");
    assert_eq!(client.create(&api.url, "a1").await.status, 201);
    primary.run("postgres", "UPDATE order_service.meta SET format = 1000");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    // What it still writes is right: a later schema only adds.
    assert_eq!(client.create(&api.url, "a2").await.status, 201);
    for program in [&mut api, &mut reconciler] {
        assert_eq!(program.wait().code(), Some(3));
        let log = program.logged();
        assert!(log.contains("a later version of this program"), "{log}");
    }
}

/// A reconciler with a short request timeout.
fn reconciler(env: &TestEnvironment, primary: &Cluster, upstream: &str) -> Program {
    let url = primary.url("postgres");
    let arguments = ["--database-url", &url, "--order-process-url", upstream];
    let settings = ["--start-rate", "200", "--request-timeout", "1s"];
    env.start("order-reconciler", &[arguments, settings].concat(), false)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_while_another_took_over_starts_nothing_twice() {
    let primary = Cluster::own(&[]);
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "2"]);
    let store = open(&[primary.port()]);
    let first = reconciler(&env, &primary, &simulator.url);
    first.logs("became leader");
    let second = reconciler(&env, &primary, &simulator.url);
    second.logs("standing by");
    for number in 1..=300 {
        create(&store, &format!("a{number}"), store.clock().now().0).await;
    }
    first.signal("STOP");
    // Its connections end, as if its machine was suspended for longer than keepalives last.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_locks \
               WHERE locktype = 'advisory' AND objid = 2 AND granted";
    primary.run("postgres", end);
    second.logs("became leader");
    // Longer than the request timeout.
    tokio::time::sleep(Duration::from_secs(3)).await;
    first.signal("CONT");
    first.logs("gave up leadership");
    let deadline = Instant::now() + Duration::from_secs(60);
    while store.count(Status::Created).await.unwrap() > 0
        || store.count(Status::Processing).await.unwrap() > 0
    {
        assert!(Instant::now() < deadline, "not all orders settle");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // One process for each order.
    assert_eq!(env.outcomes().len(), 300);
    let record = env.simulator_record();
    let repeated = record
        .iter()
        .filter(|entry| matches!(entry.effect, Effect::Exists { .. }));
    // Those that were being sent, whose intents had been checked, leave when the process goes on; the
    // upstream refuses them.
    assert!(repeated.count() <= 8, "starts of orders that had a process");
}

#[test]
fn a_pooler_that_gives_each_transaction_another_session_is_refused() {
    if Command::new("pgbouncer").arg("--version").output().is_err() {
        assert!(
            std::env::var_os("CI").is_none(),
            "apt-get install pgbouncer"
        );
        println!("skipped: there is no pgbouncer");
        return;
    }
    let primary = Cluster::own(&[]);
    let folder = tempfile::tempdir().unwrap();
    let (settings, users) = (folder.path().join("settings"), folder.path().join("users"));
    let port = free_port();
    let text = format!(
        "[databases]\n* = host=127.0.0.1 port={}\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
         pool_mode = transaction\nauth_type = trust\nauth_file = {}\n",
        primary.port(),
        users.display()
    );
    std::fs::write(&settings, text).unwrap();
    std::fs::write(&users, "\"tests\" \"\"\n").unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let mut pooler = unprivileged("pgbouncer");
    let mut pooler = pooler.arg("--quiet").arg(&settings).spawn().unwrap();
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }
    let url = format!("postgres://tests@127.0.0.1:{port}/postgres");
    let url: DatabaseUrl = url.parse().unwrap();
    let refused = Store::open(&url, Mode::Threaded);
    pooler.kill().unwrap();
    pooler.wait().unwrap();
    let error = refused.err().unwrap().to_string();
    assert!(error.contains("pooler"), "{error}");
}

/// The library by which a program sees another time, of Debian's package `faketime`.
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

/// A host that can vanish: a network namespace, at the other end of a cable that is pulled.
struct Host {
    name: String,
    cable: String,
}

impl Host {
    /// Address of this machine as the host sees it, and the network.
    const ADDRESS: &str = "10.77.77.1";
    const NETWORK: &str = "10.77.77.0/24";

    /// Makes a host. `None` if this user may not.
    fn new() -> Option<Self> {
        let number = fastrand::u16(..);
        let (name, cable) = (format!("order{number}"), format!("order{number}a"));
        let host = Self { name, cable };
        let (name, cable, peer) = (&host.name, &host.cable, format!("order{number}b"));
        let of_host = "10.77.77.2/24";
        let script = format!(
            "ip netns add {name} && ip link add {cable} type veth peer name {peer} netns {name} && \
             ip addr add {}/24 dev {cable} && ip link set {cable} up && \
             ip netns exec {name} ip addr add {of_host} dev {peer} && \
             ip netns exec {name} ip link set {peer} up && ip netns exec {name} ip link set lo up",
            Self::ADDRESS
        );
        sh(&script).then_some(host)
    }

    fn vanish(&self) {
        assert!(sh(&format!("ip link set {} down", self.cable)));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        sh(&format!(
            "ip netns del {}; ip link del {}",
            self.name, self.cable
        ));
    }
}

fn sh(script: &str) -> bool {
    let output = Command::new("sh").args(["-c", script]).output();
    output.is_ok_and(|output| output.status.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lock_of_a_leader_whose_host_vanishes_is_free_within_seconds() {
    let Some(host) = Host::new() else {
        println!("skipped: network namespaces need root and Debian's package iproute2");
        return;
    };
    let primary = Cluster::own(&["listen_addresses=127.0.0.1,10.77.77.1"]);
    primary.trust(Host::NETWORK);
    let env = TestEnvironment::new();
    let url = format!(
        "postgres://tests@{}:{}/postgres?sslmode=disable",
        Host::ADDRESS,
        primary.port()
    );
    let upstream = "http://127.0.0.1:1";
    let arguments = ["--database-url", &url, "--order-process-url", upstream];
    let whole = env.command("order-reconciler", &arguments);
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", &host.name])
        .arg(whole.get_program())
        .args(whole.get_args());
    let first = env.spawn("order-reconciler", command, false);
    first.logs("became leader");
    let second = reconciler(&env, &primary, upstream);
    second.logs("standing by");
    host.vanish();
    let begun = Instant::now();
    second.logs("became leader");
    println!("followed after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_killed_is_followed_soon() {
    let primary = Cluster::own(&[]);
    let env = TestEnvironment::new();
    let first = reconciler(&env, &primary, "http://127.0.0.1:1");
    first.logs("became leader");
    let second = reconciler(&env, &primary, "http://127.0.0.1:1");
    second.logs("standing by");
    let begun = Instant::now();
    first.kill();
    second.logs("became leader");
    println!("followed after {:?}", begun.elapsed());
    // A second, and room for a busy machine.
    assert!(begun.elapsed() < Duration::from_secs(3));
}

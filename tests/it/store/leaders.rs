//! Leaders on PostgreSQL: one that is killed, stopped or cut off is replaced soon, and no order is started
//! twice.

use std::process::Command;
use std::time::{Duration, Instant};

use order_service::clock::Clock;
use order_service::order::Status;
use order_service::simulator::model::Effect;

use super::create;
use super::postgres::open;
use crate::cluster::Cluster;
use crate::environment::{Client, Program, TestEnvironment};

/// A reconciler with a short request timeout.
fn reconciler(env: &TestEnvironment, primary: &Cluster, upstream: &str) -> Program {
    let url = primary.url("postgres");
    let arguments = ["--database-url", &url, "--order-process-url", upstream];
    let settings = ["--start-rate", "200", "--request-timeout", "1s"];
    env.start("order-reconciler", &[arguments, settings].concat(), false)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_reconciler_does_not_hold_back_vacuum() {
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
async fn a_new_leader_removes_the_rows_of_processes_that_have_ended() {
    let primary = Cluster::own(&[]);
    let store = open(&[primary.port()]);
    drop(store.try_lead().await.unwrap().unwrap());
    let writers =
        |sql: &str| primary.run("postgres", &sql.replace("TABLE", "order_service.writers"));
    writers("UPDATE TABLE SET used_at = now() - interval '25 hours'");
    writers("INSERT INTO TABLE VALUES (1, 1, now() - interval '23 hours')");
    let _lead = open(&[primary.port()]).try_lead().await.unwrap().unwrap();
    assert_eq!(
        writers("SELECT count(*) FROM TABLE"),
        "2",
        "the new leader's and that of yesterday"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_leader_sends_one_statement_per_pass_and_few_others() {
    let primary = Cluster::own(&["log_statement=all"]);
    let env = TestEnvironment::new();
    let leader = reconciler(&env, &primary, "http://127.0.0.1:1");
    leader.logs("became leader");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = primary.logged("postgres").len();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let sent = primary.logged("postgres").split_off(before);
    // Five passes, a heartbeat, the state of the server, and the newest order after its commit.
    assert!((3..=8).contains(&sent.len()), "{sent:#?}");
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
    // Starts whose intents had been checked are sent when the process is resumed; the upstream refuses
    // them.
    assert!(repeated.count() <= 8, "starts of orders that had a process");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_soon() {
    let primary = Cluster::own(&[]);
    let env = TestEnvironment::new();
    let first = reconciler(&env, &primary, "http://127.0.0.1:1");
    first.logs("became leader");
    let second = reconciler(&env, &primary, "http://127.0.0.1:1");
    second.logs("standing by");
    let begun = Instant::now();
    first.kill();
    second.logs("became leader");
    println!("replaced after {:?}", begun.elapsed());
    // One second, and a margin for a busy machine.
    assert!(begun.elapsed() < Duration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_exits_after_a_later_version_has_changed_the_schema() {
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
    // Its writes until then are valid: a later schema only adds.
    assert_eq!(client.create(&api.url, "a2").await.status, 201);
    for program in [&mut api, &mut reconciler] {
        assert_eq!(program.wait().code(), Some(3));
        let log = program.logged();
        assert!(log.contains("a later version of this program"), "{log}");
    }
}

/// A host that can be cut off: a network namespace at the other end of a virtual cable.
struct Host {
    name: String,
    cable: String,
}

impl Host {
    /// Address of this machine on the network of the host, and that network.
    const ADDRESS: &str = "10.77.77.1";
    const NETWORK: &str = "10.77.77.0/24";

    /// Creates a host. Returns `None` without the privileges for it.
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

    fn cut_off(&self) {
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
async fn the_lock_of_a_leader_whose_host_is_cut_off_is_released_within_seconds() {
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
    host.cut_off();
    let begun = Instant::now();
    second.logs("became leader");
    println!("replaced after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(8));
}

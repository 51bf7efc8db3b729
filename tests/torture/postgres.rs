//! The torture on PostgreSQL: two APIs and two reconcilers on a primary and two standbys, one of which has
//! each commit before it is acknowledged. Programs and servers are killed, stopped, cut off and promoted.
//!
//! No cluster manager takes part: the torture promotes as one would. It ends or fences the primary, promotes
//! the standby that has received most, and makes the others follow it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::chaos::{LEADS, free_ports};
use crate::cluster::Cluster;
use crate::environment::{Client, Program, TestEnvironment};
use crate::load::Load;
use crate::proxy::{Fault, Proxy};

/// The programs, in the order in which they are started.
const NAMES: [&str; 5] = [
    "simulator",
    "api 1",
    "api 2",
    "reconciler 1",
    "reconciler 2",
];
const SIMULATOR: usize = 0;
const APIS: [usize; 2] = [1, 2];
const RECONCILERS: [usize; 2] = [3, 4];

/// Names of the servers, by which they are each other's synchronous standbys.
const SERVERS: [&str; 3] = ["n0", "n1", "n2"];

/// Number of open orders above which the load pauses.
const OPEN_MAX: u64 = 3_000;

/// Load of a run of kills and promotions, in creations per second.
const FAILOVER_RATE: u64 = 500;

/// The plan of a run.
#[derive(Clone, Copy, Debug)]
pub enum Plan {
    /// Random faults, for this many minutes.
    Minutes(f64),
    /// This many kills of the primary, and then as many promotions, under a steady load.
    Failovers(u32),
}

/// Numbers of injected faults, by name.
#[derive(Default)]
pub struct Injected(BTreeMap<&'static str, u64>);

impl Injected {
    fn add(&mut self, name: &'static str) {
        *self.0.entry(name).or_default() += 1;
    }

    pub fn summary(&self) -> String {
        let each: Vec<_> = self
            .0
            .iter()
            .map(|(name, n)| format!("{name} {n}"))
            .collect();
        each.join(", ")
    }
}

/// The programs, and the proxies between them and the servers.
pub struct Programs<'w> {
    env: &'w TestEnvironment,
    runtime: Handle,
    client: Client,
    rng: fastrand::Rng,
    ports: Vec<u16>,
    /// A proxy in front of each server, for each program but the simulator.
    proxies: Vec<Vec<Proxy>>,
    programs: Vec<Option<Program>>,
    /// Times at which a fault of each program ends.
    undo_at: [Option<Instant>; 5],
    pub injected: Injected,
}

impl<'w> Programs<'w> {
    /// Starts the programs.
    pub fn begin(
        env: &'w TestEnvironment,
        runtime: Handle,
        servers: &Servers,
        rng: fastrand::Rng,
    ) -> Self {
        let proxies = (1..NAMES.len()).map(|_| {
            let ports = servers.all.iter().map(Cluster::port);
            ports
                .map(|port| runtime.block_on(Proxy::start(port)))
                .collect()
        });
        let mut programs = Self {
            env,
            client: Client::new(),
            rng,
            ports: free_ports::<4>().into(),
            proxies: proxies.collect(),
            programs: Vec::new(),
            undo_at: [None; 5],
            injected: Injected::default(),
            runtime,
        };
        for which in 0..NAMES.len() {
            let program = programs.started(which);
            programs.programs.push(Some(program));
        }
        programs.wait_until_ready();
        programs
    }

    /// Waits until both APIs can create orders and a reconciler leads, and starts programs again that met
    /// no server in time.
    fn wait_until_ready(&mut self) {
        let began_at = Instant::now();
        for url in self.api_urls() {
            loop {
                let request = self.client.request("GET", format!("{url}/readyz"));
                let answer = self.runtime.block_on(async { request.send().await });
                if answer.is_ok_and(|answer| answer.status().is_success()) {
                    break;
                }
                assert!(began_at.elapsed() < Duration::from_secs(120), "{url}");
                self.start_ended();
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        while self.leader().is_none() {
            assert!(
                began_at.elapsed() < Duration::from_secs(120),
                "no reconciler leads"
            );
            self.start_ended();
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn api_urls(&self) -> Vec<String> {
        let url = |which: usize| format!("http://127.0.0.1:{}", self.ports[which]);
        APIS.map(url).into()
    }

    pub fn simulator_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[SIMULATOR])
    }

    /// Starts a program, at the address that it had before.
    fn started(&mut self, which: usize) -> Program {
        let listen = |port: usize| format!("127.0.0.1:{}", self.ports[port]);
        let simulator = self.simulator_url();
        if which == SIMULATOR {
            let (control, seed) = (listen(3), self.rng.u64(..).to_string());
            let arguments = ["--max-order-process-duration", "5", "--control", &control];
            let arguments = [&arguments[..], &["--seed", &seed]].concat();
            return self.env.simulator_at(&listen(SIMULATOR), &arguments);
        }
        let hosts: Vec<_> = self.proxies[which - 1]
            .iter()
            .map(|proxy| format!("127.0.0.1:{}", proxy.port))
            .collect();
        let database = format!("postgres://tests@{}/postgres", hosts.join(","));
        if APIS.contains(&which) {
            let arguments = [
                "api",
                "--listen",
                &listen(which),
                "--database-url",
                &database,
            ];
            return self.env.start("order-service", &arguments, false);
        }
        let arguments = [
            "--database-url",
            &database,
            "--order-process-url",
            &simulator,
        ];
        let settings = ["--start-rate", "1000", "--request-timeout", "1s"];
        let policy = ["--max-starts", "1000", "--lost-process", "restart"];
        let arguments = [&arguments[..], &settings, &policy].concat();
        self.env.start("order-reconciler", &arguments, false)
    }

    fn set_preset(&self, preset: &str) {
        let url = format!("http://127.0.0.1:{}/faults", self.ports[3]);
        let body = format!("{{\"preset\":\"{preset}\"}}");
        let request = self.client.request("PUT", url);
        let request = request
            .header("content-type", "application/json")
            .body(body);
        // A simulator that has crashed begins without faults.
        let _ = self.runtime.block_on(async { request.send().await });
    }

    /// Injects faults until `is_over`, and undoes each after a while.
    fn run(&mut self, is_over: &AtomicBool) {
        let mut inject_at = Instant::now();
        while !is_over.load(Ordering::Relaxed) {
            let now = Instant::now();
            self.undo(|at| at <= now);
            self.start_ended();
            if now >= inject_at {
                self.inject(now);
                inject_at = now + Duration::from_millis(self.rng.u64(300..4_000));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.undo(|_| true);
        self.start_ended();
        self.set_preset("calm");
    }

    fn inject(&mut self, now: Instant) {
        let which = self.rng.usize(1..NAMES.len());
        let lasts = Duration::from_millis(self.rng.u64(200..8_000));
        if self.undo_at[which].is_some() {
            return;
        }
        match self.rng.u32(..10) {
            0..3 => {
                self.injected.add("programs killed");
                if let Some(program) = self.programs[which].take() {
                    program.kill();
                }
            }
            3..6 => {
                let which = self.leader().unwrap_or(which);
                self.injected.add("programs stopped");
                if let Some(program) = &self.programs[which] {
                    program.signal("STOP");
                }
                self.undo_at[which] = Some(now + lasts);
            }
            6..9 => {
                self.injected.add("programs cut off");
                let fault = match self.rng.bool() {
                    true => Fault::Stall,
                    false => Fault::Down,
                };
                for proxy in &self.proxies[which - 1] {
                    proxy.set(fault);
                }
                self.undo_at[which] = Some(now + lasts);
            }
            _ => {
                let presets = ["flaky", "calm", "crashing", "outage"];
                let preset = presets[self.rng.usize(..presets.len())];
                self.injected.add("faults of the upstream");
                self.set_preset(preset);
            }
        }
    }

    /// Returns the reconciler that has become leader last, as its log says.
    fn leader(&self) -> Option<usize> {
        RECONCILERS.into_iter().find(|which| {
            let program = self.programs[*which].as_ref();
            program.is_some_and(|program| {
                let log = program.logged();
                let last = log.lines().rev().find(|line| {
                    line.contains(LEADS) || line.contains("gave up") || line.contains("standing by")
                });
                last.is_some_and(|line| line.contains(LEADS))
            })
        })
    }

    fn undo(&mut self, is_due: impl Fn(Instant) -> bool) {
        for which in 1..NAMES.len() {
            if self.undo_at[which].is_some_and(&is_due) {
                self.undo_at[which] = None;
                if let Some(program) = &self.programs[which] {
                    program.signal("CONT");
                }
                for proxy in &self.proxies[which - 1] {
                    proxy.set(Fault::Open);
                }
            }
        }
    }

    /// Starts programs that were killed, and those that have ended by themselves because no server could
    /// be reached as they were started.
    fn start_ended(&mut self) {
        for which in 0..NAMES.len() {
            let has_ended = match &mut self.programs[which] {
                None => true,
                Some(program) => program.ended().is_some(),
            };
            if has_ended {
                self.programs[which] = None;
                self.programs[which] = Some(self.started(which));
            }
        }
    }

    /// Terminates all programs, and returns the exit codes that are not 0.
    pub fn end(&mut self) -> Vec<String> {
        let mut failures = Vec::new();
        for (which, name) in NAMES.iter().enumerate().rev() {
            let code = self.programs[which].take().and_then(Program::stop);
            if code != Some(0) {
                failures.push(format!("{name} ended with {code:?} at last"));
            }
        }
        failures
    }
}

/// The servers.
pub struct Servers {
    all: Vec<Cluster>,
    primary: usize,
    rng: fastrand::Rng,
    pub injected: Injected,
    /// Durations from the end of a primary until the next one accepts writes.
    pub promotions: Vec<Duration>,
    /// Durations from the end of a primary until it accepts writes again.
    pub restarts: Vec<Duration>,
    pub most_open: u64,
}

impl Servers {
    /// Starts a primary and two standbys.
    pub fn begin(rng: fastrand::Rng) -> Self {
        let name = format!("cluster_name={}", SERVERS[0]);
        let first = Cluster::own(&[&name]);
        let standbys = SERVERS[1..].iter().map(|name| first.standby(name));
        let standbys: Vec<_> = standbys.collect();
        let all: Vec<_> = std::iter::once(first).chain(standbys).collect();
        let names = format!("ANY 1 ({})", SERVERS.join(", "));
        for server in &all {
            server.set("synchronous_standby_names", &names);
            // A standby that was killed finds there what it has missed.
            server.set("wal_keep_size", "512");
            // Commits wait for a standby, which would look for the primary again after 5 s.
            server.set("wal_retrieve_retry_interval", "100");
        }
        let servers = Self {
            all,
            primary: 0,
            rng,
            injected: Injected::default(),
            promotions: Vec::new(),
            restarts: Vec::new(),
            most_open: 0,
        };
        servers.wait_for_standbys(2);
        servers
    }

    fn wait_for_standbys(&self, count: u32) {
        let sql = format!(
            "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'quorum' HAVING count(*) >= {count}"
        );
        self.all[self.primary].wait_for(&sql);
    }

    fn standbys(&self) -> [usize; 2] {
        [(self.primary + 1) % 3, (self.primary + 2) % 3]
    }

    pub fn primary(&self) -> &Cluster {
        &self.all[self.primary]
    }

    /// Returns the number of open orders.
    fn open(&self) -> u64 {
        let sql =
            "SELECT count(*) FROM order_service.orders WHERE status IN ('CREATED', 'PROCESSING')";
        let open = self.primary().psql("postgres", sql).stdout;
        let open = String::from_utf8(open).unwrap_or_default();
        open.trim().parse().unwrap_or(0)
    }

    /// Returns the numbers of orders and of entries, and the greatest number of each.
    pub fn numbers(&self) -> Vec<i64> {
        let sql = "SELECT count(*), max(seq) FROM order_service.orders \
                   UNION ALL SELECT count(*), max(seq) FROM order_service.journal";
        let text = self.primary().run("postgres", sql);
        let numbers = text
            .split(['|', '\n'])
            .map(|number| number.parse().unwrap());
        numbers.collect()
    }

    /// Kills the primary, and starts it again.
    fn kill_primary(&mut self) {
        self.injected.add("primaries killed and started again");
        let began_at = Instant::now();
        self.all[self.primary].kill();
        self.all[self.primary].start_again();
        self.restarts.push(began_at.elapsed());
        self.wait_for_standbys(1);
    }

    /// Ends the primary, or stops it for a while, and promotes the standby that has received most.
    fn promote(&mut self, is_stopped: bool) {
        let former = self.primary;
        let began_at = Instant::now();
        match is_stopped {
            true => self.all[former].stop(),
            false => self.all[former].kill(),
        }
        let standbys = self.standbys();
        // From now on it can give them nothing, and so acknowledge nothing.
        for standby in standbys {
            self.all[standby].leave();
        }
        let [one, two] = standbys.map(|standby| self.all[standby].received());
        let (next, other) = match one >= two {
            true => (standbys[0], standbys[1]),
            false => (standbys[1], standbys[0]),
        };
        self.all[next].promote();
        self.primary = next;
        self.promotions.push(began_at.elapsed());
        self.all[other].follow(&self.all[next]);
        if is_stopped {
            self.injected.add("primaries stopped and replaced");
            self.all[former].resume();
            std::thread::sleep(Duration::from_millis(self.rng.u64(200..3_000)));
            self.all[former].kill();
        } else {
            self.injected.add("primaries killed and replaced");
        }
        let (before, from) = self.all.split_at_mut(former.max(next));
        let (low, high) = (&mut before[former.min(next)], &mut from[0]);
        match former < next {
            true => low.rebuild(high),
            false => high.rebuild(low),
        }
        self.wait_for_standbys(2);
    }

    fn inject(&mut self) {
        match self.rng.u32(..10) {
            0..3 => self.kill_primary(),
            3..5 => self.promote(false),
            5 => self.promote(true),
            6..8 => {
                self.injected.add("standbys killed");
                let which = self.standbys()[self.rng.usize(..2)];
                self.all[which].kill();
                std::thread::sleep(Duration::from_millis(self.rng.u64(..2_000)));
                self.all[which].start_again();
                self.wait_for_standbys(2);
            }
            _ => {
                self.injected.add("both standbys stopped");
                let standbys = self.standbys();
                for which in standbys {
                    self.all[which].stop();
                }
                std::thread::sleep(Duration::from_millis(self.rng.u64(..5_000)));
                if self.rng.bool() {
                    self.injected.add("waits for a standby cancelled");
                    let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
                                  WHERE wait_event = 'SyncRep'";
                    self.primary().run("postgres", cancel);
                    std::thread::sleep(Duration::from_millis(self.rng.u64(..500)));
                }
                for which in standbys {
                    self.all[which].resume();
                }
                self.wait_for_standbys(2);
            }
        }
    }

    /// Carries out the plan.
    pub fn run(&mut self, plan: Plan, programs: &mut Programs<'_>, load: &Load) {
        match plan {
            Plan::Failovers(count) => self.run_failovers(count, load),
            Plan::Minutes(minutes) => {
                let is_over = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    scope.spawn(|| programs.run(&is_over));
                    self.run_at_random(Duration::from_secs_f64(minutes * 60.0), load);
                    is_over.store(true, Ordering::Relaxed);
                });
            }
        }
    }

    fn run_failovers(&mut self, count: u32, load: &Load) {
        load.set_rate(FAILOVER_RATE);
        for number in 1..=2 * count {
            std::thread::sleep(Duration::from_millis(self.rng.u64(300..1_500)));
            match number <= count {
                true => self.kill_primary(),
                false => self.promote(false),
            }
            let open = self.open();
            self.most_open = self.most_open.max(open);
            if number % 10 == 0 {
                println!("  {number} of {}: {open} orders are open", 2 * count);
            }
        }
        std::thread::sleep(Duration::from_secs(1));
    }

    fn run_at_random(&mut self, duration: Duration, load: &Load) {
        let began_at = Instant::now();
        let mut report_at = Duration::from_secs(60);
        while began_at.elapsed() < duration {
            let open = self.open();
            self.most_open = self.most_open.max(open);
            let rate = self.rng.u64(20..400);
            load.set_rate(if open > OPEN_MAX { 0 } else { rate });
            std::thread::sleep(Duration::from_millis(self.rng.u64(500..5_000)));
            self.inject();
            if began_at.elapsed() >= report_at {
                let minutes = began_at.elapsed().as_secs() / 60;
                println!("  minute {minutes}: {open} orders are open");
                report_at += Duration::from_secs(60);
            }
        }
    }

    /// Waits until every order is settled. Returns false if that takes too long.
    pub fn wait_until_settled(&self, at_most: Duration) -> bool {
        let began_at = Instant::now();
        while self.open() > 0 {
            if began_at.elapsed() > at_most {
                return false;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        true
    }
}

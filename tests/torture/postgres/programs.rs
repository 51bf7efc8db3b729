//! The programs of the torture on PostgreSQL: each is killed, stopped or cut off from the servers at random times.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::{Injected, Servers};
use crate::chaos::{BECAME_LEADER, free_ports};
use crate::cluster::Cluster;
use crate::environment::{Client, Program, TestEnvironment};
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
    /// Time at which the fault of each program ends.
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
            let ports = servers.all().iter().map(Cluster::port);
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
            let program = programs.start_program(which);
            programs.programs.push(Some(program));
        }
        programs.wait_until_ready();
        programs
    }

    /// Waits until both APIs can create orders and a reconciler leads. Restarts programs that have exited
    /// because no server answered in time.
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
    fn start_program(&mut self, which: usize) -> Program {
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
    pub fn run(&mut self, is_over: &AtomicBool) {
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
        let duration = Duration::from_millis(self.rng.u64(200..8_000));
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
                self.undo_at[which] = Some(now + duration);
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
                self.undo_at[which] = Some(now + duration);
            }
            _ => {
                let presets = ["flaky", "calm", "crashing", "outage"];
                let preset = presets[self.rng.usize(..presets.len())];
                self.injected.add("faults of the upstream");
                self.set_preset(preset);
            }
        }
    }

    /// Returns the reconciler that is leader, by the logs.
    fn leader(&self) -> Option<usize> {
        RECONCILERS.into_iter().find(|which| {
            let program = self.programs[*which].as_ref();
            program.is_some_and(|program| {
                let log = program.logged();
                let last = log.lines().rev().find(|line| {
                    line.contains(BECAME_LEADER)
                        || line.contains("gave up")
                        || line.contains("standing by")
                });
                last.is_some_and(|line| line.contains(BECAME_LEADER))
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

    /// Restarts programs that were killed, and those that have exited because no server could be reached
    /// when they started.
    fn start_ended(&mut self) {
        for which in 0..NAMES.len() {
            let has_ended = match &mut self.programs[which] {
                None => true,
                Some(program) => program.ended().is_some(),
            };
            if has_ended {
                self.programs[which] = None;
                self.programs[which] = Some(self.start_program(which));
            }
        }
    }

    /// Terminates all programs, and returns the exit codes that are not 0.
    pub fn end(&mut self) -> Vec<String> {
        let mut failures = Vec::new();
        for (which, name) in NAMES.iter().enumerate().rev() {
            let code = self.programs[which].take().and_then(Program::stop);
            if code != Some(0) {
                failures.push(format!("{name} ended with {code:?} at the end"));
            }
        }
        failures
    }
}

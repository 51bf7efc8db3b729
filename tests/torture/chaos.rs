//! The four programs, and the faults that are injected at random times.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use order_service::order::Status;
use order_service::store::Store;
use tokio::runtime::Handle;

use crate::environment::{Client, Program, TestEnvironment};
use crate::load::Load;

/// The programs, in the order in which they are started and counted.
pub const NAMES: [&str; 4] = ["simulator", "api", "reconciler 1", "reconciler 2"];
const SIMULATOR: usize = 0;
const API: usize = 1;
const RECONCILERS: [usize; 2] = [2, 3];

/// Range of the time between two faults, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 300..3_000;

/// Number of open orders above which the load pauses.
const OPEN_MAX: u64 = 3_000;

/// An outage with a period that is short enough for requests to meet it.
const SHORT_OUTAGE: &str = r#"{"preset":"outage","outage":{"every_ms":3000,"lasts_ms":2000}}"#;

/// Text that a reconciler logs when it becomes the leader.
pub const BECAME_LEADER: &str = "became leader";

/// Numbers of injected faults.
#[derive(Default)]
pub struct InjectedFaults {
    pub kills: [u64; 4],
    pub terms: [u64; 4],
    pub stops: u64,
    pub crashes: u64,
    pub presets: u64,
}

pub struct Chaos<'w> {
    env: &'w TestEnvironment,
    runtime: Handle,
    rng: fastrand::Rng,
    client: Client,
    store: Store,
    ports: [u16; 3],
    programs: [Option<Program>; 4],
    /// Times at which stopped programs are resumed.
    resume_at: [Option<Instant>; 4],
    /// Time at which the default faults are restored.
    restore_at: Option<Instant>,
    pub injected: InjectedFaults,
    pub max_open: u64,
    failures: Vec<String>,
}

impl<'w> Chaos<'w> {
    /// Starts the programs.
    pub fn begin(env: &'w TestEnvironment, runtime: Handle, mut rng: fastrand::Rng) -> Self {
        let ports = free_ports();
        let start = |which| Some(start(env, which, &ports, rng.u64(..)));
        let programs = [0, 1, 2, 3].map(start);
        Self {
            env,
            runtime,
            rng,
            client: Client::new(),
            store: env.store(),
            ports,
            programs,
            resume_at: [None; 4],
            restore_at: None,
            injected: InjectedFaults::default(),
            max_open: 0,
            failures: Vec::new(),
        }
    }

    pub fn api_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[1])
    }

    pub fn simulator_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    /// Injects faults for this duration, and sets the rate of the load.
    pub fn run(&mut self, duration: Duration, load: &Load) {
        let began_at = Instant::now();
        let mut inject_at = began_at + Duration::from_secs(1);
        let mut rate_at = began_at;
        let mut report_at = began_at + Duration::from_secs(60);
        while began_at.elapsed() < duration {
            let now = Instant::now();
            self.undo(now);
            if now >= rate_at {
                let open = self.open();
                self.max_open = self.max_open.max(open);
                let rate = if self.rng.u32(..4) == 0 {
                    self.rng.u64(200..500)
                } else {
                    self.rng.u64(20..150)
                };
                load.set_rate(if open > OPEN_MAX { 0 } else { rate });
                rate_at = now + Duration::from_secs(1);
            }
            if now >= inject_at {
                self.check_running();
                self.inject();
                let pause = self.rng.u64(PAUSE_MS);
                inject_at = Instant::now() + Duration::from_millis(pause);
            }
            if now >= report_at {
                let minutes = began_at.elapsed().as_secs() / 60;
                println!("  minute {minutes}: {} orders are open", self.open());
                report_at += Duration::from_secs(60);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn inject(&mut self) {
        match self.rng.u32(..20) {
            0..2 => self.kill(SIMULATOR),
            2..5 => self.kill(API),
            5..9 => {
                let which = self.pick_reconciler();
                self.kill(which);
            }
            9..13 => self.stop(),
            13..16 => {
                let which = self.rng.usize(..4);
                self.term(which);
            }
            16..18 => {
                self.injected.crashes += 1;
                let body = format!("{{\"restart_after_ms\":{}}}", self.rng.u64(..2_000));
                self.control("POST", "crash", &body);
            }
            _ => {
                self.injected.presets += 1;
                let presets = [
                    r#"{"preset":"flaky"}"#,
                    r#"{"preset":"calm"}"#,
                    SHORT_OUTAGE,
                ];
                let preset = presets[self.rng.usize(..presets.len())];
                self.control("PUT", "faults", preset);
                let seconds = self.rng.u64(2..8);
                self.restore_at = Some(Instant::now() + Duration::from_secs(seconds));
            }
        }
    }

    /// Returns a reconciler, mostly the leader: the other one has no work to interrupt.
    fn pick_reconciler(&mut self) -> usize {
        let any = RECONCILERS[self.rng.usize(..RECONCILERS.len())];
        let prefers_leader = self.rng.u32(..4) > 0;
        let leads = |which: &usize| {
            let program = self.programs[*which].as_ref();
            program.is_some_and(|program| program.logged().contains(BECAME_LEADER))
        };
        let leader = RECONCILERS.into_iter().find(leads);
        leader.filter(|_| prefers_leader).unwrap_or(any)
    }

    fn kill(&mut self, which: usize) {
        self.injected.kills[which] += 1;
        if let Some(program) = self.programs[which].take() {
            program.kill();
        }
        self.start(which);
    }

    /// Sends SIGTERM, on which the program must exit with code 0.
    fn term(&mut self, which: usize) {
        self.injected.terms[which] += 1;
        self.resume(which);
        if let Some(program) = self.programs[which].take() {
            let code = self.run_while_resuming(|| program.stop());
            if code != Some(0) {
                let name = NAMES[which];
                self.failures
                    .push(format!("{name} ended with {code:?} on SIGTERM"));
            }
        }
        self.start(which);
    }

    /// Stops a reconciler for a while, as an overloaded machine would.
    fn stop(&mut self) {
        self.injected.stops += 1;
        let which = self.pick_reconciler();
        if let Some(program) = &self.programs[which] {
            program.signal("STOP");
        }
        let until = Instant::now() + Duration::from_millis(self.rng.u64(200..3_000));
        self.resume_at[which] = Some(until);
    }

    fn resume(&mut self, which: usize) {
        if self.resume_at[which].take().is_some()
            && let Some(program) = &self.programs[which]
        {
            program.signal("CONT");
        }
    }

    fn start(&mut self, which: usize) {
        self.resume_at[which] = None;
        let seed = self.rng.u64(..);
        let (env, ports) = (self.env, self.ports);
        let program = self.run_while_resuming(|| start(env, which, &ports, seed));
        self.programs[which] = Some(program);
    }

    /// Runs `action`, which may wait for a stopped program, and resumes programs that are due meanwhile.
    fn run_while_resuming<T: Send>(&mut self, action: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let running = scope.spawn(action);
            while !running.is_finished() {
                self.resume_due(Instant::now());
                std::thread::sleep(Duration::from_millis(2));
            }
            running.join().expect("the action does not panic")
        })
    }

    fn resume_due(&mut self, now: Instant) {
        for which in RECONCILERS {
            if self.resume_at[which].is_some_and(|at| at <= now) {
                self.resume(which);
            }
        }
    }

    /// Ends the temporary faults that are due.
    fn undo(&mut self, now: Instant) {
        self.resume_due(now);
        if self.restore_at.is_some_and(|at| at <= now) {
            self.restore_at = None;
            self.control("PUT", "faults", r#"{"preset":"crashing"}"#);
        }
    }

    /// Checks that no program has ended by itself, and restarts one that has.
    fn check_running(&mut self) {
        for (which, name) in NAMES.iter().enumerate() {
            let ended = self.programs[which].as_mut().and_then(Program::ended);
            if let Some(status) = ended {
                self.failures
                    .push(format!("{name} ended by itself: {status}"));
                self.start(which);
            }
        }
    }

    /// Ends all faults.
    pub fn stop_faults(&mut self) {
        for which in RECONCILERS {
            self.resume(which);
        }
        self.check_running();
        self.restore_at = None;
        self.control("PUT", "faults", r#"{"preset":"calm"}"#);
    }

    /// Waits until every order is settled. Returns false if that takes too long.
    pub fn wait_until_settled(&mut self, at_most: Duration) -> bool {
        let deadline = Instant::now() + at_most;
        let mut report_at = Instant::now() + Duration::from_secs(30);
        loop {
            let open = self.open();
            if open == 0 {
                return true;
            }
            let now = Instant::now();
            if now >= deadline {
                return false;
            }
            if now >= report_at {
                println!("  settling: {open} orders are open");
                report_at = now + Duration::from_secs(30);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Returns the failures of the programs themselves.
    pub fn failures(&mut self) -> Vec<String> {
        self.check_running();
        std::mem::take(&mut self.failures)
    }

    /// Terminates all programs, the reconcilers first.
    pub fn end(&mut self) -> Vec<String> {
        for which in (0..NAMES.len()).rev() {
            if let Some(program) = self.programs[which].take() {
                let code = program.stop();
                if code != Some(0) {
                    let name = NAMES[which];
                    self.failures
                        .push(format!("{name} ended with {code:?} at the end"));
                }
            }
        }
        std::mem::take(&mut self.failures)
    }

    fn open(&self) -> u64 {
        let count = |status| {
            let count = self.store.count(status).now_or_never();
            count
                .expect("SQLite's reads are ready at once")
                .expect("the database can be read")
        };
        count(Status::Created) + count(Status::Processing)
    }

    fn control(&mut self, method: &str, path: &str, body: &str) {
        let url = format!("http://127.0.0.1:{}/{path}", self.ports[2]);
        let request = self
            .client
            .request(method, url)
            .header("content-type", "application/json")
            .body(body.to_owned());
        let answer = self.runtime.block_on(self.client.send(request));
        // A simulator that is down cannot crash.
        let is_right = answer.status == 200 || (answer.status == 409 && path == "crash");
        if !is_right {
            self.failures
                .push(format!("{method} /{path} {body}: {answer:?}"));
        }
    }
}

/// Starts a program at its address.
fn start(env: &TestEnvironment, which: usize, ports: &[u16; 3], seed: u64) -> Program {
    let [simulator, api, control] = ports.map(|port| format!("127.0.0.1:{port}"));
    let database = env.database();
    let database = database
        .to_str()
        .expect("temporary folders have plain names");
    match which {
        SIMULATOR => {
            let seed = seed.to_string();
            let arguments = [
                "--preset",
                "crashing",
                "--max-order-process-duration",
                "5",
                "--control",
                &control,
                "--seed",
                &seed,
            ];
            env.simulator_at(&simulator, &arguments)
        }
        API => {
            let arguments = ["api", "--listen", &api, "--database-url", database];
            env.start("order-service", &arguments, true)
        }
        _ => {
            let arguments = [
                "--start-rate",
                "300",
                "--request-timeout",
                "500ms",
                "--max-starts",
                "1000",
                "--lost-process",
                "restart",
            ];
            env.reconciler(&format!("http://{simulator}"), &arguments)
        }
    }
}

/// Returns free ports outside the ephemeral range, so that they stay free across restarts.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let mut bound = Vec::new();
    while bound.len() < N {
        let port = fastrand::u16(20_000..32_000);
        bound.extend(TcpListener::bind(("127.0.0.1", port)));
    }
    std::array::from_fn(|i| bound[i].local_addr().expect("it is bound").port())
}

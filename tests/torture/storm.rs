//! The storm: the four programs, and what is done to them at random moments.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use order_service::order::Status;
use order_service::store::Store;
use tokio::runtime::Handle;

use crate::load::Load;
use crate::world::{Client, Program, World};

/// The programs, in the order in which they are started and counted.
pub const NAMES: [&str; 4] = ["simulator", "api", "reconciler 1", "reconciler 2"];
const SIMULATOR: usize = 0;
const API: usize = 1;
const RECONCILERS: [usize; 2] = [2, 3];

/// Between two blows, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 300..3_000;

/// So many open orders, and the load rests until they are fewer.
const OPEN_MAX: u64 = 3_000;

/// An outage short enough to be met while it is set.
const SHORT_OUTAGE: &str = r#"{"preset":"outage","outage":{"every_ms":3000,"lasts_ms":2000}}"#;

/// What a reconciler logs when it begins to lead.
pub const LEADS: &str = "this reconciler leads";

/// What was done.
#[derive(Default)]
pub struct Blows {
    pub kills: [u64; 4],
    pub terms: [u64; 4],
    pub stops: u64,
    pub crashes: u64,
    pub presets: u64,
}

pub struct Storm<'w> {
    world: &'w World,
    runtime: Handle,
    rng: fastrand::Rng,
    client: Client,
    store: Store,
    ports: [u16; 3],
    programs: [Option<Program>; 4],
    /// When a stopped program goes on.
    goes_on_at: [Option<Instant>; 4],
    /// When the usual faults come back.
    usual_at: Option<Instant>,
    pub blows: Blows,
    pub most_open: u64,
    failures: Vec<String>,
}

impl<'w> Storm<'w> {
    /// Starts the programs.
    pub fn begin(world: &'w World, runtime: Handle, mut rng: fastrand::Rng) -> Self {
        let ports = free_ports();
        let start = |which| Some(start(world, which, &ports, rng.u64(..)));
        let programs = [0, 1, 2, 3].map(start);
        Self {
            world,
            runtime,
            rng,
            client: Client::new(),
            store: world.store(),
            ports,
            programs,
            goes_on_at: [None; 4],
            usual_at: None,
            blows: Blows::default(),
            most_open: 0,
            failures: Vec::new(),
        }
    }

    pub fn api_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[1])
    }

    pub fn simulator_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    /// Does its worst for so long.
    pub fn rage(&mut self, duration: Duration, load: &Load) {
        let begun = Instant::now();
        let mut blow_at = begun + Duration::from_secs(1);
        let mut rate_at = begun;
        let mut tell_at = begun + Duration::from_secs(60);
        while begun.elapsed() < duration {
            let now = Instant::now();
            self.undo(now);
            if now >= rate_at {
                let open = self.open();
                self.most_open = self.most_open.max(open);
                let rate = if self.rng.u32(..4) == 0 {
                    self.rng.u64(200..500)
                } else {
                    self.rng.u64(20..150)
                };
                load.set_rate(if open > OPEN_MAX { 0 } else { rate });
                rate_at = now + Duration::from_secs(1);
            }
            if now >= blow_at {
                self.all_run();
                self.blow();
                let pause = self.rng.u64(PAUSE_MS);
                blow_at = Instant::now() + Duration::from_millis(pause);
            }
            if now >= tell_at {
                let minutes = begun.elapsed().as_secs() / 60;
                println!("  minute {minutes}: {} orders are open", self.open());
                tell_at += Duration::from_secs(60);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn blow(&mut self) {
        match self.rng.u32(..20) {
            0..2 => self.kill(SIMULATOR),
            2..5 => self.kill(API),
            5..9 => {
                let which = self.a_reconciler();
                self.kill(which);
            }
            9..13 => self.stop(),
            13..16 => {
                let which = self.rng.usize(..4);
                self.term(which);
            }
            16..18 => {
                self.blows.crashes += 1;
                let body = format!("{{\"restart_after_ms\":{}}}", self.rng.u64(..2_000));
                self.control("POST", "crash", &body);
            }
            _ => {
                self.blows.presets += 1;
                let presets = [
                    r#"{"preset":"flaky"}"#,
                    r#"{"preset":"calm"}"#,
                    SHORT_OUTAGE,
                ];
                let preset = presets[self.rng.usize(..presets.len())];
                self.control("PUT", "faults", preset);
                let seconds = self.rng.u64(2..8);
                self.usual_at = Some(Instant::now() + Duration::from_secs(seconds));
            }
        }
    }

    /// Mostly the one that leads: the other has nothing in its hands.
    fn a_reconciler(&mut self) -> usize {
        let any = RECONCILERS[self.rng.usize(..RECONCILERS.len())];
        let is_to_lead = self.rng.u32(..4) > 0;
        let leads = |which: &usize| {
            let program = self.programs[*which].as_ref();
            program.is_some_and(|program| program.logged().contains(LEADS))
        };
        let leader = RECONCILERS.into_iter().find(leads);
        leader.filter(|_| is_to_lead).unwrap_or(any)
    }

    fn kill(&mut self, which: usize) {
        self.blows.kills[which] += 1;
        if let Some(program) = self.programs[which].take() {
            program.kill();
        }
        self.start(which);
    }

    /// SIGTERM: it must end by itself, and well.
    fn term(&mut self, which: usize) {
        self.blows.terms[which] += 1;
        self.go_on(which);
        if let Some(program) = self.programs[which].take() {
            let code = self.meanwhile(|| program.stop());
            if code != Some(0) {
                let name = NAMES[which];
                self.failures
                    .push(format!("{name} ended with {code:?} on SIGTERM"));
            }
        }
        self.start(which);
    }

    /// SIGSTOP for a while, as a machine does that is out of breath.
    fn stop(&mut self) {
        self.blows.stops += 1;
        let which = self.a_reconciler();
        if let Some(program) = &self.programs[which] {
            program.signal("STOP");
        }
        let until = Instant::now() + Duration::from_millis(self.rng.u64(200..3_000));
        self.goes_on_at[which] = Some(until);
    }

    fn go_on(&mut self, which: usize) {
        if self.goes_on_at[which].take().is_some()
            && let Some(program) = &self.programs[which]
        {
            program.signal("CONT");
        }
    }

    fn start(&mut self, which: usize) {
        self.goes_on_at[which] = None;
        let seed = self.rng.u64(..);
        let (world, ports) = (self.world, self.ports);
        let program = self.meanwhile(|| start(world, which, &ports, seed));
        self.programs[which] = Some(program);
    }

    /// Does what may wait for a stopped program, which goes on in its time all the same.
    fn meanwhile<T: Send>(&mut self, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let acting = scope.spawn(act);
            while !acting.is_finished() {
                self.go_on_in_time(Instant::now());
                std::thread::sleep(Duration::from_millis(2));
            }
            acting.join().expect("it could be done")
        })
    }

    fn go_on_in_time(&mut self, now: Instant) {
        for which in RECONCILERS {
            if self.goes_on_at[which].is_some_and(|at| at <= now) {
                self.go_on(which);
            }
        }
    }

    /// Ends what was for a while only.
    fn undo(&mut self, now: Instant) {
        self.go_on_in_time(now);
        if self.usual_at.is_some_and(|at| at <= now) {
            self.usual_at = None;
            self.control("PUT", "faults", r#"{"preset":"crashing"}"#);
        }
    }

    /// Nobody ends but by our hand.
    fn all_run(&mut self) {
        for (which, name) in NAMES.iter().enumerate() {
            let ended = self.programs[which].as_mut().and_then(Program::ended);
            if let Some(status) = ended {
                self.failures
                    .push(format!("{name} ended by itself: {status}"));
                self.start(which);
            }
        }
    }

    /// From now on nothing goes wrong.
    pub fn calm(&mut self) {
        for which in RECONCILERS {
            self.go_on(which);
        }
        self.all_run();
        self.usual_at = None;
        self.control("PUT", "faults", r#"{"preset":"calm"}"#);
    }

    /// Waits until every order is settled; false if that takes too long.
    pub fn settle(&mut self, at_most: Duration) -> bool {
        let deadline = Instant::now() + at_most;
        let mut tell_at = Instant::now() + Duration::from_secs(30);
        loop {
            let open = self.open();
            if open == 0 {
                return true;
            }
            let now = Instant::now();
            if now >= deadline {
                return false;
            }
            if now >= tell_at {
                println!("  settling: {open} orders are open");
                tell_at = now + Duration::from_secs(30);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What went wrong with the programs themselves.
    pub fn failures(&mut self) -> Vec<String> {
        self.all_run();
        std::mem::take(&mut self.failures)
    }

    /// Ends them all, the reconcilers first.
    pub fn end(&mut self) -> Vec<String> {
        for which in (0..NAMES.len()).rev() {
            if let Some(program) = self.programs[which].take() {
                let code = program.stop();
                if code != Some(0) {
                    let name = NAMES[which];
                    self.failures
                        .push(format!("{name} ended with {code:?} at last"));
                }
            }
        }
        std::mem::take(&mut self.failures)
    }

    fn open(&self) -> u64 {
        let counts = self.store.counts().now_or_never();
        let counts = counts
            .expect("SQLite's reads are ready at once")
            .expect("the database can be read");
        let is_open = |status: &Status| !status.is_settled();
        let open = counts.iter().filter(|(status, _)| is_open(status));
        open.map(|(_, count)| count).sum()
    }

    fn control(&mut self, method: &str, path: &str, body: &str) {
        let url = format!("http://127.0.0.1:{}/{path}", self.ports[2]);
        let request = self
            .client
            .request(method, url)
            .header("content-type", "application/json")
            .body(body.to_owned());
        let answer = self.runtime.block_on(self.client.send(request));
        // It cannot crash while it is down.
        let is_right = answer.status == 200 || (answer.status == 409 && path == "crash");
        if !is_right {
            self.failures
                .push(format!("{method} /{path} {body}: {answer:?}"));
        }
    }
}

/// Starts a program where it was before.
fn start(world: &World, which: usize, ports: &[u16; 3], seed: u64) -> Program {
    let [simulator, api, control] = ports.map(|port| format!("127.0.0.1:{port}"));
    let database = world.database();
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
            world.simulator_at(&simulator, &arguments)
        }
        API => {
            let arguments = ["api", "--listen", &api, "--database-url", database];
            world.start("order-service", &arguments, true)
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
            world.reconciler(&format!("http://{simulator}"), &arguments)
        }
    }
}

/// Ports that the system gives to nobody by itself, so that they are still free after a restart.
fn free_ports() -> [u16; 3] {
    let mut held = Vec::new();
    while held.len() < 3 {
        let port = fastrand::u16(20_000..32_000);
        held.extend(TcpListener::bind(("127.0.0.1", port)));
    }
    let port = |i: usize| held[i].local_addr().expect("it is bound").port();
    [port(0), port(1), port(2)]
}

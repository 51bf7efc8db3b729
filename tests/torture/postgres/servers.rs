//! The servers of the torture on PostgreSQL: primaries are killed and replaced, standbys killed and
//! stopped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Injected, Plan, Programs};
use crate::cluster::Cluster;
use crate::load::Load;

/// Names of the servers, by which they are each other's synchronous standbys.
const SERVERS: [&str; 3] = ["n0", "n1", "n2"];

/// Number of open orders above which the load pauses.
const OPEN_MAX: u64 = 3_000;

/// Load of a run of kills and promotions, in creations per second.
const FAILOVER_RATE: u64 = 500;

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
    pub max_open: u64,
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
            // A restarted standby reads from there the log that it lacks.
            server.set("wal_keep_size", "512");
            // Commits wait for a standby, which by default would reconnect to the primary after 5 s.
            server.set("wal_retrieve_retry_interval", "100");
        }
        let servers = Self {
            all,
            primary: 0,
            rng,
            injected: Injected::default(),
            promotions: Vec::new(),
            restarts: Vec::new(),
            max_open: 0,
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

    pub fn all(&self) -> &[Cluster] {
        &self.all
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
    fn promote(&mut self, is_stopped: bool, load: &Load) {
        let former = self.primary;
        let began_at = Instant::now();
        match is_stopped {
            true => self.all[former].stop(),
            false => self.all[former].kill(),
        }
        let standbys = self.standbys();
        // From now on the former primary cannot replicate, so it cannot acknowledge a commit.
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
            load.on_former_primary();
            self.all[former].resume();
            std::thread::sleep(Duration::from_millis(self.rng.u64(200..3_000)));
            self.all[former].kill();
            load.on_former_primary();
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

    fn inject(&mut self, load: &Load) {
        match self.rng.u32(..10) {
            0..3 => self.kill_primary(),
            3..5 => self.promote(false, load),
            5 => self.promote(true, load),
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
                false => self.promote(false, load),
            }
            let open = self.open();
            self.max_open = self.max_open.max(open);
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
            self.max_open = self.max_open.max(open);
            let rate = self.rng.u64(20..400);
            load.set_rate(if open > OPEN_MAX { 0 } else { rate });
            std::thread::sleep(Duration::from_millis(self.rng.u64(500..5_000)));
            self.inject(load);
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

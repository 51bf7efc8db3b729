//! A differential test of both engines: the same random run of creations, records, operators' decisions,
//! prunes, elections and reads, with equal times. Every answer is equal, numbers included.
//!
//! `ORDER_TEST_RUNS` is the number of random runs, `ORDER_TEST_SEED` the seed of the first. A seed
//! repeats its run exactly.

mod random;

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::TryStreamExt;
use order_service::journal_stats::JournalStats;
use order_service::order::{OrderId, Status, Timestamp};
use order_service::store::{Cursor, Leadership, Resolution, Store, StoreError};

use super::{TestDatabase, all, postgres, sqlite};
use crate::cluster::{EMPTY, cluster};
use crate::environment::{TestEnvironment, lead};

/// Number of random runs unless `ORDER_TEST_RUNS` is set.
const RUNS: u64 = 5;

/// Number of steps of a run.
const STEPS: usize = 24;

#[test]
fn both_engines_give_equal_answers_in_random_runs() {
    let number = |name: &str, default| {
        let text = std::env::var(name).ok();
        text.map_or(default, |text| text.parse().unwrap())
    };
    let first = number("ORDER_TEST_SEED", 0);
    let last = first + number("ORDER_TEST_RUNS", RUNS);
    let next = AtomicU64::new(first);
    let run = || {
        let database = cluster().database();
        let on_postgres = postgres::new_database_in(&database);
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= last {
                return;
            }
            // A new database takes longer than a run.
            cluster().run(&database, EMPTY);
            runtime.block_on(async {
                let on_sqlite = sqlite::new_database_in(TestEnvironment::in_memory());
                let mut engines = EnginePair::new(seed, &on_sqlite, &on_postgres, &database).await;
                for _ in 0..STEPS {
                    engines.step().await;
                }
                engines.compare_all().await;
            });
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().unwrap().get() {
            scope.spawn(run);
        }
    });
}

/// Methods of the store whose answers are not compared, each with the reason.
const NOT_COMPARED: [(&str, &str); 5] = [
    ("size", "depends on the engine"),
    (
        "retired",
        "returns when the database must not be used any longer",
    ),
    ("checkpoint", "has no answer"),
    ("new_orders", "returns when an order is created"),
    ("try_lead", "compared in `try_to_lead`"),
];

#[test]
fn every_method_of_the_store_is_compared() {
    let store = concat!(
        include_str!("../../../src/store.rs"),
        include_str!("../../../src/store/leadership.rs"),
        include_str!("../../../src/store/reconciling.rs")
    );
    let methods = store.lines().filter_map(|line| {
        let name = line.trim().strip_prefix("pub async fn ")?;
        name.split_once('(').map(|(name, _)| name)
    });
    let methods: Vec<_> = methods.collect();
    for (name, why) in NOT_COMPARED {
        assert!(methods.contains(&name), "{name} is no method ({why})");
    }
    let calls = include_str!("engines.rs").replace(char::is_whitespace, "");
    for name in methods {
        let is_left_out = NOT_COMPARED.iter().any(|(of, _)| *of == name);
        let is_called = calls.contains(&format!("].{name}("));
        assert!(is_left_out || is_called, "{name} is not compared");
    }
}

/// A database of each engine with the same orders, each opened by two programs.
pub struct EnginePair<'a> {
    seed: u64,
    random: fastrand::Rng,
    on_sqlite: &'a TestDatabase,
    database: &'a str,
    /// The stores of both programs, by engine.
    programs: [[&'a Store; 2]; 2],
    /// The stores of the program that takes the present step.
    stores: [&'a Store; 2],
    /// The program that leads.
    leader: usize,
    leads: Vec<Leadership>,
    stats: [JournalStats; 2],
    /// The last cursors in the journal and in the list.
    event_cursors: [Cursor; 2],
    page_cursors: [Cursor; 2],
    now: i64,
}

/// Compares the answers of both engines to one call.
macro_rules! compare {
    ($engines:ident, |$index:ident| $call:expr) => {{
        let mut answers = Vec::new();
        for $index in 0..2 {
            answers.push(shown($call.await));
        }
        assert_eq!(
            answers[0],
            answers[1],
            "seed {}: {}",
            $engines.seed,
            stringify!($call)
        );
    }};
}

/// Returns an answer as text. Errors are compared by their messages, because their causes are the engines'
/// own.
fn shown<T: Debug>(answer: Result<T, StoreError>) -> String {
    match answer {
        Ok(answer) => format!("{answer:?}"),
        Err(StoreError::Unreadable(cause)) => panic!("{cause:?}"),
        Err(error) => error.to_string(),
    }
}

/// Returns a page and its next cursor without the history, whose id is random.
fn page<T>((items, next): (Vec<T>, Cursor)) -> (Vec<T>, i64) {
    (items, next.seq)
}

/// Returns an answer that has a next cursor as text, and that cursor.
fn resumed<T: Debug>(answer: Result<(Vec<T>, Cursor), StoreError>) -> (String, Cursor) {
    let next = match &answer {
        Ok((_, next)) => *next,
        Err(StoreError::Gone(gone)) => gone.left,
        Err(error) => panic!("{error}"),
    };
    (
        format!("{} then {}", shown(answer.map(page)), next.seq),
        next,
    )
}

impl<'a> EnginePair<'a> {
    pub async fn new(
        seed: u64,
        on_sqlite: &'a TestDatabase,
        on_postgres: &'a TestDatabase,
        database: &'a str,
    ) -> Self {
        let programs = [on_sqlite, on_postgres].map(|database| [&database.store, &database.other]);
        let stores = programs.map(|programs| programs[0]);
        Self {
            seed,
            random: fastrand::Rng::with_seed(seed),
            on_sqlite,
            database,
            programs,
            stores,
            leader: 0,
            leads: vec![lead(stores[0]).await, lead(stores[1]).await],
            stats: Default::default(),
            event_cursors: Default::default(),
            page_cursors: Default::default(),
            now: 1_000_000,
        }
    }

    pub async fn step(&mut self) {
        let program = self.random.usize(..2);
        self.stores = self.programs.map(|programs| programs[program]);
        // A clock may stop, or be set back.
        self.now += self.random.i64(-50..1_000);
        let now = Timestamp(self.now);
        let id = self.id();
        let stores = self.stores;
        match self.random.u8(0..33) {
            0..=7 => compare!(self, |engine| stores[engine].create(id.clone(), now)),
            8..=19 => {
                let changes: Vec<_> = (0..self.random.usize(0..8))
                    .map(|_| self.change())
                    .collect();
                let leads = &self.leads;
                compare!(self, |engine| leads[engine].record(changes.clone(), now));
            }
            20..=23 => {
                let resolution = match self.random.bool() {
                    true => Resolution::Restart,
                    false => Resolution::Fail,
                };
                compare!(self, |engine| stores[engine].resolve(
                    id.clone(),
                    resolution,
                    now
                ));
            }
            24..=25 => {
                let before = Timestamp(self.now - self.random.i64(0..2_000));
                let limit = self.random.usize(1..4);
                let after = self.random.i64(0..4);
                compare!(self, |engine| stores[engine]
                    .prune(before, after, limit, now));
            }
            26..=27 => {
                let heartbeat = self.heartbeat();
                let leads = &self.leads;
                compare!(self, |engine| leads[engine]
                    .write_heartbeat(heartbeat.clone()));
                compare!(self, |engine| stores[engine].heartbeat());
            }
            28..=29 => {
                let leads = &self.leads;
                compare!(self, |engine| leads[engine].clamp_times(now));
            }
            30..=31 => compare!(self, |engine| stores[engine].check_writable(now)),
            _ => self.elect().await,
        }
        self.read(&id).await;
    }

    /// Makes the program that does not lead try to lead, which succeeds if the other one gives up the lead
    /// or loses its lock. Then the other one records nothing.
    async fn elect(&mut self) {
        let follower = self.programs.map(|programs| programs[1 - self.leader]);
        compare!(self, |engine| try_to_lead(follower[engine]));
        match self.random.u8(0..6) {
            0 => {
                self.on_sqlite.break_lock();
                postgres::break_lock(self.database);
                let leads = self.follow(follower).await;
                let (changes, now) = (vec![self.change()], Timestamp(self.now));
                compare!(self, |engine| leads[engine].record(changes.clone(), now));
                assert_eq!(leads[0].loss(), leads[1].loss(), "seed {}", self.seed);
            }
            1..=3 => {
                self.leads.clear();
                self.follow(follower).await;
            }
            _ => {}
        }
    }

    /// Makes the other program leader, and returns the former leaderships.
    async fn follow(&mut self, stores: [&Store; 2]) -> Vec<Leadership> {
        let leads = vec![lead(stores[0]).await, lead(stores[1]).await];
        self.leader = 1 - self.leader;
        std::mem::replace(&mut self.leads, leads)
    }

    /// Reads something.
    async fn read(&mut self, id: &OrderId) {
        let now = Timestamp(self.now);
        let stores = self.stores;
        let (after, limit) = (self.random.i64(0..20), self.random.usize(1..12));
        match self.random.u8(0..12) {
            0 => compare!(self, |engine| stores[engine].find(id)),
            1 => {
                compare!(self, |engine| stores[engine].details(id, now));
                compare!(self, |engine| stores[engine].similar_ids(id));
            }
            2 => {
                for status in Status::ALL {
                    compare!(self, |engine| stores[engine].count(status));
                }
                compare!(self, |engine| stores[engine].next_open(after));
            }
            3..=4 => {
                let filter = self.filter();
                compare!(self, |engine| async {
                    let after = Cursor::bare(after);
                    let pages = stores[engine].pages(filter.clone(), after, limit);
                    pages.map_ok(page).try_collect::<Vec<_>>().await
                });
            }
            5 => {
                let has_failed = self.random.bool();
                let max_starts = self.random.u32(0..5);
                compare!(self, |engine| stores[engine]
                    .startable(now, max_starts, has_failed, after, limit));
                compare!(self, |engine| async move {
                    let has_work = stores[engine].has_work(now, max_starts).await?;
                    let mut is_any = !stores[engine].open_orders().await?.is_empty();
                    for has_failed in [false, true] {
                        let due = stores[engine].startable(now, max_starts, has_failed, 0, 1);
                        is_any |= !due.await?.is_empty();
                    }
                    assert_eq!(has_work, is_any);
                    Ok(has_work)
                });
            }
            6 => compare!(self, |engine| async move {
                let open = stores[engine].open_orders().await?;
                let ids: Vec<_> = (0..open.len())
                    .map(|index| open.ids().get(index).to_owned())
                    .collect();
                Ok((ids, open.orders().collect::<Vec<_>>()))
            }),
            7 => compare!(self, |engine| async move {
                let events = stores[engine].events(Some(id), Cursor::default(), limit);
                events.await.map(page)
            }),
            8 => {
                let mut answers = Vec::new();
                for (store, cursor) in stores.into_iter().zip(&mut self.event_cursors) {
                    let (answer, next) = resumed(store.events(None, *cursor, limit).await);
                    *cursor = next;
                    answers.push(answer);
                }
                assert_eq!(answers[0], answers[1], "seed {}: events", self.seed);
                compare!(self, |engine| async move {
                    Ok(stores[engine].newest_event().await?.seq)
                });
            }
            9 => {
                let filter = self.filter();
                let mut answers = Vec::new();
                for (store, cursor) in stores.into_iter().zip(&mut self.page_cursors) {
                    let mut pages = std::pin::pin!(store.pages(filter.clone(), *cursor, limit));
                    let (answer, next) = resumed(pages.try_next().await.map(Option::unwrap));
                    *cursor = next;
                    answers.push(answer);
                }
                assert_eq!(answers[0], answers[1], "seed {}: orders", self.seed);
            }
            10 => {
                // A cursor of a database with pruned orders, or of another one.
                let cursor = match self.random.bool() {
                    true => Cursor::bare(self.random.i64(0..60)),
                    false => format!("{after}-{}-0", self.random.u8(0..3))
                        .parse()
                        .unwrap(),
                };
                compare!(self, |engine| async move {
                    Ok::<_, StoreError>(resumed(stores[engine].events(None, cursor, limit).await).0)
                });
            }
            _ => {
                let mut answers = Vec::new();
                for (store, stats) in stores.into_iter().zip(&mut self.stats) {
                    let answer = store.update_stats(stats, now).await;
                    answers.push((shown(answer), format!("{stats:?}")));
                }
                assert_eq!(answers[0], answers[1], "seed {}: statistics", self.seed);
            }
        }
    }

    /// Reads everything.
    pub async fn compare_all(&mut self) {
        let stores = self.stores;
        let now = Timestamp(self.now);
        compare!(self, |engine| async { Ok(all(stores[engine]).await) });
        compare!(self, |engine| async move {
            let events = stores[engine].events(None, Cursor::default(), 10_000);
            events.await.map(page)
        });
        for order in all(stores[0]).await.into_iter().take(4) {
            compare!(self, |engine| stores[engine].details(&order.id, now));
        }
        compare!(self, |engine| async move {
            let mut stats = JournalStats::default();
            let answer = stores[engine].update_stats(&mut stats, now).await?;
            Ok((answer, stats))
        });
    }
}

/// Tries to lead. Returns whether there is a leader then.
async fn try_to_lead(store: &Store) -> Result<bool, StoreError> {
    match store.try_lead().await {
        Ok(lead) => Ok(lead.is_none()),
        Err(error) => panic!("{error}"),
    }
}

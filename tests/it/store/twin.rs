//! One random history of creations, records, decisions, removals and reads through both engines, with
//! equal times: every answer is equal, numbers included.

use std::fmt::Debug;

use futures_util::TryStreamExt;
use order_service::decide::LostProcess;
use order_service::journal_stats::JournalStats;
use order_service::order::{OrderId, Outcome, Reason, ResolvedBy, Status, Timestamp};
use order_service::pace::UpstreamState;
use order_service::reconciler_state::ReconcilerState;
use order_service::store::{
    AttentionFilter, AttentionUpdate, Cursor, Filter, Leadership, OrderChange, Resolution, Store,
    StoreError, Transition,
};

use super::{Fresh, all, postgres, sqlite};

/// Histories unless `ORDER_TEST_TWINS` says how many.
const HISTORIES: u64 = 5;

/// Steps of a history.
const STEPS: usize = 120;

#[tokio::test]
async fn both_engines_answer_alike_whatever_happens_to_orders() {
    let histories = std::env::var("ORDER_TEST_TWINS").ok();
    let histories = histories.map_or(HISTORIES, |count| count.parse().unwrap());
    let first = std::env::var("ORDER_TEST_TWIN_SEED").ok();
    let first = first.map_or(0, |seed| seed.parse().unwrap());
    for seed in first..first + histories {
        let (on_sqlite, on_postgres) = (sqlite::fresh(), postgres::fresh());
        let mut twin = Twin::new(seed, &on_sqlite, &on_postgres).await;
        for _ in 0..STEPS {
            twin.step().await;
        }
        twin.compare_all().await;
    }
}

/// Two stores with equal orders, one on each engine.
struct Twin<'a> {
    seed: u64,
    random: fastrand::Rng,
    stores: [&'a Store; 2],
    leads: [Leadership; 2],
    stats: [JournalStats; 2],
    /// The last positions in the journal.
    cursors: [Cursor; 2],
    now: i64,
}

/// Compares the answers of both engines to one call.
macro_rules! compare {
    ($twin:ident, |$index:ident| $call:expr) => {{
        let mut answers = Vec::new();
        for $index in 0..2 {
            answers.push(shown($call.await));
        }
        assert_eq!(
            answers[0],
            answers[1],
            "seed {}: {}",
            $twin.seed,
            stringify!($call)
        );
    }};
}

/// An answer as text. Errors are compared by their messages, because their causes are the engines' own.
fn shown<T: Debug>(answer: Result<T, StoreError>) -> String {
    match answer {
        Ok(answer) => format!("{answer:?}"),
        Err(StoreError::Unreadable(cause)) => panic!("{cause:?}"),
        Err(error) => error.to_string(),
    }
}

/// A page and its next position without the history, whose id is random.
fn page<T>((items, next): (Vec<T>, Cursor)) -> (Vec<T>, i64) {
    (items, next.seq)
}

impl<'a> Twin<'a> {
    async fn new(seed: u64, on_sqlite: &'a Fresh, on_postgres: &'a Fresh) -> Self {
        let stores = [&on_sqlite.store, &on_postgres.store];
        let mut leads = Vec::new();
        for store in stores {
            leads.push(store.try_lead().await.unwrap().unwrap());
        }
        Self {
            seed,
            random: fastrand::Rng::with_seed(seed),
            stores,
            leads: leads.try_into().unwrap(),
            stats: Default::default(),
            cursors: Default::default(),
            now: 1_000_000,
        }
    }

    async fn step(&mut self) {
        // A clock may stand still, and may be set back.
        self.now += self.random.i64(-50..1_000);
        let now = Timestamp(self.now);
        let id = self.id();
        let stores = self.stores;
        match self.random.u8(0..16) {
            0..=3 => compare!(self, |at| stores[at].create(id.clone(), now)),
            4..=9 => {
                let changes: Vec<_> = (0..self.random.usize(1..8))
                    .map(|_| self.change())
                    .collect();
                let leads = &self.leads;
                compare!(self, |at| stores[at].record(
                    &leads[at],
                    changes.clone(),
                    now
                ));
            }
            10..=11 => {
                let resolution = match self.random.bool() {
                    true => Resolution::Restart,
                    false => Resolution::Fail,
                };
                compare!(self, |at| stores[at].resolve(id.clone(), resolution, now));
            }
            12 => {
                let before = Timestamp(self.now - self.random.i64(0..2_000));
                let limit = self.random.usize(1..4);
                let after = self.random.i64(0..4);
                compare!(self, |at| stores[at].prune(before, after, limit, now));
            }
            13 => {
                let heartbeat = self.heartbeat();
                let leads = &self.leads;
                compare!(self, |at| stores[at]
                    .write_heartbeat(&leads[at], heartbeat.clone()));
                compare!(self, |at| stores[at].heartbeat());
            }
            14 => {
                let leads = &self.leads;
                compare!(self, |at| stores[at].clamp_times(&leads[at], now));
            }
            _ => compare!(self, |at| stores[at].probe(now)),
        }
        self.read(&id).await;
    }

    /// Reads something.
    async fn read(&mut self, id: &OrderId) {
        let now = Timestamp(self.now);
        let stores = self.stores;
        let (after, limit) = (self.random.i64(0..20), self.random.usize(1..12));
        match self.random.u8(0..10) {
            0 => compare!(self, |at| stores[at].find(id)),
            1 => compare!(self, |at| stores[at].details(id, now)),
            2 => {
                for status in Status::ALL {
                    compare!(self, |at| stores[at].count(status));
                }
            }
            3..=4 => {
                let filter = self.filter();
                compare!(self, |at| async {
                    let after = Cursor::bare(after);
                    let pages = stores[at].pages(filter.clone(), after, limit);
                    pages.map_ok(page).try_collect::<Vec<_>>().await
                });
            }
            5 => {
                let is_tried = self.random.bool();
                let max_starts = self.random.u32(0..5);
                compare!(self, |at| stores[at]
                    .startable(now, max_starts, is_tried, after, limit));
            }
            6 => compare!(self, |at| async move {
                let open = stores[at].open_orders().await?;
                let ids: Vec<_> = (0..open.len())
                    .map(|index| open.ids().get(index).to_owned())
                    .collect();
                Ok((ids, open.orders().collect::<Vec<_>>()))
            }),
            7 => compare!(self, |at| async move {
                let events = stores[at].events(Some(id), Cursor::default(), limit);
                events.await.map(page)
            }),
            8 => {
                let mut answers = Vec::new();
                for (at, store) in stores.into_iter().enumerate() {
                    let cursor = self.cursors[at];
                    let answer = store.events(None, cursor, limit).await;
                    self.cursors[at] = match &answer {
                        Ok((_, next)) => *next,
                        Err(StoreError::Gone(gone)) => gone.left,
                        Err(error) => panic!("seed {}: {error}", self.seed),
                    };
                    answers.push((shown(answer.map(page)), self.cursors[at].seq));
                }
                assert_eq!(answers[0], answers[1], "seed {}: events", self.seed);
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
    async fn compare_all(&mut self) {
        let stores = self.stores;
        let now = Timestamp(self.now);
        compare!(self, |at| async { Ok(all(stores[at]).await) });
        compare!(self, |at| async move {
            let events = stores[at].events(None, Cursor::default(), 10_000);
            events.await.map(page)
        });
        for order in all(stores[0]).await {
            compare!(self, |at| stores[at].details(&order.id, now));
        }
        compare!(self, |at| async move {
            let mut stats = JournalStats::default();
            let answer = stores[at].update_stats(&mut stats, now).await?;
            Ok((answer, stats))
        });
    }

    fn id(&mut self) -> OrderId {
        // Bytes decide, in both.
        let names = ["a", "B", "é", "日", "a b"];
        let name = names[self.random.usize(..names.len())];
        OrderId::new(format!("{name}{}", self.random.u8(0..8))).unwrap()
    }

    fn time(&mut self) -> Timestamp {
        Timestamp(self.now + self.random.i64(-2_000..2_000))
    }

    fn filter(&mut self) -> Filter {
        let attention = match self.random.u8(0..5) {
            0 => Some(AttentionFilter::Any),
            1 => Some(AttentionFilter::By(ResolvedBy::Operator)),
            2 => Some(AttentionFilter::By(ResolvedBy::Itself)),
            3 => Some(AttentionFilter::Without),
            _ => None,
        };
        let statuses = Status::ALL.into_iter().filter(|_| self.random.bool());
        Filter {
            statuses: statuses.collect(),
            attention,
        }
    }

    fn change(&mut self) -> OrderChange {
        OrderChange {
            seq: self.random.i64(1..24),
            step: self.transition(),
        }
    }

    fn transition(&mut self) -> Transition {
        let is_seen = self.random.bool();
        let is_counted = self.random.u8(0..4) > 0;
        match self.random.u8(0..18) {
            0..=3 => Transition::Intended { previous: None },
            4 => Transition::Intended {
                previous: Some(self.time()),
            },
            5 => Transition::Counted {
                written_at: Timestamp(self.now),
                is_counted: true,
            },
            6..=7 => Transition::Started { is_seen },
            8 => Transition::Restarted { is_seen },
            9 => Transition::Withdrawn,
            10 => Transition::GivenUp {
                answer: is_seen.then_some(503),
                is_counted,
                attention: self.attention(),
            },
            11 => Transition::Adopted,
            12 => Transition::Seen,
            13 => Transition::Settled(match is_seen {
                true => Outcome::Succeeded,
                false => Outcome::Failed,
            }),
            14 => Transition::Missed {
                began_at: self.time(),
            },
            15 => match is_counted {
                true => Transition::Cleared,
                false => Transition::FailedByPolicy,
            },
            16 => Transition::Flagged(self.attention()),
            _ => Transition::Delayed(self.attention()),
        }
    }

    fn attention(&mut self) -> AttentionUpdate {
        AttentionUpdate {
            reason: Reason::ALL[self.random.usize(..Reason::ALL.len())],
            detail: format!("what was seen: é{}", self.random.u8(..)),
            next_attempt_at: self.time(),
        }
    }

    fn heartbeat(&mut self) -> ReconcilerState {
        let since = self.time();
        ReconcilerState {
            leader_since: Some(since),
            last_pass_at: self.random.bool().then_some(since),
            next_pass_at: Some(self.time()),
            next_poll_at: self.random.bool().then_some(since),
            policy: Some(LostProcess::ALL[self.random.usize(..LostProcess::ALL.len())]),
            upstream: match self.random.u8(0..3) {
                0 => UpstreamState::Unknown,
                1 => UpstreamState::Up { since },
                _ => UpstreamState::Down {
                    since,
                    detail: "no answer".to_owned(),
                },
            },
            ..ReconcilerState::default()
        }
    }
}

//! Work of the reconciler per order, from the bytes of the upstream's list to the changed rows.

use std::hint::black_box;
use std::time::Duration;

use order_service::clock::{Clock, ManualClock};
use order_service::decide::{
    Intent, LostProcess, Observation, Occasion, OpenOrder, Phase, Policy, decide,
};
use order_service::order::{Observed, OrderId, Outcome, Timestamp};
use order_service::process::Stop;
use order_service::reconciler::{Reconciler, Report, Settings};
use order_service::store::{OrderChange, Transition};
use order_service::upstream::{Entry, Failure, ListDecoder, StartError, Upstream};

use super::Iteration;
use super::environment::{Environment, NOW, ids};

/// Number of processes in the decoded list.
pub(super) const LIST: u64 = 1_000;

/// Size of the pieces of the list, in bytes: about that of TCP reads.
const CHUNK: usize = 16 * 1024;

/// Number of decisions per iteration: each order with each observation, repeated.
pub(super) const DECISIONS: u64 = (PHASES * INTENTS * OBSERVATIONS * ROUNDS) as u64;
const PHASES: usize = 3;
const INTENTS: usize = 2;
const OBSERVATIONS: usize = 5;
const ROUNDS: usize = 100;

/// Number of open orders in the pass.
pub(super) const OPEN: u64 = 1_000;

/// Number of orders settled in one transaction.
pub(super) const SETTLED: u64 = 100;

/// Default settings.
const POLICY: Policy = Policy {
    request_timeout: Duration::from_secs(5),
    max_starts: 5,
    lost_process: LostProcess::Restart,
    unrecorded_until: Timestamp(0),
    process_forgotten_at: None,
};

/// Time between passes, long enough that every order is due in each.
const PASS_INTERVAL: Duration = Duration::from_secs(600);

pub(super) fn decode(_iterations: usize) -> Iteration {
    let list = list(LIST as usize, "SUCCEEDED");
    let mut on_entry = |entry: Entry<'_>| {
        black_box(entry);
    };
    Box::new(move || assert_eq!(decode_list(&list, &mut on_entry), LIST))
}

/// Emits the entries of a list, and returns their number.
fn decode_list(list: &[u8], on_entry: &mut impl FnMut(Entry<'_>)) -> u64 {
    let mut decoder = ListDecoder::new();
    for chunk in list.chunks(CHUNK) {
        decoder.push(chunk, on_entry).expect("it is well-formed");
    }
    decoder.finish().expect("it is complete")
}

/// Returns the upstream's list of the processes of the first orders.
fn list(length: usize, status: &str) -> Vec<u8> {
    let entries: Vec<String> = ids()
        .take(length)
        .map(|id| format!("{{\"order_id\":\"{id}\",\"status\":\"{status}\"}}"))
        .collect();
    format!("[{}]", entries.join(",")).into_bytes()
}

pub(super) fn decide_all(_iterations: usize) -> Iteration {
    let (orders, observations) = (orders(), observations());
    Box::new(move || {
        for _ in 0..ROUNDS {
            for order in &orders {
                for observation in &observations {
                    black_box(decide(
                        black_box(order),
                        Occasion::Poll,
                        Some(black_box(observation)),
                        &POLICY,
                        NOW,
                    ));
                }
            }
        }
    })
}

/// Returns one order for each row of the table.
fn orders() -> Vec<OpenOrder> {
    let confirmed_at = Timestamp(NOW.0 - 60_000);
    let intent = Intent {
        written_at: confirmed_at,
        given_up_at: None,
        answer_status: None,
    };
    let phases: [Phase; PHASES] = [
        Phase::Created,
        Phase::Processing {
            confirmed_at,
            missed_at: None,
        },
        Phase::Processing {
            confirmed_at,
            missed_at: Some(confirmed_at),
        },
    ];
    let intents: [Option<Intent>; INTENTS] = [None, Some(intent)];
    let order = |phase, intent| OpenOrder {
        seq: 1,
        phase,
        is_observed: false,
        intent,
        starts: 0,
        restart_requested: false,
        attempts: 0,
        next_attempt_at: None,
        attention: None,
    };
    let each = phases.into_iter().zip(std::iter::repeat(intents));
    each.flat_map(|(phase, intents)| intents.map(|intent| order(phase, intent)))
        .collect()
}

fn observations() -> [Observation; OBSERVATIONS] {
    [
        Observed::Absent,
        Observed::Running,
        Observed::Succeeded,
        Observed::Failed,
        Observed::of_status("PAUSED"),
    ]
    .map(|observed| Observation {
        observed,
        began_at: NOW,
    })
}

pub(super) fn pass(_iterations: usize) -> Iteration {
    let env = Environment::new(OPEN as usize);
    let lead = env.lead();
    for changes in batches(OPEN as usize, &[Transition::Adopted]) {
        env.record(&lead, changes);
    }
    let settings = Settings {
        request_timeout: POLICY.request_timeout,
        max_starts: POLICY.max_starts,
        lost_process: POLICY.lost_process,
        ..Settings::default()
    };
    let clock = ManualClock::new(NOW);
    let upstream = StaticList(list(OPEN as usize, "RUNNING"));
    let store = env.store.clone();
    let reconciler = Reconciler::new(store, lead, upstream, clock.clone(), settings);
    let reconciler = env.wait_for(reconciler);
    let mut reconciler = reconciler.expect("the database can be read");
    let stop = Stop::default();
    Box::new(move || {
        clock.set(clock.now().after(PASS_INTERVAL));
        let report = env.wait_for(reconciler.pass(&stop));
        let report = report.expect("no request fails");
        let nothing_new = Report {
            observed: OPEN as usize,
            ..Report::default()
        };
        assert_eq!(report, nothing_new);
    })
}

pub(super) fn settle(iterations: usize) -> Iteration {
    let orders = iterations * SETTLED as usize;
    let env = Environment::new(orders);
    let steps = [Transition::Adopted, Transition::Settled(Outcome::Succeeded)];
    let mut batches = batches(orders, &steps);
    let lead = env.lead();
    Box::new(move || {
        let changes = batches
            .next()
            .expect("no more iterations than were prepared");
        env.record(&lead, changes);
    })
}

/// Returns batches of changes: these transitions for each of the first orders, as many orders per
/// batch as settle in one transaction.
fn batches(orders: usize, steps: &[Transition]) -> impl Iterator<Item = Vec<OrderChange>> + use<> {
    let all: Vec<i64> = (1..=orders as i64).collect();
    let of_some = |seqs: &[i64]| {
        let of_one = |seq: &i64| {
            let seq = *seq;
            steps
                .iter()
                .cloned()
                .map(move |transition| OrderChange { seq, transition })
        };
        seqs.iter().flat_map(of_one).collect()
    };
    let batches: Vec<Vec<OrderChange>> = all.chunks(SETTLED as usize).map(of_some).collect();
    batches.into_iter()
}

/// An upstream that answers with this list, and supports no other request.
struct StaticList(Vec<u8>);

impl Upstream for StaticList {
    async fn start(&self, _id: &OrderId) -> Result<(), StartError> {
        panic!("nothing is to be started")
    }

    async fn look_up(&self, _id: &OrderId) -> Result<Observed, Failure> {
        panic!("so many orders are not looked up one by one")
    }

    async fn list(&self, mut on_entry: impl FnMut(Entry<'_>)) -> Result<u64, Failure> {
        Ok(decode_list(&self.0, &mut on_entry))
    }
}

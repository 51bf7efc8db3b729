//! The load: clients that create orders, each id once, and record the answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::environment::{Client, is_settled};

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Maximum number of requests to create one order.
const TRIES: u32 = 6;

/// The existence of an order, as the answers to its creation imply it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existence {
    /// The order was acknowledged, and must exist.
    Acknowledged,
    /// An answer was lost, or did not exclude that the order was created: it may exist.
    Possible,
    /// Every answer stated that nothing was done, or there was no connection: it must not exist.
    Excluded,
}

/// The answers to the load.
#[derive(Default)]
pub struct Answers {
    pub existence: HashMap<String, Existence>,
    /// Acknowledged orders, in the order of their answers.
    acknowledged: Vec<String>,
    /// Statuses of settled orders that were read during the run: they must not change.
    pub settled: HashMap<String, String>,
    pub wrong: Vec<String>,
    created: u64,
    existed: u64,
    refused: u64,
    unreachable: u64,
    unknown: u64,
    pub reads: u64,
    /// Reads that a former primary answered, where orders that it has never received are unknown.
    pub stale_reads: u64,
    /// The longest wait for the answer to a creation.
    pub longest: Duration,
}

/// The running clients.
pub struct Load {
    shared: Arc<Shared>,
    callers: Vec<JoinHandle<()>>,
}

struct Shared {
    apis: Vec<String>,
    /// Number of concurrent clients.
    callers: u64,
    client: Client,
    answers: Mutex<Answers>,
    /// Creations per second of all clients together; 0 for none.
    rate: AtomicU64,
    /// Number of times that a former primary has begun or ceased to answer: odd while one answers.
    former_primary_changes: AtomicU64,
    is_over: AtomicBool,
}

impl Load {
    pub fn begin(
        runtime: &Handle,
        apis: Vec<String>,
        callers: u64,
        mut rng: fastrand::Rng,
    ) -> Self {
        let shared = Arc::new(Shared {
            apis,
            callers,
            client: Client::new(),
            answers: Mutex::default(),
            rate: AtomicU64::new(100),
            former_primary_changes: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        });
        let callers = (0..callers)
            .map(|caller| runtime.spawn(call(shared.clone(), caller, rng.fork())))
            .collect();
        Self { shared, callers }
    }

    pub fn set_rate(&self, per_second: u64) {
        self.shared.rate.store(per_second, Ordering::Relaxed);
    }

    /// Reports that a former primary answers again, or has ended.
    #[cfg(feature = "postgres")]
    pub fn on_former_primary(&self) {
        let changes = &self.shared.former_primary_changes;
        changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends the load, and returns the answers.
    pub async fn end(self) -> Answers {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.expect("no caller panics");
        }
        std::mem::take(&mut self.shared.answers.lock().unwrap())
    }
}

/// The outcome of one request to create an order.
enum CreateOutcome {
    Created,
    Existed,
    /// The answer states that nothing was done.
    Refused,
    /// The connection was refused.
    Unreachable,
    Unknown,
    Wrong(String),
}

async fn call(shared: Arc<Shared>, caller: u64, mut rng: fastrand::Rng) {
    let mut count = 0_u64;
    while !shared.is_over.load(Ordering::Relaxed) {
        let rate = shared.rate.load(Ordering::Relaxed);
        if rate == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        let pause = shared.callers as f64 / rate as f64 * 2.0 * rng.f64();
        tokio::time::sleep(Duration::from_secs_f64(pause)).await;
        count += 1;
        let id = format!("c{caller}-{count}");
        create(&shared, &id, &mut rng).await;
        if rng.u32(..6) == 0 {
            read(&shared, &mut rng).await;
        }
    }
}

/// Creates an order, and in half of the cases retries until it exists.
async fn create(shared: &Shared, id: &str, rng: &mut fastrand::Rng) {
    let gives_up_early = rng.bool();
    for _ in 0..TRIES {
        let began_at = Instant::now();
        let outcome = post(shared, api(shared, rng), id).await;
        let existence = {
            let mut answers = shared.answers.lock().unwrap();
            answers.longest = answers.longest.max(began_at.elapsed());
            answers.add(id, outcome)
        };
        if existence == Existence::Acknowledged || gives_up_early {
            return;
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(20..300))).await;
    }
}

impl Answers {
    /// Returns the number of orders of this existence.
    pub fn count(&self, existence: Existence) -> usize {
        let found = self.existence.values();
        found.filter(|found| **found == existence).count()
    }

    pub fn summary(&self) -> String {
        format!(
            "201 {}, 409 {}, nothing done {}, no connection {}, unknown {}; {} reads",
            self.created, self.existed, self.refused, self.unreachable, self.unknown, self.reads
        )
    }

    /// Adds the outcome of a request, and returns the existence of the order.
    fn add(&mut self, id: &str, outcome: CreateOutcome) -> Existence {
        let mut existence = self
            .existence
            .get(id)
            .copied()
            .unwrap_or(Existence::Excluded);
        match outcome {
            CreateOutcome::Created => {
                self.created += 1;
                existence = Existence::Acknowledged;
            }
            CreateOutcome::Existed => {
                self.existed += 1;
                if existence == Existence::Excluded {
                    let what = format!("{id} existed before the first request for it");
                    self.wrong.push(what);
                }
                existence = Existence::Acknowledged;
            }
            CreateOutcome::Refused => self.refused += 1,
            CreateOutcome::Unreachable => self.unreachable += 1,
            CreateOutcome::Unknown => {
                self.unknown += 1;
                existence = Existence::Possible;
            }
            CreateOutcome::Wrong(what) => self.wrong.push(what),
        }
        self.existence.insert(id.to_owned(), existence);
        if existence == Existence::Acknowledged {
            self.acknowledged.push(id.to_owned());
        }
        existence
    }
}

/// Returns the URL of one of the APIs.
fn api<'a>(shared: &'a Shared, rng: &mut fastrand::Rng) -> &'a str {
    &shared.apis[rng.usize(..shared.apis.len())]
}

async fn post(shared: &Shared, api: &str, id: &str) -> CreateOutcome {
    let request = shared
        .client
        .request("POST", format!("{api}/order"))
        .timeout(TIMEOUT)
        .header("content-type", "application/json")
        .body(serde_json::json!({ "id": id }).to_string());
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) if error.is_connect() => return CreateOutcome::Unreachable,
        Err(_) => return CreateOutcome::Unknown,
    };
    let status = response.status().as_u16();
    let Ok(body) = response.text().await else {
        // The status is enough.
        return match status {
            201 => CreateOutcome::Created,
            _ => CreateOutcome::Unknown,
        };
    };
    match status {
        201 => CreateOutcome::Created,
        409 => CreateOutcome::Existed,
        503 if body.contains("nothing was done") => CreateOutcome::Refused,
        503 if body.contains("/problems#outcome-unknown") => CreateOutcome::Unknown,
        _ => CreateOutcome::Wrong(format!("{id} was answered {status}: {body}")),
    }
}

/// Reads an acknowledged order: it must exist, unless a former primary answers, and if it is settled, its
/// status must not change.
async fn read(shared: &Shared, rng: &mut fastrand::Rng) {
    let id = {
        let answers = shared.answers.lock().unwrap();
        let Some(last) = answers.acknowledged.len().checked_sub(1) else {
            return;
        };
        let index = if rng.bool() { last } else { rng.usize(..=last) };
        answers.acknowledged[index].clone()
    };
    let url = format!("{}/order/{id}", api(shared, rng));
    let changes = shared.former_primary_changes.load(Ordering::Relaxed);
    let request = shared.client.request("GET", url).timeout(TIMEOUT);
    let Ok(response) = request.send().await else {
        return;
    };
    let status = response.status().as_u16();
    let Ok(body) = response.text().await else {
        return;
    };
    let mut answers = shared.answers.lock().unwrap();
    answers.reads += 1;
    match status {
        200 => {
            let order: Value = serde_json::from_str(&body).unwrap_or_default();
            if is_settled(&order) {
                let now = order["status"].as_str().unwrap_or_default().to_owned();
                let before = answers.settled.insert(id, now.clone());
                if before.is_some_and(|before| before != now) {
                    answers
                        .wrong
                        .push(format!("its settled status has changed: {order}"));
                }
            }
        }
        503 => {}
        404 if changes % 2 == 1
            || changes != shared.former_primary_changes.load(Ordering::Relaxed) =>
        {
            answers.stale_reads += 1;
        }
        _ => answers
            .wrong
            .push(format!("acknowledged {id} is answered {status}: {body}")),
    }
}

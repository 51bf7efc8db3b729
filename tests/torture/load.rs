//! The load: connections that create orders, each id once, and remember what was answered.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::world::{Client, is_settled};

/// Callers at the same time.
const CALLERS: u64 = 16;

/// Between the start and the end of any request.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How often one order is asked for at most.
const TRIES: u32 = 6;

/// What is known of an order from the answers to its creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It was acknowledged: it must be there.
    Acknowledged,
    /// An answer never came, or said that it may be created: both is right.
    Maybe,
    /// Every answer said that nothing was done, or nobody was there: it must not exist.
    Not,
}

/// What came of the load.
#[derive(Default)]
pub struct Answers {
    pub known: HashMap<String, Known>,
    /// Those acknowledged, in the order of their answers.
    acknowledged: Vec<String>,
    /// How settled orders were told during the run: they must stay so.
    pub told: HashMap<String, String>,
    pub wrong: Vec<String>,
    pub created: u64,
    pub existed: u64,
    pub refused: u64,
    pub unreachable: u64,
    pub unknown: u64,
    pub reads: u64,
}

/// Callers at work.
pub struct Load {
    shared: Arc<Shared>,
    callers: Vec<JoinHandle<()>>,
}

struct Shared {
    api: String,
    client: Client,
    answers: Mutex<Answers>,
    /// Creations per second, over all callers; zero for none.
    rate: AtomicU64,
    is_over: AtomicBool,
}

impl Load {
    pub fn begin(runtime: &Handle, api: String, mut rng: fastrand::Rng) -> Self {
        let shared = Arc::new(Shared {
            api,
            client: Client::new(),
            answers: Mutex::default(),
            rate: AtomicU64::new(100),
            is_over: AtomicBool::new(false),
        });
        let callers = (0..CALLERS)
            .map(|caller| runtime.spawn(call(shared.clone(), caller, rng.fork())))
            .collect();
        Self { shared, callers }
    }

    pub fn set_rate(&self, per_second: u64) {
        self.shared.rate.store(per_second, Ordering::Relaxed);
    }

    /// Ends it, and tells what was answered.
    pub async fn end(self) -> Answers {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.expect("no caller panics");
        }
        std::mem::take(&mut self.shared.answers.lock().unwrap())
    }
}

/// What one request to create an order has shown.
enum Shown {
    Created,
    Existed,
    /// Nothing was done, by the answer's own word.
    Refused,
    /// Nobody took the connection.
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
        let pause = CALLERS as f64 / rate as f64 * 2.0 * rng.f64();
        tokio::time::sleep(Duration::from_secs_f64(pause)).await;
        count += 1;
        let id = format!("c{caller}-{count}");
        create(&shared, &id, &mut rng).await;
        if rng.u32(..6) == 0 {
            read(&shared, &mut rng).await;
        }
    }
}

/// Asks for an order, perhaps again and again until it is there.
async fn create(shared: &Shared, id: &str, rng: &mut fastrand::Rng) {
    let gives_up_early = rng.bool();
    for _ in 0..TRIES {
        let shown = ask(shared, id).await;
        let known = shared.answers.lock().unwrap().note(id, shown);
        if known == Known::Acknowledged || gives_up_early {
            return;
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(20..300))).await;
    }
}

impl Answers {
    /// Takes note of an answer: what is known of the order now.
    fn note(&mut self, id: &str, shown: Shown) -> Known {
        let mut known = self.known.get(id).copied().unwrap_or(Known::Not);
        match shown {
            Shown::Created => {
                self.created += 1;
                known = Known::Acknowledged;
            }
            Shown::Existed => {
                self.existed += 1;
                if known == Known::Not {
                    let what = format!("{id} existed before it was asked for");
                    self.wrong.push(what);
                }
                known = Known::Acknowledged;
            }
            Shown::Refused => self.refused += 1,
            Shown::Unreachable => self.unreachable += 1,
            Shown::Unknown => {
                self.unknown += 1;
                known = Known::Maybe;
            }
            Shown::Wrong(what) => self.wrong.push(what),
        }
        self.known.insert(id.to_owned(), known);
        if known == Known::Acknowledged {
            self.acknowledged.push(id.to_owned());
        }
        known
    }
}

async fn ask(shared: &Shared, id: &str) -> Shown {
    let request = shared
        .client
        .request("POST", format!("{}/order", shared.api))
        .timeout(TIMEOUT)
        .header("content-type", "application/json")
        .body(serde_json::json!({ "id": id }).to_string());
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) if error.is_connect() => return Shown::Unreachable,
        Err(_) => return Shown::Unknown,
    };
    let status = response.status().as_u16();
    let Ok(body) = response.text().await else {
        // The status alone says it.
        return match status {
            201 => Shown::Created,
            _ => Shown::Unknown,
        };
    };
    match status {
        201 => Shown::Created,
        409 => Shown::Existed,
        503 if body.contains("nothing was done") => Shown::Refused,
        503 if body.contains("/problems#outcome-unknown") => Shown::Unknown,
        _ => Shown::Wrong(format!("{id} was answered {status}: {body}")),
    }
}

/// Reads an acknowledged order: it must be there, and if it is settled, stay as it is.
async fn read(shared: &Shared, rng: &mut fastrand::Rng) {
    let id = {
        let answers = shared.answers.lock().unwrap();
        let Some(last) = answers.acknowledged.len().checked_sub(1) else {
            return;
        };
        let at = if rng.bool() { last } else { rng.usize(..=last) };
        answers.acknowledged[at].clone()
    };
    let url = format!("{}/order/{id}", shared.api);
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
                let before = answers.told.insert(id, now.clone());
                if before.is_some_and(|before| before != now) {
                    answers
                        .wrong
                        .push(format!("it was settled otherwise: {order}"));
                }
            }
        }
        503 => {}
        _ => answers
            .wrong
            .push(format!("acknowledged {id} is told {status}: {body}")),
    }
}

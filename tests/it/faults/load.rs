//! Clients that create orders and record the outcome of each.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::environment::{Answer, Client, Program, assert_problem};

/// Outcomes of creations, as the clients saw them.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    pub(super) created: BTreeSet<String>,
    /// Refused: nothing was done.
    pub(super) refused: BTreeSet<String>,
    /// No answer, or one that leaves the outcome open.
    pub(super) unknown: BTreeSet<String>,
}

impl Outcomes {
    pub(super) fn add(&mut self, other: Self) {
        self.created.extend(other.created);
        self.refused.extend(other.refused);
        self.unknown.extend(other.unknown);
    }

    pub(super) fn note(&mut self, id: String, answer: &Answer) {
        match answer.status {
            201 => self.created.insert(id),
            503 if kind(answer) == "outcome-unknown" => self.unknown.insert(id),
            503 => {
                assert_refused(answer);
                self.refused.insert(id)
            }
            _ => panic!("{answer:?}"),
        };
    }

    /// Compares the outcomes with the existing orders.
    #[track_caller]
    pub(super) fn check(&self, there: &[String]) {
        let set: BTreeSet<String> = there.iter().cloned().collect();
        assert_eq!(set.len(), there.len(), "an order is listed twice");
        let lost: Vec<_> = self.created.difference(&set).collect();
        assert!(lost.is_empty(), "acknowledged orders are lost: {lost:?}");
        let done: Vec<_> = self.refused.intersection(&set).collect();
        assert!(done.is_empty(), "refused orders exist: {done:?}");
        let known = |id: &&String| self.created.contains(*id) || self.unknown.contains(*id);
        let strange: Vec<_> = set.iter().filter(|id| !known(id)).collect();
        assert!(
            strange.is_empty(),
            "orders that no client created: {strange:?}"
        );
    }
}

/// Clients that create orders until they are stopped or the API is gone.
pub(super) struct Load {
    end: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Outcomes>>,
}

impl Load {
    pub(super) fn begin(api: &Program, name: &str, width: usize, pause: Duration) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let clients = (0..width)
            .map(|n| {
                let (end, url) = (end.clone(), api.url.clone());
                let name = format!("{name}-{n}");
                tokio::spawn(async move { create_until(&end, &url, &name, pause).await })
            })
            .collect();
        Self { end, clients }
    }

    pub(super) async fn end(self) -> Outcomes {
        self.end.store(true, Ordering::Relaxed);
        let mut outcomes = Outcomes::default();
        for client in self.clients {
            outcomes.add(client.await.unwrap());
        }
        outcomes
    }
}

async fn create_until(end: &AtomicBool, url: &str, name: &str, pause: Duration) -> Outcomes {
    let client = Client::new();
    let mut outcomes = Outcomes::default();
    for n in 0.. {
        if end.load(Ordering::Relaxed) {
            break;
        }
        let id = format!("{name}-{n}");
        match try_create(&client, url, &id).await {
            Some(answer) => outcomes.note(id, &answer),
            None => {
                outcomes.unknown.insert(id);
                break;
            }
        }
        tokio::time::sleep(pause).await;
    }
    outcomes
}

/// Sends `POST /order`. Returns `None` without an answer.
pub(super) async fn try_create(client: &Client, url: &str, id: &str) -> Option<Answer> {
    let request = client
        .request("POST", format!("{url}/order"))
        .header("content-type", "application/json")
        .body(serde_json::json!({ "id": id }).to_string());
    let response = request.send().await.ok()?;
    Some(Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: response.text().await.ok()?,
    })
}

/// Checks that a response says that nothing was done, and when to try again.
#[track_caller]
pub(super) fn assert_refused(answer: &Answer) {
    assert_problem(answer, 503);
    assert!(answer.body.contains("nothing was done"), "{answer:?}");
    let retry_after = answer.header("retry-after").parse::<u64>();
    assert!(retry_after.is_ok_and(|seconds| seconds >= 1), "{answer:?}");
}

/// Returns the last part of a problem's type.
pub(super) fn kind(answer: &Answer) -> String {
    let kind = answer.json()["type"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    kind.rsplit('#').next().unwrap_or_default().to_owned()
}

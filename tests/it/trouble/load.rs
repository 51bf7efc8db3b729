//! Clients that create orders, and remember what they were told of each.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::world::{Answer, Client, Program, assert_problem};

/// What the clients were told of the orders they wanted to create.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) created: BTreeSet<String>,
    /// Nothing was done.
    pub(super) refused: BTreeSet<String>,
    /// No answer, or one that leaves it open.
    pub(super) unknown: BTreeSet<String>,
}

impl Told {
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

    /// Holds it against the orders that are there.
    #[track_caller]
    pub(super) fn check(&self, there: &[String]) {
        let set: BTreeSet<String> = there.iter().cloned().collect();
        assert_eq!(set.len(), there.len(), "an order is there twice");
        let lost: Vec<_> = self.created.difference(&set).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let done: Vec<_> = self.refused.intersection(&set).collect();
        assert!(done.is_empty(), "refused and yet done: {done:?}");
        let known = |id: &&String| self.created.contains(*id) || self.unknown.contains(*id);
        let strange: Vec<_> = set.iter().filter(|id| !known(id)).collect();
        assert!(strange.is_empty(), "nobody asked for: {strange:?}");
    }
}

/// Clients that create orders until they are told to end, or the API is gone.
pub(super) struct Load {
    end: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Told>>,
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

    pub(super) async fn end(self) -> Told {
        self.end.store(true, Ordering::Relaxed);
        let mut told = Told::default();
        for client in self.clients {
            told.add(client.await.unwrap());
        }
        told
    }
}

async fn create_until(end: &AtomicBool, url: &str, name: &str, pause: Duration) -> Told {
    let client = Client::new();
    let mut told = Told::default();
    for n in 0.. {
        if end.load(Ordering::Relaxed) {
            break;
        }
        let id = format!("{name}-{n}");
        match try_create(&client, url, &id).await {
            Some(answer) => told.note(id, &answer),
            None => {
                told.unknown.insert(id);
                break;
            }
        }
        tokio::time::sleep(pause).await;
    }
    told
}

/// `POST /order`, by a client that knows that the answer may not come.
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

/// Checks that an answer says that nothing was done now, and when to try again.
#[track_caller]
pub(super) fn assert_refused(answer: &Answer) {
    assert_problem(answer, 503);
    assert!(answer.body.contains("nothing was done"), "{answer:?}");
    let retry_after = answer.header("retry-after").parse::<u64>();
    assert!(retry_after.is_ok_and(|seconds| seconds >= 1), "{answer:?}");
}

/// The last part of a problem's type.
pub(super) fn kind(answer: &Answer) -> String {
    let kind = answer.json()["type"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    kind.rsplit('#').next().unwrap_or_default().to_owned()
}

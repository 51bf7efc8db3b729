//! An HTTP client of the API.

use serde_json::Value;

use super::{PATIENCE, until};

/// A response, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap_or("(not text)"))
    }
}

/// Checks that a response is a problem with this status.
#[track_caller]
pub fn assert_problem(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_eq!(answer.header("cache-control"), "no-store");
    let problem = answer.json();
    assert_eq!(problem["status"], status, "{answer:?}");
    for member in ["type", "title", "detail"] {
        let text = problem[member].as_str().unwrap_or_default();
        assert!(!text.is_empty(), "{member}: {answer:?}");
    }
    let kind = problem["type"].as_str().unwrap_or_default();
    assert!(kind.starts_with("/problems#"), "{answer:?}");
    for internal in ["sqlite", "orders.db", "src/", "panicked", "Error("] {
        assert!(!answer.body.contains(internal), "{answer:?}");
    }
}

/// An HTTP client with persistent connections that follows no redirects.
#[derive(Clone)]
pub struct Client(reqwest::Client);

impl Client {
    pub fn new() -> Self {
        // Fails only if a provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .build();
        Self(client.expect("a client can be made"))
    }

    pub async fn get(&self, url: impl AsRef<str>) -> Answer {
        self.send(self.0.get(url.as_ref())).await
    }

    /// Sends `POST /order` with this id.
    pub async fn create(&self, api: &str, id: &str) -> Answer {
        let body = serde_json::json!({ "id": id }).to_string();
        let request = self
            .0
            .post(format!("{api}/order"))
            .header("content-type", "application/json")
            .body(body);
        self.send(request).await
    }

    pub fn request(&self, method: &str, url: impl AsRef<str>) -> reqwest::RequestBuilder {
        let method = method.parse().expect("a method");
        self.0.request(method, url.as_ref())
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.expect("the request is answered");
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.text().await.expect("the response is complete"),
        }
    }

    /// Returns all orders, in the order of creation.
    pub async fn orders(&self, api: &str) -> Vec<Value> {
        let answer = self.get(format!("{api}/order")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let Value::Array(orders) = answer.json() else {
            panic!("not an array: {answer:?}");
        };
        orders
    }

    /// Returns all ids, in the order of creation.
    pub async fn ids(&self, api: &str) -> Vec<String> {
        let id = |order: &Value| order["id"].as_str().expect("an id is a text").to_owned();
        self.orders(api).await.iter().map(id).collect()
    }

    /// Returns all orders once `done` returns true for them.
    pub async fn orders_when(&self, api: &str, done: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        until(async || self.orders(api).await, |orders| done(orders)).await
    }

    /// Returns all orders once there are `count` of them and each is settled.
    pub async fn settled(&self, api: &str, count: usize) -> Vec<Value> {
        self.orders_when(api, |orders| {
            orders.len() == count && orders.iter().all(is_settled)
        })
        .await
    }
}

pub fn is_settled(order: &Value) -> bool {
    matches!(order["status"].as_str(), Some("FULFILLED" | "FAILED"))
}

//! Compares `/openapi.json` with the routes: every response matches its description, and every route is
//! described.

use std::collections::BTreeSet;
use std::fs;

use order_service::api;
use serde_json::Value;

use crate::environment::{Answer, Client, TestEnvironment, with_api};

/// The served document.
struct Document(Value);

impl Document {
    async fn of(client: &Client, api: &str) -> Self {
        let answer = client.get(format!("{api}/openapi.json")).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "application/json");
        Self(answer.json())
    }

    /// Resolves a reference.
    fn resolve<'a>(&'a self, part: &'a Value) -> &'a Value {
        match part["$ref"].as_str() {
            None => part,
            Some(reference) => {
                let path = reference.strip_prefix('#').unwrap();
                let target = self.0.pointer(path);
                self.resolve(target.unwrap_or_else(|| panic!("{reference} does not resolve")))
            }
        }
    }

    /// Returns every path with every method, in upper case.
    fn operations(&self) -> Vec<(String, String, &Value)> {
        let mut operations = Vec::new();
        for (path, item) in self.0["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                if method != "parameters" {
                    operations.push((path.clone(), method.to_uppercase(), operation));
                }
            }
        }
        operations
    }

    /// Checks a response against the document's description of this path and method.
    fn check(&self, path: &str, method: &str, answer: &Answer) {
        let status = answer.status.to_string();
        let what = format!("{method} {path} {status}");
        let component = match answer.status {
            405 => "MethodNotAllowed",
            404 if self.0["paths"][path].is_null() => "NotFound",
            421 => "WrongHost",
            _ => "",
        };
        let operation = &self.0["paths"][path][method.to_lowercase()];
        let response = if component.is_empty() {
            &operation["responses"][status.as_str()]
        } else {
            &self.0["components"]["responses"][component]
        };
        assert!(response.is_object(), "{what} is not in the document");
        let response = self.resolve(response);
        if answer.header("cache-control") == "no-store" {
            let described = &response["headers"]["Cache-Control"];
            assert!(described.is_object(), "{what} without Cache-Control");
        }
        for (name, header) in response["headers"].as_object().into_iter().flatten() {
            let header = self.resolve(header);
            if header["required"] == true {
                assert_ne!(answer.header(name), "", "{what} without {name}");
            }
            if let Some(constant) = header["schema"]["const"].as_str() {
                assert_eq!(answer.header(name), constant, "{what}: {name}");
            }
        }
        let found = answer.header("content-type");
        let (found, _) = found.split_once(';').unwrap_or((found, ""));
        let media = &response["content"][found];
        assert!(media.is_object(), "{what}: {found} is not in the document");
        if found.ends_with("json") && !found.contains("ndjson") && !media["schema"].is_null() {
            self.check_value(&what, &media["schema"], &answer.json());
        }
    }

    /// Checks a value against a schema: the part of JSON Schema that the document uses for responses.
    fn check_value(&self, what: &str, schema: &Value, value: &Value) {
        let schema = self.resolve(schema);
        if let Some(choices) = schema["oneOf"].as_array() {
            let is_null = |schema: &&Value| schema["type"] == "null";
            match choices
                .iter()
                .find(|schema| is_null(schema) == value.is_null())
            {
                Some(choice) => return self.check_value(what, choice, value),
                None => panic!("{what}: {value} is none of {choices:?}"),
            }
        }
        let is_right = match schema["type"].as_str().unwrap_or_default() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "integer" => value.is_i64(),
            "number" => value.is_number(),
            "null" => value.is_null(),
            other => panic!("{what}: the type {other:?} is not known to this test"),
        };
        assert!(is_right, "{what}: {value} is not {schema}");
        if let Some(words) = schema["enum"].as_array() {
            assert!(words.contains(value), "{what}: {value} is not in {words:?}");
        }
        for item in value.as_array().into_iter().flatten() {
            self.check_value(what, &schema["items"], item);
        }
        for (name, member) in value.as_object().into_iter().flatten() {
            let of = &schema["properties"][name];
            assert!(of.is_object(), "{what}: the member {name} is not in it");
            self.check_value(&format!("{what} {name}"), of, member);
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            let member = &value[name.as_str().unwrap()];
            let is_there = value
                .as_object()
                .unwrap()
                .contains_key(name.as_str().unwrap());
            assert!(is_there, "{what}: {name} is missing: {member}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_has_every_route_and_no_other() {
    let env = TestEnvironment::new();
    let program = env.api(&[]);
    let client = Client::new();
    let document = Document::of(&client, &program.url).await;
    let paths: Vec<_> = document.0["paths"].as_object().unwrap().keys().collect();
    let described: BTreeSet<_> = paths.iter().map(|path| path.to_string()).collect();
    // The files of the pages are internal.
    let of_pages = ["/dashboard/{file}", "/docs/docs.js", "/docs/style.css"];
    let routes = api::paths().filter(|path| !of_pages.contains(path));
    assert_eq!(described, routes.map(str::to_owned).collect());
    for path in paths {
        let url = format!("{}{}", program.url, path.replace("{id}", "a1"));
        // The methods in `Allow` are those of the document.
        let mut allowed: BTreeSet<String> = BTreeSet::new();
        for (other, method, _) in document.operations() {
            if &other == path {
                allowed.insert(method);
            }
        }
        let refused = client.send(client.request("DELETE", &url)).await;
        assert_eq!(refused.status, 405, "{path}");
        document.check(path, "DELETE", &refused);
        let allow = refused.header("allow").split(", ");
        let allow: BTreeSet<_> = allow.map(str::to_owned).collect();
        assert_eq!(allow, allowed, "{path}");
    }
    let foreign = client.request("GET", format!("{}/livez", program.url));
    let foreign = client.send(foreign.header("host", "a.example")).await;
    document.check("/livez", "GET", &foreign);
    let nowhere = client.get(format!("{}/nowhere", program.url)).await;
    document.check("/nowhere", "GET", &nowhere);
}

/// A request: method, path in the document, query, headers, body.
type Request<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)], &'a str);

#[tokio::test(flavor = "multi_thread")]
async fn every_response_matches_the_document() {
    let (env, api, client) = with_api();
    let document = Document::of(&client, &api.url).await;
    let mut answered = BTreeSet::new();
    let json = [("content-type", "application/json")];
    let large = format!("{{\"id\":\"{}\"}}", "a".repeat(20_000));
    let requests: &[Request<'_>] = &[
        ("POST", "/order", "", &json, r#"{"id":"a1"}"#),
        ("POST", "/order", "", &json, r#"{"id":"a1"}"#),
        ("POST", "/order", "", &json, r#"{"id":7}"#),
        ("POST", "/order", "?x=1", &json, r#"{"id":"a2"}"#),
        ("POST", "/order", "", &json, &large),
        (
            "POST",
            "/order",
            "",
            &[("content-type", "text/plain")],
            "a1",
        ),
        ("POST", "/order", "", &[("content-encoding", "gzip")], "{}"),
        (
            "POST",
            "/order",
            "",
            &[("sec-fetch-site", "cross-site")],
            "{}",
        ),
        ("GET", "/order", "", &[], ""),
        (
            "GET",
            "/order",
            "?limit=1&status=CREATED&attention=false",
            &[],
            "",
        ),
        (
            "GET",
            "/order",
            "",
            &[("accept", "application/x-ndjson")],
            "",
        ),
        ("GET", "/order", "?limit=0", &[], ""),
        ("GET", "/order/{id}", "", &[], ""),
        ("GET", "/order/{id}", "?x", &[], ""),
        ("GET", "/order/{id}/explain", "", &[], ""),
        ("GET", "/order/{id}/explain", "?x", &[], ""),
        ("GET", "/event", "?limit=1&order_id=a1", &[], ""),
        ("GET", "/event", "?x=1", &[], ""),
        ("GET", "/stats", "", &[], ""),
        ("GET", "/stats", "?x=1", &[], ""),
        ("GET", "/metrics", "", &[], ""),
        ("GET", "/metrics", "?x=1", &[], ""),
        ("GET", "/livez", "", &[], ""),
        ("GET", "/readyz", "", &[], ""),
        ("GET", "/healthz", "", &[], ""),
        ("GET", "/", "", &[], ""),
        ("GET", "/docs", "", &[], ""),
        ("GET", "/docs/metrics", "", &[], ""),
        ("GET", "/problems", "", &[], ""),
        ("GET", "/openapi.json", "", &[], ""),
    ];
    for (method, path, query, headers, body) in requests {
        let url = format!("{}{}{query}", api.url, path.replace("{id}", "a1"));
        let mut request = client.request(method, url).body((*body).to_owned());
        for (name, value) in *headers {
            request = request.header(*name, *value);
        }
        let answer = client.send(request).await;
        document.check(path, method, &answer);
        answered.insert((path.to_string(), method.to_string(), answer.status));
    }
    for path in ["/order/{id}", "/order/{id}/explain"] {
        for segment in ["none", "%zz"] {
            // The client would normalise the path.
            let request = format!("GET {} HTTP/1.1", path.replace("{id}", segment));
            let answer = crate::wire::plain(&api, &request, b"");
            let status = crate::wire::statuses(&answer)[0];
            let operation = &document.0["paths"][path]["get"];
            assert!(
                operation["responses"][status.to_string()].is_object(),
                "{answer}"
            );
            answered.insert((path.to_owned(), "GET".to_owned(), status));
        }
    }
    // While nothing can be written or read.
    fs::rename(env.database(), env.path("away.db")).unwrap();
    let request = client.request("POST", format!("{}/order", api.url));
    let answer = client.send(request.body(r#"{"id":"a3"}"#)).await;
    assert_eq!(answer.status, 503);
    document.check("/order", "POST", &answer);
    answered.insert(("/order".to_owned(), "POST".to_owned(), 503));
    // Every described response was checked, except those whose conditions other tests create.
    for (path, method, operation) in document.operations() {
        if method == "HEAD" {
            continue;
        }
        for status in operation["responses"].as_object().unwrap().keys() {
            let status: u16 = status.parse().unwrap();
            let key = (path.clone(), method.clone(), status);
            let is_elsewhere = matches!(status, 408 | 410 | 501 | 503);
            assert!(
                answered.contains(&key) || is_elsewhere,
                "{key:?} was not checked"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_is_complete_and_its_examples_match_its_schemas() {
    let (_env, api, client) = with_api();
    let document = Document::of(&client, &api.url).await;
    let problems = client.get(format!("{}/problems", api.url)).await.body;
    assert_eq!(document.0["openapi"], "3.1.0");
    assert_eq!(document.0["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut ids = BTreeSet::new();
    for (path, method, operation) in document.operations() {
        let what = format!("{method} {path}");
        let id = operation["operationId"].as_str().expect(&what);
        assert!(ids.insert(id), "{what}: {id} twice");
        assert!(operation["summary"].is_string(), "{what}");
        let tags = document.0["tags"].as_array().unwrap();
        let tag = &operation["tags"][0];
        assert!(
            tags.iter().any(|known| &known["name"] == tag),
            "{what}: {tag}"
        );
        let shared = &document.0["paths"][&path]["parameters"];
        let own = &operation["parameters"];
        for parameter in [shared, own]
            .iter()
            .flat_map(|list| list.as_array())
            .flatten()
        {
            let parameter = document.resolve(parameter);
            for member in ["name", "in", "description"] {
                assert!(parameter[member].is_string(), "{what}: {parameter}");
            }
            document.resolve(&parameter["schema"]);
        }
        let body = &operation["requestBody"]["content"]["application/json"];
        if body.is_object() {
            document.check_value(&what, &body["schema"], &body["example"]);
        }
        for (status, response) in operation["responses"].as_object().unwrap() {
            let response = document.resolve(response);
            assert!(response["description"].is_string(), "{what} {status}");
            let what = format!("{what} {status}");
            check_examples(&document, &problems, &what, response);
        }
    }
    for (name, response) in document.0["components"]["responses"].as_object().unwrap() {
        check_examples(&document, &problems, name, response);
    }
}

fn check_examples(document: &Document, problems: &str, what: &str, response: &Value) {
    for media in response["content"].as_object().into_iter().flatten() {
        let (_, media) = media;
        if media["schema"].is_null() {
            continue;
        }
        let named = media["examples"].as_object().into_iter().flatten();
        let named = named.map(|(name, example)| {
            let kind = format!("/problems#{name}");
            assert_eq!(example["value"]["type"], kind, "{what}");
            let title = example["value"]["title"].as_str().unwrap();
            assert!(problems.contains(&format!("<h2>{title}</h2>")), "{title}");
            &example["value"]
        });
        let alone = (!media["example"].is_null()).then_some(&media["example"]);
        let examples: Vec<_> = named.chain(alone).collect();
        assert!(!examples.is_empty(), "{what} has no example");
        for example in examples {
            document.check_value(what, &media["schema"], example);
        }
    }
}

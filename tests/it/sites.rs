//! Requests of other sites' pages, and served host names: of the API, of the simulator in `dev`, and of a
//! simulator's control address.

use serde_json::json;

use crate::environment::{Answer, Client, Program, TestEnvironment, assert_problem, with_api};
use crate::wire::{Wire, statuses};

/// Sends `POST` with these headers and the body of an order.
async fn post(client: &Client, url: &str, id: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = client
        .request("POST", url)
        .body(json!({ "id": id }).to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.send(request).await
}

async fn get(client: &Client, url: String, host: &str) -> Answer {
    client
        .send(client.request("GET", url).header("host", host))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_site_can_change_nothing() {
    let (_env, api, client) = with_api();
    let url = format!("{}/order", api.url);
    let fetch = |value| ("sec-fetch-site", value);
    let own = format!("http://{}", api.address());
    for headers in [
        &[fetch("cross-site")][..],
        &[fetch("Cross-Site")],
        &[fetch("same-site")],
        &[fetch("cross-site"), ("origin", &own)],
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
    ] {
        let refused = post(&client, &url, "a1", headers).await;
        assert_problem(&refused, 403);
        let detail = refused.json()["detail"].to_string();
        assert!(detail.contains(headers[0].1), "{detail}");
    }
    let read = client
        .request("GET", &url)
        .header("sec-fetch-site", "cross-site");
    let read = client.send(read).await;
    assert_eq!((read.status, &*read.body), (200, "[]\n"));
    for (id, header) in [
        ("a1", fetch("same-origin")),
        ("a2", fetch("none")),
        ("a3", ("origin", &own)),
    ] {
        let created = post(&client, &url, id, &[header]).await;
        assert_eq!(created.status, 201, "{header:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_loopback_only_addresses_and_known_names_are_served() {
    let (_env, api, client) = with_api();
    for path in ["/", "/order", "/livez", "/metrics", "/none"] {
        let refused = get(
            &client,
            format!("{}{path}", api.url),
            "rebound.example:8080",
        )
        .await;
        assert_problem(&refused, 421);
        let detail = refused.json()["detail"].to_string();
        assert!(detail.contains("rebound.example:8080"), "{detail}");
        assert!(detail.contains("--allowed-host"), "{detail}");
    }
    let url = format!("{}/order", api.url);
    let refused = post(&client, &url, "a1", &[("host", "rebound.example")]).await;
    assert_problem(&refused, 421);
    for host in ["localhost", "127.0.0.1", "[::1]:8080"] {
        let read = get(&client, url.clone(), host).await;
        assert_eq!((read.status, &*read.body), (200, "[]\n"), "{host}");
    }
    // HTTP/1.0 needs no `Host`.
    let mut wire = Wire::open(&api);
    wire.send("GET /livez HTTP/1.0\r\n\r\n");
    assert_eq!(statuses(&wire.rest()), [200]);
}

/// Starts the API on every address. Returns it with its URL on loopback.
fn everywhere(env: &TestEnvironment, variables: &[(&str, &str)]) -> (Program, String) {
    let database = env.database_url();
    let arguments = ["api", "--listen", "0.0.0.0:0", "--database-url", &database];
    let api = env.start_with("order-service", &arguments, variables, true);
    let port = api.address().rsplit_once(':').unwrap().1;
    let url = format!("http://127.0.0.1:{port}");
    (api, url)
}

#[tokio::test(flavor = "multi_thread")]
async fn allowed_names_are_served_and_their_pages_may_create_orders() {
    let env = TestEnvironment::new();
    let client = Client::new();
    let by_flag = env.api(&[
        "--allowed-host",
        "Orders.example",
        "--allowed-host",
        "b.example",
    ]);
    let variables = [("ALLOWED_HOSTS", "orders.example, b.example")];
    let (_by_variable, url) = everywhere(&env, &variables);
    for (n, url) in [by_flag.url.clone(), url].iter().enumerate() {
        let live = |host| get(&client, format!("{url}/livez"), host);
        assert_eq!(live("orders.example").await.status, 200);
        assert_eq!(live("B.example:8443").await.status, 200);
        assert_problem(&live("c.example").await, 421);
        let host = ("host", "orders.example");
        let created = |id: usize, origin| {
            let headers = [host, ("origin", origin)];
            let (client, url) = (&client, format!("{url}/order"));
            async move { post(client, &url, &id.to_string(), &headers).await.status }
        };
        assert_eq!(created(10 + n, "https://orders.example").await, 201);
        // A page of one allowed host, and the API at the other.
        assert_eq!(created(20 + n, "https://b.example").await, 201);
        assert_eq!(created(30 + n, "https://c.example").await, 403);
    }
    let wrong = env.run(
        "order-service",
        &["api", "--allowed-host", "http://b.example"],
    );
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.stderr.contains("orders.example"), "{}", wrong.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_another_address_any_name_is_served() {
    let env = TestEnvironment::new();
    let (_api, url) = everywhere(&env, &[]);
    let live = get(&Client::new(), format!("{url}/livez"), "orders.example").await;
    assert_eq!(live.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_serves_known_names_only_wherever_it_listens() {
    let env = TestEnvironment::new();
    let client = Client::new();
    for flags in [&[][..], &["--allowed-host", "orders.example"]] {
        let arguments = [&["dev", "--listen", "0.0.0.0:0"], flags].concat();
        let mut dev = env.start_with("order-service", &arguments, &[], false);
        let banner = dev.stdout_until("Ctrl-C");
        let mut names = banner.lines().map(str::trim);
        let url = names.find_map(|line| line.strip_prefix("API")).unwrap();
        let url = url.trim();
        for path in ["/order", "/dev/simulator"] {
            for host in ["localhost", "192.0.2.7:8080"] {
                let read = get(&client, format!("{url}{path}"), host).await;
                assert_eq!(read.status, 200, "{host}");
            }
            let refused = get(&client, format!("{url}{path}"), "rebound.example").await;
            assert_problem(&refused, 421);
        }
        let rebound = [
            ("host", "rebound.example"),
            ("sec-fetch-site", "same-origin"),
        ];
        let refused = post(
            &client,
            &format!("{url}/dev/simulator/down"),
            "a1",
            &rebound,
        )
        .await;
        assert_problem(&refused, 421);
        let allowed = get(&client, format!("{url}/order"), "orders.example").await;
        let status = if flags.is_empty() { 421 } else { 200 };
        assert_eq!(allowed.status, status, "{flags:?}");
        assert_eq!(dev.stop(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_breaks_no_simulator() {
    let env = TestEnvironment::new();
    let mut simulator = env.simulator(&["--control", "127.0.0.1:0"]);
    let printed = simulator.stdout_until("control on ");
    let control = printed.trim().strip_prefix("control on ").unwrap();
    let client = Client::new();
    let crash = format!("{control}/crash");
    let refused = post(&client, &crash, "a1", &[("origin", "https://evil.example")]).await;
    assert_eq!(refused.status, 403, "{refused:?}");
    let refused = post(&client, &crash, "a1", &[("host", "rebound.example")]).await;
    assert_eq!(refused.status, 421, "{refused:?}");
    let faults = get(&client, format!("{control}/faults"), "rebound.example").await;
    assert_eq!(faults.status, 421, "{faults:?}");
    let change = client
        .request("PUT", format!("{control}/faults"))
        .body("{}");
    let change = change.header("sec-fetch-site", "cross-site");
    assert_eq!(client.send(change).await.status, 403);
    assert_eq!(is_alive(&client, &simulator).await, 200);
    let read = get(&client, format!("{control}/faults"), "localhost").await;
    assert_eq!(read.status, 200, "{read:?}");
    let crashed = client.send(client.request("POST", crash)).await;
    assert_eq!(crashed.status, 200, "{crashed:?}");
}

async fn is_alive(client: &Client, simulator: &Program) -> u16 {
    client
        .get(format!("{}/order_process", simulator.url))
        .await
        .status
}

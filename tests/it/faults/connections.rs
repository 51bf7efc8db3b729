//! More connections than a server can serve at once.

use std::net::TcpStream;

use super::FILES;
use crate::environment::{Client, Program, TestEnvironment, file_limit, until};
use crate::wire::{Wire, statuses};

/// Sends a request on a new connection until it is answered: beyond the overflow limit, connections
/// are closed without a response.
async fn ask(api: &Program, request: &str) -> String {
    let answer = async || {
        let mut wire = Wire::open(api);
        wire.send(request);
        tokio::task::block_in_place(|| wire.rest())
    };
    until(answer, |answer| !answer.is_empty()).await
}

/// Opens connections that send nothing, including refused ones.
fn crowd(api: &Program, count: usize) -> Vec<TcpStream> {
    let connect = |_| TcpStream::connect(api.address()).unwrap();
    tokio::task::block_in_place(|| (0..count).map(connect).collect())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn thousands_of_silent_connections_delay_neither_requests_nor_the_shutdown() {
    let files = file_limit(FILES);
    assert!(files >= FILES / 2, "only {files} files may be open at once");
    let env = TestEnvironment::new();
    let api = env.api(&[]);
    let get =
        |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let silent = crowd(&api, 3_000);
    for n in 0..5 {
        let body = format!("{{\"id\":\"a{n}\"}}");
        let length = body.len();
        let post = "POST /order HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
        let created = ask(
            &api,
            &format!("{post}Content-Length: {length}\r\n\r\n{body}"),
        )
        .await;
        assert_eq!(statuses(&created), [201], "{created}");
        for path in ["/livez", "/readyz", "/healthz", "/order", "/order/a0"] {
            let answer = ask(&api, &get(path)).await;
            assert_eq!(statuses(&answer), [200], "{path}: {answer}");
        }
    }
    env.run("order-service", &["health", "--listen", api.address()])
        .assert_code(0);
    assert_eq!(
        Client::new().ids(&api.url).await,
        ["a0", "a1", "a2", "a3", "a4"]
    );
    drop(silent);
    let silent = crowd(&api, 3_000);
    let mut api = api;
    api.signal("TERM");
    assert_eq!(api.wait().code(), Some(0), "{}", api.logged());
    let log = api.logged();
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
    drop(silent);
}

/// Limits of connections with the smallest supported limit of open files.
const FEW_FILES: u32 = 300;
const PLACES: usize = 64;
const LONG_PLACES: usize = 48;

const LIVE: &str = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_that_has_been_idle_longest_gives_way() {
    let env = TestEnvironment::new();
    let api = env.api_with_files(FEW_FILES);
    api.logs("limit of open files is low limit=300");
    api.logs(&format!("connections={PLACES} "));
    let is_live = |wire: &mut Wire| {
        wire.send(LIVE);
        wire.read_until("}\n").starts_with("HTTP/1.1 200")
    };
    let mut unused = Wire::open(&api);
    let mut kept = Wire::open(&api);
    let mut silent = Vec::new();
    for _ in 0..5 {
        // Fewer than the limit, all of them accepted before it is used again.
        silent.extend(crowd(&api, PLACES / 2));
        assert!(is_live(&mut Wire::open(&api)));
        assert!(is_live(&mut kept));
    }
    assert_eq!(unused.rest(), "", "closed without a response");
    silent.extend(crowd(&api, 2 * PLACES));
    assert_eq!(kept.rest(), "");
    // The next connection is served too.
    let mut last = Wire::open(&api);
    assert!(is_live(&mut last));
    assert_eq!(Client::new().create(&api.url, "a1").await.status, 201);
    drop(silent);
    assert_eq!(api.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_request_is_in_flight_on_each_connection_others_get_503() {
    let env = TestEnvironment::new();
    let api = env.api_with_files(FEW_FILES);
    assert_eq!(Client::new().create(&api.url, "a1").await.status, 201);
    let post = "POST /order HTTP/1.1\r\nHost: localhost\r\n";
    let mut busy = Vec::new();
    for n in 0..PLACES {
        let mut wire = Wire::open(&api);
        if n < LONG_PLACES {
            wire.send("GET /order/a1 HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=30\r\n\r\n");
        } else {
            wire.send(format!(
                "{post}Expect: 100-continue\r\nContent-Length: 12\r\n\r\n"
            ));
            wire.read_until("100 Continue\r\n\r\n");
        }
        busy.push(wire);
    }
    let request = |line: &str| format!("{line}\r\nHost: localhost\r\nConnection: close\r\n");
    for _ in 0..20 {
        for path in ["/livez", "/readyz", "/healthz", "/metrics"] {
            let get = format!("{}\r\n", request(&format!("GET {path} HTTP/1.1")));
            let answer = ask(&api, &get).await;
            assert_eq!(statuses(&answer), [200], "{path}: {answer}");
        }
        let create = request("POST /order HTTP/1.1");
        for request in [
            format!("{create}Content-Length: 12\r\n\r\n{{\"id\":\"bad\"}}"),
            format!("{}\r\n", request("GET /order HTTP/1.1")),
            format!("{}\r\n", request("GET /order/a1 HTTP/1.1")),
        ] {
            let answer = ask(&api, &request).await;
            assert_eq!(statuses(&answer), [503], "{answer}");
            assert!(answer.contains("too-many-connections"), "{answer}");
            assert!(answer.contains("retry-after: "), "{answer}");
            assert!(answer.contains("nothing was done"), "{answer}");
        }
    }
    // A completed request frees its slot, whether or not its connection is kept alive.
    let mut done = busy.pop().unwrap();
    done.send("{\"id\":\"two\"}");
    assert!(done.read_until("}\n").contains("201 Created"));
    assert_eq!(Client::new().create(&api.url, "a3").await.status, 201);
    assert_eq!(done.rest(), "", "closed because it was idle");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_leave_files_to_requests_in_flight() {
    let env = TestEnvironment::new();
    let reconcile = ["--order-process-url", "http://127.0.0.1:9"];
    let reconcile = [&reconcile[..], &["--max-in-flight", "300"]].concat();
    let arguments = [&["serve", "--listen", "127.0.0.1:0"], &reconcile[..]].concat();
    let service = env.start_after("ulimit -n 1000", "order-service", &arguments);
    let metrics = Client::new().get(format!("{}/metrics", service.url)).await;
    // Besides 256 other files and two for each request in flight, 144 are left.
    let max = "order_service_http_connections_max{place=\"served\"} 128.0\n";
    assert!(metrics.body.contains(max), "{metrics:?}");
    drop(service);
    // Without connections of its own, the reconciler raises the limit as far as it needs.
    let reconciler = env.start_after("ulimit -S -n 64", "order-reconciler", &reconcile);
    reconciler.logs("became leader");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", reconciler.id())).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let soft = files.and_then(|line| line.split_whitespace().nth(3));
    assert_eq!(soft, Some("856"), "{limits}");
}

//! Orders with attention: every reason, in the API, its filter and `explain`. The conditions of each
//! reason are tested in `pass` and `upstreams`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use order_service::clock::{Clock, SystemClock};
use order_service::decide::LostProcess;
use order_service::order::{OrderId, Outcome, Reason, Rfc3339, Status, Timestamp};
use order_service::pace::StartRate;
use order_service::pace::UpstreamState;
use order_service::store::{AttentionUpdate, Filter, Store, Transition};
use serde_json::{Value, json};

use crate::environment::{
    Client, TestEnvironment, assert_problem, create, orders, ready, record, with_api,
    write_heartbeat,
};

/// Start of all attention in these tests.
const SINCE: Timestamp = Timestamp(1_700_000_000_000);

/// Creates an order and records these transitions.
async fn order(store: &Store, id: &str, steps: Vec<Transition>) {
    let seq = create(store, id, Timestamp(SINCE.0 - 1_000)).await;
    let changes = steps.into_iter().map(|step| (seq, step));
    record(store, changes, SINCE).await;
}

fn flagged(reason: Reason) -> Transition {
    Transition::Flagged(update(reason))
}

fn delayed() -> Transition {
    Transition::Delayed(update(Reason::UpstreamUnreachable))
}

fn update(reason: Reason) -> AttentionUpdate {
    AttentionUpdate {
        reason,
        detail: format!("seen: {}", reason.as_str()),
        next_attempt_at: Timestamp(SINCE.0 + 5_000),
    }
}

/// Creates orders in every status, without attention and with each reason that the status allows.
async fn one_of_each(store: &Store) {
    use Reason::{MaxStarts, ProcessLost, StartRefused, UnknownStatus, UpstreamUnreachable};
    order(store, "c", vec![]).await;
    order(store, "p", vec![Transition::Adopted]).await;
    for (id, outcome) in [("f", Outcome::Succeeded), ("x", Outcome::Failed)] {
        order(
            store,
            id,
            vec![Transition::Adopted, Transition::Settled(outcome)],
        )
        .await;
    }
    for reason in [StartRefused, UpstreamUnreachable, MaxStarts] {
        let id = format!("c {}", reason.as_str());
        order(store, &id, vec![flagged(reason)]).await;
    }
    for reason in [
        StartRefused,
        UpstreamUnreachable,
        UnknownStatus,
        ProcessLost,
        MaxStarts,
    ] {
        let id = format!("p {}", reason.as_str());
        order(store, &id, vec![Transition::Adopted, flagged(reason)]).await;
    }
}

async fn list(client: &Client, api: &str, query: &str) -> Vec<Value> {
    let answer = client.get(format!("{api}/order?{query}")).await;
    assert_eq!(answer.status, 200, "{query}: {answer:?}");
    answer.json().as_array().unwrap().clone()
}

/// Checks that the filter selects the orders whose own representation matches it.
async fn assert_filter_agrees(client: &Client, api: &str) -> usize {
    let (mut attended, mut others) = (BTreeSet::new(), BTreeSet::new());
    let (mut operator, mut itself) = (BTreeSet::new(), BTreeSet::new());
    for order in list(client, api, "").await {
        let id = order["id"].as_str().unwrap().to_owned();
        let path = id.replace(' ', "%20");
        let alone = client.get(format!("{api}/order/{path}")).await.json();
        assert_eq!(alone, order, "alone and in the list");
        match order["attention"]["by"].as_str() {
            None => others.insert(id),
            Some(by) => {
                attended.insert(id.clone());
                match by {
                    "operator" => operator.insert(id),
                    _ => itself.insert(id),
                }
            }
        };
    }
    for (value, expected) in [
        ("true", &attended),
        ("false", &others),
        ("operator", &operator),
        ("itself", &itself),
    ] {
        let mut found = BTreeSet::new();
        for status in ["CREATED", "PROCESSING", "FULFILLED", "FAILED"] {
            let query = format!("attention={value}&status={status}");
            for order in list(client, api, &query).await {
                assert_eq!(order["status"], status);
                found.insert(order["id"].as_str().unwrap().to_owned());
            }
        }
        assert_eq!(&found, expected, "attention={value}, by status");
        let mut all = list(client, api, &format!("attention={value}")).await;
        let page = list(client, api, &format!("attention={value}&limit=1000")).await;
        assert_eq!(all, page);
        let all: BTreeSet<_> = all
            .drain(..)
            .map(|order| order["id"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(&all, expected, "attention={value}");
    }
    attended.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reason_is_shown_and_the_filter_selects_the_orders_with_one() {
    let env = TestEnvironment::new();
    let store = env.store();
    one_of_each(&store).await;
    let api = env.api(&[]);
    let client = Client::new();
    for reason in Reason::ALL {
        let path = format!("{}/order/p%20{}", api.url, reason.as_str());
        let order = client.get(path).await.json();
        let expected = json!({
            "reason": reason.as_str(),
            // No heartbeat has a policy: a held order was held under the policy `hold`.
            "by": match reason {
                Reason::MaxStarts | Reason::ProcessLost => "operator",
                _ => "itself",
            },
            "since": Rfc3339(SINCE),
            "detail": format!("seen: {}", reason.as_str()),
            "next_attempt_at": Rfc3339(Timestamp(SINCE.0 + 5_000)),
        });
        assert_eq!(order["attention"], expected);
        assert_eq!(
            order["status"], "PROCESSING",
            "attention never replaces a status"
        );
    }
    let held = client
        .get(format!("{}/order/c%20max_starts", api.url))
        .await;
    let next_attempt_at = &held.json()["attention"]["next_attempt_at"];
    assert_eq!(*next_attempt_at, Value::Null, "nothing happens to it");
    assert_eq!(assert_filter_agrees(&client, &api.url).await, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_upstream_is_down_every_open_order_has_attention_and_no_settled_one() {
    let env = TestEnvironment::new();
    let store = env.store();
    one_of_each(&store).await;
    let api = env.api(&[]);
    let client = Client::new();
    let mut heartbeat = ready(store.heartbeat()).unwrap();
    let down_since = SystemClock.now();
    heartbeat.upstream = UpstreamState::Down {
        since: down_since,
        detail: "no route".to_owned(),
    };
    heartbeat.next_pass_at = Some(Timestamp(down_since.0 + 1_000));
    write_heartbeat(&store, heartbeat.clone()).await;
    for id in ["c", "p"] {
        let order = client.get(format!("{}/order/{id}", api.url)).await.json();
        let expected = json!({
            "reason": "upstream_unreachable",
            "by": "itself",
            "since": Rfc3339(down_since),
            "detail": "no route",
            "next_attempt_at": Rfc3339(Timestamp(down_since.0 + 1_000)),
        });
        assert_eq!(order["attention"], expected);
    }
    // The order's own reason takes precedence over the outage.
    let path = format!("{}/order/p%20process_lost", api.url);
    let lost = client.get(path).await.json();
    assert_eq!(lost["attention"]["reason"], "process_lost");
    assert_eq!(assert_filter_agrees(&client, &api.url).await, 10);
    // The attention of an order that is younger than the outage begins with its creation.
    let young = client.create(&api.url, "young").await.json();
    let order = client.get(format!("{}/order/young", api.url)).await.json();
    assert_eq!(order["attention"]["since"], young["created_at"]);
    heartbeat.upstream = UpstreamState::Up { since: down_since };
    write_heartbeat(&store, heartbeat).await;
    assert_eq!(assert_filter_agrees(&client, &api.url).await, 8);
}

/// Returns the member `attention.by` of an order.
async fn by(client: &Client, api: &str, id: &str) -> String {
    let order = client.get(format!("{api}/order/{id}")).await.json();
    order["attention"]["by"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_needs_an_operator_only_if_it_does_not_proceed_by_itself() {
    let env = TestEnvironment::new();
    let store = env.store();
    let refusals = |count| vec![flagged(Reason::StartRefused); count];
    order(&store, "four", refusals(4)).await;
    order(&store, "five", refusals(5)).await;
    for (id, count) in [("odd-four", 4), ("odd-five", 5)] {
        let mut steps = vec![flagged(Reason::UnknownStatus); count];
        steps.insert(0, Transition::Adopted);
        order(&store, id, steps).await;
    }
    for (id, count) in [("silent-four", 4), ("silent-five", 5)] {
        order(&store, id, vec![delayed(); count]).await;
    }
    order(&store, "worn", vec![flagged(Reason::MaxStarts)]).await;
    let missed = || Transition::Missed { began_at: SINCE };
    order(&store, "missed", vec![Transition::Adopted, missed()]).await;
    let late = vec![Transition::Adopted, delayed(), missed()];
    order(&store, "missed-late", late).await;
    let held = vec![Transition::Adopted, flagged(Reason::ProcessLost)];
    order(&store, "held", held).await;
    let api = env.api(&[]);
    let client = Client::new();
    let stats = client.get(format!("{}/stats", api.url)).await.json();
    assert_eq!(stats["reconciler"]["policy"], Value::Null);
    let mut heartbeat = ready(store.heartbeat()).unwrap();
    for (policy, held) in [
        (LostProcess::Hold, "operator"),
        (LostProcess::Fail, "operator"),
        // It was held under another policy, and is started again now.
        (LostProcess::Restart, "itself"),
    ] {
        heartbeat.policy = Some(policy);
        write_heartbeat(&store, heartbeat.clone()).await;
        for (id, expected) in [
            ("four", "itself"),
            ("five", "operator"),
            ("odd-four", "itself"),
            ("odd-five", "operator"),
            ("silent-four", "itself"),
            ("silent-five", "operator"),
            ("worn", "operator"),
            ("missed", "itself"),
            ("missed-late", "itself"),
            ("held", held),
        ] {
            let found = by(&client, &api.url, id).await;
            assert_eq!(found, expected, "{id}, {policy:?}");
        }
        assert_eq!(assert_filter_agrees(&client, &api.url).await, 10);
        let stats = client.get(format!("{}/stats", api.url)).await.json();
        assert_eq!(stats["reconciler"]["policy"], policy.as_str());
        let operator = 4 + u64::from(held == "operator");
        let expected = json!({"operator": operator, "itself": 10 - operator});
        assert_eq!(stats["attention_by"], expected);
        let metrics = client.get(format!("{}/metrics", api.url)).await.body;
        let sample = format!(
            "orders_needing_attention{{reason=\"process_lost\",by=\"operator\"}} {}.0\n",
            u64::from(held == "operator")
        );
        assert!(metrics.contains(&sample), "{sample}");
    }
    // Once an operator has decided, the order proceeds by itself.
    heartbeat.policy = Some(LostProcess::Hold);
    write_heartbeat(&store, heartbeat).await;
    env.run("order-service", &["restart", "held", "worn", "five"])
        .assert_code(0);
    for id in ["held", "worn", "five"] {
        assert_eq!(by(&client, &api.url, id).await, "itself", "{id}");
    }
    // A restart that is refused as often needs an operator again.
    let five = refusals(5).into_iter().map(|step| (2, step));
    record(&store, five, SINCE).await;
    assert_eq!(by(&client, &api.url, "five").await, "operator");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconciler_reports_its_policy_and_its_end() {
    let (env, api, client) = with_api();
    let reconciler = async || {
        let stats = client.get(format!("{}/stats", api.url)).await.json();
        stats["reconciler"].clone()
    };
    let state = reconciler().await;
    assert_eq!(
        state["detail"],
        "no reconciler has led on this database yet"
    );
    // With one order, so that a request to the upstream is due.
    client.create(&api.url, "a1").await;
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let once = [
        "--once",
        "--lost-process",
        "hold",
        "--order-process-url",
        &simulator.url,
    ];
    let before = SystemClock.now();
    env.run("order-reconciler", &once).assert_code(0);
    let state = reconciler().await;
    assert_eq!(state["policy"], "hold");
    assert_eq!(state["status"], "none");
    assert_eq!(
        state["detail"],
        "no reconciler runs: the last one has shut down"
    );
    let since = state["since"].as_str().unwrap();
    assert!(since > &*Rfc3339(before).to_string(), "{state}");
    assert!(since < &*Rfc3339(SystemClock.now()).to_string(), "{state}");
    let explained = client
        .get(format!("{}/order/a1/explain", api.url))
        .await
        .json();
    let next = explained["next"][0].as_str().unwrap();
    assert!(next.contains("the last one has shut down"), "{explained}");
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_describes_every_order_and_helps_to_find_a_missing_one() {
    let env = TestEnvironment::new();
    let store = env.store();
    one_of_each(&store).await;
    let explain = |id: &str| env.run("order-service", &["explain", id]);
    for order in orders(&store, Filter::default()) {
        let ran = explain(order.id.as_str()).assert_code(0);
        assert_eq!(ran.stderr, "");
        let begin = format!("Order {:?} has been {}", order.id.as_str(), order.status);
        assert!(ran.stdout.starts_with(&begin), "{ran:?}");
        let created = Rfc3339(order.created_at).to_string();
        assert!(ran.stdout.contains(&created), "{ran:?}");
        if let Some(attention) = order.attention {
            assert!(ran.stdout.contains(attention.reason.as_str()), "{ran:?}");
            assert!(ran.stdout.contains("What you can do"), "{ran:?}");
        }
    }
    for (id, says) in [
        ("C", "similar ids: c"),
        ("p process_l0st", "similar ids: 'p process_lost'"),
        ("nothing like it", "ids are compared exactly"),
    ] {
        let ran = explain(id).assert_code(1);
        assert_eq!(ran.stdout, "");
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
        assert!(ran.stderr.contains(says), "{ran:?}");
    }
    let ran = env.run("order-service", &["explain", " a"]);
    assert_eq!(ran.code, Some(2), "no order can have that id: {ran:?}");
    let elsewhere = ["explain", "c", "--database-url", "none.db"];
    env.run("order-service", &elsewhere).assert_code(3);
    assert!(!env.path("none.db").exists());
}

/// Replaces durations, which change between two reads.
fn timeless(text: &str) -> String {
    let words = text.split_whitespace();
    let is_number = |word: &&str| !word.starts_with(|c: char| c.is_ascii_digit());
    words.filter(is_number).collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_prints_what_the_api_serves() {
    let env = TestEnvironment::new();
    let store = env.store();
    one_of_each(&store).await;
    let api = env.api(&[]);
    let client = Client::new();
    assert_eq!(client.create(&api.url, "a/b").await.status, 201);
    let mut ids = vec![("a/b".to_owned(), "a%2Fb".to_owned())];
    for order in orders(&store, Filter::default()) {
        let id = order.id.as_str();
        if id != "a/b" {
            ids.push((id.to_owned(), id.replace(' ', "%20")));
        }
    }
    for (id, segment) in ids {
        let explained = client
            .get(format!("{}/order/{segment}/explain", api.url))
            .await;
        assert_eq!(explained.status, 200, "{explained:?}");
        let explained = explained.json();
        let order = client.get(format!("{}/order/{segment}", api.url)).await;
        assert_eq!(explained["order"], order.json());
        let ran = env.run("order-service", &["explain", &id]);
        let printed = timeless(&ran.stdout);
        let lists = ["observed", "why", "next", "advice"];
        let lists = lists.iter().flat_map(|list| explained[list].as_array());
        let events = explained["events"].as_array().unwrap();
        let effects = explained["commands"].as_array().unwrap();
        let texts = lists
            .flatten()
            .chain([&explained["summary"]])
            .chain(events.iter().map(|event| &event["text"]))
            .chain(effects.iter().map(|command| &command["effect"]));
        for text in texts {
            let text = timeless(text.as_str().unwrap());
            assert!(printed.contains(&text), "{text:?} in {ran:?}");
        }
        for command in effects {
            let words = command["command"].as_str().unwrap();
            let name = words.split(' ').take(2).collect::<Vec<_>>().join(" ");
            assert!(ran.stdout.contains(&name), "{words} in {ran:?}");
        }
    }
    let none = client.get(format!("{}/order/none/explain", api.url)).await;
    assert_problem(&none, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_counts_the_orders_ahead_in_the_queue_beside_a_running_program() {
    let env = TestEnvironment::new();
    let store = env.store();
    let api = env.api(&[]);
    one_of_each(&store).await;
    let client = Client::new();
    client.create(&api.url, "last").await;
    let now = SystemClock.now();
    let mut heartbeat = ready(store.heartbeat()).unwrap();
    heartbeat.upstream = UpstreamState::Up { since: now };
    heartbeat.leader_since = Some(now);
    heartbeat.last_pass_at = Some(now);
    heartbeat.next_pass_at = Some(now);
    heartbeat.learned.rate = Some(StartRate::new(0.5, now));
    write_heartbeat(&store, heartbeat).await;
    // "c" itself, and one of the two whose backoff is over: their queue has half the share. Not the held
    // one.
    let ran = env.run("order-service", &["explain", "last"]);
    let says = "2 orders are ahead of it. At the present rate of 0.5 starts/s its turn comes in \
                about 4.0 s, or later";
    assert!(ran.stdout.contains(says), "{}", ran.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_that_explain_shows_can_be_pasted_anywhere() {
    let env = TestEnvironment::new();
    let store = env.store();
    let lost = || vec![Transition::Adopted, flagged(Reason::ProcessLost)];
    for id in ["p1", "it's lost", "--all-lost"] {
        order(&store, id, lost()).await;
        let ran = env
            .run("order-service", &["explain", "--", id])
            .assert_code(0);
        let commands = ran.stdout.lines().map(str::trim);
        let commands: Vec<_> = commands
            .filter(|line| line.contains("order-service "))
            .collect();
        assert_eq!(commands.len(), 2, "{ran:?}");
        // They also work where the program is not in PATH.
        for (command, says) in commands
            .iter()
            .zip(["started again when its turn comes", "is FAILED now"])
        {
            let output = Command::new("/bin/sh")
                .args(["-c", command])
                .env_clear()
                .env("PATH", "/nowhere")
                .current_dir("/")
                .output()
                .unwrap();
            let stdout = String::from_utf8(output.stdout).unwrap();
            assert!(
                stdout.contains(says),
                "{command}: {stdout:?} {:?}",
                output.stderr
            );
        }
        let found = ready(store.find(&OrderId::new(id).unwrap())).unwrap();
        assert_eq!(found.unwrap().order.status, Status::Failed, "{id}");
    }
    // A program that was found through PATH is shown by its name.
    order(&store, "p2", lost()).await;
    let program = Path::new(env!("CARGO_BIN_EXE_order-service"));
    let explain = [
        "-c",
        "order-service explain p2 | grep -o 'order-service fail [^#]*' | sh",
    ];
    let output = Command::new("/bin/sh")
        .args(explain)
        .env(
            "PATH",
            format!("{}:/usr/bin:/bin", program.parent().unwrap().display()),
        )
        .env("DATABASE_URL", env.database())
        .current_dir("/")
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("is FAILED now"), "{stdout}");
}

//! Logs: their levels and formats, and what they never show.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_in_no_log_at_any_level() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let variables = [
        ("ORDER_PROCESS_TOKEN", "sentinel-7f3a"),
        ("RUST_LOG", "trace"),
    ];
    let mut service = env.serve_with(&simulator.url, &[], &variables);
    let client = Client::new();
    client.create(&service.url, "a1").await;
    client.settled(&service.url, 1).await;
    // This holds without an upstream too.
    simulator.kill();
    client.create(&service.url, "a2").await;
    service.logs("the upstream is down");
    service.signal("TERM");
    assert_eq!(service.wait().code(), Some(0));
    let log = service.logged();
    assert!(log.contains("TRACE"), "the log has the requested level");
    assert!(!log.contains("sentinel"), "the token is in the log");
    for name in ["order-service", "order-reconciler"] {
        let ran = env.run_with(name, &["--help"], &variables);
        assert!(!ran.stdout.contains("sentinel"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_json_is_one_object_a_line() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let service = env.serve(&simulator.url, &["--log-format", "json"]);
    let client = Client::new();
    client.create(&service.url, "a\n1\"").await;
    client.create(&service.url, "a1").await;
    client.settled(&service.url, 1).await;
    simulator.kill();
    client.create(&service.url, "a2").await;
    service.logs("the upstream is down");
    service.signal("TERM");
    service.logs("a second SIGTERM or Ctrl-C");
    let log = service.logged();
    assert!(log.lines().count() >= 4, "{log}");
    let mut counts = 0;
    for line in log.lines() {
        let value: Value = serde_json::from_str(line).expect(line);
        for member in ["at", "level", "origin", "message"] {
            assert!(value[member].is_string(), "{member}: {line}");
        }
        // A pass logs all counts as fields, and in its text those that are not 0.
        for (name, count) in value.as_object().unwrap() {
            if let Some(count) = count.as_u64() {
                let message = value["message"].as_str().unwrap();
                let says = message.contains(&format!("{name}={count}"));
                assert_eq!(says, count > 0 || name == "observed", "{line}");
                counts += 1;
            }
        }
    }
    assert!(counts >= 11, "{log}");
    // The error at exit is one object too.
    let arguments = ["--log-format", "json", "--database-url", "no/such.db"];
    let ran = env.run("order-reconciler", &arguments);
    let value: Value = serde_json::from_str(&ran.stderr).expect("one object");
    assert_eq!(value["level"], "error");
}

#[test]
fn the_log_has_the_requested_levels() {
    let env = TestEnvironment::new();
    for (levels, has, has_not) in [
        ("error", None, Some("created the database")),
        (
            "order_service=warn",
            Some("created the database"),
            Some("INFO"),
        ),
        ("info", Some("INFO"), Some("DEBUG")),
        ("off", None, Some("database")),
        (
            "order_service::pass=debug",
            Some("created the database"),
            Some("INFO  store"),
        ),
    ] {
        let database = format!("{levels}.db");
        let arguments = ["--once", "--database-url", &database];
        let ran = env
            .run_with("order-reconciler", &arguments, &[("RUST_LOG", levels)])
            .assert_code(0);
        assert!(
            has.is_none_or(|text| ran.stderr.contains(text)),
            "{levels}: {ran:?}"
        );
        assert!(
            has_not.is_none_or(|text| !ran.stderr.contains(text)),
            "{levels}: {ran:?}"
        );
    }
}

#[test]
fn a_mistake_in_rust_log_is_refused_or_warned_about_with_what_would_be_right() {
    let env = TestEnvironment::new();
    let arguments = ["--once", "--database-url", "a.db"];
    for (levels, says) in [
        (
            "order_service=debgu",
            "invalid logging spec 'debgu'; expected off, error",
        ),
        ("hyper=fine", "invalid logging spec 'fine'"),
        ("order_service=", ""),
        (
            "info,order-service=debug",
            "nothing logs as \"order-service\"; expected order_service, or",
        ),
        ("order_service::ordres=debug", "and one of account, api"),
        ("order_services::orders=debug", "expected order_service, or"),
        (
            "order_reconciler=debug",
            "nothing logs as \"order_reconciler\"",
        ),
        ("order_service =info", "nothing logs as \"order_service \""),
        ("order_service::pass=info,", ""),
        ("info/a/b", "(too many '/'s)"),
    ] {
        let ran = env.run_with("order-reconciler", &arguments, &[("RUST_LOG", levels)]);
        if says.is_empty() {
            assert_eq!(ran.code, Some(0), "{levels}: {ran:?}");
            assert!(!ran.stderr.contains("RUST_LOG"), "{levels}: {ran:?}");
        } else {
            assert_eq!(ran.code, Some(2), "{levels}: {ran:?}");
            let line = ran.stderr.strip_suffix('\n').unwrap();
            assert!(
                !line.contains('\n') && line.contains("RUST_LOG: "),
                "{ran:?}"
            );
            assert!(line.contains(says), "{levels}: {ran:?}");
        }
    }
    // Targets of other crates are not checked, and silence nothing.
    for levels in ["debgu", "hyper=info", "order_gateway=info"] {
        let database = format!("{levels}.db");
        let arguments = ["--once", "--database-url", &database];
        let ran = env
            .run_with("order-reconciler", &arguments, &[("RUST_LOG", levels)])
            .assert_code(0);
        assert!(
            ran.stderr.contains("WARN  program: RUST_LOG sets no level"),
            "{ran:?}"
        );
        assert!(ran.stderr.contains("created the database"), "{ran:?}");
    }
}

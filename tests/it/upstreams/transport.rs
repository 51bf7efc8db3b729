//! The transport to the upstream: URL, redirects, proxies and token; and its answers in the log.

use tokio::net::{TcpSocket, TcpStream};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_path_of_the_url_is_kept_before_the_upstreams_own() {
    let upstream = Scripted::new(|_, _| answer(200, "")).await;
    let upstream = Scripted {
        url: format!("{}/x/y/", upstream.url),
        ..upstream
    };
    let orders = Orders::created(&["a1"]).await;
    assert!(orders.once(&upstream).await);
    assert_eq!(upstream.asked()[0].target, "/x/y/order_process");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_never_followed() {
    let canary = Arc::new(Scripted::new(|_, _| answer(200, "{}")).await);
    let cases = [301, 302, 303, 307, 308]
        .into_iter()
        .flat_map(|status| [(status, true), (status, false)]);
    let to: &'static str = format!("Location: {}/order_process\r\n", canary.url).leak();
    side_by_side(cases, |(status, is_start)| async move {
        let upstream = Scripted::new(move |_, _| Reply::Answer(status, to, "moved".into())).await;
        let orders = Orders::one(is_start).await;
        let mut reconciler = orders.reconciler(&upstream).await;
        reconciler
            .until_asked(&upstream, |asked| asked.len() >= 2)
            .await;
        let order = reconciler
            .until_attention("a1", Reason::UpstreamUnreachable)
            .await;
        let detail = order.attention.unwrap().detail;
        assert!(detail.contains(&status.to_string()), "{detail}");
        assert!(detail.contains("redirects are not followed"), "{detail}");
        assert_eq!(upstream.starts(), usize::from(is_start));
        let expected = if is_start {
            Status::Created
        } else {
            Status::Processing
        };
        assert_eq!(order.status, expected);
    })
    .await;
    assert_eq!(canary.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn loopback_is_never_reached_through_a_proxy() {
    let names = [
        "127.0.0.1",
        "127.0.0.2",
        "localhost",
        "LOCALHOST",
        "127.1",
        "[::1]",
    ];
    check_not_proxied(&names).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loopback_written_as_an_ipv6_address_is_never_reached_through_a_proxy() {
    check_not_proxied(&["[::ffff:127.0.0.1]"]).await;
}

async fn check_not_proxied(names: &[&'static str]) {
    let canary = Scripted::new(|_, _| answer(502, "a proxy")).await;
    let proxy: &'static str = canary.url.clone().leak();
    side_by_side(names.iter().copied(), |name| async move {
        let address = match name {
            "[::1]" => "[::1]:0",
            "127.0.0.2" => "127.0.0.2:0",
            _ => "127.0.0.1:0",
        };
        let upstream = Scripted::at(address, |_, _| answer(200, "")).await;
        let port = upstream.address.rsplit(':').next().unwrap().to_owned();
        let orders = Orders::created(&["a1"]).await;
        let url = format!("http://{name}:{port}");
        let arguments = ["--once", "--order-process-url", &url];
        let variables = [
            "HTTP_PROXY",
            "http_proxy",
            "HTTPS_PROXY",
            "https_proxy",
            "ALL_PROXY",
            "all_proxy",
        ]
        .map(|variable| (variable, proxy));
        let ran = orders
            .env
            .start_with("order-reconciler", &arguments, &variables, false);
        let (code, log) = ended(ran).await;
        assert_eq!(code, Some(0), "{name}: {log}");
        assert_eq!(upstream.starts(), 1, "{name}");
    })
    .await;
    assert_eq!(canary.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_used_for_other_hosts() {
    for (variable, url, target) in [
        (
            "HTTPS_PROXY",
            "https://upstream.invalid",
            "upstream.invalid:443",
        ),
        (
            "https_proxy",
            "https://upstream.invalid",
            "upstream.invalid:443",
        ),
        (
            "http_proxy",
            "http://upstream.invalid",
            "http://upstream.invalid/order_process",
        ),
    ] {
        let proxy = Scripted::new(|asked, _| match &*asked.method {
            "POST" => answer(200, ""),
            _ => answer(502, "no tunnel"),
        })
        .await;
        let orders = Orders::created(&["a1"]).await;
        let variables = [(variable, &*proxy.url), ("ORDER_PROCESS_URL", url)];
        let ran = orders
            .env
            .start_with("order-reconciler", &["--once"], &variables, false);
        let (code, log) = ended(ran).await;
        let asked = proxy.asked();
        assert_eq!(asked[0].target, target, "{variable}");
        if url.starts_with("https") {
            assert_eq!(asked[0].method, "CONNECT");
            assert_eq!(code, Some(4), "{log}");
            // Nothing was sent: the order may be started at once once the proxy works.
            assert_eq!(orders.order("a1").starts, 0);
        } else {
            assert_eq!(code, Some(0), "{log}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_refuses_access_is_named_at_once() {
    let proxy = Scripted::new(|_, _| answer(407, "who?")).await;
    let orders = Orders::created(&["a1"]).await;
    let variables = [
        ("HTTP_PROXY", &*proxy.url),
        ("ORDER_PROCESS_URL", "http://upstream.invalid"),
    ];
    let ran = orders
        .env
        .start_with("order-reconciler", &["--once"], &variables, false);
    let (code, log) = ended(ran).await;
    assert_eq!((code, proxy.asked().len()), (Some(4), 1), "{log}");
    assert!(log.contains("the upstream is down"), "{log}");
    let hint = "are the user name and password in the proxy's URL right?";
    assert!(log.contains(hint), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_named_in_each_error_of_which_it_may_be_the_cause() {
    let proxy = Scripted::new(|_, _| answer(502, "Bad Gateway")).await;
    let with_password = proxy.url.replace("://", "://me:s3cret@");
    let at = format!("http://{}", proxy.address);
    let nobody = "http://me:s3cret@127.0.0.1:1";
    for (scheme, variable, value, expected) in [
        (
            "http",
            "HTTP_PROXY",
            &*with_password,
            format!("the upstream or the proxy {at} answered 502: Bad Gateway"),
        ),
        (
            "https",
            "ALL_PROXY",
            &with_password,
            format!(
                "the upstream cannot be reached at https://upstream.invalid through the proxy {at}: \
                 tunnel error: unsuccessful"
            ),
        ),
        (
            "http",
            "HTTP_PROXY",
            nobody,
            "the upstream cannot be reached at http://upstream.invalid through the proxy \
             http://127.0.0.1:1: Connection refused"
                .to_owned(),
        ),
    ] {
        let orders = Orders::created(&["a1"]).await;
        let url = format!("{scheme}://upstream.invalid");
        let variables = [(variable, value), ("ORDER_PROCESS_URL", &url)];
        let ran = orders
            .env
            .start_with("order-reconciler", &["--once"], &variables, false);
        let (code, log) = ended(ran).await;
        assert_eq!(code, Some(4), "{log}");
        assert!(log.contains(&expected), "{expected}: {log}");
        assert!(
            log.contains("/order_process proxy=http://127.0.0.1:"),
            "{log}"
        );
        let ran = orders
            .env
            .start_with("order-service", &["account"], &variables, false);
        let (code, account) = ended(ran).await;
        assert_eq!(code, Some(4), "{account}");
        assert!(account.contains(&expected), "{expected}: {account}");
        assert!(![log, account].concat().contains("s3cret"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_that_names_no_usable_proxy_is_refused_unless_the_upstream_is_exempt() {
    let url = ("ORDER_PROCESS_URL", "https://upstream.invalid");
    let orders = Orders::created(&["a1"]).await;
    for (variables, code) in [
        (vec![("HTTPS_PROXY", "socks5://me:s3cret@127.0.0.1:1")], 2),
        (vec![("all_proxy", "socks5h://me:s3cret@127.0.0.1:1")], 2),
        (vec![("https_proxy", "ftp://me:s3cret@127.0.0.1:1")], 2),
        (vec![("HTTPS_PROXY", "http://me:s3@cret@127.0.0.1:1")], 2),
        (vec![("HTTP_PROXY", "socks5://127.0.0.1:1")], 4),
        (
            vec![
                ("HTTPS_PROXY", "socks5://127.0.0.1:1"),
                ("NO_PROXY", "invalid"),
            ],
            4,
        ),
        (vec![("HTTPS_PROXY", ""), ("https_proxy", "")], 4),
    ] {
        let variables = [&variables[..], &[url]].concat();
        for (program, arguments) in [
            ("order-reconciler", &["--once"][..]),
            ("order-service", &["account"]),
        ] {
            let ran = orders.env.start_with(program, arguments, &variables, false);
            let (exit, log) = ended(ran).await;
            assert_eq!(exit, Some(code), "{variables:?}: {log}");
            let (name, _) = variables[0];
            let is_named = log.contains(&format!("{name} cannot be used; expected an HTTP proxy"));
            assert_eq!(is_named, code == 2, "{log}");
            assert!(!log.contains("cret"), "{log}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_proxy_exempts_addresses_as_it_does_names() {
    let proxy = Scripted::new(|_, _| answer(502, "a proxy")).await;
    let orders = Orders::created(&["a1"]).await;
    let variables = [
        ("HTTP_PROXY", &*proxy.url),
        ("NO_PROXY", "*"),
        // Not loopback by its name, but in effect.
        ("ORDER_PROCESS_URL", "http://0.0.0.0:1"),
    ];
    let ran = orders
        .env
        .start_with("order-reconciler", &["--once"], &variables, false);
    let (code, log) = ended(ran).await;
    assert_eq!(code, Some(4), "{log}");
    assert_eq!(proxy.connections(), 0, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_with_tls_is_verified_by_the_roots_also_for_an_upstream_without() {
    let orders = Orders::created(&["a1"]).await;
    // Without roots, a client that needs them cannot be made.
    let (roots, proxy) = (("SSL_CERT_FILE", "/dev/null"), "https://proxy.invalid");
    for (proxies, code) in [
        (vec![("HTTP_PROXY", proxy)], 1),
        (
            vec![("HTTP_PROXY", proxy), ("NO_PROXY", "upstream.invalid")],
            4,
        ),
        (vec![("HTTP_PROXY", "http://proxy.invalid")], 4),
        (vec![], 4),
    ] {
        let url = ("ORDER_PROCESS_URL", "http://upstream.invalid");
        let variables = [&proxies[..], &[url, roots]].concat();
        let ran = orders
            .env
            .start_with("order-reconciler", &["--once"], &variables, false);
        let (exit, log) = ended(ran).await;
        assert_eq!(exit, Some(code), "{proxies:?}: {log}");
        assert_eq!(log.contains("root certificates"), code == 1, "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_takes_no_connection_has_taken_no_start() {
    // The kernel drops what is beyond a full backlog, as a network does for a host that is off.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let _backlog = TcpStream::connect(address).await.unwrap();
    let upstream = Scripted {
        url: format!("http://{address}"),
        timeout: TIMEOUT_WHEN_SILENT,
        ..Scripted::new(|_, _| Reply::Silence).await
    };
    let ids = ["a1", "a2", "a3", "a4"];
    let orders = Orders::created(&ids).await;
    let settings = Settings {
        max_starts: 1,
        ..settings()
    };
    let mut reconciler = orders.reconciler_with(&upstream, settings).await;
    reconciler.pass().await;
    for id in ids {
        let order = orders.order(id);
        assert_eq!(
            (order.status, order.starts),
            (Status::Created, 0),
            "{order:?}"
        );
        let attention = order.attention.unwrap();
        assert_eq!(attention.reason, Reason::UpstreamUnreachable);
        let at = &upstream.url;
        let expected = format!("the upstream cannot be reached at {at}: no answer in time");
        assert_eq!(attention.detail, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_sent_with_every_request_and_to_the_upstream_alone() {
    let canary = Scripted::new(|_, _| answer(200, "{}")).await;
    let to: &'static str = format!("Location: {}\r\n", canary.url).leak();
    let upstream = Scripted::new(move |asked, before| match asked.is_start() {
        true if before.is_empty() => answer(200, ""),
        true => Reply::Answer(307, to, String::new()),
        false => match asked.looked_up() {
            Some(id) => answer(200, process(&id, "RUNNING")),
            None => answer(200, "[]"),
        },
    })
    .await;
    let orders = Orders::processing(&many()).await;
    orders.create("a1").await;
    let (url, hold) = (&*upstream.url, ["--lost-process", "hold"]);
    let arguments = [&["--order-process-url", url], &hold[..]].concat();
    let variables = [("ORDER_PROCESS_TOKEN", "s3cret~+/=")];
    let reconciler = orders
        .env
        .start_with("order-reconciler", &arguments, &variables, false);
    let asked = until_asked(&upstream, |asked| {
        asked.iter().any(ReceivedRequest::is_start)
            && asked.iter().any(ReceivedRequest::is_list)
            && asked.iter().any(|asked| asked.looked_up().is_some())
    })
    .await;
    for asked in asked {
        assert_eq!(
            asked.headers["authorization"], "Bearer s3cret~+/=",
            "{asked:?}"
        );
    }
    assert_eq!(canary.connections(), 0);
    assert!(!reconciler.logged().contains("s3cret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_the_upstream_cannot_forge_a_log_line() {
    let upstream = Scripted::new(|_, _| {
        answer(
            // Such an answer counts at once.
            401,
            format!(
                "x\r\n2026-01-01T00:00:00.000Z ERROR forged\u{1b}[31m{}",
                "y".repeat(9_000)
            ),
        )
    })
    .await;
    let orders = Orders::created(&["a1"]).await;
    let reconciler = orders.env.start_with(
        "order-reconciler",
        &[],
        &[
            ("RUST_LOG", "order_service=trace"),
            ("ORDER_PROCESS_URL", &upstream.url),
        ],
        false,
    );
    reconciler.logs("the upstream is down");
    reconciler.signal("TERM");
    let (code, log) = ended(reconciler).await;
    assert_eq!(code, Some(0));
    assert!(
        log.lines()
            .all(|line| line.starts_with("20") && line.len() < 1_000),
        "{log}"
    );
    assert!(!log.contains('\u{1b}'), "{log}");
    assert!(
        !log.lines()
            .any(|line| line.contains("ERROR") && line.ends_with("forged")),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_answer_is_named_and_not_read() {
    // Valid as they are, so that reading them would be noticed.
    let upstream = Scripted::new(|asked, _| match asked.looked_up() {
        Some(id) => Reply::Answer(200, GZIP, process(&id, "SUCCEEDED")),
        None if asked.is_list() => Reply::Answer(200, GZIP, "[]".into()),
        None => Reply::Answer(200, GZIP, "x".into()),
    })
    .await;
    for orders in [
        Orders::created(&["a1"]).await,
        Orders::processing(&["a1"]).await,
        Orders::processing(&many()).await,
    ] {
        let id = &orders.all()[0].id.clone();
        let mut reconciler = orders.reconciler(&upstream).await;
        let order = reconciler
            .until_attention(id.as_str(), Reason::UpstreamUnreachable)
            .await;
        assert_ne!(order.status, Status::Fulfilled);
        let detail = order.attention.unwrap().detail;
        let named = "the answer is compressed (Content-Encoding: gzip); exempt ";
        assert!(detail.contains(named), "{detail}");
    }
    for asked in upstream.asked() {
        assert_eq!(asked.headers["accept-encoding"], "identity", "{asked:?}");
    }
    // Nothing was compressed.
    const EMPTY: &str =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n0\r\n\r\n";
    for reply in [
        || Reply::Answer(200, GZIP, String::new()),
        || Reply::Bytes(EMPTY.into()),
    ] {
        let upstream = Scripted::new(move |_, _| reply()).await;
        let orders = Orders::created(&["a1"]).await;
        assert!(orders.once(&upstream).await);
        assert_eq!(orders.order("a1").status, Status::Processing);
    }
    for coding in ["", "utf-8", ", Identity, identity"] {
        let header: &str = format!("Content-Encoding: {coding}\r\n").leak();
        let upstream = Scripted::new(move |asked, _| {
            let id = asked.looked_up().unwrap();
            Reply::Answer(200, header, process(&id, "SUCCEEDED"))
        })
        .await;
        let orders = Orders::processing(&["a1"]).await;
        assert!(orders.once(&upstream).await, "{coding}");
        assert_eq!(orders.order("a1").status, Status::Fulfilled, "{coding}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_on_a_closed_connection_is_repeated_once_on_another() {
    for orders in [vec!["a1".to_owned()], many()] {
        let ids = orders.clone();
        let upstream = Scripted::new(move |asked, before| {
            let earlier = before.iter().filter(|other| !other.is_start()).count();
            match asked.looked_up() {
                // Every other request.
                _ if earlier.is_multiple_of(2) => Reply::HangUp,
                Some(id) => answer(200, process(&id, "SUCCEEDED")),
                None => {
                    let entries: Vec<_> = ids.iter().map(|id| process(id, "SUCCEEDED")).collect();
                    answer(200, format!("[{}]", entries.join(",")))
                }
            }
        })
        .await;
        let orders = Orders::processing(&orders).await;
        assert!(orders.once(&upstream).await);
        assert_eq!(upstream.asked().len(), 2);
        let is_settled =
            |order: &Order| order.status == Status::Fulfilled && order.attention.is_none();
        assert!(orders.all().iter().all(is_settled), "{:?}", orders.all());
    }
}

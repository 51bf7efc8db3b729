//! Logins that servers refuse, and addresses with several hosts.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::{cluster, free_port};
use crate::environment::TestEnvironment;

#[test]
fn a_login_that_is_refused_is_not_tried_again() {
    let env = TestEnvironment::new();
    let url = cluster().url("postgres").replace("tests@", "nobody@");
    let broken = format!("{}%0Ab", cluster().url("a"));
    let ran = env.run("order-service", &["check", "--database-url", &broken]);
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    let begun = Instant::now();
    let ran = env.run("order-reconciler", &["--database-url", &url]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(
        ran.stderr.contains("role \"nobody\" does not exist"),
        "{ran:?}"
    );
    // A server that cannot be reached is tried for 5 s.
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn with_several_hosts_the_cause_at_each_is_reported_and_the_server_in_use_is_logged() {
    let env = TestEnvironment::new();
    let live = format!("127.0.0.1:{}", cluster().port());
    let dead = format!("127.0.0.1:{}", free_port());
    let database = cluster().database();
    for hosts in [format!("{live},{dead}"), format!("{dead},{live}")] {
        for (user, database, says) in [
            ("nobody", "postgres", "role \"nobody\" does not exist"),
            ("tests", "absent", "database \"absent\" does not exist"),
        ] {
            let url = format!("postgres://{user}@{hosts}/{database}");
            let arguments = ["check", "--database-url", &url];
            let ran = env.run("order-service", &arguments).assert_code(3);
            let (said_live, said_dead) = (format!("{live}: "), format!("{dead}: "));
            for says in [says, &said_live, &said_dead, "Connection refused"] {
                assert!(ran.stderr.contains(says), "{says}: {ran:?}");
            }
        }
        let url = format!("postgres://tests@{hosts}/{database}");
        let arguments = ["--once", "--database-url", &url];
        let ran = env.run("order-reconciler", &arguments).assert_code(0);
        assert!(ran.stderr.contains(&format!("server={live}")), "{ran:?}");
    }
}

/// Answers each connection with an error of this code and says how many there were.
fn refusing_server(code: &'static str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            let _ = connection.read(&mut [0; 1024]);
            let fields = format!("SFATAL\0C{code}\0Mno such login\0\0");
            let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
            let _ = connection.write_all(&[b"E", &length[..], fields.as_bytes()].concat());
        }
    });
    (address, count)
}

#[test]
fn a_wrong_password_is_not_tried_again_because_another_host_is_dead() {
    let env = TestEnvironment::new();
    let dead = format!("127.0.0.1:{}", free_port());
    // Servers may have different rules for hosts and users, but have the same passwords.
    for (code, is_tried_again) in [("28P01", false), ("28000", true)] {
        let (live, count) = refusing_server(code);
        let url = format!("postgres://me@{live},{dead}/orders");
        let arguments = ["--once", "--database-url", &url];
        let ran = env.run("order-reconciler", &arguments).assert_code(3);
        assert!(ran.stderr.contains("refuses the login"), "{ran:?}");
        assert!(ran.stderr.contains("Connection refused"), "{ran:?}");
        // Each attempt makes two connections at once.
        let count = count.load(Ordering::Relaxed);
        assert_eq!(count > 2, is_tried_again, "{code}: {count}");
    }
}

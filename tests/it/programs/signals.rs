//! Stop signals: how programs end.

use super::*;

#[test]
fn a_stop_signal_ends_every_program_with_0() {
    for signal in ["TERM", "INT", "HUP"] {
        let env = TestEnvironment::new();
        let simulator = env.simulator(&[]);
        let api = env.api(&[]);
        let service = env.serve(&simulator.url, &[]);
        service.logs("became leader");
        let standby = env.reconciler(&simulator.url, &[]);
        standby.logs("standing by");
        let alone = TestEnvironment::new();
        let reconciler = alone.reconciler(&simulator.url, &[]);
        reconciler.logs("became leader");
        let (dev, _) = dev(&env, &[]);
        for mut program in [standby, reconciler, service, api, dev, simulator] {
            program.signal(signal);
            assert_eq!(program.wait().code(), Some(0), "{}", program.logged());
        }
    }
}

#[test]
fn a_stop_signal_during_setup_still_ends_cleanly() {
    // At every point of its setup it exits with 0, or does not handle signals yet.
    let env = TestEnvironment::new();
    for wait in [10, 20, 40, 80, 160] {
        let mut program = env.reconciler("http://127.0.0.1:9", &[]);
        std::thread::sleep(Duration::from_millis(wait));
        let is_listening = program.logged().contains("database");
        program.signal("TERM");
        let code = program.wait().code();
        assert!(
            code == Some(0) || !is_listening,
            "{code:?}: {}",
            program.logged()
        );
    }
}

#[test]
fn a_second_signal_ends_a_program_at_once_but_not_that_of_a_terminal() {
    let env = TestEnvironment::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = format!("http://{}", silent.local_addr().unwrap());
    let mut service = env.serve(&upstream, &["--request-timeout", "30s"]);
    // A start without an answer, and an incomplete request: the program waits for both.
    let mut client = TcpStream::connect(service.address()).unwrap();
    let body = r#"{"id":"a1"}"#;
    write!(
        client,
        "POST /order HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 201");
    let (mut start, _) = silent.accept().unwrap();
    let mut method = [0; 4];
    start.read_exact(&mut method).unwrap();
    assert_eq!(&method, b"POST");
    service.signal("HUP");
    service.logs("a second SIGTERM or Ctrl-C exits immediately");
    // A terminal that closes sends one, and its shell another.
    service.signal("HUP");
    let deadline = Instant::now() + PATIENCE;
    while api_health(&env, service.address()).code == Some(0) {
        assert!(Instant::now() < deadline, "the program does not drain");
    }
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(service.ended(), None);
    service.signal("INT");
    // Had it waited for the start, it would exit with 0.
    let code = service.wait().code();
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
}

#[test]
fn a_closing_terminal_does_not_end_a_program_that_ignores_the_signal() {
    let env = TestEnvironment::new();
    let mut command = Command::new("nohup");
    let api = env.command("order-service", &[]);
    command
        .arg(api.get_program())
        .args(["api", "--listen", "127.0.0.1:0"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .current_dir(env.path("."));
    let mut program = env.spawn("order-service", command, true);
    program.signal("HUP");
    program.signal("HUP");
    api_health(&env, program.address()).assert_code(0);
    assert_eq!(program.ended(), None);
    assert_eq!(program.stop(), Some(0));
}

//! Database files that are removed, moved, linked, on a failing disk, or owned by another user. No
//! acknowledged order is lost.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rusqlite::Connection;

use crate::environment::{
    Answer, Client, Program, Ran, TestEnvironment, assert_agree, assert_problem, with_api,
};

async fn create(client: &Client, api: &Program, letter: char, count: usize) -> Vec<String> {
    let ids: Vec<_> = (0..count).map(|n| format!("{letter}{n}")).collect();
    for id in &ids {
        let answer = client.create(&api.url, id).await;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    ids
}

/// Checks that writes are refused and have no effect.
async fn check_refused(client: &Client, api: &Program) {
    let refused = client.create(&api.url, "refused").await;
    assert_problem(&refused, 503);
    let problem = refused.json();
    assert_eq!(problem["type"], "/problems#database-not-writable");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("nothing was done"), "{detail}");
    let ready = client.get(format!("{}/readyz", api.url)).await;
    assert_eq!(ready.status, 503, "{ready:?}");
}

/// Returns a command that runs a shell script and then the program.
fn after(script: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("{script}\nexec \"$0\" \"$@\"")])
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear()
        .current_dir(command.get_current_dir().unwrap());
    shell
}

/// Starts the API after a script.
fn api_after(env: &TestEnvironment, script: &str) -> Program {
    let database = env.database();
    let arguments = ["api", "--listen", "127.0.0.1:0", "--database-url"];
    let arguments = [&arguments[..], &[database.to_str().unwrap()]].concat();
    let command = after(script, &env.command("order-service", &arguments));
    env.spawn("order-service", command, true)
}

/// Event before the program checks its files.
#[derive(Debug)]
enum Meanwhile {
    Nothing,
    Write,
    /// SQLite creates a new log for it, which stays empty.
    Visit,
}

async fn check_removed(name: &str, meanwhile: Meanwhile) {
    let (env, api, client) = with_api();
    let created = create(&client, &api, 'a', 20).await;
    fs::remove_file(env.path(name)).unwrap();
    match meanwhile {
        Meanwhile::Nothing => {}
        Meanwhile::Write => check_refused(&client, &api).await,
        Meanwhile::Visit => drop(env.run("order-service", &["explain", "a0"])),
    }
    api.logs("removed or replaced; write-ahead log checkpointed completely=true");
    assert!(api.logged().contains(name), "{}", api.logged());
    api.kill();
    let api = env.api(&[]);
    assert_eq!(client.ids(&api.url).await, created, "{name} {meanwhile:?}");
    create(&client, &api, 'b', 1).await;
    assert_eq!(api.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_the_log_or_index_stops_writes_and_a_later_crash_loses_nothing() {
    let checks = [
        ("orders.db-wal", Meanwhile::Write),
        ("orders.db-shm", Meanwhile::Write),
        ("orders.db-wal", Meanwhile::Nothing),
        ("orders.db-shm", Meanwhile::Nothing),
        ("orders.db-wal", Meanwhile::Visit),
    ]
    .map(|(name, meanwhile)| tokio::spawn(check_removed(name, meanwhile)));
    for check in checks {
        check.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn api_and_reconciler_both_stop_writing_without_the_log_and_start_nothing_twice_after_a_crash()
 {
    let env = TestEnvironment::new();
    let client = Client::new();
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let (api, reconciler) = (env.api(&[]), env.reconciler(&simulator.url, &[]));
    let created = create(&client, &api, 'a', 40).await;
    // It has opened the log.
    reconciler.logs("became leader");
    fs::remove_file(env.path("orders.db-wal")).unwrap();
    check_refused(&client, &api).await;
    reconciler.logs("the database cannot be written");
    api.kill();
    reconciler.kill();
    let (api, _reconciler) = (env.api(&[]), env.reconciler(&simulator.url, &[]));
    let orders = client.settled(&api.url, created.len()).await;
    assert_agree(&env, &orders);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_log_that_a_long_read_keeps_from_the_database_is_logged_once() {
    let (env, api, client) = with_api();
    create(&client, &api, 'a', 1).await;
    let reader = Connection::open(env.database()).unwrap();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM orders")
        .unwrap();
    create(&client, &api, 'b', 1).await;
    fs::remove_file(env.path("orders.db-wal")).unwrap();
    for _ in 0..5 {
        check_refused(&client, &api).await;
    }
    let log = api.logged();
    assert_eq!(log.matches("completely=false").count(), 1, "{log}");
    reader.execute_batch("COMMIT").unwrap();
    api.logs("checkpointed completely=true");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_moved_away_is_complete_without_its_log_and_works_again_when_moved_back()
{
    let (env, api, client) = with_api();
    let created = create(&client, &api, 'a', 20).await;
    let elsewhere = env.path("elsewhere.db");
    fs::rename(env.database(), &elsewhere).unwrap();
    check_refused(&client, &api).await;
    let copy = env.path("copy.db");
    fs::copy(&elsewhere, &copy).unwrap();
    let count: u32 = Connection::open(&copy)
        .unwrap()
        .query_row("SELECT count(*) FROM orders", [], |row| row.get(0))
        .unwrap();
    assert_eq!(count as usize, created.len());
    fs::rename(&elsewhere, env.database()).unwrap();
    create(&client, &api, 'b', 1).await;
    assert!(api.logged().contains("can be written again"));
    api.kill();
    let api = env.api(&[]);
    assert_eq!(client.ids(&api.url).await.len(), created.len() + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_moved_over_a_running_database_is_not_mixed_with_its_log() {
    for stops in [true, false] {
        let env = TestEnvironment::new();
        let client = Client::new();
        let api = env.api(&[]);
        let kept = create(&client, &api, 'a', 5).await;
        env.run("order-service", &["backup", "backup.db"])
            .assert_code(0);
        create(&client, &api, 'b', 5).await;
        fs::rename(env.path("backup.db"), env.database()).unwrap();
        if stops {
            assert_eq!(api.stop(), Some(0));
        } else {
            api.logs("checkpointed completely=true");
            api.kill();
        }
        env.run("order-service", &["check"]).assert_code(0);
        let api = env.api(&[]);
        assert_eq!(client.ids(&api.url).await, kept);
        create(&client, &api, 'c', 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_checkpoint_is_made_while_another_log_is_beside_the_database() {
    let (env, api, client) = with_api();
    create(&client, &api, 'a', 20).await;
    let before = fs::read(env.database()).unwrap();
    fs::write(env.path("other"), "other").unwrap();
    fs::rename(env.path("other"), env.path("orders.db-wal")).unwrap();
    check_refused(&client, &api).await;
    assert!(!api.logged().contains("checkpointed"), "{}", api.logged());
    assert_eq!(fs::read(env.database()).unwrap(), before);
    assert_eq!(fs::read(env.path("orders.db-wal")).unwrap(), b"other");
}

/// Checks that a program refuses the database with one line.
fn check_unusable(ran: &Ran, says: &str) {
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "one line: {ran:?}");
    assert!(ran.stderr.contains(says), "{says:?}: {ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_name_is_refused_by_programs_that_write_and_stops_writes_while_they_run() {
    let (env, api, client) = with_api();
    let created = create(&client, &api, 'a', 3).await;
    fs::hard_link(env.database(), env.path("second.db")).unwrap();
    check_refused(&client, &api).await;
    assert!(api.logged().contains("a hard link; remove that"));
    let commands = [
        &["order-service", "api", "--listen", "127.0.0.1:0"][..],
        &["order-service", "serve", "--listen", "127.0.0.1:0"],
        &["order-reconciler"],
        &["order-reconciler", "--once"],
        &["order-service", "restart", "a0"],
        &["order-service", "fail", "a0"],
        &["order-service", "prune", "--settled-before", "1d"],
    ];
    for command in commands {
        for name in ["orders.db", "second.db"] {
            let arguments = [&command[1..], &["--database-url", name]].concat();
            let ran = env.run(command[0], &arguments);
            check_unusable(&ran, "remove the others");
        }
    }
    let beside = fs::read_dir(env.path(".")).unwrap();
    let made = beside.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_str().unwrap().starts_with("second.db-")
    });
    assert_eq!(made.count(), 0, "no file is created beside the second name");
    // Programs that only read are allowed.
    for arguments in [&["check"][..], &["explain", "a0"], &["backup", "backup.db"]] {
        env.run("order-service", arguments).assert_code(0);
    }
    fs::remove_file(env.path("second.db")).unwrap();
    create(&client, &api, 'b', 1).await;
    api.kill();
    let api = env.api(&[]);
    assert_eq!(client.ids(&api.url).await.len(), created.len() + 1);
}

/// Runs a program after a script that mounts something for it alone. Returns exit code and log.
fn with_mounts(env: &TestEnvironment, script: &str, program: &Command) -> (Option<i32>, String) {
    let inside = after(&format!("({script}) || exit 99"), program);
    let mut ran = None;
    for namespaces in [&["--mount"][..], &["--map-root-user", "--mount"]] {
        let output = Command::new("unshare")
            .args(namespaces)
            .arg(inside.get_program())
            .args(inside.get_args())
            .current_dir(env.path("."))
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            // Not permitted for this user.
            Some(1 | 99) => ran = Some((None, log)),
            code => return (code, log),
        }
    }
    ran.unwrap()
}

#[test]
#[ignore = "needs unshare and mount; scripts/test all"]
fn a_mount_of_the_file_alone_is_refused_and_one_of_its_folder_is_not() {
    let env = TestEnvironment::new();
    env.run("order-reconciler", &["--once"]).assert_code(0);
    fs::create_dir(env.path("mounted")).unwrap();
    fs::write(env.path("alone.db"), "").unwrap();
    for (mount, name, expected) in [
        ("orders.db alone.db", "alone.db", 3),
        ("orders.db orders.db", "orders.db", 3),
        (". mounted", "mounted/orders.db", 0),
    ] {
        let plain = env.command("order-reconciler", &["--once", "--database-url", name]);
        let (code, log) = with_mounts(&env, &format!("mount --bind {mount}"), &plain);
        assert_eq!(code, Some(expected), "{mount}: {log}");
        assert_eq!(log.contains("mount its folder"), expected == 3, "{log}");
    }
}

#[test]
#[ignore = "needs unshare and mount; scripts/test all"]
fn a_file_system_without_inodes_is_named_as_such() {
    let env = TestEnvironment::new();
    fs::create_dir(env.path("small")).unwrap();
    let arguments = ["--once", "--database-url", "small/orders.db"];
    let plain = env.command("order-reconciler", &arguments);
    // The folder takes one. Then a lock, the database, its log and index, and the other locks follow.
    for inodes in 2..=7 {
        let script = format!("mount -t tmpfs -o nr_inodes={inodes} tmpfs small");
        let (code, log) = with_mounts(&env, &script, &plain);
        assert_eq!(
            code,
            Some(if inodes < 7 { 3 } else { 0 }),
            "{inodes}: {log}"
        );
        assert_eq!(
            log.contains("no inodes left"),
            inodes < 7,
            "{inodes}: {log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_io_error_of_a_commit_an_order_may_exist_and_the_answer_says_so() {
    let env = TestEnvironment::new();
    let client = Client::new();
    // Files are limited to some hundred KiB, which SQLite takes for a failing disk.
    let api = api_after(&env, "trap '' XFSZ; ulimit -f 600");
    let mut acknowledged = BTreeSet::new();
    let mut unknown: Option<Answer> = None;
    for n in 0..1_000 {
        let id = format!("a{n}");
        let answer = client.create(&api.url, &id).await;
        if answer.status != 201 {
            unknown = Some(answer);
            break;
        }
        acknowledged.insert(id);
    }
    let unknown = unknown.expect("the file cannot grow for ever");
    assert_problem(&unknown, 503);
    let problem = unknown.json();
    assert_eq!(problem["type"], "/problems#outcome-unknown", "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("may have been created"), "{detail}");
    assert!(!detail.contains("nothing was done"), "{detail}");
    assert!(!unknown.header("retry-after").is_empty());
    assert!(api.logged().contains("disk I/O error"), "{}", api.logged());
    api.kill();
    let api = env.api(&[]);
    let there: BTreeSet<_> = client.ids(&api.url).await.into_iter().collect();
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    assert!(lost.is_empty(), "acknowledged orders are lost: {lost:?}");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

const LOCKS: [&str; 3] = ["orders.db-turn", "orders.db-write", "orders.db-leader"];

#[test]
fn a_new_database_is_closed_to_others_and_its_locks_have_its_permissions() {
    for (umask, database, locks) in [
        ("0", 0o640, 0o600),
        ("022", 0o640, 0o600),
        ("077", 0o600, 0o600),
    ] {
        let env = TestEnvironment::new();
        let once = || env.command("order-reconciler", &["--once"]);
        let script = format!("umask {umask}");
        let run = |script: &str| {
            let ran = after(script, &once()).output().unwrap();
            assert!(ran.status.success(), "{ran:?}");
        };
        run(&script);
        assert_eq!(mode(&env.database()), database, "umask {umask}");
        for name in LOCKS {
            assert_eq!(mode(&env.path(name)), locks, "{name}, umask {umask}");
            fs::remove_file(env.path(name)).unwrap();
        }
        // A group that may write the database may write the locks too, whatever the umask.
        fs::set_permissions(env.database(), fs::Permissions::from_mode(0o664)).unwrap();
        run(&script);
        for name in LOCKS {
            assert_eq!(mode(&env.path(name)), 0o660, "{name}, umask {umask}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconciler_whose_lock_is_replaced_gives_up_leadership() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let first = env.serve(&simulator.url, &[]);
    first.logs("became leader");
    let second = env.reconciler(&simulator.url, &[]);
    second.logs("standing by");
    fs::remove_file(env.path("orders.db-leader")).unwrap();
    second.logs("became leader");
    first.logs("gave up leadership");
    first.logs("standing by leader=other");
    assert_eq!(second.stop(), Some(0));
    let client = Client::new();
    client.create(&first.url, "a1").await;
    client.settled(&first.url, 1).await;
    assert_eq!(first.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root; scripts/test all"]
async fn a_command_that_root_runs_after_a_restore_does_not_lock_out_the_service() {
    const SERVICE: u32 = 54_321;
    let env = TestEnvironment::new();
    let as_service = || {
        let database = env.database();
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--database-url"];
        let arguments = [&arguments[..], &[database.to_str().unwrap()]].concat();
        let mut command = env.command("order-service", &arguments);
        command.args(["--order-process-url", "http://127.0.0.1:9"]);
        command.uid(SERVICE).gid(SERVICE);
        env.spawn("order-service", command, true)
    };
    let client = Client::new();
    chown(env.path("."), Some(SERVICE), Some(SERVICE)).unwrap();
    let service = as_service();
    create(&client, &service, 'a', 2).await;
    env.run("order-service", &["backup", "backup.db"])
        .assert_code(0);
    assert_eq!(service.stop(), Some(0));
    for entry in fs::read_dir(env.path(".")).unwrap() {
        let name = entry.unwrap().file_name();
        if name.to_str().unwrap().starts_with("orders.db") {
            fs::remove_file(env.path(name.to_str().unwrap())).unwrap();
        }
    }
    fs::rename(env.path("backup.db"), env.database()).unwrap();
    chown(env.database(), Some(SERVICE), Some(SERVICE)).unwrap();
    for command in ["restart", "fail"] {
        // It has nothing to decide, but creates the files.
        env.run("order-service", &[command, "a0"]);
    }
    let ran = env.run("order-reconciler", &["--once"]);
    assert_ne!(ran.code, Some(3), "{ran:?}");
    for name in LOCKS {
        let lock = fs::metadata(env.path(name)).unwrap();
        assert_eq!((lock.uid(), lock.gid()), (SERVICE, SERVICE), "{name}");
        assert_eq!(lock.mode() & 0o777, 0o600, "{name}");
    }
    let service = as_service();
    create(&client, &service, 'b', 1).await;
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn too_few_descriptors_are_named_as_such() {
    let env = TestEnvironment::new();
    env.run("order-reconciler", &["--once"]).assert_code(0);
    // With fewer the program does not start at all.
    let plain = env.command("order-reconciler", &["--once"]);
    let ran = after("ulimit -n 12", &plain).output().unwrap();
    let says = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(3), "{says}");
    assert_eq!(says.matches("ERROR").count(), 1, "one error: {says}");
    assert!(says.contains("no more files can be opened"), "{says}");
    assert!(says.contains("ulimit -n"), "{says}");
}

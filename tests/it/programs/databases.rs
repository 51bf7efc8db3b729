//! Unusable databases, and new ones.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rusqlite::Connection;

use super::*;

/// Checks that every program that opens a database refuses this one with one clear line.
fn check_unusable(env: &TestEnvironment, database: &str, says: &str) {
    let commands = [
        &["order-service", "api", "--listen", "127.0.0.1:0"][..],
        &["order-service", "serve", "--listen", "127.0.0.1:0"],
        &["order-reconciler"],
        &["order-reconciler", "--once"],
    ];
    std::thread::scope(|scope| {
        for command in commands {
            scope.spawn(move || {
                let ran = run(env, command, &["--database-url", database], &[]);
                assert_eq!(ran.code, Some(3), "{command:?} {database}: {ran:?}");
                assert_eq!(ran.stderr.lines().count(), 1, "one line: {ran:?}");
                assert!(ran.stderr.contains(says), "{says:?}: {ran:?}");
                let path = database.trim_start_matches("sqlite:");
                assert!(ran.stderr.contains(path), "{path}: {ran:?}");
                assert_eq!(ran.stdout, "", "nothing was served");
            });
        }
    });
}

#[test]
fn a_database_that_cannot_be_used_ends_with_3_and_one_line_that_says_why() {
    let env = TestEnvironment::new();
    let path = |name: &str| env.path(name).to_str().unwrap().to_owned();
    check_unusable(&env, &path("missing/orders.db"), "the folder");
    check_unusable(&env, &format!("sqlite:{}", path("missing/o.db")), "folder");
    fs::create_dir(env.path("folder")).unwrap();
    check_unusable(&env, &path("folder"), "is not a file");
    fs::write(env.path("plain"), "hello").unwrap();
    check_unusable(&env, &path("plain/orders.db"), "not a directory");
    check_unusable(&env, &path("plain"), "is not an SQLite database");
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
        .take(9_000)
        .collect();
    fs::write(env.path("noise"), &noise).unwrap();
    check_unusable(&env, &path("noise"), "is not an SQLite database");
    assert_eq!(fs::read(env.path("noise")).unwrap(), noise, "unchanged");
    let foreign = Connection::open(env.path("foreign.db")).unwrap();
    foreign
        .execute_batch(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY); INSERT INTO orders VALUES (1)",
        )
        .unwrap();
    drop(foreign);
    let before = fs::read(env.path("foreign.db")).unwrap();
    check_unusable(&env, &path("foreign.db"), "of another program");
    assert_eq!(fs::read(env.path("foreign.db")).unwrap(), before);
    for (name, format, says) in [
        ("newer.db", 99, "newer version"),
        ("oldest.db", 1, "has format 1, from before version 0.2.0"),
        ("older.db", 5, "or move the file away"),
    ] {
        create(&env, &env.path(name));
        let db = Connection::open(env.path(name)).unwrap();
        db.pragma_update(None, "user_version", format).unwrap();
        drop(db);
        check_unusable(&env, &path(name), says);
    }
    // Not even root may write there.
    check_unusable(&env, "/proc/orders.db", "cannot be written");
}

#[test]
fn a_truncated_backup_is_not_sound_and_what_to_do_is_said() {
    let env = TestEnvironment::new();
    create(&env, &env.path("orders.db"));
    let backup = env.path("backup.db");
    let arguments = ["backup", backup.to_str().unwrap(), "--database-url"];
    env.run("order-service", &[&arguments[..], &["orders.db"]].concat())
        .assert_code(0);
    let file = fs::OpenOptions::new().write(true).open(&backup).unwrap();
    let length = file.metadata().unwrap().len();
    for part in [length / 2, 4_096, 1_000] {
        file.set_len(part).unwrap();
        let arguments = ["check", "--database-url", backup.to_str().unwrap()];
        let ran = env.run("order-service", &arguments).assert_code(1);
        let said = ran.stdout.clone() + &ran.stderr;
        assert!(
            said.contains("damaged") && said.contains("a copy of it and its -wal"),
            "{part}: {ran:?}"
        );
        let line = said
            .lines()
            .find(|line| line.matches("malformed").count() > 1);
        assert_eq!(line, None, "{part}: {ran:?}");
    }
    let ran = env
        .run(
            "order-service",
            &[
                "api",
                "--database-url",
                "backup.db",
                "--listen",
                "127.0.0.1:0",
            ],
        )
        .assert_code(3);
    assert!(ran.stderr.contains("restore"), "{ran:?}");
}

#[test]
fn an_empty_file_is_not_called_absent() {
    let env = TestEnvironment::new();
    fs::write(env.path("empty.db"), "").unwrap();
    for command in ["check", "account"] {
        let arguments = [command, "--database-url", "empty.db"];
        let ran = env.run("order-service", &arguments).assert_code(3);
        assert!(ran.stderr.contains("is empty"), "{ran:?}");
        assert!(!ran.stderr.contains("no such"), "{ran:?}");
    }
}

#[test]
fn the_target_of_a_backup_may_be_named_as_a_database_is() {
    let env = TestEnvironment::new();
    create(&env, &env.path("orders.db"));
    let target = format!("sqlite:{}", env.path("backup.db").to_str().unwrap());
    let arguments = ["backup", &target, "--database-url", "orders.db"];
    env.run("order-service", &arguments).assert_code(0);
    assert!(env.path("backup.db").exists());
    let files = || {
        let files = fs::read_dir(env.path(".")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        BTreeSet::from_iter(names.filter(|name| !name.ends_with(".log")))
    };
    let before = files();
    for (target, says) in [
        ("sqlite:b.db?mode=ro", "parameters"),
        ("sqlite::memory:", "in-memory"),
        ("sqlite:", "the path is empty"),
        ("postgresql:x", "PostgreSQL"),
        ("postgres://host/orders", "sqlite:FILE"),
    ] {
        let arguments = ["backup", target, "--database-url", "orders.db"];
        let ran = env.run("order-service", &arguments).assert_code(2);
        #[cfg(feature = "postgres")]
        let says = says.trim_start_matches("PostgreSQL");
        assert!(ran.stderr.contains(says), "{target}: {ran:?}");
    }
    assert_eq!(files(), before, "nothing was written");
    // Any other file may have a colon in its name.
    let arguments = ["backup", "at-10:00.db", "--database-url", "orders.db"];
    env.run("order-service", &arguments).assert_code(0);
    assert!(env.path("at-10:00.db").exists());
}

#[test]
fn a_file_that_is_refused_stays_as_it_was_with_none_beside_it() {
    let env = TestEnvironment::new();
    let run = |arguments: &[&str]| env.run(arguments[0], &arguments[1..]);
    fs::write(env.path("noise"), "noise".repeat(2_000)).unwrap();
    for (name, mode) in [("foreign?.db", "DELETE"), ("log.db", "WAL")] {
        let db = Connection::open(env.path(name)).unwrap();
        db.pragma_update(None, "journal_mode", mode).unwrap();
        db.execute_batch("CREATE TABLE t (x)").unwrap();
    }
    for name in ["newer.db", "used.db", "from.db"] {
        create(&env, &env.path(name));
        let db = Connection::open(env.path(name)).unwrap();
        if name == "newer.db" {
            db.pragma_update(None, "user_version", 99).unwrap();
        }
        for suffix in ["turn", "write", "leader"] {
            fs::remove_file(env.path(&format!("{name}-{suffix}"))).unwrap();
        }
    }
    let backup = ["order-service", "backup", "backup.db", "--database-url"];
    assert_eq!(run(&[&backup[..], &["from.db"]].concat()).code, Some(0));
    let files = || {
        let names = fs::read_dir(env.path(".")).unwrap();
        let names = names.map(|name| name.unwrap().file_name().into_string().unwrap());
        // Without the logs of programs.
        let names = names.filter(|name| !name.starts_with("from.db") && !name.ends_with(".log"));
        let files = names.map(|name| match name.strip_suffix("-shm") {
            // Readers of the log lock it there.
            Some(_) => (name, vec![]),
            None => (name.clone(), fs::read(env.path(&name)).unwrap()),
        });
        files.collect::<std::collections::BTreeMap<_, _>>()
    };
    let before = files();
    for name in ["noise", "foreign?.db", "log.db", "newer.db"] {
        for command in [
            &["order-service", "api", "--listen", "127.0.0.1:0"][..],
            &["order-reconciler", "--once"],
            &["order-service", "check"],
            &["order-service", "backup", "other.db"],
            &["order-service", "explain", "a1"],
            &["order-service", "restart", "a1"],
            &["order-reconciler", "health"],
        ] {
            let ran = run(&[command, &["--database-url", name]].concat());
            let code = [3, 1][usize::from(command.ends_with(&["health"]))];
            assert_eq!(ran.code, Some(code), "{ran:?}");
            assert!(!ran.stderr.contains("no such table"), "{ran:?}");
        }
        let compared = run(&["order-service", "copy", "--verify-only", name, "backup.db"]);
        assert_eq!(compared.code, Some(3), "{compared:?}");
    }
    for name in before.keys() {
        let copied = run(&["order-service", "copy", "from.db", name]);
        assert_eq!(copied.code, Some(3), "{copied:?}");
    }
    for (name, found) in files() {
        assert!(before.get(&name) == Some(&found), "{name} has changed");
    }
}

#[test]
fn a_file_where_the_folder_should_be_is_reported_as_a_wrong_folder() {
    let env = TestEnvironment::new();
    fs::write(env.path("plain"), "hello").unwrap();
    let database = env.path("plain/orders.db");
    let arguments = ["--database-url", database.to_str().unwrap()];
    let ran = env.run("order-reconciler", &arguments).assert_code(3);
    assert!(
        !ran.stderr.contains("-write"),
        "a lock file is not named: {ran:?}"
    );
    assert!(ran.stderr.contains("the folder"), "{ran:?}");
}

#[test]
fn who_may_only_read_a_stopped_database_is_refused_and_does_not_lock_its_owner_out() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let env = TestEnvironment::new();
    drop(env.store());
    let folder = env.database().parent().unwrap().to_owned();
    let allow =
        |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    allow(&env.database(), 0o644);
    // The build's folder may be root's alone.
    let program = env.path("program");
    let built = env!("CARGO_BIN_EXE_order-service");
    if fs::hard_link(built, &program).is_err() {
        fs::copy(built, &program).unwrap();
    }
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let url = env.database_url();
    let run = |command: &[&str]| {
        let mut ran = Command::new("setpriv");
        ran.args(nobody).arg(&program).args(command);
        ran.args(["--database-url", &url]);
        ran.output().unwrap()
    };
    for mode in [0o755, 0o777] {
        allow(&folder, mode);
        for command in [
            &["check"][..],
            &["explain", "a1"],
            &["backup", "/tmp/none.db"],
        ] {
            let ran = run(command);
            let stderr = String::from_utf8_lossy(&ran.stderr);
            assert_eq!(ran.status.code(), Some(3), "{mode:o} {command:?}: {stderr}");
            assert!(stderr.contains("run the command as its owner"), "{stderr}");
        }
        assert!(!folder.join("orders.db-wal").exists(), "{mode:o}");
    }
    // A program that has it open has made the other files.
    let store = env.store();
    let ran = run(&["check"]);
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    drop(store);
}

#[test]
fn a_cause_is_printed_once() {
    let env = TestEnvironment::new();
    let missing = env.path("missing/orders.db");
    for database in [missing.to_str().unwrap(), "/proc/orders.db"] {
        let ran = env.run("order-reconciler", &["--database-url", database]);
        let count = ran.stderr.matches("No such file or directory").count();
        assert_eq!(count, 1, "{}", ran.stderr);
    }
}

/// Creates a database with a program.
fn create(env: &TestEnvironment, path: &Path) {
    let arguments = ["--once", "--database-url", path.to_str().unwrap()];
    env.run("order-reconciler", &arguments).assert_code(0);
}

#[test]
#[ignore = "slow; scripts/test all"]
fn a_database_that_is_locked_for_five_seconds_ends_with_3() {
    let env = TestEnvironment::new();
    let path = |name: &str| env.path(name).to_str().unwrap().to_owned();
    // By a program that does not take our locks: on a new database, and on an existing one.
    let new = Connection::open(env.path("new.db")).unwrap();
    new.execute_batch("BEGIN EXCLUSIVE").unwrap();
    create(&env, &env.path("ours.db"));
    let ours = Connection::open(env.path("ours.db")).unwrap();
    ours.execute_batch("BEGIN EXCLUSIVE").unwrap();
    // By one of our own programs that hangs.
    create(&env, &env.path("beside.db"));
    let lock = fs::File::create(env.path("beside.db-write")).unwrap();
    lock.lock().unwrap();
    std::thread::scope(|scope| {
        for name in ["new.db", "ours.db", "beside.db"] {
            let (env, path) = (&env, path(name));
            scope.spawn(move || {
                let ran = env.run("order-reconciler", &["--database-url", &path]);
                assert_eq!(ran.code, Some(3), "{name}: {ran:?}");
                assert_eq!(ran.stderr.lines().count(), 1, "one line: {ran:?}");
                assert!(
                    ran.stderr.contains("is locked by another program"),
                    "{ran:?}"
                );
                assert!(ran.stderr.contains(&path), "{ran:?}");
            });
        }
        // A program waits for a lock that is released in time.
        let waits = env.path("waits.db");
        let env = &env;
        scope.spawn(move || {
            let db = Connection::open(&waits).unwrap();
            db.execute_batch("BEGIN EXCLUSIVE").unwrap();
            let mut program = env.start(
                "order-reconciler",
                &["--once", "--database-url", waits.to_str().unwrap()],
                false,
            );
            std::thread::sleep(Duration::from_millis(1_500));
            db.execute_batch("ROLLBACK").unwrap();
            assert_eq!(program.wait().code(), Some(0), "{}", program.logged());
        });
    });
}

#[test]
fn a_created_database_is_logged_as_a_warning_and_an_existing_one_as_information() {
    for (name, arguments) in [
        ("order-reconciler", &["--once", "--database-url"][..]),
        (
            "order-service",
            &["api", "--listen", "127.0.0.1:0", "--database-url"],
        ),
        (
            "order-service",
            &["serve", "--listen", "127.0.0.1:0", "--database-url"],
        ),
    ] {
        let env = TestEnvironment::new();
        let absolute = fs::canonicalize(env.path(".")).unwrap().join("o.db");
        for (level, url) in [
            ("WARN", "sqlite:o.db"),
            ("INFO", "o.db"),
            ("INFO", "./o.db"),
        ] {
            let program = env.start(name, &[arguments, &[url]].concat(), false);
            program.logs("o.db");
            program.signal("TERM");
            let log = program.logged();
            let line = log.lines().find(|line| line.contains("o.db")).unwrap();
            assert!(line.contains(absolute.to_str().unwrap()), "{line}");
            assert!(line.contains(level), "{url}: {line}");
        }
    }
}

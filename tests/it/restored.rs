//! Readers whose database is restored from a backup never miss new records silently. Each copy has a
//! history of its own.

use std::fs;
use std::path::Path;

use rusqlite::Connection;

use crate::environment::{Answer, Client, Program, TestEnvironment, assert_problem, with_api};
use crate::events::Events;
use crate::lists::next;

async fn get(client: &Client, api: &Program, path: &str) -> Answer {
    client.get(format!("{}{path}", api.url)).await
}

/// Creates orders whose ids are the letter and a number: one event each.
async fn create(client: &Client, api: &Program, letter: char, count: usize) {
    for n in 0..count {
        let created = client.create(&api.url, &format!("{letter}{n}")).await;
        assert_eq!(created.status, 201, "{created:?}");
    }
}

/// Returns the path of the next page.
fn linked(answer: &Answer) -> String {
    next(answer.header("link")).expect("a next page").to_owned()
}

/// Returns the ids on the pages from this path on.
async fn walk(client: &Client, api: &Program, path: &str) -> Vec<String> {
    let mut path = Some(path.to_owned());
    let mut ids = Vec::new();
    while let Some(this) = path {
        let page = get(client, api, &this).await;
        assert_eq!(page.status, 200, "{this}: {page:?}");
        for member in page.json().as_array().unwrap() {
            let id = member.get("order_id").or(member.get("id")).unwrap();
            ids.push(id.as_str().unwrap().to_owned());
        }
        path = next(page.header("link")).map(str::to_owned);
    }
    ids
}

fn histories(database: &Path) -> i64 {
    let db = Connection::open(database).unwrap();
    db.query_row("SELECT count(*) FROM histories", [], |row| row.get(0))
        .unwrap()
}

fn remove(database: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        // After a clean exit there is usually no log.
        let _ = fs::remove_file(path);
    }
}

/// Ways in which an operator restores a backup.
const RESTORES: [fn(&Path, &Path); 3] = [
    // The new file usually gets the inode of the removed one.
    |backup, database| {
        remove(database);
        fs::copy(backup, database).unwrap();
    },
    // The same file with other contents.
    |backup, database| {
        fs::copy(backup, database).unwrap();
    },
    |backup, database| {
        remove(database);
        fs::rename(backup, database).unwrap();
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_whose_database_is_restored_gets_410_and_misses_nothing() {
    for restore in RESTORES {
        let env = TestEnvironment::new();
        let client = Client::new();
        let api = env.api(&[]);
        create(&client, &api, 'a', 4).await;
        let kept = ["/order?limit=2", "/event?limit=2"];
        let kept = [
            linked(&get(&client, &api, kept[0]).await),
            linked(&get(&client, &api, kept[1]).await),
        ];
        let mut stream = Events::open(&client, &api, "", None).await;
        let (second, _) = (stream.next_block().await, stream.next_block().await)
            .1
            .unwrap();
        env.run("order-service", &["backup", "backup.db"])
            .assert_code(0);
        create(&client, &api, 'b', 4).await;
        let lost = [
            linked(&get(&client, &api, "/order?limit=6").await),
            linked(&get(&client, &api, "/event?limit=6").await),
        ];
        let mut ids = Vec::new();
        for _ in 0..4 {
            ids.push(stream.next_block().await.unwrap().0);
        }
        let sixth = ids.pop().unwrap();
        assert_eq!(api.stop(), Some(0));
        restore(&env.path("backup.db"), &env.database());
        let api = env.api(&[]);
        create(&client, &api, 'c', 6).await;
        let new = ["c0", "c1", "c2", "c3", "c4", "c5"];
        let left = [&["a2", "a3"][..], &new].concat();
        for path in &kept {
            assert_eq!(walk(&client, &api, path).await, left, "{path}");
        }
        for path in &lost {
            let refused = get(&client, &api, path).await;
            assert_problem(&refused, 410);
            assert_eq!(refused.json()["type"], "/problems#removed");
            let on = linked(&refused);
            assert_eq!(walk(&client, &api, &on).await, new, "{path} {on}");
        }
        let resumed = client
            .request("GET", format!("{}/event", api.url))
            .header("accept", "text/event-stream")
            .header("last-event-id", &sixth);
        assert_problem(&client.send(resumed).await, 410);
        let mut stream = Events::open(&client, &api, "", Some(&second)).await;
        for id in left {
            assert_eq!(stream.next().await["order_id"], id);
        }
        // A bare number does not detect the restore.
        assert_eq!(
            walk(&client, &api, "/event?after=6&limit=2").await,
            new[2..]
        );
        // A restart is no restore.
        let fifth = linked(&get(&client, &api, "/event?limit=5").await);
        assert_eq!(api.stop(), Some(0));
        let api = env.api(&[]);
        assert_eq!(walk(&client, &api, &fifth).await, new[1..]);
        assert_eq!(histories(&env.database()), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_has_its_own_history_once_a_program_has_opened_it_for_writing() {
    let (env, api, client) = with_api();
    create(&client, &api, 'a', 4).await;
    let third = linked(&get(&client, &api, "/event?limit=3").await);
    assert_eq!(api.stop(), Some(0));
    let elsewhere = TestEnvironment::new();
    fs::copy(env.database(), elsewhere.database()).unwrap();
    for arguments in [&["check"][..], &["explain", "a1"]] {
        elsewhere.run("order-service", arguments).assert_code(0);
        assert_eq!(histories(&elsewhere.database()), 1, "{arguments:?}");
    }
    let there = elsewhere.api(&[]);
    let here = env.api(&[]);
    assert_eq!(histories(&elsewhere.database()), 2);
    assert_eq!(histories(&env.database()), 1);
    // Common records are read from either; records of one copy are unknown to the other.
    create(&client, &there, 't', 3).await;
    create(&client, &here, 'h', 3).await;
    assert_eq!(
        walk(&client, &there, &third).await,
        ["a3", "t0", "t1", "t2"]
    );
    assert_eq!(walk(&client, &here, &third).await, ["a3", "h0", "h1", "h2"]);
    let only_there = linked(&get(&client, &there, "/event?limit=5").await);
    let refused = get(&client, &here, &only_there).await;
    assert_problem(&refused, 410);
    let detail = refused.json()["detail"].clone();
    assert!(
        detail.as_str().unwrap().contains("by another database"),
        "{detail}"
    );
    assert_eq!(walk(&client, &here, &linked(&refused)).await.len(), 7);
    let only_here = linked(&get(&client, &here, "/event?limit=5").await);
    let refused = get(&client, &there, &only_here).await;
    assert_problem(&refused, 410);
    assert_eq!(
        walk(&client, &there, &linked(&refused)).await,
        ["t0", "t1", "t2"]
    );
    for path in ["/order?after=8", "/event?after=8"] {
        assert_problem(&get(&client, &here, path).await, 410);
    }
    elsewhere.run("order-service", &["check"]).assert_code(0);
}

//! The database from outside: what its schema refuses, what its journal holds, who may read it.

use crate::world::{lead, ready};
use order_service::order::{OrderId, Outcome, Reason, Timestamp};
use order_service::reconciler_state::ReconcilerState;
use order_service::store::{
    Change, Creation, DatabasePath, Filter, Loss, Mode, Step, Store, StoreError, Trouble,
};
use rusqlite::Connection;

use crate::world::World;

fn store(world: &World) -> Store {
    Store::open(&DatabasePath::from(world.database()), Mode::Threaded).unwrap()
}

async fn create(store: &Store, id: &str, at: i64) -> i64 {
    let id = OrderId::new(id).unwrap();
    match store.create(id, Timestamp(at)).await.unwrap() {
        Creation::Created(order) => order.seq,
        Creation::Exists(order) => panic!("{order:?} exists"),
    }
}

async fn record(store: &Store, seq: i64, steps: Vec<Step>, at: i64) -> (usize, usize) {
    let changes = steps.into_iter().map(|step| Change { seq, step }).collect();
    let recorded = store
        .record(&lead(store).await, changes, Timestamp(at))
        .await
        .unwrap();
    (recorded.changed, recorded.conflicts.len())
}

/// The journal as anyone can read it: order, from, to, reason, time.
fn journal(world: &World) -> Vec<String> {
    let db = Connection::open(world.database()).unwrap();
    let mut query = db
        .prepare(
            "SELECT concat_ws(' ', id, coalesce(from_status, '-'), to_status, reason, at) \
             FROM journal JOIN orders ON orders.seq = order_seq ORDER BY journal.seq",
        )
        .unwrap();
    let lines = query.query_map([], |row| row.get(0)).unwrap();
    lines.collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn the_journal_holds_every_change_of_a_status_and_nothing_else() {
    let world = World::new();
    let store = store(&world);
    let a1 = create(&store, "a1", 1).await;
    let a2 = create(&store, "a2", 2).await;
    let intended = Step::Intended { previous: None };
    assert_eq!(record(&store, a1, vec![intended], 3).await, (1, 0));
    assert_eq!(
        record(&store, a1, vec![Step::Started { is_seen: false }], 4).await,
        (1, 0)
    );
    let fast = vec![Step::Adopted, Step::Settled(Outcome::Failed)];
    assert_eq!(record(&store, a2, fast, 5).await, (2, 0));
    let done = Step::Settled(Outcome::Succeeded);
    assert_eq!(record(&store, a1, vec![done], 6).await, (1, 0));
    let expected = [
        "a1 - CREATED created 1",
        "a2 - CREATED created 2",
        "a1 CREATED PROCESSING started 4",
        "a2 CREATED PROCESSING adopted 5",
        "a2 PROCESSING FAILED failed 5",
        "a1 PROCESSING FULFILLED succeeded 6",
    ];
    assert_eq!(journal(&world), expected);
}

#[tokio::test]
async fn a_settled_order_never_changes_again() {
    let world = World::new();
    let store = store(&world);
    let seq = create(&store, "a1", 1).await;
    record(
        &store,
        seq,
        vec![Step::Adopted, Step::Settled(Outcome::Failed)],
        2,
    )
    .await;
    let before = ready(store.page(&Filter::default(), 0, i64::MAX, 10)).unwrap();
    let entries = journal(&world);
    for step in [
        Step::Intended { previous: None },
        Step::Started { is_seen: false },
        Step::Adopted,
        Step::Withdrawn,
        Step::Cleared,
        Step::Settled(Outcome::Succeeded),
        Step::Settled(Outcome::Failed),
    ] {
        assert_eq!(record(&store, seq, vec![step], 3).await, (0, 1));
    }
    assert_eq!(
        ready(store.page(&Filter::default(), 0, i64::MAX, 10)).unwrap(),
        before
    );
    assert_eq!(journal(&world), entries);
}

#[tokio::test]
async fn an_intent_is_replaced_only_by_one_who_knows_it() {
    let world = World::new();
    let store = store(&world);
    let seq = create(&store, "a1", 1).await;
    let intend = |previous: Option<i64>| {
        vec![Step::Intended {
            previous: previous.map(Timestamp),
        }]
    };
    assert_eq!(record(&store, seq, intend(None), 5).await, (1, 0));
    assert_eq!(record(&store, seq, intend(None), 6).await, (0, 1));
    assert_eq!(record(&store, seq, intend(Some(4)), 7).await, (0, 1));
    assert_eq!(record(&store, seq, intend(Some(5)), 8).await, (1, 0));
    assert_eq!(
        ready(store.watched()).unwrap().order(0).starts,
        2,
        "the silent one counts, and the new one"
    );
}

#[tokio::test]
async fn the_schema_refuses_impossible_rows() {
    let world = World::new();
    let store = store(&world);
    create(&store, "a1", 10).await;
    let db = Connection::open(world.database()).unwrap();
    for change in [
        "status = 'LOST'",
        "status = 'created'",
        "status = NULL",
        "status = 'PROCESSING'",
        "id = ''",
        "updated_at = created_at - 1",
        "starts = -1",
        "confirmed_at = 1",
        "process_seen = 1",
        "status = 'PROCESSING', confirmed_at = 1, process_seen = 2",
        "given_up_at = 1",
        "intent_at = 1, start_answer = 503",
        "attention = 'process_lost'",
        "attention = 'sad', attention_since = 1, attention_detail = ''",
        "status = 'FULFILLED', attempts = 1",
        "status = 'FAILED', intent_at = 1",
        "status = 'FAILED', attention = 'process_lost', attention_since = 1, attention_detail = ''",
        "created_at = 'now'",
    ] {
        let result = db.execute(&format!("UPDATE orders SET {change}"), []);
        assert!(result.is_err(), "{change}");
    }
    for entry in [
        "(1, 1, 'lost')",
        "(99, 1, 'created')",
        "(1, 'now', 'created')",
    ] {
        let insert = format!("INSERT INTO journal (order_seq, at, reason) VALUES {entry}");
        assert!(db.execute(&insert, []).is_err(), "{entry}");
    }
    let second = db.execute("INSERT INTO heartbeat (id) VALUES (2)", []);
    assert!(second.is_err(), "there is one heartbeat");
}

#[test]
fn many_may_create_and_migrate_the_same_file_at_the_same_moment() {
    for _ in 0..10 {
        let world = World::new();
        let path = DatabasePath::from(world.database());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let store = Store::open(&path, Mode::Threaded).unwrap();
                    ready(store.newest_seq()).unwrap()
                });
            }
        });
    }
}

#[tokio::test]
async fn a_start_counts_from_its_intent_until_it_is_known_to_be_none() {
    let world = World::new();
    let store = store(&world);
    let seq = create(&store, "a1", 1).await;
    let at = Timestamp(5);
    let given_up = |answer, is_counted| Step::GivenUp {
        answer,
        is_counted,
        trouble: Trouble {
            reason: Reason::UpstreamUnreachable,
            detail: "no answer".to_owned(),
            next_attempt_at: Timestamp(9),
        },
    };
    let counted = |written_at, is_counted| Step::Counted {
        written_at,
        is_counted,
    };
    let intended = || Step::Intended { previous: None };
    let again = || Step::Intended { previous: Some(at) };
    for (step, expected, starts) in [
        (intended(), (1, 0), 1),
        (Step::Withdrawn, (1, 0), 0),
        (intended(), (1, 0), 1),
        (given_up(Some(429), false), (1, 0), 0),
        (again(), (1, 0), 1),
        (given_up(Some(503), true), (1, 0), 1),
        (counted(Timestamp(4), false), (0, 1), 1),
        (counted(at, false), (1, 0), 0),
        (counted(at, true), (1, 0), 1),
        (Step::Adopted, (1, 0), 1),
        (counted(at, true), (0, 1), 1),
        (intended(), (1, 0), 2),
        (Step::Restarted { is_seen: false }, (1, 0), 2),
        (intended(), (1, 0), 3),
        (Step::Settled(Outcome::Failed), (1, 0), 3),
    ] {
        let shown = format!("{step:?}");
        let recorded = record(&store, seq, vec![step], at.0).await;
        let id = OrderId::new("a1").unwrap();
        let order = ready(store.order(&id)).unwrap().unwrap();
        assert_eq!((recorded, order.starts), (expected, starts), "{shown}");
    }
}

#[tokio::test]
async fn a_leader_whose_lock_file_was_deleted_records_nothing_once_another_leads() {
    let world = World::new();
    let (first, second) = (store(&world), store(&world));
    let seq = create(&first, "a1", 1).await;
    let adopt = || {
        let step = Step::Adopted;
        vec![Change { seq, step }]
    };
    let deposed = first.try_lead().await.unwrap().unwrap();
    assert!(second.try_lead().await.unwrap().is_none());
    std::fs::remove_file(world.path("orders.db-leader")).unwrap();
    // While there is no other lock, no one else leads.
    assert_eq!(deposed.loss(), None);
    let lead = second.try_lead().await.unwrap().unwrap();
    let before = journal(&world);
    let refused = [
        first
            .record(&deposed, adopt(), Timestamp(2))
            .await
            .map(drop),
        first
            .write_heartbeat(&deposed, ReconcilerState::default())
            .await,
    ];
    for refused in refused {
        assert!(matches!(refused, Err(StoreError::Deposed)), "{refused:?}");
    }
    assert_eq!(deposed.loss(), Some(Loss::Deposed));
    assert_eq!(journal(&world), before);
    let recorded = second.record(&lead, adopt(), Timestamp(3)).await.unwrap();
    assert_eq!(recorded.changed, 1, "it is as it was before");
    assert_eq!(lead.loss(), None);
}

//! Tests of the store on every engine: each is a function that runs once per engine, on a new database.
//! The files below have tests of single engines, except `check` and `engines`, which use all of them.

mod check;
#[cfg(feature = "postgres")]
mod engines;
#[cfg(feature = "postgres")]
mod failover;
#[cfg(feature = "postgres")]
mod leaders;
#[cfg(feature = "postgres")]
mod logins;
#[cfg(feature = "postgres")]
mod plans;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
mod sessions;
mod sqlite;

use std::pin::pin;

use futures_util::TryStreamExt;
use order_service::order::{Order, OrderId, Outcome, Reason, Timestamp};
use order_service::reconciler_state::ReconcilerState;
use order_service::store::{
    AttentionUpdate, Cursor, DatabaseUrl, Filter, Leadership, Loss, Mode, OperatorResult,
    OrderChange, Resolution, Store, StoreError, Transition,
};
use rusqlite::Connection;

use crate::environment::{TestEnvironment, lead};

/// A new database, opened by two processes.
pub struct TestDatabase {
    pub store: Store,
    pub other: Store,
    pub env: TestEnvironment,
}

/// Creates a database on one of the engines.
type Factory = fn() -> TestDatabase;

/// All engines.
const ENGINES: &[Factory] = &[
    sqlite::new_database,
    #[cfg(feature = "postgres")]
    postgres::new_database,
];

/// Runs statements in the database at an address.
pub fn execute(address: &str, sql: &str) {
    try_execute(address, sql).unwrap();
}

/// Returns the rows of a table of two columns, with an arrow between them.
pub fn rows(table: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = table.trim().lines();
    lines.map(|line| line.split_once(" -> ").unwrap())
}

fn try_execute(address: &str, sql: &str) -> Result<(), String> {
    #[cfg(feature = "postgres")]
    if address.starts_with("postgres:") {
        let (_, database) = address.rsplit_once('/').unwrap();
        let sql = format!("SET search_path = order_service; {sql}");
        let ran = crate::cluster::cluster().psql(database, &sql);
        return ran.status.success().then_some(()).ok_or(format!("{ran:?}"));
    }
    let path = address.strip_prefix("sqlite:").unwrap_or(address);
    let done = Connection::open(path).unwrap().execute_batch(sql);
    done.map_err(|error| error.to_string())
}

/// Defines tests that run the functions on each engine.
macro_rules! on_every_engine {
    ($($test:ident),* $(,)?) => {
        mod on_sqlite {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test(super::sqlite::new_database).await;
                }
            )*
        }
        #[cfg(feature = "postgres")]
        mod on_postgres {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test(super::postgres::new_database).await;
                }
            )*
        }
    };
}

on_every_engine! {
    a_stream_of_pages_ends_with_the_newest_order_of_its_first_page,
    the_journal_holds_every_change_of_a_status_and_nothing_else,
    a_settled_order_never_changes_again,
    an_intent_is_replaced_only_by_a_change_that_names_it,
    a_start_counts_from_its_intent_until_it_is_known_to_have_had_no_effect,
    the_schema_refuses_impossible_rows,
    a_maximum_of_starts_may_exceed_what_a_row_can_hold,
    an_operator_may_decide_about_each_order_whose_process_was_lost,
    a_database_that_is_only_read_refuses_every_write,
}

async fn create(store: &Store, id: &str, at: i64) -> i64 {
    crate::environment::create(store, id, Timestamp(at)).await
}

async fn record(store: &Store, seq: i64, steps: Vec<Transition>, at: i64) -> (usize, usize) {
    let changes = steps
        .into_iter()
        .map(|transition| OrderChange { seq, transition })
        .collect();
    let lead = lead(store).await;
    let recorded = lead.record(changes, Timestamp(at)).await.unwrap();
    (recorded.changed, recorded.conflicts.len())
}

/// Returns all orders.
pub async fn all(store: &Store) -> Vec<Order> {
    let pages = store.pages(Filter::default(), Cursor::default(), 1_000);
    let pages: Vec<_> = pages.try_collect().await.unwrap();
    pages.into_iter().flat_map(|(orders, _)| orders).collect()
}

/// Returns the entries of the journal as text: order, old status, new status, reason, time.
async fn journal(store: &Store) -> Vec<String> {
    let (events, _) = store.events(None, Cursor::default(), 1_000).await.unwrap();
    let lines = events.iter().map(|event| {
        let from = event.from.map_or("-", |from| from.as_str());
        let (id, to, reason) = (event.order_id.as_str(), event.to, event.reason.as_str());
        format!("{id} {from} {to} {reason} {}", event.at.0)
    });
    lines.collect()
}

async fn a_stream_of_pages_ends_with_the_newest_order_of_its_first_page(new_database: Factory) {
    let TestDatabase { store, other, .. } = &new_database();
    for n in 1..=4 {
        create(store, &format!("a{n}"), n).await;
    }
    let mut pages = pin!(store.pages(Filter::default(), Cursor::bare(1), 2));
    let mut seqs = Vec::new();
    while let Some((orders, next)) = pages.try_next().await.unwrap() {
        create(other, &format!("late{}", next.seq), 5).await;
        seqs.push((orders.iter().map(|order| order.seq).collect(), next.seq));
    }
    assert_eq!(seqs, [(vec![2, 3], 3), (vec![4], 4)]);
}

async fn the_journal_holds_every_change_of_a_status_and_nothing_else(new_database: Factory) {
    let TestDatabase { store, .. } = &new_database();
    let a1 = create(store, "a1", 1).await;
    let a2 = create(store, "a2", 2).await;
    let intended = Transition::Intended { previous: None };
    assert_eq!(record(store, a1, vec![intended], 3).await, (1, 0));
    assert_eq!(
        record(
            store,
            a1,
            vec![Transition::Started { is_observed: false }],
            4
        )
        .await,
        (1, 0)
    );
    let fast = vec![Transition::Adopted, Transition::Settled(Outcome::Failed)];
    assert_eq!(record(store, a2, fast, 5).await, (2, 0));
    let done = Transition::Settled(Outcome::Succeeded);
    assert_eq!(record(store, a1, vec![done], 6).await, (1, 0));
    let expected = [
        "a1 - CREATED created 1",
        "a2 - CREATED created 2",
        "a1 CREATED PROCESSING started 4",
        "a2 CREATED PROCESSING adopted 5",
        "a2 PROCESSING FAILED failed 5",
        "a1 PROCESSING FULFILLED succeeded 6",
    ];
    assert_eq!(journal(store).await, expected);
}

async fn a_settled_order_never_changes_again(new_database: Factory) {
    let TestDatabase { store, .. } = &new_database();
    let seq = create(store, "a1", 1).await;
    record(
        store,
        seq,
        vec![Transition::Adopted, Transition::Settled(Outcome::Failed)],
        2,
    )
    .await;
    let before = all(store).await;
    let entries = journal(store).await;
    for step in [
        Transition::Intended { previous: None },
        Transition::Started { is_observed: false },
        Transition::Adopted,
        Transition::Withdrawn,
        Transition::Cleared,
        Transition::Settled(Outcome::Succeeded),
        Transition::Settled(Outcome::Failed),
    ] {
        assert_eq!(record(store, seq, vec![step], 3).await, (0, 1));
    }
    assert_eq!(all(store).await, before);
    assert_eq!(journal(store).await, entries);
}

async fn an_intent_is_replaced_only_by_a_change_that_names_it(new_database: Factory) {
    let TestDatabase { store, .. } = &new_database();
    let seq = create(store, "a1", 1).await;
    let intend = |previous: Option<i64>| {
        vec![Transition::Intended {
            previous: previous.map(Timestamp),
        }]
    };
    assert_eq!(record(store, seq, intend(None), 5).await, (1, 0));
    assert_eq!(record(store, seq, intend(None), 6).await, (0, 1));
    assert_eq!(record(store, seq, intend(Some(4)), 7).await, (0, 1));
    assert_eq!(record(store, seq, intend(Some(5)), 8).await, (1, 0));
    assert_eq!(
        store.open_orders().await.unwrap().order(0).starts,
        2,
        "both the unanswered start and the new one count"
    );
}

async fn a_start_counts_from_its_intent_until_it_is_known_to_have_had_no_effect(
    new_database: Factory,
) {
    let TestDatabase { store, .. } = &new_database();
    let seq = create(store, "a1", 1).await;
    let at = Timestamp(5);
    let given_up = |answer_status, is_counted| Transition::GivenUp {
        answer_status,
        is_counted,
        attention: AttentionUpdate {
            reason: Reason::UpstreamUnreachable,
            detail: "no answer".to_owned(),
            next_attempt_at: Timestamp(9),
        },
    };
    let counted = |written_at, is_counted| Transition::Counted {
        written_at,
        is_counted,
    };
    let intended = || Transition::Intended { previous: None };
    let again = || Transition::Intended { previous: Some(at) };
    for (step, expected, starts) in [
        (intended(), (1, 0), 1),
        (Transition::Withdrawn, (1, 0), 0),
        (intended(), (1, 0), 1),
        (given_up(Some(429), false), (1, 0), 0),
        (again(), (1, 0), 1),
        (given_up(Some(503), true), (1, 0), 1),
        (counted(Timestamp(4), false), (0, 1), 1),
        (counted(at, false), (1, 0), 0),
        (counted(at, true), (1, 0), 1),
        (Transition::Adopted, (1, 0), 1),
        (counted(at, true), (0, 1), 1),
        (intended(), (1, 0), 2),
        (Transition::Restarted { is_observed: false }, (1, 0), 2),
        (intended(), (1, 0), 3),
        (Transition::Settled(Outcome::Failed), (1, 0), 3),
    ] {
        let shown = format!("{step:?}");
        let recorded = record(store, seq, vec![step], at.0).await;
        let id = OrderId::new("a1").unwrap();
        let order = store.find(&id).await.unwrap().unwrap().order;
        assert_eq!((recorded, order.starts), (expected, starts), "{shown}");
    }
}

async fn the_schema_refuses_impossible_rows(new_database: Factory) {
    let TestDatabase { store, .. } = &new_database();
    create(store, "a1", 10).await;
    execute(&store.info().address, "UPDATE orders SET starts = 0");
    let changes = [
        "status = 'LOST'",
        "status = 'created'",
        "status = NULL",
        "status = 'PROCESSING'",
        "id = ''",
        "updated_at = created_at - 1",
        "starts = -1",
        "confirmed_at = 1",
        "process_seen = true",
        "given_up_at = 1",
        "intent_at = 1, start_answer = 503",
        "attention = 'process_lost'",
        "attention = 'sad', attention_since = 1, attention_detail = ''",
        "status = 'FULFILLED', attempts = 1",
        "status = 'FAILED', intent_at = 1",
        "status = 'FAILED', attention = 'process_lost', attention_since = 1, attention_detail = ''",
        "created_at = 'now'",
    ];
    let changes = changes.map(|change| format!("UPDATE orders SET {change}"));
    let rows = [
        "INSERT INTO journal (seq, order_seq, at, reason) VALUES (2, 1, 1, 'lost')".to_owned(),
        "INSERT INTO heartbeat (id) VALUES (2)".to_owned(),
    ];
    for sql in changes.into_iter().chain(rows) {
        assert!(try_execute(&store.info().address, &sql).is_err(), "{sql}");
    }
}

/// Only SQLite's lock can be removed without its holder noticing.
#[tokio::test]
async fn a_deposed_leader_records_nothing() {
    let database = sqlite::new_database();
    let (first, second) = (&database.store, &database.other);
    let seq = create(first, "a1", 1).await;
    let deposed = first.try_lead().await.unwrap().unwrap();
    assert!(second.try_lead().await.unwrap().is_none());
    database.break_lock();
    // Until there is another lock, it still leads.
    assert_eq!(deposed.loss(), None);
    let lead = second.try_lead().await.unwrap().unwrap();
    assert_deposed(first, [&deposed, &lead], seq).await;
}

/// Checks that a deposed leader records nothing, and that its successor does.
async fn assert_deposed(store: &Store, [deposed, lead]: [&Leadership; 2], seq: i64) {
    let adopt = || {
        let transition = Transition::Adopted;
        vec![OrderChange { seq, transition }]
    };
    let before = journal(store).await;
    let refused = [
        deposed.record(adopt(), Timestamp(2)).await.map(drop),
        deposed.write_heartbeat(ReconcilerState::default()).await,
    ];
    for refused in refused {
        assert!(matches!(refused, Err(StoreError::Deposed)), "{refused:?}");
    }
    assert_eq!(deposed.loss(), Some(Loss::Deposed));
    let said = Loss::Deposed.to_string();
    assert!(
        said.contains("moved to another database"),
        "a copy deposes too: {said}"
    );
    assert_eq!(journal(store).await, before);
    let recorded = lead.record(adopt(), Timestamp(3)).await.unwrap();
    assert_eq!(recorded.changed, 1, "the deposed leader changed nothing");
    assert_eq!(lead.loss(), None);
}

async fn a_maximum_of_starts_may_exceed_what_a_row_can_hold(new_database: Factory) {
    let TestDatabase { store, .. } = &new_database();
    create(store, "a1", 1).await;
    execute(
        &store.info().address,
        "UPDATE orders SET starts = 2147483647, attempts = 1, attention = 'max_starts', \
         attention_since = 1, attention_detail = ''",
    );
    for (max_starts, may_start) in [(2_147_483_647, false), (u32::MAX, true)] {
        let has_work = store.has_work(Timestamp(2), max_starts).await;
        assert_eq!(has_work.unwrap(), may_start);
        let found = store.startable(Timestamp(2), max_starts, true, 0, 10).await;
        assert_eq!(found.unwrap().len(), usize::from(may_start));
    }
}

async fn an_operator_may_decide_about_each_order_whose_process_was_lost(new_database: Factory) {
    let database = new_database();
    let store = &database.store;
    let update = |reason| AttentionUpdate {
        reason,
        detail: String::new(),
        next_attempt_at: Timestamp(9),
    };
    let failed = || Transition::Delayed(update(Reason::UpstreamUnreachable));
    let flagged = |reason| Transition::Flagged(update(reason));
    let missed = || Transition::Missed {
        began_at: Timestamp(3),
    };
    let given_up = || Transition::GivenUp {
        answer_status: None,
        is_counted: true,
        attention: update(Reason::UpstreamUnreachable),
    };
    let intended = || Transition::Intended { previous: None };
    let (restart, fail) = (Resolution::Restart, Resolution::Fail);
    let cases = [
        ("missed", vec![missed()], true, true),
        ("held", vec![flagged(Reason::ProcessLost)], true, true),
        ("worn", vec![flagged(Reason::MaxStarts)], true, true),
        ("missed, silent", vec![missed(), failed()], true, true),
        (
            "missed, refused",
            vec![missed(), flagged(Reason::StartRefused)],
            true,
            false,
        ),
        (
            "missed, odd",
            vec![missed(), flagged(Reason::UnknownStatus)],
            false,
            false,
        ),
        (
            "missed, odd, silent",
            vec![missed(), flagged(Reason::UnknownStatus), failed()],
            false,
            false,
        ),
        (
            "missed, started",
            vec![missed(), intended(), given_up()],
            false,
            false,
        ),
        ("silent", vec![failed()], false, false),
    ];
    for (id, steps, may_restart, may_fail) in cases {
        for (resolution, may) in [(restart, may_restart), (fail, may_fail)] {
            let name = format!("{id}, {resolution:?}");
            let seq = create(store, &name, 1).await;
            record(store, seq, vec![Transition::Adopted], 2).await;
            record(store, seq, steps.clone(), 4).await;
            let open = store.open_orders().await.unwrap();
            let order = open.order(open.index_of(seq).unwrap());
            assert_eq!(order.is_lost(), may_restart, "{name}: {order:?}");
            let id = OrderId::new(&*name).unwrap();
            let resolved = store.resolve(id, resolution, Timestamp(5)).await.unwrap();
            assert_eq!(
                matches!(resolved, OperatorResult::Done),
                may,
                "{name}: {resolved:?}"
            );
        }
    }
}

async fn a_database_that_is_only_read_refuses_every_write(new: Factory) {
    let TestDatabase {
        store, env: _env, ..
    } = new();
    create(&store, "a", 1).await;
    let address: DatabaseUrl = store.info().address.parse().unwrap();
    let store = Store::open(&address, Mode::ReadOnly).unwrap();
    let refused = store.check_writable(Timestamp(2)).await;
    assert!(
        matches!(refused, Err(StoreError::Unwritable(_))),
        "{refused:?}"
    );
    assert_eq!(all(&store).await.len(), 1);
}

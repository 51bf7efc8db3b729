//! The account: its counts, and the exit code that follows from it.

use std::time::Duration;

use order_service::account::{self, Account, LIST_TIMEOUT};
use order_service::decide::LostProcess::{self, Hold, Restart};
use order_service::order::{Observed, OrderId, Outcome, Reason, Timestamp};
use order_service::process::Exit;
use order_service::store::{AttentionUpdate, Store, Transition};
use order_service::upstream::{Cause, Entry, Failure, StartError, Upstream};

use crate::environment::{PATIENCE, TestEnvironment, create, ready, record};

/// An upstream that serves only its list, which may break off at the end.
struct Lists {
    processes: Vec<(&'static str, &'static str)>,
    is_whole: bool,
    is_endless: bool,
}

impl Upstream for Lists {
    async fn start(&self, id: &OrderId) -> Result<(), StartError> {
        panic!("an account starts nothing, but got {id:?}");
    }

    async fn look_up(&self, id: &OrderId) -> Result<Observed, Failure> {
        panic!("an account looks up nothing, but got {id:?}");
    }

    async fn list(&self, mut on_entry: impl FnMut(Entry<'_>)) -> Result<u64, Failure> {
        for (order_id, status) in &self.processes {
            on_entry(Entry {
                order_id: (*order_id).into(),
                status: (*status).into(),
            });
            // Entries come in several chunks.
            tokio::task::yield_now().await;
        }
        if self.is_endless {
            std::future::pending::<()>().await;
        }
        match self.is_whole {
            true => Ok(self.processes.len() as u64),
            false => Err(Failure::new("it broke off", Cause::Unusable)),
        }
    }
}

/// Creates an order and records these transitions.
async fn order(store: &Store, id: &str, steps: Vec<Transition>) {
    let seq = create(store, id, Timestamp(1)).await;
    let changes = steps.into_iter().map(|step| (seq, step));
    record(store, changes, Timestamp(2)).await;
}

/// Creates one CREATED order, two PROCESSING, one FULFILLED and one FAILED.
async fn orders(store: &Store) {
    let settled = |outcome| vec![Transition::Adopted, Transition::Settled(outcome)];
    order(store, "new", vec![]).await;
    order(store, "runs", vec![Transition::Adopted]).await;
    order(store, "spent", vec![Transition::Adopted]).await;
    order(store, "good", settled(Outcome::Succeeded)).await;
    order(store, "bad", settled(Outcome::Failed)).await;
}

async fn taken(
    store: &Store,
    policy: LostProcess,
    processes: &[(&'static str, &'static str)],
    is_whole: bool,
) -> (Account, Exit) {
    let processes = processes.to_vec();
    let upstream = Lists {
        processes,
        is_whole,
        is_endless: false,
    };
    let account = account::take(store, &upstream, LIST_TIMEOUT, policy, None);
    let account = account.await.unwrap();
    assert_eq!((account.acknowledged, account.open), (5, 3));
    assert_eq!(account.settled, 2);
    let exit = account.exit();
    (account, exit)
}

const RUN: [(&str, &str); 2] = [("runs", "RUNNING"), ("spent", "SUCCEEDED")];

#[tokio::test]
async fn open_orders_and_lost_ones_to_be_restarted_are_clean() {
    let env = TestEnvironment::in_memory();
    let store = env.store();
    orders(&store).await;
    let all = [&RUN[..], &[("good", "SUCCEEDED"), ("bad", "FAILED")]].concat();
    // Processes of other clients do not count.
    let all = [&all[..], &[("theirs", "DANCING")]].concat();
    for (processes, lost) in [(&all[..], 0), (&RUN[..1], 1), (&[], 2)] {
        let (account, exit) = taken(&store, Restart, processes, true).await;
        let Account {
            disagreeing,
            unknown,
            held,
            ..
        } = account;
        assert_eq!((disagreeing, unknown, held), (0, 0, Some(0)));
        assert_eq!((account.lost, exit), (Some(lost), Exit::Done));
    }
}

#[tokio::test]
async fn lost_orders_that_wait_for_an_operator_are_not_clean() {
    let env = TestEnvironment::in_memory();
    let store = env.store();
    orders(&store).await;
    let (account, exit) = taken(&store, Hold, &RUN[..1], true).await;
    assert_eq!((account.lost, account.held), (Some(1), Some(1)));
    assert_eq!(exit, Exit::Unclean);
    let (account, exit) = taken(&store, Hold, &RUN, true).await;
    assert_eq!((account.held, exit), (Some(0), Exit::Done));
    // Under every policy, an order at its maximum number of starts is not started again.
    let update = AttentionUpdate {
        reason: Reason::MaxStarts,
        detail: "enough".to_owned(),
        next_attempt_at: Timestamp(3),
    };
    let spent = ready(store.find(&OrderId::new("spent").unwrap())).unwrap();
    let change = (spent.unwrap().order.seq, Transition::Flagged(update));
    record(&store, [change], Timestamp(3)).await;
    let (account, exit) = taken(&store, Restart, &RUN[..1], true).await;
    assert_eq!((account.lost, account.held), (Some(1), Some(1)));
    assert_eq!(exit, Exit::Unclean);
}

#[tokio::test]
async fn an_outcome_that_the_upstream_contradicts_is_not_clean() {
    let env = TestEnvironment::in_memory();
    let store = env.store();
    orders(&store).await;
    for said in ["FAILED", "RUNNING"] {
        let processes = [&RUN[..], &[("good", said)]].concat();
        let (account, exit) = taken(&store, Restart, &processes, true).await;
        assert_eq!((account.disagreeing, account.unknown), (1, 0), "{said}");
        assert_eq!(exit, Exit::Unclean);
    }
}

#[tokio::test]
async fn orders_that_the_upstream_did_not_report_are_unknown() {
    let env = TestEnvironment::in_memory();
    let store = env.store();
    orders(&store).await;
    // An unknown status counts as no answer.
    let processes = [RUN[0], ("spent", "PAUSED"), ("good", "PAUSED")];
    let (account, exit) = taken(&store, Restart, &processes, true).await;
    assert_eq!((account.disagreeing, account.lost), (0, Some(0)));
    assert_eq!((account.unknown, exit), (2, Exit::Unclean));
    // The part of a list that was read before it broke off counts.
    for (processes, unknown) in [(&[][..], 4), (&RUN, 2), (&[("good", "SUCCEEDED")], 3)] {
        let (account, exit) = taken(&store, Restart, processes, false).await;
        assert_eq!((account.disagreeing, account.lost), (0, None));
        assert_eq!((account.unknown, exit), (unknown, Exit::Upstream));
    }
    let (account, exit) = taken(&store, Restart, &[("good", "FAILED")], false).await;
    assert_eq!((account.disagreeing, account.unknown), (1, 3));
    assert_eq!(exit, Exit::Unclean);
}

#[tokio::test]
async fn a_list_that_does_not_end_is_cut_off() {
    let env = TestEnvironment::in_memory();
    let store = env.store();
    orders(&store).await;
    let upstream = Lists {
        processes: vec![("good", "FAILED")],
        is_whole: true,
        is_endless: true,
    };
    let account = account::take(&store, &upstream, Duration::from_millis(50), Restart, None);
    let account = tokio::time::timeout(PATIENCE, account).await;
    let account = account.expect("it ends").unwrap();
    // What came before counts.
    assert_eq!((account.disagreeing, account.lost), (1, None));
    assert_eq!(account.unknown, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_creates_nothing_beside_the_database() {
    let env = TestEnvironment::new();
    let store = env.store();
    create(&store, "a1", Timestamp(1)).await;
    store.checkpoint().await;
    let url = env.database_url();
    let account = || {
        let upstream = ["--order-process-url", "http://127.0.0.1:9"];
        let arguments = [&["account", "--database-url", &url], &upstream[..]].concat();
        // The upstream is absent, so there is no list.
        let ran = env.run("order-service", &arguments).assert_code(4);
        assert!(ran.stdout.contains("acknowledged           1"), "{ran:?}");
    };
    account();
    drop(store);
    for suffix in ["turn", "write"] {
        let _ = std::fs::remove_file(env.path(&format!("orders.db-{suffix}")));
    }
    account();
    for suffix in ["turn", "write"] {
        let path = env.path(&format!("orders.db-{suffix}"));
        assert!(!path.exists(), "{}", path.display());
    }
}

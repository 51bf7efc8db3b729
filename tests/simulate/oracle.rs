//! The oracle, which checks the invariants. It receives the real requests, effects and answers, and reads
//! the rows of `database`. It shares no code with the reconciler.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use order_service::order::{Observed, Timestamp};
use order_service::upstream::StartError;

use crate::database::Database;

/// The facts about one order.
#[derive(Debug, Default)]
struct OrderFacts {
    status: String,
    /// A start whose outcome was neither answered nor observed.
    open_start: Option<OpenStart>,
    /// Number of starts that the upstream accepted, in all its incarnations.
    accepted: u32,
    /// Number of accepted starts that were answered with a server error, or by another service.
    accepted_in_doubt: u32,
    /// Final statuses that answers have shown.
    outcomes: BTreeSet<&'static str>,
    /// Time of the last answer that showed a process or accepted a start.
    seen_at: Option<Timestamp>,
    /// Set once a poll has shown a process of the order.
    was_observed: bool,
    /// Time of the answer to the last accepted start.
    confirmed_at: Option<Timestamp>,
    /// Set if a complete answer lacked a process that was known before, and that even a read which lags
    /// by one request timeout would have found.
    was_absent: bool,
    /// Set if an answer after its last start showed a process of an earlier incarnation.
    is_seen_late: bool,
    /// Begin of the last look-up of this order that found no process.
    absent_by_look_up_at: Option<Timestamp>,
    restart_requested: bool,
    is_failed_by_operator: bool,
}

#[derive(Debug)]
struct OpenStart {
    sent_at: Timestamp,
    given_up_at: Option<Timestamp>,
}

pub struct Oracle {
    orders: BTreeMap<String, OrderFacts>,
    request_timeout: Duration,
    journal_seq: i64,
    /// The committed rows.
    db: Option<Box<dyn Database>>,
    pub policy: &'static str,
    pub max_starts: u32,
    pub second_starts_in_an_incarnation: u64,
    /// Orders with a process in this incarnation, and those among them whose start took effect before its
    /// timeout.
    with_process: BTreeSet<String>,
    with_process_in_time: BTreeSet<String>,
}

/// The arrival of a start at the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Before its timeout.
    InTime,
    /// Up to one request timeout after its timeout.
    Late,
}

impl Oracle {
    pub fn new(request_timeout: Duration) -> Self {
        Self {
            orders: BTreeMap::new(),
            request_timeout,
            journal_seq: 0,
            db: None,
            policy: "restart",
            max_starts: 5,
            second_starts_in_an_incarnation: 0,
            with_process: BTreeSet::new(),
            with_process_in_time: BTreeSet::new(),
        }
    }

    pub fn read_from(&mut self, db: impl Database + 'static) {
        self.db = Some(Box::new(db));
    }

    fn db(&self) -> &dyn Database {
        self.db.as_deref().unwrap()
    }

    /// Records that the creation of an order was acknowledged.
    pub fn on_acknowledged(&mut self, id: &str) {
        self.orders.entry(id.to_owned()).or_default();
    }

    pub fn on_restart_requested(&mut self, id: &str) {
        self.orders.get_mut(id).unwrap().restart_requested = true;
    }

    pub fn on_failed_by_operator(&mut self, id: &str) {
        self.orders.get_mut(id).unwrap().is_failed_by_operator = true;
    }

    pub fn on_incarnation_end(&mut self, _at: Timestamp) {
        self.with_process.clear();
        self.with_process_in_time.clear();
    }

    pub fn on_accepted(&mut self, id: &str, arrival: Arrival) {
        if let Some(order) = self.orders.get_mut(id) {
            order.accepted += 1;
        }
        if !self.with_process.insert(id.to_owned()) {
            self.second_starts_in_an_incarnation += 1;
        }
        if arrival == Arrival::InTime {
            self.with_process_in_time.insert(id.to_owned());
        }
    }

    /// Records that the last accepted start is answered with a server error, or by another service.
    pub fn on_accepted_in_doubt(&mut self, id: &str) {
        self.orders.get_mut(id).unwrap().accepted_in_doubt += 1;
    }

    /// Returns the number of accepted starts of each order.
    pub fn starts(&self) -> Vec<u32> {
        self.orders.values().map(|order| order.accepted).collect()
    }

    /// Returns the orders that may be started now, either those with a failed attempt or the others.
    pub fn due(&self, now: Timestamp, has_failed: bool) -> BTreeSet<i64> {
        let due = self.db().due(now, has_failed, self.max_starts);
        due.into_iter().collect()
    }

    /// Checks a start that is sent: its intent is committed, every earlier start has an outcome, and there is
    /// no process, except one whose start took effect after its timeout.
    pub fn on_start_sent(&mut self, id: &str, now: Timestamp) {
        let intent = self.db().intent_at(id);
        assert!(
            intent.is_some(),
            "a start of {id} was sent without an intent"
        );
        assert!(
            !self.with_process_in_time.contains(id),
            "a start of {id} was sent although it has a process"
        );
        let order = self.orders.entry(id.to_owned()).or_default();
        assert!(
            order.open_start.is_none(),
            "a start of {id} was sent at {now:?} while an earlier one had no outcome: {order:?}"
        );
        order.open_start = Some(OpenStart {
            sent_at: now,
            given_up_at: None,
        });
        order.is_seen_late = false;
    }

    pub fn on_start_answered(&mut self, id: &str, result: &Result<(), StartError>, now: Timestamp) {
        let order = self.orders.get_mut(id).unwrap();
        match result {
            Ok(()) => {
                order.open_start = None;
                (order.seen_at, order.confirmed_at) = (Some(now), Some(now));
                order.absent_by_look_up_at = None;
            }
            Err(StartError::Unavailable(_)) => order.open_start = None,
            Err(StartError::Ambiguous { .. } | StartError::Unconfirmed { .. }) => {
                if let Some(start) = &mut order.open_start {
                    start.given_up_at = Some(now);
                }
            }
            // Answered: a look-up may follow at once.
            Err(StartError::Refused { .. }) => order.open_start = None,
        }
    }

    /// Records the status of an order in an answer.
    pub fn on_observed(
        &mut self,
        id: &str,
        observed: &Observed,
        began_at: Timestamp,
        is_look_up: bool,
    ) {
        // The program's clock follows the drift of the machine's, by a thousandth of the time at most.
        let timeout = self.request_timeout.mul_f64(0.999) - Duration::from_millis(1);
        let Some(order) = self.orders.get_mut(id) else {
            return;
        };
        match observed {
            Observed::Absent => {
                let confirmed_at = order.confirmed_at.map(|at| at.after(timeout));
                let known_at = confirmed_at.or(order.seen_at);
                order.was_absent |= known_at.is_some_and(|known_at| began_at >= known_at);
                if is_look_up {
                    order.absent_by_look_up_at = Some(began_at);
                }
                // Only a poll that began a whole timeout later is evidence.
                let start = order.open_start.as_ref();
                let last = start.map(|start| start.given_up_at.unwrap_or(start.sent_at));
                if last.is_some_and(|last| began_at < last.after(timeout)) {
                    return;
                }
            }
            Observed::Succeeded => drop(order.outcomes.insert("FULFILLED")),
            Observed::Failed => drop(order.outcomes.insert("FAILED")),
            Observed::Running | Observed::Unrecognised(_) => {}
        }
        if *observed != Observed::Absent {
            order.was_observed = true;
            order.is_seen_late |= !self.with_process.contains(id);
            order.seen_at = order.seen_at.max(Some(began_at));
        }
        // A poll that began before a start was sent is no evidence about it.
        order.open_start.take_if(|start| began_at >= start.sent_at);
    }

    /// Records a list, complete or not.
    pub fn on_listed(
        &mut self,
        processes: &[(String, &'static str)],
        is_complete: bool,
        began_at: Timestamp,
    ) {
        let mut statuses: HashMap<&str, Option<Observed>> = HashMap::new();
        for (id, status) in processes {
            let observed = Some(Observed::of_status(status));
            statuses
                .entry(id)
                .and_modify(|earlier| {
                    if *earlier != observed {
                        *earlier = None;
                    }
                })
                .or_insert(observed);
        }
        let ids: Vec<String> = self.orders.keys().cloned().collect();
        for id in ids {
            match statuses.get(id.as_str()) {
                Some(Some(observed)) => self.on_observed(&id, observed, began_at, false),
                Some(None) => {}
                None if is_complete => self.on_observed(&id, &Observed::Absent, began_at, false),
                None => {}
            }
        }
    }

    /// Checks the new changes of the journal, and all orders.
    pub fn check(&mut self) {
        for (seq, id, from, to, reason) in self.db().entries(self.journal_seq) {
            assert_eq!(seq, self.journal_seq + 1, "the journal has a gap");
            self.journal_seq = seq;
            self.check_change(&id, from.as_deref(), &to, &reason);
        }
        self.check_orders();
    }

    fn check_change(&mut self, id: &str, from: Option<&str>, to: &str, reason: &str) {
        // An order whose creation was not acknowledged may exist all the same.
        let policy = self.policy;
        let order = self.orders.entry(id.to_owned()).or_default();
        assert_eq!(
            from.unwrap_or(""),
            order.status,
            "{id}: {reason} from another status"
        );
        let is_lost = || {
            order
                .absent_by_look_up_at
                .is_some_and(|absent| order.seen_at.is_none_or(|seen| absent >= seen))
        };
        match reason {
            "created" => assert_eq!(to, "CREATED"),
            "started" | "adopted" => {
                assert!(
                    order.seen_at.is_some(),
                    "{id}: {reason} although no answer showed a process: {order:?}"
                );
            }
            "succeeded" | "failed" => {
                assert!(
                    order.outcomes.contains(to),
                    "{id} is {to}, which no answer showed: {order:?}"
                );
            }
            "restarted" => {
                assert!(
                    policy == "restart" || order.restart_requested,
                    "{id}: {reason} by {policy}"
                );
                assert!(
                    order.accepted > 1 || order.is_seen_late,
                    "{id} was not accepted again: {order:?}"
                );
            }
            "failed_by_policy" => {
                assert_eq!(policy, "fail", "{id}");
                assert!(
                    is_lost(),
                    "{id} was failed although no look-up had found its process missing: {order:?}"
                );
                assert!(
                    order.was_observed,
                    "{id}: no poll saw its process: {order:?}"
                );
            }
            "failed_by_operator" => assert!(order.is_failed_by_operator, "{id}"),
            other => panic!("{id}: unknown reason {other}"),
        }
        order.status = to.to_owned();
    }

    fn check_orders(&mut self) {
        let mut found = 0;
        for (id, status, _, attention) in self.db().orders() {
            let order = self
                .orders
                .get(&id)
                .unwrap_or_else(|| panic!("{id} is unknown to the oracle"));
            assert_eq!(order.status, status, "{id} changed without the journal");
            if attention.as_deref() == Some("process_lost") {
                assert!(
                    order.was_absent,
                    "{id}: no answer ever lacked its process: {order:?}"
                );
            }
            found += 1;
        }
        assert_eq!(found, self.orders.len(), "an acknowledged order is lost");
    }

    /// Checks the invariants at the end of a run: open orders are held.
    pub fn check_end(&mut self) {
        for (id, status, starts, attention) in self.db().orders() {
            let order = &self.orders[&id];
            // Such a start whose process was forgotten unnoticed is not counted.
            let is_strict = self.max_starts == 1;
            let unknown = if is_strict {
                0
            } else {
                order.accepted_in_doubt
            };
            assert!(
                !is_strict || order.accepted <= 1 || order.restart_requested,
                "{id} was started twice: {order:?}"
            );
            assert!(
                starts + unknown >= order.accepted,
                "{id} counts too few starts: {starts}, {order:?}"
            );
            if !matches!(status.as_str(), "FULFILLED" | "FAILED") {
                let is_held = match attention.as_deref() {
                    Some("max_starts") => starts >= self.max_starts,
                    Some("process_lost") => self.policy != "restart",
                    _ => false,
                };
                assert!(
                    is_held,
                    "{id} stays {status} with attention {attention:?}: {order:?}"
                );
            }
        }
        assert_eq!(self.second_starts_in_an_incarnation, 0);
    }
}

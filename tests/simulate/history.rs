//! The upstream's recent history, from which lagging reads are answered.

use std::collections::HashMap;
use std::time::Duration;

use order_service::order::Timestamp;
use order_service::simulator::model::{Draw, Model};

/// Start times of the processes of one incarnation.
type StartTimes = HashMap<String, Timestamp>;

/// An incarnation that has ended.
struct EndedIncarnation {
    at: Timestamp,
    model: Model,
    start_times: StartTimes,
}

/// The incarnations that ended lately, and the start times of the present one.
pub struct UpstreamHistory {
    /// Maximum lag of a read.
    max_lag: Duration,
    ended: Vec<EndedIncarnation>,
    start_times: StartTimes,
}

impl UpstreamHistory {
    pub fn new(max_lag: Duration) -> Self {
        Self {
            max_lag,
            ended: Vec::new(),
            start_times: StartTimes::new(),
        }
    }

    /// Records that a process has begun.
    pub fn on_start(&mut self, id: &str, now: Timestamp) {
        self.start_times.insert(id.to_owned(), now);
    }

    /// Records that the present incarnation has ended.
    pub fn on_end(&mut self, model: Model, now: Timestamp) {
        let max_lag = self.max_lag;
        self.ended.retain(|ended| ended.at.after(max_lag) >= now);
        self.ended.push(EndedIncarnation {
            at: now,
            model,
            start_times: std::mem::take(&mut self.start_times),
        });
    }

    /// Returns the status of a process as of `at`. `present` is the present incarnation.
    pub fn look_up(&self, present: &Model, id: &str, at: Timestamp) -> Option<&'static str> {
        let (model, start_times) = self.incarnation(present, at);
        let has_begun = start_times.get(id).is_some_and(|began| *began <= at);
        model.look_up(id, at).filter(|_| has_begun)
    }

    /// Returns the list as of `at`.
    pub fn list(
        &self,
        present: &Model,
        at: Timestamp,
        draw: &mut Draw,
    ) -> Vec<(String, &'static str)> {
        let (model, start_times) = self.incarnation(present, at);
        let mut list = model.list(at, draw);
        list.retain(|(id, _)| start_times[id] <= at);
        list
    }

    fn incarnation<'a>(&'a self, present: &'a Model, at: Timestamp) -> (&'a Model, &'a StartTimes) {
        let ended = self.ended.iter().find(|ended| at < ended.at);
        ended.map_or((present, &self.start_times), |ended| {
            (&ended.model, &ended.start_times)
        })
    }
}

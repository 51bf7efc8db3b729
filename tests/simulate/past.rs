//! The upstream's recent past: reads that lag are answered as of a moment in it.

use std::collections::HashMap;
use std::time::Duration;

use order_service::order::Timestamp;
use order_service::simulator::model::{Draw, Model};

/// The beginnings of the processes of one life.
type Beginnings = HashMap<String, Timestamp>;

/// A life that has ended.
struct Ended {
    at: Timestamp,
    model: Model,
    beginnings: Beginnings,
}

/// Lives that have ended lately, and the beginnings of the processes of the present one.
pub struct Past {
    /// The longest time by which a read lags.
    reach: Duration,
    ended: Vec<Ended>,
    beginnings: Beginnings,
}

impl Past {
    pub fn new(reach: Duration) -> Self {
        Self {
            reach,
            ended: Vec::new(),
            beginnings: Beginnings::new(),
        }
    }

    /// A process has begun.
    pub fn on_start(&mut self, id: &str, now: Timestamp) {
        self.beginnings.insert(id.to_owned(), now);
    }

    /// The present life has ended.
    pub fn on_end(&mut self, model: Model, now: Timestamp) {
        let reach = self.reach;
        self.ended.retain(|ended| ended.at.after(reach) >= now);
        self.ended.push(Ended {
            at: now,
            model,
            beginnings: std::mem::take(&mut self.beginnings),
        });
    }

    /// The status of a process as of a moment. `present` is the present life.
    pub fn look_up(&self, present: &Model, id: &str, at: Timestamp) -> Option<&'static str> {
        let (model, beginnings) = self.life(present, at);
        let has_begun = beginnings.get(id).is_some_and(|began| *began <= at);
        model.look_up(id, at).filter(|_| has_begun)
    }

    /// The list as of a moment.
    pub fn list(
        &self,
        present: &Model,
        at: Timestamp,
        draw: &mut Draw,
    ) -> Vec<(String, &'static str)> {
        let (model, beginnings) = self.life(present, at);
        let mut list = model.list(at, draw);
        list.retain(|(id, _)| beginnings[id] <= at);
        list
    }

    fn life<'a>(&'a self, present: &'a Model, at: Timestamp) -> (&'a Model, &'a Beginnings) {
        let ended = self.ended.iter().find(|ended| at < ended.at);
        ended.map_or((present, &self.beginnings), |ended| {
            (&ended.model, &ended.beginnings)
        })
    }
}

//! The torture on PostgreSQL: two APIs and two reconcilers on a primary and two standbys, one of which has
//! each commit before it is acknowledged. Programs and servers are killed, stopped, cut off and promoted.
//!
//! No cluster manager takes part: the torture promotes as one would. It ends or fences the primary, promotes
//! the standby that has received most, and makes the others follow it.

mod programs;
mod servers;

use std::collections::BTreeMap;

pub use self::programs::Programs;
pub use self::servers::Servers;

/// The plan of a run.
#[derive(Clone, Copy, Debug)]
pub enum Plan {
    /// Random faults, for this many minutes.
    Minutes(f64),
    /// This many kills of the primary, and then as many promotions, under a steady load.
    Failovers(u32),
}

/// Numbers of injected faults, by name.
#[derive(Default)]
pub struct Injected(BTreeMap<&'static str, u64>);

impl Injected {
    fn add(&mut self, name: &'static str) {
        *self.0.entry(name).or_default() += 1;
    }

    pub fn summary(&self) -> String {
        let each: Vec<_> = self
            .0
            .iter()
            .map(|(name, n)| format!("{name} {n}"))
            .collect();
        each.join(", ")
    }
}

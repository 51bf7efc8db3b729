//! Faults that are injected on purpose, and their chances.
//!
//! Pure: the time and the randomness come in. What a fault does to an answer is in
//! `faults/fault.rs`; `simulator` does to connections what a fault says; how the real service dies
//! is in `crash`.

mod fault;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::fault::Fault;
use super::crash::happens;
use super::model::{Asked, Draw};
use crate::order::Timestamp;

/// The faults to inject, and their chances.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Of starts.
    pub start: Chances,
    /// Of look-ups.
    pub look_up: Chances,
    /// Of lists.
    pub list: Chances,
    /// Times in which nothing works.
    pub outage: Outage,
    /// Crashes.
    pub crash: Crash,
}

/// The chance of each fault at a request, from 0 to 1. One that is not named does not happen.
pub type Chances = BTreeMap<Fault, f64>;

/// A time in which nothing works, again and again. Every request is answered 503, reset or never
/// answered, and has no effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outage {
    /// From the beginning of one to that of the next, in milliseconds; 0 for none. They are counted
    /// from the beginning of 1970, so that they depend on nothing but the clock.
    pub every_ms: u64,
    /// Duration of each, in milliseconds.
    pub lasts_ms: u64,
}

impl Outage {
    fn is_on(&self, now: Timestamp) -> bool {
        self.every_ms > 0 && now.0.unsigned_abs() % self.every_ms < self.lasts_ms
    }
}

/// Crashes of the service, in which it forgets everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Crash {
    /// Time from the first start of a life to its end, in milliseconds. The lives take turns; without
    /// any of these they do not end this way.
    pub lives_ms: Vec<u64>,
    /// As the real one does: when a process completes while another request is served, and most
    /// often while the map of processes grows.
    pub like_the_real_one: bool,
    /// Time in which connections are refused until it runs again, in milliseconds.
    pub restart_after_ms: u64,
}

impl Default for Crash {
    /// No crashes; after one that is asked for, a container is up again after a second.
    fn default() -> Self {
        Self {
            lives_ms: Vec::new(),
            like_the_real_one: false,
            restart_after_ms: 1_000,
        }
    }
}

impl Crash {
    /// The end of the life of this number, which began to work at `started`.
    pub fn end_of_life(&self, number: usize, started: Timestamp) -> Option<Timestamp> {
        let turn = number.checked_rem(self.lives_ms.len())?;
        Some(started.after(Duration::from_millis(self.lives_ms[turn])))
    }
}

impl Faults {
    /// The names of the presets.
    pub const PRESETS: [&str; 4] = ["calm", "flaky", "crashing", "outage"];

    /// A configuration by its name.
    ///
    /// - `calm`: nothing goes wrong.
    /// - `flaky`: a network and a gateway on a bad day. Nothing is forgotten.
    /// - `crashing`: it dies as the real one does, and two or twenty seconds after its first start,
    ///   in turn.
    /// - `outage`: nothing works in the first 20 seconds of each minute of the clock.
    pub fn preset(name: &str) -> Option<Self> {
        match name {
            "calm" => Some(Self::default()),
            "flaky" => Some(Self::flaky()),
            "crashing" => Some(Self {
                crash: Crash {
                    // Before the first processes have ended; then, so that all come to an end that last
                    // some seconds, long after.
                    lives_ms: vec![2_000, 20_000],
                    like_the_real_one: true,
                    ..Crash::default()
                },
                ..Self::default()
            }),
            "outage" => Some(Self {
                outage: Outage {
                    every_ms: 60_000,
                    lasts_ms: 20_000,
                },
                ..Self::default()
            }),
            _ => None,
        }
    }

    /// One request in four to six fails, each in a way that a client can survive.
    fn flaky() -> Self {
        let all = [
            (Fault::AnswerLost, 0.03),
            (Fault::Reset, 0.03),
            (Fault::NeverAnswered, 0.005),
            (Fault::Ignored, 0.005),
            (Fault::SlowHeaders, 0.03),
            (Fault::InternalError, 0.02),
            (Fault::BadGateway, 0.02),
            (Fault::Unavailable, 0.02),
            (Fault::TooMany, 0.01),
            (Fault::Unauthorized, 0.005),
            (Fault::Elsewhere, 0.005),
            (Fault::Html, 0.01),
            (Fault::Cut, 0.02),
            (Fault::CutEnded, 0.01),
            (Fault::UnknownStatus, 0.01),
            (Fault::Omitted, 0.02),
            (Fault::Repeated, 0.02),
        ];
        let of = |asked| {
            let all = all.into_iter();
            all.filter(|(fault, _)| fault.applies_to(asked)).collect()
        };
        Self {
            start: of(Asked::Start),
            look_up: of(Asked::LookUp),
            list: of(Asked::List),
            ..Self::default()
        }
    }

    /// Draws the fault of a request, if it is to have one.
    pub fn choose(&self, asked: Asked, now: Timestamp, draw: &mut Draw) -> Option<Fault> {
        let chances = match asked {
            Asked::Start => &self.start,
            Asked::LookUp => &self.look_up,
            Asked::List => &self.list,
            Asked::Other => return None,
        };
        if self.outage.is_on(now) {
            let dead = [Fault::Unavailable, Fault::Reset, Fault::Ignored];
            return Some(dead[draw(3) as usize]);
        }
        // They exclude each other: each is weighed against what the ones before it have left.
        let mut left = 1.0;
        for (&fault, &chance) in chances {
            if chance > 0.0 && happens(chance / left, draw) {
                return Some(fault);
            }
            left -= chance;
        }
        None
    }

    /// Returns it with changes in JSON: members that are not named stay, `null` sets one back, and
    /// `preset` begins from a preset. An error says what is wrong with the changes.
    pub fn changed(&self, changes: &[u8]) -> Result<Self, String> {
        let changes: Value = serde_json::from_slice(changes).map_err(|e| e.to_string())?;
        let Value::Object(mut changes) = changes else {
            return Err("not a JSON object".to_owned());
        };
        let base = match changes.remove("preset") {
            None => self.clone(),
            Some(name) => name.as_str().and_then(Self::preset).ok_or_else(|| {
                let names = Self::PRESETS.join(", ");
                format!("there is no preset {name}; there are: {names}")
            })?,
        };
        let mut whole = serde_json::to_value(base).map_err(|e| e.to_string())?;
        merge(&mut whole, Value::Object(changes));
        let changed: Self = serde_json::from_value(whole).map_err(|e| e.to_string())?;
        changed.check()?;
        Ok(changed)
    }

    /// Refuses what cannot happen.
    fn check(&self) -> Result<(), String> {
        let kinds = [
            ("start", Asked::Start, &self.start),
            ("look_up", Asked::LookUp, &self.look_up),
            ("list", Asked::List, &self.list),
        ];
        for (name, asked, chances) in kinds {
            for (fault, chance) in chances {
                if !fault.applies_to(asked) {
                    return Err(format!("{name} cannot have {fault}"));
                }
                if !(0.0..=1.0).contains(chance) {
                    return Err(format!("{name}.{fault} takes 0 to 1, not {chance}"));
                }
            }
            // A little more than 1 is a matter of rounding.
            if chances.values().sum::<f64>() > 1.000_001 {
                return Err(format!("the chances of {name} are above 1 together"));
            }
        }
        Ok(())
    }
}

/// Merges changes into a JSON value, as RFC 7396 says.
fn merge(whole: &mut Value, changes: Value) {
    match (whole, changes) {
        (Value::Object(whole), Value::Object(changes)) => {
            for (name, change) in changes {
                if change.is_null() {
                    whole.remove(&name);
                } else {
                    merge(whole.entry(name).or_insert(Value::Null), change);
                }
            }
        }
        (whole, changes) => *whole = changes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    #[test]
    fn every_preset_can_be_told_and_set_again() {
        for name in Faults::PRESETS {
            let faults = Faults::preset(name).unwrap();
            assert_eq!(faults.check(), Ok(()), "{name}");
            let told = serde_json::to_vec(&faults).unwrap();
            assert_eq!(serde_json::from_slice::<Faults>(&told).unwrap(), faults);
            let by_name = format!("{{\"preset\":\"{name}\"}}");
            assert_eq!(Faults::default().changed(by_name.as_bytes()), Ok(faults));
        }
        assert_eq!(Faults::preset("calm"), Some(Faults::default()));
        assert_eq!(Faults::preset("stormy"), None);
    }

    #[test]
    fn a_change_leaves_what_it_does_not_name() {
        let first = br#"{"start":{"answer_lost":0.5},"crash":{"lives_ms":[5000]}}"#;
        let first = Faults::default().changed(first).unwrap();
        let second = br#"{"start":{"reset":0.25},"crash":{"restart_after_ms":10}}"#;
        let second = first.changed(second).unwrap();
        let chances = [(Fault::AnswerLost, 0.5), (Fault::Reset, 0.25)];
        assert_eq!(second.start, Chances::from(chances));
        assert_eq!(second.crash.lives_ms, [5_000]);
        assert_eq!(second.crash.restart_after_ms, 10);
        let third = br#"{"start":{"reset":null},"crash":{"lives_ms":null}}"#;
        let third = second.changed(third).unwrap();
        assert_eq!(third.start, first.start);
        assert_eq!(
            third.crash,
            Crash {
                restart_after_ms: 10,
                ..Crash::default()
            }
        );
    }

    #[test]
    fn a_change_that_makes_no_sense_is_refused_and_says_why() {
        for (changes, why) in [
            ("", "EOF"),
            ("[]", "not a JSON object"),
            (r#"{"stop":{}}"#, "unknown field `stop`"),
            (r#"{"start":{"lost":1}}"#, "unknown variant `lost`"),
            (r#"{"crash":{"now":true}}"#, "unknown field `now`"),
            (
                r#"{"preset":"stormy"}"#,
                "there are: calm, flaky, crashing, outage",
            ),
            (r#"{"preset":1}"#, "there is no preset 1"),
            (
                r#"{"start":{"reset":1.5}}"#,
                "start.reset takes 0 to 1, not 1.5",
            ),
            (r#"{"start":{"cut":0.1}}"#, "start cannot have cut"),
            (
                r#"{"look_up":{"omitted":1}}"#,
                "look_up cannot have omitted",
            ),
            (r#"{"list":{"cut":0.6,"500":0.6}}"#, "above 1"),
        ] {
            let error = Faults::default().changed(changes.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{changes}: {error}");
        }
    }

    #[test]
    fn each_fault_comes_as_often_as_it_should() {
        let chances = br#"{"start":{"answer_lost":0.25,"reset":0.5,"500":0.125}}"#;
        let faults = Faults::default().changed(chances).unwrap();
        let mut rng = fastrand::Rng::with_seed(1);
        let mut seen = BTreeMap::new();
        for _ in 0..80_000 {
            let fault = faults.choose(Asked::Start, NOW, &mut |n| rng.u64(..n));
            *seen.entry(fault).or_insert(0_u32) += 1;
        }
        for (fault, expected) in [
            (None, 10_000),
            (Some(Fault::InternalError), 10_000),
            (Some(Fault::AnswerLost), 20_000),
            (Some(Fault::Reset), 40_000),
        ] {
            assert!(seen[&fault].abs_diff(expected) < 500, "{seen:?}");
        }
        for asked in [Asked::List, Asked::LookUp, Asked::Other] {
            assert_eq!(faults.choose(asked, NOW, &mut |_| 0), None);
        }
    }

    #[test]
    fn an_outage_ends_and_comes_again() {
        let faults = Faults::preset("outage").unwrap();
        for (ms, is_on) in [(0, true), (19_999, true), (20_000, false), (60_000, true)] {
            let fault = faults.choose(Asked::Start, Timestamp(ms), &mut |_| 0);
            assert_eq!(fault, is_on.then_some(Fault::Unavailable), "{ms}");
        }
    }

    #[test]
    fn lives_last_as_long_as_they_should_in_turn() {
        let crash = |lives_ms: &[u64]| Crash {
            lives_ms: lives_ms.to_vec(),
            ..Crash::default()
        };
        let ends = |crash: Crash| [0, 1, 2].map(|number| crash.end_of_life(number, NOW));
        let after = |ms| Some(Timestamp(NOW.0 + ms));
        assert_eq!(ends(crash(&[])), [None; 3]);
        assert_eq!(ends(crash(&[5])), [after(5); 3]);
        assert_eq!(ends(crash(&[5, 70])), [after(5), after(70), after(5)]);
    }

    #[test]
    fn whoever_tries_a_crash_sees_it_within_seconds_and_orders_settle_all_the_same() {
        let crash = Faults::preset("crashing").unwrap().crash;
        let lasts = |number| crash.end_of_life(number, NOW).unwrap().since(NOW).as_secs();
        assert!(lasts(0) < 3, "the first process has not ended");
        // Processes of `dev` end within ten seconds.
        assert!(lasts(1) >= 20);
    }
}

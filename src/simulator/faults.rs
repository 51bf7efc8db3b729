//! The faults to inject, and their chances.
//!
//! Pure: time and randomness are arguments. `faults/fault.rs` applies a fault to an answer, `simulator`
//! to a connection; `crash` models the crashes of the real service.

mod fault;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::fault::Fault;
use super::crash::occurs;
use super::model::{Draw, RequestKind};
use crate::order::Timestamp;

/// The faults to inject, and their chances.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Faults of starts.
    pub start: Chances,
    /// Faults of look-ups.
    pub look_up: Chances,
    /// Faults of lists.
    pub list: Chances,
    /// Periodic outages.
    pub outage: Outage,
    /// Crashes.
    pub crash: Crash,
}

/// A named set of faults.
pub struct Preset {
    /// The name.
    pub name: &'static str,
    /// Its effect, for people.
    pub effect: &'static str,
    /// The faults.
    pub faults: Faults,
}

/// Returns the presets.
pub fn presets() -> [Preset; 4] {
    let crash = Crash {
        // First before any process has ended; then long enough for processes of some seconds to complete.
        lives_ms: vec![2_000, 20_000],
        like_the_real_one: true,
        ..Crash::default()
    };
    let outage = Outage {
        every_ms: 60_000,
        lasts_ms: 20_000,
    };
    let none = Faults::default;
    [
        ("calm", "nothing goes wrong", none()),
        (
            "flaky",
            "one request in four to seven fails",
            Faults::flaky(),
        ),
        (
            "crashing",
            "it crashes 2 s after its first start, then after 20 s, alternating, and forgets all",
            Faults { crash, ..none() },
        ),
        (
            "outage",
            "nothing works in the first 20 s of each minute of the clock",
            Faults { outage, ..none() },
        ),
    ]
    .map(|(name, effect, faults)| Preset {
        name,
        effect,
        faults,
    })
}

/// The chance of each fault for a request, from 0 to 1; 0 if absent.
pub type Chances = BTreeMap<Fault, f64>;

/// A periodic outage, in which every request is answered 503, reset or never answered, and has no
/// effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outage {
    /// Time from the beginning of one outage to that of the next, in milliseconds; 0 for none. Counted
    /// from the beginning of 1970, so that outages depend on the clock alone.
    pub every_ms: u64,
    /// Duration of each, in milliseconds.
    pub lasts_ms: u64,
}

impl Outage {
    fn is_on(&self, now: Timestamp) -> bool {
        self.every_ms > 0 && now.0.unsigned_abs() % self.every_ms < self.lasts_ms
    }
}

/// Crashes of the service, in each of which it forgets every process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Crash {
    /// Times from the first start of an incarnation to its end, in milliseconds, cyclically.
    /// Empty for no such crashes.
    pub lives_ms: Vec<u64>,
    /// Set if the service crashes as the real one does: when a process completes while another request
    /// is served, most often while the map of processes grows.
    pub like_the_real_one: bool,
    /// Time from a crash to the restart, in milliseconds. Connections are refused meanwhile.
    pub restart_after_ms: u64,
}

impl Default for Crash {
    /// Returns no crashes; after a requested one the restart takes a second, like that of a container.
    fn default() -> Self {
        Self {
            lives_ms: Vec::new(),
            like_the_real_one: false,
            restart_after_ms: 1_000,
        }
    }
}

impl Crash {
    /// Returns the end of incarnation `number`, whose first start was at `started`.
    pub fn end_of_incarnation(&self, number: usize, started: Timestamp) -> Option<Timestamp> {
        let index = number.checked_rem(self.lives_ms.len())?;
        Some(started.after(Duration::from_millis(self.lives_ms[index])))
    }
}

impl Faults {
    /// Returns the preset with this name.
    pub fn preset(name: &str) -> Option<Self> {
        let preset = presets().into_iter().find(|preset| preset.name == name);
        preset.map(|preset| preset.faults)
    }

    /// Returns failures of the network and of a gateway, all of which a client can survive.
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
        let of = |kind| {
            let all = all.into_iter();
            all.filter(|(fault, _)| fault.applies_to(kind)).collect()
        };
        Self {
            start: of(RequestKind::Start),
            look_up: of(RequestKind::LookUp),
            list: of(RequestKind::List),
            ..Self::default()
        }
    }

    /// Draws the fault of a request, or `None`.
    pub fn choose(&self, kind: RequestKind, now: Timestamp, draw: &mut Draw) -> Option<Fault> {
        let chances = match kind {
            RequestKind::Start => &self.start,
            RequestKind::LookUp => &self.look_up,
            RequestKind::List => &self.list,
            RequestKind::Other => return None,
        };
        if self.outage.is_on(now) {
            let dead = [Fault::Unavailable, Fault::Reset, Fault::Ignored];
            return Some(dead[draw(3) as usize]);
        }
        // Faults exclude each other, so each chance is relative to what the earlier ones left.
        let mut left = 1.0;
        for (&fault, &chance) in chances {
            if chance > 0.0 && occurs(chance / left, draw) {
                return Some(fault);
            }
            left -= chance;
        }
        None
    }

    /// Returns the faults with changes applied, as JSON: absent members stay, `null` resets one to its
    /// default, and `preset` begins from a preset. An error says what is wrong with the changes.
    pub fn changed(&self, changes: &[u8]) -> Result<Self, String> {
        let changes: Value = serde_json::from_slice(changes).map_err(|e| e.to_string())?;
        let Value::Object(mut changes) = changes else {
            return Err("the body is not a JSON object".to_owned());
        };
        let base = match changes.remove("preset") {
            None => self.clone(),
            Some(name) => name.as_str().and_then(Self::preset).ok_or_else(|| {
                let names = presets().map(|preset| preset.name).join(", ");
                format!("unknown preset {name}; expected one of {names}")
            })?,
        };
        let mut whole = serde_json::to_value(base).map_err(|e| e.to_string())?;
        merge(&mut whole, Value::Object(changes));
        let changed: Self = serde_json::from_value(whole).map_err(|e| e.to_string())?;
        changed.check()?;
        Ok(changed)
    }

    /// Checks that each fault applies to its request, and that chances are possible.
    fn check(&self) -> Result<(), String> {
        let kinds = [
            ("start", RequestKind::Start, &self.start),
            ("look_up", RequestKind::LookUp, &self.look_up),
            ("list", RequestKind::List, &self.list),
        ];
        for (name, kind, chances) in kinds {
            for (fault, chance) in chances {
                if !fault.applies_to(kind) {
                    return Err(format!("the fault {fault} does not apply to {name}"));
                }
                if !(0.0..=1.0).contains(chance) {
                    return Err(format!("{name}.{fault} is {chance}; expected 0 to 1"));
                }
            }
            // Tolerates rounding.
            if chances.values().sum::<f64>() > 1.000_001 {
                return Err(format!("the chances of {name} add up to more than 1"));
            }
        }
        Ok(())
    }
}

/// Merges changes into a JSON value (RFC 7396).
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
    fn every_preset_survives_a_round_trip_through_json() {
        for Preset { name, faults, .. } in presets() {
            assert_eq!(faults.check(), Ok(()), "{name}");
            let json = serde_json::to_vec(&faults).unwrap();
            assert_eq!(serde_json::from_slice::<Faults>(&json).unwrap(), faults);
            let by_name = format!("{{\"preset\":\"{name}\"}}");
            assert_eq!(Faults::default().changed(by_name.as_bytes()), Ok(faults));
        }
        assert_eq!(Faults::preset("calm"), Some(Faults::default()));
        assert_eq!(Faults::preset("stormy"), None);
    }

    #[test]
    fn a_change_keeps_faults_that_it_does_not_name() {
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
    fn an_invalid_change_is_refused_with_the_reason() {
        for (changes, why) in [
            ("", "EOF"),
            ("[]", "not a JSON object"),
            (r#"{"stop":{}}"#, "unknown field `stop`"),
            (r#"{"start":{"lost":1}}"#, "unknown variant `lost`"),
            (r#"{"crash":{"now":true}}"#, "unknown field `now`"),
            (
                r#"{"preset":"stormy"}"#,
                "expected one of calm, flaky, crashing, outage",
            ),
            (r#"{"preset":1}"#, "unknown preset 1"),
            (
                r#"{"start":{"reset":1.5}}"#,
                "start.reset is 1.5; expected 0 to 1",
            ),
            (r#"{"start":{"cut":0.1}}"#, "cut does not apply to start"),
            (
                r#"{"look_up":{"omitted":1}}"#,
                "omitted does not apply to look_up",
            ),
            (r#"{"list":{"cut":0.6,"500":0.6}}"#, "more than 1"),
        ] {
            let error = Faults::default().changed(changes.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{changes}: {error}");
        }
    }

    #[test]
    fn each_fault_occurs_at_its_rate() {
        let chances = br#"{"start":{"answer_lost":0.25,"reset":0.5,"500":0.125}}"#;
        let faults = Faults::default().changed(chances).unwrap();
        let mut rng = fastrand::Rng::with_seed(1);
        let mut seen = BTreeMap::new();
        for _ in 0..80_000 {
            let fault = faults.choose(RequestKind::Start, NOW, &mut |n| rng.u64(..n));
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
        for kind in [RequestKind::List, RequestKind::LookUp, RequestKind::Other] {
            assert_eq!(faults.choose(kind, NOW, &mut |_| 0), None);
        }
    }

    #[test]
    fn an_outage_ends_and_recurs() {
        let faults = Faults::preset("outage").unwrap();
        for (ms, is_on) in [(0, true), (19_999, true), (20_000, false), (60_000, true)] {
            let fault = faults.choose(RequestKind::Start, Timestamp(ms), &mut |_| 0);
            assert_eq!(fault, is_on.then_some(Fault::Unavailable), "{ms}");
        }
    }

    #[test]
    fn incarnations_last_as_long_as_configured_cyclically() {
        let crash = |lives_ms: &[u64]| Crash {
            lives_ms: lives_ms.to_vec(),
            ..Crash::default()
        };
        let ends = |crash: Crash| [0, 1, 2].map(|number| crash.end_of_incarnation(number, NOW));
        let after = |ms| Some(Timestamp(NOW.0 + ms));
        assert_eq!(ends(crash(&[])), [None; 3]);
        assert_eq!(ends(crash(&[5])), [after(5); 3]);
        assert_eq!(ends(crash(&[5, 70])), [after(5), after(70), after(5)]);
    }

    #[test]
    fn the_preset_crashing_crashes_within_seconds_and_lets_orders_settle_later() {
        let crash = Faults::preset("crashing").unwrap().crash;
        let lasts = |number| {
            crash
                .end_of_incarnation(number, NOW)
                .unwrap()
                .since(NOW)
                .as_secs()
        };
        assert!(lasts(0) < 3, "the first process has not ended");
        // Processes of `dev` end within ten seconds.
        assert!(lasts(1) >= 20);
    }
}

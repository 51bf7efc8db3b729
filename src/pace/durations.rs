//! How long processes take, learned from those that were looked at: a life table.
//!
//! Ages are counted by the time since a start was confirmed. For each span of age it is known how
//! many processes ended in it and how many outlived it; the ones still running count as far as
//! they have come. (The actuarial estimator; Cutler and Ederer, 1958.)

use std::f64::consts::SQRT_2;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The first span ends at this age, in milliseconds.
const FIRST_MS: u32 = 250;

/// Spans in which the age doubles.
const SPANS_PER_DOUBLING: u32 = 4;

/// Where each of these ends, as a multiple of where the first does: 2 to the power of no, one, two
/// and three quarters.
const PARTS_OF_A_DOUBLING: [f64; SPANS_PER_DOUBLING as usize] =
    [1.0, 1.189_207_115_002_721, SQRT_2, 1.681_792_830_507_429];

/// Up to twelve days. What is older counts as that old.
const SPANS: usize = 22 * SPANS_PER_DOUBLING as usize;

/// Before anything is known, one process in this many ends in each span.
const ENDED_ASSUMED: f64 = 1.0;
const SEEN_ASSUMED: f64 = 4.0;

/// So many processes are remembered for each span: beyond, the old ones count half.
const SEEN_MAX: u32 = 1_024;

/// While no process was seen to end, one of this age is not expected to end soon.
const LONGEST_ASSUMED: Duration = Duration::from_secs(600);

/// What was learned of how long processes take.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Durations {
    /// By span: processes that ended in it, and processes that outlived it. Trailing zeros are
    /// left out.
    ended: Vec<u32>,
    outlived: Vec<u32>,
}

impl Durations {
    /// A process was seen to have ended between two ages.
    pub fn ended(&mut self, from: Duration, to: Duration) {
        let middle = from + to.saturating_sub(from) / 2;
        self.outlived(from, middle);
        self.count(span_of(middle), true);
    }

    /// A process was seen to have run from one age to another.
    pub fn outlived(&mut self, from: Duration, to: Duration) {
        let to_ms = millis(to) as f64;
        let spans = span_of(from)..SPANS - 1;
        for span in spans.take_while(|span| end_of(*span) < to_ms) {
            self.count(span, false);
        }
    }

    fn count(&mut self, span: usize, has_ended: bool) {
        if self.ended.len() <= span {
            self.ended.resize(span + 1, 0);
            self.outlived.resize(span + 1, 0);
        }
        let counts = if has_ended {
            &mut self.ended
        } else {
            &mut self.outlived
        };
        counts[span] += 1;
        if self.ended[span] + self.outlived[span] >= SEEN_MAX {
            self.ended[span] /= 2;
            self.outlived[span] /= 2;
        }
    }

    /// The share of processes that end in a span, of those that are as old as that.
    fn hazard(&self, span: usize) -> f64 {
        let of = |counts: &[u32]| f64::from(counts.get(span).copied().unwrap_or(0));
        let (ended, outlived) = (of(&self.ended), of(&self.outlived));
        (ended + ENDED_ASSUMED) / (ended + outlived + SEEN_ASSUMED)
    }

    /// How likely a process is to end, by its age.
    pub fn hazards(&self) -> Hazards {
        let mut sums = Vec::with_capacity(SPANS + 1);
        let mut sum = 0.0;
        sums.push(sum);
        for span in 0..SPANS {
            sum += self.hazard(span);
            sums.push(sum);
        }
        Hazards { sums }
    }

    /// How long a process takes on average.
    pub fn mean(&self) -> Duration {
        let (mut alive, mut mean_ms) = (1.0, 0.0);
        for span in 0..SPANS {
            let hazard = self.hazard(span);
            let width = end_of(span) - beginning_of(span);
            mean_ms += alive * width * (1.0 - hazard / 2.0);
            alive *= 1.0 - hazard;
        }
        Duration::from_millis(mean_ms as u64)
    }

    /// The same, but nothing while no process was seen to end.
    pub fn known_mean(&self) -> Option<Duration> {
        let is_known = self.ended.iter().any(|ended| *ended > 0);
        is_known.then(|| self.mean())
    }

    /// The age by which all have ended that were seen to end lately.
    pub fn longest(&self) -> Duration {
        match self.ended.iter().rposition(|ended| *ended > 0) {
            Some(span) => Duration::from_millis(end_of(span) as u64),
            None => LONGEST_ASSUMED,
        }
    }
}

/// How likely processes are to end, by their age: the cumulative hazard (Nelson, 1969; Aalen, 1978).
#[derive(Clone, Debug)]
pub struct Hazards {
    /// At the beginning of each span.
    sums: Vec<f64>,
}

impl Hazards {
    /// How likely it is that a process that ran at one age has ended at another: small numbers are
    /// a probability.
    pub fn between(&self, from: Duration, to: Duration) -> f64 {
        self.at(to) - self.at(from)
    }

    fn at(&self, age: Duration) -> f64 {
        let span = span_of(age);
        let age_ms = (millis(age) as f64).min(end_of(span));
        let part = (age_ms - beginning_of(span)) / (end_of(span) - beginning_of(span));
        self.sums[span] + (self.sums[span + 1] - self.sums[span]) * part
    }
}

fn span_of(age: Duration) -> usize {
    let age_ms = millis(age);
    let first_spans = age_ms.saturating_sub(1) / u64::from(FIRST_MS);
    let Some(doublings) = first_spans.checked_ilog2() else {
        return 0;
    };
    let first = (doublings * SPANS_PER_DOUBLING) as usize + 1;
    let of_this_doubling = ENDS_MS.iter().skip(first).take(SPANS_PER_DOUBLING as usize);
    let ended = of_this_doubling.filter(|end| **end < age_ms as f64);
    (first + ended.count()).min(SPANS - 1)
}

fn millis(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

/// In milliseconds.
fn beginning_of(span: usize) -> f64 {
    if span == 0 { 0.0 } else { end_of(span - 1) }
}

/// In milliseconds.
fn end_of(span: usize) -> f64 {
    ENDS_MS[span]
}

/// Where the spans end, in milliseconds. Worked out by the compiler: each look at an order asks for
/// some of them.
static ENDS_MS: [f64; SPANS] = {
    let mut ends = [0.0; SPANS];
    let mut span = 0;
    while span < SPANS {
        ends[span] = match span.checked_sub(PARTS_OF_A_DOUBLING.len()) {
            None => FIRST_MS as f64 * PARTS_OF_A_DOUBLING[span],
            Some(earlier) => 2.0 * ends[earlier],
        };
        span += 1;
    }
    ends
};

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Processes of 0 to `max` seconds, each looked at every `every` seconds until it has ended or
    /// is `age` seconds old.
    fn learned(max: u64, every: u64, age: u64) -> Durations {
        let mut durations = Durations::default();
        for duration in 0..max {
            let mut looked = 0;
            while looked < age {
                let next = looked + every;
                if duration <= next {
                    durations.ended(s(looked), s(next));
                    break;
                }
                durations.outlived(s(looked), s(next));
                looked = next;
            }
        }
        durations
    }

    #[test]
    fn spans_follow_each_other_without_a_gap() {
        for span in 0..SPANS - 1 {
            let end = Duration::from_millis(end_of(span) as u64);
            assert_eq!(span_of(end), span);
            assert_eq!(span_of(end + Duration::from_millis(2)), span + 1);
        }
        assert_eq!(span_of(Duration::ZERO), 0);
        assert_eq!(span_of(Duration::MAX), SPANS - 1);
    }

    #[test]
    fn a_process_has_outlived_the_spans_that_ended_while_it_was_watched() {
        let counts = |from, to| {
            let mut durations = Durations::default();
            durations.outlived(from, to);
            durations.outlived
        };
        for from in 0..SPANS {
            let begin = Duration::from_millis(beginning_of(from) as u64 + 1);
            for to in from..SPANS {
                let end = Duration::from_millis(end_of(to) as u64);
                let beyond = end + Duration::from_millis(2);
                for (age, next) in [(end, to), (beyond, (to + 1).min(SPANS - 1))] {
                    let mut expected = vec![];
                    if next > from {
                        expected.resize(from, 0);
                        expected.resize(next, 1);
                    }
                    assert_eq!(counts(begin, age), expected, "{from} {age:?}");
                }
            }
        }
        assert!(counts(s(60), s(30)).is_empty(), "a clock was set back");
        assert_eq!(counts(s(0), Duration::MAX), [1; SPANS - 1]);
    }

    #[test]
    fn the_mean_is_learned_also_from_those_that_still_run() {
        let all = learned(600, 10, 1_000).mean();
        assert!((s(260)..s(340)).contains(&all), "{all:?}");
        // After two minutes a fifth has ended: the others tell that most take longer.
        let early = learned(600, 10, 120).mean();
        assert!((s(120)..s(900)).contains(&early), "{early:?}");
        let mut short = Durations::default();
        for second in (0..9).cycle().take(900) {
            short.outlived(s(0), s(second));
            short.ended(s(second), s(second));
        }
        let short = short.mean();
        assert!((s(3)..s(7)).contains(&short), "{short:?}");
    }

    #[test]
    fn the_mean_of_processes_that_all_take_as_long_is_that_within_half_a_span() {
        for seconds in [1, 3, 7, 13, 40, 110, 300, 590] {
            let mut durations = Durations::default();
            for _ in 0..1_000 {
                durations.outlived(s(0), s(seconds));
                durations.ended(s(seconds), s(seconds));
            }
            let ratio = durations.mean().as_secs_f64() / seconds as f64;
            assert!((0.88..1.12).contains(&ratio), "{seconds} s: {ratio}");
        }
    }

    #[test]
    fn a_process_as_old_as_most_that_ended_is_likelier_to_end_than_one_just_started() {
        let hazards = learned(600, 10, 1_000).hazards();
        let (young, old) = (
            hazards.between(s(1), s(11)),
            hazards.between(s(540), s(550)),
        );
        assert!(young < 0.05 && old > 0.08, "{young} {old}");
        // Nothing is known: what has run for a second may end in the next, an old one may not.
        let unknown = Durations::default().hazards();
        assert!(unknown.between(s(1), s(2)) > 0.5);
        assert!(unknown.between(s(500), s(501)) < 0.05);
    }

    #[test]
    fn hazards_add_up_and_never_fall() {
        let hazards = learned(600, 10, 1_000).hazards();
        for age in 0..1_000 {
            assert!(hazards.between(s(age), s(age + 1)) > 0.0, "{age}");
        }
        let whole = hazards.between(s(3), s(97));
        let parts = hazards.between(s(3), s(40)) + hazards.between(s(40), s(97));
        assert!((whole - parts).abs() < 1e-9);
        assert_eq!(hazards.between(Duration::MAX, Duration::MAX), 0.0);
    }

    #[test]
    fn the_past_is_forgotten_when_processes_become_shorter() {
        let mut durations = learned(600, 10, 1_000);
        for _ in 0..1_000 {
            for second in 0..9 {
                durations.ended(s(second), s(second + 1));
            }
        }
        assert!(durations.mean() < s(9), "{:?}", durations.mean());
    }

    #[test]
    fn what_is_forgotten_of_the_past_changes_its_weight_and_not_what_it_tells() {
        let mut durations = Durations::default();
        let first = Duration::from_millis(250);
        for count in 0..10_000 {
            if count % 8 == 0 {
                durations.ended(first, first);
            } else {
                durations.outlived(first, first * 11 / 10);
            }
            let likely = durations.hazards().between(Duration::ZERO, first);
            assert!(
                count < 500 || (0.11..0.14).contains(&likely),
                "one in eight: {likely}"
            );
        }
    }

    #[test]
    fn the_longest_is_assumed_until_one_was_seen_to_end() {
        let mut durations = Durations::default();
        assert_eq!(durations.longest(), s(600));
        durations.ended(s(9), s(11));
        let longest = durations.longest();
        assert!((s(10)..s(12)).contains(&longest), "{longest:?}");
        // One that is stuck has not ended, however old it becomes.
        durations.outlived(s(11), s(5_000));
        assert_eq!(durations.longest(), longest);
    }
}

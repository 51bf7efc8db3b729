//! Random values for the calls of a random run.

use order_service::decide::LostProcess;
use order_service::order::{OrderId, Outcome, Reason, ResolvedBy, Status, Timestamp};
use order_service::pace::UpstreamState;
use order_service::reconciler_state::ReconcilerState;
use order_service::store::{AttentionFilter, AttentionUpdate, Filter, OrderChange, Transition};

use super::EnginePair;

impl EnginePair<'_> {
    pub(super) fn id(&mut self) -> OrderId {
        // Both compare bytes.
        let names = ["a", "B", "é", "日", "a b", "'\\\\%_$1"];
        let name = names[self.random.usize(..names.len())];
        OrderId::new(format!("{name}{}", self.random.u8(0..8))).unwrap()
    }

    pub(super) fn time(&mut self) -> Timestamp {
        Timestamp(self.now + self.random.i64(-2_000..2_000))
    }

    pub(super) fn filter(&mut self) -> Filter {
        let attention = match self.random.u8(0..5) {
            0 => Some(AttentionFilter::Any),
            1 => Some(AttentionFilter::By(ResolvedBy::Operator)),
            2 => Some(AttentionFilter::By(ResolvedBy::Itself)),
            3 => Some(AttentionFilter::Without),
            _ => None,
        };
        let statuses = Status::ALL.into_iter().filter(|_| self.random.bool());
        Filter {
            statuses: statuses.collect(),
            attention,
        }
    }

    pub(super) fn change(&mut self) -> OrderChange {
        OrderChange {
            seq: self.random.i64(1..24),
            transition: self.transition(),
        }
    }

    pub(super) fn transition(&mut self) -> Transition {
        let is_observed = self.random.bool();
        let is_counted = self.random.u8(0..4) > 0;
        match self.random.u8(0..19) {
            0..=3 => Transition::Intended { previous: None },
            4 => Transition::Intended {
                previous: Some(self.time()),
            },
            5 => Transition::Counted {
                written_at: Timestamp(self.now),
                is_counted: true,
            },
            6..=7 => Transition::Started { is_observed },
            8 => Transition::Restarted { is_observed },
            9 => Transition::Withdrawn,
            10 => Transition::GivenUp {
                answer_status: is_observed.then_some(503),
                is_counted,
                attention: self.attention(),
            },
            11 => Transition::Adopted,
            12 => Transition::ProcessObserved,
            13 => Transition::Settled(match is_observed {
                true => Outcome::Succeeded,
                false => Outcome::Failed,
            }),
            14 => Transition::Missed {
                began_at: self.time(),
            },
            15 => match is_counted {
                true => Transition::Cleared,
                false => Transition::FailedByPolicy,
            },
            16 => Transition::Flagged(self.attention()),
            _ => Transition::Delayed(self.attention()),
        }
    }

    pub(super) fn attention(&mut self) -> AttentionUpdate {
        AttentionUpdate {
            reason: Reason::ALL[self.random.usize(..Reason::ALL.len())],
            detail: format!("what was seen: é{}", self.random.u8(..)),
            next_attempt_at: self.time(),
        }
    }

    pub(super) fn heartbeat(&mut self) -> ReconcilerState {
        let since = self.time();
        ReconcilerState {
            leader_since: Some(since),
            last_pass_at: self.random.bool().then_some(since),
            next_pass_at: Some(self.time()),
            next_poll_at: self.random.bool().then_some(since),
            policy: Some(LostProcess::ALL[self.random.usize(..LostProcess::ALL.len())]),
            upstream: match self.random.u8(0..3) {
                0 => UpstreamState::Unknown,
                1 => UpstreamState::Up { since },
                _ => UpstreamState::Down {
                    since,
                    detail: "no answer".to_owned(),
                },
            },
            ..ReconcilerState::default()
        }
    }
}

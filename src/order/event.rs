//! Events: entries of the journal, each the change of one order's status.

use serde::Serialize;

use super::rfc3339::as_rfc3339;
use super::{OrderId, Status, Timestamp, words};

words! {
    /// Reason why the status of an order changed.
    pub enum EventReason {
        /// It was created.
        Created = "created",
        /// A process was started for it.
        Started = "started",
        /// A process was found to exist already.
        Adopted = "adopted",
        /// Its process has succeeded.
        Succeeded = "succeeded",
        /// Its process has failed.
        Failed = "failed",
        /// A process was started to replace a forgotten one. The status stays.
        Restarted = "restarted",
        /// Its process was forgotten, and the policy treats that as a failure.
        FailedByPolicy = "failed_by_policy",
        /// An operator has settled it as failed.
        FailedByOperator = "failed_by_operator",
    }
}

impl EventReason {
    /// Returns the status before the change; `None` for a creation.
    pub const fn from_status(self) -> Option<Status> {
        match self {
            Self::Created => None,
            Self::Started | Self::Adopted => Some(Status::Created),
            Self::Succeeded
            | Self::Failed
            | Self::Restarted
            | Self::FailedByPolicy
            | Self::FailedByOperator => Some(Status::Processing),
        }
    }

    /// Returns the status after the change.
    pub const fn to_status(self) -> Status {
        match self {
            Self::Created => Status::Created,
            Self::Started | Self::Adopted | Self::Restarted => Status::Processing,
            Self::Succeeded => Status::Fulfilled,
            Self::Failed | Self::FailedByPolicy | Self::FailedByOperator => Status::Failed,
        }
    }
}

/// One change of one order's status. serde writes it as the API does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Its sequence number: 1 for the first event, and one more for each that follows.
    pub seq: i64,
    /// The order's sequence number.
    #[serde(skip)]
    pub order_seq: i64,
    /// The order's id.
    pub order_id: OrderId,
    /// The status before; `None` for a creation.
    pub from: Option<Status>,
    /// The status after.
    pub to: Status,
    /// Moment at which it was recorded.
    #[serde(serialize_with = "as_rfc3339")]
    pub at: Timestamp,
    /// Reason why the status changed.
    pub reason: EventReason,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_parsed_from_its_name() {
        for reason in EventReason::ALL {
            assert_eq!(EventReason::from_word(reason.as_str()), Some(reason));
            let kept = serde_json::to_value(reason).unwrap();
            assert_eq!(kept, reason.as_str());
        }
        assert_eq!(EventReason::from_word("lost"), None);
    }
}

//! Errors of the store.

use std::sync::Arc;

use super::Gone;

/// Store errors, grouped by what the caller may do next: retry, but read first after
/// [`StoreError::OutcomeUnknown`]; start over after [`StoreError::Gone`]; give up leadership after
/// [`StoreError::Deposed`].
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The write queue is full. Nothing was written.
    #[error("the write queue is full")]
    Overloaded,
    /// The database cannot be written at present. Nothing was written.
    #[error("the database cannot be written")]
    Unwritable(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The database cannot be read at present.
    #[error("the database cannot be read")]
    Unreadable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The write has begun and its outcome is unknown: it may have taken effect, or may still do
    /// so.
    #[error(
        "the database gave no clear answer in time; the write may have taken effect, or may still"
    )]
    OutcomeUnknown,
    /// Another reconciler has become leader. Nothing was recorded.
    #[error("another reconciler leads; nothing was recorded")]
    Deposed,
    /// A reader that resumes from this cursor might miss records.
    #[error(transparent)]
    Gone(#[from] Gone),
}

impl StoreError {
    pub(super) fn unwritable(why: &'static str) -> Self {
        let why: Box<dyn std::error::Error + Send + Sync> = why.into();
        Self::Unwritable(why.into())
    }
}

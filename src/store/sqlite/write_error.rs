//! Failures of writes: whether something may have been written, and whether the write itself is at fault.

use std::sync::Arc;

use rusqlite::ErrorCode;

use super::open_error::with_advice;
use crate::store::StoreError;

/// The failure of a write.
pub(super) struct Failure {
    pub cause: Arc<dyn std::error::Error + Send + Sync>,
    /// True if nothing was written.
    is_certain: bool,
}

impl Failure {
    /// Returns the failure of a commit. After an I/O error the commit may be complete in the log,
    /// since the effect of a failed flush is unknown; it takes effect if the program dies before
    /// the next commit overwrites it. On a full disk the end of the commit is missing, so it is
    /// certain to have failed.
    pub fn of_commit(error: rusqlite::Error) -> Self {
        let is_certain = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
        Self {
            is_certain,
            ..Self::from(error)
        }
    }

    pub fn to_store_error(&self) -> StoreError {
        if self.is_certain {
            StoreError::Unwritable(self.cause.clone())
        } else {
            StoreError::OutcomeUnknown
        }
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            cause: Arc::new(error),
            is_certain: true,
        }
    }
}

/// Returns the error of a statement that failed by its own content.
///
/// # Errors
/// The statement failed by the state of the database.
pub(super) fn own_fault(error: rusqlite::Error) -> Result<rusqlite::Error, Failure> {
    let is_own = !matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::DiskFull
                | ErrorCode::ReadOnly
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::OutOfMemory
                | ErrorCode::NotADatabase
                | ErrorCode::PermissionDenied
                | ErrorCode::FileLockingProtocolFailed
        )
    );
    match is_own {
        true => Ok(error),
        false => Err(Failure {
            cause: with_advice(error).into(),
            is_certain: true,
        }),
    }
}

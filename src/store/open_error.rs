//! Reasons why a database cannot be used.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use tokio::sync::SetOnce;

#[cfg(feature = "postgres")]
use super::postgres::ServerError;
use super::relocation::Relocation;
use super::sqlite::FileError;
#[cfg(feature = "postgres")]
use crate::messages::with_causes;

/// A database cannot be used: one line with its address, the reason and what to do.
#[derive(Clone, Debug)]
pub struct OpenError {
    address: String,
    reason: Arc<OpenReason>,
}

/// The first reason why this program must not use a database any longer that it has open, once there is one:
/// its orders have moved, or a later version of the program has migrated it.
pub(super) type Retirement = Arc<SetOnce<OpenError>>;

/// Reasons why a database cannot be used. Each completes a sentence that begins with its address.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenReason {
    #[error(transparent)]
    File(#[from] FileError),
    #[cfg(feature = "postgres")]
    #[error(transparent)]
    Server(ServerError),
    /// The orders are in another database.
    #[error("{0}")]
    Relocated(Relocation),
    /// The orders have moved there, and it is not there any more, or cannot be reached.
    #[error("{0}")]
    Lost(String),
    /// A copy would replace what is there.
    #[error("holds an order database already; name one that does not")]
    Occupied,
}

impl OpenError {
    pub(super) fn new(address: impl fmt::Display, reason: impl Into<OpenReason>) -> Self {
        Self {
            address: address.to_string(),
            reason: Arc::new(reason.into()),
        }
    }

    /// Adds what to do about a database that was there if it is not, or if its server does not answer.
    pub(super) fn if_lost(self, advice: impl fmt::Display) -> Self {
        let why = match &*self.reason {
            OpenReason::File(FileError::Missing | FileError::Empty) => {
                "there is no order database".to_owned()
            }
            #[cfg(feature = "postgres")]
            OpenReason::Server(ServerError::Missing) => "there is no order database".to_owned(),
            #[cfg(feature = "postgres")]
            OpenReason::Server(ServerError::Unreachable(_)) => with_causes(&*self.reason),
            _ => return self,
        };
        Self::new(self.address, OpenReason::Lost(format!("{why}; {advice}")))
    }

    /// Returns whether the database is there, and its contents are damaged.
    pub fn is_damaged(&self) -> bool {
        matches!(*self.reason, OpenReason::File(FileError::Damaged))
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, reason } = self;
        write!(f, "{address}: {reason}")?;
        match &**reason {
            OpenReason::Relocated(found) => write!(f, "; {}", found.advice(address)),
            _ => Ok(()),
        }
    }
}

#[cfg(feature = "postgres")]
impl From<ServerError> for OpenReason {
    fn from(error: ServerError) -> Self {
        match error {
            ServerError::Relocated(found) => Self::Relocated(found),
            error => Self::Server(error),
        }
    }
}

impl Error for OpenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.reason.source()
    }
}

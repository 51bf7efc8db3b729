//! Errors of PostgreSQL, by what to do next: connect anew and repeat, leave out the write that is at
//! fault, or report it.

use tokio_postgres::error::SqlState;

use super::open_error::ServerError;
use crate::store::{OpenError, StoreError};

/// An error of a statement or of a connection.
#[derive(Debug, thiserror::Error)]
pub(in crate::store) enum Error {
    /// The server refused a statement, or the connection failed.
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    /// There was no answer in time. The connection is not used again.
    #[error("the server gave no answer in time")]
    TimedOut,
    /// The database cannot be used as it is.
    #[error(transparent)]
    Open(#[from] ServerError),
    /// A value that the schema refuses, or that another program wrote.
    #[error("{0}")]
    Value(String),
}

impl Error {
    /// A value that the schema refuses, or that another program wrote.
    pub fn value(what: impl std::fmt::Display) -> Self {
        Self::Value(what.to_string())
    }

    /// Returns the reason why a database cannot be opened.
    pub fn into_open_error(self, address: &str) -> OpenError {
        OpenError::new(address, ServerError::from(self))
    }

    /// Returns whether the same may succeed on a new connection: the connection was lost, the server
    /// shuts down or has become a standby, or another transaction was in the way.
    pub fn is_transient(&self) -> bool {
        let error = match self {
            Self::TimedOut => return true,
            Self::Postgres(error) => error,
            Self::Open(error) => return matches!(error, ServerError::Unreachable(_)),
            Self::Value(_) => return false,
        };
        match error.code() {
            // Not the server's answer, but the lack of one. An answer that cannot be decoded stays as it is.
            None => {
                let cause = std::error::Error::source(error);
                error.is_closed() || cause.is_some_and(|cause| cause.is::<std::io::Error>())
            }
            Some(code) => {
                code.code().starts_with("08")
                    || [
                        SqlState::ADMIN_SHUTDOWN,
                        SqlState::CRASH_SHUTDOWN,
                        SqlState::CANNOT_CONNECT_NOW,
                        SqlState::READ_ONLY_SQL_TRANSACTION,
                        SqlState::IN_FAILED_SQL_TRANSACTION,
                        SqlState::T_R_SERIALIZATION_FAILURE,
                        SqlState::T_R_DEADLOCK_DETECTED,
                        SqlState::TOO_MANY_CONNECTIONS,
                        SqlState::QUERY_CANCELED,
                    ]
                    .contains(code)
            }
        }
    }

    /// Returns whether the server refused the password. A standby has the passwords of its primary; the rules for
    /// who may connect at all, in `pg_hba.conf`, may differ.
    pub fn is_wrong_password(&self) -> bool {
        let error = match self {
            Self::Open(ServerError::Refused(_, error)) => error.downcast_ref(),
            _ => None,
        };
        let code = error.and_then(tokio_postgres::Error::code);
        code == Some(&SqlState::INVALID_PASSWORD)
    }

    /// Returns whether a statement failed because of its values: classes 22 and 23.
    pub fn is_own_fault(&self) -> bool {
        let code = match self {
            Self::Postgres(error) => error.code().map(SqlState::code),
            _ => None,
        };
        code.is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
    }

    /// Returns whether the server reported the failure of a transaction, of which then nothing took
    /// effect. A session that is ended may have committed before.
    pub fn is_rollback(&self) -> bool {
        match self {
            Self::Postgres(error) => error.code().is_some_and(|code| {
                let code = code.code();
                !code.starts_with("08") && !code.starts_with("57")
            }),
            _ => false,
        }
    }
}

impl From<Error> for ServerError {
    fn from(error: Error) -> Self {
        match error {
            Error::Open(error) => error,
            error => Self::Other(Box::new(error)),
        }
    }
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        Self::Unreadable(Box::new(error))
    }
}

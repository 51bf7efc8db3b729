//! Reasons why a database on PostgreSQL cannot be used: one line each, with its address and what to do.

use std::error::Error as StdError;

use crate::store::relocation::Relocation;

/// A database on PostgreSQL cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PostgresOpenError {
    /// No server that can be written accepts a connection.
    #[error("{address}: cannot be connected to")]
    Unreachable {
        /// The database.
        address: String,
        /// The last failure.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The certificates for TLS cannot be used.
    #[error("{address}: TLS cannot be set up; check sslrootcert")]
    Tls {
        /// The database.
        address: String,
        /// The reason.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The server is too old.
    #[error("{address}: is on PostgreSQL {found}; version 15 or later is needed")]
    Version {
        /// The database.
        address: String,
        /// The server's version.
        found: String,
    },
    /// A setting of the server would lose what was acknowledged, or would not keep it as it is.
    #[error("{address}: the server has {setting} = {found} where {wanted} is needed")]
    Setting {
        /// The database.
        address: String,
        /// The setting.
        setting: &'static str,
        /// Its value.
        found: String,
        /// The value that it must have.
        wanted: &'static str,
    },
    /// Statements of one connection reach different sessions.
    #[error(
        "{0}: is behind a pooler that gives each transaction another session; connect to the server \
         itself, or set the pooler to session mode"
    )]
    Pooler(String),
    /// Two sessions got the same advisory lock.
    #[error("{0}: advisory locks have no effect on this server, so it cannot be used")]
    Locks(String),
    /// There is a schema of this name that this program did not make.
    #[error("{0}: its schema order_service belongs to another program; name another database")]
    Foreign(String),
    /// A later version has been at work.
    #[error("{0}: was written by a later version of this program; use that version")]
    Newer(String),
    /// There is no schema.
    #[error("{0}: there is no order database in it; start the service on it first")]
    Missing(String),
    /// A connection leads to another database than the first one.
    #[error("{0}: leads to another database than before; end this program, and start it again")]
    Replaced(String),
    /// Its orders are in another database.
    #[error("{address}: {relocation}")]
    Relocated {
        /// The database.
        address: String,
        /// Where they are.
        relocation: Relocation,
    },
    /// The server refused what opening takes.
    #[error("{address}: cannot be used")]
    Other {
        /// The database.
        address: String,
        /// The server's answer.
        source: Box<dyn StdError + Send + Sync>,
    },
}

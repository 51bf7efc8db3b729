//! Reasons why a database on PostgreSQL cannot be used.

use crate::store::lines::BoxError;
use crate::store::relocation::Relocation;

/// Reasons why a database on PostgreSQL cannot be used. Each completes a sentence that begins with its address.
#[derive(Debug, thiserror::Error)]
pub(in crate::store) enum ServerError {
    /// No server that can be written accepts a connection. The source is the last failure.
    #[error("cannot be connected to")]
    Unreachable(#[source] BoxError),
    /// Trying again would only repeat a failed login.
    #[error("refuses the login; check the user and the password{0}")]
    Refused(&'static str, #[source] BoxError),
    #[error("asks for a password; set PGPASSWORD, or name a file in PGPASSFILE that has it")]
    NoPassword,
    #[error("TLS cannot be set up; check sslrootcert")]
    Tls(#[source] BoxError),
    #[error(
        "its certificate cannot be verified; it has to name this host and be signed by an authority of \
         sslrootcert or of the system, and not by itself"
    )]
    Certificate(#[source] BoxError),
    #[error("is on PostgreSQL {0}; version 15 or later is needed")]
    Version(String),
    /// A setting of the server would lose what was acknowledged, or would not keep it as it is.
    #[error(
        "its sessions have {setting} = {found} where {wanted} is needed; the server, the database or the role \
         sets that"
    )]
    Setting {
        setting: &'static str,
        found: String,
        wanted: &'static str,
    },
    /// Statements of one connection reach different sessions.
    #[error(
        "is behind a pooler that gives each transaction another session; connect to the server itself, or set \
         the pooler to session mode"
    )]
    Pooler,
    /// Two sessions got the same advisory lock.
    #[error("advisory locks have no effect on this server, so it cannot be used")]
    Locks,
    /// There is a schema of this name that this program did not make.
    #[error("its schema order_service belongs to another program; name another database")]
    Foreign,
    #[error("was written by a later version of this program; use that version")]
    Newer,
    #[error("there is no order database in it; name the one that the service uses")]
    Missing,
    /// A connection leads to another database than the first one.
    #[error("leads to another database than before; end this program, and start it again")]
    Replaced,
    /// The orders are in another database.
    #[error("{0}")]
    Relocated(Relocation),
    /// The server refused what opening takes.
    #[error("cannot be used")]
    Other(#[source] BoxError),
}

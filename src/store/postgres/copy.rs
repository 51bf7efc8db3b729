//! A server's database that is copied from or into; see `store/copy.rs`.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;

use super::connect::Connector;
use super::error::Error;
use super::history::ORIGIN;
use super::lines::LineSession;
use super::session::{LEADER_LOCK, Session};
use super::{PostgresUrl, repeat};
use crate::store::OpenError;
use crate::store::copy::{Access, Side, Table};
use crate::store::lines::BoxError;
use crate::store::relocation::{Purpose, Relocation};

/// Settings of a session that copies: a transaction may wait for the other database.
const SETTINGS: &str = "SET idle_in_transaction_session_timeout = 0; SET lock_timeout = '60s'";

/// Has the database refuse writes of every program.
const REFUSE: &str = "\
    CREATE TRIGGER relocated BEFORE INSERT OR UPDATE OR DELETE ON orders EXECUTE FUNCTION refuse(); \
    CREATE TRIGGER relocated BEFORE UPDATE ON heartbeat EXECUTE FUNCTION refuse(); \
    CREATE TRIGGER relocated BEFORE INSERT OR UPDATE ON write_probe EXECUTE FUNCTION refuse()";

const ALLOW: &str = "\
    DROP TRIGGER IF EXISTS relocated ON orders; DROP TRIGGER IF EXISTS relocated ON heartbeat; \
    DROP TRIGGER IF EXISTS relocated ON write_probe";

/// The tables that every write changes one of. All at once or none: programs lock them in any order.
const LOCK: &str = "LOCK TABLE heartbeat, orders, write_probe IN EXCLUSIVE MODE";

/// Longest wait for one of the tables, shorter than the time after which the server looks for
/// deadlocks.
const LOCK_WAIT: &str = "SET LOCAL lock_timeout = '300ms'";

/// Time after which the tables are given up.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause before the tables are tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(30);

impl LineSession {
    /// Opens a database that is there, whether or not its orders have moved. It is only read.
    pub fn open_to_read(url: &PostgresUrl) -> Result<Self, OpenError> {
        let connector = Connector::new(url, Purpose::Copy(None))?;
        Self::connect(connector, |connector| async move {
            let session = connector.session_for_reading().await?;
            session.execute(SETTINGS).await?;
            Ok(session)
        })
    }

    /// Opens a database that is there, whether or not its orders have moved.
    pub fn open_source(url: &PostgresUrl) -> Result<Self, OpenError> {
        Self::prepare(url, Purpose::Copy(None), true)
    }

    /// Opens a database to copy into; a new one is marked from its first moment on.
    pub fn open_target(url: &PostgresUrl, incomplete: &Relocation) -> Result<Self, OpenError> {
        let mark = relocate(Some(incomplete));
        Self::prepare(url, Purpose::Copy(Some(mark)), false)
    }

    fn prepare(url: &PostgresUrl, purpose: Purpose, must_exist: bool) -> Result<Self, OpenError> {
        let connector = Connector::new(url, purpose)?;
        Self::connect(connector, move |connector| async move {
            let session = repeat(|| connector.prepare(must_exist)).await?;
            session.execute(SETTINGS).await?;
            Ok(session)
        })
    }
}

fn relocate(relocation: Option<&Relocation>) -> String {
    Relocation::statements(relocation, REFUSE, ALLOW)
}

/// Begins a transaction that keeps all programs from writing. Lets go of what it has and tries again
/// rather than wait for a program that waits for it.
async fn lock(session: &Session) -> Result<(), Error> {
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        session.execute(&format!("BEGIN; {LOCK_WAIT}")).await?;
        match session.execute(LOCK).await {
            Err(Error::Postgres(error))
                if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
                    && Instant::now() < deadline =>
            {
                session.execute("ROLLBACK").await?;
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            result => return result,
        }
    }
}

impl Side for LineSession {
    fn address(&self) -> String {
        LineSession::address(self).to_owned()
    }

    fn is_backup(&self) -> bool {
        false
    }

    fn begin(&mut self, access: Access) -> Result<(), BoxError> {
        self.run(move |session| async move {
            match access {
                Access::Snapshot => {
                    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                    session.execute(begin).await
                }
                Access::Write => session.execute("BEGIN").await,
                Access::Exclusive => lock(&session).await,
            }
        })
    }

    fn commit(&mut self) -> Result<(), BoxError> {
        Side::execute(self, "COMMIT")
    }

    fn execute(&self, sql: &str) -> Result<(), BoxError> {
        let sql = sql.to_owned();
        self.run(move |session| async move { session.execute(&sql).await })
    }

    fn insert(&self, table: &Table, lines: &[u8]) -> Result<(), BoxError> {
        let sql = format!("COPY {} ({}) FROM STDIN", table.name, table.columns);
        let lines = Bytes::copy_from_slice(lines);
        self.run(move |session| async move { session.copy_in(&sql, lines).await })
    }

    fn relocate(&self, to: Option<&Relocation>) -> Result<(), BoxError> {
        Side::execute(self, &relocate(to))
    }

    fn continue_history(&self) -> Result<(), BoxError> {
        let sql = format!(
            "UPDATE histories SET origin = ({ORIGIN}) \
             WHERE number = (SELECT max(number) FROM histories)"
        );
        Side::execute(self, &sql)
    }

    fn try_lead(&mut self) -> Result<bool, BoxError> {
        self.run(|session| async move { session.try_lock(LEADER_LOCK).await })
    }

    fn finish(&mut self) -> Result<(), BoxError> {
        // Programs begin with plans for tables that are not empty.
        Side::execute(self, "ANALYZE orders, journal")
    }
}

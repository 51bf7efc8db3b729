//! Histories of the journal. A database begins a new one whenever its server is another than before: it
//! may lack entries that were acknowledged, which the program that wrote them notices.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error::Error;
use super::session::{NUMBERING_LOCK, Session};

/// The server that a session is on: cluster, database and timeline.
pub(super) const ORIGIN: &str = "\
    SELECT concat_ws(':', (SELECT system_identifier FROM pg_control_system()), \
        (SELECT oid FROM pg_database WHERE datname = current_database()), \
        substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)) AS origin";

/// Entries of the journal that this program has written.
#[derive(Default)]
pub(super) struct OwnEntries(Mutex<Written>);

#[derive(Default)]
struct Written {
    /// The history of the server; `None` before the first.
    history: Option<i64>,
    newest: i64,
    lost: u64,
}

impl OwnEntries {
    /// Notes that entries up to this one were written.
    pub fn on_written(&self, newest: i64) {
        let mut written = self.written();
        written.newest = written.newest.max(newest);
    }

    /// Number of entries that a server lacks that was promoted.
    pub fn lost(&self) -> u64 {
        self.written().lost
    }

    /// Begins a new history if the server is another one than before, and notices what it lacks.
    pub async fn enter_history(&self, session: &Session) -> Result<(), Error> {
        begin_history(session).await?;
        let sql = "SELECT id, newest_entry FROM histories ORDER BY number";
        let histories = session.query(sql, &[]).await?;
        let histories = histories
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        self.compare(&histories.collect::<Result<Vec<_>, Error>>()?);
        Ok(())
    }

    /// Compares the histories of the journal, oldest first, with what this program has written. Each names
    /// the newest entry that the server had as it began.
    fn compare(&self, histories: &[(i64, i64)]) {
        let mut written = self.written();
        let Some((last, newest_entry)) = histories.last() else {
            return;
        };
        let before = written.history.replace(*last);
        let Some(before) = before.filter(|before| before != last) else {
            return;
        };
        // The next one after that in which this program has written, unless that was lost too.
        let index = histories.iter().position(|(id, _)| *id == before);
        let next = index.and_then(|index| histories.get(index + 1));
        let newest_entry = next.map_or(*newest_entry, |(_, newest_entry)| *newest_entry);
        let lost = written.newest - newest_entry;
        written.newest = written.newest.min(newest_entry);
        if lost > 0 {
            written.lost += lost.unsigned_abs();
            log::error!(
                "entries were lost that this program had written: the server has none after entry \
                 {newest_entry} lost={lost}; it was promoted from a standby that lacked them, or \
                 restored"
            );
        }
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins a new history if the server is not the one of the last: another cluster or database, or the
/// same on another timeline, which begins with each promotion and may lack what was acknowledged.
async fn begin_history(session: &Session) -> Result<(), Error> {
    let is_new = format!(
        "SELECT origin, \
            (SELECT h.origin FROM histories h ORDER BY number DESC LIMIT 1) IS DISTINCT FROM origin \
         FROM ({ORIGIN}) AS here"
    );
    const BEGIN: &str = "INSERT INTO histories (number, id, origin, newest_order, newest_entry, pruned) \
         SELECT coalesce((SELECT max(number) FROM histories), 0) + 1, $1, $2, \
                coalesce((SELECT max(seq) FROM orders), 0), \
                coalesce((SELECT max(seq) FROM journal), 0), entries \
         FROM pruned \
         WHERE $2 IS DISTINCT FROM (SELECT origin FROM histories ORDER BY number DESC LIMIT 1) \
         RETURNING newest_entry";
    let row = session.query_one(&is_new, &[]).await?;
    if !row.try_get::<_, bool>(1)? {
        return Ok(());
    }
    let origin: String = row.try_get(0)?;
    let id = i64::from(fastrand::u32(..));
    // A server that is promoted may have no standby yet, and reads need none. If the row is lost with the
    // server, its history is as well: cursors in it are refused.
    let begin = "BEGIN; SET LOCAL synchronous_commit = local";
    session.execute(begin).await?;
    session.lock(NUMBERING_LOCK).await?;
    let begun = session.query(BEGIN, &[&id, &origin]).await?;
    session.execute("COMMIT").await?;
    if let Some(row) = begun.first()
        && let entry @ 1.. = row.try_get::<_, i64>(0)?
    {
        log::warn!(
            "the database is on another server or timeline than before: began history={id} after \
             entry={entry}"
        );
    }
    Ok(())
}

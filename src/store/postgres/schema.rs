//! Schema of a database: its format, and the migrations up to it.

use std::pin::pin;
use std::time::Duration;

use super::error::Error;
use super::open_error::ServerError;
use super::session::{SCHEMA_LOCK, Session};
use super::settings::NO_TIMEOUTS;

/// Migrations, oldest first: each leads from one format to the next, the first from an empty
/// database. They are only added, never changed.
const MIGRATIONS: &[&str] = &[
    include_str!("../../../sql/postgres/001_schema.sql"),
    include_str!("../../../sql/postgres/002_relocation.sql"),
];

/// Statements that set the storage parameters of a database, of any format, that lacks them.
const STORAGE: &str = include_str!("../../../sql/postgres/storage.sql");

/// Format that this program writes.
pub(super) const FORMAT: i32 = MIGRATIONS.len() as i32;

/// The first format that can say that the orders are in another database.
pub(super) const FORMAT_WITH_RELOCATION: i32 = 2;

/// Wait for another program that prepares the database, after which that is logged.
const LOGGED_WAIT: Duration = Duration::from_secs(1);

/// The name of this application in `meta`.
const APPLICATION: &str = "order-service";

/// Brings the schema up to date; returns whether there was none. A new one is marked by the statements
/// `mark`. Safe to do at the same moment in several programs. Takes as long as the migrations do, of this
/// program or of another: each is one transaction, which a time limit would only begin anew.
pub(super) async fn migrate(
    session: &Session,
    must_exist: bool,
    mark: Option<&str>,
) -> Result<bool, Error> {
    const PRESENT: &str = "SELECT to_regnamespace('order_service') IS NOT NULL, \
                                  to_regclass('order_service.meta') IS NOT NULL";
    session.execute(NO_TIMEOUTS).await?;
    session.execute("BEGIN; SET LOCAL lock_timeout = 0").await?;
    let mut lock = pin!(session.lock(SCHEMA_LOCK));
    match tokio::time::timeout(LOGGED_WAIT, &mut lock).await {
        Ok(locked) => locked?,
        Err(_) => {
            log::info!("waiting for another program that migrates the database");
            lock.await?;
        }
    }
    session.execute("SET LOCAL lock_timeout = '8s'").await?;
    let present = session.query_one(PRESENT, &[]).await?;
    let format = match (present.try_get(0)?, present.try_get(1)?) {
        (false, _) => 0,
        (true, false) => return Err(ServerError::Foreign.into()),
        (true, true) => {
            let row = session.query_one("SELECT application, format FROM meta", &[]);
            let row = row.await?;
            if row.try_get::<_, &str>(0)? != APPLICATION {
                return Err(ServerError::Foreign.into());
            }
            row.try_get::<_, i32>(1)?
        }
    };
    if format > FORMAT {
        return Err(ServerError::Newer.into());
    }
    if format == 0 && must_exist {
        return Err(ServerError::Missing.into());
    }
    for (number, migration) in (1..).zip(MIGRATIONS) {
        if number > format {
            if format > 0 {
                log::info!("migrating the database, which may take minutes format={number}");
            }
            session
                .execute(migration)
                .await
                .map_err(ServerError::from)?;
        }
    }
    if format == 0 {
        let sql = "INSERT INTO meta (id, application, format, instance) VALUES (1, $1, $2, $3)";
        let instance = fastrand::i64(..);
        session
            .query(sql, &[&APPLICATION, &FORMAT, &instance])
            .await?;
        if let Some(mark) = mark {
            session.execute(mark).await?;
        }
    } else if format < FORMAT {
        session
            .query("UPDATE meta SET format = $1", &[&FORMAT])
            .await?;
    }
    session.execute(STORAGE).await?;
    session.execute("COMMIT").await?;
    Ok(format == 0)
}

//! Settings of each session, and the settings of a server that durability depends on.

use super::error::Error;
use super::open_error::ServerError;
use super::session::Session;

/// The oldest version that is tested.
const VERSION_MIN: i32 = 150_000;

/// Settings of each session. Plans must not depend on statistics, which are missing in a new
/// database: each table is read through an index, and what is joined with the values of a statement
/// is hashed. The server gives up on a client that has vanished after some seconds, not after hours,
/// and on one that has left a transaction open, but not on one that is idle, as the leader's is.
const SESSION_SETTINGS: &str = "\
    SET search_path = order_service; SET client_min_messages = warning; \
    SET plan_cache_mode = force_generic_plan; SET jit = off; SET enable_seqscan = off; \
    SET enable_nestloop = off; SET enable_bitmapscan = off; \
    SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '8s'; \
    SET idle_session_timeout = 0; SET default_transaction_isolation = 'read committed'; \
    SET tcp_keepalives_idle = 2; SET tcp_keepalives_interval = 1; SET tcp_keepalives_count = 3; \
    SET tcp_user_timeout = 4000";

/// Lifts the server's time limits of statements and transactions, for work that takes long.
pub(super) const NO_TIMEOUTS: &str = "\
    SELECT set_config(name, '0', false) FROM pg_settings \
    WHERE name IN ('statement_timeout', 'transaction_timeout')";

/// Settings that durability rests on, the values that each may have, and the one to recommend.
const SERVER_SETTINGS: [(&str, &[&str], &str); 4] = [
    ("server_encoding", &["UTF8"], "UTF8"),
    ("fsync", &["on"], "on"),
    ("full_page_writes", &["on"], "on"),
    (
        "synchronous_commit",
        &["on", "remote_write", "remote_apply"],
        "on",
    ),
];

/// Sets up a session, and checks the version and the settings of its server.
pub(super) async fn apply(session: &Session) -> Result<(), Error> {
    // A session keeps the synchronous_commit that is checked, whatever is set on the server later.
    const SQL: &str = "SELECT current_setting('server_version_num')::integer, \
        current_setting('server_version'), \
        set_config('synchronous_commit', current_setting('synchronous_commit'), false), \
        ARRAY(SELECT current_setting(name) FROM unnest($1::text[]) AS name)";
    session.execute(SESSION_SETTINGS).await?;
    let names = SERVER_SETTINGS.map(|(setting, _, _)| setting);
    let row = session.query_one(SQL, &[&&names[..]]).await?;
    if row.try_get::<_, i32>(0)? < VERSION_MIN {
        return Err(ServerError::Version(row.try_get(1)?).into());
    }
    let found: Vec<String> = row.try_get(3)?;
    for ((setting, allowed, wanted), found) in SERVER_SETTINGS.into_iter().zip(found) {
        if !allowed.contains(&&*found) {
            return Err(ServerError::Setting {
                setting,
                found,
                wanted,
            }
            .into());
        }
    }
    Ok(())
}

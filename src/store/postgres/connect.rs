//! Connecting: sessions on a server that can be trusted, the schema in it, and the histories that its
//! readers rely on.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::sync::Notify;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Config, NoTls, Row};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;

use super::address::PostgresUrl;
use super::error::Error;
use super::open_error::PostgresOpenError;
use super::session::Session;
use crate::clock::{Clock, DatabaseClock, SystemClock};
use crate::store::relocation::Relocation;

/// Migrations, oldest first: each leads from one format to the next, the first from an empty
/// database. They are only added, never changed.
const MIGRATIONS: &[&str] = &[
    include_str!("../../../sql/postgres/001_schema.sql"),
    include_str!("../../../sql/postgres/002_relocation.sql"),
];

/// Format that this program writes.
const FORMAT: i32 = MIGRATIONS.len() as i32;

/// The first format that can say that the orders are in another database.
const FORMAT_WITH_RELOCATION: i32 = 2;

/// The oldest version that is tested.
const VERSION_MIN: i32 = 150_000;

/// Locks of a transaction or of a session: "OrdS" and a number.
pub(super) const NUMBERING_LOCK: i64 = 0x4f72_6453_0000_0001;
pub(super) const LEADER_LOCK: i64 = 0x4f72_6453_0000_0002;
const SCHEMA_LOCK: i64 = 0x4f72_6453_0000_0003;

/// Time limit for a connection and all that is checked on it, however many hosts are tried.
const SESSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for which other hosts are waited for once one can be written.
const OTHERS_TIMEOUT: Duration = Duration::from_millis(200);

/// Settings of each session. Plans must not depend on statistics, which are missing in a new
/// database: each table is read through an index, and what is joined with the values of a statement
/// is hashed. The server gives up on a client that has vanished after some seconds, not after hours,
/// and on one that has left a transaction open.
const SESSION_SETTINGS: &str = "\
    SET search_path = order_service; SET client_min_messages = warning; \
    SET plan_cache_mode = force_generic_plan; SET jit = off; SET enable_seqscan = off; \
    SET enable_nestloop = off; SET enable_bitmapscan = off; \
    SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '8s'; \
    SET tcp_keepalives_idle = 2; SET tcp_keepalives_interval = 1; SET tcp_keepalives_count = 3; \
    SET tcp_user_timeout = 4000";

/// Settings that durability rests on, and the values that each may have.
const SETTINGS: [(&str, &[&str], &str); 4] = [
    ("server_encoding", &["UTF8"], "UTF8"),
    ("fsync", &["on"], "on"),
    ("full_page_writes", &["on"], "on"),
    (
        "synchronous_commit",
        &["on", "remote_write", "remote_apply"],
        "on",
    ),
];

/// The database that the first connection led to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    system: String,
    instance: i64,
}

/// The way to new sessions on one database.
pub(super) struct Connector {
    url: PostgresUrl,
    address: String,
    tls: Option<MakeRustlsConnect>,
    identity: OnceLock<Identity>,
    purpose: Purpose,
    /// The highest number of a timeline so far.
    timeline: Arc<AtomicI32>,
    clock: DatabaseClock,
    /// Uptime in milliseconds at which the server was last checked.
    checked_at: AtomicU64,
    is_replicated: AtomicBool,
    /// Cancelled once a later version of the program has changed the schema.
    newer: CancellationToken,
    reconnects: AtomicU64,
    written: Mutex<Written>,
}

/// What this process knows of the journal, to notice that a server lacks some of it.
#[derive(Default)]
struct Written {
    /// The history of the server; `None` before the first.
    history: Option<i64>,
    /// The newest entry that this process has written.
    newest_entry: i64,
    /// Number of entries that were lost.
    lost: u64,
}

/// The state of the server: its clock, the format of the database, and whether a commit waits for a
/// standby.
pub(super) const SERVER_STATE: &str = "\
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, format, \
        current_setting('synchronous_standby_names') <> '' \
    FROM meta WHERE id = 1";

/// Interval between two checks of the state of the server, while there is something to do on it anyway.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl Connector {
    pub fn new(url: &PostgresUrl) -> Result<Self, PostgresOpenError> {
        Self::with_purpose(url, Purpose::Use)
    }

    /// Like [`Connector::new`], but for a copy; the statements mark a database that is created.
    pub fn for_copying(url: &PostgresUrl, mark: Option<String>) -> Result<Self, PostgresOpenError> {
        Self::with_purpose(url, Purpose::Copy(mark))
    }

    fn with_purpose(url: &PostgresUrl, purpose: Purpose) -> Result<Self, PostgresOpenError> {
        let address = url.to_string();
        let tls = match url.config.get_ssl_mode() {
            SslMode::Disable => None,
            _ => Some(tls(url).map_err(|source| PostgresOpenError::Tls {
                address: address.clone(),
                source,
            })?),
        };
        Ok(Self {
            url: url.clone(),
            address,
            tls,
            identity: OnceLock::new(),
            purpose,
            timeline: Arc::default(),
            clock: DatabaseClock::of_server(),
            checked_at: AtomicU64::new(0),
            is_replicated: AtomicBool::new(false),
            newer: CancellationToken::new(),
            reconnects: AtomicU64::new(0),
            written: Mutex::default(),
        })
    }

    /// The address, without a password.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The clock of the server.
    pub fn clock(&self) -> &DatabaseClock {
        &self.clock
    }

    /// Returns whether commits wait for a standby.
    pub fn is_replicated(&self) -> bool {
        self.is_replicated.load(Ordering::Relaxed)
    }

    /// Waits until a later version of the program has changed the schema.
    pub async fn newer(&self) -> PostgresOpenError {
        self.newer.cancelled().await;
        PostgresOpenError::Newer(self.address.clone())
    }

    /// Number of sessions that were opened in the place of another one.
    pub fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }

    /// Number of entries that this process has written and that a server lacks that was promoted.
    pub fn lost_entries(&self) -> u64 {
        self.written().lost
    }

    /// Notes that entries up to this one were written.
    pub fn on_written(&self, newest_entry: i64) {
        let mut written = self.written();
        written.newest_entry = written.newest_entry.max(newest_entry);
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a new history if the server is another one than before, and notices what it lacks.
    async fn enter_history(&self, session: &Session) -> Result<(), Error> {
        begin_history(session).await?;
        let sql = "SELECT id, newest_entry FROM histories ORDER BY number";
        let histories = session.query(sql, &[]).await?;
        let histories = histories
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        self.compare_histories(&histories.collect::<Result<Vec<_>, Error>>()?);
        Ok(())
    }

    /// Compares the histories of the journal, oldest first, with what this process has written. Each names
    /// the newest entry that the server had as it began.
    fn compare_histories(&self, histories: &[(i64, i64)]) {
        let mut written = self.written();
        let Some((last, newest_entry)) = histories.last() else {
            return;
        };
        let before = written.history.replace(*last);
        let Some(before) = before.filter(|before| before != last) else {
            return;
        };
        // The next one after that in which this process has written, unless that was lost too.
        let at = histories.iter().position(|(id, _)| *id == before);
        let next = at.and_then(|at| histories.get(at + 1));
        let newest_entry = next.map_or(*newest_entry, |(_, newest_entry)| *newest_entry);
        let lost = written.newest_entry - newest_entry;
        written.newest_entry = written.newest_entry.min(newest_entry);
        if lost > 0 {
            written.lost += lost.unsigned_abs();
            log::error!(
                "entries were lost that this process had written: the server has none after entry \
                 {newest_entry} lost={lost}; it was promoted from a standby that lacked them, or \
                 restored"
            );
        }
    }

    /// Returns whether [`SERVER_STATE`] is to be sent with the next statements.
    pub fn is_check_due(&self) -> bool {
        let now = SystemClock.uptime().as_millis() as u64;
        let before = self.checked_at.load(Ordering::Relaxed);
        now.saturating_sub(before) >= CHECK_INTERVAL.as_millis() as u64
    }

    /// Follows the answer to [`SERVER_STATE`], which was sent after the uptime `asked_at`.
    pub fn on_server_state(&self, row: &Row, asked_at: Duration) -> Result<(), Error> {
        let now = SystemClock.uptime().as_millis() as u64;
        self.checked_at.store(now, Ordering::Relaxed);
        self.clock.measure(row.try_get(0)?, asked_at);
        if row.try_get::<_, i32>(1)? > FORMAT {
            self.newer.cancel();
        }
        let is_replicated = row.try_get(2)?;
        if self.is_replicated.swap(is_replicated, Ordering::Relaxed) != is_replicated {
            match is_replicated {
                true => log::info!("commits wait for a standby from now on"),
                false => log::warn!("commits wait for no standby any more"),
            }
        }
        Ok(())
    }

    /// Opens a session in the place of one that has ended.
    pub async fn next_session(&self) -> Result<Session, Error> {
        let session = self.session().await?;
        self.on_reconnect();
        Ok(session)
    }

    /// Counts a session that was opened in the place of one that has ended.
    pub fn on_reconnect(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    /// Opens a session on the database that was prepared.
    pub async fn session(&self) -> Result<Session, Error> {
        self.session_with(None).await
    }

    /// Like [`Connector::session`]; notifications of the database wake `notified`.
    pub async fn session_with(&self, notified: Option<Arc<Notify>>) -> Result<Session, Error> {
        self.within_limit(async {
            let session = self.connect(notified).await?;
            self.check_identity(&session).await?;
            self.enter_history(&session).await?;
            Ok(session)
        })
        .await
    }

    /// Opens the first session: checks the server, and creates the schema unless it `must_exist`.
    pub async fn prepare(&self, must_exist: bool) -> Result<Session, Error> {
        self.within_limit(async {
            let session = self.connect(None).await?;
            self.check_locks(&session).await?;
            let is_new = self.migrate(&session, must_exist).await?;
            if !self.check_identity(&session).await? {
                self.enter_history(&session).await?;
            }
            match is_new {
                true => log::warn!("created the database {}", self.address),
                false => log::info!("using the database {}", self.address),
            }
            Ok(session)
        })
        .await
    }

    /// Opens a session that only reads, on a database that must be there. Nothing is migrated.
    pub async fn session_for_reading(&self) -> Result<Session, Error> {
        self.within_limit(async {
            let session = self.connect(None).await?;
            let present = "SELECT to_regclass('order_service.meta') IS NOT NULL";
            if !session
                .query_one(present, &[])
                .await?
                .try_get::<_, bool>(0)?
            {
                return Err(PostgresOpenError::Missing(self.address.clone()).into());
            }
            self.check_identity(&session).await?;
            let reads = "SET default_transaction_read_only = on";
            session.execute(reads).await?;
            Ok(session)
        })
        .await
    }

    async fn within_limit<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::time::timeout(SESSION_TIMEOUT, work)
            .await
            .unwrap_or_else(|_| {
                Err(PostgresOpenError::Unreachable {
                    address: self.address.clone(),
                    source: "no answer in time".into(),
                }
                .into())
            })
    }

    /// Connects to all hosts at once, and returns a session on one that can be written: of several, that on
    /// the newest timeline. A host that is gone, hangs or is a standby holds up no other for long.
    async fn connect(&self, notified: Option<Arc<Notify>>) -> Result<Session, Error> {
        let servers = self.url.servers();
        let mut attempts: FuturesUnordered<_> = servers
            .iter()
            .map(|config| self.connect_to(config, notified.clone()))
            .collect();
        let mut found: Option<Session> = None;
        let mut failure = Error::Silent;
        loop {
            let next = attempts.next();
            let next = match found {
                None => next.await,
                Some(_) => tokio::time::timeout(OTHERS_TIMEOUT, next)
                    .await
                    .unwrap_or(None),
            };
            match next {
                Some(Ok(session)) => {
                    // It is on an older timeline.
                    found = found.filter(|found| !found.is_closed()).or(Some(session));
                }
                Some(Err(error)) => failure = error,
                None => return found.ok_or(failure),
            }
        }
    }

    /// Connects to one host, and checks the settings of the server.
    async fn connect_to(
        &self,
        config: &Config,
        notified: Option<Arc<Notify>>,
    ) -> Result<Session, Error> {
        let unreachable = |error: tokio_postgres::Error| PostgresOpenError::Unreachable {
            address: self.address.clone(),
            source: Box::new(error),
        };
        let session = match &self.tls {
            None => {
                let (client, connection) = config.connect(NoTls).await.map_err(unreachable)?;
                Session::start(client, connection, notified)
            }
            Some(tls) => {
                let connected = config.connect(tls.clone()).await;
                let (client, connection) = connected.map_err(unreachable)?;
                Session::start(client, connection, notified)
            }
        };
        session.execute(SESSION_SETTINGS).await?;
        self.check_settings(&session).await?;
        self.check_timeline(&session).await?;
        Ok(session)
    }

    /// Checks that a server is not a former primary: each promotion begins a timeline with a higher
    /// number.
    async fn check_timeline(&self, session: &Session) -> Result<(), Error> {
        const TIMELINE: &str =
            "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer";
        let found: i32 = session.query_one(TIMELINE, &[]).await?.try_get(0)?;
        let newest = self.timeline.fetch_max(found, Ordering::Relaxed);
        session.set_timeline(found, &self.timeline);
        if found < newest {
            return Err(PostgresOpenError::Unreachable {
                address: self.address.clone(),
                source: format!(
                    "the server is a former primary: it is on timeline {found}, and timeline \
                     {newest} has begun"
                )
                .into(),
            }
            .into());
        }
        Ok(())
    }

    async fn check_settings(&self, session: &Session) -> Result<(), Error> {
        // A session keeps the synchronous_commit that is checked, whatever is set on the server later.
        const SQL: &str = "SELECT current_setting('server_version_num')::integer, \
            current_setting('server_version'), \
            set_config('synchronous_commit', current_setting('synchronous_commit'), false), \
            ARRAY(SELECT current_setting(name) FROM unnest($1::text[]) AS name)";
        let names = SETTINGS.map(|(setting, _, _)| setting);
        let row = session.query_one(SQL, &[&&names[..]]).await?;
        if row.try_get::<_, i32>(0)? < VERSION_MIN {
            return Err(PostgresOpenError::Version {
                address: self.address.clone(),
                found: row.try_get(1)?,
            }
            .into());
        }
        let found: Vec<String> = row.try_get(3)?;
        for ((setting, allowed, wanted), found) in SETTINGS.into_iter().zip(found) {
            if !allowed.contains(&&*found) {
                return Err(PostgresOpenError::Setting {
                    address: self.address.clone(),
                    setting,
                    found,
                    wanted,
                }
                .into());
            }
        }
        Ok(())
    }

    /// Checks that a lock of one session keeps another one out, and that a connection stays with its
    /// session while another one is in a transaction.
    async fn check_locks(&self, session: &Session) -> Result<(), Error> {
        const LOCK: &str = "SELECT pg_try_advisory_lock($1), pg_backend_pid()";
        let other = self.connect(None).await?;
        // Of two servers that can be written, one is a former primary.
        self.check_timeline(session).await?;
        let key = fastrand::i64(..);
        let first = session.query_one(LOCK, &[&key]).await?;
        // A pooler lends it the session that was used last.
        other.execute("BEGIN").await?;
        let taken = other.query_one(LOCK, &[&key]).await?;
        let pid = session.query_one("SELECT pg_backend_pid()", &[]).await?;
        let is_same = pid.try_get::<_, i32>(0)? == first.try_get::<_, i32>(1)?
            && taken.try_get::<_, i32>(1)? != first.try_get::<_, i32>(1)?;
        if !is_same {
            return Err(PostgresOpenError::Pooler(self.address.clone()).into());
        }
        if !first.try_get::<_, bool>(0)? || taken.try_get::<_, bool>(0)? {
            return Err(PostgresOpenError::Locks(self.address.clone()).into());
        }
        session
            .query_one("SELECT pg_advisory_unlock($1)", &[&key])
            .await?;
        Ok(())
    }

    /// Brings the schema up to date; returns whether there was none. Safe to do at the same moment in
    /// several processes.
    async fn migrate(&self, session: &Session, must_exist: bool) -> Result<bool, Error> {
        session.execute("BEGIN").await?;
        session
            .query_one("SELECT 1 FROM pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK])
            .await?;
        let found = session
            .query_one(
                "SELECT to_regnamespace('order_service') IS NOT NULL, \
                        to_regclass('order_service.meta') IS NOT NULL",
                &[],
            )
            .await?;
        let format = match (found.try_get(0)?, found.try_get(1)?) {
            (false, _) => 0,
            (true, false) => return Err(PostgresOpenError::Foreign(self.address.clone()).into()),
            (true, true) => {
                let row = session.query_one("SELECT application, format FROM meta", &[]);
                let row = row.await?;
                if row.try_get::<_, &str>(0)? != APPLICATION {
                    return Err(PostgresOpenError::Foreign(self.address.clone()).into());
                }
                row.try_get::<_, i32>(1)?
            }
        };
        if format > FORMAT {
            return Err(PostgresOpenError::Newer(self.address.clone()).into());
        }
        if format == 0 && must_exist {
            return Err(PostgresOpenError::Missing(self.address.clone()).into());
        }
        for (number, migration) in (1..).zip(MIGRATIONS) {
            if number > format {
                session.execute(migration).await.map_err(|error| {
                    Error::from(PostgresOpenError::Other {
                        address: self.address.clone(),
                        source: Box::new(error),
                    })
                })?;
            }
        }
        if format == 0 {
            session
                .query(
                    "INSERT INTO meta (id, application, format, instance) VALUES (1, $1, $2, $3)",
                    &[&APPLICATION, &FORMAT, &fastrand::i64(..)],
                )
                .await?;
            if let Purpose::Copy(Some(mark)) = &self.purpose {
                session.execute(mark).await?;
            }
        } else if format < FORMAT {
            session
                .query("UPDATE meta SET format = $1", &[&FORMAT])
                .await?;
        }
        // Their processes have ended, or remember anew with their next write.
        session
            .execute("DELETE FROM writers WHERE used_at < now() - interval '1 day'")
            .await?;
        session.execute("COMMIT").await?;
        Ok(format == 0)
    }

    /// Checks that a session is on the database of the first one, as a standby that was promoted is,
    /// and that its orders may be used. Returns whether they are in another database.
    async fn check_identity(&self, session: &Session) -> Result<bool, Error> {
        let asked_at = SystemClock.uptime();
        let row = session.query_one(SERVER_STATE, &[]).await?;
        let format: i32 = row.try_get(1)?;
        if format > FORMAT {
            self.newer.cancel();
            return Err(PostgresOpenError::Newer(self.address.clone()).into());
        }
        let sql = "SELECT (SELECT system_identifier::text FROM pg_control_system()), instance \
                   FROM meta WHERE id = 1";
        let identity = session.query_one(sql, &[]).await?;
        let found = Identity {
            system: identity.try_get(0)?,
            instance: identity.try_get(1)?,
        };
        if *self.identity.get_or_init(|| found.clone()) != found {
            return Err(PostgresOpenError::Replaced(self.address.clone()).into());
        }
        self.on_server_state(&row, asked_at)?;
        if format < FORMAT_WITH_RELOCATION {
            return Ok(false);
        }
        let rows = session.query("SELECT state, address FROM relocation", &[]);
        let rows = rows.await?;
        let row = match rows.first() {
            Some(row) => Some((row.try_get(0)?, row.try_get(1)?)),
            None => None,
        };
        match (Relocation::new(row), &self.purpose) {
            (None, _) => Ok(false),
            (Some(_), Purpose::Copy(_)) => Ok(true),
            (Some(relocation), Purpose::Use) => Err(PostgresOpenError::Relocated {
                address: self.address.clone(),
                relocation,
            }
            .into()),
        }
    }
}

/// What a database is opened for.
enum Purpose {
    /// To use its orders.
    Use,
    /// To copy them, whether or not they have moved. The statements mark a database that is created.
    Copy(Option<String>),
}

/// The name of this application in `meta`.
const APPLICATION: &str = "order-service";

/// The server that a session is on: cluster, database and timeline.
pub(super) const ORIGIN: &str = "\
    SELECT concat_ws(':', (SELECT system_identifier FROM pg_control_system()), \
        (SELECT oid FROM pg_database WHERE datname = current_database()), \
        substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)) AS origin";

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
    session.execute("BEGIN").await?;
    session
        .query_one(
            "SELECT 1 FROM pg_advisory_xact_lock($1)",
            &[&NUMBERING_LOCK],
        )
        .await?;
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

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// TLS that verifies the server, by the certificates of the system or of a file.
fn tls(url: &PostgresUrl) -> Result<MakeRustlsConnect, BoxError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?;
    let config = match &url.root_certificates {
        None => builder.with_platform_verifier()?.with_no_client_auth(),
        Some(path) => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in CertificateDer::pem_file_iter(path)? {
                roots.add(certificate?)?;
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

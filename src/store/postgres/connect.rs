//! Connecting: sessions on a server that can be trusted, the schema in it, and the histories that its
//! readers rely on.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::sync::Notify;
use tokio_postgres::NoTls;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::address::PostgresUrl;
use super::error::Error;
use super::open_error::PostgresOpenError;
use super::session::Session;
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
}

/// What a database is opened for.
enum Purpose {
    /// To use its orders.
    Use,
    /// To copy them, whether or not they have moved. The statements mark a database that is created.
    Copy(Option<String>),
}

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
        })
    }

    /// The address, without a password.
    pub fn address(&self) -> &str {
        &self.address
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
            begin_history(&session).await?;
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
                begin_history(&session).await?;
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

    /// Connects, and checks the settings of the server.
    async fn connect(&self, notified: Option<Arc<Notify>>) -> Result<Session, Error> {
        let config = self.url.with_password();
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
        Ok(session)
    }

    async fn check_settings(&self, session: &Session) -> Result<(), Error> {
        let version = session
            .query_one(
                "SELECT current_setting('server_version_num')::integer, current_setting('server_version')",
                &[],
            )
            .await?;
        if version.try_get::<_, i32>(0)? < VERSION_MIN {
            return Err(PostgresOpenError::Version {
                address: self.address.clone(),
                found: version.try_get(1)?,
            }
            .into());
        }
        for (setting, allowed, wanted) in SETTINGS {
            let row = session
                .query_one("SELECT current_setting($1)", &[&setting])
                .await?;
            let found: String = row.try_get(0)?;
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
        let row = session
            .query_one(
                "SELECT (SELECT system_identifier::text FROM pg_control_system()), instance, format \
                 FROM meta",
                &[],
            )
            .await?;
        let found = Identity {
            system: row.try_get(0)?,
            instance: row.try_get(1)?,
        };
        let format: i32 = row.try_get(2)?;
        if format > FORMAT {
            return Err(PostgresOpenError::Newer(self.address.clone()).into());
        }
        if *self.identity.get_or_init(|| found.clone()) != found {
            return Err(PostgresOpenError::Replaced(self.address.clone()).into());
        }
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

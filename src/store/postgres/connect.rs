//! Sessions on a server that can be trusted: connecting, and the checks of the server.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::sync::Notify;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, NoTls, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::address::{PostgresUrl, server_name};
use super::error::Error;
use super::history::OwnEntries;
use super::open_error::ServerError;
use super::schema::{FORMAT, FORMAT_WITH_RELOCATION, migrate};
use super::session::Session;
use super::settings::{self, NO_TIMEOUTS};
use crate::clock::{Clock, DatabaseClock, SystemClock};
use crate::messages::with_causes;
use crate::store::lines::BoxError;
use crate::store::relocation::{Purpose, Relocation};
use crate::store::{OpenError, Retirement};

/// Time limit for a connection and all that is checked on it, however many hosts are tried.
const SESSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Time limit for one host: if it accepts connections and says nothing, the others' errors are still reported.
const HOST_TIMEOUT: Duration = Duration::from_secs(4);

/// Time for which other hosts are waited for once one can be written.
const OTHERS_TIMEOUT: Duration = Duration::from_millis(200);

/// Longest interval between two searches for a newer primary. Until the next, a former primary that still runs may
/// answer reads.
const PRIMARY_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The way to new sessions on one database.
pub(super) struct Connector {
    url: PostgresUrl,
    address: String,
    tls: Option<MakeRustlsConnect>,
    /// Set for each host on which sessions were found to be kept apart.
    are_checked: Vec<AtomicBool>,
    /// The cluster and the database that the first connection led to.
    identity: OnceLock<String>,
    purpose: Purpose,
    /// The highest number of a timeline so far.
    timeline: Arc<AtomicI32>,
    clock: DatabaseClock,
    /// Uptime in milliseconds at which the server was last checked.
    checked_at: AtomicU64,
    is_replicated: AtomicBool,
    retirement: Retirement,
    lost_connections: Arc<AtomicU64>,
    /// Signals each session that is opened.
    opened: Notify,
    pub own_entries: OwnEntries,
}

macro_rules! server_state {
    ($more:literal) => {
        concat!(
            "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, format, \
                current_setting('synchronous_standby_names') <> '' \
                    AND current_setting('synchronous_commit') <> 'remote_write'",
            $more,
            " WHERE meta.id = 1"
        )
    };
}

/// The state of the server: its clock, the format of the database, whether a commit waits until a standby
/// has flushed it, and where the orders have moved.
pub(super) const SERVER_STATE: &str =
    server_state!(", state, address FROM meta LEFT JOIN relocation ON true");

/// Like [`SERVER_STATE`], in a format without relocations.
const SERVER_STATE_WITHOUT_RELOCATION: &str = server_state!(", NULL::text, NULL::text FROM meta");

/// Interval between two checks of the state of the server, while something is written to it.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl Connector {
    pub fn new(url: &PostgresUrl, purpose: Purpose) -> Result<Self, OpenError> {
        Ok(Self {
            url: url.clone(),
            address: url.to_string(),
            tls: tls(url).map_err(|error| OpenError::new(url, ServerError::Tls(error)))?,
            are_checked: url
                .servers()
                .iter()
                .map(|_| AtomicBool::new(false))
                .collect(),
            identity: OnceLock::new(),
            purpose,
            timeline: Arc::default(),
            clock: DatabaseClock::of_server(),
            checked_at: AtomicU64::new(0),
            is_replicated: AtomicBool::new(false),
            retirement: Retirement::default(),
            lost_connections: Arc::default(),
            opened: Notify::new(),
            own_entries: OwnEntries::default(),
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

    /// The signal that the database must not be used any longer.
    pub fn retirement(&self) -> &Retirement {
        &self.retirement
    }

    fn retire(&self, reason: ServerError) {
        let reason = OpenError::new(&self.address, reason);
        let _ = self.retirement.set(reason);
    }

    /// Number of connections that ended with an error.
    pub fn lost_connections(&self) -> u64 {
        self.lost_connections.load(Ordering::Relaxed)
    }

    /// Returns whether [`SERVER_STATE`] is to be sent with the next statements.
    pub fn is_check_due(&self) -> bool {
        let now = SystemClock.uptime().as_millis() as u64;
        let before = self.checked_at.load(Ordering::Relaxed);
        now.saturating_sub(before) >= CHECK_INTERVAL.as_millis() as u64
    }

    /// Follows the answer to [`SERVER_STATE`], which was sent after the uptime `asked_at`. Returns whether
    /// the orders are in another database.
    pub fn on_server_state(&self, row: &Row, asked_at: Duration) -> Result<bool, Error> {
        let now = SystemClock.uptime().as_millis() as u64;
        self.checked_at.store(now, Ordering::Relaxed);
        self.clock.measure(row.try_get(0)?, asked_at);
        if row.try_get::<_, i32>(1)? > FORMAT {
            self.retire(ServerError::Newer);
            return Err(ServerError::Newer.into());
        }
        let is_replicated = row.try_get(2)?;
        if self.is_replicated.swap(is_replicated, Ordering::Relaxed) != is_replicated {
            match is_replicated {
                true => log::info!("commits wait for a standby from now on"),
                false => log::warn!("commits wait for no standby any more"),
            }
        }
        let relocation = match row.try_get::<_, Option<&str>>(3)? {
            Some(state) => Relocation::new(Some((state, row.try_get(4)?))),
            None => None,
        };
        match (relocation, &self.purpose) {
            (None, _) => Ok(false),
            (Some(_), Purpose::Copy(_)) => Ok(true),
            (Some(found), Purpose::Use | Purpose::Read) => {
                self.retire(ServerError::Relocated(found.clone()));
                Err(ServerError::Relocated(found).into())
            }
        }
    }

    /// Opens a session on the database that was prepared.
    pub async fn session(&self) -> Result<Session, Error> {
        self.session_with(None).await
    }

    /// Like [`Connector::session`]; notifications of the database wake `notified`.
    pub async fn session_with(&self, notified: Option<Arc<Notify>>) -> Result<Session, Error> {
        if let Purpose::Read = self.purpose {
            return self.session_for_reading().await;
        }
        self.within_limit(async {
            let session = self.connect(notified).await?;
            self.check_identity(&session).await?;
            self.own_entries.enter_history(&session).await?;
            self.opened.notify_one();
            Ok(session)
        })
        .await
    }

    /// Searches the hosts for a newer primary again and again: its timeline closes the sessions on a former
    /// one, which may answer as before. A single host has no other.
    pub async fn watch_for_promotions(self: Arc<Self>) {
        while self.url.servers().len() > 1 {
            let servers = self.url.servers();
            // All of them: the newer one may be the farthest.
            let servers = servers.iter().zip(&self.are_checked);
            let attempts = join_all(servers.map(|server| self.connect_to(server, None)));
            let _ = tokio::time::timeout(SESSION_TIMEOUT, attempts).await;
            // A session that is opened may be on a former primary.
            let opened = self.opened.notified();
            let _ = tokio::time::timeout(PRIMARY_CHECK_INTERVAL, opened).await;
        }
    }

    /// Opens the first session: checks the server, and creates the schema unless it `must_exist`.
    pub async fn prepare(&self, must_exist: bool) -> Result<Session, Error> {
        let session = self.within_limit(self.connect(None)).await?;
        let mark = match &self.purpose {
            Purpose::Copy(mark) => mark.as_deref(),
            Purpose::Use | Purpose::Read => None,
        };
        let is_new = migrate(&session, must_exist, mark).await?;
        self.within_limit(async {
            if !self.check_identity(&session).await? {
                self.own_entries.enter_history(&session).await?;
            }
            Ok(())
        })
        .await?;
        let mut place = self.address.clone();
        if self.are_checked.len() > 1 {
            place.push_str(" server=");
            place.push_str(session.server());
        }
        match (is_new, &self.purpose) {
            // Nobody may have meant to begin with an empty one.
            (true, Purpose::Use) => log::warn!("created the database {place}"),
            (true, _) => log::info!("created the database {place}"),
            (false, _) => log::info!("using the database {place}"),
        }
        Ok(session)
    }

    /// Opens a session that only reads, on a database that must be there. Nothing is migrated.
    pub async fn session_for_reading(&self) -> Result<Session, Error> {
        self.within_limit(async {
            let session = self.connect(None).await?;
            let present = "SELECT to_regclass('order_service.meta') IS NOT NULL";
            if !session.value::<bool>(present, &[]).await? {
                return Err(ServerError::Missing.into());
            }
            self.check_identity(&session).await?;
            let reads = "SET default_transaction_read_only = on";
            session.execute(reads).await?;
            session.execute(NO_TIMEOUTS).await?;
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
            .unwrap_or_else(|_| Err(ServerError::Unreachable("no answer in time".into()).into()))
    }

    /// Connects to all hosts at once, and returns a session on one that can be written: of several, that on
    /// the newest timeline. A host that is gone, hangs or is a standby holds up no other for long.
    async fn connect(&self, notified: Option<Arc<Notify>>) -> Result<Session, Error> {
        let servers = self.url.servers();
        let attempts = servers.iter().zip(&self.are_checked);
        let attempts = attempts.enumerate().map(|(index, server)| {
            let attempt = self.connect_to(server, notified.clone());
            let attempt = tokio::time::timeout(HOST_TIMEOUT, attempt);
            let in_time = ServerError::Unreachable("no answer in time".into());
            attempt.map(move |done| (index, done.unwrap_or(Err(in_time.into()))))
        });
        let mut attempts: FuturesUnordered<_> = attempts.collect();
        let mut found: Option<Session> = None;
        let mut failures = BTreeMap::new();
        loop {
            let next = attempts.next();
            let next = match found {
                None => next.await,
                Some(_) => tokio::time::timeout(OTHERS_TIMEOUT, next)
                    .await
                    .unwrap_or(None),
            };
            match next {
                Some((_, Ok(session))) => {
                    // It is on an older timeline.
                    found = found.filter(|found| !found.is_closed()).or(Some(session));
                }
                Some((index, Err(error))) => {
                    failures.insert(server_name(&servers[index]), error);
                }
                None => return found.ok_or_else(|| failure_of_all(failures)),
            }
        }
    }

    /// Connects to one host, and checks its settings, and once whether it keeps sessions apart.
    async fn connect_to(
        &self,
        (config, is_checked): (&Config, &AtomicBool),
        notified: Option<Arc<Notify>>,
    ) -> Result<Session, Error> {
        let session = self.start_session(config, notified);
        let session = if is_checked.load(Ordering::Relaxed) {
            session.await?
        } else {
            let (session, other) = tokio::try_join!(session, self.start_session(config, None))?;
            self.check_session(&session, &other).await?;
            is_checked.store(true, Ordering::Relaxed);
            session
        };
        settings::apply(&session).await?;
        self.check_timeline(&session).await?;
        Ok(session)
    }

    /// Connects to one host.
    async fn start_session(
        &self,
        config: &Config,
        notified: Option<Arc<Notify>>,
    ) -> Result<Session, Error> {
        let unreachable = |error: tokio_postgres::Error| match (error.source(), error.code()) {
            (Some(cause), _) if cause.to_string() == "password missing" => ServerError::NoPassword,
            (Some(cause), _) if is_of_certificate(cause) => ServerError::Certificate(error.into()),
            // Class 28: the user or the password is wrong, or the server's pg_hba.conf allows neither.
            (_, Some(code)) if code.code().starts_with("28") => {
                let may_want_tls =
                    self.tls.is_none() && *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION;
                let hint = ", and if the server wants TLS, set sslmode=verify-full";
                let tls = if may_want_tls { hint } else { "" };
                ServerError::Refused(tls, error.into())
            }
            _ => ServerError::Unreachable(error.into()),
        };
        let (server, lost) = (server_name(config), self.lost_connections.clone());
        Ok(match &self.tls {
            None => {
                let (client, connection) = config.connect(NoTls).await.map_err(unreachable)?;
                Session::start(server, client, connection, notified, lost)
            }
            Some(tls) => {
                let connected = config.connect(tls.clone()).await;
                let (client, connection) = connected.map_err(unreachable)?;
                Session::start(server, client, connection, notified, lost)
            }
        })
    }

    /// Checks that a server is not a former primary: each promotion begins a timeline with a higher
    /// number.
    async fn check_timeline(&self, session: &Session) -> Result<(), Error> {
        const TIMELINE: &str = "\
            SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer, \
                (SELECT system_identifier FROM pg_control_system())::text";
        let row = session.query_one(TIMELINE, &[]).await?;
        let (found, cluster): (i32, String) = (row.try_get(0)?, row.try_get(1)?);
        let own = self.identity.get().and_then(|own| own.split(':').next());
        if own.is_some_and(|own| own != cluster) {
            // Its timelines are others.
            return Err(ServerError::Replaced.into());
        }
        let newest = self.timeline.fetch_max(found, Ordering::Relaxed);
        session.set_timeline(found, &self.timeline);
        if newest > 0 && found > newest {
            let server = session.server();
            log::info!("found a newer primary timeline={found} server={server}");
        }
        if found < newest {
            let why = format!(
                "the server is a former primary: it is on timeline {found}, and timeline {newest} \
                 has begun"
            );
            return Err(ServerError::Unreachable(why.into()).into());
        }
        Ok(())
    }

    /// Checks that a connection stays with one session of the server while another one is in a transaction, and
    /// that a lock of that one keeps it out. Leaves nothing that a pooler would lend to other programs.
    async fn check_session(&self, session: &Session, other: &Session) -> Result<(), Error> {
        let lock = format!(
            "SELECT concat_ws(' ', pg_backend_pid(), pg_try_advisory_xact_lock({}))",
            fastrand::i64(..)
        );
        let pid = session.text("SELECT pg_backend_pid()").await?;
        // A pooler lends it the session that was used last.
        let locked = other.text(&format!("BEGIN; {lock}")).await?;
        if locked == format!("{pid} t") {
            return Err(ServerError::Pooler.into());
        }
        let refused = session.text(&lock).await?;
        other.execute("ROLLBACK").await?;
        let mut is_same = refused.split(' ').next() == Some(&*pid);
        // A pooler may lend its sessions in turns.
        for _ in 0..2 {
            is_same &= session.text("SELECT pg_backend_pid()").await? == pid;
        }
        if !is_same {
            return Err(ServerError::Pooler.into());
        }
        if refused != format!("{pid} f") {
            // Of two servers behind one name, one is a former primary.
            for session in [session, other, session] {
                self.check_timeline(session).await?;
            }
            return Err(ServerError::Locks.into());
        }
        Ok(())
    }

    /// Checks that a session is on the database of the first one, as a standby that was promoted is,
    /// and that its orders may be used. Returns whether they are in another database.
    async fn check_identity(&self, session: &Session) -> Result<bool, Error> {
        const IDENTITY: &str = "\
            SELECT format, concat_ws(':', (SELECT system_identifier FROM pg_control_system()), \
                instance) \
            FROM meta WHERE id = 1";
        let row = session.query_one(IDENTITY, &[]).await?;
        let (format, found): (i32, String) = (row.try_get(0)?, row.try_get(1)?);
        if *self.identity.get_or_init(|| found.clone()) != found {
            return Err(ServerError::Replaced.into());
        }
        let state = match format < FORMAT_WITH_RELOCATION {
            true => SERVER_STATE_WITHOUT_RELOCATION,
            false => SERVER_STATE,
        };
        let asked_at = SystemClock.uptime();
        let row = session.query_one(state, &[]).await?;
        self.on_server_state(&row, asked_at)
    }
}

/// Returns the error of an address of which no host can be used, with the cause at each.
fn failure_of_all(mut failures: BTreeMap<String, Error>) -> Error {
    if failures.len() == 1
        && let Some((_, error)) = failures.pop_first()
    {
        return error;
    }
    let causes = failures.iter().map(|(server, error)| {
        let cause = match error {
            Error::Open(ServerError::Unreachable(cause)) => with_causes(&**cause),
            error => with_causes(error),
        };
        format!("{server}: {cause}")
    });
    let causes = causes.collect::<Vec<_>>().join("; ").into();
    // It may pass if any does: the primary may be the server that cannot be reached.
    let is_wrong = failures.values().any(Error::is_wrong_password);
    match !is_wrong && failures.values().any(Error::is_transient) {
        true => ServerError::Unreachable(causes).into(),
        false => ServerError::Other(causes).into(),
    }
}

/// Returns whether a connection failed because of the certificate of the server.
fn is_of_certificate(cause: &(dyn std::error::Error + 'static)) -> bool {
    let error = cause.downcast_ref().and_then(std::io::Error::get_ref);
    let error = error.and_then(|error| error.downcast_ref());
    matches!(error, Some(rustls::Error::InvalidCertificate(_)))
}

/// Returns the TLS of connections, which verifies servers by the certificates of the system or of a file;
/// `None` if the address turns it off.
fn tls(url: &PostgresUrl) -> Result<Option<MakeRustlsConnect>, BoxError> {
    if !url.uses_tls() {
        return Ok(None);
    }
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
            if roots.is_empty() {
                return Err(format!("{} has no certificate", path.display()).into());
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
    };
    Ok(Some(MakeRustlsConnect::new(config)))
}

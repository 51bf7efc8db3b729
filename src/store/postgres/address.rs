//! The address of a database: what a `postgres://` URL says, and where the password comes from.

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

/// Time limit for one host to accept a connection. A host that is gone must not hold up the next.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Time after which data without an acknowledgement ends a connection.
const USER_TIMEOUT: Duration = Duration::from_secs(5);

/// Time of silence after which a connection is probed, and the interval and number of the probes.
const KEEPALIVES_IDLE: Duration = Duration::from_secs(2);
const KEEPALIVES_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVES_RETRIES: u32 = 3;

/// Port of a server unless the URL names another.
const PORT: u16 = 5432;

/// The address of a PostgreSQL database. Its text never shows a password.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    /// As it was given, without the password.
    text: String,
    /// The configuration of a connection to each host: one for all would have a host that accepts
    /// connections and says nothing hold up the others for ever.
    servers: Vec<Config>,
    /// The file with the certificates of the authorities, if TLS does not use those of the system.
    pub(super) root_certificates: Option<PathBuf>,
    has_password: bool,
}

/// A text that is no address of a PostgreSQL database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostgresUrlError {
    /// It cannot be parsed. The text is not repeated, as it may hold a password.
    #[error(
        "the address cannot be read: {0}; write postgres://USER@HOST:PORT/DATABASE, with several \
         HOST:PORT separated by commas"
    )]
    Syntax(String),
    /// It names no database.
    #[error("the address names no database; write postgres://USER@HOST:PORT/DATABASE")]
    NoDatabase,
    /// Its `sslmode` would leave the server unverified.
    #[error(
        "sslmode={0} would not verify the server; write sslmode=verify-full, or sslmode=disable for \
         a connection without TLS"
    )]
    Unverified(String),
    /// Its `sslmode` has an unknown value.
    #[error("the value of sslmode is unknown; expected verify-full, require or disable")]
    UnknownMode,
    /// Sessions that cannot write are of no use.
    #[error("target_session_attrs can only be read-write, which is the default")]
    SessionAttributes,
    /// It would be read in more than one way, and a part of the password be taken for something else.
    #[error(
        "write @ as %40 and ? as %3F in the user and the password, and @ as %40 in parameters; an address \
         has one @ at most, before its hosts"
    )]
    Unescaped,
    /// It hides a password where none is looked for, and every message would show it.
    #[error(
        "write the : and the @ around a password as they are, not as %3A and %40; no user has a :, no host \
         an @, and nothing else password="
    )]
    Hidden,
    /// TLS depends on the hosts, so a parameter must name no others.
    #[error(
        "name each host before the database: postgres://USER@HOST:PORT,HOST:PORT/DATABASE; \
         hostaddr, or host or port beside these, is refused"
    )]
    Hosts,
}

impl PostgresUrl {
    /// Returns whether the text held a password.
    pub fn has_password(&self) -> bool {
        self.has_password
    }

    /// Returns the configuration of a connection to each host, with the password from the environment
    /// unless the URL has one.
    pub(super) fn servers(&self) -> Vec<Config> {
        let mut servers = self.servers.clone();
        if !self.has_password {
            let variable = std::env::var_os("PGPASSWORD").filter(|text| !text.is_empty());
            let variable = variable.map(|text| text.as_encoded_bytes().to_vec());
            let password = variable.or_else(|| self.password_of_file().map(String::into_bytes));
            if let Some(password) = password {
                for config in &mut servers {
                    config.password(&password);
                }
            }
        }
        servers
    }

    /// Returns whether connections use TLS.
    pub(super) fn uses_tls(&self) -> bool {
        self.servers
            .iter()
            .any(|config| config.get_ssl_mode() != SslMode::Disable)
    }

    /// The password of the first matching line of PGPASSFILE or of `~/.pgpass`. Of several hosts, the
    /// first that has one counts for all.
    fn password_of_file(&self) -> Option<String> {
        let given = std::env::var_os("PGPASSFILE").map(PathBuf::from);
        let path = given.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pgpass")));
        let text = fs::read_to_string(path?).ok()?;
        self.servers.iter().find_map(|config| {
            let (host, port) = host_and_port(config);
            let user = config.get_user().unwrap_or_default();
            let wanted = [&host, &port, user, config.get_dbname()?];
            text.lines().find_map(|line| password_of_line(line, wanted))
        })
    }
}

/// Returns the host of a server, or the folder of its socket, and the port.
fn host_and_port(config: &Config) -> (String, String) {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        Some(Host::Unix(path)) => path.display().to_string(),
        None => String::new(),
    };
    let port = config.get_ports().first().unwrap_or(&PORT);
    (host, port.to_string())
}

/// Returns the name of a server, for messages.
pub(super) fn server_name(config: &Config) -> String {
    let (host, port) = host_and_port(config);
    format!("{host}:{port}")
}

/// The password of a line `HOST:PORT:DATABASE:USER:PASSWORD`, in which `*` matches anything and `\`
/// escapes a character.
fn password_of_line(line: &str, [host, port, user, database]: [&str; 4]) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ':' if fields.len() < 5 => fields.push(String::new()),
            '\\' => fields.last_mut()?.extend(characters.next()),
            other => fields.last_mut()?.push(other),
        }
    }
    let [of_host, of_port, of_database, of_user, password] = &fields[..] else {
        return None;
    };
    let wanted = [
        (of_host, host),
        (of_port, port),
        (of_database, database),
        (of_user, user),
    ];
    let is_match = |(field, value): (&String, &str)| field == "*" || field == value;
    wanted.into_iter().all(is_match).then(|| password.clone())
}

impl FromStr for PostgresUrl {
    type Err = PostgresUrlError;

    fn from_str(text: &str) -> Result<Self, PostgresUrlError> {
        let (base, query) = text.split_once('?').unwrap_or((text, ""));
        if query.contains('@') || base.matches('@').count() > 1 {
            return Err(PostgresUrlError::Unescaped);
        }
        let (mut mode, mut root_certificates, mut rest) = (None, None, Vec::new());
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("sslmode", value)) => mode = Some(value.to_owned()),
                Some(("sslrootcert", value)) => {
                    let path = percent_encoding::percent_decode_str(value).decode_utf8_lossy();
                    root_certificates = Some(PathBuf::from(path.into_owned()));
                }
                Some(("target_session_attrs", value)) if value != "read-write" => {
                    return Err(PostgresUrlError::SessionAttributes);
                }
                _ => rest.push(parameter),
            }
        }
        let plain = match rest[..] {
            [] => base.to_owned(),
            _ => format!("{base}?{}", rest.join("&")),
        };
        let syntax = |error: tokio_postgres::Error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            // What follows an `&` in a password would be named as an unknown option.
            let cause = cause.filter(|_| !query.contains("password"));
            PostgresUrlError::Syntax(cause.unwrap_or_else(|| error.to_string()))
        };
        let (before, hosts, after) = around_hosts(&plain);
        let of_host = |host| format!("{before}{host}{after}").parse::<Config>();
        let servers = hosts.split(',').map(of_host).collect::<Result<Vec<_>, _>>();
        let mut servers = servers.map_err(syntax)?;
        if may_show_password(query, &servers) {
            return Err(PostgresUrlError::Hidden);
        }
        for config in &servers {
            if config.get_dbname().is_none_or(str::is_empty) {
                return Err(PostgresUrlError::NoDatabase);
            }
            let is_single = config.get_hosts().len() == 1 && config.get_ports().len() <= 1;
            if !is_single || !config.get_hostaddrs().is_empty() {
                return Err(PostgresUrlError::Hosts);
            }
        }
        let is_here = |config: &Config| config.get_hosts().iter().all(is_on_this_machine);
        let mode = match mode.as_deref() {
            None if servers.iter().all(is_here) => SslMode::Disable,
            None | Some("verify-full" | "require") => SslMode::Require,
            Some("disable") => SslMode::Disable,
            Some(mode @ ("allow" | "prefer" | "verify-ca")) => {
                return Err(PostgresUrlError::Unverified(mode.to_owned()));
            }
            Some(_) => return Err(PostgresUrlError::UnknownMode),
        };
        for config in &mut servers {
            config
                .ssl_mode(mode)
                .target_session_attrs(TargetSessionAttrs::ReadWrite)
                .tcp_user_timeout(USER_TIMEOUT)
                .keepalives(true)
                .keepalives_idle(KEEPALIVES_IDLE)
                .keepalives_interval(KEEPALIVES_INTERVAL)
                .keepalives_retries(KEEPALIVES_RETRIES);
            if config.get_connect_timeout().is_none() {
                config.connect_timeout(CONNECT_TIMEOUT);
            }
            if config.get_application_name().is_none() {
                config.application_name("order-service");
            }
        }
        Ok(Self {
            text: without_password(base, query),
            has_password: servers.iter().any(|config| config.get_password().is_some()),
            servers,
            root_certificates,
        })
    }
}

/// Splits an address around its hosts, where `tokio_postgres` does.
fn around_hosts(url: &str) -> (&str, &str, &str) {
    let begin = url.find("://").map_or(0, |at| at + 3);
    let begin = url[begin..].find('@').map_or(begin, |at| begin + at + 1);
    let end = url[begin..]
        .find(['/', '?'])
        .map_or(url.len(), |at| begin + at);
    (&url[..begin], &url[begin..end], &url[end..])
}

/// Returns whether what is sent to a host never leaves this machine.
fn is_on_this_machine(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
        }
    }
}

/// Returns whether a password may be in a part of an address that messages show.
fn may_show_password(query: &str, servers: &[Config]) -> bool {
    let has_word = |text: &str| text.to_ascii_lowercase().contains("password=");
    let in_parameter = |parameter: &str| {
        let value = parameter.split_once('=').map_or("", |(_, value)| value);
        has_word(&percent_encoding::percent_decode_str(value).decode_utf8_lossy())
    };
    let in_config = |config: &Config| {
        let in_host = |host: &Host| matches!(host, Host::Tcp(name) if name.contains('@'));
        config.get_user().is_some_and(|user| user.contains(':'))
            || config.get_hosts().iter().any(in_host)
            || config.get_dbname().is_some_and(has_word)
    };
    query.split('&').filter(is_shown).any(in_parameter) || servers.iter().any(in_config)
}

/// Returns an address without its password, which may precede the `@` or be a parameter.
fn without_password(base: &str, query: &str) -> String {
    let mut text = match base.split_once("://").zip(base.split_once('@')) {
        Some(((scheme, credentials), (_, place))) => {
            let end = credentials.find([':', '@']).unwrap_or(credentials.len());
            format!("{scheme}://{}@{place}", &credentials[..end])
        }
        None => base.to_owned(),
    };
    for (index, parameter) in query.split('&').filter(is_shown).enumerate() {
        text.push(if index == 0 { '?' } else { '&' });
        text.push_str(parameter);
    }
    text
}

/// Returns whether messages show a parameter.
fn is_shown(parameter: &&str) -> bool {
    let name = parameter.split('=').next().unwrap_or_default();
    let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
    !name.is_empty() && name != "password"
}

/// The address as it was given, without the password.
impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_an_address_is_as_it_was_given_without_the_password() {
        for (given, shown) in [
            (
                "postgres://me:secret@one:1,two:2/orders?sslmode=disable&sslrootcert=%2Fa",
                "postgres://me@one:1,two:2/orders?sslmode=disable&sslrootcert=%2Fa",
            ),
            ("postgres://me:se/cret@db/o", "postgres://me@db/o"),
            ("postgres://:secret@db/o", "postgres://@db/o"),
            (
                "postgresql://me@[::1]:2/o?pass%77ord=secret&connect_timeout=3&",
                "postgresql://me@[::1]:2/o?connect_timeout=3",
            ),
            ("postgres://me@%2Frun%2Fx/o", "postgres://me@%2Frun%2Fx/o"),
            ("postgres://db/o", "postgres://db/o"),
        ] {
            let text = match given.split_once('?') {
                Some((base, query)) => without_password(base, query),
                None => without_password(given, ""),
            };
            assert_eq!(text, shown);
        }
        let text = "postgres://me:secret@one:1,two:2/orders?sslmode=disable";
        let url: PostgresUrl = text.parse().unwrap();
        assert!(url.has_password());
        assert_eq!(format!("{url:?}"), url.to_string());
        assert!(!url.to_string().contains("secret"), "{url}");
        let url: PostgresUrl = url.to_string().parse().unwrap();
        assert!(!url.has_password());
        for text in [
            "postgres://me:secret@one:port/orders",
            "postgres://me:a?secret@one/orders",
            "postgres://me:a@secret@one/orders",
            "postgres://me:a@secret/b@one/orders",
            "postgres://one/orders?sslmode=secret",
            "postgres://one/orders?sslmode=require?password=secret",
            "postgres://one/orders?password=a&secret=b",
            "postgres://one/orders?password=a@secret",
            "postgres://me%3Asecret@one/orders",
            "postgres://one/orders?user=me%3Asecret",
            "postgres://me%3Asecret%40one/orders",
            "postgres:///orders?host=me%3Asecret%40one",
            "postgres://me@one/orders%3Fpassword=secret",
            "postgres://me@one/orders?application_name=a%26password%3Dsecret",
            "postgres://me@one/orders?options=-c%20Password=secret",
        ] {
            let error = text.parse::<PostgresUrl>().unwrap_err();
            assert!(!error.to_string().contains("secret"), "{text}: {error}");
        }
    }

    #[test]
    fn tls_is_verified_unless_the_server_is_here_or_it_is_disabled_in_words() {
        for (text, mode) in [
            ("postgres://me@localhost/o", SslMode::Disable),
            ("postgres://me@127.0.0.1:1,[::1]:2/o", SslMode::Disable),
            ("postgres://me@%2Frun%2Fpostgresql/o", SslMode::Disable),
            ("postgres://me@db/o", SslMode::Require),
            ("postgres://me@localhost,db/o", SslMode::Require),
            ("postgres://me@db/o?sslmode=disable", SslMode::Disable),
            ("postgres:///o?host=/run/postgresql", SslMode::Disable),
            ("postgres:///o?host=db&port=1", SslMode::Require),
            (
                "postgres://me@localhost/o?sslmode=verify-full",
                SslMode::Require,
            ),
        ] {
            let url: PostgresUrl = text.parse().unwrap();
            for config in url.servers() {
                assert_eq!(config.get_ssl_mode(), mode, "{text}");
            }
        }
        for text in [
            "postgres://me@db/o?sslmode=prefer",
            "postgres://me@db/o?sslmode=off",
            "postgres://me@db/o?target_session_attrs=any",
            "postgres://me@db",
            "postgres://me@db/",
            "postgres:///o",
            "postgres://me@localhost/o?hostaddr=10.0.0.5",
            "postgres://me@localhost/o?hostadd%72=10.0.0.5",
            "postgres://me@localhost/o?host=db",
            "postgres://me@db:5433/o?port=5433",
            "postgres:///o?host=db&port=5432,5433",
            "postgres:///o?host=localhost&host=db",
        ] {
            assert!(text.parse::<PostgresUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn each_host_has_a_configuration_of_its_own() {
        let text = "postgres://me:secret@one:1,two/orders?sslmode=disable";
        let servers = text.parse::<PostgresUrl>().unwrap().servers();
        assert_eq!(servers.len(), 2);
        for (config, (host, port)) in servers.iter().zip([("one", 1), ("two", 5432)]) {
            assert_eq!(config.get_hosts(), [Host::Tcp(host.to_owned())]);
            assert_eq!(config.get_ports(), [port]);
            assert_eq!(config.get_password(), Some(&b"secret"[..]));
        }
    }

    #[test]
    fn a_password_file_is_read_by_its_first_matching_line() {
        let wanted = ["db", "5432", "me", "orders"];
        for (line, password) in [
            ("db:5432:orders:me:a:b", Some("a:b")),
            ("*:*:*:*:x", Some("x")),
            (r"db:5432:orders:me:a\:\\", Some(r"a:\")),
            ("db:5433:orders:me:x", None),
            ("#db:5432:orders:me:x", None),
            ("db:5432", None),
        ] {
            assert_eq!(
                password_of_line(line, wanted).as_deref(),
                password,
                "{line}"
            );
        }
    }
}

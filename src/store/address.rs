//! The address of a database, which selects its engine.

use std::path::PathBuf;
use std::str::FromStr;

#[cfg(feature = "postgres")]
use super::postgres::{PostgresUrl, PostgresUrlError};

/// The address of a database: `sqlite:FILE`, or a bare path; in builds with the feature `postgres` also
/// `postgres://USER@HOST:PORT/DATABASE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// The path of an SQLite file.
    Sqlite(PathBuf),
    /// A database on PostgreSQL.
    #[cfg(feature = "postgres")]
    Postgres(Box<PostgresUrl>),
}

impl DatabaseUrl {
    /// Returns whether a password is part of the address.
    pub fn has_password(&self) -> bool {
        match self {
            Self::Sqlite(_) => false,
            #[cfg(feature = "postgres")]
            Self::Postgres(url) => url.has_password(),
        }
    }
}

/// Reasons why a text is not the address of a database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseUrlError {
    /// The text is empty.
    #[error("the path is empty; write sqlite:FILE or a path, such as sqlite:orders.db")]
    Empty,
    /// An in-memory database would lose all orders.
    #[error("an in-memory database would lose every order; write the path of a file")]
    Memory,
    /// The URL has an unknown scheme.
    #[error(
        "{0:?} is not a database this program can use; write sqlite:FILE or a path, or, in builds with \
         PostgreSQL, postgres://USER@HOST:PORT/DATABASE"
    )]
    Scheme(String),
    /// The URL has parameters.
    #[error("parameters after '?' are not supported; write sqlite:FILE or a path")]
    Parameters,
    /// The text may be an address with a password, written in another way. It is not repeated, nor does it
    /// become the name of a file.
    #[error(
        "this is neither a path nor a known address; write, without spaces, quotes or a comment around it, \
         sqlite:FILE or a path, or, in builds with PostgreSQL, postgres://USER@HOST:PORT/DATABASE instead of key=value"
    )]
    NotAPath,
    /// It is the address of a database on PostgreSQL, and this program was built without that.
    #[cfg(not(feature = "postgres"))]
    #[error(
        "this program was built without PostgreSQL; build it with `cargo build --features postgres`, \
         or write sqlite:FILE or a path"
    )]
    WithoutPostgres,
    /// It is no address of a database on PostgreSQL.
    #[cfg(feature = "postgres")]
    #[error(transparent)]
    Postgres(#[from] PostgresUrlError),
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(text: &str) -> Result<Self, DatabaseUrlError> {
        // Left by a variable that no shell has read, such as one of `docker --env-file`.
        let is_stray = |c: char| c.is_whitespace() || matches!(c, '"' | '\'');
        // A comment after a value is part of it there, and in systemd's EnvironmentFile=.
        if text.starts_with(is_stray) || text.ends_with(is_stray) || text.contains(" #") {
            return Err(DatabaseUrlError::NotAPath);
        }
        let path = match text.split_once(':') {
            Some(("sqlite", rest)) => {
                if rest.contains('?') {
                    return Err(DatabaseUrlError::Parameters);
                }
                // sqlite:///a/b is an absolute path, sqlite://a a relative one, as elsewhere.
                rest.strip_prefix("//").unwrap_or(rest)
            }
            Some(("postgres" | "postgresql", rest)) if !rest.starts_with("//") => {
                return Err(DatabaseUrlError::NotAPath);
            }
            #[cfg(not(feature = "postgres"))]
            Some(("postgres" | "postgresql", _)) => return Err(DatabaseUrlError::WithoutPostgres),
            #[cfg(feature = "postgres")]
            Some(("postgres" | "postgresql", _)) => {
                return Ok(Self::Postgres(Box::new(text.parse()?)));
            }
            Some((scheme, _)) if is_scheme(scheme) && !is_address(text) => {
                return Err(DatabaseUrlError::Scheme(format!("{scheme}:")));
            }
            _ => text,
        };
        match path {
            "" => Err(DatabaseUrlError::Empty),
            ":memory:" => Err(DatabaseUrlError::Memory),
            path if is_address(path) => Err(DatabaseUrlError::NotAPath),
            path => Ok(Self::Sqlite(PathBuf::from(path))),
        }
    }
}

/// Returns whether a text is an address of some kind rather than a path: a URL, or `key=value` of libpq or of
/// other libraries.
fn is_address(text: &str) -> bool {
    const FIRST_KEYS: [&str; 8] = [
        "host", "hostaddr", "port", "user", "dbname", "service", "sslmode", "server",
    ];
    let text = text.to_ascii_lowercase().replace(char::is_whitespace, "");
    let first = text.split_once('=').map(|(key, _)| key);
    text.contains("://")
        || text.contains("password=")
        || text.contains("pwd=")
        || first.is_some_and(|key| FIRST_KEYS.contains(&key))
}

/// Returns whether a value that was refused may be an address with something secret, whichever setting it
/// was given to: a password, or a token as a user name or in the query of a URL.
pub fn may_hold_password(value: &str) -> bool {
    // `@every 5s` has none.
    value.rfind('@').is_some_and(|at| at > 0)
        || match value.starts_with("http") {
            true => value.contains('?'),
            false => is_address(value) || value.to_ascii_lowercase().contains("postgres"),
        }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

impl From<PathBuf> for DatabaseUrl {
    fn from(path: PathBuf) -> Self {
        Self::Sqlite(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_named_by_a_url_or_a_path_and_anything_else_is_refused() {
        for (text, path) in [
            ("sqlite:orders.db", "orders.db"),
            ("sqlite:/var/lib/o.db", "/var/lib/o.db"),
            ("sqlite:///var/lib/o.db", "/var/lib/o.db"),
            ("sqlite://o.db", "o.db"),
            ("o.db", "o.db"),
            ("./a:b.db", "./a:b.db"),
            ("what?.db", "what?.db"),
            ("a@b=c.db", "a@b=c.db"),
            ("/data/host=a/o.db", "/data/host=a/o.db"),
        ] {
            assert_eq!(text.parse(), Ok(DatabaseUrl::Sqlite(path.into())), "{text}");
        }
        for text in [
            "",
            "sqlite:",
            "sqlite::memory:",
            ":memory:",
            "postgres://localhost/",
            "file:o.db",
            "sqlite:o.db?mode=ro",
            "sqlite:/var/lib/o.db  # the database",
        ] {
            assert!(text.parse::<DatabaseUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_may_be_an_address_with_a_password_is_no_path_and_is_hidden() {
        for text in [
            " postgres://me:secret@db/orders",
            "\"postgres://me:secret@db/orders\"",
            "postgres:me:c2VjcmV0=@db/orders",
            "'postgres://me:secret@db/orders'",
            "Postgres://db/orders?password=secret",
            "jdbc:postgresql://db/orders?user=me&password=secret",
            "mysql://me:secret@db/orders",
            "sqlite:postgres://me:secret@db/orders",
            "host=db user=orders password=secret",
            "dbname = orders",
            "Server=db;Database=orders;Uid=me",
            "Data Source=db;Pwd=secret",
            "me Password = secret",
        ] {
            let error = text.parse::<DatabaseUrl>().unwrap_err();
            assert_eq!(error, DatabaseUrlError::NotAPath, "{text}");
            assert!(may_hold_password(text), "{text}");
        }
        for text in ["\"o.db\"", "o.db ", "\t"] {
            let error = text.parse::<DatabaseUrl>().unwrap_err();
            assert_eq!(error, DatabaseUrlError::NotAPath, "{text}");
        }
        for text in [
            "http://a.example?token=x",
            "ftp://token@a",
            "me:secret@db/orders",
            "me@corp:secret@db/orders",
            "token@a",
        ] {
            assert!(may_hold_password(text), "{text}");
        }
        for text in [
            "sqlite:o.db?mode=ro",
            "http://127.0.0.1:x",
            "fast",
            "@every 5s",
        ] {
            assert!(!may_hold_password(text), "{text}");
        }
    }
}

//! The URL of the order process service.

use std::fmt;
use std::str::FromStr;

use ::url::{Host, Url};

/// The only path of the service.
const PATH: &str = "/order_process";

/// URL of the order process service, `http` or `https`. It ends in `/order_process`, which is appended if
/// missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl(pub(super) Url);

/// Reason why a text cannot be the URL of the order process service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamUrlError {
    /// It is not a URL.
    #[error("is not a URL ({0}); expected one like http://127.0.0.1:8000")]
    Malformed(::url::ParseError),
    /// It has another scheme.
    #[error("must begin with http:// or https://")]
    Scheme,
    /// It has a user name or a password.
    #[error("must not hold a user name or password; put a token into ORDER_PROCESS_TOKEN")]
    Credentials,
    /// It has a query or a fragment.
    #[error(
        "must not have a query or a fragment; expected a URL up to /order_process or before that"
    )]
    Query,
}

impl FromStr for UpstreamUrl {
    type Err = UpstreamUrlError;

    fn from_str(text: &str) -> Result<Self, UpstreamUrlError> {
        let mut url = Url::parse(text).map_err(UpstreamUrlError::Malformed)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(UpstreamUrlError::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UpstreamUrlError::Credentials);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(UpstreamUrlError::Query);
        }
        let path = url.path().trim_end_matches('/');
        let base = path.strip_suffix(PATH).unwrap_or(path);
        let path = format!("{}{PATH}", base.trim_end_matches('/'));
        url.set_path(&path);
        Ok(Self(url))
    }
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl UpstreamUrl {
    pub(super) fn is_loopback(&self) -> bool {
        match self.0.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_checked_and_gets_the_path() {
        for (text, url) in [
            (
                "http://127.0.0.1:8000",
                "http://127.0.0.1:8000/order_process",
            ),
            ("https://a.example/", "https://a.example/order_process"),
            ("https://a.example/x/", "https://a.example/x/order_process"),
            (
                "https://a.example/order_process",
                "https://a.example/order_process",
            ),
            (
                "https://a.example/x//order_process//",
                "https://a.example/x/order_process",
            ),
            (
                "https://a.example/my_order_process",
                "https://a.example/my_order_process/order_process",
            ),
        ] {
            assert_eq!(text.parse::<UpstreamUrl>().unwrap().to_string(), url);
        }
        for text in [
            "",
            "127.0.0.1:8000",
            "ftp://a.example",
            "http://",
            "http://u:p@a.example",
            "http://a.example?x=1",
            "http://a.example#x",
        ] {
            assert!(text.parse::<UpstreamUrl>().is_err(), "{text}");
        }
    }
}

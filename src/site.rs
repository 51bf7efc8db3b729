//! Checks of the `Host` of a request, and of the site of the page that sent it.
//!
//! A page whose name is made to resolve to this machine (DNS rebinding) is the same site to a browser,
//! and only `Host` shows its name. So a program that listens on loopback, which seems out of reach,
//! accepts known names only, and so does `dev`. Pure: `api` and `simulator` turn a refusal into an answer.

use std::net::{IpAddr, Ipv6Addr};

use hyper::header::{HOST, HeaderName, ORIGIN};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Method, Uri};

/// Header with the origin of a browser's request (W3C Fetch Metadata, section 2.3).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The host names of a server.
#[derive(Clone, Debug)]
pub struct Site {
    /// Allowed names, in [canonical form](canonical_host).
    names: Vec<String>,
    checks_host: bool,
}

/// A request for another host, or from another site's page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForeignRequest {
    /// `Host` names another site.
    #[error(
        "unknown Host {0:?}; expected an IP address, localhost or a name that --allowed-host \
         (ALLOWED_HOSTS) lists"
    )]
    Host(String),
    /// `Host` is no host with an optional port.
    #[error("the header Host is {0:?}, which is not HOST or HOST:PORT")]
    Malformed(String),
    /// A page of another site asks for a change.
    #[error("the header {0} is {1:?}, so the request is from a page of another site")]
    Page(&'static str, String),
}

impl Site {
    /// Returns the site of a server that listens at `address`. Host names are checked on loopback, and
    /// anywhere if `allowed` has any.
    pub fn new(address: IpAddr, allowed: &[String]) -> Self {
        Self {
            checks_host: address.to_canonical().is_loopback() || !allowed.is_empty(),
            names: allowed.iter().map(|name| canonical_host(name)).collect(),
        }
    }

    /// Checks `Host`, and for an unsafe method the site of the page that sent the request. HTTP/1.0 has
    /// no `Host`, and no browser uses it.
    pub fn check(&self, method: &Method, headers: &HeaderMap) -> Result<(), ForeignRequest> {
        let mut own = None;
        if let Some(host) = headers.get(HOST) {
            let host = host.as_bytes();
            let name = host_of(host).ok_or_else(|| ForeignRequest::Malformed(text(host)))?;
            if self.checks_host && !self.is_known(&name) {
                return Err(ForeignRequest::Host(text(host)));
            }
            own = Some(name);
        }
        if method.is_safe() {
            return Ok(());
        }
        if let Some(site) = headers.get(SEC_FETCH_SITE) {
            let site = site.as_bytes();
            let is_own = [&b"same-origin"[..], b"none"].contains(&&*site.to_ascii_lowercase());
            return match is_own {
                true => Ok(()),
                false => Err(ForeignRequest::Page("Sec-Fetch-Site", text(site))),
            };
        }
        let Some(origin) = headers.get(ORIGIN) else {
            return Ok(());
        };
        let from = origin.to_str().ok().and_then(host_of_origin);
        if from.is_some_and(|from| own.as_ref() == Some(&from) || self.names.contains(&from)) {
            return Ok(());
        }
        Err(ForeignRequest::Page("Origin", text(origin.as_bytes())))
    }

    fn is_known(&self, host: &str) -> bool {
        is_ip(host)
            || host == "localhost"
            || host.ends_with(".localhost")
            || self.names.iter().any(|name| name == host)
    }
}

/// Returns whether a text is a host name or an IP address, without a scheme or a port.
pub fn is_host(text: &str) -> bool {
    let is_name = |text: &str| {
        let mut bytes = text.bytes();
        bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    let is_plain = host_of(text.as_bytes()).is_some_and(|host| host == canonical_host(text));
    is_plain && (is_name(text) || is_ip(text))
}

/// Returns the host of a `Host` header, in [canonical form](canonical_host).
fn host_of(value: &[u8]) -> Option<String> {
    let authority = Authority::try_from(value).ok()?;
    // Refuses user information.
    let text = authority.as_str();
    let port = text.strip_prefix(authority.host())?;
    let digits = port.strip_prefix(':').unwrap_or(port);
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_port = digits.is_empty() || is_number && digits.parse::<u16>().is_ok();
    (is_port && !authority.host().is_empty()).then(|| canonical_host(authority.host()))
}

/// Returns the host of an origin, in [canonical form](canonical_host); none for `null`, the origin of a
/// page without one.
fn host_of_origin(origin: &str) -> Option<String> {
    let uri: Uri = origin.parse().ok()?;
    uri.scheme()?;
    host_of(uri.authority()?.as_str().as_bytes())
}

/// Returns the form in which hosts are compared: in lower case, without the dot of the root.
fn canonical_host(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

fn is_ip(host: &str) -> bool {
    let v6 = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    match v6 {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<IpAddr>().is_ok(),
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hyper::header::HeaderValue;

    use super::*;

    fn site(address: &str, names: &[&str]) -> Site {
        let names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
        Site::new(address.parse().unwrap(), &names)
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        pairs.collect()
    }

    #[test]
    fn a_name_must_be_known_on_loopback_and_with_allowed_hosts() {
        let loopback = site("127.0.0.1", &[]);
        let v6 = site("::1", &[]);
        let mapped = site("::ffff:127.0.0.1", &[]);
        let any = site("0.0.0.0", &[]);
        let listed = site("0.0.0.0", &["Orders.example."]);
        let check = |site: &Site, host| site.check(&Method::GET, &headers(&[("host", host)]));
        for host in [
            "127.0.0.1",
            "127.0.0.1:8080",
            "[::1]:8080",
            "[::1]",
            "192.0.2.7",
            "localhost",
            "LOCALHOST:8080",
            "localhost:",
            "localhost.",
            "api.localhost",
        ] {
            for site in [&loopback, &v6, &mapped, &any, &listed] {
                assert_eq!(check(site, host), Ok(()), "{host}");
            }
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "evillocalhost",
            "orders.example.evil.example",
            "[fe80::1%25lo]",
        ] {
            for site in [&loopback, &v6, &mapped, &listed] {
                let refused = Err(ForeignRequest::Host(host.to_owned()));
                assert_eq!(check(site, host), refused, "{host}");
            }
            assert_eq!(check(&any, host), Ok(()), "{host}");
        }
        for host in [
            "a@localhost",
            "localhost:80:80",
            "localhost:http",
            "localhost:+80",
            "localhost:65536",
            "::1",
            "[::1",
            "a b",
            "",
        ] {
            for site in [&loopback, &v6, &mapped, &any, &listed] {
                let refused = Err(ForeignRequest::Malformed(host.to_owned()));
                assert_eq!(check(site, host), refused, "{host}");
            }
        }
        for host in ["orders.example", "ORDERS.example:443", "orders.example."] {
            assert_eq!(check(&listed, host), Ok(()), "{host}");
            assert!(check(&loopback, host).is_err(), "{host}");
        }
        // HTTP/1.0.
        assert_eq!(loopback.check(&Method::GET, &HeaderMap::new()), Ok(()));
    }

    #[test]
    fn a_page_of_another_site_changes_nothing() {
        let site = Site::new(Ipv4Addr::UNSPECIFIED.into(), &[]);
        let proxied = self::site("127.0.0.1", &["orders.example"]);
        let host = ("host", "localhost:8080");
        let from = |value| ("origin", value);
        let fetch = |value| ("sec-fetch-site", value);
        for (site, sent, is_refused) in [
            (&site, vec![host], false),
            (&site, vec![host, from("http://localhost:8080")], false),
            (&site, vec![host, from("https://LOCALHOST")], false),
            (&site, vec![host, from("http://evil.example")], true),
            (&site, vec![host, from("http://127.0.0.1:8080")], true),
            (&site, vec![host, from("null")], true),
            (&site, vec![host, from("localhost:8080")], true),
            (&site, vec![host, from("")], true),
            (&site, vec![from("http://localhost")], true),
            (&proxied, vec![host, from("https://orders.example")], false),
            (&proxied, vec![host, from("https://evil.example")], true),
            (&site, vec![host, fetch("same-origin")], false),
            (&site, vec![host, fetch("None")], false),
            (&site, vec![host, fetch("cross-site")], true),
            (&site, vec![host, fetch("same-site")], true),
            (&site, vec![host, fetch("")], true),
            // Sec-Fetch-Site takes precedence over Origin.
            (
                &site,
                vec![host, fetch("same-origin"), from("https://a.example")],
                false,
            ),
            (
                &site,
                vec![host, fetch("cross-site"), from("http://localhost:8080")],
                true,
            ),
        ] {
            let result = site.check(&Method::POST, &headers(&sent));
            assert_eq!(result.is_err(), is_refused, "{sent:?}");
            assert_eq!(site.check(&Method::GET, &headers(&sent)), Ok(()));
        }
    }

    #[test]
    fn a_host_is_written_without_a_scheme_or_a_port() {
        for host in ["orders.example", "ORDERS", "192.0.2.7", "[2001:db8::1]"] {
            assert!(is_host(host), "{host}");
        }
        for other in [
            "",
            "http://orders.example",
            "orders.example:80",
            "a b",
            "a/b",
            "a@b",
            "*.orders.example",
            "a;b",
        ] {
            assert!(!is_host(other), "{other}");
        }
    }
}

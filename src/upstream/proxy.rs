//! The proxy of the order process service, which the environment names.

use std::fmt;

use hyper_util::client::proxy::matcher::Matcher;

use super::url::UpstreamUrl;

/// An HTTP proxy. Its user name and password are not displayed.
#[derive(Clone)]
pub(super) struct Proxy {
    /// The client's setting.
    pub client: reqwest::Proxy,
    /// Its URL without user name, password and path.
    origin: String,
}

/// Reason why an environment variable cannot name the proxy. The value may hold a password, and is not
/// part of it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} cannot be used; expected an HTTP proxy such as http://USER:PASSWORD@HOST:3128, with %40 for an @ \
     in the password"
)]
pub struct ProxyError(String);

impl Proxy {
    /// Returns the proxy of requests to `url`, if the environment names one. The client is given it, instead
    /// of looking by itself: it ignores a variable that it cannot read, fails each request for a SOCKS
    /// proxy, and applies `NO_PROXY=*` to names alone.
    pub(super) fn of(url: &UpstreamUrl) -> Result<Option<Self>, ProxyError> {
        let variable = |name: &str| {
            let names = [name.to_ascii_uppercase(), name.to_ascii_lowercase()];
            names.into_iter().find_map(|name| {
                let value = std::env::var_os(&name).filter(|value| !value.is_empty())?;
                Some((name, value.to_string_lossy().into_owned()))
            })
        };
        let exempt = variable("no_proxy").map_or_else(String::new, |(_, names)| names);
        if url.is_loopback() || is_exempt(url, &exempt) {
            return Ok(None);
        }
        let of_scheme = variable(&format!("{}_proxy", url.0.scheme()));
        match of_scheme.or_else(|| variable("all_proxy")) {
            Some((name, value)) => match Self::parse(&value) {
                None => Err(ProxyError(name)),
                proxy => Ok(proxy),
            },
            None => Ok(None),
        }
    }

    fn parse(value: &str) -> Option<Self> {
        let matcher = Matcher::builder().all(value).build();
        let found = matcher.intercept(&"http://upstream".parse().ok()?)?;
        let uri = found.uri();
        let (scheme, host) = (uri.scheme_str()?, uri.host()?);
        // What follows the first @ would be taken as the host.
        let is_whole = !host.is_empty() && !uri.authority()?.as_str().contains('@');
        let port = uri
            .port()
            .map_or_else(String::new, |port| format!(":{port}"));
        if !is_whole || !matches!(scheme, "http" | "https") {
            return None;
        }
        Some(Self {
            client: reqwest::Proxy::all(value).ok()?,
            origin: format!("{scheme}://{host}{port}"),
        })
    }

    /// Returns whether requests to the proxy use TLS.
    pub(super) fn uses_tls(&self) -> bool {
        self.origin.starts_with("https:")
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns whether requests to `url` use no proxy according to the value of `NO_PROXY`.
fn is_exempt(url: &UpstreamUrl, no_proxy: &str) -> bool {
    let matcher = Matcher::builder().all("http://proxy").no(no_proxy).build();
    let is_exempt = |url: &str| {
        url.parse()
            .is_ok_and(|url| matcher.intercept(&url).is_none())
    };
    // The second is exempt by `*` alone.
    is_exempt(url.0.as_str()) || is_exempt("http://*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_shown_without_what_is_secret() {
        for (value, shown) in [
            ("http://proxy.example:3128", "http://proxy.example:3128"),
            ("proxy.example:3128", "http://proxy.example:3128"),
            (
                "https://u:s3c%40et@proxy.example/x",
                "https://proxy.example",
            ),
            ("http://s3c@[::1]:3128", "http://[::1]:3128"),
        ] {
            let proxy = Proxy::parse(value).unwrap();
            assert_eq!(proxy.to_string(), shown);
            assert_eq!(format!("{proxy:?}"), shown);
        }
        for value in [
            "socks5://127.0.0.1:1080",
            "socks5h://u:p@proxy.example",
            "ftp://proxy.example",
            "http://u:p@ss@proxy.example:3128",
            "http://",
            "http://:3128",
            "http://proxy.example:port",
            "http://proxy.example\r",
            "\u{fffd}",
            "/",
            " ",
        ] {
            assert!(Proxy::parse(value).is_none(), "{value:?}");
        }
    }

    #[test]
    fn no_proxy_applies_to_names_and_addresses() {
        for (url, no_proxy, expected) in [
            ("http://10.0.0.1:8000", "*", true),
            ("http://10.0.0.1:8000", "a.example, *", true),
            ("http://[2001:db8::1]", "*", true),
            ("https://a.example", "*", true),
            ("http://10.0.0.1:8000", "10.0.0.0/8", true),
            ("http://a.b.example", "b.example", true),
            ("http://a.example", "*.example", false),
            ("http://10.0.0.1:8000", "10.0.0.2,a.example", false),
            ("http://10.0.0.1:8000", "", false),
        ] {
            let parsed = url.parse().unwrap();
            assert_eq!(is_exempt(&parsed, no_proxy), expected, "{url} {no_proxy:?}");
        }
    }
}

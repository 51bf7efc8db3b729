//! The HTTP client of the order process service. It knows its wire format, with `upstream/answer.rs` and
//! `upstream/list.rs`.
//!
//! Absence needs a complete answer; of a list that breaks off, the entries hold.

use std::error::Error as StdError;
use std::time::Duration;

use anyhow::Context;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{
    ACCEPT_ENCODING, AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap,
    HeaderValue, RETRY_AFTER,
};
use reqwest::{Client, ClientBuilder, Response, StatusCode, Url, redirect};

use super::answer::{excerpt, observed_of, summary};
use super::list::{Entry, ListDecoder, ListError};
use super::proxy::Proxy;
use super::url::UpstreamUrl;
use super::{Cause, Failure, StartError, Upstream};
use crate::order::{Observed, OrderId};

/// Codings of a body that is not read (RFC 9110, section 8.4.1, RFC 7932, and RFC 8878).
const COMPRESSIONS: [&[u8]; 7] = [
    b"br",
    b"compress",
    b"deflate",
    b"gzip",
    b"x-compress",
    b"x-gzip",
    b"zstd",
];

/// The target of this module's log lines. It is public: `RUST_LOG` names it.
const LOG: &str = "order_service::upstream";

/// Maximum length of an answer to a look-up or a start, in bytes. The rest is not read, and a longer
/// answer is not used.
const ANSWER_MAX: usize = 64 * 1024;

/// Share of the request timeout within which a connection has to be made. Connecting times out before the
/// request, whose timeout would not show that nothing was sent. At the default timeout, two SYN packets may
/// be lost, which are repeated after one and three seconds.
const CONNECT_SHARE: f64 = 0.75;

/// Maximum idle time of a connection that a start uses. The peer may be about to close an older one, and a
/// start that fails so may have taken effect.
const START_IDLE_MAX: Duration = Duration::from_millis(500);

/// A client of the order process service over HTTP.
#[derive(Clone, Debug)]
pub struct HttpUpstream {
    /// For starts. It drops connections before the peer is likely to close them.
    starts: Client,
    /// For look-ups and lists.
    gets: Client,
    /// For repeated requests. It opens a connection for each.
    unpooled: Client,
    url: Url,
    proxy: Option<Proxy>,
    request_timeout: Duration,
}

impl HttpUpstream {
    /// Creates a client of the service at `url`. `request_timeout` limits each request, and for the list
    /// the time between two chunks; connecting may take three quarters of it. `token` is sent as a bearer
    /// token (RFC 6750, section 2.1).
    ///
    /// # Errors
    /// [`ProxyError`](super::ProxyError); the token is not a valid header value; or the system's root
    /// certificates cannot be used.
    pub fn new(
        url: &UpstreamUrl,
        token: Option<&str>,
        request_timeout: Duration,
    ) -> anyhow::Result<Self> {
        // Fails only if a provider is installed already, which is then used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let proxy = Proxy::of(url)?;
        let builder = || Self::builder(url, proxy.as_ref(), token, request_timeout);
        let build = |builder: ClientBuilder| {
            builder.build().context(
                "creating the HTTPS client failed; it needs the system's root certificates: install \
                 the package ca-certificates, or name a file in SSL_CERT_FILE",
            )
        };
        Ok(Self {
            starts: build(builder()?.pool_idle_timeout(START_IDLE_MAX))?,
            gets: build(builder()?)?,
            unpooled: build(builder()?.pool_max_idle_per_host(0))?,
            url: url.0.clone(),
            proxy,
            request_timeout,
        })
    }

    /// Logs where requests go.
    pub fn log_route(&self) {
        let url = &self.url;
        match &self.proxy {
            Some(proxy) => log::info!(target: LOG, "upstream configured url={url} proxy={proxy}"),
            None => log::info!(target: LOG, "upstream configured url={url}"),
        }
    }

    fn builder(
        url: &UpstreamUrl,
        proxy: Option<&Proxy>,
        token: Option<&str>,
        request_timeout: Duration,
    ) -> anyhow::Result<ClientBuilder> {
        let mut builder = Client::builder()
            .user_agent(concat!("order-service/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .connect_timeout(request_timeout.mul_f64(CONNECT_SHARE))
            .read_timeout(request_timeout);
        builder = match proxy {
            Some(proxy) => builder.proxy(proxy.client.clone()),
            None => builder.no_proxy(),
        };
        if url.0.scheme() != "https" && !proxy.is_some_and(Proxy::uses_tls) {
            // Root certificates are not needed, and may be missing.
            builder = builder.tls_certs_only([]);
        }
        // Without it, any coding would be acceptable (RFC 9110, section 12.5.3).
        let identity = HeaderValue::from_static("identity");
        let mut headers = HeaderMap::from_iter([(ACCEPT_ENCODING, identity)]);
        if let Some(token) = token {
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
                anyhow::anyhow!(
                    "ORDER_PROCESS_TOKEN has a character that cannot stand in an HTTP header"
                )
            })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(builder.default_headers(headers))
    }

    /// Returns the URL of one order's process. Everything but letters and digits is escaped, so that no
    /// character can end the parameter or be read as another.
    fn url_of(&self, id: &OrderId) -> Url {
        let mut url = self.url.clone();
        let id = utf8_percent_encode(id.as_str(), NON_ALPHANUMERIC);
        url.set_query(Some(&format!("order_id={id}")));
        url
    }

    /// Sends a GET request that bypasses caches. The peer may have closed a kept-alive connection, so a
    /// request that breaks off before its answer is repeated once, on a new connection.
    async fn get(&self, url: Url, timeout: Option<Duration>) -> Result<Response, reqwest::Error> {
        let send = |client: &Client| {
            let request = client.get(url.clone()).header(CACHE_CONTROL, "no-cache");
            match timeout {
                Some(timeout) => request.timeout(timeout).send(),
                None => request.send(),
            }
        };
        match send(&self.gets).await {
            Err(error) if error.is_request() && !error.is_connect() && !error.is_timeout() => {
                send(&self.unpooled).await
            }
            result => result,
        }
    }

    /// Checks that an answer with these headers may prove absence. One whose `Age` (RFC 9111, section 5.1) is
    /// above the request timeout, or no number, comes from a cache and may lack newer processes.
    fn check_age(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let is_old = |age: &&HeaderValue| seconds(age).is_none_or(|age| age > self.request_timeout);
        match headers.get_all(AGE).iter().find(is_old) {
            Some(age) => Err(Failure::new(
                format!(
                    "the answer comes from a cache (Age: {}); exempt {} from caching",
                    excerpt(age.as_bytes()),
                    self.url
                ),
                Cause::Stale,
            )),
            None => Ok(()),
        }
    }

    /// Checks that an answer with these headers is not compressed. A portal or a proxy may do so unasked.
    fn check_coding(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let is_compression = |coding: &[u8]| {
            let coding = coding.trim_ascii().to_ascii_lowercase();
            COMPRESSIONS.contains(&&*coding)
        };
        let is_coded = |codings: &&HeaderValue| {
            let mut codings = codings.as_bytes().split(|byte| *byte == b',');
            codings.any(is_compression)
        };
        match headers.get_all(CONTENT_ENCODING).iter().find(is_coded) {
            Some(coding) => Err(Failure::new(
                format!(
                    "the answer is compressed (Content-Encoding: {}); exempt {} from compression",
                    excerpt(coding.as_bytes()),
                    self.url
                ),
                Cause::Unusable,
            )),
            None => Ok(()),
        }
    }

    /// Returns the failure for an answer about the upstream's state, or our access to it.
    fn failure(&self, status: StatusCode, body: &[u8], retry_after: Option<Duration>) -> Failure {
        Failure {
            detail: format!(
                "{} answered {}{}",
                self.peer(),
                summary(status.as_u16(), body),
                self.hint(status)
            ),
            cause: match status {
                StatusCode::TOO_MANY_REQUESTS => Cause::TooManyRequests,
                StatusCode::SERVICE_UNAVAILABLE => Cause::ServiceUnavailable,
                // The proxy is ours, and has made no connection.
                StatusCode::PROXY_AUTHENTICATION_REQUIRED => Cause::NoConnection,
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Cause::AccessDenied,
                status if status.is_redirection() => Cause::AccessDenied,
                _ => Cause::Unusable,
            },
            retry_after,
        }
    }

    /// Returns who may have answered a request, or failed to.
    fn peer(&self) -> String {
        match &self.proxy {
            Some(proxy) => format!("the upstream or the proxy {proxy}"),
            None => "the upstream".to_owned(),
        }
    }

    /// Returns the failure for a request without a complete answer.
    fn no_answer(&self, error: &reqwest::Error) -> Failure {
        // Connecting may time out too.
        if error.is_connect() {
            let at = self.url.origin().ascii_serialization();
            let through = match &self.proxy {
                Some(proxy) => format!(" through the proxy {proxy}"),
                None => String::new(),
            };
            let why = match error.is_timeout() {
                true => "no answer in time".to_owned(),
                false => root_cause(error),
            };
            let detail = format!("the upstream cannot be reached at {at}{through}: {why}");
            return Failure::new(detail, Cause::NoConnection);
        }
        let peer = self.peer();
        if error.is_timeout() {
            return Failure::new(format!("{peer} did not answer in time"), Cause::Timeout);
        }
        let detail = format!("{peer} broke off: {}", root_cause(error));
        Failure::new(detail, Cause::Unusable)
    }

    /// Reads the body up to [`ANSWER_MAX`] bytes. Returns them, and the failure if they are not all of it.
    async fn read_body(&self, mut response: Response) -> (Vec<u8>, Result<(), Failure>) {
        let mut body = Vec::new();
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return (body, Ok(())),
                Err(error) => return (body, Err(self.no_answer(&error))),
            };
            // A compressed body may be long, and its beginning says nothing.
            if let Err(failure) = self.check_coding(response.headers()) {
                return (body, Err(failure));
            }
            let room = ANSWER_MAX - body.len();
            if chunk.len() > room {
                body.extend_from_slice(&chunk[..room]);
                let detail = format!("the answer is longer than {ANSWER_MAX} bytes");
                return (body, Err(Failure::new(detail, Cause::Unusable)));
            }
            body.extend_from_slice(&chunk);
        }
    }

    /// Returns a hint at the likely cause of an answer with this status.
    fn hint(&self, status: StatusCode) -> String {
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                " (is ORDER_PROCESS_TOKEN right?)".to_owned()
            }
            StatusCode::PROXY_AUTHENTICATION_REQUIRED if self.proxy.is_some() => {
                " (are the user name and password in the proxy's URL right?)".to_owned()
            }
            // The service has this path, and answers 200 about an unknown order.
            StatusCode::NOT_FOUND => format!(" (is this the right URL? {})", self.url),
            status if status.is_redirection() => " (redirects are not followed)".to_owned(),
            _ => String::new(),
        }
    }
}

impl Upstream for HttpUpstream {
    async fn start(&self, id: &OrderId) -> Result<(), StartError> {
        let body = serde_json::json!({ "order_id": id.as_str() }).to_string();
        let request = self
            .starts
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        let response = match request.timeout(self.request_timeout).send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => {
                return Err(StartError::Unavailable(self.no_answer(&error)));
            }
            Err(error) => {
                return Err(StartError::Ambiguous {
                    answer_status: None,
                    failure: self.no_answer(&error),
                });
            }
        };
        let status = response.status();
        let retry_after = retry_after(&response);
        let (body, end) = self.read_body(response).await;
        if status.is_success() {
            // The upstream's own answer has no body.
            let detail = match end {
                Ok(()) if body.is_empty() => return Ok(()),
                Ok(()) => summary(status.as_u16(), &body),
                Err(failure) => format!("{}; {}", summary(status.as_u16(), &body), failure.detail),
            };
            let detail = format!("the start was answered {detail}, and no process is found");
            return Err(StartError::Unconfirmed {
                answer_status: status.as_u16(),
                failure: Failure::new(detail, Cause::Unusable),
            });
        }
        let failure = self.failure(status, &body, retry_after);
        if status == StatusCode::TOO_MANY_REQUESTS {
            return Err(StartError::Unavailable(failure));
        }
        if is_about_upstream(status) {
            return Err(StartError::Ambiguous {
                // A gateway may answer 408 after it has forwarded the request.
                answer_status: (status != StatusCode::REQUEST_TIMEOUT).then(|| status.as_u16()),
                failure,
            });
        }
        Err(StartError::Refused {
            answer_status: status.as_u16(),
            detail: format!(
                "the start was answered {}{}",
                summary(status.as_u16(), &body),
                self.hint(status)
            ),
        })
    }

    async fn look_up(&self, id: &OrderId) -> Result<Observed, Failure> {
        let response = self
            .get(self.url_of(id), Some(self.request_timeout))
            .await
            .map_err(|error| self.no_answer(&error))?;
        let status = response.status();
        let retry_after = retry_after(&response);
        let fresh = self.check_age(response.headers());
        let (body, end) = self.read_body(response).await;
        if status != StatusCode::OK {
            return Err(self.failure(status, &body, retry_after));
        }
        end?;
        let observed = observed_of(id, &body).map_err(|what| {
            Failure::new(
                format!("a look-up was answered with {what}"),
                Cause::Unusable,
            )
        })?;
        if observed == Observed::Absent {
            fresh?;
        }
        Ok(observed)
    }

    async fn list(&self, mut on_entry: impl FnMut(Entry<'_>)) -> Result<u64, Failure> {
        let response = self.get(self.url.clone(), None).await;
        let mut response = response.map_err(|error| self.no_answer(&error))?;
        let status = response.status();
        if status != StatusCode::OK {
            let retry_after = retry_after(&response);
            let (body, _) = self.read_body(response).await;
            return Err(self.failure(status, &body, retry_after));
        }
        self.check_coding(response.headers())?;
        let fresh = self.check_age(response.headers());
        let mut decoder = ListDecoder::new();
        let broken = |error: ListError| {
            Failure::new(format!("the list cannot be used: {error}"), Cause::Unusable)
        };
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.no_answer(&error))?
        {
            decoder.push(&chunk, &mut on_entry).map_err(broken)?;
        }
        let entries = decoder.finish().map_err(broken)?;
        fresh?;
        Ok(entries)
    }
}

/// Returns whether an answer with this status is about the upstream's state, or our access to it, and not
/// about the order.
fn is_about_upstream(status: StatusCode) -> bool {
    status.is_server_error()
        || status.is_redirection()
        || status.is_informational()
        || matches!(
            status,
            StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
                | StatusCode::PROXY_AUTHENTICATION_REQUIRED
                | StatusCode::REQUEST_TIMEOUT
        )
}

/// Returns the innermost cause. The outer ones only repeat the URL.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn StdError = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Returns the wait that an answer asks for (RFC 9110, section 10.2.3). A date is ignored in favour of the
/// backoff.
fn retry_after(response: &Response) -> Option<Duration> {
    seconds(response.headers().get(RETRY_AFTER)?)
}

/// Returns the number of seconds in a header. One that is too large is the greatest (RFC 9111, section
/// 1.2.2).
fn seconds(value: &HeaderValue) -> Option<Duration> {
    let digits = value.to_str().ok()?.trim();
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| Duration::from_secs(digits.parse().unwrap_or(u32::MAX).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_of_an_id_survives_in_the_url() {
        let url = "http://127.0.0.1:8000".parse().unwrap();
        let upstream = HttpUpstream::new(&url, None, Duration::from_secs(1)).unwrap();
        let id = OrderId::new("a;b&c+d#e%f g/h=é\"").unwrap();
        let url = upstream.url_of(&id);
        let back: Vec<_> = url.query_pairs().collect();
        assert_eq!(back, [("order_id".into(), id.as_str().into())]);
        assert!(!url.query().unwrap().contains([';', '+', '#', ' ', '/']));
    }

    #[test]
    fn a_token_that_cannot_be_sent_is_refused() {
        let url = "http://127.0.0.1:8000".parse().unwrap();
        assert!(HttpUpstream::new(&url, Some("a\nb"), Duration::from_secs(1)).is_err());
    }
}

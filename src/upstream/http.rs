//! The HTTP client of the order process service. The only file that knows its wire format, apart from
//! the list in `upstream/list.rs`.
//!
//! Absence needs a complete answer; of a list that breaks off, the entries hold.

use std::error::Error as StdError;
use std::time::Duration;

use anyhow::Context;
use hyper_util::client::proxy::matcher::Matcher;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{
    AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER,
};
use reqwest::{Client, ClientBuilder, Response, StatusCode, Url, redirect};
use serde::Deserialize;

use super::list::{Entry, ListDecoder, ListError};
use super::url::UpstreamUrl;
use super::{Cause, Failure, StartError, Upstream};
use crate::order::{Observed, OrderId};

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

/// Maximum length of the excerpt of an unexpected answer, in characters.
const EXCERPT_MAX: usize = 200;

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
    request_timeout: Duration,
}

impl HttpUpstream {
    /// Creates a client of the service at `url`. `request_timeout` limits each request, and for the list
    /// the time between two chunks; connecting may take three quarters of it. `token` is sent as a bearer
    /// token (RFC 6750, section 2.1).
    ///
    /// # Errors
    /// The token is not a valid header value, or the system's root certificates cannot be used.
    pub fn new(
        url: &UpstreamUrl,
        token: Option<&str>,
        request_timeout: Duration,
    ) -> anyhow::Result<Self> {
        // Fails only if a provider is installed already, which is then used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || Self::builder(url, token, request_timeout);
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
            request_timeout,
        })
    }

    fn builder(
        url: &UpstreamUrl,
        token: Option<&str>,
        request_timeout: Duration,
    ) -> anyhow::Result<ClientBuilder> {
        let mut builder = Client::builder()
            .user_agent(concat!("order-service/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .connect_timeout(request_timeout.mul_f64(CONNECT_SHARE))
            .read_timeout(request_timeout);
        if url.is_loopback() {
            builder = builder.no_proxy();
        }
        if !uses_tls(url) {
            // Root certificates are not needed, and may be missing.
            builder = builder.tls_certs_only([]);
        }
        if let Some(token) = token {
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
                anyhow::anyhow!(
                    "ORDER_PROCESS_TOKEN has a character that cannot stand in an HTTP header"
                )
            })?;
            value.set_sensitive(true);
            builder = builder.default_headers([(AUTHORIZATION, value)].into_iter().collect());
        }
        Ok(builder)
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

    /// Returns the failure for an answer about the upstream's state, or our access to it.
    fn failure(&self, status: StatusCode, body: &[u8], retry_after: Option<Duration>) -> Failure {
        Failure {
            detail: format!(
                "the upstream answered {}{}",
                summary(status, body),
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

    /// Returns a hint at the likely cause of an answer with this status.
    fn hint(&self, status: StatusCode) -> String {
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                " (is ORDER_PROCESS_TOKEN right?)".to_owned()
            }
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
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
                return Err(StartError::Unavailable(no_answer(&error)));
            }
            Err(error) => {
                return Err(StartError::Ambiguous {
                    answer_status: None,
                    failure: no_answer(&error),
                });
            }
        };
        let status = response.status();
        let retry_after = retry_after(&response);
        let (body, end) = read_body(response).await;
        if status.is_success() {
            // The upstream's own answer has no body.
            let detail = match end {
                Ok(()) if body.is_empty() => return Ok(()),
                Ok(()) => summary(status, &body),
                Err(failure) => format!("{}; {}", summary(status, &body), failure.detail),
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
                summary(status, &body),
                self.hint(status)
            ),
        })
    }

    async fn look_up(&self, id: &OrderId) -> Result<Observed, Failure> {
        let response = self
            .get(self.url_of(id), Some(self.request_timeout))
            .await
            .map_err(|error| no_answer(&error))?;
        let status = response.status();
        let retry_after = retry_after(&response);
        let fresh = self.check_age(response.headers());
        let (body, end) = read_body(response).await;
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
        let mut response = response.map_err(|error| no_answer(&error))?;
        let status = response.status();
        if status != StatusCode::OK {
            let retry_after = retry_after(&response);
            let (body, _) = read_body(response).await;
            return Err(self.failure(status, &body, retry_after));
        }
        let fresh = self.check_age(response.headers());
        let mut decoder = ListDecoder::new();
        let broken = |error: ListError| {
            Failure::new(format!("the list cannot be used: {error}"), Cause::Unusable)
        };
        while let Some(chunk) = response.chunk().await.map_err(|error| no_answer(&error))? {
            decoder.push(&chunk, &mut on_entry).map_err(broken)?;
        }
        let entries = decoder.finish().map_err(broken)?;
        fresh?;
        Ok(entries)
    }
}

/// Returns whether requests to this URL use TLS, be it only to their proxy.
fn uses_tls(url: &UpstreamUrl) -> bool {
    // The client finds its proxy in the same way.
    let proxy = || Matcher::from_system().intercept(&url.0.as_str().parse().ok()?);
    url.0.scheme() == "https"
        || !url.is_loopback()
            && proxy().is_some_and(|proxy| proxy.uri().scheme_str() == Some("https"))
}

/// Returns the observation in the body of a 200 answer to a look-up of `id`.
fn observed_of(id: &OrderId, body: &[u8]) -> Result<Observed, String> {
    #[derive(Deserialize)]
    struct Process {
        order_id: String,
        status: String,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}

    // An empty object alone means that the order has no process.
    if serde_json::from_slice::<Nothing>(body).is_ok() && body.trim_ascii().starts_with(b"{") {
        return Ok(Observed::Absent);
    }
    if !body.trim_ascii().starts_with(b"{") {
        return Err(match excerpt(body) {
            blank if blank.is_empty() => "an empty body".to_owned(),
            text => format!("something that is no object: {text}"),
        });
    }
    let process: Process = serde_json::from_slice(body)
        .map_err(|error| format!("an object that is no process ({error}): {}", excerpt(body)))?;
    if process.order_id != id.as_str() {
        return Err("the process of another order".to_owned());
    }
    Ok(Observed::of_status(&process.status))
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

/// Returns the failure for a request without a complete answer.
fn no_answer(error: &reqwest::Error) -> Failure {
    // Connecting may time out too.
    let (detail, cause) = if error.is_connect() {
        let origin = error.url().map(|url| url.origin().ascii_serialization());
        let at = origin.map_or_else(String::new, |origin| format!(" at {origin}"));
        let why = match error.is_timeout() {
            true => "no answer in time".to_owned(),
            false => root_cause(error),
        };
        let detail = format!("the upstream cannot be reached{at}: {why}");
        (detail, Cause::NoConnection)
    } else if error.is_timeout() {
        let detail = "the upstream did not answer in time".to_owned();
        (detail, Cause::Timeout)
    } else {
        let detail = format!("the upstream broke off: {}", root_cause(error));
        (detail, Cause::Unusable)
    };
    Failure::new(detail, cause)
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

/// Reads the body up to [`ANSWER_MAX`] bytes. Returns them, and the failure if they are not all of it.
async fn read_body(mut response: Response) -> (Vec<u8>, Result<(), Failure>) {
    let mut body = Vec::new();
    loop {
        let chunk = match response.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return (body, Ok(())),
            Err(error) => return (body, Err(no_answer(&error))),
        };
        let room = ANSWER_MAX - body.len();
        if chunk.len() > room {
            body.extend_from_slice(&chunk[..room]);
            let detail = format!("the answer is longer than {ANSWER_MAX} bytes");
            return (body, Err(Failure::new(detail, Cause::Unusable)));
        }
        body.extend_from_slice(&chunk);
    }
}

fn summary(status: StatusCode, body: &[u8]) -> String {
    match excerpt(body) {
        blank if blank.is_empty() => status.as_u16().to_string(),
        text => format!("{}: {text}", status.as_u16()),
    }
}

/// Returns the beginning of a body, on one line.
fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(body)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(EXCERPT_MAX)
        .collect::<String>()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_object_means_that_the_order_is_unknown() {
        let id = OrderId::new("a1").unwrap();
        assert_eq!(observed_of(&id, b"{}"), Ok(Observed::Absent));
        assert_eq!(observed_of(&id, b" { }\n"), Ok(Observed::Absent));
        for (body, observed) in [
            (r#"{"order_id":"a1","status":"RUNNING"}"#, Observed::Running),
            (
                r#"{"status":"SUCCEEDED","order_id":"a1","more":[1]}"#,
                Observed::Succeeded,
            ),
            (r#"{"order_id":"a1","status":"FAILED"}"#, Observed::Failed),
            (
                r#"{"order_id":"a1","status":"PAUSED"}"#,
                Observed::Unrecognised("PAUSED".into()),
            ),
        ] {
            assert_eq!(observed_of(&id, body.as_bytes()), Ok(observed), "{body}");
        }
        for body in [
            "",
            "null",
            "[]",
            "[{}]",
            r#"[{"order_id":"a1","status":"RUNNING"}]"#,
            r#"["a1","RUNNING"]"#,
            r#"{"message":"hello"}"#,
            r#"{"order_id":"a1"}"#,
            r#"{"status":"RUNNING"}"#,
            r#"{"order_id":"a2","status":"RUNNING"}"#,
            r#"{"order_id":"a1","status":"RUNNING","status":"FAILED"}"#,
            r#"{"order_id":"a1","status":null}"#,
            r#"{"order_id":"a1","status":"RUNNING"}{}"#,
            "<html></html>",
        ] {
            let what = observed_of(&id, body.as_bytes()).unwrap_err();
            assert!(!what.ends_with([' ', ':']), "{body}: {what}");
        }
        for blank in ["", " \r\n", "\0"] {
            let what = observed_of(&id, blank.as_bytes()).unwrap_err();
            assert_eq!(what, "an empty body", "{blank:?}");
            assert_eq!(summary(StatusCode::OK, blank.as_bytes()), "200");
        }
    }

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

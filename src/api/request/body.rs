//! The body of a new order: reading within limits, and parsing.

use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, BufMut};
use futures_util::{Stream, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use warp::http::HeaderMap;
use warp::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderName, TRANSFER_ENCODING};

use super::super::problem::Problem;
use crate::order::OrderId;

/// Maximum size of a body, in bytes: an id takes a few hundred, and ignored members have room.
const BODY_MAX: usize = 16 * 1024;

/// Timeout of a body, which fits in a few packets.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads a body within the limits of size and time.
pub(in super::super) async fn read_body<B: Buf>(
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
) -> Result<Vec<u8>, Problem> {
    check_codings(headers)?;
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > BODY_MAX as u64) {
        return Err(Problem::too_large(BODY_MAX));
    }
    let mut body = pin!(body);
    let read = async {
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|_| Problem::body("the body is incomplete"))?;
            if bytes.len() + chunk.remaining() > BODY_MAX {
                return Err(Problem::too_large(BODY_MAX));
            }
            bytes.put(chunk);
        }
        Ok(bytes)
    };
    tokio::time::timeout(BODY_TIMEOUT, read)
        .await
        .unwrap_or_else(|_| Err(Problem::too_slow(BODY_TIMEOUT.as_secs())))
}

/// Checks that the body has no coding but `chunked`, which the server has removed.
fn check_codings(headers: &HeaderMap) -> Result<(), Problem> {
    let transfer = codings(headers, TRANSFER_ENCODING);
    if !matches!(&*transfer, "" | "chunked") {
        return Err(Problem::unsupported_transfer_coding(&transfer));
    }
    let content = codings(headers, CONTENT_ENCODING);
    if !matches!(&*content, "" | "identity") {
        return Err(Problem::unsupported_content_coding(&content));
    }
    Ok(())
}

/// Returns the codings in all headers of a name, in lower case. Empty elements of a list do not count (RFC
/// 9110, section 5.6.1).
fn codings(headers: &HeaderMap, name: HeaderName) -> String {
    let values = headers.get_all(name).iter();
    let values = values.map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase());
    let values: Vec<_> = values.collect();
    let codings = values.iter().flat_map(|value| value.split(','));
    let codings = codings.map(str::trim).filter(|coding| !coding.is_empty());
    codings.collect::<Vec<_>>().join(", ")
}

/// Parses the id of a new order.
pub(in super::super) fn new_order(body: &[u8]) -> Result<OrderId, Problem> {
    let text = std::str::from_utf8(body).map_err(|_| Problem::body("the body is not UTF-8"))?;
    let refused = |what: &str| {
        let detail = format!("the body is {what}; send an object such as {{\"id\":\"a1\"}}");
        Problem::body(detail)
    };
    match text.trim_ascii_start().chars().next() {
        None => return Err(refused("empty")),
        Some('{') => {}
        Some('\u{feff}') => return Err(refused("preceded by a byte order mark")),
        Some(_) => return Err(refused("not a JSON object")),
    }
    let wrong = |what: &str| Problem::member("id", format!("the member \"id\" {what}"));
    let order: NewOrder<'_> =
        serde_json::from_str(text).map_err(|error| match error.is_data() {
            true => wrong("is there twice; send it once"),
            false => refused(&format!("not valid JSON: {error}")),
        })?;
    let Some(id) = order.id else {
        return Err(wrong(
            "is missing or null; send an object such as {\"id\":\"a1\"}",
        ));
    };
    if !id.get().starts_with('"') {
        return Err(wrong("must be a string"));
    }
    let id: String = serde_json::from_str(id.get()).map_err(|_| wrong("has an invalid escape"))?;
    OrderId::new(id).map_err(|error| wrong(&error.to_string()))
}

/// The member of the body's object that is used; a second one of its name is an error.
#[derive(Deserialize)]
struct NewOrder<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

#[cfg(test)]
mod tests {
    use super::super::super::problem;
    use super::*;
    use crate::order::ID_MAX_CHARS;

    #[test]
    fn the_page_of_problems_has_the_limits_in_force() {
        let page = problem::page();
        for limit in [
            format!("more than {} KiB", BODY_MAX / 1024),
            format!("within {} seconds", BODY_TIMEOUT.as_secs()),
            format!("1 to {ID_MAX_CHARS} characters"),
        ] {
            assert!(page.contains(&limit), "{limit}");
        }
    }

    #[test]
    fn a_body_is_an_object_with_an_id_and_anything_else_beside_it() {
        for body in [
            r#"{"id":"a1"}"#,
            r#" {"more":[{"id":1}],"id":"a1","x":null,"x":1} "#,
            r#"{"\u0069d":"a1"}"#,
        ] {
            assert_eq!(new_order(body.as_bytes()).unwrap().as_str(), "a1");
        }
        let deep = format!(
            "{{\"id\":\"a1\",\"x\":{}{}}}",
            "[".repeat(5_000),
            "]".repeat(5_000)
        );
        assert!(new_order(deep.as_bytes()).is_ok());
        for body in [
            "",
            " ",
            "null",
            "[]",
            "\"a1\"",
            "1",
            "{",
            "{}",
            "{\"id\"}",
            "{'id':'a1'}",
            r#"{"id":1}"#,
            r#"{"id":null}"#,
            r#"{"id":["a1"]}"#,
            r#"{"id":""}"#,
            r#"{"id":"a1","id":"a1"}"#,
            r#"{"id":"a1"}{}"#,
            r#"{"id":"a1",}"#,
            r#"{"id":" a1"}"#,
            r#"{"id":"\u0000"}"#,
            r#"{"id":"\ud800"}"#,
            r#"{"ID":"a1"}"#,
            "\u{feff}{\"id\":\"a1\"}",
        ] {
            assert_eq!(
                new_order(body.as_bytes()).unwrap_err().reply().status(),
                400,
                "{body}"
            );
        }
        assert!(new_order(b"{\"id\":\"a1\",\"x\":\"\xff\"}").is_err());
    }
}

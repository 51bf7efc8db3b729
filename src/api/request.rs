//! Parsing of requests. Each client input is parsed here, once.
//!
//! Each error says what was wrong and what would be right. Bodies of new orders are in
//! `api/request/body.rs`, parameters of events in `api/request/event.rs`, the preference `wait` in
//! `api/request/prefer.rs`.

mod body;
mod event;
mod prefer;

use std::borrow::Cow;
use std::collections::HashSet;

use percent_encoding::percent_decode_str;
use url::form_urlencoded;
use warp::http::HeaderMap;
use warp::http::header::{ACCEPT, CONTENT_TYPE};

pub(super) use self::body::{new_order, read_body};
pub(super) use self::event::{After, EventQuery, next_page};
pub(super) use self::prefer::Wait;
use super::problem::Problem;
use crate::order::{OrderId, ResolvedBy, Status};
use crate::store::{AttentionFilter, Cursor, Filter};

/// Maximum page size. A larger limit is rejected.
const LIMIT_MAX: usize = 1_000;

/// Values of the parameter `attention`.
const ATTENTION: [(&str, AttentionFilter); 4] = [
    ("true", AttentionFilter::Any),
    ("false", AttentionFilter::Without),
    ("operator", AttentionFilter::By(ResolvedBy::Operator)),
    ("itself", AttentionFilter::By(ResolvedBy::Itself)),
];

/// Parses the id in a path segment. A plus sign is literal, not a space.
pub(super) fn id_in_path(segment: &str) -> Result<OrderId, Problem> {
    let text = unescaped(segment).map_err(Problem::path)?;
    // An invalid id cannot exist, so it is not found.
    OrderId::new(&*text).map_err(|_| Problem::no_such_order(&text))
}

/// Decodes percent-encoded text (RFC 3986, section 2.1).
fn unescaped(text: &str) -> Result<Cow<'_, str>, &'static str> {
    let is_escape = |(index, _)| {
        let digits = text.as_bytes().get(index + 1..index + 3);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if !text.match_indices('%').all(is_escape) {
        return Err("a % must be followed by two hexadecimal digits; a % itself is written %25");
    }
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map_err(|_| "the escapes must be UTF-8")
}

/// Returns the names and values in a query.
fn parameters(query: &str) -> Result<form_urlencoded::Parse<'_>, Problem> {
    for pair in query.split('&') {
        let (name, _) = pair.split_once('=').unwrap_or((pair, ""));
        unescaped(pair).map_err(|why| Problem::parameter(name, why))?;
    }
    Ok(form_urlencoded::parse(query.as_bytes()))
}

/// Parameters of a list of orders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListQuery {
    pub filter: Filter,
    pub after: Cursor,
    pub limit: Option<usize>,
}

impl ListQuery {
    pub fn parse(query: &str) -> Result<Self, Problem> {
        let mut parsed = Self::default();
        let mut seen = HashSet::new();
        for (name, value) in parameters(query)? {
            if name != "status" {
                check_new(&mut seen, &name)?;
            }
            match &*name {
                "status" => {
                    for word in value.split(',') {
                        let status: Status = word
                            .parse()
                            .map_err(|error| Problem::parameter("status", format!("{error}")))?;
                        parsed.filter.statuses.push(status);
                    }
                }
                "attention" => {
                    let known = ATTENTION.iter().find(|(word, _)| *word == value);
                    let (_, attention) = known.ok_or_else(|| {
                        Problem::parameter(
                            "attention",
                            format!(
                                "unknown attention {value:?}; expected true, false, operator or \
                                 itself"
                            ),
                        )
                    })?;
                    parsed.filter.attention = Some(*attention);
                }
                "limit" => {
                    parsed.limit = Some(limit(&value)?);
                }
                "after" => {
                    parsed.after = value.parse().map_err(|_| {
                        Problem::parameter(
                            "after",
                            format!(
                                "invalid cursor {value:?}; use the one in the Link header of a page"
                            ),
                        )
                    })?;
                }
                _ => {
                    return Err(Problem::parameter(
                        &name,
                        format!(
                            "unknown parameter {name:?}; expected status, attention, limit \
                             or after"
                        ),
                    ));
                }
            }
        }
        Ok(parsed)
    }

    /// Returns the query of the page after a cursor.
    pub fn next(&self, after: Cursor) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for status in &self.filter.statuses {
            query.append_pair("status", status.as_str());
        }
        let is_wanted = |known: &&(&str, _)| Some(known.1) == self.filter.attention;
        if let Some((word, _)) = ATTENTION.iter().find(is_wanted) {
            query.append_pair("attention", word);
        }
        if let Some(limit) = self.limit {
            query.append_pair("limit", &limit.to_string());
        }
        query.append_pair("after", &after.to_string());
        query.finish()
    }
}

/// Parses the page size.
fn limit(value: &str) -> Result<usize, Problem> {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let limit = value.parse().ok().filter(|_| digits);
    limit
        .filter(|n| (1..=LIMIT_MAX).contains(n))
        .ok_or_else(|| {
            Problem::parameter(
                "limit",
                format!("invalid limit {value:?}; expected a number from 1 to {LIMIT_MAX}"),
            )
        })
}

/// Rejects a parameter that is given twice.
fn check_new(seen: &mut HashSet<String>, name: &str) -> Result<(), Problem> {
    match seen.insert(name.to_owned()) {
        true => Ok(()),
        false => Err(Problem::parameter(name, format!("{name:?} is given twice"))),
    }
}

/// Rejects all parameters.
pub(super) fn no_parameters(query: &str) -> Result<(), Problem> {
    match parameters(query)?.next() {
        None => Ok(()),
        Some((name, _)) => Err(Problem::parameter(
            &name,
            format!("unknown parameter {name:?}; this path has none"),
        )),
    }
}

/// Accepts `application/json` and any `+json`, with any parameter. A missing Content-Type is
/// treated as JSON.
pub(super) fn is_json(headers: &HeaderMap) -> Result<(), Problem> {
    for value in headers.get_all(CONTENT_TYPE) {
        let (media_type, _) = media_type(value.to_str().unwrap_or_default());
        let is_json = match media_type.split_once('/') {
            Some(("application", "json")) => true,
            Some((kind, subtype)) => !kind.is_empty() && subtype.ends_with("+json"),
            None => false,
        };
        if !is_json {
            return Err(Problem::unsupported_media_type(&String::from_utf8_lossy(
                value.as_bytes(),
            )));
        }
    }
    Ok(())
}

/// Splits a media type, in lower case, from its parameters (RFC 9110, section 8.3.1).
fn media_type(text: &str) -> (String, &str) {
    let (media_type, parameters) = text.split_once(';').unwrap_or((text, ""));
    (media_type.trim().to_ascii_lowercase(), parameters)
}

/// Format of a list of orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// One JSON array.
    Array,
    /// One order per line.
    Lines,
}

/// Returns the format that a client prefers: an array, unless it asks for lines.
pub(super) fn form(headers: &HeaderMap) -> Form {
    if prefers(headers, "application/x-ndjson") {
        Form::Lines
    } else {
        Form::Array
    }
}

/// Returns true if a client accepts this media type, and does not prefer JSON to it (RFC 9110,
/// section 12.5.1).
fn prefers(headers: &HeaderMap, special: &str) -> bool {
    let mut wanted = 0.0;
    // The most specific range that matches JSON applies.
    let mut json = (0, 0.0);
    for value in headers.get_all(ACCEPT) {
        for range in value.to_str().unwrap_or_default().split(',') {
            let (range, parameters) = media_type(range);
            let quality = quality(parameters);
            let precision = match range.as_str() {
                range if range == special => {
                    wanted = quality;
                    continue;
                }
                "application/json" => 3,
                "application/*" => 2,
                "*/*" => 1,
                _ => continue,
            };
            if precision >= json.0 {
                json = (precision, quality);
            }
        }
    }
    wanted > 0.0 && wanted >= json.1
}

/// Parses the parameter `q` (RFC 9110, section 12.4.2): 1 if absent.
fn quality(parameters: &str) -> f32 {
    for parameter in parameters.split(';') {
        if let Some((name, value)) = parameter.split_once('=')
            && name.trim().eq_ignore_ascii_case("q")
        {
            return value.trim().parse().unwrap_or(0.0);
        }
    }
    1.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use warp::http::header::HeaderValue;

    use super::super::json::location;
    use super::*;

    #[test]
    fn an_id_is_decoded_from_a_path_and_a_plus_is_literal() {
        for (segment, id) in [
            ("a1", "a1"),
            ("a%2Fb", "a/b"),
            ("a+b", "a+b"),
            ("a%20b", "a b"),
            ("%25", "%"),
            ("c%C3%A9", "cé"),
        ] {
            assert_eq!(id_in_path(segment).unwrap().as_str(), id);
        }
        for segment in ["%", "a%2", "a%zz", "%%41", "%C3", "%ff%fe"] {
            assert_eq!(id_in_path(segment).unwrap_err().reply().status(), 400);
        }
        for segment in ["%00", "%20a", "%2e", ".."] {
            assert_eq!(id_in_path(segment).unwrap_err().reply().status(), 404);
        }
    }

    #[test]
    fn the_location_of_an_order_leads_back_to_it() {
        for text in [
            "a1",
            "a/b c?d#e%f+g",
            "日本",
            "\"<>\\^`{|}",
            "...",
            "~a-b_c.d",
        ] {
            let id = OrderId::new(text).unwrap();
            let location = location(&id);
            let segment = location.to_str().unwrap().strip_prefix("/order/").unwrap();
            assert_eq!(id_in_path(segment).unwrap(), id);
        }
    }

    #[test]
    fn json_is_recognised_by_its_content_type() {
        let check = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_str(value).unwrap());
            is_json(&headers).is_ok()
        };
        for good in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/vnd.a+json",
            "application/problem+JSON;x=1",
        ] {
            assert!(check(good), "{good}");
        }
        for bad in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "text/json",
            "json",
            "",
            "application/jsonp",
        ] {
            assert!(!check(bad), "{bad}");
        }
        assert!(is_json(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn lines_are_sent_only_to_clients_that_prefer_them() {
        let check = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_str(value).unwrap());
            form(&headers)
        };
        for lines in [
            "application/x-ndjson",
            "application/x-ndjson, application/json;q=0.5",
            "text/html, Application/X-NDJSON;q=0.3",
        ] {
            assert_eq!(check(lines), Form::Lines, "{lines}");
        }
        for array in [
            "*/*",
            "application/json",
            "application/x-ndjson;q=0",
            "application/json, application/x-ndjson;q=0.5",
            "garbage",
            "",
        ] {
            assert_eq!(check(array), Form::Array, "{array}");
        }
    }

    #[test]
    fn an_invalid_query_is_refused_with_the_name_of_the_parameter() {
        let after = "7-3-4000000000".parse().unwrap();
        for (word, attention) in ATTENTION {
            let words = format!("status=CREATED,FAILED&status=CREATED&limit=10&attention={word}");
            let query = ListQuery::parse(&words).unwrap();
            assert_eq!(query.filter.statuses.len(), 3);
            assert_eq!(query.filter.attention, Some(attention));
            assert_eq!(query.limit, Some(10));
            let again = ListQuery::parse(&query.next(after)).unwrap();
            assert_eq!(again, ListQuery { after, ..query });
        }
        for bad in [
            "status=",
            "status=created",
            "status=CREATED,",
            "status=CREATED+",
            "limit=0",
            "limit=1001",
            "limit=",
            "limit=ten",
            "limit=1&limit=1",
            "after=",
            "after=-1",
            "after=1-2",
            "after=6be3000000000064",
            "attention=",
            "attention=1",
            "attention=true&attention=true",
            "id=a1",
            "=",
            "Status=CREATED",
            "attention=%zz",
            "after=%ff",
        ] {
            assert!(ListQuery::parse(bad).is_err(), "{bad}");
        }
        assert!(ListQuery::parse("").is_ok());
    }

    proptest! {
        #[test]
        fn any_id_is_found_under_its_location_and_in_a_body(text in any::<String>()) {
            let body = serde_json::json!({ "id": text }).to_string();
            match OrderId::new(&*text) {
                Ok(id) => {
                    prop_assert_eq!(&new_order(body.as_bytes()).unwrap(), &id);
                    let location = location(&id);
                    let path = location.to_str().unwrap();
                    prop_assert_eq!(id_in_path(path.strip_prefix("/order/").unwrap()).unwrap(), id);
                }
                Err(_) => prop_assert!(new_order(body.as_bytes()).is_err()),
            }
        }

        #[test]
        fn any_path_and_any_body_are_answered(segment in any::<String>(), body in any::<Vec<u8>>()) {
            let _ = id_in_path(&segment);
            let _ = new_order(&body);
            let _ = ListQuery::parse(&segment);
        }
    }
}

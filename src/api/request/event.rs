//! Parameters of a request for events, and the cursor at which a stream begins.

use std::collections::HashSet;

use url::form_urlencoded;
use warp::http::HeaderMap;

use super::super::problem::Problem;
use super::{check_new, limit, parameters, prefers};
use crate::order::OrderId;
use crate::store::Cursor;

/// Default page size.
const LIMIT_DEFAULT: usize = 100;

/// Start of a page or stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum After {
    /// After this cursor.
    Event(Cursor),
    /// After the newest event.
    Latest,
}

/// Parameters of a request for events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum EventQuery {
    /// One page.
    Page {
        after: Cursor,
        limit: usize,
        order: Option<OrderId>,
    },
    /// A stream of existing and future events.
    Stream {
        after: After,
        order: Option<OrderId>,
    },
}

impl EventQuery {
    pub fn parse(query: &str, headers: &HeaderMap) -> Result<Self, Problem> {
        let mut after = After::Event(Cursor::default());
        let mut last_seen = None;
        let mut limit_given = None;
        let mut order = None;
        let mut seen = HashSet::new();
        for (name, value) in parameters(query)? {
            check_new(&mut seen, &name)?;
            match &*name {
                "after" if value == "latest" => after = After::Latest,
                "after" => {
                    let position = value.parse().map_err(|_| {
                        Problem::parameter(
                            "after",
                            format!(
                                "after is a cursor from a Link or the id of an event, its \
                                 \"seq\", or latest for a stream, not {value:?}"
                            ),
                        )
                    })?;
                    after = After::Event(position);
                }
                "lastEventId" => last_seen = last_event_id("lastEventId", &value)?,
                "limit" => limit_given = Some(limit(&value)?),
                "order_id" => {
                    order = Some(OrderId::new(&*value).map_err(|error| {
                        Problem::parameter("order_id", format!("order_id {error}"))
                    })?);
                }
                _ => {
                    return Err(Problem::parameter(
                        &name,
                        format!(
                            "unknown parameter {name:?}; expected after, lastEventId, limit or \
                             order_id"
                        ),
                    ));
                }
            }
        }
        if !prefers(headers, "text/event-stream") {
            return Self::page(after, last_seen, limit_given, order);
        }
        if limit_given.is_some() {
            return Err(Problem::parameter(
                "limit",
                "a stream has no limit: it continues until the client closes it",
            ));
        }
        // A reconnecting client sends the original URL: the cursor in the header is newer.
        let header = headers.get("last-event-id");
        let header = header.map(|value| value.to_str().unwrap_or("not text"));
        let header = last_event_id("Last-Event-ID", header.unwrap_or_default())?;
        let after = header.or(last_seen).map_or(after, After::Event);
        Ok(Self::Stream { after, order })
    }

    fn page(
        after: After,
        last_seen: Option<Cursor>,
        limit: Option<usize>,
        order: Option<OrderId>,
    ) -> Result<Self, Problem> {
        if last_seen.is_some() {
            return Err(Problem::parameter(
                "lastEventId",
                "lastEventId is for a stream (Accept: text/event-stream); use after for a page",
            ));
        }
        let After::Event(after) = after else {
            return Err(Problem::parameter(
                "after",
                "after=latest is for a stream (Accept: text/event-stream); no page follows the newest \
                 event",
            ));
        };
        Ok(Self::Page {
            after,
            limit: limit.unwrap_or(LIMIT_DEFAULT),
            order,
        })
    }
}

/// Returns the query of the page after a cursor.
pub(in super::super) fn next_page(
    after: Cursor,
    limit: Option<usize>,
    order: Option<&OrderId>,
) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    if let Some(order) = order {
        query.append_pair("order_id", order.as_str());
    }
    if let Some(limit) = limit {
        query.append_pair("limit", &limit.to_string());
    }
    query.append_pair("after", &after.to_string());
    query.finish()
}

/// Parses the cursor in the header `Last-Event-ID`, which a reconnecting client sends (the HTML
/// standard, section 9.2.4), or in the parameter `lastEventId`, for clients that cannot set
/// headers. An empty value means none.
fn last_event_id(name: &str, value: &str) -> Result<Option<Cursor>, Problem> {
    match value.trim() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            let what = "must be the id of an event that this service has sent";
            Problem::parameter(name, format!("{name} {what}"))
        }),
    }
}

#[cfg(test)]
mod tests {
    use warp::http::header::{ACCEPT, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| {
                let name = name.parse().unwrap();
                (name, HeaderValue::from_static(value))
            })
            .collect()
    }

    #[test]
    fn an_invalid_query_for_events_is_refused_with_the_name_of_the_parameter() {
        let stream =
            HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("text/event-stream"))]);
        for (query, member) in [
            ("after=", "after"),
            ("after=-1", "after"),
            ("after=+1", "after"),
            ("after=1.0", "after"),
            ("after=1-", "after"),
            ("after=1-2", "after"),
            ("after=Latest", "after"),
            ("after=99999999999999999999", "after"),
            ("after=1&after=1", "after"),
            ("after=latest", "after"),
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("order_id=", "order_id"),
            ("order_id=%00", "order_id"),
            ("order_id=%ff", "order_id"),
            ("order_id=%zz", "order_id"),
            ("order_id=a&order_id=a", "order_id"),
            ("status=CREATED", "status"),
            ("lastEventId=9", "lastEventId"),
            ("After=1", "After"),
        ] {
            let refused = EventQuery::parse(query, &HeaderMap::new()).unwrap_err();
            assert_eq!(refused.wrong_member(), Some(member), "{query}");
        }
        let refused = EventQuery::parse("limit=5", &stream).unwrap_err();
        assert_eq!(refused.wrong_member(), Some("limit"));
        let order = OrderId::new("a/b").ok();
        for after in ["7", "7-30-4000000000"] {
            let query = format!("order_id=a%2Fb&after={after}");
            let query = EventQuery::parse(&query, &HeaderMap::new());
            let after = after.parse().unwrap();
            let next = next_page(after, Some(LIMIT_DEFAULT), order.as_ref());
            assert_eq!(
                query.unwrap(),
                EventQuery::parse(&next, &HeaderMap::new()).unwrap()
            );
        }
    }

    #[test]
    fn a_reconnecting_stream_resumes_after_its_last_event() {
        let accept = ("accept", "text/event-stream");
        let after = |seq| After::Event(Cursor::bare(seq));
        for (query, last, begins) in [
            ("", None, Some(after(0))),
            ("after=latest", None, Some(After::Latest)),
            ("after=7", None, Some(after(7))),
            ("", Some("9"), Some(after(9))),
            ("after=7", Some("9"), Some(after(9))),
            (
                "after=7",
                Some("9-30-5"),
                Some(After::Event("9-30-5".parse().unwrap())),
            ),
            ("after=latest", Some("9"), Some(after(9))),
            ("after=7", Some(""), Some(after(7))),
            ("lastEventId=9", None, Some(after(9))),
            ("after=7&lastEventId=9", None, Some(after(9))),
            (
                "after=latest&lastEventId=9-30-5",
                Some(""),
                Some(After::Event("9-30-5".parse().unwrap())),
            ),
            ("lastEventId=8", Some("9"), Some(after(9))),
            ("after=7&lastEventId=", None, Some(after(7))),
            ("lastEventId=x", None, None),
            ("", Some("x"), None),
            ("", Some("-1"), None),
        ] {
            let mut all = vec![accept];
            all.extend(last.map(|last| ("last-event-id", last)));
            let parsed = EventQuery::parse(query, &headers(&all)).ok();
            let expected = begins.map(|after| EventQuery::Stream { after, order: None });
            assert_eq!(parsed, expected, "{query} {last:?}");
        }
    }
}

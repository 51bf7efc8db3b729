//! The table of all kinds of problems, the source of both the responses and the page `/problems`.

use std::fmt::Write as _;

use crate::api::pages;

/// A kind of problem. Its texts mark code with backticks.
#[derive(Debug)]
pub(super) struct Kind {
    /// Last segment of `type`, and the anchor on the page.
    pub name: &'static str,
    pub status: u16,
    pub title: &'static str,
    cause: &'static str,
    remedy: &'static str,
}

/// Defines a constant for each kind, and [`ALL`] in the order of the page.
macro_rules! kinds {
    ($($constant:ident $name:literal $status:literal $title:literal $cause:literal $remedy:literal)*) => {
        $(pub(super) const $constant: Kind = Kind {
            name: $name,
            status: $status,
            title: $title,
            cause: $cause,
            remedy: $remedy,
        };)*

        const ALL: &[Kind] = &[$($constant),*];
    };
}

kinds! {
    INVALID_BODY "invalid-body" 400
    "The body is not a JSON object with an id"
    "The body of the request is not JSON, is not an object, or has `id` twice; or its `id` is \
     missing, is not a string, or is not a valid id. Nothing was done. The member `member` names the \
     invalid part."
    "Send an object with the member `id`: a string of 1 to 128 characters, none of them a control \
     character, without white space at either end, and not `.` or `..`. Other members are ignored. \
     Sending the same body again does not help."

    INVALID_PARAMETER "invalid-parameter" 400
    "A query parameter is not valid"
    "The query has a parameter that does not exist here, is given twice, or has an invalid value. A \
     mistyped parameter is refused and never ignored, because the response would not be the requested \
     one."
    "Correct the parameter that `member` names; `/docs` lists all parameters. A cursor for `after` \
     comes from the `Link` header of the previous page."

    INVALID_HOST "invalid-host" 400
    "The request must name one host"
    "An HTTP/1.1 request has no header `Host`, more than one, or one that is no host (RFC 9112, section \
     3.2). Nothing was done."
    "Every common client sends `Host`. Check the client, or the proxy that changed the request."

    INVALID_PATH "invalid-path" 400
    "The path is not valid"
    "The path has a `%` that is not followed by two hexadecimal digits, or its escapes are not UTF-8."
    "Percent-encode the id as one segment of a path, `/` included: `a/b` is `/order/a%2Fb`. A `+` \
     stands for itself."

    NO_SUCH_PATH "no-such-path" 404
    "This path does not exist"
    "No route of this service matches the path of the request."
    "Compare the path with `/docs`. Case matters, and no path ends with a slash. An id with a \
     `/` must be percent-encoded."

    NO_SUCH_ORDER "no-such-order" 404
    "There is no order with this id"
    "No order with exactly this id was ever created here, it was pruned long after it had settled, or \
     the id is not a valid one."
    "Compare the id: case matters, and nothing is normalised. An order whose creation was answered \
     with 201 or 409 exists until the operator prunes it. If the creation got no \
     response, repeat it: that is safe."

    ORDER_EXISTS "order-exists" 409
    "There is an order with this id already"
    "An order with this id was created before. It was not changed. It is in the member `order`, and \
     its path is in the header `Location`."
    "If you repeated a request that got no response, the order exists once, as intended. If you meant \
     another order, use another id."

    METHOD_NOT_ALLOWED "method-not-allowed" 405
    "This path does not allow this method"
    "The path exists, but does not allow this method."
    "Use one of the methods in the header `Allow`. Orders can be created and read; they are never \
     changed or deleted over HTTP."

    UNSUPPORTED_MEDIA_TYPE "unsupported-media-type" 415
    "The body must be plain JSON"
    "The header `Content-Type` says that the body is not JSON, or `Content-Encoding` that it is \
     compressed. Many clients send `application/x-www-form-urlencoded` by default; `curl -d` does. \
     Nothing was done."
    "Send `Content-Type: application/json`, or omit the header. Do not compress the body."

    UNSUPPORTED_TRANSFER_CODING "unsupported-transfer-coding" 501
    "The body has an unknown transfer coding"
    "The header `Transfer-Encoding` names more than `chunked`, once (RFC 9112, section 6.1). Nothing was \
     done, and the connection is closed."
    "Send the body with `Content-Length`, or with `Transfer-Encoding: chunked`."

    BODY_TOO_LARGE "body-too-large" 413
    "The body is too large"
    "The body has more than 16 KiB. Nothing was done."
    "Send the `id` alone. Other members are ignored and need not be sent."

    BODY_TOO_SLOW "body-too-slow" 408
    "The body did not arrive in time"
    "The head of the request arrived, but not the whole body within 10 seconds. Nothing was done, and \
     the connection is closed."
    "Send the request again. If it happens often, check the network, and the `Content-Length` that \
     the client sends: with one that is too large, the server waits for bytes that are never sent."

    CROSS_SITE "cross-site" 403
    "A page of another site may not change anything here"
    "A browser sends this request for a page of another site: the header `Sec-Fetch-Site` is neither \
     `same-origin` nor `none`, or, without it, the host in `Origin` is not that in `Host`. Nothing was \
     done. Otherwise any page that a user visits could create orders in their name."
    "Call the service from a program, or serve the page at the same host and port as the service. If a \
     proxy changes `Host`, have it pass on the browser's; or name the host of the page \
     with `--allowed-host` (`ALLOWED_HOSTS`)."

    WRONG_HOST "wrong-host" 421
    "This host is not served here"
    "The header `Host` has a name that this service does not serve. It listens on loopback, is \
     `order-service dev`, or was given names with `--allowed-host`. Nothing was done. Otherwise any page \
     that a user visits could read and create orders by DNS rebinding."
    "Use the IP address or `localhost`. To serve it under a name, as behind a proxy, start it with \
     `--allowed-host NAME`, or `ALLOWED_HOSTS` with names separated by commas."

    REMOVED "removed" 410
    "Reading cannot resume here without missing records"
    "Reading from this cursor would miss records; `detail` says why. Orders \
     that settled long ago are pruned on the operator's request, with their events: some that follow \
     the cursor were pruned after it was issued. Or the database was restored from a backup: \
     records after that backup are gone, their numbers are reused, and the cursor is \
     beyond the common records, or of a history that this database does not have. Or the \
     cursor is a number beyond the newest event."
    "If you need all records, start from the beginning: without `after`, and for a stream without \
     `Last-Event-ID`. Otherwise follow the header `Link` of the response: \
     it leads to the remaining records after the cursor, to those after the backup, or to the \
     beginning if no common records are known. Then continue with the `Link` of each \
     page, or with the last `id` of a stream; that fails only after another prune \
     or restore."

    TOO_MANY_WAITING "too-many-waiting" 503
    "Too many requests are waiting"
    "The request had the header `Prefer: wait=N`, the order is not settled, and waiting requests, \
     streams and lists take all slots for long responses. The order is not affected."
    "Retry without the header `Prefer`, or after the seconds in `Retry-After`. To wait for many \
     orders, use one stream: `GET /event` with `Accept: text/event-stream`."

    TOO_MANY_LISTS "too-many-lists" 503
    "Too many lists are being read"
    "Lists, streams and waiting requests together take at most three quarters of the connection slots, \
     so that single orders can always be created and read."
    "Retry after the seconds in `Retry-After`. If it persists, look for clients that read lists slowly, \
     or leave streams open; `http_streams` and `http_requests_waiting` in `GET /metrics` count them."

    TOO_MANY_STREAMS "too-many-streams" 503
    "Too many streams are open"
    "Streams, lists and waiting requests take all slots for long responses; some of these are \
     reserved for lists."
    "Read pages of `GET /event` instead, or retry after the seconds in `Retry-After`. One stream \
     has the events of all orders, so a program needs only one."

    TOO_MANY_CONNECTIONS "too-many-connections" 503
    "Too many connections are open"
    "A request is in flight on every served connection, and this one was accepted only to report that. \
     Nothing was done."
    "Retry after the seconds in `Retry-After`. If it persists, look for clients that read slowly, wait \
     or stream on many connections; `http_connections` in `GET /metrics` counts them."

    SHUTTING_DOWN "shutting-down" 503
    "The service is shutting down"
    "The service is shutting down and takes no more requests. Nothing was done."
    "Retry after the seconds in `Retry-After`, on a new connection: another instance, or the next \
     run of this one, will respond."

    OVERLOADED "overloaded" 503
    "The write queue is full"
    "Orders are created faster than they can be written to disk. This one was not created."
    "Retry after the seconds in `Retry-After`, with a growing delay. If it persists, check the \
     disk: each acknowledged order is flushed to it."

    DATABASE_NOT_WRITABLE "database-not-writable" 503
    "The database cannot be written now"
    "The order was not created: the disk is full, a file of the database was moved, removed or \
     given a second name, another program holds the database, or no PostgreSQL server accepts \
     writes. Orders can be read as far as possible."
    "Callers: retry after the seconds in `Retry-After`. Operators: the service logs the cause \
     once, with what to do; `/readyz` answers 503 until it is fixed. Then the service resumes \
     by itself, unless a file was removed: then restart it."

    DATABASE_NOT_READABLE "database-not-readable" 503
    "The database cannot be read now"
    "A read from the database failed. Nothing was done."
    "Callers: retry after the seconds in `Retry-After`. Operators: the log has the cause. \
     `order-service check` says whether the file is damaged."

    OUTCOME_UNKNOWN "outcome-unknown" 503
    "It is not known whether the order was created"
    "The order was being written, and the database did not answer in time, or the disk failed while \
     it was flushed. It may have been created, or may still be, even if it is not found now. \
     No other error leaves the outcome open."
    "Create the order again, with the same id: 201 or 409 then says that it exists. Never use another \
     id instead, or there may be two orders."
}

/// Renders the page `/problems`.
pub(in crate::api) fn page() -> String {
    let mut links = String::new();
    let mut sections = String::new();
    for kind in ALL {
        let Kind {
            name,
            status,
            title,
            ..
        } = kind;
        // Writing to a String cannot fail.
        let _ = writeln!(links, "<li><a href=\"#{name}\">{name}</a></li>");
        let _ = write!(
            sections,
            "
<section id=\"{name}\">
<h2>{title}</h2>
<dl>
<dt>Status, type</dt>
<dd>{status}, <code>/problems#{name}</code></dd>
<dt>What happened</dt>
<dd>{}</dd>
<dt>What to do</dt>
<dd>{}</dd>
</dl>
</section>
",
            pages::prose(kind.cause),
            pages::prose(kind.remedy)
        );
    }
    let main = format!(
        "<h1>Problems</h1>
<p>Every error of a well-formed request is a problem (RFC 9457): a JSON object whose <code>type</code> links
to a section of this page. The member <code>detail</code> describes the single request; programs should use
<code>type</code> and <code>status</code> alone. <a href=\"/docs\">All requests and responses</a>,
<a href=\"/\">dashboard</a></p>
<nav aria-label=\"Problems\">
<ul>
{links}</ul>
</nav>
{sections}"
    );
    pages::document("Problems", &main)
}

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
    happened: &'static str,
    to_do: &'static str,
}

/// Defines a constant for each kind, and [`ALL`] in the order of the page.
macro_rules! kinds {
    ($($constant:ident $name:literal $status:literal $title:literal $happened:literal $to_do:literal)*) => {
        $(pub(super) const $constant: Kind = Kind {
            name: $name,
            status: $status,
            title: $title,
            happened: $happened,
            to_do: $to_do,
        };)*

        const ALL: &[Kind] = &[$($constant),*];
    };
}

kinds! {
    INVALID_BODY "invalid-body" 400
    "The body is not a JSON object with an id"
    "The body of the request is not JSON, is not an object, or has a member twice; or its `id` is \
     missing, is not a string, or is not a valid id. Nothing was done. The member `member` names the \
     part that is wrong."
    "Send an object with the member `id`: a string of 1 to 128 characters, none of them a control \
     character, without white space at either end, and not `.` or `..`. Other members are ignored. \
     Sending the same body again does not help."

    INVALID_PARAMETER "invalid-parameter" 400
    "A query parameter is not valid"
    "The query has a parameter that does not exist here, is given twice, or has an invalid value. A \
     mistyped parameter is refused and never ignored, because the answer would not be the one that \
     was asked for."
    "Correct the parameter that `member` names; `/docs` lists all parameters. A cursor for `after` \
     comes from the `Link` header of the previous page."

    INVALID_HOST "invalid-host" 400
    "The request does not say for which host it is"
    "An HTTP/1.1 request has no header `Host`, or more than one (RFC 9112, section 3.2). Nothing was \
     done, and the connection is closed."
    "Every usual client sends `Host`. Look at what wrote the request, or at the proxy that changed it."

    INVALID_PATH "invalid-path" 400
    "The path is not valid"
    "The path has a `%` that is not followed by two hexadecimal digits, or its escapes are not UTF-8."
    "Percent-encode the id as one segment of a path, `/` included: `a/b` is `/order/a%2Fb`. A `+` \
     stands for itself."

    NO_SUCH_PATH "no-such-path" 404
    "There is nothing at this path"
    "This service has nothing at the path of the request."
    "Compare the path with `/docs`. Case matters, and no path ends with a slash. An id that contains \
     `/` has to be percent-encoded."

    NO_SUCH_ORDER "no-such-order" 404
    "There is no order with this id"
    "No order with exactly this id was ever created here, it was pruned long after it had settled, or \
     the id is not a valid one."
    "Compare the id: case matters, and nothing is normalised. An order whose creation was answered \
     with 201 or 409 exists for as long as the operator keeps settled orders. If the creation got no \
     answer, create the order again: that is safe."

    ORDER_EXISTS "order-exists" 409
    "There is an order with this id already"
    "An order with this id was created before. It was not changed. It is in the member `order`, and \
     its path is in the header `Location`."
    "If you repeated a request that got no answer, all is well: the order exists once. If you meant \
     another order, give it another id."

    METHOD_NOT_ALLOWED "method-not-allowed" 405
    "This path does not have this method"
    "The path exists, but not with this method."
    "Use one of the methods in the header `Allow`. Orders can be created and read; they are never \
     changed or deleted over HTTP."

    UNSUPPORTED_MEDIA_TYPE "unsupported-media-type" 415
    "The body has to be JSON"
    "The header `Content-Type` says that the body is not JSON. Many clients send \
     `application/x-www-form-urlencoded` by default; `curl -d` does. Nothing was done."
    "Send `Content-Type: application/json`, or no such header at all."

    BODY_TOO_LARGE "body-too-large" 413
    "The body is too large"
    "The body has more than 16 KiB. Nothing was done."
    "Send the `id` alone. Other members are ignored and need not be sent."

    BODY_TOO_SLOW "body-too-slow" 408
    "The body did not come in time"
    "The head of the request arrived, but not the whole body within 10 seconds. Nothing was done, and \
     the connection is closed."
    "Send the request again. If it happens often, check the network, and the `Content-Length` that \
     the client sends: the server waits in vain for the rest of one that is too large."

    CROSS_SITE "cross-site" 403
    "A page of another site may not change anything here"
    "A browser sends this request for a page of another site: the header `Sec-Fetch-Site` is neither \
     `same-origin` nor `none`, or, without it, the host in `Origin` is not that in `Host`. Nothing was \
     done. Otherwise any page that someone visits could create orders in their name."
    "Call the service from a program, or serve the page at the same host and port as the service. If a \
     proxy in between changes `Host`, have it pass on that of the browser; or name the host of the page \
     with `--allowed-host` (`ALLOWED_HOSTS`)."

    WRONG_HOST "wrong-host" 421
    "This host is not served here"
    "The header `Host` has a name that this service does not know. It listens on loopback, or was \
     given names with `--allowed-host`. Nothing was done. Otherwise any page that someone visits could \
     have its own name lead to this service, and read and create orders."
    "Use the IP address or `localhost`. To serve it under a name, as behind a proxy, start it with \
     `--allowed-host NAME`, or `ALLOWED_HOSTS` with names separated by commas."

    REMOVED "removed" 410
    "Reading cannot go on from this position without missing something"
    "You went on from a position after which you might miss something, and `detail` says why. Orders \
     that settled long ago are pruned when the operator says so, each with its events: some of what \
     follows was pruned after the position was given out. Or the database was restored from a backup: \
     what you read after that backup is gone, its numbers are given out again, and your position is \
     beyond what both have in common, or of a history that this database does not have. Or the \
     position is a number beyond the newest event."
    "If you need to know all that there is, begin anew: without `after`, and for a stream without \
     `Last-Event-ID`. If what is gone does not matter to you, follow the header `Link` of the answer: \
     it leads to what is left after the same position, to what came after the backup, or to the \
     beginning where nothing is known to be in common. In either case go on by the `Link` of each \
     page, or by the `id` that a stream has sent last, and you are not refused again unless more is \
     pruned or another backup restored."

    TOO_MANY_WAITING "too-many-waiting" 503
    "Too many requests wait already"
    "The request had the header `Prefer: wait=N`, the order is not settled, and requests that \
     wait, streams and lists have taken all places that there are for them. Nothing is wrong with the order."
    "Ask without the header `Prefer`, or again after the seconds in `Retry-After`. To wait for many \
     orders, use one stream: `GET /event` with `Accept: text/event-stream`."

    TOO_MANY_LISTS "too-many-lists" 503
    "Too many lists are being read already"
    "Lists, streams and requests that wait together take three quarters of the places for connections at \
     most, so that single orders can always be created and read."
    "Try again after the seconds in `Retry-After`. If it lasts, look for clients that read lists slowly, \
     or leave streams open; `http_streams` and `http_requests_waiting` in `GET /metrics` have them."

    TOO_MANY_STREAMS "too-many-streams" 503
    "Too many streams are open already"
    "Streams, lists and requests that wait have taken all places that there are for them; some of these are \
     for lists alone."
    "Read pages of `GET /event` instead, or try again after the seconds in `Retry-After`. One stream \
     has the events of all orders: a program needs no more than one."

    TOO_MANY_CONNECTIONS "too-many-connections" 503
    "Too many connections are open"
    "A request is in flight on every connection that is served, and this one was accepted only to say so. \
     Nothing was done."
    "Try again after the seconds in `Retry-After`. If it lasts, look for clients that read slowly, wait \
     or stream on many connections; `http_connections` in `GET /metrics` has them."

    SHUTTING_DOWN "shutting-down" 503
    "The service is shutting down"
    "The service was asked to shut down and takes no more requests. Nothing was done."
    "Try again after the seconds in `Retry-After`, on a new connection: another instance, or the next \
     start of this one, will answer."

    OVERLOADED "overloaded" 503
    "The write queue is full"
    "Orders are created faster than they can be written to disk. This one was not created."
    "Try again after the seconds in `Retry-After`, with a growing delay. If it lasts, look at the \
     disk: each acknowledged order is flushed to it."

    DATABASE_NOT_WRITABLE "database-not-writable" 503
    "The database cannot be written now"
    "The order was not created: the disk is full, a file of the database was moved, removed or \
     given a second name, or another program holds the database. Orders can be read as far as \
     possible."
    "Callers: try again after the seconds in `Retry-After`. Operators: the log of the service says \
     why, once, and what to do; `/readyz` answers 503 until it is mended. Then the service goes on \
     by itself, unless a file was removed: restart it then."

    DATABASE_NOT_READABLE "database-not-readable" 503
    "The database cannot be read now"
    "The database did not return what was asked for. Nothing was done."
    "Callers: try again after the seconds in `Retry-After`. Operators: the log says why. \
     `order-service check` says whether the file is damaged."

    OUTCOME_UNKNOWN "outcome-unknown" 503
    "It is not known whether the order was created"
    "The order was being written, and the database did not answer in time, or the disk failed while \
     it was flushed. It may have been created, or may still be, even if it is not found at present. \
     This is the only answer after which something may have been done."
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
            pages::prose(kind.happened),
            pages::prose(kind.to_do)
        );
    }
    let main = format!(
        "<h1>Problems</h1>
<p>Every error of this service is a problem (RFC 9457): a JSON object whose <code>type</code> leads to a
section of this page. The member <code>detail</code> is about the very request; programs should look at
<code>type</code> and <code>status</code> alone. <a href=\"/docs\">All requests and answers</a>,
<a href=\"/\">dashboard</a></p>
<nav aria-label=\"Problems\">
<ul>
{links}</ul>
</nav>
{sections}"
    );
    pages::document("Problems", &main)
}

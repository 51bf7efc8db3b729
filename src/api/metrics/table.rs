//! The table of all metrics, the source of both `/metrics` and the page `/docs/metrics`.

use std::fmt::Write as _;

use crate::api::pages;

/// Prefix of all names.
pub(super) const PREFIX: &str = "order_service_";

/// A metric. Its texts mark code with backticks.
#[derive(Debug)]
pub(super) struct Metric {
    /// The name without [`PREFIX`].
    pub name: &'static str,
    /// Type, as Prometheus names it.
    pub kind: &'static str,
    pub labels: &'static [&'static str],
    pub help: &'static str,
    /// Condition of an alert, and advice. `None` for metrics that only give context.
    alert: Option<(&'static str, &'static str)>,
}

/// Defines a constant for each metric, and [`ALL`] in the order of the page.
macro_rules! metrics {
    ($(
        $constant:ident $kind:literal $name:literal [$($label:literal),*]
        $help:literal
        $(=> $condition:literal $advice:literal)?
    )*) => {
        $(pub(super) const $constant: Metric = Metric {
            name: $name,
            kind: $kind,
            labels: &[$($label),*],
            help: $help,
            alert: alert!($($condition, $advice)?),
        };)*

        const ALL: &[Metric] = &[$($constant),*];
    };
}

macro_rules! alert {
    () => {
        None
    };
    ($condition:literal, $advice:literal) => {
        Some(($condition, $advice))
    };
}

metrics! {
    BUILD_INFO "gauge" "build_info" ["version"]
    "Version of the program."

    ORDERS "gauge" "orders" ["status"]
    "Orders by status."
    => "`CREATED` keeps rising, or `PROCESSING` stays at `processes_in_flight_max`"
    "If `CREATED` rises, orders are created faster than started: raise `--start-rate` if the upstream accepts \
     more. If `PROCESSING` stays at its limit, frequent restarts of the upstream limit the processes in flight."

    ORDERS_NEEDING_ATTENTION "gauge" "orders_needing_attention" ["reason", "by"]
    "Open orders that need attention, by reason and by the party that resolves it: an `operator`, or the \
     order `itself`."
    => "`by=\"operator\"` above 0"
    "An operator has to decide or fix something: `GET /order?attention=operator`, then \
     `GET /order/{id}/explain`, then its advice. Its commands, `order-service restart` and `fail`, \
     are for a shell where the service runs."

    OLDEST_OPEN_ORDER "gauge" "oldest_open_order_timestamp_seconds" []
    "Creation time of the oldest order that is not settled; absent if there is none."
    => "much older than the times in `order_time_to_settle_seconds`"
    "`/stats` names the order; `GET /order/{id}/explain` says why it waits."

    ORDERS_CREATED "counter" "orders_created_total" []
    "Orders created."

    ORDERS_PRUNED "counter" "orders_pruned_total" ["status"]
    "Settled orders removed by prune, by status."

    ORDER_TRANSITIONS "counter" "order_transitions_total" ["reason"]
    "Changes of orders after their creation, by the journal's reason."
    => "`failed` rises against `succeeded`"
    "The processes fail: see the order process service."

    ORDER_TIME_TO_SETTLE "histogram" "order_time_to_settle_seconds" []
    "Time from the creation of an order until it settled."

    RECONCILER_OVERDUE "gauge" "reconciler_overdue" []
    "1 if the reconciler was stopped, its next pass is a minute late, or none ever ran and an order waits so long."
    => "1"
    "No reconciler runs, or it is stuck: see whether `order-reconciler` runs, and its log."

    RECONCILER_LEADER_SINCE "gauge" "reconciler_leader_since_timestamp_seconds" []
    "Time at which the current leader took over."

    RECONCILER_LEADERSHIPS "counter" "reconciler_leaderships_total" []
    "Number of times that a reconciler became leader."
    => "keeps rising"
    "The reconciler crashes or is restarted: see its log."

    RECONCILER_LAST_PASS "gauge" "reconciler_last_pass_timestamp_seconds" []
    "Time at which the last pass ended."
    => "older than the interval of `--schedule` and a minute"
    "As for `reconciler_overdue`."

    RECONCILER_LAST_SEEN "gauge" "reconciler_last_seen_timestamp_seconds" []
    "Time of the last complete observation of the open orders that were due."
    => "older than the longest process, while orders are PROCESSING"
    "Polls fail, or take over 10 s: see `upstream_request_duration_seconds` by result, and the orders' `attention`."

    RECONCILER_PASS_DURATION "histogram" "reconciler_pass_duration_seconds" ["result"]
    "Duration of passes, by result."
    => "`result=\"failed\"` rises"
    "The database cannot be used: see the log of the reconciler, the disk, `database_writable`."

    STARTS "counter" "starts_total" []
    "Starts of processes that were sent."

    REPEATED_STARTS "counter" "repeated_starts_total" []
    "Starts sent for orders with an earlier start that may have taken effect."
    => "rises as fast as `starts_total`"
    "Work is repeated: see `upstream_request_duration_seconds`, `upstream_lives_ended_total`, and \
     `--lost-process`."

    UPSTREAM_UP "gauge" "upstream_up" []
    "1 if the upstream answers, 0 if it does not; absent before the first request."
    => "0"
    "Orders wait, and proceed by themselves. `/stats` has the time and the error: check the \
     upstream, the network, the proxy, the token."

    UPSTREAM_CHANGED "gauge" "upstream_changed_timestamp_seconds" []
    "Time of the last change of upstream_up."

    UPSTREAM_REQUEST_DURATION "histogram" "upstream_request_duration_seconds" ["kind", "result"]
    "Duration of requests to the upstream, by kind and result."
    => "many with the `result` `overload`, `ambiguous` or `unusable`"
    "The upstream cannot keep up: lower `--start-rate` and `--max-in-flight`, or raise \
     `--request-timeout`. Orders with `refused` starts have `attention`."

    UPSTREAM_LIVES_ENDED "counter" "upstream_lives_ended_total" []
    "Restarts of the upstream that were observed."
    => "rises"
    "The upstream restarts and loses its processes. Compare `upstream_life_processes` with \
     `upstream_life_expected_processes`, and see why it restarts."

    UPSTREAM_LIFE_PROCESSES "gauge" "upstream_life_processes" []
    "Processes since the last restart of the upstream."

    UPSTREAM_LIFE_EXPECTED_PROCESSES "gauge" "upstream_life_expected_processes" []
    "Expected number of processes between two restarts of the upstream; assumed while the expected time \
     is absent."

    UPSTREAM_LIFE_EXPECTED_SECONDS "gauge" "upstream_life_expected_seconds" []
    "Expected time between two restarts of the upstream; absent until an incarnation was \
     observed from its start to its end."

    UPSTREAM_PROCESS_DURATION_MEAN "gauge" "upstream_process_duration_mean_seconds" []
    "Mean duration of a process, as learned."

    PACE_STARTS_PER_SECOND "gauge" "pace_starts_per_second" []
    "Current start rate; absent if it is not limited."
    => "far below `pace_ceiling_starts_per_second` for long"
    "Overload or restarts reduce it: `/stats` has the reason. It recovers by itself."

    PACE_CEILING "gauge" "pace_ceiling_starts_per_second" []
    "Ceiling of the start rate; absent if there is none."

    PROCESSES_IN_FLIGHT_MAX "gauge" "processes_in_flight_max" []
    "Limit of processes in flight; absent while there is none."

    DATABASE_WRITABLE "gauge" "database_writable" []
    "1 if orders can be written, else 0."
    => "0"
    "Creations are answered with 503: see the log, the disk, its permissions."

    DATABASE_BYTES "gauge" "database_bytes" []
    "Size of the database file, or of all tables and indexes on a PostgreSQL server."
    => "near the size of the disk"
    "Make room, or remove old orders with `order-service prune`."

    DATABASE_WAL_BYTES "gauge" "database_wal_bytes" []
    "Size of the write-ahead log beside it; absent on a PostgreSQL server."
    => "above 100 MB for long"
    "End the program that reads the file for very long."

    DATABASE_RECONNECTS "counter" "database_reconnects_total" []
    "Connections to a PostgreSQL server that were lost."
    => "rises again and again"
    "The server ends, or the network between fails: see the logs of both."

    WRITE_BATCH_DURATION "histogram" "write_batch_duration_seconds" []
    "Time from waiting for the write lock until a batch of writes is on disk."

    WRITE_TURN_WAIT "histogram" "write_turn_wait_seconds" []
    "Time that a batch of writes has waited for the numbering lock of a PostgreSQL database, which one \
     process holds at a time."

    WRITE_BATCH_WRITES "histogram" "write_batch_writes" []
    "Writes that share a batch."

    WRITE_QUEUE_LENGTH "gauge" "write_queue_length" []
    "Writes that are queued."
    => "near `write_queue_capacity`"
    "Orders are created faster than the disk takes them, or nothing can be written: the log says so, and \
     `writes_refused_total` counts the refused. See `write_batch_duration_seconds` and `write_batch_writes`."

    WRITE_QUEUE_CAPACITY "gauge" "write_queue_capacity" []
    "Maximum number of queued writes; more are refused."

    WRITES_REFUSED "counter" "writes_refused_total" ["reason"]
    "Writes that were not carried out or whose outcome is unknown, by reason."

    HTTP_REQUEST_DURATION "histogram" "http_request_duration_seconds" ["route", "method", "status"]
    "Time until the response to a request began, by route, method and status, including \
     waits that `Prefer` asked for."
    => "`status` 5xx, or slow"
    "For 503 see the database. `route` is the template of the path, or `other` for unknown paths."

    HTTP_REQUESTS_WAITING "gauge" "http_requests_waiting" []
    "Requests that wait until an order is settled."

    HTTP_STREAMS "gauge" "http_streams" []
    "Open streams of events."

    HTTP_CONNECTIONS "gauge" "http_connections" ["place"]
    "Open connections: `served`, or in the overflow (`crowd`), which get one response and are closed."
    => "any in the `crowd`"
    "A request is in flight on each served connection, since idle ones are evicted: clients read slowly, wait or \
     stream. `http_connections_max` follows from the hard limit of open files (`ulimit -Hn`)."

    HTTP_CONNECTIONS_MAX "gauge" "http_connections_max" ["place"]
    "Maximum number of open connections."

    HTTP_REQUESTS_IN_FLIGHT "gauge" "http_requests_in_flight" []
    "Requests whose responses are not written yet, this one included."
}

/// Renders the page `/docs/metrics`.
pub(in crate::api) fn page() -> String {
    let mut sections = String::new();
    for metric in ALL {
        let labels = match metric.labels {
            [] => String::new(),
            labels => format!(", by <code>{}</code>", labels.join("</code>, <code>")),
        };
        // Writing to a String cannot fail.
        let _ = write!(
            sections,
            "
<section id=\"{name}\">
<h2><code>{name}</code></h2>
<p>{help} <span class=\"faint\">{kind}{labels}</span></p>
",
            name = metric.name,
            help = pages::prose(metric.help),
            kind = metric.kind,
        );
        if let Some((condition, advice)) = metric.alert {
            let _ = write!(
                sections,
                "<dl>
<dt>Bad when</dt>
<dd>{}</dd>
<dt>What to do</dt>
<dd>{}</dd>
</dl>
",
                pages::prose(condition),
                pages::prose(advice)
            );
        }
        sections.push_str("</section>\n");
    }
    let main = format!(
        "<h1>Metrics</h1>
<p><a href=\"/metrics\">/metrics</a> serves these metrics for Prometheus; <code>{PREFIX}</code> precedes each
name. Those of orders, the reconciler and the upstream come from the database, so they survive restarts and
include a reconciler that cannot be reached. Counts of the program itself (<code>http_…</code>,
<code>write_…</code>) restart with it.</p>
<p><a href=\"/docs\">All requests and responses</a>, <a href=\"/\">dashboard</a></p>
{sections}"
    );
    pages::document("Metrics", &main)
}

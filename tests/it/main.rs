//! The built programs and the library, from outside. The name of a test states what it checks.
//!
//! - `environment`: the environment of a test: a folder, programs, requests.
//! - `wire`: raw connections.
//! - `lifecycle`: orders from creation to settlement, compared with the simulator's record.
//! - `pass`: the reconciler on one thread, with an upstream and a clock in memory.
//! - `upstreams`: the client and the reconciler with misbehaving order process services.
//! - `create`, `http`, `lists`, `events`: the HTTP API, request by request.
//! - `waiting`: requests that wait until an order is settled.
//! - `attention`: orders with attention, in the API and in `explain`.
//! - `clients`: misbehaving clients, also during shutdown.
//! - `sites`: requests of other sites' pages, and served host names.
//! - `pages`, `openapi`: the HTML pages and the description of the API, compared with the code.
//! - `programs`: flags, variables, exit codes, health, signals, unusable databases.
//! - `deploy`: the systemd units.
//! - `account`: the comparison of the database with the upstream.
//! - `operator`: the commands `backup`, `check`, `restart` and `fail`, and restoration.
//! - `prune`, `pruned`: retention, and readers of pruned records.
//! - `restored`: readers of a restored database, and copies.
//! - `copy`: databases that move to another engine and back; backups of servers.
//! - `files`: database files that are removed, moved, linked, failing, or owned by another user.
//! - `faults`: a full disk, held locks, overload, SIGKILL, and too many connections.
//! - `metrics`: `GET /metrics`.
//! - `stats`: `GET /stats`.
//! - `store`: the database: its schema and its journal, on each engine.
//! - `cluster`, `proxy`: PostgreSQL servers that the tests start, and a proxy that injects faults, in builds
//!   with the feature `postgres`.
//! - `tidy`: claims about the code, compared with it.
//! - `docs`: README and the pages under `docs`, compared with the programs and each other.
//!
//! # Slow tests
//!
//! Tests that take more than three seconds on a quiet machine. `cargo test` leaves them out, `scripts/test all`
//! runs them, and names others that have become slow.
//!
//! | test | reason |
//! |---|---|
//! | `faults::connections::thousands_of_silent_connections_delay_neither_requests_nor_the_shutdown` | opens 3,000 connections, twice |
//! | `faults::overload_is_refused_at_once_in_bounded_memory` | 1,800 clients are refused 3,000 times |
//! | `faults::an_api_that_is_killed_under_load_keeps_acknowledged_orders_and_disturbs_no_other` | twelve programs run under load before they are killed |
//! | `pruned::a_stream_whose_unsent_events_are_pruned_ends` | 20,000 orders are needed to fill a connection |
//! | `pruned::a_list_whose_unread_orders_are_pruned_breaks_off_and_is_not_well_formed` | the same |
//! | `prune::a_kill_or_a_signal_during_a_prune_leaves_each_batch_whole_or_undone` | removes 20,000 orders, so that it can be killed in between |
//! | `prune::orders_are_created_and_settled_between_the_batches_of_a_prune` | removes 12,000 orders, so that others come in between |
//! | `copy::interrupted::killed_copies_of_twenty_thousand_orders_end_equal` | copies 20,000 orders, again after each kill: minutes, so that it is run by hand, with `--features postgres` |
//! | `clients::a_shutdown_completes_whatever_clients_do` | the program waits 15 s for clients that do nothing |
//! | `clients::a_slow_client_gets_408_and_delays_no_other` | the program waits 10 s for a body |
//! | `events::an_idle_stream_sends_comments` | a comment comes every 15 s |
//! | `lists::fifteen_hundred_slow_lists_delay_no_other_client` | opens 1,536 connections |
//! | `lists::a_slow_reader_delays_neither_others_nor_the_database` | 16,000 orders are needed to fill a connection |
//! | `waiting::a_thousand_waiting_requests_and_two_hundred_streams_delay_no_other_client` | opens 1,200 connections |
//! | `lifecycle::a_thousand_orders_settle_with_the_outcomes_of_the_upstream` | 1,000 orders |
//! | `programs::databases::a_database_that_is_locked_for_five_seconds_ends_with_3` | each program waits 5 s for the lock |
//! | `programs::health::the_health_of_the_service_is_0_when_it_serves_and_1_when_nothing_useful_answers` | the command waits 5 s for an answer |
//! | `faults::a_process_that_is_stopped_while_it_writes_stops_only_writes_until_it_continues_or_dies` | a write waits 5 s for the lock |
//! | `faults::a_write_lock_that_is_never_released_stops_only_writes_and_refused_ones_have_no_effect` | the same |
//! | `store::postgres::a_migration_has_no_time_limit_and_other_programs_wait_for_it` | the migration takes 10 s |
//! | `store::failover::changes_that_reach_the_server_after_their_repetition_have_no_effect` | a statement waits 4 s for its answer |
//! | `upstreams::an_upstream_that_is_down_gets_one_request_per_pass_however_many_orders_wait` | one upstream lets every request run into its timeout |
//! | `waiting::at_the_end_of_the_wait_the_current_order_is_returned` | a response is delayed by the requested seconds |
//!
//! These stay in `cargo test`, because they show what the service is for:
//!
//! | test | reason |
//! |---|---|
//! | `lifecycle::a_reconciler_killed_at_any_moment_loses_and_repeats_nothing` | 1,000 orders, and five kills among them |
//! | `copy::interrupted::a_killed_copy_resumes_and_ends_equal` | six copies are killed, each run again and compared |
//! | `copy::interrupted::a_service_that_moves_under_load_settles_every_order_and_starts_none_twice` | 60 processes of up to 2 s, before and after the move |
//! | `lifecycle::a_shutdown_is_clean_in_every_program_with_open_orders` | 200 processes of up to 2 s, some of them started at 100/s |
//! | `lifecycle::api_and_reconciler_at_full_speed_on_one_file_lose_and_repeat_nothing` | 2,000 orders |
//! | `lifecycle::orders_wait_while_the_upstream_is_down_and_settle_when_it_is_back` | an outage of some passes, a second apart |
//! | `programs::signals::a_stop_signal_ends_every_program_with_0` | starts and ends every program, with every signal |
//! | `restored::a_reader_whose_database_is_restored_gets_410_and_misses_nothing` | runs the programs once for each way to restore |
//! | `store::plans::every_statement_has_one_plan_that_indexes_serve` | 100,000 orders |
//! | `store::engines::both_engines_give_equal_answers_in_random_runs` | five random runs, each compared step by step |
//! | `upstreams::observations::starts_and_look_ups_continue_while_a_list_is_read` | a list is waited for 1 s |
//! | `upstreams::starts::an_order_whose_starts_reach_another_service_is_never_failed_or_held` | 40 passes for each pair of answers |

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod account;
mod attention;
mod clients;
#[cfg(feature = "postgres")]
#[allow(dead_code, reason = "the torture uses the rest")]
mod cluster;
mod copy;
mod create;
mod deploy;
mod docs;
mod environment;
mod events;
mod faults;
mod files;
mod http;
mod lifecycle;
mod lists;
mod metrics;
mod openapi;
mod operator;
mod pages;
mod pass;
mod programs;
#[cfg(feature = "postgres")]
mod proxy;
mod prune;
mod pruned;
mod restored;
mod sites;
mod stats;
mod store;
mod tidy;
mod upstreams;
mod waiting;
mod wire;

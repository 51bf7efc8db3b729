//! The built programs and the library, from outside. Each test is named by the promise it keeps.
//!
//! - `world`: builds what a test needs: a folder, programs, requests.
//! - `wire`: a connection without a client library.
//! - `life`: orders from creation to the end, through real programs, against the simulator's record.
//! - `pass`: the reconciler on one thread, with everything around it in memory.
//! - `upstreams`: the client and the reconciler against an order process service that misbehaves.
//! - `create`, `http`, `lists`, `events`: the HTTP API, request by request.
//! - `waiting`: answers that are held until an order is settled.
//! - `attention`: orders that need looking at, as the API and `explain` tell of them.
//! - `clients`: clients that misbehave, and the shutdown beside them.
//! - `sites`: pages of other sites, and the names under which the service is served.
//! - `pages`, `openapi`: the pages for people, and the description of the API, held to the code.
//! - `programs`: flags, variables, exit codes, health, signals, databases that cannot be used.
//! - `deploy`: the systemd units.
//! - `account`: the database held against the upstream.
//! - `operator`: backups and their restoration, the check of a database.
//! - `prune`, `removed`: the removal of what settled long ago, and readers whom it overtakes.
//! - `restored`: readers of a database that is restored, and copies.
//! - `files`: the files of a database, removed, moved, linked, failing, owned by others.
//! - `trouble`: a full disk, held locks, overload, SIGKILL, and crowds of connections.
//! - `metrics`: what is counted.
//! - `stats`: what is told of all orders together.
//! - `store`: the database: its schema and its journal, on each engine.
//! - `cluster`: a PostgreSQL server of the tests' own, in builds with the feature `postgres`.
//! - `tidy`: what the documentation of the code claims, read off the code.
//! - `docs`: README and the pages under `docs`, held to the programs and to each other.
//!
//! # Slow tests
//!
//! Tests that take more than three seconds on a quiet machine. `cargo test` leaves them out, `scripts/test all`
//! runs them, and names others that have become slow.
//!
//! | test | reason |
//! |---|---|
//! | `trouble::a_crowd_of_silent_connections_keeps_no_one_from_anything_or_from_the_end` | opens 3,000 connections, twice |
//! | `trouble::more_load_than_can_be_taken_is_refused_at_once_in_bounded_memory` | 1,800 clients are refused 3,000 times |
//! | `trouble::an_api_that_is_killed_under_load_keeps_what_it_acknowledged_and_disturbs_no_other` | twelve programs run under load before they are killed |
//! | `removed::a_stream_that_falls_behind_a_removal_ends_instead_of_skipping` | 20,000 orders are needed to fill a connection |
//! | `removed::a_list_of_all_orders_that_is_overtaken_breaks_off_and_is_never_short_and_well_formed` | the same |
//! | `prune::a_kill_or_a_signal_in_the_middle_of_a_removal_leaves_each_batch_whole_or_not_at_all` | removes 20,000 orders, so that it can be killed in between |
//! | `prune::orders_are_created_and_settled_between_the_batches_of_a_removal` | removes 12,000 orders, so that others come in between |
//! | `clients::a_stop_ends_whatever_clients_do` | the program waits 15 s for clients that do nothing |
//! | `clients::a_client_that_dawdles_is_told_so_and_holds_up_no_one` | the program waits 10 s for a body |
//! | `events::a_stream_in_which_nothing_happens_sends_comments` | a comment comes every 15 s |
//! | `lists::fifteen_hundred_slow_lists_hold_up_no_one_else` | opens 1,536 connections |
//! | `lists::a_slow_reader_holds_up_neither_others_nor_the_database` | 16,000 orders are needed to fill a connection |
//! | `waiting::a_thousand_who_wait_and_two_hundred_streams_are_no_burden_to_others` | opens 1,200 connections |
//! | `life::a_thousand_orders_settle_as_the_upstream_says` | 1,000 orders |
//! | `programs::databases::a_database_that_is_locked_for_five_seconds_ends_with_3` | each program waits 5 s for the lock |
//! | `programs::health::the_health_of_the_service_is_0_when_it_serves_and_1_when_nothing_useful_answers` | the command waits 5 s for an answer |
//! | `trouble::a_process_that_is_stopped_while_it_writes_stops_writes_alone_until_it_goes_on_or_dies` | a write waits 5 s for its turn |
//! | `trouble::a_write_lock_that_is_not_let_go_stops_writes_alone_and_what_was_refused_never_happens` | the same |
//! | `upstreams::an_upstream_that_is_down_is_asked_once_a_pass_however_many_orders_wait` | one upstream lets every request run into its timeout |
//! | `waiting::when_the_time_is_over_the_order_is_told_as_it_is` | an answer is held for as many seconds as it was asked for |
//!
//! These stay in `cargo test`, because the service is for what they show:
//!
//! | test | reason |
//! |---|---|
//! | `life::a_reconciler_killed_at_any_moment_is_continued_by_the_next` | 1,000 orders, and five kills among them |
//! | `life::api_and_reconciler_at_full_speed_on_one_file_lose_and_repeat_nothing` | 2,000 orders |
//! | `life::orders_wait_while_the_upstream_is_down_and_settle_when_it_is_back` | an outage of some passes, a second apart |
//! | `programs::a_stop_signal_ends_every_program_with_0` | starts and ends every program, with every signal |
//! | `restored::a_reader_whose_database_is_restored_is_told_what_it_has_lost_and_skips_nothing` | runs the programs once for each way to restore |
//! | `store::twin::both_engines_answer_alike_whatever_happens_to_orders` | five histories, each compared step by step |
//! | `upstreams::looks::starts_and_single_looks_go_on_while_a_list_is_read` | a list has a head start of 1 s |
//! | `upstreams::starts::an_order_whose_start_met_another_service_is_never_failed` | 40 passes for each pair of answers |

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod account;
mod attention;
mod clients;
#[cfg(feature = "postgres")]
mod cluster;
mod create;
mod deploy;
mod docs;
mod events;
mod files;
mod http;
mod life;
mod lists;
mod metrics;
mod openapi;
mod operator;
mod pages;
mod pass;
mod programs;
mod prune;
mod removed;
mod restored;
mod sites;
mod stats;
mod store;
mod tidy;
mod trouble;
mod upstreams;
mod waiting;
mod wire;
mod world;

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
//! - `store`: the database: its schema and its journal.
//! - `tidy`: what the documentation claims, read off the code.
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
//! | `life::two_thousand_orders_settle_as_the_upstream_says` | 2,000 orders |

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod account;
mod attention;
mod clients;
mod create;
mod deploy;
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

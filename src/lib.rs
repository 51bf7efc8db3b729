//! An order service: a small HTTP API writes orders into SQLite, and a reconciler carries each of
//! them through an order process service by polling alone.
//!
//! ```text
//!   callers                                            behind NAT, outbound only
//!      │ HTTP                                                     │
//!   ┌──▼──┐  create, read   ┌─────────┐  load, record   ┌─────────▼───┐  start, look up, list
//!   │ api │ ──────────────▶ │  store  │ ◀────────────── │ reconciler  │ ─────────▶ upstream ──▶ the order
//!   └─────┘                 │ (SQLite)│                 └─────┬───────┘           (or simulator)  process
//!                           └─────────┘                 decide, pace: pure                         service
//! ```
//!
//! The modules, from the ground up: each imports from those before it alone.
//!
//! - [`order`]: ids, statuses, orders, observations, moments; parsed at the edge. Pure.
//! - [`upstream`]: the order process service: what it can be asked, and how that fails. Pure, but for
//!   its client, which alone knows the wire format.
//! - [`pace`]: the start rate, the polling, the backoff. Pure.
//! - [`decide`]: the decision about one order, given what was observed. One table. Pure.
//! - [`histogram`], [`journal_stats`], [`reconciler_metrics`]: distributions of durations, totals of
//!   the journal, counters of the reconciler. Pure.
//! - [`reconciler_state`], [`order_details`]: the state that the reconciler reports, and everything
//!   that is known of one order. Pure.
//! - [`messages`], [`explain`]: the sentences of logs and of `detail`, and one order in plain words. Pure.
//! - [`id_arena`], [`clock`]: many ids in one allocation; time.
//! - [`store`]: durable orders, their journal and the heartbeat; all SQL and all files beside it.
//! - [`process`]: logging, signals, exit codes, standard output.
//! - [`reconciler`]: the pass: observe, decide, settle, start. And the loop around it.
//! - [`site`], [`server`]: requests from other sites' pages, and HTTP connections with their limits; for
//!   `api` and `simulator`.
//! - [`api`]: the HTTP routes.
//! - [`simulator`]: a stand-in for the order process service.
//! - [`health`], [`prune`], [`backup`], [`account`]: the health of the programs, the removal of orders that
//!   settled long ago, a copy of the database, and the database held against the upstream.
//! - [`config`]: flags and environment.
//! - [`commands`], [`service`], [`dev`]: the operator's commands, the API and the reconciler in one
//!   process, and all of it with a simulator to try it out.
//!
//! What always holds (`tests/it/tidy.rs` checks what can be read off the code):
//!
//! - What is pure above, and the simulator's model, crashes and faults, use no clock, no network, no
//!   database, no randomness of their own, and import what is pure alone.
//! - No module imports one that comes after it, so there is no circle.
//! - Only `store` names rusqlite, only `upstream` names reqwest, only `api`, `simulator` and `dev`
//!   name warp.
//! - The API never calls the upstream and does not know the simulator, and the reconciler never
//!   serves orders. They meet in the database alone, so each can run without the other.
//! - A pass takes upstream, store and clock from outside, and runs on one thread. The clock only goes
//!   forward in it; if the system's clock was set, the next pass begins as after a start.
//! - Nothing is believed about the upstream that it did not say in a complete answer.
//! - No start leaves before its intent is on disk; none is repeated before the first was observed.

pub mod account;
pub mod api;
pub mod backup;
pub mod clock;
pub mod commands;
pub mod config;
pub mod decide;
pub mod dev;
pub mod explain;
pub mod health;
pub mod histogram;
pub mod id_arena;
pub mod journal_stats;
pub mod messages;
pub mod order;
pub mod order_details;
pub mod pace;
pub mod process;
pub mod prune;
pub mod reconciler;
pub mod reconciler_metrics;
pub mod reconciler_state;
pub mod server;
pub mod service;
pub mod simulator;
pub mod site;
pub mod store;
pub mod upstream;

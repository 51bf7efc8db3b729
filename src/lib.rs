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
//! The modules, in reading order:
//!
//! - [`order`]: the nouns. Ids, statuses, orders, observations; parsed at the edge.
//! - [`decide`]: what to do about an order, given what was observed. One pure table.
//! - [`pace`]: how fast to start, how to look, how long to back off. Pure.
//! - [`histogram`], [`journal_stats`], [`reconciler_metrics`]: distributions of durations, totals of
//!   the journal, counters of the reconciler. Pure.
//! - [`reconciler_state`], [`order_details`]: the state that the reconciler reports, and everything
//!   that is known of one order. Pure.
//! - [`id_arena`]: many ids in one allocation, and an index of them.
//! - [`reconciler`]: the pass: observe, decide, settle, start. And the loop around it.
//! - [`upstream`]: the client of the order process service, and its wire format.
//! - [`store`]: durable orders, their journal and the heartbeat; all SQL.
//! - [`api`]: the HTTP routes.
//! - [`simulator`]: a stand-in for the order process service.
//! - [`server`], [`site`]: HTTP connections and their limits, and which requests are from other sites'
//!   pages, for `api` and `simulator`.
//! - [`account`]: the database held against the upstream, and against the simulator's record.
//! - [`backup`]: a whole copy of the database in one file, taken while all is running.
//! - [`prune`]: the removal of orders that settled long ago.
//! - [`explain`]: one order in plain words. Pure.
//! - [`operator`]: the operator's commands, which open the database.
//! - [`dev`]: all of it in one program, to try it out.
//! - [`config`], [`program`], [`health`], [`clock`]: flags, process life, health commands, time.
//!
//! What always holds (`tests/it/tidy.rs` checks what can be read off the code):
//!
//! - `order`, `decide`, `pace`, `histogram`, `journal_stats`, `reconciler_metrics`, `reconciler_state`,
//!   `order_details`, `explain` and the simulator's model, crashes and faults use std and serde alone: no clock, no network, no database, no randomness of their own.
//! - Only `store` names rusqlite, only `upstream` names reqwest, only `api`, `simulator` and `dev`
//!   name warp.
//! - The API never calls the upstream and does not know the simulator, and the reconciler never
//!   serves orders. They meet in the database alone, so each can run without the other.
//! - A pass takes upstream, store and clock from outside, and runs on one thread. The clock only goes
//!   forward in it; a clock that was set back or forward before it is met as a start of the program is.
//! - Nothing is believed about the upstream that it did not say in a complete answer.
//! - No start leaves before its intent is on disk; none is repeated before the first was observed.

pub mod account;
pub mod api;
pub mod backup;
pub mod clock;
pub mod config;
pub mod decide;
pub mod dev;
pub mod explain;
pub mod health;
pub mod histogram;
pub mod id_arena;
pub mod journal_stats;
pub mod operator;
pub mod order;
pub mod order_details;
pub mod pace;
pub mod program;
pub mod prune;
pub mod reconciler;
pub mod reconciler_metrics;
pub mod reconciler_state;
pub mod server;
pub mod simulator;
pub mod site;
pub mod store;
pub mod upstream;

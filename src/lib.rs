//! An order service: a small HTTP API writes orders into SQLite or PostgreSQL, and a reconciler carries
//! each of them through an order process service, without callbacks.
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
//! The modules, from the bottom up: each imports only those before it.
//!
//! - [`order`]: ids, statuses, orders, observations, moments; parsed at the edge. Pure.
//! - [`upstream`]: the order process service: its requests and their failures. Pure, except for its HTTP
//!   client, which alone knows the wire format.
//! - [`pace`]: the start rate, the polling, the backoff. Pure.
//! - [`decide`]: the decision about one order, given what was observed. One table. Pure.
//! - [`histogram`], [`journal_stats`], [`reconciler_metrics`]: distributions of durations, totals of
//!   the journal, counters of the reconciler. Pure.
//! - [`reconciler_state`]: the state that the reconciler reports. Pure.
//! - [`messages`], [`explain`]: texts of logs and of `detail`; everything that is stored about one order, and
//!   its explanation. Pure.
//! - [`id_arena`], [`clock`]: many ids in one allocation; time.
//! - [`store`]: durable orders, their journal and the heartbeat; all SQL, all files beside it, backups.
//! - [`process`]: logging, signals, exit codes, standard output.
//! - [`reconciler`]: the pass: observe, decide, settle, start. And the loop around it.
//! - [`site`], [`server`]: requests from other sites' pages, and HTTP connections with their limits; for
//!   `api` and `simulator`.
//! - [`api`]: the HTTP routes.
//! - [`simulator`]: a stand-in for the order process service.
//! - [`health`], [`prune`], [`account`]: the health of the programs, the removal of orders that settled
//!   long ago, and the comparison of the database with the upstream.
//! - [`config`]: flags and environment.
//! - [`commands`], [`service`], [`dev`]: the operator's commands, the API and the reconciler in one
//!   process, and both with a simulator for a trial.
//!
//! Invariants (`tests/it/tidy.rs` checks those that the code shows):
//!
//! - The pure modules above, and the simulator's model, crashes and faults, use no clock, network,
//!   database or randomness of their own, and import pure modules only.
//! - No module imports a later one, so there is no cycle.
//! - Only `store` names rusqlite, only `upstream` names reqwest, only `api`, `simulator` and `dev`
//!   name warp.
//! - The API never calls the upstream and does not import the simulator, and the reconciler never
//!   serves orders. They share the database alone, so each can run without the other.
//! - A pass takes upstream, store and clock from outside, and runs on one thread. The clock only goes
//!   forward in it; if the system's clock was set, the next pass begins another run.
//! - Absence needs a complete answer of the upstream; of a list that breaks off, the entries hold.
//! - No start is sent before its intent is on disk; one that may have reached the upstream is not repeated
//!   before the order was observed.

pub mod account;
pub mod api;
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

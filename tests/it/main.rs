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
//! - `pages`, `openapi`: the pages for people, and the description of the API, held to the code.
//! - `programs`: flags, variables, exit codes, health, signals, databases that cannot be used.
//! - `deploy`: the systemd units.
//! - `account`: the database held against the upstream.
//! - `operator`: backups and their restoration, the check of a database.
//! - `prune`, `removed`: the removal of what settled long ago, and readers whom it overtakes.
//! - `restored`: readers of a database that is restored, and copies.
//! - `trouble`: a full disk, held locks, overload, SIGKILL, and crowds of connections.
//! - `metrics`: what is counted.
//! - `stats`: what is told of all orders together.
//! - `store`: the database: its schema and its journal.
//! - `tidy`: what the documentation claims, read off the code.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod account;
mod attention;
mod clients;
mod create;
mod deploy;
mod events;
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
mod stats;
mod store;
mod tidy;
mod trouble;
mod upstreams;
mod waiting;
mod wire;
mod world;

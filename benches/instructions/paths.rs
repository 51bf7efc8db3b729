//! The hot paths whose instructions are counted, each with its prepared environment.
//!
//! Every run is identical: ids come from a seed, writes are synchronous on the calling thread, and
//! no network is used. Counts therefore exclude the disk and the network.

mod environment;
mod http;
mod reconciling;

/// One iteration of a path.
pub type Iteration = Box<dyn FnMut()>;

/// A path that every order takes.
pub struct Path {
    /// Description of one operation, also its name.
    pub name: &'static str,
    /// Number of operations per iteration.
    pub operations: u64,
    /// Prepares the environment for this many iterations.
    pub prepare: fn(usize) -> Iteration,
}

/// All paths, in the order in which an order takes them.
pub const ALL: &[Path] = &[
    Path {
        name: "POST /order",
        operations: 1,
        prepare: http::create,
    },
    Path {
        name: "GET /order/{id}",
        operations: 1,
        prepare: http::look_up,
    },
    Path {
        name: "GET /order?limit=100",
        operations: 1,
        prepare: http::page,
    },
    Path {
        name: "decode a process of the list",
        operations: reconciling::LIST,
        prepare: reconciling::decode,
    },
    Path {
        name: "decide about an order",
        operations: reconciling::DECISIONS,
        prepare: reconciling::decide_all,
    },
    Path {
        name: "pass over an open order",
        operations: reconciling::OPEN,
        prepare: reconciling::pass,
    },
    Path {
        name: "adopt and settle an order",
        operations: reconciling::SETTLED,
        prepare: reconciling::settle,
    },
];

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
    pub times: u64,
    /// Prepares the environment for this many iterations.
    pub prepare: fn(usize) -> Iteration,
}

/// All paths, in the order in which an order takes them.
pub const ALL: &[Path] = &[
    Path {
        name: "POST /order",
        times: 1,
        prepare: http::create,
    },
    Path {
        name: "GET /order/{id}",
        times: 1,
        prepare: http::look_up,
    },
    Path {
        name: "GET /order?limit=100",
        times: 1,
        prepare: http::page,
    },
    Path {
        name: "decode a process of the list",
        times: reconciling::LIST,
        prepare: reconciling::decode,
    },
    Path {
        name: "decide about an order",
        times: reconciling::CHOICES,
        prepare: reconciling::decide_all,
    },
    Path {
        name: "pass over an open order",
        times: reconciling::OPEN,
        prepare: reconciling::pass,
    },
    Path {
        name: "adopt and settle an order",
        times: reconciling::SETTLED,
        prepare: reconciling::settle,
    },
];

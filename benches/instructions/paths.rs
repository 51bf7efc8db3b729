//! The hot paths whose instructions are counted, each with its world ready made.
//!
//! Everything is the same in each run: ids come from a seed, writes are carried out at once on the
//! calling thread, and nothing is asked of the network. What a path costs beside the disk and the
//! network is therefore all that is seen.

mod http;
mod reconciling;
mod world;

/// One iteration of a path.
pub type Iteration = Box<dyn FnMut()>;

/// A path that every order takes.
pub struct Path {
    /// What is done, in words; its name too.
    pub name: &'static str,
    /// How often that is done in one iteration.
    pub times: u64,
    /// Makes the world for so many iterations.
    pub prepare: fn(usize) -> Iteration,
}

/// Every path, in the order in which an order comes to them.
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

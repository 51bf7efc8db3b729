//! What only `order-service dev` serves: the simulator's state, and the means to break and mend it,
//! for the buttons of the dashboard.
//!
//! It is not a part of the API, and not in its description: elsewhere these paths lead nowhere.

use std::sync::Arc;

use serde::Serialize;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::{HeaderMap, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;

use super::problem::Problem;
use super::{Api, answer, get_or_head, json_answer, not_allowed, request};
use crate::simulator::Simulator;
use crate::simulator::faults::{Faults, Outage};

/// Someone tries it out.
pub(super) struct Dev {
    /// Not there if an order process service was given.
    pub simulator: Option<Arc<Simulator>>,
}

/// What is done to the simulator at once; everything else stays for as long as it is chosen.
const CRASH: &str = "crash";

/// Nothing works, until something else is chosen.
const DOWN: &str = "down";

/// The simulator, as the dashboard shows it.
#[derive(Serialize)]
struct State {
    /// What goes wrong, if it is one of the choices.
    now: Option<&'static str>,
    is_alive: bool,
    choices: Vec<&'static str>,
}

impl Dev {
    /// What the dashboard is told of it.
    pub fn told(&self) -> &'static str {
        match self.simulator {
            Some(_) => "simulator",
            None => "upstream",
        }
    }
}

impl Api {
    pub(super) fn dev_routes(self: &Arc<Self>) -> BoxedFilter<(Response,)> {
        let simulator = self.dev.as_ref().and_then(|dev| dev.simulator.clone());
        let simulator = warp::any().and_then(move || {
            let simulator = simulator.clone();
            async move { simulator.ok_or_else(warp::reject) }
        });
        let show = get_or_head()
            .and(simulator.clone())
            .map(|simulator: Arc<Simulator>| state(&simulator));
        let refused = simulator
            .clone()
            .and(not_allowed("GET, HEAD"))
            .map(|_, response| response);
        let state = warp::path!("dev" / "simulator").and(show.or(refused).unify());
        let change = warp::path!("dev" / "simulator" / String)
            .and(warp::post())
            .and(simulator.clone())
            .and(warp::path::full())
            .and(warp::header::headers_cloned())
            .map(
                |choice: String, simulator: Arc<Simulator>, path: FullPath, headers: HeaderMap| {
                    answer(change(&simulator, &choice, &path, &headers))
                },
            );
        let refused = warp::path!("dev" / "simulator" / String)
            .and(simulator)
            .and(not_allowed("POST"))
            .map(|_, _, response| response);
        state.or(change).unify().or(refused).unify().boxed()
    }
}

/// Breaks or mends it, as the last part of the path says.
fn change(
    simulator: &Simulator,
    choice: &str,
    path: &FullPath,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    request::same_site(headers)?;
    if choice == CRASH {
        // One that is down already stays so, which is what was asked for.
        simulator.crash(None);
    } else {
        let chosen = choices().find(|(name, _)| *name == choice);
        let (_, faults) = chosen.ok_or_else(|| Problem::no_such_path(path.as_str()))?;
        simulator.set_faults(faults);
    }
    Ok(state(simulator))
}

fn state(simulator: &Simulator) -> Response {
    let faults = simulator.faults();
    let state = State {
        now: choices().find_map(|(name, of)| (of == faults).then_some(name)),
        is_alive: simulator.is_alive(),
        choices: choices().map(|(name, _)| name).collect(),
    };
    json_answer(
        StatusCode::OK,
        serde_json::to_vec(&state).unwrap_or_default(),
    )
}

/// What can go wrong, by name.
fn choices() -> impl Iterator<Item = (&'static str, Faults)> {
    let presets = Faults::PRESETS.into_iter();
    let presets = presets.filter_map(|name| Some((name, Faults::preset(name)?)));
    // Each outage lasts until the next one begins.
    let always = Outage {
        every_ms: 1_000,
        lasts_ms: 1_000,
    };
    let down = Faults {
        outage: always,
        ..Faults::default()
    };
    presets.chain([(DOWN, down)])
}

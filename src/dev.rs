//! `order-service dev`: API, reconciler and simulator in one process, for a trial on one machine.
//!
//! All data are temporary. The dashboard has buttons that set the simulator's faults; their handler is
//! here, because the API must not import the simulator.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use warp::http::{Method, StatusCode};
use warp::reply::Response;

use crate::account::{self, LIST_TIMEOUT};
use crate::api::{self, Api, Handler, Problem};
use crate::commands::client;
use crate::config::DevArgs;
use crate::health::reachable;
use crate::process::{self, Exit};
use crate::reconciler::ReconcilerThread;
use crate::server::{self, ConnectionStats};
use crate::service;
use crate::simulator::faults::{Faults, Outage, Preset, presets};
use crate::simulator::record::read_record;
use crate::simulator::{self, Simulator};
use crate::site::Site;
use crate::store::{DatabaseUrl, Mode, Store};
use crate::upstream::UpstreamUrl;

/// Default log levels: the transitions of each order instead of reports of passes, and nothing that the
/// banner repeats.
pub const LOG_DEFAULT: &str = "order_service=info,order_service::orders=debug,\
                               order_service::pass=warn,order_service::store=error";

/// Runs everything until a signal, and prints the account.
pub async fn run(args: DevArgs) -> anyhow::Result<Exit> {
    let stop = process::stop_on_signals()?;
    let folder = tempfile::Builder::new()
        .prefix("order-service-")
        .tempdir()
        .context("no temporary folder can be made")?;
    let listener = server::listen(args.listen.listen, "--listen").await?;
    let record = folder.path().join("simulator.log");
    // It has a stop of its own, because the final account reads its list.
    let simulator_stop = CancellationToken::new();
    let (url, simulator, control) = match &args.order_process_url {
        Some(url) => (url.clone(), None, None),
        None => {
            let (url, simulator, control) =
                start_simulator(&args, record.clone(), simulator_stop.clone()).await?;
            (url, Some(simulator), control)
        }
    };
    let settings = args.reconcile.settings();
    let upstream = client(&url, settings.request_timeout)?;
    let database = folder.path().join("orders.db");
    let store = Store::open(&DatabaseUrl::from(database), Mode::Threaded)?;
    print_banner(&args, &listener, &url, control.as_deref(), &store)?;
    let policy = settings.lost_process;
    let reconciler =
        ReconcilerThread::spawn(store.clone(), upstream.clone(), settings, stop.clone())?;
    let handler = simulator.clone().map(|simulator| -> Handler {
        Box::new(move |method, path| handle(&simulator, method, path))
    });
    // Checks `Host` wherever it listens: a container listens on every address, and its port may be published
    // on loopback.
    let site = Site::new(Ipv4Addr::LOCALHOST.into(), &args.listen.allowed_hosts);
    // The simulator has the other end of each connection.
    let connections = ConnectionStats::beside(2 * args.reconcile.connections());
    let draining = stop.requested.clone();
    let api = Api::for_dev(store.clone(), site, connections, draining, handler);
    service::run(Some((listener, api)), Some(reconciler), &store, &stop).await?;
    if let Some(simulator) = &simulator {
        repair(simulator).await;
    }
    let record = simulator.map(|_| read_record(&record)).transpose()?;
    let account = account::take(&store, &upstream, LIST_TIMEOUT, policy, record.as_deref()).await?;
    process::print(format_args!("\n{account}"));
    simulator_stop.cancel();
    Ok(account.exit())
}

/// Serves the simulator until `stop`. Returns its URL, and that of its control address if there is one.
async fn start_simulator(
    args: &DevArgs,
    record: PathBuf,
    stop: CancellationToken,
) -> anyhow::Result<(UpstreamUrl, Arc<Simulator>, Option<String>)> {
    let listener = server::listen(args.simulator_listen, "--simulator-listen").await?;
    let url = url_at(&listener)?;
    let url = url.parse().context("parsing the simulator's URL failed")?;
    let control = simulator::listen_for_control(args.faults.control).await?;
    let control_url = control.as_ref().map(url_at).transpose()?;
    let simulator = Arc::new(Simulator::new(&simulator::Options {
        max_duration_secs: args.max_order_process_duration,
        first_succeeds: true,
        seed: args.seed,
        log: Some(record),
        faults: args.faults.faults(),
    })?);
    let served = simulator.clone();
    tokio::spawn(async move {
        if let Err(error) = simulator::serve(listener, control, served, stop).await {
            log::error!("simulator failed: {error:#}");
        }
    });
    Ok((url, simulator, control_url))
}

/// Time limit for the simulator to restart after a crash, which takes a second.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(5);

/// Clears all faults of the simulator, so that it answers for the account.
async fn repair(simulator: &Simulator) {
    simulator.set_faults(Faults::default());
    let runs_again = async {
        while !simulator.is_alive() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // After a timeout the account shows that there was no answer.
    let _ = tokio::time::timeout(REPAIR_TIMEOUT, runs_again).await;
}

/// Returns the URL of a listener for a client on this machine.
fn url_at(listener: &TcpListener) -> anyhow::Result<String> {
    let mut address = listener.local_addr()?;
    address.set_ip(reachable(address.ip()));
    Ok(format!("http://{address}"))
}

fn print_banner(
    args: &DevArgs,
    listener: &TcpListener,
    upstream: &UpstreamUrl,
    control: Option<&str>,
    store: &Store,
) -> anyhow::Result<()> {
    let api = url_at(listener)?;
    let upstream = match &args.order_process_url {
        Some(_) => format!("upstream     {upstream}"),
        None => {
            let longest = args.max_order_process_duration.saturating_sub(1);
            let preset = &args.faults.preset;
            let effect = choices().find(|choice| choice.name == preset);
            let effect = effect.map_or("", |choice| choice.effect);
            let mut lines = format!(
                "simulator    {upstream}, processes of 0 to {longest} s\n  \
                 preset       {preset}: {effect}"
            );
            if let Some(url) = control {
                lines.push_str(&format!("\n  control      {url}"));
            }
            lines
        }
    };
    let pace = match args.reconcile.settings().ceiling() {
        0.0 => "no ceiling".to_owned(),
        rate => format!("{rate} starts/s at most"),
    };
    let (extent, breaking) = match args.order_process_url {
        Some(_) => ("all but the upstream", ""),
        None => (
            "everything",
            "  To see an upstream crash and forget, press \"crash now\" in the dashboard.\n",
        ),
    };
    process::print(format_args!(
        "
  order-service dev: {extent} on this machine, nothing of that is kept

  dashboard    {api}/
  API          {api}
  {upstream}
  data         {data}, deleted at the end
  pace         {pace}

  create one   curl -sS {api}/order -H 'Content-Type: application/json' -d '{{\"id\":\"a1\"}}'
  look at it   curl -sS {api}/order/a1
  list all     curl -sS {api}/order

  What happens to each order is logged below, and shown live in the dashboard.
{breaking}  Ctrl-C ends it, and prints an account.

",
        data = store.info().address,
    ));
    Ok(())
}

/// The path of the simulator's state. Below it, each choice is a path to post to.
const PATH: &str = "/dev/simulator";

/// Handles the requests of the dashboard's buttons that set the simulator's faults. They are not part of the
/// API, and not in its description.
fn handle(simulator: &Simulator, method: &Method, path: &str) -> Option<Result<Response, Problem>> {
    let allow = match path.strip_prefix(PATH)?.strip_prefix('/') {
        None if path == PATH && [Method::GET, Method::HEAD].contains(method) => {
            return Some(Ok(state(simulator)));
        }
        None if path == PATH => "GET, HEAD",
        Some(choice) if *method == Method::POST => {
            change(simulator, choice)?;
            return Some(Ok(state(simulator)));
        }
        Some(choice) if !choice.is_empty() && !choice.contains('/') => "POST",
        _ => return None,
    };
    Some(Err(Problem::not_allowed(method, allow)))
}

/// Applies a choice by name. Returns `None` if there is no such choice.
fn change(simulator: &Simulator, choice: &str) -> Option<()> {
    if choice == "crash" {
        // It takes effect once; all others last until another is made. A simulator that is down already
        // stays so, which is the wanted effect.
        simulator.crash(None);
    } else {
        let chosen = choices().find(|known| known.name == choice)?;
        simulator.set_faults(chosen.faults);
    }
    Some(())
}

fn state(simulator: &Simulator) -> Response {
    let faults = simulator.faults();
    let now = choices().find(|choice| choice.faults == faults);
    // The present choice is absent if the faults are those of none.
    let state = json!({
        "now": now.as_ref().map(|choice| choice.name),
        "effect": now.as_ref().map(|choice| choice.effect),
        "is_alive": simulator.is_alive(),
        "choices": choices().map(|choice| choice.name).collect::<Vec<_>>(),
    });
    api::json_answer(StatusCode::OK, &state)
}

/// Returns the choices of faults: the presets, and an upstream that is down.
fn choices() -> impl Iterator<Item = Preset> {
    // Each outage lasts until the next one begins.
    let outage = Outage {
        every_ms: 1_000,
        lasts_ms: 1_000,
    };
    let down = Preset {
        name: "down",
        effect: "nothing works, until you choose something else",
        faults: Faults {
            outage,
            ..Faults::default()
        },
    };
    presets().into_iter().chain([down])
}

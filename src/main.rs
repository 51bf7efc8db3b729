//! `order-service`: the API, the reconciler and the simulator, alone or together.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use order_service::account;
use order_service::api::Api;
use order_service::config::{
    self, ApiArgs, DevArgs, FaultArgs, LogFormat, ServeArgs, ServiceCommand, SimulatorArgs,
};
use order_service::operator::{self, client};
use order_service::program::{self, Exit, LOG_DEFAULT, ReconcilerThread, WrongSetting};
use order_service::reconciler::Stop;
use order_service::simulator::Simulator;
use order_service::simulator::record::read_record;
use order_service::store::{DatabasePath, Mode, Store};
use order_service::upstream::UpstreamUrl;
use order_service::{health, server, simulator};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What `dev` logs: what happens to orders, and nothing that its banner says already.
const DEV_LOG_DEFAULT: &str = "order_service=info,order_service::store=error,\
                               order_service::simulator=warn,rustls_platform_verifier=off";

/// What an operator's command logs: its own lines say the rest.
const OPERATOR_LOG_DEFAULT: &str = "order_service=warn,rustls_platform_verifier=off";

fn main() -> ExitCode {
    let command = config::order_service().command;
    let (format, levels) = match &command {
        ServiceCommand::Serve(args) => (args.log.log_format, LOG_DEFAULT),
        ServiceCommand::Api(args) => (args.log.log_format, LOG_DEFAULT),
        ServiceCommand::Simulator(args) => (args.log.log_format, LOG_DEFAULT),
        ServiceCommand::Dev(args) => (args.log.log_format, DEV_LOG_DEFAULT),
        ServiceCommand::Account(args) => (args.log.log_format, OPERATOR_LOG_DEFAULT),
        ServiceCommand::Restart(args) => (args.log.log_format, OPERATOR_LOG_DEFAULT),
        ServiceCommand::Fail(args) => (args.log.log_format, OPERATOR_LOG_DEFAULT),
        ServiceCommand::Backup(args) => (args.log.log_format, OPERATOR_LOG_DEFAULT),
        ServiceCommand::Check(args) => (args.log.log_format, OPERATOR_LOG_DEFAULT),
        ServiceCommand::Explain(args) => (args.log.log_format, OPERATOR_LOG_DEFAULT),
        ServiceCommand::Prune(args) => (args.log.log_format, OPERATOR_LOG_DEFAULT),
        ServiceCommand::Health(_) => (LogFormat::Text, LOG_DEFAULT),
    };
    program::log_to_stderr(format, levels);
    program::run(async {
        match command {
            ServiceCommand::Serve(args) => serve(*args).await,
            ServiceCommand::Dev(args) => dev(*args).await,
            ServiceCommand::Api(args) => api(args).await,
            ServiceCommand::Simulator(args) => simulator(args).await,
            ServiceCommand::Account(args) => operator::account(args).await,
            ServiceCommand::Restart(args) => operator::restart(args).await,
            ServiceCommand::Fail(args) => operator::fail(args).await,
            ServiceCommand::Backup(args) => operator::backup(args).await,
            ServiceCommand::Check(args) => operator::check(&args),
            ServiceCommand::Explain(args) => operator::explain(&args),
            ServiceCommand::Prune(args) => operator::prune(args).await,
            ServiceCommand::Health(args) => {
                if args.listen.port() == 0 {
                    let what = "--listen needs the port that the program listens on";
                    return Err(WrongSetting(what.into()).into());
                }
                Ok(program::tell_health(health::of_api(args.listen).await))
            }
        }
    })
}

async fn serve(args: ServeArgs) -> anyhow::Result<Exit> {
    let stop = program::stop_on_signals()?;
    let upstream = client(
        &args.upstream.order_process_url,
        args.reconcile.request_timeout,
    )?;
    let store = Store::open(&args.database.database_url, Mode::Threaded)?;
    let listener = server::listen(args.listen.listen).await?;
    tell_address(&listener)?;
    log::info!("the upstream is {}", args.upstream.order_process_url);
    let settings = args.reconcile.settings();
    let reconciler = ReconcilerThread::spawn(store.clone(), upstream, settings, stop.clone())?;
    let api = Api::new(store.clone(), stop.begun.clone());
    both(listener, api, store, reconciler, &stop).await
}

async fn api(args: ApiArgs) -> anyhow::Result<Exit> {
    let stop = program::stop_on_signals()?;
    let store = Store::open(&args.database.database_url, Mode::Threaded)?;
    let listener = server::listen(args.listen.listen).await?;
    tell_address(&listener)?;
    let api = Api::new(store.clone(), stop.begun.clone());
    let served = serve_api(listener, api, &stop, std::future::ready(()));
    program::drained(&stop, async {
        served.await;
        store.fold().await;
    })
    .await;
    Ok(Exit::Done)
}

async fn simulator(args: SimulatorArgs) -> anyhow::Result<Exit> {
    let stop = program::stop_on_signals()?;
    let listener = server::listen(args.listen).await?;
    let control = listen_for_control(&args.faults).await?;
    let options = simulator::Options {
        max_duration_secs: args.max_order_process_duration,
        seed: args.seed,
        log: args.record,
        faults: args.faults.faults(),
    };
    let simulator = Arc::new(Simulator::new(&options)?);
    server::raise_file_limit();
    tell_address(&listener)?;
    if let Some(control) = &control {
        println!("control on http://{}", control.local_addr()?);
    }
    simulator::serve(listener, control, simulator, stop.begun).await?;
    Ok(Exit::Done)
}

/// The address at which the simulator is broken and mended, if there is to be one.
async fn listen_for_control(args: &FaultArgs) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = args.control else {
        return Ok(None);
    };
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!(
            "cannot listen on {address}; --control takes another address, or port 0 for a free one"
        )
    })?;
    Ok(Some(listener))
}

async fn dev(args: DevArgs) -> anyhow::Result<Exit> {
    let stop = program::stop_on_signals()?;
    let folder = tempfile::Builder::new()
        .prefix("order-service-")
        .tempdir()
        .context("no temporary folder can be made")?;
    let listener = server::listen(args.listen.listen).await?;
    let (url, simulator_listener) = match &args.order_process_url {
        Some(url) => (url.clone(), None),
        None => {
            let listener = server::listen(([127, 0, 0, 1], 0).into()).await?;
            let url = format!("http://{}", listener.local_addr()?);
            let url: UpstreamUrl = url.parse().context("the simulator has an odd address")?;
            (url, Some(listener))
        }
    };
    let upstream = client(&url, args.reconcile.request_timeout)?;
    let database = folder.path().join("orders.db");
    let store = Store::open(&DatabasePath::from(database), Mode::Threaded)?;
    let mut simulator = None;
    let simulator_stop = CancellationToken::new();
    let record = folder.path().join("simulator.log");
    let mut control_url = None;
    if let Some(listener) = simulator_listener {
        let control = listen_for_control(&args.faults).await?;
        control_url = match &control {
            Some(control) => Some(format!("http://{}", control.local_addr()?)),
            None => None,
        };
        let options = simulator::Options {
            max_duration_secs: args.max_order_process_duration,
            seed: args.seed,
            log: Some(record.clone()),
            faults: args.faults.faults(),
        };
        let served = Arc::new(Simulator::new(&options)?);
        simulator = Some(served.clone());
        // It is still asked for the closing account.
        let stop = simulator_stop.clone();
        tokio::spawn(async move {
            if let Err(error) = simulator::serve(listener, control, served, stop).await {
                log::error!("the simulator has ended: {error:#}");
            }
        });
    }
    let has_simulator = simulator.is_some();
    let simulated = simulated(&args, has_simulator, control_url.as_deref());
    print_banner(&args, &listener, &url, &simulated, &store)?;
    let settings = args.reconcile.settings();
    let reconciler =
        ReconcilerThread::spawn(store.clone(), upstream.clone(), settings, stop.clone())?;
    let api = Api::for_dev(store.clone(), stop.begun.clone(), simulator);
    let exit = both(listener, api, store.clone(), reconciler, &stop).await?;
    let record = has_simulator.then(|| read_record(&record)).transpose()?;
    println!(
        "\n{}",
        account::take(&store, &upstream, record.as_deref()).await?
    );
    simulator_stop.cancel();
    Ok(exit)
}

/// The API and the reconciler, until both have ended.
async fn both(
    listener: TcpListener,
    api: Arc<Api>,
    store: Store,
    mut reconciler: ReconcilerThread,
    stop: &Stop,
) -> anyhow::Result<Exit> {
    let mut outcome = Ok(Exit::Done);
    let ended = CancellationToken::new();
    let reconciled = async {
        if let Err(error) = reconciler.ended().await {
            outcome = Err(error);
            stop.begun.cancel();
        }
        ended.cancel();
    };
    // Until then it can be asked why the program has not ended yet.
    let served = serve_api(listener, api, stop, ended.cancelled());
    program::drained(stop, async {
        tokio::join!(served, reconciled);
        store.fold().await;
    })
    .await;
    outcome
}

async fn serve_api(
    listener: TcpListener,
    api: Arc<Api>,
    stop: &Stop,
    others: impl Future<Output = ()>,
) {
    server::raise_file_limit();
    let service = warp::service(api.routes());
    let occupancy = api.occupancy();
    server::serve(listener, service, occupancy, stop.begun.clone(), others).await;
}

/// Scripts read this line: it says which port was taken.
fn tell_address(listener: &TcpListener) -> anyhow::Result<()> {
    println!("listening on http://{}", listener.local_addr()?);
    Ok(())
}

/// What the banner of `dev` tells of the upstream.
struct Simulated {
    name: &'static str,
    traits: String,
    control: String,
}

fn simulated(args: &DevArgs, has_simulator: bool, control_url: Option<&str>) -> Simulated {
    if !has_simulator {
        return Simulated {
            name: "upstream",
            traits: String::new(),
            control: String::new(),
        };
    }
    let longest = args.max_order_process_duration.saturating_sub(1);
    let preset = match args.faults.preset.as_str() {
        "calm" => String::new(),
        preset => format!(", {preset}"),
    };
    Simulated {
        name: "simulator",
        traits: format!(", processes of 0 to {longest} s{preset}"),
        control: control_url.map_or(String::new(), |url| format!("\n  {:<12} {url}", "control")),
    }
}

fn print_banner(
    args: &DevArgs,
    listener: &TcpListener,
    upstream: &UpstreamUrl,
    simulated: &Simulated,
    store: &Store,
) -> anyhow::Result<()> {
    let api = format!("http://{}", listener.local_addr()?);
    let pace = match args.reconcile.start_rate {
        0.0 => "no ceiling".to_owned(),
        rate => format!("{rate} starts/s at most"),
    };
    let Simulated {
        name,
        traits,
        control,
    } = simulated;
    println!(
        "
  order-service dev: everything on this machine, nothing is kept

  dashboard    {api}/
  API          {api}
  {name:<12} {upstream}{traits}{control}
  data         {data}, deleted at the end
  pace         {pace}

  create one   curl -sS {api}/order -H 'Content-Type: application/json' -d '{{\"id\":\"a1\"}}'
  look at it   curl -sS {api}/order/a1
  list all     curl -sS {api}/order

  Ctrl-C ends it.
",
        data = store.path().display(),
    );
    Ok(())
}

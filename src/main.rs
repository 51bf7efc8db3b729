//! `order-service`: the API, the reconciler and the simulator, alone or together.

use std::process::ExitCode;

use anyhow::Context;
use order_service::api::Api;
use order_service::config::{
    self, ApiArgs, DevArgs, LogFormat, ServeArgs, ServiceCommand, SimulatorArgs,
};
use order_service::program::{self, Exit, LOG_DEFAULT, ReconcilerThread, WrongSetting};
use order_service::reconciler::Stop;
use order_service::store::{DatabasePath, Mode, Store};
use order_service::upstream::{HttpUpstream, UpstreamUrl};
use order_service::{health, server, simulator};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What `dev` logs: what happens to orders, and nothing that its banner says already.
const DEV_LOG_DEFAULT: &str = "order_service=info,order_service::store=error,\
                               order_service::simulator=warn,rustls_platform_verifier=off";

fn main() -> ExitCode {
    let command = config::order_service().command;
    let (format, levels) = match &command {
        ServiceCommand::Serve(args) => (args.log.log_format, LOG_DEFAULT),
        ServiceCommand::Api(args) => (args.log.log_format, LOG_DEFAULT),
        ServiceCommand::Simulator(args) => (args.log.log_format, LOG_DEFAULT),
        ServiceCommand::Dev(args) => (args.log.log_format, DEV_LOG_DEFAULT),
        ServiceCommand::Health(_) => (LogFormat::Text, LOG_DEFAULT),
    };
    program::log_to_stderr(format, levels);
    program::run(async {
        match command {
            ServiceCommand::Serve(args) => serve(args).await,
            ServiceCommand::Dev(args) => dev(args).await,
            ServiceCommand::Api(args) => api(args).await,
            ServiceCommand::Simulator(args) => simulator(args).await,
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
    let upstream = upstream(&args.upstream.order_process_url, &args.reconcile)?;
    let store = Store::open(&args.database.database_url, Mode::Threaded)?;
    let listener = server::listen(args.listen.listen).await?;
    tell_address(&listener)?;
    log::info!("the upstream is {}", args.upstream.order_process_url);
    let settings = args.reconcile.settings();
    let reconciler = ReconcilerThread::spawn(store.clone(), upstream, settings, stop.clone())?;
    both(listener, store, reconciler, &stop).await
}

async fn api(args: ApiArgs) -> anyhow::Result<Exit> {
    let stop = program::stop_on_signals()?;
    let store = Store::open(&args.database.database_url, Mode::Threaded)?;
    let listener = server::listen(args.listen.listen).await?;
    tell_address(&listener)?;
    let served = serve_api(listener, store, &stop, std::future::ready(()));
    program::drained(&stop, served).await;
    Ok(Exit::Done)
}

async fn simulator(args: SimulatorArgs) -> anyhow::Result<Exit> {
    let stop = program::stop_on_signals()?;
    let listener = server::listen(args.listen).await?;
    let options = simulator::Options {
        max_duration_secs: args.max_order_process_duration,
        seed: args.seed,
        log: args.record,
    };
    server::raise_file_limit();
    tell_address(&listener)?;
    simulator::serve(listener, options, stop.begun).await?;
    Ok(Exit::Done)
}

async fn dev(args: DevArgs) -> anyhow::Result<Exit> {
    let stop = program::stop_on_signals()?;
    let folder = tempfile::Builder::new()
        .prefix("order-service-")
        .tempdir()
        .context("no temporary folder can be made")?;
    let listener = server::listen(args.listen.listen).await?;
    let (url, simulator) = match &args.order_process_url {
        Some(url) => (url.clone(), None),
        None => {
            let simulator = server::listen(([127, 0, 0, 1], 0).into()).await?;
            let url = format!("http://{}", simulator.local_addr()?);
            let url: UpstreamUrl = url.parse().context("the simulator has an odd address")?;
            (url, Some(simulator))
        }
    };
    let upstream = upstream(&url, &args.reconcile)?;
    let database = folder.path().join("orders.db");
    let store = Store::open(&DatabasePath::from(database), Mode::Threaded)?;
    let has_simulator = simulator.is_some();
    if let Some(listener) = simulator {
        let options = simulator::Options {
            max_duration_secs: args.max_order_process_duration,
            seed: args.seed,
            log: Some(folder.path().join("simulator.log")),
        };
        let stop = stop.begun.clone();
        tokio::spawn(async move {
            // It outlives the reconciler's last look: the reconciler ends with the stop as well.
            if let Err(error) = simulator::serve(listener, options, stop).await {
                log::error!("the simulator has ended: {error:#}");
            }
        });
    }
    print_banner(&args, &listener, &url, has_simulator, &store)?;
    let settings = args.reconcile.settings();
    let reconciler = ReconcilerThread::spawn(store.clone(), upstream, settings, stop.clone())?;
    let exit = both(listener, store.clone(), reconciler, &stop).await?;
    print_closing_account(&store)?;
    Ok(exit)
}

/// The API and the reconciler, until both have ended.
async fn both(
    listener: TcpListener,
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
    let served = serve_api(listener, store, stop, ended.cancelled());
    program::drained(stop, async {
        tokio::join!(served, reconciled);
    })
    .await;
    outcome
}

async fn serve_api(
    listener: TcpListener,
    store: Store,
    stop: &Stop,
    others: impl Future<Output = ()>,
) {
    server::raise_file_limit();
    let api = Api::new(store, stop.begun.clone());
    let service = warp::service(api.routes());
    server::serve(listener, service, stop.begun.clone(), others).await;
}

fn upstream(url: &UpstreamUrl, args: &config::ReconcileArgs) -> anyhow::Result<HttpUpstream> {
    let token = config::order_process_token().map_err(|error| WrongSetting(error.into()))?;
    HttpUpstream::new(url, token.as_deref(), args.request_timeout)
}

/// Scripts read this line: it says which port was taken.
fn tell_address(listener: &TcpListener) -> anyhow::Result<()> {
    println!("listening on http://{}", listener.local_addr()?);
    Ok(())
}

fn print_banner(
    args: &DevArgs,
    listener: &TcpListener,
    upstream: &UpstreamUrl,
    has_simulator: bool,
    store: &Store,
) -> anyhow::Result<()> {
    let api = format!("http://{}", listener.local_addr()?);
    let pace = match args.reconcile.start_rate {
        0.0 => "no ceiling".to_owned(),
        rate => format!("{rate} starts/s at most"),
    };
    let (upstream_name, processes) = if has_simulator {
        let longest = args.max_order_process_duration.saturating_sub(1);
        ("simulator", format!(", processes of 0 to {longest} s"))
    } else {
        ("upstream", String::new())
    };
    println!(
        "
  order-service dev: everything on this machine, nothing is kept

  API          {api}
  {upstream_name:<12} {upstream}{processes}
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

fn print_closing_account(store: &Store) -> anyhow::Result<()> {
    println!("\n  orders");
    for (status, count) in store.counts()? {
        println!("  {:<12} {count:>6}", status.as_str());
    }
    println!();
    Ok(())
}

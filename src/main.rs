//! `order-service`: the API, the reconciler and the simulator, alone or together.

use std::process::ExitCode;
use std::sync::Arc;

use order_service::api::Api;
use order_service::commands::{self, client};
use order_service::config::{self, ApiArgs, ServeArgs, ServiceCommand, SimulatorArgs};
use order_service::process::{self, Exit, InvalidSetting, LOG_DEFAULT, LineStyle};
use order_service::reconciler::ReconcilerThread;
use order_service::server::{CONNECTIONS_MAX, ConnectionStats};
use order_service::simulator::Simulator;
use order_service::{dev, health, server, service, simulator};
use tokio::net::TcpListener;

/// Default log levels of the commands that print a result of their own.
const OPERATOR_LOG_DEFAULT: &str = "order_service=warn";

fn main() -> ExitCode {
    let config::OrderService { log, command } = config::order_service();
    let (style, levels) = match &command {
        ServiceCommand::Serve(_) | ServiceCommand::Api(_) | ServiceCommand::Simulator(_) => {
            (LineStyle::Dated, LOG_DEFAULT)
        }
        ServiceCommand::Dev(_) => (LineStyle::Dated, dev::LOG_DEFAULT),
        _ => (LineStyle::Plain, OPERATOR_LOG_DEFAULT),
    };
    let logs = process::log_to_stderr(log.log_format, style, levels);
    process::run(async {
        logs?;
        match command {
            ServiceCommand::Serve(args) => serve(*args).await,
            ServiceCommand::Dev(args) => dev::run(*args).await,
            ServiceCommand::Api(args) => api(args).await,
            ServiceCommand::Simulator(args) => simulator(args).await,
            ServiceCommand::Account(args) => commands::account(args).await,
            ServiceCommand::Restart(args) => commands::restart(args).await,
            ServiceCommand::Fail(args) => commands::fail(args).await,
            ServiceCommand::Backup(args) => commands::backup(args).await,
            ServiceCommand::Copy(args) => commands::copy(args).await,
            ServiceCommand::Check(args) => commands::check(&args),
            ServiceCommand::Explain(args) => commands::explain(args).await,
            ServiceCommand::Prune(args) => commands::prune(args).await,
            ServiceCommand::Health(args) => {
                if args.listen.port() == 0 {
                    let what = "--listen needs the port that the program listens on";
                    return Err(InvalidSetting(what.into()).into());
                }
                Ok(process::print_health(health::of_api(args.listen).await))
            }
        }
    })
}

async fn serve(args: ServeArgs) -> anyhow::Result<Exit> {
    let stop = process::stop_on_signals()?;
    let settings = args.reconcile.settings();
    let upstream = client(&args.upstream.order_process_url, settings.request_timeout)?;
    let listener = server::listen(args.listen.listen, "--listen").await?;
    let Some(store) = service::open(&args.database.database_url, &stop).await? else {
        return Ok(Exit::Done);
    };
    upstream.log_route();
    print_address(&listener)?;
    let reconciler = ReconcilerThread::spawn(store.clone(), upstream, settings, stop.clone())?;
    let connections = ConnectionStats::beside(args.reconcile.connections());
    let (site, draining) = (args.listen.site(), stop.requested.clone());
    let api = Api::new(store.clone(), site, connections, draining);
    service::run(Some((listener, api)), Some(reconciler), &store, &stop).await?;
    Ok(Exit::Done)
}

async fn api(args: ApiArgs) -> anyhow::Result<Exit> {
    let stop = process::stop_on_signals()?;
    let listener = server::listen(args.listen.listen, "--listen").await?;
    let Some(store) = service::open(&args.database.database_url, &stop).await? else {
        return Ok(Exit::Done);
    };
    print_address(&listener)?;
    let (site, draining) = (args.listen.site(), stop.requested.clone());
    let api = Api::new(store.clone(), site, ConnectionStats::beside(0), draining);
    service::run(Some((listener, api)), None, &store, &stop).await?;
    Ok(Exit::Done)
}

async fn simulator(args: SimulatorArgs) -> anyhow::Result<Exit> {
    let stop = process::stop_on_signals()?;
    let listener = server::listen(args.listen, "--listen").await?;
    let control = simulator::listen_for_control(args.faults.control).await?;
    let options = simulator::Options {
        max_duration_secs: args.max_order_process_duration,
        first_succeeds: false,
        seed: args.seed,
        log: args.record,
        faults: args.faults.faults(),
    };
    let simulator = Arc::new(Simulator::new(&options)?);
    process::raise_file_limit(CONNECTIONS_MAX);
    print_address(&listener)?;
    if let Some(control) = &control {
        process::print(format_args!(
            "control on http://{}\n",
            control.local_addr()?
        ));
    }
    simulator::serve(listener, control, simulator, stop.requested).await?;
    Ok(Exit::Done)
}

/// Prints the address, from which scripts read the port that port 0 took.
fn print_address(listener: &TcpListener) -> anyhow::Result<()> {
    process::print(format_args!(
        "listening on http://{}\n",
        listener.local_addr()?
    ));
    Ok(())
}

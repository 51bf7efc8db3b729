//! How long one process waits for its writes while another one writes as fast as it can to the
//! same file. Two real processes: this program calls itself.
//!
//! `cargo bench --bench turns`

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use order_service::order::{OrderId, Timestamp};
use order_service::store::{Change, DatabasePath, Filter, Mode, Step, Store};

/// How long each scenario is measured.
const MEASURED: Duration = Duration::from_secs(8);

/// Between two of the measured writes.
const INTERVAL: Duration = Duration::from_millis(20);

/// Changes in one transaction of the busy reconciler: its batch.
const BATCH: i64 = 2_000;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, busy, kind, path] = &arguments[..]
        && busy == "busy"
    {
        let store = Store::open(&path.parse()?, Mode::Threaded)?;
        return match kind.as_str() {
            "creations" => runtime.block_on(create_for_ever(store)),
            _ => runtime.block_on(record_for_ever(store)),
        };
    }
    println!(
        "{:<34} {:>6} {:>9} {:>9} {:>9}",
        "a creation every 20 ms, beside", "n", "p50 ms", "p99 ms", "max ms"
    );
    for kind in ["nothing", "creations", "batches"] {
        let folder = tempfile::tempdir_in(".")?;
        let path = folder.path().join("orders.db");
        let store = Store::open(&DatabasePath::from(path.clone()), Mode::Threaded)?;
        runtime.block_on(fill(&store))?;
        let busy = match kind {
            "nothing" => None,
            kind => Some(
                Command::new(std::env::current_exe()?)
                    .args(["busy", kind])
                    .arg(&path)
                    .stderr(Stdio::null())
                    .spawn()?,
            ),
        };
        std::thread::sleep(Duration::from_millis(500));
        let waits = runtime.block_on(measure(&store))?;
        if let Some(mut busy) = busy {
            busy.kill()?;
            busy.wait()?;
        }
        let at =
            |share: f64| waits[((waits.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        let name = match kind {
            "nothing" => "no other process",
            "creations" => "64 creations at once, all the time",
            _ => "2,000 changes a commit, all the time",
        };
        println!(
            "{name:<34} {:>6} {:>9.2} {:>9.2} {:>9.2}",
            waits.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
    Ok(())
}

/// Orders for the busy reconciler to change.
async fn fill(store: &Store) -> anyhow::Result<()> {
    let mut creations = tokio::task::JoinSet::new();
    for n in 0..BATCH {
        let store = store.clone();
        let id = OrderId::new(format!("first-{n}"))?;
        creations.spawn(async move { store.create(id, Timestamp(n)).await });
    }
    while let Some(creation) = creations.join_next().await {
        creation??;
    }
    Ok(())
}

/// The time that each of some single creations takes, sorted.
async fn measure(store: &Store) -> anyhow::Result<Vec<Duration>> {
    let mut waits = Vec::new();
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(INTERVAL);
    while begun.elapsed() < MEASURED {
        ticks.tick().await;
        let id = OrderId::new(format!("measured-{}", waits.len()))?;
        let asked = Instant::now();
        store.create(id, Timestamp(0)).await?;
        waits.push(asked.elapsed());
    }
    waits.sort();
    Ok(waits)
}

async fn create_for_ever(store: Store) -> anyhow::Result<()> {
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..64 {
        let store = store.clone();
        callers.spawn(async move {
            for n in 0u64.. {
                let id = OrderId::new(format!("busy-{caller}-{n}"))?;
                store.create(id, Timestamp(0)).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    Ok(())
}

async fn record_for_ever(store: Store) -> anyhow::Result<()> {
    let orders = store.page(&Filter::default(), 0, i64::MAX, BATCH as usize)?;
    let mut previous = None;
    for now in 1.. {
        let changes = orders
            .iter()
            .map(|order| Change {
                seq: order.seq,
                step: Step::Intended { previous },
            })
            .collect();
        store.record(changes, Timestamp(now)).await?;
        previous = Some(Timestamp(now));
    }
    Ok(())
}

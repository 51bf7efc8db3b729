//! The comparison of the crash model with measurements of the real service.

use std::time::Duration;

use order_service::simulator::crash::Hazard;

use crate::fixed_rate::{FixedRateClient, Load, Polling, Run, run};

/// A measurement of the real service: processes of 0 to 599 s, 20 minutes, restarted after each crash.
/// The last incarnation had not ended.
struct Measured {
    starts_per_second: u64,
    polling: Polling,
    incarnations: &'static [u64],
    /// Number of outcomes seen.
    seen: u64,
}

const MEASURED: [Measured; 6] = [
    Measured {
        starts_per_second: 50,
        polling: Polling::ListEvery(Duration::from_secs(1)),
        incarnations: &[13_594, 7_014, 13_434, 6_658, 6_763, 7_071, 5_151],
        seen: 9_836,
    },
    Measured {
        starts_per_second: 50,
        polling: Polling::ListEvery(Duration::from_secs(10)),
        incarnations: &[6_732, 3_551, 13_319, 8_886, 23_703, 3_535],
        seen: 14_386,
    },
    Measured {
        starts_per_second: 50,
        polling: Polling::LookUpsPerSecond(300),
        incarnations: &[6_760, 6_733, 3_491, 7_045, 13_518, 13_348, 6_707, 2_049],
        seen: 8_363,
    },
    Measured {
        starts_per_second: 50,
        polling: Polling::LookUpsPerSecond(3_000),
        incarnations: &[
            3_437, 6_670, 6_925, 6_663, 6_874, 3_369, 6_873, 6_663, 6_660, 1_745, 1_880,
        ],
        seen: 5_796,
    },
    Measured {
        starts_per_second: 10,
        polling: Polling::ListEvery(Duration::from_secs(1)),
        incarnations: &[6_718, 3_414, 846, 996],
        seen: 4_856,
    },
    Measured {
        starts_per_second: 10,
        polling: Polling::LookUpsPerSecond(100),
        incarnations: &[6_672, 5_315],
        seen: 5_685,
    },
];

const TWENTY_MINUTES: Duration = Duration::from_secs(20 * 60);

/// Maximum ratio between modelled and measured numbers of outcomes seen. A measurement is a single run,
/// and twenty minutes have only a few incarnations.
const FIT: f64 = 1.6;

/// Prints the measurements with the mean and the middle half of `seeds` runs. Returns `None` if one
/// does not fit.
pub fn fit(seeds: u64) -> Option<()> {
    println!(
        "the crash model (right) against measurements (left); processes of 0 to 599 s, twenty \
         minutes\n\n  {:>3}  {:<17} {:>16} {:>31} {:>14} {:>32}",
        "/s", "polls", "crashes", "incarnation", "after growth*", "outcomes seen",
    );
    let mut fits = true;
    for measured in &MEASURED {
        fits &= compare(measured, seeds);
    }
    println!("\n  * incarnations that ended soon after the service's map had begun to grow\n");
    fits &= short_processes(seeds);
    println!();
    fits.then_some(())
}

fn compare(measured: &Measured, seeds: u64) -> bool {
    let client = FixedRateClient {
        starts_per_second: measured.starts_per_second as f64,
        window: usize::MAX,
        polling: measured.polling,
    };
    let load = Load::NewOrdersFor(TWENTY_MINUTES);
    let mut runs: Vec<Run> = (0..seeds)
        .map(|seed| run(client, load, 600, Some(&Hazard::default()), seed))
        .collect();
    runs.sort_by_key(|run| run.seen);
    let quarter = runs.len() / 4;
    let seen = runs.iter().map(|run| run.seen).sum::<u64>() as f64 / seeds as f64;
    let mut incarnations: Vec<u64> = runs
        .iter()
        .flat_map(|run| finished(&run.incarnations))
        .collect();
    incarnations.sort_unstable();
    let mut real = finished(measured.incarnations);
    real.sort_unstable();
    let middle = |incarnations: &[u64], share: f64| {
        incarnations[((incarnations.len() - 1) as f64 * share) as usize]
    };
    println!(
        "  {:>3}  {:<17} {:>5} | {:>8.1} {:>6} | {:>6} ({:>5} to {:>5}) {:>4.0} | {:>3.0} % {:>6} | {:>6.0} ({:>5} to {:>5})",
        measured.starts_per_second,
        match measured.polling {
            Polling::ListEvery(every) => format!("a list per {} s", every.as_secs()),
            Polling::LookUpsPerSecond(rate) => format!("{rate} look-ups/s"),
        },
        real.len(),
        incarnations.len() as f64 / seeds as f64,
        middle(&real, 0.5),
        middle(&incarnations, 0.5),
        middle(&incarnations, 0.25),
        middle(&incarnations, 0.75),
        soon_after_growth(&real),
        soon_after_growth(&incarnations),
        measured.seen,
        seen,
        runs[quarter].seen,
        runs[runs.len() - 1 - quarter].seen,
    );
    let ratio = seen / measured.seen as f64;
    (1.0 / FIT..FIT).contains(&ratio)
}

/// Compares the length of the first incarnation and the number of crashes, for processes of 0 to 4 s without
/// polls.
fn short_processes(seeds: u64) -> bool {
    let runs = |starts_per_second, minutes: u64| -> Vec<Run> {
        let client = FixedRateClient {
            starts_per_second,
            window: usize::MAX,
            polling: Polling::LookUpsPerSecond(0),
        };
        let load = Load::NewOrdersFor(Duration::from_secs(60 * minutes));
        (0..10 * seeds)
            .map(|seed| run(client, load, 5, Some(&Hazard::default()), seed))
            .collect()
    };
    let mut first: Vec<u64> = runs(300.0, 1)
        .iter()
        .map(|run| run.incarnations[0])
        .collect();
    first.sort_unstable();
    let (short, long) = (first[first.len() / 10], first[first.len() * 9 / 10]);
    println!(
        "  processes of 0 to 4 s, 300/s: most first incarnations have {short} to {long} starts (measured: \
         860 to 3,300)"
    );
    let minutes = runs(100.0, 2);
    let crashes: usize = minutes.iter().map(|run| run.incarnations.len() - 1).sum();
    let crashes = crashes as f64 / minutes.len() as f64;
    println!("  the same, 100/s: {crashes:.1} crashes in two minutes (measured: 2 to 5)");
    (400..2_000).contains(&short) && (1_600..8_000).contains(&long) && (2.0..5.0).contains(&crashes)
}

fn finished(incarnations: &[u64]) -> Vec<u64> {
    incarnations
        .split_last()
        .map_or_else(Vec::new, |(_, finished)| finished.to_vec())
}

/// Returns the percentage of incarnations that ended within the 8 % of processes after the map began to grow.
fn soon_after_growth(incarnations: &[u64]) -> f64 {
    let is_soon = |incarnation: &&u64| {
        (0..12).any(|doublings| {
            let full = 13 << doublings;
            (full..=full + full * 8 / 100 + 1).contains(*incarnation)
        })
    };
    100.0 * incarnations.iter().filter(is_soon).count() as f64 / incarnations.len() as f64
}

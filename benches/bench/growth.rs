//! How each cost grows with the number of orders: the same things are measured among a thousand
//! settled orders, ten thousand, and so on to a million, or ten.
//!
//! `scripts/bench growth` writes `benches/growth.csv`, `growth.svg` and `growth.md` from it. What is
//! measured is in `growth/costs.rs`, how it is drawn in `growth/chart.rs`; the words of the page are
//! in `growth/page.md`.

mod chart;
mod costs;
mod still;

use std::fmt::Write as _;
use std::fs;
use std::time::Instant;

use anyhow::Context;

use self::costs::{COSTS, Figures};
use crate::table::number;
use crate::{Bench, machine};

/// Sizes: whole decades.
const SIZES: [u64; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];

/// What the page says beside the figures.
const PAGE: &str = include_str!("growth/page.md");

/// What was measured among so many settled orders.
pub struct Grown {
    orders: u64,
    figures: Figures,
}

/// Measures everything at each size, and writes the page.
pub fn run(bench: &Bench, to_ten_million: bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    let machine = machine::describe(bench)?;
    print!("{machine}");
    let sizes = SIZES.iter().take(if to_ten_million { 5 } else { 4 });
    let mut grown = Vec::new();
    for &orders in sizes {
        let seconds = begun.elapsed().as_secs_f64();
        eprintln!("{seconds:>6.0} s  {} orders", number(orders as f64));
        let figures =
            costs::measure(bench, orders).with_context(|| format!("among {orders} orders"))?;
        grown.push(Grown { orders, figures });
    }
    let table = table(&grown);
    let command = match to_ten_million {
        true => "scripts/bench growth --ten-million",
        false => "scripts/bench growth",
    };
    let page = PAGE
        .replace("{command}", command)
        .replace("{machine}", machine.trim_end())
        .replace("{table}", table.trim_end());
    fs::write("benches/growth.csv", csv(&grown))?;
    fs::write("benches/growth.svg", chart::draw(&grown)?)?;
    fs::write("benches/growth.md", page)?;
    println!(
        "\n{table}\nmeasured in {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

/// One line for each figure, for other programs to read.
fn csv(grown: &[Grown]) -> String {
    let mut csv = String::from("orders,what,unit,value\n");
    for Grown { orders, figures } in grown {
        for (cost, figure) in COSTS.iter().zip(figures) {
            let _ = writeln!(csv, "{orders},{},{},{figure:.4}", cost.what, cost.unit);
        }
    }
    csv
}

/// One row for each cost, one column for each size.
fn table(grown: &[Grown]) -> String {
    let mut table = format!("| {:<46} |", "among so many settled orders");
    for Grown { orders, .. } in grown {
        let _ = write!(table, " {:>10} |", number(*orders as f64));
    }
    let _ = write!(table, "\n|{}|", "-".repeat(48));
    for _ in grown {
        let _ = write!(table, "{}:|", "-".repeat(11));
    }
    table.push('\n');
    for (at, cost) in COSTS.iter().enumerate() {
        let _ = write!(table, "| {:<46} |", format!("{}, {}", cost.what, cost.unit));
        for Grown { figures, .. } in grown {
            let _ = write!(table, " {:>10} |", figure(figures[at]));
        }
        table.push('\n');
    }
    table
}

/// A figure with three digits that mean something, also if it is small.
fn figure(value: f64) -> String {
    if value < 1.0 {
        format!("{value:.3}")
    } else {
        number(value)
    }
}

//! How long the hot paths take, one after the other, with nothing beside them.
//!
//! `cargo bench --bench hot`; a word after `--` runs those with it in their name. What is measured
//! is in `paths`; `counted.rs` counts the instructions of the same.

mod paths;

use divan::Bencher;
use divan::counter::ItemsCount;

use self::paths::Path;

/// Turns of each path. Each counts.
const TURNS: u32 = 100;

fn main() {
    divan::main();
}

#[divan::bench(args = paths::ALL, sample_count = TURNS, sample_size = 1)]
fn path(bencher: Bencher<'_, '_>, path: &Path) {
    let turn = path.prepare(TURNS as usize);
    bencher
        .counter(ItemsCount::new(path.times))
        .bench_local(turn);
}

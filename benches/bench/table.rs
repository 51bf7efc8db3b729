//! Samples of several rounds, their goals, and the printed table.
//!
//! A figure is the median of its rounds, with minimum and maximum. A ratio is the median of the ratios of
//! the rounds: both sides of one round met the same load of the machine.

use std::fmt::Write as _;

/// The unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Number per second.
    PerSecond,
    /// Milliseconds.
    Millis,
    /// Seconds.
    Seconds,
    /// Bytes of memory or disk, in MiB.
    MiB,
    /// Bytes.
    Bytes,
    /// Hundredths of one core.
    PercentOfCore,
    /// A plain number.
    Count,
}

impl Unit {
    fn suffix(self) -> &'static str {
        match self {
            Self::PerSecond => "/s",
            Self::Millis => " ms",
            Self::Seconds => " s",
            Self::MiB => " MiB",
            Self::Bytes => " bytes",
            Self::PercentOfCore => " %",
            Self::Count => "",
        }
    }
}

/// The goal of a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// Our figure is at least this many times the reference.
    RatioAtLeast(f64),
    /// Our figure is at most this many times the reference.
    RatioAtMost(f64),
    /// Our figure is below this.
    Below(f64),
    /// No goal.
    None,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Line {
    what: String,
    unit: Unit,
    ours: Vec<f64>,
    reference: Vec<f64>,
    goal: Goal,
}

impl Line {
    /// Returns a line of our figures, one for each round.
    pub fn new(what: impl Into<String>, unit: Unit, ours: Vec<f64>) -> Self {
        Self {
            what: what.into(),
            unit,
            ours,
            reference: Vec::new(),
            goal: Goal::None,
        }
    }

    /// Sets the reference, measured in the same rounds.
    pub fn against(self, reference: Vec<f64>) -> Self {
        Self { reference, ..self }
    }

    /// Sets the goal.
    pub fn goal(self, goal: Goal) -> Self {
        Self { goal, ..self }
    }

    fn ratio(&self) -> Option<f64> {
        let rounds = self.ours.iter().zip(&self.reference);
        let ratios: Vec<f64> = rounds.map(|(ours, reference)| ours / reference).collect();
        (!ratios.is_empty()).then(|| median(&ratios))
    }

    fn is_met(&self) -> Option<bool> {
        match self.goal {
            Goal::RatioAtLeast(wanted) => self.ratio().map(|ratio| ratio >= wanted),
            Goal::RatioAtMost(wanted) => self.ratio().map(|ratio| ratio <= wanted),
            Goal::Below(wanted) => Some(median(&self.ours) < wanted),
            Goal::None => None,
        }
    }

    fn cells(&self) -> [String; 6] {
        [
            self.what.clone(),
            figure(&self.ours, self.unit),
            figure(&self.reference, self.unit),
            self.ratio().map_or(String::new(), number),
            match self.goal {
                Goal::RatioAtLeast(wanted) => format!("at least {wanted}"),
                Goal::RatioAtMost(wanted) => format!("at most {wanted}"),
                Goal::Below(wanted) => format!("below {wanted}{}", self.unit.suffix()),
                Goal::None => String::new(),
            },
            match self.is_met() {
                Some(true) => "yes".to_owned(),
                Some(false) => "no".to_owned(),
                None => String::new(),
            },
        ]
    }

    /// Returns the line as text, for progress before the table.
    pub fn text(&self) -> String {
        let [what, ours, reference, ratio, goal, met] = self.cells();
        let mut text = format!("{what}: {ours}");
        for (word, cell) in [
            ("against", reference),
            ("ratio", ratio),
            ("goal", goal),
            ("met:", met),
        ] {
            if !cell.is_empty() {
                let _ = write!(text, "; {word} {cell}");
            }
        }
        text
    }
}

/// Measures two things alternately, so that both meet the same load of the machine.
pub fn alternately<T>(
    rounds: usize,
    mut ours: impl FnMut(usize) -> anyhow::Result<T>,
    mut reference: impl FnMut(usize) -> anyhow::Result<T>,
) -> anyhow::Result<(Vec<T>, Vec<T>)> {
    let mut measured = (Vec::new(), Vec::new());
    for round in 0..rounds {
        measured.0.push(ours(round)?);
        measured.1.push(reference(round)?);
    }
    Ok(measured)
}

/// Returns the median; of an even number of values the mean of the middle two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.get(sorted.len() / 2), sorted.len() % 2) {
        (None, _) => f64::NAN,
        (Some(middle), 1) => *middle,
        (Some(upper), _) => (sorted[sorted.len() / 2 - 1] + upper) / 2.0,
    }
}

/// Returns the value that this share of all values does not exceed.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * share).ceil() as usize;
    sorted.get(at.min(last)).copied().unwrap_or(f64::NAN)
}

/// Formats the median, with minimum and maximum if there is more than one round.
fn figure(samples: &[f64], unit: Unit) -> String {
    let suffix = unit.suffix();
    match samples {
        [] => String::new(),
        [only] => format!("{}{suffix}", number(*only)),
        _ => {
            let least = samples.iter().copied().fold(f64::INFINITY, f64::min);
            let greatest = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let middle = number(median(samples));
            format!(
                "{middle}{suffix} ({} to {})",
                number(least),
                number(greatest)
            )
        }
    }
}

/// Formats a number with its significant digits.
pub fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        let decimals = if value.abs() < 10.0 { 2 } else { 1 };
        return format!("{value:.decimals$}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if value < 0.0 {
        grouped.insert(0, '-');
    }
    grouped
}

/// Returns all lines as an aligned Markdown table.
pub fn print(lines: &[Line]) -> String {
    let head = ["what", "ours", "reference", "ratio", "goal", "met"].map(str::to_owned);
    let mut rows = vec![head];
    rows.extend(lines.iter().map(Line::cells));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..6).map(|column| width(column).unwrap_or(0)).collect();
    let mut table = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(table, "| {cell:<width$} ");
        }
        table.push_str("|\n");
        if index == 0 {
            for width in &widths {
                let _ = write!(table, "|{}", "-".repeat(width + 2));
            }
            table.push_str("|\n");
        }
    }
    table
}

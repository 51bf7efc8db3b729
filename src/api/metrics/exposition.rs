//! Prometheus' text format, version 0.0.4. The metrics are defined in `api/metrics/table.rs`.

use std::fmt::{Display, Write as _};

use super::table::{Metric, PREFIX};
use crate::histogram::Histogram;
use crate::order::Timestamp;

/// Media type of the text format.
pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The label values of a metric without labels.
pub(super) const UNLABELLED: [&str; 0] = [];

/// The value of a sample.
pub(super) enum Value<'a> {
    Count(u64),
    Real(f64),
    /// A histogram with the upper bounds of its buckets. `scale` is the number of their units in
    /// one unit of the metric.
    Histogram {
        histogram: &'a Histogram,
        bounds: &'a [u64],
        scale: f64,
    },
}

/// Metrics in the text format, in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct Exposition {
    pub text: String,
}

impl Exposition {
    /// Adds the samples of a metric, each with the values of its labels. Omits a metric without
    /// samples.
    pub fn add<'a, L: Display, const N: usize>(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = ([L; N], Value<'a>)>,
    ) {
        debug_assert_eq!(metric.labels.len(), N, "{}", metric.name);
        let name = format!("{PREFIX}{}", metric.name);
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_some() {
            let (help, kind) = (metric.help, metric.kind);
            self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
        }
        for (values, value) in samples {
            let labels = metric.labels.iter().zip(values);
            let labels: Vec<_> = labels
                .map(|(name, value)| format!("{name}=\"{value}\""))
                .collect();
            let written = match labels.join(",") {
                labels if labels.is_empty() => labels,
                labels => format!("{{{labels}}}"),
            };
            match value {
                Value::Count(count) => self.line(format_args!("{name}{written} {count}")),
                Value::Real(value) => self.line(format_args!("{name}{written} {}", real(value))),
                Value::Histogram {
                    histogram,
                    bounds,
                    scale,
                } => {
                    let sum = real(histogram.sum() as f64 / scale);
                    let count = histogram.total();
                    self.line(format_args!("{name}_sum{written} {sum}"));
                    self.line(format_args!("{name}_count{written} {count}"));
                    let infinite = std::iter::once("+Inf".to_owned());
                    let within = bounds.iter().map(|bound| real(*bound as f64 / scale));
                    let mut cumulative = 0;
                    for (bound, count) in within.chain(infinite).zip(histogram.counts(bounds)) {
                        cumulative += count;
                        let mut all = vec![format!("le=\"{bound}\"")];
                        all.extend(labels.iter().cloned());
                        let all = all.join(",");
                        self.line(format_args!("{name}_bucket{{{all}}} {cumulative}"));
                    }
                }
            }
        }
    }

    /// Adds a metric without labels, unless its value is unknown.
    pub fn one(&mut self, metric: &Metric, value: Option<f64>) {
        self.add(metric, value.map(|value| (UNLABELLED, Value::Real(value))));
    }

    /// Adds a timestamp, in seconds since 1970, unless it is unknown.
    pub fn timestamp(&mut self, metric: &Metric, at: Option<Timestamp>) {
        self.one(metric, at.map(|at| at.0 as f64 / 1_000.0));
    }

    fn line(&mut self, line: impl Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{line}");
    }
}

/// Formats a number with a decimal point, to distinguish it from a count.
fn real(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.1}")
    } else {
        value.to_string()
    }
}

//! Metrics as text: Prometheus' own format, version 0.0.4, which everything that scrapes can read.
//!
//! The library writes the names, labels and numbers. Its own format is OpenMetrics, in which a
//! counter is declared without `_total`; here a counter is declared by its full name, and there
//! are no lines for units and for the end.

use std::collections::HashMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use crate::order::Timestamp;
use crate::spread::Histogram;

/// What all names begin with.
const PREFIX: &str = "order_service";

/// The text's media type.
pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Names and values that tell one sample from others of the same metric.
pub(super) type Labels = Vec<(&'static str, String)>;

/// The label of this name.
pub(super) fn label(name: &'static str, value: impl Into<String>) -> Labels {
    vec![(name, value.into())]
}

/// A histogram's values and what they are in.
#[derive(Clone, Debug)]
pub(super) struct Scaled<'a> {
    pub histogram: &'a Histogram,
    pub bounds: &'a [u64],
    /// So many of its unit make one of the unit that is told.
    pub scale: f64,
}

/// Metrics in the order in which they are told.
#[derive(Debug, Default)]
pub(super) struct Metrics(Vec<Metric>);

#[derive(Debug)]
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    samples: Vec<(Labels, Value)>,
}

#[derive(Debug)]
enum Value {
    Whole(u64),
    Real(f64),
    Histogram {
        sum: f64,
        count: u64,
        buckets: Vec<(f64, u64)>,
    },
}

impl Metrics {
    /// Something that only rises; its name ends in `_total`.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, u64)>,
    ) {
        let whole = |(labels, value)| (labels, Value::Whole(value));
        self.push(
            name,
            help,
            MetricType::Counter,
            samples.into_iter().map(whole),
        );
    }

    /// Something that rises and falls.
    pub fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        let real = |(labels, value)| (labels, Value::Real(value));
        self.push(name, help, MetricType::Gauge, samples.into_iter().map(real));
    }

    /// The same without labels. Of what is not known, nothing is told.
    pub fn one(&mut self, name: &'static str, help: &'static str, value: Option<f64>) {
        self.gauge(name, help, value.map(|value| (Labels::new(), value)));
    }

    /// A moment, in seconds since 1970.
    pub fn moment(&mut self, name: &'static str, help: &'static str, at: Option<Timestamp>) {
        self.one(name, help, at.map(|at| at.0 as f64 / 1_000.0));
    }

    /// How values are spread.
    pub fn histogram<'a>(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, Scaled<'a>)>,
    ) {
        let samples = samples.into_iter().map(|(labels, scaled)| {
            let bounds = scaled.bounds.iter();
            let bounds = bounds.map(|bound| *bound as f64 / scaled.scale);
            let counts = scaled.histogram.counts(scaled.bounds);
            let value = Value::Histogram {
                sum: scaled.histogram.sum() as f64 / scaled.scale,
                count: scaled.histogram.len(),
                buckets: bounds.chain([f64::INFINITY]).zip(counts).collect(),
            };
            (labels, value)
        });
        self.push(name, help, MetricType::Histogram, samples);
    }

    fn push(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: MetricType,
        samples: impl Iterator<Item = (Labels, Value)>,
    ) {
        self.0.push(Metric {
            name,
            help,
            kind,
            samples: samples.collect(),
        });
    }

    /// All of them as text.
    pub fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        text::encode_registry(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in self.0.iter().filter(|metric| !metric.samples.is_empty()) {
            let mut family =
                encoder.encode_descriptor(metric.name, metric.help, None, metric.kind)?;
            for (labels, value) in &metric.samples {
                if labels.is_empty() {
                    value.encode(&mut family)?;
                } else {
                    value.encode(&mut family.encode_family(labels)?)?;
                }
            }
        }
        Ok(())
    }
}

impl Value {
    fn encode(&self, sample: &mut MetricEncoder<'_>) -> fmt::Result {
        match self {
            // Written as a gauge is: a counter would be given another `_total`.
            Self::Whole(value) => sample.encode_gauge(value),
            Self::Real(value) => sample.encode_gauge(value),
            Self::Histogram {
                sum,
                count,
                buckets,
            } => {
                let none: Option<&HashMap<usize, Exemplar<NoLabelSet, f64>>> = None;
                sample.encode_histogram(*sum, *count, buckets, none)
            }
        }
    }
}

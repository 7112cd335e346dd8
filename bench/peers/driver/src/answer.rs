//! The answer of a measured program: one line of JSON.

use hdrhistogram::Histogram;
use serde::Deserialize;
use serde::Serialize;

/// What a command found out.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Answer {
    /// Steps that ran, or tasks that were enqueued.
    pub count: u64,
    /// From the start of the worker (or of the producers) until there was nothing left to do.
    pub seconds: f64,
    /// For [`crate::Command::Drain`]: seconds from the start until each part of the steps had run.
    pub marks: Vec<f64>,
    /// Delays, where the steps measured them.
    pub latency: Option<Latency>,
    /// How long the calls that enqueue took, commit included.
    pub call: Option<Latency>,
}

/// A distribution of delays, in microseconds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Latency {
    /// Delays.
    pub count: u64,
    /// The median.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The longest.
    pub max: u64,
    /// Pairs of percentile and delay, for plots.
    pub curve: Vec<(f64, u64)>,
}

/// The distribution in a histogram.
pub fn latency(histogram: &Histogram<u64>) -> Latency {
    let percentiles = [1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0];
    Latency {
        count: histogram.len(),
        p50: histogram.value_at_quantile(0.5),
        p99: histogram.value_at_quantile(0.99),
        max: histogram.max(),
        curve: percentiles.map(|p| (p, histogram.value_at_percentile(p))).to_vec(),
    }
}

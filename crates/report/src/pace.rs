//! How fast a stage works: what its loop measures of itself, and what follows for others like it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Speed of the units of a stage on one rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// What is counted, such as `steps` or `batches`.
    pub unit: String,
    /// Units of rank 0 in this attempt.
    pub units: u64,
    /// Units behind the median: without the first, which pays for what is loaded late.
    pub steady: u64,
    /// Median seconds of a unit.
    pub seconds: f64,
    /// Ends of the middle eighty percent.
    pub low: f64,
    /// See `low`.
    pub high: f64,
    /// Seconds of the process that went into anything else: starting, loading, checking, committing, ending.
    pub overhead: f64,
    /// Seconds of the process.
    pub total: f64,
}

impl Pace {
    /// From seconds per unit, the first one apart, over a process of `total` seconds; none if nothing was finished.
    pub fn of(unit: &str, first: Option<f64>, steady: &[f64], units: u64, total: f64) -> Option<Self> {
        let mut sorted = if steady.is_empty() { vec![first?] } else { steady.to_vec() };
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| sorted[((sorted.len() - 1) as f64 * part).round() as usize];
        let middle = sorted.len() / 2;
        let seconds = match sorted.len() % 2 {
            0 => (sorted[middle - 1] + sorted[middle]) / 2.,
            _ => sorted[middle],
        };
        Some(Self {
            unit: unit.to_string(),
            units,
            steady: steady.len() as u64,
            seconds,
            low: at(0.1),
            high: at(0.9),
            overhead: (total - units as f64 * seconds).max(0.),
            total,
        })
    }
}

/// What a rehearsal of a stage tells: a few real units of it, whose results were thrown away.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rehearsal {
    /// Its speed.
    pub pace: Pace,
    /// Ranks that worked at the same time.
    pub ranks: usize,
    /// Largest resident memory of a rank, bytes.
    pub peak_memory: u64,
    /// Memory that its GPU had given to the rank that used most, bytes; none on CPUs.
    pub gpu_memory: Option<u64>,
    /// All memory of that GPU, bytes.
    pub gpu_total: Option<u64>,
    /// Host of rank 0.
    pub host: String,
    /// CPU model.
    pub cpu: String,
    /// What decides bits and speed on this machine, by name.
    pub machine: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_unit_is_overhead_unless_it_is_the_only_one() {
        let pace = Pace::of("steps", Some(5.), &[1., 3., 2.], 4, 15.).unwrap();
        assert_eq!((pace.seconds, pace.steady, pace.overhead), (2., 3, 7.));
        assert_eq!((pace.low, pace.high), (1., 3.));
        let pace = Pace::of("seeds", Some(5.), &[], 1, 6.).unwrap();
        assert_eq!((pace.seconds, pace.steady, pace.overhead), (5., 0, 1.));
        assert_eq!(Pace::of("steps", None, &[], 0, 1.), None);
        assert_eq!(Pace::of("steps", None, &[1., 2.], 2, 1.).map(|pace| pace.overhead), Some(0.));
    }
}

//! The times of a stage's units, as its loop passes them.

use super::{Step, lock};
use equipoise_report::pace::Pace;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Durations kept: more tell nothing new.
const KEPT: usize = 4096;

/// Notes when units are finished.
pub(super) struct Pacer {
    noted: Mutex<Noted>,
    /// A rehearsal ends when its units have taken so long.
    enough: Option<Duration>,
}

struct Noted {
    unit: &'static str,
    units: u64,
    last: Instant,
    first: Option<f64>,
    steady: Vec<f64>,
    /// Of all but the first.
    worked: Duration,
    satisfied: bool,
}

impl Default for Pacer {
    fn default() -> Self {
        let noted = Noted {
            unit: "",
            units: 0,
            last: Instant::now(),
            first: None,
            steady: Vec::new(),
            worked: Duration::ZERO,
            satisfied: false,
        };
        Self { noted: Mutex::new(noted), enough: None }
    }
}

impl Pacer {
    /// For a rehearsal of about so long.
    pub(super) fn until(enough: Duration) -> Self {
        Self { enough: Some(enough), ..Self::default() }
    }

    /// Whether it is for a rehearsal.
    pub(super) fn is_rehearsal(&self) -> bool {
        self.enough.is_some()
    }

    /// Whether the rehearsal has measured enough.
    pub(super) fn is_satisfied(&self) -> bool {
        lock(&self.noted).satisfied
    }

    /// `units` were finished since the last call.
    fn passed(&self, unit: &'static str, units: u64) {
        let took = lock(&self.noted).last.elapsed();
        self.measured(unit, units, took);
    }

    /// `units` took so long.
    fn measured(&self, unit: &'static str, units: u64, took: Duration) {
        /// A rehearsal measures at least so many beside the first, as long as there are any.
        const LEAST: usize = 2;
        let noted = &mut *lock(&self.noted);
        noted.last = Instant::now();
        if units == 0 {
            return;
        }
        (noted.unit, noted.units) = (unit, noted.units + units);
        let each = took.as_secs_f64() / units as f64;
        if noted.first.is_none() {
            noted.first = Some(each);
            return;
        }
        noted.worked += took;
        if noted.steady.len() < KEPT {
            noted.steady.push(each);
        }
        noted.satisfied |=
            noted.steady.len() >= LEAST && self.enough.is_some_and(|enough| noted.worked >= enough);
    }

    /// The pace in a process of `total` seconds.
    pub(super) fn pace(&self, total: f64) -> Option<Pace> {
        let noted = lock(&self.noted);
        let mut pace = Pace::of(noted.unit, noted.first, &noted.steady, noted.units, total)?;
        if self.is_rehearsal() && pace.steady > 0 {
            // So few units may be far from their median; what they took is no overhead.
            pace.overhead = (total - noted.worked.as_secs_f64() - pace.seconds).max(0.);
        }
        Some(pace)
    }
}

impl Step {
    /// Notes that this rank has finished `units` since it last said so. In a rehearsal that has measured enough it
    /// raises the stop flag.
    pub fn passed(&self, unit: &'static str, units: u64) {
        self.pacer.passed(unit, units);
        self.end_rehearsal();
    }

    /// Notes that this rank has finished `units` in so long.
    pub fn measured(&self, unit: &'static str, units: u64, took: Duration) {
        self.pacer.measured(unit, units, took);
        self.end_rehearsal();
    }

    fn end_rehearsal(&self) {
        if self.pacer.is_satisfied() {
            self.stop.raise();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rehearsal_wants_two_steady_units_and_its_time() {
        let second = Duration::from_secs(1);
        let pacer = Pacer::until(second * 3);
        for satisfied in [false, false, true, true] {
            pacer.measured("steps", 1, second * 2);
            assert_eq!(pacer.is_satisfied(), satisfied);
        }
        let pace = pacer.pace(10.).unwrap();
        assert_eq!((pace.units, pace.steady, pace.seconds, pace.overhead), (4, 3, 2., 2.));
        pacer.measured("steps", 1, second * 5);
        assert_eq!(pacer.pace(20.).unwrap().overhead, 20. - 11. - 2.);
        let endless = Pacer::default();
        (0..9).for_each(|_| endless.measured("steps", 2, second * 9));
        assert!(!endless.is_satisfied() && !endless.is_rehearsal());
        assert_eq!(endless.pace(100.).unwrap().seconds, 4.5);
    }
}

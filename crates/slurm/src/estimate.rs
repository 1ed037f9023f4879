//! How long a stage takes: in hours of ranks, and in attempts at a time limit.

use std::time::Duration;

/// What an attempt spends on starting: modules, libraries, weights, verification of what is there.
const STARTUP: f64 = 60.0;

/// Measured throughput of a stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Units per second.
    pub rate: f64,
    /// Ranks that made them.
    pub ranks: usize,
}

/// Seconds that `units` take on `ranks` ranks; each rank is taken to be as fast as those measured.
pub fn seconds(units: u64, measured: Measured, ranks: u32) -> Option<f64> {
    let each = measured.rate / measured.ranks.max(1) as f64;
    (each > 0.0 && each.is_finite()).then(|| units as f64 / (each * f64::from(ranks.max(1))))
}

/// Attempts that work of so many seconds takes when each may last until `lead` seconds before `limit`.
pub fn attempts(seconds: f64, limit: Duration, lead: u32) -> u64 {
    let useful = (limit.as_secs_f64() - f64::from(lead) - STARTUP).max(1.0);
    ((seconds / useful).ceil() as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_share_and_limits_divide() {
        let measured = Measured { rate: 20.0, ranks: 2 };
        assert_eq!(seconds(36_000, measured, 4), Some(900.0));
        assert_eq!(seconds(1, Measured { rate: 0.0, ranks: 1 }, 1), None);
        assert_eq!(attempts(7200.0, Duration::from_secs(3600), 300), 3);
        assert_eq!(attempts(0.0, Duration::from_secs(3600), 300), 1);
        assert_eq!(
            attempts(10.0, Duration::from_secs(10), 300),
            10,
            "a limit below the lead leaves next to nothing"
        );
    }
}

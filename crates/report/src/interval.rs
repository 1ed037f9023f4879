//! Means with the spread that a reader needs to believe them.

use serde::Serialize;

/// Mean of repeated measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Number of measurements.
    pub n: usize,
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation (n - 1); 0 for one measurement.
    pub std: f64,
    /// Half width of the 95 % t-interval of the mean; infinite for one measurement.
    #[serde(serialize_with = "finite")]
    pub half_width: f64,
}

/// JSON has no infinity.
fn finite<S: serde::Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() { serializer.serialize_f64(*value) } else { serializer.serialize_none() }
}

/// 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom.
const T: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

impl Interval {
    /// `None` without measurements.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        if n == 1 {
            return Some(Self { n, mean, std: 0., half_width: f64::INFINITY });
        }
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let std = (squares / (n - 1) as f64).sqrt();
        let quantile = T.get(n - 2).copied().unwrap_or(1.96);
        Some(Self { n, mean, std, half_width: quantile * std / (n as f64).sqrt() })
    }

    /// Lower end.
    pub fn low(&self) -> f64 {
        self.mean - self.half_width
    }

    /// Upper end.
    pub fn high(&self) -> f64 {
        self.mean + self.half_width
    }

    /// Welch's interval of `self - other`, for measurements that are not paired.
    pub fn minus(&self, other: &Self) -> Self {
        let (a, b) = (self.std.powi(2) / self.n as f64, other.std.powi(2) / other.n as f64);
        let mean = self.mean - other.mean;
        let std = (self.std.powi(2) + other.std.powi(2)).sqrt();
        if self.n < 2 || other.n < 2 {
            return Self { n: self.n.min(other.n), mean, std, half_width: f64::INFINITY };
        }
        // Welch-Satterthwaite; rounded down, which widens the interval.
        let freedom = (a + b).powi(2) / (a * a / (self.n - 1) as f64 + b * b / (other.n - 1) as f64);
        let freedom =
            if freedom.is_finite() { freedom.floor().max(1.) as usize } else { self.n + other.n - 2 };
        let quantile = T.get(freedom - 1).copied().unwrap_or(1.96);
        Self { n: self.n.min(other.n), mean, std, half_width: quantile * (a + b).sqrt() }
    }

    /// Whether the interval leaves out 0.
    pub fn is_clear(&self) -> bool {
        self.mean.abs() > self.half_width
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn textbook_values() {
        let interval = Interval::of(&[1., 2., 3., 4.]).unwrap();
        assert!((interval.mean - 2.5).abs() < 1e-12);
        assert!((interval.std - 1.2909944487).abs() < 1e-9);
        assert!((interval.half_width - 3.182 * 1.2909944487 / 2.).abs() < 1e-6);
        assert_eq!(Interval::of(&[]), None);
        assert!(!Interval::of(&[5.]).unwrap().is_clear());
    }

    #[test]
    fn a_clear_difference_is_clear_and_noise_is_not() {
        let low = Interval::of(&[0.50, 0.52, 0.51]).unwrap();
        let high = Interval::of(&[0.70, 0.71, 0.72]).unwrap();
        assert!(high.minus(&low).is_clear());
        let wide = Interval::of(&[0.2, 0.8, 0.5]).unwrap();
        assert!(!wide.minus(&low).is_clear());
    }
}

//! How many images each class keeps: the long-tail profiles.

use equipoise_base::{Result, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Number of images per class, by rank (rank 0 is the head of the tail).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Profile {
    /// Exponential decay from the head to `head / imbalance_factor`, as CIFAR-LT (Cao et al. 2019).
    Exponential {
        /// Images of the most frequent class.
        head: u64,
        /// Head count over tail count, at least 1.
        imbalance_factor: f64,
    },
    /// Explicit counts, one per rank.
    Counts {
        /// Images per rank.
        counts: Vec<u64>,
    },
    /// The same number for every class.
    PerClass {
        /// Images per class.
        n: u64,
    },
    /// Every image there is.
    All {},
}

impl Default for Profile {
    fn default() -> Self {
        Self::All {}
    }
}

impl Profile {
    /// Images to keep per rank, `None` where all are kept.
    ///
    /// # Errors
    /// 78 when the profile does not fit `classes` classes.
    pub fn counts(&self, classes: usize) -> Result<Option<Vec<u64>>> {
        match self {
            Self::Exponential { head, imbalance_factor } => {
                exponential(classes, *head, *imbalance_factor).map(Some)
            }
            Self::Counts { counts } => {
                let given = counts.len();
                ensure!(given == classes, Config, "profile.counts has {given} counts for {classes} classes");
                Ok(Some(counts.clone()))
            }
            Self::PerClass { n } => Ok(Some(vec![*n; classes])),
            Self::All {} => Ok(None),
        }
    }
}

/// Counts `trunc(head * (1/imbalance_factor)^(c/(C-1)))` in float64, as `imbalance_cifar.py` of LDAM-DRW.
///
/// The order of operations is that of the reference, since truncation makes the last bit visible: the equivalent
/// formula of the M2m code differs by one image in the last class of CIFAR-100-LT at factor 10.
///
/// # Errors
/// 78 unless `imbalance_factor` is finite and at least 1 and there is a class.
pub fn exponential(classes: usize, head: u64, imbalance_factor: f64) -> Result<Vec<u64>> {
    if !(imbalance_factor.is_finite() && imbalance_factor >= 1.0) {
        bail!(Config, "profile.imbalance_factor is {imbalance_factor}: it must be at least 1");
    }
    ensure!(classes > 0, Config, "a long-tail profile needs at least one class");
    let tail = 1.0 / imbalance_factor;
    let last = (classes - 1).max(1) as f64;
    Ok((0..classes).map(|c| (head as f64 * tail.powf(c as f64 / last)) as u64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Totals that the CIFAR-LT papers print.
    #[test]
    fn cifar_totals() {
        let total =
            |classes, head, factor| -> u64 { exponential(classes, head, factor).unwrap().iter().sum() };
        assert_eq!([10., 50., 100., 200.].map(|f| total(10, 5000, f)), [20431, 13996, 12406, 11203]);
        assert_eq!([10., 50., 100., 200.].map(|f| total(100, 500, f)), [19573, 12608, 10847, 9502]);
    }

    #[test]
    fn cifar10_at_factor_100() {
        let expected = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50];
        assert_eq!(exponential(10, 5000, 100.0).unwrap(), expected);
    }

    #[test]
    fn one_class_keeps_its_head() {
        assert_eq!(exponential(1, 70, 10.0).unwrap(), [70]);
    }

    #[test]
    fn misfits_are_configuration_errors() {
        assert!(exponential(10, 10, 0.5).is_err());
        assert!(exponential(10, 10, f64::NAN).is_err());
        assert!(Profile::Counts { counts: vec![1, 2] }.counts(3).is_err());
    }

    #[test]
    fn unknown_keys_are_refused() {
        let parse = |text: &str| serde_json::from_str::<Profile>(text);
        assert!(parse(r#"{"kind": "all", "n": 3}"#).is_err());
        assert!(parse(r#"{"kind": "per_class", "n": 3, "m": 1}"#).is_err());
        assert_eq!(parse(r#"{"kind": "per_class", "n": 3}"#).unwrap(), Profile::PerClass { n: 3 });
    }
}

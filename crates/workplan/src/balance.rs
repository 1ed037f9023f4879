//! How many synthetic images each class gets: balancing (FG, seed 002) and Add/Only/Random-n (SynBalance, seed 000).

use equipoise_base::rng::Key;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Plan of a training set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum PlanConfig {
    /// Real images plus as many synthetic ones as bring each class to `n`; larger classes stay as they are.
    BalanceTo {
        /// Images per class afterwards.
        n: u64,
    },
    /// As `balance_to`, but for each group, a class in a context: those without any real image too (seed 002 on NICO++).
    BalanceGroupsTo {
        /// Images per group afterwards.
        n: u64,
    },
    /// Real images plus `n` synthetic ones per class.
    Add {
        /// Synthetic images per class.
        n: u64,
    },
    /// `n` synthetic images per class and no real ones.
    Only {
        /// Synthetic images per class.
        n: u64,
    },
    /// Real images plus `n` extra draws with replacement from the real ones: the control without synthesis.
    Random {
        /// Extra draws per class.
        n: u64,
    },
}

/// The images of one class in a training set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassPlan {
    /// Distinct real images used.
    pub real: u64,
    /// Extra draws with replacement from the real images.
    pub extra_real: u64,
    /// Synthetic images.
    pub synthetic: u64,
}

/// The images of every class in a training set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// By class or group.
    pub classes: Vec<ClassPlan>,
}

impl PlanConfig {
    /// The plan for a class with `count` real images. A class without any has no extra draws either.
    pub fn class(self, count: u64) -> ClassPlan {
        let real = ClassPlan { real: count, ..ClassPlan::default() };
        match self {
            Self::BalanceTo { n } | Self::BalanceGroupsTo { n } => {
                ClassPlan { synthetic: n.saturating_sub(count), ..real }
            }
            Self::Add { n } => ClassPlan { synthetic: n, ..real },
            Self::Only { n } => ClassPlan { synthetic: n, ..ClassPlan::default() },
            Self::Random { n } => ClassPlan { extra_real: if count == 0 { 0 } else { n }, ..real },
        }
    }

    /// Whether the counts that it completes are those of groups, not of classes.
    pub fn is_by_group(self) -> bool {
        matches!(self, Self::BalanceGroupsTo { .. })
    }

    /// The plan for a data set with these counts, of classes or of groups.
    pub fn plan(self, counts: &[u64]) -> Plan {
        Plan { classes: counts.iter().map(|&count| self.class(count)).collect() }
    }
}

impl Plan {
    /// Sums over classes.
    pub fn totals(&self) -> ClassPlan {
        self.classes.iter().fold(ClassPlan::default(), |sum, class| ClassPlan {
            real: sum.real + class.real,
            extra_real: sum.extra_real + class.extra_real,
            synthetic: sum.synthetic + class.synthetic,
        })
    }

    /// Synthetic images by class: what is to be generated.
    pub fn synthetic(&self) -> Vec<u64> {
        self.classes.iter().map(|class| class.synthetic).collect()
    }
}

/// Which of a class's `count` real images the extra draws repeat: positions within the class, in draw order.
///
/// # Panics
/// If draws are asked for from no images, which [`PlanConfig::class`] never plans.
pub fn extra_draws(seed: u64, class: u32, count: u64, draws: u64) -> Vec<u64> {
    let draw = |index| Key::new(seed, "extra_real").class(class.into()).index(index).stream().below(count);
    (0..draws).map(draw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imagenet_lt() -> Vec<u64> {
        let text = include_str!("../../../configs/classes/imagenet-lt-counts.txt");
        text.lines().filter(|line| !line.starts_with('#')).map(|line| line.parse().unwrap()).collect()
    }

    /// The count of the FG paper for 1,300 images per class.
    #[test]
    fn imagenet_lt_needs_1_184_154_images() {
        let totals = PlanConfig::BalanceTo { n: 1300 }.plan(&imagenet_lt()).totals();
        assert_eq!(totals, ClassPlan { real: 115_846, extra_real: 0, synthetic: 1_184_154 });
    }

    /// The count of the FG paper for NICO++: 360 groups of at most 811 images, 62,657 in all, some empty. The counts
    /// themselves are not published, and any that keep these three facts need as many images.
    #[test]
    fn nico_needs_229_303_images() {
        let mut counts = vec![0; 360];
        counts[7] = 811;
        let mut left = 62_657 - 811;
        for count in counts.iter_mut().skip(8) {
            *count = (left / 7).clamp(1, 811).min(left);
            left -= *count;
        }
        assert_eq!((left, counts.iter().sum::<u64>(), counts.contains(&0)), (0, 62_657, true));
        let plan = PlanConfig::BalanceGroupsTo { n: 811 };
        assert_eq!((plan.plan(&counts).totals().synthetic, plan.is_by_group()), (229_303, true));
    }

    #[test]
    fn the_four_plans() {
        let class = |config: PlanConfig, count| {
            let ClassPlan { real, extra_real, synthetic } = config.class(count);
            [real, extra_real, synthetic]
        };
        assert_eq!(class(PlanConfig::BalanceTo { n: 10 }, 3), [3, 0, 7]);
        assert_eq!(class(PlanConfig::BalanceTo { n: 10 }, 30), [30, 0, 0]);
        assert_eq!(class(PlanConfig::Add { n: 10 }, 3), [3, 0, 10]);
        assert_eq!(class(PlanConfig::Only { n: 10 }, 3), [0, 0, 10]);
        assert_eq!(class(PlanConfig::Random { n: 10 }, 3), [3, 10, 0]);
        assert_eq!(class(PlanConfig::Random { n: 10 }, 0), [0, 0, 0]);
    }

    #[test]
    fn extra_draws_extend() {
        let draws = extra_draws(1, 2, 5, 40);
        assert_eq!(draws[..10], extra_draws(1, 2, 5, 10));
        assert!(draws.iter().all(|&index| index < 5) && (0..5).all(|index| draws.contains(&index)));
    }

    #[test]
    fn configuration_is_strict() {
        let parse = |text: &str| serde_json::from_str::<PlanConfig>(text);
        assert_eq!(parse(r#"{"kind": "balance_to", "n": 400}"#).unwrap(), PlanConfig::BalanceTo { n: 400 });
        assert!(parse(r#"{"kind": "add", "n": 4, "m": 1}"#).is_err());
        assert!(parse(r#"{"kind": "add", "n": -4}"#).is_err());
    }
}

//! How useful an image is for a classifier (Askari Hemmat et al., "Feedback-guided data synthesis", Eq. 2-6).

use crate::view::View;
use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// The quantity that guidance raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Criterion {
    /// -ln p(y | x): images that the classifier gets wrong (Eq. 2-3).
    Loss,
    /// Entropy of the predicted classes in nats: images that it is unsure about (Eq. 4).
    Entropy,
    /// Negative log density of the features in the class's normal distribution (Eq. 5-6).
    Hardness,
}

/// Which covariance hardness measures deviations with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Covariance {
    /// One of all classes together, of features centred by class: the only one that a handful of images can give.
    #[default]
    Pooled,
    /// Each class its own.
    PerClass,
}

/// Normal distributions that hardness models the classes by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HardnessConfig {
    /// Whose covariance.
    pub covariance: Covariance,
    /// Added to the diagonal of the covariance before it is inverted.
    pub shrinkage: f64,
}

impl Default for HardnessConfig {
    /// A class with fewer images than features has a singular covariance, so some shrinkage is a must.
    fn default() -> Self {
        Self { covariance: Covariance::Pooled, shrinkage: 1e-2 }
    }
}

/// The classifier that gives feedback; differentiable in its input, one sample never touching another.
pub trait Guide {
    /// Logits [N, K].
    fn logits(&self, x: &Tensor) -> Tensor;
    /// Features before the last layer [N, D].
    fn features(&self, x: &Tensor) -> Tensor;
}

/// A classifier that looks at the generator's images through a [`View`].
pub struct Viewed<'a> {
    guide: &'a dyn Guide,
    view: &'a View,
}

impl<'a> Viewed<'a> {
    /// Puts `view` in front of `guide`.
    pub fn new(guide: &'a dyn Guide, view: &'a View) -> Self {
        Self { guide, view }
    }
}

impl Guide for Viewed<'_> {
    fn logits(&self, x: &Tensor) -> Tensor {
        self.guide.logits(&self.view.apply(x))
    }

    fn features(&self, x: &Tensor) -> Tensor {
        self.guide.features(&self.view.apply(x))
    }
}

/// What the criterion compares each sample of a batch with.
#[derive(Debug)]
pub struct Targets {
    /// Labels [N] int64.
    pub labels: Tensor,
    /// Normal distribution of each sample's class; needed for hardness only.
    pub statistics: Option<ClassStatistics>,
}

/// Normal distributions of features, one per sample; a first size of 1 is shared by the batch (its only class, or a
/// pooled covariance).
#[derive(Debug)]
pub struct ClassStatistics {
    /// Mean [N or 1, D].
    pub mu: Tensor,
    /// Inverse of the covariance [N or 1, D, D].
    pub cov_inv: Tensor,
    /// Logarithm of the covariance's determinant [N or 1].
    pub logdet: Tensor,
}

impl Criterion {
    /// # Errors
    /// 78 if hardness has no statistics.
    pub(crate) fn check(self, targets: &Targets) -> Result<()> {
        ensure!(
            self != Criterion::Hardness || targets.statistics.is_some(),
            Config,
            "criterion 'hardness' needs the feature statistics of the classes"
        );
        Ok(())
    }

    /// Value per sample [N] for generator images `x` [N, C, H, W].
    ///
    /// # Panics
    /// If hardness has no statistics.
    pub fn evaluate(self, guide: &dyn Guide, x: &Tensor, targets: &Targets) -> Tensor {
        let sum = |x: Tensor| x.sum_dim_intlist(-1, false, None::<Kind>);
        match self {
            Criterion::Loss => {
                let log_p = guide.logits(x).log_softmax(-1, None::<Kind>);
                -log_p.gather(1, &targets.labels.unsqueeze(1), false).squeeze_dim(1)
            }
            Criterion::Entropy => {
                let log_p = guide.logits(x).log_softmax(-1, None::<Kind>);
                -sum(log_p.exp() * log_p)
            }
            Criterion::Hardness => {
                let statistics =
                    targets.statistics.as_ref().unwrap_or_else(|| panic!("hardness without statistics"));
                let deviation = guide.features(x) - &statistics.mu;
                let product = deviation.unsqueeze(1).matmul(&statistics.cov_inv).squeeze_dim(1);
                let constant = deviation.size()[1] as f64 * std::f64::consts::TAU.ln();
                (sum(product * &deviation) + &statistics.logdet + constant) * 0.5
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    struct Identity;

    impl Guide for Identity {
        fn logits(&self, x: &Tensor) -> Tensor {
            x.flatten(1, -1)
        }
        fn features(&self, x: &Tensor) -> Tensor {
            x.flatten(1, -1)
        }
    }

    fn targets() -> Targets {
        let eye = Tensor::eye(4, (Kind::Double, Device::Cpu));
        let statistics = ClassStatistics {
            mu: Tensor::ones([1, 4], (Kind::Double, Device::Cpu)),
            cov_inv: (&eye * 0.5).unsqueeze(0),
            logdet: Tensor::from_slice(&[4. * 2f64.ln()]),
        };
        Targets { labels: Tensor::from_slice(&[2i64, 0]), statistics: Some(statistics) }
    }

    #[test]
    fn values_in_closed_form() {
        let x = Tensor::from_slice(&[0f64, 0., 0., 0., 3., 1., 1., 1.]).view([2, 4, 1, 1]);
        let value = |criterion: Criterion, sample| {
            criterion.evaluate(&Identity, &x, &targets()).double_value(&[sample])
        };
        let z = 3f64.exp() + 3. * 1f64.exp();
        let (high, low) = (3f64.exp() / z, 1f64.exp() / z);
        for (got, want) in [
            (value(Criterion::Loss, 0), 4f64.ln()),
            (value(Criterion::Loss, 1), -high.ln()),
            (value(Criterion::Entropy, 0), 4f64.ln()),
            (value(Criterion::Entropy, 1), -high * high.ln() - 3. * low * low.ln()),
            (value(Criterion::Hardness, 0), 0.5 * (2. + 4. * 2f64.ln() + 4. * std::f64::consts::TAU.ln())),
            (value(Criterion::Hardness, 1), 0.5 * (2. + 4. * 2f64.ln() + 4. * std::f64::consts::TAU.ln())),
        ] {
            assert!((got - want).abs() < 1e-12, "{got} {want}");
        }
    }

    #[test]
    fn hardness_without_statistics_is_a_configuration_error() {
        let bare = Targets { labels: Tensor::from_slice(&[0i64]), statistics: None };
        assert!(Criterion::Hardness.check(&bare).is_err() && Criterion::Entropy.check(&bare).is_ok());
    }
}

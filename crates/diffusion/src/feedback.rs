//! Feedback guidance: every k-th denoising step is pushed up the gradient of a classifier criterion.
//!
//! Samples of a batch never influence each other: criteria are summed, and norms are taken per sample.

use crate::criterion::{Covariance, Criterion, Guide, HardnessConfig, Targets};
use crate::guidance::Denoiser;
use crate::prediction::{Estimate, Prediction, roots};
use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Which dependence of the predicted image on the noisy one the gradient follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GradientPath {
    /// Also through the network.
    Through,
    /// With the noise estimate held constant: cheaper, 1/sqrt(abar) large at noisy steps.
    Detached,
}

/// What is done with the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Update {
    /// eps - sqrt(1 - abar) omega grad: the score of Eq. 1 of the paper.
    Epsilon,
    /// x + omega ||x|| grad / ||grad|| with the noise estimate unchanged: the published code.
    NormMatched,
}

/// Knobs of feedback guidance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FeedbackConfig {
    /// Criterion that is raised.
    pub criterion: Criterion,
    /// Strength; 0 changes nothing.
    pub omega: f64,
    /// Applied at every n-th step ..
    pub every: usize,
    /// .. counted from this one (step 0 is the noisiest).
    pub offset: usize,
    /// Path of the gradient.
    pub path: GradientPath,
    /// Use of the gradient.
    pub update: Update,
    /// Applied only at time steps below this share of T; 1 is everywhere.
    pub max_t: f64,
    /// Covariance that hardness measures with, "pooled" if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub covariance: Option<Covariance>,
    /// Added to the diagonal of that covariance, 0.01 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shrinkage: Option<f64>,
}

impl FeedbackConfig {
    /// # Errors
    /// 78 naming the key.
    pub fn check(&self) -> Result<()> {
        let Self { omega, every, offset, max_t, .. } = *self;
        let of_hardness = self.covariance.is_some() || self.shrinkage.is_some();
        ensure!(
            self.criterion == Criterion::Hardness || !of_hardness,
            Config,
            "covariance and shrinkage are of the criterion 'hardness'"
        );
        let shrinkage = self.hardness().shrinkage;
        ensure!(
            shrinkage > 0. && shrinkage.is_finite(),
            Config,
            "shrinkage = {shrinkage}: want a number above 0"
        );
        ensure!(omega.is_finite() && omega >= 0., Config, "omega = {omega}: want a number from 0 up");
        ensure!(every >= 1, Config, "every = 0: want at least 1");
        ensure!(offset < every, Config, "offset = {offset}: want less than every = {every}");
        ensure!(max_t > 0. && max_t <= 1., Config, "max_t = {max_t}: want a share of T, above 0 and up to 1");
        Ok(())
    }

    /// What hardness models the classes by.
    pub fn hardness(&self) -> HardnessConfig {
        let default = HardnessConfig::default();
        HardnessConfig {
            covariance: self.covariance.unwrap_or(default.covariance),
            shrinkage: self.shrinkage.unwrap_or(default.shrinkage),
        }
    }
}

/// Feedback for one batch.
pub struct Feedback<'a> {
    config: FeedbackConfig,
    guide: &'a dyn Guide,
    targets: Targets,
    below: f64,
}

impl std::fmt::Debug for Feedback<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feedback").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A step's estimate after feedback.
#[derive(Debug)]
pub struct Guided {
    /// The noisy image that the scheduler steps from.
    pub x: Tensor,
    /// Estimate that it steps with.
    pub estimate: Estimate,
    /// The network's variance channels, if any.
    pub variance: Option<Tensor>,
    /// Criterion of every sample [N], before the update.
    pub criterion: Tensor,
    /// Its gradient at the noisy image [N, C, H, W].
    pub grad: Tensor,
}

impl<'a> Feedback<'a> {
    /// Feedback of `guide` to a batch with `targets`; `train_steps` is the T that `max_t` refers to.
    ///
    /// # Errors
    /// 78 if the configuration is no guidance, or hardness lacks its statistics.
    pub fn new(
        config: &FeedbackConfig,
        guide: &'a dyn Guide,
        targets: Targets,
        train_steps: i64,
    ) -> Result<Self> {
        config.check()?;
        config.criterion.check(&targets)?;
        Ok(Self { config: config.clone(), guide, targets, below: config.max_t * train_steps as f64 })
    }

    /// Whether step `index` at time step `t` is guided.
    pub fn applies(&self, index: usize, t: i64) -> bool {
        index % self.config.every == self.config.offset && (t as f64) < self.below
    }

    /// Evaluates the network, then the criterion of the image it predicts, and applies the gradient.
    pub fn guide(
        &self,
        denoiser: &dyn Denoiser,
        prediction: Prediction,
        x: &Tensor,
        t: i64,
        abar: f64,
    ) -> Guided {
        let leaf = x.detach().set_requires_grad(true);
        let (estimate, variance, criterion) = match self.config.path {
            GradientPath::Through => tch::with_grad(|| {
                let (estimate, variance) = evaluate(denoiser, prediction, &leaf, t, abar);
                let criterion = self.criterion(&estimate.x0);
                (estimate.detach(), variance.map(|v| v.detach()), criterion)
            }),
            GradientPath::Detached => {
                let (estimate, variance) = tch::no_grad(|| evaluate(denoiser, prediction, x, t, abar));
                let constant = estimate.eps.shallow_clone();
                let criterion =
                    tch::with_grad(|| self.criterion(&Estimate::from_eps(constant, &leaf, abar).x0));
                (estimate, variance, criterion)
            }
        };
        let total = tch::with_grad(|| criterion.sum(None::<Kind>));
        let grad = Tensor::run_backward(&[total], &[&leaf], false, false).remove(0);
        let (x, estimate) = tch::no_grad(|| self.update(x, estimate, &grad, abar));
        Guided { x, estimate, variance, criterion: criterion.detach(), grad }
    }

    fn criterion(&self, x0: &Tensor) -> Tensor {
        self.config.criterion.evaluate(self.guide, x0, &self.targets)
    }

    fn update(&self, x: &Tensor, estimate: Estimate, grad: &Tensor, abar: f64) -> (Tensor, Estimate) {
        let omega = self.config.omega;
        // Not even rounding may tell an omega of 0 from no guidance.
        if omega == 0. {
            return (x.shallow_clone(), estimate);
        }
        match self.config.update {
            Update::Epsilon => {
                let eps = estimate.eps - grad * (roots(abar, x.kind()).1 * omega);
                (x.shallow_clone(), Estimate::from_eps(eps, x, abar))
            }
            Update::NormMatched => {
                let moved = x + grad * (norms(x) / (norms(grad) + 1e-8) * omega);
                let estimate = Estimate::from_eps(estimate.eps, &moved, abar);
                (moved, estimate)
            }
        }
    }
}

/// The estimate at `x` and the network's variance channels.
pub(crate) fn evaluate(
    denoiser: &dyn Denoiser,
    prediction: Prediction,
    x: &Tensor,
    t: i64,
    abar: f64,
) -> (Estimate, Option<Tensor>) {
    // Under autocast the network answers in its short format; the solver's arithmetic needs the full one.
    let output = denoiser.denoise(x, t).to_kind(x.kind());
    let channels = x.size()[1];
    let extra = output.size()[1] - channels;
    let variance = (extra > 0).then(|| output.narrow(1, channels, extra));
    (prediction.estimate(&output.narrow(1, 0, channels), x, abar), variance)
}

/// Euclidean norm of every sample, [N, 1, 1, 1].
fn norms(x: &Tensor) -> Tensor {
    x.square().sum_dim_intlist([1i64, 2, 3].as_slice(), true, None::<Kind>).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applied_steps_follow_every_offset_and_window() {
        struct Nothing;
        impl Guide for Nothing {
            fn logits(&self, x: &Tensor) -> Tensor {
                x.shallow_clone()
            }
            fn features(&self, x: &Tensor) -> Tensor {
                x.shallow_clone()
            }
        }
        let config = FeedbackConfig {
            criterion: Criterion::Entropy,
            omega: 1.,
            every: 3,
            offset: 1,
            path: GradientPath::Through,
            update: Update::Epsilon,
            max_t: 0.8,
            covariance: None,
            shrinkage: None,
        };
        let targets = || Targets { labels: Tensor::from_slice(&[0i64]), statistics: None };
        let feedback = Feedback::new(&config, &Nothing, targets(), 1000).unwrap();
        let applied: Vec<usize> = (0..10).filter(|&i| feedback.applies(i, 900 - 100 * i as i64)).collect();
        assert_eq!(applied, [4, 7]);
        for broken in [
            FeedbackConfig { every: 0, offset: 0, ..config.clone() },
            FeedbackConfig { offset: 3, ..config.clone() },
            FeedbackConfig { omega: f64::NAN, ..config.clone() },
            FeedbackConfig { max_t: 0., ..config.clone() },
            FeedbackConfig { criterion: Criterion::Hardness, ..config.clone() },
            FeedbackConfig { shrinkage: Some(0.1), ..config.clone() },
        ] {
            assert!(Feedback::new(&broken, &Nothing, targets(), 1000).is_err(), "{broken:?}");
        }
    }
}

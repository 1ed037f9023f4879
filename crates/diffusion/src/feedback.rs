//! Feedback guidance: every k-th denoising step is pushed up the gradient of a classifier criterion.
//!
//! Samples of a batch never influence each other: criteria are summed, and norms are taken per sample.

use crate::criterion::{Covariance, Criterion, Guide, HardnessConfig, Targets};
use crate::decoder::{Decoder, gradient, value_and_gradient};
use crate::guidance::Denoiser;
use crate::prediction::{Estimate, Prediction, roots};
use crate::view::ViewRange;
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

/// Which output of the network the classifier's image is predicted from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pass {
    /// The one that the step uses, after classifier-free guidance.
    #[default]
    Guided,
    /// The conditional one alone: the published code, with half the memory for the gradient.
    Conditional,
}

/// How the guide looks at a step. The published code is `pass` conditional, `blend` true, `range` min_max, with `update`
/// norm_matched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LookConfig {
    /// Output that the image is predicted from.
    pub pass: Pass,
    /// Whether it sees sqrt(1 - abar) x_0 + (1 - sqrt(1 - abar)) x_t instead of the predicted image x_0.
    pub blend: bool,
    /// How images are brought to [0, 1].
    pub range: ViewRange,
    /// Whether activations are computed again instead of kept for the gradient: the same bits, slower, in the memory
    /// of the largest part of the network.
    pub checkpoint: bool,
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
    /// How the guide looks at a step.
    #[serde(default)]
    pub look: LookConfig,
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
    decoder: Option<&'a dyn Decoder>,
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
        let below = config.max_t * train_steps as f64;
        Ok(Self { config: config.clone(), guide, decoder: None, targets, below })
    }

    /// The guide looks at what `decoder` makes of the predicted latent image.
    #[must_use]
    pub fn through(self, decoder: &'a dyn Decoder) -> Self {
        Self { decoder: Some(decoder), ..self }
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
        let full = |x: &Tensor| read(&denoiser.denoise(x, t), prediction, x, abar);
        let alone = |x: &Tensor| read(&denoiser.conditional(x, t), prediction, x, abar);
        let (output, criterion, grad) = match (self.config.path, self.config.look.pass) {
            (GradientPath::Through, Pass::Guided) => self.look_through(x, abar, &full),
            (GradientPath::Through, Pass::Conditional) => {
                let output = tch::no_grad(|| full(x));
                let (_, criterion, grad) = self.look_through(x, abar, &alone);
                (output, criterion, grad)
            }
            (GradientPath::Detached, pass) => {
                let output = tch::no_grad(|| full(x));
                let constant = match pass {
                    Pass::Guided => output.estimate.eps.shallow_clone(),
                    Pass::Conditional => tch::no_grad(|| alone(x)).estimate.eps,
                };
                let held = |x: &Tensor| Output {
                    estimate: Estimate::from_eps(constant.shallow_clone(), x, abar),
                    variance: None,
                };
                let (_, criterion, grad) = self.look_through(x, abar, &held);
                (output, criterion, grad)
            }
        };
        let (x, estimate) = tch::no_grad(|| self.update(x, output.estimate, &grad, abar));
        Guided { x, estimate, variance: output.variance, criterion, grad }
    }

    /// What `network` says at `x`, the criterion [N] of the image it predicts, and the gradient at `x`; all detached.
    ///
    /// The gradient is taken in two halves, at the classifier's input and from there on. With `checkpoint` the first is
    /// done before the network keeps anything, so that never both are in memory.
    fn look_through(
        &self,
        x: &Tensor,
        abar: f64,
        network: &dyn Fn(&Tensor) -> Output,
    ) -> (Output, Tensor, Tensor) {
        let leaf = x.detach().set_requires_grad(true);
        let predict = |x: &Tensor| {
            let output = network(x);
            (self.seen(&output.estimate.x0, x, abar), output)
        };
        let before = self.config.look.checkpoint.then(|| self.look(&tch::no_grad(|| predict(x)).0));
        let (seen, output) = tch::with_grad(|| predict(&leaf));
        let (criterion, cotangent) = before.unwrap_or_else(|| self.look(&seen));
        let grad = gradient(&seen, &leaf, Some(&cotangent));
        (output.detach(), criterion, grad)
    }

    /// The image (or its latent form) that the classifier is shown.
    fn seen(&self, x0: &Tensor, x: &Tensor, abar: f64) -> Tensor {
        match self.config.look.blend {
            false => x0.shallow_clone(),
            true => {
                let share = roots(abar, x.kind()).1;
                x0 * share + x * (1. - share)
            }
        }
    }

    /// The criterion of `seen` [N] and the gradient of its sum.
    fn look(&self, seen: &Tensor) -> (Tensor, Tensor) {
        let criterion = |image: &Tensor| self.config.criterion.evaluate(self.guide, image, &self.targets);
        value_and_gradient(self.decoder, seen, self.config.look.checkpoint, &criterion)
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

/// What a network's output says.
pub(crate) struct Output {
    /// The estimate.
    pub(crate) estimate: Estimate,
    /// Variance channels, if any.
    pub(crate) variance: Option<Tensor>,
}

impl Output {
    fn detach(&self) -> Self {
        let variance = self.variance.as_ref().map(Tensor::detach);
        Self { estimate: self.estimate.detach(), variance }
    }
}

/// Reads the output [N, C or 2C, H, W] of a network at `x` [N, C, H, W].
pub(crate) fn read(output: &Tensor, prediction: Prediction, x: &Tensor, abar: f64) -> Output {
    // Under autocast the network answers in its short format; the solver's arithmetic needs the full one.
    let output = output.to_kind(x.kind());
    let channels = x.size()[1];
    let extra = output.size()[1] - channels;
    let variance = (extra > 0).then(|| output.narrow(1, channels, extra));
    Output { estimate: prediction.estimate(&output.narrow(1, 0, channels), x, abar), variance }
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
            look: LookConfig::default(),
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

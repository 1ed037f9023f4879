//! Training losses of a generator.
//!
//! Time steps, noise and dropped labels are given, keyed by identity: the loss itself is a pure function.

use crate::ddpm::{SpacedDiffusion, extract};
use crate::guidance::DenoisingNetwork;
use crate::prediction::Prediction;
use crate::schedule::{DiffusionScheduleConfig, Schedule};
use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// What a generator learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiffusionTrainConfig {
    /// Quantity that the output stands for.
    pub prediction: Prediction,
    /// Whether it also learns the reverse variance, in as many more channels (Nichol and Dhariwal 2021).
    pub learn_sigma: bool,
    /// Probability that a label is replaced by the null label, for classifier-free guidance.
    pub class_dropout: f64,
}

impl DiffusionTrainConfig {
    /// Output channels of a generator of images with `channels`.
    pub fn out_channels(&self, channels: i64) -> i64 {
        if self.learn_sigma { 2 * channels } else { channels }
    }
}

/// One micro-batch.
#[derive(Debug)]
pub struct Batch<'a> {
    /// Images [N, C, H, W] in [-1, 1].
    pub images: &'a Tensor,
    /// Labels [N] int64, `None` for an unconditional generator.
    pub labels: Option<&'a Tensor>,
    /// Which labels become the null label [N] bool, `None` for none.
    pub dropped: Option<&'a Tensor>,
    /// Time steps [N] int64.
    pub t: &'a Tensor,
    /// Standard normals, shaped as the images.
    pub noise: &'a Tensor,
}

/// The loss of a micro-batch under a schedule and a prediction.
#[derive(Debug)]
pub struct DiffusionLoss {
    chain: SpacedDiffusion,
    signal: Vec<f64>,
    noise: Vec<f64>,
    config: DiffusionTrainConfig,
    null_label: i64,
}

impl DiffusionLoss {
    /// For a generator of `classes` classes.
    ///
    /// # Errors
    /// 78 if the configuration is no training.
    pub fn new(
        schedule: &DiffusionScheduleConfig,
        config: &DiffusionTrainConfig,
        classes: i64,
    ) -> Result<Self> {
        let dropout = config.class_dropout;
        ensure!(
            (0.0..1.0).contains(&dropout),
            Config,
            "class_dropout = {dropout}: want 0 up to, not including, 1"
        );
        ensure!(
            !(schedule.rescale_betas_zero_snr && config.learn_sigma),
            Config,
            "rescale_betas_zero_snr has no finite variance to learn at the last time step: set learn_sigma = false"
        );
        let schedule = Schedule::double(schedule)?;
        let root = |value: f64| value.max(0.).sqrt();
        Ok(Self {
            signal: schedule.alphas_cumprod.iter().map(|&abar| root(abar)).collect(),
            noise: schedule.alphas_cumprod.iter().map(|&abar| root(1. - abar)).collect(),
            chain: SpacedDiffusion::new(&schedule, &schedule.len().to_string())?,
            config: config.clone(),
            null_label: classes,
        })
    }

    /// Number of time steps T: `t` is drawn from 0 to T - 1.
    pub fn timesteps(&self) -> i64 {
        self.signal.len() as i64
    }

    /// Mean loss over the micro-batch: mean squared error of the prediction plus, with a learned sigma,
    /// T/1000 times the variational bound in bits per value, whose mean is held constant (`L_hybrid`).
    ///
    /// # Errors
    /// 78 if the network's output has not the channels that the configuration asks for.
    pub fn loss(&self, network: &dyn DenoisingNetwork, batch: &Batch) -> Result<Tensor> {
        let Batch { images, t, noise, .. } = *batch;
        let (signal, scale) = (extract(&self.signal, t, images), extract(&self.noise, t, images));
        let x = images * &signal + noise * &scale;
        let labels = batch.labels.map(|labels| match batch.dropped {
            Some(dropped) => labels.masked_fill(dropped, self.null_label),
            None => labels.shallow_clone(),
        });
        // Under autocast the network answers in its short format; the bound needs the full one.
        let output = network.forward(&x, &t.to_kind(Kind::Float), labels.as_ref()).to_kind(images.kind());
        let channels = images.size()[1];
        let (have, want) = (output.size()[1], self.config.out_channels(channels));
        ensure!(
            have == want,
            Config,
            "learn_sigma = {}: the generator should have {want} output channels and has {have}",
            self.config.learn_sigma
        );
        let prediction = output.narrow(1, 0, channels);
        let target = self.config.prediction.target(images, noise, &signal, &scale);
        let mse = (&prediction - target).square().mean(None::<Kind>);
        if !self.config.learn_sigma {
            return Ok(mse);
        }
        let x0 = self.config.prediction.x0(&prediction.detach(), &x, &signal, &scale);
        let bound = self.variational_bound(images, &x, t, &x0, &output.narrow(1, channels, channels));
        Ok(mse + bound.mean(None::<Kind>) * (self.timesteps() as f64 / 1000.))
    }

    /// Terms of the variational bound per sample [N], in bits per value: the divergence of the predicted reverse
    /// step from the true one, at t = 0 the negative log likelihood of the 8-bit image.
    fn variational_bound(&self, images: &Tensor, x: &Tensor, t: &Tensor, x0: &Tensor, v: &Tensor) -> Tensor {
        let true_mean = self.chain.posterior_mean(images, x, t);
        let true_log_variance = extract(&self.chain.posterior_log_variance_clipped, t, x);
        let mean = self.chain.posterior_mean(x0, x, t);
        let log_variance = self.chain.learned_log_variance(v, t);
        let divergence = normal_kl(&true_mean, &true_log_variance, &mean, &log_variance);
        let likelihood = discretized_log_likelihood(images, &mean, &(&log_variance * 0.5));
        let bits = |x: &Tensor| x.flatten(1, -1).mean_dim(1, false, None::<Kind>) / std::f64::consts::LN_2;
        (-bits(&likelihood)).where_self(&t.eq(0), &bits(&divergence))
    }
}

/// KL divergence of two normals per value, in nats.
fn normal_kl(mean1: &Tensor, log_variance1: &Tensor, mean2: &Tensor, log_variance2: &Tensor) -> Tensor {
    let gap = log_variance1 - log_variance2;
    (gap.exp() - &gap - 1. + (mean1 - mean2).square() * (-log_variance2).exp()) * 0.5
}

/// Log probability per value of an 8-bit image scaled to [-1, 1] under a normal, with the tails at the ends.
fn discretized_log_likelihood(images: &Tensor, mean: &Tensor, log_scale: &Tensor) -> Tensor {
    let (centered, inverse) = (images - mean, (-log_scale).exp());
    let upper = normal_cdf(&((&centered + 1. / 255.) * &inverse));
    let lower = normal_cdf(&((&centered - 1. / 255.) * &inverse));
    let log = |x: Tensor| x.clamp_min(1e-12).log();
    let inside = log(&upper - &lower);
    let right = log(1. - lower).where_self(&images.gt(0.999), &inside);
    log(upper).where_self(&images.lt(-0.999), &right)
}

/// The tanh approximation of the standard normal's distribution function that the reference trains with.
fn normal_cdf(x: &Tensor) -> Tensor {
    let inner = (x + x.pow_tensor_scalar(3) * 0.044715) * (2. / std::f64::consts::PI).sqrt();
    (inner.tanh() + 1.) * 0.5
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::BetaSchedule;
    use tch::Device;

    /// Returns the same output whatever it sees, and notes the labels.
    struct Fixed(Tensor, std::cell::RefCell<Vec<i64>>);

    impl DenoisingNetwork for Fixed {
        fn forward(&self, _x: &Tensor, _t: &Tensor, y: Option<&Tensor>) -> Tensor {
            self.1.replace(y.map(|y| y.iter::<i64>().unwrap().collect()).unwrap_or_default());
            self.0.shallow_clone()
        }
    }

    fn schedule() -> DiffusionScheduleConfig {
        DiffusionScheduleConfig {
            num_train_timesteps: 1000,
            beta_schedule: BetaSchedule::Cosine,
            beta_start: 0.,
            beta_end: 0.,
            rescale_betas_zero_snr: false,
        }
    }

    fn config(prediction: Prediction, learn_sigma: bool) -> DiffusionTrainConfig {
        DiffusionTrainConfig { prediction, learn_sigma, class_dropout: 0.1 }
    }

    fn images() -> (Tensor, Tensor) {
        let images = Tensor::linspace(-1., 1., 24, (Kind::Double, Device::Cpu)).view([2, 3, 2, 2]);
        let noise = (&images * 7.3).sin();
        (images, noise)
    }

    /// Values printed by guided-diffusion (`training_losses`, RESCALED_MSE, cosine) for this output and noise.
    #[test]
    fn hybrid_loss_is_that_of_guided_diffusion() {
        let (images, noise) = images();
        let output = Tensor::linspace(-2., 2., 48, (Kind::Double, Device::Cpu)).view([2, 6, 2, 2]).cos();
        let loss = DiffusionLoss::new(&schedule(), &config(Prediction::Epsilon, true), 5).unwrap();
        for (t, want) in [([0i64, 500], (2.183239 + 0.9974395) / 2.), ([3, 999], (0.888667 + 716.55066) / 2.)]
        {
            let t = Tensor::from_slice(&t);
            let batch = Batch { images: &images, labels: None, dropped: None, t: &t, noise: &noise };
            let network = Fixed(output.shallow_clone(), Default::default());
            let got = loss.loss(&network, &batch).unwrap().double_value(&[]);
            assert!((got / want - 1.).abs() < 2e-4, "{got} {want}");
        }
    }

    #[test]
    fn a_perfect_prediction_costs_nothing() {
        let (images, noise) = images();
        let t = Tensor::from_slice(&[10i64, 900]);
        for prediction in [Prediction::Epsilon, Prediction::VPrediction, Prediction::Sample] {
            let loss = DiffusionLoss::new(&schedule(), &config(prediction, false), 5).unwrap();
            let (signal, scale) = (extract(&loss.signal, &t, &images), extract(&loss.noise, &t, &images));
            let network = Fixed(prediction.target(&images, &noise, &signal, &scale), Default::default());
            let batch = Batch { images: &images, labels: None, dropped: None, t: &t, noise: &noise };
            assert_eq!(loss.loss(&network, &batch).unwrap().double_value(&[]), 0., "{prediction:?}");
        }
    }

    #[test]
    fn dropped_labels_become_the_null_label() {
        let (images, noise) = images();
        let (t, labels) = (Tensor::from_slice(&[10i64, 900]), Tensor::from_slice(&[3i64, 4]));
        let dropped = Tensor::from_slice(&[true, false]);
        let batch =
            Batch { images: &images, labels: Some(&labels), dropped: Some(&dropped), t: &t, noise: &noise };
        let network = Fixed(images.shallow_clone(), Default::default());
        let loss = DiffusionLoss::new(&schedule(), &config(Prediction::Sample, false), 5).unwrap();
        let _ = loss.loss(&network, &batch).unwrap();
        assert_eq!(*network.1.borrow(), [5, 4]);
    }

    #[test]
    fn a_generator_without_variance_channels_is_a_configuration_error() {
        let (images, noise) = images();
        let t = Tensor::from_slice(&[10i64, 900]);
        let batch = Batch { images: &images, labels: None, dropped: None, t: &t, noise: &noise };
        let loss = DiffusionLoss::new(&schedule(), &config(Prediction::Epsilon, true), 5).unwrap();
        let network = Fixed(images.shallow_clone(), Default::default());
        assert!(loss.loss(&network, &batch).unwrap_err().message().contains("learn_sigma"));
    }
}

//! Ancestral sampling over a respaced chain: `SpacedDiffusion` of guided-diffusion.

use crate::prediction::Estimate;
use crate::respacing::respace;
use crate::sampler::Solver;
use crate::schedule::Schedule;
use equipoise_base::Result;
use equipoise_nn::runtime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Variance of a reverse step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReverseVariance {
    /// Interpolated by the network between the two fixed ones, in the logarithm (Nichol and Dhariwal 2021).
    LearnedRange,
    /// That of the posterior q(x_{t-1} | x_t, x_0).
    FixedSmall,
    /// beta_t.
    FixedLarge,
}

/// DDPM's knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DdpmConfig {
    /// Time steps kept: `"250"`, `"10,15,20"` (per section) or `"ddim25"` (integer stride).
    pub respacing: String,
    /// Variance of a reverse step; `learned_range` needs a generator trained with a learned sigma.
    pub variance: ReverseVariance,
    /// Whether the predicted image is clamped to [-1, 1] in every step.
    pub clip_denoised: bool,
}

/// A respaced chain; index 0 is the cleanest step.
#[derive(Clone, Debug)]
pub struct SpacedDiffusion {
    /// Time step of the original chain for every index: what the network is told.
    pub timestep_map: Vec<i64>,
    /// Betas and abar of the respaced chain.
    pub schedule: Schedule,
    /// Variance of q(x_{t-1} | x_t, x_0).
    pub posterior_variance: Vec<f64>,
    /// Its logarithm; the first, which would be -inf, is replaced by the second.
    pub posterior_log_variance_clipped: Vec<f64>,
    /// Weight of x_0 in the posterior mean.
    pub posterior_mean_coef1: Vec<f64>,
    /// Weight of x_t in the posterior mean.
    pub posterior_mean_coef2: Vec<f64>,
}

/// The normal distribution p(x_{t-1} | x_t).
#[derive(Debug)]
pub struct Reverse {
    /// Predicted image, clamped if asked.
    pub pred_xstart: Tensor,
    /// Mean.
    pub mean: Tensor,
    /// Variance.
    pub variance: Tensor,
    /// Logarithm of the variance.
    pub log_variance: Tensor,
}

impl Reverse {
    /// Mean moved along the gradient of a log probability (classifier guidance): mean + variance grad.
    pub fn guided_mean(&self, grad: &Tensor) -> Tensor {
        &self.mean + &self.variance * grad
    }

    /// A sample around `mean`; `nonzero` [N, 1, 1, 1] is 0 for samples at the last step, which add no noise.
    pub fn sample(&self, mean: &Tensor, noise: &Tensor, nonzero: &Tensor) -> Tensor {
        mean + nonzero * (&self.log_variance * 0.5).exp() * noise
    }
}

impl SpacedDiffusion {
    /// Keeps the time steps of `respacing` (see [`respace`]) of `base`, a float64 schedule.
    ///
    /// # Errors
    /// 78 if the respacing does not fit the schedule.
    pub fn new(base: &Schedule, respacing: &str) -> Result<Self> {
        let timestep_map = respace(base.len() as i64, respacing)?;
        let mut last = 1.;
        let betas = timestep_map.iter().map(|&t| {
            let abar = base.alphas_cumprod[t as usize];
            1. - abar / std::mem::replace(&mut last, abar)
        });
        let schedule = Schedule::from_betas(betas.collect())?;
        let previous = std::iter::once(1.).chain(schedule.alphas_cumprod.iter().copied());
        let mut posterior_variance = Vec::with_capacity(schedule.len());
        let (mut coef1, mut coef2) = (posterior_variance.clone(), posterior_variance.clone());
        for ((&beta, &abar), before) in schedule.betas.iter().zip(&schedule.alphas_cumprod).zip(previous) {
            posterior_variance.push(beta * (1. - before) / (1. - abar));
            coef1.push(beta * before.sqrt() / (1. - abar));
            coef2.push((1. - before) * (1. - beta).sqrt() / (1. - abar));
        }
        let mut clipped: Vec<f64> = posterior_variance.iter().map(|variance| variance.ln()).collect();
        // A chain of a single step has no second variance; its only step adds no noise anyway.
        clipped[0] = clipped.get(1).copied().unwrap_or_else(|| schedule.betas[0].ln());
        Ok(Self {
            timestep_map,
            schedule,
            posterior_variance,
            posterior_log_variance_clipped: clipped,
            posterior_mean_coef1: coef1,
            posterior_mean_coef2: coef2,
        })
    }

    /// Number of steps.
    pub fn len(&self) -> usize {
        self.timestep_map.len()
    }

    /// Whether there is no step.
    pub fn is_empty(&self) -> bool {
        self.timestep_map.is_empty()
    }

    /// The image that noise `eps` implies at `x`, with one index `t` [N] int64 per sample.
    pub fn xstart_from_eps(&self, x: &Tensor, t: &Tensor, eps: &Tensor) -> Tensor {
        let abar = &self.schedule.alphas_cumprod;
        let root: Vec<f64> = abar.iter().map(|abar| (1. / abar).sqrt()).collect();
        let root_minus_one: Vec<f64> = abar.iter().map(|abar| (1. / abar - 1.).sqrt()).collect();
        extract(&root, t, x) * x - extract(&root_minus_one, t, x) * eps
    }

    /// Mean of q(x_{t-1} | x_t, x_0).
    pub fn posterior_mean(&self, x0: &Tensor, x: &Tensor, t: &Tensor) -> Tensor {
        extract(&self.posterior_mean_coef1, t, x) * x0 + extract(&self.posterior_mean_coef2, t, x) * x
    }

    /// p(x_{t-1} | x_t) given the predicted image `x0` and, for a learned range, the network's variance channels `v`
    /// in [-1, 1]; one index `t` [N] int64 per sample.
    ///
    /// # Panics
    /// If the variance is a learned range and `v` is missing.
    pub fn p_mean_variance(
        &self,
        x0: &Tensor,
        v: Option<&Tensor>,
        x: &Tensor,
        t: &Tensor,
        config: &DdpmConfig,
    ) -> Reverse {
        let pred_xstart = if config.clip_denoised { x0.clamp(-1., 1.) } else { x0.shallow_clone() };
        let mean = self.posterior_mean(&pred_xstart, x, t);
        let log_variance = match config.variance {
            ReverseVariance::LearnedRange => {
                let v = v.unwrap_or_else(|| panic!("a learned range without variance channels"));
                self.learned_log_variance(v, t)
            }
            ReverseVariance::FixedSmall => extract(&self.posterior_log_variance_clipped, t, x).expand_as(x),
            ReverseVariance::FixedLarge => {
                let betas = &self.schedule.betas;
                let first = self.posterior_variance.get(1).copied().unwrap_or(betas[0]);
                let large: Vec<f64> =
                    std::iter::once(first).chain(betas[1..].iter().copied()).map(f64::ln).collect();
                extract(&large, t, x).expand_as(x)
            }
        };
        Reverse { pred_xstart, mean, variance: log_variance.exp(), log_variance }
    }

    /// frac ln beta + (1 - frac) ln posterior variance, frac = (v + 1) / 2.
    pub fn learned_log_variance(&self, v: &Tensor, t: &Tensor) -> Tensor {
        let log_betas: Vec<f64> = self.schedule.betas.iter().map(|beta| beta.ln()).collect();
        let (low, high) = (extract(&self.posterior_log_variance_clipped, t, v), extract(&log_betas, t, v));
        let frac = (v + 1.) / 2.;
        &frac * high + (1. - &frac) * low
    }
}

/// `values[t]` as [N, 1, 1, 1], computed in float64 and then converted to the kind of `like`.
pub fn extract(values: &[f64], t: &Tensor, like: &Tensor) -> Tensor {
    let table = runtime::upload_to(&Tensor::from_slice(values).to_kind(like.kind()), like.device());
    let mut shape = vec![1; like.dim()];
    shape[0] = -1;
    table.index_select(0, t).view(shape.as_slice())
}

/// [`SpacedDiffusion`] as a chain of sampling steps, noisiest first.
#[derive(Clone, Debug)]
pub struct Ddpm {
    chain: SpacedDiffusion,
    timesteps: Vec<i64>,
    config: DdpmConfig,
}

impl Ddpm {
    /// The chain over `schedule`.
    ///
    /// # Errors
    /// 78 if the respacing does not fit the schedule.
    pub fn new(schedule: &Schedule, config: &DdpmConfig) -> Result<Self> {
        let chain = SpacedDiffusion::new(schedule, &config.respacing)?;
        let timesteps = chain.timestep_map.iter().rev().copied().collect();
        Ok(Self { chain, timesteps, config: config.clone() })
    }

    fn position(&self, index: usize) -> usize {
        self.timesteps.len() - 1 - index
    }
}

impl Solver for Ddpm {
    fn timesteps(&self) -> &[i64] {
        &self.timesteps
    }

    fn abar(&self, index: usize) -> f64 {
        self.chain.schedule.alphas_cumprod[self.position(index)]
    }

    fn wants_noise(&self, index: usize) -> bool {
        self.position(index) > 0
    }

    fn wants_variance(&self) -> bool {
        self.config.variance == ReverseVariance::LearnedRange
    }

    fn step(
        &self,
        index: usize,
        x: &Tensor,
        estimate: &Estimate,
        variance: Option<&Tensor>,
        noise: Option<&Tensor>,
    ) -> Tensor {
        let t = Tensor::full([x.size()[0]], self.position(index) as i64, (Kind::Int64, x.device()));
        let reverse = self.chain.p_mean_variance(&estimate.x0, variance, x, &t, &self.config);
        match noise {
            Some(noise) => &reverse.mean + (&reverse.log_variance * 0.5).exp() * noise,
            None => reverse.mean,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{BetaSchedule, DiffusionScheduleConfig};
    use tch::Device;

    fn base() -> Schedule {
        Schedule::double(&DiffusionScheduleConfig {
            num_train_timesteps: 100,
            beta_schedule: BetaSchedule::Cosine,
            beta_start: 0.,
            beta_end: 0.,
            rescale_betas_zero_snr: false,
        })
        .unwrap()
    }

    #[test]
    fn respaced_chain_keeps_the_noise_levels() {
        let (base, spaced) = (base(), SpacedDiffusion::new(&base(), "7").unwrap());
        for (index, &t) in spaced.timestep_map.iter().enumerate() {
            assert!((spaced.schedule.alphas_cumprod[index] - base.alphas_cumprod[t as usize]).abs() < 1e-12);
        }
    }

    /// The learned range runs from the posterior's variance to beta.
    #[test]
    fn learned_range_ends_at_the_fixed_variances() {
        let chain = SpacedDiffusion::new(&base(), "10").unwrap();
        let x = Tensor::zeros([2, 1, 2, 2], (Kind::Double, Device::Cpu));
        let t = Tensor::from_slice(&[3i64, 9]);
        let fixed = |variance| DdpmConfig { respacing: "10".into(), variance, clip_denoised: false };
        let at = |v: f64| {
            let config = fixed(ReverseVariance::LearnedRange);
            chain.p_mean_variance(&x, Some(&x.full_like(v)), &x, &t, &config).variance
        };
        for (v, variance) in [(-1., ReverseVariance::FixedSmall), (1., ReverseVariance::FixedLarge)] {
            let want = chain.p_mean_variance(&x, None, &x, &t, &fixed(variance)).variance;
            assert!(at(v).allclose(&want, 1e-12, 0., false), "{variance:?}");
        }
    }

    #[test]
    fn a_single_step_returns_the_predicted_image() {
        let config =
            DdpmConfig { respacing: "1".into(), variance: ReverseVariance::FixedSmall, clip_denoised: true };
        let ddpm = Ddpm::new(&base(), &config).unwrap();
        assert_eq!((ddpm.timesteps(), ddpm.wants_noise(0)), (&[0i64][..], false));
        let x = Tensor::ones([1, 1, 2, 2], (Kind::Double, Device::Cpu));
        let estimate = Estimate { x0: &x * 0.25, eps: &x * 0. };
        assert!(ddpm.step(0, &x, &estimate, None, None).allclose(&(&x * 0.25), 1e-12, 0., false));
    }
}

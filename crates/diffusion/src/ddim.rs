//! DDIM sampling (Song et al. 2021) with the conventions of diffusers' `DDIMScheduler`.

use crate::prediction::Estimate;
use crate::sampler::Solver;
use crate::schedule::Schedule;
use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Which of the T time steps are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Multiples of T/S from 0 up.
    Leading,
    /// Multiples of T/S from the last step down, the last included.
    Trailing,
    /// Evenly from the first to the last step, both included.
    Linspace,
}

/// DDIM's knobs; names as in diffusers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DdimConfig {
    /// Number of network evaluations S.
    pub steps: i64,
    /// Share of the DDPM's noise that is added back in each step: 0 is deterministic.
    pub eta: f64,
    /// Which time steps are visited.
    pub timestep_spacing: Spacing,
    /// Added to every time step with leading spacing (1 for Stable Diffusion).
    pub steps_offset: i64,
    /// Whether the last step ends at abar = 1 instead of abar of time step 0.
    pub set_alpha_to_one: bool,
    /// Whether the predicted image is clamped in every step.
    pub clip_sample: bool,
    /// Bound of that clamp.
    pub clip_sample_range: f64,
}

/// The chain of DDIM steps, noisiest first.
#[derive(Clone, Debug)]
pub struct Ddim {
    timesteps: Vec<i64>,
    /// abar before and after each step.
    alphas: Vec<(f64, f64)>,
    eta: f64,
    clip: Option<f64>,
}

/// Factors of image, noise estimate and fresh noise in one step.
#[derive(Clone, Copy, Debug)]
struct Factors {
    image: f64,
    direction: f64,
    sigma: f64,
}

/// The factors of a step, in the precision of the image, as diffusers computes them.
macro_rules! factors {
    ($float:ty, $abar:expr, $abar_prev:expr, $eta:expr) => {{
        let (abar, abar_prev) = ($abar as $float, $abar_prev as $float);
        let variance = (1. - abar_prev) / (1. - abar) * (1. - abar / abar_prev);
        let sigma = $eta as $float * variance.max(0.).sqrt();
        let direction = (1. - abar_prev - sigma * sigma).max(0.).sqrt();
        Factors { image: abar_prev.sqrt() as f64, direction: direction as f64, sigma: sigma as f64 }
    }};
}

impl Ddim {
    /// The chain over `schedule`.
    ///
    /// # Errors
    /// 78 if the steps do not fit the schedule.
    pub fn new(schedule: &Schedule, config: &DdimConfig) -> Result<Self> {
        let train_steps = schedule.len() as i64;
        let DdimConfig { steps, eta, clip_sample_range, .. } = *config;
        ensure!((1..=train_steps).contains(&steps), Config, "steps = {steps}: want 1 to {train_steps}");
        ensure!((0.0..=1.0).contains(&eta), Config, "eta = {eta}: want 0 to 1");
        ensure!(
            !config.clip_sample || clip_sample_range > 0.,
            Config,
            "clip_sample_range = {clip_sample_range}: want > 0"
        );
        let timesteps = timesteps(train_steps, config);
        for &t in &timesteps {
            ensure!(
                (0..train_steps).contains(&t),
                Config,
                "steps = {steps} with steps_offset = {} visits time step {t}, but there are only 0 to {}",
                config.steps_offset,
                train_steps - 1
            );
        }
        let last = if config.set_alpha_to_one { 1. } else { schedule.alphas_cumprod[0] };
        let alphas = timesteps
            .iter()
            .map(|&t| {
                let previous = usize::try_from(t - train_steps / steps);
                (schedule.alphas_cumprod[t as usize], previous.map_or(last, |t| schedule.alphas_cumprod[t]))
            })
            .collect();
        Ok(Self { timesteps, alphas, eta, clip: config.clip_sample.then_some(clip_sample_range) })
    }

    fn factors(&self, index: usize, kind: Kind) -> Factors {
        let (abar, abar_prev) = self.alphas[index];
        match kind {
            Kind::Float => factors!(f32, abar, abar_prev, self.eta),
            _ => factors!(f64, abar, abar_prev, self.eta),
        }
    }

    /// The predicted image as the step uses it.
    pub fn clipped(&self, x0: &Tensor) -> Tensor {
        self.clip.map_or_else(|| x0.shallow_clone(), |bound| x0.clamp(-bound, bound))
    }
}

impl Solver for Ddim {
    fn timesteps(&self) -> &[i64] {
        &self.timesteps
    }

    fn abar(&self, index: usize) -> f64 {
        self.alphas[index].0
    }

    fn wants_noise(&self, index: usize) -> bool {
        self.factors(index, Kind::Double).sigma > 0.
    }

    /// prev = sqrt(abar_prev) x0 + sqrt(1 - abar_prev - sigma^2) eps + sigma noise; eps is not recomputed when x0 is
    /// clamped.
    fn step(
        &self,
        index: usize,
        x: &Tensor,
        estimate: &Estimate,
        _variance: Option<&Tensor>,
        noise: Option<&Tensor>,
    ) -> Tensor {
        let Factors { image, direction, sigma } = self.factors(index, x.kind());
        let next = self.clipped(&estimate.x0) * image + &estimate.eps * direction;
        match noise {
            Some(noise) => next + noise * sigma,
            None => next,
        }
    }
}

/// Rounding is to even at one half, as numpy's.
fn timesteps(train_steps: i64, config: &DdimConfig) -> Vec<i64> {
    let (total, steps) = (train_steps as f64, config.steps as f64);
    match config.timestep_spacing {
        Spacing::Leading => {
            let ratio = train_steps / config.steps;
            (0..config.steps).rev().map(|i| i * ratio + config.steps_offset).collect()
        }
        Spacing::Trailing => {
            // numpy's arange steps by the difference of its first two values.
            let delta = (total - total / steps) - total;
            (0..config.steps).map(|i| (total + i as f64 * delta).round_ties_even() as i64 - 1).collect()
        }
        Spacing::Linspace => {
            let gap = if config.steps > 1 { (total - 1.) / (steps - 1.) } else { 0. };
            (0..config.steps).rev().map(|i| (i as f64 * gap).round_ties_even() as i64).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{BetaSchedule, DiffusionScheduleConfig};
    use tch::Device;

    fn schedule() -> Schedule {
        Schedule::single(&DiffusionScheduleConfig {
            num_train_timesteps: 1000,
            beta_schedule: BetaSchedule::ScaledLinear,
            beta_start: 0.00085,
            beta_end: 0.012,
            rescale_betas_zero_snr: false,
        })
        .unwrap()
    }

    fn config(steps: i64, timestep_spacing: Spacing) -> DdimConfig {
        DdimConfig {
            steps,
            eta: 0.,
            timestep_spacing,
            steps_offset: 0,
            set_alpha_to_one: true,
            clip_sample: false,
            clip_sample_range: 1.,
        }
    }

    /// Values printed by diffusers 0.35 for T = 1000.
    #[test]
    fn time_steps_are_those_of_diffusers() {
        let of = |steps, spacing| Ddim::new(&schedule(), &config(steps, spacing)).unwrap().timesteps;
        assert_eq!(of(7, Spacing::Leading), [852, 710, 568, 426, 284, 142, 0]);
        assert_eq!(of(7, Spacing::Trailing), [999, 856, 713, 570, 428, 285, 142]);
        assert_eq!(of(4, Spacing::Linspace), [999, 666, 333, 0]);
        assert_eq!(of(1, Spacing::Trailing), [999]);
    }

    /// With a perfect noise estimate, deterministic DDIM lands on the image.
    #[test]
    fn perfect_estimates_lead_to_the_image() {
        let ddim = Ddim::new(&schedule(), &config(10, Spacing::Trailing)).unwrap();
        let x0 = Tensor::linspace(-1., 1., 12, (Kind::Double, Device::Cpu)).view([1, 3, 2, 2]);
        let noise = (&x0 * 5.1).cos();
        let start = ddim.abar(0);
        let mut x = &x0 * start.sqrt() + &noise * (1. - start).sqrt();
        for index in 0..10 {
            let estimate = Estimate::from_eps(noise.shallow_clone(), &x, ddim.abar(index));
            x = ddim.step(index, &x, &estimate, None, None);
        }
        assert!(x.allclose(&x0, 1e-9, 1e-9, false));
    }

    #[test]
    fn steps_outside_the_schedule_are_a_configuration_error() {
        let offset = DdimConfig { steps_offset: 1, ..config(1000, Spacing::Leading) };
        assert!(Ddim::new(&schedule(), &offset).unwrap_err().message().contains("steps_offset"));
        assert!(Ddim::new(&schedule(), &config(0, Spacing::Leading)).is_err());
        assert!(Ddim::new(&schedule(), &config(1001, Spacing::Trailing)).is_err());
    }
}

//! Kind `ddim`: diffusers' `DDIMScheduler` on given network outputs.

use crate::case::{Case, Tensors};
use equipoise_base::Result;
use equipoise_diffusion::ddim::{Ddim, DdimConfig, Spacing};
use equipoise_diffusion::prediction::Prediction;
use equipoise_diffusion::sampler::Solver;
use equipoise_diffusion::schedule::{BetaSchedule, DiffusionScheduleConfig, Schedule};
use serde::Deserialize;
use tch::Tensor;

/// A diffusers scheduler configuration, with the library's defaults.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scheduler {
    num_train_timesteps: i64,
    beta_start: f64,
    beta_end: f64,
    beta_schedule: BetaSchedule,
    clip_sample: bool,
    clip_sample_range: f64,
    set_alpha_to_one: bool,
    steps_offset: i64,
    prediction_type: Prediction,
    thresholding: bool,
    timestep_spacing: Spacing,
    rescale_betas_zero_snr: bool,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 1e-4,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            clip_sample: true,
            clip_sample_range: 1.,
            set_alpha_to_one: true,
            steps_offset: 0,
            prediction_type: Prediction::Epsilon,
            thresholding: false,
            timestep_spacing: Spacing::Leading,
            rescale_betas_zero_snr: false,
        }
    }
}

impl Scheduler {
    /// Reads `params.scheduler`.
    pub fn read(case: &Case) -> Result<Self> {
        let this: Self = case.param("scheduler")?;
        if this.thresholding {
            return Err(case.broken("only thresholding false is defined for this kind"));
        }
        Ok(this)
    }

    fn schedule(&self) -> Result<Schedule> {
        Schedule::single(&DiffusionScheduleConfig {
            num_train_timesteps: self.num_train_timesteps,
            beta_schedule: self.beta_schedule,
            beta_start: self.beta_start,
            beta_end: self.beta_end,
            rescale_betas_zero_snr: self.rescale_betas_zero_snr,
        })
    }

    /// The chain's configuration.
    pub fn ddim(&self, steps: i64, eta: f64) -> DdimConfig {
        DdimConfig {
            steps,
            eta,
            timestep_spacing: self.timestep_spacing,
            steps_offset: self.steps_offset,
            set_alpha_to_one: self.set_alpha_to_one,
            clip_sample: self.clip_sample,
            clip_sample_range: self.clip_sample_range,
        }
    }
}

/// Computes what the case expects.
pub fn check(case: &Case) -> Result<Tensors> {
    let scheduler = Scheduler::read(case)?;
    let (schedule, eta) = (scheduler.schedule()?, case.param("eta")?);
    let ddim = Ddim::new(&schedule, &scheduler.ddim(case.param("steps")?, eta))?;
    let (outputs, noise) = (case.input("model_output")?, case.input("noise")?);
    let mut x = case.input("x_T")?.shallow_clone();
    let (mut pred_x0, mut prev) = (Vec::new(), Vec::new());
    for index in 0..ddim.timesteps().len() {
        let output = outputs.get(index as i64);
        let estimate = scheduler.prediction_type.estimate(&output, &x, ddim.abar(index));
        let fresh = (eta > 0.).then(|| noise.get(index as i64));
        x = ddim.step(index, &x, &estimate, None, fresh.as_ref());
        pred_x0.push(ddim.clipped(&estimate.x0));
        prev.push(x.shallow_clone());
    }
    let alphas: Vec<f32> = schedule.alphas_cumprod.iter().map(|&abar| abar as f32).collect();
    let named = [
        ("timesteps", Tensor::from_slice(ddim.timesteps())),
        ("alphas_cumprod", Tensor::from_slice(&alphas)),
        ("pred_x0", Tensor::stack(&pred_x0, 0)),
        ("prev", Tensor::stack(&prev, 0)),
    ];
    Ok(named.map(|(name, tensor)| (name.to_string(), tensor)).into())
}

//! The sampling loop: noise to images, with guidance and feedback, without waiting for the device in between.

use crate::ddim::{Ddim, DdimConfig};
use crate::ddpm::{Ddpm, DdpmConfig};
use crate::dpm_solver::{DpmSolver, DpmSolverConfig};
use crate::feedback::{Feedback, Guided, Output, read};
use crate::guidance::Denoiser;
use crate::prediction::{Estimate, Prediction};
use crate::schedule::{DiffusionScheduleConfig, Schedule};
use equipoise_base::{Result, bail, ensure, trace};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use tch::Tensor;

/// A sampler and its knobs; the loop is the same for all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SamplerConfig {
    /// Deterministic or with a chosen share of noise.
    Ddim(DdimConfig),
    /// Ancestral sampling over a respaced chain.
    Ddpm(DdpmConfig),
    /// DPM-Solver++ (2M): deterministic, second order, for few steps.
    DpmSolver(DpmSolverConfig),
}

/// A chain of reverse steps; index 0 is the noisiest.
pub trait Solver: std::fmt::Debug {
    /// Time step of every index, as the network is told.
    fn timesteps(&self) -> &[i64];
    /// abar at an index.
    fn abar(&self, index: usize) -> f64;
    /// Whether a step adds noise.
    fn wants_noise(&self, index: usize) -> bool;
    /// Whether steps use variance channels of the network.
    fn wants_variance(&self) -> bool {
        false
    }
    /// From `x` [N, C, H, W] to the next, less noisy image.
    fn step(
        &self,
        index: usize,
        x: &Tensor,
        estimate: &Estimate,
        variance: Option<&Tensor>,
        noise: Option<&Tensor>,
    ) -> Tensor;
    /// [`Solver::step`] for solvers of second order, which also look at the estimate of the step before.
    fn step_after(
        &self,
        _previous: &Estimate,
        index: usize,
        x: &Tensor,
        estimate: &Estimate,
        variance: Option<&Tensor>,
        noise: Option<&Tensor>,
    ) -> Tensor {
        self.step(index, x, estimate, variance, noise)
    }
}

/// Samples with one generator; holds no state between batches.
#[derive(Debug)]
pub struct Sampler {
    solver: Box<dyn Solver>,
    prediction: Prediction,
}

/// What an observer sees after each step.
#[derive(Debug)]
pub struct Step<'a> {
    /// Index of the step; 0 is the noisiest.
    pub index: usize,
    /// Its time step.
    pub timestep: i64,
    /// Noise estimate used, after guidance and feedback.
    pub eps: &'a Tensor,
    /// Image after the step.
    pub x: &'a Tensor,
    /// Criterion [N] and its gradient, at guided steps.
    pub feedback: Option<(&'a Tensor, &'a Tensor)>,
}

/// A finished batch.
#[derive(Debug)]
pub struct Sampled {
    /// Images [N, C, H, W], nominally in [-1, 1], not clamped.
    pub images: Tensor,
    /// Criterion of every sample at each guided step [A, N].
    pub criterion: Tensor,
}

impl Sampler {
    /// DDIM and DPM-Solver++ follow diffusers and compute their schedule in float32, DDPM follows guided-diffusion in
    /// float64.
    ///
    /// # Errors
    /// 78 if schedule and sampler do not fit.
    pub fn new(
        schedule: &DiffusionScheduleConfig,
        prediction: Prediction,
        config: &SamplerConfig,
    ) -> Result<Self> {
        ensure!(
            !(schedule.rescale_betas_zero_snr && prediction == Prediction::Epsilon),
            Config,
            "rescale_betas_zero_snr leaves no image at the last time step, where an epsilon prediction says nothing: \
             use v_prediction or sample"
        );
        Ok(match config {
            SamplerConfig::Ddim(config) => {
                Self::from_solver(Ddim::new(&Schedule::single(schedule)?, config)?, prediction)
            }
            SamplerConfig::Ddpm(config) => {
                Self::from_solver(Ddpm::new(&Schedule::double(schedule)?, config)?, prediction)
            }
            SamplerConfig::DpmSolver(config) => {
                Self::from_solver(DpmSolver::new(&Schedule::single(schedule)?, config)?, prediction)
            }
        })
    }

    /// With a solver at hand.
    pub fn from_solver(solver: impl Solver + 'static, prediction: Prediction) -> Self {
        Self { solver: Box::new(solver), prediction }
    }

    /// Time step of every step, noisiest first.
    pub fn timesteps(&self) -> &[i64] {
        self.solver.timesteps()
    }

    /// Turns noise `start` [N, C, H, W] into images.
    ///
    /// `noise(index)` gives standard normals of the same shape and is asked only at steps that add noise, in order.
    /// `observe` is called after each step and may break off, then the result is `None`; it should not read values on
    /// a GPU, which would make the host wait.
    ///
    /// # Errors
    /// 78 if the network's channels do not suit the sampler, or feedback applies where nothing of the image is left;
    /// what `noise` fails with.
    pub fn sample(
        &self,
        denoiser: &dyn Denoiser,
        start: &Tensor,
        feedback: Option<&Feedback>,
        noise: &mut dyn FnMut(usize) -> Result<Tensor>,
        observe: &mut dyn FnMut(&Step) -> ControlFlow<()>,
    ) -> Result<Option<Sampled>> {
        let _no_grad = tch::no_grad_guard();
        let mut x = start.shallow_clone();
        let mut trace = Vec::new();
        let mut previous: Option<Estimate> = None;
        for (index, &timestep) in self.solver.timesteps().iter().enumerate() {
            let _span = trace::numbered("sample step", index as u64);
            let now = self.estimate(denoiser, &x, index, timestep, feedback)?;
            let fresh = if self.solver.wants_noise(index) { Some(noise(index)?) } else { None };
            let (variance, fresh) = (now.variance.as_ref(), fresh.as_ref());
            x = match &previous {
                Some(last) => self.solver.step_after(last, index, &now.x, &now.estimate, variance, fresh),
                None => self.solver.step(index, &now.x, &now.estimate, variance, fresh),
            };
            let feedback = now.feedback.as_ref().map(|(criterion, grad)| (criterion, grad));
            let broken =
                observe(&Step { index, timestep, eps: &now.estimate.eps, x: &x, feedback }).is_break();
            if broken {
                return Ok(None);
            }
            trace.extend(now.feedback.map(|(criterion, _)| criterion));
            previous = Some(now.estimate);
        }
        let criterion = match trace.is_empty() {
            true => Tensor::zeros([0, start.size()[0]], (start.kind(), start.device())),
            false => Tensor::stack(&trace, 0),
        };
        Ok(Some(Sampled { images: x, criterion }))
    }

    fn estimate(
        &self,
        denoiser: &dyn Denoiser,
        x: &Tensor,
        index: usize,
        timestep: i64,
        feedback: Option<&Feedback>,
    ) -> Result<Now> {
        let abar = self.solver.abar(index);
        let now = match feedback.filter(|feedback| feedback.applies(index, timestep)) {
            None => {
                let output = denoiser.denoise(x, timestep);
                let Output { estimate, variance } = read(&output, self.prediction, x, abar);
                Now { x: x.shallow_clone(), estimate, variance, feedback: None }
            }
            Some(feedback) => {
                ensure!(
                    abar > 0.,
                    Config,
                    "feedback applies at time step {timestep}, where nothing of the image is left: set max_t below 1 or \
                     choose another offset"
                );
                let guided = feedback.guide(denoiser, self.prediction, x, timestep, abar);
                let Guided { x, estimate, variance, criterion, grad } = guided;
                Now { x, estimate, variance, feedback: Some((criterion, grad)) }
            }
        };
        if self.solver.wants_variance() {
            let (want, have) = (x.size()[1], now.variance.as_ref().map_or(0, |v| v.size()[1]));
            if want != have {
                bail!(
                    Config,
                    "variance = 'learned_range' needs a generator with a learned sigma: {want} more output channels, \
                     this one has {have}"
                );
            }
        }
        Ok(now)
    }
}

/// A step before the solver takes it.
struct Now {
    x: Tensor,
    estimate: Estimate,
    variance: Option<Tensor>,
    feedback: Option<(Tensor, Tensor)>,
}

/// An observer that sees nothing.
pub fn unobserved(_: &Step) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_kind_selects_the_knobs() {
        let ddpm =
            json!({ "kind": "ddpm", "respacing": "250", "variance": "learned_range", "clip_denoised": true });
        let read = |value| serde_json::from_value::<SamplerConfig>(value);
        assert!(matches!(read(ddpm.clone()), Ok(SamplerConfig::Ddpm(config)) if config.respacing == "250"));
        let mut stray = ddpm;
        stray["eta"] = json!(0.5);
        assert!(read(stray).unwrap_err().to_string().contains("eta"));
        assert!(read(json!({ "kind": "euler" })).is_err());
    }

    /// The schema refuses unknown knobs just as reading does, and admits the tag.
    #[test]
    fn the_schema_knows_the_tag() {
        let schema = serde_json::to_value(schemars::schema_for!(SamplerConfig)).unwrap().to_string();
        assert!(schema.contains(r#""const":"ddim""#) && schema.contains("clip_denoised"), "{schema}");
    }
}

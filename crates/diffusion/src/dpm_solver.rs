//! DPM-Solver++ (2M) (Lu et al. 2022, Algorithm 2) with the conventions of diffusers' `DPMSolverMultistepScheduler`
//! (midpoint): 15 to 25 steps look like 50 of DDIM.

use crate::ddim::Spacing;
use crate::prediction::Estimate;
use crate::sampler::Solver;
use crate::schedule::Schedule;
use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// DPM-Solver++'s knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DpmSolverConfig {
    /// Number of network evaluations S.
    pub steps: i64,
    /// Which time steps are visited.
    pub timestep_spacing: Spacing,
    /// Added to every time step with leading spacing (1 for Stable Diffusion).
    pub steps_offset: i64,
}

/// The chain of steps, noisiest first; deterministic.
#[derive(Clone, Debug)]
pub struct DpmSolver {
    timesteps: Vec<i64>,
    /// abar before each step.
    abar: Vec<f64>,
    /// Noise level before each step and, at the end, none.
    levels: Vec<Level>,
}

/// A noise level in the solver's terms: x = alpha image + sigma noise.
#[derive(Clone, Copy, Debug)]
struct Level {
    alpha: f64,
    sigma: f64,
    /// ln(alpha / sigma), half the logarithm of the signal-to-noise ratio.
    lambda: f64,
}

impl Level {
    fn new(abar: f64) -> Self {
        let (alpha, sigma) = (abar.sqrt(), (1. - abar).sqrt());
        Self { alpha, sigma, lambda: (alpha / sigma).ln() }
    }
}

impl DpmSolver {
    /// The chain over `schedule`; the last step ends without noise.
    ///
    /// # Errors
    /// 78 if the steps do not fit the schedule, or the schedule leaves nothing of the image.
    pub fn new(schedule: &Schedule, config: &DpmSolverConfig) -> Result<Self> {
        let train_steps = schedule.len() as i64;
        let steps = config.steps;
        ensure!((1..train_steps).contains(&steps), Config, "steps = {steps}: want 1 to {}", train_steps - 1);
        let timesteps = timesteps(train_steps, config);
        let visited = timesteps.iter().map(|&t| usize::try_from(t).unwrap_or(usize::MAX));
        let abar: Option<Vec<f64>> = visited.map(|t| schedule.alphas_cumprod.get(t).copied()).collect();
        let Some(abar) = abar else {
            equipoise_base::bail!(
                Config,
                "steps = {steps} with steps_offset = {} visits time steps {timesteps:?}, but there are only 0 to {}",
                config.steps_offset,
                train_steps - 1
            );
        };
        ensure!(
            abar.iter().all(|&abar| abar > 0.),
            Config,
            "dpm_solver cannot start where nothing of the image is left (rescale_betas_zero_snr): use ddim"
        );
        let levels = abar.iter().copied().chain([1.]).map(Level::new).collect();
        Ok(Self { timesteps, abar, levels })
    }

    /// x at the next level along a constant image estimate.
    fn advance(&self, index: usize, x: &Tensor, image: &Tensor) -> Tensor {
        let (from, to) = (self.levels[index], self.levels[index + 1]);
        x * (to.sigma / from.sigma) - image * (to.alpha * (-(to.lambda - from.lambda)).exp_m1())
    }
}

impl Solver for DpmSolver {
    fn timesteps(&self) -> &[i64] {
        &self.timesteps
    }

    fn abar(&self, index: usize) -> f64 {
        self.abar[index]
    }

    fn wants_noise(&self, _index: usize) -> bool {
        false
    }

    /// The first step has no predecessor: order 1.
    fn step(
        &self,
        index: usize,
        x: &Tensor,
        estimate: &Estimate,
        _variance: Option<&Tensor>,
        _noise: Option<&Tensor>,
    ) -> Tensor {
        self.advance(index, x, &estimate.x0)
    }

    /// The image is extrapolated in lambda from the last two estimates. The last step ends at lambda = infinity, where
    /// nothing can be extrapolated: order 1, which returns the estimate.
    fn step_after(
        &self,
        previous: &Estimate,
        index: usize,
        x: &Tensor,
        estimate: &Estimate,
        variance: Option<&Tensor>,
        noise: Option<&Tensor>,
    ) -> Tensor {
        if index + 1 == self.timesteps.len() {
            return self.step(index, x, estimate, variance, noise);
        }
        let lambda = |index: usize| self.levels[index].lambda;
        let ratio = (lambda(index + 1) - lambda(index)) / (lambda(index) - lambda(index - 1));
        let image = &estimate.x0 + (&estimate.x0 - &previous.x0) * (0.5 * ratio);
        self.advance(index, x, &image)
    }
}

/// diffusers' time steps of this solver, which divides by S + 1 where DDIM divides by S.
fn timesteps(train_steps: i64, config: &DpmSolverConfig) -> Vec<i64> {
    let (total, steps) = (train_steps as f64, config.steps);
    match config.timestep_spacing {
        Spacing::Leading => {
            let ratio = train_steps / (steps + 1);
            (1..=steps).rev().map(|i| i * ratio + config.steps_offset).collect()
        }
        Spacing::Trailing => {
            let delta = total / steps as f64;
            (0..steps).map(|i| (total - i as f64 * delta).round_ties_even() as i64 - 1).collect()
        }
        Spacing::Linspace => {
            let gap = (total - 1.) / steps as f64;
            (1..=steps).rev().map(|i| (i as f64 * gap).round_ties_even() as i64).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ddim::{Ddim, DdimConfig};
    use crate::prediction::Prediction;
    use crate::schedule::{BetaSchedule, DiffusionScheduleConfig};

    fn schedule() -> Schedule {
        Schedule::double(&DiffusionScheduleConfig {
            num_train_timesteps: 1000,
            beta_schedule: BetaSchedule::ScaledLinear,
            beta_start: 0.00085,
            beta_end: 0.012,
            rescale_betas_zero_snr: false,
        })
        .unwrap()
    }

    fn config(steps: i64, timestep_spacing: Spacing) -> DpmSolverConfig {
        DpmSolverConfig { steps, timestep_spacing, steps_offset: 0 }
    }

    /// Values printed by diffusers 0.35 for T = 1000.
    #[test]
    fn time_steps_are_those_of_diffusers() {
        let of = |steps, spacing| DpmSolver::new(&schedule(), &config(steps, spacing)).unwrap().timesteps;
        assert_eq!(of(4, Spacing::Linspace), [999, 749, 500, 250]);
        assert_eq!(of(4, Spacing::Leading), [800, 600, 400, 200]);
        assert_eq!(of(4, Spacing::Trailing), [999, 749, 499, 249]);
    }

    /// Values printed by diffusers 0.35 for the v prediction sin(2 x + index), in float64 over float32 betas.
    #[test]
    fn a_trajectory_is_that_of_diffusers() {
        let single = Schedule::single(&DiffusionScheduleConfig {
            num_train_timesteps: 1000,
            beta_schedule: BetaSchedule::ScaledLinear,
            beta_start: 0.00085,
            beta_end: 0.012,
            rescale_betas_zero_snr: false,
        });
        let offset = DpmSolverConfig { steps_offset: 1, ..config(5, Spacing::Leading) };
        let solver = DpmSolver::new(&single.unwrap(), &offset).unwrap();
        assert_eq!(solver.timesteps(), [831, 665, 499, 333, 167]);
        let want = [
            [1.1986896720621558, -0.2778314449522637],
            [1.3146733477183714, -0.4771412410808805],
            [1.6607364862957128, -0.7577208339420789],
            [1.4945014803585899, -1.0717500928677297],
            [1.0519330016604806, -1.3860643697454025],
        ];
        let mut x = Tensor::from_slice(&[1.3f64, -0.4]).view([1, 1, 1, 2]);
        let mut previous: Option<Estimate> = None;
        for (index, want) in want.iter().enumerate() {
            let v = (&x * 2. + index as f64).sin();
            let now = Prediction::VPrediction.estimate(&v, &x, solver.abar(index));
            x = match &previous {
                Some(previous) => solver.step_after(previous, index, &x, &now, None, None),
                None => solver.step(index, &x, &now, None, None),
            };
            previous = Some(now);
            let want = Tensor::from_slice(want).view([1, 1, 1, 2]);
            assert!(x.allclose(&want, 1e-5, 1e-5, false), "step {index}: {x:?}");
        }
    }

    /// Error of the end point for images from N(0, 4), where the exact flow scales x by the standard deviations.
    fn error(solver: &dyn Solver) -> f64 {
        let spread = |abar: f64| (abar * 4. + 1. - abar).sqrt();
        let mut x = Tensor::from_slice(&[1.3f64]).view([1, 1, 1, 1]);
        let want = 1.3 * 2. / spread(solver.abar(0));
        let mut previous: Option<Estimate> = None;
        for index in 0..solver.timesteps().len() {
            let abar = solver.abar(index);
            let x0 = &x * (4. * abar.sqrt() / spread(abar).powi(2));
            let eps = (&x - &x0 * abar.sqrt()) / (1. - abar).sqrt();
            let estimate = Estimate { x0, eps };
            x = match &previous {
                Some(previous) => solver.step_after(previous, index, &x, &estimate, None, None),
                None => solver.step(index, &x, &estimate, None, None),
            };
            previous = Some(estimate);
        }
        (x.double_value(&[0, 0, 0, 0]) - want).abs()
    }

    /// Halving the steps divides the error by more than two, and few steps beat DDIM's.
    #[test]
    fn second_order_beats_first() {
        let of = |steps| error(&DpmSolver::new(&schedule(), &config(steps, Spacing::Trailing)).unwrap());
        let ddim = |steps| {
            let config = DdimConfig {
                steps,
                eta: 0.,
                timestep_spacing: Spacing::Trailing,
                steps_offset: 0,
                set_alpha_to_one: true,
                clip_sample: false,
                clip_sample_range: 1.,
            };
            error(&Ddim::new(&schedule(), &config).unwrap())
        };
        assert!(of(20) < 0.5 * ddim(20), "{} {}", of(20), ddim(20));
        assert!(of(40) < 0.5 * of(20), "{} {}", of(40), of(20));
    }

    #[test]
    fn steps_outside_the_schedule_are_a_configuration_error() {
        let broken = |config: DpmSolverConfig| DpmSolver::new(&schedule(), &config).unwrap_err();
        assert!(broken(config(0, Spacing::Leading)).message().contains("steps = 0"));
        let offset = DpmSolverConfig { steps_offset: 900, ..config(10, Spacing::Leading) };
        assert!(broken(offset).message().contains("steps_offset"));
    }
}

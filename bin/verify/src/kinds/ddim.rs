//! Kind `ddim`: diffusers' `DDIMScheduler` on given network outputs.

use crate::case::{Case, Tensors};
use equipoise_base::Result;
use equipoise_diffusion::ddim::Ddim;
use equipoise_diffusion::sampler::Solver;
use equipoise_diffusion::scheduler_config::SchedulerConfig;
use tch::Tensor;

/// Reads `params.scheduler`.
pub fn scheduler(case: &Case) -> Result<SchedulerConfig> {
    SchedulerConfig::from_json(&format!("{}: scheduler", case.dir.display()), case.param("scheduler")?)
}

/// Computes what the case expects.
pub fn check(case: &Case) -> Result<Tensors> {
    let scheduler = scheduler(case)?;
    let (schedule, eta) = (scheduler.single()?, case.param("eta")?);
    let ddim = Ddim::new(&schedule, &scheduler.ddim(case.param("steps")?, eta))?;
    let (outputs, noise) = (case.input("model_output")?, case.input("noise")?);
    let mut x = case.input("x_T")?.shallow_clone();
    let (mut pred_x0, mut prev) = (Vec::new(), Vec::new());
    for index in 0..ddim.timesteps().len() {
        let output = outputs.get(index as i64);
        let estimate = scheduler.prediction.estimate(&output, &x, ddim.abar(index));
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

//! Kind `ddpm_respaced`: guided-diffusion's `SpacedDiffusion` on given network outputs.

use crate::case::{Case, Tensors};
use equipoise_base::Result;
use equipoise_diffusion::ddpm::{DdpmConfig, Reverse, ReverseVariance, SpacedDiffusion};
use equipoise_diffusion::schedule::{BetaSchedule, DiffusionScheduleConfig, Schedule};
use tch::{Kind, Tensor};

/// Computes what the case expects.
pub fn check(case: &Case) -> Result<Tensors> {
    let chain = chain(case)?;
    let op: String = case.param("op")?;
    let named = match op.as_str() {
        "schedule" => schedule(&chain),
        "step" => step(case, &chain)?,
        "trajectory" => trajectory(case, &chain)?,
        other => return Err(case.broken(&format!("op '{other}' is unknown"))),
    };
    Ok(named.into_iter().map(|(name, tensor)| (name.to_string(), tensor)).collect())
}

type Named = Vec<(&'static str, Tensor)>;

fn chain(case: &Case) -> Result<SpacedDiffusion> {
    let beta_schedule: BetaSchedule = case.param("schedule")?;
    let steps: i64 = case.param("num_timesteps")?;
    // guided-diffusion scales the betas so that any number of steps ends at about the same noise.
    let scale = 1000. / steps as f64;
    let base = Schedule::double(&DiffusionScheduleConfig {
        num_train_timesteps: steps,
        beta_schedule,
        beta_start: scale * 1e-4,
        beta_end: scale * 0.02,
        rescale_betas_zero_snr: false,
    })?;
    SpacedDiffusion::new(&base, &case.param::<String>("respacing")?)
}

fn schedule(chain: &SpacedDiffusion) -> Named {
    vec![
        ("timestep_map", Tensor::from_slice(&chain.timestep_map)),
        ("betas", Tensor::from_slice(&chain.schedule.betas)),
        ("alphas_cumprod", Tensor::from_slice(&chain.schedule.alphas_cumprod)),
        ("posterior_variance", Tensor::from_slice(&chain.posterior_variance)),
        ("posterior_log_variance_clipped", Tensor::from_slice(&chain.posterior_log_variance_clipped)),
        ("posterior_mean_coef1", Tensor::from_slice(&chain.posterior_mean_coef1)),
        ("posterior_mean_coef2", Tensor::from_slice(&chain.posterior_mean_coef2)),
    ]
}

/// One reverse step from the network's output (eps, v).
fn reverse(chain: &SpacedDiffusion, x: &Tensor, t: &Tensor, output: &Tensor) -> Reverse {
    let config =
        DdpmConfig { respacing: String::new(), variance: ReverseVariance::LearnedRange, clip_denoised: true };
    let parts = output.chunk(2, 1);
    let x0 = chain.xstart_from_eps(x, t, &parts[0]);
    chain.p_mean_variance(&x0, Some(&parts[1]), x, t, &config)
}

/// 0 at the last step of the chain, 1 elsewhere, per sample.
fn nonzero(t: &Tensor, kind: Kind) -> Tensor {
    t.not_equal(0).to_kind(kind).view([-1, 1, 1, 1])
}

fn step(case: &Case, chain: &SpacedDiffusion) -> Result<Named> {
    let (x, t, noise) = (case.input("x")?, case.input("t")?, case.input("noise")?);
    let reverse = reverse(chain, x, t, case.input("model_output")?);
    let guided_mean = reverse.guided_mean(case.input("cond_grad")?);
    let nonzero = nonzero(t, x.kind());
    Ok(vec![
        ("sample", reverse.sample(&reverse.mean, noise, &nonzero)),
        ("guided_sample", reverse.sample(&guided_mean, noise, &nonzero)),
        ("guided_mean", guided_mean),
        ("pred_xstart", reverse.pred_xstart),
        ("mean", reverse.mean),
        ("variance", reverse.variance),
        ("log_variance", reverse.log_variance),
    ])
}

fn trajectory(case: &Case, chain: &SpacedDiffusion) -> Result<Named> {
    let (outputs, noise, grads) =
        (case.input("model_output")?, case.input("noise")?, case.input("cond_grad")?);
    let start = case.input("x_T")?;
    let (mut plain, mut guided) = (start.shallow_clone(), start.shallow_clone());
    let (mut samples, mut pred_xstart, mut guided_samples) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..chain.len() as i64 {
        let t =
            Tensor::full([start.size()[0]], chain.len() as i64 - 1 - index, (Kind::Int64, start.device()));
        let (output, noise, nonzero) = (outputs.get(index), noise.get(index), nonzero(&t, start.kind()));
        let step = reverse(chain, &plain, &t, &output);
        plain = step.sample(&step.mean, &noise, &nonzero);
        pred_xstart.push(step.pred_xstart);
        samples.push(plain.shallow_clone());
        let step = reverse(chain, &guided, &t, &output);
        guided = step.sample(&step.guided_mean(&grads.get(index)), &noise, &nonzero);
        guided_samples.push(guided.shallow_clone());
    }
    let model_t: Vec<i64> = chain.timestep_map.iter().rev().copied().collect();
    Ok(vec![
        ("samples", Tensor::stack(&samples, 0)),
        ("pred_xstart", Tensor::stack(&pred_xstart, 0)),
        ("guided_samples", Tensor::stack(&guided_samples, 0)),
        ("model_t", Tensor::from_slice(&model_t)),
    ])
}

//! `torch.optim.AdamW` (Loshchilov & Hutter, "Decoupled Weight Decay Regularization").

use super::{Optimizer, check_range, read_step, step_tensor};
use crate::FlatParams;
use crate::shim::{self, AdamWStep};
use equipoise_base::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Parameters of [`AdamW`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Learning rate before the schedule.
    pub lr: f64,
    /// Decay rates of the mean of the gradient and of its square.
    pub betas: (f64, f64),
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay, on every parameter.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { lr: 1e-3, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.01 }
    }
}

/// p -= lr wd p; m, v = running means of g, g^2; p -= lr m' / (sqrt(v') + eps), m' and v' corrected for their start.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    steps: u64,
}

impl AdamW {
    /// An optimizer before its first step.
    ///
    /// # Errors
    /// 78 naming the field that is out of range.
    pub fn new(config: AdamWConfig, parameters: &FlatParams) -> Result<Self> {
        check_range("betas[0]", config.betas.0, 0. ..1.)?;
        check_range("betas[1]", config.betas.1, 0. ..1.)?;
        check_range("eps", config.eps, 0. ..1.)?;
        check_range("weight_decay", config.weight_decay, 0. ..f64::INFINITY)?;
        Ok(Self { config, exp_avg: parameters.zeros(), exp_avg_sq: parameters.zeros(), steps: 0 })
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, parameters: &FlatParams, gradient: &Tensor, lr: f64) -> Result<()> {
        let AdamWConfig { betas, eps, weight_decay, .. } = self.config;
        // The kernel wants the count as a float on the device; exact up to 2^24 steps.
        let count = Tensor::full([1], (self.steps + 1) as f64, (Kind::Float, gradient.device()));
        let state = (&self.exp_avg, &self.exp_avg_sq, &count);
        shim::fused_adamw(parameters.values(), gradient, state, AdamWStep { lr, betas, weight_decay, eps })?;
        self.steps += 1;
        Ok(())
    }

    fn state(&self, parameters: &FlatParams) -> Vec<(String, Tensor)> {
        let mut state = parameters.named("exp_avg.", &self.exp_avg);
        state.extend(parameters.named("exp_avg_sq.", &self.exp_avg_sq));
        state.push(step_tensor(self.steps));
        state
    }

    fn load(&mut self, parameters: &FlatParams, source: &str, state: &[(String, Tensor)]) -> Result<()> {
        let steps = read_step(source, state)?;
        parameters.read_named(source, "exp_avg.", state, &self.exp_avg)?;
        parameters.read_named(source, "exp_avg_sq.", state, &self.exp_avg_sq)?;
        self.steps = steps;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{gradient, parameters};
    use super::*;

    /// The formulas of torch.optim.AdamW's documentation in plain tensor operations.
    #[test]
    fn follows_the_reference() {
        let config = AdamWConfig { lr: 0.1, betas: (0.8, 0.95), eps: 1e-6, weight_decay: 0.02 };
        let (_, flat) = parameters(Kind::Double);
        let mut adamw = AdamW::new(config, &flat).unwrap();
        let (mut p, mut m, mut v) = (flat.values().copy(), flat.zeros(), flat.zeros());
        for step in 0..5 {
            let (t, lr) = (step as i32 + 1, 0.1 / (step + 1) as f64);
            let g = gradient(&flat, step);
            p = &p * (1. - lr * config.weight_decay);
            m = &m * config.betas.0 + &g * (1. - config.betas.0);
            v = &v * config.betas.1 + g.square() * (1. - config.betas.1);
            let mean = &m / (1. - config.betas.0.powi(t));
            let square = &v / (1. - config.betas.1.powi(t));
            p = &p - mean / (square.sqrt() + config.eps) * lr;
            adamw.step(&flat, &g, lr).unwrap();
            let error = (flat.values() - &p).abs().max().double_value(&[]);
            assert!(error < 1e-13, "step {step}: {error}");
        }
    }
}

//! `torch.optim.SGD`: momentum without dampening, weight decay on every parameter, optional Nesterov.

use super::{Optimizer, check_range, read_step, step_tensor};
use crate::FlatParams;
use crate::shim::{self, SgdStep};
use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Parameters of [`Sgd`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SgdConfig {
    /// Learning rate before the schedule.
    pub lr: f64,
    /// Momentum.
    pub momentum: f64,
    /// L2 penalty, on every parameter.
    pub weight_decay: f64,
    /// Nesterov's momentum.
    pub nesterov: bool,
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self { lr: 0.1, momentum: 0.9, weight_decay: 5e-4, nesterov: false }
    }
}

/// g += wd p; b = m b + g (b = g at the first step); p -= lr b, or lr (g + m b) with Nesterov.
#[derive(Debug)]
pub struct Sgd {
    config: SgdConfig,
    buffer: Tensor,
    steps: u64,
}

impl Sgd {
    /// An optimizer before its first step.
    ///
    /// # Errors
    /// 78 naming the field that is out of range.
    pub fn new(config: SgdConfig, parameters: &FlatParams) -> Result<Self> {
        check_range("momentum", config.momentum, 0. ..1.)?;
        check_range("weight_decay", config.weight_decay, 0. ..f64::INFINITY)?;
        ensure!(
            !config.nesterov || config.momentum > 0.,
            Config,
            "optimizer.nesterov: needs optimizer.momentum above 0"
        );
        Ok(Self { config, buffer: parameters.zeros(), steps: 0 })
    }
}

impl Optimizer for Sgd {
    fn step(&mut self, parameters: &FlatParams, gradient: &Tensor, lr: f64) -> Result<()> {
        let SgdConfig { momentum, weight_decay, nesterov, .. } = self.config;
        let step = SgdStep { lr, momentum, weight_decay, nesterov, first: self.steps == 0 };
        shim::fused_sgd(parameters.values(), gradient, &self.buffer, step)?;
        self.steps += 1;
        Ok(())
    }

    fn state(&self, parameters: &FlatParams) -> Vec<(String, Tensor)> {
        let mut state = parameters.named("momentum.", &self.buffer);
        state.push(step_tensor(self.steps));
        state
    }

    fn load(&mut self, parameters: &FlatParams, source: &str, state: &[(String, Tensor)]) -> Result<()> {
        let steps = read_step(source, state)?;
        parameters.read_named(source, "momentum.", state, &self.buffer)?;
        self.steps = steps;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{gradient, parameters};
    use super::*;
    use tch::Kind;

    /// The formulas of torch.optim.SGD's documentation in plain tensor operations.
    #[test]
    fn follows_the_reference() {
        for (momentum, nesterov) in [(0.9, false), (0.9, true), (0., false)] {
            let config = SgdConfig { lr: 0.1, momentum, weight_decay: 0.01, nesterov };
            let (_, flat) = parameters(Kind::Double);
            let mut sgd = Sgd::new(config, &flat).unwrap();
            let mut p = flat.values().copy();
            let mut b = flat.zeros();
            for step in 0..4 {
                let lr = 0.1 / (step + 1) as f64;
                let g = gradient(&flat, step) + &p * config.weight_decay;
                b = if step == 0 { g.copy() } else { &b * momentum + &g };
                let update = if nesterov { &g + &b * momentum } else { b.copy() };
                p = &p - update * lr;
                sgd.step(&flat, &gradient(&flat, step), lr).unwrap();
                let error = (flat.values() - &p).abs().max().double_value(&[]);
                assert!(error < 1e-14, "step {step}: {error}");
            }
        }
    }

    #[test]
    fn nesterov_needs_momentum() {
        let (_, flat) = parameters(Kind::Float);
        let config = SgdConfig { momentum: 0., nesterov: true, ..Default::default() };
        assert!(Sgd::new(config, &flat).is_err());
    }
}

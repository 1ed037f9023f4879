//! Balanced softmax (Ren et al. 2020), alone and blended with cross-entropy.

use super::{Counts, Method, Objective, PerClass, Prior, Progress, cross_entropy};
use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Cross-entropy of `logits + ln n_c`, in training only.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BalancedSoftmax {
    /// What n_c counts.
    pub prior: Prior,
}

impl Method for BalancedSoftmax {
    fn build(&self, counts: &Counts) -> Result<Box<dyn Objective>> {
        let shift = log_counts("balanced_softmax", self.prior, counts)?;
        Ok(Box::new(Blend { shift, alpha: 1. }))
    }
}

/// `alpha` balanced softmax + `(1 - alpha)` cross-entropy (seed paper 002, Fig. 16).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MixBsCe {
    /// Share of balanced softmax, 0 to 1.
    pub alpha: f64,
    /// What n_c counts.
    pub prior: Prior,
}

impl Method for MixBsCe {
    fn build(&self, counts: &Counts) -> Result<Box<dyn Objective>> {
        let alpha = self.alpha;
        ensure!((0. ..=1.).contains(&alpha), Config, "mix_bs_ce: alpha is {alpha}, it must be in 0..=1");
        Ok(Box::new(Blend { shift: log_counts("mix_bs_ce", self.prior, counts)?, alpha }))
    }
}

fn log_counts(loss: &str, prior: Prior, counts: &Counts) -> Result<PerClass> {
    Ok(PerClass::new(counts.positive(prior, loss)?.iter().map(|n| n.ln()).collect()))
}

#[derive(Debug)]
struct Blend {
    shift: PerClass,
    alpha: f64,
}

impl Objective for Blend {
    fn value(&self, logits: &Tensor, target: &Tensor, _: Progress) -> Tensor {
        let balanced = || cross_entropy(&(logits + self.shift.like(logits)), target);
        if self.alpha == 1. {
            return balanced();
        }
        balanced() * self.alpha + cross_entropy(logits, target) * (1. - self.alpha)
    }
}

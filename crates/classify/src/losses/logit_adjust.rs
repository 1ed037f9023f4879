//! Logit adjustment (Menon et al. 2021).

use super::{Counts, Method, Objective, PerClass, Prior, Progress, cross_entropy};
use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Cross-entropy of `logits + tau ln(n_c / sum n)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogitAdjust {
    /// Strength; 1 is consistent for the balanced error.
    pub tau: f64,
    /// What n_c counts.
    pub prior: Prior,
}

impl Method for LogitAdjust {
    fn build(&self, counts: &Counts) -> Result<Box<dyn Objective>> {
        ensure!(self.tau.is_finite(), Config, "logit_adjust: tau is {}", self.tau);
        counts.positive(self.prior, "logit_adjust")?;
        let shares = counts.shares(self.prior, "logit_adjust")?;
        let shift = PerClass::new(shares.iter().map(|share| self.tau * share.ln()).collect());
        Ok(Box::new(Shifted { shift }))
    }
}

#[derive(Debug)]
struct Shifted {
    shift: PerClass,
}

impl Objective for Shifted {
    fn value(&self, logits: &Tensor, target: &Tensor, _: Progress) -> Tensor {
        cross_entropy(&(logits + self.shift.like(logits)), target)
    }
}

//! Class-balanced weights from the effective number of samples (Cui et al. 2019).

use super::focal::{checked_gamma, modulator};
use super::{Counts, Method, Objective, PerClass, Prior, Progress, per_sample, weighted_cross_entropy};
use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Weighted mean `sum w_y l / sum w_y`: the code of LDAM-DRW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CbCe {
    /// Below 1; the closer, the nearer the weights are to 1 / n.
    pub beta: f64,
}

impl Method for CbCe {
    fn build(&self, counts: &Counts) -> Result<Box<dyn Objective>> {
        Ok(Box::new(WeightedMean { weight: weights("cb_ce", self.beta, counts)? }))
    }
}

/// Plain mean of `w_y l`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CbCeMean {
    /// Below 1; the closer, the nearer the weights are to 1 / n.
    pub beta: f64,
}

impl Method for CbCeMean {
    fn build(&self, counts: &Counts) -> Result<Box<dyn Objective>> {
        let weight = weights("cb_ce_mean", self.beta, counts)?;
        Ok(Box::new(WeightedFocal { weight, gamma: 0., probability: Probability::OfLogits }))
    }
}

/// Mean of `w_y (1 - p_y)^gamma l`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CbFocal {
    /// Below 1; the closer, the nearer the weights are to 1 / n.
    pub beta: f64,
    /// Exponent, not negative.
    pub gamma: f64,
}

impl Method for CbFocal {
    fn build(&self, counts: &Counts) -> Result<Box<dyn Objective>> {
        let gamma = checked_gamma("cb_focal", self.gamma)?;
        let weight = weights("cb_focal", self.beta, counts)?;
        Ok(Box::new(WeightedFocal { weight, gamma, probability: Probability::OfLogits }))
    }
}

/// Mean of `(1 - exp(-v))^gamma v` with `v = w_y l`: LDAM-DRW takes p from the weighted cross-entropy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CbFocalLdamdrw {
    /// Below 1; the closer, the nearer the weights are to 1 / n.
    pub beta: f64,
    /// Exponent, not negative.
    pub gamma: f64,
}

impl Method for CbFocalLdamdrw {
    fn build(&self, counts: &Counts) -> Result<Box<dyn Objective>> {
        let gamma = checked_gamma("cb_focal_ldamdrw", self.gamma)?;
        let weight = weights("cb_focal_ldamdrw", self.beta, counts)?;
        Ok(Box::new(WeightedFocal { weight, gamma, probability: Probability::OfWeightedLoss }))
    }
}

/// `(1 - beta) / (1 - beta^n)` of each class, scaled to sum to C.
pub(super) fn weights(loss: &str, beta: f64, counts: &Counts) -> Result<PerClass> {
    ensure!((0. ..1.).contains(&beta), Config, "{loss}: beta is {beta}, it must be in 0..1");
    let counts = counts.positive(Prior::Real, loss)?;
    let raw: Vec<f64> = counts.iter().map(|n| (1. - beta) / -(n * beta.ln()).exp_m1()).collect();
    let scale = raw.len() as f64 / raw.iter().sum::<f64>();
    Ok(PerClass::new(raw.into_iter().map(|weight| weight * scale).collect()))
}

#[derive(Debug)]
struct WeightedMean {
    weight: PerClass,
}

impl Objective for WeightedMean {
    fn value(&self, logits: &Tensor, target: &Tensor, _: Progress) -> Tensor {
        weighted_cross_entropy(logits, target, &self.weight)
    }
}

#[derive(Debug)]
struct WeightedFocal {
    weight: PerClass,
    gamma: f64,
    probability: Probability,
}

/// What the focal factor takes for the probability.
#[derive(Debug)]
enum Probability {
    OfLogits,
    OfWeightedLoss,
}

impl Objective for WeightedFocal {
    fn value(&self, logits: &Tensor, target: &Tensor, _: Progress) -> Tensor {
        let losses = per_sample(logits, target);
        let weighted = &losses * self.weight.like(logits).index_select(0, target);
        if self.gamma == 0. {
            return weighted.mean(None::<Kind>);
        }
        let factor = match self.probability {
            Probability::OfLogits => modulator(&losses, self.gamma),
            Probability::OfWeightedLoss => modulator(&weighted, self.gamma),
        };
        (factor * weighted).mean(None::<Kind>)
    }
}

//! Label-distribution-aware margins and deferred re-weighting (Cao et al. 2019).

use super::class_balanced::weights;
use super::{Counts, Method, Objective, PerClass, Prior, Progress, cross_entropy, weighted_cross_entropy};
use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Cross-entropy of `s (logits - onehot m_y)` with margins `m_c` proportional to `n_c^(-1/4)`.
///
/// The logits are cosines: the head normalises weights and features.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ldam {
    /// Margin of the rarest class.
    pub max_m: f64,
    /// Scale, above 0.
    pub s: f64,
}

impl Method for Ldam {
    fn build(&self, counts: &Counts) -> Result<Box<dyn Objective>> {
        Ok(Box::new(Margins {
            margins: margins("ldam", self.max_m, self.s, counts)?,
            s: self.s,
            deferred: None,
        }))
    }
}

/// LDAM whose classes are weighted from an epoch on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LdamDrw {
    /// Margin of the rarest class.
    pub max_m: f64,
    /// Scale, above 0.
    pub s: f64,
    /// Beta of the class-balanced weights, below 1.
    pub beta: f64,
    /// First epoch with weights, from 0: 160 of 200 on CIFAR.
    pub start_epoch: u64,
}

impl Method for LdamDrw {
    fn build(&self, counts: &Counts) -> Result<Box<dyn Objective>> {
        let margins = margins("ldam_drw", self.max_m, self.s, counts)?;
        let deferred = Some((self.start_epoch, weights("ldam_drw", self.beta, counts)?));
        Ok(Box::new(Margins { margins, s: self.s, deferred }))
    }
}

fn margins(loss: &str, max_m: f64, s: f64, counts: &Counts) -> Result<PerClass> {
    ensure!(max_m >= 0. && max_m.is_finite(), Config, "{loss}: max_m is {max_m}, it must not be negative");
    ensure!(s > 0. && s.is_finite(), Config, "{loss}: s is {s}, it must be above 0");
    let raw: Vec<f64> = counts.positive(Prior::Real, loss)?.iter().map(|n| n.powf(-0.25)).collect();
    let largest = raw.iter().copied().fold(0., f64::max);
    Ok(PerClass::new(raw.iter().map(|margin| margin * max_m / largest).collect()))
}

#[derive(Debug)]
struct Margins {
    margins: PerClass,
    s: f64,
    deferred: Option<(u64, PerClass)>,
}

impl Objective for Margins {
    fn value(&self, logits: &Tensor, target: &Tensor, progress: Progress) -> Tensor {
        let own = target.unsqueeze(1);
        let margins = self.margins.like(logits).index_select(0, target).unsqueeze(1);
        let shifted = logits.scatter_add(1, &own, &-margins) * self.s;
        match &self.deferred {
            Some((start, weight)) if progress.epoch >= *start => {
                weighted_cross_entropy(&shifted, target, weight)
            }
            _ => cross_entropy(&shifted, target),
        }
    }
}

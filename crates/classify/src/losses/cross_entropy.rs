//! Cross-entropy, with hard and with smoothed labels.

use super::{Counts, Method, Objective, Progress, cross_entropy, per_sample};
use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Parameters of plain cross-entropy: none.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ce {}

impl Method for Ce {
    fn build(&self, _: &Counts) -> Result<Box<dyn Objective>> {
        Ok(Box::new(*self))
    }
}

impl Objective for Ce {
    fn value(&self, logits: &Tensor, target: &Tensor, _: Progress) -> Tensor {
        cross_entropy(logits, target)
    }
}

/// Targets `(1 - eps) onehot + eps / C`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelSmoothing {
    /// Mass spread over all classes, 0 to 1.
    pub eps: f64,
}

impl Method for LabelSmoothing {
    fn build(&self, counts: &Counts) -> Result<Box<dyn Objective>> {
        let eps = fraction("label_smoothing", self.eps)?;
        Ok(Box::new(Smoothed { target: 1. - eps, average: eps, classes: counts.classes() as f64 }))
    }
}

/// Targets 1 - eps on the class and eps / (C - 1) on each other one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelSmoothingCm1 {
    /// Mass spread over the other classes, 0 to 1.
    pub eps: f64,
}

impl Method for LabelSmoothingCm1 {
    fn build(&self, counts: &Counts) -> Result<Box<dyn Objective>> {
        let (eps, classes) = (fraction("label_smoothing_cm1", self.eps)?, counts.classes() as f64);
        ensure!(classes >= 2., Config, "label_smoothing_cm1 needs at least two classes");
        // eps / (C - 1) on all classes, and what that leaves of the mass on the right one.
        let share = eps / (classes - 1.);
        Ok(Box::new(Smoothed { target: 1. - eps - share, average: share * classes, classes }))
    }
}

/// Targets `target * onehot + average / C`.
#[derive(Debug)]
struct Smoothed {
    target: f64,
    average: f64,
    classes: f64,
}

impl Objective for Smoothed {
    fn value(&self, logits: &Tensor, target: &Tensor, _: Progress) -> Tensor {
        let log_p = logits.log_softmax(1, None::<Kind>);
        let uniform = log_p.sum_dim_intlist(1, false, None::<Kind>) * (-self.average / self.classes);
        (per_sample(logits, target) * self.target + uniform).mean(None::<Kind>)
    }
}

fn fraction(loss: &str, eps: f64) -> Result<f64> {
    ensure!((0. ..=1.).contains(&eps), Config, "{loss}: eps is {eps}, it must be in 0..=1");
    Ok(eps)
}

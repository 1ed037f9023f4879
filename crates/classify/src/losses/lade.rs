//! LADE: label distribution disentangling (Hong et al. 2021).

use super::{Counts, Method, Objective, PerClass, Prior, Progress, cross_entropy};
use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Keeps the logarithm of an empty class finite; the value is that of the authors' code.
const PRIOR_EPS: f64 = 1e-9;

/// Cross-entropy of `logits + ln prior`, plus `alpha` times the regulariser [`LadeReg`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lade {
    /// Weight of the regulariser.
    pub alpha: f64,
    /// Weight of the squared normaliser within it.
    pub lambda: f64,
}

impl Method for Lade {
    fn build(&self, counts: &Counts) -> Result<Box<dyn Objective>> {
        ensure!(self.alpha.is_finite(), Config, "lade: alpha is {}", self.alpha);
        let shares = counts.shares(Prior::Real, "lade")?;
        let prior = PerClass::new(shares.iter().map(|share| (share + PRIOR_EPS).ln()).collect());
        let regularizer = Regularizer::new("lade", self.lambda, counts)?;
        Ok(Box::new(WithPrior { prior, alpha: self.alpha, regularizer }))
    }
}

/// `-sum_c prior_c (first_c - second_c - lambda second_c^2)`: `first_c` is the batch mean of logit c over the class,
/// `second_c` the log of the mean of exp over the batch, importance-weighted to a uniform prior (Donsker-Varadhan).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LadeReg {
    /// Weight of the squared normaliser.
    pub lambda: f64,
}

impl Method for LadeReg {
    fn build(&self, counts: &Counts) -> Result<Box<dyn Objective>> {
        Ok(Box::new(Regularizer::new("lade_reg", self.lambda, counts)?))
    }
}

#[derive(Debug)]
struct WithPrior {
    prior: PerClass,
    alpha: f64,
    regularizer: Regularizer,
}

impl Objective for WithPrior {
    fn value(&self, logits: &Tensor, target: &Tensor, progress: Progress) -> Tensor {
        let own = cross_entropy(&(logits + self.prior.like(logits)), target);
        own + self.regularizer.value(logits, target, progress) * self.alpha
    }
}

#[derive(Debug)]
struct Regularizer {
    shares: PerClass,
    /// `ln(1 / C) - ln prior`.
    importance: PerClass,
    lambda: f64,
}

impl Regularizer {
    fn new(loss: &str, lambda: f64, counts: &Counts) -> Result<Self> {
        ensure!(lambda.is_finite(), Config, "{loss}: lambda is {lambda}");
        let shares = counts.shares(Prior::Real, loss)?;
        let uniform = (1. / shares.len() as f64 + PRIOR_EPS).ln();
        let importance = shares.iter().map(|share| uniform - (share + PRIOR_EPS).ln()).collect();
        Ok(Self { shares: PerClass::new(shares), importance: PerClass::new(importance), lambda })
    }
}

impl Objective for Regularizer {
    fn value(&self, logits: &Tensor, target: &Tensor, _: Progress) -> Tensor {
        let (rows, classes) = (logits.size()[0] as f64, logits.size()[1]);
        let member = target.one_hot(classes).to_kind(logits.kind());
        let sum = |tensor: Tensor| tensor.sum_dim_intlist(0, false, None::<Kind>);
        let first = sum(logits * &member) / (sum(member) + 1e-8);
        let second = (logits + self.importance.like(logits)).logsumexp(0, false) - rows.ln();
        let inner = first - &second - second.square() * self.lambda;
        -(inner * self.shares.like(logits)).sum(None::<Kind>)
    }
}

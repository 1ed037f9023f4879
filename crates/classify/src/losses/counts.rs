//! Training counts by class, and what losses make of them.

use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use tch::Tensor;

/// Training images by class.
#[derive(Clone, Debug, PartialEq)]
pub struct Counts {
    real: Vec<f64>,
    mixture: Vec<f64>,
}

/// Which counts a prior is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Prior {
    /// The real long-tailed counts, whatever is added to them (seed paper 002 and its re-implementations).
    Real,
    /// What training draws: real and synthetic images by their shares of a batch.
    Mixture,
}

impl Counts {
    /// Counts of a real training set; without synthetic images, the mixture is the same.
    pub fn new(real: &[u64]) -> Self {
        let real: Vec<f64> = real.iter().map(|&count| count as f64).collect();
        Self { mixture: real.clone(), real }
    }

    /// Says what training draws; only the proportions matter.
    ///
    /// # Errors
    /// 65 unless there is one finite, non-negative number per class.
    pub fn with_mixture(mut self, mixture: &[f64]) -> Result<Self> {
        let (have, want) = (mixture.len(), self.real.len());
        ensure!(have == want, BadData, "{have} mixture counts for {want} classes");
        let valid = mixture.iter().all(|count| count.is_finite() && *count >= 0.);
        ensure!(valid, BadData, "mixture counts must be finite and not negative");
        self.mixture = mixture.to_vec();
        Ok(self)
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.real.len()
    }

    /// The counts of a prior.
    pub fn of(&self, prior: Prior) -> &[f64] {
        match prior {
            Prior::Real => &self.real,
            Prior::Mixture => &self.mixture,
        }
    }

    /// [`Counts::of`], all above 0.
    ///
    /// # Errors
    /// 65 naming the first class without images, for the loss `loss`.
    pub(super) fn positive(&self, prior: Prior, loss: &str) -> Result<&[f64]> {
        let counts = self.of(prior);
        ensure!(!counts.is_empty(), BadData, "{loss}: there are no classes");
        if let Some(class) = counts.iter().position(|&count| count <= 0.) {
            let other = match prior {
                Prior::Real => "; where the loss has a prior, \"mixture\" counts synthetic images too",
                Prior::Mixture => "",
            };
            equipoise_base::bail!(BadData, "{loss}: class {class} has no training images{other}")
        }
        Ok(counts)
    }

    /// Shares of the classes, summing to 1; classes without images have 0.
    ///
    /// # Errors
    /// 65 when there are no images at all.
    pub(super) fn shares(&self, prior: Prior, loss: &str) -> Result<Vec<f64>> {
        let total: f64 = self.of(prior).iter().sum();
        ensure!(total > 0., BadData, "{loss}: there are no training images");
        Ok(self.of(prior).iter().map(|count| count / total).collect())
    }
}

/// One number per class [C], on the device and in the kind of the logits it meets.
#[derive(Debug)]
pub(super) struct PerClass {
    values: Vec<f64>,
    /// The last conversion: logits come in one kind on one device, so this is made once.
    ready: RefCell<Option<Tensor>>,
}

impl PerClass {
    pub(super) fn new(values: Vec<f64>) -> Self {
        Self { values, ready: RefCell::new(None) }
    }

    /// The values, as `logits` are stored.
    pub(super) fn like(&self, logits: &Tensor) -> Tensor {
        let mut ready = self.ready.borrow_mut();
        let tensor = ready.take().filter(|t| (t.kind(), t.device()) == (logits.kind(), logits.device()));
        let make = || Tensor::from_slice(&self.values).to_kind(logits.kind()).to_device(logits.device());
        ready.insert(tensor.unwrap_or_else(make)).shallow_clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn per_class_values_follow_the_logits() {
        let values = PerClass::new(vec![1., 2.]);
        for kind in [tch::Kind::Float, tch::Kind::Double, tch::Kind::Float] {
            assert_eq!(values.like(&Tensor::zeros([1, 2], (kind, tch::Device::Cpu))).kind(), kind);
        }
    }

    #[test]
    fn mixtures_are_checked() {
        let counts = Counts::new(&[3, 0]);
        assert_eq!(counts.of(Prior::Mixture), counts.of(Prior::Real));
        assert!(counts.clone().with_mixture(&[1.]).is_err());
        assert!(counts.clone().with_mixture(&[1., f64::NAN]).is_err());
        let error = counts.positive(Prior::Real, "ldam").unwrap_err();
        assert!(error.message().contains("class 1"), "{error}");
        assert_eq!(counts.shares(Prior::Real, "lade").unwrap(), [1., 0.]);
    }
}

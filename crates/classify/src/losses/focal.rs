//! Focal loss (Lin et al. 2017).

use super::{Counts, Method, Objective, Progress, per_sample};
use equipoise_base::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// `(1 - p_y)^gamma` times cross-entropy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Focal {
    /// Exponent, not negative; 0 is cross-entropy.
    pub gamma: f64,
}

impl Method for Focal {
    fn build(&self, _: &Counts) -> Result<Box<dyn Objective>> {
        checked_gamma("focal", self.gamma)?;
        Ok(Box::new(*self))
    }
}

impl Objective for Focal {
    fn value(&self, logits: &Tensor, target: &Tensor, _: Progress) -> Tensor {
        let losses = per_sample(logits, target);
        (modulator(&losses, self.gamma) * losses).mean(None::<Kind>)
    }
}

/// `(1 - exp(-loss))^gamma` [N].
pub(super) fn modulator(losses: &Tensor, gamma: f64) -> Tensor {
    // expm1 keeps the digits of a small loss; at a loss of exactly 0 a power below 1 has no finite slope.
    (-(-losses).expm1()).clamp_min(1e-37).pow_tensor_scalar(gamma)
}

pub(super) fn checked_gamma(loss: &str, gamma: f64) -> Result<f64> {
    ensure!(gamma >= 0. && gamma.is_finite(), Config, "{loss}: gamma is {gamma}, it must not be negative");
    Ok(gamma)
}

//! What the network predicts, and the conversions to noise and image.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// The quantity that the network's output stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise (Ho et al. 2020).
    Epsilon,
    /// v = sqrt(abar) noise - sqrt(1 - abar) image (Salimans and Ho 2022).
    VPrediction,
    /// The image.
    Sample,
}

/// The two ends of the line through x_t.
#[derive(Debug)]
pub struct Estimate {
    /// Predicted image x_0 [N, C, H, W].
    pub x0: Tensor,
    /// Predicted noise [N, C, H, W].
    pub eps: Tensor,
}

/// (sqrt(abar), sqrt(1 - abar)) computed in the precision of the image: where abar is about 1e-9, as at the end of the
/// cosine schedule, only the same rounding as diffusers' gives the same image.
pub(crate) fn roots(abar: f64, kind: Kind) -> (f64, f64) {
    match kind {
        Kind::Float => {
            let abar = abar as f32;
            (abar.sqrt() as f64, (1. - abar).sqrt() as f64)
        }
        _ => (abar.sqrt(), (1. - abar).sqrt()),
    }
}

impl Estimate {
    /// The image that `eps` implies at `x`, given abar of the time step.
    pub fn from_eps(eps: Tensor, x: &Tensor, abar: f64) -> Self {
        let (signal, noise) = roots(abar, x.kind());
        let x0 = (x - &eps * noise) / signal;
        Self { x0, eps }
    }

    /// Both parts without their history.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self { x0: self.x0.detach(), eps: self.eps.detach() }
    }
}

impl Prediction {
    /// Reads the network's output (without variance channels) at `x`, given abar of the time step.
    pub fn estimate(self, output: &Tensor, x: &Tensor, abar: f64) -> Estimate {
        let (signal, noise) = roots(abar, x.kind());
        match self {
            Prediction::Epsilon => Estimate::from_eps(output.shallow_clone(), x, abar),
            Prediction::VPrediction => {
                Estimate { x0: x * signal - output * noise, eps: output * signal + x * noise }
            }
            Prediction::Sample => Estimate { x0: output.shallow_clone(), eps: (x - output * signal) / noise },
        }
    }

    /// What the network should have said for image `x0` and `noise`; `signal` = sqrt(abar) and `scale` =
    /// sqrt(1 - abar) are tensors that broadcast, one value per sample.
    pub fn target(self, x0: &Tensor, noise: &Tensor, signal: &Tensor, scale: &Tensor) -> Tensor {
        match self {
            Prediction::Epsilon => noise.shallow_clone(),
            Prediction::VPrediction => noise * signal - x0 * scale,
            Prediction::Sample => x0.shallow_clone(),
        }
    }

    /// The image implied by `output` at `x`, with one time step per sample; `signal` and `scale` as in
    /// [`Prediction::target`].
    pub fn x0(self, output: &Tensor, x: &Tensor, signal: &Tensor, scale: &Tensor) -> Tensor {
        match self {
            Prediction::Epsilon => (x - output * scale) / signal,
            Prediction::VPrediction => x * signal - output * scale,
            Prediction::Sample => output.shallow_clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn close(a: &Tensor, b: &Tensor) -> bool {
        a.allclose(b, 1e-12, 1e-12, false)
    }

    /// A perfect network is read back as the image and noise that it saw, whatever it predicts.
    #[test]
    fn every_prediction_recovers_image_and_noise() {
        let x0 = Tensor::linspace(-1., 1., 24, (Kind::Double, Device::Cpu)).view([2, 3, 2, 2]);
        let noise = (&x0 * 7.3).sin();
        let abar = 0.37f64;
        let (signal, scale) = (Tensor::from(abar.sqrt()), Tensor::from((1. - abar).sqrt()));
        let x = &x0 * &signal + &noise * &scale;
        for prediction in [Prediction::Epsilon, Prediction::VPrediction, Prediction::Sample] {
            let output = prediction.target(&x0, &noise, &signal, &scale);
            let estimate = prediction.estimate(&output, &x, abar);
            assert!(close(&estimate.x0, &x0) && close(&estimate.eps, &noise), "{prediction:?}");
            assert!(close(&prediction.x0(&output, &x, &signal, &scale), &x0), "{prediction:?}");
            assert!(close(&Estimate::from_eps(estimate.eps, &x, abar).x0, &x0), "{prediction:?}");
        }
    }
}

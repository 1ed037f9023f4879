//! unCLIP's image condition (Ramesh et al. 2022): a CLIP image embedding, normalised, noised, and joined with the code
//! of its noise level; and the dropout of seed 002 (Section 2.2), which keeps copies of the image away.

use crate::schedule::Schedule;
use equipoise_base::{Result, ensure};
use equipoise_models::sinusoid::sinusoid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// What the elements are dropped from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DropoutTarget {
    /// The CLIP embedding, before it is normalised and noised.
    Embedding,
    /// The class label: noised embedding and code of the noise level.
    ClassLabel,
}

/// Elementwise dropout. The paper gives no number; the best public code drops 0.4 of the class label and does not
/// rescale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingDropout {
    /// Probability that an element becomes 0.
    pub p: f64,
    /// What it is an element of.
    pub target: DropoutTarget,
    /// Factor of what is kept.
    pub rescale: DropoutRescale,
}

/// Factor of the elements that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DropoutRescale {
    /// 1.
    None,
    /// 1/(1 - p), which keeps the mean: usual dropout.
    Inverse,
}

impl EmbeddingDropout {
    /// # Errors
    /// 78 naming the key.
    pub fn check(&self) -> Result<()> {
        // What drops everything leaves the text alone, as long as nothing is to make up for it.
        let most = if self.rescale == DropoutRescale::None { 1. } else { 1. - f64::EPSILON };
        ensure!(
            (0.0..=most).contains(&self.p),
            Config,
            "dropout.p = {}: want 0 to 1, and less than 1 with rescale = \"inverse\"",
            self.p
        );
        Ok(())
    }

    /// Keeps the elements of `x` where `uniform`, in [0, 1) and of the same shape, is p or more.
    pub fn apply(&self, x: &Tensor, uniform: &Tensor) -> Tensor {
        self.keep(x, &uniform.ge(self.p).to_kind(x.kind()))
    }

    /// Keeps the elements of `x` where `mask` is 1.
    pub fn keep(&self, x: &Tensor, mask: &Tensor) -> Tensor {
        match self.rescale {
            DropoutRescale::None => x * mask,
            DropoutRescale::Inverse => x * mask / (1. - self.p),
        }
    }
}

/// `StableUnCLIPImageNormalizer` and the scheduler that noises image embeddings.
#[derive(Debug)]
pub struct ImageNoising {
    mean: Tensor,
    std: Tensor,
    alphas_cumprod: Vec<f64>,
}

impl ImageNoising {
    /// `mean` and `std` are [1, E]; `schedule` is in float32, as diffusers computes it.
    ///
    /// # Errors
    /// 65 unless mean and std have one shape, and E is even.
    pub fn new(mean: Tensor, std: Tensor, schedule: &Schedule) -> Result<Self> {
        let (size, other) = (mean.size(), std.size());
        ensure!(
            matches!(size[..], [1, width] if width % 2 == 0) && size == other,
            BadData,
            "image_normalizer: mean {size:?} and std {other:?}: want [1, even width]"
        );
        Ok(Self { mean, std, alphas_cumprod: schedule.alphas_cumprod.clone() })
    }

    /// Width E of an image embedding.
    pub fn width(&self) -> i64 {
        self.mean.size()[1]
    }

    /// # Errors
    /// 65 unless image embeddings have the length `width`.
    pub fn check_width(&self, width: i64) -> Result<()> {
        let want = self.width();
        ensure!(width == want, BadData, "image embeddings of length {width}: image_normalizer has {want}");
        Ok(())
    }

    /// # Errors
    /// 78 naming the key unless there is such a noise level.
    pub fn check_level(&self, level: i64) -> Result<()> {
        let levels = self.alphas_cumprod.len();
        ensure!(
            usize::try_from(level).is_ok_and(|level| level < levels),
            Config,
            "noise_level = {level}: want 0 to {}",
            levels - 1
        );
        Ok(())
    }

    /// CLIP embeddings [N, E] and standard normals of the same shape to class labels [N, 2E]. Level 0 adds the noise of
    /// time step 0, which is little but not none.
    ///
    /// # Panics
    /// If there is no such level (see [`ImageNoising::check_level`]).
    pub fn class_labels(&self, embeddings: &Tensor, level: i64, noise: &Tensor) -> Tensor {
        let abar = self.alphas_cumprod[level as usize] as f32;
        let (signal, scale) = (f64::from(abar.sqrt()), f64::from((1. - abar).sqrt()));
        let normal = (embeddings - &self.mean) / &self.std;
        let noised = (normal * signal + noise * scale) * &self.std + &self.mean;
        let level = Tensor::full([noised.size()[0]], level, (Kind::Int64, noised.device()));
        let code = sinusoid(&level, self.width() / 2).to_kind(noised.kind());
        Tensor::cat(&[noised, code], 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn dropout(rescale: DropoutRescale) -> EmbeddingDropout {
        EmbeddingDropout { p: 0.4, target: DropoutTarget::ClassLabel, rescale }
    }

    #[test]
    fn dropout_keeps_the_rest_as_it_is_or_keeps_the_mean() {
        let (x, uniform) = (Tensor::ones([1, 4], (Kind::Double, Device::Cpu)), [0.1f64, 0.39, 0.4, 0.99]);
        let uniform = Tensor::from_slice(&uniform).view([1, 4]);
        let of = |rescale| Vec::<f64>::try_from(&dropout(rescale).apply(&x, &uniform).get(0)).unwrap();
        assert_eq!(of(DropoutRescale::None), [0., 0., 1., 1.]);
        assert_eq!(of(DropoutRescale::Inverse), [0., 0., 1. / 0.6, 1. / 0.6]);
        let check = |p, rescale| EmbeddingDropout { p, ..dropout(rescale) }.check();
        // Nothing is left to make up for the rest.
        assert!(check(1., DropoutRescale::None).is_ok() && check(1., DropoutRescale::Inverse).is_err());
        assert!(check(1.1, DropoutRescale::None).is_err() && check(-0.1, DropoutRescale::None).is_err());
    }

    #[test]
    fn levels_and_widths_are_checked() {
        let row = |width| Tensor::ones([1, width], (Kind::Float, Device::Cpu));
        let schedule = Schedule::from_alphas_cumprod(vec![0.9, 0.5]);
        assert!(ImageNoising::new(row(3), row(3), &schedule).is_err());
        assert!(ImageNoising::new(row(4), row(2), &schedule).is_err());
        let noising = ImageNoising::new(row(4), row(4), &schedule).unwrap();
        assert!(noising.check_level(1).is_ok() && noising.check_level(2).is_err());
        assert!(noising.check_level(-1).unwrap_err().message().contains("noise_level"));
        let labels = noising.class_labels(&row(4), 1, &row(4).zeros_like());
        // The code of level 1: cosines, then sines.
        assert_eq!(labels.size(), [1, 8]);
        assert!((labels.double_value(&[0, 4]) - 1f64.cos()).abs() < 1e-6);
        assert!((labels.double_value(&[0, 6]) - 1f64.sin()).abs() < 1e-6);
    }
}

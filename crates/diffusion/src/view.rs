//! From the generator's image to the classifier's input.

use equipoise_base::{Result, ensure};
use equipoise_nn::runtime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// How images, nominally in [-1, 1], are brought to [0, 1].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ViewRange {
    /// What lies outside is cut off; the gradient is 0 there.
    #[default]
    Clamp,
    /// Every image is stretched between its own least and largest value, which take no gradient: the published code.
    MinMax,
}

/// Range, size and normalisation that a classifier expects of an image in [-1, 1].
#[derive(Debug)]
pub struct View {
    size: [i64; 2],
    mean: Tensor,
    std: Tensor,
    range: ViewRange,
}

impl View {
    /// `size` is (height, width); `mean` and `std` are per channel, in units of [0, 1].
    ///
    /// # Errors
    /// 78 unless the size is positive and mean and std have one positive-std entry per channel.
    pub fn new(size: [i64; 2], mean: &[f64], std: &[f64], kind: Kind, device: Device) -> Result<Self> {
        ensure!(size.iter().all(|&side| side > 0), Config, "a view of {size:?} pixels");
        ensure!(
            !mean.is_empty() && mean.len() == std.len() && std.iter().all(|&value| value > 0.),
            Config,
            "mean {mean:?} and std {std:?}: want one entry per channel and std > 0"
        );
        let row =
            |values: &[f64]| Tensor::from_slice(values).to_kind(kind).to_device(device).view([1, -1, 1, 1]);
        Ok(Self { size, mean: row(mean), std: row(std), range: ViewRange::default() })
    }

    /// With another way to [0, 1].
    #[must_use]
    pub fn with_range(self, range: ViewRange) -> Self {
        Self { range, ..self }
    }

    /// [N, C, H, W] in [-1, 1] to [N, C, size], normalised: range, antialiased bilinear resize, mean and std.
    pub fn apply(&self, image: &Tensor) -> Tensor {
        let unit = match self.range {
            ViewRange::Clamp => (image / 2. + 0.5).clamp(0., 1.),
            ViewRange::MinMax => {
                let (image, all) = (image / 2. + 0.5, [1i64, 2, 3]);
                let constant = image.detach();
                let (low, high) = (constant.amin(all.as_slice(), true), constant.amax(all.as_slice(), true));
                // A constant image has no range; any divisor leaves it 0.
                (image - &low) / (high - &low).clamp_min(1e-8)
            }
        };
        (resize(&unit, self.size) - &self.mean) / &self.std
    }
}

/// Antialiased bilinear resize of [N, C, H, W] (torch's `interpolate(antialias=True)`, half-pixel centres).
///
/// Two matrix products, so that the gradient is deterministic on every device; a size that does not change gives
/// identity matrices and is skipped.
pub fn resize(image: &Tensor, [height, width]: [i64; 2]) -> Tensor {
    let size = image.size();
    let columns = |x: &Tensor| match size[3] == width {
        true => x.shallow_clone(),
        false => x.matmul(&weights(size[3], width, x).transpose(0, 1)),
    };
    let rows = |x: &Tensor| match size[2] == height {
        true => x.shallow_clone(),
        false => weights(size[2], height, x).matmul(x),
    };
    rows(&columns(image))
}

/// Triangle filter [output, input], widened by the scale when shrinking, rows sum to 1.
fn weights(input: i64, output: i64, like: &Tensor) -> Tensor {
    let scale = input as f64 / output as f64;
    let support = scale.max(1.);
    let mut matrix = vec![0f64; (input * output) as usize];
    for (i, row) in matrix.chunks_mut(input as usize).enumerate() {
        let center = scale * (i as f64 + 0.5);
        let first = ((center - support + 0.5) as usize).min(row.len());
        let last = ((center + support + 0.5) as usize).min(row.len());
        for (j, weight) in row.iter_mut().enumerate().take(last).skip(first) {
            *weight = (1. - ((j as f64 - center + 0.5) / support).abs()).max(0.);
        }
        let total: f64 = row.iter().sum();
        row.iter_mut().for_each(|weight| *weight /= total);
    }
    let matrix = Tensor::from_slice(&matrix).view([output, input]).to_kind(like.kind());
    runtime::upload_to(&matrix, like.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(height: i64, width: i64) -> Tensor {
        let count = 2 * 3 * height * width;
        (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 0.7).sin().view([2, 3, height, width])
    }

    #[test]
    fn resize_is_torch_antialiased_bilinear() {
        for (from, to) in [
            ((16, 16), (32, 32)),
            ((32, 24), (14, 14)),
            ((7, 9), (7, 5)),
            ((28, 28), (28, 28)),
            ((5, 6), (1, 17)),
        ] {
            let image = image(from.0, from.1);
            let want = image.internal_upsample_bilinear2d_aa([to.0, to.1], false, None, None);
            let got = resize(&image, [to.0, to.1]);
            assert!(got.allclose(&want, 1e-12, 1e-12, false), "{from:?} to {to:?}");
        }
    }

    /// The reference resizes even when the size stays; skipping that changes no bit.
    #[test]
    fn resizing_to_the_same_size_is_the_identity() {
        let image = image(28, 28).to_kind(Kind::Float);
        assert_eq!(image.internal_upsample_bilinear2d_aa([28, 28], false, None, None), image);
    }

    #[test]
    fn view_clamps_and_normalises() {
        let view = View::new([1, 2], &[0.5], &[0.25], Kind::Double, Device::Cpu).unwrap();
        let out = view.apply(&Tensor::from_slice(&[-3f64, 0.]).view([1, 1, 1, 2]));
        assert_eq!(out, Tensor::from_slice(&[-2f64, 0.]).view([1, 1, 1, 2]));
        assert!(View::new([1, 2], &[0.5], &[0.], Kind::Double, Device::Cpu).is_err());
    }

    #[test]
    fn min_max_stretches_each_image_on_its_own() {
        let view = View::new([1, 2], &[0.], &[1.], Kind::Double, Device::Cpu).unwrap();
        let view = view.with_range(ViewRange::MinMax);
        let images = Tensor::from_slice(&[-3f64, 5., 0.2, 0.1, 4., 4.]).view([3, 1, 1, 2]);
        let want = Tensor::from_slice(&[0f64, 1., 1., 0., 0., 0.]).view([3, 1, 1, 2]);
        assert!(view.apply(&images).allclose(&want, 1e-12, 1e-12, false));
    }
}

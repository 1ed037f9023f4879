//! From what is diffused to the image that a classifier sees, and gradients back with little memory.

use equipoise_models::autoencoder_kl::AutoencoderKL;
use std::borrow::Borrow;
use tch::{Kind, Tensor};

/// A differentiable decoder whose work can be cut in parts; one sample never touches another.
pub trait Decoder {
    /// Number of parts.
    fn segments(&self) -> usize;
    /// One part; `index` counts from 0.
    fn segment(&self, index: usize, x: &Tensor) -> Tensor;

    /// All parts.
    fn decode(&self, x: &Tensor) -> Tensor {
        (0..self.segments()).fold(x.shallow_clone(), |x, index| self.segment(index, &x))
    }
}

/// The decoder of a latent diffusion: undoes the scaling, then the autoencoder, which it owns or borrows.
#[derive(Debug)]
pub struct LatentDecoder<V> {
    vae: V,
    grey: bool,
}

impl<V: Borrow<AutoencoderKL>> LatentDecoder<V> {
    /// Decodes to colour images.
    pub fn new(vae: V) -> Self {
        Self { vae, grey: false }
    }

    /// Decodes to one channel, for data sets of grey images.
    #[must_use]
    pub fn grey(self) -> Self {
        Self { grey: true, ..self }
    }

    /// The autoencoder.
    pub fn autoencoder(&self) -> &AutoencoderKL {
        self.vae.borrow()
    }
}

impl<V: Borrow<AutoencoderKL>> Decoder for LatentDecoder<V> {
    fn segments(&self) -> usize {
        self.autoencoder().segments()
    }

    fn segment(&self, index: usize, x: &Tensor) -> Tensor {
        let vae = self.autoencoder();
        let x = match index {
            0 => vae.decode_segment(0, &(x / vae.scaling_factor())),
            index => vae.decode_segment(index, x),
        };
        if self.grey && index + 1 == self.segments() { luma(&x) } else { x }
    }
}

/// ITU-R 601 luma of [N, 3, H, W], as PIL's conversion to grey: [N, 1, H, W].
fn luma(image: &Tensor) -> Tensor {
    let weights = Tensor::from_slice(&[0.299f64, 0.587, 0.114]).view([1, 3, 1, 1]);
    let weights = weights.to_kind(image.kind()).to_device(image.device());
    (image * weights).sum_dim_intlist([1i64].as_slice(), true, None::<Kind>)
}

/// How much memory decoding may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecodeMemory {
    /// Decode one image at a time. Kernels then see another batch, so last bits may differ.
    pub sliced: bool,
    /// For gradients, keep only what enters each part and compute the rest again. The same bits in about 4/3 of the
    /// time, with the memory of the largest part.
    pub checkpointed: bool,
}

/// Decodes `x` [N, ..] without gradients.
pub fn decode(decoder: &dyn Decoder, x: &Tensor, memory: DecodeMemory) -> Tensor {
    tch::no_grad(|| match memory.sliced {
        false => decoder.decode(x),
        true => {
            let images: Vec<Tensor> =
                (0..x.size()[0]).map(|sample| decoder.decode(&x.narrow(0, sample, 1))).collect();
            Tensor::cat(&images, 0)
        }
    })
}

/// The value of `objective` [N] at the decoded `x`, and the gradient of its sum at `x`; both detached.
///
/// `decoder` is `None` where `x` is the image.
pub fn value_and_gradient(
    decoder: Option<&dyn Decoder>,
    x: &Tensor,
    checkpointed: bool,
    objective: &dyn Fn(&Tensor) -> Tensor,
) -> (Tensor, Tensor) {
    match decoder {
        Some(decoder) if checkpointed => {
            let mut inputs = vec![x.detach()];
            for index in 0..decoder.segments() {
                let next = tch::no_grad(|| decoder.segment(index, &inputs[index]));
                inputs.push(next);
            }
            let image = inputs.pop().unwrap_or_else(|| x.shallow_clone());
            let (value, mut gradient) = pull(&image, &|image| objective(image), None);
            for (index, input) in inputs.iter().enumerate().rev() {
                gradient = pull(input, &|x| decoder.segment(index, x), Some(&gradient)).1;
            }
            (value, gradient)
        }
        Some(decoder) => pull(x, &|x| objective(&decoder.decode(x)), None),
        None => pull(x, objective, None),
    }
}

/// Output of `function` at `x`, and the gradient of its sum weighted by `cotangent` (1 everywhere if `None`).
fn pull(x: &Tensor, function: &dyn Fn(&Tensor) -> Tensor, cotangent: Option<&Tensor>) -> (Tensor, Tensor) {
    let leaf = x.detach().set_requires_grad(true);
    let out = tch::with_grad(|| function(&leaf));
    let gradient = gradient(&out, &leaf, cotangent);
    (out.detach(), gradient)
}

/// Gradient at `leaf` of the sum of `out`, weighted by `cotangent`.
pub(crate) fn gradient(out: &Tensor, leaf: &Tensor, cotangent: Option<&Tensor>) -> Tensor {
    let total = tch::with_grad(|| match cotangent {
        Some(cotangent) => (out * cotangent).sum(None::<Kind>),
        None => out.sum(None::<Kind>),
    });
    Tensor::run_backward(&[total], &[leaf], false, false).remove(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_models::autoencoder_kl::AutoencoderKLConfig;
    use equipoise_nn::Params;
    use serde_json::json;
    use tch::Device;

    fn vae() -> AutoencoderKL {
        let json = json!({
            "block_out_channels": [8, 16], "norm_num_groups": 4, "scaling_factor": 0.5,
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
        });
        let params = Params::new(1, Kind::Float, Device::Cpu);
        let vae = AutoencoderKL::new(
            &params.root(),
            &AutoencoderKLConfig::from_json("vae/config.json", json).unwrap(),
        );
        params.freeze();
        vae
    }

    fn latents() -> Tensor {
        (Tensor::arange(3 * 4 * 4 * 6, (Kind::Float, Device::Cpu)) * 0.37).sin().view([3, 4, 4, 6])
    }

    /// Memory is saved, not a bit is changed.
    #[test]
    fn checkpointing_gives_the_same_bits() {
        let (vae, x) = (vae(), latents());
        let decoder = LatentDecoder::new(&vae);
        let objective = |image: &Tensor| {
            (image.square() * (image * 3.).sin()).mean_dim([1i64, 2, 3].as_slice(), false, None::<Kind>)
        };
        let [plain, saved] =
            [false, true].map(|saved| value_and_gradient(Some(&decoder), &x, saved, &objective));
        assert_eq!((plain.0, plain.1.size()), (saved.0, x.size()));
        assert_eq!(plain.1, saved.1);
        assert!(plain.1.abs().max().double_value(&[]) > 0. && !plain.1.requires_grad());
    }

    #[test]
    fn slicing_changes_round_off_only_and_the_scaling_is_undone() {
        let (vae, x) = (vae(), latents());
        let whole = decode(&LatentDecoder::new(&vae), &x, DecodeMemory::default());
        let sliced =
            decode(&LatentDecoder::new(&vae), &x, DecodeMemory { sliced: true, ..DecodeMemory::default() });
        assert!(whole.allclose(&sliced, 1e-4, 1e-5, false));
        assert!(whole.allclose(&tch::no_grad(|| vae.decode(&(&x * 2.))), 1e-4, 1e-5, false));
        let grey = decode(&LatentDecoder::new(&vae).grey(), &x, DecodeMemory::default());
        let channel = |i: i64| whole.narrow(1, i, 1);
        assert!(grey.allclose(
            &(channel(0) * 0.299 + channel(1) * 0.587 + channel(2) * 0.114),
            1e-4,
            1e-5,
            false
        ));
    }
}

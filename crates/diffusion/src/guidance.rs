//! From a network to what a sampler asks: the output at one time step for the whole batch, after classifier-free
//! guidance.

use tch::{Kind, Tensor};

/// A network that takes noisy images, time steps and labels.
pub trait DenoisingNetwork {
    /// `x` [N, C, H, W], `t` [N] float32, `y` [N] int64 (`None` if unconditional) to [N, C or 2C, H, W].
    fn forward(&self, x: &Tensor, t: &Tensor, y: Option<&Tensor>) -> Tensor;
}

impl DenoisingNetwork for equipoise_models::adm::AdmUNet {
    fn forward(&self, x: &Tensor, t: &Tensor, y: Option<&Tensor>) -> Tensor {
        equipoise_models::adm::AdmUNet::forward(self, x, t, y)
    }
}

/// What a sampler needs: the guided output for a batch whose conditions are fixed.
pub trait Denoiser {
    /// `x` [N, C, H, W] at time step `t` to [N, C or 2C, H, W]; differentiable in `x`.
    fn denoise(&self, x: &Tensor, t: i64) -> Tensor;
    /// The same without classifier-free guidance: the conditional pass alone.
    fn conditional(&self, x: &Tensor, t: i64) -> Tensor;
}

/// uncond + scale (cond - uncond) from the output [2N, ..] of a doubled batch [uncond; cond]. Channels after the first
/// `channels` are a learned variance, which is no score: it is left as the conditional pass says.
pub(crate) fn extrapolate(both: &Tensor, channels: i64, scale: f64) -> Tensor {
    let halves = both.chunk(2, 0);
    let (uncond, cond) = (&halves[0], &halves[1]);
    let extra = cond.size()[1] - channels;
    let (base, target) = (uncond.narrow(1, 0, channels), cond.narrow(1, 0, channels));
    let guided = &base + (target - &base) * scale;
    if extra == 0 {
        return guided;
    }
    Tensor::cat(&[guided, cond.narrow(1, channels, extra)], 1)
}

/// A network with the labels of one batch and classifier-free guidance (Ho and Salimans 2022).
pub struct ClassConditional<'a> {
    network: &'a dyn DenoisingNetwork,
    labels: Option<Tensor>,
    doubled: Option<Tensor>,
    scale: f64,
}

impl<'a> ClassConditional<'a> {
    /// An unconditional network.
    pub fn unconditional(network: &'a dyn DenoisingNetwork) -> Self {
        Self { network, labels: None, doubled: None, scale: 1. }
    }

    /// The conditional output alone.
    pub fn new(network: &'a dyn DenoisingNetwork, labels: Tensor) -> Self {
        Self { network, labels: Some(labels), doubled: None, scale: 1. }
    }

    /// uncond + scale (cond - uncond), from one pass over the doubled batch [uncond; cond]; with a scale up to 1 the
    /// conditional output alone.
    pub fn guided(network: &'a dyn DenoisingNetwork, labels: Tensor, null_label: i64, scale: f64) -> Self {
        let doubled =
            (scale > 1.).then(|| Tensor::cat(&[labels.full_like(null_label), labels.shallow_clone()], 0));
        Self { network, labels: Some(labels), doubled, scale }
    }
}

impl std::fmt::Debug for ClassConditional<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClassConditional").field("scale", &self.scale).finish_non_exhaustive()
    }
}

impl ClassConditional<'_> {
    fn run(&self, x: &Tensor, t: i64, labels: Option<&Tensor>) -> Tensor {
        let t = Tensor::full([x.size()[0]], t as f64, (Kind::Float, x.device()));
        self.network.forward(x, &t, labels)
    }
}

impl Denoiser for ClassConditional<'_> {
    fn denoise(&self, x: &Tensor, t: i64) -> Tensor {
        match &self.doubled {
            None => self.conditional(x, t),
            Some(labels) => {
                let both = self.run(&Tensor::cat(&[x, x], 0), t, Some(labels));
                extrapolate(&both, x.size()[1], self.scale)
            }
        }
    }

    fn conditional(&self, x: &Tensor, t: i64) -> Tensor {
        self.run(x, t, self.labels.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Output = label + x, with a second set of channels that holds the label.
    struct Labels;

    impl DenoisingNetwork for Labels {
        fn forward(&self, x: &Tensor, _t: &Tensor, y: Option<&Tensor>) -> Tensor {
            let label = y.unwrap().to_kind(x.kind()).view([-1, 1, 1, 1]);
            Tensor::cat(&[x + &label, label.expand_as(x)], 1)
        }
    }

    #[test]
    fn guidance_extrapolates_the_score_and_keeps_the_variance() {
        let x = Tensor::ones([2, 1, 2, 2], (Kind::Double, Device::Cpu));
        let labels = Tensor::from_slice(&[1i64, 2]);
        let out = ClassConditional::guided(&Labels, labels.shallow_clone(), 10, 3.).denoise(&x, 5);
        // 1 + 10 + 3 (label - 10)
        assert_eq!(out.double_value(&[0, 0, 0, 0]), 11. + 3. * (1. - 10.));
        assert_eq!(out.double_value(&[1, 0, 1, 1]), 11. + 3. * (2. - 10.));
        assert_eq!(out.double_value(&[1, 1, 0, 0]), 2.);
        let plain = ClassConditional::guided(&Labels, labels.shallow_clone(), 10, 1.).denoise(&x, 5);
        assert_eq!(plain, ClassConditional::new(&Labels, labels).denoise(&x, 5));
    }
}

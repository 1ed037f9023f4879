//! Number formats and memory layout: which kernels run, and therefore which bits come out.

use crate::shim;
use equipoise_base::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Format in which matrix products and convolutions run; statistics stay fp32, and parameters do unless they are [`Held`]
/// otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits throughout.
    #[default]
    Fp32,
    /// bfloat16 by autocasting: fp32's range, 8 bits of mantissa.
    Bf16,
    /// float16 by autocasting. Small gradients underflow, so it is for inference; train in bf16.
    Fp16,
}

impl Precision {
    /// Kind that autocasting computes in, `None` for fp32.
    pub fn autocast_kind(self) -> Option<Kind> {
        match self {
            Precision::Fp32 => None,
            Precision::Bf16 => Some(Kind::BFloat16),
            Precision::Fp16 => Some(Kind::Half),
        }
    }

    /// Runs the forward pass in `body` with this precision on `device`; backward belongs outside.
    ///
    /// Within an outer scope the inner one counts: `Fp32` switches autocasting off.
    ///
    /// # Errors
    /// 101 if libtorch refuses to autocast on this device.
    pub fn scope<T>(self, device: Device, body: impl FnOnce() -> T) -> Result<T> {
        let _guard = shim::Autocast::enter(device, self.autocast_kind())?;
        Ok(body())
    }
}

/// Number formats that parameters are held in.
///
/// Under autocasting a matrix product or a convolution rounds its weights to the short format each time; weights held in
/// that format are rounded once, to the same values. Biases and the parameters of norms, which are few and which norms
/// use in full, stay long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Parameters of one dimension: biases, weights of norms; and buffers.
    pub vectors: Kind,
    /// Parameters of two dimensions or more.
    pub matrices: Kind,
}

impl From<Kind> for Held {
    fn from(kind: Kind) -> Self {
        Self { vectors: kind, matrices: kind }
    }
}

impl From<Precision> for Held {
    /// What computing in this precision needs: no copies in fp32 beside it.
    fn from(precision: Precision) -> Self {
        Self { vectors: Kind::Float, matrices: precision.autocast_kind().unwrap_or(Kind::Float) }
    }
}

/// Runs `body` without autocasting, whatever the scope around it: for the few operations that need fp32's range.
///
/// # Panics
/// If libtorch refuses to leave autocasting, which is a bug.
pub fn full<T>(device: Device, body: impl FnOnce() -> T) -> T {
    Precision::Fp32.scope(device, body).unwrap_or_else(|error| panic!("{error}"))
}

/// Order of the values of an image batch [N, C, H, W] in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemoryFormat {
    /// Row-major NCHW.
    Contiguous,
    /// NHWC: faster convolutions on CPUs and on tensor cores.
    #[default]
    ChannelsLast,
}

impl MemoryFormat {
    /// The faster order for networks with group norms, such as the U-Nets and the decoder of a latent diffusion: on a CPU
    /// libtorch's group norm and its surroundings lose more by NHWC than the convolutions gain.
    pub fn with_group_norms(device: Device) -> Self {
        if device.is_cuda() { MemoryFormat::ChannelsLast } else { MemoryFormat::Contiguous }
    }

    /// The same values in this order, a cheap clone if they are already.
    ///
    /// Convolutions and what follows keep the order of their input, so converting a network's input is enough.
    ///
    /// # Errors
    /// 101 if the tensor has not four dimensions.
    pub fn apply(self, images: &Tensor) -> Result<Tensor> {
        shim::memory_format(images, self == MemoryFormat::ChannelsLast)
    }

    /// The order that libtorch sees in a tensor [N, C, H, W].
    pub fn of(images: &Tensor) -> Result<Self> {
        Ok(if shim::is_channels_last(images)? {
            MemoryFormat::ChannelsLast
        } else {
            MemoryFormat::Contiguous
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product_kind() -> Kind {
        let x = Tensor::ones([2, 2], (Kind::Float, Device::Cpu));
        x.matmul(&x).kind()
    }

    #[test]
    fn scopes_nest_and_end() {
        let kinds = Precision::Bf16
            .scope(Device::Cpu, || {
                let outer = product_kind();
                let inner = Precision::Fp32.scope(Device::Cpu, product_kind).unwrap();
                let half = Precision::Fp16.scope(Device::Cpu, product_kind).unwrap();
                (outer, inner, half, product_kind())
            })
            .unwrap();
        assert_eq!(kinds, (Kind::BFloat16, Kind::Float, Kind::Half, Kind::BFloat16));
        assert_eq!(product_kind(), Kind::Float);
    }

    #[test]
    fn a_panic_ends_the_scope() {
        let unwound =
            std::panic::catch_unwind(|| Precision::Bf16.scope(Device::Cpu, || panic!("on purpose")));
        assert!(unwound.is_err());
        assert_eq!(product_kind(), Kind::Float);
    }

    #[test]
    fn channels_last_keeps_values_and_holds_for_one_channel() {
        for channels in [1, 3] {
            let x = Tensor::arange(2 * channels * 20, (Kind::Float, Device::Cpu)).view([2, channels, 4, 5]);
            let y = MemoryFormat::ChannelsLast.apply(&x).unwrap();
            assert_eq!(MemoryFormat::of(&x).unwrap(), MemoryFormat::Contiguous);
            assert_eq!(MemoryFormat::of(&y).unwrap(), MemoryFormat::ChannelsLast);
            assert!(x.equal(&y));
            assert_eq!(
                MemoryFormat::of(&MemoryFormat::Contiguous.apply(&y).unwrap()).unwrap(),
                MemoryFormat::Contiguous
            );
        }
    }

    #[test]
    fn names_in_the_configuration() {
        assert_eq!(serde_json::to_string(&Precision::Bf16).unwrap(), "\"bf16\"");
        assert_eq!(serde_json::to_string(&MemoryFormat::ChannelsLast).unwrap(), "\"channels_last\"");
    }
}

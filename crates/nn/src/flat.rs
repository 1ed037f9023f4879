//! All trainable parameters of a model in one contiguous storage.
//!
//! Optimizers, averages and reductions then work on one vector each, whatever the model; names come back for
//! checkpoints through [`Slice`]s.

use crate::{MemoryFormat, Params};
use equipoise_base::{Error, Result, ensure};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Every parameter starts on a multiple of this many bytes: vector units and tensor cores want aligned weights.
const ALIGNMENT: i64 = 64;

/// Where one parameter lies in a flat vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Name in the state dict.
    pub name: String,
    /// First element.
    pub offset: i64,
    /// Shape of the parameter.
    pub shape: Vec<i64>,
    /// Order of its values, which is that of the parameter: gradients come in it, too.
    pub format: MemoryFormat,
}

impl Slice {
    /// Number of elements.
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }

    /// This parameter's part of `flat`, as a view.
    pub fn view(&self, flat: &Tensor) -> Tensor {
        let part = flat.narrow(0, self.offset, self.numel());
        match (self.format, &self.shape[..]) {
            (MemoryFormat::ChannelsLast, &[o, i, h, w]) => part.view([o, h, w, i]).permute([0, 3, 1, 2]),
            _ => part.view(&*self.shape),
        }
    }

    /// A tensor of the parameter's shape as it lies in a flat vector: without a copy if it has this order.
    fn flatten(&self, tensor: &Tensor) -> Tensor {
        match self.format {
            MemoryFormat::ChannelsLast => tensor.permute([0, 2, 3, 1]).reshape([-1]),
            MemoryFormat::Contiguous => tensor.reshape([-1]),
        }
    }
}

/// Parameters that share one storage; the modules that created them see every change.
#[derive(Debug)]
pub struct FlatParams {
    values: Tensor,
    slices: Vec<Slice>,
    parameters: Vec<Tensor>,
    /// Zeros that fill the gap behind each parameter.
    gaps: Vec<Tensor>,
}

impl FlatParams {
    /// Moves all trainable parameters of a model, in order of construction.
    ///
    /// # Errors
    /// 78 if there is none.
    pub fn new(params: &Params) -> Result<Self> {
        Self::of(params.trainable())
    }

    /// Moves the given parameters, such as those of a classifier's head alone.
    ///
    /// # Errors
    /// 78 if there is none, or if they differ in kind or device.
    pub fn of(parameters: Vec<(String, Tensor)>) -> Result<Self> {
        let Some((_, first)) = parameters.first() else {
            return Err(Error::config("the model has no trainable parameter to optimize"));
        };
        let options = (first.kind(), first.device());
        let granule = ALIGNMENT / first.kind().elt_size_in_bytes() as i64;
        let (mut slices, mut gaps, mut length) = (Vec::new(), Vec::new(), 0);
        for (name, tensor) in &parameters {
            let found = (tensor.kind(), tensor.device());
            ensure!(found == options, Config, "parameter '{name}' is {found:?}, the others are {options:?}");
            let (shape, numel) = (tensor.size(), tensor.numel() as i64);
            let gap = (granule - numel % granule) % granule;
            let format =
                if tensor.is_contiguous() { MemoryFormat::Contiguous } else { MemoryFormat::of(tensor)? };
            slices.push(Slice { name: name.clone(), offset: length, shape, format });
            gaps.push(Tensor::zeros([gap], options));
            length += numel + gap;
        }
        let values = Tensor::zeros([length], options);
        let mut parameters: Vec<Tensor> = parameters.into_iter().map(|(_, tensor)| tensor).collect();
        tch::no_grad(|| {
            for (slice, parameter) in slices.iter().zip(&mut parameters) {
                let mut view = slice.view(&values);
                view.copy_(parameter);
                parameter.set_data(&view);
            }
        });
        Ok(Self { values, slices, parameters, gaps })
    }

    /// The values, [len]: the parameters in order with zeros in the gaps. Writing here changes the model.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// Length of a flat vector, gaps included.
    pub fn len(&self) -> i64 {
        self.values.numel() as i64
    }

    /// Whether there is nothing to train; never, after construction.
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// Where each parameter lies.
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// The parameters themselves, in order.
    pub(crate) fn parameters(&self) -> &[Tensor] {
        &self.parameters
    }

    /// A new flat vector of zeros.
    pub fn zeros(&self) -> Tensor {
        self.values.zeros_like()
    }

    /// Gradient of a scalar `loss`, [len]; zero for parameters that it does not depend on. No `.grad` is touched.
    ///
    /// # Panics
    /// If `loss` depends on none of the parameters.
    pub fn gradient(&self, loss: &Tensor) -> Tensor {
        let gradients = Tensor::run_backward(&[loss], &self.parameters, false, false);
        let mut parts = Vec::with_capacity(2 * gradients.len());
        for ((gradient, slice), gap) in gradients.into_iter().zip(&self.slices).zip(&self.gaps) {
            parts.push(match gradient.defined() {
                true => slice.flatten(&gradient),
                false => Tensor::zeros([slice.numel()], (self.values.kind(), self.values.device())),
            });
            parts.push(gap.shallow_clone());
        }
        tch::no_grad(|| Tensor::cat(&parts, 0))
    }

    /// Views of a flat vector as `{prefix}{parameter}`, in the shapes of the parameters.
    pub fn named(&self, prefix: &str, flat: &Tensor) -> Vec<(String, Tensor)> {
        self.slices.iter().map(|slice| (format!("{prefix}{}", slice.name), slice.view(flat))).collect()
    }

    /// The inverse of [`FlatParams::named`]: copies `{prefix}{parameter}` out of `tensors` into `flat`, converting
    /// their kind.
    ///
    /// # Errors
    /// 65 naming the first tensor that is missing or of another shape; `flat` is unchanged then.
    pub fn read_named(
        &self,
        source: &str,
        prefix: &str,
        tensors: &[(String, Tensor)],
        flat: &Tensor,
    ) -> Result<()> {
        let given: BTreeMap<&str, &Tensor> =
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut found = Vec::with_capacity(self.slices.len());
        for slice in &self.slices {
            let name = format!("{prefix}{}", slice.name);
            let Some(tensor) = given.get(name.as_str()) else {
                equipoise_base::bail!(BadData, "{source}: tensor '{name}' is missing")
            };
            let (have, want) = (tensor.size(), &slice.shape);
            ensure!(
                have == *want,
                BadData,
                "{source}: tensor '{name}' is {have:?}, the model wants {want:?}"
            );
            found.push(*tensor);
        }
        tch::no_grad(|| {
            for (slice, tensor) in self.slices.iter().zip(found) {
                slice.view(flat).copy_(tensor);
            }
        });
        Ok(())
    }
}

/// Scales a gradient so that its norm is at most `max_norm`; the norm before is returned. Both stay on the device,
/// so nothing waits for a GPU. As `torch.nn.utils.clip_grad_norm_`.
pub fn clip_by_global_norm(gradient: &mut Tensor, max_norm: f64) -> Tensor {
    tch::no_grad(|| {
        let norm = gradient.norm();
        let scale = ((&norm + 1e-6).reciprocal() * max_norm).clamp_max(1.0);
        let _ = gradient.g_mul_(&scale);
        norm
    })
}

/// Whether all values are finite: reads one flag back, so it waits for the device.
pub fn is_finite(flat: &Tensor) -> bool {
    // The sum of squares would overflow in fp32 where no value does. Both ends are NaN if anything is.
    let (low, high) = match flat.numel() {
        0 => return true,
        _ => flat.aminmax(None, false),
    };
    Tensor::stack(&[low, high], 0).to_kind(Kind::Double).abs().max().double_value(&[]).is_finite()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{Conv2d, Conv2dConfig, Linear};
    use tch::Device;

    fn model() -> (Params, Conv2d, Linear, Linear) {
        model_of(MemoryFormat::Contiguous)
    }

    fn model_of(kernels: MemoryFormat) -> (Params, Conv2d, Linear, Linear) {
        let params = Params::new(3, Kind::Float, Device::Cpu).with_kernels(kernels);
        let conv = Conv2d::new(&params.root().sub("conv"), 2, 3, Conv2dConfig::same(3));
        let linear = Linear::new(&params.root().sub("fc"), 3, 5);
        let unused = Linear::new(&params.root().sub("unused"), 3, 2);
        (params, conv, linear, unused)
    }

    fn loss(conv: &Conv2d, linear: &Linear) -> Tensor {
        let x = Tensor::arange(2 * 2 * 16, (Kind::Float, Device::Cpu)).view([2, 2, 4, 4]).sin();
        let features = conv.forward(&x).relu().mean_dim([2i64, 3].as_slice(), false, Kind::Float);
        linear.forward(&features).square().sum(Kind::Float)
    }

    #[test]
    fn moving_keeps_values_and_modules_see_changes() {
        let (params, conv, linear, _) = model();
        let before: Vec<Tensor> = params.trainable().iter().map(|(_, tensor)| tensor.copy()).collect();
        let loss_before = loss(&conv, &linear);
        let flat = FlatParams::new(&params).unwrap();
        for (tensor, (name, now)) in before.iter().zip(params.trainable()) {
            assert!(tensor.equal(&now), "{name}");
            assert_eq!(now.data_ptr() as i64 % ALIGNMENT, 0, "{name}");
        }
        assert!(loss(&conv, &linear).equal(&loss_before));
        let _ = tch::no_grad(|| flat.values().shallow_clone().fill_(0.));
        assert_eq!(loss(&conv, &linear).double_value(&[]), 0.);
    }

    #[test]
    fn gradient_is_autograds_with_zeros_for_the_unused() {
        for kernels in [MemoryFormat::Contiguous, MemoryFormat::ChannelsLast] {
            let (params, conv, linear, _) = model_of(kernels);
            let flat = FlatParams::new(&params).unwrap();
            let gradient = flat.gradient(&loss(&conv, &linear));
            assert_eq!(gradient.numel() as i64, flat.len());
            loss(&conv, &linear).backward();
            for ((name, got), (_, parameter)) in flat.named("", &gradient).iter().zip(params.trainable()) {
                let unused = name.starts_with("unused");
                let expected = if unused { parameter.zeros_like() } else { parameter.grad() };
                assert!(got.equal(&expected), "{name}");
                assert!(unused || got.abs().max().double_value(&[]) > 0., "{name}");
            }
        }
    }

    #[test]
    fn kernels_keep_their_order_in_the_flat_vector() {
        let (contiguous, channels_last) = (model(), model_of(MemoryFormat::ChannelsLast));
        let flat = FlatParams::new(&channels_last.0).unwrap();
        for ((name, a), (_, b)) in contiguous.0.trainable().iter().zip(channels_last.0.trainable()) {
            assert!(a.equal(&b), "{name}");
        }
        let kernel = &flat.parameters()[0];
        assert_eq!(kernel.size(), [3, 2, 3, 3]);
        assert_eq!(MemoryFormat::of(kernel).unwrap(), MemoryFormat::ChannelsLast);
        assert!(loss(&contiguous.1, &contiguous.2).allclose(
            &loss(&channels_last.1, &channels_last.2),
            1e-5,
            0.,
            false
        ));
    }

    #[test]
    fn names_round_trip_and_bad_ones_are_told() {
        let (params, ..) = model();
        let flat = FlatParams::new(&params).unwrap();
        let numbers = Tensor::arange(flat.len(), (Kind::Float, Device::Cpu));
        let mut named = flat.named("m.", &numbers);
        let copy = flat.zeros();
        flat.read_named("f", "m.", &named, &copy).unwrap();
        for ((name, a), (_, b)) in flat.named("", &copy).iter().zip(flat.named("", &numbers)) {
            assert!(a.equal(&b), "{name}");
        }
        let last = named.pop().unwrap();
        let missing = flat.read_named("f", "m.", &named, &copy).unwrap_err();
        assert!(missing.message().contains("m.unused.bias"), "{missing}");
        named.push((last.0, Tensor::zeros([7], (Kind::Float, Device::Cpu))));
        let shape = flat.read_named("f", "m.", &named, &copy).unwrap_err();
        assert!(shape.message().contains("[7]"), "{shape}");
    }

    #[test]
    fn clipping_and_finiteness() {
        let mut gradient = Tensor::from_slice(&[3f32, 4.]);
        assert_eq!(clip_by_global_norm(&mut gradient, 10.).double_value(&[]), 5.);
        assert!(gradient.equal(&Tensor::from_slice(&[3f32, 4.])));
        let _ = clip_by_global_norm(&mut gradient, 1.);
        assert!((gradient.norm().double_value(&[]) - 1.).abs() < 1e-5);
        assert!(is_finite(&Tensor::from_slice(&[3e38f32, -3e38])));
        assert!(!is_finite(&Tensor::from_slice(&[1f32, f32::NAN])));
        assert!(!is_finite(&Tensor::from_slice(&[1f32, f32::NEG_INFINITY])));
    }

    #[test]
    fn nothing_to_train_is_an_error() {
        let params = Params::new(0, Kind::Float, Device::Cpu);
        assert_eq!(FlatParams::new(&params).unwrap_err().code(), equipoise_base::ExitCode::Config);
    }
}

//! The layers that our models are made of, named and shaped as in PyTorch.

use crate::params::{Init, Scope};
use crate::shim::Autocast;
use std::cell::RefCell;
use tch::{Device, Kind, Tensor};

/// A weight that is held in a short format, as an operation on `x` in fp32 takes it; `None` where nothing is to be done,
/// or autocasting does it.
fn widened(weight: &Tensor, x: &Tensor) -> Option<Tensor> {
    let short = matches!(weight.kind(), Kind::BFloat16 | Kind::Half);
    (short && x.kind() == Kind::Float && !Autocast::is_on()).then(|| weight.to_kind(Kind::Float))
}

/// `torch.nn.Conv2d`, zero padding.
#[derive(Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: i64,
    padding: i64,
    groups: i64,
}

/// Shape of a [`Conv2d`]; unset fields are PyTorch's defaults except `bias`, which must be said.
#[derive(Clone, Copy, Debug)]
pub struct Conv2dConfig {
    /// Kernel height and width.
    pub kernel: i64,
    /// Stride.
    pub stride: i64,
    /// Zero padding on all sides.
    pub padding: i64,
    /// Groups.
    pub groups: i64,
    /// Whether there is a bias.
    pub bias: bool,
    /// Initialisation of the weight; PyTorch's default when `None`.
    pub init: Option<Init>,
}

impl Conv2dConfig {
    /// A kernel that keeps the size (`padding = kernel / 2`), stride 1, with bias.
    pub fn same(kernel: i64) -> Self {
        Self { kernel, stride: 1, padding: kernel / 2, groups: 1, bias: true, init: None }
    }
}

impl Conv2d {
    /// Creates `weight` [out, in/groups, k, k] and maybe `bias` [out].
    pub fn new(scope: &Scope, input: i64, output: i64, config: Conv2dConfig) -> Self {
        let Conv2dConfig { kernel, stride, padding, groups, bias, init } = config;
        let shape = [output, input / groups, kernel, kernel];
        let default = Init::default_for(shape[1..].iter().product());
        let weight = scope.param("weight", &shape, init.unwrap_or(default));
        let bias = bias.then(|| {
            scope.param("bias", &[output], if init.is_some() { Init::Constant(0.) } else { default })
        });
        Self { weight, bias, stride, padding, groups }
    }

    /// [N, in, H, W] to [N, out, H', W'].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let wide = widened(&self.weight, x);
        let weight = wide.as_ref().unwrap_or(&self.weight);
        x.conv2d(weight, self.bias.as_ref(), self.strides(x), [self.padding; 2], [1, 1], self.groups)
    }

    /// Vertical and horizontal stride. On images of one column that stay one column, every horizontal stride is the same
    /// convolution; with 2, the gradient that oneDNN computes in bf16 for its weight comes from memory that nobody wrote.
    fn strides(&self, x: &Tensor) -> [i64; 2] {
        let one_column = x.size()[3] == 1 && 1 + 2 * self.padding == self.weight.size()[3];
        let short = Autocast::is_on() || x.kind() != Kind::Float;
        [self.stride, if one_column && short { 1 } else { self.stride }]
    }
}

/// `torch.nn.Linear`.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Creates `weight` [out, in] and `bias` [out] with PyTorch's defaults.
    pub fn new(scope: &Scope, input: i64, output: i64) -> Self {
        Self::with(scope, input, output, true, None)
    }

    /// The same with a choice of bias and weight initialisation (then the bias starts at 0).
    pub fn with(scope: &Scope, input: i64, output: i64, bias: bool, init: Option<Init>) -> Self {
        let default = Init::default_for(input);
        let bias_init = if init.is_some() { Init::Constant(0.) } else { default };
        Self::with_init(scope, input, output, init.unwrap_or(default), bias.then_some(bias_init))
    }

    /// The same with both initialisations; no bias for `None`.
    pub fn with_init(scope: &Scope, input: i64, output: i64, weight: Init, bias: Option<Init>) -> Self {
        let weight = scope.param("weight", &[output, input], weight);
        let bias = bias.map(|init| scope.param("bias", &[output], init));
        Self { weight, bias }
    }

    /// [.., in] to [.., out].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let wide = widened(&self.weight, x);
        x.linear(wide.as_ref().unwrap_or(&self.weight), self.bias.as_ref())
    }
}

/// `torch.nn.GroupNorm` with affine parameters.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
    eps: f64,
}

impl GroupNorm {
    /// Creates `weight` and `bias` [channels].
    pub fn new(scope: &Scope, groups: i64, channels: i64, eps: f64) -> Self {
        let weight = scope.param("weight", &[channels], Init::Constant(1.));
        let bias = scope.param("bias", &[channels], Init::Constant(0.));
        Self { weight, bias, groups, eps }
    }

    /// Keeps the shape [N, C, ..].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.eps, false)
    }
}

/// `torch.nn.LayerNorm` over the last dimension, with affine parameters.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Creates `weight` and `bias` [width].
    pub fn new(scope: &Scope, width: i64, eps: f64) -> Self {
        let weight = scope.param("weight", &[width], Init::Constant(1.));
        let bias = scope.param("bias", &[width], Init::Constant(0.));
        Self { weight, bias, eps }
    }

    /// Keeps the shape [.., width].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, false)
    }
}

/// `torch.nn.Embedding`.
#[derive(Debug)]
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// Creates `weight` [count, dim], N(0, 1).
    pub fn new(scope: &Scope, count: i64, dim: i64) -> Self {
        Self { weight: scope.param("weight", &[count, dim], Init::Normal(1.)) }
    }

    /// Indices [N] to [N, dim].
    pub fn forward(&self, index: &Tensor) -> Tensor {
        Tensor::embedding(&self.weight, index, -1, false, false)
    }
}

/// Whether batch statistics or running statistics normalise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics, which are noted for the running ones.
    Train,
    /// Running statistics.
    Eval,
}

/// `torch.nn.BatchNorm2d` whose running statistics move only when told.
///
/// In training a step has several micro-batches, on several ranks. Each forward notes its own batch mean and
/// unbiased variance; [`RunningStatistics`](crate::statistics::RunningStatistics) then folds those of all ranks in, in
/// micro-batch order, so that the running ones do not depend on the number of ranks (DESIGN "Elastic training").
#[derive(Debug)]
pub struct BatchNorm2d {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    eps: f64,
    noted: RefCell<Option<Tensor>>,
}

impl BatchNorm2d {
    /// Part of a new batch in the running statistics.
    pub const MOMENTUM: f64 = 0.1;

    /// PyTorch's names and defaults: momentum 0.1, eps 1e-5, weight 1, bias 0.
    pub fn new(scope: &Scope, channels: i64) -> Self {
        Self {
            weight: scope.param("weight", &[channels], Init::Constant(1.)),
            bias: scope.param("bias", &[channels], Init::Constant(0.)),
            running_mean: scope.buffer("running_mean", &[channels], 0.),
            running_var: scope.buffer("running_var", &[channels], 1.),
            num_batches_tracked: scope.counter("num_batches_tracked"),
            eps: 1e-5,
            noted: RefCell::new(None),
        }
    }

    /// Number of channels.
    pub fn channels(&self) -> i64 {
        self.weight.size()[0]
    }

    /// Kind and device of the statistics.
    pub fn options(&self) -> (Kind, Device) {
        (self.running_mean.kind(), self.running_mean.device())
    }

    /// Keeps the shape [N, C, H, W].
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        match mode {
            Mode::Eval => {
                let (mean, var) = (Some(&self.running_mean), Some(&self.running_var));
                x.batch_norm(weight, bias, mean, var, false, Self::MOMENTUM, self.eps, false)
            }
            Mode::Train => {
                // Momentum 1 makes the kernel write the batch's own mean and unbiased variance into these two.
                let both = Tensor::zeros([2, self.channels()], self.options());
                let (mean, var) = (Some(both.get(0)), Some(both.get(1)));
                let out = x.batch_norm(weight, bias, mean.as_ref(), var.as_ref(), true, 1.0, self.eps, false);
                *self.noted.borrow_mut() = Some(both);
                out
            }
        }
    }

    /// The batch mean and unbiased variance of the last training forward, [2, C]; `None` if there was none since.
    pub fn take_statistics(&self) -> Option<Tensor> {
        self.noted.borrow_mut().take()
    }

    /// Running mean [C] and variance [C], and the number of batches in them [].
    pub(crate) fn running(&self) -> (&Tensor, &Tensor, &Tensor) {
        (&self.running_mean, &self.running_var, &self.num_batches_tracked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Params;
    use crate::precision::Precision;

    /// What is freed here is what the next allocations of these sizes find.
    fn leave_nan_in_free_memory() {
        let sizes = (4..17).flat_map(|power| [1i64 << power; 8]);
        drop(Vec::from_iter(sizes.map(|n| Tensor::full([n], f64::NAN, (Kind::Float, Device::Cpu)))));
    }

    #[test]
    fn a_stride_over_a_single_column_has_a_gradient_in_bf16() {
        let params = Params::new(1, Kind::Float, Device::Cpu);
        let config = Conv2dConfig { stride: 2, bias: false, ..Conv2dConfig::same(3) };
        let conv = Conv2d::new(&params.root(), 16, 32, config);
        let x = Tensor::arange(32, (Kind::Float, Device::Cpu)).view([2, 16, 1, 1]) / 32;
        let gradient = |precision: Precision| {
            let y = precision.scope(Device::Cpu, || conv.forward(&x)).unwrap();
            assert_eq!(y.size(), [2, 32, 1, 1]);
            leave_nan_in_free_memory();
            Tensor::run_backward(&[y.to_kind(Kind::Float).sum(Kind::Float)], &[&conv.weight], false, false)
                .remove(0)
        };
        let expected = gradient(Precision::Fp32);
        for _ in 0..100 {
            let difference = (gradient(Precision::Bf16) - &expected).abs().max().double_value(&[]);
            assert!(difference < 0.02, "{difference}");
        }
    }
}

//! Residual networks: the CIFAR family of the long-tailed literature and torchvision's bottleneck family.

pub mod bottleneck;
pub mod cifar;

use equipoise_nn::Scope;
use equipoise_nn::layers::{BatchNorm2d, Conv2d, Conv2dConfig, Mode};
use tch::Tensor;

/// A convolution without bias and the batch normalisation behind it.
#[derive(Debug)]
struct ConvNorm {
    conv: Conv2d,
    norm: BatchNorm2d,
}

impl ConvNorm {
    /// `names` are those of the convolution and of the normalisation within `scope`.
    fn new(scope: &Scope, names: (&str, &str), input: i64, output: i64, config: Conv2dConfig) -> Self {
        let conv = Conv2d::new(&scope.sub(names.0), input, output, Conv2dConfig { bias: false, ..config });
        Self { conv, norm: BatchNorm2d::new(&scope.sub(names.1), output) }
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        self.norm.forward(&self.conv.forward(x), mode)
    }
}

/// Mean over height and width: [N, C, H, W] to [N, C].
fn global_average(x: &Tensor) -> Tensor {
    x.mean_dim([2i64, 3].as_slice(), false, None)
}

/// relu(branch + shortcut), in the storage of `branch`.
fn join(mut branch: Tensor, shortcut: &Tensor) -> Tensor {
    branch.g_add_(shortcut).relu_()
}

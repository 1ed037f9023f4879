//! CIFAR ResNets with parameter-free shortcuts (He et al. 2016, section 4.2, option A), named and initialised as
//! `ResNet_s` of kaidic/LDAM-DRW, the reference of the long-tailed literature.

use super::{ConvNorm, global_average, join};
use crate::arch::Network;
use equipoise_base::{Result, ensure};
use equipoise_nn::layers::{BatchNorm2d, Conv2dConfig, Linear, Mode};
use equipoise_nn::{Init, Module, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Shape of a [`CifarResNet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CifarResNetConfig {
    /// Number of weighted layers, 6n + 2: 8, 20, 32, 44, 56, 110.
    pub depth: i64,
    /// Channels of the first stage; the others have 2 and 4 times as many.
    pub width: i64,
    /// Stride of the first convolution; 2 makes a quick net for small machines.
    pub stem_stride: i64,
    /// Cosine classifier (LDAM's `NormedLinear`): normalised features times normalised class weights, no bias.
    pub normalized_head: bool,
}

impl Default for CifarResNetConfig {
    fn default() -> Self {
        Self { depth: 32, width: 16, stem_stride: 1, normalized_head: false }
    }
}

/// Three stages of basic blocks, a global average and a linear head.
#[derive(Debug)]
pub struct CifarResNet {
    stem: ConvNorm,
    blocks: Vec<BasicBlock>,
    head: Head,
    feature_dim: i64,
}

impl CifarResNet {
    /// Creates the network for images of `channels` channels.
    ///
    /// # Errors
    /// 78 naming the field that makes no network.
    pub fn new(scope: &Scope, config: CifarResNetConfig, channels: i64, classes: i64) -> Result<Self> {
        let CifarResNetConfig { depth, width, stem_stride, normalized_head } = config;
        ensure!(
            depth >= 8 && depth % 6 == 2,
            Config,
            "arch.depth: {depth} is not 6n + 2, such as 8, 20, 32 or 56"
        );
        ensure!(
            width >= 2 && width % 2 == 0,
            Config,
            "arch.width: {width} is not an even number of channels"
        );
        ensure!(stem_stride > 0, Config, "arch.stem_stride: {stem_stride} is no stride");
        let stem =
            ConvNorm::new(scope, ("conv1", "bn1"), channels, width, conv3x3(channels, width, stem_stride));
        let (mut blocks, mut input) = (Vec::new(), width);
        for stage in 0..3 {
            let (name, planes) = (format!("layer{}", stage + 1), width << stage);
            for index in 0..(depth - 2) / 6 {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                blocks.push(BasicBlock::new(&scope.sub(&name).sub(index), input, planes, stride));
                input = planes;
            }
        }
        let head = Head::new(&scope.sub("linear"), input, classes, normalized_head);
        Ok(Self { stem, blocks, head, feature_dim: input })
    }
}

impl Module for CifarResNet {
    fn batch_norms(&self) -> Vec<&BatchNorm2d> {
        let blocks = self.blocks.iter().flat_map(|block| [&block.first.norm, &block.second.norm]);
        std::iter::once(&self.stem.norm).chain(blocks).collect()
    }
}

impl Network for CifarResNet {
    fn features(&self, x: &Tensor, mode: Mode) -> Tensor {
        let stem = self.stem.forward(x, mode).relu_();
        global_average(&self.blocks.iter().fold(stem, |x, block| block.forward(&x, mode)))
    }

    fn head(&self, features: &Tensor) -> Tensor {
        self.head.forward(features)
    }

    fn head_name(&self) -> &'static str {
        "linear"
    }

    fn feature_dim(&self) -> i64 {
        self.feature_dim
    }
}

fn conv3x3(input: i64, output: i64, stride: i64) -> Conv2dConfig {
    let init = Some(Init::kaiming_fan_in(&[output, input, 3, 3]));
    Conv2dConfig { stride, init, ..Conv2dConfig::same(3) }
}

#[derive(Debug)]
struct BasicBlock {
    first: ConvNorm,
    second: ConvNorm,
    /// Stride and zero channels on both sides of the shortcut; `None` where the shape stays.
    shortcut: Option<(i64, i64)>,
}

impl BasicBlock {
    fn new(scope: &Scope, input: i64, planes: i64, stride: i64) -> Self {
        Self {
            first: ConvNorm::new(scope, ("conv1", "bn1"), input, planes, conv3x3(input, planes, stride)),
            second: ConvNorm::new(scope, ("conv2", "bn2"), planes, planes, conv3x3(planes, planes, 1)),
            shortcut: (stride != 1 || input != planes).then_some((stride, planes / 4)),
        }
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        let branch = self.second.forward(&self.first.forward(x, mode).relu_(), mode);
        match self.shortcut {
            None => join(branch, x),
            Some((stride, zeros)) => {
                let sampled = x.slice(2, None, None, stride).slice(3, None, None, stride);
                join(branch, &sampled.constant_pad_nd([0, 0, 0, 0, zeros, zeros]))
            }
        }
    }
}

#[derive(Debug)]
enum Head {
    Linear(Linear),
    /// Weight [features, classes].
    Cosine(Tensor),
}

impl Head {
    fn new(scope: &Scope, features: i64, classes: i64, normalized: bool) -> Self {
        if normalized {
            let weight = scope.param("weight", &[features, classes], Init::Uniform(1.));
            tch::no_grad(|| weight.shallow_clone().copy_(&normalize(&weight, 0)));
            return Head::Cosine(weight);
        }
        let (weight, bias) = (Init::kaiming_fan_in(&[classes, features]), Init::default_for(features));
        Head::Linear(Linear::with_init(scope, features, classes, weight, Some(bias)))
    }

    fn forward(&self, features: &Tensor) -> Tensor {
        match self {
            Head::Linear(linear) => linear.forward(features),
            Head::Cosine(weight) => normalize(features, 1).matmul(&normalize(weight, 0)),
        }
    }
}

/// `torch.nn.functional.normalize`: x / max(|x|, 1e-12) along `dim`.
fn normalize(x: &Tensor, dim: i64) -> Tensor {
    x / x.norm_scalaropt_dim(2, [dim].as_slice(), true).clamp_min(1e-12)
}

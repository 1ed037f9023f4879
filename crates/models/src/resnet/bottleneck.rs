//! torchvision's `ResNet(Bottleneck, ...)`: ResNet-50/152 and ResNeXt-50 with its parameter names, shapes and
//! initialisation, so that its published weights load as they are.

use super::{ConvNorm, global_average, join};
use crate::arch::Network;
use equipoise_base::{Result, ensure};
use equipoise_nn::layers::{BatchNorm2d, Conv2dConfig, Linear, Mode};
use equipoise_nn::{Init, Module, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Output channels of a block over its planes.
const EXPANSION: i64 = 4;

/// Shape of a [`BottleneckResNet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BottleneckResNetConfig {
    /// Blocks of each stage.
    pub layers: [i64; 4],
    /// Channels of the stem and planes of the first stage; the others have 2, 4 and 8 times as many.
    pub base: i64,
    /// Groups of the 3x3 convolutions (ResNeXt's cardinality).
    pub groups: i64,
    /// Channels per group where a stage has 64 planes.
    pub width_per_group: i64,
}

impl Default for BottleneckResNetConfig {
    fn default() -> Self {
        Self { layers: [3, 4, 6, 3], base: 64, groups: 1, width_per_group: 64 }
    }
}

impl BottleneckResNetConfig {
    /// torchvision's `resnet50`.
    pub fn resnet50() -> Self {
        Self::default()
    }

    /// torchvision's `resnet152`.
    pub fn resnet152() -> Self {
        Self { layers: [3, 8, 36, 3], ..Self::default() }
    }

    /// torchvision's `resnext50_32x4d`.
    pub fn resnext50_32x4d() -> Self {
        Self { groups: 32, width_per_group: 4, ..Self::default() }
    }

    /// Channels of the 3x3 convolution: int(planes * (width_per_group / 64)) * groups.
    fn inner_width(&self, planes: i64) -> i64 {
        planes * self.width_per_group / 64 * self.groups
    }
}

/// Four stages of bottleneck blocks, a global average and a linear head.
#[derive(Debug)]
pub struct BottleneckResNet {
    stem: ConvNorm,
    blocks: Vec<Bottleneck>,
    fc: Linear,
    feature_dim: i64,
}

impl BottleneckResNet {
    /// Creates the network for images of `channels` channels.
    ///
    /// # Errors
    /// 78 naming the field that makes no network.
    pub fn new(scope: &Scope, config: BottleneckResNetConfig, channels: i64, classes: i64) -> Result<Self> {
        let BottleneckResNetConfig { layers, base, groups, width_per_group } = config;
        ensure!(layers.iter().all(|&count| count > 0), Config, "arch.layers: {layers:?} has an empty stage");
        ensure!(base > 0 && groups > 0, Config, "arch: base {base} and groups {groups} must be at least 1");
        ensure!(
            config.inner_width(base) > 0,
            Config,
            "arch.width_per_group: {width_per_group} leaves no channel at base {base}"
        );
        let stem_conv = Conv2dConfig { stride: 2, ..conv(7, 1, channels, base) };
        let stem = ConvNorm::new(scope, ("conv1", "bn1"), channels, base, stem_conv);
        let (mut blocks, mut input) = (Vec::new(), base);
        for (stage, &count) in layers.iter().enumerate() {
            let (name, planes) = (format!("layer{}", stage + 1), base << stage);
            let width = config.inner_width(planes);
            for index in 0..count {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let shape = BlockShape { input, width, output: planes * EXPANSION, stride, groups };
                blocks.push(Bottleneck::new(&scope.sub(&name).sub(index), shape));
                input = shape.output;
            }
        }
        let fc = Linear::new(&scope.sub("fc"), input, classes);
        Ok(Self { stem, blocks, fc, feature_dim: input })
    }
}

impl Module for BottleneckResNet {
    fn batch_norms(&self) -> Vec<&BatchNorm2d> {
        std::iter::once(&self.stem.norm).chain(self.blocks.iter().flat_map(Bottleneck::norms)).collect()
    }
}

impl Network for BottleneckResNet {
    fn features(&self, x: &Tensor, mode: Mode) -> Tensor {
        let stem = self.stem.forward(x, mode).relu_().max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
        global_average(&self.blocks.iter().fold(stem, |x, block| block.forward(&x, mode)))
    }

    fn head(&self, features: &Tensor) -> Tensor {
        self.fc.forward(features)
    }

    fn head_name(&self) -> &'static str {
        "fc"
    }

    fn feature_dim(&self) -> i64 {
        self.feature_dim
    }
}

fn conv(kernel: i64, groups: i64, input: i64, output: i64) -> Conv2dConfig {
    let init = Some(Init::kaiming_fan_out(&[output, input / groups, kernel, kernel]));
    Conv2dConfig { groups, init, ..Conv2dConfig::same(kernel) }
}

#[derive(Clone, Copy, Debug)]
struct BlockShape {
    input: i64,
    width: i64,
    output: i64,
    stride: i64,
    groups: i64,
}

#[derive(Debug)]
struct Bottleneck {
    reduce: ConvNorm,
    spatial: ConvNorm,
    expand: ConvNorm,
    downsample: Option<ConvNorm>,
}

impl Bottleneck {
    fn new(scope: &Scope, shape: BlockShape) -> Self {
        let BlockShape { input, width, output, stride, groups } = shape;
        let spatial = Conv2dConfig { stride, ..conv(3, groups, width, width) };
        let shortcut = Conv2dConfig { stride, ..conv(1, 1, input, output) };
        let reshapes = stride != 1 || input != output;
        Self {
            reduce: ConvNorm::new(scope, ("conv1", "bn1"), input, width, conv(1, 1, input, width)),
            spatial: ConvNorm::new(scope, ("conv2", "bn2"), width, width, spatial),
            expand: ConvNorm::new(scope, ("conv3", "bn3"), width, output, conv(1, 1, width, output)),
            downsample: reshapes
                .then(|| ConvNorm::new(&scope.sub("downsample"), ("0", "1"), input, output, shortcut)),
        }
    }

    fn norms(&self) -> impl Iterator<Item = &BatchNorm2d> {
        [&self.reduce, &self.spatial, &self.expand].into_iter().chain(&self.downsample).map(|part| &part.norm)
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        let reduced = self.reduce.forward(x, mode).relu_();
        let branch = self.expand.forward(&self.spatial.forward(&reduced, mode).relu_(), mode);
        match &self.downsample {
            None => join(branch, x),
            Some(downsample) => join(branch, &downsample.forward(x, mode)),
        }
    }
}
